"""Gemma: sizes, windows and caps, and Hugging Face's implementations of Gemma 2 and 3."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from model_checks import check_language_model, check_slopes, with_large_weights

import minillm
from minillm import ops
from minillm.autograd import no_grad
from minillm.beam_search import beam_search
from minillm.errors import InputError
from minillm.generate import generate, generate_batch
from minillm.models import gemma, llama
from minillm.models.gemma import PRESETS, Gemma, GemmaConfig
from minillm.ops.rope_table import RopeScaling

SIZES = (19, 16, 3, 4, 2, 16, 24, 6)
KINDS = {
    "gemma2": GemmaConfig(*SIZES, scale=5.0, window=4, full_blocks=(1,), attention_cap=1.5, logit_cap=2.0),
    "gemma2 without caps": GemmaConfig(*SIZES, scale=7.0, window=4, full_blocks=(1,), tied=False),
    "gemma2 everywhere": GemmaConfig(*SIZES, scale=7.0, window=3, attention_cap=2.0, qkv_bias=True, proj_bias=True),
    "gemma3": GemmaConfig(*SIZES, 1e3, window=4, full_blocks=(2,), scale=5.0, qk_norm=True, window_rope_base=1e2),
    "gemma3 stretched": GemmaConfig(
        *(*SIZES, 1e3, RopeScaling("linear", 4.0, 16)),
        window=5,
        full_blocks=(0, 2),
        qk_norm=True,
        window_rope_base=1e3,
        logit_cap=3.0,
        activation="gelu",
    ),
    "gemma3 full": GemmaConfig(*SIZES, qk_norm=True),
}


def random_model(config: GemmaConfig = KINDS["gemma2"], dtype: type = np.float32) -> Gemma:
    """A model with weights so large that every part of it matters."""
    model = with_large_weights(Gemma(config).to(dtype))
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.ndim == 1:  # norms multiply by 1 + weight
            parameter.data -= 1
    return model


def number_of_weights(config: GemmaConfig) -> int:
    """The number of weights, counted by hand."""
    C, D, H, G = config.channels, config.size_of_head, config.heads, config.kv_heads
    block = 4 * C + (H + 2 * G) * D * (C + config.qkv_bias) + H * D * C + 3 * C * config.hidden
    block += 2 * D * config.qk_norm + C * config.proj_bias
    return config.vocab_size * C * (1 if config.tied else 2) + config.layers * block + C


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_count_on_paper_is_right(config) -> None:
    assert Gemma(config).num_parameters() == number_of_weights(config)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config) for name, config in PRESETS.items()} == {
        "nano": 43_216,
        "gemma-2-2b": 2_614_341_888,
        "gemma-3-1b": 999_885_952,
    }


def naive_logits(model: Gemma, ids: np.ndarray) -> np.ndarray:
    """Logits of one sequence, one head and one position at a time, as in the reports."""
    config, weights = model.config, {name: array.astype(float) for name, array in model.state_dict().items()}
    C, D, G, T = config.channels, config.size_of_head, config.heads // config.kv_heads, len(ids)

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * (1 + weights[f"{name}.weight"])

    def capped(x, cap):
        return x if cap is None else cap * np.tanh(x / cap)

    def turned(x, position, base):
        angle = position * base ** (-2 * np.arange(D // 2) / D)
        first, second = x[: D // 2], x[D // 2 :]
        return np.concatenate(
            [first * np.cos(angle) - second * np.sin(angle), first * np.sin(angle) + second * np.cos(angle)]
        )

    x = weights["wte.weight"][ids] * np.sqrt(C)
    for i in range(config.layers):
        h, window = f"h.{i}", T if i in config.full_blocks or config.window is None else config.window
        base = config.rope_base if window == T else config.window_rope_base or config.rope_base
        qkv = norm(x, f"{h}.ln_1") @ weights[f"{h}.attn.qkv.weight"].T + weights.get(f"{h}.attn.qkv.bias", 0)
        heads = qkv.reshape(T, -1, D)
        y = np.zeros((T, config.heads, D))
        for head in range(config.heads):
            q, k, v = (heads[:, place] for place in (head, config.heads + head // G, -config.kv_heads + head // G))
            if config.qk_norm:
                q, k = norm(q, f"{h}.attn.q_norm"), norm(k, f"{h}.attn.k_norm")
            for t in range(T):
                seen = range(max(0, t + 1 - window), t + 1)
                score = np.array([turned(q[t], t, base) @ turned(k[s], s, base) for s in seen]) / np.sqrt(config.scale)
                weight = np.exp(capped(score, config.attention_cap))
                y[t, head] = weight / weight.sum() @ v[list(seen)]
        y = y.reshape(T, -1) @ weights[f"{h}.attn.proj.weight"].T + weights.get(f"{h}.attn.proj.bias", 0)
        x = x + norm(y, f"{h}.ln_1_post")
        z = norm(x, f"{h}.ln_2")
        gate = ops.gelu(minillm.tensor(z @ weights[f"{h}.mlp.gate.weight"].T), "tanh").data
        y = gate * (z @ weights[f"{h}.mlp.up.weight"].T) @ weights[f"{h}.mlp.down.weight"].T
        x = x + norm(y, f"{h}.ln_2_post")
    logits = norm(x, "ln_f") @ weights["wte.weight" if config.tied else "lm_head.weight"].T
    return capped(logits, config.logit_cap)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "gemma3 stretched"])
def test_logits_are_those_of_the_reports(name, rng) -> None:
    model, ids = random_model(KINDS[name], np.float64), rng.integers(0, 19, 11)
    expected = naive_logits(model, ids)
    np.testing.assert_allclose(model(ids[None]).data[0], expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("pieces", [[1] * 16, [16], [5, 1, 1, 1, 8], [7, 9]])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_cached_logits_are_those_without_a_cache_beyond_the_window_too(config, dtype, tolerance, pieces, rng) -> None:
    model = random_model(config, dtype).eval()
    ids = rng.integers(0, 19, (3, 16))
    expected = model(ids).data
    with no_grad():
        cache, start = model.new_cache(batch=3), 0
        for size in pieces:
            logits = model.next_logits(ids[:, start : start + size], cache).data
            start += size
            assert np.abs(logits - expected[:, start - 1]).max() / np.abs(expected).max() < tolerance


@pytest.mark.parametrize("name", KINDS)
def test_every_gradient_equals_central_differences(name, rng) -> None:
    model = random_model(KINDS[name], np.float64)
    ids, targets = rng.integers(0, 19, (2, 2, 12))
    check_slopes(model, lambda: model.loss(ids, targets), rng)


def test_a_cap_that_is_far_away_changes_nothing(rng) -> None:
    """With a large cap, the composed attention equals ops.attention, with grouped heads, windows and padding."""
    config = KINDS["gemma2 without caps"]
    near, far = (random_model(c, np.float64).eval() for c in (config, replace(config, attention_cap=1e4)))
    far.load_state_dict(near.state_dict())
    ids = rng.integers(0, 19, (2, 13))
    np.testing.assert_allclose(far(ids).data, near(ids).data, rtol=1e-3)
    prompts = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11]]
    assert generate_batch(far, prompts, 6, temperature=0) == generate_batch(near, prompts, 6, temperature=0)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_it_generates_what_its_logits_say(name) -> None:
    model = random_model(KINDS[name]).eval()
    text = [1, 2, 3]
    for token in generate(model, text, 10, temperature=0):
        assert token == model(np.array([text])).data[0, -1].argmax()
        text.append(token)
    prompts = [[1, 2, 3], [4], [5, 6]]
    alone = [list(generate(model, prompt, 8, temperature=0)) for prompt in prompts]
    assert generate_batch(model, prompts, 8, temperature=0) == alone
    [[best, *_]] = beam_search(model, [prompts[0]], 4, beams=1)
    assert best.ids == alone[0][:4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0.0}, r"GemmaConfig: scale is 0\.0; give a number above 0"),
        ({"attention_cap": -1.0}, r"GemmaConfig: attention_cap is -1\.0; give a number above 0"),
        ({"attention_cap": 2e4}, r"GemmaConfig: attention_cap is 20000\.0; give 10000 at most"),
        ({"logit_cap": float("inf")}, "GemmaConfig: logit_cap is inf; give a finite number or None"),
        ({"activation": "relu"}, "GemmaConfig: activation is 'relu'; give 'gelu_tanh' or 'gelu'"),
        ({"qkv_bias": True}, "qkv_bias=True, proj_bias=False; leave out the first three, and give both biases or none"),
    ],
)
def test_a_config_that_cannot_be(change, message) -> None:
    with pytest.raises(InputError, match=message):
        replace(KINDS["gemma2"], **change)


# Hugging Face's


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (
            "gemma2",
            {},
            GemmaConfig(window=4096, full_blocks=(*range(1, 26, 2),), attention_cap=50.0, logit_cap=30.0),
        ),
        (
            "gemma2",
            {"attn_logit_softcapping": None, "final_logit_softcapping": None, "num_hidden_layers": 2},
            GemmaConfig(layers=2, window=4096, full_blocks=(1,)),
        ),
        (
            "gemma3_text",
            {"num_hidden_layers": 7, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5e5},
            GemmaConfig(
                *(262208, 131072, 7, 8, 4, 2304, 9216, 256, 5e5, RopeScaling("linear", 8.0, 131072)),
                window=4096,
                full_blocks=(5,),
                qk_norm=True,
                window_rope_base=1e4,
            ),
        ),
        (
            "gemma3_text",
            {"num_hidden_layers": 3, "sliding_window_pattern": 2, "rope_local_base_freq": 77.0, "sliding_window": 9},
            GemmaConfig(
                *(262208, 131072, 3, 8, 4, 2304, 9216, 256, 1e6),
                window=9,
                full_blocks=(1,),
                qk_norm=True,
                window_rope_base=77.0,
            ),
        ),
    ],
)
def test_what_a_config_leaves_out(kind, values, expected) -> None:
    values = values | {"model_type": kind}
    assert gemma.config_from_hugging_face(values) == expected


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation='silu'; here it can only be 'gelu_pytorch_tanh'"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0"),
        ("gemma2", {"rope_parameters": {"full_attention": {}}}, "of several kinds of layers; gemma2 has one"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "rope_parameters with stretched angles for sliding_attention",
        ),
        ("gemma2", {"query_pre_attn_scalar": -3}, "query_pre_attn_scalar=-3: GemmaConfig: scale is -3; give a number"),
        (
            "gemma2",
            {"layer_types": ["full_attention"]},
            "layer_types=.* and num_hidden_layers=26; give .* for each layer",
        ),
        ("gemma2", {"sliding_window": "4096"}, "sliding_window='4096'; give a whole number, 1 or more"),
    ],
)
def test_what_is_not_done_is_refused_by_name(kind, change, message) -> None:
    with pytest.raises(InputError, match=f"^load: config.json has .*{message}"):
        gemma.config_from_hugging_face({"model_type": kind} | change)


def in_float64(reference, model, monkeypatch) -> None:
    """Replace transformers' norms, rotary tables and softmax, which it computes in float32 in every dtype, by ours."""
    import torch

    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))
    for module in reference.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: (
                (1 + m.weight) * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + m.eps)
            )
        if type(module).__name__.endswith("RotaryEmbedding"):

            def both_halves(x, position_ids, layer_type="full_attention"):
                config, length = model.config, position_ids.shape[-1]
                base, scaling = config.rope(layer_type != "full_attention")
                found = llama.cos_sin_tables(config.rotary_channels, base, scaling, 0, length)
                cos, sin = (torch.tensor(t) for t in found)
                return torch.cat([cos, cos], -1)[None], torch.cat([sin, sin], -1)[None]

            module.forward = both_halves


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_logits_gradients_and_a_step_equal_hugging_faces(config, dtype, tolerance, rng, monkeypatch, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = random_model(config, dtype)
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, np.dtype(dtype).name), attn_implementation="eager"
    )
    if dtype == np.float64:
        in_float64(reference, model, monkeypatch)
    ids, targets = rng.integers(0, 19, (2, 3, 16))
    targets[1, 5:] = -100
    check_language_model(model, reference, ids, targets, tolerance)
