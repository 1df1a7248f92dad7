"""slurm/evaluate.sh on a real Slurm: the last checkpoint of a run, exported and asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.conftest import PEOPLE
from tests.e2e.launch import trelm
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
    site = {"TRELM_OUT": str(run), "TRELM_LAMA": str(probes)}
    last = run / "checkpoints" / "step-00000004"
    hidden = last.rename(tmp_path / "hidden")
    exported = {}
    # Both jobs wait for another, as they would for pre-training.
    for step, options in (("step-00000002", ("--gres=gpu:1", "--cpus-per-task=1")), (last.name, CPU_NODE)):
        if step == last.name:
            hidden.rename(last)
        trained = cluster.submit("-o", "/dev/null", "--wrap", "sleep 1")
        order = (f"--dependency=afterok:{trained}", *options, "-o", tmp_path / "log")
        job = cluster.wait(cluster.submit(*order, SCRIPT, "--batch-size", "2", **site))
        log = (tmp_path / "log").read_text()
        assert job["JobState"] == "COMPLETED", log
        assert f"evaluate: {run / 'export'} is {run / 'checkpoints' / step}\n" in log
        result = json.loads((run / f"lama-{step}.json").read_text())
        assert (result["parts"]["trex"]["n_facts"], result["model"]) == (5, str(run / "export"))
        assert (run / f"lama-{step}.png").is_file()
        exported[step] = load_file(run / "export" / "model.safetensors")
    before, after = exported.values()
    assert any((before[name] != after[name]).any() for name in before)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ({"TRELM_OUT": "nowhere"}, "no checkpoint in nowhere: train first, or set TRELM_OUT"),
        ({"TRELM_LAMA": "nowhere"}, "no probes in nowhere"),
        ({"TRELM_VENV": "nowhere"}, "no virtual environment at nowhere"),
    ],
)
def test_wrong_value_is_one_line(cluster: Cluster, tmp_path: Path, site: dict[str, str], message: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest.json").write_text("{}")
    site = {"TRELM_OUT": str(tmp_path)} | site
    job = cluster.wait(cluster.submit("-o", tmp_path / "log", SCRIPT, **site))
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert log.startswith("evaluate: ")
    assert message in log
    assert log.count("\n") == 1, log
