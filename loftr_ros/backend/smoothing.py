"""The newest keyframes of a single camera smoothed by the landmarks that several of them see.

From keyframe to keyframe a single camera's step is measured by two views, whose length comes from depths that the steps
before gave. Landmarks that are seen from three keyframes and more hold directions and lengths together over more than a
step. Where depths are measured they add nothing (see docs/back_end.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loftr_ros.backend.factors import RigidSpace, require_gtsam
from loftr_ros.backend.measurements import PoseMeasurement, Sightings

Array = NDArray[np.float64]

# Keyframes that must see a landmark.
_LEAST_VIEWS = 3
# Landmarks of a window, at most, and at least: with fewer nothing is smoothed.
_MOST, _LEAST = 700, 30
# Factor on the rays' standard deviations: the links come from the same matches.
_SHARED = 3.0
# Least angle between two of a landmark's rays, radians.
_LEAST_PARALLAX = 0.017
# Largest distance of a landmark from its rays to begin with, in standard deviations, and the scale of Cauchy's kernel.
_ROUGH, _KERNEL = 50.0, 2.0
# Standard deviations of what is held: radians, and parts of the window's length.
_HELD = 1e-5


@dataclass(frozen=True, eq=False)
class _Observations:
    """Sightings of the landmarks that are used: of each its landmark, keyframe, ray and standard deviation."""

    landmark: NDArray[np.int64]
    keyframe: NDArray[np.int64]
    rays: Array
    std: Array

    def __getitem__(self, keep: NDArray[np.bool_]) -> _Observations:
        return _Observations(self.landmark[keep], self.keyframe[keep], self.rays[keep], self.std[keep])


def smoothed(
    poses: Sequence[Array],
    links: Sequence[tuple[int, PoseMeasurement] | None],
    sightings: Sequence[Sightings],
    held: int,
) -> list[Array] | None:
    """Poses of keyframes by the landmarks that they see.

    Args:
        poses: (4, 4) T_map_keyframe of each keyframe, as known so far, in the trajectory's unit.
        links: of each the place of the keyframe that it was located by, and the pose measured in it; None without.
        sightings: of each.
        held: number of the keyframes, from the first on, that stay where they are; at least two.

    Returns:
        The poses; None if too few landmarks are seen, or GTSAM cannot tell the poses by them.
    """
    gtsam, space = require_gtsam(), RigidSpace()
    seen = _chosen(sightings)
    if seen is None:
        return None
    seen, points = _located(np.array(poses), seen)
    if len(points) < _LEAST:
        return None
    factors, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    camera = gtsam.Cal3_S2(1.0, 1.0, 0.0, 0.0, 0.0)
    size = max(float(np.ptp([pose[:3, 3] for pose in poses], axis=0).max()), 1e-9)
    fixed = gtsam.noiseModel.Diagonal.Sigmas(np.repeat([_HELD, _HELD * size], 3))
    for number, (pose, link) in enumerate(zip(poses, links, strict=True)):
        values.insert(number, gtsam.Pose3(pose))
        if number < held:
            factors.addPriorPose3(number, gtsam.Pose3(pose), fixed)
        elif link is not None:
            before, measured = link
            factors.push_back(space.link(before, number, measured))
    kernel = gtsam.noiseModel.mEstimator.Cauchy.Create(_KERNEL)
    first = len(poses)
    for number, point in enumerate(points):
        values.insert(first + number, point)
    for landmark, keyframe, ray, std in zip(seen.landmark, seen.keyframe, seen.rays, seen.std, strict=True):
        model = gtsam.noiseModel.Robust.Create(kernel, gtsam.noiseModel.Isotropic.Sigma(2, _SHARED * std))
        factors.push_back(
            gtsam.GenericProjectionFactorCal3_S2(ray, model, int(keyframe), first + int(landmark), camera)
        )
    parameters = gtsam.LevenbergMarquardtParams()
    parameters.setMaxIterations(20)
    try:
        found = gtsam.LevenbergMarquardtOptimizer(factors, values, parameters).optimize()
    except RuntimeError:  # an indeterminate system
        return None
    return [np.asarray(found.atPose3(number).matrix()) for number in range(len(poses))]


def _chosen(sightings: Sequence[Sightings]) -> _Observations | None:
    """Sightings of the landmarks that most keyframes see; None where there are none."""
    name = np.concatenate([each.landmark for each in sightings])
    keyframe = np.repeat(np.arange(len(sightings)), [len(each) for each in sightings])
    rays = np.concatenate([each.rays for each in sightings]).astype(np.float64)
    std = np.concatenate([each.std for each in sightings]).astype(np.float64)
    usable = np.isfinite(rays).all(axis=1) & np.isfinite(std) & (std > 0)
    _, landmark, count = np.unique(name[usable], return_inverse=True, return_counts=True)
    best = np.argsort(-count, kind="stable")[:_MOST]
    best = best[count[best] >= _LEAST_VIEWS]
    if not len(best):
        return None
    place = np.full(len(count), -1)
    place[best] = np.arange(len(best))
    seen = _Observations(place[landmark], keyframe[usable], rays[usable], std[usable])
    return seen[seen.landmark >= 0]


def _located(poses: Array, seen: _Observations) -> tuple[_Observations, Array]:
    """Points nearest to the landmarks' rays, and the sightings of those that are in front, with parallax."""
    count = int(seen.landmark.max()) + 1
    along = np.insert(seen.rays, 2, 1.0, axis=1)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    along = np.einsum("nij,nj->ni", poses[seen.keyframe, :3, :3], along)
    across = np.eye(3) - along[:, :, None] * along[:, None]
    total, pull = np.zeros((count, 3, 3)), np.zeros((count, 3))
    np.add.at(total, seen.landmark, across)
    np.add.at(pull, seen.landmark, np.einsum("nij,nj->ni", across, poses[seen.keyframe, :3, 3]))
    mean = np.zeros((count, 3))
    np.add.at(mean, seen.landmark, along)
    views = np.bincount(seen.landmark, minlength=count)
    # The angle between rays, from how much shorter their mean is than one.
    spread = np.sqrt(np.maximum(2 - 2 * np.linalg.norm(mean, axis=1) / views, 0.0))
    good = spread > _LEAST_PARALLAX / 2
    points = np.zeros((count, 3))
    points[good] = np.linalg.solve(total[good], pull[good][..., None])[..., 0]
    here = np.einsum("nji,nj->ni", poses[seen.keyframe, :3, :3], points[seen.landmark] - poses[seen.keyframe, :3, 3])
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.linalg.norm(here[:, :2] / here[:, 2:] - seen.rays, axis=1)
        wrong = ~(here[:, 2] > 0) | ~(off < _ROUGH * seen.std)
    good[seen.landmark[wrong]] = False
    place = np.where(good, np.cumsum(good) - 1, -1)
    kept = good[seen.landmark]
    return _Observations(place[seen.landmark[kept]], *(each[kept] for each in (seen.keyframe, seen.rays, seen.std))), (
        points[good]
    )
