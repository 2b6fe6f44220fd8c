"""Features and matches in the HDF5 layout of hloc (github.com/cvg/Hierarchical-Localization).

Features: a group of each image's name with `keypoints` (K, 2), pixels with (0, 0) at the centre of the first pixel, its
attribute `uncertainty` in pixels, and `scores` (K,). Matches: a group `NAME0/NAME1` of each pair, in whose names `/` is
`-`, with `matches0`, the keypoint of image 1 of each keypoint of image 0 or -1, and `matching_scores0`.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.evaluation.localisation.lists import LocalisationError, Pair, replacing
from loftr_ros.extras import how_to_install

Points = NDArray[np.float32]

_CACHES = 1 << 24  # bytes that HDF5 may still have to write


@dataclass(frozen=True, eq=False)
class Keypoints:
    """Of one image.

    Attributes:
        points: (K, 2) float32 pixels.
        scores: (K,) float32, higher for more reliable ones.
        uncertainty: standard deviation in pixels, of which hloc's geometric verification makes its threshold.
    """

    points: Points
    scores: NDArray[np.float32]
    uncertainty: float = 1.0


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Of one pair.

    Attributes:
        index: (M, 2) int64 keypoints of image 0 and of image 1.
        scores: (M,) float32 in [0, 1].
    """

    index: NDArray[np.int64]
    scores: NDArray[np.float32]


def require_h5py() -> Any:
    """The module.

    Raises:
        LocalisationError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise LocalisationError(
            f"hloc's files are HDF5, and h5py is not installed ({error}): {how_to_install('localisation')}"
        ) from error
    return h5py


def pair_key(pair: Pair) -> str:
    """The name of a pair's group."""
    return "/".join(name.replace("/", "-") for name in pair)


def check_names(names: Iterable[str]) -> None:
    """Check that different images have different names in the files.

    Raises:
        LocalisationError: two have not, such as `a/b.jpg` and `a-b.jpg`.
    """
    seen = dict[str, str]()
    for name in names:
        other = seen.setdefault(name.replace("/", "-"), name)
        if other != name:
            raise LocalisationError(f"{other} and {name} have one name in hloc's files of matches; rename one of them")


def write_features(file: Path, images: Iterable[tuple[str, Keypoints]]) -> None:
    """Write keypoints of images; the file appears when it is complete.

    Raises:
        LocalisationError: the file cannot be written.
    """
    with _written(file) as archive:
        for name, keypoints in images:
            _check_space(file, keypoints.points.nbytes + keypoints.scores.nbytes)
            group = archive.create_group(name)
            points = group.create_dataset("keypoints", data=keypoints.points)
            points.attrs["uncertainty"] = keypoints.uncertainty
            group.create_dataset("scores", data=keypoints.scores)


def write_matches(file: Path, pairs: Iterable[tuple[Pair, int, PairMatches]]) -> None:
    """Write matches of pairs; the file appears when it is complete.

    Args:
        file: to write.
        pairs: each with its number of keypoints in image 0.

    Raises:
        LocalisationError: the file cannot be written.
    """
    with _written(file) as archive:
        for pair, count, matches in pairs:
            _check_space(file, 6 * count)
            partner, scores = np.full(count, -1, np.int32), np.zeros(count, np.float16)
            partner[matches.index[:, 0]], scores[matches.index[:, 0]] = matches.index[:, 1], matches.scores
            group = archive.create_group(pair_key(pair))
            group.create_dataset("matches0", data=partner)
            group.create_dataset("matching_scores0", data=scores)


class HlocFile:
    """A file of features or of matches, open for reading. Use it as a context."""

    def __init__(self, file: Path) -> None:
        """Open it.

        Raises:
            LocalisationError: it is missing, or no HDF5 file.
        """
        self.file = file
        try:
            self._archive = require_h5py().File(file, "r")
        except OSError as error:
            why = "there is no such file" if not file.is_file() else f"it is no intact HDF5 file ({error})"
            raise LocalisationError(f"{file} cannot be read: {why}") from error

    def __enter__(self) -> HlocFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def images(self) -> set[str]:
        """Names of the images with keypoints."""
        found = set[str]()
        self._archive.visit(lambda name: found.add(name[: -len("/keypoints")]) if name.endswith("/keypoints") else None)
        return found

    def keypoints(self, image: str) -> Keypoints:
        """Keypoints of an image.

        Raises:
            LocalisationError: it has none here, or they are damaged.
        """
        if f"{image}/keypoints" not in self._archive:
            raise LocalisationError(f"{self.file} has no keypoints of {image}")
        try:
            group = self._archive[image]
            points = np.asarray(group["keypoints"], np.float32).reshape(-1, 2)
            named = next((name for name in ("scores", "score") if name in group), None)  # dense matches have `score`
            scores = np.ones(len(points), np.float32) if named is None else np.asarray(group[named], np.float32)
            return Keypoints(points, scores, float(group["keypoints"].attrs.get("uncertainty", 1.0)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LocalisationError(f"{self.file}: the keypoints of {image} cannot be read: {error}") from error

    def matches(self, pair: Pair) -> PairMatches:
        """Matches of a pair, which may be stored in the other order.

        Raises:
            LocalisationError: it is not here, or damaged.
        """
        for turned in (False, True):
            key = pair_key(pair[::-1] if turned else pair)
            if f"{key}/matches0" not in self._archive:
                continue
            try:
                partner = np.asarray(self._archive[key]["matches0"], np.int64)
                scores = np.asarray(self._archive[key]["matching_scores0"], np.float32)
                first = np.flatnonzero(partner >= 0)
                index = np.stack([first, partner[first]], axis=1)
                return PairMatches(index[:, ::-1] if turned else index, scores[first])
            except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
                raise LocalisationError(f"{self.file}: the matches of {key} cannot be read: {error}") from error
        raise LocalisationError(f"{self.file} has no matches of {pair[0]} with {pair[1]}; were these pairs matched?")


@contextmanager
def _written(file: Path) -> Iterator[Any]:
    """An HDF5 file that replaces `file` once all is in it; nothing is left of it after an error."""
    h5py = require_h5py()
    try:
        with replacing(file) as part, h5py.File(part, "w") as archive:
            yield archive
    except LocalisationError:
        raise
    except RuntimeError as error:  # by HDF5, beside OSError
        raise LocalisationError(f"{file} cannot be written: {error}") from error


def _check_space(file: Path, size: int) -> None:
    """Check the disk before HDF5 writes: if it gets full while HDF5 has data in its caches, the process crashes.

    Raises:
        OSError: it has not enough space for this many bytes and the caches.
    """
    if shutil.disk_usage(file.parent).free < size + _CACHES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
