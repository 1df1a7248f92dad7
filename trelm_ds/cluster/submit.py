"""`trelm submit`: submits a pre-training job from a snapshot, so that its code and settings cannot change later."""

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
from urllib.parse import urlsplit

from trelm_ds import log
from trelm_ds.cluster import slurm
from trelm_ds.cluster.history import JOB_NOTE, jobs_of
from trelm_ds.cluster.job_file import (
    job_file,
    join_options,
    not_replaced,
    options_from_environment,
    variables_of_options,
)
from trelm_ds.cluster.processes import check_tensor_parallel
from trelm_ds.cluster.site import SITE, read_site, site_file
from trelm_ds.cluster.snapshot import (
    absolute_store,
    code_root,
    copy_code,
    describe_git,
    git_commit,
    make_paths_absolute,
)
from trelm_ds.config import Config, public, to_yaml
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path, lock, write_atomically
from trelm_ds.redact import shown, without_password
from trelm_ds.run_folder import CONFIG, SUBMISSIONS, tracking_uri

DEFAULT_SCRIPT = "slurm/pretrain_large.sh"
_URI = "MLFLOW_TRACKING_URI"
_SITE_COPY, _DS_COPY = "site.env", "ds_config.json"  # in a snapshot


@dataclass
class Request:
    """A checked request to submit a job.

    Attributes:
        config: settings of the run, with absolute paths.
        ds_config: the user's own DeepSpeed file; None if the repository's is used.
        data: dataset, absolute folder or URL.
        run: run folder, absolute.
        root: repository.
        script: text of the job script.
        options: sbatch options, one word each.
        environment: environment of this process, completed with the site's values.
        site: the site file; None if there is none.
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
    """A job that Slurm has accepted.

    Attributes:
        job: Slurm's job number.
        log: log file.
        folder: snapshot.
        store: MLflow store, without password.
    """

    job: str
    log: str
    folder: Path
    store: str


def check(config: Config, data: str, run: Path, nodes: int | None, script: str, sbatch: Sequence[str]) -> Request:
    """Check everything that would make the job fail, before anything is written or submitted.

    Args:
        data: dataset of `trelm prepare`: a folder or an fsspec URL.
        nodes: number of nodes; None keeps the script's or the options'.
        script: job script; a relative path may start at the working directory or at the repository.
        sbatch: further options for sbatch.

    Raises:
        UserError: the first mistake, with the setting, option or file.
    """
    root = code_root()
    options = join_options(sbatch)
    if nodes is not None and nodes < 1:
        raise UserError(f"-N: the number of nodes must be positive, got {nodes}")
    options = [*([f"--nodes={nodes}"] if nodes else []), *options]
    config, ds_config = make_paths_absolute(config, root)
    run = Path(os.path.abspath(run))
    # Job scripts split lists of files at blanks.
    if any(character.isspace() for character in str(run)):
        raise UserError(f"--out: {run} contains blanks; choose a folder without")
    if not str(run).isprintable():
        raise UserError(f"--out: {str(run)!r} contains characters that no settings file can; choose another folder")
    if run.exists() and not run.is_dir():
        raise UserError(f"--out: {run} is not a folder")
    environment = read_site(root, os.environ)
    for name in ("TRELM_CONFIG", "TRELM_ARGS"):
        if environment.get(name):
            log.warning(f"{name}: is ignored, `trelm submit` takes settings as its options")
    if (uri := environment.get(_URI)) and shown(uri) == uri:
        environment[_URI] = absolute_store(uri)
    request = Request(
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
    if (degree := config.model.tensor_parallel) > 1:
        check_tensor_parallel(degree, _build_job_file(request, 0), root, os.environ)
    return request


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
    raise UserError(f"--script: {script} does not exist; the shipped ones are slurm/pretrain_SIZE.sh")


def _find_data(data: str) -> str:
    """Check that the dataset exists and return its absolute path or its URL, which is written into the job script."""
    if "://" not in data:
        from trelm_ds.shards import Manifest

        if not Path(data).is_dir():
            raise UserError(f"--data: no dataset at {data}; make one with `trelm prepare`")
        Manifest.load(Path(data))
        return os.path.abspath(data)
    query = f"?{urlsplit(data).query}"
    if "@" in urlsplit(data).netloc or without_password(query) != query:
        raise UserError(
            f"--data: {without_password(data)} holds a password, which is not written into a snapshot; give it to the "
            "store in its own variables or configuration"
        )
    import fsspec

    try:  # only check that a remote dataset exists: the job fetches it
        fs, place = fsspec.core.url_to_fs(data.rstrip("/"))
        found = fs.exists(f"{place}/manifest.json")
    except Exception as error:  # backends raise what their libraries raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--data: cannot read {without_password(data)}: {reason}") from None
    if not found:
        raise UserError(f"--data: {without_password(data)} is no dataset: it has no manifest.json")
    return data


def _variables(request: Request, folder: Path) -> dict[str, str]:
    """Return the variables that the job script reads, for a snapshot in `folder`."""
    given = request.environment
    # The job reads the site's other values from the copied site file, because they may depend on the job's environment.
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
        variables["TRELM_GIT_COMMIT"] = commit  # for MLflow, because the snapshot is not a git checkout
    if request.site is not None:
        variables[SITE] = str(folder / _SITE_COPY)
    if (uri := given.get(_URI)) and shown(uri) == uri:
        variables[_URI] = uri
    return variables


def _build_job_file(request: Request, number: int) -> str:
    """Build the complete sbatch file, which depends only on the snapshot, Python, the dataset and the run folder."""
    folder, given = _folder(request.run, number), request.environment
    variables = _variables(request, folder)
    about = [
        f"Written by `trelm submit`; `sbatch {folder / 'job.sh'}` submits the same job again.",
        "Options below override those above; the values are those at submission.",
    ]
    output = "--output=" + str(request.run / "slurm").replace("%", "%%") + "/%j.log"
    from_environment = not_replaced(options_from_environment(given), request.options)
    return job_file(request.script, [output, *from_environment, *request.options], variables, about)


def dry_run(request: Request) -> str:
    """Return the sbatch file that `submit` would write, without writing anything.

    Raises:
        UserError: the run already has a job.
    """
    if slurm.installed():
        _refuse_second_job(request.run)
    return _build_job_file(request, _next_number(request.run))


def sbatch_test_only(request: Request, text: str) -> str | None:
    """Return the answer of `sbatch --test-only` to a batch file; None if Slurm is not installed.

    Raises:
        UserError: Slurm refuses the job.
    """
    if not slurm.installed():
        return None
    return slurm.one_line(slurm.sbatch(["--test-only", *request.options], _for_sbatch(request), text).stderr)


def submit(request: Request) -> Submitted:
    """Write the snapshot `RUN/submissions/NNN` and submit its job.

    Raises:
        UserError: Slurm is not installed or refuses, the run already has a job, or the run folder cannot be written.
    """
    if not slurm.installed():
        raise UserError("sbatch: not found; submit where Slurm is installed, or look with --dry-run")
    try:
        (request.run / SUBMISSIONS).mkdir(parents=True, exist_ok=True)
        (request.run / "slurm").mkdir(exist_ok=True)  # for the log: Slurm creates no folders
        with lock(request.run / SUBMISSIONS / ".lock", f"--out: {request.run / SUBMISSIONS}"):
            _refuse_second_job(request.run)
            return _submit_snapshot(request, _write_snapshot(request))
    except (OSError, shutil.Error) as error:
        raise UserError(f"--out: cannot write into {request.run}: {error}") from None


def _for_sbatch(request: Request) -> dict[str, str]:
    """Return the environment for sbatch, which reads SBATCH_* from it; by default Slurm passes it on to the job.

    Left out are the variables of an allocation that this process runs in, which are not this job's, and those in whose
    place the request has an option.
    """
    options = {name: value for name, value in request.environment.items() if name.startswith("SBATCH_")}
    environment = slurm.outside_jobs(os.environ) | options
    for name, option in variables_of_options(environment).items():
        if not not_replaced([option], request.options):
            del environment[name]
    return environment


def _refuse_second_job(run: Path) -> None:
    """Raise UserError if a job of this run is waiting or running."""
    under_way = slurm.active_jobs([job.number for job in jobs_of(run)])
    for job, state in under_way.items():
        raise UserError(f"--out: job {job} of {run} is {state.lower()}; wait, `scancel {job}`, or give another --out")


def _folder(run: Path, number: int) -> Path:
    return run / SUBMISSIONS / f"{number:03d}"


def _next_number(run: Path) -> int:
    """Return a number that no submission has used, counting unfinished ones."""
    names = [path.name.lstrip(".").split("-")[0] for path in (run / SUBMISSIONS).glob("*")]
    return 1 + max((int(name) for name in names if name.isdigit()), default=0)


def _write_snapshot(request: Request) -> Path:
    """Write the next submission's folder, all but `job.json`; it appears in one rename."""
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
            # The site file may also set variables of the job file; append those, so that its values do not win.
            lines = [f"export {name}={shlex.quote(value)}" for name, value in _variables(request, folder).items()]
            text = request.site.read_text(encoding="utf-8")
            write_atomically(work / _SITE_COPY, "\n".join([text, "# As it was submitted:", *lines, ""]))
            shutil.copymode(request.site, work / _SITE_COPY)
        if git := describe_git(request.root):
            write_atomically(work / "git.txt", git)
        write_atomically(work / CONFIG, to_yaml(public(config)))
        write_atomically(work / "job.sh", _build_job_file(request, number))
        work.rename(folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    fsync_path(folder.parent)
    return folder


def _submit_snapshot(request: Request, folder: Path) -> Submitted:
    """Submit a snapshot's job and record Slurm's answer in `job.json`.

    A refused snapshot is kept, with its number and the reason: Slurm may have accepted the job although its answer was
    lost.
    """
    note: dict[str, Any] = {"job": None, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    # Repeat the options on the command line, where they win over SBATCH_* variables too.
    arguments = ["--parsable", *request.options, str(folder / "job.sh")]
    try:
        done = slurm.sbatch(arguments, _for_sbatch(request))
        job = done.stdout.strip().split(";")[0]  # "job;cluster" on a multi-cluster Slurm
        if not job.isdigit():
            raise UserError(f"sbatch: gave no job number: {slurm.one_line(done.stdout + done.stderr)}")
    except UserError as error:
        write_atomically(folder / JOB_NOTE, json.dumps(note | {"error": str(error)}, indent=1) + "\n")
        raise
    job_log = (slurm.job_fields(job) or {}).get("StdOut") or str(request.run / "slurm" / f"{job}.log")
    note |= {"job": job, "log": job_log, "sbatch": arguments}
    try:
        write_atomically(folder / JOB_NOTE, json.dumps(note, indent=1) + "\n")
    except OSError as error:  # the job is submitted all the same
        log.warning(f"{folder / JOB_NOTE}: cannot be written: {error.strerror}")
    return Submitted(job, job_log, folder, _store(request))


def _store(request: Request) -> str:
    """Return the MLflow store of the run without its password."""
    if not request.config.tracking.enabled:
        return "off (tracking.enabled is false)"
    return shown(tracking_uri(request.config, request.run, request.environment))
