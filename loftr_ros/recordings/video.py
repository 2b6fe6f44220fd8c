"""Video files, by FFmpeg's libraries (PyAV).

OpenCV stops at the first damaged packet: from an MP4 with a twelfth of its bytes overwritten it reads 2 of 58 readable
frames. It also does not distinguish repeated times from missing ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from loftr_ros.extras import how_to_install
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.recordings.base import (
    FIRST_STAMP_NS,
    FRAME_ID,
    PixelImage,
    Source,
    SourceError,
    SourceFrame,
    SourceOptions,
)
from loftr_ros.recordings.mask_folder import MaskFolder
from loftr_ros.text_files import what_it_is

_SMALL_STEP_NS = 1000  # after the frame before, if the container gives both one time
_TOLERATED_NS = 150_000_000  # tolerated gap at the beginning, and at the end before the claimed one
_QUIRK = 0.9  # part of frames with complaints by FFmpeg beyond which they are a quirk of the camera
_ATTEMPTS = 20  # to read on after an error, without a packet in between
_MAX_PIXELS = 1 << 27
# Text that FFmpeg would draw as a video, and playlists that make it read other files.
_NO_VIDEOS = ("tty", "bin", "adf", "idf", "xbin", "concat", "hls", "sdp", "rtsp", "dash", "image2", "lavfi")


class VideoSource(Source):
    """The frames of a video, with the container's presentation times as stamps (its beginning is at one second)."""

    kind = "video"

    def __init__(self, path: Path, options: SourceOptions, camera: CameraModel | None = None) -> None:
        """Open the file once to check that it is a video.

        Raises:
            SourceError: it cannot be read, PyAV is missing, or `camera` is for another size.
        """
        self.name, self.camera = path.name, camera
        self._path, self._options = path, options
        self._notes: list[str] = []
        self._lost = 0
        container, stream = self._open()
        with container:
            self._rate = _rate(stream)
            self._claimed = int(stream.frames or 0)
            self._claimed_end = _claimed_end(stream)
            size = int(stream.codec_context.width), int(stream.codec_context.height)
        self.rate = (options.rate or float(self._rate)) / options.step
        self.length = len(options.indices(self._claimed)) if self._claimed > 0 else None
        self._masks = None if options.masks is None else MaskFolder(options.masks)
        self.has_masks = self._masks is not None
        if self.length == 0:
            raise SourceError(f"{path} has {self._claimed} frames; start {options.start} is after the last")
        if camera is not None and (camera.width, camera.height) != size:
            raise SourceError(
                f"the calibration is for {camera.width}x{camera.height}, but {path} is {size[0]}x{size[1]}; "
                "give the matching one with the option `camera`"
            )

    def _open(self) -> tuple[Any, Any]:
        try:
            import av
        except ImportError as error:
            raise SourceError(
                f"videos are read by PyAV, which is not installed ({error}): {how_to_install('video')} or "
                "`apt install python3-av`"
            ) from error
        path = self._path
        with path.open("rb") as file:
            head = file.read(512)
        expected = "give a folder of images, a bag (.mcap, .db3, .bag), or a video in a common format such as mp4"
        if (mistaken := what_it_is(head)) is not None:
            raise SourceError(f"{path} is {mistaken}")
        try:
            container = av.open(str(path), options={"protocol_whitelist": "file"})
        except (av.FFmpegError, ValueError, OSError) as error:
            unfinished = head[4:8] == b"ftyp"
            why = "its recording was not finished, or its end is missing" if unfinished else _words(error)
            raise SourceError(f"{path} is not a readable video or bag: {why}; {expected}") from error
        stream = next(iter(container.streams.video), None)
        if stream is None or container.format.name in _NO_VIDEOS or stream.codec_context is None:
            container.close()
            raise SourceError(f"{path} is not a video: it has no images; {expected}")
        context = stream.codec_context
        if context.width < 1 or context.height < 1 or context.width * context.height > _MAX_PIXELS:
            size = f"{context.width}x{context.height}"
            container.close()
            raise SourceError(f"{path} is not a readable video: its frames are of {size} pixels; {expected}")
        return container, stream

    @property
    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    @property
    def lost(self) -> int:
        return self._lost

    def __iter__(self) -> Iterator[SourceFrame]:
        self._notes, self._lost = [], 0
        container, stream = self._open()
        decoder = _Decoder(container, stream)
        index, last, repeated = -1, -1, 0
        stopped = False
        with container:
            for frame in decoder:
                index += 1
                if self._options.stop is not None and index >= self._options.stop:
                    stopped = True
                    break
                stamp = decoder.stamp(frame)
                if stamp is None:  # some containers have no times: then the frame rate defines them
                    stamp = FIRST_STAMP_NS if last < 0 else last + round(1e9 / self._rate)
                elif stamp <= last:
                    stamp, repeated = last + _SMALL_STEP_NS, repeated + 1
                last = stamp
                if not self._options.chooses(index):
                    continue
                self._note_rotation(int(getattr(frame, "rotation", 0)))  # available in PyAV 14 and newer
                own = self._options.stamp(index)
                try:
                    image = PixelImage(_pixels(frame))
                except (ValueError, OSError, MemoryError) as error:  # of a layout that cannot be converted
                    decoder.note_failure(error)
                    continue
                mask = None if self._masks is None else self._masks.find(index)
                yield SourceFrame(index, stamp if own is None else own, FRAME_ID, image, self.camera, mask=mask)
        self._sum_up(decoder, index + 1, repeated, stopped, last)
        if index < 0:
            why = decoder.first_error or decoder.first_complaint
            why = why or (f"it claims {self._claimed}" if self._claimed else "it is empty")
            raise SourceError(f"{self._path} has no frame that can be decoded ({why})")

    def _note_rotation(self, degrees: int) -> None:
        note = (
            f"{self.name} asks players to rotate its frames by {degrees} degrees, which is ignored: the "
            "calibration is of the pixels as they are in the file"
        )
        if degrees and note not in self._notes:
            self._notes.append(note)

    def _sum_up(self, decoder: _Decoder, came: int, repeated: int, stopped: bool, last: int) -> None:
        if decoder.failures:
            self._notes.append(
                f"{self.name} is damaged: {decoder.failures} packets could not be read or decoded "
                f"(the first: {decoder.first_error})"
            )
        if decoder.damaged:
            self._notes.append(f"{decoder.damaged} frames of {self.name} are partly damaged, according to the decoder")
        complaints = decoder.complaints
        if complaints:
            often = f" {complaints} times" if complaints > 1 else ""
            self._notes.append(f"FFmpeg complains of {self.name}{often} (the first: {decoder.first_complaint})")
        missing = 0 if stopped else max(self._claimed - came, 0)
        late, ended = decoder.first_ns, last - FIRST_STAMP_NS + round(1e9 / self._rate)
        if late > _TOLERATED_NS:
            self._notes.append(f"the first {late / 1e9:.2f} s of {self.name} could not be read")
        if not stopped and came and not missing and ended + _TOLERATED_NS < self._claimed_end:
            claimed = f"{self._claimed_end / 1e9:.2f} s"
            self._notes.append(f"{self.name} claims to last {claimed}; the readable part ends at {ended / 1e9:.2f} s")
        if missing:
            self._notes.append(f"{self.name} claims {self._claimed} frames; {came} could be read")
        if repeated:
            self._notes.append(
                f"{repeated} frames of {self.name} are not later than the one before them; they are "
                "stamped right after it"
            )
        # If FFmpeg complains of every frame, that is a quirk of the camera, and nothing is lost.
        is_damaged = decoder.damaged or late > _TOLERATED_NS or 0 < decoder.complained < _QUIRK * came
        self._lost = max(missing, decoder.failures, int(bool(is_damaged)))


class _Decoder:
    """Reads to the end of a video despite damage.

    Attributes:
        failures: packets that could not be read or decoded.
        damaged: frames that were decoded only in part.
        first_error: the first error.
        complaints: errors in FFmpeg's log after which it continued.
        complained: packets with such errors.
        first_complaint: the first of them.
        first_ns: time of the first frame, in nanoseconds from the beginning of the video.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self._container, self._stream = container, stream
        self.failures = self.damaged = self.complaints = self.complained = 0
        self.first_error = self.first_complaint = ""
        self._start = stream.start_time
        self.first_ns = 0
        self._any = False
        # Log messages of other threads are not captured; and few videos are decoded faster by several.
        stream.codec_context.thread_count = 1
        if stream.codec_context.name == "mjpeg":
            # Otherwise missing parts of a JPEG are filled with gray without an error.
            stream.codec_context.options = {"err_detect": "explode"}
        # An AVI's packets have no times: they are counted, and after a damaged stretch the count is wrong. Its index,
        # if present, has the times. An index entry points to a packet's header, which is 8 bytes long.
        self._is_avi = container.format.name == "avi"
        entries = getattr(stream, "index_entries", ()) if self._is_avi else ()
        self._times = {entry.pos + 8: entry.timestamp for entry in entries}

    def __iter__(self) -> Iterator[Any]:
        for packet in self._packets():
            time = self._times.get(packet.pos)
            if time is not None and packet.pts is not None:
                packet.pts = packet.dts = time
            self.damaged += bool(packet.is_corrupt)
            try:
                with self._listening():
                    frames = packet.decode()
            except Exception as error:  # PyAV has many kinds of errors, and damaged files cause all of them
                self.note_failure(error)
                continue
            for frame in frames:
                self.damaged += bool(frame.is_corrupt)
                yield frame

    def _packets(self) -> Iterator[Any]:
        attempts = 0
        while attempts < _ATTEMPTS:
            packets = self._container.demux(self._stream)
            try:
                while True:
                    with self._listening():
                        packet = next(packets, None)
                    if packet is None:
                        return
                    # The last packet is empty: it makes the decoder return its remaining frames.
                    if packet.size or packet.dts is None:
                        attempts = 0
                        yield packet
            except Exception as error:
                attempts += 1
                if attempts == 1:
                    self.note_failure(error)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Count FFmpeg's log messages meanwhile: much damage is reported only there."""
        import av.logging

        before = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)
        try:
            with av.logging.Capture(local=True) as log:
                yield
        finally:
            av.logging.set_level(before)
            # A repetition is logged only with the next other message, perhaps about another file.
            new = [(name, text.strip()) for _, name, text in log if " more times)" not in text]
            self.complaints += len(new)
            self.complained += bool(new)
            if new and not self.first_complaint:
                self.first_complaint = f"{new[0][0]}: {new[0][1][:100]}"

    def note_failure(self, error: BaseException) -> None:
        """Count a read error."""
        self.failures += 1
        self.first_error = self.first_error or _words(error)

    def stamp(self, frame: Any) -> int | None:
        """The frame's presentation time in nanoseconds, or None if the container has none."""
        # Frames come in display order. An AVI has times only for its packets.
        by_packet = self._is_avi and self._stream.codec_context.has_b_frames
        time = frame.dts if by_packet else frame.pts
        if time is None or not frame.time_base:
            return None
        is_first, self._any = not self._any, True
        if is_first:
            self._start = time if by_packet or self._start is None else min(self._start, time)
        found = round(Fraction(time - self._start) * Fraction(frame.time_base) * 10**9)
        self.first_ns = found if is_first else self.first_ns
        return FIRST_STAMP_NS + found


def _pixels(frame: Any) -> Any:
    """Gray at full depth for a gray video, else BGR."""
    name = str(frame.format.name)
    if name.startswith("gray"):
        bits = 8 if name in ("gray", "gray8") else 16
        return frame.to_ndarray(format="gray" if bits == 8 else "gray16le")
    return np.asarray(frame.to_ndarray(format="bgr24"), np.uint8)


def _rate(stream: Any) -> Fraction:
    for rate in (stream.average_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return Fraction(rate)
    return Fraction(30)


def _claimed_end(stream: Any) -> int:
    """End of the video by its container, in nanoseconds from its beginning; 0 if not given.

    Matroska stores it in a tag, as hours, minutes and seconds.
    """
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", str(stream.metadata.get("DURATION", "")))
    if found is None:
        return 0
    return round((int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])) * 1e9)


def _words(error: BaseException) -> str:
    """FFmpeg's description of an error, without its number and the file's name."""
    return str(getattr(error, "strerror", None) or error).partition("\n")[0]
