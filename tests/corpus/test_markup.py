"""What is removed before parsing: tables of every kind, data, references; and what keeps words apart."""

from __future__ import annotations

import pytest

from trelm_ds.corpus.markup import prose_source, too_tangled, without_tables

ROWS = '! head one !! head two\n|-\n| cell one || cell two\n| style="x" | cell\nmore of the cell'


@pytest.mark.parametrize(
    "table",
    [
        f'{{| class="wikitable"\n{ROWS}\n|}}',
        f":{{|\n{ROWS}\n|}}",
        f"::{{|\n{ROWS}\n::|}}",
        f"* {{|\n{ROWS}\n|}}",
        f"  {{|\n{ROWS}\n  |}}",
        f"{{|\n{ROWS}\n{{{{end}}}}",
        f"{{|\n{ROWS}\n{{{{S-end}}}}",
        f"{{|\n| a\n{{|\n{ROWS}\n|}}\n| b\n|}}",
        "{|\n| a {{x\n| y=1\n}} b\n|}",
        "{|\n| a {{never closed\n|-\n| b\n|}",
        "{|\n|+ caption\n== In a cell ==\n|-\n| b\n|}",
        "{|\n! head\n|-\n| [[File:A.jpg\n|thumb]] || b",
        "{|\n|-\n| never || closed",
        "{{some table start}}\n|-\n| cell || cell\n|-\n| cell\n|}",
        "! head !! head\n|-\n| cell\n|}",
    ],
)
def test_tables_are_left_out(table: str) -> None:
    kept = [line for line in without_tables(f"Before it.\n{table}\nAfter it.").split("\n") if line]
    assert kept in (["Before it.", "After it."], ["Before it.", "{{some table start}}", "After it."])


def test_a_table_that_never_ends_does_not_take_the_next_section() -> None:
    text = "{|\n| a\n| b\nAfter it.\n== Next ==\nWords.\n{|\n| c\n|}\nMore."
    assert without_tables(text) == "After it.\n== Next ==\nWords.\n\nMore."


@pytest.mark.parametrize(
    "prose",
    [
        "Words {{template\n| with = parameters\n| over = lines\n}} and more.",
        "{{Infobox\n| a = {|\n| x\n|}\n| b = y\n}}\nWords.",
        "[[File:A.jpg\n|thumb\n|A caption]]\nWords.",
        "!Kung is a language.\nIt is spoken.",
        "A {{{argument|}}} here.",
        "Set {| x |} of it and a|b.",
    ],
)
def test_what_is_no_table_stays(prose: str) -> None:
    assert without_tables(prose) == prose


def test_words_behind_the_end_of_a_table_stay() -> None:
    assert without_tables("{|\n| a\n|} And words.") == " And words."


@pytest.mark.parametrize("name", ["graph", "mapframe", "maplink", "inputbox", "timeline", "math", "syntaxhighlight"])
def test_data_is_no_prose(name: str) -> None:
    data = '{"type": [[1, 2], {{3\n|4\n{|'
    assert prose_source(f"Before <{name} a=1>{data}</{name}>after <{name} />it.") == "Before after it."


def test_what_is_removed_keeps_words_apart() -> None:
    text = (
        "one<ref>x</ref><ref name=y/>two <ref>z</ref>, <!-- c -->3<math>x</math>4.<ref>x</ref> [[a]]<ref>x</ref>[[b]]"
    )
    assert prose_source(text) == "one<ref/>two , 3<ref/>4. [[a]]<ref/>[[b]]"


def test_what_is_removed_from_the_start_of_a_line_makes_no_list_of_it() -> None:
    assert prose_source("<math>x</math>; so it is\n<ref>a</ref>* b") == "<nowiki/>; so it is\n<nowiki/>* b"


@pytest.mark.parametrize(
    "line", ["\n", " ", "{|\n", "|}\n", "| a\n", "{|\n| a\n", "! a\n", "{{x\n|\n", "[[\n|\n", ":{|\n|}\n"]
)
def test_hostile_tables_end(line: str) -> None:
    without_tables(line * 100_000)
    without_tables("{|\n" * 50_000 + line * 10 + "|}\n" * 50_000)  # quadratic time would be hours


def test_ordinary_pages_are_not_tangled() -> None:
    prose = "A [[link]] and {{template|of=it}} with <br> and <ref name=x/> and [http://a b], {|\n|a\n|}. "
    assert not too_tangled(prose * 5000)
    assert not too_tangled("a < b and c > d, [1] {{ " * 100)
    assert not too_tangled('<ref name="a<b">x</ref> and so on for a while. ' * 300)


def test_formulas_of_molecules_are_words() -> None:
    assert prose_source("Of <chem>H2O</chem>, <ce>[Fe(CN)6]</ce> here.") == (
        "Of <nowiki>H2O</nowiki>, <nowiki>[Fe(CN)6]</nowiki> here."
    )
    assert prose_source("Of <chem>2 H2 + O2 -> 2 H2O</chem>here.") == "Of here."


def test_code_inside_a_sentence_is_shown() -> None:
    text = 'Call <syntaxhighlight lang="c" inline>a[[0]]</syntaxhighlight> or <source inline lang=c>b</source> here.'
    assert prose_source(text) == "Call <nowiki>a[[0]]</nowiki> or <nowiki>b</nowiki> here."
    assert prose_source('A <syntaxhighlight lang="inline">x</syntaxhighlight> b.') == "A  b."
