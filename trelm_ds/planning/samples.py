"""Micro-batches to plan with: real ones of a dataset, or made-up ones where there is none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trelm_ds.batches import Step, mask_rate
from trelm_ds.config import Config
from trelm_ds.distributed import OneProcess
from trelm_ds.errors import UserError
from trelm_ds.model import AssessingBatch, Batch, EncoderConfig, StepTables, Tail
from trelm_ds.training import RunData, open_dataset

# Without a dataset: what queries and answers of T-REx with Wikidata5M are like, in tokens.
_QUERY, _ANSWER = 16, 2
_STEPS = 2  # of a dataset to look at


class Sample(NamedTuple):
    """A micro-batch.

    Attributes:
        batch: on the CPU.
        tables: what the step has looked up for it, without values; None where the run has no knowledge.
        tokens: those of its sequences.
        attended: how many tokens a token attends to, on average over all.
        looked_up: rows of D numbers in fp32 that a token of the sequences brings with it: vectors and memories.
    """

    batch: Batch
    tables: StepTables | None
    tokens: int
    attended: float
    looked_up: float


def open_for_planning(config: Config, data: str) -> RunData:
    """Open a dataset as a run of one process would.

    Raises:
        UserError: dataset and settings do not fit together.
    """
    return open_dataset(config, data, OneProcess(torch.device("cpu")))


def real_sample(config: Config, data: RunData, micro_batch_tokens: int, size: int) -> Sample:
    """Take the largest micro-batch of a dataset's first steps.

    Args:
        micro_batch_tokens: as in the settings, in place of theirs.
        size: hidden size D.

    Raises:
        UserError: the dataset's longest sequence does not fit.
    """
    source = data.steps.packed_to(micro_batch_tokens)
    lengths = source.reader.lengths
    count = min(len(lengths), max(1, 2 * micro_batch_tokens // max(1, int(lengths.mean()))))
    steps = [source.build(number * count, count, number) for number in range(_STEPS)]
    batches = [batch for step in steps for batch in step.micro_batches]
    batch = max(batches, key=_tokens_of_text)
    bounds = batch.cu_seqlens.diff().numpy().astype(np.int64)
    rows = sum(len(step.vector_rows) + len(step.memory_rows) for step in steps)
    # Of memories both parts arrive, and Eq. 4 and 6 learn of both until the step's end.
    rows += 4 * sum(len(step.memory_rows) for step in steps)
    return Sample(
        batch=batch,
        tables=_tables(config, steps[0], size) if batch.items is not None or batch.objectives else None,
        tokens=_tokens_of_text(batch),
        attended=float(np.square(bounds).sum() / bounds.sum()),
        looked_up=rows / sum(map(_tokens_of_text, batches)),
    )


def _tokens_of_text(batch: Batch) -> int:
    return int(batch.cu_seqlens[batch.n_sequences])


def _tables(config: Config, step: Step, size: int) -> StepTables:
    return StepTables(
        vectors=torch.zeros(len(step.vector_rows), size),
        memories=torch.zeros(len(step.memory_rows), size),
        memory_lambda=config.memory.initial_lambda,
        candidates=step.negatives,
        log_counts=None,
        h_e_weight=config.injection.weight,
    )


def made_up_sample(config: Config, micro_batch_tokens: int, sizes: EncoderConfig) -> Sample:
    """Make a micro-batch of sequences as long as the model reads them, and of queries as the settings allow them.

    Raises:
        UserError: the settings have objectives whose batches only a dataset can tell.
    """
    if config.kepler.weight:
        raise UserError("--data: needed to plan with kepler.weight, whose batches depend on the graph")
    if config.assesses and config.cka.decoder != "query":
        raise UserError(f"--data: needed to plan with cka.decoder {config.cka.decoder}; or plan with decoder query")
    share, length = config.cka.max_token_share if config.assesses else 0.0, sizes.max_position_embeddings
    sequences = int(micro_batch_tokens / (1 + share)) // length
    if not sequences:
        raise UserError(
            f"trainer.micro_batch_tokens: {micro_batch_tokens} holds no sequence of model.max_position_embeddings "
            f"{length} tokens and the queries beside it; raise it"
        )
    own = sequences * length
    queries = round(own * share / _QUERY)
    lengths = np.array([length] * sequences + [_QUERY] * queries)
    masked = _numbers(round(own * mask_rate(config.masking, 0, 1)))
    batch = Batch(
        input_ids=_numbers(int(lengths.sum())),
        cu_seqlens=torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)),
        max_seqlen=length,
        mlm_positions=masked,
        mlm_labels=masked.clone(),
        n_sequences=sequences,
        tail=Tail(queries, queries * _QUERY, _QUERY) if queries else None,
        objectives={"cka": _answers(queries * _ANSWER)} if config.assesses else {},
    )
    nothing = torch.zeros(0, sizes.hidden_size)
    tables = StepTables(nothing, nothing, 0.0, _numbers(config.cka.negatives)) if config.assesses else None
    return Sample(batch, tables, own, float((lengths**2).sum() / lengths.sum()), 0.0)


def _numbers(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def _answers(count: int) -> AssessingBatch:
    nothing, flags = _numbers(0), torch.zeros(0, dtype=torch.bool)
    return AssessingBatch(
        labels=_numbers(count),
        fact=_numbers(count),
        place=_numbers(count),
        positions=_numbers(count),
        spans=nothing.view(0, 2),
        relations=nothing,
        inverse=flags,
        routed=flags,
    )
