"""The counts of `compact.py` against the bytes that a real run hands to torch.distributed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.distributed import run_distributed_test
from tests.forked import ROOT
from tests.training.test_compact import pair
from trelm_ds.config import Config
from trelm_ds.distributed import connect, disconnect
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from compact import PAGE, count, link_times, with_table


class Exchanged(TorchDispatchMode):
    """Counts the floating-point elements that are handed to collectives, by the collective's name."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            given = [tensor for tensor in torch.utils._pytree.tree_leaves(args) if isinstance(tensor, torch.Tensor)]
            most = max((tensor.numel() for tensor in given if tensor.is_floating_point()), default=0)
            name = func.name().removeprefix("c10d::")
            self.elements[name] = self.elements.get(name, 0) + most
        return func(*args, **kwargs or {})


def exchanged(settings: Config, data: Path, run: Path) -> tuple[dict[str, int], Any]:
    """Count what the engine exchanges in the third step."""
    ranks, mode = connect(), Exchanged()
    try:
        with StopSignals() as signals:
            trainer = build_run(settings, str(data), run, ranks, signals)
            trainer.engine.train()
            for _ in range(2):
                trainer.train_step()
            for name in ("backward", "step"):
                whole = getattr(trainer.engine, name)

                def counted(*given: Any, whole: Any = whole, **more: Any) -> Any:
                    with mode:
                        return whole(*given, **more)

                setattr(trainer.engine, name, counted)
            trainer.train_step()
            trainer.held.close()
            return mode.elements, trainer.engine.module.config
    finally:
        disconnect()


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["all", "ffn_only"])
def test_what_a_run_exchanges(trainable: str, tiny_dataset: Path, tmp_path: Path) -> None:
    """Under ZeRO 1 every trained element is reduced once and gathered once, in whatever collectives."""
    found = {}
    for settings, name in zip(
        pair(1, {"trainable": trainable, "refresh_every": 100}), ("lazy", "compact"), strict=True
    ):
        (elements, sizes), (others, _) = run_distributed_test(exchanged, 2, settings, tiny_dataset, tmp_path / name)
        assert elements == others
        expected = count(sizes, settings.routing).trained
        found[name] = sum(elements.values())
        # Alignment pads every group a little; norms and flags are single numbers.
        assert 2 * expected <= found[name] <= 2 * expected + 200, elements
    assert found["compact"] < 0.8 * found["lazy"]


def test_links_carry_each_byte_twice() -> None:
    times = link_times(1000.0)
    assert times["8 nodes, 100 Gbit/s"] == pytest.approx(2 * 8e9 * 7 / 8 / 100e9 * 1e3)
    assert times["64 nodes, 25 Gbit/s"] > times["8 nodes, 25 Gbit/s"] > times["8 nodes, 400 Gbit/s"]


def test_the_page_has_one_table_between_its_marks() -> None:
    """Written anew it stays one; without its marks nothing is written, where it was appended."""
    page = PAGE.read_text()
    again = with_table(with_table(page, "| base |"), "| large |")
    assert page.count("| compact 10%, all |") == 4  # two tables of two sizes
    assert again.count("| large |") == 1
    assert "| compact 10%, all |" not in again
    with pytest.raises(SystemExit, match="lacks <!-- compact-table -->"):
        with_table(page.replace("<!-- compact-table -->", ""), "| base |")
