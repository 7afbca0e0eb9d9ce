"""Adapters on several ranks: the training of one process, and only what is trained is sent and divided."""

from __future__ import annotations

import numpy as np
import pytest

from minillm.lora import is_lora, lora_state_dict
from minillm.optim import ALIGN
from minillm.parallel import data_parallel, zero
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from tests.parallel.test_equality import check
from tests.parallel.training import Case, batch, build, on_mesh

MESHES = {
    "dp2": Case(dp=2, lora=3),
    "dp2, micro-batches": Case(dp=2, lora=3, micro_batches=2),
    "dp3, recomputed": Case(dp=3, lora=3, layers=(0, 2)),
    **{f"zero{stage}": Case(dp=2, lora=3, zero=stage) for stage in (1, 2, 3)},
    "zero3, micro-batches": Case(dp=2, lora=3, zero=3, micro_batches=2),
}


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("name", MESHES)
def test_adapters_are_trained_as_in_one_process(ranks, name, model):
    case = MESHES[name]._replace(model=model, dropout=0.2 if model == "gpt2" else 0.0, steps=8)
    outcomes = ranks(case.ranks).run(on_mesh, case)
    check(outcomes, case, 1e-12)
    assert all(".lora." in key or key.startswith("ln_f") for key in outcomes[0].weights)


def rows(case: Case) -> tuple[int, int]:
    """Bytes of what is trained outside of the blocks, and in one of them, each parameter and each unit filled up."""
    units = {"": 0, "h.0": 0}
    for name, array in lora_state_dict(build(case)).items():
        unit = ".".join(name.split(".")[:2]) if name.startswith("h.") else ""
        units[unit] = units.get(unit, 0) + -(-array.size // ALIGN) * ALIGN
    filled = {unit: -(-size // (case.dp * ALIGN)) * case.dp * ALIGN * 8 for unit, size in units.items()}
    return filled[""], filled["h.0"]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_only_adapters_are_sent(ranks, stage):
    """The bytes of gradients and parameters are those of the formulas, for adapters in place of the model."""
    case = Case(dp=2, lora=3, zero=stage, steps=4)
    root, block = rows(case)
    whole = sum(parameter.data.nbytes for parameter in build(case).parameters())
    formula = zero.step_bytes(stage, root, block, 4, 2) if stage else data_parallel.step_bytes(root + 4 * block, 2)
    assert 0 < root + 4 * block < whole / 10
    for outcome in ranks(2).run(on_mesh, case):
        for what, size in formula.items():
            sent = sum(message.bytes for message in outcome.messages if message.what == what)
            assert sent / case.steps == pytest.approx(size, rel=0.1 if stage == 3 else 1e-9)
        assert outcome.memory["moments"] <= 2 * (root + 4 * block) // (2 if stage else 1)


def gathered(communicator, case):
    """Logits of the model on this rank, and of the whole one that rank 0 has for a preview."""
    model = build(case)
    parallel = ParallelModel(model, Mesh(communicator, case.dp), 0.1, case.zero)
    for unit in parallel.data.units.values():
        unit.kept_data[...] += 0.1  # as if a step had been taken
    parallel.sync_parameters()
    mine = parallel.measures([next_token_batch(*batch(case, 0))])["loss"]
    whole = parallel.gather()
    if whole is None:
        return None
    assert is_lora(whole)
    return mine[0] / mine[1], whole.eval().loss(*batch(case, 0)).item()


@pytest.mark.parametrize("stage", [0, 3])
def test_a_preview_has_the_adapters(ranks, stage):
    [(measured, shown), nothing] = ranks(2).run(gathered, Case(dp=2, lora=3, zero=stage))
    assert nothing is None
    np.testing.assert_allclose(measured, shown, rtol=1e-10)
