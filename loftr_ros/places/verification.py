"""Verification that two images show one place: by matching them and fitting one geometry to the matches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame, coverage
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.relative_pose import (
    matched_rays,
    pose_by_depth,
    pose_by_two_views,
    pose_without_calibration,
    why_no_length,
)
from loftr_ros.frontend.results import Correspondences
from loftr_ros.geometry.two_view import (
    PoseStatus,
    RelativePose,
    ScaleReason,
)
from loftr_ros.places.config import LoopConfig
from loftr_ros.places.keyframe import ArchivedKeyframe, KeyframeName

# Encoded archived images that are cached, because the next image usually needs the same ones.
_KEPT = 8
# Part of the two-view inliers that the depths must explain as well.
_AGREEING = 0.7

Poses = tuple[RelativePose, RelativePose | None]
Run = Callable[[Callable[[], Poses]], Poses]


def _at_once(work: Callable[[], Poses]) -> Poses:
    return work()


@dataclass(frozen=True, eq=False)
class Verification:
    """Result of matching an archived keyframe with an image.

    Attributes:
        keyframe: the archived one.
        correspondences: matches; image 0 is the keyframe's.
        pose: T_keyframe_current, in metres if `scale_known`, else with a unit translation.
        own_unit: the same in the unit of the keyframe's trajectory; None if lengths are in metres or unknown.
        coverage: part of the image covered by inliers, 0 to 1; the smaller one of the two images.
    """

    keyframe: ArchivedKeyframe
    correspondences: Correspondences
    pose: RelativePose
    own_unit: RelativePose | None
    coverage: float

    @property
    def num_inliers(self) -> int:
        """Number of matches that the pose explains."""
        return int(self.pose.inliers.sum())

    @property
    def inlier_ratio(self) -> float:
        """Part of the matches that the pose explains; 0 without matches."""
        return self.num_inliers / len(self.correspondences) if len(self.correspondences) else 0.0

    @property
    def score(self) -> float:
        """Certainty of the place, 0 to 1: how much of the images agrees, and how little disagrees."""
        return self.coverage * self.inlier_ratio

    def is_believed(self, config: LoopConfig) -> bool:
        """Whether the match is strong enough for one place."""
        least = config.min_planar_score if self.pose.status == PoseStatus.PLANAR else config.min_score
        comparable = self.pose.has_rotation or self.pose.status == PoseStatus.NO_CALIBRATION
        return (
            comparable
            and self.num_inliers >= config.min_inliers
            and self.inlier_ratio >= config.min_inlier_ratio
            and self.coverage >= config.min_coverage
            and self.score >= least
        )


class Verifier:
    """Matches images with archived keyframes, whose images it encodes again. Not thread-safe."""

    def __init__(self, pairs: PairMatcher, geometry: Run = _at_once) -> None:
        """Create it without cached images.

        Args:
            pairs: matches images, and has the settings.
            geometry: runs the geometric computations, at a suitable time and place.
        """
        self.pairs = pairs
        self._geometry = geometry
        self._archived: OrderedDict[KeyframeName, EncodedFrame] = OrderedDict()
        self._current: EncodedFrame | None = None

    def know(self, encoded: EncodedFrame) -> None:
        """Use features computed by another owner of the same network; skipped if their resolution was lowered for
        speed.
        """
        if encoded.features.size == self.pairs.network_size(*encoded.frame.size):
            self._current = encoded

    def encode(self, frame: Frame) -> EncodedFrame:
        """Features of an image; the last one's are cached."""
        if self._current is None or self._current.frame is not frame:
            self._current = self.pairs.encode(frame)
        return self._current

    def verify(self, archived: ArchivedKeyframe, frame: Frame) -> Verification:
        """Match an image with an archived keyframe.

        Raises:
            PlacesError: the archived image is missing or damaged.
            FrameRefusedError: the network takes images of another shape only.
        """
        current = self.encode(frame)
        encoded = self._encoded(archived, frame)
        matches = self.pairs.match([encoded], current)[0]
        pose, own_unit = self._geometry(lambda: self._poses(archived, encoded, current, matches))
        covered = min(
            coverage(matches.keyframe_points[pose.inliers], archived.size),
            coverage(matches.current_points[pose.inliers], frame.size),
        )
        return Verification(archived, matches, pose, own_unit, covered)

    def _encoded(self, archived: ArchivedKeyframe, current: Frame) -> EncodedFrame:
        """The archived image's features. The current image's mask applies to it too.

        Otherwise the robot's own body, which both show alike, would count as the place.
        """
        kept = self._archived.get(archived.name)
        if kept is not None and kept.frame.stamp_ns == archived.stamp_ns:
            self._archived.move_to_end(archived.name)
            return kept
        frame = archived.to_frame()
        if (frame.size, frame.frame_id) == (current.size, current.frame_id):
            frame = replace(frame, usable=current.usable)
        encoded = self.pairs.complete(self.pairs.encode(frame))
        self._archived[archived.name] = encoded
        if len(self._archived) > _KEPT:
            self._archived.popitem(last=False)
        return encoded

    def _poses(
        self, archived: ArchivedKeyframe, encoded: EncodedFrame, current: EncodedFrame, matches: Correspondences
    ) -> Poses:
        """Poses by the archived depths if there are some, in metres or in their own unit; else by two views."""
        config = self.pairs.config
        rays = matched_rays(encoded, current, matches)
        if rays is None:
            return pose_without_calibration(matches, config.geometry), None
        by_depth, why = None, ScaleReason.NO_DEPTH
        if archived.depth is not None and archived.grid != encoded.features.grid:
            why = ScaleReason.OTHER_GRID
        elif archived.depth is not None:
            why = why_no_length(archived.depth, matches.track_id, config.depth.min_cells)
            by_depth = pose_by_depth(archived.depth, matches, rays, config.geometry, config.depth.min_cells)
            if by_depth is not None and not by_depth.has_rotation:
                by_depth = None
        pose = pose_by_two_views(encoded, matches, rays, config.geometry, why)
        if by_depth is None or archived.depth is None or not archived.depth.is_metric:
            units = [known.is_metric for known in (archived.depth, archived.link) if known is not None]
            own_unit = bool(units) and not any(units)  # of a single camera, as far as the keyframe's data tell
            return (replace(pose, without_length=ScaleReason.OWN_UNIT) if own_unit else pose), by_depth
        # Depths that contradict the two-view result are of another camera or not registered, so the length stays
        # unknown.
        agrees = by_depth.inliers.sum() >= _AGREEING * pose.inliers.sum()
        return (by_depth if agrees else replace(pose, without_length=ScaleReason.VIEWS_DISAGREE)), None
