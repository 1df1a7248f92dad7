"""What is measured between two log points."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from trelm_ds.batches import Batch
from trelm_ds.distributed import Ranks
from trelm_ds.model import MaskedLMOutput

_ON_DEVICE = ("mlm_loss", "mlm_correct", "cka_loss", "cka_correct")


class Window:
    """Sums of this rank since the last log point; the losses' stay on the device, where adding does not wait."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()

    def add(self, batch: Batch, output: MaskedLMOutput) -> None:
        """Counts a micro-batch."""
        for name in _ON_DEVICE:
            if (value := getattr(output, name)) is not None:
                self._sums[name] = self._sums.get(name, 0) + value.detach().double()
        self.counts["masked"] += len(batch.labels)
        self.counts["asked"] += 0 if batch.facts is None else len(batch.facts.labels)
        self.counts["tokens"] += len(batch.input_ids)
        self.counts["sequences"] += batch.sequences

    def absorb(self, step: Window, taken: bool) -> None:
        """Adds a step's window; of one that was not taken only what it has cost."""
        if taken:
            self.count(step._sums | dict(step.counts))
        else:
            self.count({name: step.counts[name] for name in ("tokens", "sequences")})

    def count(self, numbers: Mapping[str, int | Tensor]) -> None:
        """Adds to the counts."""
        for name, number in numbers.items():
            if isinstance(number, Tensor):
                self._sums[name] = self._sums.get(name, 0) + number
            else:
                self.counts[name] += number

    def totals(self, ranks: Ranks) -> dict[str, float]:
        """Every sum and count over all ranks; collective. A name that no rank has counted is 0 and not there."""
        own = {name: float(value) for name, value in self._sums.items()} | dict(self.counts)
        totals: dict[str, float] = {}
        for counted in ranks.gather(own):
            for name, value in counted.items():
                totals[name] = totals.get(name, 0.0) + value
        return totals


def summary(totals: dict[str, float], mlm_weight: float, seconds: float) -> dict[str, float]:
    """The metrics of a window: means over all ranks' tokens, shares, rates.

    Args:
        totals: of `Window.totals`.
        mlm_weight: theta of Eq. 3; 1 where nothing is assessed.
        seconds: of training in the window.
    """
    of = Counter(totals)
    mlm = of["mlm_loss"] / of["masked"] if of["masked"] else math.nan  # no step was taken
    cka = of["cka_loss"] / max(1.0, of["asked"])
    sequences = max(1.0, of["sequences"])
    metrics = {
        "loss": mlm_weight * mlm + (1 - mlm_weight) * cka,
        "mlm_loss": mlm,
        "accuracy": of["mlm_correct"] / max(1.0, of["masked"]),
        "tokens_per_s": of["tokens"] / seconds,
        "sequences_per_s": of["sequences"] / seconds,
        "corrupted_samples": of["corrupted"],
    }
    if "cka_loss" in totals:
        metrics |= {"cka_loss": cka, "cka_accuracy": of["cka_correct"] / max(1.0, of["asked"])}
        metrics |= {"facts_per_sequence": of["facts"] / sequences}
        metrics |= {"query_token_share": of["query tokens"] / max(1.0, of["tokens"])}
    if "mentions" in totals:
        metrics |= {"mentions_per_sequence": of["mentions"] / sequences}
        metrics |= {"injected_per_sequence": of["injected"] / sequences}
    if of["looked up"]:
        metrics |= {"memory_rows": of["memory rows"] / max(1.0, of["steps"])}
        metrics |= {"memory_hit_rate": of["hits"] / of["looked up"]}
    return metrics
