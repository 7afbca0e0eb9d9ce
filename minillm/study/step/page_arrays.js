// The numbers of the page: reading them, writing them as text, and drawing them as heat maps.

/** The bytes of a part of the page: compressed by zlib, in base64. */
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

const D = JSON.parse(new TextDecoder().decode(await unpacked("document")));
const block = await unpacked("numbers"); // of all arrays

// --- reading ----------------------------------------------------------------------------------------------------

const VIEWS = { f4: Float32Array, f8: Float64Array, i4: Int32Array, u1: Uint8Array };

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

/** All numbers of an array, row by row; of an image its means, and behind them the numbers farthest from 0. */
function numbersOf(array) {
  if (!array.numbers) {
    const stored = array.image ? [2, ...array.image] : array.shape;
    const count = sizeOf(stored);
    if (array.type === "f2") {
      const halves = new Uint16Array(block, array.at, count);
      array.numbers = Float64Array.from(halves, (bits) => fromHalf(bits) * 2 ** array.exponent);
    } else array.numbers = new VIEWS[array.type](block, array.at, count);
  }
  return array.numbers;
}

const sizeOf = (shape) => shape.reduce((product, size) => product * size, 1);

/** The shape as it is drawn: an image has rows and columns of blocks. */
const drawnShape = (array) => array.image || array.shape;

function indexOf(flat, shape) {
  const index = [];
  for (const size of [...shape].reverse()) {
    index.unshift(flat % size);
    flat = Math.floor(flat / size);
  }
  return index;
}

const flatOf = (index, shape) => index.reduce((flat, i, axis) => flat * shape[axis] + i, 0);

// --- numbers as text --------------------------------------------------------------------------------------------

/** The shortest decimal that is read back as this number, as Python writes it. */
function exactText(value, array) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value < 0 ? "-inf" : "inf";
  if (array.dtype === "bool") return value ? "True" : "False";
  if (array.type !== "f4") return pythonText(value);
  for (let digits = 1; digits < 10; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(+text) === value) return pythonText(+text);
  }
  return pythonText(value);
}

/** A number with an exponent where Python writes one. */
function pythonText(value) {
  const size = Math.abs(value);
  return tidy(size && (size < 1e-4 || size >= 1e16) ? value.toExponential() : String(value));
}

/** A number with a few digits, for a reader. */
function shortText(value, digits = 3) {
  if (value === null) return "not finite"; // JSON has neither NaN nor infinity
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value < 0 ? "−inf" : "inf";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return tidy(String(value));
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e6 ? value.toExponential(digits - 1) : value.toPrecision(digits);
  return tidy(text.includes("e") ? text.replace(/\.?0*e\+?/, "e") : String(+text));
}

const tidy = (text) => text.replaceAll("-", "−"); // a true minus sign; copied numbers are those of Python (see page.js)

const shapeText = (shape) => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`;

function statsText(array) {
  const s = array.stats,
    count = sizeOf(array.shape);
  if (count === 1) return "";
  const parts =
    s.mean === undefined
      ? []
      : [`mean ${shortText(s.mean)}`, `std ${shortText(s.std)}`, `from ${shortText(s.least)} to ${shortText(s.most)}`];
  if (s.zeros && s.zeros < count) parts.push(`${shortText((100 * s.zeros) / count, 2)}% zeros`);
  if (s.zeros === count) return "all zeros";
  if (s.infinite) parts.push(`${s.infinite} not finite`);
  return parts.join(" · ");
}

function storedText(array) {
  if (array.image) return `drawn in blocks of ${array.block.join(" × ")} numbers`;
  return array.type === "f2" ? "rounded to 16 bits" : "";
}

// --- the names of rows and columns ------------------------------------------------------------------------------

/**
 * For each axis of an array the tokens along it, as a function of the whole index, or null. In a stop that has to do with
 * the vocabulary, an axis of that size has all tokens along it.
 */
function labelsOf(shape, comment, name = "", vocabulary = 0) {
  const axes = shape.map(() => null);
  const named = (comment.match(/^\(([^)]*)\)/) || ["", ""])[1].split(/,\s*/);
  for (const rows of [D.tokens[name] || [], ...Object.values(D.tokens)].filter((one) => one.length)) {
    const B = rows.length,
      T = rows[0].length;
    const along = (axis) =>
      axes[axis] === null && shape[axis] === T && (axes[axis] = (index) => rows[index[0]][index[axis]]);
    if (shape.length > 1 && shape.length < 4 && shape[0] === B) {
      along(1);
      if (axes[1]) axes[1].ofRow = shape.length === 2 && B > 1; // each row has tokens of its own
    }
    else if (shape.length === 4 && shape[0] === B) {
      along(shape[2] === T ? 2 : 1);
      if (named.length === 4 ? named[3].startsWith("T") : shape[2] === T) along(3);
    } else if (shape.length === 2 && shape[0] === B * T && axes[0] === null) {
      axes[0] = (index) => rows[Math.floor(index[0] / T)][index[0] % T];
    } else if (shape.length === 2 && B === 1 && shape[0] === T) axes[0] = axes[0] || ((index) => rows[0][index[0]]);
  }
  const of = vocabulary && [0, shape.length - 1].find((axis) => shape[axis] === vocabulary && !axes[axis]);
  if (vocabulary && of !== undefined) axes[of] = (index) => D.vocabulary[index[of]] ?? "";
  return axes;
}

const visibleToken = (token) =>
  token
    .replaceAll("\n", "⏎")
    .replaceAll("\t", "⇥")
    .replace(/^ +| +$/g, (s) => "␣".repeat(s.length));

/** Letters of the longest token, of which a column shows five. */
const LONGEST = Math.min(
  5,
  Math.max(
    0,
    ...Object.values(D.tokens)
      .flat(2)
      .map((token) => visibleToken(token).length),
  ),
);

// --- heat maps --------------------------------------------------------------------------------------------------

const LOOK = {}; // colours of the theme, read from the style sheet when it changes

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const channels = (name) => style.getPropertyValue(name).trim().split(/\s+/).map(Number);
  for (const name of ["zero", "below", "far-below", "above", "far-above"]) LOOK[name] = channels(`--${name}`);
  for (const name of ["ink", "dim", "paper", "accent", "lit", "odd"])
    LOOK[name] = style.getPropertyValue(`--${name}`).trim();
  LOOK.mono = style.getPropertyValue("--mono");
}

const mixed = (a, b, t) => `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * t)).join(",")})`;

/** Blue below 0, red above, the paper's colour at 0; the scale is that of the array, and bends: small numbers show. */
function colourOf(value, scale) {
  if (!Number.isFinite(value)) return LOOK.odd;
  const t = Math.min(1, Math.asinh(Math.abs(value) / scale) / Math.asinh(4));
  const [near, far] = value < 0 ? ["below", "far-below"] : ["above", "far-above"];
  return t < 0.5 ? mixed(LOOK.zero, LOOK[near], 2 * t) : mixed(LOOK[near], LOOK[far], 2 * t - 1);
}

function scaleOf(array) {
  const s = array.stats,
    finite = sizeOf(array.shape) - s.infinite;
  return (s.norm && finite ? s.norm / Math.sqrt(finite) : 0) || 1;
}

/**
 * Where the numbers of an array are drawn: its last two axes are a matrix, and there is one for each index before. A row
 * whose columns have tokens of their own is a matrix by itself.
 */
class Layout {
  constructor(array, labels, width) {
    const shape = drawnShape(array);
    this.columns = shape.length ? shape[shape.length - 1] : 1;
    const apart = labels[1]?.ofRow; // as are those of a batch
    this.before = apart ? 1 : Math.max(0, shape.length - 2); // axes before those of a matrix
    this.rows = shape.length > 1 && !apart ? shape[shape.length - 2] : 1;
    this.wrap = 0; // a long vector is broken into rows
    if (shape.length < 2 && this.columns > 64) {
      this.wrap = this.columns % 64 === 0 || this.columns > 256 ? 64 : 32;
      this.rows = Math.ceil(this.columns / this.wrap);
    }
    this.matrices = sizeOf(shape.slice(0, this.before));
    this.left = labels[shape.length - 2] && !apart ? 56 : 0;
    const across = this.wrap || this.columns;
    this.top = labels[shape.length - 1] ? 8 + 7 * LONGEST : 0;
    const beside = Math.min(this.matrices, Math.max(1, Math.floor((width + 12) / (this.left + across * 8 + 12))));
    const room = Math.floor((width - beside * (this.left + 12)) / (beside * across));
    this.cell = Math.max(this.left ? 8 : 3, Math.min(across <= 16 ? 16 : 13, room));
    if (this.rows * this.cell > 420) this.cell = Math.max(3, Math.floor(420 / this.rows));
    if (this.cell < 8) this.left = this.top = 0;
    this.title = this.matrices > 1 ? 16 : 0;
    this.width = this.left + across * this.cell;
    this.height = this.title + this.top + this.rows * this.cell;
    this.beside = Math.max(1, Math.min(this.matrices, Math.floor((width + 12) / (this.width + 12))));
    this.across = across;
  }

  /** The corner of an element, in pixels. */
  corner(flat) {
    const size = this.wrap ? this.columns : this.rows * this.columns;
    const matrix = Math.floor(flat / size),
      inside = flat % size;
    const row = Math.floor(inside / this.across),
      column = inside % this.across;
    const x = (matrix % this.beside) * (this.width + 12) + this.left + column * this.cell;
    const y = Math.floor(matrix / this.beside) * (this.height + 10) + this.title + this.top + row * this.cell;
    return [x, y];
  }

  /** The element at a point, or -1. */
  at(x, y) {
    const across = Math.floor(x / (this.width + 12)),
      down = Math.floor(y / (this.height + 10));
    const matrix = down * this.beside + across;
    const column = Math.floor((x - across * (this.width + 12) - this.left) / this.cell);
    const row = Math.floor((y - down * (this.height + 10) - this.title - this.top) / this.cell);
    const inside = row * this.across + column;
    const valid =
      across < this.beside &&
      matrix < this.matrices &&
      column >= 0 &&
      column < this.across &&
      row >= 0 &&
      row < this.rows;
    if (!valid || (this.wrap && inside >= this.columns)) return -1;
    return matrix * this.rows * this.columns + inside;
  }

  size() {
    const lines = Math.ceil(this.matrices / this.beside);
    return [this.beside * (this.width + 12) - 12, lines * (this.height + 10) - 10];
  }
}

/** Draw an array; `lit` are elements to be outlined, `cursor` the chosen one. */
function draw(canvas, array, labels, layout, lit, cursor) {
  const shape = drawnShape(array),
    numbers = numbersOf(array),
    count = sizeOf(shape),
    scale = scaleOf(array);
  const ratio = window.devicePixelRatio || 1,
    [width, height] = layout.size();
  canvas.width = Math.max(1, width * ratio);
  canvas.height = Math.max(1, height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const gap = layout.cell > 6 ? 1 : 0;
  for (let flat = 0; flat < count; flat++) {
    const [x, y] = layout.corner(flat);
    pen.fillStyle = colourOf(numbers[flat], scale);
    pen.fillRect(x, y, layout.cell - gap, layout.cell - gap);
  }
  drawLabels(pen, shape, labels, layout);
  pen.lineWidth = 1.5;
  for (const flat of lit || []) {
    const [x, y] = layout.corner(flat);
    pen.strokeStyle = LOOK.lit;
    pen.strokeRect(x + 0.25, y + 0.25, layout.cell - 1, layout.cell - 1);
  }
  if (cursor >= 0) {
    const [x, y] = layout.corner(cursor);
    pen.strokeStyle = LOOK.paper;
    pen.lineWidth = 4;
    pen.strokeRect(x - 1, y - 1, layout.cell + 1, layout.cell + 1);
    pen.strokeStyle = LOOK.ink;
    pen.lineWidth = 2;
    pen.strokeRect(x - 1, y - 1, layout.cell + 1, layout.cell + 1);
  }
}

function drawLabels(pen, shape, labels, layout) {
  const last = shape.length - 1,
    font = Math.max(8.5, Math.min(11, layout.cell));
  pen.fillStyle = LOOK.dim;
  for (let matrix = 0; matrix < layout.matrices; matrix++) {
    const first = matrix * layout.rows * layout.columns,
      [x, y] = layout.corner(first);
    if (layout.title) {
      pen.font = `11px ${LOOK.mono}`;
      pen.textAlign = "left";
      pen.fillText(`[${indexOf(first, shape).slice(0, layout.before).join(", ")}]`, x, y - layout.top - 4);
    }
    pen.font = `${font}px ${LOOK.mono}`;
    for (let row = 0; row < layout.rows && layout.left; row++) {
      pen.textAlign = "right";
      const token = visibleToken(labels[last - 1](indexOf(first + row * layout.columns, shape)));
      pen.fillText(token.slice(0, 9), x - 5, y + row * layout.cell + layout.cell / 2 + font / 3);
    }
    for (let column = 0; column < layout.columns && layout.top && layout.cell >= 8; column++) {
      pen.save();
      pen.translate(x + column * layout.cell + layout.cell / 2 + font / 3, y - 4);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "left";
      pen.fillText(visibleToken(labels[last](indexOf(first + column, shape))).slice(0, 5), 0, 0);
      pen.restore();
    }
  }
}
