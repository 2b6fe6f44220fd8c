"""The same view in other light, or by another kind of camera: changes between day and night, seasons and sensors.

`photometric.photograph` models one camera and one picture; this module models the difference between two visits.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

KINDS = ("night", "lamps", "shadows", "sensor", "haze")
_SMALL = (48, 64)  # rows and columns of the grid of smooth fields


def relight(image: Image, rng: np.random.Generator, kind: str = "") -> Image:
    """A view in other light, with the same geometry.

    Args:
        image: (H, W) uint8.
        kind: of KINDS; empty for one or two of them at random.

    Returns:
        (H, W) uint8.
    """
    kinds = [kind] if kind else list(rng.choice(KINDS, 1 + int(rng.random() < 0.3), replace=False))
    picture: NDArray[np.float32] = (image / 255).astype(np.float32)
    for name in kinds:
        picture = np.clip(_BY_KIND[name](picture, rng), 0, 1).astype(np.float32)
    return np.asarray(cv2.convertScaleAbs(picture, alpha=255), np.uint8)


def in_other_light(image0: Image, image1: Image, rng: np.random.Generator, often: float) -> tuple[Image, Image, bool]:
    """Two views of one place, sometimes one of them in other light.

    Args:
        image0, image1: (H, W) uint8.
        rng: not used if `often` is 0.
        often: in [0, 1].

    Returns:
        Both, and whether the light differs.
    """
    if often <= 0 or rng.random() >= often:
        return image0, image1, False
    if rng.random() < 0.5:
        return relight(image0, rng), image1, True
    return image0, relight(image1, rng), True


def _night(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Night with lamps: most of the view is dark, and bright places bloom."""
    dark = picture ** np.float32(rng.uniform(1.2, 2.6)) * np.float32(rng.uniform(0.15, 0.6))
    lit = dark * _lamps_field(picture.shape, rng, int(rng.integers(1, 5)), floor=float(rng.uniform(0.15, 0.6)))
    if rng.random() < 0.6:  # additional windows and lamps
        bright = np.maximum(picture - np.float32(rng.uniform(0.6, 0.9)), 0) * np.float32(rng.uniform(0, 3))
        lit = lit + cv2.GaussianBlur(bright, (0, 0), float(rng.uniform(1, 6)))
    gain = np.float32(rng.uniform(0.25, 0.5) / max(float(lit.mean()), 0.02))  # the camera's exposure
    lit = lit * np.minimum(gain, np.float32(6.0)) if rng.random() < 0.7 else lit
    noise = rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0.01, 0.06))
    return np.asarray(lit + noise * np.sqrt(np.maximum(lit, 0) + np.float32(0.1)), np.float32)


def _lamps(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Lamps instead of daylight: pools of light in the dark."""
    field = _lamps_field(picture.shape, rng, int(rng.integers(2, 7)), floor=float(rng.uniform(0.2, 0.5)))
    return np.asarray(picture * field, np.float32)


def _shadows(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The sun elsewhere: cast shadows with sharp or soft edges, and shading by surface orientation."""
    rows, columns = picture.shape
    mask = np.zeros((rows, columns), np.uint8)
    for _ in range(int(rng.integers(1, 6))):
        centre = rng.uniform(0, 1, 2) * (columns, rows)
        corners = centre + rng.normal(0, 1, (int(rng.integers(3, 7)), 2)) * rng.uniform(0.1, 0.5) * columns
        cv2.fillPoly(mask, [cv2.convexHull(corners.astype(np.int32))], 1)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), float(np.exp(rng.uniform(np.log(0.6), np.log(12)))))
    shaded = picture * (1 - np.float32(rng.uniform(0.3, 0.8)) * soft)
    if rng.random() < 0.6:
        # A surface whose brightness rises along the light's direction is assumed to face it.
        smooth = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(1.0, 4.0)))
        angle = rng.uniform(0, 2 * np.pi)
        slope = cv2.Sobel(smooth, cv2.CV_32F, 1, 0) * np.cos(angle) + cv2.Sobel(smooth, cv2.CV_32F, 0, 1) * np.sin(
            angle
        )
        shaded = shaded * (1 + np.float32(rng.uniform(0.5, 3)) * np.clip(slope, -0.25, 0.25))
    return np.asarray(shaded * np.float32(rng.uniform(0.8, 1.6)), np.float32)


def _sensor(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another part of the spectrum, or another season: gray values follow another curve, not necessarily rising."""
    curve = sensor_curve(rng)
    levels = np.asarray(cv2.convertScaleAbs(picture, alpha=255), np.uint8)
    changed = np.take(curve, levels)
    if rng.random() < 0.4:  # softer, like thermal cameras
        changed = np.asarray(cv2.GaussianBlur(changed, (0, 0), float(rng.uniform(0.6, 1.8))), np.float32)
    return np.asarray(changed, np.float32)


def sensor_curve(rng: np.random.Generator) -> NDArray[np.float32]:
    """(256,) gray values of [0, 1] by gray level."""
    places = np.sort(rng.uniform(0, 1, int(rng.integers(2, 5))))
    places = np.concatenate([[0.0], places, [1.0]])
    values = rng.uniform(0, 1, len(places))
    kind = rng.random()
    if kind < 0.35:  # mostly as before
        values = 0.6 * places + 0.4 * values
    elif kind < 0.55:  # negative
        values = 1 - (0.7 * places + 0.3 * values)
    curve = np.interp(np.linspace(0, 1, 256), places, values).astype(np.float32)
    curve = np.clip(np.convolve(np.pad(curve, 8, mode="edge"), np.ones(17) / 17, mode="valid"), 0, 1)
    spread = max(float(curve.max() - curve.min()), 0.05)
    curve = (curve - curve.min()) / np.float32(spread) * np.float32(min(spread * 1.5, 0.95))
    return np.asarray(curve, np.float32)


def _haze(picture: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Fog, rain on the lens, snow: less contrast in parts of the view, and specks."""
    field = _smooth_field(picture.shape, rng)
    share = np.clip(np.float32(rng.uniform(0.2, 0.6)) + np.float32(0.3) * field, 0, np.float32(0.85))
    hazy = picture * (1 - share) + share * np.float32(rng.uniform(0.4, 0.9))
    if rng.random() < 0.4:
        specks = (rng.random(picture.shape, np.float32) < np.float32(rng.uniform(0.0005, 0.006))).astype(np.float32)
        specks = cv2.GaussianBlur(specks, (0, 0), float(rng.uniform(0.6, 1.4))) * np.float32(rng.uniform(2, 6))
        hazy = hazy + np.minimum(specks, 1) * np.float32(0.5)
    return np.asarray(hazy, np.float32)


def _lamps_field(shape: tuple[int, ...], rng: np.random.Generator, lamps: int, floor: float) -> NDArray[np.float32]:
    field = lamps_field(rng, lamps, floor)
    return np.asarray(cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


def lamps_field(rng: np.random.Generator, lamps: int, floor: float) -> NDArray[np.float32]:
    """Brightness of a view lit by lamps, from `floor` to about 1.6; (48, 64) over the view."""
    rows, columns = _SMALL
    v, u = np.mgrid[:rows, :columns].astype(np.float32)
    field = np.full(_SMALL, floor, np.float32)
    for _ in range(lamps):
        across, down = rng.uniform(0.08, 0.5, 2) * columns
        place = rng.uniform(-0.1, 1.1, 2) * (columns, rows)
        distance = ((u - place[0]) / across) ** 2 + ((v - place[1]) / down) ** 2
        field += np.float32(rng.uniform(0.4, 1.4)) * np.exp(-distance).astype(np.float32)
    return np.minimum(field, np.float32(1.6))


def smooth_cells(rng: np.random.Generator) -> NDArray[np.float32]:
    """A few values of -1 to 1 in rows and columns, for a smooth field between them."""
    return rng.uniform(-1, 1, (int(rng.integers(2, 6)), int(rng.integers(2, 7)))).astype(np.float32)


def _smooth_field(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """About -1 to 1, changing slowly over the view."""
    coarse = smooth_cells(rng)
    return np.asarray(cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC), np.float32)


_BY_KIND = {"night": _night, "lamps": _lamps, "shadows": _shadows, "sensor": _sensor, "haze": _haze}
