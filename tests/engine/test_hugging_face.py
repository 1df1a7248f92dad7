"""DeepSpeed files as Hugging Face's trainer documents them: taken where they agree with the run, else told apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.logged import warns
from trelm_ds.config import Config, OptimizerConfig, TrainerConfig
from trelm_ds.engine.ds_config import resolve_ds_config
from trelm_ds.errors import UserError

FP16 = {
    "enabled": "auto",
    "loss_scale": 0,
    "loss_scale_window": 1000,
    "initial_scale_power": 16,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
ADAMW = {"type": "AdamW", "params": dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")}
WARMUP = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto")
LINEAR = {"type": "WarmupDecayLR", "params": WARMUP | {"total_num_steps": "auto"}}
CPU = {"device": "cpu", "pin_memory": True}
REST = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "wall_clock_breakdown": False,
}
ZERO2 = {
    "fp16": FP16,
    "bf16": {"enabled": "auto"},
    "optimizer": ADAMW,
    "scheduler": {"type": "WarmupLR", "params": WARMUP},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": CPU,
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
} | REST
ZERO3 = {
    "fp16": FP16,
    "bf16": {"enabled": "auto"},
    "optimizer": ADAMW,
    "scheduler": LINEAR,
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": CPU,
        "offload_param": CPU,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
} | REST


def config(path: Path, schedule: str = "linear", precision: str = "bf16") -> Config:
    return Config(
        trainer=TrainerConfig(ds_config=str(path), global_batch_size=64, max_steps=9000, precision=precision),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(lr=3e-4, warmup_steps=500, schedule=schedule),  # type: ignore[arg-type]
    )


def resolved(folder: Path, content: dict[str, Any], **run: str) -> dict[str, Any]:
    path = folder / "ds.json"
    path.write_text(json.dumps(content, indent=2))
    return resolve_ds_config(config(path, **run), world_size=2)


def refusal(folder: Path, content: dict[str, Any], **run: str) -> str:
    with pytest.raises(UserError) as error:
        resolved(folder, content, **run)
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"{folder / 'ds.json'}:").strip()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(("content", "schedule"), [(ZERO2, "constant"), (ZERO3, "linear")])
def test_a_file_that_leaves_everything_open_is_taken(
    content: dict[str, Any], schedule: str, precision: str, tmp_path: Path
) -> None:
    with warns(r"ds.json: [23] settings: .*'steps_per_print' is not used: trelm logs every trainer.log_every steps"):
        found = resolved(tmp_path, content, schedule=schedule, precision=precision)
    assert not {"optimizer", "scheduler", "fp16"} & found.keys()
    assert "auto" not in json.dumps(found)
    assert found["bf16"]["enabled"] == (precision == "bf16")
    assert found["zero_optimization"]["stage"] == content["zero_optimization"]["stage"]
    assert found["zero_optimization"]["offload_optimizer"] == CPU


def test_what_decides_nothing_is_told_with_its_line(tmp_path: Path) -> None:
    with warns(
        r"ds.json: 3 settings: line 17: 'scheduler' has no warmup_type: its warm-up is linear here and in .*; "
        r"line 36: 'zero_optimization.stage3_gather_16bit_weights_on_model_save' is not used: `trelm export` .*; "
        r"line 40: 'steps_per_print' is not used"
    ):
        resolved(tmp_path, ZERO3 | {"fp16": {"enabled": False}, "zero_optimization": small(ZERO3)})


def small(content: dict[str, Any]) -> dict[str, Any]:
    zero = content["zero_optimization"]
    return {name: value for name, value in zero.items() if not isinstance(value, dict)}


def test_values_that_agree_are_taken(tmp_path: Path) -> None:
    params = {"lr": 3e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.01, "torch_adam": True}
    linear = {"warmup_min_lr": 0, "warmup_max_lr": 3e-4, "warmup_num_steps": 500, "total_num_steps": 9000}
    agreeing = {
        "optimizer": {"type": "AdamW", "params": params | {"adam_w_mode": True}},
        "scheduler": {"type": "WarmupDecayLR", "params": linear | {"warmup_type": "linear"}},
        "train_batch_size": 64,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
    }
    found = resolved(tmp_path, ZERO3 | agreeing)
    assert found == resolved(tmp_path, ZERO3)


@pytest.mark.parametrize("empty", [None, {}, {"params": {}}, {"params": None}])
@pytest.mark.parametrize("name", ["optimizer", "scheduler"])
def test_an_empty_section_says_nothing(name: str, empty: Any, tmp_path: Path) -> None:
    assert name not in resolved(tmp_path, {name: empty})


OURS = "delete 'optimizer', optimizer.* of the run's configuration decide"
SCHEDULE = "delete 'scheduler', optimizer.schedule and optimizer.warmup_steps of the run's configuration decide"


@pytest.mark.parametrize(
    ("section", "change", "line", "told"),
    [
        ("optimizer", {"type": "Adam"}, 14, f"'optimizer.type' is Adam, but trelm trains with AdamW; {OURS}"),
        ("optimizer", {"type": ["AdamW"]}, 14, "'optimizer.type' is ['AdamW'], but trelm trains with AdamW; "),
        (
            "optimizer.params",
            {"lr": 1e-3},
            16,
            f'is 0.001, but optimizer.lr says 0.0003; set it to "auto", make them agree, or {OURS}',
        ),
        ("optimizer.params", {"betas": [0.9, 0.999]}, 17, "is [0.9, 0.999], but optimizer.betas says [0.9, 0.98]; "),
        ("optimizer.params", {"adam_w_mode": False}, 20, "is False, but trelm's AdamW says True; "),
        ("optimizer.params", {"freeze_step": 400}, 20, f"'optimizer.params.freeze_step' is not known here; {OURS}"),
        ("optimizer", {"params": [1]}, 13, f"'optimizer' must be an object with type and params; {OURS}"),
        ("optimizer", {"legacy_fusion": True}, 21, f"'optimizer.legacy_fusion' is not known here; {OURS}"),
        (
            "scheduler",
            {"type": "WarmupLR"},
            23,
            "'scheduler.type' is WarmupLR, which is optimizer.schedule constant, but the run has linear; " + SCHEDULE,
        ),
        (
            "scheduler",
            {"type": "OneCycle"},
            23,
            "is OneCycle, which is no optimizer.schedule, but the run has linear; ",
        ),
        ("scheduler.params", {"warmup_num_steps": 100}, 27, "is 100, but optimizer.warmup_steps says 500; "),
        ("scheduler.params", {"total_num_steps": 100}, 28, "is 100, but trainer.max_steps says 9000; "),
        ("scheduler.params", {"warmup_type": "log"}, 29, "is log, but trelm's warm-up says linear; "),
        ("scheduler.params", {"warmup_min_lr": 1e-5}, 25, "is 1e-05, but trelm's warm-up says 0; "),
    ],
)
def test_what_disagrees_is_told_with_its_line(
    section: str, change: dict[str, Any], line: int, told: str, tmp_path: Path
) -> None:
    content = copy.deepcopy(ZERO3)
    place: Any = content
    for name in section.split("."):
        place = place[name]
    place |= change
    found = refusal(tmp_path, content)
    assert found.startswith(f"{line}: '{section}")
    assert told in found


def test_the_documented_zero2_file_under_another_schedule(tmp_path: Path) -> None:
    """What most people meet first."""
    assert refusal(tmp_path, ZERO2).startswith("23: 'scheduler.type' is WarmupLR, which is optimizer.schedule constant")
    assert resolved(tmp_path, {name: value for name, value in ZERO2.items() if name != "scheduler"})


def test_all_that_disagrees_is_told_at_once(tmp_path: Path) -> None:
    wrong = {"optimizer": {"type": "AdamW", "params": {"lr": 1.0, "eps": 1.0}}, "fp16": {"enabled": True}}
    found = refusal(tmp_path, ZERO3 | wrong)
    assert found.startswith("3 problems: line 2: 'fp16' is not read from here; use trainer.precision")
    assert "; line 11: 'optimizer.params.lr' is 1.0" in found
    assert "; line 12: 'optimizer.params.eps' is 1.0" in found
