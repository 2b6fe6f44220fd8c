"""Videos: every readable frame, and the container's own times."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from loftr_ros.recordings import SourceError, open_source
from loftr_ros.recordings.progress import Progress
from loftr_ros.tools.run import Report

av = pytest.importorskip("av")

WIDTH, HEIGHT = 64, 48
KINDS = [("mp4", "mpeg4"), ("avi", "mpeg4"), ("mkv", "mpeg4"), ("avi", "mjpeg"), ("mkv", "mjpeg"), ("mjpeg", "mjpeg")]
# These do not state the number of frames, and lose some without a failure.
UNCOUNTED = [(kind, "libx264") for kind in ("mkv", "ts") if "libx264" in av.codecs_available]
UNIT = Fraction(1, 1000)


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 200, (HEIGHT, WIDTH, 3), np.uint8)


def write(path: Path, codec: str, count: int = 40) -> Path:
    """A video at 25 Hz."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = 5
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(picture(k), format="bgr24").reformat(format=stream.pix_fmt)
            frame.pts = k
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def retimed(source: Path, target: Path, times: list[int]) -> Path:
    """The same packets with other times, in milliseconds, as some writers produce: an encoder would refuse them."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for time, packet in zip(times, (p for p in container.demux(video=0) if p.size), strict=True):
            packet.stream = stream
            packet.time_base = UNIT
            packet.pts = packet.dts = time
            out.mux(packet)
    return target


@pytest.mark.parametrize(("kind", "codec"), [*KINDS, *UNCOUNTED])
def test_a_damaged_stretch_costs_its_own_frames_and_is_told(tmp_path: Path, kind: str, codec: str) -> None:
    path = write(tmp_path / f"clip.{kind}", codec)
    with open_source(path) as source:
        whole = list(source)
        assert len(whole) == 40 and not source.notes and not source.lost
    data = bytearray(path.read_bytes())
    start, length = len(data) // 3, len(data) // 12
    data[start : start + length] = np.random.default_rng(1).integers(0, 256, length, np.uint8).tobytes()
    path.write_bytes(data)
    with open_source(path) as source:
        frames = list(source)
    assert 20 < len(frames) <= 40, "reading goes on behind it"
    assert source.lost > 0 and source.notes, "and it is told"
    stamps = [frame.stamp_ns for frame in frames]
    assert stamps == sorted(set(stamps))
    if kind != "mjpeg":  # which has no times: it is played at 25 Hz
        assert stamps[-1] == whole[-1].stamp_ns, "the end keeps its time"
    missing = Progress(lost=source.lost).missing([], source.notes)
    assert missing and "could not be read" in missing[0]
    assert Report(notes=list(source.notes), progress=Progress(lost=1)).missing


def test_frames_of_one_time_are_stamped_right_after_it_and_all_others_keep_theirs(tmp_path: Path) -> None:
    times = [0, 0, 40, 140, 140, 140, 140, 500, 1000, 1033]
    path = retimed(write(tmp_path / "whole.mkv", "mjpeg", count=10), tmp_path / "clip.mkv", times)
    with open_source(path) as source:
        stamps = [frame.stamp_ns - 10**9 for frame in source]
        notes = "; ".join(source.notes)
    assert [round(stamp / 1e6) for stamp in stamps] == times
    assert all(b - a > 0 for a, b in itertools.pairwise(stamps))
    assert "4 frames of clip" in notes and "not later than the one before" in notes


def test_a_variable_rate_keeps_every_time(tmp_path: Path) -> None:
    times = [0, 40, 90, 91, 500, 4600, 4601, 9999]
    path = retimed(write(tmp_path / "whole.mkv", "mjpeg", count=len(times)), tmp_path / "clip.mkv", times)
    with open_source(path) as source:
        assert [(frame.stamp_ns - 10**9) // 10**6 for frame in source] == times


def test_a_matroska_video_that_was_cut_off_says_when_it_should_have_ended(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", "mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with open_source(path) as source:
        frames = list(source)
        assert 10 < len(frames) < 30 and source.lost
    assert any("claims to last 1.60 s; the readable part ends at" in note for note in source.notes)


def test_a_video_without_its_beginning_keeps_its_times_and_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", "mjpeg", count=12)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in packets[:6]:
        data[at + 20 : at + size] = bytes(size - 20)
    path.write_bytes(data)
    with open_source(path) as source:
        assert [frame.stamp_ns - 10**9 for frame in source] == [40_000_000 * k for k in range(6, 12)]
        assert source.lost >= 6
    assert any(note == "the first 0.24 s of clip.mkv could not be read" for note in source.notes)


def test_frames_that_are_stored_in_another_order_than_they_are_shown_in_have_their_times(tmp_path: Path) -> None:
    if "libx264" not in av.codecs_available:
        pytest.skip("needs an encoder with B frames")
    with open_source(write(tmp_path / "clip.avi", "libx264", count=20)) as source:
        stamps = [frame.stamp_ns - 10**9 for frame in source]
        assert stamps == [40_000_000 * k for k in range(20)] and not source.notes


def test_a_video_that_would_be_turned_is_read_as_it_is_and_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "phone.mp4", "mpeg4", count=3)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    data[matrix : matrix + 20] = np.array([0, 1 << 16, 0, -(1 << 16), 0], ">i4").tobytes()
    path.write_bytes(data)
    with open_source(path) as source:
        assert [frame.decode().shape for frame in source] == [(HEIGHT, WIDTH)] * 3
        if hasattr(av.VideoFrame, "rotation"):
            (note,) = source.notes
            assert "to rotate its frames by" in note and "90 degrees" in note and not source.lost


@pytest.mark.parametrize("part", [0.02, 0.5, 0.98])
@pytest.mark.parametrize(("kind", "codec"), KINDS)
def test_a_video_that_was_cut_off_gives_what_it_has_or_says_why_not(
    tmp_path: Path, kind: str, codec: str, part: float
) -> None:
    path = write(tmp_path / f"clip.{kind}", codec)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    count, said = 0, ""
    try:
        with open_source(path) as source:
            count = len(list(source))
    except SourceError as error:
        said = str(error)
    assert 0 < count <= 40 or "clip." in said


def test_gray_video_of_sixteen_bits_keeps_them(tmp_path: Path) -> None:
    values = (7000 + np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) % 500).astype(np.uint16)
    with av.open(str(tmp_path / "thermal.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "gray16le"
        frame = av.VideoFrame.from_ndarray(values, format="gray16le")
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    with open_source(tmp_path / "thermal.mkv") as source:
        np.testing.assert_array_equal(next(iter(source)).decode_all_bits(), values)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.mp4", b"hello", "not a readable video"),
        ("a.mp4", b"", "is not a (readable )?video"),
        ("a.mp4", b"<!DOCTYPE html><html>", "is a web page"),
        ("a.mp4", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.txt", b"just text\n" * 100, "is not a (readable )?video"),
        ("a.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", "is not a (readable )?video"),
    ],
)
def test_what_is_no_video_is_refused_with_what_was_expected(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=words):
        open_source(tmp_path / name)


def test_without_pyav_a_video_is_refused_by_the_name_of_the_extra(tmp_path: Path, monkeypatch) -> None:
    video = write(tmp_path / "a.mp4", "mpeg4", 3)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SourceError, match=r"pip install 'loftr_ros\[video\]'"):
        open_source(video)
