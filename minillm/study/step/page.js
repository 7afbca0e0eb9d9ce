// The walk: where a person is, what stands there, and the keys, links and search that move on.
//
// A place is a stop and one of its lines. All places in a row are PLACES; the address of the page names the place and,
// after a colon, the element that is chosen: #31.4:ds[0, 1, 3, 2]

const PLACES = D.stops.flatMap((stop, index) =>
  stop.lines.length ? stop.lines.map((_, line) => [index, line]) : [[index, 0]],
);
const state = { stop: 0, line: 0, chosen: null, jumped: false };
let figures = []; // of this line, then those that it is made from

const placeNumber = () => PLACES.findIndex(([stop, line]) => stop === state.stop && line === state.line);
const half = (stop) => (stop.kind === "backward" ? "backward" : stop.kind === "update" ? "update" : "forward");

function go(stop, line = 0, chosen = null) {
  const index = Math.max(0, Math.min(D.stops.length - 1, stop)),
    last = Math.max(0, D.stops[index].lines.length - 1);
  const before = placeNumber();
  Object.assign(state, { stop: index, line: Math.max(0, Math.min(last, line)), chosen });
  state.jumped ||= Math.abs(placeNumber() - before) > 1; // then the browser's back button returns
  show();
}

function goPlace(number) {
  go(...PLACES[Math.max(0, Math.min(PLACES.length - 1, number))]);
}

/** The first stop after this one, in the given direction, for which a condition holds. */
function goFind(direction, condition) {
  for (let i = state.stop + direction; i >= 0 && i < D.stops.length; i += direction)
    if (condition(D.stops[i], i)) return go(i);
}

const outerModule = (stop) =>
  `${half(stop)} ${stop.kind === "update" ? stop.scope : stop.scope.split(".").slice(0, 3).join(".")}`;

function goModule(direction) {
  const from = outerModule(D.stops[state.stop]);
  goFind(
    direction,
    (stop, i) =>
      outerModule(stop) !== from && (direction > 0 || i === 0 || outerModule(D.stops[i - 1]) !== outerModule(stop)),
  );
}

// --- showing ----------------------------------------------------------------------------------------------------

function show() {
  const stop = D.stops[state.stop],
    line = stop.lines[state.line];
  writeHash();
  document.body.dataset.half = stop.kind === "loss" ? "loss" : half(stop);
  $("kind").textContent = stop.kind === "update" ? "update" : stop.kind;
  $("where").textContent =
    stop.kind === "tokens"
      ? "the tokens"
      : stop.scope && stop.scope !== stop.op
        ? `${stop.op} · ${stop.scope}`
        : stop.op;
  const lines = stop.lines.length > 1 ? `line ${state.line + 1} of ${stop.lines.length} · ` : "";
  $("count").textContent = `${lines}stop ${state.stop + 1} of ${D.stops.length}`;
  $("time").value = placeNumber();
  $("time").setAttribute("aria-valuetext", `${stop.title}, ${lines || "stop "}`);
  document.title = `${stop.title} · one training step of ${D.model}`;
  $("story").replaceChildren(...storyOf(stop, state.line).filter(Boolean));
  showSources(stop, line);
  showDerivation(stop, line);
  showArrays(stop, line);
  showGraph(state.stop);
}

function showDerivation(stop, line) {
  const key = line?.function ?? stop.function,
    source = D.sources[key],
    box = $("derivation");
  box.hidden = !source;
  if (!source) return;
  const [first, ...others] = D.derivations[source.derivation].split("\n");
  box.querySelector("summary").textContent = first.replace(/:$/, "");
  const made = Object.keys(line?.made ?? {}).map((name) => name.replace(/^saved\./, ""));
  const rows = others
    .join("\n")
    .trim()
    .split("\n")
    .map((text) => {
      const names = (text.match(/(?:^|\s{2,})\s*([A-Za-z_]\w*)\s*=/g) || []).map((part) => part.replace(/[\s=]/g, ""));
      return make(
        "span",
        { class: names.some((name) => made.some((one) => one.toLowerCase() === name.toLowerCase())) ? "now" : null },
        text || " ",
      );
    });
  box.querySelector("pre").replaceChildren(...rows);
}

function showSources(stop, line) {
  const other = D.stops[stop.partner],
    sides = [];
  if (stop.kind === "update") sides.push(["update", stop, state.stop]);
  else if (half(stop) === "backward") sides.push(["forward", other, stop.partner], ["backward", stop, state.stop]);
  else if (stop.kind === "forward") sides.push(["forward", stop, state.stop], ["backward", other, stop.partner]);
  const columns = sides
    .filter(([, one]) => one && D.sources[one.function])
    .map(([name, one, index]) => sourceColumn(name, one, index, line));
  $("sources").replaceChildren(...columns);
  $("sources").dataset.columns = columns.length;
  for (const now of document.querySelectorAll("#sources .now")) keepInView(now.closest("pre"), now);
}

/** A function with its lines; those that ran are links. A function that the line stands in, called by it, follows below. */
function sourceColumn(name, stop, index, line) {
  const here = index === state.stop,
    keys = [stop.function];
  if (here && line && !keys.includes(line.function)) keys.push(line.function);
  const blocks = keys
    .filter((key) => D.sources[key])
    .map((key) => {
      const source = D.sources[key];
      const rows = source.lines.map((text, i) => {
        const ran = stop.lines.findIndex((one) => one.function === key && one.number === source.first + i);
        const now = here && line && line.function === key && line.number === source.first + i;
        return sourceLine(text, source.first + i, ran < 0 ? null : `#${index}.${now ? state.line : ran}`, now);
      });
      return make(
        "div",
        { class: "function" },
        make("p", { class: "file" }, `${source.file}:${source.first}`),
        make("pre", { tabindex: "0", "aria-label": `${key.split(".").pop()}, source` }, ...rows),
      );
    });
  return make(
    "section",
    { class: here ? "column here" : "column" },
    make("h3", {}, name, here ? "" : make("a", { href: `#${index}` }, "go there (b)")),
    ...blocks,
  );
}

function sourceLine(text, number, href, now) {
  const [, code, comment] = /^((?:[^#"']|"[^"]*"|'[^']*')*)(#.*)?$/.exec(text) || ["", text, ""];
  const indent = code.match(/^\s*/)[0].length;
  const row = make(
    href ? "a" : "span",
    {
      class: ["line", now && "now", href && href === firstDifference() && "first-difference"].filter(Boolean).join(" "),
      href,
      "aria-current": now ? "step" : null,
    },
    make("span", { class: "number" }, String(number)),
    make("code", {}, code.trimStart() || " ", comment && make("i", {}, comment)),
  );
  row.lastChild.style.marginLeft = `${indent * 0.6}em`;
  return row;
}

const commentOf = (line) => {
  const source = line && D.sources[line.function];
  return (source?.lines[line.number - source.first].match(/#\s*(.*)$/) || ["", ""])[1];
};

function showArrays(stop, line) {
  const width = Math.max(260, $("arrays").clientWidth - 52),
    scope = scopeAt(stop, state.line),
    comment = commentOf(line);
  const options = { width, comment, choose, sum: sumChosen, vocabulary: stop.vocabulary };
  figures = [];
  const several = (number) => D.arrays[number]?.shape.length > 2 && sizeOf(D.arrays[number].shape.slice(0, -2)) > 1;
  const beside = (numbers) => {
    // two in a row, but of several matrices each
    options.width = numbers.length > 1 && width > 560 && !numbers.some(several) ? Math.floor((width - 24) / 2) : width;
  };
  const figure = (name, number, note) =>
    figures[figures.push(new Figure(name, number, { ...options, note })) - 1].element;
  const parts = [];
  beside([null, null]);
  if (state.line === 0) parts.push(...sumFigures(stop, options));
  if (stop.kind === "tokens") parts.push(...tokensPanel());
  if (stop.update && state.line === 0)
    parts.push(group("gradient of the loss", [figure("grad", stop.update.gradient)]));
  if (line) {
    const names = Object.keys(line.made),
      trees = names.map((name) => treeOf(line, name)).filter(Boolean);
    const read = [...new Set(trees.flatMap((tree) => namesIn(tree, scope)))].filter(
      (name) => !names.includes(name) || scope.arrays[name] !== line.made[name],
    );
    const returned = names.length ? [] : returnedBy(line, scope);
    beside([...names.map((name) => line.made[name]), ...returned.concat(read).map((name) => scope.arrays[name])]);
    parts.push(
      group(
        isEntry(line) ? "arguments" : returned.length ? "this line returns" : "this line makes",
        names
          .map((name) => figure(name, line.made[name]))
          .concat(returned.map((name) => figure(name, scope.arrays[name]))),
        valuesOf(line),
      ),
    );
    const operands = read.map((name) => figure(name, scope.arrays[name]));
    if (operands.length) parts.push(group("from", operands));
  } else {
    const edges = [
      ...stop.inputs,
      ...stop.outputs.filter((one) => !stop.inputs.some((input) => input.array === one.array)),
    ];
    parts.push(
      group(
        "arrays",
        edges.filter((one) => one.shape).map((one) => figure(one.name, one.array)),
      ),
    );
  }
  $("arrays").replaceChildren(toolbar(), make("div", { class: "groups" }, ...parts, ...compared(stop, options.width)));
  showElement(scope);
}

function toolbar() {
  const button = make(
    "button",
    { id: "numbers-shown", "aria-pressed": String(numbersShown), onclick: toggleNumbers, title: "numbers (z)" },
    "Numbers",
  );
  const legend = make(
    "span",
    { class: "legend", "aria-hidden": "true" },
    "below 0 ",
    make("i", { class: "far-below" }),
    make("i", { class: "below" }),
    make("i", { class: "zero" }),
    make("i", { class: "above" }),
    make("i", { class: "far-above" }),
    " above",
  );
  return make("div", { class: "toolbar" }, button, legend);
}

function group(title, elements, after = null) {
  return make(
    "section",
    { class: "group" },
    make("h3", {}, title),
    after,
    elements.length
      ? make("div", { class: "figures" }, ...elements)
      : make("p", { class: "dim" }, after ? "" : "no array"),
  );
}

/** The arrays that a line gives back under the names that they have. */
function returnedBy(line, scope) {
  const text = /^\s*return (.*?)(#.*)?$/.exec(lineText(line));
  return text
    ? [...new Set(text[1].replace(/\b\w+\(.*\)/, "").match(/[A-Za-z_]\w*/g))].filter(
        (name) => scope.arrays[name] !== undefined,
      )
    : [];
}

/** What a line binds that is no array: C = 32. */
function valuesOf(line) {
  const values = Object.entries(line.values).filter(([, text]) => text.length < 70);
  if (line.error) return make("p", { class: "error" }, line.error);
  return values.length
    ? make("p", { class: "values" }, ...values.map(([name, text]) => make("code", {}, `${name} = ${text}`)))
    : null;
}

function toggleNumbers() {
  numbersShown = !numbersShown;
  showArrays(D.stops[state.stop], D.stops[state.stop].lines[state.line]);
}

// --- the chosen element -----------------------------------------------------------------------------------------

function choose(name, flat, figure) {
  if (figure.array.image) return;
  state.chosen = { name, flat, number: figures.indexOf(figure) };
  writeHash();
  for (const other of figures)
    if (other !== figure && other.cursor >= 0) {
      other.cursor = -1;
      other.tell(-1);
      other.light([]);
    }
  showElement(scopeAt(D.stops[state.stop], state.line));
}

function chooseIndex(index) {
  const figure = figures[state.chosen?.number ?? 0];
  if (figure?.array) figure.move(flatOf(index, figure.array.shape));
}

function showElement(scope) {
  const stop = D.stops[state.stop],
    line = stop.lines[state.line],
    chosen = state.chosen;
  const figure =
    chosen &&
    (figures[chosen.number]?.name === chosen.name
      ? figures[chosen.number]
      : figures.find((one) => one.name === chosen.name));
  const panels = [];
  scope.reads.clear();
  if (figure?.array && chosen.flat < sizeOf(figure.array.shape)) {
    chosen.number = figures.indexOf(figure);
    if (figure.cursor !== chosen.flat) figure.move(chosen.flat, false);
    const isMade = line && line.made[figure.name] !== undefined && D.arrays[line.made[figure.name]] === figure.array;
    panels.push(elementPanel(stop, isMade ? state.line : -1, chosen, figure, scope));
    for (const other of figures)
      if (other.array && other !== figure) other.light([...(scope.reads.get(other.name) || [])]);
  } else
    panels.push(
      make(
        "p",
        { class: "hint" },
        "Choose an element of an array, by a click or with ",
        make("kbd", {}, "h"),
        " and the arrow keys, to see where it comes from.",
      ),
    );
  panels.push(parameterPanel(stop, chosen ? chosen.flat : -1), residualPanel(stop), ...wordsPanel(stop));
  $("element").replaceChildren(...panels.filter(Boolean));
}

function sumChosen(figure, terms, total, flat) {
  const text = terms
    .map((one) => shortText(one, 6))
    .join(" + ")
    .replaceAll("+ −", "− ");
  $("element").replaceChildren(
    make(
      "section",
      { class: "chosen-element" },
      make("h3", {}, `[${indexOf(flat, figure.array.shape).join(", ")}] of each`),
      make(
        "p",
        { class: "formula" },
        make("span", {}, `${text} =`),
        make("span", { "data-fact": "sum" }, exactText(total, figure.array)),
      ),
    ),
  );
}

// --- beginning --------------------------------------------------------------------------------------------------

function phases() {
  const counts = new Map();
  for (const [stop] of PLACES) counts.set(D.stops[stop].kind, (counts.get(D.stops[stop].kind) || 0) + 1);
  $("phases").replaceChildren(
    ...["tokens", "forward", "loss", "backward", "update"]
      .filter((kind) => counts.has(kind))
      .map((kind) => {
        const part = make("span", { class: kind }, counts.get(kind) / PLACES.length > 0.06 ? kind : "");
        part.style.flexGrow = counts.get(kind);
        return part;
      }),
  );
}

function wire() {
  for (const [id, action] of Object.entries({
    on: () => goPlace(placeNumber() + 1),
    back: () => goPlace(placeNumber() - 1),
    "module-on": () => goModule(1),
    "module-back": () => goModule(-1),
    "search-open": openSearch,
    "help-open": () => $("help").showModal(),
  }))
    $(id).addEventListener("click", action);
  $("time").max = PLACES.length - 1;
  $("time").addEventListener("input", () => goPlace(+$("time").value));
  $("query").addEventListener("input", search);
  $("query").addEventListener("keydown", onSearchKey);
  addEventListener("keydown", onKey);
  const follow = () => {
    // a link, or the browser's back button
    clearTimeout(waiting);
    waiting = 0;
    if (decodeURIComponent(location.hash) !== address) readHash();
  };
  addEventListener("hashchange", follow);
  addEventListener("popstate", follow);
  addEventListener("resize", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    document.body.dataset.print = "yes";
    redraw();
  });
  addEventListener("afterprint", () => {
    delete document.body.dataset.print;
    redraw();
  });
  document.addEventListener("copy", (event) => {
    // numbers are copied as Python writes them
    event.clipboardData.setData("text/plain", String(getSelection()).replaceAll("−", "-"));
    event.preventDefault();
  });
}

function redraw() {
  readTheme();
  showArrays(D.stops[state.stop], D.stops[state.stop].lines[state.line]);
}

function begin() {
  readTheme();
  $("model").textContent = `A step of ${D.model}`;
  $("summary").textContent = `loss ${shortText(D.loss, 4)} · ${D.engine} engine · seed ${D.seed}`;
  $("keys").replaceChildren(
    ...KEYS.flatMap(([key, text]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, text)]),
  );
  $("notes").replaceChildren(...D.notes.map((note) => make("p", { class: "dim" }, note)));
  if (D.compare) {
    $("banner").replaceChildren(...bannerOf());
    $("banner").hidden = false;
  }
  buildRows();
  phases();
  wire();
  readHash();
  document.body.dataset.ready = "yes";
}

begin();

// For a browser's console, and for tests: the numbers as text, what a line makes, and how the page works it out again.
globalThis.stepper = {
  document: D,
  settled: () => !waiting, // the address is that of the place
  texts: (number) => Array.from(numbersOf(D.arrays[number]), (value) => exactText(value, D.arrays[number])),
  lit: () =>
    figures.map((figure) => ({
      name: figure.name,
      array: D.arrays.indexOf(figure.array),
      lit: figure.lit,
      cursor: figure.cursor,
    })),
  evaluate(stop, line, name, flats) {
    const one = D.stops[stop].lines[line],
      tree = treeOf(one, name),
      shape = D.arrays[one.made[name]].shape;
    if (!tree) return null;
    return flats.map((flat) => evaluate(tree, indexOf(flat, shape), scopeAt(D.stops[stop], line)));
  },
};
