"""The benchmark of the strategies runs on the tiny corpus and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path

from tests.forked import ROOT, run
from tests.importance.conftest import make_backbone
from trelm_ds.shards import Manifest


def test_numbers_and_plot(tiny_corpus: Path, tiny_dataset: Path, tmp_path: Path) -> None:
    vocabulary = Manifest.load(tiny_dataset).tokenizer["vocab_size"]
    model = make_backbone(tmp_path / "model", vocabulary, max_position_embeddings=512)
    command = [ROOT / "tools" / "bench" / "strategies.py", "--source", tiny_corpus / "corpus.jsonl"]
    command += ["--wikidata5m", tiny_corpus / "wikidata5m", "--tokenizer", tiny_dataset / "tokenizer"]
    command += ["--model", model, "--work", tmp_path / "work", "--out", tmp_path / "strategies.json"]
    results = []
    for _ in range(2):
        done = run([*map(str, command)])
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / "strategies.json").read_text()))
    assert results[0]["speed"]["mentions"] == results[0]["quantiles"]["0.5"]["scores"]["counts"]["scored"] > 0
    assert results[1] == results[0] | {"speed": None}
    kept = [
        of["kept"]["by frequency and importance"]["long_tail"]["mentions"]["share"]
        for of in results[0]["quantiles"].values()
    ]
    assert kept == sorted(kept)
    assert 0 < kept[0] < kept[-1] < 1
    assert (tmp_path / "strategies.png").read_bytes().startswith(b"\x89PNG")
