"""How a page stores arrays: exactly while they fit, then in 16 bits, then as pictures; and the formulas of lines."""

from __future__ import annotations

import importlib
import zlib

import numpy as np
import pytest

from minillm.study.step.formulas import formulas
from minillm.study.step.records import Source
from minillm.study.step.store import ALL, Level, Store, choose_level, halves, statistics, store


def stored_numbers(record: dict, block: bytes) -> np.ndarray:
    """The numbers of an array as the page reads them."""
    kinds = {"f4": np.float32, "f8": np.float64, "i4": np.int32, "u1": np.uint8, "f2": np.float16}
    shape = (2, *record["image"]) if "image" in record else tuple(record["shape"])
    count = int(np.prod(shape))
    numbers = np.frombuffer(block, kinds[record["type"]], count, record["at"]).astype(np.float64)
    return np.ldexp(numbers, record.get("exponent", 0)).reshape(shape)


def test_arrays_that_fit_are_exact(rng: np.random.Generator) -> None:
    arrays = [
        rng.normal(size=(3, 5)).astype(np.float32),
        rng.normal(size=(2, 1, 7)) * 1e-300,
        rng.integers(-(2**31), 2**31, (4, 3)),
        np.array([2**40, -1]),
        rng.normal(size=(3, 2)) > 0,
        np.array([np.nan, np.inf, -np.inf, -0.0], np.float32),
        np.float32(rng.normal()).reshape(()),
        rng.normal(size=(6, 4)).astype(np.float32).T,
        np.zeros((0, 3), np.float32),
        rng.normal(size=9).astype(np.float16),
    ]
    holder = Store()
    assert [holder.number(array) for array in [*arrays, arrays[1], None]] == [*range(len(arrays)), 1, None]
    records, packed, level = holder.packed(1e6)
    assert level == Level(ALL, ALL, 64)
    block = zlib.decompress(packed)
    for array, record in zip(arrays, records, strict=True):
        np.testing.assert_array_equal(stored_numbers(record, block), array.astype(np.float64))
        assert record["dtype"] == str(array.dtype)


@pytest.mark.parametrize("budget", [350_000, 120_000, 30_000])
def test_larger_arrays_are_rounded_until_all_fit(rng: np.random.Generator, budget: int) -> None:
    arrays = [rng.normal(size=shape).astype(np.float32) * 1e-6 for shape in [(5, 7), (40, 50), (300, 200), (150, 300)]]
    holder = Store()
    for array in arrays:
        holder.number(array)
    records, packed, level = holder.packed(budget)
    assert len(packed) <= budget
    block = zlib.decompress(packed)
    assert {"image" in record or record["type"] == "f2" for record in records} == {True, False}
    for array, record in zip(arrays, records, strict=True):
        numbers, largest = stored_numbers(record, block), float(np.abs(array).max())
        assert record["stats"] == statistics(array)
        if array.size <= level.exact:
            np.testing.assert_array_equal(numbers, array)
        elif array.size <= level.half:
            np.testing.assert_allclose(numbers, array, rtol=2**-11, atol=2**-24 * largest)
        else:
            rows, columns = record["block"]
            first = array[:rows, :columns].astype(np.float64)
            assert numbers[0, 0, 0] == pytest.approx(first.mean(), abs=2e-3 * largest)
            assert numbers[1, 0, 0] == pytest.approx(first.ravel()[np.abs(first).argmax()], rel=2e-3)
            last = array[(record["image"][0] - 1) * rows :, (record["image"][1] - 1) * columns :]
            assert numbers[0, -1, -1] == pytest.approx(last.mean(), abs=2e-3 * largest)


def test_what_is_rounded_is_as_little_as_possible() -> None:
    sizes = [(100, 400), (1000, 4000), (100_000, 400_000)]
    assert choose_level(sizes, 1e6) == Level(ALL, ALL, 64)
    level = choose_level(sizes, 300_000)
    assert 1000 <= level.exact < 100_000 <= level.half
    assert choose_level(sizes, 100_000).half < 100_000


def test_halves_keep_tiny_and_huge_numbers() -> None:
    for scale in 1e-30, 1.0, 1e30:
        stored, extra = halves(np.array([1.0, -0.5, 0.001]) * scale)
        np.testing.assert_allclose(
            np.ldexp(stored.astype(np.float64), extra["exponent"]) / scale, [1, -0.5, 1e-3], 1e-3
        )
    stored, _ = halves(np.array([np.nan, np.inf, 2.0]))
    np.testing.assert_array_equal(np.isfinite(stored), [False, False, True])
    assert store(np.zeros((3, 3)), Level(1, 99, 4))[1] == {"type": "f2", "exponent": 0}


def test_formulas_of_lines() -> None:
    lines = (
        "def f(x, w, has_bias):",
        "    a, b = x.T @ w, -x[..., None]",
        "    y = np.where(x > 0, x, 0).sum(axis=-1, keepdims=True) / SIZE",
        "    z = unknown(x)",
        "    y += 1",
        "    return y * 2, a",
    )
    found = formulas("no.module.f", Source("f.py", 10, lines, ""))
    x = ["name", "x"]
    assert found == {
        11: {"a": ["matmul", ["T", x], ["name", "w"]], "b": ["neg", ["index", x, [["..."], ["new"]]]]},
        12: {
            "y": [
                "/",
                ["sum", ["where", [">", x, ["num", 0.0]], x, ["num", 0.0]], ["neg", ["num", 1.0]], ["num", 1.0]],
                ["name", "SIZE"],
            ]
        },
        14: {"y": ["+", ["name", "y"], ["num", 1.0]]},
        15: {"y * 2": ["*", ["name", "y"], ["num", 2.0]]},
    }
    assert formulas("no.module.g", Source("g.py", 1, ("f(lambda x:",), "")) == {}


def test_constants_of_the_module_are_known() -> None:
    gelu = importlib.import_module("minillm.ops.gelu")
    source = Source("gelu.py", 1, ("def f(x):", "    u = SQRT_2_OVER_PI * x"), "")
    [tree] = formulas(f"{gelu.__name__}.f", source)[2].values()
    assert tree == ["*", ["num", float(gelu.SQRT_2_OVER_PI), "SQRT_2_OVER_PI"], ["name", "x"]]
