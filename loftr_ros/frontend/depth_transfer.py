"""Depths of a keyframe's cells, carried over to the cells of the frame that becomes the next keyframe."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.cell_depth import CellDepth
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.relative_pose import SHARING, robust_std
from loftr_ros.frontend.results import Correspondences, MatchedRays
from loftr_ros.frontend.tracks import one_each
from loftr_ros.geometry.epipolar import homogeneous, in_second_camera
from loftr_ros.geometry.two_view import RelativePose

# Relative error of a transferred depth, because a cell's point and its source may lie on a slanted surface: as measured
# in rendered rooms. A larger one would make each keyframe's unit too long: a pose by depths that are better than stated
# takes the noise of the matches for errors of depth, and explains it by a longer step.
_SLANT = 0.005
# Depths of two keyframes contradict each other if they differ by so many standard deviations of the median ratio, and
# by more than real pairs do.
_CONTRADICTS, _LEAST_CONTRADICTION = 4.0, 0.06


def transferred(
    known: CellDepth,
    keep: NDArray[np.bool_],
    matches: Correspondences,
    rays: MatchedRays,
    pose: RelativePose,
    new: EncodedFrame,
) -> CellDepth:
    """Depths of the cells of a frame by those of an older keyframe.

    Args:
        known: (N,) of the matches in the keyframe.
        keep: (N,) matches to use, whose depths are known.
        matches: of the keyframe with the frame.
        rays: of the matches.
        pose: of the frame relative to the keyframe, in the depths' unit.
        new: the frame.
    """
    inverse = known.inverse[keep]
    ahead = in_second_camera(rays.keyframe[keep], inverse, pose.rotation, pose.translation)[:, 2]
    there = inverse / ahead
    slope = (homogeneous(rays.keyframe[keep]) @ pose.rotation[:, 2]) / ahead**2
    variance = known.variance[keep] * slope**2 + (_SLANT * there) ** 2
    cell, distance = new.nearest_cells(matches.current_points[keep])
    chosen = one_each(cell, distance)
    chosen = chosen[(there[chosen] > 0) & (distance[chosen] < new.cell_size * max(new.scale))]
    depth = CellDepth.unknown(len(new.cell_points), known.is_metric)
    return depth.with_measured(cell[chosen], there[chosen], variance[chosen])


def contradiction(measured: CellDepth, before: CellDepth, min_cells: int) -> float | None:
    """How many times as far as before a frame's measured depths put the scene; None if the two agree, or too few tell.

    A median of ratios tells it much better than single depths: of real recordings it is within 0.025 of one.

    Args:
        measured: of the frame's cells.
        before: of the same cells, by an older keyframe.
        min_cells: least cells with both.
    """
    both = measured.known & before.known
    both &= (np.nan_to_num(measured.inverse) > 0) & (np.nan_to_num(before.inverse) > 0)
    if both.sum() < min_cells:
        return None
    farther = np.log(before.inverse[both] / measured.inverse[both])
    middle = float(np.median(farther))
    # Neighbours share their errors.
    std = robust_std(farther - middle) / math.sqrt(len(farther) / SHARING)
    return math.exp(middle) if abs(middle) > max(_LEAST_CONTRADICTION, _CONTRADICTS * std) else None
