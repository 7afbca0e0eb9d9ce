"""`minillm doctor`: what it is given, what it prints, its pictures and its exit status; and the range test."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from minillm.cli import main
from minillm.commands.doctor import settings_of
from minillm.commands.finetune import FinetuneDpo, FinetuneSft
from minillm.commands.finetune_heads import FinetuneClassify
from minillm.errors import InputError
from minillm.study.doctor import Finding, lines_of, summary
from minillm.study.doctor.rates import Rates, judged, range_test
from minillm.training import train
from tests.study.doctor.made import prepared, settings


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Path:
    """A run of a few steps."""
    config = settings("gpt2", folder, out=tmp_path_factory.mktemp("runs") / "run", lr=1e-3)
    return train(dataclasses.replace(config, steps=12), progress=False).folder


SMALL = ["--layers", "1", "--channels", "16", "--heads", "2", "--context", "16", "--batch-size", "4", "--steps", "20"]


def test_a_healthy_preset_ends_with_status_0(capsys, folder) -> None:
    main(["doctor", "--preset", "nano", "--data", str(folder / "text.txt"), *SMALL])
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 errors, 0 warnings, 0 notes (")


def test_an_error_ends_with_status_1_and_says_what_to_do(capsys, folder) -> None:
    with pytest.raises(SystemExit) as end:
        main(["doctor", "nano", "--data", str(folder / "text.txt"), "--lr", "3", *SMALL])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert printed.startswith("error learning-rate: lr=3 moves a weight")
    assert "\n  do: give --lr 0.001 or so" in printed
    assert "\n  see: lr and grad_norm in metrics.jsonl" in printed


def test_json_has_every_finding(capsys, folder) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "nano", "--json", "--data", str(folder / "text.txt"), "--lr", "0", *SMALL])
    found = json.loads(capsys.readouterr().out)
    assert (found["errors"], found["warnings"]) == (1, 0)
    assert found["findings"][0]["name"] == "learning-rate"
    assert found["findings"][0].keys() == {"severity", "name", "cause", "remedy", "see"}


@pytest.mark.parametrize("tokenizer", ["bpe", "wordpiece", "unigram"])
def test_the_bar_of_a_new_tokenizer_is_no_part_of_the_json(tokenizer, capsys, folder) -> None:
    small = [*SMALL, "--tokenizer", tokenizer, "--vocab-size", "300"]
    main(["doctor", "--json", "--data", str(folder / "text.txt"), *small])
    assert json.loads(capsys.readouterr().out)["errors"] == 0


def test_a_run_is_read_and_drawn(capsys, run) -> None:
    main(["doctor", str(run)])
    printed = capsys.readouterr().out
    assert "0 errors, 0 warnings" in printed
    assert (run / "doctor.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_data_are_gone_is_read_all_the_same(capsys, run, tmp_path) -> None:
    main(["doctor", str(run), "--data", "gone.txt", "--picture", str(tmp_path / "mine.png")])
    assert "note not-examined: model and data of the run were not looked at" in capsys.readouterr().out
    assert (tmp_path / "mine.png").is_file()


def test_a_run_that_went_wrong_ends_with_status_1(capsys, run, tmp_path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text((run / "config.json").read_text())
    (bad / "tokenizer").symlink_to(run / "tokenizer")
    (bad / "checkpoints").symlink_to(run / "checkpoints")
    lines = [json.dumps({"step": s, "loss": 4 - s / 10 if s < 9 else float("nan")}) for s in range(1, 13)]
    (bad / "metrics.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(bad)])
    assert end.value.code == 1
    assert "error not-finite: loss is nan at step 9" in capsys.readouterr().out


@pytest.fixture
def copy_of_the_run(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_damaged_checkpoint_is_an_error_beside_the_metrics(capsys, copy_of_the_run) -> None:
    for path in (copy_of_the_run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(copy_of_the_run)])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    assert "error not-examined: model and data of the run were not looked at" in printed
    assert "restore the file from a copy, or train again" in " ".join(printed.split())
    assert (copy_of_the_run / "doctor.png").is_file()


def test_the_weights_of_a_run_that_diverged_are_not_looked_at(capsys, copy_of_the_run) -> None:
    lines = [json.dumps({"step": s, "loss": 4.0 + s, "grad_norm": 1.0}) for s in range(1, 61)]
    (copy_of_the_run / "metrics.jsonl").write_text("\n".join(lines))
    for path in (copy_of_the_run / "checkpoints").iterdir():
        path.write_bytes(b"lost")
    with pytest.raises(SystemExit):
        main(["doctor", str(copy_of_the_run)])
    printed = capsys.readouterr().out
    assert printed.startswith("error diverging: ")
    assert "not-examined" not in printed


def test_a_run_that_has_saved_nothing_yet_is_examined_as_a_new_one(capsys, copy_of_the_run) -> None:
    shutil.rmtree(copy_of_the_run / "checkpoints")
    (copy_of_the_run / "checkpoints").mkdir()
    lines = (copy_of_the_run / "metrics.jsonl").read_text().splitlines()
    (copy_of_the_run / "metrics.jsonl").write_text("\n".join(lines[:3]))
    main(["doctor", str(copy_of_the_run)])
    assert "note unfinished: the run has done 3 of 12 steps" in capsys.readouterr().out


def test_a_model_to_start_from_is_a_trained_one(capsys, run, folder) -> None:
    """The run's checkpoint as a model for further training; its loss is below that of a uniform guess."""
    main(["doctor", str(run / "checkpoints" / "best.safetensors"), "--data", str(folder / "text.txt"), "--steps", "20"])
    assert "0 errors" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "objective", "architecture"),
    [
        (["nano"], "causal", "gpt2"),
        (["bert-nano"], "masked", "bert"),
        (["--preset", "bart-nano"], "denoising", "bart"),
        (["--model", "llama"], "causal", "llama"),
        (["gpt2-medium"], "causal", "gpt2"),
        (["llama-nano", "--objective", "sft", "--data", "x.jsonl"], "sft", "llama"),
        (["nano", "--objective", "preference", "--data", "pairs.jsonl", "--loss", "ipo"], "preference", "gpt2"),
    ],
)
def test_the_settings_are_those_of_a_training(arguments, objective, architecture) -> None:
    given, run = settings_of(arguments)
    assert (given.objective, given.architecture, run) == (objective, architecture, None)


@pytest.mark.parametrize("model", ["bert-nano", "bert-tiny"])
def test_classes_are_those_of_the_data(model, folder) -> None:
    given, _ = settings_of([model, "--objective", "classify", "--data", str(folder / "classes.jsonl"), "--steps", "50"])
    assert given.model.label_names == ("bad", "good")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nanno", "did you mean 'nano'"),
        ("runs/mine", "give a folder with config.json"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, hint) -> None:
    with pytest.raises(InputError, match=f"doctor: {name} is no preset, and no folder or file of this name.*; {hint}"):
        settings_of([name])


def test_a_family_is_no_model() -> None:
    with pytest.raises(InputError, match=r"doctor: bert is a family and no model; .*doctor --model bert"):
        settings_of(["bert"])


@pytest.mark.parametrize("words", [["--tokenizer", "char"], ["--layers", "7"], ["--model", "llama"], ["--lora", "2"]])
def test_what_a_run_keeps_is_refused(words, run) -> None:
    option = "lora" if words[0] == "--lora" else words[0].removeprefix("--")
    with pytest.raises(InputError, match=f"doctor: --{option} does nothing here, as .* is a run and keeps its own"):
        settings_of([str(run), *words])


def test_a_picture_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="doctor: --picture does nothing here: a run is drawn, and --lr-range"):
        settings_of(["nano", "--picture", "x.png"])


def test_a_picture_that_cannot_be_written_hides_no_finding(capsys, run, monkeypatch) -> None:
    """The run is somebody else's, and its folder read-only."""

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("minillm.study.doctor.pictures.draw_run", refuse)
    main(["doctor", str(run)])
    printed = capsys.readouterr()
    assert "0 errors" in printed.out
    assert "doctor.png cannot be written (Permission denied); give --picture PATH" in printed.err


def test_the_place_of_the_picture_is_told(capsys, run) -> None:
    main(["doctor", str(run)])
    assert f"picture: {run / 'doctor.png'}" in capsys.readouterr().err


def test_the_rate_of_a_run_is_judged_by_its_curves(capsys, run, folder, copy_of_the_run) -> None:
    """A rate that looks too high before a training is no fault of one that has learned with it; another rate is."""
    settings_before = json.loads((copy_of_the_run / "config.json").read_text())
    del settings_before["crc32"]
    (copy_of_the_run / "config.json").write_text(json.dumps({**settings_before, "lr": 2.0}))
    main(["doctor", str(copy_of_the_run)])
    assert "learning-rate:" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["doctor", str(copy_of_the_run), "--lr", "3"])
    assert "error learning-rate: lr=3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "kind", "lr"),
    [
        (["nano", "--objective", "sft", "--data", "x.jsonl"], FinetuneSft, 2e-5),
        (["nano", "--objective", "sft", "--data", "x.jsonl", "--lora", "2"], FinetuneSft, 2e-4),
        (["nano", "--objective", "preference", "--data", "x.jsonl"], FinetuneDpo, 1e-6),
        (["bert-nano", "--objective", "classify", "--data", "classes.jsonl"], FinetuneClassify, 5e-4),
    ],
)
def test_a_tuning_has_the_defaults_of_its_command(arguments, kind, lr, folder, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    given, _ = settings_of(arguments)
    default = kind()
    assert (given.steps, given.batch_size, given.weight_decay) == (
        default.steps,
        default.batch_size,
        default.weight_decay,
    )
    assert given.lr == pytest.approx(lr)
    assert (given.warmup, given.min_lr) == (default.steps // 10, pytest.approx(lr / 10))


def test_a_model_and_a_preset_are_one_too_many() -> None:
    with pytest.raises(InputError, match="doctor: nano and --preset llama-nano are two models; leave one of them out"):
        settings_of(["nano", "--preset", "llama-nano"])


def test_the_model_stands_first() -> None:
    with pytest.raises(InputError, match=r"doctor: write nano first: minillm doctor nano \.\.\."):
        settings_of(["--lr", "1", "nano"])


def test_the_range_test_finds_rates_that_work(capsys, folder) -> None:
    main(["doctor", "nano", "--data", str(folder / "text.txt"), "--lr-range", *SMALL])
    assert "note learning-rate-range: the loss is lowest" in capsys.readouterr().out
    assert Path("lr-range.png").read_bytes().startswith(b"\x89PNG")


def test_the_range_test_puts_the_weights_back(folder) -> None:
    task, model, _ = prepared("gpt2", folder)
    before = {name: one.data.copy() for name, one in model.named_parameters()}
    rates = range_test(task, model, 20)
    assert len(rates.rates) == len(rates.losses) == len(rates.smooth) > 10
    for name, one in model.named_parameters():
        assert one.data.tobytes() == before[name].tobytes(), name


def test_the_range_test_of_sampled_answers_is_refused(folder) -> None:
    task, model, _ = prepared("grpo", folder)
    with pytest.raises(InputError, match="doctor: the loss of grpo says nothing of a learning rate"):
        range_test(task, model)


def curve(lowest: float, breaks: bool = True, falls: float = 2.0) -> Rates:
    """A loss that falls around a rate, and rises a decade behind it."""
    rates = np.logspace(-6, 0, 100)
    far = np.log10(rates / lowest)
    losses = 5 - falls / (1 + np.exp(-4 * (far + 1))) + (20 * np.maximum(0, far - 0.5) if breaks else 0.0)
    return Rates(rates, losses, losses)


@pytest.mark.parametrize(
    ("rates", "lr", "severity", "sentence"),
    [
        (curve(1e-2), 1e-3, "note", "is among the rates that work"),
        (curve(1e-2), 0.5, "warning", "lr=0.5 is too high"),
        (curve(1e-2), 1e-6, "warning", "lr=1e-06 is too low"),
        (curve(1e-2, breaks=False, falls=0.01), 1e-3, "error", "the model does not learn"),
    ],
)
def test_a_rate_is_judged_by_the_range(rates, lr, severity, sentence) -> None:
    [finding] = judged(rates, lr)
    assert finding.severity == severity
    assert sentence in finding.cause


def test_errors_come_first_and_lines_are_short() -> None:
    found = [Finding("note", "a", "word " * 40, "do"), Finding("error", "b", "cause", "remedy", "see")]
    lines = list(lines_of(found))
    assert lines[:3] == ["error b: cause", "  do: remedy", "  see: see"]
    assert max(map(len, lines)) <= 100
    assert summary(found) == "1 error, 0 warnings, 1 note"
