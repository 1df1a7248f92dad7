"""Characters that a terminal would obey."""

from __future__ import annotations

import pytest

from trelm_ds.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zürich, 東京\tand\nmore", "Zürich, 東京\tand\nmore"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("a\rb\x00c\x7f\x9b", "a\\x0db\\x00c\\x7f\\x9b"),
        ("user\u202egnp.exe\u2066", "user\\u202egnp.exe\\u2066"),
        ("\udcff", "\\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text: str, shown: str) -> None:
    assert visible(text) == shown
    visible(text).encode()
