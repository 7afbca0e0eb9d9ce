// The graph at the left: a row for each op and each module that is folded, and the edges between them.

const ROW = 24,
  DOT = 40,
  LANE = 7; // pixels

/** Modules and ops as a list of rows in the order in which they ran; `inside` are the rows of the modules around. */
const ROWS = [];

function buildRows() {
  const kinds = Object.fromEntries(D.modules.map((module) => [module.path, module.kind]));
  const open = []; // rows of the modules that run
  for (const [index, stop] of D.stops.entries()) {
    if (!["tokens", "forward", "loss"].includes(stop.kind)) continue;
    const paths = modulePaths(stop.scope, kinds);
    let same = 0;
    while (same < open.length && same < paths.length && open[same].path === paths[same]) same++;
    open.length = same;
    for (const path of paths.slice(same)) {
      const row = {
        path,
        name: shortName(path, open.at(-1)),
        kind: kinds[path],
        inside: [...open],
        stops: [],
        opened: false,
      };
      ROWS.push(row);
      open.push(row);
    }
    for (const row of open) row.stops.push(index);
    ROWS.push({ stop: index, name: stop.op, inside: [...open], stops: [index] });
  }
}

/** The paths of the modules around a scope, outermost first: h.0 and h.0.attn for h.0.attn. */
function modulePaths(scope, kinds) {
  const parts = scope ? scope.split(".") : [];
  return parts.map((_, i) => parts.slice(0, i + 1).join(".")).filter((path) => path in kinds);
}

const shortName = (path, parent) => (parent ? path.slice(parent.path.length + 1) : path);

/** The row of a stop: a backward is in the row of its forward. */
function rowOf(index) {
  const stop = D.stops[index];
  const own = stop.kind === "backward" ? stop.partner : index;
  return ROWS.find((row) => row.stop === own);
}

const isShown = (row, current) =>
  row.inside.every((outer) => outer.opened || (current && current.inside.includes(outer)));

let visibleRows = [];

function showGraph(here) {
  const focused = document.activeElement?.closest("#graph [role=treeitem]")?.dataset.row;
  const current = rowOf(here);
  visibleRows = ROWS.filter((row) => isShown(row, current));
  const shown = (index) =>
    visibleRows.findLast((row) => row.stops.includes(index) && (row.stop === index || !isOpen(row, current)));
  const tree = make("div", { role: "tree", "aria-label": "ops, folded by module", class: "tree" });
  tree.append(edgesOf(current, shown), ...visibleRows.map((row) => rowElement(row, current, here)));
  $("graph").replaceChildren(tree, parametersElement(here));
  const active = tree.querySelector("[aria-current]") || tree.querySelector("[role=treeitem]");
  (tree.querySelector(`[data-row="${focused}"]`) || active)?.setAttribute("tabindex", "0");
  if (focused !== undefined) tree.querySelector(`[data-row="${focused}"]`)?.focus();
  if (active) keepInView($("graph"), active);
}

const isOpen = (row, current) =>
  row.stop === undefined && (row.opened || Boolean(current && current.inside.includes(row)));

/** Scroll a box, and nothing else, until an element in it can be seen. */
function keepInView(box, element) {
  const [outer, inner] = [box.getBoundingClientRect(), element.getBoundingClientRect()];
  if (inner.top < outer.top + 20) box.scrollTop -= outer.top + outer.height / 3 - inner.top;
  else if (inner.bottom > outer.bottom - 20) box.scrollTop += inner.bottom - outer.bottom + outer.height / 3;
}

function rowElement(row, current, here) {
  const module = row.stop === undefined,
    stop = D.stops[row.stop],
    depth = row.inside.length;
  const unfolded = module && isOpen(row, current),
    isHere = row === current;
  const item = make("div", {
    role: "treeitem",
    tabindex: "-1",
    "aria-level": depth + 1,
    "aria-expanded": module ? String(unfolded) : null,
    "aria-current": isHere ? "step" : null,
    "data-row": ROWS.indexOf(row),
    class: module ? "module" : "op",
  });
  item.style.paddingLeft = `${DOT + 10 + 10 * depth}px`;
  item.append(make("span", { class: "label" }, module ? `${unfolded ? "▾" : "▸"} ${row.name}` : row.name));
  if (module) item.append(make("span", { class: "dim" }, row.kind));
  else if (stop.partner !== null && stop.kind === "forward") {
    const way = D.stops[here].kind === "backward" && isHere ? row.stop : stop.partner;
    item.append(
      make(
        "a",
        { href: `#${way}`, tabindex: "-1", class: "other", "aria-label": `${D.stops[way].kind} of ${stop.op}` },
        way === row.stop ? "→" : "←",
      ),
    );
  }
  const marked = comparedRow(row);
  if (marked) item.append(make("span", { class: "differs", title: marked }, "≠"));
  item.addEventListener("click", (event) => event.target.closest("a") || chooseRow(row, here));
  return item;
}

function chooseRow(row, here) {
  if (row.stop === undefined) {
    row.opened = !isOpen(row, rowOf(here));
    if (!row.opened && rowOf(here)?.inside.includes(row)) return go(row.stops[0]);
    return showGraph(here);
  }
  const stop = D.stops[row.stop],
    back = ["backward", "update"].includes(D.stops[here].kind);
  go(back && stop.kind === "forward" && stop.partner !== null ? stop.partner : row.stop);
}

/** The edges between the rows that can be seen, as arcs at the left; those of the current op are marked. */
function edgesOf(current, shown) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"),
    seen = new Map();
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("width", DOT + 8);
  svg.setAttribute("height", visibleRows.length * ROW);
  for (const row of ROWS.filter((one) => one.stop !== undefined)) {
    for (const input of D.stops[row.stop].inputs) {
      const from = input.stop !== null ? shown(input.stop) : input.data ? shown(0) : null,
        to = shown(row.stop);
      if (!from || !to || from === to) continue;
      const key = [visibleRows.indexOf(from), visibleRows.indexOf(to)];
      seen.set(key.join(), {
        key,
        marked: seen.get(key.join())?.marked || row === current || (current && input.stop === current.stop),
      });
    }
  }
  for (const {
    key: [from, to],
    marked,
  } of [...seen.values()].sort((a, b) => a.marked - b.marked)) {
    const [top, bottom] = [from, to].map((n) => n * ROW + ROW / 2),
      lane = Math.min(5, Math.ceil(Math.log2(to - from)));
    const x = DOT - LANE * lane;
    svg.append(
      shape("path", {
        d: lane
          ? `M${DOT} ${top} C${x} ${top} ${x} ${top} ${x} ${top + ROW / 2} V${bottom - ROW / 2} C${x} ${bottom} ${x} ${bottom} ${DOT} ${bottom}`
          : `M${DOT} ${top}V${bottom}`,
        class: marked ? "edge marked" : "edge",
      }),
    );
  }
  visibleRows.forEach((row, n) =>
    svg.append(
      shape("circle", {
        cx: DOT,
        cy: n * ROW + ROW / 2,
        r: row === current ? 5 : row.stop === undefined ? 4 : 3,
        class: row === current ? "dot here" : "dot",
      }),
    ),
  );
  return svg;
}

function shape(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function parametersElement(here) {
  const updates = [...D.stops.entries()].filter(([, stop]) => stop.kind === "update");
  const links = updates.map(([index, stop]) =>
    make("li", {}, make("a", { href: `#${index}`, "aria-current": index === here ? "step" : null }, stop.scope)),
  );
  return make(
    "details",
    { class: "parameters", open: D.stops[here].kind === "update" },
    make("summary", {}, `${updates.length} parameters are updated`),
    make("ul", {}, ...links),
  );
}

/** Arrow keys within the tree: up and down between rows, right and left to unfold and fold. */
function treeKey(event, here) {
  const item = event.target.closest("[role=treeitem]");
  if (!item) return false;
  const row = ROWS[item.dataset.row],
    at = visibleRows.indexOf(row),
    current = rowOf(here);
  const focus = (other) =>
    $("graph")
      .querySelector(`[data-row="${ROWS.indexOf(other)}"]`)
      ?.focus();
  if (event.key === "ArrowDown" || event.key === "ArrowUp")
    focus(visibleRows[at + (event.key === "ArrowDown" ? 1 : -1)]);
  else if (event.key === "Enter" || event.key === " ") chooseRow(row, here);
  else if (event.key === "ArrowRight" && row.stop === undefined)
    isOpen(row, current) ? focus(visibleRows[at + 1]) : chooseRow(row, here);
  else if (event.key === "ArrowLeft")
    row.stop === undefined && row.opened ? chooseRow(row, here) : focus(row.inside.at(-1));
  else return false;
  return true;
}
