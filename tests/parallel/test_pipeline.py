"""Stages against one process: the loss, every gradient and the place in the random stream; and what a schedule is."""

from __future__ import annotations

import itertools
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from minillm import random
from minillm.errors import GraphError, InputError
from minillm.models.gemma import Gemma, GemmaConfig
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.models.llama import Llama, LlamaConfig
from minillm.optim import SGD
from minillm.parallel import pipeline
from minillm.parallel.communicator import Alone, Trace, bytes_sent
from minillm.parallel.objective import next_token_batch
from minillm.parallel.pipeline import (
    SCHEDULES,
    MicroBatch,
    bubble_fraction,
    cut,
    idle_fraction,
    schedule,
    simulate,
)
from minillm.training.whole_model import accumulate_gradients
from tests.parallel.nccl_ranks import over_nccl

V, C, T, LAYERS = 37, 16, 6, 5
SHAPES = [(p, m) for p in (1, 2, 3, 4, 7) for m in (1, 2, 3, 4, 5, 11)]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


# --- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), SHAPES)
def test_a_schedule_does_everything_once_and_in_order(kind, p, m):
    for stage in range(p):
        actions = schedule(kind, stage, p, m)
        for direction in ("forward", "backward"):
            assert [number for action, number in actions if action == direction] == list(range(m))
        places = {action: place for place, action in enumerate(actions)}
        assert all(places["forward", i] < places["backward", i] for i in range(m))
        in_flight = list(itertools.accumulate(1 if action == "forward" else -1 for action, _ in actions))
        assert max(in_flight) == (m if kind == "gpipe" else min(m, p - stage))


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), SHAPES)
@pytest.mark.parametrize(("forward", "backward"), [(1.0, 2.0), (3.0, 1.0)])
def test_ideal_stages_take_what_the_formula_says(kind, p, m, forward, backward):
    events = simulate(kind, p, m, forward, backward)
    assert len(events) == 2 * p * m
    assert max(event.end for event in events) == (m + p - 1) * (forward + backward)
    assert idle_fraction(events) == pytest.approx(bubble_fraction(p, m), abs=1e-12)
    when = {(event.stage, event.kind, event.micro_batch): event for event in events}
    for s, i in itertools.product(range(1, p), range(m)):
        assert when[s, "forward", i].start >= when[s - 1, "forward", i].end
        assert when[s - 1, "backward", i].start >= when[s, "backward", i].end


def test_a_message_takes_time_too():
    assert max(event.end for event in simulate("1f1b", 4, 1, 1.0, 2.0, sending=0.5)) == 4 * 3 + 2 * 3 * 0.5


def test_the_bubble_that_the_papers_give():
    assert bubble_fraction(4, 8) == 3 / 11
    assert bubble_fraction(1, 8) == 0


def test_the_docstring_shows_the_schedules():
    lines = [line.split() for line in pipeline.__doc__.splitlines() if line.count(" .") > 3]
    for kind, column in (("gpipe", 0), ("1f1b", 1)):
        drawn = [line[1:] if line[0] == "gpipe" else line for line in lines]
        drawn = [[word for word in line if word != "1f1b"][12 * column :][:12] for line in drawn]
        expected = [["."] * 12 for _ in range(3)]
        for event in simulate(kind, 3, 4, 1, 1):
            symbol = str(event.micro_batch) if event.kind == "forward" else "abcd"[event.micro_batch]
            expected[event.stage][int(event.start)] = symbol
        assert drawn == expected


# --- one process ---------------------------------------------------------------------------------------------------


def build(family, dropout=0.0, dtype="float64"):
    random.manual_seed(3)
    shape = dict(vocab_size=V, context=8, layers=LAYERS, channels=C)
    if family == "gpt2":
        model = GPT2(GPT2Config(heads=2, dropout=dropout, **shape))
    elif family == "gpt2 not tied":
        model = GPT2(GPT2Config(heads=2, dropout=dropout, tied=False, **shape))
    elif family == "gemma":  # two kinds of blocks, a scaled table, and a cap behind the output layer
        more = dict(head_size=6, window=3, full_blocks=(1, 2), attention_cap=0.5, logit_cap=0.2, window_rope_base=10.0)
        model = Gemma(GemmaConfig(heads=4, kv_heads=2, hidden=24, scale=3.0, **more, **shape))
    else:
        model = Llama(LlamaConfig(heads=4, kv_heads=2, hidden=24, tied=family == "llama tied", **shape))
    for parameter in model.parameters():  # weights that are neither 0 nor 1, so that nothing hides
        parameter.data += 0.05 * np.sin(1.0 + np.arange(parameter.numel()).reshape(parameter.shape)).astype(np.float32)
    return model.to(dtype)


def batch(rows=7, seed=0):
    generator = np.random.default_rng(seed)
    ids, targets = generator.integers(0, V, (2, rows, T))
    targets[generator.random(targets.shape) < 0.2] = -100
    return ids, targets


def outcome(model, loss):
    return float(loss), random.default.counter, {name: p.grad.copy() for name, p in model.named_parameters()}


def one_process(family, micro_batches, dropout, dtype):
    """Two steps, the second from other weights and with other rows."""
    found = []
    model = build(family, dropout, dtype)
    optimizer = SGD(model.parameters(), 0.5)
    random.manual_seed(11)
    for step in range(2):
        optimizer.zero_grad()
        found.append(
            outcome(model, accumulate_gradients(model, next_token_batch(*batch(7 - step, step)), micro_batches))
        )
        optimizer.step()
    return found


# --- stages --------------------------------------------------------------------------------------------------------


def steps_of_a_stage(communicator, cases, fault=None):
    """The outcomes of two steps on this stage and its copies, for each case; with a planted fault if one is named."""
    if fault is not None:
        with pytest.MonkeyPatch.context() as patch:
            FAULTS[fault](patch.setattr)
            return steps_of_a_stage(communicator, cases)
    found = []
    for family, kind, micro_batches, dropout, dtype in cases:
        stage = cut(build(family, dropout, dtype), communicator, kind)
        optimizer = SGD(stage.model.parameters(), 0.5)
        random.manual_seed(11)
        outcomes = []
        for step in range(2):
            optimizer.zero_grad()
            loss = stage.accumulate_gradients(*batch(7 - step, step), micro_batches)
            outcomes.append(outcome(stage.model, loss))
            optimizer.step()
        found.append((outcomes, stage.copies))
        stage.close()
    return found


def worst_error(expected, stages, copies):
    """The largest error of loss and gradients over all stages; every parameter is on one stage, except for copies."""
    errors = []
    for step, (loss, counter, gradients) in enumerate(expected):
        seen = []
        for own, (stage_loss, stage_counter, stage_gradients) in zip(copies, (s[step] for s in stages), strict=True):
            assert stage_counter == counter
            errors.append(abs(stage_loss - loss))
            seen += [name for name in stage_gradients if name not in own]
            for name, gradient in stage_gradients.items():
                assert gradient.dtype == gradients[name].dtype
                errors.append(np.abs(gradient - gradients[name]).max() / np.abs(gradients[name]).max())
        assert sorted(seen) == sorted(gradients)
    return max(errors)


CASES = [
    (family, kind, m, dropout, dtype)
    for family, dropout in (("gpt2", 0.0), ("gpt2", 0.1), ("llama tied", 0.0), ("llama", 0.0))
    for kind in SCHEDULES
    for m in (1, 4, 5)
    for dtype in ("float64", "float32")
] + [
    ("gpt2", "1f1b", 9, 0.1, "float64"),  # more micro-batches than rows: the last ones are empty
    ("gpt2 not tied", "1f1b", 4, 0.0, "float64"),
    ("gemma", "1f1b", 4, 0.0, "float64"),
]


@pytest.mark.parametrize("p", [2, 4])
def test_stages_equal_one_process(ranks, p):
    results = ranks(p).run(steps_of_a_stage, CASES)
    references = {}
    for case, *stages in zip(CASES, *results, strict=True):
        family, _, m, dropout, dtype = case
        key = family, m, dropout, dtype
        if key not in references:
            references[key] = one_process(*key)
        error = worst_error(references[key], [outcomes for outcomes, _ in stages], [copies for _, copies in stages])
        assert error < TOLERANCE[dtype], case
        tied = {"wte.weight"} if family not in ("llama", "gpt2 not tied") else set()
        assert [copies for _, copies in stages] == [*[set()] * (p - 1), tied]


def test_stages_over_nccl(ranks):
    """Sends and receives that would stand in each other's way there, if both went one after another."""
    cases = [("gpt2", "1f1b", 5, 0.1, "float64"), ("llama", "gpipe", 4, 0.0, "float32")]
    results = over_nccl(ranks)(4).run(steps_of_a_stage, cases)
    for (family, _, m, dropout, dtype), *stages in zip(cases, *results, strict=True):
        expected = one_process(family, m, dropout, dtype)
        error = worst_error(expected, [outcomes for outcomes, _ in stages], [copies for _, copies in stages])
        assert error < TOLERANCE[dtype]


def test_one_stage_is_the_whole_model():
    stage = cut(build("gpt2", 0.1), Alone())
    random.manual_seed(11)
    found = outcome(stage.model, stage.accumulate_gradients(*batch(), 4))
    expected = one_process("gpt2", 4, 0.1, "float64")[0]
    assert found[:2] == expected[:2]
    assert all((found[2][name] == gradient).all() for name, gradient in expected[2].items())


def tied_gradients_apart(replace):
    replace(pipeline.Pipeline, "sum_tied_gradients", lambda self: None)


def no_places(replace):
    replace(pipeline.Pipeline, "_places", lambda self, parts: [])


def places_of_one_stage(replace):
    replace(pipeline.Pipeline, "_counters_used", lambda self, batch: [self._counters_measured(batch)] * self.stages)


def no_waiting(replace):
    replace(pipeline.Transfer, "wait", lambda self: self.array * 1)


def halved_gradients(replace):
    before = pipeline.Pipeline._backward
    replace(pipeline.Pipeline, "_backward", lambda *args: None if (g := before(*args)) is None else g / 2)


def loss_of_the_first_part(replace):
    before = pipeline.Pipeline._forward

    def forward(self, number, batch, array, counted, total):
        return before(self, number, batch, array, counted, total if number == 0 else total * 0)

    replace(pipeline.Pipeline, "_forward", forward)


FAULTS = {
    fault.__name__: fault
    for fault in (
        tied_gradients_apart,
        no_places,
        places_of_one_stage,
        no_waiting,
        halved_gradients,
        loss_of_the_first_part,
    )
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_seen(ranks, fault):
    (a,), (b,) = ranks(2).run(steps_of_a_stage, [("gpt2", "1f1b", 4, 0.1, "float64")], fault)
    expected = one_process("gpt2", 4, 0.1, "float64")
    with pytest.raises(AssertionError):
        assert worst_error(expected, [a[0], b[0]], [a[1], b[1]]) < 1e-10


# --- what is sent, held and recorded -------------------------------------------------------------------------------


def watched_step(communicator, family, kind, micro_batches, dropout):
    """Messages, largest number of live micro-batches, those left at the end, calls and events of one step."""
    stage = cut(build(family, dropout), communicator, kind)
    trace = communicator.trace = Trace()
    if stage.pair is not None:
        stage.pair.trace = trace
    alive: list[weakref.ref] = []
    most, calls, waits = [0], [], []

    def watching(forward):
        def watched(x, *args, **kwargs):
            calls.append(("forward", time.perf_counter()))
            y = forward(x, *args, **kwargs)
            if y.requires_grad:  # no measuring of random numbers
                alive.append(weakref.ref(y if stage.is_first else x))
                most[0] = max(most[0], sum(reference() is not None for reference in alive))
            return y

        return watched

    def sending(send):
        def sent(array, target, what):
            work, number = send(array, target, what), len(waits)
            waits.append(0)

            def wait():
                waits[number] += 1
                work.wait()

            return SimpleNamespace(wait=wait)

        return sent

    def receiving(recv):
        def received(array, source, what):
            calls.append(("recv", what))
            return recv(array, source, what)

        return received

    output = "loss" if stage.is_last else "features"
    vars(stage.model)[output] = watching(getattr(stage.model, output))
    communicator.recv, communicator.send = receiving(communicator.recv), sending(communicator.send)
    stage.events = []
    stage.accumulate_gradients(*batch(), micro_batches)
    left = sum(reference() is not None for reference in alive)
    stage.close()
    assert set(waits) <= {1}  # what is sent stays until it is there
    assert len(waits) == micro_batches * (2 - stage.is_first - stage.is_last)
    return trace.messages, most[0], left, calls, stage.events


@pytest.mark.parametrize(
    ("family", "p", "kind", "m", "dropout"),
    [
        ("gpt2", 2, "1f1b", 5, 0.0),
        ("gpt2", 4, "1f1b", 5, 0.1),
        ("gpt2", 4, "gpipe", 7, 0.0),
        ("llama", 4, "1f1b", 7, 0.0),
        ("llama tied", 2, "gpipe", 4, 0.0),
    ],
)
def test_bytes_memory_and_times(ranks, family, p, kind, m, dropout):
    results = ranks(p).run(watched_step, family, kind, m, dropout)
    sent = bytes_sent(itertools.chain.from_iterable(messages for messages, *_ in results))
    numbers, table = 8 * 7 * T * C, 8 * V * C * (family != "llama")
    shapes = len({len(part) for part in np.array_split(np.arange(7), m)}) if dropout else 0
    for stage in range(p):
        assert sent[stage, "activations"] == (numbers if stage < p - 1 else 0)
        tied = table if stage in (0, p - 1) else 0
        assert sent[stage, "gradients"] == (numbers if stage > 0 else 0) + tied
        assert sent[stage, "loss"] == (8 * (p - 1) if stage == p - 1 else 0)
        assert sent[stage, "numbers"] == 16 * (p - 1) * shapes
    for stage, (_, most, left, calls, events) in enumerate(results):
        assert most == (m if kind == "gpipe" else min(m, p - stage))
        assert left == 0
        assert [(event.kind, event.micro_batch) for event in events] == schedule(kind, stage, p, m)
        assert all(event.stage == stage for event in events)
        assert all(a.end <= b.start for a, b in itertools.pairwise(events))
        times = [time for call, time in calls if call == "forward"][-m:]
        forwards = [event for event in events if event.kind == "forward"]
        assert all(event.start < time < event.end for event, time in zip(forwards, times, strict=True))
        actions = [action for action, _ in schedule(kind, stage, p, m)]
        source = {"forward": stage > 0, "backward": stage < p - 1}
        wanted = 0  # receives that have been started when an action begins: its own, and that of the next one
        started = [sum(map(source.get, actions[: i + 2])) for i, action in enumerate(actions) if action == "forward"]
        for call, _ in calls[(len(calls) - sum(map(source.get, actions)) - m) :]:
            wanted += call == "recv"
            assert call == "recv" or wanted == started.pop(0)
    all_events = {event[:3]: event for *_, events in results for event in events}
    for (stage, kind, number), event in all_events.items():
        giver = stage - 1 if kind == "forward" else stage + 1
        if 0 <= giver < p:
            assert all_events[giver, kind, number].end <= event.start


# --- evaluation, data parallel, frozen weights, recompute, errors --------------------------------------------------


def evaluated(communicator, dropout):
    stage = cut(build("gpt2", dropout), communicator)
    stage.model.eval()
    counter, recorded = random.default.counter, []
    output = "loss" if stage.is_last else "features"
    compute = getattr(stage.model, output)

    def watched(*args):
        y = compute(*args)
        recorded.append(y.requires_grad)
        return y

    vars(stage.model)[output] = watched
    losses = stage.losses(batch(rows, rows) for rows in (3, 1, 4, 4, 2))
    assert stage.losses([]) == []
    assert not any(recorded)
    assert random.default.counter == counter
    assert all(parameter.grad is None for parameter in stage.model.parameters())
    return losses


def test_evaluation_equals_one_process(ranks):
    model = build("gpt2", 0.1).eval()
    expected = [model.loss(*batch(rows, rows)).item() for rows in (3, 1, 4, 4, 2)]
    for losses in ranks(4).run(evaluated, 0.1):
        np.testing.assert_allclose(losses, expected, rtol=1e-12)


def replica(communicator, micro_batches):
    """Two pipelines of two stages: each has some rows of every micro-batch, and gradients are summed over both."""
    line = communicator.split(communicator.rank // 2)
    across = communicator.split(communicator.rank % 2)
    stage = cut(build("gpt2", 0.1), line)
    random.manual_seed(11)
    ids, targets = batch()
    parts = []
    for rows in np.array_split(np.arange(7), micro_batches):
        edge = (len(rows) + 1) // 2
        mine = slice(rows[0], rows[0] + edge) if across.rank == 0 else slice(rows[0] + edge, rows[-1] + 1)
        parts.append(MicroBatch(ids[mine], targets[mine], (0 if across.rank == 0 else edge, len(rows))))
    counted = np.float32((targets != -100).sum())
    complete = []

    stage.events = []
    loss = stage.step(parts, counted, last_micro_batch=lambda: complete.append(len(stage.events)))
    assert complete == [2 * micro_batches - 1]  # all but the last backward
    for parameter in stage.model.parameters():
        across.all_reduce(parameter.grad).wait()
    (loss,) = across.sum_of(loss)
    found = outcome(stage.model, loss), stage.copies
    for group in (stage, line, across):
        group.close()
    return found


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_rows_of_two_pipelines_equal_one_process(ranks, micro_batches):
    expected = one_process("gpt2", micro_batches, 0.1, "float64")[:1]
    results = ranks(4).run(replica, micro_batches)
    for pair in (results[:2], results[2:]):
        assert worst_error(expected, [[found] for found, _ in pair], [copies for _, copies in pair]) < 1e-10


def frozen(communicator, upto):
    stage = cut(freeze(build("gpt2"), upto), communicator)
    loss = stage.accumulate_gradients(*batch(), 3)
    return loss, {name: p.grad for name, p in stage.model.named_parameters() if p.requires_grad}


def freeze(model, upto):
    for name, parameter in model.named_parameters():
        if name.startswith(("wte", "wpe", *(f"h.{i}." for i in range(upto)))):
            parameter.requires_grad = False
    return model


@pytest.mark.parametrize("upto", [0, 1, 3, 5])
def test_frozen_weights(ranks, upto):
    model = freeze(build("gpt2"), upto)
    loss = accumulate_gradients(model, next_token_batch(*batch()), 3)
    expected = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    results = ranks(2).run(frozen, upto)
    assert {name: None for _, gradients in results for name in gradients} == dict.fromkeys(expected)
    for found, gradients in results:
        assert found == pytest.approx(loss, abs=1e-12)
        for name, gradient in gradients.items():
            np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-12)


def recomputed(communicator):
    from minillm.parallel.recompute import recompute

    stage = cut(build("gpt2", 0.1), communicator)
    recompute(stage.model)
    stage.model.eval()
    stage.accumulate_gradients(*batch(), 4)  # this one tells nothing of dropout
    stage.model.train()
    stage.model.zero_grad()
    random.manual_seed(11)
    return outcome(stage.model, stage.accumulate_gradients(*batch(), 4)), stage.copies


def test_recompute_in_stages(ranks):
    expected = one_process("gpt2", 4, 0.1, "float64")[:1]
    results = ranks(2).run(recomputed)
    assert worst_error(expected, [[found] for found, _ in results], [copies for _, copies in results]) < 1e-10


def stages_have(communicator):
    stage = cut(build("llama"), communicator)
    return [name for name, _ in stage.model.named_parameters()], {n: p.name for n, p in stage.model.named_parameters()}


def test_names_stay_and_layers_are_spread_evenly(ranks):
    for p, expected in ((2, [["0", "1", "2"], ["3", "4"]]), (4, [["0", "1"], ["2"], ["3"], ["4"]])):
        results = ranks(p).run(stages_have)
        layers = [sorted({name.split(".")[1] for name in names if name.startswith("h.")}) for names, _ in results]
        assert layers == expected
    others = [sorted(name for name in names if not name.startswith("h.")) for names, _ in results]
    assert others == [["wte.weight"], [], [], ["lm_head.weight", "ln_f.weight"]]
    assert all(name == given for _, names in results for name, given in names.items())


def wrong_calls(communicator):
    found = []
    for call in (
        lambda: cut(GPT2(GPT2Config(V, 8, layers=1, heads=2, channels=C)), communicator),
        lambda: cut(build("gpt2"), communicator, "2f2b"),
    ):
        with pytest.raises(InputError) as error:
            call()
        found.append(str(error.value))
    stage = cut(build("gpt2"), communicator)
    stage.accumulate_gradients(*batch())
    with pytest.raises(GraphError) as error:
        stage.accumulate_gradients(*batch())
    return [*found, str(error.value)]


def test_what_cannot_be_is_said(ranks):
    assert (
        ranks(2).run(wrong_calls)
        == [
            [
                "pipeline: 2 stages are more than the model's 1 layers; give 1 at most",
                "schedule: there is no '2f2b'; choose 1f1b or gpipe",
                "pipeline: wte.weight has a gradient from the step before; call zero_grad first",
            ]
        ]
        * 2
    )
