"""Runs other implementations of EfficientLoFTR on pairs of images: started by `test_efficient_parity` in the
environment of `make peers`.

    .venv-peers/bin/python test/efficient_peers.py IN.pt OUT.pt

IN holds `trained` and `hugging_face`, state dicts of the same weights in the two layouts, and `pairs`: dicts of image0
and image1, (H, W) uint8, and perhaps mask0 and mask1, (H / 8, W / 8) bool, and npe, the longer side that positions are
scaled by. OUT gets `names`, names and shapes of the peers' own state dicts, and their results for each pair.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from efficientloftr_inference import LoFTR, full_config, reparameter
from efficientloftr_inference.loftr.utils.position_encoding import RoPEPositionEncodingSine
from transformers import EfficientLoFTRConfig, EfficientLoFTRForKeypointMatching

State = dict[str, torch.Tensor]


def authors(weights: State, optimised: bool, side: int) -> Any:
    """The authors' network. Its positions are kept in fp32 here, because it would round them to fp16."""
    config = full_config(npe_long_side=side)
    if optimised:
        config["match_coarse"].update(skip_softmax=True, thr=25.0)
    network = LoFTR(config=config)
    network.load_state_dict(dict(weights))
    for layer in network.loftr_coarse.layers:
        if layer.rope:
            channels = config["coarse"]["d_model"]
            layer.rope_pos_enc = RoPEPositionEncodingSine(channels, npe=config["coarse"]["npe"], ropefp16=False)
    return reparameter(network.eval())


def run_authors(network: Any, pair: State) -> State:
    data: dict[str, Any] = {name: pair[name][None, None].float() / 255 for name in ("image0", "image1")}
    data.update({name: pair[name][None] for name in ("mask0", "mask1") if name in pair})
    network(data)
    wanted = ("conf_matrix", "i_ids", "j_ids", "mkpts0_f", "mkpts1_f", "mconf")
    return {name: data[name] for name in wanted}


def run_transformers(network: Any, pair: State) -> State:
    """Up to the fine features: see test_efficient_parity for the rest."""
    pixels = torch.stack([pair["image0"], pair["image1"]])[None, :, None].float().expand(-1, -1, 3, -1, -1) / 255
    features = network.efficientloftr(pixels).feature_maps
    coarse, channels = features[0], features[0].shape[2]
    tokens = coarse[0].flatten(2).transpose(1, 2)
    similarity = tokens[0] @ tokens[1].t() / channels / network.config.coarse_matching_temperature
    windows0, windows1 = network.refinement_layer(coarse / channels**0.5, features[1:])
    _, scores, matched = network._coarse_matching(coarse, float(coarse.shape[3]))
    cells1 = matched[0, 1]
    cells0, cells1 = (cells1 >= 0).nonzero()[:, 0], cells1[cells1 >= 0]
    return {
        "tokens": tokens,
        "conf_matrix": torch.softmax(similarity, 0) * torch.softmax(similarity, 1),
        "i_ids": cells0,
        "j_ids": cells1,
        "mconf": scores[0, 1][cells0],
        "windows0": windows0[0, cells0],
        "windows1": windows1[0, cells1],
    }


@torch.inference_mode()
def main() -> None:
    given = torch.load(sys.argv[1], weights_only=True)
    torch.manual_seed(0)
    transformers = EfficientLoFTRForKeypointMatching(EfficientLoFTRConfig()).eval()
    transformers.load_state_dict(given["hugging_face"])
    own = LoFTR(config=full_config()).state_dict()
    made: dict[str, Any] = {
        "names": {
            "authors": {name: tuple(value.shape) for name, value in own.items()},
            "transformers": {name: tuple(value.shape) for name, value in transformers.state_dict().items()},
        },
        "found": [],
    }
    for pair in given["pairs"]:
        side = int(pair.pop("npe", 832))
        found = {"authors": run_authors(authors(given["trained"], False, side), pair)}
        if "mask0" not in pair and side == 832:  # transformers has neither
            found["transformers"] = run_transformers(transformers, pair)
            found["optimised"] = run_authors(authors(given["trained"], True, side), pair)
        made["found"].append(found)
    torch.save(made, sys.argv[2])


if __name__ == "__main__":
    main()
