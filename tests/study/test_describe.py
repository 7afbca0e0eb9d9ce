"""The description of a model beside the model: every number that it predicts is counted or measured on a real step."""

from __future__ import annotations

import dataclasses
import functools
import gc
import inspect
import json
import math
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm import backend, grad_mode
from minillm.data.permutation import permute_tokens
from minillm.errors import InputError
from minillm.models import bert as bert_file
from minillm.models import distilbert as distilbert_file
from minillm.models import roberta as roberta_file
from minillm.models.bart import Bart, BartConfig, BartModel
from minillm.models.bert import BertConfig, BertForPreTraining, BertModel
from minillm.models.distilbert import DistilBertConfig, DistilBertForMaskedLM
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel, XLNetModel
from minillm.nn import Decoder
from minillm.optim import AdamW
from minillm.random import Generator
from minillm.resolver import presets
from minillm.study.describe import describe
from minillm.study.describe.abstract_step import abstract_step
from minillm.study.describe.description import Amount, Description
from minillm.study.describe.tables import rules, tables
from minillm.study.profile import Profile, profiled
from minillm.training import Run, TrainConfig

gpt2, llama, bert = GPT2Config.preset, LlamaConfig.preset, BertConfig.preset
bart, xlnet, gemma = BartConfig.preset, XLNetConfig.preset, GemmaConfig.preset
SMALL = dict(channels=192, hidden=520, heads=6, layers=5, context=160, vocab_size=300)
BART = dict(channels=128, encoder_layers=4, decoder_layers=3, encoder_hidden=400, decoder_hidden=500, vocab_size=700)
BART |= dict(encoder_heads=4, decoder_heads=2, context=100)
XLNET = dict(channels=128, heads=4, hidden=500, layers=4, vocab_size=700)
GEMMA = SMALL | dict(kv_heads=2, head_size=32, window=40, full_blocks=(1,))
DISTILLED = dict(vocab_size=999, layers=4, channels=192, heads=4, hidden=500)
MODELS = {  # class, configuration, batch size, context
    "nano": (GPT2, gpt2("nano"), 64, 32),
    "nano with dropout": (GPT2, gpt2("nano", dropout=0.1), 64, 32),
    "one block": (GPT2, gpt2("nano", layers=1), 64, 32),
    "tiny": (GPT2, gpt2("tiny"), 12, 64),
    "tiny with dropout": (GPT2, gpt2("tiny", dropout=0.2), 12, 64),
    "tiny, without biases, half the context": (GPT2, gpt2("tiny", bias=False), 24, 32),
    "baby": (GPT2, gpt2("baby"), 2, 256),
    "baby with dropout": (GPT2, gpt2("baby", dropout=0.2), 2, 200),
    "large vocabulary": (GPT2, gpt2("tiny", vocab_size=20000), 4, 64),
    "grouped heads": (Llama, llama("nano", **SMALL, kv_heads=2, tied=True), 5, 160),
    "not tied": (Llama, llama("nano", **SMALL, kv_heads=6, tied=False), 4, 130),
    "window, biases": (Llama, llama("nano", **SMALL, kv_heads=3, window=40, qkv_bias=True), 4, 150),
    "windows in some blocks": (Llama, llama("nano", **SMALL, kv_heads=3, window=40, full_blocks=(1,)), 4, 150),
    "norms of queries and keys": (Llama, llama("nano", **SMALL, kv_heads=2, qk_norm=True, head_size=24), 4, 150),
    "heads that turn in part": (Llama, llama("nano", **SMALL, kv_heads=2, rotary=24, mlp_bias=True), 4, 150),
    "gemma 2": (Gemma, gemma("nano", **GEMMA, qk_norm=False, attention_cap=50.0, logit_cap=30.0), 4, 150),
    "gemma 3": (Gemma, gemma("nano", **GEMMA), 4, 150),
    "gpt2 with relu": (GPT2, gpt2("tiny", hidden=400, activation="relu", tied=False), 12, 64),
    "distilbert": (DistilBertForMaskedLM, DistilBertConfig.preset("distilbert-base-cased", **DISTILLED), 4, 128),
    "bert": (BertForPreTraining, bert("bert-mini", vocab_size=999), 4, 128),
    "bert without dropout": (
        BertForPreTraining,
        bert("bert-tiny", vocab_size=999, dropout=0.0, attention_dropout=0.0, layers=3),
        16,
        64,
    ),
    "bart": (Bart, bart("nano", **BART), 4, 96),
    "bart with dropout": (
        Bart,
        bart("nano", **BART, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1),
        4,
        96,
    ),
    "bart with relu": (Bart, bart("multi30k", vocab_size=700, scale_embedding=False), 8, 40),
    "xlnet": (XLNetLMHeadModel, xlnet("nano", **XLNET), 4, 126),
    "xlnet with dropout": (XLNetLMHeadModel, xlnet("nano", **XLNET, dropout=0.1), 3, 96),
    "xlnet, both directions, memory": (
        XLNetLMHeadModel,
        xlnet("nano", **XLNET, bi_data=True, reuse_len=20, clamp_len=30),
        4,
        60,
    ),
}


def described(kind: Any, config: Any, batch_size: int, context: int, dtype: str = "float32") -> Description:
    """Of a configuration that is no preset, by the same way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.resolver.presets", lambda: {"this": (kind, config)})
        return describe("this", batch_size, context, dtype)


def batch(model: Any, batch_size: int, context: int, seed: int = 0) -> dict[str, np.ndarray]:
    """What the loss takes. An encoder gets labels for three tokens of twenty, XLNet an order; BART two texts."""
    rng = np.random.default_rng(seed)
    ids, targets = rng.integers(0, model.config.vocab_size, (2, batch_size, context))
    if isinstance(model, XLNetLMHeadModel):
        return permute_tokens(ids, generator=Generator(seed + 5), reuse_len=model.config.reuse_len)._asdict()
    if isinstance(model, Bart):
        return {"source": ids, "targets": targets}
    if "labels" in inspect.signature(model.loss).parameters:
        hidden = rng.permutation(targets.size)[round(0.15 * targets.size) :]
        targets.reshape(-1)[hidden] = -100
        return {"ids": ids, "labels": targets}
    return {"ids": ids, "targets": targets}


def bytes_of_arrays() -> int:
    arrays = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([arrays]).traces)


def measured(model: Any, arrays: dict[str, np.ndarray]) -> tuple[int, int]:
    """Bytes of arrays that a forward leaves, and the most that forward and backward hold."""
    optimizer = AdamW(model.parameters())  # gives the gradients memory
    model.loss(**arrays).backward()  # what is made once and kept, such as angles
    gc.collect()
    tracemalloc.start()
    try:
        before = bytes_of_arrays()
        loss = model.loss(**arrays)
        held = bytes_of_arrays() - before - loss.data.nbytes
        del loss
        optimizer.zero_grad()
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        model.loss(**arrays).backward()
        return held, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.fixture
def one_thread() -> Iterator[None]:
    before, backend.cutting = backend.cutting, backend.cutting._replace(threads=1)
    yield
    backend.cutting = before


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", MODELS)
def test_parameters_operations_cache_and_memory_are_those_of_a_real_step(name: str) -> None:
    kind, config, batch_size, context = MODELS[name]
    found = described(kind, config, batch_size, context)
    model = kind(config)

    assert found.num_parameters == model.num_parameters()
    assert found.weight_bytes == sum(parameter.data.nbytes for parameter in model.parameters())
    optimizer = AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    moments = sum(moment.nbytes for _, moment in optimizer._named_moments())
    assert found.moment_bytes == moments
    assert found.master_bytes == 0

    arrays = batch(model, batch_size, context)
    reader = model.conditioned(arrays["source"]) if isinstance(model, Bart) else model
    caches = reader.new_cache(batch_size) if isinstance(reader, Decoder) else []
    cached = sum(cache.keys.nbytes + cache.values.nbytes for cache in caches)
    assert (found.cache_token > 0) == isinstance(reader, Decoder)
    assert found.cache_token * batch_size * getattr(config, "context", 0) == cached
    sources = [array.data.nbytes for both in getattr(reader, "memory", []) for array in both]
    assert found.cache_source * batch_size * context == sum(sources)

    profile = Profile()
    with profiled(profile):
        model.loss(**arrays).backward()
    assert found.flops_per_token * found.tokens == pytest.approx(profile.flops, rel=1e-12)

    held, peak = measured(kind(config), arrays)
    assert found.activation_bytes == held
    assert found.peak == pytest.approx(peak, rel=0.02)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["bart", "xlnet"])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_drawn_the_step_is_within_five_percent(name: str, seed: int) -> None:
    """Of a text of 95 tokens XLNet predicts 15 or 16, as it is drawn; and here BART's pairs are of uneven lengths."""
    kind, config, _, _ = MODELS[name]
    found, model = described(kind, config, 3, 95), kind(config)
    arrays = batch(model, 3, 95, seed)
    if name == "bart":
        arrays |= {"source_lengths": np.array([95, 40, 7])}
        arrays["targets"][1, 30:] = -100
    held, peak = measured(model, arrays)
    assert found.activation_bytes == pytest.approx(held, rel=0.05)
    assert found.peak == pytest.approx(peak, rel=0.05)


def test_pretraining_of_xlnet_has_two_streams() -> None:
    """Each block has the weights of both; in the last one nobody reads those of the content."""
    config = xlnet("nano", **XLNET)
    found = described(XLNetLMHeadModel, config, 4, 126)
    weights = 4 * config.heads * 126 * 126 * 4  # bytes
    kept = [amount for key, amount in found.kept.items() if key.operation == "attn softmax"]
    assert sum(amount.block for amount in kept) == 2 * weights
    assert sum(amount.total for amount in kept) == (2 * config.layers - 1) * weights


def test_the_cache_of_an_encoder_decoder_has_two_sides() -> None:
    """As its table shows; what a source takes is there for each target that is written from it."""
    config = bart("nano", **BART)
    found = described(Bart, config, 2, 50)
    assert found.cache_token == found.cache_source == 2 * config.channels * config.decoder_layers * 4
    [memory] = [table for table in tables(found) if table.title.startswith("memory")]
    rows = dict(memory.rows)
    assert rows["KV cache, for each token"] == rows["KV cache, for each token of a source"] == "3.07 kB"
    assert rows["KV cache, 2 x 100 of target and source"] == "1.23 MB"


def test_bodies_without_a_loss(tmp_path: Path) -> None:
    for model in (BartModel(bart("nano")), BertModel(bert("nano")), XLNetModel(xlnet("nano"))):
        model.save_pretrained(tmp_path)
        found = describe(tmp_path, 2, 8)
        assert found.num_parameters == model.num_parameters()
        assert found.activation_bytes > 0
        assert found.cache_token == found.cache_source == 0


def test_heads_from_their_files(tmp_path: Path) -> None:
    """Each with its own loss."""
    for file, prefix in ((bert_file, "Bert"), (roberta_file, "Roberta"), (distilbert_file, "DistilBert")):
        for head in ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"):
            model = getattr(file, prefix + head)(file.PRESETS["nano"])
            model.save_pretrained(tmp_path)
            found = describe(tmp_path, 2, 8)
            assert found.num_parameters == model.num_parameters()
            assert found.activation_bytes > 0
            assert found.cache_token == 0


def test_parts_add_up_and_are_told_apart() -> None:
    found = described(GPT2, gpt2("tiny"), 2, 64)
    C, L = 128, 4
    assert found.parameters == {
        "token table": Amount(0, 65 * C),
        "position table": Amount(0, 64 * C),
        "norms": Amount(4 * C, 4 * C * L + 2 * C),
        "attention": Amount(4 * C * C + 4 * C, (4 * C * C + 4 * C) * L),
        "MLP": Amount(8 * C * C + 5 * C, (8 * C * C + 5 * C) * L),
    }
    assert found.kaplan_parameters == found.num_parameters - (65 + 64) * C
    assert found.forward["MLP"] == Amount(2 * 8 * C * C * 128, 2 * 8 * C * C * 128 * L)
    assert found.backward["heads, loss"].total == 2 * found.forward["heads, loss"].total == 4 * 65 * C * 128
    bert_parts = described(BertForPreTraining, bert("nano"), 2, 32).parameters
    assert bert_parts["heads, loss"].total == 2 * (32 * 32 + 32) + 2 * 32 + 256 + 2 * 33
    assert bert_parts["sentence table"].total == 2 * 32


def kept_in_a_block(found: Description) -> float:
    """Numbers for a token."""
    return sum(amount.block for amount in found.kept.values()) / found.tokens / found.itemsize


def test_what_a_block_keeps_is_what_the_docstring_says() -> None:
    config = gpt2("baby")
    assert kept_in_a_block(described(GPT2, config, 3, 100)) == 16 * config.channels + config.heads + 2
    for dtype in ("float32", "float64"):
        config = llama("nano", **SMALL, kv_heads=2)
        C, F, GD, D = 192, 520, 2 * 32, 32
        tables = 0 if dtype == "float64" else 4 * D / 2 / 3  # cos and sin of queries and keys, for 3 sequences
        expected = 4 * C + (C + 2 * GD) + (C + GD) + C + 3 * F + 6 + 2 + tables
        assert kept_in_a_block(described(Llama, config, 3, 100, dtype)) == pytest.approx(expected, rel=1e-9)


def test_a_shared_array_counts_once_where_it_is_kept_first() -> None:
    found = described(GPT2, gpt2("nano"), 1, 32)
    names = {(key.operation, key.names) for key in found.kept}
    assert {("attn attention", "q, k, v"), ("attn attention", "y"), ("mlp gelu", "slope")} <= names
    assert not any(operation == "attn.proj linear" for operation, _ in names)  # its input is attention's output


def test_bfloat16_takes_half_and_has_float32_copies() -> None:
    single, half = (described(GPT2, gpt2("baby"), 2, 128, dtype) for dtype in ("float32", "bfloat16"))
    assert (half.weight_bytes, half.cache_token) == (single.weight_bytes / 2, single.cache_token / 2)
    assert half.master_bytes == half.moment_bytes / 2 == single.weight_bytes
    assert half.activation_bytes == pytest.approx(single.activation_bytes / 2, rel=0.01)
    assert half.flops_per_token == single.flops_per_token
    ours = 2 * half.weight_bytes + half.master_bytes + half.moment_bytes  # 16 bytes a weight, as is well known
    assert ours == 16 * half.num_parameters
    double = described(GPT2, gpt2("baby"), 2, 128, "float64")
    assert double.activation_bytes == pytest.approx(2 * single.activation_bytes, rel=0.01)
    assert double.moment_bytes == 2 * single.moment_bytes == 2 * double.weight_bytes
    assert single.step_bytes == 16 * single.num_parameters + int(single.peak)


@pytest.mark.usefixtures("one_thread")
def test_float64_is_measured_too() -> None:
    found = described(GPT2, gpt2("tiny", dropout=0.1), 8, 64, "float64")
    model = GPT2(gpt2("tiny", dropout=0.1)).to("float64")
    held, peak = measured(model, batch(model, 8, 64))
    assert found.activation_bytes == held
    assert found.peak == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("name", ["tiny with dropout", "baby"])
def test_the_peak_on_all_threads(name: str) -> None:
    """When threads have their scratch memory differs from time to time, and moves the peak by some percent.

    With one thread nothing moves: there the tests above demand 2 percent.
    """
    kind, config, batch_size, context = MODELS[name]
    model = kind(config)
    peaks = [measured(model, batch(model, batch_size, context))[1] for _ in range(7)]
    found = [described(kind, config, batch_size, context).peak for _ in range(7)]
    assert statistics.median(found) == pytest.approx(statistics.median(peaks), rel=0.05)


def test_nothing_is_left_behind_even_by_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT2(gpt2("nano"))
    monkeypatch.setattr(GPT2, "loss", lambda self, ids, targets: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        abstract_step(model, 1, 4)
    monkeypatch.undo()
    describe("gpt2-nano")
    assert grad_mode.state.observers == ()
    ones = np.ones((8, 8), np.float32)
    assert (backend.matmul(ones, ones) == 8).all()
    assert not tracemalloc.is_tracing()
    state = minillm.random.default.state()
    loss = model.loss(**batch(model, 2, 8)).item()
    assert loss == pytest.approx(math.log(256), rel=0.1)
    assert minillm.random.default.state() == state


def test_the_random_stream_is_neither_moved_nor_asked() -> None:
    found = []
    for seed in range(6):  # of 95 tokens 15 or 16 are predicted, as it is drawn
        minillm.manual_seed(seed)
        before = minillm.random.default.state()
        found.append(described(XLNetLMHeadModel, xlnet("nano", dropout=0.1), 1, 95).kept)
        assert minillm.random.default.state() == before
    assert all(one == found[0] for one in found)


def test_large_models_take_a_moment_and_little_memory() -> None:
    """The published sizes, in a process of its own, which says how much memory it had."""
    code = """
import pathlib, time
start = time.perf_counter()
from minillm.study.describe import describe
found = describe("llama-2-7b", dtype="bfloat16")
print(found.num_parameters, found.cache_token, found.context)
peak = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(time.perf_counter() - start, int(peak.split()[1]) * 1024)  # the process's own, without that of its parent
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    numbers, costs = result.stdout.splitlines()
    assert numbers == f"6738415616 {2 * 2 * 32 * 4096} 2048"
    seconds, memory = map(float, costs.split())
    assert seconds < 20  # about one, on a machine that does nothing else
    assert memory < 1e9  # of the 13 that the weights take


def test_every_preset_can_be_described() -> None:
    known = presets()
    assert {"gpt2", "gpt2-nano", "bert-nano", "smollm2-135m", "bert-base-uncased", "roberta-base"} <= known.keys()
    for name, (kind, config) in known.items():
        assert isinstance(config.channels, int)
        if name.endswith("nano"):
            found = describe(name, 9, 17)
            for table in tables(found):
                assert {len(row) for row in table.rows} == {len(table.columns)}
            assert len(list(rules(found))) == 3
            model = kind(config)
            assert found.num_parameters == model.num_parameters()
            arrays = batch(model, 9, 17)
            profile = Profile()
            with profiled(profile):
                model.loss(**arrays).backward()
            assert found.flops_per_token * found.tokens == pytest.approx(profile.flops, rel=1e-12)
            model.zero_grad()
            assert found.activation_bytes == measured(model, arrays)[0]


def test_what_leads_to_no_loss_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, loss = describe("gpt2-nano").kept, GPT2.loss

    @functools.wraps(loss)
    def with_more(model: GPT2, *arguments: Any, **named: Any) -> Any:
        minillm.ops.exp(model.wte.weight)
        return loss(model, *arguments, **named)

    monkeypatch.setattr(GPT2, "loss", with_more)
    assert describe("gpt2-nano").kept == expected


def test_published_sizes() -> None:
    """Of the model cards: 124, 135 and 110 million."""
    sizes = {"gpt2": 124_439_808, "smollm2-135m": 134_515_008, "bert-base-uncased": 110_106_428}
    assert {name: describe(name, context=8).num_parameters for name in sizes} == sizes


def test_folders_files_and_runs(tmp_path: Path) -> None:
    model = Llama(llama("nano"))
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").unlink()  # only the configuration is read
    for place in (tmp_path / "hf", tmp_path / "hf" / "config.json"):
        assert describe(place, 2).parameters == describe("llama-nano", 2).parameters
    big = json.loads((tmp_path / "hf" / "config.json").read_text())
    big |= dict(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8)
    big |= dict(intermediate_size=28672, vocab_size=32000, head_dim=128, tie_word_embeddings=False)
    (tmp_path / "hf" / "config.json").write_text(json.dumps(big))
    assert describe(tmp_path / "hf").num_parameters == 68_976_648_192  # Llama 2 70B

    tokenizer = minillm.tokenizers.CharacterTokenizer.train("abc")
    config = TrainConfig(model=gpt2("nano", vocab_size=999), batch_size=6, micro_batches=2, out=tmp_path / "run")
    Run.create(config, tokenizer)
    found = describe(tmp_path / "run")
    assert (found.batch_size, found.context, found.dtype) == (3, 32, "float32")
    assert found.config == dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)


def test_a_gguf_file(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    config = llama("nano")
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.channels)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tensor("token_embd.weight", np.zeros((config.vocab_size, config.channels), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert describe(tmp_path / "model.gguf").parameters == describe("llama-nano").parameters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smollm2-135",), "did you mean 'smollm2-135m'"),
        (("gpt2", 0), "batch_size is 0"),
        (("gpt2", 1, 1025), "a context of 1024 at most"),
        (("gpt2", 1, 0), "context is 0"),
        (("gpt2", 1, 8, "int8"), "dtype is 'int8'; choose one of float32"),
    ],
)
def test_what_cannot_be_described(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        describe(*arguments)
