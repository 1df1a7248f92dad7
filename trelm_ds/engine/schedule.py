"""Learning-rate schedules as functions of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from trelm_ds.config import Config

_DECAYED_SHARE = 0.1  # of the run, where optimizer.decay_steps is not set (MiniCPM; Hägele et al. find 10 to 20%)


class Decay(NamedTuple):
    """The decay that ends a run under schedule wsd.

    Attributes:
        begin: steps done when it begins; the next step still has the peak learning rate.
        end: steps done when the learning rate is 0.
    """

    begin: int
    end: int


def decay_of(config: Config) -> Decay | None:
    """Say when the learning rate of a run decays under schedule wsd; None under other schedules."""
    settings, end = config.optimizer, config.trainer.max_steps
    if settings.schedule != "wsd":
        return None
    steps = settings.decay_steps
    if steps is None:  # behind the warm-up, or the rate would fall from one step to the next
        steps = max(1, min(round(end * _DECAYED_SHARE), end - settings.warmup_steps))
    return Decay(end - steps, end)


def wsd(decay: Decay, warmup_steps: int) -> Callable[[int], float]:
    """Return schedule wsd: steps done -> share of the peak learning rate that the next step has.

    Linear warm-up, a stable phase, and a decay by 1 - sqrt, which Hägele et al. (2024, "Scaling laws and
    compute-optimal training beyond fixed training durations") find better than a linear one. Up to the decay it is
    the same function whatever `decay` is, so runs of several lengths can share one stable phase (Hu et al. 2024,
    MiniCPM).
    """

    def share(steps_done: int) -> float:
        if steps_done < warmup_steps:
            return steps_done / warmup_steps
        if steps_done <= decay.begin:
            return 1.0
        return max(0.0, 1 - math.sqrt((steps_done - decay.begin) / (decay.end - decay.begin)))

    return share
