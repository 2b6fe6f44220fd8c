"""The archive of keyframes: storage, search, crashes, refusals and the size limit."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from archive_writer import DIMENSION, SPACE, made_descriptor, made_keyframe, made_link
from conftest import mount_small_disk

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.odometry import origin
from loftr_ros.places.archive import Archive
from loftr_ros.places.archive_files import reported_errors
from loftr_ros.places.archive_rows import pack_depth, unpack_depth
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName, PlacesError, RecentPast

pytest.importorskip("lancedb")

WRITER = Path(__file__).with_name("archive_writer.py")


def opened(place: Path | str, **options: object) -> Archive:
    return Archive.open(str(place), SPACE, DIMENSION, **options)  # type: ignore[arg-type]


class Writers:
    """Starts processes that add keyframes."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._nursery = subprocess.Popen([sys.executable, str(WRITER)], stdin=pipe, stdout=pipe, text=True)

    def start(self, out: Path, place: Path | str, robot: str, first: int, count: int) -> int:
        """Start a process; it writes the number of each added keyframe to `out`."""
        assert self._nursery.stdin
        assert self._nursery.stdout
        self._nursery.stdin.write(json.dumps([str(out), str(place), robot, first, count]) + "\n")
        self._nursery.stdin.flush()
        return int(self._nursery.stdout.readline())

    def close(self) -> None:
        self._nursery.communicate()


@pytest.fixture(scope="module")
def writers() -> Iterator[Writers]:
    made = Writers()
    yield made
    made.close()


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def printed(out: Path) -> list[int]:
    return [int(line) for line in out.read_text().split()] if out.exists() else []


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.005)


def refused(kind: str, place: Path | str, *, text: str = "", **options: object) -> str:
    with pytest.raises(PlacesError) as caught:
        opened(place, **options).close()
    assert caught.value.kind == kind
    assert Path(place).name in str(caught.value)
    return str(caught.value)


def assert_same(one: ArchivedKeyframe | None, other: ArchivedKeyframe) -> None:
    assert one is not None
    for field in ("name", "session", "segment", "stamp_ns", "frame_id", "size", "image", "grid"):
        assert getattr(one, field) == getattr(other, field), field
    assert one.descriptor.dtype == np.float32
    assert np.array_equal(one.descriptor, other.descriptor)
    assert (one.camera is None) == (other.camera is None)
    assert other.camera is None or other.camera.same_as(one.camera)
    for mine, theirs in ((one.pose, other.pose),):
        assert (mine is None) == (theirs is None)
        assert mine is None or np.array_equal(mine, theirs)
    assert (one.link is None) == (other.link is None)
    if one.link is not None and other.link is not None:
        assert (one.link.previous, one.link.is_metric) == (other.link.previous, other.link.is_metric)
        assert np.array_equal(one.link.pose, other.link.pose)
        assert np.array_equal(one.link.covariance, other.link.covariance)
    assert (one.depth is None) == (other.depth is None)
    if one.depth is not None and other.depth is not None:
        assert one.depth.is_metric == other.depth.is_metric
        np.testing.assert_allclose(one.depth.inverse, other.depth.inverse, rtol=1e-3)
        np.testing.assert_allclose(one.depth.variance, other.depth.variance, rtol=2e-3)


def test_importing_the_archive_does_not_import_the_database() -> None:
    code = "import sys, loftr_ros.places.archive; sys.exit('lancedb' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_keyframe_comes_back_with_everything_that_it_was_added_with(tmp_path: Path) -> None:
    full = made_keyframe(7)
    bare = made_keyframe(8, camera=None, pose=None, link=None, depth=None, grid=(0, 0), image=b"")
    with opened(tmp_path / "a") as archive:
        archive.add_all([full, bare])
        assert_same(archive.get(full.name), full)
    with opened(tmp_path / "a", read_only=True) as archive:
        assert_same(archive.get(full.name), full)
        assert_same(archive.get(bare.name), bare)
        assert archive.get(KeyframeName("rover", 9)) is None
        assert (len(archive), archive.last_id("rover"), archive.last_session("rover")) == (2, 8, 2)
        assert (archive.last_id("nobody"), archive.last_session("nobody"), archive.names("nobody")) == (0, 0, [])
        with pytest.raises(PlacesError, match="read-only"):
            archive.add(full)


@pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
def test_depth_is_kept_to_a_thousandth_in_any_unit(unit: float) -> None:
    rng = np.random.default_rng(0)
    depth = CellDepth(rng.uniform(0.01, 5.0, 4800), rng.uniform(1e-4, 0.3, 4800) ** 2, False)
    depth.inverse[::5], depth.variance[::5] = np.nan, np.inf
    depth.variance[1::5] = np.inf
    depth.variance[2::5] = 0.0
    depth = depth.scaled(unit)
    data = pack_depth(depth)
    assert len(data) < 4800 * 4
    back = unpack_depth(data, False)
    np.testing.assert_allclose(back.inverse, depth.inverse, rtol=1e-3)
    np.testing.assert_allclose(np.sqrt(back.variance), np.sqrt(depth.variance), rtol=1e-3)


def test_a_search_tells_the_nearest_first_and_leaves_the_recent_past_out_before_it_counts(tmp_path: Path) -> None:
    base = made_descriptor(0)

    def near(number: int, off: float, robot: str = "rover", session: int = 2) -> ArchivedKeyframe:
        values = base + off * made_descriptor(number)
        descriptor = (values / np.linalg.norm(values)).astype(np.float32)
        return made_keyframe(number, robot, descriptor=descriptor, session=session, stamp_ns=number)

    kept = [near(number, 0.1 * number) for number in range(1, 7)]
    others = [near(6, 0.9, "walker"), near(9, 1.2, session=1)]
    with opened(tmp_path / "a") as archive:
        assert archive.search(base, 5) == []
        archive.add_all([*kept[::-1], *others])
        everything = [*kept, *others]
        truth = sorted(((float(frame.descriptor @ base), frame.name) for frame in everything), reverse=True)
        found = archive.search(base, 5)
        assert [candidate.name for candidate in found] == [name for _, name in truth[:5]]
        np.testing.assert_allclose([candidate.similarity for candidate in found], [c for c, _ in truth[:5]], atol=1e-5)
        assert (found[0].session, found[0].segment, found[0].stamp_ns) == (2, 1, 1)
        past = archive.search(base, 4, RecentPast("rover", 2, 2))
        allowed = {kept[0].name, kept[1].name, others[0].name, others[1].name}
        assert {candidate.name for candidate in past} == allowed
        assert archive.search(base, 0) == []


@pytest.mark.parametrize(
    "robot", ["", "o'brien", "a\"b\\'; DROP", "robot = 'x' OR ''='", "été/../..", "%_*", "x" * 300]
)
def test_a_robot_may_have_any_name(tmp_path: Path, robot: str) -> None:
    with opened(tmp_path / "a") as archive:
        archive.add_all([made_keyframe(1, robot), made_keyframe(2, robot), made_keyframe(1, "rover")])
        assert_same(archive.get(KeyframeName(robot, 2)), made_keyframe(2, robot))
        assert archive.names(robot) == [KeyframeName(robot, 1), KeyframeName(robot, 2)]
        assert archive.last_id(robot) == 2
        past = RecentPast(robot, 2, 0)
        assert [found.name for found in archive.search(made_descriptor(1), 5, past)] == [KeyframeName("rover", 1)]
    assert {path.name for path in tmp_path.iterdir()} == {"a"}


def test_the_same_name_again_replaces_the_keyframe_and_its_image(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as archive:
        archive.add(made_keyframe(1, image=b""))
        archive.add(made_keyframe(1, image=b"\xff\xd8 first"))
        archive.add(made_keyframe(1))
        assert len(archive) == 1
        assert_same(archive.get(KeyframeName("rover", 1)), made_keyframe(1))
    assert len([path for path in (tmp_path / "a" / "images").rglob("*") if path.is_file()]) == 1


def killed_while_writing(writers: Writers, folder: Path, times: int) -> None:
    place = folder / "a"
    rng = np.random.default_rng(0)
    there: set[int] = set()
    for turn in range(times):
        out = folder / f"{turn}.txt"
        first = max(there, default=0) + 1
        process = writers.start(out, place, "rover", first, 100000)
        until(lambda out=out: len(printed(out)) > 0)
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(process, signal.SIGKILL)
        until(lambda process=process: not runs(process))
        returned = there | set(printed(out))
        with opened(place, read_only=True) as archive:
            there = {name.id for name in archive.names()}
            # One more may be committed but not yet printed.
            assert returned <= there <= returned | {max(returned) + 1}
            newest = archive.get(KeyframeName("rover", max(there)))
            assert_same(newest, made_keyframe(max(there)))
            assert archive.search(made_descriptor(max(returned)), 1)[0].name.id == max(returned)


def test_kill_9_during_writes_loses_nothing_that_was_added(writers: Writers, tmp_path: Path) -> None:
    killed_while_writing(writers, tmp_path, 4)


@pytest.mark.long
def test_kill_9_during_writes_50_times_loses_nothing_that_was_added(writers: Writers, tmp_path: Path) -> None:
    killed_while_writing(writers, tmp_path, 50)


def test_two_processes_write_at_once_while_this_one_reads(writers: Writers, tmp_path: Path) -> None:
    robots = ("rover", "walker")
    with opened(tmp_path / "a") as archive:
        processes = [writers.start(tmp_path / robot, tmp_path / "a", robot, 1, 12) for robot in robots]
        seen = []
        while any(map(runs, processes)):
            seen.append(len(archive))
            if seen[-1]:
                assert archive.search(made_descriptor(1), 1)[0].name.id == 1
        assert any(0 < count < 24 for count in seen), "read before the writers were done"
        for robot in robots:
            assert printed(tmp_path / robot) == list(range(1, 13))
            assert archive.names(robot) == [KeyframeName(robot, number) for number in range(1, 13)]


def test_a_full_disk_is_told_and_what_was_added_before_stays(small_disk: Path) -> None:
    with opened(small_disk / "a") as archive:
        added = 0

        def fill() -> None:
            nonlocal added
            for number in range(1, 200):
                archive.add(made_keyframe(number, image_bytes=40000))
                added = number

        with pytest.raises(PlacesError, match="disk is full") as caught:
            fill()
        assert caught.value.kind == "archive_full"
        assert added > 5
        assert archive.last_id("rover") == added
        assert_same(archive.get(KeyframeName("rover", added)), made_keyframe(added, image_bytes=40000))
    with opened(small_disk / "a", read_only=True) as archive:
        assert len(archive) == added


def test_a_file_size_limit_is_told_as_a_full_disk(tmp_path: Path) -> None:
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(WRITER.parent)!r})
from archive_writer import *
from loftr_ros.places.keyframe import PlacesError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
archive = Archive.open({str(tmp_path / "a")!r}, SPACE, DIMENSION)
archive.add(made_keyframe(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    archive.add(made_keyframe(2))
except PlacesError as error:
    print(error.kind, len(archive))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["archive_full", "1"], done.stderr


def test_a_read_only_folder_is_told_when_it_is_opened_and_can_be_read(small_disk: Path) -> None:
    with opened(small_disk / "a") as archive:
        archive.add(made_keyframe(1))
    assert mount_small_disk(small_disk, read_only_again=True)
    assert "another uri" in refused("archive_read_only", small_disk / "a")
    refused("archive_read_only", small_disk / "b")
    with opened(small_disk / "a", read_only=True) as archive:
        assert archive.is_read_only
        assert_same(archive.get(KeyframeName("rover", 1)), made_keyframe(1))
        assert archive.search(made_descriptor(1), 1)


def test_what_is_no_archive_is_refused_and_left_alone(tmp_path: Path) -> None:
    import lancedb

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    assert "nothing was changed" in refused("archive_foreign", tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    refused("archive_foreign", tmp_path / "photos" / "cat.jpg")
    lancedb.connect(tmp_path / "table").create_table("keyframes", [{"x": 1}])
    refused("archive_foreign", tmp_path / "table")
    refused("archive_missing", tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()
    refused("archive_uri", "ftp://host/archive")


def test_an_archive_of_another_format_or_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path / "a").close()
    with pytest.raises(PlacesError, match=r"made-space:1.*other-space") as caught:
        Archive.open(str(tmp_path / "a"), "other-space", DIMENSION)
    assert caught.value.kind == "archive_space"
    with pytest.raises(PlacesError, match=r"32 numbers.*\(64\)"):
        Archive.open(str(tmp_path / "a"), SPACE, 64)
    monkeypatch.setattr("loftr_ros.places.archive.FORMAT", 2)
    assert "the program that made it" in refused("archive_old", tmp_path / "a")
    monkeypatch.setattr("loftr_ros.places.archive.FORMAT", 0)
    refused("archive_new", tmp_path / "a")


def test_a_descriptor_of_another_dimension_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as archive:
        with pytest.raises(ValueError, match=r"\(16,\)"):
            archive.search(np.zeros(16, np.float32), 1)
        with pytest.raises(ValueError, match="finite"):
            archive.add(made_keyframe(1, descriptor=np.full(DIMENSION, np.nan, np.float32)))
        assert len(archive) == 0


def test_the_bound_is_kept_by_the_least_telling_and_the_chain_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Older versions of the table are kept for seconds. With so much added at once, that is more than in normal use.
    monkeypatch.setattr("loftr_ros.places.archive_maintenance._KEPT", timedelta(seconds=0.2))
    steps = 80
    descriptors = [made_descriptor(1)]
    for number in range(2, steps + 1):
        # Odd ones are almost equal to the one before, even ones are not.
        off = 0.1 if number % 2 else 1.0
        values = descriptors[-1] + off * made_descriptor(number)
        descriptors.append((values / np.linalg.norm(values)).astype(np.float32))
    location = origin(True)
    poses, covariances = [], []
    bound = 1_200_000
    sizes = []
    with opened(tmp_path / "a", max_size_mb=bound / 1e6) as archive:
        for number in range(1, steps + 1):
            link = made_link(number - 1) if number > 1 else None
            location = location if link is None else location.moved(link.pose, link.covariance)
            poses.append(location.pose)
            covariances.append(location.covariance)
            descriptor = descriptors[number - 1]
            archive.add(made_keyframe(number, image_bytes=25000, descriptor=descriptor, link=link))
            if number % 10 == 0:
                sizes.append(archive.size_bytes)
        time.sleep(0.3)
        archive.tidy()
        on_disk = sum(path.stat().st_size for path in (tmp_path / "a").rglob("*") if path.is_file())
        assert max(sizes) < 1.4 * bound
        assert on_disk < bound
        kept = list(archive.descriptors())
        assert 25 < len(kept) < 60
        assert kept[0].name.id == 1
        assert kept[-1].name.id == steps
        gone = set(range(1, steps + 1)) - {keyframe.name.id for keyframe in kept}
        odd = [number for number in gone if number % 2]
        assert len(odd) > 0.8 * len(gone)
        location = origin(True)
        for before, keyframe in itertools.pairwise(kept):
            assert keyframe.link is not None
            assert keyframe.link.previous == before.name.id
            location = location.moved(keyframe.link.pose, keyframe.link.covariance)
            np.testing.assert_allclose(location.pose, poses[keyframe.name.id - 1], atol=1e-9)
            np.testing.assert_allclose(location.covariance, covariances[keyframe.name.id - 1], atol=1e-9)
        assert archive.get(kept[len(kept) // 2].name) is not None


def test_in_one_round_no_two_neighbours_are_dropped() -> None:
    from loftr_ros.places.archive_drop import least_informative

    count = 50
    descriptors = np.tile(made_descriptor(1), (count, 1))
    ids = np.arange(1, count + 1)
    previous = [None, *range(1, count)]
    metric = [None, *[True] * (count - 1)]
    sizes = np.full(count, 10)
    chosen = least_informative(["r"] * count, ids, previous, metric, ids, descriptors, sizes, 10000)
    assert np.diff(np.sort(chosen)).min() >= 2
    assert not {count - 1, count - 2} & set(chosen)
    assert len(chosen) > 20
    assert len(least_informative(["r"] * count, ids, previous, metric, ids, descriptors, sizes, 35)) == 4


def test_a_copy_has_everything_and_does_not_go_where_something_is(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as archive:
        archive.add_all([made_keyframe(number, robot) for number in range(1, 40) for robot in ("rover", "walker")])
        assert archive.save(str(tmp_path / "copy")) == 78
        for place in (tmp_path / "copy", tmp_path / "a"):
            with pytest.raises(PlacesError) as caught:
                archive.save(str(place))
            assert caught.value.kind == "archive_exists"
        with opened(tmp_path / "copy", read_only=True) as copy:
            assert copy.names() == archive.names()
            for name in copy.names()[::10]:
                assert_same(copy.get(name), made_keyframe(name.id, name.robot))


def test_taking_over_another_archive_skips_what_is_there_and_refuses_a_clash(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as mine, opened(tmp_path / "b") as theirs:
        mine.add_all([made_keyframe(1, pose=None), made_keyframe(2, image=b"")])
        theirs.add_all([made_keyframe(number) for number in (1, 2, 3)])
        assert mine.load(str(tmp_path / "b")) == 2
        assert [name.id for name in mine.names()] == [1, 2, 3]
        first = mine.get(KeyframeName("rover", 1))
        assert first is not None
        assert first.pose is None, "a keyframe that was there is as it was"
        assert_same(mine.get(KeyframeName("rover", 2)), made_keyframe(2))
        assert mine.load(str(tmp_path / "b")) == 0
        theirs.add_all([made_keyframe(4), made_keyframe(3, stamp_ns=5)])
        with pytest.raises(PlacesError, match=r"rover/3 .*Give the robots different names") as caught:
            mine.load(str(tmp_path / "b"))
        assert caught.value.kind == "archive_conflict"
        assert len(mine) == 3
        with pytest.raises(PlacesError, match="no archive"):
            mine.load(str(tmp_path / "nothing"))


def test_files_that_a_crash_left_behind_are_swept_and_young_ones_are_not(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as archive:
        archive.add(made_keyframe(1))
    folder = tmp_path / "a" / "images" / "rover"
    for name in ("7-old.jpg", "8-old.jpg.part", "9-young.jpg"):
        (folder / name).write_bytes(b"x")
    for path in folder.iterdir():
        if "young" not in path.name:
            os.utime(path, (time.time() - 7200,) * 2)
    with opened(tmp_path / "a") as archive:
        archive.add_all([made_keyframe(number) for number in range(2, 5)])
        archive.tidy()
        assert_same(archive.get(KeyframeName("rover", 1)), made_keyframe(1))
    assert {path.name for path in folder.iterdir() if "-" in path.name and len(path.name) < 16} == {"9-young.jpg"}


def test_a_damaged_image_is_told_and_the_others_are_read(tmp_path: Path) -> None:
    with opened(tmp_path / "a") as archive:
        archive.add_all([made_keyframe(1), made_keyframe(2)])
        file = next((tmp_path / "a" / "images" / "rover").glob("1-*"))
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(PlacesError, match="rover/1 has 100 bytes") as caught:
            archive.get(KeyframeName("rover", 1))
        assert caught.value.kind == "image_damaged"
        assert archive.get(KeyframeName("rover", 2)) is not None
        file.unlink()
        with pytest.raises(PlacesError, match=r"missing.*rover/1-") as caught:
            archive.get(KeyframeName("rover", 1))
        assert caught.value.kind == "image_missing"


@pytest.mark.long
def test_two_processes_write_at_once_to_one_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs moto[server]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "made",
            "AWS_SECRET_ACCESS_KEY": "made",
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        make_bucket(port)
        with opened("s3://robots/fleet") as archive:
            writers = Writers()  # they inherit the environment set above
            out = [tmp_path / robot for robot in ("rover", "walker")]
            processes = [writers.start(path, "s3://robots/fleet", path.name, 1, 40) for path in out]
            until(lambda: not any(map(runs, processes)))
            writers.close()
            assert [len(printed(path)) for path in out] == [40, 40]
            assert len(archive) == 80
            assert_same(archive.get(KeyframeName("walker", 40)), made_keyframe(40, "walker"))
            assert archive.save(str(tmp_path / "copy")) == 80
            assert archive.size_bytes > 80 * 2000
    finally:
        server.kill()
        server.wait()


def make_bucket(port: int) -> None:
    import urllib.request

    for _ in range(100):
        try:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/robots", method="PUT")
            urllib.request.urlopen(request).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError("moto's server does not start")


@pytest.mark.parametrize("cause", ["the server hung up", "access denied"])
def test_what_a_data_base_says_at_length_is_cut_after_a_word(cause: str) -> None:
    said = f"{cause} " + "while it wrote the fragments of a table " * 40
    with pytest.raises(PlacesError) as caught, reported_errors("there", "writing to"):
        raise OSError(said)
    kept = re.search(r": (the server .*|access .*?) …", str(caught.value))[1]
    assert said.startswith(kept + " ") and 150 < len(kept) < 400
