"""What ZeRO 3 gathers in a run that has encoded names before its first step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.distributed import run_distributed_test
from tests.forked import ROOT
from trelm_ds.distributed import connect, disconnect
from trelm_ds.planning.zero import Zero
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from communication import WARM_UP, settings
from exchanged import DATA, Exchanged

SMALL = 1000


def gathered(dataset: Path, folder: Path) -> tuple[int, int]:
    """Return the bytes that a rank hands over to gather weights in a step of one micro-batch, and those of weights."""
    own = folder / str((ranks := connect()).rank)
    own.mkdir()
    config = settings(Zero(3, persistent=SMALL), 1, "fp32", own, knowledge=True)
    config.trainer.micro_batch_tokens = 4096
    try:
        with StopSignals() as signals:
            trainer = build_run(config, str(dataset), folder / "run", ranks, signals)
            trainer.engine.train()
            for _ in range(WARM_UP):
                trainer.train_step()
            with Exchanged(trainer.ranks) as exchanged:
                trainer.train_step()
            trainer.held.close()
    finally:
        disconnect()
    sizes = [parameter.ds_numel for parameter in trainer.engine.module.parameters()]
    return exchanged.bytes[DATA]["all-gather"], 4 * sum(size for size in sizes if size > SMALL)


@pytest.mark.slow
def test_every_pass_gathers_weights_once(tiny_dataset: Path, tmp_path: Path) -> None:
    for handed, whole in run_distributed_test(gathered, 2, tiny_dataset, tmp_path):
        assert whole <= handed < 1.2 * whole
