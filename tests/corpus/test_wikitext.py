"""Wikitext: what remains of it, and where its links are."""

from __future__ import annotations

from collections import Counter

import pytest

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.wikitext import is_disambiguation, is_list, normalize_title, paragraphs_of


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


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("It is {{convert|5|to|10|km|mi|abbr=on}} long by road.", "It is 5 to 10 km long by road."),
        ("It weighs {{cvt|1,200|kg}}, they say.", "It weighs 1,200 kg, they say."),
        ("Born {{circa|1900}} in {{lang|fr|[[Paris]]}} by the river.", "Born c. 1900 in Paris by the river."),
        ("A {{lang-de|Haus}} is {{nowrap|a ''house''}} there.", "A Haus is a house there."),
        ("About {{frac|1|2}} or {{frac|3|1|2}} of it, maybe.", "About 1/2 or 3 1/2 of it, maybe."),
        ("{{As of|2020|4}} they were {{US$|5}} each there.", "As of 2020-4 they were US$5 each there."),
        ("On {{ship|HMS|Ark Royal|91}} and {{HMS|Hood|51}} they sailed.", "On HMS Ark Royal and HMS Hood they sailed."),
        ("Foo ({{IPA|fu}}; born 1950) was a thing.{{sfn|X}}", "Foo (born 1950) was a thing."),
        ("Foo ({{IPA|fu}}) was {{unknown|of}} , a kind of thing.", "Foo was, a kind of thing."),
        ("Foo{{efn|not [[this]]}} bar <!-- [[nor this]] -->and more words.", "Foo bar and more words."),
        ("Left <ref name=a/>and <ref>out {{cite|x}}</ref>with all this.", "Left and with all this."),
        ("With an en dash{{snd}}so {{nbsp}}it goes{{'}}s.", "With an en dash – so it goes's."),
    ],
)
def test_templates_that_are_words_are_spelled_out(wikitext: str, text: str) -> None:
    assert [paragraph.text for paragraph in paragraphs_of(wikitext)] == [text]


def test_what_is_cut_out_moves_the_links_behind_it() -> None:
    (paragraph,) = paragraphs_of("[[Foo]] ({{x}}; [[born]]) , ({{y}}) in [[Bar]] (; ) and [[Baz]] ({{z}}).")
    assert paragraph.text == "Foo (born), in Bar and Baz."
    assert links(paragraph) == [("Foo", "Foo"), ("born", "Born"), ("Bar", "Bar"), ("Baz", "Baz")]


def test_the_first_bold_words_are_the_pages_subject() -> None:
    lead = "'''Ada King, Countess of ''Lovelace''''' was a writer. '''Bold''' again, '''Ada Lovelace'''."
    text = f"{lead}\n\nMore '''Ada''' here, too."
    counts: Counter[str] = Counter()
    first, second = paragraphs_of(text, "Ada Lovelace (writer)", counts)
    assert links(first) == [("Ada King, Countess of Lovelace", "Ada Lovelace (writer)")]
    assert links(second) == []
    assert counts["subjects found"] == 1
    for other in ("'''[[Ada]]''' was a link already, it seems.", "'''Something''' quite different from the title."):
        assert paragraphs_of(other, "Ada Lovelace", Counter())[0].mentions == links_only(other)


def links_only(wikitext: str) -> list[object]:
    return paragraphs_of(wikitext)[0].mentions  # type: ignore[return-value]


def test_a_closing_section_takes_its_subsections_along() -> None:
    closing = "== References ==\nNone of this here.\n=== Books ===\nNor any of this.\n"
    text = f"One two three four.\n{closing}== Later ==\nFive six seven eight."
    assert [paragraph.text for paragraph in paragraphs_of(text)] == ["One two three four.", "Five six seven eight."]


def test_lists_are_known_by_their_title() -> None:
    assert is_list("List of rivers")
    assert not is_list("Listeria")
