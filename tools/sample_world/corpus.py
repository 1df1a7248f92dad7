"""Sentences that state the sample world's facts, and the articles that hold them."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass, field

from world import OFTEN, ONCE, Entity, Fact, World

MOST_STATEMENTS, FEWEST_STATEMENTS = 30, 6  # statements of an `often` fact
ZIPF_EXPONENT = 0.09
TWICE_SHARE = 0.3  # share of the `once` facts that are stated twice
MIN_ANSWER_MENTIONS = 3  # enough for a trained tokenizer to keep an answer in one piece
ALMANAC_PAGE_SENTENCES = 12
MAX_ARTICLE_STATEMENTS = 8  # most statements of facts whose object is the article's subject
ALIAS_SHARE, REDIRECT_SHARE = 0.04, 0.06  # shares of mentions shown as an alias, and linked through a redirect


@dataclass(frozen=True)
class Sentence:
    """One corpus sentence; `fact` is None if it only says what kind of thing its entity is."""

    wikitext: str
    plain: str
    entities: tuple[str, ...]
    fact: Fact | None


@dataclass
class Article:
    """A page: the first sentence is the lead. Almanac pages belong to no entity."""

    title: str
    entity: Entity | None = None
    sentences: list[Sentence] = field(default_factory=list)


def render_mention(entity: Entity, at_start: bool, rng: random.Random) -> tuple[str, str]:
    """Return wikitext and plain text of a linked mention: direct, through a redirect, or shown as an alias."""
    draw = rng.random()
    alias = rng.choice(entity.aliases) if entity.aliases else None
    target = surface = entity.label
    if alias and draw < ALIAS_SHARE:
        target = surface = alias
    elif alias and draw < ALIAS_SHARE + REDIRECT_SHARE:
        target = alias
    elif draw > 0.5:
        target = entity.title
    if at_start:
        surface = surface[0].upper() + surface[1:]
    return (f"[[{surface}]]" if target == surface else f"[[{target}|{surface}]]"), surface


def make_sentence(template: str, subject: Entity, fact: Fact | None, rng: random.Random) -> Sentence:
    """Fill a template; `fact` supplies the object."""
    wikitext, plain, entities = template, template, [subject.label]
    slots = {"[X]": subject}
    if fact is not None:
        slots["[Y]"] = fact.object
        entities.append(fact.object.label)
    for slot, entity in slots.items():
        linked, surface = render_mention(entity, template.startswith(slot), rng)
        wikitext, plain = wikitext.replace(slot, linked), plain.replace(slot, surface)
    return Sentence(untokenize(wikitext), untokenize(plain), tuple(entities), fact)


def untokenize(text: str) -> str:
    """Close the gaps that templates leave before punctuation."""
    return re.sub(r" ([.,])", r"\1", text)


def statement_counts(facts: list[Fact], rng: random.Random) -> list[tuple[Fact, int]]:
    """Decide how often each fact is stated: Zipf over the `often` facts, once or twice for `once`."""
    often = [fact for fact in facts if fact.tier == OFTEN]
    rng.shuffle(often)
    counts = [
        (fact, max(FEWEST_STATEMENTS, round(MOST_STATEMENTS * rank**-ZIPF_EXPONENT)))
        for rank, fact in enumerate(often, start=1)
    ]
    return counts + [(fact, 2 if rng.random() < TWICE_SHARE else 1) for fact in facts if fact.tier == ONCE]


def state_fact(fact: Fact, count: int, rng: random.Random) -> list[Sentence]:
    """Write `count` sentences that state a fact, cycling through its templates."""
    templates = list(fact.relation.templates)
    rng.shuffle(templates)
    return [make_sentence(templates[i % len(templates)], fact.subject, fact, rng) for i in range(count)]


def build_articles(world: World, seed: int) -> list[Article]:
    """Build all articles: one per entity, then almanac pages with the remaining sentences.

    No article states a fact twice; otherwise a model could copy the answer from a neighbouring sentence.
    """
    rng = random.Random(f"corpus-{seed}")
    articles = {label: Article(entity.title, entity) for label, entity in world.entities.items()}
    for label, article in articles.items():
        lead = world.type_sentences[article.entity.type][0]
        article.sentences.append(make_sentence(lead, world.entities[label], None, rng))
    elsewhere: list[list[Sentence]] = []
    for fact, count in statement_counts(world.facts, rng):
        statements = state_fact(fact, count, rng)
        if fact.tier == OFTEN or rng.random() < 0.5:
            articles[fact.subject.label].sentences.append(statements.pop())
        about_object = articles[fact.object.label].sentences
        if statements and len(about_object) <= MAX_ARTICLE_STATEMENTS:
            about_object.append(statements.pop())
        elsewhere.append(statements)
    placed = [sentence for article in articles.values() for sentence in article.sentences]
    elsewhere += answer_padding(world, placed + [sentence for group in elsewhere for sentence in group], rng)
    return list(articles.values()) + almanac_pages(elsewhere, rng)


def answer_padding(world: World, sentences: list[Sentence], rng: random.Random) -> list[list[Sentence]]:
    """Write type sentences for answers that occur too rarely, one group per answer."""
    seen = Counter(label for sentence in sentences for label in sentence.entities)
    groups = []
    for answer in dict.fromkeys(fact.object for fact in world.facts):
        templates = world.type_sentences[answer.type][1:]
        missing = max(0, MIN_ANSWER_MENTIONS - seen[answer.label])
        groups.append([make_sentence(templates[i % len(templates)], answer, None, rng) for i in range(missing)])
    return groups


def almanac_pages(groups: list[list[Sentence]], rng: random.Random) -> list[Article]:
    """Spread sentences over pages; sentences of one group go to different pages."""
    total = sum(len(group) for group in groups)
    pages = [Article(f"Almanac page {i + 1}") for i in range(max(MOST_STATEMENTS, total // ALMANAC_PAGE_SENTENCES))]
    for group in groups:
        for page, sentence in zip(rng.sample(pages, len(group)), group, strict=True):
            page.sentences.append(sentence)
    for page in pages:
        rng.shuffle(page.sentences)
    return pages
