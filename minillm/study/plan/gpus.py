"""The speed, memory and power of GPUs, by name, and the price of an hour: all of it can be replaced by options.

Peaks are those of dense matrix products in the dtype that training uses, as the maker's data sheet has them (half of
what it says "with sparsity"). Bandwidths to other GPUs are one way, half of what a data sheet calls the total.

`products` is the share of the peak that matrix products reach alone. Two numbers were chosen so that predictions meet
what MosaicML measured on A100s for seven sizes from 125 million to 13 billion (llm-foundry,
scripts/train/benchmarking/README.md): 0.70 of the peak, and 12 for projection.TOUCHED, which leave errors of 9% at
most. The H100's share is a fit to the same table. Both are PyTorch's: nobody has measured this engine on any of these
GPUs. Those of the H100's generation and the next got its share; 0.60 for the others is a guess between the two.
benchmarks/results/plan.md has all comparisons, also with trainings that nothing was fitted to.

Memory is counted in 10^9 bytes, while a GPU "of 80 GB" has 80 times 2^30: the 7% between are left to CUDA, to cuBLAS's
and NCCL's buffers, and to memory that is free but in pieces.
"""

from __future__ import annotations

from typing import NamedTuple

from minillm.errors import InputError, did_you_mean
from minillm.study.projection import MOVED, Link, Machine

LAUNCHES = 50  # kernels of a block, forward and backward, between which a GPU waits
GAP = 6e-6  # seconds that a Python program takes to hand over the next one
LATENCY = 5e-6  # seconds of a message without content (NCCL, within a machine; a little more between machines)
MOVED_IN_FLOAT32 = 28  # bytes: parameter, gradient and two moments read; parameter and moments written


class Gpu(NamedTuple):
    """A GPU, the machines that it is usually found in, and the sources of its numbers."""

    name: str
    flops: float  # operations of dense matrix products a second
    dtype: str  # that training uses
    memory: float  # bytes
    bandwidth: float  # bytes a second, to its memory
    power: float  # watts at full load
    per_node: int  # GPUs of a machine
    link: float  # bytes a second to another GPU of the machine, one way
    network: float  # bytes a second to another machine, one way
    price: float  # US dollars an hour
    products: float  # share of `flops` that matrix products reach
    source: str
    price_source: str

    def machine(self) -> Machine:
        """A cluster of this GPU, as the projection sees it; `overhead` depends on the model, and is set with it."""
        moved = MOVED if self.dtype == "bfloat16" else MOVED_IN_FLOAT32
        return Machine(
            self.flops * self.products,
            Link(LATENCY, self.link),
            Link(2 * LATENCY, self.network),
            self.per_node,
            self.memory,
            update=moved / self.bandwidth,
            traffic=self.bandwidth,
        )


RUNPOD = "RunPod's list, March 2026 (deploybase.ai)"
SPECIALISTS = "middle of specialised clouds' lists, May 2026 (mercatus-ai.com/blog/cloud-gpu-pricing)"

# name, FLOP/s, dtype, memory, bandwidth, watts, GPUs a machine, link, network, dollars an hour, products
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            *("a100", 312e12, "bfloat16", 80e9, 2.039e12, 400, 8, 300e9, 25e9, 1.30, 0.70),
            "NVIDIA A100 data sheet (SXM, 80 GB); DGX A100: 200 Gb/s InfiniBand a GPU",
            SPECIALISTS,
        ),
        Gpu(
            *("h100", 989e12, "bfloat16", 80e9, 3.35e12, 700, 8, 450e9, 50e9, 3.00, 0.55),
            "NVIDIA H100 data sheet (SXM); DGX H100: 400 Gb/s InfiniBand a GPU",
            SPECIALISTS,
        ),
        Gpu(
            *("h200", 989e12, "bfloat16", 141e9, 4.8e12, 700, 8, 450e9, 50e9, 4.00, 0.55),
            "NVIDIA H200 data sheet (SXM); DGX H200: 400 Gb/s InfiniBand a GPU",
            SPECIALISTS,
        ),
        Gpu(
            *("b200", 2250e12, "bfloat16", 180e9, 8e12, 1000, 8, 900e9, 50e9, 5.98, 0.55),
            "NVIDIA DGX B200 data sheet, an eighth of it; 400 Gb/s InfiniBand a GPU",
            RUNPOD,
        ),
        Gpu(
            *("l4", 121e12, "bfloat16", 24e9, 300e9, 72, 8, 32e9, 1.5e9, 0.78, 0.60),
            "NVIDIA L4 data sheet (PCIe 4 x16); 100 Gb/s a machine of 8",
            RUNPOD,
        ),
        Gpu(
            *("l40s", 362e12, "bfloat16", 48e9, 864e9, 350, 8, 32e9, 1.5e9, 1.40, 0.60),
            "NVIDIA L40S data sheet (PCIe 4 x16); 100 Gb/s a machine of 8",
            RUNPOD,
        ),
        Gpu(
            *("rtx4090", 165e12, "bfloat16", 24e9, 1.008e12, 450, 4, 25e9, 0.3e9, 0.60, 0.60),
            "NVIDIA Ada architecture white paper, appendix A (sums in float32; PCIe 4 x16); 10 Gb/s a machine of 4",
            RUNPOD,
        ),
        Gpu(
            *("rtx3090", 71e12, "bfloat16", 24e9, 936e9, 350, 4, 25e9, 0.3e9, 0.39, 0.60),
            "NVIDIA GA102 architecture white paper, appendix A (sums in float32; PCIe 4 x16); 10 Gb/s a machine of 4",
            RUNPOD,
        ),
        Gpu(
            *("v100", 15.7e12, "float32", 32e9, 900e9, 300, 8, 150e9, 12.5e9, 0.55, 0.80),
            "NVIDIA V100 data sheet (SXM2; it has no bfloat16, so float32); DGX-2: 100 Gb/s InfiniBand a GPU",
            "Lambda's list for machines of 8",
        ),
        Gpu(
            *("cpu", 400e9, "float32", 12e9, 50e9, 45, 1, 10e9, 0.1e9, 0.0, 0.70),
            "a laptop of 8 cores, taken as half of the 90 GFLOP/s a core that benchmarks/results/parallel.md measured; "
            "12 of its 16 GB; two channels of memory",
            "your own: nothing but the electricity",
        ),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of a name. Raises: InputError for a name that is not in the table."""
    key = name.lower().replace("-", "").replace(" ", "").removeprefix("nvidia").removeprefix("geforce")
    if key not in GPUS:
        raise InputError(
            f"plan: there is no GPU {name!r} in the table{did_you_mean(key, GPUS)}; or take the nearest one and give "
            "--flops, --memory and --memory-bandwidth of yours"
        )
    return GPUS[key]
