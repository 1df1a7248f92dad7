"""Read published weights without running anything that is in their files."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor

from trelm_ds.errors import UserError

_INSIDE = ("model", "module")  # where fairseq and DeepSpeed keep the tensors among other things
# fairseq's meters of speed and loss, and the numbers of numpy that may be in them.
_IGNORED = (
    *("fairseq.meters.AverageMeter", "fairseq.meters.StopwatchMeter", "fairseq.meters.TimeMeter"),
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
)
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not|whose)|but got <class '(\S+)'>")
# What one finds in place of a file that was fetched carelessly, by its first bytes.
_NO_WEIGHTS = (
    (b"version https://git-lfs", "is a git-lfs pointer, not the file; run `git lfs pull` in that repository"),
    (b"\x1f\x8b", "is an archive; unpack it (tar -xzf) and give what was in it"),
    (b"BZh", "is an archive; unpack it (tar -xjf) and give what was in it"),
    (b"<", "is a web page, not the file that it links to; fetch it again"),
)


class Checkpoint(NamedTuple):
    """What a file of weights holds."""

    path: Path
    """the file"""
    tensors: dict[str, Tensor]
    """by name; of a zip file's they are read from disk when they are used, so what is left behind costs nothing"""
    rest: dict[str, Any]
    """what stands beside the tensors, such as fairseq's `args`"""


class _Ignored:
    """Stands in for an object of `_IGNORED`; does nothing and keeps nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


# Whatever else a pickle names is refused. Neither of these two classes runs anything of the file's.
_ALLOWED: list[Any] = [argparse.Namespace, *((_Ignored, name) for name in _IGNORED)]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of torch.save, old or new, or of safetensors.

    Raises:
        UserError: it is missing, damaged, something else, or holds objects of other classes than tensors,
            `argparse.Namespace`, fairseq's meters and numpy's numbers; the class is named.
    """
    start = _first_bytes(path)
    for mark, problem in _NO_WEIGHTS:
        if start.lstrip()[: len(mark)] == mark:
            raise UserError(f"{path}: {problem}")
    if path.suffix == ".safetensors":
        return Checkpoint(path, _check(path, _read_safetensors(path)), {})
    loaded = _unpickle(path, is_zip=start.startswith(b"PK"))
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: holds a {type(loaded).__name__} where tensors by name were expected")
    for name in _INSIDE:
        if isinstance(loaded.get(name), dict):
            return Checkpoint(path, _check(path, loaded[name]), {key: loaded[key] for key in loaded if key != name})
    return Checkpoint(path, _check(path, loaded), {})


def refuse_pointer(path: Path) -> None:
    """Refuse the small text that git checks out in place of a large file where git-lfs is missing.

    Raises:
        UserError: the file is such a text.
    """
    mark, problem = _NO_WEIGHTS[0]
    if path.is_file() and _first_bytes(path).startswith(mark):
        raise UserError(f"{path}: {problem}")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(64)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; give the file of weights, or the folder that holds it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # not all of its errors are SafetensorError
        raise UserError(f"{path}: cannot be read ({_short(error)}); fetch it again") from None


def _unpickle(path: Path, is_zip: bool) -> Any:
    """Load tensors, plain containers and `_ALLOWED`; map a zip file into memory instead of reading it."""
    try:
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a damaged file torch says that its pickle protocol is unusual
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # of its readers; their advice, to unpickle whatever there is, must not reach anyone
        _refuse(path, str(error))


def _refuse(path: Path, reason: str) -> NoReturn:
    if found := _REFUSED.search(reason):
        name = next(group for group in found.groups() if group)
        raise UserError(
            f"{path}: holds an object of class '{name}', and is not opened, since that could run a program; where you "
            "trust it, save its tensors alone: torch.save(model.state_dict(), ...)"
        )
    raise UserError(f"{path}: cannot be read as weights; it is damaged, or no file of torch.save or safetensors")


def _check(path: Path, content: dict[Any, Any]) -> dict[str, Tensor]:
    """Check that these are tensors by name; rename gamma and beta, as the first BERTs call LayerNorm's parameters."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{path}: '{str(name)[:80]}' is no tensor; expected the weights of one model")
        modern = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
        tensors[modern] = tensor
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    return tensors


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
