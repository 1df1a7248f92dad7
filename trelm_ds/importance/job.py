"""`trelm importance`: score the mentions of a dataset shard by shard; stop it at any time, run any part anywhere."""

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
    FREQUENCY_FILES,
    Identity,
    Scope,
    ShardScores,
    is_intact,
    load_frequencies,
    read_blocks,
    save_shard,
    save_summary,
    sparse,
    stem,
)
from trelm_ds.knowledge import EntityFrequencies, cosine_histogram
from trelm_ds.model import Encoder, load_encoder
from trelm_ds.progress import ProgressBar
from trelm_ds.shards import Manifest, check_files

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536}  # on a CPU, batches that fit into its caches are fastest


@dataclass(frozen=True)
class Part:
    """Part `index` (from 1) of `of` parts: the shards index - 1, index - 1 + of, ..."""

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse i/n, such as "2/8".

        Raises:
            UserError: `text` has another form, or i is out of range.
        """
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and 1 <= int(index) <= int(of)):
            raise UserError(f"--part: give i/n with 1 <= i <= n, such as 1/8, not {text!r}")
        return cls(int(index), int(of))


WHOLE = Part(1, 1)


@dataclass
class ScoreOptions:
    """Options of `trelm importance`.

    Attributes:
        dataset: folder made by `trelm prepare`.
        model: Hugging Face folder of the backbone that pre-training will start from, with or without an MLM head.
        device: auto (a GPU if there is one), cpu or cuda. Computation is in fp32 everywhere: the error of bf16 would
            exceed the resolution of the stored float16.
        batch_tokens: maximum number of tokens per forward pass, padding included; None: 2,048 on a CPU, 65,536 on a
            GPU. Affects rounding only.
        scope: long_tail scores mentions of long-tail entities with a triple, the only ones the default strategy can
            select; all scores every mention.
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
    """Outcome of `score_dataset`.

    Attributes:
        folder: folder with the scores.
        shards: number of shards in this part.
        skipped: number of these that already had intact scores.
        counts: sums over the shards scored now, as in `ShardScores`.
        seconds: time spent scoring them.
        complete: whether every shard of the dataset now has scores.
    """

    folder: Path
    shards: int
    skipped: int
    counts: dict[str, int]
    seconds: float
    complete: bool


def score_dataset(options: ScoreOptions) -> ScoreResult:
    """Score the shards of a part that have no intact scores yet, each atomically.

    Raises:
        UserError: the dataset or model is missing, they do not fit together, or the folder holds scores of another
            dataset, model, scope or threshold.
    """
    if options.batch_tokens is not None and options.batch_tokens < 1:
        raise UserError(f"--batch-tokens: must be at least 1, got {options.batch_tokens}")
    if options.entity_threshold is not None and options.entity_threshold < 1:
        raise UserError(f"--entity-threshold: must be at least 1, got {options.entity_threshold}")
    device = _device(options.device)
    dataset = options.dataset
    manifest = Manifest.load(dataset)
    info = TokenizerInfo.of(manifest)
    check_files(dataset, manifest, FREQUENCY_FILES)
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
        found = _load_shard_scores(folder, manifest, identity, dataset)
        mine = list(range(options.part.index - 1, len(manifest.shards), options.part.of))
        todo = [n for n in mine if not is_intact(folder, manifest.shards[n].name, found[n])]
        scorer = MentionScorer(encoder, info, device, options.batch_tokens or _BATCH_TOKENS[device.type])
        job = _ScoringJob(dataset, manifest, frequencies, identity, scorer)
        started = time.monotonic()
        counts = job.score_shards(todo)
        seconds = time.monotonic() - started
        complete = save_summary(folder, manifest, identity)
    except torch.OutOfMemoryError:
        raise UserError("--batch-tokens: a batch does not fit into the GPU's memory; give a smaller number") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from None
    return ScoreResult(folder, len(mine), len(mine) - len(todo), counts, seconds, complete)


@dataclass(frozen=True)
class _ScoringJob:
    """Scores shards with one backbone."""

    dataset: Path
    manifest: Manifest
    frequencies: EntityFrequencies
    identity: Identity
    scorer: MentionScorer

    def score_shards(self, numbers: list[int]) -> dict[str, int]:
        """Score and save shards one at a time; return the sums of their counts."""
        folder = self.dataset / FOLDER
        totals: Counter[str] = Counter()
        with ProgressBar("scoring mentions", sum(self.manifest.shards[number].mentions for number in numbers)) as bar:
            for number in numbers:
                name = self.manifest.shards[number].name
                with lock(folder / f".{stem(name)}.lock", f"{folder}: {stem(name)}"):
                    for leftover in folder.glob(f".{stem(name)}.*.tmp"):  # of a run that was killed
                        leftover.unlink()
                    cosines, about = self._score_shard(number, bar)
                    save_shard(folder, name, cosines, about)
                totals.update(about["counts"])
        return dict(totals)

    def _score_shard(self, number: int, bar: ProgressBar) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the shard's cosines, float16 [M], and what `save_shard` records about them."""
        blocks = list(read_blocks(self.dataset, self.manifest, number))
        first = np.cumsum([0, *(len(block.lengths) for block in blocks)])[:-1]
        shifted = [block.mentions + np.array([start, 0, 0, 0]) for block, start in zip(blocks, first, strict=True)]
        mentions = np.concatenate(shifted)
        rare = self.frequencies.has_triple & (self.frequencies.counts < self.identity.entity_threshold)
        candidates = self.frequencies.lookup(mentions[:, 3], rare)
        in_scope = np.flatnonzero(candidates) if self.identity.scope == "long_tail" else np.arange(len(mentions))
        tokens = np.concatenate([block.tokens for block in blocks])
        lengths = np.concatenate([block.lengths for block in blocks])
        cosines = np.full(len(mentions), np.nan, dtype=np.float16)
        before = bar.completed
        cosines[in_scope] = self.scorer.cosines(tokens, lengths, mentions[in_scope], bar.advance)
        bar.advance(before + len(mentions) - bar.completed)  # the mentions that are not scored
        scored = int((~np.isnan(cosines)).sum())
        about = {
            "identity": dataclasses.asdict(self.identity),
            "counts": {
                "mentions": len(mentions),
                "in scope": len(in_scope),
                "scored": scored,
                "without context": len(in_scope) - scored,
            },
            "block_mentions": [len(block.mentions) for block in blocks],
            "histogram": sparse(cosine_histogram(cosines[candidates])),
        }
        return cosines, about


def _load_shard_scores(folder: Path, manifest: Manifest, identity: Identity, dataset: Path) -> list[ShardScores | None]:
    """Load the record of every shard's scores, None where there is none.

    Raises:
        UserError: some belong to another identity.
    """
    found = [ShardScores.load(folder / f"{stem(shard.name)}.json") for shard in manifest.shards]
    for scores in found:
        if scores is not None and (difference := identity.difference(scores.identity)):
            what = {"dataset": "an earlier dataset", "scope": f"scope {scores.identity.get('scope')}"}.get(
                difference, f"another {difference}"
            )
            raise UserError(f"{folder}: holds scores of {what}; remove that folder to score {dataset} again")
    return found


def weights_hash(encoder: Encoder) -> str:
    """Hash the encoder's parameters in fp32, ordered by name. An MLM head does not affect the result."""
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
