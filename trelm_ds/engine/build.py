"""Build the DeepSpeed engine: optimizer with its parameter groups, learning-rate schedule, model."""

from __future__ import annotations

import contextlib
import io
import traceback
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trelm_ds.config import Config, OptimizerConfig
from trelm_ds.distributed import Ranks, import_deepspeed
from trelm_ds.engine.model_parallel import ModelParallelUnit, mark_parts
from trelm_ds.engine.schedule import decay_of, wsd
from trelm_ds.engine.skippable_adamw import SkippableAdamW
from trelm_ds.errors import UserError
from trelm_ds.model import KeyValueFeedForward

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def parameter_groups(model: nn.Module, weight_decay: float, routed: bool) -> list[dict[str, Any]]:
    """Group the trained parameters for AdamW: matrices decay, vectors (biases, LayerNorm) do not, as in BERT.

    Args:
        model: its parameters may be partitioned by ZeRO 3 already.
        weight_decay: weight decay of the matrices.
        routed: put the feed-forward neurons, which knowledge routing updates selectively, into groups of their own
            with `lazy=True` (see `LazyAdamW`).
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                lazy = routed and isinstance(module, KeyValueFeedForward) and name != "value_bias"
                shape = getattr(parameter, "ds_shape", parameter.shape)  # under ZeRO 3 `parameter.shape` is [0]
                groups.setdefault((lazy, len(shape) > 1), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if matrices else 0.0} | ({"lazy": True} if lazy else {})
        for (lazy, matrices), parameters in sorted(groups.items(), reverse=True)
    ]


def _raised_here(error: BaseException) -> bool:
    """Whether our own code has raised an error: then it is a bug, and no setting that DeepSpeed refuses."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith(("trelm_ds.", "trelm_kernels."))


def build_data_parallel(model: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float) -> DeepSpeedEngine:
    """Build DeepSpeed's engine around a small model that every rank holds whole (ZeRO 0, fp32); collective.

    It averages gradients over the ranks and cuts their norm to `max_grad_norm`; the schedule stays the caller's.
    """
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # it only multiplies numbers that nobody reads
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": {"stage": 0},
    }
    engine, *_ = import_deepspeed().initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    return engine


def build_engine(
    model: nn.Module, config: Config, ds_config: dict[str, Any], ranks: Ranks
) -> tuple[DeepSpeedEngine, SkippableAdamW]:
    """Build DeepSpeed's engine around the model; return it and our optimizer, which it wraps.

    Raises:
        UserError: DeepSpeed refuses its settings.
    """
    from transformers import get_scheduler

    deepspeed = import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfigError

    settings: OptimizerConfig = config.optimizer
    if ranks.tensor is not None:
        mark_parts(model)
    groups = parameter_groups(model, settings.weight_decay, config.routes)
    optimizer = SkippableAdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
    name = "constant_with_warmup" if settings.schedule == "constant" else settings.schedule

    def schedule(basic: torch.optim.Optimizer) -> Any:
        if (decay := decay_of(config)) is not None:
            return torch.optim.lr_scheduler.LambdaLR(basic, wsd(decay, settings.warmup_steps))
        return get_scheduler(name, basic, settings.warmup_steps, config.trainer.max_steps)

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # with fp32 sums ZeRO 1 prints how much memory is used
            engine, *_ = deepspeed.initialize(
                model=model.to(ranks.device),
                optimizer=optimizer,
                lr_scheduler=schedule,
                config=ds_config,
                dist_init_required=False,
                mpu=None if ranks.tensor is None else ModelParallelUnit(ranks.tensor),
            )
    except (DeepSpeedConfigError, AssertionError, ValueError, NotImplementedError) as error:
        if _raised_here(error):
            raise
        # The file has passed our rules, so what is left are values that this version of DeepSpeed does not take.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{config.trainer.ds_config}: DeepSpeed refuses it: {reason}") from error
    return engine, optimizer
