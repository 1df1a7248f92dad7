"""What a project's converter must say and do."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor

from trelm_ds.model import EncoderConfig
from trelm_ds.relatives.reading import Checkpoint
from trelm_ds.relatives.taken import Groups, Taken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Converted(NamedTuple):
    """A plain BERT or RoBERTa."""

    config: EncoderConfig
    """its sizes"""
    tensors: dict[str, Tensor]
    """fp32, by Hugging Face's names: encoder; MLM head and pooler where the checkpoint has them whole"""
    notes: tuple[str, ...]
    """what was taken from the project's code because no file says it, and where the result is exact"""


class Relative(ABC):
    """A project whose checkpoints are converted."""

    name: ClassVar[str]
    """of `--from`"""
    title: ClassVar[str]
    """for messages"""
    files: ClassVar[tuple[str, ...]]
    """names of the published weights, for a CHECKPOINT that is a folder"""
    mark: ClassVar[re.Pattern[str]]
    """matches names that only this project's checkpoints have"""
    left_behind: ClassVar[Groups]
    """(names, what they are) of tensors that a plain encoder has no place for"""
    beside: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(file, what it is) published beside the weights, and not read"""
    tokenizer_hint: ClassVar[str]
    """which tokenizer the project's models have"""

    @abstractmethod
    def convert(self, checkpoint: Checkpoint, taken: Taken, heads: int | None) -> Converted:
        """Take the encoder, and MLM head and pooler if there are, out of a checkpoint.

        Args:
            checkpoint: as read.
            taken: its tensors; what is not taken from it is left behind.
            heads: number of attention heads, where the user has said it.

        Raises:
            LayoutError: names are missing or unknown.
            UserError: shapes or sizes do not agree, or a size is neither known nor given.
        """

    def check_tokenizer(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig
    ) -> None:
        """Check what the project's files say about token ids beyond what every tokenizer is checked for.

        Raises:
            UserError: they disagree.
        """
        return None
