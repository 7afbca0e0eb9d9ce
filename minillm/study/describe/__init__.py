"""The size and cost of a model that is not built: parameters, memory of a training step, FLOPs a token, KV cache.

Parameters, matrix products and cache follow from shapes. What a step keeps for its backward does not: it is whatever
each operation's `Saved` says, arrays that several operations share counted once. So nothing is written down here a
second time. The model's own training step is run while work is abstract (backend.py): every array is allocated, and
hardly one is filled.
Memory that nobody touches is an address range and no more, so a step of a billion weights takes a moment and little
memory. Three blocks are enough: the first, the last, of which XLNet reads one stream only, and one that stands for the
L - 2 between them.

**Activations**, in elements per token and block, for C channels (GPT-2, whose MLP has 4C; no dropout):

    ln_1        C    the normalised input; rstd, 1
    attn.qkv    C    its input
    attention  3C    q, k and v, one array; and C, the output, which is the input of attn.proj too; lse, H
    ln_2        C    the normalised input; rstd, 1
    mlp.fc      C    its input
    gelu       4C    the slope, in the place of its input
    mlp.proj   4C    its input

together 16C + H + 2, or 64C bytes in float32 and 32C in bfloat16. Korthikanti et al. 2022 (arXiv:2205.05198, equation
1) count 34C + 5 H T bytes for 16 bits with PyTorch's kernels of that time. The parts differ: H T numbers go where
attention keeps its weights, none here; a dropout mask has a byte for each number, and none here, for it is made again.
A Llama with H heads, G key heads of size D and an MLP of F channels: C each for the inputs of two norms, of qkv, and
of gate and up (one array); C + 2GD for the product qkv, of which v is a part that keeps the whole; C + GD for q and k,
turned, beside their tables of angles; C for attention's output; 2F for the slopes of the gated unit, F for the input
of down. Before and after the blocks there are ids, the last norm, and the logits: V numbers a token, which the
backward overwrites.

**The peak** is reached early in the backward: everything is still kept, and the first gradients come on top. It is
measured on three blocks, and what the other blocks keep is added. It is that of a CPU with the threads at hand,
whose scratch memory, a few times `backend.CACHE_BYTES` each, may or may not be there at the same moment. Gradients of
weights have their own memory (optim.py). With bfloat16, arrays of float16 stand in, which NumPy has arithmetic for;
kernels on a GPU keep inputs where formulas keep slopes, as many numbers.

**The step** is that of the model's own objective (`training_batch`): the next token, tokens that are hidden, for XLNet
an order that is drawn, with both streams, or a target for each source, which is as long. A step's T tokens of BART are
those of the target; what the T tokens of the source take counts with them.

**FLOPs.** A matrix product of (M, K) and (K, N) has 2MKN. Forward plus backward of N weights make 6N a token
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1: without the tables of tokens and positions), and attention 12 L C T
more (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B). The count here is of the products that are really
made: with the output layer; for causal attention of few keys beyond the diagonal; and with the scores a second time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from minillm.errors import InputError
from minillm.lora import LoraConfig
from minillm.nn import Decoder
from minillm.study.describe.abstract_step import abstract_engine, abstract_step
from minillm.study.describe.description import DTYPES, Description, total
from minillm.study.describe.lookup import empty_model, look_up
from minillm.study.describe.parts import Stacks, row
from minillm.weights import build_model

LONGEST = 2048  # tokens of a sequence, unless more are asked for
UNLIMITED = 512  # the same for a model without a longest one


def describe(
    name: str | Path,
    batch_size: int | None = None,
    context: int | None = None,
    dtype: str | None = None,
    lora: LoraConfig | None = None,
) -> Description:
    """Describe the model that `name` means: a preset, a folder with config.json, a .gguf or a run directory.

    `context` is the model's own by default, but at most `LONGEST`; batch size and dtype are a run's own, or 1 and
    float32. Of files only configurations are read. lora: adapters that are trained in place of the weights; by default
    a run's own.
    Memory: some activations of a block. Other threads' allocations would count too, so nothing else should run.
    Raises: InputError for an unknown name, a size below 1, more tokens than the model has positions for, or a dtype
    that is not in `DTYPES`; what reading a configuration raises.
    """
    kind, config, run = look_up(name)
    batch_size = run.get("batch_size", 1) if batch_size is None else batch_size
    dtype = run.get("dtype", "float32") if dtype is None else dtype
    lora = run.get("lora") if lora is None else lora
    return describe_config(str(name), kind, config, batch_size, context, dtype, lora)


def describe_config(
    name: str,
    kind: Callable[[Any], Any],
    config: Any,
    batch_size: int = 1,
    context: int | None = None,
    dtype: str = "float32",
    lora: LoraConfig | None = None,
) -> Description:
    """Describe the model of class `kind` that a configuration means; `name` is only shown."""
    positions = getattr(config, "context", None)  # None: as many as there are tokens
    context = min(positions or UNLIMITED, LONGEST) if context is None else context
    if batch_size < 1 or not 1 <= context <= (positions or context):
        raise InputError(
            f"describe: batch_size is {batch_size} and context is {context}; give 1 or more"
            f"{f', and a context of {positions} at most' if positions else ''}"
        )
    if dtype not in DTYPES:
        raise InputError(f"describe: dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    numbers = {name: number for name, number in vars(config).items() if name.endswith("layers")}
    stacks = Stacks(numbers, 3 if lora is None or lora.is_alike_in_all_blocks else math.inf)
    model = build_model(
        name, lambda config: empty_model(kind, config, DTYPES[dtype], lora), replace(config, **stacks.cut)
    )
    step = abstract_step(model, batch_size, context)
    kept = stacks.gathered((row(*key), key[0], size) for key, size in step.kept.items())
    return Description(
        name,
        config,
        batch_size,
        context,
        dtype,
        stacks.by_part({path: parameter.numel() for path, parameter in model.named_parameters()}),
        kept,
        step.peak + total(kept) - sum(step.kept.values()),
        stacks.by_part(step.forward),
        stacks.by_part(step.backward),
        *cache_bytes(model, config),
        int(total(stacks.by_part({path: x.numel() for path, x in model.named_parameters() if x.requires_grad}))),
    )


def cache_bytes(model: Any, config: Any) -> tuple[int, int]:
    """Bytes of keys and values in all blocks, for a token and for a token of the source; `model` has fewer blocks."""
    layers, source = getattr(config, "decoder_layers", None) or config.layers, 0
    if hasattr(model, "conditioned"):
        with abstract_engine():
            model = model.conditioned(np.zeros((1, 1), np.int64))
        source = sum(array.data.nbytes for array in model.memory[-1])
    if not isinstance(model, Decoder):
        return 0, 0
    cache = model.new_cache()[-1]
    return (cache.keys.nbytes + cache.values.nbytes) // config.context * layers, source * layers
