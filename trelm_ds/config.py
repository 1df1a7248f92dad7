"""Every setting of a pre-training run, once: documented, typed, checked, printable.

A run is one YAML file plus dotted overrides: `trelm pretrain --config run.yaml --trainer.max_steps 300`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml


@dataclass
class ModelConfig:
    """The encoder: a folder to continue from, or the sizes of a fresh one."""

    init_from: str | None = None
    """Hugging Face folder to start from; its config.json then decides all sizes and dropouts below"""
    architecture: Literal["bert", "roberta"] = "bert"
    """family of a fresh encoder"""
    hidden_size: int = 768
    """D"""
    num_hidden_layers: int = 12
    """L"""
    num_attention_heads: int = 12
    """attention heads; divides hidden_size"""
    intermediate_size: int = 3072
    """F, the width of the feed-forward (key-value memory)"""
    max_position_embeddings: int = 512
    """longest sequence the model can read, in tokens"""
    hidden_dropout_prob: float = 0.1
    """dropout after embeddings, attention output and feed-forward"""
    attention_probs_dropout_prob: float = 0.1
    """dropout on attention probabilities"""
    activation_checkpointing: bool = False
    """recompute each layer in the backward pass: less memory, about a third more work"""


@dataclass
class MaskingConfig:
    """Masked language modelling: which tokens are predicted and what stands in their place."""

    probability: float = 0.15
    """share of the tokens to predict"""
    mask_share: float = 0.8
    """share of those shown as the mask token"""
    random_share: float = 0.1
    """share of those shown as a random token; the rest stays as it is"""
    whole_word: bool = True
    """choose whole words instead of word pieces"""


@dataclass
class LoaderConfig:
    """How the dataset is read and in which order."""

    seed: int = 0
    """seed of the order and of the masks; with the epoch it fixes both"""
    window_blocks: int = 16
    """blocks that are shuffled together: memory and mixing grow with it"""
    tail: Literal["wrap", "drop"] = "wrap"
    """end of an epoch: wrap lets a batch span two epochs, drop leaves out the samples after the last whole batch"""
    workers: int = 1
    """processes per rank that read ahead; 0 reads in the training process"""
    max_corrupted: float = 0.001
    """share of the samples that may lie in damaged blocks and be replaced by others; beyond it the run fails"""
    cache_dir: str = "~/.cache/trelm"
    """where a dataset behind a URL is kept on this machine"""
    cache_gb: float = 100.0
    """size of that cache; the shards least recently read are removed beyond it"""


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    lr: float = 1e-4
    """peak learning rate"""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates"""
    eps: float = 1e-6
    """AdamW's epsilon"""
    weight_decay: float = 0.01
    """decoupled weight decay; biases and LayerNorm are left out"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """shape of the decay to 0 after the warm-up"""
    warmup_steps: int = 1000
    """steps of linear warm-up"""
    max_grad_norm: float = 1.0
    """gradient clipping; 0 turns it off"""


@dataclass
class TrainerConfig:
    """Steps, batches, precision, checkpoints."""

    max_steps: int = 10000
    """optimizer steps in the whole run"""
    global_batch_size: int = 256
    """sequences per optimizer step over all ranks"""
    micro_batch_tokens: int = 16384
    """tokens per forward pass and rank at most, at least the dataset's max_length; accumulation follows from it"""
    precision: Literal["bf16", "fp32"] = "bf16"
    """number format of forward, backward and (DeepSpeed's default) gradient sums; the optimizer keeps fp32 weights"""
    ds_config: str = "ds_configs/zero1.json"
    """DeepSpeed file; its "auto" values are filled from this configuration"""
    seed: int = 0
    """seed of the initial weights and of dropout"""
    log_every: int = 10
    """steps between two log points (progress bar, MLflow)"""
    checkpoint_every: int = 1000
    """steps between two checkpoints; one is always written at the end and on SIGINT, SIGTERM or SIGUSR1"""
    keep_checkpoints: int = 2
    """number of newest checkpoints kept, at least 2"""
    resume: str = "auto"
    """auto: continue RUN's last checkpoint; never: refuse to start where one exists; else a checkpoint to start from"""


@dataclass
class TrackingConfig:
    """MLflow."""

    enabled: bool = True
    """log parameters, metrics and artifacts to MLflow (rank 0 only)"""
    uri: str | None = None
    """tracking store; default: MLFLOW_TRACKING_URI, else a sqlite file mlflow.db beside the run folder"""
    experiment: str = "trelm"
    """experiment name"""
    run_name: str | None = None
    """default: the run folder's name"""


@dataclass
class Config:
    """One pre-training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a dataclass tree by dotted name, in order of declaration."""
    leaves: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        leaves |= flatten(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return leaves


def to_yaml(config: Config) -> str:
    """The resolved tree as YAML that `--config` reads back."""
    plain = dataclasses.asdict(config)
    plain["optimizer"]["betas"] = list(plain["optimizer"]["betas"])
    return yaml.safe_dump(plain, sort_keys=False)


_POSITIVE = (
    "model.hidden_size",
    "model.num_hidden_layers",
    "model.num_attention_heads",
    "model.intermediate_size",
    "model.max_position_embeddings",
    "loader.window_blocks",
    "loader.cache_gb",
    "optimizer.eps",
    "trainer.max_steps",
    "trainer.global_batch_size",
    "trainer.micro_batch_tokens",
    "trainer.log_every",
    "trainer.checkpoint_every",
)
_NOT_NEGATIVE = (
    "loader.seed",
    "loader.workers",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.warmup_steps",
    "optimizer.max_grad_norm",
    "trainer.seed",
)
_SHARES = (
    "model.hidden_dropout_prob",
    "model.attention_probs_dropout_prob",
    "masking.probability",
    "masking.mask_share",
    "masking.random_share",
    "loader.max_corrupted",
)


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """Yields (dotted setting, what is wrong and what to do) for every value out of range."""
    value = flatten(config)
    for name, number in value.items():
        if isinstance(number, float) and not math.isfinite(number):
            yield name, f"must be a finite number, got {number}"
    for name in _POSITIVE:
        if not value[name] > 0:
            yield name, f"must be greater than 0, got {value[name]}"
    for name in _NOT_NEGATIVE:
        if not value[name] >= 0:
            yield name, f"must not be negative, got {value[name]}"
    for name in _SHARES:
        if not 0 <= value[name] <= 1:
            yield name, f"must lie between 0 and 1, got {value[name]}"
    for name in ("loader.seed", "trainer.seed"):
        if value[name] >= 1 << 63:
            yield name, f"must be less than 2^63, got {value[name]}"
    model, masking, trainer, optimizer = config.model, config.masking, config.trainer, config.optimizer
    if masking.probability == 0:
        yield "masking.probability", "must be greater than 0, or there is nothing to learn"
    if masking.mask_share + masking.random_share > 1:
        total = f"{masking.mask_share} + {masking.random_share}"
        yield "masking.random_share", f"mask_share + random_share must be at most 1, got {total}"
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        yield "optimizer.betas", f"both must lie in [0, 1), got {list(optimizer.betas)}"
    if model.num_attention_heads > 0 and model.hidden_size % model.num_attention_heads:
        heads = model.num_attention_heads
        yield "model.num_attention_heads", f"must divide hidden_size {model.hidden_size}, got {heads}"
    if trainer.keep_checkpoints < 2:
        reason = "so that a failed save never costs the last good one"
        yield "trainer.keep_checkpoints", f"must be at least 2, {reason}, got {trainer.keep_checkpoints}"
    if optimizer.warmup_steps >= trainer.max_steps and optimizer.schedule != "constant":
        limit = f"trainer.max_steps {trainer.max_steps}"
        yield "optimizer.warmup_steps", f"must be less than {limit}, got {optimizer.warmup_steps}"
