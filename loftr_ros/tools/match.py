"""Two images in, matches out: the smallest Python interface of the package."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
from loftr_ros.frontend.pair_matcher import PairMatcher
from loftr_ros.frontend.wide_pairs import WideConfig
from loftr_ros.matcher.factory import open_matcher
from loftr_ros.matcher.interface import Matcher
from loftr_ros.recordings.reading import FrameReader
from loftr_ros.recordings.still import still

Points = NDArray[np.float32]
# A network keeps buffers between calls, so one thread at a time uses the shared network.
_common = threading.Lock()


@dataclass(frozen=True, eq=False)
class PairMatches:
    """Matches of two images, one row each.

    Pixels are (u, v) of the given images, with (0, 0) at the centre of the top-left pixel.

    Attributes:
        points0: (N, 2) float32 pixels of image 0, each at its grid cell's point.
        points1: (N, 2) float32 pixels of image 1, sub-pixel.
        confidence: (N,) float32 in [0, 1], the network's.
        std: (N,) float32 pixels, predicted standard deviation of `points1` along one axis; NaN if the network predicts
            none.
    """

    points0: Points
    points1: Points
    confidence: NDArray[np.float32]
    std: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.confidence)


def load_matcher(
    weights: str | Path = "",
    *,
    network: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    backend: str = "auto",
    threads: int = 0,
    threshold: float = 0.0,
    max_matches: int = 0,
) -> Matcher:
    """Load a network that is ready to match.

    Args:
        weights: weights file, a name of `loftr_ros weights list`, or a folder that `loftr_ros export` wrote. Empty for
            the weights of the environment variable LOFTR_ROS_WEIGHTS, or else those in the package.
        network: name of a preset, such as `compact` or `loftr`; `auto` for the network of the weights.
        device: `auto` (CUDA if available, else the CPU), `cpu`, `cuda` or `cuda:N`.
        precision: `float32`, `bfloat16`, `float16`, or `auto` for the fastest that the hardware supports.
        backend: `torch`, `onnx`, `openvino`, or `auto` for OpenVINO if it is installed and faster, else torch.
        threads: CPU threads of the network; 0 for all cores.
        threshold: minimum confidence of a match, 0 to 1; 0 for the network's default.
        max_matches: maximum number of matches of a pair, the most confident ones; 0 for the network's default
            (`compact`: 2000).

    Returns:
        The network. Only one thread may use it at a time.

    Raises:
        ConfigError: an argument is out of its range.
        WeightsError: the network is unknown, or the weights are missing, damaged or of another network.
        DeviceError: the device, precision or backend is not available.
    """
    asked = MatcherConfig(network, str(weights), device, precision, backend, threads=threads)
    return open_matcher(matcher_spec(asked, MatchingConfig(float(threshold), max_matches=max_matches)))


def match(
    image0: str | Path | NDArray[Any],
    image1: str | Path | NDArray[Any],
    matcher: Matcher | None = None,
    *,
    usable0: NDArray[np.bool_] | None = None,
    usable1: NDArray[np.bool_] | None = None,
    config: FrontEndConfig | None = None,
    min_matches: int = WideConfig().min_matches,
) -> PairMatches:
    """Match two images.

    For a stream of images use `FrontEnd`, which encodes each image once and also finds the camera's pose.

    If `compact` finds few matches, the images are probably distant views or in other light. It then matches them at
    other scales too, and keeps doubtful matches that their neighbours confirm. This costs several times as much.

    Args:
        image0, image1: each an image file, or its pixels: (H, W) gray, uint8 or uint16, or (H, W, 3) uint8 BGR as
            `cv2.imread` gives it. The two may differ in size. They are shrunk to `config.image.max_side` (960 px).
        matcher: from `load_matcher`; None for the network in the package, which is loaded once, at the first call.
        usable0, usable1: (H, W) bool, false for pixels that must not appear in a match; None to use all.
        config: settings of the front end; None for the defaults.
        min_matches: number of matches below which more effort is taken; 0 for never.

    Raises:
        ConfigError: `min_matches` is negative.
        SourceError: a file is missing or is not an image.
        ValueError: an array is not an image of these kinds.
        FrameRefusedError: an image is too small, or the network was exported for images of another shape.
        MaskError: a mask has another size than its image.
    """
    frames = [still(image, name) for image, name in ((image0, "image0"), (image1, "image1"))]
    read = [FrameReader(mask=mask).read(frame) for frame, mask in zip(frames, (usable0, usable1), strict=True)]
    wide = WideConfig(min_matches)
    if matcher is not None:
        found = PairMatcher(matcher, config, wide).match_pair(*read)
    else:
        with _common:
            found = PairMatcher(_matcher_in_the_package(), config, wide).match_pair(*read)
    return PairMatches(found.keyframe_points, found.current_points, found.confidence, found.std)


@lru_cache(maxsize=1)
def _matcher_in_the_package() -> Matcher:
    return load_matcher()
