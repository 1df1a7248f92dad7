"""Wikitext: what remains of it, and where its links are."""

from __future__ import annotations

import pytest

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.wikitext import is_disambiguation, normalize_title, paragraphs_of


def links(document: Document) -> list[tuple[str, object]]:
    return [(document.text[start:end], target) for start, end, target in document.mentions]


def test_links_keep_their_offsets_through_markup() -> None:
    (paragraph,) = paragraphs_of(
        "'''[[Paris]]''' is  the ''capital'' of [[France|the&nbsp;French Republic]].<ref>No.</ref>"
    )
    assert paragraph.text == "Paris is the capital of the French Republic."
    assert links(paragraph) == [("Paris", "Paris"), ("the French Republic", "France")]


def test_the_letters_after_a_link_belong_to_it() -> None:
    (paragraph,) = paragraphs_of("Two [[bus]]es of the [[city#Transport|city]]'s fleet.")
    assert links(paragraph) == [("buses", "Bus"), ("city", "City")]


def test_only_the_text_right_behind_a_link_belongs_to_it() -> None:
    (paragraph,) = paragraphs_of("A [[foot]][[ball]] game, [[bus]]<nowiki/>es, [[S: A Novel]] and [[tram]]''s'' too.")
    assert [anchor for anchor, _ in links(paragraph)] == ["foot", "ball", "bus", "S: A Novel", "tram"]


def test_templates_tables_files_and_closing_sections_are_left_out() -> None:
    text = """{{Infobox city|name=[[Paris]]}}
[[File:Eiffel.jpg|thumb|The [[Eiffel Tower]] in the evening light]]
Paris has a [[river]] and many bridges.
{| class="wikitable"
| one || two || three || four || five
|}
== History ==
The city was founded by the [[Parisii]] tribe.
== References ==
A book about [[Paris]] that nobody has read.
[[Category:Cities]]"""
    assert [paragraph.text for paragraph in paragraphs_of(text)] == [
        "Paris has a river and many bridges.",
        "The city was founded by the Parisii tribe.",
    ]


def test_links_to_other_namespaces_are_prose_only_where_they_show() -> None:
    (paragraph,) = paragraphs_of(
        "See also [[:Category:Rivers|the rivers]] of France, [[de:Fluss]] and [[Alien: Covenant]]."
    )
    assert paragraph.text == "See also the rivers of France, and Alien: Covenant."
    assert links(paragraph) == [("Alien: Covenant", "Alien: Covenant")]


def test_every_link_text_is_what_its_offsets_say() -> None:
    text = "\n".join(f"* Item {n} about [[Thing {n}|a  thing]] and\n[[Other_{n}]] more" for n in range(20))
    for paragraph in paragraphs_of(text):
        for anchor, target in links(paragraph):
            assert anchor in ("a thing", str(target))


@pytest.mark.parametrize(
    "broken", ["[[", "{{a|{{b}", "<ref>open", "[[a|b", "'''''", "{|\n|-", "]]}}", "&#x110000;", ""]
)
def test_broken_markup_is_no_crash(broken: str) -> None:
    paragraphs_of(f"A sentence of some words. {broken} And another of some words.")


def test_titles_and_disambiguation() -> None:
    assert normalize_title(" new_York  city#History") == "New York city"
    assert is_disambiguation("Mercury", "Mercury may be:\n{{disambiguation|geo}}")
    assert is_disambiguation("Mercury (disambiguation)", "")
    assert not is_disambiguation("Mercury", "A planet. {{Infobox planet}}")
