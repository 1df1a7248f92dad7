"""What is measured between two log points."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from trelm_ds.distributed import Ranks
from trelm_ds.model import Batch, ModelOutput

# Counts that `summary` has a name of their own for, or that enter into others.
_KNOWN = {
    "tokens",
    "sequences",
    "steps",
    "corrupted",
    "mentions",
    "injected",
    "words",
    "facts",
    "query tokens",
    "looked up",
    "hits",
    "memory rows",
}


class Window:
    """Sums of this rank since the last log point; the losses' stay on the device, where adding does not wait."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, batch: Batch, output: ModelOutput) -> None:
        """Count a micro-batch."""
        for kind, values in (("loss", output.losses), ("correct", output.correct)):
            self.count({f"{name}_{kind}": value.detach().double() for name, value in values.items()})
        self.count({f"{name}_targets": count for name, count in batch.targets.items()})
        self.count({"tokens": len(batch.input_ids), "sequences": batch.n_sequences})

    def absorb(self, step: Window, taken: bool) -> None:
        """Add a step's sums; of a skipped step only tokens and sequences."""
        if taken:
            self.count(step._sums | dict(step.counts))
        else:
            self.count({name: step.counts[name] for name in ("tokens", "sequences")})

    def count(self, numbers: Mapping[str, int | Tensor]) -> None:
        """Add to the counts."""
        for name, number in numbers.items():
            if isinstance(number, Tensor):
                self._sums[name] = self._sums.get(name, 0) + number
            else:
                self.counts[name] += number

    def totals(self, ranks: Ranks) -> dict[str, float]:
        """Sum everything over all ranks; collective. A name that no rank has counted is not there."""
        own = {name: float(value) for name, value in self._sums.items()} | dict(self.counts)
        totals: dict[str, float] = {}
        for counted in ranks.gather(own):
            for name, value in counted.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals


def summary(totals: dict[str, float], weights: dict[str, float], seconds: float) -> dict[str, float]:
    """Make the metrics of a window: means over all ranks' targets, shares, rates.

    Args:
        totals: of `Window.totals`.
        weights: of the objectives in the loss, "mlm" first.
        seconds: of training in the window.
    """
    of = Counter(totals)
    means = {name: of[f"{name}_loss"] / max(1.0, of[f"{name}_targets"]) for name in weights}
    if not of["mlm_targets"]:
        means["mlm"] = math.nan  # no step was taken
    sequences = max(1.0, of["sequences"])
    metrics = {
        "loss": sum(weight * means[name] for name, weight in weights.items()),
        "mlm_loss": means["mlm"],
        "accuracy": of["mlm_correct"] / max(1.0, of["mlm_targets"]),
        "tokens_per_s": of["tokens"] / seconds,
        "sequences_per_s": of["sequences"] / seconds,
        "corrupted_samples": of["corrupted"],
    }
    for name in weights:
        if name != "mlm" and f"{name}_loss" in totals:
            metrics[f"{name}_loss"] = means[name]
            if f"{name}_correct" in totals:
                metrics[f"{name}_accuracy"] = of[f"{name}_correct"] / max(1.0, of[f"{name}_targets"])
    if "cka_loss" in totals:
        metrics |= {"facts_per_sequence": of["facts"] / sequences}
        metrics |= {"query_token_share": of["query tokens"] / max(1.0, of["tokens"])}
    if "mentions" in totals:
        metrics |= {"mentions_per_sequence": of["mentions"] / sequences}
        metrics |= {"injected_per_sequence": of["injected"] / sequences}
    for name in totals.keys() - _KNOWN:  # of collators and components that are added
        if not name.endswith(("_loss", "_correct", "_targets")):
            metrics[f"{name.replace(' ', '_')}_per_step"] = of[name] / max(1.0, of["steps"])
    if of["looked up"]:
        metrics |= {"memory_rows": of["memory rows"] / max(1.0, of["steps"])}
        metrics |= {"memory_hit_rate": of["hits"] / of["looked up"]}
    return metrics
