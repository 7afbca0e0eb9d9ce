"""CUDA: kernels compiled and launched, on a GPU or in the emulator, and for each operation the pair that launches them.

kernel.py holds Kernel, what is launched; source.py reads the text of kernels/, nvrtc.py compiles it, emulate.py runs
it on a CPU; launch.py says how kernels over rows are cut into blocks. `<op>.py` is an operation's pair.
"""

from typing import Any

from minillm.cuda.emulate import emulation
from minillm.cuda.kernel import WARP, Kernel, get_kernel, kernel_dtypes, launch_counts, strides_of
from minillm.cuda.nvrtc import compile_table
from minillm.cuda.source import KernelError

__all__ = [
    "WARP",
    "Kernel",
    "KernelError",
    "compile_table",
    "emulation",
    "get_kernel",
    "kernel_dtypes",
    "launch_counts",
    "strides_of",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"minillm.cuda has no {name!r}: it holds kernels. A model goes to a GPU by model.to('cuda'), a tensor by "
        "x.to('cuda') or device='cuda'; each raises DeviceError where there is no GPU"
    )
