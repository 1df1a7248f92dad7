"""Which rows memory bank and vector table have, and whose importance counts."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.batches.knowledge_dataset import (
    UNKNOWN_ENTITY,
    VARIANTS,
    about_tokens,
    open_annotator,
    open_masker,
    read,
    settings,
)
from tests.batches.literal_knowledge import row
from trelm_ds.corpus import TOKENIZER_FOLDER, load_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.importance import load_frequencies
from trelm_ds.importance.store import Identity, save_shard, save_summary, sparse
from trelm_ds.knowledge import cosine_histogram
from trelm_ds.shards import Manifest, ShardReader


def test_the_index_holds_what_the_settings_need(dataset: Path) -> None:
    index = open_annotator(dataset, settings()).index
    graph = index.graph
    assert UNKNOWN_ENTITY not in index.memory_entities
    assert index.memory_entities.tolist() == list(range(1, 53))  # people and cities; countries are never mentioned
    others = {200 + n for n in range(4)} | set(graph.entities[graph.out_entities].tolist()) | set(range(1, 53))
    reachable = {e for e in others if graph.degrees(np.array([e]))[0]}
    assert set(graph.entities[index.vector_entities].tolist()) == reachable
    assert index.n_vectors == len(index.vector_entities) + len(graph.relations)
    offsets, tokens = index.memory_tokens()
    assert len(offsets) == index.n_memory + 1
    tokenizer = load_tokenizer(dataset / TOKENIZER_FOLDER)
    assert tokenizer.encode(" inverse of", add_special_tokens=False) == about_tokens(dataset)[2].tolist()
    assert tokenizer.decode(row(offsets, tokens, 44)).strip().lower() == "city04"
    assert sum(index.describe().values()) == index.n_memory + index.n_vectors
    sizes = {
        name: (len(found.memory_entities), len(found.memory_words) > 0, len(found.vector_entities), found.n_relations)
        for name, changes in VARIANTS.items()
        for found in [open_annotator(dataset, settings(**changes)).index]
    }
    entities, vectors = 52, len(index.vector_entities)
    assert sizes["trelm"] == (entities, True, vectors, 3)
    assert sizes["own embeddings"] == (entities, True, 0, 0)
    assert sizes["no memory"] == sizes["dkplm"] == (0, False, vectors, 3)
    assert sizes["words alone"] == (0, True, 0, 0)
    assert sizes["nothing"] == (0, False, 0, 0)
    relations_alone = settings(injection__source="none", cka__decoder="product")
    assert open_annotator(dataset, relations_alone).index.n_vectors == 3


def score(dataset: Path, seed: int = 0) -> None:
    """Drawn scores of every mention, one in ten not scored."""
    manifest, draw = Manifest.load(dataset), np.random.default_rng(seed)
    reader = ShardReader(dataset)
    mentions = [reader.load(block).mentions for block in range(len(reader.block_sizes))]
    cosines = [draw.random(len(found)).astype(np.float16) for found in mentions]
    for scores in cosines:
        scores[draw.random(len(scores)) < 0.1] = np.nan
    identity = Identity(manifest.fingerprint, "", {}, "all", load_frequencies(dataset).mean)
    assert len(manifest.shards) == 1
    every = np.concatenate(cosines)
    about = {
        "identity": dataclasses.asdict(identity),
        "counts": {},
        "block_mentions": [len(found) for found in mentions],
        "histogram": sparse(cosine_histogram(every)),
    }
    (dataset / "importance").mkdir()
    save_shard(dataset / "importance", manifest.shards[0].name, every, about)
    assert save_summary(dataset / "importance", manifest, identity)


def test_importance_is_used_where_it_is_asked_for(wordpiece: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"selection.importance: required, but .* no complete scores; run `trelm impor"):
        open_annotator(wordpiece, settings(selection__importance="required"))
    plain = open_annotator(wordpiece, settings(selection__importance="auto"))
    assert plain.index.scores is None
    dataset = tmp_path / "dataset"
    shutil.copytree(wordpiece, dataset)
    score(dataset)
    masker, reader = open_masker(dataset, settings()), ShardReader(dataset)
    assert open_annotator(dataset, settings(selection__importance="none")).index.scores is None
    for importance in ("auto", "required"):
        annotator = pickle.loads(pickle.dumps(open_annotator(dataset, settings(selection__importance=importance))))
        scores, selector = annotator.index.scores, annotator.index.selector
        assert selector.bar is not None
        ids = np.random.default_rng(1).permutation(reader.manifest.n_sequences)[:200]
        expected = []
        for number, sample in enumerate(ids.tolist()):
            block = int(reader.blocks_of(np.array(sample)))
            mentions = reader.load(block).mentions
            chosen = mentions[selector(mentions, scores.block(block))]
            own = chosen[chosen[:, 0] == sample - int(reader.block_sizes[:block].sum())]
            expected += [(number, first) for first in own[:, 1].tolist()]
        spans, _, _ = annotator._looked_at(read(reader, masker, np.zeros_like(ids), ids))
        starts = np.cumsum(reader.lengths[ids]) - reader.lengths[ids]
        assert list(zip(spans.owner.tolist(), (spans.first - starts[spans.owner]).tolist(), strict=True)) == expected
        assert 50 < len(expected) < len(plain._looked_at(read(reader, masker, np.zeros_like(ids), ids))[0].first)
