// How ΔM and ΔD go together: the cloud of matrices with its line, and r over training.

function togetherView() {
  const { model } = app;
  if (!model.pairs.length) return;
  const node = section("together", "Do magnitude and direction go together?", "Every point is a matrix. DoRA reads off the slope: a negative one where what turns more is rescaled less, as in full fine-tuning. r is Pearson’s correlation, with its 95 % interval.");
  const cells = grid(node);
  new Card(cells, {
    id: "cloud", title: "ΔM against ΔD", width: model.trained ? "w7" : "w12", height: 400, make: cloudOf, click: pickMatrix,
    tools: (selection) => (model.trained ? [segments("Points", [["step", "this step"], ["trail", "up to it"]], selection.points, (points) => app.state.set({ points }))] : []),
  });
  if (model.trained) new Card(cells, { id: "correlation", title: "r over training", width: "w5", height: 400, make: correlationOf, click: pickStep });
  const table = el("div", { class: "card w12 scroll" });
  cells.append(table);
  const draw = () => table.replaceChildren(fitsTable(app.state.now));
  draw();
  app.sections.push((names) => [...names].some((name) => !NOT_DRAWN.has(name)) && draw());
}

// ΔD and ΔM of every chosen matrix, at the step or at all up to it.
function cloudPoints(run, selection, upTo) {
  const { model } = app;
  const names = ["d", "m"].map((measure) => `changes.${selection.pairs}.${selection.axis}.${measure}`);
  const last = model.place(run, selection.step);
  if (last < 0 || !model.has(run, names[0])) return [];
  const found = [];
  for (let place = upTo ? 0 : last; place <= last; place++) {
    for (const module of model.chosen(selection)) {
      const [x, y] = names.map((name) => model.value(run, name, module.index, place));
      if (Number.isFinite(x) && Number.isFinite(y) && (x > 0 || y > 0)) found.push([x, y, module.index, place]);
    }
  }
  return found;
}

const fitOf = (points) => correlation(points.map((point) => point[0]), points.map((point) => point[1]));

function cloudOf(selection) {
  const { model, state } = app;
  const trail = selection.points === "trail" && model.trained;
  const clouds = state.shown.map((run) => ({ run, points: cloudPoints(run, selection, trail) })).filter(({ points }) => points.length);
  if (!clouds.length) return { empty: model.trained && selection.step === model.steps[0] ? "Nothing has moved yet at this step." : noChanges(selection).empty };
  const x = extent(clouds.flatMap(({ points }) => points.map((point) => point[0])));
  const y = extent(clouds.flatMap(({ points }) => points.map((point) => point[1])));
  const room = (range, share) => (range[1] - range[0] || Math.abs(range[1]) || 1) * share;
  const fits = clouds.map(({ points }) => fitOf(points));
  return {
    sub: `by ${selection.axis}, ${PAIRS[selection.pairs]}${model.trained ? `, ${trail ? "up to" : "at"} step ${selection.step}` : ""}; a point is a matrix`,
    says: clouds.map(({ run }, i) => `${run.name}: r ${number(fits[i].r)}, slope ${number(fits[i].slope)}, ${fits[i].n} points`).join("; "),
    rows: [["run", "module", "step", "ΔD", "ΔM"], ...clouds.flatMap(({ run, points }) => points.map(([a, b, module, place]) => [run.name, model.modules[module].name, run.steps[place], a, b]))],
    runs: clouds.map(({ run }) => run), height: 400,
    option: {
      grid: { left: 72, right: 22, top: 16, bottom: 48 },
      xAxis: { type: "value", scale: true, min: Math.max(0, x[0] - room(x, 0.06)), max: x[1] + room(x, 0.06), name: UNITS.d, nameLocation: "middle", nameGap: 28, axisLine: { show: true, lineStyle: { color: paint("line") } }, axisLabel: { formatter: tick, showMinLabel: false, showMaxLabel: false } },
      yAxis: { type: "value", scale: true, min: Math.max(0, y[0] - room(y, 0.06)), max: y[1] + room(y, 0.06), name: UNITS.m, nameLocation: "middle", nameGap: 54, axisLabel: { formatter: tick, showMinLabel: false, showMaxLabel: false } },
      tooltip: {
        trigger: "item",
        formatter: (hit) => {
          if (!Array.isArray(hit.value) || hit.value.length < 4) return "";
          const run = clouds[Number(hit.seriesId.split("-")[1])].run;
          const [a, b, module, place] = hit.value;
          return tip(model.modules[module].label, [{ run, name: run.name, value: "", sub: `step ${run.steps[place]}` }, { name: "ΔD", value: number(a, 4) }, { name: "ΔM", value: number(b, 4) }]);
        },
      },
      series: [
        ...clouds.map(({ run, points }, i) => ({
          type: "scatter", id: `points-${i}`, name: run.name, symbolSize: points.length > 600 ? 5 : 9, itemStyle: { color: colorOf(run), opacity: points.length > 600 ? 0.35 : 0.75, borderColor: paint("card"), borderWidth: 0.8 }, large: false,
          data: points.map((point) => (point[2] === selection.module ? { value: point, symbolSize: 16, itemStyle: { borderColor: paint("ink"), borderWidth: 2, opacity: 1 } } : point)),
        })),
        ...clouds.map(({ run }, i) => lineOf(run, { id: `fit-${i}`, silent: true, tooltip: { show: false }, showSymbol: false, clip: true, data: lineThrough(fits[i], y[0] - room(y, 0.05), y[1] + room(y, 0.05)) })),
      ],
    },
  };
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
  const { state } = app;
  const option = card.chart.getOption();
  let best = null;
  for (const series of option.series.filter((one) => one.type === "scatter")) {
    for (const item of series.data) {
      const value = item.value || item;
      const [px, py] = card.chart.convertToPixel({ gridIndex: 0 }, [value[0], value[1]]);
      const away = Math.hypot(px - event.offsetX, py - event.offsetY);
      if (away < 12 && (!best || away < best.away)) best = { away, value, run: state.shown.find((run) => run.name === series.name) };
    }
  }
  if (best) state.set({ module: best.value[2], run: best.run.index });
}

function correlationOf(selection) {
  const { model, state } = app;
  const curves = state.shown
    .map((run) => ({ run, fits: run.steps.map((step, place) => ({ step, ...fitOf(cloudPoints(run, { ...selection, step: run.steps[place] }, false)) })) }))
    .filter(({ fits }) => fits.some((fit) => Number.isFinite(fit.r)));
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
    rows: [["run", "step", "r", "low", "high", "slope", "n"], ...curves.flatMap(({ run, fits }) => fits.map((fit) => [run.name, fit.step, fit.r, fit.low, fit.high, fit.slope, fit.n]))],
    runs: curves.map(({ run }) => run), height: 400,
    option: {
      grid: { left: 46, right: 14, top: 16, bottom: 48 },
      xAxis: xAxisOf(),
      yAxis: { type: "value", min: -1, max: 1, interval: 0.5, axisLabel: { formatter: (value) => number(value) } },
      tooltip: {
        trigger: "axis",
        formatter: (hits) => {
          const step = hits.length ? hits[0].value[0] : 0;
          return tip(`step ${step}`, curves.flatMap(({ run, fits }) => fits.filter((fit) => fit.step === step).map((fit) => ({ run, name: run.name, value: number(fit.r, 3), sub: `[${number(fit.low, 2)}, ${number(fit.high, 2)}]` }))));
        },
      },
      series: [...bands, ...curves.map(({ run, fits }, i) => lineOf(run, { id: `r-${run.index}`, data: fits.map((fit) => [fit.step, finite(fit.r)]), markLine: i === 0 ? { ...stepMark(selection), data: [{ yAxis: 0, lineStyle: { color: paint("soft"), type: "solid" } }, { xAxis: selection.step }] } : undefined }))],
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
    el("tbody", null, fits.map(([run, fit]) => el("tr", null, el("td", null, el("span", { class: "run-name" }, swatch(run), nameOf(run.name, 40))), cell(number(fit.r, 3)), cell(Number.isFinite(fit.low) ? `${number(fit.low, 2)} to ${number(fit.high, 2)}` : "–"), cell(number(fit.slope, 3)), cell(count(fit.n))))),
  );
}
