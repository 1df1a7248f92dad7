from __future__ import annotations

import pytest

from trelm_ds.evaluation.tasks.marked import Mark, join_words, marked


@pytest.mark.parametrize(
    ("sentence", "marks", "expected"),
    [
        ("Anna lives in Rome.", [Mark("@", 14, 18)], "Anna lives in @ Rome @ ."),
        ("Anna", [Mark("@", 0, 4)], "@ Anna @"),
        ("Anna-Lena", [Mark("@", 0, 4)], "@ Anna @ -Lena"),
        ("Anna lives in Rome", [Mark("#", 0, 4), Mark("$", 14, 18)], "# Anna # lives in $ Rome $"),
        ("Anna lives in Rome", [Mark("#", 14, 18), Mark("$", 0, 4)], "$ Anna $ lives in # Rome #"),
        ("AnnaRome", [Mark("#", 0, 4), Mark("$", 4, 8)], "# Anna # $ Rome $"),
        ("New York City", [Mark("#", 0, 13), Mark("$", 4, 8)], "# New $ York $ City #"),
        ("New York City", [Mark("#", 4, 8), Mark("$", 4, 13)], "New $ # York # City $"),
        ("New York City", [Mark("#", 0, 8), Mark("$", 4, 13)], "# New $ York # City $"),  # overlapping
        ("York", [Mark("#", 0, 4), Mark("$", 0, 4)], "# $ York $ #"),
    ],
)
def test_signs_stand_around_mentions(sentence: str, marks: list[Mark], expected: str) -> None:
    shown, (first, last) = marked(sentence, marks)
    assert shown == expected
    signs = [place for place, letter in enumerate(shown) if letter in "@#$"]
    assert (first, last) == (signs[0], signs[-1] + 1)


def test_words() -> None:
    text, places = join_words(["Anna", ",", "Rome"])
    assert text == "Anna , Rome"
    assert [text[first:last] for first, last in places] == ["Anna", ",", "Rome"]
