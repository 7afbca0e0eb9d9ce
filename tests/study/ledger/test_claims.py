"""Every claim of the ledger holds on healthy models of all families, or says why it does not apply."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from minillm.errors import InputError
from minillm.models.gpt2 import GPT2
from minillm.study.ledger import CLAIMS, Claim, Verdict, check, open_subject
from minillm.study.ledger.claim import DoesNotApply, Measured, judge
from minillm.study.ledger.rounding import bound_of, compared, sensitivity_of
from minillm.study.ledger.steps import trained

DIVIDED = ("dp", "zero1", "zero2", "zero3", "tp", "pp")  # each starts processes, and has a test of its own
SLOW = ("ops", "kernels", *DIVIDED)  # compile kernels, or check the whole table
QUICK = [name for name in CLAIMS if name not in SLOW]
ENCODER = {"packed", "kv-cache"}  # what says nothing about a model that sees a whole text
HEAD = ENCODER | {"resumed"}
WITHOUT = {  # the claims that do not apply
    "gpt2": set(),
    "llama": {"dropout"},
    "bert": ENCODER,
    "bart": {"packed"},
    "xlnet": ENCODER,
    "classifier": HEAD,
    "answers": HEAD,
    "tags": HEAD,
    "reward": HEAD | {"dropout", "mask"},
    "body": HEAD,
}


def verdicts(model: Path | str, text: Path, names: list[str]) -> dict[str, Verdict]:
    with open_subject(str(model), "", str(text)) as subject:
        return {verdict.claim: verdict for name in names for verdict in check(subject, name)}


@pytest.mark.parametrize("name", WITHOUT)
def test_healthy_models(name, folders, text):
    found = verdicts(folders / name, text, QUICK)
    failed = {one.claim: one for one in found.values() if one.verdict == "fails"}
    assert not failed
    assert {one.claim for one in found.values() if one.verdict == "does not apply"} == WITHOUT[name]
    for one in found.values():
        if one.verdict == "holds":
            assert one.difference <= one.bound < 1e-2
            assert one.seconds > 0
        else:
            assert one.difference is None
            assert len(one.remark.split()) > 3  # the reason


def test_a_claim_alone_is_measured_as_among_the_others(folders, text):
    together = verdicts(folders / "gpt2", text, QUICK)
    for name in QUICK:
        [alone] = verdicts(folders / "gpt2", text, [name]).values()
        assert alone[:6] == together[name][:6]


@pytest.mark.parametrize(
    ("model", "claim"), [("gpt2", "dp"), ("bert", "zero3"), ("llama", "tp"), ("gpt2", "pp"), ("bart", "tp")]
)
def test_two_ranks(model, claim, folders, text):
    [verdict] = verdicts(folders / model, text, [claim]).values()
    if model == "bart":
        assert verdict.remark == "only models of the next token are divided, and Bart is none"
    else:
        assert (verdict.verdict, verdict.bound > 0) == ("holds", True), verdict


@pytest.mark.parametrize("preset", ["nano", "roberta-nano"])
def test_a_preset_of_a_training(preset, text):
    with open_subject(None, preset, str(text)) as subject:
        found = [verdict for name in ("gradient", "fast", "resumed") for verdict in check(subject, name)]
        assert [one.verdict for one in found] == ["holds"] * 3, found
        assert found[0].command == f"minillm check --preset {preset} --data {text} --only gradient"


def test_weights_of_a_preset_hide_nothing(text):
    """Biases of 0 would hide one that is left out, and norms of 1 a forgotten factor."""
    with open_subject("gpt2-nano", "", str(text)) as subject:
        for name, array in subject.model().state_dict().items():
            assert np.ptp(array) > 0, name
        np.testing.assert_array_equal(
            subject.model("float32").wte.weight.data, subject.model("float32").wte.weight.data
        )
        assert isinstance(subject.model(), GPT2)


def test_the_batch_is_of_the_text_and_uneven(folders, text):
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        assert subject.text[:20] in text.read_text()
        assert subject.batch["ids"].shape == (5, 32)  # neither 2 ranks nor 3 parts get equal numbers of rows


# --- what a claim is made of -----------------------------------------------------------------------------------------


def measured(value: Measured | Exception) -> Verdict:
    class Empty:
        command = "minillm check --preset nano"

    def measure(subject):
        if isinstance(value, Exception):
            raise value
        return value

    return judge(Claim("one", "a sentence", measure, "`{step} --lens` shows it"), Empty())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Measured(0.0, 0.0), "holds"),
        (Measured(1e-9, 0.0), "fails"),
        (Measured(1e-9, 1e-8), "holds"),
        (Measured(2e-8, 1e-8), "fails"),
        (Measured(math.nan, 1e-8), "fails"),
        (Measured(math.inf, 1e-8), "fails"),
        (Measured(0.0, 1.0), "fails"),  # a bound that everything would pass
        (Measured(0.0, math.nan), "fails"),
        (DoesNotApply("it has no cache"), "does not apply"),
        (ValueError("shapes"), "fails"),
    ],
)
def test_verdicts(value, expected):
    found = measured(value)
    assert found.verdict == expected
    assert found.command == "minillm check --preset nano --only one"
    assert ("`minillm step --preset nano --lens` shows it" in found.remark) == (expected == "fails")
    if isinstance(value, ValueError):
        assert found.remark == "ValueError: shapes; `minillm step --preset nano --lens` shows it"


def test_differences_count_by_the_largest_number_of_their_kind():
    a = {"gradient": {"w": np.array([100.0, 1.0]), "b": np.array([1e-3])}, "loss": {"": np.array([2.0])}}
    b = {"gradient": {"w": np.array([100.0, 1.0]), "b": np.array([2e-3])}, "loss": {"": np.array([2.0])}}
    assert compared(b, a) == (pytest.approx(1e-5), "gradient b")
    assert compared(a, a) == (0.0, "")
    for wrong in ({"gradient": a["gradient"]}, a | {"loss": {"": np.array([np.nan])}}, a | {"loss": {"": np.zeros(2)}}):
        assert compared(wrong, a)[0] == math.inf
    zeros = {"gradient": {"w": np.zeros(2), "b": np.zeros(1)}, "loss": {"": np.zeros(1)}}
    assert compared(zeros, a)[0] == 1.0
    assert compared(a, zeros)[0] == math.inf


def test_a_bound_is_above_rounding_and_far_below_a_fault(folders, text):
    """A bound follows the dtype, and what a wrong factor of 1e-9 in one layer norm would change is beyond it."""
    with open_subject(str(folders / "gpt2"), "", str(text)) as subject:
        double, single = (bound_of(subject.size, subject.sensitivity, dtype) for dtype in ("float64", "float32"))
        assert single / double == 2.0**29  # of their roundoffs
        assert 1e-15 < double < 1e-11
        assert 1 < subject.sensitivity < 100
        model = subject.model()
        model.h[0].ln_1.weight.data *= 1 + 1e-9
        assert compared(trained(subject.training, model), subject.reference)[0] > double
        assert bound_of(subject.size, 0.0) == bound_of(subject.size, 1.0)


def test_sensitivity_is_that_of_a_function_that_is_known():
    """A power of 8 enlarges relative changes by 8."""

    class Parameter:
        requires_grad, shape = True, (1000,)

        def __init__(self):
            self.data = np.full(1000, 2.0)

    class Model:
        def __init__(self):
            self.parameter = Parameter()

        def parameters(self):
            return [self.parameter]

    def outcome(model):
        return {"": {"": model.parameter.data**8}}

    assert sensitivity_of(outcome, Model(), outcome(Model())) == pytest.approx(8, rel=1e-6)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_an_unknown_claim(folders, text):
    with (
        open_subject(str(folders / "gpt2"), "", str(text)) as subject,
        pytest.raises(InputError, match="check: there is no claim 'kvcache'; did you mean 'kv-cache'"),
    ):
        list(check(subject, "kvcache"))
