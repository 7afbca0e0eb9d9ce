"""Llama: sizes, no view of the future or beyond the window, and Hugging Face's implementations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from model_checks import check_language_model, check_slopes, llama_in_float64, with_large_weights

import minillm
from minillm import ops
from minillm.autograd import no_grad
from minillm.errors import InputError, ShapeError
from minillm.generate import generate, generate_batch
from minillm.models import llama
from minillm.models.llama import PRESETS, Llama, LlamaConfig
from minillm.ops.rope_table import RopeScaling
from minillm.optim import AdamW

LONG = dict(short=(1.0, 1.1, 1.3, 1.7), long=(1.0, 2.0, 3.5, 6.0))
SMALL = LlamaConfig(19, context=16, layers=2, heads=4, kv_heads=2, channels=16, hidden=24)
KINDS = {
    "llama": SMALL,
    "tied": LlamaConfig(19, 16, 2, 4, 1, 16, 24, tied=True, norm_eps=1e-6),
    "mistral": LlamaConfig(19, 16, 3, 4, 2, 16, 24, head_size=6, window=5),
    "qwen2": LlamaConfig(19, 16, 2, 4, 4, 16, 24, qkv_bias=True, rope_base=1e3),
    "linear": LlamaConfig(19, 16, 2, 2, 2, 16, 24, rope_scaling=RopeScaling("linear", 3.0, 8)),
    "llama3": LlamaConfig(19, 16, 2, 2, 2, 32, 24, rope_scaling=RopeScaling("llama3", 8.0, 64, 1.0, 4.0)),
    "yarn": LlamaConfig(19, 16, 2, 2, 2, 32, 24, rope_scaling=RopeScaling("yarn", 4.0, 64)),
    "biases": LlamaConfig(19, 16, 2, 4, 2, 16, 24, qkv_bias=True, proj_bias=True, mlp_bias=True),
    "qwen2 windows": LlamaConfig(19, 16, 3, 4, 4, 16, 24, qkv_bias=True, window=3, full_blocks=(0,)),
    "qwen3": LlamaConfig(19, 16, 2, 4, 2, 16, 24, 6, qk_norm=True, norm_eps=1e-6),
    "qwen3 windows": LlamaConfig(
        *(19, 16, 3, 4, 2, 16, 24, 8), qk_norm=True, qkv_bias=True, proj_bias=True, window=4, full_blocks=(1,)
    ),
    "phi3": LlamaConfig(19, 16, 2, 4, 2, 16, 24, window=7, kind="phi3"),
    "phi4": LlamaConfig(19, 16, 2, 2, 2, 16, 24, rotary=6),
    # 16 tokens are more than the original context of the angles
    "longrope": LlamaConfig(19, 16, 2, 2, 2, 16, 24, rope_scaling=RopeScaling("longrope", 4.0, 8, **LONG)),
    "phi4 longrope": LlamaConfig(
        *(19, 24, 2, 2, 2, 32, 24), rotary=8, rope_scaling=RopeScaling("longrope", 2.0, 12, **LONG)
    ),
    "short longrope": LlamaConfig(19, 32, 2, 2, 2, 16, 24, rope_scaling=RopeScaling("longrope", 2.0, 16, **LONG)),
    "dynamic": LlamaConfig(19, 20, 2, 2, 2, 16, 24, rope_scaling=RopeScaling("dynamic", 2.0, 10)),
}


def random_model(config: LlamaConfig = SMALL, seed: int = 0, dtype: type = np.float32) -> Llama:
    """A model with weights so large that every part of it matters."""
    return with_large_weights(Llama(config).to(dtype), seed=seed)


def number_of_weights(config: LlamaConfig) -> int:
    """The number of weights, counted by hand."""
    C, D, H, G = config.channels, config.size_of_head, config.heads, config.kv_heads
    block = 2 * C + (H + 2 * G) * D * (C + config.qkv_bias) + H * D * C + 3 * C * config.hidden
    block += 2 * D * config.qk_norm + C * config.proj_bias + (2 * config.hidden + C) * config.mlp_bias
    return config.vocab_size * C * (1 if config.tied else 2) + config.layers * block + C


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_count_on_paper_is_right(config) -> None:
    assert Llama(config).num_parameters() == number_of_weights(config)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config) for name, config in PRESETS.items()} == {
        "nano": 31_392,
        "smollm2-135m": 134_515_008,
        "qwen2-0.5b": 494_032_768,
        "qwen3-0.6b": 596_049_920,
        "phi-3-mini-4k": 3_821_079_552,
        "llama-2-7b": 6_738_415_616,
        "mistral-7b": 7_241_732_096,
        "llama-3.2-1b": 1_235_814_400,
    }


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_no_position_sees_a_later_token_nor_one_beyond_the_window(config, rng) -> None:
    model, ids = random_model(config), rng.integers(0, 19, (2, 16))
    before = model(ids).data
    is_far = config.window is None or config.full_blocks
    reach = 16 if is_far else config.layers * (config.window - 1)  # block by block
    for t in range(16):
        changed = ids.copy()
        changed[:, t] = (ids[:, t] + 1 + rng.integers(0, 18, 2)) % 19
        moved = (model(changed).data != before).any(axis=-1)
        expected = (np.arange(16) >= t) & (np.arange(16) <= t + reach)
        np.testing.assert_array_equal(moved, np.broadcast_to(expected, (2, 16)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("pieces", [[1] * 16, [16], [5, 1, 1, 1, 8], [7, 9]])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_cached_logits_are_those_without_a_cache(config, dtype, tolerance, pieces, rng):
    model = random_model(config, dtype=dtype).eval()
    ids = rng.integers(0, 19, (3, 16))
    with no_grad():
        cache, start = model.new_cache(batch=3), 0
        for size in pieces:
            if not model.keeps_cache(start, start + size):
                with pytest.raises(InputError, match=rf"angles of {start + size} tokens are not those of the {start}"):
                    model.next_logits(ids[:, start : start + size], cache)
                cache, start, size = model.new_cache(batch=3), 0, start + size
            logits = model.next_logits(ids[:, start : start + size], cache).data
            start += size
            expected = model(ids[:, :start]).data[:, -1]
            assert np.abs(logits - expected).max() / np.abs(expected).max() < tolerance
        if config.context == 16:
            with pytest.raises(ShapeError, match="Llama: ids have T=17 with the cache, but the context is 16"):
                model.next_logits(ids[:, :1], cache)


def naive_logits(model: Llama, ids: np.ndarray) -> np.ndarray:
    """Logits of one sequence, one head and one position at a time, as in the papers; without scaling of the angles."""
    config, weights = model.config, {name: array.astype(float) for name, array in model.state_dict().items()}
    D, group, T = config.size_of_head, config.heads // config.kv_heads, len(ids)

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * weights[name]

    def turned(x, position):
        first, second = x[: D // 2], x[D // 2 :]
        angle = position * config.rope_base ** (-2 * np.arange(D // 2) / D)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([first * cos - second * sin, first * sin + second * cos])

    x = weights["wte.weight"][ids]
    for i in range(config.layers):
        h = f"h.{i}"
        qkv = norm(x, f"{h}.ln_1.weight") @ weights[f"{h}.attn.qkv.weight"].T + weights.get(f"{h}.attn.qkv.bias", 0)
        heads = qkv.reshape(T, -1, D)
        y = np.zeros((T, config.heads, D))
        for head in range(config.heads):
            key_head = config.heads + head // group
            for t in range(T):
                seen = range(max(0, t + 1 - (config.window if config.has_window(i) else T)), t + 1)
                q = turned(heads[t, head], t)
                score = np.exp([q @ turned(heads[j, key_head], j) / np.sqrt(D) for j in seen])
                y[t, head] = score / score.sum() @ heads[list(seen), key_head + config.kv_heads]
        x = x + y.reshape(T, -1) @ weights[f"{h}.attn.proj.weight"].T
        z = norm(x, f"{h}.ln_2.weight")
        gate = z @ weights[f"{h}.mlp.gate.weight"].T
        hidden = gate / (1 + np.exp(-gate)) * (z @ weights[f"{h}.mlp.up.weight"].T)
        x = x + hidden @ weights[f"{h}.mlp.down.weight"].T
    return norm(x, "ln_f.weight") @ weights["wte.weight" if config.tied else "lm_head.weight"].T


@pytest.mark.parametrize("name", ["llama", "tied", "mistral", "qwen2", "qwen2 windows", "phi3"])
def test_logits_are_those_of_the_papers(name, rng) -> None:
    model, ids = random_model(KINDS[name], dtype=np.float64), rng.integers(0, 19, 9)
    expected = naive_logits(model, ids)
    np.testing.assert_allclose(model(ids[None]).data[0], expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["llama", "qwen2 windows", "qwen3", "phi4", "longrope", "dynamic"])
def test_it_generates_what_its_logits_say(name) -> None:
    """Generation equals full forwards, even if all angles change on the way and the cache becomes invalid."""
    model = random_model(KINDS[name])
    text = [1, 2, 3]
    for token in generate(model, text, 12, temperature=0):
        assert token == model(np.array([text])).data[0, -1].argmax()
        text.append(token)


def test_every_gradient_equals_central_differences(rng) -> None:
    model = random_model(KINDS["mistral"], dtype=np.float64)
    ids, targets = rng.integers(0, 19, (2, 2, 16))
    check_slopes(model, lambda: model.loss(ids, targets), rng)


def test_it_learns_one_batch_by_heart(rng) -> None:
    minillm.manual_seed(0)
    model = Llama(SMALL)
    optimizer = AdamW(model.parameters(), 1e-2)
    ids, targets = rng.integers(0, 19, (2, 2, 16))
    ids[:, 0] = 0, 1  # so that equal beginnings continue equally
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize("name", ["biases", "qwen3 windows", "phi4 longrope", "dynamic"])
def test_every_gradient_of_a_relative_equals_central_differences(name, rng) -> None:
    model = random_model(KINDS[name], dtype=np.float64)
    ids, targets = rng.integers(0, 19, (2, 2, 14))
    check_slopes(model, lambda: model.loss(ids, targets), rng)


def test_a_head_that_turns_in_part_is_a_part_that_turns_beside_a_rest_that_stays(rng) -> None:
    x, table = rng.normal(size=(2, 5, 8)), ops.rope_table(5, 6)
    y = llama.rotate(minillm.tensor(x), *table).data
    np.testing.assert_allclose(y[..., :6], ops.rope(minillm.tensor(x[..., :6].copy()), *table).data)
    np.testing.assert_array_equal(y[..., 6:], x[..., 6:])


def test_angles_by_length_are_those_of_the_whole_text(rng) -> None:
    """Up to the original context, the angles are those of a shorter text; beyond it, all of them differ."""
    dynamic = KINDS["dynamic"]
    longer = 2.0 * 16 / 10 - 1
    assert longer > 2
    for length, base in ((10, 1e4), (16, 1e4 * longer ** (8 / 6))):
        for ours, theirs in zip(tables(dynamic, length), ops.rope_table(length, 8, base), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)
    short, long = (ops.rope_table(5, 8, 1e4, 0, RopeScaling("longrope", 1.0, n, **LONG)) for n in (5, 4))
    frequency = 1e4 ** (-np.arange(4) / 4)
    for found, divisors in ((short, LONG["short"]), (long, LONG["long"])):
        np.testing.assert_allclose(found[0], np.cos(np.outer(np.arange(5), frequency / divisors)), atol=1e-12)
    stretched = ops.rope_table(5, 8, 1e4, 0, RopeScaling("longrope", 4.0, 64, **LONG))
    np.testing.assert_allclose(stretched[0], short[0] * np.sqrt(1 + np.log(4) / np.log(64)))


def test_texts_of_different_lengths_have_no_angles_by_length_in_common() -> None:
    model = random_model(KINDS["longrope"]).eval()
    alone = [list(generate(model, prompt, 3, temperature=0)) for prompt in ([1, 2, 3], [4])]
    assert generate_batch(model, [[1, 2, 3], [4]], 3, temperature=0) == alone
    with pytest.raises(InputError, match="different lengths have different angles beyond 8 tokens; give one"):
        generate_batch(model, [[1, 2, 3], [4]], 8, temperature=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "LlamaConfig: hidden is 0; give 1 or more"),
        ({"heads": 3}, "LlamaConfig: heads=3 is not a multiple of kv_heads=2"),
        ({"heads": 6}, "LlamaConfig: channels=16 is not a multiple of heads=6"),
        ({"head_size": 5}, "LlamaConfig: a head has 5 channels by head_size.*; rotary pairs need an even number"),
        ({"window": 0}, "LlamaConfig: window is 0; give 1 or more, or None for no window"),
        ({"vocab_size": "50257"}, "LlamaConfig: vocab_size is '50257'; give a whole number"),
        ({"layers": 2.0}, r"LlamaConfig: layers is 2\.0; give a whole number"),
        ({"layers": True}, "LlamaConfig: layers is True; give a whole number"),
        ({"channels": -16}, "LlamaConfig: channels is -16; give 1 or more"),
        ({"norm_eps": float("nan")}, "LlamaConfig: norm_eps is nan; give a finite number"),
        ({"rope_base": 0.0}, r"LlamaConfig: rope_base is 0\.0; give a number above 0"),
        ({"tied": "yes"}, "LlamaConfig: tied is 'yes'; give True or False"),
        ({"window": 2.5}, r"LlamaConfig: window is 2\.5; give a whole number or None"),
        ({"full_blocks": [1]}, r"LlamaConfig: full_blocks is \[1\]; give a tuple of whole numbers"),
        ({"rotary": 6}, "LlamaConfig: rotary is 6; give an even number, 2 to 4"),
        ({"rope_scaling": RopeScaling("linear", 0.0, 8)}, r"kind 'linear' has factor=0\.0; give a number above 0"),
        ({"rope_scaling": RopeScaling("ntk", 2.0, 8)}, "kind 'ntk' is not known; choose one of linear, dynamic"),
        ({"rope_scaling": RopeScaling("longrope", 2.0, 8, short=(1.0,))}, "has 1 values in short; give 2 above 0"),
        ({"head_size": 2, "rope_scaling": RopeScaling("dynamic", 2.0, 8)}, "'dynamic' needs 4 or more rotated"),
    ],
)
def test_a_config_that_cannot_be(change, message) -> None:
    values = {"channels": 16, "heads": 4, "kv_heads": 2} | change
    with pytest.raises(InputError, match=message):
        LlamaConfig(**values)


def test_layouts_convert_into_each_other(rng) -> None:
    """Reordered weights, rotated in the other layout, give the same scores of queries and keys."""
    H, D, C, T = 3, 8, 5, 7
    query, key, x = rng.normal(size=(H * D, C)), rng.normal(size=(H * D, C)), rng.normal(size=(T, C))
    table = ops.rope_table(T, D)

    def scores(layout, query, key):
        q, k = (
            ops.rope(minillm.tensor((x @ weight.T).reshape(T, H, D).swapaxes(0, 1)), *table, layout).data
            for weight in (query, key)
        )
        return q @ k.swapaxes(-1, -2)

    half = [ops.interleaved_to_half(weight, D) for weight in (query, key)]
    np.testing.assert_allclose(scores("half", *half), scores("interleaved", query, key), atol=1e-12)
    assert np.abs(scores("half", query, key) - scores("interleaved", query, key)).max() > 0.1
    for weight, turned in zip((query, key), half, strict=True):
        np.testing.assert_array_equal(ops.half_to_interleaved(turned, D), weight)


# Hugging Face's


DAMAGES = [None, "absent", "2", -1, 0, float("nan"), float("inf"), [1.0], {}, True, 10**400, ["a"], [1e400] * 4, 1e308]


def rope_of(kind: Any) -> dict[str, Any]:
    four = [1.0, 1.5, 2.0, 3.0]
    values = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "short_factor": four, "long_factor": four}
    return {"rope_type": kind, "rope_theta": 1e4, "original_max_position_embeddings": 8, **values}


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "phi3"])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic", "llama3", "yarn", "longrope", "ntk", 5, None, [1]])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_any_damaged_setting_of_the_angles_is_taken_or_named(place, kind, model_type) -> None:
    values = llama.config_to_hugging_face(SMALL) | {"model_type": model_type, "sliding_window": None}
    whole = rope_of(kind) | {"attention_factor": 1.0, "beta_fast": 32.0, "mscale": None, "truncate": None}
    for key in (*whole, "partial_rotary_factor"):
        for damage in DAMAGES:
            rope = {name: value for name, value in whole.items() if name != key}
            rope |= {} if damage == "absent" else {key: damage}
            try:
                config = llama.config_from_hugging_face({**values, "rope_parameters": None, place: rope})
            except InputError as error:
                said = str(error)
            else:
                said = "load: config.json has "
                assert all(np.isfinite(table).all() for table in tables(config, 4))
            assert said.startswith("load: config.json has ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_type": "ntk"}, "rope_scaling with rope_type='ntk'; here it can only be default, linear, dynamic"),
        ({"factor": None}, "rope_scaling of type 'llama3' without factor; add its number"),
        ({"factor": "8"}, r"rope_scaling with factor='8'; give a number of 1e\+18 at most"),
        ({"factor": -8.0}, "rope_parameters={.*kind 'llama3' has factor=-8.0; give a number above 0"),
        ({"high_freq_factor": 1.0}, "kind 'llama3' has low_frequency_factor=1.0 and high_frequency_factor=1.0; the"),
        ({"partial_rotary_factor": 0.5}, "rope_scaling with partial_rotary_factor=0.5; here it can only be 1"),
        ({"full_attention": {}}, "of several kinds of layers; Llama here has one"),
    ],
)
def test_what_is_said_of_damaged_angles(change, message) -> None:
    values = {"model_type": "llama", "rope_scaling": rope_of("llama3") | change, "rope_parameters": {}}
    with pytest.raises(InputError, match=f"^load: config.json has .*{message}"):
        llama.config_from_hugging_face(values)


@pytest.mark.parametrize(
    ("values", "window", "full_blocks"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}, None, ()),
        ({"use_sliding_window": True, "sliding_window": 8}, None, ()),  # the default is 28 layers without one
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, 8, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, 8, (0, 1)),
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, None, ()),
        ({"sliding_window": 8, "max_window_layers": 0}, None, ()),
        ({"use_sliding_window": True, "max_window_layers": 0}, 4096, ()),
        ({"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}, None, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "layer_types": ["full_attention"] * 3}, None, ()),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "max_window_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            8,
            (1,),
        ),
    ],
)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_which_blocks_have_the_window(model_type, values, window, full_blocks) -> None:
    config = llama.config_from_hugging_face({"model_type": model_type, "num_hidden_layers": 3, **values})
    assert (config.window, config.full_blocks) == (window, full_blocks)


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "mistral", "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "llama", "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "qwen2", "layer_types": ["sliding_attention", "full_attention"]},
        {"model_type": "qwen3", "layer_types": ["linear_attention", "full_attention"]},
        {"model_type": "qwen3", "layer_types": ["full_attention"]},
        {"model_type": "qwen3", "layer_types": "full_attention"},
    ],
)
def test_layers_that_are_not_done_are_refused_by_name(values) -> None:
    with pytest.raises(InputError, match=r"^load: config.json has layer_types="):
        llama.config_from_hugging_face({"num_hidden_layers": 2, **values})


def test_a_model_that_no_type_is_like_is_not_written(tmp_path) -> None:
    with pytest.raises(InputError, match=r"save_pretrained: LlamaConfig\(.* has no form in Hugging Face's format"):
        Llama(replace(SMALL, window=4, full_blocks=(0,))).save_pretrained(tmp_path / "new")
    with pytest.raises(
        InputError, match=r"context=16, but .* original_context times factor for dynamic scaling, here 20"
    ):
        Llama(replace(KINDS["dynamic"], context=16)).save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def tables(config: LlamaConfig, length: int, windowed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin at positions 0 to length."""
    return llama.cos_sin_tables(config.rotary_channels, *config.rope(windowed), 0, length)


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_logits_gradients_and_a_step_equal_hugging_faces(config, dtype, tolerance, rng, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = random_model(config, dtype=dtype)
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, np.dtype(dtype).name), attn_implementation="sdpa"
    )
    if dtype == np.float64:
        llama_in_float64(reference, model)
    ids, targets = rng.integers(0, 19, (2, 3, 16))
    targets[1, 5:] = -100
    check_language_model(model, reference, ids, targets, tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama", "linear", "llama3", "yarn", "phi4", "longrope", "phi4 longrope", "dynamic"])
def test_rotary_tables_equal_hugging_faces(kind, tmp_path) -> None:
    """transformers' tables are in float32, and so are the angles that they come from."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = KINDS[kind]
    Llama(config).save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = reference.model.rotary_emb(torch.zeros(1), torch.arange(16)[None])
    for ours, theirs in zip(tables(config, 16), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, : ours.shape[1]].numpy(), atol=3e-6)


@pytest.mark.oracle
@pytest.mark.parametrize("first", [0, 1, 2, 3, None])
@pytest.mark.parametrize("name", ["qwen2 windows", "qwen3 windows"])
def test_windows_by_the_number_of_the_layer_alone(name, first, rng, tmp_path) -> None:
    """The windows of files without layer_types."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    random_model(KINDS[name]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text()) | {"max_window_layers": first}
    path.write_text(json.dumps({key: x for key, x in values.items() if x is not None and key != "layer_types"}))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model, ids = minillm.load(tmp_path), rng.integers(0, 19, (2, 16))
    assert (model.config.window is None) == (first in (3, None))
    with torch.no_grad():
        expected = reference(torch.tensor(ids)).logits.numpy()
    assert np.abs(model(ids).numpy() - expected).max() / np.abs(expected).max() < 1e-5


def test_kv_heads_are_accepted_under_their_name_before() -> None:
    config = LlamaConfig.preset("nano", key_heads=1)
    assert (config.kv_heads, config.key_heads) == (1, 1)
    assert config == LlamaConfig.preset("nano", kv_heads=1)
    assert "key_heads" not in repr(config)
