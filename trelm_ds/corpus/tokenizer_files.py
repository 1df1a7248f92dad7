"""Read a tokenizer's files as they are meant: tokenizer.json, vocab.txt, or vocab.json with merges.txt."""

from __future__ import annotations

import contextlib
import json
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.files import read_json, read_lines

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

SPECIALS = ("pad", "unk", "cls", "sep", "mask")
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
_USUAL = {  # names of special tokens, BERT's before RoBERTa's
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
}
_BERT = (None, "BertTokenizer", "BertTokenizerFast")


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`.

    Raises:
        UserError: there is none, or a file of it cannot be read.
    """
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        return _from_backend(folder, settings)
    if (folder / "vocab.txt").is_file():
        return _from_wordpieces(folder, settings)
    if (folder / "vocab.json").is_file():
        return _from_library("AutoTokenizer" if _class_is_known(folder, settings) else "RobertaTokenizer", folder)
    raise UserError(f"--tokenizer: {folder} holds no vocab.txt, no vocab.json with merges.txt, no tokenizer.json")


def _settings(folder: Path) -> dict[str, Any]:
    """Merge tokenizer_config.json over special_tokens_map.json."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path}:1: expected an object of the tokenizer's settings")
            settings |= content
    return settings


def _class_is_known(folder: Path, settings: dict[str, Any]) -> bool:
    """Tell whether the library can find the tokenizer's class, by its own settings or by the model's."""
    if isinstance(settings.get("tokenizer_class"), str):
        return True
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def _from_library(name: str, folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    import transformers

    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # the library lets any exception of its file readers through
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--tokenizer: {folder} cannot be read: {reason}") from None


# --- tokenizer.json ---
def _from_backend(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load tokenizer.json as it stands.

    The library's classes take only the vocabulary from it and build the rest anew by their own defaults: without
    `do_lower_case` in tokenizer_config.json, BertTokenizer lower-cases with a cased tokenizer.json.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    try:
        core = Tokenizer.from_file(str(path))
    except Exception as error:
        raise UserError(f"--tokenizer: {path} cannot be read: {next(iter(str(error).splitlines()), '')}") from None
    if _class_is_known(folder, settings):
        with contextlib.suppress(UserError):  # other files are of little use, and may be damaged
            tokenizer = _from_library("AutoTokenizer", folder, **_normalization(core))
            if tokenizer.is_fast and _steps(tokenizer.backend_tokenizer) == _steps(core):
                return tokenizer
    specials = _special_tokens(settings, core.get_vocab())
    names = ["input_ids", "token_type_ids", "attention_mask"] if "[CLS]" in specials.values() else None
    return PreTrainedTokenizerFast(tokenizer_object=core, **specials, **({"model_input_names": names} if names else {}))


def _normalization(core: Tokenizer) -> dict[str, Any]:
    """Give a BERT normalizer's settings under the names of the library's classes."""
    found = json.loads(core.to_str())["normalizer"] or {}
    if found.get("type") != "BertNormalizer":
        return {}
    return {
        "do_lower_case": found["lowercase"],
        "strip_accents": found["strip_accents"],
        "tokenize_chinese_chars": found["handle_chinese_chars"],
    }


def _steps(core: Tokenizer) -> list[Any]:
    """Return what turns text into tokens."""
    content = json.loads(core.to_str())
    return [content["normalizer"], content["pre_tokenizer"], content["model"]]


def _special_tokens(settings: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, str]:
    """Name the special tokens: as the settings do, else by the usual names that the vocabulary has."""
    found = {}
    for special in SPECIALS:
        given = settings.get(f"{special}_token")
        given = given.get("content") if isinstance(given, dict) else given
        usual = next((name for name in _USUAL[special] if name in vocabulary), None)
        if name := given if isinstance(given, str) else usual:
            found[f"{special}_token"] = name
    return found


# --- vocab.txt ---
def _from_wordpieces(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a WordPiece vocabulary, whose file says neither whether it is cased nor whether it keeps accents."""
    from transformers import BertTokenizer

    path = folder / "vocab.txt"
    vocabulary = _read_vocabulary(path)
    specials = _special_tokens(settings, vocabulary)
    for special in SPECIALS:  # BertTokenizer would silently add those that its vocabulary lacks
        name = specials.setdefault(f"{special}_token", _USUAL[special][0])
        if name not in vocabulary:
            raise UserError(f"--tokenizer: {path} lacks {name}")
    options = {"do_lower_case": _lowers(path, vocabulary, settings), "strip_accents": settings.get("strip_accents")}
    if not {"do_lower_case", "strip_accents"} & settings.keys() and _has(vocabulary, _is_accented):
        options["strip_accents"] = False  # or such tokens could never be
    if settings.get("tokenizer_class") not in _BERT:
        return _from_library("AutoTokenizer", folder, **options)
    chinese = settings.get("tokenize_chinese_chars", True)
    return BertTokenizer(vocab=vocabulary, tokenize_chinese_chars=chinese, **options, **specials)


def _read_vocabulary(path: Path) -> dict[str, int]:
    """Read the tokens of vocab.txt, numbered from 0; empty lines at the end do not count.

    Raises:
        UserError: a token stands twice, or a line between others is empty.
    """
    lines = [token for _, token in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    found: dict[str, int] = {}
    for number, token in enumerate(lines):
        if not token:
            raise UserError(f"{path}:{number + 1}: is empty; every line is a token, numbered by its line")
        if token in found:
            raise UserError(
                f"{path}:{number + 1}: '{token}' stands on line {found[token] + 1} already; tokens are unique"
            )
        found[token] = number
    return found


def _lowers(path: Path, vocabulary: dict[str, int], settings: dict[str, Any]) -> bool:
    """Decide whether text is lower-cased: as tokenizer_config.json says, else unless the vocabulary has capitals."""
    cased = _has(vocabulary, lambda token: token != token.lower())
    given = settings.get("do_lower_case")
    if given is None:
        taken = "has capitals: taken as cased" if cased else "has no capitals: text is lower-cased"
        log.info_once(f"--tokenizer: {path} {taken} (tokenizer_config.json may say otherwise by do_lower_case)")
        return not cased
    if given and cased:
        log.warning(f"--tokenizer: {path} has capitals, which do_lower_case in tokenizer_config.json makes useless")
    return bool(given)


def _has(vocabulary: dict[str, int], test: Any) -> bool:
    return any(test(token) for token in vocabulary if not token.startswith(("[", "<")))


def _is_accented(token: str) -> bool:
    return any(unicodedata.category(letter) == "Mn" for letter in unicodedata.normalize("NFD", token))
