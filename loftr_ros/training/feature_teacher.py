"""A teacher of dense features for cells and regions of single photographs, without pairs or truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.compact.backbone import REGION_CELLS, CompactFeatures, padded
from loftr_ros.training.config import PhotosConfig
from loftr_ros.training.xfeat import XFEAT_CHANNELS

if TYPE_CHECKING:
    from loftr_ros.training.xfeat import XFeat

# Name of the heads among the weights of a network in training.
HEADS = "feature_heads"
_CELLS_OF_A_REGION = REGION_CELLS**2
# Number of regions whose mutual products are compared.
_SAMPLED = 512


class FeatureHeads(nn.Module):
    """Heads from the student's features to the teacher's, used only in training.

    Cells pass two convolutions of 1x1. Regions pass one, to the features of all four of their cells: a linear map keeps
    the products by which regions are compared.
    """

    def __init__(self, cell_dim: int, region_dim: int) -> None:
        """Random weights, the same number of random numbers for all networks of these widths."""
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(cell_dim, cell_dim, 1), nn.ReLU(inplace=True), nn.Conv2d(cell_dim, XFEAT_CHANNELS, 1)
        )
        self.regions = nn.Conv2d(region_dim, _CELLS_OF_A_REGION * XFEAT_CHANNELS, 1)


class FeatureTeacher:
    """A network as teacher of dense features, with the weights of its losses."""

    def __init__(self, network: XFeat, settings: PhotosConfig) -> None:
        """Use a network that is ready for inference."""
        self._network = network
        self.weights = {
            "taught_cells": settings.cell_weight,
            "taught_regions": settings.region_weight,
            "taught_likeness": settings.likeness_weight,
        }

    def losses(self, heads: FeatureHeads, made: CompactFeatures, taught: Tensor) -> dict[str, Tensor]:
        """Distance of the student's features from the teacher's.

        For cells and regions: one minus the cosine between the student's features, through the heads, and the
        teacher's. Likeness: the squared difference between the cosines of regions with each other, of the student
        without heads and of the teacher. Matching uses these cosines, and heads could hide them.

        Args:
            heads: of the student.
            made: its features of (P, 1, H, W) photographs.
            taught: (P, 1, H, W) in [0, 1], the photographs for the teacher.

        Returns:
            () float32 each, by the names in `weights`.
        """
        wanted = self._network(padded(taught))
        with torch.autocast(wanted.device.type, enabled=False):
            cells = heads.cells(made.cells.float())
            regions = functional.pixel_shuffle(heads.regions(made.regions.float()), REGION_CELLS)
            likeness = likeness_loss(made.regions.float(), functional.pixel_unshuffle(wanted, REGION_CELLS))
            return {
                "taught_cells": 1 - functional.cosine_similarity(cells, wanted, dim=1).mean(),
                "taught_regions": 1 - functional.cosine_similarity(regions, wanted, dim=1).mean(),
                "taught_likeness": likeness,
            }


def likeness_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between regions, for a random sample of those of all photographs.

    Args:
        student: (P, C, h, w).
        teacher: (P, D, h, w).

    Returns:
        () of the two matrices of cosines; it does not depend on rotations of the features.
    """
    chosen = torch.randint(teacher.shape[0] * teacher[0, 0].numel(), (_SAMPLED,), device=teacher.device)
    products = []
    for features in (student, teacher):
        sampled = functional.normalize(features.permute(0, 2, 3, 1).flatten(0, 2)[chosen], dim=1)
        products.append(sampled @ sampled.t())
    return (products[0] - products[1]).square().mean()
