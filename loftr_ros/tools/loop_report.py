"""The results of a loop search in recordings: as text, tables and pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.metrics import rotation_error, translation_direction_error
from loftr_ros.frontend.results import Correspondences
from loftr_ros.geometry.se3 import between
from loftr_ros.places.archive import Archive
from loftr_ros.places.detector import LoopClosure
from loftr_ros.places.keyframe import KeyframeName
from loftr_ros.places.placement import GraphKeyframe, Loop
from loftr_ros.places.pose_graph import PoseGraph, pose_vector
from loftr_ros.recordings.progress import Progress, first_reasons
from loftr_ros.wording import plain

Array = NDArray[np.float64]

# Maximum number of pictures of loops.
_PICTURES = 6
# Minimum distance of two cameras, in the truth's unit: below it the direction between them is meaningless.
_LEAST_BASELINE = 0.02


@dataclass
class RecordingReport:
    """The results of one recording.

    Attributes:
        robot: name of the robot.
        name: name of the source.
        session: of its keyframes in the archive.
        frames: number of processed frames.
        keyframes: number of keyframes.
        stamps_ns: of the first and the last of the keyframes.
        refused: reasons of the frames that could not be read or contradicted the stream.
        unread: reasons of the archived keyframes that could not be compared.
        notes: for people, on how the source was read.
        progress: how far the search came.
    """

    robot: str
    name: str
    session: int
    frames: int = 0
    keyframes: int = 0
    stamps_ns: tuple[int, int] = (0, 0)
    refused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    unread: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LoopErrors:
    """Errors of a loop's pose.

    Attributes:
        rotation_deg: angle of the rotation's error; NaN if unknown.
        translation_m: length of the translation's error; NaN if the scale is unknown.
        direction_deg: angle between the translations; NaN if one of them is near zero.
        distance_m, angle_deg: true distance and angle between the two cameras.
    """

    rotation_deg: float
    translation_m: float
    direction_deg: float
    distance_m: float
    angle_deg: float


@dataclass
class Report:
    """All results.

    Attributes:
        recordings: one entry for each recording.
        keyframes: of the recordings, and of the archived trajectories that loops lead to.
        loops: in the order in which they were found.
        truth: (4, 4) T_world_camera of the recordings' keyframes, if the source knows it.
        truth_is_metric: whether all of it is in metres.
        known_before: number of keyframes in the archive at the start.
        min_age: minimum age in seconds of a robot's own keyframes in the search.
        back_end: lines of text on the back end's result.
    """

    recordings: list[RecordingReport] = field(default_factory=list)
    keyframes: list[GraphKeyframe] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    truth: dict[KeyframeName, Array] = field(default_factory=dict)
    truth_is_metric: bool = True
    known_before: int = 0
    min_age: float = 0.0
    back_end: list[str] = field(default_factory=list)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the search."""
        return any(each.progress.interrupted for each in self.recordings)

    @property
    def missing(self) -> list[str]:
        """Reasons why parts of the recordings are missing; empty if they are complete."""
        found = ((each, each.progress.missing(each.refused, each.notes)) for each in self.recordings)
        return [f"{each.robot}: {reason}" for each, reasons in found for reason in reasons]

    def errors(self, loop: Loop) -> LoopErrors | None:
        """Errors of a loop's pose; None unless both keyframes' true poses are known.

        The true poses of two recordings must be in one frame; this cannot be checked.
        """
        if loop.older not in self.truth or loop.newer not in self.truth:
            return None
        true = between(self.truth[loop.older], self.truth[loop.newer])
        pose, distance = loop.pose, float(np.linalg.norm(true[:3, 3]))
        has_direction = pose.has_direction and distance > _LEAST_BASELINE and np.linalg.norm(pose.translation) > 0
        return LoopErrors(
            rotation_error(pose.rotation, true[:3, :3]) if pose.has_rotation else float("nan"),
            float(np.linalg.norm(pose.translation - true[:3, 3]))
            if pose.scale_known and self.truth_is_metric
            else float("nan"),
            translation_direction_error(pose.translation, true[:3, 3]) if has_direction else float("nan"),
            distance,
            rotation_error(true[:3, :3], np.eye(3)),
        )

    def lines(self) -> list[str]:
        """The report as lines of text."""
        text = [f"archive: {self.known_before} keyframes before"] if self.known_before else []
        for each in self.recordings:
            text.append(f"{each.robot} ({each.name}): {each.frames} frames, {each.keyframes} keyframes, "
                        f"{len(each.refused)} frames refused")  # fmt: skip
            first, last = each.stamps_ns
            if (seconds := (last - first) / 1e9) <= self.min_age:
                text.append(f"  too short for a loop within it: its keyframes span {seconds:.1f} s, and a place counts "
                            f"as seen before after {self.min_age:g} s (--min-age)")  # fmt: skip
            text += first_reasons(each.refused)
            text += [f"  note: {note}" for note in each.notes]
            text += [f"  not compared: {reason}" for reason in each.unread[:3]]
        pairs: dict[tuple[str, str], list[Loop]] = {}
        for loop in self.loops:
            pairs.setdefault((loop.older.robot, loop.newer.robot), []).append(loop)
        text.append(f"{len(self.loops)} loops")
        for (older, newer), loops in sorted(pairs.items()):
            where = f"within {older}" if older == newer else f"{older} seen again by {newer}"
            scores = [loop.score for loop in loops]
            text.append(f"  {len(loops)} {where}, scores {min(scores):.2f} to {max(scores):.2f}")
            text += [f"    {line}" for line in self._against_truth(loops)]
        return text + self.back_end

    def _against_truth(self, loops: Sequence[Loop]) -> Iterator[str]:
        errors = [found for found in map(self.errors, loops) if found is not None]
        if not errors:
            return
        parts = []
        for name, unit, values in (
            ("rotation", "deg", [each.rotation_deg for each in errors]),
            ("translation", "m", [each.translation_m for each in errors]),
            ("direction", "deg", [each.direction_deg for each in errors]),
        ):
            known = [value for value in values if np.isfinite(value)]
            if known:
                parts.append(f"{name} {plain(float(np.median(known)))} {unit} (worst {plain(max(known))})")
        apart = max(each.distance_m for each in errors)
        yield f"against the truth, median error of {len(errors)}: {', '.join(parts) or 'no pose'}"
        yield f"cameras up to {apart:.2f} m and {max(each.angle_deg for each in errors):.0f} deg apart"


@dataclass(frozen=True, eq=False)
class _Picture:
    """A loop to draw later, when its images are in the archive."""

    number: int
    score: float
    older: KeyframeName
    newer: KeyframeName
    correspondences: Correspondences
    inliers: NDArray[np.bool_]


class BestLoops:
    """Keeps the matches of the loops with the best scores, at different places, to draw them at the end."""

    def __init__(self) -> None:
        self._best: dict[KeyframeName, _Picture] = {}

    def offer(self, closure: LoopClosure, number: int) -> None:
        """Keep a loop if it is one of the best.

        Args:
            closure: the loop.
            number: its row in `loops.csv`, from 1.
        """
        found, older = closure.found, closure.keyframe.name
        best = self._best.get(older)
        if best is not None and best.score >= found.score:
            return
        self._best[older] = _Picture(
            number, found.score, older, closure.current, found.correspondences, found.pose.inliers
        )
        if len(self._best) > _PICTURES:
            del self._best[min(self._best, key=lambda name: self._best[name].score)]

    def write(self, folder: Path, archive: Archive) -> None:
        """Draw them as `loop_N.png` with the loop's number; pictures of an earlier search are deleted."""
        from loftr_ros.evaluation.drawing import draw_matches

        for former in folder.glob("loop_*.png"):
            if former.stem.removeprefix("loop_").isdecimal():
                former.unlink()
        for each in sorted(self._best.values(), key=lambda one: one.number):
            older, newer = archive.get(each.older), archive.get(each.newer)
            if older is None or newer is None or not older.image or not newer.image:
                continue
            found = each.correspondences
            text = f"loop {each.number}: {each.older} and {each.newer}, {int(each.inliers.sum())}/{len(found)} inliers"
            picture = draw_matches(
                older.to_frame().image,
                newer.to_frame().image,
                found.keyframe_points,
                found.current_points,
                found.confidence,
                each.inliers,
                f"{text}, score {each.score:.2f}",
            )
            cv2.imwrite(str(folder / f"loop_{each.number}.png"), picture)


def write_keyframes(path: Path, graph: PoseGraph) -> None:
    """Write a table of the graph's vertices. Keyframes without a pose have an empty vertex."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["vertex", "robot", "keyframe_id", "session", "segment", "stamp_ns", "frame_id"])
        for number, each in enumerate(graph.keyframes):
            vertex = "" if each.pose is None else number
            table.writerow([vertex, *each.name, each.session, each.segment, each.stamp_ns, each.frame_id])


def write_loops(path: Path, report: Report) -> None:
    """Write a table with one row for each loop."""
    pose = ["x", "y", "z", "qx", "qy", "qz", "qw"]
    errors = ["rotation_error_deg", "translation_error_m", "direction_error_deg", "true_distance_m", "true_angle_deg"]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["number", "older_robot", "older_id", "newer_robot", "newer_id", "older_stamp_ns",
                        "newer_stamp_ns", "score", "similarity", "matches", "inliers", "confirmations", "status",
                        *pose, "scale_known", "length_in_older_unit", *errors])  # fmt: skip
        for number, loop in enumerate(report.loops, start=1):
            found, error = loop.pose, report.errors(loop)
            length = None if loop.with_length is None else float(np.linalg.norm(loop.with_length.translation))
            vector = pose_vector(found.matrix) if found.has_rotation else [float("nan")] * 7
            measured = [float("nan")] * 5 if error is None else [
                error.rotation_deg, error.translation_m, error.direction_deg, error.distance_m, error.angle_deg
            ]  # fmt: skip
            table.writerow([
                number, *loop.older, *loop.newer, *loop.stamps_ns, f"{loop.score:.4f}", f"{loop.similarity:.4f}",
                loop.matches, loop.inliers, loop.confirmations, found.status.name, *map(_cell, vector),
                int(found.scale_known), "" if length is None else _cell(length), *map(_cell, measured),
            ])  # fmt: skip


def _cell(value: float) -> str:
    """A number as text; empty if unknown."""
    return f"{value:.9g}" if np.isfinite(value) else ""
