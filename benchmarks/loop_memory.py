"""Cache of verifications of pairs of images from earlier runs, to try settings of the search in seconds."""

from __future__ import annotations

import inspect
import pickle
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend import own_scale
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.geometry import two_view as relative_pose
from loftr_ros.geometry.two_view import RelativePose
from loftr_ros.places import verification
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName
from loftr_ros.places.verification import Verification, Verifier

_ENCODED = 250  # archived keyframes with cached features, to save time; the node caches 8


@dataclass(frozen=True)
class Remembered:
    """A verification without its correspondences, which would need too much memory for thousands of them.

    Attributes:
        matches: their number.
        pose, own_unit, coverage: see `Verification`.
        hull, planar: see `Tried`.
        seconds: its duration.
    """

    matches: int
    pose: RelativePose
    own_unit: RelativePose | None
    coverage: float
    hull: float
    planar: float
    seconds: float


class Memory:
    """Descriptors and verifications of one world's views.

    Results of another network, or of another version of the verification, are not used.
    """

    def __init__(self, cache: Path | None, seed: int, front_end: FrontEnd, describe: PlaceDescriptor) -> None:
        code = [inspect.getsource(module) for module in (verification, relative_pose, own_scale)]
        made_by = zlib.crc32("".join([front_end.matcher.fingerprint, *code]).encode())
        self._file = None if cache is None else cache / f"found_{seed}_{made_by:08x}.pkl"
        self._space = describe.space
        self.verified: dict[tuple[int, int], Remembered] = {}  # by id of the keyframe, and stamp
        self.descriptors: dict[tuple[str, int], NDArray[np.float32]] = {}
        if self._file is not None and self._file.is_file():
            self.verified, self.descriptors = pickle.loads(self._file.read_bytes())

    def describe(self, number: int, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """The descriptor of the view with a number."""
        key = (self._space, number)
        if key not in self.descriptors:
            self.descriptors[key] = make()
        return self.descriptors[key]

    def save(self) -> None:
        """Save the current contents."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_bytes(pickle.dumps((self.verified, self.descriptors)))


class RememberingVerifier(Verifier):
    """Verifies a pair of images once."""

    def __init__(self, pairs: PairMatcher) -> None:
        super().__init__(pairs)
        self.memory: Memory | None = None
        self._encodings: OrderedDict[KeyframeName, EncodedFrame] = OrderedDict()

    def remember(self, archived: ArchivedKeyframe, frame: Frame) -> Remembered:
        """The verification of a pair, computed if needed."""
        assert self.memory is not None
        key = (archived.name.id, frame.stamp_ns)
        if key not in self.memory.verified:
            start = time.perf_counter()
            found = super().verify(archived, frame)
            seconds = time.perf_counter() - start
            hull, planar = _shape(found, frame.size[0] * frame.size[1])
            self.memory.verified[key] = Remembered(
                len(found.correspondences), found.pose, found.own_unit, found.coverage, hull, planar, seconds
            )
        return self.memory.verified[key]

    def verify(self, archived: ArchivedKeyframe, frame: Frame) -> Verification:
        known = self.remember(archived, frame)
        return Verification(archived, range(known.matches), known.pose, known.own_unit, known.coverage)  # type: ignore[arg-type]

    def _encoded(self, archived: ArchivedKeyframe, current: Frame) -> EncodedFrame:
        """As in `Verifier`, with a larger cache to save time."""
        if archived.name not in self._encodings:
            self._encodings[archived.name] = super()._encoded(archived, current)
            if len(self._encodings) > _ENCODED:
                self._encodings.popitem(last=False)
        self._encodings.move_to_end(archived.name)
        return self._encodings[archived.name]


def _shape(found: Verification, area: int) -> tuple[float, float]:
    """Area of the inliers' convex hull as a part of the image's `area`, and part of them on one plane."""
    inliers = found.pose.inliers
    if inliers.sum() < 8:
        return 0.0, 0.0
    points = [
        np.asarray(side[inliers], np.float32)
        for side in (found.correspondences.keyframe_points, found.correspondences.current_points)
    ]
    hull = min(cv2.contourArea(cv2.convexHull(side)) for side in points) / area
    _, mask = cv2.findHomography(points[0], points[1], cv2.RANSAC, 3.0)
    return float(hull), 0.0 if mask is None else float(mask.mean())
