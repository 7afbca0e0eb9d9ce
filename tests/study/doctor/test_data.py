"""Faults of data: text that repeats, is tiny, constant or wrongly decoded; records that are empty, cut or one-sided."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.models.gpt2 import GPT2Config
from minillm.study.doctor import case_of
from minillm.tokenizers import CharacterTokenizer, WordPieceTokenizer
from tests.study.doctor.made import found, prepared, prose, settings, write


def of_text(folder: Path, text: str, **changes: Any) -> dict[str, Any]:
    """What is found in a training on this text."""
    path = folder / "faulty.txt"
    path.write_text(text)
    return found(*case_of(dataclasses.replace(settings("gpt2", folder), data=str(path), **changes)))


def of_records(name: str, folder: Path, records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What is found in a training on these records."""
    path = write(folder / "faulty.jsonl", records)
    return found(*case_of(settings(name, folder, data=str(path), **changes)))


TEXT = "\n\n".join(prose(11, 700))
HALF = "\n\n".join(prose(12, 300))
OTHER = "\n\n".join(prose(13, 300))
TABLE = "".join(f"{i},{one[:20]},{i * 7919 % 1000}\n" for i, one in enumerate(prose(18, 900)))


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        (HALF * 4 + OTHER, "duplicates", "of the training text is a copy of something before it"),
        (TEXT + TEXT[:4000], "validation-overlap", "of the validation text stands in the training text too"),
        (TABLE, "not-prose", "looks like a table: nearly every line has 2 commas, such as '"),
        (TABLE.replace(",", "\t"), "not-prose", "looks like a table: nearly every line has 2 tabs"),
        (
            json.dumps([{"text": one, "number": i} for i, one in enumerate(prose(17, 700))]),
            "not-prose",
            "looks like JSON",
        ),
        ("the cat sat on the mat. " * 2000, "constant-text", "the training text says the same again and again"),
        (TEXT[:700], "tiny-data", "batches are all there is"),
        (TEXT.replace("e", "\u00c3\u00a9"), "wrong-encoding", "are what UTF-8 looks like when it is read as another"),
    ],
)
def test_text_that_teaches_little_is_found(text, name, sentence, folder) -> None:
    finding = of_text(folder, text)[name]
    assert finding.is_alarm
    assert sentence in finding.cause


def test_a_table_of_texts_is_known_by_its_name(folder) -> None:
    """Its texts have commas of their own."""
    rows = "".join(f'{i},"{one.replace(" ", ", ")}"\n' for i, one in enumerate(prose(19, 700)))
    (folder / "texts.csv").write_text(rows)
    (folder / "texts.txt").write_text(rows)
    for name, told in (("texts.csv", True), ("texts.txt", False)):
        config = dataclasses.replace(settings("gpt2", folder), data=str(folder / name))
        assert ("not-prose" in found(*case_of(config))) == told


def test_a_text_of_one_token_is_told_in_one_sentence(folder) -> None:
    findings = of_text(folder, "a" * 50_000, tokenizer="char", model=GPT2Config.preset("nano"))
    assert [one.name for one in findings.values() if one.is_alarm] == ["one-token"]
    assert "the training text is one token, repeated 45,000 times" in findings["one-token"].cause


@pytest.mark.parametrize(
    "text", [TEXT, TEXT.replace(" ", ", "), TEXT.replace(". ", ".\n"), "x = {'a': 1, 'b': 2}\n" * 30 + TEXT]
)
def test_prose_and_programs_are_no_table(text, folder) -> None:
    assert "not-prose" not in of_text(folder, text)


def test_text_that_the_tokenizer_does_not_know_is_found(folder) -> None:
    WordPieceTokenizer.train("the cat sat on the mat", 60).save(folder / "wordpiece")
    finding = of_text(folder, TEXT, tokenizer=str(folder / "wordpiece"))["unknown-tokens"]
    assert finding.severity == "error"
    assert "of the training tokens are '[UNK]', the token for what the tokenizer does not know" in finding.cause


def test_a_vocabulary_that_the_text_does_not_use_is_found(folder) -> None:
    CharacterTokenizer.train("".join(map(chr, range(33, 900))) + TEXT).save(folder / "characters")
    finding = of_text(folder, TEXT, tokenizer=str(folder / "characters"))["unused-vocabulary"]
    assert "tokens; the others are never learned" in finding.cause


def test_ids_that_the_model_lacks_are_found(folder) -> None:
    """Tokens of another tokenizer: 400 is no row of a table of 290."""
    task, model, _ = prepared("gpt2", folder)
    train = task.corpus.train.copy()
    train[7] = 400
    task.corpus = task.corpus._replace(train=train)
    finding = found(task, model)["ids-out-of-range"]
    assert finding.cause == "the data has the token id 400, but the model has the ids 0 to 289"


def test_a_text_that_begins_twice_is_found(folder) -> None:
    task, model, _ = prepared("roberta", folder)
    begin, old = task.tokenizer.bos_id, task.batch

    def batch(step: int, model: Any = None) -> dict[str, np.ndarray]:
        made = old(step, model)
        made["ids"][:, :2] = begin
        return made

    task.batch = batch
    assert "100% of the rows begin with two tokens '<s>'" in found(task, model)["doubled-begin"].cause


def test_a_padding_token_that_ends_texts_is_told(folder) -> None:
    task, model, _ = prepared("dpo", folder)
    task.tokenizer.name_special_tokens(pad_token="<|endoftext|>")
    finding = found(task, model)["padding-is-end"]
    assert finding.severity == "note"
    assert "here padding is told by the lengths, so ends are learned" in finding.cause


SAY = [{"instruction": f"say {one}", "output": f"well, {one}"} for one in prose(14, 60)]
LONG = [{"instruction": " ".join(prose(number, 12)), "output": "yes, it is"} for number in range(60)]
BOTH = [{"prompt": f"{one}:", "chosen": "good day to you", "rejected": "no"} for one in prose(15, 60)]


@pytest.mark.parametrize(
    ("name", "records", "wanted", "sentence"),
    [
        (
            "sft",
            [*SAY, *({**one, "output": " "} for one in SAY[:20])],
            "empty-answers",
            "20 of 80 records have an empty",
        ),
        ("sft", [*SAY, *({"question": "?"} for _ in range(9))], "left-out", "9 of 69 records cannot be used"),
        ("sft", [*SAY[:30], *LONG], "too-long", "records are cut to the longest length"),
        ("sft", [*SAY, *SAY[:25] * 2], "duplicates", "one comes 3 times"),
        ("sft", SAY[:9], "tiny-data", "there are 9 different records"),
        ("dpo", BOTH, "length-bias", "the chosen answer is the longer one in 100% of 60 pairs"),
        ("reward", BOTH, "length-bias", "length alone tells them apart"),
    ],
)
def test_faulty_records_are_found(name, records, wanted, sentence, folder) -> None:
    finding = of_records(name, folder, records)[wanted]
    assert finding.is_alarm
    assert sentence in finding.cause


def test_answers_of_one_token_are_found(folder) -> None:
    task, model, _ = prepared("sft", folder, packing=False)
    task.examples = [
        one._replace(targets=np.where(np.arange(len(one.targets)) == len(one.targets) - 1, one.targets, -100))
        for one in task.examples
    ]
    assert "100% of the answers have one token with their end" in found(task, model)["empty-answers"].cause


def labelled(*labels: str) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in zip(prose(16, len(labels)), labels, strict=True)]


def test_classes_that_are_out_of_balance_are_found(folder) -> None:
    finding = of_records("classify", folder, labelled(*["good"] * 190, *["bad"] * 10))["label-imbalance"]
    assert "training texts are 'good': a model that always says so is right for 9" in finding.cause


def test_a_class_without_a_text_is_found(folder) -> None:
    config = settings("classify", folder)
    model = dataclasses.replace(config.model, labels=3, label_names=("bad", "fair", "good"))
    findings = found(*case_of(dataclasses.replace(config, model=model)))
    assert "1 of 3 classes have no training text, the first of them 'fair'" in findings["label-missing"].cause


def test_texts_with_two_classes_are_found(folder) -> None:
    records = labelled(*["good", "bad"] * 40)
    records += [{**one, "label": "bad" if one["label"] == "good" else "good"} for one in records[:10]]
    assert (
        "10 of 80 texts stand in the data with two classes"
        in of_records("classify", folder, records)["label-conflict"].cause
    )


def test_prompts_that_are_too_long_for_answers_are_found(folder) -> None:
    records = [{"prompt": f"{number}+{number}=", "completion": str(2 * number)} for number in range(60)]
    records += [{"prompt": "1+" * 40 + f"{number}=", "completion": "9"} for number in range(12)]
    assert "12 are dropped because nothing to learn is left" in of_records("grpo", folder, records)["too-long"].cause
