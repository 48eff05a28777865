// Rank and spectrum of ΔW: by layer, over training, and its singular values.

function spectrumView() {
  const { model } = app;
  const node = section("spectrum", "Rank and spectrum of the update", "How many directions ΔW = W − W₀ has, and how much of it lies in few. Means over the chosen matrices.");
  const cells = grid(node);
  const choose = (selection) => [
    choice("Measure", Object.entries(SPECTRA).filter(([key]) => model.runs.some((run) => model.has(run, `spectra.${key}`))), selection.spectrum, (spectrum) => app.state.set({ spectrum })),
  ];
  const width = model.trained ? "w4" : "w6";
  new Card(cells, { id: "by-layer", title: "By layer", width, height: 300, make: byLayerOf, tools: choose });
  if (model.trained) new Card(cells, { id: "spectrum-training", title: "Over training", width, height: 300, make: overTrainingOf, click: pickStep });
  new Card(cells, { id: "spectra", title: "Singular values", width, height: 300, make: meanSpectrumOf });
}

const spectrumName = (selection) => `spectra.${selection.spectrum}`;
const nothingMeasured = () => ({ empty: app.model.notes("spectra", "base").map((note) => shortened(note, 300)).join(" ") || "No spectrum was measured." });

function byLayerOf(selection) {
  const { model, state } = app;
  const name = spectrumName(selection);
  const modules = model.chosen(selection);
  const runs = state.shown.filter((run) => model.has(run, name));
  const layers = model.layers.filter((layer) => modules.some((module) => module.layer === layer));
  if (!runs.length) return nothingMeasured();
  const named = layers.length ? layers : modules.map((module) => module.index);
  const curves = runs.map((run) => {
    const detail = model.detail(run, selection.step);
    return named.map((one) => {
      const of = layers.length ? modules.filter((module) => module.layer === one) : [model.modules[one]];
      const value = detail ? mean(of.map((module) => model.value(run, name, module.index, detail.among))) : NaN;
      return Number.isFinite(value) ? value : null;
    });
  });
  const details = runs.map((run) => model.detail(run, selection.step)).filter(Boolean);
  return {
    sub: `${SPECTRA[selection.spectrum]}${model.trained ? `, at step ${[...new Set(details.map((detail) => detail.step))].slice(0, 3).join(" or ")}` : ""}`,
    says: runs.map((run, i) => `${run.name}: from ${number(extent(curves[i])[0])} to ${number(extent(curves[i])[1])}`).join("; "),
    rows: [["run", layers.length ? "layer" : "module", selection.spectrum], ...runs.flatMap((run, i) => named.map((one, j) => [run.name, layers.length ? one : model.modules[one].name, curves[i][j] ?? NaN]))],
    runs, height: 300,
    option: {
      grid: { left: 54, right: 14, top: 14, bottom: 44 },
      xAxis: { type: "category", data: named.map((one) => (layers.length ? `${one}` : shortened(model.modules[one].label, 16))), name: layers.length ? "layer" : "", nameLocation: "middle", nameGap: 26, boundaryGap: layers.length < 3 },
      yAxis: { type: "value", scale: true, axisLabel: { formatter: tick } },
      tooltip: { trigger: "axis", formatter: (hits) => tip(`${layers.length ? "layer " : ""}${hits.length ? hits[0].name : ""}`, hits.map((hit) => ({ run: runs[hit.seriesIndex], name: runs[hit.seriesIndex].name, value: number(hit.value, 4) }))) },
      series: runs.map((run, i) => lineOf(run, { data: curves[i], showSymbol: true })),
    },
  };
}

function overTrainingOf(selection) {
  const { model, state } = app;
  const name = spectrumName(selection);
  const runs = state.shown.filter((run) => model.has(run, name));
  if (!runs.length) return nothingMeasured();
  const curves = runs.map((run) => {
    const curve = model.curve(run, name, selection);
    return run.details.map((step) => {
      const value = curve[run.steps.indexOf(step)];
      return [step, Number.isFinite(value) ? value : null];
    });
  });
  const few = runs.find((run) => run.details.length < run.steps.length);
  return {
    sub: `${SPECTRA[selection.spectrum]}${few ? `; measured at ${few.details.length} of ${few.steps.length} checkpoints` : ""}`,
    says: spoken(runs.map((run, i) => ({ run, data: curves[i] }))),
    rows: [["run", "step", selection.spectrum], ...runs.flatMap((run, i) => curves[i].map(([step, value]) => [run.name, step, value ?? NaN]))],
    runs, height: 300,
    option: {
      grid: { left: 54, right: 14, top: 14, bottom: 44 },
      xAxis: xAxisOf(),
      yAxis: { type: "value", scale: true, axisLabel: { formatter: tick } },
      tooltip: { trigger: "axis", formatter: (hits) => tipOver(hits, 1, runs.map((run) => ({ run, name: run.name }))) },
      series: runs.map((run, i) => lineOf(run, { id: `0-${i}`, data: curves[i], showSymbol: curves[i].length < 4, markLine: i === 0 ? stepMark(selection) : undefined })),
    },
  };
}

// The mean over the chosen matrices of σ_k / σ_1.
function meanSpectrumOf(selection) {
  const { model, state } = app;
  const size = model.about.sizes.leading;
  const modules = model.chosen(selection);
  const curves = [];
  for (const run of state.shown) {
    const detail = model.detail(run, selection.step);
    const column = model.column(`${run.index}.singular`);
    if (!detail || !column) continue;
    const sums = Array.from({ length: size }, () => []);
    for (const module of modules) {
      if (!run.places.has(module.index)) continue;
      const at = (run.places.get(module.index) * run.details.length + detail.place) * size;
      const first = column.values[at];
      if (!(first > 0)) continue;
      for (let k = 0; k < size; k++) if (Number.isFinite(column.values[at + k])) sums[k].push(column.values[at + k] / first);
    }
    const points = sums.map((values, k) => [k + 1, mean(values)]).filter(([, value]) => value > 0);
    if (points.length) curves.push({ run, points, step: detail.step });
  }
  if (!curves.length) return { empty: model.trained && selection.step === model.steps[0] ? "ΔW is still zero at this step." : nothingMeasured().empty };
  return {
    sub: `σₖ / σ₁, mean over the chosen matrices${atSteps(curves)}`,
    says: spoken(curves.map(({ run, points }) => ({ run, data: points }))),
    rows: [["run", "index", "σ / σ₁"], ...curves.flatMap(({ run, points }) => points.map(([i, value]) => [run.name, i, value]))],
    runs: curves.map(({ run }) => run), height: 300,
    option: { ...singularOption(curves, size), grid: { left: 54, right: 14, top: 14, bottom: 44 } },
  };
}
