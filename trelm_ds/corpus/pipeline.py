"""The stages of preparation. Their results are artifacts identified by their inputs, so none is made twice.

text --extract--> documents --titles--> QIDs --encode--> sequences --assemble--> dataset
(chunks, parallel)          (once)           (chunks, parallel)    (once)

Also made once: the graph (without the facts held out), the tokenizer, and from both the encoded names of entities and
relations.
"""

from __future__ import annotations

import dataclasses
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trelm_ds import log
from trelm_ds.corpus import workers
from trelm_ds.corpus.artifacts import DONE, Artifact, find, key_of, make, obtain
from trelm_ds.corpus.card import write_card
from trelm_ds.corpus.encode import EncodeTask, encode, read_block
from trelm_ds.corpus.extract import (
    Extracted,
    ExtractTask,
    extract,
    read_documents,
    read_left_out,
    read_page_table,
    read_titles,
)
from trelm_ds.corpus.funnel import ordered, total
from trelm_ds.corpus.graph_stage import HELD_OUT_FOLDER, graph_arrays
from trelm_ds.corpus.held_out_text import without_held_out, write_held_out
from trelm_ds.corpus.link_stage import link_dictionary
from trelm_ds.corpus.name_stage import name_arrays
from trelm_ds.corpus.options import HOLD_OUT_SETTINGS, TRAIN, PrepareOptions
from trelm_ds.corpus.page_props import read_page_props
from trelm_ds.corpus.parts import PartMarkers
from trelm_ds.corpus.sources import Chunk, Source, chunks_of, with_data
from trelm_ds.corpus.titles import TitleResolver, TitleTable, follow
from trelm_ds.corpus.tokenizer import describe, load_tokenizer, train_tokenizer, word_starts
from trelm_ds.corpus.words import WordCounter, WordTable
from trelm_ds.errors import UserError
from trelm_ds.knowledge import KnowledgeGraph, Wikidata5M, read_names
from trelm_ds.malformed import MalformedRecords
from trelm_ds.progress import ProgressBar, track
from trelm_ds.shards import HELD_OUT_FACTS, HELD_OUT_TEXT, Manifest, ShardWriter

TOKENIZER_FOLDER = "tokenizer"
GRAPH_FOLDER = "graph"
ENTITIES_FOLDER = "entities"
WORDS_FOLDER = "words"
NAMES_FOLDER = "names"
TOKEN_COUNTS = "token_counts.npy"
_RUN_ALL = " or outdated; run all parts again, or leave out --merge"
_STARTS = "word_starts.npy"
_MIN_WORD_COUNT = 2  # words seen once are half of all, and never get a row in the memory bank


Role = Literal["text", "graph", "page_props", "hold_out"]


def source_name(role: Role, path: Path) -> str:
    """Name a source in the request, without its folder, so that a moved source still matches."""
    return f"{role}/{path.name}"


def extract_part(options: PrepareOptions, sources: list[Source], work: Path) -> None:
    """Extract the chunks of one part; parts may run concurrently, on any machines that share the folder.

    Raises:
        UserError: bad input, or another process is working on the same part.
    """
    assert options.part is not None
    number, of = options.part
    with PartMarkers(options, sources, work).working_on(number, of):
        _extract(options, sources, work, (number - 1, of), may_make=True)  # --merge checks malformed records


def _extract(
    options: PrepareOptions, sources: list[Source], work: Path, part: tuple[int, int], may_make: bool
) -> list[Extracted]:
    """Find or make the artifacts of all chunks of a part, in reading order."""
    chunk_bytes = int(options.chunk_mb * 1_000_000)
    folder = work / "documents"

    def task(chunk: Chunk) -> ExtractTask:
        return ExtractTask(chunk, folder, options.min_words, may_make)

    def tasks() -> Iterator[ExtractTask]:
        for source in sources:
            yield from map(task, chunks_of(source, chunk_bytes, work / "index", part))

    total_chunks = None
    if all(source.layout != "stream" for source in sources):
        total_chunks = sum(1 for source in sources for _ in chunks_of(source, chunk_bytes, work / "index", part))
    found: dict[str, Extracted] = {}
    with ProgressBar("reading text, chunks", total_chunks) as bar:
        for result in workers.run(extract, tasks(), options.workers):
            found[result.chunk.name] = result
            bar.advance()
    if may_make:
        # With an index, chunks of files that can only be read from the front come without their bytes, which is enough
        # to find their artifacts. Where one is missing, the file is read again.
        missing = [result.chunk for result in found.values() if result.artifact is None]
        by_source = [[chunk for chunk in missing if chunk.source == source] for source in sources]
        again = (task(chunk) for chunks in by_source for chunk in with_data(chunks, chunk_bytes))
        for result in workers.run(extract, again, options.workers if missing else 1):
            found[result.chunk.name] = result
    before = sum(not result.made for result in found.values() if result.artifact is not None)
    if before:
        log.info(f"{before} of {len(found)} chunks of text were finished before")
    return [found[name] for name in sorted(found)]


def _refuse_malformed(found: list[Extracted], budget: float) -> int:
    """Check each file's malformed records against the budget; return their total number."""
    count = 0
    for path in dict.fromkeys(result.chunk.source.path for result in found):
        malformed, records = MalformedRecords(path, budget), 0
        for chunk, artifact, _ in found:
            if chunk.source.path == path and artifact is not None:
                malformed.add(artifact.notes["malformed_places"], artifact.notes["malformed"])
                records += artifact.notes["records"]
        malformed.check(records)
        count += malformed.count
    return count


class Pipeline:
    """Prepares a whole dataset; every stage finds its artifacts in `work` or makes them."""

    def __init__(
        self, options: PrepareOptions, sources: list[Source], files: Wikidata5M, request: dict[str, Any], work: Path
    ) -> None:
        self.options, self.sources, self.files, self.request, self.work = options, sources, files, request, work
        self.counts: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()  # templates, by name

    def run(self, built: Path) -> Manifest:
        """Make the dataset in the folder `built`, which must not exist yet."""
        documents = self._documents()
        graph = self._graph()
        titles = self._titles(documents, graph)
        tokenizer = self._tokenizer(documents)
        names = self._encoded_names(graph, tokenizer)
        linker = self._linker(documents, titles, graph) if self.options.link_entities else None
        sequences = self._sequences(documents, titles, tokenizer, linker)
        return self._assemble(sequences, graph, names, tokenizer, built)

    def _hash_of(self, role: Role, *paths: Path) -> list[str]:
        return [self.request["sources"][source_name(role, path)] for path in paths]

    def _documents(self) -> list[Artifact]:
        """Extract all chunks, and check that none is missing or has too many malformed records."""
        found = _extract(self.options, self.sources, self.work, (0, 1), may_make=not self.options.merge)
        missing = [result.chunk.name for result in found if result.artifact is None]
        if missing:
            parts = ", ".join(PartMarkers(self.options, self.sources, self.work).missing_names())
            raise UserError(
                f"--merge: {len(missing)} of {len(found)} chunks of text are missing"
                + (f"; run --part {parts}, then --merge" if parts else _RUN_ALL)
            )
        malformed = _refuse_malformed(found, self.options.max_malformed)
        artifacts = [result.artifact for result in found if result.artifact is not None]
        self.counts = total(artifact.notes["counts"] for artifact in artifacts)
        for artifact in artifacts:
            self.left_out.update(dict(read_left_out(artifact.folder)))
        self.counts["records left out: malformed"] = malformed
        if not self.counts["documents"]:
            raise UserError(f"--source: {self.options.source} holds no text")
        return artifacts

    def _graph(self) -> Artifact:
        paths = sorted({file.path for file in self.files.triples})
        held_out: list[object] = [self.request[name] for name in HOLD_OUT_SETTINGS if name in self.request]
        if self.options.hold_out_file:
            held_out += self._hash_of("hold_out", self.options.hold_out_file)
        artifact = graph_arrays(self.files, self._hash_of("graph", *paths), held_out, self.options, self.work)
        self.counts.update(artifact.notes["counts"])
        return artifact

    def _titles(self, documents: list[Artifact], graph: Artifact) -> Artifact:
        """Make the title table (empty for linked JSONL), and count the graph's entities and relations without names."""
        digests = [artifact.digest for artifact in (*documents, graph)]
        props = [] if self.options.page_props is None else self._hash_of("page_props", self.options.page_props)
        names = self._hash_of("graph", self.files.entity.path, self.files.relation.path)
        key = key_of("titles", digests, names, props, self._budget)
        folder = self.work / "titles"
        artifact = find(folder, key)
        if artifact is None:
            with make(folder, key) as (work, notes):
                notes["counts"] = self._resolve_titles(documents, KnowledgeGraph.load(graph.folder), work)
            artifact = obtain(folder, key)
        self.counts.update(artifact.notes["counts"])
        return artifact

    def _hint_at_page_props(self) -> None:
        """Recommend --page-props if many links could not be resolved."""
        found, lost = self.counts["mentions found"], self.counts["mentions without an entity"]
        if self._resolves and lost * 3 > found and self.options.page_props is None:
            log.warning(f"{lost:,} of {found:,} links match no entity by name; --page-props resolves links exactly")

    def _resolve_titles(self, documents: list[Artifact], graph: KnowledgeGraph, work: Path) -> dict[str, int]:
        """Resolve all titles that are linked to and save the table; return counts of the graph's names."""
        linked = {title for artifact in documents for title in read_titles(artifact.folder)}
        pages, redirects = dict[str, int](), dict[str, str]()
        for artifact in documents:
            for number, title, target in read_page_table(artifact.folder):
                if target:
                    redirects[title] = target
                elif self.options.page_props:
                    pages[title] = number
        items: dict[str, int | None] = {}
        if self.options.page_props:
            wanted = {target for target in (follow(title, redirects) for title in linked) if target in pages}
            qids = read_page_props(self.options.page_props, {pages[target] for target in wanted})
            items = {target: qids.get(pages[target]) for target in wanted}
        named, counts = array("i"), Counter[str]()
        resolver = TitleResolver(linked, redirects, self._names(named, counts), graph, items)
        TitleTable.build(linked, resolver.resolve).save(work)
        labelled = [number for number, names in read_names(self.files.relation, "P", self._budget, counts) if names]
        return dict(counts) | {
            "graph: entities without a name": len(np.setdiff1d(graph.entities, named)),
            "graph: relations without a name": len(np.setdiff1d(graph.relations, labelled)),
        }

    @property
    def _budget(self) -> float:
        return self.options.max_malformed

    def _names(self, named: array[int], counts: Counter[str]) -> Iterator[tuple[int, list[str]]]:
        """Yield all entities with their names; append those with at least one to `named`."""
        lines = read_names(self.files.entity, "Q", self._budget, counts)
        for number, names in track(lines, "reading entity names"):
            if names:
                named.append(number)
            yield number, names

    @property
    def _resolves(self) -> bool:
        """Whether mentions have titles that must be resolved to QIDs."""
        return self.sources[0].kind == "mediawiki"

    def _linker(self, documents: list[Artifact], titles: Artifact, graph: Artifact) -> Artifact:
        return link_dictionary(
            documents,
            titles if self._resolves else None,
            graph,
            lambda: read_names(self.files.entity, "Q", self._budget),
            self._hash_of("graph", self.files.entity.path),
            self.work,
            self.options.workers,
        )

    def _tokenizer(self, documents: list[Artifact]) -> Artifact:
        """Train or copy the tokenizer, and record which of its tokens begin a word."""
        train = self.options.tokenizer == TRAIN
        digests = [artifact.digest for artifact in documents] if train else []
        key = key_of("tokenizer", self.request["tokenizer"], digests, *self._held_out)
        folder = self.work / TOKENIZER_FOLDER
        artifact = find(folder, key)
        if artifact is None:
            with make(folder, key) as (work, _):
                if train:
                    texts = partial(self._training_texts, documents)
                    train_tokenizer(texts, self.options.vocab_size, work / TOKENIZER_FOLDER)
                else:
                    load_tokenizer(Path(self.options.tokenizer)).save_pretrained(work / TOKENIZER_FOLDER)
                np.save(work / _STARTS, word_starts(load_tokenizer(work / TOKENIZER_FOLDER)))
            artifact = obtain(folder, key)
        return artifact

    @property
    def _held_out(self) -> list[float]:
        """The share of text held out, for keys: nothing without one, so that what was made before stays valid."""
        return [] if self.options.held_out is None else [self.options.held_out]

    def _training_texts(self, documents: list[Artifact]) -> Iterator[str]:
        every = (document for artifact in documents for document in read_documents(artifact.folder))
        return (document.text for document in without_held_out(every, self.options.held_out))

    def _encoded_names(self, graph: Artifact, tokenizer: Artifact) -> Artifact:
        hashes = self._hash_of("graph", *(file.path for file in self.files.names))
        folder = tokenizer.folder / TOKENIZER_FOLDER
        artifact = name_arrays(self.files, hashes, graph, tokenizer, folder, self._budget, self.work)
        self.counts.update(artifact.notes["counts"])
        return artifact

    def _sequences(
        self, documents: list[Artifact], titles: Artifact, tokenizer: Artifact, linker: Artifact | None
    ) -> list[Artifact]:
        files = tokenizer.folder / TOKENIZER_FOLDER
        info = describe(load_tokenizer(files))
        resolve = self._resolves
        linking = [] if linker is None else [linker.digest, self.options.link_threshold]
        settings = [dataclasses.asdict(info), self.options.max_length, self.options.unit, tokenizer.digest, linking]
        settings += self._held_out
        tasks = [
            EncodeTask(
                documents=artifact.folder,
                titles=titles.folder if resolve else None,
                tokenizer=files,
                info=info,
                starts=tokenizer.folder / _STARTS,
                max_length=self.options.max_length,
                unit=self.options.unit,
                linker=None if linker is None else linker.folder / "dictionary",
                minimum_rho=self.options.link_threshold,
                held_out=self.options.held_out,
                folder=self.work / "sequences" / artifact.folder.name,
                key=key_of("sequences", settings, artifact.digest, titles.digest if resolve else None),
            )
            for artifact in documents
        ]
        with ProgressBar("writing sequences, chunks", len(tasks)) as bar:
            made = []
            for artifact in workers.run(encode, iter(tasks), self.options.workers):
                made.append(artifact)
                bar.advance()
        made.sort(key=lambda artifact: artifact.folder.name)
        self.counts.update(total(artifact.notes["counts"] for artifact in made))
        self._hint_at_page_props()
        return made

    def _assemble(
        self, sequences: list[Artifact], graph: Artifact, names: Artifact, tokenizer: Artifact, built: Path
    ) -> Manifest:
        """Write the shards and all other files of the dataset into the folder `built`."""
        built.mkdir()
        files = tokenizer.folder / TOKENIZER_FOLDER
        info = describe(load_tokenizer(files))
        writer = ShardWriter(built, info.vocab_size, self.options.shard_mb * 1_000_000)
        entities: Counter[int] = Counter()
        counter = WordCounter()
        token_counts = np.zeros(info.vocab_size, dtype=np.int64)
        for artifact in track(sequences, "assembling shards, chunks", total=len(sequences)):
            block = read_block(artifact.folder)
            writer.extend(block)
            token_counts += np.bincount(block.tokens, minlength=info.vocab_size)
            entities.update(dict(np.load(artifact.folder / "entities.npy").tolist()))
            counter.add(WordTable.load(artifact.folder / "words"))
        shards = writer.close()
        if not shards:
            if self.counts["documents held out"]:
                raise UserError(
                    f"--held-out: {self.options.held_out:g} leaves nothing to train on; give a smaller share"
                )
            raise UserError(f"--source: {self.options.source} holds no text that the tokenizer knows")
        if self.options.held_out is not None:
            blocks = (read_block(artifact.folder / HELD_OUT_TEXT) for artifact in sequences)
            write_held_out(blocks, built / HELD_OUT_TEXT, self.options, info)
        np.save(built / TOKEN_COUNTS, token_counts)
        _copy(graph.folder, built / GRAPH_FOLDER)
        held_out = graph.folder / HELD_OUT_FOLDER / HELD_OUT_FACTS
        if held_out.is_file():
            shutil.copyfile(held_out, built / HELD_OUT_FACTS)
        _copy(names.folder, built / NAMES_FOLDER)
        _copy(files, built / TOKENIZER_FOLDER)
        for name in (ENTITIES_FOLDER, WORDS_FOLDER):
            (built / name).mkdir()
        words = counter.total(_MIN_WORD_COUNT)
        words.save(built / WORDS_FOLDER)
        frequency = _save_entities(entities, built / ENTITIES_FOLDER)
        self._count_entities(*frequency, KnowledgeGraph.load(graph.folder))
        self.counts["words"] = len(words.frequencies)
        manifest = Manifest(
            dataclasses.asdict(info), self.options.max_length, self.request, ordered(self.counts), shards
        )
        write_card(built, manifest, frequency[1], self.left_out)
        manifest.save(built)
        return manifest

    def _count_entities(self, qids: np.ndarray, times: np.ndarray, graph: KnowledgeGraph) -> None:
        known = graph.degrees(qids) > 0
        self.counts["entities mentioned"] = len(qids)
        self.counts["entities mentioned at most 5 times"] = int((times <= 5).sum())
        self.counts["entities mentioned, with a triple"] = int(known.sum())
        self.counts["mentions kept"] = int(times.sum())
        self.counts["mentions kept, with a triple"] = int(times[known].sum())


def _save_entities(entities: Counter[int], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write the corpus frequency of every entity: qids.npy int32 [E] ascending, counts.npy int64 [E]."""
    qids = np.array(sorted(entities), dtype=np.int32)
    times = np.array([entities[qid] for qid in qids.tolist()], dtype=np.int64)
    np.save(folder / "qids.npy", qids)
    np.save(folder / "counts.npy", times)
    return qids, times


def _copy(folder: Path, target: Path) -> None:
    """Copy the files of an artifact, except its done.json."""
    target.mkdir()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != DONE:
            shutil.copyfile(path, target / path.name)
