"""One pre-training run from its settings to its exit code."""

from __future__ import annotations

from pathlib import Path

from trelm_ds.config import Config
from trelm_ds.distributed import connect, disconnect
from trelm_ds.errors import CommonError
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.first_failure import first_failure_speaks
from trelm_ds.training.watchdog import Watchdog


def pretrain(config: Config, data: str, run: Path) -> int:
    """Train to `trainer.max_steps` or until something asks to stop; collective over the ranks that torchrun started.

    Args:
        data: dataset of `trelm prepare`: a folder or an fsspec URL.
        run: folder for checkpoints, metrics and the resolved configuration; a run found there is continued.

    Returns:
        0 when all steps are done. When stopped, after a checkpoint: 128 + the signal's number, 75 at
        `trainer.max_minutes`, 130 by the stop file.

    Raises:
        UserError: settings, dataset and run folder do not fit together.
    """
    ranks = connect()
    try:
        watchdog = Watchdog(ranks, run, config.guards.hang_minutes)
        with first_failure_speaks(), StopSignals() as signals, watchdog:
            code = build_run(config, data, run, ranks, signals, watchdog).train()
    except CommonError as error:
        ranks.report(error)
        disconnect()
        raise
    disconnect()  # not after a failure of one rank: it would wait for the others
    return code
