"""Turn what a project published into a plain Hugging Face folder, and say what became of it."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import load_array
from trelm_ds.relatives.colake import Colake
from trelm_ds.relatives.dkplm import Dkplm
from trelm_ds.relatives.ernie import Ernie
from trelm_ds.relatives.folder import refuse_existing, tokenizer_folder, write_folder
from trelm_ds.relatives.kepler import Kepler
from trelm_ds.relatives.luke import Luke
from trelm_ds.relatives.reading import Checkpoint, read_checkpoint
from trelm_ds.relatives.relative import Converted, Relative
from trelm_ds.relatives.taken import LayoutError, Taken

RELATIVES: dict[str, Relative] = {found.name: found for found in (Kepler(), Colake(), Ernie(), Luke(), Dkplm())}
_OTHER = "other tensors"
_PLAIN = ("bert.encoder.layer.", "roberta.encoder.layer.")


class Report(NamedTuple):
    """What became of a checkpoint, in lines for people."""

    kept: str
    """what the folder holds"""
    left: tuple[str, ...]
    """what it does not: one kind of tensors, or one file, each"""
    notes: tuple[str, ...]
    """what no file says and was taken from the project's code; where the result is exact"""

    def __str__(self) -> str:
        left = (f"left behind: {line}" for line in self.left or ("nothing",))
        return "\n".join([f"kept: {self.kept}", *left, *(f"note: {line}" for line in self.notes)])


def convert(name: str, source: Path, out: Path, tokenizer: Path | None = None, heads: int | None = None) -> Report:
    """Write the folder `out` that `transformers` and `trelm_ds.model` read, with the encoder of a published checkpoint.

    Args:
        name: the project, one of `RELATIVES`.
        source: the file of weights, or the folder that holds it.
        out: where to; must not exist, or be empty.
        tokenizer: folder of the tokenizer; None: the weights' folder.
        heads: number of attention heads, for checkpoints that do not say it.

    Raises:
        UserError: whatever is wrong with the files; nothing has been written then.
    """
    relative = RELATIVES[name]
    refuse_existing(out)
    path = _weights(relative, source)
    words = tokenizer_folder(tokenizer, path, relative.tokenizer_hint)
    log.info(f"{path}: reading")
    checkpoint = read_checkpoint(path)
    model, left = _converted(relative, checkpoint, heads)
    # Without the tensors, so that those of a file that could not be mapped are freed before the folder is written.
    checkpoint = checkpoint._replace(tensors={})
    log.info(f"{out}: writing {_numbers(model.tensors.values())} fp32 numbers")
    unused = write_folder(
        model,
        words,
        out,
        {"converted_from": relative.title},
        lambda loaded: relative.check_tokenizer(checkpoint, loaded, model.config),
    )
    notes = list(model.notes)
    if unused:
        notes.append(f"{unused} rows of the word embeddings have no token in {words}")
    return Report(_kept(model), (*left, *_beside(relative, path)), tuple(notes))


def _weights(relative: Relative, source: Path) -> Path:
    """Find the file of weights in a folder by the names that the project gave it."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: does not exist; give the file of weights, or the folder that holds it")
    found = [source / name for name in relative.files if (source / name).is_file()]
    if not found:
        raise UserError(
            f"{source}: holds no {' or '.join(relative.files)}, as {relative.title} calls its weights; give the file"
        )
    return found[0]


def _converted(relative: Relative, checkpoint: Checkpoint, heads: int | None) -> tuple[Converted, list[str]]:
    """Convert; return the model and what is left behind. A checkpoint of another project is told by its names."""
    whose = [found for found in RELATIVES.values() if any(found.mark.search(name) for name in checkpoint.tensors)]
    if whose and relative not in whose:
        raise UserError(
            f"{checkpoint.path}: no checkpoint of {relative.title}; its names are {whose[0].title}'s: try --from "
            f"{whose[0].name}"
        )
    taken = Taken(checkpoint, relative.title)
    try:
        model = relative.convert(checkpoint, taken, heads)
    except LayoutError as error:
        raise UserError(f"{error}{'' if whose else _hint(checkpoint)}") from None
    return model, _left_behind(relative, checkpoint, taken.left())


def _hint(checkpoint: Checkpoint) -> str:
    """Say what the names are of a checkpoint that has those of no project."""
    if any(name.startswith(_PLAIN) for name in checkpoint.tensors):
        return "; its names are those of a plain Hugging Face checkpoint, which needs no conversion"
    return f"; its first name is '{next(iter(checkpoint.tensors))[:80]}', which no known project has"


# --- What became of it ---
def _kept(model: Converted) -> str:
    config = model.config
    kind = {"bert": "BERT", "roberta": "RoBERTa"}[config.architecture]
    head = any(name.startswith(("cls.", "lm_head.")) for name in model.tensors)
    pooler = any(".pooler." in name for name in model.tensors)
    parts = "; ".join(
        what if present else f"no {what} (there is none)" for what, present in (("MLM head", head), ("pooler", pooler))
    )
    return (
        f"{kind} encoder of {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {config.vocab_size:,} words, {config.max_position_embeddings} "
        f"positions; {parts}"
    )


def _left_behind(relative: Relative, checkpoint: Checkpoint, left: dict[str, Tensor]) -> list[str]:
    """Group what was not taken by what it is, with sizes."""
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in left.items():
        label = next((label for pattern, label in relative.left_behind if pattern.search(name)), _OTHER)
        groups[label].append(tensor)
    lines = [f"{label} {_size(groups[label])}" for _, label in relative.left_behind if label in groups]
    if _OTHER in groups:
        names = [name[:80] for name in left if not any(pattern.search(name) for pattern, _ in relative.left_behind)]
        lines.append(f"{_OTHER} {_size(groups[_OTHER])}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    if rest := [str(name) for name in checkpoint.rest if name not in ("args", "cfg")]:
        lines.append(f"beside the tensors: {', '.join(rest)}")
    return lines


def _beside(relative: Relative, weights: Path) -> list[str]:
    """Name the files beside the weights that were not read."""
    lines = []
    for name, what in relative.beside:
        path, shape = weights.parent / name, ""
        if path.suffix == ".npy" and path.is_file():
            with contextlib.suppress(UserError):  # damaged, which matters to nobody here
                shape = f" {_shape(load_array(path).shape)}"
        if path.is_file():
            lines.append(f"{what}{shape} in {name}")
    return lines


def _size(tensors: list[Tensor]) -> str:
    if len(tensors) == 1:
        return _shape(tensors[0].shape)
    return f"({len(tensors)} tensors, {_numbers(tensors)} numbers)"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "1"


def _numbers(tensors: Iterable[Tensor]) -> str:
    return f"{sum(tensor.numel() for tensor in tensors):,}"
