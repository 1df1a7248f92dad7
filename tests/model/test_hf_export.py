"""Exports that are killed on their way: there is a whole model at every moment, and nothing stays behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.model.tiny_models import make_hf
from trelm_ds.errors import UserError
from trelm_ds.model import MaskedLanguageModel, hf_export, load_pretrained, save_pretrained


@pytest.fixture
def model(tmp_path: Path) -> MaskedLanguageModel:
    make_hf("bert").save_pretrained(tmp_path / "hf")
    return load_pretrained(tmp_path / "hf")


def export(model: MaskedLanguageModel, folder: Path) -> None:
    save_pretrained(model, model.config, folder, None)


def changed(model: MaskedLanguageModel) -> MaskedLanguageModel:
    with torch.no_grad():
        model.head.bias.add_(1)
    return model


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


class Killed(BaseException):
    pass


def kill(*_: object, **__: object) -> None:
    raise Killed


def test_an_export_is_exchanged_in_one_step(
    model: MaskedLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(model, out := tmp_path / "out")
    monkeypatch.setattr(os, "rename", kill)  # an exchange needs none
    export(changed(model), out)
    assert torch.equal(load_pretrained(out).head.bias, model.head.bias)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_without_an_exchange_it_is_replaced_as_well(
    model: MaskedLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(hf_export, "_exchange", lambda *_: False)
    export(model, out := tmp_path / "out")
    export(changed(model), out)
    assert torch.equal(load_pretrained(out).head.bias, model.head.bias)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_killed_between_two_renames_the_old_one_is_named(
    model: MaskedLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(model, out := tmp_path / "out")
    monkeypatch.setattr(hf_export, "_exchange", lambda *_: False)
    with monkeypatch.context() as patch:
        rename, calls = os.rename, list[str]()

        def once(source: Path, target: Path) -> None:
            calls.append(str(source))
            if len(calls) == 2:
                raise Killed
            rename(source, target)

        patch.setattr(os, "rename", once)
        with pytest.raises(Killed):
            export(changed(model), out)
    (old,) = tmp_path.glob(".out.*.old")
    dead = old.rename(old.with_name(old.name.replace(f"-{os.getpid()}.", f"-{dead_process()}.")))
    with pytest.raises(UserError, match="an export was killed while it replaced this one") as error:
        load_pretrained(out)
    assert str(dead) in str(error.value)
    export(model, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out"]


def test_only_what_dead_processes_have_left_is_removed(model: MaskedLanguageModel, tmp_path: Path) -> None:
    host = socket.gethostname()
    names = {
        f".out.{host}-{dead_process()}.partial": False,
        f".out.{host}-{os.getpid()}.partial": False,
        f".out.{host}-{dead_process()}.old": False,
        f".out.{host}-{os.getppid()}.partial": True,  # which lives
        f".out.elsewhere-{dead_process()}.partial": True,
        f".other.{host}-{dead_process()}.partial": True,
        f".out.{host}-x.old": True,
    }
    for name in names:
        (tmp_path / name).mkdir()
    export(model, tmp_path / "out")
    assert {name: (tmp_path / name).exists() for name in names} == names
    assert load_pretrained(tmp_path / "out").config == model.config
    shutil.rmtree(tmp_path / "out")
