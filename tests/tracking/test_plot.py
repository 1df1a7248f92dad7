"""The loss curve of a run."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib import image

from trelm_ds.run_folder import METRICS
from trelm_ds.tracking import plot_loss


def test_the_loss_curve(tmp_path: Path) -> None:
    points = [{"step": step, "loss": 4.0 - step / 10, "accuracy": step / 20, "lr": 1e-3} for step in range(1, 11)]
    (tmp_path / METRICS).write_text("".join(json.dumps(point) + "\n" for point in points))
    plot_loss(tmp_path, tmp_path / "loss.png")
    pixels = image.imread(tmp_path / "loss.png")
    blue = (abs(pixels[..., :3] - (0x1F / 255, 0x77 / 255, 0xB4 / 255)) < 0.01).all(-1)
    assert blue.sum() > 300  # the curve, falling from left to right
    rows, columns = blue[:, 150:-150].nonzero()
    assert rows[columns.argmin()] < rows[columns.argmax()]
