"""What each objective learns: `python benchmarks/objectives.py [--steps 750]` writes benchmarks/results/objectives.md.

Small models of the families that learn by filling gaps are trained on tinyshakespeare, each with the tokenizer and the
objective that go with it: BERT on WordPieces with masked tokens and next sentences, RoBERTa on byte pairs with masked
tokens, XLNet on Unigram pieces with permutations. The text's last tenth is for validation. A loss is to be compared
with the unigram entropy: the loss of a model that knows how frequent each token of the validation text is, and nothing
else.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minillm
from minillm import random
from minillm.autograd import no_grad
from minillm.data import mask_tokens, permute_tokens, sentence_pairs, split_text
from minillm.models.bert import BertConfig, BertForPreTraining
from minillm.models.roberta import RobertaConfig, RobertaForMaskedLM
from minillm.models.xlnet import XLNetConfig, XLNetLMHeadModel
from minillm.optim import AdamW, cosine_schedule, decay_groups
from minillm.tokenizers import BPETokenizer, UnigramTokenizer, WordPieceTokenizer
from minillm.tuning import tuned_process

ROOT = Path(__file__).parents[1]
VOCAB, T, B = 300, 16, 128
SIZE = dict(layers=2, heads=4, channels=128, hidden=512, dropout=0.0)
SCALE = (768 / SIZE["channels"]) ** 0.5  # the models' initial weights are for 768 channels; from there it takes long
PEAK, WARMUP, DECAY = 2e-3, 100, 0.01
VALIDATION_BATCHES = 20


class Task(NamedTuple):
    """A model and its batches."""

    model: Any
    objective: str
    tokens: np.ndarray  # ordinary tokens of the validation text
    batches: Callable[[bool], Iterator[dict[str, Any]]]  # of arguments for model.loss; True: for training
    also: Callable[[dict[str, Any]], dict[str, float]]  # what else to note of a validation batch


def windows(row: np.ndarray, length: int, generator: random.Generator) -> np.ndarray:
    """A batch of stretches of the text, (B, length)."""
    starts = generator.numpy().integers(0, len(row) - length + 1, B)
    return row[starts[:, None] + np.arange(length)]


def streams() -> dict[bool, random.Generator]:
    """Random streams for the training batches and for the validation batches, which are the same each time."""
    return {True: random.Generator(1), False: random.Generator(2)}


def nothing_else(batch: dict[str, Any]) -> dict[str, float]:
    return {}


def bert(texts: dict[bool, str]) -> Task:
    """BERT's task: masked tokens, whole words, and next sentences; documents are 30 speeches, sentences their lines."""
    tokenizer = WordPieceTokenizer.train(texts[True], VOCAB)
    special = tokenizer.special_tokens
    documents = {}
    for training, text in texts.items():
        speeches = text.split("\n\n")
        lines = [line for speech in speeches for line in speech.splitlines()]
        sentences = [ids for line in lines if (ids := tokenizer.encode(line))]
        documents[training] = [sentences[start : start + 100] for start in range(0, len(sentences), 100)]
    continues = np.zeros(tokenizer.vocab_size, bool)
    continues[[i for token, i in tokenizer.vocab.items() if token.startswith("##")]] = True
    model = BertForPreTraining(
        BertConfig(tokenizer.vocab_size, T, **SIZE, attention_dropout=0.0, padding_id=special["[PAD]"])
    )

    def batches(training: bool) -> Iterator[dict[str, Any]]:
        stream = streams()[training]
        while True:
            pairs = list(sentence_pairs(documents[training], T, special["[CLS]"], special["[SEP]"], generator=stream))
            order = stream.numpy().permutation(len(pairs))
            for start in range(0, len(pairs) - B + 1, B):
                chosen = [pairs[i] for i in order[start : start + B]]
                lengths = np.array([len(pair.ids) for pair in chosen])
                ids = np.full((B, T), special["[PAD]"])
                types = np.zeros((B, T), np.int64)
                for row, pair in enumerate(chosen):
                    ids[row, : lengths[row]], types[row, : lengths[row]] = pair.ids, pair.token_types
                seen, labels = mask_tokens(
                    ids,
                    tokenizer.vocab_size,
                    special["[MASK]"],
                    special.values(),
                    lengths=lengths,
                    continues=continues,
                    generator=stream,
                )
                follows = np.array([pair.next_sentence for pair in chosen])
                yield dict(ids=seen, labels=labels, token_types=types, lengths=lengths, next_sentence=follows)

    def also(batch: dict[str, Any]) -> dict[str, float]:
        given = {name: batch[name] for name in ("ids", "token_types", "lengths")}
        guess = model(**given)[1].data.argmax(axis=1)
        tokens = model.loss(**given, labels=batch["labels"]).item()
        return {"loss of the tokens": tokens, "next sentences right": float((guess == batch["next_sentence"]).mean())}

    validation = np.array([i for document in documents[False] for sentence in document for i in sentence])
    return Task(model, "masked whole words, next sentence", validation, batches, also)


def roberta(texts: dict[bool, str]) -> Task:
    """RoBERTa's task: masked tokens in stretches of text between <s> and </s>."""
    tokenizer = BPETokenizer.train(texts[True], VOCAB, special_tokens=("<s>", "<pad>", "</s>", "<mask>"))
    special = tokenizer.special_tokens
    rows = {training: np.array(tokenizer.encode(text)) for training, text in texts.items()}
    model = RobertaForMaskedLM(
        RobertaConfig(tokenizer.vocab_size, T, **SIZE, attention_dropout=0.0, padding_id=special["<pad>"])
    )

    def batches(training: bool) -> Iterator[dict[str, Any]]:
        stream = streams()[training]
        ids = np.empty((B, T), np.int64)
        ids[:, 0], ids[:, -1] = special["<s>"], special["</s>"]
        while True:
            ids[:, 1:-1] = windows(rows[training], T - 2, stream)
            seen, labels = mask_tokens(ids, tokenizer.vocab_size, special["<mask>"], special.values(), generator=stream)
            yield dict(ids=seen, labels=labels)

    return Task(model, "masked tokens", rows[False], batches, nothing_else)


def xlnet(texts: dict[bool, str]) -> Task:
    """XLNet's task: spans predicted in a random order, in stretches of text before <sep> and <cls>."""
    tokenizer = UnigramTokenizer.train(texts[True], VOCAB, special_tokens=("<sep>", "<cls>"))
    special = tokenizer.special_tokens
    rows = {training: np.array(tokenizer.encode(text)) for training, text in texts.items()}
    model = XLNetLMHeadModel(XLNetConfig(tokenizer.vocab_size, **SIZE))

    def batches(training: bool) -> Iterator[dict[str, Any]]:
        stream = streams()[training]
        ids = np.empty((B, T), np.int64)
        ids[:, -2], ids[:, -1] = special["<sep>"], special["<cls>"]
        while True:
            ids[:, :-2] = windows(rows[training], T - 2, stream)
            yield permute_tokens(ids, special.values(), generator=stream)._asdict()

    return Task(model, "permutations, one token in six", rows[False], batches, nothing_else)


def entropy(tokens: np.ndarray) -> float:
    """The entropy of the frequencies of tokens, in nats."""
    shares = np.bincount(tokens) / len(tokens)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())


def validate(task: Task) -> dict[str, float]:
    """Mean losses over the validation batches; the batches are the same at every call."""
    task.model.eval()
    notes: list[dict[str, float]] = []
    with no_grad():
        for _, batch in zip(range(VALIDATION_BATCHES), task.batches(False), strict=False):
            notes.append({"loss": task.model.loss(**batch).item(), **task.also(batch)})
    task.model.train()
    return {name: float(np.mean([note[name] for note in notes])) for name in notes[0]}


def learn(name: str, task: Task, steps: int) -> str:
    """Train, and return a row of the table."""
    for parameter in task.model.parameters():
        if parameter.ndim == 2:
            parameter.data *= SCALE
    optimizer = AdamW(decay_groups(task.model.parameters(), DECAY), PEAK)
    before, started = validate(task), time.perf_counter()
    for step, batch in zip(range(steps), task.batches(True), strict=False):
        optimizer.zero_grad()
        optimizer.lr = cosine_schedule(step, peak=PEAK, floor=0, warmup=min(WARMUP, steps - 1), total=steps)
        loss = task.model.loss(**batch)
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        if (step + 1) % 250 == 0:
            print(f"{name} step {step + 1}: loss {loss.item():.3f}, validation {validate(task)}", flush=True)
    seconds, after = time.perf_counter() - started, validate(task)
    key = "loss of the tokens" if "loss of the tokens" in after else "loss"
    extra = "; ".join(f"{what}: {after[what]:.1%}" for what in after if "right" in what)
    cells = (
        *(name, task.objective, f"{task.model.num_parameters():,}", f"{entropy(task.tokens):.2f}"),
        *(f"{before[key]:.2f}", f"**{after[key]:.2f}**", f"{seconds:.0f} s", extra),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--only", choices=["bert", "roberta", "xlnet"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "objectives.md")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        sys.exit(f"{arguments.data} is not there; give --data with a text of a megabyte or so")
    training, validation = split_text(arguments.data.read_text(encoding="utf-8"), 0.1)
    rows = []
    with tuned_process():
        for name, make in {"bert": bert, "roberta": roberta, "xlnet": xlnet}.items():
            if arguments.only in (None, name):
                minillm.manual_seed(0)
                rows.append(learn(name, make({True: training, False: validation}), arguments.steps))
                print(rows[-1], flush=True)
    if arguments.only:
        return
    arguments.out.write_text(
        "\n".join(
            [
                "# Each objective learns",
                "",
                f"`python benchmarks/objectives.py --steps {arguments.steps}`, on {arguments.data.name}: ",
                f"{SIZE['layers']} layers, {SIZE['channels']} channels, context {T}, batches of {B}, {VOCAB} tokens, ",
                f"Python {sys.version.split()[0]}, NumPy {np.__version__}, 2 cores.",
                "Losses are nats per predicted token of the validation text; its unigram entropy is what the",
                "frequencies of its tokens alone give. BERT's is that of the hidden tokens, without the next sentence.",
                "",
                "| model | objective | weights | unigram entropy | loss before | loss after | time | |",
                "|---|---|---|---|---|---|---|---|",
                *rows,
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
