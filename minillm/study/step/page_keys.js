// Moving on by addresses, keys and search.

// --- addresses --------------------------------------------------------------------------------------------------

let address = ""; // the address that was written last
let waiting = 0; // a timer: browsers refuse hundreds of new addresses in a few seconds, as a key that is held makes them

function writeHash() {
  const { stop, line, chosen } = state,
    figure = chosen && figures.find((one) => one.name === chosen.name);
  const element = figure?.array ? `:${chosen.name}[${indexOf(chosen.flat, figure.array.shape).join(",")}]` : "";
  address = `#${stop}${line ? `.${line}` : ""}${element}`;
  waiting ||= setTimeout(() => {
    waiting = 0;
    if (decodeURIComponent(location.hash) === address) return;
    history[state.jumped && location.hash ? "pushState" : "replaceState"](null, "", address);
    state.jumped = false;
  }, 100);
}

function readHash() {
  const found = /^#(\d+)(?:\.(\d+))?(?::(.+)\[([\d,\s]*)\])?$/.exec(decodeURIComponent(location.hash));
  if (!found) return location.hash ? undefined : go(0);
  const [, stop, line, name, index] = found;
  go(+stop, +(line || 0));
  if (!name) return;
  const figure = figures.find((one) => one.name === name);
  if (figure?.array && !figure.array.image)
    figure.move(flatOf(index ? index.split(",").map(Number) : [], figure.array.shape));
}

// --- keys -------------------------------------------------------------------------------------------------------

const KEYS = [
  ["→", "next line", "ArrowRight", () => goPlace(placeNumber() + 1)],
  ["←", "previous line", "ArrowLeft", () => goPlace(placeNumber() - 1)],
  ["↓", "next stop", "ArrowDown", () => go(state.stop + 1)],
  ["↑", "previous stop", "ArrowUp", () => go(state.stop - 1)],
  ["shift →", "next module", "shift ArrowRight", () => goModule(1)],
  ["shift ←", "previous module", "shift ArrowLeft", () => goModule(-1)],
  [
    "b",
    "the other half: forward or backward",
    "b",
    () => D.stops[state.stop].partner !== null && go(D.stops[state.stop].partner),
  ],
  ["l", "the loss", "l", () => go(D.stops.findIndex((stop) => stop.kind === "loss"))],
  ["n", "next parameter", "n", () => nextParameter(1)],
  ["p", "previous parameter", "p", () => nextParameter(-1)],
  ["f", "first difference, in a comparison", "f", () => goDifference()],
  ["/", "search", "/", () => openSearch()],
  ["h", "into the heat maps; then arrow keys, Escape leaves", "h", () => $("arrays").querySelector("canvas")?.focus()],
  ["g", "into the graph; then arrow keys", "g", () => $("graph").querySelector("[tabindex='0']")?.focus()],
  ["d", "open or close the derivation", "d", () => ($("derivation").open = !$("derivation").open)],
  ["z", "numbers below the heat maps", "z", () => toggleNumbers()],
  ["c", "check the chosen number", "c", () => $("check")?.click()],
  ["Home, End", "begin and end of the step", "Home", () => go(0)],
  ["?", "these keys", "?", () => $("help").showModal()],
];

/** Parameters in the order in which they are updated; from anywhere else the first, or that of the op before. */
function nextParameter(direction) {
  const first = D.stops.findIndex((stop) => stop.kind === "update");
  if (first < 0) return;
  if (D.stops[state.stop].kind !== "update") return direction > 0 && go(first);
  goFind(direction, (stop) => stop.kind === "update");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (["INPUT", "TEXTAREA"].includes(event.target.tagName)) return;
  if (treeKey(event, state.stop)) return event.preventDefault();
  const name = (event.shiftKey && event.key.startsWith("Arrow") ? "shift " : "") + event.key;
  if (name === "End") return go(D.stops.length - 1);
  const found = KEYS.find(([, , key]) => key === name);
  if (!found) return;
  event.preventDefault();
  found[3]();
}

// --- search -----------------------------------------------------------------------------------------------------

function openSearch() {
  $("search").showModal();
  $("query").value = "";
  $("query").focus();
  search();
}

/** Stops, and lines, in which every word is found: first those whose op is the first word, then by title, then others. */
function search() {
  const words = $("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = [];
  for (const [index, stop] of D.stops.entries()) {
    const title = stop.title.toLowerCase();
    const text = `${title} ${stop.where}`.toLowerCase();
    const has = (other) => words.every((word) => other.includes(word));
    if (has(text)) {
      const rank = has(title) && stop.op === words[0] ? 0 : has(title) ? 1 : 2;
      found.push({ rank, href: `#${index}`, title: stop.title, where: stop.where });
      continue;
    }
    const line = stop.lines.findIndex((one) => has(`${text} ${lineText(one).toLowerCase()}`));
    if (line >= 0)
      found.push({ rank: 3, href: `#${index}.${line}`, title: stop.title, where: lineText(stop.lines[line]).trim() });
  }
  const best = found.sort((one, other) => one.rank - other.rank).slice(0, 60);
  $("found").replaceChildren(...best.map(foundElement));
}

function foundElement({ href, title, where }, position) {
  const close = () => $("search").close();
  const anchor = make("a", { href, tabindex: "-1", onclick: close }, title, " ", make("span", { class: "dim" }, where));
  return make("li", { role: "option", "aria-selected": String(position === 0) }, anchor);
}

const lineText = (line) => {
  const source = D.sources[line.function];
  return source.lines[line.number - source.first];
};

function onSearchKey(event) {
  const options = [...$("found").children],
    at = options.findIndex((one) => one.getAttribute("aria-selected") === "true");
  if (event.key === "Enter") {
    event.preventDefault();
    const href = options[at]?.firstChild.getAttribute("href");
    $("search").close();
    if (href) location.hash = href;
  }
  if (event.key === "Escape") {
    event.preventDefault(); // the first time would clear the field
    $("search").close();
  }
  if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
  event.preventDefault();
  const next = Math.max(0, Math.min(options.length - 1, at + (event.key === "ArrowDown" ? 1 : -1)));
  options.forEach((one, i) => one.setAttribute("aria-selected", String(i === next)));
  options[next]?.scrollIntoView({ block: "nearest" });
}
