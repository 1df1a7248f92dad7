"""TRELM's objective in real runs: ranks, ZeRO stages, resume, export; and Eq. 7 from what a step has looked up."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.distributed import run_distributed_test
from tests.logged import warns
from tests.training import test_pretrain as plain
from tests.training.test_pretrain import continued, fails, losses, train, train_then_continue, without_dropout
from trelm_ds.checkpoints import export
from trelm_ds.checkpoints.manifest import read_verified
from trelm_ds.config import CkaConfig, Config, InjectionConfig, MemoryConfig, RoutingConfig, SelectionConfig
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.importance import ScoreOptions, score_dataset
from trelm_ds.model import hf_shapes, injected, load_config
from trelm_ds.run_folder import TIMED, committed, read_metrics
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.knowledge import Knowledge


def config(stage: int | str = 1, precision: str = "fp32", **trainer: Any) -> Config:
    """Every part of TRELM at once on the tiny dataset, four steps: lambda decays at step 2 and is 0 in the last."""
    return replace(
        plain.config(stage, precision, **trainer),
        selection=SelectionConfig(strategy="all"),
        injection=InjectionConfig(refresh_every=3),
        memory=MemoryConfig(word_quantiles=(0.0, 0.5), decay_every_steps=2, release_fraction=0.25, window=3),
        cka=CkaConfig(max_token_share=1.0, negatives=20),
    )


def with_cka(settings: Config, **cka: Any) -> Config:
    return replace(settings, cka=replace(settings.cka, **cka))


def with_injection(settings: Config, **injection: Any) -> Config:
    return replace(settings, injection=replace(settings.injection, **injection))


VARIANTS = {
    "query": lambda settings: settings,
    "all words": lambda settings: with_cka(settings, negatives=0),  # scored with the head's bias
    "product": lambda settings: with_cka(settings, decoder="product", log_q=True),
    "same": lambda settings: with_injection(with_cka(settings, triple="same", negatives=0), probability=1.0),
    "alias_mean": lambda settings: with_injection(settings, source="alias_mean"),
    "trained": lambda settings: with_injection(settings, source="alias_mean", projection="trained"),
    "mention": lambda settings: replace(
        with_injection(with_cka(settings, decoder="mention", negatives=0), probability=1.0, projection="trained"),
        routing=RoutingConfig(enabled=False),
    ),
    "own embeddings": lambda settings: with_injection(settings, source="none"),
    "words only": lambda settings: replace(settings, selection=SelectionConfig(strategy="none")),
    "no memory": lambda settings: replace(settings, memory=MemoryConfig(enabled=False)),
    "on the CPU": lambda settings: replace(settings, memory=replace(settings.memory, placement="cpu", dtype="bf16")),
}


def comparable(run: Path) -> list[dict[str, float]]:
    """The log points without what depends on time, or on how sequences are dealt to ranks."""
    apart = (*TIMED, "memory_hit_rate")
    return [{name: value for name, value in point.items() if not name.startswith(apart)} for point in read_metrics(run)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "stage", "precision", "tokens"),
    [
        ("query", 0, "fp32", 160),
        ("query", 1, "fp32", 80),
        ("query", 2, "fp32", 160),
        ("all words", 3, "fp32", 80),
        ("query", 1, "bf16", 80),
        ("product", 1, "fp32", 80),
        ("product", 3, "bf16", 160),
        ("trained", 3, "fp32", 160),
        ("trained", 1, "bf16", 80),
    ],
)
def test_two_ranks_train_continue_and_export(
    variant: str, stage: int, precision: str, tokens: int, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = VARIANTS[variant](without_dropout(config(stage, precision, micro_batch_tokens=tokens)))
    logits = run_distributed_test(train_then_continue, 2, settings, tiny_dataset, run)
    assert comparable(tmp_path / "continued") == comparable(run)  # bit-identical, bank and vectors too
    if precision == "fp32":
        equals_one_rank(run, settings, tiny_dataset, tmp_path / "alone", one_rank)
    assert logits[0].shape == logits[1].shape
    equals_export(run, tmp_path / "model", logits[0], precision)


def equals_one_rank(run: Path, settings: Config, data: Path, alone: Path, one_rank: Ranks) -> None:
    """One rank without ZeRO computes the same: losses, accuracies, rows touched."""
    train(
        replace(settings, trainer=replace(settings.trainer, ds_config="ds_configs/zero0.json")), data, alone, one_rank
    )
    for ours, theirs in zip(comparable(run), comparable(alone), strict=True):
        ours.pop("grad_norm", None)
        theirs.pop("grad_norm", None)
        assert ours == pytest.approx(theirs, rel=2e-5, abs=1e-7)


def equals_export(run: Path, folder: Path, logits: np.ndarray, precision: str) -> None:
    """The exported model needs neither bank nor vectors, and computes what the engine does with lambda 0."""
    from transformers import AutoModelForMaskedLM

    export(run, folder)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert set(weights.keys()) == set(hf_shapes(load_config(folder)))
    model = AutoModelForMaskedLM.from_pretrained(folder)
    ids, bounds, _ = plain.PROBE
    with torch.no_grad():
        scores = [model(ids[None, first:last]).logits[0] for first, last in itertools.pairwise(bounds)]
    tolerance = 1e-5 if precision == "fp32" else 0.05
    np.testing.assert_allclose(torch.cat(scores).numpy(), logits, atol=tolerance, rtol=tolerance * 0.9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_continues_exactly(variant: str, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run, settings = tmp_path / "run", VARIANTS[variant](config())
    continued(settings, tiny_dataset, run, one_rank)
    assert comparable(tmp_path / "continued") == comparable(run)
    points = read_metrics(run)
    has_facts, has_memory = settings.selection.strategy != "none", settings.memory.enabled
    assert all(("cka_loss" in point) == has_facts for point in points)
    assert [point.get("memory_lambda") for point in points] == ([0.5, 0.5, 0.25, 0.0] if has_memory else [None] * 4)
    if has_memory:
        assert points[0]["memory_hit_rate"] == 0
        assert 0 < points[1]["memory_hit_rate"] < 1
        assert "memory_hit_rate" not in points[3]  # nothing is looked up any more
        assert points[0]["memory_filled"] < points[2]["memory_filled"] == points[3]["memory_filled"]
    if has_facts:
        assert all(0 < point["injected_per_sequence"] < 2 for point in points) or settings.injection.source == "none"
        weight = settings.cka.mlm_weight
        for point in points:
            assert point["loss"] == pytest.approx(weight * point["mlm_loss"] + (1 - weight) * point["cka_loss"])


@pytest.mark.slow
def test_the_parts_change_what_is_learned(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """No setting of knowledge does nothing: each gives other losses than all the others."""
    seen = {}
    variants = VARIANTS | {
        "memory of means": lambda s: replace(s, memory=replace(s.memory, global_update="ema", gamma=0.5)),
        "narrow": lambda s: replace(s, memory=replace(s.memory, window=0)),
        "other lambda": lambda s: replace(s, memory=replace(s.memory, initial_lambda=0.9)),
        "mostly mlm": lambda s: with_cka(s, mlm_weight=0.9),
        "log q": lambda s: with_cka(s, log_q=True),
        "fewer queries": lambda s: with_cka(s, max_token_share=0.2),
        "unscaled memory": lambda s: replace(s, memory=replace(s.memory, match_norm=False)),
        "global memory as it is": lambda s: replace(s, memory=replace(s.memory, centre_global=False)),
        "in the text": lambda s: with_injection(s, places="text"),
        "in queries": lambda s: with_injection(s, places="queries"),
        "never refreshed": lambda s: with_injection(s, refresh_every=0),
    }
    for name, vary in variants.items():
        train(vary(without_dropout(config(checkpoint_every=4))), tiny_dataset, tmp_path / name, one_rank)
        seen[name] = tuple(point["mlm_loss"] for point in read_metrics(tmp_path / name))
    alike = [(a, b) for a in seen for b in seen if a < b and seen[a] == seen[b]]
    assert not alike


@pytest.mark.slow
def test_the_model_learns_the_facts(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = config(max_steps=150, log_every=50, checkpoint_every=150)
    train(settings, tiny_dataset, tmp_path / "run", one_rank)
    points = read_metrics(tmp_path / "run")
    assert points[-1]["cka_loss"] < 0.8 * points[0]["cka_loss"]
    assert points[-1]["mlm_loss"] < 0.9 * points[0]["mlm_loss"]
    assert points[-1]["cka_accuracy"] > points[0]["cka_accuracy"]


def test_a_file_of_vectors(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    entities, relations = (np.load(tiny_dataset / "graph" / f"{name}.npy") for name in ("entities", "relations"))
    rows = len(entities) + len(relations)
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(rows, 20)).astype(np.float32))
    settings = with_injection(config(), source="file", file=str(tmp_path / "vectors.npy"))
    train(settings, tiny_dataset, tmp_path / "run", one_rank)
    np.save(tmp_path / "vectors.npy", np.zeros((rows - 1, 20), dtype=np.float32))
    message = fails(settings, tiny_dataset, tmp_path / "again", one_rank)
    assert "injection.file" in message
    assert f"{len(entities)} entities + {len(relations)} relations" in message


def test_what_a_continuation_must_share(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(config(), tiny_dataset, run, one_rank)
    info = read_verified(committed(run)[0])
    assert any(name.startswith("knowledge/memory-") for name in info.files)
    assert any(name.startswith("knowledge/vectors-") for name in info.files)
    for change, named in (
        (with_cka(config(), negatives=19), "cka.negatives (20, now 19)"),
        (with_injection(config(), probability=0.4), "injection.probability (0.5, now 0.4)"),
        (replace(config(), memory=replace(config().memory, gamma=0.2)), "memory.gamma (0.1, now 0.2)"),
        (replace(config(), selection=SelectionConfig(strategy="long_tail")), "selection.strategy (all, now long_tail)"),
    ):
        assert f"made with another {named}" in fails(change, tiny_dataset, run, one_rank)
    elsewhere = replace(config(max_steps=5), memory=replace(config().memory, placement="cpu"))
    train(elsewhere, tiny_dataset, run, one_rank)  # where the bank lives is nobody's business
    assert losses(run)[:4] == [point["loss"] for point in read_metrics(run)][:4]


@pytest.mark.parametrize("where", ["names/entity_tokens.npy", "words/hashes.npy", "graph/out_entities.npy"])
def test_damaged_knowledge_is_named(where: str, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    content = bytearray((copy / where).read_bytes())
    content[-1] ^= 1
    (copy / where).write_bytes(content)
    assert f"{copy / where}: its content does not match" in fails(config(), copy, tmp_path / "run", one_rank)
    (copy / where).unlink()
    assert f"{copy / where}: missing; restore it" in fails(config(), copy, tmp_path / "run", one_rank)


def test_a_micro_batch_without_a_fact(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """One sequence a step, few of which are asked about: every decoder goes on, and the run says what it lacks."""
    for decoder, settings in (
        ("query", with_cka(config(global_batch_size=1, max_steps=12), max_token_share=0.4)),
        ("product", replace(config(global_batch_size=1, max_steps=12), selection=SelectionConfig("long_tail"))),
    ):
        settings = with_cka(settings, decoder=decoder)
        train(settings, tiny_dataset, tmp_path / decoder, one_rank)
        facts = [point["facts_per_sequence"] for point in read_metrics(tmp_path / decoder)]
        assert 0 in facts
        assert max(facts) > 0


def test_a_run_that_can_choose_nothing_is_plain(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    nothing = replace(config(), selection=SelectionConfig(strategy="long_tail", entity_threshold=1))
    with warns("selection.strategy: long_tail chooses none of the dataset's entities"):
        train(nothing, tiny_dataset, tmp_path / "run", one_rank)
    assert all(point["loss"] == point["mlm_loss"] for point in read_metrics(tmp_path / "run"))
    unasked = with_cka(config(), max_answer_tokens=1, max_token_share=1e-9)
    with warns("cka: no fact was asked in the 1 steps before step 1"):
        train(unasked, tiny_dataset, tmp_path / "unasked", one_rank)


@pytest.mark.slow
def test_a_bad_row_of_a_file_reaches_every_rank(tiny_dataset: Path, tmp_path: Path) -> None:
    """The rank that owns the row must not leave the other waiting for it."""
    entities, relations = (np.load(tiny_dataset / "graph" / f"{name}.npy") for name in ("entities", "relations"))
    vectors = np.ones((len(entities) + len(relations), 32), dtype=np.float32)
    vectors[3, 5] = np.nan
    np.save(tmp_path / "vectors.npy", vectors)
    settings = with_injection(config(), source="file", file=str(tmp_path / "vectors.npy"))
    messages = run_distributed_test(problem_of, 2, settings, tiny_dataset, tmp_path / "run")
    assert all("row 3, counted from 0, is not finite" in message for message in messages)


def problem_of(settings: Config, data: Path, run: Path) -> str:
    ranks = connect()
    try:
        return fails(settings, data, run, ranks)
    finally:
        disconnect()


def test_scores_that_are_required_must_be_there(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = replace(config(), selection=SelectionConfig(strategy="all", importance="required"))
    message = fails(settings, tiny_dataset, tmp_path / "run", one_rank)
    assert "trelm importance" in message


def test_scores_that_come_later_are_left_alone(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that began without scores goes on without them, whatever has been scored since."""
    data = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    plain.train(plain.config(max_steps=2), data, tmp_path / "mlm", one_rank)
    export(tmp_path / "mlm", tmp_path / "backbone")
    train(config(), data, tmp_path / "run", one_rank)
    assert "selection: all entities by frequency alone" in capsys.readouterr().err
    score_dataset(ScoreOptions(dataset=data, model=tmp_path / "backbone", scope="all"))
    advice = "the run began without scores of importance; go on with --selection.importance none"
    assert advice in fails(config(max_steps=5), data, tmp_path / "run", one_rank)
    without = replace(config(max_steps=5), selection=SelectionConfig(strategy="all", importance="none"))
    train(without, data, tmp_path / "run", one_rank)
    assert len(read_metrics(tmp_path / "run")) == 5
    train(config(), data, tmp_path / "scored", one_rank)
    assert "selection: all entities, top 50% by importance" in capsys.readouterr().err


def test_scores_behind_a_url(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    settings = replace(config(), selection=SelectionConfig(strategy="all", importance="required"))
    settings = replace(settings, loader=replace(settings.loader, cache_dir=str(tmp_path / "cache")))
    with StopSignals() as signals, pytest.raises(UserError, match="scores are not read from behind a URL"):
        build_run(settings, tiny_dataset.as_uri(), tmp_path / "run", one_rank, signals)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_eq_7_of_a_step(weight: float, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    """I_p = (1 - lambda) h_e + lambda/2 (local + global), item by item, from the tables themselves."""
    rate = 0.3
    settings = replace(config(), memory=replace(config().memory, initial_lambda=rate))
    settings = replace(settings, injection=replace(settings.injection, weight=weight))
    with StopSignals() as signals:
        trainer = build_run(settings, str(tiny_dataset), tmp_path / "run", one_rank, signals)
    knowledge, read = trainer.component(Knowledge), next(trainer.reader.loader)
    bank, vectors = knowledge.bank, knowledge.vectors
    assert bank is not None
    assert vectors is not None
    draw = torch.Generator().manual_seed(0)
    bank.table.local.copy_(torch.randn(bank.table.local.shape, generator=draw))
    bank.settings = replace(settings.memory, match_norm=False, centre_global=False)  # the paper's letter
    knowledge.before_step(read, 0)
    assert knowledge.memory_lambda == rate
    checked = {"entity": 0, "word": 0}
    for batch in read.micro_batches:
        items, tables = batch.items, knowledge.model_inputs()["tables"]
        assert items is not None
        made = injected(items, tables, 32)
        assert torch.equal(made.rows, items.token_rows)
        assert torch.equal(made.items, items.token_items)
        for item in range(len(items.memory)):
            local, global_ = bank.table.local[read.memory_rows[items.memory[item]]].split(32)
            expected, keep = rate / 2 * (local + global_), (1 - rate) * (1 - weight)
            if items.entity[item] >= 0:
                entity = vectors.local[read.vector_rows[items.entity[item]]]
                relation = vectors.local[read.vector_rows[items.relation[item]]]
                h_e = entity - relation if items.sign[item] < 0 else entity + relation
                expected = expected + (1 - rate) * weight * h_e
                checked["entity"] += 1
            else:
                keep = 1 - rate  # h_e is the word embedding of each token
                checked["word"] += 1
            torch.testing.assert_close(made.vectors[item], expected)
            assert made.keep[item].item() == pytest.approx(keep)
    assert min(checked.values()) > 3
    bank.settings = settings.memory
    knowledge.before_step(read, 0)
    words = trainer.engine.module.encoder.embeddings.word.weight.detach()
    norm = float(torch.stack([row.norm() for row in words]).mean())
    matched = knowledge.model_inputs()["tables"].memories
    for row, found in zip(read.memory_rows, matched, strict=True):
        local, global_ = bank.table.local[row].split(32)  # nothing is seen yet, so nothing is centred
        torch.testing.assert_close(found, norm * (local / local.norm() + global_ / global_.norm()))
    trainer.reader.loader.close()
