"""Read a tokenizer's files as they are meant: tokenizer.json, vocab.txt, or vocab.json with merges.txt."""

from __future__ import annotations

import contextlib
import json
import tempfile
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trelm_ds import log
from trelm_ds.errors import UnreadableError, UserError
from trelm_ds.files import read_json, read_lines, refuse_pointers

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
_SETTINGS = ("special_tokens_map.json", "tokenizer_config.json", "added_tokens.json", "config.json")
_SPECIAL = 10  # tokens that no merge makes: the special ones
_FLAGS = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
_FEW = (
    0.01  # share of the tokens; a cased vocabulary has a third of them with capitals, an added "NUM" makes none cased
)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer in `folder`.

    Raises:
        UserError: there is none, or a file of it cannot be read.
    """
    refuse_pointers(folder)
    settings = _settings(folder)
    if (folder / "tokenizer.json").is_file():
        return _from_backend(folder, settings)
    if (folder / "vocab.txt").is_file():
        return _from_wordpieces(folder, settings)
    if (folder / "vocab.json").is_file():
        return _from_byte_pairs(folder, settings)
    raise UserError(f"--tokenizer: {folder} holds no vocab.txt, no vocab.json with merges.txt, no tokenizer.json")


def _settings(folder: Path) -> dict[str, Any]:
    """Merge tokenizer_config.json over special_tokens_map.json."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            content = read_json(path)
            if not isinstance(content, dict):
                raise UserError(f"{path}:1: expected an object of the tokenizer's settings")
            _check_types(path, content)
            settings |= content
    return settings


def _check_types(path: Path, content: dict[str, Any]) -> None:
    """Refuse settings of another type, such as "false" with quotes, which is true to the library."""
    for name in _FLAGS:
        if not isinstance(content.get(name), bool | None):
            raise UserError(f"{path}: '{name}' must be true or false, got {json.dumps(content[name])[:60]}")
    if not isinstance(content.get("tokenizer_class"), str | None):
        raise UserError(f"{path}: 'tokenizer_class' must be a name, got {json.dumps(content['tokenizer_class'])[:60]}")


def _class_is_known(folder: Path, settings: dict[str, Any]) -> bool:
    """Tell whether the library can find the tokenizer's class, by its own settings or by the model's."""
    if isinstance(settings.get("tokenizer_class"), str):
        return True
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return isinstance(config, dict) and isinstance(config.get("model_type"), str)


def _from_library(name: str, folder: Path, shown: Path | None = None, **options: Any) -> PreTrainedTokenizerBase:
    """Load what the library makes of a folder; `shown` is the folder to name in messages."""
    import transformers

    try:
        return getattr(transformers, name).from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # the library lets any exception of its file readers through
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"--tokenizer: {shown or folder} cannot be read: {reason}") from None


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
        core = Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UnreadableError(path, error) from None
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


def _with_vocabulary(
    tokenizer: PreTrainedTokenizerBase, path: Path, vocabulary: dict[str, int]
) -> PreTrainedTokenizerBase:
    """Return the tokenizer if it has the vocabulary of the file; a class that reads another file has its own."""
    known = tokenizer.get_vocab()
    if any(known.get(token) != number for token, number in vocabulary.items()):
        raise UserError(
            f"--tokenizer: {path} is not what a {type(tokenizer).__name__} reads; correct tokenizer_class in "
            "tokenizer_config.json (or model_type in config.json), or remove that file"
        )
    return tokenizer


# --- vocab.json and merges.txt ---
def _from_byte_pairs(folder: Path, settings: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Load a byte-pair vocabulary; the library takes neither byte-order marks nor empty lines at the end."""
    path, pairs = folder / "vocab.json", folder / "merges.txt"
    vocabulary = read_json(path, unique_keys=True)
    if not isinstance(vocabulary, dict) or not all(type(number) is int for number in vocabulary.values()):
        raise UserError(f"--tokenizer: {path} cannot be read: expected an object of tokens and their numbers")
    merges = [line for _, line in read_lines(pairs)]
    while merges and not merges[-1]:
        merges.pop()
    made = {line.replace(" ", "", 1) for line in merges}
    lost = [token for token in vocabulary if len(token) > 1 and token not in made]
    if len(lost) > _SPECIAL + _FEW * len(vocabulary):
        raise UserError(f"--tokenizer: {pairs} is cut off: nothing makes {len(lost)} tokens of {path}; fetch it again")
    name = "AutoTokenizer" if _class_is_known(folder, settings) else "RobertaTokenizer"
    with tempfile.TemporaryDirectory() as tidy:
        for other in _SETTINGS:
            if (folder / other).is_file():
                (Path(tidy) / other).write_text(json.dumps(read_json(folder / other)))
        (Path(tidy) / path.name).write_text(json.dumps(vocabulary))
        (Path(tidy) / pairs.name).write_text("".join(f"{line}\n" for line in merges), encoding="utf-8")
        tokenizer = _from_library(name, Path(tidy), shown=folder)
    tokenizer.name_or_path = str(folder)
    return _with_vocabulary(tokenizer, path, vocabulary)


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
    options: dict[str, Any] = {"do_lower_case": _lowers(path, vocabulary, settings)}
    options["strip_accents"] = settings.get("strip_accents")
    if not {"do_lower_case", "strip_accents"} & settings.keys() and any(map(_is_accented, _words(vocabulary))):
        options["strip_accents"] = False  # or such tokens could never be
    other = settings.get("tokenizer_class") not in _BERT
    if other or _has_added_tokens(folder, settings, vocabulary):
        tokenizer = _from_library("AutoTokenizer" if other else "BertTokenizer", folder, **options)
        return _with_vocabulary(tokenizer, path, vocabulary)
    chinese = settings.get("tokenize_chinese_chars") is not False
    return BertTokenizer(vocab=vocabulary, tokenize_chinese_chars=chinese, **options, **specials)


def _has_added_tokens(folder: Path, settings: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    """Tell whether tokens stand beside the vocabulary, as those that were added before a model was trained further."""
    path = folder / "added_tokens.json"
    added = read_json(path) if path.is_file() else {}
    decoder = settings.get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, dict) else ()
    names = [*(added if isinstance(added, dict) else ())]
    names += [
        entry["content"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("content"), str)
    ]
    return any(name not in vocabulary for name in names)


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
    capitals = [token for token in _words(vocabulary) if token != token.lower()]
    cased = len(capitals) > _FEW * len(vocabulary)
    given = settings.get("do_lower_case")
    if given is None:
        few = (
            f"has no capitals but in {len(capitals)} tokens, such as '{capitals[0]}'" if capitals else "has no capitals"
        )
        taken = "has capitals: taken as cased" if cased else f"{few}: text is lower-cased"
        log.info_once(f"--tokenizer: {path} {taken} (tokenizer_config.json may say otherwise by do_lower_case)")
        return not cased
    if given and cased:
        log.warning(f"--tokenizer: {path} has capitals, which do_lower_case in tokenizer_config.json makes useless")
    return bool(given)


def _words(vocabulary: dict[str, int]) -> list[str]:
    """Return the tokens that are no special ones."""
    return [token for token in vocabulary if not token.startswith(("[", "<"))]


def _is_accented(token: str) -> bool:
    return any(unicodedata.category(letter) == "Mn" for letter in unicodedata.normalize("NFD", token))
