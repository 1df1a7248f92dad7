"""The page in Markdown and HTML: whole, escaped, and with everything that the table says."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.evaluation.comparison.makers import classified, guesses, write_glue, write_lama
from tests.evaluation.comparison.test_table import ranks, table_of, typing
from trelm_ds.evaluation.comparison import to_html, to_markdown
from trelm_ds.evaluation.comparison.markdown import escape
from trelm_ds.evaluation.comparison.table import Table

EVIL = "<script>alert(1)</script>\"'&|*_`\x1b[2J\u202e\ud800\n# x"
VOID = ("meta", "line", "circle")


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps texts and tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def table(here: Path) -> Table:
    write_lama(Path("l1.json"), ranks(0.2), model="one")
    write_lama(Path("l2.json"), ranks(0.6), model="two")
    return table_of(typing("t1.json", 0.1, model="one"), typing("t2.json", 0.9, model="two"), "l1.json", "l2.json")


def test_markdown_is_aligned_and_says_it_all(table: Table) -> None:
    text = to_markdown(table)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        assert len({len(row) for row in block}) == 1
        assert re.fullmatch(r"(\| :?-+:? )+\|", block[1])
    for row in blocks[0][2:]:
        assert re.search(r"\*\*[\d.]+( ± [\d.]+)?\*\* ▲ \|$", row)
    assert "Holm's correction for the 5 comparisons made" in text
    assert "200 resamples, seed 1" in text
    assert text.count("\n| LAMA UHN-T-REx") == 2
    assert text.endswith("\n")


def test_equal_tables_are_equal_bytes(table: Table, here: Path) -> None:
    again = table_of("t1.json", "t2.json", "l1.json", "l2.json")
    assert to_markdown(again) == to_markdown(table)
    assert to_html(again) == to_html(table)


def test_html_is_one_balanced_file(table: Table) -> None:
    text = to_html(table)
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") or name in ("src", "href") for _, given in page.tags for name in given)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "prefers-color-scheme: dark" in text
    assert sum(tag == "strong" for tag, _ in page.tags) == 5
    circles = [given["class"] for tag, given in page.tags if tag == "circle"]
    assert circles == ["significant"] * 5
    assert re.search(r"two, Entity typing, micro F1: seeds \d+\.\d\d, \d+\.\d\d, \d+\.\d\d; to one \+\d", page.text)
    places = [
        float(value[:-1]) for _, given in page.tags for name, value in given.items() if name in ("cx", "x1", "x2")
    ]
    assert all(0 <= place <= 100 for place in places)


def test_a_difference_of_nothing_has_a_plot(here: Path) -> None:
    path = write_lama(Path("l.json"), ranks(0.2))
    page = Page(to_html(table_of(f"a={path}", f"b={path}")))
    assert [given["class"] for tag, given in page.tags if tag == "circle"] == ["open", "open"]
    assert "+0.00 +0.00 to +0.00" in page.text


def test_texts_of_files_do_nothing(here: Path) -> None:
    gold = classified()
    paths = []
    for number in range(2):
        path = Path(f"{number}.json")
        tasks = {"rte": {"dev": (gold, guesses(gold, 0.5, 2, number))}}
        paths.append(write_glue(path, tasks, model="m" * number))
        text = path.read_text()
        path.write_text(text.replace('"model": "' + "m" * number, '"model": "' + _json(EVIL) + "m" * number))
    table = table_of(*paths)
    page = Page(to_html(table))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "script>alert(1)" in page.text
    for written in (to_html(table), to_markdown(table)):
        assert not set("\x1b\u202e\ud800") & set(written)
        assert "\\x1b" in written.replace("\\\\", "\\")
        written.encode()
    lines = to_markdown(table).splitlines()
    assert not any(line.startswith("# x") for line in lines)
    rows = [line for line in lines if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8, 9}  # columns of the two tables, and no other


def _json(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("models/bert_base", "models/bert_base"),
        ("_x_", r"\_x\_"),
        ("__init__", r"\_\_init\_\_"),
        ("a|b*c", r"a\|b\*c"),
        ("<b>[x](y)", r"\<b\>\[x\](y)"),
        ("$x$ & `y`", r"\$x\$ \& \`y\`"),
        ("a\\", "a\\\\"),
    ],
)
def test_markdown_escapes(text: str, escaped: str) -> None:
    assert escape(text) == escaped
