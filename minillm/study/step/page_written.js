// Formulas as a reader writes them, with names or with numbers in their places.

const STRENGTH = {
  "|": 1,
  "&": 2,
  "<": 3,
  "<=": 3,
  ">": 3,
  ">=": 3,
  "==": 3,
  "!=": 3,
  is: 3,
  "is not": 3,
  "+": 4,
  "-": 4,
  "*": 5,
  "/": 5,
  "//": 5,
  neg: 6,
  "**": 7,
};
const SIGNS = { "*": " · ", "**": "^", "-": " − " };

/** A formula as a reader writes it. With an index, each name is followed by its number: the second line of an answer. */
function written(tree, scope, index = null, above = 0) {
  const [kind, a, b, c] = tree;
  const inside = (one, strength = 0) => written(one, scope, index && fitted(index, shapeOf(one, scope)), strength);
  const number = () => {
    const text = shortText(
      scope.quietly(() => evaluate(tree, index, scope)),
      4,
    );
    return text.startsWith("−") && above ? `(${text})` : text;
  };
  const wrapped = (text, strength) => (strength < above ? `(${text})` : text);
  if (kind in STRENGTH && kind !== "neg") {
    const [left, right] = [inside(a, STRENGTH[kind]), inside(b, STRENGTH[kind] + +(kind !== "+" && kind !== "*"))];
    return wrapped(left + (SIGNS[kind] || ` ${kind} `) + right, STRENGTH[kind]);
  }
  switch (kind) {
    case "neg":
      return wrapped(`−${inside(a, 6)}`, 5);
    case "num":
      return index && tree[2] ? number() : tree[2] || (a === "inf" ? "inf" : shortText(a, 6));
    case "name":
      return !index || isNone(tree, scope) ? a : number();
    case "call":
      return `${a}(${tree
        .slice(2)
        .map((one) => inside(one))
        .join(", ")})`;
    case "where":
      return index
        ? inside(scope.quietly(() => evaluate(a, fitted(index, shapeOf(a, scope)), scope)) ? b : c, above)
        : `where(${[a, b, c].map((one) => inside(one)).join(", ")})`;
    case "if":
      return inside(holds(a, scope) ? b : c, above);
    case "T":
    case "swapaxes":
    case "transpose":
      return index ? number() : `${written(a, scope, null, 8)}ᵀ`;
    case "rows":
    case "reshape":
    case "broadcast":
    case "repeat":
    case "cut":
    case "take":
    case "pair":
      return index ? number() : written(a, scope, null, above);
    case "joined":
      return index ? number() : `joined(${written(a, scope)}, ${written(b, scope)})`;
    case "matmul":
      return index ? number() : wrapped(`${written(a, scope, null, 5)} @ ${written(b, scope, null, 6)}`, 5);
    case "sum":
    case "mean":
    case "max":
    case "min":
      return index ? number() : `${kind === "sum" ? "Σ" : kind}(${written(a, scope)})`;
    case "scatter":
      return index ? number() : `Σ over the places of the token in ${written(a, scope)} of ${written(b, scope)}`;
    case "index":
      return index ? number() : a[0] === "shape" ? String(plain(tree, scope)) : written(a, scope, null, 8);
    case "none":
      return "None";
    case "shape":
    case "size":
    case "ndim":
    case "len":
      return index ? number() : `${kind} of ${written(a, scope)}`;
    case "concatenate":
      return index ? number() : `concatenate(${written(a, scope)})`;
    default:
      return kind;
  }
}

/** The first sum or product within a formula: the one whose terms are listed. It gets the index that reaches it. */
function innerSum(tree, index, scope) {
  const [kind, a] = tree;
  if (["matmul", "sum", "mean", "scatter", "max", "min"].includes(kind)) return { tree, index };
  if (kind === "if") return innerSum(holds(a, scope) ? tree[2] : tree[3], index, scope);
  if (REARRANGED.includes(kind)) return a[0] === "shape" ? null : innerSum(a, source(tree, index, scope), scope);
  for (const part of tree.slice(1)) {
    if (!Array.isArray(part)) continue;
    const found = innerSum(part, fitted(index, shapeOf(part, scope)), scope);
    if (found) return found;
  }
  return null;
}
