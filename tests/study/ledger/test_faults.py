"""A planted fault for every claim of the ledger: the claim fails, and claims that do not depend on it still hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from minillm import ops, pretrained, random
from minillm.lora.layers import Adapter
from minillm.models import gpt2
from minillm.nn import KVCache
from minillm.ops.attention import ATTENTION
from minillm.ops.layernorm import LAYERNORM
from minillm.ops.linear import LINEAR
from minillm.optim import AdamW
from minillm.parallel.launch import launch
from minillm.parallel.recompute import RECOMPUTE
from minillm.parallel.shared_memory import SharedMemoryCommunicator
from minillm.study import gradcheck
from minillm.study.ledger import check, divided, open_subject
from minillm.training import whole_model
from tests.test_device import cupy

__all__ = ["cupy"]  # the fixture

SMALL = 1 + 1e-9  # far below what float32 can show


class Fault(NamedTuple):
    """A fault: the claims that must fail, those that must hold, what plants it, and the model."""

    fails: str
    holds: str
    plant: Callable[[pytest.MonkeyPatch], None]
    model: str = "gpt2"


def pairs(op: Any, *rooms: str, factor: float = SMALL) -> Callable[[pytest.MonkeyPatch], None]:
    """A wrong factor on the first gradient, in the pairs of these engines."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        for room in ("fast", "cuda"):
            op.pair(room)  # is found now, by the name of the right backward

        def wrong(backward: Callable) -> Callable:
            def scaled(dout, saved):
                first, *others = backward(dout, saved)
                return (first * first.dtype.type(factor), *others)

            return scaled

        for room in rooms:
            if room == "plain":
                patch.setattr(op, "backward", wrong(op.backward))
                patch.setattr(op, "writes_into", False)
            else:
                pair = op.pair(room)
                backward = pair.backward
                if pair.writes_into:
                    backward = lambda dout, saved, right=pair.backward: right(dout, saved, (None,) * 3)  # noqa: E731
                patch.setitem(op.pairs, room, pair._replace(backward=wrong(backward), writes_into=False))

    return plant


def method(owner: Any, name: str, wrong: Callable) -> Callable[[pytest.MonkeyPatch], None]:
    """Another function in the place of one: `wrong(right, *args)` is called in its place."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        right = getattr(owner, name)
        patch.setattr(owner, name, lambda *args, **named: wrong(right, *args, **named))

    return plant


def rounded(right, x, *args, **named):
    """A forward whose float32 numbers have been float16 on the way."""
    y, saved = right(x, *args, **named)
    return (y.astype(np.float16).astype(np.float32) if y.dtype == np.float32 else y), saved


def half_precision(patch: pytest.MonkeyPatch) -> None:
    pair = LINEAR.pair("fast")
    patch.setitem(
        LINEAR.pairs, "fast", pair._replace(forward=lambda *args, **named: rounded(pair.forward, *args, **named))
    )


def mean_of_means(right, model, batch, micro_batches=1, objective=None, counts=None):
    """Each part with its own mean, as if all parts had equal numbers of targets."""
    total = 0.0
    for part in whole_model.micro_batches_of(batch, micro_batches):
        loss = whole_model.loss_of_rows(objective, model, part, objective.counts(part)) / micro_batches
        loss.backward()
        total = total + loss.data
    return total


def other_masks(patch: pytest.MonkeyPatch) -> None:
    """The second forward of a block draws masks from another place in the stream."""
    right = RECOMPUTE.backward

    def wrong(dout, saved):
        saved.place.counter += 1
        return right(dout, saved)

    patch.setattr(RECOMPUTE, "backward", wrong)


def forgetful(right, seed, counter, count):
    """Random bits that depend on how often they were asked for."""
    forgetful.calls += 1
    return right(seed + forgetful.calls, counter, count)


forgetful.calls = 0


def nothing(right, *args, **named):
    """A mask that keeps everything."""
    return np.ones_like(right(*args, **named))


def stale(right, cache, k, v):
    """The last token's key is that of the token before, from the second piece on."""
    keys, values = right(cache, k, v)
    if cache.length > k.shape[2]:
        keys.data[:, :, -1] = keys.data[:, :, -2]
    return keys, values


def lost_moments(right, optimizer, state):
    right(optimizer, {name: array * 0 if name.startswith("exp_avg.") else array for name, array in state.items()})


def without(*names: str, on: Any = ops, function: str = "attention") -> Callable[[pytest.MonkeyPatch], None]:
    """Arguments of attention that are forgotten."""

    def wrong(right, *args, **named):
        return right(*args, **{name: value for name, value in named.items() if name not in names})

    return method(on, function, wrong)


def swapped(right, model, module):
    """Two arrays are written under each other's names."""
    arrays = right(model, module)
    one, two = "transformer.h.0.ln_1.bias", "transformer.h.0.ln_2.bias"
    return arrays | {one: arrays[two], two: arrays[one]}


def other_eps(right, config):
    return right(config) | {"layer_norm_epsilon": 1e-6}


FAULTS = {
    "a plain backward": Fault("fast", "gradient micro-batches recompute saved", pairs(LAYERNORM, "plain")),
    "a fast backward": Fault("fast", "gradient micro-batches kv-cache", pairs(LAYERNORM, "fast")),
    "the backward of attention, in every engine": Fault(
        "gradient", "fast micro-batches kv-cache saved", pairs(ATTENTION, "plain", "fast", factor=1.001)
    ),
    "half precision within float32": Fault("float32", "fast gradient kv-cache micro-batches", half_precision),
    "the mean of the parts' means": Fault(
        "micro-batches", "fast gradient kv-cache", method(whole_model, "accumulate_gradients", mean_of_means)
    ),
    "other masks in the second forward": Fault("recompute", "fast dropout gradient saved", other_masks),
    "masks that do not repeat": Fault("dropout gradient", "kv-cache mask packed", method(random, "bits", forgetful)),
    "dropout that drops nothing": Fault("dropout", "kv-cache mask gradient", method(random, "keep_scale", nothing)),
    "no causal mask": Fault("mask kv-cache", "fast gradient micro-batches", without("causal")),
    "no lengths": Fault("mask", "fast gradient micro-batches", without("lengths"), "bert"),
    "no source lengths, and no causal mask": Fault("mask", "fast gradient", without("causal"), "bart"),
    "texts that see each other": Fault("packed", "kv-cache mask gradient", without("starts")),
    "a stale key": Fault("kv-cache", "packed mask gradient", method(KVCache, "extend", stale)),
    "padding that is seen": Fault(
        "kv-cache", "packed mask", method(KVCache, "visible", lambda right, cache, stop: None)
    ),
    "a stale key of a Bart": Fault("kv-cache", "mask", method(KVCache, "extend", stale), "bart"),
    "moments that are lost": Fault(
        "saved resumed", "hugging-face fast", method(AdamW, "load_state_dict", lost_moments)
    ),
    "a random stream that begins anew": Fault(
        "resumed", "saved fast", method(random.Generator, "set_state", lambda right, generator, state: None)
    ),
    "arrays under other names": Fault("hugging-face", "saved lora", method(pretrained, "_arrays_to_write", swapped)),
    "another epsilon in config.json": Fault(
        "hugging-face", "saved lora", method(gpt2, "config_to_hugging_face", other_eps)
    ),
    "a merge without its scale": Fault(
        "lora",
        "saved hugging-face fast",
        method(Adapter, "change", lambda right, adapter: right(adapter) / adapter.scale),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_turns_its_claim_red(name, folders, text, monkeypatch):
    fault = FAULTS[name]
    with open_subject(str(folders / fault.model), "", str(text)) as subject:
        fault.plant(monkeypatch)
        found = {one.claim: one for name in f"{fault.fails} {fault.holds}".split() for one in check(subject, name)}
    for claim in fault.fails.split():
        assert found[claim].verdict == "fails", found[claim]
    for claim in fault.holds.split():
        assert found[claim].verdict == "holds", found[claim]


def test_a_wrong_operation_is_found_in_the_table(folders, text, monkeypatch):
    """The plain backward of layer norm, which no other claim but that of the fast pair would look at."""
    rows = [case for case in gradcheck.CASES if case.op in ("layernorm", "gelu")]
    monkeypatch.setattr(gradcheck, "CASES", rows)
    monkeypatch.setattr(ops, "OPS", [op for op in ops.OPS if op.name in ("layernorm", "gelu")])
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        [before] = check(subject, "ops")
        pairs(LAYERNORM, "plain", factor=1.001)(monkeypatch)
        [verdict] = check(subject, "ops")
    assert before.verdict == "holds"
    assert 0 < before.difference < before.bound
    assert verdict.verdict == "fails"
    assert verdict.remark.startswith("layernorm, plain pair")


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which compiles kernels, is not installed")
def test_a_wrong_kernel(folders, text, monkeypatch):
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        pairs(LAYERNORM, "cuda")(monkeypatch)
        found = {one.claim: one.verdict for name in ("kernels", "fast") for one in check(subject, name)}
    assert found == {"kernels": "fails", "fast": "holds"}


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which compiles kernels, is not installed")
def test_kernels_of_a_gpu_are_those_that_are_checked_where_there_is_one(cupy, folders, text, monkeypatch):
    """On the stand-in for CuPy, whose launches are emulated."""
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        [right] = check(subject, "kernels")
        pairs(LAYERNORM, "cuda")(monkeypatch)
        [wrong] = check(subject, "kernels")
    assert (right.verdict, wrong.verdict) == ("holds", "fails"), right
    assert right.remark.endswith("on a GPU")


def test_kernels_without_a_compiler_and_a_gpu(folders, text, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        [verdict] = check(subject, "kernels")
    assert verdict.verdict == "does not apply"
    assert "g++" in verdict.remark


# --- on two ranks ----------------------------------------------------------------------------------------------------


def broken_rank(communicator, training, division, operation):
    """A rank on which what is sent by one operation is a little too large."""
    right = getattr(SharedMemoryCommunicator, operation)

    def wrong(self, array, *args, **named):
        if array.dtype == np.float64 and named.get("what") != "weights":
            array = array * SMALL if operation in ("send", "all_gather", "reduce_scatter") else array
            if operation == "all_reduce":
                array *= SMALL
        return right(self, array, *args, **named)

    setattr(SharedMemoryCommunicator, operation, wrong)
    return divided.on_rank(communicator, training, division)


SENT = {
    "dp": "all_reduce",
    "zero1": "all_gather",
    "zero2": "reduce_scatter",
    "zero3": "all_gather",
    "tp": "all_reduce",
    "pp": "send",
}


@pytest.mark.parametrize("claim", SENT)
def test_a_wrong_sum_between_ranks(claim, folders, text, monkeypatch):
    def with_a_fault(function, ranks, *args):
        assert (function, ranks) == (divided.on_rank, 2)
        return launch(broken_rank, ranks, *args, SENT[claim])

    monkeypatch.setattr(divided, "launch", with_a_fault)
    with open_subject(str(folders / "llama"), "", str(text)) as subject:
        found = {one.claim: one for name in (claim, "fast") for one in check(subject, name)}
    assert found[claim].verdict == "fails", found[claim]
    assert 1e-11 < found[claim].difference < 1e-6, found[claim]  # it is this fault, and no other
    assert found["fast"].verdict == "holds"
