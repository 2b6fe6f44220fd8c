"""Fixtures that several test files share."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from groups import GROUPS, files
from pytest_timeout import timeout_sigalrm

from loftr_ros.tools.domains import free_domain, own_domain

# Before torch is imported, and for the processes that tests start too: threads that wait for each other are very slow
# on a busy machine, and most tests are too small to gain from a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests that take half a minute and more")
    parser.addoption("--group", choices=sorted(GROUPS), help="run the files of one group alone, see test/groups.py")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    group = config.getoption("--group")
    if group is None or collection_path.suffix != ".py" or collection_path.name in files(group):
        return None
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: run with --long"))


# Seconds between two looks at how long a test has run.
TICK = 5.0


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """pytest-timeout's own way, but a test's time passes only while this process runs.

    A stopped process, or a machine that sleeps, has no timer ticks but one: what then runs on must not fail at once.
    """
    if settings.method != "signal" or threading.current_thread() is not threading.main_thread():
        return None
    left = settings.timeout

    def tick(*_: object) -> None:
        nonlocal left
        left -= TICK
        if left <= 0:
            timeout_sigalrm(item, settings)

    signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, min(TICK, settings.timeout), TICK)
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> None:
    """Ends the ticks; pytest-timeout goes on with what it does itself."""
    if threading.current_thread() is threading.main_thread():
        signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real sequences beside the project; the test is skipped if it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real sequences in {SHARED_DATA.parent.name}/{SHARED_DATA.name} beside the project")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def _apart() -> Iterator[None]:
    """Other runs on this machine do not meet this one over DDS, and what it starts ends by Ctrl-C wherever it runs.

    A script's shell ignores SIGINT in what it starts in the background, and so does all that those start.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with own_domain() as domain, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_DOMAIN_ID", str(domain))
        yield


@pytest.fixture
def ros_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A ROS_DOMAIN_ID of this test alone, set for it and its children."""
    with free_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        yield domain


# Tests of the transport of images.
OF_THE_TRANSPORT = ("test_transport.py", "test_launch.py", "test_player.py")


@pytest.fixture(autouse=True)
def _transport_as_it_is(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests of the transport install a profile: Fast DDS reads it once per process, for all later tests.

    Otherwise a node in its own process would have other transports than its test, and would not be found.
    """
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name, raising=False)
    if request.path.name not in OF_THE_TRANSPORT:
        monkeypatch.setenv("FASTDDS_BUILTIN_TRANSPORTS", "DEFAULT")


_READ_ONLY_REMOUNT = 1 | 32


def mount_small_disk(place: Path, read_only_again: bool = False) -> bool:
    """Mount a file system of 1 MB, or an existing one again read-only; returns whether that is permitted."""
    flags = _READ_ONLY_REMOUNT if read_only_again else 0
    return bool(ctypes.CDLL(None).mount(b"tmpfs", str(place).encode(), b"tmpfs", flags, b"size=1m") == 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB for this test."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount_small_disk(place):
        pytest.skip("may not mount a file system")
    yield place
    ctypes.CDLL(None).umount2(str(place).encode(), 2)
