"""Pairs of images for tests of training, in a module that data processes can import."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

HEIGHT, WIDTH = 64, 96


def picture(seed: int, rows: int = 300, columns: int = 400, finest: int = 6) -> NDArray[np.uint8]:
    """Smooth blotches of several sizes: interpolating between pixels is then accurate."""
    import cv2

    rng = np.random.default_rng(seed)
    image = np.zeros((rows, columns), np.float32)
    for cell in (60, 24, finest):
        noise = rng.normal(0, 1, (rows // cell + 2, columns // cell + 2)).astype(np.float32)
        image += cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 35 * image, 0, 255).astype(np.uint8)


class Homographies:
    """Blurred noise and the same under a random mild homography, by number."""

    def __init__(self, batch: int = 2, seed: int = 0, length: int = 2, size: tuple[int, int] = (HEIGHT, WIDTH)) -> None:
        self._batch, self._seed, self._length, self._size = batch, seed, length, size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        pairs = [self._pair(np.random.default_rng([self._seed, number, i])) for i in range(self._batch)]
        return {name: torch.stack([pair[name] for pair in pairs]) for name in pairs[0]}

    def _pair(self, random: np.random.Generator) -> dict[str, Tensor]:
        import cv2

        height, width = self._size
        texture = sum(
            cv2.resize(random.random((height // s + 2, width // s + 2), dtype=np.float32), (width * 2, height * 2))
            for s in (2, 4, 8, 16)
        )
        texture = (texture - texture.min()) / (texture.max() - texture.min())
        centre = np.float32([[1, 0, width / 2], [0, 1, height / 2], [0, 0, 1]])
        angle, scale, shift = random.uniform(-0.3, 0.3), random.uniform(0.8, 1.25), random.uniform(-8, 8, 2)
        turn = np.float32(
            [
                [scale * np.cos(angle), -scale * np.sin(angle), shift[0]],
                [scale * np.sin(angle), scale * np.cos(angle), shift[1]],
                [random.uniform(-1e-3, 1e-3), 0, 1],
            ]
        )
        image1_from_image0 = (centre @ turn @ np.linalg.inv(centre)).astype(np.float64)
        whole = centre.copy()
        whole[:2, 2] = -width / 2, -height / 2  # image 0 is the texture's centre
        whole = np.float64([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
        images = [
            cv2.warpPerspective(texture, matrix @ whole, (width, height)) for matrix in (np.eye(3), image1_from_image0)
        ]
        warps = [warp_by(matrix, self._size) for matrix in (image1_from_image0, np.linalg.inv(image1_from_image0))]
        tensors = [torch.from_numpy(image)[None] for image in images] + [torch.from_numpy(warp) for warp in warps]
        return dict(zip(("image0", "image1", "warp01", "warp10"), tensors, strict=True))


def warp_by(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 2) float32, positions of the pixels of an image of (height, width) under a homography; NaN outside."""
    height, width = size
    v, u = np.mgrid[:height, :width]
    points = np.stack([u, v, np.ones_like(u)], axis=-1) @ matrix.T
    points = points[..., :2] / points[..., 2:]
    outside = (points < -0.5).any(axis=-1) | (points > np.array([width, height]) - 0.5).any(axis=-1)
    points[outside] = np.nan
    return points.astype(np.float32)
