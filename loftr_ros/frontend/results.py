"""Results of the front end for a frame."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.budget import Effort
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame, Keyframe, KeyframeEvent
from loftr_ros.frontend.odometry import Location, SegmentJoin
from loftr_ros.frontend.quality import FrameQuality
from loftr_ros.frontend.quick import FrameMatch
from loftr_ros.frontend.recovery import TrackingState
from loftr_ros.frontend.tracks import TrackLinks, beside
from loftr_ros.geometry.two_view import PoseStatus, RelativePose

# In cells: how far a neighbour's match may be from where all matches expect it, and the largest error of a landmark.
_LARGEST_BEND, _LARGEST_ERROR = 0.5, 0.125
# A neighbour's inverse depth may differ by this part, and by this many standard deviations.
_LARGEST_SLOPE, _NOISE = 0.3, 3.0


@dataclass(frozen=True)
class Correspondences:
    """Matches of the current frame with one keyframe, in raw pixels.

    Attributes:
        track_id: (N,) uint32, the keyframe's cell; with the keyframe's id it names a scene point.
        keyframe_points, current_points: (N, 2) float32 pixels (u, v).
        confidence: (N,) float32 in [0, 1], the matcher's.
        std: (N,) float32 pixels, standard deviation of `current_points` along one axis estimated by the network's fine
            stage; NaN if the network has none.
    """

    track_id: NDArray[np.uint32]
    keyframe_points: NDArray[np.float32]
    current_points: NDArray[np.float32]
    confidence: NDArray[np.float32]
    std: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.track_id)

    @classmethod
    def none(cls) -> Correspondences:
        """No match."""
        empty, points = np.zeros(0, np.float32), np.zeros((0, 2), np.float32)
        return cls(np.zeros(0, np.uint32), points, points, empty, empty)

    def __getitem__(self, keep: NDArray[np.bool_]) -> Correspondences:
        """Those selected by an (N,) bool."""
        return Correspondences(
            self.track_id[keep],
            self.keyframe_points[keep],
            self.current_points[keep],
            self.confidence[keep],
            self.std[keep],
        )


@dataclass(frozen=True, eq=False)
class MatchedRays:
    """Rays of the matches of two calibrated images.

    Attributes:
        keyframe, current: (N, 2) float64 normalised coordinates (x / z, y / z); NaN where a pixel has no ray.
        focal_length: pixels, of the current image.
        view_area: area of the normalised plane covered by the keyframe's cells; None if not needed.
    """

    keyframe: NDArray[np.float64]
    current: NDArray[np.float64]
    focal_length: float
    view_area: float | None = None


@dataclass(frozen=True, eq=False)
class SeenLandmarks:
    """Where the current image shows the scene points of the matched cells, which may be older keyframes' points.

    Attributes:
        points: (N, 2) float32 pixels; NaN where that is not known.
        std: (N,) float32 pixels, standard deviation along one axis, as seen from the landmark's first keyframe; NaN if
            the network gives none.
    """

    points: NDArray[np.float32]
    std: NDArray[np.float32]

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) bool."""
        return np.isfinite(self.points[:, 0])


@dataclass(frozen=True)
class KeyframeMatch:
    """The current frame matched with one keyframe.

    Attributes:
        keyframe: the keyframe.
        correspondences: matches with it.
        pose: of the current camera relative to it.
        moving: (N,) bool, matches on things that move against the scene; None if that was not looked for.
    """

    keyframe: Keyframe
    correspondences: Correspondences
    pose: RelativePose
    moving: NDArray[np.bool_] | None = None

    @property
    def landmark(self) -> NDArray[np.uint64]:
        """(N,) persistent names of the matches' scene points, which outlive the keyframe (see `TrackLinks`)."""
        return self.keyframe.landmarks[self.correspondences.track_id]

    @cached_property
    def seen(self) -> SeenLandmarks:
        """Where the current image shows the landmarks: the matches, or beside them by `Keyframe.offsets`."""
        found, encoded = self.correspondences, self.keyframe.encoded
        points, std = found.current_points.copy(), found.std.copy()
        taken = np.flatnonzero(self.pose.inliers & self._taken)
        if len(taken):
            cell, cells = found.track_id, len(encoded.cell_points)
            shown = np.full((cells, 2), np.nan)
            shown[cell[self.pose.inliers]] = points[self.pose.inliers]
            offset, side = self.keyframe.offsets[cell[taken]], encoded.cell_size * max(encoded.scale)
            there, error = beside(
                cell[taken], offset, encoded.cell_points, shown, encoded.features.grid, side * _LARGEST_BEND
            )
            there[error > side * _LARGEST_ERROR] = np.nan
            points[taken], own = there, self.keyframe.offset_std[cell[taken]]
            std[taken] = np.sqrt(std[taken] ** 2 + error**2 + own**2)
        return SeenLandmarks(points, std)

    @property
    def keyframe_rays(self) -> NDArray[np.float64]:
        """(N, 2) rays (x / z, y / z) of the landmarks in the keyframe; NaN where there is none, and uncalibrated."""
        cell, encoded, camera = self.correspondences.track_id, self.keyframe.encoded, self.keyframe.frame.camera
        if encoded.cell_rays is None or camera is None:
            return np.full((len(cell), 2), np.nan)
        rays, taken = encoded.cell_rays[cell], cell[self._taken]
        if len(taken):
            rays[self._taken] = camera.unproject(encoded.cell_points[taken] + self.keyframe.offsets[taken])
        return rays

    def points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The matches' landmarks in the keyframe's optical frame, in the unit of its depths.

        Returns:
            (N, 3) points and (N,) their standard deviations along the keyframe's rays; see `CellDepth.points`.
        """
        rays, depth, cell = self.keyframe_rays, self.keyframe.depth, self.correspondences.track_id
        if depth is None:
            return np.full((len(rays), 3), np.nan), np.full(len(rays), np.nan)
        taken = np.flatnonzero(self._taken & depth.known[cell])
        if len(taken):
            encoded, own = self.keyframe.encoded, cell[taken]
            gate = _LARGEST_SLOPE * np.abs(depth.inverse[own]) + _NOISE * np.sqrt(depth.variance[own])
            there, error = beside(
                own,
                self.keyframe.offsets[own],
                encoded.cell_points,
                depth.inverse[:, None],
                encoded.features.grid,
                gate,
            )
            inverse, variance = depth.inverse.copy(), depth.variance.copy()
            inverse[own], variance[own] = there[:, 0], variance[own] + error**2
            depth = replace(depth, inverse=inverse, variance=variance)
        return depth.points(cell, rays)

    @property
    def _taken(self) -> NDArray[np.bool_]:
        """(N,) bool, matches whose cells have taken over an older keyframe's point."""
        return np.asarray(self.keyframe.offsets[self.correspondences.track_id].any(axis=1))


@dataclass(frozen=True, eq=False)
class Orientation:
    """The camera's orientation in the trajectory while its position is unknown.

    Attributes:
        rotation: (3, 3) R_world_current.
        covariance: (3, 3) of its rotation vector, about the axes of the world, rad^2.
        segment: of the trajectory.
    """

    rotation: NDArray[np.float64]
    covariance: NDArray[np.float64]
    segment: int


@dataclass(frozen=True)
class FrontEndResult:
    """Result of `FrontEnd.process`.

    Attributes:
        frame: the input.
        matches: one entry per matched keyframe, the reference first; empty for the first frame.
        events: keyframes added and removed, including those of an earlier frame that failed halfway. An earlier frame
            may have become a keyframe: the one before, if this one is not located without it; or one that the network
            matched while optical flow went on.
        latencies: seconds spent in each of STAGES.
        location: of the camera in the trajectory; None if unknown.
        links: from the cells of the previous reference keyframe to those of each new keyframe.
        effort: of the next frame, chosen to stay inside `max_latency_ms`.
        state: of tracking.
        quality: verdict on the image alone; a useless one is not matched.
        joined: two segments of the trajectory in which this frame was located; None for most frames.
        orientation: of the camera by a gyroscope since the last location, if `location` is None; else None.
        frame_match: how the frame was matched, and why in full if it was.
        encoded: the frame with its features; None if the network was not needed.
    """

    frame: Frame
    matches: tuple[KeyframeMatch, ...]
    events: tuple[KeyframeEvent, ...]
    latencies: dict[str, float] = field(default_factory=dict)
    location: Location | None = None
    links: tuple[TrackLinks, ...] = ()
    effort: Effort = field(default_factory=lambda: Effort(1))
    state: TrackingState = TrackingState.TRACKING
    quality: FrameQuality = FrameQuality.USABLE
    joined: SegmentJoin | None = None
    orientation: Orientation | None = None
    frame_match: FrameMatch = FrameMatch.UNEXPECTED
    encoded: EncodedFrame | None = None

    @property
    def is_unmatched(self) -> bool:
        """Whether there were keyframes, and each had too few matches."""
        return bool(self.matches) and all(m.pose.status == PoseStatus.TOO_FEW_MATCHES for m in self.matches)

    @property
    def place(self) -> Location | None:
        """Where the frame's camera is in the trajectory, which it may begin; None where that is not known.

        Without a calibration it never is.
        """
        if self.frame.camera is None:
            return None
        # Nothing leads to the frame that begins a trajectory: its place is that of the keyframe that it became.
        first = (event.keyframe for event in self.events if event.added and event.keyframe.frame is self.frame)
        return self.location or next((keyframe.location for keyframe in first), None)

    @property
    def is_located(self) -> bool:
        """Whether the frame's location in the trajectory is known, or it begins one."""
        return self.location is not None or any(e.added and e.keyframe.frame is self.frame for e in self.events)

    @property
    def is_useless(self) -> bool:
        """Whether the image has nothing to match."""
        return self.quality != FrameQuality.USABLE
