"""mkdocs: pages may link to any file of the project. A linked file outside of docs/ becomes a part of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs"
OUTSIDE = "project"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of docs/, and what that links to."""
    todo = [f"{DOCS}/{each.src_uri}" for each in files if each.src_uri.endswith(".md")]
    done = set()
    while todo:
        page = todo.pop()
        text = (ROOT / page).read_text(encoding="utf-8")
        for _, link, _, _ in LINK.findall(text):
            target = resolved(page, link)
            if target and not target.startswith(f"{DOCS}/") and target not in done:
                done.add(target)
                files.append(File.generated(config, site_uri(target), abs_src_path=str(ROOT / target)))
                if target.endswith(".md"):
                    todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as they are in the site."""
    here = page.file.src_uri
    source = here.removeprefix(f"{OUTSIDE}/") if here.startswith(f"{OUTSIDE}/") else f"{DOCS}/{here}"

    def moved(found: re.Match[str]) -> str:
        before, link, anchor, after = found.groups()
        target = resolved(source, link)
        if target is None:
            return found[0]
        return f"{before}{posixpath.relpath(site_uri(target), posixpath.dirname(here) or '.')}{anchor or ''}{after}"

    return four_spaces(LINK.sub(moved, markdown))


def four_spaces(markdown: str) -> str:
    """What is below an item of a list by two or three spaces, as GitHub takes it, by the four that mkdocs needs."""
    lines: list[str] = []
    block = ""  # the spaces before the code block that a line is in; empty also for one that is below no item
    in_block = False
    for line in markdown.split("\n"):
        text = line.lstrip()
        spaces = line[: len(line) - len(text)]
        if text.startswith("```"):
            block = "" if in_block else spaces
            in_block = not in_block
        elif in_block:
            lines.append(f"    {line.removeprefix(block)}" if block and text else line)
            continue
        lines.append(f"    {text}" if text and 2 <= len(spaces) <= 3 else line)
    return "\n".join(lines)


def resolved(page: str, link: str) -> str | None:
    """The file that a link leads to, from the project's root; None for what is no file of the project."""
    if re.match(r"[a-z]+:", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return target if (ROOT / target).is_file() else None


def site_uri(target: str) -> str:
    """Where a file of the project is in the site."""
    return target.removeprefix(f"{DOCS}/") if target.startswith(f"{DOCS}/") else f"{OUTSIDE}/{target}"
