"""Promises of package.xml, setup.py and CMakeLists.txt."""

from __future__ import annotations

import ast
import importlib
import os
import re
import runpy
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest
from groups import GROUPS, files

ROOT = Path(__file__).resolve().parents[1]
MESSAGES = sorted(path.stem for path in (ROOT / "msg").glob("*.msg"))
SERVICES = sorted(path.stem for path in (ROOT / "srv").glob("*.srv"))
# A field: its type, which may be bounded and an array, and its name.
FIELD = re.compile(r"^\s*([\w/]+(?:<=\d+)?(?:\[(?:<=)?\d*\])?)\s+(\w+)\s*(?:#|$)", re.M)

# rosdep's keys where they are not python3- and PyPI's name.
ROSDEP_KEYS = {
    "onnxruntime": "python3-onnxruntime-pip",
    "opencv-python-headless": "python3-opencv",
    "pyyaml": "python3-yaml",
    "rosbags": "python3-rosbags-pip",
    "ruff": "python3-ruff-pip",
    "torch": "python3-pytorch-pip",
}
# Optional, only for tests or mypy, or (safetensors) described in docs/install.md.
WITHOUT_ROSDEP_KEY = {
    "av",
    "gtsam",  # has one, of the C++ library
    "import-linter",
    "kornia",
    "lancedb",
    "onnx",
    "openvino",
    "pyarrow",
    "pycolmap",
    "pytorch-lightning",
    "pytorch_lightning",
    "safetensors",
    "tensorboard",
    "types-tqdm",
}
OPTIONAL = {"h5py", "matplotlib", "onnxruntime"}  # the code reports it if missing
# The distributions on PyPI lack these, and the code works without them.
WITHOUT_WHEEL = {"cv_bridge", "gtsam", "launch", "launch_ros", "message_filters", "tf2_msgs", "tf2_ros_py"}
# ROS packages of modules with other names.
ROS_PACKAGES = {"tf2_ros": "tf2_ros_py"}
# PyPI's names of modules with other names.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "yaml": "pyyaml"}


def rosdep_key(requirement: str) -> str:
    name = re.split(r"[<>=\[; ]", requirement)[0].lower()
    return ROSDEP_KEYS.get(name, f"python3-{name}")


def setup_constant(name: str) -> object:
    """The literal that setup.py assigns to name; importing setup.py would run it."""
    for statement in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    raise LookupError(name)


def package_xml_dependencies(*kinds: str) -> set[str]:
    package = xml.etree.ElementTree.parse(ROOT / "package.xml").getroot()
    return {str(element.text) for kind in kinds for element in package.iter(kind)}


def imported_modules(folder: Path) -> set[str]:
    """The top-level names of all modules that the Python files in a folder import, inside functions too."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"loftr_ros"}


def python_dependencies(*kinds: str) -> set[str]:
    return {key for key in package_xml_dependencies(*kinds) if key.startswith("python3-")}


def test_package_xml_and_setup_py_name_the_same_python_packages() -> None:
    requirements = setup_constant("REQUIREMENTS")
    assert isinstance(requirements, list)
    without_key = {f"python3-{name}" for name in WITHOUT_ROSDEP_KEY}
    assert {rosdep_key(requirement) for requirement in requirements} - without_key == python_dependencies(
        "exec_depend", "depend"
    )


def test_package_xml_and_setup_py_name_the_same_python_packages_for_tests() -> None:
    extras = setup_constant("EXTRAS")
    assert isinstance(extras, dict)
    without_key = {f"python3-{name}" for name in WITHOUT_ROSDEP_KEY}
    assert {rosdep_key(requirement) for requirement in extras["test"]} - without_key == python_dependencies(
        "test_depend"
    )


@pytest.mark.parametrize("folder", ["loftr_ros", "launch"])
def test_every_module_that_the_code_imports_is_declared_in_package_xml(folder: str) -> None:
    declared = package_xml_dependencies("depend", "exec_depend")
    names = imported_modules(ROOT / folder) - WITHOUT_ROSDEP_KEY - OPTIONAL
    undeclared = {
        name
        for name in names
        if ROS_PACKAGES.get(name, name) not in declared and rosdep_key(DISTRIBUTIONS.get(name, name)) not in declared
    }
    assert not undeclared


def test_every_ros_package_of_package_xml_is_installed_or_has_no_wheel() -> None:
    index = pytest.importorskip("ament_index_python", reason="needs a ROS 2 environment")
    declared = package_xml_dependencies("depend", "exec_depend") - python_dependencies("exec_depend")
    assert declared - set(index.get_packages_with_prefixes()) <= WITHOUT_WHEEL


@pytest.mark.parametrize("file", [*(f"msg/{name}.msg" for name in MESSAGES), *(f"srv/{name}.srv" for name in SERVICES)])
def test_every_field_of_a_message_or_service_has_a_comment(file: str) -> None:
    lines = (ROOT / file).read_text().splitlines()
    fields = [line for line in lines if FIELD.match(line)]
    assert fields
    # Otherwise only constants, comments and the line between request and response.
    assert all(
        line in fields or not line.strip() or line == "---" or line.strip()[:1] == "#" or "=" in line for line in lines
    )
    assert not [line for line in fields if not re.search(r"#\s*\S", line)]


@pytest.fixture(scope="module")
def prefix() -> Path:
    """The ament prefix that loftr_ros is installed in."""
    index = pytest.importorskip("ament_index_python", reason="needs a ROS 2 environment")
    try:
        return Path(index.get_package_prefix("loftr_ros"))
    except index.PackageNotFoundError:
        pytest.skip("loftr_ros is not installed: run `make install`, or `colcon build` and source its setup file")


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_is_installed_as_class_and_in_the_ament_index(prefix: Path, name: str) -> None:
    message = getattr(importlib.import_module("loftr_ros.msg"), name)
    fields = [field for _, field in FIELD.findall((ROOT / "msg" / f"{name}.msg").read_text())]
    assert list(message.get_fields_and_field_types()) == fields
    index = prefix / "share/ament_index/resource_index"
    assert f"msg/{name}.msg" in (index / "rosidl_interfaces/loftr_ros").read_text().split()
    assert (prefix / f"share/loftr_ros/msg/{name}.msg").read_text() == (ROOT / "msg" / f"{name}.msg").read_text()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_installed_as_class_and_in_the_ament_index(prefix: Path, name: str) -> None:
    service = getattr(importlib.import_module("loftr_ros.srv"), name)
    halves = (ROOT / "srv" / f"{name}.srv").read_text().split("---\n")
    for kind, half in zip((service.Request, service.Response), halves, strict=True):
        assert list(kind.get_fields_and_field_types()) == [field for _, field in FIELD.findall(half)]
    index = prefix / "share/ament_index/resource_index"
    assert f"srv/{name}.srv" in (index / "rosidl_interfaces/loftr_ros").read_text().split()


@pytest.mark.parametrize(
    "file",
    [
        "launch/front_end.launch.py",
        "launch/slam.launch.py",
        "launch/with_image_proc.launch.py",
        "config/front_end.yaml",
        "config/back_end.yaml",
        "config/slam.rviz",
        "config/slam_foxglove_layout.json",
        "config/front_end.rviz",
        "config/fleet_policy.xml",
        "config/foxglove_layout.json",
        "examples/README.md",
        "examples/vins_bridge.py",
        "examples/zed.launch.py",
        "package.xml",
    ],
)
def test_launch_and_configuration_are_installed_as_they_are_in_the_tree(prefix: Path, file: str) -> None:
    assert (prefix / "share/loftr_ros" / file).read_text() == (ROOT / file).read_text()


def test_the_installed_python_package_is_this_tree() -> None:
    package = importlib.import_module("loftr_ros")
    assert package.__file__
    installed = Path(package.__file__).parent
    if installed == ROOT / "loftr_ros":
        pytest.skip("the tree itself is on the path, not an installation")

    def modules(folder: Path) -> dict[str, str]:
        paths = (path.relative_to(folder) for path in folder.rglob("*.py"))
        # rosidl's output is only in the installation.
        return {str(path): (folder / path).read_text() for path in paths if path.parts[0] not in ("msg", "srv")}

    assert modules(installed) == modules(ROOT / "loftr_ros")


@pytest.mark.parametrize("file", ["lib/loftr_ros/front_end", "lib/loftr_ros/loftr_ros", "bin/loftr_ros"])
def test_executables_are_where_ros2_run_and_launch_look(prefix: Path, file: str) -> None:
    assert os.access(prefix / file, os.X_OK)


@pytest.mark.parametrize("file", ["lib/loftr_ros/loftr_ros", "bin/loftr_ros"])
def test_the_command_starts_without_an_activated_environment(prefix: Path, file: str, tmp_path: Path) -> None:
    if not (prefix / "bin/python3").exists():
        pytest.skip("a colcon workspace has no interpreter of its own, and is sourced")
    environment = {"PATH": os.defpath, "HOME": str(tmp_path)}
    result = subprocess.run(
        [prefix / file, "--help"], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout


def test_every_test_file_is_in_one_group_and_every_group_is_a_ctest_with_a_time_limit() -> None:
    grouped = [name for group in GROUPS for name in sorted(files(group))]
    assert sorted(grouped) == sorted(path.name for path in (ROOT / "test").glob("test_*.py"))
    limits = dict(re.findall(r"\b(\w+):(\d+)", (ROOT / "CMakeLists.txt").read_text()))
    assert set(limits) == set(GROUPS) and all(100 <= int(limit) <= 600 for limit in limits.values())


def test_the_source_distribution_holds_every_file_that_a_build_and_the_tests_need() -> None:
    from setuptools.command.egg_info import FileList

    manifest = FileList()
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        if line and not line.startswith("#"):
            manifest.process_template_line(line)
    listed = {str(Path(name)) for name in manifest.files}
    folders = ("cmake", "config", "docker", "examples", "launch", "loftr_ros", "msg", "scripts", "srv", "test")
    needed = [
        path.relative_to(ROOT)
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    single = ("CMakeLists.txt", "LICENSE", "Makefile", "README.md", "package.xml")
    assert len(needed) > 300 and not {str(path) for path in needed} - listed
    assert set(single) <= listed  # setup.py and pyproject.toml are always there


DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
# What ros-base brings, of what package.xml asks for.
ROS_BASE = {
    *("ament_cmake", "ament_cmake_pytest", "ament_index_python", "builtin_interfaces", "diagnostic_msgs"),
    *("geometry_msgs", "launch", "launch_ros", "lifecycle_msgs", "nav_msgs", "rcl_interfaces", "rclpy"),
    *("rosgraph_msgs", "rosidl_default_generators", "rosidl_default_runtime", "sensor_msgs", "std_msgs", "std_srvs"),
    *("tf2_msgs",),
}


def commands(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile and what they are given, lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix[1:])
def test_a_dockerfile_copies_what_is_there_runs_valid_shell_and_installs_every_ros_package(dockerfile: Path) -> None:
    given = commands(dockerfile)
    assert {word for word, _ in given} <= {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN"}
    for word, rest in given:
        if word == "COPY":
            assert (ROOT / rest.split()[0]).exists(), rest
        if word == "RUN":
            done = subprocess.run(["sh", "-n", "-c", rest], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    asked = package_xml_dependencies("depend", "exec_depend", "buildtool_depend")
    asked -= python_dependencies("depend", "exec_depend") | {"gtsam"}  # PyPI has its Python module
    apt = {
        name.replace("-", "_") for _, rest in given for name in re.findall(r"ros-\$\{ROS_DISTRO\}-([a-z0-9-]+)", rest)
    }
    assert asked <= ROS_BASE | apt


@pytest.mark.parametrize("script", ["install.sh", "entrypoint.sh"])
def test_a_script_of_the_containers_is_valid_and_can_be_started(script: str) -> None:
    path = ROOT / "docker" / script
    shell = path.read_text().splitlines()[0].removeprefix("#!")
    assert os.access(path, os.X_OK)
    assert subprocess.run([shell, "-n", str(path)]).returncode == 0


def test_the_entry_point_finds_ros_and_the_environment_and_becomes_the_command(tmp_path: Path) -> None:
    """With both folders elsewhere, since the real ones are of a container."""
    ros, prefix = tmp_path / "ros" / "jazzy", tmp_path / "loftr_ros"
    (prefix / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    ros.mkdir(parents=True)
    (ros / "setup.bash").write_text("export AMENT_PREFIX_PATH=/ros LD_LIBRARY_PATH=/ros/lib PYTHONPATH=/ros/python\n")
    script = (ROOT / "docker" / "entrypoint.sh").read_text()
    script = script.replace("/opt/ros/", f"{ros.parent}/").replace("/opt/loftr_ros", str(prefix))
    names = ("AMENT_PREFIX_PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
    show = f"import os; print(*(os.environ[name] for name in {names}), sep='\\n')"
    environment = {"ROS_DISTRO": "jazzy", "PATH": os.defpath}
    command = ["bash", "-c", script, "entrypoint", sys.executable, "-S", "-c", show]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        f"{prefix}:/ros",
        f"{prefix}/lib:/ros/lib",
        f"{prefix}/lib/python3.12/site-packages:/ros/python",
    ], done.stderr


@pytest.mark.parametrize("file", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.name)
def test_the_workflow_and_the_templates_are_yaml_and_name_what_there_is(file: Path) -> None:
    import yaml

    content = yaml.safe_load(file.read_text())
    assert isinstance(content, dict)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"run: make ([\w-]+)", file.read_text())) <= targets


def test_uv_is_told_the_settings_that_pip_has_on_this_machine() -> None:
    install = runpy.run_path(str(ROOT / "cmake/install.py"))
    listed = (
        ":env:.find-links='/wheels /more'\n"
        ":env:.no-color='1'\n"
        "global.cert='/certificates.crt'\n"
        "global.extra-index-url='\\nhttps://one.test/simple\\nhttps://two.test/simple'\n"
        "global.index-url='https://global.test/simple'\n"
        "install.index-url='https://install.test/simple'\n"
        "freeze.timeout='10'\n"
        "Not a setting\n"
    )
    assert install["uv_environment"](listed, {"PATH": "/bin", "UV_INDEX_STRATEGY": "first-index"}) == {
        "PATH": "/bin",
        "SSL_CERT_FILE": "/certificates.crt",
        "UV_DEFAULT_INDEX": "https://install.test/simple",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX": "https://one.test/simple https://two.test/simple",
        "UV_INDEX_STRATEGY": "first-index",
    }
