"""Faults of runs: each is planted into metrics as a healthy run writes them, and must be told in its own sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.errors import CheckpointError
from minillm.study.doctor import examine_run
from minillm.study.doctor.history import History
from minillm.study.doctor.reference import Curve, curve_of, curves, differing, same_text
from minillm.training.config import preset as config_of_preset
from tests.study.doctor.made import alarms

SETTINGS = dict(steps=400, warmup=20, lr=1e-3, clip=1.0, objective="causal", validation_fraction=0.1, data="x.txt")


def healthy(steps: int = 400, noise: float = 0.05) -> list[dict[str, Any]]:
    """The records of a run that learns: the loss falls from 4.2 to 1.6, with noise."""
    rng = np.random.default_rng(3)
    records = []
    for step in range(1, steps + 1):
        loss = 1.6 + 2.6 * math.exp(-step / (steps / 5)) + noise * rng.normal()
        one = {"step": step, "loss": loss, "val_loss": None, "lr": 1e-3, "grad_norm": 0.6 + 0.1 * rng.random()}
        one["tokens_per_s"] = 9000 * (1 + 0.05 * rng.random())
        if step % 50 == 0:
            one["val_loss"] = 1.7 + 2.6 * math.exp(-step / (steps / 5)) + 0.01 * rng.normal()
        records.append(one)
    return records


def change(records: list[dict[str, Any]], name: str, make: Any) -> None:
    """Replace a field by a function of (step, value)."""
    for one in records:
        if one.get(name) is not None:
            one[name] = make(one["step"], one[name])


def judged(records: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {one.name: one for one in examine_run(History({**SETTINGS, **changes}, records))}


def test_a_healthy_run_has_no_alarm() -> None:
    for noise in (0.0, 0.02, 0.1, 0.3):
        assert alarms(judged(healthy(noise=noise)).values()) == []


def infinite(step: int, value: float) -> float:
    return math.inf if step == 300 else value


def away(step: int, value: float) -> float:
    return value if step < 200 else value * 1.02 ** (step - 200)


PLANTED: list[tuple[str, str, Any, dict[str, Any], str]] = [
    ("not-finite", "loss", infinite, {}, "loss is inf at step 300"),
    (
        "not-finite",
        "grad_norm",
        lambda step, value: math.nan if step > 50 else value,
        {},
        "grad_norm is nan at step 51",
    ),
    ("diverging", "loss", lambda step, value: value + max(0, step - 250) * 0.02, {}, "and has risen to"),
    ("diverging", "loss", lambda step, value: value + max(0, step - 100) * 0.05, {}, "that it began with"),
    ("not-learning", "loss", lambda step, value: 4.2 + 0.001 * value, {}, "it has fallen by 0."),
    ("learning-rate-too-low", "loss", lambda step, value: 4.2 - step * 5e-4 + value * 1e-3, {}, "in a straight line"),
    (
        "plateau",
        "loss val_loss",
        lambda step, value: max(value, 2.4 + value * 1e-3),
        {},
        "the training loss stays at 2.4",
    ),
    ("overfitting", "val_loss", lambda step, value: value + max(0, step - 200) * 0.01, {}, "since step 2"),
    ("spikes", "loss", lambda step, value: value + 3 * (step in (210, 333)), {}, "jumps in 2 steps, most at step"),
    (
        "learning-rate-too-high",
        "loss",
        lambda step, value: value + 2.5 * (80 < step < 170),
        {},
        "while the learning rate was",
    ),
    ("always-clipped", "grad_norm", lambda step, value: 30 * value, {}, "the gradient is clipped in 100% of the steps"),
    (
        "vanishing-gradients",
        "grad_norm",
        lambda step, value: 1e-9,
        {},
        "in the second half of the run: nothing is learned",
    ),
    (
        "slowing-down",
        "tokens_per_s",
        lambda step, value: value / (1 + (step > 250)),
        {},
        "tokens/s in its last quarter",
    ),
    ("validation-gap", "val_loss", lambda step, value: value + 1.5, {}, "the validation data are of another kind"),
    ("stopped", "grad_norm", lambda step, value: value * 10 ** max(0, step - 397), {"steps": 900}, "it ran away"),
]


@pytest.mark.parametrize(("name", "field", "make", "changes", "sentence"), PLANTED)
def test_a_fault_of_a_run_is_found(name, field, make, changes, sentence) -> None:
    records = healthy()
    for one in field.split():
        change(records, one, make)
    findings = judged(records, **changes)
    assert name in findings, alarms(findings.values())
    assert sentence in findings[name].cause
    assert findings[name].is_alarm


def test_a_run_that_diverges_is_told_to_lower_its_rate_and_nothing_else() -> None:
    records = healthy()
    for one in records:
        one["loss"], one["grad_norm"], one["val_loss"] = 1e6 * 1.02 ** one["step"], 1e9, None
    findings = judged(records)
    assert alarms(findings.values()) == [f"diverging: {findings['diverging'].cause}"]


def cosine(step: int) -> float:
    """A learning rate with warmup, and half a cosine to a tenth."""
    return 1e-5 * (step / 20 if step < 20 else 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 20) / 380)) / 2)


def test_a_low_rate_is_found_behind_its_schedule() -> None:
    """The loss falls with each step's rate: flat in the warmup and at the end, though nothing has converged."""
    records, way, total = healthy(), 0.0, sum(cosine(step) for step in range(1, 401))
    for one in records:
        one["lr"] = cosine(one["step"])
        way += one["lr"]
        one["loss"] = 4.6 - 0.08 * way / total + 0.02 * (one["loss"] % 0.01) / 0.01
        one["val_loss"] = None
    assert "each step is too small" in judged(records)["learning-rate-too-low"].cause


def test_a_run_that_slows_down_for_a_moment_is_none_that_slows_down() -> None:
    for seconds, told in ((0.01, False), (1.0, True)):
        records = healthy()
        for one in records:
            one["tokens_per_s"] = 9000.0 / (1 + (one["step"] > 250))
            one["seconds"] = seconds * one["step"]
        assert ("slowing-down" in judged(records)) == told


def test_the_step_of_overfitting_is_that_of_the_best_validation() -> None:
    records = healthy()
    change(records, "val_loss", lambda step, value: value + max(0, step - 200) * 0.01)
    best = min((one for one in records if one["val_loss"] is not None), key=lambda one: one["val_loss"])
    assert f"since step {best['step']} the training loss has fallen" in judged(records)["overfitting"].cause


def test_an_unfinished_run_is_a_note() -> None:
    findings = judged(healthy(), steps=1000)
    assert findings["unfinished"].severity == "note"
    assert "has done 400 of 1000 steps" in findings["unfinished"].cause


def answers(steps: int = 60, **columns: Any) -> list[dict[str, Any]]:
    """Records of a run on answers; each column is a function of the step."""
    rows = []
    for step in range(1, steps + 1):
        rows.append(
            {"step": step, "loss": 0.0, "grad_norm": 0.5} | {name: make(step) for name, make in columns.items()}
        )
    return rows


GRPO = {
    "frac_reward_zero_std": lambda step: 0.2,
    "completions/clipped_ratio": lambda step: 0.1,
    "ratio_error": lambda step: 1e-6,
    "reward": lambda step: 0.1 + step / 100 + 0.01 * (step % 2),
}


@pytest.mark.parametrize(
    ("changes", "name", "sentence"),
    [
        ({"ratio_error": lambda step: 0.2}, "wrong-ratio", "scored by other probabilities than they were drawn from"),
        (
            {"frac_reward_zero_std": lambda step: 1.0, "reward": lambda step: 0.0},
            "equal-rewards",
            "100% of the groups had equal rewards (mean 0.00)",
        ),
        (
            {"completions/clipped_ratio": lambda step: 1.0, "reward": lambda step: 0.1 * (step % 2)},
            "answers-never-end",
            "100% of the answers do not end within",
        ),
        ({"reward": lambda step: 0.9 - step / 100 + 0.01 * (step % 2)}, "reward-falls", "the mean reward has fallen"),
        ({"kl": lambda step: step / 2.0}, "far-from-start", "it has forgotten what it could"),
    ],
)
def test_a_fault_of_grpo_is_found(changes, name, sentence) -> None:
    settings = {"objective": "grpo", "steps": 60}
    assert alarms(examine_run(History(settings, answers(**GRPO)))) == []
    findings = {one.name: one for one in examine_run(History(settings, answers(**{**GRPO, **changes})))}
    assert sentence in findings[name].cause
    assert findings[name].is_alarm


def test_preferences_the_wrong_way_round_are_found() -> None:
    columns = {
        "rewards/margins": lambda step: -step / 10 + 0.01 * (step % 2),
        "logps/chosen": lambda step: -20.0 - step,
    }
    findings = {one.name: one for one in examine_run(History({"objective": "preference"}, answers(**columns)))}
    assert "the model learns the worse answers" in findings["margin-falls"].cause


def test_pairs_that_are_learned_by_heart_are_found() -> None:
    columns = {"rewards/margins": lambda step: step / 10 + 0.01 * (step % 2), "logps/chosen": lambda step: -20.0}
    records = answers(**columns)
    for one in records[::15]:
        one |= {"val_loss": 0.7, "val_rewards/accuracies": 0.4}
    findings = {one.name: one for one in examine_run(History({"objective": "preference"}, records))}
    assert "of the held-out pairs only 40% are ordered rightly" in findings["pairs-by-heart"].cause


def test_a_classifier_that_knows_its_texts_by_heart_is_found() -> None:
    records = [{"step": s, "loss": 0.7 * math.exp(-s / 20), "grad_norm": 0.1} for s in range(1, 201)]
    for one in records[::40]:
        one |= {"val_loss": 0.8, "val_accuracy": 0.55}
    findings = {one.name: one for one in examine_run(History({"objective": "classify", "steps": 200}, records))}
    assert "55% of the held-out texts are right, after 55% at the first" in findings["texts-by-heart"].cause


@pytest.mark.parametrize("missing", ["config.json", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_refused(missing, tmp_path: Path) -> None:
    for name in {"config.json", "metrics.jsonl"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"doctor: .* has no {missing}; give a folder that `minillm train` made"):
        examine_run(tmp_path)


@pytest.mark.parametrize(
    "metrics", ["", None, '{"step": "x", "loss": 1}\n[1]\n"a"\n{"step": 3}\n{"step": 4, "loss": "x"}']
)
def test_a_run_without_a_step_is_told(metrics, tmp_path: Path) -> None:
    """A run that was killed before its first step has made its folder for checkpoints, and no metrics.jsonl yet."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints").mkdir()
    if metrics is not None:
        (tmp_path / "metrics.jsonl").write_text(metrics)
    [finding] = examine_run(tmp_path)
    assert finding.name == "no-steps"


def test_a_damaged_line_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    lines = [json.dumps(one) for one in healthy()]
    lines[7] = '{"step": 8, "loss": "oops"}'
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert alarms(examine_run(tmp_path)) == []


def test_settings_that_are_no_object_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match=r"config\.json holds no JSON object"):
        examine_run(tmp_path)


# Layers that --watch has looked at


@pytest.mark.parametrize(
    ("layer", "field", "value", "name", "sentence"),
    [
        ("h.1.mlp", "ratio", 0.4, "large-updates", "a step moves the weights of h.1.mlp by 40% of their size"),
        ("h.1.mlp", "ratio", 1e-9, "no-updates", "(1 layer by less than 1e-06): they do not learn"),
        (
            "h.0.mlp",
            "gradient",
            1e-8,
            "vanishing-gradients",
            "the gradient of the output of h.0.mlp is 1.0e-05 of that",
        ),
        ("h.0.mlp", "activation", 1e6, "huge-output", "the output of h.0.mlp has the size 1.0e+06"),
        ("h.1.mlp", "zeros", 0.99, "dead-units", "99% of the output of h.1.mlp are zeros"),
    ],
)
def test_a_fault_that_was_watched_is_found(layer, field, value, name, sentence, tmp_path: Path) -> None:
    usual = {"activation": 1.0, "zeros": 0.1, "gradient": 1e-3, "ratio": 1e-3}
    (tmp_path / "config.json").write_text(json.dumps(SETTINGS))
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, healthy())))
    for planted in (False, True):
        layers = {"h.0.mlp": dict(usual), "h.1.mlp": dict(usual)}
        layers[layer][field] = value if planted else usual[field]
        lines = [json.dumps({"step": step, "seconds": 0.1, "layers": layers}) for step in range(20, 401, 20)]
        (tmp_path / "watch.jsonl").write_text("\n".join(lines))
        findings = {one.name: one for one in examine_run(tmp_path)}
        assert (name in findings) == planted
    assert sentence in findings[name].cause


# The curves of the presets


def run_like(curve: Curve, shift: float = 0.0) -> History:
    """A run whose validation losses are those of the first run of a curve, moved by a share."""
    rows = [
        {"step": step, "loss": loss, "val_loss": loss * (1 + shift), "grad_norm": 0.5}
        for step, loss in zip(curve.steps, curve.losses[0], strict=True)
    ]
    return History(dict(curve.settings), rows)


def test_there_is_a_curve_for_each_small_preset() -> None:
    assert {"nano", "llama-nano", "bert-nano", "roberta-nano", "xlnet-nano", "bart-nano"} <= set(curves())


@pytest.mark.parametrize("preset", curves())
def test_a_run_of_a_preset_is_normal_and_one_that_is_not_is_found(preset) -> None:
    curve = curve_of(preset)
    assert curve is not None
    usual = {one.name: one for one in examine_run(run_like(curve))}
    assert "the loss is normal" in usual["usual-loss"].cause
    assert not usual["usual-loss"].is_alarm
    for shift, kind in ((0.6, "higher"), (-0.6, "lower")):
        unusual = {one.name: one for one in examine_run(run_like(curve, shift))}
        assert f"{kind} than the" in unusual["unusual-loss"].cause
        assert unusual["unusual-loss"].is_alarm


def test_a_run_with_other_settings_is_not_compared() -> None:
    curve = curve_of("nano")
    assert curve is not None
    history = run_like(curve, 0.6)
    history.settings["lr"] = 0.5
    findings = {one.name: one for one in examine_run(history)}
    assert "unusual-loss" not in findings
    assert "because it differs in lr" in findings["no-comparison"].cause


def test_a_setting_that_came_later_does_not_differ() -> None:
    """Neither a curve that is older than the setting nor a run that is; but a run that uses it does."""
    curve = curve_of("nano")
    assert curve is not None
    old, now = dict(curve.settings), json.loads(json.dumps(config_of_preset("nano").to_json()))
    old["task"], now["task"] = {}, {**now["task"], "length": None}
    assert differing(old, curve) == differing(now, curve) == []
    assert differing(old, curve._replace(settings=now)) == []
    assert differing({**now, "task": {**now["task"], "length": 7}}, curve) == ["task"]


def test_another_text_is_allowed_more() -> None:
    curve = curve_of("nano")
    assert curve is not None
    assert not same_text(History({"data": "mine.txt"}, []), curve)


@pytest.mark.parametrize("preset", curves())
def test_a_curve_has_the_settings_of_its_preset(preset) -> None:
    """Whoever changes a preset trains its curve anew."""
    curve = curve_of(preset)
    assert curve is not None
    assert differing(json.loads(json.dumps(config_of_preset(preset).to_json())), curve) == []
