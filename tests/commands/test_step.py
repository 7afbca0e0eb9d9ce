"""`minillm step`: every family and task, in the terminal, compared, exported and in words."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest

from minillm.cli import main
from minillm.commands.step import Step, settings_of, starting_point
from minillm.options import filled, scan
from minillm.resolver import open_model
from minillm.study.step.setup import prepare

PAIRS = [
    {"prompt": f"What is {i}+1?", "chosen": f"It is {i + 1}, of course.", "rejected": "No idea at all."}
    for i in range(8)
]


def said(capsys, *arguments: str) -> str:
    """What the command prints."""
    main(["step", *arguments])
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    """The error of a command that is refused."""
    with pytest.raises(SystemExit) as caught:
        main(["step", *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    "name",
    ["nano", "llama-nano", "gemma-nano", "bert-nano", "roberta-nano", "distilbert-nano", "xlnet-nano", "bart-nano"],
)
def test_every_family_steps_on_a_text_of_ones_own(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--layers", "1"] if name != "bart-nano" else []
    text = said(capsys, name, *small, "--text", "the cat sat on the mat", "--export", "1")
    assert "loss " in text
    assert "stops" in text
    assert (tmp_path / "embedding_forward_wte.py").is_file()


@pytest.mark.parametrize(
    ("task", "loss"), [("dpo", "loss 0.693147"), ("sft", "loss"), ("reward", "GPT2ForSequenceClassification")]
)
def test_tasks_read_records(task, loss, pairs, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if task == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = said(
        capsys, "--task", task, "--data", pairs, "--context", "128", "--validation-fraction", "0.3", "--export", "1"
    )
    assert loss in text


@pytest.mark.parametrize(("name", "array"), [("nano", "ids"), ("xlnet-nano", "ids"), ("bart-nano", "target")])
def test_the_tokens_are_those_of_the_text(name, array):
    before = starting_point([name])
    trace = prepare(settings_of(before), "the cat sat").trace()
    [row] = trace.tokens[array]
    text = "".join(token for token in row if not token.startswith("<")).replace("\u2581", "").replace(" ", "")
    assert text in ("thecatsat", "thecatsa"), "the last token is a target alone"
    assert len(row) == trace.stops[0].value(array).shape[1]
    assert all(trace.tokens[array][0])


def test_a_head_gets_the_classes_of_the_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"a film of {i} hours", "label": "short" if i < 20 else "long"} for i in range(40)]
    (tmp_path / "films.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    text = said(capsys, "bert-nano", "--task", "classify", "--data", "films.jsonl", "--layers", "1", "--export", "1")
    assert "BertForSequenceClassification: loss" in text


def test_grpo_steps_on_answers_that_the_model_samples(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--context", "96", "--layers", "1", "--answer-length", "4"]
    text = said(capsys, "--task", "grpo", "--batch-size", "4", "--group-size", "2", *small, "--export", "1")
    assert "GPT2: loss" in text


def test_lora_steps_and_its_first_matrix_has_no_gradient_yet():
    arguments = ["nano", "--lora", "2"]
    before = starting_point(arguments)
    trace = prepare(settings_of(filled(Step, "step", scan(Step, "step", arguments, before), before))).trace()
    assert trace.parameters
    assert all("lora" in name for name in trace.parameters)
    for name, stop in trace.parameters.items():
        assert stop.grad.any() != name.endswith(".A"), "B is 0 at first, so A gets no gradient"


@pytest.mark.parametrize("name", ["nano", "gpt2-nano", "tiny", "distilbert-nano", "bert-mini"])
def test_a_name_means_one_model_as_argument_and_as_preset(name):
    argument, option = starting_point([name]), starting_point(["--preset", name])
    assert settings_of(argument) == settings_of(option)


def test_a_folder_comes_before_a_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = open_model("llama-nano", random=True).model
    model.save_pretrained(tmp_path / "nano")
    assert starting_point(["nano"]).architecture == "llama"


def test_the_terminal_reads_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("until cross_entropy\nn\nprint V\nq\n"))
    text = said(capsys, "--terminal")
    assert "[0] tokens" in text
    assert "cross_entropy forward" in text
    assert "GPT2: loss" in text
    assert "leave --out" in refused(capsys, "--terminal", "--lens")


def test_compare_names_the_first_line_that_differs(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_add.py").write_text("def backward(dy, saved):\n    return dy, -dy\n", "utf-8")
    text = said(capsys, "--compare", "plain,add=my_add:backward")
    assert "add backward in h.1, gpt2.py:106" in text
    assert "db[" in text
    assert "add=my_add:backward: my_add.py:2  return dy, -dy" in text
    assert "no backward of 'ad' ran; did you mean 'add'?" in refused(capsys, "--compare", "ad=my_add:backward")
    assert "no backward of 'cumsum' ran; choose one of: " in refused(capsys, "--compare", "cumsum=my_add:backward")
    assert "no stop differs" in said(capsys, "--compare", "fast")


def test_a_mutation_that_fails_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    functions = {
        "raises": "return dy, dy.no_such_name",
        "numbers": "return 1.0, 2.0",
        "one": "return (dy,)",
        "deep": "return raises(dy, saved)",
    }
    text = "\n".join(f"def {name}(dy, saved):\n    {body}" for name, body in functions.items())
    (tmp_path / "my_faults.py").write_text(f"{text}\nnumber = 3\n", "utf-8")
    (tmp_path / "my_syntax.py").write_text("def backward(dy, saved)\n", "utf-8")
    (tmp_path / "my_import.py").write_text("1 / 0\n", "utf-8")

    def told(place):
        text = refused(capsys, "--compare", f"add={place}")
        assert text.startswith(f"step: --compare add={place}: ")
        assert len(text.splitlines()) == 1
        return text

    for name in ("raises", "deep"):
        text = told(f"my_faults:{name}")
        assert "AttributeError: 'numpy.ndarray' object has no attribute 'no_such_name'" in text
        assert "my_faults.py:2  return dy, dy.no_such_name" in text
        assert "in the backward of add" in text
    assert "'float' object has no attribute 'shape', in the backward of add" in told("my_faults:numbers")
    assert "backward of add: returned 1 for 2 inputs" in told("my_faults:one")
    assert "number is 3, and no function" in told("my_faults:number")
    assert "my_syntax cannot be imported: SyntaxError: expected ':'" in told("my_syntax:backward")
    assert "my_import cannot be imported: ZeroDivisionError: division by zero" in told("my_import:backward")


def test_lens_names_tokens(capsys):
    text = said(capsys, "--lens", "--text", "the cat sat")
    assert "imprint: what the gradient" in text
    assert "h.1.mlp.proj shift of " in text
    assert "no MLP" in refused(capsys, "--lens", "--lora", "2")


def test_a_run_steps_with_its_own_weights_and_tokenizer(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(
        [
            "train",
            "--preset",
            "nano",
            "--steps",
            "2",
            "--layers",
            "1",
            "--sample-every",
            "0",
            "--eval-batches",
            "1",
            "--out",
            "run",
        ]
    )
    capsys.readouterr()
    text = said(capsys, "run", "--text", "the cat", "--compare", "plain,run")
    assert "no stop differs" in text
    source = said(capsys, "run", "--text", "the cat", "--export", "AdamW update in wpe")
    assert "wrote " in source
    main(["convert", "run", "folder"])
    assert "no stop differs" in said(capsys, "folder", "--text", "the cat", "--compare", "plain,run")
    assert "--layers would change the model" in refused(capsys, "run", "--layers", "3")


def test_an_exported_stop_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said(capsys, "--export", "layernorm backward in h.0.ln_2")
    ran = subprocess.run(
        [sys.executable, "layernorm_backward_h_0_ln_2.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert "the same numbers" in ran.stdout


def test_the_text_is_named_where_none_is_given(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "the text is 'A gradient points uphill.'" in said(capsys, "--layers", "1", "--export", "1")
    assert "the text is" not in said(capsys, "--layers", "1", "--export", "1", "--text", "the cat")


def test_what_cannot_be_done_says_why(capsys, tmp_path, pairs):
    assert "there is no task 'dop'; did you mean 'dpo'" in refused(capsys, "--task", "dop")
    assert "reads records; give --data" in refused(capsys, "--task", "sft")
    assert "--text is for" in refused(capsys, "--task", "dpo", "--data", pairs, "--text", "abc")
    assert "give a longer one" in refused(capsys, "--text", "a")
    assert "has 0 tokens" in refused(capsys, "--text", "")
    assert "the model comes first" in refused(capsys, "--lens", "nano")
    assert "was left out" in refused(capsys, "--export", "1", "--largest", "10")
    assert "largest is 0" in refused(capsys, "--largest", "0")
    message = refused(capsys, "--export", "nothing here")
    assert "no stop is called 'nothing here'; give a number from 0 to 121, or a part of a title: tokens, " in message
    assert message.count("linear backward") == 1, "a title of every layer would fill the screen"
    assert "there is no stop 9999; the stops are 0 to 121" in refused(capsys, "--export", "9999")
    assert "did you mean 'layernorm backward in ln_f'?" in refused(capsys, "--export", "layernorm backwards in ln_f")
    assert "--export is empty" in refused(capsys, "--export", "")
    assert "--compare is empty" in refused(capsys, "--compare", "")
    assert "two steps; leave --export and --lens out" in refused(capsys, "--compare", "fast", "--lens")
    assert "is a folder; give the name of a file in it" in refused(capsys, "--out", str(tmp_path))
    assert "there is no option --watch" in refused(capsys, "--watch")
    step_ran = refused(capsys, "--out", str(tmp_path / "no" / "page.html"))
    assert step_ran.startswith("step: there is no folder"), "the step did not run in vain"
    assert "no preset, and no folder" in refused(capsys, "nowhere")
    assert "step: nano and --preset llama-nano are two models" in refused(capsys, "nano", "--preset", "llama-nano")
    assert "--batch-size does nothing here, as a text is one row" in refused(capsys, "--batch-size", "2")
    assert "names 3 steps" in refused(capsys, "--compare", "a,b,c")


def test_a_page_is_written(capsys, tmp_path):
    pytest.importorskip("minillm.study.step.page")
    out = tmp_path / "page.html"
    assert f"wrote {out}" in said(capsys, "--out", str(out))
    assert out.stat().st_size < 5_000_000
