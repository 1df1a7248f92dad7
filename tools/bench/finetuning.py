"""Compare fine-tuning: pre-trained with random weights, and our trainer with transformers' Trainer.

    python tools/bench/finetuning.py --model MODEL [--work WORK] [--seeds 3] [--only NAME ...]

MODEL is a Hugging Face folder of a BERT; the data is ../shared/data. Ours runs through the `trelm` command, and
transformers' `BertForSequenceClassification` under its `Trainer` (`pip install accelerate`), with the same weights,
settings and threads. Their runs and ours take turns, seed by seed; compared is the CPU time of the whole process, which
other load on the machine changes little.

It may be stopped at any time: records of finished runs are kept in WORK (docs/benchmarks/finetuning), and
docs/benchmarks/finetuning.json and docs/results.md are written after each run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trelm_ds.evaluation.finetuning.report import percent
from trelm_ds.evaluation.results import spread

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
OUT = ROOT / "docs" / "benchmarks" / "finetuning.json"
PAGE, MARK = ROOT / "docs" / "results.md", "<!-- finetuning {} -->"
LR, BATCH, EPOCHS = 1e-4, 32, 2
PLAN: dict[str, tuple[str, list[str]]] = {
    "typing": ("typing", ["--data", str(SHARED / "entity_typing"), "--epochs", "6", "--batch-size", "16"]),
    "relation": ("relation", ["--data", str(SHARED / "relation_extraction"), "--epochs", "1", "--batch-size", "32"]),
}
GLUE = ("mrpc", "cola")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=OUT.with_suffix(""))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*PLAN, *GLUE], default=[*PLAN, *GLUE])
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    random = random_weights(options.model, options.model.with_name(f"{options.model.name}-random"))
    for name in options.only:
        for seeds in range(1, options.seeds + 1):  # one more at a time, so that every comparison has as many of both
            if name in PLAN:
                for kind, model in (("pretrained", options.model), ("random", random)):
                    ours(name, *PLAN[name], model, options.work / f"{name}-{kind}.json", seeds)
            else:
                glue = ["--data", str(SHARED / "glue"), "--tasks", name, "--epochs", str(EPOCHS)]
                glue += ["--batch-size", str(BATCH), "--early-stopping", "0"]
                used = ours(name, "glue", glue, options.model, options.work / f"{name}-ours.json", seeds)
                record = options.work / f"{name}-ours-seed{seeds}.json"
                if not record.is_file():  # else the run was there already
                    record.write_text(json.dumps({"seed": seeds, "cpu_seconds": used}) + "\n")
                theirs(name, options.model, options.work, seeds)
            write(options.work, options.model)


def random_weights(model: Path, folder: Path) -> Path:
    """Make a folder of the same architecture and tokenizer with fresh weights."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer, set_seed

    if not (folder / "model.safetensors").is_file():
        set_seed(0)
        AutoModel.from_config(AutoConfig.from_pretrained(model)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def ours(name: str, task: str, arguments: list[str], model: Path, out: Path, seeds: int) -> float:
    """Fine-tune with the `trelm` command, which keeps what it has done; return the CPU seconds of what was missing."""
    print(f"{name}: {model.name}, {seeds} seeds, ours", flush=True)
    out.unlink(missing_ok=True)  # it may name the model's folder on another machine; the records of its runs stay
    command = [sys.executable, "-m", "trelm_ds", "evaluate", task, "--model", str(model), "--out", str(out)]
    command += ["--seeds", str(seeds), "--lr", str(LR), "--no-tracking", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", "OMP_NUM_THREADS": "1"}
    return cpu_seconds(command, environment)


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    """Run a command; return the CPU time of its process, start and reading included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)


def theirs(name: str, model: Path, work: Path, seed: int) -> None:
    """Fine-tune in a process of its own; its record is kept."""
    record = work / f"{name}-transformers-seed{seed}.json"
    if not (record.is_file() and "cpu_seconds" in json.loads(record.read_text())):
        print(f"{name}: {model.name}, seed {seed}, transformers", flush=True)
        code = f"from finetuning import trainer; trainer({name!r}, {str(model)!r}, {str(record)!r}, {seed})"
        path = os.pathsep.join(map(str, (ROOT / "tools" / "bench", ROOT, ROOT / "kernels")))
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        used = cpu_seconds([sys.executable, "-c", code], environment)
        record.write_text(json.dumps(json.loads(record.read_text()) | {"cpu_seconds": used}) + "\n")


def trainer(name: str, model: str, record: str, seed: int) -> None:
    """Train and score one GLUE task as transformers' own example does."""
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    from trelm_ds.evaluation import read_glue

    set_seed(seed)
    task, tokenizer = read_glue(SHARED / "glue", name), AutoTokenizer.from_pretrained(model)

    def encoded(examples: list[Any]) -> list[dict[str, Any]]:
        texts = tokenizer(*map(list, zip(*(example.texts for example in examples), strict=True)))
        labels = [task.labels.index(example.target) for example in examples]
        return [
            {key: values[row] for key, values in texts.items()} | {"labels": label} for row, label in enumerate(labels)
        ]

    settings = TrainingArguments(
        output_dir=f"{record}.partial",
        learning_rate=LR,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=64,
        num_train_epochs=EPOCHS,
        warmup_steps=0.06,  # a share, below 1
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        seed=seed,
        use_cpu=True,
        eval_strategy="epoch",  # ours scores dev after every epoch as well
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    dev = task.evaluated["dev"]
    loop = Trainer(
        model=BertForSequenceClassification.from_pretrained(model, num_labels=len(task.labels)),
        args=settings,
        train_dataset=encoded(task.train),
        eval_dataset=encoded(dev),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    loop.train()
    logits = loop.predict(loop.eval_dataset).predictions
    predicted = [task.labels[index] for index in logits.argmax(-1)]
    scores = task.score([example.target for example in dev], predicted)
    Path(record).write_text(json.dumps({"seed": seed, "scores": scores}) + "\n")


def write(work: Path, model: Path) -> None:
    """Collect what there is."""
    read = {path.stem: json.loads(path.read_text()) for path in sorted(work.glob("*.json"))}
    result: dict[str, Any] = {
        "device": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, 1 thread a run, no GPU",
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy", "scikit-learn")},
        "date": datetime.date.today().isoformat(),
        "model": model.name,
        "lr": LR,
        "tasks": {},
    }
    for name in PLAN:
        kinds = {kind: read[f"{name}-{kind}"] for kind in ("pretrained", "random") if f"{name}-{kind}" in read}
        if len(kinds) == 2:  # else one of them is being run with a further seed
            result["tasks"][name] = {
                kind: {"options": of["options"], "scores": of["scores"], "baseline": of["baseline"][of["reported"]]}
                for kind, of in kinds.items()
            }
    for name in GLUE:
        runs = [of for stem, of in read.items() if stem.startswith(f"{name}-transformers-seed") and "cpu_seconds" in of]
        if f"{name}-ours" in read and runs:
            mine = read[f"{name}-ours"]["tasks"][name]
            pairs = list(zip(mine["runs"], sorted(runs, key=lambda run: run["seed"]), strict=False))
            metric = mine["metric"]
            seconds = [(read[f"{name}-ours-seed{a['seed']}"]["cpu_seconds"], b["cpu_seconds"]) for a, b in pairs]
            result["tasks"][name] = {
                "metric": metric,
                "ours": spread([run["scores"]["dev"][metric] for run, _ in pairs]),
                "transformers": spread([run["scores"][metric] for _, run in pairs]),
                "cpu_seconds": {"ours": [a for a, _ in seconds], "transformers": [b for _, b in seconds]},
                "time_ours_over_transformers": statistics.median(a / b for a, b in seconds),
            }
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    page = PAGE.read_text()
    before, rest = page.split(MARK.format("begin"))
    after = rest.split(MARK.format("end"))[1]
    PAGE.write_text(f"{before}{MARK.format('begin')}\n{tables(result)}\n{MARK.format('end')}{after}")


def tables(result: dict[str, Any]) -> str:
    """Format the result for the page: fine-tuning with and without pre-trained weights, ours beside transformers'."""
    lines = ["| test, percent | pre-trained | random weights | most frequent | seeds |", "|---|---|---|---|---|"]
    for name, metrics in {"typing": ("micro_f1", "macro_f1"), "relation": ("micro_f1", "macro_f1")}.items():
        kinds = result["tasks"].get(name, {})
        for metric in metrics if kinds else ():
            pretrained, random = (kinds[kind]["scores"][metric] for kind in ("pretrained", "random"))
            cells = [percent(pretrained), percent(random), f"{100 * kinds['random']['baseline'][metric]:.1f}"]
            lines.append(f"| {name}, {metric.replace('_', ' ')} | {' | '.join(cells)} | {len(random['values'])} |")
    lines += ["", "| dev, percent | `trelm evaluate` | transformers' Trainer | CPU time, ours / theirs | seeds |"]
    lines.append("|---|---|---|---|---|")
    for name in GLUE:
        if of := result["tasks"].get(name):
            cells = [percent(of["ours"]), percent(of["transformers"]), f"{of['time_ours_over_transformers']:.2f}"]
            lines.append(f"| {name}, {of['metric']} | {' | '.join(cells)} | {len(of['ours']['values'])} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join([*lines, "", f"{result['device']}; {versions}; {result['date']}."])


if __name__ == "__main__":
    main()
