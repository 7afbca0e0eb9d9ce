"""The measures of lm-evaluation-harness's own code, on the same files and the same small GPT-2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scored_models import TEXTS, hugging_face_tokenizer, small_gpt2

from minillm.evaluation.generation import answers, exact, exercise_of
from minillm.evaluation.likelihood import document_likelihoods, log_likelihoods
from minillm.evaluation.multiple_choice import multiple_choice, question_of
from minillm.evaluation.perplexity import perplexity
from minillm.tokenizers import Tokenizer

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore")]  # the warnings are theirs

ROLES = {
    "bytes": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "metaspace": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
QUESTIONS = [
    {"question": "The cat sat on", "choices": ["the mat", "Zoë", "東京", "the dog and the cat"], "answer": 0},
    {"question": "Wo wohnt der Bär? ", "choices": ["In der Höhle", "東京は日本の首都です", "naïvely"], "answer": 0},
    {"question": "東京は日本の", "choices": ["首都です。", "capital", "é", "猫"], "answer": 3},
    {"question": "Numbers: 1, 2,", "choices": ["3; words", "4", "über dem Fluß", "3"], "answer": 3},
    {"question": "The dog sat on the cat. " * 5 + "The cat", "choices": ["sat", "on", "the mat"], "answer": 2},
    {"question": "Where?\n", "choices": ["on the mat", "in der Höhle, sagte Zoë"], "answer": 1},
    {"question": "猫が好きです。", "choices": ["猫", "The cat sat on the mat"], "answer": 0},
]


@pytest.fixture(scope="module", params=["bytes", "metaspace"])
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our model and tokenizer, and the harness's model of the folder that we wrote."""
    folder = tmp_path_factory.mktemp(request.param)
    hugging_face_tokenizer(request.param).save(str(folder / "tokenizer.json"))
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", **ROLES[request.param]}
    (folder / "tokenizer_config.json").write_text(json.dumps(roles))
    tokenizer = Tokenizer.from_file(folder)
    model = small_gpt2(tokenizer.vocab_size)
    model.save_pretrained(folder)
    return model, tokenizer, harness_model(folder)


def harness_model(folder: Path) -> Any:
    """The harness's model of a folder in Hugging Face's format.

    Its cache of logits is off: where the ids of two requests are equal, but not how many are scored, it takes the
    logits of another place for the one that scores fewer.
    """
    pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    harness = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed")
    return harness.HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        batch_size=3,
        device="cpu",
        logits_cache=False,
    )


def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def task_results(theirs: Any, folder: Path, name: str, records: list[dict], **config: Any) -> dict[str, Any]:
    """What the harness's evaluator says of a task on a .jsonl file with these records."""
    from lm_eval import evaluator
    from lm_eval.api.task import ConfigurableTask

    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        **config,
    }
    task = ConfigurableTask(config=settings)
    task.set_config(key="num_fewshot", value=0)
    return evaluator.evaluate(theirs, {name: task}, bootstrap_iters=100)


def test_log_likelihoods_equal(sides: Any) -> None:
    model, tokenizer, theirs = sides
    pairs = [(q["question"], f" {choice}") for q in QUESTIONS for choice in q["choices"]]
    pairs += [("", "The cat sat"), ("", " Zoë"), ("The cat ", "sat"), ("Wo\n\n", "In der Höhle")]
    expected = theirs.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    found = log_likelihoods(model, tokenizer, pairs)
    np.testing.assert_allclose(
        [one.log_probability for one in found], [nats for nats, _ in expected], rtol=1e-5, atol=1e-5
    )
    assert [one.is_greedy for one in found] == [greedy for _, greedy in expected]
    assert any(one.cut for one in found)  # one context is longer than the model's


def test_rolling_log_likelihoods_equal(sides: Any) -> None:
    """The harness also scores the <s> that a tokenizer puts before a text, so such a document is compared without."""
    model, tokenizer, theirs = sides
    theirs.add_bos_token = False
    try:
        documents = [*TEXTS, TEXTS[0] * 4, "Z"]
        expected = theirs.loglikelihood_rolling(
            requests("loglikelihood_rolling", [(text,) for text in documents]), disable_tqdm=True
        )
    finally:
        theirs.add_bos_token = None
    found = document_likelihoods(model, tokenizer, documents)
    np.testing.assert_allclose([one.sum() for one in found], expected, rtol=1e-5)
    assert max(map(len, found)) > 2 * model.config.context


@pytest.mark.parametrize("stride", [24, 10, 1])
def test_windows_equal_with_more_context(stride: int) -> None:
    utils = pytest.importorskip("lm_eval.utils", reason="lm_eval is not installed")
    from minillm.evaluation.likelihood import rolling_windows

    for length in (0, 1, 5, 23, 24, 25, 60, 101):
        ids = list(range(1, length + 1))
        expected = list(utils.get_rolling_token_windows(ids, 0, 24, 24 - stride + 1))
        assert [(one.inputs, one.targets) for one in rolling_windows(ids, 0, 24, stride)] == expected


def test_multiple_choice_equals_the_evaluator(sides: Any, tmp_path: Path) -> None:
    model, tokenizer, theirs = sides
    results = task_results(
        theirs,
        tmp_path,
        "questions",
        QUESTIONS,
        output_type="multiple_choice",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        doc_to_choice="{{choices}}",
        metric_list=[{"metric": name, "aggregation": "mean"} for name in ("acc", "acc_norm", "acc_bytes")],
    )
    found = multiple_choice(model, tokenizer, [question_of(record) for record in QUESTIONS])
    expected = results["results"]["questions"]
    for name, measure in found.measures.items():
        assert measure.value == expected[f"{name},none"]
        assert measure.stderr == pytest.approx(expected[f"{name}_stderr,none"], abs=1e-12)
    samples = sorted(results["samples"]["questions"], key=lambda sample: sample["doc_id"])
    for sample, chosen in zip(samples, found.chosen, strict=True):
        theirs_nats = [float(nats) for nats, _ in sample["filtered_resps"]]
        np.testing.assert_allclose(chosen.log_probabilities, theirs_nats, rtol=1e-5, atol=1e-5)
        for name in found.measures:
            assert sample[name] == (getattr(chosen, name) == int(sample["target"]))


def test_perplexities_equal_the_evaluator(sides: Any, tmp_path: Path) -> None:
    model, tokenizer, theirs = sides
    documents = [*TEXTS, TEXTS[1] * 3, f" {TEXTS[0]} "]
    theirs.add_bos_token = False
    try:
        results = task_results(
            theirs,
            tmp_path,
            "documents",
            [{"text": text} for text in documents],
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_target="{{text}}",
            metric_list=[{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        )
    finally:
        theirs.add_bos_token = None
    found = perplexity(model, tokenizer, documents)
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert found.measures[name].value == pytest.approx(results["results"]["documents"][f"{name},none"], rel=1e-5)


def test_a_bootstrap_has_the_harness_standard_error(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="lm_eval is not installed")
    from minillm.evaluation.intervals import mean, mean_stderr

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    values = rng.exponential(2.0, 80).tolist()
    assert mean_stderr(values) == pytest.approx(metrics.mean_stderr(values), rel=1e-12)
    found = mean(values)
    theirs = metrics.bootstrap_stderr(metrics.mean, values, iters=1000)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(theirs, rel=0.1)


def test_records_of_hellaswag_equal_its_task() -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from lm_eval.tasks.hellaswag import utils

    records = [
        {
            "activity_label": label,
            "ctx_a": "[header] How to make tea [title] Boil  water.",
            "ctx_b": "the person, in  RED,",
            "endings": ["pours [substeps] it.", " [title] waits", "sings  loudly.", "[step] leaves."],
            "label": "2",
        }
        for label in ("Making tea", "Tea [x]")
    ]
    for record, theirs in zip(records, utils.process_docs(datasets.Dataset.from_list(records)), strict=True):
        found = question_of(record)
        assert (found.context, list(found.choices), found.answer) == (
            theirs["query"],
            theirs["choices"],
            theirs["gold"],
        )


def test_written_answers_equal_the_evaluator(sides: Any, tmp_path: Path) -> None:
    model, tokenizer, theirs = sides
    prompts = ["The cat", "Wo wohnt", "猫が", "Numbers: 1"]
    [first, *_], _ = answers(model, tokenizer, prompts, 8, ["\n"])
    records = [{"question": prompt, "answer": first if number < 2 else "x"} for number, prompt in enumerate(prompts)]
    results = task_results(
        theirs,
        tmp_path,
        "answers",
        records,
        output_type="generate_until",
        doc_to_text="{{question}}",
        doc_to_target="{{answer}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean"}],
    )
    found = exact(model, tokenizer, [exercise_of(record) for record in records], 8, ["\n"])
    samples = sorted(results["samples"]["answers"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == found.written
    expected = results["results"]["answers"]
    assert found.measures["exact_match"].value == expected["exact_match,none"]
    assert found.measures["exact_match"].stderr == pytest.approx(expected["exact_match_stderr,none"], abs=1e-12)
