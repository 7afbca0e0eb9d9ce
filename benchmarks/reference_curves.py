"""Train the small presets on the built-in text with several seeds, and write the curves that `minillm doctor` knows.

    python benchmarks/reference_curves.py                      every preset, some minutes each
    python benchmarks/reference_curves.py nano --seeds 1337 1 2 3 4 5 6 8

Each curve is what `minillm train --preset NAME --seed S` gives, and nothing else: no run is left out. A file of
minillm/study/doctor/curves has the settings, a checksum of the text, and the validation losses of every run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

import minillm
from minillm.study.doctor import examine_run
from minillm.study.doctor.reference import text_of_builtin
from minillm.training import train
from minillm.training.config import preset

PRESETS = ("nano", "llama-nano", "bert-nano", "roberta-nano", "xlnet-nano", "bart-nano")
SEEDS = (1337, 1)  # of nano and llama-nano, which take seconds, there are eight
FOLDER = Path(minillm.__file__).parent / "study" / "doctor" / "curves"


def curve(name: str, seeds: list[int]) -> dict:
    """The runs of a preset, as a file has them."""
    settings = json.loads(json.dumps(preset(name).to_json()))
    losses: list[list[float]] = []
    steps: list[int] = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            config = dataclasses.replace(preset(name), seed=seed, out=out, sample_every=0, threads=1)
            run = train(config, progress=False)
            records = run.metrics()
            if records[-1]["step"] < config.steps:  # interrupted: a curve is of whole runs
                raise SystemExit(f"{name}: the run with seed {seed} was stopped; nothing is written")
            print(*(one for one in examine_run(run.folder) if one.is_alarm), sep="\n")
        validated = [one for one in records if one["val_loss"] is not None]
        steps = [one["step"] for one in validated]
        losses.append([round(one["val_loss"], 4) for one in validated])
    del settings["out"]
    return {
        "preset": name,
        "settings": settings,
        "text": text_of_builtin(),
        "steps": steps,
        "losses": losses,
        "seeds": seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    given = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for name in given.presets:
        made = curve(name, given.seeds)
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in made.items())
        (FOLDER / f"{name}.json").write_text(f"{{{lines}}}\n", encoding="utf-8")
        last = [losses[-1] for losses in made["losses"]]
        print(f"{name}: {np.mean(last):.3f} +- {np.std(last):.3f} at step {made['steps'][-1]}")


if __name__ == "__main__":
    main()
