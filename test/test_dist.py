"""The source distribution, installed into a fresh environment as a robot's would be: what is there works.

`make check-dist` runs it. It takes some minutes, most of them for torch; docker/install.sh does the installing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from readme import python_example
from rendered_pair import write_calibration, write_images

ROOT = Path(__file__).resolve().parents[1]
# What a robot installs for the default network on a CPU, at most.
MOST_BYTES = 1.4e9

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Ours, with this run's DDS domain, without what belongs to this environment."""
    ours = ("AMENT_PREFIX_PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "_ROS_WHEELS_BOOTSTRAP_COMPLETE")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    kept["PATH"] = os.pathsep.join(part for part in os.environ["PATH"].split(os.pathsep) if ".venv" not in part)
    return kept | {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of this tree."""
    folder = tmp_path_factory.mktemp("sdist")
    code = (
        "import sys; sys.path.insert(0, 'cmake'); import build_backend;"
        f"print('BUILT', build_backend.build_sdist({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / re.findall(r"BUILT (\S+)", done.stdout)[-1]


@pytest.fixture(scope="module")
def prefix(sdist: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh environment with the distribution and no extra."""
    prefix = tmp_path_factory.mktemp("fresh") / "env"
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    links = tmp_path_factory.mktemp("bin")
    (links / "python3").symlink_to(base)
    command = ["sh", str(ROOT / "docker" / "install.sh"), str(prefix), str(sdist)]
    path = f"{links}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(command, env=environment | {"PATH": path, "PIP_NO_COMPILE": "1"}, text=True, cwd=links)
    assert done.returncode == 0
    print(sizes(prefix))
    return prefix


def sizes(prefix: Path) -> str:
    """What takes how much, the largest first."""
    packages = next((prefix / "lib").glob("python3*/site-packages"))
    sized = sorted(((size(each), each.name) for each in packages.iterdir()), reverse=True)
    lines = [f"{prefix}: {size(prefix) / 1e6:.0f} MB"]
    return "\n".join(lines + [f"  {number / 1e6:6.1f} MB {name}" for number, name in sized[:20]])


def size(path: Path) -> int:
    """Bytes of a file or of all files in a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What README's example reads."""
    folder = tmp_path_factory.mktemp("readme")
    images = write_images(folder / "images")
    for name, image in zip(("a.png", "b.png"), images, strict=False):
        (folder / name).write_bytes(image.read_bytes())
    write_calibration(folder / "camera.yaml")
    return folder


def test_the_environment_stays_below_its_limit(prefix: Path) -> None:
    assert size(prefix) < MOST_BYTES, sizes(prefix)
    names = {each.name for each in next((prefix / "lib").glob("python3*/site-packages")).iterdir()}
    assert not {"av", "lancedb", "matplotlib", "openvino", "ot", "pyarrow", "pytest", "scipy"} & names


def test_readmes_python_example_runs(prefix: Path, folder: Path, environment: dict[str, str]) -> None:
    (folder / "example.py").write_text(python_example())
    done = run([prefix / "bin" / "python", "example.py"], folder, environment)
    assert int(re.findall(r"(\d+) matches", done)[0]) > 300
    assert len(re.findall(r"the camera is at", done)) == 7


def test_types_and_installed_files_came_along(prefix: Path, environment: dict[str, str]) -> None:
    package = next((prefix / "lib").glob("python3*/site-packages")) / "loftr_ros"
    assert (package / "py.typed").is_file()
    for file in ("launch/front_end.launch.py", "config/front_end.yaml", "examples/README.md", "srv/Query.srv"):
        assert (prefix / "share" / "loftr_ros" / file).is_file(), file
    said = run([prefix / "bin" / "loftr_ros", "--version"], prefix, environment)
    assert said.strip() == f"loftr_ros {re.findall('<version>(.*)</version>', (ROOT / 'package.xml').read_text())[0]}"


def test_an_archive_is_refused_with_the_extras_name_where_it_is_not_installed(
    prefix: Path, folder: Path, environment: dict[str, str]
) -> None:
    command = [prefix / "bin" / "loftr_ros", "loops", "images", "-o", "out"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "pip install 'loftr_ros[archive]'" in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_node_starts_becomes_active_and_ends_with_exit_code_zero(
    prefix: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with log.open("w") as out:
        command = [str(prefix / "bin" / "loftr_ros"), "node"]
        node = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path, env=environment)
        try:
            end = time.monotonic() + 180
            while "waiting for images" not in log.read_text():
                assert time.monotonic() < end and node.poll() is None, log.read_text()
                time.sleep(0.2)
            node.send_signal(signal.SIGINT)
            assert node.wait(60) == 0, log.read_text()
        finally:
            node.kill()
    assert "Traceback" not in log.read_text()


def test_the_demo_runs_the_node_and_a_publisher_over_dds(
    prefix: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    source = "rendered:room?seed=3&frames=20&width=320&height=240"
    said = run([prefix / "bin" / "loftr_ros", "demo", source, "--hz", "5", "-q"], tmp_path, environment)
    assert "frames" in said
    assert {"report.json", "matches.png"} <= {path.name for path in (tmp_path / "demo").iterdir()}, said
    assert "trajectory.png is left out, since matplotlib is not installed: `pip install 'loftr_ros[plot]'" in said


def run(command: list, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
