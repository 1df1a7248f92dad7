"""Read the files of a Hugging Face folder; whatever is wrong with them is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from trelm_ds.errors import UnreadableError, UserError
from trelm_ds.files import refuse_pointers

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """Read a JSON object; `hint` says what to do where the file is missing.

    Raises:
        UserError: it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist; {hint}") from None
    except OSError as error:
        raise UnreadableError(path, error) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); fetch the folder again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object; fetch the folder again")
    return content


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of the folder by name; never unpickle anything but tensors.

    Raises:
        UserError: a file is missing or damaged, or holds something else.
    """
    refuse_pointers(folder)
    if (folder / WEIGHTS).exists():
        tensors = _read_safetensors(folder / WEIGHTS)
    elif (folder / WEIGHTS_INDEX).exists():
        tensors = _read_shards(folder)
    elif (folder / PICKLED_WEIGHTS).exists():
        tensors = _read_pickled(folder / PICKLED_WEIGHTS)
    else:
        raise UserError(
            f"{folder}: holds neither {WEIGHTS}, {WEIGHTS_INDEX} nor {PICKLED_WEIGHTS}; fetch the weights too"
        )
    for name, tensor in tensors.items():
        if tensor.is_complex() or tensor.is_quantized:
            raise UserError(f"{folder}: tensor '{name}' is {tensor.dtype}; save the model's weights as real numbers")
    return tensors


def _read_shards(folder: Path) -> dict[str, Tensor]:
    shards = read_object(folder / WEIGHTS_INDEX, "").get("weight_map")
    if not isinstance(shards, dict):
        raise UserError(f"{folder / WEIGHTS_INDEX}: has no 'weight_map'; fetch the folder again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted({str(name) for name in shards.values()}):
        tensors |= _read_safetensors(folder / Path(shard).name)
    return tensors


def _read_pickled(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UnreadableError(path, error) from None
    except Exception:  # of its readers; their advice, to unpickle whatever there is, must not reach anyone
        raise UserError(
            f"{path}: cannot be read as weights: damaged, or holds more than tensors; fetch it again or convert it to "
            f"{WEIGHTS}"
        ) from None
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise UserError(f"{path}: expected tensors by name; convert it to {WEIGHTS}")
    if not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise UserError(f"{path}: expected names and tensors only; convert it to {WEIGHTS}")
    return dict(loaded)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb"):  # because the library says of a file that may not be read that there is none
            return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; fetch the folder again") from None
    except OSError as error:
        raise UnreadableError(path, error) from None
    except Exception as error:  # not all of its errors are SafetensorError
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({reason}); fetch it again") from None
