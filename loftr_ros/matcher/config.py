"""What the networks are made of: one frozen dataclass a stage, and the named presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class BackboneConfig:
    """The ResNet of the paper's section 3.1.

    Attributes:
        initial_dim: channels of the stem, which works at 1/2 of the image.
        block_dims: channels of the stages; the first keeps 1/2, each further one halves.
    """

    initial_dim: int
    block_dims: tuple[int, ...]

    @property
    def stride(self) -> int:
        """Side of a coarse cell, in pixels."""
        return int(2 ** len(self.block_dims))


@dataclass(frozen=True)
class TransformerConfig:
    """The coarse LoFTR module (section 3.2).

    Attributes:
        num_heads: attention heads; the width is the backbone's last.
        layers: the layers in their order; "self" attends within an image, "cross" to the other.
        position_slip: whether the positional encoding has the published code's operator-precedence slip
            (`temp_bug_fix = False`), which weights trained with it need.
    """

    num_heads: int
    layers: tuple[Literal["self", "cross"], ...]
    position_slip: bool


@dataclass(frozen=True)
class CoarseMatchingConfig:
    """Dual-softmax matching (section 3.3, equation 2).

    Attributes:
        temperature: divides the scaled dot products before the softmaxes.
        threshold: least confidence of a match, 0 to 1.
        border: cells at the image's rim that never match.
        point: where in its cell a match sits: the published weights of the low-end network put it at the
            cell's top-left pixel, our own networks at its centre.
    """

    temperature: float
    threshold: float
    border: int
    point: Literal["corner", "centre"]


@dataclass(frozen=True)
class LoFTRConfig:
    """One whole network.

    Attributes:
        name: the preset's name.
        backbone, transformer, coarse: the stages.
        untrained: prefixes of weights that a published file of this network holds and that are not used.
    """

    name: str
    backbone: BackboneConfig
    transformer: TransformerConfig
    coarse: CoarseMatchingConfig
    untrained: tuple[str, ...] = ()


# "Local Feature Matching with Transformers for Low-End Devices" (arXiv 2202.00770): a quarter of the
# channels, 1/16 cells, no fine stage. Its published file also holds a 1/4 branch that was never trained.
COARSE_LITE = LoFTRConfig(
    name="coarse_lite",
    backbone=BackboneConfig(initial_dim=8, block_dims=(8, 16, 32, 32)),
    transformer=TransformerConfig(num_heads=1, layers=("self", "cross") * 2, position_slip=True),
    coarse=CoarseMatchingConfig(temperature=0.1, threshold=0.01, border=0, point="corner"),
    untrained=(
        "backbone.layer3_outconv.",
        "backbone.layer3_outconv2.",
        "backbone.layer2_outconv.",
        "backbone.layer2_outconv2.",
    ),
)

PRESETS: dict[str, LoFTRConfig] = {COARSE_LITE.name: COARSE_LITE}
