"""Every family of models: an XLNet from left to right, a BERT by hidden tokens, a BART by its targets."""

from __future__ import annotations

import numpy as np
import pytest
from scored_models import TEXTS

from minillm.autograd import no_grad
from minillm.errors import InputError
from minillm.evaluation.left_to_right import left_to_right
from minillm.evaluation.likelihood import document_likelihoods, log_likelihoods
from minillm.evaluation.masked import mask_id, pseudo_likelihoods
from minillm.evaluation.multiple_choice import Question, multiple_choice
from minillm.evaluation.perplexity import perplexity, pseudo_perplexity
from minillm.models.bart import Bart, BartConfig
from minillm.models.bert import BertConfig, BertForMaskedLM, BertForPreTraining, BertForSequenceClassification
from minillm.models.gpt2 import GPT2Config, GPT2ForSequenceClassification
from minillm.models.roberta import RobertaConfig, RobertaForMaskedLM
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel
from minillm.tokenizers import BPETokenizer, UnigramTokenizer, WordPieceTokenizer

WORDS = WordPieceTokenizer.train(TEXTS, 120)


def shaken(model, rng: np.random.Generator):
    """The model with weights so large that its predictions differ from place to place."""
    for parameter in model.parameters():
        parameter.data[...] += rng.normal(0, 0.3, parameter.shape)
    return model.eval()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def masked_models(rng: np.random.Generator) -> list:
    size = dict(vocab_size=WORDS.vocab_size, context=12, layers=2, heads=2, channels=16, hidden=32)
    bert = BertConfig(**size, dropout=0.0, attention_dropout=0.0)
    return [
        shaken(BertForMaskedLM(bert), rng),
        shaken(BertForPreTraining(bert), rng),
        shaken(RobertaForMaskedLM(RobertaConfig(**size, dropout=0.0, attention_dropout=0.0)), rng),
    ]


def test_each_token_of_a_masked_model_is_hidden_once(rng: np.random.Generator) -> None:
    """Against a loop: a text of more tokens than the context is cut into pieces, each between [CLS] and [SEP]."""
    mask = mask_id(WORDS)
    text = f"{TEXTS[0]} {TEXTS[3]}"
    ids = WORDS.encode(text)
    assert len(ids) > 20
    for model in masked_models(rng):
        expected = []
        for start in range(0, len(ids), 10):
            piece = WORDS.build_inputs_with_special_tokens(ids[start : start + 10])
            for place in range(1, len(piece) - 1):
                hidden = [mask if i == place else one for i, one in enumerate(piece)]
                with no_grad():
                    features = model.features(np.array([hidden]))
                    logits = model.head(features, model.wte.weight).data[0, place]
                expected.append(log_softmax(logits)[piece[place]])
        for batch_tokens in (1, 30, 5000):
            [found] = pseudo_likelihoods(model, WORDS, [text], batch_tokens)
            np.testing.assert_allclose(found, expected, rtol=1e-5)
        measured = pseudo_perplexity(model, WORDS, [text])
        assert list(measured.measures) == ["pseudo_perplexity"]
        assert measured.measures["pseudo_perplexity"].value == pytest.approx(np.exp(-np.mean(expected)), rel=1e-5)
        assert measured.measures["pseudo_perplexity"].denominator == len(ids)


def test_a_masked_model_gives_no_text_a_probability(rng: np.random.Generator) -> None:
    model = masked_models(rng)[0]
    with pytest.raises(InputError, match=r"perplexity: a BertForMaskedLM predicts hidden tokens .* pseudo-perplexity"):
        perplexity(model, WORDS, TEXTS)
    with pytest.raises(InputError, match="log_likelihoods: a BertForMaskedLM predicts hidden tokens"):
        multiple_choice(model, WORDS, [Question("the", ("cat", "dog"), 0)])
    with pytest.raises(InputError, match="the tokenizer has no mask token"):
        pseudo_perplexity(model, BPETokenizer.train(TEXTS, 300), TEXTS)
    with pytest.raises(InputError, match="pseudo_perplexity: there are no documents"):
        pseudo_perplexity(model, WORDS, [])


def test_a_classifier_predicts_no_tokens() -> None:
    models = [
        BertForSequenceClassification(BertConfig(WORDS.vocab_size, 12, layers=1, heads=2, channels=16, hidden=32)),
        GPT2ForSequenceClassification(GPT2Config(WORDS.vocab_size, 12, layers=1, heads=2, channels=16)),
    ]
    for model in models:
        with pytest.raises(InputError, match=f"a {type(model).__name__} predicts no tokens"):
            perplexity(model, WORDS, TEXTS)


def test_an_xlnet_from_left_to_right_equals_one_token_at_a_time(rng: np.random.Generator) -> None:
    """The last position is predicted from those before it, with the model's own masks; no later token is there."""
    model = shaken(XLNetLMHeadModel(XLNetConfig(30, layers=2, heads=2, channels=16, hidden=32, dropout=0.0)), rng)
    ids = rng.integers(0, 30, 9)
    view = left_to_right("perplexity", model)
    with no_grad():
        logits = view.logits(view.features(ids[None, :-1])).data[0]
    for place in range(1, 9):
        seen = ids[: place + 1][None]
        perm_mask = np.triu(np.ones((place + 1, place + 1), bool))[None]  # s >= t: hidden from the query of t
        target = (np.arange(place + 1) == place)[None, None]
        with no_grad():
            alone = model(seen, perm_mask=perm_mask, target_mapping=target).data[0, 0]
        np.testing.assert_allclose(logits[place - 1], alone, rtol=1e-4, atol=1e-5)
    ids[-1] = (ids[-1] + 1) % 30
    with no_grad():
        again = view.logits(view.features(ids[None, :-1])).data[0]
    np.testing.assert_array_equal(again, logits)  # it is the target alone


def test_an_xlnet_has_a_perplexity(rng: np.random.Generator) -> None:
    tokenizer = UnigramTokenizer.train(TEXTS, 90, ("<s>", "</s>"))
    tokenizer.name_special_tokens(bos_token="<s>", eos_token="</s>")
    model = shaken(
        XLNetLMHeadModel(XLNetConfig(tokenizer.vocab_size, layers=2, heads=2, channels=16, hidden=32, dropout=0.0)), rng
    )
    together = document_likelihoods(model, tokenizer, TEXTS)
    for text, found in zip(TEXTS, together, strict=True):
        [alone] = document_likelihoods(model, tokenizer, [text], batch_tokens=1)
        np.testing.assert_allclose(found, alone, rtol=1e-4)
    assert perplexity(model, tokenizer, TEXTS).measures["bits_per_byte"].value > 0
    model.wte.weight.data[...] = 0
    model.bias.data[...] = 0
    found = perplexity(model, tokenizer, TEXTS)
    expected = np.log2(tokenizer.vocab_size) * found.ids / found.bytes
    assert found.measures["bits_per_byte"].value == pytest.approx(expected, rel=1e-6)


def test_a_bart_scores_targets_of_its_source(rng: np.random.Generator) -> None:
    tokenizer = BPETokenizer.train(TEXTS, 300, ("<s>", "</s>"))
    tokenizer.around = (["<s>"], ["</s>"])
    config = BartConfig(tokenizer.vocab_size, 24, 1, 1, 2, 2, 16, 32, 32, dropout=0.0)
    model = shaken(Bart(config), rng)
    pairs = [(text[:20], f" {choice}") for text in TEXTS[:2] for choice in ("the cat", "東京", "Zoë sat")]
    found = log_likelihoods(model, tokenizer, pairs)
    for (source, target), one in zip(pairs, found, strict=True):
        ids = tokenizer.build_inputs_with_special_tokens(tokenizer.encode(source))
        wanted = tokenizer.encode(target)
        given = [config.decoder_start_id, *wanted[:-1]]
        with no_grad():
            logits = log_softmax(model(np.array([ids[-24:]]), np.array([given])).data[0])
        assert one.log_probability == pytest.approx(logits[np.arange(len(wanted)), wanted].sum(), rel=1e-5)
        assert one.cut == max(0, len(ids) - 24)
    with pytest.raises(InputError, match="perplexity: a Bart gives a probability to a target with a source"):
        perplexity(model, tokenizer, TEXTS)
    questions = [Question(text[:20], ("the cat", "東京"), 0) for text in TEXTS]
    assert multiple_choice(model, tokenizer, questions).measures["acc"].denominator == 4
    with pytest.raises(InputError, match="a continuation of 'The cat' has no ids"):
        log_likelihoods(model, tokenizer, [("The cat", "")])
