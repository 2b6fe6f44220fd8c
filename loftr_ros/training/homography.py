"""Training pairs from photos: two cameras before one picture, strongly tilted, rotated, and with different light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import rotation_matrix
from loftr_ros.training.assets import AssetBank, StoredLevels
from loftr_ros.training.geometry import Float32, Float64, hide, warp_by_homography
from loftr_ros.training.photometric import photograph
from loftr_ros.training.relight import in_other_light
from loftr_ros.training.sample import Sample
from loftr_ros.worlds.texturing import warped

_LEAST_COVISIBLE = 0.15
_TRIES = 8
_LARGEST_TILT = np.radians(72)
_FOCAL = 1.1  # of the virtual camera, in image widths


@dataclass(frozen=True)
class PlannedPair:
    """A photo and two views of it.

    Attributes:
        levels: (H, W) uint8 mip levels of the photo.
        photo_0, photo_1: (3, 3), pixels of each image to those of the photo.
        H_1_0: (3, 3), pixels of image 0 to those of image 1.
    """

    levels: StoredLevels
    photo_0: Float64
    photo_1: Float64
    H_1_0: Float64


@dataclass(frozen=True)
class HomographyPairs:
    """Pairs of views of a photo, occasionally of a texture.

    Attributes:
        bank: photos and textures.
        light: probability that one of the two is in other light; see `relight`.
    """

    bank: AssetBank
    light: float = 0.0

    def sample(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> Sample:
        """A pair of (width, height) images; at difficulty 1, tilts go to 60 degrees and scales from 1/2 to 2.

        At `config.WIDEST` they go to 72 degrees and from 1/3 to 3; light and noise are those of 1.
        """
        clean0, clean1, warp01, warp10 = self.clean(rng, size, difficulty)
        clean0, clean1, changed = in_other_light(clean0, clean1, rng, self.light)
        strengths = (0.2 + 0.8 * min(difficulty, 1.0)) * rng.random(2) * (0.5 if changed else 1.0)
        image0, hidden0 = photograph(clean0, rng, float(strengths[0]), softness=0.0)
        image1, hidden1 = photograph(clean1, rng, float(strengths[1]), softness=0.0)
        hide(warp01, warp10, hidden0, hidden1)
        return Sample(image0, image1, warp01, warp10, "homography")

    def clean(
        self, rng: np.random.Generator, size: tuple[int, int], difficulty: float
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Float32, Float32]:
        """Both images before photometric change, and both warps."""
        planned = self.plan(rng, size, difficulty)
        there = warp_by_homography(planned.H_1_0, size)
        back = warp_by_homography(np.linalg.inv(planned.H_1_0).astype(np.float64), size)
        return view(planned.levels, planned.photo_0, size), view(planned.levels, planned.photo_1, size), there, back

    def plan(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> PlannedPair:
        """The photo and its two views, before any pixel is computed."""
        levels = self.bank.photo(rng) if rng.random() < 0.8 else self.bank.texture(rng)
        rows, columns = levels[0].shape
        width, height = size
        # The photo's pixels per pixel of image 0: below 1 it would be enlarged, which the network could detect.
        fits = min(columns / width, rows / height)
        zoom = float(np.exp(rng.uniform(np.log(min(0.8, fits)), np.log(max(fits, 0.81)))))
        margin = np.array([columns - zoom * width, rows - zoom * height]) / 2
        centre = np.array([columns, rows]) / 2 + np.maximum(margin, 0) * rng.uniform(-1, 1, 2)
        flat = np.array(
            [[zoom, 0, centre[0] - zoom * width / 2], [0, zoom, centre[1] - zoom * height / 2], [0, 0, 1.0]]
        )
        if rng.random() < 0.5:
            flat = flat @ random_homography(rng, size, 0.3 * difficulty)
        H: Float64 = np.eye(3)
        back: Float64 = np.eye(3)
        for attempt in range(_TRIES):
            H = random_homography(rng, size, difficulty * (1 - attempt / _TRIES))
            back = np.linalg.inv(H).astype(np.float64)
            if min(_shared(H, size), _shared(back, size)) >= _LEAST_COVISIBLE:
                break
        other = flat @ back
        if rng.random() < 0.5:
            return PlannedPair(levels, flat, other, H)
        return PlannedPair(levels, other, flat, back)


def _shared(H: Float64, size: tuple[int, int]) -> float:
    """About the share of a (width, height) image's pixels that a homography maps into another image of that size."""
    pixels = np.stack(np.meshgrid(np.arange(2, size[0], 5), np.arange(2, size[1], 5)), axis=-1).reshape(-1, 2)
    x, y, scale = H[:, :2] @ pixels.T + H[:, 2:]
    inside = (scale > 1e-9) & (x >= 0) & (y >= 0) & (x <= (size[0] - 1) * scale) & (y <= (size[1] - 1) * scale)
    return float(inside.mean())


def random_homography(rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> Float64:
    """Maps pixels of a frontal camera before a plane to those of one that is tilted, rotated, nearer or farther."""
    width, height = size
    focal = _FOCAL * width
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    about = rng.uniform(0, 2 * np.pi)
    tilt = min(np.radians(60) * difficulty, _LARGEST_TILT) * np.sqrt(rng.random())
    roll = np.radians(rng.uniform(-1, 1) * (10 + 50 * difficulty))
    if rng.random() < 0.08 * difficulty:
        roll = rng.uniform(-np.pi, np.pi)
    R = rotation_matrix(np.array([0, 0, roll])) @ rotation_matrix(np.array([np.cos(about), np.sin(about), 0]) * tilt)
    scale = np.exp(rng.uniform(-1, 1) * np.log(2) * (0.2 + 0.8 * difficulty))
    shift = rng.uniform(-1, 1, 2) * (0.05 + 0.3 * difficulty) / _FOCAL
    # The camera rotates about the middle of its view, then moves along and across its axis.
    middle = np.array([0, 0, 1.0])
    t = middle / scale - R @ middle + np.array([*shift, 0]) / scale
    H = K @ (R + np.outer(t, middle)) @ np.linalg.inv(K)
    return np.asarray(H / H[2, 2], np.float64)


def view(levels: list[NDArray[np.uint8]], to_photo: Float64, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The (width, height) image whose pixels are at H p of a photo, sampled from the mip level that fits each pixel.

    The photo continues mirrored beyond its edges.
    """
    width, height = size
    v, u = np.mgrid[0:height:8, 0:width:8]
    scale = to_photo[2, 0] * u + to_photo[2, 1] * v + to_photo[2, 2]
    area = abs(np.linalg.det(to_photo)) / np.maximum(np.abs(scale), 1e-6) ** 3
    level = np.clip(0.5 * np.log2(area) - 0.1, 0, len(levels) - 1).astype(np.float32)
    first, last = int(level.min()), int(np.ceil(level.max()))
    image: NDArray[np.uint8] | None = None
    level = cv2.resize(level, size, interpolation=cv2.INTER_LINEAR) if last > first else level
    for k in range(first, last + 1):
        layer = warped(levels, k, to_photo, size, cv2.BORDER_REFLECT)
        if image is None:
            image = layer
        else:
            share = np.clip(level - np.float32(k - 1), 0, 1)
            image = np.asarray(cv2.blendLinear(image, layer, 1 - share, share), np.uint8)
    assert image is not None
    return image
