"""The convolutional backbone: a ResNet with a feature pyramid back up to the fine grid (paper, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from loftr_ros.matcher.config import BackboneConfig
from loftr_ros.matcher.convolutions import CHANNEL_STEP, OneDnnConv, pad_convolution, smoothed
from loftr_ros.matcher.fixed import is_fixed

# Size of the largest temporary when a whole map of fine features is computed, in bytes.
BAND_BYTES = 64 << 20

# Places smoothed at a time if only some are: their neighbourhoods are 7 MB in half precision.
TILE_PLACES = 2048

# Cost of a gathered place, relative to one of a whole map.
_GATHERING = 2.0


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1: nn.Module = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 3)
        self.bn2: nn.Module = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        # The published networks have a convolution in the shortcut exactly where the resolution changes.
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, ceil(H / stride), ceil(W / stride))."""
        shortcut = x if self.downsample is None else self.downsample(x)
        if isinstance(self.conv1, OneDnnConv) and isinstance(self.conv2, OneDnnConv):
            return self.conv2(self.conv1(x, "relu"), "relu", onto=shortcut)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(_sum(self.bn2(self.conv2(y)), shortcut))


class Backbone(nn.Module):
    """Computes coarse features, and fine features if the network has a fine stage.

    Module names are those of the published checkpoints.
    """

    def __init__(self, config: BackboneConfig) -> None:
        """Random weights.

        Raises:
            ValueError: the first stage, which has no convolution in its shortcut, is not as wide as the stem.
        """
        super().__init__()
        dims = config.block_dims
        if config.initial_dim != dims[0]:
            raise ValueError(f"initial_dim is {config.initial_dim}; expected block_dims[0], {dims[0]}")
        self.num_stages = len(dims)
        self.fine_level = config.fine_level
        self.conv1 = _conv(1, config.initial_dim, 7, 2)
        self.bn1: nn.Module = nn.BatchNorm2d(config.initial_dim)
        self.relu = nn.ReLU(inplace=True)
        inputs = config.initial_dim
        for i, outputs in enumerate(dims, start=1):
            stage = nn.Sequential(
                ResidualBlock(inputs, outputs, 1 if i == 1 else 2), ResidualBlock(outputs, outputs, 1)
            )
            self.add_module(f"layer{i}", stage)
            inputs = outputs
        self.add_module(f"layer{self.num_stages}_outconv", _conv(inputs, inputs, 1))
        for i in range(self.num_stages - 1, (config.fine_level or self.num_stages) - 1, -1):
            above, here = dims[i], dims[i - 1]
            self.add_module(f"layer{i}_outconv", _conv(here, above, 1))
            smooth = nn.Sequential(
                _conv(above, above, 3), nn.BatchNorm2d(above), nn.LeakyReLU(inplace=True), _conv(above, here, 3)
            )
            self.add_module(f"layer{i}_outconv2", smooth)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coarse features, and the input of `smooth` for the fine ones.

        A coarse cell (x, y) is at pixel (stride x, stride y): every kernel is centred. So a side that is not a multiple
        of the stride needs no padding; its last cells are still inside the image.

        Args:
            image: (B, 1, H, W) in [0, 1], any size of at least one coarse cell.

        Returns:
            (B, C, ceil(H / stride), ceil(W / stride)) in fp32, and None or (B, Cu, ceil(H / fine_stride), ceil(W /
            fine_stride)).
        """
        fused = isinstance(self.conv1, OneDnnConv)
        x = self.conv1(image, "relu") if fused else self.relu(self.bn1(self.conv1(image)))
        stages = []
        for i in range(1, self.num_stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
            stages.append(x)
        # In fp32 in every precision: it is a hundredth of the work, and everything after it depends on it.
        coarse = functional.conv2d(x.float(), self.projection.weight.float())
        if self.fine_level is None:
            return coarse, None
        x = coarse.to(x.dtype)
        for i in range(self.num_stages - 1, self.fine_level - 1, -1):
            stages.pop()  # the stage above is not needed any more
            if i < self.num_stages - 1:
                x = smoothed(self._smoothing(i + 1), x)
            lateral = self.get_submodule(f"layer{i}_outconv")
            x = _twice(x, stages[-1])
            x = lateral(stages[-1], onto=x) if isinstance(lateral, OneDnnConv) else _sum(lateral(stages[-1]), x)
        return coarse, x

    @property
    def projection(self) -> nn.Conv2d:
        """The 1x1 convolution that outputs the coarse features."""
        projection = self.get_submodule(f"layer{self.num_stages}_outconv")
        assert isinstance(projection, nn.Conv2d)
        return projection

    def _smoothing(self, level: int) -> nn.Sequential:
        """The two convolutions after the sum of a level."""
        smoothing = self.get_submodule(f"layer{level}_outconv2")
        assert isinstance(smoothing, nn.Sequential)
        return smoothing

    def smooth(self, unsmoothed: Tensor) -> Tensor:
        """The fine features, (B, Cu, Hf, Wf) -> (B, Cf, Hf, Wf).

        For a single image without gradients it works in bands of rows, because the map between the two convolutions is
        the largest of all.
        """
        assert self.fine_level is not None
        smoothing = self._smoothing(self.fine_level)
        batch, channels, height, width = unsmoothed.shape
        rows = max(8, BAND_BYTES // (channels * width * unsmoothed.element_size()))
        if batch > 1 or rows >= height or torch.is_grad_enabled() or is_fixed():
            return smoothed(smoothing, unsmoothed)
        second = smoothing[3]
        assert isinstance(second, nn.Conv2d)
        fine = unsmoothed.new_empty((1, height, width, second.out_channels)).permute(0, 3, 1, 2)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # Two more rows on each side; each convolution invalidates one of them inside the image.
            first_row, end = max(0, top - 2), min(bottom + 2, height)
            band = smoothed(smoothing, unsmoothed[:, :, first_row:end])
            fine[:, :, top:bottom] = band[:, :, top - first_row : bottom - first_row]
        return fine

    def smooth_places(self, unsmoothed: Tensor, wanted: Tensor) -> Tensor | None:
        """The fine features of some places only; `fold_batch_norm` must have been called.

        Args:
            unsmoothed: (1, Cu, Hf, Wf), channels last in memory.
            wanted: (Hf, Wf) bool.

        Returns:
            As `smooth`, but computed only at wanted places; None if the whole map costs less.
        """
        assert self.fine_level is not None
        return smoothed_places(self._smoothing(self.fine_level), unsmoothed, wanted)

    def pad_channels(self) -> None:
        """Give all maps inside a multiple of 8 channels: the same function, as tensor cores want it.

        The 196 channels of the published networks become 200. Weights of the new channels are zero, so these are zero
        behind every activation. `fold_batch_norm` must have been called.
        """
        if self.projection.out_channels % CHANNEL_STEP:
            return  # the pyramid adds its maps to those of the coarse features, which keep their channels
        results = [self.projection]
        if self.fine_level is not None:
            results.append(self._smoothing(self.fine_level)[3])  # type: ignore[arg-type]
        for conv in self.modules():
            if isinstance(conv, nn.Conv2d):
                outputs = 0 if conv in results else -conv.out_channels % CHANNEL_STEP
                inputs = 0 if conv is self.conv1 else -conv.in_channels % CHANNEL_STEP
                pad_convolution(conv, inputs, outputs)

    def fold_batch_norm(self) -> None:
        """Fold the batch norms into the convolutions before them: the same function, fewer passes over memory."""
        for module in list(self.modules()):
            if isinstance(module, (Backbone, ResidualBlock)):
                for name, norm_name in (("conv1", "bn1"), ("conv2", "bn2")):
                    norm = getattr(module, norm_name, None)
                    if isinstance(norm, nn.BatchNorm2d):
                        setattr(module, name, fuse_conv_bn_eval(getattr(module, name), norm))
                        setattr(module, norm_name, nn.Identity())
            elif isinstance(module, nn.Sequential) and len(module) > 1 and isinstance(module[1], nn.BatchNorm2d):
                conv = module[0]
                assert isinstance(conv, nn.Conv2d)
                module[0] = fuse_conv_bn_eval(conv, module[1])
                module[1] = nn.Identity()


def smoothed_places(
    smoothing: nn.Sequential, unsmoothed: Tensor, wanted: Tensor, *, blank: bool = False
) -> Tensor | None:
    """Two convolutions with an activation between them, at some places of a map only.

    Args:
        smoothing: convolution, former batch norm, activation, convolution.
        unsmoothed: (1, I, H, W), channels last in memory.
        wanted: (H, W) bool.
        blank: whether other places must be zero; else they are undefined.

    Returns:
        (1, O, H, W), channels last; None if the whole map costs less.
    """
    first, _, activation, second = smoothing.children()
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    _, channels, height, width = unsmoothed.shape
    around = functional.max_pool2d(wanted[None].to(unsmoothed.dtype), 3, 1, padding=1)[0] > 0
    hidden_places, places = (mask.flatten().nonzero()[:, 0] for mask in (around, wanted))
    operations = len(hidden_places) * first.out_channels + len(places) * second.out_channels
    if _GATHERING * operations > height * width * (first.out_channels + second.out_channels):
        return None
    by_place = unsmoothed.permute(0, 2, 3, 1).reshape(-1, channels)  # a view
    row_of = torch.arange(height * width, device=unsmoothed.device)
    hidden = by_place.new_empty((len(hidden_places), first.out_channels))
    make = by_place.new_zeros if blank else by_place.new_empty
    fine = make((height * width, second.out_channels))
    for tile in range(0, len(hidden_places), TILE_PLACES):
        part = hidden_places[tile : tile + TILE_PLACES]
        hidden[tile : tile + TILE_PLACES] = activation(_convolved(first, by_place, row_of, part, (height, width)))
    row_of[hidden_places] = torch.arange(len(hidden_places), device=unsmoothed.device)
    for part in places.split(TILE_PLACES):
        fine[part] = _convolved(second, hidden, row_of, part, (height, width))
    return fine.view(1, height, width, -1).permute(0, 3, 1, 2)


def _convolved(conv: nn.Conv2d, rows: Tensor, row_of: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """A convolution of 3 x 3 at some places of a map, by one product.

    Args:
        conv: its weights are channels last in memory.
        rows: (R, I) features.
        row_of: (H * W,) int64, row of each place; all neighbours of `places` must have one.
        places: (P,) int64, row-major.
        size: (H, W).

    Returns:
        (P, O).
    """
    height, width = size
    tap = torch.arange(9, device=places.device)
    down = (places // width)[:, None] + tap // 3 - 1
    across = (places % width)[:, None] + tap % 3 - 1
    inside = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    neighbours = down.clamp(0, height - 1) * width + across.clamp(0, width - 1)
    taps = rows.index_select(0, row_of[neighbours.flatten()]).view(len(places), 9, -1)
    if not inside.all():
        taps[~inside] = 0
    weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # a view
    return functional.linear(taps.flatten(1), weight, conv.bias)


def _twice(coarse: Tensor, fine: Tensor) -> Tensor:
    """Upsample by two, cut to the size of the finer map: at odd sizes that has one row or column less."""
    twice = functional.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=True)
    if twice.shape[2:] == fine.shape[2:]:
        return twice
    return twice[..., : fine.shape[2], : fine.shape[3]].contiguous(memory_format=torch.channels_last)


def _sum(x: Tensor, y: Tensor) -> Tensor:
    """x + y, overwriting x if no gradient needs it."""
    return x + y if x.requires_grad else x.add_(y)
