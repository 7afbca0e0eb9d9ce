"""A Llama of about so many parameters, by a rule.

A block of C channels has 4 C^2 weights in attention and 3 C F in its MLP, whose width F is 8/3 C, up to the next
multiple of 256 (Touvron et al. 2023, arXiv:2302.13971, section 2.2: "2/3 4d instead of 4d", and their code's
`multiple_of`). Tables of V tokens have V C more, twice unless they are tied.

Channels grow in steps of 64, of 128 from 512, of 512 from 2048 and of 1024 from 4096, which gives heads that 2, 4 or 8
GPUs can share; heads have 64 channels, 128 from 3072 on. From 16 blocks on their number is even, so that a pipeline can
be cut evenly. Of all such shapes within 4% of the size that is wanted (12% below 20 million, where a block more is a
large step; or, if there is none, of those nearest to it), the one is taken whose channels a block come nearest to

    64 at 125 million parameters, 128 from 6.7 billion on, and between them a power law

as GPT-3 (768 channels, 12 blocks) and Llama (4096, 32) have them; over a wide range the loss hardly depends on it
(Kaplan et al. 2020, arXiv:2001.08361, figure 5). Below a billion the output layer is the token table. From 30 billion
on 8 heads of keys and values serve all others, as in Llama 2 70B.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from minillm.errors import InputError
from minillm.models.llama import LlamaConfig
from minillm.study.plan.units import short

NEAR, NEAR_SMALL, SMALL = 0.04, 0.12, 2e7  # how far the number of parameters may be from the wanted one
LEAST, MOST = 1e5, 2e12  # parameters
TIED_BELOW = 1e9
GROUPED_FROM = 30e9


def llama_near(parameters: float, vocab_size: int = 32000, context: int = 4096) -> LlamaConfig:
    """The Llama of about `parameters` parameters, by the rule on top of this file.

    Raises: InputError where the table of tokens alone has more.
    """
    found = list(_shapes(parameters, vocab_size, context))
    if not found:
        least = size_of(_config(vocab_size, context, 64, 1, parameters))
        raise InputError(
            f"plan: --parameters is {short(parameters)}, but with a table of {vocab_size:,} tokens the smallest model "
            f"has {short(least)}; give more, or a smaller --vocab-size"
        )
    errors = [abs(size_of(config) / parameters - 1) for config in found]
    bound = max(NEAR if parameters >= SMALL else NEAR_SMALL, 1.0001 * min(errors))
    near = [config for config, error in zip(found, errors, strict=True) if error <= bound]
    wanted = math.log(aspect(parameters))
    return min(near, key=lambda config: abs(math.log(config.channels / config.layers) - wanted))


def aspect(parameters: float) -> float:
    """Channels a block that the rule aims at."""
    share = math.log(parameters / 125e6) / math.log(6.7e9 / 125e6)
    return 64.0 * 2 ** min(max(share, 0.0), 1.0)


def size_of(config: LlamaConfig) -> int:
    """Number of parameters, tied ones once."""
    channels, keys = config.channels, config.kv_heads * config.size_of_head
    block = 2 * channels * channels + 2 * channels * keys + 3 * channels * config.hidden + 2 * channels
    return config.layers * block + channels + (1 if config.tied else 2) * config.vocab_size * channels


def _shapes(parameters: float, vocab_size: int, context: int) -> Iterator[LlamaConfig]:
    """For each number of channels the numbers of blocks whose sizes are just below and just above the wanted one."""
    channels = 64
    while True:
        one = _config(vocab_size, context, channels, 1, parameters)
        block = size_of(_config(vocab_size, context, channels, 2, parameters)) - size_of(one)
        blocks = (parameters - size_of(one)) / block + 1
        if blocks < 1 - NEAR_SMALL * parameters / block:
            return
        low = max(1, math.floor(blocks))
        for layers in range(max(1, low - 1), low + 3):
            if (layers < 16 or layers % 2 == 0) and layers <= channels:
                yield _config(vocab_size, context, channels, layers, parameters)
        channels += 64 if channels < 512 else 128 if channels < 2048 else 512 if channels < 4096 else 1024


def _config(vocab_size: int, context: int, channels: int, layers: int, parameters: float) -> LlamaConfig:
    heads = channels // (64 if channels < 3072 else 128)
    return LlamaConfig(
        vocab_size,
        context,
        layers,
        heads,
        8 if parameters >= GROUPED_FROM and heads % 8 == 0 else heads,
        channels,
        -(-8 * channels // (3 * 256)) * 256,
        tied=parameters < TIED_BELOW,
    )
