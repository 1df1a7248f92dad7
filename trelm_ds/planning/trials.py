"""The trials of one folder: their settings, their results, and what they share so that results may stay."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from trelm_ds import __version__
from trelm_ds.config import Config, GuardsConfig, TrackingConfig, TrainerConfig, flatten, to_yaml
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, read_json, write_atomically
from trelm_ds.planning.candidates import Tried
from trelm_ds.planning.choices import Choice
from trelm_ds.planning.hardware import Device
from trelm_ds.planning.plan import Planned
from trelm_ds.planning.trial import LOG, RUN, Limits, Outcome, pretrain_command, run_trial
from trelm_ds.settings import find_ds_config

TRIALS, RESULT, IDENTITY = "trials", "result.json", "tune.json"
_SHOWN = 3  # differences


class Result(NamedTuple):
    """A trial: what was planned and what came of it."""

    planned: Planned
    outcome: Outcome

    @property
    def choice(self) -> Choice:
        """What was tried."""
        return self.planned.choice

    @property
    def tried(self) -> Tried:
        """The part that decides what is tried next."""
        return Tried(self.choice, self.outcome.status, self.outcome.tokens_per_s)

    def to_plain(self) -> dict[str, Any]:
        """Convert to what JSON holds: bytes, seconds, tokens of text per second."""
        memory, time = self.planned.memory, self.planned.time
        planned = {
            "tokens_per_s": self.planned.tokens_per_s,
            "peak_bytes": None if memory is None else memory.peak,
            "step_s": None if time is None else time.total,
            "problem": self.planned.problem,
        }
        return {"name": self.choice.name, **self.outcome._asdict(), "choice": self.choice._asdict(), "planned": planned}


def trial_config(config: Config, choice: Choice, ds_config: str, limits: Limits) -> Config:
    """Return the settings of a trial: the run's own, without checkpoints, evaluations and MLflow, with paths at once.

    It would go on for as long as the run, with its schedules; whoever runs it ends it. When it hangs for half of its
    time, its watchdog says where.

    Args:
        ds_config: path of its DeepSpeed file.
    """
    given = choice.applied(config)
    last = max(given.trainer.max_steps, limits.steps + 1)
    trainer = TrainerConfig(
        max_steps=last,
        global_batch_size=given.trainer.global_batch_size,
        micro_batch_tokens=given.trainer.micro_batch_tokens,
        precision=given.trainer.precision,
        compile=given.trainer.compile,
        ds_config=ds_config,
        seed=given.trainer.seed,
        log_every=1,
        checkpoint_every=last,
    )
    tracking = TrackingConfig(enabled=False, system_metrics_every_s=0)
    routing = replace(given.routing, start_step=0)
    guards = replace(GuardsConfig(), hang_minutes=limits.seconds / 60 / 2)
    return replace(given, trainer=trainer, tracking=tracking, routing=routing, guards=guards)


class Trials:
    """The trials below FOLDER/trials, one folder each, whose finished results are kept.

    Args:
        folder: that this process has locked.
        data: dataset of `trelm prepare`.
        ds_config: gives the DeepSpeed file of a choice.
        identity: what all results in the folder share.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        data: str,
        ranks: int,
        limits: Limits,
        ds_config: Callable[[Choice], dict[str, Any]],
        identity: dict[str, Any],
    ) -> None:
        self._config, self._folder, self._data, self._ranks, self._limits = config, folder, data, ranks, limits
        self.ds_config, self._owner = ds_config, str(folder.resolve())
        self._key = hashlib.sha256(canonical_json(identity).encode()).hexdigest()

    def folder_of(self, choice: Choice) -> Path:
        """Return a trial's folder."""
        return self._folder / TRIALS / choice.name

    def kept(self, row: Planned) -> Result | None:
        """Return the result of before; None where there is none that belongs here."""
        try:
            content = json.loads((self.folder_of(row.choice) / RESULT).read_text(encoding="utf-8"))
            if content["of"] == self._key:
                return Result(row, Outcome(**{name: content[name] for name in Outcome._fields}))
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return None

    def run(self, row: Planned, stopped: Callable[[], object]) -> Result:
        """Run a trial and write its result down.

        Raises:
            Stopped: something asks for the end; there is no result then.
            OSError: the folder cannot be written.
        """
        folder = self.folder_of(row.choice)
        self._clear(folder)
        ds_file, settings = folder / "ds.json", folder / "settings.yaml"
        write_atomically(ds_file, json.dumps(self.ds_config(row.choice), indent=2) + "\n")
        config = trial_config(self._config, row.choice, str(ds_file.absolute()), self._limits)
        write_atomically(settings, to_yaml(config))
        command = pretrain_command(settings, self._data, folder / RUN, self._ranks)
        result = Result(row, run_trial(command, folder, self._limits, self._owner, stopped))
        write_atomically(folder / RESULT, json.dumps(result.to_plain() | {"of": self._key}, indent=1) + "\n")
        return result

    @staticmethod
    def _clear(folder: Path) -> None:
        """Remove what an interrupted trial has left, but for what MLflow is to hear."""
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / RUN).exists():  # not ignoring errors: log points that stay would be taken for the new trial's
            shutil.rmtree(folder / RUN)
        for name in (LOG, RESULT):
            (folder / name).unlink(missing_ok=True)


def identity_of(config: Config, configured: Choice, limits: Limits, shared: dict[str, Any]) -> dict[str, Any]:
    """Collect what results must share to be compared, as JSON has it.

    Args:
        shared: more of it.
    """
    settings = flatten(trial_config(config, configured, "", limits)).items()
    found = {name: value for name, value in settings if not name.startswith("guards.")} | shared  # those are ours
    found |= {
        "trainer.ds_config": read_json(find_ds_config(config.trainer.ds_config)),
        "--steps": limits.steps,
        "--trial-minutes": round(limits.seconds / 60, 6),
        "--memory-limit": limits.memory,
        "versions": {name: version(name) for name in ("torch", "deepspeed", "transformers")} | {"trelm": __version__},
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def remembered_device(folder: Path) -> tuple[Device, dict[str, Any]] | None:
    """Return the device that earlier trials in the folder were planned with, and their identity.

    Returns:
        None where no trial has begun: there is nothing to go on with, whatever was planned.

    Raises:
        UserError: the file that says so is damaged.
    """
    path = folder / IDENTITY
    if not path.exists() or not (folder / TRIALS).is_dir():
        return None
    content = read_json(path)
    with contextlib.suppress(TypeError, KeyError):
        return Device(**content["device"]), dict(content["identity"])
    raise UserError(f"{path}: damaged; delete it, and the trials beside it are made anew, or give another --out")


def remember(folder: Path, device: Device, identity: dict[str, Any]) -> None:
    """Write down what `remembered_device` reads."""
    write_atomically(folder / IDENTITY, json.dumps({"identity": identity, "device": device._asdict()}, indent=1) + "\n")


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on in a folder of other trials.

    Raises:
        UserError: names what differs.
    """
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not names:
        return
    told = [f"{name} was {_brief(before.get(name))}, is {_brief(now.get(name))}" for name in names[:_SHOWN]]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise UserError(f"--out: {folder} has trials of other settings: {'; '.join(told)}{more}; give another --out")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
