// Tables, bars and histograms.

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A bar for a share between 0 and 1. */
function bar(share, kind = "kept") {
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", x: 0, y: 0, width: 100, height: 10 }),
    svg("rect", { class: kind, x: 0, y: 0, width: Math.min(100, Math.max(share > 0 ? 0.5 : 0, 100 * share)), height: 10 }),
  );
}

/**
 * A table. columns: {key, label, cell: (row) => a string or a node, text: true for words and not numbers}; the first
 * column names the row. Beyond `most` rows it says how many there are.
 */
function table(caption, columns, rows, most = 60) {
  if (!rows.length) return make("p", { class: "dim" }, "There is none.");
  const head = columns.map(({ key, label, text }) =>
    make("th", { scope: "col", class: text ? "text" : false }, D.definitions[key] ? term(key, label) : label || ""),
  );
  const body = rows.slice(0, most).map((row) =>
    make(
      "tr",
      {},
      ...columns.map(({ key, cell, text }, i) =>
        i
          ? make("td", { class: text ? "text" : false, "data-key": key }, cell(row))
          : make("th", { scope: "row", "data-key": key }, cell(row)),
      ),
    ),
  );
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)),
    rows.length > most && make("p", { class: "dim" }, `${whole(rows.length - most)} more are in the JSON.`),
  );
}

/** The range of a bin, such as 10–19. */
function range(bin, first = false) {
  if (bin.to === null) return `${whole(bin.from)} or more`;
  if (first && bin.from < 0) return `below ${whole(bin.to)}`;
  return bin.to === bin.from + 1 ? whole(bin.from) : `${whole(bin.from)}–${whole(bin.to - 1)}`;
}

/** A histogram. layers: {key, kind, label}, the lowest first. */
function histogram(caption, bins, layers) {
  const total = (bin) => layers.reduce((sum, { key }) => sum + bin[key], 0);
  const most = Math.max(1, ...bins.map(total)),
    wide = 44,
    high = 150;
  const columns = bins.flatMap((bin, i) => {
    let top = high;
    const parts = layers.map(({ key, kind, label }) => {
      const height = (high * bin[key]) / most;
      top -= height;
      const title = `${range(bin, !i)}: ${whole(bin[key])} ${label}`;
      return svg("rect", { class: kind, x: i * wide + 2, y: top, width: wide - 4, height }, svg("title", {}, title));
    });
    const label = bin.to === null ? `${shortest(bin.from)}+` : shortest(bin.from);
    return [
      ...parts,
      svg("text", { class: "number", x: i * wide + wide / 2, y: top - 4 }, total(bin) ? shortest(total(bin)) : ""),
      svg("text", { x: i * wide + wide / 2, y: high + 16 }, label),
    ];
  });
  const names = layers.map(({ kind, label }) => make("span", {}, make("i", { class: kind }), label));
  return make(
    "figure",
    { class: "histogram" },
    make("figcaption", {}, caption, layers.length > 1 && make("span", { class: "legend" }, ...names)),
    make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
      svg("svg", { viewBox: `0 -18 ${bins.length * wide} ${high + 40}`, width: bins.length * wide, role: "img", "aria-label": caption }, ...columns),
    ),
    make(
      "details",
      {},
      make("summary", {}, "As a table"),
      table(
        caption,
        [
          { key: "bins", label: "bin", cell: (bin) => range(bin, bin === bins[0]) },
          ...layers.map(({ key, label }) => ({ key, label, cell: (bin) => whole(bin[key]) })),
        ],
        bins,
      ),
    ),
  );
}

const shortest = (value) =>
  value >= 1e6 ? `${decimal(value / 1e6, 2)}M` : value >= 1000 ? `${decimal(value / 1000, value < 1e4 ? 2 : 3)}k` : whole(value);

/** A document of a sample. */
function sample(one) {
  return make(
    "article",
    { class: "sample" },
    make(
      "p",
      { class: "name" },
      data(one.id),
      one.url && make("span", { class: "dim" }, " ", data(one.url)),
      one.why && make("span", { class: "why" }, " ", data(one.why)),
    ),
    excerpt(one, data(one.text, "pre", { tabindex: 0 })),
  );
}

/** A text that may be cut, with the mark that says so. */
function excerpt(one, node) {
  const left = one.characters_left_out;
  return make("div", {}, node, left > 0 && make("p", { class: "cut" }, `cut here; ${plural(left, "more character")}`));
}

const LONGEST_COMPARED = 250; // words

/** The words of two texts that are not in a longest common subsequence of theirs, as sets of their places. */
function differences(first, second) {
  const a = first.slice(0, LONGEST_COMPARED),
    b = second.slice(0, LONGEST_COMPARED);
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
  const only = [new Set(), new Set()];
  let i = 0,
    j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      i++;
      j++;
    } else if (j === b.length || (i < a.length && longest[i + 1][j] >= longest[i][j + 1])) only[0].add(i++);
    else only[1].add(j++);
  }
  return only;
}

/** Two documents side by side, with the words marked that only one of them has. */
function beside(members) {
  const [first, second] = members,
    words = [first, second].map((one) => one.text.split(/(?<=\s)(?=\S)/u));
  const only = differences(...words.map((list) => list.map((word) => word.trim())));
  const column = (one, k) =>
    make(
      "article",
      { class: "sample" },
      make("p", { class: "name" }, data(one.id), make("span", { class: one.why ? "why" : "stays" }, " ", one.why ? data(one.why) : "stays")),
      excerpt(
        one,
        make(
          "pre",
          { class: "data", dir: "auto", tabindex: 0 },
          ...words[k].flatMap((word, i) => (only[k].has(i) ? [make("mark", {}, ...visible(word))] : visible(word))),
        ),
      ),
    );
  return make(
    "div",
    { class: "beside" },
    column(first, 0),
    column(second, 1),
    members.length > 2 && make("p", { class: "dim" }, "Another one: ", data(members[2].id)),
  );
}
