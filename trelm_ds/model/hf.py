"""Hugging Face checkpoints in: BertForMaskedLM and RobertaForMaskedLM, exact to the bit."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.model.encoder import Encoder
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.hf_export import left_behind
from trelm_ds.model.hf_names import HEAD_PREFIX, from_hf, hf_names, pooler_names, to_hf
from trelm_ds.model.hf_weights import read_object, read_weights
from trelm_ds.model.masked_lm import MaskedLanguageModel
from trelm_ds.model.pooler import Pooler
from trelm_ds.model.sharing import make_tensor_parallel

Report = Callable[[str], None]
_IGNORED = re.compile(
    r"(^|\.)(pooler\.dense\.(weight|bias)|embeddings\.(position_ids|token_type_ids))$|^cls\.seq_relationship\."
)


def load_pretrained(
    folder: str | Path,
    activation_checkpointing: bool = False,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
) -> MaskedLanguageModel:
    """Build the model of a Hugging Face folder, in fp32.

    The weights are model.safetensors, its sharded form, or pytorch_model.bin. A checkpoint of the bare encoder gets a
    fresh MLM head and a warning; the next-sentence head is left out, the pooler is what `load_pooler` loads.

    Args:
        folder: holds config.json and the weights.
        activation_checkpointing: as in `Encoder`.
        group: the ranks that share the model (`make_tensor_parallel`); each holds its part and no more than one whole
            parameter at a time.
        sequence_parallel: as there.

    Raises:
        UserError: a file is missing or unreadable; a tensor is missing, unknown or of another shape.
    """
    folder = Path(folder)
    config, tensors = _checked(folder, report_fresh_head=log.warning_rank0)
    # Of a folder without a head, the head is drawn at random, which a model on device meta cannot be.
    apart = group is not None and _has_head(config, tensors)
    with torch.device("meta") if apart else contextlib.nullcontext():
        model = MaskedLanguageModel(config, activation_checkpointing)
    if group is not None:
        make_tensor_parallel(model, group, sequence_parallel)
    if apart:
        model.to_empty(device="cpu")
    return _filled(model, tensors)


def load_encoder(folder: str | Path) -> Encoder:
    """Build the encoder of a Hugging Face folder, with or without an MLM head, in fp32.

    Raises:
        UserError: as `load_pretrained`.
    """
    config, tensors = _checked(Path(folder), report_fresh_head=log.debug)
    return _filled(MaskedLanguageModel(config), tensors).encoder


def load_pooler(folder: str | Path) -> Pooler | None:
    """Build the pooler of a Hugging Face folder, in fp32; None where it has none.

    Raises:
        UserError: as `load_pretrained`.
    """
    folder = Path(folder)
    config = load_config(folder)
    tensors, names = _read(folder, config), pooler_names(config)
    given = {ours: tensors[theirs] for ours, theirs in names.items() if theirs in tensors}
    if not given:
        return None
    pooler = Pooler(config)
    for ours, parameter in pooler.named_parameters():
        if ours not in given or given[ours].shape != parameter.shape:
            found = f"has shape {list(given[ours].shape)}" if ours in given else "is missing"
            raise UserError(f"{folder}: tensor '{names[ours]}' {found}; its pooler needs {list(parameter.shape)}")
    pooler.load_state_dict(given)
    return pooler


def _checked(folder: Path, report_fresh_head: Report) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Read config.json, and the tensors by name, mapped into memory where they are safetensors."""
    config = load_config(folder)
    tensors = _read(folder, config)
    ignored = [name for name in tensors if _IGNORED.search(name)]
    for name in ignored:
        del tensors[name]
    if ignored:
        log.debug(f"{folder}: left out {', '.join(sorted(ignored))}, which masked language modelling does not use")
    _drop_tied_decoder(tensors, config, folder)
    _check(tensors, config, folder, report_fresh_head)
    return config, tensors


def _has_head(config: EncoderConfig, tensors: Mapping[str, Tensor]) -> bool:
    return all(theirs in tensors for theirs in hf_names(config)["head.bias"])


@torch.no_grad()
def _filled(model: MaskedLanguageModel, tensors: Mapping[str, Tensor]) -> MaskedLanguageModel:
    """Copy the tensors into the model, or into this rank's part of it."""
    names = hf_names(model.config)
    for ours, parameter in model.named_parameters():
        if names[ours][0] in tensors:
            whole = from_hf(ours, [tensors[theirs] for theirs in names[ours]])
            parameter.copy_(model.own_part(ours, whole))
    return model


def _read(folder: Path, config: EncoderConfig) -> dict[str, Tensor]:
    """Read all tensors by the names that a whole model of today gives them."""
    return _with_prefix({_modern(name): tensor for name, tensor in read_weights(folder).items()}, config)


def hf_shapes(config: EncoderConfig) -> dict[str, list[int]]:
    """Give the shape of every tensor of the Hugging Face checkpoint, pooler left out, by name."""
    with torch.device("meta"):  # a config.json with absurd sizes must not cost memory
        parameters = dict(MaskedLanguageModel(config).named_parameters())
    return {
        name: list(tensor.shape)
        for ours, theirs in hf_names(config).items()
        for name, tensor in to_hf(ours, parameters[ours], theirs).items()
    }


def load_config(folder: str | Path) -> EncoderConfig:
    """Read config.json of a Hugging Face folder.

    Raises:
        UserError: it is missing, not JSON, or describes a model this project does not have.
    """
    path, hint = Path(folder) / "config.json", "give a Hugging Face folder with config.json and model.safetensors"
    if not path.parent.exists() and (old := left_behind(path.parent.absolute(), "old")):
        hint = f"an export was killed while it replaced this one, which is in {old[0]}"
    if (path.parent / "checkpoints").is_dir() and not path.exists():
        hint = f"{path.parent} is a run: `trelm export` makes such a folder of it"
    content = read_object(path, hint)
    try:
        return EncoderConfig.from_hf(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _modern(name: str) -> str:
    """Rename gamma and beta, as the first BERT checkpoints call LayerNorm's weight and bias."""
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def _with_prefix(tensors: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Add the "bert." or "roberta." that a bare BertModel or RobertaModel is saved without."""
    base = f"{config.architecture}."
    if any(name.startswith(base) for name in tensors):
        return tensors
    bare = ("embeddings.", "encoder.", "pooler.")
    return {base + name if name.startswith(bare) else name: tensor for name, tensor in tensors.items()}


def _drop_tied_decoder(tensors: dict[str, Tensor], config: EncoderConfig, folder: Path) -> None:
    """Remove the decoder's copies of the word embedding and the bias, after checking that they are copies."""
    prefix = HEAD_PREFIX[config.architecture]
    if f"{prefix}bias" not in tensors and f"{prefix}decoder.bias" in tensors:
        tensors[f"{prefix}bias"] = tensors[f"{prefix}decoder.bias"]
    twins = {"weight": f"{config.architecture}.embeddings.word_embeddings.weight", "bias": f"{prefix}bias"}
    for kind, twin in twins.items():
        name = f"{prefix}decoder.{kind}"
        copy = tensors.pop(name, None)
        if copy is not None and twin in tensors and not torch.equal(copy, tensors[twin]):
            raise UserError(
                f"{folder}: '{name}' differs from '{twin}'; only tied decoders are supported, use another checkpoint"
            )


def _check(
    tensors: Mapping[str, Tensor],
    config: EncoderConfig,
    folder: Path,
    report_fresh_head: Report,
) -> None:
    """Check that the tensors are those of the model, by name and shape; a missing MLM head is reported."""
    shapes = hf_shapes(config)
    missing = [theirs for theirs in shapes if theirs not in tensors]
    head = [theirs for ours, (theirs, *_) in hf_names(config).items() if ours.startswith("head.")]
    if missing == head:
        report_fresh_head(f"{folder}: has no MLM head; starting it afresh: {', '.join(head)}")
    elif missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: tensor '{missing[0]}'{more} is missing; its config.json and its weights do not belong together"
        )
    unknown = sorted(set(tensors) - set(shapes))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        kind = config.to_hf()["architectures"][0]
        raise UserError(
            f"{folder}: tensor '{unknown[0]}'{more} is not part of a {kind}; save the folder as one with transformers"
        )
    for theirs, expected in shapes.items():
        tensor = tensors.get(theirs)
        if tensor is not None and list(tensor.shape) != expected:
            raise UserError(
                f"{folder}: tensor '{theirs}' has shape {list(tensor.shape)}, config.json says {expected}; its "
                "config.json and its weights do not belong together"
            )
