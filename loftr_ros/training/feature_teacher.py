"""A teacher of dense features for cells and regions of single photographs, without pairs or truth."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.matcher.compact.backbone import REGION_CELLS, CompactFeatures, padded
from loftr_ros.training.config import PhotosConfig

# Name of a teacher's heads among the weights of a network in training, and the beginning of its losses' names.
XFEAT_HEADS, XFEAT_LOSSES = "feature_heads", "taught"
ALIKED_HEADS, ALIKED_LOSSES = "aliked_heads", "aliked"
HEADS = (XFEAT_HEADS, ALIKED_HEADS)
_CELLS_OF_A_REGION = REGION_CELLS**2
# Number of regions whose mutual products are compared.
_SAMPLED = 512


class FeatureHeads(nn.Module):
    """Heads from the student's features to the teacher's, used only in training.

    Cells pass two convolutions of 1x1. Regions pass one, to the features of all four of their cells: a linear map keeps
    the products by which regions are compared.
    """

    def __init__(self, cell_dim: int, region_dim: int, channels: int) -> None:
        """Random weights, the same number of random numbers for all networks of these widths.

        Args:
            cell_dim, region_dim: channels of the student's cells and regions.
            channels: of the teacher's features.
        """
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(cell_dim, cell_dim, 1), nn.ReLU(inplace=True), nn.Conv2d(cell_dim, channels, 1)
        )
        self.regions = nn.Conv2d(region_dim, _CELLS_OF_A_REGION * channels, 1)


class DenseFeatures(Protocol):
    """A network with one feature for each cell of 8 px.

    Attributes:
        channels: of a feature.
    """

    channels: int

    def __call__(self, image: Tensor) -> Tensor:
        """(B, channels, H / 8, W / 8) float32 of length one, of (B, 1, H, W) images in [0, 1]."""
        ...


class FeatureTeacher:
    """A network as teacher of dense features, with the weights of its losses.

    Attributes:
        heads: name of the heads among the student's weights.
        channels: of the teacher's features.
        weights: of its losses, by their names.
    """

    def __init__(
        self,
        network: DenseFeatures,
        settings: PhotosConfig,
        heads: str = XFEAT_HEADS,
        losses: str = XFEAT_LOSSES,
        weight: float = 1.0,
    ) -> None:
        """Use a network that is ready for inference.

        Args:
            network: the teacher.
            settings: with the weights of its losses.
            heads: name of the heads.
            losses: beginning of the losses' names.
            weight: of all its losses.
        """
        self._network, self._losses = network, losses
        self.heads, self.channels = heads, network.channels
        self.weights = {
            f"{losses}_cells": weight * settings.cell_weight,
            f"{losses}_regions": weight * settings.region_weight,
            f"{losses}_likeness": weight * settings.likeness_weight,
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
                f"{self._losses}_cells": 1 - functional.cosine_similarity(cells, wanted, dim=1).mean(),
                f"{self._losses}_regions": 1 - functional.cosine_similarity(regions, wanted, dim=1).mean(),
                f"{self._losses}_likeness": likeness,
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
