"""Eq. 7 at the input: what is replaced, what stays, where gradients go."""

from __future__ import annotations

import pytest
import torch

from tests.model.test_masked_lm import make_config
from tests.model.tiny_models import make_documents, pack
from trelm_ds.model import Injected, MaskedLanguageModel

ROWS = torch.tensor([1, 2, 7, 9, 16])  # of documents of 6, 11 and 3 tokens
ITEMS = torch.tensor([0, 0, 1, 2, 2])


def model(architecture: str = "bert") -> MaskedLanguageModel:
    torch.manual_seed(5)
    built = MaskedLanguageModel(make_config(architecture)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return built


def injected(size: int = 32) -> Injected:
    """Item 0 replaces the word embedding, item 1 leaves it, item 2 keeps half of it."""
    vectors = torch.randn(3, size, generator=torch.Generator().manual_seed(1))
    vectors[1] = 0
    return Injected(ROWS, ITEMS, torch.tensor([0.0, 1.0, 0.5]), vectors)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_against_a_loop(architecture: str, dtype: torch.dtype) -> None:
    embeddings = model(architecture).encoder.embeddings.to(dtype)
    ids, positions = pack(make_documents([6, 11, 3]))[0], torch.tensor([*range(6), *range(11), *range(3)])
    knowledge = injected()
    with torch.no_grad():
        actual = embeddings(ids, positions, knowledge)
        for row in range(20):
            word = embeddings.word.weight[ids[row]].float()
            if row in ROWS.tolist():
                item = int(ITEMS[ROWS.tolist().index(row)])
                word = knowledge.keep[item] * word + knowledge.vectors[item]
            place = embeddings.position.weight[positions[row] + embeddings.offset].float()
            summed = word + place + embeddings.token_type.weight[0].float()
            centred = summed - summed.mean()
            normed = centred / torch.sqrt((centred**2).mean() + embeddings.norm.eps)
            expected = normed * embeddings.norm.weight.float() + embeddings.norm.bias.float()
            tolerance = 1e-5 if dtype == torch.float32 else 0.05
            torch.testing.assert_close(actual[row].float(), expected, atol=tolerance, rtol=tolerance)


def test_nothing_injected_changes_nothing() -> None:
    ours, batch = model(), pack(make_documents([6, 11]))
    none = torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        plain = ours.encoder(*batch)
        assert torch.equal(ours.encoder(*batch, Injected(none, none, torch.zeros(0), torch.zeros(0, 32))), plain)
        kept = Injected(ROWS, ITEMS, torch.ones(3), torch.zeros(3, 32))
        assert torch.equal(ours.encoder(*batch, kept), plain)


def test_another_document_does_not_notice() -> None:
    ours, batch = model(), pack(make_documents([6, 11, 3]))
    with torch.no_grad():
        plain, changed = ours.encoder(*batch), ours.encoder(*batch, injected())
    assert torch.equal(plain[17:], changed[17:])  # the third holds no item
    assert not torch.allclose(plain[:6], changed[:6], atol=1e-3)


def test_gradients_flow_into_what_is_kept_only() -> None:
    ours = model()
    ids = torch.arange(20) + 20  # every token once
    _, cu_seqlens, longest = pack(make_documents([6, 11, 3]))
    knowledge = injected()
    ours.encoder(ids, cu_seqlens, longest, knowledge).square().sum().backward()
    norms = ours.encoder.embeddings.word.weight.grad.norm(dim=1)[ids]
    assert norms[[1, 2]].tolist() == [0, 0]
    others = [row for row in range(20) if row not in (1, 2)]
    assert (norms[others] > 0).all()
    assert knowledge.vectors.grad is None
