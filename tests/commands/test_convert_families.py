"""Runs of every family and every task, converted: the same weights, ids and logits here and in transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minillm.autograd import no_grad
from minillm.chat_templates import Message, chat_template
from minillm.cli import main
from minillm.generate import generate
from minillm.lora import LoraConfig
from minillm.models.distilbert import DistilBertConfig
from minillm.models.gemma import GemmaConfig
from minillm.models.gpt2 import GPT2
from minillm.models.llama import LlamaConfig
from minillm.resolver import open_model
from minillm.tokenizers import BPETokenizer
from minillm.training import train
from minillm.training.tasks.masked import MaskedOptions
from tests.training import task_runs, test_head_tasks, test_reward, test_sft

TEXTS = ("The model reads text and then", "It writes what. Has been read")
HEADS = ("bert", "distilbert", "roberta", "xlnet", "bart")
TASKS = (
    "sft",
    "sft lora",
    "reward gpt2",
    "reward llama",
    *(f"{task} {one}" for task in ("classify", "qa") for one in HEADS),
)
MORE = {
    "distilbert": dict(
        architecture="distilbert",
        model=DistilBertConfig(**task_runs.ENCODER),
        objective="masked",
        tokenizer="wordpiece",
        task=MaskedOptions(length=14, next_sentence=False),
    ),
    "gemma": dict(architecture="gemma", model=GemmaConfig.preset("nano", vocab_size=290)),
    "untied llama": dict(architecture="llama", model=LlamaConfig.preset("nano", vocab_size=290, tied=False)),
}
RUNS = (*task_runs.RUNS, *MORE, *TASKS)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """`run_of(name)`: the directory of a short run, made once."""
    made: dict[str, Path] = {}

    def run(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("run")
            made[name] = train(settings(name, folder), progress=False).folder
        return made[name]

    return run


def settings(name: str, folder: Path) -> Any:
    """The settings of a short run of this kind, and its data."""
    if name in task_runs.RUNS:
        task_runs.write_data(folder)
        return task_runs.run_of(name, folder, steps=3, warmup=1)
    if name in MORE:
        task_runs.write_data(folder)
        return task_runs.run_of("gpt2", folder, steps=3, warmup=1, **MORE[name])
    few = dict(steps=2, warmup=0, eval_every=2, sample_every=0)
    kind, _, family = name.partition(" ")
    data = folder / "data.jsonl"
    if kind == "sft":
        data.write_text("\n".join(map(json.dumps, test_sft.records(40))))
        if family != "lora":
            return test_sft.settings(data, **few)
        tokenizer = BPETokenizer.train("Colour of snow? white " * 20, test_sft.NANO.vocab_size)
        tokenizer.save(folder / "base")
        shape = dataclasses.replace(test_sft.NANO, vocab_size=tokenizer.vocab_size)
        GPT2(shape).save_pretrained(folder / "base")
        start = dict(model=shape, init=str(folder / "base"), lora=LoraConfig(rank=2))
        return test_sft.settings(data, **few, **start, lr=0.1)
    if kind == "reward":
        records = ({"prompt": f"{i}:", "chosen": "THE TEXT", "rejected": "the text"} for i in range(40))
        data.write_text("\n".join(map(json.dumps, records)))
        BPETokenizer.train("the text reads and writes THE TEXT " * 9, 270).save(folder / "tokenizer")
        return test_reward.settings(data, family, **few)
    data.write_text("\n".join(map(json.dumps, test_head_tasks.reviews())))
    (folder / "squad.json").write_text(json.dumps(test_head_tasks.questions()))
    return test_head_tasks.settings(data, family, kind, **few)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_converted_stays_what_it_is(run_of, tmp_path, capsys, name) -> None:
    run = run_of(name)
    main(["convert", str(run), str(tmp_path / "out")])
    assert "without a tokenizer" not in capsys.readouterr().out
    before, after = open_model(run), open_model(tmp_path / "out")
    assert type(after.model) is type(before.model)
    weights, again = before.model.state_dict(), after.model.state_dict()
    assert weights.keys() == again.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)
    for text in TEXTS:
        ids = before.tokenizer.encode(text)
        assert after.tokenizer.encode(text) == ids
        built = [one.tokenizer.build_inputs_with_special_tokens(ids) for one in (before, after)]
        assert built[0] == built[1]
    assert getattr(after.model, "eos_ids", ()) == getattr(before.model, "eos_ids", ())


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RUNS)
def test_transformers_computes_the_same(run_of, tmp_path, name) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    run = run_of(name)
    main(["convert", str(run), str(tmp_path / "out")])
    opened = open_model(run)
    [architecture] = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    model = getattr(transformers, architecture).from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        given = tokenizer(text, return_tensors="pt")
        ids = opened.tokenizer.build_inputs_with_special_tokens(opened.tokenizer.encode(text))
        assert given["input_ids"][0].tolist() == ids
        with torch.no_grad(), no_grad():
            if hasattr(opened.model, "conditioned"):
                start = np.array([[opened.model.config.decoder_start_id, *ids[:3]]])
                theirs = model(**given, decoder_input_ids=torch.tensor(start))
                ours: Any = opened.model(np.array([ids]), start)
            else:
                theirs, ours = model(**given), opened.model(np.array([ids]))
        for one, other in zip(ours if isinstance(ours, tuple) else (ours,), outputs(theirs), strict=False):
            np.testing.assert_allclose(other.numpy(), one.data, atol=2e-5)


def outputs(found: Any) -> list[Any]:
    """The logits in an output of transformers, in the order in which they come here."""
    names = ("prediction_logits", "seq_relationship_logits", "start_logits", "end_logits", "logits")
    return [found[name] for name in names if name in found]


@pytest.mark.parametrize("name", ["gpt2", "llama", "bart", "pairs", "sft", "sft lora"])
def test_runs_that_write_are_sampled_before_and_after(run_of, tmp_path, capsys, name) -> None:
    run = run_of(name)
    main(["convert", str(run), str(tmp_path / "out")])
    shown = []
    for path in (run, tmp_path / "out"):
        capsys.readouterr()
        main(["sample", str(path), "--prompt", "the model", "--max-tokens", "5", "--temperature", "0"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    if name not in ("bart", "pairs"):  # which read the prompt, and write another text
        assert shown[0].startswith("the model")


@pytest.mark.parametrize("name", ["bert", "roberta", "xlnet", "classify bert"])
def test_models_that_write_nothing_say_so(run_of, capsys, name) -> None:
    for command, message in (("sample", "which does not continue a text; give"), ("chat", "which cannot answer; give")):
        with pytest.raises(SystemExit):
            main([command, str(run_of(name))])
        assert message in capsys.readouterr().err


def test_a_translation_is_what_the_model_writes_for_its_source(run_of, capsys) -> None:
    opened = open_model(run_of("pairs"))
    source = [*opened.tokenizer.encode("the model"), opened.model.config.eos_id]
    writer = opened.model.conditioned(np.array([source]))
    ids = list(generate(writer, [opened.model.config.decoder_start_id], 6, temperature=0))
    main(["sample", str(run_of("pairs")), "--prompt", "the model", "--max-tokens", "6", "--temperature", "0"])
    ends = ids.index(opened.model.config.eos_id) if opened.model.config.eos_id in ids else len(ids)
    assert capsys.readouterr().out.removesuffix("\n") == opened.tokenizer.decode(ids[:ends])


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_transformers_asks_a_tuned_run_as_it_was_tuned(run_of, tmp_path) -> None:
    """Ids of the chat template, and the tokens that end an answer."""
    transformers = pytest.importorskip("transformers")
    main(["convert", str(run_of("sft")), str(tmp_path / "out")])
    opened, again = open_model(run_of("sft")), open_model(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert opened.template is again.template is chat_template("alpaca")
    for said in (["Colour of sky?"], ["Colour of sky?", "blue", "And now?"]):
        messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
        asked = [message._asdict() for message in messages]
        found = theirs.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert found == opened.template.encode(opened.tokenizer, messages)
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == opened.tokenizer.eos_id
    assert again.model.eos_ids == opened.model.eos_ids == (opened.tokenizer.eos_id,)
