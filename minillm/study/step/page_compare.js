// A comparison: the arrays of another trace beside those of this one, and the first line that differs.

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
  const { titles, losses, errors, pairs, first } = D.compare,
    count = errors.filter(isLarge).length;
  const parts = [
    `${titles[0]} beside ${titles[1]}: losses ${shortText(losses[0], 7)} and ${shortText(losses[1], 7)}. ${count} of ${pairs.length} stops differ.`,
  ];
  if (first) {
    const place = first.numbers
      ? `${first.name}[${first.place.join(", ")}] is ${first.numbers.map((one) => shortText(+one, 6)).join(" and ")}`
      : `${first.name} is in one of them alone`;
    parts.push(" First: ", make("a", { href: firstDifference() }, titleOf(first.stops[0] ?? 0)), `, where ${place}.`);
  }
  return parts;
}

/** The address of the first line that differs. */
function firstDifference() {
  const first = D.compare?.first;
  if (!first) return null;
  const stop = first.stops[0] ?? 0,
    [line] = first.lines;
  const at = line
    ? D.stops[stop].lines.findIndex(
        (one) => one.function === line[0] && one.number === line[1] && one.made[first.name] !== undefined,
      )
    : 0;
  return `#${stop}${at > 0 ? `.${at}` : ""}`;
}

function goDifference() {
  if (firstDifference()) location.hash = firstDifference();
}

/** The arrays of this line in the other trace: names with their numbers in D.arrays. */
function otherArrays(stop, at) {
  const pair = pairOf(D.stops.indexOf(stop)),
    other = pair && D.compare.stops[pair.other],
    line = stop.lines[at];
  if (!other) return [];
  if (!line || !other.lines.length) {
    if (at < stop.lines.length - 1) return [];
    return other.outputs.map((one, i) => [one.name, stop.outputs[i]?.array, one.array]);
  }
  return Object.entries(line.made).map(([name, number]) => {
    const before = stop.lines
      .slice(0, at)
      .filter((one) => one.depth === line.depth && one.made[name] !== undefined).length;
    return [
      name,
      number,
      other.lines.filter((one) => one.depth === line.depth && one.made[name] !== undefined)[before]?.made[name],
    ];
  });
}

/** The other trace's arrays beside those of this line, and the differences. */
function compared(stop, width) {
  if (!D.compare) return [];
  const vocabulary = stop.vocabulary;
  const figures = otherArrays(stop, state.line)
    .filter(([, , number]) => number !== undefined && number !== null)
    .flatMap(([name, ours, number]) => {
      const theirs = new Figure(name, number, { width, vocabulary, note: D.compare.titles[1] }),
        apart = differenceOf(D.arrays[ours], D.arrays[number]);
      const difference = apart && new Figure(`difference of ${name}`, apart, { width, vocabulary });
      return [theirs.element, difference?.element].filter(Boolean);
    });
  return figures.length
    ? [
        make(
          "section",
          { class: "group compared" },
          make("h3", {}, `beside it: ${D.compare.titles[1]}`),
          make("div", { class: "figures" }, ...figures),
        ),
      ]
    : [];
}

function differenceOf(a, b) {
  if (!a || !b || a.image || b.image || String(a.shape) !== String(b.shape)) return null;
  const [x, y] = [numbersOf(a), numbersOf(b)],
    numbers = Float64Array.from(x, (value, i) => (value === y[i] ? 0 : value - y[i]));
  const finite = numbers.filter(Number.isFinite),
    sum = finite.reduce((total, one) => total + one, 0),
    squares = finite.reduce((total, one) => total + one * one, 0);
  const mean = sum / finite.length,
    stats = {
      mean,
      std: Math.sqrt(Math.max(0, squares / finite.length - mean * mean)),
      least: finite.reduce((m, v) => Math.min(m, v), Infinity),
      most: finite.reduce((m, v) => Math.max(m, v), -Infinity),
      norm: Math.sqrt(squares),
      zeros: finite.filter((one) => one === 0).length,
      infinite: numbers.length - finite.length,
    };
  return { shape: a.shape, dtype: "float64", type: "f8", numbers, stats };
}
