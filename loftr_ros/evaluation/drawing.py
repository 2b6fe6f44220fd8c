"""Pictures of matches, tracks and trajectories.

Matches and tracks are drawn with a fixed number of OpenCV calls, whatever the number of points, because the node
publishes them live: 2000 matches of two 640x480 images take 5 ms. Pixel (0, 0) is the centre of the top-left pixel, as
everywhere.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from loftr_ros.evaluation.trajectory_plot import plot_trajectory

__all__ = ["draw_matches", "draw_tracks", "plot_trajectory"]

Picture = NDArray[np.uint8]
Array = NDArray[np.float64]
Color = tuple[int, int, int]

_SHIFT = 4  # OpenCV draws at 1/16 pixel
_SHADES = 24  # number of colours for inliers: one OpenCV call each
_OUTLIER = (50, 50, 210)
_STRIP, _INK = 32, (235, 235, 235)
_LINE_OPACITY = 0.65  # the image stays visible under many lines
_GAP = 4


def draw_matches(
    keyframe_image: NDArray[np.uint8],
    current_image: NDArray[np.uint8],
    keyframe_points: ArrayLike,
    current_points: ArrayLike,
    confidence: ArrayLike | None = None,
    inlier: ArrayLike | None = None,
    text: str = "",
    *,
    max_lines: int = 150,
    max_outliers: int = 30,
    max_side: int = 1600,
) -> Picture:
    """Both images with lines between matched points, below a strip of text.

    Images are placed side by side, or on top of each other if they are wider than 2:1. Inliers are coloured from blue
    (lowest) through green to yellow, by confidence, or by displacement without confidence; outliers are red. Lines are
    chosen evenly over the keyframe's image, and in each part of it the most confident first.

    Args:
        keyframe_image, current_image: (H, W) uint8 gray or (H, W, 3) uint8 BGR; the sizes may differ.
        keyframe_points, current_points: (N, 2) pixels of the two images.
        confidence: (N,) 0 to 1.
        inlier: (N,) bool; None if all are inliers.
        text: one line, in ASCII (OpenCV's fonts have nothing else); reduced if it is too long.
        max_lines: maximum number of inliers.
        max_outliers: maximum number of outliers.
        max_side: longest side of the picture; larger images are reduced before drawing.

    Returns:
        (H', W', 3) uint8 BGR.
    """
    points0, points1 = _points(keyframe_points), _points(current_points)
    (height0, width0), (height1, width1) = keyframe_image.shape[:2], current_image.shape[:2]
    stacked = max(width0 / height0, width1 / height1) > 2
    length = max(width0, width1, height0 + height1) if stacked else max(width0 + width1, height0, height1)
    scale = min(1.0, max_side / length)
    panel0, panel1 = _panel(keyframe_image, scale), _panel(current_image, scale)
    (height0, width0), (height1, width1) = panel0.shape[:2], panel1.shape[:2]
    offset = (0, height0 + _GAP) if stacked else (width0 + _GAP, 0)
    size = (max(width0, offset[0] + width1), max(height0, offset[1] + height1))
    strip = _strip(text, size[0])
    top = strip.shape[0]
    picture = np.full((top + size[1], size[0], 3), _STRIP, np.uint8)
    picture[:top] = strip
    picture[top : top + height0, :width0] = panel0
    picture[top + offset[1] : top + offset[1] + height1, offset[0] : offset[0] + width1] = panel1

    finite, good = _finite(points0, points1), _flags(inlier, len(points0))
    points0, points1 = np.where(finite[:, None], points0, 0), np.where(finite[:, None], points1, 0)
    values = np.hypot(*(points1 - points0).T) if confidence is None else np.asarray(confidence, dtype=np.float64)
    preference = np.zeros(len(points0)) if confidence is None else values
    segments = np.stack(
        [_place(points0, scale, 0, top), _place(points1, scale, offset[0], offset[1] + top)],
        axis=1,
    )
    outliers = _spread(points0, preference, np.flatnonzero(finite & ~good), max_outliers)
    inliers = _spread(points0, preference, np.flatnonzero(finite & good), max_lines)
    lines = picture.copy()
    shades = _shades(values, inliers)
    _polylines(lines, segments[outliers], _OUTLIER, 1)
    for part, color in shades:
        _polylines(lines, segments[part], color, 1)
    cv2.addWeighted(lines, _LINE_OPACITY, picture, 1 - _LINE_OPACITY, 0, dst=picture)
    for part, color in shades:
        _dots(picture, segments[part].reshape(-1, 2), color)
    return picture


def draw_tracks(
    current_image: NDArray[np.uint8],
    keyframe_points: ArrayLike,
    current_points: ArrayLike,
    inlier: ArrayLike | None = None,
    text: str = "",
    *,
    max_tracks: int = 500,
    max_outliers: int = 30,
    max_side: int = 1600,
) -> Picture:
    """The current image with an arrow for each match, from the point's position in the keyframe to its current one.

    Inliers are coloured by the length of their motion, blue to yellow; outliers are red lines without a tip.

    Args:
        current_image: (H, W) uint8 gray or (H, W, 3) uint8 BGR.
        keyframe_points, current_points: (N, 2) pixels of two images of the same size.
        inlier: (N,) bool; None if all are inliers.
        text: one line, in ASCII.
        max_tracks: maximum number of inliers, chosen evenly over the image.
        max_outliers: maximum number of outliers.
        max_side: longest side of the picture; larger images are reduced before drawing.

    Returns:
        (H', W', 3) uint8 BGR.
    """
    scale = min(1.0, max_side / max(current_image.shape[:2]))
    panel = _panel(current_image, scale)
    strip = _strip(text, panel.shape[1])
    picture = np.vstack([strip, panel])
    top = strip.shape[0]
    starts = _place(_points(keyframe_points), scale, 0, top)
    ends = _place(_points(current_points), scale, 0, top)
    finite, good = _finite(starts, ends), _flags(inlier, len(starts))
    starts, ends = np.where(finite[:, None], starts, 0), np.where(finite[:, None], ends, 0)
    motion = ends - starts
    length = np.hypot(*motion.T)
    # Tip: two short strokes at 25 degrees to the arrow, no longer than a third of it.
    along = motion / np.maximum(length, 1e-9)[:, None] * np.minimum(6.0, length / 3)[:, None]
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.tan(np.radians(25))
    arrows = np.stack([starts, ends, ends - along + across, ends, ends - along - across], axis=1)
    outliers = _spread(ends, np.zeros(len(ends)), np.flatnonzero(finite & ~good), max_outliers)
    inliers = _spread(ends, np.zeros(len(ends)), np.flatnonzero(finite & good), max_tracks)
    lines = picture.copy()
    _polylines(lines, arrows[outliers, :2], _OUTLIER, 1)
    cv2.addWeighted(lines, _LINE_OPACITY, picture, 1 - _LINE_OPACITY, 0, dst=picture)
    for part, color in _shades(length, inliers):
        moving = part[length[part] >= 2]
        _polylines(picture, arrows[moving], color, 1)
        _dots(picture, arrows[np.setdiff1d(part, moving), 1], color)  # an arrow of a pixel is a dot
    return picture


def _points(points: ArrayLike) -> Array:
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _flags(inlier: ArrayLike | None, count: int) -> NDArray[np.bool_]:
    return np.ones(count, np.bool_) if inlier is None else np.asarray(inlier).astype(np.bool_)


def _finite(points0: Array, points1: Array) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(np.hstack([points0, points1])).all(axis=1))


def _panel(image: NDArray[np.uint8], scale: float) -> Picture:
    """The image as BGR, reduced."""
    if scale < 1:
        size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    if image.ndim == 3:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), dtype=np.uint8)


def _place(points: Array, scale: float, left: float, top: float) -> Array:
    """Convert pixels of an image to pixels of the picture that contains it."""
    return np.asarray((points + 0.5) * scale - 0.5 + np.array([left, top]))


def _strip(text: str, width: int) -> Picture:
    """A dark strip with one line of text; of zero height without a text."""
    if not text:
        return np.zeros((0, width, 3), np.uint8)
    text = text.replace("°", " deg").encode("ascii", "replace").decode()
    font, size, margin = cv2.FONT_HERSHEY_SIMPLEX, 0.5, 8
    taken = cv2.getTextSize(text, font, size, 1)[0][0]
    size *= min(1.0, (width - 2 * margin) / taken)
    strip = np.full((26, width, 3), _STRIP, np.uint8)
    cv2.putText(strip, text, (margin, 18), font, size, _INK, 1, cv2.LINE_AA)
    return strip


def _spread(points: Array, preference: Array, candidates: NDArray[np.intp], limit: int) -> NDArray[np.intp]:
    """At most `limit` candidates, evenly over the image: the best of each cell of a grid, then the second best ones."""
    if len(candidates) <= limit or limit < 1:
        return candidates[: max(limit, 0)]
    places = points[candidates] - points[candidates].min(axis=0)
    extent = np.maximum(places.max(axis=0), 1e-9)
    side = max(np.sqrt(extent[0] * extent[1] / limit), extent.max() / limit, 1e-9)
    column, row = (places // side).astype(np.int64).T
    cell = row * (int(extent[0] // side) + 1) + column
    order = np.lexsort((-preference[candidates], cell))
    cell = cell[order]
    starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]])
    rank = np.arange(len(cell)) - np.repeat(starts, np.diff(np.r_[starts, len(cell)]))
    best = np.lexsort((-preference[candidates[order]], rank))[:limit]
    return np.sort(candidates[order[best]])


def _shades(values: Array, chosen: NDArray[np.intp]) -> list[tuple[NDArray[np.intp], Color]]:
    """The chosen points in groups of similar value, the lowest first, each with its colour (BGR)."""
    if not len(chosen):
        return []
    low, high = np.percentile(values[chosen], [2, 98])
    share = (values[chosen] - low) / (high - low) if high > low else np.full(len(chosen), 0.5)
    shade = (np.clip(np.nan_to_num(share), 0, 1) * (_SHADES - 1)).round().astype(np.int64)
    # From blue to yellow: the ends of the map are too dark, and red is reserved for outliers.
    ramp = np.linspace(35, 155, _SHADES).round().astype(np.uint8)
    colors = np.asarray(cv2.applyColorMap(ramp[:, None], cv2.COLORMAP_TURBO))[:, 0]
    groups = [(chosen[shade == i], colors[i].tolist()) for i in range(_SHADES)]
    return [(group, (color[0], color[1], color[2])) for group, color in groups if len(group)]


def _polylines(picture: Picture, lines: Array, color: Color, thickness: int) -> None:
    """Draw (N, P, 2) lines of P points in one call."""
    if len(lines):
        fixed = np.clip(np.round(lines * (1 << _SHIFT)), -(2**24), 2**24).astype(np.int32)
        cv2.polylines(picture, list(fixed), False, color, thickness, cv2.LINE_AA, _SHIFT)


def _dots(picture: Picture, points: Array, color: Color) -> None:
    """A line of zero length with round ends is a dot."""
    _polylines(picture, np.repeat(points[:, None], 2, axis=1), color, 5)
