"""The sample world's tables, and the assignment of facts to tiers."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent

OFTEN, ONCE, GRAPH_ONLY = TIERS = ("often", "once", "graph_only")
HEAD_SHARE = 0.16  # share of each type's entities that are the subjects of `often` facts
OFTEN_SHARE = 0.18  # share of each relation's facts
ONCE_SHARE = 0.42  # likewise; the rest is graph_only


@dataclass(frozen=True)
class Entity:
    """One row of entities.tsv."""

    qid: str
    label: str
    type: str
    aliases: tuple[str, ...]

    @property
    def title(self) -> str:
        """The article title: MediaWiki capitalises the first letter."""
        return self.label[0].upper() + self.label[1:]


@dataclass(frozen=True)
class Relation:
    """One row of relations.tsv with its corpus templates."""

    pid: str
    label: str
    aliases: tuple[str, ...]
    cardinality: str
    probe: str
    description: str
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Fact:
    """A triple; `often` facts are stated many times, `graph_only` facts never."""

    subject: Entity
    relation: Relation
    object: Entity
    tier: str = GRAPH_ONLY


@dataclass(frozen=True)
class World:
    """All tables; `type_sentences[type]` only say what kind of thing an entity is."""

    entities: dict[str, Entity]
    relations: dict[str, Relation]
    type_sentences: dict[str, tuple[str, ...]]
    facts: list[Fact]


def read_table(name: str) -> list[list[str]]:
    """Read the rows of a tab-separated file next to this one, without comment lines."""
    with open(HERE / name, encoding="utf-8", newline="") as file:
        return [row for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if not row[0].startswith("#")]


def split_aliases(cell: str) -> tuple[str, ...]:
    """Split an alias cell."""
    return tuple(alias for alias in cell.split("|") if alias)


def load_world(seed: int) -> World:
    """Read the tables and assign every fact its tier."""
    entities = {
        label: Entity(qid, label, kind, split_aliases(aliases))
        for qid, label, kind, aliases in read_table("entities.tsv")
    }
    templates: dict[str, list[str]] = {}
    for pid, template in read_table("templates.tsv"):
        templates.setdefault(pid, []).append(template)
    relations = {
        pid: Relation(pid, label, split_aliases(aliases), cardinality, probe, description, tuple(templates[pid]))
        for pid, label, aliases, cardinality, probe, description in read_table("relations.tsv")
    }
    type_sentences = {row[0]: tuple(row[1:]) for row in read_table("types.tsv")}
    triples = [(entities[s], relations[p], entities[o]) for s, p, o in read_table("facts.tsv")]
    return World(entities, relations, type_sentences, assign_tiers(triples, seed))


def head_entities(entities: list[Entity], rng: random.Random) -> set[str]:
    """Draw the head entities, a share of each type; return their labels."""
    by_type: dict[str, list[str]] = {}
    for entity in entities:
        by_type.setdefault(entity.type, []).append(entity.label)
    head: set[str] = set()
    for labels in by_type.values():
        rng.shuffle(labels)
        head.update(labels[: max(1, round(HEAD_SHARE * len(labels)))])
    return head


def assign_tiers(triples: list[tuple[Entity, Relation, Entity]], seed: int) -> list[Fact]:
    """Split each relation's facts into tiers by fixed shares.

    Head subjects get `often` facts first, so that the other entities stay long-tail.
    """
    rng = random.Random(f"tiers-{seed}")
    subjects = list({subject.label: subject for subject, _, _ in triples}.values())
    head = head_entities(subjects, rng)
    by_relation: dict[str, list[tuple[Entity, Relation, Entity]]] = {}
    for triple in triples:
        by_relation.setdefault(triple[1].pid, []).append(triple)
    facts = []
    for group in by_relation.values():
        rng.shuffle(group)
        group.sort(key=lambda triple: triple[0].label not in head)
        often, once = round(OFTEN_SHARE * len(group)), round(ONCE_SHARE * len(group))
        rest = group[often:]
        rng.shuffle(rest)
        facts += [Fact(*triple, OFTEN) for triple in group[:often]]
        facts += [Fact(*triple, ONCE) for triple in rest[:once]]
        facts += [Fact(*triple, GRAPH_ONLY) for triple in rest[once:]]
    return facts
