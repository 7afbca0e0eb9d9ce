"""Written answers: in batches as alone, up to a stop string, and compared with all right answers."""

from __future__ import annotations

import pytest
from scored_models import TEXTS, small_gpt2

from minillm.errors import InputError
from minillm.evaluation.generation import Exercise, answers, exact, exercise_of
from minillm.generate import generate_text
from minillm.nn import Decoder
from minillm.tokenizers import BPETokenizer

BYTES = BPETokenizer.train(TEXTS, 320)
PROMPTS = [text[:end] for text in TEXTS for end in (4, 9, 17)]


def alone(model: Decoder, prompt: str, max_tokens: int, stop_strings: list[str]) -> str:
    """What `generate_text` writes, one token after the other."""
    return "".join(
        generate_text(model, BYTES, prompt, max_tokens, stop=[BYTES.eos_id], stop_strings=stop_strings, temperature=0)
    )


@pytest.mark.parametrize("stop_strings", [[], ["a", "é"], ["\n"]])
def test_answers_are_those_of_each_prompt_alone(stop_strings: list[str]) -> None:
    model = small_gpt2(BYTES.vocab_size, context=64)
    expected = [alone(model, prompt, 20, stop_strings) for prompt in PROMPTS]
    assert len(set(expected)) > 6
    for batch_tokens in (1, 100, 5000):
        assert answers(model, BYTES, PROMPTS, 20, stop_strings, batch_tokens) == (expected, 0)


def test_an_answer_ends_before_a_stop_string_even_if_that_spans_tokens() -> None:
    model = small_gpt2(BYTES.vocab_size, context=64)
    [whole], _ = answers(model, BYTES, ["The cat"], 20, [])
    for start in range(1, len(whole) - 3):
        stop = whole[start : start + 3]
        [written], _ = answers(model, BYTES, ["The cat"], 20, [stop])
        assert written == whole[: whole.index(stop)]


def test_a_prompt_that_is_too_long_loses_its_beginning() -> None:
    model = small_gpt2(BYTES.vocab_size, context=24)
    ids = BYTES.encode(TEXTS[1])
    written, cut = answers(model, BYTES, [TEXTS[1], "The"], 8, [])
    assert len(ids) > 16
    assert cut == 1
    assert written == [alone(model, ids[-16:], 8, []), alone(model, "The", 8, [])]
    with pytest.raises(InputError, match="max_tokens=24; give 1 to 23, since the model's context is 24"):
        answers(model, BYTES, ["The"], 24)
    with pytest.raises(InputError, match="prompt 1 has no tokens"):
        answers(model, BYTES, ["The", ""], 4)


def test_measures_take_the_best_of_the_right_answers() -> None:
    model = small_gpt2(BYTES.vocab_size, context=64)
    written, _ = answers(model, BYTES, PROMPTS[:4], 12, [])
    exercises = [
        Exercise(PROMPTS[0], ("nothing like it", f" {written[0]} ")),  # equal but for white space
        Exercise(PROMPTS[1], (f"The {written[1].upper()}!",)),  # equal after normalisation
        Exercise(PROMPTS[2], (f"{written[2]} and more words",)),  # shares words
        Exercise(PROMPTS[3], ("nothing",)),
    ]
    found = exact(model, BYTES, exercises, 12, [])
    assert found.written == written
    assert found.measures["exact_match"].value == 0.25
    assert found.measures["squad_exact"].value == 0.5
    assert 0.5 < found.measures["f1"].value < 1
    for measure in found.measures.values():
        assert measure.low <= measure.value <= measure.high
        assert measure.denominator == 4


def test_records() -> None:
    assert exercise_of({"prompt": "2 + 2 =", "answer": "4"}) == Exercise("2 + 2 =", ("4",))
    assert exercise_of({"question": "2 + 2 =", "answers": ["4", "four"]}) == Exercise("2 + 2 =", ("4", "four"))
    for record, message in (
        ({"answer": "4"}, "prompt .* is None"),
        ({"prompt": "", "answer": "4"}, "prompt .* is ''"),
        ({"prompt": "2"}, "answer is None"),
        ({"prompt": "2", "answer": []}, r"answer is \[\]"),
        ({"prompt": "2", "answer": [4]}, r"answer is \[4\]"),
    ):
        with pytest.raises(InputError, match=message):
            exercise_of(record)
