"""`trelm submit`: a pre-training job whose code and settings cannot change while it waits, runs and is requeued."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from trelm_ds import log
from trelm_ds.cluster import slurm
from trelm_ds.cluster.history import JOB_NOTE, jobs_of
from trelm_ds.cluster.job_file import from_environment, job_file, join_options
from trelm_ds.cluster.site import SITE, read_site, site_file
from trelm_ds.cluster.snapshot import absolute_store, code_root, copy_code, describe_git, git_commit, settle_paths
from trelm_ds.config import Config, public, to_yaml
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_folder, lock, write_atomically
from trelm_ds.redact import without_password
from trelm_ds.run_folder import CONFIG, SUBMISSIONS, tracking_uri

DEFAULT_SCRIPT = "slurm/pretrain_large.sh"
_URI = "MLFLOW_TRACKING_URI"
_SITE_COPY, _DS_COPY = "site.env", "ds_config.json"  # in a snapshot


@dataclass
class Request:
    """What was asked for, checked.

    Attributes:
        config: settings of the run, paths in them absolute.
        ds_config: the DeepSpeed file, where it is not one of the repository's.
        data: dataset, absolute folder or URL.
        run: run folder, absolute.
        root: of the repository.
        script: the job script's text.
        options: for sbatch, each one word.
        environment: of this process, completed by the site's values.
        site: the site file.
    """

    config: Config
    ds_config: Path | None
    data: str
    run: Path
    root: Path
    script: str
    options: list[str]
    environment: dict[str, str]
    site: Path | None


@dataclass
class Submitted:
    """A job that Slurm has taken: its number, log file, snapshot, and the MLflow store without password."""

    job: str
    log: str
    folder: Path
    store: str


def check(config: Config, data: str, run: Path, nodes: int | None, script: str, sbatch: Sequence[str]) -> Request:
    """Finds what the job would fail of, before anything is written or submitted.

    Args:
        config: settings of the run.
        data: dataset of `trelm prepare`: a folder or an fsspec URL.
        run: run folder.
        nodes: number of nodes; None leaves it to script and options.
        script: job script, looked for here and in the repository.
        sbatch: further options for sbatch.

    Raises:
        UserError: the first mistake, with the setting, option or file.
    """
    root = code_root()
    options = join_options(sbatch)
    if nodes is not None and nodes < 1:
        raise UserError(f"-N: the number of nodes must be positive, got {nodes}")
    options = [*([f"--nodes={nodes}"] if nodes else []), *options]
    config, ds_config = settle_paths(config, root)
    run = Path(os.path.abspath(run))
    # job scripts split lists of files at blanks
    if any(character.isspace() for character in str(run)):
        raise UserError(f"--out: {run} holds blanks; choose a folder without")
    if not str(run).isprintable():
        raise UserError(f"--out: {str(run)!r} holds characters that no file of settings can; choose another folder")
    if run.exists() and not run.is_dir():
        raise UserError(f"--out: {run} is no folder")
    environment = read_site(root, os.environ)
    for name in ("TRELM_CONFIG", "TRELM_ARGS"):
        if environment.get(name):
            log.warning(f"{name}: is ignored, `trelm submit` takes settings as its options")
    if (uri := environment.get(_URI)) and without_password(uri) == uri:
        environment[_URI] = absolute_store(uri)
    return Request(
        config=config,
        ds_config=ds_config,
        data=_find_data(data),
        run=run,
        root=root,
        script=_read_script(root, script),
        options=options,
        environment=environment,
        site=site_file(root, os.environ),
    )


def _read_script(root: Path, script: str) -> str:
    for path in (Path(script), root / script):
        if path.is_file():
            try:
                text = path.read_text(encoding="utf-8")
                job_file(text, [], {}, [])
                return text
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--script: cannot read {path}: {error}") from None
            except UserError as error:
                raise UserError(f"--script: {path} is {error}") from None
    raise UserError(f"--script: {script} does not exist; the shipped ones are slurm/pretrain_{{base,large}}.sh")


def _find_data(data: str) -> str:
    """The dataset's absolute place, after a look at its manifest."""
    if "://" not in data:
        from trelm_ds.shards import Manifest

        if not Path(data).is_dir():
            raise UserError(f"--data: no dataset at {data}; make one with `trelm prepare`")
        Manifest.load(Path(data))
        return os.path.abspath(data)
    import fsspec

    try:  # of a dataset behind a URL only whether it is there: its job fetches it
        fs, place = fsspec.core.url_to_fs(data.rstrip("/"))
        found = fs.exists(f"{place}/manifest.json")
    except Exception as error:  # backends raise what their libraries raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--data: cannot read {without_password(data)}: {reason}") from None
    if not found:
        raise UserError(f"--data: {without_password(data)} is no dataset: it has no manifest.json")
    return data


def _variables(request: Request, folder: Path) -> dict[str, str]:
    """What a job script reads, for a snapshot in `folder`."""
    given = request.environment
    # The other values of the site are read from the copy of its file, in the job: they may depend on what is there.
    variables = {name: value for name, value in os.environ.items() if name.startswith("TRELM_")}
    variables |= {name: given[name] for name in ("TRELM_VENV", "TRELM_CONTAINER") if name in given}
    variables |= {
        "TRELM_HOME": str(folder / "code"),
        "TRELM_CONFIG": str(folder / CONFIG),
        "TRELM_DATA": request.data,
        "TRELM_OUT": str(request.run),
        "TRELM_ARGS": "",
    }
    if commit := git_commit(request.root):
        variables["TRELM_GIT_COMMIT"] = commit  # for MLflow: the snapshot is no checkout
    if request.site is not None:
        variables[SITE] = str(folder / _SITE_COPY)
    if (uri := given.get(_URI)) and without_password(uri) == uri:
        variables[_URI] = uri
    return variables


def _describe_job(request: Request, number: int) -> str:
    """The sbatch file: complete, and it leads to nothing but snapshot, Python, dataset and run folder."""
    folder, given = _folder(request.run, number), request.environment
    variables = _variables(request, folder)
    about = [
        f"Written by `trelm submit`; `sbatch {folder / 'job.sh'}` submits the same once more.",
        "Options below override those above; the values are those of the submission.",
    ]
    output = "--output=" + str(request.run / "slurm").replace("%", "%%") + "/%j.log"
    return job_file(request.script, [output, *from_environment(given), *request.options], variables, about)


def dry_run(request: Request) -> str:
    """The sbatch file that `submit` would write; writes nothing.

    Raises:
        UserError: the run has a job already.
    """
    if slurm.installed():
        _refuse_second(request.run)
    return _describe_job(request, _next_number(request.run))


def try_out(request: Request, text: str) -> str | None:
    """What `sbatch --test-only` says of a batch file; None where there is no Slurm.

    Raises:
        UserError: the job cannot run.
    """
    if not slurm.installed():
        return None
    return slurm.one_line(slurm.sbatch(["--test-only", *request.options], _for_sbatch(request), text).stderr)


def submit(request: Request) -> Submitted:
    """Writes the snapshot `RUN/submissions/NNN` and hands its job to Slurm.

    Raises:
        UserError: Slurm is not here or refuses, the run has a job already, or the run folder cannot be written.
    """
    if not slurm.installed():
        raise UserError("sbatch: not found; submit where Slurm is installed, or look with --dry-run")
    try:
        (request.run / SUBMISSIONS).mkdir(parents=True, exist_ok=True)
        (request.run / "slurm").mkdir(exist_ok=True)  # of the log: Slurm makes no folders
        with lock(request.run / SUBMISSIONS / ".lock", f"--out: {request.run / SUBMISSIONS}"):
            _refuse_second(request.run)
            return _hand_over(request, _write_snapshot(request))
    except (OSError, shutil.Error) as error:
        raise UserError(f"--out: cannot write into {request.run}: {error}") from None


def _for_sbatch(request: Request) -> dict[str, str]:
    """The environment that sbatch reads its SBATCH_* from; the job gets it too, by Slurm's default."""
    options = {name: value for name, value in request.environment.items() if name.startswith("SBATCH_")}
    return os.environ | options


def _refuse_second(run: Path) -> None:
    under_way = slurm.jobs_under_way([job.number for job in jobs_of(run)])
    for job, state in under_way.items():
        raise UserError(f"--out: job {job} of {run} is {state.lower()}; wait, `scancel {job}`, or give another --out")


def _folder(run: Path, number: int) -> Path:
    return run / SUBMISSIONS / f"{number:03d}"


def _next_number(run: Path) -> int:
    """One more than any there, also of what was never finished."""
    names = [path.name.lstrip(".").split("-")[0] for path in (run / SUBMISSIONS).glob("*")]
    return 1 + max((int(name) for name in names if name.isdigit()), default=0)


def _write_snapshot(request: Request) -> Path:
    """The next submission's folder, complete but for `job.json`; appears whole."""
    number = _next_number(request.run)
    folder = _folder(request.run, number)
    config, trainer = request.config, request.config.trainer
    work = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        work.chmod(folder.parent.stat().st_mode & 0o777)
        copy_code(request.root, work / "code")
        if request.ds_config is not None:
            shutil.copyfile(request.ds_config, work / _DS_COPY)
            config = dataclasses.replace(config, trainer=dataclasses.replace(trainer, ds_config=str(folder / _DS_COPY)))
        if request.site is not None:
            # It may set more than is written into the job file; what it sets otherwise must not win over that.
            lines = [f"export {name}={shlex.quote(value)}" for name, value in _variables(request, folder).items()]
            text = request.site.read_text(encoding="utf-8")
            write_atomically(work / _SITE_COPY, "\n".join([text, "# As it was submitted:", *lines, ""]))
            shutil.copymode(request.site, work / _SITE_COPY)
        if git := describe_git(request.root):
            write_atomically(work / "git.txt", git)
        write_atomically(work / CONFIG, to_yaml(public(config)))
        write_atomically(work / "job.sh", _describe_job(request, number))
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    fsync_folder(folder.parent)
    return folder


def _hand_over(request: Request, folder: Path) -> Submitted:
    """Submits a snapshot's job and notes what Slurm said.

    A snapshot that was refused stays, with its number and the reason: an answer may be lost on its way although the job
    was taken.
    """
    note: dict[str, Any] = {"job": None, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    # The options once more: on the command line they also win over SBATCH_* variables.
    arguments = ["--parsable", *request.options, str(folder / "job.sh")]
    try:
        done = slurm.sbatch(arguments, _for_sbatch(request))
        job = done.stdout.strip().split(";")[0]  # "job;cluster" where there are several
        if not job.isdigit():
            raise UserError(f"sbatch: gave no job number: {slurm.one_line(done.stdout + done.stderr)}")
    except UserError as error:
        write_atomically(folder / JOB_NOTE, json.dumps(note | {"error": str(error)}, indent=1) + "\n")
        raise
    job_log = (slurm.job_fields(job) or {}).get("StdOut") or str(request.run / "slurm" / f"{job}.log")
    note |= {"job": job, "log": job_log, "sbatch": arguments}
    try:
        write_atomically(folder / JOB_NOTE, json.dumps(note, indent=1) + "\n")
    except OSError as error:  # it is submitted all the same
        log.warning(f"{folder / JOB_NOTE}: cannot be written: {error.strerror}")
    return Submitted(job, job_log, folder, _store(request))


def _store(request: Request) -> str:
    if not request.config.tracking.enabled:
        return "off (tracking.enabled is false)"
    return without_password(tracking_uri(request.config, request.run, request.environment))
