"""`trelm importance`: scores every mention of a dataset, shard by shard; stop it at any time, run any part anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from trelm_ds.corpus import TokenizerInfo, check_vocabulary
from trelm_ds.errors import UserError
from trelm_ds.files import lock
from trelm_ds.importance.scorer import MentionScorer
from trelm_ds.importance.store import (
    FOLDER,
    Identity,
    Scope,
    ShardScores,
    load_frequencies,
    read_blocks,
    save_shard,
    save_summary,
    sound,
    sparse,
    stem,
)
from trelm_ds.knowledge import EntityFrequencies, cosine_histogram
from trelm_ds.model import Encoder, load_encoder
from trelm_ds.progress import ProgressBar
from trelm_ds.shards import Manifest

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}  # on a CPU what stays in its caches is fastest


@dataclass(frozen=True)
class Part:
    """Part `index` (from 1) of `of`: the shards index - 1, index - 1 + of, ..."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads "2/8".

        Raises:
            UserError: it is no such thing.
        """
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and 1 <= int(index) <= int(of)):
            raise UserError(f"--part: give i/n with 1 <= i <= n, such as 1/8, not {text!r}")
        return cls(int(index), int(of))


WHOLE = Part(1, 1)


@dataclass
class ScoreOptions:
    """What `trelm importance` was asked for.

    Attributes:
        dataset: folder of `trelm prepare`.
        model: Hugging Face folder of the backbone that pre-training will start from, with or without an MLM head.
        device: auto (a GPU if there is one), cpu or cuda. Computed in fp32 everywhere: bf16's error would exceed
            the step of a stored float16.
        batch_tokens: tokens of a forward pass at most, padding included; None: 2,048 on a CPU, 65,536 on a GPU. Changes
            rounding only.
        scope: long_tail: mentions of long-tail entities with a triple, the only ones that can be important by the
            default strategy; all: every mention.
        entity_threshold: mentions in the corpus below which an entity is long-tail; None: the corpus mean.
        part: the shards to score.
    """

    dataset: Path
    model: Path
    device: str = "auto"
    batch_tokens: int | None = None
    scope: Scope = "long_tail"
    entity_threshold: int | None = None
    part: Part = WHOLE


@dataclass
class ScoreResult:
    """What a call did.

    Attributes:
        folder: where the scores are.
        shards: shards of this part; `skipped` of them had sound scores already.
        skipped: see `shards`.
        counts: of the shards scored now, as in `ShardScores`.
        seconds: spent on them.
        complete: every shard of the dataset has its scores.
    """

    folder: Path
    shards: int
    skipped: int
    counts: dict[str, int]
    seconds: float
    complete: bool


def score_dataset(options: ScoreOptions) -> ScoreResult:
    """Scores the shards of a part that have no sound scores yet, each whole or not at all.

    Raises:
        UserError: no dataset, no such model, one that does not fit the dataset, or scores of another kind are there.
    """
    if options.batch_tokens is not None and options.batch_tokens < 1:
        raise UserError(f"--batch-tokens: must be at least 1, got {options.batch_tokens}")
    if options.entity_threshold is not None and options.entity_threshold < 1:
        raise UserError(f"--entity-threshold: must be at least 1, got {options.entity_threshold}")
    device = _device(options.device)
    dataset = options.dataset
    manifest = Manifest.load(dataset)
    info = TokenizerInfo(**manifest.tokenizer)
    encoder = load_encoder(options.model)
    _check_model(options.model, encoder, info, manifest.max_length)
    frequencies = load_frequencies(dataset)
    threshold = frequencies.mean if options.entity_threshold is None else float(options.entity_threshold)
    identity = Identity(
        manifest.fingerprint, weights_hash(encoder), dataclasses.asdict(encoder.config), options.scope, threshold
    )
    folder = dataset / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        found = _stored(folder, manifest, identity, dataset)
        mine = list(range(options.part.index - 1, len(manifest.shards), options.part.of))
        todo = [n for n in mine if not sound(folder, manifest.shards[n].name, found[n])]
        scorer = MentionScorer(encoder, info, device, options.batch_tokens or _BATCH_TOKENS[device.type])
        work = _Work(dataset, manifest, frequencies, identity, scorer)
        started = time.monotonic()
        counts = work.score_shards(todo)
        seconds = time.monotonic() - started
        complete = save_summary(folder, manifest, identity)
    except torch.OutOfMemoryError:
        raise UserError("--batch-tokens: a batch does not fit into the GPU's memory; give a smaller number") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return ScoreResult(folder, len(mine), len(mine) - len(todo), counts, seconds, complete)


@dataclass(frozen=True)
class _Work:
    """What the scoring of every shard needs."""

    dataset: Path
    manifest: Manifest
    frequencies: EntityFrequencies
    identity: Identity
    scorer: MentionScorer

    def score_shards(self, numbers: list[int]) -> dict[str, int]:
        """Scores and saves shards one at a time; returns the sums of their counts."""
        folder = self.dataset / FOLDER
        totals: Counter[str] = Counter()
        with ProgressBar("scoring mentions", sum(self.manifest.shards[number].mentions for number in numbers)) as bar:
            for number in numbers:
                name = self.manifest.shards[number].name
                with lock(folder / f".{stem(name)}.lock", f"{folder}: {stem(name)}"):
                    for left in folder.glob(f".{stem(name)}.*.tmp"):  # of a run that was killed
                        left.unlink()
                    cosines, about = self._score_shard(number, bar)
                    save_shard(folder, name, cosines, about)
                totals.update(about["counts"])
        return dict(totals)

    def _score_shard(self, number: int, bar: ProgressBar) -> tuple[np.ndarray, dict[str, Any]]:
        """The shard's float16 [M], and what `save_shard` notes of it."""
        blocks = list(read_blocks(self.dataset, self.manifest, number))
        first = np.cumsum([0, *(len(block.lengths) for block in blocks)])[:-1]
        shifted = [block.mentions + np.array([start, 0, 0, 0]) for block, start in zip(blocks, first, strict=True)]
        mentions = np.concatenate(shifted)
        rare = self.frequencies.has_triple & (self.frequencies.counts < self.identity.entity_threshold)
        candidates = self.frequencies.of(mentions[:, 3], rare)
        asked = np.flatnonzero(candidates) if self.identity.scope == "long_tail" else np.arange(len(mentions))
        tokens = np.concatenate([block.tokens for block in blocks])
        lengths = np.concatenate([block.lengths for block in blocks])
        cosines = np.full(len(mentions), np.nan, dtype=np.float16)
        before = bar.completed
        cosines[asked] = self.scorer.cosines(tokens, lengths, mentions[asked], bar.advance)
        bar.advance(before + len(mentions) - bar.completed)  # those that are not scored
        scored = int((~np.isnan(cosines)).sum())
        about = {
            "identity": dataclasses.asdict(self.identity),
            "counts": {
                "mentions": len(mentions),
                "in scope": len(asked),
                "scored": scored,
                "without context": len(asked) - scored,
            },
            "block_mentions": [len(block.mentions) for block in blocks],
            "histogram": sparse(cosine_histogram(cosines[candidates])),
        }
        return cosines, about


def _stored(folder: Path, manifest: Manifest, identity: Identity, dataset: Path) -> list[ShardScores | None]:
    """What is noted of every shard's scores, after checking that they are of this identity."""
    found = [ShardScores.load(folder / f"{stem(shard.name)}.json") for shard in manifest.shards]
    for scores in found:
        if scores is not None and (difference := identity.difference(scores.identity)):
            what = {"dataset": "an earlier dataset", "scope": f"scope {scores.identity.get('scope')}"}.get(
                difference, f"another {difference}"
            )
            raise UserError(f"{folder}: holds scores of {what}; remove that folder to score {dataset} anew")
    return found


def weights_hash(encoder: Encoder) -> str:
    """sha256 over the encoder's parameters in fp32, by name: equal with and without an MLM head beside it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_model(folder: Path, encoder: Encoder, info: TokenizerInfo, max_length: int) -> None:
    config = encoder.config
    check_vocabulary("--model", folder, config.vocab_size, info)
    if config.max_position_embeddings < max_length:
        raise UserError(
            f"--model: {folder} reads {config.max_position_embeddings} tokens, the dataset was prepared with "
            f"--max-length {max_length}; make them agree"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: cuda is not available here; give auto or cpu")
    return torch.device(name)
