"""Accuracy, precision, recall and F1 beside plain counts; BLEU beside sacrebleu's."""

from __future__ import annotations

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.evaluation.bleu import bleu
from minillm.evaluation.classification import classification_scores, confusion


def test_scores_equal_plain_counts(rng) -> None:
    names = ("red", "green", "blue", "never")
    there = rng.integers(0, 3, 200)
    said = np.where(rng.random(200) < 0.6, there, rng.integers(0, 3, 200))
    there[:5] = -100
    scores = classification_scores(said, there, names)
    pairs = [(a, b) for a, b in zip(said, there, strict=True) if b >= 0]
    assert scores["accuracy"].value == pytest.approx(sum(a == b for a, b in pairs) / 195)
    assert scores["accuracy"].method == "wilson"
    each = []
    for number, name in enumerate(names[:3]):
        both = sum(a == b == number for a, b in pairs)
        precision = both / sum(a == number for a, _ in pairs)
        recall = both / sum(b == number for _, b in pairs)
        each.append(2 * precision * recall / (precision + recall))
        assert scores[f"precision of {name}"].value == pytest.approx(precision)
        assert scores[f"recall of {name}"].value == pytest.approx(recall)
        assert scores[f"f1 of {name}"].value == pytest.approx(each[-1])
    assert scores["f1 of never"].value == 0
    assert scores["macro_f1"].value == pytest.approx(np.mean(each))  # without the class that never occurs
    for measure in scores.values():
        assert measure.low <= measure.value <= measure.high
        assert measure.items == 195
    assert 0.05 < scores["f1 of red"].high - scores["f1 of red"].low < 0.3
    table = confusion(said, there, 4)
    assert table.sum() == 195
    assert all(table[k, j] == sum((a, b) == (j, k) for a, b in pairs) for k in range(4) for j in range(4))


def test_what_cannot_be_counted_is_refused() -> None:
    for said, there, message in (
        ([0, 1], [0], r"predictions have shape \(2,\) and classes \(1,\)"),
        ([0, 2], [0, 1], "predictions go beyond the 2 classes"),
        ([0, 1], [0, -1], "classes go beyond the 2 classes"),
        ([], [], "there are no texts to count"),
    ):
        with pytest.raises(InputError, match=message):
            classification_scores(np.array(said, int), np.array(there, int), ("a", "b"))


def test_bleu_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    references = ["the cat sat on the mat .", "a dog barks at the moon", "It's 5 o'clock, isn't it?", "yes"] * 5
    translations = ["the cat sat on a mat .", "a dog barks at a big moon", "It is 5 o'clock, isn't it?", "no"] * 5
    found = bleu(translations, references)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(translations, [references]).score)
    assert 0 < found.low < found.value < found.high < 100
    with pytest.raises(InputError, match="bleu: there are 1 translations for 20 references"):
        bleu(["x"], references)
