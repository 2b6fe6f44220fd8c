"""Training pairs from recorded RGB-D and structure-from-motion sets, in the layouts used for LoFTR's training.

A list of pairs is made once from a set's own index; images and depth are read on demand. The truth comes from depth and
pose, checked against the depth of the other view.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from loftr_ros.geometry.se3 import inverse
from loftr_ros.training.geometry import Float32, Float64, covisible, warp_by_depth
from loftr_ros.training.photometric import photograph
from loftr_ros.training.sample import Sample

_LEAST_COVISIBLE = 0.05
_TRIES = 20
_MILLIMETRES = 1000.0
_NO_DEPTH = 65535  # of 16-bit depth images, beside 0


class RecordedError(Exception):
    """A data set that does not follow its layout. The message names the file."""


@dataclass(frozen=True)
class RecordedView:
    """One frame of a data set.

    Attributes:
        image: (H, W) uint8 gray.
        depth: (h, w) float32 along the optical axis, of the same camera in any resolution; 0 or NaN where unknown.
        K: (3, 3) pinhole matrix of the image.
        T_camera_world: (4, 4), in the unit of the depth.
    """

    image: NDArray[np.uint8]
    depth: Float32
    K: Float64
    T_camera_world: Float64

    def resized(self, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Float32, Float64]:
        """Image, inverse depth (NaN where unknown) and matrix of the central part, resized to (width, height)."""
        rows, columns = self.image.shape
        width, height = size
        scale = max(width / columns, height / rows)
        x, y = (columns - width / scale) / 2, (rows - height / scale) / 2
        # Half-pixel correct: p' = scale · (p + 0.5 - offset) - 0.5.
        S = np.array([[scale, 0, scale * (0.5 - x) - 0.5], [0, scale, scale * (0.5 - y) - 0.5], [0, 0, 1]])
        # Blur before downscaling, so that no aliasing is learned.
        image = self.image
        if scale < 1:
            sigma = 0.5 * np.sqrt(1 / scale**2 - 1)
            image = np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma, 1e-3)), np.uint8)
        image = np.asarray(cv2.warpAffine(image, S[:2], size, borderMode=cv2.BORDER_REPLICATE), np.uint8)
        d = self.depth.shape
        # Nearest neighbour, because the mean of two surfaces' depths is the depth of neither.
        u = ((np.arange(width) + 0.5) / scale + x) * d[1] / columns
        v = ((np.arange(height) + 0.5) / scale + y) * d[0] / rows
        depth = self.depth[np.clip(v.astype(int), 0, d[0] - 1)[:, None], np.clip(u.astype(int), 0, d[1] - 1)]
        with np.errstate(divide="ignore", invalid="ignore"):
            inverse_depth = np.where(depth > 0, 1 / depth, np.nan).astype(np.float32)
        return image, inverse_depth, S @ self.K


class RecordedPairs(ABC):
    """The pairs of a data set, which are sampled at random.

    Attributes:
        kind: of the data set, as in `Sample`.
        tolerance: of relative inverse depth in the check; measured depth needs more than rendered.
    """

    kind = "recorded"
    tolerance = 0.05
    _pairs: Sequence[Any] | NDArray[Any]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._pairs)

    def frames(self, pair: int) -> tuple[Any, Any]:
        """Both frames of a pair, as `view` takes them."""
        first, second = self._pairs[pair]
        return first, second

    @abstractmethod
    def view(self, frame: Any) -> RecordedView:
        """A frame.

        Raises:
            RecordedError: a file is missing or damaged.
        """

    def sample(self, rng: np.random.Generator, size: tuple[int, int], difficulty: float) -> Sample:
        """A random pair of (width, height) images that overlap; `difficulty` in [0, 1] affects only added changes.

        Raises:
            RecordedError: a file is missing or damaged, or none of many pairs overlaps.
        """
        for _ in range(_TRIES):
            sample = self.pair(int(rng.integers(len(self))), size)
            if min(covisible(sample.warp01), covisible(sample.warp10)) >= _LEAST_COVISIBLE:
                # Real pictures have their own blur, noise and shadows; some more exposure and noise does no harm.
                first, second = (
                    photograph(image, rng, 0.3 * difficulty * float(rng.random()), softness=0.0)
                    if rng.random() < 0.5
                    else (image, None)
                    for image in (sample.image0, sample.image1)
                )
                if first[1] is None and second[1] is None:
                    return Sample(first[0], second[0], sample.warp01, sample.warp10, self.kind)
                return sample
        raise RecordedError(
            f"none of {_TRIES} random pairs of {self.kind} overlaps: do depth and poses have the same unit?"
        )

    def pair(self, number: int, size: tuple[int, int]) -> Sample:
        """A recorded pair, in (width, height)."""
        view0, view1 = map(self.view, self.frames(number))
        image0, inverse0, K0 = view0.resized(size)
        image1, inverse1, K1 = view1.resized(size)
        T_1_0 = view1.T_camera_world @ inverse(view0.T_camera_world)
        warp01 = warp_by_depth(inverse0, inverse1, K0, K1, T_1_0, tolerance=self.tolerance)
        warp10 = warp_by_depth(inverse1, inverse0, K1, K0, inverse(T_1_0), tolerance=self.tolerance)
        return Sample(image0, image1, warp01, warp10, self.kind)


def read_image(file: Path) -> NDArray[np.uint8]:
    """An image as (H, W) uint8 gray."""
    image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise RecordedError(f"{file} is missing, or OpenCV cannot read it")
    return np.asarray(image, np.uint8)


def read_depth_png(file: Path) -> Float32:
    """A 16-bit image in millimetres as (H, W) float32 metres, 0 where unknown."""
    depth = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    if depth is None or depth.dtype != np.uint16:
        raise RecordedError(f"{file} is missing, or not a 16-bit depth image")
    return np.where(depth == _NO_DEPTH, 0, depth).astype(np.float32) / np.float32(_MILLIMETRES)


def read_matrix(file: Path, rows: int, columns: int) -> Float64:
    """The first (rows, columns) numbers of a text file of numbers."""
    try:
        numbers = np.array(file.read_text().split(), np.float64)
        side = 4 if len(numbers) == 16 else columns
        return numbers.reshape(-1, side)[:rows, :columns]
    except (OSError, ValueError) as error:
        raise RecordedError(f"{file} holds no {rows}x{columns} matrix: {error}") from error


def read_npz(file: Path) -> dict[str, Any]:
    """All arrays of an index file. Those of the published indices are pickled objects: load only trusted files."""
    try:
        with np.load(file, allow_pickle=True) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise RecordedError(f"{file} is not an npz index: {error}") from error


def read_pfm(file: Path) -> Float32:
    """A one-channel PFM image as (H, W) float32, top row first."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise RecordedError(f"{file} cannot be read: {error}") from error
    header = re.match(rb"Pf\s+(\d+)\s+(\d+)\s+(-?[\d.eE+-]+)\s", data)
    if header is None:
        raise RecordedError(f"{file} is not a one-channel PFM image")
    columns, rows = int(header[1]), int(header[2])
    order = "<f4" if float(header[3]) < 0 else ">f4"
    pixels = np.frombuffer(data, order, count=-1, offset=header.end())
    if len(pixels) != rows * columns:
        raise RecordedError(f"{file} has {len(pixels)} pixels; its header says {columns}x{rows}")
    return np.ascontiguousarray(pixels.reshape(rows, columns)[::-1], np.float32)


def pairs_within(numbers: Sequence[int], gaps: Sequence[int]) -> list[tuple[int, int]]:
    """All pairs (i, j) of places in `numbers` whose frame numbers differ by one of `gaps`."""
    places = {number: place for place, number in enumerate(numbers)}
    return [(i, places[n + gap]) for i, n in enumerate(numbers) for gap in gaps if n + gap in places]
