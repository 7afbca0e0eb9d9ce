// Figures: an array with its caption, its heat map, its cursor, and a table of the numbers around it.

let numbersShown = false; // tables of numbers below the heat maps

/** A figure of an array with its heat map, whose cursor arrow keys move; `choose(name, flat)` is called when it has moved. */
class Figure {
  /** number: of an array of the trace, or an array that the page has made. */
  constructor(name, number, { comment = "", width = 640, note = "", vocabulary = 0, choose = () => {} } = {}) {
    Object.assign(this, {
      name,
      array: typeof number === "object" ? number : D.arrays[number],
      choose,
      cursor: -1,
      lit: [],
    });
    this.element = make("figure", {
      class: "array",
      "data-name": name,
      "data-array": typeof number === "number" ? number : null,
    });
    if (!this.array) {
      this.element.append(
        make(
          "figcaption",
          {},
          make("b", {}, name),
          " ",
          make("span", { class: "dim" }, note || "left out, because it is large"),
        ),
      );
      return;
    }
    const array = this.array;
    this.shape = drawnShape(array);
    this.labels = array.image ? this.shape.map(() => null) : labelsOf(array.shape, comment, name, vocabulary);
    this.layout = new Layout(array, this.labels, width);
    this.element.append(
      make(
        "figcaption",
        {},
        make("b", {}, name),
        " ",
        make("span", { class: "shape" }, shapeText(array.shape)),
        " ",
        make("span", { class: "dim" }, array.dtype),
        storedText(array) && make("span", { class: "rounded" }, storedText(array)),
        note && make("span", { class: "note" }, note),
        make("span", { class: "stats" }, statsText(array)),
      ),
    );
    this.output = make("output", { class: "cursor" });
    if (sizeOf(this.shape) === 0) return;
    if (sizeOf(this.shape) === 1) this.scalar();
    else this.canvas();
    this.element.append(this.output);
    this.table = make("div", { class: "numbers" });
    this.element.append(this.table);
    if (numbersShown) this.move(0, false);
  }

  scalar() {
    this.element.append(
      make("button", { class: "scalar", onclick: () => this.move(0) }, exactText(numbersOf(this.array)[0], this.array)),
    );
  }

  canvas() {
    const array = this.array;
    this.drawing = make("canvas", {
      tabindex: "0",
      role: "application",
      "aria-roledescription": "heat map",
      "aria-label": `${this.name}, shape ${shapeText(array.shape)}, ${array.dtype}, ${statsText(array)}. Arrow keys move the cursor.`,
    });
    const at = (event) => {
      const box = this.drawing.getBoundingClientRect();
      return this.layout.at(event.clientX - box.left, event.clientY - box.top);
    };
    this.drawing.addEventListener("pointermove", (event) => this.tell(at(event) >= 0 ? at(event) : this.cursor));
    this.drawing.addEventListener("pointerleave", () => this.tell(this.cursor));
    this.drawing.addEventListener("click", (event) => at(event) >= 0 && this.move(at(event)));
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    this.drawing.addEventListener("focus", () => this.cursor < 0 && this.tell(0));
    this.element.append(make("div", { class: "map", tabindex: "-1" }, this.drawing));
    this.paint();
  }

  paint() {
    if (this.drawing) draw(this.drawing, this.array, this.labels, this.layout, this.lit, this.cursor);
  }

  light(flats) {
    this.lit = flats || [];
    this.paint();
    if (this.table) this.fillTable();
  }

  key(event) {
    const { columns, rows } = this.layout,
      step = {
        ArrowLeft: -1,
        ArrowRight: 1,
        ArrowUp: -(this.layout.wrap || columns),
        ArrowDown: this.layout.wrap || columns,
        PageUp: -rows * columns,
        PageDown: rows * columns,
        Home: -1e15,
        End: 1e15,
      }[event.key];
    if (event.key === "Escape") this.drawing.blur();
    else if (step && !event.shiftKey && !event.altKey && !event.ctrlKey)
      this.move(this.cursor < 0 ? 0 : this.cursor + step);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** Choose an element. */
  move(flat, report = true) {
    this.cursor = Math.max(0, Math.min(sizeOf(this.shape) - 1, flat));
    this.paint();
    this.tell(this.cursor);
    this.fillTable();
    if (report) this.choose(this.name, this.cursor, this);
  }

  /** The name of an element, with its tokens. */
  label(flat) {
    const index = indexOf(flat, this.shape),
      tokens = index.map((_, axis) => this.labels[axis] && visibleToken(this.labels[axis](index))).filter(Boolean);
    return `${this.name}${index.length ? `[${index.join(", ")}]` : ""}${tokens.length ? `  “${tokens.join("” “")}”` : ""}`;
  }

  tell(flat) {
    if (flat < 0) this.output.textContent = "";
    else if (this.array.image) this.output.textContent = this.block(flat);
    else this.output.textContent = `${this.label(flat)} = ${exactText(numbersOf(this.array)[flat], this.array)}`;
  }

  block(flat) {
    const [row, column] = indexOf(flat, this.shape),
      [down, across] = this.array.block,
      numbers = numbersOf(this.array);
    const where = `rows ${row * down} to ${(row + 1) * down - 1}, columns ${column * across} to ${(column + 1) * across - 1}`;
    return `${where}: mean ${shortText(numbers[flat])}, farthest from 0 ${shortText(numbers[sizeOf(this.shape) + flat])}`;
  }

  /** The numbers around the cursor, as a table. */
  fillTable() {
    this.table.replaceChildren();
    if (!numbersShown || !this.drawing) return;
    const { columns, rows } = this.layout,
      size = rows * columns,
      at = Math.max(0, this.cursor),
      matrix = Math.floor(at / size);
    const wide = this.layout.wrap ? 1 : rows,
      row = this.layout.wrap ? 0 : Math.floor((at % size) / columns),
      column = at % columns;
    const from = (place, count, shown) => Math.max(0, Math.min(count - shown, place - Math.floor(shown / 2)));
    const down = Math.min(wide, 8),
      across = Math.min(columns, 8),
      top = from(row, wide, down),
      left = from(column, columns, across);
    const first = this.layout.wrap ? 0 : matrix * size,
      head = make("tr", {}, make("td"));
    const name = (axis, flat, n) =>
      this.labels[axis] ? `${n} ${visibleToken(this.labels[axis](indexOf(flat, this.shape)))}` : String(n);
    const last = this.shape.length - 1;
    for (let j = left; j < left + across; j++) head.append(make("th", { scope: "col" }, name(last, first + j, j)));
    const body = [];
    for (let i = top; i < top + down; i++) {
      const cells = [make("th", { scope: "row" }, wide > 1 ? name(last - 1, first + i * columns, i) : "")];
      for (let j = left; j < left + across; j++) cells.push(this.cell(first + i * columns + j));
      body.push(make("tr", {}, ...cells));
    }
    const prefix = indexOf(first, this.shape).slice(0, this.layout.before);
    this.table.append(
      make(
        "table",
        {},
        make(
          "caption",
          {},
          `${this.name}[${[...prefix, wide > 1 ? `${top}:${top + down}` : null, `${left}:${left + across}`].filter((one) => one !== null).join(", ")}]`,
        ),
        make("thead", {}, head),
        make("tbody", {}, ...body),
      ),
    );
  }

  cell(flat) {
    const value = numbersOf(this.array)[flat],
      chosen = flat === this.cursor,
      lit = this.lit.includes(flat);
    return make(
      "td",
      {
        class: [chosen && "chosen", lit && "lit"].filter(Boolean).join(" ") || null,
        "data-flat": flat,
        "data-value": exactText(value, this.array),
        onclick: () => this.move(flat),
      },
      shortText(value),
    );
  }
}
