"""Hugging Face checkpoints in and out: BertForMaskedLM and RobertaForMaskedLM, exact to the bit."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_folder, read_json
from trelm_ds.model.encoder import Encoder
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.masked_lm import MaskedLanguageModel

Report = Callable[[str], None]
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
EXPORTER = "trelm-ds"  # stands in config.json as "exported_by", so that we know our own exports

_EMBEDDINGS = {
    "word.weight": "word_embeddings.weight",
    "position.weight": "position_embeddings.weight",
    "token_type.weight": "token_type_embeddings.weight",
    "norm.weight": "LayerNorm.weight",
    "norm.bias": "LayerNorm.bias",
}
_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward_norm": "output.LayerNorm",
}
_FEED_FORWARD = {
    "keys": "intermediate.dense.weight",
    "key_bias": "intermediate.dense.bias",
    "values": "output.dense.weight",
    "value_bias": "output.dense.bias",
}
_HEAD = {
    "bert": {"dense": "cls.predictions.transform.dense", "norm": "cls.predictions.transform.LayerNorm"},
    "roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"},
}
_HEAD_PREFIX = {"bert": "cls.predictions.", "roberta": "lm_head."}

_IGNORED = re.compile(
    r"(^|\.)(pooler\.dense\.(weight|bias)|embeddings\.(position_ids|token_type_ids))$|^cls\.seq_relationship\."
)


def hf_names(config: EncoderConfig) -> dict[str, str]:
    """Map every parameter's name to its name in the Hugging Face checkpoint."""
    base = f"{config.architecture}."
    names = {f"encoder.embeddings.{ours}": f"{base}embeddings.{theirs}" for ours, theirs in _EMBEDDINGS.items()}
    for i in range(config.num_hidden_layers):
        ours_layer, theirs_layer = f"encoder.layers.{i}.", f"{base}encoder.layer.{i}."
        for ours, theirs in _LAYER.items():
            names |= {f"{ours_layer}{ours}.{kind}": f"{theirs_layer}{theirs}.{kind}" for kind in ("weight", "bias")}
        names |= {f"{ours_layer}feed_forward.{ours}": theirs_layer + theirs for ours, theirs in _FEED_FORWARD.items()}
    for ours, theirs in _HEAD[config.architecture].items():
        names |= {f"head.{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return names | {"head.bias": f"{_HEAD_PREFIX[config.architecture]}bias"}


def load_pretrained(folder: str | Path, activation_checkpointing: bool = False) -> MaskedLanguageModel:
    """Build the model of a Hugging Face folder, in fp32.

    The weights are model.safetensors, its sharded form, or pytorch_model.bin. A checkpoint of the bare encoder gets a
    fresh MLM head and a warning; the pooler and the next-sentence head are left out.

    Args:
        folder: holds config.json and the weights.
        activation_checkpointing: as in `Encoder`.

    Raises:
        UserError: a file is missing or unreadable; a tensor is missing, unknown or of another shape.
    """
    return _load(Path(folder), activation_checkpointing, report_fresh_head=log.warning_rank0)


def load_encoder(folder: str | Path) -> Encoder:
    """Build the encoder of a Hugging Face folder, with or without an MLM head, in fp32.

    Raises:
        UserError: as `load_pretrained`.
    """
    return _load(Path(folder), activation_checkpointing=False, report_fresh_head=log.debug).encoder


def _load(
    folder: Path, activation_checkpointing: bool, report_fresh_head: Callable[[str], None]
) -> MaskedLanguageModel:
    config = load_config(folder)
    model = MaskedLanguageModel(config, activation_checkpointing)
    tensors = {_modern(name): tensor for name, tensor in _read_weights(folder).items()}
    tensors = _with_prefix(tensors, config)
    ignored = [name for name in tensors if _IGNORED.search(name)]
    for name in ignored:
        del tensors[name]
    if ignored:
        log.debug(f"{folder}: left out {', '.join(sorted(ignored))}, which masked language modelling does not use")
    _drop_tied_decoder(tensors, config, folder)
    _fill(model, tensors, config, folder, report_fresh_head)
    return model


def load_config(folder: str | Path) -> EncoderConfig:
    """Read config.json of a Hugging Face folder.

    Raises:
        UserError: it is missing, not JSON, or describes a model this project does not have.
    """
    path = Path(folder) / "config.json"
    content = _read_json(path, "give a Hugging Face folder with config.json and model.safetensors")
    try:
        return EncoderConfig.from_hf(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_json(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; {hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); fetch the folder again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; fetch the folder again")
    return content


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of the folder by name; never unpickle anything but tensors."""
    if (folder / WEIGHTS).exists():
        return _read_safetensors(folder / WEIGHTS)
    if (folder / WEIGHTS_INDEX).exists():
        shards = _read_json(folder / WEIGHTS_INDEX, "").get("weight_map")
        if not isinstance(shards, dict):
            raise UserError(f"{folder / WEIGHTS_INDEX}: has no 'weight_map'; fetch the folder again")
        tensors: dict[str, Tensor] = {}
        for shard in sorted({str(name) for name in shards.values()}):
            tensors |= _read_safetensors(folder / Path(shard).name)
        return tensors
    path = folder / PICKLED_WEIGHTS
    if not path.exists():
        raise UserError(
            f"{folder}: holds neither {WEIGHTS}, {WEIGHTS_INDEX} nor {PICKLED_WEIGHTS}; fetch the weights too"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: cannot be read as weights ({reason}); fetch it again or convert it to {WEIGHTS}"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path}: expected names and tensors only; convert it to {WEIGHTS}")
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; fetch the folder again") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from None


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
    prefix = _HEAD_PREFIX[config.architecture]
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


def _fill(
    model: MaskedLanguageModel,
    tensors: dict[str, Tensor],
    config: EncoderConfig,
    folder: Path,
    report_fresh_head: Report,
) -> None:
    """Copy every tensor into its parameter; a missing MLM head goes to `report_fresh_head`."""
    names = hf_names(config)
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    head = [theirs for ours, theirs in names.items() if ours.startswith("head.")]
    if missing == head:
        report_fresh_head(f"{folder}: has no MLM head; starting it afresh: {', '.join(head)}")
    elif missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{folder}: tensor '{missing[0]}'{more} is missing; its config.json and its weights do not belong together"
        )
    unknown = sorted(set(tensors) - set(names.values()))
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        kind = config.to_hf()["architectures"][0]
        raise UserError(
            f"{folder}: tensor '{unknown[0]}'{more} is not part of a {kind}; save the folder as one with transformers"
        )
    with torch.no_grad():
        for ours, parameter in model.named_parameters():
            tensor = tensors.get(names[ours])
            if tensor is None:
                continue
            expected = _transposed(ours, parameter).shape
            if tensor.shape != expected:
                raise UserError(
                    f"{folder}: tensor '{names[ours]}' has shape {list(tensor.shape)}, config.json says "
                    f"{list(expected)}; its config.json and its weights do not belong together"
                )
            parameter.copy_(_transposed(ours, tensor))


def _transposed(ours: str, tensor: Tensor) -> Tensor:
    """Whether a tensor is transposed: the feed-forward values are [F, D] here and [D, F] there."""
    return tensor.t() if ours.endswith(".feed_forward.values") else tensor


def to_hf_state(state: Mapping[str, Tensor], config: EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, contiguous CPU tensor) for a state dict of `MaskedLanguageModel`.

    Raises:
        ValueError: the names are not exactly the model's.
    """
    names = hf_names(config)
    if odd := sorted(set(names) ^ set(state)):
        raise ValueError(f"not the state of this model: '{odd[0]}' is {'unknown' if odd[0] in state else 'missing'}")
    for ours, theirs in names.items():
        yield theirs, _transposed(ours, state[ours].detach()).cpu().contiguous()


def save_pretrained(
    model: nn.Module | Mapping[str, Tensor], config: EncoderConfig, folder: str | Path, tokenizer_dir: str | Path | None
) -> None:
    """Write a folder that `transformers.AutoModelForMaskedLM.from_pretrained` reads, all of it or nothing.

    Args:
        model: a `MaskedLanguageModel`, or its state dict.
        config: its sizes.
        folder: where to; may hold an earlier export of ours, which is replaced.
        tokenizer_dir: folder whose tokenizer files are copied, to cut text at the model's length; None writes none.

    Raises:
        UserError: `folder` holds something else, or `tokenizer_dir` holds no tokenizer.
    """
    folder = Path(folder).absolute()
    _check_target(folder)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error}); give a folder in a place you may write to") from None
    try:
        content = config.to_hf() | {"exported_by": EXPORTER}
        (temporary / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_file(dict(to_hf_state(state, config)), temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod((temporary / "config.json").stat().st_mode)  # safetensors keeps it from others
        if tokenizer_dir is not None:
            _copy_tokenizer(Path(tokenizer_dir), temporary, config.max_position_embeddings)
        for path in (*temporary.iterdir(), temporary):
            fsync_folder(path)
        _replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_target(folder: Path) -> None:
    """Refuse to overwrite anything that is not an export of ours."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder that does not exist yet")
    held = {path.name for path in folder.iterdir()}
    if not held:
        return
    try:
        ours = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("exported_by") == EXPORTER
    except (OSError, ValueError, AttributeError):
        ours = False
    foreign = sorted(held - {"config.json", WEIGHTS, *TOKENIZER_FILES})
    if not ours or foreign:
        what = f"'{foreign[0]}'" if foreign else "files that are no earlier export"
        raise UserError(f"{folder}: holds {what}; give an empty folder, or one that does not exist yet")


def _copy_tokenizer(source: Path, target: Path, longest: int) -> None:
    """Copy a tokenizer; note in its configuration, if it has one, how many tokens the model can read."""
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(path.name in ("tokenizer.json", "vocab.txt", "vocab.json") for path in found):
        raise UserError(f"{source}: holds no tokenizer (tokenizer.json, vocab.txt or vocab.json with merges.txt)")
    for path in found:
        shutil.copyfile(path, target / path.name)
    settings = target / "tokenizer_config.json"
    if settings.is_file():
        content = read_json(settings) | {"model_max_length": longest}
        settings.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(temporary: Path, folder: Path) -> None:
    """Put `temporary` in place of `folder`; an earlier export steps aside first: a rename needs an empty target."""
    if folder.exists() and any(folder.iterdir()):
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
        os.rename(folder, aside)
        os.rename(temporary, folder)
        shutil.rmtree(aside)
    else:
        os.rename(temporary, folder)
    fsync_folder(folder.parent)
