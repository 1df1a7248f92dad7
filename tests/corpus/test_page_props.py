"""QIDs from MediaWiki's page_props table."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.conftest import write_corpus
from tests.corpus.test_prepare import PAGE, write_dump
from trelm_ds.corpus import PrepareOptions, page_props, prepare
from trelm_ds.corpus.page_props import read_page_props
from trelm_ds.errors import UserError
from trelm_ds.shards import ShardReader

ROWS = (
    "-- dump\nINSERT INTO `page_props` VALUES (10,'displaytitle','x (11,\\'wikibase_item\\',\\'Q666\\')',NULL),"
    "(10,'wikibase_item','Q42',NULL),(11,'unexpectedUnconnectedPage','0',0),(12,'wikibase_item','Q43',NULL);\n"
    "INSERT INTO `page_props` VALUES (13,'wikibase_item','Q44',NULL),(113,'wikibase_item','Q45',NULL);\n"
)


@pytest.mark.parametrize("piece", [1, 17, 64, 65, 1 << 20])
def test_every_row_is_found_wherever_the_pieces_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(page_props, "_PIECE", piece)
    (tmp_path / "p.sql.gz").write_bytes(gzip.compress(ROWS.encode()))
    assert read_page_props(tmp_path / "p.sql.gz", {10, 11, 13, 113, 99}) == {10: 42, 13: 44, 113: 45}


def test_another_table_and_a_truncated_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.sql").write_text("INSERT INTO `page` VALUES (10,0,'A');")
    with pytest.raises(UserError, match=r"--page-props: .*p.sql holds no wikibase_item row"):
        read_page_props(tmp_path / "p.sql", {10})
    (tmp_path / "p.sql").write_bytes(gzip.compress(ROWS.encode())[:-9])
    with pytest.raises(UserError, match="damaged or truncated"):
        read_page_props(tmp_path / "p.sql", {10})


def test_pages_of_the_dump_have_its_qids_and_others_their_names(tmp_path: Path) -> None:
    write_corpus(tmp_path / "in", documents=20)
    page = PAGE.replace("<id>1</id>", "<id>{}</id>")
    pages = [
        page.format("Ann", 0, 10, "", "'''Ann''' met [[Bob]], [[Bobby]], [[City01]] and [[Nobody Known]] one day."),
        page.format("Bob", 0, 12, "", "'''Bob''' met [[City02]] and [[Person01]] on the other day, they say."),
        page.format("Bobby", 0, 14, '<redirect title="Bob" />', ""),
        page.format("City02", 0, 15, "", "A page of the dump that page_props gives no item, whatever its name."),
    ]
    write_dump(tmp_path / "dump", pages)
    (tmp_path / "props").write_text(ROWS)
    options = PrepareOptions(tmp_path / "dump", tmp_path / "in" / "wikidata5m", "train", tmp_path / "ds", 64, 300)
    options.page_props, options.min_words = tmp_path / "props", 4
    manifest, _ = prepare(options)
    assert manifest is not None
    reader = ShardReader(tmp_path / "ds")
    found = [reader.sequence(number).mentions[:, 2].tolist() for number in range(3)]
    # Ann Q42, Bob Q43 (twice, once by a redirect), City01 is Q42 in Wikidata5M by its name; Person01 is Q2.
    assert found == [[42, 43, 43, 42], [43, 2], []]
    assert manifest.counts["mentions mapped by page_props"] == 4
    assert manifest.counts["mentions without an entity"] == 2  # Nobody Known, and City02: the dump has the last word
