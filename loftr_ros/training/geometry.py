"""Correspondence of pixels between two views, from depth and pose, with visibility."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import rotation_matrix

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_TINY = np.float32(1e-9)


def warp_by_depth(
    inverse0: Float32,
    inverse1: Float32,
    K0: Float64,
    K1: Float64,
    T_1_0: Float64,
    surfaces: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None,
    tolerance: float = 0.02,
) -> Float32:
    """The pixels of view 0 in view 1; NaN where they are outside, occluded, or without depth.

    A point is visible in view 1 if the depth interpolated there is its own. Inverse depth is interpolated because it is
    linear in the image on every plane, so planes need no tolerance, however slanted.

    Args:
        inverse0, inverse1: (H, W) float32, one over the depth along the optical axis; 0 is infinitely far, NaN unknown.
        K0, K1: (3, 3) pinhole matrices.
        T_1_0: (4, 4) pose of camera 0 in camera 1, in units of the depth.
        surfaces: (H, W) uint8 number of the surface at each pixel of both views; a point is then visible only where its
            own surface is. 0 is no surface.
        tolerance: of the relative difference of inverse depths.

    Returns:
        (H, W, 2) float32.
    """
    height, width = inverse0.shape
    M = K1 @ T_1_0[:3, :3] @ np.linalg.inv(K0)
    b = K1 @ T_1_0[:3, 3]
    u = np.arange(width, dtype=np.float64)
    v = np.arange(height, dtype=np.float64)[:, None]

    def projected(row: int) -> Float32:
        plane: Float32 = (M[row, 0] * u).astype(np.float32) + (M[row, 1] * v + M[row, 2]).astype(np.float32)
        plane += inverse0 * np.float32(b[row])
        return plane

    scale = projected(2)
    seen = scale > _TINY
    scale[~seen] = -1
    x, y = projected(0), projected(1)
    x /= scale
    y /= scale
    expected = inverse0 / scale
    for at, last in ((x, inverse1.shape[1] - 1), (y, inverse1.shape[0] - 1)):
        seen &= at >= 0
        seen &= at <= last
    found = cv2.remap(inverse1, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = np.abs(found - expected)
    expected *= np.float32(tolerance)
    seen &= difference <= expected
    if surfaces is not None:
        there = cv2.remap(surfaces[1], x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT)
        seen &= there == surfaces[0]
        seen &= surfaces[0] > 0
    warp = cv2.merge([x, y])
    warp[~seen] = np.nan
    return np.asarray(warp, np.float32)


def covisible(warp: Float32) -> float:
    """The share of pixels that a warp maps into the other image."""
    return float(np.isfinite(warp[..., 0]).mean())


def warp_by_homography(H: Float64, size: tuple[int, int], other: tuple[int, int] | None = None) -> Float32:
    """The pixels of a (width, height) image under a homography; NaN outside the other image (of the same size).

    Returns:
        (height, width, 2) float32.
    """
    (width, height), (far_width, far_height) = size, other or size
    u = np.arange(width, dtype=np.float64)
    v = np.arange(height, dtype=np.float64)[:, None]
    scale = H[2, 0] * u + (H[2, 1] * v + H[2, 2])
    scale[scale <= 1e-9] = np.nan
    x = (H[0, 0] * u + (H[0, 1] * v + H[0, 2])) / scale
    y = (H[1, 0] * u + (H[1, 1] * v + H[1, 2])) / scale
    warp = np.stack([x, y], axis=-1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        outside = ~((x >= 0) & (x <= far_width - 1) & (y >= 0) & (y <= far_height - 1))
    warp[outside] = np.nan
    return warp


def hide(
    warp01: Float32, warp10: Float32, hidden0: NDArray[np.bool_] | None, hidden1: NDArray[np.bool_] | None
) -> None:
    """Remove covered pixels from both warps, in place.

    Args:
        warp01, warp10: (H, W, 2) float32.
        hidden0, hidden1: (H, W), the covered pixels of each image; None: none.
    """
    for warp, own, others in ((warp01, hidden0, hidden1), (warp10, hidden1, hidden0)):
        if own is not None:
            warp[own] = np.nan
        if others is not None:
            x, y = cv2.split(np.where(np.isfinite(warp), warp, np.float32(-1)))
            covered = cv2.remap(others.astype(np.uint8), x, y, cv2.INTER_NEAREST, borderValue=0)
            warp[covered > 0] = np.nan


def intrinsics(size: tuple[int, int], field_of_view: float) -> Float64:
    """The (3, 3) pinhole matrix of a (width, height) image with a horizontal field of view in degrees."""
    width, height = size
    focal = width / 2 / np.tan(np.radians(field_of_view) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])


def rigid(R: Float64, t: Float64) -> Float64:
    """The (4, 4) transform of a rotation and a translation."""
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = R, t
    return T


def looking(eye: Float64, forward: Float64, roll: float = 0.0) -> Float64:
    """T_camera_world of a camera at `eye` that looks along `forward`; the world's z axis is up in its image.

    Args:
        roll: about the optical axis, in radians.
    """
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    length = np.linalg.norm(right)
    right = np.array([1.0, 0, 0]) if length < 1e-6 else right / length
    R = np.stack([right, np.cross(forward, right), forward])
    R = rotation_matrix([0, 0, roll]) @ R
    return rigid(R, -R @ eye)
