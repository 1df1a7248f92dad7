"""What ZeRO 3 leaves behind the end of parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed import run_distributed_test
from tests.training.test_pretrain import config, losses
from trelm_ds.distributed import connect, disconnect
from trelm_ds.run_folder import committed
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run


def train_with_noise_in_padding(data: Path, folder: Path) -> int:
    """Trains twice, once with NaN where DeepSpeed leaves what was in memory; how many of them there were."""
    torch.set_num_threads(1)
    ranks, poisoned = connect(), 0
    for name in ("clean", "noisy"):
        with StopSignals() as signals:
            settings = config(3, "bf16", global_batch_size=12)
            trainer = build_run(settings, str(data), folder / name, ranks, signals)
            optimizer = trainer.engine.optimizer
            for parameter in trainer.engine.module.parameters() if name == "noisy" else ():
                index, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
                end = max(0, min(length, parameter.ds_numel - ranks.rank * length))
                parameter.ds_tensor.data[end:] = float("nan")
                optimizer.fp32_partitioned_groups_flat[index].data[offset + end : offset + length] = float("nan")
                poisoned += length - end
            assert trainer.train() == 0
    disconnect()
    return poisoned


@pytest.mark.slow
def test_noise_in_padding_hurts_neither_training_nor_checkpoints(tiny_dataset: Path, tmp_path: Path) -> None:
    poisoned = run_distributed_test(train_with_noise_in_padding, 3, tiny_dataset, tmp_path)
    assert poisoned[2] > 0
    assert losses(tmp_path / "noisy") == losses(tmp_path / "clean")
    assert [path.name for path in committed(tmp_path / "noisy")] == ["step-00000004", "step-00000002"]
