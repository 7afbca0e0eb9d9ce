"""Measuring a model beside lm-evaluation-harness: `python benchmarks/eval_cpu.py` writes results/eval_cpu.md.

The model is a GPT-2 of 6 layers and 384 channels (random weights, float32) with a byte-level BPE of 4,096 tokens, which
both sides read from one folder; the texts are made of the one that every Python carries. Each side is a process of its
own with 2 threads, and the two take turns. The harness runs its own HFLM on transformers, in batches of 8 texts.

- perplexity: 5 documents of 3,000 characters, in windows of 256 tokens;
- choices: 8 questions with 4 choices each, of 60 and 20 words, as long as HellaSwag's.

`pip install torch==2.13.0 ".[oracle]"`. The results of both sides must be equal to 1e-4, or nothing is written.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sides import THREADS, Side, settings

CONTEXT = 256
BATCH = 8  # texts that the harness computes together
REPEATS = 3


def make_folder(folder):
    """Write the model and its tokenizer, as both sides read them."""
    from minillm.data import read_text
    from minillm.models.gpt2 import GPT2, GPT2Config
    from minillm.tokenizers import BPETokenizer

    text = read_text("builtin")
    tokenizer = BPETokenizer.train(text, 4096)
    GPT2(GPT2Config(tokenizer.vocab_size, CONTEXT, layers=6, heads=6, channels=384)).save_pretrained(folder)
    tokenizer.save_hugging_face(folder)
    (folder / "text.txt").write_text(text, encoding="utf-8")


def tasks(folder):
    """The documents, and the questions with their choices."""
    text = (folder / "text.txt").read_text(encoding="utf-8")
    documents = [text[start : start + 3000] for start in range(0, 15000, 3000)]
    words = text.split()

    def stretch(start, count):
        return " ".join(words[start : start + count])

    questions = [
        (stretch(number * 200, 60), [stretch(number * 200 + 60 + 20 * choice, 20) for choice in range(4)])
        for number in range(8)
    ]
    return documents, questions


def minillm_side(folder, documents, questions):
    from minillm.evaluation.likelihood import document_likelihoods
    from minillm.evaluation.multiple_choice import Question, multiple_choice
    from minillm.resolver import open_model

    opened = open_model(folder)
    model, tokenizer = opened.model, opened.needed_tokenizer("benchmark")
    asked = [Question(context, tuple(choices), 0) for context, choices in questions]

    def run(task):
        if task == "perplexity":
            return sum(float(one.sum()) for one in document_likelihoods(model, tokenizer, documents))
        return sum(sum(one.log_probabilities) for one in multiple_choice(model, tokenizer, asked).chosen)

    return run


def harness_side(folder, documents, questions):
    import torch
    import transformers
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(THREADS)
    model = HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        batch_size=BATCH,
        device="cpu",
    )
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in documents]
    pairs = [(context, f" {choice}") for context, choices in questions for choice in choices]
    asked = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]

    def run(task):
        if task == "perplexity":
            return sum(model.loglikelihood_rolling(rolling, disable_tqdm=True))
        return sum(nats for nats, _ in model.loglikelihood(asked, disable_tqdm=True))

    return run


def serve(side, folder):
    """The child process: for each line read, run the task of that name."""
    kind = {"minillm": minillm_side, "harness": harness_side}[side]
    with settings(side):
        run = kind(folder, *tasks(folder))
        for line in sys.stdin:
            start = time.perf_counter()
            nats = run(line.strip())
            print(json.dumps({"nats": nats, "seconds": time.perf_counter() - start}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "eval_cpu.md")
    parser.add_argument("--serve", nargs=2, metavar=("SIDE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]))
        return
    import lm_eval
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as name:
        make_folder(Path(name))
        sides = {side: Side(__file__, side, name) for side in ("minillm", "harness")}
        found = {task: {side: [] for side in sides} for task in ("perplexity", "choices")}
        for task in found:
            for _ in range(REPEATS + 1):  # the first warms up
                for side, process in sides.items():
                    found[task][side].append(process.run(task))
                    print(f"{task}, {side}: {found[task][side][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
        for process in sides.values():
            process.close()
    lines = [
        "# Measuring a model on a CPU, beside lm-evaluation-harness",
        "",
        f"`python benchmarks/eval_cpu.py`, Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, lm_eval {lm_eval.__version__}, {THREADS} threads; medians of {REPEATS} runs.",
        "",
        "| task | minillm, s | harness, s | harness / minillm | nats, minillm | nats, harness |",
        "|---|---|---|---|---|---|",
    ]
    for task, by_side in found.items():
        ours, theirs = (statistics.median(one["seconds"] for one in runs[1:]) for runs in by_side.values())
        nats = [runs[0]["nats"] for runs in by_side.values()]
        if abs(nats[0] - nats[1]) > 1e-4 * abs(nats[1]):
            raise SystemExit(f"eval_cpu: {task} gives {nats[0]} nats here and {nats[1]} there")
        lines.append(f"| {task} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} | {nats[0]:.2f} | {nats[1]:.2f} |")
    print(*lines, sep="\n")
    options.out.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
