// A number of every matrix as curves: by layer at the selected step, and over training; with what chance gives.
//
// Both take {name: of the column, text: of the measure, short: its head in the numbers, empty: what is said where there
// is none, chance: {name: of a column, text, each: a line for each run}, axis: of the values, shown: of one as text}.

// The layers of a selection, or its matrices where none has a layer.
function layersOf(selection) {
  const { model } = app;
  const modules = model.chosen(selection);
  const layers = model.layers.filter((layer) => modules.some((module) => module.layer === layer));
  return layers.length
    ? { word: "layer", names: layers.map(String), groups: layers.map((layer) => modules.filter((module) => module.layer === layer)) }
    : { word: "module", names: modules.map((module) => shortened(module.label, 16)), groups: modules.map((module) => [module]) };
}

const finiteOr = (value, log) => (Number.isFinite(value) && !(log && value <= 0) ? value : null);

const chanceLine = (run, each, extra) => lineOf(run, { silent: true, symbol: "none", showSymbol: false, color: each ? colorOf(run) : paint("faint"), lineStyle: { width: each ? 1.2 : 1.6, type: [2, 4], color: each ? colorOf(run) : paint("faint"), opacity: each ? 0.75 : 1 }, ...extra });

// The runs of which a line of chance is drawn: one stands for all where it depends on the shapes alone.
const ofChance = (runs, chance) => (chance ? runs.filter((run) => app.model.has(run, chance.name)).slice(0, chance.each ? runs.length : 1) : []);
const hasValues = ({ data }) => data.some((point) => (Array.isArray(point) ? point[1] : point) !== null);

// At how many of its checkpoints a number of each run was measured, where that is not at all.
function measuredAt(runs, name) {
  const at = new Map();
  for (const run of runs) {
    const text = `${app.model.stepsOf(run, name).length} of ${run.steps.length}`;
    at.set(text, [...(at.get(text) || []), run.name]);
  }
  if (runs.every((run) => app.model.stepsOf(run, name).length === run.steps.length)) return "";
  if (at.size === 1) return `; measured at ${[...at.keys()][0]} checkpoints`;
  return `; measured checkpoints: ${[...at].map(([text, names]) => `${shortened(names.join(", "), 40)} ${text}`).join("; ")}`;
}

function overLayers(selection, { name, text, short, empty, chance, axis, shown }) {
  const { model, state } = app;
  const runs = state.shown.filter((run) => model.has(run, name));
  if (!runs.length) return empty();
  const { word, names, groups } = layersOf(selection);
  const log = axis && axis.type === "log";
  const say = shown || ((value) => number(value, 4));
  const details = runs.map((run) => model.detail(run, selection.step, model.stepsOf(run, name)));
  const curve = (run, of) => {
    const detail = model.detail(run, selection.step, model.stepsOf(run, name));
    return groups.map((modules) => finiteOr(detail ? mean(modules.map((module) => model.value(run, of, module.index, detail.among))) : NaN, log));
  };
  const curves = runs.map((run) => curve(run, name));
  const levels = ofChance(runs, chance).map((run) => ({ run, data: curve(run, chance.name) })).filter(hasValues);
  if (!curves.flat().some((value) => value !== null)) return { empty: model.trained && selection.step === model.steps[0] ? "Nothing has moved yet at this step." : empty().empty };
  const level = (i, at) => { const found = levels.find(({ run }) => run === runs[i] || !chance.each); return found && found.data[at] !== null ? `chance ${say(found.data[at])}` : null; };
  return {
    sub: `${text}${model.trained ? `, at step ${[...new Set(details.filter(Boolean).map((detail) => detail.step))].slice(0, 3).join(" or ")}` : ""}${levels.length ? `; dotted: ${chance.text}` : ""}`,
    says: runs.map((run, i) => `${run.name}: from ${number(extent(curves[i])[0])} to ${number(extent(curves[i])[1])}`).join("; "),
    rows: [["run", word, short, ...(levels.length ? ["chance"] : [])], ...runs.flatMap((run, i) => groups.map((modules, j) => [run.name, word === "layer" ? modules[0].layer : modules[0].name, curves[i][j] ?? NaN, ...(levels.length ? [(levels.find((one) => one.run === run || !chance.each) || { data: [] }).data[j] ?? NaN] : [])]))],
    runs, height: 300,
    option: {
      grid: { left: 58, right: 14, top: 14, bottom: 44 },
      xAxis: { type: "category", data: names, name: word === "layer" ? word : "", nameLocation: "middle", nameGap: 26, boundaryGap: names.length < 3 },
      yAxis: { type: "value", scale: true, axisLabel: { formatter: tick }, ...axis },
      tooltip: { trigger: "axis", formatter: (hits) => { const seen = hits.filter((hit) => hit.seriesIndex < runs.length); return tip(`${word === "layer" ? "layer " : ""}${seen.length ? seen[0].name : ""}`, seen.map((hit) => ({ run: runs[hit.seriesIndex], name: runs[hit.seriesIndex].name, value: say(hit.value[1]), sub: level(hit.seriesIndex, hit.dataIndex) }))); } },
      series: [...rimmed(runs.map((run, i) => lineOf(run, { data: curves[i].map((value, j) => [j, value]), showSymbol: true })), log), ...levels.map(({ run, data }) => chanceLine(run, chance.each, { data }))],
    },
  };
}

function overSteps(selection, { name, text, short, empty, chance, axis, shown }) {
  const { model, state } = app;
  const runs = state.shown.filter((run) => model.has(run, name));
  if (!runs.length) return empty();
  const log = axis && axis.type === "log";
  const curve = (run, of) => {
    const values = model.curve(run, of, selection);
    return model.stepsOf(run, name).map((step) => [step, finiteOr(values[run.steps.indexOf(step)], log)]);
  };
  const curves = runs.map((run) => curve(run, name));
  const levels = ofChance(runs, chance).map((run) => ({ run, data: curve(run, chance.name) })).filter(hasValues);
  return {
    sub: `${text}${measuredAt(runs, name)}${levels.length ? `; dotted: ${chance.text}` : ""}`,
    says: spoken(runs.map((run, i) => ({ run, data: curves[i] }))),
    rows: [["run", "step", short], ...runs.flatMap((run, i) => curves[i].map(([step, value]) => [run.name, step, value ?? NaN])), ...levels.flatMap(({ run, data }) => data.map(([step, value]) => [chance.each ? `${run.name}: chance` : "chance", step, value ?? NaN]))],
    runs, height: 300,
    option: {
      grid: { left: 58, right: 14, top: 14, bottom: 44 },
      xAxis: xAxisOf(),
      yAxis: { type: "value", scale: true, axisLabel: { formatter: tick }, ...axis },
      tooltip: { trigger: "axis", formatter: (hits) => tipOver(hits.filter((hit) => hit.seriesId.startsWith("0-")), 1, runs.map((run) => ({ run, name: run.name })), shown) },
      series: [
        ...rimmed(runs.map((run, i) => lineOf(run, { id: `0-${i}`, data: curves[i], showSymbol: curves[i].length < 12, markLine: i === 0 ? stepMark(selection) : undefined })), log),
        ...levels.map(({ run, data }, i) => chanceLine(run, chance.each, { id: `chance-${i}`, data, showSymbol: false })),
      ],
    },
  };
}
