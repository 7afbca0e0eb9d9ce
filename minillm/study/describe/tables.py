"""A description as tables to print, and compared with the rules of thumb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from minillm.study.describe.description import Amount, Description, Kept, total


class Table(NamedTuple):
    """A table of texts to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(found: Description) -> Iterator[Table]:
    """Parameters, what is kept for the backward, the memory of a step, and the FLOPs of a token."""
    step = f"a step of {found.batch_size} x {found.context} tokens in {found.dtype} by the fast engine"
    rows: list[tuple[str, ...]] = [
        (name, f"{n.block:,.0f}", f"{n.total:,.0f}", in_bytes(n.total * found.itemsize))
        for name, n in with_sum(found.parameters)
    ]
    columns: tuple[str, ...] = ("part", "in a block", "in all", f"in {found.dtype}")
    yield Table(f"{found.name}: parameters", columns, rows)

    one = found.tokens * found.itemsize * found.config.channels
    kept = {key: found.kept[key] for key in sorted(found.kept, key=lambda key: key.part)}
    rows = [
        (*key, f"{n.block / one:.2f} C" if n.block else "", in_bytes(n.block), in_bytes(n.total))
        for key, n in with_sum(kept, Kept("all", "", ""))
    ]
    columns = ("part", "operation", "arrays", "in a block, a token", "in a block", "in all")
    yield Table(f"kept for the backward by {step}; C is {found.config.channels} numbers", columns, rows)

    held = {
        "weights": found.weight_bytes,
        "gradients of weights": found.gradient_bytes,
        "float32 copies of weights": found.master_bytes,
        "AdamW's two moments": found.moment_bytes,
        "kept for the backward": found.activation_bytes,
        "more at the peak": int(found.peak) - found.activation_bytes,
        "at the peak": found.step_bytes,
        "KV cache, for each token": found.cache_token,
    }
    if found.cache_token:
        longest = found.batch_size * found.config.context
        held["KV cache, for each token of a source"] = found.cache_source
        both = "of target and source" if found.cache_source else "tokens"
        size = (found.cache_token + found.cache_source) * longest
        held[f"KV cache, {found.batch_size} x {found.config.context} {both}"] = size
    yield Table(
        f"memory of {step}",
        ("", "bytes"),
        [(name, in_bytes(size)) for name, size in held.items() if size],
    )

    names = dict.fromkeys([*found.forward, *found.backward])
    products = {name: [way.get(name, Amount(0, 0)).total for way in (found.forward, found.backward)] for name in names}
    products["all"] = [sum(column) for column in zip(*products.values(), strict=True)]
    rows = [(name, *(f"{n / found.tokens:,.0f}" for n in both)) for name, both in products.items() if any(both)]
    yield Table(f"FLOPs of the matrix products, a token of {step}", ("part", "forward", "backward"), rows)


def rules(found: Description) -> Iterator[str]:
    """The counted FLOPs compared with the rules of thumb."""
    rule, exact = 6 * found.kaplan_parameters, found.flops_per_token
    layers = sum(number for name, number in vars(found.config).items() if name.endswith("layers"))
    attention = 12 * layers * found.config.channels * found.context
    yield f"counted, forward and backward: {exact:.4g} FLOPs a token"
    number = f"N = {found.kaplan_parameters:,} without tables"
    yield f"6N (Kaplan et al. 2020), {number}: {rule:.4g}, {rule / exact:.2f} of it"
    yield f"6N + 12 L C T (PaLM 2022, appendix B): {rule + attention:.4g}, {(rule + attention) / exact:.2f} of it"


def with_sum(amounts: Mapping[Any, Amount], name: Any = "all") -> Iterator[tuple[Any, Amount]]:
    """The amounts, and after them their sum."""
    yield from amounts.items()
    yield name, Amount(sum(amount.block for amount in amounts.values()), total(amounts))


def in_bytes(size: float) -> str:
    """12.3 MB: three digits, in powers of 1000."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"
