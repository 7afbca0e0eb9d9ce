"""Pairs of answers: kinds of records, faulty ones counted, ids, and what is cut or left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minillm.chat_templates import TEMPLATES, Message, chat_template
from minillm.data.instructions import Example, Instruction
from minillm.data.preferences import (
    PairExample,
    encode_preference,
    pad_examples,
    parse_preference,
    read_preferences,
    shortened_pairs,
)
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer

TOKENS = sorted({token for template in TEMPLATES.values() for token in template.special_tokens})
TEXT = "Below is an instruction. Response:\nThe answer .memory is 5.\n\n### Input:\nuser\nassistant\n" * 3
TOKENIZER = BPETokenizer.train(TEXT, 256 + 90 + len(TOKENS) + 1, ("<|endoftext|>", *TOKENS))
USER, ASSISTANT = (lambda text, role=role: Message(role, text) for role in ("user", "assistant"))


def said(*contents: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn, as JSON."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def pair(asked: tuple[Message, ...], chosen: str, rejected: str, raw: bool = False) -> tuple[Instruction, Instruction]:
    return Instruction((*asked, ASSISTANT(chosen)), raw), Instruction((*asked, ASSISTANT(rejected)), raw)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"instruction": "Add.", "input": "2, 3", "output": "unused", "chosen": "5", "rejected": "Five, fool"},
            pair((USER("Add."), Message("input", "2, 3")), "5", "Five, fool"),
        ),
        ({"instruction": "Greet.", "input": "", "chosen": "a", "rejected": "b"}, pair((USER("Greet."),), "a", "b")),
        ({"prompt": "2 + 3 =", "chosen": " 5", "rejected": " 6"}, pair((USER("2 + 3 ="),), " 5", " 6", raw=True)),
        ({"prompt": said("a"), "chosen": "b", "rejected": "c"}, pair((USER("a"),), "b", "c")),
        ({"prompt": "a", "chosen": said("", "b")[1:], "rejected": said("", "c")[1:]}, pair((USER("a"),), "b", "c")),
        (
            {"prompt": said("a", "b", "c"), "chosen": said("", "d")[1:], "rejected": said("", "e")[1:]},
            pair((USER("a"), ASSISTANT("b"), USER("c")), "d", "e"),
        ),
        ({"chosen": said("a", "b"), "rejected": said("a", "c")}, pair((USER("a"),), "b", "c")),
    ],
)
def test_kinds_of_records(record: dict, expected: tuple) -> None:
    assert parse_preference(record) == expected


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "a", "chosen": "b"}, "there is no field 'rejected'"),
        ({"instruction": "a", "chosen": "b", "rejected": " "}, "the field 'rejected' is empty"),
        ({"instruction": "a", "chosen": "b", "rejected": 3}, "the field 'rejected' is a int"),
        ({"instruction": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
        (
            {"instruktion": "a", "chosen": "b", "rejected": "c"},
            "the fields instruktion, chosen, rejected have no prompt",
        ),
        ({"chosen": said("a", "b"), "rejected": said("x", "c")}, "differ before their last messages"),
        ({"chosen": said("a", "b"), "rejected": said("a")}, "the last message of 'rejected' is by user"),
        ({"chosen": said("", "b")[1:], "rejected": said("", "c")[1:]}, "the field 'chosen' has an answer alone"),
        ({"chosen": said("a", "b"), "rejected": [{"role": "judge", "content": "c"}]}, "there is no role 'judge'"),
    ],
)
def test_faulty_records_are_left_out_and_counted(record: dict, message: str, tmp_path) -> None:
    with pytest.raises(InputError, match=message):
        parse_preference(record)
    good = {"instruction": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "pairs.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(record)}\n")
    found = read_preferences(tmp_path / "pairs.jsonl")
    assert len(found.items) == 1
    assert found.summary().startswith("1 record; 1 left out (line 2: ")
    (tmp_path / "none.jsonl").write_text(json.dumps(record))
    with pytest.raises(InputError, match="its one record cannot be used; line 1: "):
        read_preferences(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_targets_are_the_last_answers_and_their_end(name: str) -> None:
    template = chat_template(name)
    turns = () if name == "alpaca" else ("x .", "first answer", "y")
    asked = said(*turns) if turns else said("Instruction.")
    record = {"prompt": asked, "chosen": "memory is better", "rejected": "worse"}
    found = encode_preference(parse_preference(record), TOKENIZER, template)
    prompt = template.encode(TOKENIZER, [Message(one["role"], one["content"]) for one in asked])
    ends = set(template.stop_ids(TOKENIZER))
    for (ids, targets), answer in zip(found, ("memory is better", "worse"), strict=True):
        assert ids[: len(prompt)].tolist() == prompt
        assert (targets[: len(prompt) - 1] == -100).all()  # the first answer too
        learned = targets[targets != -100].tolist()
        assert TOKENIZER.decode(learned).strip().startswith(answer)
        assert learned[0] == TOKENIZER.encode(answer)[0] or name == "llama2"  # which begins an answer with a space
        assert learned[-1] in ends
        np.testing.assert_array_equal(targets[len(prompt) - 1 : -1], ids[len(prompt) :])


def example(prompt: int, answer: int) -> Example:
    ids = np.arange(1, prompt + answer + 1)
    return Example(ids[:-1], np.where(np.arange(len(ids) - 1) >= prompt - 1, ids[1:], -100))


@pytest.mark.parametrize(
    ("prompt", "answers", "left"),
    [
        (7, (5, 5), (1, 1)),  # one token fits
        (8, (5, 5), None),  # the prompt alone reaches 8
        (9, (1, 1), None),
        (3, (2, 20), (2, 5)),
        (3, (20, 2), (5, 2)),
        (7, (1, 20), (1, 1)),
        (2, (1, 1), (1, 1)),
    ],
)
def test_long_pairs_keep_their_start_or_go(prompt: int, answers: tuple[int, int], left: tuple | None) -> None:
    kept, pairs = shortened_pairs(
        [PairExample(*(example(prompt, n) for n in answers)), PairExample(*[example(2, 2)] * 2)], 8
    )
    assert kept == ([0, 1] if left else [1])
    if left:
        assert tuple(int((one.targets != -100).sum()) for one in pairs[0]) == left
        assert all(len(one.ids) < 8 for one in pairs[0])
        whole = example(prompt, answers[1])
        np.testing.assert_array_equal(pairs[0].rejected.ids, whole.ids[: len(pairs[0].rejected.ids)])


def test_padding_is_told_by_length_and_not_by_an_id() -> None:
    """The padding id is the id that ends both answers, and that end is learned."""
    end = 9
    examples = [
        Example(np.array([1, 2]), np.array([2, end])),
        Example(np.array([end, 3, 4, 5]), np.array([3, 4, 5, end])),
    ]
    ids, targets, lengths = pad_examples(examples, padding=end)
    assert ids.tolist() == [[1, 2, end, end], [end, 3, 4, 5]]
    assert targets.tolist() == [[2, end, -100, -100], [3, 4, 5, end]]
    assert lengths.tolist() == [2, 4]


def test_the_real_file(shared_data) -> None:
    found = read_preferences(shared_data / "preference-data.json")
    assert len(found.items) == 1094
    assert found.summary().startswith("1,094 records; 6 left out (record ")
    assert "chosen and rejected are the same" in found.problems[0]
