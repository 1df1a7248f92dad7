from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.routing.test_attribution import build, sizes, view_of
from trelm_ds.corpus import TOKENIZER_FOLDER, load_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.model import EncoderConfig, MaskedLanguageModel, StepTables, answer_probabilities
from trelm_ds.routing import Explanation, explain, plot, table, to_json

PROMPT = "Person01 lives in [MASK]."


def model_for(tokenizer_size: int, positions: int = 20) -> MaskedLanguageModel:
    settings = {**vars(sizes()), "vocab_size": tokenizer_size, "max_position_embeddings": positions}
    return view_of(build(EncoderConfig(**settings)))


@pytest.fixture
def tokenizer(tiny_dataset: Path):  # type: ignore[no-untyped-def]
    return load_tokenizer(tiny_dataset / TOKENIZER_FOLDER)


def test_asks_what_a_cloze_reader_would(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = model_for(len(tokenizer))
    found = explain(model, tokenizer, PROMPT, "City03")
    # The same question in plain steps: masks for the answer, softmax over the vocabulary, mean over its tokens.
    ids = tokenizer(PROMPT.replace("[MASK]", "City03"))["input_ids"]
    answer = tokenizer("City03", add_special_tokens=False)["input_ids"]
    begin = next(i for i in range(len(ids)) if ids[i : i + len(answer)] == answer)
    shown = torch.tensor(ids)
    shown[begin : begin + len(answer)] = tokenizer.mask_token_id
    with torch.no_grad():
        hidden = model.encoder(shown, torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))
        scores = model.logits(hidden[begin : begin + len(answer)]).softmax(-1)
    expected = torch.stack([scores[i, token] for i, token in enumerate(answer)]).mean().item()
    assert found.probability == pytest.approx(expected, rel=1e-5)
    assert found.scores.shape == (3, 24)
    assert found.scores.max() > 0


def test_attributes_the_probability_that_it_prints(tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = model_for(len(tokenizer))
    with torch.no_grad():
        model.head.bias.copy_(torch.randn(len(tokenizer), generator=torch.Generator().manual_seed(0)))
    shown = []

    def spy(states: torch.Tensor, word: Any, labels: torch.Tensor, tables: StepTables, bias: Any) -> torch.Tensor:
        found = answer_probabilities(states, word, labels, tables, bias)
        shown.append(found.detach())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trelm_ds.routing.attribution.answer_probabilities", spy)
        found = explain(model, tokenizer, PROMPT, "City03", "right20")
    # One of right20's nodes is 1, where nothing is scaled: there the attributed P is the printed one.
    tokens = len(tokenizer("City03", add_special_tokens=False)["input_ids"])
    means = torch.cat([probabilities.view(-1, tokens).mean(1) for probabilities in shown])
    assert (means - found.probability).abs().min() < 1e-6


def test_space_around_the_answer_is_none_of_it(tokenizer) -> None:  # type: ignore[no-untyped-def]
    model = model_for(len(tokenizer))
    spaced, plain = (explain(model, tokenizer, PROMPT, answer) for answer in (" City03 ", "City03"))
    assert torch.equal(spaced.scores, plain.scores)


def test_dollars_are_no_formula(tmp_path: Path) -> None:
    plot(Explanation(r"a $\foo{$ [MASK]", "x", 0.5, torch.ones(1, 2), None), tmp_path / "map.png")
    assert (tmp_path / "map.png").is_file()


def test_lists_the_strongest_and_what_is_on_the_path(tmp_path: Path) -> None:
    scores = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 2.0]])
    found = Explanation(PROMPT, "City03", 0.25, scores, torch.tensor([[0]]))  # the upper layer alone has a path
    result = to_json(found, 2)
    first, second = result["neurons"]
    assert first == {"layer": 0, "neuron": 1, "score": 3.0, "share": pytest.approx(3 / 8), "on_path": False}
    assert second["layer"] == 1
    assert [layer["share"] for layer in result["layers"]] == pytest.approx([0.5, 0.5])
    assert [layer["on_path"] for layer in result["layers"]] == pytest.approx([0.0, 0.5])
    assert "p = 0.2500" in table(result)
    plot(found, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    plain = to_json(found._replace(path=None), 100)
    assert len(plain["neurons"]) == 6
    assert "on_path" not in plain["neurons"][0]
    assert table(plain)


@pytest.mark.parametrize(
    ("prompt", "answer", "message"),
    [
        ("no blank", "City03", "--prompt: must hold [MASK] once"),
        ("[MASK] [MASK]", "City03", "--prompt: must hold [MASK] once"),
        (PROMPT, "  ", "--answer: must not be empty"),
        (PROMPT, "\u4e2d", "--answer: the tokenizer does not know all of"),
        (PROMPT, "City03 \u4e2d", "--answer: the tokenizer does not know all of"),
        (PROMPT, "[MASK]", "--answer: [MASK] is no text"),
        (PROMPT, "City03 \udcff", "--answer: is not valid UTF-8"),
        ("\udcff " + PROMPT, "City03", "--prompt: is not valid UTF-8"),
        ("[SEP] " + PROMPT, "City03", "--prompt: [SEP] is no text"),
        (PROMPT * 1 + " near the river" * 9, "City03", "--prompt: has"),
    ],
)
def test_mistakes(tokenizer, prompt: str, answer: str, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError) as error:
        explain(model_for(len(tokenizer)), tokenizer, prompt, answer)
    assert message in str(error.value)
