"""The sizes of a model: from the project's own files, or, where they are silent, from its code or the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trelm_ds.errors import UserError
from trelm_ds.model import EncoderConfig, read_object
from trelm_ds.relatives.reading import Checkpoint, refuse_pointer

# A configuration must say these; Hugging Face would assume BERT-base's where it is silent.
_NEEDED = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "hidden_act"),
)


def read_beside(checkpoint: Checkpoint, names: Sequence[str], title: str) -> tuple[Path, dict[str, Any]]:
    """Read the first of these JSON files that stands beside the weights.

    Raises:
        UserError: there is none, or it is no JSON object.
    """
    folder = checkpoint.path.parent
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{folder}: holds no {' or '.join(names)}, which says how many attention heads the model has; put the one "
            f"that {title} published beside {checkpoint.path.name}"
        )
    refuse_pointer(found)
    return found, read_object(found, "")


def sizes(kind: str, content: Mapping[str, Any], place: Path | str, heads: int | None) -> EncoderConfig:
    """Make an encoder's configuration of what a project's file says.

    Args:
        kind: "bert" or "roberta".
        content: by Hugging Face's names.
        place: the file, for messages.
        heads: as the user has said; must agree.

    Raises:
        UserError: a size is missing or out of range.
    """
    said = {"model_type": kind, **({} if heads is None else {"num_attention_heads": heads}), **content}
    if heads is not None and said["num_attention_heads"] != heads:
        raise UserError(f"--heads: {place} says {str(said['num_attention_heads'])[:20]}, got {heads}")
    for name in _NEEDED:
        if name not in said:
            hint = "; say it with --heads" if name == "num_attention_heads" else ""
            raise UserError(f"{place}: does not say '{name}'{hint}")
    try:
        return EncoderConfig.from_hf({**said, "model_type": kind})
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def heads_of(size: int, usual: Mapping[int, int], heads: int | None, title: str) -> int:
    """Give the number of attention heads where no file says it: the user's, else that of the project's known sizes.

    Raises:
        UserError: neither is known.
    """
    if heads is not None:
        return heads
    if size not in usual:
        raise UserError(
            f"--heads: required; {title}'s checkpoint does not say how many attention heads it has, and {size} is no "
            "size that the project has published"
        )
    return usual[size]
