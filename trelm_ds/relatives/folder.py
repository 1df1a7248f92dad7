"""Write the Hugging Face folder of a converted model, all of it or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from trelm_ds.corpus import VOCABULARIES, load_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path, fsync_tree, read_json
from trelm_ds.model import TOKENIZER_FILES, EncoderConfig
from trelm_ds.relatives.relative import Converted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A folder of LUKE names a tokenizer that also makes entities' inputs; its words are RoBERTa's.
_PLAIN_CLASSES = {
    **{"LukeTokenizer": "RobertaTokenizer", "MLukeTokenizer": "XLMRobertaTokenizer"},
    **{"DkplmTokenizer": "BertTokenizer", "DkplmTokenizerFast": "BertTokenizer"},
}
_MOST_UNUSED = 128  # word rows beyond the tokenizer, such as padding to a round number; more is another vocabulary
_BARE = {"bert": "BertModel", "roberta": "RobertaModel"}


def refuse_existing(out: Path) -> None:
    """Refuse a folder that holds anything.

    Raises:
        UserError: it does, or is a file.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"{out}: exists; give a folder that does not exist yet")


def tokenizer_folder(given: Path | None, weights: Path, hint: str) -> Path:
    """Return where the tokenizer is: where the user says, else beside the weights.

    Raises:
        UserError: there is none.
    """
    folder = given or weights.parent
    if any((folder / name).is_file() for name in VOCABULARIES):
        return folder
    if given is None:
        raise UserError(f"--tokenizer: required, as {folder} holds none; give the folder of the tokenizer: {hint}")
    raise UserError(f"--tokenizer: {folder} holds no vocab.txt, no vocab.json with merges.txt, no tokenizer.json")


def write_folder(
    model: Converted,
    tokenizer: Path,
    out: Path,
    provenance: dict[str, str],
    check: Callable[[PreTrainedTokenizerBase], None],
) -> int:
    """Write config.json, model.safetensors and the tokenizer to a folder beside `out`, then rename it.

    Args:
        model: what to write; without an MLM head it is a bare BertModel or RobertaModel.
        tokenizer: folder of the tokenizer, which must fit the model.
        out: must not exist, or be an empty folder.
        provenance: further entries of config.json.
        check: what else must hold for the tokenizer.

    Returns:
        rows of the word embeddings that no token has.

    Raises:
        UserError: `out` exists or cannot be written, or the tokenizer is another model's.
    """
    out = out.absolute()
    missing = [folder for folder in out.parents if not folder.exists()]
    temporary = out.parent / f".{out.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be created: {error.strerror}; give a folder where you may write") from None
    try:
        content = model.config.to_hf() | provenance
        if not any(name.startswith(("cls.", "lm_head.")) for name in model.tensors):
            content["architectures"] = [_BARE[model.config.architecture]]
        (temporary / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unused = _write_tokenizer(tokenizer, temporary, model.config, check)
        save_file(model.tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod((temporary / "config.json").stat().st_mode)
        fsync_tree(temporary)
        os.rename(temporary, out)
        fsync_path(out.parent)
    except (OSError, SafetensorError) as error:  # a full disk; a folder that another process has put there meanwhile
        raise UserError(f"{out}: cannot be written: {' '.join(str(error).split())}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for folder in missing:  # those that are still empty
            with contextlib.suppress(OSError):
                folder.rmdir()
    return unused


def _write_tokenizer(
    source: Path, target: Path, config: EncoderConfig, check: Callable[[PreTrainedTokenizerBase], None]
) -> int:
    """Copy the tokenizer's files, load it, and compare it with the model."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    settings, loaded = target / "tokenizer_config.json", source
    if settings.is_file():
        content = read_json(settings)
        plain = _plain_settings(content, source)
        if plain != content:  # then only the copy is a plain tokenizer
            loaded = target
        plain["model_max_length"] = config.max_position_embeddings
        settings.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    try:
        tokenizer = load_tokenizer(loaded)
    except UserError as error:
        raise UserError(str(error).replace(str(target), str(source))) from None
    unused = config.vocab_size - len(tokenizer)
    if not 0 <= unused <= _MOST_UNUSED:
        raise UserError(
            f"--tokenizer: {source} has {len(tokenizer)} tokens, the model {config.vocab_size}; give the tokenizer "
            "that the model was trained with"
        )
    _check_specials(tokenizer, source, config)
    check(tokenizer)
    return unused


def _plain_settings(content: Any, source: Path) -> dict[str, Any]:
    """Take out of tokenizer_config.json what belongs to entities."""
    if not isinstance(content, dict):
        raise UserError(f"--tokenizer: {source / 'tokenizer_config.json'}: expected an object of settings")
    kept = {
        key: value
        for key, value in content.items()
        if not key.startswith("entity_") and key not in ("task", "max_entity_length", "max_mention_length", "auto_map")
    }
    if (kind := kept.get("tokenizer_class")) in _PLAIN_CLASSES:
        kept["tokenizer_class"] = _PLAIN_CLASSES[kind]
    return kept


def _check_specials(tokenizer: PreTrainedTokenizerBase, source: Path, config: EncoderConfig) -> None:
    """Compare the special tokens whose ids are known: BERT's padding, the first four of fairseq's dictionaries."""
    expected = {"pad": config.pad_token_id}
    if config.architecture == "roberta":
        expected |= {"cls": 0, "sep": 2, "unk": 3}
    for special, number in expected.items():
        found = getattr(tokenizer, f"{special}_token_id")
        if found != number:
            raise UserError(
                f"--tokenizer: {source}: its {special} token has id {found}, the model's is {number}; give the "
                "tokenizer that the model was trained with"
            )
