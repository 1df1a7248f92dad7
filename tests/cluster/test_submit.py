"""`trelm submit` as far as it goes without Slurm: what it refuses, the sbatch file, the snapshot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.e2e.launch import ROOT
from trelm_ds.cli import main
from trelm_ds.cluster.job_file import job_file, join_options
from trelm_ds.cluster.slurm import outside_jobs
from trelm_ds.cluster.snapshot import copy_code, describe_git, make_paths_absolute
from trelm_ds.config import Config, InjectionConfig, LoaderConfig, ModelConfig, TrackingConfig, TrainerConfig
from trelm_ds.errors import UserError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder on a machine without Slurm, and none of its variables set."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "env", "git"):
        if (found := shutil.which(name)) is not None:
            (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    for name in list(os.environ):
        if name.startswith(("TRELM_", "SBATCH_", "SLURM_", "MLFLOW_")):
            monkeypatch.delenv(name)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def submit(here: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `trelm submit` in this process; returns exit code, stdout, stderr."""

    def run(*arguments: object, data: Path | str = tiny_dataset, out: str = "run") -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["submit", "--data", str(data), "--out", out, *map(str, arguments)])
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def test_dry_run_prints_the_file_and_writes_nothing(submit: Run, here: Path, tiny_dataset: Path) -> None:
    code, text, errors = submit("-N", 2, "--loader.seed=7", "--dry-run", "--", "-p", "gpu", "--time", "1:00:00")
    assert (code, errors) == (0, "")
    assert list(here.iterdir()) == []
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    folder = here / "run" / "submissions" / "001"
    asked = [line for line in lines if line.startswith("#SBATCH")]
    assert asked[-4:] == [
        f"#SBATCH --output={here}/run/slurm/%j.log",
        "#SBATCH --nodes=2",
        "#SBATCH -pgpu",
        "#SBATCH --time=1:00:00",
    ]
    commands = [line for line in lines if line.strip() and not line.startswith("#")]
    assert lines.index(asked[-1]) < lines.index(commands[0])
    for value in (
        f"TRELM_HOME={folder}/code",
        f"TRELM_CONFIG={folder}/config.yaml",
        f"TRELM_DATA={tiny_dataset}",
        f"TRELM_OUT={here}/run",
        f"TRELM_VENV={sys.prefix}",
        "TRELM_ARGS=''",
    ):
        assert f"export {value}" in commands
    assert commands[-1] == 'source "$TRELM_HOME/slurm/pretrain.sh"'  # the end of slurm/pretrain_large.sh, the default
    (here / "run" / "submissions" / ".004-killed").mkdir(parents=True)
    assert f"TRELM_CONFIG={here}/run/submissions/005/config.yaml" in submit("--dry-run")[1]


def test_site_values_are_written_down_and_the_environment_wins(
    submit: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, script = here / "site.env", here / "job.sh"
    site.write_text(
        'SBATCH_PARTITION=slow\nSBATCH_ACCOUNT=lab\nTRELM_MIN_DISK_GB=1\nTRELM_MODULES="cuda gcc"\nNCCL_X=1\n'
        "MLFLOW_TRACKING_URI=http://mlflow:5000\necho noise\n"
    )
    script.write_text("#!/bin/bash\n#SBATCH --nodes=1\nenv -0\n")
    monkeypatch.setenv("TRELM_SITE", "site.env")
    monkeypatch.setenv("SBATCH_PARTITION", "fast")
    monkeypatch.setenv("TRELM_MIN_DISK_GB", "2")
    monkeypatch.setenv("TRELM_CONTAINER_MOUNTS", "/a b:/c'$d")
    code, text, errors = submit("--script", "job.sh", "--dry-run", "--", "--comment", "it's # 1")
    assert code == 0, errors
    assert "#SBATCH --partition=fast\n" in text
    assert "#SBATCH --account=lab\n" in text
    seen = subprocess.run(["bash"], input=text, capture_output=True, text=True, env={}, check=True).stdout
    variables = dict(item.split("=", 1) for item in seen.split("\0") if item)
    assert variables["TRELM_MIN_DISK_GB"] == "2"
    assert variables["TRELM_CONTAINER_MOUNTS"] == "/a b:/c'$d"
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    # Of the rest the job reads a copy, since it may depend on where it is read.
    assert variables["TRELM_SITE"] == f"{here}/run/submissions/001/site.env"
    assert "TRELM_MODULES" not in variables
    assert """#SBATCH '--comment=it'"'"'s # 1'""" in text


def test_ranks_that_share_a_model_fit_the_node(submit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    three = ("--model.tensor_parallel", "3", "--dry-run")
    assert submit("--model.tensor_parallel", "4", "--dry-run")[0] == 0  # the script has eight GPUs
    assert submit(*three, "--", "--gres=none")[0] == 0  # only the job knows what it will find
    monkeypatch.setenv("SBATCH_GRES", "gpu:a100:6")
    assert submit(*three)[0] == 0
    assert submit(*three, "--", "--gres=gpu:4")[0] == 2


def test_settings_in_the_environment_are_for_plain_sbatch(submit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRELM_ARGS", "--trainer.max_steps 3")
    code, text, errors = submit("--dry-run")
    assert code == 0
    assert "warning: TRELM_ARGS: is ignored" in errors
    assert "max_steps" not in text.split("set -euo")[0]


@pytest.mark.parametrize("uri", ["http://me:sesame@mlflow:5000", "http://mlflow:5000/?access=sesame"])
def test_passwords_are_not_written(uri: str, submit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    code, text, _ = submit("--dry-run")
    assert code == 0
    assert "sesame" not in text


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["--trainer.max_step", "7"], {}, "--trainer.max_step: unknown setting; did you mean --trainer.max_steps?"),
        (["--trainer.max_steps", "0"], {}, "--trainer.max_steps: must be"),
        (["--config", "nowhere.yaml"], {}, "--config: nowhere.yaml does not exist"),
        (["--data", "nowhere"], {}, "--data: no dataset at nowhere"),
        (["--data", "."], {}, ". is no dataset: it has no manifest.json"),
        (["--data", "file:///nowhere"], {}, "--data: file:///nowhere is no dataset"),
        (["--data", "nosuch://x/y"], {}, "--data: cannot read nosuch://x/y"),
        (["--out", "a b"], {}, "contains blanks"),
        (["--out", "file"], {}, "is not a folder"),
        (["-N", "0"], {}, "-N: the number of nodes must be positive"),
        (["-N", "two"], {}, "nodes"),
        (["--script", "nowhere.sh"], {}, "--script: nowhere.sh does not exist"),
        (["--script", "file"], {}, "--script: file is no batch script"),
        (["--model.init_from", "nowhere"], {}, "model.init_from: nowhere is no model folder"),
        (["--trainer.resume", "nowhere"], {}, "trainer.resume: nowhere does not exist"),
        (["--trainer.ds_config", "nowhere.json"], {}, "trainer.ds_config: nowhere.json does not exist"),
        (["--tracking.uri", "http://me:sesame@host"], {}, "http://...@host holds a password"),
        (["--tracking.uri", "http://host/?auth=sesame"], {}, "http://host/?auth=... holds a password"),
        (["--data", "https://me:sesame@host/wiki"], {}, "--data: https://...@host/wiki holds a password"),
        (["--data", "https://host/wiki?X-Amz-Signature=sesame"], {}, "wiki?X-Amz-Signature=... holds a password"),
        (["--", "gpu"], {}, "'gpu' after --: not an option"),
        (["--", "--array=1-2"], {}, "sbatch option --array=1-2: a run is one job"),
        (["--out", "a\u0007b"], {}, "contains characters that no settings file can"),
        ([], {"TRELM_VENV": "nowhere"}, "nowhere, bin/python is missing"),
        ([], {"TRELM_SITE": "nowhere"}, "TRELM_SITE: no site file at nowhere"),
        ([], {"TRELM_SITE": "file"}, "file: cannot be read: "),
        ([], {"TRELM_PROCS_PER_NODE": "eight"}, "TRELM_PROCS_PER_NODE: must be a positive number, got 'eight'"),
        ([], {"TRELM_HEALTH": "yes"}, "TRELM_HEALTH: must be 0 or 1, got 'yes'"),
        (["--model.tensor_parallel", "3"], {}, "model.tensor_parallel: 3 does not divide the 8 processes of a node"),
        (["--config", "two.yaml"], {"TRELM_PROCS_PER_NODE": "5"}, "tensor_parallel: 2 does not divide the 5 processes"),
        (["--config", "two.yaml", "--", "-G", "3"], {}, "tensor_parallel: 2 does not divide the 3 processes of a node"),
        ([], {}, "sbatch: not found"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    submit: Run,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    variables: dict[str, str],
    message: str,
) -> None:
    (here / "file").write_text("nonsense || exit 3\n")
    (here / "two.yaml").write_text("model: {tensor_parallel: 2}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, output, errors = submit(*arguments)
    assert (code, output) == (2, "")
    assert message in errors
    assert "sesame" not in errors
    assert errors.startswith("trelm: error: ")
    assert errors.count("\n") == 1
    assert {path.name for path in here.iterdir()} == {"file", "two.yaml"}


@pytest.mark.parametrize(
    "line",
    [
        "export MLFLOW_TRACKING_URI=https://me:sesame@mlflow:5000",
        "export MLFLOW_TRACKING_TOKEN=sesame",
        "AWS_SECRET_ACCESS_KEY='sesame'",
    ],
)
def test_a_site_file_with_a_password_is_refused(
    line: str, submit: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmless = "TOKENIZERS_PARALLELISM=false\nexport HF_TOKEN=$(cat ~/token)\n# MLFLOW_TRACKING_PASSWORD=...\n"
    (here / "site.env").write_text(harmless)
    monkeypatch.setenv("TRELM_SITE", "site.env")
    assert submit("--dry-run")[0] == 0
    (here / "site.env").write_text(f"{harmless}{line}\n")
    code, _, errors = submit("--dry-run")
    assert code == 2
    assert "site.env: holds a password, which would be copied into snapshots" in errors
    assert "sesame" not in errors


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ([], []),
        (["--partition=gpu", "-t1:00"], ["--partition=gpu", "-t1:00"]),
        (["-p", "gpu", "--time", "1:00", "--hold"], ["-pgpu", "--time=1:00", "--hold"]),
        # sbatch would run a word that stands alone; so joined, it answers that --hold takes no value.
        (["--hold", "slurm/pretrain_base.sh"], ["--hold=slurm/pretrain_base.sh"]),
    ],
)
def test_options_hold_their_values(words: list[str], options: list[str]) -> None:
    assert join_options(words) == options


@pytest.mark.parametrize("words", [["gpu"], ["--time=1:00", "gpu"], ["-p", "a", "b"], ["--comment", "a\nb"]])
def test_words_without_an_option_are_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        join_options(words)


def test_lines_are_added_where_sbatch_reads_them() -> None:
    script = "#!/bin/bash\n# about\n#SBATCH --nodes=1\n\n# more\nset -e\n#SBATCH --nodes=9\necho\n"
    assert job_file(script, ["--nodes=2"], {"A": "1 2"}, ["by us"]) == (
        "#!/bin/bash\n# about\n#SBATCH --nodes=1\n\n# by us\n#SBATCH --nodes=2\nexport A='1 2'\n\n"
        "\n# more\nset -e\n#SBATCH --nodes=9\necho\n"
    )


@pytest.mark.parametrize(
    ("line", "options", "stays"),
    [
        ("--mem=0", ["--mem=4G"], True),
        ("--mem=0", ["--mem-per-cpu=2G"], False),
        ("--mem 48G", ["--mem-per-gpu=2G", "--nodes=2"], False),
        ("--mem-per-cpu=2G", ["--mem=0"], False),
        ("--gres=gpu:8", ["--gres=none"], True),
        ("--gres=gpu:8", ["--gpus-per-node=4"], False),
        ("--gres=gpu:a100:8", ["-G4"], False),
        ("-G 8", ["--gpus=4"], True),
        ("--gres=lustre:1", ["--gpus-per-node=4"], True),
        ("--gpus-per-node=8", ["--gres=lustre:1"], True),
        ("--gpus-per-node=8", ["--gres=gpu:4"], False),
        ("--nodes=1", ["--gpus=4", "--mem-per-cpu=1"], True),
    ],
)
def test_of_options_that_exclude_each_other_the_asked_one_stays(line: str, options: list[str], stays: bool) -> None:
    text = job_file(f"#!/bin/bash\n#SBATCH {line}\n", options, {}, [])
    assert (f"\n#SBATCH {line}\n" in text) == stays
    assert (f"\n# replaced below: SBATCH {line}\n" in text) != stays
    assert all(f"\n#SBATCH {option}\n" in text for option in options)


def test_an_option_replaces_a_variable_of_its_kind(submit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_MEM_PER_NODE", "9G")
    monkeypatch.setenv("SBATCH_GRES", "gpu:2")
    _, shown, _ = submit("--dry-run", "--", "--mem-per-cpu=2G")
    assert ("\n#SBATCH --mem=" in shown, "\n#SBATCH --mem-per-cpu=2G" in shown) == (False, True)
    assert "#SBATCH --gres=gpu:2" in shown


def test_variables_of_the_job_around_are_not_handed_on() -> None:
    given = {"SLURM_CONF": "x", "SLURM_JWT": "t", "SLURM_MEM_PER_CPU": "2000", "SLURM_STEP_ID": "0", "PATH": "p"}
    assert set(outside_jobs(given)) == {"SLURM_CONF", "SLURM_JWT", "PATH"}


def test_paths_are_absolute_and_their_files_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "own.json").write_text("{}")
    (tmp_path / "v.npy").touch()
    config = Config(
        model=ModelConfig(init_from="hf"),
        injection=InjectionConfig(source="file", file="v.npy"),
        loader=LoaderConfig(cache_dir="cache"),
        trainer=TrainerConfig(ds_config="own.json", resume="hf"),
        tracking=TrackingConfig(uri="sqlite:///m.db"),
    )
    settled, own = make_paths_absolute(config, ROOT)
    assert settled.model.init_from == f"{tmp_path}/hf"
    assert settled.injection.file == f"{tmp_path}/v.npy"
    assert settled.loader.cache_dir == f"{tmp_path}/cache"
    assert settled.trainer.resume == f"{tmp_path}/hf"
    assert settled.tracking.uri == f"sqlite:///{tmp_path}/m.db"
    assert own == tmp_path / "own.json"  # goes into the snapshot
    settled, own = make_paths_absolute(Config(), ROOT)
    assert (settled.trainer.ds_config, own) == ("ds_configs/zero1.json", None)  # is in the snapshot's code
    assert settled.loader.cache_dir == "~/.cache/trelm"


def test_the_copy_of_the_code_runs_by_itself(tmp_path: Path) -> None:
    copy_code(ROOT, tmp_path / "code")
    assert not list((tmp_path / "code").rglob("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-m", "trelm_ds", "pretrain", "--print-config"],
        cwd=tmp_path / "code",
        env={"PYTHONPATH": f"{tmp_path}/code:{tmp_path}/code/kernels", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["trainer"]["max_steps"] == TrainerConfig().max_steps


def test_git_says_what_the_code_differs_in(tmp_path: Path) -> None:
    copy_code(ROOT, tmp_path / "code")
    code = tmp_path / "code"
    assert describe_git(code) is None

    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(code), *who, *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "--no-verify", "-m", "all")
    clean = describe_git(code)
    assert clean is not None
    assert clean.endswith("\nclean\n")
    (code / "ds_configs" / "zero1.json").write_text("changed\n")
    (code / "slurm" / "site.env").touch()
    dirty = describe_git(code)
    assert dirty is not None
    assert dirty.startswith(clean.replace("clean", "dirty"))
    assert "+changed\n" in dirty
    assert "?? slurm/site.env" in dirty
