"""Compare the speed of our training step with a plain transformers loop: same model, sequences, masks and optimizer.

    python tools/bench/against_transformers.py --data DATASET [--config trelm_ds/recipes/sizes/tiny.yaml] \
        [--rounds 10] [--lengths dataset|full] [--of NAME] [--out FILE] [--trainer.global_batch_size 32 ...]

Theirs is BertForMaskedLM on batches padded to their longest sequence, as its collators make them, under torch's AdamW
and gradient clipping. Both compute plain masked language modelling in one process and take turns, step by step, on the
same sequences: those of the dataset, or with `--lengths full` random ones, all as long as the model reads. Counted are
valid tokens, padding left out, and CPU time (time on a GPU machine), which other load on the machine changes little.
Ours has all of a run around it but reading: engine, guards, logging.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from trelm_ds.batches import Step
from trelm_ds.config import Config, MemoryConfig, SelectionConfig
from trelm_ds.distributed import connect, disconnect
from trelm_ds.files import read_json
from trelm_ds.model import Batch, EncoderConfig
from trelm_ds.settings import add_settings, find_ds_config, parse
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 2  # first steps of each, not counted
IGNORED = -100  # the label of a token that is not to be predicted


class Theirs:
    """A plain loop around BertForMaskedLM."""

    def __init__(self, sizes: EncoderConfig, config: Config, device: torch.device) -> None:
        from transformers import BertConfig, BertForMaskedLM

        self.config, self.device = config, device
        self.dtype = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
        self.model = BertForMaskedLM(BertConfig(**sizes.to_hf())).to(device).train()
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), settings.lr, settings.betas, settings.eps, settings.weight_decay
        )

    def step(self, batches: list[tuple[Tensor, ...]]) -> None:
        """Take one step of accumulated micro-batches: ids, attention mask and labels, [B, S] each."""
        for ids, mask, labels in batches:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
            (loss / len(batches)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def padded(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a packed batch as collators do: ids, attention mask and labels, [B, S] each."""
    lengths = batch.cu_seqlens.diff().long()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids, labels = torch.zeros(mask.shape, dtype=torch.int64), torch.full(mask.shape, IGNORED)
    ids[mask] = batch.input_ids
    of_token = torch.full_like(batch.input_ids, IGNORED)
    of_token[batch.mlm_positions] = batch.mlm_labels
    labels[mask] = of_token
    return ids, mask.long(), labels


def as_long_as_possible(batch: Batch, length: int, vocabulary: int, rate: float) -> Batch:
    """Make a batch of about as many tokens, all sequences `length` long, a share `rate` of them to be predicted."""
    documents = max(1, len(batch.input_ids) // length)
    tokens = documents * length
    ids = torch.randint(vocabulary // 2, vocabulary, (tokens,))
    positions = torch.randperm(tokens)[: int(rate * tokens)].sort().values
    bounds = torch.arange(0, tokens + 1, length, dtype=torch.int32)
    made = Batch.of_documents(ids, bounds, length)
    return made._replace(mlm_positions=positions, mlm_labels=ids[positions])


class Ours:
    """A run of ours that takes the steps it is given."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.loader = trainer, trainer.reader.loader
        trainer.reader.loader = self  # type: ignore[assignment]  # the trainer reads through this object
        trainer.engine.train()
        self.given = Step.empty()

    def __next__(self) -> Step:
        return self.given

    def step(self, step: Step) -> None:
        """Take one step."""
        self.given = step
        self.trainer.train_step()


def next_step(ours: Ours, full: bool) -> tuple[Step, list[tuple[Tensor, ...]]]:
    """Read the next step, with random sequences in place of its own if `full`; return it for ours and for theirs."""
    step, sizes = next(ours.loader), ours.trainer.engine.module.config
    if full:
        rate = len(step.micro_batches[0].mlm_labels) / len(step.micro_batches[0].input_ids)
        about = sizes.max_position_embeddings, sizes.vocab_size, rate
        batches = [as_long_as_possible(batch, *about) for batch in step.micro_batches]
        step = step._replace(
            micro_batches=batches, targets={"mlm": float(sum(len(batch.mlm_labels) for batch in batches))}
        )
    device = ours.trainer.ranks.device
    return step, [tuple(part.to(device) for part in padded(batch)) for batch in step.micro_batches]


def settings_of(settings: list[str]) -> Config:
    """Parse settings of a run for plain masked language modelling."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    add_settings(parser)
    always = ["--tracking.enabled", "false", "--loader.workers", "0", "--cka.decoder", "none"]
    config = parse(parser, [*settings, *always, "--routing.enabled", "false"])[0]
    return replace(config, selection=SelectionConfig(strategy="none"), memory=MemoryConfig(enabled=False))


def timed(call: Any, *arguments: Any) -> float:
    """Measure the seconds of a call: of CPU time, or on a GPU until its work is done."""
    gpu = torch.cuda.is_available()
    now = time.perf_counter if gpu else time.process_time
    if gpu:
        torch.cuda.synchronize()
    begun = now()
    call(*arguments)
    if gpu:
        torch.cuda.synchronize()
    return now() - begun


def measure(config: Config, data: Path, rounds: int, full: bool) -> dict[str, Any]:
    """Let both take the same steps in turns; return seconds of a step, valid tokens per second and what is padding."""
    ranks, seconds, tokens, cells = connect(), {"ours": [], "transformers": []}, [], []  # type: ignore[var-annotated]
    try:
        with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
            ours = Ours(build_run(config, str(data), Path(folder) / "run", ranks, signals))
            sizes = ours.trainer.engine.module.config
            theirs, words = Theirs(sizes, config, ranks.device), sizes.vocab_size
            for _ in range(WARM_UP + rounds):
                step, batches = next_step(ours, full)
                tokens.append(sum(len(batch.input_ids) for batch in step.micro_batches))
                cells.append(sum(ids.numel() for ids, *_ in batches))
                seconds["ours"].append(timed(ours.step, step))
                seconds["transformers"].append(timed(theirs.step, batches))
    finally:
        disconnect()
    result: dict[str, Any] = {"tokens": round(statistics.fmean(tokens[WARM_UP:])), "words": words}
    for name, values in seconds.items():
        rates = [count / value for count, value in zip(tokens, values, strict=True)][WARM_UP:]
        middle = {"step_s": round(statistics.median(values[WARM_UP:]), 4)}
        result[name] = middle | {"valid_tokens_per_s": round(statistics.median(rates))}
    pairs = zip(seconds["transformers"][WARM_UP:], seconds["ours"][WARM_UP:], strict=True)
    result["times_faster"] = round(statistics.median(theirs / ours for theirs, ours in pairs), 2)
    result["padding_of_theirs"] = round(1 - sum(tokens) / sum(cells), 3)
    return result


def table(result: dict[str, Any]) -> str:
    """Format the result as Markdown."""
    lines = [
        "| layers x width, vocabulary, sequences | tokens a step | valid tokens/s, ours | transformers | times faster "
        "| padding of theirs |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        rates = f"{case['ours']['valid_tokens_per_s']:,} | {case['transformers']['valid_tokens_per_s']:,}"
        padding = f"{100 * case['padding_of_theirs']:.0f}%"
        lines.append(f"| {name} | {case['tokens']:,} | {rates} | {case['times_faster']} | {padding} |")
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    machine = f"{result['device']}, {result['threads']} thread(s), {result['precision']}"
    return "\n".join([*lines, "", f"{machine}; {versions}; {result['date']}."])


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", type=Path, required=True, help="dataset of `trelm prepare`")
    options.add_argument("--rounds", type=int, default=10, help="steps to measure of each")
    options.add_argument("--lengths", choices=("dataset", "full"), default="dataset")
    options.add_argument("--of", default="dataset", help="what to call the dataset's sequences in the table")
    options.add_argument("--out", type=Path, help="default: docs/benchmarks, and the table in docs/speed.md")
    own, settings = options.parse_known_args()
    config = settings_of(settings)
    found = measure(config, own.data, own.rounds, own.lengths == "full")
    model = config.model
    zero = read_json(find_ds_config(config.trainer.ds_config))["zero_optimization"]["stage"]
    what = own.of if own.lengths == "dataset" else own.lengths
    name = f"{model.num_hidden_layers} x {model.hidden_size}, {found['words']:,} words, {what}"
    name += f", {model.max_position_embeddings} positions"
    name += f", {round(found['tokens'], -2):,} tokens, ZeRO {zero}"
    out = own.out or ROOT / "docs" / "benchmarks" / "against_transformers.json"
    known = json.loads(out.read_text())["cases"] if out.is_file() else {}
    result = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, no GPU",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")},
        "date": datetime.date.today().isoformat(),
        "precision": config.trainer.precision,
        "cases": known | {name: found},
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(name, json.dumps(found, indent=1))
    if own.out is None:
        page = ROOT / "docs" / "speed.md"
        before, start, rest = page.read_text().partition("<!-- against-table -->\n")
        _, end, after = rest.partition("<!-- /against-table -->")
        page.write_text(f"{before}{start}{table(result)}\n{end}{after}")


if __name__ == "__main__":
    main()
