"""The layouts of ScanNet, MegaDepth and BlendedMVS used for LoFTR, and of 7-Scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loftr_ros.geometry.se3 import inverse
from loftr_ros.training.geometry import Float32, Float64
from loftr_ros.training.recorded import (
    RecordedError,
    RecordedPairs,
    RecordedView,
    pairs_within,
    read_depth_png,
    read_image,
    read_matrix,
    read_npz,
    read_pfm,
)


class ScanNetPairs(RecordedPairs):
    """ScanNet: `<root>/scene0000_00/{color,depth,pose}/<frame>`, depth of 640x480 in mm, poses T_world_camera.

    A pair list is an npz with `name`, (N, 4) of scene, scan, and both frames, and optionally `score`, the overlap.
    """

    kind = "scannet"

    def __init__(self, root: Path, pairs: Path, intrinsics: Path | None = None, least_overlap: float = 0.4) -> None:
        """Read the list.

        Args:
            intrinsics: npz with a (3, 3) matrix for 640x480 by scene; None: each scene's
                `intrinsic/intrinsic_depth.txt`.
            least_overlap: of the used pairs, if the list has scores.

        Raises:
            RecordedError: the list cannot be read, or no pair remains.
        """
        index = read_npz(pairs)
        if "name" not in index:
            raise RecordedError(f"{pairs} has no list `name` of pairs")
        names = np.asarray(index["name"]).reshape(-1, 4)
        if "score" in index:
            names = names[np.asarray(index["score"]).ravel() > least_overlap]
        if not len(names):
            raise RecordedError(f"{pairs} lists no pairs with an overlap above {least_overlap}")
        self._root, self._pairs = root, names
        self._intrinsics = read_npz(intrinsics) if intrinsics is not None else None

    def frames(self, pair: int) -> tuple[tuple[str, int], tuple[str, int]]:
        scene, scan, first, second = (int(n) for n in self._pairs[pair])
        name = f"scene{scene:04d}_{scan:02d}"
        return (name, first), (name, second)

    def view(self, frame: tuple[str, int]) -> RecordedView:
        scene, number = frame
        folder = self._root / scene
        image = read_image(folder / "color" / f"{number}.jpg")
        depth = read_depth_png(folder / "depth" / f"{number}.png")
        T_world_camera = read_matrix(folder / "pose" / f"{number}.txt", 4, 4)
        if not np.isfinite(T_world_camera).all():
            depth, T_world_camera = np.zeros_like(depth), np.eye(4)  # tracking was lost: nothing matches
        if self._intrinsics is None:
            K = read_matrix(folder / "intrinsic" / "intrinsic_depth.txt", 3, 3)
        elif scene in self._intrinsics:
            K = np.asarray(self._intrinsics[scene], np.float64)[:3, :3]
        else:
            raise RecordedError(f"the intrinsics have no entry for {scene}")
        # The matrix is the depth camera's; colour covers the same view with more pixels.
        return RecordedView(image, depth, scaled(K, depth.shape, image.shape), inverse(T_world_camera))


class MegaDepthPairs(RecordedPairs):
    """MegaDepth: an npz per scene with paths, matrices, poses T_camera_world and pairs; depth in HDF5 files."""

    kind = "megadepth"
    tolerance = 0.1

    def __init__(self, root: Path, scene_info: Path, least_overlap: float = 0.1, most_overlap: float = 0.7) -> None:
        """Read the index of a scene, keeping the pairs with an overlap between both limits.

        Raises:
            RecordedError: the index cannot be read or is incomplete, or no pair remains.
        """
        index = read_npz(scene_info)
        missing = [k for k in ("image_paths", "depth_paths", "intrinsics", "poses", "pair_infos") if k not in index]
        if missing:
            raise RecordedError(f"{scene_info} has no `{missing[0]}`")
        self._root, self._index = root, index
        self._pairs = [
            (int(info[0][0]), int(info[0][1]))
            for info in index["pair_infos"]
            if least_overlap < float(info[1]) <= most_overlap
        ]
        if not self._pairs:
            raise RecordedError(f"{scene_info} lists no pairs with an overlap of {least_overlap} to {most_overlap}")

    def view(self, place: int) -> RecordedView:
        image = read_image(self._root / str(self._index["image_paths"][place]))
        depth = _hdf5_depth(self._root / str(self._index["depth_paths"][place]))
        K = np.asarray(self._index["intrinsics"][place], np.float64)
        return RecordedView(image, depth, K, np.asarray(self._index["poses"][place], np.float64))


class BlendedMvsPairs(RecordedPairs):
    """BlendedMVS: `<scene>/{blended_images,rendered_depth_maps,cams}/00000000{.jpg,.pfm,_cam.txt}`, `cams/pair.txt`."""

    kind = "blendedmvs"
    tolerance = 0.02

    def __init__(self, scene: Path, neighbours: int = 10) -> None:
        """Read the scene's pairs.

        Args:
            neighbours: number of used neighbours of each view, the best first.

        Raises:
            RecordedError: `cams/pair.txt` is missing or damaged.
        """
        self._scene = scene
        file = scene / "cams" / "pair.txt"
        try:
            rows = [row.split() for row in file.read_text().splitlines() if row.strip()]
            ranked = {int(rows[k][0]): rows[k + 1][1::2] for k in range(1, len(rows), 2)}
            self._pairs = [(view, int(other)) for view, others in ranked.items() for other in others[:neighbours]]
        except (OSError, ValueError, IndexError) as error:
            raise RecordedError(f"{file} holds no pairs: {error}") from error
        if not self._pairs:
            raise RecordedError(f"{file} lists no pairs")

    def view(self, number: int) -> RecordedView:
        image = read_image(self._scene / "blended_images" / f"{number:08d}.jpg")
        depth = read_pfm(self._scene / "rendered_depth_maps" / f"{number:08d}.pfm")
        file = self._scene / "cams" / f"{number:08d}_cam.txt"
        try:
            words = file.read_text().split()
            start, middle = words.index("extrinsic") + 1, words.index("intrinsic") + 1
            T = np.array(words[start : start + 16], np.float64).reshape(4, 4)
            K = np.array(words[middle : middle + 9], np.float64).reshape(3, 3)
        except (OSError, ValueError) as error:
            raise RecordedError(f"{file} is not a camera file: {error}") from error
        return RecordedView(image, depth, scaled(K, depth.shape, image.shape), T)


class SevenScenesPairs(RecordedPairs):
    """7-Scenes: colour frames with poses, as `loftr_ros run` reads them, and a depth image in mm beside each."""

    kind = "7-scenes"

    def __init__(self, folder: Path, gaps: Sequence[int] = (5, 10, 20, 40)) -> None:
        """List the pairs whose frame numbers differ by one of `gaps`.

        Raises:
            RecordedError: the folder is not from 7-Scenes, has no calibration, or no pair with such a gap.
        """
        from loftr_ros.recordings.base import SourceError
        from loftr_ros.recordings.folders import recognise

        try:
            listing = recognise(folder)
        except SourceError as error:
            raise RecordedError(str(error)) from error
        if listing.kind != "7-Scenes" or listing.camera is None or listing.poses is None:
            raise RecordedError(f"{folder} holds no 7-Scenes frames with `camera-intrinsics.txt` beside them")
        self._files, self._poses, self._K = listing.files, listing.poses, np.asarray(listing.camera.matrix, np.float64)
        tracked = {place for place, pose in enumerate(self._poses) if pose is not None}
        self._pairs = [p for p in pairs_within(listing.numbers, gaps) if tracked.issuperset(p)]
        if not self._pairs:
            raise RecordedError(f"{folder} has no two frames with poses {', '.join(map(str, gaps))} apart")

    def view(self, place: int) -> RecordedView:
        file, pose = self._files[place], self._poses[place]
        assert pose is not None
        depth = read_depth_png(file.with_name(file.name.split(".color.")[0] + ".depth.png"))
        return RecordedView(read_image(file), depth, self._K, inverse(pose))


def scaled(K: Float64, size: tuple[int, ...], wanted: tuple[int, ...]) -> Float64:
    """The matrix of a camera for another image size (height, width)."""
    sy, sx = wanted[0] / size[0], wanted[1] / size[1]
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]]) @ K


def _hdf5_depth(file: Path) -> Float32:
    try:
        import h5py  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise RecordedError("MegaDepth's depth is in HDF5 files; `pip install h5py` reads them") from error
    try:
        with h5py.File(file, "r") as archive:
            return np.asarray(archive["depth"], np.float32)
    except (OSError, KeyError) as error:
        raise RecordedError(f"{file} holds no `depth`: {error}") from error
