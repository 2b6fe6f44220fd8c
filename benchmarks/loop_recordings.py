"""Loops in real recordings: a stretch that revisits itself, and a recording played twice, an hour apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.matcher.interface import Matcher
from loftr_ros.places.archive import Archive
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.places.detector import LoopClosure, LoopDetector
from loftr_ros.places.verification import Verifier
from loftr_ros.places.view import Observer
from loftr_ros.recordings import open_source
from loftr_ros.settings import with_values

HOUR_NS = 3600 * 10**9
SHIFT = 5  # frames skipped at the beginning of the second pass, so that its keyframes are other images
LOOKS_BACK_AFTER = 2.0  # seconds after which a stretch of 8 s may revisit itself

Array = NDArray[np.float64]


@dataclass
class Recorded:
    """Loops found in one recording.

    Attributes:
        name: of the recording.
        keyframes: number of keyframes; of the second pass if it was played twice.
        rotations: errors of the loops in degrees.
        lengths: errors of their translations in metres, if these are metric.
        directions: errors of their directions of translation in degrees, if observed.
        found: keyframes among `keyframes` with a loop.
    """

    name: str
    keyframes: int
    rotations: list[float]
    lengths: list[float]
    directions: list[float]
    found: int

    def columns(self) -> list[str]:
        """Of the table."""

        def median_and_most(values: list[float], digits: int) -> str:
            return f"{np.median(values):.{digits}f} / {max(values):.{digits}f}" if values else "-"

        return [
            self.name,
            f"{self.keyframes}",
            f"{self.found}",
            median_and_most(self.rotations, 2),
            median_and_most(self.directions, 1),
            median_and_most([100 * value for value in self.lengths], 1),
        ]


HEAD = ["recording", "keyframes", "found again", "rotation deg", "direction deg", "translation cm"]


def looks_back(folder: Path, mode: str, matcher: Matcher, config: LoopConfig) -> Recorded:
    """Loops within a short recording, which may be two seconds old."""
    config = replace(config, min_age=LOOKS_BACK_AFTER)
    return _played(f"{folder.name} ({mode}), looks back", folder, mode, matcher, config, 1)


def played_twice(folder: Path, mode: str, matcher: Matcher, config: LoopConfig) -> Recorded:
    """Loops from the second pass of a recording, an hour after the first."""
    return _played(f"{folder.name} ({mode}), twice", folder, mode, matcher, config, 2)


def _played(name: str, folder: Path, mode: str, matcher: Matcher, config: LoopConfig, times: int) -> Recorded:
    front_end_config = with_values(FrontEndConfig(), {"mode": mode})
    describe = PlaceDescriptor.of(matcher)
    truth: dict[int, Array] = {}
    with (
        tempfile.TemporaryDirectory() as place,
        Archive.open(place, describe.space, describe.dimension) as archive,
    ):
        detector = LoopDetector(archive, Verifier(PairMatcher(matcher, front_end_config)), config)
        front_end = FrontEnd(matcher, front_end_config)
        observer = Observer(describe, "robot", 1)
        keyframes = 0
        closures: list[LoopClosure] = []
        for turn in range(times):
            keyframes, closures = 0, []
            # The gap in the stamps begins a new session in the middle of the stream, as in the node.
            for stamp_ns, frame, pose in _frames(folder, mode, turn):
                truth[stamp_ns] = pose
                view, finished = observer.observe(front_end.process(frame))
                if finished is not None:
                    archive.add(finished.archived(90))
                keyframes += view.name is not None
                closures += detector.process(view)
    found = _Errors()
    for closure in closures:
        found.add(closure, truth)
    return Recorded(name, keyframes, found.rotations, found.lengths, found.directions, len(closures))


def _frames(folder: Path, mode: str, turn: int) -> Iterator[tuple[int, object, Array]]:
    with open_source(folder, start=turn * SHIFT) as source:
        for each in source:
            stamp_ns = each.stamp_ns + turn * HOUR_NS
            assert each.pose is not None
            yield stamp_ns, replace(each.to_frame(mode), stamp_ns=stamp_ns), each.pose


class _Errors:
    def __init__(self) -> None:
        self.rotations: list[float] = []
        self.lengths: list[float] = []
        self.directions: list[float] = []

    def add(self, closure: LoopClosure, truth: dict[int, Array]) -> None:
        true = np.linalg.inv(truth[closure.keyframe.stamp_ns]) @ truth[closure.stamp_ns]
        pose = closure.found.pose
        self.rotations.append(rotation_error(pose.rotation, true[:3, :3]))
        if pose.scale_known:
            self.lengths.append(float(np.linalg.norm(pose.translation - true[:3, 3])))
        # A direction is meaningful if the true translation is long compared with the truth's own error.
        if pose.has_direction and np.linalg.norm(true[:3, 3]) > 0.1:
            self.directions.append(translation_direction_error(pose.translation, true[:3, 3]))
