"""The command line: what each command prints and writes, and one sentence with status 2 for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import minillm
from minillm import ops
from minillm.chat import Conversation, chat_template
from minillm.checkpoint import load_checkpoint
from minillm.cli import COMMANDS, main
from minillm.data import open_tokens
from minillm.engine import engine
from minillm.generate import generate
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.study import gradcheck
from minillm.tokenizers import BPETokenizer, CharacterTokenizer, Tokenizer
from minillm.training import Run, TrainConfig
from minillm.training.config import preset
from minillm.training.prepare import build

TEXT = "the model reads a text, and then it writes what it has read; " * 40
SIZE = "--context 8 --layers 1 --heads 2 --channels 16 --steps 4 --batch-size 4 --eval-batches 2 --sample-every 0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two finished runs, by characters and by bytes, and their text."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text(TEXT)
    (folder / "umlauts.txt").write_text("äöü€😀 " * 200)
    main(["train", "--data", f"{folder}/text.txt", "--out", f"{folder}/char", "--tokenizer", "char", *SIZE.split()])
    main(["train", "--data", f"{folder}/umlauts.txt", "--out", f"{folder}/bpe", "--vocab-size", "257", *SIZE.split()])
    return SimpleNamespace(text=folder / "text.txt", char=folder / "char", bpe=folder / "bpe")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(*folders: Path) -> dict[str, bytes | None]:
    return {
        str(path): path.read_bytes() if path.is_file() else None for folder in folders for path in folder.rglob("*")
    }


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What a command writes to stderr that ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        main([str(argument) for argument in arguments])
    assert raised.value.code == 2
    return capsys.readouterr().err


def assert_one_sentence(error: str) -> None:
    assert error.endswith("\n")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    assert not re.search(r"[.!?] [A-Z]", error), f"more than one sentence: {error}"
    assert len(error) > 30


# Bad input


def write_inputs(folder: Path, runs: SimpleNamespace) -> None:
    """Files and folders with something wrong."""
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text(" \n\t\n")
    (folder / "binary.txt").write_bytes(b"text \xff\xfe\x00 text")
    (folder / "short.txt").write_text("too short")
    (folder / "good.txt").write_text(TEXT)
    (folder / "bad.jsonl").write_text('{"text": "one"}\n{"text": \n')
    (folder / "records.jsonl").write_text('{"body": "one"}\n')
    (folder / "folder").mkdir()
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("mine")
    (folder / "folder" / "picture.png").write_bytes(b"\x89PNG")
    for name, change in {"wider": {"channels": 32}, "strange": {"layer": 2}}.items():
        config = json.loads((runs.char / "config.json").read_text())
        config["model"] |= change
        del config["crc32"]  # as of a run that was changed by hand
        (folder / name / "checkpoints").mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        (folder / name / "tokenizer").symlink_to(runs.char / "tokenizer")
        for checkpoint in ("last", "best"):
            source = runs.char / "checkpoints" / f"{checkpoint}.safetensors"
            (folder / name / "checkpoints" / source.name).write_bytes(source.read_bytes())
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text((runs.char / "config.json").read_text())
    (folder / "damaged" / "tokenizer").symlink_to(runs.char / "tokenizer")
    (folder / "damaged" / "checkpoints").mkdir()
    for checkpoint in ("last", "best"):
        content = (runs.char / "checkpoints" / f"{checkpoint}.safetensors").read_bytes()
        (folder / "damaged" / "checkpoints" / f"{checkpoint}.safetensors").write_bytes(content[:-9])


NANO = "train --preset nano --steps 1 --out new/run"
LONG = "x" * 300
BAD = [
    # texts
    (f"{NANO} --data missing.txt", r"there is no file or folder missing\.txt, seen from .*; give a text file"),
    (f"{NANO} --data empty.txt", r"empty\.txt is empty or has nothing but whitespace \(0 bytes"),
    (f"{NANO} --data blank.txt", r"blank\.txt is empty or has nothing but whitespace"),
    (f"{NANO} --data binary.txt", r"binary\.txt is not text: byte 0xff at offset 5; text must be UTF-8"),
    (f"{NANO} --data short.txt", r"the training text has 8 tokens, but a context of 32 needs at least 33; give more"),
    (f"{NANO} --data folder", r"the folder folder has no \.txt, \.md, \.jsonl file"),
    (f"{NANO} --data *.nothing", r"no file matches \*\.nothing"),
    (f"{NANO} --data bad.jsonl", r"line 2 of bad\.jsonl is not JSON"),
    (f"{NANO} --data records.jsonl", r"line 1 of records\.jsonl has the fields body, but no 'text'"),
    (f"{NANO} --data records.jsonl --field bodi", r"no 'bodi'; did you mean 'body'\?"),
    (f"{NANO} --data good.txt --field text", r"field='text' is for \.jsonl files"),
    (f"{NANO} --data {LONG}", "File name too long|there is no file or folder x+"),
    # settings
    (f"{NANO} --data good.txt --tokenizer bpe --vocab-size 255", r"vocab_size is 255, expected at least 257"),
    (f"{NANO} --data good.txt --tokenizer folder", r"cannot read folder/tokenizer\.json .*; give"),
    (f"{NANO} --beta2 1 --data good.txt", r"^train: betas are \(0\.9, 1\.0\); give"),
    ("train --preset nanno", r"no preset is called 'nanno'; did you mean 'nano'\?"),
    ("train --preset=shakespeare", r"no preset is called 'shakespeare'; (did you mean|choose one of)"),
    # places
    ("train --preset nano --data good.txt --out taken", r"^train: taken exists already and is never written over"),
    ("train --preset nano --data good.txt --out good.txt", r"^train: good\.txt exists already"),
    ("train --preset nano --data good.txt --out good.txt/run", r"good\.txt"),
    ("train --preset nano --data good.txt --out .", r"choose another --out"),
    (f"train --preset nano --data good.txt --out {LONG}", "File name too long"),
    # runs
    ("train --resume missing", r"^train: missing is not a run directory: it has no config\.json; give a folder that"),
    ("train --resume taken", r"^train: taken is not a run directory"),
    ("train --resume good.txt", r"^train: good\.txt is not a run directory"),
    ("train --resume CHAR --lr 0.5", r"^train: lr is 0\.001 in .* and cannot change when a run is resumed; leave it"),
    ("train --resume CHAR --layers 2", r"^train: model is .* and cannot change"),
    (
        "train --resume wider",
        r"^train: the weights do not fit GPT2: .*wte\.weight has shape \(.*, 16\), expec",
    ),
    ("train --resume strange", r"^train: there is no setting called 'layer'; did you mean 'layers'\?"),
    ("train --resume damaged", r"last\.safetensors is damaged or not a minillm checkpoint"),
    ("sample missing", r"^sample: missing is no preset, and no folder or file .* is there; give a folder with config"),
    ("sample good.txt", r"^sample: good\.txt is a file of another kind; give a folder with config\.json"),
    ("sample gpt2", r"^sample: gpt2 is a preset, which has a configuration and random weights; give the folder"),
    (f"sample {LONG}", "File name too long"),
    ("sample wider", r"^sample: the weights do not fit GPT2"),
    ("sample damaged", r"best\.safetensors is damaged"),
    # sampling
    ("sample CHAR --prompt ", r"^sample: the prompt has no tokens; give"),
    ("sample CHAR --prompt Ω", r"character 'Ω' \(U\+03A9\) is not among the \d+ characters of .*; leave it"),
    ("sample CHAR --prompt the --temperature -1", r"^sample: temperature is -1\.0; give 0"),
    ("sample CHAR --prompt the --top-k 0", r"^sample: top_k is 0; give"),
    ("sample CHAR --prompt the --top-p 1.5", r"^sample: top_p is 1\.5; give"),
    ("sample CHAR --prompt the --max-tokens -5", r"^sample: max_tokens is -5; give 0 or more"),
    ("sample CHAR --prompt the --seed -1", r"^sample: seed is -1; give"),
    # tokenizers
    ("tokenizer train new --data missing.txt", r"there is no file or folder missing\.txt"),
    ("tokenizer train new --data empty.txt", r"empty\.txt is empty"),
    ("tokenizer train new --data good.txt --vocab-size 100", r"vocab_size is 100, expected at least 257"),
    ("tokenizer train taken --data good.txt", r"^tokenizer train: taken exists already and is never written over"),
    ("tokenizer train good.txt --data good.txt", r"^tokenizer train: good\.txt exists already"),
    ("tokenizer train good.txt/new --data good.txt", r"good\.txt"),
    ("tokenizer encode folder text", r"cannot read folder/tokenizer\.json"),
    ("tokenizer encode CHAR/tokenizer", r"^tokenizer encode: give a text, or --data .*; one of the two"),
    ("tokenizer encode CHAR/tokenizer text --data good.txt", r"^tokenizer encode: give a text, or --data"),
    ("tokenizer encode CHAR/tokenizer Ω", r"character 'Ω'"),
    (
        "tokenizer encode CHAR/tokenizer --data short.txt --out new --validation-fraction 0",
        r"no text is left for valid",
    ),
    (
        "tokenizer encode CHAR/tokenizer --data short.txt --out new --validation-fraction 2",
        r"fraction is 2\.0, expected",
    ),
    ("tokenizer encode CHAR/tokenizer --data good.txt --out good.txt", r"good\.txt"),
    ("tokenizer decode CHAR/tokenizer 1 2 9999", r"ids\[2\] is 9999, out of range for a vocabulary of \d+ tokens; use"),
    ("tokenizer decode CHAR/tokenizer -1", r"ids\[0\] is -1, out of range"),
    ("gradcheck matmull", r"^gradcheck: there is no operation 'matmull'; did you mean 'matmul'\?"),
    # descriptions
    ("describe gpt3", r"^describe: gpt3 is no preset, and no folder or file .*; did you mean 'gpt2'\?"),
    ("describe gpt2 --batch-size 0", r"^describe: batch_size is 0 and context is 1024; give 1 or more"),
    ("describe gpt2 --context 1025", r"context is 1025; give 1 or more, and a context of 1024 at most"),
    ("describe taken", r"taken/config\.json is not there"),
    ("describe good.txt", r"^describe: good\.txt is a file of another kind; give a folder with config\.json"),
    # commands
    ("trian", r"^minillm: there is no command 'trian'; did you mean 'train'\?"),
    ("tokenizer", r"^minillm: tokenizer is not told what to do; choose one of: tokenizer train, tokenizer encode, "),
    ("tokenizer encoed x", r"^minillm: there is no command 'tokenizer encoed'; did you mean 'tokenizer encode'\?"),
    ("--batch 3", r"^minillm: there is no command '--batch'; choose one of: train, finetune sft"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[command[:60] for command, _ in BAD])
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    here: Path, runs: SimpleNamespace, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    write_inputs(here, runs)
    before = contents(here, runs.char)
    error = fails(capsys, *command.replace("CHAR", str(runs.char)).split(" "))
    assert_one_sentence(error)
    assert re.search(message, error), error
    assert contents(here, runs.char) == before


def test_a_character_without_a_token_late_in_a_corpus_leaves_no_shards(
    here: Path, runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "text.txt").write_text(TEXT + "Ω")
    error = fails(capsys, "tokenizer", "encode", runs.char / "tokenizer", "--data", "text.txt", "--out", "shards")
    assert_one_sentence(error)
    assert "character 'Ω'" in error
    assert [path.name for path in here.iterdir()] == ["text.txt"]


OPTIONS = [
    ("train --stepz 3", "--steps"),
    ("train --batchsize 3", "--batch-size"),
    ("train --resum x", "--resume"),
    ("train --chanels 32", "--channels"),
    ("sample x --temprature 1", "--temperature"),
    ("sample x --topk 1", "--top-k"),
    ("tokenizer train x --vocabsize 300", "--vocab-size"),
    ("tokenizer encode x --fields body", "--field"),
]


@pytest.mark.parametrize(("command", "suggestion"), OPTIONS)
def test_an_unknown_option_suggests_the_nearest(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, suggestion: str
) -> None:
    error = fails(capsys, *command.split())
    assert_one_sentence(error)
    assert f"there is no option {command.split()[-2]}; did you mean {suggestion}?" in error
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --steps three", "train: --steps has the invalid value 'three'; give a whole number"),
        ("train --optimizer adam", "train: --optimizer is 'adam'; choose one of: adamw, sgd"),
        ("train --steps", "train: --steps has no value; write --steps NUMBER"),
        ("train --steps --lr 1", "train: --steps has no value; write --steps NUMBER"),
        ("sample", "sample: MODEL is missing; `minillm sample --help` lists what there is"),
        ("tokenizer decode x", "tokenizer decode: IDS is missing; "),
        ("tokenizer decode x one", "tokenizer decode: IDS has the invalid value 'one'; give a whole number"),
        ("train --steps 1e3", "train: --steps has the invalid value '1e3'; give a whole number"),
        (
            "train --steps 99999999999999999999",
            "train: --steps is 99999999999999999999; give a whole number below 2^31",
        ),
        ("train --no-bias=1", "train: --no-bias takes no value; write --bias or --no-bias"),
        ("train --lr inf", "train: lr is inf; give 0 or more, but a finite number"),
        ("train extra", "train: 'extra' is more than was expected; "),
        ("train --timeout 3", "train: --timeout is about ranks that wait for each other; start several with --nproc"),
        ("train --trace x", "train: --trace is about ranks that wait for each other; start several with --nproc"),
        ("train --field x", "train: field='x' is for .jsonl files, but 'builtin' is none; leave it out"),
        ("tokenizer train x --field x", "tokenizer train: field='x' is for .jsonl files, but 'builtin' is none"),
        ("tokenizer encode x text --field x", "tokenizer encode: --field is for --data, of which it names a field"),
        ("train --steps 0", "train: steps is 0; give 1 or more"),
        ("train --threads 99999", "train: threads is 99999; give at most 256"),
        ("train --lr -1", "train: lr is -1.0; give 0 or more"),
        ("train --lr nan", "train: lr is nan; give 0 or more"),
        ("train --clip 0", "train: clip is 0.0; give a norm above 0"),
        (
            "train --batch-size 2 --micro-batches 3",
            "micro_batches=3 parts of a batch of 2 sequences would be empty; give",
        ),
        ("train --validation-fraction 1", "train: validation_fraction is 1.0; give a share above 0 and below 1"),
        ("train --seed -3", "train: seed is -3; give 0 or more"),
        ("train --preset nano --heads 5", "train: channels=32 is not a multiple of heads=5"),
        ("train --dropout 1", "train: --dropout is 1.0; give a probability of at least 0 and below 1"),
        ("train --layers 0", "train: --layers is 0; give 1 or more"),
    ],
)
def test_a_value_that_an_option_cannot_have(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    error = fails(capsys, *command.split())
    assert_one_sentence(error)
    assert error.startswith(message) or message in error.partition(": ")[2]
    assert list(here.iterdir()) == []


def test_an_interrupt_outside_of_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("minillm.commands.gradcheck.gradcheck", interrupted)
    with pytest.raises(SystemExit) as raised:
        main(["gradcheck"])
    assert raised.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(arguments: list[str]) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("minillm.commands.gradcheck.gradcheck", defect)
    with pytest.raises(ZeroDivisionError):
        main(["gradcheck"])


# In a process of its own


def process(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    root = str(Path(ops.__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "minillm", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


@pytest.mark.parametrize(
    "command", ["train --preset nano --data missing.txt --out run", "sample missing", "trian", "train --preset nana"]
)
def test_bad_input_to_a_process(tmp_path: Path, command: str) -> None:
    result = process(*command.split(), cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert_one_sentence(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_to_a_process(tmp_path: Path) -> None:
    result = process("train", "--stepz", "3", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert_one_sentence(result.stderr)
    assert "did you mean --steps?" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_lists_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ([], 2), (["--help"], 0), (["-h"], 0):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == status
        shown = capsys.readouterr().out
        for command in COMMANDS:
            assert f"  minillm {command} " in shown
    for command in COMMANDS:
        with pytest.raises(SystemExit) as raised:
            main([*command.split(), "--help"])
        assert raised.value.code == 0
        assert f"usage: minillm {command} [-h]" in capsys.readouterr().out


def test_a_process_trains_and_samples(tmp_path: Path) -> None:
    """Text of the pipe is plain, the printed command works as it stands, and the second run takes the next name."""
    (tmp_path / "text.txt").write_text(TEXT)
    for name in ("nano-1", "nano-2"):
        result = process("train", "--preset", "nano", "--data", "text.txt", *SIZE.split(), cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert "\x1b" not in result.stdout
        assert (tmp_path / "runs" / name / "loss.png").is_file()
    command = result.stdout.splitlines()[-1].strip()
    assert command.startswith("minillm sample runs/nano-2 --prompt ")
    shell = command.replace("minillm", f"{sys.executable} -m minillm", 1)
    environment = {**os.environ, "PYTHONPATH": str(Path(ops.__file__).parents[2])}
    sampled = subprocess.run(shell, shell=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (sampled.returncode, sampled.stderr) == (0, "")
    assert len(sampled.stdout) > 200


# train


def test_options_reach_the_run(runs: SimpleNamespace) -> None:
    config = Run.open(runs.char).config
    model = config.model
    assert (model.context, model.layers, model.heads, model.channels) == (8, 1, 2, 16)
    assert (config.steps, config.batch_size, config.tokenizer, config.preset) == (4, 4, "char", "default")
    assert [record["step"] for record in Run.open(runs.char).metrics()] == [1, 2, 3, 4]
    bpe = Run.open(runs.bpe)
    assert bpe.tokenizer.vocab_size == 257
    assert load_checkpoint(bpe.checkpoint("last")).model["wte.weight"].shape == (257, 16)


def test_train_needs_no_options(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first command of the README."""
    asked: list = []
    monkeypatch.setattr("minillm.training.trainer.train", lambda *given, progress: asked.append((*given, progress)))
    main(["train"])
    assert asked == [(TrainConfig(), None, True)]
    main(["train", "--preset", "nano"])
    assert asked[1] == (preset("nano"), None, True)
    main(["train", "--preset", "nano", "--no-progress"])
    assert asked[2] == (preset("nano"), None, False)


def test_options_change_single_settings_of_a_preset(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("minillm.training.trainer.train", lambda *given, progress: seen.append(given))
    main("train --preset nano --lr 0.5 --no-bias --optimizer sgd --out x --schedule wsd --layers=3".split())
    [(config, resume)] = seen
    assert resume is None
    assert (config.preset, config.lr, config.optimizer, config.schedule) == ("nano", 0.5, "sgd", "wsd")
    assert (config.steps, config.warmup, config.out) == (200, 20, Path("x"))
    assert (config.model.bias, config.model.layers, config.model.channels) == (False, 3, 32)


# sample


def greedy(run: Path, prompt: str, count: int) -> str:
    """By the model alone: the likeliest token, again and again."""
    opened = Run.open(run)
    model, _ = build(opened.config, opened.tokenizer)
    model.load_state_dict(load_checkpoint(opened.checkpoint("best")).model)
    ids = opened.tokenizer.encode(prompt)
    for _ in range(count):
        ids.append(int(model.eval()(np.array([ids[-8:]])).data[0, -1].argmax()))
    return opened.tokenizer.decode(ids) + "\n"


def test_the_same_seed_gives_the_same_text(runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [output(capsys, "sample", runs.char, "--prompt", "the ", "--seed", seed) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("the ") and len(text) == 4 + 200 + 1 for text in texts)
    default = output(capsys, "sample", runs.char, "--prompt", "the ")
    assert default == texts[0]


def test_temperature_zero_and_one_token_are_greedy(runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    expected = greedy(runs.char, "it ", 30)
    for settings in (["--temperature", "0"], ["--top-k", "1"], ["--top-p", "0.000001"], ["--temperature", "1e-9"]):
        options = ["--prompt", "it ", "--max-tokens", "30", "--seed", "7", *settings]
        assert output(capsys, "sample", runs.char, *options) == expected
    assert output(capsys, "sample", runs.char, "--prompt", "it ", "--max-tokens", "30", "--seed", "7") != expected
    assert output(capsys, "sample", runs.char, "--prompt", "it ", "--max-tokens", "0") == "it \n"


def test_settings_of_sample_reach_generate(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(model: GPT2, ids: list[int], max_tokens: int, **settings: object):
        seen.append((max_tokens, settings))
        return generate(model, ids, max_tokens, **settings)

    monkeypatch.setattr("minillm.generate.generate", spy)
    options = "--prompt the --max-tokens 3 --temperature 0.3 --top-k 4 --top-p 0.5 --min-p 0.1 --seed 6".split()
    output(capsys, "sample", runs.char, *options, "--repetition-penalty", "1.5")
    settings = {"temperature": 0.3, "top_k": 4, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.5, "seed": 6}
    assert seen == [(3, {**settings, "stop": []})]


@pytest.mark.parametrize("prompt", ["ä😀", "€😀", "a\udcff b", "a\udcff"])
@pytest.mark.parametrize("seed", range(8))
def test_characters_of_several_tokens_are_shown_whole(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str], prompt: str, seed: int
) -> None:
    """A byte model that has learnt little writes broken UTF-8: its decoding is shown, up to an end-of-text token.

    A shell hands over stray bytes of a prompt as surrogates, which cannot be printed.
    """
    shown = output(
        capsys, "sample", runs.bpe, "--prompt", prompt, "--max-tokens", 100, "--temperature", 1.5, "--seed", seed
    )
    opened = Run.open(runs.bpe)
    model, _ = build(opened.config, opened.tokenizer)
    model.load_state_dict(load_checkpoint(opened.checkpoint("best")).model)
    ids = opened.tokenizer.encode(prompt)
    ids += generate(model, ids, 100, temperature=1.5, seed=seed, stop=[opened.tokenizer.eot_id])
    if ids[-1] == opened.tokenizer.eot_id:
        del ids[-1]
    assert shown == opened.tokenizer.decode(ids) + "\n"
    assert len(shown) > 20


def test_an_unknown_character_with_an_unknown_token(
    here: Path, runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    CharacterTokenizer.train(TEXT, special_tokens=("<|unk|>",)).save(here / "tokenizer")
    (here / "text.txt").write_text(TEXT)
    main(["train", "--data", "text.txt", "--out", "run", "--tokenizer", "tokenizer", *SIZE.split()])
    shown = output(capsys, "sample", "run", "--prompt", "Ω ", "--max-tokens", "20", "--top-k", "3")
    assert shown.startswith("<|unk|> ")
    assert len(shown) >= len("<|unk|> ") + 20


def test_a_prompt_that_is_longer_than_the_context_is_cut_with_a_sentence(runs: SimpleNamespace, capsys) -> None:
    context = Run.open(runs.char).config.model.context
    for length in (context, context + 3):
        capsys.readouterr()
        main(["sample", str(runs.char), "--prompt", ("the " * context)[:length], "--max-tokens", "2"])
        told = (
            f"sample: the prompt has {length} tokens, but the context of the model is {context}: the first 3 are left"
        )
        assert capsys.readouterr().err == (f"{told} out\n" if length > context else "")


# chat


def test_a_conversation(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines from the terminal, answers as minillm.chat gives them, until Ctrl-D."""
    tokenizer = BPETokenizer.train(TEXT, 280, special_tokens=("<|im_start|>", "<|im_end|>"))
    model = GPT2(GPT2Config(tokenizer.vocab_size, 200, layers=1, heads=2, channels=16))
    for parameter in model.parameters():
        parameter.data *= 20
    model.save_pretrained(here / "model")
    tokenizer.save(here / "model")
    lines = iter(["hello", "what?"])
    prompts = []

    def read(prompt: str) -> str:
        prompts.append(prompt)
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read)
    shown = output(capsys, "chat", "model", "--max-tokens", 9, "--system", "Be kind.", "--top-k", 5, "--seed", 3)
    conversation = Conversation(minillm.load(here / "model"), tokenizer, chat_template("chatml"), "Be kind.")
    settings = dict(max_tokens=9, temperature=0.7, top_k=5, top_p=0.95)
    answers = ["".join(conversation.say(text, seed=3 + i, **settings)) for i, text in enumerate(("hello", "what?"))]
    assert shown == "\n".join(["GPT2, chatml; end with Ctrl-D", *answers, "", ""])
    assert prompts == ["> "] * 3
    lines, long = iter(["x" * 190]), "x" * 190
    capsys.readouterr()
    main(["chat", "model", "--max-tokens", "2"])
    tokens = len(Conversation(conversation.model, tokenizer, chat_template("chatml")).ids_to_read(long))
    assert tokens > 200
    told = (
        f"chat: the conversation has {tokens} tokens, but the context of the model is 200: the first {tokens - 200} are"
    )
    assert capsys.readouterr().err == f"{told} left out\n"
    assert_one_sentence(fails(capsys, "chat", "model", "--template", "chatlm"))
    (here / "model" / "tokenizer.json").unlink()
    assert_one_sentence(fails(capsys, "chat", "model"))


# tokenizer


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "char"])
def test_tokenizer_round_trip(here: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    (here / "text.txt").write_text(TEXT + "äöü 😀")
    shown = output(capsys, *f"tokenizer train tok --data text.txt --kind {kind} --vocab-size 280".split())
    size = Tokenizer.load(here / "tok").vocab_size
    assert shown.splitlines()[-1] == f"{size} tokens, saved in tok"
    assert Tokenizer.load(here / "tok").kind.startswith(kind)
    assert size == 280 or (kind != "bpe" and 20 < size < 280)  # the text may have no more
    ids = output(capsys, "tokenizer", "encode", "tok", "the 😀 reads").split()
    assert ids == [str(i) for i in Tokenizer.load(here / "tok").encode("the 😀 reads")]
    assert output(capsys, "tokenizer", "decode", "tok", *ids) == "the 😀 reads\n"
    assert output(capsys, "tokenizer", "encode", "tok", "") == "\n"


def test_encoding_a_corpus_to_shards(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "text.txt").write_text(TEXT)
    output(capsys, "tokenizer", "train", "tok", "--data", "text.txt", "--kind", "char")
    encode = ["tokenizer", "encode", "tok", "--data", "text.txt"]
    shown = output(capsys, *encode, "--out", "shards", "--validation-fraction", "0.25")
    assert shown.split() == ["shards/train_00000.bin", "shards/validation_00000.bin"]
    tokenizer = Tokenizer.load(here / "tok")
    cut = int(len(TEXT) * 0.75)
    for name, part in ("train", TEXT[:cut]), ("validation", TEXT[cut:]):
        tokens = open_tokens(here / "shards" / f"{name}_00000.bin", tokenizer.fingerprint())
        assert tokenizer.decode(np.asarray(tokens)) == part
    assert output(capsys, *encode).split() == [str(i) for i in tokenizer.encode(TEXT)]


# gradcheck


def test_gradcheck_passes_and_prints_a_row_a_case(capsys: pytest.CaptureFixture[str]) -> None:
    shown = output(capsys, "gradcheck", "gelu", "add")
    results = gradcheck.run_cases(["gelu", "add"])
    assert len(results) > 5
    assert shown.count(" ok ") == len(results)
    assert shown.splitlines()[-1] == f"{len(results)} of {len(results)} checks passed"


def test_gradcheck_of_all_operations_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with engine("plain"):  # tests/study/test_gradcheck.py has the fast pairs too
        shown = output(capsys, "gradcheck")
    assert {op.name for op in ops.OPS} <= set(re.findall(r"^│ (\w+) +│", shown, re.MULTILINE))
    assert "FAILED" not in shown


def test_gradcheck_fails_with_status_1_on_a_wrong_backward(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [op] = [op for op in ops.OPS if op.name == "gelu"]
    right = op.backward
    monkeypatch.setattr(op, "backward", lambda dout, saved: (2 * right(dout, saved)[0],))
    with pytest.raises(SystemExit) as raised:
        main(["gradcheck", "gelu", "tanh"])
    assert raised.value.code == 1
    shown = capsys.readouterr().out
    results = gradcheck.run_cases(["gelu", "tanh"])
    failed = [result for result in results if not result.passed]
    assert {result.op for result in failed} == {"gelu"}
    assert shown.count("FAILED") == len(failed)
    assert shown.splitlines()[-1] == f"{len(results) - len(failed)} of {len(results)} checks passed"
    shown = " ".join(shown.split())
    for result in failed:
        assert " ".join(result.report.split())[:60] in shown


# --- convert and diff ----------------------------------------------------------------------------------------------


def test_a_run_is_converted_and_is_the_same_model(runs, here, capsys) -> None:
    printed = output(capsys, "convert", runs.char, here / "out")
    assert re.fullmatch(rf"GPT2 with [\d,]+ weights in float32: {here}/out\n", printed)
    loaded = minillm.load(here / "out")
    kept = load_checkpoint(Run.open(runs.char).checkpoint("best")).model
    for name, array in loaded.state_dict().items():
        np.testing.assert_array_equal(array, kept[name])
    printed = output(capsys, "diff", runs.char, here / "out")
    assert re.fullmatch(r"all \d\d layers agree; the largest difference is 0\.0e\+00\n", printed)
    output(capsys, "convert", here / "out", here / "half", "--dtype", "float16", "--max-shard-bytes", "4000")
    assert len(list((here / "half").glob("*.safetensors"))) > 1
    with pytest.raises(SystemExit) as caught:
        main(["diff", str(runs.char), str(here / "half")])
    assert caught.value.code == 1
    assert re.fullmatch(r"wte: differs by \d\.\de-0[345] .*; all before it agree\n", capsys.readouterr().out)


def test_convert_keeps_the_ids_that_end_a_text(runs, here, capsys) -> None:
    """Those of a run's tokenizer, where it has any, and those of other files."""
    for name, run in (("char", runs.char), ("bpe", runs.bpe)):
        output(capsys, "convert", run, here / name)
        eot = Run.open(run).tokenizer.eot_id
        values = json.loads((here / name / "config.json").read_text())
        assert (eot is None) == (name == "char")
        assert values["eos_token_id"] == values["bos_token_id"] == eot
        assert minillm.load(here / name).eos_ids == (() if eot is None else (eot,))
    values |= {"eos_token_id": [3, 4], "pad_token_id": 5}
    (here / "bpe" / "checksums.json").unlink()  # as who changes the files by hand is told to do
    (here / "bpe" / "config.json").write_text(json.dumps(values))
    (here / "bpe" / "generation_config.json").write_text(json.dumps({"eos_token_id": 3, "top_k": 9}))
    output(capsys, "convert", here / "bpe", here / "again")
    kept = json.loads((here / "again" / "config.json").read_text())
    assert (kept["eos_token_id"], kept["pad_token_id"]) == ([3, 4], 5)
    assert json.loads((here / "again" / "generation_config.json").read_text()) == {"eos_token_id": 3, "top_k": 9}


def test_a_changed_weight_is_named(runs, here, capsys) -> None:
    model = minillm.load(Path(output(capsys, "convert", runs.char, here / "out").rpartition(": ")[2].strip()))
    model.h[0].mlp.fc.weight.data[3] += 1
    model.save_pretrained(here / "changed")
    with pytest.raises(SystemExit) as caught:
        main(["diff", str(here / "out"), str(here / "changed")])
    assert caught.value.code == 1
    assert capsys.readouterr().out.startswith("h.0.mlp.fc: differs by ")
    with pytest.raises(SystemExit) as caught:
        main(["diff", str(here / "out"), str(here / "nothing")])
    assert caught.value.code == 2
    assert "nothing is no preset, and no folder or file of this name is there" in capsys.readouterr().err


# describe


def test_describe_prints_what_a_preset_and_a_run_take(
    runs: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = output(capsys, "describe", "gpt2", "--context", "64", "--dtype", "bfloat16")
    for text in (
        "124,439,808",
        "249 MB",
        "token table",
        "1 x 64 tokens in bfloat16",
        "q, k, v",
        "3.00 C",
        "6N (Kaplan",
    ):
        assert text in printed
    printed = output(capsys, "describe", runs.char)
    model, _ = build(Run.open(runs.char).config, Run.open(runs.char).tokenizer)
    assert f"{model.num_parameters():,}" in printed
    assert "4 x 8 tokens in float32" in printed
