// What stands around the source: figures of arrays, the element that is chosen, why now, the residual stream.

/** What the lines before `at` have bound in the same call of the same function. */
function scopeAt(stop, at) {
  const line = stop.lines[at], arrays = {}, values = {};
  if (!line) return new Scope(arrays, values);
  let first = at;
  while (first > 0 && !(sameCall(stop.lines[first], line) && isEntry(stop.lines[first]))) first--;
  for (const one of stop.lines.slice(first, at).filter((other) => sameCall(other, line))) {
    for (const name of [...Object.keys(one.made), ...Object.keys(one.values)]) {
      delete arrays[name];
      delete values[name];
    }
    Object.assign(arrays, one.made);
    Object.assign(values, one.values);
  }
  return new Scope(arrays, values);
}

const sameCall = (one, other) => one.function === other.function && one.depth === other.depth;
const isEntry = (line) => line.number === D.sources[line.function].first;

/** The names of arrays that a tree reads, in order. */
function namesIn(tree, scope, found = new Set()) {
  if (tree[0] === "name" && scope.arrays[tree[1]] !== undefined) found.add(tree[1]);
  if (tree[0] === "concatenate" && scope) partsOf(tree[1], scope).forEach((name) => found.add(name));
  for (const part of tree) if (Array.isArray(part)) namesIn(part, scope, found);
  return [...found];
}

/** The tree of a name that a line makes; piece 1 of what `pieces = cut(...)` makes is called pieces[1]. */
function treeOf(line, name) {
  const trees = D.sources[line.function].formulas[line.number] || {}, [, list, number] = /^(.*)\[(\d+)\]$/.exec(name) || [];
  return trees[name] || (trees[list]?.[0] === "cut" ? [...trees[list], +number] : undefined);
}

const link = (index, text = titleOf(index)) => make("a", { href: `#${index}` }, text);
const titleOf = (index) => D.stops[index].title;

// --- figures ----------------------------------------------------------------------------------------------------

let numbersShown = false; // tables of numbers below the heat maps

/** A figure of an array with its heat map, whose cursor arrow keys move; `choose(name, flat)` is called when it has moved. */
class Figure {
  /** number: of an array of the trace, or an array that the page has made. */
  constructor(name, number, { comment = "", width = 640, note = "", choose = () => {} } = {}) {
    Object.assign(this, { name, array: typeof number === "object" ? number : D.arrays[number], choose, cursor: -1, lit: [] });
    this.element = make("figure", { class: "array", "data-name": name, "data-array": typeof number === "number" ? number : null });
    if (!this.array) {
      this.element.append(make("figcaption", {}, make("b", {}, name), " ", make("span", { class: "dim" }, note || "left out, because it is large")));
      return;
    }
    const array = this.array;
    this.shape = drawnShape(array);
    this.labels = array.image ? this.shape.map(() => null) : labelsOf(array.shape, comment, name);
    this.layout = new Layout(array, this.labels, width);
    this.element.append(make("figcaption", {}, make("b", {}, name), " ", make("span", { class: "shape" }, shapeText(array.shape)), " ",
      make("span", { class: "dim" }, array.dtype), storedText(array) && make("span", { class: "rounded" }, storedText(array)),
      note && make("span", { class: "note" }, note), make("span", { class: "stats" }, statsText(array))));
    this.output = make("output", { class: "cursor" });
    if (sizeOf(this.shape) === 0) return;
    if (sizeOf(this.shape) === 1) this.scalar();
    else this.canvas();
    this.element.append(this.output);
    this.table = make("div", { class: "numbers" });
    this.element.append(this.table);
    if (numbersShown) this.move(0, false);
  }

  scalar() {
    this.element.append(make("button", { class: "scalar", onclick: () => this.move(0) }, exactText(numbersOf(this.array)[0], this.array)));
  }

  canvas() {
    const array = this.array;
    this.drawing = make("canvas", {
      tabindex: "0", role: "application", "aria-roledescription": "heat map",
      "aria-label": `${this.name}, shape ${shapeText(array.shape)}, ${array.dtype}, ${statsText(array)}. Arrow keys move the cursor.`,
    });
    const at = (event) => {
      const box = this.drawing.getBoundingClientRect();
      return this.layout.at(event.clientX - box.left, event.clientY - box.top);
    };
    this.drawing.addEventListener("pointermove", (event) => this.tell(at(event) >= 0 ? at(event) : this.cursor));
    this.drawing.addEventListener("pointerleave", () => this.tell(this.cursor));
    this.drawing.addEventListener("click", (event) => at(event) >= 0 && this.move(at(event)));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    this.drawing.addEventListener("focus", () => this.cursor < 0 && this.tell(0));
    this.element.append(make("div", { class: "map", tabindex: "-1" }, this.drawing));
    this.paint();
  }

  paint() {
    if (this.drawing) draw(this.drawing, this.array, this.labels, this.layout, this.lit, this.cursor);
  }

  light(flats) {
    this.lit = flats || [];
    this.paint();
    if (this.table) this.fillTable();
  }

  key(event) {
    const { columns, rows } = this.layout, step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -(this.layout.wrap || columns), ArrowDown: this.layout.wrap || columns, PageUp: -rows * columns, PageDown: rows * columns, Home: -1e15, End: 1e15 }[event.key];
    if (event.key === "Escape") this.drawing.blur();
    else if (step && !event.shiftKey && !event.altKey && !event.ctrlKey) this.move(this.cursor < 0 ? 0 : this.cursor + step);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Choose an element. */
  move(flat, report = true) {
    this.cursor = Math.max(0, Math.min(sizeOf(this.shape) - 1, flat));
    this.paint();
    this.tell(this.cursor);
    this.fillTable();
    if (report) this.choose(this.name, this.cursor, this);
  }

  /** The name of an element, with its tokens. */
  label(flat) {
    const index = indexOf(flat, this.shape), tokens = index.map((_, axis) => this.labels[axis] && visibleToken(this.labels[axis](index))).filter(Boolean);
    return `${this.name}${index.length ? `[${index.join(", ")}]` : ""}${tokens.length ? `  “${tokens.join("” “")}”` : ""}`;
  }

  tell(flat) {
    if (flat < 0) this.output.textContent = "";
    else if (this.array.image) this.output.textContent = this.block(flat);
    else this.output.textContent = `${this.label(flat)} = ${exactText(numbersOf(this.array)[flat], this.array)}`;
  }

  block(flat) {
    const [row, column] = indexOf(flat, this.shape), [down, across] = this.array.block, numbers = numbersOf(this.array);
    const where = `rows ${row * down} to ${(row + 1) * down - 1}, columns ${column * across} to ${(column + 1) * across - 1}`;
    return `${where}: mean ${shortText(numbers[flat])}, farthest from 0 ${shortText(numbers[sizeOf(this.shape) + flat])}`;
  }

  /** The numbers around the cursor, as a table. */
  fillTable() {
    this.table.replaceChildren();
    if (!numbersShown || !this.drawing) return;
    const { columns, rows } = this.layout, size = rows * columns, at = Math.max(0, this.cursor), matrix = Math.floor(at / size);
    const wide = this.layout.wrap ? 1 : rows, row = this.layout.wrap ? 0 : Math.floor((at % size) / columns), column = at % columns;
    const from = (place, count, shown) => Math.max(0, Math.min(count - shown, place - Math.floor(shown / 2)));
    const down = Math.min(wide, 8), across = Math.min(columns, 8), top = from(row, wide, down), left = from(column, columns, across);
    const first = this.layout.wrap ? 0 : matrix * size, head = make("tr", {}, make("td"));
    const name = (axis, flat, n) => (this.labels[axis] ? `${n} ${visibleToken(this.labels[axis](indexOf(flat, this.shape)))}` : String(n));
    const last = this.shape.length - 1;
    for (let j = left; j < left + across; j++) head.append(make("th", { scope: "col" }, name(last, first + j, j)));
    const body = [];
    for (let i = top; i < top + down; i++) {
      const cells = [make("th", { scope: "row" }, wide > 1 ? name(last - 1, first + i * columns, i) : "")];
      for (let j = left; j < left + across; j++) cells.push(this.cell(first + i * columns + j));
      body.push(make("tr", {}, ...cells));
    }
    const prefix = indexOf(first, this.shape).slice(0, -2);
    this.table.append(make("table", {}, make("caption", {}, `${this.name}[${[...prefix, wide > 1 ? `${top}:${top + down}` : null, `${left}:${left + across}`].filter((one) => one !== null).join(", ")}]`), make("thead", {}, head), make("tbody", {}, ...body)));
  }

  cell(flat) {
    const value = numbersOf(this.array)[flat], chosen = flat === this.cursor, lit = this.lit.includes(flat);
    return make("td", { class: [chosen && "chosen", lit && "lit"].filter(Boolean).join(" ") || null, "data-flat": flat, "data-value": exactText(value, this.array), onclick: () => this.move(flat) }, shortText(value));
  }
}

// --- the chosen element -----------------------------------------------------------------------------------------

/** The array with the gradient of a name, or for a gradient that of which it is one: in the other half of the op. */
function otherHalf(stop, name, shape) {
  const partner = D.stops[stop.partner];
  if (!partner) return null;
  const bare = name.replace(/^saved\./, ""), wanted = stop.kind === "backward" ? (bare.startsWith("d") ? bare.slice(1) : null) : `d${bare}`;
  const fits = (number) => number !== null && number !== undefined && D.arrays[number] && String(D.arrays[number].shape) === String(shape);
  const lines = partner.lines.filter((line) => line.depth === 0 && fits(line.made[wanted]));
  if (lines.length) return { name: wanted, number: lines.at(-1).made[wanted], stop: stop.partner };
  const edge = [...partner.outputs, ...partner.inputs].find((one) => one.name === wanted && fits(one.array));
  return edge ? { name: wanted, number: edge.array, stop: stop.partner } : null;
}

function elementPanel(stop, at, chosen, figure, scope) {
  const array = figure.array, index = indexOf(chosen.flat, array.shape);
  const value = numbersOf(array)[chosen.flat];
  const panel = make("section", { class: "chosen-element" }, make("h3", {}, figure.label(chosen.flat)));
  const facts = make("dl", {}, make("dt", {}, "value"), make("dd", { "data-fact": "value" }, exactText(value, array)));
  const other = otherHalf(stop, chosen.name, array.shape);
  if (other) {
    const twin = D.arrays[other.number], is = stop.kind === "backward" ? "forward" : "gradient";
    if (!twin.image) facts.append(make("dt", {}, is), make("dd", { "data-fact": is }, link(other.stop, other.name), ` ${exactText(numbersOf(twin)[chosen.flat], twin)}`));
  }
  panel.append(facts, ...provenance(stop, at, chosen.name, index, value, scope), ...checkPanel(stop, chosen.name, index, value));
  return panel;
}

const isSum = (tree) => ["matmul", "sum", "mean", "max", "min", "scatter", "name"].includes(tree[0]) || REARRANGED.includes(tree[0]);

/** How the line made this element: the formula, the formula with numbers, and the terms of its sum. */
function provenance(stop, at, name, index, value, scope) {
  const line = stop.lines[at], tree = line && treeOf(line, name);
  if (!tree) return madeElsewhere(stop, at, name, index, value);
  try {
    const result = evaluate(tree, index, scope);
    const parts = [make("p", { class: "formula" }, make("span", {}, `${name} = ${written(tree, scope)}`), isSum(tree) ? "" : make("span", { class: "with-numbers" }, `= ${written(tree, scope, index)}`), make("span", { "data-fact": "evaluated" }, `= ${shortText(result, 6)}`))];
    const inner = innerSum(tree, index, scope);
    if (inner) parts.push(termsTable(inner, scope));
    if ([...scope.reads.keys()].some((one) => scope.array(one).type === "f2")) parts.push(make("p", { class: "dim" }, "Worked out from numbers that this page has rounded."));
    return [make("h4", {}, "where it comes from"), ...parts];
  } catch (error) {
    if (!(error instanceof Missing)) throw error;
    return [make("p", { class: "dim" }, `This page cannot work the number out again: ${error.message}.`)];
  }
}

/** For a line without a formula: it binds a name to an array that is already there, or a function made it. */
function madeElsewhere(stop, at, name, index, value) {
  const line = stop.lines[at], number = line?.made[name];
  const before = stop.lines.slice(0, at).findLastIndex((one) => Object.values(one.made).includes(number) && number !== undefined);
  if (before >= 0) {
    const same = stop.lines[before], their = Object.keys(same.made).find((one) => same.made[one] === number);
    const intro = make("p", {}, "It is ", make("a", { href: `#${D.stops.indexOf(stop)}.${before}` }, their), ` in ${same.function.split(".").pop()}.`);
    return [intro, ...(isEntry(same) || !treeOf(same, their) ? [] : provenance(stop, before, their, index, value, scopeAt(stop, before)))];
  }
  const edge = stop.inputs.find((one) => one.array === number && number !== null);
  return edge ? [make("p", {}, ...originOf(edge))] : [];
}

/** What made an input, in words. */
function originOf(edge) {
  if (edge.parameter) return [`${edge.name} is the parameter `, parameterLink(edge.parameter)];
  if (edge.stop !== null && edge.stop !== undefined) return [`${edge.name} is made by `, link(edge.stop)];
  return [edge.data ? `${edge.name} is ${edge.data} of the batch` : `${edge.name} is a constant`];
}

function parameterLink(name) {
  const index = D.stops.findIndex((stop) => stop.kind === "update" && stop.scope === name);
  return index < 0 ? name : link(index, name);
}

/** Which of the terms it is: its index along the axes that are summed, and the token there. */
function termName(tree, term, scope) {
  const [kind, a, b] = tree, shape = shapeOf(kind === "matmul" ? b : a, scope), labels = labelsOf(shape, "");
  const token = (one, index) => (labels[one] ? ` “${visibleToken(labels[one](index))}”` : "");
  if (kind === "matmul") return `${term.k}${token(shape.length - 2, [...shape.slice(0, -2).fill(0), term.k, 0])}`;
  if (kind === "scatter") return `${indexOf(term.k, shape).join(", ")}${token(shape.length - 1, indexOf(term.k, shape))}`;
  const axes = axesOf(plain(b, scope), shape.length);
  return `${axes.map((one) => term.at[one]).join(", ")}${axes.map((one) => token(one, term.at)).join("")}`;
}

function termsTable({ tree, index }, scope) {
  const terms = termsOf(tree, index, scope), total = evaluate(tree, index, scope);
  const shown = [...terms].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 12);
  const most = Math.abs(shown[0]?.value) || 1, rest = terms.length - shown.length, factors = tree[0] === "matmul";
  const rows = shown.map((term) => {
    const bar = make("span", { class: term.value < 0 ? "bar below" : "bar above" });
    bar.style.width = `${(26 * Math.abs(term.value)) / most}px`;
    return make("tr", {}, make("th", { scope: "row" }, termName(tree, term, scope)), factors && make("td", {}, term.factors.map((one) => shortText(one)).join(" · ")), make("td", {}, shortText(term.value)), make("td", {}, bar));
  });
  const left = terms.reduce((sum, term) => sum + term.value, 0) - shown.reduce((sum, term) => sum + term.value, 0);
  if (rest && tree[0] !== "max" && tree[0] !== "min") rows.push(make("tr", { class: "dim" }, make("th", { scope: "row" }, `${rest} others`), factors && make("td"), make("td", {}, shortText(left)), make("td")));
  const caption = `${written(tree, scope)}: ${terms.length} term${terms.length === 1 ? "" : "s"}, together ${shortText(total, 4)}`;
  return make("table", { class: "terms" }, make("caption", {}, caption), make("tbody", {}, ...rows));
}

// --- check this number ------------------------------------------------------------------------------------------

/** The gradient of which a chosen element can be checked: its name as an input of the op, or as a parameter. */
function checksFor(stop, name) {
  const own = D.checks || {};
  if (stop.kind === "update") return name === "grad" ? own[stop.scope] : undefined;
  if (stop.kind !== "backward") return undefined;
  return own[`${D.stops.indexOf(stop)}:${name}`];
}

function checkPanel(stop, name, index) {
  const checks = checksFor(stop, name);
  if (!checks) return [];
  const found = checks.elements.find((one) => String(one.index) === String(index));
  const answer = make("div", { class: "check", "aria-live": "polite" });
  const button = make("button", { id: "check", onclick: () => answer.replaceChildren(...checkAnswer(checks, found)) }, "Check this number");
  return [make("h4", {}, "is it right?"), button, answer];
}

function checkAnswer(checks, found) {
  if (!found) {
    const places = checks.elements.map((one) => make("button", { class: "place", onclick: () => chooseIndex(one.index) }, `[${one.index.join(", ")}]`));
    return [make("p", {}, "The page is offline and cannot run the model. Differences were computed for these elements: ", ...places.flatMap((one) => [one, " "])), make("p", {}, "For any other, in Python: ", make("code", {}, checks.call))];
  }
  const rows = [["gradient", found.analytic], ["central difference", found.numeric]].map(([label, number]) => make("tr", {}, make("th", { scope: "row" }, label), make("td", { "data-check": label }, shortText(number, 7))));
  const verdict = found.agrees ? "They agree within a thousandth of the largest number of the array." : "They differ.";
  return [make("table", {}, make("tbody", {}, ...rows)), make("p", { class: found.agrees ? "agrees" : "error", "data-check": "verdict" }, verdict), make("p", { class: "dim" }, checks.about)];
}

// --- why now, and where it goes ---------------------------------------------------------------------------------

function storyOf(stop, at) {
  if (stop.kind === "backward") return [whyNow(stop), goesTo(stop)];
  if (stop.kind === "forward") return [readsFrom(stop), givesTo(stop)];
  if (stop.kind === "loss") return [make("p", {}, "The loss is one number. Its gradient with respect to itself is 1, and there the walk back begins.")];
  if (stop.kind === "update") return [make("p", {}, `Every gradient of ${stop.scope} has arrived: `, ...waitedFor(stop.waited[0] || []), ". The optimiser moves it.")];
  return [make("p", {}, "The step begins with the tokens of the batch. The right arrow key goes on.")];
}

const joined = (parts) => parts.flatMap((part, i) => (i ? [i === parts.length - 1 ? " and " : ", ", part] : [part]));

function readsFrom(stop) {
  const inputs = stop.inputs.filter((one) => one.shape).map((one) => make("span", {}, ...originOf(one)));
  const settings = Object.entries(stop.settings).filter(([, text]) => text !== "None").map(([name, text]) => `${name}=${text}`);
  return make("p", {}, `Called at ${stop.where || "an unknown line"}. `, ...joined(inputs), inputs.length ? ". " : "", settings.length ? make("span", { class: "dim" }, settings.join(", ")) : "");
}

function givesTo(stop) {
  const here = D.stops.indexOf(stop), readers = D.stops.flatMap((one, index) => (one.kind === "forward" && one.inputs.some((input) => input.stop === here) ? [link(index)] : []));
  return readers.length ? make("p", {}, `${stop.outputs.map((one) => one.name).join(", ")} goes to `, ...joined(readers), ".") : null;
}

const waitedFor = (sent) => joined(sent.map((one) => make("span", {}, one.stop === null ? "the 1 with which the walk began" : make("span", {}, `${one.name} of `, link(one.stop)))));

function whyNow(stop) {
  const parts = stop.waited.map((sent, i) => {
    const name = stop.inputs[i].name;
    if (!sent.length) return make("p", {}, make("b", {}, "Why now? "), `No gradient reaches ${name}.`);
    const first = sent.length === 1 ? `${name} is complete: one consumer had to run first, and sent ` : `${name} is complete: ${sent.length} consumers had to run first. It is the sum of `;
    return make("p", {}, make("b", {}, "Why now? "), first, ...waitedFor(sent), stop.hooked ? ", changed by a hook." : ".");
  });
  return make("div", { class: "why" }, ...parts);
}

function goesTo(stop) {
  const sent = stop.outputs.filter((one) => one.shape && (one.parameter || one.stop !== null));
  const places = sent.map((one) => make("span", {}, `${one.name} to `, one.parameter ? parameterLink(one.parameter) : link(one.stop)));
  return places.length ? make("p", {}, "It sends ", ...joined(places), ".") : null;
}

/** The gradients that a backward waited for, and their sum, as figures with a formula of their own. */
function sumFigures(stop, options) {
  return stop.waited.flatMap((sent, i) => {
    if (sent.length < 2) return [];
    const figures = sent.map((one, n) => new Figure(one.name, one.array, { ...options, note: `${n ? "+ " : ""}from ${one.stop === null ? "the start" : titleOf(one.stop)}` }));
    const sum = new Figure(stop.inputs[i]?.name ?? "gradient", stop.kind === "update" ? stop.update.gradient : stop.inputs[i].array, { ...options, note: "= the sum" });
    const all = [...figures, sum];
    for (const figure of all) {
      figure.choose = (name, flat) => {
        for (const other of all) if (other !== figure && other.array) other.move(flat, false);
        options.sum?.(figure, figures.map((one) => numbersOf(one.array)[flat]), numbersOf(sum.array)[flat], flat);
      };
    }
    return [make("section", { class: "sum" }, make("h3", {}, "the gradients it waited for, and their sum"), make("div", { class: "figures" }, ...all.map((one) => one.element)))];
  });
}

// --- the residual stream, a parameter, the words of a gradient ---------------------------------------------------

function residualPanel(stop) {
  if (!D.residual?.length) return null;
  const here = D.stops.indexOf(stop), on = D.residual.some((one) => one.stop === here || one.backward === here);
  const bars = (kind, half) => {
    const most = Math.max(...D.residual.map((one) => one[kind])) || 1;
    return D.residual.map((one) => {
      const bar = make("span", { class: `bar ${half}` });
      bar.style.width = `${(100 * one[kind]) / most}%`;
      return make("tr", { class: one.stop === here || one.backward === here ? "here" : null, "data-residual": kind }, make("th", { scope: "row" }, link((half === "backward" && one.backward) || one.stop, one.scope)), make("td", { class: "bars" }, bar), make("td", {}, shortText(one[kind])));
    });
  };
  const table = (caption, kind, half) => make("table", {}, make("caption", {}, caption), make("tbody", {}, ...bars(kind, half)));
  return make("details", { class: "residual", open: on }, make("summary", {}, "The residual stream, by block"),
    table("norm of what a part adds to x", "branch", "forward"), table("norm of the gradient that comes back through it", "through", "backward"), table("norm of the gradient that comes along x", "along", "backward"));
}

/** One parameter through the step: with an element chosen, its number in each of the arrays. */
function parameterPanel(stop, flat) {
  if (!stop.update) return null;
  const rows = Object.entries(stop.update).filter(([, number]) => number !== null && number !== undefined).map(([name, number]) => {
    const array = D.arrays[number], s = array.stats;
    const at = flat >= 0 && !array.image && flat < sizeOf(array.shape) ? exactText(numbersOf(array)[flat], array) : "";
    return make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, s.norm === undefined ? "" : shortText(s.norm)), make("td", { "data-through": name }, at));
  });
  const index = flat >= 0 ? `[${indexOf(flat, D.arrays[stop.update.value].shape).join(", ")}]` : "element";
  return make("section", { class: "through" }, make("h3", {}, "through the step"), make("table", {}, make("thead", {}, make("tr", {}, make("td"), make("th", { scope: "col" }, "norm"), make("th", { scope: "col" }, index))), make("tbody", {}, ...rows)),
    D.clipFactor !== 1 && D.gradNorm !== null ? make("p", { class: "dim" }, `All gradients together have the norm ${shortText(D.gradNorm, 4)} and were clipped: times ${shortText(D.clipFactor, 4)}.`) : null);
}

function tokensPanel() {
  return Object.entries(D.tokens).map(([name, rows]) => make("section", { class: "tokens" }, make("h3", {}, name), ...rows.map((row) => make("p", {}, ...row.map((token) => make("span", { class: "token" }, visibleToken(token)))))));
}

/** The gradient of an MLP's matrix in words: the tokens whose vectors are nearest to its rows. */
function wordsPanel(stop) {
  const readings = (D.words || []).filter((one) => ["backward", "update"].includes(stop.kind) && [one.layer, `${one.layer}.weight`].includes(stop.scope));
  if (!readings.length) return [];
  const rows = readings.map((one) => make("tr", {}, make("th", { scope: "row" }, `“${visibleToken(one.token)}” at ${one.place.at(-1)}`), make("td", {}, ...one.nearest.map(([token, cosine]) => make("span", { class: "token", title: `cosine ${shortText(cosine)}` }, visibleToken(token))))));
  const [first] = readings, about = first.kind === "imprint" ? "The gradient adds up each token’s input. Nearest tokens to that input:" : "A step moves what this matrix writes, for each token, towards:";
  return [make("section", { class: "words" }, make("h3", {}, "the gradient in words"), make("p", { class: "dim" }, about), make("table", {}, make("tbody", {}, ...rows)))];
}

// --- a comparison -----------------------------------------------------------------------------------------------

/** The number of a stop's pair in the other trace, and how much they differ. */
function pairOf(index) {
  const at = D.compare ? D.compare.pairs.findIndex(([a]) => a === index) : -1;
  return at < 0 ? null : { other: D.compare.pairs[at][1], error: D.compare.errors[at] };
}

const isLarge = (error) => error === null || error > D.compare.tolerance;

/** For a row of the graph: what differs there, or nothing. */
function comparedRow(row) {
  if (!D.compare) return "";
  const both = row.stops.flatMap((index) => [index, D.stops[index].partner]).filter((index) => index !== null);
  const large = both.map(pairOf).filter((pair) => pair && isLarge(pair.error));
  return large.length ? `${large.length} of its stops differ` : "";
}

function bannerOf() {
  const { titles, losses, errors, pairs, first } = D.compare, count = errors.filter(isLarge).length;
  const parts = [`${titles[0]} beside ${titles[1]}: losses ${shortText(losses[0], 7)} and ${shortText(losses[1], 7)}. ${count} of ${pairs.length} stops differ.`];
  if (first) {
    const place = first.numbers ? `${first.name}[${first.place.join(", ")}] is ${first.numbers.map((one) => shortText(+one, 6)).join(" and ")}` : `${first.name} is in one of them alone`;
    parts.push(" First: ", make("a", { href: firstDifference() }, titleOf(first.stops[0] ?? 0)), `, where ${place}.`);
  }
  return parts;
}

/** The address of the first line that differs. */
function firstDifference() {
  const first = D.compare?.first;
  if (!first) return null;
  const stop = first.stops[0] ?? 0, [line] = first.lines;
  const at = line ? D.stops[stop].lines.findIndex((one) => one.function === line[0] && one.number === line[1] && one.made[first.name] !== undefined) : 0;
  return `#${stop}${at > 0 ? `.${at}` : ""}`;
}

function goDifference() {
  if (firstDifference()) location.hash = firstDifference();
}

/** The arrays of this line in the other trace: names with their numbers in D.arrays. */
function otherArrays(stop, at) {
  const pair = pairOf(D.stops.indexOf(stop)), other = pair && D.compare.stops[pair.other], line = stop.lines[at];
  if (!other) return [];
  if (!line || !other.lines.length) {
    if (at < stop.lines.length - 1) return [];
    return other.outputs.map((one, i) => [one.name, stop.outputs[i]?.array, one.array]);
  }
  return Object.entries(line.made).map(([name, number]) => {
    const before = stop.lines.slice(0, at).filter((one) => one.depth === line.depth && one.made[name] !== undefined).length;
    return [name, number, other.lines.filter((one) => one.depth === line.depth && one.made[name] !== undefined)[before]?.made[name]];
  });
}

/** The other trace's arrays beside those of this line, and the differences. */
function compared(stop, width) {
  if (!D.compare) return [];
  const figures = otherArrays(stop, state.line).filter(([, , number]) => number !== undefined && number !== null).flatMap(([name, ours, number]) => {
    const theirs = new Figure(name, number, { width, note: D.compare.titles[1] }), apart = differenceOf(D.arrays[ours], D.arrays[number]);
    const difference = apart && new Figure(`difference of ${name}`, apart, { width });
    return [theirs.element, difference?.element].filter(Boolean);
  });
  return figures.length ? [make("section", { class: "group compared" }, make("h3", {}, `beside it: ${D.compare.titles[1]}`), make("div", { class: "figures" }, ...figures))] : [];
}

function differenceOf(a, b) {
  if (!a || !b || a.image || b.image || String(a.shape) !== String(b.shape)) return null;
  const [x, y] = [numbersOf(a), numbersOf(b)], numbers = Float64Array.from(x, (value, i) => (value === y[i] ? 0 : value - y[i]));
  const finite = numbers.filter(Number.isFinite), sum = finite.reduce((total, one) => total + one, 0), squares = finite.reduce((total, one) => total + one * one, 0);
  const mean = sum / finite.length, stats = { mean, std: Math.sqrt(Math.max(0, squares / finite.length - mean * mean)), least: finite.reduce((m, v) => Math.min(m, v), Infinity), most: finite.reduce((m, v) => Math.max(m, v), -Infinity), norm: Math.sqrt(squares), zeros: finite.filter((one) => one === 0).length, infinite: numbers.length - finite.length };
  return { shape: a.shape, dtype: "float64", type: "f8", numbers, stats };
}
