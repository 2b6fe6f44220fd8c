"""The latency budget: the effort of a frame follows the measured costs."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import FineShiftMatcher, PanningStream

from loftr_ros.frontend.budget import SCALES, LatencyBudget
from loftr_ros.frontend.config import FrontEndConfig
from loftr_ros.frontend.keyframes import KeyframeReason
from loftr_ros.frontend.pipeline import FrontEnd
from loftr_ros.settings import with_values

# Seconds of a frame at full resolution: encoding, matching one keyframe, the rest.
ENCODE, MATCH, REST = 0.040, 0.020, 0.004


def frames(budget: LatencyBudget, count: int, slowness: float = 1.0, seed: int = 0) -> list[float]:
    """Latencies of frames with a cost that follows the effort, with some scatter."""
    random, latencies = np.random.default_rng(seed), []
    for _ in range(count):
        effort = budget.effort
        scatter = slowness * random.uniform(0.95, 1.1)
        encode, match = (scatter * effort.scale**2 * cost for cost in (ENCODE, MATCH * effort.keyframes))
        total = encode + match + scatter * REST
        budget.record(total, encode, match)
        latencies.append(total)
    return latencies


@pytest.mark.parametrize("keyframes", [1, 3])
def test_half_of_the_free_running_latency_is_kept_by_95_of_100_frames(keyframes: int) -> None:
    free = np.percentile(frames(LatencyBudget(0.0, keyframes), 200), 95)
    limit = float(free / 2)
    budget = LatencyBudget(limit, keyframes)
    frames(budget, 60)
    assert np.percentile(frames(budget, 400), 95) <= limit


def test_without_a_limit_nothing_is_ever_left_out() -> None:
    budget = LatencyBudget(0.0, 4)
    frames(budget, 100, slowness=50)
    assert budget.effort.keyframes == 4
    assert budget.effort.scale == 1


def test_keyframes_are_given_up_before_resolution() -> None:
    budget = LatencyBudget(0.080, 3)
    frames(budget, 40)
    assert budget.effort.keyframes == 1
    assert budget.effort.scale == 1


def test_effort_comes_back_when_the_machine_has_time_again() -> None:
    budget = LatencyBudget(0.100, 1)
    frames(budget, 100, slowness=2.5)
    assert budget.effort.scale < 1
    frames(budget, 600)
    assert budget.effort.scale == 1


def test_a_limit_that_nothing_keeps_ends_at_the_least_effort_and_stays_there() -> None:
    budget = LatencyBudget(0.001, 2)
    frames(budget, 200)
    assert (budget.effort.keyframes, budget.effort.scale) == (1, SCALES[-1])


def test_a_steady_machine_is_not_led_up_and_down() -> None:
    budget = LatencyBudget(0.050, 1)
    frames(budget, 100)
    settled = budget.effort
    changes = 0
    for seed in range(20):
        frames(budget, 30, seed=seed)
        changes += budget.effort != settled
    assert not changes


def test_another_resolution_begins_with_a_keyframe_that_is_linked_to_the_last_one() -> None:
    stream = PanningStream()
    settings = with_values(FrontEndConfig(), {"max_latency_ms": 0.01, "mode": "mono"})
    front_end = FrontEnd(FineShiftMatcher(), settings)
    results = [front_end.process(stream.at(float(i % 5))) for i in range(40)]
    resized = [r for r in results if any(e.added and e.reason == KeyframeReason.EFFORT for e in r.events)]
    assert len(resized) == 1
    assert resized[0].matches[0].pose.inliers.sum() > 20
    assert resized[0].links or resized[0].location is None
    gone = [e for r in results for e in r.events if not e.added]
    assert {e.reason for e in gone} == {KeyframeReason.RESIZED}
    assert front_end.buffer.reference is not None
    width, height = front_end.buffer.reference.encoded.features.size
    assert (width, height) == (round(320 * SCALES[-1]), round(240 * SCALES[-1]))
    assert results[-1].effort.scale == SCALES[-1]
    matched = results[-1].matches[0].correspondences
    assert matched.keyframe_points.max() > 200  # pixels of the raw image, whatever the network's input size
