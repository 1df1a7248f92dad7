"""How fast a run is on its devices: rates, FLOPs, waiting for data, memory."""

from __future__ import annotations

import resource

import torch

from trelm_ds.batches import Step, StepReader
from trelm_ds.config import Config
from trelm_ds.distributed import Ranks
from trelm_ds.model import MaskedLanguageModel, Updated, Work, peak_tflops, training_flops
from trelm_ds.routing import updated_part
from trelm_ds.training.component import Component


class Speed(Component):
    """Measures what docs/speed.md lists. It counts on the host, from the steps as they were read.

    It comes behind routing in the list of components, since a step's FLOPs depend on whether there is a path.

    Args:
        reader: that counts how long it waits.
    """

    def __init__(self, config: Config, model: MaskedLanguageModel, reader: StepReader, ranks: Ranks) -> None:
        self._config, self._model, self._reader, self._ranks = config, model, reader, ranks
        self._flops = 0.0
        self._tokens = self._sequence_tokens = 0
        self._peak = None  # TFLOP/s in bf16; no peak of another precision is known here
        if ranks.device.type == "cuda" and config.trainer.precision == "bf16":
            self._peak = peak_tflops(torch.cuda.get_device_name(ranks.device))

    def before_step(self, step: Step, steps_done: int) -> None:
        """Count the step's work."""
        updated = self._updated()
        for batch in step.micro_batches:
            self._flops += training_flops(self._model.config, Work.of(batch), updated)
            self._tokens += len(batch.input_ids)
            self._sequence_tokens += len(batch.input_ids) - (0 if batch.tail is None else batch.tail.tokens)

    def _updated(self) -> Updated:
        if not self._config.routes:
            return Updated()
        chosen = self._model.encoder.blocks[-1].feed_forward.path is not None
        updated = updated_part(self._config.routing, self._model.config, chosen)
        return updated._replace(reaches_input=self._model.know_linear is not None)

    def metrics(self, seconds: float) -> dict[str, float]:
        """Measure what all ranks did, and begin anew; collective."""
        work = self._flops, self._tokens, self._sequence_tokens
        if not self._ranks.first_of_model:  # the others of a model have the same data
            work = 0.0, 0, 0
        waited = self._reader.waited_s / seconds
        self._flops, self._tokens, self._sequence_tokens, self._reader.waited_s = 0.0, 0, 0, 0.0
        every = self._ranks.gather((*work, waited, *_memory(self._ranks.device)))
        flops, tokens, sequence_tokens, waits, device_gb, resident_gb = zip(*every, strict=True)
        devices = len(every)
        tflops = sum(flops) / 1e12 / seconds / devices
        found = {
            "tokens_per_s_per_device": sum(tokens) / seconds / devices,
            "sequence_tokens_per_s": sum(sequence_tokens) / seconds,
            "tflops_per_device": tflops,
            "data_wait_share": sum(waits) / devices,
            "data_wait_share_worst_rank": max(waits),
            "peak_resident_gb": max(resident_gb),
        }
        if self._peak is not None:
            found["mfu"] = tflops / self._peak
        if self._ranks.device.type == "cuda":
            found["peak_memory_gb"] = max(device_gb)
        return found


def _memory(device: torch.device) -> tuple[float, float]:
    """Return the most memory of a GPU that tensors have taken, and the most that the process had resident, in GB."""
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return allocated / 1e9, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # Linux counts KiB


def rate_in_words(metrics: dict[str, float], devices: int) -> str:
    """Say how fast training is, for the progress line."""
    words = f"{metrics['tokens_per_s']:,.0f} tokens/s"
    if devices > 1:
        words += f", {metrics['tokens_per_s_per_device']:,.0f} per device"
    return f"{words}, MFU {100 * metrics['mfu']:.0f}%" if "mfu" in metrics else words
