"""The exact rasterizer of `worlds/` beside the fast one of `training/`, on the same rectangles and textures.

Depth is compared with rays cast in float64, colour with 64 samples a pixel of the exact rasterizer. Times are ratios of
CPU seconds in one process.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.training import render as fast
from loftr_ros.training.texturing import Surface
from loftr_ros.worlds import rasterizer as exact
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

Array = NDArray[np.float64]

RENDERERS = {"exact, 4 samples a pixel": 2, "exact, 1 sample": 1, "fast, 4 samples": 2, "fast, 1 sample": 1}
"""Samples per pixel and axis."""


def fast_scene(rectangles: exact.Rectangles, atlas: exact.Atlas) -> fast.Scene:
    """The rectangles of an exact scene as faces of a fast one, with the same textures."""
    scene = fast.Scene()
    for k in range(len(rectangles.origin)):
        (u, v), (width, height) = atlas.corner[k].astype(int), atlas.size[k].astype(int)
        levels = [np.ascontiguousarray(atlas.image[v : v + height, u : u + width])]
        while min(levels[-1].shape) > 8 and len(levels) < 6:
            levels.append(np.asarray(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)))
        scene.quad(rectangles.origin[k], rectangles.side_s[k], rectangles.side_t[k], Surface(levels))
    return scene


def fast_view(
    scene: fast.Scene, matrix: Array, size: tuple[int, int], pose: Array, samples: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The fast renderer's image and depth, as the exact one gives them; depth is that of the pixel's centre."""
    view = fast.render(scene, matrix, size, pose)
    image, depth = view.image, 1 / view.inverse_depth
    if samples > 1:
        finer = np.diag([samples, samples, 1.0]) @ matrix + np.array([[0, 0, (samples - 1) / 2]] * 2 + [[0, 0, 0]])
        large = fast.render(scene, finer, (size[0] * samples, size[1] * samples), pose)
        image = np.asarray(cv2.resize(large.image, size, interpolation=cv2.INTER_AREA))
    return image.astype(np.float32), depth


def true_depth(
    rectangles: exact.Rectangles, matrix: Array, size: tuple[int, int], pose: Array
) -> tuple[Array, NDArray[np.intp]]:
    """(H, W) float64 metres along z, by one ray through each pixel's centre; and the rectangles that are hit."""
    width, height = size
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).reshape(-1, 2)
    rays = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(matrix).T @ pose[:3, :3].T
    depth = np.full(len(rays), np.inf)
    owner = np.full(len(rays), -1)
    parts = zip(rectangles.origin, rectangles.side_s, rectangles.side_t, rectangles.normals, strict=True)
    for number, (origin, s, t, normal) in enumerate(parts):
        to_plane = origin - pose[:3, 3]
        if normal @ to_plane >= 0:  # seen from behind
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            far = (normal @ to_plane) / (rays @ normal)
            point = far[:, None] * rays - to_plane
            inside = [(point @ side >= 0) & (point @ side <= side @ side) for side in (s, t)]
        hit = inside[0] & inside[1] & (far > exact.NEAR) & (far < depth)
        depth[hit], owner[hit] = far[hit], number
    return depth.reshape(height, width), np.unique(owner[owner >= 0])


def only(rectangles: exact.Rectangles, atlas: exact.Atlas, seen: NDArray[np.intp]) -> tuple[Any, exact.Atlas]:
    """Some of the rectangles: the fast renderer takes no more than 254."""
    parts = (getattr(rectangles, name)[seen] for name in ("origin", "side_s", "side_t", "texel"))
    atlas = copy.copy(atlas)
    atlas.corner, atlas.size = atlas.corner[seen], atlas.size[seen]
    return exact.Rectangles(*parts), atlas


def timed(repeat: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of a call, the least of some, and its result."""
    spent = []
    for _ in range(repeat):
        start = time.process_time()
        result = call()
        spent.append(time.process_time() - start)
    return min(spent), result


def compared(
    rectangles: exact.Rectangles, atlas: exact.Atlas, matrix: Array, size: tuple[int, int], pose: Array, truth: Array
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """For each renderer its numbers in one view, in the order of the table."""
    colours, _ = exact.render(rectangles, atlas, matrix, size, pose, 8)
    faces, inverse = fast_scene(rectangles, atlas), np.linalg.inv(pose)
    for name, samples in RENDERERS.items():
        if name.startswith("exact"):
            spent, (image, depth) = timed(3, partial(exact.render, rectangles, atlas, matrix, size, pose, samples))
        else:
            spent, (image, depth) = timed(3, partial(fast_view, faces, matrix, size, inverse, samples))
        known = np.isfinite(truth)
        off = np.abs(depth[known] / truth[known] - 1)
        colour, same = np.abs(image - colours)[known], off < 1e-3
        beside, rms = 100 * float((~same).mean()), float(np.sqrt((colour**2).mean()))
        yield name, (spent, beside, 1e6 * float(np.percentile(off[same], 99)), rms, float(np.percentile(colour, 99)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 3, 5])
    parser.add_argument("--views", type=int, default=6, help="for each seed")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    camera = default_camera(640, 480)
    size, matrix = (camera.width, camera.height), camera.matrix
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in RENDERERS}
    for seed in arguments.seeds:
        scene = Scene(seed)
        for pose in trajectory(80, seed=seed)[:: 80 // arguments.views][: arguments.views]:
            truth, seen = true_depth(scene._rectangles, matrix, size, pose)
            for name, row in compared(*only(scene._rectangles, scene._atlas, seen), matrix, size, pose, truth):
                rows[name].append(row)
    views, rooms = len(rows["fast, 1 sample"]), len(arguments.seeds)
    print(f"{views} views of {rooms} rooms, {size[0]}x{size[1]}; means over the views\n")
    print("| renderer | CPU time | other surface, % | depth, 99 of 100, 1e-6 | gray, RMS | gray, 99 of 100 |")
    print("| --- | --- | --- | --- | --- | --- |")
    base = np.mean([row[0] for row in rows["fast, 1 sample"]])
    for name, values in rows.items():
        spent, other, depth_off, rms, worst = np.mean(values, axis=0)
        print(f"| {name} | {spent / base:.2f} | {other:.3f} | {depth_off:.2f} | {rms:.2f} | {worst:.1f} |")


if __name__ == "__main__":
    main()
