"""`graph(loss)`: a picture of the graph that backward walks through, folded by module, as SVG and as DOT.

    minillm.study.graph(loss)                      # in a notebook: the picture
    minillm.study.graph(loss).save("graph.svg")    # or graph.dot, for Graphviz
    minillm.study.graph(loss, depth=3)             # layers such as h.0.attn are one box each

Arrows lead from what is computed first to the loss; backward goes against them. A layer that is called twice, with
something else between, is two boxes, so that no arrow leads back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from minillm.autograd import Node, Parameter, Tensor
from minillm.counted import counted
from minillm.errors import InputError
from minillm.files import writing
from minillm.study.describe.abstract_step import owner
from minillm.study.questions.layout import lay_out
from minillm.study.questions.memory import kept_by
from minillm.study.questions.text import bytes_text
from minillm.study.questions.walk import all_leaves, leaves, name_of, operations, parents, shapes_of, source_of

MOST = 60  # boxes that a picture has where no depth is given
LONGEST = 36  # letters of a line in a box; the tooltip has the whole line
LETTER, LINE, MARGIN = 7.3, 16.0, 9.0  # sizes in a box
COLORS = {"operation": "#eef3f8", "module": "#dbe7f3", "parameter": "#fbe9dd", "loss": "#f6d5cd"}


class Box(NamedTuple):
    """An operation, a module with all operations in it, or a leaf that gets a gradient."""

    kind: str  # operation, module, parameter or loss
    title: str
    lines: tuple[str, ...]
    tooltip: str


class Graph(NamedTuple):
    """The boxes of a graph, and arrows from one to another with the shapes that flow there."""

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int, str], ...]

    @property
    def svg(self) -> str:
        """The picture as SVG."""
        return "\n".join(_svg_lines(self))

    @property
    def dot(self) -> str:
        """The graph in the language of Graphviz."""
        return "\n".join(_dot_lines(self))

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture to a .svg, or the graph to a .dot.

        Raises: InputError for another ending, and where the file cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".dot"):
            raise InputError(f"graph: {path} ends in {path.suffix!r}; give a name that ends in .svg or .dot")
        with writing("graph", path) as unfinished:
            unfinished.write_text((self.svg if path.suffix == ".svg" else self.dot) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        boxes, arrows = counted(len(self.boxes), "box", "boxes"), counted(len(self.arrows), "arrow")
        return f"a graph of {boxes} and {arrows}; write .save('graph.svg') to see it"


def graph(loss: Tensor, depth: int | None = None) -> Graph:
    """The graph of a loss, in which modules with `depth` parts in their path, such as 2 for h.0, are one box each.

    depth: 0 for every operation by itself; without it, as deep as MOST boxes allow.
    Raises: GraphError for a loss without a graph, or whose graph a backward has released.
    """
    nodes = operations("graph", loss)
    if depth is not None:
        return _drawn(nodes, depth)
    deepest = max(len(_parts(node.scope)) for node in nodes)
    for deep in (0, *range(deepest, 0, -1)):
        found = _drawn(nodes, deep)
        if len(found.boxes) <= MOST:
            break
    return found


def _parts(scope: str) -> list[str]:
    return scope.split(".") if scope else []


# --- folding -------------------------------------------------------------------------------------------------------


class _Group:
    """Operations that are one box, and the groups that made their inputs."""

    def __init__(self, path: str):
        self.path = path  # of the module; empty for a single operation
        self.nodes: list[Node] = []
        self.sources: set[int] = set()


def _grouped(nodes: list[Node], depth: int) -> tuple[list[_Group], dict[Node, int]]:
    """The groups in the order in which they begin, and the number of each node's."""
    groups: list[_Group] = []
    group_of: dict[Node, int] = {}
    latest: dict[str, int] = {}
    for node in nodes:
        parts = _parts(node.scope)
        path = ".".join(parts[:depth]) if 0 < depth <= len(parts) else ""
        sources = {group_of[parent] for parent in parents(node)}
        number = latest.get(path, -1) if path else -1
        if number < 0 or any(_depends(groups, source, number) for source in sources - {number}):
            number = len(groups)
            groups.append(_Group(path))
            latest[path] = number
        groups[number].nodes.append(node)
        groups[number].sources |= sources - {number}
        group_of[node] = number
    return groups, group_of


def _depends(groups: list[_Group], group: int, on: int) -> bool:
    """True if a group needs what another makes, directly or through others."""
    stack, seen = [group], {group}
    while stack:
        new = groups[stack.pop()].sources - seen
        if on in new:
            return True
        seen |= new
        stack += new
    return False


def _drawn(nodes: list[Node], depth: int) -> Graph:
    groups, group_of = _grouped(nodes, depth)
    counted = {id(owner(leaf.data)) for leaf in all_leaves(nodes)}
    kept = {node: sum(row.bytes for row in kept_by(node, counted)) for node in nodes}
    users: dict[int, set[int]] = {}
    for node in nodes:
        for leaf in leaves(node):
            users.setdefault(id(leaf), set()).add(group_of[node])
    inside = {
        id(leaf)
        for leaf in all_leaves(nodes)
        if isinstance(leaf, Parameter) and leaf.name and len(users[id(leaf)]) == 1
    }
    boxes = [_box(group, inside, kept, group_of[nodes[-1]] == i) for i, group in enumerate(groups)]
    arrows: dict[tuple[int, int], list[str]] = {}
    for node in nodes:
        for edge in node.edges:
            if edge is not None and isinstance(edge[0], Node) and group_of[edge[0]] != group_of[node]:
                shape = str(edge[0].output_shapes[edge[1]])
                shapes = arrows.setdefault((group_of[edge[0]], group_of[node]), [])
                shapes += [] if shape in shapes else [shape]
    for leaf in all_leaves(nodes):
        if id(leaf) not in inside:
            for user in sorted(users[id(leaf)]):
                arrows[len(boxes), user] = [str(leaf.shape)]
            named = isinstance(leaf, Parameter)
            lines = (str(leaf.shape), leaf.dtype.name)
            tooltip = f"{name_of(leaf)} {leaf.shape}: a {'parameter' if named else 'leaf'}; backward fills its grad"
            boxes.append(Box("parameter", name_of(leaf).partition(" (")[0], lines, tooltip))
    return Graph(tuple(boxes), tuple((*ends, " ".join(shapes)) for ends, shapes in arrows.items()))


def _box(group: _Group, inside: set[int], kept: dict[Node, int], is_last: bool) -> Box:
    own = {id(leaf): leaf for node in group.nodes for leaf in leaves(node) if id(leaf) in inside}.values()
    size = sum(kept[node] for node in group.nodes)
    keeps = (f"keeps {bytes_text(size)}",) if size else ()
    last = group.nodes[-1]
    if len(group.nodes) == 1:
        lines = [last.scope] if last.scope else []
        lines += [shapes_of(last), *(f"{name_of(leaf).rpartition('.')[2]} {leaf.shape}" for leaf in own)]
        tooltip = f"{last.describe()}\n{source_of(last)}"
        return Box("loss" if is_last else "operation", last.op.name, (*lines, *keeps), tooltip)
    weights = sum(leaf.numel() for leaf in own)
    lines = [f"{len(group.nodes)} operations", shapes_of(last)]
    lines += [counted(weights, "weight")] if own else []
    names = ", ".join(node.op.name for node in group.nodes)
    return Box("loss" if is_last else "module", group.path, (*lines, *keeps), f"{group.path}: {names}")


# --- pictures ------------------------------------------------------------------------------------------------------


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _size(box: Box) -> tuple[float, float]:
    letters = max(len(_shortened(line)) for line in (box.title, *box.lines))
    return letters * LETTER + 2 * MARGIN, (1 + len(box.lines)) * LINE + 2 * MARGIN - 4


def _svg_lines(graph: Graph) -> Iterator[str]:
    sizes = [_size(box) for box in graph.boxes]
    layout = lay_out(sizes, [arrow[:2] for arrow in graph.arrows])
    width, height = layout.width + 40, layout.height + 40
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="-20 -20 {width:.0f} {height:.0f}" role="img" font-family="ui-monospace, monospace" font-size="12">'
    )
    boxes, arrows = counted(len(graph.boxes), "box", "boxes"), counted(len(graph.arrows), "arrow")
    yield f"<title>The graph of a loss: {boxes}, {arrows}</title>"
    yield (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0,0L8,4L0,8z" fill="#667"/></marker></defs>'
    )
    yield f'<rect x="-20" y="-20" width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    for (source, target, shapes), route in zip(graph.arrows, layout.routes, strict=True):
        told = f"{graph.boxes[source].title} to {graph.boxes[target].title}: {shapes}"
        yield (
            f'<path d="{_curve(route)}" fill="none" stroke="#667" stroke-width="1.2" marker-end="url(#head)">'
            f"<title>{escape(told)}</title></path>"
        )
    for box, (x, y), (wide, high) in zip(graph.boxes, layout.centres, sizes, strict=True):
        yield from _svg_box(box, x - wide / 2, y - high / 2, wide, high)
    yield "</svg>"


def _svg_box(box: Box, left: float, top: float, wide: float, high: float) -> Iterator[str]:
    whole = "\n".join([box.tooltip, *(line for line in (box.title, *box.lines) if len(line) > LONGEST)])
    radius = 12 if box.kind == "parameter" else 4
    yield f"<g><title>{escape(whole)}</title>"
    yield (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{high:.1f}" rx="{radius}" '
        f'fill="{COLORS[box.kind]}" stroke="#556"/>'
    )
    for number, line in enumerate((box.title, *box.lines)):
        style = ' font-weight="bold"' if number == 0 else ' fill="#445"'
        x, y = left + MARGIN, top + MARGIN + 9 + number * LINE
        yield f'<text x="{x:.1f}" y="{y:.1f}"{style}>{escape(_shortened(line))}</text>'
    yield "</g>"


def _curve(route: list[tuple[float, float]]) -> str:
    """A path through the points that is vertical at each of them."""
    (x, y), *rest = route
    path = f"M{x:.1f},{y:.1f}"
    for to_x, to_y in rest:
        middle = (y + to_y) / 2
        path += f"C{x:.1f},{middle:.1f} {to_x:.1f},{middle:.1f} {to_x:.1f},{to_y:.1f}"
        x, y = to_x, to_y
    return path


def _dot_lines(graph: Graph) -> Iterator[str]:
    yield "digraph loss {"
    yield '  node [shape=box, style="rounded,filled", fontname=monospace, fontsize=10];'
    for number, box in enumerate(graph.boxes):
        label = _quoted("\n".join((box.title, *box.lines)))
        yield f'  n{number} [label={label}, fillcolor="{COLORS[box.kind]}", tooltip={_quoted(box.tooltip)}];'
    for source, target, shapes in graph.arrows:
        yield f"  n{source} -> n{target} [label={_quoted(shapes)}, fontsize=9];"
    yield "}"


def _quoted(text: Any) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
