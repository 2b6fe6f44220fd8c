"""OpenCV's SIFT and ORB behind our front end: its keyframes, geometry, depth and odometry, with other matches.

A keypoint of the keyframe replaces a cell: its number in the keyframe is the track's id, it has a depth, and it is
linked with the keypoint of the next keyframe at the same pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import cv2
import numpy as np
import torch
from contenders import KEYPOINTS, Sparse, View, open_other
from numpy.typing import NDArray
from torch import Tensor

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.results import Correspondences
from loftr_ros.frontend.trust import Texture, blocks_with
from loftr_ros.matcher.interface import ImageFeatures, Matcher, Matches

# Length and type of a descriptor.
DESCRIPTORS = {"sift": (128, torch.float32), "orb": (32, torch.uint8)}
# Part of the matches that a run in another order leaves out.
LEFT_OUT = 0.05
# Position of keypoints that fill up an image's slots: outside of the image, without depth.
_NOWHERE = -1.0


class ShakenPairs(PairMatcher):
    """Matches in another order and without a twentieth of them.

    OpenCV's estimators draw the same samples of the same matches for any seed, and the search for a metric pose sorts
    them. So only different matches show the influence of chance.
    """

    def __init__(self, matcher: Matcher, config: FrontEndConfig, order: int = 0) -> None:
        """As `PairMatcher`.

        Args:
            matcher, config: of `PairMatcher`.
            order: seed; 0 for all the matches as they come.
        """
        super().__init__(matcher, config)
        self._random = np.random.default_rng(order) if order else None

    def to_raw_pixels(self, keyframe: EncodedFrame, current: EncodedFrame, matches: Matches) -> Correspondences:
        found = super().to_raw_pixels(keyframe, current, matches)
        if self._random is None:
            return found
        kept = self._random.permutation(len(found))[: round((1 - LEFT_OUT) * len(found))]
        return Correspondences(
            found.track_id[kept],
            found.keyframe_points[kept],
            found.current_points[kept],
            found.confidence[kept],
            found.std[kept],
        )


class KeypointFrame(EncodedFrame):
    """An image with its keypoints as cells."""

    @cached_property
    def cell_points(self) -> NDArray[np.float32]:
        """(KEYPOINTS, 2) raw pixels; outside of the image for missing ones."""
        assert self.features.cells is not None
        return self.features.cells[0, :, 0].T.numpy().copy()

    def nearest_cells(self, points: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        assert self.features.usable is not None
        count = int(self.features.usable.sum())
        if not count or not len(points):
            return np.zeros(len(points), np.int64), np.full(len(points), np.inf, np.float32)
        distance, cell = self._tree.query(points)
        return cell.astype(np.int64), distance.astype(np.float32)

    @cached_property
    def texture(self) -> Texture:
        """Only places with a keypoint can match."""
        assert self.features.usable is not None
        image = super().texture
        real = self.cell_points[self.features.usable[0].numpy()]
        return replace(image, flags=image.flags & blocks_with(real, self.frame.size, image.blocks))

    @cached_property
    def _tree(self):
        from scipy.spatial import cKDTree

        assert self.features.usable is not None
        return cKDTree(self.cell_points[self.features.usable[0].numpy()])


class KeypointMatcher:
    """The front end's matcher interface with OpenCV's features.

    In its `ImageFeatures`, `tokens` are descriptors, `cells` the keypoints' pixels, and `usable` marks real ones: all
    keyframes have the same number of slots.
    """

    has_fine_stage = True
    fixed_size = None
    # Largest distance between a new keyframe's keypoint and the one that provides its depth.
    cell_size = 1
    cell_offset = 0.0
    device = torch.device("cpu")

    def __init__(self, name: str) -> None:
        """`sift` or `orb`."""
        sparse = open_other(name, None)
        assert isinstance(sparse, Sparse)
        self._sparse, self.label = sparse, sparse.label
        self._length, self.dtype = DESCRIPTORS[name]

    def encode(self, image: Tensor, usable: Tensor | None = None) -> ImageFeatures:
        """Keypoints and descriptors of an (H, W) uint8 image, without those on pixels that are not `usable`."""
        pixels = image.numpy()
        (points, descriptors), _ = self._sparse.encode(View("", Frame(pixels, 0, ""), pixels))
        if usable is not None and len(points):
            columns, rows = np.rint(points).astype(np.int64).T
            kept = usable.numpy()[rows.clip(0, len(pixels) - 1), columns.clip(0, pixels.shape[1] - 1)]
            points, descriptors = points[kept], descriptors[kept]
        count = min(len(points), KEYPOINTS)
        tokens = torch.zeros((1, KEYPOINTS, self._length), dtype=self.dtype)
        cells = torch.full((1, 2, 1, KEYPOINTS), _NOWHERE).to(memory_format=torch.channels_last)
        if count:
            tokens[0, :count] = torch.from_numpy(descriptors[:count])
            cells[0, :, 0, :count] = torch.from_numpy(points[:count].T)
        real = torch.arange(KEYPOINTS)[None] < count
        return ImageFeatures(tokens, None, (1, KEYPOINTS), (pixels.shape[1], pixels.shape[0]), real, cells=cells)

    def complete(self, features: ImageFeatures) -> ImageFeatures:
        return features

    def match(self, keyframes: Sequence[ImageFeatures], current: ImageFeatures) -> list[Matches]:
        return [self._pair(keyframe, current) for keyframe in keyframes]

    def _pair(self, keyframe: ImageFeatures, current: ImageFeatures) -> Matches:
        descriptors0, descriptors1 = (f.tokens[0, : int(f.usable.sum())].numpy() for f in (keyframe, current))
        index0, index1 = torch.from_numpy(self._sparse.pairs(descriptors0, descriptors1)).T
        points0, points1 = (f.cells[0, :, 0].T[i] for f, i in ((keyframe, index0), (current, index1)))
        count = len(index0)
        return Matches(index0, points0, points1, torch.ones(count), torch.full((count,), float("nan")))


class KeypointPairs(ShakenPairs):
    """Matches by a `KeypointMatcher`. Images keep their full size."""

    def encode(self, frame: Frame, effort: float = 1.0) -> EncodedFrame:
        image = torch.from_numpy(np.ascontiguousarray(frame.image))
        usable = None if frame.usable is None else torch.from_numpy(frame.usable)
        matcher = self.matcher
        return KeypointFrame(frame, matcher.encode(image, usable), (1.0, 1.0), matcher.cell_size, matcher.cell_offset)


def use_threads(threads: int) -> None:
    """Of OpenCV and torch; 0 for all cores."""
    cv2.setNumThreads(threads or -1)
    if threads:
        torch.set_num_threads(threads)
