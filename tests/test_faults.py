"""A collection of wrong backwards, as people write them: a plain `check_gradients(fn, *arrays)` must catch each.

A fault is a function (around an op whose backward is wrong), the arrays that somebody would hand to the checker without
a thought of that fault, and the diagnoses that would be true of it. A report may say "no simple cause"; it may never
name a cause that is not there. What no checker can see without being told is in OUT_OF_SIGHT, each with its reason.
"""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Op
from minillm.testing import check_gradients


class Fault(NamedTuple):
    kind: str
    make: Callable  # () -> the function under test; called afresh for each check, because some faults keep state
    arrays: tuple
    causes: tuple[str, ...]  # diagnoses that hold, by the names in CAUSES; "facts" need none


# What a report may say, by name: a pattern of the sentence.
CAUSES = {
    "sign": r"the sign is flipped",
    "zeros": r"returns zeros",
    "factor": r"constant factor",
    "added": r"constant .* is added",
    "transposed": r"transposed",
    "sum": r"missing sum|sum over the broadcast axes",
    "order": r"wrong order",
    "exchanged": r"gradient of argument \d.*(instead|exchanged)|exchanged",
    "duplicates": r"overwritten",
    "detached": r"no gradient reached",
    "unused": r"does not depend on",
    "float32": r"float32 (arithmetic|number)|computed in float32|float32 precision",
    "half": r"float16",
    "partly": r"some elements are|elements are left at zero",
    "unsure": r"differences do not settle",
    "output": r"cotangent of output",
    "twin": r"two arguments are one tensor",
    "wanted": r"which (ones|arguments) need",
    "accumulated": r"must add to it",
    "values": r"wrong exactly where",
    "places": r"wrong exactly (in|on|at)",
    "saved": r"writes into what",
    "dout": r"writes into dout",
    "input": r"changed by the (backward|forward)",
    "cotangent": r"linear in the cotangent|cotangent",
    "state": r"keeps state|another gradient|called again|other values|remembers",
    "layout": r"layout|in memory|stretched|stride",
    "memory": r"shares memory|repeats elements",
    "shape": r"has shape|of shape \(.*, but",
    "dtype": r"is (float|int)\d+, but|turned float",
    "none": r"is None, but",
    "nonfinite": r"is (nan|inf|-inf)",
    "count": r"return a tuple|one gradient",
}

FAULTS: dict[str, Fault] = {}
OUT_OF_SIGHT: dict[str, Fault] = {}

RNG = np.random.default_rng(7)
X, Y = RNG.normal(size=(4, 8)), RNG.normal(size=(4, 8))
POSITIVE = RNG.uniform(0.5, 2, (4, 8))
ROW, SQUARE, COLUMN = RNG.normal(size=8), RNG.normal(size=(5, 5)), RNG.normal(size=(4, 1))
MATRIX = RNG.normal(size=(8, 3))
IDS = np.array([3, 0, 2, 5])  # none twice: nobody thinks of it
LARGE = RNG.normal(size=(300, 400))


def wrong(forward: Callable, backward: Callable, **flags: Any) -> Callable:
    op = Op("planted", forward, backward, **flags)
    return lambda *inputs, **settings: op(*inputs, **settings)


def fault(kind: str, *arrays: Any, causes: str = "", into: dict = FAULTS) -> Callable:
    """Put a maker of a faulty function into the collection, under its own name."""

    def keep(make: Callable) -> Callable:
        into[make.__name__.replace("_", " ")] = Fault(kind, make, arrays, tuple(causes.split()))
        return make

    return keep


def elementwise(f: Callable, slope: Callable) -> Callable:
    """y = f(x), with dx = slope(x, dout)."""
    return wrong(lambda x: (f(x), (x,)), lambda dout, saved: (slope(saved[0], dout),))


def layer(dx: Callable, dweight: Callable) -> Callable:
    """y = x weight, with gradients made from (x, weight, dout)."""
    return wrong(
        lambda x, weight: (x * weight, (x, weight)),
        lambda dout, saved: (dx(*saved, dout), dweight(*saved, dout)),
    )


def right_dx(x, weight, dout):
    return dout * weight


def right_dweight(x, weight, dout):
    return (dout * x).sum(axis=tuple(range(x.ndim - weight.ndim)))


def look_up(backward: Callable) -> Callable:
    return wrong(lambda weight, ids: (weight[ids], (ids, weight.shape)), backward)


def double(backward: Callable, **flags: Any) -> Callable:
    return wrong(lambda x: (2 * x, (x,)), backward, **flags)


def tanh_slope(x, dout):
    return dout * (1 - np.tanh(x) ** 2)


# --- sign, factor --------------------------------------------------------------------------------------------------


@fault("sign", X, causes="sign")
def sign_of_tanh():
    return elementwise(np.tanh, lambda x, dout: -tanh_slope(x, dout))


@fault("sign", X, Y, causes="sign exchanged")
def sign_of_the_subtrahend():
    return wrong(lambda x, y: (x - y, None), lambda dout, saved: (dout * 1, dout * 1))


@fault("sign", POSITIVE, POSITIVE + 0.1, causes="sign")
def sign_of_the_divisor():
    return wrong(lambda x, y: (x / y, (x, y)), lambda dout, s: (dout / s[1], dout * s[0] / s[1] / s[1]))


@fault("factor", X, causes="factor")
def half_of_a_square():
    return elementwise(np.square, lambda x, dout: dout * x)


@fault("factor", X, causes="factor")
def mean_not_divided():
    return wrong(lambda x: (x.mean(axis=-1), x), lambda dout, x: (np.ones_like(x) * dout[..., None],))


@fault("factor", X, causes="factor")
def mean_divided_by_the_other_axis():
    return wrong(lambda x: (x.mean(axis=-1), x), lambda dout, x: (np.ones_like(x) * dout[..., None] / len(x),))


@fault("factor", X, causes="factor")
def sum_divided():
    return wrong(lambda x: (x.sum(axis=-1), x), lambda dout, x: (np.ones_like(x) * dout[..., None] / 8,))


@fault("factor", X, causes="factor")
def one_thousandth_too_large():
    return elementwise(np.tanh, lambda x, dout: 1.001 * tanh_slope(x, dout))


@fault("factor", X, causes="factor")
def three_millionths_too_large():
    return elementwise(np.tanh, lambda x, dout: 1.000003 * tanh_slope(x, dout))


@fault("factor", X[:1, :1], causes="factor sign")
def twice_on_one_number():
    return elementwise(np.tanh, lambda x, dout: 2 * tanh_slope(x, dout))


@fault("factor", X)
def a_factor_that_grows_with_x():
    return elementwise(np.square, lambda x, dout: 2 * x * dout * (1 + 0.1 * x * x))


@fault("factor", X, causes="added")
def one_too_much():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) + 1)


# --- missing terms -------------------------------------------------------------------------------------------------


def layernorm(backward: Callable) -> Callable:
    def forward(x):
        rstd = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
        return (x - x.mean(axis=-1, keepdims=True)) * rstd, ((x - x.mean(axis=-1, keepdims=True)) * rstd, rstd)

    return wrong(forward, lambda dout, saved: (backward(dout, *saved),))


@fault("term", X)
def layernorm_without_the_mean():
    return layernorm(lambda dout, norm, rstd: rstd * (dout - norm * (dout * norm).mean(-1, keepdims=True)))


@fault("term", X)
def layernorm_without_rstd():
    return layernorm(lambda dout, norm, rstd: rstd * (dout - dout.mean(-1, keepdims=True)))


def softmax_of(x):
    y = np.exp(x - x.max(axis=-1, keepdims=True))
    return y / y.sum(axis=-1, keepdims=True)


@fault("term", X)
def softmax_without_the_sum():
    return wrong(lambda x: (softmax_of(x),) * 2, lambda dout, y: (y * dout,))


@fault("term", X)
def softmax_summed_over_the_other_axis():
    return wrong(lambda x: (softmax_of(x),) * 2, lambda dout, y: (y * (dout - (dout * y).sum(0)),))


@fault("term", X)
def log_softmax_without_the_sum():
    return wrong(lambda x: (np.log(softmax_of(x)), None), lambda dout, _: (dout * 1,))


@fault("term", X)
def silu_without_its_second_term():
    return elementwise(lambda x: x / (1 + np.exp(-x)), lambda x, dout: dout / (1 + np.exp(-x)))


@fault("term", X, ROW, causes="partly")
def gradient_of_the_bias_reaches_one_place():
    def backward(dout, saved):
        dbias = dout.sum(0)
        dbias[3] = 0
        return dout * 1, dbias

    return wrong(lambda x, bias: (x + bias, None), backward)


# --- broadcasting --------------------------------------------------------------------------------------------------


@fault("broadcast", X, ROW, causes="sum")
def bias_gets_the_first_row():
    return wrong(lambda x, bias: (x + bias, None), lambda dout, _: (dout * 1, dout[0].copy()))


@fault("broadcast", X, ROW, causes="sum")
def weight_gets_the_last_row():
    return layer(right_dx, lambda x, weight, dout: (dout * x)[-1].copy())


@fault("broadcast", X, ROW, causes="factor")
def bias_gets_the_mean_of_the_rows():
    return wrong(lambda x, bias: (x + bias, None), lambda dout, _: (dout * 1, dout.mean(0)))


@fault("broadcast", X, ROW[None], causes="sum")
def a_kept_axis_is_not_summed():
    return wrong(lambda x, bias: (x + bias, None), lambda dout, _: (dout * 1, dout[:1].copy()))


@fault("broadcast", SQUARE, SQUARE[0])
def summed_over_the_wrong_axis():
    return layer(right_dx, lambda x, weight, dout: (dout * x).sum(axis=1))


@fault("broadcast", X, ROW, causes="sum shape")
def not_summed_at_all():
    return layer(right_dx, lambda x, weight, dout: dout * x)


@fault("broadcast", X, np.array(0.3), causes="sum")
def a_number_gets_the_sum_of_one_row():
    return wrong(lambda x, bias: (x + bias, None), lambda dout, _: (dout * 1, np.array(dout[0].sum())))


@fault("broadcast", COLUMN, ROW[None], causes="sum")
def an_outer_product_gets_one_column():
    return wrong(
        lambda x, y: (x * y, (x, y)), lambda dout, s: ((dout * s[1])[:, :1].copy(), (dout * s[0]).sum(0, keepdims=True))
    )


# --- transposed, zeros, exchanged ----------------------------------------------------------------------------------


@fault("transposed", SQUARE, causes="transposed")
def a_square_transposed():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout).T.copy())


@fault("transposed", RNG.normal(size=(3, 2, 3)), causes="transposed")
def a_cube_turned():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout).swapaxes(0, 2).copy())


@fault("transposed", SQUARE, SQUARE + 0.3)
def matmul_with_its_factor_not_transposed():
    return wrong(lambda a, b: (a @ b, (a, b)), lambda dout, s: (dout @ s[1], s[0].T @ dout))


@fault("transposed", X, MATRIX, causes="transposed shape")
def matmul_with_its_result_transposed():
    return wrong(lambda a, b: (a @ b, (a, b)), lambda dout, s: (dout @ s[1].T, dout.T @ s[0]))


@fault("transposed", X, causes="order")
def rows_reversed():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout)[::-1].copy())


@fault("transposed", X, causes="order")
def off_by_one():
    return elementwise(np.tanh, lambda x, dout: np.roll(tanh_slope(x, dout), 1, axis=1))


@fault("zeros", X, causes="zeros")
def zeros():
    return elementwise(np.tanh, lambda x, dout: 0 * dout)


@fault("zeros", X, ROW, causes="zeros")
def zeros_for_the_weight():
    return layer(right_dx, lambda x, weight, dout: 0 * weight)


@fault("zeros", X, ROW, causes="none")
def none_for_the_weight():
    return layer(right_dx, lambda x, weight, dout: None)


@fault("zeros", X, causes="detached")
def detached():
    op = elementwise(np.tanh, tanh_slope)
    return lambda x: op(x.detach()) * 1


@fault("zeros", X, ROW, causes="unused")
def a_gradient_from_nowhere():
    return wrong(lambda x, y: (x * 1, y), lambda dout, y: (dout * 1, y * 1))


@fault("exchanged", X, Y, causes="exchanged")
def factors_exchanged():
    return wrong(lambda x, y: (x * y, (x, y)), lambda dout, s: (dout * s[0], dout * s[1]))


@fault("exchanged", X, Y, causes="exchanged")
def gate_and_up_exchanged():
    def backward(dout, saved):
        gate, up = saved
        sigmoid = 1 / (1 + np.exp(-gate))
        return dout * gate * sigmoid, dout * up * (sigmoid + gate * sigmoid * (1 - sigmoid))

    return wrong(lambda gate, up: (gate / (1 + np.exp(-gate)) * up, (gate, up)), backward)


@fault("exchanged", X, ROW, causes="exchanged shape")
def exchanged_with_another_shape():
    return wrong(lambda x, w: (x * w, (x, w)), lambda dout, s: ((dout * s[0]).sum(0), dout * s[1]))


@fault("exchanged", ROW, X, causes="exchanged shape")
def exchanged_with_another_shape_the_other_way():
    return wrong(lambda w, x: (x * w, (x, w)), lambda dout, s: (dout * s[1], (dout * s[0]).sum(0)))


@fault("exchanged", X, Y, causes="exchanged")
def both_get_the_first_ones():
    return wrong(lambda x, y: (x * y, (x, y)), lambda dout, s: (dout * s[1], dout * s[1]))


# --- duplicates ----------------------------------------------------------------------------------------------------

TABLE = RNG.normal(size=(6, 3))


def overwritten(dout, saved):
    ids, shape = saved
    gradient = np.zeros(shape, dout.dtype)
    gradient[ids] = dout
    return gradient, None


@fault("duplicates", TABLE, IDS, causes="duplicates")
def embedding_overwrites():
    return look_up(overwritten)


@fault("duplicates", TABLE, np.array([3, 0, 3, 5]), causes="duplicates")
def embedding_overwrites_what_is_there_twice():
    return look_up(overwritten)


@fault("duplicates", TABLE, IDS, causes="duplicates")
def embedding_adds_once():
    def backward(dout, saved):
        gradient = np.zeros(saved[1], dout.dtype)
        gradient[saved[0]] += dout
        return gradient, None

    return look_up(backward)


@fault("duplicates", TABLE, IDS, causes="factor")
def embedding_averages():
    def backward(dout, saved):
        ids, shape = saved
        gradient = np.zeros(shape, dout.dtype)
        np.add.at(gradient, ids, dout / np.bincount(ids)[ids][:, None])
        return gradient, None

    return look_up(backward)


@fault("duplicates", TABLE, np.array([[1, 0], [1, 2]]), causes="duplicates")
def a_matrix_of_ids_overwrites():
    return look_up(overwritten)


@fault("duplicates", TABLE, causes="duplicates")
def rows_taken_twice():
    ids = np.array([1, 1, 0, 4])
    return wrong(lambda x: (x[ids], (ids, x.shape)), lambda dout, saved: (overwritten(dout, saved)[0],))


# --- memory that is written to -------------------------------------------------------------------------------------


@fault("mutation", X, causes="dout")
def writes_into_dout():
    def backward(dout, saved):
        dout *= 2
        return (dout.copy(),)

    return double(backward)


@fault("mutation", X, causes="saved state")
def writes_into_saved():
    def backward(dout, saved):
        saved[0][...] *= dout
        return (saved[0].copy(),)

    return wrong(lambda x: (np.exp(x), (np.exp(x),)), backward)


@fault("mutation", X, causes="saved")
def writes_into_saved_after_the_last_use():
    def backward(dout, saved):
        gradient = dout * saved[0]
        saved[0][...] = gradient
        return (gradient,)

    return wrong(lambda x: (np.exp(x), (np.exp(x),)), backward)


@fault("mutation", X, causes="input saved")
def writes_into_the_input():
    def backward(dout, saved):
        saved[0][0] = 7
        return (2 * dout,)

    return double(backward)


@fault("mutation", X, causes="input")
def forward_writes_into_its_input():
    def forward(x):
        x += 1
        return 2 * x, None

    return wrong(forward, lambda dout, saved: (2 * dout,))


@fault("mutation", TABLE, IDS, causes="input saved")
def writes_into_the_ids():
    def backward(dout, saved):
        ids, shape = saved
        gradient = np.zeros(shape, dout.dtype)
        np.add.at(gradient, ids, dout)
        ids[0] = 0
        return gradient, None

    return look_up(backward)


@fault("mutation", X, ROW, causes="input saved")
def writes_into_an_argument_without_gradient():
    def backward(dout, saved):
        x, weight = saved
        gradient = dout * weight
        weight *= 2
        return gradient, (dout * x).sum(0)

    return wrong(lambda x, weight: (x * weight, (x, weight)), backward)


# --- not linear in the cotangent -----------------------------------------------------------------------------------


@fault("cotangent", X, causes="cotangent")
def squares_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * dout)


@fault("cotangent", X, causes="cotangent")
def sign_of_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, np.sign(dout)))


@fault("cotangent", X, causes="cotangent sign")
def absolute_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, abs(dout)))


@fault("cotangent", X, causes="cotangent")
def small_dout_is_dropped():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, np.where(abs(dout) < 1e-2, 0, dout)))


@fault("cotangent", X, causes="cotangent")
def large_dout_is_clipped():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout.clip(-2, 2)))


@fault("cotangent", X, causes="cotangent")
def very_large_dout_is_clipped():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout.clip(-1e4, 1e4)))


@fault("cotangent", X, causes="cotangent")
def zeros_of_dout_count_as_ones():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, np.where(dout == 0, 1, dout)))


@fault("cotangent", X, causes="cotangent nonfinite")
def divides_by_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout * dout / dout))


@fault("cotangent", X, causes="cotangent")
def normalises_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout / (np.sqrt(np.mean(dout**2)) + 1e-12)))


@fault("cotangent", X, causes="cotangent")
def adds_a_little_to_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout + 1e-9))


@fault("cotangent", X, causes="cotangent")
def skips_rows_whose_dout_begins_with_zero():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout * (dout[..., :1] != 0)))


@fault("cotangent", X, causes="cotangent nonfinite")
def nothing_for_a_dout_of_zeros():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) / (1 if dout.any() else np.float64(0)))


# --- state ---------------------------------------------------------------------------------------------------------


def on_call(number: int) -> Callable:
    calls = []

    def backward(dout, saved):
        calls.append(1)
        return (2 * dout * (1 + (len(calls) == number)),)

    return double(backward)


for number in (2, 3, 4, 7):
    FAULTS[f"wrong on call {number}"] = Fault("state", functools.partial(on_call, number), (X,), ("state",))


@fault("state", X, causes="state")
def remembers_the_latest_forward():
    latest = {}

    def forward(x):
        latest["x"] = x
        return x * x, None

    return wrong(forward, lambda dout, saved: (2 * latest["x"] * dout,))


@fault("state", X, causes="state saved memory")
def saves_into_one_buffer():
    buffers = {}

    def forward(x):
        buffer = buffers.setdefault((x.shape, x.dtype), np.empty_like(x))
        np.square(x, out=buffer)
        return x * buffer, (buffer,)

    return wrong(forward, lambda dout, saved: (3 * saved[0] * dout,))


@fault("state", X, causes="state memory")
def returns_one_buffer():
    buffers = {}

    def backward(dout, saved):
        buffer = buffers.setdefault((dout.shape, dout.dtype), np.empty_like(dout))
        return (np.multiply(dout, 2, out=buffer),)

    return double(backward)


@fault("state", X, causes="state memory")
def adds_up_from_call_to_call():
    total = {}

    def backward(dout, saved):
        total[dout.shape] = total.get(dout.shape, 0) + 2 * dout
        return (total[dout.shape].copy(),)

    return double(backward)


@fault("state", X, causes="state")
def alternates():
    calls = []

    def backward(dout, saved):
        calls.append(1)
        return ((3 - 2 * (len(calls) % 2)) * dout,)

    return wrong(lambda x: (x * 1, None), backward)


@fault("random", X, causes="state")
def draws_its_mask_again():
    def fn(x):
        stream = np.random.default_rng(0)
        op = Op(
            "planted",
            lambda x: (x * (stream.random(x.shape) < 0.5), None),
            lambda dout, saved: (dout * (stream.random(dout.shape) < 0.5),),
        )
        return op(x)

    return fn


@fault("random", X, causes="state")
def draws_from_the_global_stream():
    stream = np.random.RandomState(0)
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (1 + 1e-3 * stream.rand()))


# --- layout --------------------------------------------------------------------------------------------------------


@fault("layout", X, causes="layout")
def reads_x_in_the_order_of_memory():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x.ravel(order="K").reshape(x.shape), dout))


@fault("layout", X, causes="layout cotangent")
def reads_dout_in_the_order_of_memory():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout.ravel(order="K").reshape(x.shape)))


@fault("layout", X, causes="layout")
def wrong_for_arrays_that_are_not_contiguous():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (1 if x.flags.c_contiguous else 2))


@fault("layout", X, causes="layout cotangent")
def wrong_for_a_stretched_dout():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (2 if 0 in dout.strides else 1))


@fault("layout", X, causes="layout")
def wrong_for_a_stretched_x():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (2 if 0 in x.strides else 1))


@fault("layout", X, MATRIX, causes="layout")
def wrong_for_a_weight_in_columns():
    def backward(dout, saved):
        a, b = saved
        return dout @ b.T, a.T @ dout * (2 if b.flags.f_contiguous and not b.flags.c_contiguous else 1)

    return wrong(lambda a, b: (a @ b, (a, b)), backward)


@fault("layout", X, causes="layout")
def wrong_for_negative_strides():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (2 if min(x.strides, default=0) < 0 else 1))


@fault("layout", X, causes="layout")
def wrong_for_every_other_element():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (2 if x.strides[-1] > x.itemsize else 1))


@fault("layout", X, causes="layout")
def forward_reads_in_the_order_of_memory():
    return elementwise(lambda x: np.tanh(x.ravel(order="K").reshape(x.shape)), tanh_slope)


@fault("layout", X, ROW, causes="layout")
def wrong_for_a_strided_vector():
    return layer(
        right_dx, lambda x, weight, dout: right_dweight(x, weight, dout) * (1 if weight.strides[0] == 8 else 2)
    )


# --- sizes ---------------------------------------------------------------------------------------------------------


@fault("size", X)
def squeezes_an_axis_of_size_1():
    def backward(dout, x):
        return (
            np.ones_like(x) * np.squeeze(dout[..., None]).reshape(-1)[: len(x)].sum()
            if x.shape[-1] == 1
            else np.ones_like(x) * dout[..., None],
        )

    return wrong(lambda x: (x.sum(axis=-1), x), backward)


@fault("size", X, causes="zeros")
def zeros_for_one_row():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * (len(x) > 1))


@fault("size", X, causes="nonfinite shape")
def fails_on_nothing():
    def backward(dout, saved):
        scale = abs(dout).max()  # of an empty array: an exception
        return (2 * (dout / scale) * scale,)

    return double(backward)


@fault("size", X, causes="shape")
def wrong_shape_for_nothing():
    return double(lambda dout, saved: (2 * dout if dout.size else np.zeros(0),))


@fault("size", X, causes="zeros partly places")
def drops_the_last_of_an_odd_number():
    def backward(dout, saved):
        dx = 2 * dout
        if dx.shape[-1] % 2:
            dx[..., -1] = 0
        return (dx,)

    return double(backward)


def beyond_a_block(axis: int, block: int) -> Callable:
    def backward(dout, saved):
        dx = 2 * dout
        np.moveaxis(dx, axis, 0)[block:] = 0
        return (dx,)

    return double(backward)


for size in (16, 64, 128, 256):
    for axis in (0, 1):
        FAULTS[f"beyond {size} along axis {axis}"] = Fault(
            "size", functools.partial(beyond_a_block, axis, size), (X,), ("places", "partly")
        )


@fault("size", X, causes="partly places")
def forgets_the_rest_of_a_block():
    """Whole blocks of 32 are right, and all that is shorter than one."""

    def backward(dout, saved):
        dx, n = 2 * dout, dout.shape[-1]
        if n > 32 and n % 32:
            dx[..., n - n % 32 :] = 0
        return (dx,)

    return double(backward)


# --- values --------------------------------------------------------------------------------------------------------


@fault("values", POSITIVE, causes="values sign")
def wrong_below_zero():
    return elementwise(np.square, lambda x, dout: 2 * abs(x) * dout)


@fault("values", -POSITIVE, causes="values factor")
def wrong_above_zero():
    return elementwise(lambda x: x**3, lambda x, dout: np.where(x > 0, 2, 3) * x * x * dout)


@fault("values", X, causes="values sign")
def wrong_below_zero_with_both_signs():
    return elementwise(np.square, lambda x, dout: 2 * abs(x) * dout)


@fault("values", X, causes="values")
def saturates_beyond_3():
    return elementwise(lambda x: x * x, lambda x, dout: 2 * x.clip(-3, 3) * dout)


@fault("values", X, causes="values")
def saturates_beyond_50():
    return elementwise(lambda x: x * x, lambda x, dout: 2 * x.clip(-50, 50) * dout)


@fault("values", X, causes="values partly")
def the_tail_of_a_tanh_is_cut():
    return elementwise(np.tanh, lambda x, dout: np.where(abs(x) > 3, 0, tanh_slope(x, dout)))


@fault("values", X, causes="values zeros partly")
def small_values_get_nothing():
    return elementwise(np.sin, lambda x, dout: np.where(abs(x) < 3e-3, 0, np.cos(x) * dout))


@fault("values", X, X + 0.2, causes="nonfinite")
def divides_by_x():
    return wrong(lambda x, y: (x * y, (x, y)), lambda dout, s: (dout * s[1], dout * (s[0] * s[1]) / s[1]))


@fault("values", X, causes="values nonfinite")
def a_product_divided_by_its_element():
    return wrong(
        lambda x: (x.prod(axis=-1), x), lambda dout, x: (dout[..., None] * x.prod(axis=-1, keepdims=True) / x,)
    )


@fault("values", POSITIVE)
def eps_in_the_slope_of_a_logarithm():
    return elementwise(np.log, lambda x, dout: dout / (x + 1e-7))


@fault("values", POSITIVE, into=OUT_OF_SIGHT)
def eps_in_the_slope_of_a_root():
    """Wrong by 5e-9 near 1 and by 2e-7 near 1e-3: less than the tolerance."""
    return elementwise(np.sqrt, lambda x, dout: dout / (2 * np.sqrt(x) + 1e-8))


@fault("values", X, causes="nonfinite")
def sigmoid_that_overflows():
    return elementwise(lambda x: 0.5 * (1 + np.tanh(x / 2)), lambda x, dout: dout * np.exp(-x) / (1 + np.exp(-x)) ** 2)


@fault("values", X, causes="values")
def wrong_at_whole_numbers():
    return elementwise(np.sin, lambda x, dout: np.where(x == np.round(x), 2, 1) * np.cos(x) * dout)


@fault("values", np.sort(X), causes="order")
def believes_its_rows_are_sorted():
    def backward(dout, x):
        dx = np.zeros_like(x)
        dx[..., -1] = dout
        return (dx,)

    return wrong(lambda x: (x.max(axis=-1), x), backward)


@fault("values", X, POSITIVE, causes="values sign")
def wrong_for_a_negative_second_argument():
    return wrong(lambda x, y: (x * y, (x, y)), lambda dout, s: (dout * abs(s[1]), dout * s[0]))


@fault("ties", np.array([[1.0, 1.0, 0.5]]), causes="unsure")
def every_tie_of_a_maximum_gets_all():
    """At a tie the function has no derivative; a central difference is the mean of both sides, and this is not."""

    def backward(dout, x):
        return (np.where(x == x.max(axis=-1, keepdims=True), dout[..., None], 0),)

    return wrong(lambda x: (x.max(axis=-1), x), backward)


# --- precision -----------------------------------------------------------------------------------------------------


def single(x):
    return x.astype(np.float32)


@fault("precision", X, causes="float32")
def rounded_to_float32():
    return elementwise(np.tanh, lambda x, dout: single(tanh_slope(x, dout)).astype(x.dtype))


@fault("precision", X, causes="float32")
def computed_in_float32_on_the_way():
    return elementwise(np.tanh, lambda x, dout: (1 - np.tanh(single(x)) ** 2).astype(x.dtype) * dout)


@fault("precision", X, causes="float32")
def saves_float32():
    return wrong(lambda x: (np.exp(x), single(np.exp(x))), lambda dout, y: (dout * y.astype(dout.dtype),))


@fault("precision", X, causes="half float32")
def rounded_to_float16():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout).astype(np.float16).astype(x.dtype))


@fault("precision", X, ROW, causes="float32")
def a_sum_in_float32():
    return layer(right_dx, lambda x, weight, dout: single(dout * x).sum(axis=0).astype(x.dtype))


@fault("precision", POSITIVE, POSITIVE + 0.1, causes="float32")
def the_square_of_a_divisor_overflows():
    return wrong(lambda x, y: (x / y, (x, y)), lambda dout, s: (dout / s[1], -dout * s[0] / (s[1] * s[1])))


@fault("precision", POSITIVE, causes="float32")
def the_cube_of_a_root_overflows():
    return elementwise(lambda x: 1 / np.sqrt(x), lambda x, dout: -0.5 * dout / np.sqrt(x * x * x))


@fault("precision", X, causes="dtype")
def float64_for_float32():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout) * np.float64(1.0))


@fault("precision", X, causes="dtype")
def forward_gives_float64_for_float32():
    return elementwise(lambda x: np.tanh(x) * np.float64(1.0), tanh_slope)


@fault("precision", POSITIVE, causes="float32")
def an_eps_that_is_0_in_float32():
    return elementwise(
        lambda x: x * np.log1p(x), lambda x, dout: dout * (np.log1p(x) + x * x / (x * x + x + x.dtype.type(1e-60)))
    )


# --- what is returned ----------------------------------------------------------------------------------------------


@fault("result", X, causes="shape")
def an_axis_too_many():
    return double(lambda dout, saved: ((2 * dout)[None],))


@fault("result", X, causes="nonfinite")
def one_nan():
    def backward(dout, saved):
        dx = 2 * dout
        dx[1, 2] = np.nan
        return (dx,)

    return double(backward)


@fault("result", X, causes="dtype")
def integers():
    return double(lambda dout, saved: ((2 * dout).astype(int),))


@fault("result", X, ROW, causes="count")
def too_few():
    return wrong(lambda x, w: (x * w, w), lambda dout, w: (dout * w,))


@fault("result", X, causes="count")
def a_list():
    return double(lambda dout, saved: [2 * dout])


@fault("result", X, causes="none")
def nothing_at_all():
    return double(lambda dout, saved: (None,))


@fault("alias", X, causes="memory")
def returns_dout():
    return wrong(lambda x: (x * 1, None), lambda dout, saved: (dout,))


@fault("alias", X, causes="memory")
def returns_a_view_of_dout():
    return wrong(lambda x: (x.reshape(-1) * 1, x.shape), lambda dout, shape: (dout.reshape(shape),))


@fault("alias", X, causes="memory saved")
def returns_what_was_saved():
    return wrong(lambda x: (x.sum(), (np.ones_like(x),)), lambda dout, s: (np.multiply(s[0], dout, out=s[0]),))


@fault("alias", X, Y, causes="memory")
def returns_one_array_twice():
    def backward(dout, saved):
        both = dout * 1
        return both, both

    return wrong(lambda x, y: (x + y, None), backward)


@fault("alias", X, causes="memory")
def returns_a_stretched_array():
    return wrong(lambda x: (x.sum(), x.shape), lambda dout, shape: (np.broadcast_to(dout * 1.0, shape),))


# --- rare elements -------------------------------------------------------------------------------------------------


def zero_at(index: Any, array: Any = X) -> Callable:
    def backward(dout, saved):
        dx = 2 * dout
        dx[index] *= 1.5
        return (dx,)

    return double(backward)


RARE = {
    "the last row": (X, -1, "places"),
    "the last column": (X, (slice(None), -1), "places"),
    "the first element": (X, (0, 0), "places"),
    "the last element": (X, (-1, -1), "places"),
    "the diagonal": (SQUARE, np.diag_indices(5), "places"),
    "above the diagonal": (SQUARE, np.triu_indices(5, 1), "places"),
    "one of 2,000": (RNG.normal(size=(40, 50)), (17, 31), "places"),
    "one of 120,000": (LARGE, (123, 45), "places"),
}
for place, (array, index, allowed) in RARE.items():
    FAULTS[f"wrong in {place}"] = Fault("rare", functools.partial(zero_at, index), (array,), tuple(allowed.split()))


# --- small elements ------------------------------------------------------------------------------------------------

SCALES = 10.0 ** -np.arange(8)


@fault("small", X, causes="partly places")
def the_smallest_is_doubled():
    factor = np.where(SCALES < 1e-6, 2, 1)
    return wrong(lambda x: (x * SCALES, None), lambda dout, saved: (dout * SCALES * factor,))


@fault("small", X, causes="sign partly places")
def the_sign_of_a_small_one():
    sign = np.where(SCALES < 1e-5, -1, 1)
    return wrong(lambda x: (np.sin(x) * SCALES, x), lambda dout, x: (dout * np.cos(x) * SCALES * sign,))


@fault("small", X, np.array([1.0, 0.5]), causes="partly")
def the_small_of_two_weights_gets_nothing():
    def backward(dout, saved):
        x, w = saved
        return dout * (w[0] - 1e-7 * np.sin(x) * w[1]), np.array([(dout * x).sum(), 0.0], dout.dtype)

    return wrong(lambda x, w: (x * w[0] + 1e-7 * np.cos(x) * w[1], (x, w)), backward)


@fault("small", X, causes="partly values")
def small_gradients_are_rounded_away():
    def slope(x, dout):
        dx = np.exp(-8 * abs(x)) * -8 * np.sign(x) * dout
        return np.where(abs(dx) < 1e-7 * abs(dx).max(initial=0), 0, dx)

    return elementwise(lambda x: np.exp(-8 * abs(x)), slope)


# --- several outputs -----------------------------------------------------------------------------------------------


def two_outputs(backward: Callable) -> Callable:
    return wrong(lambda x: ((np.sin(x), x * x), x), backward)


def given(dout):
    return [0.0 if one is None else one for one in dout]


@fault("outputs", X, causes="output")
def the_second_output_is_forgotten():
    return two_outputs(lambda dout, x: (given(dout)[0] * np.cos(x) + 0 * x,))


@fault("outputs", X, causes="cotangent")
def fails_where_an_output_is_not_used():
    return two_outputs(lambda dout, x: (dout[0] * np.cos(x) + dout[1] * 2 * x,))


@fault("outputs", X, causes="cotangent outputs")
def twice_where_an_output_is_not_used():
    def backward(dout, x):
        first, second = given(dout)
        return ((first * np.cos(x) + second * 2 * x) * (1 + any(one is None for one in dout)),)

    return two_outputs(backward)


@fault("outputs", X)
def the_cotangents_are_exchanged():
    return two_outputs(lambda dout, x: (given(dout)[1] * np.cos(x) + given(dout)[0] * 2 * x,))


@fault("outputs", X)
def the_first_cotangent_serves_both():
    def backward(dout, x):
        one = dout[0] if dout[0] is not None else dout[1]
        return (one * (np.cos(x) + 2 * x),)

    return two_outputs(backward)


# --- how the arguments come ----------------------------------------------------------------------------------------


@fault("twice", X, Y, causes="twin")
def half_where_both_are_one():
    def backward(dout, saved):
        x, y = saved
        half = 0.5 if x is y or np.shares_memory(x, y) else 1.0
        return half * dout * y, half * dout * x

    return wrong(lambda x, y: (x * y, (x, y)), backward)


@fault("twice", X, Y, causes="values")
def half_where_both_are_equal():
    def backward(dout, saved):
        x, y = saved
        half = np.where(x == y, 0.5, 1.0)
        return half * dout * y, half * dout * x

    return wrong(lambda x, y: (x * y, (x, y)), backward)


@fault("wanted", X, ROW, causes="accumulated")
def overwrites_a_gradient_that_is_there():
    def backward(dout, saved, into):
        x, weight = saved
        dweight = (dout * x).sum(0)
        if into[1] is not None:
            into[1].array[...] = dweight
            return dout * weight, into[1].array
        return dout * weight, dweight

    return wrong(lambda x, weight: (x * weight, (x, weight)), backward, writes_into=True)


@fault("wanted", X, ROW, causes="accumulated")
def adds_twice_to_a_gradient_that_is_there():
    def backward(dout, saved, into):
        x, weight = saved
        dweight = (dout * x).sum(0)
        if into[1] is not None and into[1].add:
            into[1].array[...] += dweight
        return dout * weight, dweight

    return wrong(lambda x, weight: (x * weight, (x, weight)), backward, writes_into=True)


@fault("wanted", X, ROW, causes="wanted")
def right_only_if_the_weight_wants_a_gradient_too():
    def fn():
        op = Op(
            "planted", lambda x, weight: (x * weight, (x, weight)), lambda dout, s: (dout * s[1], (dout * s[0]).sum(0))
        )
        lazy = Op("planted", lambda x, weight: (x * weight, (x, weight)), lambda dout, s: (2 * dout * s[1], None))
        return lambda x, weight: (op if weight.requires_grad else lazy)(x, weight)

    return fn()


# --- leaks ---------------------------------------------------------------------------------------------------------


@fault("leak", X)
def rows_of_the_batch_mix():
    return elementwise(np.tanh, lambda x, dout: tanh_slope(x, dout - 0.01 * dout.mean(axis=0)))


@fault("leak", X)
def the_future_leaks():
    def slope(x, dout):
        dx = np.flip(np.cumsum(np.flip(dout, -1), -1), -1)
        dx[..., :-1] += 1e-4 * dout[..., 1:]
        return dx

    return elementwise(lambda x: np.cumsum(x, axis=-1), slope)


@fault("leak", X, causes="order")
def a_sum_that_runs_the_wrong_way():
    return elementwise(lambda x: np.cumsum(x, axis=-1), lambda x, dout: np.cumsum(dout, axis=-1))


@fault("leak", X)
def a_sum_that_leaves_out_its_own():
    return elementwise(
        lambda x: np.cumsum(x, axis=-1), lambda x, dout: np.flip(np.cumsum(np.flip(dout, -1), -1), -1) - dout
    )


@fault("leak", X, causes="zeros")
def whole_division():
    return wrong(lambda x: (x.sum(axis=-1) * 0.625, x), lambda dout, x: (np.ones_like(x) * dout[..., None] * (5 // 8),))


@fault("leak", RNG.normal(size=(4, 6)), np.array([1, -100, 3, -100]), causes="factor")
def ignored_rows_are_counted():
    def forward(x, ids):
        kept = ids != -100
        y = np.log(softmax_of(x))
        n = max(1, kept.sum())
        return -(y[np.arange(len(x)), np.where(kept, ids, 0)] * kept).sum() / n, (softmax_of(x), ids)

    def backward(dout, saved):
        y, ids = saved
        kept = ids != -100
        dx = y.copy()
        dx[np.arange(len(y)), np.where(kept, ids, 0)] -= 1
        return dout * dx * kept[:, None] / len(y), None

    return wrong(forward, backward)


# --- what no checker can see ---------------------------------------------------------------------------------------


@fault("settings", X, into=OUT_OF_SIGHT)
def wrong_along_another_axis():
    """The function that is handed over uses one setting; only another call can see another."""
    op = Op(
        "planted",
        lambda x, axis: (x.sum(axis=axis), (x, axis)),
        lambda dout, s: (np.ones_like(s[0]) * np.expand_dims(dout, -1) if s[1] == -1 else 0 * s[0],),
    )
    return lambda x: op(x, axis=-1)


@fault("settings", TABLE, into=OUT_OF_SIGHT)
def ids_that_the_function_keeps_to_itself():
    """The ids are none of the arguments, and no id is there twice."""
    return wrong(lambda x: (x[IDS], (IDS, x.shape)), lambda dout, saved: (overwritten(dout, saved)[0],))


# --- the checks ----------------------------------------------------------------------------------------------------


def report_of(made: Fault) -> str:
    """The error of a plain call; "" if it passes."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            check_gradients(made.make(), *made.arrays)
        except Exception as error:
            return "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])])
    return ""


@pytest.mark.parametrize("name", FAULTS)
def test_a_plain_call_finds_it_and_names_no_false_cause(name):
    made = FAULTS[name]
    report = report_of(made)
    assert report
    _, _, cause = report.partition("likely cause: ")
    if not cause.startswith("no simple cause"):
        said = {kind for kind, pattern in CAUSES.items() if re.search(pattern, cause or report)}
        assert said & set(made.causes), report


def test_half_of_the_causes_are_named():
    """Silence is never false; so that it is not the only answer, these many are named."""
    causes = [report_of(made).partition("likely cause: ")[2] for made in FAULTS.values()]
    unnamed = [cause for cause in causes if cause.startswith("no simple cause")]
    assert len(unnamed) < 0.25 * len(FAULTS)


@pytest.mark.parametrize("name", OUT_OF_SIGHT)
def test_what_no_checker_can_see_is_what_it_says(name):
    """If one of these is found one day, it moves to FAULTS."""
    assert OUT_OF_SIGHT[name].make.__doc__ or name
    assert report_of(OUT_OF_SIGHT[name]) == ""


def test_there_are_many_of_every_kind():
    assert len(FAULTS) > 150
    assert len({made.kind for made in FAULTS.values()}) > 20


# --- nothing cries wolf --------------------------------------------------------------------------------------------


def slope(f: Callable, df: Callable) -> Callable:
    return wrong(lambda x: (f(x), (x,)), lambda dout, saved: (df(saved[0]) * dout,))


def sorted_rows() -> Callable:
    def backward(dout, order):
        return (np.take_along_axis(dout, np.argsort(order, axis=-1), axis=-1),)

    return wrong(lambda x: (np.sort(x, axis=-1), np.argsort(x, axis=-1, kind="stable")), backward)


def median_of_rows() -> Callable:
    def forward(x):
        order = np.argsort(x, axis=-1, kind="stable")
        place = order[..., x.shape[-1] // 2, None]
        return np.take_along_axis(x, place, axis=-1)[..., 0], (x.shape, place)

    def backward(dout, saved):
        dx = np.zeros(saved[0], dout.dtype)
        np.put_along_axis(dx, saved[1], dout[..., None], axis=-1)
        return (dx,)

    return wrong(forward, backward)


HALF = np.random.default_rng(9).normal(size=(4, 8))
RIGHT: dict[str, tuple] = {
    "a kink at 0": (slope(np.abs, np.sign), X),
    "a kink that only other values have": (
        slope(lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(x.dtype)),
        POSITIVE,
    ),
    "jumps": (slope(lambda x: x * np.floor(x), np.floor), X),
    "kinks at whole numbers": (slope(lambda x: x.clip(-1, 1), lambda x: (abs(x) < 1).astype(x.dtype)), X),
    "not for negative numbers": (slope(np.log, lambda x: 1 / x), POSITIVE),
    "an infinite slope at 0": (slope(np.sqrt, lambda x: 0.5 / np.sqrt(x)), POSITIVE),
    "only between -1 and 1": (slope(np.arcsin, lambda x: 1 / np.sqrt(1 - x * x)), X / 4),
    "a pole": (slope(lambda x: 1 / x, lambda x: -1 / x / x), X),
    "it overflows": (slope(lambda x: np.exp(10 * x), lambda x: 10 * np.exp(10 * x)), X),
    "it waves": (slope(lambda x: np.sin(1000 * x), lambda x: 1000 * np.cos(1000 * x)), X),
    "it is steep": (slope(lambda x: np.tanh(1e4 * x), lambda x: 1e4 * (1 - np.tanh(1e4 * x) ** 2)), X),
    "a narrow hill": (slope(lambda x: np.exp(-50 * x * x), lambda x: -100 * x * np.exp(-50 * x * x)), X),
    "tiny": (slope(lambda x: x * 1e-12, lambda x: 1e-12), X),
    "huge": (slope(lambda x: x * 1e12, lambda x: 1e12), X),
    "a large constant": (slope(lambda x: np.tanh(x) + 1e6, lambda x: 1 - np.tanh(x) ** 2), X),
    "large arguments": (slope(np.square, lambda x: 2 * x), 1e6 * X + 1e7),
    "small arguments": (slope(np.square, lambda x: 2 * x), 1e-6 * X),
    "ties": (lambda x: x.amax(axis=1), np.array([[1.0, 2, 0], [2, 0, 1]])),
    "an order": (sorted_rows(), X),
    "a median": (median_of_rows(), X),
    "matrices alone": (wrong(lambda a, b: (a @ b, (a, b)), lambda dout, s: (dout @ s[1].T, s[0].T @ dout)), X, MATRIX),
    "rows alone": (layer(right_dx, lambda x, weight, dout: (dout * x).sum(axis=0)), X, ROW),
    "a deviation of 0 where rows are constant": (lambda x: ((x - x.mean(1, keepdims=True)) ** 2).mean(1).sqrt(), X),
    "constant rows": (ops.layer_norm, np.full((4, 8), 3.0), ROW, ROW),
    "saturated": (lambda x: ops.softmax(50 * x), X),
    "an inner overflow": (lambda x: (x.exp() + 1).log(), X),
    "float64 that the function keeps": (lambda x: x * HALF + HALF.sum(0), X),
    "a comparison": (lambda x, y: ops.where(x > y, 2 * x, y), X, Y),
    "an unused argument": (lambda x, y: 2 * x, X, Y),
    "an unused output": (lambda x: x.split(2, 1)[:2], X),
    "three outputs": (lambda x: (x * x, x.exp(), x.sum()), X),
    "places": (lambda x, ids: x[ids], X, np.array([2, 0, 3, 1])),
    "a mask": (lambda x, mask: x[mask], X, X > 0),
    "a list": (lambda x, ids: x[ids], X, [1, 1, 0]),
    "classes": (lambda x, ids: ops.cross_entropy(x, ids), X, np.array([1, 7, 0, 2])),
    "seeded": (lambda x: x * (np.random.default_rng(0).random(x.shape) < 0.5), X),
    "no axes": (lambda x: x * x, np.array(2.0)),
    "zeros": (lambda x: x * x, np.zeros((3, 3))),
    "float32": (lambda x: x.tanh(), X.astype(np.float32)),
    "many": (lambda x: x.tanh().sum(1), LARGE),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_raises_no_alarm(name):
    fn, *arrays = RIGHT[name]
    check = check_gradients(fn, *arrays)
    assert check.error < 1e-6
    assert check.variants


def test_variants_that_are_skipped_are_counted_with_their_reason():
    fn, *arrays = RIGHT["not for negative numbers"]
    check = check_gradients(fn, *arrays)
    assert "argument 0 (x) negated: not finite" in [
        one.replace("argument 0", "argument 0 (x)") for one in check.skipped
    ]
    assert "argument 0 times 4" in check.variants
    assert check_gradients(fn, *arrays, variants=False).variants == ()
