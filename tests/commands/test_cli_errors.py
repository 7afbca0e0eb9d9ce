"""The command line and hostile arguments: files, folders, names and numbers of every odd kind, each a sentence."""

from __future__ import annotations

import json
import resource
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from minillm import cli, options
from minillm.checkpoint import load_checkpoint, save_checkpoint
from minillm.cli import main
from minillm.commands.convert import Convert
from minillm.commands.gradcheck import Gradcheck
from minillm.commands.parallel import ParallelReport
from minillm.commands.profile import Profile
from minillm.commands.sample import Sample
from minillm.commands.tokenizer import TokenizerDecode, TokenizerEncode
from minillm.commands.train import Train
from minillm.errors import CheckpointError, InputError
from minillm.options import LARGEST, help_lines, options_of, read, texts_of
from minillm.training import Run
from minillm.training.config import PRESETS, TrainConfig, preset
from minillm.training.display import Display

TEXT = "the model reads a text, and then it writes what it has read; " * 40
SIZE = "--context 8 --layers 1 --heads 2 --channels 16 --batch-size 4 --eval-batches 2 --sample-every 0".split()
NANO = "train --preset nano --data text.txt --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 2".split()
KINDS = {name: cli.options_of(name) for name in cli.COMMANDS}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing changes."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    main(
        [
            "train",
            "--tokenizer",
            "char",
            "--data",
            str(folder / "text.txt"),
            "--out",
            str(folder / "run"),
            *SIZE,
            "--steps",
            "2",
        ]
    )
    return folder / "run"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


# What other tools call it


@pytest.mark.parametrize(
    ("given", "meant"),
    {
        "--learning-rate": "--lr",
        "--learning_rate": "--lr",
        "--max-steps": "--steps",
        "--max_iters": "--steps",
        "--epochs": "--steps",
        "--n-layer": "--layers",
        "--n_layer": "--layers",
        "--num-hidden-layers": "--layers",
        "--n-head": "--heads",
        "--n-embd": "--channels",
        "--hidden-size": "--channels",
        "--block-size": "--context",
        "--context-length": "--context",
        "--grad-clip": "--clip",
        "--warmup_steps": "--warmup",
        "--output-dir": "--out",
        "--dataset": "--data",
        "--batchsize": "--batch-size",
        "--learningrate": "--lr",
        "--Steps": "--steps",
    }.items(),
)
def test_a_name_of_another_tool_suggests_ours(capsys, given: str, meant: str) -> None:
    assert f"there is no option {given}; did you mean {meant}?\n" in fails(capsys, "train", given, "3")
    assert f"there is no option {given}; did you mean {meant}?\n" in fails(capsys, "train", f"{given}=3")


def test_underscores_and_dashes_are_the_same(capsys) -> None:
    for name in ("--top-k", "--top_k"):
        assert read(Sample, "sample", ["run", name, "5"]).top_k == 5
        assert read(Sample, "sample", ["run", f"{name}=5"]).top_k == 5
    assert "did you mean --max-tokens?" in fails(capsys, "sample", "x", "--max-new-tokens", "5")
    assert "did you mean" not in fails(capsys, "train", "--frobnicate", "5")


def test_every_synonym_is_of_an_option_that_is_there_and_is_none_itself() -> None:
    names = {option.name for kind in KINDS.values() for option in options_of(kind)}
    assert set(options.SYNONYMS) <= names
    assert set(LARGEST) <= {option.path[-1] for kind in KINDS.values() for option in options_of(kind)}


# Reading


def test_values_of_every_kind() -> None:
    given = read(
        Sample, "sample", ["-0.5", "--prompt", "-hello", "--top-p=0.5", "--seed", "1", "--seed", str(2**64 - 1)]
    )
    assert (given.model, given.prompt, given.top_p, given.seed) == (Path("-0.5"), "-hello", 0.5, 2**64 - 1)
    given = read(Sample, "sample", ["--prompt=--seed", "--top-k", "None", "--", "--run"])
    assert (given.model, given.prompt, given.top_k, given.temperature) == (Path("--run"), "--seed", None, 0.8)
    assert read(TokenizerDecode, "tokenizer decode", ["t", "1", "-2", "3"]).ids == (1, -2, 3)
    assert read(TokenizerEncode, "tokenizer encode", ["t", "None"]).text == "None"
    assert read(TokenizerEncode, "tokenizer encode", ["t", ""]).text == ""
    assert read(Gradcheck, "gradcheck", []) == Gradcheck()
    assert read(Convert, "convert", ["a", "b", "--dtype", "bfloat16", "--max-shard-bytes", "5000000000"]) == Convert(
        Path("a"), Path("b"), "bfloat16", 5000000000
    )
    for arguments, message in (
        (["a"], "x: OUT is missing"),
        (["a", "b", "c"], "x: 'c' is more than was expected"),
        (["a", "b", "--dtype", "float8"], "x: --dtype is 'float8'; choose one of: float32, float64, float16, bfloat16"),
        (["a", "", "b"], "x: OUT is empty; give a path"),
        (["a", "b", "--dtype"], r"x: --dtype has no value; write --dtype float32\|"),
        (["a", "b", "-q"], "x: there is no option -q; .* words after -- are never options"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            read(Convert, "x", arguments)


def test_help_has_every_option_its_text_and_what_holds_without_it(capsys, monkeypatch) -> None:
    for command, kind in KINDS.items():
        for columns in ("20", "80", "200"):
            monkeypatch.setenv("COLUMNS", columns)
            with pytest.raises(SystemExit) as raised:
                main([*command.split(), "--help"])
            assert raised.value.code == 0
            shown = capsys.readouterr().out
            texts = texts_of(kind)
            for option in options_of(kind):
                assert option.name in shown
                assert texts[option.path][1:].split()[-1] in shown
            if columns != "20":
                assert max(map(len, shown.splitlines())) <= int(columns)
    nano = list(help_lines(Train, "train", Train(**vars(preset("nano")))))
    assert any(line.startswith("  --steps NUMBER") and line.endswith("(default: 200)") for line in nano)


def test_the_help_names_every_preset(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("train", "profile"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert all(name in shown for name in PRESETS)


def test_the_version_and_the_commands_of_a_group(capsys) -> None:
    for arguments, expected in (
        (["-V"], "minillm 0.1.0\n"),
        (["--version"], "minillm 0.1.0\n"),
        (["tokenizer", "--help"], "minillm tokenizer encode "),
        (["tokenizer", "-h"], "minillm tokenizer decode "),
        (["help", "tokenizer"], "minillm tokenizer train "),
    ):
        main(arguments)
        shown = capsys.readouterr().out
        assert expected in shown
        assert "minillm train " not in shown
    for arguments, expected in (
        (["help"], "  minillm train "),
        (["help", "tokenizer", "train"], "--vocab-size NUMBER"),
    ):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 0
        assert expected in capsys.readouterr().out
    assert "tokenizer is not told what to do; choose one of: tokenizer train" in fails(capsys, "tokenizer")
    assert "there is no command 'trian'; did you mean 'train'?" in fails(capsys, "help", "trian")


def test_every_option_of_profile_does_something(here: Path, capsys) -> None:
    assert {option.path[-1] for option in options_of(Profile)} >= {"preset", "layers", "batch_size", "repeats"}
    for name in ("out", "steps", "lr", "device", "data", "resume"):
        assert f"profile: there is no option --{name};" in fails(capsys, "profile", f"--{name}", "1")
    assert "profile: batch_size is 0; give 1 or more" in fails(capsys, "profile", "--batch-size", "0")
    assert "profile: repeats is -1; give 1 or more" in fails(capsys, "profile", "--repeats", "-1")


NUMBERS = {
    int: ("-1", "0", "2147483647", "2147483648", "1e3"),
    float: ("-1", "0", "nan", "inf", "-inf", "1e-320", "1e308"),
}
SMALL = {  # with which every command is done at once
    "sample": "RUN --prompt the --max-tokens 2",
    "tokenizer encode": "RUN/tokenizer the",
    "profile": "--preset nano --repeats 1",
    "diff": "RUN RUN",
    "describe": "gpt2",
    "plan": "--parameters 1M --vocab-size 1000 --context 64",
    "convert": "RUN new",
}


@pytest.mark.parametrize("command", SMALL)
def test_numbers_of_every_size_work_or_are_a_sentence(here: Path, trained: Path, capsys, command: str) -> None:
    """With 6 GB at most; a defect would show its traceback here, as any exception but SystemExit."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, limits[1]))
    try:
        for option in options_of(KINDS[command]):
            for value in () if option.positional or option.path[-1] in SLOW else NUMBERS.get(option.kind, ()):
                words = SMALL[command].replace("RUN", str(trained)).split()
                status: object = 0
                try:
                    main([*command.split(), *words, f"{option.name}={value}"])
                except SystemExit as ended:
                    status = ended.code
                assert status in (0, 1, 2)
                error = capsys.readouterr().err
                assert error.count("\n") == (1 if status == 2 else 0), (option.name, value, error)
                shutil.rmtree("new", ignore_errors=True)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_numbers_that_no_cluster_has_are_refused(capsys) -> None:
    for option in options_of(ParallelReport):
        for value in {int: ("-1", "0", "2147483648"), float: ("-1", "0", "nan")}.get(option.kind, ()):
            if (option.name, value) != ("--nproc", "0"):
                place = [] if option.name == "--nproc" else ["--nproc", "0"]
                error = fails(capsys, "parallel-report", "gpt2", *place, f"{option.name}={value}")
                assert "; give" in error, (option.name, value)


SLOW = {"max_tokens", "repeats", "layers", "nproc"}  # a large number is much to do, and no fault


# Names


@pytest.mark.parametrize(
    "name",
    [
        "a$b_$c",
        "$\\frac$",
        "^_{",
        "你好😀",
        "-run",
        "[red]x",
        "[bold red",
        "sp ace",
        "new\nline",
        "a\\",
        ":smile:",
        "%d",
    ],
)
def test_a_run_may_have_any_name(here: Path, capsys, monkeypatch, name: str) -> None:
    """The title of the picture is the name, letter for letter, and warnings are errors here."""
    from matplotlib.axes import Axes

    titles = []
    set_title = Axes.set_title
    monkeypatch.setattr(Axes, "set_title", lambda *a, **named: titles.append((a[1], named)) or set_title(*a, **named))
    main([*NANO, "--steps", "2", "--out", name])
    shown = capsys.readouterr().out
    assert (here / name / "loss.png").stat().st_size > 1000
    assert titles == [(name, {"parse_math": False})]
    assert name in shown
    if name.startswith("-"):
        assert f"minillm sample ./{name} --prompt" in shown
    main(["sample", "--prompt", "the", "--max-tokens", "2", "--", name])
    main(["describe", "--", name])
    assert f"{name.splitlines()[-1]}" in capsys.readouterr().out.replace(" \n", "\n")
    assert f"{name} exists already" in capsys_error(capsys, [*NANO, f"--out={name}"])


def capsys_error(capsys, arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("text", ["[bold]", "a\\", "\\[", "[/]", "$x$", ":smile:"])
def test_samples_are_shown_as_they_are(trained: Path, capsys, text: str) -> None:
    run = Run.open(trained)

    class Nothing:
        validated = "validation loss"

        def summary() -> str:
            return "text"

    from minillm.training.saving import State

    display = Display(run, 1, Nothing, State(), run.config)
    capsys.readouterr()
    display.sample(text, text)
    assert capsys.readouterr().out.splitlines()[0] == text * 2


def test_files_whose_names_begin_with_a_dash(here: Path, trained: Path) -> None:
    (here / "-text.txt").write_text(TEXT)
    main(["train", "--preset", "nano", "--data", "-text.txt", "--steps", "2", "--warmup", "1", "--out", "-r"])
    main(["tokenizer", "train", "--data=-text.txt", "--kind", "char", "--", "-tok"])
    main(["tokenizer", "encode", "--", "-tok", "the"])
    assert (here / "-r" / "loss.png").exists()


# Places


@pytest.mark.parametrize("out", ["text.txt", "text.txt/x", "RUN"])
def test_out_that_cannot_be_written(here: Path, trained: Path, capsys, out: str) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    out = out.replace("RUN", str(trained))
    for command in (
        [*NANO, "--out", out],
        ["convert", trained, out],
        ["tokenizer", "train", out, "--data", "text.txt", "--kind", "char"],
        ["pipeline-picture", "--stages", "1", "--micro-batches", "1", "--out", out],
    ):
        assert len(fails(capsys, *command)) > 30
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert (here / "text.txt").read_text() == TEXT
    assert {path.name for path in here.iterdir()} == {"text.txt"}


@pytest.mark.parametrize("blocks", [1, 40])
def test_a_file_that_grows_too_large_is_a_sentence(here: Path, trained: Path, capsys, blocks: int) -> None:
    """As on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * blocks, limits[1]))
    try:
        errors = [fails(capsys, *NANO, "--steps", "2", "--channels", "128", "--out", "new")]
        errors += [fails(capsys, "convert", trained, "converted")] if blocks == 1 else []
        state, weights = {"step": 1}, {"a": np.zeros(100000)}
        with pytest.raises(
            CheckpointError, match=r"^save_checkpoint: cannot write .*; choose another place, or make room"
        ):
            save_checkpoint(here / "x.safetensors", weights, {}, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert all("arge" in error for error in errors), errors
    assert [path.name for path in here.rglob("*.tmp*")] == []


def test_a_run_that_is_half_written(here: Path, trained: Path, capsys) -> None:
    for name, damage in {
        "no config": lambda run: (run / "config.json").unlink(),
        "half a config": lambda run: (run / "config.json").write_text((run / "config.json").read_text()[:50]),
        "a list": lambda run: (run / "config.json").write_text("[]"),
        "empty": lambda run: (run / "config.json").write_text(""),
        "no tokenizer": lambda run: shutil.rmtree(run / "tokenizer"),
        "null": lambda run: (run / "config.json").write_text(json.dumps({"model": None, "steps": None})),
        "texts": lambda run: (run / "config.json").write_text(json.dumps({"steps": "many"})),
        "cut off": lambda run: [path.write_bytes(path.read_bytes()[:99]) for path in (run / "checkpoints").iterdir()],
    }.items():
        shutil.copytree(trained, here / name)
        damage(here / name)
        for command in (["train", "--resume", name], ["sample", name, "--prompt", "the"], ["convert", name, "out"]):
            assert len(fails(capsys, *command)) > 30
        assert not (here / "out").exists()


def test_a_run_without_its_checkpoints_begins_again(here: Path, trained: Path, capsys) -> None:
    shutil.copytree(trained, here / "run")
    shutil.rmtree(here / "run" / "checkpoints")
    for command in (["sample", "run", "--prompt", "the"], ["convert", "run", "out"]):
        assert len(fails(capsys, *command)) > 30
    main(["train", "--resume", "run"])
    assert "it begins again from step 0" in capsys.readouterr().out
    assert load_checkpoint(here / "run" / "checkpoints" / "last.safetensors").state["step"] > 0


@pytest.mark.parametrize(
    "settings", [["--lr", "1e10"], ["--lr", "1e300"], ["--optimizer", "sgd", "--lr", "1e38", "--clip", "1e38"]]
)
def test_a_run_that_diverges_says_so_and_keeps_its_last_good_checkpoint(
    here: Path, capsys, settings: list[str]
) -> None:
    """It goes well for 4 steps, and is then resumed at a rate that is too large; NumPy's warnings are errors here."""
    main([*NANO, "--steps", "4", "--out", "run"])
    good = (here / "run" / "checkpoints" / "last.safetensors").read_bytes()
    config = json.loads((here / "run" / "config.json").read_text())
    config |= {"lr": float(settings[settings.index("--lr") + 1]), "steps": 40, "clip": 1e38, "min_lr": 0.0}
    del config["crc32"]
    (here / "run" / "config.json").write_text(json.dumps(config))
    assert "; train again with a lower --lr" in fails(capsys, "train", "--resume", "run")
    assert (here / "run" / "checkpoints" / "last.safetensors").read_bytes() == good
    assert load_checkpoint(here / "run" / "checkpoints" / "last.safetensors").state["step"] == 4
    assert "is nan" in fails(capsys, *NANO, "--steps", "30", "--out", "new", "--min-lr", "0", *settings)


def test_memory_that_runs_out_is_a_sentence(here: Path, capsys, monkeypatch) -> None:
    def greedy(arguments: list[str]) -> None:
        np.empty(1 << 60, np.int8)

    monkeypatch.setattr("minillm.commands.gradcheck.gradcheck", greedy)
    assert "gradcheck: memory is not enough (Unable to allocate" in fails(capsys, "gradcheck")


def test_the_settings_of_a_run_are_finite() -> None:
    with warnings.catch_warnings():
        for name in ("lr", "min_lr", "weight_decay"):
            for value in (float("inf"), float("nan"), -1.0):
                with pytest.raises(InputError, match=f"train: {name} is {value}; give 0 or more"):
                    TrainConfig(**{name: value})


# What was found by typing on


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("out", 5, "not int"),
        ("data", None, "data is None; give a text"),
        ("schedule", "linear", "schedule is 'linear'; give one of: cosine, wsd"),
        ("optimizer", "lion", "optimizer is 'lion'; give one of: adamw, sgd"),
        ("dtype", "float99", "dtype is 'float99'; give one of: float32, bfloat16"),
        ("batch_size", True, "batch_size is True; give a whole number"),
        ("beta1", "x", "beta1 is 'x'; give a finite number"),
        ("preset", 7, "preset is 7; give a text"),
    ],
)
def test_settings_of_the_wrong_type_are_refused(trained: Path, tmp_path: Path, capsys, setting, value, message) -> None:
    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {setting: value}))
    assert message in fails(capsys, "train", "--resume", tmp_path / "run", "--steps", "3")


def test_settings_without_a_clip_are_read_again() -> None:
    config = TrainConfig(clip=float("inf"))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_fewer_steps_than_were_done_are_refused_and_nothing_changes(trained: Path, capsys) -> None:
    before = (trained / "config.json").read_text()
    assert "steps is 1, but" in fails(capsys, "train", "--resume", trained, "--steps", "1")
    assert (trained / "config.json").read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--decay-steps 1", "--decay-steps does nothing here; leave it out, or give --schedule wsd"),
        ("--optimizer sgd --beta1 0.5", "--beta1 does nothing here; leave it out, or give --optimizer adamw"),
        ("--optimizer sgd --beta2 0.5", "--beta2 does nothing here; leave it out, or give --optimizer adamw"),
        ("--tokenizer wordpieces", "or one of bpe, char, wordpiece, unigram, which are trained here"),
        ("--tp 2", "train: --dp 1 --tp 2 --pp 1 are 2 ranks, but there are 1; start 2 with --nproc"),
        ("--tp 0", "tp is 0; give 1 or more"),
    ],
)
def test_options_of_train_that_cannot_work(here: Path, capsys, options: str, message: str) -> None:
    assert message in fails(capsys, *NANO, "--steps", "2", *options.split())
    assert not (here / "runs").exists()


def test_commands_on_runs_that_are_not_what_they_need(here: Path, trained: Path, capsys) -> None:
    assert "has learned no conversation; continue a text with `minillm sample" in fails(capsys, "chat", trained)
    assert "sample: give another --prompt than 'Q'" in fails(capsys, "sample", trained, "--prompt", "Q")
    assert "diff: tolerance is nan; give 0 or more" in fails(capsys, "diff", trained, trained, "--tolerance", "nan")
    assert "diff: tokens is 0; give 1 or more" in fails(capsys, "diff", trained, trained, "--tokens", "0")
    shutil.copytree(trained, here / "stopped")
    (here / "stopped" / "metrics.jsonl").unlink()
    main(["convert", "stopped", "converted"])
    (here / "other").mkdir()
    (here / "other" / "config.json").write_text('{"architectures": []}')
    assert "there is no model_type" in fails(capsys, "describe", "other")
