"""What a run is built of: which components it has, and what they tell its journal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import test_knowledge as knowledge
from tests.training import test_routing as routed
from tests.training.test_pretrain import config
from trelm_ds.batches import Step
from trelm_ds.checkpoints import CheckpointInfo, versions
from trelm_ds.config import Config, ModelConfig
from trelm_ds.distributed import Ranks
from trelm_ds.errors import UserError
from trelm_ds.model import Batch, ModelOutput
from trelm_ds.shards import Manifest
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run, check_device
from trelm_ds.training.component import Component
from trelm_ds.training.guards import Guard
from trelm_ds.training.journal import Journal
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.routing import Routing
from trelm_ds.training.speed import Speed
from trelm_ds.training.trainer import Trainer


def built(settings: Config, data: Path, run: Path, ranks: Ranks) -> Trainer:
    """A run before its first step, which gives its folder back."""
    with StopSignals() as signals:
        trainer = build_run(settings, str(data), run, ranks, signals)
    trainer.held.close()
    return trainer


def kinds(trainer: Trainer) -> list[type]:
    return [type(part) for part in trainer.components]


def test_a_run_has_the_components_that_its_settings_ask_for(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    plain = built(config(), tiny_dataset, tmp_path / "plain", one_rank)
    assert kinds(plain) == [Guard, Speed, Journal]
    assert plain.guard is plain.components[0]
    with pytest.raises(LookupError):
        plain.component(Knowledge)
    assert plain.weights == {"mlm": 1.0}
    assert list(plain.engine.module.objectives) == []
    unrouted = built(knowledge.config(), tiny_dataset, tmp_path / "unrouted", one_rank)
    assert kinds(unrouted) == [Guard, Knowledge, Speed, Journal]
    weight = knowledge.config().cka.mlm_weight
    assert unrouted.weights == {"mlm": weight, "cka": 1 - weight}
    trelm = built(routed.config(), tiny_dataset, tmp_path / "trelm", one_rank)
    assert kinds(trelm) == [Guard, Knowledge, Routing, Speed, Journal]
    assert trelm.component(Routing) is trelm.components[2]
    off = routed.config(routing={"enabled": False})
    assert kinds(built(off, tiny_dataset, tmp_path / "off", one_rank)) == [Guard, Knowledge, Speed, Journal]


def test_the_folder_is_free_again_where_a_run_cannot_be_built(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("trelm_ds.training.build.build_engine", fails)
    with pytest.raises(RuntimeError, match="no memory"):
        built(config(), tiny_dataset, tmp_path / "run", one_rank)
    monkeypatch.undo()
    built(config(), tiny_dataset, tmp_path / "run", one_rank)


def test_what_the_journal_is_told(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameters that the configuration does not hold, and a line for each topic."""
    told: dict[str, Any] = {}

    class Noted(Journal):
        def __init__(self, **given: Any) -> None:
            told.update(given)
            super().__init__(**given)

    monkeypatch.setattr("trelm_ds.training.build.Journal", Noted)
    built(config(2), tiny_dataset, tmp_path / "plain", one_rank)
    expected = {
        "dataset.place": str(tiny_dataset),
        "dataset.fingerprint": Manifest.load(tiny_dataset).fingerprint,
        "world_size": 1,
        "zero_stage": 2,
    } | {f"versions.{name}": version for name, version in versions().items()}
    assert told["parameters"] == expected
    assert told["notes"] == []
    assert (told["steps_done"], told["mlflow_key"]) == (0, "")
    trainer = built(routed.config(2), tiny_dataset, tmp_path / "trelm", one_rank)
    part = trainer.component(Knowledge)
    assert part.bank is not None
    assert part.vectors is not None
    sizes = {
        **trainer.steps.annotator.index.describe(),  # type: ignore[union-attr]
        "bytes of vectors on this rank": part.vectors.bytes,
        "bytes of memory on this rank": part.bank.bytes,
    }
    assert told["parameters"] == expected | {f"knowledge.{name}": size for name, size in sizes.items()}
    assert told["notes"] == [
        "knowledge: " + ", ".join(f"{size:,} {name}" for name, size in sizes.items()),
        "selection: all entities by frequency alone, without scores of importance",
        "routing: 0.25 of 2 x 48 neurons are updated, chosen every 2 steps by 0.5 of the facts",
    ]


def test_a_component_that_overrides_nothing_does_nothing(tmp_path: Path) -> None:
    part = Component()
    batch = Batch.of_documents(torch.tensor([2, 3]), torch.tensor([0, 2], dtype=torch.int32), 2)
    output = ModelOutput(losses={}, correct={}, states=torch.zeros(2, 4))
    called = [
        part.start(),
        part.load(tmp_path, CheckpointInfo(1, 1, 1, {}, {})),
        part.begin(),
        part.refresh(),
        part.before_read(0),
        part.before_step(Step.empty(), 0),
        part.after_micro_batch(batch, output),
        part.log(1, {"loss": 1.0}),
        part.end(1, 0, failed=True),
        part.capture(),
    ]
    assert called == [None] * 10
    assert part.refresh_due(7) is False
    empty = [part.model_inputs(), part.after_step(True), part.manifest(), part.metrics(1.0), part.describe()]
    assert [*empty, part.parameters()] == [{}] * 6


def test_a_component_of_ones_own_is_called_in_every_step(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """Every hook of the protocol, in order, with what it stands for."""
    calls: list[tuple[Any, ...]] = []

    class Watching(Component):
        def begin(self) -> None:
            calls.append(("begin",))

        def refresh_due(self, number: int) -> bool:
            return number == 1

        def refresh(self) -> None:
            calls.append(("refresh",))

        def before_read(self, number: int) -> None:
            calls.append(("read", number))

        def before_step(self, step: Step, number: int) -> None:
            calls.append(("before", number, len(step.micro_batches) > 0))

        def after_micro_batch(self, batch: Batch, output: ModelOutput) -> None:
            assert list(output.losses) == ["mlm"]
            assert output.states.shape == (len(batch.input_ids), 32)

        def after_step(self, taken: bool) -> dict[str, int | torch.Tensor]:
            calls.append(("after", taken))
            return {}

        def manifest(self) -> dict[str, Any]:
            calls.append(("manifest",))
            return {}

        def metrics(self, seconds: float) -> dict[str, float]:
            assert seconds > 0
            return {"watched": 7.0}

        def log(self, number: int, metrics: dict[str, float]) -> None:
            calls.append(("log", number, metrics["watched"]))

        def end(self, number: int, stop: int, failed: bool) -> None:
            calls.append(("end", number, stop, failed))

    settings = config(1, max_steps=2)
    settings = replace(settings, trainer=replace(settings.trainer, log_every=2))
    with StopSignals() as signals:
        trainer = build_run(settings, str(tiny_dataset), tmp_path / "run", one_rank, signals)
        trainer.components.insert(1, Watching())
        assert trainer.train() == 0
    assert calls == [
        ("begin",),
        ("read", 0),
        ("before", 0, True),
        ("after", True),
        ("read", 1),
        ("refresh",),
        ("before", 1, True),
        ("after", True),
        ("log", 2, 7.0),
        ("manifest",),
        ("end", 2, 0, False),
    ]


def test_a_gpu_without_bf16_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half = torch.device("cuda", 0), Config()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(UserError, match=r"^trainer.precision: bf16 needs .* 8.0 .* Tesla T4 has 7.5; set fp32$"):
        check_device(half, gpu)
    check_device(replace(half, trainer=replace(half.trainer, precision="fp32")), gpu)
    check_device(half, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_device(half, gpu)


def test_sequence_parallelism_needs_gpus() -> None:
    settings = Config(model=ModelConfig(tensor_parallel=2, sequence_parallel=True))
    with pytest.raises(UserError, match=r"^model\.sequence_parallel: needs GPUs, .*; set false$"):
        check_device(settings, torch.device("cpu"))
