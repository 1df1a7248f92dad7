"""Whole trainings: what is learned, restarts, ranks, settings that changed, and the file that injection takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.distributed import run_distributed_test
from tests.injection.contexts import filled, open_context
from tests.kg_embedding.graphs import dataset_of, graph_of, grid, options, torus
from tests.logged import warns
from trelm_ds.distributed import OneProcess, Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.injection.kg_file import read_kg_file
from trelm_ds.kg_embedding import Trained, VectorOptions, train_vectors
from trelm_ds.kg_embedding.train import Training
from trelm_ds.kg_embedding.work import WorkFolder

ALONE = OneProcess(torch.device("cpu"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset_of(grid(), tmp_path_factory.mktemp("grid"))


def trained(asked: VectorOptions) -> dict[str, Any]:
    done = train_vectors(asked, ALONE)
    assert done.code == 0
    assert done.result is not None
    return done.result


@pytest.mark.parametrize("method", ["transe", "rotate"])
def test_structure_is_learned(method: str, dataset: Path, tmp_path: Path) -> None:
    world = dataset if method == "transe" else dataset_of(torus(), tmp_path / "torus")
    changes = {"epochs": 100.0, "eval_every": 0.0, "test_share": 0.05, "lr": 0.5, "margin": 2.0}
    asked = options(world, tmp_path / "v.safetensors", method=method, **changes)
    result = trained(asked)
    assert result["metrics"]["valid"]["mrr"] > 0.8  # chance: 0.07
    assert result["metrics"]["test"]["mrr"] > 0.8
    assert result["counts"]["entities without a training triple"] == 0


def test_distmult_learns_what_it_can(tmp_path: Path) -> None:
    """Symmetric relations: pairs of entities, and cliques of four."""
    triples = [(a, 1, a ^ 1) for a in range(48)] + [(a, 2, b) for a in range(48) for b in range(48) if a // 4 == b // 4]
    world = dataset_of(graph_of(*triples), tmp_path / "pairs")
    asked = options(world, tmp_path / "v.safetensors", method="distmult", margin=None, epochs=60.0, eval_every=0.0)
    assert trained(asked)["metrics"]["valid"]["mrr"] > 0.6


def test_the_file_serves_injection(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    trained(options(tiny_dataset, out, dim=8, valid_share=0.0))
    entities, relations = read_kg_file(out)
    assert entities.numbers.tolist() == list(range(1, 53))
    assert relations.numbers.tolist() == [551]
    table = filled(open_context(tiny_dataset, one_rank, source="transe", file=str(out)))
    saved = load_file(out)
    assert torch.equal(table, torch.cat([saved["entity_vectors"], saved["relation_vectors"]]))


@pytest.mark.parametrize("method", ["distmult", "rotate"])
def test_injection_refuses_what_is_no_translation(method: str, dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    trained(options(dataset, out, method=method, margin=None, epochs=1.0))
    with pytest.raises(
        UserError, match=f"holds vectors of {method}, for which v_tail = v_head \\+ v_relation does not"
    ):
        read_kg_file(out)


def test_the_file_says_how_it_was_made(dataset: Path, tmp_path: Path) -> None:
    out, metrics = tmp_path / "v.safetensors", tmp_path / "m.json"
    result = trained(options(dataset, out, metrics=metrics))
    with safe_open(out, "pt") as file:
        about = file.metadata()
    assert about["method"] == "transe"
    content = json.loads(about["trelm_vectors"])
    assert content["result"] == result
    assert content["settings"]["dim"] == 16
    assert set(content["versions"]) == {"trelm_ds", "torch", "numpy"}
    assert [entry["step"] for entry in result["history"]][:2] == [15, 30]
    assert set(result["history"][0]) == {"step", "epoch", "loss", "valid"}
    written = json.loads(metrics.read_text())
    assert written["result"] == result
    assert written["triples_per_second"] > 0
    assert not (tmp_path / "v.work").exists()


def test_entities_that_were_not_trained_have_no_vector(tmp_path: Path) -> None:
    world = dataset_of(graph_of((1, 1, 2), (2, 1, 3), (3, 1, 1), (1, 1, 4)), tmp_path / "world")
    (tmp_path / "valid.txt").write_text("Q1\tP1\tQ4\nQ1\tP1\tQ2\n")
    out = tmp_path / "v.safetensors"
    with warns("1 of 2 triples cannot be ranked"):
        result = trained(options(world, out, valid_share=0.0, valid=tmp_path / "valid.txt"))
    assert result["counts"]["entities without a training triple"] == 1
    assert read_kg_file(out)[0].numbers.tolist() == [1, 2, 3]


def test_a_finished_one_is_not_redone_and_another_is_refused(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    result = trained(options(dataset, out, epochs=2.0))
    before = out.stat()
    again = train_vectors(options(dataset, out, epochs=2.0, metrics=tmp_path / "m.json"), ALONE)
    assert again == Trained(result, 0, made=False)
    assert json.loads((tmp_path / "m.json").read_text())["result"] == result
    assert out.stat() == before
    with pytest.raises(UserError, match=r"--out: \S+: made with --batch-size 64, now 32; remove it, or choose another"):
        trained(options(dataset, out, epochs=2.0, batch_size=32))
    out.write_text("mine")
    with pytest.raises(UserError, match="is there, and not of `trelm vectors train`"):
        trained(options(dataset, out, epochs=2.0))


def interrupted(monkeypatch: pytest.MonkeyPatch, asked: VectorOptions, at: int) -> None:
    """Train with a checkpoint after every step, and die at a step."""

    def reach(point: str) -> None:
        nonlocal at
        at -= point == "step-done"
        if not at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("trelm_ds.kg_embedding.train.faults.reach", reach)
        with pytest.raises(KeyboardInterrupt):
            train_vectors(asked, ALONE)


def test_a_continuation_equals_an_undisturbed_training(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = options(dataset, tmp_path / "whole.safetensors")
    trained(whole)
    parts = options(dataset, tmp_path / "parts.safetensors", checkpoint_minutes=1e-9)
    for at in (7, 20):
        interrupted(monkeypatch, parts, at)
    assert sorted(path.name for path in parts.work.glob("step-*")) == ["step-0000000024", "step-0000000025"]

    def stopped(_: Training) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # in the last evaluation
        patch.setattr(Training, "result", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_vectors(parts, ALONE)
    (tmp_path / ".parts.safetensors.1-2.tmp").touch()
    trained(parts)
    assert not list(tmp_path.glob(".*"))
    assert "continuing at step 25 of " in capsys.readouterr().err
    assert whole.out.read_bytes() == parts.out.read_bytes()


def test_a_damaged_checkpoint_is_passed_over(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = options(dataset, tmp_path / "v.safetensors", checkpoint_minutes=1e-9)
    interrupted(monkeypatch, asked, 7)
    newest, older = asked.work / "step-0000000006", asked.work / "step-0000000005"
    shard = newest / "vectors-00000-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with warns(f"checkpoint passed over: {shard}: missing, or its content does not match"):
        interrupted(monkeypatch, asked, 1)
    assert "continuing at step 5 of" in capsys.readouterr().err
    for folder in asked.work.glob("step-*"):
        (folder / "manifest.json").write_text("{}")
    assert older.exists() or newest.exists()
    with pytest.raises(UserError, match="no checkpoint is sound; remove the folder to begin anew"):
        trained(asked)


def test_changed_settings_are_refused_by_name(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = options(dataset, tmp_path / "v.safetensors", checkpoint_minutes=1e-9)
    interrupted(monkeypatch, asked, 2)
    with pytest.raises(UserError, match=r"--work: \S+: made with --dim 16, now 32; remove it, or choose another"):
        trained(options(dataset, tmp_path / "v.safetensors", dim=32))
    other = dataset_of(torus(), tmp_path / "other")
    with pytest.raises(UserError, match=r"--work: \S+: made with another dataset; remove it"):
        trained(options(other, tmp_path / "v.safetensors"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else; choose a new folder"):
        WorkFolder(tmp_path / "mine", {}, ALONE)


def train_on_ranks(asked: VectorOptions) -> dict[str, Any] | None:
    ranks = connect()
    try:
        return train_vectors(asked, ranks).result
    finally:
        disconnect()


def test_two_ranks_make_the_vectors_of_one(dataset: Path, tmp_path: Path) -> None:
    together, alone = (options(dataset, tmp_path / f"{name}.safetensors", epochs=3.0) for name in ("two", "one"))
    results = run_distributed_test(train_on_ranks, 2, together)
    result = trained(alone)
    assert results[0] == results[1]
    assert results[0]["counts"] == result["counts"]
    assert results[0]["metrics"]["valid"]["mrr"] == pytest.approx(result["metrics"]["valid"]["mrr"], abs=0.05)
    found, expected = load_file(together.out), load_file(alone.out)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-3, atol=1e-3)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "odd": ({"method": "rotate", "dim": 15}, "--dim: rotate has complex numbers, two reals each: give an even one"),
    "chunks": ({"batch_size": 60}, "--batch-size: 60 must be a multiple of --chunk-size, which is 16"),
    "no margin": ({"method": "distmult"}, "--margin, --norm: distmult has neither"),
    "both": ({"valid": Path("valid.txt")}, "--valid: goes without --valid-share; leave one out"),
    "share": ({"test_share": 1.5}, "--test-share: must lie between 0 and 1, got 1.5"),
    "too much": ({"test_share": 0.5}, "--valid-share, --test-share: hold out more than half"),
    "negative": ({"dim": 0}, "--dim: must be at least 1, got 0"),
    "not a number": ({"lr": float("nan")}, "--lr: must be greater than 0, got nan"),
    "suffix": ({"out": Path("v.npz")}, "--out: give a file that ends in .safetensors, not v.npz"),
    "no folder": ({"metrics": Path("/nowhere/m.json")}, "--metrics: give a file in an existing folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_named(case: str, dataset: Path, tmp_path: Path) -> None:
    changes, message = BAD[case]
    asked = VectorOptions(**vars(options(dataset, tmp_path / "v.safetensors")) | changes)
    with pytest.raises(UserError) as error:
        train_vectors(asked, ALONE)
    assert message in str(error.value)
    assert not asked.work.exists()


def test_what_does_not_fit_into_memory_is_refused_before_the_start(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = type("Memory", (), {"available": 2**30})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(
        UserError, match=r"--dim: 4000000 numbers for each of 69 .* need 1\.5 GiB, this node has 1\.0 free"
    ):
        trained(options(dataset, tmp_path / "v.safetensors", dim=4_000_000))
    trained(options(dataset, tmp_path / "v.safetensors", epochs=1.0))


def test_a_training_that_diverges_ends(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--lr: the loss is not finite after \d+ steps; give less than 1e\+30"):
        trained(options(dataset, tmp_path / "v.safetensors", lr=1e30))
    assert not (tmp_path / "v.safetensors").exists()


def test_a_dataset_whose_graph_is_damaged_is_named(tmp_path: Path) -> None:
    world = dataset_of(grid(), tmp_path / "world")
    shutil.copy(world / "graph" / "in_entities.npy", world / "graph" / "out_entities.npy")
    with pytest.raises(UserError, match=r"out_entities\.npy"):
        trained(options(world, tmp_path / "v.safetensors"))


def test_ids_are_numbers_of_any_size(tmp_path: Path) -> None:
    world = dataset_of(graph_of((999_999_999, 7, 1), (1, 8, 999_999_998)), tmp_path / "world")
    out = tmp_path / "v.safetensors"
    trained(options(world, out, valid_share=0.0, epochs=1.0))
    entities, relations = read_kg_file(out)
    assert entities.numbers.tolist() == [1, 999_999_998, 999_999_999]
    assert relations.numbers.tolist() == [7, 8]
    assert np.isfinite(entities.vectors.numpy()).all()
