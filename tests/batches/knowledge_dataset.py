"""A dataset with knowledge of every kind, and what reads it: annotator, sequences, steps."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import CITIES, PEOPLE, write_corpus
from trelm_ds.batches import Annotator, Masker, Sequences, StepDataset
from trelm_ds.config import Config
from trelm_ds.corpus import (
    TOKENIZER_FOLDER,
    PrepareOptions,
    TokenizerInfo,
    describe,
    inverse_marker,
    load_tokenizer,
    prepare,
    word_starts,
)
from trelm_ds.shards import SampleOrder, ShardReader, Substitution

UNKNOWN_ENTITY = 999  # mentioned in the text, not in the graph
VARIANTS: dict[str, dict[str, Any]] = {
    "trelm": {"cka__max_token_share": 0.6},
    "ask all": {"cka__max_token_share": 100.0},
    "about all": {
        "cka__max_token_share": 2.0,
        "cka__mentions": "all",
        "selection__strategy": "long_tail",
        "selection__entity_threshold": 90,
    },
    "several facts": {"cka__max_token_share": 1.5, "cka__facts_per_mention": 3},
    "always injected": {"injection__probability": 1.0, "cka__max_token_share": 100.0},
    "never injected": {"injection__probability": 0.0, "cka__max_token_share": 100.0},
    "same triple": {"injection__probability": 1.0, "cka__triple": "same", "cka__max_token_share": 100.0},
    "few mentions, short answers": {
        "selection__max_per_sequence": 2,
        "cka__max_answer_tokens": 3,
        "cka__max_token_share": 9.0,
    },
    "own embeddings": {"injection__source": "none", "cka__max_token_share": 1.0},
    "no memory": {"memory__enabled": False, "cka__max_token_share": 100.0},
    "no memory, own embeddings": {"memory__enabled": False, "injection__source": "none", "cka__max_token_share": 9.0},
    "no words": {"memory__words": False, "cka__max_token_share": 0.9},
    "words alone": {"selection__strategy": "none"},
    "product": {"cka__decoder": "product"},
    "dkplm": {
        "cka__decoder": "product",
        "cka__triple": "same",
        "injection__probability": 1.0,
        "memory__enabled": False,
    },
    "mention": {"cka__decoder": "mention", "injection__probability": 0.8, "memory__enabled": False},
    "in queries only": {"injection__places": "queries", "cka__max_token_share": 100.0},
    "in the text only": {"injection__places": "text", "cka__max_token_share": 100.0},
    "no assessing": {"cka__decoder": "none"},
    "nothing": {"selection__strategy": "none", "memory__enabled": False},
}


def write_knowledge_corpus(folder: Path, documents: int = 400) -> None:
    """The tiny corpus; besides texts without a mention, of an entity that the graph lacks, and with many mentions.

    Cities have countries with long names, and a relation without a name.
    """
    write_corpus(folder, documents)
    draw = np.random.default_rng(documents)
    qid = {name: number for number, name in enumerate([*PEOPLE, *CITIES], 1)}
    lines = []
    for number in range(documents // 4):
        lines.append({"text": "Nobody is known to live here, near the river.", "mentions": []})
        text = "They say that Atlantis is a city near the river."
        lines.append({"text": text, "mentions": [{"qid": f"Q{UNKNOWN_ENTITY}", "start": 14, "end": 22}]})
        names = [*draw.choice(CITIES, 8), *draw.choice(PEOPLE, 4)] if number % 2 else draw.choice(CITIES, 3)
        spans, text = [], "They know"
        for name in names:
            spans.append({"qid": f"Q{qid[name]}", "start": len(text) + 1, "end": len(text) + 1 + len(name)})
            text += f" {name}"
        lines.append({"text": text + " and Person00.", "mentions": spans})
    with (folder / "corpus.jsonl").open("a") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)
    graph = folder / "wikidata5m"
    countries = {200 + n: " ".join(["Republic of"] * n) + f" Land{n}" for n in range(4)}
    more = [f"Q{qid[city]}\tP17\tQ{200 + n % 4}\n" for n, city in enumerate(CITIES)]
    more += [f"Q{qid[city]}\tP404\tQ{201 + n % 2}\n" for n, city in enumerate(CITIES[:6])]
    with (graph / "wikidata5m_all_triplet.txt").open("a") as stream:
        stream.writelines(more)
    with (graph / "wikidata5m_entity.txt").open("a") as stream:
        stream.writelines(f"Q{number}\t{name}\n" for number, name in countries.items())
    with (graph / "wikidata5m_relation.txt").open("a") as stream:
        stream.write("P17\tcountry of the place\n")


def prepare_knowledge(folder: Path, tokenizer: str = "train", documents: int = 400, **changes: Any) -> Path:
    """The dataset of that corpus, at most 64 tokens a sequence."""
    write_knowledge_corpus(folder / "text", documents)
    source, graph = folder / "text" / "corpus.jsonl", folder / "text" / "wikidata5m"
    prepare(PrepareOptions(source, graph, tokenizer, folder / "dataset", 64, 110, **changes))
    return folder / "dataset"


def settings(**changes: object) -> Config:
    """Every entity and every word has knowledge; dotted settings, with __ for the dot, change it."""
    config = Config()
    config.selection.strategy, config.selection.importance = "all", "none"
    config.memory.word_quantiles = (0.0, 0.9)
    config.memory.window = 3
    config.loader.seed = 5
    config.loader.workers = 0
    for name, value in changes.items():
        section, _, field = name.partition("__")
        setattr(getattr(config, section), field, value)
    return config


@lru_cache
def about_tokens(dataset: Path) -> tuple[TokenizerInfo, np.ndarray, np.ndarray]:
    """Special tokens, which tokens begin a word, and the marker of inverse relations."""
    tokenizer = load_tokenizer(dataset / TOKENIZER_FOLDER)
    return describe(tokenizer), word_starts(tokenizer), inverse_marker(tokenizer)


def open_annotator(dataset: Path, config: Config) -> Annotator:
    return Annotator(dataset, config, *about_tokens(dataset))


def open_masker(dataset: Path, config: Config) -> Masker:
    info, starts, _ = about_tokens(dataset)
    return Masker(config.masking, info, starts, config.loader.seed)


def open_steps(
    dataset: Path,
    config: Config,
    annotator: Annotator | None,
    rank: int = 0,
    world_size: int = 1,
    batch: int = 64,
    budget: int = 256,
) -> StepDataset:
    reader = ShardReader(dataset)
    order = SampleOrder(reader.block_sizes, config.loader.seed, 3)
    substitution = Substitution(reader, config.loader.seed, 0.0)
    masker = open_masker(dataset, config)
    return StepDataset(
        reader=reader,
        order=order,
        masker=masker,
        substitution=substitution,
        global_batch_size=batch,
        micro_batch_tokens=budget,
        rank=rank,
        world_size=world_size,
        annotator=annotator,
    )


def read(reader: ShardReader, masker: Masker, epochs: np.ndarray, sample_ids: np.ndarray) -> Sequences:
    """The samples, packed and masked."""
    rows = reader.tokens(sample_ids)
    lengths = np.array([len(row) for row in rows])
    tokens = np.concatenate(rows).astype(np.int64)
    input_ids, positions = masker(tokens, lengths, epochs, sample_ids)
    mentions, blocks, places = reader.mentions(sample_ids)
    return Sequences(
        tokens=tokens,
        input_ids=input_ids,
        mlm_positions=positions,
        lengths=lengths,
        epochs=epochs,
        sample_ids=sample_ids,
        mentions=mentions,
        blocks=blocks,
        places=places,
    )
