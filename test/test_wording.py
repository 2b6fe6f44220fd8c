"""Text for people."""

from __future__ import annotations

import pytest

from loftr_ros.wording import shortened

TEXT = "the file system said that nothing is to be written here, and why"


def test_a_short_text_stays_as_it_is() -> None:
    assert shortened(TEXT, len(TEXT)) == TEXT
    assert shortened("", 10) == ""


@pytest.mark.parametrize("most", range(20, len(TEXT)))
def test_a_long_text_ends_with_a_whole_word_and_an_ellipsis(most: int) -> None:
    found = shortened(TEXT, most)
    kept = found.removesuffix(" …")
    assert len(found) <= most and kept != found
    assert TEXT.startswith(kept) and TEXT[len(kept)] in " ," and not kept.endswith((" ", ","))


def test_one_word_longer_than_the_room_is_cut_since_nothing_else_would_be_left() -> None:
    assert shortened("in " + "/folder" * 20, 30) == "in " + ("/folder" * 20)[:26] + "…"
