"""Classes of texts and answers to questions: what is learned, held out, resumed, kept and refused, in every family."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minillm
from minillm.checkpoint import load_checkpoint
from minillm.cli import main
from minillm.data.labelled import read_labelled
from minillm.errors import InputError
from minillm.evaluation.classification import classification_scores
from minillm.evaluation.heads import answer_questions, classify
from minillm.evaluation.squad import squad_scores
from minillm.models import bart, bert, distilbert, roberta, xlnet
from minillm.models.heads import with_head
from minillm.parallel.objective import loss_of_rows
from minillm.resolver import open_model
from minillm.training import Run, TrainConfig, train
from minillm.training.tasks.classify import ClassifyOptions, ClassifyTask
from minillm.training.tasks.qa import QAOptions, QATask
from minillm.training.whole_model import accumulate_gradients

GOOD, BAD = ("fine", "grand", "lovely", "warm"), ("dull", "grim", "poor", "cold")
NOUNS = ("film", "plot", "cast", "song", "story", "scene", "ending", "script")
FAMILIES = {"bert": bert, "roberta": roberta, "distilbert": distilbert, "xlnet": xlnet, "bart": bart}
KINDS = {
    "place": ("Rome", "Oslo", "Lima", "Bonn", "Kyiv", "Cairo"),
    "person": ("Ann", "Bob", "Cat", "Dan", "Eve", "Fay"),
    "colour": ("red", "green", "blue", "white", "black", "grey"),
}


def reviews(count: int = 160) -> list[dict[str, str]]:
    """Texts that one word decides."""
    rng = np.random.default_rng(5)
    made = []
    for number in range(count):
        words = [str(rng.choice(NOUNS)) for _ in range(rng.integers(3, 9))]
        label = ("bad", "good")[number % 2]
        words.insert(int(rng.integers(len(words))), str(rng.choice((BAD, GOOD)[number % 2])))
        made.append({"text": " ".join(["a", *words]), "label": label})
    return made


def questions(count: int = 200) -> dict[str, Any]:
    """Contexts with words of two kinds of three, and a question about one kind; every third has no answer."""
    rng = np.random.default_rng(6)
    paragraphs = []
    for number in range(count):
        there = rng.choice([*KINDS], 2, replace=False)
        words = [str(rng.choice(KINDS[kind])) for kind in there]
        filling = [" ".join(rng.choice(NOUNS, int(rng.integers(1, 4)))) for _ in range(3)]
        context = f"{filling[0]}  {words[0]} {filling[1]} , {words[1]} {filling[2]} ."
        answers = {
            kind: [{"text": word, "answer_start": context.index(word)}] for kind, word in zip(there, words, strict=True)
        }
        qas = [{"id": f"{number}", "question": "which place ?", "answers": answers.get("place", [])}]
        paragraphs.append({"context": context, "qas": qas})
    return {"data": [{"paragraphs": paragraphs}]}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, reviews())))
    (tmp_path / "squad.json").write_text(json.dumps(questions()))
    return path


def settings(data: Path, family: str = "bert", objective: str = "classify", out: str = "run", **changes: Any) -> Any:
    model: dict[str, Any] = {"labels": 2} if objective == "qa" else {"labels": 2, "label_names": ("bad", "good")}
    sizes = {} if family == "xlnet" else {"context": 64}
    options = ClassifyOptions(vocab_size=300) if objective == "classify" else QAOptions(vocab_size=300, stride=12)
    qa = {"max_question": 8, "length": 30}
    options = dataclasses.replace(options, **qa) if objective == "qa" else options
    config = TrainConfig(
        data=str(data if objective == "classify" else data.parent / "squad.json"),
        out=data.parent / out,
        architecture=family,
        objective=objective,
        task=options,
        model=dataclasses.replace(FAMILIES[family].PRESETS["nano"], **model, **sizes),
        steps=6,
        batch_size=8,
        lr=3e-3,
        warmup=1,
        eval_every=3,
        eval_batches=8,
        sample_every=0,
        threads=1,
    )
    return dataclasses.replace(config, **changes)


TASKS = {"classify": ClassifyTask, "qa": QATask}


def arrays(run: Run) -> dict[str, np.ndarray]:
    checkpoint = load_checkpoint(run.checkpoint("last"))
    return {**checkpoint.model, **{f"optimizer.{name}": array for name, array in checkpoint.optimizer.items()}}


def assert_same_bits(one: Run, other: Run) -> None:
    expected = arrays(other)
    found = arrays(one)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.tobytes() == expected[name].tobytes(), name


# What is learned


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_to_tell_texts_apart(data, family) -> None:
    run = train(settings(data, family, steps=100, eval_every=100, lr=2e-3, batch_size=16, seed=2))
    found = run.metrics()[-1]
    assert found["val_accuracy"] > 0.9
    assert found["val_loss"] < 0.4
    opened = open_model(run.folder)
    held = read_labelled(data).split()[1]
    shares = classify(opened.model, opened.tokenizer, [example.text for example in held])
    names = opened.model.config.label_names
    classes = np.array([names.index(example.label) for example in held])
    scores = classification_scores(shares.argmax(-1), classes, names)
    assert scores["accuracy"].value == pytest.approx(found["val_accuracy"])  # the numbers of the loop
    assert -np.log(shares[np.arange(len(held)), classes]).mean() == pytest.approx(found["val_loss"], rel=1e-4)


@pytest.mark.parametrize("family", ["bert", "distilbert", "xlnet"])
def test_it_learns_to_find_answers(data, family) -> None:
    run = train(settings(data, family, "qa", steps=120, eval_every=120, lr=2e-3, batch_size=16, seed=3))
    assert run.metrics()[-1]["val_both_right"] > 0.8
    opened, task = open_model(run.folder), QATask(run.config, run.tokenizer)
    found = answer_questions(opened.model, opened.tokenizer, task.parts[1])
    asked = [(question, answer) for question, answer in found if question.answers]
    scores = squad_scores([answer.text for _, answer in asked], [question.texts for question, _ in asked])
    assert scores["exact_match"].value > 0.8
    without = [answer for question, answer in found if not question.answers]
    assert np.mean([answer.null_score > answer.score for answer in without]) > 0.6  # it points at [CLS]


@pytest.mark.parametrize("objective", TASKS)
def test_the_previews_show_held_out_data(data, objective) -> None:
    config = settings(data, objective=objective)
    task = TASKS[objective](config)
    model = task.make_model(config, task.tokenizer).eval()
    shown = list(task.preview(model, 1))
    assert len(shown) >= 4
    for given, answered in shown:
        assert given.endswith("\n")
        assert answered.startswith("-> ")
    if objective == "classify":
        held = {example.text for example in task.data.split()[1]}
        assert {given.strip() for given, _ in shown} <= held
        assert all("right" in answered or "wrong: it is" in answered for _, answered in shown)
    else:
        assert all("right is" in answered for _, answered in shown)


@pytest.mark.parametrize("objective", TASKS)
def test_training_and_validation_share_no_text(data, objective) -> None:
    task = TASKS[objective](settings(data, objective=objective))
    if objective == "qa":
        contexts = [{one.context for one in part.questions} for part in task.parts]
        assert not contexts[0] & contexts[1]
        assert "questions without an answer" in task.summary()
        return
    texts = [{tuple(ids) for ids, _ in rows} for rows in task.rows]
    assert not texts[0] & texts[1]
    seen = [row.tolist() for step in range(64) for row in task.batch(step)["ids"]]
    assert len({tuple(row) for row in seen}) >= len(texts[0])  # each text comes
    assert "160 texts: 80 bad, 80 good" in task.summary()
    assert "held out (always the most frequent class would be right for" in task.summary()


@pytest.mark.parametrize("objective", TASKS)
@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_change_nothing(data, family, objective) -> None:
    config = settings(data, family, objective, batch_size=7)
    task = TASKS[objective](config)
    model = task.make_model(config, task.tokenizer).to(np.float64).eval()
    batch = task.batch(0)
    gradients = []
    for parts in (1, 2, 3, 7):
        model.zero_grad()
        loss = accumulate_gradients(model, batch, parts, task)
        gradients.append((loss, {name: p.grad for name, p in model.named_parameters()}))
    expected = loss_of_rows(task, model, batch, task.counts(batch)).item()
    for loss, found in gradients:
        assert float(loss) == pytest.approx(expected, rel=1e-12)
        for name, gradient in found.items():
            wanted = gradients[0][1][name]
            assert (gradient is None) == (wanted is None)
            if wanted is not None:
                np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("objective", TASKS)
def test_padding_changes_no_loss(data, objective) -> None:
    config = settings(data, objective=objective)
    task = TASKS[objective](config)
    model, batch = task.make_model(config, task.tokenizer).eval(), task.batch(1)
    loss = loss_of_rows(task, model, batch, task.counts(batch)).item()
    wider = {name: np.pad(x, ((0, 0), (0, 5)), constant_values=0) if x.ndim == 2 else x for name, x in batch.items()}
    assert loss_of_rows(task, model, wider, task.counts(wider)).item() == pytest.approx(loss, rel=1e-5)


# Resumed and killed


@pytest.mark.parametrize(("family", "objective"), [("bert", "classify"), ("xlnet", "classify"), ("bart", "qa")])
def test_a_resumed_run_is_bitwise_the_same(data, family, objective) -> None:
    def made(out: str, **changes: Any) -> Run:
        config = settings(data, family, objective, out, schedule="wsd", decay_steps=0, **changes)
        return train(dataclasses.replace(config, model=dataclasses.replace(config.model, dropout=0.1)))

    whole, half = made("whole"), made("half", steps=3)
    resumed = train(dataclasses.replace(half.config, steps=6), half.folder)
    assert_same_bits(whole, resumed)
    records = resumed.metrics()
    assert [record["step"] for record in records][-6:] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in records] == [record["loss"] for record in whole.metrics()]


KILLED = """
import os, signal, sys
from minillm.training import run
add = run.Run.add_metrics
def killed(self, record):
    add(self, record)
    if record["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
run.Run.add_metrics = killed
from minillm.cli import main
main(sys.argv[1:])
"""


def test_a_run_that_was_killed_goes_on_bitwise(data, tmp_path) -> None:
    words = ["finetune", "classify", "bert-nano", "--data", str(data), *"--steps 7 --eval-every 3 --threads 1".split()]
    words += ["--vocab-size", "300", "--sample-every", "0", "--out"]
    main([*words, str(tmp_path / "whole")])
    command = [sys.executable, "-c", KILLED, *words, str(tmp_path / "killed")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == -signal.SIGKILL, result.stderr
    main(["train", "--resume", str(tmp_path / "killed")])
    assert_same_bits(Run.open(tmp_path / "whole"), Run.open(tmp_path / "killed"))


def test_early_stopping(data) -> None:
    run = train(settings(data, steps=40, eval_every=2, patience=2, lr=0.0, min_lr=0.0))
    assert run.metrics()[-1]["step"] == 6


# Where it starts from


def published(tmp_path: Path, data: Path) -> Path:
    """A BERT that has learnt from hidden tokens, say, with its tokenizer, as Hugging Face's files."""
    config = settings(data)
    task = ClassifyTask(config)
    model = bert.BertForMaskedLM(task.shape(config, task.tokenizer))
    model.save_pretrained(tmp_path / "published")
    task.tokenizer.save_hugging_face(tmp_path / "published")
    return tmp_path / "published"


def test_the_command_starts_from_a_published_body(data, tmp_path, capsys) -> None:
    body = published(tmp_path, data)
    words = ["--data", str(data), *"--steps 2 --lr 0 --min-lr 0 --threads 1 --sample-every 2 --eval-every 2".split()]
    main(["finetune", "classify", str(body), *words, "--out", str(tmp_path / "run")])
    run, before = Run.open(tmp_path / "run"), minillm.load(body).state_dict()
    opened = open_model(run.folder)
    assert type(opened.model) is bert.BertForSequenceClassification
    assert opened.model.config.label_names == ("bad", "good")
    after = opened.model.state_dict()
    for name in before.keys() & after.keys():
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert run.config.init == str(body)
    output = capsys.readouterr().out
    assert "160 texts: 80 bad, 80 good" in output
    assert "minillm convert" in output
    main(["convert", str(run.folder), str(tmp_path / "theirs")])
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert written["id2label"] == {"0": "bad", "1": "good"}
    assert written["architectures"] == ["BertForSequenceClassification"]
    again = minillm.load(tmp_path / "theirs")
    texts = [review["text"] for review in reviews(9)]
    tokenizer = minillm.load_tokenizer(tmp_path / "theirs")
    np.testing.assert_array_equal(
        classify(again, tokenizer, texts), classify(opened.model, opened.needed_tokenizer("test"), texts)
    )


def test_a_head_for_the_same_classes_goes_on_and_another_is_refused(data, tmp_path) -> None:
    body = published(tmp_path, data)
    words = ["--data", str(data), *"--steps 2 --threads 1 --sample-every 0 --eval-every 2".split()]
    main(["finetune", "classify", str(body), *words, "--out", str(tmp_path / "one")])
    still = ["--lr", "0", "--min-lr", "0"]
    main(["finetune", "classify", str(tmp_path / "one"), *words, *still, "--out", str(tmp_path / "two")])
    one, two = (open_model(tmp_path / name).model.state_dict() for name in ("one", "two"))
    for name, array in one.items():
        np.testing.assert_array_equal(array, two[name], err_msg=name)
    fresh = ["--new-head", "--out", str(tmp_path / "three")]
    main(["finetune", "classify", str(tmp_path / "one"), *words, *still, *fresh])
    three = open_model(tmp_path / "three").model.state_dict()
    assert (three["classifier.weight"] != one["classifier.weight"]).any()
    np.testing.assert_array_equal(three["pooler.weight"], one["pooler.weight"])
    more = tmp_path / "more.jsonl"
    lines = [*reviews(40), *({"text": f"neither {n}", "label": "so-so"} for n in range(9))]
    more.write_text("\n".join(map(json.dumps, lines)))
    words[1] = str(more)
    with pytest.raises(SystemExit):
        main(["finetune", "classify", str(tmp_path / "one"), *words, "--out", str(tmp_path / "four")])
    assert not (tmp_path / "four").exists()
    main(["finetune", "classify", str(tmp_path / "one"), *words, "--new-head", "--out", str(tmp_path / "five")])
    assert open_model(tmp_path / "five").model.config.label_names == ("bad", "good", "so-so")


def test_question_answering_from_the_command(data, tmp_path, capsys) -> None:
    body, squad = published(tmp_path, data), tmp_path / "squad.json"
    options = "--steps 2 --threads 1 --sample-every 2 --eval-every 2 --length 40 --stride 12 --max-question 8"
    words = ["--data", str(squad), *options.split()]
    main(["finetune", "qa", str(body), *words, "--validation", str(squad), "--out", str(tmp_path / "run")])
    assert type(open_model(tmp_path / "run").model) is bert.BertForQuestionAnswering
    assert "right is" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["finetune", "qa", "gpt2", *words])
    assert (
        "finetune qa: qa does not train a model of the family gpt2; it trains bert, roberta" in capsys.readouterr().err
    )


# What is refused


def test_what_cannot_be_learned_is_refused(data, tmp_path, capsys) -> None:
    config = settings(data)
    with pytest.raises(InputError, match=r"classes that the model lacks \(good; the model has bad, fine\)"):
        ClassifyTask(dataclasses.replace(config, model=dataclasses.replace(config.model, label_names=("bad", "fine"))))
    (tmp_path / "squad.json").write_text(json.dumps(questions(1)))
    with pytest.raises(InputError, match="all questions are about one context; give several, or --validation"):
        QATask(settings(data, objective="qa"))
    wrong = questions(9)
    for paragraph in wrong["data"][0]["paragraphs"]:
        paragraph["qas"] = [qa | {"answers": [{"text": "x", "answer_start": 1}]} for qa in paragraph["qas"][:1]]
    (tmp_path / "squad.json").write_text(json.dumps(wrong))
    with pytest.raises(InputError, match=r"no question is left to train on; .* answers that do not stand where they"):
        QATask(settings(data, objective="qa"))
    for words, message in (
        (["finetune", "classify"], "finetune classify: MODEL is missing"),
        (["finetune", "classify", "bert-nano"], "finetune classify: --data is missing"),
        (
            ["finetune", "classify", "gpt2-nano", "--data", str(data)],
            "classify does not train a model of the family gpt2",
        ),
        (["finetune", "classify", "bert-nano", "--data", str(data), "--label", "lable"], "no field 'lable'"),
        (["finetune", "classify", "bert-nano", "--data", str(data), "--max-length", "2"], "--max-length is 2; give 3"),
        (
            ["finetune", "classify", "bert-nano", "--data", str(data), "--vocab-size", "9"],
            "--vocab-size is 9; give 300",
        ),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert message in capsys.readouterr().err


def test_long_texts_are_cut_and_counted(data) -> None:
    config = settings(data)
    task = ClassifyTask(dataclasses.replace(config, task=dataclasses.replace(config.task, max_length=6)))
    assert max(len(ids) for rows in task.rows for ids, _ in rows) == 6
    assert "have 6 tokens or more, and are cut there" in task.summary()
    frame = task.frame
    assert all(ids[0] == frame.before[0] and ids[-1] == frame.after[0] for rows in task.rows for ids, _ in rows)


def test_with_head_is_what_the_command_starts_from(data) -> None:
    config = settings(data)
    task = ClassifyTask(config)
    body = bert.BertModel(task.shape(config, task.tokenizer))
    made = with_head(body, "ForSequenceClassification", labels=("bad", "good"))
    shares = classify(made.eval(), task.tokenizer, ["a fine film", "a dull film that is longer"])
    assert shares.shape == (2, 2)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-12)


# Windows


@pytest.mark.parametrize(("context", "said"), [(64, "at most 64 tokens, 25 apart"), (24, "at most 24 tokens, 8 apart")])
def test_windows_of_questions_fit_a_short_context(data, context, said) -> None:
    """Without numbers of one's own: nothing is left out, and the summary says what was taken."""
    shape = dataclasses.replace(bert.PRESETS["nano"], labels=2, context=context)
    config = dataclasses.replace(settings(data, objective="qa", model=shape), task=QAOptions(vocab_size=300))
    task = QATask(config)
    assert said in task.summary()
    assert max(len(window.ids) for window in task.parts[0].windows) <= context
    config = dataclasses.replace(config, task=QAOptions(vocab_size=300, max_question=context))
    with pytest.raises(
        InputError, match=f"length={context} has 3 special tokens, max_question={context} tokens of the"
    ):
        QATask(config)


def test_the_defaults_of_a_long_window_are_those_of_bert(data) -> None:
    shape = dataclasses.replace(bert.PRESETS["nano"], labels=2, context=512)
    task = QATask(dataclasses.replace(settings(data, objective="qa", model=shape), task=QAOptions(vocab_size=300)))
    assert (task.parts[0].length, task.parts[0].stride) == (384, 128)
