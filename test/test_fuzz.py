"""Any file or message from a user gives a result or an error message."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from fuzzing import READERS, REFUSALS, attempt, read_source

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

EXAMPLES = 60  # per reader; `benchmarks/fuzz.py` runs a hundred thousand


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", READERS)
def test_whatever_is_changed_in_a_file_or_message_it_is_read_or_refused_in_words(name: str, folder: Path) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=10_000, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.randoms(use_true_random=False))
    def check(random: Any) -> None:
        attempt(READERS[name], random, folder)

    check()


@pytest.mark.parametrize("number", range(4))
def test_a_bag_that_was_cut_at_any_percent_is_read_or_refused_in_words(number: int, tmp_path: Path) -> None:
    bags = [each for each in READERS["bags"].prepare(tmp_path) if not each[0].startswith("metadata")]
    ending, data = bags[number % len(bags)]
    read = 0
    for percent in range(number // len(bags), 101, 2):
        file = tmp_path / f"cut{ending}"
        file.write_bytes(data[: len(data) * percent // 100])
        try:
            read_source(file)
            read += 1
        except REFUSALS as error:
            assert "cut" in str(error)  # noqa: PT017
    assert read or percent < 100, "the whole one is read"


def test_the_cases_are_neither_all_read_nor_all_refused(folder: Path) -> None:
    for name in ("text: calibrations", "names", "messages: CameraInfo", "image files"):
        outcomes = {attempt(READERS[name], Random(seed), folder) for seed in range(80)}
        assert outcomes == {"read", "refused"}, name
