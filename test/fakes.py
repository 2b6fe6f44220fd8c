"""Test doubles shared by several tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.frontend.frame import Frame
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.matcher.config import COARSE_LITE, LOFTR
from loftr_ros.matcher.interface import ImageFeatures, Matches


class ShiftMatcher:
    """Matches images that are shifted copies of each other, by phase correlation, to a coarse grid.

    It implements `Matcher` without a fine stage, so the pipeline runs without weights. Its features are the image:
    changes to their memory show in the matches.
    """

    has_fine_stage = False
    cell_size = 16
    cell_offset = 0.0
    fixed_size: tuple[int, int] | None = None
    config = COARSE_LITE
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self) -> None:
        self.encoded = self.completed = 0
        self.batches: list[int] = []

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        self.encoded += 1
        height, width = image.shape
        cell = self.cell_size
        return ImageFeatures(
            tokens=image.float().reshape(1, -1, 1),
            fine=None,
            grid=(-(-height // cell), -(-width // cell)),
            size=(width, height),
            pixels=usable,
            unsmoothed=image.float()[None, None] if self.has_fine_stage else None,
        )

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        self.completed += 1
        return replace(features, fine=features.unsmoothed, unsmoothed=None)

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        self.batches.append(len(keyframes))
        return [self._match(keyframe, current) for keyframe in keyframes]

    def _match(self, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
        assert (keyframe.fine is not None) == self.has_fine_stage, "a keyframe's features are completed before"
        width, height = current.size
        window = cv2.createHanningWindow(keyframe.size, cv2.CV_32F)
        images = [features.tokens.reshape(height, width).numpy() for features in (keyframe, current)]
        shift, response = cv2.phaseCorrelate(images[0], images[1], window)
        rows, columns = keyframe.grid
        cell = torch.arange(rows * columns)
        points0 = torch.stack([cell % columns, cell // columns], dim=1).float() * self.cell_size + self.cell_offset
        points1 = points0 + self._moved(torch.tensor(shift))
        inside = (points1 >= 0).all(dim=1) & (points1[:, 0] < width) & (points1[:, 1] < height) & (response > 0.1)
        count = int(inside.sum())
        std = torch.full((count,), 0.25 if self.has_fine_stage else torch.nan)
        return Matches(cell[inside], points0[inside], points1[inside].float(), torch.full((count,), 0.5), std)

    def _moved(self, shift: Tensor) -> Tensor:
        return (shift / self.cell_size).round() * self.cell_size


class FineShiftMatcher(ShiftMatcher):
    """The same with a fine stage: cells of 8 px with points at their top-left pixels, and sub-pixel matches."""

    has_fine_stage = True
    cell_size = 8
    config = LOFTR

    def _moved(self, shift: Tensor) -> Tensor:
        return shift


def texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """(H, W) uint8 with detail at several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width), np.float32)
    for size in (4, 8, 16, 48):
        coarse = rng.normal(size=(height // size + 2, width // size + 2)).astype(np.float32)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) * size**0.5
    return np.asarray(cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8))


def camera(width: int = 320, height: int = 240, focal: float = 300.0) -> CameraModel:
    """A camera without distortion."""
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    return CameraModel(width, height, matrix)


class PanningStream:
    """Frames cut from one large texture, like those of a camera that moves along a wall."""

    def __init__(self, width: int = 320, height: int = 240, seed: int = 0) -> None:
        self.size = (width, height)
        self._wall = texture(4 * height, 8 * width, seed)
        self._camera = camera(width, height)
        self._number = 0

    def at(
        self,
        x: float,
        y: float = 0.0,
        *,
        stamp: float | None = None,
        frame_id: str = "cam",
        usable: NDArray[np.bool_] | None = None,
    ) -> Frame:
        """The view `x`, `y` pixels from the start; stamps advance by 0.1 s unless one is given, in seconds."""
        self._number += 1
        stamp_ns = round((100 + self._number / 10 if stamp is None else stamp) * 1e9)
        centre = (x + 2 * self.size[0], y + 2 * self.size[1])
        image = np.asarray(cv2.getRectSubPix(self._wall, self.size, centre), np.uint8)
        return Frame(image, stamp_ns, frame_id, self._camera, usable)
