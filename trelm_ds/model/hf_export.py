"""Write a Hugging Face folder, all of it or nothing."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from trelm_ds.errors import UserError
from trelm_ds.files import fsync_path, fsync_tree, read_json
from trelm_ds.model.encoder_config import EncoderConfig
from trelm_ds.model.hf_names import hf_names, pooler_names, to_hf
from trelm_ds.model.hf_weights import WEIGHTS
from trelm_ds.model.pooler import Pooler

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
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)


def to_hf_state(state: Mapping[str, Tensor], config: EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, contiguous CPU tensor) for a state dict of `MaskedLanguageModel`.

    Raises:
        ValueError: the names are not exactly the model's.
    """
    names = hf_names(config)
    if odd := sorted(set(names) ^ set(state)):
        raise ValueError(f"not the state of this model: '{odd[0]}' is {'unknown' if odd[0] in state else 'missing'}")
    for ours, theirs in names.items():
        for name, tensor in to_hf(ours, state[ours].detach(), theirs).items():
            yield name, tensor.cpu().contiguous()


def save_pretrained(
    model: nn.Module | Mapping[str, Tensor],
    config: EncoderConfig,
    folder: str | Path,
    tokenizer_dir: str | Path | None,
    pooler: Pooler | None = None,
) -> None:
    """Write a folder that `transformers.AutoModelForMaskedLM.from_pretrained` reads, all of it or nothing.

    Args:
        model: a `MaskedLanguageModel`, or its state dict.
        config: its sizes.
        folder: where to; may hold an earlier export of ours, which is replaced.
        tokenizer_dir: folder whose tokenizer files are copied, to cut text at the model's length; None writes none.
        pooler: what classifiers read, written beside the rest for them; `AutoModel` loads it.

    Raises:
        UserError: `folder` holds something else, or `tokenizer_dir` holds no tokenizer.
    """
    folder = Path(folder).absolute()
    _check_target(folder)
    state = model.state_dict() if isinstance(model, nn.Module) else model
    temporary = _beside(folder, "partial")
    for path in left_behind(folder, "partial"):
        shutil.rmtree(path, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error}); give a folder in a place you may write to") from None
    try:
        content = config.to_hf() | {"exported_by": EXPORTER}
        (temporary / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        tensors = dict(to_hf_state(state, config))
        if pooler is not None:
            tensors |= {pooler_names(config)[ours]: weight.detach() for ours, weight in pooler.named_parameters()}
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / WEIGHTS).chmod((temporary / "config.json").stat().st_mode)  # safetensors keeps it from others
        if tokenizer_dir is not None:
            _copy_tokenizer(Path(tokenizer_dir), temporary, config.max_position_embeddings)
        fsync_tree(temporary)
        _replace(temporary, folder)
        for path in left_behind(folder, "old"):
            shutil.rmtree(path, ignore_errors=True)
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
    """Put `temporary` in place of `folder`, so that there is a whole model at every moment."""
    if not (folder.exists() and any(folder.iterdir())):
        os.rename(temporary, folder)
    elif _exchange(temporary, folder):
        shutil.rmtree(temporary)
    else:  # a network file system; for a moment, the earlier export has only its other name
        aside = _beside(folder, "old")
        os.rename(folder, aside)
        os.rename(temporary, folder)
        shutil.rmtree(aside)
    fsync_path(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False where the system or the file system cannot."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return renameat2 is not None and renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


def _beside(folder: Path, kind: str) -> Path:
    """Name a hidden folder beside `folder` after this process, so that others can tell when it is dead."""
    return folder.parent / f".{folder.name}.{socket.gethostname()}-{os.getpid()}.{kind}"


def left_behind(folder: Path, kind: str) -> list[Path]:
    """Find what dead processes of this host have left beside `folder`: "partial" or "old" exports."""
    start, end = f".{folder.name}.{socket.gethostname()}-", f".{kind}"
    found = []
    for path in folder.parent.iterdir() if folder.parent.is_dir() else ():
        number = path.name.removeprefix(start).removesuffix(end)
        ours = path.name == f"{start}{number}{end}" and number.isdecimal()
        # This process has none yet, so one of its number is of an earlier process.
        if ours and (int(number) == os.getpid() or not Path("/proc", number).exists()):
            found.append(path)
    return found
