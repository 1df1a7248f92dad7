"""Runs that are saved by some ranks and continued by others: which are tried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.training import test_pretrain as plain
from tests.training import test_routing as routed
from tests.training.test_pretrain import without_dropout
from trelm_ds.config import Config

STEPS, SAVED_AT = 14, 4
MODELS: dict[str, Callable[..., Config]] = {
    "trelm": routed.config,
    "ffn_only": lambda *sizes, **trainer: routed.config(
        *sizes, routing={"trainable": "ffn_only", "top_layers": 1}, **trainer
    ),
    "mlm": plain.config,
    "round robin": routed.config,
    "round robin, then not": routed.config,
    "aligned": routed.config,
    "fp32 sums": routed.config,
    "fp32 sums, then not": routed.config,
    "not, then fp32 sums": routed.config,
}
DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
ROUND_ROBIN, ALIGNED, FP32_SUMS = "round_robin.json", "aligned.json", "ds_configs/zero1_fp32_sums.json"


class Case(NamedTuple):
    """A run that `ranks` save, and the ZeRO stage under which it goes on."""

    ranks: int
    stage: int
    then: int
    model: str = "trelm"
    precision: str = "fp32"
    degree: int = 1
    then_degree: int = 1

    @property
    def run(self) -> str:
        return f"{self.model}-{self.precision}-zero{self.stage}-{self.ranks}-{self.degree}"

    @property
    def continued(self) -> str:
        return f"{self.run}-zero{self.then}-{self.then_degree}"

    def config(self, stage: int, folder: Path, saves: bool = True) -> Config:
        """Under a ZeRO stage, for those that save or those that go on; `folder` holds a DeepSpeed file of our own."""
        settings = MODELS[self.model](
            stage,
            self.precision,
            max_steps=STEPS,
            checkpoint_every=SAVED_AT if saves else STEPS,
            keep_checkpoints=9,
            global_batch_size=12,
            micro_batch_tokens=160,
        )
        if stage == 2 and (self.model == "round robin" or (saves and self.model == "round robin, then not")):
            settings.trainer.ds_config = str(folder / ROUND_ROBIN)
        if self.model == "aligned":
            settings.trainer.ds_config = str(folder / ALIGNED)
        first, _, then = self.model.partition(", then ")
        if stage == 1 and (first if saves else then.removeprefix("not") or first) == "fp32 sums":
            settings.trainer.ds_config = FP32_SUMS
        if self.model == "trelm":
            settings.model.num_hidden_layers = 1
        settings.model.tensor_parallel = self.degree if saves else self.then_degree
        return without_dropout(settings)


def same_stage(ranks: int) -> list[Case]:
    return [Case(ranks, stage, stage) for stage in (range(4) if ranks < 4 else (1, 3))]


# By the ranks that go on.
CASES = {
    1: [
        *same_stage(1),
        *same_stage(2),
        *same_stage(4),
        *(Case(1, stage, then) for stage, then in ((0, 1), (1, 2), (2, 3), (3, 0), (0, 3), (3, 1))),
        Case(2, 1, 1, "fp32 sums", "bf16"),
        Case(2, 1, 1, "fp32 sums, then not", "bf16"),
        Case(2, 1, 1, "aligned", "bf16"),
    ],
    2: [
        *same_stage(1),
        *same_stage(2),
        *same_stage(4),
        Case(2, 1, 3),
        Case(2, 0, 2, precision="bf16"),
        Case(2, 2, 2, "round robin, then not"),
        Case(1, 1, 1, "fp32 sums", "bf16"),
        Case(2, 1, 1, "not, then fp32 sums", "bf16"),
    ],
    3: [
        *same_stage(1),
        *same_stage(2),
        *same_stage(4),
        *(Case(2, stage, stage, "ffn_only") for stage in (0, 1, 3)),
        Case(2, 3, 1, "ffn_only"),
        *(Case(2, stage, stage, precision="bf16") for stage in range(4)),
        Case(2, 3, 0, precision="bf16"),
        Case(2, 1, 2, "mlm"),
        Case(2, 2, 2, "round robin"),
        Case(2, 2, 3, "round robin"),
        Case(2, 1, 1, "fp32 sums", "bf16"),
        Case(2, 1, 3, "fp32 sums", "bf16"),
    ],
    4: [*same_stage(2), Case(4, 3, 3), Case(2, 3, 3, "ffn_only"), Case(2, 1, 0, "mlm")],
}


def shared(ranks: int, degree: int, stage: int, then_degree: int, then: int | None = None, **what: str) -> Case:
    """Saved by `degree` ranks to a model, continued by `then_degree`."""
    return Case(ranks, stage, stage if then is None else then, degree=degree, then_degree=then_degree, **what)


# Tensor parallelism: saved by (data-parallel, tensor-parallel) ranks (2, 1), (1, 2), (2, 2), continued by any other. By
# the ranks that go on, and how many of them share a model: DeepSpeed knows one number in a process.
SHARED = {
    (1, 1): [
        shared(2, 2, 0, 1),
        shared(2, 2, 1, 1, 3),
        shared(2, 2, 1, 1, precision="bf16", model="fp32 sums"),
        shared(4, 2, 2, 1),
        shared(4, 2, 3, 1, 0),
    ],
    (2, 1): [shared(2, 2, 0, 1), shared(4, 2, 3, 1)],
    (2, 2): [
        shared(2, 1, 1, 2),
        shared(2, 1, 3, 2),
        shared(4, 2, 2, 2),
        shared(2, 2, 1, 2, precision="bf16"),
        shared(2, 2, 1, 2, precision="bf16", model="fp32 sums"),
        shared(2, 2, 1, 2, model="ffn_only"),
    ],
    (4, 1): [shared(2, 2, 1, 1), shared(4, 2, 2, 1)],
    (4, 2): [shared(2, 1, 2, 2), shared(2, 2, 3, 2), *(shared(4, 2, stage, 2) for stage in (2, 3))],
}
