"""The documentation: links lead somewhere, commands exist, and what is generated is up to date."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
if not DOCS.is_dir():
    pytest.skip("a source distribution has no docs", allow_module_level=True)

GENERATED = sorted((DOCS / "reference").glob("*.md"))
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *(ROOT / "loftr_ros").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        *(ROOT / "docker").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
    }
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HTML_LINK = re.compile(r"<(?:img|a)\s[^>]*(?:src|href)=\"([^\"]+)\"")
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
WRITTEN = {"build", "demo", "runs", "keys"}  # by commands, into the current folder
ENDINGS = {"csv", "pt", "py", "yaml", "json", "xml", "rviz", "msg", "srv", "txt", "md", "toml", "cfg", "png", "jpg"}


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


T = TypeVar("T")


def each(found: Callable[[Path], Iterable[T]]) -> Iterator[tuple[Path, T]]:
    """What is found on each page, with the page."""
    for page in PAGES:
        for one in found(page):
            yield page, one


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@cache
def prose_of(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text_of(page))


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The code blocks of a page in some languages; no language is the command line."""
    for _, language, text in FENCE.findall(text_of(page)):
        if language in languages:
            yield text


@cache
def anchors(page: Path) -> set[str]:
    """What a link to a heading may be: its name in GitHub's view and in the site, where the two are the same."""
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", prose_of(page), re.M):
        plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        github = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        if github == site:
            found.add(site)
    return found


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/tools/reference.py, which writes what is generated."""
    pytest.importorskip("rclpy")
    spec = importlib.util.spec_from_file_location("reference", DOCS / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def generated_files(reference: ModuleType) -> dict[Path, str]:
    files: dict[Path, str] = reference.files()
    return files


def test_what_is_generated_is_up_to_date(reference: ModuleType) -> None:
    files = generated_files(reference)
    stale = [page_id(path) for path, text in files.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"{', '.join(stale)}: run `make reference`"


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    wrong = []
    for page, link in each(lambda page: (*LINK.findall(prose_of(page)), *HTML_LINK.findall(prose_of(page)))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(f"{page_id(page)}: {link}: no such file")
        elif anchor and anchor not in anchors(target):
            wrong.append(f"{page_id(page)}: {link}: no such heading; there are {', '.join(sorted(anchors(target)))}")
    assert not wrong, "\n".join(wrong)


def test_every_page_is_in_the_sites_navigation() -> None:
    listed = set(re.findall(r"([\w/]+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}


def test_lines_of_prose_are_short() -> None:
    long = [
        f"{page_id(page)}:{number}: {line}"
        for page in (ROOT / "README.md", *DOCS.rglob("*.md"))
        for number, line in enumerate(text_of(page).splitlines(), start=1)
        if len(line) > 120 and not line.startswith("|") and "](http" not in line
    ]
    assert not long, "\n".join(long)


# Commands


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of every command line of a page's code blocks, without prompts, comments and settings of variables."""
    for block in blocks(page, "", "bash", "sh", "console"):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            for part in re.split(r"\s(?:&&|\|)\s|;", line.strip().removeprefix("$ ")):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:  # what a command printed
                    continue
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield words


def inline_commands(page: Path, program: str) -> Iterator[list[str]]:
    for code in INLINE.findall(prose_of(page)):
        # Not what a command prints, as `loftr_ros demo: stopped`.
        if re.match(rf"{program} [a-z_]+(?!\w*:)\b", code):
            yield code.replace("\\|", "|").split()


class WrongCommandError(Exception):
    """A command line that the command would refuse."""


def check_command(reference: ModuleType, words: list[str], whole: bool) -> None:
    """Hold a line of `loftr_ros` against what the command declares.

    Args:
        words: the line.
        whole: whether it must have all arguments, as a line that is to be typed.

    Raises:
        WrongCommandError: a command or option that there is not, or an argument too few or too many.
    """
    known = {each.name: each for each in reference.commands()}
    name, rest = "loftr_ros", words[1:]
    while rest and f"{name} {rest[0].split('|')[0]}" in known:
        name = f"{name} {rest[0].split('|')[0]}"
        choices, rest = rest[0].split("|")[1:], rest[1:]
        for choice in choices:
            if f"{name.rpartition(' ')[0]} {choice}" not in known:
                raise WrongCommandError(f"no command {choice}")
    command = known[name]
    options = {option: param for param in command.options for option in param.names} | {"--help": None, "-h": None}
    given = 0
    while rest:
        word, rest = rest[0], rest[1:]
        if word == "--ros-args" and command.takes_more:
            return
        if word == "..." or word.startswith("["):
            whole = False
        elif re.match(r"--?[a-zA-Z]", word):
            option, _, value = word.partition("=")
            if option not in options:
                raise WrongCommandError(f"{name} has no option {option}")
            if options[option] is not None and options[option].takes and not value:
                if not rest and whole:
                    raise WrongCommandError(f"{option} takes a value")
                rest = rest[1:]
        elif command.has_commands:
            raise WrongCommandError(f"no command {name} {word}")
        else:
            given += 1
    most = sys.maxsize if any(each.is_list for each in command.arguments) else len(command.arguments)
    least = sum("[" not in each.usage for each in command.arguments) if whole else 0
    if not least <= given <= most:
        raise WrongCommandError(f"{name} takes {least} to {most} arguments, not {given}")


def test_every_command_line_of_the_package_parses(reference: ModuleType) -> None:
    wrong = []
    typed = [(page, words, True) for page, words in each(command_lines) if Path(words[0]).name == "loftr_ros"]
    told = [(page, words, False) for page, words in each(lambda page: inline_commands(page, "loftr_ros"))]
    for page, words, whole in (*typed, *told):
        if page in GENERATED:  # a usage
            continue
        try:
            check_command(reference, words, whole)
        except WrongCommandError as error:
            wrong.append(f"{page_id(page)}: {' '.join(words)}: {error}")
    assert len(typed) > 50
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    ["loftr_ros fly", "loftr_ros run", "loftr_ros run a b", "loftr_ros run a --fast", "loftr_ros run a --mode"],
)
def test_a_wrong_command_line_would_be_found(line: str, reference: ModuleType) -> None:
    with pytest.raises(WrongCommandError):
        check_command(reference, line.split(), True)


@cache
def launch_files() -> dict[str, tuple[set[str], dict[str, list[str]]]]:
    """Every launch file of the project: the arguments that it declares, and choices of some."""
    found: dict[str, tuple[set[str], dict[str, list[str]]]] = {}
    for path in (*ROOT.glob("launch/*.launch.py"), *ROOT.glob("examples/**/*.launch.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names, choices = set(), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("DeclareLaunchArgument"):
                names |= {each.value for each in node.args[:1] if isinstance(each, ast.Constant)}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ARGUMENTS":
                names |= {each.elts[0].value for each in node.value.elts}  # type: ignore[attr-defined]
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHOICES":
                choices = ast.literal_eval(node.value)
        found[path.name] = names, choices
    for path in (*ROOT.glob("launch/*.launch.py"), *ROOT.glob("examples/**/*.launch.py")):
        if path.name != "front_end.launch.py" and "front_end.launch.py" in path.read_text(encoding="utf-8"):
            found[path.name] = found[path.name][0] | found["front_end.launch.py"][0], found["front_end.launch.py"][1]
    return found


def test_every_launch_names_a_launch_file_and_its_arguments() -> None:
    wrong = []
    for page, words in each(lambda page: (*command_lines(page), *inline_commands(page, "ros2"))):
        words = words[words.index("ros2") :] if "ros2" in words else []  # also in a container
        if words[:2] != ["ros2", "launch"] or "loftr_ros" not in words:
            continue
        rest = words[words.index("loftr_ros") + 1 :]
        if not rest or rest[0] not in launch_files():
            wrong.append(f"{page_id(page)}: {' '.join(words)}: no such launch file")
            continue
        names, choices = launch_files()[rest[0]]
        for word in rest[1:]:
            name, assigned, value = word.partition(":=")
            if assigned and (name not in names or value not in choices.get(name, [value])):
                wrong.append(f"{page_id(page)}: {' '.join(words)}: {word}")
    assert not wrong, "\n".join(wrong)


def test_every_target_of_make_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.M))
    lines = [words for _, words in each(lambda page: (*command_lines(page), *inline_commands(page, "make")))]
    asked = {word for words in lines if words[0] == "make" for word in words[1:] if re.fullmatch(r"[a-z][\w-]*", word)}
    assert {"demo", "test", "docs"} <= asked <= targets


# Names


def test_every_parameter_that_is_named_exists(reference: ModuleType) -> None:
    generated = "".join(text for path, text in generated_files(reference).items() if path.suffix == ".md")
    known = set(re.findall(r"^\| `([\w.]+)` \|", generated, re.M)) | {"data.recorded", "network.changes"}
    prefixes = {name.partition(".")[0] for name in known if "." in name}
    wrong = [
        f"{page_id(page)}: {code}"
        for page, code in each(lambda page: INLINE.findall(prose_of(page)))
        if re.fullmatch(r"[a-z_]+\.[a-z_]+", code)
        and code.partition(".")[0] in prefixes
        and code.partition(".")[2] not in ENDINGS
        and code not in known
    ]
    assert not wrong, "\n".join(wrong)


def test_every_file_that_is_named_exists() -> None:
    folders = {path.name for path in (*ROOT.iterdir(), *(ROOT / "loftr_ros").iterdir()) if path.is_dir()}
    code_folders = ("benchmarks", "cmake", "docs", "examples", "launch", "loftr_ros", "test")
    modules = {path.name for folder in code_folders for path in (ROOT / folder).rglob("*.py")} | {"setup.py"}
    wrong = []
    for page, code in each(lambda page: INLINE.findall(prose_of(page))):
        path = code.split()[0].split(":")[0]
        is_ours = re.fullmatch(r"[\w./-]+/[\w-]+\.\w+", path) and path.partition("/")[0] in folders - WRITTEN
        if is_ours and not (ROOT / path).exists() and not (ROOT / "loftr_ros" / path).exists():
            wrong.append(f"{page_id(page)}: {path}")
        if re.fullmatch(r"\w+\.py", path) and path not in modules:
            wrong.append(f"{page_id(page)}: {path}")
    assert not wrong, "\n".join(wrong)


def test_each_nodes_page_has_every_topic_and_service_of_its_own() -> None:
    """Of those that the code creates, and no other."""
    files = sorted((ROOT / "loftr_ros" / "ros").rglob("*.py"))
    for page, ours in (("node.md", False), ("back_end.md", True)):
        of_the_node = [path for path in files if (path.parent.name == "back_end") is ours]
        code = "".join(path.read_text(encoding="utf-8") for path in of_the_node)
        made = set(re.findall(r"\(\s*\w+, \"(~/\w+)\"", code))
        rows = set(re.findall(r"^\|.*?$", text_of(DOCS / page), re.M))
        told = {name for row in rows for name in re.findall(r"`(~/\w+)`", row.split("|")[1])}
        assert made and (made <= told if ours else made == told)


def test_the_readme_has_the_parameters_defaults(reference: ModuleType) -> None:
    from loftr_ros.ros.parameters import parameter_names

    declared = {name: reference.value_text(item.default) for name, item in parameter_names()}
    section = re.search(r"^## Parameters\n(.*?)^## ", text_of(ROOT / "README.md"), re.M | re.S)
    assert section is not None
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", section[1], re.M)
    assert len(rows) >= 10
    for names, default in rows:
        for name in re.findall(r"`([^`]+)`", names):
            assert default.strip(" `").partition(" ")[0].strip('"') == declared[name].strip('"'), name
