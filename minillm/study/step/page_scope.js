// What a line of source can read: the names that the lines before it have bound, with their arrays and values.

class Missing extends Error {}

/** The names that a line can read: arrays and values, and a place where what was read is noted. */
class Scope {
  constructor(arrays, values) {
    this.arrays = arrays; // name -> number in D.arrays
    this.values = values; // name -> text, as Python shows it
    this.reads = new Map(); // name -> Set of flat indices
    this.noting = true;
  }

  array(name) {
    const array = D.arrays[this.arrays[name]];
    if (array && array.image) throw new Missing(`${name} is too large for this page`);
    return array;
  }

  element(name, index) {
    const array = this.array(name);
    const flat = flatOf(index, array.shape);
    if (this.noting) {
      if (!this.reads.has(name)) this.reads.set(name, new Set());
      this.reads.get(name).add(flat);
    }
    return numbersOf(array)[flat];
  }

  /** What a name that is no array is bound to: a number, a tuple, null for None, or text. */
  value(name) {
    const [holder, field] = name.split(".");
    const text = this.values[name] ?? fieldOf(this.values[holder], field);
    if (text === undefined) throw new Missing(`${name} is not known here`);
    return valueOf(text);
  }

  /** Run without noting what is read. */
  quietly(action) {
    const before = this.noting;
    this.noting = false;
    try {
      return action();
    } finally {
      this.noting = before;
    }
  }
}

/** The text of a field in the text of a NamedTuple: "(1, 22, 32)" for the shape in "Saved(shape=(1, 22, 32))". */
function fieldOf(text, field) {
  const found = field && new RegExp(`\\b${field}=(\\([^()]*\\)|[^,()]+)`).exec(text || "");
  return found ? found[1] : undefined;
}

/** A Python value from its text: numbers, True, False, None, tuples and lists of these. */
function valueOf(text) {
  const special = { True: 1, False: 0, None: null, inf: Infinity, "-inf": -Infinity, nan: NaN };
  if (text in special) return special[text];
  if (/^[-+0-9.e]+$/.test(text)) return Number(text);
  if (/^[([][-+0-9.e, ]*[)\]]$/.test(text)) return (text.match(/[-+0-9.e]+/g) || []).map(Number);
  const number = /^np\.\w+\(([^()]+)\)$/.exec(text);
  return number ? valueOf(number[1]) : text;
}

/** What the lines before `at` have bound in the same call of the same function. */
function scopeAt(stop, at) {
  const line = stop.lines[at],
    arrays = {},
    values = {};
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
  const trees = D.sources[line.function].formulas[line.number] || {},
    [, list, number] = /^(.*)\[(\d+)\]$/.exec(name) || [];
  return trees[name] || (trees[list]?.[0] === "cut" ? [...trees[list], +number] : undefined);
}

const link = (index, text = titleOf(index)) => make("a", { href: `#${index}` }, text);
const titleOf = (index) => D.stops[index].title;
