"""Plot the loss curve."""

from __future__ import annotations

from pathlib import Path

from trelm_ds.run_folder import read_metrics


def plot_loss(run: Path, path: Path) -> None:
    """Plot loss, masked-token accuracy and learning rate over steps, and save the figure as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = read_metrics(run)
    steps = [point["step"] for point in points]
    figure, (loss, rate) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=[3, 1])
    loss.plot(steps, [point["loss"] for point in points], color="tab:blue")
    loss.set_ylabel("loss (nats; of masked tokens, or of all objectives)", color="tab:blue")
    loss.grid(alpha=0.3)
    accuracy = loss.twinx()
    accuracy.plot(steps, [100 * point["accuracy"] for point in points], color="tab:green")
    accuracy.set_ylabel("masked tokens right (%)", color="tab:green")
    loss.set_title(f"{run.name}: {points[-1]['loss']:.3f} nats after {steps[-1]} steps", parse_math=False)
    rate.plot(steps, [point["lr"] for point in points], color="tab:gray")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("optimizer step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
