"""Solves the graph of `loftr_ros loops` with the back end."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.measurements import KeyframeKey
from loftr_ros.backend.storage import write_g2o
from loftr_ros.evaluation.trajectory_errors import trajectory_errors
from loftr_ros.extras import why_no_plots
from loftr_ros.places.pose_graph import pose_vector
from loftr_ros.tools.loop_report import Report
from loftr_ros.tools.optimise import back_end_of, plot_optimised


def write_optimised(folder: Path, report: Report, config: BackEndConfig | None = None) -> list[str]:
    """Solve a graph and write `optimised.g2o`, `optimised.csv` and `optimised.png`.

    Args:
        folder: an existing folder.
        report: keyframes and loops.
        config: settings of the back end; None for the defaults.

    Returns:
        The results as lines of text.

    Raises:
        BackEndError: GTSAM cannot solve it, or a file cannot be written.
    """
    back_end = back_end_of(report.keyframes, report.loops, config)
    if not back_end.graph.vertices:
        return ["back end: no keyframe has a pose, there is nothing to optimise"]
    back_end.optimise()
    write_g2o(back_end, folder / "optimised.g2o")
    found = list(back_end.places())
    with (folder / "optimised.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["vertex", "robot", "keyframe_id", "stamp_ns", "part", "x", "y", "z", "qx", "qy", "qz", "qw",
                        "scale", "metres"])  # fmt: skip
        for vertex, place in found:
            numbers = [f"{value:.9g}" for value in (*pose_vector(place.camera.pose), place.camera.scale)]
            table.writerow([vertex.number, *vertex.key, vertex.stamp_ns, place.group, *numbers, int(place.is_metric)])
    largest, _ = Counter(place.group for _, place in found).most_common(1)[0]
    metric = next(place.is_metric for _, place in found if place.group == largest)
    truth = {KeyframeKey(*name): pose for name, pose in report.truth.items()}
    if not why_no_plots():  # the note on loops.png says why
        plot_optimised(folder / "optimised.png", back_end, largest, truth, metric)
    counts = back_end.counts
    text = [
        f"back end: {counts.keyframes} keyframes in {counts.groups} parts, {counts.believed} of {counts.loops} loops "
        "believed" + (f", {counts.broken} links rejected" if counts.broken else "")
    ]
    known = [(truth[vertex.key], place) for vertex, place in found if place.group == largest and vertex.key in truth]
    poses = np.array([place.camera.pose for _, place in known]).reshape(-1, 4, 4)
    true = np.array([pose for pose, _ in known]).reshape(-1, 4, 4)
    errors = trajectory_errors(poses, true, not metric)
    if errors is not None:
        aligned = "with" if errors.with_scale else "without"
        text.append(
            f"  against the truth, largest part: ATE {errors.ate:.3f} {'m' if report.truth_is_metric else ''} RMSE of "
            f"{errors.poses} keyframes, aligned {aligned} scale"
        )
    return text
