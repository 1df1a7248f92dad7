"""`trelm vectors train` as users start it: output, kills, signals, ranks, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.launch import forked_ranks, trelm
from tests.kg_embedding.graphs import dataset_of, grid

SMALL = ["--dim", "16", "--batch-size", "64", "--chunk-size", "16", "--negatives", "16", "--epochs", "5"]
OFTEN = ["--checkpoint-minutes", "1e-9"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset_of(grid(), tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("undisturbed") / "v.safetensors"
    done = trelm("vectors", "train", dataset, "--out", out, *SMALL, "--valid-share", "0.1")
    assert done.returncode == 0, done.stderr
    assert "64  entities\n" in done.stdout
    assert "valid MRR " in done.stdout
    assert done.stdout.endswith(f"{out}: written\n")
    return out.read_bytes()


@pytest.mark.parametrize("point", ["step-done:3", "save-written:4", "commit-before-rename:2", "commit-before-prune:5"])
def test_a_kill_at_any_point_changes_nothing(point: str, dataset: Path, undisturbed: bytes, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    command = ["vectors", "train", dataset, "--out", out, *SMALL, *OFTEN, "--valid-share", "0.1"]
    assert trelm(*command, TRELM_KILL_AT=point).returncode == -9
    assert not out.exists()
    done = trelm(*command)
    assert done.returncode == 0, done.stderr
    assert "continuing at step" in done.stderr
    assert out.read_bytes() == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["v.safetensors"]
    assert trelm(*command).stdout.endswith(f"{out}: already made by this command\n")


def test_ranks_of_a_launcher(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.safetensors"
    done = forked_ranks(2, "vectors", "train", dataset, "--out", out, *SMALL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{out}: written") == 1
    refused = forked_ranks(2, "vectors", "train", dataset, "--out", out, *SMALL, "--seed", "1")
    assert f"trelm: error: --out: {out}: made with --seed 0, now 1; remove it, or choose another" in refused.stderr
    assert refused.stderr.count("error:") == 1
    assert refused.returncode != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--method", "rotate", "--dim", "15"], "--dim: rotate has complex numbers"),
        (["--method", "complex"], "argument --method: invalid choice: 'complex'"),
        (["--valid", "nowhere.txt"], "nowhere.txt: No such file or directory"),
        (["--dim", "1000000000000"], "--dim: 1000000000000 numbers for each of 69 entities and relations need "),
    ],
)
def test_mistakes_are_one_line(changes: list[str], message: str, dataset: Path, tmp_path: Path) -> None:
    done = trelm("vectors", "train", dataset, "--out", tmp_path / "v.safetensors", *SMALL, *changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    done = trelm("vectors", "train", tmp_path, "--out", tmp_path / "v.safetensors")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is no dataset: it has no manifest.json" in done.stderr
