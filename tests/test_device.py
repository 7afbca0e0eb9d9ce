"""`device="cuda"` without a GPU: the code that runs there, on the stand-in of tests/standin for CuPy.

What this proves: every array gets to the device and stays there, in every operation's formula and kernel, in the
optimiser, the trainer and the checkpoints; no NumPy array meets a device array; nothing waits but where it says so;
cuBLAS is given the right order, shapes and steps; copies are waited for. What it cannot prove is in the stand-in's
docstring: CuPy itself, real concurrency, numbers in the last bits, speed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm import cuda, device, ops, tensor
from minillm.autograd import Tensor
from minillm.checkpoint import load_checkpoint
from minillm.data import Batches
from minillm.engine import engine
from minillm.errors import DeviceError, DtypeError, InputError
from minillm.evaluation.likelihood import log_likelihoods
from minillm.evaluation.masked import pseudo_likelihoods
from minillm.generate import generate_batch
from minillm.lora import LoraConfig, adapters_off, add_lora, load_lora, merge, save_lora, unmerge
from minillm.models import bart, bert
from minillm.models.bart import Bart
from minillm.models.bert import BertForMaskedLM
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.optim import AdamW, decay_groups
from minillm.parallel.objective import NEXT_TOKENS, next_token_batch
from minillm.study.cases import CASES
from minillm.tokenizers import WordPieceTokenizer
from minillm.training import TrainConfig, train, whole_model
from minillm.training.whole_model import accumulate_gradients
from tests.training.task_runs import run_of, without_dropout, write_data

SEVERAL = [0] * 5 + [5] * 7  # where each of two texts begins that share a sequence
STANDIN = Path(__file__).parent / "standin"


def _forget_gpu() -> None:
    """Forget facts cached about one CuPy, before another is tried."""
    device._check_cuda.cache_clear()
    cuda.get_kernel.cache_clear()
    cuda.kernel._gpu_module.cache_clear()


@pytest.fixture
def cupy(monkeypatch):
    """The stand-in, imported as `cupy`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(STANDIN))
    module = importlib.import_module("cupy")
    assert module.__version__.endswith("standin")
    _forget_gpu()
    yield module
    _forget_gpu()
    for name in [name for name in sys.modules if name.partition(".")[0] == "cupy"]:
        del sys.modules[name]


def results(fn, arrays, where):
    """The outputs and gradients of a function, as NumPy arrays, with its arrays on a device."""
    minillm.manual_seed(3)
    floats = [np.issubdtype(x.dtype, np.floating) for x in arrays]
    inputs = [tensor(x, requires_grad=True, device=where) if f else x for x, f in zip(arrays, floats, strict=True)]
    outs = fn(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    rng = np.random.default_rng(1)
    total = sum((y * tensor(rng.normal(size=y.shape).astype(y.dtype), device=where)).sum() for y in outs)
    if isinstance(total, Tensor) and total.requires_grad:
        total.backward()
    leaves = [x for x in inputs if isinstance(x, Tensor)]
    assert all(device.is_on_gpu(y.data) == (where != "cpu") for y in outs)
    assert all(device.is_on_gpu(x.grad) == (where != "cpu") for x in leaves if x.grad is not None)
    return [y.numpy() for y in outs], [None if x.grad is None else device.to_host(x.grad) for x in leaves]


@pytest.fixture(autouse=True)
def _forget_afterwards():
    yield
    _forget_gpu()


@pytest.fixture
def bfloat16():
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


@pytest.mark.parametrize("policy", ["plain", "auto"])
@pytest.mark.parametrize("op", sorted({case.op for case in CASES}))
def test_every_operation_runs_on_the_device(cupy, op, policy):
    """Its formula and, where it has them, its kernels: values and gradients are those of the CPU."""
    for case in (case for case in CASES if case.op == op):
        arrays = case.make_arrays(np.random.default_rng(0))
        if any(x.dtype.kind == "f" and x.dtype != np.float64 for x in arrays):
            continue
        expected = results(case.fn, arrays, "cpu")
        with engine(policy):
            received = results(case.fn, arrays, "cuda")
        for wanted, given in zip([*expected[0], *expected[1]], [*received[0], *received[1]], strict=True):
            assert (wanted is None) == (given is None), case.name
            if wanted is not None:
                assert wanted.dtype == given.dtype
                np.testing.assert_allclose(given, wanted, rtol=1e-9, atol=1e-11, err_msg=case.name)


@pytest.mark.parametrize(("mask", "channels"), [(True, 8), (False, 136)], ids=["a mask", "large heads"])
def test_attention_without_a_kernel_keeps_no_weights_there(cupy, mask, channels, rng):
    """The blocks of the CPU run on the device: P, (1, 1, 70, 70), is not kept. Under "require" it is an error."""
    arrays = [rng.normal(size=(1, 1, 70, channels)) for _ in range(3)]
    visible = np.tri(70, dtype=bool) if mask else None
    with engine("plain"):
        (expected,), _ = results(lambda q, k, v: ops.attention(q, k, v, mask=visible), arrays, "cpu")
    leaves = [tensor(x, requires_grad=True).to("cuda") for x in arrays]
    y = ops.attention(*leaves, mask=visible)
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-12)
    assert y.node.saved.lse.shape == (1, 1, 70)
    assert not hasattr(y.node.saved, "p")
    with engine("require"), pytest.raises(cuda.KernelError, match="no kernel for these shapes or settings"):
        ops.attention(*leaves, mask=visible)


# ---- which device ---------------------------------------------------------------------------------------------------


def _pretend(monkeypatch, **runtime):
    """A CuPy that finds what these functions say."""
    fake = types.ModuleType("cupy")
    fake.ndarray = type("ndarray", (), {})
    error = type("CUDARuntimeError", (RuntimeError,), {})
    fake.cuda = types.SimpleNamespace(runtime=types.SimpleNamespace(CUDARuntimeError=error, **runtime))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    device._check_cuda.cache_clear()
    return fake


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    device._check_cuda.cache_clear()
    with pytest.raises(DeviceError, match=r"needs CuPy, which is not installed; pip install 'minillm\[cuda13\]'"):
        tensor([1.0], device="cuda")


def test_without_a_driver(monkeypatch):
    def count():
        raise fake.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient")

    fake = _pretend(monkeypatch, getDeviceCount=count)
    with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU with its driver, and CuPy finds none \(cudaErr"):
        device.check_device("cuda")


def test_without_a_gpu(monkeypatch):
    _pretend(monkeypatch, getDeviceCount=lambda: 0)
    with pytest.raises(DeviceError, match="this machine has none; choose 'cpu'"):
        device.check_device("cuda:0")


def test_without_cudas_libraries(monkeypatch):
    class Cuda:
        runtime = types.SimpleNamespace(CUDARuntimeError=RuntimeError, getDeviceCount=lambda: 1)

        @property
        def cublas(self):
            raise ImportError('Failure finding "libcublasLt.so.13"\nand a long list')

    _pretend(monkeypatch).cuda = Cuda()
    with pytest.raises(DeviceError, match=r"not CUDA's libraries \(Failure finding \"libcublasLt.so.13\"\); pip"):
        device.check_device("cuda")


def test_devices_have_names(cupy):
    for name in ("cpu", "cuda", "cuda:0"):
        device.check_device(name)
    for name in ("gpu", "cuda:", "cuda:-1", "CUDA", "cuda:x", ""):
        with pytest.raises(DeviceError, match=f"device: '{name}' names no device"):
            device.check_device(name)
    with pytest.raises(DeviceError, match="device: 'cuda:7' is not there; this machine's GPUs are cuda:0 to cuda:0"):
        device.check_device("cuda:7")


def test_a_tensor_goes_there_and_back(cupy, rng):
    x = tensor(rng.normal(size=(2, 3)), requires_grad=True)
    y = x.to("cuda", "float32")
    assert (x.device, y.device, y.dtype) == ("cpu", "cuda:0", np.float32)
    assert y.to("cuda") is y
    assert y.to(np.float32) is y
    assert "cuda:0" in repr(y)
    np.testing.assert_array_equal(y.numpy(), x.data.astype(np.float32))
    (y * y).sum().backward()
    assert type(x.grad) is np.ndarray
    assert x.grad.dtype == np.float64
    np.testing.assert_allclose(x.grad, 2 * x.data, rtol=1e-6)
    for wrong in ("float33", "gpu", 3, None):
        with pytest.raises(DtypeError, match="is neither a device nor a dtype"):
            x.to(wrong)


def test_bfloat16_has_gradients(cupy):
    x = tensor([1.0, 2.0, 3.0], requires_grad=True, dtype="bfloat16", device="cuda")
    (x * x).sum().backward()
    assert x.grad.dtype == x.dtype
    assert device.to_host(x.grad).astype(float).tolist() == [2, 4, 6]


def test_tensors_on_two_devices_are_named(cupy, rng):
    here, there = tensor(np.ones(3)), tensor(np.ones(3), device="cuda")
    for operation in (lambda: here + there, lambda: there * here, lambda: ops.matmul(there, here)):
        with pytest.raises(DeviceError, match=r"the inputs are on cpu and cuda:0; move them to one device with .to\("):
            operation()
    np.testing.assert_array_equal((there + np.ones(3)).numpy(), 2 * np.ones(3))  # an array goes where the tensor is
    np.testing.assert_array_equal((np.ones(3) - there).numpy(), np.zeros(3))
    assert (there > np.zeros(3)).device == "cuda:0"


# ---- matrix products ------------------------------------------------------------------------------------------------

LAYOUTS = {
    "as it is": lambda x: x,
    "transposed in memory": lambda x: np.ascontiguousarray(x.T).T,
    "rows of a wider one": lambda x: np.pad(x, ((0, 0), (1, 2)))[:, 1:-2],
    "columns of a taller one": lambda x: np.pad(x.T.copy(), ((0, 0), (2, 1)))[:, 2:-1].T,
    "every other column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "one row, stretched": lambda x: np.broadcast_to(x[:1], x.shape),
}


def on_device(cupy, x):
    """The array on the device, at the same steps from element to element: as a view of a copy of its base."""
    if x.base is None or 0 in x.strides:
        return np.broadcast_to(cupy.asarray(x[:1]), x.shape) if 0 in x.strides and x.size else cupy.asarray(x)
    base = x.base
    while base.base is not None:
        base = base.base
    memory = cupy.asarray(np.ascontiguousarray(base).reshape(-1))
    first = (x.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // x.itemsize
    return cupy.lib.stride_tricks.as_strided(memory[first:], x.shape, x.strides)


@pytest.mark.parametrize("left", LAYOUTS)
@pytest.mark.parametrize("right", LAYOUTS)
@pytest.mark.parametrize("sizes", [(2, 3, 4), (1, 1, 1), (1, 5, 1), (5, 1, 3), (0, 3, 2), (2, 0, 3), (17, 33, 9)])
def test_gemm_takes_matrices_as_they_lie(cupy, rng, left, right, sizes):
    rows, inner, columns = sizes
    a, b = LAYOUTS[left](rng.normal(size=(rows, inner))), LAYOUTS[right](rng.normal(size=(inner, columns)))
    x, y = on_device(cupy, a), on_device(cupy, b)
    product = device.gemm(x, y)
    np.testing.assert_allclose(product.get(), a @ b, rtol=1e-12, atol=1e-13)
    start = rng.normal(size=(rows, columns))
    out = cupy.asarray(start)
    assert device.gemm(x, y, out, add=True) is out
    np.testing.assert_allclose(out.get(), start + a @ b, rtol=1e-12, atol=1e-13)
    wide = cupy.asarray(np.stack([start, start], axis=-1))
    device.gemm(x, y, wide[..., 0], add=True)
    np.testing.assert_allclose(wide.get()[..., 0], start + a @ b, rtol=1e-12, atol=1e-13)
    np.testing.assert_array_equal(wide.get()[..., 1], start)


def test_gemm_in_bfloat16_is_summed_in_float32(cupy, rng, bfloat16):
    a, b = rng.normal(size=(5, 300)).astype(bfloat16), rng.normal(size=(300, 7)).astype(bfloat16)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    product = device.gemm(cupy.asarray(a), cupy.asarray(b))
    assert product.dtype == bfloat16
    np.testing.assert_allclose(product.get().astype(np.float64), exact, rtol=2**-8)
    total = cupy.asarray(np.ones((5, 7), np.float32))
    device.gemm(cupy.asarray(a), cupy.asarray(b), total, add=True)
    np.testing.assert_allclose(total.get(), 1 + exact, rtol=1e-5)
    with pytest.raises(DtypeError, match="matmul: cuBLAS makes no float32 of float32 and bfloat16; convert both"):
        device.gemm(cupy.asarray(a).astype(np.float32), cupy.asarray(b))


def test_stacks_of_bfloat16_matrices(cupy, rng, bfloat16):
    """CuPy has no such product (the stand-in raises, too)."""
    a, b = (tensor(rng.normal(size=(2, 3, 3)).astype(bfloat16), requires_grad=True, device="cuda") for _ in range(2))
    y = ops.matmul(a, b)
    y.backward(np.ones(y.shape))
    assert y.dtype == a.grad.dtype == bfloat16
    exact = a.numpy().astype(float) @ b.numpy().astype(float)
    np.testing.assert_allclose(y.numpy().astype(float), exact, rtol=2**-7, atol=2**-7)


def test_a_weight_gradient_is_added_by_cublas(cupy, rng, monkeypatch):
    """The second backward adds into the gradient that is there: no pass of its own, and no other array."""
    weight = tensor(rng.normal(size=(3, 4)), requires_grad=True, device="cuda")
    x = tensor(rng.normal(size=(5, 4)), device="cuda")
    ops.linear(x, weight).sum().backward()
    first, before = weight.grad, weight.grad.get()
    monkeypatch.setattr(cupy, "add", None)
    ops.linear(x, weight).sum().backward()
    assert weight.grad is first
    np.testing.assert_allclose(weight.grad.get(), 2 * before, rtol=1e-12)


# ---- uploads --------------------------------------------------------------------------------------------------------


def _upload_three(cupy):
    uploads = device.Uploads("cuda")
    batches = [np.arange(6).reshape(2, 3) + 10 * i for i in range(5)]
    for batch in batches:
        ids, targets = uploads(batch, batch + 1)
        used = np.add(ids, targets).get()  # waits for all, as the metrics do
        np.testing.assert_array_equal(used, 2 * batch + 1)


def test_batches_arrive(cupy):
    _upload_three(cupy)
    arrays = np.ones(3), np.zeros(2)
    assert device.Uploads("cpu")(*arrays) == arrays


def test_a_batch_may_have_another_shape(cupy):
    uploads = device.Uploads("cuda")
    for size in (3, 3, 2, 5, 5, 5):
        (batch,) = uploads(np.arange(size))
        assert np.add(batch, 1).get().tolist() == list(range(1, size + 1))


@pytest.mark.parametrize("fault", ["the steps do not wait for the copy", "the host does not wait for the copy"])
def test_a_wait_that_is_missing_is_noticed(cupy, monkeypatch, fault):
    """The stand-in holds copies back for as long as it may, so these faults show in the numbers."""
    if fault == "the steps do not wait for the copy":
        monkeypatch.setattr(cupy.cuda.Stream, "wait_event", lambda stream, event: None)
        uploads = device.Uploads("cuda")
        (ids,) = uploads(np.arange(3))
        uploads(np.arange(3))
        (ids,) = uploads(np.arange(3) + 7)
        assert ids._host.tolist() != [7, 8, 9]
    else:
        monkeypatch.setattr(cupy.cuda.Event, "synchronize", lambda event: None)
        monkeypatch.setattr(cupy.cuda.Stream, "wait_event", lambda stream, event: None)
        uploads = device.Uploads("cuda")
        ids = [uploads(np.full(1, i))[0] for i in range(6)]
        cupy.cuda.runtime.deviceSynchronize()
        assert ids[2].get() == ids[4].get()


# ---- a training run -------------------------------------------------------------------------------------------------

NANO = GPT2Config(vocab_size=65, context=16, layers=2, heads=2, channels=32, dropout=0.1)


def _train(where, steps=20, dtype="float32", policy="auto", micro_batches=1):
    """The losses of some steps, and the weights after them."""
    minillm.manual_seed(5)
    rng = np.random.default_rng(5)
    model = GPT2(NANO).to(where, dtype)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), 1e-2)
    text = rng.integers(0, 65, 500)
    batches, uploads, losses = Batches(text, 4, 16, seed=1), device.Uploads(where), []
    with engine(policy):
        for step in range(steps):
            batch = batches.batch(step)
            counts = NEXT_TOKENS.counts(next_token_batch(*batch))  # before the batch goes to the GPU
            ids, targets = uploads(*batch)
            optimizer.zero_grad()
            loss = accumulate_gradients(model, next_token_batch(ids, targets), micro_batches, NEXT_TOKENS, counts)
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
            losses.append(float(loss))
    return losses, {name: device.to_host(p.data) for name, p in model.named_parameters()}


@pytest.mark.parametrize("policy", ["plain", "require"])
def test_a_gpt_trains_as_on_the_cpu(cupy, policy):
    """By formulas, and by nothing but kernels: with dropout, clipping and weight decay."""
    expected, weights = _train("cpu")
    losses, received = _train("cuda", policy=policy)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for name, weight in weights.items():
        np.testing.assert_allclose(received[name], weight, atol=2e-3, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (Gemma, GemmaConfig.preset("nano")),
        (Gemma, GemmaConfig.preset("nano", qk_norm=False, attention_cap=2.0, logit_cap=3.0)),
        (Llama, LlamaConfig.preset("nano", qk_norm=True, window=5, full_blocks=(0,), rotary=4)),
        (GPT2, GPT2Config.preset("nano")),
    ],
    ids=["gemma 3", "gemma 2", "windows in some blocks", "learned positions"],
)
def test_a_model_with_windows_and_caps_is_the_same_there(cupy, kind, config):
    """Loss, gradients, and what it writes, also for several texts in one sequence, and for prompts of several lengths,
    whose padding is masked."""
    found = {}
    for where in ("cpu", "cuda"):
        minillm.manual_seed(5)
        model = kind(config).to(where)
        ids = np.random.default_rng(5).integers(0, 256, (2, 13))
        given = [device.to_device(array, where) for array in (ids[:, :-1], ids[:, 1:], np.array([SEVERAL, SEVERAL]))]
        loss = model.loss(*given[:2]) + model.loss(*given[:2], starts=given[2])
        loss.backward()
        gradients = {name: device.to_host(p.grad) for name, p in model.named_parameters()}
        found[where] = loss.item(), gradients, generate_batch(model, [[1, 2, 3, 4], [5], [6, 7]], 9, temperature=0)
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=1e-5)
    for name, gradient in found["cpu"][1].items():
        np.testing.assert_allclose(found["cuda"][1][name], gradient, atol=1e-4 * np.abs(gradient).max(), err_msg=name)
    assert found["cuda"][2] == found["cpu"][2]


@pytest.mark.parametrize("kind", ["gpt2", "bert", "bart"])
def test_texts_are_measured_the_same_there(cupy, kind):
    texts = ["the cat sat on the mat", "a dog, and the cat"]
    tokenizer = WordPieceTokenizer.train(texts, 60)
    size = dict(vocab_size=tokenizer.vocab_size, dropout=0.0)
    makers = {
        "gpt2": lambda: GPT2(GPT2Config.preset("nano", **size)),
        "bert": lambda: BertForMaskedLM(dataclasses.replace(bert.PRESETS["nano"], **size)),
        "bart": lambda: Bart(dataclasses.replace(bart.PRESETS["nano"], **size)),
    }
    found = {}
    for where in ("cpu", "cuda"):
        minillm.manual_seed(5)
        model = makers[kind]().eval().to(where)
        pairs = [(text, f" {choice}") for text in texts for choice in ("the dog", "a")]
        if kind == "bert":
            found[where] = np.concatenate(pseudo_likelihoods(model, tokenizer, texts))
        else:
            found[where] = np.array([one.log_probability for one in log_likelihoods(model, tokenizer, pairs)])
    np.testing.assert_allclose(found["cuda"], found["cpu"], rtol=1e-5)


def test_gradients_of_parts_are_added_on_the_device(cupy):
    whole, _ = _train("cuda", steps=2)
    parts, _ = _train("cuda", steps=2, micro_batches=2)
    assert whole[0] == pytest.approx(parts[0], rel=1e-2)  # dropout draws other masks for parts, so only about
    np.testing.assert_allclose(parts, whole, rtol=0.05)


def test_a_gpt_trains_in_bfloat16(cupy):
    expected, _ = _train("cpu", steps=10)
    losses, weights = _train("cuda", steps=10, dtype="bfloat16", policy="require")
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert all(weight.dtype.name == "bfloat16" for weight in weights.values())


def test_a_step_waits_for_the_gpu_for_its_metrics_alone(cupy):
    _train("cuda", steps=1)
    before = cupy.synchronizations
    _train("cuda", steps=1, dtype="float32")
    setup_and_one = cupy.synchronizations - before
    before = cupy.synchronizations
    _train("cuda", steps=6)
    assert cupy.synchronizations - before - setup_and_one == 5, "one wait a step: float(loss)"


def test_memory_on_the_device_does_not_grow(cupy):
    used = cupy.get_default_memory_pool().used_bytes
    _train("cuda", steps=1)
    before = used()
    _train("cuda", steps=5)
    assert used() == before


@pytest.fixture
def config(tmp_path):
    words = ["the", "model", "reads", "text", "and", "then", "it", "writes", "what", "has", "been", "read"]
    path = tmp_path / "text.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 800)))
    return TrainConfig(
        data=str(path),
        out=tmp_path / "run",
        tokenizer="char",
        model=GPT2Config(vocab_size=256, context=8, layers=1, heads=2, channels=32, dropout=0.2),
        steps=6,
        batch_size=4,
        warmup=3,
        eval_every=3,
        eval_batches=2,
        sample_every=6,
        sample_tokens=4,
        device="cuda",
    )


@pytest.mark.parametrize("name", ["llama", "bert", "roberta", "xlnet", "bart", "pairs"])
def test_every_task_trains_on_the_device_as_on_the_cpu(cupy, name, tmp_path):
    """Losses, measures and previews, from arrays that are on the device."""
    write_data(tmp_path)
    losses = {}
    for place in ("cpu", "cuda"):
        config = without_dropout(run_of(name, tmp_path, out=str(tmp_path / place), device=place, sample_every=8))
        measured = [item for record in train(config).metrics() for item in record.items()]
        losses[place] = [value for key, value in measured if (key == "loss" or key.startswith("val_")) and value]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=2e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_the_device_resumes_bit_for_bit(cupy, config, dtype, monkeypatch):
    config = dataclasses.replace(config, dtype=dtype)
    whole = train(config)
    interrupted = dataclasses.replace(config, out=config.out.with_name("interrupted"))
    original, calls = whole_model.accumulate_gradients, iter(range(1, 100))

    def stop_at_4(*arguments):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(whole_model, "accumulate_gradients", stop_at_4)
    run = train(interrupted)
    assert run.metrics()[-1]["step"] == 4
    run = train(interrupted, resume=interrupted.out)
    expected, received = (load_checkpoint(r.checkpoint("last")) for r in (whole, run))
    assert expected.model["wte.weight"].dtype.name == dtype
    for part in ("model", "optimizer"):
        arrays = getattr(received, part)
        assert arrays.keys() == getattr(expected, part).keys()
        for name, array in getattr(expected, part).items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    if dtype == "bfloat16":
        assert expected.optimizer["master.wte.weight"].dtype == np.float32


def test_a_bfloat16_run_is_read_where_nothing_has_imported_bfloat16(cupy, config):
    run = train(dataclasses.replace(config, dtype="bfloat16", steps=1, warmup=0))
    path = str(run.checkpoint("last"))
    program = f"from minillm.checkpoint import *; print(load_checkpoint({path!r}).model['wpe.weight'].dtype)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "bfloat16\n"


def test_a_run_from_the_gpu_goes_on_on_the_cpu(cupy, config):
    run = train(config)
    on_cpu = train(dataclasses.replace(config, device="cpu", steps=8), resume=run.folder)
    assert [record["step"] for record in on_cpu.metrics()] == list(range(1, 9))


def test_asking_for_a_gpu_that_is_not_there_writes_nothing(monkeypatch, config):
    monkeypatch.setitem(sys.modules, "cupy", None)
    device._check_cuda.cache_clear()
    with pytest.raises(DeviceError, match="'cuda' needs CuPy"):
        train(config)
    assert not config.out.exists()


def test_settings_of_the_device_are_checked(config):
    with pytest.raises(InputError, match="train: device is 'gpu'; choose cpu, cuda or cuda:0"):
        dataclasses.replace(config, device="gpu")
    with pytest.raises(InputError, match="train: bfloat16 needs --device cuda"):
        dataclasses.replace(config, device="cpu", dtype="bfloat16")


# ---- the stand-in itself --------------------------------------------------------------------------------------------


def test_the_stand_in_refuses_what_a_gpu_refuses(cupy):
    x, host = cupy.asarray(np.arange(6.0)), np.arange(6.0)
    for misuse in (
        lambda: x + host,
        lambda: host * x,
        lambda: np.add(x, host),
        lambda: np.asarray(x),
        lambda: np.concatenate([x, host]),
        lambda: np.vecdot(x, x),
        lambda: np.add.reduce(x),
        lambda: np.where(host > 1, x, 0),
        lambda: x.__setitem__(slice(0, 6), host),
        lambda: x.max(initial=0),
    ):
        with pytest.raises(TypeError):
            misuse()
    assert np.isnan(np.empty_like(x).get()).all()
    before = cupy.synchronizations
    for waits in (lambda: float(x[0]), lambda: bool(x[1] > 0), lambda: x[x > 2], lambda: np.flatnonzero(x)):
        waits()
    assert cupy.synchronizations - before == 4
    x[x > 2] = 0
    assert cupy.synchronizations - before == 5


def test_the_stand_in_has_what_cupy_has(cupy):
    """Every function with CuPy's own parameters, and every method; run in a process that can import the real one."""
    program = """
import inspect, json, sys
import cupy
functions, methods, ufuncs = json.load(sys.stdin)
wrong = []
for name, parameters in functions.items():
    own = getattr(cupy, name, None)
    if own is None:
        wrong.append(name)
    elif name not in ("shape", "ndim"):
        theirs = [p.name for p in inspect.signature(own).parameters.values()]
        wrong += [f"{name}: {theirs}"] * (theirs[: len(parameters)] != parameters)
wrong += [name for name in methods if not hasattr(cupy.ndarray, name)]
kinds = (cupy.ufunc, cupy._core._gufuncs._GUFunc)
wrong += [name for name in ufuncs if not isinstance(getattr(cupy, name, None), kinds)]
print(json.dumps(wrong))
"""
    names = [*cupy.FUNCTIONS, "empty", "empty_like", "array"]
    functions = {name: list(inspect.signature(getattr(cupy, name)).parameters) for name in names}
    methods = [name for name in vars(cupy.ndarray) if not name.startswith("_")]
    path = [entry for entry in sys.path if entry not in ("", str(STANDIN))]
    result = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([functions, methods, sorted(cupy.UFUNCS)]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    if "No module named 'cupy'" in result.stderr:
        pytest.skip("CuPy is not installed; the extra `kernels` brings it")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def _operators(where: str) -> list:
    """Comparisons, remainders, changes in place, hooks and reading, of tensors on a device."""
    x = tensor([[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]], requires_grad=True, device=where)
    y = tensor([[1.0, 2.0, 3.0], [1.0, 0.5, -2.0]], requires_grad=True, device=where)
    positive = x > 0
    found = [x == y, positive & (y > 0), ~positive, positive.any(), positive.all(1), ops.isclose(x, y), x.isnan()]
    found += [ops.allclose(x, x), ops.equal(x, y), 4.0 in x, x.logical_not(), x != np.ones(3, np.float32)]
    ((x % y) * 2 + x // y).sum().backward()
    found += [x.grad, y.grad, x.size(0), x.tolist(), int(x.sum()), f"{x.mean():.3f}", x.T, x.mT]
    with minillm.no_grad():
        x -= 0.1 * x.grad
        x[0] = 7
        x.add_(1, alpha=2)
        x[np.array([1])] = np.ones(3, np.float32)
        x.detach().mul_(y)
        x[:, :1].copy_([[5.0], [6.0]])
    found += [x, x.version, tensor([1, 2], device=where) / 2, x * np.array([1, 2, 3]), np.sum(x.detach())]
    mask = np.array([True, False])
    chosen = ops.where(mask[:, None], x, 0.0)
    mask[:] = False
    x.grad = None
    chosen.sum().backward()
    h = x * 2
    h.retain_grad().register_hook(lambda g: g * 2)
    (np.float32([1, 2, 3]) * h).sum().backward()
    return [*found, x.grad, h.grad, *minillm.autograd.grad((x * x).sum(), [x])]


def test_operators_on_the_device(cupy):
    for here, there in zip(_operators("cpu"), _operators("cuda"), strict=True):
        if isinstance(there, Tensor):
            assert device.is_on_gpu(there.data)
            here, there = here.numpy(), there.numpy()
        there = device.to_host(there)
        assert np.all(np.asarray(here) == np.asarray(there))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_there(cupy, dtype, tmp_path):
    """Trained, switched off, merged, taken out, written and read there, as on the CPU."""
    ids = np.random.default_rng(0).integers(0, 65, (2, 9))
    settings = LoraConfig(rank=3, targets=("c_attn", "c_fc", "wpe"), dropout=0.1, modules_to_save=("ln_f",))
    outcomes = []
    for where in ("cpu", "cuda"):
        if where == "cpu" and dtype == "bfloat16":
            continue
        minillm.manual_seed(3)
        model = add_lora(GPT2(NANO).to(where, dtype), settings)
        optimizer = AdamW(decay_groups(model.parameters(), 0.1), 0.05)
        batch = [device.to_device(x, where) for x in (ids[:, :-1], ids[:, 1:])]
        for _ in range(3):
            optimizer.zero_grad()
            model.loss(*batch).backward()
            optimizer.step()
        model.eval()
        with minillm.no_grad(), adapters_off(model):
            off = device.to_host(model(batch[0]).data)
        with minillm.no_grad():
            trained = device.to_host(model(batch[0]).data)
            save_lora(model, tmp_path / where)
            merged = device.to_host(merge(model)(batch[0]).data)
            np.testing.assert_array_equal(device.to_host(unmerge(model)(batch[0]).data), trained)
            minillm.manual_seed(3)
            again = load_lora(GPT2(NANO).to(where, dtype).eval(), tmp_path / where)
            np.testing.assert_array_equal(device.to_host(again(batch[0]).data), trained)
        assert np.abs(trained.astype(np.float32) - off.astype(np.float32)).max() > 0.01
        np.testing.assert_allclose(
            merged.astype(float), trained.astype(float), atol=0.1 if dtype == "bfloat16" else 1e-4
        )
        outcomes.append((off, trained))
    for ours, theirs in zip(*outcomes, strict=True) if len(outcomes) == 2 else ():
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
