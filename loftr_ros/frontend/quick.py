"""Choice between a quick match, without attention and with fewer matches, and the full one.

Between frames a camera usually hardly moves. Where two images are close to each other, attention changes nearly nothing
in their matches (`benchmarks/quick_matching.py`), and costs a third of the time. So a tracked frame is matched quickly
first, and matched in full if that result leaves a doubt, at regular intervals, and if it is to become a keyframe.
"""

from __future__ import annotations

from enum import IntEnum

from loftr_ros.frontend.config import TrackingConfig

# Largest expected motion of the image between two frames for a quick match, and for optical flow; between two images of
# the camera for going on by flow until the network has matched one of several frames (the first if keyframes serve for
# long); and that for which the expected pose is so good that it may take the place of a search; as parts of its width.
_LARGEST_MOTION, FOLLOWED_MOTION, FAIRLY_SLOW, SLOW, CLOSE = 0.08, 0.25, 0.06, 0.03, 0.02
# Least number of frames that a single camera's keyframes must serve: on 51 frames of KITTI, with a keyframe for every
# second one, its trajectory lost accuracy to quick matches; that of the stereo pair did not.
_LEAST_LIFE = 4


class FrameMatch(IntEnum):
    """How a frame was matched: quickly, by optical flow without the network, or in full and why.

    The names of the reasons are those of msg/FrontEndStatus.
    """

    QUICK = 0
    UNSUPPORTED = 1
    UNEXPECTED = 2
    PERIOD = 3
    DOUBT = 4
    KEYFRAME = 5
    MOTION = 6
    FLOW = 7

    @property
    def is_full(self) -> bool:
        """Whether the network matched the frame with attention."""
        return self not in (FrameMatch.QUICK, FrameMatch.FLOW)


class QuickMatching:
    """Decides which frames are matched quickly.

    After each quick match in vain, twice as many frames as before are matched in full at once.
    """

    def __init__(self, config: TrackingConfig, is_supported: bool, is_metric: bool = False) -> None:
        """Create it.

        Args:
            config: settings.
            is_supported: whether the network can match without attention.
            is_metric: whether depths are measured.
        """
        self._least_life = 0 if is_metric else _LEAST_LIFE
        self.config = config
        self._is_supported = is_supported
        self._since_full = 0
        self._wait, self._waiting = 1, 0
        self._reason = FrameMatch.DOUBT
        # Images of the camera that the last keyframe but one served, and the last one so far.
        self._life = self._age = _LEAST_LIFE
        self._keyframes = 0  # the first one ends a life that was only assumed

    def why_not(self, motion: float | None) -> FrameMatch:
        """Why the next frame must be matched in full at once; QUICK if it may be matched quickly.

        Args:
            motion: by which the image is expected to move since the last frame, as a part of its width; None if the
                camera is not being tracked, or its motion is unknown.
        """
        if not (self.config.quick and self._is_supported):
            return FrameMatch.UNSUPPORTED
        if motion is None:
            return FrameMatch.UNEXPECTED
        if motion > _LARGEST_MOTION or max(self._life, self._age) < self._least_life:
            return FrameMatch.MOTION
        if self.is_full_due:
            return FrameMatch.PERIOD
        if self._waiting:
            self._waiting -= 1
            return self._reason
        return FrameMatch.QUICK

    @property
    def is_full_due(self) -> bool:
        """Whether the next frame that the network matches must be matched in full, whatever is expected of it."""
        return not (self.config.quick and self._is_supported) or self._since_full >= self.config.full_period

    @property
    def is_for_long(self) -> bool:
        """Whether keyframes serve so many images that it does no harm if some add nothing to them."""
        return (self._keyframes > 1 and self._life >= _LEAST_LIFE) or self._age >= _LEAST_LIFE

    def followed(self, images: int = 1) -> None:
        """A frame was located by optical flow: so many images more that the last keyframe serves."""
        self._age += images

    def record(self, how: FrameMatch, was_tried: bool, is_keyframe: bool, images: int = 1) -> None:
        """Record how a frame was matched in the end.

        Args:
            how: it was matched.
            was_tried: whether it was matched quickly before.
            is_keyframe: whether it became a keyframe.
            images: of the camera since the frame before.
        """
        self._since_full = self._since_full + 1 if how == FrameMatch.QUICK else 0
        self._keyframes += is_keyframe
        self._life, self._age = (self._age, 0) if is_keyframe else (self._life, self._age + images)
        if how == FrameMatch.QUICK or is_keyframe:
            self._wait, self._waiting = 1, 0
        elif was_tried:
            self._reason, self._waiting = how, self._wait
            self._wait = min(2 * self._wait, max(self.config.full_period, 1))
