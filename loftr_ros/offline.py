"""The front end over a recording, without ROS: `loftr_ros run`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.records import Located, accuracy, to_reference
from loftr_ros.evaluation.trajectory import Trajectory, tum_lines
from loftr_ros.frontend.config import MONO
from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.sources import Source, SourceError, SourceFrame
from loftr_ros.sources.reading import FrameReader


@dataclass
class Report:
    """What a run found.

    Attributes:
        frames: processed.
        refused: frames that could not be read or contradicted the stream, with the reason.
        keyframes: stamps of the keyframes, in nanoseconds.
        statuses: how often each pose status came.
        located: every pose relative to a keyframe.
        truth: (4, 4) T_world_camera by stamp, of the frames that the source knows it of.
        latencies: seconds by stage, one entry a frame.
    """

    frames: int = 0
    refused: list[str] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    located: list[Located] = field(default_factory=list)
    truth: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    latencies: dict[str, list[float]] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""
        text = [f"{self.frames} frames, {len(self.keyframes)} keyframes, {len(self.refused)} frames refused"]
        text += [f"  refused: {reason}" for reason in self.refused[:3]]
        text.append("poses: " + (", ".join(f"{count} {name}" for name, count in self.statuses.items()) or "none"))
        stages = (f"{stage} {1e3 * np.median(values):.1f}" for stage, values in self.latencies.items())
        text.append("median ms: " + ", ".join(stages))
        found = accuracy(to_reference(self.located), self.truth)
        if found and found["rotation_deg"] and found["direction_deg"]:
            auc = "/".join(f"{area:.1f}" for area in found["auc"].values())
            text.append(
                f"against the truth: rotation {found['rotation_deg']['median']:.2f} deg, translation direction "
                f"{found['direction_deg']['median']:.2f} deg (medians, to the reference keyframe), AUC@5/10/20 {auc} "
                f"({found['tiny_baseline']} of {found['pairs']} pairs left out, too close together for a direction)"
            )
        return text


def run(
    source: Source,
    front_end: FrontEnd,
    output: Path,
    *,
    reader: FrameReader | None = None,
    parquet: bool = False,
    progress: bool = True,
) -> Report:
    """Feed every frame of a source to the front end and write what it finds.

    Writes `trajectory.tum`, `relative_poses.csv`, `correspondences.npz` (or `.parquet`), `matches.png` and
    `trajectory.png`.

    Args:
        source: the recording.
        front_end: a fresh one.
        output: folder to write to; made if it is not there.
        reader: makes frames by the node's parameters; None for its defaults.
        parquet: write the correspondences as Parquet instead of NumPy's archive; needs pyarrow.
        progress: show a progress bar.

    Returns:
        A summary.

    Raises:
        SourceError: the source has not what the front end's mode needs, or not a single frame could be read.
    """
    if parquet:
        import pyarrow  # noqa: F401  (told before the work, not after it)
    mode, reader = front_end.config.scale.mode, reader or FrameReader()
    source.require(mode)
    output.mkdir(parents=True, exist_ok=True)
    report, columns, picture = Report(), _Columns(), _BestPicture()
    trajectory = Trajectory(report.truth)
    with (output / "relative_poses.csv").open("w", newline="") as file:
        poses = csv.writer(file)
        poses.writerow(["stamp_ns", "keyframe_id", "keyframe_stamp_ns", "status", "x", "y", "z", "qx", "qy", "qz", "qw",
                        "matches", "inliers", "median_parallax_px"])  # fmt: skip
        for frame in _with_bar(source, progress):
            try:
                result = front_end.process(reader.read(frame, mode))
            except (FrameRefusedError, MaskError, SourceError) as error:
                report.refused.append(str(error))
                continue
            if frame.pose is not None:
                report.truth[frame.stamp_ns] = frame.pose
            poses.writerows(_pose_rows(result))
            columns.add(result)
            picture.offer(result)
            _chain(trajectory, result)
            _summarise(report, result)
    if not report.frames:
        raise SourceError(f"{source.name}: not a single frame could be processed: {'; '.join(report.refused[:3])}")
    columns.write(output / ("correspondences.parquet" if parquet else "correspondences.npz"))
    picture.write(output / "matches.png")
    stamps, world = trajectory.poses()
    (output / "trajectory.tum").write_text("\n".join(tum_lines(stamps, world)) + "\n")
    _plot(output / "trajectory.png", stamps, world, report.truth, report.keyframes, source.name, mode != MONO)
    return report


def _with_bar(source: Source, progress: bool) -> Iterator[SourceFrame]:
    from tqdm import tqdm

    yield from tqdm(source, total=source.length, unit="frame", disable=not progress)


def _chain(trajectory: Trajectory, result: FrontEndResult) -> None:
    for match in result.matches:
        keyframe = match.keyframe.frame.stamp_ns
        trajectory.add_pose(
            keyframe, result.frame.stamp_ns, match.pose.matrix, match.pose.has_rotation, match.pose.scale_known
        )
    if any(event.added for event in result.events):
        trajectory.add_keyframe(result.frame.stamp_ns)


def _summarise(report: Report, result: FrontEndResult) -> None:
    report.frames += 1
    report.keyframes += [result.frame.stamp_ns for event in result.events if event.added]
    for stage, seconds in result.latencies.items():
        report.latencies.setdefault(stage, []).append(seconds)
    for match in result.matches:
        pose = match.pose
        report.statuses[pose.status.name] = report.statuses.get(pose.status.name, 0) + 1
        counts = len(match.correspondences), int(pose.inliers.sum())
        stamps = result.frame.stamp_ns, match.keyframe.frame.stamp_ns
        report.located.append(
            Located(*stamps, pose.status, pose.matrix, *counts, pose.median_parallax, pose.scale_known)
        )


def _pose_rows(result: FrontEndResult) -> Iterable[list[Any]]:
    from scipy.spatial.transform import Rotation

    for match in result.matches:
        pose, keyframe = match.pose, match.keyframe
        quaternion = Rotation.from_matrix(pose.rotation).as_quat()
        numbers = [f"{value:.9f}" for value in (*pose.translation, *quaternion)]
        counts = [len(match.correspondences), int(pose.inliers.sum()), f"{pose.median_parallax:.3f}"]
        yield [result.frame.stamp_ns, keyframe.id, keyframe.frame.stamp_ns, pose.status.name, *numbers, *counts]


def _plot(
    path: Path,
    stamps: NDArray[np.int64],
    world: NDArray[np.float64],
    truth: Mapping[int, NDArray[np.float64]],
    keyframes: list[int],
    name: str,
    metric: bool,
) -> None:
    from loftr_ros.evaluation.trajectory_plot import plot_trajectory

    if len(stamps) < 2:
        return
    known = bool(truth) and all(int(stamp) in truth for stamp in stamps)
    true_poses = np.array([truth[int(stamp)] for stamp in stamps]) if known else None
    indices = [int(i) for i in np.flatnonzero(np.isin(stamps, keyframes))]
    if metric:
        plot_trajectory(path, world, true_poses, indices, f"{name} (in metres)", metric)
        return
    scale = "step lengths from the truth" if known else "scale unknown: every step has length 1"
    plot_trajectory(path, world, true_poses, indices, f"{name} ({scale})")


class _Columns:
    """Correspondences of all frames, one row a match."""

    _TYPES = {  # noqa: RUF012 (never changed)
        "stamp_ns": np.int64,
        "keyframe_id": np.uint32,
        "keyframe_stamp_ns": np.int64,
        "track_id": np.uint32,
        "keyframe_u": np.float32,
        "keyframe_v": np.float32,
        "current_u": np.float32,
        "current_v": np.float32,
        "confidence": np.float32,
        "current_std": np.float32,
        "inlier": np.bool_,
    }

    def __init__(self) -> None:
        # An empty first part: the columns are there without any match, too.
        self._parts: list[dict[str, NDArray[Any]]] = [{name: np.zeros(0, kind) for name, kind in self._TYPES.items()}]

    def add(self, result: FrontEndResult) -> None:
        for match in result.matches:
            found, count = match.correspondences, len(match.correspondences)
            self._parts.append(
                {
                    "stamp_ns": np.full(count, result.frame.stamp_ns, np.int64),
                    "keyframe_id": np.full(count, match.keyframe.id, np.uint32),
                    "keyframe_stamp_ns": np.full(count, match.keyframe.frame.stamp_ns, np.int64),
                    "track_id": found.track_id,
                    "keyframe_u": found.keyframe_points[:, 0],
                    "keyframe_v": found.keyframe_points[:, 1],
                    "current_u": found.current_points[:, 0],
                    "current_v": found.current_points[:, 1],
                    "confidence": found.confidence,
                    "current_std": found.std,
                    "inlier": match.pose.inliers,
                }
            )

    def write(self, path: Path) -> None:
        table = {name: np.concatenate([part[name] for part in self._parts]) for name in self._TYPES}
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.table(table), path)
        else:
            np.savez_compressed(path, **table)  # type: ignore[arg-type]


class _BestPicture:
    """Keeps the match with the most parallax among those with many inliers, to be drawn at the end."""

    def __init__(self) -> None:
        self._best: FrontEndResult | None = None
        self._score = -1.0

    def offer(self, result: FrontEndResult) -> None:
        if not result.matches:
            return
        pose = result.matches[0].pose
        parallax = pose.median_parallax if np.isfinite(pose.median_parallax) else 0.0
        score = float(pose.inliers.sum() * min(parallax, 30.0))
        if score > self._score:
            self._best, self._score = result, score

    def write(self, path: Path) -> None:
        if self._best is None:
            return
        import cv2

        from loftr_ros.visualization import draw_matches

        match = self._best.matches[0]
        found, pose = match.correspondences, match.pose
        text = f"keyframe {match.keyframe.id}: {int(pose.inliers.sum())}/{len(found)} inliers, {pose.status.name}"
        picture = draw_matches(
            match.keyframe.frame.image,
            self._best.frame.image,
            found.keyframe_points,
            found.current_points,
            found.confidence,
            pose.inliers,
            text,
        )
        cv2.imwrite(str(path), picture)
