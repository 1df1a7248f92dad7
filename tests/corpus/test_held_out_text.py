"""Text held out: which documents, and that nothing of them is in what is trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_corpus
from tests.corpus.test_prepare import options, refused
from trelm_ds.corpus import load_tokenizer, prepare
from trelm_ds.corpus.held_out_text import is_held_out
from trelm_ds.errors import UserError
from trelm_ds.shards import HELD_OUT_TEXT, Manifest, ShardReader, verify

SHARE = 0.2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Numbered sentences, two in a document, so that no document is another's and most are two sequences."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, documents=120)
    source = folder / "corpus.jsonl"
    records = [json.loads(line) for line in source.read_text().splitlines()]
    for number, record in enumerate(records):
        record["text"] += f" It is document {number}."
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def dataset(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "ds"
    prepare(options(corpus, out, held_out=SHARE, unit="sentence"))
    return out


def texts(corpus: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (corpus / "corpus.jsonl").read_text().splitlines()]


def decoded(folder: Path, tokenizer: Path) -> list[str]:
    reader, words = ShardReader(folder), load_tokenizer(tokenizer)
    return [
        words.decode(reader.sequence(number).tokens, skip_special_tokens=True)
        for number in range(reader.manifest.n_sequences)
    ]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def numbers(sentences: list[str]) -> set[int]:
    """The numbers of the documents, from the sentences that name them."""
    return {int(words.split("document ")[1].rstrip(" .")) for words in sentences if "document" in words}


def test_whole_documents_are_here_or_there(corpus: Path, dataset: Path) -> None:
    expected = {number for number, text in enumerate(texts(corpus)) if is_held_out(text, SHARE)}
    assert 10 < len(expected) < 40
    held_out = decoded(dataset / HELD_OUT_TEXT, dataset / "tokenizer")
    trained = decoded(dataset, dataset / "tokenizer")
    assert numbers(held_out) == expected
    assert numbers(trained) == set(range(120)) - expected
    assert (len(held_out), len(trained)) == (2 * len(expected), 2 * (120 - len(expected)))  # both sentences


def test_frequencies_are_of_what_is_trained_on(dataset: Path) -> None:
    manifest, reader = Manifest.load(dataset), ShardReader(dataset)
    tokens = np.concatenate([reader.sequence(number).tokens for number in range(manifest.n_sequences)])
    counts = np.load(dataset / "token_counts.npy")
    np.testing.assert_array_equal(counts, np.bincount(tokens.astype(np.int64), minlength=len(counts)))
    assert int(np.load(dataset / "entities" / "counts.npy").sum()) == manifest.n_mentions
    held_out = Manifest.load(dataset / HELD_OUT_TEXT)
    assert manifest.counts["sequences held out"] == held_out.n_sequences
    assert manifest.counts["mentions held out"] == held_out.n_mentions > 0
    assert manifest.counts["mentions kept"] + held_out.n_mentions == 240
    assert f"{manifest.counts['documents held out']} documents" in (dataset / "README.md").read_text()


def test_parts_workers_and_chunks_make_the_same_bytes(corpus: Path, dataset: Path, tmp_path: Path) -> None:
    settings = {"held_out": SHARE, "unit": "sentence", "workers": 2, "chunk_mb": 0.004}
    out = tmp_path / "ds"
    for part in ((2, 2), (1, 2)):
        prepare(options(corpus, out, part=part, **settings))
    prepare(options(corpus, out, merge=True, **settings))
    assert dict(contents(out)) == dict(contents(dataset))


def test_a_corpus_that_grows_keeps_what_it_holds_out(corpus: Path) -> None:
    every = texts(corpus)
    few, more = ({text for text in every if is_held_out(text, share)} for share in (0.1, 0.3))
    assert few < more  # and a text alone decides, so other documents play no part
    assert not any(is_held_out(text, 1e-9) for text in every)
    pinned = [number for number in range(20) if is_held_out(f"document {number}", 0.3)]
    assert pinned == [5, 6, 9, 11, 12, 13, 14, 17, 18, 19]  # a dataset that is made again holds out the same


def test_damage_is_found_and_enters_the_fingerprint(corpus: Path, tmp_path: Path) -> None:
    manifest, _ = prepare(options(corpus, tmp_path / "ds", held_out=SHARE))
    other, _ = prepare(options(corpus, tmp_path / "other", held_out=SHARE / 2))
    assert manifest is not None
    assert other is not None
    assert manifest.fingerprint != other.fingerprint
    assert verify(tmp_path / "ds")[1] == []
    shard = tmp_path / "ds" / HELD_OUT_TEXT / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert verify(tmp_path / "ds")[1] == [f"{shard}: its content does not match its sha256 in the manifest"]
    with pytest.raises(UserError, match=r"another request \(held_out\)"):
        prepare(options(corpus, tmp_path / "ds", held_out=SHARE / 2))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_out_of_range_is_refused(corpus: Path, tmp_path: Path, share: float) -> None:
    assert "--held-out: a share must lie between 0 and 1" in refused(options(corpus, tmp_path / "ds", held_out=share))


def test_a_share_that_holds_out_nothing_is_refused(corpus: Path, tmp_path: Path) -> None:
    message = refused(options(corpus, tmp_path / "ds", held_out=1e-9))
    assert message == "--held-out: 1e-09 holds out no document of this corpus; give a larger share"


def test_a_share_that_leaves_nothing_is_refused(corpus: Path, tmp_path: Path) -> None:
    message = refused(options(corpus, tmp_path / "ds", held_out=1 - 1e-9))
    assert message == "--held-out: 1 leaves nothing to train on; give a smaller share"
