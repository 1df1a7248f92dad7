"""Examples as token ids, and packed batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trelm_ds.corpus import encode_literally
from trelm_ds.errors import UserError
from trelm_ds.evaluation.tasks import Example, Kind, Task
from trelm_ds.model import map_tensors

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase


class TaskBatch(NamedTuple):
    """B examples packed one after another, T tokens in all.

    Attributes:
        input_ids: int64 [T].
        cu_seqlens: int32 [B + 1], where each begins; from 0 to T.
        max_seqlen: tokens of the longest.
        token_types: int64 [T], 1 in the second of two texts.
        targets: by the task's kind int64 [B], labels; float32 [B, C], 1 at each label that holds; float32 [B], numbers.
    """

    input_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    token_types: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> TaskBatch:
        """Copy to `device`."""
        moved: TaskBatch = map_tensors(self, lambda tensor: tensor.to(device))
        return moved


@dataclass(frozen=True)
class EncodedSplit:
    """A split of a task as token ids.

    Attributes:
        examples: what they were made of.
        input_ids: int64 [n] for each example, special tokens included.
        token_types: int64 [n] for each.
        targets: [N, ...], as in `TaskBatch`.
        shortened: how many examples were cut to the longest that is allowed.
    """

    examples: list[Example]
    input_ids: list[np.ndarray]
    token_types: list[np.ndarray]
    targets: Tensor
    shortened: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [N]."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def batch(self, indices: Sequence[int] | np.ndarray) -> TaskBatch:
        """Pack some of the examples, at least one."""
        chosen = [self.input_ids[index] for index in indices]
        lengths = np.array([len(ids) for ids in chosen])
        return TaskBatch(
            input_ids=torch.from_numpy(np.concatenate(chosen)),
            cu_seqlens=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
            max_seqlen=int(lengths.max()),
            token_types=torch.from_numpy(np.concatenate([self.token_types[index] for index in indices])),
            targets=self.targets[torch.as_tensor(np.asarray(indices))],
        )


class _Tokens(NamedTuple):
    """Token ids of an example, special tokens included, and the type of each."""

    ids: list[int]
    types: list[int]

    @classmethod
    def of(cls, encoding: Encoding) -> _Tokens:
        return cls(encoding.ids, encoding.type_ids)


class ExampleEncoder:
    """Turns examples into token ids.

    Args:
        tokenizer: the model's.
        longest: tokens of the longest text or pair that is allowed.
        token_types: how many the model has; a pair needs 2 where the tokenizer tells its texts apart.
        shortens: whether longer ones are cut, instead of refused.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int, token_types: int, shortens: bool) -> None:
        self._core: Tokenizer = tokenizer.backend_tokenizer
        encode_literally(self._core)
        self._longest, self._token_types, self._shortens = longest, token_types, shortens

    def encode(self, task: Task, examples: list[Example]) -> EncodedSplit:
        """Encode a split of a task.

        Raises:
            UserError: an example is too long, or its mentions are too far apart; names file and record.
        """
        encoded = [_Tokens.of(one) for one in self._core.encode_batch([_input(example.texts) for example in examples])]
        shortened = 0
        for index, (example, tokens) in enumerate(zip(examples, encoded, strict=True)):
            if len(tokens.ids) > self._longest:
                encoded[index] = self._shorten(example, len(tokens.ids))
                shortened += 1
        types = [np.array(tokens.types, dtype=np.int64) for tokens in encoded]
        if max(int(of_example.max()) for of_example in types) >= self._token_types:
            types = [np.zeros_like(of_example) for of_example in types]  # a model that does not tell texts apart
        ids = [np.array(tokens.ids, dtype=np.int64) for tokens in encoded]
        return EncodedSplit(examples, ids, types, _targets(task, examples), shortened)

    def _shorten(self, example: Example, length: int) -> _Tokens:
        """Cut an example: the longer of two texts at its end, a sentence with mentions on both sides of these."""
        if not self._shortens:
            raise UserError(
                f"{example.place}: has {length} tokens, the longest allowed is {self._longest}; --truncate "
                "cuts such texts, around the mentions where there are any"
            )
        if example.mentions is not None:
            return self._around_mentions(example)
        self._core.enable_truncation(self._longest, strategy="longest_first")
        try:
            return _Tokens.of(self._core.encode_batch([_input(example.texts)])[0])
        finally:
            self._core.no_truncation()

    def _around_mentions(self, example: Example) -> _Tokens:
        """Keep as many tokens as fit, with what is before and after the mentions in equal parts.

        Tokens are cut, not characters: half a sentence may have other tokens, and more of them.
        """
        assert example.mentions is not None
        first, last = example.mentions
        whole = self._core.encode_batch([_input(example.texts)])[0]
        places = [place for place, special in enumerate(whole.special_tokens_mask) if not special]
        room = self._longest - (len(whole.ids) - len(places))
        reaches = [whole.offsets[place] for place in places]
        inside = [number for number, (begin, end) in enumerate(reaches) if begin < last and end > first]
        begin, end = inside[0], inside[-1] + 1
        if end - begin > room:
            raise UserError(
                f"{example.place}: its mentions are {end - begin} tokens apart, the longest text allowed has {room}; "
                "leave the record out"
            )
        spare = room - (end - begin)
        before = min(begin, max(spare // 2, spare - (len(places) - end)))
        begin -= before
        cut = set(places[:begin] + places[begin + room :])
        kept = [place for place in range(len(whole.ids)) if place not in cut]
        return _Tokens([whole.ids[place] for place in kept], [whole.type_ids[place] for place in kept])


def _input(texts: tuple[str, ...]) -> str | tuple[str, str]:
    return texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _targets(task: Task, examples: list[Example]) -> Tensor:
    if task.kind is Kind.REGRESSION:
        return torch.tensor([example.target for example in examples], dtype=torch.float32)
    number = {label: index for index, label in enumerate(task.labels)}
    if task.kind is Kind.SINGLE:
        return torch.tensor([number[example.target] for example in examples])
    targets = torch.zeros(len(examples), len(task.labels))
    for row, example in enumerate(examples):
        targets[row, [number[label] for label in example.target]] = 1
    return targets
