// Numbers as text, and text from data.

const D = JSON.parse($("card").textContent);

/** A whole number with commas; "–" where there is none. */
const whole = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));

/** A number with three digits, such as 1.27 million; exact below a million. */
function rough(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, name] of [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]])
    if (value >= size) return `${Number((value / size).toPrecision(3))} ${name}`;
  return whole(value);
}

/** A number with a few digits. */
function decimal(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return Number(value.toPrecision(digits)).toLocaleString("en-US", { maximumSignificantDigits: digits });
}

/** A share of the whole. Small shares stay apart from 0, and large ones from 100. */
function percent(value) {
  if (value === null || value === undefined) return "–";
  if (value > 0 && value < 0.0005) return "<0.1%";
  if (value < 1 && value > 0.9995) return ">99.9%";
  return `${(100 * value).toFixed(1)}%`;
}

const megabytes = (bytes) => (bytes < 1e6 ? `${decimal(bytes / 1e3)} kB` : bytes < 1e9 ? `${decimal(bytes / 1e6)} MB` : `${decimal(bytes / 1e9)} GB`);

/** One or many: plural(1, "document") is "1 document". */
const plural = (number, word) => `${whole(number)} ${word}${number === 1 ? "" : "s"}`;

// Characters that are not seen, or that turn the text around them: controls, directions, surrogates, line separators.
// Joiners (U+200C, U+200D) stay, since Persian and emoji are written with them.
const UNSEEN = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;

const codeOf = (character) => `U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

/** The parts of a text from data: strings, and a marked code for each character that cannot be seen. */
function visible(text) {
  const parts = [];
  let from = 0;
  for (const found of text.matchAll(UNSEEN)) {
    if (found.index > from) parts.push(text.slice(from, found.index));
    parts.push(make("span", { class: "unseen", title: "a character that cannot be seen" }, codeOf(found[0])));
    from = found.index + found[0].length;
  }
  if (from < text.length) parts.push(text.slice(from));
  return parts;
}

/** A text from data, apart from what surrounds it, in its own direction. */
function data(text, tag = "bdi", attributes = {}) {
  if (text === null || text === undefined || text === "") return make("span", { class: "dim" }, "(none)");
  return make(tag, { class: "data", dir: "auto", ...attributes }, ...visible(String(text)));
}

/** The word of a key, with its definition behind it. */
const term = (key, label = key.replaceAll("_", " ")) => make("span", { title: D.definitions[key] }, label);

/** The definitions of keys, to open. */
function how(...keys) {
  return make(
    "details",
    { class: "how" },
    make("summary", {}, "How is this counted?"),
    make("dl", {}, ...keys.flatMap((key) => [make("dt", {}, key), make("dd", {}, D.definitions[key])])),
  );
}
