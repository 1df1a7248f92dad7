"""`trelm prepare`: text, knowledge graph and tokenizer become one dataset folder."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trelm_ds.corpus.linking import LinkingOptions
from trelm_ds.corpus.parts import PartMarks
from trelm_ds.corpus.pipeline import Pipeline, extract_part, source_name
from trelm_ds.corpus.sequences import Unit
from trelm_ds.corpus.sources import Source, find_sources
from trelm_ds.corpus.tokenizer import describe, load_tokenizer, rules_of
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, fsync_folder, lock, sha256_of
from trelm_ds.knowledge import Wikidata5M, find_wikidata5m
from trelm_ds.progress import track
from trelm_ds.shards import DROPPED, Manifest

TRAIN = "train"
_LARGEST_VOCABULARY = 1_000_000


@dataclass
class PrepareOptions:
    """What `trelm prepare` was asked for.

    Attributes:
        source: dump or linked JSONL, or a folder of them.
        wikidata5m: folder with the Wikidata5M files.
        tokenizer: folder, or "train".
        out: the dataset folder to make.
        max_length: longest sequence in tokens, special tokens included.
        vocab_size: size of a trained vocabulary.
        shard_mb: size of a tar shard in MB.
        unit: what becomes one sequence, a whole document or each of its sentences.
        page_props: the dump's page_props table, for the QIDs of its pages.
        min_words: a dump's articles with fewer words of prose are dropped.
        link_entities: look for further mentions beside the anchors, TAGME-style.
        link_threshold: the score (rho) below which a found mention is dropped; higher is more precise.
        max_malformed: share of a file's lines or pages that may be malformed; they are left out.
        license: of the text, for the data card.
        workers: processes; does not change the result.
        chunk_mb: stored MB of text that one task reads; does not change the result.
        part: (i, n) extracts only the i-th of n parts of the text, counting from 1.
        merge: takes parts that were extracted before and refuses to extract what is missing.
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
    license: str = "not stated"
    workers: int = 1
    chunk_mb: float = 16
    part: tuple[int, int] | None = None
    merge: bool = False


def prepare(options: PrepareOptions) -> tuple[Manifest | None, bool]:
    """Makes the dataset. It appears whole under `options.out`, or not at all; what was finished before is taken up.

    Returns:
        the manifest (None where only a part was extracted), and whether it was made now (False: the same request had
        been carried out before).

    Raises:
        UserError: bad input (names file and line), or `out` holds something else.
    """
    options, sources, files, tokenizer = _open(options)
    work = _work_folder(options)
    try:
        occupied = _is_occupied(options.out)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        if options.part is not None:
            if occupied:
                _compare_without_hashes(options, sources, tokenizer)
                return None, False
            extract_part(options, sources, work)
            return None, True
        request = _request(options, sources, files, tokenizer)
        if occupied:
            manifest = Manifest.load(options.out)
            _compare(manifest, request, options.out)
            _check_shards(manifest, options.out)
            shutil.rmtree(work, ignore_errors=True)  # what a kill in the last moment left
            return manifest, False
        with lock(options.out.with_name(f".{options.out.name}.lock"), f"--out: {options.out}"):
            return _make(options, sources, files, request, work), True
    except OSError as error:
        raise UserError(f"--out: cannot write {error.filename or options.out}: {error.strerror or error}") from None


def missing_parts(options: PrepareOptions, of: int) -> list[int]:
    """The numbers, from 1, of those of `of` parts that `--merge` would still need; reads no text and writes nothing.

    Raises:
        UserError: bad input, as a part would find it before it reads, or `out` holds something else.
    """
    if of < 1 or options.part or options.merge:
        raise UserError("--missing-parts: takes the number of parts, at least 1, and goes without --part and --merge")
    options, sources, _, tokenizer = _open(options)
    try:
        if _is_occupied(options.out):
            _compare_without_hashes(options, sources, tokenizer)
            return []
        return PartMarks(options, sources, _work_folder(options)).missing(of)
    except OSError as error:
        raise UserError(f"--out: cannot read {error.filename or options.out}: {error.strerror or error}") from None


def _open(options: PrepareOptions) -> tuple[PrepareOptions, list[Source], Wikidata5M, dict[str, object]]:
    """The options with `out` resolved, the input files and the tokenizer's part of the request."""
    _check(options)
    options = dataclasses.replace(options, out=options.out.resolve())
    if options.out.is_mount():
        raise UserError(
            f"--out: {options.out} is a mount point, which cannot be put in place whole; name a folder in it"
        )
    try:
        sources, files = find_sources(options.source), find_wikidata5m(options.wikidata5m)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    tokenizer: dict[str, object] = {"train": options.vocab_size}
    if options.tokenizer != TRAIN:
        loaded = load_tokenizer(Path(options.tokenizer))  # fails early
        tokenizer = dataclasses.asdict(describe(loaded)) | {"rules": rules_of(loaded)}
    return options, sources, files, tokenizer


def _work_folder(options: PrepareOptions) -> Path:
    return options.out.with_name(f".{options.out.name}.partial")


def _is_occupied(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _compare_without_hashes(options: PrepareOptions, sources: list[Source], tokenizer: dict[str, object]) -> None:
    """Refuses `out` if it holds something else; a part does not hash what it does not read."""
    made = Manifest.load(options.out)
    hashes = {"sources": made.request.get("sources")}
    _compare(made, _settings(options, sources, tokenizer) | hashes, options.out)


def _check(options: PrepareOptions) -> None:
    least = {"max_length": 8, "vocab_size": 64, "shard_mb": 1, "min_words": 0, "workers": 1, "max_malformed": 0}
    for name, limit in least.items():
        if not getattr(options, name) >= limit:
            raise UserError(f"--{name.replace('_', '-')}: must be at least {limit}, got {getattr(options, name)}")
    if not 0.001 <= options.chunk_mb <= 1024:
        raise UserError(f"--chunk-mb: must lie between 0.001 and 1024, got {options.chunk_mb}")
    if not 0 <= options.link_threshold <= 1:
        raise UserError(f"--link-threshold: must lie between 0 and 1, got {options.link_threshold}")
    if options.part and not 1 <= options.part[0] <= options.part[1]:
        raise UserError(f"--part: must be i/n with 1 <= i <= n, got {options.part[0]}/{options.part[1]}")
    if options.part and options.merge:
        raise UserError("--merge: comes after all parts, without --part")
    if options.vocab_size > _LARGEST_VOCABULARY:
        raise UserError(f"--vocab-size: must be at most {_LARGEST_VOCABULARY:,}, got {options.vocab_size}")
    for name in ("source", "wikidata5m", "out", "page_props"):
        try:
            str(getattr(options, name)).encode()
        except UnicodeEncodeError:
            raise UserError(f"--{name.replace('_', '-')}: a name that is not UTF-8: {options!r:.200}") from None
    if options.page_props is not None and not options.page_props.is_file():
        raise UserError(f"--page-props: {options.page_props} does not exist")


def _request(
    options: PrepareOptions, sources: list[Source], files: Wikidata5M, tokenizer: dict[str, object]
) -> dict[str, Any]:
    """Everything that decides the dataset's content; files by name and hash, so that a moved source still matches."""
    inputs = {source_name("text", source.path): source.path for source in sources}
    inputs |= {source_name("graph", path): path for path in files.paths}
    if options.page_props:
        inputs[source_name("page_props", options.page_props)] = options.page_props
    hashes = {}
    for name, path in track(inputs.items(), "hashing sources", total=len(inputs)):
        try:
            hashes[name] = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return _settings(options, sources, tokenizer) | {"sources": hashes}


def _settings(options: PrepareOptions, sources: list[Source], tokenizer: dict[str, object]) -> dict[str, Any]:
    """The request without the hashes of the sources."""
    names = ["max_length", "shard_mb", "unit", "min_words", "link_entities", "max_malformed", "license"]
    names += ["link_threshold"] if options.link_entities else []
    return {
        "kind": sources[0].kind,
        "sources": {},
        "tokenizer": tokenizer,
    } | {name: getattr(options, name) for name in names}


def _compare(manifest: Manifest, request: dict[str, Any], out: Path) -> None:
    if canonical_json(manifest.request) != canonical_json(request):
        names = [name for name in request if manifest.request.get(name) != request[name]]
        other = ", ".join(names) or "options"
        raise UserError(
            f"--out: {out} holds a dataset made from another request ({other}); remove it or choose another"
        )


def _check_shards(manifest: Manifest, out: Path) -> None:
    if dropped := manifest.counts.get(DROPPED):
        raise UserError(f"--out: {out} lacks {dropped:,} sequences since `verify --repair`; remove it to make it anew")
    for shard in manifest.shards:
        path = out / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path}: missing or not as long as it was; see `trelm verify {out}`")


def _make(
    options: PrepareOptions, sources: list[Source], files: Wikidata5M, request: dict[str, Any], work: Path
) -> Manifest:
    """Builds in `work`, which is kept until the dataset is in place, so that the next call can go on."""
    work.mkdir(exist_ok=True)
    built = work / "dataset"
    shutil.rmtree(built, ignore_errors=True)
    manifest = Pipeline(options, sources, files, request, work).run(built)
    fsync_folder(built)
    if options.out.is_dir():
        options.out.rmdir()  # an empty folder
    built.rename(options.out)
    fsync_folder(options.out.parent)
    shutil.rmtree(work, ignore_errors=True)
    return manifest
