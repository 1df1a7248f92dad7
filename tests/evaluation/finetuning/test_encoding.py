"""Examples as token ids: special tokens, types, and what is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.finetuning.conftest import read_task
from trelm_ds.corpus import load_tokenizer
from trelm_ds.errors import UserError
from trelm_ds.evaluation.finetuning.encoding import EncodedSplit, ExampleEncoder
from trelm_ds.evaluation.tasks import Example, Task
from trelm_ds.evaluation.tasks.marked import Mark, marked


@pytest.fixture
def task(tiny_tasks: Path) -> Task:
    return read_task(tiny_tasks, "cola")


def encode(
    tiny_tasks: Path, task: Task, *examples: Example, longest: int = 32, types: int = 2, cuts: bool = True
) -> EncodedSplit:
    tokenizer = load_tokenizer(tiny_tasks / "bert")
    return ExampleEncoder(tokenizer, longest, types, cuts).encode(task, list(examples))


def words(tiny_tasks: Path, encoded: EncodedSplit) -> list[str]:
    tokenizer = load_tokenizer(tiny_tasks / "bert")
    return [" ".join(tokenizer.convert_ids_to_tokens(ids.tolist())) for ids in encoded.input_ids]


def plain(*texts: str) -> Example:
    return Example(texts, "0", "file: record 7")


def test_one_text_and_a_pair(tiny_tasks: Path, task: Task) -> None:
    encoded = encode(tiny_tasks, task, plain("Anna is at the bank."), plain("The film", "is bad"))
    assert words(tiny_tasks, encoded) == [
        "[CLS] anna is at the bank . [SEP]",
        "[CLS] the film [SEP] is bad [SEP]",
    ]
    assert [types.tolist() for types in encoded.token_types] == [[0] * 8, [0] * 4 + [1] * 3]
    batch = encoded.batch([1, 0])
    assert batch.cu_seqlens.tolist() == [0, 7, 15]
    assert batch.max_seqlen == 8
    assert batch.token_types.tolist() == [0] * 4 + [1] * 3 + [0] * 8
    assert batch.targets.tolist() == [0, 0]


def test_a_model_with_one_type_does_not_tell_texts_apart(tiny_tasks: Path, task: Task) -> None:
    encoded = encode(tiny_tasks, task, plain("The film", "is bad"), types=1)
    assert encoded.token_types[0].tolist() == [0] * 7


def test_names_of_special_tokens_in_a_text_are_text(tiny_tasks: Path, task: Task) -> None:
    (shown,) = words(tiny_tasks, encode(tiny_tasks, task, plain("the [SEP] film [MASK]")))
    assert shown.count("[SEP]") == 1
    assert "[MASK]" not in shown


def test_what_is_too_long_is_refused_with_its_place(tiny_tasks: Path, task: Task) -> None:
    with pytest.raises(UserError, match=r"file: record 7: has 34 tokens, the longest allowed is 32; --truncate cuts"):
        encode(tiny_tasks, task, plain("film"), plain("bad " * 32), cuts=False)
    assert encode(tiny_tasks, task, plain("bad " * 30), cuts=False).shortened == 0


def test_the_longer_of_two_texts_is_cut(tiny_tasks: Path, task: Task) -> None:
    encoded = encode(tiny_tasks, task, plain("the film", "is good . " * 9), plain("film " * 20, "bad"), longest=10)
    assert encoded.shortened == 2
    assert words(tiny_tasks, encoded) == [
        "[CLS] the film [SEP] is good . is good [SEP]",
        "[CLS] film film film film film film [SEP] bad [SEP]",
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (0, 20, "[CLS] @ anna @ bad bad bad bad bad [SEP]"),
        (20, 0, "[CLS] good good good good good @ anna @ [SEP]"),
        (20, 20, "[CLS] good good @ anna @ bad bad bad [SEP]"),
        (1, 20, "[CLS] good @ anna @ bad bad bad bad [SEP]"),
        (20, 1, "[CLS] good good good good @ anna @ bad [SEP]"),
    ],
)
def test_a_sentence_is_cut_around_its_mention(
    before: int, after: int, expected: str, tiny_tasks: Path, task: Task
) -> None:
    sentence = "good " * before + "Anna" + " bad" * after
    shown, kept = marked(sentence, [Mark("@", 5 * before, 5 * before + 4)])
    encoded = encode(tiny_tasks, task, Example((shown,), "0", "x: record 1", kept), longest=10)
    assert words(tiny_tasks, encoded) == [expected]


def test_a_sentence_that_is_cut_within_a_word_keeps_its_markers(shared_data: Path, task: Task) -> None:
    """Half a word alone has other tokens, and more of them: a marker at the end must not be cut off for these."""
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "roberta-base")
    sentence = "antidisestablishmentarianism" * 4 + "10,000" + "über" * 9
    at = sentence.index("10,000")
    shown, kept = marked(sentence, [Mark("#", at, at + 6), Mark("$", at + 3, at + 4)])
    whole = tokenizer.backend_tokenizer.encode(shown)
    reaches = zip(whole.ids, whole.offsets, strict=True)
    inside = [token for token, (begin, end) in reaches if begin < kept[1] and end > kept[0]]
    for longest in range(len(inside) + 2, len(whole.ids)):
        example = Example((shown,), "0", "x: record 1", kept)
        ids = ExampleEncoder(tokenizer, longest, 1, shortens=True).encode(task, [example]).input_ids[0].tolist()
        assert (len(ids), ids[0], ids[-1]) == (longest, whole.ids[0], whole.ids[-1])
        assert inside in [ids[begin : begin + len(inside)] for begin in range(longest)]


def test_mentions_too_far_apart(tiny_tasks: Path, task: Task) -> None:
    shown, kept = marked("Anna " + "is " * 20 + "Ben", [Mark("#", 0, 4), Mark("$", 65, 68)])
    with pytest.raises(
        UserError, match=r"x: record 1: its mentions are 26 tokens apart, .* has 8; leave the record out"
    ):
        encode(tiny_tasks, task, Example((shown,), "0", "x: record 1", kept), longest=10)


def test_byte_level_tokens_keep_their_spaces(shared_data: Path, tiny_tasks: Path, task: Task) -> None:
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "roberta-base")
    shown, kept = marked("Anna lives in Rome, they say.", [Mark("@", 14, 18)])
    example = Example((shown,), "0", "x: record 1", kept)
    encoded = ExampleEncoder(tokenizer, 64, 1, shortens=False).encode(task, [example])
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[0].tolist()) == [
        *("<s>", "Anna", "Ġlives", "Ġin", "Ġ@", "ĠRome", "Ġ@", "Ġ,", "Ġthey", "Ġsay", ".", "</s>")
    ]
    longer = Example((shown + " Indeed" * 60,), "0", "x: record 1", kept)
    cut = ExampleEncoder(tokenizer, 8, 1, shortens=True).encode(task, [longer])
    assert len(cut.input_ids[0]) == 8
    assert " @ Rome @" in tokenizer.decode(cut.input_ids[0])


def test_targets(tiny_tasks: Path) -> None:
    typing, numbers = read_task(tiny_tasks, "typing"), read_task(tiny_tasks, "sts-b")
    assert encode(tiny_tasks, typing, *typing.train[2:4]).targets.tolist() == [[1, 0, 0], [0, 1, 1]]
    np.testing.assert_array_equal(encode(tiny_tasks, numbers, *numbers.train[:2]).targets, [0, 5])
