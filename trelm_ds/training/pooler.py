"""Carries the pooler of `model.init_from` through a run, so that its exports have it again."""

from __future__ import annotations

from pathlib import Path

from trelm_ds.checkpoints import Captured, CheckpointInfo, capture_pooler, read_pooler
from trelm_ds.config import Config
from trelm_ds.model import EncoderConfig, Pooler, load_pooler
from trelm_ds.training.component import Component


class KeptPooler(Component):
    """The pooler that the model had at the beginning. No objective trains it.

    Args:
        pooler: as `model.init_from` has it.
        sizes: of the model.
        writes: whether this rank does.
    """

    def __init__(self, pooler: Pooler, sizes: EncoderConfig, writes: bool) -> None:
        self._pooler, self._sizes, self._writes = pooler, sizes, writes

    def load(self, checkpoint: Path, info: CheckpointInfo) -> None:
        """Take the checkpoint's, since the folder may have changed; checkpoints from before this have none."""
        self._pooler = read_pooler(checkpoint, self._sizes) or self._pooler

    def capture(self) -> Captured | None:
        return capture_pooler(self._pooler) if self._writes else None


def kept_pooler(config: Config, sizes: EncoderConfig, writes: bool) -> list[Component]:
    """Make the component where the model to start from has a pooler; an empty list otherwise.

    Raises:
        UserError: the folder's pooler does not fit its model.
    """
    pooler = load_pooler(config.model.init_from) if config.model.init_from else None
    return [] if pooler is None else [KeptPooler(pooler, sizes, writes)]
