"""What ranks send and keep, measured, is what the formulas say, to the byte."""

from __future__ import annotations

import pytest

from minillm.errors import InputError
from minillm.models.bert import BertConfig, BertModel
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.parallel import tensor_parallel
from minillm.study.parallel_report import (
    Division,
    Place,
    divisions,
    exact_tables,
    kept_bytes,
    measure_all,
    paper_bytes,
    place,
    sent_by,
    shapes_of,
    stage_of,
    step_bytes,
)

# five layers, which neither 2 nor 4 stages divide; 61 ids, which no number of ranks divides
MODELS = {
    "gpt2": (GPT2, GPT2Config(61, context=16, layers=5, heads=4, channels=36)),
    "llama": (Llama, LlamaConfig(61, 16, layers=5, heads=4, kv_heads=4, channels=32, hidden=44, tied=False)),
    "tied llama": (Llama, LlamaConfig(61, 16, layers=5, heads=8, kv_heads=4, channels=32, hidden=44, tied=True)),
}
TWO = [
    *(Division(dp=2, zero=zero, micro_batches=m) for zero in range(4) for m in (1, 3)),
    *(Division(tp=2, micro_batches=m, recompute=m == 3) for m in (1, 3)),
    *(Division(pp=2, micro_batches=m) for m in (1, 3)),
]
FOUR = [
    *(Division(dp=4, zero=zero, micro_batches=m) for zero in range(4) for m in (1, 3)),
    *(Division(tp=4, micro_batches=m) for m in (1, 3)),
    *(Division(pp=4, micro_batches=m, recompute=m == 3) for m in (1, 3)),
    *(Division(dp=2, tp=2, zero=zero, micro_batches=3) for zero in range(4)),
    *(Division(dp=2, pp=2, zero=zero, micro_batches=3) for zero in (0, 1)),
    Division(tp=2, pp=2, micro_batches=3),
    *(Division(dp=2, tp=3 - n, pp=n, micro_batches=7) for n in (1, 2)),  # one sequence: the second part has none
]
BATCH, CONTEXT = 7, 9  # 7 sequences in 3 micro-batches over 4 ranks: 3, 2 and 2, so that some have none


@pytest.mark.parametrize("divisions", [TWO, FOUR], ids=["2 ranks", "4 ranks"])
@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_memory_are_those_of_the_formulas(ranks, name, divisions):
    kind, config = MODELS[name]
    shapes = shapes_of(kind, config)
    if name == "tied llama":  # which differs from the other in a pipeline
        divisions = [division for division in divisions if division.pp > 1]
    outcomes = ranks(divisions[0].ranks).run(measure_all, kind, config, divisions, BATCH, CONTEXT)
    for number, division in enumerate(divisions):
        found = [rank[number] for rank in outcomes]
        for rank in range(division.ranks):
            told = f"{division.name}, {division.micro_batches} micro-batches, rank {rank}"
            assert dict(sent_by(rank, found)) == dict(step_bytes(shapes, division, BATCH, CONTEXT, 4, rank)), told
            assert found[rank].kept == kept_bytes(shapes, division, 4, rank), told


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_bytes_in_float64(ranks, zero):
    kind, config = MODELS["gpt2"]
    shapes, division = shapes_of(kind, config), Division(dp=1 + (zero > 0), tp=2, pp=2 - (zero > 0), zero=zero)
    found = [rank[0] for rank in ranks(4).run(measure_all, kind, config, [division], BATCH, CONTEXT, 1, "float64")]
    for rank in range(4):
        assert dict(sent_by(rank, found)) == dict(step_bytes(shapes, division, BATCH, CONTEXT, 8, rank))
        assert found[rank].kept == kept_bytes(shapes, division, 8, rank)


def test_shapes_are_those_of_the_whole_model():
    for kind, config in MODELS.values():
        shapes, whole = shapes_of(kind, config), kind(config)
        assert stage_of(shapes, Division(), Place(0, 0, 0)).numbers == whole.num_parameters()
        assert shapes.layers == 5
        assert bool(shapes.tied) == (whole.output_weight is whole.wte.weight)
        for n in (2, 4):  # what the ranks have of parameters that are cut adds up
            names = dict(shapes.block | shapes.before | shapes.after)
            cut = {name for name in names if name.split(".")[-2] in ("qkv", "fc", "gate", "up", "wte", "lm_head")}
            cut |= {name for name in names if name.endswith(("proj.weight", "down.weight"))}
            rest = whole.num_parameters() - sum(
                p.numel() for name, p in whole.named_parameters() if _as_first(name) in cut
            )
            parts = [stage_of(shapes, Division(tp=n), Place(0, 0, t)).numbers for t in range(n)]
            assert sum(parts) == whole.num_parameters() + (n - 1) * rest


def _as_first(name):
    parts = name.split(".")
    return ".".join(["h", "0", *parts[2:]]) if parts[0] == "h" else name


@pytest.mark.parametrize("ranks_of_group", [2, 4, 8])
def test_tensor_parallel_bytes_are_those_of_its_own_formula(ranks_of_group):
    config = GPT2Config(61, context=16, layers=5, heads=8, channels=32)
    division = Division(tp=ranks_of_group)
    sent = [step_bytes(shapes_of(GPT2, config), division, 8, 16, 4, rank) for rank in range(ranks_of_group)]
    expected = tensor_parallel.step_bytes(5, 8 * 16, 32, ranks_of_group)
    for one in sent:
        assert sum(count for what, count in one.items() if what != "numbers") == expected


@pytest.mark.parametrize("n", [2, 4, 64])
@pytest.mark.parametrize("zero", range(4))
def test_memory_is_the_papers_table_but_for_padding(zero, n):
    config = GPT2Config.preset("gpt2")
    shapes, division = shapes_of(GPT2, config), Division(dp=n, zero=zero)
    p = 4 * 124_439_808
    paper = paper_bytes(p, division)
    assert paper == {
        "parameters": [p, p, p, p / n][zero],
        "gradients": [p, p, p / n, p / n][zero],
        "state": [2 * p, 2 * p / n, 2 * p / n, 2 * p / n][zero],
    }
    total = {name: sum(kept_bytes(shapes, division, 4, rank)[name] for rank in range(n)) / n for name in paper}
    for name, size in total.items():
        assert paper[name] <= size <= 1.001 * paper[name]


def test_master_weights_of_bfloat16_count_as_state():
    shapes = shapes_of(GPT2, GPT2Config.preset("gpt2"))
    one, half = (kept_bytes(shapes, Division(), itemsize) for itemsize in (4, 2))
    assert (one["parameters"], one["state"]) == (2 * half["parameters"], 2 * one["parameters"])
    assert half["state"] == 6 * half["parameters"]  # 12 bytes for 2: the paper's K = 12


def test_every_kind_of_division_is_measured():
    shapes = shapes_of(*MODELS["gpt2"])
    found = divisions(4, shapes, heads=4)
    assert all(division.ranks == 4 for division in found)
    assert {(d.dp, d.tp, d.pp) for d in found} == {(4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 1), (2, 1, 2), (1, 2, 2)}
    assert {d.zero for d in found if d.dp == 4} == {0, 1, 2, 3}
    assert all(division.tp == 1 for division in divisions(4, shapes, heads=3))
    assert [place(Division(2, 2, 2), rank) for rank in (0, 3, 6)] == [(0, 0, 0), (0, 1, 1), (1, 1, 0)]


def test_tables_say_where_a_formula_is_wrong(ranks):
    kind, config = MODELS["gpt2"]
    shapes, given = shapes_of(kind, config), [Division(dp=2, zero=1), Division(pp=2, micro_batches=3)]
    outcomes = ranks(2).run(measure_all, kind, config, given, BATCH, CONTEXT)
    for table in exact_tables("a model", shapes, given, outcomes, BATCH, CONTEXT):
        assert [row[-1] for row in table.rows] == ["equal", "equal"]
        assert {len(row) for row in table.rows} == {len(table.columns)}
    sent, kept = exact_tables("a model", shapes._replace(layers=6), given, outcomes, BATCH, CONTEXT)
    assert [row[-1] for row in sent.rows] == ["2 ranks differ", "equal"]  # a pipeline sends the same however deep
    assert [row[-1] for row in kept.rows] == ["2 ranks differ", "1 ranks differ"]


def test_a_model_that_cannot_be_divided():
    with pytest.raises(InputError, match="a BertModel cannot be divided; give a GPT2 or a Llama"):
        shapes_of(BertModel, BertConfig())
