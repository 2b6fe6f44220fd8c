"""Plans of pairs: scenes, photos and cameras are drawn on the host, and checked for overlap by a few hundred rays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from loftr_ros.geometry.se3 import inverse
from loftr_ros.training.assets import AssetBank
from loftr_ros.training.batched.tables import (
    Float64,
    Int64,
    TextureTable,
    View,
    cast,
    photo_view,
    scene_view,
    with_looks,
)
from loftr_ros.training.batched.warps import TOLERANCE
from loftr_ros.training.homography import HomographyPairs
from loftr_ros.training.mixture import HOMOGRAPHY
from loftr_ros.training.motion import LEAST_SEEN, grid_pixels, second_camera_by_points
from loftr_ros.training.rendered import LEAST_COVISIBLE, random_cameras
from loftr_ros.training.scenes import blocked_at, make_surfaces
from loftr_ros.training.stage import SurfaceStage

KINDS = (HOMOGRAPHY, "room", "clutter", "street", "interior")
_SCENES = 6


@dataclass(frozen=True)
class Reflection:
    """What a glossy surface reflects in one view.

    Attributes:
        view: of the reflected camera.
        surface: number of the glossy surface.
        share: of its gray values that is reflected at grazing angles.
        height: of the camera above it; height times inverse depth is about the sine of the angle of view.
        blur: standard deviation of the reflected image, in pixels.
    """

    view: View
    surface: int
    share: float
    height: float
    blur: float


@dataclass(frozen=True)
class PairPlan:
    """A pair to draw.

    Attributes:
        view0, view1: of ideal cameras.
        M_1_0: (3, 3) pixels of infinitely far points of view 0 to those of view 1.
        b_1_0: (3,): pixel p of view 0 is at M p + b / depth.
        M_0_1, b_0_1: the same for view 1.
        reflections: of each view, or None.
        kind: as in `Sample`.
    """

    view0: View
    view1: View
    M_1_0: Float64
    b_1_0: Float64
    M_0_1: Float64
    b_0_1: Float64
    reflections: tuple[Reflection | None, Reflection | None]
    kind: str


class Planner(Protocol):
    """Plans pairs of one kind."""

    def plan(
        self, rng: np.random.Generator, size: tuple[int, int], difficulty: float, textures: TextureTable
    ) -> PairPlan:
        """A pair of (width, height) images that depends only on the arguments; adds its textures."""
        ...


def planners(bank: AssetBank) -> dict[str, Planner]:
    """Of all KINDS."""
    made: dict[str, Planner] = {HOMOGRAPHY: PlannedHomographies(HomographyPairs(bank))}
    return made | {kind: PlannedScenes(bank, kind) for kind in KINDS if kind != HOMOGRAPHY}


@dataclass(frozen=True)
class PlannedHomographies:
    """Two views of a photo."""

    pairs: HomographyPairs

    def plan(
        self, rng: np.random.Generator, size: tuple[int, int], difficulty: float, textures: TextureTable
    ) -> PairPlan:
        """See `Planner`."""
        planned = self.pairs.plan(rng, size, difficulty)
        H, none = planned.H_1_0, np.zeros(3)
        view0, view1 = (
            photo_view(planned.levels, to_photo, size, textures) for to_photo in (planned.photo_0, planned.photo_1)
        )
        # Their inverse depths are the homographies' denominators, which agree if H is not scaled.
        back = np.linalg.inv(H).astype(np.float64)
        return PairPlan(view0, view1, H, none, back, none, (None, None), HOMOGRAPHY)


@dataclass(frozen=True)
class PlannedScenes:
    """Two views of a random scene of a kind of `scenes.make_surfaces`."""

    bank: AssetBank
    kind: str

    def plan(
        self, rng: np.random.Generator, size: tuple[int, int], difficulty: float, textures: TextureTable
    ) -> PairPlan:
        """See `Planner`; at least a tenth of each view is in the other."""
        for _ in range(_SCENES - 1):
            pair = self._attempt(rng, size, difficulty, textures)
            if pair is not None:
                return pair
            difficulty *= 0.8
        while (pair := self._attempt(rng, size, 0.0, textures)) is None:
            pass
        return pair

    def _attempt(
        self, rng: np.random.Generator, size: tuple[int, int], difficulty: float, textures: TextureTable
    ) -> PairPlan | None:
        K0, K1 = random_cameras(rng, size)
        stage = make_surfaces(self.bank, rng, min(difficulty, 1.0), self.kind)
        pixels = grid_pixels(size)
        view0 = scene_view(stage.scene, K0, size, stage.T_camera_world)
        w, numbers = cast(view0, pixels)
        if blocked_at(w, numbers, stage.least_filled):
            return None
        for _ in range(2):
            least = LEAST_SEEN if difficulty <= 1 else LEAST_COVISIBLE
            T_1_0 = second_camera_by_points(rng, difficulty, pixels, w, size, K0, K1, stage.driving, least)
            if T_1_0 is None:
                return None
            T1 = T_1_0 @ stage.T_camera_world
            view1 = scene_view(stage.scene, K1, size, T1)
            there = motion(K0, K1, T_1_0)
            back = motion(K1, K0, inverse(T_1_0))
            w1, numbers1 = cast(view1, pixels)
            if (
                not blocked_at(w1, numbers1, stage.least_filled)
                and shared(view1, pixels, w, numbers, size, *there) >= LEAST_COVISIBLE
                and shared(view0, pixels, w1, numbers1, size, *back) >= LEAST_COVISIBLE
            ):
                view0, view1 = (with_looks(view, stage.scene, textures) for view in (view0, view1))
                reflections = (
                    reflection(stage, K0, size, stage.T_camera_world, textures),
                    reflection(stage, K1, size, T1, textures),
                )
                return PairPlan(view0, view1, *there, *back, reflections, self.kind)
            difficulty *= 0.7
        return None


def motion(K0: Float64, K1: Float64, T_1_0: Float64) -> tuple[Float64, Float64]:
    """M (3, 3) and b (3,): pixel p of camera 0 is at M p + b / depth in camera 1."""
    return K1 @ T_1_0[:3, :3] @ np.linalg.inv(K0), K1 @ T_1_0[:3, 3]


def shared(
    other: View, pixels: Int64, w: Float64, numbers: Int64, size: tuple[int, int], M: Float64, b: Float64
) -> float:
    """The share of some pixels of a view that another one sees, with occlusion.

    Args:
        other: the other view.
        pixels: (N, 2) of the first view.
        w, numbers: (N,) their inverse depths and surfaces.
        size: (width, height).
        M, b: of `motion`.
    """
    x, y, scale = M[:, :2] @ pixels.T + M[:, 2:] + b[:, None] * w
    inside = (scale > 1e-9) & (numbers > 0)
    scale = np.where(inside, scale, 1)
    at = np.stack([x / scale, y / scale], axis=1)
    inside &= ((at >= 0) & (at <= np.array(size) - 1)).all(axis=1)
    if not inside.any():
        return 0.0
    found, there = cast(other, at[inside])
    expected = (w / scale)[inside]
    seen = (there == numbers[inside]) & (np.abs(found - expected) <= TOLERANCE * expected)
    return float(seen.sum() / len(pixels))


def reflection(
    stage: SurfaceStage, K: Float64, size: tuple[int, int], T_camera_world: Float64, textures: TextureTable
) -> Reflection | None:
    """What the stage's glossy floor reflects; None if it has none."""
    gloss = stage.gloss
    if gloss is None:
        return None
    mirror = np.diag([1.0, 1, -1, 1])
    mirror[2, 3] = 2 * gloss.height
    view = scene_view(stage.scene, K, size, T_camera_world @ mirror, reflected=gloss.surface)
    height = float(inverse(T_camera_world)[2, 3]) - gloss.height
    return Reflection(
        with_looks(view, stage.scene, textures), gloss.surface, gloss.share, height, gloss.blur * size[0] / 320
    )
