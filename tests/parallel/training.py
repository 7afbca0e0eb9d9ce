"""A small training on a mesh, and the same in one process: what the tests of equality compare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from minillm import random
from minillm.lora import LoraConfig, add_lora, lora_state_dict
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.optim import AdamW, decay_groups
from minillm.parallel.communicator import Communicator, Message, Trace
from minillm.parallel.mesh import Mesh, ParallelModel
from minillm.parallel.objective import next_token_batch
from minillm.training.whole_model import accumulate_gradients

GPT = GPT2Config(vocab_size=61, context=16, layers=4, heads=4, channels=32)
LLAMA = LlamaConfig(61, context=16, layers=4, heads=4, kv_heads=4, channels=32, hidden=48, tied=False)


# A bias of all keys changes no softmax, so its gradient is rounding, which AdamW makes as large as any other unless eps
# is larger: in float32 two right ways of computing would drift apart there, and there alone.
EPS = {"float64": 1e-8, "float32": 1e-6}


class Case(NamedTuple):
    """A training to be compared; the first seven settings say what is trained, the others how it is divided.

    lora: the rank of adapters, which alone are trained; 0 for none.
    """

    model: str = "gpt2"
    dtype: str = "float64"
    dropout: float = 0.0
    micro_batches: int = 1
    batch: int = 8
    steps: int = 20
    lora: int = 0
    dp: int = 1
    tp: int = 1
    pp: int = 1
    zero: int = 0
    schedule: str = "1f1b"
    layers: tuple[int, ...] = ()

    def alone(self) -> Case:
        """The case in one process."""
        return Case(*self[:7])

    @property
    def ranks(self) -> int:
        return self.dp * self.tp * self.pp


class Outcome(NamedTuple):
    """The results of a training: losses, norms, weights, the optimiser's state; on a mesh those of rank 0."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]
    state: dict[str, np.ndarray]
    evaluation: list[float]
    counter: int
    messages: list[Message]
    memory: dict[str, int]


def build(case: Case) -> Any:
    random.manual_seed(3)
    model = GPT2(replace(GPT, dropout=case.dropout)) if case.model == "gpt2" else Llama(LLAMA)
    generator = np.random.default_rng(5)
    for parameter in model.parameters():  # biases and norms too, so that one left out shows
        parameter.data[...] += 0.05 * generator.standard_normal(parameter.shape)
    model.to(case.dtype)
    if case.lora:
        targets, saved = (
            (("c_attn", "wpe"), ("ln_f",)) if case.model == "gpt2" else (("q_proj", "v_proj", "lm_head"), ())
        )
        settings = LoraConfig(rank=case.lora, dropout=case.dropout, targets=targets, modules_to_save=saved)
        add_lora(model, settings)
    return model


def batch(case: Case, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and targets; every third batch is smaller, and some targets do not count."""
    generator = np.random.default_rng(step)
    rows = case.batch - 3 if step % 3 == 2 else case.batch
    ids = generator.integers(0, 61, (rows, 13))
    targets = np.where(generator.random((rows, 12)) < 0.3, -100, ids[:, 1:])
    return ids[:, :-1], targets


def mean_loss(parallel: ParallelModel, *batches: dict[str, np.ndarray]) -> float:
    """The mean loss of the targets of these batches, without dropout."""
    value, count = parallel.measures(batches)["loss"]
    return value / count


def one_process(case: Case, start: Any = None) -> Outcome:
    """The training in one process; `start`: weights and optimiser state to begin from."""
    model = build(case)
    optimizer = AdamW(decay_groups(model.parameters(), 0.1), 1e-3, eps=EPS[case.dtype])
    if start is not None:
        model.load_state_dict(start[0])
        optimizer.load_state_dict(start[1])
    losses, norms = [], []
    for step in range(case.steps):
        optimizer.zero_grad()
        losses.append(float(accumulate_gradients(model, next_token_batch(*batch(case, step)), case.micro_batches)))
        norms.append(float(optimizer.clip_grad_norm(0.5)))
        optimizer.step()
    counter = random.default.counter
    model.eval()
    evaluation = [model.loss(*batch(case, 100 + i)).item() for i in range(3)]
    weights = lora_state_dict(model) if case.lora else model.state_dict()
    return Outcome(losses, norms, weights, optimizer.state_dict(), evaluation, counter, [], {})


def on_mesh(communicator: Communicator, case: Case, start: Any = None) -> Outcome:
    """The training on this rank's part of a mesh; `start`: weights and optimiser state to begin from."""
    communicator.trace = Trace()
    model = build(case)
    mesh = Mesh(communicator, case.dp, case.tp, case.pp)
    parallel = ParallelModel(model, mesh, 0.1, case.zero, case.schedule, case.layers)
    optimizer = AdamW(parallel.groups, 1e-3, eps=EPS[case.dtype])
    parallel.attach(optimizer)
    if start is not None:
        parallel.load_state_dict(start[0])
        parallel.load_optimizer_state_dict(optimizer, start[1])
    communicator.trace.messages.clear()
    losses, norms = [], []
    for step in range(case.steps):
        losses.append(float(parallel.forward_backward(next_token_batch(*batch(case, step)), case.micro_batches)))
        norms.append(float(optimizer.clip_grad_norm(0.5)))
        optimizer.step()
        parallel.sync_parameters()
    counter, messages = random.default.counter, list(communicator.trace.messages)
    weights, state = parallel.state_dict(), parallel.optimizer_state_dict(optimizer)
    evaluation = [mean_loss(parallel, next_token_batch(*batch(case, 100 + i))) for i in range(3)]
    mesh.close()
    memory = parallel.data.memory()
    memory["moments"] = sum(moment.nbytes for group in optimizer.groups for moment in group.moments.values())
    return Outcome(losses, norms, weights or {}, state or {}, evaluation, counter, messages, memory)
