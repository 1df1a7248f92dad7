"""The thread that writes a save: whose stream copies, who waits for whom, what is checked."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.serialization import config as torch_save

from tests.checkpoints.test_saver import whole
from tests.logged import warns
from tests.streams import NotedStream, thread
from tests.training.test_pretrain import config, train
from trelm_ds.checkpoints import pending_save
from trelm_ds.checkpoints import saver as saving
from trelm_ds.checkpoints.manifest import read_verified
from trelm_ds.distributed import Ranks
from trelm_ds.run_folder import committed
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run
from trelm_ds.training.knowledge import Knowledge
from trelm_ds.training.trainer import Trainer


@pytest.mark.parametrize("most_pinned", [1 << 30, 100])
def test_on_a_gpu_copies_have_a_stream_of_their_own(
    most_pinned: int, one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the stream: what is copied when, and who waits for whom; the files are the same."""
    train(whole(async_checkpoints=False), tiny_dataset, tmp_path / "plain", one_rank)
    side = NotedStream()
    save, update, write = torch.save, Trainer.update, Knowledge._save

    def noted_save(*given: Any) -> None:
        assert side.on
        side.notes.append(f"{thread()} copies{' pinned' * torch_save.save.use_pinned_memory_for_d2h}")
        save(*given)

    def noted_write(part: Knowledge, checkpoint: Path) -> list[Path]:
        assert side.on
        return write(part, checkpoint)

    def noted_update(trainer: Trainer, loss: torch.Tensor) -> bool:
        side.notes.append(f"{thread()} updates")
        return update(trainer, loss)

    monkeypatch.setattr(torch, "save", noted_save)
    monkeypatch.setattr(Trainer, "update", noted_update)
    monkeypatch.setattr(Knowledge, "_save", noted_write)
    monkeypatch.setattr(saving, "side_stream", lambda device: side)
    monkeypatch.setattr(pending_save, "_MOST_PINNED", most_pinned)
    train(whole(), tiny_dataset, tmp_path / "side", one_rank)
    copies = ["writer: copies pinned" if most_pinned > 100 else "writer: copies"] * 2  # model, optimizer
    updates = ["trainer: updates"] * 2
    expected = [*updates]
    for number, following in ((1, updates), (3, [])):
        expected += [f"trainer: marks main {number}", f"writer: host waits for main {number}"]
        expected += [f"writer: side waits for main {number}", *copies]
        expected += [f"trainer: marks side {number + 1}", f"trainer: main waits for side {number + 1}", *following]
    assert side.notes == expected
    beside, plain = ([read_verified(path).files for path in committed(tmp_path / name)] for name in ("side", "plain"))
    assert beside == plain


def test_a_copy_that_a_failed_save_has_begun_is_waited_for(
    one_rank: Ranks, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = NotedStream()

    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "no such luck")

    monkeypatch.setattr(saving, "side_stream", lambda device: side)
    with StopSignals() as signals:
        trainer = build_run(config(0), str(tiny_dataset), tmp_path / "run", one_rank, signals)
        trainer.engine.train()
        trainer.train_step()
        monkeypatch.setattr(torch, "save", fail)
        trainer.save()
        with warns("no such luck; training goes on"):
            trainer.saver.settle()
        trainer.reader.loader.close()
        trainer.held.close()
    assert not side.on
    assert side.notes[-1] == "trainer: main waits for side 2"


def test_every_piece_of_a_tensor_must_be_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_save, "_PIECE", 4)
    tensor = torch.zeros(3, 3).t()
    assert pending_save._is_finite(tensor)
    assert pending_save._is_finite(torch.zeros(0))
    tensor[2, 2] = float("inf")
    assert not pending_save._is_finite(tensor)
