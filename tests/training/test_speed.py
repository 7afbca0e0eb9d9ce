"""How a training is fitted to the machine: the choice that it keeps, and what it says at step 20.

No test asserts a time: clocks and measurements are given.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from minillm import backend, tuning
from minillm.backend import Cutting
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.cli import main
from minillm.errors import InputError
from minillm.models.gpt2 import GPT2Config
from minillm.parallel.communicator import Alone
from minillm.training import Run, TrainConfig, display, speed, train, whole_model
from minillm.training.speed import choose, choose_again, forecast, in_words, seconds_left
from minillm.tuning import Choice, own_threads

BLAS = Choice("2 own threads, the BLAS's for products", Cutting(2, 2, 12345, 67890), {})
BLAS = BLAS._replace(seconds={"2 own threads": 0.5, BLAS.name: 0.25})


def settings(folder: Path, out: str, **changes: Any) -> TrainConfig:
    """A run of 12 steps that takes a tenth of a second, saving after 5, 10 and 12."""
    text = folder / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("abcdefgh "), 4000)))
    model = GPT2Config(vocab_size=256, context=8, layers=1, heads=2, channels=16, dropout=0.2)
    config = TrainConfig(
        data=str(text), out=folder / out, tokenizer="char", model=model, steps=12, batch_size=4, warmup=3, eval_every=5
    )
    return dataclasses.replace(config, eval_batches=2, sample_every=0, **changes)


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """MINILLM_THREADS is what a test sets."""
    monkeypatch.delenv("MINILLM_THREADS", raising=False)


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads, whatever the machine and its settings are."""
    monkeypatch.setattr(backend, "cutting", Cutting(2))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Cutting]:
    """The cutting that holds in each step of a training."""
    seen: list[Cutting] = []
    original = whole_model.accumulate_gradients

    def noted(*arguments: Any) -> Any:
        seen.append(backend.cutting)
        return original(*arguments)

    monkeypatch.setattr(whole_model, "accumulate_gradients", noted)
    return seen


def arrays_of(run: Run) -> dict[str, np.ndarray]:
    checkpoint = load_checkpoint(run.checkpoint("last"))
    return {**checkpoint.model, **{f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()}}


def assert_same_arrays(one: Run, other: Run) -> None:
    found, expected = arrays_of(one), arrays_of(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- the choice for a new run --------------------------------------------------------------------------------------


def play(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[Cutting], float]) -> list[Cutting]:
    """Have trials run on a machine whose steps take `seconds(cutting)`; returns the cuttings of the steps tried."""
    tried: list[Cutting] = []

    def played(step: Callable[[], object], ways: dict[str, Cutting], rounds: int) -> Choice:
        now = 0.0

        def timed_step() -> None:
            nonlocal now
            step()
            tried.append(backend.cutting)
            now += seconds(backend.cutting)

        return tuning.fastest_way(timed_step, ways, rounds, lambda: now)

    monkeypatch.setattr(speed, "fastest_way", played)
    return tried


@pytest.mark.parametrize(("hand_over", "expected"), [(20e-6, (2, 1)), (500e-6, (1, 1))])
def test_a_slow_hand_over_leads_to_another_choice(
    hand_over: float, expected: tuple[int, int], two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "measured_hand_over", lambda: hand_over)
    play(monkeypatch, lambda cutting: 0.02 + 50 * hand_over if cutting.threads == 2 else 0.03 * cutting.blas_threads)
    choice = choose(TrainConfig(), Alone(), lambda: lambda: None)
    assert (choice.cutting.threads, choice.cutting.blas_threads) == expected
    assert len(choice.seconds) == 5


@pytest.mark.parametrize(("steps", "rounds"), [(749, 0), (750, 3), (2000, 8), (100_000, 15)])
def test_a_trial_takes_no_more_than_4_percent_of_the_steps(
    steps: int, rounds: int, two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = play(monkeypatch, lambda cutting: 1.0)
    choice = choose(TrainConfig(steps=steps), Alone(), lambda: lambda: None)
    assert len(tried) == (1 + 5 * 2 * rounds if rounds else 0)
    assert len(tried) <= 0.04 * steps + 1
    assert choice.name == "2 own threads"


@pytest.mark.parametrize("changes", [{"threads": 2}, {"threads": 1}, {"device": "cuda"}])
def test_nothing_is_tried_where_there_is_nothing_to_choose(
    changes: dict[str, Any], two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "fastest_way", None)  # calling it would fail
    choice = choose(TrainConfig(**changes), Alone(), None)  # type: ignore[arg-type]
    threads = changes.get("threads", 2)
    assert (choice.name, choice.cutting.threads, choice.seconds) == (f"{threads} own threads", threads, {})


def test_several_ranks_try_nothing_and_follow_rank_0(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    hand_overs = iter([50e-6, 200e-6])
    monkeypatch.setattr(tuning, "measured_hand_over", lambda: next(hand_overs))

    def broadcast(world: Any, content: bytes = b"") -> bytes:
        sent.append(content)
        return sent[0]

    monkeypatch.setattr(speed, "broadcast_bytes", broadcast)
    monkeypatch.setattr(speed, "fastest_way", None)
    choices = [choose(TrainConfig(), SimpleNamespace(rank=rank, size=2), None) for rank in (0, 1)]  # type: ignore
    assert choices[0] == choices[1] == Choice.from_json(json.loads(sent[0]))
    assert sent[0] != sent[1]


def test_a_trial_changes_nothing_of_the_run(
    two_cores: None, used: list[Cutting], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(speed, "STEPS_OF_A_ROUND", 4)
    play(monkeypatch, lambda cutting: 1.0 if cutting.blas_threads == 2 and cutting.threads == 2 else 1.05)
    tried = train(settings(tmp_path, "tried"))
    assert len(used) == 1 + 5 * 2 * 3 + 12
    assert {(cutting.threads, cutting.blas_threads) for cutting in used[-12:]} == {(2, 2)}
    assert f"work is cut over {BLAS.name}, 1e+03 ms a step (others: " in capsys.readouterr().out
    kept = Choice.from_json(load_checkpoint(tried.checkpoint("last")).state["choice"])
    monkeypatch.setattr(speed, "choose", lambda *arguments: kept)
    assert_same_arrays(train(settings(tmp_path, "not tried")), tried)


# --- a run that is resumed -----------------------------------------------------------------------------------------


def test_a_resumed_run_keeps_its_choice_and_its_bits(
    used: list[Cutting], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(speed, "choose", lambda *arguments: BLAS)
    whole = train(settings(tmp_path, "whole"))
    noted, calls = whole_model.accumulate_gradients, iter(range(1, 100))

    def interrupted(*arguments: Any) -> Any:
        if next(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return noted(*arguments)

    monkeypatch.setattr(whole_model, "accumulate_gradients", interrupted)
    stopped = train(settings(tmp_path, "stopped"))
    monkeypatch.setattr(speed, "choose", None)  # calling it would fail
    monkeypatch.setattr(speed, "own_choice", None)
    capsys.readouterr()
    main(["train", "--resume", str(stopped.folder)])
    assert "work is cut over 2 own threads, the BLAS's for products, as when it began" in capsys.readouterr().out
    assert used == [BLAS.cutting] * 24
    assert_same_arrays(stopped, whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_fixes_the_number_of_a_run_and_of_its_continuation(
    threads: int, used: list[Cutting], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, "run", threads=threads, eval_every=12)
    run = train(config)
    assert {(cutting.threads, cutting.blas_threads) for cutting in used} == {(threads, 1)}
    first = used[0]
    used.clear()
    monkeypatch.setattr(tuning, "measured_hand_over", lambda: 1.0)  # and the measurement is not made again
    main(["train", "--resume", str(run.folder), "--steps", "13"])
    assert used == [first]
    used.clear()
    main(["train", "--resume", str(run.folder), "--steps", "14", "--threads", "2"])
    assert used == [own_threads(2, 1.0)]
    assert Run.open(run.folder).config.threads == 2


def test_what_a_resumed_run_keeps(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "measured_hand_over", lambda: 50e-6)
    kept = BLAS.to_json()
    two, three = TrainConfig(threads=2), TrainConfig(threads=3)
    ranks: Any = SimpleNamespace(rank=0, size=2)
    monkeypatch.setattr(speed, "broadcast_bytes", lambda world, content: content)
    assert choose_again(TrainConfig(), Alone(), kept, 1) == BLAS
    assert choose_again(TrainConfig(), ranks, kept, 2) == BLAS
    assert choose_again(TrainConfig(), ranks, kept, 1).cutting == own_threads(2)  # it was for another division
    assert choose_again(TrainConfig(), Alone(), None, 1).cutting == own_threads(2)  # an older run
    assert choose_again(two, Alone(), kept, 1).cutting == own_threads(2)  # tried ones give way to --threads
    assert choose_again(three, Alone(), kept, 1).cutting == own_threads(3)
    fixed = Choice("2 own threads", own_threads(2, 200e-6), {}).to_json()
    assert choose_again(two, Alone(), fixed, 1) == Choice.from_json(fixed)


@pytest.mark.parametrize(
    ("asked", "tried", "kept"), [("1", True, False), ("2", True, True), ("3", True, True), ("3", False, False)]
)
def test_the_variable_of_today_comes_before_the_threads_of_the_run(two_cores, monkeypatch, asked, tried, kept) -> None:
    monkeypatch.setenv("MINILLM_THREADS", asked)
    monkeypatch.setattr(backend, "cutting", Cutting(int(asked)))
    before = BLAS if tried else BLAS._replace(seconds={})
    now = choose_again(TrainConfig(), Alone(), before.to_json(), 1)
    assert (now == before) == kept
    [*remark] = speed.remarks_on_change(before.to_json(), now)
    assert bool(remark) != kept
    if not kept:
        assert now.cutting.threads == int(asked)
        assert remark[0].startswith(f"work is cut over {now.name} now, and was over {before.name}: the last bits")
    assert choose_again(TrainConfig(threads=2), Alone(), before.to_json(), 1).cutting.threads == 2  # a given --threads


def test_a_run_from_before_choices_goes_on(tmp_path: Path) -> None:
    whole, run = train(settings(tmp_path, "whole")), train(settings(tmp_path, "run", steps=12))
    path = run.checkpoint("last")
    model, optimizer, state = load_checkpoint(path)
    save_checkpoint(path, model, optimizer, {k: v for k, v in state.items() if k not in ("choice", "ranks")})
    train(run.config, run.folder)
    assert_same_arrays(run, whole)


@pytest.mark.parametrize("threads", ["0", "-1"])
def test_a_number_of_threads_that_is_none(threads: str) -> None:
    with pytest.raises(InputError, match=f"threads is {threads}; give 1 or more"):
        TrainConfig(threads=int(threads))


# --- at step 20 ----------------------------------------------------------------------------------------------------


def test_the_seconds_left_count_steps_and_validations() -> None:
    config = TrainConfig(steps=1000, eval_every=300, eval_batches=30)
    assert seconds_left(config, 20, 2.0) == pytest.approx(2 * (980 + 4 * 10))
    assert seconds_left(config, 900, 2.0) == pytest.approx(2 * (100 + 10))
    assert seconds_left(config, 1000, 2.0) == pytest.approx(2 * 10)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3.2, "3 seconds"), (89, "89 seconds"), (180, "3 minutes"), (1000, "17 minutes"), (9000, "2.5 hours")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_two_processes_are_named_with_how_much_faster_they_are_and_how_to_use_them() -> None:
    config = TrainConfig(steps=2020, eval_every=5000, eval_batches=3)
    first = "at 100 ms a step, about 3.3 minutes to go"
    assert forecast(config, 20, 0.1, "runs/a", lambda config: 0.08) == [
        first,
        "two processes would be 1.25 times as fast here, as a short try shows: about 2.7 minutes; to use them, stop "
        "with Ctrl-C, and then",
        "  minillm train --resume runs/a --nproc 2",
    ]
    assert forecast(config, 20, 0.1, "runs/a", lambda config: 0.098) == [first]
    assert forecast(config, 20, 0.1, "runs/a", lambda config: None) == [first]
    assert forecast(config, 20, 0.1, "runs/a") == [first]


@pytest.mark.parametrize(("changes", "seconds"), [({}, 0.001), ({"batch_size": 1}, 0.1)])
def test_two_processes_are_not_tried_for_a_short_run_or_a_batch_of_one(changes: Any, seconds: float) -> None:
    def fails(config: TrainConfig) -> float:
        raise AssertionError("tried")

    assert len(forecast(TrainConfig(**changes), 20, seconds, "runs/a", fails)) == 1


@pytest.mark.parametrize("tried", [True, False])
def test_a_training_tells_at_step_20(tried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    choice = BLAS if tried else BLAS._replace(seconds={})
    monkeypatch.setattr(speed, "choose", lambda *arguments: choice)
    monkeypatch.setattr(speed, "WORTH_A_TRY", 0.0)
    asked: list[TrainConfig] = []
    monkeypatch.setattr(speed, "seconds_in_two_processes", lambda config: asked.append(config) or 1e-9)
    run = train(settings(tmp_path, "run", steps=25))
    shown = capsys.readouterr().out
    assert " ms a step, about " in shown
    assert (f"  minillm train --resume {run.folder} --nproc 2" in shown) is tried
    assert [config.model.vocab_size for config in asked] == [9] * tried


def test_no_word_before_step_20(tmp_path: Path, capsys: Any) -> None:
    train(settings(tmp_path, "run", steps=19))
    assert "to go" not in capsys.readouterr().out.replace("to go on", "")


def test_two_processes_train_for_a_while_and_their_time_comes_back(tmp_path: Path) -> None:
    config = settings(tmp_path, "run", threads=1, dp=1)
    seconds = speed.seconds_in_two_processes(config)
    assert seconds is not None or backend.core_count() < 2
    assert seconds is None or seconds > 0


def test_two_processes_that_cannot_be_started_cost_only_a_piece_of_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "core_count", lambda: 2)
    monkeypatch.setattr(speed.sys, "executable", "/nowhere/python")
    assert speed.seconds_in_two_processes(TrainConfig()) is None
    monkeypatch.setattr(speed, "core_count", lambda: 1)
    assert speed.seconds_in_two_processes(TrainConfig()) is None


def test_the_display_of_a_run_without_a_choice_has_no_line_about_it(tmp_path: Path, capsys: Any) -> None:
    train(settings(tmp_path, "run"))
    assert "work is cut" not in capsys.readouterr().out
    assert display.speed is speed
