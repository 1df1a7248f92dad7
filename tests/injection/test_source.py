"""Filling the vector table: a new source is one class and one registration; its mistakes reach every rank."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.distributed import run_distributed_test
from tests.injection.contexts import D, filled, open_context
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.injection import InjectionSource, SourceContext
from trelm_ds.injection_sources import SOURCES, Registration


class Constant(InjectionSource):
    """Row r is r everywhere."""

    refreshes: ClassVar[bool] = False

    def __init__(self, context: SourceContext) -> None:
        self._size = context.size

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.float()[:, None].expand(-1, self._size)

    def describe(self) -> str:
        return "constants"


class Broken(Constant):
    """The rank that has row 1 finds a mistake in it."""

    def __call__(self, rows: Tensor) -> Tensor:
        if 1 in rows.tolist():
            raise UserError("row 1 is broken; mend it")
        return super().__call__(rows)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "constant", Registration(f"{__name__}:Constant"))


@pytest.mark.usefixtures("registered")
def test_a_registered_class_fills_the_table(
    one_rank: Ranks, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = filled(open_context(tiny_dataset, one_rank, source="constant"))
    assert torch.equal(table, torch.arange(len(table)).float()[:, None].expand(-1, D))
    assert capsys.readouterr().err == "injection: constants\n"


def problem_on_ranks(dataset: Path) -> str:
    SOURCES["broken"] = Registration(f"{__name__}:Broken")
    ranks = connect()
    try:
        with pytest.raises(UserError) as error:
            filled(open_context(dataset, ranks, source="broken"))
        return str(error.value)
    finally:
        disconnect()


def test_a_mistake_of_one_rank_reaches_all(tiny_dataset: Path) -> None:
    for message in run_distributed_test(problem_on_ranks, 2, tiny_dataset):
        assert re.fullmatch(r"rank 1 on \S+: row 1 is broken; mend it", message)
