"""The place descriptor: its dependencies and invariances, and recognition of places."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from loftr_ros.matcher.checkpoints.files import fingerprint_of, load_network, read_weights, sha256_of
from loftr_ros.matcher.checkpoints.recognition import WeightsError
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.matcher.interface import Matcher
from loftr_ros.places.descriptor import EMBEDDED, PlaceDescriptor, read_pooling
from loftr_ros.training.place_whitening import WhiteningConfig, discriminative_projection, learn_pooling, write_pooling
from loftr_ros.weights import EMBEDDED as WEIGHTS
from loftr_ros.weights import find_weights
from loftr_ros.worlds.scene import Scene, default_camera, trajectory

CPU = torch.device("cpu")


@cache
def compact(precision: str = "float32", backend: str = "torch") -> Matcher:
    return open_matcher(MatcherSpec("compact", WEIGHTS["compact"], "cpu", precision, backend, threads=1))


@cache
def room_views() -> tuple[NDArray[np.uint8], ...]:
    """Views of eight places all around a room, and the same ones 0.2 s later, with half the light."""
    scene, camera = Scene(3), default_camera(320, 240)  # the room that other tests have built already
    poses = trajectory(120, 6.0, seed=3)
    first = [scene.render(camera, pose, supersample=1).image for pose in poses[::15]]
    second = [scene.render(camera, pose, supersample=1).image // 2 for pose in poses[1::15]]
    return tuple(first + second)


def described(matcher: Matcher, image: NDArray[np.uint8], usable: Tensor | None = None) -> NDArray[np.float32]:
    return PlaceDescriptor.of(matcher)(matcher.encode(torch.from_numpy(image), usable))


def test_a_descriptor_is_of_length_one_and_of_the_dimension_that_is_said() -> None:
    describe = PlaceDescriptor.of(compact())
    for size in ((480, 640), (120, 152), (64, 200)):
        image = torch.randint(0, 256, size, dtype=torch.uint8)
        found = describe(compact().encode(image))
        assert found.dtype == np.float32 and found.shape == (describe.dimension,)
        assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_blank_image_has_a_finite_descriptor_of_length_one(level: int) -> None:
    found = described(compact(), np.full((240, 320), level, np.uint8))
    assert np.isfinite(found).all() and np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_equal_images_have_equal_descriptors_whatever_came_between() -> None:
    first, other = room_views()[:2]
    before = described(compact(), first)
    described(compact(), other)
    assert (described(compact(), first) == before).all()


def test_what_is_masked_does_not_count() -> None:
    usable = torch.ones(240, 320, dtype=torch.bool)
    usable[160:] = False
    features = compact().encode(torch.from_numpy(room_views()[0]), usable)
    changed = features.tokens.clone()
    changed[:, 10 * 20 :] = torch.randn(1, 5 * 20, 128)  # regions of 16 px, 20 in a row
    describe = PlaceDescriptor.of(compact())
    assert np.allclose(describe(features), describe(replace(features, tokens=changed)), atol=1e-6)
    assert not np.allclose(describe(features), describe(replace(features, tokens=changed, usable=None)), atol=1e-2)


def test_a_place_seen_again_in_half_the_light_is_nearer_than_all_other_places() -> None:
    found = np.stack([described(compact(), view) for view in room_views()])
    count = len(found) // 2
    similarity = found[count:] @ found[:count].T
    assert (similarity.argmax(axis=1) == np.arange(count)).all()


def test_half_precision_and_openvino_are_of_the_same_space_and_give_the_same_descriptor() -> None:
    pytest.importorskip("openvino")
    expected, space = described(compact(), room_views()[0]), PlaceDescriptor.of(compact()).space
    for precision, backend in (("bfloat16", "torch"), ("float32", "openvino")):
        matcher = compact(precision, backend)
        assert PlaceDescriptor.of(matcher).space == space
        assert described(matcher, room_views()[0]) @ expected > 0.99


def test_other_thresholds_leave_the_space_and_other_weights_do_not() -> None:
    file = WEIGHTS["compact"]
    space = PlaceDescriptor.of(compact()).space
    stricter = load_network("compact", file, CPU, torch.float32, coarse={"threshold": 0.5, "max_matches": 100})
    assert PlaceDescriptor.of(stricter).space == space
    weights = dict(read_weights(file).tensors)
    name = "backbone.stages.0.0.conv.weight"
    again = weights | {name: weights[name] * 1.001}
    assert fingerprint_of(compact().config, weights) == compact().fingerprint
    assert fingerprint_of(compact().config, again) != compact().fingerprint
    untrained = load_network("compact", None, CPU, torch.float32)
    assert PlaceDescriptor.of(untrained).space != space


@pytest.mark.parametrize("network", ["coarse_lite", "loftr"])
def test_another_network_has_another_space_and_a_descriptor_too(network: str) -> None:
    matcher = load_network(network, None, CPU, torch.float32)
    describe = PlaceDescriptor.of(matcher)
    found = describe(matcher.encode(torch.from_numpy(room_views()[0][:96, :128].copy())))
    assert describe.space.startswith(network) and describe.space != PlaceDescriptor.of(compact()).space
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_the_numbers_in_the_package_are_of_the_network_in_the_package_and_small() -> None:
    _, network = read_pooling(EMBEDDED)
    assert find_weights("auto") == WEIGHTS["compact"] and network == compact().fingerprint
    assert EMBEDDED.stat().st_size < 3_000_000


def test_the_card_is_of_the_numbers_in_the_package() -> None:
    assert sha256_of(EMBEDDED) in EMBEDDED.with_suffix(".md").read_text()


def test_numbers_that_are_damaged_or_of_another_version_are_refused(tmp_path) -> None:
    tensors, metadata = load_file(EMBEDDED), dict(read_weights(EMBEDDED).metadata)
    file = tmp_path / "numbers.safetensors"
    save_file(tensors, file, metadata | {"version": "0"})
    with pytest.raises(WeightsError, match="loftr_ros train places"):
        PlaceDescriptor.of(compact(), file)
    save_file(tensors | {"mean": tensors["mean"] * float("nan")}, file, metadata)
    with pytest.raises(WeightsError, match="damaged"):
        PlaceDescriptor.of(compact(), file)


def test_the_projection_keeps_what_differs_between_places_and_not_what_differs_within() -> None:
    generator = torch.Generator().manual_seed(0)
    middles = torch.randn(200, 1, 12, generator=generator)
    middles[..., 6:] = 0
    apart = 3 * torch.randn(200, 3, 12, generator=generator)
    apart[..., :6] *= 0.01
    offset, projection = discriminative_projection(list(middles + apart), 4, 12, 0.01)
    assert offset.shape == (12,) and projection.shape == (4, 12)
    assert projection[:, :6].norm() > 20 * projection[:, 6:].norm()


def test_numbers_learned_serve_the_network_that_they_were_learned_with(tmp_path) -> None:
    matcher = load_network("coarse_lite", None, CPU, torch.float32)
    random = np.random.default_rng(0)
    texture = random.integers(0, 256, (200, 64), dtype=np.uint8)
    places = [[texture[k : k + 64], texture[k + 1 : k + 65]] for k in range(20)]
    config = WhiteningConfig(channels=8, dimension=6, first_places=5, components=16)
    file = tmp_path / "numbers.safetensors"
    write_pooling(file, learn_pooling(matcher, places, config), matcher.fingerprint, "a test")
    assert PlaceDescriptor.of(matcher, file).dimension == 6
    assert PlaceDescriptor.of(compact(), file).dimension != 6
    with pytest.raises(ValueError, match="too few"):
        learn_pooling(matcher, places[:3], config)
