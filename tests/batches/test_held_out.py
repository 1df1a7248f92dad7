"""Facts that are held out of the graph: in a whole epoch none is injected, and none is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.batches.knowledge_dataset import about_tokens, open_annotator, open_masker, prepare_knowledge, read, settings
from tests.batches.literal_knowledge import Fact, described, row
from trelm_ds.batches.collator import collate
from trelm_ds.batches.knowledge_index import KnowledgeIndex
from trelm_ds.knowledge import read_held_out
from trelm_ds.shards import HELD_OUT_FACTS, ShardReader

Triple = tuple[int, int, int]  # numbers of head, relation, tail


class Names:
    """What the tokens of a query say, in a graph whose names are all different."""

    def __init__(self, index: KnowledgeIndex, marker: list[int]) -> None:
        names, graph = index.names, index.graph
        self._entities = {
            tuple(row(names.entity_offsets, names.entity_tokens, n)): qid
            for n, qid in enumerate(graph.entities.tolist())
        }
        labels = [tuple(row(names.relation_offsets, names.relation_tokens, n)) for n in range(len(graph.relations))]
        self._relations = {label: pid for label, pid in zip(labels, graph.relations.tolist(), strict=True) if label}
        self._marker = tuple(marker)

    def triple(self, fact: Fact) -> Triple:
        """Read `mention [inverse] relation` and the answer."""
        assert fact.query is not None
        shown = fact.query[1 : fact.answer_places[0]]
        [(label, relation)] = [(label, pid) for label, pid in self._relations.items() if shown[-len(label) :] == label]
        between = self._marker if fact.inverse else ()
        name = shown[: len(shown) - len(between) - len(label)]
        assert shown == (*name, *between, *label)
        mention = self._entities[name]
        other = self._entities[fact.answer]
        return (other, relation, mention) if fact.inverse else (mention, relation, other)


def used_in_an_epoch(dataset: Path, epoch: int) -> tuple[set[Triple], set[Triple]]:
    """The facts injected and the facts asked for, told by the batches alone."""
    config = settings(cka__max_token_share=100.0, cka__facts_per_mention=3, cka__mentions="all", memory__words=False)
    annotator, reader, masker = open_annotator(dataset, config), ShardReader(dataset), open_masker(dataset, config)
    index, names = annotator.index, Names(annotator.index, about_tokens(dataset)[2].tolist())
    injected, asked = set(), set()
    for samples in np.array_split(np.arange(reader.manifest.n_sequences), 50):
        sequences = read(reader, masker, np.full(len(samples), epoch), samples)
        items, facts = described(collate(sequences, [annotator])[0])
        asked |= {names.triple(fact) for fact in facts}
        for item in items:
            if item.entity >= 0:
                mention = int(index.memory_entities[item.memory])
                other = int(index.graph.entities[index.vector_entities[item.entity]])
                relation = int(index.graph.relations[item.relation - len(index.vector_entities)])
                injected.add((mention, relation, other) if item.sign < 0 else (other, relation, mention))
    return injected, asked


def test_no_held_out_fact_is_injected_or_asked_for(tmp_path: Path) -> None:
    whole = prepare_knowledge(tmp_path / "whole", documents=120)
    dataset = prepare_knowledge(tmp_path / "held", documents=120, hold_out_facts="0.4", hold_out_seed=3)
    held_out = set(map(tuple, read_held_out(dataset / HELD_OUT_FACTS).tolist()))
    injected, asked = used_in_an_epoch(dataset, 0)
    assert not (injected | asked) & held_out
    assert len(injected) > 15
    assert len(asked) > 15
    injected, asked = used_in_an_epoch(whole, 0)  # had they stayed in the graph
    assert len(injected & held_out) > 10
    assert len(asked & held_out) > 10
