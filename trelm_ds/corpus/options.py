"""Options of `trelm prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trelm_ds.corpus.linking import LinkingOptions
from trelm_ds.corpus.sequences import Unit
from trelm_ds.errors import UserError

TRAIN = "train"  # as the tokenizer: train one on the corpus
HOLD_OUT_SETTINGS = ("hold_out_facts", "hold_out_seed")  # in a request that holds facts out, and in no other
_LARGEST_VOCABULARY = 1_000_000
_MINIMUM = {"max_length": 8, "vocab_size": 64, "shard_mb": 1, "min_words": 0, "workers": 1, "max_malformed": 0}


@dataclass
class PrepareOptions:
    """Options of `trelm prepare`.

    Attributes:
        source: dump or linked JSONL, or a folder of them.
        wikidata5m: folder with the Wikidata5M files.
        tokenizer: folder, or "train".
        out: dataset folder to create.
        max_length: longest sequence in tokens, special tokens included.
        vocab_size: size of a trained vocabulary.
        shard_mb: size of a tar shard in MB.
        unit: what becomes one sequence, a whole document or each of its sentences.
        page_props: the dump's page_props table, which maps its pages to QIDs.
        min_words: articles of a dump with fewer words of prose are dropped.
        link_entities: find further mentions beside the anchors, TAGME-style.
        link_threshold: drop found mentions with a score (rho) below this; higher is more precise.
        max_malformed: share of a file's lines or pages that may be malformed; these are skipped.
        hold_out_facts: triples to take out of the graph, in order to probe them: a share of all, as text, or a file.
        hold_out_seed: which share, 0 if None.
        held_out: share of the documents to hold out of training, in order to score models on them.
        license: license of the text, for the data card.
        workers: number of processes; does not affect the result.
        chunk_mb: stored MB of text read per task; does not affect the result.
        part: (i, n) extracts only the i-th of n parts of the text, counted from 1.
        merge: use the parts extracted before, and fail if any is missing.
    """

    source: Path
    wikidata5m: Path
    tokenizer: str
    out: Path
    max_length: int = 512
    vocab_size: int = 30522
    shard_mb: int = 64
    unit: Unit = "document"
    page_props: Path | None = None
    min_words: int = 8
    link_entities: bool = False
    link_threshold: float = LinkingOptions.minimum_rho
    max_malformed: float = 1e-4
    hold_out_facts: str | None = None
    hold_out_seed: int | None = None
    held_out: float | None = None
    license: str = "not stated"
    workers: int = 1
    chunk_mb: float = 16
    part: tuple[int, int] | None = None
    merge: bool = False

    def check(self) -> None:
        """Check every option that can be checked without reading input.

        Raises:
            UserError: a value is out of range, options contradict each other, or `page_props` does not exist.
        """
        for name, limit in _MINIMUM.items():
            if not getattr(self, name) >= limit:
                raise UserError(f"--{name.replace('_', '-')}: must be at least {limit}, got {getattr(self, name)}")
        if not 0.001 <= self.chunk_mb <= 1024:
            raise UserError(f"--chunk-mb: must lie between 0.001 and 1024, got {self.chunk_mb}")
        if not 0 <= self.link_threshold <= 1:
            raise UserError(f"--link-threshold: must lie between 0 and 1, got {self.link_threshold}")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise UserError(f"--held-out: a share must lie between 0 and 1, got {self.held_out}")
        if self.part and not 1 <= self.part[0] <= self.part[1]:
            raise UserError(f"--part: must be i/n with 1 <= i <= n, got {self.part[0]}/{self.part[1]}")
        if self.part and self.merge:
            raise UserError("--merge: comes after all parts, without --part")
        if self.vocab_size > _LARGEST_VOCABULARY:
            raise UserError(f"--vocab-size: must be at most {_LARGEST_VOCABULARY:,}, got {self.vocab_size}")
        for name in ("source", "wikidata5m", "out", "page_props", "hold_out_facts"):
            try:
                str(getattr(self, name)).encode()
            except UnicodeEncodeError:
                raise UserError(f"--{name.replace('_', '-')}: a name that is not UTF-8: {self!r:.200}") from None
        if self.page_props is not None and not self.page_props.is_file():
            raise UserError(f"--page-props: {self.page_props} does not exist")
        self._check_hold_out()

    def _check_hold_out(self) -> None:
        if self.hold_out_seed is not None and (self.hold_out_facts is None or self.hold_out_file is not None):
            raise UserError("--hold-out-seed: goes with --hold-out-facts SHARE only; remove it, or give a share")
        if self.hold_out_seed is not None and self.hold_out_seed < 0:
            raise UserError(f"--hold-out-seed: must be at least 0, got {self.hold_out_seed}")
        share, path = self.hold_out_share, self.hold_out_file
        if share is not None and not 0 < share < 1:
            raise UserError(f"--hold-out-facts: a share must lie between 0 and 1, got {self.hold_out_facts}")
        if path is not None and not path.is_file():
            raise UserError(f"--hold-out-facts: {path} is neither a share such as 0.1 nor a file of triples")

    @property
    def hold_out_share(self) -> float | None:
        """The share of the triples to hold out, if `hold_out_facts` is a number."""
        try:
            return None if self.hold_out_facts is None else float(self.hold_out_facts)
        except ValueError:
            return None

    @property
    def hold_out_file(self) -> Path | None:
        """The file of triples to hold out, if `hold_out_facts` is not a number."""
        named = self.hold_out_facts is not None and self.hold_out_share is None
        return Path(str(self.hold_out_facts)) if named else None
