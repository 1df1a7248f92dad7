"""Stage 2, per chunk: turn documents into token sequences, and count entities and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trelm_ds.corpus.artifacts import Artifact, find, make, obtain
from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.extract import read_documents, read_titles
from trelm_ds.corpus.held_out_text import without_held_out
from trelm_ds.corpus.linking import Linker, LinkingOptions
from trelm_ds.corpus.sequences import Unit, sequences_of
from trelm_ds.corpus.titles import TitleTable, count_link
from trelm_ds.corpus.tokenizer import TokenizerInfo, load_core
from trelm_ds.corpus.words import WordCounter, WordTable, words_of
from trelm_ds.shards import HELD_OUT_TEXT, Block, Sequence

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_GROUP = 4096  # sequences whose words are counted at a time


@dataclass(frozen=True)
class EncodeTask:
    """Inputs and settings for encoding one chunk.

    Attributes:
        documents: folder of the chunk's extracted documents.
        titles: folder of the title table; None if mentions already have QIDs.
        tokenizer: folder with tokenizer.json.
        info: the tokenizer's vocabulary size and special tokens.
        starts: .npy file, bool [V]: whether a token begins a word.
        max_length, unit: see `sequences_of`.
        linker: folder of the linker's dictionary; None adds no mentions.
        minimum_rho: the linker's pruning threshold.
        held_out: share of the documents to hold out; None for none.
        folder, key: the artifact to make.
    """

    documents: Path
    titles: Path | None
    tokenizer: Path
    info: TokenizerInfo
    starts: Path
    max_length: int
    unit: Unit
    linker: Path | None
    minimum_rho: float
    held_out: float | None
    folder: Path
    key: str


def encode(task: EncodeTask) -> Artifact:
    """Find or make a chunk's artifact.

    It holds the arrays of a `Block`, `entities.npy` int64 [E, 2] (QID number, mentions), the word table `words/`, and
    counts in its notes; with text held out, the arrays of its `Block` in a folder of their own.
    """
    if found := find(task.folder, task.key):
        return found
    with make(task.folder, task.key) as (work, notes):
        counts: Counter[str] = Counter()
        documents = resolved_documents(task.documents, task.titles, counts)
        if task.linker is not None:
            linker = Linker(task.linker, LinkingOptions(minimum_rho=task.minimum_rho))
            documents = _with_links(documents, linker, counts)
        core = load_core(task.tokenizer)
        held_out: list[Document] = []
        documents = without_held_out(documents, task.held_out, held_out)
        groups, words = _grouped(_sequences(documents, core, task, counts), task)
        block = Block.join(groups)
        _save_block(block, work)
        if task.held_out is not None:
            kept_apart = list(_sequences(held_out, core, task, counts))
            (work / HELD_OUT_TEXT).mkdir()
            _save_block(Block.from_sequences(kept_apart, task.info.vocab_size), work / HELD_OUT_TEXT)
            counts["documents held out"] = len(held_out)
            counts["sequences held out"] = len(kept_apart)
            counts["mentions held out"] = sum(len(sequence.mentions) for sequence in kept_apart)
        np.save(work / "entities.npy", np.stack(np.unique(block.mentions[:, 3], return_counts=True), axis=1))
        (work / "words").mkdir()
        words.save(work / "words")
        notes["counts"] = {name: value for name, value in counts.items() if value}
    return obtain(task.folder, task.key)


def resolved_documents(folder: Path, titles: Path | None, counts: Counter[str]) -> Iterator[Document]:
    """Yield a chunk's documents with QID numbers as targets; mentions without an entity are dropped and counted."""
    table = {} if titles is None else TitleTable.load(titles).lookup(list(read_titles(folder)))
    for text, mentions in read_documents(folder):
        kept = []
        for mention in mentions:
            if isinstance(mention.target, str):
                qid, flags = table[mention.target]
                count_link(qid, flags, counts)
                if qid >= 0:
                    kept.append(Mention(mention.start, mention.end, qid))
            else:
                kept.append(mention)
        yield Document(text, kept)


def _with_links(documents: Iterator[Document], linker: Linker, counts: Counter[str]) -> Iterator[Document]:
    """Yield the documents with the mentions that the linker finds."""
    for document in documents:
        added = linker.link(document)
        counts["mentions added by the linker"] += len(added)
        yield Document(document.text, sorted([*document.mentions, *added], key=lambda mention: mention[:2]))


def _sequences(
    documents: Iterable[Document], core: Tokenizer, task: EncodeTask, counts: Counter[str]
) -> Iterator[Sequence]:
    return sequences_of(documents, core, task.info, task.max_length, counts, task.unit)


def _save_block(block: Block, folder: Path) -> None:
    for name, array in block._asdict().items():
        np.save(folder / f"{name}.npy", array)


def read_block(folder: Path) -> Block:
    """Memory-map the sequences of an artifact made by `encode`."""
    return Block(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Block._fields))


def _grouped(sequences: Iterator[Sequence], task: EncodeTask) -> tuple[list[Block], WordTable]:
    """Collect sequences into blocks of `_GROUP`, and count their words."""
    starts = np.load(task.starts)
    ordinary = np.ones(len(starts), dtype=bool)
    ordinary[list(task.info.special_ids)] = False
    blocks = [Block.from_sequences([], task.info.vocab_size)]
    words = WordCounter()
    pending: list[Sequence] = []

    def close() -> None:
        block = Block.from_sequences(pending, task.info.vocab_size)
        tokens = block.tokens.astype(np.int64)
        begins = starts[tokens]
        begins[1:] |= ~ordinary[tokens[:-1]]  # a word also begins after every special token
        words.add(WordTable.from_words(tokens, words_of(tokens, begins, ordinary[tokens])))
        blocks.append(block)
        pending.clear()

    for sequence in sequences:
        pending.append(sequence)
        if len(pending) == _GROUP:
            close()
    if pending:
        close()
    return blocks, words.total()
