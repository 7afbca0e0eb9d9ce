"""What each objective learns: `python benchmarks/objectives.py [--steps 750]` writes benchmarks/results/objectives.md.

Small models of the families that learn by filling gaps are trained on tinyshakespeare by the loop of `minillm train`,
each with the tokenizer and the objective that go with it: BERT on WordPieces with masked tokens and next sentences,
RoBERTa on byte pairs with masked tokens, XLNet on Unigram pieces with permutations, BART on byte pairs with corrupted
texts. The text's last tenth is for validation. A loss is to be compared with the unigram entropy: the loss of a model
that knows how frequent each token of the validation text is, and nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from minillm.models.bart_config import both_sides
from minillm.training import TrainConfig, train
from minillm.training.tasks import task_class
from minillm.training.tasks.windows import entropy

ROOT = Path(__file__).parents[1]
VOCAB, LENGTH, ROWS = 300, 16, 128
ENCODER: dict[str, Any] = dict(vocab_size=VOCAB, layers=2, heads=4, channels=128, hidden=512, dropout=0.0)
SHAPES: dict[str, dict[str, Any]] = {
    "bert": dict(context=LENGTH, attention_dropout=0.0, **ENCODER),
    "roberta": dict(context=LENGTH, attention_dropout=0.0, **ENCODER),
    "xlnet": ENCODER,
    "bart": dict(
        vocab_size=VOCAB, context=LENGTH, channels=128, **both_sides(2, 4, 512), dropout=0.0, init_std=128**-0.5
    ),
}
WHAT = {
    "bert": "masked whole words, next sentence",
    "roberta": "masked tokens",
    "xlnet": "permutations, one token in six",
    "bart": "restoring corrupted texts",
}


def settings(family: str, data: Path, steps: int, out: Path) -> TrainConfig:
    """The settings of a run."""
    start = TrainConfig(
        data=str(data),
        out=out,
        steps=steps,
        batch_size=ROWS,
        lr=2e-3,
        min_lr=0.0,
        warmup=min(100, steps - 1),
        weight_decay=0.01,
        beta2=0.999,
        eval_every=250,
        eval_batches=20,
        sample_every=steps,
        sample_tokens=LENGTH,
        seed=0,
    )
    config = start.with_model(family)
    task = dataclasses.replace(config.task, length=LENGTH)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **SHAPES[family]), task=task)


def learn(family: str, data: Path, steps: int) -> str:
    """Train, and return a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        config = settings(family, data, steps, Path(folder, family))
        run = train(config)
        records = run.metrics()
        task: Any = task_class(config.objective)(config, run.tokenizer)
        weights = sum(array.size for array in task.make_model(config, run.tokenizer).state_dict().values())
    validation = task.tokens_of[1] if family == "bert" else np.asarray(task.corpus.validation)
    last, name = records[-1], "val_masked" if family == "bert" else "val_loss"
    shares = {"val_accuracy": "hidden tokens right", "val_next_accuracy": "next sentences right"}
    extra = "; ".join(f"{what}: {last[key]:.1%}" for key, what in shares.items() if key in last)
    cells = (
        *(family, WHAT[family], f"{weights:,}", f"{entropy(validation):.2f}", f"{records[0]['loss']:.2f}"),
        *(f"**{last[name]:.2f}**", f"{last['seconds']:.0f} s", extra),
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "tinyshakespeare.txt")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--only", choices=list(SHAPES))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "objectives.md")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        sys.exit(f"{arguments.data} is not there; give --data with a text of a megabyte or so")
    rows = []
    for family in SHAPES:
        if arguments.only in (None, family):
            rows.append(learn(family, arguments.data, arguments.steps))
            print(rows[-1], flush=True)
    if arguments.only:
        return
    arguments.out.write_text(
        "\n".join(
            [
                "# Each objective learns",
                "",
                f"`python benchmarks/objectives.py --steps {arguments.steps}`, on {arguments.data.name}: ",
                f"2 layers (BART: 2 + 2), 128 channels, {LENGTH} tokens, batches of {ROWS}, {VOCAB} tokens, ",
                f"Python {sys.version.split()[0]}, NumPy {np.__version__}, 2 cores.",
                "Losses are nats per predicted token of the validation text; its unigram entropy is what the",
                "frequencies of its tokens alone give. BERT's is that of the hidden tokens, without the next sentence;",
                "that of the first step has both.",
                "",
                "| model | objective | weights | unigram entropy | loss, first step | validation loss | time | |",
                "|---|---|---|---|---|---|---|---|",
                *rows,
                "",
            ]
        )
    )


if __name__ == "__main__":
    main()
