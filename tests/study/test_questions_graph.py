"""`study.graph`: the boxes and arrows are those of the graph, no arrow leads back, and the picture is well-formed."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import minillm
from minillm import nn, ops, study
from minillm.autograd import Tensor
from minillm.errors import InputError
from minillm.models.bart import Bart
from minillm.models.bart_config import BartConfig, both_sides
from minillm.models.gpt2 import GPT2, GPT2Config
from minillm.study.describe.abstract_step import loss_of, training_batch
from minillm.study.questions.layout import GAP, lay_out
from tests.models.test_families import FAMILIES

IDS = np.random.default_rng(0).integers(0, 13, (2, 6))


def gpt2_loss(layers: int = 2) -> Tensor:
    minillm.manual_seed(0)
    return GPT2(GPT2Config(vocab_size=13, context=6, layers=layers, heads=2, channels=8)).loss(IDS, IDS)


def bart_loss() -> Tensor:
    minillm.manual_seed(0)
    model = Bart(BartConfig(vocab_size=13, context=8, channels=8, **both_sides(1, 2, 16)))
    return model.loss(IDS, IDS)


def has_circle(count: int, arrows) -> bool:
    left, arrows = set(range(count)), [(source, target) for source, target, _ in arrows]
    while free := left - {target for source, target in arrows if source in left}:
        left -= free
    return bool(left)


def test_every_operation_is_a_box_and_every_edge_an_arrow():
    x = Tensor(np.ones((2, 3)), requires_grad=True)
    loss = (ops.exp(x) * x).sum()
    found = study.graph(loss, depth=0)
    titles = [box.title for box in found.boxes]
    assert sorted(titles) == ["exp", "leaf", "mul", "sum"]
    arrows = {(titles[source], titles[target]): shapes for source, target, shapes in found.arrows}
    assert arrows == {
        ("leaf", "exp"): "(2, 3)",
        ("leaf", "mul"): "(2, 3)",
        ("exp", "mul"): "(2, 3)",
        ("mul", "sum"): "(2, 3)",
    }
    assert [box.title for box in found.boxes if box.kind == "loss"] == ["sum"]
    [exp] = [box for box in found.boxes if box.title == "exp"]
    assert "loss = (ops.exp(x) * x).sum()" in exp.tooltip


@pytest.mark.parametrize("depth", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("make", [gpt2_loss, bart_loss])
def test_folding_keeps_every_operation_and_makes_no_circle(make, depth):
    loss = make()
    whole = study.table(loss)
    found = study.graph(loss, depth)
    assert not has_circle(len(found.boxes), found.arrows)
    folded = [int(re.match(r"\d+", box.lines[0])[0]) for box in found.boxes if box.lines[0].endswith("operations")]
    alone = [box for box in found.boxes if box.kind != "parameter" and not box.lines[0].endswith("operations")]
    assert sum(folded) + len(alone) == len(whole.rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_answers(family):
    """The graph, the table, the memory and the way of each gradient of a small model of every family."""
    minillm.manual_seed(0)
    model = FAMILIES[family].model(FAMILIES[family].small)
    loss = loss_of(model)(**training_batch(model, 2, 6))
    found = study.graph(loss)
    assert not has_circle(len(found.boxes), found.arrows)
    ElementTree.fromstring(found.svg)
    trained = {name for row in study.table(loss).rows for name in row.parameters}
    assert trained <= {name for name, _ in model.named_parameters()}
    assert study.memory(loss).total > 0
    for name, parameter in model.named_parameters():
        causes = {cause.name for cause in study.why(parameter, loss).causes}
        assert causes, name
        assert "backward fails" not in causes
        left_out = "unused in the loss" if parameter.requires_grad else "frozen"
        assert (left_out in causes) == (name not in trained), name


def test_modules_are_named_and_hold_their_weights():
    found = study.graph(gpt2_loss(), depth=2)
    boxes = {box.title: box for box in found.boxes}
    assert {"h.0", "h.1"} <= boxes.keys()
    assert "872 weights" in boxes["h.0"].lines, "4 of 8 for the norms, 8 * 24 + 24, 8 * 8 + 8, 8 * 32 + 32, 32 * 8 + 8"
    assert boxes["wte.weight"].kind == "parameter", "two operations use it"


def test_without_a_depth_there_are_not_too_many_boxes():
    assert len(study.graph(gpt2_loss(layers=12)).boxes) <= 60
    small = Tensor(np.ones(2), requires_grad=True)
    assert len(study.graph((small * 2).sum()).boxes) == 3


def test_a_layer_that_is_called_twice_is_two_boxes():
    class Twice(nn.Module):
        def __init__(self):
            self.layer = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
            self.assign_names()

        def forward(self, x):
            return self.layer(ops.exp(self.layer(x)))

    found = study.graph(Twice()(Tensor(np.ones((1, 3), np.float32))).sum(), depth=1)
    assert [box.title for box in found.boxes].count("layer") == 2
    assert not has_circle(len(found.boxes), found.arrows)


def test_the_svg_is_well_formed_and_escapes_names():
    class Odd(nn.Module):
        def __init__(self):
            self.layer = nn.Linear(2, 2)
            self.assign_names()
            self.layer.name = self.layer.weight.name = 'a<b&"c"'

        def forward(self, x):
            return self.layer(x)

    found = study.graph(Odd()(Tensor(np.ones((1, 2), np.float32))).sum(), depth=0)
    texts = [element.text for element in ElementTree.fromstring(found._repr_svg_()).iter() if element.text]
    assert any('a<b&"c"' in text for text in texts)
    svg = ElementTree.fromstring(study.graph(gpt2_loss()).svg)
    left, top, width, height = map(float, svg.get("viewBox").split())
    for one in svg.iter("{http://www.w3.org/2000/svg}rect"):
        assert left <= float(one.get("x")) <= left + width
        assert float(one.get("y")) + float(one.get("height")) <= top + height
    assert r"\"c\"" in found.dot


def test_dot_has_every_box_and_arrow():
    found = study.graph(gpt2_loss())
    lines = found.dot.splitlines()
    assert (lines[0], lines[-1]) == ("digraph loss {", "}")
    assert sum(bool(re.match(r" *n\d+ \[label=", line)) for line in lines) == len(found.boxes)
    assert sum(bool(re.match(r" *n\d+ -> n\d+ ", line)) for line in lines) == len(found.arrows)


def test_save_by_its_ending(tmp_path):
    found = study.graph(gpt2_loss())
    found.save(tmp_path / "a.svg")
    found.save(str(tmp_path / "a.dot"))
    assert (tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg")
    assert (tmp_path / "a.dot").read_text(encoding="utf-8").startswith("digraph")
    with pytest.raises(InputError, match=r"graph: .*a.png ends in '.png'"):
        found.save(tmp_path / "a.png")
    assert "save('graph.svg')" in str(found)


@pytest.mark.parametrize("place", ["no such folder/a.svg", "/proc/a.svg", "a.svg/a.dot"])
def test_a_place_that_cannot_be_written_to_is_named(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.svg").touch()
    with pytest.raises(InputError, match=rf"^graph: cannot write {place} \(.+\); choose another place, or make room$"):
        study.graph(gpt2_loss()).save(place)


@pytest.mark.parametrize("seed", range(5))
def test_a_layout_has_no_overlap_and_every_arrow_leads_down(seed):
    rng = np.random.default_rng(seed)
    count = 40
    sizes = [(float(w), float(h)) for w, h in rng.uniform(20, 200, (count, 2))]
    arrows = [(int(rng.integers(0, i)), i) for i in range(1, count) for _ in range(2)]
    arrows = list(dict.fromkeys(arrows))
    layout = lay_out(sizes, arrows)
    boxes = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for (x, y), (w, h) in zip(layout.centres, sizes, strict=True)]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= -1e-6
        assert right <= layout.width + 1e-6
        assert top >= -1e-6
        assert bottom <= layout.height + 1e-6
        for other in boxes[i + 1 :]:
            apart = right <= other[0] - GAP / 2 or other[2] <= left - GAP / 2 or bottom < other[1] or other[3] < top
            assert apart
    for route in layout.routes:
        ys = [y for _, y in route]
        assert ys == sorted(ys)
        assert len(set(ys)) == len(ys)


def test_a_layout_of_a_chain_is_straight_and_one_of_two_chains_has_no_crossing():
    chain = lay_out([(50, 20)] * 4, [(0, 1), (1, 2), (2, 3)])
    assert len({round(x, 3) for x, _ in chain.centres}) == 1
    two = lay_out([(50, 20)] * 6, [(0, 3), (3, 4), (1, 2), (2, 5)])
    assert (two.centres[0][0] < two.centres[1][0]) == (two.centres[4][0] < two.centres[5][0])
    assert lay_out([], []).height == 0
