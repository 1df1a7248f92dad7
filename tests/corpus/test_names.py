"""Names and token counts in a prepared dataset."""

from __future__ import annotations

import itertools
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tests.conftest import CITIES, PEOPLE, write_corpus
from trelm_ds.corpus import GRAPH_FOLDER, NAMES_FOLDER, TOKEN_COUNTS, PrepareOptions, load_tokenizer, prepare
from trelm_ds.errors import UserError
from trelm_ds.knowledge import KnowledgeGraph, Names
from trelm_ds.shards import Manifest, ShardReader

ODD = ["Łódź – Widzew", "[MASK] of Zorro", "New  York", "🗺", "O'Neill's", "\u200b"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The small world; some people have odd names."""
    write_corpus(tmp_path / "in", documents=60)
    path = tmp_path / "in" / "wikidata5m" / "wikidata5m_entity.txt"
    lines = path.read_text().splitlines()
    lines[: len(ODD)] = [f"Q{number}\t{name}\tno. {number}" for number, name in enumerate(ODD, 1)]
    path.write_text("\n".join(reversed(lines)) + "\n")
    return tmp_path / "in"


def options(corpus: Path, out: Path, **changes: object) -> PrepareOptions:
    values = {"source": corpus / "corpus.jsonl", "wikidata5m": corpus / "wikidata5m", "tokenizer": "train", "out": out}
    return PrepareOptions(**values | {"max_length": 32, "vocab_size": 200} | changes)  # type: ignore[arg-type]


def rows_of(found: Names, kind: str) -> list[list[int]]:
    offsets, tokens = getattr(found, f"{kind}_offsets"), getattr(found, f"{kind}_tokens")
    return [tokens[first:last].tolist() for first, last in itertools.pairwise(offsets)]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["bert-base-uncased", "roberta-base"])
def test_names_are_what_encoding_by_hand_gives(corpus: Path, tmp_path: Path, shared_data: Path, tokenizer: str) -> None:
    folder = shared_data / "tokenizers" / tokenizer
    (corpus / "wikidata5m" / "wikidata5m_text.txt").write_text("Q1\tA city [MASK] in Łódź, long ago.\n")
    prepare(options(corpus, tmp_path / "ds", tokenizer=str(folder)))
    found = Names.load(tmp_path / "ds" / NAMES_FOLDER)
    entities = KnowledgeGraph.load(tmp_path / "ds" / GRAPH_FOLDER).entities
    library = load_tokenizer(folder)

    def by_hand(text: str) -> list[int]:
        return library(" " + text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    labels, aliases = rows_of(found, "entity"), rows_of(found, "alias")
    for row, number in enumerate(entities.tolist()):
        names = [(PEOPLE + CITIES)[number - 1]] if number > len(ODD) else [ODD[number - 1], f"no. {number}"]
        good = [ids for ids in map(by_hand, names) if ids and library.unk_token_id not in ids]
        assert labels[row] == good[0]
        assert aliases[row] == [token for ids in good for token in ids]
    assert not set(found.alias_tokens.tolist()) & set(library.all_special_ids)
    assert rows_of(found, "relation") == [by_hand("residence")]
    assert rows_of(found, "text")[0] == by_hand("A city [MASK] in Łódź, long ago.")
    if tokenizer == "roberta-base":
        assert all(token.startswith("Ġ") for token in library.convert_ids_to_tokens([label[0] for label in labels]))


def test_tokens_are_counted_exactly(corpus: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(options(corpus, tmp_path / "ds"))
    assert manifest is not None
    counts = np.load(tmp_path / "ds" / TOKEN_COUNTS)
    reader = ShardReader(tmp_path / "ds")
    expected = np.zeros(manifest.tokenizer["vocab_size"], dtype=np.int64)
    for sample in range(manifest.n_sequences):
        np.add.at(expected, reader.sequence(sample).tokens, 1)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)
    assert counts[manifest.tokenizer["cls"]] == manifest.n_sequences


def test_finished_names_are_taken_and_others_made_again(corpus: Path, tmp_path: Path) -> None:
    stopped = patch("trelm_ds.corpus.pipeline.Pipeline._sequences", side_effect=UserError("on purpose"))
    with stopped, pytest.raises(UserError, match="on purpose"):
        prepare(options(corpus, tmp_path / "ds"))
    with patch("trelm_ds.corpus.name_stage.encode_names", side_effect=AssertionError("made before")):
        prepare(options(corpus, tmp_path / "ds"))
    with stopped, pytest.raises(UserError, match="on purpose"):
        prepare(options(corpus, tmp_path / "other"))
    (corpus / "wikidata5m" / "wikidata5m_text.txt").write_text("Q1\tone of them\n")
    manifest, _ = prepare(options(corpus, tmp_path / "other"))
    assert manifest is not None
    assert manifest.counts["graph: entities with a description"] == 1
    assert "graph/wikidata5m_text.txt" in manifest.request["sources"]
    assert len(Names.load(tmp_path / "other" / NAMES_FOLDER).text_tokens)
    with pytest.raises(UserError, match=r"another request \(sources\)"):  # made without the descriptions
        prepare(options(corpus, tmp_path / "ds"))


def test_malformed_descriptions_are_counted(corpus: Path, tmp_path: Path) -> None:
    (corpus / "wikidata5m" / "wikidata5m_text.txt").write_bytes(b"Q1\tone\n" * 9 + b"Q2\t\xff\n")
    with pytest.raises(UserError, match=r"wikidata5m_text.txt:10: not valid UTF-8"):
        prepare(options(corpus, tmp_path / "ds"))
    prepare(options(corpus, tmp_path / "ds", max_malformed=0.1))
    assert Manifest.load(tmp_path / "ds").counts["names: lines left out, malformed"] == 1
