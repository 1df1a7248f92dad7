"""Every DeepSpeed setting that is allowed, in runs that train, stop and continue; DeepSpeed's own refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed_test
from tests.training.test_pretrain import config, continued, losses, train, without_dropout
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.engine import ds_keys, resolve_ds_config
from trelm_ds.engine.build import build_engine
from trelm_ds.errors import UserError

BUCKETS = {"reduce_bucket_size": 2e3, "allgather_bucket_size": 2000}
CPU = {"device": "cpu", "pin_memory": False}
FILES: dict[str, dict[str, Any]] = {
    "timers": {
        "wall_clock_breakdown": True,
        "gradient_predivide_factor": 1.0,
        "gradient_allreduce_op": "mean",
        "managed_gradient_accumulation": True,
    },
    "1, small buckets": {
        "zero_optimization": {
            "stage": 1,
            "overlap_comm": True,
            "round_robin_gradients": True,
            "parameter_alignment": True,
        }
        | BUCKETS
    },
    "1, no scatter": {
        "zero_optimization": {
            "stage": 1,
            "reduce_scatter": False,
            "contiguous_gradients": False,
            "ignore_unused_parameters": False,
        }
    },
    "2, small buckets": {
        "zero_optimization": {"stage": 2, "contiguous_gradients": True, "use_multi_rank_bucket_allreduce": False}
        | BUCKETS
    },
    "2, offloaded": {"zero_optimization": {"stage": 2, "overlap_comm": False, "offload_optimizer": CPU}},
    "3, small": {
        "zero_optimization": {
            "stage": 3,
            "sub_group_size": 3000,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            "stage3_model_persistence_threshold": 0,
            "stage3_max_live_parameters": 1000,
            "stage3_max_reuse_distance": 1000,
            "log_trace_cache_warnings": True,
            "enable_sanity_checks": True,
            "zero_hpz_partition_size": 1,
        }
    },
    "3, offloaded": {
        "zero_optimization": {
            "stage": 3,
            "offload_optimizer": CPU | {"ratio": 1.0},
            "offload_param": CPU,
            "memory_efficient_linear": False,
            "stage3_allgather_sequential": True,
            "stage3_use_all_reduce_for_fetch_params": True,
            "stage3_param_persistence_threshold": 0,
        }
    },
}
SUMS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
IN_BF16: dict[str, dict[str, Any]] = {
    "1, sums": {"zero_optimization": {"stage": 1}, "bf16": {"immediate_grad_update": False}} | SUMS,
    "1, sums at once": {"zero_optimization": {"stage": 1}, "bf16": {"immediate_grad_update": True}} | SUMS,
    "1, sums, offloaded": {"zero_optimization": {"stage": 1, "offload_optimizer": CPU}} | SUMS,
    "2, sums": {"zero_optimization": {"stage": 2}}
    | SUMS
    | {"data_types": {"grad_accum_dtype": "fp32", "param_dtype": "bf16"}},
    "3, sums": {"zero_optimization": {"stage": 3}} | SUMS,
    "3, sums, offloaded": {"zero_optimization": {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}} | SUMS,
}


def settings(file: Path, precision: str = "fp32") -> Config:
    changed = without_dropout(config(micro_batch_tokens=80, precision=precision))
    changed.trainer.ds_config = str(file)
    return changed


def train_with_each(names: list[str], precision: str, folder: Path, data: Path) -> None:
    ranks = connect()
    try:
        for name in names:
            continued(settings(folder / f"{name}.json", precision), data, folder / name / "run", ranks)
    finally:
        disconnect()


@pytest.mark.slow
@pytest.mark.parametrize(("files", "precision", "tolerance"), [(FILES, "fp32", 1e-5), (IN_BF16, "bf16", 1e-6)])
def test_every_setting_trains_and_continues(
    files: dict[str, dict[str, Any]], precision: str, tolerance: float, tiny_dataset: Path, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    run_distributed_test(train_with_each, 2, list(files), precision, tmp_path, tiny_dataset)
    first = losses(tmp_path / next(iter(files)) / "run")
    assert len(first) == 4
    for name in files:
        assert losses(tmp_path / name / "run") == pytest.approx(first, rel=tolerance), name
        assert losses(tmp_path / name / "continued") == losses(tmp_path / name / "run"), name


def test_no_setting_is_allowed_that_is_not_tried() -> None:
    def names(content: dict[str, Any], prefix: str = "") -> set[str]:
        inner = [names(value, f"{prefix}{key}.") for key, value in content.items() if isinstance(value, dict)]
        return {f"{prefix}{key}" for key in content}.union(*inner)

    tried = set.union(*map(names, [*FILES.values(), *IN_BF16.values()]))
    assert set(ds_keys.RULES) <= tried


def test_deepspeed_does_not_wait_for_the_device(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its timer would do so twice a micro-batch from the third step on."""
    from deepspeed.accelerator import get_accelerator

    waits: list[int] = []
    monkeypatch.setattr(get_accelerator(), "synchronize", lambda *_: waits.append(1))
    train(config(1, "fp32"), tiny_dataset, tmp_path / "run", one_rank)
    assert not waits


def test_what_deepspeed_refuses_is_one_line(one_rank: Ranks, tmp_path: Path) -> None:
    """What the rules let through and a version of DeepSpeed does not."""
    import torch

    (file := tmp_path / "ds.json").write_text("{}")
    resolved = resolve_ds_config(settings(file), 1)
    resolved["zero_optimization"]["stage"] = "high"
    with pytest.raises(UserError, match=r"ds.json: DeepSpeed refuses it: .*stage") as error:
        build_engine(torch.nn.Linear(2, 2), settings(file), resolved, one_rank)
    assert "\n" not in str(error.value)
