"""`trelm prepare`: make a dataset folder from text, knowledge graph and tokenizer."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from trelm_ds.corpus.options import HOLD_OUT_SETTINGS, TRAIN, PrepareOptions
from trelm_ds.corpus.parts import PartMarkers
from trelm_ds.corpus.pipeline import Pipeline, extract_part, source_name
from trelm_ds.corpus.sources import Source, find_sources
from trelm_ds.corpus.tokenizer import describe, load_tokenizer, tokenization_hash
from trelm_ds.errors import UserError
from trelm_ds.files import canonical_json, fsync_path, fsync_tree, lock, sha256_of
from trelm_ds.knowledge import Wikidata5M, find_wikidata5m
from trelm_ds.progress import track
from trelm_ds.shards import DROPPED, Manifest


def prepare(options: PrepareOptions) -> tuple[Manifest | None, bool]:
    """Make the dataset. It appears under `options.out` complete or not at all; an interrupted run is continued.

    Returns:
        the manifest (None if only a part was extracted), and whether it was made now (False: `out` already holds the
        result of the same request).

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
            shutil.rmtree(work, ignore_errors=True)  # left behind if a run was killed at the very end
            return manifest, False
        with lock(options.out.with_name(f".{options.out.name}.lock"), f"--out: {options.out}"):
            return _make(options, sources, files, request, work), True
    except OSError as error:
        raise UserError(f"--out: cannot write {error.filename or options.out}: {error.strerror or error}") from None


def missing_parts(options: PrepareOptions, of: int) -> list[int]:
    """List which of `of` parts, counted from 1, `--merge` still needs; reads no text and writes nothing.

    Raises:
        UserError: bad options or missing input, or `out` holds something else.
    """
    if of < 1 or options.part or options.merge:
        raise UserError("--missing-parts: takes the number of parts, at least 1, and goes without --part and --merge")
    options, sources, _, tokenizer = _open(options)
    try:
        if _is_occupied(options.out):
            _compare_without_hashes(options, sources, tokenizer)
            return []
        return PartMarkers(options, sources, _work_folder(options)).missing(of)
    except OSError as error:
        raise UserError(f"--out: cannot read {error.filename or options.out}: {error.strerror or error}") from None


def _open(options: PrepareOptions) -> tuple[PrepareOptions, list[Source], Wikidata5M, dict[str, object]]:
    """Check the options and find the input.

    Returns:
        the options with `out` resolved, the text files, the Wikidata5M files, the tokenizer's part of the request.
    """
    options.check()
    options = dataclasses.replace(options, out=options.out.resolve())
    if options.out.is_mount():
        raise UserError(
            f"--out: {options.out} is a mount point, which cannot be replaced atomically; name a folder in it"
        )
    try:
        sources, files = find_sources(options.source), find_wikidata5m(options.wikidata5m)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from None
    tokenizer: dict[str, object] = {"train": options.vocab_size}
    if options.tokenizer != TRAIN:
        loaded = load_tokenizer(Path(options.tokenizer))  # now, so that a mistake surfaces before the long work
        tokenizer = dataclasses.asdict(describe(loaded)) | {"rules": tokenization_hash(loaded)}
    return options, sources, files, tokenizer


def _work_folder(options: PrepareOptions) -> Path:
    return options.out.with_name(f".{options.out.name}.partial")


def _is_occupied(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


def _compare_without_hashes(options: PrepareOptions, sources: list[Source], tokenizer: dict[str, object]) -> None:
    """Refuse `out` if it was made from another request, sources aside: a part does not hash what it does not read."""
    made = Manifest.load(options.out)
    hashes = {"sources": made.request.get("sources")}
    _compare(made, _settings(options, sources, tokenizer) | hashes, options.out)


def _request(
    options: PrepareOptions, sources: list[Source], files: Wikidata5M, tokenizer: dict[str, object]
) -> dict[str, Any]:
    """Collect everything that determines the dataset; files by name and hash, so that a moved source still matches."""
    inputs = {source_name("text", source.path): source.path for source in sources}
    inputs |= {source_name("graph", path): path for path in files.paths}
    if options.page_props:
        inputs[source_name("page_props", options.page_props)] = options.page_props
    if options.hold_out_file:
        inputs[source_name("hold_out", options.hold_out_file)] = options.hold_out_file
    hashes = {}
    for name, path in track(inputs.items(), "hashing sources", total=len(inputs)):
        try:
            hashes[name] = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return _settings(options, sources, tokenizer) | {"sources": hashes}


def _settings(options: PrepareOptions, sources: list[Source], tokenizer: dict[str, object]) -> dict[str, Any]:
    """Return the request without the hashes of the sources."""
    names = ["max_length", "shard_mb", "unit", "min_words", "link_entities", "max_malformed", "license"]
    names += ["link_threshold"] if options.link_entities else []
    settings = {name: getattr(options, name) for name in names}
    if options.held_out is not None:
        settings["held_out"] = options.held_out
    if options.hold_out_facts is not None:
        held_out = ("file", None) if options.hold_out_file else (options.hold_out_share, options.hold_out_seed or 0)
        settings |= dict(zip(HOLD_OUT_SETTINGS, held_out, strict=True))
    return {"kind": sources[0].kind, "sources": {}, "tokenizer": tokenizer} | settings


def _compare(manifest: Manifest, request: dict[str, Any], out: Path) -> None:
    """Refuse a dataset made from another request."""
    if canonical_json(manifest.request) != canonical_json(request):
        names = [name for name in request if manifest.request.get(name) != request[name]]
        other = ", ".join(names) or "options"
        raise UserError(
            f"--out: {out} holds a dataset made from another request ({other}); remove it or choose another"
        )


def _check_shards(manifest: Manifest, out: Path) -> None:
    """Refuse a dataset that was repaired, or whose shards are missing or of another size."""
    if dropped := manifest.counts.get(DROPPED):
        raise UserError(f"--out: {out} lacks {dropped:,} sequences since `verify --repair`; remove it to make it again")
    for shard in manifest.shards:
        path = out / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path}: missing or of the wrong size; see `trelm verify {out}`")


def _make(
    options: PrepareOptions, sources: list[Source], files: Wikidata5M, request: dict[str, Any], work: Path
) -> Manifest:
    """Build the dataset in `work`, which is kept until the dataset is in place, so that a later call can continue."""
    work.mkdir(exist_ok=True)
    built = work / "dataset"
    shutil.rmtree(built, ignore_errors=True)
    manifest = Pipeline(options, sources, files, request, work).run(built)
    fsync_tree(built)
    if options.out.is_dir():
        options.out.rmdir()  # an empty folder
    built.rename(options.out)
    fsync_path(options.out.parent)
    shutil.rmtree(work, ignore_errors=True)
    return manifest
