"""Compare attribution's cost with public code's way, and the neurons that three nodes find with those of twenty.

python tools/bench/attribution.py [--layers 12 --hidden 768 --neurons 3072 --heads 12] [--facts 16] \
    [--model FOLDER --data DATASET] [--out docs/benchmarks/attribution.json]

The loop, public code's way, is one forward and backward pass of the whole model per fact, layer and node. Both ways get
the same queries and weights, take turns, and must find the same scores. With --model and --data, also measures how many
of the chosen neurons the quadratures have in common, on the facts of a dataset of `trelm prepare`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trelm_ds.config import (
    CkaConfig,
    Config,
    LoaderConfig,
    MemoryConfig,
    ModelConfig,
    RoutingConfig,
    SelectionConfig,
    TrackingConfig,
    TrainerConfig,
)
from trelm_ds.distributed import connect, disconnect
from trelm_ds.model import (
    AssessingBatch,
    Batch,
    EncoderConfig,
    EncoderLayer,
    MaskedLanguageModel,
    StepTables,
    answer_bias,
    answer_probabilities,
)
from trelm_ds.routing import QUADRATURES, Quadrature, attribute, frozen, gauss_legendre, routed_facts
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.knowledge import Knowledge

ROOT = Path(__file__).resolve().parents[2]
LENGTH, ANSWER, CANDIDATES = 18, 2, 200  # tokens in a query, masks in it, candidate tokens


def questions(model: MaskedLanguageModel, facts: int, device: torch.device) -> tuple[Batch, StepTables]:
    """Make `facts` queries of LENGTH random tokens, with ANSWER masks before the last token."""
    draw, vocabulary = torch.Generator().manual_seed(0), model.config.vocab_size
    ids = torch.randint(5, vocabulary, (facts * LENGTH,), generator=draw)
    positions = (torch.arange(facts)[:, None] * LENGTH + LENGTH - 1 - ANSWER + torch.arange(ANSWER)).flatten()
    fact = torch.arange(facts).repeat_interleave(ANSWER)
    asked = AssessingBatch(
        labels=torch.randint(5, vocabulary, (facts * ANSWER,), generator=draw).to(device),
        fact=fact.to(device),
        place=torch.arange(ANSWER).repeat(facts).to(device),
        positions=positions.to(device),
        spans=positions[:0].view(0, 2).to(device),
        relations=positions[:0].to(device),
        inverse=torch.zeros(facts, dtype=torch.bool, device=device),
        routed=torch.ones(facts, dtype=torch.bool, device=device),
    )
    nothing = torch.zeros(0, model.config.hidden_size, device=device)
    candidates = torch.randint(5, vocabulary, (CANDIDATES,), generator=draw).to(device)
    tables = StepTables(vectors=nothing, memories=nothing, memory_lambda=0.0, candidates=candidates)
    bounds = torch.arange(0, len(ids) + 1, LENGTH, dtype=torch.int32)
    batch = Batch.of_documents(ids.to(device), bounds.to(device), LENGTH)
    return batch._replace(objectives={"cka": asked}), tables


def loop(model: MaskedLanguageModel, batch: Batch, tables: StepTables, quadrature: Quadrature) -> Tensor:
    """Compute scores [L, F] as public code does: per fact, layer and node, through the whole model."""
    layers, facts = model.encoder.blocks, batch.objectives["cka"]
    scores = torch.zeros(len(layers), model.config.intermediate_size, device=batch.input_ids.device)
    bounds = torch.tensor([0, LENGTH], dtype=torch.int32, device=scores.device)
    for fact in range(batch.n_sequences):
        ids = batch.input_ids[fact * LENGTH : (fact + 1) * LENGTH]
        mine = facts.fact == fact
        labels, positions = facts.labels[mine], facts.positions[mine] - fact * LENGTH
        for place, layer in enumerate(layers):
            mean: Tensor | float = 0.0
            for alpha, weight in zip(*quadrature, strict=True):
                with scaled(layer, positions, alpha) as seen:
                    hidden = model.encoder(ids, bounds, LENGTH)
                states = model.head.transform(hidden[positions])
                word, bias = model.encoder.embeddings.word, answer_bias(model, tables)
                probability = answer_probabilities(states, word, labels, tables, bias).mean()
                mean = mean + weight * torch.autograd.grad(probability, seen["scaled"])[0]
            scores[place] += (seen["activation"] * mean).clamp(min=0).sum(0)
    return scores


@contextlib.contextmanager
def scaled(layer: EncoderLayer, rows: Tensor, alpha: float) -> Iterator[dict[str, Tensor]]:
    """Multiply a layer's activations at `rows` by alpha while the context is open."""
    memory, seen = layer.feed_forward, dict[str, Tensor]()

    def forward(hidden: Tensor) -> Tensor:
        activation = memory.activation(torch.nn.functional.linear(hidden, memory.keys, memory.key_bias))
        seen["activation"] = activation[rows].detach()
        seen["scaled"] = (alpha * seen["activation"]).requires_grad_()
        return activation.index_copy(0, rows, seen["scaled"]) @ memory.values + memory.value_bias

    memory.forward = forward  # type: ignore[method-assign]
    yield seen
    del memory.forward


@contextlib.contextmanager
def counted(tokens: int) -> Iterator[list[float]]:
    """Count forward passes of one layer over `tokens` tokens; each node's copy of the documents counts as a pass."""
    passes, attend = [0.0], EncoderLayer.attend

    def counting(layer: EncoderLayer, hidden: Tensor, *more: Any) -> Tensor:
        passes[0] += len(hidden) / tokens
        return attend(layer, hidden, *more)

    EncoderLayer.attend = counting  # type: ignore[method-assign]
    yield passes
    EncoderLayer.attend = attend  # type: ignore[method-assign]


def cost(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure time per fact and layer passes of the loop and of ours, each with 20 and with 3 nodes."""
    torch.manual_seed(0)
    settings = ModelConfig(
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.neurons,
    )
    built = MaskedLanguageModel(EncoderConfig.from_settings(settings, 30522, 0)).to(device)
    model = frozen(built, {name: weight.detach() for name, weight in built.named_parameters()})
    one, many = (questions(model, facts, device) for facts in (1, options.facts))
    ways = {
        "loop, right20": lambda: loop(model, *one, QUADRATURES["right20"]),
        "loop, gauss3": lambda: loop(model, *one, QUADRATURES["gauss3"]),
        "ours, right20, one fact": lambda: attribute(model, *one, QUADRATURES["right20"]).neurons,
        "ours, gauss3, one fact": lambda: attribute(model, *one, QUADRATURES["gauss3"]).neurons,
        f"ours, gauss3, {options.facts} facts at once": lambda: attribute(model, *many, QUADRATURES["gauss3"]).neurons,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    passes, scores = {}, {}
    for turn in range(options.rounds + 1):  # the first turn warms up
        for name, way in ways.items():
            begun = now(device)
            with counted(LENGTH if "at once" not in name else len(many[0].input_ids)) as count:
                scores[name] = way()
            passes[name] = count[0]
            if turn:
                seconds[name].append(now(device) - begun)
    for rule in ("right20", "gauss3"):
        theirs, ours = scores[f"loop, {rule}"], scores[f"ours, {rule}, one fact"]
        assert (theirs - ours).abs().max() <= 1e-3 * theirs.max(), "the two ways disagree"
    base = statistics.median(seconds["loop, right20"])
    found = {}
    for name in ways:
        each = statistics.median(seconds[name]) / (options.facts if "at once" in name else 1)
        # Neither way runs backward below the scaled layer, so forward passes are what to compare.
        found[name] = {
            "ms_per_fact": round(1000 * each, 2),
            "times_faster": round(base / each, 1),
            "forward_layer_passes": round(passes[name], 1),
        }
    return found


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def overlap(model: Path, data: str, steps: int, batch: int) -> dict[str, Any]:
    """Measure the share of the top 10% neurons that two quadratures have in common, per layer, on a dataset's facts."""
    rules = {"gauss3": QUADRATURES["gauss3"], "right20": QUADRATURES["right20"], "gauss24": gauss_legendre(24)}
    config = Config(
        model=ModelConfig(init_from=str(model)),
        selection=SelectionConfig(strategy="all"),
        memory=MemoryConfig(release_fraction=1.0),  # lambda is 0 from the first step on
        cka=CkaConfig(max_token_share=1.0),
        routing=RoutingConfig(enabled=True, sample_fraction=1.0),
        loader=LoaderConfig(workers=0),
        trainer=TrainerConfig(max_steps=2000, global_batch_size=batch, precision="fp32"),
        tracking=TrackingConfig(enabled=False),
    )
    ranks = connect()
    scores: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder, StopSignals() as signals:
            trainer = build_run(config, data, Path(folder), ranks, signals)
            knowledge = trainer.component(Knowledge)
            view = frozen(trainer.engine.module, {n: p.detach() for n, p in trainer.engine.module.named_parameters()})
            for number in range(steps):
                step = next(trainer.reader.loader)
                knowledge.before_step(step, number)
                for one in step.micro_batches:
                    part = routed_facts(one)
                    if part is None:
                        continue
                    given = part.to(ranks.device)
                    for name, rule in rules.items():
                        found = attribute(view, given, quadrature=rule, **knowledge.model_inputs())
                        scores[name] = scores.get(name, 0) + torch.cat([found.neurons.flatten(), found.facts[None]])
            trainer.reader.loader.close()
    finally:
        disconnect()
    layers = view.config.num_hidden_layers
    facts = int(scores["gauss3"][-1])
    tops = {name: top(score[:-1].view(layers, -1)) for name, score in scores.items()}
    pairs = [("gauss3", "right20"), ("gauss3", "gauss24"), ("right20", "gauss24")]
    return {"facts": facts, "top": 0.1} | {
        f"{a} with {b}": [round(len(x & y) / len(x), 3) for x, y in zip(tops[a], tops[b], strict=True)]
        for a, b in pairs
    }


def top(scores: Tensor) -> list[set[int]]:
    return [set(layer.topk(round(0.1 * len(layer)))[1].tolist()) for layer in scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--neurons", type=int, default=3072)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--facts", type=int, default=16, help="facts attributed at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="trained model to measure the overlap on")
    parser.add_argument("--data", help="dataset to measure the overlap on")
    parser.add_argument("--steps", type=int, default=4, help="batches to read from the dataset")
    parser.add_argument("--batch", type=int, default=128, help="sequences in each batch")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks" / "attribution.json")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} cores, no GPU",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {"torch": version("torch")},
        "date": datetime.date.today().isoformat(),
        "model": f"{options.layers} layers x {options.hidden}, {options.neurons} neurons",
        "query_tokens": LENGTH,
        "cost": cost(options, device),
    }
    if options.model and options.data:
        result["overlap"] = overlap(options.model, options.data, options.steps, options.batch)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"| way | ms a fact | times faster | layer passes, forward |\n{'|---' * 4}|")
    for name, one in result["cost"].items():
        print(f"| {name} | " + " | ".join(map(str, one.values())) + " |")
    for name, shares in result.get("overlap", {}).items():
        print(name, shares)


if __name__ == "__main__":
    main()
