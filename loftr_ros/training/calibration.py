"""The last step of a training: a factor that calibrates the predicted standard deviations on held-out photos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from loftr_ros.evaluation.match_metrics import Calibration, calibration
from loftr_ros.matcher.checkpoints.files import (
    check_weights,
    load_network,
    read_weights,
    recognise_file,
    save_network_weights,
)
from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.config import CompactConfig
from loftr_ros.matcher.interface import Matcher
from loftr_ros.training.metrics import match_residuals
from loftr_ros.training.supervision import PairBatch


def calibrated_weights(source: Path, target: Path, batches: Iterable[PairBatch]) -> tuple[Calibration, Calibration]:
    """Rewrite weights with the factor on the standard deviations that fits held-out pairs.

    Args:
        source: a weights file of `compact`.
        target: the file to write.
        batches: of pairs not used in training.

    Returns:
        The calibration before and after.

    Raises:
        WeightsError: the file is missing, damaged, or of a network without this factor; nothing was matched.
    """
    file = read_weights(source)
    config = recognise_file(file).config
    if not isinstance(config, CompactConfig):
        raise WeightsError(f"{source} holds '{config.name}', whose standard deviations have no factor to set")
    matcher = load_network(config.name, source, torch.device("cpu"), torch.float32)
    residuals, std = _residuals(matcher, batches)
    before = calibration(residuals, std)
    if not before.count:
        raise WeightsError(f"{source}: the network matches nothing in the held-out pairs; train it first")
    config = replace(config, fine=replace(config.fine, sigma_scale=config.fine.sigma_scale * before.scale))
    save_network_weights(target, check_weights(config, file), config, file.metadata.get("source", source.name))
    return before, calibration(residuals, std * before.scale)


def _residuals(matcher: Matcher, batches: Iterable[PairBatch]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) residuals and (N,) standard deviations of all matches with a known truth, in pixels."""
    residuals, deviations = [], []
    for batch in batches:
        for pair in range(len(batch)):
            keyframe, current = (matcher.encode(image[pair, 0]) for image in (batch.image0, batch.image1))
            matches = matcher.match([matcher.complete(keyframe)], current)[0]
            residuals.append(match_residuals(matches, batch.warp01[pair]).numpy())
            deviations.append(matches.std.numpy())
    return np.concatenate(residuals), np.concatenate(deviations)
