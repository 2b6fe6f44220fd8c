"""The demo's report: JSON, text, and two pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from loftr_ros.evaluation.drawing import draw_matches
from loftr_ros.evaluation.records import MIN_BASELINE, Located, accuracy, to_previous, to_reference
from loftr_ros.evaluation.trajectory import Trajectory
from loftr_ros.evaluation.trajectory_plot import plot_trajectory
from loftr_ros.frontend.matcher_settings import RANDOM
from loftr_ros.geometry.two_view import PoseStatus
from loftr_ros.tools.demo.sequence import Sequence, Truth
from loftr_ros.wording import plain

_FEW = 5  # minimum number of pairs for a median


def summary(sequence: Sequence, played_hz: float, published: int, recorded: Any, truth: Truth) -> dict[str, Any]:
    """All measurements of the demo, as for JSON except for NaN.

    Args:
        sequence: the played frames.
        played_hz: playback rate in frames a second.
        published: number of published frames.
        recorded: a `Recorded`.
        truth: true poses by stamp, if known.
    """
    status = recorded.status
    located = to_reference(recorded.located)
    statuses = Counter(pose.status.name for pose in located)
    added = Counter(change.reason for change in recorded.keyframes if change.added)
    removed = Counter(change.reason for change in recorded.keyframes if not change.added)
    return {
        "source": {
            "name": sequence.name,
            "kind": sequence.kind,
            "width": sequence.size[0],
            "height": sequence.size[1],
            "rate_hz": sequence.rate,
            "played_hz": played_hz,
            "calibrated": sequence.calibrated,
            "true_poses": len(truth.poses),
        },
        "node": {"network": status.network, "device": status.device, "precision": status.precision},
        "frames": {
            "published": published,
            "received": status.frames_received,
            "processed": status.frames_processed,
            "dropped": status.frames_dropped,
            "failed": status.frames_failed,
            "unpaired": status.frames_unpaired,
            "messages_lost": status.messages_lost,
            "pending": status.frames_pending,
            "errors": dict(zip(status.error_kinds, map(int, status.error_counts), strict=True)),
            "last_error": status.last_error,
        },
        "latency_ms": {
            stage: {"median": 1e3 * median, "p99": 1e3 * p99}
            for stage, median, p99 in zip(status.stages, status.latency_median, status.latency_p99, strict=True)
        },
        "processed_hz": status.frames_processed * played_hz / max(published, 1),
        "keyframes": {"added": dict(added), "removed": dict(removed)},
        "places": {
            "archived": status.archived_keyframes,
            "megabytes": status.archive_bytes / 1e6,
            "lost": status.keyframes_lost,
            "searched": status.places_searched,
            "skipped": status.places_skipped,
            "loops": len(recorded.loops),
            "accuracy": accuracy(recorded.loops, truth.poses),
        },
        "poses": {
            "frames": len(located),
            "status": dict(statuses),
            "median_matches": _median([pose.num_matches for pose in located]),
            "median_inliers": _median([pose.num_inliers for pose in located]),
            "median_parallax_px": _median([pose.parallax for pose in located]),
        },
        "accuracy": {
            "to_reference": accuracy(located, truth.poses),
            "to_previous": accuracy(to_previous(recorded.located, truth.stamps), truth.poses),
        },
    }


def without_nan(value: Any) -> Any:
    """The same with plain numbers, and None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def lines(report: dict[str, Any]) -> list[str]:
    """The report as lines of text."""
    source, node, frames, poses = (report[name] for name in ("source", "node", "frames", "poses"))
    text = [
        f"{source['name']} ({source['kind']}), {source['width']}x{source['height']}, {source['played_hz']:g} Hz; "
        f"network {node['network']} on {node['device']} in {node['precision']}",
        "",
        f"frames     {frames['published']} published, {frames['received']} received, {frames['processed']} processed "
        f"({report['processed_hz']:.1f} a second), {frames['dropped']} dropped for newer, {frames['unpaired']} without "
        f"a partner, {frames['failed']} failed",
    ]
    text += _losses(frames)
    if frames["dropped"] > frames["processed"] > 0:
        text.append(
            f"           the source is too fast: use `--hz {plain(_sustainable_hz(report), 1)}` to process every frame"
        )
    if frames["last_error"]:
        text.append(f"           last error: {frames['last_error'].splitlines()[0]}")
    text.append(f"keyframes  {_counted(report['keyframes']['added'])}")
    text.append(f"poses      {_counted(poses['status'])}")
    if poses["frames"]:
        text.append(
            f"matches    {poses['median_matches']:.0f} a frame, {poses['median_inliers']:.0f} of them inliers"
            + (f", parallax {parallax:.1f} px" if np.isfinite(parallax := poses["median_parallax_px"]) else "")
            + " (medians, with the reference keyframe)"
        )
    text += _without_poses(report)
    text += _places_lines(report["places"])
    text += ["", "latency          median       p99"]
    text += [
        f"  {stage:<12}{value['median']:>8.1f} ms{value['p99']:>7.1f} ms"
        for stage, value in report["latency_ms"].items()
    ]
    return [*text, "", *_accuracy_lines(report)]


def _losses(frames: dict[str, Any]) -> list[str]:
    """Lines on frames lost in transport; a lower rate would not help."""
    missing = max(frames["published"] - frames["received"], 0)
    text = []
    if missing or frames["unpaired"]:
        text.append(
            f"           {missing} images did not reach the node, {frames['unpaired']} came without their partner: "
            "lost in transport, not for lack of time"
        )
    if frames["messages_lost"]:
        text.append(
            f"           the middleware reports {frames['messages_lost']} lost messages: its buffers are too small for "
            "images, see docs/transport.md"
        )
    return text


def _sustainable_hz(report: dict[str, Any]) -> float:
    """Frames a second that the node can process, by its median latencies and with a margin."""
    busy = sum(value["median"] for stage, value in report["latency_ms"].items() if stage not in ("wait", "total"))
    return 800.0 / busy if busy > 0 else 1.0


def _without_poses(report: dict[str, Any]) -> list[str]:
    """Lines for the case that no frame got a pose."""
    if report["node"].get("weights") == RANDOM:
        return ["           The weights are random: matches and poses are meaningless."]
    known = [name for name in report["poses"]["status"] if PoseStatus[name].has_rotation]
    if known or not report["poses"]["frames"] or not report["source"]["calibrated"]:
        return []
    return ["           No frame got a pose: do the weights fit the scene, and do the frames overlap?"]


def _places_lines(places: dict[str, Any]) -> list[str]:
    """Lines on the archive; none without an archive."""
    if not places["archived"]:
        return []
    text = [
        f"places     {places['archived']} keyframes archived in {places['megabytes']:.1f} MB, {places['searched']} "
        f"searched for ({places['skipped']} skipped for newer ones), {places['loops']} loops"
    ]
    if places["lost"]:
        text.append(f"           {places['lost']} keyframes could not be archived: see the last error, and node.log")
    found = places["accuracy"]
    if found and found["rotation_deg"]:
        known = found["direction_deg"]
        direction = f", direction {known['median']:.2f}° median, {known['worst']:.2f}° at most" if known else ""
        text.append(
            f"           loops against the truth: rotation {found['rotation_deg']['median']:.2f}° median, "
            f"{found['rotation_deg']['worst']:.2f}° at most{direction}"
        )
    return text


def _accuracy_lines(report: dict[str, Any]) -> list[str]:
    measured = {
        name: report["accuracy"][key]
        for key, name in (("to_reference", "reference keyframe"), ("to_previous", "the frame before"))
        if report["accuracy"][key] and report["accuracy"][key]["pairs"] >= _FEW
    }
    if not report["source"]["calibrated"]:
        return ["The source has no calibration, so there are matches but no poses."]
    if not measured and report["source"]["true_poses"]:
        return [f"Fewer than {_FEW} frames were matched: too few to compare with the true poses."]
    if not measured:
        return ["There are no true poses to compare with."]
    text = ["against the truth     pairs   rotation median, p90   direction median, p90   AUC @ 5° / 10° / 20°"]
    for name, value in measured.items():
        area = " / ".join(f"{value['auc'][limit]:.1f}" for limit in ("5", "10", "20"))
        text.append(
            f"  {name:<20}{value['pairs']:>5}   {_degrees(value['rotation_deg'])}   {_degrees(value['direction_deg'])}"
            f"    {area}"
        )
    left_out = max(value["tiny_baseline"] for value in measured.values())
    silent = measured[next(iter(measured))]["without_direction"]
    if left_out:
        text.append(
            f"  {left_out} pairs are left out of direction and AUC: their true baseline is below {MIN_BASELINE:.0%} of "
            f"the median step between frames ({1e3 * next(iter(measured.values()))['min_baseline']:.1f} mm)."
        )
    if silent:
        text.append(f"  {silent} poses have no direction, as the node reported; the AUC counts them as failed.")
    return text


def _degrees(spread: dict[str, float] | None) -> str:
    return f"{spread['median']:>10.3f}°, {spread['p90']:.3f}°" if spread else f"{'none':>20}"


def _counted(counts: dict[str, int]) -> str:
    """For example `12: 11 HIGH_PARALLAX, 1 FIRST`."""
    each = ", ".join(f"{count} {name}" for name, count in Counter(counts).most_common())
    return f"{sum(counts.values())}: {each}" if counts else "none"


def _median(values: list[Any]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def picture_stamps(found: Any) -> set[int]:
    """Stamps in nanoseconds of the two images in the picture of a `Correspondences` message."""
    return set() if found is None else {_nanoseconds(found.keyframe_stamp), _nanoseconds(found.header.stamp)}


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


def draw_picture(path: Path, found: Any, truth: Truth, name: str) -> bool:
    """Write a picture of a keyframe's matches with a frame; returns whether there was anything to draw.

    Args:
        path: file to write.
        found: a `Correspondences` message, or None.
        truth: has the two images.
        name: of the source.
    """
    if found is None:
        return False
    keyframe, current = (truth.images.get(_nanoseconds(s)) for s in (found.keyframe_stamp, found.header.stamp))
    if keyframe is None or current is None:
        return False
    inlier = np.asarray(found.inlier, dtype=np.bool_)
    seconds = (_nanoseconds(found.header.stamp) - _nanoseconds(found.keyframe_stamp)) * 1e-9
    picture = draw_matches(
        keyframe,
        current,
        np.asarray(found.keyframe_points).reshape(-1, 2),
        np.asarray(found.current_points).reshape(-1, 2),
        np.asarray(found.confidence),
        inlier,
        f"{name}: keyframe {found.keyframe_id} and {seconds:.2f} s later, {inlier.sum()} of {len(inlier)} are inliers",
    )
    return bool(cv2.imwrite(str(path), picture))


def draw_trajectory(path: Path, recorded: Any, truth: Truth, name: str) -> bool:
    """Write a picture of the chained poses; returns whether the camera moved."""
    stamps, poses = chained(recorded.located, recorded.keyframes, truth)
    keyframes = [change.stamp_ns for change in recorded.keyframes if change.added]
    true_poses = None
    if truth.poses:
        known = np.array([int(stamp) in truth.poses for stamp in stamps], dtype=np.bool_)
        stamps, poses = stamps[known], poses[known]
        true_poses = np.array([truth.poses[int(stamp)] for stamp in stamps])
    if len(stamps) < 2 or not any(pose.status.has_direction for pose in recorded.located):
        return False
    metric = all(pose.metric for pose in recorded.located if pose.status.has_direction)
    if metric:
        scale = "in metres, as measured by the node"
    elif truth.poses:
        scale = "rotations and directions are estimated, the length of each step is the truth's"
    else:
        scale = "scale unknown: each step from a keyframe has length 1"
    indices = [int(index) for index in np.flatnonzero(np.isin(stamps, keyframes))]
    plot_trajectory(path, poses, true_poses, indices, f"{name}\n{scale}", metric)
    return True


def chained(located: list[Located], keyframes: list[Any], truth: Truth) -> tuple[Any, Any]:
    """Stamps (N,) and poses (N, 4, 4) of all located frames, chained over the keyframes."""
    trajectory = Trajectory(truth.poses or None)
    added = {change.stamp_ns for change in keyframes if change.added}
    by_stamp: dict[int, list[Located]] = {stamp: [] for stamp in added}
    for pose in located:
        by_stamp.setdefault(pose.stamp_ns, []).append(pose)
    for stamp in sorted(by_stamp):
        for pose in by_stamp[stamp]:
            trajectory.add_pose(pose.keyframe_stamp_ns, stamp, pose.pose, pose.status.has_rotation, pose.metric)
        if stamp in added:
            trajectory.add_keyframe(stamp)
    return trajectory.poses()
