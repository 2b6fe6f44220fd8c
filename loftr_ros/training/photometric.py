"""Effects of cameras and light on an image: exposure, shadows, blur, noise, vignetting, compression, occluders."""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_LEVELS = np.arange(256, dtype=np.float32) / 255


def photograph(
    image: Image, rng: np.random.Generator, strength: float, softness: float = 0.5
) -> tuple[Image, NDArray[np.bool_] | None]:
    """A real camera's picture of an ideal image.

    Args:
        image: (H, W) uint8.
        strength: in [0, 1], of all changes.
        softness: standard deviation in pixels of the lens blur; hides the jagged edges of rendering.

    Returns:
        The (H, W) uint8 image, and the (H, W) bool pixels covered by something else; None: none.
    """
    hidden: NDArray[np.bool_] | None = None
    if rng.random() < 0.12 * strength:
        image, hidden = _in_the_way(image, rng)
    picture = np.take(_response(float(image[::3, ::3].mean()) / 255, rng, strength), image)
    picture = _blurred(picture, rng, strength, softness)
    if rng.random() < 0.5:
        picture *= cv2.resize(illumination(rng, strength), image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.15 * strength:
        _add_glare(picture, rng)
    if rng.random() < 0.9:
        _add_noise(picture, rng, strength)
    np.clip(picture, 0, 1, out=picture)
    result = cv2.convertScaleAbs(picture, alpha=255)
    if rng.random() < 0.15 + 0.25 * strength:
        quality = int(rng.uniform(95 - 65 * strength, 97))
        coded = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE), np.uint8), hidden
    return np.asarray(result, np.uint8), hidden


def _response(mean: float, rng: np.random.Generator, strength: float) -> NDArray[np.float32]:
    """The (256,) float32 curve of gray values: imperfect automatic exposure, then gamma and contrast."""
    wanted = float(np.clip(rng.normal(0.45, 0.04 + 0.08 * strength), 0.15, 0.75))
    exposure = np.clip(wanted / max(mean, 0.01), 0.6, 3.0) ** rng.uniform(0.4, 1.0)
    if rng.random() < 0.06 * strength:  # very dark, or nearly saturated
        exposure *= rng.choice([rng.uniform(0.15, 0.4), rng.uniform(1.5, 2.0)])
    curve = _LEVELS * np.float32(exposure)
    contrast = np.float32(np.exp(rng.normal(-0.05, 0.06 + 0.16 * strength)))
    curve = (curve - np.float32(wanted)) * contrast + np.float32(wanted)
    curve = np.clip(curve, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.08 + 0.25 * strength)))
    return curve.astype(np.float32)


def _blurred(
    picture: NDArray[np.float32], rng: np.random.Generator, strength: float, softness: float
) -> NDArray[np.float32]:
    sigma = softness + (abs(rng.normal(0, 0.3 + 0.8 * strength)) if rng.random() < 0.4 else 0)
    if sigma > 0.2:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float32)
    if rng.random() < 0.05 + 0.25 * strength:
        length = rng.uniform(1.5, 3 + 8 * strength) * picture.shape[1] / 320
        kernel = motion_kernel(float(length), float(rng.uniform(0, np.pi)))
        picture = np.asarray(cv2.filter2D(picture, -1, kernel), np.float32)
    if rng.random() < 0.15:  # sharpened in the camera
        soft = cv2.GaussianBlur(picture, (0, 0), 1.0)
        picture = cv2.addWeighted(picture, 1.6, soft, -0.6, 0).astype(np.float32)
    return picture


def motion_kernel(length: float, angle: float) -> NDArray[np.float32]:
    """The blur of a straight motion over `length` pixels; symmetric, so that it does not shift the image; sum 1."""
    half = max(1, int(np.ceil(length / 2)))
    kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
    end = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    a, b = ((half + sign * end) * 16 for sign in (-1, 1))
    cv2.line(kernel, tuple(int(x) for x in a), tuple(int(x) for x in b), 1.0, 1, cv2.LINE_8, 4)
    kernel = kernel + kernel[::-1, ::-1]
    return np.asarray(kernel / kernel.sum(), np.float32)


def illumination(rng: np.random.Generator, strength: float) -> NDArray[np.float32]:
    """A smooth field of brightness, (24, 32) over an image: a gradient, a shadow's edge, vignetting."""
    rows, columns = 24, 32
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    y, x = y / (rows - 1) - 0.5, x / (columns - 1) - 0.5
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    field = 1 + along * np.float32(rng.normal(0, 0.2 + 0.5 * strength))
    if rng.random() < 0.3:
        field *= 1 - np.float32(rng.uniform(0.1, 1.0) * (0.3 + 0.5 * strength)) * (x * x + y * y) * 2
    if rng.random() < 0.3 * strength:
        edge = 1 / (1 + np.exp(-np.clip((along - rng.uniform(-0.3, 0.3)) * rng.uniform(8, 60), -30, 30)))
        field *= 1 - np.float32(rng.uniform(0.2, 0.65)) * edge.astype(np.float32)
    return np.asarray(np.maximum(field, np.float32(0.1)), np.float32)


def _add_glare(picture: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Reflections of lamps, which move with the camera and are not part of the scene."""
    height, width = picture.shape
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(0.015, 0.12) * width
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        x0, x1 = max(0, int(centre[0] - 3 * radius)), min(width, int(centre[0] + 3 * radius) + 1)
        y0, y1 = max(0, int(centre[1] - 3 * radius)), min(height, int(centre[1] + 3 * radius) + 1)
        u = np.exp(-(((np.arange(x0, x1) - centre[0]) / radius) ** 2)).astype(np.float32)
        v = np.exp(-(((np.arange(y0, y1) - centre[1]) / (radius * rng.uniform(0.4, 1))) ** 2)).astype(np.float32)
        picture[y0:y1, x0:x1] += np.float32(rng.uniform(0.3, 1.2)) * v[:, None] * u


def _add_noise(picture: NDArray[np.float32], rng: np.random.Generator, strength: float) -> None:
    """Read-out noise, shot noise proportional to the root of brightness, occasionally rows with their own level."""
    amount = abs(rng.normal(0, 1)) * (0.006 + 0.022 * strength)
    noise = _normal(picture.shape, rng)
    if rng.random() < 0.3:  # after a camera's own filter, noise is coarser than a pixel
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8), np.float32) * np.float32(2.2)
    noise *= np.sqrt(np.maximum(picture, 0) * np.float32(rng.uniform(0, 1.5)) + np.float32(0.3)) * np.float32(amount)
    picture += noise
    if rng.random() < 0.15 * strength:
        rows = rng.standard_normal((picture.shape[0], 1), np.float32)
        if rng.random() < 0.5:  # flickering lamps under a rolling shutter
            rows = np.sin(np.arange(picture.shape[0], dtype=np.float32) * np.float32(rng.uniform(0.03, 0.4)))[:, None]
        picture += rows * np.float32(rng.uniform(0.004, 0.025))


def _normal(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """(H, W) float32 normal noise, a random part of a stock: generating it each time would take most of the time."""
    count = shape[0] * shape[1]
    stock = _stock(1 << max(20, (2 * count).bit_length()))
    first = int(rng.integers(len(stock) - count))
    return stock[first : first + count].reshape(shape) * np.float32(rng.choice([-1, 1]))


@cache
def _stock(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(count, np.float32)


def _in_the_way(image: Image, rng: np.random.Generator) -> tuple[Image, NDArray[np.bool_]]:
    """A finger, a strap, a passer-by: a blob or bar that is not in the scene, of one tone or from elsewhere."""
    height, width = image.shape
    shape = np.zeros(image.shape, np.uint8)
    centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
    axes = (int(rng.uniform(0.03, 0.16) * width), int(rng.uniform(0.05, 0.35) * width))
    angle = float(rng.uniform(0, 360))
    if rng.random() < 0.5:
        cv2.ellipse(shape, centre, axes, angle, 0, 360, 1, -1)
    else:
        corners = cv2.boxPoints((centre, (2 * axes[0], 2 * axes[1]), angle))
        cv2.fillConvexPoly(shape, corners.astype(np.int32), 1)
    covered = shape.astype(bool)
    filling = np.roll(image, (int(rng.integers(height)), int(rng.integers(width))), (0, 1))[::-1]
    if rng.random() < 0.5:
        filling = np.full_like(image, int(rng.integers(10, 240)))
    return np.where(covered, filling, image).astype(np.uint8), covered
