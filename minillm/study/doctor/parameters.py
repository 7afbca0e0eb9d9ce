"""Parameters: which of them get a gradient, which are shared, and how large the gradients are from layer to layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from minillm.lora import is_lora
from minillm.study.doctor.case import Case, blocks_of
from minillm.study.doctor.finding import Finding

# Parameters of an input that a text need not have, such as segments; without it they are rightly left out.
OF_SEGMENTS = ("seg_embed", "r_s_bias", "token_type")
FAR = 1e3  # ratio of the gradients of two blocks from which on one of them learns next to nothing
HUGE = 1e3  # norm of the whole gradient
ROUNDED = 1e-6  # of the weights, which a step of float32 must exceed to be more than rounding
SLOPE = 0.1  # by which the loss may fall otherwise than its gradient says
FIXED = ("final_logits_bias",)  # frozen in every published model


def unused_parameters(case: Case) -> Iterator[Finding]:
    """Find parameters that the loss does not depend on, and those whose gradient is zero."""
    if not case.step.has_graph:
        yield Finding(
            "error",
            "nothing-trained",
            "the loss needs no gradient: no parameter is trained, or the graph is cut before the loss",
            "set requires_grad_(True) on what should learn, and leave .numpy(), .item() and no_grad out of the forward",
            "python: model.loss(...).requires_grad",
        )
        return
    own = case.trained_parameters()
    segments = any(name in case.rows for name in ("token_types", "types"))
    unused = [
        name
        for name, one in own.items()
        if one.grad is None and (segments or not any(part in name for part in OF_SEGMENTS))
    ]
    if unused:
        yield Finding(
            "warning",
            "unused-parameters",
            f"{len(unused)} of {len(own)} trained parameters get no gradient, the first of them {unused[0]}: the loss "
            "does not depend on them",
            "call the layer in forward, or leave it out of the model",
            f"python: dict(model.named_parameters())[{unused[0]!r}].grad after a backward",
        )
    zero = [name for name, one in own.items() if one.grad is not None and one.grad.size and not one.grad.any()]
    first_matrices = [name for name in zero if ".lora." in name and name.rpartition(".")[2] in "AB"]
    others = [name for name in zero if name not in first_matrices]
    if len(zero) == len(own) and case.task.samples:  # groups of equal rewards, of which start.py tells
        return
    if case.task.name == "reward":  # which compares two rewards: what is added to both has no gradient
        others = [name for name in others if not name.endswith("bias")]
    if others:
        yield Finding(
            "warning",
            "zero-gradient",
            f"{len(others)} of {len(own)} trained parameters have a gradient of zeros, the first of them {others[0]}",
            "look behind that layer for weights of zeros, dead units, or a result that is multiplied by 0",
            f"python: dict(model.named_parameters())[{others[0]!r}].grad",
        )
    if first_matrices:
        yield Finding(
            "note",
            "lora-begins",
            f"{len(first_matrices)} matrices of the adapters have a gradient of zeros, which is right in the first "
            "step: they are multiplied by the other matrix, which begins as zeros",
            "nothing: from the second step on they learn",
            "grad_norm in metrics.jsonl",
        )


def frozen_parameters(case: Case) -> Iterator[Finding]:
    """Find parameters that are frozen though no adapters are trained in their place."""
    if is_lora(case.model):
        if not case.trained:
            yield Finding(
                "note",
                "untrained-base",
                "the weights that the adapters leave frozen are new, so all that is learned are the adapters of noise",
                "begin with a trained model: minillm doctor runs/mine --lora 8, then minillm finetune",
                "the first lines of the training",
            )
        return
    every = dict(case.model.named_parameters())
    frozen = [name for name, one in every.items() if not one.requires_grad and name not in FIXED]
    if frozen:
        share = sum(every[name].numel() for name in frozen) / max(1, sum(one.numel() for one in every.values()))
        yield Finding(
            "warning",
            "frozen-parameters",
            f"{len(frozen)} of {len(every)} parameters, {share:.0%} of the weights, are frozen, the first of them "
            f"{frozen[0]}",
            "call model.requires_grad_(True), unless this is meant",
            "python: [name for name, p in model.named_parameters() if not p.requires_grad]",
        )


def tied_parameters(case: Case) -> Iterator[Finding]:
    """Find two parameters in one memory, and an output layer that should be the token table and is not.

    An optimiser gives each parameter memory of its own (optim/flat.py), so two that share memory part at the first
    step, without a word. Parameters are tied by being one object.
    """
    parameters = list(case.model.named_parameters())
    bounds = sorted((*np.lib.array_utils.byte_bounds(one.data), name) for name, one in parameters if one.data.size)
    for (_, end, one), (start, _, another) in itertools.pairwise(bounds):
        if start < end:
            yield Finding(
                "error",
                "shared-memory",
                f"{one} and {another} are two parameters in one memory; the optimiser moves each into memory of its "
                "own, and from the first step on they differ",
                "tie them as one object: model.lm_head.weight = model.wte.weight",
                "python: np.shares_memory of the two",
            )
            return
    names = {name for name, _ in parameters}
    if getattr(case.model.config, "tied", False) and "lm_head.weight" in names:
        yield Finding(
            "error",
            "untied",
            "the configuration says that the output layer is the token table (tied=True), but lm_head.weight is a "
            "parameter of its own, which is not used or not saved",
            "leave lm_head out, or set tied=False in the configuration",
            "python: model.output_weight is model.wte.weight",
        )


def gradient_sizes(case: Case) -> Iterator[Finding]:
    """Compare the gradients of the blocks, and the norm of all of them.

    The size of a block is the root mean square of its gradients. Where each block multiplies the gradient by some
    factor, sizes are a power of it: vanishing and exploding gradients, Pascanu et al. 2013 (arXiv:1211.5063). Residual
    networks keep the ratio of first and last within a few tens; at 1000 float32's seven digits still hold, but a step
    that suits one block is nothing for the other.
    """
    gradients = {name: one.grad for name, one in case.trained_parameters().items() if one.grad is not None}
    bad = [name for name, one in gradients.items() if not np.isfinite(one).all()]
    if bad:
        yield Finding(
            "error",
            "not-finite",
            f"the gradient of {bad[0]} is not finite in the first step ({len(bad)} of {len(gradients)} are not)",
            "look for a division, a logarithm or a square root at 0 in the layer behind it",
            "MINILLM_ENGINE=plain python -m pdb ...: break in node_backward",
        )
        return
    total = float(np.sqrt(sum(np.square(one, dtype=np.float64).sum() for one in gradients.values())))
    if total > HUGE:
        yield Finding(
            "warning",
            "exploding-gradients",
            f"the gradient of the first step has the norm {total:.3g}; ordinary models begin between 0.1 and 100",
            "make the first weights smaller, scale the branches of the residual stream by 1/sqrt(2 L), or normalise",
            "grad_norm in metrics.jsonl",
        )
    elif total < 1e-7 and case.step.has_graph and not case.task.samples:
        yield Finding(
            "error",
            "vanishing-gradients",
            f"the gradient of the first step has the norm {total:.3g}: nothing is learned",
            "look at the last layer: is the loss a constant, or is its result multiplied by 0?",
            "grad_norm in metrics.jsonl",
        )
    sizes = {
        block: float(np.sqrt(np.mean([np.square(gradients[name], dtype=np.float64).mean() for name in names])))
        for block, names in blocks_of(list(gradients)).items()
    }
    stacks: dict[str, dict[str, float]] = {}
    for block, size in sizes.items():
        stacks.setdefault(block.rpartition(".")[0], {})[block] = size
    for stack in stacks.values():
        blocks = list(stack)
        if len(blocks) < 2 or not all(stack.values()):
            continue
        first, last = stack[blocks[0]], stack[blocks[-1]]
        if max(first, last) > FAR * min(first, last):
            kind = "vanishing" if first < last else "exploding"
            yield Finding(
                "warning",
                f"{kind}-gradients",
                f"from the last block to the first the gradient is multiplied by {first / last:.1e}: {blocks[-1]} has "
                f"{last:.1e} in root mean square, {blocks[0]} has {first:.1e}",
                "check the residual connections and the normalisation, and the scale of the first weights",
                "python: the gradients by layer after a backward",
            )


def gradient_slope(case: Case) -> Iterator[Finding]:
    """Move all weights a little along the gradient: the loss must change as its gradient says.

    With the gradient g and its norm |g|, (L(w + e g/|g|) - L(w - e g/|g|)) / 2e is |g|, up to the square of e. The step
    is such that the loss changes by some 1 %, far above rounding. It finds a backward that is wrong anywhere where much
    of the gradient is; `minillm gradcheck` and `minillm check` look closer.
    """
    own = {name: one for name, one in case.trained_parameters().items() if one.grad is not None}
    norm = float(np.sqrt(sum(np.square(one.grad, dtype=np.float64).sum() for one in own.values())))
    if not case.step.has_graph or not np.isfinite(norm) or norm < 1e-6:
        return
    before = {name: one.data.copy() for name, one in own.items()}
    length = float(np.sqrt(sum(np.square(one, dtype=np.float64).sum() for one in before.values())))
    found = []
    for shrink in (1.0, 0.1):
        size = shrink * 0.01 * max(0.1, abs(case.step.loss)) / norm
        if size < ROUNDED * length:  # so steep a loss that float32 rounds the step away
            return
        losses = []
        for sign in (1, -1):
            for name, one in own.items():
                one.data[...] = before[name] + one.dtype.type(sign * size / norm) * one.grad
            losses.append(case.loss())
        found.append((losses[0] - losses[1]) / (2 * size))
    for name, one in own.items():
        one.data[...] = before[name]
    if not np.isfinite(found).all() or min(abs(slope - norm) for slope in found) > SLOPE * norm:
        yield Finding(
            "error",
            "wrong-gradient",
            f"along its gradient the loss rises by {found[-1]:.4g} for each unit of the weights, but the norm of the "
            f"gradient is {norm:.4g}: the backward pass does not belong to the forward pass",
            "check your own operations with minillm.testing.check_gradients, and leave .data out of the forward",
            "`minillm gradcheck`, and `minillm check` for the whole model",
        )
