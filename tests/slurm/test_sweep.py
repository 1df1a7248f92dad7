"""slurm/sweep.sh on a real Slurm: one run for every line of settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.slurm.local_cluster import REPO, Cluster, until
from tests.slurm.small_run import CPU_NODE, OBJECTIVE, events, last_step, losses, on_cpu, write_config
from trelm_ds.cli import main

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path("slurm/sweep.sh")


@on_cpu
def test_every_line_is_a_run_that_is_requeued_by_itself(cluster: Cluster, tmp_path: Path, tiny_dataset: Path) -> None:
    """The last task of an array has the array's own number: its requeue must leave the others alone."""
    from mlflow import MlflowClient

    sweep, out = tmp_path / "sweep.txt", tmp_path / "rates"
    sweep.write_text("# rates\n\n--optimizer.lr 1e-3\n  # more\n--optimizer.lr 0.5 --trainer.max_steps 1000000")
    config = write_config(tmp_path / "run.yaml")
    site = {"TRELM_DATA": str(tiny_dataset), "TRELM_OUT": str(out), "TRELM_CONFIG": f"{OBJECTIVE} {config}"}
    common = ("--trainer.max_steps", "20", "--tracking.enabled", "true")
    options = ("--array=1-2", *CPU_NODE, "-o", tmp_path / "%a.log")
    array = cluster.submit(*options, SCRIPT, sweep, *common, **site)
    second = out / "002"
    until(lambda: last_step(second) > 20, "a checkpoint of run 2")  # a line's settings go before those for all
    first = cluster.wait(f"{array}_1")
    assert (first["JobState"], first["Restarts"]) == ("COMPLETED", "0"), (tmp_path / "1.log").read_text()
    assert cluster.job(f"{array}_2")["JobId"] == array
    assert cluster.run("scancel", "--batch", "--signal=USR1", f"{array}_2").returncode == 0
    sweep.write_text("--optimizer.lr 7\n--optimizer.lr 7\n")  # for the next sweep; this one goes on as it began
    log = tmp_path / "2.log"
    until(lambda: log.read_text().count("sweep: run ") == 2, "the second start")
    assert "--optimizer.lr 7" not in log.read_text()
    assert events(second)[:2] == ["start", "requeue"]
    assert cluster.job(f"{array}_1")["Restarts"] == "0"
    assert cluster.run("scancel", f"{array}_2").returncode == 0
    cluster.wait(f"{array}_2")

    lines = {"1": "--optimizer.lr 1e-3", "2": "--optimizer.lr 0.5 --trainer.max_steps 1000000"}
    for number, line in lines.items():
        run = out / f"00{number}"
        assert (run / "settings.txt").read_text() == f"{line}\n"
        assert (tmp_path / f"{number}.log").read_text().startswith(f"sweep: run {run}: {line}\n")
        settings = yaml.safe_load((run / "config.yaml").read_text())
        assert settings["optimizer"]["lr"] == float(line.split()[1])
    assert events(out / "001") == ["start", "end"]
    assert len(losses(out / "001")) == 20
    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("rates").experiment_id])
    assert {run.info.run_name: run.data.params["optimizer.lr"] for run in runs} == {"001": "0.001", "002": "0.5"}


@pytest.mark.parametrize(
    ("array", "arguments", "message"),
    [
        (["--array=3"], ["{sweep}"], "no line 3 in {sweep}, which has 2"),
        (["--array=0"], ["{sweep}"], "no line 0 in {sweep}, which has 2"),
        (["--array=1"], ["nowhere.txt"], "no file of settings at 'nowhere.txt'"),
        (["--array=1"], [], "no file of settings at ''"),
        ([], ["{sweep}"], "submit it as an array"),
        (
            ["--array=2"],
            ["{sweep}"],
            "002 was trained with '--optimizer.lr 3', line 2 of {sweep} is '--optimizer.lr 2'",
        ),
    ],
)
def test_wrong_value_is_one_line(
    cluster: Cluster, tmp_path: Path, array: list[str], arguments: list[str], message: str
) -> None:
    sweep, trained = tmp_path / "sweep.txt", tmp_path / "002"
    sweep.write_text("--optimizer.lr 1\n# a comment\n--optimizer.lr 2\n")
    (trained / "checkpoints").mkdir(parents=True)
    (trained / "checkpoints" / "latest.json").write_text("{}")
    (trained / "settings.txt").write_text("--optimizer.lr 3\n")
    arguments = [text.format(sweep=sweep) for text in arguments]
    task = cluster.submit(*array, "-o", tmp_path / "log", SCRIPT, *arguments, TRELM_OUT=str(tmp_path))
    job = cluster.wait(task)
    log = (tmp_path / "log").read_text()
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    assert log.startswith("sweep: ")
    assert message.format(sweep=sweep) in log
    assert log.count("\n") == 1, log


def test_the_example_has_settings_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (REPO / "slurm" / "sweep.example.txt").read_text().splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert len(lines) == 6
    recipes = REPO / "trelm_ds" / "recipes"
    for line in lines:
        command = ["pretrain", "--config", recipes / "sizes" / "base.yaml", "--config", recipes / "trelm.yaml"]
        with pytest.raises(SystemExit) as ended:
            main([*map(str, command), *line.split(), "--print-config"])
        assert ended.value.code == 0, capsys.readouterr().err
