// The lines of source, evaluated for one element: the trees of formulas.py, with the arrays of the trace.
//
// `evaluate(tree, index, scope)` gives a number and tells `scope.read(name, flat)` every element that it takes, so
// that the page can light these up. Shapes follow NumPy's rules. What a tree needs and the page does not have (an array
// that was left out or rounded away) raises Missing, and the page then says that it cannot tell.

const COMPARED = {
  "<": (a, b) => +(a < b),
  "<=": (a, b) => +(a <= b),
  ">": (a, b) => +(a > b),
  ">=": (a, b) => +(a >= b),
  "==": (a, b) => +(a === b),
  "!=": (a, b) => +(a !== b),
  "&": (a, b) => +(a && b),
  "|": (a, b) => +(a || b),
};
const ARITHMETIC = {
  "+": (a, b) => a + b,
  "-": (a, b) => a - b,
  "*": (a, b) => a * b,
  "/": (a, b) => a / b,
  "**": (a, b) => a ** b,
  "//": (a, b) => Math.floor(a / b),
  ...COMPARED,
};
const FUNCTIONS = {
  exp: Math.exp,
  expm1: Math.expm1,
  log: Math.log,
  log1p: Math.log1p,
  log2: Math.log2,
  log10: Math.log10,
  sqrt: Math.sqrt,
  tanh: Math.tanh,
  sin: Math.sin,
  cos: Math.cos,
  abs: Math.abs,
  sign: Math.sign,
  floor: Math.floor,
  ceil: Math.ceil,
  maximum: Math.max,
  minimum: Math.min,
  erf,
  clip: (x, least, most) => Math.min(Math.max(x, least), most),
};

function erf(x) {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  let term = x,
    sum = x; // the Taylor series, whose terms all have one sign after the factor exp(-x²) is taken out
  for (let n = 1; n < 200 && Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

const broadcastShape = (...shapes) => {
  const longest = Math.max(...shapes.map((shape) => shape.length));
  return Array.from({ length: longest }, (_, i) =>
    Math.max(...shapes.map((shape) => shape[shape.length - longest + i] ?? 1)),
  );
};

/** The index of an element of a broadcast operand. */
const fitted = (index, shape) => index.slice(index.length - shape.length).map((i, axis) => (shape[axis] === 1 ? 0 : i));

const axesOf = (axis, rank) =>
  axis === null ? [...Array(rank).keys()] : [axis].flat().map((one) => (one + rank) % rank);

/** What a tree is that has no axes of an array: a number, null, a tuple or a text. */
function plain(tree, scope) {
  const [kind, a, b] = tree;
  if (kind === "num") return a === "inf" ? Infinity : a;
  if (kind === "none") return null;
  if (kind === "text") return a;
  if (kind === "tuple") return tree.slice(1).map((one) => plain(one, scope));
  if (kind === "shape") return a[0] === "name" && !scope.array(a[1]) ? scope.value(`${a[1]}.shape`) : shapeOf(a, scope);
  if (kind === "size") return sizeOf(shapeOf(a, scope));
  if (kind === "ndim") return shapeOf(a, scope).length;
  if (kind === "len") return shapeOf(a, scope)[0];
  if (kind === "name") {
    const array = scope.array(a);
    if (!array) return scope.value(a);
    return array.shape.length ? [...numbersOf(array)] : numbersOf(array)[0];
  }
  if (kind === "index" && a[0] !== "name") return plain(a, scope).at(plain(b[0], scope));
  return scope.quietly(() => evaluate(tree, [], scope));
}

/** True for a condition in Python's sense. */
function holds(tree, scope) {
  const [kind, a, b] = tree;
  if (kind === "is_number") return a[0] !== "name" || !scope.array(a[1]);
  if (kind === "is" || kind === "is not") {
    const isArray = a[0] === "name" && scope.array(a[1]);
    const same = !isArray && plain(a, scope) === plain(b, scope);
    return kind === "is" ? same : !same;
  }
  if (kind === "not") return !holds(a, scope);
  if (kind === "==" || kind === "!=") return (plain(a, scope) === plain(b, scope)) === (kind === "==");
  return Boolean(plain(tree, scope));
}

/** The shape of what a tree stands for. */
function shapeOf(tree, scope) {
  const [kind, a, b, c] = tree;
  const own = () => shapeOf(a, scope);
  if (kind in ARITHMETIC) return broadcastShape(own(), shapeOf(b, scope));
  switch (kind) {
    case "name":
      return scope.array(a) ? scope.array(a).shape : [];
    case "neg":
    case "not":
      return own();
    case "call":
      return broadcastShape(...tree.slice(2).map((one) => shapeOf(one, scope)));
    case "where":
      return broadcastShape(own(), shapeOf(b, scope), shapeOf(c, scope));
    case "if":
      return shapeOf(holds(a, scope) ? b : c, scope);
    case "matmul": {
      const left = own(),
        right = shapeOf(b, scope);
      if (left.length < 2 || right.length < 2) throw new Missing("a product with a vector");
      return [...broadcastShape(left.slice(0, -2), right.slice(0, -2)), left.at(-2), right.at(-1)];
    }
    case "sum":
    case "mean":
    case "max":
    case "min": {
      const shape = own(),
        axes = axesOf(plain(b, scope), shape.length),
        keep = plain(tree[3], scope);
      return keep ? shape.map((size, i) => (axes.includes(i) ? 1 : size)) : shape.filter((_, i) => !axes.includes(i));
    }
    case "T":
      return own().reverse?.call([...own()]) ?? [];
    case "transpose":
      return plain(b, scope).map((axis) => own().at(axis));
    case "swapaxes": {
      const shape = [...own()],
        [i, j] = [plain(b, scope), plain(c, scope)].map((axis) => (axis + shape.length) % shape.length);
      [shape[i], shape[j]] = [shape[j], shape[i]];
      return shape;
    }
    case "rows":
      return [sizeOf(own().slice(0, -1)), own().at(-1)];
    case "reshape":
    case "broadcast":
      return wholeShape([plain(b, scope)].flat(), own());
    case "cut": {
      const [bounds, axis, shape] = [plain(b, scope), axesOf(plain(c, scope), own().length)[0], [...own()]];
      shape[axis] = bounds[tree[4] + 1] - bounds[tree[4]];
      return shape;
    }
    case "take": {
      const axis = axesOf(plain(c, scope), own().length)[0];
      return [...own().slice(0, axis), ...shapeOf(b, scope), ...own().slice(axis + 1)];
    }
    case "pair":
      return [...own().slice(0, -1), own().at(-1) / 2];
    case "joined":
      return [...own().slice(0, -1), own().at(-1) * 2];
    case "repeat":
      return own().map((size, i) => (i === plain(c, scope) ? size * plain(b, scope) : size));
    case "arange":
      return [plain(a, scope)];
    case "index":
      return indexed(tree, scope).shape;
    case "concatenate": {
      const parts = partsOf(a, scope).map((name) => scope.array(name).shape),
        axis = axesOf(plain(b, scope), parts[0].length)[0];
      return parts[0].map((size, i) => (i === axis ? parts.reduce((sum, shape) => sum + shape[i], 0) : size));
    }
    default:
      return [];
  }
}

/** A shape with -1 for what is left over. */
function wholeShape(shape, from) {
  const known = shape.reduce((product, size) => (size < 0 ? product : product * size), 1);
  return shape.map((size) => (size < 0 ? sizeOf(from) / known : size));
}

function partsOf(tree, scope) {
  if (tree[0] === "tuple") return tree.slice(1).map((part) => part[1]);
  return Object.keys(scope.arrays)
    .filter((name) => name.startsWith(`${tree[1]}[`))
    .sort((a, b) => parseInt(a.slice(tree[1].length + 1)) - parseInt(b.slice(tree[1].length + 1)));
}

/** `a[key]`: the shape of the result, and for an index of it that of the element of `a`. */
function indexed(tree, scope) {
  const [, a, key] = tree,
    shape = shapeOf(a, scope),
    steps = [];
  const flagsOf = (one) => (one[0] === "name" && scope.array(one[1])?.dtype === "bool" ? scope.array(one[1]) : null);
  const span = (one) => (one[0] === "new" || one[0] === "..." ? 0 : (flagsOf(one)?.shape.length ?? 1)); // axes that it takes
  const keys = key.some((one) => one[0] === "...") ? key : [...key, ["..."]];
  let axis = 0;
  for (const [n, one] of keys.entries()) {
    if (one[0] === "new") steps.push({ out: [1] });
    else if (one[0] === "...")
      for (const end = shape.length - keys.slice(n).reduce((sum, later) => sum + span(later), 0); axis < end; axis++)
        steps.push({ out: [shape[axis]], at: (i) => i[0] });
    else if (one[0] === "slice") {
      const whole = (end, other) =>
        end === null ? other : plain(end, scope) < 0 ? plain(end, scope) + shape[axis] : plain(end, scope);
      const start = whole(one[1], 0),
        stop = Math.min(shape[axis], whole(one[2], shape[axis]));
      steps.push({ out: [Math.max(0, stop - start)], at: (i) => start + i[0] });
      axis++;
    } else {
      const by = shapeOf(one, scope),
        size = shape[axis];
      if (flagsOf(one)) {
        const flags = numbersOf(flagsOf(one)),
          chosen = [...flags.keys()].filter((flat) => flags[flat]);
        steps.push({ out: [chosen.length], at: (i) => indexOf(chosen[i[0]], by) });
        axis += by.length;
      } else {
        if (by.length && key.length > 1) throw new Missing("several arrays of indices");
        steps.push({ out: by, at: (i) => (evaluate(one, i, scope) + size) % size });
        axis++;
      }
    }
  }
  const locate = (index) => {
    const found = [];
    let position = 0;
    for (const step of steps) {
      const part = index.slice(position, (position += step.out.length));
      if (step.at) found.push(step.at(part));
    }
    return found.flat();
  };
  return { shape: steps.flatMap((step) => step.out), locate };
}

/** The elements over which a reduction runs, for one element of its result. */
function* reduced(tree, index, scope) {
  const [, a, axis, keepdims] = tree,
    shape = shapeOf(a, scope),
    axes = axesOf(plain(axis, scope), shape.length);
  const kept = plain(keepdims, scope) ? index.filter((_, i) => !axes.includes(i)) : index;
  const sizes = axes.map((one) => shape[one]);
  for (let n = 0; n < sizeOf(sizes); n++) {
    const inner = indexOf(n, sizes);
    let next = 0;
    yield shape.map((_, i) => (axes.includes(i) ? inner[axes.indexOf(i)] : kept[next++]));
  }
}

/** The pairs of elements that a matrix product multiplies, for one element of its result. */
function* multiplied(tree, index, scope) {
  const [, a, b] = tree,
    left = shapeOf(a, scope),
    right = shapeOf(b, scope),
    front = index.slice(0, -2);
  for (let k = 0; k < left.at(-1); k++) {
    yield [
      [...fitted(front, left.slice(0, -2)), index.at(-2), k],
      [...fitted(front, right.slice(0, -2)), k, index.at(-1)],
    ];
  }
}

/** The index that a rearrangement takes its element from. */
function source(tree, index, scope) {
  const [kind, a, b, c] = tree,
    shape = shapeOf(a, scope),
    from = [...index];
  switch (kind) {
    case "T":
      return from.reverse();
    case "transpose": {
      plain(b, scope).forEach((axis, i) => (from[(axis + shape.length) % shape.length] = index[i]));
      return from;
    }
    case "swapaxes": {
      const [i, j] = [plain(b, scope), plain(c, scope)].map((axis) => (axis + shape.length) % shape.length);
      [from[i], from[j]] = [from[j], from[i]];
      return from;
    }
    case "rows":
      return indexOf(flatOf(index, shapeOf(tree, scope)), shape);
    case "reshape":
      return indexOf(flatOf(index, shapeOf(tree, scope)), shape);
    case "broadcast":
      return fitted(index, shape);
    case "repeat":
      return from.map((one, axis) => (axis === plain(c, scope) ? Math.floor(one / plain(b, scope)) : one));
    case "index":
      return indexed(tree, scope).locate(index);
    case "cut":
      from[axesOf(plain(c, scope), shape.length)[0]] += plain(b, scope)[tree[4]];
      return from;
    case "take": {
      const axis = axesOf(plain(c, scope), shape.length)[0],
        by = shapeOf(b, scope);
      const place = scope.quietly(() => evaluate(b, index.slice(axis, axis + by.length), scope));
      return [...index.slice(0, axis), (place + shape[axis]) % shape[axis], ...index.slice(axis + by.length)];
    }
    case "pair": {
      const half = shape.at(-1) / 2,
        which = plain(c, scope),
        last = index.at(-1);
      return [...index.slice(0, -1), plain(b, scope) === "'half'" ? last + which * half : 2 * last + which];
    }
  }
  throw new Missing(kind);
}

const REARRANGED = [
  "T",
  "transpose",
  "swapaxes",
  "rows",
  "reshape",
  "broadcast",
  "repeat",
  "index",
  "cut",
  "take",
  "pair",
];

/** The number of one element of what a tree stands for. */
function evaluate(tree, index, scope) {
  const [kind, a, b, c] = tree;
  const operand = (one) => evaluate(one, fitted(index, shapeOf(one, scope)), scope);
  if ((kind === "!=" || kind === "==") && isNone(b, scope)) return +(kind === "!=");
  if (kind in ARITHMETIC) return ARITHMETIC[kind](operand(a), operand(b));
  if (kind === "index" && ["shape", "tuple"].includes(a[0])) return plain(tree, scope);
  if (REARRANGED.includes(kind)) return evaluate(a, source(tree, index, scope), scope);
  switch (kind) {
    case "name": {
      if (scope.array(a)) return scope.element(a, index);
      const value = scope.value(a);
      if (typeof value !== "number") throw new Missing(`${a} is ${scope.values[a]}`);
      return value;
    }
    case "neg":
      return -operand(a);
    case "not":
      return +!operand(a);
    case "call":
      return FUNCTIONS[a](...tree.slice(2).map(operand));
    case "where":
      return operand(a) ? operand(b) : operand(c);
    case "if":
      return operand(holds(a, scope) ? b : c);
    case "arange":
      return index[0];
    case "concatenate":
      return concatenated(tree, index, scope);
    case "joined": {
      const half = shapeOf(a, scope).at(-1),
        last = index.at(-1),
        [front, second] = plain(c, scope) === "'half'" ? [last % half, last >= half] : [last >> 1, last % 2];
      return evaluate(second ? b : a, [...index.slice(0, -1), front], scope);
    }
    case "matmul":
    case "sum":
    case "mean":
    case "max":
    case "min":
    case "scatter": {
      const terms = termsOf(tree, index, scope).map((term) => term.value);
      if (kind === "max") return Math.max(...terms);
      if (kind === "min") return Math.min(...terms);
      return terms.reduce((sum, term) => sum + term, 0) / (kind === "mean" ? terms.length : 1);
    }
    default: {
      const value = plain(tree, scope);
      if (typeof value !== "number") throw new Missing(kind);
      return value;
    }
  }
}

const isNone = (tree, scope) =>
  tree[0] === "none" || (tree[0] === "name" && !scope.array(tree[1]) && scope.value(tree[1]) === null);

function concatenated(tree, index, scope) {
  const names = partsOf(tree[1], scope),
    axis = axesOf(plain(tree[2], scope), index.length)[0],
    from = [...index];
  for (const name of names) {
    const size = scope.array(name).shape[axis];
    if (from[axis] < size) return scope.element(name, from);
    from[axis] -= size;
  }
  throw new Missing("concatenate");
}

/** The terms that a sum or a product of matrices adds up, each with its number and its index among them. */
function termsOf(tree, index, scope) {
  const [kind, a, b] = tree;
  if (kind === "matmul") {
    return [...multiplied(tree, index, scope)].map(([left, right], k) => {
      const factors = [evaluate(a, left, scope), evaluate(b, right, scope)];
      return { k, factors, value: factors[0] * factors[1] };
    });
  }
  if (kind === "scatter") {
    const by = shapeOf(a, scope),
      found = [];
    for (let n = 0; n < sizeOf(by); n++) {
      const place = indexOf(n, by);
      if (scope.quietly(() => evaluate(a, place, scope)) === index[0]) {
        evaluate(a, place, scope);
        found.push({ k: n, value: evaluate(b, [...place, ...index.slice(1)], scope) });
      }
    }
    return found;
  }
  return [...reduced(tree, index, scope)].map((inner, k) => ({ k, at: inner, value: evaluate(a, inner, scope) }));
}
