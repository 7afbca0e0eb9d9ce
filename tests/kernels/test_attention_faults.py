"""Faults planted in the attention kernels, one at a time: each must be caught in some way of emulating a launch.

Caught: the result is not the formula's, or the emulator ends the launch. The list is printed at the end (pytest -s).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minillm import kernels

pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
sys.path.append(str(Path(__file__).parent))

import attention_launch as launch

SHARED, PLAIN, TENSOR = "attention.cuh", "attention.cu", "attention_bf16.cu"
WAYS = [(order, copies) for copies in ("deferred", "eager") for order in ("forward", "reverse", "random")]
BARRIER = r"^ *__sync(?:threads|warp)\(\);.*$"


def barriers(file):
    """Each barrier of a file, with the kernel that it is in."""
    text, seen = (kernels.FOLDER / file).read_text(), {}
    for found in re.finditer(BARRIER, text, re.MULTILINE):
        count = seen[found[0]] = seen.get(found[0], -1) + 1
        kernel = (re.findall(r"(attention_\w+)\(", text[: found.start()]) or [""])[-1]
        yield pytest.param(
            file,
            f"\n{found[0]}\n",
            count,
            "\n\n",
            kernel,
            id=f"{file}-{text[: found.start()].count(chr(10)) + 1}-barrier",
        )


def replaced(file, old, new, kernel, index=0):
    return pytest.param(file, old, index, new, kernel, id=f"{file}-{old.strip()[:40]}")


FORWARD, KEYS, QUERIES = "attention_forward", "attention_backward_keys", "attention_backward_queries"
WAIT, LATE = "cp_async_wait<0>();", "cp_async_wait<1>();"
FAULTS = [
    *(fault for file in (PLAIN, TENSOR, SHARED) for fault in barriers(file)),
    # The wait leaves one group of copies under way.
    replaced(TENSOR, WAIT, LATE, FORWARD + "_bf16", 0),
    replaced(TENSOR, WAIT, LATE, KEYS + "_bf16", 1),
    replaced(TENSOR, WAIT, LATE, QUERIES + "_bf16", 2),
    # The mask is one off, or missing where it is needed.
    replaced(SHARED, "query + offset + 1", "query + offset", FORWARD),
    replaced(SHARED, "query + offset + 1", "query + offset + 2", FORWARD + "_bf16"),
    replaced(SHARED, "max(0, key - offset)", "max(0, key - offset + 16)", KEYS),
    replaced(PLAIN, "key + x + SIDE * j < row_end", "key + x + SIDE * j <= row_end", FORWARD),
    replaced(PLAIN, "first + y + SIDE * i < row_end", "first + y + SIDE * i <= row_end", KEYS),
    replaced(PLAIN, "key + x < visible.end(row)", "key + x <= visible.end(row)", QUERIES),
    replaced(
        TENSOR,
        "masked && key + 8 * n + 2 * t + e >= row_end",
        "masked && key + 8 * n + 2 * t >= row_end",
        FORWARD + "_bf16",
    ),
    replaced(TENSOR, "key + COLUMNS > visible.end(first)", "key > visible.end(first)", QUERIES + "_bf16", 1),
    replaced(TENSOR, "first + ROWS > visible.end(query)", "first > visible.end(query)", KEYS + "_bf16"),
    # A shuffle is missing: lanes of a row disagree about its largest score, or its sum.
    replaced(TENSOR, "now = max(now, __shfl_xor_sync(FULL_WARP, now, 2));", "", FORWARD + "_bf16"),
    replaced(TENSOR, "total += __shfl_xor_sync(FULL_WARP, total, 1);", "", FORWARD + "_bf16"),
    # The output is not rescaled when the largest score grows; delta or the scale is left out.
    replaced(
        TENSOR, "o[m][c][2 * h] *= factor, o[m][c][2 * h + 1] *= factor", "o[m][c][2 * h] *= factor", FORWARD + "_bf16"
    ),
    replaced(PLAIN, "o[i][j] *= factor", "o[i][j] *= 1", FORWARD),
    replaced(TENSOR, "p_i * (ds_i - of_query.y)", "p_i * ds_i", KEYS + "_bf16"),
    replaced(TENSOR, "dk_sum[i / (D / 2)][i % (D / 2) / 4][i % 4] *= scale", ";", KEYS + "_bf16"),
    # The wrong head, the wrong place in shared memory, no zeros beyond the end.
    replaced(TENSOR, "head / group * k_head", "head % group * k_head", FORWARD + "_bf16"),
    replaced(PLAIN, "head < (key_head + 1) * group", "head < key_head * group + 1", KEYS),
    replaced(SHARED, "(chunk ^ exchange) * 8", "(chunk + exchange) * 8", FORWARD + "_bf16"),
    replaced(SHARED, "const bool valid = first + row < end;", "const bool valid = true;", KEYS + "_bf16"),
]


def broken(folder, file, old, index, new, kernel):
    """A copy of the kernels with the fault, that lists only the instance which shows it."""
    folder.mkdir(exist_ok=True)
    for name in (SHARED, PLAIN, TENSOR):
        text = (kernels.FOLDER / name).read_text()
        if name == file:
            parts = text.split(old)
            assert len(parts) > index + 1, f"{file} has no {old!r} number {index}"
            text = old.join(parts[: index + 1]) + new + old.join(parts[index + 1 :])
        if kernel in text:
            text = re.sub(r"^// instances.*\n", "", text, flags=re.MULTILINE)
            text += f"// instances: {kernel}<{'32' if kernel.endswith('bf16') else 'float, 32'}>\n"
        (folder / name).write_text(text)
    return folder / (TENSOR if kernel.endswith("bf16") else PLAIN)


def cases(dtype):
    """Two tiles and a broken one on either side, grouped heads, padding; garbage behind the padding."""
    rng = np.random.default_rng(5)
    for queries, keys, length in ((135, 150, 150), (70, 70, 41)):
        arrays = [rng.standard_normal((1, heads, tokens, 32)).astype(np.float32).astype(dtype)
                  for heads, tokens in ((4, queries), (2, keys), (2, keys), (4, queries))]  # fmt: skip
        case = launch.Problem(*arrays, np.array([length], np.int32), True, 0.3)
        expected = launch.formula(case)
        case.k[:, :, length:] = case.v[:, :, length:] = np.nan
        yield case, expected


def passes(kernel):
    """Whether the kernel agrees with the formula in every way of emulating it."""
    tensor = kernel.endswith("_bf16")
    tolerance = 0.02 if tensor else 1e-5
    for case, (out, lse, dq, dk, dv) in cases(launch.BFLOAT16 if tensor else np.float32):
        results = {FORWARD: (out, lse), KEYS: (dk, dv), QUERIES: (dq,)}[kernel.removesuffix("_bf16")]
        lse = lse.astype(np.float32)
        delta = (case.dout * out).sum(axis=-1).astype(np.float32)
        for order, copies in WAYS if tensor else WAYS[:3]:
            with kernels.emulation(order=order, seed=1, copies=copies):
                received = [np.full(x.shape, np.nan, case.q.dtype) for x in results]
                if kernel.startswith(FORWARD):
                    received = launch.forward(case, *received[:1])
                elif kernel.startswith(KEYS):
                    launch.backward_keys(case, lse, delta, *received)
                else:
                    launch.backward_queries(case, lse, delta, *received)
            for x, y in zip(received, results, strict=True):
                if not np.abs(x.astype(np.float64) - y).max() <= tolerance * np.abs(y).max():
                    return False
    return True


def run_broken(monkeypatch, file):
    """Let the launches of minillm.ops find their kernels in `file`."""
    monkeypatch.setattr(launch.attention, "get_kernel", lambda _, *name: kernels.get_kernel(file, *name))


@pytest.mark.parametrize("kernel", [name + version for name in (FORWARD, KEYS, QUERIES) for version in ("", "_bf16")])
def test_no_fault_is_none(request, monkeypatch, kernel):
    run_broken(monkeypatch, broken(request.config.cache.mkdir("attention") / "none", "", "", 0, "", kernel))
    assert passes(kernel)


@pytest.mark.parametrize(("file", "old", "index", "new", "kernel"), FAULTS)
def test_fault_is_caught(request, monkeypatch, file, old, index, new, kernel):
    name = re.sub(r"\W+", "_", request.node.callspec.id)
    kernel = kernel or FORWARD + "_bf16"  # which uses the barriers of the shared file
    run_broken(monkeypatch, broken(request.config.cache.mkdir("attention") / name, file, old, index, new, kernel))
    error = ""
    try:
        caught = not passes(kernel)
    except kernels.KernelError as raised:
        caught, error = True, str(raised)
    print(f"{name}: {error[:90] or 'wrong result' if caught else 'NOT CAUGHT'}")
    assert caught
    assert "does not compile" not in error
