"""EfficientLoFTR equals the authors' and transformers' with the same weights: `make peers` creates the environment.

The authors' code is PyPI's `efficientloftr-inference`. The refinement is compared with it alone: that of transformers
(5.24) takes a softmax over the matches in place of the window, and the window's first pixel as every match's.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import made_weights
import pytest
import torch
from made_efficient import configured, state_dict
from published_layouts import hugging_face_layout, trained_layout
from safetensors.torch import save_file
from torch import Tensor

from loftr_ros.matcher.checkpoints.files import load_weights, read_weights, recognise_file
from loftr_ros.matcher.config import EfficientConfig
from loftr_ros.matcher.efficient.network import EfficientLoFTR
from loftr_ros.matcher.efficient.refinement import windows

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
pytestmark = [
    pytest.mark.skipif(
        not PYTHON.is_file() or not list(ROOT.glob(".venv-peers/lib/python*/site-packages/transformers")),
        reason="needs the environment that `make peers` makes",
    ),
    pytest.mark.timeout(600),  # other implementations, in a process that loads transformers first
]

State = dict[str, Tensor]
# Pairs for the comparison: a complete one, one with masks, and one longer than the training's images.
WHOLE, MASKED, LONG = 0, 1, 2


def pairs() -> list[State]:
    """uint8 images with sides that are multiples of 32, as the peers want them."""
    image0, image1 = (image[:224] for image in made_weights.rendered_pair())
    mask0, mask1 = (torch.zeros(28, 40, dtype=torch.bool) for _ in range(2))
    mask0[:24, :], mask1[:, :36] = True, True
    long0, long1 = (image[:96] for image in made_weights.rendered_pair(896, 672))
    return [
        {"image0": image0, "image1": image1},
        {"image0": image0, "image1": image1, "mask0": mask0, "mask1": mask1},
        {"image0": long0.contiguous(), "image1": long1.contiguous(), "npe": torch.tensor(896)},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the weights in both layouts, and the peers' results."""
    folder: Path = tmp_path_factory.mktemp("parity")
    trained = trained_layout(state_dict())
    hugging_face = hugging_face_layout(trained)
    torch.save({"state_dict": {f"matcher.{name}": value for name, value in trained.items()}}, folder / "authors.ckpt")
    save_file({name: value.contiguous().clone() for name, value in hugging_face.items()}, folder / "model.safetensors")
    torch.save({"trained": trained, "hugging_face": hugging_face, "pairs": pairs()}, folder / "in.pt")
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
    variables = {name: value for name, value in os.environ.items() if name not in hidden} | {"HF_HUB_OFFLINE": "1"}
    command = [PYTHON, Path(__file__).with_name("efficient_peers.py"), folder / "in.pt", folder / "out.pt"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return result


def loaded(config: EfficientConfig, path: Path) -> EfficientLoFTR:
    model = EfficientLoFTR(config)
    load_weights(model, read_weights(path))
    return model.prepare(torch.device("cpu"), torch.float32)


def encoded(model: EfficientLoFTR, pair: State) -> list[Any]:
    masks = [pair.get(f"mask{i}") for i in (0, 1)]
    pixels = [None if m is None else m.repeat_interleave(8, 0).repeat_interleave(8, 1) for m in masks]
    return [model.encode(pair[f"image{i}"], pixels[i]) for i in (0, 1)]


def cells_of(row: Tensor, column: Tensor) -> dict[tuple[int, int], int]:
    return {cells: i for i, cells in enumerate(zip(row.tolist(), column.tolist(), strict=True))}


def assert_same_matches(ours: dict[tuple[int, int], int], theirs: dict[tuple[int, int], int]) -> list[tuple[int, int]]:
    shared = ours.keys() & theirs.keys()
    assert len(theirs) > 30, "parity on a handful of matches would mean nothing"
    assert len(shared) >= 0.999 * max(len(theirs), len(ours))
    return sorted(shared)


@pytest.mark.parametrize("file", ["authors.ckpt", "model.safetensors"])
def test_the_peers_own_names_are_those_of_the_files_and_all_are_recognised(
    file: str, folder: Path, made: dict[str, Any]
) -> None:
    held = read_weights(folder / file)
    assert recognise_file(held).config.name == "efficient"
    own = made["names"]["authors" if file == "authors.ckpt" else "transformers"]
    published = torch.load(folder / "in.pt", weights_only=True)
    mine = published["trained" if file == "authors.ckpt" else "hugging_face"]
    assert own == {name: tuple(value.shape) for name, value in mine.items()}
    for name, value in state_dict().items():
        torch.testing.assert_close(held.tensors[name], value, atol=2e-5, rtol=1e-4)


def test_cells_confidences_and_matches_are_transformers(folder: Path, made: dict[str, Any]) -> None:
    model, theirs = loaded(configured(), folder / "model.safetensors"), made["found"][WHOLE]["transformers"]
    features = encoded(model, pairs()[WHOLE])
    tokens = model.attend(features[:1], features[1])
    for mine, own in zip(tokens, theirs["tokens"], strict=True):
        assert (mine[0] - own).abs().max() < 1e-4 * own.square().mean().sqrt()
    assert (model.confidence(*features) - theirs["conf_matrix"]).abs().max() < 1e-4
    found = model.match_coarse(*tokens, features[:1], features[1])
    assert_same_matches(cells_of(found.cell0, found.cell1), cells_of(theirs["i_ids"], theirs["j_ids"]))


def test_fine_features_around_matches_are_transformers(folder: Path, made: dict[str, Any]) -> None:
    model, theirs = loaded(configured(), folder / "model.safetensors"), made["found"][WHOLE]["transformers"]
    features = encoded(model, pairs()[WHOLE])
    tokens = model.attend(features[:1], features[1])
    for i, cells in ((0, theirs["i_ids"]), (1, theirs["j_ids"])):
        image = features[i]
        fine = model.fine_preprocess(tokens[i], image.middle, image.fine)
        mine, own = windows(fine, cells, image.grid), theirs[f"windows{i}"]
        mine = (mine[:, 1:-1, 1:-1] if i == 0 else mine).flatten(1, 2)
        assert (mine - own).abs().max() < 1e-4 * max(1.0, float(own.square().mean().sqrt()))


@pytest.mark.parametrize("which", [WHOLE, MASKED, LONG], ids=["whole", "masked", "long"])
def test_confidences_matches_and_refined_points_are_the_authors(which: int, folder: Path, made: dict[str, Any]) -> None:
    model, theirs = loaded(configured(anchor="window"), folder / "authors.ckpt"), made["found"][which]["authors"]
    assert_refined_alike(model, pairs()[which], theirs)


def test_without_a_softmax_matches_are_those_of_the_authors_optimised_variant(
    folder: Path, made: dict[str, Any]
) -> None:
    model = loaded(configured("efficient_opt", anchor="window"), folder / "authors.ckpt")
    theirs = made["found"][WHOLE]["optimised"]
    scores = theirs["conf_matrix"].clamp_min(0)
    assert_refined_alike(model, pairs()[WHOLE], {**theirs, "conf_matrix": scores / (scores + 25)})


def assert_refined_alike(model: EfficientLoFTR, pair: State, theirs: State) -> None:
    features = encoded(model, pair)
    confidence = model.confidence(*features)
    row, column = (torch.ones(f.tokens.shape[1]).bool() if f.usable is None else f.usable[0] for f in features)
    assert (confidence - theirs["conf_matrix"][0])[row[:, None] & column].abs().max() < 1e-4
    tokens = model.attend(features[:1], features[1])
    coarse = model.match_coarse(*tokens, features[:1], features[1])
    ours, own = cells_of(coarse.cell0, coarse.cell1), cells_of(theirs["i_ids"], theirs["j_ids"])
    shared = assert_same_matches(ours, own)
    matches = model.match(features[:1], features[1])[0]
    # A match that ends on a masked pixel is removed at the very end, only by ours.
    left = {int(cell): i for i, cell in enumerate(matches.cell)}
    shared = [cells for cells in shared if cells[0] in left]
    here, there = torch.tensor([left[cells[0]] for cells in shared]), torch.tensor([own[cells] for cells in shared])
    off0 = (matches.points0[here] - theirs["mkpts0_f"][there]).abs().amax(dim=1)
    off1 = (matches.points1[here] - theirs["mkpts1_f"][there]).abs().amax(dim=1)
    assert (matches.points0[here] % 8 != 0).any(), "the first stage must do something for this to mean anything"
    # Two equal pixels may be exchanged, in one match of a thousand.
    assert ((off0 < 1e-4) & (off1 < 1e-3)).float().mean() >= 0.999


def test_with_the_cells_as_anchors_the_same_cells_match_and_points_of_the_keyframe_stay(
    folder: Path, made: dict[str, Any]
) -> None:
    fixed = loaded(configured(), folder / "authors.ckpt")
    moving = loaded(replace(fixed.config, fine=replace(fixed.config.fine, anchor="window")), folder / "authors.ckpt")
    features = [encoded(model, pairs()[WHOLE]) for model in (fixed, moving)]
    found = [model.match(f[:1], f[1])[0] for model, f in zip((fixed, moving), features, strict=True)]
    assert torch.equal(found[0].cell, found[1].cell)
    assert (found[0].points0 % 8 == 0).all() and (found[1].points0 % 8 != 0).all()
