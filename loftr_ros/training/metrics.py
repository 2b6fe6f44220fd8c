"""Metrics of a network on pairs of known geometry: the same for any matcher, as in use."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from loftr_ros.matcher.interface import ImageFeatures, Matcher, Matches
from loftr_ros.training.supervision import NO_PARTNER, PairBatch, coarse_truth

# Pixel thresholds for correct matches in the score, finer where it is difficult.
SCORE_THRESHOLDS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)


def pair_metrics(matcher: Matcher, batch: PairBatch) -> list[dict[str, float]]:
    """Metrics of each pair of a batch.

    Args:
        matcher: ready for inference.
        batch: on the matcher's device.

    Returns:
        For each pair:
        coarse_accuracy: part of the cells with a partner whose most confident partner is the true one, ignoring the
        threshold (if the matcher has a confidence matrix); chance is 1 / cells.
        precision: part of the matches of known truth that are within a cell's side of it.
        recall: part of the cells with a partner that have such a match.
        matches: their number.
        median_error: of the matches visible in both images, in pixels; NaN without any.
        score: F1 of precision and recall, averaged over SCORE_THRESHOLDS; used to select models.
    """
    truth = coarse_truth(batch, matcher.config)
    coarse_partner = coarse_truth(batch, matcher.config, matcher.config.coarse_stride).partner
    results = []
    for pair in range(len(batch)):
        features = matcher.encode(batch.image0[pair, 0]), matcher.encode(batch.image1[pair, 0])
        keyframe = matcher.complete(features[0])
        matches = matcher.match([keyframe], features[1])[0]
        partner = truth.partner[pair].cpu()
        result = _of_matches(matches, batch.warp01[pair].cpu(), bool(batch.complete[pair]), partner, matcher.cell_size)
        accuracy = _accuracy(matcher, keyframe, features[1], coarse_partner[pair])
        results.append(result if accuracy is None else {"coarse_accuracy": accuracy, **result})
    return results


def mean_metrics(pairs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over the pairs that have it."""
    values: dict[str, list[float]] = {}
    for pair in pairs:
        for name, value in pair.items():
            values.setdefault(name, [])
            if math.isfinite(value):
                values[name].append(value)
    return {name: sum(of) / len(of) if of else math.nan for name, of in values.items()}


def match_errors(matches: Matches, warp01: Tensor) -> Tensor:
    """(N,) distances in pixels between `points1` and the true positions of `points0`; NaN where those are not visible.

    Args:
        matches: of one pair.
        warp01: (H, W, 2).
    """
    error: Tensor = torch.linalg.vector_norm(match_residuals(matches, warp01), dim=1)
    return error


def match_residuals(matches: Matches, warp01: Tensor) -> Tensor:
    """(N, 2) pixels, `points1` minus the true position of `points0`; arguments and NaN as of `match_errors`."""
    height, width = warp01.shape[:2]
    grid = (2 * matches.points0 + 1) / torch.tensor([width, height]) - 1
    # Not zero outside, which would be a position; an invisible pixel makes everything beside it unknown.
    target = functional.grid_sample(
        warp01.permute(2, 0, 1)[None], grid[None, None], padding_mode="border", align_corners=False
    )[0, :, 0].t()
    return matches.points1 - target


def _of_matches(matches: Matches, warp01: Tensor, complete: bool, partner: Tensor, cell_size: int) -> dict[str, float]:
    error = match_errors(matches, warp01)
    known = error.isfinite()
    if complete:  # a match of an invisible point is wrong
        column, row = matches.points0.round().long().unbind(dim=1)
        unseen = ~warp01[row.clamp(0, warp01.shape[0] - 1), column.clamp(0, warp01.shape[1] - 1), 0].isfinite()
        known |= unseen
    has_partner = partner != NO_PARTNER
    expected = max(int(has_partner.sum()), 1)

    def precision_recall(limit: float) -> tuple[float, float]:
        right = error < limit
        return float(right.sum()) / max(int(known.sum()), 1), float(
            (right & has_partner[matches.cell]).sum()
        ) / expected

    precision, recall = precision_recall(cell_size)
    f1 = [2 * p * r / max(p + r, 1e-9) for p, r in map(precision_recall, SCORE_THRESHOLDS)]
    seen = error[error.isfinite()]
    return {
        "precision": precision,
        "recall": recall,
        "matches": float(len(matches)),
        "median_error": float(seen.median()) if len(seen) else math.nan,
        "score": sum(f1) / len(f1),
    }


def _accuracy(matcher: Matcher, features0: ImageFeatures, features1: ImageFeatures, partner: Tensor) -> float | None:
    confidence = getattr(matcher, "confidence", None)
    if confidence is None:
        return None
    chosen = partner >= 0
    if not chosen.any():
        return math.nan
    best = confidence(features0, features1).argmax(dim=1)
    return float((best == partner)[chosen].float().mean())
