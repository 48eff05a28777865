// The runs against each other: do their updates of one matrix point the same way?

const BETWEEN = {
  "overlap.right": "overlap φ(k, k), input side",
  "overlap.left": "overlap φ(k, k), output side",
  "angle.right": "mean angle of k directions, input side",
  "angle.left": "mean angle of k directions, output side",
  cosine: "cosine of the updates",
  sign_agreement: "share of entries of the same sign",
  jaccard: "weights changed by both, of those by either",
};

// Those of one number, not of k directions; and the columns of what chance gives of them.
const SINGLE = new Set(["cosine", "sign_agreement", "jaccard"]);
const EXPECTED = { sign_agreement: "sign_expected", jaccard: "jaccard_expected" };

function betweenView() {
  const { model } = app;
  if (model.runs.length < 2) return;
  const node = section("between", "The runs against each other", "At each run’s last checkpoint: how much of the span of one update’s k leading singular directions lies in the other’s; how parallel the updates are, entry by entry; and which weights both change in bfloat16 (the Jaccard index). Chance is what random spans of that size, unrelated updates, and independent choices of as many weights have. Click a cell to see it by layer.");
  const cells = grid(node);
  new Card(cells, {
    id: "runs-matrix", title: "Overlap", width: "w6", height: 380, make: betweenOf, click: pickPair,
    tools: (selection) => [
      choice("Measure", Object.entries(BETWEEN).filter(([key]) => model.table.has(`between.${key}`)), selection.between, (between) => app.state.set({ between })),
      SINGLE.has(selection.between) ? null : choice("k", Array.from({ length: model.about.sizes.ranks }, (_, i) => [i + 1, `k = ${i + 1}`]), selection.k, (k) => app.state.set({ k: Number(k) })),
    ],
  });
  new Card(cells, { id: "pair-layers", title: "By layer", width: "w6", height: 380, make: pairOf });
}

function pairPlace(first, second) {
  const n = app.model.runs.length;
  const [a, b] = first < second ? [first, second] : [second, first];
  return a * n - (a * (a + 1)) / 2 + (b - a - 1);
}

// A number of two runs for one matrix, and what chance gives.
function betweenValue(selection, first, second, module) {
  const { model } = app;
  const kind = selection.between;
  const column = model.column(`between.${kind}`);
  if (!column) return NaN;
  const place = pairPlace(first, second) * model.modules.length + module.index;
  if (SINGLE.has(kind)) return column.values[place];
  const at = place * model.about.sizes.ranks;
  if (kind.startsWith("overlap")) return column.values[at + selection.k - 1];
  const angles = [...column.values.slice(at, at + selection.k)];
  return angles.every(Number.isFinite) ? (mean(angles) * 180) / Math.PI : NaN;
}

function chanceOf(selection, module, first, second) {
  if (selection.between === "cosine") return 0;
  if (SINGLE.has(selection.between)) {
    const column = app.model.column(`between.${EXPECTED[selection.between]}`);
    return column ? column.values[pairPlace(first, second) * app.model.modules.length + module.index] : NaN;
  }
  const size = selection.between.endsWith("right") ? module.shape[1] : module.shape[0];
  const share = Math.min(1, selection.k / size);
  return selection.between.startsWith("overlap") ? share : (Math.acos(Math.sqrt(share)) * 180) / Math.PI;
}

const betweenText = (selection, value) => (selection.between.startsWith("angle") ? `${number(value, 3)}°` : number(value, 3));

function betweenOf(selection) {
  const { model, state } = app;
  const runs = state.shown;
  if (!model.table.has("between.cosine")) return { empty: model.notes("between").map((note) => shortened(note, 300)).join(" ") || "This was not measured." };
  if (runs.length < 2) return { empty: "Choose two runs or more." };
  const modules = model.chosen(selection);
  const same = selection.between.startsWith("angle") ? 0 : 1;
  const values = runs.map((one) => runs.map((two) => (one === two ? same : mean(modules.map((module) => betweenValue(selection, one.index, two.index, module))))));
  const others = values.flatMap((row, i) => row.filter((value, j) => i !== j && Number.isFinite(value)));
  const common = modules.filter((module) => runs.some((one, i) => runs.slice(i + 1).some((two) => Number.isFinite(betweenValue(selection, one.index, two.index, module)))));
  const missing = values.some((row, i) => row.some((value, j) => i !== j && !Number.isFinite(value)));
  const chances = runs.map((one) => runs.map((two) => (one === two ? NaN : mean(common.map((module) => chanceOf(selection, module, one.index, two.index))))));
  const chance = mean(chances.flat());
  const angle = selection.between.startsWith("angle");
  const [low, high] = angle ? [Math.min(...others, 0), 90] : [Math.min(0, ...others), Math.max(...others, chance * 2, 0.05)];
  const dark = (value) => (angle ? 90 - value : value) > (angle ? 90 - low : high) * 0.55 + (angle ? 0 : low * 0.45);
  const data = values.flatMap((row, i) =>
    row.map((value, j) => ({
      value: [j, i, i === j ? null : value, i, j],
      label: { show: true, formatter: i === j ? "" : Number.isFinite(value) ? betweenText(selection, value) : "–", color: dark(value) === !isDark() ? "#ffffff" : isDark() && dark(value) ? "#0f1216" : paint("ink"), fontSize: 12 },
      itemStyle: i === j ? { color: paint("hair") } : undefined,
    })),
  );
  const names = runs.map((run) => shortened(run.name, 16));
  return {
    title: BETWEEN[selection.between],
    sub: `mean over ${many(common.length, "matrix", "matrices")}; chance ${selection.between === "cosine" ? "0" : betweenText(selection, chance)}${missing ? `; empty: no matrix in common, no update${SINGLE.has(selection.between) ? "" : `, or fewer than ${selection.k} directions`}` : ""}`,
    says: runs.flatMap((one, i) => runs.slice(i + 1).map((two, j) => `${one.name} with ${two.name}: ${betweenText(selection, values[i][i + 1 + j])}`)).join("; "),
    rows: [["first", "second", BETWEEN[selection.between], "chance"], ...runs.flatMap((one, i) => runs.map((two, j) => [one.name, two.name, values[i][j], chances[i][j]])).filter(([one, two]) => one !== two)],
    notes: model.notes("between"), runs: [], height: Math.max(280, 90 + runs.length * 44),
    option: {
      grid: { left: 110, right: 20, top: 8, bottom: 54 },
      xAxis: { type: "category", data: names, axisLabel: { interval: 0, rotate: runs.length > 5 ? 30 : 0, width: 90, overflow: "truncate" } },
      yAxis: { type: "category", data: names, inverse: true, axisLabel: { width: 100, overflow: "truncate" } },
      visualMap: { show: false, min: low, max: high, dimension: 2, inRange: { color: angle ? [...heat()].reverse() : heat() } },
      tooltip: { trigger: "item", formatter: (hit) => (hit.value[3] === hit.value[4] ? "" : tip(BETWEEN[selection.between], [{ run: runs[hit.value[3]], name: runs[hit.value[3]].name, value: betweenText(selection, hit.value[2]) }, { run: runs[hit.value[4]], name: runs[hit.value[4]].name, value: "", sub: `chance ${betweenText(selection, chances[hit.value[3]][hit.value[4]])}` }])) },
      series: [{ type: "heatmap", id: "between", data, itemStyle: { borderColor: paint("card"), borderWidth: 2 }, emphasis: { itemStyle: { borderColor: paint("ink") } } }],
    },
  };
}

function pickPair(card, event) {
  const { state } = app;
  const found = card.chart.convertFromPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY]);
  if (!found) return;
  const [second, first] = found.map(Math.round).map((place) => state.shown[place]);
  if (first && second && first !== second) state.set({ first: first.index, second: second.index });
}

function pairOf(selection) {
  const { model, state } = app;
  if (!model.table.has("between.cosine")) return { empty: "This was not measured." };
  let { first, second } = selection;
  if (first === second) second = model.runs.findIndex((run) => run.index !== first);
  const modules = model.chosen(selection);
  const kinds = model.kinds.filter((kind) => modules.some((module) => module.kind === kind)).slice(0, 8);
  const layers = model.layers.length ? model.layers : [0];
  const curve = (of) => layers.map((layer) => { const value = mean(modules.filter((module) => (module.layer ?? layers[0]) === layer && of.kind(module)).map(of.value)); return Number.isFinite(value) ? value : null; });
  const series = kinds.map((kind, i) => ({
    type: "line", name: kind, symbol: "circle", symbolSize: 5, emphasis: { disabled: true }, color: kindColor(i), lineStyle: { width: 2 },
    data: curve({ kind: (module) => module.kind === kind, value: (module) => betweenValue(selection, first, second, module) }),
  }));
  series.push({ type: "line", name: "chance", symbol: "none", color: paint("faint"), lineStyle: { type: [4, 4], width: 1.5 }, emphasis: { disabled: true }, data: curve({ kind: () => true, value: (module) => chanceOf(selection, module, first, second) }) });
  return {
    title: `${shortened(model.runs[first].name, 24)} with ${shortened(model.runs[second].name, 24)}, by layer`,
    sub: `${BETWEEN[selection.between]}${SINGLE.has(selection.between) ? "" : `, k = ${selection.k}`}; dashed: chance`,
    says: spoken(series.map((one) => ({ run: { name: one.name }, data: one.data.map((value, i) => [layers[i], value]) }))),
    rows: [["kind", "layer", "value"], ...series.flatMap((one) => one.data.map((value, i) => [one.name, layers[i], value ?? NaN]))],
    runs: [], height: 380,
    option: {
      grid: { left: 52, right: 14, top: 34, bottom: 44 },
      legend: { top: 0, left: 0, ...kindLegend(series.map((one) => one.name)) },
      xAxis: { type: "category", data: layers.map(String), name: "layer", nameLocation: "middle", nameGap: 26, boundaryGap: layers.length < 3 },
      yAxis: { type: "value", axisLabel: { formatter: (value) => (selection.between.startsWith("angle") ? `${tick(value)}°` : tick(value)) } },
      tooltip: { trigger: "axis", formatter: (hits) => tip(`layer ${hits.length ? hits[0].name : ""}`, hits.map((hit) => ({ name: hit.seriesName, value: betweenText(selection, hit.value) }))) },
      series,
    },
  };
}
