"""Eq. 1 against a literal loop over transformers' own models; batches change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import BertModel, PreTrainedModel

from tests.model.tiny_models import SIZES, make_hf
from trelm_ds.corpus import TokenizerInfo
from trelm_ds.importance import MentionScorer, scorer
from trelm_ds.model import load_encoder

LONGEST = 24
SPECIALS = {
    "bert": TokenizerInfo("", SIZES["vocab_size"], pad=0, unk=1, cls=2, sep=3, mask=4),
    "roberta": TokenizerInfo("", SIZES["vocab_size"], pad=1, unk=3, cls=0, sep=2, mask=4),
}


class Case(NamedTuple):
    hf: PreTrainedModel
    folder: Path
    info: TokenizerInfo

    def scorer(self, batch_tokens: int = 100) -> MentionScorer:
        return MentionScorer(load_encoder(self.folder), self.info, torch.device("cpu"), batch_tokens)


@pytest.fixture(params=["bert", "roberta"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    hf = make_hf(request.param)
    hf.save_pretrained(tmp_path)
    return Case(hf, tmp_path, SPECIALS[request.param])


def corpus(info: TokenizerInfo, seed: int = 0) -> tuple[list[list[int]], np.ndarray]:
    """Sequences of 2 to 24 tokens, unknown words among them, and [M, 3] mentions of every kind."""
    draw = np.random.default_rng(seed)
    sequences, mentions = [], []
    for number, length in enumerate([LONGEST, 3, 2, 4, *draw.integers(3, LONGEST + 1, 30)]):
        words = draw.integers(5, SIZES["vocab_size"], length - 2)
        words[draw.random(length - 2) < 0.1] = info.unk
        sequences.append([info.cls, *words.tolist(), info.sep])
        first = 1
        while first < length - 1:
            last = int(draw.integers(first + 1, min(first + 6, length - 1) + 1))
            mentions.append((number, first, last))
            first = last + int(draw.integers(0, 3))
    mentions += [(0, 1, LONGEST - 1), (0, 2, LONGEST - 1), (0, 7, 8)]  # all of it, all but one token, one token
    return sequences, np.array(mentions)


def literal(case: Case, tokens: list[int], first: int, last: int) -> float:
    """Eq. 1's cosine, word for word."""
    info = case.info
    special = {info.pad, info.cls, info.sep, info.mask}

    def mean(ids: list[int], taken: list[int]) -> torch.Tensor:
        with torch.no_grad():
            states = case.hf.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return torch.stack([states[place] for place in taken]).mean(0)

    before = [place for place in range(first) if tokens[place] not in special]
    after = [place for place in range(last, len(tokens)) if tokens[place] not in special]
    if not before + after:
        return float("nan")
    replaced = [*tokens[:first], info.mask, *tokens[last:]]
    moved = [place - (last - first) + 1 for place in after]
    h_o, h_rep = mean(tokens, before + after), mean(replaced, before + moved)
    return float(torch.nn.functional.cosine_similarity(h_o, h_rep, dim=0))


def score(scorer: MentionScorer, sequences: list[list[int]], mentions: np.ndarray) -> np.ndarray:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    return scorer.cosines(np.concatenate(sequences).astype(np.uint16), lengths, mentions)


def test_cosines_are_those_of_a_literal_loop(case: Case) -> None:
    sequences, mentions = corpus(case.info)
    expected = np.array([literal(case, sequences[number], first, last) for number, first, last in mentions])
    found = score(case.scorer(), sequences, mentions)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
    assert np.isnan(found).any()
    assert (found[~np.isnan(found)] < 0.999).mean() > 0.9  # the comparison can fail


@pytest.mark.parametrize("batch_tokens", [1, 37, 100_000])
def test_batches_and_neighbours_change_nothing(case: Case, batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, mentions = corpus(case.info)
    together = score(case.scorer(), sequences, mentions)
    monkeypatch.setattr(scorer, "_CHUNK", 3)
    scored = case.scorer(batch_tokens)
    shuffled = np.random.default_rng(1).permutation(len(mentions))
    np.testing.assert_allclose(score(scored, sequences, mentions[shuffled]), together[shuffled], atol=1e-5)
    alone = [score(scored, [sequences[n]], np.array([[0, first, last]]))[0] for n, first, last in mentions]
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_each_sequence_is_encoded_once_for_all_its_mentions(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences, mentions = corpus(case.info)
    scored = case.scorer()
    encoded: list[int] = []
    forward = scored._encoder.forward

    def counting(tokens: torch.Tensor, cu_seqlens: torch.Tensor, longest: int) -> torch.Tensor:
        encoded.append(cu_seqlens.numel() - 1)
        return forward(tokens, cu_seqlens, longest)

    monkeypatch.setattr(scored._encoder, "forward", counting)
    monkeypatch.setattr(scorer, "_CHUNK", 5)
    found = score(scored, sequences, mentions)
    scorable = ~np.isnan(found)
    assert sum(encoded) == scorable.sum() + len(np.unique(mentions[scorable, 0]))


def test_only_the_span_is_replaced(case: Case) -> None:
    """An entity that is named twice: each occurrence is a mention, and the other one stays."""
    info = case.info
    tokens = [info.cls, 10, 11, 20, 21, 22, 10, 11, 30, info.sep]
    spans = np.array([[0, 1, 3], [0, 6, 8]])
    expected = [literal(case, tokens, 1, 3), literal(case, tokens, 6, 8)]
    np.testing.assert_allclose(score(case.scorer(), [tokens], spans), expected, atol=1e-5)


def test_no_mentions_and_the_count_of_those_done(case: Case) -> None:
    sequences, mentions = corpus(case.info)
    assert score(case.scorer(), sequences, np.zeros((0, 3), dtype=int)).shape == (0,)
    done: list[int] = []
    lengths = np.array([len(sequence) for sequence in sequences])
    found = case.scorer().cosines(np.concatenate(sequences), lengths, mentions, done.append)
    assert sum(done) == (~np.isnan(found)).sum()


def test_an_mlm_head_is_not_needed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hf = make_hf("bert")
    hf.save_pretrained(tmp_path / "with")
    bare = BertModel(hf.config)
    bare.load_state_dict(hf.bert.state_dict(), strict=False)
    bare.save_pretrained(tmp_path / "bare")
    sequences, mentions = corpus(SPECIALS["bert"])
    cases = (Case(hf, tmp_path / name, SPECIALS["bert"]) for name in ("with", "bare"))
    first, second = (score(case.scorer(), sequences, mentions) for case in cases)
    np.testing.assert_array_equal(first, second)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
