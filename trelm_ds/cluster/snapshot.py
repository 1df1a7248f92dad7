"""The contents of a submission's snapshot: the code, its git state, and settings with absolute paths."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import trelm_ds
from trelm_ds.config import Config
from trelm_ds.errors import UserError
from trelm_ds.redact import shown
from trelm_ds.settings import find_ds_config

CODE = ("trelm_ds", "kernels", "ds_configs", "slurm", "pyproject.toml")
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", "*.egg-info", ".*_cache", ".*.sw?", "*.log", "site.env")
_SQLITE = "sqlite:///"


def code_root() -> Path:
    """Return the repository that the running package belongs to.

    Raises:
        UserError: the package is installed without the rest of the repository.
    """
    root = Path(trelm_ds.__file__).resolve().parents[1]
    missing = [name for name in CODE if not (root / name).exists()]
    if missing:
        raise UserError(
            f"{root}: trelm_ds is here without {', '.join(missing)}; submit from a checkout of the repository "
            "(pip install --editable)"
        )
    return root


def copy_code(root: Path, target: Path) -> None:
    """Copy the code, tracked by git or not, without caches.

    Raises:
        OSError: a file cannot be read or written.
    """
    target.mkdir()
    for name in CODE:
        if (root / name).is_dir():
            shutil.copytree(root / name, target / name, ignore=_IGNORED, ignore_dangling_symlinks=True)
        else:
            shutil.copy2(root / name, target / name)


def git_commit(root: Path) -> str | None:
    """Return the hash of the checked-out commit; None if the tree is not a git checkout."""
    if _git(root, "ls-files", "--error-unmatch", "trelm_ds/__init__.py") is None:
        return None
    return (_git(root, "rev-parse", "HEAD") or "").strip() or None


def describe_git(root: Path) -> str | None:
    """Describe the commit and how the code differs from it; None if the tree is not a git checkout."""
    if (commit := git_commit(root)) is None:
        return None
    status = _git(root, "status", "--short", "--", *CODE) or ""
    difference = _git(root, "diff", "HEAD", "--", *CODE) or ""
    state = "dirty" if status else "clean"
    return f"commit {commit}\n{state}\n" + (f"\n{status}\n{difference}" if status else "")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return None


def make_paths_absolute(config: Config, root: Path) -> tuple[Config, Path | None]:
    """Make the paths in the settings absolute and check that they exist.

    A job runs in its snapshot, where relative paths would lead elsewhere.

    Returns:
        The settings, and the DeepSpeed file if it is the user's own; the repository's are in the snapshot anyway.

    Raises:
        UserError: a file or folder is missing, or a setting holds a password, which must not enter a snapshot.
    """
    model, injection, loader, trainer = config.model, config.injection, config.loader, config.trainer
    if (uri := config.tracking.uri) and shown(uri) != uri:
        raise UserError(
            f"tracking.uri: {shown(uri)} holds a password or token, which is not written into a snapshot; export "
            "MLFLOW_TRACKING_URI instead"
        )
    if model.init_from is not None and not Path(model.init_from, "config.json").is_file():
        raise UserError(f"model.init_from: {model.init_from} is no model folder: it has no config.json")
    if injection.file is not None and not Path(injection.file).is_file():
        raise UserError(f"injection.file: {injection.file} does not exist")
    if trainer.resume not in ("auto", "never") and not Path(trainer.resume).is_dir():
        raise UserError(f"trainer.resume: {trainer.resume} does not exist")
    ds_config = find_ds_config(trainer.ds_config).resolve()
    own = None if ds_config.is_relative_to(root / "ds_configs") else ds_config
    resume = trainer.resume if trainer.resume in ("auto", "never") else _absolute(trainer.resume)
    settled = dataclasses.replace(
        config,
        model=dataclasses.replace(model, init_from=model.init_from and _absolute(model.init_from)),
        injection=dataclasses.replace(injection, file=injection.file and _absolute(injection.file)),
        loader=dataclasses.replace(loader, cache_dir=_absolute(loader.cache_dir)),
        trainer=dataclasses.replace(
            trainer, resume=resume, ds_config=str(ds_config if own else ds_config.relative_to(root))
        ),
        tracking=dataclasses.replace(config.tracking, uri=uri and absolute_store(uri)),
    )
    return settled, own


def absolute_store(uri: str) -> str:
    """Make the path in an MLflow URI absolute; URIs of servers stay as they are."""
    if uri.startswith(_SQLITE) and not uri.startswith(f"{_SQLITE}/"):
        return _SQLITE + _absolute(uri.removeprefix(_SQLITE))
    return uri if urlsplit(uri).scheme or uri == "databricks" else _absolute(uri)


def _absolute(path: str) -> str:
    """Make a path absolute without following links, which may differ between nodes; `~` is expanded on use."""
    return path if path.startswith("~") else os.path.abspath(path)
