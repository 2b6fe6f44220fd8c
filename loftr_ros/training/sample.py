"""What every source of training pairs gives, whether rendered, warped or recorded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sample:
    """Two images and where each pixel of one is in the other.

    Pixels are (u, v) with (0, 0) at the centre of the top-left pixel. A pixel that is not seen in the other image
    (outside, occluded, without depth) has NaN.

    Attributes:
        image0, image1: (H, W) uint8 gray; both images of a batch's samples have one size.
        warp01: (H, W, 2) float32, where the pixels of image 0 are in image 1.
        warp10: (H, W, 2) float32, where the pixels of image 1 are in image 0.
        kind: what made it: "homography", "room", "relief", "scannet" and the like; for statistics.
    """

    image0: NDArray[np.uint8]
    image1: NDArray[np.uint8]
    warp01: NDArray[np.float32]
    warp10: NDArray[np.float32]
    kind: str
