"""Learning the place descriptor: from the command line to a working descriptor, at tiny sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from loftr_ros.cli.main import app
from loftr_ros.matcher.factory import MatcherSpec, open_matcher
from loftr_ros.places.descriptor import PlaceDescriptor
from loftr_ros.training import place_views
from loftr_ros.training.assets import PHOTO, TEXTURE, AssetBank, AssetWriter, Origin
from loftr_ros.weights import find_weights
from loftr_ros.worlds.revisits import FITTING

SIZE = (128, 96)
PLACES = 10


def picture(seed: int) -> NDArray[np.uint8]:
    """Blobs of several sizes."""
    random = np.random.default_rng(seed)
    image = np.zeros((160, 160))
    for cells in (4, 12, 40):
        image += cv2.resize(random.uniform(0, 80, (cells, cells)), (160, 160), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    with AssetWriter(folder) as writer:
        for offset, kind in ((0, PHOTO), (100, TEXTURE)):
            images = [(f"{kind}{n}.png", picture(offset + n)) for n in range(24)]
            writer.add_all(Origin(kind, "1", "CC0"), kind, images)
    return folder


def train_places(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", "places", *map(str, arguments)])


@pytest.mark.long
def test_the_command_writes_numbers_that_the_network_describes_places_by(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_views, "place_views", partial(place_views.place_views, size=SIZE, kind="room"))
    again = iter([[np.full((96, 128), level, np.uint8) for level in (80, 120)]])
    worlds: list[int] = []
    monkeypatch.setattr(place_views, "revisited_places", lambda seed: worlds.append(seed) or again)
    target = tmp_path / "new" / "places.safetensors"
    done = train_places(target, "--assets", assets, "--places", PLACES, "--dimension", 8, "--worlds", 1)
    assert done.exit_code == 0, done.output
    assert str(target) in done.output and worlds == [FITTING[0]]
    matcher = open_matcher(MatcherSpec("compact", find_weights("auto")))
    describe = PlaceDescriptor.of(matcher, target)
    found = describe(matcher.encode(torch.from_numpy(picture(5))))
    assert found.shape == (8,) and np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert describe.space != PlaceDescriptor.of(matcher).space


def test_too_few_places_and_missing_assets_are_told_in_one_line(
    assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place_views, "place_views", lambda *_: [np.zeros((96, 128), np.uint8)] * 3)
    target = tmp_path / "places.safetensors"
    for arguments, words in (
        (("--assets", assets, "--places", 3, "--dimension", 8), "too few: expected at least 8"),
        (("--assets", tmp_path / "nothing"), "nothing"),
    ):
        done = train_places(target, "--worlds", 0, *arguments)
        assert done.exit_code == 2 and words in done.output, done.output
        assert len(done.stderr.strip().splitlines()) == 1
    assert not target.exists()


def test_views_of_a_place_come_from_one_rendered_scene_and_are_not_alike(assets: Path) -> None:
    bank = AssetBank(assets)
    for kind in place_views.KINDS:
        first, second = (place_views.place_views(bank, np.random.default_rng(2), 2, SIZE, kind) for _ in range(2))
        assert [view.shape for view in first] == [SIZE[::-1]] * 2 and not np.array_equal(*first)
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True)), "the seed decides"


class MadeWorld:
    """Two tours of six views; each view is a revisit of its neighbours and of those at the same place of the other."""

    tours = np.repeat([0, 1], 6)

    def __init__(self, seed: int) -> None:
        at = np.tile(np.arange(6), 2)
        self.relations = SimpleNamespace(is_revisit=np.abs(at[:, None] - at) <= 1)

    def __len__(self) -> int:
        return len(self.tours)

    def view(self, number: int) -> SimpleNamespace:
        return SimpleNamespace(image=number)


def test_views_of_a_place_that_a_world_comes_back_to_are_revisits_of_both_tours_and_used_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(place_views, "World", MadeWorld)
    places = [np.array(views) for views in place_views.revisited_places(FITTING[0])]
    revisit = MadeWorld(0).relations.is_revisit
    for views in places:
        assert 2 <= len(views) <= 4 and revisit[views[0], views[1:]].all()
    assert len(places[0]) == 4 and set(MadeWorld.tours[places[0]]) == {0, 1}
    shown = np.concatenate(places)
    assert len(set(shown)) == len(shown) >= 6
