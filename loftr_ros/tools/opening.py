"""Opens a front end for recordings with the node's parameters. Torch is imported when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.recordings.reading import FrameReader


def open_offline(
    values: dict[str, Any], device: str, precision: str, mask: Path | None
) -> tuple[FrontEnd, FrameReader]:
    """The front end that parameters describe, and the reader that makes its frames.

    Args:
        values: parameters by their full names.
        device, precision: replace the parameters' values; empty to keep them.
        mask: mask file that replaces the parameters' one.

    Raises:
        ConfigError, DeviceError, MaskError, WeightsError: a parameter cannot be used.
    """
    from dataclasses import replace

    from loftr_ros.frontend.config import FrontEndConfig
    from loftr_ros.frontend.mask import read_mask
    from loftr_ros.frontend.matcher_settings import MatcherConfig, MatchingConfig, matcher_spec
    from loftr_ros.frontend.pipeline import FrontEnd
    from loftr_ros.matcher.factory import open_matcher
    from loftr_ros.matcher.runtime.tensorrt import TensorRTConfig
    from loftr_ros.recordings.input_settings import InputParameters
    from loftr_ros.recordings.reading import FrameReader
    from loftr_ros.settings import with_values

    config, inputs = with_values(FrontEndConfig(), values), with_values(InputParameters(), values, "input.")
    inputs.check_mode(config.scale.mode)
    asked = with_values(MatcherConfig(), values), with_values(MatchingConfig(), values, "matching.")
    mask = mask or (Path(inputs.mask) if inputs.mask else None)
    usable = read_mask(mask.expanduser()) if mask else None
    spec = matcher_spec(*asked, with_values(TensorRTConfig(), values, "tensorrt."))
    matcher = open_matcher(replace(spec, device=device or spec.device, precision=precision or spec.precision))
    return FrontEnd(matcher, config), FrameReader(inputs, usable)
