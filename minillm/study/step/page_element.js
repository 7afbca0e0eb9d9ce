// The element that is chosen: its value, its gradient, the numbers that it is made of, and its central difference.

// --- where it comes from -----------------------------------------------------------------------------------------

/** The array with the gradient of a name, or for a gradient that of which it is one: in the other half of the op. */
function otherHalf(stop, name, shape) {
  const partner = D.stops[stop.partner];
  if (!partner) return null;
  const bare = name.replace(/^saved\./, ""),
    wanted = stop.kind === "backward" ? (bare.startsWith("d") ? bare.slice(1) : null) : `d${bare}`;
  const fits = (number) =>
    number !== null && number !== undefined && D.arrays[number] && String(D.arrays[number].shape) === String(shape);
  const lines = partner.lines.filter((line) => line.depth === 0 && fits(line.made[wanted]));
  if (lines.length) return { name: wanted, number: lines.at(-1).made[wanted], stop: stop.partner };
  const edge = [...partner.outputs, ...partner.inputs].find((one) => one.name === wanted && fits(one.array));
  return edge ? { name: wanted, number: edge.array, stop: stop.partner } : null;
}

function elementPanel(stop, at, chosen, figure, scope) {
  const array = figure.array,
    index = indexOf(chosen.flat, array.shape);
  const value = numbersOf(array)[chosen.flat];
  const panel = make("section", { class: "chosen-element" }, make("h3", {}, figure.label(chosen.flat)));
  const facts = make("dl", {}, make("dt", {}, "value"), make("dd", { "data-fact": "value" }, exactText(value, array)));
  const other = otherHalf(stop, chosen.name, array.shape);
  if (other) {
    const twin = D.arrays[other.number],
      is = stop.kind === "backward" ? "forward" : "gradient";
    if (!twin.image)
      facts.append(
        make("dt", {}, is),
        make(
          "dd",
          { "data-fact": is },
          link(other.stop, other.name),
          ` ${exactText(numbersOf(twin)[chosen.flat], twin)}`,
        ),
      );
  }
  panel.append(
    facts,
    ...provenance(stop, at, chosen.name, index, value, scope),
    ...checkPanel(stop, chosen.name, index, value),
  );
  return panel;
}

const isSum = (tree) =>
  ["matmul", "sum", "mean", "max", "min", "scatter", "name"].includes(tree[0]) || REARRANGED.includes(tree[0]);

/** How the line made this element: the formula, the formula with numbers, and the terms of its sum. */
function provenance(stop, at, name, index, value, scope) {
  const line = stop.lines[at],
    tree = line && treeOf(line, name);
  if (!tree) return madeElsewhere(stop, at, name, index, value);
  try {
    const result = evaluate(tree, index, scope);
    const parts = [
      make(
        "p",
        { class: "formula" },
        make("span", {}, `${name} = ${written(tree, scope)}`),
        isSum(tree) ? "" : make("span", { class: "with-numbers" }, `= ${written(tree, scope, index)}`),
        make("span", { "data-fact": "evaluated" }, `= ${shortText(result, 6)}`),
      ),
    ];
    const inner = innerSum(tree, index, scope);
    if (inner) parts.push(termsTable(inner, scope));
    if ([...scope.reads.keys()].some((one) => scope.array(one).type === "f2"))
      parts.push(make("p", { class: "dim" }, "Worked out from numbers that this page has rounded."));
    return [make("h4", {}, "where it comes from"), ...parts];
  } catch (error) {
    if (!(error instanceof Missing)) throw error;
    return [make("p", { class: "dim" }, `This page cannot work the number out again: ${error.message}.`)];
  }
}

/** For a line without a formula: it binds a name to an array that is already there, or a function made it. */
function madeElsewhere(stop, at, name, index, value) {
  const line = stop.lines[at],
    number = line?.made[name];
  const before = stop.lines
    .slice(0, at)
    .findLastIndex((one) => Object.values(one.made).includes(number) && number !== undefined);
  if (before >= 0) {
    const same = stop.lines[before],
      their = Object.keys(same.made).find((one) => same.made[one] === number);
    const intro = make(
      "p",
      {},
      "It is ",
      make("a", { href: `#${D.stops.indexOf(stop)}.${before}` }, their),
      ` in ${same.function.split(".").pop()}.`,
    );
    return [
      intro,
      ...(isEntry(same) || !treeOf(same, their)
        ? []
        : provenance(stop, before, their, index, value, scopeAt(stop, before))),
    ];
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
  const [kind, a, b] = tree,
    shape = shapeOf(kind === "matmul" ? b : a, scope),
    labels = labelsOf(shape, "", "", D.stops[state.stop].vocabulary);
  const token = (one, index) => (labels[one] ? ` “${visibleToken(labels[one](index))}”` : "");
  if (kind === "matmul") return `${term.k}${token(shape.length - 2, [...shape.slice(0, -2).fill(0), term.k, 0])}`;
  if (kind === "scatter")
    return `${indexOf(term.k, shape).join(", ")}${token(shape.length - 1, indexOf(term.k, shape))}`;
  const axes = axesOf(plain(b, scope), shape.length);
  return `${axes.map((one) => term.at[one]).join(", ")}${axes.map((one) => token(one, term.at)).join("")}`;
}

function termsTable({ tree, index }, scope) {
  const terms = termsOf(tree, index, scope),
    total = evaluate(tree, index, scope);
  const shown = [...terms].sort((a, b) => Math.abs(b.value) - Math.abs(a.value)).slice(0, 12);
  const most = Math.abs(shown[0]?.value) || 1,
    rest = terms.length - shown.length,
    factors = tree[0] === "matmul";
  const rows = shown.map((term) => {
    const bar = make("span", { class: term.value < 0 ? "bar below" : "bar above" });
    bar.style.width = `${(26 * Math.abs(term.value)) / most}px`;
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, termName(tree, term, scope)),
      factors && make("td", {}, term.factors.map((one) => shortText(one)).join(" · ")),
      make("td", {}, shortText(term.value)),
      make("td", {}, bar),
    );
  });
  const left = terms.reduce((sum, term) => sum + term.value, 0) - shown.reduce((sum, term) => sum + term.value, 0);
  if (rest && tree[0] !== "max" && tree[0] !== "min")
    rows.push(
      make(
        "tr",
        { class: "dim" },
        make("th", { scope: "row" }, `${rest} other${rest === 1 ? "" : "s"}`),
        factors && make("td"),
        make("td", {}, shortText(left)),
        make("td"),
      ),
    );
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
  const button = make(
    "button",
    { id: "check", onclick: () => answer.replaceChildren(...checkAnswer(checks, found)) },
    "Check this number",
  );
  return [make("h4", {}, "is it right?"), button, answer];
}

function checkAnswer(checks, found) {
  if (!found) {
    const places = checks.elements.map((one) =>
      make("button", { class: "place", onclick: () => chooseIndex(one.index) }, `[${one.index.join(", ")}]`),
    );
    return [
      make(
        "p",
        {},
        "The page is offline and cannot run the model. Differences were computed for these elements: ",
        ...places.flatMap((one) => [one, " "]),
      ),
      make("p", {}, "For any other, in Python: ", make("code", {}, checks.call)),
    ];
  }
  const rows = [
    ["gradient", found.analytic],
    ["central difference", found.numeric],
  ].map(([label, number]) =>
    make("tr", {}, make("th", { scope: "row" }, label), make("td", { "data-check": label }, shortText(number, 7))),
  );
  const verdict = found.agrees ? "They agree within a thousandth of the largest number of the array." : "They differ.";
  return [
    make("table", {}, make("tbody", {}, ...rows)),
    make("p", { class: found.agrees ? "agrees" : "error", "data-check": "verdict" }, verdict),
    make("p", { class: "dim" }, checks.about),
  ];
}
