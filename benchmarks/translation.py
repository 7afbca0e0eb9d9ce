"""Translation: `python benchmarks/translation.py [--minutes 25]` writes benchmarks/results/translation.md.

It trains a small Bart on Multi30k (29,000 English captions of pictures with German translations) for the stated time on
two cores, and translates the 1,014 pairs of its validation set, greedily and by beam search. BLEU is sacrebleu's
(`pip install ".[translation]"`), on the plain text. It is compared with that of three translators that need no network:
the English itself; for each word the German word that IBM model 1 finds likeliest; the German translation of the most
similar English line of the training set.

Nothing is chosen by the validation set: the last 1,000 pairs of the training set are held apart, and the weights that
have the lowest loss on them, looked for after every epoch, are those that translate. The learning rate follows the
clock, so the same seed gives the same weights only where steps take the same time.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import math
import platform
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from sides import THREADS, settings

ROOT = Path(__file__).parents[1]
HELD_APART = 1000
BEAMS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument(
        "--minutes", type=float, default=25.0, help="of training; validation and translation come on top"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=6000)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="in a batch, source and target")
    parser.add_argument("--lr", type=float, default=1e-3, help="at its peak")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--smoothing", type=float, default=0.1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "translation.md")
    options = parser.parse_args()
    if not (options.data / "multi30k.train.en.gz").is_file():
        print(f"translation: {options.data} has no multi30k.train.en.gz; give another --data")
        return
    try:
        import sacrebleu
    except ImportError:
        print('translation: sacrebleu is missing; pip install ".[translation]"')
        return

    def bleu(translations):
        return sacrebleu.corpus_bleu(translations, [test[1]]).score

    pairs, test = read_pairs(options.data, "train"), read_pairs(options.data, "val")
    train = [side[:-HELD_APART] for side in pairs]
    validation = [side[-HELD_APART:] for side in pairs]
    print("baselines ...", flush=True)
    scores = {
        "the English itself": bleu(test[0]),
        "word by word, IBM model 1": bleu(word_by_word(*train, test[0])),
        "the nearest training sentence": bleu(nearest(*train, test[0])),
    }
    with settings("minillm"):
        tokenizer, model, run = train_model(train, validation, options)
        started = time.perf_counter()
        greedy = translate(model, tokenizer, test[0], beams=1)
        greedy_seconds, started = time.perf_counter() - started, time.perf_counter()
        searched = translate(model, tokenizer, test[0], beams=BEAMS)
        beam_seconds = time.perf_counter() - started
    scores |= {"Bart, greedily": bleu(greedy), f"Bart, {BEAMS} beams": bleu(searched)}
    config = model.config
    command = "python benchmarks/translation.py" + (f" --minutes {options.minutes:g}" if options.minutes != 25 else "")
    lines = [
        "# Translation, English to German",
        "",
        f"`{command}`, seed {options.seed}, Python {platform.python_version()}, {THREADS} threads.",
        f"Trained on the first {len(train[0]):,} pairs of Multi30k's training set; the weights are those with the "
        f"lowest loss on the other {HELD_APART:,}; tested on all {len(test[0]):,} pairs of its validation set, which "
        "nothing was chosen by.",
        "",
        f"- Model: {model.num_parameters():,} weights: {config.encoder_layers} + {config.decoder_layers} blocks of "
        f"{config.channels} channels, {config.encoder_heads} heads and MLPs {config.encoder_hidden} wide, "
        f"{config.activation}, post-norm; one byte-level BPE of {tokenizer.vocab_size:,} tokens for both languages, "
        "from the training pairs.",
        f"- Training: AdamW, learning rate {options.lr:g} at its peak, dropout {options.dropout:g}, label smoothing "
        f"{options.smoothing:g}, batches of up to {options.batch_tokens:,} tokens.",
        f"- {run['steps']:,} steps ({run['epochs']:.1f} epochs) in {run['seconds']:.0f} s, "
        f"{run['tokens'] / run['seconds']:,.0f} tokens (source and target) a second; training loss at the end "
        f"{run['loss']:.3f} (smoothed, with dropout), loss on the pairs held apart {run['best_loss']:.3f} nats per "
        f"token at best, in epoch {run['best_epoch']}.",
        f"- Translating {len(test[0]):,} sentences took {greedy_seconds:.0f} s greedily and {beam_seconds:.0f} s with "
        f"{BEAMS} beams.",
        "",
        "| translator | BLEU |",
        "|---|---|",
        *(f"| {name} | {score:.1f} |" for name, score in scores.items()),
        "",
        f"BLEU of sacrebleu {sacrebleu.__version__}, as it comes (13a, mixed case).",
        "",
        "| epoch | " + " | ".join(str(epoch) for epoch in range(1, len(run["losses"]) + 1)) + " |",
        "|---|" + "---|" * len(run["losses"]),
        "| loss held apart | " + " | ".join(f"{loss:.3f}" for loss in run["losses"]) + " |",
        "",
        f"Ten translations, every hundredth, with {BEAMS} beams:",
        "",
        "| English | Bart | reference |",
        "|---|---|---|",
        *(f"| {test[0][i]} | {searched[i]} | {test[1][i]} |" for i in range(0, 1000, 100)),
    ]
    print("\n".join(lines))
    options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


def read_pairs(folder, part):
    """Read the English and the German lines."""
    return [
        gzip.decompress((folder / f"multi30k.{part}.{language}.gz").read_bytes()).decode().strip().split("\n")
        for language in ("en", "de")
    ]


# --- Bart ----------------------------------------------------------------------------------------------------------


def task_of(train, validation, options, folder):
    """The task of `minillm train --objective pairs` on these pairs, written to files as that command reads them."""
    from minillm.training.config import preset
    from minillm.training.tasks.pairs import PairsTask

    files = [Path(folder, name) for name in ("pairs.en", "pairs.de")]
    for side, file in enumerate(files):
        file.write_text("\n".join([*train[side], *validation[side]]), encoding="utf-8")
    start = preset("multi30k")
    config = dataclasses.replace(
        start,
        data=str(files[0]),
        validation_fraction=len(validation[0]) / (len(train[0]) + len(validation[0])),
        model=dataclasses.replace(start.model, vocab_size=options.vocab_size, dropout=options.dropout),
        task=dataclasses.replace(
            start.task, targets=str(files[1]), batch_tokens=options.batch_tokens, smoothing=options.smoothing
        ),
        seed=options.seed,
    )
    return PairsTask(config)


def train_model(train, validation, options):
    """Train; returns the tokenizer, the model with its best weights, and a summary of the run."""
    import minillm
    from minillm.optim import AdamW, decay_groups
    from minillm.training.whole_model import WholeModel, accumulate_gradients

    with tempfile.TemporaryDirectory() as folder:
        task = task_of(train, validation, options, folder)
    held_apart = [batch._asdict() for batch in task.validation.evaluation_batches()]
    minillm.manual_seed(options.seed)
    model = task.make_model(task.config, task.tokenizer)
    optimizer = AdamW(decay_groups(model.parameters(), 1e-4), options.lr, betas=(0.9, 0.98))
    run = {"steps": 0, "tokens": 0, "seconds": 0.0, "losses": [], "best_loss": math.inf, "best_epoch": 0}
    best = None
    while run["seconds"] < 60 * options.minutes:
        started = time.perf_counter()
        optimizer.lr = options.lr * rate(run["seconds"] / (60 * options.minutes))
        batch = task.batch(run["steps"])
        optimizer.zero_grad()
        run["loss"] = float(accumulate_gradients(model, batch, 1, task))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        run["seconds"] += time.perf_counter() - started
        run["steps"] += 1
        run["tokens"] += task.tokens(batch)
        is_last = run["seconds"] >= 60 * options.minutes
        if run["steps"] % task.train.batches_per_epoch == 0 or is_last:
            total, count = WholeModel(model).measures(held_apart, task)["loss"]
            run["losses"].append(total / count)
            if run["losses"][-1] < run["best_loss"]:
                run |= {"best_loss": run["losses"][-1], "best_epoch": len(run["losses"])}
                best = {name: array.copy() for name, array in model.state_dict().items()}
            print(
                f"epoch {len(run['losses'])}: {run['seconds']:.0f} s, step {run['steps']}, loss {run['loss']:.3f}, "
                f"held apart {run['losses'][-1]:.3f}",
                flush=True,
            )
    run["epochs"] = run["steps"] / task.train.batches_per_epoch
    model.load_state_dict(best)
    return task.tokenizer, model.eval(), run


def rate(progress, warmup=0.08):
    """Share of the peak learning rate by the share of the time that is over: a linear rise, then half a cosine down."""
    if progress < warmup:
        return (progress + 1e-3) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def translate(model, tokenizer, lines, beams):
    """Translate each line."""
    from minillm.training.tasks.pairs import translate

    return translate(model, tokenizer, [[*tokenizer.encode(line), model.config.eos_id] for line in lines], beams=beams)


# --- baselines -----------------------------------------------------------------------------------------------------


def words(line):
    return re.findall(r"\w+|[^\w\s]", line)


def word_by_word(english, german, lines, rounds=5):
    """Replace each word e by the German word f with the largest t(f | e): IBM model 1 (Brown et al. 1993), by EM."""
    numbers = [defaultdict(lambda side=side: len(numbers[side])) for side in (0, 1)]
    e, f, sentence_word, place = [], [], [], 0
    for line, other in zip(english, german, strict=True):
        left, right = ([numbers[side][word] for word in words(text)] for side, text in enumerate((line, other)))
        e.append(np.tile(left, len(right)))
        f.append(np.repeat(right, len(left)))
        sentence_word.append(np.repeat(np.arange(place, place + len(right)), len(left)))
        place += len(right)
    e, f, sentence_word = map(np.concatenate, (e, f, sentence_word))
    pair, which = np.unique(e * len(numbers[1]) + f, return_inverse=True)
    of = pair // len(numbers[1])  # the English word of each pair of words
    t = np.ones(len(pair))
    for _ in range(rounds):
        share = t[which]
        share /= np.bincount(sentence_word, share)[sentence_word]  # which English word a German one comes from
        t = np.bincount(which, share)
        t /= np.bincount(of, t)[of]
    german_words, best = list(numbers[1]), {}
    for i in np.argsort(t, kind="stable"):
        best[int(of[i])] = german_words[pair[i] % len(numbers[1])]
    found = {word: best[number] for word, number in numbers[0].items()}
    return [re.sub(r" ([.,!?;:])", r"\1", " ".join(found.get(word, word) for word in words(line))) for line in lines]


def nearest(english, german, lines):
    """The translation of the English line with the largest cosine, words weighed by log(N / lines with the word)."""
    holders = defaultdict(list)
    for i, line in enumerate(english):
        for word in set(words(line.lower())):
            holders[word].append(i)
    weight = {word: math.log(len(english) / len(found)) for word, found in holders.items()}
    norms = np.zeros(len(english))
    for word, found in holders.items():
        norms[found] += weight[word] ** 2
    norms = np.sqrt(np.maximum(norms, 1e-9))
    chosen = []
    for line in lines:
        products = np.zeros(len(english))
        for word in set(words(line.lower())) & weight.keys():
            products[holders[word]] += weight[word] ** 2
        chosen.append(german[int(np.argmax(products / norms))])
    return chosen


if __name__ == "__main__":
    main()
