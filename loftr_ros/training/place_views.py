"""Several views of one rendered place, like those of different visits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from loftr_ros.training.assets import AssetBank
from loftr_ros.training.geometry import intrinsics
from loftr_ros.training.motion import second_camera
from loftr_ros.training.photometric import photograph
from loftr_ros.training.scenes import blocked, make_stage
from loftr_ros.worlds.rasterizer import Raster
from loftr_ros.worlds.revisits import World

Image = NDArray[np.uint8]

# Frequency of each kind of scene. Reliefs take five times as long as the others.
KINDS = {"room": 0.42, "street": 0.28, "clutter": 0.22, "relief": 0.08}
# Least part of the first view that another must see too.
_LEAST_SHARED = 0.35
_HARDEST = 0.55  # difficulty for `second_camera`: about 40 degrees aside, and a third of the depth


def place_views(
    bank: AssetBank, rng: np.random.Generator, count: int, size: tuple[int, int] = (640, 480), kind: str | None = None
) -> list[Image]:
    """Views of one random place, from different sides, in other light, blurred, and by the same camera.

    Args:
        bank: photos and textures.
        rng: source of all randomness.
        count: number of views.
        size: (width, height) in pixels.
        kind: "room", "street", "clutter" or "relief"; None for any.

    Returns:
        `count` (H, W) uint8 images.
    """
    kind = kind or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    while True:
        views = _attempt(bank, rng, count, size, kind)
        if views is not None:
            return [photograph(view.image, rng, float(rng.random()))[0] for view in views]


def revisited_places(seed: int, views: int = 4) -> Iterator[list[Image]]:
    """Views of each place of a world with revisits, from both of its tours if both visit the place.

    Args:
        seed: of the world, one of those reserved for fitting descriptors.
        views: per place, at most.
    """
    world = World(seed)
    revisit = world.relations.is_revisit.copy()
    np.fill_diagonal(revisit, False)
    rng, free = np.random.default_rng(seed), np.ones(len(world), bool)
    for first in rng.permutation(len(world)):
        again = np.flatnonzero(revisit[first] & free)
        if not free[first] or not len(again):
            continue
        other = again[world.tours[again] != world.tours[first]]
        same = again[world.tours[again] == world.tours[first]]
        chosen = [int(first), *rng.permutation(other)[:2].tolist(), *rng.permutation(same)[:2].tolist()][:views]
        free[chosen] = False
        yield [world.view(number).image for number in chosen]


def _attempt(
    bank: AssetBank, rng: np.random.Generator, count: int, size: tuple[int, int], kind: str
) -> list[Raster] | None:
    K = intrinsics(size, float(rng.uniform(50, 95)))
    hardness = 0.0 if kind == "relief" else float(rng.random())
    stage = make_stage(bank, rng, hardness, kind)
    views = [stage.render(K, size, stage.T_camera_world)]
    if blocked(views[0]):
        return None
    for _ in range(3 * count):
        if len(views) == count:
            return views
        difficulty = float(rng.uniform(0.1, _HARDEST))
        T_k_0 = second_camera(rng, difficulty, views[0].inverse_depth, K, K, stage.driving, _LEAST_SHARED)
        if T_k_0 is not None:
            view = stage.render(K, size, T_k_0 @ stage.T_camera_world)
            if not blocked(view):
                views.append(view)
    return None
