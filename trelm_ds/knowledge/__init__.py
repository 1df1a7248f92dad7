"""The knowledge graph: Wikidata5M as compressed sparse rows."""

from trelm_ds.knowledge.graph import KnowledgeGraph, find_wikidata5m, read_names

__all__ = ["KnowledgeGraph", "find_wikidata5m", "read_names"]
