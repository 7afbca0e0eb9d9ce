"""Tensor parallelism: logits, loss and gradients of one process, in parts; what is sent; faults in every part."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from unittest import mock

import numpy as np
import pytest

import minillm
from minillm import Tensor, cuda, ops, random
from minillm.autograd import Op
from minillm.dtypes import as_dtype
from minillm.engine import engine
from minillm.errors import InputError, ShapeError
from minillm.generate import generate
from minillm.models.bert import BertConfig, BertForMaskedLM
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.ops import vocabulary_cross_entropy as loss_file
from minillm.parallel import collective_ops
from minillm.parallel import tensor_parallel as tp
from minillm.parallel.communicator import Alone, Trace, bounds, bytes_sent
from minillm.parallel.shard import Shard, shard, shard_specs, unshard

V, B, T = 37, 3, 9  # V divides by no number of ranks
GPT = GPT2Config(V, context=12, layers=2, heads=4, channels=24)
LLAMA = LlamaConfig(V, context=12, layers=2, heads=8, kv_heads=4, channels=24, hidden=20, head_size=6)
CONFIGS = {
    "gpt2": GPT,
    "gpt2-dropout": GPT2Config(V, 12, 2, 4, 24, dropout=0.2),
    "gpt2-without-bias": GPT2Config(V, 12, 1, 4, 24, dropout=0.2, bias=False),
    "llama": LLAMA,
    "llama-tied": LlamaConfig(V, 12, 2, heads=4, kv_heads=4, channels=24, hidden=20, qkv_bias=True, tied=True),
    "llama-window": LlamaConfig(V, 12, 1, 8, 4, 24, 20, head_size=6, qkv_bias=True, window=4),
    "llama-windows-biases": LlamaConfig(
        *(V, 12, 2, 4, 4, 24, 20), qkv_bias=True, proj_bias=True, mlp_bias=True, window=4, full_blocks=(0,)
    ),
    "llama-in-part": LlamaConfig(V, 12, 2, heads=4, kv_heads=4, channels=32, hidden=20, rotary=4, kind="phi3"),
    "gpt2-other": GPT2Config(V, 12, 2, 4, 24, hidden=20, activation="relu", tied=False, attention_dropout=0.2),
}


def whole_model(config, dtype="float64"):
    """Weights far from their start, biases too, the same wherever this is called."""
    minillm.manual_seed(5)
    model = (GPT2 if isinstance(config, GPT2Config) else Llama)(config).to(dtype)
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data += rng.normal(0, 0.3, parameter.shape).astype(parameter.dtype)
    return model


def batch(rows=B, tokens=T):
    ids, targets = np.random.default_rng(2).integers(0, V, (2, rows, tokens))
    targets[0, :3] = -100
    ids[0, :2], targets[-1, -2:] = (0, V - 1), (0, V - 1)
    return ids, targets


def outcome(model, reduction="mean"):
    """Loss and gradients of a step with dropout, logits without, and where the random stream stands."""
    ids, targets = batch()
    minillm.manual_seed(9)
    random.default.reserve(100)
    loss = model.loss(ids, targets, reduction)
    loss.backward()
    place, gradients = random.default.state(), {name: p.grad for name, p in model.named_parameters()}
    with minillm.no_grad():
        logits = model.eval()(ids).data
    return {"loss": loss.data, "logits": logits, **gradients}, place


def step(communicator, config, dtype, reduction="mean", fault=None):
    with FAULTS[fault]() if fault else contextlib.nullcontext():
        model = tp.tensor_parallel(whole_model(config, dtype), communicator)
        return *outcome(model, reduction), shard_specs(model)


def difference(parts, config, dtype, reduction="mean"):
    """The largest difference of any result from that of one process, relative to the largest number of that result."""
    expected, place = outcome(whole_model(config, dtype), reduction)
    specs = parts[0][2]
    worst = 0.0
    for name, whole in expected.items():
        received = np.full_like(whole, np.nan)
        for results, _, specs in parts:
            assert results[name].dtype == whole.dtype, name
            unshard(specs.get(name), received, results[name])
        if specs.get(name) is None:
            assert len({results[name].tobytes() for results, *_ in parts}) == 1, f"{name} differs between ranks"
        worst = max(worst, float(np.abs(received - whole).max() / np.abs(whole).max()))
    assert all(part_place == place for _, part_place, _ in parts)
    return worst


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_one_process(ranks, name, n):
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-5)):
        parts = ranks(n).run(step, CONFIGS[name], dtype)
        assert difference(parts, CONFIGS[name], dtype) < tolerance


def test_equals_one_process_on_three_ranks_by_the_sum_of_losses(ranks):
    config = LlamaConfig(V, 12, 2, heads=6, kv_heads=3, channels=24, hidden=21)
    parts = ranks(3).run(step, config, "float64", "sum")
    assert difference(parts, config, "float64", "sum") < 1e-12


# --- faults -----------------------------------------------------------------------------------------------------------


def without_sum_backward():
    return mock.patch.object(
        collective_ops, "COPY", Op("copy", collective_ops.copy_forward, lambda dout, _: (dout.copy(),))
    )


def with_sum_backward():
    def backward(dout, inside):
        dx = dout * 2  # what a sum of two equal gradients gives
        return dx, None

    return mock.patch.object(collective_ops, "REDUCE", Op("reduce", collective_ops.reduce_forward, backward))


def bias_on_every_rank():
    def forward(self, x):
        return collective_ops.reduce_from_ranks(ops.linear(x, self.weight, self.bias), self.communicator)

    return mock.patch.object(tp.RowParallelLinear, "forward", forward)


def one_run_of_rows():
    right = tp.divided
    return mock.patch.object(tp, "divided", lambda axis, sizes, communicator: right(axis, [sum(sizes)], communicator))


def rows_of_others():
    def forward(self, ids):
        first, stop = self.shards["weight"].runs[0]
        return collective_ops.reduce_from_ranks(
            ops.embedding(np.clip(ids - first, 0, stop - first - 1), self.weight), self.communicator
        )

    return mock.patch.object(tp.VocabParallelEmbedding, "forward", forward)


def gradient_of_others_rows():
    right = collective_ops.reduce_backward
    return mock.patch.object(
        collective_ops,
        "REDUCE",
        Op("reduce", collective_ops.reduce_forward, lambda dout, _: right(dout, None), aliases=True),
    )


def largest_of_own_logits():
    def forward(logits, targets, *, communicator, **settings):
        sums = mock.Mock(wraps=communicator)
        sums.all_reduce = lambda array, op="sum", what="": communicator.all_reduce(
            array if op == "sum" else array.copy(), op, what
        )
        return loss_file.vocabulary_cross_entropy_forward(logits, targets, communicator=sums, **settings)

    return mock.patch.object(
        loss_file, "VOCABULARY_CROSS_ENTROPY", Op("loss", forward, loss_file.vocabulary_cross_entropy_backward)
    )


def target_on_every_rank():
    def backward(dout, saved):
        is_target = saved.is_target.copy()
        is_target[..., 0] |= ~is_target.any(axis=-1)
        return loss_file.vocabulary_cross_entropy_backward(dout, saved._replace(is_target=is_target))

    return mock.patch.object(
        loss_file, "VOCABULARY_CROSS_ENTROPY", Op("loss", loss_file.vocabulary_cross_entropy_forward, backward)
    )


def heads_of_the_first_rank():
    right = tp.random.part
    return mock.patch.object(tp.random, "part", lambda heads: right(heads=(0, heads[1]) if heads else None))


def mask_of_own_heads_only():
    return mock.patch.object(tp.random, "part", lambda heads: contextlib.nullcontext())  # noqa: PT008


def padding_in_the_logits():
    def forward(x, *, size, communicator):
        whole, mine = collective_ops.gather_forward(x, size=size, communicator=communicator)
        whole[..., 1:] = whole[..., :-1].copy()
        return whole, mine

    return mock.patch.object(collective_ops, "GATHER", Op("gather", forward, collective_ops.gather_backward))


FAULTS = {
    function.__name__.replace("_", " "): function
    for function in (
        without_sum_backward,
        with_sum_backward,
        bias_on_every_rank,
        one_run_of_rows,
        rows_of_others,
        gradient_of_others_rows,
        largest_of_own_logits,
        target_on_every_rank,
        heads_of_the_first_rank,
        mask_of_own_heads_only,
        padding_in_the_logits,
    )
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(ranks, fault):
    config = CONFIGS["gpt2-dropout"]
    parts = ranks(2).run(step, config, "float64", "mean", fault)
    try:
        caught = not difference(parts, config, "float64") < 1e-6
    except AssertionError:
        caught = True
    assert caught


# --- the operations ---------------------------------------------------------------------------------------------------


def divided_loss(logits, targets, communicator, size, **settings):
    first, stop = bounds(size, communicator.size)[communicator.rank : communicator.rank + 2]
    return loss_file.vocabulary_cross_entropy(logits, targets, communicator, (first, stop), size, **settings)


def joint_differences(communicator, name, seed):
    """|<u, f(x + e v) - f(x - e v)> / 2e - <df, v>| of a function that all ranks compute together, and its scale.

    `whole` arrays are the same on all ranks, `own` ones are each rank's. So is the result of copy; others are the same.
    """
    make = np.random.default_rng(seed)  # the same on all ranks
    mine = np.random.default_rng(1000 * seed + communicator.rank)
    n, rank = communicator.size, communicator.rank
    edges = bounds(7, n)
    columns = edges[rank + 1] - edges[rank]
    targets = make.integers(0, 7, (2, 3))
    targets[0, 1] = -100
    inside = mine.random((2, 3)) < 0.5

    def block(x, a, b):
        return collective_ops.reduce_from_ranks(
            ops.linear(ops.gelu(ops.linear(collective_ops.copy_to_ranks(x, communicator), a)), b), communicator
        )

    def loss(x, reduction):
        return divided_loss(x, targets, communicator, 7, reduction=reduction)

    function, whole, own = {
        "copy": (lambda x: collective_ops.copy_to_ranks(x, communicator), [(2, 3, 5)], []),
        "reduce": (lambda x: collective_ops.reduce_from_ranks(x, communicator), [], [(2, 3, 5)]),
        "reduce-inside": (lambda x: collective_ops.reduce_from_ranks(x, communicator, inside), [], [(2, 3, 5)]),
        "gather": (lambda x: collective_ops.gather_from_ranks(x, communicator, 7), [], [(2, 3, columns)]),
        "block": (block, [(2, 3, 5)], [(4, 5), (5, 4)]),
        "mean": (lambda x: loss(x, "mean"), [], [(2, 3, columns)]),
        "sum": (lambda x: loss(x, "sum"), [], [(2, 3, columns)]),
        "none": (lambda x: loss(x, "none"), [], [(2, 3, columns)]),
    }[name]
    values = [make.normal(size=shape) for shape in whole] + [mine.normal(size=shape) for shape in own]
    ways = [make.normal(size=shape) for shape in whole] + [mine.normal(size=shape) for shape in own]
    leaves = [Tensor(value, requires_grad=True) for value in values]
    y = function(*leaves)
    replicated = name != "copy"
    u = (make if replicated else mine).normal(size=y.shape)
    y.backward(u)
    h = 1e-6

    def value(sign):
        y = function(*(Tensor(x + sign * h * v) for x, v in zip(values, ways, strict=True))).data
        dot = float((u * y).sum())
        return dot if replicated else communicator.sum_of(dot)[0]

    by_difference = (value(1) - value(-1)) / (2 * h)
    dots = [float((leaf.grad * v).sum()) for leaf, v in zip(leaves, ways, strict=True)]
    by_backward = sum(dots[: len(whole)]) + (communicator.sum_of(*dots[len(whole) :]) if own else [0.0])[0]
    if len(own) > 1:
        by_backward = sum(dots[: len(whole)]) + sum(communicator.sum_of(*dots[len(whole) :]))
    return abs(by_difference - by_backward), abs(by_difference)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", ["copy", "reduce", "reduce-inside", "gather", "block", "mean", "sum", "none"])
def test_backwards_by_differences_of_the_joint_function(ranks, name, n):
    for seed in (1, 2):
        for error, scale in ranks(n).run(joint_differences, name, seed):
            assert scale > 1e-3
            assert error < 1e-7 * max(1, scale)


def loss_of_parts(communicator, logits, targets, reduction, mode="fast", overwrite=False):
    edges = bounds(logits.shape[-1], communicator.size)
    mine = np.ascontiguousarray(logits[..., edges[communicator.rank] : edges[communicator.rank + 1]])
    x = Tensor(mine, requires_grad=True)
    with engine(mode):
        before = cuda.launch_counts()
        y = divided_loss(x, targets, communicator, logits.shape[-1], reduction=reduction, overwrite=overwrite)
        y.backward(np.full(y.shape, 0.7))
        ran = {name.split("<")[0] for name in cuda.launch_counts() - before}
    return y.data, x.grad, ran, np.shares_memory(x.grad, x.data)


def whole_loss(logits, targets, reduction):
    x = Tensor(logits, requires_grad=True)
    y = ops.cross_entropy(x, targets, reduction=reduction)
    y.backward(np.full(y.shape, 0.7))
    return y.data, x.grad


LOGITS = {
    "usual": lambda x: x,
    "large": lambda x: 1000 * x + 1e5,  # e^x overflows, and lse has no digits left for the loss
    "one far above": lambda x: np.where(np.arange(11) == 4, 500.0, x),
    "hidden classes": lambda x: np.where(np.arange(11) > 6, -np.inf, x),  # all of the last rank of three
}


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("values", LOGITS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mode", ["plain", "fast"])
def test_loss_of_parts(ranks, rng, values, reduction, mode):
    logits = LOGITS[values](rng.normal(size=(4, 5, 11)))
    targets = rng.integers(0, 7, (4, 5))
    targets[1], targets[0, :2] = -100, (0, 4)
    expected, gradient = whole_loss(logits, targets, reduction)
    results = ranks(3).run(loss_of_parts, logits, targets, reduction, mode, True)
    for loss, *_, overwritten in results:
        np.testing.assert_allclose(loss, expected, rtol=1e-13, atol=1e-13)
        assert overwritten == (mode == "fast")
    np.testing.assert_allclose(np.concatenate([r[1] for r in results], axis=-1), gradient, rtol=1e-9, atol=1e-13)


def test_loss_where_no_target_counts(ranks, rng):
    for loss, gradient, *_ in ranks(2).run(loss_of_parts, rng.normal(size=(3, 5)), np.full(3, -100), "mean"):
        assert loss == 0
        assert not gradient.any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="kernels run on a CPU by g++")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_loss_by_kernels(ranks, rng, dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
    logits, targets = rng.normal(size=(6, 300)).astype(as_dtype(dtype)), rng.integers(0, 300, 6)
    targets[2] = -100
    expected, gradient = whole_loss(logits.astype(np.float64), targets, "mean")
    tolerance = {"float64": 1e-13, "float32": 1e-6, "bfloat16": 4e-3}[dtype]
    for mode in ("emulate", "fast"):
        results = ranks(2).run(loss_of_parts, logits, targets, "mean", mode)
        received = np.concatenate([r[1] for r in results], axis=-1)
        assert received.dtype == logits.dtype
        np.testing.assert_allclose(received.astype(np.float64), gradient, rtol=0, atol=tolerance * abs(gradient).max())
        for loss, _, ran, _ in results:
            assert loss.dtype == (np.float64 if dtype == "float64" else np.float32)
            np.testing.assert_allclose(loss, expected, rtol=min(tolerance, 1e-6))
            assert ran == ({"cross_entropy_forward", "cross_entropy_backward"} if mode == "emulate" else set())


# --- what is sent -----------------------------------------------------------------------------------------------------


def traced_step(communicator, config, dtype, rows, tokens):
    communicator.trace = Trace()
    calls = []
    started = communicator.all_reduce

    def all_reduce(array, op="sum", what=""):
        calls.append((what, op, array.size))
        return started(array, op, what)

    communicator.all_reduce = all_reduce
    model = tp.tensor_parallel(whole_model(config, dtype), communicator)
    loss = model.loss(*batch(rows, tokens))
    forward = len(calls)
    loss.backward()
    return communicator.trace.messages, calls[:forward], calls[forward:]


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize(("config", "dtype"), [(GPT, "float32"), (LLAMA, "float64")], ids=["gpt2", "llama"])
def test_bytes_are_those_of_the_formula(ranks, config, dtype, n):
    rows, tokens = 2, 8
    results = ranks(n).run(traced_step, config, dtype, rows, tokens)
    sent = bytes_sent(itertools.chain.from_iterable(messages for messages, *_ in results))
    itemsize = np.dtype(dtype).itemsize
    expected = tp.step_bytes(config.layers, rows * tokens, config.channels, n, itemsize)
    assert expected == 2 * (n - 1) / n * 16 * ((4 * 2 + 2) * 24 + 3) * itemsize
    for rank in range(n):
        assert sum(count for (source, _), count in sent.items() if source == rank) == expected


def test_sums_of_a_block_are_two_forward_and_two_backward(ranks):
    _, forward, backward = ranks(2).run(traced_step, GPT, "float32", 2, 8)[0]
    activations = ("activations", "sum", 2 * 8 * 24)
    assert forward == [activations] * (1 + 2 * GPT.layers) + [("loss", "max", 16), ("loss", "sum", 32)]
    assert backward == [("activation gradients", "sum", 2 * 8 * 24)] * (1 + 2 * GPT.layers)


# --- whole models -----------------------------------------------------------------------------------------------------


def generated(communicator, config):
    model = tp.tensor_parallel(whole_model(config), communicator).eval()
    tokens = list(generate(model, [1, 2, 3], 6, temperature=0))
    shapes = {cache.keys.shape for cache in model.new_cache(2)}
    return tokens, shapes


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama-window"])
def test_generation(ranks, name):
    expected = list(generate(whole_model(CONFIGS[name]).eval(), [1, 2, 3], 6, temperature=0))
    for tokens, shapes in ranks(2).run(generated, CONFIGS[name]):
        assert tokens == expected
        assert shapes == {(2, 2, 12, 6)}


def shapes_of(communicator, config):
    whole = whole_model(config)
    names = [(name, parameter.name) for name, parameter in whole.named_parameters()]
    arrays = {name: parameter.data.copy() for name, parameter in whole.named_parameters()}
    model = tp.tensor_parallel(whole, communicator)
    assert [(name, parameter.name) for name, parameter in model.named_parameters()] == names
    specs = shard_specs(model)
    assert list(specs) == [name for name, _ in names]
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.data, shard(specs[name], arrays[name]))
        assert parameter.data.base is None or parameter.data.base.size == parameter.data.size  # the whole is freed
    return {name: parameter.shape for name, parameter in model.named_parameters()}, specs


def test_which_part_a_rank_has(ranks):
    parts = ranks(2).run(shapes_of, LLAMA)
    shapes, specs = parts[1]
    assert shapes["wte.weight"] == shapes["lm_head.weight"] == (18, 24)
    assert parts[0][0]["wte.weight"] == (19, 24)
    assert shapes["h.1.attn.qkv.weight"] == (24 + 12 + 12, 24)
    assert shapes["h.1.attn.proj.weight"] == (24, 24)
    assert shapes["h.1.mlp.gate.weight"] == shapes["h.1.mlp.up.weight"] == (10, 24)
    assert shapes["h.1.mlp.down.weight"] == (24, 10)
    assert specs["h.1.attn.qkv.weight"] == (0, ((24, 48), (60, 72), (84, 96)), 96)
    assert specs["h.1.attn.proj.weight"] == (1, ((24, 48),), 48)
    assert specs["ln_f.weight"] is None
    shapes, specs = ranks(2).run(shapes_of, GPT)[0]
    assert shapes["h.0.attn.qkv.bias"] == (36,)
    assert specs["h.0.attn.qkv.bias"] == (0, ((0, 12), (24, 36), (48, 60)), 72)
    assert [name for name, spec in specs.items() if spec is None and name.startswith(("h.0.", "w"))] == [
        "wpe.weight",
        *(f"h.0.{name}" for name in ("ln_1.weight", "ln_1.bias", "attn.proj.bias")),
        *(f"h.0.{name}" for name in ("ln_2.weight", "ln_2.bias", "mlp.proj.bias")),
    ]


@pytest.mark.parametrize("axis", [0, 1])
def test_shard_and_unshard(axis):
    whole = np.arange(77.0).reshape(7, 11)
    runs = [((0, 1), (3, 6)), ((1, 3), (6, whole.shape[axis]))]
    specs = [Shard(axis, run, whole.shape[axis]) for run in runs]
    parts = [shard(spec, whole) for spec in specs]
    assert [part.shape[axis] for part in parts] == [4, whole.shape[axis] - 4]
    again = np.full_like(whole, np.nan)
    for spec, part in zip(specs, parts, strict=True):
        assert not np.shares_memory(part, whole)
        assert part.flags.c_contiguous
        unshard(spec, again, part)
    np.testing.assert_array_equal(again, whole)
    assert shard(None, whole) is whole
    with pytest.raises(ShapeError, match="shard: axis"):
        shard(specs[0], whole[:-1, :-1])
    with pytest.raises(ShapeError, match=rf"unshard: axis {axis} of the part has size \d, but the shard's runs have 4"):
        unshard(specs[0], again, parts[1])


class RanksThere(Alone):
    """One rank of a group whose others nobody asks."""

    def __init__(self, size):
        super().__init__()
        self.size = size


@pytest.mark.parametrize(
    ("config", "size", "message"),
    [
        (GPT, 3, "3 ranks do not divide heads=4"),
        (LLAMA, 8, "8 ranks do not divide kv_heads=4"),
        (LlamaConfig(V, 12, 1, 4, 4, 24, 21), 2, "2 ranks do not divide hidden=21"),
        (GPT2Config(3, 12, 1, 4, 24), 4, "vocab_size=3 is less than 4 ranks"),
    ],
    ids=["heads", "key heads", "hidden", "vocabulary"],
)
def test_sizes_that_cannot_be_cut(config, size, message):
    model = whole_model(config)
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    with pytest.raises(InputError, match=f"tensor_parallel: {message}"):
        tp.tensor_parallel(model, RanksThere(size))
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == before


def test_models_that_cannot_be_cut():
    with pytest.raises(InputError, match="a BertForMaskedLM cannot be divided"):
        tp.tensor_parallel(BertForMaskedLM(BertConfig.preset("nano")), RanksThere(2))
    with pytest.raises(InputError, match="a Gemma cannot be divided; give a GPT2 or a Llama"):
        tp.tensor_parallel(Gemma(GemmaConfig.preset("nano")), RanksThere(2))
    with pytest.raises(InputError, match="qk_norm=True cannot be divided, because each rank would know only a part"):
        tp.tensor_parallel(whole_model(LlamaConfig(V, 12, 1, 4, 4, 24, 20, qk_norm=True)), RanksThere(2))
    model = tp.tensor_parallel(whole_model(GPT), RanksThere(2))
    with pytest.raises(InputError, match="the model is divided already"):
        tp.tensor_parallel(model, RanksThere(2))


def test_calls_that_do_not_fit():
    two = RanksThere(2)
    x = Tensor(np.zeros((3, 4)))
    with pytest.raises(ShapeError, match="gather_from_ranks: x has 4 columns, but rank 0 has 3 of 5"):
        collective_ops.gather_from_ranks(x, two, 5)
    with pytest.raises(ShapeError, match="vocabulary_cross_entropy: logits have shape"):
        divided_loss(x, np.zeros(3, int), two, 5)
    with pytest.raises(InputError, match="target 8 is out of range"):
        divided_loss(x, np.array([0, 1, 8]), two, 8)
    with pytest.raises(InputError, match="reduction is 'max'"):
        divided_loss(x, np.zeros(3, int), two, 8, reduction="max")
    model = tp.tensor_parallel(whole_model(GPT), two)
    with pytest.raises(InputError, match="token id 37 is out of range"):
        model(np.array([[V]]))


def test_one_rank_is_one_process():
    expected, place = outcome(whole_model(CONFIGS["gpt2-dropout"]))
    model = tp.tensor_parallel(whole_model(CONFIGS["gpt2-dropout"]), Alone())
    received, other_place = outcome(model)
    assert place == other_place
    assert set(shard_specs(model).values()) == {None}
    for name, x in expected.items():
        np.testing.assert_array_equal(received[name], x)
