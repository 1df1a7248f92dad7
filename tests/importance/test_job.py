"""Scoring a dataset: what is stored, restarts, parts, refusals, and opening the scores for training."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.e2e.launch import environment
from tests.forked import Command
from tests.importance.conftest import make_backbone, reshard
from trelm_ds.config import SelectionConfig
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.errors import UserError
from trelm_ds.importance import (
    ImportanceScores,
    MentionScorer,
    Part,
    ScoreOptions,
    load_frequencies,
    open_selector,
    score_dataset,
)
from trelm_ds.model import load_encoder
from trelm_ds.shards import Manifest, ShardReader


def stored(data: Path) -> dict[str, bytes]:
    """Every file but locks, which a killed process leaves behind; they hold nothing."""
    files = sorted(path for path in (data / "importance").iterdir() if path.suffix != ".lock")
    return {path.name: path.read_bytes() for path in files}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "trelm_ds", "importance", *map(str, arguments)]


def one_by_one(data: Path, backbone: Path) -> tuple[np.ndarray, np.ndarray]:
    """(QIDs [M], cosines [M]) of every mention in the dataset's order, each sequence scored by itself."""
    reader = ShardReader(data)
    info = TokenizerInfo(**reader.manifest.tokenizer)
    scorer = MentionScorer(load_encoder(backbone), info, torch.device("cpu"), 64)
    qids, cosines = [], []
    for sample in range(reader.manifest.n_sequences):
        tokens, mentions = reader.sequence(sample)
        spans = np.column_stack([np.zeros(len(mentions), dtype=int), mentions[:, :2]])
        cosines.append(scorer.cosines(tokens, np.array([len(tokens)]), spans))
        qids.append(mentions[:, 2])
    return np.concatenate(qids), np.concatenate(cosines)


@pytest.mark.parametrize("scope", ["long_tail", "all"])
def test_every_mention_in_scope_has_its_cosine(data: Path, backbone: Path, scope: str) -> None:
    result = score_dataset(ScoreOptions(data, backbone, scope=scope))  # type: ignore[arg-type]
    manifest = Manifest.load(data)
    scores = ImportanceScores(data, manifest)
    found = np.concatenate([scores.block(n) for n in range(sum(len(shard.blocks) for shard in manifest.shards))])
    qids, cosines = one_by_one(data, backbone)
    frequencies = load_frequencies(data)
    counts = dict(zip(frequencies.qids.tolist(), frequencies.counts.tolist(), strict=True))
    rare = np.array([counts[qid] < frequencies.mean for qid in qids.tolist()])
    asked = np.ones(len(qids), dtype=bool) if scope == "all" else rare
    assert 0 < rare.sum() < len(rare)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(np.isnan(found), ~asked)
    np.testing.assert_allclose(
        found[asked], cosines[asked], atol=2**-11
    )  # half a step of float16 below 1, and rounding
    about = json.loads((data / "importance" / "importance.json").read_text())
    assert about["counts"] == result.counts
    assert about["counts"] == {
        "mentions": len(qids),
        "in scope": asked.sum(),
        "scored": asked.sum(),
        "without context": 0,
    }
    assert (about["dtype"], about["scope"], about["dataset"]) == ("float16", scope, manifest.fingerprint)
    assert dict(map(tuple, about["histogram"])) == {
        float(value): int((found[rare] == value).sum()) for value in np.unique(found[rare])
    }
    assert result.complete
    assert [path.name for path in (data / "importance").glob(".*")] == []


def test_a_mention_without_context_is_counted(data: Path, backbone: Path, tmp_path: Path) -> None:
    """A sequence that is nothing but its mention."""
    reader = ShardReader(data)
    tokens, _ = reader.sequence(0)
    info = TokenizerInfo(**reader.manifest.tokenizer)
    whole = MentionScorer(load_encoder(backbone), info, torch.device("cpu"), 64)
    short = np.array([info.cls, *tokens[1:3], info.sep])
    assert np.isnan(whole.cosines(short, np.array([4]), np.array([[0, 1, 3]]))).all()

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = [{"text": "Person01", "mentions": [{"qid": "Q2", "start": 0, "end": 8}]}, {"text": "Person01 likes it."}]
    (corpus / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    graph = corpus / "graph"
    graph.mkdir()
    (graph / "wikidata5m_all_triplet.txt").write_text("Q2\tP1\tQ3\n")
    (graph / "wikidata5m_entity.txt").write_text("Q2\tPerson01\n")
    (graph / "wikidata5m_relation.txt").write_text("P1\tresidence\n")
    from trelm_ds.corpus import PrepareOptions, prepare

    made = tmp_path / "made"
    prepare(PrepareOptions(corpus / "corpus.jsonl", graph, str(data / "tokenizer"), made, 32))
    result = score_dataset(ScoreOptions(made, backbone, entity_threshold=2))
    assert result.counts == {"mentions": 1, "in scope": 1, "scored": 0, "without context": 1}
    scores = ImportanceScores(made, Manifest.load(made))
    selector = open_selector(made, SelectionConfig(entity_threshold=2), scores)
    assert not selector(np.array([[0, 1, 3, 2]]), scores.block(0)).any()


def test_what_is_sound_is_skipped_and_what_is_damaged_is_made_again(data: Path, backbone: Path) -> None:
    score_dataset(ScoreOptions(data, backbone))
    before = stored(data)
    result = score_dataset(ScoreOptions(data, backbone))
    assert (result.skipped, result.counts) == (result.shards, {})
    folder = data / "importance"
    (folder / "shard-000002.npy").write_bytes(before["shard-000002.npy"][:-1])
    (folder / "shard-000003.npy").unlink()
    (folder / "shard-000004.json").write_text("{")
    with pytest.raises(UserError, match=r"shard-000002.npy: missing or damaged; run `trelm importance"):
        ImportanceScores(data, Manifest.load(data))
    result = score_dataset(ScoreOptions(data, backbone))
    assert result.skipped == result.shards - 3
    assert stored(data) == before


def test_three_parts_are_the_whole(data: Path, shards: Path, backbone: Path, tmp_path: Path) -> None:
    score_dataset(ScoreOptions(data, backbone))
    apart = Path(shutil.copytree(shards, tmp_path / "apart"))
    for index in (3, 1):
        assert not score_dataset(ScoreOptions(apart, backbone, part=Part(index, 3))).complete
        assert not (apart / "importance" / "importance.json").exists()
        with pytest.raises(UserError, match="holds no complete scores; run `trelm importance"):
            ImportanceScores(apart, Manifest.load(apart))
    assert score_dataset(ScoreOptions(apart, backbone, part=Part(2, 3))).complete
    assert stored(apart) == stored(data)
    assert score_dataset(ScoreOptions(apart, backbone, part=Part(99, 99))).shards == 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_two_parts_run_at_once(
    data: Path, shards: Path, backbone: Path, tmp_path: Path
) -> None:
    """The real command: kill -9 in the middle, then both halves side by side; the files are those of a quiet run."""
    slow = ("--model", backbone, "--batch-tokens", 1, "--scope", "all")
    quiet = subprocess.run(command(data, *slow), capture_output=True, text=True, env=environment(), timeout=300)
    assert quiet.returncode == 0, quiet.stderr
    assert "800  scored in" in quiet.stdout

    disturbed = Path(shutil.copytree(shards, tmp_path / "disturbed"))
    folder = disturbed / "importance"
    process = Command(["importance", str(disturbed), *map(str, slow)])
    while not (folder / "shard-000001.json").is_file() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("shard-*.json")}
    assert 2 <= len(kept) < len(Manifest.load(disturbed).shards)
    assert not (folder / "importance.json").exists()
    (folder / ".shard-000009.npy.4711.tmp").write_bytes(b"half")  # as a kill in the middle of a write leaves it

    parts = [["importance", disturbed, *slow, "--part", f"{n}/2"] for n in (1, 2)]
    halves = [Command([*map(str, part)]) for part in parts]
    for half in halves:
        _, errors = half.communicate(timeout=300)
        assert half.returncode == 0, errors
    assert {name: (folder / name).stat().st_mtime_ns for name in kept} == kept
    assert stored(disturbed) == stored(data)


def test_scores_of_another_kind_are_refused(data: Path, backbone: Path, tmp_path: Path) -> None:
    vocabulary = Manifest.load(data).tokenizer["vocab_size"]
    score_dataset(ScoreOptions(data, backbone, part=Part(1, 5)))
    again = rf"importance: holds scores of {{}}; remove that folder to score .*{data.name} again"
    other = make_backbone(tmp_path / "other", vocabulary, seed=1)
    with pytest.raises(UserError, match=again.format("another model")):
        score_dataset(ScoreOptions(data, other))
    with pytest.raises(UserError, match=again.format("scope long_tail")):
        score_dataset(ScoreOptions(data, backbone, scope="all"))
    with pytest.raises(UserError, match=again.format("another entity_threshold")):
        score_dataset(ScoreOptions(data, backbone, entity_threshold=3))
    score_dataset(ScoreOptions(data, backbone))
    moved = reshard(data, tmp_path / "moved", block_sequences=8)
    shutil.copytree(data / "importance", moved / "importance")
    with pytest.raises(UserError, match=again.replace("data", "moved").format("an earlier dataset")):
        score_dataset(ScoreOptions(moved, backbone))
    with pytest.raises(UserError, match="scores of another dataset; remove it"):
        ImportanceScores(moved, Manifest.load(moved))


def test_a_model_that_does_not_fit_is_refused(data: Path, backbone: Path, tmp_path: Path) -> None:
    vocabulary = Manifest.load(data).tokenizer["vocab_size"]
    small = make_backbone(tmp_path / "small", vocabulary - 1)
    with pytest.raises(UserError, match=rf"small has {vocabulary - 1} tokens, the dataset's tokenizer {vocabulary}"):
        score_dataset(ScoreOptions(data, small))
    short = make_backbone(tmp_path / "short", vocabulary, max_position_embeddings=31)
    with pytest.raises(UserError, match="short reads 31 tokens, the dataset was prepared with --max-length 32"):
        score_dataset(ScoreOptions(data, short))
    mixed = Path(shutil.copytree(backbone, tmp_path / "mixed"))
    tokens = (data / "tokenizer" / "vocab.txt").read_text().splitlines()
    specials = [token for token in tokens if token.startswith("[") and len(token) > 1]
    rest = [token for token in tokens if token not in specials]
    (mixed / "vocab.txt").write_text("".join(f"{token}\n" for token in [*specials, *reversed(rest)]))
    with pytest.raises(UserError, match="mixed has another tokenizer than the dataset"):
        score_dataset(ScoreOptions(data, mixed))
    assert not (data / "importance").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_tokens": 0}, "--batch-tokens: must be at least 1, got 0"),
        ({"entity_threshold": 0}, "--entity-threshold: must be at least 1, got 0"),
        ({"dataset": Path("nowhere")}, "nowhere is no dataset"),
        ({"model": Path("nowhere")}, "config.json does not exist"),
    ],
)
def test_mistakes_are_named(data: Path, backbone: Path, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_dataset(ScoreOptions(**{"dataset": data, "model": backbone} | change))


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/", "a/b", "1/0", "-1/3", "1/2/3"])
def test_parts_that_make_no_sense(text: str) -> None:
    with pytest.raises(UserError, match="--part: give i/n"):
        Part.parse(text)
    assert Part.parse("2/8") == Part(2, 8)


def test_a_gpu_that_is_not_there(data: Path, backbone: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="--device: cuda is not available here"):
        score_dataset(ScoreOptions(data, backbone, device="cuda"))


def test_a_damaged_shard_is_never_scored(data: Path, backbone: Path) -> None:
    path = data / Manifest.load(data).shards[1].name
    content = bytearray(path.read_bytes())
    content[1200] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"shard-000001\.tar at byte 0: damaged block"):
        score_dataset(ScoreOptions(data, backbone))
    path.unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar: cannot be read: No such file"):
        score_dataset(ScoreOptions(data, backbone))


def test_a_batch_that_is_too_large(data: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(MentionScorer, "cosines", fails)
    with pytest.raises(UserError, match="--batch-tokens: a batch does not fit"):
        score_dataset(ScoreOptions(data, backbone))


def test_a_summary_that_was_changed(data: Path, backbone: Path) -> None:
    score_dataset(ScoreOptions(data, backbone))
    for content in ("{}", "[]", '{"shards": {"shard-000000.tar": 3}}'):
        (data / "importance" / "importance.json").write_text(content)
        with pytest.raises(UserError, match=r"importance\.json: damaged \(.*\); remove it and run `trelm importance"):
            ImportanceScores(data, Manifest.load(data))
    assert score_dataset(ScoreOptions(data, backbone)).complete
    ImportanceScores(data, Manifest.load(data))


def test_two_processes_do_not_score_one_shard(data: Path, backbone: Path) -> None:
    from trelm_ds.files import lock

    (data / "importance").mkdir()
    with (
        lock(data / "importance" / ".shard-000000.lock", "x"),
        pytest.raises(UserError, match="shard-000000 is in use by another process"),
    ):
        score_dataset(ScoreOptions(data, backbone))


def test_the_selector_of_a_dataset(data: Path, backbone: Path) -> None:
    """Other thresholds than the scored one, and what long-tail scores cannot answer."""
    manifest = Manifest.load(data)
    score_dataset(ScoreOptions(data, backbone))
    scores = ImportanceScores(data, manifest)
    for strategy in ("all", "high_frequency"):
        with pytest.raises(
            UserError, match=f"strategy: {strategy} needs scores of every mention; remove .* --scope all"
        ):
            open_selector(data, SelectionConfig(strategy), scores)
    with pytest.raises(UserError, match=r"entity_threshold: 99, but mentions were scored below 15\.3846 only; remove"):
        open_selector(data, SelectionConfig(entity_threshold=99), scores)
    digest = scores.digest

    shutil.rmtree(data / "importance")
    score_dataset(ScoreOptions(data, backbone, scope="all", entity_threshold=8))
    scores = ImportanceScores(data, manifest)
    assert scores.digest != digest
    frequencies = load_frequencies(data)
    counts = dict(zip(frequencies.qids.tolist(), frequencies.counts.tolist(), strict=True))
    reader = ShardReader(data)
    qids = np.concatenate([reader.sequence(n).mentions[:, 2] for n in range(manifest.n_sequences)]).tolist()
    cosines = np.concatenate([scores.block(n) for n in range(len(reader.block_sizes))])
    for threshold in (None, 8, 99):
        limit = frequencies.mean if threshold is None else threshold
        rare = np.sort(cosines[[counts[qid] < limit for qid in qids]])
        selector = open_selector(data, SelectionConfig("all", threshold, quantile=0.25), scores)
        assert selector.bar == rare[math.ceil(0.25 * len(rare)) - 1]
    assert open_selector(data, SelectionConfig(), None).bar is None
