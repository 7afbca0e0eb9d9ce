"""Faults planted in the attention kernels, one at a time: each must be caught in some way of emulating a launch.

Caught: the result is not the formula's, or the emulator ends the launch. The list is printed at the end (pytest -s).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from minillm import cuda, random
from minillm.cuda.source import FOLDER

pytest.importorskip("ml_dtypes", reason="bfloat16 arrays need ml_dtypes")
sys.path.append(str(Path(__file__).parent))

import attention_launch as launch

SHARED, PLAIN, TENSOR = "attention.cuh", "attention.cu", "attention_bf16.cu"
WAYS = [(order, copies) for copies in ("deferred", "eager") for order in ("forward", "reverse", "random")]
BARRIER = r"^ *__sync(?:threads|warp)\(\);.*$"


def barriers(file):
    """Each barrier of a file, with the kernel that it is in."""
    text, seen = (FOLDER / file).read_text(), {}
    for found in re.finditer(BARRIER, text, re.MULTILINE):
        count = seen[found[0]] = seen.get(found[0], -1) + 1
        kernel = (re.findall(r"(attention_\w+)\(", text[: found.start()]) or [""])[-1]
        yield pytest.param(
            file,
            f"\n{found[0]}\n",
            count,
            "\n\n",
            kernel,
            False,
            id=f"{file}-{text[: found.start()].count(chr(10)) + 1}-barrier",
        )


def replaced(file, old, new, kernel, index=0, drop=False):
    return pytest.param(file, old, index, new, kernel, drop, id=f"{file}-{old.strip()[:40]}{'-dropout' * drop}")


def dropping(file, old, new, kernel, index=0):
    """A fault that only dropout shows."""
    return replaced(file, old, new, kernel, index, drop=True)


FORWARD, KEYS, QUERIES = "attention_forward", "attention_backward_keys", "attention_backward_queries"
KERNELS = FORWARD, KEYS, QUERIES
KEEPS = "if (DROPOUT && !is_kept(kept, n, 2 * h + e)) score = 0;"
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
    # The length is one off.
    replaced(PLAIN, "min(lengths[batch], keys)", "min(lengths[batch] + 1, keys)", FORWARD),
    replaced(TENSOR, "min(lengths[batch], keys)", "min(lengths[batch] - 1, keys)", KEYS + "_bf16", 1),
    replaced(TENSOR, "min(lengths[batch], keys)", "min(lengths[batch] + 1, keys)", QUERIES + "_bf16", 2),
    # A shuffle is missing: lanes of a row disagree about its largest score, or its sum.
    replaced(TENSOR, "now = max(now, __shfl_xor_sync(FULL_WARP, now, 2));", "", FORWARD + "_bf16"),
    replaced(TENSOR, "total += __shfl_xor_sync(FULL_WARP, total, 1);", "", FORWARD + "_bf16"),
    # The output is not rescaled when the largest score grows; delta or the scale is left out.
    replaced(
        TENSOR, "o[m][c][2 * h] *= factor, o[m][c][2 * h + 1] *= factor", "o[m][c][2 * h] *= factor", FORWARD + "_bf16"
    ),
    replaced(PLAIN, "o[i][j] *= factor", "o[i][j] *= 1", FORWARD),
    replaced(TENSOR, "mask * ds_i - of_query.y", "mask * ds_i", KEYS + "_bf16"),
    replaced(TENSOR, "dk_sum[i / (D / 2)][i % (D / 2) / 4][i % 4] *= scale", ";", KEYS + "_bf16"),
    # The wrong head, the wrong place in shared memory, no zeros beyond the end.
    replaced(TENSOR, "strides.head(K, batch, head / group)", "strides.head(K, batch, head % group)", FORWARD + "_bf16"),
    replaced(PLAIN, "head < (key_head + 1) * group", "head < key_head * group + 1", KEYS),
    replaced(SHARED, "(chunk ^ exchange) * 8", "(chunk + exchange) * 8", FORWARD + "_bf16"),
    replaced(SHARED, "const bool valid = first + row < end;", "const bool valid = true;", KEYS + "_bf16"),
    # Dropout draws other numbers: a row begins elsewhere, in another head, or at the same place as its neighbour.
    dropping(SHARED, "row * blocks + block", "row * (blocks + 1) + block", FORWARD + "_bf16"),
    dropping(TENSOR, "+ tile / per_head;", ";", KEYS + "_bf16"),
    dropping(PLAIN, "dropout, row0 + query, first / 8", "dropout, row0 + query, 0", KEYS),
    dropping(SHARED, "row + g + i % 2 * 8, block", "row + g, block", QUERIES + "_bf16"),
    *(dropping(PLAIN, "counter + batch * elsewhere", "counter", kernel, i) for i, kernel in enumerate(KERNELS)),
    *(dropping(TENSOR, "counter + batch * elsewhere", "counter", f"{k}_bf16", i) for i, k in enumerate(KERNELS)),
    # ... or keeps others: a number at the threshold goes, or lanes exchange the wrong bits.
    dropping(SHARED, "numbers[j] >= threshold", "numbers[j] > threshold", KEYS + "_bf16"),
    dropping(SHARED, "__shfl_sync(FULL_WARP, drawn, n, 4)", "drawn", FORWARD + "_bf16"),
    dropping(SHARED, "drawn, 8 * n + 2 * t + e", "drawn, 8 * n + t + e", KEYS + "_bf16"),
    # The sum of a row counts kept weights only; dV, dP or the output is without the mask, or without its scale.
    dropping(PLAIN, "sum[i] += p;", "sum[i] += weight;", FORWARD),
    dropping(TENSOR, "sum[m][h] += score;", KEEPS + "sum[m][h] += score;", FORWARD + "_bf16"),
    dropping(TENSOR, "(DROPOUT ? rescale : 1.0f) / total", "1 / total", FORWARD + "_bf16"),
    dropping(PLAIN, "weight = DROPOUT ? weight * p : p;", "weight = p;", KEYS, 1),
    dropping(PLAIN, "if (DROPOUT) dp[i][0] *= weight;", "", KEYS),
    dropping(PLAIN, "if (DROPOUT) dp[i][0] *= ds_tile[y + SIDE * i][x];", "", QUERIES),
    dropping(TENSOR, "p_i *= mask;", "", KEYS + "_bf16"),
    dropping(TENSOR, "mask * ds_i - of_query.y", "ds_i - of_query.y", KEYS + "_bf16"),
    dropping(TENSOR, "if (DROPOUT) ds_i *= is_kept(", "if (DROPOUT) ds_i = ds_i * 1, is_kept(", QUERIES + "_bf16"),
]


def broken(folder, file, old, index, new, kernel, drop):
    """A copy of the kernels with the fault, that lists only the instance which shows it."""
    folder.mkdir(exist_ok=True)
    for name in (SHARED, PLAIN, TENSOR):
        text = (FOLDER / name).read_text()
        if name == file:
            parts = text.split(old)
            assert len(parts) > index + 1, f"{file} has no {old!r} number {index}"
            text = old.join(parts[: index + 1]) + new + old.join(parts[index + 1 :])
        if kernel in text:
            text = re.sub(r"^// instances.*\n", "", text, flags=re.MULTILINE)
            instance = f"{'32' if kernel.endswith('bf16') else 'float, 32'}, {str(drop).lower()}"
            text += f"// instances: {kernel}<{instance}>\n"
        (folder / name).write_text(text)
    return folder / (TENSOR if kernel.endswith("bf16") else PLAIN)


def cases(dtype, drop):
    """Two tiles and a broken one on either side, grouped heads, padding; garbage behind the padding. With dropout, two
    batch items, with some of the stream between them.

    The first number of the mask, for a query which, of 70 queries, sees one key alone, is just at the threshold.
    """
    rng = np.random.default_rng(5)
    p = random.bits(4, 5, 1)[0] / 2**32
    assert 0.3 < p < 0.5
    batch, dropout = (2, launch.Dropout(p, 4, 5, 3)) if drop else (1, None)
    for queries, keys, length in ((135, 150, 150), (70, 70, 41)):
        arrays = [rng.standard_normal((batch, heads, tokens, 32)).astype(np.float32).astype(dtype)
                  for heads, tokens in ((4, queries), (2, keys), (2, keys), (4, queries))]  # fmt: skip
        case = launch.Problem(*arrays, np.full(batch, length, np.int32), True, 0.3, dropout)
        expected = launch.formula(case)
        case.k[:, :, length:] = case.v[:, :, length:] = np.nan
        yield case, expected


def passes(kernel, drop):
    """Whether the kernel agrees with the formula in every way of emulating it."""
    tensor = kernel.endswith("_bf16")
    tolerance = 0.02 if tensor else 1e-5
    for case, (out, lse, dq, dk, dv) in cases(launch.BFLOAT16 if tensor else np.float32, drop):
        results = {FORWARD: (out, lse), KEYS: (dk, dv), QUERIES: (dq,)}[kernel.removesuffix("_bf16")]
        lse = lse.astype(np.float32)
        delta = (case.dout * out).sum(axis=-1).astype(np.float32)
        for order, copies in WAYS if tensor else WAYS[:3]:
            with cuda.emulation(order=order, seed=1, copies=copies):
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
    monkeypatch.setattr(launch.attention, "get_kernel", lambda _, *name: cuda.get_kernel(file, *name))


@pytest.mark.parametrize("drop", [False, True], ids=["whole", "dropout"])
@pytest.mark.parametrize("kernel", [name + version for name in KERNELS for version in ("", "_bf16")])
def test_no_fault_is_none(request, monkeypatch, kernel, drop):
    folder = request.config.cache.mkdir("attention") / f"none_{drop}"
    run_broken(monkeypatch, broken(folder, "", "", 0, "", kernel, drop))
    assert passes(kernel, drop)


@pytest.mark.parametrize(("file", "old", "index", "new", "kernel", "drop"), FAULTS)
def test_fault_is_caught(request, monkeypatch, file, old, index, new, kernel, drop):
    name = re.sub(r"\W+", "_", request.node.callspec.id)
    kernel = kernel or FORWARD + "_bf16"  # which uses the barriers of the shared file
    run_broken(monkeypatch, broken(request.config.cache.mkdir("attention") / name, file, old, index, new, kernel, drop))
    error = ""
    try:
        caught = not passes(kernel, drop)
    except cuda.KernelError as raised:
        caught, error = True, str(raised)
    print(f"{name}: {error[:90] or 'wrong result' if caught else 'NOT CAUGHT'}")
    assert caught
    assert "does not compile" not in error
