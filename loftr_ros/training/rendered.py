"""Training pairs from rendered scenes: two cameras, exact depth and pose, and simulated camera effects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loftr_ros.geometry.se3 import inverse
from loftr_ros.training.assets import AssetBank
from loftr_ros.training.geometry import Float32, Float64, covisible, hide, intrinsics, warp_by_depth
from loftr_ros.training.motion import LEAST_SEEN, second_camera
from loftr_ros.training.photometric import photograph
from loftr_ros.training.relight import in_other_light
from loftr_ros.training.sample import Sample
from loftr_ros.training.scenes import blocked, make_stage
from loftr_ros.worlds.rasterizer import Raster

LEAST_COVISIBLE = 0.1
_SCENES = 6


@dataclass(frozen=True)
class CleanPair:
    """Two views before photometric changes.

    Attributes:
        view0, view1: of ideal cameras.
        K0, K1: (3, 3).
        T_1_0: (4, 4), pose of camera 0 in camera 1.
        warp01, warp10: as in `Sample`.
    """

    view0: Raster
    view1: Raster
    K0: Float64
    K1: Float64
    T_1_0: Float64
    warp01: Float32
    warp10: Float32


@dataclass(frozen=True)
class RenderedPairs:
    """Pairs of views of random scenes of one kind.

    Attributes:
        bank: photos and textures.
        kind: "room", "street", "clutter" or "relief".
        light: probability that one of the two views is in other light; see `relight`.
    """

    bank: AssetBank
    kind: str
    light: float = 0.0

    def sample(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> Sample:
        """A pair of (width, height) images; `difficulty` is that of motion, light, and repeats.

        Above 1, up to `config.WIDEST`, only the motion gets wider.
        """
        pair = self.clean(rng, size, difficulty)
        clean0, clean1, changed = in_other_light(pair.view0.image, pair.view1.image, rng, self.light)
        strength = min(difficulty, 1.0) * (0.5 if changed else 1.0)
        image0, hidden0 = photograph(clean0, rng, strength * float(rng.random()))
        image1, hidden1 = photograph(clean1, rng, strength * float(rng.random()))
        hide(pair.warp01, pair.warp10, hidden0, hidden1)
        return Sample(image0, image1, pair.warp01, pair.warp10, self.kind)

    def clean(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> CleanPair:
        """The pair before photometric changes; at least a tenth of each view is in the other."""
        for _ in range(_SCENES - 1):
            pair = self._attempt(rng, size, difficulty)
            if pair is not None:
                return pair
            difficulty *= 0.8
        while (pair := self._attempt(rng, size, 0.0)) is None:
            pass
        return pair

    def _attempt(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> CleanPair | None:
        K0, K1 = random_cameras(rng, size)
        stage = make_stage(self.bank, rng, min(difficulty, 1.0), self.kind)
        view0 = stage.render(K0, size, stage.T_camera_world)
        if blocked(view0, stage.least_filled):
            return None
        for _ in range(2):
            least = LEAST_SEEN if difficulty <= 1 else LEAST_COVISIBLE
            T_1_0 = second_camera(rng, difficulty, view0.inverse_depth, K0, K1, stage.driving, least)
            if T_1_0 is None:
                return None
            view1 = stage.render(K1, size, T_1_0 @ stage.T_camera_world)
            surfaces = (view0.surface, view1.surface)
            depths = (view0.inverse_depth, view1.inverse_depth)
            warp01 = warp_by_depth(*depths, K0, K1, T_1_0, surfaces)
            if not blocked(view1, stage.least_filled) and covisible(warp01) >= LEAST_COVISIBLE:
                warp10 = warp_by_depth(*depths[::-1], K1, K0, inverse(T_1_0), surfaces[::-1])
                if covisible(warp10) >= LEAST_COVISIBLE:
                    return CleanPair(view0, view1, K0, K1, T_1_0, warp01, warp10)
            difficulty *= 0.7
        return None


def random_cameras(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Float64, Float64]:
    """The (3, 3) matrices of a pair's cameras: mostly one twice; sometimes two different ones, or a zoom."""
    first = float(rng.uniform(50, 95) if rng.random() < 0.9 else rng.uniform(95, 110))
    second = float(np.clip(first * np.exp(rng.normal(0, 0.25)), 45, 110)) if rng.random() < 0.2 else first
    K0, K1 = intrinsics(size, first), intrinsics(size, second)
    shift = rng.normal(0, 0.02, 2) * size[0]
    K0[:2, 2] += shift
    K1[:2, 2] += shift
    return K0, K1
