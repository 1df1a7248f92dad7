"""The LAMA probe from folder to figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from trelm_ds import log
from trelm_ds.errors import UserError
from trelm_ds.evaluation.device import find_device
from trelm_ds.evaluation.hf_folder import load_masked_lm, load_tokenizer_of
from trelm_ds.evaluation.lama import data, probes, uhn
from trelm_ds.evaluation.lama.answers import answer, answer_several_tokens, longest_prompt
from trelm_ds.evaluation.lama.candidates import Candidates, common_vocabulary
from trelm_ds.evaluation.lama.data import Relation, read_parts
from trelm_ds.evaluation.lama.groups import Grouping, apply, graph_membership, subject_frequency
from trelm_ds.evaluation.lama.probes import MultiToken, Probe, make_probes
from trelm_ds.evaluation.lama.scoring import macro_average, micro_average, score_facts

T = TypeVar("T")

SKIP_REASONS = (
    "duplicate",
    data.NEGATIVE_JUDGMENT,
    data.NO_MASK,
    probes.SEVERAL,
    probes.OUTSIDE,
    probes.TOO_LONG,
    probes.EXTRA_MASK,
)


@dataclass(frozen=True)
class LamaOptions:
    """What is asked of which model.

    Attributes:
        model: Hugging Face folder of a masked language model, with its tokenizer.
        data: folder of LAMA, as `data` describes it.
        vocabulary: file of candidate words, one a line. Default: the words shared with `common_with`, else
            DATA/common_vocab*.txt, else every whole word of the model's vocabulary.
        common_with: folders of tokenizers; only words that are one token in each are candidates.
        multi_token: objects of several tokens are skipped, or scored apart by the mean log-probability of their tokens.
        uhn_model: folder of the masked language model that says what names are common where; None: LAMA-UHN is
            computed by string match alone, unless its files are there.
        dataset: prepared dataset whose entity frequencies say which subjects are in the long tail, and whose graph
            which facts a model was trained on.
        batch_size: masks per forward pass: prompts, except for objects of several tokens.
        device: "auto" (a GPU if there is one), or a torch device.
    """

    model: Path
    data: Path
    vocabulary: Path | None = None
    common_with: tuple[Path, ...] = ()
    multi_token: MultiToken = "skip"
    uhn_model: Path | None = None
    dataset: Path | None = None
    batch_size: int = 64
    device: str = "auto"


class LamaResult(NamedTuple):
    """What `evaluate_lama` finds."""

    summary: dict[str, Any]
    """figures of every part, plain JSON values"""
    predictions: list[dict[str, Any]]
    """one record for each fact that was asked, in the order of the data"""


@dataclass
class _Part:
    """A part's relations, what is asked of them, and what is left out."""

    name: str
    relations: list[Relation]
    one: list[Probe] = field(default_factory=list)
    several: list[Probe] = field(default_factory=list)
    skipped: dict[str, Counter[str]] = field(default_factory=dict)
    uhn: dict[str, Any] | None = None

    @property
    def asked(self) -> list[Probe]:
        return self.one + self.several


def evaluate_lama(options: LamaOptions) -> LamaResult:
    """Ask a masked language model for LAMA's facts (Petroni et al., 2019) and score its answers.

    The object's rank among the candidates gives P@1, P@10 and the reciprocal rank. A relation's score is the mean over
    its facts, a part's the mean over its relations (and over all facts, under `micro`). Beside each stands the majority
    baseline, which ranks the objects of the same relation by frequency: a P@1 means little without it. As LAMA's
    published code does, and unlike its paper, the ranking keeps other true objects of an N-M relation.

    Raises:
        UserError: a folder or file is missing or malformed, an option is unsuitable, or no fact can be asked.
    """
    if options.batch_size < 1:
        raise UserError(f"--batch-size: must be at least 1, got {options.batch_size}")
    device = find_device(options.device)
    parts = [_Part(name, relations) for name, relations in read_parts(options.data).items()]
    groupings: dict[str, Grouping] = {}
    if options.dataset:
        groupings = {"subject": subject_frequency(options.dataset), "graph": graph_membership(options.dataset)}
    others = [(folder, _of_option("--common-with", load_tokenizer_of, folder)) for folder in options.common_with]
    model, tokenizer = load_masked_lm(options.model)
    vocabulary = options.vocabulary or (None if others else common_vocabulary(options.data, tokenizer))
    candidates = Candidates(tokenizer, vocabulary, others)
    _ask_what_can_be(parts, tokenizer, candidates, longest_prompt(model.config, tokenizer), options)
    _group(parts, groupings, options, device)
    model.to(device).eval()
    answer(model, tokenizer, [probe for part in parts for probe in part.one], candidates, options.batch_size)
    if several := [probe for part in parts for probe in part.several]:
        answer_several_tokens(model, tokenizer, several, options.batch_size)
    return LamaResult(
        {
            "task": "lama",
            "model": str(options.model),
            "data": str(options.data),
            "options": {
                name: _plain(value) for name, value in asdict(options).items() if name not in ("model", "data")
            },
            "candidates": candidates.description,
            "parts": {part.name: _summary(part) for part in parts},
        },
        [_prediction(probe) for part in parts for probe in part.asked],
    )


def _of_option(option: str, load: Callable[[Path], T], folder: Path) -> T:
    """Load a folder; name the option in what is wrong with it."""
    try:
        return load(folder)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _ask_what_can_be(
    parts: list[_Part], tokenizer: Any, candidates: Candidates, longest: int, options: LamaOptions
) -> None:
    for part in parts:
        for relation in part.relations:
            one, several, part.skipped[relation.id] = make_probes(
                relation, tokenizer, candidates, longest, options.multi_token
            )
            part.one += one
            part.several += several
    if not any(part.asked for part in parts):
        reasons = _counts(sum((each for part in parts for each in part.skipped.values()), Counter()))
        raise UserError(
            f"{options.data}: no fact can be asked of {options.model}; skipped: "
            f"{reasons or 'none, the files are empty'}"
        )


def _group(parts: list[_Part], groupings: dict[str, Grouping], options: LamaOptions, device: Any) -> None:
    """Put every probe into its groups."""
    asked = [probe for part in parts for probe in part.asked]
    if options.dataset and not any(probe.fact.qid for probe in asked):
        log.warning("--dataset: no subject has a Wikidata id, so none is known to be in the long tail or in the graph")
    apply(groupings, asked)
    named = [part for part in parts if part.name in uhn.PARTS]
    names = None
    if options.uhn_model is not None:
        model, tokenizer = _of_option("--uhn-model", load_masked_lm, options.uhn_model)
        names = uhn.PersonNames(model.to(device).eval(), tokenizer, options.batch_size)
        if all(uhn.is_published(options.data, part.name) for part in named):
            log.warning("--uhn-model: not used; LAMA-UHN's files are there, or no part that it filters")
    for part in named:
        part.uhn = uhn.group_by_name(options.data, part.name, part.asked, names)


# --- Figures ---
def _summary(part: _Part) -> dict[str, Any]:
    """Score a part: by relation, over all, and by group."""
    by_relation = {relation.id: [p for p in part.one if p.relation is relation] for relation in part.relations}
    return {
        **macro_average(map(_score, by_relation.values())),
        "micro": _micro(list(by_relation.values())),
        "skipped": _counts(sum(part.skipped.values(), Counter())),
        "relations": {
            relation.id: {
                "label": relation.label,
                **_score(by_relation[relation.id]),
                "skipped": _counts(part.skipped[relation.id]),
            }
            for relation in part.relations
        },
        "groups": _groups(part),
        "uhn": part.uhn,
    }


def _groups(part: _Part) -> dict[str, dict[str, Any]]:
    """Score every group of every grouping; objects of several tokens are a group of their own, and in no other."""
    found: dict[str, dict[str, Any]] = {}
    for grouping in dict.fromkeys(name for probe in part.one for name in probe.groups):
        for group in dict.fromkeys(probe.groups[grouping] for probe in part.one if grouping in probe.groups):
            members = [probe for probe in part.one if probe.groups.get(grouping) == group]
            found.setdefault(grouping, {})[group] = _macro(part, members)
    if part.several:
        found["object"] = {"multi_token": _macro(part, part.several)}
    return found


def _macro(part: _Part, members: list[Probe]) -> dict[str, Any]:
    return macro_average(_score([p for p in members if p.relation is relation]) for relation in part.relations)


def _score(members: list[Probe]) -> dict[str, Any]:
    return score_facts([probe.rank for probe in members], [probe.object_key for probe in members])


def _micro(relations: list[list[Probe]]) -> dict[str, Any]:
    """Score all facts alike; the baseline still answers each relation's own most frequent object."""
    return micro_average([([p.rank for p in members], [p.object_key for p in members]) for members in relations])


def _prediction(probe: Probe) -> dict[str, Any]:
    return {
        "part": probe.relation.part,
        "relation": probe.relation.id,
        "subject": probe.fact.subject,
        "object": probe.fact.obj,
        "texts": list(probe.fact.texts),
        "tokens": len(probe.answer),
        "rank": probe.rank,
        "n_candidates": probe.n_candidates,
        "log_prob": round(probe.log_prob, 5),
        "top": [[text, round(log_prob, 5)] for text, log_prob in probe.top],
        "groups": probe.groups,
    }


def _counts(skipped: Counter[str]) -> dict[str, int]:
    """Return the counts that are not 0, in the order of `SKIP_REASONS`."""
    return {reason: skipped[reason] for reason in SKIP_REASONS if skipped[reason]}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
