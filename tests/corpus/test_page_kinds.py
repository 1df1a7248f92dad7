"""Which pages are lists of meanings or of links, and which only look like it."""

from __future__ import annotations

import pytest

from trelm_ds.corpus.page_kinds import is_disambiguation, is_list


@pytest.mark.parametrize(
    "box",
    [
        "{{disambiguation}}", "{{Disambig|geo}}", "{{dab}}", "{{Disamb}}", "{{mathdab}}", "{{hndab|Smith, Ann}}",
        "{{hndis}}", "{{Geodis}}", "{{geo-dis}}", "{{shipindex}}", "{{Ship index}}", "{{roadindex}}",
        "{{mountain index|x}}", "{{Mountain_index}}", "{{ Letter–number combination disambiguation }}",
        "{{Human name disambiguation}}", "{{Template:Dab}}", "{{surname}}", "{{set-index article}}",
        "{{Disambiguation page\n|geo\n}}", "__DISAMBIG__",
    ],
)  # fmt: skip
def test_a_message_box_makes_a_list_of_meanings(box: str) -> None:
    assert is_disambiguation("Mercury", f"'''Mercury''' may be:\n* [[Mercury (planet)]]\n{box}")


@pytest.mark.parametrize(
    "note",
    [
        "{{disambiguation needed|date=June 2023}}", "{{Disambiguation needed}}", "{{No disambiguation}}",
        "{{dablink|x}}", "{{Dab needed}}", "{{Disambiguation link}}", "{{R from disambiguation}}",
        "{{About|x|y|X (disambiguation)}}",
        "{{Infobox surname}}", "<!-- {{disambiguation}} -->", "{{tl|disambiguation}}", "{{Infobox planet}}", "{{dab",
        "{{For|other uses|Disambiguation}}", "{{Indexed}}",
    ],
)  # fmt: skip
def test_a_note_about_meanings_leaves_an_article(note: str) -> None:
    assert not is_disambiguation("Mercury", f"A planet near [[Sun]]{note} and others.")


def test_a_title_may_say_that_it_lists_meanings() -> None:
    assert is_disambiguation("Mercury (disambiguation)", "")
    assert not is_disambiguation("Disambiguation", "A word for it.")


@pytest.mark.parametrize(
    ("title", "wikitext", "expected"),
    [
        ("List of rivers", "", True),
        ("Lists of rivers", "", True),
        ("Listeria", "", False),
        ("Index of coincidence", "A technique of counting letters.", False),
        ("Index of Forbidden Books", "A list that the church kept.", False),
        ("Index of philosophy articles (A–C)", "", True),
        ("Index of Chile-related articles", "", True),
        ("Index of physics", "A\n{{Index footer}}", True),
        ("Index of genetics", "A\n[[Category:Indexes of topics|Genetics]]", True),
        ("Outline of a Theory of Practice", "A book by [[Pierre Bourdieu]].", False),
        ("Outline of History", "A book, and no guide. [[Category:1920 books]]", False),
        ("Outline of physics", "An overview of and topical guide to physics.", True),
        ("Outline of logic", "{{Outline header|logic}}\n* Logic", True),
        ("Outline of water", "Water:\n[[Category:Wikipedia outlines|Water]]", True),
    ],
)
def test_lists_of_links_are_known_by_more_than_the_first_words(title: str, wikitext: str, expected: bool) -> None:
    assert is_list(title, wikitext) is expected
