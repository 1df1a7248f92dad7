"""slurm/evaluate.sh on a real Slurm: the last checkpoint of a run, exported and scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import PEOPLE
from tests.e2e.launch import trelm
from tests.evaluation.tiny_tasks import write_glue, write_model, write_typing
from tests.slurm.local_cluster import Cluster
from tests.slurm.small_run import CPU_NODE, OBJECTIVE, on_cpu, write_config

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path("slurm/evaluate.sh")


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    folder = tmp_path / "probes"
    (folder / "TREx").mkdir(parents=True)
    (folder / "relations.jsonl").write_text('{"relation": "P551", "template": "[X] lives in [Y] .", "label": "home"}\n')
    facts = [{"sub_label": name, "obj_label": "river"} for name in PEOPLE[:5]]
    (folder / "TREx" / "P551.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in facts))
    return folder


@pytest.fixture
def run(tmp_path: Path, tiny_dataset: Path) -> Path:
    """A run folder with checkpoints of steps 2 and 4."""
    out, config = tmp_path / "run", write_config(tmp_path / "run.yaml", max_steps=4)
    arguments = ("--config", OBJECTIVE, "--config", config, "--data", tiny_dataset, "--out", out)
    trained = trelm("pretrain", *arguments, "--trainer.checkpoint_every", 2)
    assert trained.returncode == 0, trained.stderr
    return out


@on_cpu
def test_every_time_the_last_checkpoint(cluster: Cluster, tmp_path: Path, run: Path, probes: Path) -> None:
    site = {"TRELM_OUT": str(run), "TRELM_LAMA": str(probes), "TRELM_TASKS": "lama"}
    last = run / "checkpoints" / "step-00000004"
    hidden = last.rename(tmp_path / "hidden")
    exported = {}
    # Both jobs wait for another, as they would for pre-training.
    for step, options in (("step-00000002", ("--gres=gpu:1", "--cpus-per-task=1")), (last.name, CPU_NODE)):
        if step == last.name:
            hidden.rename(last)
        trained = cluster.submit("-o", "/dev/null", "--wrap", "sleep 1")
        order = ("--array=1", f"--dependency=afterok:{trained}", *options, "-o", tmp_path / step)
        job = cluster.wait(cluster.submit(*order, SCRIPT, "--batch-size", "2", **site))
        log, model = (tmp_path / step).read_text(), run / "export" / step
        assert job["JobState"] == "COMPLETED", log
        assert log.startswith(f"evaluate: lama of {model}\n")
        result = json.loads((run / "evaluation" / step / "lama.json").read_text())
        assert (result["parts"]["trex"]["n_facts"], result["model"]) == (5, str(model))
        assert (run / "evaluation" / step / "lama.png").is_file()
        exported[step] = load_file(model / "model.safetensors")
    before, after = exported.values()
    assert any((before[name] != after[name]).any() for name in before)


@on_cpu
def test_an_array_scores_all_tasks_of_one_checkpoint(cluster: Cluster, tmp_path: Path, run: Path) -> None:
    """Its second task starts when the run has a newer checkpoint; the others have no data."""
    data = {"TRELM_TYPING": str(write_typing(tmp_path / "typing")), "TRELM_GLUE": str(write_glue(tmp_path / "glue"))}
    last = run / "checkpoints" / "step-00000004"
    hidden = last.rename(tmp_path / "hidden")
    quick = ("--seeds", "1", "--epochs", "1", "--no-tracking")
    options = ("--array=2,3,4%1", *CPU_NODE, "-o", tmp_path / "%a.log")
    array = cluster.submit(*options, SCRIPT, *quick, TRELM_OUT=str(run), **data)
    cluster.wait(f"{array}_2")
    hidden.rename(last)
    for number, last_line in {
        "2": f"{run}/evaluation/step-00000002/typing.json and {run}/evaluation/step-00000002/typing.png written",
        "3": "evaluate: no data for relation in data/tacred: nothing to do",
        "4": f"{run}/evaluation/step-00000002/cola.json and {run}/evaluation/step-00000002/cola.png written",
    }.items():
        job, log = cluster.wait(f"{array}_{number}"), (tmp_path / f"{number}.log").read_text()
        assert job["JobState"] == "COMPLETED", log
        assert log.endswith(f"{last_line}\n")
    assert sorted(path.name for path in (run / "export").iterdir()) == [*(f".chosen-{array}", ".lock", "step-00000002")]
    result = json.loads((run / "evaluation" / "step-00000002" / "typing.json").read_text())
    assert result["options"]["truncate"] is True


@on_cpu
def test_a_folder_instead_of_a_run(cluster: Cluster, tmp_path: Path, probes: Path) -> None:
    model = write_model(tmp_path / "model")
    site = {"TRELM_MODEL": str(model), "TRELM_GLUE": str(write_glue(tmp_path / "glue"))}
    options = ("--array=6", *CPU_NODE, "-o", tmp_path / "log")
    job = cluster.wait(cluster.submit(*options, SCRIPT, "--seeds", "1", "--epochs", "1", "--no-tracking", **site))
    assert job["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "model-evaluation" / "mrpc.json").read_text())["model"] == str(model)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"TRELM_OUT": "nowhere", "TRELM_LAMA": "docs"}, "no checkpoint in nowhere: train first, or set TRELM_OUT"),
        ({"TRELM_MODEL": "nowhere", "TRELM_LAMA": "docs"}, "no Hugging Face folder at nowhere"),
        ({"TRELM_LAMA": "nowhere", "TRELM_TASKS": "lama"}, "no data for lama in nowhere: set TRELM_LAMA"),
        ({"TRELM_GLUE": "docs", "TRELM_TASKS": "rte"}, "no data for rte in docs: set TRELM_GLUE"),
        ({"TRELM_TASKS": "lama wnli"}, "TRELM_TASKS: 'wnli' is none of lama typing"),
        ({"TRELM_VENV": "nowhere"}, "no virtual environment at nowhere"),
    ],
)
def test_wrong_value_is_one_line(cluster: Cluster, tmp_path: Path, site: dict[str, str], message: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest.json").write_text("{}")
    site = {"TRELM_OUT": str(tmp_path)} | site
    job = cluster.wait(cluster.submit("--array=1", "-o", tmp_path / "log", SCRIPT, **site))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert log.startswith("evaluate: ")
    assert message in log
    assert log.count("\n") == 1, log
