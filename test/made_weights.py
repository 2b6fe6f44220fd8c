"""Networks with synthetic weights, and images for them, shared by the tests of the full network."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from calibrated_weights import made_state_dict
from torch import Tensor

from loftr_ros.matcher.coarse import CoarseMatches
from loftr_ros.matcher.config import PRESETS
from loftr_ros.matcher.interface import ImageFeatures, Matches
from loftr_ros.matcher.loftr import network as loftr_module
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

CPU = torch.device("cpu")


# Presets with the same synthetic weights as another.
_ALIKE = {"loftr_new": "loftr"}  # only in the positional encoding


def state_dict(preset: str = "loftr") -> dict[str, Tensor]:
    """The synthetic weights of a preset, made once per process."""
    return _state_dict(_ALIKE.get(preset, preset))


@cache
def _state_dict(preset: str) -> dict[str, Tensor]:
    return made_state_dict(preset)


def network(dtype: torch.dtype = torch.float32, preset: str = "loftr", device: torch.device = CPU) -> LoFTR:
    """A preset with synthetic weights, ready for inference."""
    model = LoFTR(PRESETS[preset])
    model.load_state_dict(state_dict(preset))
    return model.prepare(device, dtype)


@cache
def rendered_pair(width: int = 320, height: int = 240) -> tuple[Tensor, Tensor]:
    """Two uint8 views of a room not used to make the weights, a fifth of a second apart."""
    scene, camera, poses = Scene(3), default_camera(width, height), trajectory(40, seed=3)
    first, second = (torch.from_numpy(scene.render(camera, poses[i]).image) for i in (20, 26))
    return first, second


def gray(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """An image file as uint8 gray, resized to (width, height)."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None, path
    if size is not None:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(image))


def sevenscenes_pair(data: Path) -> tuple[Tensor, Tensor]:
    """Frames of a hand-held 640x480 camera, five apart."""
    first, second = (gray(data / "sevenscenes" / f"frame-{i:06d}.color.jpg") for i in (100, 105))
    return first, second


def kitti_pair(data: Path, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Consecutive 1226x370 frames from a car."""
    first, second = (gray(data / "kitti06_stereo" / "image_l" / f"{i:06d}.png", size) for i in (10, 11))
    return first, second


def matched(model: LoFTR, keyframe: ImageFeatures, current: ImageFeatures) -> tuple[Matches, CoarseMatches]:
    """The result of `match` for one pair, and the coarse matches before refinement."""
    found: list[CoarseMatches] = []
    match_coarse = loftr_module.LoFTR.match_coarse

    def spy(*arguments: object) -> CoarseMatches:
        found.append(match_coarse(*arguments))  # type: ignore[arg-type]
        return found[-1]

    loftr_module.LoFTR.match_coarse = spy  # type: ignore[method-assign]
    try:
        matches = model.match([keyframe], current)[0]
    finally:
        loftr_module.LoFTR.match_coarse = match_coarse  # type: ignore[method-assign]
    return matches, found[0]
