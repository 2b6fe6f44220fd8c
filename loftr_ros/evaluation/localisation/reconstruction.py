"""COLMAP's part: points triangulated from known poses, and poses of queries from points (pycolmap).

COLMAP's pixels have (0.5, 0.5) at the centre of the first pixel; those of keypoints are half a pixel less.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.localisation.hloc_files import HlocFile, Keypoints
from loftr_ros.evaluation.localisation.lists import LocalisationError, Pair, Query
from loftr_ros.extras import how_to_install
from loftr_ros.geometry.se3 import skew

Array = NDArray[np.float64]

# COLMAP's database in a folder that `triangulate` made. Another folder is never replaced.
_DATABASE = "loftr_ros.db"
_MODEL_FILES = ("cameras", "images", "points3D")
# As in hloc's evaluation of Aachen: of matches from epipolar lines of the known poses, in pixels of the keypoints'
# uncertainty; and of a query's points from the projected ones, in pixels.
_EPIPOLAR_ERROR = 4.0
POSE_ERROR = 12.0
# RANSAC and triangulation take the same random numbers in each run.
_SEED = 0


@dataclass(frozen=True, eq=False)
class Localised:
    """A query's result.

    Attributes:
        pose: (4, 4) T_camera_world; None without.
        correspondences: number of points in the query with a point in the model.
        inliers: how many of them agree with the pose.
    """

    pose: Array | None
    correspondences: int
    inliers: int


def require_pycolmap() -> Any:
    """The module; it then prints nothing but errors.

    Raises:
        LocalisationError: it is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise LocalisationError(
            f"localisation needs pycolmap, which is not installed ({error}): {how_to_install('localisation')}"
        ) from error
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    return pycolmap


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model of COLMAP, as binary or text files."""
    return any(all((folder / f"{name}{ending}").is_file() for name in _MODEL_FILES) for ending in (".bin", ".txt"))


def open_model(folder: Path) -> Any:
    """The `pycolmap.Reconstruction` of a folder with cameras, images and points3D, `.bin` or `.txt`.

    Raises:
        LocalisationError: pycolmap is not installed, or there is no model in the folder, or it is damaged.
    """
    pycolmap = require_pycolmap()
    if not is_model(folder):
        raise LocalisationError(f"{folder} holds no model of COLMAP: no cameras, images and points3D, .bin or .txt")
    try:
        model = pycolmap.Reconstruction(folder)
    except (RuntimeError, ValueError, IndexError) as error:
        raise LocalisationError(f"{folder} holds a model of COLMAP that cannot be read: {error}") from error
    if not model.num_images():
        raise LocalisationError(f"the model in {folder} has no images")
    return model


def poses_of_model(folder: Path) -> dict[str, Array]:
    """Each image's (4, 4) T_camera_world.

    Raises:
        LocalisationError: as `open_model`.
    """
    return {image.name: _pose(image) for image in open_model(folder).images.values() if image.has_pose}


def covisible_pairs(folder: Path, count: int) -> list[Pair]:
    """Pairs of each image with those that see most of its points.

    Args:
        folder: model with points.
        count: at most so many of each image.

    Raises:
        LocalisationError: as `open_model`, or no two images see one point.
    """
    model = open_model(folder)
    pairs = dict[Pair, None]()
    for _, image in sorted(model.images.items()):
        shared = Counter[int]()
        for point in image.get_observation_points2D():
            shared.update({each.image_id for each in model.points3D[point.point3D_id].track.elements})
        shared.pop(image.image_id, None)
        for other, _ in sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:count]:
            pair = image.name, model.images[other].name
            if pair[::-1] not in pairs:
                pairs[pair] = None
    if not pairs:
        raise LocalisationError(f"no two images of the model in {folder} see one point; list the pairs otherwise")
    return list(pairs)


def triangulate(
    reference: Path, pairs: Sequence[Pair], features: Path, matches: Path, output: Path, progress: bool = True
) -> str:
    """Triangulate points from matches of images with known poses, and write a model with them.

    Matches that are too far from their epipolar line are left out. Poses and cameras stay as they are.

    Args:
        reference: model with the poses and cameras; its points are not used.
        pairs: of images of the model.
        features, matches: hloc's files.
        output: folder for the model; it appears when it is complete, and replaces one of an earlier call.
        progress: show a bar.

    Returns:
        What the model has, in a line.

    Raises:
        LocalisationError: a file is missing, damaged, or does not belong to the others; or nothing is triangulated.
    """
    from tqdm import tqdm

    pycolmap, model = require_pycolmap(), open_model(reference)
    ids = {image.name: number for number, image in model.images.items()}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        if name not in ids:
            raise LocalisationError(f"{name} of the pairs is not in the model in {reference}")
    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors, options.random_seed = False, _SEED
    with _folder(output) as part, HlocFile(features) as feature_file, HlocFile(matches) as match_file:
        database = part / _DATABASE
        try:
            with pycolmap.Database.open(database) as opened:
                known = _write_images(opened, model, ids, feature_file)
                for pair in tqdm(pairs, unit="pair", desc="geometric verification", disable=not progress):
                    _write_pair(opened, model, ids, pair, known, feature_file, match_file)
            done = pycolmap.triangulate_points(model, database, part, part, options=options)
        except LocalisationError:
            raise
        except (RuntimeError, ValueError) as error:
            raise LocalisationError(f"COLMAP cannot triangulate into {output}: {error}") from error
        if not done.num_points3D():
            raise LocalisationError("nothing could be triangulated: too few matches agree with the poses of the model")
    return (
        f"{done.num_reg_images()} images, {done.num_points3D()} points, each in {done.compute_mean_track_length():.1f} "
        f"images, {done.compute_mean_reprojection_error():.2f} px off on average"
    )


def _write_images(database: Any, model: Any, ids: Mapping[str, int], features: HlocFile) -> dict[str, Keypoints]:
    """Write the model's cameras and images, with their keypoints, which are returned, into COLMAP's database."""
    for camera in model.cameras.values():
        database.write_camera(camera, use_camera_id=True)
    for rig in model.rigs.values():
        database.write_rig(rig, use_rig_id=True)
    for frame in model.frames.values():
        database.write_frame(frame, use_frame_id=True)
    there, found = features.images(), dict[str, Keypoints]()
    for name, number in ids.items():
        if name in there:
            found[name] = features.keypoints(name)
        points = found[name].points if name in there else np.zeros((0, 2), np.float32)
        database.write_image(model.images[number], use_image_id=True)
        database.write_keypoints(number, points + np.float32(0.5))
    return found


def _write_pair(
    database: Any,
    model: Any,
    ids: Mapping[str, int],
    pair: Pair,
    keypoints: Mapping[str, Keypoints],
    features: HlocFile,
    matches: HlocFile,
) -> None:
    """Write a pair's matches, and those on the epipolar lines of the known poses as verified ones."""
    import pycolmap

    for name in pair:
        if name not in keypoints:
            raise LocalisationError(f"{features.file} has no keypoints of {name}")
    index = matches.matches(pair).index
    _check_index(index, pair, [len(keypoints[name].points) for name in pair], matches.file, features.file)
    verified = pycolmap.TwoViewGeometry()
    verified.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED  # COLMAP 4 ignores pairs without
    verified.inlier_matches = index[_on_epipolar_lines(model, ids, pair, keypoints, index)].astype(np.uint32)
    database.write_matches(ids[pair[0]], ids[pair[1]], index.astype(np.uint32))
    database.write_two_view_geometry(ids[pair[0]], ids[pair[1]], verified)


class Localiser:
    """Finds poses of queries in a model, by points that they share with images of it."""

    def __init__(self, model: Path, features: Path, matches: Path, max_error: float = POSE_ERROR) -> None:
        """Open model and files.

        Args:
            model: folder, with points of the keypoints that the matches are of.
            features, matches: hloc's files, of the queries and their pairs.
            max_error: largest distance in pixels of a point from its projected one.

        Raises:
            LocalisationError: one of them is missing or damaged, or the model has no points.
        """
        self._pycolmap = require_pycolmap()
        self._model = open_model(model)
        if not self._model.num_points3D():
            raise LocalisationError(f"the model in {model} has no points; triangulate them first")
        self._ids = {image.name: number for number, image in self._model.images.items()}
        self._points = dict[int, NDArray[np.int64]]()
        self._features, self._matches, self._files = HlocFile(features), HlocFile(matches), (features, matches)
        self._known = self._features.images()
        self._options = pycolmap_options(self._pycolmap, max_error)

    def __enter__(self) -> Localiser:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._features, self._matches):
            each.__exit__()

    def localise(self, query: Query, images: Sequence[str]) -> Localised:
        """The pose of a query.

        Args:
            query: with its camera.
            images: of the model, that the query was matched with.

        Raises:
            LocalisationError: an image is not in the model, or files lack something, or do not belong to the model.
        """
        if query.name not in self._known:
            raise LocalisationError(f"{self._files[0]} has no keypoints of {query.name}")
        keypoints = self._features.keypoints(query.name).points
        found = defaultdict[int, dict[int, None]](dict)
        for name in images:
            if name not in self._ids:
                raise LocalisationError(f"{name}, paired with {query.name}, is not in the model")
            points, index = self._points_of(self._ids[name]), self._matches.matches((query.name, name)).index
            _check_index(index, (query.name, name), [len(keypoints), len(points)], *self._files[::-1])
            for keypoint, point in zip(index[:, 0].tolist(), points[index[:, 1]].tolist(), strict=True):
                if point >= 0:
                    found[keypoint][point] = None
        matched = [(keypoint, point) for keypoint, points3d in found.items() for point in points3d]
        if len(matched) < 4:
            return Localised(None, len(matched), 0)
        pixels = keypoints[[keypoint for keypoint, _ in matched]].astype(np.float64) + 0.5
        world = np.array([self._model.points3D[point].xyz for _, point in matched])
        camera = self._pycolmap.Camera(
            model=query.model, width=query.width, height=query.height, params=list(query.parameters)
        )
        answer = self._pycolmap.estimate_and_refine_absolute_pose(
            pixels, world, camera, estimation_options=self._options
        )
        if answer is None:
            return Localised(None, len(matched), 0)
        pose = np.vstack([answer["cam_from_world"].matrix(), [0, 0, 0, 1.0]])
        return Localised(pose, len(matched), int(answer["num_inliers"]))

    def _points_of(self, number: int) -> NDArray[np.int64]:
        """Each keypoint's point in the model, or -1."""
        if number not in self._points:
            points = self._model.images[number].points2D
            self._points[number] = np.array(
                [each.point3D_id if each.has_point3D() else -1 for each in points], np.int64
            )
        return self._points[number]


def pycolmap_options(pycolmap: Any, max_error: float) -> Any:
    """Of the estimation of a pose, with this largest distance in pixels."""
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error, options.ransac.random_seed = max_error, _SEED
    return options


def images_by_query(pairs: Sequence[Pair]) -> Mapping[str, list[str]]:
    """The images that each query is paired with."""
    found = defaultdict[str, list[str]](list)
    for query, image in pairs:
        found[query].append(image)
    return found


def _pose(image: Any) -> Array:
    return np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1.0]])


def _on_epipolar_lines(
    model: Any, ids: Mapping[str, int], pair: Pair, keypoints: Mapping[str, Keypoints], index: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(M,) whether both points of a match are near the other one's epipolar line, which the known poses tell."""
    images = [model.images[ids[name]] for name in pair]
    cameras = [model.cameras[image.camera_id] for image in images]
    moved = _pose(images[1]) @ np.linalg.inv(_pose(images[0]))  # T_1_0
    essential = skew(moved[:3, 3]) @ moved[:3, :3]
    ends = list[Array]()
    for side, (name, camera) in enumerate(zip(pair, cameras, strict=True)):
        pixels = keypoints[name].points[index[:, side]].astype(np.float64) + 0.5
        rays = np.asarray(camera.cam_from_img(pixels), np.float64).reshape(-1, 2)  # at depth 1, undistorted
        ends.append(np.insert(rays, 2, 1.0, axis=1))
    product = np.abs(np.einsum("ni,ij,nj->n", ends[1], essential, ends[0]))
    lines = ends[1] @ essential, ends[0] @ essential.T  # in images 0 and 1
    near = np.ones(len(index), np.bool_)
    for name, camera, line in zip(pair, cameras, lines, strict=True):
        limit = camera.cam_from_img_threshold(_EPIPOLAR_ERROR * keypoints[name].uncertainty)
        near &= product <= limit * np.linalg.norm(line[:, :2], axis=1)
    return near


def _check_index(index: NDArray[np.int64], pair: Pair, counts: Sequence[int], matches: Path, features: Path) -> None:
    if len(index) and (index.max(axis=0) >= counts).any():
        raise LocalisationError(
            f"{matches} matches keypoints of {pair[0]} and {pair[1]} that {features} or the model lacks: the files do "
            "not belong together"
        )


@contextmanager
def _folder(output: Path) -> Iterator[Path]:
    """A folder that becomes `output` once all is in it; nothing is left of it after an error."""
    part = output.with_name(f"{output.name}.part")
    try:
        if output.exists() and any(output.iterdir()) and not (output / _DATABASE).is_file():
            raise LocalisationError(f"{output} is not empty, and was not made by this command; choose another folder")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        shutil.rmtree(output, ignore_errors=True)
        part.replace(output)
    except OSError as error:
        raise LocalisationError(f"{output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
