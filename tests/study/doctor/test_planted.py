"""Faults that are planted into healthy trainings of every kind: each must be found, and told in its own sentence."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import pytest

from minillm import ops
from minillm.autograd import Op, Parameter
from minillm.models.gpt2 import GPT2Config
from minillm.nn import Linear
from minillm.study.doctor import Finding
from tests.study.doctor.made import found, prepared

Planted = tuple[Any, Any]


def replace_method(thing: Any, name: str, make: Any) -> None:
    """Give one object a method of its own; `make` gets the old one."""
    setattr(thing, name, types.MethodType(make(getattr(thing, name)), thing))


# What a prediction sees


def attention_without_a_mask(task: Any, model: Any) -> None:
    for block in model.h:
        block.attn.causal = False


def mean_over_positions(task: Any, model: Any) -> None:
    """A leak that no mask prevents."""
    replace_method(model, "embed", lambda old: lambda self, *a, **k: (x := old(*a, **k)) - x.mean(1, keepdim=True))


def attention_is_not_added(task: Any, model: Any) -> None:
    for block in model.h:
        for parameter in (block.attn.proj.weight, block.attn.proj.bias):
            parameter.data[...] = 0


def packed_texts_see_each_other(task: Any, model: Any) -> None:
    replace_method(model, "features", lambda old: lambda self, ids, cache=None, starts=None: old(ids, cache, None))


def decoder_input_is_not_shifted(task: Any, model: Any) -> None:
    def loss(self, source, targets, source_lengths=None, label_smoothing=0.0, reduction="mean"):
        seen = np.where(targets == -100, self.config.padding_id, targets)
        return ops.cross_entropy(self(source, seen, source_lengths), targets, reduction=reduction, dim=-1)

    model.loss = types.MethodType(loss, model)


def decoder_does_not_read_the_source(task: Any, model: Any) -> None:
    replace_method(model, "encode", lambda old: lambda self, *a, **k: old(*a, **k) * 0.0)


def every_token_is_visible(task: Any, model: Any) -> None:
    def batch(old):
        def visible(self, step, model=None):
            found = old(step, model)
            return found | {"perm_mask": np.zeros_like(found["perm_mask"])}

        return visible

    replace_method(task, "batch", batch)


def encoder_is_causal(task: Any, model: Any) -> None:
    for block in model.h:
        block.attn.causal = True


# What the loss asks for


def changed_batch(task: Any, **changes: Any) -> None:
    """Let a task make other batches: each array by a function of the batch."""
    old = task.batch

    def batch(step, model=None):
        made = old(step, model)
        return made | {name: change(made) for name, change in changes.items()}

    task.batch = batch


def targets_are_the_inputs(task: Any, model: Any) -> None:
    changed_batch(task, targets=lambda batch: batch["ids"].copy())


def shifted_twice(task: Any, model: Any) -> None:
    """The data shifts, and so does the model, as some losses do."""

    def loss(self, ids, targets, reduction="mean", starts=None):
        return ops.cross_entropy(self(ids)[:, :-1], targets[:, 1:], reduction=reduction, dim=-1)

    model.loss = types.MethodType(loss, model)
    task.counts = lambda batch: {"loss": float(batch["targets"][:, 1:].size)}


def labels_at_another_place(task: Any, model: Any) -> None:
    changed_batch(task, labels=lambda batch: np.roll(batch["labels"], 1, axis=1))


def nothing_is_hidden(task: Any, model: Any) -> None:
    changed_batch(task, ids=lambda batch: np.where(batch["labels"] != -100, batch["labels"], batch["ids"]))


def half_is_hidden(task: Any, model: Any) -> None:
    right, wrong = task.options, dataclasses.replace(task.options, hidden_share=0.5)
    old = task.batch

    def batch(step, model=None):
        task.options = wrong
        made = old(step, model)
        task.options = right
        return made

    task.batch = batch


def no_target_at_all(task: Any, model: Any) -> None:
    changed_batch(task, targets=lambda batch: np.full_like(batch["targets"], -100))


def padding_counts(task: Any, model: Any) -> None:
    """Short texts that are filled with one id, which is a target too."""

    def filled(name):
        def change(batch):
            ids = batch[name].copy()
            for row in range(len(ids)):
                ids[row, 2 + row % 3 :] = 7
            return ids

        return change

    changed_batch(task, ids=filled("ids"), targets=filled("targets"))


def padding_of_pairs_counts(task: Any, model: Any) -> None:
    changed_batch(task, targets=lambda batch: np.where(batch["targets"] == -100, 5, batch["targets"]))


def padding_is_seen(task: Any, model: Any) -> None:
    replace_method(
        model, "forward", lambda old: lambda self, ids, token_types=None, lengths=None: old(ids, token_types)
    )


def prompts_are_learned(task: Any, model: Any) -> None:
    task.examples = [one._replace(targets=np.append(one.ids[1:], one.targets[-1])) for one in task.examples]


def ends_are_masked(task: Any, model: Any) -> None:
    """Labels of the padding id are masked, and that id is the end of a text."""
    end = task.tokenizer.eos_id
    task.examples = [one._replace(targets=np.where(one.targets == end, -100, one.targets)) for one in task.examples]


# The loss at the start


def loss_is_a_sum(task: Any, model: Any) -> None:
    task.counts = lambda batch: {"loss": float(len(batch["ids"]))}


def bias_against_the_frequent(task: Any, model: Any) -> None:
    frequent = np.bincount(task.batch(0)["labels"][task.batch(0)["labels"] >= 0]).argsort()[-12:]
    model.bias.data[frequent] = -9.0


def sees_the_answer(task: Any, model: Any) -> None:
    model.wte.weight.data *= 30
    targets_are_the_inputs(task, model)


def large_logits(task: Any, model: Any) -> None:
    model.wte.weight.data *= 40


def output_of_zeros(task: Any, model: Any) -> None:
    model.lm_head.weight.data[...] = 0


def dropout_in_the_policy(task: Any, model: Any) -> None:
    replace_method(model, "features", lambda old: lambda self, *a, **k: ops.dropout(old(*a, **k), 0.3, True))


def dropout_that_ignores_the_mode(task: Any, model: Any) -> None:
    replace_method(model.h[1].mlp, "forward", lambda old: lambda self, x: ops.dropout(old(x), 0.3))


def noise_of_its_own(task: Any, model: Any) -> None:
    """It is drawn by NumPy, so that no operation shows it."""
    draw = np.random.default_rng(0)
    noise = lambda x: draw.normal(size=x.shape).astype(np.float32)  # noqa: E731
    replace_method(model, "features", lambda old: lambda self, *a, **k: (x := old(*a, **k)) + noise(x))


def sampled_at_another_temperature(task: Any, model: Any) -> None:
    old, options = task.batch, task.options

    def batch(step, model=None):
        task.options = dataclasses.replace(options, temperature=0.5)
        made = old(step, model)
        task.options = options
        return made

    task.batch = batch


def rewards_are_equal(task: Any, model: Any) -> None:
    task.reward = lambda instruction, written: 1.0


def wrong_tokenizer(task: Any, model: Any) -> None:
    """Trained weights whose rows belong to other ids."""
    model.wte.weight.data *= 30


# Layers and parameters


def dead_relu(task: Any, model: Any) -> None:
    for block in model.h:
        block.mlp.fc.bias.data[...] = -50.0


def norm_of_zeros(task: Any, model: Any) -> None:
    model.h[0].ln_1.weight.data[...] = 0


def layer_that_is_not_called(task: Any, model: Any) -> None:
    model.extra = Linear(4, 4)
    model.assign_names()


def frozen_table(task: Any, model: Any) -> None:
    model.wte.weight.requires_grad_(False)


def nothing_is_trained(task: Any, model: Any) -> None:
    model.requires_grad_(False)


def tied_by_memory(task: Any, model: Any) -> None:
    model.lm_head.weight.data = model.wte.weight.data


def tied_in_the_configuration_alone(task: Any, model: Any) -> None:
    model.lm_head = Linear(model.config.channels, model.config.vocab_size, bias=False)
    model.assign_names()


def no_residual(scale: float) -> Any:
    """Blocks without a residual stream: the gradient is multiplied by some factor in each."""

    def plant(task: Any, model: Any) -> None:
        for block in model.h:
            block.forward = types.MethodType(
                lambda self, x, *a, **k: ops.sin(self.mlp.fc(x)[..., : x.shape[-1]] * scale), block
            )

    return plant


def weight_is_nan(task: Any, model: Any) -> None:
    model.h[1].mlp.fc.weight.data[3, 2] = np.nan


def layer_overflows(task: Any, model: Any) -> None:
    replace_method(model.h[1].mlp, "forward", lambda old: lambda self, x: ops.exp(old(x) * 0 + 1e4))


def backward_with_the_wrong_sign(task: Any, model: Any) -> None:
    wrong = Op("wrong", lambda x: (x * 1, ()), lambda dy, saved: (-dy,))
    replace_method(model, "features", lambda old: lambda self, *a, **k: wrong(old(*a, **k)))


def gradient_counted_twice(task: Any, model: Any) -> None:
    twice = Op("twice", lambda x: (x * 1, ()), lambda dy, saved: (2 * dy,))
    replace_method(model, "logits", lambda old: lambda self, *a, **k: twice(old(*a, **k)))


UNTIED = dict(model=GPT2Config(vocab_size=290, context=12, layers=2, heads=2, channels=16, tied=False))
RELU = dict(model=GPT2Config(vocab_size=290, context=12, layers=2, heads=2, channels=16, activation="relu"))
DEEP = dict(model=GPT2Config(vocab_size=290, context=12, layers=6, heads=2, channels=16))
DROPPED = dict(model=GPT2Config(vocab_size=290, context=12, layers=2, heads=2, channels=16, dropout=0.9))
# The training, what is changed in its settings, the fault, and the finding and the sentence that are demanded.
PLANTED: list[tuple[str, dict[str, Any], Any, str, str]] = [
    ("gpt2", {}, attention_without_a_mask, "future-leak", "changing the tokens after position 0 moves the logits at"),
    ("llama", {}, mean_over_positions, "future-leak", "a prediction sees the tokens that follow"),
    ("gpt2", {}, mean_over_positions, "future-leak", "a prediction sees the tokens that follow"),
    ("gpt2", {}, attention_is_not_added, "no-context", "when all 11 tokens before it change: the model sees one token"),
    ("sft", {}, packed_texts_see_each_other, "packing-leak", "texts in one row see each other"),
    ("bart", {}, decoder_input_is_not_shifted, "future-leak", "the decoder sees what it should write"),
    ("pairs", {}, decoder_does_not_read_the_source, "no-context", "the decoder does not read them"),
    ("xlnet", {}, every_token_is_visible, "future-leak", "the query stream sees the token that it should predict"),
    ("roberta", {}, encoder_is_causal, "one-sided", "all tokens on its right change: an encoder must see both sides"),
    ("gpt2", {}, targets_are_the_inputs, "label-shift", "the targets are the inputs themselves: 100% of them"),
    ("llama", {}, shifted_twice, "label-shift", "the targets are 2 tokens ahead: 100% of them equal ids[t+2]"),
    ("roberta", {}, labels_at_another_place, "label-shift", "mask tokens have no label at their place"),
    ("roberta", {}, nothing_is_hidden, "visible-labels", "100% of the tokens that are predicted stand in the input"),
    ("bert-alone", {}, half_is_hidden, "mask-rate", "are predicted, where hidden_share asks for 15.0%"),
    ("gpt2", {}, no_target_at_all, "no-targets", "the first batch has no target for the term 'loss'"),
    ("gpt2", {}, padding_counts, "padding-in-loss", "targets of the first batch are padding behind the ends of texts"),
    ("dpo", {}, padding_of_pairs_counts, "padding-in-loss", "so the model learns to write padding"),
    ("classify", {}, padding_is_seen, "padding-seen", "changing the padding moves the loss from"),
    ("sft", {"packing": False}, prompts_are_learned, "prompt-in-loss", "in 100% of the examples the prompt is learned"),
    ("sft", {}, ends_are_masked, "end-not-learned", "0% of the answers end with a target that ends a text"),
    ("gpt2", {}, loss_is_a_sum, "loss-scale", "but the mean over its 60 targets is 5."),
    ("xlnet", {}, bias_against_the_frequent, "initial-loss", "the first weights favour wrong classes"),
    ("gpt2", {}, sees_the_answer, "initial-loss", "it sees what it should predict"),
    ("gpt2", {}, large_logits, "logit-spread", "the logits of the new model have a standard deviation of"),
    ("gpt2", UNTIED, output_of_zeros, "logit-spread", "the output layer is zero, so that no gradient reaches"),
    ("dpo", {}, dropout_in_the_policy, "initial-loss", "instead of ln 2 = 0.6931: policy and reference differ"),
    ("gpt2", {}, dropout_that_ignores_the_mode, "random-evaluation", ": a dropout of h.1.mlp runs; validation losses"),
    ("bart", {}, noise_of_its_own, "random-evaluation", "in evaluation mode one batch has the loss"),
    ("grpo", {}, sampled_at_another_temperature, "initial-loss", "scored by other probabilities than they were drawn"),
    ("grpo", {}, rewards_are_equal, "equal-rewards", "all 16 answers of the first batch have the rewards of their"),
    ("gpt2", RELU, dead_relu, "dead-units", "100% of the 64 units of h.1.mlp are dead"),
    ("gpt2", {}, layer_that_is_not_called, "unused-parameters", "get no gradient, the first of them extra.weight"),
    ("gpt2", {}, norm_of_zeros, "constant-layer", "h.0.attn returns one vector for every token of the batch"),
    ("llama", {}, frozen_table, "frozen-parameters", "are frozen, the first of them wte.weight"),
    ("gpt2", {}, nothing_is_trained, "nothing-trained", "the loss needs no gradient: no parameter is trained"),
    ("gpt2", UNTIED, tied_by_memory, "shared-memory", "are two parameters in one memory"),
    ("gpt2", {}, tied_in_the_configuration_alone, "untied", "but lm_head.weight is a parameter of its own"),
    ("gpt2", DEEP, no_residual(1.0), "vanishing-gradients", "from the last block to the first the gradient is"),
    ("gpt2", DEEP, no_residual(400.0), "exploding-gradients", "from the last block to the first the gradient is"),
    ("gpt2", {}, weight_is_nan, "not-finite", "1 parameters hold an infinity or a NaN, the first of them h.1.mlp.fc"),
    ("gpt2", {}, layer_overflows, "not-finite", "the output of h.1.mlp is not finite in the first step"),
    ("gpt2", {}, backward_with_the_wrong_sign, "wrong-gradient", "the backward pass does not belong to the forward"),
    ("roberta", {}, backward_with_the_wrong_sign, "wrong-gradient", "the backward pass does not belong to the forward"),
    ("gpt2", {}, gradient_counted_twice, "wrong-gradient", "along its gradient the loss rises by"),
    ("gpt2", {"lr": 1.0}, None, "learning-rate", "the training will diverge, or learn next to nothing"),
    ("gpt2", {"lr": 0.1}, None, "learning-rate", "times its size: the training may diverge"),
    ("gpt2", {"lr": 100.0, "optimizer": "sgd"}, None, "learning-rate", "of SGD moves all weights together by"),
    ("gpt2", {"lr": 0.0}, None, "learning-rate", "the learning rate is 0, so no weight ever changes"),
    ("gpt2", {"lr": 1e-12}, None, "learning-rate", "nothing will change"),
    ("gpt2", {"lr": 1e-5, "steps": 900}, None, "learning-rate", "at most in all 900 steps: a new model hardly learns"),
    ("gpt2", {"weight_decay": 20.0, "steps": 900}, None, "weight-decay", "has taught is forgotten after"),
    ("gpt2", DROPPED, None, "dropout", "dropout=0.9 zeroes 90% of the numbers of every layer in training"),
    ("gpt2", {"steps": 60_000}, None, "epochs", "after 40 times nothing more is gained"),
]


@pytest.mark.parametrize(("name", "changes", "fault", "wanted", "sentence"), PLANTED)
def test_a_planted_fault_is_found(name, changes, fault, wanted, sentence, folder) -> None:
    task, model, trained = prepared(name, folder, **changes)
    if fault is not None:
        fault(task, model)
    findings = found(task, model, trained)
    assert wanted in findings, {one.name: one.cause for one in findings.values()}
    assert sentence in findings[wanted].cause
    assert findings[wanted].is_alarm
    assert len(findings[wanted].remedy) > 20


def test_weights_of_another_tokenizer_are_found(folder) -> None:
    task, model, _ = prepared("gpt2", folder)
    wrong_tokenizer(task, model)
    finding: Finding = found(task, model, trained=True)["initial-loss"]
    assert "the trained model has the loss" in finding.cause
    assert "but a uniform guess over 290 classes has 5.67" in finding.cause


def test_every_fault_has_a_sentence_of_its_own() -> None:
    """No two kinds of faults are told in one sentence."""
    assert len({(wanted, sentence[:40]) for *_, wanted, sentence in PLANTED}) >= 25
    assert len({wanted for *_, wanted, _ in PLANTED}) >= 25


def test_one_fault_does_not_alarm_everything(folder) -> None:
    """A leak is told as a leak, and nothing else is said to be wrong."""
    task, model, _ = prepared("gpt2", folder)
    attention_without_a_mask(task, model)
    assert [name for name, one in found(task, model).items() if one.is_alarm] == ["future-leak"]


def test_a_step_that_float32_rounds_away_proves_no_backward_wrong(folder) -> None:
    """The weights of a training that diverged: the loss is so steep that the step is less than rounding."""
    task, model, _ = prepared("gpt2", folder)
    for one in model.parameters():
        one.data *= 1e5
    assert "wrong-gradient" not in found(task, model, trained=True)


def test_an_error_of_the_step_is_a_finding(folder) -> None:
    task, model, _ = prepared("gpt2", folder)
    model.h[0].mlp.fc.weight = Parameter(np.zeros((8, 5), np.float32))
    assert "the first step raises an error: linear" in found(task, model)["step-fails"].cause
