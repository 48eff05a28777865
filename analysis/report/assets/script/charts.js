// A card with one drawing: its title, what can be chosen in it, its numbers, and how it is saved.

// What is drawn of a selection: cards and tables. Those that are seen are drawn at once, those near by a moment later,
// all others when they come near.
const drawings = [];
const near = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      target.drawing.near = isIntersecting;
      if (isIntersecting) target.drawing.draw();
    }
  },
  { rootMargin: "250px" },
);

function watchDrawing(drawing, node) {
  node.drawing = drawing;
  drawings.push(drawing);
  near.observe(node);
}

const isSeen = (node) => {
  const { top, bottom } = node.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
};

// Once a frame, however fast the step is dragged.
function drawSoon() {
  app.frame =
    app.frame ||
    requestAnimationFrame(() => {
      app.frame = 0;
      const [now, later] = [[], []];
      for (const drawing of drawings) if (drawing.near && drawing.dirty) (isSeen(drawing.node) ? now : later).push(drawing);
      for (const drawing of now) drawing.draw();
      later.forEach((drawing, i) => setTimeout(() => drawing.draw(), 30 * (i + 1)));
    });
}

// What is said in the place of a drawing that failed; the others go on.
function failed(error) {
  console.error(error);
  return `This could not be drawn: ${error.message}`;
}

// A part of the page that is made anew where a change of the selection concerns it.
function lazily(node, make, concerned) {
  const drawing = {
    node,
    dirty: true,
    near: false,
    concerned: concerned || ((name) => name === "theme" || !NOT_DRAWN.has(name)),
    draw() {
      if (!drawing.dirty) return;
      drawing.dirty = false;
      try {
        make();
      } catch (error) {
        node.replaceChildren(el("div", { class: "empty" }, failed(error)));
      }
    },
  };
  watchDrawing(drawing, node);
}

class Card {
  // make(selection, width) returns {option, rows, says, sub, empty, height, notes}; tools(selection) the elements of its head.
  constructor(parent, { id, title, width, height, make, tools, click, key }) {
    Object.assign(this, { id, title, make, tools, click, key, height: height || 300, dirty: true, near: false });
    this.titleNode = el("div", { class: "card-title", id: `${id}-title` }, title);
    this.sub = el("div", { class: "card-sub" });
    this.toolsNode = el("div", { class: "tools" });
    this.plot = el("div", { class: "plot", role: "img", tabindex: "0", style: { height: `${this.height}px` } });
    this.plot.addEventListener("keydown", (event) => this.pressed(event));
    this.empty = el("div", { class: "empty", hidden: true });
    this.notes = el("div", { class: "notes", hidden: true });
    this.numbers = el("div", { class: "scroll", hidden: true, tabindex: "0" });
    this.save = el(
      "details",
      { class: "save" },
      el("summary", { "aria-label": `Save or read the numbers: ${title}`, title: "Save, or read the numbers" }, "⤓"),
      el(
        "div",
        null,
        [["PNG picture", () => this.picture("png")], ["SVG picture", () => this.picture("svg")], ["Numbers as CSV", () => downloadCsv(`${this.id}.csv`, this.made.rows)], ["Show the numbers here", () => this.list()]].map(
          ([text, act]) => el("button", { type: "button", onclick: () => { this.save.open = false; act(); } }, text),
        ),
      ),
    );
    this.node = el(
      "figure",
      { class: `card ${width || "w6"}`, id, "aria-labelledby": `${id}-title` },
      el("div", { class: "card-head" }, el("div", { class: "card-text" }, this.titleNode, this.sub), this.toolsNode, this.save),
      this.plot, this.empty, this.numbers, this.notes,
    );
    this.node.card = this;
    parent.append(this.node);
    watchDrawing(this, this.node);
  }

  concerned(name) {
    return name === "theme" || !NOT_DRAWN.has(name);
  }

  draw() {
    if (!this.dirty) return;
    this.dirty = false;
    this.width = this.node.clientWidth - 34;
    let made;
    try {
      made = this.make(app.state.now, this.width);
    } catch (error) {
      made = { empty: failed(error) };
    }
    this.made = made;
    this.titleNode.textContent = made.title || this.title;
    this.sub.textContent = made.sub || "";
    if (this.tools) refill(this.toolsNode, ...this.tools(app.state.now).filter(Boolean));
    const nothing = !made.option;
    this.toolsNode.hidden = nothing && [...this.toolsNode.querySelectorAll("select")].some((select) => !select.options.length);
    this.plot.hidden = nothing;
    this.save.hidden = nothing;
    this.empty.hidden = !nothing;
    this.empty.textContent = nothing ? made.empty || "Nothing of this was measured." : "";
    this.notes.replaceChildren(...(made.notes || []).slice(0, 6).map((note) => el("p", null, shortened(note, 400))));
    this.notes.hidden = !(made.notes || []).length;
    if (nothing) {
      this.numbers.hidden = true;
      return;
    }
    this.plot.style.height = `${made.height || this.height}px`;
    this.plot.setAttribute("aria-label", `${this.titleNode.textContent}. ${made.says || made.sub || ""}`);
    if (!this.chart) {
      this.chart = echarts.init(this.plot, null, { renderer: "canvas" });
      this.chart.getZr().on("click", (event) => this.click && this.click(this, event));
    }
    this.chart.resize();
    this.chart.setOption(styled(made.option), { notMerge: true });
    if (!this.numbers.hidden) this.list(true);
  }

  pressed(event) {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (this.key && this.key(event)) event.preventDefault();
    else if (way && app.model.steps.length > 1) {
      event.preventDefault();
      moveStep(way);
    }
  }

  // The numbers behind the drawing as a table, for readers of screens and for looking up.
  list(again) {
    if (!again && !this.numbers.hidden) {
      this.numbers.hidden = true;
      return;
    }
    const [head, ...rows] = this.made.rows;
    this.numbers.replaceChildren(
      el(
        "table",
        null,
        el("caption", { class: "hidden-text" }, this.title),
        el("thead", null, el("tr", null, head.map((name) => el("th", { scope: "col" }, name)))),
        el(
          "tbody",
          null,
          rows.slice(0, 500).map((row) =>
            el("tr", null, row.map((cell) => (typeof cell === "number" ? el("td", { class: "number" }, number(cell, 5)) : el("td", null, nameOf(String(cell ?? ""))))),
            ),
          ),
        ),
      ),
    );
    this.numbers.hidden = false;
  }

  // A picture of its own, with a title and a legend, as it would stand in a text.
  picture(kind) {
    const width = 900;
    const made = this.make(app.state.now, width);
    const runs = made.runs || app.state.shown;
    const says = [runs.length === 1 && !(made.sub || "").includes(shortened(runs[0].name, 40)) ? shortened(runs[0].name, 40) : "", made.sub || "", narrowed(app.state.now)].filter(Boolean).join("; ");
    const lines = Math.max(1, Math.min(3, Math.ceil(says.length / 135)));
    const height = (made.height || this.height) + 76 + 16 * lines;
    const option = styled(made.option);
    const down = 46 + 16 * lines;
    const shift = (grid) => ({ ...grid, top: (grid.top || 0) + down });
    option.grid = Array.isArray(option.grid) ? option.grid.map(shift) : shift(option.grid || {});
    for (const grid of [option.grid].flat()) if (typeof grid.bottom === "number" && !grid.height) grid.bottom += 30;
    if (option.visualMap) option.visualMap = { ...option.visualMap, top: (option.visualMap.top || 0) + down };
    if (option.legend) option.legend = option.legend.top === undefined ? { ...option.legend, bottom: 8 } : { ...option.legend, top: option.legend.top + down };
    option.backgroundColor = paint("card");
    option.tooltip = { show: false };
    option.title = [
      ...[option.title || []].flat().map((title) => ({ ...title, top: title.top + down })),
      { text: made.title || this.title, left: 14, top: 10, textStyle: { color: paint("ink"), fontSize: 16, fontWeight: 600 } },
      { text: shortened(says, 400), left: 14, top: 32, textStyle: { color: paint("soft"), fontSize: 12, lineHeight: 16, fontWeight: 400, width: width - 28, overflow: "break" } },
    ];
    if (runs.length > 1) option.graphic = legend(runs, width, height);
    if (kind === "svg") {
      const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width, height });
      chart.setOption(option);
      download(`${this.id}.svg`, new Blob([chart.renderToSVGString()], { type: "image/svg+xml" }));
      chart.dispose();
      return;
    }
    // Finer than the chart's own canvas, so that all is drawn anew at once: its own is filled bit by bit, in several frames.
    const chart = echarts.init(el("div"), null, { renderer: "canvas", width, height, devicePixelRatio: 1 });
    chart.setOption(option);
    chart.getZr().flush();
    chart.renderToCanvas({ pixelRatio: 3 }).toBlob((blob) => {
      download(`${this.id}.png`, blob);
      chart.dispose();
    }, "image/png");
  }
}

// What of the matrices is chosen, where it is not all of them.
const narrowed = ({ kind, layer }) => [kind === "all" ? "" : `${kind} matrices`, layer === "all" ? "" : `layer ${layer}`].filter(Boolean).join(", ");

function legend(runs, width, height) {
  let x = 14;
  return runs.flatMap((run) => {
    const text = shortened(run.name, 28);
    const at = x;
    x += 40 + text.length * 7;
    if (x > width) return [];
    return [
      { type: "line", shape: { x1: at, y1: height - 14, x2: at + 20, y2: height - 14 }, style: { stroke: colorOf(run), lineWidth: 2.5, lineDash: DASHES[run.line] } },
      { type: "text", left: at + 26, top: height - 20, style: { text, fill: paint("ink"), font: `12px ${getComputedStyle(document.body).fontFamily}` } },
    ];
  });
}

// The look that all drawings share.
function styled(option) {
  const each = (value, change) => (Array.isArray(value) ? value.map(change) : value ? change(value) : value);
  const axis = (given) => ({
    axisLine: { show: given.type === "category", lineStyle: { color: paint("line") } },
    axisTick: { show: false },
    splitLine: { show: given.type !== "category", lineStyle: { color: paint("hair") } },
    nameTextStyle: { color: paint("soft"), fontSize: 12 },
    ...given,
    axisLabel: { color: paint("soft"), fontSize: 11.5, hideOverlap: true, ...(given.axisLabel || {}) },
  });
  return {
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
    ...option,
    grid: each(option.grid, (given) => ({ outerBoundsMode: "none", ...given })), // where it is put, not where labels fit
    xAxis: each(option.xAxis, axis),
    yAxis: each(option.yAxis, axis),
    tooltip: {
      confine: true,
      backgroundColor: paint("raised"),
      borderColor: paint("line"),
      borderWidth: 1,
      padding: [8, 12],
      extraCssText: "border-radius:10px;box-shadow:0 8px 26px rgba(0,0,0,.16)",
      transitionDuration: 0,
      axisPointer: { lineStyle: { color: paint("faint"), type: [3, 3] }, label: { show: false } },
      ...(option.tooltip || {}),
    },
  };
}

// A tooltip: a head, and a row each of a run's line, its name and a number.
function tip(head, rows) {
  return el(
    "div",
    { class: "tip" },
    head ? el("div", { class: "tip-head" }, head) : null,
    rows.map(({ run, name, value, sub }) =>
      el("div", { class: "tip-row" }, run ? swatch(run) : null, el("bdi", { class: "name" }, shortened(name, 40)), el("b", null, value), sub ? el("span", { class: "sub" }, sub) : null),
    ),
  );
}

const lineOf = (run, extra) => ({
  type: "line",
  name: run.name,
  color: colorOf(run),
  symbol: "circle",
  symbolSize: 5,
  showSymbol: false,
  lineStyle: { width: 2, type: DASHES[run.line], color: colorOf(run) },
  emphasis: { disabled: true },
  ...extra,
});

// Where a later line lies on one, the one beneath is drawn wider, so that both are seen.
function rimmed(lines, log) {
  const at = (line) => new Map(line.data.filter((point) => point[1] !== null && Number.isFinite(point[1]) && !(log && point[1] <= 0)).map(([x, y]) => [x, log ? Math.log10(y) : y]));
  const curves = lines.map(at);
  const [low, high] = extent(curves.flatMap((curve) => [...curve.values()]));
  const beside = 0.008 * (high - low); // less than the width of a line
  const covers = (over, under) => {
    const both = [...under].filter(([x]) => over.has(x));
    return both.length > 1 && both.filter(([x, y]) => Math.abs(over.get(x) - y) <= beside).length > both.length / 2;
  };
  return lines.map((line, i) => {
    const above = curves.slice(i + 1).filter((curve, j) => (lines[i + 1 + j].xAxisIndex || 0) === (line.xAxisIndex || 0) && covers(curve, curves[i])).length;
    return above ? { ...line, lineStyle: { ...line.lineStyle, width: line.lineStyle.width + 2.6 * Math.min(above, 2) } } : line;
  });
}

// Curves in words, for readers of screens: where each begins and ends.
function spoken(curves) {
  return curves
    .map(({ run, name, data }) => {
      const known = data.filter((point) => Number.isFinite(point[1]));
      if (!known.length) return "";
      const [first, last] = [known[0], known[known.length - 1]];
      return `${run.name}${name ? `, ${name}` : ""}: ${number(first[1])} at ${first[0]}${known.length > 1 ? `, ${number(last[1])} at ${last[0]}` : ""}`;
    })
    .filter(Boolean)
    .join("; ");
}

// The line that stands at the selected step.
const stepMark = (selection) => ({
  silent: true,
  symbol: "none",
  animation: false,
  label: { show: false },
  lineStyle: { color: paint("faint"), type: [3, 3], width: 1 },
  data: [{ xAxis: selection.step }],
});

// A click in a drawing over training takes the nearest checkpoint.
function pickStep(card, event) {
  if (!app.model.trained) return;
  const found = card.chart.convertFromPixel({ xAxisIndex: 0 }, event.offsetX);
  if (!Number.isFinite(found)) return;
  const near = app.model.steps.reduce((best, step) => (Math.abs(step - found) < Math.abs(best - found) ? step : best));
  app.state.set({ step: near });
}

function moveStep(way) {
  const { steps } = app.model;
  const at = Math.max(0, Math.min(steps.length - 1, steps.indexOf(app.state.now.step) + way));
  app.state.set({ step: steps[at] });
}
