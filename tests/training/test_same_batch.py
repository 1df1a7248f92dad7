"""Ranks that share a model must read the same."""

from __future__ import annotations

import pytest
import torch

from tests.distributed import run_distributed_test
from trelm_ds.batches import Step
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.errors import CommonError
from trelm_ds.model import Batch
from trelm_ds.tensor_ranks import split
from trelm_ds.training.same_batch import SameBatch

BOUNDS = torch.tensor([0, 2], dtype=torch.int32)


def step(*ids: int) -> Step:
    return Step.empty()._replace(micro_batches=[Batch.of_documents(torch.tensor(ids), BOUNDS, 2)])


def test_a_digest_is_of_values_and_shapes() -> None:
    same = [step(1, 2).digest(), step(1, 2).digest()]
    assert same[0] == same[1]
    others = {step(1, 3).digest(), step(2, 1).digest(), Step.empty().digest()}
    others.add(step(1, 2)._replace(negatives=torch.tensor([3])).digest())
    others.add(step(1, 2)._replace(memory_rows=torch.tensor([3])).digest())
    assert len(others | {same[0]}) == 6


def compared(read: list[tuple[int, int]]) -> tuple[str, str]:
    """What is said of the first batch, and of the next, which is another one on every rank."""
    ranks = split(connect(), 2)
    check, said = SameBatch(ranks), []
    for ids in (read[ranks.rank], (ranks.rank, 7)):
        try:
            check.before_step(step(*ids), 4)
            said.append("")
        except CommonError as error:
            said.append(str(error))
    disconnect()
    return said[0], said[1]


def test_models_may_differ_in_data_but_not_the_parts_of_one() -> None:
    found = run_distributed_test(compared, 4, [(1, 2), (1, 2), (3, 4), (3, 4)])
    assert found == [("", "")] * 4
    found = run_distributed_test(compared, 4, [(1, 2), (1, 2), (3, 4), (3, 5)])
    for first, again in found:
        assert first.startswith("step 5: ranks 2 and 3 share a model and have read different data; ")
        assert again  # until they agree


def test_nothing_is_compared_without_tensor_parallelism(one_rank: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Step, "digest", lambda self: pytest.fail("compared"))
    SameBatch(one_rank).before_step(step(1, 2), 0)
