"""kernels/cross_entropy.cu, emulated, against the formulas of minillm/ops/cross_entropy.py in extended precision.

A kernel may be as wrong as the formula in the same dtype, twice over (three times for a gradient); for bfloat16, as the
formula in float32, and one rounding of the gradient. Errors are root mean squares over all rows.
"""

from __future__ import annotations

import numpy as np
import pytest

from minillm import cuda
from minillm.autograd import Tensor
from minillm.cuda import Kernel, get_kernel, launch_counts
from minillm.cuda.source import C_TYPES
from minillm.engine import engine
from minillm.ops.cross_entropy import CROSS_ENTROPY, cross_entropy, cross_entropy_backward, cross_entropy_forward
from minillm.study import gradcheck

pytestmark = pytest.mark.usefixtures("_compiler")
ROWS, IGNORED = 12, -7
CLASSES = (1, 2, 17, 64, 509, 1023, 9001)  # odd, prime, whole and broken 16 bytes, more than one pass of a block

ROUNDING = {"float32": 2**-24, "float64": 2**-53, "bfloat16": 2**-9}


@pytest.fixture(params=["float32", "float64", "bfloat16"])
def dtype(request) -> np.dtype:
    return request.getfixturevalue("bfloat16") if request.param == "bfloat16" else np.dtype(request.param)


@pytest.fixture
def draw(rng, dtype):
    """Logits, targets of which every fifth is ignored, and the gradient of each row's loss."""

    def arrays(rows: int, classes: int, scale: float = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        targets = rng.integers(0, classes, rows)
        targets[4::5] = IGNORED
        dloss = rng.standard_normal(rows).astype(np.promote_types(dtype, np.float32))
        dloss[targets == IGNORED] = 0
        return (scale * rng.standard_normal((rows, classes))).astype(dtype), targets, dloss

    return arrays


# ---- launches, with everything that is to be written full of NaN -----------------------------------------------------


def launch(name: str, x: np.ndarray, *arguments, blocks: int | None = None, kernel: Kernel | None = None) -> None:
    threads = min(512, -(-x.shape[1] * x.itemsize // 512) * 32)
    (kernel or get_kernel("cross_entropy.cu", name, x.dtype))(blocks or len(x), threads, (x, *arguments))


def sizes(x: np.ndarray) -> tuple:
    return np.int64(len(x)), np.int32(x.shape[1])


def forward(x, targets, smoothing=0.0, **options) -> tuple[np.ndarray, np.ndarray]:
    """loss, and lse as (largest, sum)"""
    loss, *lse = np.full((3, len(x)), np.nan, np.promote_types(x.dtype, np.float32))
    arguments = (targets, loss, *lse, *sizes(x), np.int64(IGNORED), loss.dtype.type(smoothing))
    launch("cross_entropy_forward", x, *arguments, **options)
    return loss, np.stack(lse)


def backward(x, targets, lse, dloss, smoothing=0.0, dlogits=None, **options) -> np.ndarray:
    dlogits = np.full_like(x, np.nan) if dlogits is None else dlogits
    launch("cross_entropy_backward", x, targets, *lse, dloss, dlogits, *sizes(x), lse.dtype.type(smoothing), **options)
    return dlogits


def with_gradient(x, targets, dloss, smoothing=0.0, dlogits=None, **options) -> tuple[np.ndarray, np.ndarray]:
    """loss and dlogits"""
    dlogits = np.full_like(x, np.nan) if dlogits is None else dlogits
    loss = np.full_like(dloss, np.nan)
    arguments = (targets, dloss, loss, dlogits, *sizes(x), np.int64(IGNORED), loss.dtype.type(smoothing))
    launch("cross_entropy_with_gradient", x, *arguments, **options)
    return loss, dlogits


# ---- what they are compared with -------------------------------------------------------------------------------------


def formula(x, targets, dloss, smoothing, dtype) -> list[np.ndarray]:
    """loss, lse and dlogits, computed in `dtype`"""
    settings = {"ignore_index": IGNORED, "label_smoothing": smoothing, "reduction": "none"}
    loss, saved = cross_entropy_forward(x.astype(dtype), targets, **settings)
    rows = x.astype(dtype)
    largest = rows.max(axis=-1)
    lse = np.stack([largest, np.exp(rows - largest[:, None]).sum(axis=-1)])
    return [loss, lse, cross_entropy_backward(dloss.astype(dtype), saved)[0]]


def rms(x) -> float:
    return float(np.sqrt(np.square(x.astype(np.longdouble)).mean()))


def check(x, targets, dloss, smoothing, *, loss=None, lse=None, dlogits=None) -> None:
    expected = formula(x, targets, dloss, smoothing, np.longdouble)
    by_numpy = formula(x, targets, dloss, smoothing, dloss.dtype)
    by_numpy[2] = by_numpy[2].astype(x.dtype)
    counted = targets != IGNORED
    names, received_ones = ("loss", "lse", "dlogits"), (loss, lse, dlogits)
    for name, received, right, allowed in zip(names, received_ones, expected, by_numpy, strict=True):
        if received is None:
            continue
        if name == "lse":
            received, right, allowed = (largest + np.log(total) for largest, total in (received, right, allowed))
        assert received.dtype == (x.dtype if name == "dlogits" else dloss.dtype)
        assert (received[~counted] == 0).all()  # lse as well
        scale, rounding = rms(right[counted]), ROUNDING[received.dtype.name]
        error = rms((received - right)[counted])
        most = (3 if name == "dlogits" else 2) * max(rms((allowed - right)[counted]), scale * rounding / 2)
        assert error <= most, f"{name}: error {error:.2e}, allowed {most:.2e}, scale {scale:.2e}"


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
@pytest.mark.parametrize("classes", CLASSES)
def test_all_three(warp_order, draw, classes, smoothing):
    x, targets, dloss = draw(ROWS, classes)
    loss, lse = forward(x, targets, smoothing)
    check(x, targets, dloss, smoothing, loss=loss, lse=lse, dlogits=backward(x, targets, lse, dloss, smoothing))
    loss, dlogits = with_gradient(x, targets, dloss, smoothing)
    check(x, targets, dloss, smoothing, loss=loss, dlogits=dlogits)


@pytest.mark.parametrize("classes", [40, 509])
def test_dlogits_over_the_logits(warp_order, draw, classes):
    x, targets, dloss = draw(ROWS, classes)
    _, lse = forward(x, targets)
    apart, (loss, together) = backward(x, targets, lse, dloss), with_gradient(x, targets, dloss)
    over = x.copy()
    np.testing.assert_array_equal(backward(over, targets, lse, dloss, dlogits=over), apart)
    over = x.copy()
    received = with_gradient(over, targets, dloss, dlogits=over)
    np.testing.assert_array_equal(received[0], loss)
    np.testing.assert_array_equal(received[1], together)
    assert received[1] is over


def test_arrays_that_do_not_start_at_16_bytes(draw):
    def shifted(array: np.ndarray, by: int) -> np.ndarray:
        return np.concatenate([array.reshape(-1)[:by], array.reshape(-1)])[by:].reshape(array.shape)

    x, targets, dloss = draw(ROWS, 75)
    _, lse = forward(x, targets)
    for a, b in ((1, 1), (1, 0), (0, 1)):  # alike, and not
        moved, to = shifted(x, a), shifted(np.full_like(x, np.nan), b)
        loss, moved_lse = forward(moved, targets)
        check(x, targets, dloss, 0, loss=loss, lse=moved_lse, dlogits=backward(moved, targets, lse, dloss, dlogits=to))
        loss, dlogits = with_gradient(moved, targets, dloss, dlogits=shifted(np.full_like(x, np.nan), b))
        check(x, targets, dloss, 0, loss=loss, dlogits=dlogits)


def test_fewer_blocks_than_rows(warp_order, draw):
    x, targets, dloss = draw(11, 70)
    loss, lse = forward(x, targets)
    for one, other in zip(forward(x, targets, blocks=3), (loss, lse), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(with_gradient(x, targets, dloss), with_gradient(x, targets, dloss, blocks=4), strict=True):
        np.testing.assert_array_equal(one, other)
    dlogits = backward(x, targets, lse, dloss)
    np.testing.assert_array_equal(backward(x, targets, lse, dloss, blocks=2), dlogits)


def test_large_logits_cost_no_digits(draw):
    x, targets, dloss = draw(ROWS, 300)
    x = x.astype(np.float64).round(1).astype(x.dtype)
    for offset in (-1e4, 1e4):
        moved = (x.astype(np.float64) + offset).astype(x.dtype)
        for smoothing in (0, 0.125):
            check(moved, targets, dloss, smoothing, loss=forward(moved, targets, smoothing)[0])
            loss, dlogits = with_gradient(moved, targets, dloss, smoothing)
            check(moved, targets, dloss, smoothing, loss=loss, dlogits=dlogits)


def test_a_loss_near_zero_keeps_its_digits(draw):
    x, targets, dloss = draw(ROWS, 100, scale=0.5)
    x[np.arange(ROWS), np.maximum(targets, 0)] = 12
    check(x, targets, dloss, 0, loss=forward(x, targets)[0])


def test_masked_classes_have_no_probability(draw):
    x, targets, dloss = draw(ROWS, 96)
    x[:, :40], targets[:] = -np.inf, 41
    x[0, 40:], x[0, 41] = -np.inf, 0  # one class is left
    loss, lse = forward(x, targets)
    dlogits = backward(x, targets, lse, dloss)
    check(x, targets, dloss, 0, loss=loss, lse=lse, dlogits=dlogits)
    assert (dlogits[:, :40] == 0).all()
    assert loss[0] == 0
    assert np.isposinf(forward(x, targets, smoothing=0.1)[0][0])  # it asks for the classes that are impossible


def test_nan_and_infinity_are_not_hidden(draw):
    x, targets, dloss = draw(3, 50)
    x[0, 7], x[1, 49] = np.nan, np.inf
    loss, dlogits = with_gradient(x, targets, dloss)
    np.testing.assert_array_equal(np.isnan(loss), [True, True, False])
    assert np.isnan(dlogits[:2].astype(float)).any(axis=1).all()
    assert np.isfinite(dlogits[2].astype(float)).all()


def test_an_ignored_row_is_not_read(draw):
    x, targets, dloss = draw(ROWS, 33)
    x[targets == IGNORED] = np.nan
    loss, lse = forward(x, targets)
    assert (lse[:, targets == IGNORED] == [[0], [1]]).all()
    results = [loss, np.log(lse[1]), backward(x, targets, lse, dloss), *with_gradient(x, targets, dloss)]
    for result in results:
        assert (result[targets == IGNORED] == 0).all()
        assert np.isfinite(result.astype(float)).all()


def test_double_gradients_are_the_derivative_of_the_loss(rng):
    x, direction = rng.standard_normal((2, 4, 37))
    targets, dloss, h = rng.integers(0, 37, 4), rng.standard_normal(4), 6e-6
    for smoothing in (0.0, 0.3, 1.0):
        up, down = (forward(x + move, targets, smoothing)[0] for move in (h * direction, -h * direction))
        claimed = (with_gradient(x, targets, dloss, smoothing)[1] * direction).sum()
        assert abs(((up - down) * dloss).sum() / (2 * h) - claimed) < 1e-8


def test_order_changes_no_bit(draw):
    x, targets, dloss = draw(3, 3000)
    expected = [a.tobytes() for a in (*forward(x, targets, 0.1), *with_gradient(x, targets, dloss, 0.1))]
    for seed in range(3):
        with cuda.emulation(order="random", seed=seed):
            assert [
                a.tobytes() for a in (*forward(x, targets, 0.1), *with_gradient(x, targets, dloss, 0.1))
            ] == expected


# ---- the operation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.125])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_pair_of_the_operation(draw, dtype, reduction, smoothing):
    x, targets, dloss = draw(ROWS, 203)
    x, targets = x.reshape(3, 4, -1), targets.reshape(3, 4)
    settings = {"ignore_index": IGNORED, "reduction": reduction, "label_smoothing": smoothing}
    dout = dloss.reshape(3, 4) if reduction == "none" else np.array(0.75, dloss.dtype)
    right, saved = CROSS_ENTROPY.forward(x.astype(np.float64), targets, **settings)
    right_gradient, _ = CROSS_ENTROPY.backward(dout, saved)
    before = launch_counts()
    loss, saved = CROSS_ENTROPY.pair("cuda").forward(x, targets, **settings)
    dlogits, none = CROSS_ENTROPY.pair("cuda").backward(dout, saved)
    c_type = C_TYPES[dtype.name]
    assert launch_counts() - before == {f"cross_entropy_{name}<{c_type}>": 1 for name in ("forward", "backward")}
    assert none is None
    assert (loss.dtype, loss.shape) == (dloss.dtype, right.shape)
    assert (dlogits.dtype, dlogits.shape) == (x.dtype, x.shape)
    np.testing.assert_allclose(loss, right, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dlogits, right_gradient, rtol=2**-8 if dtype.itemsize == 2 else 1e-4, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_operation_runs_the_kernels(rng, reduction):
    x, targets = rng.standard_normal((2, 3, 50)).astype(np.float32), rng.integers(0, 50, (2, 3))
    results = []
    for policy in ("plain", "require"):
        before = launch_counts()
        with engine(policy):
            logits = Tensor(x, requires_grad=True)
            loss = cross_entropy(logits * 2, targets, reduction=reduction)
            loss.backward(np.arange(6, dtype=np.float32).reshape(2, 3) if reduction == "none" else None)
        launched = launch_counts() - before
        results.append((loss.data, logits.grad))
    assert launched == {"cross_entropy_forward<float>": 1, "cross_entropy_backward<float>": 1}
    for one, other in zip(*results, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_gradient_checks_of_the_operation():
    with engine("emulate"):
        before = launch_counts()
        reports = [result.report for result in gradcheck.run_cases(["cross_entropy"])]
    assert len(reports) > 40
    assert not any(reports), "\n".join(filter(None, reports))
    assert (launch_counts() - before)["cross_entropy_backward<double>"] > 40


def test_all_ignored_means_no_loss():
    with engine("require"):
        logits = Tensor(np.ones((2, 5), np.float32), requires_grad=True)
        loss = cross_entropy(logits, np.full(2, -100))
        loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_other_integer_targets(rng):
    logits = Tensor(rng.standard_normal((6, 9)))
    ids = rng.integers(0, 9, 6)
    with engine("require"):
        losses = [cross_entropy(logits, ids.astype(d)).item() for d in (np.int64, np.int32, np.uint16)]
        strided = np.stack([ids, ids], axis=1)[:, 0]
        losses.append(cross_entropy(logits, strided).item())
    assert losses == losses[:1] * 4


# ---- planted faults --------------------------------------------------------------------------------------------------

FORWARD, BACKWARD, BOTH = (f"cross_entropy_{name}<float>" for name in ("forward", "backward", "with_gradient"))
TO_THE_END = "i = cuts.tail + thread; i < cuts.columns; i += threads) take"
TO_THE_BODY = "i = thread; i < cuts.body; i += threads) take"
FAULTS = {
    "sum not scaled to a larger maximum": (FORWARD, "sum *= exp_for<T>(before - largest);", ""),
    "sums of threads not brought to one maximum": (FORWARD, "sum * exp_for<T>(largest - row.largest)", "A(sum)"),
    "sum of one thread": (FORWARD, "row.sum = block_sum(", "row.sum = ("),
    "maximum of one thread": (FORWARD, "row.largest = block_max(largest)", "row.largest = largest"),
    "target not subtracted": (FORWARD, "above_target = row.largest - target_logit", "above_target = row.largest"),
    "shift from the maximum": (FORWARD, "A(piece[k]) - base", "A(piece[k]) - largest"),
    "the mean not divided": (FORWARD, "share = A(1) / A(cuts.columns)", "share = A(1)"),
    "ends of rows forgotten": (FORWARD, TO_THE_END, "i = 1; i < 0; i++) take"),
    "beginnings of rows forgotten": (FORWARD, TO_THE_BODY, "i = 1; i < 0; i++) take"),
    "alignment of the beginning": (FORWARD, "(VECTOR<T> - ahead) % VECTOR<T>", "ahead"),
    "ignored rows not written": (FORWARD, "} else if (threadIdx.x == 0) {", "} else if (threadIdx.x == 99) {"),
    "target taken twice": (BACKWARD, "? at_target + everywhere", "? at_target + 2 * everywhere"),
    "gradient not scaled": (BACKWARD, "T(dloss * (exp", "T((exp"),
    "last piece skipped": (BACKWARD, "cuts.tail - (thread + 1) * VECTOR<T>", "cuts.tail - (thread + 2) * VECTOR<T>"),
    "first piece skipped": (BACKWARD, "i >= cuts.body; i -=", "i > cuts.body; i -="),
    "target off by one in a piece": (BACKWARD, "gradient(piece[k], i + k)", "gradient(piece[k], i)"),
    "other alignment not noticed": (BACKWARD, "apart % 16 == 0 ? cut", "true ? cut"),
    "zeros not written": (BACKWARD, "write_zeros(dx, classes);\n        else", ";\n        else"),
    "probabilities not divided by their sum": (BOTH, "A(1) / summary.sum, dloss", "A(1), dloss"),
    "ignored rows not written by the two in one": (BOTH, "write_zeros(dx, classes);\n            if", "if"),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_a_planted_fault_is_caught(mutated, rng, fault):
    x = (3 * rng.standard_normal((6, 203))).astype(np.float32)
    targets, dloss = rng.integers(0, 203, 6), rng.standard_normal(6).astype(np.float32)
    targets[4], dloss[4] = IGNORED, 0
    loss, lse, dlogits = (a.astype(np.float32) for a in formula(x, targets, dloss, 0.125, np.float64))
    lse[:, 4] = 0, 1  # of an ignored row, as the kernel has it
    elsewhere = np.full(x.size + 1, np.nan, np.float32)[1:].reshape(x.shape)  # not aligned as x is
    faulty: dict[str, Kernel] = {}
    if fault:
        instance, old, new = FAULTS[fault]
        faulty[instance] = mutated(f"cross_entropy {fault}", "cross_entropy.cu", old, new, "cross_entropy.cu", instance)

    def is_right() -> bool:
        received = [
            *forward(x, targets, 0.125, kernel=faulty.get(FORWARD)),
            *with_gradient(x, targets, dloss, 0.125, kernel=faulty.get(BOTH)),
            backward(x, targets, lse, dloss, 0.125, kernel=faulty.get(BACKWARD)),
            backward(x, targets, lse, dloss, 0.125, elsewhere, kernel=faulty.get(BACKWARD)),
        ]
        expected = [loss, lse, loss, dlogits, dlogits, dlogits]
        return all(np.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(received, expected, strict=True))

    if fault in ("alignment of the beginning", "other alignment not noticed"):
        with pytest.raises(cuda.KernelError, match="not a multiple of 16"):
            is_right()
    else:
        assert is_right() == (fault is None)


def test_a_target_that_is_no_class(rng, dtype):
    """Its loss is NaN, whatever lies where it points; the other rows are as they would be."""
    logits, targets = rng.standard_normal((4, 19)).astype(dtype), np.array([18, 19, -1, 2**40])
    wide = np.promote_types(dtype, np.float32)
    (loss, *lse), dloss = np.zeros((3, 4), wide), np.ones(4, wide)
    sizes = (np.int64(4), np.int32(19))
    kernel = get_kernel("cross_entropy.cu", "cross_entropy_forward", dtype)
    kernel(4, 32, (logits, targets, loss, *lse, *sizes, np.int64(-100), wide.type(0)))
    assert np.isfinite(loss).tolist() == [True, False, False, False]
    assert np.isfinite(lse).all()
    kernel = get_kernel("cross_entropy.cu", "cross_entropy_with_gradient", dtype)
    kernel(4, 32, (logits, targets, dloss, loss, np.empty_like(logits), *sizes, np.int64(-100), wide.type(0)))
    assert np.isfinite(loss).tolist() == [True, False, False, False]
