"""`minillm finetune translate`: pairs of texts from a preset or a trained BART, measured by BLEU at the end."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from minillm.cli import main
from minillm.models.bart import Bart
from minillm.resolver import open_model

ENGLISH = ("red", "green", "small", "big", "old", "house", "tree", "car", "dog", "bird")
GERMAN = ("rot", "grün", "klein", "groß", "alt", "Haus", "Baum", "Auto", "Hund", "Vogel")
WORDS = (
    "--steps 150 --eval-every 150 --lr 5e-3 --vocab-size 330 --sample-every 150 --threads 1 --batch-tokens 1500".split()
)


@pytest.fixture
def pairs(tmp_path: Path) -> list[str]:
    """The options with two files of sentences that differ in one word."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 10, 400)
    for name, sentence, words in (("en", "this here is now {} .", ENGLISH), ("de", "das hier ist nun {} .", GERMAN)):
        lines = [sentence.format(words[i]) for i in rows]
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return ["--data", str(tmp_path / "en"), "--targets", str(tmp_path / "de")]


def bleu_in(output: str) -> float:
    [found] = re.findall(r"BLEU of the best checkpoint on 12 held-out pairs, greedily: ([\d.]+) \(95%", output)
    return float(found)


def test_it_learns_from_nothing_and_goes_on_from_there(pairs, tmp_path, capsys) -> None:
    pytest.importorskip("sacrebleu")
    main(["finetune", "translate", "bart-nano", *pairs, *WORDS, "--out", str(tmp_path / "one")])
    output = capsys.readouterr().out
    first = bleu_in(output)
    assert first > 30
    assert any(word in output for word in GERMAN)  # in the preview
    opened = open_model(tmp_path / "one")
    assert type(opened.model) is Bart
    assert opened.run is not None
    assert opened.run.config.lr == 5e-3
    main(["convert", str(tmp_path / "one"), str(tmp_path / "theirs")])
    capsys.readouterr()
    still = ["--steps", "1", "--eval-every", "1", "--warmup", "0", "--lr", "0", "--min-lr", "0", "--sample-every", "0"]
    for number, path in enumerate(("one", "theirs")):  # a run of ours, and the same as Hugging Face's files
        main(["finetune", "translate", str(tmp_path / path), *pairs, *still, "--out", str(tmp_path / f"again{number}")])
        assert bleu_in(capsys.readouterr().out) == pytest.approx(first)


def test_what_is_missing_is_said(pairs, capsys) -> None:
    for words, message in (
        (["translate"], "finetune translate: MODEL is missing"),
        (["translate", "bart-nano"], "finetune translate: --data is missing"),
        (["translate", "bert-nano", *pairs], "does not train a model of the family bert"),
        (["translate", "bart-nano", *pairs[:2]], "alone holds no pairs; give the file of the targets with --targets"),
    ):
        with pytest.raises(SystemExit):
            main(["finetune", *words])
        assert message in capsys.readouterr().err
