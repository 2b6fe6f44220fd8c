"""Watching that a stream of frames stays one stream: time goes on, the camera stays the same."""

from __future__ import annotations

from loftr_ros.frontend.config import MONO, RGBD, STEREO
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import KeyframeReason

# A single frame out of order is refused and nothing is lost by it; as many in a row that agree with each
# other are a new stream: a bag that began again, a driver that changed its resolution.
PATIENCE = 3


class FrameRefusedError(ValueError):
    """A frame that contradicts the stream, or that the network cannot take; nothing was changed by it.

    Attributes:
        kind: `time`, `size`, `frame_id`, `depth`, `right` or `camera_info`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StreamGuard:
    """Admits frames that go on from the last one, refuses strays, and notices a stream that has changed."""

    def __init__(self) -> None:
        self._last: Frame | None = None
        self._strays: list[Frame] = []

    def reset(self) -> None:
        """Forget the stream: whatever comes next is admitted."""
        self._last = None
        self._strays = []

    def admit(self, frame: Frame) -> KeyframeReason | None:
        """Take the frame as the stream's next.

        Returns:
            None where it goes on, or why all keyframes of the old stream are void: TIME_JUMPED, CAMERA_CHANGED.

        Raises:
            FrameRefusedError: the frame contradicts the stream, and too few before it agree with it.
        """
        contradiction = None if self._last is None else _contradiction(self._last, frame)
        if contradiction is None:
            self._last, self._strays = frame, []
            return None
        if self._strays and _contradiction(self._strays[-1], frame) is not None:
            self._strays = []
        self._strays.append(frame)
        if len(self._strays) < PATIENCE:
            raise contradiction
        self._last, self._strays = frame, []
        return KeyframeReason.TIME_JUMPED if contradiction.kind == "time" else KeyframeReason.CAMERA_CHANGED


def _contradiction(before: Frame, frame: Frame) -> FrameRefusedError | None:
    """What keeps `frame` from following `before`."""
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
    if frame.stamp_ns <= before.stamp_ns:
        back = (before.stamp_ns - frame.stamp_ns) / 1e9
        what = f"goes back by {back:.3f} s" if back else "is the same as the last one's"
        return FrameRefusedError(
            "time",
            f"image stamp {frame.stamp_ns / 1e9:.3f} {what}; refused until {PATIENCE} in a row go on from there. "
            "Check the driver's clock, or whether a recording was started again",
        )
    return None


def check_companions(frame: Frame, mode: str) -> None:
    """Hold what came with a frame against what the mode needs.

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
