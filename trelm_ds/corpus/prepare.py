"""`trelm prepare`: text, knowledge graph and tokenizer become one dataset folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trelm_ds.corpus.documents import Document, Mention
from trelm_ds.corpus.sequences import Unit, sequences_of
from trelm_ds.corpus.sources import find_sources, read_documents, read_spool, write_spool
from trelm_ds.corpus.titles import TitleResolver
from trelm_ds.corpus.tokenizer import describe, load_tokenizer, train_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.files import fsync_folder, lock, sha256_of
from trelm_ds.knowledge import KnowledgeGraph, find_wikidata5m, read_names
from trelm_ds.progress import track
from trelm_ds.shards import Manifest, ShardWriter

TRAIN = "train"
TOKENIZER_FOLDER = "tokenizer"
GRAPH_FOLDER = "graph"
ENTITIES_FOLDER = "entities"


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
    """

    source: Path
    wikidata5m: Path
    tokenizer: str
    out: Path
    max_length: int = 512
    vocab_size: int = 30522
    shard_mb: int = 64
    unit: Unit = "document"


def prepare(options: PrepareOptions) -> tuple[Manifest, bool]:
    """Makes the dataset. It appears whole under `options.out`, or not at all.

    Returns:
        the manifest, and whether it was made now (False: the same request had been carried out before).

    Raises:
        UserError: bad input (names file and line), or `out` holds something else.
    """
    for name, least in (("max_length", 8), ("vocab_size", 64), ("shard_mb", 1)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag}: must be at least {least}, got {getattr(options, name)}")
    options = dataclasses.replace(options, out=options.out.resolve())
    if options.out.is_mount():
        raise UserError(
            f"--out: {options.out} is a mount point, which cannot be put in place whole; name a folder in it"
        )
    kind, files = find_sources(options.source)
    graph_files = find_wikidata5m(options.wikidata5m)
    if options.tokenizer != TRAIN:
        load_tokenizer(Path(options.tokenizer))  # fails early
    request = _request(options, kind, files, graph_files)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        manifest = Manifest.load(options.out)
        if manifest.request == request:
            return manifest, False
        raise UserError(f"--out: {options.out} holds a dataset made from another request; remove it or choose another")
    work = options.out.with_name(f".{options.out.name}.partial")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with lock(options.out.with_name(f".{options.out.name}.lock"), f"--out: {options.out}"):
            return _make(options, kind, files, graph_files, request, work), True
    except OSError as error:
        raise UserError(f"--out: cannot write {error.filename or options.out}: {error.strerror}") from None


def _make(
    options: PrepareOptions, kind: str, files: list[Path], graph_files: dict[str, Path], request: dict, work: Path
) -> Manifest:
    """Builds in `work` and puts it in place."""
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir()
        manifest = _build(options, kind, files, graph_files, request, work)
        fsync_folder(work)
        if options.out.is_dir():
            options.out.rmdir()  # an empty folder
        work.rename(options.out)
        fsync_folder(options.out.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def _request(options: PrepareOptions, kind: str, files: list[Path], graph_files: dict[str, Path]) -> dict:
    """Everything that decides the dataset's content; files by name and hash, so that a moved source still matches."""
    inputs = [*files, *graph_files.values()]
    hashes = {path.name: sha256_of(path) for path in track(inputs, "hashing sources", total=len(inputs))}
    tokenizer: dict[str, object] = {"train": options.vocab_size}
    if options.tokenizer != TRAIN:
        tokenizer = dataclasses.asdict(describe(load_tokenizer(Path(options.tokenizer))))
    return {
        "kind": kind,
        "sources": hashes,
        "tokenizer": tokenizer,
        "max_length": options.max_length,
        "shard_mb": options.shard_mb,
        "unit": options.unit,
    }


def _build(
    options: PrepareOptions, kind: str, files: list[Path], graph_files: dict[str, Path], request: dict, work: Path
) -> Manifest:
    counts: Counter[str] = Counter()
    spool = work / "documents.jsonl"
    redirects: dict[str, str] = {}
    documents = read_documents(kind, files, redirects, counts)  # type: ignore[arg-type]
    titles = write_spool(track(documents, "reading documents"), spool)
    if not counts["documents"]:
        raise UserError(f"--source: {options.source} holds no text")

    graph = KnowledgeGraph.from_triples(graph_files["all_triplet"])
    graph.save(work / GRAPH_FOLDER)
    counts["graph: entities"], counts["graph: relations"] = len(graph.entities), len(graph.relations)
    counts["graph: triples"] = graph.n_triples
    names = track(read_names(graph_files["entity"], "Q"), "reading entity names")
    resolver = TitleResolver(titles, redirects, names, graph)

    folder = work / TOKENIZER_FOLDER
    if options.tokenizer == TRAIN:
        train_tokenizer(lambda: (text for text, _ in read_spool(spool)), options.vocab_size, folder)
    else:
        load_tokenizer(Path(options.tokenizer)).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    info = describe(tokenizer)

    writer = ShardWriter(work, info.vocab_size, options.shard_mb * 1_000_000)
    frequency: Counter[int] = Counter()
    resolved = track(_resolved(spool, resolver, counts), "writing sequences", total=counts["documents"])
    for sequence in sequences_of(resolved, tokenizer, options.max_length, counts, options.unit):
        writer.add(sequence)
        frequency.update(sequence.mentions[:, 2].tolist())
    spool.unlink()
    shards = writer.close()
    if not shards:
        raise UserError(f"--source: {options.source} holds no text that the tokenizer knows")
    _save_entities(frequency, graph, work / ENTITIES_FOLDER, counts)
    # The reader wants positive counts only; a Counter also holds zeros that were merely looked at.
    funnel = {name: value for name, value in counts.items() if value}
    manifest = Manifest(dataclasses.asdict(info), options.max_length, request, funnel, shards)
    manifest.save(work)
    return manifest


def _resolved(spool: Path, resolver: TitleResolver, counts: Counter[str]) -> Iterator[Document]:
    for text, mentions in read_spool(spool):
        kept = []
        for start, end, target in mentions:
            qid = resolver.resolve(target, counts) if isinstance(target, str) else target
            if qid is not None:
                kept.append(Mention(start, end, qid))
        yield Document(text, kept)


def _save_entities(frequency: Counter[int], graph: KnowledgeGraph, folder: Path, counts: Counter[str]) -> None:
    """Writes the corpus frequency of every entity: qids.npy int32 [E] ascending, counts.npy int64 [E]."""
    qids = np.array(sorted(frequency), dtype=np.int32)
    times = np.array([frequency[qid] for qid in qids.tolist()], dtype=np.int64)
    folder.mkdir()
    np.save(folder / "qids.npy", qids)
    np.save(folder / "counts.npy", times)
    known = graph.degrees(qids) > 0
    counts["entities mentioned"] = len(qids)
    counts["entities mentioned at most 5 times"] = int((times <= 5).sum())
    counts["entities mentioned, with a triple"] = int(known.sum())
    counts["mentions kept"] = int(times.sum())
    counts["mentions kept, with a triple"] = int(times[known].sum())
