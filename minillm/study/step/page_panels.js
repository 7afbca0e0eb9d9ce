// What stands around the source: why an op runs now and where its results go, sums, the residual stream, a parameter.

// --- why now, and where it goes ---------------------------------------------------------------------------------

function storyOf(stop, at) {
  if (stop.kind === "backward") return [whyNow(stop), goesTo(stop)];
  if (stop.kind === "forward") return [readsFrom(stop), givesTo(stop)];
  if (stop.kind === "loss")
    return [
      make(
        "p",
        {},
        "The loss is one number. Its gradient with respect to itself is 1, and there the walk back begins.",
      ),
    ];
  if (stop.kind === "update")
    return [
      make(
        "p",
        {},
        `Every gradient of ${stop.scope} has arrived: `,
        ...waitedFor(stop.waited[0] || []),
        ". The optimiser moves it.",
      ),
    ];
  return [make("p", {}, "The step begins with the tokens of the batch. The right arrow key goes on.")];
}

const joined = (parts) => parts.flatMap((part, i) => (i ? [i === parts.length - 1 ? " and " : ", ", part] : [part]));

function readsFrom(stop) {
  const inputs = stop.inputs.filter((one) => one.shape).map((one) => make("span", {}, ...originOf(one)));
  const settings = Object.entries(stop.settings)
    .filter(([, text]) => text !== "None")
    .map(([name, text]) => `${name}=${text}`);
  return make(
    "p",
    {},
    `Called at ${stop.where || "an unknown line"}. `,
    ...joined(inputs),
    inputs.length ? ". " : "",
    settings.length ? make("span", { class: "dim" }, settings.join(", ")) : "",
  );
}

function givesTo(stop) {
  const here = D.stops.indexOf(stop),
    readers = D.stops.flatMap((one, index) =>
      one.kind === "forward" && one.inputs.some((input) => input.stop === here) ? [link(index)] : [],
    );
  return readers.length
    ? make("p", {}, `${stop.outputs.map((one) => one.name).join(", ")} goes to `, ...joined(readers), ".")
    : null;
}

const waitedFor = (sent) =>
  joined(
    sent.map((one) =>
      make(
        "span",
        {},
        one.stop === null ? "the 1 with which the walk began" : make("span", {}, `${one.name} of `, link(one.stop)),
      ),
    ),
  );

function whyNow(stop) {
  const parts = stop.waited.map((sent, i) => {
    const name = stop.inputs[i].name;
    if (!sent.length) return make("p", {}, make("b", {}, "Why now? "), `No gradient reaches ${name}.`);
    const first =
      sent.length === 1
        ? `${name} is complete: one consumer had to run first, and sent `
        : `${name} is complete: ${sent.length} consumers had to run first. It is the sum of `;
    return make(
      "p",
      {},
      make("b", {}, "Why now? "),
      first,
      ...waitedFor(sent),
      stop.hooked ? ", changed by a hook." : ".",
    );
  });
  return make("div", { class: "why" }, ...parts);
}

function goesTo(stop) {
  const sent = stop.outputs.filter((one) => one.shape && (one.parameter || one.stop !== null));
  const places = sent.map((one) =>
    make("span", {}, `${one.name} to `, one.parameter ? parameterLink(one.parameter) : link(one.stop)),
  );
  return places.length ? make("p", {}, "It sends ", ...joined(places), ".") : null;
}

/** The gradients that a backward waited for, and their sum, as figures with a formula of their own. */
function sumFigures(stop, options) {
  return stop.waited.flatMap((sent, i) => {
    if (sent.length < 2) return [];
    const figures = sent.map(
      (one, n) =>
        new Figure(one.name, one.array, {
          ...options,
          note: `${n ? "+ " : ""}from ${one.stop === null ? "the start" : titleOf(one.stop)}`,
        }),
    );
    const sum = new Figure(
      stop.inputs[i]?.name ?? "gradient",
      stop.kind === "update" ? stop.update.gradient : stop.inputs[i].array,
      { ...options, note: "= the sum" },
    );
    const all = [...figures, sum];
    for (const figure of all) {
      figure.choose = (name, flat) => {
        for (const other of all) if (other !== figure && other.array) other.move(flat, false);
        options.sum?.(
          figure,
          figures.map((one) => numbersOf(one.array)[flat]),
          numbersOf(sum.array)[flat],
          flat,
        );
      };
    }
    return [
      make(
        "section",
        { class: "sum" },
        make("h3", {}, "the gradients it waited for, and their sum"),
        make("div", { class: "figures" }, ...all.map((one) => one.element)),
      ),
    ];
  });
}

// --- the residual stream, a parameter, the words of a gradient ---------------------------------------------------

function residualPanel(stop) {
  if (!D.residual?.length) return null;
  const here = D.stops.indexOf(stop),
    on = D.residual.some((one) => one.stop === here || one.backward === here);
  const bars = (kind, half) => {
    const most = Math.max(...D.residual.map((one) => one[kind])) || 1;
    return D.residual.map((one) => {
      const bar = make("span", { class: `bar ${half}` });
      bar.style.width = `${(100 * one[kind]) / most}%`;
      return make(
        "tr",
        { class: one.stop === here || one.backward === here ? "here" : null, "data-residual": kind },
        make("th", { scope: "row" }, link((half === "backward" && one.backward) || one.stop, one.scope)),
        make("td", { class: "bars" }, bar),
        make("td", {}, shortText(one[kind])),
      );
    });
  };
  const table = (caption, kind, half) =>
    make("table", {}, make("caption", {}, caption), make("tbody", {}, ...bars(kind, half)));
  return make(
    "details",
    { class: "residual", open: on },
    make("summary", {}, "The residual stream, by block"),
    table("norm of what a part adds to x", "branch", "forward"),
    table("norm of the gradient that comes back through it", "through", "backward"),
    table("norm of the gradient that comes along x", "along", "backward"),
  );
}

/** One parameter through the step: with an element chosen, its number in each of the arrays. */
function parameterPanel(stop, flat) {
  if (!stop.update) return null;
  const rows = Object.entries(stop.update)
    .filter(([, number]) => number !== null && number !== undefined)
    .map(([name, number]) => {
      const array = D.arrays[number],
        s = array.stats;
      const at =
        flat >= 0 && !array.image && flat < sizeOf(array.shape) ? exactText(numbersOf(array)[flat], array) : "";
      return make(
        "tr",
        {},
        make("th", { scope: "row" }, name),
        make("td", {}, s.norm === undefined ? "" : shortText(s.norm)),
        make("td", { "data-through": name }, at),
      );
    });
  const index = flat >= 0 ? `[${indexOf(flat, D.arrays[stop.update.value].shape).join(", ")}]` : "element";
  return make(
    "section",
    { class: "through" },
    make("h3", {}, "through the step"),
    make(
      "table",
      {},
      make(
        "thead",
        {},
        make("tr", {}, make("td"), make("th", { scope: "col" }, "norm"), make("th", { scope: "col" }, index)),
      ),
      make("tbody", {}, ...rows),
    ),
    D.clipFactor !== 1 && D.gradNorm !== null
      ? make(
          "p",
          { class: "dim" },
          `All gradients together have the norm ${shortText(D.gradNorm, 4)} and were clipped: times ${shortText(D.clipFactor, 4)}.`,
        )
      : null,
  );
}

function tokensPanel() {
  return Object.entries(D.tokens).map(([name, rows]) =>
    make(
      "section",
      { class: "tokens" },
      make("h3", {}, name),
      ...rows.map((row) => make("p", {}, ...row.map((token) => make("span", { class: "token" }, visibleToken(token))))),
    ),
  );
}

/** The gradient of an MLP's matrix in words: the tokens whose vectors are nearest to its rows. */
function wordsPanel(stop) {
  const readings = (D.words || []).filter(
    (one) => ["backward", "update"].includes(stop.kind) && [one.layer, `${one.layer}.weight`].includes(stop.scope),
  );
  if (!readings.length) return [];
  const rows = readings.map((one) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, `“${visibleToken(one.token)}” at ${one.place.at(-1)}`),
      make(
        "td",
        {},
        ...one.nearest.map(([token, cosine]) =>
          make("span", { class: "token", title: `cosine ${shortText(cosine)}` }, visibleToken(token)),
        ),
      ),
    ),
  );
  const [first] = readings,
    about =
      first.kind === "imprint"
        ? "The gradient adds up each token’s input. Nearest tokens to that input:"
        : "A step moves what this matrix writes, for each token, towards:";
  return [
    make(
      "section",
      { class: "words" },
      make("h3", {}, "the gradient in words"),
      make("p", { class: "dim" }, about),
      make("table", {}, make("tbody", {}, ...rows)),
    ),
  ];
}
