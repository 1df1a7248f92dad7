"""The sample world's tables, and the assignment of facts to tiers."""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent

OFTEN, ONCE, GRAPH_ONLY = TRAINED = ("often", "once", "graph_only")
DERIVED_INVERSE, DERIVED_TWO_STEP, HELD_OUT = UNTRAINED = ("derived_inverse", "derived_two_step", "held_out")
TIERS = TRAINED + UNTRAINED
HEAD_SHARE = 0.16  # share of each type's entities that are the subjects of `often` facts
OFTEN_SHARE = 0.18  # share of each relation's trained facts
ONCE_SHARE = 0.42  # likewise; the rest is graph_only
DERIVED_SHARE = 0.48  # share of each rule's conclusions that are not trained; from the others the rule can be learned
HELD_OUT_SHARE = 0.06  # share of each relation's facts, if no rule has to do with it


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
    """A triple; the graph has it if its tier is of `TRAINED`, the text if that is `often` or `once`."""

    subject: Entity
    relation: Relation
    object: Entity
    tier: str = GRAPH_ONLY


Triple = tuple[Entity, Relation, Entity]


@dataclass(frozen=True)
class Rule:
    """One row of rules.tsv: what follows from one fact read against its direction, or from two facts in a row.

    Attributes:
        relation: of the conclusion.
        path: relations from its subject to its object, each with whether it is followed from object to subject.
    """

    relation: Relation
    path: tuple[tuple[Relation, bool], ...]

    @property
    def tier(self) -> str:
        """The tier of its conclusions that are not trained."""
        return DERIVED_INVERSE if len(self.path) == 1 else DERIVED_TWO_STEP

    def conclusions(self, triples: list[Triple]) -> list[Triple]:
        """Apply the rule to facts, in their order."""
        steps = [
            [(obj, subject) if inverse else (subject, obj) for subject, relation, obj in triples if relation == wanted]
            for wanted, inverse in self.path
        ]
        pairs = steps[0]
        for step in steps[1:]:
            pairs = [(first, last) for first, middle in pairs for start, last in step if start == middle]
        return [(first, self.relation, last) for first, last in pairs]


@dataclass(frozen=True)
class World:
    """All tables; `type_sentences[type]` only say what kind of thing an entity is."""

    entities: dict[str, Entity]
    relations: dict[str, Relation]
    type_sentences: dict[str, tuple[str, ...]]
    facts: list[Fact]

    @property
    def graph(self) -> list[Fact]:
        """The facts of the knowledge graph."""
        return [fact for fact in self.facts if fact.tier in TRAINED]


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
    rules = [
        Rule(relations[pid], tuple((relations[step.lstrip("^")], step.startswith("^")) for step in path.split()))
        for pid, path in read_table("rules.tsv")
    ]
    return World(entities, relations, type_sentences, assign_tiers(triples, rules, seed))


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


def assign_tiers(triples: list[Triple], rules: list[Rule], seed: int) -> list[Fact]:
    """Split the facts of each relation, and the conclusions of each rule, into tiers by fixed shares.

    Head subjects get `often` facts first, so that the other entities stay long-tail.
    """
    rng = random.Random(f"tiers-{seed}")
    concluded = [rule.conclusions(triples) for rule in rules]
    everything = triples + [triple for group in concluded for triple in group]
    head = head_entities(list({subject.label: subject for subject, _, _ in everything}.values()), rng)
    by_relation: dict[str, list[Triple]] = {}
    for triple in triples:
        by_relation.setdefault(triple[1].pid, []).append(triple)
    ruled = {relation.pid for rule in rules for relation in (rule.relation, *(step for step, _ in rule.path))}
    connected = neighbours(everything)
    facts = []
    for pid, group in by_relation.items():
        trained = split_trained(group, head, rng)
        facts += trained if pid in ruled else hold_out(trained, connected)
    for rule, group in zip(rules, concluded, strict=True):
        rng.shuffle(group)
        derived = int(DERIVED_SHARE * len(group))
        facts += split_trained(group[derived:], head, rng)
        facts += [Fact(*triple, rule.tier) for triple in group[:derived]]
    return facts


def split_trained(group: list[Triple], head: set[str], rng: random.Random) -> list[Fact]:
    """Split facts of one relation into the tiers that are trained."""
    rng.shuffle(group)
    group.sort(key=lambda triple: triple[0].label not in head)
    often, once = round(OFTEN_SHARE * len(group)), round(ONCE_SHARE * len(group))
    rest = group[often:]
    rng.shuffle(rest)
    facts = [Fact(*triple, OFTEN) for triple in group[:often]]
    facts += [Fact(*triple, ONCE) for triple in rest[:once]]
    return facts + [Fact(*triple, GRAPH_ONLY) for triple in rest[once:]]


def neighbours(triples: list[Triple]) -> dict[str, set[str]]:
    """List which entities share a fact with each, by label."""
    found: dict[str, set[str]] = {}
    for subject, _, obj in triples:
        found.setdefault(subject.label, set()).add(obj.label)
        found.setdefault(obj.label, set()).add(subject.label)
    return found


def hold_out(facts: list[Fact], connected: dict[str, set[str]]) -> list[Fact]:
    """Hold out the last `graph_only` facts of a relation that no two facts in a row could replace."""
    wanted, held_out = round(HELD_OUT_SHARE * len(facts)), set[Fact]()
    for fact in reversed(facts):
        shared = connected[fact.subject.label] & connected[fact.object.label]
        if fact.tier == GRAPH_ONLY and not shared and len(held_out) < wanted:
            held_out.add(fact)
    return [replace(fact, tier=HELD_OUT) if fact in held_out else fact for fact in facts]
