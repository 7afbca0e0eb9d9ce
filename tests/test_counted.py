"""A number has the noun that fits it, alone and in what commands say."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minillm import ops, study
from minillm.autograd import Tensor
from minillm.cli import main
from minillm.counted import counted
from minillm.data.instructions import parse_instruction
from minillm.data.records import read_records
from minillm.training.speed import in_words


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "record"), "1 record"),
        ((0, "record"), "0 records"),
        ((1024, "record"), "1,024 records"),
        ((2, "box", "boxes"), "2 boxes"),
        ((1, "box", "boxes"), "1 box"),
        ((1, "operation keeps", "operations keep"), "1 operation keeps"),
        ((np.int64(1), "row"), "1 row"),
    ],
)
def test_a_number_with_its_noun(arguments, text) -> None:
    assert counted(*arguments) == text


def test_pictures_and_tables_of_one(capsys) -> None:
    loss = ops.exp(Tensor(np.zeros(1, np.float32), requires_grad=True))
    graph = study.graph(loss)
    assert repr(graph).startswith("a graph of 2 boxes and 1 arrow; ")
    assert "The graph of a loss: 2 boxes, 1 arrow<" in graph.svg
    assert repr(study.table(loss)).endswith(
        "1 operation keeps 4 bytes for the backward, which gives 1 leaf its gradient"
    )


def test_records_of_one(tmp_path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert read_records(path, parse_instruction).summary() == "1 record"


def test_seconds_of_one() -> None:
    assert in_words(1.2) == "1 second"
    assert in_words(2.2) == "2 seconds"


def test_tokens_of_one(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["step", "nano", "--text", "a"])
    assert "has 1 token; give a longer one" in capsys.readouterr().err
