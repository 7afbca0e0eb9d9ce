"""Optimisers against naive formulas and torch.optim; flat buffers, clipping, saved state, schedules."""

from __future__ import annotations

import functools
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minillm
from minillm import Parameter, backend, engine, nn, optim
from minillm.errors import CheckpointError, GraphError, InputError, ShapeError
from minillm.optim import SGD, Adam, AdamW, clip_grad_norm_, cosine_schedule, decay_groups, flat, wsd_schedule
from minillm.optim.adamw import adamw_update

SHAPES = [(3, 5), (7,), (2, 2, 4), (), (1, 17), (16,), (33,)]


def parameters(rng: np.random.Generator, shapes=SHAPES, dtype=np.float64) -> list[Parameter]:
    return [Parameter(np.asarray(rng.normal(size=shape), dtype), f"p{i}") for i, shape in enumerate(shapes)]


def set_gradients(members: list[Parameter], rng: np.random.Generator, scale: float = 1.0) -> list[np.ndarray]:
    """Random gradients by way of a backward, as in training; returns them."""
    gradients = [np.asarray(rng.normal(scale=scale, size=p.shape), p.dtype) for p in members]
    for parameter, gradient in zip(members, gradients, strict=True):
        (parameter * gradient).sum().backward()
    return gradients


class NaiveAdamW:
    """The formula, one array at a time, in float64; each array counts its own gradients, and None is none."""

    def __init__(self, values, lr, betas=(0.9, 0.999), eps=1e-8, decays=0.01):
        self.values = [np.array(value, np.float64) for value in values]
        self.decays = decays if isinstance(decays, list) else [decays] * len(values)
        self.m, self.v = ([np.zeros(value.shape) for value in values] for _ in range(2))
        self.lr, self.betas, self.eps, self.t = lr, betas, eps, [0] * len(values)

    def step(self, gradients) -> None:
        b1, b2 = self.betas
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            self.t[i] += 1
            g = np.asarray(gradient, np.float64)
            self.m[i] = b1 * self.m[i] + (1 - b1) * g
            self.v[i] = b2 * self.v[i] + (1 - b2) * g**2
            m_hat, v_hat = self.m[i] / (1 - b1 ** self.t[i]), self.v[i] / (1 - b2 ** self.t[i])
            self.values[i] = self.values[i] - self.lr * self.decays[i] * self.values[i]
            self.values[i] = self.values[i] - self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


class NaiveSGD:
    def __init__(self, values, lr, momentum=0.0, decays=0.0):
        self.values = [np.array(value, np.float64) for value in values]
        self.decays = decays if isinstance(decays, list) else [decays] * len(values)
        self.b: list = [None] * len(values)
        self.lr, self.momentum = lr, momentum

    def step(self, gradients) -> None:
        for i, gradient in enumerate(gradients):
            if gradient is None:
                continue
            g = gradient + self.decays[i] * self.values[i]
            self.b[i] = g if self.b[i] is None else self.momentum * self.b[i] + g
            self.values[i] = self.values[i] - self.lr * self.b[i]


def naive_values(members: list[Parameter]) -> list[np.ndarray]:
    return [parameter.data.copy() for parameter in members]


def assert_equal_values(members, expected, rtol=1e-12) -> None:
    for parameter, value in zip(members, expected, strict=True):
        np.testing.assert_allclose(parameter.data, value, rtol=rtol, atol=rtol, err_msg=parameter.name)


# The rules


@given(
    st.floats(1e-4, 0.5),
    st.floats(0, 0.99),
    st.floats(0, 0.9999),
    st.sampled_from([1e-8, 1e-3]),
    st.sampled_from([0.0, 0.1]),
    st.integers(0, 2**32),
)
def test_adamw_is_its_formula(lr, beta1, beta2, eps, decay, seed) -> None:
    rng = np.random.default_rng(seed)
    members = parameters(rng, [(3, 5), (7,), ()])
    naive = NaiveAdamW(naive_values(members), lr, (beta1, beta2), eps, decay)
    optimizer = AdamW(members, lr, (beta1, beta2), eps, decay)
    for step in range(5):
        optimizer.zero_grad()
        naive.step(set_gradients(members, rng, scale=10.0 ** (step - 2)))
        optimizer.step()
    assert optimizer.steps == 5
    assert_equal_values(members, naive.values, rtol=1e-9)


@given(st.floats(1e-4, 0.5), st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([0.0, 0.1]), st.integers(0, 2**32))
def test_sgd_is_its_formula(lr, momentum, decay, seed) -> None:
    rng = np.random.default_rng(seed)
    members = parameters(rng, [(3, 5), (7,), ()])
    naive = NaiveSGD(naive_values(members), lr, momentum, decay)
    optimizer = SGD(members, lr, momentum, decay)
    for _ in range(5):
        optimizer.zero_grad()
        naive.step(set_gradients(members, rng))
        optimizer.step()
    assert_equal_values(members, naive.values, rtol=1e-9)


# The formula, as it is and as the engines apply it


def test_the_formula_is_the_one_of_the_paper(rng: np.random.Generator) -> None:
    """One step from nothing: m_hat is the gradient itself and v_hat its square, whatever the betas."""
    w, g = rng.normal(size=(2, 3, 4))
    w_t, m_t, v_t = adamw_update(w, g, 0 * w, 0 * w, t=1, lr=0.1, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.5)
    np.testing.assert_allclose(m_t, 0.1 * g, rtol=1e-13)
    np.testing.assert_allclose(v_t, 0.01 * g**2, rtol=1e-13)
    np.testing.assert_allclose(w_t, 0.95 * w - 0.1 * g / (abs(g) + 1e-3), rtol=1e-13)


def steps_in(name: str, kind: type, dtype, options: dict, parallel: bool = False) -> dict[str, np.ndarray]:
    """Parameters, moments and norms after steps in which gradients come and go, clipped at some."""
    rng = np.random.default_rng(3)
    members = parameters(rng, [*SHAPES, (300, 500)], dtype)
    optimizer = kind(decay_groups(members, options.pop("weight_decay")), **options)
    found = {}
    with engine(name), pytest.MonkeyPatch.context() as patch:
        if parallel:
            patch.setattr(backend, "cutting", backend.cutting._replace(parallel_bytes=0, threads=2))
        for step in range(6):
            optimizer.zero_grad()
            set_gradients([p for i, p in enumerate(members) if (i + step) % 4], rng)
            if step % 2:
                found[f"norm {step}"] = np.array(optimizer.clip_grad_norm(0.5))
            optimizer.step()
    return found | {p.name: p.data for p in members} | optimizer.state_dict()


OPTIONS = [
    (AdamW, {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}),
    (AdamW, {"lr": 0.03, "weight_decay": 0.0}),
    (Adam, {"lr": 0.03, "betas": (0.0, 0.5), "weight_decay": 0.2}),
    (SGD, {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.2}),
    (SGD, {"lr": 0.03, "weight_decay": 0.0}),
]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-5)])
@pytest.mark.parametrize(("kind", "options"), OPTIONS)
def test_the_fast_step_is_the_formula(kind, options, dtype, rtol, parallel) -> None:
    fast, plain = (steps_in(name, kind, dtype, dict(options), parallel) for name in ("fast", "plain"))
    assert fast.keys() == plain.keys()
    for name, value in fast.items():
        assert value.dtype == plain[name].dtype
        np.testing.assert_allclose(value, plain[name], rtol=rtol, atol=rtol * abs(value).max(initial=0), err_msg=name)


@pytest.mark.parametrize("name", ["fast", "plain"])
def test_without_memory_the_moments_are_those_of_the_last_gradient(name: str) -> None:
    """With betas (0, 0) each step is lr times the sign of its gradient, also where the gradient falls a millionfold."""
    weight = Parameter(np.ones(5, np.float32), "weight")
    optimizer = AdamW([weight], lr=0.5, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    expected = np.ones(5, np.float32)
    with engine(name):
        for size in (1e3, -1e-3, 1e-6, -7.0):
            weight.grad = np.full(5, size, np.float32)
            optimizer.step()
            expected -= 0.5 * np.sign(size)
            np.testing.assert_allclose(weight.data, expected, rtol=1e-6)


@pytest.mark.oracle
def test_betas_of_zero_work_as_in_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    start = rng.normal(size=(3, 4)).astype(np.float32)
    ours, theirs = Parameter(start.copy(), "weight"), torch.nn.Parameter(torch.tensor(start))
    settings = dict(lr=0.1, betas=(0.0, 0.0), weight_decay=0.1)
    one, other = AdamW([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for size in (1e4, 1.0, 1e-3, 1e2):
        gradient = (size * rng.normal(size=start.shape)).astype(np.float32)
        ours.grad, theirs.grad = gradient.copy(), torch.tensor(gradient)
        one.step()
        other.step()
        np.testing.assert_allclose(ours.data, theirs.detach().numpy(), rtol=1e-5)


def test_the_plain_step_gives_the_formula_each_parameter_in_its_shape(rng: np.random.Generator) -> None:
    seen = []

    class Watched(AdamW):
        @staticmethod
        def update(w, g, m, v, *, t, **options):
            seen.append((w.shape, g.shape, m.shape, v.shape, t))
            return adamw_update(w, g, m, v, t=t, **options)

    members = parameters(rng)
    optimizer = Watched(members)
    with engine("plain"):
        set_gradients(members, rng)
        optimizer.step()
    assert seen == [(shape,) * 4 + (1,) for shape in SHAPES]


def test_a_subclass_needs_its_formula_alone(rng: np.random.Generator) -> None:
    """Lion (Chen et al. 2023, arXiv:2302.06675), in every engine, clipped."""

    class Lion(optim.Optimizer):
        moment_names = ("exp_avg",)

        @staticmethod
        def update(w, g, m, *, t, lr, betas, weight_decay):
            direction = np.sign(betas[0] * m + (1 - betas[0]) * g)
            return (1 - lr * weight_decay) * w - lr * direction, betas[1] * m + (1 - betas[1]) * g

    moved = []
    for name in ("plain", "fast", "emulate"):
        rng = np.random.default_rng(5)
        members = parameters(rng)
        before, optimizer = naive_values(members), Lion(members, 0.1, betas=(0.9, 0.99), weight_decay=0.1)
        with engine(name):
            gradients = set_gradients(members, rng)
            optimizer.clip_grad_norm(1e-3)
            optimizer.step()
        for parameter, old, g in zip(members, before, gradients, strict=True):
            np.testing.assert_allclose(parameter.data, 0.99 * old - 0.1 * np.sign(g), rtol=1e-12)
        moved.append(optimizer.state_dict()["exp_avg.p0"])
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-12)
    assert 0 < abs(moved[0]).max() < 1e-5


DEBUGGED = """
import numpy as np
from minillm import Parameter
from minillm.optim import AdamW, adamw
weight = Parameter(np.ones((2, 3)), "weight")
weight.grad = np.full((2, 3), 0.5)
optimizer = AdamW([weight], lr=0.1)
breakpoint()
optimizer.step()
"""


def test_a_debugger_stops_in_m_hat_and_v_hat(tmp_path) -> None:
    """In the plain engine, `step` calls the formula in two frames, and each line of it makes one name."""
    script = tmp_path / "train.py"
    script.write_text(DEBUGGED)
    looks = ["p 'm_hat', m_hat.shape, float(m_hat.max())", "p 'v_hat', float(v_hat.max())"]
    commands = ["b adamw.adamw_update", "c", *["n"] * 6, *looks]
    shown = subprocess.run(
        [sys.executable, str(script)],
        input="\n".join([*commands, "w", "q"]) + "\n",
        capture_output=True,
        text=True,
        env={**os.environ, "MINILLM_ENGINE": "plain"},
    ).stdout
    assert "('m_hat', (2, 3), 0.5)" in shown, shown
    assert "('v_hat', 0.25)" in shown, shown
    stack = re.findall(r"py\(\d+\)(\w+|<module>)\(\)", shown[shown.index("('v_hat'") :])
    assert stack[stack.index("<module>") :] == ["<module>", "step", "_move", "adamw_update"], shown


def test_groups_have_their_own_decay_and_the_learning_rate_may_change(rng: np.random.Generator) -> None:
    members = parameters(rng)
    decays = [0.5 if parameter.ndim >= 2 else 0.0 for parameter in members]
    naive = NaiveAdamW(naive_values(members), 0.1, (0.8, 0.95), decays=decays)
    optimizer = AdamW(decay_groups(members, 0.5), 0.1, (0.8, 0.95))
    for step in range(6):
        optimizer.lr = naive.lr = 0.1 / (step + 1)
        optimizer.zero_grad()
        naive.step(set_gradients(members, rng))
        optimizer.step()
    assert_equal_values(members, naive.values)


def test_every_option_can_be_a_groups_own(rng: np.random.Generator) -> None:
    a, b = parameters(rng, [(4,), (5,)])
    first, second = NaiveAdamW([a.data], 0.1, (0.5, 0.6), 1e-3, 0.3), NaiveAdamW([b.data], 0.1)
    optimizer = AdamW([{"params": [a], "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.3}, {"params": [b]}], 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        gradients = set_gradients([a, b], rng)
        first.step(gradients[:1])
        second.step(gradients[1:])
        optimizer.step()
    assert_equal_values([a, b], first.values + second.values)


def test_decay_groups_decay_matrices_only(rng: np.random.Generator) -> None:
    members = parameters(rng)
    decayed, others = decay_groups(iter(members), 0.3)
    assert [p.name for p in decayed["params"]] == ["p0", "p2", "p4"]
    assert [p.name for p in others["params"]] == ["p1", "p3", "p5", "p6"]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert len(decay_groups(members[1:2], 0.3)) == 1


def test_float32_stays_close_to_the_formula_over_many_steps(rng: np.random.Generator) -> None:
    members = parameters(rng, dtype=np.float32)
    naive = NaiveAdamW(naive_values(members), 1e-2, decays=0.1)
    optimizer = AdamW(members, 1e-2, weight_decay=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        naive.step([g.astype(np.float64) for g in set_gradients(members, rng)])
        optimizer.step()
    assert all(parameter.dtype == np.float32 for parameter in members)
    assert_equal_values(members, naive.values, rtol=2e-5)


# Gradients that come late, and come and go


def pattern(step: int, count: int) -> list[bool]:
    """Which parameters have a gradient at a step: all but two at most, one from step 7 on, one at step 20 alone."""
    return [(i != 1 or step >= 7) and (i != 3 or step == 20) and (step + i) % 5 > 0 for i in range(count)]


def some_gradients(members: list[Parameter], step: int, rng: np.random.Generator) -> list[np.ndarray | None]:
    active = pattern(step, len(members))
    gradients = iter(set_gradients([p for p, is_active in zip(members, active, strict=True) if is_active], rng))
    return [next(gradients) if is_active else None for is_active in active]


@pytest.mark.parametrize("parallel_bytes", [0, 10**9])
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_each_parameter_counts_its_own_steps(monkeypatch, rng: np.random.Generator, kind: str, parallel_bytes) -> None:
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(parallel_bytes=parallel_bytes, threads=3))
    monkeypatch.setattr(flat, "CHUNK", 24)
    members = parameters(rng)
    if kind == "adamw":
        naive, optimizer = NaiveAdamW(naive_values(members), 0.1, decays=0.2), AdamW(members, 0.1, weight_decay=0.2)
    else:
        naive, optimizer = NaiveSGD(naive_values(members), 0.1, 0.9, 0.2), SGD(members, 0.1, 0.9, 0.2)
    for step in range(50):
        optimizer.zero_grad()
        naive.step(some_gradients(members, step, rng))
        optimizer.step()
    assert optimizer.steps == 50
    counts = [sum(pattern(step, len(members))[i] for step in range(50)) for i in range(len(members))]
    assert optimizer.groups[0].steps == counts
    assert len(set(counts)) > 2
    assert_equal_values(members, naive.values)


def test_the_first_gradient_of_a_parameter_moves_it_as_far_whenever_it_comes(rng: np.random.Generator) -> None:
    """By one global count it would move 2.5 times as far at step 1000."""
    for late in (1, 1000):
        members = parameters(rng, [(3,), (3,)])
        optimizer = AdamW(members, 0.01, weight_decay=0.0)
        before = members[1].data.copy()
        for step in range(1, late + 1):
            optimizer.zero_grad()
            set_gradients(members if step == late else members[:1], rng)
            optimizer.step()
        np.testing.assert_allclose(np.abs(members[1].data - before), 0.01, rtol=1e-6)


def test_equal_counts_are_one_pass(rng: np.random.Generator) -> None:
    members = parameters(rng)
    optimizer = AdamW(members, 0.1)
    set_gradients(members, rng)
    [group] = optimizer.groups
    assert group.spans() == [(slice(0, len(group.data)), 0)]
    optimizer.step()
    assert group.spans() == [(slice(0, len(group.data)), 1)]
    optimizer.zero_grad()
    set_gradients(members[:2], rng)
    optimizer.step()
    set_gradients(members, rng)
    assert group.spans() == [(slice(0, group.starts[2]), 2), (slice(group.starts[2], len(group.data)), 1)]


def test_counts_are_in_the_state_where_they_differ(rng: np.random.Generator) -> None:
    members = parameters(rng, [(2, 3), (4,)])
    optimizer = AdamW(members, 0.1)
    for step in range(5):
        optimizer.zero_grad()
        set_gradients(members if step > 2 else members[:1], rng)
        optimizer.step()
    state = {name: array.copy() for name, array in optimizer.state_dict().items()}
    assert {name: int(array) for name, array in state.items() if "step" in name} == {"steps": 5, "step.p1": 2}
    values = naive_values(members)
    others = parameters(rng, [(2, 3), (4,)])
    other = AdamW(others, 0.1)
    other.load_state_dict(state)
    assert other.groups[0].steps == [5, 2]
    for parameter, value in zip(others, values, strict=True):
        parameter.data[...] = value
    for one, same in ((optimizer, members), (other, others)):
        one.zero_grad()
        set_gradients(same, np.random.default_rng(5))
        one.step()
    for parameter, value in zip(others, naive_values(members), strict=True):
        np.testing.assert_array_equal(parameter.data, value)
    other.load_state_dict({name: array for name, array in state.items() if name != "step.p1"})  # as it once was saved
    assert other.groups[0].steps == [5, 5]
    with pytest.raises(CheckpointError, match=r"unexpected step\.p7"):
        other.load_state_dict(state | {"step.p7": np.array(1)})


# Groups, as in PyTorch


def test_param_groups_hold_every_option_and_a_change_has_effect(rng: np.random.Generator) -> None:
    a, b = parameters(rng, [(4,), (5,)])
    first, second = NaiveAdamW([a.data], 0.5, decays=0.0), NaiveAdamW([b.data], 0.1)
    optimizer = AdamW([{"params": [a], "lr": 0.5, "weight_decay": 0.0}, {"params": [b]}], 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.1]
    assert [group["params"] for group in optimizer.param_groups] == [[a], [b]]
    expected = {"params": [b], "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    assert {name: optimizer.param_groups[1][name] for name in expected} == expected
    with pytest.raises(InputError, match=r"^AdamW: the groups have learning rates 0\.1, 0\.5; read optimizer"):
        _ = optimizer.lr
    for step in range(6):
        if step == 2:
            optimizer.param_groups[0]["lr"] = first.lr = 0.02
            optimizer.param_groups[1]["weight_decay"] = 0.3
            second.decays = [0.3]
        if step == 4:
            optimizer.lr = first.lr = second.lr = 0.05
            assert optimizer.lr == 0.05
        optimizer.zero_grad()
        gradients = set_gradients([a, b], rng)
        first.step(gradients[:1])
        second.step(gradients[1:])
        optimizer.step()
    assert_equal_values([a, b], first.values + second.values)


def test_a_group_that_is_added_later(rng: np.random.Generator) -> None:
    a, b = parameters(rng, [(4,), (5,)])
    first, second = NaiveSGD([a.data], 0.1, 0.9), NaiveSGD([b.data], 0.5, 0.9)
    optimizer = SGD([a], 0.1, 0.9)
    for step in range(5):
        if step == 2:
            optimizer.add_param_group({"params": b, "lr": 0.5})
        optimizer.zero_grad()
        gradients = set_gradients([a, b], rng)
        first.step(gradients[:1])
        if step >= 2:
            second.step(gradients[1:])
        optimizer.step()
        b.grad = None
    assert_equal_values([a, b], first.values + second.values)
    for group in ({"params": [b]}, {"params": [a, a]}):
        with pytest.raises(InputError, match=r"^SGD: a parameter is given twice"):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 2


def test_zero_grad_keeps_the_arrays_where_it_is_asked_to(rng: np.random.Generator) -> None:
    members = parameters(rng, [(4,), (5,)])
    optimizer = SGD(members, 0.1, weight_decay=0.5)
    set_gradients(members[:1], rng)
    optimizer.zero_grad(set_to_none=False)
    assert members[0].grad is not None
    assert not members[0].grad.any()
    assert members[1].grad is None
    before = naive_values(members)
    optimizer.step()  # decays what has a gradient of 0
    assert_equal_values(members, [before[0] * 0.95, before[1]])
    optimizer.zero_grad()
    assert members[0].grad is None


def test_a_leaf_that_is_no_parameter_is_moved_too(rng: np.random.Generator) -> None:
    weight = minillm.tensor(rng.normal(size=(3,)), requires_grad=True)
    naive = NaiveSGD([weight.data], 0.1, 0.9)
    optimizer = SGD([weight], 0.1, 0.9)
    for _ in range(3):
        optimizer.zero_grad()
        gradient = rng.normal(size=3)
        for _ in range(2):
            (weight * gradient).sum().backward()
        naive.step([2 * gradient])
        optimizer.step()
    np.testing.assert_allclose(weight.data, naive.values[0], rtol=1e-12)


def test_adam_decays_by_way_of_the_gradient(rng: np.random.Generator) -> None:
    members = parameters(rng)
    naive = NaiveAdamW(naive_values(members), 0.1, decays=0.0)
    optimizer = Adam(members, 0.1, weight_decay=0.3)
    for step in range(10):
        optimizer.zero_grad()
        gradients = some_gradients(members, step, rng)
        naive.step([None if g is None else g + 0.3 * w for g, w in zip(gradients, naive.values, strict=True)])
        optimizer.step()
    assert_equal_values(members, naive.values)


# Flat buffers


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_data_and_gradients_are_views_of_flat_buffers(rng: np.random.Generator, kind) -> None:
    members = parameters(rng)
    values = naive_values(members)
    members[2].grad = np.full(members[2].shape, 7.0)  # from a backward before the optimiser was built
    optimizer = kind(members, 0.1)
    [group] = optimizer.groups
    np.testing.assert_array_equal(members[2].grad, np.full((2, 2, 4), 7.0))
    assert members[0].grad is None
    for parameter, value in zip(members, values, strict=True):
        np.testing.assert_array_equal(parameter.data, value)
        assert parameter.data.shape == value.shape
        assert np.shares_memory(parameter.data, group.data)
    optimizer.zero_grad()
    set_gradients(members, rng)
    for parameter in members:
        assert np.shares_memory(parameter.grad, group.grad)
    starts = [parameter.data.__array_interface__["data"][0] - group.data.ctypes.data for parameter in members]
    assert all(start % 64 == 0 for start in starts)
    assert starts == sorted(starts)


def test_gaps_between_parameters_stay_zero(rng: np.random.Generator) -> None:
    members = parameters(rng, dtype=np.float32)
    optimizer = AdamW(members, 0.1, weight_decay=0.5)
    [group] = optimizer.groups
    inside = np.zeros(len(group.data), bool)
    for parameter, start in zip(members, group.starts, strict=True):
        inside[start : start + parameter.numel()] = True
    assert inside.sum() == sum(parameter.numel() for parameter in members) < len(inside)
    for _ in range(3):
        optimizer.zero_grad()
        set_gradients(members, rng)
        optimizer.clip_grad_norm(0.1)
        optimizer.step()
    for buffer in (group.data, group.grad, *group.moments.values()):
        assert not buffer[~inside].any()
        assert buffer[inside].any()


@pytest.mark.parametrize("missing", [{0}, {3}, {6}, {1, 2}, {0, 2, 4, 6}, {1, 2, 3, 4, 5}, set(range(7))])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_parameter_without_a_gradient_is_not_moved(rng: np.random.Generator, kind, missing: set[int]) -> None:
    members = parameters(rng)
    options = {"weight_decay": 0.5} | ({"momentum": 0.9} if kind is SGD else {})
    optimizer = kind(members, 0.1, **options)
    set_gradients(members, rng)
    optimizer.step()  # so that moments are not zero, and would move it
    before = naive_values(members)
    state = {name: array.copy() for name, array in optimizer.state_dict().items()}
    versions = [parameter.version for parameter in members]
    optimizer.zero_grad()
    set_gradients([parameter for i, parameter in enumerate(members) if i not in missing], rng)
    optimizer.step()
    for i, parameter in enumerate(members):
        same = [np.array_equal(optimizer.state_dict()[key], state[key]) for key in state if key.endswith(f".p{i}")]
        assert np.array_equal(parameter.data, before[i]) == (i in missing)
        assert same == [i in missing] * len(optimizer.moment_names)
        assert parameter.version - versions[i] == (i not in missing)


@pytest.mark.parametrize("chunk", [1, 16, 24, 40, 64, 10**6])
@pytest.mark.parametrize("parallel_bytes", [0, 10**9])
@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_chunks_and_threads_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, kind, chunk: int, parallel_bytes: int
) -> None:
    def run() -> tuple[list[np.ndarray], list[float]]:
        rng = np.random.default_rng(0)
        members = parameters(rng, dtype=np.float32)
        optimizer = kind(decay_groups(members, 0.1), 0.01)
        norms = []
        for step in range(4):
            optimizer.zero_grad()
            set_gradients(members if step != 2 else members[1:3] + members[4:], rng)
            norms.append(optimizer.clip_grad_norm(math.inf))
            optimizer.step()
        return [*naive_values(members), *optimizer.state_dict().values()], norms

    expected, expected_norms = run()
    monkeypatch.setattr(flat, "CHUNK", chunk)
    monkeypatch.setattr(backend, "cutting", backend.cutting._replace(parallel_bytes=parallel_bytes, threads=3))
    arrays, norms = run()
    for array, value in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, value)
    assert norms == pytest.approx(expected_norms, rel=1e-6)  # a sum in another order: equal but for the last bits


def test_several_dtypes_in_one_optimiser(rng: np.random.Generator) -> None:
    single, double = parameters(rng, [(3, 2), (5,)], np.float32), parameters(rng, [(4,), (2, 2)], np.float64)
    mixed = [single[0], double[0], single[1], double[1]]
    naive = NaiveAdamW(naive_values(mixed), 0.1)
    optimizer = AdamW(mixed, 0.1)
    assert len(optimizer.groups) == 2
    for _ in range(4):
        optimizer.zero_grad()
        naive.step(set_gradients(mixed, rng))
        optimizer.step()
    assert [parameter.dtype.itemsize for parameter in mixed] == [4, 8, 4, 8]
    assert_equal_values([mixed[1], mixed[3]], [naive.values[1], naive.values[3]])
    assert_equal_values(mixed, naive.values, rtol=1e-5)


def test_gradients_of_an_earlier_step_do_not_leak_into_the_next(rng: np.random.Generator) -> None:
    weight = Parameter(rng.normal(size=(3, 4)), "weight")
    optimizer = AdamW([weight], 0.1)
    x, ids = minillm.tensor(rng.normal(size=(2, 4))), np.array([0, 2, 2])

    def gradient() -> np.ndarray:
        (minillm.ops.linear(x, weight).sum() + (minillm.ops.embedding(ids, weight) * 3).sum()).backward()
        return weight.grad.copy()

    expected = gradient()
    np.testing.assert_allclose(gradient(), 2 * expected)  # a second backward adds
    optimizer.zero_grad()
    assert weight.grad is None
    np.testing.assert_array_equal(gradient(), expected)


def test_a_gradient_set_by_hand_is_used_and_becomes_a_view(rng: np.random.Generator) -> None:
    members = parameters(rng, [(3, 5), (7,)])
    naive = NaiveAdamW(naive_values(members), 0.1)
    optimizer = AdamW(members, 0.1)
    mine = rng.normal(size=(3, 5))
    for step in range(3):
        gradients = set_gradients(members, rng)
        members[0].grad = mine
        if step == 2:
            mine = mine.astype(np.float32)
            members[0].grad = mine  # of another dtype
        naive.step([mine, gradients[1]])
        kept = mine.copy()
        optimizer.step()
        assert np.shares_memory(members[0].grad, optimizer.groups[0].grad)
        np.testing.assert_array_equal(mine, kept)
        optimizer.zero_grad()
        np.testing.assert_array_equal(mine, kept)
    assert_equal_values(members, naive.values)
    members[0].grad = np.zeros((3, 5))
    (members[0] * 2).sum().backward()  # adds to what was set
    np.testing.assert_array_equal(members[0].grad, np.full((3, 5), 2.0))


def test_a_gradient_of_another_shape_is_refused(rng: np.random.Generator) -> None:
    [weight] = parameters(rng, [(3, 5)])
    optimizer = SGD([weight], 0.1)
    before = weight.data.copy()
    weight.grad = np.ones(5)  # NumPy would stretch it
    with pytest.raises(ShapeError, match=r"^step: the gradient of parameter p0 has shape \(5,\), .* shape \(3, 5\)"):
        optimizer.step()
    np.testing.assert_array_equal(weight.data, before)


def test_a_replaced_array_is_an_error_that_names_the_parameter(rng: np.random.Generator) -> None:
    model = nn.Linear(3, 2)
    model.assign_names()
    optimizer = AdamW(model.parameters(), 0.1)
    model.weight.data[...] = 1  # writing into it is right
    set_gradients(model.parameters(), rng)
    optimizer.step()
    model.bias.data = model.bias.data * 2
    with pytest.raises(GraphError, match=r"^step: the array of parameter bias was replaced .* write into"):
        optimizer.step()
    with pytest.raises(GraphError, match="parameter bias was replaced"):
        optimizer.clip_grad_norm(1.0)


def test_a_backward_after_the_step_of_its_weights_raises(rng: np.random.Generator) -> None:
    [weight] = parameters(rng, [(3,)])
    optimizer = SGD([weight], 0.1)
    loss = (weight * weight).sum()
    loss.backward(keep_graph=True)
    optimizer.step()
    with pytest.raises(GraphError, match=r"p0.* updated by the optimiser"):
        loss.backward()


# Clipping


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_clipping_scales_to_the_norm_and_never_up(max_norm: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    members, others = parameters(rng), parameters(np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    gradients = set_gradients(members, rng)
    for parameter, gradient in zip(others, gradients, strict=True):
        parameter.grad = gradient.copy()
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
    assert clip_grad_norm_(others, max_norm) == pytest.approx(norm, rel=1e-12)
    expected = [gradient * min(1.0, max_norm / norm) for gradient in gradients]
    for parameter, value in zip(others, expected, strict=True):
        np.testing.assert_allclose(parameter.grad, value, rtol=1e-12)

    naive = NaiveSGD(naive_values(members), 0.1, decays=0.3)
    optimizer = SGD(members, 0.1, weight_decay=0.3)
    assert optimizer.clip_grad_norm(max_norm) == pytest.approx(norm, rel=1e-12)
    for parameter, gradient in zip(members, gradients, strict=True):
        np.testing.assert_array_equal(parameter.grad, gradient)  # the step scales, not the clipping
    optimizer.step()
    naive.step(expected)  # weight decay is not clipped
    assert_equal_values(members, naive.values, rtol=1e-10)


def test_clipping_is_for_one_step(rng: np.random.Generator) -> None:
    members = parameters(rng)
    naive = NaiveAdamW(naive_values(members), 0.1)
    optimizer = AdamW(members, 0.1)
    gradients = set_gradients(members, rng, scale=100)
    norm = optimizer.clip_grad_norm(0.01)
    optimizer.step()
    naive.step([gradient * 0.01 / norm for gradient in gradients])
    optimizer.zero_grad()
    naive.step(set_gradients(members, rng))
    optimizer.step()
    assert_equal_values(members, naive.values, rtol=1e-10)


def test_clipping_passes_over_missing_gradients_and_zero(rng: np.random.Generator) -> None:
    members = parameters(rng)
    optimizer = AdamW(members, 0.1)
    set_gradients(members, rng)
    optimizer.zero_grad()  # the buffers still hold them
    assert optimizer.clip_grad_norm(1.0) == 0
    assert clip_grad_norm_(members, 1.0) == 0
    [gradient] = set_gradients(members[2:3], rng)
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(np.linalg.norm(gradient.ravel()))
    members[2].grad[...] = 0
    assert optimizer.clip_grad_norm(1.0) == 0
    before = naive_values(members)
    optimizer.step()
    assert_equal_values(members[:2], before[:2], rtol=0)
    assert np.isfinite(members[2].data).all()


# State


def train_steps(optimizer, members: list[Parameter], rng: np.random.Generator, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        set_gradients(members, rng)
        optimizer.clip_grad_norm(2.0)
        optimizer.step()


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_state_round_trip_is_bitwise(kind) -> None:
    options = {"momentum": 0.9} if kind is SGD else {}

    def start() -> tuple:
        members = parameters(np.random.default_rng(0), dtype=np.float32)
        return members, kind(decay_groups(members, 0.1), 0.01, **options)

    members, optimizer = start()
    train_steps(optimizer, members, np.random.default_rng(1), 3)
    state = {name: array.copy() for name, array in optimizer.state_dict().items()}
    values = naive_values(members)
    train_steps(optimizer, members, np.random.default_rng(2), 4)

    resumed, other = start()
    train_steps(other, resumed, np.random.default_rng(7), 5)  # a state of its own, to be overwritten
    for parameter, value in zip(resumed, values, strict=True):
        parameter.data[...] = value
    other.load_state_dict(state)
    assert other.steps == 3
    train_steps(other, resumed, np.random.default_rng(2), 4)
    for parameter, value in zip(resumed, naive_values(members), strict=True):
        np.testing.assert_array_equal(parameter.data, value)


def test_state_names_and_errors(rng: np.random.Generator) -> None:
    members = parameters(rng, [(2, 3), (4,)])
    optimizer = AdamW(members, 0.1)
    set_gradients(members, rng)
    optimizer.step()
    state = {name: array.copy() for name, array in optimizer.state_dict().items()}
    assert set(state) == {"steps", "exp_avg.p0", "exp_avg.p1", "exp_avg_sq.p0", "exp_avg_sq.p1"}
    assert (state["steps"], state["exp_avg.p0"].shape) == (1, (2, 3))

    broken = {name: array + 1 for name, array in state.items()}
    del broken["exp_avg.p0"]
    broken["exp_avg_sq.p1"] = np.zeros((4, 1))
    broken["momentum.p0"] = np.zeros((2, 3))
    with pytest.raises(CheckpointError) as raised:
        optimizer.load_state_dict(broken)
    for part in (
        "AdamW: ",
        "missing exp_avg.p0",
        "unexpected momentum.p0",
        "exp_avg_sq.p1 has shape (4, 1), expected (4,)",
    ):
        assert str(raised.value).count(part) == 1
    with pytest.raises(CheckpointError, match="no steps"):
        optimizer.load_state_dict({name: array + 1 for name, array in state.items() if name != "steps"})
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_unnamed_parameters_have_state_too(rng: np.random.Generator) -> None:
    members = [Parameter(rng.normal(size=3)), Parameter(rng.normal(size=2))]
    optimizer = SGD(members, 0.1, momentum=0.9)
    set_gradients(members, rng)
    optimizer.step()
    assert {name: array.shape for name, array in optimizer.state_dict().items()} == {
        "steps": (),
        "momentum.0.0": (3,),
        "momentum.0.1": (2,),
    }


# Bad arguments


def test_bad_arguments(rng: np.random.Generator) -> None:
    members = parameters(rng)
    with pytest.raises(InputError, match=r"^AdamW: lr is -1; give"):
        AdamW(members, -1)
    with pytest.raises(InputError, match=r"^SGD: lr is nan"):
        SGD(members, math.nan)
    with pytest.raises(InputError, match=r"^AdamW: betas are \(0.9, 1.0\)"):
        AdamW(members, 0.1, (0.9, 1.0))
    with pytest.raises(InputError, match=r"^Adam: eps is -1; give 0 or more"):
        Adam(members, 0.1, eps=-1)
    with pytest.raises(InputError, match=r"^SGD: momentum is -0.5; give 0 or more"):
        SGD(members, 0.1, -0.5)
    with pytest.raises(InputError, match=r"^SGD: weight_decay is -0.5; give 0 or more"):
        SGD([{"params": members, "weight_decay": -0.5}], 0.1)
    for nothing in ([], [{"params": []}], iter(())):
        with pytest.raises(InputError, match=r"^SGD: there are no parameters to optimise"):
            SGD(nothing, 0.1)
    with pytest.raises(InputError, match=r"^AdamW: a group has no option 'weight_decai'; did you mean 'weight_decay'"):
        AdamW([{"params": members, "weight_decai": 0.1}], 0.1)


def test_what_are_no_parameters_is_told_with_what_to_give() -> None:
    model = nn.Linear(3, 2)
    weight, number = model.weight, minillm.tensor([1, 2])
    made = weight * 2
    for parameters_, message in [
        (model, "the parameters are a model; give a list of parameters, such as model.parameters()"),
        (model.parameters, "the parameters are a method; give a list"),
        (weight, "the parameters are one tensor; put it into a list"),
        ({weight, model.bias}, "the parameters are a set, which has no order; give a list"),
        ([{"params": {weight}}], "the parameters are a set, which has no order; give a list"),
        (model.state_dict(), "the parameters are a dict; give a list"),
        (None, "the parameters are a NoneType; give a list"),
        ("weight", "the parameters are a str; give a list"),
        (model.named_parameters(), "the parameters come with names; pass model.parameters()"),
        ([weight.data], "a ndarray is among the parameters; give tensors only"),
        ([weight, made], r"the tensor of shape (2, 3) is not a leaf: it was made by mul"),
        ([number], "a tensor of int64 has no gradient"),
        ([weight, {"params": [model.bias]}], "a group is a Parameter; give each as"),
        ([{"lr": 0.1}], "a group lacks 'params'; give each as"),
        ([weight, weight], "a parameter is given twice; give each once, in one group"),
        ([{"params": [weight]}, {"params": [weight]}], "a parameter is given twice; give each once"),
    ]:
        with pytest.raises(InputError, match="^AdamW: .*" + re.escape(message)):
            AdamW(parameters_)


def test_parameters_may_come_from_a_generator(rng: np.random.Generator) -> None:
    members = parameters(rng)
    before = naive_values(members)
    optimizer = SGD([{"params": (p for p in members[:3])}, {"params": (p for p in members[3:])}], 0.1)
    set_gradients(members, rng)
    optimizer.step()
    assert all((parameter.data != value).all() for parameter, value in zip(members, before, strict=True))
    assert [parameter.name for parameter in optimizer.parameters()] == [parameter.name for parameter in members]


# Schedules


def test_cosine_at_its_corners() -> None:
    settings = {"peak": 2.0, "floor": 0.5, "warmup": 4, "total": 13}
    rates = [cosine_schedule(step, **settings) for step in range(20)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]  # step 3 is the last of the warmup, step 4 the top of the cosine
    assert rates[8] == pytest.approx(1.25)  # half way
    assert rates[6] == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi / 4)))
    assert rates[11] > 0.51
    assert rates[12:] == [0.5] * 8  # step 12 is the last of 13
    assert rates[4:13] == sorted(rates[4:13], reverse=True)


def test_wsd_at_its_corners() -> None:
    settings = {"peak": 2.0, "floor": 0.5, "warmup": 4, "total": 20, "decay": 6}
    rates = [wsd_schedule(step, **settings) for step in range(25)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[3:14] == [2.0] * 11
    assert rates[14:20] == [pytest.approx(2.0 - 1.5 * n / 6) for n in range(1, 7)]  # the last 6 of 20 steps
    assert rates[19:] == [0.5] * 6


def test_wsd_without_decay_keeps_the_peak() -> None:
    settings = {"peak": 2.0, "floor": 0.5, "warmup": 0, "total": 5, "decay": 0}
    assert [wsd_schedule(step, **settings) for step in range(5)] == [2.0] * 5


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.floats(0, 2), st.booleans())
def test_a_schedule_that_is_not_refused_keeps_its_promises(total, warmup, decay, floor, wsd) -> None:
    """Never above the peak nor, after the warmup, below the floor; the peak is reached, and the floor at the end."""
    shape = {"peak": 1.0, "floor": floor, "warmup": warmup, "total": total}
    rate = functools.partial(wsd_schedule if wsd else cosine_schedule, **shape, **({"decay": decay} if wsd else {}))
    if floor > 1 or warmup >= total or (wsd and decay and max(warmup, 1) + decay > total):
        with pytest.raises(InputError):
            rate(0)
        return
    rates = [rate(step) for step in range(total)]
    assert max(rates) == 1
    assert rates[:warmup] == [pytest.approx((step + 1) / warmup) for step in range(warmup)]
    assert min(rates[warmup:]) >= floor
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    if total > 1 and (decay or not wsd):
        assert rates[-1] == pytest.approx(floor)
    if wsd and decay:  # a line from the peak: no step falls further than the others
        falls = -np.diff([1.0, *rates[total - decay :]])
        np.testing.assert_allclose(falls, (1 - floor) / decay, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"floor": 3.0}, r"floor=3.0 is above peak=2.0, so the rate would rise"),
        ({"warmup": 10}, r"warmup=10 leaves none of total=10 steps to reach floor=0.5"),
        ({"total": 0}, r"total=0, warmup=2, decay=\d"),
        ({"warmup": -1}, r"total=10, warmup=-1, decay=\d; give a total of 1 or more"),
        ({"decay": 9}, r"warmup=2 and decay=9 do not fit into total=10 steps; give a decay of 8 at most"),
        ({"warmup": 0, "decay": 10}, r"warmup=0 and decay=10 do not fit into total=10 steps; give a decay of 9"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(changes: dict, message: str) -> None:
    settings = {"peak": 2.0, "floor": 0.5, "warmup": 2, "total": 10} | changes
    with pytest.raises(InputError, match=f"^wsd_schedule: {message}"):
        wsd_schedule(0, **{"decay": 3} | settings)
    if "decay" not in settings:
        with pytest.raises(InputError, match=f"^cosine_schedule: {message}"):
            cosine_schedule(0, **settings)


# Against torch


@pytest.mark.oracle
@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 2e-6)])
@pytest.mark.parametrize("kind", ["adamw", "sgd", "sgd without momentum"])
def test_twenty_steps_equal_torch(rng: np.random.Generator, kind: str, dtype, rtol: float) -> None:
    torch = pytest.importorskip("torch")
    members = parameters(rng, dtype=dtype)
    theirs = [torch.nn.Parameter(torch.tensor(parameter.data)) for parameter in members]
    groups = decay_groups(members, 0.2)
    position = {id(parameter): i for i, parameter in enumerate(members)}
    their_groups = [{**group, "params": [theirs[position[id(p)]] for p in group["params"]]} for group in groups]
    if kind == "adamw":
        ours = AdamW(groups, 0.03, (0.8, 0.95), 1e-6)
        reference = torch.optim.AdamW(their_groups, 0.03, (0.8, 0.95), 1e-6)
    else:
        momentum = 0.9 if kind == "sgd" else 0.0
        ours, reference = SGD(groups, 0.03, momentum), torch.optim.SGD(their_groups, 0.03, momentum)
    for step in range(20):
        ours.zero_grad()
        reference.zero_grad()
        active = [i for i in range(len(members)) if (step + i) % 5 or kind == "adamw"]
        gradients = set_gradients([members[i] for i in active], rng)
        for i, gradient in zip(active, gradients, strict=True):
            theirs[i].grad = torch.tensor(gradient)
        norm = torch.nn.utils.clip_grad_norm_([theirs[i] for i in active], 3.0)
        assert ours.clip_grad_norm(3.0) == pytest.approx(float(norm), rel=1e-5)
        # torch divides by norm + 1e-6; take its scaled gradients, so that the updates can be compared to the last bits
        ours.clip_factor = 1.0
        for i in active:
            members[i].grad[...] = theirs[i].grad.numpy()
        ours.step()
        reference.step()
    for parameter, their in zip(members, theirs, strict=True):
        np.testing.assert_allclose(parameter.data, their.detach().numpy(), rtol=rtol, atol=rtol)


@pytest.mark.oracle
def test_clip_grad_norm_equals_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    members = parameters(rng)
    gradients = set_gradients(members, rng)
    theirs = [torch.nn.Parameter(torch.tensor(parameter.data)) for parameter in members]
    for their, gradient in zip(theirs, gradients, strict=True):
        their.grad = torch.tensor(gradient)
    norm = torch.nn.utils.clip_grad_norm_(theirs, 0.7)
    assert clip_grad_norm_(members, 0.7) == pytest.approx(float(norm), rel=1e-12)
    for parameter, their in zip(members, theirs, strict=True):
        np.testing.assert_allclose(parameter.grad, their.grad.numpy(), rtol=1e-6)  # torch adds 1e-6 to the norm


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["AdamW", "Adam", "SGD", "SGD without momentum"])
def test_gradients_that_come_and_go_equal_torch(rng: np.random.Generator, kind: str) -> None:
    """50 steps, with a rate of each group that changes on the way."""
    torch = pytest.importorskip("torch")
    members = parameters(rng)
    theirs = [torch.nn.Parameter(torch.tensor(parameter.data)) for parameter in members]
    name, _, without = kind.partition(" ")
    options: dict = {"betas": (0.8, 0.95)} if "Adam" in kind else {"momentum": 0.0 if without else 0.9}
    halves = (slice(0, 3), slice(3, None))
    rates = ({"lr": 0.03, "weight_decay": 0.2}, {"weight_decay": 0.0})
    ours = getattr(optim, name)(
        [{"params": members[half], **rate} for half, rate in zip(halves, rates, strict=True)], 0.01, **options
    )
    reference = getattr(torch.optim, name)(
        [{"params": theirs[half], **rate} for half, rate in zip(halves, rates, strict=True)], 0.01, **options
    )
    for step in range(50):
        for optimizer in (ours, reference):
            optimizer.zero_grad()
            optimizer.param_groups[1]["lr"] = 0.01 / (1 + step % 7)
        for their, gradient in zip(theirs, some_gradients(members, step, rng), strict=True):
            their.grad = None if gradient is None else torch.tensor(gradient)
        ours.step()
        reference.step()
    for parameter, their in zip(members, theirs, strict=True):
        np.testing.assert_allclose(parameter.data, their.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_a_parameter_given_twice_is_refused():
    weight = Parameter(np.ones(3, np.float32))
    with pytest.raises(InputError, match=r"^AdamW: a parameter is given twice; give each once"):
        AdamW([{"params": [weight]}, {"params": [weight]}])


# --- norms that float32 cannot square, and those that are no numbers -------------------------------------------------


@pytest.mark.parametrize(
    ("size", "value"), [(100, 1e20), (3, 1e-25), (70_000, 1e-30), (3, 3e38), (1_000_000, 1.1), (200_000, 0.0)]
)
def test_the_norm_of_any_float32_gradient(size, value) -> None:
    """Also where its squares overflow or vanish, and where one sum of float32 would lose digits."""
    right = float(np.float32(value)) * math.sqrt(size)
    member = Parameter(np.zeros(size, np.float32), "p")
    member.grad = np.full(size, value, np.float32)
    assert AdamW([Parameter(np.zeros(1, np.float32), "other")]).clip_grad_norm(1.0) == 0
    assert clip_grad_norm_([member], 1.0) == pytest.approx(right, rel=1e-6)
    assert clip_grad_norm_([member], 1.0) == pytest.approx(min(1.0, right), rel=1e-6)
    member.grad = np.full(size, value, np.float32)
    optimizer = AdamW([member])
    assert optimizer.clip_grad_norm(1.0) == pytest.approx(right, rel=1e-6)
    assert optimizer.clip_factor == pytest.approx(1 / max(1.0, right), rel=1e-6)


def test_a_norm_of_large_and_small_gradients() -> None:
    members = [Parameter(np.zeros(2, np.float32), "a"), Parameter(np.zeros(2, np.float32), "b")]
    members[0].grad, members[1].grad = np.array([1e-30, 0], np.float32), np.array([3e25, 4e25], np.float32)
    assert clip_grad_norm_(members, 1.0) == pytest.approx(5e25, rel=1e-6)
    np.testing.assert_allclose(members[1].grad, [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("bad", "clipped"), [(np.nan, [np.nan, np.nan]), (np.inf, [np.nan, 0]), (-np.inf, [np.nan, 0])]
)
def test_a_norm_that_is_no_number_reaches_every_gradient(bad, clipped) -> None:
    """As in PyTorch."""
    member = Parameter(np.zeros(2, np.float32), "p")
    member.grad = np.array([bad, 100], np.float32)
    with pytest.raises(InputError, match=r"^clip_grad_norm_: the norm of the gradients is (nan|inf)"):
        clip_grad_norm_([member], 1.0, error_if_nonfinite=True)
    np.testing.assert_array_equal(member.grad, np.array([bad, 100], np.float32))
    assert not math.isfinite(clip_grad_norm_([member], 1.0))
    np.testing.assert_array_equal(member.grad, clipped)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_does_not_hide_a_norm_that_is_no_number(bad) -> None:
    members = [Parameter(np.ones(2, np.float32), "a"), Parameter(np.ones(2, np.float32), "b")]
    optimizer = SGD(members, 0.1)
    members[0].grad, members[1].grad = np.array([bad, 1], np.float32), np.array([1, 1], np.float32)
    assert not math.isfinite(optimizer.clip_grad_norm(1.0))
    optimizer.step()
    assert np.isnan(members[0].data[0])
    assert np.isnan(members[1].data).all() == np.isnan(bad)  # the factor of an infinite norm is 0


@pytest.mark.oracle
@pytest.mark.parametrize("values", [[1.0, 2.0], [np.nan, 100], [np.inf, 100], [3e30, 4e30], [0, 0]])
def test_clipping_as_in_torch(values) -> None:
    torch = pytest.importorskip("torch")
    member, twin = Parameter(np.zeros(2)), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    member.grad, twin.grad = np.array(values), torch.tensor(values, dtype=torch.float64)
    norm, right = clip_grad_norm_([member], 1.0), torch.nn.utils.clip_grad_norm_([twin], 1.0)
    np.testing.assert_allclose(norm, right.numpy(), rtol=1e-12)
    np.testing.assert_allclose(member.grad, twin.grad.numpy(), rtol=1e-5)
