"""DeepSpeed files: "auto" is filled, contradictions are errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.logged import warns
from trelm_ds.config import Config, OptimizerConfig, TrainerConfig
from trelm_ds.engine.ds_config import resolve_ds_config, sequences_per_rank
from trelm_ds.errors import UserError


def config(path: Path | str, **trainer: object) -> Config:
    return Config(
        trainer=TrainerConfig(ds_config=str(path), **{"global_batch_size": 64, "micro_batch_tokens": 512} | trainer),  # type: ignore[arg-type]
        optimizer=OptimizerConfig(max_grad_norm=0.0),
    )


def test_the_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_ds_config(config("ds_configs/zero2.json"), 1)["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"train_micro_batch_size_per_gpu": 16},
            "'train_micro_batch_size_per_gpu' is 16, but trainer.micro_batch_tokens, which counts tokens, says 1",
        ),
        ({"bf16": {"enabled": False}}, "'bf16.enabled' is False, but trainer.precision says True"),
        (
            {"bf16": {"check_grad_overflow": False}},
            "'bf16.check_grad_overflow' is False, but this program, which never",
        ),
        (
            {"zero_optimization": {"stage": 1, "compute_grad_norm": False}},
            "'zero_optimization.compute_grad_norm' is False, but this program, which judges steps by it, says True",
        ),
        ({"bf16": 3}, "'bf16' must be an object"),
        ({"fp16": {"enabled": True}}, "'fp16' is not read from here; use trainer.precision"),
        (
            {"torch_autocast": {"enabled": True, "dtype": "float16"}},
            "'torch_autocast' is not read from here; use trainer",
        ),
        ({"amp": True}, "'amp' is not read from here; use trainer.precision"),
        ({"communication_data_type": "fp16"}, "'communication_data_type' must be one of fp32, bf16, got"),
        ({"data_types": {"grad_accum_dtype": "fp16"}}, "'data_types.grad_accum_dtype' must be one of fp32, bf16, got"),
        (
            {"data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": {"stage": 0}},
            "'data_types.grad_accum_dtype' is fp32, and under trainer.precision bf16 DeepSpeed keeps such sums under "
            "ZeRO 1, 2 and 3 only; set zero_optimization.stage to 1",
        ),
        ({"data_efficiency": {"enabled": True}}, "'data_efficiency' is not read from here; the order of samples"),
        ({"compile": {"deepcompile": True}}, "'compile' is not read from here; set trainer.compile in the run's"),
        ({"zero3": {"deep": True}}, "'zero3' is not among the settings that are known to work here"),
        ({"data_types": {"param_dtype": "fp32"}}, "'data_types.param_dtype' is fp32, but trainer.precision says bf16"),
        (
            {"zero_optimization": {"prefetch_bucket_size": 1}},
            "is unknown; did you mean 'zero_optimization.stage3_prefetch_bucket_size'?",
        ),
        ({"zero_optimisation": {"stage": 2}}, "'zero_optimisation' is unknown; did you mean 'zero_optimization'?"),
        ({"gradient_cliping": 1.0}, "'gradient_cliping' is unknown; did you mean 'gradient_clipping'?"),
        (
            {"zero_optimization": {"overlap_com": True}},
            "'zero_optimization.overlap_com' is unknown; did you mean 'zero_optimization.overlap_comm'?",
        ),
        (
            {"zero_optimization": {"contiguous_gradient": False}},
            "'zero_optimization.contiguous_gradient' is unknown; did you mean 'zero_optimization.contig",
        ),
        ({"bf16": {"enable": False}}, "'bf16.enable' is unknown; did you mean 'bf16.enabled'?"),
        ({"zero_optimisation": {"enabled": False, "stage": 3}}, "'zero_optimisation' is unknown; did you mean"),
        ({"zero_optimization.stage": 3}, "'zero_optimization.stage' is not a name; write it as a section: "),
        ({"bf16.enabled": True}, 'is not a name; write it as a section: "bf16": {"enabled": ...}'),
        ({"zero_optimization": {"elastic_checkpoint": True}}, "what it saves cannot be resumed"),
        ({"zero_optimization": {"reduce_bucket_size": "5e8"}}, 'must be a whole number of at least 1, got "5e8"'),
        ({"zero_optimization": {"reduce_bucket_size": -1}}, "must be a whole number of at least 1, got -1"),
        ({"zero_optimization": {"reduce_bucket_size": 2.5}}, "must be a whole number of at least 1, got 2.5"),
        ({"zero_optimization": {"reduce_bucket_size": 1e30}}, "must be a whole number of at least 1, got 1e+30"),
        ({"zero_optimization": {"overlap_comm": 1}}, "must be true or false, got 1"),
        ({"zero_optimization": {"stage": True}}, "'zero_optimization.stage' must be one of 0, 1, 2, 3, got true"),
        ({"zero_optimization": {"offload_optimizer": {"device": "tpu"}}}, 'must be one of none, cpu, got "tpu"'),
        (
            {"zero_optimization": {"offload_optimizer": ["cpu"]}},
            "'zero_optimization.offload_optimizer' must be an object",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"ratio": 0.5}}},
            "'zero_optimization.offload_optimizer.ratio' must be 1, got 0.5",
        ),
        ({"zero_optimization": {"offload_optimizer": {"device": "auto"}}}, 'device\' is "auto", but nothing'),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/local"}}},
            "'zero_optimization.offload_optimizer.device' is nvme",
        ),
        ({"zero_optimization": {"stage": 7}}, "'zero_optimization.stage' must be one of 0, 1, 2, 3, got 7"),
        ({"zero_optimization": []}, "'zero_optimization' must be an object"),
        ([], "expected an object"),
        ("{broken", "ds.json:1: not valid JSON"),
        ('{"train_batch_size": 64, "train_batch_size": 32}', "'train_batch_size' stands twice in one object"),
        ('{"train_batch_size": ' + "9" * 5000 + "}", "ds.json: not valid JSON: Exceeds the limit"),
        ("[" * 100_000, "ds.json: not valid JSON"),
    ],
)
def test_what_contradicts_is_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as error:
        resolve_ds_config(config(path), world_size=2)
    assert message in str(error.value)


def test_all_problems_are_told_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    content = {"fp16": {"enabled": True}, "bf16": {"enabled": False}, "zero_optimization": {"stage": 9, "stages": 1}}
    path.write_text(json.dumps(content, indent=1))
    with pytest.raises(UserError) as error:
        resolve_ds_config(config(path), world_size=2)
    told = str(error.value)
    assert told.startswith(f"{path}: 4 problems: line 2: 'fp16' is not read from here")
    for number, name in ((6, "bf16.enabled"), (9, "zero_optimization.stage"), (10, "zero_optimization.stages")):
        assert f"; line {number}: '{name}' " in told
    assert "\n" not in told


def test_habits_of_other_programs_are_fine(tmp_path: Path) -> None:
    """A file as Hugging Face's trainer takes it, saved on Windows."""
    path = tmp_path / "ds.json"
    auto = dict.fromkeys(("reduce_bucket_size", "stage3_prefetch_bucket_size"), "auto")
    off = {"fp16": {"enabled": "auto", "loss_scale": 0}, "tensorboard": {"enabled": False}, "sparse_gradients": False}
    zero = {"stage": 3, "sub_group_size": 1e9, "offload_optimizer": {"device": "none", "pin_memory": True}} | auto
    content = {"steps_per_print": 2000, "wall_clock_breakdown": False, "zero_optimization": zero, "amp": None} | off
    path.write_text(json.dumps(content), encoding="utf-8-sig")
    resolved = resolve_ds_config(config(path), 2)
    assert not {"fp16", "tensorboard", "sparse_gradients", "amp"} & set(resolved)
    assert resolved["steps_per_print"] > 2000
    assert resolved["zero_optimization"]["reduce_bucket_size"] == 50_000_000
    assert resolved["zero_optimization"]["sub_group_size"] == 1_000_000_000
    assert isinstance(resolved["zero_optimization"]["sub_group_size"], int)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("communication_data_type", {"communication_data_type": "bf16"}),
        ("data_types.grad_accum_dtype", {"data_types": {"grad_accum_dtype": "bf16"}}),
    ],
)
def test_sums_are_no_coarser_than_the_weights(tmp_path: Path, name: str, content: dict[str, object]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content | {"zero_optimization": {"stage": 0}}))
    assert resolve_ds_config(config(path), 2).items() >= content.items()
    with pytest.raises(UserError, match=f"'{name}' is bf16, but trainer.precision says fp32; set it to fp32 or leave"):
        resolve_ds_config(config(path, precision="fp32"), 2)


def test_sections_that_ask_for_nothing_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    off = {"partition_activations": False, "cpu_checkpointing": False, "number_checkpoints": None}
    path.write_text(json.dumps({"activation_checkpointing": off, "checkpoint": {"use_node_local_storage": False}}))
    assert not {"activation_checkpointing", "checkpoint"} & set(resolve_ds_config(config(path), 2))


@pytest.mark.parametrize(
    ("content", "precision", "message"),
    [
        ({"zero_optimization": {"stage": 1, "stage3_max_reuse_distance": 5}}, "fp32", "ZeRO 1 does not read it"),
        ({"zero_optimization": {"stage": 3, "round_robin_gradients": True}}, "fp32", "ZeRO 3 does not read it"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "fp32", "ZeRO 2 does not read it"),
        (
            {"zero_optimization": {"stage": 1, "overlap_comm": True}, "data_types": {"grad_accum_dtype": "fp32"}},
            "bf16",
            "ZeRO 1 with gradient sums in fp32 does not read it",
        ),
        ({"bf16": {"immediate_grad_update": True}}, "bf16", "only ZeRO 1 with gradient sums in fp32 reads it"),
        ({"timers": {"throughput": {"enabled": True}}}, "bf16", "trelm measures tokens per second itself"),
    ],
)
def test_what_is_not_read_is_told(tmp_path: Path, content: dict[str, object], precision: str, message: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    with warns(rf"ds.json:1: '.*' is not used: {message}"):
        resolve_ds_config(config(path, precision=precision), 2)


@pytest.mark.parametrize(
    "content",
    [
        {"zero_optimization": {"stage": 1, "overlap_comm": True}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"zero_optimization": {"stage": 0, "overlap_comm": False, "allgather_partitions": True}},
        {"zero_optimization": {"stage": 2, "offload_param": {"device": "none"}, "load_from_fp32_weights": True}},
        {"timers": {"throughput": {"enabled": False}}, "vocabulary_size": None, "disable_allgather": False},
    ],
)
def test_what_is_read_or_changes_nothing_is_no_matter(
    tmp_path: Path, content: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(content))
    resolve_ds_config(config(path, precision="fp32"), 2)
    assert not caplog.records


def test_agreeing_values_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"train_batch_size": 64, "bf16": {"enabled": True}, "gradient_clipping": 0}))
    assert resolve_ds_config(config(path), 2)["train_batch_size"] == 64


def test_a_missing_file_is_named() -> None:
    with pytest.raises(
        UserError, match=r"zero9.json does not exist; those in ds_configs/ are zero0.json, zero1.json, "
    ):
        resolve_ds_config(config("ds_configs/zero9.json"), 1)


@pytest.mark.parametrize(("world_size", "expected"), [(1, 64), (2, 32), (64, 1)])
def test_sequences_per_rank(world_size: int, expected: int) -> None:
    assert sequences_per_rank(config("x"), world_size) == expected


@pytest.mark.parametrize("world_size", [3, 128])
def test_a_batch_that_does_not_divide_is_refused(world_size: int) -> None:
    with pytest.raises(UserError, match=rf"64 is no multiple of {world_size} ranks"):
        sequences_per_rank(config("x"), world_size)
