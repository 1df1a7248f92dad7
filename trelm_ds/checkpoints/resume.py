"""Choose the checkpoint that a run continues from, and check that it belongs to the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trelm_ds.checkpoints.manifest import CheckpointInfo, last_good, read_verified
from trelm_ds.config import Config, flatten
from trelm_ds.engine import Decay, decay_of
from trelm_ds.errors import UserError
from trelm_ds.keyed_random import Stream
from trelm_ds.model import EncoderConfig
from trelm_ds.run_folder import checkpoints_folder, committed

# Sections of which a continuation may change some settings: those that it may not are named one by one.
_OTHERWISE = ("model", "loader", "trainer", "guards", "tracking")
# These may change: a file's vectors are in the checkpoint, and for importance it matters which scores are used
# ("importance" in `dataset`), not how they were asked for. Where a decay may begin is checked by `check_decay`.
_FREE = ("injection.file", "selection.importance", "optimizer.decay_steps")
_DRAWS = "routing.draws"  # by which random stream routed facts are drawn; the first versions shared one


def identity(config: Config, sizes: EncoderConfig, dataset: dict[str, Any]) -> dict[str, Any]:
    """Collect what a continuation must share with the run it continues, by dotted name.

    Args:
        sizes: the encoder's configuration.
        dataset: `StepDataset.identity`.
    """
    loader, trainer = config.loader, config.trainer
    common: dict[str, Any] = {
        "model": sizes.to_hf(),
        **dataset,
        "loader.seed": loader.seed,
        "loader.window_blocks": loader.window_blocks,
        "loader.tail": loader.tail,
        "trainer.seed": trainer.seed,
        "trainer.global_batch_size": trainer.global_batch_size,
        "trainer.precision": trainer.precision,
    }
    for name, value in flatten(config).items():
        section = name.split(".")[0]
        if section in _OTHERWISE or name in _FREE or name.endswith(".placement"):
            continue
        # The switch itself tells runs with the section from those without.
        if name in ("routing.enabled", f"{section}.weight") or not _idle(config, section):
            common[name] = _as_json(value)
    if config.routes:  # last, since a run that differs otherwise too is better told that
        common[_DRAWS] = Stream.ROUTED_SEQUENCE.value
    return common


def _as_json(value: Any) -> Any:
    """Return a setting's value as a manifest gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _idle(config: Config, section: str) -> bool:
    """Whether a section has no effect in this run, so that its settings may be anything."""
    if section == "routing":
        return not config.routes
    return getattr(getattr(config, section), "weight", None) == 0


def choose_checkpoint(resume: str, run: Path, identity: dict[str, Any]) -> tuple[Path, CheckpointInfo] | None:
    """Choose the checkpoint to start from, as `trainer.resume` says; None for a start from scratch.

    Args:
        resume: "auto", "never" or a checkpoint folder; the folder is used only until the run has checkpoints itself.
        run: the run folder.
        identity: what the checkpoint must share with this run.

    Raises:
        UserError: "never" although a checkpoint exists, no sound checkpoint at the given path, or a checkpoint of
            another run.
    """
    if resume == "never":
        if committed(run):
            raise UserError(f'trainer.resume: is "never", but {run} holds checkpoints; choose another --out or "auto"')
        return None
    found = last_good(run)
    if resume != "auto":
        if checkpoints_folder(run).resolve() in Path(resume).resolve().parents:
            raise UserError(f"trainer.resume: {resume} belongs to {run} itself; branch off into another --out")
        found = found or (Path(resume), read_verified(Path(resume)))
    if found is not None:
        _check_identity(*found, identity)
    return found


def _check_identity(path: Path, info: CheckpointInfo, identity: dict[str, Any]) -> None:
    """Raise a UserError that names the first setting in which run and checkpoint differ."""
    defaults = flatten(Config())
    for name, value in identity.items():
        # A setting that the checkpoint does not know is younger than it: the run did what is the default now.
        if (before := info.identity.get(name, _as_json(defaults.get(name)))) != value:
            if name == "importance" and before is None:
                raise UserError(
                    f"{path}: the run began without scores of importance; go on with --selection.importance none"
                )
            if name == _DRAWS:
                raise UserError(
                    f"{path}: written by an earlier version, which drew routed facts otherwise; finish the run with "
                    "that version, or start another --out"
                )
            change = _change(name, before, value)
            raise UserError(f"{path}: made with another {change}; use the former, or another --out")


def check_decay(path: Path, info: CheckpointInfo, config: Config) -> None:
    """Check that the steps before a checkpoint had the learning rates that schedule wsd now gives them.

    Another `trainer.max_steps` or `optimizer.decay_steps` is welcome as long as neither the decay of the run that wrote
    the checkpoint nor that of this one had begun: a decay is not taken back.

    Raises:
        UserError: one had; names the setting to change.
    """
    now, before = decay_of(config), None if info.decay is None else Decay(*info.decay)
    if now is None or before is None or now == before:
        return
    if info.step > before.begin:
        length = before.end - before.begin
        raise UserError(
            f"optimizer.decay_steps: {path} lies within a decay from step {before.begin} to {before.end}; finish it "
            f"with trainer.max_steps {before.end} and optimizer.decay_steps {length}, or start another --out with "
            f"trainer.resume at a checkpoint up to step {before.begin}"
        )
    if info.step > now.begin:
        raise UserError(
            f"optimizer.decay_steps: the decay would begin at step {now.begin}, {path} is of step {info.step}; set at "
            f"most {max(0, now.end - info.step)}, or trainer.max_steps to at least {info.step + now.end - now.begin}"
        )


def _change(name: str, before: object, now: object) -> str:
    """Name what differs: of two objects, such as a model's sizes, the first key."""
    if isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
        return _change(f"{name}.{key}", before.get(key), now.get(key))
    return f"{name} ({_short(before)}, now {_short(now)})"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
