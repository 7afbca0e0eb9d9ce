"""The arithmetic of the projection, against closed forms and a simulated pipeline; and the report as printed."""

from __future__ import annotations

import dataclasses

import pytest

from minillm.cli import main
from minillm.errors import InputError
from minillm.models.llama import Llama, LlamaConfig
from minillm.parallel.pipeline import bubble_fraction, simulate
from minillm.study.parallel_report import Division, kept_bytes
from minillm.study.projection import (
    TOUCHED,
    Link,
    Machine,
    gpu_machine,
    message_seconds,
    projection_tables,
    rank_bytes,
    scatter_seconds,
    settings,
    step_seconds,
    tried,
    ways,
    work_of,
    work_of_config,
)
from minillm.study.this_machine import LARGE, SMALL, Constants, constants, machine_of, told

FREE = Link(0.0, float("inf"))
IDEAL = Machine(1e9, FREE, FREE, 8)  # messages take no time
CLUSTER = Machine(1e12, Link(1e-6, 1e11), Link(5e-6, 1e10), 8, memory=80e9)
H100 = gpu_machine(989e12, 0.5, 80e9, 3.35e12, 8, 450e9, 50e9, 5e-6)


@pytest.fixture(scope="module")
def tiny():
    return work_of("tiny", None, "float32")


def test_a_ring_and_a_group_in_several_nodes():
    assert scatter_seconds(CLUSTER, 1e6, 1) == 0
    assert scatter_seconds(CLUSTER, 8e6, 4) == pytest.approx(3 * (1e-6 + 2e6 / 1e11))
    # 8 in each of 4 nodes: 7 steps within of 1 MB, then 3 between of 0.25 MB
    assert scatter_seconds(CLUSTER, 8e6, 32) == pytest.approx(7 * (1e-6 + 1e6 / 1e11) + 3 * (5e-6 + 0.25e6 / 1e10))
    # ranks 4 apart: 2 in a node; ranks 8 apart: each in a node of its own
    assert scatter_seconds(CLUSTER, 8e6, 8, 4) == pytest.approx(1e-6 + 4e6 / 1e11 + 3 * (5e-6 + 1e6 / 1e10))
    assert scatter_seconds(CLUSTER, 8e6, 2, 8) == pytest.approx(5e-6 + 4e6 / 1e10)
    assert message_seconds(CLUSTER, 1e6, 2, 4) == pytest.approx(1e-6 + 1e-5)
    assert message_seconds(CLUSTER, 1e6, 4, 4) == pytest.approx(5e-6 + 1e-4)


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 3), (4, 4), (4, 9)])
def test_a_pipeline_takes_as_long_as_a_simulated_one(tiny, stages, micro_batches):
    work = tiny._replace(outer_flops=0.0)  # all stages alike
    found = step_seconds(work, Division(pp=stages, micro_batches=micro_batches), IDEAL, 36)
    events = simulate("1f1b", stages, micro_batches, 1.0, 2.0)
    one = found.compute / (3 * micro_batches)  # seconds of a forward
    assert found.total == pytest.approx(one * max(event.end for event in events))
    assert found.bubble / found.total == pytest.approx(bubble_fraction(stages, micro_batches))


def test_the_slowest_stage_counts(tiny):
    work = tiny._replace(outer_flops=0.0)
    even, uneven = (
        step_seconds(work._replace(shapes=work.shapes._replace(layers=n)), Division(pp=2, micro_batches=4), IDEAL, 8)
        for n in (4, 5)
    )
    assert uneven.compute == pytest.approx(even.compute * 3 / 2)  # three blocks instead of two
    given = Division(pp=2, micro_batches=4)
    assert step_seconds(tiny, given, IDEAL, 8).compute > even.compute  # the last stage has the output layer


@pytest.mark.parametrize("zero", range(4))
def test_with_free_messages_many_ranks_are_as_many_times_as_fast(tiny, zero):
    one = step_seconds(tiny, Division(), IDEAL, 64)
    assert one.total == pytest.approx(64 * tiny.context * tiny.flops / 1e9)
    assert step_seconds(tiny, Division(dp=64, zero=zero), IDEAL, 64).total == pytest.approx(one.total / 64)
    assert step_seconds(tiny, Division(tp=4), IDEAL, 64).total == pytest.approx(one.total / 4)
    again = step_seconds(tiny, Division(recompute=True), IDEAL, 64).total - one.total
    assert again == pytest.approx(64 * tiny.context * 4 * tiny.block_flops / 3 / 1e9)


def test_what_goes_to_memory_takes_its_time(tiny):
    slow = IDEAL._replace(traffic=1e9)
    for tp in (1, 4):
        more = [step_seconds(tiny, Division(tp=tp), machine, 8).compute for machine in (slow, IDEAL)]
        bytes_kept = 4 * (tiny.block_kept[0] + tiny.block_kept[1] / tp) + tiny.outer_kept[0] + tiny.outer_kept[1] / tp
        assert more[0] - more[1] == pytest.approx(TOUCHED * bytes_kept * 8 * tiny.context / 1e9)


def test_what_shows_of_the_sums(tiny):
    def data(machine, zero, micro_batches=1):
        return step_seconds(tiny, Division(dp=4, zero=zero, micro_batches=micro_batches), machine, 64).data

    def with_bandwidth(bandwidth):
        machine = IDEAL._replace(node=Link(0.0, bandwidth), network=Link(0.0, bandwidth))
        numbers = kept_bytes(tiny.shapes, Division(dp=4))["parameters"], 4 * (65 + 64 + 2) * 128
        return machine, *(0.75 * count / bandwidth for count in numbers)  # a reduce_scatter of all, and of the root

    backward = 64 * tiny.context / 4 * tiny.flops / 1e9 * 2 / 3
    slow, one, root = with_bandwidth(1e5)
    blocks = one - root
    assert data(slow, 0) == pytest.approx(2 * one - backward)
    assert data(slow, 1) == pytest.approx(2 * one - backward)
    assert data(slow, 2, 4) == pytest.approx(4 * blocks + root + one - backward)
    # of four blocks two are there still in the forward and in the backward; both passes hide what they can
    assert data(slow, 3) == pytest.approx(blocks / 2 + (blocks / 2 + blocks) - 1.5 * backward + 2 * root)
    fast, one, root = with_bandwidth(1e12)
    assert data(fast, 0) == pytest.approx(2 * root)  # all but the root's is hidden
    assert data(fast, 1) == pytest.approx(one + root)  # nothing hides the gathers
    assert data(fast, 3) == pytest.approx(2 * root)
    assert data(fast._replace(cores=4), 0) == pytest.approx(2 * one)  # no core is left to hide it


@pytest.mark.parametrize("recompute", [False, True])
def test_sums_of_tensor_parallelism(tiny, recompute):
    machine, tokens = IDEAL._replace(node=Link(1e-3, 1e6)), 8 * tiny.context
    stream, one, two = (2 * scatter_seconds(machine, 4 * count * tokens, 4) for count in (128, 1, 2))
    found = step_seconds(tiny, Division(tp=4, recompute=recompute), machine, 8)
    sums = 4 * (6 if recompute else 4) + 2
    assert found.tensor == pytest.approx(sums * stream + one + two)
    twice = step_seconds(tiny, Division(tp=4, micro_batches=2, recompute=recompute), machine, 8)
    latency = (sums + 2) * 2 * 3 * 1e-3
    assert twice.tensor == pytest.approx(found.tensor + latency)


def test_messages_between_stages_as_the_pipeline_fills_and_empties(tiny):
    given, machine = Division(dp=4, pp=4, micro_batches=4), IDEAL._replace(network=Link(1e-3, 1e6))
    sent = step_seconds(tiny, given, machine, 32).bubble - step_seconds(tiny, given, IDEAL, 32).bubble
    assert sent == pytest.approx(2 * 3 * (1e-3 + 2 * 64 * 128 * 4 / 1e6))


def test_ranks_that_share_cores(tiny):
    shared = IDEAL._replace(cores=2)
    alone = step_seconds(tiny, Division(), shared, 8).total
    assert step_seconds(tiny, Division(dp=2), shared, 8).total == pytest.approx(alone / 2)
    assert step_seconds(tiny, Division(dp=4), shared, 8).total == pytest.approx(alone / 2)
    four = step_seconds(tiny, Division(pp=4, micro_batches=8), shared, 8)
    assert (four.total, four.bubble) == (pytest.approx(alone / 2), 0)


def test_a_machines_constants_are_found_again(tiny):
    machine = Machine(2e10, Link(5e-5, 3e9), Link(5e-5, 3e9), 4, overhead=3e-3, update=2e-9, cores=2)
    few, many = (step_seconds(tiny, Division(), machine._replace(cores=0), rows) for rows in (2, 8))
    sums = [2 * scatter_seconds(machine, size, 4) for size in (SMALL, LARGE)]
    trained = Constants(few.compute, many.compute, few.update, *sums)
    idle = Constants(0.0, 0.0, 0.0, *sums)
    found = machine_of(tiny, [trained, trained, idle, idle], (2, 8))
    for name in ("flops", "overhead", "update", "cores", "per_node"):
        assert getattr(found, name) == pytest.approx(getattr(machine, name), rel=1e-6), name
    assert found.node == pytest.approx(machine.node, rel=1e-6)
    assert "20.0 GFLOP/s" in told(found)
    alone = machine_of(tiny, [trained._replace(small_sum=1e-6, large_sum=1e-6)], (2, 8))
    assert step_seconds(tiny, Division(), alone, 8).total == pytest.approx(many.total)


def test_constants_are_measured_on_as_many_ranks_as_there_are_cores(ranks, monkeypatch):
    found = ranks(2).run(constants, Llama, LlamaConfig.preset("nano"), (1, 4), 8, 1)
    assert all(one.small_sum > 0 and one.large_sum > 0 for one in found)
    assert found[0].many > 0
    assert found[0].update > 0


@pytest.mark.parametrize("n", [2, 4])
def test_activations_of_a_rank_are_those_of_a_model_with_its_heads(n):
    whole = LlamaConfig(64 * n, context=32, layers=4, heads=8, kv_heads=4, channels=64, hidden=32 * n, head_size=8)
    part = dataclasses.replace(whole, vocab_size=64, heads=8 // n, kv_heads=4 // n, hidden=32)
    a, b = (work_of_config("", Llama, config, None, "float32") for config in (whole, part))
    # its output layer has a part of the ids, so the loss keeps a part of the logits
    assert a.block_kept[0] + a.block_kept[1] / n == pytest.approx(sum(b.block_kept))
    assert a.outer_kept[0] + a.outer_kept[1] / n == pytest.approx(sum(b.outer_kept))


def test_the_memory_of_a_rank(tiny):
    def held(division, batch=8):
        own = max(sum(kept_bytes(tiny.shapes, division, 4, rank).values()) for rank in range(division.ranks))
        return rank_bytes(tiny, division, batch) - own

    block, outer = sum(tiny.block_kept), sum(tiny.outer_kept)
    tokens = 8 * tiny.context
    stream = 4 * 128  # bytes of a token's gradient of the residual stream
    assert held(Division()) == pytest.approx((4 * block + outer + stream) * tokens)
    assert held(Division(dp=2, zero=3)) == pytest.approx((4 * block + outer + stream) * tokens / 2)
    assert held(Division(micro_batches=4)) == pytest.approx((4 * block + outer + stream) * tokens / 4)
    # the first of 4 stages has 4 micro-batches of 8 alive, of one block each; the last has one, and the logits
    first = rank_bytes(tiny, Division(pp=4, micro_batches=8), 8) - sum(kept_bytes(tiny.shapes, Division(pp=4)).values())
    assert first == pytest.approx((4 * block + stream) * tiny.context)
    assert held(Division(recompute=True)) == pytest.approx((4 * stream + block + outer + stream) * tokens)


def test_every_division_of_the_engine_is_tried():
    work = work_of("gpt2-nano", None, "float32")
    found = {(way.dp, way.tp, way.pp, way.zero) for way in ways(work, 6, 6, (4, 4))}
    layers = work.shapes.layers
    expected = {
        (dp, tp, pp, zero)
        for tp, pp in ((1, 1), (2, 1), (1, 2), (1, 3), (1, 6), (2, 3))
        for dp in [6 // (tp * pp)]
        for zero in range(4)
        if pp <= layers and (zero == 0 or dp > 1) and (zero < 2 or pp == 1)
    }
    assert found == expected
    assert len(set(ways(work, 6, 6, (4, 4)))) == 2 * len(expected)  # with and without recomputation
    everything = list(tried(work, CLUSTER._replace(memory=1e5), 6, 12, (4, 4)))
    assert {setting.division.ranks for setting in everything} == {6}
    assert any(setting.bytes > 1e5 for setting in everything)  # what does not fit is there too
    assert all(setting.rows * setting.division.dp * setting.division.micro_batches == 12 for setting in everything)


def test_settings_fit_and_the_fastest_is_first():
    work = work_of("gpt2-xl")
    found = settings(work, H100, 64, 256, (25, 6400))
    assert {setting.division.ranks for setting in found} == {64}
    assert {setting.division.tp for setting in found} == {1}  # 25 heads
    assert {setting.division.zero for setting in found if setting.division.pp == 1} == {0, 1, 2, 3}
    assert [setting.seconds.total for setting in found] == sorted(setting.seconds.total for setting in found)
    assert all(setting.bytes == rank_bytes(work, setting.division, 256) <= 80e9 for setting in found)
    assert all(0 < setting.efficiency <= 1 for setting in found)
    small = settings(work, H100._replace(memory=6e9), 64, 256, (25, 6400))
    assert 0 < len(small) < len(found)
    assert not any(setting.division.dp == 64 and setting.division.zero == 0 for setting in small)


def test_the_projection_reaches_thousands_and_says_what_cannot_be():
    best, by_count = projection_tables("llama-2-7b", H100, 4096, 4096, 512)
    assert [row[0] for row in by_count.rows] == [f"{1 << i:,}" for i in range(13)]
    assert by_count.rows[0][1] == "none fits"  # 16 bytes for each of 6.7 billion weights
    assert {len(row) for row in best.rows} == {len(best.columns)}
    with pytest.raises(InputError, match="no setting of 2 GPUs trains llama-2-7b"):
        list(projection_tables("llama-2-7b", H100._replace(memory=1e9), 2, 8, 512))
    with pytest.raises(InputError, match="--gpus is 0"):
        list(projection_tables("gpt2", H100, 0, 8, 512))
    with pytest.raises(InputError, match="mfu is 0"):
        gpu_machine(989e12, 0, 80e9, 3.35e12, 8, 450e9, 50e9, 5e-6)


def test_the_command_measures_and_projects(capsys):
    main("parallel-report gpt2 --nproc 2 --small gpt2-nano --small-batch-size 2 --gpus 16".split())
    text = capsys.readouterr().out
    assert text.count(" equal ") == 12  # six divisions, bytes and memory
    assert " differ" not in text
    for division in ("dp 2, zero 3", "tp 2", "pp 2"):
        assert text.count(division) >= 3, division
    assert "on 16 GPUs" in text
    assert "GFLOP/s a rank" in text
    for wrong, sentence in {
        "bert-base-uncased": "cannot be divided",
        "gpt2 --gpus 16 --small-batch-size 0": "the small batch has 0 sequences",
        "gpt2 --gpus 16 --nproc -1": "-1 ranks cannot be started",
        "gpt2 --gpus 16 --context 2048": "a context of 1024 at most",
    }.items():
        with pytest.raises(SystemExit) as error:
            main(["parallel-report", *wrong.split()])
        assert error.value.code == 2
        assert sentence in capsys.readouterr().err
