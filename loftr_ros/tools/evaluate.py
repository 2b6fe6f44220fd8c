"""`loftr_ros evaluate`: published benchmarks from their published folders, by the metrics of their papers."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.evaluation.metrics import pose_auc, rotation_error, translation_direction_error
from loftr_ros.evaluation.pair_sets import ImagePair, PairSet
from loftr_ros.evaluation.trajectory_errors import kitti_errors, step_errors, trajectory_errors
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.places.config import LoopConfig
from loftr_ros.recordings import SourceError
from loftr_ros.recordings.base import Source, SourceFrame
from loftr_ros.recordings.folders import is_data_set
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.recordings.still import still
from loftr_ros.tools.run import Report, run

Array = NDArray[np.float64]

_DEPTH = 3  # folders between a data set's root and its recordings, at most
# LoFTR's evaluation (Sun et al., CVPR 2021, sections 4.1 and 4.2).
_POSE_THRESHOLD, _POSE_CONFIDENCE, _POSE_LIMITS = 0.5, 0.99999, (5.0, 10.0, 20.0)
_HOMOGRAPHY_THRESHOLD, _HOMOGRAPHY_MATCHES, _HOMOGRAPHY_LIMITS = 3.0, 1000, (3.0, 5.0, 10.0)


@dataclass
class Evaluation:
    """A benchmark's results.

    Attributes:
        title: what was run on what.
        columns: of the table.
        rows: of the table.
        missing: what could not be evaluated, and why.
        interrupted: Ctrl-C stopped it.
    """

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    interrupted: bool = False

    def lines(self) -> list[str]:
        """The table in Markdown."""
        rows = [self.columns, ["---"] * len(self.columns), *self.rows]
        return [self.title, "", *("| " + " | ".join(row) + " |" for row in rows)]

    def write(self, folder: Path) -> None:
        """Write `table.md`."""
        (folder / "table.md").write_text("\n".join(self.lines()) + "\n", encoding="utf-8")


# Trajectories


def recordings_in(folder: Path) -> list[Path]:
    """The recordings of known data sets in a folder, which may be one itself."""
    found, level = list[Path](), [folder]
    for _ in range(_DEPTH + 1):
        found += [each for each in level if is_data_set(each)]
        level = sorted(
            child for each in level if not is_data_set(each) for child in each.iterdir()
            if child.is_dir() and not child.name.startswith(".")
        )  # fmt: skip
    return found


TRAJECTORY_COLUMNS = ("recording", "mode", "image", "network", "located", "parts", "trajectory", "aligned", "ATE [m]",
                      "RPE [m]", "RPE [deg]", "t_rel [%]", "r_rel [deg/100 m]", "ms a frame")  # fmt: skip


def evaluate_recording(
    name: str,
    source: Source,
    front_end: FrontEnd,
    reader: FrameReader,
    output: Path,
    table: Evaluation,
    *,
    progress: bool = True,
    optimise: bool = False,
    loop: LoopConfig | None = None,
    back_end: BackEndConfig | None = None,
) -> None:
    """Run a recording as `loftr_ros run`, and put its errors into the table.

    Args:
        name: of the recording.
        source: the recording.
        front_end: whose network and settings are used.
        reader: makes frames.
        output: folder for what `run` writes.
        table: takes a row for the odometry, and one for the back end.
        progress: show a bar.
        optimise: the back end, too.
        loop: its settings of the search for loops.
        back_end: its other settings.

    Raises:
        SourceError, BackEndError, PlacesError: as `run`.
    """
    fresh = FrontEnd(front_end.matcher, front_end.config)
    report = run(
        source, fresh, output, reader=reader, progress=progress, optimise=optimise, loop=loop, back_end=back_end
    )
    table.missing += [f"{name}: {reason}" for reason in report.missing]
    table.interrupted |= report.progress.interrupted
    if not report.truth or not report.truth_is_metric:
        table.missing.append(f"{name}: it has no true poses in metres")
        return
    trajectory = report.trajectory
    longest = max(trajectory.segments, key=lambda part: part.stop - part.start, default=slice(0, 0))
    odometry = dict(zip(trajectory.stamps[longest], trajectory.poses[longest], strict=True))
    head = _head(name, source, fresh, report, len(trajectory))
    kinds = [("odometry", odometry, trajectory.is_metric, len(trajectory.segments))]
    if report.optimised is not None:
        kinds.append(("back end", *report.optimised))
    for kind, poses, is_metric, parts in kinds:
        stamps = [stamp for stamp in poses if stamp in report.truth]
        estimate, truth = (np.array([where[stamp] for stamp in stamps]) for where in (poses, report.truth))
        found = trajectory_errors(estimate, truth, not is_metric) if stamps else None
        if found is None:
            table.missing.append(f"{name}: {kind} has {len(stamps)} frames with a true pose, too few")
            continue
        scale = found.scale if found.with_scale and np.isfinite(found.scale) else 1.0
        metres, degrees = step_errors(estimate, truth, scale)
        t_rel, r_rel = kitti_errors(estimate, truth, scale)
        milliseconds = 1e3 * sum(float(np.median(each)) for each in report.latencies.values())
        table.rows.append([*head, str(parts), kind, "with scale" if found.with_scale else "without", f"{found.ate:.4f}",
                           f"{metres:.4f}", f"{degrees:.3f}", _or_dash(t_rel), _or_dash(r_rel),
                           f"{milliseconds:.0f}"])  # fmt: skip


def _head(name: str, source: Source, front_end: FrontEnd, report: Report, located: int) -> list[str]:
    size = (source.camera.width, source.camera.height) if source.camera is not None else None
    seen = front_end.pairs.network_size(*size) if size is not None else None
    return [name, front_end.config.scale.mode, _size(size), _size(seen), f"{located} of {report.frames}"]


def _size(size: tuple[int, int] | None) -> str:
    return "-" if size is None else f"{size[0]}x{size[1]}"


def _or_dash(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


# Pairs


PAIR_COLUMNS = ("benchmark", "network", "pairs", "metric", "matches", "ms a pair")


def evaluate_pairs(
    pairs: PairSet, pair_matcher: PairMatcher, reader: FrameReader, output: Path, progress: bool = True
) -> Evaluation:
    """Match every pair, and compute the AUC of LoFTR's evaluation; writes `pairs.csv` with each pair's error.

    Args:
        pairs: the benchmark.
        pair_matcher: with settings under which images are not shrunk, see `unshrunk`.
        reader: makes frames.
        output: an existing folder.
        progress: show a bar.
    """
    from tqdm import tqdm

    is_homography = bool(pairs.pairs) and pairs.pairs[0].camera0 is None
    table = Evaluation(f"{pairs.name}, {'corner' if is_homography else 'pose'} errors", PAIR_COLUMNS)
    errors, counts, seconds, sizes = list[float](), list[int](), list[float](), set[str]()
    with (output / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["pair", "matches", "error_px" if is_homography else "error_deg"])
        try:
            for pair in tqdm(pairs.pairs, unit="pair", disable=not progress):
                try:
                    (frame0, scale0), (frame1, scale1) = (
                        _read(image, pair, pairs.side, reader) for image in (pair.image0, pair.image1)
                    )
                    begun = time.perf_counter()
                    found = pair_matcher.match_pair(frame0, frame1)
                except (FrameRefusedError, SourceError) as error:
                    table.missing.append(f"{pair.name}: {error}")
                    continue
                seconds.append(time.perf_counter() - begun)
                sizes |= {_size(pair_matcher.network_size(*frame.size)) for frame in (frame0, frame1)}
                best = np.argsort(-found.confidence, kind="stable")
                points0, points1 = (
                    each[best].astype(np.float64) for each in (found.keyframe_points, found.current_points)
                )
                if pair.camera0 is not None:
                    errors.append(_pose_error(pair, points0, points1, scale0, scale1))
                else:
                    truth = scale1 @ pair.truth @ np.linalg.inv(scale0)
                    errors.append(_corner_error(points0, points1, truth, frame0.size))
                counts.append(len(found))
                rows.writerow([pair.name, len(found), f"{errors[-1]:.4f}"])
        except KeyboardInterrupt:
            table.interrupted = True
            table.missing.append(f"stopped by Ctrl-C after {len(errors)} of {len(pairs.pairs)} pairs")
    limits, unit = (_HOMOGRAPHY_LIMITS, "px") if is_homography else (_POSE_LIMITS, "deg")
    areas = "/".join(f"{area:.1f}" for area in pose_auc(errors, limits))
    at = "/".join(f"{limit:g}" for limit in limits)
    shown = sorted(sizes)[:2]
    table.rows.append([pairs.name, ", ".join(shown) + (" ..." if len(sizes) > 2 else ""),
                       f"{len(errors)} of {len(pairs.pairs)}", f"AUC@{at} {unit}: {areas}",
                       f"{np.median(counts) if counts else 0:.0f}",
                       f"{1e3 * np.median(seconds) if seconds else 0:.0f}"])  # fmt: skip
    return table


def unshrunk(config: FrontEndConfig) -> FrontEndConfig:
    """Settings with which the network sees images at the size that the evaluation gives them."""
    return replace(config, image=replace(config.image, max_side=8192))


def _read(file: Path, pair: ImagePair, side: int, reader: FrameReader) -> tuple[Any, Array]:
    """A frame of an image as the evaluation resizes it, and (3, 3) from pixels of the benchmark's to its pixels."""
    source: SourceFrame = still(file)
    frame = reader.read(source)
    width, height = frame.size
    of = pair.size or (width, height)  # that the camera is of
    reference = min(of) if side < 0 else max(of)
    factor = min(1.0, abs(side) / reference) if side > 0 else abs(side) / reference if side else 1.0
    new = max(1, round(of[0] * factor)), max(1, round(of[1] * factor))
    scale = np.eye(3)
    for axis in (0, 1):
        scale[axis, axis] = new[axis] / of[axis]
        scale[axis, 2] = (scale[axis, axis] - 1) / 2  # (0, 0) is the centre of a pixel
    if new != (width, height):
        image = cv2.resize(frame.image, new, interpolation=cv2.INTER_AREA if new[0] < width else cv2.INTER_LINEAR)
        frame = replace(frame, image=np.asarray(image, np.uint8))
    return frame, scale


def _pose_error(pair: ImagePair, points0: Array, points1: Array, scale0: Array, scale1: Array) -> float:
    """Degrees, the larger of rotation and direction, whose sign does not count, as in the paper; infinite without."""
    assert pair.camera0 is not None
    assert pair.camera1 is not None
    if len(points0) < 5:
        return float("inf")
    cameras = [scale @ camera for scale, camera in ((scale0, pair.camera0), (scale1, pair.camera1))]
    rays = [
        (points - camera[:2, 2]) / [camera[0, 0], camera[1, 1]]
        for points, camera in zip((points0, points1), cameras, strict=True)
    ]
    focal = np.mean([[camera[0, 0], camera[1, 1]] for camera in cameras])
    essential, inliers = cv2.findEssentialMat(
        rays[0], rays[1], np.eye(3), cv2.RANSAC, _POSE_CONFIDENCE, _POSE_THRESHOLD / focal
    )
    if essential is None or essential.shape[1] != 3:
        return float("inf")
    best, error = 0, float("inf")
    for each in np.split(essential, len(essential) // 3):
        count, rotation, translation, _ = cv2.recoverPose(each, rays[0], rays[1], np.eye(3), mask=inliers.copy())
        if count > best:
            best = count
            direction = translation_direction_error(translation.ravel(), pair.truth[:3, 3])
            error = max(rotation_error(rotation, pair.truth[:3, :3]), min(direction, 180 - direction))
    return error


def _corner_error(points0: Array, points1: Array, truth: Array, size: tuple[int, int]) -> float:
    """Mean distance in pixels of image 0's corners, as the found and the true homography move them."""
    some = slice(0, _HOMOGRAPHY_MATCHES)
    if len(points0) < 4:
        return float("inf")
    found: Any = cv2.findHomography(points0[some], points1[some], cv2.RANSAC, _HOMOGRAPHY_THRESHOLD)[0]
    if found is None:
        return float("inf")
    width, height = size
    corners = np.array([[[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]]], np.float64)
    moved, true = (cv2.perspectiveTransform(corners, each) for each in (found, truth))
    return float(np.linalg.norm(moved - true, axis=2).mean())
