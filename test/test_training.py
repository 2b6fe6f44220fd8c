"""Training: ground truth, losses, distillation, the trainer. On a tiny source of pairs."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_pairs import HEIGHT, WIDTH, Homographies, warp_by
from torch import Tensor, nn

from loftr_ros.matcher.build import build_network
from loftr_ros.matcher.cells import point_offset
from loftr_ros.matcher.checkpoints.files import load_network, read_weights, recognise_file
from loftr_ros.matcher.coarse import confidence_matrix
from loftr_ros.matcher.config import (
    COARSE_LITE,
    COMPACT,
    LOFTR,
    LOFTR_16_4,
    LOFTR_OT,
    BackboneConfig,
    CompactConfig,
    LoFTRConfig,
    NetworkConfig,
)
from loftr_ros.matcher.interface import Matches
from loftr_ros.matcher.loftr.network import LoFTR
from loftr_ros.matcher.loftr.transport import assignment_matrix
from loftr_ros.training.compact import CompactObjective, heat_entropy
from loftr_ros.training.config import DistillationConfig, LossConfig, OptimizerConfig, TrainingConfig
from loftr_ros.training.config_file import ConfigError, config_of, content_of, read_config, write_config
from loftr_ros.training.distillation import Teacher, pooled, soft_target_loss
from loftr_ros.training.losses import (
    _LogConfidenceAt,
    _LogDualSoftmax,
    fine_l2,
    focal,
    focal_negative,
    hardest_wrong,
    log_assignment,
    log_confidence,
    log_confidence_at,
    mean_over,
)
from loftr_ros.training.metrics import match_errors, mean_metrics, pair_metrics
from loftr_ros.training.objective import LoFTRObjective, open_objective
from loftr_ros.training.supervision import (
    NO_PARTNER,
    PairBatch,
    coarse_truth,
    fine_truth,
    pair_batch,
    sample_matches,
    warp_at_cells,
)

CPU = torch.device("cpu")
CONFIGS = Path(__file__).parents[1] / "config" / "training"
SMALL = BackboneConfig(initial_dim=8, block_dims=(8, 12, 16), fine_level=1)
SMALL_CHANGES = {
    "backbone": {"initial_dim": 8, "block_dims": [8, 12, 16], "fine_level": 1},
    "transformer": {"num_heads": 2, "layers": ["self", "cross"]},
    "fine": {"transformer": {"num_heads": 2}},
    "position_slip": False,
}


def small(config: LoFTRConfig) -> LoFTRConfig:
    """A preset with few channels."""
    stages = len(config.backbone.block_dims)
    backbone = replace(config.backbone, initial_dim=8, block_dims=(8, 16, 16, 24)[:stages])
    fine = config.fine and replace(config.fine, transformer=replace(config.fine.transformer, num_heads=2))
    return replace(config, backbone=backbone, transformer=replace(config.transformer, num_heads=2), fine=fine)


def shifted(du: float, dv: float, batch: int = 1, complete: bool = True) -> PairBatch:
    """A pair in which image 1 is image 0 shifted by (du, dv) pixels."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(2, batch, 1, HEIGHT, WIDTH, generator=random)
    there = np.float64([[1, 0, du], [0, 1, dv], [0, 0, 1]])
    back = np.float64([[1, 0, -du], [0, 1, -dv], [0, 0, 1]])
    warps = [torch.from_numpy(warp_by(m, (HEIGHT, WIDTH))).expand(batch, -1, -1, -1).clone() for m in (there, back)]
    return PairBatch(images[0], images[1], *warps, torch.full((batch,), complete))


# Ground truth


@pytest.mark.parametrize("point", ["corner", "centre"])
def test_cells_of_an_image_shifted_by_whole_cells_belong_to_the_cells_beside_them(point: Any) -> None:
    config = replace(COARSE_LITE, coarse=replace(COARSE_LITE.coarse, point=point))
    truth = coarse_truth(shifted(16, -16), config)
    partner = truth.partner.view(4, 6)
    assert truth.grid0 == (4, 6)
    assert partner[1:, :-1].tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11], [13, 14, 15, 16, 17]]
    assert (partner[0] == NO_PARTNER).all()
    assert (partner[:, -1] == NO_PARTNER).all()


def test_cells_of_which_no_pixel_is_seen_are_known_to_have_no_partner_only_where_the_pair_is_complete() -> None:
    truth = coarse_truth(shifted(16, 0), COARSE_LITE)
    assert truth.lonely0.view(4, 6)[:, -1].all()
    assert not truth.lonely0.view(4, 6)[:, :-1].any()
    assert truth.lonely1.view(4, 6)[:, 0].all()
    assert not coarse_truth(shifted(16, 0, complete=False), COARSE_LITE).lonely0.any()


def test_of_several_cells_that_fall_on_one_only_the_mutually_nearest_has_it() -> None:
    shrunk = np.float64([[0.5, 0, 0], [0, 0.5, 0], [0, 0, 1]])
    warps = [torch.from_numpy(warp_by(m, (HEIGHT, WIDTH)))[None] for m in (shrunk, np.linalg.inv(shrunk))]
    image = torch.rand(1, 1, HEIGHT, WIDTH)
    truth = coarse_truth(PairBatch(image, image, *warps, torch.tensor([True])), COARSE_LITE)
    chosen = truth.partner[truth.partner >= 0]
    assert len(chosen) == len(chosen.unique())
    assert truth.partner.view(4, 6)[0].tolist() == [0, -1, 1, -1, 2, -1]
    assert not truth.lonely0.any()  # a cell that lost its partner to a neighbour is not lonely


def test_a_point_between_pixels_has_the_mean_of_their_warps_unless_an_edge_runs_between_them() -> None:
    warp = shifted(3.25, 0).warp01
    assert torch.allclose(warp_at_cells(warp, 16, 7.5)[0, 0, 0], torch.tensor([10.75, 7.5]))
    warp[:, 8:, :, 0] += 20
    assert warp_at_cells(warp, 16, 7.5)[0, 0].isnan().all()
    warp[:, 7, 7] = math.nan
    assert warp_at_cells(warp, 16, 7.0)[0, 0, 0].isnan().all()


def test_sizes_that_are_no_multiple_of_a_cell_have_the_grid_of_the_network() -> None:
    config = small(LOFTR)
    truth = coarse_truth(pair_batch(Homographies(size=(60, 90))[0]), config)
    features = LoFTR(config).prepare(CPU, torch.float32).encode(torch.rand(60, 90))
    assert truth.grid0 == features.grid


def test_fine_truth_is_the_rest_of_the_motion_in_radii_of_the_window() -> None:
    truth = coarse_truth(shifted(9.5, -7.0), LOFTR)  # one cell and 1.5 px, less one cell and 1 px
    cells, chosen = sample_matches(truth, 5)
    assert chosen.all()
    offset = fine_truth(truth, cells, LOFTR)
    assert torch.allclose(offset, torch.tensor([1.5 / 4, 1.0 / 4]).expand_as(offset), atol=1e-4)


def test_as_many_matches_are_sampled_as_asked_for_and_only_real_ones_are_chosen() -> None:
    truth = coarse_truth(shifted(48, 16), COARSE_LITE)
    cells, chosen = sample_matches(truth, 20)
    assert cells.shape == (1, 20)
    assert chosen.sum() == (truth.partner >= 0).sum() == 9
    assert (truth.partner[0, cells[chosen]] >= 0).all()


def test_a_batch_that_lacks_a_name_says_which() -> None:
    batch = Homographies()[0]
    del batch["warp10"]
    with pytest.raises(TypeError, match="without warp10"):
        pair_batch(batch)


# Losses


def tokens(length0: int, length1: int, channels: int = 8, batch: int = 2, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return (
        torch.randn(batch, length0, channels, generator=random) * scale,
        torch.randn(batch, length1, channels, generator=random) * scale,
    )


def test_the_gradients_written_by_hand_are_those_of_the_functions() -> None:
    left, right = (t.double().requires_grad_() for t in tokens(7, 5))
    cell0 = torch.tensor([[0, 3, 3, -1], [6, 0, 1, 2]])
    cell1 = torch.tensor([[4, 2, 1, 0], [0, 0, 4, 3]])
    assert torch.autograd.gradcheck(lambda a, b: _LogConfidenceAt.apply(a, b, cell0, cell1), (left, right))
    score = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(_LogDualSoftmax.apply, (score,))


def test_confidences_of_chosen_cells_are_those_of_the_whole_matrix_also_where_it_is_made_in_tiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loftr_ros.matcher.coarse.TILE_SCORES", 100)
    one, other = tokens(40, 30, scale=0.6)
    expected = confidence_matrix(one, other, 0.1).log()
    number = torch.arange(40).expand(2, -1)
    partner = (number * 7) % 30
    found = log_confidence_at(one, other, 0.1, number, partner)
    assert torch.allclose(found, expected.gather(2, partner[..., None])[..., 0], atol=1e-3)
    assert torch.allclose(log_confidence(one, other, 0.1), expected, atol=1e-3)
    assert log_confidence_at(one, other, 0.1, number, torch.full_like(partner, -1)).abs().max() == 0


def test_the_gradient_is_the_same_in_one_tile_and_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients() -> list[Tensor]:
        one, other = (t.requires_grad_() for t in tokens(40, 30))
        number = torch.arange(30).expand(2, -1)
        log_confidence_at(one, other, 0.1, number, number).sum().backward()
        return [one.grad, other.grad]

    whole = gradients()
    monkeypatch.setattr("loftr_ros.matcher.coarse.TILE_SCORES", 100)
    for a, b in zip(whole, gradients(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_losses_stay_in_full_precision_under_autocast() -> None:
    one, other = tokens(40, 30)
    number = torch.arange(30).expand(2, -1)
    expected = log_confidence_at(one, other, 0.1, number, number)
    plan = log_assignment(one, other, torch.tensor(1.0), 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_confidence_at(one, other, 0.1, number, number), expected)
        assert torch.equal(log_assignment(one, other, torch.tensor(1.0), 3), plan)


def test_the_logarithm_of_the_plan_is_that_of_the_matchers_plan() -> None:
    one, other = tokens(20, 30)
    expected = assignment_matrix(one, other, torch.tensor(0.5), 3)
    assert torch.allclose(log_assignment(one, other, torch.tensor(0.5), 3).exp(), expected, atol=1e-5)


def test_focal_losses_are_those_of_the_paper() -> None:
    p = torch.tensor([0.1, 0.5, 0.9])
    assert torch.allclose(focal(p.log(), 0.25, 2), -0.25 * (1 - p) ** 2 * p.log())
    assert torch.allclose(focal_negative(p.log(), 0.25, 2), -0.25 * p**2 * (1 - p).log())
    assert focal_negative(torch.tensor(0.0), 0.25, 2).isfinite()


def test_the_hardest_wrong_partner_is_the_one_most_alike() -> None:
    one, other = tokens(6, 4, batch=1)
    lonely = torch.zeros(1, 6, dtype=torch.bool)
    lonely[0, 2] = lonely[0, 5] = True
    cell0, cell1 = hardest_wrong(one, other, lonely, 3)
    assert sorted(cell0[0].tolist()) == [-1, 2, 5]
    for i, j in zip(cell0[0].tolist(), cell1[0].tolist(), strict=True):
        assert j == (-1 if i < 0 else int((one[0, i] @ other[0].t()).argmax()))


def test_only_the_weights_that_are_named_are_trained_and_no_other_norm_learns_statistics() -> None:
    from loftr_ros.training.module import TrainingError, freeze

    network = build_network(COMPACT)
    left = freeze(network, ["fine.", "backbone.half_"])
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(("fine.", "backbone.half_")) for name in trained)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert set(map(id, left)) == {id(norm) for name, norm in norms.items() if not name.startswith("backbone.half_")}
    assert not freeze(build_network(COMPACT), [])
    with pytest.raises(TrainingError, match="no weights called 'fin_"):
        freeze(network, ["fine.", "fin_"])


def test_the_heat_maps_entropy_is_that_with_a_shift_shared_by_the_places_around_it() -> None:
    torch.manual_seed(0)
    log_heat = torch.randn(4, 49).log_softmax(dim=1)
    shift = torch.tensor([[0.0, 0.0], [1.25, -2.5], [3.0, 3.0], [-3.0, 2.75]])
    label = torch.zeros(4, 7, 7)
    label[0, 3, 3] = 1
    label[1, 0, 4], label[1, 0, 5], label[1, 1, 4], label[1, 1, 5] = 0.375, 0.125, 0.375, 0.125
    label[2, 6, 6] = 1
    label[3, 5, 0], label[3, 6, 0] = 0.25, 0.75
    expected = torch.nn.functional.cross_entropy(log_heat, label.flatten(1), reduction="none")
    torch.testing.assert_close(heat_entropy(log_heat, shift), expected)


def test_the_fine_loss_counts_certain_matches_more_and_does_not_reward_uncertainty() -> None:
    offset = torch.tensor([[0.1, 0.0], [0.3, 0.0]], requires_grad=True)
    std = torch.tensor([0.1, 0.3], requires_grad=True)
    truth, chosen = torch.zeros(2, 2), torch.ones(2, dtype=torch.bool)
    loss = fine_l2(offset, std, truth, chosen)
    assert float(loss.detach()) == pytest.approx((1.5 * 0.01 + 0.5 * 0.09) / 2, rel=1e-5)
    loss.backward()
    assert std.grad is None
    beyond = torch.tensor([[0.0, 0.0], [1.5, 0.0]])
    assert float(fine_l2(offset.detach(), std, beyond, chosen)) == pytest.approx(0.01, rel=1e-5)
    assert float(mean_over(torch.tensor([math.nan, 2.0]), torch.tensor([False, True]))) == 2


# Objectives


@pytest.mark.parametrize("negatives", ["hardest", "dense", "none"])
@pytest.mark.parametrize("config", [LOFTR, LOFTR_OT, LOFTR_16_4, COARSE_LITE], ids=lambda config: config.name)
def test_every_preset_has_finite_losses_and_a_gradient_for_all_its_weights(config: LoFTRConfig, negatives: str) -> None:
    losses = LossConfig(negatives=negatives, feature_weight=0.1, fine_samples=8)
    objective = LoFTRObjective(small(config), losses, DistillationConfig(), None)
    objective.network.train()
    total, parts = objective.losses(pair_batch(Homographies()[0]))
    assert total.isfinite()
    assert ("fine" in parts) == (config.fine is not None)
    total.backward()
    without = [
        name for name, p in objective.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []


@pytest.mark.parametrize("negatives", ["hardest", "dense", "none"])
def test_the_compact_network_has_finite_losses_and_a_gradient_for_all_its_weights(negatives: str) -> None:
    losses = LossConfig(negatives=negatives, feature_weight=0.1, fine_samples=8, cell_samples=8)
    objective = CompactObjective(COMPACT, losses, DistillationConfig(), None)
    objective.network.train()
    total, parts = objective.losses(pair_batch(Homographies()[0]))
    assert total.isfinite() and {"coarse", "feature", "cell", "fine", "heat"} <= parts.keys()
    total.backward()
    without = [
        name for name, p in objective.network.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    assert without == []


@pytest.mark.parametrize("config", [LOFTR, LOFTR_OT, COARSE_LITE], ids=lambda config: config.name)
def test_the_network_in_training_computes_what_the_network_in_use_does(config: LoFTRConfig) -> None:
    """In evaluation mode, where the batch norms do not depend on the batch."""
    config = small(config)
    config = replace(config, coarse=replace(config.coarse, threshold=0.0, border=0))
    objective = LoFTRObjective(config, LossConfig(), DistillationConfig(), None)
    objective.network.eval()
    batch = pair_batch(Homographies()[0])
    made = objective._forward(batch)
    network = objective.matcher(objective.network.state_dict())
    features = network.encode(batch.image0[1, 0]), network.encode(batch.image1[1, 0])
    if config.coarse.method == "dual_softmax":
        mine = log_confidence(made.tokens0, made.tokens1, 0.1)[1].exp()
    else:
        bin_score = objective.network.coarse_matching.bin_score
        mine = log_assignment(made.tokens0, made.tokens1, bin_score, 3)[1, :-1, :-1].exp()
    assert torch.allclose(mine, network.confidence(*features), atol=1e-5)
    if config.fine is not None:
        cells = torch.tensor([[0, 17, 95]]).expand(2, -1)
        assert made.fine0 is not None
        windows = objective._windows(made.fine0, cells, 12).view(2, 3, -1, made.fine0.shape[1])
        assert network.fine_matcher is not None
        expected = network.fine_matcher._windows(network.complete(features[0]), cells[1])
        assert torch.allclose(windows[1], expected, atol=1e-4)


def test_all_of_a_training_step_is_the_same_for_a_batch_of_one_pair_twice() -> None:
    """Pairs interact only through the batch norms."""
    batch = pair_batch(Homographies(batch=1)[0])
    twice = PairBatch(*(torch.cat([value, value]) for value in vars(batch).values()))
    objective = LoFTRObjective(small(LOFTR), LossConfig(fine_samples=96), DistillationConfig(), None)
    one, both = (objective.losses(b)[1] for b in (batch, twice))
    for name in ("coarse", "fine"):
        assert float(one[name]) == pytest.approx(float(both[name]), rel=1e-3)


# Distillation


CENTRED = replace(LOFTR, name="centred", coarse=replace(LOFTR.coarse, point="centre"), fine=None)
PAIRS_OF_NETWORKS = (
    (COARSE_LITE, LOFTR),
    (CENTRED, COARSE_LITE),
    (CENTRED, LOFTR),
    (LOFTR, CENTRED),
    (COMPACT, LOFTR),
    (COMPACT, CENTRED),
    (COMPACT, COARSE_LITE),
    (COARSE_LITE, COMPACT),
    (LOFTR, COMPACT),
    (COMPACT, COMPACT),
)
SLOPE = 200  # of the values of `ramp` along a column: no two points of a grid of cells have the same


def ramp(du: float = 0.0, dv: float = 0.0) -> Tensor:
    """(1, 1, H, W), linear between pixels: the content of (u, v) is at (u + du, v + dv) with a shift."""
    v, u = torch.meshgrid(torch.arange(float(HEIGHT)), torch.arange(float(WIDTH)), indexing="ij")
    return ((u - du) + SLOPE * (v - dv))[None, None]


class Reader:
    """A teacher that reads an image at its cells' points, and is certain of equal values."""

    def __init__(self, config: NetworkConfig) -> None:
        self.config = config

    def encode(self, image: Tensor) -> Tensor:
        side = self.config.coarse_stride
        offset = point_offset(self.config, side)
        beside = [int(place) for place in {math.floor(offset), math.ceil(offset)}]
        return torch.stack([image[y::side, x::side] for y in beside for x in beside]).mean(dim=0).flatten()

    def confidence(self, values0: Tensor, values1: Tensor) -> Tensor:
        return ((values0[:, None] - values1[None]).abs() < 2).float()


@pytest.mark.parametrize(("student", "teacher"), PAIRS_OF_NETWORKS, ids=lambda config: config.name)
def test_a_teachers_cells_points_are_spread_evenly_around_the_students(
    student: NetworkConfig, teacher: NetworkConfig
) -> None:
    reader, own = Reader(teacher), student.coarse_stride
    cells = max(own // teacher.coarse_stride, 1)
    read = reader.encode(Teacher(reader, student).shifted_view(ramp())[0, 0])  # type: ignore[arg-type]
    read = read.view(HEIGHT // own, cells, WIDTH // own, cells)
    first = point_offset(student, own) - (own - own / cells) / 2
    points = torch.arange(cells) * (own / cells) + first
    row, column = 1, 2
    expected = (points[None] + column * own) + SLOPE * (points[:, None] + row * own)
    assert torch.allclose(read[row, :, column], expected, atol=0.05)
    assert float(expected.mean()) == pytest.approx((SLOPE + 1) * point_offset(student, own) + (SLOPE + 2) * own)


@pytest.mark.parametrize(("student", "teacher"), PAIRS_OF_NETWORKS, ids=lambda config: config.name)
def test_what_a_teacher_is_sure_of_is_said_of_the_students_own_cells(
    student: NetworkConfig, teacher: NetworkConfig
) -> None:
    batch = shifted(16, -16)
    truth = coarse_truth(batch, student, student.coarse_stride)
    taught = Teacher(Reader(teacher), student).confidence(ramp(), ramp(16, -16))  # type: ignore[arg-type]
    assert taught.shape == (1, truth.partner.shape[1], truth.partner.shape[1])
    rows, columns = truth.grid0
    inner = torch.zeros(rows, columns, dtype=torch.bool)
    reach = 16 // student.coarse_stride  # content shifted to the border is visible through its replicated pixels
    inner[2 * reach : -reach, reach : -2 * reach] = True
    chosen = (inner.flatten() & (truth.partner[0] >= 0)).nonzero()[:, 0]
    assert len(chosen)
    expected = torch.zeros(len(chosen), taught.shape[2]).scatter_(1, truth.partner[0, chosen][:, None], 1.0)
    assert torch.equal(taught[0, chosen], expected)


def test_pooled_confidences_are_what_small_cells_give_to_large_ones_in_the_mean() -> None:
    random = torch.Generator().manual_seed(0)
    grid0, grid1, cells = (2, 3), (1, 2), 2
    small = torch.rand(24, 8, generator=random) / 8
    found = pooled(small, grid0, grid1, cells)
    expected = torch.zeros(6, 2)
    for i in range(24):
        for j in range(8):
            large0 = i // 6 // cells * 3 + i % 6 // cells
            large1 = j // 4 // cells * 2 + j % 4 // cells
            expected[large0, large1] += small[i, j] / cells**2
    assert torch.allclose(found, expected)
    assert torch.equal(pooled(small, (4, 6), (2, 4), 1), small)


def test_soft_targets_are_met_by_the_teacher_itself_and_pull_towards_it() -> None:
    one, other = tokens(12, 10)
    teacher = log_confidence(one, other, 0.5).exp()
    same = soft_target_loss(teacher.log(), teacher, 2.0)
    assert float(same) == pytest.approx(0.0, abs=1e-5)
    student = torch.zeros_like(teacher, requires_grad=True)
    before = soft_target_loss(student.log_softmax(2), teacher, 2.0)
    before.backward()
    drawn = (student - 5 * student.grad).detach().log_softmax(2)
    assert float(soft_target_loss(drawn, teacher, 2.0)) < float(before.detach())


def test_a_taught_network_has_a_loss_on_the_teachers_confidences_and_none_of_its_weights(tmp_path: Path) -> None:
    from loftr_ros.matcher.checkpoints.files import save_network_weights

    teacher = small(COARSE_LITE)
    path = tmp_path / "teacher.safetensors"
    save_network_weights(path, LoFTR(teacher).state_dict(), teacher, "a test")
    distillation = DistillationConfig(teacher=str(path), weight=0.5)
    objective = open_objective(small(LOFTR), LossConfig(fine_samples=8), distillation, CPU)
    total, parts = objective.losses(pair_batch(Homographies()[0]))
    assert parts["soft_target"].isfinite()
    total.backward()
    own = LoFTR(small(LOFTR)).state_dict()
    assert set(objective.network.state_dict()) == set(own)


def tiny(config: NetworkConfig) -> NetworkConfig:
    """A preset in its small form; `compact` is small."""
    return small(config) if isinstance(config, LoFTRConfig) else config


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        pytest.param(COMPACT, LOFTR, marks=pytest.mark.long),
        (COMPACT, COARSE_LITE),
        (COMPACT, COMPACT),
        (COARSE_LITE, COMPACT),
        (COARSE_LITE, LOFTR),
    ],
    ids=lambda config: config.name,
)
def test_soft_targets_alone_draw_a_network_to_its_teacher_which_stays_as_it_is(
    student: NetworkConfig, teacher: NetworkConfig
) -> None:
    """On one batch, over a few steps; with random weights for both."""
    torch.manual_seed(0)
    network = build_network(tiny(teacher)).prepare(CPU, torch.float32)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    nothing = LossConfig(coarse_weight=0, no_partner_weight=0, cell_weight=0, fine_weight=0, fine_samples=8)
    make = CompactObjective if isinstance(student, CompactConfig) else LoFTRObjective
    config = tiny(student)
    taught_by = Teacher(network, config)
    objective = make(config, nothing, DistillationConfig(weight=1.0), taught_by)  # type: ignore[arg-type]
    objective.network.train()
    batch = pair_batch(Homographies()[0])
    target = taught_by.confidence(batch.image0, batch.image1)

    def distance() -> float:
        """Distance of the rows' distributions over partners, from 0 to 2."""
        with torch.no_grad():
            made = objective._forward(batch)
            confidence = log_confidence(made.tokens0, made.tokens1, 0.1).exp()
        rows = [matrix / matrix.sum(dim=2, keepdim=True) for matrix in (confidence, target)]
        return float((rows[0] - rows[1]).abs().sum(dim=2).mean())

    optimizer = torch.optim.Adam(objective.network.parameters(), lr=2e-3)
    before, losses = distance(), []
    for _ in range(20):
        total, parts = objective.losses(batch)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(float(parts["soft_target"]))
    assert losses[-1] < 0.5 * losses[0]
    assert distance() < 0.8 * before
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    assert torch.equal(taught_by.confidence(batch.image0, batch.image1), target)


# Metrics


def test_true_matches_score_one_and_matches_of_what_is_not_seen_count_as_wrong() -> None:
    batch = shifted(16, 0)
    config = replace(COARSE_LITE, coarse=replace(COARSE_LITE.coarse, border=0))
    truth = coarse_truth(batch, config)

    class Oracle:
        config: LoFTRConfig
        cell_size = 16
        matched: Tensor

        def encode(self, image: Tensor) -> Tensor:
            return image

        def complete(self, features: Tensor) -> Tensor:
            return features

        def match(self, keyframes: Any, current: Any) -> list[Matches]:
            points0 = torch.stack([self.matched % 6, self.matched // 6], dim=1).float() * 16
            ones = torch.ones(len(points0))
            return [Matches(self.matched, points0, points0 + torch.tensor([16.0, 0.0]), ones, ones)]

    oracle = Oracle()
    oracle.config = config
    oracle.matched = (truth.partner[0] >= 0).nonzero()[:, 0]
    perfect = pair_metrics(oracle, batch)[0]  # type: ignore[arg-type]
    assert perfect["precision"] == perfect["recall"] == 1
    assert perfect["score"] == pytest.approx(1)
    assert perfect["median_error"] == pytest.approx(0, abs=1e-4)
    oracle.matched = torch.arange(24)
    assert pair_metrics(oracle, batch)[0]["precision"] == pytest.approx(20 / 24)  # type: ignore[arg-type]
    unknown = replace(batch, complete=torch.tensor([False]))
    assert pair_metrics(oracle, unknown)[0]["precision"] == 1  # type: ignore[arg-type]


def test_errors_are_measured_where_the_warp_is_known_and_means_leave_out_what_is_not() -> None:
    batch = shifted(2.5, 1.0)
    points0 = torch.tensor([[10.0, 20.0], [95.0, 63.0]])
    matches = Matches(torch.tensor([0, 1]), points0, points0 + torch.tensor([2.5, 4.0]), torch.ones(2), torch.ones(2))
    error = match_errors(matches, batch.warp01[0])
    assert float(error[0]) == pytest.approx(3, abs=1e-4)
    assert error[1].isnan()
    assert mean_metrics([{"a": 1.0}, {"a": math.nan}, {"a": 2.0}]) == {"a": 1.5}


# Settings


def test_settings_come_from_yaml_and_go_back_to_it_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "seed: 3\nnetwork:\n  preset: loftr\n  changes: {backbone: {initial_dim: 64, block_dims: [64, 96, 128]}}\n"
        "budget: {max_steps: 10}\noptimizer:\n  learning_rate: 2e-4\ndata: {sizes: [[320, 240]]}\nmade: {room: 0}\n"
    )
    config = read_config(file, {"optimizer.ema_decay": 0.9})
    assert config.seed == 3
    assert config.optimizer.learning_rate == 2e-4
    assert config.optimizer.ema_decay == 0.9
    assert config.network_config().backbone.block_dims == (64, 96, 128)
    assert config.network_config().backbone.fine_level == 1
    write_config(config, tmp_path / "b.yaml")
    assert read_config(tmp_path / "b.yaml") == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"learning_rat": 1.0}}, "learning_rat; did you mean optimizer.learning_rate"),
        ({"optimizer": {"learning_rate": 7.0}}, "optimizer.learning_rate is 7.0; expected"),
        ({"optimizer": {"learning_rate": "fast"}}, "optimizer.learning_rate is 'fast'; expected float"),
        ({"network": {"preset": "lofter"}}, "network.preset is 'lofter'; expected one of"),
        ({"network": {"changes": {"backbone": {"initial": 3}}}}, "network.changes: .*initial"),
        ({"network": {"changes": {"backbone": {"cell_dim": "many"}}}}, "network.changes: .*'many'"),
        ({"budget": {"max_steps": 0}}, "budget.max_steps and budget.max_minutes are both 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data": 3}, "there is no setting data"),
        ({"optmizer": {}}, "there is no setting optmizer; did you mean optimizer"),
        ({"data": {"sizes": [[640, "x"]]}}, "data.sizes is .*expected pairs of width and height"),
        ({"data": {"sizes": [[480, 360]]}}, "data.sizes is .*360.*; compact needs multiples of 16 px"),
        ({"data": {"recorded": [{"set": "kitti"}]}}, "recorded: set is 'kitti'; expected one of scannet"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_expected(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of({"budget": {"max_steps": 1}, **content})


def test_the_learning_rate_rises_by_steps_and_falls_along_a_cosine_over_the_budget() -> None:
    pytest.importorskip("pytorch_lightning")
    from loftr_ros.training.module import learning_rate

    settings = OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1)
    assert learning_rate(settings, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(settings, 9, 0.0) == 1
    assert learning_rate(settings, 50, 0.5) == pytest.approx(0.55)
    assert learning_rate(settings, 99, 1.0) == pytest.approx(0.1)


# The trainer


def settings(steps: int = 6, **groups: dict[str, Any]) -> TrainingConfig:
    content: dict[str, Any] = {
        "seed": 1,
        "network": {"preset": "loftr", "changes": SMALL_CHANGES},
        "losses": {"fine_samples": 16},
        "budget": {"max_steps": steps},
        "optimizer": {"warmup_steps": 2, "ema_decay": 0.9},
        "validation": {"every_steps": 3},
        "machine": {"precision": "float32", "accelerator": "cpu", "workers": 0, "log_every_steps": 1},
    }
    for name, values in groups.items():
        content[name] = {**content.get(name, {}), **values}
    return config_of(content)


def run(config: TrainingConfig, output: Path, resume: bool = False) -> list[float]:
    """Train, and return the loss of every step."""
    pytest.importorskip("pytorch_lightning")
    from loftr_ros.training import callbacks
    from loftr_ros.training.trainer import TrainingData, train

    losses: list[float] = []

    class Recorder(callbacks.Lines):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            losses.append(float(trainer.callback_metrics["loss"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loftr_ros.training.trainer.Lines", Recorder)
        train(config, TrainingData(Homographies(), Homographies(seed=9)), output, resume=resume, progress=False)
    return losses


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    output = tmp_path_factory.mktemp("trained")
    return output, run(settings(), output)


@pytest.mark.long
def test_the_same_seed_gives_the_same_losses_whatever_makes_the_data(
    trained: tuple[Path, list[float]], tmp_path: Path
) -> None:
    assert len(trained[1]) == 6
    assert run(settings(machine={"workers": 2}), tmp_path / "a") == trained[1]
    other = run(config_of({**content_of(settings(steps=2)), "seed": 2}), tmp_path / "b")
    assert all(loss != same for loss, same in zip(other, trained[1], strict=False))


def test_a_resumed_training_goes_on_exactly(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    output, losses = trained
    # A budget by steps changes the cosine, so the first part is the whole training, stopped as by a kill.
    first = _until(4, tmp_path)
    assert first == losses[:4]
    assert run(settings(), tmp_path, resume=True) == losses[4:]
    whole, resumed = (read_weights(folder / "last.safetensors").tensors for folder in (output, tmp_path))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def _until(steps: int, output: Path) -> list[float]:
    """A training that dies after `steps` steps, with a checkpoint after each."""
    from loftr_ros.training import callbacks

    class KillError(Exception):
        pass

    class Deadly(callbacks.Checkpoints):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, *rest)
            if trainer.global_step == steps:
                raise KillError

    losses: list[float] = []

    class Recorder(callbacks.Averaging):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            super().on_train_batch_end(trainer, *rest)
            losses.append(float(trainer.callback_metrics["loss"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loftr_ros.training.trainer.Checkpoints", Deadly)
        patch.setattr("loftr_ros.training.trainer.Averaging", Recorder)
        with pytest.raises(KillError):
            run(settings(machine={"checkpoint_minutes": 0.0}), output)
    return losses


def test_a_training_goes_on_from_a_small_checkpoint_at_its_step_and_from_its_average(
    trained: tuple[Path, list[float]], tmp_path: Path
) -> None:
    from loftr_ros.training.small_checkpoint import grow, halved, shrink

    whole, beside = trained[0] / "last.ckpt", read_weights(trained[0] / "last.safetensors").tensors
    shrink(whole, tmp_path / "small.ckpt", beside)
    kept = (tmp_path / "small.ckpt").stat().st_size + sum(value.nbytes for value in halved(beside).values())
    assert kept < 0.25 * whole.stat().st_size
    grow(tmp_path / "small.ckpt", tmp_path / "last.ckpt", halved(beside))
    before, after = (torch.load(path, weights_only=True) for path in (whole, tmp_path / "last.ckpt"))
    assert before["state_dict"].keys() == after["state_dict"].keys()
    for name, value in before["loftr_ros"]["averaged"]["state"].items():
        torch.testing.assert_close(after["state_dict"]["network." + name], value, rtol=1e-3, atol=1e-5)
    for old, new in zip(before["optimizer_states"], after["optimizer_states"], strict=True):
        assert old["param_groups"] == new["param_groups"]
        for number, moments in old["state"].items():
            assert new["state"][number]["exp_avg_sq"].shape == moments["exp_avg_sq"].shape
            torch.testing.assert_close(new["state"][number]["exp_avg_sq"].mean(), moments["exp_avg_sq"].mean())
    exact = tmp_path / "exact"
    exact.mkdir()
    (exact / "last.ckpt").write_bytes(whole.read_bytes())
    expected = run(settings(steps=9), exact, resume=True)
    losses = run(settings(steps=9), tmp_path, resume=True)
    assert losses == pytest.approx(expected, rel=0.1)


def test_a_weight_beyond_half_precision_is_no_small_checkpoint() -> None:
    pytest.importorskip("pytorch_lightning")
    from loftr_ros.training.module import TrainingError
    from loftr_ros.training.small_checkpoint import halved

    with pytest.raises(TrainingError, match="fine has values beyond half precision; keep the whole checkpoint"):
        halved({"fine": torch.full((1, 1), 1e6)})


def test_a_training_that_has_ended_can_be_made_longer(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    run(settings(steps=1), tmp_path)
    more = run(settings(steps=3), tmp_path, resume=True)
    assert len(more) == 2
    assert run(settings(steps=3), tmp_path, resume=True) == []


def test_the_best_weights_are_a_network_that_matches_and_say_where_they_are_from(
    trained: tuple[Path, list[float]],
) -> None:
    output = trained[0]
    file = read_weights(output / "best.safetensors")
    assert "loftr_ros train, seed 1" in file.metadata["source"]
    assert recognise_file(file).config == settings().network_config()
    network = load_network("auto", output / "best.safetensors", CPU, torch.float32)
    image = torch.rand(64, 96)
    network.match([network.complete(network.encode(image))], network.encode(image))
    about = json.loads((output / "best.json").read_text())
    assert about["step"] in (3, 6)
    assert 0 <= about["score"] <= 1
    assert (output / "last.ckpt").is_file()
    assert read_config(output / "config.yaml") == settings()


def test_a_folder_with_a_training_is_not_written_over_and_another_network_is_not_resumed(
    trained: tuple[Path, list[float]],
) -> None:
    from loftr_ros.training.module import TrainingError

    with pytest.raises(TrainingError, match="has a training already: continue it with --resume"):
        run(settings(), trained[0])
    other = settings(network={"preset": "loftr_ot"})
    with pytest.raises(TrainingError, match=r"another network: network\.preset was 'loftr', and is 'loftr_ot'"):
        run(other, trained[0], resume=True)
    with pytest.raises(
        TrainingError, match=r"trained without photos\.teacher, .* network\.initial=.*best\.safetensors"
    ):
        run(settings(photos={"teacher": "xfeat.pt"}), trained[0], resume=True)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = LoFTRObjective.losses
    weights: list[Tensor] = []

    def poisoned(self: LoFTRObjective, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        total, parts = original(self, batch)
        weights.append(self.network.backbone.conv1.weight.detach().clone())
        return (total * math.nan if len(weights) == 3 else total), parts

    monkeypatch.setattr(LoFTRObjective, "losses", poisoned)
    run(settings(steps=5, validation={"every_steps": 100}), tmp_path)
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])


@pytest.mark.long
def test_a_training_in_half_precision_learns(tmp_path: Path) -> None:
    losses = run(settings(steps=40, machine={"precision": "bfloat16"}, validation={"every_steps": 100}), tmp_path)
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


def test_weights_to_start_from_are_taken(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    initial = str(trained[0] / "last.safetensors")
    losses = run(settings(steps=1, network={"initial": initial}), tmp_path)
    assert losses[0] != trained[1][0]


@pytest.mark.slow
def test_a_killed_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, logging; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from test_training import Homographies, settings\n"
        "from loftr_ros.training.trainer import TrainingData, train\n"
        "config = settings(steps=100000, machine={'checkpoint_minutes': 0.0}, validation={'every_steps': 1000})\n"
        "train(config, TrainingData(Homographies(), Homographies()), Path(sys.argv[2]), progress=False)\n"
    )
    here, output = str(Path(__file__).parent), tmp_path / "run"
    command = [sys.executable, str(script), here, str(output)]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 90
        while not (output / "last.ckpt").is_file() and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    step = torch.load(output / "last.ckpt", weights_only=True)["global_step"]
    assert step > 0
    more = run(settings(steps=step + 3, validation={"every_steps": 1000}), output, resume=True)
    assert len(more) == 3
    assert torch.load(output / "last.ckpt", weights_only=True)["global_step"] == step + 3


# The command line and the files that come with it


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_config_files_that_come_along_are_read_and_name_teachers_that_there_are(file: Path) -> None:
    from loftr_ros.weights import EMBEDDED
    from loftr_ros.weights.catalogue import CATALOGUE

    config = read_config(file)
    assert config.network_config().backbone.stride in (8, 16)
    assert config.distillation.teacher in {"", *EMBEDDED, *(entry.name for entry in CATALOGUE)}
    assert bool(config.distillation.teacher) == (file.stem in ("low_end", "smoke_low_end", "smoke_distill_compact"))


@pytest.mark.long
def test_the_smoke_training_learns_to_find_partners_from_chance(tmp_path: Path) -> None:
    """As in its config except for the pairs, which are made here, and an eighth of the steps."""
    config = read_config(
        CONFIGS / "smoke.yaml", {"budget.max_steps": 100, "machine.workers": 0, "validation.every_steps": 100}
    )
    pytest.importorskip("pytorch_lightning")
    from loftr_ros.training.trainer import TrainingData, train

    held_out = Homographies(batch=4, seed=9, size=(144, 192))
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loftr_ros.training.callbacks._logger.info", lambda text, *values: said.append(text % values))
        data = TrainingData(Homographies(batch=4, size=(144, 192)), held_out)
        train(config, data, tmp_path, progress=False)
    first, *_, last = (float(line.split("coarse_accuracy ")[1].split(",")[0]) for line in said if "coarse_acc" in line)
    assert first < 0.05  # of 108 regions
    assert last > 0.3


def test_the_command_line_trains_on_a_folder_of_photos_and_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    pytest.importorskip("pytorch_lightning")
    import cv2
    from typer.testing import CliRunner

    from loftr_ros.cli.train import app
    from loftr_ros.weights import find_weights

    random = np.random.default_rng(0)
    photos, assets, runs = tmp_path / "photos", tmp_path / "assets", tmp_path / "run"
    photos.mkdir()
    for number in range(40):
        picture = cv2.resize(
            random.integers(0, 256, (100, 140), dtype=np.uint8), (560, 400), interpolation=cv2.INTER_CUBIC
        )
        # Names that differ only in numbers count as frames of one video, all held out or none.
        cv2.imwrite(str(photos / f"{chr(97 + number // 26)}{chr(97 + number % 26)}.png"), picture)
    runner = CliRunner()

    def call(*arguments: str, code: int = 0) -> str:
        result = runner.invoke(app, list(arguments))
        assert result.exit_code == code, result.output
        return result.output

    assert "held out" in call("assets", "--photos", str(photos), "--output", str(assets))
    settings_file = tmp_path / "tiny.yaml"
    write_config(settings(steps=2), settings_file)
    made = [f"made.{name}=0" for name in ("room", "clutter", "street", "relief")]
    sets = [f"data.assets={assets}", "data.sizes=[[96, 64]]", "validation.batches=1", *made]
    options = [option for setting in sets for option in ("--set", setting)]
    train = ["--config", str(settings_file), "--output", str(runs), "--quiet", *options]
    assert call(*train).splitlines()[-1] == f"written to {runs}"
    assert (runs / "best.safetensors").is_file()
    target = tmp_path / "calibrated.safetensors"
    said = call("calibrate", str(find_weights("auto")), str(target), "--pairs", "1", "--assets", str(assets))
    assert re.fullmatch(r"of \d+ matches .* within two\n", said) and target.is_file()
    assert f"written to {target.with_suffix('.int8.json')}" in call("int8", str(target), "--assets", str(assets))
    assert "has a training already" in call(*train, code=2)
    call("--output", str(runs), "--resume", "--quiet", "--max-steps", "3")
    assert torch.load(runs / "last.ckpt", weights_only=True)["global_step"] == 3
    assert "--config is missing" in call(code=2)
    assert "expected NAME=VALUE" in call(*train, "--set", "seed", code=2)
    assert "tiny.yaml: there is no setting seeds" in call(*train, "--set", "seeds=2", code=2)
    taught = [*train, "--output", str(tmp_path / "taught"), "--set"]
    assert "none.pt does not exist" in call(*taught, "distillation.teacher=none.pt", code=2)
    call(*taught, "distillation.teacher=", "--max-steps", "1")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loftr_ros.training.module.TrainingModule.training_step", stopped)
        ctrl_c = signal.getsignal(signal.SIGINT)
        try:
            said = call("--output", str(runs), "--resume", "--quiet", "--max-steps", "5", code=130)
        finally:
            signal.signal(signal.SIGINT, ctrl_c)
    assert "stopped at step 3; --resume continues from the last checkpoint" in said


@pytest.mark.parametrize(
    ("devices", "ranks", "expected"),
    [
        (1, {}, "cuda:0"),
        (1, {"SLURM_LOCALID": "3"}, "cuda:0"),
        (4, {}, "cuda:0"),
        (4, {"LOCAL_RANK": "2"}, "cuda:2"),
        (4, {"SLURM_LOCALID": "3"}, "cuda:3"),
        (4, {"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, "cuda:1"),
    ],
)
def test_of_several_gpus_each_process_has_the_teacher_on_its_own(
    devices: int, ranks: dict[str, str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = pytest.importorskip("loftr_ros.training.trainer")
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)

    class OpenedError(Exception):
        """Ends the training when the objective is made, with the teacher's device."""

    def opened(config: Any, losses: Any, distillation: Any, device: torch.device, *rest: Any) -> None:
        raise OpenedError(str(device))

    monkeypatch.setattr(trainer, "open_objective", opened)
    monkeypatch.setattr(trainer, "resolve_device", lambda name: torch.device("cuda", 0))
    config = config_of(
        {"budget": {"max_steps": 1}, "machine": {"devices": devices}, "distillation": {"teacher": "outdoor"}}
    )
    with pytest.raises(OpenedError, match=expected):
        trainer.train(config, None, tmp_path / "out")
    assert trainer.own_device(torch.device("cpu"), devices) == torch.device("cpu")
