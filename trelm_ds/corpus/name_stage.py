"""Stage that encodes the names of the graph's entities and relations with the dataset's tokenizer."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from trelm_ds.corpus.artifacts import Artifact, find, key_of, make, obtain
from trelm_ds.corpus.tokenizer import describe, encode_literally, load_core, load_tokenizer
from trelm_ds.knowledge import KnowledgeGraph, Wikidata5M, encode_names


def name_arrays(
    files: Wikidata5M, hashes: list[str], graph: Artifact, tokenizer: Artifact, folder: Path, budget: float, work: Path
) -> Artifact:
    """Find or make the artifact with the arrays of `trelm_ds.knowledge.Names`.

    Args:
        files: the Wikidata5M files.
        hashes: sha256 of each file in `files.names`.
        graph: the knowledge graph.
        tokenizer: the artifact that contains `folder`.
        folder: folder with the tokenizer's files.
        budget: share of a file's lines that may be malformed.
        work: parent folder of the artifact.
    """
    members = [file.member for file in files.names]
    target, key = work / "names", key_of("names", graph.digest, tokenizer.digest, hashes, members, budget)
    artifact = find(target, key)
    if artifact is None:
        core = load_core(folder)
        encode_literally(core)

        def encode(texts: list[str]) -> list[list[int]]:
            return [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]

        with make(target, key) as (made, notes):
            counts: Counter[str] = Counter()
            special = describe(load_tokenizer(folder)).special_ids
            encode_names(files, KnowledgeGraph.load(graph.folder), encode, special, budget, counts).save(made)
            notes["counts"] = dict(counts)
        artifact = obtain(target, key)
    return artifact
