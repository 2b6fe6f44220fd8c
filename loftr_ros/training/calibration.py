"""The last step of a training: a factor that calibrates the predicted standard deviations on held-out photos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

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

Array = NDArray[np.float64]

# Fraction of a normal distribution within one standard deviation.
NORMAL_WITHIN_ONE = 0.6827


@dataclass(frozen=True)
class Calibration:
    """Calibration of predicted standard deviations. Every match counts twice: by its error along u and along v.

    Attributes:
        count: matches.
        within_one, within_two: part of the errors within one and two predicted standard deviations; 0.68 and 0.95 for a
            normal distribution. NaN without matches.
        scale: factor on the predictions that puts 68 % of the errors within one; 1 is perfect.
        predicted, measured: (B,) bins of equally many matches, ordered by prediction: the median predicted standard
            deviation, and the error that bounds 68 % of theirs, in pixels.
    """

    count: int
    within_one: float
    within_two: float
    scale: float
    predicted: Array
    measured: Array


def calibration(residuals: ArrayLike, std: ArrayLike, bins: int = 10) -> Calibration:
    """Compare the errors of matches with their predicted standard deviations.

    Args:
        residuals: (N, 2) pixels, `points1` minus its true position.
        std: (N,) pixels along one axis; matches without a finite std and residual do not count.
        bins: of equally many matches, at most.
    """
    error, sigma = np.abs(np.asarray(residuals, np.float64)), np.asarray(std, np.float64)
    known = np.isfinite(error).all(axis=1) & np.isfinite(sigma)
    error, sigma = error[known], sigma[known]
    if not len(sigma):
        return Calibration(0, np.nan, np.nan, np.nan, np.zeros(0), np.zeros(0))
    ratio = error / np.maximum(sigma, 1e-9)[:, None]
    parts = np.array_split(np.argsort(sigma, kind="stable"), min(bins, len(sigma)))
    return Calibration(
        len(sigma),
        float((ratio <= 1).mean()),
        float((ratio <= 2).mean()),
        float(np.quantile(ratio, NORMAL_WITHIN_ONE)),
        np.array([np.median(sigma[part]) for part in parts]),
        np.array([np.quantile(error[part], NORMAL_WITHIN_ONE) for part in parts]),
    )


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
