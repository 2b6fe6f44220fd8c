"""Matching of two images: the network with resizing and refinement; points are in pixels of the incoming images."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.frame import Frame
from loftr_ros.frontend.keyframes import EncodedFrame, raw_pixels
from loftr_ros.frontend.mask import check_mask, on_usable, shrink_mask
from loftr_ros.frontend.quality import judge
from loftr_ros.frontend.refinement import refine
from loftr_ros.frontend.results import Correspondences
from loftr_ros.frontend.stream import FrameRefusedError
from loftr_ros.frontend.wide_pairs import WideConfig, match_at_scales
from loftr_ros.matcher.interface import Matcher, Matches, lenient_matching

# Least side of an image in pixels, and of the network's input. Networks fail on smaller ones, each in its own way.
_LEAST_SIDE, _LEAST_SEEN = 32, 24


class PairMatcher:
    """A matcher with its settings. It keeps no images.

    Attributes:
        matcher: the network.
        config: settings; only `image` and `refine` are used here.
        wide: settings of `match_single`.
    """

    def __init__(self, matcher: Matcher, config: FrontEndConfig | None = None, wide: WideConfig | None = None) -> None:
        self.matcher = matcher
        self.config = config or FrontEndConfig()
        self.wide = wide or WideConfig()

    def complete(self, encoded: EncodedFrame) -> EncodedFrame:
        """Add what only keyframes need (see `Matcher.complete`)."""
        return replace(encoded, features=self.matcher.complete(encoded.features))

    def match(self, keyframes: Sequence[EncodedFrame], current: EncodedFrame) -> list[Correspondences]:
        """Correspondences with each keyframe (image 0), in pixels of the incoming images."""
        found = self.matcher.match([keyframe.features for keyframe in keyframes], current.features)
        return self.all_to_raw_pixels(keyframes, current, found)

    def match_single(self, keyframe: EncodedFrame, current: EncodedFrame) -> Correspondences:
        """Correspondences of two images that may be distant views: as `match`, with more effort if they are few.

        Not for the recognition of places: images of different places get more matches, too, which agree with each
        other.
        """
        found = self.match([keyframe], current)[0]
        lenient = lenient_matching(self.matcher)
        if lenient is None or len(found) >= self.wide.min_matches:
            return found
        at_scales = match_at_scales(self.matcher, lenient, keyframe, current)
        return at_scales if len(at_scales) else found

    def match_pair(self, keyframe: Frame, current: Frame) -> Correspondences:
        """Match two images, as `match_single`.

        Raises:
            MaskError, FrameRefusedError: as `encode`.
        """
        return self.match_single(self.complete(self.encode(keyframe)), self.encode(current))

    def encode(self, frame: Frame, effort: float = 1.0) -> EncodedFrame:
        """Compute everything that depends on the frame alone.

        Args:
            frame: the image.
            effort: part of the configured resolution.

        Raises:
            MaskError: mask and image differ in size.
            FrameRefusedError: the image is too small, or the network takes only images of another shape.
        """
        start = time.perf_counter()
        width, height = frame.size
        size = self.network_size(width, height, effort)
        image, usable = frame.image, frame.usable
        if usable is not None:
            check_mask(usable, image)
        if size != frame.size:
            # INTER_AREA averages whole pixels, which is half-pixel correct and does not alias.
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            usable = None if usable is None else shrink_mask(usable, size)
        features = self.matcher.encode(
            torch.from_numpy(np.ascontiguousarray(image)),
            None if usable is None else torch.from_numpy(np.ascontiguousarray(usable)),
        )
        scale = (width / features.size[0], height / features.size[1])
        cell = self.matcher.cell_size
        # A fine stage finds the cell's own point. Without one, the patch around the cell's centre is tracked. It has
        # more information than one around the corner, where the published weights have the cell's point.
        offset = self.matcher.cell_offset if self.matcher.has_fine_stage else (cell - 1) / 2
        quality = judge(frame.image, frame.usable)
        return EncodedFrame(frame, features, scale, cell, offset, time.perf_counter() - start, quality)

    def network_size(self, width: int, height: int, effort: float = 1.0) -> tuple[int, int]:
        """(width, height) of the network's input for an image.

        Args:
            width, height: of the image.
            effort: part of the configured resolution.

        Raises:
            FrameRefusedError: the image is too small, or the network takes only images of another shape.
        """
        fixed = self.matcher.fixed_size
        shrink = min(1.0, self.config.image.max_side / max(width, height)) * effort
        size = fixed or (max(round(width * shrink), 1), max(round(height * shrink), 1))
        if min(width, height) < _LEAST_SIDE or min(size) < _LEAST_SEEN:
            resized = "" if size == (width, height) else f", resized to {size[0]}x{size[1]} for the network"
            raise FrameRefusedError(
                "size",
                f"image of {width}x{height} px{resized}: too small to be matched; expected sides of at least "
                f"{_LEAST_SIDE} px",
            )
        if fixed is None:
            return size
        # A side rounded by one pixel is not another shape.
        if abs(width * fixed[1] - height * fixed[0]) > max(width, height, *fixed):
            raise FrameRefusedError(
                "size",
                f"image of {width}x{height}: the network was exported for {fixed[0]}x{fixed[1]}, which has another "
                f"shape. Export it with --width {width} --height {height}, or a smaller size of that shape",
            )
        return fixed

    def all_to_raw_pixels(
        self, keyframes: Sequence[EncodedFrame], current: EncodedFrame, found: Sequence[Matches]
    ) -> list[Correspondences]:
        """As `to_raw_pixels`, of the matches with each keyframe."""
        return [self.to_raw_pixels(keyframe, current, each) for keyframe, each in zip(keyframes, found, strict=True)]

    def to_raw_pixels(self, keyframe: EncodedFrame, current: EncodedFrame, matches: Matches) -> Correspondences:
        """Convert matches to pixels of the incoming images, refined if the network has no fine stage."""
        cell = matches.cell.numpy()
        points0 = keyframe.cell_points[cell]
        points1 = raw_pixels(matches.points1.numpy(), current.scale)
        std = matches.std.numpy() * np.float32(math.sqrt(current.scale[0] * current.scale[1]))
        keep = np.ones(len(cell), dtype=np.bool_)
        if not self.matcher.has_fine_stage:
            # A coarse match gives the cell's displacement.
            moved = points1 - raw_pixels(matches.points0.numpy(), keyframe.scale)
            points1, keep = refine(
                keyframe.frame.image,
                current.frame.image,
                points0,
                points0 + moved,
                self.config.refine,
                extra_levels=max(0, math.ceil(math.log2(max(current.scale)))),
            )
        found = Correspondences(cell.astype(np.uint32), points0, points1, matches.confidence.numpy(), std)[keep]
        usable = on_usable(found.keyframe_points, keyframe.frame.usable)
        return found[usable & on_usable(found.current_points, current.frame.usable)]
