"""Single photographs for a teacher of features: any part of one, at any scale, in two lights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.training.assets import AssetBank, StoredLevels
from loftr_ros.training.geometry import Float64
from loftr_ros.training.homography import view
from loftr_ros.training.photometric import photograph
from loftr_ros.training.relight import relight

# Probability of a texture instead of a photograph: surfaces seen frontally.
_TEXTURES = 0.15
# Largest roll of the camera about its axis, in radians.
_ROLL = 0.35
# Strength of the changes to the teacher's picture; the student's goes to 1.
TEACHERS_STRENGTH = 0.3
_PHOTO_STREAM = 0x9407


class TaughtPhotos(NamedTuple):
    """Photographs for learning a teacher's features.

    Attributes:
        seen: (B, 1, H, W) float32 in [0, 1], input of the student.
        taught: (B, 1, H, W) the same views, input of the teacher.
    """

    seen: Tensor
    taught: Tensor


@dataclass(frozen=True)
class PhotoViews:
    """Numbered batches of photographs, each determined by the seed and its number.

    Attributes:
        bank: photos and textures.
        count: views per batch.
        light: probability that the student's picture is in other light than the teacher's.
        seed: of everything.
    """

    bank: AssetBank
    count: int
    light: float
    seed: int = 0

    def batch(self, number: int, size: tuple[int, int]) -> TaughtPhotos:
        """Batch `number`, its images (width, height)."""
        rng = self.random(number)
        pairs = [self._pair(rng, size) for _ in range(self.count)]
        seen, taught = (
            torch.from_numpy(np.stack(images)[:, None]).float().div_(255) for images in zip(*pairs, strict=True)
        )
        return TaughtPhotos(seen, taught)

    def random(self, number: int) -> np.random.Generator:
        """The random numbers of batch `number`."""
        return np.random.default_rng([self.seed, number, _PHOTO_STREAM])

    def part(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[StoredLevels, Float64]:
        """The levels of a random photograph or texture, and (3, 3) pixels of an image of a part of it to its own."""
        levels = self.bank.texture(rng) if rng.random() < _TEXTURES else self.bank.photo(rng)
        return levels, part_of_a_photo(rng, levels[0].shape, size)

    def _pair(self, rng: np.random.Generator, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        clean = view(*self.part(rng, size), size)
        taught = photograph(clean, rng, TEACHERS_STRENGTH * float(rng.random()), softness=0.0)[0]
        if rng.random() < self.light:
            seen = photograph(relight(clean, rng), rng, 0.5 * float(rng.random()), softness=0.0)[0]
        elif rng.random() < 0.5:
            seen = photograph(clean, rng, float(rng.random()), softness=0.0)[0]
        else:
            seen = taught
        return seen, taught


def part_of_a_photo(rng: np.random.Generator, shape: tuple[int, ...], size: tuple[int, int]) -> NDArray[np.float64]:
    """(3, 3) pixels of an image of (width, height) -> those of a photo: from its whole to a part at full resolution."""
    rows, columns = shape[:2]
    width, height = size
    whole = max(columns / width, rows / height)  # the photo continues mirrored beyond its edges
    fits = min(columns / width, rows / height)
    zoom = float(np.exp(rng.uniform(np.log(min(0.8, fits)), np.log(max(0.5 * (fits + whole), 0.81)))))
    roll = rng.normal(0, 0.3) * _ROLL
    cosine, sine = zoom * np.cos(roll), zoom * np.sin(roll)
    margin = np.maximum([columns - zoom * width, rows - zoom * height], 0) / 2
    middle = np.array([columns - 1, rows - 1]) / 2 + margin * rng.uniform(-1, 1, 2)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle - linear @ (np.array([width - 1, height - 1]) / 2)
    return matrix
