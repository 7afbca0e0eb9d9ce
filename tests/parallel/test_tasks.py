"""Every pretraining task on two ranks: data parallel and ZeRO give the run of one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from minillm.checkpoint import load_checkpoint
from minillm.errors import InputError
from minillm.parallel.communicator import Communicator
from minillm.training import Run, TrainConfig, prepare, train
from tests.training.task_runs import RUNS, run_of, write_data

DIVIDED = {"dp2": dict(dp=2), "zero1": dict(dp=2, zero=1), "zero2": dict(dp=2, zero=2), "zero3": dict(dp=2, zero=3)}


def run_on(communicator: Communicator, config: TrainConfig) -> None:
    exactly()
    train(config, None, communicator)


def exactly() -> None:
    """Make the models of trainings float64, in which a run does not depend on the order of sums."""
    make = prepare.make_model
    if not hasattr(make, "exact"):
        prepare.make_model = lambda *given: make(*given).to(np.float64)
        prepare.make_model.exact = True  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Run]:
    class Made(dict):
        def __missing__(self, name: str) -> Run:
            before = prepare.make_model
            exactly()
            self[name] = train(run_of(name, folder, f"alone-{name}", micro_batches=2))
            prepare.make_model = before
            return self[name]

    return Made()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("division", DIVIDED)
def test_two_ranks_give_the_run_of_one(ranks, folder: Path, alone, name: str, division: str, tmp_path: Path) -> None:
    """With dropout, batches of five rows in micro-batches of three and two, and unequal numbers of targets."""
    config = run_of(name, folder, out=str(tmp_path / "run"), micro_batches=2, **DIVIDED[division])
    ranks(2).run(run_on, config)
    found, expected = Run.open(tmp_path / "run"), alone[name]
    for record, wanted in zip(found.metrics(), expected.metrics(), strict=True):
        assert record.keys() == wanted.keys()
        for key in record.keys() - {"seconds", "tokens_per_s"}:
            assert record[key] == (None if wanted[key] is None else pytest.approx(wanted[key], rel=1e-9)), key
    one, other = (load_checkpoint(run.checkpoint("last")) for run in (found, expected))
    assert one.state["random"] == other.state["random"]
    assert one.model.keys() == other.model.keys()
    for key, array in other.model.items():
        np.testing.assert_allclose(one.model[key], array, rtol=0, atol=1e-7, err_msg=key)


@pytest.mark.parametrize(("name", "division"), [("roberta", dict(tp=2)), ("bart", dict(pp=2)), ("xlnet", dict(tp=2))])
def test_a_model_that_cannot_be_divided_is_refused(ranks, folder: Path, name: str, division, tmp_path: Path) -> None:
    config = run_of(name, folder, out=str(tmp_path / "run"), **division)
    errors = [outcome.error for outcome in ranks(2).outcomes(run_on, config)]
    refused = [error for error in errors if isinstance(error, InputError)]
    assert any("leave them out (--dp and --zero work)" in str(error) for error in refused)
    assert not (tmp_path / "run").exists()
