"""Difficult pairs: two surveyed places, WxBS, and views rendered at a chosen angle, scale, overlap or light.

Rendered views are of the buildings in `worlds.revisits`, unseen by any training. The light of a pair is that of the
building's two tours, an exposure, or one of the kinds that training makes too (`training.relight`; said in the name).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from contenders import View
from numpy.typing import NDArray

from loftr_ros.frontend.frame import Frame
from loftr_ros.geometry.camera import CameraModel
from loftr_ros.geometry.se3 import inverse, rotation_matrix
from loftr_ros.training.geometry import covisible, warp_by_depth
from loftr_ros.training.relight import relight
from loftr_ros.worlds.revisits import World

Array = NDArray[np.float64]

STRECHA_GAPS = (1, 2, 3)
ANGLES = (0, 15, 30, 45, 60, 75, 90)  # degrees about the middle of the view
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0)  # ratio of the cameras' distances
OVERLAPS = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1)  # part of the first view's pixels visible in the second
LIGHTS = ("same", "other tour", "dark", "bright", "night*", "lamps*", "shadows*", "sensor*", "haze*")
AXES = ("angle", "scale", "overlap", "light")
SEEDS = (712, 731)  # of the buildings; seeds for reported results
_TRIES = 400
_LEAST_SEEN = 0.08
_NEAREST, _FARTHEST = 0.8, 8.0  # m to the middle of the view
_BESIDE = 0.12  # baseline of pairs that differ in scale, overlap or light, in depths


@dataclass(frozen=True)
class PosedPair:
    """Two views with their true relative pose.

    Attributes:
        views: both.
        T_0_1: (4, 4), up to scale.
        depths: (H, W) float32 along the optical axes, metres; None if unknown.
    """

    views: tuple[View, View]
    T_0_1: Array
    depths: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    def warps(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(H, W, 2) positions of each view's pixels in the other; NaN where not visible."""
        assert self.depths is not None
        K0, K1 = (view.frame.camera.matrix for view in self.views)  # type: ignore[union-attr]
        with np.errstate(divide="ignore"):
            w0, w1 = (np.where(np.isfinite(depth), 1 / depth, 0).astype(np.float32) for depth in self.depths)
        T_1_0 = inverse(self.T_0_1)
        return warp_by_depth(w0, w1, K0, K1, T_1_0), warp_by_depth(w1, w0, K1, K0, self.T_0_1)


@dataclass(frozen=True)
class PointPair:
    """Two views and corresponding points: (N, 2) pixels each, marked by hand."""

    views: tuple[View, View]
    points0: Array
    points1: Array


def view_of(path: Path, camera: CameraModel | None = None) -> View:
    """An image file."""
    color = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if color is None:
        raise SystemExit(f"{path} is not there, or no image")
    gray = np.asarray(cv2.cvtColor(color, cv2.COLOR_BGR2GRAY), np.uint8)
    rgb = np.asarray(cv2.cvtColor(color, cv2.COLOR_BGR2RGB), np.uint8)
    return View(str(path), Frame(gray, 0, "camera", camera), rgb)


def wxbs(data: Path) -> list[PointPair]:
    """The pairs with other light, season, sensor and side."""
    pairs = []
    for folder in sorted((data / "wide" / "wxbs").iterdir()):
        points = np.loadtxt(folder / "correspondences.txt").reshape(-1, 4)
        pairs.append(PointPair((view_of(folder / "01.jpg"), view_of(folder / "02.jpg")), points[:, :2], points[:, 2:]))
    return pairs


def strecha(data: Path, gap: int) -> list[PosedPair]:
    """Pairs of the surveyed places, `gap` photographs apart."""
    pairs = []
    for folder in sorted((data / "wide" / "strecha").iterdir()):
        posed = [_surveyed(file) for file in sorted(folder.glob("*.jpg"))]
        for (view0, pose0), (view1, pose1) in zip(posed, posed[gap:], strict=False):
            pairs.append(PosedPair((view0, view1), np.linalg.inv(pose0) @ pose1))
    return pairs


def _surveyed(file: Path) -> tuple[View, Array]:
    numbers = np.array(file.with_name(f"{file.stem}.camera.txt").read_text().split(), np.float64)
    fx, fy, cx, cy = numbers[:4]
    size = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE).shape  # type: ignore[union-attr]
    camera = CameraModel(size[1], size[0], np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = numbers[4:13].reshape(3, 3), numbers[13:]
    return view_of(file, camera), pose


def rendered(axis: str, value: float | str, count: int) -> list[PosedPair]:
    """Pairs for one point of a curve; fewer if the buildings have no more. Always the same ones.

    Args:
        axis: of AXES.
        value: degrees, factor, share, or one of LIGHTS.
        count: number of pairs, evenly from all buildings.
    """
    pairs: list[PosedPair] = []
    for number, seed in enumerate(SEEDS):
        wanted = (count + len(SEEDS) - 1 - number) // len(SEEDS)
        found = _attempts(axis, value, seed)
        pairs += [pair for pair, _ in zip(found, range(wanted), strict=False)]
    return pairs


def _attempts(axis: str, value: float | str, seed: int) -> Iterator[PosedPair]:
    world = _world(seed)
    rng = np.random.default_rng([seed, AXES.index(axis)])  # all points of a curve use the same places
    for attempt, number in enumerate(rng.permutation(len(world))[:_TRIES]):
        sub = np.random.default_rng([seed, attempt])
        pose0 = world.poses[number]
        depth = _depth(world, pose0)
        rows, columns = depth.shape
        middle = float(np.median(depth[rows // 3 : -rows // 3, columns // 3 : -columns // 3]))
        if not _NEAREST < middle < _FARTHEST:
            continue
        T_0_1 = _MOVES[axis](value, sub, middle)
        if axis == "overlap":
            T_0_1 = _turned_to_overlap(world, pose0, depth, T_0_1, float(value), sub)
            if T_0_1 is None:
                continue
        pose1 = pose0 @ T_0_1
        small = _small_camera(world)
        shares = _shares(small.matrix, depth, _depth(world, pose1), T_0_1)
        if min(shares) < (_LEAST_SEEN if axis != "light" else 0.5):
            continue
        yield _pair(world, pose0, T_0_1, str(value) if axis == "light" else "same", f"{axis}/{value}/{seed}/{number}")


def _orbit(value: float | str, rng: np.random.Generator, middle: float) -> Array:
    """T_0_1 of a camera that has moved around the middle of the view, at its distance; a little also for angle zero."""
    angle = np.radians(float(value)) * rng.choice([-1, 1])
    R = rotation_matrix(np.array([0.0, angle, 0.0]))
    T = np.eye(4)
    T[:3, :3] = R
    T[:3, 3] = np.array([0, 0, middle]) - R @ [0, 0, middle]
    T[:3, 3] += np.array([rng.choice([-1, 1]) * 0.04, 0, 0]) * middle
    return T


def _nearer(value: float | str, rng: np.random.Generator, middle: float) -> Array:
    T = np.eye(4)
    T[:3, 3] = [rng.choice([-1, 1]) * _BESIDE * middle / float(value), 0, middle * (1 - 1 / float(value))]
    return T


def _beside(value: float | str, rng: np.random.Generator, middle: float) -> Array:
    T = _orbit(6.0, rng, middle)
    T[:3, 3] *= _BESIDE / max(float(np.linalg.norm(T[:3, 3])) / middle, 1e-6)
    return T


_MOVES: dict[str, Callable[[float | str, np.random.Generator, float], Array]] = {
    "angle": _orbit,
    "scale": _nearer,
    "overlap": _beside,
    "light": _beside,
}


def _turned_to_overlap(
    world: World, pose0: Array, depth: NDArray[np.float32], T: Array, wanted: float, rng: np.random.Generator
) -> Array | None:
    """Rotate the camera until it sees no more than the wanted share of the first one's view."""
    side = rng.choice([-1, 1])
    small = _small_camera(world)
    for degrees in range(0, 75, 3):
        turned = T.copy()
        turned[:3, :3] = rotation_matrix(np.array([0, side * np.radians(degrees), 0])) @ T[:3, :3]
        share = _shares(small.matrix, depth, _depth(world, pose0 @ turned), turned)[0]
        if share <= wanted + 0.04:
            return turned if share > wanted - 0.08 or (wanted == 1.0 and degrees == 0) else None
    return None


def _shares(K: Array, depth0: NDArray[np.float32], depth1: NDArray[np.float32], T_0_1: Array) -> tuple[float, float]:
    with np.errstate(divide="ignore"):
        w0, w1 = (np.where(np.isfinite(d), 1 / d, 0).astype(np.float32) for d in (depth0, depth1))
    T_1_0 = inverse(T_0_1)
    # Small images: interpolated depth is wrong at every edge.
    return (
        covisible(warp_by_depth(w0, w1, K, K, T_1_0, tolerance=0.05)),
        covisible(warp_by_depth(w1, w0, K, K, T_0_1, tolerance=0.05)),
    )


@cache
def _world(seed: int) -> World:
    return World(seed)


def _small_camera(world: World) -> CameraModel:
    from loftr_ros.worlds.scene import default_camera

    return default_camera(world.camera.width // 8, world.camera.height // 8)


def _depth(world: World, pose: Array) -> NDArray[np.float32]:
    camera = _small_camera(world)
    size = camera.width, camera.height
    return np.asarray(world.building.render(camera.matrix, size, pose, supersample=1)[1], np.float32)


def _pair(world: World, pose0: Array, T_0_1: Array, light: str, name: str) -> PosedPair:
    gains = {"dark": (1.0, 0.35), "bright": (0.8, 2.2), "other tour": (1.0, 1.4)}.get(light, (1.0, 1.0))
    shots = [
        world.render(pose, int(light == "other tour" and number == 1), gain)
        for number, (pose, gain) in enumerate(zip((pose0, pose0 @ T_0_1), gains, strict=True))
    ]
    images = [image for image, _ in shots]
    if light.endswith("*"):
        images[1] = relight(images[1], np.random.default_rng(zlib.crc32(name.encode())), light[:-1])
    views = [
        View(f"{name}/{number}", Frame(image, number, "camera", world.camera), np.repeat(image[:, :, None], 3, axis=2))
        for number, image in enumerate(images)
    ]
    return PosedPair((views[0], views[1]), T_0_1, (shots[0][1], shots[1][1]))
