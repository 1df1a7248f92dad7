"""The script that shows what h_e knows, on a small trained model: the gate of SPEC 3, and what it counts."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.e2e.launch import ROOT, trelm
from tests.forked import run

PEOPLE = [f"{begin}{end}" for begin in ("Al", "Bor", "Cor", "Dav", "Ed") for end in ("an", "ina", "mund", "ette")]
CITIES = [f"{name}{end}" for name in ("Ald", "Bern", "Cald", "Dunn") for end in ("ham", "ton", "wick", "by", "ford")]
PLAYED, GROWN = ["violin", "oboe", "harp", "drum", "flute"], ["wheat", "maize", "rice", "hops", "kale"]


def write_corpus(folder: Path) -> None:
    """People, each with a city of their own in the graph; the text tells another thing about each of both."""
    draw, lines = random.Random(0), []
    (graph := folder / "wikidata5m").mkdir(parents=True)
    names = {number: name for start, every in ((1, PEOPLE), (101, CITIES)) for number, name in enumerate(every, start)}
    told = {number: draw.choice(PLAYED if number < 100 else GROWN) for number in names}
    for _ in range(800):
        number = draw.choice(list(names))
        text = f"{names[number]} {'plays' if number < 100 else 'grows'} the {told[number]} now."
        lines.append({"text": text, "mentions": [{"qid": f"Q{number}", "start": 0, "end": len(names[number])}]})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    triples = "".join(f"Q{number}\tP551\tQ{100 + number}\n" for number in range(1, len(PEOPLE) + 1))
    (graph / "wikidata5m_all_triplet.txt").write_text(triples)
    (graph / "wikidata5m_entity.txt").write_text("".join(f"Q{number}\t{name}\n" for number, name in names.items()))
    (graph / "wikidata5m_relation.txt").write_text("P551\tresidence\n")


SETTINGS = """
model: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 128,
        max_position_embeddings: 32, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}
masking: {probability: 0.3}
selection: {strategy: all}
injection: {source: alias_mean, refresh_every: 50}
memory: {words: false}
cka: {decoder: none}
routing: {enabled: false}
loader: {workers: 0}
optimizer: {lr: 3.0e-3, warmup_steps: 20}
trainer: {max_steps: 300, global_batch_size: 32, micro_batch_tokens: 1024, precision: fp32,
          checkpoint_every: 300}
tracking: {enabled: false}
"""


@pytest.mark.slow
def test_a_small_trained_model_passes_the_gate(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    (tmp_path / "run.yaml").write_text(SETTINGS)
    data, out = tmp_path / "data", tmp_path / "run"
    text = ("--source", tmp_path / "corpus.jsonl", "--wikidata5m", tmp_path / "wikidata5m")
    prepared = trelm("prepare", *text, "--out", data, "--tokenizer", "train", "--vocab-size", 500, "--max-length", 32)
    assert prepared.returncode == 0, prepared.stderr
    trained = trelm("pretrain", "--config", tmp_path / "run.yaml", "--data", data, "--out", out)
    assert trained.returncode == 0, trained.stderr
    script = (str(ROOT / "tools" / "bench" / "injection.py"), str(out), "--data", str(data))
    done = run([*script, "--steps", "12", "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == 0, done.stderr
    last = found["checkpoints"]["300"]
    assert last["loss"]["own words"] < last["loss"]["h_e"] < last["loss"]["mean vector"]
    assert last["looked at"]["injected"] > 50
    assert last["looked at"]["leaks"] == 0  # no text names both
    vectors = last["vectors"]
    assert vectors["norm, both memories as they are mixed in"] < 2.01 * vectors["norm, word"]
    assert 0.2 < found["run"]["injected_per_sequence"] < 0.6
    assert found["run"]["lambda"][0] == 0.5
    assert found["run"]["lambda"][-1] == 0.0
