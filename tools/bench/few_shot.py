"""What an exported model knows beyond cloze questions: fine-tuned with few examples, and read by a linear probe."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FOLDERS = {"typing": "entity_typing", "relation": "relation_extraction"}
SIZES = (100, 500)
AT_LEAST = 3  # examples of every label, so that none of the test's is unknown
OPTIONS = [
    "--lr",
    "1e-3",
    "--epochs",
    "10",
    "--batch-size",
    "16",
    "--early-stopping",
    "0",
    "--truncate",
    "--seeds",
    "1",
]


def few_shot(model: Path, work: Path) -> dict[str, float]:
    """Measure test micro F1 in percent by task and number of examples, and of the linear probe.

    Args:
        model: exported folder.
        work: folder for the small datasets, and the results beside `model`.
    """
    found = {}
    for task, folder in FOLDERS.items():
        for size in SIZES:
            data = small_data(SHARED / folder, work / f"{folder}-{size}", size)
            out = model.with_name(f"{task}-{size}.json")
            command = [sys.executable, "-m", "trelm_ds", "evaluate", task, "--model", str(model), "--data", str(data)]
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run([*command, "--out", str(out), "--no-tracking", *OPTIONS], env=environment, **quiet)  # type: ignore[call-overload]
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            found[f"{task}, {size} examples"] = round(
                100 * json.loads(out.read_text())["scores"]["micro_f1"]["mean"], 2
            )
    found["typing, linear probe"] = round(100 * linear_probe(model, SHARED / FOLDERS["typing"]), 2)
    return found


def small_data(source: Path, folder: Path, size: int) -> Path:
    """Write a dataset with `size` of the training examples, every label among them, and all of dev and test."""
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}-{os.getpid()}")
        partial.mkdir(parents=True)
        for split in ("dev", "test"):
            shutil.copy(source / f"{split}.json.gz", partial)
        records = read(source / "train.json.gz")
        random.Random(size).shuffle(records)
        chosen: list[dict[str, Any]] = []
        counts: Counter[str] = Counter()
        for record in records:
            if min(counts[label] for label in labels(record)) < AT_LEAST:
                chosen.append(record)
                counts.update(labels(record))
        rest = [record for record in records if record not in chosen]
        (partial / "train.json").write_text(json.dumps((chosen + rest)[:size]))
        if len(chosen) > size:
            raise SystemExit(f"{source}: {size} examples cannot hold {AT_LEAST} of every label")
        partial.rename(folder)
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found: list[dict[str, Any]] = json.load(file)
    return found


def labels(record: dict[str, Any]) -> list[str]:
    """List a record's labels: of Open Entity several, of TACRED one."""
    return record["labels"] if "labels" in record else [record["relation"]]


def linear_probe(folder: Path, data: Path) -> float:
    """Predict types from the frozen model's mean state over the mention; return loose micro F1 on test."""
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler
    from transformers import AutoModel, AutoTokenizer

    from trelm_ds.evaluation.scorers import loose_micro

    torch.set_num_threads(1)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    longest = model.config.max_position_embeddings - 2

    @torch.no_grad()
    def states(records: list[dict[str, Any]]) -> np.ndarray:
        rows = []
        for record in records:
            encoded = tokenizer(record["sent"], return_offsets_mapping=True, add_special_tokens=False)
            places = [
                place
                for place, (first, last) in enumerate(encoded["offset_mapping"])
                if first < record["end"] and last > record["start"]
            ]
            first = max(0, min(places[0] - longest // 2, len(encoded["input_ids"]) - longest))
            ids = encoded["input_ids"][first : first + longest]
            shown = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
            hidden = model(shown).last_hidden_state[0, 1:-1]
            rows.append(hidden[[place - first for place in places if place - first < len(ids)]].mean(0).numpy())
        return np.stack(rows)

    train, test = (read(data / f"{split}.json.gz") for split in ("train", "test"))
    scaler, binarizer = StandardScaler(), MultiLabelBinarizer()
    probe = OneVsRestClassifier(LogisticRegression(max_iter=1000))
    probe.fit(scaler.fit_transform(states(train)), binarizer.fit_transform([one["labels"] for one in train]))
    predicted = binarizer.inverse_transform(probe.predict(scaler.transform(states(test))))
    return loose_micro([set(one["labels"]) for one in test], [set(one) for one in predicted]).f1
