"""The trajectory of a run: the location of each frame by the front end's odometry, as the node publishes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.trajectory import tum_lines
from loftr_ros.evaluation.trajectory_errors import TrajectoryErrors, trajectory_errors
from loftr_ros.frontend.odometry import Location
from loftr_ros.frontend.results import FrontEndResult

Array = NDArray[np.float64]


@dataclass
class RunTrajectory:
    """Poses of the located frames, in order of arrival.

    Attributes:
        stamps: nanoseconds.
        places: of the cameras.
        breaks: numbers of the frames that begin a segment; the first is 0.
    """

    stamps: list[int] = field(default_factory=list)
    places: list[Location] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)

    def add(self, result: FrontEndResult) -> None:
        """Add the result of the next frame."""
        found = result.place
        if found is None:
            return
        if not self.places or self.places[-1].segment != found.segment:
            self.breaks.append(len(self.places))
        self.stamps.append(result.frame.stamp_ns)
        self.places.append(found)

    def __len__(self) -> int:
        return len(self.stamps)

    @property
    def poses(self) -> Array:
        """(N, 4, 4) T_world_camera."""
        return np.array([each.pose for each in self.places], np.float64).reshape(-1, 4, 4)

    @property
    def is_metric(self) -> bool:
        """Whether lengths are in metres."""
        return bool(self.places) and all(each.is_metric for each in self.places)

    @property
    def segments(self) -> list[slice]:
        """The frames of each segment."""
        return [slice(a, b) for a, b in zip(self.breaks, [*self.breaks[1:], len(self.places)], strict=True)]

    def path_length(self) -> float:
        """Length of all segments together, in metres or the trajectory's own unit."""
        poses = self.poses
        return sum(float(np.linalg.norm(np.diff(poses[part, :3, 3], axis=0), axis=1).sum()) for part in self.segments)

    def write(self, folder: Path) -> list[str]:
        """Write `trajectory.tum`, and `trajectory_1.tum` and so on for the segments if there are several.

        In the first file a new segment continues from the last known place, as in the node's odometry, below a comment
        about that.

        Returns:
            The names of the files.
        """
        for old in (folder / "trajectory.tum", *folder.glob("trajectory_[0-9]*.tum")):
            old.unlink(missing_ok=True)
        if not self.places:
            return []
        lines = tum_lines(np.array(self.stamps, np.int64), self.poses)
        whole: list[str] = []
        names = ["trajectory.tum"]
        for number, part in enumerate(self.segments, start=1):
            if number > 1:
                whole.append("# broken: no pose links the line above to the one below, which only continues from there")
            whole += lines[part]
            if len(self.segments) > 1:
                names.append(f"trajectory_{number}.tum")
                (folder / names[-1]).write_text("\n".join(lines[part]) + "\n")
        (folder / names[0]).write_text("\n".join(whole) + "\n")
        return names

    def errors(self, truth: Mapping[int, Array]) -> TrajectoryErrors | None:
        """Errors of the segment with the most frames of known truth; None if there are too few of them.

        Args:
            truth: (4, 4) T_world_camera in metres by stamp.
        """
        poses = self.poses
        known = [[k for k in range(len(self))[part] if self.stamps[k] in truth] for part in self.segments]
        frames = max(known, key=len, default=[])
        true_poses = np.array([truth[self.stamps[k]] for k in frames]).reshape(-1, 4, 4)
        return trajectory_errors(poses[frames], true_poses, not self.is_metric)

    def lines(self, frames: int, truth: Mapping[int, Array], truth_is_metric: bool) -> list[str]:
        """A summary for people.

        Args:
            frames: number of processed frames.
            truth: as in `errors`.
            truth_is_metric: whether the truth is in metres; otherwise no length is given.
        """
        if not self.places:
            return ["trajectory: none, no frame was located (poses need a calibration)"]
        unit = "m" if self.is_metric else "in a unit of its own"
        text = [f"trajectory: {len(self)} of {frames} frames located, a path of {self.path_length():.3f} {unit}"]
        if len(self.segments) > 1:
            text.append(
                f"  broken into {len(self.segments)} segments with unknown relative poses: "
                "trajectory_1.tum and so on contain them separately"
            )
        errors = self.errors(truth)
        if errors is not None:
            metres = "m" if truth_is_metric else "(the truth's unit)"
            of = f" ({errors.poses} frames of the longest segment)" if len(self.segments) > 1 else ""
            aligned = "with scale" if errors.with_scale else "without scale"
            text.append(
                f"trajectory against the truth{of}: ATE {errors.ate:.3f} {metres} RMSE, aligned {aligned}; drift "
                f"{errors.drift:.2f} % of the path; scale {errors.scale:.4f}"
                + (" (unknown to a single camera)" if errors.with_scale else " would fit best")
            )
        return text
