"""Checks that a stream of frames stays one stream: increasing time and the same camera."""

from __future__ import annotations

import statistics
from collections import deque
from typing import NamedTuple

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import KeyframeReason

# A single frame out of order is refused without consequences. This many in a row that agree with each other are a new
# stream: a bag that restarted, or a driver that changed its resolution. After a leap ahead, this many must follow
# before the stamps before it are forgotten.
PATIENCE = 3
# A step this many times longer than usual may be a stray stamp, or a gap in the stream.
LEAP = 3.0
FIRST_LEAP_NS = 1_000_000_000  # before any step is known
# Number of steps that define the usual one.
STEPS = 9
# Number of steps, of which the shortest tenth tell the camera's rate although images are dropped between others.
_RATE_STEPS = 30

CURE = (
    "If the driver's stamps cannot be fixed, use the time of arrival: set the parameter input.stamps to 'arrival'. "
    "For a recording, make new stamps with --frame-rate"
)


class StreamWarning(NamedTuple):
    """What is wrong with a stream whose frames are admitted all the same.

    Attributes:
        kind: `time` (stamps), `depth` (the depth image has no usable depths) or `right` (the right image gives none).
        text: the cause, and the remedy.
    """

    kind: str
    text: str


class FrameRefusedError(ValueError):
    """A frame that contradicts the stream, or that the network cannot take. It changed nothing.

    Attributes:
        kind: `time`, `size`, `frame_id`, `depth`, `right` or `camera_info`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StreamGuard:
    """Admits frames that continue the stream, refuses strays, and detects a changed stream.

    A leap ahead is admitted at once, since most leaps are gaps. If the frames after it continue from the stamp before
    it, the leap was a stray: they are admitted too, and all keyframes stay valid.

    Attributes:
        stray: message about an admitted frame that turned out to be a stray; empty if there is none. Its reader clears
            it.
    """

    def __init__(self) -> None:
        self.stray = ""
        self._last: Frame | None = None
        self._strays: list[Frame] = []
        # The last frame before a leap ahead, while it may be a stray; and the frames since the leap.
        self._before: Frame | None = None
        self._since_leap = 0
        self._steps: deque[int] = deque(maxlen=STEPS)  # ns
        self._rate_steps: deque[int] = deque(maxlen=_RATE_STEPS)  # ns
        self._images = 1

    @property
    def images(self) -> int:
        """Number of the camera's images from the frame before to the last one; one if none was dropped."""
        return self._images

    def reset(self) -> None:
        """Forget the stream: the next frame is admitted whatever it is."""
        self._begin(None)

    def admit(self, frame: Frame) -> KeyframeReason | None:
        """Admit the frame as the stream's next.

        Returns:
            None if it continues the stream, or why all old keyframes are void: TIME_JUMPED, CAMERA_CHANGED.

        Raises:
            FrameRefusedError: the frame contradicts the stream, and too few before it agree with it.
        """
        last = self._last
        if last is None:
            self._begin(frame)
            return None
        contradiction = _contradiction(last, frame)
        if contradiction is None:
            self._step(last, frame)
            return None
        if contradiction.kind == "time" and self._before is not None and _contradiction(self._before, frame) is None:
            ahead = (last.stamp_ns - self._before.stamp_ns) / 1e9
            self.stray = (
                f"image stamp {last.stamp_ns / 1e9:.3f} was {ahead:.3f} s ahead of the one before it, but the next "
                f"stamps continue from the one before: it was wrong. The stream continues. {CURE}"
            )
            self._last, self._strays, self._before = frame, [], None
            return None
        if self._strays and _contradiction(self._strays[-1], frame) is not None:
            self._strays = []
        self._strays.append(frame)
        if len(self._strays) < PATIENCE:
            raise contradiction
        self._begin(frame)
        return KeyframeReason.TIME_JUMPED if contradiction.kind == "time" else KeyframeReason.CAMERA_CHANGED

    def _begin(self, frame: Frame | None) -> None:
        self._last, self._strays, self._before = frame, [], None
        self._steps.clear()
        self._rate_steps.clear()
        self._images = 1

    def _step(self, last: Frame, frame: Frame) -> None:
        self._last, self._strays = frame, []
        step = frame.stamp_ns - last.stamp_ns
        self._rate_steps.append(step)
        shortest = sorted(self._rate_steps)[len(self._rate_steps) // 10]
        self._images = max(round(step / shortest), 1)
        if self._before is not None:
            self._since_leap += 1
            if self._since_leap < PATIENCE:
                return
            self._before = None  # the stream continues from there, perhaps at another rate
            self._steps.clear()
        elif step > (LEAP * statistics.median(self._steps) if self._steps else FIRST_LEAP_NS):
            self._before, self._since_leap = last, 1
            return
        self._steps.append(step)


def _contradiction(before: Frame, frame: Frame) -> FrameRefusedError | None:
    """Why `frame` cannot follow `before`; None if it can."""
    if frame.frame_id != before.frame_id:
        return FrameRefusedError(
            "frame_id",
            f"image with frame_id '{frame.frame_id}' on a stream of '{before.frame_id}'; "
            "two cameras on one topic? Run one front end for each",
        )
    if frame.size != before.size:
        return FrameRefusedError(
            "size",
            f"image of {frame.size[0]}x{frame.size[1]} px on a stream of {before.size[0]}x{before.size[1]}; "
            f"refused until {PATIENCE} in a row have the new size",
        )
    if frame.stamp_ns <= 0:
        return FrameRefusedError("time", f"image stamp is zero, which in ROS means no stamp. {CURE}")
    if frame.stamp_ns == before.stamp_ns:
        return FrameRefusedError(
            "time",
            f"image stamp {frame.stamp_ns / 1e9:.3f} is the same as the last one's: the image came twice (do two nodes "
            f"publish it?), or its driver repeats stamps. {CURE}",
        )
    if frame.stamp_ns < before.stamp_ns:
        back = (before.stamp_ns - frame.stamp_ns) / 1e9
        return FrameRefusedError(
            "time",
            f"image stamp {frame.stamp_ns / 1e9:.3f} goes back by {back:.3f} s; refused until {PATIENCE} in a row go "
            "on from there. Check the driver's clock, or whether a recording was started again",
        )
    return None


def check_companions(frame: Frame, mode: str) -> None:
    """Check what a frame came with against the needs of the mode.

    Args:
        frame: the frame.
        mode: of `ScaleConfig`.

    Raises:
        FrameRefusedError: the depth or right image is missing, or of another size.
    """
    if mode == RGBD:
        if frame.depth is None:
            raise FrameRefusedError("depth", "the image came without a depth image; publish one, or set mode to 'mono'")
        height, width = frame.depth.values.shape
        if (width, height) != frame.size:
            raise FrameRefusedError(
                "depth",
                f"the depth image is {width}x{height}, its image is {frame.size[0]}x{frame.size[1]}; register the "
                "depth to the image (depth_image_proc/register)",
            )
    if mode == STEREO and frame.right is None:
        raise FrameRefusedError("right", "the image came without a right image; publish one, or set mode to 'mono'")
    if mode != MONO and frame.camera is None:
        raise FrameRefusedError("camera_info", f"mode '{mode}' needs the camera's calibration, and the image has none")
