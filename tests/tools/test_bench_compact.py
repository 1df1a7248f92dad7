"""The counts of `compact.py` against the bytes that a real run hands to torch.distributed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_distributed_test
from tests.forked import ROOT
from tests.training.test_compact import pair
from trelm_ds.config import Config
from trelm_ds.distributed import connect, disconnect
from trelm_ds.stopping import StopSignals
from trelm_ds.training.build import build_run

sys.path.insert(0, str(ROOT / "tools" / "bench"))

from compact import PAGE, count, link_times, with_table
from exchanged import DATA, Exchanged


def exchanged(settings: Config, data: Path, run: Path) -> tuple[dict[str, int], Any]:
    """Count the bytes that the engine exchanges in the third step."""
    ranks = connect()
    try:
        with StopSignals() as signals:
            trainer = build_run(settings, str(data), run, ranks, signals)
            trainer.engine.train()
            mode = Exchanged(trainer.ranks)
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
            return mode.bytes[DATA], trainer.engine.module.config
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
        (sent, sizes), (others, _) = run_distributed_test(exchanged, 2, settings, tiny_dataset, tmp_path / name)
        assert sent == others
        expected = count(sizes, settings.routing).trained
        found[name] = sum(sent.values()) // 4  # fp32
        assert 2 * expected <= found[name] <= 2 * expected + 200, sent  # alignment pads every group a little
    assert found["compact"] < 0.8 * found["lazy"]


def test_links_carry_each_byte_three_times() -> None:
    times = link_times(1000.0)
    assert times["8 nodes, 100 Gbit/s"] == pytest.approx(3 * 8e9 * 7 / 8 / 100e9 * 1e3)
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
