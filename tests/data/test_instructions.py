"""Records of instructions: four kinds, faulty ones counted, ids and targets, and what is held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from minillm.chat_templates import RAW, TEMPLATES, Message, chat_template
from minillm.data.instructions import (
    Instruction,
    encode_instruction,
    encode_prompt,
    held_out,
    parse_instruction,
    read_instructions,
    shortened,
    targets_of,
)
from minillm.errors import InputError
from minillm.tokenizers import BPETokenizer, CharacterTokenizer

TOKENS = sorted({token for template in TEMPLATES.values() for token in template.special_tokens})
TEXT = "Below is an instruction. Response:\nThe answer .memory is 5.\n\n### Input:\nuser\nassistant\n" * 3
TOKENIZER = BPETokenizer.train(TEXT, 256 + 90 + len(TOKENS) + 1, ("<|endoftext|>", *TOKENS))
USER, ASSISTANT, SYSTEM = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# Records


def test_kinds_are_told_apart_record_by_record(tmp_path):
    records = [
        {"instruction": "Add.", "input": "2, 3", "output": "5"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
        {"instruction": "Greet.", "input": None, "output": "Hi", "source": 7},
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "human", "value": "c"},
            ]
        },
        {"prompt": "2 + 3 =", "completion": " 5"},
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    ]
    expected = [
        Instruction((USER("Add."), Message("input", "2, 3"), ASSISTANT("5"))),
        Instruction((USER("Greet."), ASSISTANT("Hi"))),
        Instruction((USER("Greet."), ASSISTANT("Hi"))),
        Instruction((SYSTEM("S"), USER("a"), ASSISTANT("b"))),
        Instruction((USER("a"), ASSISTANT("b"))),  # nobody answers the last message
        Instruction((USER("2 + 3 ="), ASSISTANT(" 5")), raw=True),
        Instruction((USER("a"), ASSISTANT("b"))),
    ]
    lines = "\n".join(map(json.dumps, records)) + "\n\n"
    for name, text in (
        ("a.jsonl", lines),
        ("a.json", json.dumps(records, indent=4)),
        ("lines.json", lines),
        ("mark.jsonl", "\ufeff" + lines.replace("\n", "\r\n")),
        ("a.jsonl.gz", lines),
        ("a.json.gz", json.dumps(records)),
    ):
        found = read_instructions(written(tmp_path / name, text))
        assert found.items == expected
        assert found.problems == []
    assert read_instructions(tmp_path / "a.jsonl").places == [1, 2, 3, 4, 5, 6, 7]
    assert read_instructions(tmp_path / "a.json").places[:3] == [1, 2, 3]


BAD = [
    ({"instruction": "a"}, "there is no field 'output' among instruction"),
    ({"instruction": "a", "ouput": "b"}, "no field 'output'; did you mean 'ouput'?"),
    ({"instruction": 3, "output": "b"}, "the field 'instruction' is a int; give a text"),
    ({"instruction": "a", "input": ["x"], "output": "b"}, "the field 'input' is a list; give a text"),
    ({"instruction": "a", "output": " \n"}, "the field 'output' is empty, so there is nothing to learn"),
    ({"prompt": "a", "completion": ""}, "the field 'completion' is empty"),
    ({"prompt": "", "completion": "a"}, "the field 'prompt' is empty"),
    ({"prompt": "a"}, "there is no field 'completion' among prompt"),
    ({"text": "a"}, "the fields text are of no known kind; give instruction and output, messages"),
    ({"messages": []}, "the field 'messages' is empty; give a list"),
    ({"messages": "a"}, "the field 'messages' is no list"),
    ({"messages": ["a"]}, "message 0 of 'messages': it is a str"),
    ({"messages": [{"role": "user", "content": "a"}]}, "no assistant speaks in it"),
    ({"messages": [{"role": "usr", "content": "a"}]}, "message 0 of 'messages': there is no role 'usr'; give one of"),
    ({"messages": [{"role": "user"}]}, "message 0 of 'messages': there is no field 'content' among role"),
    ({"messages": [{"role": "assistant", "content": ""}]}, "message 0 of 'messages': the field 'content' is empty"),
    ({"conversations": [{"from": "human", "content": "a"}]}, "message 0 of 'conversations': there is no field 'value'"),
    ({"prompt": [{"role": "user", "content": "a"}]}, "the field 'completion' is no list"),
    (["a"], "this is a JSON list; give an object"),
]


@pytest.mark.parametrize(("record", "message"), BAD)
def test_a_faulty_record_is_named_and_left_out(tmp_path, record, message):
    good = {"instruction": "a", "output": "b"}
    found = read_instructions(written(tmp_path / "a.jsonl", f"{json.dumps(good)}\n\n{json.dumps(record)}\n"))
    assert len(found.items) == 1
    assert found.places == [1]
    [problem] = found.problems
    assert problem.startswith("line 3: ")
    assert message in problem
    assert "1 record; 1 left out (line 3: " in found.summary()
    with pytest.raises(InputError, match=r"a\.jsonl: its one record cannot be used; (line|record) 1: "):
        read_instructions(written(tmp_path / "a.jsonl", json.dumps(record)))


def test_a_faulty_record_of_an_array_has_its_number(tmp_path):
    """All records of such a file may stand on one line."""
    good = {"instruction": "a", "output": "b"}
    found = read_instructions(written(tmp_path / "a.json", json.dumps([good, good, {"output": "b"}, good])))
    assert (found.places, found.unit) == ([1, 2, 4], "record")
    assert [problem.partition(":")[0] for problem in found.problems] == ["record 3"]
    with pytest.raises(InputError, match=r"not JSON from line 1 on, after 2 whole records"):
        read_instructions(written(tmp_path / "b.json", f"[{json.dumps(good)}, {json.dumps(good)}, {{]"))


def test_what_is_no_record_at_all(tmp_path):
    good = json.dumps({"instruction": "a", "output": "b"})
    found = read_instructions(
        written(tmp_path / "a.jsonl", f'{{"instruction"\n{good}\n{{"instruction": "\\ud800", "output": "b"}}')
    )
    assert len(found.items) == 1
    assert "line 1: this is not JSON" in found.problems[0]
    assert "line 3: there is the lone surrogate U+D800 in it" in found.problems[1]
    for name, data, message in (
        ("empty.json", b"", "there are no records in it"),
        ("none.json", b"[]", "there are no records in it"),
        (
            "broken.json",
            f"[{good},\n{good}\n{good}]".encode(),
            r"is not JSON from line 3 on, after 2 whole records \(expected",
        ),
        ("cut.json", f"[{good},\n{good[:9]}".encode(), "is not JSON from line 2 on, after 1 whole records"),
        ("bytes.json", b"[\xff]", "byte 0xff at offset 1; text must be UTF-8"),
        ("bad.json.gz", b"abc", "cannot read"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_instructions(tmp_path / name)
    with pytest.raises(InputError, match=r"cannot read .*absent\.jsonl"):
        read_instructions(tmp_path / "absent.jsonl")


def test_the_real_file(shared_data):
    found = read_instructions(shared_data / "instruction-data.json")
    assert len(found.items) == 1100
    assert found.problems == []
    assert found.places[:3] == [1, 2, 3]


# Ids and targets


def supervised(example) -> list[int]:
    return example.targets[example.targets != -100].tolist()


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_with_their_end_are_learned_and_nothing_else(name):
    template = TEMPLATES[name]
    messages = USER("What is 2 + 3?"), ASSISTANT("5"), USER("Sure?"), ASSISTANT("The answer is 5.")
    example = encode_instruction(Instruction(messages), TOKENIZER, template)
    assert len(example.ids) == len(example.targets)
    whole = template.encode(TOKENIZER, messages, add_generation_prompt=False)
    assert example.ids.tolist() == whole[:-1]
    learned = example.targets != -100
    assert (example.targets[learned] == np.array(whole[1:])[learned]).all()  # shifted once
    text = TOKENIZER.decode(supervised(example))
    end = TOKENIZER.decode([template.stop_ids(TOKENIZER)[0]])
    assert text == {"llama2": f" 5 {end} The answer is 5. {end}"}.get(name, f"5{end}The answer is 5.{end}")
    # The first supervised id is the first that generation must produce after the ids that `chat` feeds.
    prompt = encode_prompt(Instruction(messages), TOKENIZER, template)
    assert prompt == template.encode(TOKENIZER, messages[:-1]) == example.ids[: len(prompt)].tolist()
    assert learned[len(prompt) - 1]


def test_an_end_that_the_data_has_already_is_not_doubled():
    for name, end in (("chatml", "<|im_end|>"), ("alpaca", "<|endoftext|>"), ("llama3", "<|eot_id|>")):
        plain, ended = (
            encode_instruction(Instruction((USER("a"), ASSISTANT(answer))), TOKENIZER, TEMPLATES[name])
            for answer in ("The", f"The{end}")
        )
        assert supervised(plain) == supervised(ended)
        assert supervised(plain).count(TOKENIZER.special_tokens[end]) == 1


def test_a_padding_token_that_is_the_end_keeps_its_label():
    tokenizer = BPETokenizer.train(TEXT, 300)
    tokenizer.name_special_tokens(pad_token="<|endoftext|>")
    assert tokenizer.pad_id == tokenizer.eos_id
    example = encode_instruction(Instruction((USER("a"), ASSISTANT("b"))), tokenizer, TEMPLATES["alpaca"])
    assert example.targets[-1] == tokenizer.eos_id


def test_merges_across_the_join_are_not_made():
    """The id of " answer" would stand for the end of the prompt and the start of the answer at once."""
    whole = TOKENIZER.encode("The answer")
    example = encode_instruction(
        Instruction((USER("The ans"), ASSISTANT("wer")), raw=True), TOKENIZER, TEMPLATES["alpaca"]
    )
    prompt = TOKENIZER.encode("The ans")
    assert whole[: len(prompt)] != prompt
    assert example.ids[: len(prompt)].tolist() == prompt
    assert supervised(example) == [*TOKENIZER.encode("wer"), TOKENIZER.eos_id]
    spaced = encode_instruction(Instruction((USER("answer "), ASSISTANT("is")), raw=True), TOKENIZER, RAW)
    assert supervised(spaced) == [*TOKENIZER.encode("is"), TOKENIZER.eos_id]


def test_an_input_stands_in_the_users_message_of_other_templates():
    given = Instruction((USER("Add."), Message("input", "2, 3"), ASSISTANT("5")))
    ids = encode_prompt(given, TOKENIZER, TEMPLATES["chatml"])
    assert TOKENIZER.decode(ids) == "<|im_start|>user\nAdd.\n\n2, 3<|im_end|>\n<|im_start|>assistant\n"
    assert "### Input:\n2, 3" in TOKENIZER.decode(encode_prompt(given, TOKENIZER, TEMPLATES["alpaca"]))


def test_a_tokenizer_without_an_end():
    tokenizer = CharacterTokenizer.train(TEXT + "#:,qwtTghpicontxA+ \nabcdefghijklmnopqrstuvwxyzW", special_tokens=())
    assert tokenizer.eos_id is None
    example = encode_instruction(Instruction((USER("a"), ASSISTANT("5"))), tokenizer, chat_template("alpaca"))
    assert tokenizer.decode(supervised(example)) == "5\n\n### "
    with pytest.raises(InputError, match="nothing ends an answer of the template 'raw', because the tokenizer has no"):
        encode_instruction(Instruction((USER("a"), ASSISTANT("5")), raw=True), tokenizer, RAW)


def test_cut_examples_without_an_answer_are_dropped():
    """A prompt as long as the limit leaves nothing to learn; with room for one id more, one id is learned."""
    ids, answers = np.arange(10), np.arange(10) >= 6
    example = targets_of(ids, answers)
    assert example.targets.tolist() == [-100] * 5 + [6, 7, 8, 9]
    assert shortened([example], 5)[0] == []
    numbers, [cut] = shortened([targets_of(ids[:7], answers[:7] & False), example], 6)
    assert numbers == [1]
    assert cut.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert cut.targets.tolist() == [-100] * 5 + [6]


# What is held out


def made(question: str, answer: str = "b") -> Instruction:
    return Instruction((USER(question), ASSISTANT(answer)))


def test_repeated_and_reformatted_questions_are_on_one_side():
    different = [made(f"Question number {i} of many") for i in range(200)]
    again = [made(f"  question NUMBER {i},\nof: many?!", f"another {i}") for i in range(200)]
    chosen = held_out([*different, *again], 0.1)
    assert (chosen[:200] == chosen[200:]).all()
    assert 36 <= chosen.sum() <= 44
    shuffled = np.random.default_rng(0).permutation(400)
    assert (held_out([[*different, *again][i] for i in shuffled], 0.1) == chosen[shuffled]).all()


def test_something_is_on_either_side():
    for count in (2, 3, 7):
        for fraction in (0.001, 0.5, 0.999):
            chosen = held_out([made(f"{i}") for i in range(count)], fraction)
            assert 0 < chosen.sum() < count
    with pytest.raises(InputError, match="all 3 records ask one thing"):
        held_out([made("a", answer) for answer in "xyz"], 0.1)
    with pytest.raises(InputError, match="the fraction is 1"):
        held_out([made("a"), made("b")], 1)


def test_the_question_is_what_comes_before_the_first_answer():
    long = Instruction((SYSTEM("S"), USER("a"), ASSISTANT("x"), USER("b"), ASSISTANT("y")))
    cut = Instruction((SYSTEM("S"), USER("a"), ASSISTANT("z")))
    others = [made(str(i)) for i in range(50)]
    chosen = held_out([long, cut, *others], 0.5)
    assert chosen[0] == chosen[1]


def test_kinds_without_a_file():
    with pytest.raises(InputError, match=r"the fields \(none\) are of no known kind"):
        parse_instruction({})
