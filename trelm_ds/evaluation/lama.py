"""LAMA probe: can a masked language model fill in the object of a fact? (Petroni et al., 2019)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trelm_ds.errors import UserError
from trelm_ds.evaluation.hf_folder import load_masked_lm
from trelm_ds.evaluation.lama_data import OBJECT, SUBJECT, Fact, Relation, read_lama
from trelm_ds.progress import ProgressBar

SKIP_REASONS = (
    "duplicate",
    "object_is_several_tokens",
    "object_outside_vocabulary",
    "prompt_too_long",
    "mask_token_in_subject",
)


@dataclass
class Probe:
    """A fact as a question to the model.

    Attributes:
        relation: id of the relation.
        tier: tier of the fact, if the data has tiers.
        input_ids: the prompt with special tokens and one mask.
        answer: token of the object.
        space: whether the object follows a space, which determines its form in byte-level tokenizers.
        correct: whether the model's answer is right.
    """

    relation: str
    tier: str | None
    input_ids: list[int]
    answer: int
    space: bool
    correct: bool = False


def evaluate_lama(
    model_dir: str | Path,
    data_dir: str | Path,
    batch_size: int = 64,
    vocabulary: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure the precision at 1 of any Hugging Face masked language model on LAMA's T-REx facts.

    Only objects of one token are asked for, each (subject, object) once per relation. The answer is the best-scoring
    candidate. The macro score is the mean over facts within a relation, then over relations. The majority baseline
    always answers the relation's most frequent object; a P@1 means little without it.

    Args:
        model_dir: Hugging Face folder with weights and tokenizer.
        data_dir: folder with `relations.jsonl` and `TREx/P*.jsonl[.gz]`.
        batch_size: prompts per forward pass.
        vocabulary: file of candidate words, one per line; default: DATA/common_vocab*.txt, else every whole word of the
            model's vocabulary.
        device: "auto" (a GPU if there is one), or a torch device.

    Returns:
        p_at_1, majority_baseline, n_facts, skipped, relations, tiers, candidates, model, data: plain JSON values. The
        scores of a relation or tier are None if none of its facts could be asked.

    Raises:
        UserError: a folder or file is missing or malformed, or no fact can be asked.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: must be at least 1, got {batch_size}")
    relations = read_lama(data_dir)
    target = _device(device)
    model, tokenizer = load_masked_lm(Path(model_dir))
    candidates = Candidates(tokenizer, vocabulary or _common_vocabulary(Path(data_dir), tokenizer))
    limit = _longest_prompt(model.config, tokenizer)
    probes: list[Probe] = []
    skipped: dict[str, Counter[str]] = {}
    for relation in relations:
        found, skipped[relation.id] = make_probes(relation, tokenizer, candidates, limit)
        probes += found
    if not probes:
        reasons = _counts(sum(skipped.values(), Counter()))
        raise UserError(
            f"{data_dir}: no fact can be asked of {model_dir}; skipped: {reasons or 'none, the files are empty'}"
        )
    _answer(model.to(target).eval(), tokenizer, probes, candidates, batch_size)
    return _result(relations, probes, skipped) | {
        "candidates": candidates.description,
        "model": str(model_dir),
        "data": str(data_dir),
    }


class Candidates:
    """The tokens an answer is chosen from.

    Args:
        tokenizer: the model's tokenizer.
        path: file with one word per line, or None for the whole words of the tokenizer's vocabulary.

    Attributes:
        tokens: whether the object follows a space -> token ids, int64 [C], ascending.
        description: source and number of candidates, plain JSON values.

    Raises:
        UserError: the file is missing, or none of its words is a single token.
    """

    def __init__(self, tokenizer: Any, path: str | Path | None) -> None:
        self.tokens: dict[bool, Tensor] = {}
        if path is None:
            self.tokens = {space: _whole_words(tokenizer, space) for space in (True, False)}
            self.description = {"source": "model vocabulary", "path": None, "n_tokens": self.tokens[True].numel()}
            return
        try:
            words = [word.strip() for word in Path(path).read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read as a vocabulary ({error}); give one word a line") from None
        words = [word for word in words if word]
        for space in (True, False):
            single = {ids[0] for ids in _encode(tokenizer, words, space) if len(ids) == 1}
            self.tokens[space] = torch.tensor(sorted(single - set(tokenizer.all_special_ids)), dtype=torch.long)
        if not self.tokens[True].numel():
            raise UserError(
                f"{path}: none of its {len(words)} words is one token of the model; give another vocabulary"
            )
        self.description = {
            "source": "vocabulary file",
            "path": str(path),
            "n_words": len(words),
            "n_tokens": self.tokens[True].numel(),
        }


def make_probes(
    relation: Relation, tokenizer: Any, candidates: Candidates, longest: int
) -> tuple[list[Probe], Counter[str]]:
    """Turn a relation's facts into prompts, and count the facts that cannot be asked, by reason."""
    skipped: Counter[str] = Counter()
    distinct: dict[tuple[str, str], Fact] = {}
    for fact in relation.facts:
        distinct.setdefault((fact.subject, fact.obj), fact)
    facts = list(distinct.values())
    skipped["duplicate"] = len(relation.facts) - len(facts)
    if not facts:
        return [], +skipped
    before, _, after = relation.template.partition(OBJECT)
    space = before.endswith(" ")
    # The answer includes its leading space, so the prompt must not: only some tokenizers, such as older RoBERTa ones,
    # strip a space before the mask token.
    masked = before.rstrip() + tokenizer.mask_token + after
    prompts = tokenizer([masked.replace(SUBJECT, fact.subject) for fact in facts])["input_ids"]
    answers = _encode(tokenizer, [fact.obj for fact in facts], space)
    allowed = set(candidates.tokens[space].tolist())
    probes = []
    for fact, prompt, answer in zip(facts, prompts, answers, strict=True):
        if len(answer) != 1:
            skipped["object_is_several_tokens"] += 1
        elif answer[0] not in allowed:
            skipped["object_outside_vocabulary"] += 1
        elif len(prompt) > longest:
            skipped["prompt_too_long"] += 1
        elif prompt.count(tokenizer.mask_token_id) != 1:
            skipped["mask_token_in_subject"] += 1
        else:
            probes.append(Probe(relation.id, fact.tier, prompt, answer[0], space))
    return probes, +skipped


def _encode(tokenizer: Any, words: list[str], space: bool) -> list[list[int]]:
    """Encode each word as it appears after a space, or at the beginning of a text."""
    texts = [f" {word.strip()}" if space else word.strip() for word in words]
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _whole_words(tokenizer: Any, space: bool) -> Tensor:
    """List the tokens, int64 [C], that are neither special nor the continuation of a word."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    continuation = getattr(model, "continuing_subword_prefix", None) if type(model).__name__ == "WordPiece" else None
    first = (tokenizer.tokenize(" a") or [""])[0][:1]
    marker = first if first in ("Ġ", "▁") else ""  # a leading space in byte-level BPE and SentencePiece

    def whole(token: str) -> bool:
        if continuation:
            return not token.startswith(continuation)
        return not marker or token.startswith(marker) == space

    special = set(tokenizer.all_special_ids)
    ids = sorted(index for token, index in tokenizer.get_vocab().items() if index not in special and whole(token))
    return torch.tensor(ids, dtype=torch.long)


def _common_vocabulary(data_dir: Path, tokenizer: Any) -> Path | None:
    """Find LAMA's common_vocab_cased.txt or common_vocab_lowercased.txt, whichever fits the tokenizer."""
    found = sorted(data_dir.glob("common_vocab*.txt"))
    if len(found) <= 1:
        return found[0] if found else None
    lower = tokenizer("A")["input_ids"] == tokenizer("a")["input_ids"]
    fitting = [path for path in found if ("lower" in path.stem or "uncased" in path.stem) == lower]
    if len(fitting) != 1:
        raise UserError(f"{data_dir}: holds several common_vocab*.txt; name the one to use as the vocabulary")
    return fitting[0]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise UserError(f"device: '{name}' is not a torch device; give auto, cpu or cuda") from None


def _longest_prompt(config: Any, tokenizer: Any) -> int:
    """Return how many tokens the model can read; RoBERTa's position table has pad_token_id + 1 unused rows."""
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1
    return min(positions, tokenizer.model_max_length)


@torch.inference_mode()
def _answer(model: Any, tokenizer: Any, probes: list[Probe], candidates: Candidates, batch_size: int) -> None:
    """Run the model and set `correct` of every probe."""
    ordered = sorted(probes, key=lambda probe: len(probe.input_ids))  # batches of similar length need little padding
    allowed = {space: tokens.to(model.device) for space, tokens in candidates.tokens.items()}
    masked = torch.empty(0)

    def keep_masked(_: torch.nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Decode the masks only: decoding every token costs more than the encoder."""
        return (inputs[0][masked],)

    decoder = model.get_output_embeddings()
    hook = decoder.register_forward_pre_hook(keep_masked) if decoder is not None else None
    with ProgressBar("LAMA", len(ordered)) as bar:
        for start in range(0, len(ordered), batch_size):
            batch = ordered[start : start + batch_size]
            inputs = tokenizer.pad({"input_ids": [probe.input_ids for probe in batch]}, return_tensors="pt")
            inputs = inputs.to(model.device)
            masked = inputs["input_ids"] == tokenizer.mask_token_id
            scores = model(**inputs).logits  # [batch, V]
            if hook is None:
                scores = scores[masked]
            spaces = {probe.space for probe in batch}
            best = {space: allowed[space][scores[:, allowed[space]].argmax(-1)].tolist() for space in spaces}
            for row, probe in enumerate(batch):
                probe.correct = best[probe.space][row] == probe.answer
            bar.advance(len(batch))
    if hook is not None:
        hook.remove()


def _score(probes: list[Probe]) -> dict[str, Any]:
    """Compute P@1 and majority baseline over the facts of one relation."""
    if not probes:
        return {"p_at_1": None, "majority_baseline": None, "n_facts": 0}
    most_common = Counter(probe.answer for probe in probes).most_common(1)[0][1]
    correct = sum(probe.correct for probe in probes)
    return {
        "p_at_1": correct / len(probes),
        "majority_baseline": most_common / len(probes),
        "n_facts": len(probes),
    }


def _macro(scores: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Average over the relations that have a score."""
    scored = [score for score in scores if score["n_facts"]]
    return {
        "p_at_1": sum(score["p_at_1"] for score in scored) / len(scored),
        "majority_baseline": sum(score["majority_baseline"] for score in scored) / len(scored),
        "n_facts": sum(score["n_facts"] for score in scored),
        "n_relations": len(scored),
    }


def _result(relations: list[Relation], probes: list[Probe], skipped: dict[str, Counter[str]]) -> dict[str, Any]:
    """Summarize answered probes by relation and by tier."""
    by_relation = {relation.id: [probe for probe in probes if probe.relation == relation.id] for relation in relations}
    tiers = dict.fromkeys(probe.tier for probe in probes if probe.tier is not None)
    return {
        **_macro(_score(of_relation) for of_relation in by_relation.values()),
        "skipped": _counts(sum(skipped.values(), Counter())),
        "relations": {
            relation.id: {
                "label": relation.label,
                **_score(by_relation[relation.id]),
                "skipped": _counts(skipped[relation.id]),
            }
            for relation in relations
        },
        "tiers": {
            tier: _macro(_score([p for p in of_relation if p.tier == tier]) for of_relation in by_relation.values())
            for tier in tiers
        },
    }


def _counts(skipped: Counter[str]) -> dict[str, int]:
    """Return the counts that are not 0, in the order of `SKIP_REASONS`."""
    return {reason: skipped[reason] for reason in SKIP_REASONS if skipped[reason]}
