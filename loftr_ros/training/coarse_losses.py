"""Parts shared by the objectives: the coarse losses of dual-softmax by the settings, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loftr_ros.training.config import DistillationConfig, LossConfig
from loftr_ros.training.distillation import Teacher, soft_target_loss
from loftr_ros.training.losses import focal, focal_negative, hardest_wrong, log_confidence, log_confidence_at, mean_over
from loftr_ros.training.supervision import CoarseTruth, PairBatch


def weighed(
    parts: Mapping[str, Tensor],
    settings: LossConfig,
    distillation: DistillationConfig,
    others: Mapping[str, float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of an objective's losses.

    Args:
        parts: () losses by name; only those of the objective.
        settings: weights, except the teacher's.
        distillation: weight of the teacher's.
        others: weights of losses without a setting here.

    Returns:
        () the sum, and the losses themselves without a gradient.
    """
    weights = {
        "coarse": settings.coarse_weight,
        "no_partner": settings.no_partner_weight,
        "feature": settings.feature_weight,
        "cell": settings.cell_weight,
        "fine": settings.fine_weight,
        "heat": settings.heat_weight,
        "soft_target": distillation.weight,
        **(others or {}),
    }
    total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return total, {name: value.detach() for name, value in parts.items()}


def dual_softmax_losses(
    tokens0: Tensor,
    tokens1: Tensor,
    truth: CoarseTruth,
    temperature: float,
    settings: LossConfig,
    distillation: DistillationConfig,
    teacher: Teacher | None,
    batch: PairBatch,
) -> dict[str, Tensor]:
    """The coarse losses of dual-softmax: on true matches, on wrong ones, and the teacher's."""
    log_all = None  # the logarithm of the whole confidence matrix, if needed
    if settings.negatives == "dense" or teacher is not None:
        log_all = log_confidence(tokens0, tokens1, temperature)
        log_p = log_all.gather(2, truth.partner.clamp_min(0)[..., None])[..., 0]
        positive = mean_over(focal(log_p, settings.focal_alpha, settings.focal_gamma), truth.partner >= 0)
    else:
        positive = positive_loss(tokens0, tokens1, truth, temperature, settings)
    parts = {"coarse": positive}
    negative = negative_loss(log_all, tokens0, tokens1, truth, temperature, settings)
    if negative is not None:
        parts["no_partner"] = negative
    if teacher is not None:
        assert log_all is not None
        taught = teacher.confidence(batch.image0, batch.image1)
        parts["soft_target"] = soft_target_loss(log_all, taught, distillation.temperature)
    return parts


def positive_loss(
    tokens0: Tensor, tokens1: Tensor, truth: CoarseTruth, temperature: float, settings: LossConfig
) -> Tensor:
    """The focal loss of true matches, without the whole confidence matrix."""
    matched = truth.partner >= 0
    number = torch.arange(truth.partner.shape[1], device=matched.device).expand_as(truth.partner)
    log_p = log_confidence_at(tokens0, tokens1, temperature, number, truth.partner)
    return mean_over(focal(log_p, settings.focal_alpha, settings.focal_gamma), matched)


def negative_loss(
    log_all: Tensor | None,
    tokens0: Tensor,
    tokens1: Tensor,
    truth: CoarseTruth,
    temperature: float,
    settings: LossConfig,
) -> Tensor | None:
    """The focal loss of wrong matches: all pairs of cells, or the likeliest of cells without a partner."""
    alpha, gamma = settings.focal_alpha, settings.focal_gamma
    if settings.negatives == "dense":
        assert log_all is not None
        wrong = torch.ones_like(log_all, dtype=torch.bool)
        columns = truth.partner.clamp_min(0)[..., None]
        wrong.scatter_(2, columns, (truth.partner < 0)[..., None])
        return mean_over(focal_negative(log_all, alpha, gamma), wrong)
    if settings.negatives == "none":
        return None
    count = settings.no_partner_samples
    row0, column0 = hardest_wrong(tokens0, tokens1, truth.lonely0, count)
    column1, row1 = hardest_wrong(tokens1, tokens0, truth.lonely1, count)
    row, column = torch.cat([row0, row1], dim=1), torch.cat([column0, column1], dim=1)
    if log_all is None:
        log_p = log_confidence_at(tokens0, tokens1, temperature, row, column)
    else:
        flat = row.clamp_min(0) * log_all.shape[2] + column.clamp_min(0)
        log_p = log_all.flatten(1).gather(1, flat)
    return mean_over(focal_negative(log_p, alpha, gamma), row >= 0)
