"""Wikitext: what remains of it, and where its links are."""

from __future__ import annotations

from collections import Counter

import pytest

from trelm_ds.corpus.documents import Document
from trelm_ds.corpus.site import read_site
from trelm_ds.corpus.wikitext import paragraphs_of


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
    inside = "[[Ada|x '''Ada''' King]] was in a link already, it seems."
    assert [anchor for anchor, _ in links(paragraphs_of(inside, "Ada Lovelace", Counter())[0])] == ["x Ada King"]
    for other in ("'''[[Ada]]''' was a link already, it seems.", "'''Something''' quite different from the title."):
        assert paragraphs_of(other, "Ada Lovelace", Counter())[0].mentions == links_only(other)


def links_only(wikitext: str) -> list[object]:
    return paragraphs_of(wikitext)[0].mentions  # type: ignore[return-value]


def test_a_closing_section_takes_its_subsections_along() -> None:
    closing = "== References ==\nNone of this here.\n=== Books ===\nNor any of this.\n"
    text = f"One two three four.\n{closing}== Later ==\nFive six seven eight."
    assert [paragraph.text for paragraph in paragraphs_of(text)] == ["One two three four.", "Five six seven eight."]


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("A [[wikt:brigand|brigand]] of the [[s:Iliad|Iliad]] is here.", "A brigand of the Iliad is here."),
        ("The [[Help:Contents|help]], [[User:A|an editor]], [[WP:NPOV]].", "The help, an editor, WP:NPOV."),
        ("Hear [[Media:A.ogg|the word]] and [[voy:Paris|travel]] there.", "Hear the word and travel there."),
        ("A [[:File:A.jpg]] is [[:de:Fluss|German]] for it.", "A File:A.jpg is German for it."),
        ("The [[Caf%C3%A9]] and [[C%2B%2B]] of [[R&amp;B]] are here.", "The Café and C++ of R&B are here."),
        ("At [[Foo|]] and [[:Bar]] and [[#Here|below]] it is.", "At Foo and Bar and below it is."),
        ("One [[File:A.jpg|thumb|words [[in]] it]]two three four.", "One two three four."),
    ],
)
def test_inline_links_elsewhere_show_their_text(wikitext: str, text: str) -> None:
    assert [paragraph.text for paragraph in paragraphs_of(wikitext)] == [text]


def test_templates_in_the_text_of_links_are_words_of_the_mention() -> None:
    (paragraph,) = paragraphs_of(
        "The [[Bundestag|{{lang|de|Deutscher ''Bundestag''}}]] has [[Area|{{convert|5|km2}}]], "
        "[[Nina|{{nowrap|Niña}}]]s and [[X|{{flagicon|X}}]] [[Flag|{{flagicon|X}} Flag of ''[[X]]'']] and "
        "[https://a.org {{lang|de|one}} [[Two|two]]]."
    )
    assert paragraph.text == "The Deutscher Bundestag has 5 km², Niñas and Flag of X and one two."
    assert links(paragraph) == [
        ("Deutscher Bundestag", "Bundestag"),
        ("5 km²", "Area"),
        ("Niñas", "Nina"),
        ("Flag of X", "Flag"),
        ("two", "Two"),
    ]


def test_a_subject_and_links_in_templates_are_mentions() -> None:
    (paragraph,) = paragraphs_of(
        "{{nihongo|'''Aikido'''|合気道|aikidō}} is a [[art|{{small|martial art}}]] of old.", "Aikido"
    )
    assert links(paragraph) == [("Aikido", "Aikido"), ("martial art", "Art")]


def test_one_page_has_many_spellings_in_links() -> None:
    (paragraph,) = paragraphs_of(
        "A [[New_York|one]], [[New&nbsp;York|two]], [[new%20York#Now|three]], "
        "[[\u200eNew York\u200f|four]], [[:New York|five]]."
    )
    assert {target for _, target in links(paragraph)} == {"New York"}
    assert len(links(paragraph)) == 5


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("__NOTOC__'''Berlin''' is the capital of it.", "Berlin is the capital of it."),
        ("__FORCETOC__ More words __notoc__follow __NOINDEX__ here.", "More words follow here."),
        (
            "The file has __init__ and __FILE__ in <nowiki>__TOC__</nowiki> it.",
            "The file has __init__ and __FILE__ in __TOC__ it.",
        ),
        ("One<div>two three four five</div>six seven eight nine", "two three four five|six seven eight nine"),
        ("a b c d<br>e f g h<br/>i j k l", "a b c d|e f g h|i j k l"),
        ("a b c d<p>e f g h<p>i j k l</div>", "a b c d|e f g h|i j k l"),
        ("One <small>two <span style='x'>three</span> four", "One two three four"),
        ("One ''two three '''four five", "One two three 'four five"),
        ("The crew of ''Foo'''s ship is there.", "The crew of Foo's ship is there."),
        ("Of 10<sup>6</sup> m<sup>2</sup>, the 1<sup>st</sup> of H<sub>2</sub>O.", "Of 10⁶ m², the 1st of H2O."),
        ("At 10<sup>&minus;6</sup> of Ca<sup>2+</sup> it is.", "At 10⁻⁶ of Ca²⁺ it is."),
        ("One <span style='display: none'>key</span>two three four.", "One two three four."),
        ('One <graph>{"a": [[1, 2]]}</graph>two three <inputbox>\ntype=x\n</inputbox>four.', "One two three four."),
        ("One two three 1914<ref>x</ref>1918<math>y</math>1919.", "One two three 1914 1918 1919."),
        ("<math>x</math>; so it is and stays.", "; so it is and stays."),
        ("One &lt;b&gt; &amp;nbsp; <nowiki>[[a]] &amp; b</nowiki> c.", "One <b> &nbsp; [[a]] & b c."),
    ],
)
def test_tags_switches_and_quotes(wikitext: str, text: str) -> None:
    assert "|".join(paragraph.text for paragraph in paragraphs_of(wikitext)) == text


def test_a_table_behind_a_colon_or_without_an_end_is_no_prose() -> None:
    table = "{|\n|-\n| cell one || cell two [[Three]] and four\n"
    for before, after in ((":", "|}"), ("::", "|}"), ("*", "|}"), ("", "{{end}}"), ("", "")):
        found = paragraphs_of(f"The table is here now.\n{before}{table}{after}\nAnd text goes on after.")
        assert [paragraph.text for paragraph in found] == ["The table is here now.", "And text goes on after."]


def test_another_language_has_its_own_names_and_letters() -> None:
    site = read_site(
        '<mediawiki xml:lang="de"><namespace key="6">Datei</namespace><namespace key="14">Kategorie</namespace>'
    )
    text = (
        "__INHALTSVERZEICHNIS_ERZWINGEN__Eine [[Stadt]]ähnliche Siedlung am [[Rhein]]. "
        "[[Datei:Rhein|mini|Der [[Fluss]]]]\n"
        "[[Bild:Rhein.jpg|mini|Noch ein Bild vom [[Fluss]]]]\n[[Kategorie:Stadt|Berlin Stadt an der Spree]]"
    )
    (paragraph,) = paragraphs_of(text, site=site)
    assert paragraph.text == "Eine Stadtähnliche Siedlung am Rhein."
    assert links(paragraph) == [("Stadtähnliche", "Stadt"), ("Rhein", "Rhein")]


def test_templates_that_are_left_out_are_counted_by_name() -> None:
    left_out: Counter[str] = Counter()
    text = "A {{citation needed|date=x}} {{Citation_needed}} {{nowrap|word {{who}} of}} [[Link|{{flagicon}} it]]."
    paragraphs_of(text, left_out=left_out)
    assert left_out == {"citation needed": 2, "who": 1, "flagicon": 1}


def test_readings_above_the_line_and_what_cannot_be_seen_stay_out_of_words() -> None:
    (paragraph,) = paragraphs_of(
        "The <ruby>漢<rp>(</rp><rt>kan</rt><rp>)</rp>字</ruby> of soft&shy;ware, zero&#8203;width, {{{x|a default}}}."
    )
    assert paragraph.text == "The 漢字 of software, zerowidth, a default."
