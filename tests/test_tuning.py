"""Tuning: sizes follow the hand-over, the fastest way of cutting is kept, and what was changed is restored.

No test asserts a time: the clock and the hand-over are given.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import minillm
from minillm import backend, tuning
from minillm.backend import Cutting
from minillm.tuning import Choice, cut_by, fastest_way, own_threads, tuned_process, ways_of_cutting


def own(threads: int, hand_over: float = 50e-6) -> Choice:
    return Choice(f"{threads} own threads", own_threads(threads, hand_over), {})


# --- sizes by the hand-over ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hand_over", "factor"),
    [(50e-6, 1), (60e-6, 1), (40e-6, 1), (100e-6, 2), (130e-6, 2), (25e-6, 0.5), (200e-6, 4)],
)
def test_sizes_are_proportional_to_the_hand_over_in_steps_of_two(hand_over: float, factor: float) -> None:
    assert own_threads(2, hand_over) == Cutting(2, 1, int(512 * 1024 * factor), int(16e6 * factor))


def test_sizes_have_bounds() -> None:
    assert own_threads(2, 0.0) == own_threads(2, 1e-6) == Cutting(2, 1, 128 * 1024, 4_000_000)
    assert own_threads(2, 1.0) == Cutting(2, 1, 16 << 20, 512_000_000)


def test_fewer_larger_tasks_have_larger_sizes() -> None:
    ways = ways_of_cutting(own(3, 100e-6))
    assert ways["3 own threads for large tasks"] == Cutting(3, 1, 4 << 20, 128_000_000)


def test_the_hand_over_is_the_median_of_calls_to_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0, 10.0, 10.0 + 7.0, 20.0, 25.0, 30.0, 30.0 + 2.0, 40.0, 45.0, 50.0, 50.0 + 3.0])
    counts: list[int] = []
    monkeypatch.setattr(tuning.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(backend, "cutting", Cutting(3))
    monkeypatch.setattr(backend, "parallel", lambda function, count: counts.append(count))
    assert tuning.measured_hand_over(3) == 3.0
    assert counts == [3] * 4  # the first starts the threads


@pytest.mark.parametrize("slow", [0.0, 0.01])
def test_a_slow_wake_up_is_measured(slow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cutting", Cutting(2))
    monkeypatch.setattr(backend, "wake_up_delay", slow)
    assert tuning.measured_hand_over(3) >= slow  # a sleep is never shorter


def test_a_tuned_process_cuts_by_the_hand_over_that_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cutting", Cutting(2))
    for hand_over in (50e-6, 200e-6):
        monkeypatch.setattr(tuning, "measured_hand_over", lambda hand_over=hand_over: hand_over)
        with tuned_process():
            assert backend.cutting == own_threads(2, hand_over)
        assert backend.cutting == Cutting(2)


def test_a_given_cutting_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "measured_hand_over", None)  # calling it would fail
    given = Cutting(2, 2, 123, 456)
    with tuned_process(given):
        assert backend.cutting == given


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "BLAS_AWAKE", 0.0)


# --- trying ways ---------------------------------------------------------------------------------------------------


class Machine:
    """A clock and a step that plays a machine: seconds of a step by the cutting that holds."""

    def __init__(self, seconds):
        self.now, self.seconds, self.steps = 0.0, seconds, []

    def clock(self) -> float:
        return self.now

    def step(self) -> None:
        self.steps.append(backend.cutting)
        self.now += self.seconds(backend.cutting)


def planted(hand_over: float):
    """A step of 20 ms of products, 10 of the rest, and 50 hand-overs, fewer where only large tasks are shared."""

    def seconds(cutting: Cutting) -> float:
        products = 0.020 if cutting.blas_threads == 1 else 0.0205
        shared = 0 if cutting.threads == 1 else 10 if cutting.parallel_flops > 1e8 or cutting.blas_threads != 1 else 50
        if cutting.threads == 1:
            return products * (1 if cutting.blas_threads == 1 else 0.5) + 0.010
        large_alone = 0.002 if cutting.parallel_flops > 1e8 else 0.0
        return products / 2 + 0.005 + large_alone + shared * hand_over

    return seconds


@pytest.mark.parametrize(
    ("hand_over", "expected"),
    [(10e-6, "2 own threads"), (100e-6, "2 own threads, the BLAS's for products")],
)
def test_a_slow_hand_over_leads_to_another_way(hand_over: float, expected: str) -> None:
    machine = Machine(planted(hand_over))
    ways = ways_of_cutting(own(2, hand_over))
    choice = fastest_way(machine.step, ways, rounds=5, clock=machine.clock)
    assert choice.name == expected
    assert choice.cutting == ways[expected]
    best = min(choice.seconds.values())
    assert choice.seconds[expected] <= tuning.GAIN * best
    assert set(machine.steps[1:11]) == set(ways.values())  # after one to warm up, each had its turn


def test_the_first_way_stays_where_another_is_hardly_faster() -> None:
    ways = {"a": Cutting(2, 1), "b": Cutting(1, 1)}
    for gain, expected in ((0.01, "a"), (0.05, "b")):
        machine = Machine(lambda cutting, gain=gain: 1.0 if cutting.threads == 2 else 1.0 - gain)
        assert fastest_way(machine.step, ways, 3, machine.clock).name == expected


def test_slow_ways_are_dropped_and_one_that_is_left_ends_the_trial() -> None:
    ways = {"a": Cutting(2, 1), "b": Cutting(1, 1), "c": Cutting(3, 1)}
    machine = Machine(lambda cutting: {2: 1.0, 1: 1.05, 3: 2.5}[cutting.threads])
    choice = fastest_way(machine.step, ways, 4, machine.clock)
    assert [cutting.threads for cutting in machine.steps[1::2]] == [2, 1, 3, 2, 1, 3, 2, 1, 2, 1]
    assert machine.steps[1::2] == machine.steps[2::2]  # two steps in each turn, of which the second is timed
    assert (choice.name, choice.cutting) == ("a", ways["a"])
    assert choice.seconds == pytest.approx({"a": 1.0, "b": 1.05, "c": 2.5})
    assert str(choice) == "a, 1e+03 ms a step (others: b 1.05e+03 ms, c 2.5e+03 ms)"
    assert Choice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    machine = Machine(lambda cutting: {2: 1.0, 1: 2.0, 3: 5.0}[cutting.threads])
    fastest_way(machine.step, ways, 4, machine.clock)
    assert [cutting.threads for cutting in machine.steps[1::2]] == [2, 1, 3, 2, 1]


def test_the_first_step_of_a_turn_does_not_count() -> None:
    ways = {"a": Cutting(2, 1), "b": Cutting(1, 1)}
    machine = Machine(lambda cutting: {2: 1.0, 1: 0.5}[cutting.threads])
    right = machine.step

    def step() -> None:
        right()
        if len(machine.steps) > 1 and machine.steps[-1] != machine.steps[-2]:
            machine.now += 5.0 * (machine.steps[-1].threads == 1)  # the way that is faster takes long to begin

    assert fastest_way(step, ways, 4, machine.clock).name == "b"


def test_on_one_thread_there_is_one_way() -> None:
    assert list(ways_of_cutting(own(1)).values()) == [own_threads(1)]


def test_one_way_alone_keeps_everything_on_one_thread() -> None:
    ways = ways_of_cutting(own(4))
    assert {(cutting.threads, cutting.blas_threads) for cutting in ways.values()} == {(4, 1), (4, 4), (1, 4), (1, 1)}


def test_the_plain_engine_keeps_everything_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "cutting", Cutting(3, 1, 0, 0))

    def parts() -> list[tuple[int, int]]:
        """The ranges that 12 elements are cut into."""
        found: list[tuple[int, int]] = []
        backend.parallel(lambda start, stop: found.append((start, stop)), 12)
        return sorted(found)

    with minillm.engine("plain"):
        assert parts() == [(0, 12)]
        with tuned_process():
            assert parts() == [(0, 12)]
        with minillm.engine("fast"):
            assert parts() == [(0, 4), (4, 8), (8, 12)]
    assert parts() == [(0, 4), (4, 8), (8, 12)]
    monkeypatch.setenv("MINILLM_ENGINE", "plain")
    monkeypatch.delenv("MINILLM_THREADS", raising=False)
    assert backend.thread_count() == 1


# --- what is changed and restored ----------------------------------------------------------------------------------


def test_cut_by_restores_what_was() -> None:
    before = backend.cutting

    def fails() -> None:
        with cut_by(Cutting(5, 1)):
            assert backend.cutting == Cutting(5, 1)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert backend.cutting == before


def test_tuned_process_sets_the_blas_and_restores_it() -> None:
    """In a process of its own: what it tells the allocator cannot be taken back."""
    program = """
        import numpy as np
        from threadpoolctl import threadpool_info
        from minillm import backend
        from minillm.backend import Cutting
        from minillm.tuning import cut_by, tuned_process

        def blas_threads():
            return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

        a = np.ones((300, 300))
        before, cutting = blas_threads(), backend.cutting
        for fails in (False, True):
            try:
                with tuned_process():
                    assert backend.cutting.blas_threads == 1
                    assert blas_threads() <= {1}, blas_threads()
                    with cut_by(Cutting(1, 2)):
                        assert blas_threads() <= {2}, blas_threads()
                    with tuned_process():
                        pass
                    assert blas_threads() <= {1}, blas_threads()
                    assert backend.cutting.blas_threads == 1
                    assert (backend.matmul(a, a) == 300).all()
                    if fails:
                        raise KeyError
            except KeyError:
                pass
            assert backend.cutting == cutting
            assert blas_threads() == before
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert result.stdout == "done\n", result.stderr


def test_threads_of_openblas_sleep_soon_in_a_tuned_process() -> None:
    """In a process of its own, because threads of the BLAS are ended and started."""
    program = """
        import ctypes
        import os

        import numpy as np
        from threadpoolctl import threadpool_info
        from minillm.tuning import READS_AGAIN, WAIT, cut_by, own_threads, tuned_process

        [pool] = [pool for pool in threadpool_info() if pool["internal_api"] == "openblas"] or [None]
        library = pool and ctypes.CDLL(pool["filepath"])
        if library is None or not all(hasattr(library, name) for name in READS_AGAIN):
            print("done")
            raise SystemExit
        a = np.random.default_rng(0).normal(size=(400, 400))
        product, threads = a @ a, pool["num_threads"]
        with tuned_process(own_threads(2)._replace(blas_threads=2)):
            assert library.openblas_thread_timeout() == 18
            with tuned_process(own_threads(2)):
                np.testing.assert_allclose(a @ a, product, rtol=1e-12, atol=1e-12)
                with cut_by(own_threads(2)._replace(blas_threads=2)):
                    np.testing.assert_allclose(a @ a, product, rtol=1e-12, atol=1e-12)
            assert library.openblas_thread_timeout() == 18
            np.testing.assert_allclose(a @ a, product, rtol=1e-12, atol=1e-12)
        assert library.openblas_thread_timeout() == 26
        assert WAIT not in os.environ
        assert [pool["num_threads"] for pool in threadpool_info() if pool["internal_api"] == "openblas"] == [threads]
        np.testing.assert_allclose(a @ a, product, rtol=1e-12, atol=1e-12)
        os.environ[WAIT] = "20"
        with tuned_process(own_threads(2)):
            assert os.environ[WAIT] == "20"
            assert library.openblas_thread_timeout() == 26
        print("done")
    """
    environment = {name: value for name, value in os.environ.items() if name != tuning.WAIT}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.stdout == "done\n", result.stderr


@pytest.mark.parametrize("name", list(ways_of_cutting(own(2))))
def test_every_way_computes_a_training_step(name: str) -> None:
    """Loss and gradients on arrays above every size that decides, against one thread; the bits of sums are the same."""
    from minillm import ops, random
    from minillm.models.gpt2 import GPT2, GPT2Config

    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 65, (2, 24, 64))
    x, dy = rng.normal(size=(2, 3000, 128)).astype(np.float32)
    weight = np.ones(128, np.float32)

    def results() -> dict[str, np.ndarray]:
        random.manual_seed(0)
        model = GPT2(GPT2Config(65, 64, layers=1, heads=4, channels=128))
        model.loss(ids, targets).backward()
        leaves = [backend_tensor(array) for array in (x, weight, weight)]
        ops.layer_norm(*leaves).backward(dy)
        return {name: p.grad for name, p in model.named_parameters()} | {
            f"layer_norm {i}": leaf.grad for i, leaf in enumerate(leaves)
        }

    def backend_tensor(array: np.ndarray):
        from minillm import tensor

        return tensor(array, requires_grad=True)

    with cut_by(own_threads(1)):
        expected = results()
    with cut_by(ways_of_cutting(own(2))[name]):
        found = results()
    for key, array in expected.items():
        if key.startswith("layer_norm"):
            np.testing.assert_array_equal(found[key], array, err_msg=key)
        else:
            np.testing.assert_allclose(found[key], array, rtol=2e-3, atol=1e-7, err_msg=key)
