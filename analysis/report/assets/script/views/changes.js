// ΔM and ΔD over training, by row and by column, and how unlike the two axes are. With one checkpoint: over layers.

function changesView() {
  const { model } = app;
  const over = model.trained ? "over training" : "by layer";
  const node = section("changes", `Magnitude and direction ${over}`, `ΔM is how much the lengths of a matrix’ rows or columns changed, ΔD how far they turned. Means over the chosen matrices${model.trained ? "; click to choose a step" : ""}.`);
  const cells = grid(node);
  if (!model.pairs.length) {
    cells.append(el("div", { class: "card w12 empty" }, noChanges(app.state.now).empty));
    return;
  }
  for (const measure of ["m", "d"]) {
    new Card(cells, {
      id: `change-${measure}`, title: `${CHANGES[measure]} ${over}`, width: "w4", height: 342,
      make: (selection) => changeOf(measure, selection),
      tools: (selection) => (measure === "d" ? [segments("Scale", [["linear", "linear"], ["log", "log"]], selection.scale, (scale) => app.state.set({ scale }))] : []),
      click: pickStep,
    });
  }
  new Card(cells, {
    id: "asymmetry", title: "Rows against columns", width: "w4", height: 342, make: asymmetryOf, click: pickStep,
    tools: (selection) => [segments("Measure", [["m", "ΔM"], ["d", "ΔD"]], selection.asymmetry, (asymmetry) => app.state.set({ asymmetry }))],
  });
}

const noChanges = (selection, runs) => ({ empty: unmeasured(["changes"], `No change ${PAIRS[selection.pairs]} was measured.`, runs) });

// Why a view is empty: what its parts say; of W₀, which the top of the page explains, only that it is missing.
const NEEDS_BASE = "This needs W₀, the weights before the training: give the base model with --base.";
function unmeasured(parts, otherwise, runs) {
  const { model, state } = app;
  if ((runs || state.shown).every((run) => !run.base)) return NEEDS_BASE;
  return model.notes(...parts).map((note) => shortened(note, 300)).join(" ") || otherwise;
}

// x and y of a run: over its checkpoints, or over layers where there is one.
function pointsOf(run, name, selection) {
  const { model } = app;
  if (!model.has(run, name)) return [];
  if (model.trained) return model.curve(run, name, selection).map((value, place) => [run.steps[place], value]);
  const modules = model.chosen(selection);
  return model.layers.map((layer) => [layer, mean(modules.filter((module) => module.layer === layer).map((module) => model.value(run, name, module.index, run.steps.length - 1)))]);
}

function xAxisOf(extra) {
  const { model } = app;
  const training = model.trained;
  const values = training ? model.steps : model.layers;
  return { type: "value", min: values[0], max: values[values.length - 1], minInterval: 1, name: training ? "step" : "layer", nameLocation: "middle", nameGap: 24, splitLine: { show: false }, axisLine: { show: true, lineStyle: { color: paint("line") } }, axisLabel: { formatter: count, alignMaxLabel: "right" }, ...extra };
}

const finiteOnly = (points, log) => points.map(([x, y]) => [x, Number.isFinite(y) && !(log && y <= 0) ? y : null]);
const NOISE = 1e-9; // of the largest change: below, as before the first step, it is the rounding of W′

// What has a line: each run; or, of one run's one checkpoint, each kind of matrix.
function linesOf(runs, selection) {
  const { model } = app;
  const kinds = model.kinds.filter((kind) => model.chosen(selection).some((module) => module.kind === kind));
  if (model.trained || runs.length > 1 || kinds.length < 2 || kinds.length > 8) return runs.map((run) => ({ run, name: run.name, of: selection }));
  return kinds.map((kind, i) => ({ run: runs[0], name: kind, of: { ...selection, kind }, color: kindColor(i) }));
}

function changeOf(measure, selection) {
  const { model, state } = app;
  const log = selection.scale === "log";
  const axes = ["row", "column"];
  const names = axes.map((axis) => `changes.${selection.pairs}.${axis}.${measure}`);
  const runs = state.shown.filter((run) => names.some((name) => model.has(run, name)));
  if (!runs.length) return noChanges(selection);
  const lines = linesOf(runs, selection);
  const curves = names.map((name) => lines.map((line) => finiteOnly(pointsOf(line.run, name, line.of), log)));
  const [low, high] = extent(curves.flat(2).map((point) => point[1]));
  const range = log ? { min: 10 ** Math.floor(Math.log10(Math.max(low, high * 1e-4))), max: 10 ** Math.ceil(Math.log10(high)) } : { min: 0, max: roundUp(high), interval: roundUp(high) / 2 };
  const top = [{ top: 24, height: 116 }, { top: 184, height: 116 }];
  const byKind = lines[0].color !== undefined;
  return {
    sub: `${byKind ? "each kind of" : "mean of"} ${model.measured(runs, names[0], selection)}, ${PAIRS[selection.pairs]}`,
    says: lines.map((line, i) => axes.map((axis, a) => `${line.name} by ${axis}: ${number(valueAt(curves[a][i], selection))}`).join(", ")).join("; "),
    rows: [[byKind ? "kind" : "run", "axis", model.trained ? "step" : "layer", CHANGES[measure]], ...axes.flatMap((axis, a) => lines.flatMap((line, i) => curves[a][i].map(([x, y]) => [line.name, axis, x, y])))],
    height: byKind ? 392 : 342, runs: byKind ? [] : runs,
    option: {
      grid: top.map((place) => ({ left: 58, right: 14, ...place })),
      legend: byKind ? { ...kindLegend(lines.map((line) => line.name)), bottom: 0, left: 8, type: "plain" } : undefined,
      xAxis: [xAxisOf({ gridIndex: 0, name: "", axisLabel: { show: false } }), xAxisOf({ gridIndex: 1 })],
      yAxis: ["rows", "columns"].map((text, i) => ({ type: log ? "log" : "value", gridIndex: i, ...range, name: `${UNITS[measure]}, by ${text}`, nameLocation: "end", nameGap: 10, nameTextStyle: { align: "left", padding: [0, 0, 0, -48], color: paint("soft"), fontSize: 12 }, axisLabel: { formatter: tick }, splitNumber: 3 })),
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      tooltip: { trigger: "axis", formatter: (hits) => tipOver(hits, 2, lines) },
      series: rimmed(curves.flatMap((of, a) =>
        of.map((data, i) => {
          const line = lineOf(lines[i].run, { data, name: lines[i].name, xAxisIndex: a, yAxisIndex: a, showSymbol: !model.trained || data.length < 3, id: `${a}-${i}`, markLine: model.trained && i === 0 ? stepMark(selection) : undefined });
          return byKind ? { ...line, color: lines[i].color, lineStyle: { width: 2, color: lines[i].color } } : line;
        }),
      ), log),
    },
  };
}

function valueAt(points, selection) {
  const { model } = app;
  if (!model.trained) return mean(points.map((point) => point[1]));
  let found = NaN;
  for (const [x, y] of points) if (x <= selection.step && y !== null) found = y;
  return found;
}

// The tooltip of lines over training: under the step a row for each line, by rows and by columns. The id of a series is
// its axis and its line.
function tipOver(hits, axes, lines, show) {
  const { model } = app;
  const found = new Map();
  for (const hit of hits) {
    const [axis, index] = hit.seriesId.split("-").map(Number);
    if (!found.has(index)) found.set(index, []);
    found.get(index)[axis] = hit.value[1];
  }
  const shown = show || ((value) => number(value, 4));
  return tip(
    `${model.trained ? "step" : "layer"} ${hits.length ? hits[0].value[0] : ""}`,
    [...found].map(([index, values]) => ({ run: lines[index].color ? null : lines[index].run, name: lines[index].name, value: shown(values[0]), sub: axes === 2 ? `columns ${shown(values[1])}` : null })),
  );
}

function asymmetryOf(selection) {
  const { model, state } = app;
  const measure = selection.asymmetry === "m" ? "m" : "d";
  const names = ["row", "column"].map((axis) => `changes.${selection.pairs}.${axis}.${measure}`);
  const runs = state.shown.filter((run) => names.every((name) => model.has(run, name)));
  if (!runs.length) return noChanges(selection);
  const curves = runs.map((run) => {
    const [rows, columns] = names.map((name) => pointsOf(run, name, selection));
    const least = NOISE * Math.max(...rows.map((point) => point[1]).filter(Number.isFinite), 0);
    return rows.map(([x, row], i) => [x, row > least && columns[i][1] > least ? Math.log2(row / columns[i][1]) : null]);
  });
  const size = Math.max(...curves.flat().map((point) => Math.abs(point[1] || 0)));
  const most = [1.1, 1.2, 1.5, 2, 3, 4, 6, 8, 16, 32].map(Math.log2).find((step) => step >= size) || Math.ceil(size);
  return {
    title: `Rows against columns: ${CHANGES[measure]}`,
    sub: `${CHANGES[measure]} by row ÷ ${CHANGES[measure]} by column; 1 where both axes move alike`,
    says: runs.map((run, r) => `${run.name}: ${times(valueAt(curves[r], selection))}`).join("; "),
    rows: [["run", model.trained ? "step" : "layer", "ratio"], ...runs.flatMap((run, r) => curves[r].map(([x, y]) => [run.name, x, y === null ? NaN : 2 ** y]))],
    height: 342, runs,
    option: {
      grid: { left: 58, right: 14, top: 24, bottom: 42 },
      xAxis: xAxisOf(),
      yAxis: { type: "value", min: -most, max: most, interval: most / 2, name: "rows ÷ columns", nameLocation: "end", nameGap: 10, nameTextStyle: { align: "left", padding: [0, 0, 0, -48], color: paint("soft"), fontSize: 12 }, axisLabel: { formatter: (value) => times(value) } },
      tooltip: { trigger: "axis", formatter: (hits) => tipOver(hits, 1, runs.map((run) => ({ run, name: run.name })), (value) => times(value)) },
      series: rimmed(curves.map((data, r) => lineOf(runs[r], { data, id: `0-${r}`, showSymbol: data.length < 3 || !model.trained, markLine: r === 0 ? { ...stepMark(selection), data: [{ yAxis: 0, lineStyle: { color: paint("soft"), type: "solid" } }, ...(model.trained ? [{ xAxis: selection.step }] : [])] } : undefined }))),
    },
  };
}
