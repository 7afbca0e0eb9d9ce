"""Log-likelihoods against plain loops: which ids are scored, from which context, however they are batched."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scored_models import TEXTS, small_gpt2, uniform_gpt2

from minillm.autograd import no_grad
from minillm.errors import InputError
from minillm.evaluation.likelihood import (
    Window,
    document_likelihoods,
    encode_pair,
    log_likelihoods,
    pair_window,
    prefix_id,
    rolling_windows,
    window_scores,
)
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.llama import Llama, LlamaConfig
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, UnigramTokenizer

BYTES = BPETokenizer.train(TEXTS, 320)


def slow_log_probabilities(model, inputs: list[int], targets: list[int]) -> tuple[float, bool]:
    """The sum over targets of log softmax in float64, one text at a time."""
    with no_grad():
        logits = model(np.array([inputs])).data[0].astype(np.float64)[-len(targets) :]
    logits -= logits.max(axis=-1, keepdims=True)
    chosen = logits[np.arange(len(targets)), targets] - np.log(np.exp(logits).sum(axis=-1))
    return float(chosen.sum()), bool((logits.argmax(axis=-1) == targets).all())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma"])
def test_windows_of_all_lengths_together_equal_each_alone(family: str, rng: np.random.Generator) -> None:
    if family == "gpt2":
        model = small_gpt2(40)
    elif family == "llama":
        model = Llama(LlamaConfig(40, 24, 2, 4, 2, 16, 24)).eval()
    else:
        model = Gemma(GemmaConfig.preset("nano")).eval()
    for parameter in model.parameters():
        parameter.data[...] += rng.normal(0, 0.2, parameter.shape)
    windows = []
    for _ in range(30):
        inputs = rng.integers(0, 40, rng.integers(1, 24)).tolist()
        windows.append(Window(inputs, rng.integers(0, 40, rng.integers(1, len(inputs) + 1)).tolist()))
    windows += [Window(one.inputs[: 1 + len(one.inputs) // 2], [3]) for one in windows[:10]]  # these begin others
    windows += windows[:3]
    expected = [slow_log_probabilities(model, *window) for window in windows]
    for batch_tokens in (1, 60, 10_000):
        found = window_scores(model, windows, batch_tokens)
        np.testing.assert_allclose([one[0] for one in found], [one[0] for one in expected], rtol=2e-6)
        assert [one[1] for one in found] == [one[1] for one in expected]


def test_is_greedy_is_true_for_what_the_model_writes() -> None:
    model, ids = small_gpt2(40), [5]
    for _ in range(6):
        with no_grad():
            ids.append(int(model(np.array([ids])).data[0, -1].argmax()))
    assert window_scores(model, [Window(ids[:-1], ids[1:])])[0][1] is True
    ids[-1] = (ids[-1] + 1) % 40
    assert window_scores(model, [Window(ids[:-1], ids[1:])])[0][1] is False


def test_a_row_that_begins_another_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = small_gpt2(40), []
    features = type(model).features
    monkeypatch.setattr(type(model), "features", lambda self, ids: rows.append(ids.shape) or features(self, ids))
    question = [1, 2, 3]
    window_scores(model, [Window(question, [choice]) for choice in (4, 5, 6)] + [Window([1, 2], [3])])
    assert rows == [(1, 3)]


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    window_scores(small_gpt2(40), [Window([i], [1]) for i in range(9)], 2, lambda *done: seen.append(done))
    assert seen[-1] == (9, 9)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_rolling_windows_score_each_id_once_with_the_context_that_stride_promises(length, window, data) -> None:
    stride = data.draw(st.integers(1, window))
    ids, prefix = list(range(1, length + 1)), 0
    scored: list[int] = []
    for number, (inputs, targets) in enumerate(rolling_windows(ids, prefix, window, stride)):
        assert 1 <= len(targets) <= len(inputs) <= window
        assert inputs[-len(targets) + 1 :] == targets[:-1] or len(targets) == 1
        assert inputs[-1] == targets[-1] - 1  # the id before, or the prefix: ids are 1, 2, ...
        assert number == 0 or inputs.index(targets[0] - 1) >= window - stride
        scored += targets
    assert scored == ids


def test_each_document_is_scored_apart() -> None:
    model = small_gpt2(BYTES.vocab_size)
    together = document_likelihoods(model, BYTES, TEXTS)
    alone = [document_likelihoods(model, BYTES, [text])[0] for text in TEXTS]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    backwards = document_likelihoods(model, BYTES, TEXTS[::-1])[::-1]
    for a, b in zip(together, backwards, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_document_longer_than_the_context_equals_a_loop_over_its_ids() -> None:
    """The context of id i is what its window holds: windows are cut anew every 8 ids."""
    model, ids = small_gpt2(BYTES.vocab_size, context=8), BYTES.encode(TEXTS[3])
    [found] = document_likelihoods(model, BYTES, [TEXTS[3]])
    assert len(ids) > 16
    assert len(ids) % 8
    everything = [BYTES.eos_id, *ids]
    expected = []
    for i in range(len(ids)):
        last = i >= len(ids) - len(ids) % 8  # the last window is moved back, so as to be full
        start = len(ids) - 8 if last else i - i % 8
        expected.append(slow_log_probabilities(model, everything[start : i + 1], [ids[i]])[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_more_context_costs_no_id_and_stride_1_uses_a_full_window() -> None:
    model, ids = small_gpt2(BYTES.vocab_size, context=8), BYTES.encode(TEXTS[3])
    [found] = document_likelihoods(model, BYTES, [TEXTS[3]], stride=1)
    everything = [BYTES.eos_id, *ids]
    expected = [slow_log_probabilities(model, everything[max(0, i - 7) : i + 1], [ids[i]])[0] for i in range(len(ids))]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Texts to ids


def test_white_space_at_the_end_of_the_context_moves_to_the_continuation() -> None:
    whole = BYTES.encode("The cat sat")
    context = BYTES.encode("The cat")
    for pair in (("The cat", " sat"), ("The cat ", "sat")):
        assert encode_pair(BYTES, *pair, BYTES.eos_id) == (context, whole[len(context) :])
    before, after = encode_pair(BYTES, "The cat \n ", "sat", BYTES.eos_id)
    assert before == context
    assert BYTES.decode(after) == " \n sat"


def test_ids_are_those_of_the_whole_text() -> None:
    """Encoded apart, a continuation has other ids: this is the opposite of the rule for training on answers."""
    tokenizer = BPETokenizer.train(["ab " * 30], 258)  # one merge
    before, after = encode_pair(tokenizer, "xa", "bcc", tokenizer.eos_id)
    assert before == tokenizer.encode("xa")
    assert after == tokenizer.encode("xabcc")[2:] == tokenizer.encode("cc")
    assert after != tokenizer.encode("bcc")


@pytest.mark.parametrize("text", ["naïve café", "Zoë sah die Höhle", "the cat"])
def test_sentencepiece_pairs_join_to_the_text(text: str) -> None:
    tokenizer = UnigramTokenizer.train(TEXTS, 90, ("<s>",), byte_fallback=False)
    tokenizer.name_special_tokens(bos_token="<s>")
    for end in (" ", ""):
        before, after = encode_pair(tokenizer, f"The dog,{end}", text if end else f" {text}", tokenizer.bos_id)
        assert tokenizer.encode(f"The dog, {text}") == before + after
        assert before == tokenizer.encode("The dog,")


def test_special_tokens_before_a_text_come_before_the_context_and_are_never_scored() -> None:
    tokenizer = BPETokenizer.train(TEXTS, 300, ("<s>", "</s>"))
    tokenizer.around = (["<s>"], ["</s>"])
    start, end = (tokenizer.special_tokens[token] for token in ("<s>", "</s>"))
    assert prefix_id(small_gpt2(300), tokenizer) == start
    before, after = encode_pair(tokenizer, "The cat", " sat", start)
    assert before == [start, *tokenizer.encode("The cat")]
    assert end not in after
    assert encode_pair(tokenizer, "", "The cat", start) == ([start], tokenizer.encode("The cat"))
    model = small_gpt2(tokenizer.vocab_size)
    [found] = document_likelihoods(model, tokenizer, [TEXTS[0]])
    assert len(found) == len(tokenizer.encode(TEXTS[0]))


def test_an_empty_context_is_the_prefix_and_so_is_one_of_white_space() -> None:
    ids = BYTES.encode(" sat")
    assert encode_pair(BYTES, "", " sat", BYTES.eos_id) == ([BYTES.eos_id], ids)
    assert encode_pair(BYTES, " ", "sat", BYTES.eos_id) == ([BYTES.eos_id], ids)
    ids = BYTES.encode(" sat on")
    assert encode_pair(BYTES, "", " sat on", ids[0]) == (ids[:1], ids[1:])  # it begins with the prefix already


def test_without_a_prefix_the_first_id_is_drawn_from_all_alike() -> None:
    tokenizer = CharacterTokenizer.train(TEXTS)
    model = small_gpt2(tokenizer.vocab_size)
    assert prefix_id(model, tokenizer) is None
    [found] = document_likelihoods(model, tokenizer, [TEXTS[0]])
    ids = tokenizer.encode(TEXTS[0])
    first = slow_log_probabilities(model, ids[:24], ids[1:25])[0]
    assert len(found) == len(ids)
    assert found[0] == pytest.approx(-math.log(tokenizer.vocab_size))
    assert found[1:25].sum() == pytest.approx(first, rel=1e-6)
    [single] = document_likelihoods(model, tokenizer, ["T"])
    assert single == pytest.approx([-math.log(tokenizer.vocab_size)])
    with pytest.raises(InputError, match="the context is empty, and the tokenizer has no token"):
        log_likelihoods(model, tokenizer, [("", "The cat")])


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    model = small_gpt2(BYTES.vocab_size, context=6)
    context, continuation = BYTES.encode(TEXTS[0]), BYTES.encode(" sat on")
    [found] = log_likelihoods(model, BYTES, [(TEXTS[0], " sat on")])
    inputs = (context + continuation)[-7:-1]
    assert found.log_probability == pytest.approx(slow_log_probabilities(model, inputs, continuation)[0], rel=1e-6)
    assert found.cut == len(context) + len(continuation) - 7 > 0
    assert found.ids == len(continuation)
    assert pair_window([1, 2, 3, 4], [5, 6], 3) == Window([3, 4, 5], [5, 6])
    assert pair_window([1], [5, 6, 7], 3) == Window([1, 5, 6], [5, 6, 7])


# Refusals


def test_what_cannot_be_scored_is_refused() -> None:
    model = small_gpt2(BYTES.vocab_size, context=6)
    with pytest.raises(InputError, match=r"the continuation '' of 'The cat' is empty"):
        log_likelihoods(model, BYTES, [("The cat", "")])
    joined = BPETokenizer.train(["ab " * 30], 262)
    with pytest.raises(InputError, match=r"the continuation 'b' of 'a' joins the last token of the context"):
        log_likelihoods(small_gpt2(262), joined, [("a", "b")])
    with pytest.raises(InputError, match=r"a continuation has \d+ ids, but the model's context is 6"):
        log_likelihoods(model, BYTES, [("The", TEXTS[0])])
    with pytest.raises(InputError, match=r"perplexity: document 1 \(''\) has no ids"):
        document_likelihoods(model, BYTES, ["The", ""])
    with pytest.raises(InputError, match=r"perplexity: window=7; give 1 to 6, the model's context"):
        document_likelihoods(model, BYTES, ["The"], window=7)
    with pytest.raises(InputError, match=r"window=6 and stride=7; give 1 <= stride <= window"):
        document_likelihoods(model, BYTES, ["The"], stride=7)


def test_a_model_with_weights_that_are_no_numbers_is_refused() -> None:
    model = uniform_gpt2(BYTES.vocab_size)
    model.ln_f.weight.data[...] = np.nan
    with pytest.raises(InputError, match="the log-probability of text 0 is nan; look at the model's weights"):
        log_likelihoods(model, BYTES, [("The cat", " sat")])
