"""Source `transe`: rows found by id, those that are missing, the layouts of PyKEEN and DGL-KE, and real runs."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.distributed import run_distributed_test
from tests.injection.contexts import D, filled, open_context, with_entities
from tests.training.test_knowledge import comparable, config, with_injection
from tests.training.test_pretrain import continued, train
from trelm_ds.distributed import Ranks, connect, disconnect
from trelm_ds.errors import UserError
from trelm_ds.injection.projection import projection
from trelm_ds.run_folder import committed, read_metrics

W = 10
# The tiny dataset: people Q1 to Q40, cities Q41 to Q52, P551.
ENTITY_IDS = [f"Q{number}" for number in range(1, 53)]
RELATION_IDS = ["P551"]


def vectors(ids: list[str]) -> np.ndarray:
    """float32 [n, W], a function of the ids: of each kind as a TransE model has them, on the unit sphere."""
    rows = [np.random.default_rng([int(name[1:]), ord(name[0])]).standard_normal(W) for name in ids]
    return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)


def arrays(entities: list[str] = ENTITY_IDS, relations: list[str] = RELATION_IDS) -> dict[str, np.ndarray]:
    return {
        "entity_vectors": vectors(entities),
        "relation_vectors": vectors(relations),
        "entity_ids": np.array(entities),
        "relation_ids": np.array(relations),
    }


def write_npz(path: Path, content: dict[str, np.ndarray] | None = None, **changes: np.ndarray) -> Path:
    np.savez(path, **{**(arrays() if content is None else content), **changes})
    return path


def tensors(**names: str) -> dict[str, torch.Tensor]:
    return {
        names.get("entity", "entity_vectors"): torch.from_numpy(vectors(ENTITY_IDS)),
        names.get("relation", "relation_vectors"): torch.from_numpy(vectors(RELATION_IDS)),
    }


def test_ids_as_numbers_in_safetensors(opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    ids = {"entity_ids": torch.arange(1, 53), "relation_ids": torch.tensor([551], dtype=torch.int32)}
    save_file(tensors() | ids, path, {"method": "transe"})
    assert torch.equal(opened(path), expected())
    save_file(tensors() | ids | {"entity_ids": torch.arange(1.0, 53.0)}, path)
    with pytest.raises(UserError, match=r"entity_ids is float32 \[52\]; write numbers, 42 for Q42, as int64 \[n\]"):
        opened(path)
    save_file(tensors() | ids, path, {"method": "rotate"})
    with pytest.raises(UserError, match=r"holds vectors of rotate, for which .* `trelm vectors train --method transe`"):
        opened(path)


def expected() -> torch.Tensor:
    """float32 [52 + 1, D]: the table before it is matched."""
    matrix = projection(W, D, seed=0)
    assert matrix is not None
    return torch.from_numpy(np.concatenate([vectors(ENTITY_IDS), vectors(RELATION_IDS)]) @ matrix)


Open = Callable[[Path], torch.Tensor]


@pytest.fixture
def opened(one_rank: Ranks, tiny_dataset: Path) -> Open:
    """From a file to the table that it fills."""
    return lambda path: filled(open_context(tiny_dataset, one_rank, source="transe", file=str(path)))


def test_rows_are_found_by_id(opened: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_npz(tmp_path / "v.npz")
    found = opened(path)
    assert torch.equal(found, expected())
    assert capsys.readouterr().err == f"injection: injection.file {path} has all 52 entities and 1 relations\n"


def test_their_order_and_what_else_is_there_do_not_matter(opened: Open, tmp_path: Path) -> None:
    entities = [*ENTITY_IDS, "Q99", "/m/02mjmr", "Q5x", "P3"]
    shuffled = [entities[row] for row in np.random.default_rng(0).permutation(len(entities))]
    content = arrays([name if name[1:].isdigit() else "Q77" for name in shuffled], ["P1", "P551", "P2"])
    content["entity_ids"] = np.array(shuffled)
    assert torch.equal(opened(write_npz(tmp_path / "v.npz", content)), expected())


@pytest.mark.parametrize("table", ["entity_to_id.tsv.gz", "entity_to_id.tsv", "entities.tsv", None])
def test_layouts_of_the_libraries(table: str | None, opened: Open, tmp_path: Path) -> None:
    path = tmp_path / "transe.safetensors"
    if table is None:  # our own names, ids within
        ids = {"entity_ids": "\n".join(ENTITY_IDS), "relation_ids": "\n".join(RELATION_IDS)}
        save_file(tensors(), path, ids)
    elif table == "entities.tsv":  # DGL-KE: NAME_TransE_l2_entity.npy, and tables without a header in any order
        path = tmp_path / "transe.npz"
        np.savez(path, tiny_TransE_l2_entity=vectors(ENTITY_IDS), tiny_TransE_l2_relation=vectors(RELATION_IDS))
        lines = [f"{row}\t{name}\n" for row, name in enumerate(ENTITY_IDS)]
        (tmp_path / table).write_text("".join(lines[::-1]))
        (tmp_path / "relations.tsv").write_text("0\tP551\n")
    else:  # PyKEEN: the model's state, and tables with a header
        state = "{}_representations.0._embeddings.weight"
        save_file(tensors(entity=state.format("entity"), relation=state.format("relation")), path)
        for name, ids in ((table, ENTITY_IDS), (table.replace("entity", "relation"), RELATION_IDS)):
            text = "id\tlabel\n" + "".join(f"{row}\t{label}\n" for row, label in enumerate(ids))
            with gzip.open(tmp_path / name, "wt") if name.endswith(".gz") else (tmp_path / name).open("w") as file:
                file.write(text)
    assert torch.equal(opened(path), expected())


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_number_formats(dtype: str, opened: Open, tmp_path: Path) -> None:
    content = arrays() | {"entity_ids": np.array(ENTITY_IDS, dtype="S")}
    content |= {name: content[name].astype(dtype) for name in ("entity_vectors", "relation_vectors")}
    torch.testing.assert_close(
        opened(write_npz(tmp_path / "v.npz", content)), expected(), rtol=2e-3 if dtype == "<f2" else 1e-6, atol=1e-3
    )


def test_bf16_of_the_same_width_is_taken_as_it_is(opened: Open, tmp_path: Path) -> None:
    rows = torch.randn(53, D).bfloat16()
    ids = {"entity_ids": "\n".join(ENTITY_IDS), "relation_ids": "P551"}
    save_file(
        {"entity_vectors": rows[:52].clone(), "relation_vectors": rows[52:].clone()}, tmp_path / "v.safetensors", ids
    )
    assert torch.equal(opened(tmp_path / "v.safetensors"), rows.float())


def test_what_is_missing_is_counted_and_stands_for_nothing(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_npz(tmp_path / "v.npz", arrays(ENTITY_IDS[5:]))
    context = open_context(tiny_dataset, one_rank, source="transe", file=str(path))
    context = with_entities(context, list(range(2, 20)))  # Q3 to Q20, of which Q3, Q4 and Q5 are missing
    found = filled(context)
    torch.testing.assert_close(found[3:18], expected()[5:20])
    torch.testing.assert_close(found[:3], expected()[5:20].mean(0).expand(3, D))
    assert capsys.readouterr().err == (
        f"injection: 3 of 18 entities and 0 of 1 relations have no vector in injection.file {path}; the mean of the "
        "others stands for such an entity, 0 for such a relation\n"
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no entity of the dataset": (
        {"entity_ids": np.array(["/m/02mjmr", *[f"Q{number}" for number in range(900, 951)]])},
        "has none of the dataset's 52 entities, such as Q1; it names /m/02mjmr. Train on the dataset's graph",
    ),
    "no relation of the dataset": (
        {"relation_ids": np.array(["P7"])},
        "has none of the dataset's 1 relations, such as P551; it names P7.",
    ),
    "an id twice": ({"entity_ids": np.array(["Q2", *ENTITY_IDS[1:]])}, "entity_ids: Q2 stands twice; leave one"),
    "too few ids": ({"entity_ids": np.array(ENTITY_IDS[1:])}, "entity_ids: names 51 rows of 52 vectors of entities"),
    "inverse relations": (
        {"relation_vectors": vectors(["P1", "P2"])},
        "names 1 rows of 2 vectors of relations; keep rows [::2]",
    ),
    "ids as objects": ({"entity_ids": np.array(ENTITY_IDS, dtype=object)}, "write it as numpy.array(ids, dtype=str)"),
    "ids as numbers": (
        {"entity_ids": np.arange(52)},
        "entity_ids is int64 [52]; write it as numpy.array(ids, dtype=str)",
    ),
    "not finite": (
        {"entity_vectors": np.where(np.arange(52)[:, None] == 6, np.nan, vectors(ENTITY_IDS))},
        "the vector of Q7 is not finite in float32, or beyond any use; mend it",
    ),
    "too large": (
        {"relation_vectors": np.full((1, W), 1e300)},
        "the vector of P551 is not finite in float32, or beyond any use; mend it",
    ),
    "two widths": ({"relation_vectors": np.zeros((1, 4), np.float32)}, "entities are 10 wide, relations 4; the rule"),
    "complex": (
        {"entity_vectors": np.zeros((52, W), np.complex64)},
        "entity_vectors is complex64 [52, 10], expected real",
    ),
    "integers": ({"entity_vectors": np.zeros((52, W), int)}, "entity_vectors is int64; write an array of float32"),
    "one dimension": ({"entity_vectors": np.zeros(52)}, "entity_vectors is float64 [52], expected real numbers"),
    "no rows": ({"relation_vectors": np.zeros((0, W))}, "relation_vectors is float64 [0, 10], expected real numbers"),
    "two candidates": (
        {"old_entity": np.zeros((52, W))},
        "which of them is the vectors of entities? Name it entity_vectors",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_content_that_cannot_serve_is_refused(case: str, opened: Open, tmp_path: Path) -> None:
    changes, message = REFUSED[case]
    path = write_npz(tmp_path / "v.npz", **changes)
    with pytest.raises(UserError) as error:
        opened(path)
    text = str(error.value)
    assert text.startswith(f"injection.file {path}: ")
    assert message in text
    assert "\n" not in text


def test_files_that_cannot_serve_are_refused(opened: Open, tmp_path: Path) -> None:
    def refused(path: Path, content: bytes | None = None) -> str:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as error:
            opened(path)
        assert str(error.value).startswith(f"injection.file {path}: ")
        assert "\n" not in str(error.value)
        return str(error.value)

    npz, safetensors, pickle = (tmp_path / f"v.{end}" for end in ("npz", "safetensors", "pkl"))
    for path in (npz, safetensors):
        assert "does not exist" in refused(path)
    assert "must be .npz or .safetensors; docs/knowledge.md" in refused(pickle, b"\x80\x04N.")
    save_file(tensors(), safetensors, {"entity_ids": "\n".join(ENTITY_IDS), "relation_ids": "P551"})
    for path, good in ((npz, write_npz(npz).read_bytes()), (safetensors, safetensors.read_bytes())):
        for content in (b"", good[:100], good[:-30], b"nonsense", b"\x80\x04N."):
            assert "cannot be read (" in refused(path, content)
    damaged = bytearray(good := write_npz(npz).read_bytes())
    damaged[len(good) // 3] ^= 1  # within an array: the archive's checksum tells
    assert "cannot be read (" in refused(npz, bytes(damaged))
    np.savez(npz, other=np.zeros(3))
    assert "holds other; none of which is known as the vectors of entities" in refused(npz)
    save_file(tensors(), safetensors)
    message = "has no entity_ids, and beside it lie none of entity_to_id.tsv.gz, entity_to_id.tsv, entities.tsv"
    assert message in refused(safetensors)
    for name in ("entities.tsv", "entity_to_id.tsv"):
        (tmp_path / name).write_text("")
    assert "beside it lie several of entity_to_id.tsv.gz" in refused(safetensors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\tQ1\n52\tQ2\n", "entities.tsv:2: expected a row below 52 that is not named yet, a tab, an id such as Q42"),
        ("0\tQ1\n0\tQ2\n", "entities.tsv:2: expected a row below 52 that is not named yet"),
        ("Q1\t0\n", "entities.tsv:1: expected a row below 52"),
        ("0,Q1\n", "entities.tsv:1: expected a row below 52"),
        ("0\t\n", "entities.tsv:1: expected a row below 52"),
        ("0\tQ1\n", "entities.tsv: names 1 rows of 52 vectors of entities; write both from the same model"),
    ],
)
def test_a_table_that_does_not_fit_is_named(text: str, message: str, opened: Open, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "v.safetensors")
    (tmp_path / "entities.tsv").write_text(text)
    with pytest.raises(UserError, match=r"^\S+entities.tsv") as error:
        opened(tmp_path / "v.safetensors")
    assert message in str(error.value)


def test_a_damaged_table_is_named(opened: Open, tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "v.safetensors")
    good = gzip.compress("".join(f"{row}\t{name}\n" for row, name in enumerate(ENTITY_IDS)).encode())
    for content in (b"nonsense", good[:-9], gzip.compress(b"\xff\xfe")):
        (tmp_path / "entity_to_id.tsv.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"entity_to_id.tsv.gz: cannot be read \(.*write it again"):
            opened(tmp_path / "v.safetensors")


def table_of(checkpoint: Path) -> list[torch.Tensor]:
    return [load_file(path)["rows"] for path in sorted((checkpoint / "knowledge").glob("vectors-*"))]


def test_a_run_continues_with_the_checkpoint_s_vectors(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = write_npz(tmp_path / "v.npz"), tmp_path / "run"
    settings = with_injection(config(), source="transe", file=str(path))  # refresh_every 3 does not apply
    continued(settings, tiny_dataset, run, one_rank)
    assert comparable(tmp_path / "continued") == comparable(run)
    assert capsys.readouterr().err.count("has all 52 entities and 1 relations") == 1
    first, last = (table_of(step) for step in sorted((run / "checkpoints").glob("step-*")))
    assert torch.equal(first[0], last[0])
    path.unlink()
    more = with_injection(config(max_steps=5), source="transe", file=str(tmp_path / "elsewhere.npz"))
    train(more, tiny_dataset, run, one_rank)
    assert torch.equal(table_of(committed(run)[0])[0], first[0])


def train_on_ranks(file: Path, dataset: Path, run: Path) -> None:
    ranks = connect()
    try:
        train(with_injection(config(), source="transe", file=str(file)), dataset, run, ranks)
    finally:
        disconnect()


@pytest.mark.slow
def test_two_ranks_have_the_rows_of_one(one_rank: Ranks, tiny_dataset: Path, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "v.npz", arrays(ENTITY_IDS[5:]))
    run_distributed_test(train_on_ranks, 2, path, tiny_dataset, tmp_path / "two")
    train(with_injection(config(), source="transe", file=str(path)), tiny_dataset, tmp_path / "one", one_rank)
    (alone,) = table_of(committed(tmp_path / "one")[0])
    shards = table_of(committed(tmp_path / "two")[0])
    assert len(shards) == 2
    for rank, shard in enumerate(shards):
        torch.testing.assert_close(shard, alone[rank::2], rtol=1e-5, atol=1e-7)
    assert len(read_metrics(tmp_path / "two")) == 4


def problem_on_ranks(file: Path, dataset: Path) -> str:
    ranks = connect()
    try:
        with pytest.raises(UserError) as error:
            filled(open_context(dataset, ranks, source="transe", file=str(file)))
        return str(error.value)
    finally:
        disconnect()


def test_a_bad_vector_reaches_every_rank(tiny_dataset: Path, tmp_path: Path) -> None:
    changes, _ = REFUSED["not finite"]
    path = write_npz(tmp_path / "v.npz", **changes)
    for message in run_distributed_test(problem_on_ranks, 2, path, tiny_dataset):
        assert message.endswith("the vector of Q7 is not finite in float32, or beyond any use; mend it")
