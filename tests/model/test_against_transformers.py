"""Our packed encoder computes what transformers computes on a padded batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CamembertForMaskedLM, PreTrainedModel, XLMRobertaForMaskedLM

from tests.model.tiny_models import make_documents, make_hf, pack, pack_batch
from trelm_ds.model import MaskedLanguageModel, hf_names, load_pretrained
from trelm_ds.model.hf_names import to_hf

Pair = tuple[PreTrainedModel, MaskedLanguageModel]
LENGTHS = [[7, 1, 24, 12], [9, 9, 9]]  # the second takes the way without a mask


def padded(documents: list[torch.Tensor], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(document) for document in documents])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_logits(pair: Pair, lengths: list[int]) -> None:
    hf, ours = pair
    documents = make_documents(lengths)
    ids, mask = padded(documents, ours.config.pad_token_id)
    with torch.no_grad():
        expected = hf(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        actual = ours.logits(ours.encoder(*pack(documents)))
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden_act", ["gelu_new", "gelu_pytorch_tanh", "relu"])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_activations(architecture: str, hidden_act: str, tmp_path: Path) -> None:
    hf = make_hf(architecture, hidden_act=hidden_act)
    hf.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    document = make_documents([10])
    with torch.no_grad():
        actual = ours.logits(ours.encoder(*pack(document)))
        torch.testing.assert_close(actual, hf(input_ids=document[0][None]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [XLMRobertaForMaskedLM, CamembertForMaskedLM])
def test_models_that_are_roberta_by_another_name(kind: type[PreTrainedModel], tmp_path: Path) -> None:
    hf = kind(kind.config_class(**make_hf("roberta").config.to_dict())).eval()
    hf.save_pretrained(tmp_path)
    ours = load_pretrained(tmp_path).eval()
    document = make_documents([10])
    with torch.no_grad():
        actual = ours.logits(ours.encoder(*pack(document)))
        torch.testing.assert_close(actual, hf(input_ids=document[0][None]).logits[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_loss_and_gradients(pair: Pair, lengths: list[int]) -> None:
    hf, ours = pair
    documents = make_documents(lengths)
    input_ids = torch.cat(documents)
    positions = torch.randperm(len(input_ids), generator=torch.Generator().manual_seed(3))[:8]
    targets = torch.full_like(input_ids, -100)
    targets[positions] = torch.arange(10, 18)
    ids, mask = padded(documents, ours.config.pad_token_id)
    labels = torch.full_like(ids, -100)
    labels[mask.bool()] = targets

    expected = hf(input_ids=ids, attention_mask=mask, labels=labels)
    expected.loss.backward()
    actual = ours(pack_batch(documents, positions.tolist(), targets[positions].tolist()))
    loss = actual.losses["mlm"] / 8
    loss.backward()

    torch.testing.assert_close(loss, expected.loss)
    guesses = expected.logits[mask.bool()][positions].argmax(-1)
    assert actual.correct["mlm"] == (guesses == targets[positions]).sum()
    theirs = dict(hf.named_parameters())
    names = hf_names(ours.config)
    assert {name for several in names.values() for name in several} == set(theirs)
    for ours_name, parameter in ours.named_parameters():
        for name, gradient in to_hf(ours_name, parameter.grad, names[ours_name]).items():
            torch.testing.assert_close(
                gradient, theirs[name].grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
