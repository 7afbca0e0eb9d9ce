"""Numbers with units, a model near a size, tokens and losses by Chinchilla's law, and text by language."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.models.llama import PRESETS, Llama
from minillm.study.plan import parameters_of
from minillm.study.plan.languages import LANGUAGES, UNIQUE, language_code, measured, need, rates_of
from minillm.study.plan.scaling import BESIROGLU, HOFFMANN, LAWS
from minillm.study.plan.shapes import aspect, llama_near, size_of
from minillm.study.plan.units import count, duration, short
from minillm.tokenizers import CharacterTokenizer


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("125M", 125e6),
        ("125m", 125e6),
        ("7B", 7e9),
        ("1.5T", 1.5e12),
        ("7e9", 7e9),
        ("7 billion", 7e9),
        ("7,000,000", 7e6),
        ("7_000", 7e3),
        ("300k", 3e5),
        (" 2g ", 2e9),
    ],
)
def test_numbers_as_people_write_them(text, value):
    assert count(text, "--tokens", 1, 1e16) == value


@pytest.mark.parametrize("text", ["", "B", "7X", "7BB", "lots", "nan", "inf", "7 B B", "0x7", "1.2.3B", "--7B"])
def test_what_is_no_number_is_told_so(text):
    with pytest.raises(InputError, match=r"give a number such as 125M, 7B or 1.5T"):
        count(text, "--tokens", 1, 1e16)


def test_numbers_that_are_too_small_or_too_large():
    for text in ("0", "-7B", "3T"):
        with pytest.raises(InputError, match=f"--parameters is {text}; give 100K to 2T"):
            count(text, "--parameters", 1e5, 2e12)


def test_numbers_as_people_read_them():
    assert [short(x) for x in (6738415616, 999.4e6, 999.6e6, 1.5e12, 12, 1234)] == [
        *("6.74B", "999M", "1B", "1.5T", "12", "1.23K"),
    ]
    seconds = (42, 5 * 60, 7200, 30 * 3600, 20 * 86400, 800 * 86400)
    assert [duration(x) for x in seconds] == ["42 seconds", "5 minutes", "2 hours", "30 hours", "20 days", "2.19 years"]


@pytest.mark.parametrize("parameters", [1e6, 5e6, 30e6, 125e6, 350e6, 1.3e9, 3e9, 7e9, 13e9, 34e9, 70e9, 405e9])
def test_a_model_near_a_size(parameters):
    config = llama_near(parameters, 32000 if parameters > 2e7 else 1024)
    assert size_of(config) == pytest.approx(parameters, rel=0.04 if parameters >= 2e7 else 0.12)
    assert config.channels % config.heads == 0
    assert config.hidden % 256 == 0
    assert config.layers < 16 or config.layers % 2 == 0
    assert config.tied == (parameters < 1e9)
    assert config.kv_heads == (8 if parameters >= 30e9 else config.heads)
    if parameters >= 125e6:
        assert 0.7 < config.channels / config.layers / aspect(parameters) < 1.5


def test_sizes_that_people_know():
    seven = llama_near(7e9)
    assert dataclasses.replace(seven, context=4096) == PRESETS["llama-2-7b"]
    assert parameters_of(Llama, seven) == 6738415616  # as Llama 2's card says
    thirteen = llama_near(13e9)
    assert (thirteen.layers, thirteen.channels, thirteen.heads, thirteen.hidden) == (40, 5120, 40, 13824)
    one = llama_near(1.3e9)
    assert (one.layers, one.channels, one.hidden) == (22, 2048, 5632)  # TinyLlama's


@pytest.mark.parametrize("parameters", [3e5, 1e6, 4e6])
def test_the_formula_of_the_size_is_that_of_the_model(parameters):
    for config in (llama_near(parameters, 100), dataclasses.replace(llama_near(parameters, 100), tied=False)):
        assert size_of(config) == Llama(config).num_parameters() == parameters_of(Llama, config)


def test_a_vocabulary_that_is_too_large_for_the_model():
    with pytest.raises(InputError, match=r"a table of 32,000 tokens the smallest model has .*smaller --vocab-size"):
        llama_near(1e6)


def test_chinchillas_law():
    # Gopher (280B on 300B tokens) and Chinchilla (70B on 1.4T), of one budget
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.9367, abs=1e-4)
    assert HOFFMANN.loss(280e9, 300e9) == pytest.approx(1.9933, abs=1e-3)
    for law in LAWS:
        for flops in (1e19, 5.76e23):
            parameters, tokens = law.best(flops)
            assert 6 * parameters * tokens == pytest.approx(flops)
            near = parameters * np.geomspace(0.5, 2, 2001)
            losses = [law.loss(n, flops / (6 * n)) for n in near]
            assert near[int(np.argmin(losses))] == pytest.approx(parameters, rel=1e-3)
    parameters, tokens = BESIROGLU.best(5.76e23)  # Gopher's budget
    assert 15 < tokens / parameters < 30
    parameters, tokens = HOFFMANN.best(5.76e23)
    assert tokens / parameters > 50  # as the replication found


def test_text_of_a_language():
    german = LANGUAGES["de"]
    rates = rates_of(german)
    found = need(140e9, german, rates)
    assert found.bytes * rates.tokens_a_byte == pytest.approx(140e9)
    assert found.tokens / found.words == pytest.approx(1.43, abs=0.01)
    assert found.bytes / found.pages == pytest.approx(1654784757688 / 495964485)
    assert found.pages / found.unfiltered == pytest.approx(495964485 / (495964485 + 251288231))
    assert found.unfiltered / found.crawled == pytest.approx(UNIQUE)
    assert found.pages / found.crawled == pytest.approx(found.kept)
    assert found.html > 100 * found.bytes
    assert found.repeats == 1
    swahili = need(140e9, LANGUAGES["sw"], rates_of(LANGUAGES["sw"]))
    assert swahili.repeats == pytest.approx(140e9 / (3311669706 * 69335 / 272166))
    given = need(140e9, german, rates, 0.1)
    assert (given.pages, given.kept) == (pytest.approx(found.pages), 0.1)
    assert given.crawled == pytest.approx(found.pages / 0.1)


def test_every_language_is_plausible():
    for code, language in LANGUAGES.items():
        rates = rates_of(language)
        assert 3 < 1 / rates.tokens_a_byte < 9.5, code  # bytes a token
        assert 1 < rates.tokens_a_byte / rates.words_a_byte < 2.2 or code in ("ja", "ko", "zh"), code
        assert 0.3 < language.pages / (language.pages + language.removed) < 0.9 or code in ("hr", "he", "sw"), code
        assert language_code(language.name) == language_code(code.upper()) == code
    with pytest.raises(InputError, match="--language is 'germn'; did you mean 'german'"):
        language_code("germn")


def test_rates_are_measured_on_a_text(tmp_path):
    text = "Die Katze saß auf der Matte.\n" * 7
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    CharacterTokenizer.train(text).save(tmp_path / "tokenizer")
    rates = measured(tmp_path / "tokenizer", tmp_path / "text.txt")
    assert rates.tokens_a_byte == pytest.approx(29 / 30)  # ß has two bytes
    assert rates.words_a_byte == pytest.approx(6 / 30)
    assert "measured (210 bytes)" in rates.source
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        measured(tmp_path / "tokenizer", tmp_path / "text.txt")
    (tmp_path / "text.txt").write_text(" \n")
    with pytest.raises(InputError, match="has no words"):
        measured(tmp_path / "tokenizer", tmp_path / "text.txt")
