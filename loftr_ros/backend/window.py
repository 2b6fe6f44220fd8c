"""The last keyframes of one camera, smoothed together by GTSAM's incremental fixed-lag smoother."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loftr_ros.backend.config import BackEndConfig
from loftr_ros.backend.factors import factor_covariance, require_gtsam, widened
from loftr_ros.backend.graph import Vertex
from loftr_ros.backend.measurements import ImageMeasurement, KeyframeKey, Length, PoseMeasurement

# Kernels: links are what the front end's own trajectory is made of; other poses may be of a look-alike.
_LINK_KERNEL, _OTHER_KERNEL = 3.0, 1.0
_HELD = 1e-5


class Window:
    """Takes keyframe after keyframe of one camera; what is older than the window is marginalised.

    A keyframe that does not go on from one in the window begins a new one: what the old one has smoothed stays.

    Attributes:
        restarts: how often GTSAM could not go on and the window began anew.
    """

    def __init__(self, config: BackEndConfig) -> None:
        """Begin empty."""
        self._gtsam = require_gtsam()
        self.config = config
        self.restarts = 0
        self._clear()

    def __contains__(self, key: KeyframeKey) -> bool:
        return key in self._variables

    def add(self, vertex: Vertex, previous: Vertex | None, images: Sequence[ImageMeasurement]) -> list[tuple[int, Any]]:
        """Take a keyframe and the images before it, and smooth.

        Args:
            vertex: the keyframe.
            previous: the one that it was located by.
            images: those since the last keyframe, and its own, with poses relative to keyframes.

        Returns:
            Numbers of the vertices in the window with their better links, T_previous_this (4, 4).
        """
        try:
            return self._add(vertex, previous, images)
        except RuntimeError:  # a system that GTSAM finds indeterminate
            self.restarts += 1
            self._clear()
            self._begin(vertex)
            return []

    def _clear(self) -> None:
        parameters = self._gtsam.ISAM2Params()
        parameters.relinearizeSkip = 1
        parameters.findUnusedFactorSlots = True  # else its list of factors grows for as long as it runs
        self._smoother = self._gtsam.IncrementalFixedLagSmoother(float(self.config.window.keyframes), parameters)
        self._variables: dict[KeyframeKey, int] = {}
        self._vertices: dict[int, tuple[Vertex, int | None]] = {}
        self._count = self._next = 0

    def _begin(self, vertex: Vertex) -> None:
        self._clear()
        factors, values = self._gtsam.NonlinearFactorGraph(), self._gtsam.Values()
        key = self._variable(vertex, None)
        values.insert(key, self._gtsam.Pose3())
        factors.addPriorPose3(key, self._gtsam.Pose3(), self._gtsam.noiseModel.Isotropic.Sigma(6, _HELD))
        self._smoother.update(factors, values, {key: float(self._count)})

    def _variable(self, vertex: Vertex, previous: int | None) -> int:
        key = self._next
        self._next += 1
        self._variables[vertex.key] = key
        self._vertices[key] = (vertex, previous)
        return key

    def _add(
        self, vertex: Vertex, previous: Vertex | None, images: Sequence[ImageMeasurement]
    ) -> list[tuple[int, Any]]:
        before = None if previous is None else self._variables.get(previous.key)
        if previous is None or before is None or vertex.link is None:
            self._begin(vertex)
            return []
        gtsam = self._gtsam
        factors, values, times = gtsam.NonlinearFactorGraph(), gtsam.Values(), dict[int, float]()
        self._count += 1
        used = self._thinned([each for each in images if each.stamp_ns != vertex.stamp_ns])
        told = [
            (self._variables[key], pose)
            for image in images
            if image.stamp_ns == vertex.stamp_ns
            for key, pose in image.poses.items()
            if key in self._variables and self._variables[key] != before and pose.length is not Length.NONE
        ]
        if not used and not told:
            # Nothing but the link: it is as good as it was.
            return self._alone(vertex, before)
        for image in used:
            known = [(self._variables[key], pose) for key, pose in image.poses.items() if key in self._variables]
            key = self._next
            self._next += 1
            first, pose = known[0]
            values.insert(key, self._smoother.calculateEstimatePose3(first).compose(gtsam.Pose3(pose.pose)))
            times[key] = self._count - 0.5
            for keyframe, pose in known:
                factors.push_back(self._factor(keyframe, key, pose, _OTHER_KERNEL))
        number = self._variable(vertex, before)
        link = vertex.link
        values.insert(number, self._smoother.calculateEstimatePose3(before).compose(gtsam.Pose3(link.pose)))
        times[number] = float(self._count)
        factors.push_back(self._factor(before, number, link, _LINK_KERNEL))
        for other, pose in told:
            factors.push_back(self._factor(other, number, pose, _OTHER_KERNEL))
        self._smoother.update(factors, values, times)
        return self._result()

    def _alone(self, vertex: Vertex, before: int) -> list[tuple[int, Any]]:
        gtsam = self._gtsam
        factors, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
        number = self._variable(vertex, before)
        assert vertex.link is not None
        start = self._smoother.calculateEstimatePose3(before).compose(gtsam.Pose3(vertex.link.pose))
        values.insert(number, start)
        factors.push_back(self._factor(before, number, vertex.link, _LINK_KERNEL))
        self._smoother.update(factors, values, {number: float(self._count)})
        return self._result()

    def _result(self) -> list[tuple[int, Any]]:
        """Forget what was marginalised; the links between keyframes that are left."""
        left = self._smoother.timestamps()
        held = {key for key in self._vertices if key in left}
        for key in set(self._vertices) - held:
            vertex, _ = self._vertices.pop(key)
            self._variables.pop(vertex.key, None)
        poses = {key: self._smoother.calculateEstimatePose3(key) for key in held}
        links = []
        for key in sorted(held):
            vertex, previous = self._vertices[key]
            if previous in poses:
                links.append((vertex.number, np.asarray(poses[previous].between(poses[key]).matrix())))
        return links

    def _thinned(self, images: Sequence[ImageMeasurement]) -> list[ImageMeasurement]:
        """Images that tell of two keyframes of the window at least, evenly over time."""
        telling = [each for each in images if sum(self._is_rigid(key, pose) for key, pose in each.poses.items()) > 1]
        most = self.config.window.frames
        if len(telling) > most:
            telling = [telling[k] for k in np.linspace(0, len(telling) - 1, most).round().astype(int)] if most else []
        return [
            ImageMeasurement(
                each.stamp_ns, each.robot, {key: pose for key, pose in each.poses.items() if self._is_rigid(key, pose)}
            )
            for each in telling
        ]

    def _is_rigid(self, key: KeyframeKey, pose: PoseMeasurement) -> bool:
        return key in self._variables and pose.has_length

    def _factor(self, first: int, second: int, measured: PoseMeasurement, kernel: float) -> Any:
        gtsam = self._gtsam
        if measured.has_length:
            covariance = factor_covariance(widened(measured, self.config.noise).covariance, measured.pose)
            model = gtsam.noiseModel.Gaussian.Covariance((covariance + covariance.T) / 2)
            make = gtsam.noiseModel.mEstimator
            robust = make.Huber.Create(kernel) if kernel == _LINK_KERNEL else make.Cauchy.Create(kernel)
            return gtsam.BetweenFactorPose3(
                first, second, gtsam.Pose3(measured.pose), gtsam.noiseModel.Robust.Create(robust, model)
            )
        return self._direction(first, second, measured)

    def _direction(self, first: int, second: int, measured: PoseMeasurement) -> Any:
        """Rotation and direction of a pose without a length."""
        gtsam, pose = self._gtsam, measured.pose
        turn = np.radians(self.config.noise.rotation)
        rotation = pose[:3, :3].T @ measured.covariance[3:, 3:] @ pose[:3, :3] + turn**2 * np.eye(3)
        covariance = np.zeros((5, 5))
        covariance[:3, :3] = rotation
        toward = gtsam.Unit3(pose[:3, 3])
        basis = np.asarray(toward.basis())
        covariance[3:, 3:] = basis.T @ measured.covariance[:3, :3] @ basis + self.config.noise.translation**2 * np.eye(
            2
        )
        model = gtsam.noiseModel.Gaussian.Covariance((covariance + covariance.T) / 2)
        robust = gtsam.noiseModel.Robust.Create(gtsam.noiseModel.mEstimator.Cauchy.Create(_OTHER_KERNEL), model)
        return gtsam.EssentialMatrixConstraint(
            first, second, gtsam.EssentialMatrix(gtsam.Rot3(pose[:3, :3]), toward), robust
        )
