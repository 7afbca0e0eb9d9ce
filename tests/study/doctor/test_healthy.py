"""No alarm on healthy trainings of every kind, before the first step and after the last."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from minillm.study.doctor import examine, examine_run
from minillm.study.doctor.history import History
from minillm.training import train
from tests.study.doctor.made import Digits, alarms, found, prepared, settings

HEALTHY = ["gpt2", "llama", "bert", "bert-alone", "roberta", "xlnet", "bart", "pairs", "lora", "sft", "dpo", "reward"]
HEALTHY += ["grpo", "classify", "qa"]


@pytest.mark.parametrize("name", HEALTHY)
def test_before_the_first_step_there_is_no_alarm(name, folder) -> None:
    assert alarms(examine(*prepared(name, folder))) == []


@pytest.mark.parametrize(
    "loss", ["conservative", "robust", "hinge", "ipo", "sigmoid_norm", "simpo", "orpo", "kto", "nca_pair", "apo_down"]
)
def test_every_loss_of_preferences_begins_where_its_formula_says(loss, folder) -> None:
    config = settings("dpo", folder, loss=loss, beta=0.2)
    if loss in ("conservative", "robust"):
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, label_smoothing=0.1))
    task, model, _ = prepared("dpo", folder, loss=loss, beta=0.2)
    task.config, task.options = config, config.task
    assert alarms(examine(task, model)) == []


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "xlnet", "bart", "lora", "dpo", "grpo", "sft"])
def test_after_a_run_there_is_no_alarm(name, folder, tmp_path, monkeypatch) -> None:
    config = settings(name, folder, out=tmp_path / "run", steps=24, lr=1e-3)
    if name == "grpo":
        monkeypatch.setattr("minillm.training.tasks.grpo.GRPOTask.reward", Digits.reward)
    run = train(config, progress=False)
    assert alarms(examine_run(run.folder)) == []


def test_the_first_step_of_lora_is_explained(folder) -> None:
    """The gradient of each A is zero while B is."""
    note = found(*prepared("lora", folder))["lora-begins"]
    assert note.severity == "note"
    assert "matrices of the adapters have a gradient of zeros, which is right" in note.cause


def test_adapters_of_a_new_model_are_told(folder) -> None:
    task, model, _ = prepared("lora", folder)
    assert "the weights that the adapters leave frozen are new" in found(task, model)["untrained-base"].cause
    assert "untrained-base" not in found(task, model, trained=True)


def test_a_loss_of_grpo_near_zero_is_explained(folder) -> None:
    note = found(*prepared("grpo", folder))["loss-near-zero"]
    assert note.severity == "note"
    assert "which is right" in note.cause


def test_a_falling_probability_of_chosen_answers_is_explained() -> None:
    records = [
        {
            "step": s,
            "loss": math.log(2) - s / 100,
            "grad_norm": 1.0,
            "logps/chosen": -20.0 - s,
            "rewards/margins": s / 50,
        }
        for s in range(1, 31)
    ]
    findings = examine_run(History({"objective": "preference", "steps": 30}, records))
    assert alarms(findings) == []
    [note] = [one for one in findings if one.name == "chosen-falls"]
    assert "which is usual: the loss compares the two answers only" in note.cause


def test_the_model_is_left_as_it_was(folder) -> None:
    task, model, trained = prepared("gpt2", folder)
    before = {name: one.data.copy() for name, one in model.named_parameters()}
    examine(task, model, trained)
    for name, one in model.named_parameters():
        assert one.data.tobytes() == before[name].tobytes(), name


def test_a_run_is_read_though_its_last_line_is_cut(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"steps": 30}))
    lines = [json.dumps({"step": s, "loss": 4 - s / 20, "grad_norm": 0.5}) for s in range(1, 31)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 31, "lo')
    assert alarms(examine_run(tmp_path)) == []
