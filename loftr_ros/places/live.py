"""The front end with an archive and loop detection, in one class for Python programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.results import FrontEndResult
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.matcher.interface import ImageFeatures, Matcher
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import ArchiveConfig, LoopConfig
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.detector import LoopClosure, LoopDetector
from loftr_ros.places.keyframe import PlacesError
from loftr_ros.places.verification import Verifier
from loftr_ros.places.view import NewKeyframe, Observer, View


class LiveLoopDetector:
    """Runs the front end over a stream of frames, archives its keyframes, and finds places that it has seen before.

        with LoopDetector("places", load_matcher(), robot="ada") as detector:
            for frame in open_recording("walk.mcap"):
                result, loops = detector.process(frame.to_frame())

    A place may have been seen earlier in this stream, in an earlier one, or by another robot with the same archive.
    Each keyframe is searched immediately, so the result does not depend on the machine's speed. A frame that becomes a
    keyframe takes longer because of this. Not thread-safe: one thread calls it.

    Attributes:
        front_end: processes the frames. Its keyframe numbers continue those that the robot has archived.
        archive: of keyframes.
        view: the last frame as used by the search; None before the first.
        unread: one sentence for each archived image that was missing or damaged and could not be compared.
    """

    def __init__(
        self,
        archive: str | Path | Archive,
        matcher: Matcher,
        *,
        robot: str = "robot",
        config: FrontEndConfig | None = None,
        loop: LoopConfig | None = None,
        max_size_mb: float = ArchiveConfig().max_size_mb,
        jpeg_quality: int = ArchiveConfig().jpeg_quality,
        describe: Callable[[ImageFeatures], NDArray[np.float32]] | None = None,
        keep: Callable[[NewKeyframe], None] | None = None,
    ) -> None:
        """Open the archive and start a new session of the robot in it.

        Args:
            archive: a folder, which is created if it does not exist; s3://bucket/folder; or an open archive, which
                stays open.
            matcher: from `load_matcher`. Keyframes can be compared only with keyframes of the same network and
                weights.
            robot: name of the robot in the archive. Two streams at the same time need two names.
            config: settings of the front end; None for the defaults.
            loop: when a place is believed; None for the defaults.
            max_size_mb: size of the archive in MB at which the least informative keyframes are dropped.
            jpeg_quality: 10 to 100, of images that do not come as JPEG.
            describe: computes a keyframe's (D,) descriptor of length one, for an open archive; None for the descriptor
                that belongs to the matcher.
            keep: called with each complete keyframe, instead of archiving it; None to archive it.

        Raises:
            PlacesError: the archive cannot be opened or was made with another network; or LanceDB is not installed.
        """
        self._open = ExitStack()
        if describe is None or not isinstance(archive, Archive):
            describe = descriptor = PlaceDescriptor.of(matcher)
        if not isinstance(archive, Archive):
            opened = Archive.open(str(archive), descriptor.space, descriptor.dimension, max_size_mb=max_size_mb)
            archive = self._open.enter_context(opened)
        self.archive = archive
        self.front_end = FrontEnd(matcher, config, archive.last_id(robot) + 1)
        self.view: View | None = None
        self.unread: list[str] = []
        self._keep_keyframe = keep or (lambda finished: archive.add(finished.archived(jpeg_quality)))
        self._observer = Observer(describe, robot, archive.last_session(robot) + 1)
        self._session = self._observer.session
        self._detector = LoopDetector(archive, Verifier(self.front_end.pairs), loop or LoopConfig())

    def process(self, frame: Frame) -> tuple[FrontEndResult, list[LoopClosure]]:
        """Process the stream's next frame.

        Args:
            frame: the image, with its calibration if loops should have poses.

        Returns:
            The front end's result, and the loops that were confirmed with this frame. A loop is confirmed some frames
            after its keyframe, when enough images agree on the place.

        Raises:
            FrameRefusedError: the frame contradicts the stream (time, size, camera); the state is unchanged.
            MaskError: the frame's mask is not of its image's size; the state is unchanged.
            PlacesError: the archive cannot be read or written.
        """
        result = self.front_end.process(frame)
        self.view, finished = self._observer.observe(result)
        self._keep(finished)
        if self._observer.session != self._session:
            self._session = self._observer.session
            self._detector.reset()
        try:
            return result, self._detector.process(self.view, result.encoded)
        except PlacesError as error:
            if not error.is_of_one_keyframe:  # else it costs that keyframe's loops, and no more
                raise
            self.unread.append(str(error))
        except FrameRefusedError as error:  # an archived image of a shape that the network does not take
            self.unread.append(str(error))
        return result, []

    @property
    def session(self) -> int:
        """Number of the current stream among the robot's streams in the archive."""
        return self._session

    def close(self) -> None:
        """Archive the last keyframe, and close the archive if it was opened here. Do not use the object afterwards.

        Raises:
            PlacesError: the keyframe cannot be written.
        """
        with self._open:
            self._keep(self._observer.take())

    def __enter__(self) -> LiveLoopDetector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _keep(self, finished: NewKeyframe | None) -> None:
        if finished is not None:
            self._keep_keyframe(finished)
