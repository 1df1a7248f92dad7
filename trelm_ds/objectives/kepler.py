"""KEPLER's objective (Wang et al. 2021, TACL 9): TransE on what the encoder makes of entities' descriptions.

An entity e is the state of [CLS] in the document "[CLS] name, description [SEP]", a relation r a row of a table. With
d_r(h, t) = ||h + r - t||_p, a triple (h, r, t) and n corrupted ones, whose head or tail is another entity, cost

    L_KE = -log sigmoid(gamma - d_r(h, t)) - 1/n sum_i log sigmoid(d_r(h'_i, t'_i) - gamma)          (their Eq. 3-4)

and the run's loss is L_MLM + weight * L_KE. (Their released code halves L_KE: weight 0.5.)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trelm_ds import log
from trelm_ds.batches import BatchPart, Collator, Sequences, SideDocuments
from trelm_ds.config import Config, KeplerConfig
from trelm_ds.corpus import GRAPH_FOLDER, NAMES_FOLDER, TokenizerInfo
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import Stream, keyed_bits, keyed_uniform
from trelm_ds.knowledge import KnowledgeGraph, Names
from trelm_ds.model import EncoderConfig
from trelm_ds.objectives.objective import Objective, PreparedDataset
from trelm_ds.ragged import spread
from trelm_ds.shards import Manifest


class Kepler(Objective):
    """Masked language modelling and knowledge embedding in one encoder."""

    name: ClassVar[str] = "kepler"

    def active(self, config: Config, dataset: PreparedDataset) -> bool:
        """Whether its loss counts."""
        return config.kepler.weight > 0

    def weight(self, config: Config) -> float:
        """The weight of L_KE beside 1 of L_MLM."""
        return config.kepler.weight

    def collator(self, config: Config, dataset: PreparedDataset) -> Collator:
        """Make what draws triples and writes their entities' descriptions."""
        triples = TripleCollator(dataset.folder, config.kepler, config.loader.seed, dataset.info, dataset.max_length)
        triples.check()
        return triples

    def module(self, config: Config, sizes: EncoderConfig, dataset: PreparedDataset) -> nn.Module:
        """Make the loss, with a row for each relation of the graph."""
        n_relations = len(KnowledgeGraph.load(dataset.folder / GRAPH_FOLDER).relations)
        return KnowledgeEmbeddingLoss(n_relations, sizes.hidden_size, config.kepler.margin, config.kepler.norm)


class KeplerBatch(NamedTuple):
    """P triples over the U distinct entities of a micro-batch, each with n corrupted ones.

    Attributes:
        entity_rows: int64 [U], row of T of the [CLS] of each entity's document.
        heads, tails: int64 [P, 1 + n], index of the entity: of the true triple, then of the corrupted ones.
        relations: int64 [P], rows of the graph's relations.
    """

    entity_rows: Tensor
    heads: Tensor
    tails: Tensor
    relations: Tensor

    @property
    def n_targets(self) -> int:
        """P, over which the loss is a mean."""
        return len(self.relations)


class KnowledgeEmbeddingLoss(nn.Module):
    """L_KE, with the table of relations [R, D]."""

    def __init__(self, n_relations: int, size: int, margin: float, norm: int) -> None:
        super().__init__()
        self.relations = nn.Embedding(n_relations, size)
        nn.init.uniform_(self.relations.weight, -6 / size**0.5, 6 / size**0.5)  # as TransE begins (Bordes et al. 2013)
        self.margin, self.norm = margin, norm

    def forward(self, hidden: Tensor, given: KeplerBatch, *_: Any) -> tuple[Tensor, Tensor]:
        """Sum L_KE over the triples, given the last-layer states [T, D].

        Returns:
            the sum [] fp32; and how many triples are closer than all of their corrupted ones, [] int64.
        """
        entities = hidden.index_select(0, given.entity_rows).float()
        relations = self.relations(given.relations).float()
        # Entities are looked up many times. Gradients of `entities[...]` would be summed in any order; these are not.
        heads, tails = (F.embedding(index, entities) for index in (given.heads, given.tails))
        translated = heads + relations[:, None] - tails
        distance = torch.linalg.vector_norm(translated, ord=self.norm, dim=-1)
        true, false = distance[:, 0], distance[:, 1:]
        losses = -F.logsigmoid(self.margin - true) - F.logsigmoid(false - self.margin).mean(1)
        return losses.sum(), (true[:, None] < false).all(1).sum()


class TripleCollator:
    """Draws triples of the graph for every sequence, and writes their entities' descriptions as documents.

    Triples are drawn evenly, whatever the sequence says: the graph needs no mention in the text. Corrupted ones are not
    checked against the graph, as in the paper. Entities without a name take no part.

    Args:
        dataset: folder with graph and names.
        settings: `kepler.*`.
        max_length: tokens of a document at most.
    """

    token_settings = "kepler.triples_per_sequence, kepler.negatives, kepler.max_text_tokens"

    def __init__(self, dataset: Path, settings: KeplerConfig, seed: int, info: TokenizerInfo, max_length: int) -> None:
        self._arguments = dataset, settings, seed, info, max_length
        self._settings, self._seed, self._info = settings, seed, info
        graph, names = KnowledgeGraph.load(dataset / GRAPH_FOLDER), Names.load(dataset / NAMES_FOLDER)
        # Plain arrays over the same memory maps: indexing the maps themselves takes several times as long.
        self._offsets, self._relations, self._tails = map(
            np.asarray, (graph.out_offsets, graph.out_relations, graph.out_entities)
        )
        self._names = tuple(map(np.asarray, (names.entity_offsets, names.entity_tokens)))
        self._texts = tuple(map(np.asarray, (names.text_offsets, names.text_tokens)))
        self._most = min(settings.max_text_tokens, max_length - 2)
        self._named = np.flatnonzero(np.diff(self._names[0]) > 0)
        self._token_share = self._expected_share(Manifest.load(dataset)) if len(self._named) else 0.0

    def check(self) -> None:
        """Say how many of the graph's triples can be drawn.

        Raises:
            UserError: none can.
        """
        heads = np.repeat(np.arange(len(self._offsets) - 1), np.diff(self._offsets))
        usable = int((self._is_named(heads) & self._is_named(self._tails)).sum())
        if not usable or len(self._named) < 2:
            raise UserError("kepler.weight: the dataset has no triples between named entities; leave it at 0")
        if usable < len(self._tails):
            share = f"{usable:,} of {len(self._tails):,}"
            log.info_rank0(f"kepler: {share} triples have names at both ends; the others are left out when drawn")

    def __reduce__(self) -> tuple[Callable[..., TripleCollator], tuple[Any, ...]]:
        return TripleCollator, self._arguments

    @property
    def token_share(self) -> float:
        """Tokens of the descriptions as a share of the sequences' tokens, on average at most."""
        return self._token_share

    def _expected_share(self, manifest: Manifest) -> float:
        name, text = self._lengths(self._named)
        of_a_triple = (2 + 2 * self._settings.negatives) * float((2 + name + text).mean())
        per_sequence = manifest.n_tokens / max(1, manifest.n_sequences)
        return self._settings.triples_per_sequence * of_a_triple / max(1.0, per_sequence)

    def __call__(self, sequences: Sequences, base: int) -> BatchPart:
        """Draw the triples of a micro-batch; their entities' documents begin at row `base`."""
        keys = self._keys(sequences)
        heads, relations, tails = self._triples(keys)
        known = self._is_named(heads) & self._is_named(tails)
        heads, relations, tails, keys = heads[known], relations[known], tails[known], keys[known]
        n = self._settings.negatives
        other_heads, other_tails = self._others(heads, keys, 0), self._others(tails, keys, n)
        kept_heads, kept_tails = (np.repeat(one[:, None], n, axis=1) for one in (heads, tails))
        all_heads = np.column_stack([heads, other_heads, kept_heads])
        all_tails = np.column_stack([tails, kept_tails, other_tails])
        entities, place = np.unique(np.stack([all_heads, all_tails]), return_inverse=True)
        place = place.reshape(2, *all_heads.shape)
        documents = self._documents(entities)
        rows = base + np.cumsum(documents.lengths) - documents.lengths
        arrays = {"entity_rows": rows, "heads": place[0], "tails": place[1], "relations": relations.astype(np.int64)}
        batch = KeplerBatch(**{name: torch.from_numpy(array) for name, array in arrays.items()})
        return BatchPart(documents=documents, objectives={Kepler.name: batch}, counts={})

    def _keys(self, sequences: Sequences) -> np.ndarray:
        """Return the bits of every triple's key, sequence by sequence: uint64 [P]."""
        keys = keyed_bits(self._seed, Stream.KEPLER_TRIPLE, sequences.epochs, sequences.sample_ids)
        wanted = self._settings.triples_per_sequence
        count = int(wanted) + (keyed_uniform(0, after=keys) < wanted - int(wanted))
        return keyed_bits(1 + spread(np.zeros_like(count), count), after=np.repeat(keys, count))

    def _triples(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw triples evenly from all of the graph: heads, relations, tails [P], rows of the graph."""
        edge = (keys % np.uint64(len(self._tails))).astype(np.int64)
        heads = np.searchsorted(self._offsets, edge, side="right") - 1
        return heads, self._relations[edge], self._tails[edge].astype(np.int64)

    def _is_named(self, entities: np.ndarray) -> np.ndarray:
        return self._names[0][entities + 1] > self._names[0][entities]

    def _others(self, entities: np.ndarray, keys: np.ndarray, first: int) -> np.ndarray:
        """Draw entities that differ from the given ones [P]: int64 [P, n]."""
        bits = keyed_bits(2 + first + np.arange(self._settings.negatives), after=keys[:, None])
        own = np.searchsorted(self._named, entities)[:, None]
        step = 1 + (bits % np.uint64(len(self._named) - 1)).astype(np.int64)
        return self._named[(own + step) % len(self._named)]

    def _lengths(self, entities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the tokens of name and of description that are read."""
        name, text = (offsets[entities + 1] - offsets[entities] for offsets, _ in (self._names, self._texts))
        name = np.minimum(name, self._most)
        return name, np.minimum(text, self._most - name)

    def _documents(self, entities: np.ndarray) -> SideDocuments:
        """Write "[CLS] name, description [SEP]" for every entity."""
        name, text = self._lengths(entities)
        lengths = 2 + name + text
        begin = np.cumsum(lengths) - lengths
        tokens = np.empty(int(lengths.sum()), dtype=np.int64)
        tokens[begin], tokens[begin + lengths - 1] = self._info.cls, self._info.sep
        for (offsets, of), length, at in ((self._names, name, begin + 1), (self._texts, text, begin + 1 + name)):
            tokens[spread(at, length)] = of[spread(offsets[entities], length)]
        return SideDocuments(tokens=tokens, lengths=lengths)
