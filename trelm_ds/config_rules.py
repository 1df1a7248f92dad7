"""Check the values of settings: ranges, and settings that must fit each other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from trelm_ds.config import Config, flatten
from trelm_ds.injection_sources import file_problem, problem_of

_POSITIVE = (
    "model.hidden_size",
    "model.num_hidden_layers",
    "model.num_attention_heads",
    "model.intermediate_size",
    "model.max_position_embeddings",
    "model.tensor_parallel",
    "selection.max_per_sequence",
    "injection.max_name_tokens",
    "memory.beta",
    "cka.max_answer_tokens",
    "kepler.margin",
    "kepler.negatives",
    "kepler.triples_per_sequence",
    "kepler.max_text_tokens",
    "routing.density",
    "routing.io_density",
    "routing.refresh_every",
    "routing.sample_fraction",
    "loader.window_blocks",
    "loader.cache_gb",
    "optimizer.eps",
    "trainer.max_steps",
    "trainer.global_batch_size",
    "trainer.micro_batch_tokens",
    "trainer.log_every",
    "trainer.eval_sequences",
    "trainer.checkpoint_every",
    "guards.spike_window",
    "trainer.keep_every",
    "trainer.max_minutes",
)
_NOT_NEGATIVE = (
    "injection.refresh_every",
    "memory.window",
    "cka.negatives",
    "cka.max_token_share",
    "kepler.weight",
    "routing.start_step",
    "loader.seed",
    "loader.workers",
    "optimizer.lr",
    "optimizer.weight_decay",
    "optimizer.warmup_steps",
    "optimizer.decay_steps",
    "optimizer.max_grad_norm",
    "trainer.seed",
    "trainer.eval_every",
    "guards.spike_sigma",
    "guards.max_skipped",
    "guards.hang_minutes",
    "tracking.system_metrics_every_s",
)
_SHARES = (
    "model.hidden_dropout_prob",
    "model.attention_probs_dropout_prob",
    "masking.mask_share",
    "masking.random_share",
    "selection.quantile",
    "injection.probability",
    "injection.weight",
    "memory.gamma",
    "memory.initial_lambda",
    "memory.release_fraction",
    "cka.mlm_weight",
    "routing.density",
    "routing.io_density",
    "routing.sample_fraction",
    "routing.score_ema",
    "loader.max_corrupted",
)
_AT_MOST = {"guards.spike_window": 1_000_000, "guards.hang_minutes": 1_000_000, "trainer.max_minutes": 100_000_000}
# Lazy AdamW counts the updates of each element up to 32,767 (int16). By then beta ** updates, which its bias correction
# depends on, must have become negligible: 5e-5 here.
_LARGEST_BETA = 0.9997


def problems(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (dotted setting, what is wrong and what to do) for every value that is not allowed."""
    value = flatten(config)
    for name, number in value.items():
        if isinstance(number, float) and not math.isfinite(number):
            yield name, f"must be a finite number, got {number}"
    for name, most in _AT_MOST.items():
        if value[name] is not None and value[name] > most:
            yield name, f"must be at most {most}, got {value[name]}"
    for name in _POSITIVE:
        if value[name] is not None and not value[name] > 0:
            yield name, f"must be greater than 0, got {value[name]}"
    for name in _NOT_NEGATIVE:
        if value[name] is not None and not value[name] >= 0:
            yield name, f"must not be negative, got {value[name]}"
    for name in _SHARES:
        if not 0 <= value[name] <= 1:
            yield name, f"must lie between 0 and 1, got {value[name]}"
    for name in ("loader.seed", "trainer.seed"):
        if value[name] >= 1 << 63:
            yield name, f"must be less than 2^63, got {value[name]}"
    model, masking, trainer, optimizer = config.model, config.masking, config.trainer, config.optimizer
    rates = masking.probability if isinstance(masking.probability, tuple) else (masking.probability,)
    for rate in rates:
        if not 0 <= rate <= 1:
            yield "masking.probability", f"must lie between 0 and 1, got {rate}"
        elif rate == 0:
            yield "masking.probability", "must be greater than 0, or there is nothing to learn"
    if masking.mask_share + masking.random_share > 1:
        total = f"{masking.mask_share} + {masking.random_share}"
        yield "masking.random_share", f"mask_share + random_share must be at most 1, got {total}"
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        yield "optimizer.betas", f"both must lie in [0, 1), got {list(optimizer.betas)}"
    if model.num_attention_heads > 0 and model.hidden_size % model.num_attention_heads:
        heads = model.num_attention_heads
        yield "model.num_attention_heads", f"must divide hidden_size {model.hidden_size}, got {heads}"
    yield from _tensor_parallel_problems(config)
    yield from _knowledge_problems(config)
    yield from _routing_problems(config)
    if trainer.keep_checkpoints < 2:
        reason = "so that a failed save never costs the last good one"
        yield "trainer.keep_checkpoints", f"must be at least 2, {reason}, got {trainer.keep_checkpoints}"
    if optimizer.warmup_steps >= trainer.max_steps and optimizer.schedule != "constant":
        limit = f"trainer.max_steps {trainer.max_steps}"
        yield "optimizer.warmup_steps", f"must be less than {limit}, got {optimizer.warmup_steps}"
    yield from _decay_problems(config)
    if trainer.log_every > 0 and trainer.eval_every % trainer.log_every:
        yield "trainer.eval_every", f"must be a multiple of log_every {trainer.log_every}, got {trainer.eval_every}"
    yield from _profile_problems(config)


def profiled_steps(window: str) -> range:
    """Read `trainer.profile_steps`, a:b: steps a to b - 1.

    Raises:
        ValueError: it is not of that form.
    """
    found = re.fullmatch("([0-9]{1,12}):([0-9]{1,12})", window)
    if found is None:
        raise ValueError(f"'{window}' is not a:b")
    return range(int(found[1]), int(found[2]))


def _profile_problems(config: Config) -> Iterator[tuple[str, str]]:
    window, last = config.trainer.profile_steps, config.trainer.max_steps
    if window is None:
        return
    try:
        steps = profiled_steps(window)
    except ValueError:
        yield "trainer.profile_steps", f"must be two numbers of steps such as 10:13, got '{window}'"
        return
    if not 1 <= steps.start < steps.stop:
        yield "trainer.profile_steps", f"must be a:b with 1 <= a < b, for steps a to b - 1, got {window}"
    elif steps[-1] > last:
        yield "trainer.profile_steps", f"must end with trainer.max_steps {last}, at most a:{last + 1}, got {window}"


def _tensor_parallel_problems(config: Config) -> Iterator[tuple[str, str]]:
    degree = config.model.tensor_parallel
    if config.model.sequence_parallel and degree == 1:
        yield "model.sequence_parallel", "needs model.tensor_parallel above 1, whose ranks share the tokens"
    if degree > 1 and config.trainer.compile:
        yield "trainer.compile", f"must be false with model.tensor_parallel {degree}, whose collectives do not compile"
    if degree > 1 and config.routing.enabled and config.routing.compact:
        yield "routing.compact", f"must be false with model.tensor_parallel {degree}; paths differ in size by rank"


def _decay_problems(config: Config) -> Iterator[tuple[str, str]]:
    optimizer, total = config.optimizer, config.trainer.max_steps
    steps, warmup = optimizer.decay_steps, optimizer.warmup_steps
    if steps is not None and optimizer.schedule != "wsd":
        yield "optimizer.decay_steps", f"goes with optimizer.schedule wsd, got {optimizer.schedule}; leave it out"
    elif steps is not None and warmup + steps > total:
        room = f"trainer.max_steps {total} - optimizer.warmup_steps {warmup}"
        yield "optimizer.decay_steps", f"must be at most {room}, got {steps}"


def _knowledge_problems(config: Config) -> Iterator[tuple[str, str]]:
    selection, injection, memory = config.selection, config.injection, config.memory
    if selection.quantile == 0:
        yield "selection.quantile", "must be greater than 0; strategy none chooses nothing"
    if selection.entity_threshold is not None and selection.entity_threshold < 1:
        yield "selection.entity_threshold", f"must be at least 1, got {selection.entity_threshold}"
    if unknown := problem_of(injection.source):
        yield "injection.source", unknown
    elif wrong := file_problem(injection.source, injection.file):
        yield "injection.file", wrong
    elif injection.projection == "fitted" and injection.file is None:
        yield "injection.projection", f"fitted needs a source that reads a file, got {injection.source}; take trained"
    elif injection.projection != "fixed" and injection.source == "none":
        yield "injection.projection", f"{injection.projection} goes with a source, injection.source is none"
    if config.cka.max_token_share == 0 and config.cka.decoder == "query":
        yield "cka.max_token_share", "must be greater than 0; decoder none asks nothing"
    if config.cka.decoder == "mention" and injection.source == "none":
        yield "cka.decoder", "mention decodes what was injected, injection.source is none"
    if config.cka.decoder == "mention" and injection.weight < 1:
        yield "injection.weight", "must be 1 with cka.decoder mention, or the input holds the answer"
    if injection.places == "queries" and config.cka.decoder != "query":
        yield "injection.places", f"queries needs cka.decoder query, got {config.cka.decoder}"
    if not 1 <= config.cka.facts_per_mention <= 8:
        yield "cka.facts_per_mention", f"must lie between 1 and 8, got {config.cka.facts_per_mention}"
    if memory.beta < 1:
        yield "memory.beta", f"must be at least 1, or lambda grows, got {memory.beta}"
    for name, number in (("decay_share", memory.decay_share), ("decay_every_steps", memory.decay_every_steps)):
        if number is not None and number < 1:
            yield f"memory.{name}", f"must be at least 1, got {number}"
    low, high = memory.word_frequency
    if not 1 <= low <= high:
        yield "memory.word_frequency", f"must be 1 <= lowest <= highest, got {[low, high]}"
    if memory.word_quantiles is not None and not 0 <= memory.word_quantiles[0] <= memory.word_quantiles[1] <= 1:
        yield "memory.word_quantiles", f"must be 0 <= low <= high <= 1, got {list(memory.word_quantiles)}"


def _routing_problems(config: Config) -> Iterator[tuple[str, str]]:
    routing, betas = config.routing, config.optimizer.betas
    if routing.top_layers is not None and routing.top_layers < 1:
        yield "routing.top_layers", f"must be at least 1, got {routing.top_layers}"
    if routing.score_ema == 1:
        yield "routing.score_ema", "must be less than 1, or no new score counts"
    if not routing.enabled:
        return
    if config.cka.decoder == "mention":
        yield "routing.enabled", "must be false with cka.decoder mention, which asks for no fact that a path leads to"
    if routing.start_step >= config.trainer.max_steps:
        limit = f"trainer.max_steps {config.trainer.max_steps}"
        yield "routing.start_step", f"must be less than {limit}, or no path is ever chosen, got {routing.start_step}"
    if max(betas) > _LARGEST_BETA:
        yield "optimizer.betas", f"with routing at most {_LARGEST_BETA}, got {list(betas)}; or routing.enabled false"
