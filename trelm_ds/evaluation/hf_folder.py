"""Load any Hugging Face folder of a masked language model; whatever is wrong with it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trelm_ds.corpus import VOCABULARIES, read_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.files import refuse_pointers
from trelm_ds.model import check_sizes, read_object


def load_masked_lm(folder: Path) -> tuple[Any, Any]:
    """Load (model, tokenizer), both the library's.

    Raises:
        UserError: the folder is no whole masked language model with its tokenizer.
        OSError: a file cannot be read.
    """
    if not (folder / "config.json").is_file():
        run = (folder / "checkpoints").is_dir()
        advice = "make one of this run with `trelm export`" if run else "give one with weights and tokenizer"
        raise UserError(f"{folder}: holds no config.json, so it is no Hugging Face folder; {advice}")
    content = read_object(folder / "config.json", "")
    try:
        check_sizes(content)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None
    refuse_pointers(folder)
    for path in filter(Path.is_file, folder.iterdir()):
        path.open("rb").close()  # the library calls a file that may not be read a missing one
    tokenizer = load_tokenizer_of(folder)
    model = _model(folder)
    if tokenizer.mask_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no mask token; give a masked language model")
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"{folder}: its tokenizer has {len(tokenizer)} tokens, its model {model.config.vocab_size}")
    return model, tokenizer


def load_tokenizer_of(folder: Path) -> Any:
    """Load a folder's tokenizer, the library's; there may be no model in it.

    Raises:
        UserError: the folder holds none that the library can load.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give a Hugging Face folder with a tokenizer")
    try:
        if any((folder / name).is_file() for name in VOCABULARIES):
            return read_tokenizer(folder)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except UserError as error:
        raise UserError(str(error).removeprefix("--tokenizer: ")) from None
    except Exception as error:
        raise UserError(f"{folder}: transformers cannot load its tokenizer: {_reason(error)}") from None


def _model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForMaskedLM, logging  # slow to import

    logging.disable_progress_bar()
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # a page on the weights that are missing; the error says it in a line
    # float32 whatever the weights are kept in: in bfloat16 many candidates have equal scores.
    options = {"local_files_only": True, "output_loading_info": True, "dtype": torch.float32}
    try:
        model, info = AutoModelForMaskedLM.from_pretrained(folder, **options)
    except Exception as error:  # the library lets any exception of its readers through
        raise UserError(f"{folder}: transformers cannot load it as a masked language model: {_reason(error)}") from None
    finally:
        logging.set_verbosity(told)
    if info["missing_keys"]:
        example = sorted(info["missing_keys"])[0]
        raise UserError(
            f"{folder}: has no weights for '{example}', so its answers would be random; train an MLM head first"
        )
    return model


def _reason(error: Exception) -> str:
    """Give the first line of an error, without torch's advice to unpickle whatever there is."""
    if "weights_only" in str(error):
        return "its weights are damaged, or hold more than tensors; fetch them again or convert them to safetensors"
    return " ".join(next(iter(str(error).strip().splitlines()), type(error).__name__).split())[:300]
