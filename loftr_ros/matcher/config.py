"""Configurations of the networks, one frozen dataclass per stage, and the named presets."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal


class _Grids:
    """The cells of images, from a network's strides."""

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of an image's cells, including those that complete the last units of coarse matching."""
        side, cell = self.coarse_stride, self.backbone.stride  # type: ignore[attr-defined]
        return -(-height // side) * (side // cell), -(-width // side) * (side // cell)


@dataclass(frozen=True)
class BackboneConfig:
    """The ResNet of the paper's section 3.1, with or without the feature pyramid.

    Attributes:
        initial_dim: channels of the stem, which works at 1/2 of the image.
        block_dims: channels of the stages; the first keeps 1/2, each further one halves.
        fine_level: last stage of the pyramid, from 1: its resolution is that of the fine features. None for a network
            without fine features.
    """

    initial_dim: int
    block_dims: tuple[int, ...]
    fine_level: int | None = None

    @property
    def stride(self) -> int:
        """Side of a coarse cell, in pixels."""
        return int(2 ** len(self.block_dims))

    @property
    def coarse_dim(self) -> int:
        """Channels of the coarse features."""
        return self.block_dims[-1]

    @property
    def fine_stride(self) -> int:
        """Side of a fine cell, in pixels; only where there are fine features."""
        assert self.fine_level is not None
        return int(2**self.fine_level)

    @property
    def fine_dim(self) -> int:
        """Channels of the fine features; only where there are any."""
        assert self.fine_level is not None
        return self.block_dims[self.fine_level - 1]


@dataclass(frozen=True)
class TransformerConfig:
    """A LoFTR module (section 3.2); its width is that of the features that it works on.

    Attributes:
        num_heads: attention heads.
        layers: the layers in order; "self" attends within an image, "cross" to the other.
        attention: "linear" uses the kernel elu(x) + 1 in place of the softmax, "full" is the softmax.
    """

    num_heads: int
    layers: tuple[Literal["self", "cross"], ...]
    attention: Literal["linear", "full"] = "linear"


@dataclass(frozen=True)
class CoarseMatchingConfig:
    """Coarse matching (section 3.3).

    Attributes:
        method: dual-softmax (equation 2), optimal transport with a dustbin (equation 1), or the scores themselves, as
            in EfficientLoFTR's faster variant (its section 3.3).
        temperature: divides the scaled dot products before the dual-softmax, and the scores.
        sinkhorn_iterations: of optimal transport.
        threshold: least confidence of a match, 0 to 1.
        border: width of the border of the usable area, in cells, that never matches.
        max_matches: maximum number of matches of a pair, the most confident ones; 0 for all.
        point: position of a match in its cell: the cell's top-left pixel, on which the stem's centred kernels stand,
            for the published weights; the cell's centre for our own networks.
    """

    threshold: float
    border: int
    point: Literal["corner", "centre"]
    method: Literal["dual_softmax", "optimal_transport", "scores"] = "dual_softmax"
    temperature: float = 0.1
    sinkhorn_iterations: int = 3
    max_matches: int = 0


@dataclass(frozen=True)
class FineConfig:
    """The fine stage (section 3.4).

    Attributes:
        window: side of the windows of fine features around a match, odd.
        transformer: the fine LoFTR module.
    """

    window: int
    transformer: TransformerConfig


@dataclass(frozen=True)
class LoFTRConfig(_Grids):
    """One whole network.

    Attributes:
        name: the preset's name.
        backbone, transformer, coarse: the stages.
        fine: the fine stage; None if matches stay on the coarse grid.
        position_slip: whether the positional encoding has the published code's operator-precedence slip (`temp_bug_fix
            = False`), which weights trained with it need.
        untrained: prefixes of unused weights in a published file of this network.
    """

    name: str
    backbone: BackboneConfig
    transformer: TransformerConfig
    coarse: CoarseMatchingConfig
    fine: FineConfig | None = None
    position_slip: bool = False
    untrained: tuple[str, ...] = field(default=())

    @property
    def coarse_stride(self) -> int:
        """Side of the units of coarse matching, in pixels: of a cell."""
        return self.backbone.stride

    @property
    def coarse_dim(self) -> int:
        """Channels of the units of coarse matching."""
        return self.backbone.coarse_dim


@dataclass(frozen=True)
class CompactBackboneConfig:
    """The backbone of `compact`. All kernels are centred, so features are at cells' centres.

    Attributes:
        dims: channels at 1/2, 1/4, 1/8 and 1/16 of the image.
        blocks: residual blocks at each of them.
        cell_dim: channels of the cells' features, at 1/8.
        fine_dim: channels of the fine features, at 1/2.
    """

    dims: tuple[int, ...]
    blocks: tuple[int, ...]
    cell_dim: int
    fine_dim: int

    @property
    def stride(self) -> int:
        """Side of a cell, in pixels."""
        return 8

    @property
    def region_dim(self) -> int:
        """Channels of the regions' features."""
        return self.dims[-1]


@dataclass(frozen=True)
class RegionTransformerConfig:
    """Softmax attention between regions of 16 px; keys and values are pooled two by two, as in EfficientLoFTR.

    Attributes:
        num_heads: attention heads.
        layers: the layers in their order; none for a network without attention.
    """

    num_heads: int
    layers: tuple[Literal["self", "cross"], ...]


@dataclass(frozen=True)
class CompactFineConfig:
    """The fine stage of `compact`: a template of fine features is correlated around its match.

    Attributes:
        template: side of the template, in fine features; even, since cells' centres are between four of them.
        reach: largest tested shift, in fine features.
        hidden: width of the layer that reads the correlation.
        sigma_scale: factor on the predicted standard deviation, so that it contains 68 % of errors along an axis on
            held-out photos.
    """

    template: int
    reach: int
    hidden: int
    sigma_scale: float = 1.0


@dataclass(frozen=True)
class CompactConfig(_Grids):
    """Our own small network.

    Attributes:
        name: the preset's name.
        backbone, transformer, coarse, fine: the stages; `coarse` is of regions and of the cells in them.
        untrained: as `LoFTRConfig`'s.
    """

    name: str
    backbone: CompactBackboneConfig
    transformer: RegionTransformerConfig
    coarse: CoarseMatchingConfig
    fine: CompactFineConfig
    untrained: tuple[str, ...] = field(default=())

    @property
    def coarse_stride(self) -> int:
        """Side of the units of coarse matching, in pixels: of a region."""
        return 2 * self.backbone.stride

    @property
    def coarse_dim(self) -> int:
        """Channels of the units of coarse matching."""
        return self.backbone.region_dim


@dataclass(frozen=True)
class EfficientBackboneConfig:
    """The RepVGG of EfficientLoFTR's section 3.1, each block re-parametrised to one 3x3 convolution.

    Attributes:
        dims: channels of the stem and of the stages at 1/2, 1/4 and 1/8 of the image; the stem works at 1/2 too.
        blocks: blocks of each of them.
    """

    dims: tuple[int, ...] = (64, 64, 128, 256)
    blocks: tuple[int, ...] = (1, 2, 4, 14)

    @property
    def stride(self) -> int:
        """Side of a cell, in pixels."""
        return 8

    @property
    def coarse_dim(self) -> int:
        """Channels of the coarse features, at 1/8."""
        return self.dims[3]

    @property
    def middle_dim(self) -> int:
        """Channels at 1/4."""
        return self.dims[2]

    @property
    def fine_dim(self) -> int:
        """Channels at 1/2, and of the fine features."""
        return self.dims[1]


@dataclass(frozen=True)
class AggregatedTransformerConfig:
    """Softmax attention between squares of cells (EfficientLoFTR's section 3.2).

    Attributes:
        num_heads: attention heads.
        layers: the layers in their order.
        window: side of the squares, in cells.
        position_side: longer side of the training images, in pixels. Positions in larger images are scaled down to it,
            as the authors suggest.
    """

    num_heads: int = 8
    layers: tuple[Literal["self", "cross"], ...] = ("self", "cross") * 4
    window: int = 4
    position_side: int = 832


@dataclass(frozen=True)
class EfficientFineConfig:
    """The two-stage refinement of EfficientLoFTR (section 3.4), on features of single pixels.

    Attributes:
        second_dim: channels, the last ones, that the second stage compares; the first stage has the others.
        temperature: divides the second stage's scores before the softmax.
        anchor: what the first stage may move in image 0. With "cell" nothing: the cell's own point is matched, so a
            cell is the same point of the keyframe in every frame. With "window", as published, the best pair of pixels
            of the two cells is chosen: `Matches.points0` then differs from pair to pair by up to 3.5 px, and cells are
            no landmarks.
    """

    second_dim: int = 8
    temperature: float = 10.0
    anchor: Literal["cell", "window"] = "cell"


@dataclass(frozen=True)
class EfficientConfig(_Grids):
    """EfficientLoFTR (arXiv 2403.04765).

    Attributes:
        name: the preset's name.
        coarse, backbone, transformer, fine: the stages.
        untrained: as `LoFTRConfig`'s.
    """

    name: str
    coarse: CoarseMatchingConfig
    backbone: EfficientBackboneConfig = field(default_factory=EfficientBackboneConfig)
    transformer: AggregatedTransformerConfig = field(default_factory=AggregatedTransformerConfig)
    fine: EfficientFineConfig = field(default_factory=EfficientFineConfig)
    untrained: tuple[str, ...] = field(default=())

    @property
    def coarse_stride(self) -> int:
        """Side of the units of coarse matching, in pixels: of a cell."""
        return self.backbone.stride

    @property
    def coarse_dim(self) -> int:
        """Channels of the units of coarse matching."""
        return self.backbone.coarse_dim


NetworkConfig = LoFTRConfig | CompactConfig | EfficientConfig

# The published network: outdoor_ds, indoor_ds.
LOFTR = LoFTRConfig(
    name="loftr",
    backbone=BackboneConfig(initial_dim=128, block_dims=(128, 196, 256), fine_level=1),
    transformer=TransformerConfig(num_heads=8, layers=("self", "cross") * 4),
    coarse=CoarseMatchingConfig(threshold=0.2, border=2, point="corner"),
    fine=FineConfig(window=5, transformer=TransformerConfig(num_heads=8, layers=("self", "cross"))),
    position_slip=True,
)

# indoor_ds_new: the same network, trained with the correct positional encoding.
LOFTR_NEW = replace(LOFTR, name="loftr_new", position_slip=False)

# outdoor_ot, indoor_ot.
LOFTR_OT = replace(LOFTR, name="loftr_ot", coarse=replace(LOFTR.coarse, method="optimal_transport"))

# The published code's second backbone: cells of 16 px and fine features at 1/4, for large images. No weights of it were
# published.
LOFTR_16_4 = replace(
    LOFTR,
    name="loftr_16_4",
    backbone=BackboneConfig(initial_dim=128, block_dims=(128, 196, 256, 512), fine_level=2),
    # 196 channels at 1/4 cannot be divided into eight heads.
    fine=FineConfig(window=5, transformer=TransformerConfig(num_heads=7, layers=("self", "cross"))),
    position_slip=False,
)

# "Local Feature Matching with Transformers for Low-End Devices" (arXiv 2202.00770): a quarter of the
# channels, 1/16 cells, no fine stage. Its published file also holds a 1/4 branch that was never trained.
COARSE_LITE = LoFTRConfig(
    name="coarse_lite",
    backbone=BackboneConfig(initial_dim=8, block_dims=(8, 16, 32, 32)),
    transformer=TransformerConfig(num_heads=1, layers=("self", "cross") * 2),
    coarse=CoarseMatchingConfig(threshold=0.01, border=0, point="corner"),
    position_slip=True,
    untrained=(
        "backbone.layer3_outconv.",
        "backbone.layer3_outconv2.",
        "backbone.layer2_outconv.",
        "backbone.layer2_outconv2.",
    ),
)

# Trained here, for two CPU cores and small GPUs: 16-px regions attend to each other and are matched, then the four
# cells of 8 px in each, then pixels at 1/2 of the image.
COMPACT = CompactConfig(
    name="compact",
    backbone=CompactBackboneConfig(dims=(16, 48, 96, 128), blocks=(0, 1, 2, 2), cell_dim=64, fine_dim=24),
    transformer=RegionTransformerConfig(num_heads=4, layers=("self", "cross") * 2),
    coarse=CoarseMatchingConfig(threshold=0.1, border=2, point="centre", max_matches=2000),
    fine=CompactFineConfig(template=4, reach=3, hidden=64),
)

# EfficientLoFTR, the authors' "full" model: eloftr_outdoor.
EFFICIENT = EfficientConfig(name="efficient", coarse=CoarseMatchingConfig(threshold=0.2, border=2, point="corner"))

# The authors' "optimized" model: the same weights, matched without a softmax. Their threshold on the score is 25, where
# `coarse.HALF_SCORE` puts the confidence 0.5.
EFFICIENT_OPT = replace(
    EFFICIENT, name="efficient_opt", coarse=replace(EFFICIENT.coarse, method="scores", threshold=0.5)
)

PRESETS: dict[str, NetworkConfig] = {
    config.name: config
    for config in (LOFTR, LOFTR_NEW, LOFTR_OT, LOFTR_16_4, COARSE_LITE, COMPACT, EFFICIENT, EFFICIENT_OPT)
}

# As a precision: the convolutions of `compact`'s backbone in 8 bits, all else in another precision.
INT8 = "int8"

# Instead of a preset's name: the network of the weights, or the default one without weights.
AUTO = "auto"
# Its weights are in the package.
DEFAULT_PRESET = COMPACT.name
