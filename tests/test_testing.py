"""The gradient checker itself: right functions pass, every planted fault is found and named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm
from minillm import ops
from minillm.autograd import Op, Tensor
from minillm.errors import DtypeError, MinillmError, ShapeError
from minillm.testing import GradientError, check_gradients, hvp, numeric_gradient


def planted(forward, backward, *, aliases=False):
    """A function around an Op made of these two: what the checker is given."""
    op = Op("planted", forward, backward, aliases=aliases)
    return lambda *inputs: op(*inputs)


def double_forward(x):
    return 2 * x, (x,)


def layer_forward(x, weight):
    return x * weight, (x, weight)


def layer_backward(dout, saved):
    x, weight = saved
    return dout * weight, (dout * x).sum(axis=0)


X = np.random.default_rng(0).normal(size=(4, 3))
WEIGHT = np.random.default_rng(1).normal(size=3)


def report_of(fn, *arrays, **options) -> str:
    with pytest.raises(GradientError) as caught:
        check_gradients(fn, *arrays, **options)
    return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


def broken_layer(change_dx=lambda dx: dx, change_dweight=lambda dweight: dweight):
    def backward(dout, saved):
        dx, dweight = layer_backward(dout, saved)
        return change_dx(dx), change_dweight(dweight)

    op = Op("layer", layer_forward, backward)

    def layer(x, weight):
        return op(x, weight)

    return layer


# --- what passes ---------------------------------------------------------------------------------------------------


def test_a_right_backward_passes_and_the_check_says_how_much_it_saw():
    check = check_gradients(broken_layer(), X, WEIGHT)
    assert check.elements == 15
    assert 0 <= check.error < 1e-8


def test_float32_is_promoted_and_integers_and_objects_are_passed_on():
    seen = []

    def fn(x, ids, flag):
        seen.append((type(x), x.dtype, type(ids), ids.dtype, flag))
        return x[ids] * 2

    ids = np.array([0, 2, 0])
    assert check_gradients(fn, np.ones(3, np.float32), ids, "a word", variants=False).elements == 3
    assert set(seen) == {(Tensor, np.dtype(np.float64), np.ndarray, ids.dtype, "a word")}


def test_the_callers_arrays_stay_as_they_were():
    x, before = X.copy(), X.copy()
    x.flags.writeable = False
    check_gradients(lambda x: x * x, x)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("view", [lambda x: x.T, lambda x: x[::2, 1:], lambda x: x[::-1, ::-1], lambda x: x[:, 0]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_views_keep_their_strides(view, dtype):
    x = view(X.astype(dtype))
    expected = tuple(8 * stride // x.itemsize for stride in x.strides)
    seen = set()

    def fn(y):
        seen.add(y.data.strides)
        return y * y

    check_gradients(fn, x, variants=False)
    assert seen == {expected}
    check_gradients(fn, x)
    assert len(seen) > 3


def test_what_lies_between_the_elements_of_a_view_is_nan():
    def reads_between(x):
        second = np.lib.stride_tricks.as_strided(x.data, (2,), (8,))[1]
        return x * 2 + 0 * float(second)

    check_gradients(reads_between, X[0], variants=False)
    assert "reads_between returned nan" in report_of(reads_between, X[:, 0])
    assert "reads_between fails with every array in every other place of memory" in report_of(reads_between, X[0])


def test_several_outputs_share_one_random_cotangent():
    assert check_gradients(lambda x: (x * x, x.sum(), x.exp()), X).elements == 12


def test_empty_and_0d_inputs():
    assert check_gradients(lambda x: x * x, np.zeros((0, 3)))[:2] == (0, 0.0)
    assert check_gradients(lambda x: x * x, np.float64(3.0)).elements == 1
    assert check_gradients(lambda x: x * x, np.array(3.0)).elements == 1


def test_an_unused_argument_has_no_gradient():
    assert check_gradients(lambda x, y: x * 2, X, WEIGHT).elements == 15


def test_a_gradient_that_is_zero_passes_in_spite_of_rounding():
    check_gradients(lambda x: ops.softmax(x).sum(axis=-1), 10 * X)
    check_gradients(lambda x: x - x, X)


def test_real_sizes_are_checked_by_projection():
    x = np.random.default_rng(0).normal(size=(300, 400))
    assert check_gradients(lambda x: ops.softmax(x), x).elements == x.size


@settings(max_examples=30, deadline=None)
@given(st.integers(-6, 9), st.integers(-3, 0), st.booleans())
def test_the_verdict_does_not_depend_on_the_scale(out_power, in_power, right):
    """y = a tanh(b x): a wrong backward fails and a right one passes, whatever the sizes of output and input."""
    a, b = 10.0**out_power, 10.0**in_power
    factor = 1.0 if right else 1.001

    def backward(dout, saved):
        return (dout * a * b * factor * (1 - np.tanh(b * saved[0]) ** 2),)

    fn = planted(lambda x: (a * np.tanh(b * x), (x,)), backward)
    x = np.random.default_rng(0).normal(size=5)
    if right:
        check_gradients(fn, x)
    else:
        assert "off by the constant factor 1.001" in report_of(fn, x)


# --- what is found -------------------------------------------------------------------------------------------------


def test_the_report_names_everything():
    report = report_of(broken_layer(change_dweight=lambda g: -g), X, WEIGHT)
    assert "argument 1 (weight) of layer" in report
    index = int(report.split("worst at index (")[1].split(",")[0])
    expected = float(report.split("expected")[1].split()[0])
    received = float(report.split("received")[1].split()[0])
    assert 0 <= index < 3
    assert received == pytest.approx(-expected, rel=1e-6)
    assert "of shape (3,)" in report
    assert "3 of 3 elements" in report
    assert "likely cause: the sign is flipped" in report


def without(index):
    def change(gradient):
        gradient[index] = 0
        return gradient

    return change


def one_too_large(gradient):
    gradient[1] *= 1.7
    return gradient


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda g: -g, "the sign is flipped"),
        (lambda g: 0 * g, "the backward returns zeros"),
        (lambda g: 2 * g, "off by the constant factor 2"),
        (lambda g: g / 4, "off by the constant factor 0.25 = 1/4"),
        (lambda g: -g / 3, "off by the constant factor -0.333333 = -1/3"),
        (lambda g: 1.01 * g, "off by the constant factor 1.01 = 101/100"),
        (lambda g: g * np.pi, "off by the constant factor 3.14159"),
        (lambda g: g + 0.5, "the constant 0.5 is added to every element"),
        (lambda g: g[::-1].copy(), "the right values in the wrong order"),
        (lambda g: np.roll(g, 1), "the right values in the wrong order"),
        (without(1), "some elements are left at zero, the others are right"),
        (one_too_large, "no simple cause; received / expected is between 1 and 1.7"),
        (lambda g: g * 1.000005, "off by the constant factor 1.000005"),
        (lambda g: g.astype(np.float32).astype(float) * 1, "float32 arithmetic on the way"),
    ],
)
def test_likely_causes(change, cause):
    assert f"likely cause: {cause}" in report_of(broken_layer(change_dweight=change), X, WEIGHT)


def test_likely_cause_transposed():
    square = np.random.default_rng(0).normal(size=(3, 3))
    fn = broken_layer(change_dx=lambda g: g.T.copy())
    assert "likely cause: axes 0 and 1 are transposed" in report_of(fn, square, WEIGHT)
    cube = np.random.default_rng(0).normal(size=(3, 2, 3))
    fn = planted(lambda x: (x * x, x), lambda dout, x: ((2 * x * dout).transpose(2, 1, 0).copy(),))
    assert "likely cause: axes 0 and 2 are transposed" in report_of(fn, cube)


@pytest.mark.parametrize(("row", "end"), [(0, "first"), (-1, "last")])
def test_likely_cause_missing_sum_over_a_broadcast_axis(row, end):
    def backward(dout, saved):
        x, weight = saved
        return dout * weight, (dout * x)[row].copy()

    report = report_of(planted(layer_forward, backward), X, WEIGHT)
    assert f"a missing sum over axis 0 of the output (broadcast): only the {end} slice is counted" in report

    def backward_of_number(dout, saved):
        return dout * 1, dout.reshape(-1)[row].copy().reshape(())

    report = report_of(planted(lambda x, y: (x + y, None), backward_of_number), X, np.array(1.0))
    assert f"a missing sum over axes (0, 1) of the output (broadcast): only the {end} slice is counted" in report


def test_likely_cause_a_gradient_from_nowhere():
    fn = planted(lambda x, y: (x * 1, y), lambda dout, y: (dout * 1, y * 1))
    assert "the function does not depend on the argument, yet gets a gradient" in report_of(fn, X, WEIGHT)


def test_likely_cause_detached():
    report = report_of(lambda x, y: x * y.detach(), X, WEIGHT)
    assert "argument 1 (y)" in report
    assert "no gradient reached the argument (None)" in report


def test_an_argument_without_any_gradient():
    assert "no gradient reached the argument" in report_of(lambda x: x.detach() * 2, X)


def test_a_small_error_in_one_of_many_elements_is_found_element_by_element():
    """1e-5 of the largest gradient: along a direction through 1,500 elements it would drown."""

    def backward(dout, saved):
        dx = 2 * dout
        dx[700] += 2e-5
        return (dx,)

    report = report_of(planted(double_forward, backward), np.random.default_rng(0).normal(size=1500))
    assert "worst at index (700,)" in report
    assert "1 of 1500 elements are off" in report


@pytest.mark.parametrize("index", [(0, 0), (123, 45), (299, 399)])
def test_one_wrong_element_among_many_is_found(index):
    x = np.random.default_rng(0).normal(size=(300, 400))

    def backward(dout, saved):
        dx = 2 * dout
        dx[index] *= 1.5
        return (dx,)

    report = report_of(planted(double_forward, backward), x)
    assert f"worst at index {index} of shape (300, 400)" in report


def test_a_large_gradient_gets_a_likely_cause_too():
    x = np.random.default_rng(0).normal(size=(300, 300))
    report = report_of(planted(lambda x: (x * x, x), lambda dout, x: ((-2 * dout * x),)), x)
    assert "the sign is flipped" in report
    report = report_of(planted(lambda x: (x * x, x), lambda dout, x: ((2 * dout * x).T.copy(),)), x)
    assert "axes 0 and 1 are transposed" in report


def test_the_tolerance_means_an_error_relative_to_the_largest_gradient():
    fn = broken_layer(change_dx=lambda g: g * 1.001)
    check_gradients(fn, X, WEIGHT, tolerance=2e-3)
    report_of(fn, X, WEIGHT, tolerance=5e-4)


@pytest.mark.parametrize(
    "wrong", [lambda g: -g, lambda g: 2 * g, lambda g: 0 * g], ids=["sign flipped", "doubled", "zeros"]
)
def test_what_a_sum_of_outputs_cannot_see(wrong):
    """The outputs of a softmax sum to 1: with `loss = y.sum()` the true gradient is 0, and so is each wrong one."""
    right = ops.SOFTMAX.backward
    op = Op("softmax", ops.SOFTMAX.forward, lambda dout, saved: tuple(wrong(g) for g in right(dout, saved)))
    x = Tensor(X, requires_grad=True)
    op(x, axis=1).sum().backward()
    assert abs(x.grad).max() < 1e-15
    report_of(lambda x: op(x, axis=1), X)


# --- rules of the engine -------------------------------------------------------------------------------------------


def test_a_gradient_that_is_none():
    fn = broken_layer(change_dweight=lambda g: None)
    assert "backward of layer: the gradient of input 1 is None, but the input needs one" in report_of(fn, X, WEIGHT)


def test_a_gradient_of_the_wrong_dtype():
    fn = broken_layer(change_dweight=lambda g: g.astype(np.float32))
    assert "the gradient of input 1 is float32, but the input is float64" in report_of(fn, X, WEIGHT)


def test_a_gradient_of_the_wrong_shape():
    fn = planted(layer_forward, lambda dout, saved: (dout * saved[1], dout * saved[0]))
    report = report_of(fn, X, WEIGHT)
    assert "the gradient of input 1 has shape (4, 3), but the input has shape (3,)" in report
    assert "a missing sum over the broadcast axes" in report
    fn = broken_layer(change_dweight=lambda g: g[:2])
    report = report_of(fn, X, WEIGHT)
    assert "has shape (2,), but the input has shape (3,)" in report
    assert "missing sum" not in report


def test_too_few_gradients_are_left_to_the_engine():
    fn = planted(layer_forward, lambda dout, saved: (dout * saved[1],))
    with pytest.raises(MinillmError, match="one gradient"):
        check_gradients(fn, X, WEIGHT)


def test_a_backward_that_writes_into_dout():
    def backward(dout, saved):
        dout *= 2
        return (dout.copy(),)

    report = report_of(planted(double_forward, backward), X)
    assert "backward of planted: writes into dout" in report
    assert "in the backward of planted -> (4, 3)" in report


def test_other_value_errors_are_not_mistaken_for_it():
    def backward(dout, saved):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        check_gradients(planted(double_forward, backward), X)


def test_a_backward_that_writes_into_what_was_saved():
    def forward(x):
        out = np.exp(x)
        return out * 1, (out,)

    def backward(dout, saved):
        saved[0][...] *= dout
        return (saved[0].copy(),)

    assert "writes into what its forward saved" in report_of(planted(forward, backward), X)


def test_a_backward_that_changes_the_input():
    def backward(dout, saved):
        dx = 2 * dout
        saved[0][0] = 7
        return (dx,)

    assert "argument 0 of fn (ending in planted) was changed by the backward" in report_of(
        planted(double_forward, backward), X
    )


def test_a_forward_that_changes_its_input():
    def forward(x):
        x += 1
        return x * 2, None

    fn = planted(forward, lambda dout, saved: (2 * dout,))
    assert "argument 0 of fn was changed by the forward" in report_of(fn, X)

    def writes_ids(x, ids):
        ids[0] += 1
        return x * 2

    assert "argument 1 (ids) of writes_ids was changed by the forward" in report_of(writes_ids, X, np.arange(3))


def test_values_that_are_not_finite():
    with np.errstate(all="ignore"):
        assert "fn returned inf" in report_of(lambda x: 1 / x, np.array([0.0, 1.0]))
        assert "fn returned nan" in report_of(lambda x: x.log(), np.array([-1.0, 1.0]))
        report = report_of(lambda x: x.sqrt(), np.array([1.0, 0.0]))
    assert "backward of sqrt: the gradient of input 0 is" in report
    assert "inf at index (1,), from a finite dout" in report


def test_memory_that_must_not_be_shared():
    share_dout = planted(lambda x: (x * 1, None), lambda dout, saved: (dout,))
    assert "shares memory with dout" in report_of(share_dout, X)
    view = planted(lambda x: (x.T * 1, None), lambda dout, saved: (dout.T,))
    assert "shares memory with dout" in report_of(view, X)

    def share_saved(dout, saved):
        saved[0][...] = dout * 2
        return (saved[0],)

    fn = planted(lambda x: (2 * x, (np.empty_like(x),)), share_saved)
    assert "shares memory with what the forward saved" in report_of(fn, X)

    def share_each_other(dout, saved):
        both = dout * 1
        return both, both

    fn = planted(lambda x, y: (x + y, None), share_each_other)
    assert "the gradient of input 0 shares memory with the gradient of input 1" in report_of(fn, X, X)

    def repeat(dout, saved):
        return (np.broadcast_to(dout * 1.0, saved),)

    fn = planted(lambda x: (x.sum(), x.shape), repeat)
    assert "repeats elements in memory" in report_of(fn, X)


def test_an_op_that_declares_it_may_share():
    check_gradients(planted(lambda x: (x * 1, None), lambda dout, saved: (dout,), aliases=True), X)
    both = planted(lambda x, y: (x + y, None), lambda dout, saved: (dout, dout), aliases=True)
    check_gradients(both, X, X + 1)


def test_every_node_is_audited_not_only_the_last():
    share_dout = planted(lambda x: (x * 1, None), lambda dout, saved: (dout,))
    assert "backward of planted" in report_of(lambda x: (share_dout(x * 2) * 3).sum(), X)


def test_a_function_that_draws_random_numbers():
    assert "call minillm.manual_seed inside it" in report_of(lambda x: ops.dropout(x, 0.5), X)

    def seeded(x):
        minillm.manual_seed(0)
        return ops.dropout(x, 0.5)

    check_gradients(seeded, X)


def test_a_forward_that_loses_precision():
    fn = planted(lambda x: ((2 * x).astype(np.float32), None), lambda dout, saved: (2 * dout,))
    assert "turned float64 inputs into a float32 output" in report_of(fn, X)


@pytest.mark.parametrize("distance", [8e-6, 0.0])
def test_a_kink_is_no_fault_nearby_and_named_where_it_is(distance):
    """|x - y| with x - y = 8e-6: a step of 6e-6 in x or in y stays on one side, opposite steps in both do not."""
    x = np.zeros((20, 2))
    x[:, 0] = distance
    fn = planted(
        lambda x: (abs(x[:, 0] - x[:, 1]), np.where(x[:, 0] >= x[:, 1], 1, -1)[:, None].astype(x.dtype)),
        lambda dout, sign: (dout[:, None] * sign * np.array([1, -1], dout.dtype),),
    )
    if distance:
        assert (
            "every axis of size 2 made 67: the backward is made for the given sizes alone"
            in check_gradients(fn, x).skipped
        )
    else:
        assert "likely cause: differences do not settle here" in report_of(fn, x)


def test_wrong_use():
    with pytest.raises(DtypeError, match="none of the arguments is an array of floats"):
        check_gradients(lambda x: x, np.arange(3))
    with pytest.raises(DtypeError, match="fn returned a ndarray; return a Tensor"):
        check_gradients(lambda x: x.data, X)
    assert issubclass(GradientError, MinillmError)
    assert issubclass(GradientError, AssertionError)


# --- numeric_gradient, hvp -----------------------------------------------------------------------------------------


def test_numeric_gradient_is_the_gradient():
    u = np.random.default_rng(3).normal(size=X.shape)
    dx, nothing, dweight = numeric_gradient(lambda x, flag, weight: x * weight, [X, True, WEIGHT], u)
    assert nothing is None
    np.testing.assert_allclose(dx, u * WEIGHT, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(dweight, (u * X).sum(0), rtol=1e-8, atol=1e-9)
    assert numeric_gradient(lambda x: x * x, [np.zeros((0, 2))], np.zeros((0, 2)))[0].shape == (0, 2)


def test_numeric_gradient_of_two_outputs():
    (dx,) = numeric_gradient(lambda x: (x * x, x.sum()), [WEIGHT], (np.ones(3), np.array(5.0)))
    np.testing.assert_allclose(dx, 2 * WEIGHT + 5, rtol=1e-8)


def test_numeric_gradient_wants_a_cotangent_of_the_outputs_shape():
    with pytest.raises(ShapeError, match="numeric_gradient: cotangent has 2 elements, but fn returns 3"):
        numeric_gradient(lambda x: x * x, [WEIGHT], np.ones(2))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_hvp_of_a_quadratic_is_its_matrix(n, seed, scale):
    rng = np.random.default_rng(seed)
    a, x, v = rng.normal(size=(n, n)), rng.normal(size=n), scale * rng.normal(size=n)
    (hv,) = hvp(lambda x: (x * (Tensor(a) @ x)).sum(), [x], [v])
    np.testing.assert_allclose(hv, (a + a.T) @ v, rtol=1e-6, atol=1e-7 * scale)


def test_hvp_mixes_arguments_and_promotes():
    """f = sum x^2 y: H_xx = 2y, H_xy = 2x, H_yy = 0."""
    x, y = np.array([1.0, 2.0], np.float32), np.array([3.0, 5.0])
    v, w = np.array([1.0, -1.0]), np.array([0.5, 2.0])
    hx, nothing, hy = hvp(lambda x, k, y: (x * x * y).sum(), [x, 3, y], [v, None, w])
    assert nothing is None
    assert hx.dtype == np.float64
    np.testing.assert_allclose(hx, 2 * y * v + 2 * x * w, rtol=1e-8)
    np.testing.assert_allclose(hy, 2 * x * v, rtol=1e-8)


def test_hvp_is_symmetric_on_a_real_function(rng):
    x, u, v = rng.normal(size=(3, 5, 4))
    ids = np.array([0, 3, 1, 1, 2])

    def loss(x):
        return ops.cross_entropy(ops.gelu(x), ids)

    (hu,), (hv,) = hvp(loss, [x], [u]), hvp(loss, [x], [v])
    assert np.vdot(v, hu) == pytest.approx(np.vdot(u, hv), rel=1e-6)


def test_hvp_of_nothing_and_along_nothing():
    (h,) = hvp(lambda x: (x * x).sum(), [WEIGHT], [np.zeros(3)])
    np.testing.assert_array_equal(h, 0)
    h, _ = hvp(lambda x, y: (x * x).sum(), [WEIGHT, X], [WEIGHT, X])
    np.testing.assert_allclose(h, 2 * WEIGHT, rtol=1e-8)


def test_hvp_wants_a_scalar_and_vectors_that_fit():
    with pytest.raises(ShapeError, match="hvp: fn returned"):
        hvp(lambda x: x * x, [WEIGHT], [WEIGHT])
    with pytest.raises(ShapeError, match=r"hvp: vector 0 has shape \(2,\), but its array has shape \(3,\)"):
        hvp(lambda x: x.sum(), [WEIGHT], [WEIGHT[:2]])
