"""Trainings that others have published, with their speed: what the predictions are compared with.

`fitted` are those that the shares of the peak in gpus.py and projection.TOUCHED were chosen by; nothing was chosen by
the others. MosaicML measured a few steps of MPT, a GPT-2 with ALiBi, in PyTorch with FSDP, which is ZeRO 3. Megatron's
figures are FLOP/s by equation 3 of its paper, recomputation included, and divided by that equation's FLOPs of a token
here. Whole trainings are GPU hours, in which failures, evaluations and restarts are contained.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import PRESETS, Llama, LlamaConfig
from minillm.study.parallel_report import Division
from minillm.study.plan.gpus import GAP, GPUS, LAUNCHES
from minillm.study.projection import ROWS, Work, rank_bytes, step_seconds, work_of_config


class Published(NamedTuple):
    """A training: its model, its division, and the tokens a second and GPU that it reached."""

    name: str
    kind: Any
    config: Any
    context: int
    gpu: str
    division: Division  # micro_batches: 0 where it is unknown, and the fastest is taken
    batch: int  # sequences of a step
    rate: float  # tokens a second and GPU
    fitted: bool
    source: str


MOSAIC = "MosaicML, llm-foundry, scripts/train/benchmarking/README.md"
MEGATRON = "Narayanan et al. 2021, arXiv:2104.04473, table 1"

MPT = {
    "125M": GPT2Config(50368, 2048, 12, 12, 768),
    "350M": GPT2Config(50368, 2048, 24, 16, 1024),
    "760M": GPT2Config(50368, 2048, 24, 12, 1536),
    "1B": GPT2Config(50368, 2048, 24, 16, 2048),
    "3B": GPT2Config(50368, 2048, 32, 20, 2560),
    "7B": GPT2Config(50368, 2048, 32, 32, 4096),
    "13B": GPT2Config(50368, 2048, 40, 40, 5120),
}
# size, GPU, GPUs, sequences and number of micro-batches, recomputation, tokens a second and GPU, fitted
MPT_RATES = (
    ("125M", "a100", 8, 40, 2, False, 142830, True),
    ("350M", "a100", 8, 32, 2, False, 58782, True),
    ("760M", "a100", 8, 24, 2, False, 32434, True),
    ("1B", "a100", 8, 14, 4, False, 20513, True),
    ("3B", "a100", 8, 10, 2, False, 10811, True),
    ("7B", "a100", 8, 6, 2, False, 4641, True),
    ("13B", "a100", 8, 2, 3, False, 2262, True),
    ("3B", "a100", 128, 6, 1, False, 9538, False),  # of 40 GB
    ("7B", "a100", 128, 18, 1, True, 3623, False),  # of 40 GB
    ("760M", "h100", 8, 24, 2, False, 63147, True),
    ("1B", "h100", 8, 14, 1, False, 45455, True),
    ("7B", "h100", 8, 6, 1, False, 10643, True),
    ("13B", "h100", 8, 2, 1, False, 4792, True),
    ("3B", "h100", 16, 10, 3, False, 24142, False),
    ("3B", "h100", 64, 6, 3, False, 22525, False),
    ("13B", "h100", 64, 2, 1, False, 4800, False),
)


def _mpt() -> list[Published]:
    return [
        Published(
            *(f"MPT {size}, {gpus} x {gpu}{', recompute' * recompute}", GPT2, MPT[size], 2048, gpu),
            Division(gpus, 1, 1, 3, micro_batches, recompute),
            *(gpus * rows * micro_batches, rate, fitted, MOSAIC),
        )
        for size, gpu, gpus, rows, micro_batches, recompute, rate, fitted in MPT_RATES
    ]


def _megatron() -> list[Published]:
    found = []
    for name, channels, heads, layers, tp, gpus, flops in (
        ("1.7B", 2304, 24, 24, 1, 32, 137e12),
        ("3.6B", 3072, 32, 30, 2, 64, 138e12),
        ("7.5B", 4096, 32, 36, 4, 128, 142e12),
    ):
        config = GPT2Config(51200, 2048, layers, heads, channels)
        per_token = 96 * layers * channels**2 * (1 + 2048 / (6 * channels) + 51200 / (16 * layers * channels))
        division = Division(gpus // tp, tp, 1, 0, 0, True)
        row = (f"Megatron {name}, {gpus} x a100", GPT2, config, 2048, "a100", division, 512)
        found.append(Published(*row, flops / per_token, False, MEGATRON))
    return found


def _hours(tokens: float, hours: float) -> float:
    return tokens / (hours * 3600)


WHOLE = [
    Published(
        *("LLaMA 7B, 82,432 A100 hours for 1T tokens", Llama, PRESETS["llama-2-7b"], 2048, "a100"),
        *(Division(256, zero=3, micro_batches=0), 2048, _hours(1e12, 82432), False),
        "Touvron et al. 2023, arXiv:2302.13971, table 15",
    ),
    Published(
        *("Llama 2 7B, 184,320 A100 hours for 2T tokens", Llama, PRESETS["llama-2-7b"], 4096, "a100"),
        *(Division(256, zero=3, micro_batches=0), 1024, _hours(2e12, 184320), False),
        "Touvron et al. 2023, arXiv:2307.09288, table 2",
    ),
    Published(
        *("TinyLlama 1.1B, 16 x a100", Llama, LlamaConfig(32000, 2048, 22, 32, 4, 2048, 5632), 2048, "a100"),
        *(Division(16, zero=3, micro_batches=0), 1024, 24000, False),
        "Zhang et al. 2024, arXiv:2401.02385, section 2",
    ),
    Published(
        "SmolLM3 3B, 384 x h100, 24 days for 11.2T tokens",
        *(Llama, LlamaConfig(128256, 4096, 36, 16, 4, 2048, 11008, tied=True), 4096, "h100"),
        *(Division(192, 2, 1, 1, 0), 576, _hours(11.2e12, 384 * 24 * 24), False),
        "Hugging Face's report on SmolLM3, 2025",
    ),
]

PUBLISHED = {one.name: one for one in (*_mpt(), *_megatron(), *WHOLE)}
# A training of GPT-3 125M on 300 billion tokens has 2.25e20 FLOPs (Brown et al. 2020, arXiv:2005.14165, table D.1).
GPT3_125M, GPT3_TOKENS, GPT3_FLOPS = GPT2Config(50257, 2048, 12, 12, 768), 300e9, 2.25e20


def work_of(published: Published) -> Work:
    """The work of a published training's model."""
    return work_of_config("published", published.kind, published.config, published.context)


def predicted(published: Published) -> float:
    """Tokens a second and GPU that the projection predicts, while steps are made."""
    work = work_of(published)
    gpu, division, batch = GPUS[published.gpu], published.division, published.batch
    machine = gpu.machine()._replace(overhead=published.config.layers * LAUNCHES * GAP)
    numbers = [division.micro_batches] if division.micro_batches else [batch // (division.dp * rows) for rows in ROWS]
    given = [division._replace(micro_batches=m) for m in numbers if m and batch % (division.dp * m) == 0]
    fitting = [one for one in given if division.micro_batches or rank_bytes(work, one, batch) <= gpu.memory]
    seconds = min(step_seconds(work, one, machine, batch).total for one in fitting)
    return batch * work.context / seconds / division.ranks
