"""What `trelm vectors train` was asked for, and which of it decides the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.files import sha256_of
from trelm_ds.kg_embedding.scores import METHODS, Method

SCHEMA = 1  # of the computation: other numbers give other vectors from equal settings


@dataclass(frozen=True)
class VectorOptions:
    """Settings of a training of vectors. Fields that are None take the method's defaults.

    Attributes:
        dataset: folder of `trelm prepare`.
        out: .safetensors file to write.
        work: folder of checkpoints; removed when `out` is written.
        metrics: JSON file for the metrics, or None.
        method: key of METHODS.
        dim: D, numbers in a vector.
        epochs: passes over the training triples; the last may be a part of one.
        batch_size, chunk_size, negatives: positives in a step over all ranks; positives that share negatives; those.
        lr: learning rate of row-wise Adagrad; it falls linearly to `final_lr` times this.
        margin, temperature, regularization, norm: see `Objective` and `Method`.
        seed: of everything random.
        valid_share, test_share, valid, test: triples to hold out, a share or a file each.
        eval_triples: most triples in an evaluation; None for all at the end, and 1,000 before.
        eval_every: epochs between evaluations with the valid triples; 0 for none before the end.
        checkpoint_minutes: minutes between checkpoints.
    """

    dataset: Path
    out: Path
    work: Path
    metrics: Path | None = None
    method: str = "transe"
    dim: int = 256
    epochs: float = 30.0
    batch_size: int = 4096
    chunk_size: int = 256
    negatives: int = 256
    lr: float | None = None
    final_lr: float = 0.0
    margin: float | None = None
    temperature: float = 1.0
    regularization: float | None = None
    norm: int = 2
    seed: int = 0
    valid_share: float = 0.0
    test_share: float = 0.0
    valid: Path | None = None
    test: Path | None = None
    eval_triples: int | None = None
    eval_every: float = 10.0
    checkpoint_minutes: float = 10.0

    def check(self) -> None:
        """Raise a `UserError` that names the first setting that is out of range or does not fit the others."""
        kind = METHODS[self.method]
        for name in ("dim", "batch_size", "chunk_size", "negatives", "eval_triples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{_flag(name)}: must be at least 1, got {value}")
        for name in ("epochs", "lr", "checkpoint_minutes"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise UserError(f"{_flag(name)}: must be greater than 0, got {value:g}")
        for name in ("margin", "temperature", "regularization", "eval_every", "seed"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise UserError(f"{_flag(name)}: must not be negative, got {value:g}")
        for name in ("valid_share", "test_share", "final_lr"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"{_flag(name)}: must lie between 0 and 1, got {value:g}")
        if kind.needs_even and self.dim % 2:
            raise UserError(
                f"--dim: {self.method} has complex numbers, two reals each: give an even one, not {self.dim}"
            )
        if not kind.is_distance and (self.margin is not None or self.norm != 2):
            raise UserError(f"--margin, --norm: {self.method} has neither; leave them out")
        if self.batch_size % self.chunk_size:
            raise UserError(
                f"--batch-size: {self.batch_size} must be a multiple of --chunk-size, which is {self.chunk_size}"
            )
        self._check_held_out()
        if self.out.suffix != ".safetensors":
            raise UserError(f"--out: give a file that ends in .safetensors, not {self.out}")

    def _check_held_out(self) -> None:
        if self.valid_share + self.test_share > 0.5:
            raise UserError("--valid-share, --test-share: hold out more than half of the triples; give less")
        for name in ("valid", "test"):
            if getattr(self, name) is not None and getattr(self, f"{name}_share"):
                raise UserError(f"--{name}: goes without --{name}-share; leave one out")

    @property
    def resolved_lr(self) -> float:
        return METHODS[self.method].lr if self.lr is None else self.lr

    @property
    def resolved_margin(self) -> float:
        return METHODS[self.method].margin if self.margin is None else self.margin

    @property
    def resolved_regularization(self) -> float:
        return METHODS[self.method].regularization if self.regularization is None else self.regularization

    def make_method(self) -> Method:
        return METHODS[self.method](self.norm)

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """Return all that decides the result, by the name of its option: a continuation must agree in it.

        Args:
            fingerprint: of the dataset.

        Raises:
            OSError: a file of triples cannot be read.
        """
        names = ("method", "dim", "epochs", "batch_size", "chunk_size", "negatives", "final_lr", "temperature")
        settings = {name: getattr(self, name) for name in names}
        settings |= {"norm": self.norm, "seed": self.seed, "eval_triples": self.eval_triples}
        settings |= {"eval_every": self.eval_every, "valid_share": self.valid_share, "test_share": self.test_share}
        settings |= {"lr": self.resolved_lr, "margin": self.resolved_margin}
        settings |= {"regularization": self.resolved_regularization}
        settings |= {
            name: None if (path := getattr(self, name)) is None else sha256_of(path) for name in ("valid", "test")
        }
        return settings | {"dataset": fingerprint, "schema": SCHEMA}


def check_same(made: dict[str, Any], asked: dict[str, Any], where: str) -> None:
    """Compare two identities.

    Raises:
        UserError: they differ; names the first setting that does, and `where` the other one is.
    """
    for name in asked:
        if made.get(name) != asked[name]:
            if name in ("dataset", "valid", "test", "schema"):
                what = {"dataset": "another dataset", "schema": "another version of this program"}.get(
                    name, f"another content of --{name}"
                )
                raise UserError(f"{where}: made with {what}; remove it, or choose another")
            raise UserError(
                f"{where}: made with {_flag(name)} {made.get(name)}, now {asked[name]}; remove it, or choose another"
            )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
