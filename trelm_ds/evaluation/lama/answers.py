"""The model's answers: a forward pass over the prompts, and the rank of the true answer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.evaluation.lama.candidates import Candidates
from trelm_ds.evaluation.lama.probes import Probe, Prompt, several_token_objects
from trelm_ds.evaluation.lama.scoring import ranks_of
from trelm_ds.progress import ProgressBar

K = TypeVar("K")

TOP = 10  # answers kept of each question


def longest_prompt(config: Any, tokenizer: Any) -> int:
    """Return how many tokens the model can read; RoBERTa's position table has pad_token_id + 1 unused rows."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1
    return int(positions)


def fill_masks(
    model: Any, tokenizer: Any, prompts: Sequence[Prompt], batch_size: int, description: str
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (rows of `prompts`, scores of the vocabulary at their masks, float32 [n, masks, V]) for every batch.

    Batches hold prompts of one number of masks and of similar length, which need little padding; `batch_size` masks at
    most, because scores of the whole vocabulary take more memory than the encoder.

    Raises:
        UserError: the model's scores are not finite.
    """
    by_masks = _places(len(prompt.masks) for prompt in prompts)
    with _masks_only(model) as run, ProgressBar(description, len(prompts)) as bar:
        for masks in sorted(by_masks):
            rows = sorted(by_masks[masks], key=lambda row: len(prompts[row].input_ids))
            step = max(1, batch_size // masks)
            for start in range(0, len(rows), step):
                batch = rows[start : start + step]
                inputs, at = _pad([prompts[row] for row in batch], tokenizer.pad_token_id or 0, model)
                with torch.no_grad():
                    scores = run(inputs, at).float().unflatten(0, (len(batch), masks))
                if not scores.sum().isfinite():  # one pass; a single NaN or infinity is enough
                    raise UserError(
                        f"{model.name_or_path}: its scores are not numbers; its weights hold NaN or infinity"
                    )
                yield batch, scores
                bar.advance(len(batch))


@contextmanager
def _masks_only(model: Any) -> Iterator[Any]:
    """Give a function of (inputs, (rows, columns)) -> scores [rows, V] that decodes the masks only.

    Decoding every token costs more than the encoder, and the library's heads know no other way.
    """
    at: tuple[Tensor, Tensor] | None = None

    def keep_masks(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        nonlocal at
        kept, at = inputs[0][at], None
        return (kept,)

    def run(inputs: dict[str, Tensor], positions: tuple[Tensor, Tensor]) -> Tensor:
        nonlocal at
        at = positions
        scores = model(**inputs).logits
        return scores if at is None else scores[at]  # some heads have no decoder of their own, or do not call it

    decoder = model.get_output_embeddings()
    hook = decoder.register_forward_pre_hook(keep_masks) if decoder is not None else None
    try:
        yield run
    finally:
        if hook is not None:
            hook.remove()


def _pad(prompts: list[Prompt], pad: int, model: Any) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Return the model's inputs [n, T] and where their masks are (row and column of each, by row)."""
    shape = len(prompts), max(len(prompt.input_ids) for prompt in prompts)
    ids, seen = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    types = torch.zeros(shape, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        length = len(prompt.input_ids)
        ids[row, :length] = torch.tensor(prompt.input_ids)
        seen[row, :length] = 1
        types[row, :length] = torch.tensor(prompt.type_ids or 0)
    inputs = {"input_ids": ids, "attention_mask": seen}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = types
    columns = torch.tensor([prompt.masks for prompt in prompts])  # [n, masks]
    rows = torch.arange(len(prompts))[:, None].expand_as(columns)
    device = model.device
    on_device = {name: value.to(device) for name, value in inputs.items()}
    return on_device, (rows.flatten().to(device), columns.flatten().to(device))


def answer(model: Any, tokenizer: Any, probes: list[Probe], candidates: Candidates, batch_size: int) -> None:
    """Rank the object of every one-token probe among the candidates; sets rank, log_prob, n_candidates and top.

    Ranks are of the scores themselves; log-probabilities are over the whole vocabulary, as LAMA reports them.
    """
    spell = _speller(tokenizer)
    choices = functools.cache(lambda space: [(token,) for token in candidates.tokens(space).tolist()])
    prompts = [probe.prompts[1] for probe in probes]
    for rows, scores in fill_masks(model, tokenizer, prompts, batch_size, "LAMA"):
        for space, places in _places(probes[row].space for row in rows).items():
            asked = [probes[rows[place]] for place in places]
            mine = scores[places, 0]  # [n, V]
            tokens = candidates.tokens(space)
            among = mine.index_select(1, tokens.to(mine.device))  # [n, C]
            columns = torch.searchsorted(tokens, torch.tensor([probe.answer[0] for probe in asked])).to(mine.device)
            log_probs = among - mine.logsumexp(-1, keepdim=True)
            _record(asked, log_probs, ranks_of(among, columns), columns, choices(space), spell)


def answer_several_tokens(model: Any, tokenizer: Any, probes: list[Probe], batch_size: int) -> None:
    """Rank the object of every multi-token probe among the distinct multi-token objects of its relation.

    A candidate of k tokens is scored in a prompt with k masks, filled in parallel: the mean of the log-probabilities of
    its tokens, each over the whole vocabulary. Of equal candidates the one whose tokens come first is the better.
    """
    keys = [(id(probe.relation), probe.space) for probe in probes]
    choices = _choices(tokenizer, probes)

    @functools.cache
    def fitting(key: tuple[int, bool], masks: int) -> tuple[Tensor, Tensor]:
        """Candidates of that many tokens: their columns int64 [M], their tokens int64 [masks, M]."""
        columns = [column for column, one in enumerate(choices[key]) if len(one) == masks]
        return torch.tensor(columns), torch.tensor([choices[key][column] for column in columns]).T

    lengths = {key: sorted({len(one) for one in found}) for key, found in choices.items()}
    asked = [(row, masks) for row, key in enumerate(keys) for masks in lengths[key]]
    prompts = [probes[row].prompts[masks] for row, masks in asked]
    scores = [torch.full((len(choices[key]),), -torch.inf) for key in keys]  # of each probe, [M]
    for batch, given in fill_masks(model, tokenizer, prompts, batch_size, "LAMA, several tokens"):
        log_probs, masks = given.log_softmax(-1), given.shape[1]  # [n, masks, V]
        rows = [asked[one][0] for one in batch]
        for key, places in _places([keys[row] for row in rows]).items():
            columns, tokens = fitting(key, masks)
            each = [log_probs[places, at].index_select(1, one) for at, one in enumerate(tokens.to(given.device))]
            for place, values in zip(places, torch.stack(each).mean(0).cpu(), strict=True):
                scores[rows[place]][columns] = values
    spell = _speller(tokenizer)
    for key, rows in _places(keys).items():
        among = torch.stack([scores[row] for row in rows])
        column = {tokens: at for at, tokens in reversed(list(enumerate(choices[key])))}
        answers = torch.tensor([column[probes[row].answer] for row in rows])
        _record([probes[row] for row in rows], among, ranks_of(among, answers), answers, choices[key], spell)


def _choices(tokenizer: Any, probes: list[Probe]) -> dict[tuple[int, bool], list[tuple[int, ...]]]:
    """List the candidates of each relation (by `id`) and space, in the order of their tokens."""
    found = {}
    for relation, rows in _places([id(probe.relation) for probe in probes]).items():
        mine = [probes[row] for row in rows]
        for space in (True, False):
            found[relation, space] = sorted(several_token_objects(mine, tokenizer, space))
    return found


def _places(keys: Iterable[K]) -> dict[K, list[int]]:
    """Return where each key stands."""
    found: dict[K, list[int]] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, []).append(place)
    return found


def _speller(tokenizer: Any) -> Callable[[tuple[int, ...]], str]:
    """Give a function that spells tokens as text and remembers the answer."""
    return functools.cache(lambda tokens: tokenizer.decode(list(tokens)).strip())


def _record(
    probes: list[Probe],
    log_probs: Tensor,
    ranks: Tensor,
    columns: Tensor,
    choices: Sequence[tuple[int, ...]],
    spell: Callable[[tuple[int, ...]], str],
) -> None:
    """Write ranks [n] and log-probabilities [n, C] of the candidates into the probes; columns are the true answers'."""
    own = log_probs.gather(1, columns[:, None])[:, 0].tolist()
    best, at = (found.tolist() for found in log_probs.topk(min(TOP, len(choices)), -1))
    for probe, rank, log_prob, values, places in zip(probes, ranks.tolist(), own, best, at, strict=True):
        probe.rank, probe.log_prob, probe.n_candidates = rank, log_prob, len(choices)
        found = sorted(zip(values, places, strict=True), key=lambda pair: (-pair[0], pair[1]))
        probe.top = [(spell(choices[place]), value) for value, place in found]
