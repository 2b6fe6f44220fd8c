"""A training pair, the output of every source: rendered, warped or recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """Two images and the position of each pixel of one in the other.

    Pixels are (u, v) with (0, 0) at the centre of the top-left pixel. A pixel that is not visible in the other image
    (outside, occluded, without depth) has NaN.

    Attributes:
        image0, image1: (H, W) uint8 gray; both images of a batch's samples have one size.
        warp01: (H, W, 2) float32, positions of image 0's pixels in image 1.
        warp10: (H, W, 2) float32, positions of image 1's pixels in image 0.
        kind: its source: "homography", "room", "relief", "scannet" and the like; for statistics.
    """

    image0: NDArray[np.uint8]
    image1: NDArray[np.uint8]
    warp01: NDArray[np.float32]
    warp10: NDArray[np.float32]
    kind: str
