"""Llama: its sizes, that it never sees the future nor beyond its window, and Hugging Face's implementations of it."""

from __future__ import annotations

import numpy as np
import pytest
from model_checks import check_parameters, check_slopes, optimizers, with_large_weights

import minillm
from minillm import ops
from minillm.autograd import no_grad
from minillm.errors import InputError, ShapeError
from minillm.generate import generate
from minillm.models import llama
from minillm.models.llama import PRESETS, Llama, LlamaConfig
from minillm.ops.rope import RopeScaling
from minillm.optim import AdamW

SMALL = LlamaConfig(19, context=16, layers=2, heads=4, key_heads=2, channels=16, hidden=24)
KINDS = {
    "llama": SMALL,
    "tied": LlamaConfig(19, 16, 2, 4, 1, 16, 24, tied=True, norm_eps=1e-6),
    "mistral": LlamaConfig(19, 16, 3, 4, 2, 16, 24, head_size=6, window=5),
    "qwen2": LlamaConfig(19, 16, 2, 4, 4, 16, 24, qkv_bias=True, rope_base=1e3),
    "linear": LlamaConfig(19, 16, 2, 2, 2, 16, 24, rope_scaling=RopeScaling("linear", 3.0, 8)),
    "llama3": LlamaConfig(19, 16, 2, 2, 2, 32, 24, rope_scaling=RopeScaling("llama3", 8.0, 64, 1.0, 4.0)),
    "yarn": LlamaConfig(19, 16, 2, 2, 2, 32, 24, rope_scaling=RopeScaling("yarn", 4.0, 64)),
}


def random_model(config: LlamaConfig = SMALL, seed: int = 0, dtype: type = np.float32) -> Llama:
    """A model whose weights are large enough that every part of it matters."""
    return with_large_weights(Llama(config).to(dtype), seed=seed)


def number_of_weights(config: LlamaConfig) -> int:
    """Counted on paper."""
    C, D, H, G = config.channels, config.size_of_head, config.heads, config.key_heads
    block = 2 * C + (H + 2 * G) * D * (C + config.qkv_bias) + H * D * C + 3 * C * config.hidden
    return config.vocab_size * C * (1 if config.tied else 2) + config.layers * block + C


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_count_on_paper_is_right(config) -> None:
    assert Llama(config).num_parameters() == number_of_weights(config)


def test_the_presets_have_the_published_numbers_of_weights() -> None:
    assert {name: number_of_weights(config) for name, config in PRESETS.items()} == {
        "nano": 31_392,
        "smollm2-135m": 134_515_008,
        "qwen2-0.5b": 494_032_768,
        "llama-2-7b": 6_738_415_616,
        "mistral-7b": 7_241_732_096,
        "llama-3.2-1b": 1_235_814_400,
    }


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_no_position_sees_a_later_token_nor_one_beyond_the_window(config, rng) -> None:
    model, ids = random_model(config), rng.integers(0, 19, (2, 16))
    before = model(ids).data
    reach = 16 if config.window is None else config.layers * (config.window - 1)  # block by block
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
    expected = model(ids).data
    with no_grad():
        cache, start = model.new_cache(batch=3), 0
        for size in pieces:
            logits = model.next_logits(ids[:, start : start + size], cache).data
            start += size
            error = np.abs(logits - expected[:, start - 1]).max() / np.abs(expected).max()
            assert error < tolerance
        with pytest.raises(ShapeError, match="Llama: ids have T=17 with the cache, but the context is 16"):
            model.next_logits(ids[:, :1], cache)


def naive_logits(model: Llama, ids: np.ndarray) -> np.ndarray:
    """One sequence, one head and one position at a time, as the papers write it; no scaling of the angles."""
    config, weights = model.config, {name: array.astype(float) for name, array in model.state_dict().items()}
    D, group, T = config.size_of_head, config.heads // config.key_heads, len(ids)

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
                seen = range(max(0, t + 1 - (config.window or T)), t + 1)
                q = turned(heads[t, head], t)
                score = np.exp([q @ turned(heads[j, key_head], j) / np.sqrt(D) for j in seen])
                y[t, head] = score / score.sum() @ heads[list(seen), key_head + config.key_heads]
        x = x + y.reshape(T, -1) @ weights[f"{h}.attn.proj.weight"].T
        z = norm(x, f"{h}.ln_2.weight")
        gate = z @ weights[f"{h}.mlp.gate.weight"].T
        hidden = gate / (1 + np.exp(-gate)) * (z @ weights[f"{h}.mlp.up.weight"].T)
        x = x + hidden @ weights[f"{h}.mlp.down.weight"].T
    return norm(x, "ln_f.weight") @ weights["wte.weight" if config.tied else "lm_head.weight"].T


@pytest.mark.parametrize("name", ["llama", "tied", "mistral", "qwen2"])
def test_logits_are_those_of_the_papers(name, rng) -> None:
    model, ids = random_model(KINDS[name], dtype=np.float64), rng.integers(0, 19, 9)
    expected = naive_logits(model, ids)
    np.testing.assert_allclose(model(ids[None]).data[0], expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


def test_it_generates_what_its_logits_say(rng) -> None:
    model = random_model()
    text = [1, 2, 3]
    for token in generate(model, text, 8, temperature=0):
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
    ids[:, 0] = 0, 1  # so that no two begin alike and go on differently
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 0}, "LlamaConfig: hidden is 0; give 1 or more"),
        ({"heads": 3}, "LlamaConfig: heads=3 is not a multiple of key_heads=2"),
        ({"heads": 6}, "LlamaConfig: channels=16 is not a multiple of heads=6"),
        ({"head_size": 5}, "LlamaConfig: a head has 5 channels; rotary pairs need an even number"),
        ({"window": 0}, "LlamaConfig: window is 0; give 1 or more, or None for no window"),
    ],
)
def test_a_config_that_cannot_be(change, message) -> None:
    values = {"channels": 16, "heads": 4, "key_heads": 2} | change
    with pytest.raises(InputError, match=message):
        LlamaConfig(**values)


def test_layouts_convert_into_each_other(rng) -> None:
    """Turned in the other layout, reordered weights give the same scores of queries with keys."""
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


def in_float64(reference, model, monkeypatch, transformers) -> None:
    """transformers computes norms and rotary tables in float32 whatever the dtype: give it ours for these."""
    import torch

    for module in reference.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda x, m=module: (
                m.weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
            )
        if type(module).__name__.endswith("RotaryEmbedding"):

            def tables(x, position_ids, **_):
                cos, sin = (torch.tensor(t) for t in llama._turn(model.config, 0, position_ids.shape[-1]))
                return torch.cat([cos, cos], -1)[None], torch.cat([sin, sin], -1)[None]

            module.forward = tables


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-10)])
@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_logits_gradients_and_a_step_equal_hugging_faces(config, dtype, tolerance, rng, monkeypatch, tmp_path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = random_model(config, dtype=dtype)
    model.save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=getattr(torch, np.dtype(dtype).name), attn_implementation="sdpa"
    )
    if dtype == np.float64:
        in_float64(reference, model, monkeypatch, transformers)

    check_parameters("data", model, reference, 1e-30)
    ids, targets = rng.integers(0, 19, (2, 3, 16))
    targets[1, 5:] = -100
    expected = reference(torch.tensor(ids)).logits
    assert np.abs(model(ids).data - expected.detach().numpy()).max() / expected.abs().max().item() < tolerance
    loss = model.loss(ids, targets)
    loss.backward()
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(targets).flatten())
    expected_loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=tolerance)
    check_parameters("grad", model, reference, tolerance)
    optimizer, theirs_optimizer = optimizers(model, reference)
    optimizer.step()
    theirs_optimizer.step()
    check_parameters("data", model, reference, tolerance)


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["llama", "linear", "llama3", "yarn"])
def test_rotary_tables_equal_hugging_faces(kind, tmp_path) -> None:
    """Theirs are in float32, and so are the angles that they are made of."""
    transformers = pytest.importorskip("transformers")
    import torch

    config = KINDS[kind]
    Llama(config).save_pretrained(tmp_path)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    expected = reference.model.rotary_emb(torch.zeros(1), torch.arange(16)[None])
    for ours, theirs in zip(llama._turn(config, 0, 16), expected, strict=True):
        np.testing.assert_allclose(ours, theirs[0, :, : ours.shape[1]].numpy(), atol=3e-6)
