"""The command that trains a planned model, and scripts that start it on all GPUs: torchrun, Slurm, Kubernetes."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from minillm.study.plan import Plan
from minillm.study.plan.units import duration, short
from minillm.training.config import preset

KINDS = ("torchrun", "slurm", "kubernetes")
SIZES = ("context", "layers", "heads", "kv_heads", "channels", "hidden")
WARMUP = 2000  # steps (Touvron et al. 2023, arXiv:2307.09288, section 2.2, as are beta2 and the weight decay)


def learning_rate(parameters: float) -> float:
    """The peak of GPT-3's models, by a line in logarithms: 6e-4 at 125 million to 1.2e-4 at 6.7 billion and above.

    Source: Brown et al. 2020, arXiv:2005.14165, table 2.1.
    """
    share = math.log(parameters / 125e6) / math.log(6.7e9 / 125e6)
    return float(f"{6e-4 * (1.2e-4 / 6e-4) ** min(max(share, 0.0), 1.0):.2g}")


def train_arguments(plan: Plan) -> list[str]:
    """The arguments of `minillm` that train the plan's model on its division."""
    division, name = plan.division, run_name(plan)
    every = max(1, plan.steps // 50)
    options: dict[str, Any] = {
        "model": plan.kind.__name__.lower(),
        **shape_options(plan.kind, replace(plan.config, context=plan.context)),
        "data": f"data/{plan.language}-tokens",
        "tokenizer": f"data/{plan.language}-tokenizer",
        "out": f"runs/{name}",
        "steps": plan.steps,
        "batch-size": plan.batch,
        "micro-batches": division.micro_batches,
        "lr": learning_rate(plan.parameters),
        "warmup": min(WARMUP, max(1, plan.steps // 10)),
        "beta2": 0.95,
        "eval-every": every,
        "sample-every": 5 * every,
        "device": "cpu" if plan.gpu.name == "cpu" else "cuda",
        "dtype": plan.gpu.dtype,
    }
    if division.ranks > 1:
        options |= {"dp": division.dp, "tp": division.tp, "pp": division.pp, "zero": division.zero}
    if division.recompute:
        options["recompute"] = "all"
    words = ["train"]
    for option, value in options.items():
        words += ["--" + option] if value is True else ["--" + option, str(value)]
    return words


def shape_options(kind: Any, config: Any) -> dict[str, Any]:
    """The sizes of a model as options: always the main ones, and others where `minillm train --model` has another.

    The number of tokens is the tokenizer's.
    """
    usual = preset("default").with_model(kind.__name__.lower()).model
    options: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_plain = isinstance(value, bool | int | float) and field.name != "vocab_size"
        if is_plain and (field.name in SIZES or value != getattr(usual, field.name)):
            no = "no-" if value is False else ""
            options[no + field.name.replace("_", "-")] = True if isinstance(value, bool) else value
    return options


def run_name(plan: Plan) -> str:
    """A name for the run: llama-7b-de, or the preset's."""
    base = Path(plan.name).name.replace("llama of ", "llama-").lower()[:40]
    return re.sub("[^a-z0-9]+", "-", f"{base}-{plan.language}").strip("-")


def script(plan: Plan, kind: str) -> str:
    """The script of a kind in `KINDS`."""
    return {"torchrun": _torchrun, "slurm": _slurm, "kubernetes": _kubernetes}[kind](plan)


def nodes_of(plan: Plan) -> tuple[int, int]:
    """The number of machines, and of ranks on each."""
    nodes = max(1, plan.gpus // plan.gpu.per_node)
    return nodes, plan.gpus // nodes


def _head(plan: Plan) -> list[str]:
    """Comments: what the script does, how long it takes, and how its data is made."""
    what = f"{plan.name}, {plan.parameters:,} parameters, {short(plan.tokens)} tokens of {plan.language}"
    where = f"{plan.gpus} x {plan.gpu.name}, {plan.division.name}"
    text = f"data/{plan.language}-text"
    tokenizer, tokens = f"data/{plan.language}-tokenizer", f"data/{plan.language}-tokens"
    return [
        f"# {what}",
        f"# {where}; predicted: {duration(plan.seconds)}",
        "# Before it, once, with the collected text (see `minillm plan`):",
        f"#   minillm tokenizer train {tokenizer} --data {text} --vocab-size {plan.config.vocab_size}",
        f"#   minillm tokenizer encode {tokenizer} --data {text} --out {tokens}",
        f"# To go on after a stop: replace what follows `train` by --resume runs/{run_name(plan)}",
    ]


def _command(plan: Plan, indent: str = "    ") -> str:
    """`minillm train ...`, a few options a line."""
    lines, line = [], "minillm"
    words = [shlex.quote(word) for word in train_arguments(plan)]
    groups: list[str] = []
    for word in words:
        if word.startswith("--") or not groups:
            groups.append(word)
        else:
            groups[-1] += f" {word}"
    for group in groups:
        if len(line) + len(group) > 90:
            lines.append(line)
            line = indent.rstrip("\n") + group
        else:
            line += f" {group}"
    return " \\\n".join([*lines, line])


def _torchrun(plan: Plan) -> str:
    nodes, ranks = nodes_of(plan)
    single = ["torchrun --standalone"]
    several = [f"torchrun --nnodes {nodes} --rdzv-backend c10d --rdzv-id {run_name(plan)}"]
    several += ['    --rdzv-endpoint "${NODE0:?give the name of the first machine}:29400"']
    start = " \\\n".join([*(single if nodes == 1 else several), f"    --nproc-per-node {ranks} --no-python"])
    token = "export MINILLM_TOKEN=${MINILLM_TOKEN:-$(openssl rand -hex 16)}"
    if nodes > 1:
        token = ': "${MINILLM_TOKEN:?make it once by openssl rand -hex 16, and give all machines the same}"'
        token += "\nexport MINILLM_TOKEN"
    where = [f"# Run it on each of the {nodes} machines."] if nodes > 1 else []
    body = ["set -euo pipefail", token, f"{start} \\\n    {_command(plan, '        ')}"]
    if plan.gpus == 1:  # one rank needs no launcher
        body = ["set -euo pipefail", _command(plan)]
    return "\n".join(["#!/bin/bash", *_head(plan), *where, *body, ""])


def _slurm(plan: Plan) -> str:
    nodes, ranks = nodes_of(plan)
    hours = math.ceil(1.2 * plan.seconds / 3600)
    settings = {
        "job-name": run_name(plan),
        "nodes": nodes,
        "ntasks-per-node": ranks,
        "time": f"{hours // 24}-{hours % 24:02d}:00:00",
        "output": "%x-%j.log",
    }
    if plan.gpu.name != "cpu":
        settings["gpus-per-node"] = ranks
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH --{name}={value}" for name, value in settings.items()),
            *_head(plan),
            "set -euo pipefail",
            "export MINILLM_TOKEN=$(openssl rand -hex 16)",
            f"srun {_command(plan)}",
            "",
        ]
    )


def _kubernetes(plan: Plan) -> str:
    """An indexed job, a pod for each machine, and a service by which the pods find the first one."""
    nodes, ranks = nodes_of(plan)
    name = run_name(plan)
    limits = "" if plan.gpu.name == "cpu" else f"\n          resources: {{limits: {{nvidia.com/gpu: {ranks}}}}}"
    head = "\n".join(_head(plan))
    return f"""{head}
# It needs an image with minillm and its cuda extra, a claim `minillm-data` with data/ and runs/, and a secret:
#   kubectl create secret generic minillm --from-literal=token=$(openssl rand -hex 16)
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {{job-name: {name}}}
---
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}}}
spec:
  completionMode: Indexed
  completions: {nodes}
  parallelism: {nodes}
  backoffLimit: 0
  template:
    spec:
      subdomain: {name}
      restartPolicy: Never
      containers:
        - name: train
          image: minillm:latest
          workingDir: /work
          command: [bash, -ec]
          args:
          - |
{_pod(plan, name, ranks)}
          env:
            - {{name: MINILLM_TOKEN, valueFrom: {{secretKeyRef: {{name: minillm, key: token}}}}}}{limits}
          volumeMounts:
            - {{name: data, mountPath: /work}}
            - {{name: shared-memory, mountPath: /dev/shm}}
      volumes:
        - {{name: data, persistentVolumeClaim: {{claimName: minillm-data}}}}
        - {{name: shared-memory, emptyDir: {{medium: Memory}}}}
"""


def _pod(plan: Plan, name: str, ranks: int) -> str:
    """The program of a pod: it starts a rank for each GPU of its machine, and fails if one of them does."""
    indent = " " * 12
    if plan.gpus == 1:
        return indent + _command(plan, indent + "    ")
    lines = f"""\
export WORLD_SIZE={plan.gpus} MASTER_ADDR={name}-0.{name} MASTER_PORT=29500
pids=()
for local in $(seq 0 {ranks - 1}); do
  LOCAL_RANK=$local RANK=$((JOB_COMPLETION_INDEX * {ranks} + local)) \\
    {_command(plan, " " * 6)} &
  pids+=($!)
done
for pid in "${{pids[@]}}"; do wait "$pid"; done"""
    return textwrap.indent(lines, indent)
