"""The command line on odd streams, in a process each: terminals that lack characters, readers that leave, Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minillm import ops
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.tokenizers import BPETokenizer

TEXT = "aé你 😀b\n" * 900
TRAIN = (
    "train --preset nano --data text.txt --steps 4 --warmup 1 --eval-every 2 --eval-batches 1 --sample-every 2".split()
)
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON", "COLUMNS"))},
    "PYTHONPATH": os.pathsep.join([str(Path(ops.__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "MINILLM_THREADS": "1",
}


def start(folder: Path, *arguments: str | bytes, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "minillm", *arguments],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run(folder: Path, *arguments: str | bytes, typed: bytes = b"", **environment: str) -> tuple[int, bytes, str]:
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(typed, timeout=120)
    return process.returncode, out, err.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a run, a tokenizer, and a model that answers, all with letters beyond ASCII."""
    folder = tmp_path_factory.mktemp("streams")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    assert run(folder, *TRAIN, "--out", "run")[::2] == (0, "")
    tokenizer = BPETokenizer.train(TEXT, 280, special_tokens=("<|im_start|>", "<|im_end|>"))
    GPT2(GPT2Config(tokenizer.vocab_size, 64, layers=1, heads=2, channels=16)).save_pretrained(folder / "model")
    tokenizer.save(folder / "model")
    return folder


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_characters_that_the_output_lacks_are_replaced(folder: Path, tmp_path: Path, name: str) -> None:
    environment = ENCODINGS[name]
    encoding = "cp1252" if name == "cp1252" else "ascii"
    out = tmp_path / "run"
    commands = {
        (*TRAIN, "--out", str(out)): "b",
        ("sample", "run", "--prompt", "a", "--max-tokens", "60"): "?",
        ("chat", "model", "--max-tokens", "40", "--temperature", "3"): "?",
        ("tokenizer", "decode", "model", *map(str, "a你😀".encode())): "a??\n",
        ("tokenizer", "train", str(tmp_path / "tok"), "--data", "text.txt", "--vocab-size", "262"): "saved in",
        ("gradcheck", "add"): "checks passed",
        ("describe", "run"): "weights",
        ("train", "--help"): "--preset",
    }
    for command, expected in commands.items():
        status, shown, error = run(folder, *command, typed="hé\n".encode(), **environment)
        assert (status, error) == (0, ""), command
        assert expected in shown.decode(encoding), command
    assert (out / "metrics.jsonl").read_text().count("\n") == 4
    status, _, error = run(folder, "sample", "你", **environment)
    assert status == 2
    assert "is no preset, and no folder or file of this name is there" in error


def test_a_reader_that_has_seen_enough_ends_the_program_without_a_word(folder: Path, tmp_path: Path) -> None:
    for command in (
        ["sample", "run", "--prompt", "a", "--max-tokens", "2000"],
        ["train", "--help"],
        ["tokenizer", "encode", "model", "--data", "text.txt"],
        ["describe", "gpt2"],
    ):
        with start(folder, *command) as process:
            process.stdout.read(1)
            process.stdout.close()
            assert process.stderr.read() == b"", command
        assert process.returncode in (0, 1, 141), command  # 0: it had written all
    with start(folder, *TRAIN, "--out", str(tmp_path / "run")) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == int(TRAIN[TRAIN.index("--steps") + 1])
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()  # it has trained to its end


def test_a_full_disk_behind_the_output_is_a_sentence(folder: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    for command in (["describe", "gpt2"], ["--help"], ["sample", "run", "--prompt", "a"]):
        with open("/dev/full", "wb") as full:
            result = subprocess.run(
                [sys.executable, "-m", "minillm", *command],
                cwd=folder,
                env=ENVIRONMENT,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert result.returncode == 2
        assert "No space left" in result.stderr
        assert result.stderr.count("\n") == 1


def test_closed_streams(folder: Path) -> None:
    """A chat without input ends; a command without output still does what it does."""
    shell = f"{sys.executable} -m minillm"
    for command, status in (
        (f"{shell} chat model <&-", 0),
        (f"{shell} chat model </dev/null", 0),
        (f"printf 'hi\\n\\377\\376\\n' | {shell} chat model --max-tokens 3", 0),
        (f"{shell} train --help >&-", 0),
        (f"{shell} sample run --prompt a >&-", 0),
        (f"{shell} describe gpt2 >&-", 0),
        (f"{shell} sample nothing >&- <&-", 2),
    ):
        result = subprocess.run(command, shell=True, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode == status, (command, result.stderr)
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") == (1 if status else 0)


@pytest.mark.parametrize("columns", ["1", "0", "20", "abc"])
def test_any_width_of_terminal(folder: Path, columns: str) -> None:
    for command in (["train", "--help"], ["describe", "run"], ["gradcheck", "exp"], ["train", "--stepz", "1"]):
        status, _, error = run(folder, *command, COLUMNS=columns, TERM="dumb", NO_COLOR="1")
        assert status == (2 if "--stepz" in command else 0), (command, error)
        assert "Traceback" not in error


def test_an_error_comes_before_all_output_or_on_a_line_of_its_own(folder: Path) -> None:
    for options in (["--top-k", "0"], ["--max-tokens", "-1"], ["--temperature", "nan"], ["--seed", "-1"]):
        status, shown, error = run(folder, "sample", "run", "--prompt", "a", *options)
        assert (status, shown) == (2, b"")
        assert error.startswith("sample: ")


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "run", "--prompt", "a", "--max-tokens", "9999999"],
        ["chat", "model"],
        ["profile", "--preset", "nano", "--repeats", "999999"],
        ["train", "--preset", "nano", "--data", "text.txt", "--steps", "999999", "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_ctrl_c_ends_every_command_without_a_traceback(folder: Path, tmp_path: Path, command: list[str]) -> None:
    process = start(folder, *[str(tmp_path / "run") if argument == "OUT" else argument for argument in command])
    if command[0] != "profile":  # which prints at its end alone
        process.stdout.read(1)
    time.sleep(4 if command[0] == "profile" else 0.5)  # it is at work
    metrics, patience = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 60
    while command[0] == "train" and not metrics.exists() and time.monotonic() < patience:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    if command[0] == "train":
        told = b"\nfinishing this step, then saving; again: stop now without saving\n"
        assert (process.returncode, error) == (0, told)
        assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
    else:
        assert (process.returncode, error) == (130, b"interrupted\n")


def test_ctrl_c_while_modules_are_loaded_is_quiet(folder: Path) -> None:
    late = "import signal, os, sys, minillm\nsys.modules['minillm.training.trainer'] = None\n"
    code = late + (
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'minillm.console': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from minillm.__main__ import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, b"", b"")


def test_names_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    """Of the text, the run directory, the picture's title, a tokenizer, a prompt."""
    name = os.path.join(os.fsencode(tmp_path), b"r\xff\xfe")
    text = name + b".txt"
    try:
        Path(os.fsdecode(text)).write_text(TEXT, encoding="utf-8")
    except OSError:
        pytest.skip("this file system has only UTF-8 names")
    arguments = [text if argument == "text.txt" else argument for argument in TRAIN]
    for command in (
        [*arguments, "--out", name],
        ["train", "--resume", name, "--steps", "5"],
        ["sample", name, "--prompt", "a", "--max-tokens", "3"],
        ["describe", name],
        ["convert", name, name + b"-hf"],
        ["diff", name, name + b"-hf"],
        ["tokenizer", "train", name + b"-tok", "--data", text, "--vocab-size", "262"],
        ["tokenizer", "encode", name + b"-tok", b"a\xff"],
        ["tokenizer", "encode", name + b"-tok", "--data", text, "--out", name + b"-shards"],
    ):
        assert run(tmp_path, *command)[::2] == (0, ""), command
    assert os.path.exists(name + b"/loss.png")
    status, _, error = run(tmp_path, "sample", b"\xff")
    assert status == 2
    assert "Traceback" not in error
