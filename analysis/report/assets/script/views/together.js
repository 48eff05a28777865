// How ΔM and ΔD go together: the cloud of matrices with its line, and r over training.

function togetherView() {
  const { model } = app;
  if (!model.pairs.length) return;
  const node = section("together", "Do magnitude and direction go together?", "Every point is a matrix. The DoRA paper reads methods off this cloud: r falls below 0 where what turns more is rescaled less. r is Pearson’s correlation, with its 95 % interval.");
  const cells = grid(node);
  new Card(cells, {
    id: "cloud", title: "ΔM against ΔD", width: model.trained && model.runs.length < 4 ? "w7" : "w12", height: 400, make: cloudOf, click: pickMatrix,
    tools: (selection) => [
      app.state.shown.length > 1 ? segments("Runs", [["apart", "apart"], ["together", "together"]], selection.cloud, (cloud) => app.state.set({ cloud })) : null,
      model.trained ? segments("Points", [["step", "this step"], ["trail", "up to it"]], selection.points, (points) => app.state.set({ points })) : null,
    ],
  });
  if (model.trained) new Card(cells, { id: "correlation", title: "r over training", width: model.runs.length < 4 ? "w5" : "w7", height: 300, make: correlationOf, click: pickStep });
  const table = el("div", { class: `card scroll ${model.trained && model.runs.length > 3 ? "w5" : "w12"}` });
  cells.append(table);
  lazily(table, () => table.replaceChildren(fitsTable(app.state.now)));
}

// ΔD and ΔM of every chosen matrix, at the step or at all up to it.
function cloudPoints(run, selection, upTo) {
  const last = app.model.place(run, selection.step);
  return last < 0 ? [] : pointsBetween(run, selection, upTo ? 0 : last, last);
}

function pointsBetween(run, selection, from, last) {
  const { model } = app;
  const [x, y] = ["d", "m"].map((measure) => model.column(`${run.index}.changes.${selection.pairs}.${selection.axis}.${measure}`));
  if (!x || !y) return [];
  const steps = run.steps.length;
  const found = [];
  for (const module of model.chosen(selection)) {
    const position = run.places.get(module.index);
    if (position === undefined) continue;
    for (let place = from; place <= last; place++) {
      const [a, b] = [x.values[position * steps + place], y.values[position * steps + place]];
      if (Number.isFinite(a) && Number.isFinite(b) && (a > 0 || b > 0)) found.push([a, b, module.index, place]);
    }
  }
  return found;
}

// The fit at every checkpoint of a run; kept, as most selections leave it as it is.
const fitsKept = new Map();
function fitsOf(run, selection) {
  const key = [run.index, selection.pairs, selection.axis, selection.kind, selection.layer].join("|");
  if (!fitsKept.has(key)) fitsKept.set(key, run.steps.map((step, place) => ({ step, ...fitOf(pointsBetween(run, selection, place, place)) })));
  return fitsKept.get(key);
}

const fitOf = (points) => correlation(points.map((point) => point[0]), points.map((point) => point[1]));

const PANEL = 76; // pixels of a panel of the cloud above and below its axes

function cloudOf(selection, width) {
  const { model, state } = app;
  const trail = selection.points === "trail" && model.trained;
  const clouds = state.shown.map((run) => ({ run, points: cloudPoints(run, selection, trail) })).filter(({ points }) => points.length);
  if (!clouds.length) return { empty: model.trained && selection.step === model.steps[0] ? "Nothing has moved yet at this step." : noChanges(selection).empty };
  for (const cloud of clouds) cloud.fit = fitOf(cloud.points);
  const apart = clouds.length > 1 && selection.cloud === "apart";
  const panels = apart ? clouds.map((cloud) => [cloud]) : [clouds];
  const most = Math.max(1, Math.min(5, Math.floor(width / 220)));
  const columns = Math.ceil(panels.length / Math.ceil(panels.length / most)); // rows as even as can be
  const rows = Math.ceil(panels.length / columns);
  const high = apart ? (columns === 1 || columns === 2 ? Math.min(280, width / columns / 1.3) : 210) : 330;
  const option = { grid: [], xAxis: [], yAxis: [], title: [], series: [] };
  panels.forEach((panel, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    addPanel(option, panel, { at, apart, selection, left: (width * column) / columns, width: width / columns, top: row * (high + PANEL) + (apart ? 44 : 12), high, outer: row === rows - 1 || at + columns >= panels.length, first: column === 0 });
  });
  option.tooltip = {
    trigger: "item",
    formatter: (hit) => {
      if (!Array.isArray(hit.value) || hit.value.length < 4) return "";
      const run = model.runs[Number(hit.seriesId.split("-")[1])];
      const [x, y, module, place] = hit.value;
      return tip(model.modules[module].label, [{ run, name: run.name, value: "", sub: model.trained ? `step ${run.steps[place]}` : null }, { name: "ΔD", value: number(x, 4) }, { name: "ΔM", value: number(y, 4) }]);
    },
  };
  return {
    sub: `by ${selection.axis}, ${PAIRS[selection.pairs]}${model.trained ? `, ${trail ? "up to" : "at"} step ${selection.step}` : ""}; a point is a matrix${apart ? ", each run on its own scale" : ""}`,
    says: clouds.map(({ run, fit }) => `${run.name}: r ${decimals(fit.r, 2)}, slope ${number(fit.slope)}, ${fit.n} points`).join("; "),
    rows: [["run", "module", "step", "ΔD", "ΔM"], ...clouds.flatMap(({ run, points }) => points.map(([x, y, module, place]) => [run.name, model.modules[module].name, run.steps[place], x, y]))],
    runs: clouds.map(({ run }) => run), height: rows * (high + PANEL) + (apart ? 22 : 10), option,
  };
}

// One panel of the cloud: its axes, and for each run in it the points and the line.
function addPanel(option, clouds, { at, apart, selection, left, width, top, high, outer, first }) {
  const ends = clouds.flatMap(({ fit }) => (fit.n < 3 ? [] : [fit.xLow, fit.xHigh].map((at) => [at, fit.intercept + fit.slope * at])));
  const [x, y] = [0, 1].map((i) => {
    const [low, top_] = extent([...clouds.flatMap(({ points }) => points), ...ends].map((point) => point[i]));
    const room = (top_ - low || Math.abs(top_) || 1) * 0.08;
    return [Math.max(0, low - room), top_ + room];
  });
  const inset = first ? 70 : 58;
  option.grid.push({ left: left + inset, width: width - inset - 14, top, height: high });
  const labels = { formatter: tick, showMinLabel: false, showMaxLabel: false, fontSize: apart ? 11 : 11.5 };
  option.xAxis.push({ type: "value", gridIndex: at, min: x[0], max: x[1], splitNumber: apart ? (width < 230 ? 2 : 3) : 5, name: outer ? (apart ? "ΔD" : UNITS.d) : "", nameLocation: "middle", nameGap: 26, axisLine: { show: true, lineStyle: { color: paint("line") } }, axisLabel: labels });
  option.yAxis.push({ type: "value", gridIndex: at, min: y[0], max: y[1], splitNumber: apart ? 3 : 5, name: first ? (apart ? "ΔM" : UNITS.m) : "", nameLocation: "middle", nameGap: apart ? 50 : 56, axisLabel: labels });
  if (apart) {
    const [{ run, fit }] = clouds;
    option.title.push({
      text: `{run|${shortened(run.name, 26).replace(/[{}|]/g, "·")}}\n{fit|r = ${decimals(fit.r, 2)}, slope ${number(fit.slope, 2)}}`, left: left + inset - 4, top: top - 40, padding: 0,
      textStyle: { lineHeight: 16, rich: { run: { color: colorOf(run), fontWeight: 600, fontSize: 12.5, lineHeight: 17 }, fit: { color: paint("soft"), fontSize: 12, lineHeight: 16 } } },
    });
  }
  const dense = clouds.reduce((sum, { points }) => sum + points.length, 0) > 200;
  for (const { run, points, fit } of clouds) {
    option.series.push({
      type: "scatter", id: `points-${run.index}`, name: run.name, xAxisIndex: at, yAxisIndex: at, symbolSize: dense ? 5 : 9,
      itemStyle: { color: colorOf(run), opacity: dense ? 0.45 : 0.75, borderColor: paint("card"), borderWidth: dense ? 0 : 0.8 },
      data: points.map((point) => (point[2] === selection.module ? { value: point, symbolSize: 15, itemStyle: { borderColor: paint("ink"), borderWidth: 2, opacity: 1 } } : point)),
    });
    option.series.push(lineOf(run, { id: `fit-${run.index}`, silent: true, tooltip: { show: false }, xAxisIndex: at, yAxisIndex: at, data: lineThrough(fit, y[0], y[1]) }));
  }
}

// The line over the points' own range, cut where it would leave the drawing.
function lineThrough(fit, low, high) {
  if (!Number.isFinite(fit.slope) || fit.n < 3) return [];
  let [from, to] = [fit.xLow, fit.xHigh];
  if (fit.slope) {
    const ends = [(low - fit.intercept) / fit.slope, (high - fit.intercept) / fit.slope].sort((a, b) => a - b);
    from = Math.max(from, ends[0]);
    to = Math.min(to, ends[1]);
  }
  return [from, to].map((x) => [x, fit.intercept + fit.slope * x]);
}

function pickMatrix(card, event) {
  let best = null;
  card.made.option.series.forEach((series, seriesIndex) => {
    if (series.type !== "scatter") return;
    for (const item of series.data) {
      const value = item.value || item;
      const [x, y] = card.chart.convertToPixel({ seriesIndex }, [value[0], value[1]]);
      const away = Math.hypot(x - event.offsetX, y - event.offsetY);
      if (away < 12 && (!best || away < best.away)) best = { away, module: value[2], run: Number(series.id.split("-")[1]) };
    }
  });
  if (best) app.state.set({ module: best.module, run: best.run });
}

function correlationOf(selection) {
  const { model, state } = app;
  const curves = state.shown
    .map((run) => ({ run, fits: fitsOf(run, selection) }))
    .filter(({ fits }) => fits.some((fit) => fit.n > 2 && Number.isFinite(fit.r)));
  if (!curves.length) return { empty: "There are too few matrices in this selection for a correlation; choose all kinds or all layers." };
  const banded = curves.length === 1 ? curves[0] : curves.find(({ run }) => run.index === selection.run);
  const finite = (value) => (Number.isFinite(value) ? value : null);
  const bands = banded
    ? [
        { type: "line", id: "low", stack: "band", silent: true, symbol: "none", lineStyle: { opacity: 0 }, data: banded.fits.map((fit) => [fit.step, finite(fit.low)]), tooltip: { show: false } },
        { type: "line", id: "high", stack: "band", stackStrategy: "all", silent: true, symbol: "none", lineStyle: { opacity: 0 }, areaStyle: { color: colorOf(banded.run), opacity: 0.13 }, data: banded.fits.map((fit) => [fit.step, finite(fit.high - fit.low)]), tooltip: { show: false } },
      ]
    : [];
  return {
    sub: `over the matrices of one step, by ${selection.axis}${banded ? `; shaded: 95 % interval of ${shortened(banded.run.name, 30)}` : ""}`,
    says: spoken(curves.map(({ run, fits }) => ({ run, data: fits.map((fit) => [fit.step, fit.r]) }))),
    rows: [["run", "step", "r", "low", "high", "slope", "n"], ...curves.flatMap(({ run, fits }) => fits.map((fit) => [run.name, fit.step, fit.r, fit.low, fit.high, fit.slope, fit.n]))],
    runs: curves.map(({ run }) => run), height: app.model.runs.length < 4 ? 330 : 300,
    option: {
      grid: { left: 46, right: 14, top: 16, bottom: 48 },
      xAxis: xAxisOf(),
      yAxis: { type: "value", min: -1, max: 1, interval: 0.5, axisLabel: { formatter: (value) => number(value) } },
      tooltip: {
        trigger: "axis",
        formatter: (hits) => {
          const step = hits.length ? hits[0].value[0] : 0;
          return tip(`step ${step}`, curves.flatMap(({ run, fits }) => fits.filter((fit) => fit.step === step).map((fit) => ({ run, name: run.name, value: decimals(fit.r, 3), sub: `[${decimals(fit.low, 2)}, ${decimals(fit.high, 2)}]` }))));
        },
      },
      series: [...bands, ...rimmed(curves.map(({ run, fits }, i) => lineOf(run, { id: `r-${run.index}`, data: fits.map((fit) => [fit.step, fit.n > 2 ? finite(fit.r) : null]), markLine: i === 0 ? { ...stepMark(selection), data: [{ yAxis: 0, lineStyle: { color: paint("soft"), type: "solid" } }, { xAxis: selection.step }] } : undefined })))],
    },
  };
}

function fitsTable(selection) {
  const { model, state } = app;
  const trail = selection.points === "trail" && model.trained;
  const fits = state.shown.map((run) => [run, fitOf(cloudPoints(run, selection, trail))]);
  const cell = (text) => el("td", { class: "number" }, text);
  return el(
    "table",
    null,
    el("caption", { class: "hidden-text" }, "The correlation of ΔM with ΔD"),
    el("thead", null, el("tr", null, el("th", { scope: "col" }, "run"), ["r", "95 % interval", "slope ΔM/ΔD", "points"].map((text) => el("th", { scope: "col", class: "number" }, text)))),
    el("tbody", null, fits.map(([run, fit]) => el("tr", null, el("td", null, el("span", { class: "run-name" }, swatch(run), nameOf(run.name, 40))), cell(decimals(fit.r, 3)), cell(Number.isFinite(fit.low) ? `${decimals(fit.low, 2)} to ${decimals(fit.high, 2)}` : "–"), cell(number(fit.slope, 3)), cell(count(fit.n))))),
  );
}
