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
const nothingMeasured = () => ({ empty: unmeasured(["spectra"], "No spectrum was measured.") });

const spectrumShown = (selection) => ({ name: spectrumName(selection), text: SPECTRA[selection.spectrum], short: selection.spectrum, empty: nothingMeasured });
const byLayerOf = (selection) => withNotes(overLayers(selection, spectrumShown(selection)), "spectra");
const overTrainingOf = (selection) => overSteps(selection, spectrumShown(selection));

// The mean over the chosen matrices of σ_k / σ_1.
function meanSpectrumOf(selection) {
  const { model, state } = app;
  const { leading: size } = model.about.sizes;
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
    option: { ...singularOption(curves), grid: { left: 54, right: 14, top: 14, bottom: 44 } },
  };
}
