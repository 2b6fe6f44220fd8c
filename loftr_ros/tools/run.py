"""`loftr_ros run`: the front end over a recording, without ROS."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.evaluation.records import Located, accuracy, to_reference
from loftr_ros.evaluation.run_trajectory import RunTrajectory
from loftr_ros.extras import why_no_plots
from loftr_ros.frontend.gyroscope import Gyroscope
from loftr_ros.frontend.mask import MaskError
from loftr_ros.frontend.pipeline import FrontEnd, FrontEndResult
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.geometry.se3 import quaternion_of
from loftr_ros.places.config import LoopConfig
from loftr_ros.recordings import Source, SourceError
from loftr_ros.recordings.progress import Progress, first_reasons, write_marker
from loftr_ros.recordings.reading import FrameReader

if TYPE_CHECKING:  # these need GTSAM and an archive
    from loftr_ros.tools.optimise import Optimisation

_ROW_GROUP = 1 << 20
_WRITTEN = ("trajectory.tum", "trajectory.png", "matches.png", "correspondences.npz", "correspondences.parquet",
            "partial.txt", "graph.g2o", "map.ply", "map.npz", "optimised.png")  # fmt: skip


@dataclass
class Report:
    """Results of a run.

    Attributes:
        frames: number of processed frames.
        refused: reasons of the frames that could not be read or contradicted the stream.
        keyframes: stamps of the keyframes, in nanoseconds.
        statuses: number of poses by status.
        located: every pose relative to a keyframe.
        truth: (4, 4) T_world_camera by stamp, of the frames with a known pose.
        truth_is_metric: whether the truth is in metres.
        trajectory: each frame's place by the front end's odometry.
        latencies: seconds by stage, one entry for each frame.
        warnings: about the recording's stamps and depths.
        notes: for people, on how the source was read.
        progress: how far the run came.
        back_end: lines of text on the back end's result.
        optimised: (4, 4) T_map_camera by stamp of the frames of its largest part, whether that is in metres, and the
            number of parts; None without a back end.
    """

    frames: int = 0
    refused: list[str] = field(default_factory=list)
    keyframes: list[int] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    located: list[Located] = field(default_factory=list)
    truth: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    truth_is_metric: bool = True
    trajectory: RunTrajectory = field(default_factory=RunTrajectory)
    latencies: dict[str, list[float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    back_end: list[str] = field(default_factory=list)
    optimised: tuple[dict[int, NDArray[np.float64]], bool, int] | None = None

    def lines(self) -> list[str]:
        """The report as lines of text."""
        text = [f"{self.frames} frames, {len(self.keyframes)} keyframes, {len(self.refused)} frames refused"]
        text += first_reasons(self.refused)
        text += first_reasons(self.warnings, "")
        text.append("poses: " + (", ".join(f"{count} {name}" for name, count in self.statuses.items()) or "none"))
        text += self.trajectory.lines(self.frames, self.truth, self.truth_is_metric)
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
        text += self.back_end
        text += [f"note: {note}" for note in self.notes]
        return text

    @property
    def missing(self) -> list[str]:
        """Reasons why parts of the recording are missing; empty if it is complete."""
        return self.progress.missing(self.refused, self.notes)


def run(
    source: Source,
    front_end: FrontEnd,
    output: Path,
    *,
    reader: FrameReader | None = None,
    parquet: bool = False,
    progress: bool = True,
    optimise: bool = False,
    loop: LoopConfig | None = None,
    back_end: BackEndConfig | None = None,
) -> Report:
    """Process every frame of a source and write the results.

    Writes `trajectory.tum` (and `trajectory_1.tum` and so on, if it is broken into segments), `relative_poses.csv`,
    `correspondences.npz` (or `.parquet`), `matches.png` and `trajectory.png`; and `partial.txt` if some of the
    recording is missing. After Ctrl-C the results so far are written.

    Args:
        source: the recording.
        front_end: a fresh one.
        output: folder to write to; it is created if necessary.
        reader: makes frames with the node's parameters; None for their defaults.
        parquet: write the correspondences as Parquet instead of NumPy's archive; needs pyarrow.
        progress: show a progress bar.
        optimise: also search for loops, optimise all keyframes, and write `optimised.tum`, `graph.g2o`, `map.ply`,
            `map.npz` and `optimised.png`; needs GTSAM.
        loop: settings of the loop search; None for the defaults.
        back_end: settings of the back end; None for the defaults.

    Returns:
        A summary.

    Raises:
        SourceError: the source lacks what the front end's mode needs, or no frame could be read.
        BackEndError: GTSAM is missing, or cannot solve the graph.
        PlacesError: the archive to search in cannot be created.
    """
    if parquet:
        import pyarrow  # noqa: F401  (fails before the work, not after it)
    mode, reader = front_end.config.scale.mode, reader or FrameReader()
    source.require(mode)
    output.mkdir(parents=True, exist_ok=True)
    for old in _WRITTEN:  # an older picture would be mistaken for one of this run
        (output / old).unlink(missing_ok=True)
    report, picture = Report(), _BestPicture()
    back = _open_back_end(front_end, loop or LoopConfig(), back_end) if optimise else None
    gyroscope = None if source.imu is None else Gyroscope(camera_from_imu=source.imu.camera_from_imu[:3, :3])
    samples = None if back is None or source.imu is None else back.use_imu(source.imu.camera_from_imu)
    front_end.use_gyroscope(gyroscope)
    sample = 0
    with ExitStack() as files:
        if back is not None and back.search is not None:
            files.callback(back.search.close)
        columns = _Columns(output, files)
        file = files.enter_context((output / "relative_poses.csv").open("w", newline=""))
        poses = csv.writer(file)
        poses.writerow(["stamp_ns", "keyframe_id", "keyframe_stamp_ns", "status", "x", "y", "z", "qx", "qy", "qz", "qw",
                        "matches", "inliers", "median_parallax_px"])  # fmt: skip
        with report.progress.watching():
            for frame in report.progress.frames(source, progress):
                if source.imu is not None and gyroscope is not None:
                    sample = source.imu.until(frame.stamp_ns, sample, gyroscope, samples)
                try:
                    result = front_end.process(reader.read(frame, mode))
                except (FrameRefusedError, MaskError, SourceError) as error:
                    report.refused.append(str(error))
                    continue
                report.warnings += [warning.text for warning in front_end.take_warnings()]
                if frame.pose is not None:
                    report.truth[frame.stamp_ns] = frame.pose
                    report.truth_is_metric &= frame.metric
                poses.writerows(_pose_rows(result))
                columns.add(result)
                picture.offer(result)
                report.trajectory.add(result)
                _summarise(report, result)
                if back is not None:
                    back.add(result)
        if not report.frames and not report.progress.interrupted:
            raise SourceError(f"{source.name}: no frame could be processed: {'; '.join(report.refused[:3])}")
        columns.write(output / ("correspondences.parquet" if parquet else "correspondences.npz"))
    picture.write(output / "matches.png")
    report.trajectory.write(output)
    if back is not None:
        back.finish()
        odometry = dict(zip(report.trajectory.stamps, report.trajectory.poses, strict=True))
        report.back_end = back.write(output, report.truth, odometry, report.truth_is_metric)
        report.optimised = back.largest_part()
    report.notes += source.notes
    if gyroscope is not None:
        report.notes.append(f"gyroscope: {gyroscope.state.value}. {gyroscope.mounting()}".rstrip())
    if reason := why_no_plots():
        report.notes.append(f"trajectory.png is left out, since {reason}")
    else:
        _plot(output / "trajectory.png", report, source.name)
    write_marker(output, report.missing)
    return report


def _open_back_end(front_end: FrontEnd, loop: LoopConfig, config: BackEndConfig | None) -> Optimisation:
    from loftr_ros.backend.back_end import BackEnd
    from loftr_ros.tools.optimise import LoopSearch, Optimisation

    back_end = BackEnd(config)  # first, to fail at once if GTSAM is missing
    return Optimisation(back_end, LoopSearch(front_end, loop))


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

    for match in result.matches:
        pose, keyframe = match.pose, match.keyframe
        quaternion = quaternion_of(pose.rotation)
        numbers = [f"{value:.9f}" for value in (*pose.translation, *quaternion)]
        counts = [len(match.correspondences), int(pose.inliers.sum()), f"{pose.median_parallax:.3f}"]
        yield [result.frame.stamp_ns, keyframe.id, keyframe.frame.stamp_ns, pose.status.name, *numbers, *counts]


def _plot(path: Path, report: Report, name: str) -> None:
    """Draw the trajectory from above: all of it, or the frames with a known pose."""
    from loftr_ros.evaluation.trajectory_plot import plot_trajectory

    trajectory = report.trajectory
    known = np.array([stamp in report.truth for stamp in trajectory.stamps], np.bool_)
    shown = np.flatnonzero(known) if known.sum() >= 2 else np.arange(len(trajectory))
    if len(shown) < 2:
        return
    stamps = [trajectory.stamps[k] for k in shown]
    true_poses = np.array([report.truth[stamp] for stamp in stamps]) if known.sum() >= 2 else None
    keyframes = set(report.keyframes)
    indices = [k for k, stamp in enumerate(stamps) if stamp in keyframes]
    metric = trajectory.is_metric
    unit = "in metres" if metric else "scale unknown: arbitrary unit"
    count = len(trajectory.segments)
    parts = f", broken into {count} segments" if count > 1 else ""
    plot_trajectory(path, trajectory.poses[shown], true_poses, indices, f"{name} ({unit}{parts})", metric)


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


class _Columns:
    """Correspondences of all frames, one row for each match. They are collected on disk: an hour has many millions."""

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
        "moving": np.bool_,
    }

    def __init__(self, folder: Path, files: ExitStack) -> None:
        # Files without names: nothing remains of them, however the program ends.
        self._files = {name: files.enter_context(_nameless(folder)) for name in self._TYPES}

    def add(self, result: FrontEndResult) -> None:
        for match in result.matches:
            found, count = match.correspondences, len(match.correspondences)
            rows = {
                "stamp_ns": np.full(count, result.frame.stamp_ns),
                "keyframe_id": np.full(count, match.keyframe.id),
                "keyframe_stamp_ns": np.full(count, match.keyframe.frame.stamp_ns),
                "track_id": found.track_id,
                "keyframe_u": found.keyframe_points[:, 0],
                "keyframe_v": found.keyframe_points[:, 1],
                "current_u": found.current_points[:, 0],
                "current_v": found.current_points[:, 1],
                "confidence": found.confidence,
                "current_std": found.std,
                "inlier": match.pose.inliers,
                "moving": np.zeros(count, np.bool_) if match.moving is None else match.moving,
            }
            for name, values in rows.items():
                self._files[name].write(np.ascontiguousarray(values, self._TYPES[name]).tobytes())

    def write(self, path: Path) -> None:
        table = {name: self._column(name) for name in self._TYPES}
        if path.suffix == ".parquet":
            import pyarrow
            import pyarrow.parquet

            fields = [pyarrow.field(name, pyarrow.from_numpy_dtype(kind)) for name, kind in self._TYPES.items()]
            with pyarrow.parquet.ParquetWriter(path, pyarrow.schema(fields)) as writer:
                for start in range(0, len(table["stamp_ns"]), _ROW_GROUP):
                    part = {name: np.array(values[start : start + _ROW_GROUP]) for name, values in table.items()}
                    writer.write_table(pyarrow.table(part))
        else:
            np.savez_compressed(path, **table)  # type: ignore[arg-type]

    def _column(self, name: str) -> NDArray[Any]:
        file = self._files[name]
        file.flush()
        if not file.tell():
            return np.zeros(0, self._TYPES[name])
        return np.memmap(file, self._TYPES[name], "r")


class _BestPicture:
    """Keeps the pair to draw at the end: the one with the most parallax among those with many inliers."""

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

        from loftr_ros.evaluation.drawing import draw_matches

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
