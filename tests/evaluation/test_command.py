"""`minillm eval`: its table, its JSON, one sentence for whatever is wrong, and the number that training shows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from scored_models import TEXTS, small_gpt2

from minillm.cli import main
from minillm.evaluation.multiple_choice import multiple_choice, question_of
from minillm.evaluation.perplexity import perplexity
from minillm.models.bert import BertConfig, BertForMaskedLM
from minillm.resolver import open_model
from minillm.tokenizers import BPETokenizer, WordPieceTokenizer
from minillm.training import Run

QUESTIONS = [
    {"question": text[:9], "choices": ["the cat", "東京", "Zoë"], "answer": number % 3}
    for number, text in enumerate(TEXTS)
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A GPT-2 in a folder with its tokenizer, texts, and questions."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = BPETokenizer.train(TEXTS, 320)
    model = small_gpt2(tokenizer.vocab_size)
    model.save_pretrained(folder / "gpt2")
    (folder / "gpt2" / "tokenizer.json").write_text(json.dumps(tokenizer.to_hugging_face()))
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text, "other": "x"}) + "\n" for text in TEXTS))
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(record) + "\n" for record in QUESTIONS))
    return SimpleNamespace(folder=folder, gpt2=folder / "gpt2", texts=texts, questions=questions)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["eval", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exit_status:
        main(["eval", *map(str, arguments)])
    assert exit_status.value.code == 2
    return capsys.readouterr().err


def test_perplexity_of_each_line(made: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shown = run(capsys, made.gpt2, "--data", made.texts, "--out", tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    opened = open_model(made.gpt2)
    expected = perplexity(opened.model, opened.needed_tokenizer("test"), TEXTS)
    assert written["measures"] == json.loads(json.dumps({k: v.as_json() for k, v in expected.measures.items()}))
    assert written["counts"]["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert sum(item["nats"] for item in written["items"]) == pytest.approx(written["counts"]["nats"])
    for name, measure in expected.measures.items():
        assert name in shown
        assert f"{measure.value:.4f}" in shown or f"{measure.value:.4g}" in shown
        assert f"{measure.denominator:,.0f} {measure.unit}" in shown
    assert f"documents: 4, each scored apart; ids: {expected.ids:,}" in shown
    again = run(capsys, made.gpt2, "--data", made.texts, "--out", tmp_path / "b.json")
    assert again.replace("b.json", "a.json") == shown
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_multiple_choice(made: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "some.jsonl"
    bad.write_text(made.questions.read_text() + '{"question": "Where?", "choices": ["a"], "answer": 0}\nnot json\n')
    shown = run(capsys, made.gpt2, "--data", bad, "--task", "choices", "--out", tmp_path / "c.json")
    written = json.loads((tmp_path / "c.json").read_text())
    opened = open_model(made.gpt2)
    expected = multiple_choice(opened.model, opened.needed_tokenizer("test"), [question_of(one) for one in QUESTIONS])
    assert {name: one["value"] for name, one in written["measures"].items()} == {
        name: one.value for name, one in expected.measures.items()
    }
    assert [item["acc_norm"] for item in written["items"]] == [one.acc_norm for one in expected.chosen]
    assert written["counts"]["questions"] == 4
    assert written["counts"]["left_out"] == 2
    assert "4 questions" in shown
    assert "2 left out" in shown
    assert "line 5" in shown
    run(capsys, made.gpt2, "--data", bad, "--task", "choices", "--limit", 2, "--out", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["counts"]["questions"] == 2


def test_a_bert_has_pseudo_perplexity(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tokenizer = WordPieceTokenizer.train(TEXTS, 120)
    config = BertConfig(tokenizer.vocab_size, 40, layers=1, heads=2, channels=16, hidden=32)
    BertForMaskedLM(config).eval().save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(json.dumps(tokenizer.to_hugging_face()))
    (tmp_path / "text.txt").write_text(TEXTS[0])
    shown = run(capsys, tmp_path / "bert", "--data", tmp_path / "text.txt")
    assert "pseudo_perplexity" in shown
    assert "bits_per_byte" not in shown
    assert "each token was hidden once" in shown
    assert "not what the ids spell" in shown  # it is lower-cased
    assert "has no --window or --stride" in refused(
        capsys, tmp_path / "bert", "--data", tmp_path / "text.txt", "--window", 4
    )


def test_what_is_wrong_is_one_sentence(
    made: SimpleNamespace, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    choices = ("--task", "choices")
    for arguments, message in [
        ((made.gpt2,), "eval: --data is missing"),
        ((made.gpt2, "--data", tmp_path / "none.txt"), "there is no file or folder"),
        ((made.gpt2, "--data", tmp_path / "empty.txt"), "is empty or has nothing but whitespace"),
        ((made.gpt2, "--data", made.texts, "--field", "txt"), "no 'txt'; did you mean 'text'?"),
        ((made.gpt2, "--data", made.texts, "--window", "0"), "window=0; give 1 to 24"),
        ((made.gpt2, "--data", made.texts, "--window", "25"), "window=25; give 1 to 24"),
        ((made.gpt2, "--data", made.texts, "--stride", "25"), "stride=25; give 1 <= stride <= window"),
        ((made.gpt2, "--data", made.texts, "--limit", "0"), "eval: limit is 0; give 1 or more"),
        ((made.gpt2, "--data", made.texts, "--out", tmp_path / "no" / "a.json"), "make it, or choose another --out"),
        ((made.gpt2, "--data", made.texts, *choices), "none of the 4 records can be used; line 1: the field 'choices'"),
        ((made.gpt2, "--data", tmp_path / "empty.jsonl", *choices), "there are no records in it"),
        ((made.gpt2, "--data", tmp_path / "binary.jsonl", *choices), "is not text: byte 0xff at offset 0"),
        ((made.gpt2, "--data", tmp_path, *choices), "cannot read"),
        ((made.gpt2, "--data", made.texts, "--task", "choice"), "choose one of: perplexity, choices"),
        ((made.gpt2, "--data", made.texts, "--held-out", "0.1"), "eval: --held-out does nothing for perplexity"),
        ((made.gpt2, "--data", made.texts, "--stop", "x"), "leave it out, or give --task exact"),
        ((tmp_path, "--data", made.texts), "config.json is not there"),
        (("llama-nano", "--data", made.texts), "is a preset, which has a configuration and random weights"),
    ]:
        shown = refused(capsys, *arguments)
        assert message in shown
        assert shown.count("\n") == 1


def test_bits_per_byte_equal_those_that_training_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On the validation text, whose windows lie side by side; training leaves its first character out."""
    text = ("der Bär wohnt über dem Fluß; 東京 is far away, said Zoë. " * 20)[:650]
    (tmp_path / "text.txt").write_text(text)
    (tmp_path / "validation.txt").write_text(text[585:])
    settings = "--context 8 --layers 1 --heads 2 --channels 16 --steps 30 --batch-size 4 --eval-batches 2"
    folder = tmp_path / "run"
    main(
        ["train", "--data", str(tmp_path / "text.txt"), "--tokenizer", "char", "--out", str(folder), *settings.split()]
    )
    found = run(capsys, folder, "--data", tmp_path / "validation.txt", "--out", tmp_path / "a.json")
    assert "bits_per_byte" in found
    counts = json.loads((tmp_path / "a.json").read_text())["counts"]
    best = min(Run.open(folder).metrics(), key=lambda record: record["val_loss"] or math.inf)
    first = math.log(Run.open(folder).tokenizer.vocab_size)
    per_id = (counts["nats"] - first) / (counts["ids"] - 1)
    assert counts["ids"] == 65
    assert counts["bytes"] > 65
    assert best["val_loss"] == pytest.approx(per_id, rel=1e-5)
    assert best["val_bits_per_byte"] == pytest.approx(per_id * counts["ids"] / counts["bytes"] / math.log(2), rel=1e-5)


# Heads

WORDS = {"good": ("fine", "grand", "lovely"), "bad": ("dull", "grim", "poor")}


def labelled_texts(path: Path) -> None:
    """Texts that one word decides, no two alike."""
    records = [
        {"text": f"the {word} {noun} of {count} people", "label": label}
        for label, words in WORDS.items()
        for word in words
        for noun in ("film", "plot", "cast", "song")
        for count in range(6)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_classes_are_measured_as_the_training_measures_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data, folder = tmp_path / "reviews.jsonl", tmp_path / "run"
    labelled_texts(data)
    arguments = "--steps 20 --eval-every 20 --eval-batches 9 --sample-every 0 --vocab-size 300 --batch-size 8"
    main(["finetune", "classify", "bert-nano", "--data", str(data), "--out", str(folder), *arguments.split()])
    capsys.readouterr()
    shown = run(capsys, folder, "--data", data, "--held-out", "0.1", "--out", tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["task"] == "classify"
    expected = Run.open(folder).metrics()[-1]["val_accuracy"]
    assert written["measures"]["accuracy"]["value"] == pytest.approx(expected)
    assert written["measures"]["accuracy"]["denominator"] == len(written["items"]) < 40
    said = [item["said"] == item["label"] for item in written["items"]]
    assert sum(said) / len(said) == pytest.approx(expected)
    assert "f1 of good" in shown
    assert "the most frequent class is right for" in shown
    assert "--held-out 0.1 measures what it held out alone" in run(capsys, folder, "--data", data)
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text().replace('"bad"', '"awful"'))
    assert "has classes that the model lacks (awful; it has bad, good)" in refused(capsys, folder, "--data", other)
    assert "has no head for answers" in refused(capsys, folder, "--data", data, "--task", "qa")
    assert "predicts no tokens" in refused(capsys, folder, "--data", data, "--task", "perplexity")


def test_answers_in_texts_are_measured_as_squad_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    paragraphs = [
        {
            "context": (context := f"the {noun} is from {place} and {count} years old"),
            "qas": [
                {
                    "id": f"{noun}{place}{count}",
                    "question": "from where ?",
                    "answers": [{"text": place, "answer_start": context.index(place)}],
                }
            ],
        }
        for noun in ("film", "plot", "cast")
        for place in ("rome", "oslo", "lima")
        for count in range(5)
    ]
    paragraphs[3]["qas"][0]["answers"][0]["answer_start"] += 3  # it does not stand there
    data, folder = tmp_path / "squad.json", tmp_path / "run"
    data.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    arguments = "--steps 4 --eval-every 4 --sample-every 0 --vocab-size 300 --length 30 --stride 8 --max-question 8"
    main(["finetune", "qa", "bert-nano", "--data", str(data), "--out", str(folder), *arguments.split()])
    capsys.readouterr()
    shown = run(capsys, folder, "--data", data, "--out", tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["task"] == "qa"
    assert (written["counts"]["questions"], written["counts"]["left_out"]) == (44, 1)
    right = [item["said"] == item["answers"][0] for item in written["items"]]
    assert written["measures"]["exact_match"]["value"] == pytest.approx(sum(right) / 44)
    assert written["measures"]["f1"]["denominator"] == 44
    assert "1 answer that does not stand where it should" in shown


def test_translations_have_a_bleu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sacrebleu = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    nouns, colours = ("cat", "dog", "bird", "fish"), ("red", "blue", "green")
    sources = [f"the {colour} {noun} sat on the mat" for noun in nouns for colour in colours] * 4
    targets = [f"a {noun} so {colour} was there" for noun in nouns for colour in colours] * 4
    data, other, folder = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "run"
    data.write_text("\n".join(sources) + "\n")
    other.write_text("\n".join(targets) + "\n")
    arguments = "--steps 60 --eval-every 60 --sample-every 0 --vocab-size 280 --batch-tokens 200 --lr 3e-3"
    train = ["train", "--objective", "pairs", "--preset", "bart-nano", "--data", str(data)]
    main([*train, "--targets", str(other), "--out", str(folder), *arguments.split()])
    capsys.readouterr()
    pairs = tmp_path / "pairs.jsonl"
    records = [{"source": a, "target": b} for a, b in zip(sources[:12], targets, strict=False)]
    pairs.write_text("".join(json.dumps(record) + "\n" for record in records))
    shown = run(capsys, folder, "--data", pairs, "--task", "translate", "--out", tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    texts = [item["written"] for item in written["items"]]
    expected = sacrebleu.corpus_bleu(texts, [targets[:12]]).score
    assert written["measures"]["bleu"]["value"] == pytest.approx(expected)
    assert written["measures"]["bleu"]["denominator"] == 12
    assert "12 sources, written greedily" in shown
    assert len(set(texts)) > 1
    both = run(capsys, folder, "--data", data, "--targets", other, "--task", "translate", "--limit", 3)
    assert "the run has learned most of this file" in both
    assert "holds no pairs" in refused(capsys, folder, "--data", data, "--task", "translate")
