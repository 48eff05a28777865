// Where the weights moved: the map of matrices × steps, and the one matrix that a click on it shows.

const MAPS = {
  d: ["ΔD", (selection) => `changes.${selection.pairs}.${selection.axis}.d`],
  m: ["ΔM", (selection) => `changes.${selection.pairs}.${selection.axis}.m`],
  relative: ["‖ΔW‖/‖W₀‖", () => "spectra.relative"],
  frobenius: ["‖ΔW‖", () => "spectra.frobenius"],
  stable_rank: ["stable rank", () => "spectra.stable_rank"],
  rotation: ["rotation of W₀’s subspaces, °", () => "geometry.rotation_right"],
  principal: ["share of ‖ΔW‖² within W₀’s subspaces", () => "geometry.principal"],
  visible: ["share of weights that change in bfloat16", () => "geometry.visible_bfloat16"],
};

function whereView() {
  const { model } = app;
  const node = section("where", model.trained ? "Where, and when" : "Where", "Every cell is a matrix. Click one, or move with the arrow keys, to see inside it.");
  const cells = grid(node);
  app.map = new Card(cells, {
    id: "map", title: "Map", width: "w12", height: 420, make: mapOf, click: pickCell, key: moveCell,
    tools: (selection) => [
      model.runs.length > 1 ? choice("Run", model.runs.map((run) => [run.index, run.name]), selection.run, (run) => app.state.set({ run: Number(run) })) : null,
      choice("What the map shows", Object.entries(MAPS).filter(([, [, name]]) => model.runs.some((run) => model.has(run, name(selection)))).map(([key, [text]]) => [key, text]), selection.map, (map) => app.state.set({ map })),
      segments("Scale", [["linear", "linear"], ["log", "log"]], selection.scale, (scale) => app.state.set({ scale })),
    ],
  });
  const about = el("div", { class: "card w4", id: "matrix" });
  cells.append(about);
  new Card(cells, {
    id: "distribution", title: "How its rows and columns moved", width: "w4", height: 300, make: distributionOf,
    tools: (selection) => [segments("Measure", [["m", "ΔM"], ["d", "ΔD"]], selection.spread, (spread) => app.state.set({ spread }))],
  });
  new Card(cells, { id: "singular", title: "Its singular values", width: "w4", height: 300, make: singularOf });
  lazily(about, () => about.replaceChildren(...matrixFacts(app.state.now).filter(Boolean)));
}

// The matrix that is looked at: the chosen one, or else the one that moved most.
function lookedAt(selection) {
  const { model, state } = app;
  const modules = model.chosen(selection).filter((module) => state.focus.places.has(module.index));
  if (selection.module >= 0 && state.focus.places.has(selection.module)) return model.modules[selection.module];
  const name = mapName(selection);
  const place = mapPlace(state.focus, name, selection);
  let best = modules[0] || null;
  let most = -Infinity;
  for (const module of modules) {
    const value = model.value(state.focus, name, module.index, place);
    if (value > most) [best, most] = [module, value];
  }
  return best;
}

function mapName(selection) {
  const { model, state } = app;
  const wanted = [selection.map, "d", "relative", "frobenius"].filter((key) => MAPS[key]).map((key) => MAPS[key][1](selection));
  return wanted.find((name) => model.has(state.focus, name)) || wanted[0];
}

const mapText = (name) => (name.startsWith("changes.") ? CHANGES[name.slice(-1)] : Object.values(MAPS).find(([, of]) => of(app.state.now) === name)[0]);

function mapPlace(run, name, selection) {
  const found = app.model.detail(run, selection.step, mapSteps(run, name));
  return found ? found.among : -1;
}

function mapSteps(run, name) {
  return app.model.stepsOf(run, name);
}

function mapOf(selection, cardWidth) {
  const narrow = cardWidth < 480;
  const { model, state } = app;
  const run = state.focus;
  const name = mapName(selection);
  const modules = model.chosen(selection).filter((module) => run.places.has(module.index));
  if (!model.has(run, name) || !modules.length) return noChanges(selection, [run]);
  const overSteps = model.trained && run.steps.length > 1;
  const rows = overSteps ? modules : model.layers.length ? model.layers : [null];
  const steps = mapSteps(run, name);
  const columns = overSteps ? steps : model.kinds;
  const looked = lookedAt(selection);
  const here = mapPlace(run, name, selection);
  const numbers = [];
  const data = [];
  const at = (module, place) => model.value(run, name, module.index, place);
  const add = (x, y, module, place) => {
    const value = at(module, place);
    numbers.push(value);
    data.push([x, y, value, module.index, place]);
  };
  if (overSteps) rows.forEach((module, y) => steps.forEach((step, x) => add(x, y, module, steps === run.steps ? x : run.steps.indexOf(step))));
  else for (const module of modules) add(columns.indexOf(module.kind), module.layer === null ? 0 : rows.indexOf(module.layer), module, run.steps.length - 1);
  const positive = numbers.filter((value) => value > 0);
  const [least, high] = extent(positive);
  const low = selection.scale === "log" ? Math.max(least, high * 1e-3) : 0;
  const log = selection.scale === "log";
  const bend = (value) => (log ? Math.log10(Math.max(value, low)) : value);
  const drawn = data
    .filter(([, , value]) => Number.isFinite(value) && !(log && value <= 0))
    .map(([x, y, value, module, place]) => [x, y, bend(value), value, module, place]);
  const chosen = drawn.filter(([, , , , module, place]) => looked && module === looked.index && place === here);
  const many_ = rows.length > 60; // so many that only layers are named, where they begin
  const height = Math.max(240, Math.min(940, 76 + rows.length * (rows.length > 40 ? 11 : rows.length > 16 ? 18 : 28)), Math.min(1400, 76 + 3 * rows.length));
  const begins = (i) => rows[i].layer !== null && (i === 0 || rows[i].layer !== rows[i - 1].layer);
  const roomy = (height - 76) / rows.length > 7;
  const byBlock = overSteps && many_ && rows.some((row, i) => i > 0 && begins(i));
  const label = (row) => (byBlock ? `layer ${row.layer ?? "–"}` : overSteps ? shortened(row.label, 26) : row === null ? "" : `${row}`);
  return {
    title: `${mapText(name)} of every matrix`,
    sub: `${shortened(run.name, 40)}${name.startsWith("changes.") ? `, by ${selection.axis}, ${PAIRS[selection.pairs]}` : ""}${log ? "; colours on a logarithmic scale" : ""}`,
    says: looked ? `Chosen: ${looked.name}` : "",
    rows: [["module", "layer", "kind", "step", mapText(name)], ...data.map(([, , value, module, place]) => [model.modules[module].name, model.modules[module].layer, model.modules[module].kind, run.steps[place], value])],
    height, runs: [run],
    option: {
      grid: { left: overSteps ? (narrow ? 96 : 118) : 56, right: narrow ? 58 : 84, top: overSteps ? 10 : 26, bottom: 48 },
      xAxis: { type: "category", data: columns.map((column) => shortened(String(column), 18)), name: overSteps ? "step" : "", nameLocation: "middle", nameGap: 28, axisLabel: overSteps ? {} : { interval: 0, rotate: columns.length > 7 ? 30 : 0 }, splitArea: { show: false } },
      yAxis: { type: "category", data: rows.map(label), inverse: true, name: overSteps ? "" : "layer", nameLocation: "start", nameGap: 10, axisLabel: { fontSize: rows.length > 40 ? 9.5 : 11.5, interval: byBlock ? begins : many_ ? "auto" : 0, width: narrow ? 88 : 108, overflow: "truncate" } },
      visualMap: { type: "continuous", min: log ? bend(low) : 0, max: bend(high) || 1, dimension: 2, calculable: false, orient: "vertical", right: 4, top: 10, itemHeight: Math.min(220, height - 104), itemWidth: 10, text: [number(high, 2), number(low, 2)], textStyle: { color: paint("soft"), fontSize: 11 }, inRange: { color: heat() } },
      tooltip: {
        trigger: "item",
        formatter: (hit) => {
          const [, , , value, module, place] = hit.value;
          return tip(model.modules[module].label, [{ run, name: model.trained ? `step ${run.steps[place]}` : run.name, value: number(value, 4) }, { name: shortened(model.modules[module].name, 48), value: "" }]);
        },
      },
      series: [
        { type: "heatmap", id: "cells", data: drawn, itemStyle: { borderColor: paint("card"), borderWidth: drawn.length > 2500 || !roomy ? 0 : 1 }, emphasis: { itemStyle: { borderColor: paint("ink"), borderWidth: 1.5 } }, progressive: 0 },
        { type: "heatmap", id: "chosen", data: chosen, z: 5, silent: true, itemStyle: { borderColor: paint("ink"), borderWidth: 2.5 } }],
    },
  };
}

function pickCell(card, event) {
  const found = card.chart.convertFromPixel({ gridIndex: 0 }, [event.offsetX, event.offsetY]);
  if (!found) return;
  const [x, y] = found.map(Math.round);
  takeCell(x, y);
}

function takeCell(x, y) {
  const { model, state } = app;
  const selection = state.now;
  const run = state.focus;
  const name = mapName(selection);
  const modules = model.chosen(selection).filter((module) => run.places.has(module.index));
  if (model.trained && run.steps.length > 1) {
    const steps = mapSteps(run, name);
    if (modules[y] && steps[x] !== undefined) state.set({ module: modules[y].index, step: steps[x] });
  } else {
    const found = modules.find((module) => model.kinds.indexOf(module.kind) === x && (module.layer === null ? 0 : model.layers.indexOf(module.layer)) === y);
    if (found) state.set({ module: found.index });
  }
}

function moveCell(event) {
  const way = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
  const { model, state } = app;
  const looked = lookedAt(state.now);
  if (!way || !looked) return false;
  const run = state.focus;
  const name = mapName(state.now);
  const modules = model.chosen(state.now).filter((module) => run.places.has(module.index));
  if (model.trained && run.steps.length > 1) {
    const steps = mapSteps(run, name);
    takeCell(steps.indexOf(run.steps[mapPlace(run, name, state.now)]) + way[0], modules.indexOf(looked) + way[1]);
  } else takeCell(model.kinds.indexOf(looked.kind) + way[0], (looked.layer === null ? 0 : model.layers.indexOf(looked.layer)) + way[1]);
  return true;
}

function matrixFacts(selection) {
  const { model, state } = app;
  const run = state.focus;
  const module = lookedAt(selection);
  if (!module) return [el("div", { class: "empty" }, "This run has no matrix in this selection.")];
  const place = model.place(run, selection.step);
  const detail = model.detail(run, selection.step);
  const facts = [];
  for (const axis of model.axes) for (const measure of ["m", "d"]) facts.push([`${CHANGES[measure]} by ${axis}`, number(model.value(run, `changes.${selection.pairs}.${axis}.${measure}`, module.index, place), 4)]);
  if (detail) {
    facts.push(["‖ΔW‖", number(model.value(run, "spectra.frobenius", module.index, detail.among), 4)], ["‖ΔW‖ / ‖W₀‖", number(model.value(run, "spectra.relative", module.index, detail.among), 3)], ["rank", number(model.value(run, "spectra.rank", module.index, detail.among), 6)], ["stable rank", number(model.value(run, "spectra.stable_rank", module.index, detail.among), 3)]);
  }
  const turned = model.detail(run, selection.step, run.geometry);
  if (turned) {
    const of = (name) => model.value(run, `geometry.${name}`, module.index, turned.among);
    facts.push(["W₀ turned, right", of("rotation_right") >= 0 ? `${number(of("rotation_right"), 3)}°` : "–"], ["off-principal", number(of("off_principal"), 5)], ["visible in bfloat16", percent(of("visible_bfloat16"))]);
  }
  const known = facts.filter(([, text]) => text !== "–");
  return [
    el("div", { class: "card-title" }, nameOf(module.name, 64)),
    el("div", { class: "card-sub" }, `${module.label} · ${module.shape[0]} × ${module.shape[1]} · `, nameOf(run.name, 30), model.trained ? ` · step ${run.steps[place] ?? "–"}` : "", selection.module < 0 && known.length ? " · moved most" : ""),
    known.length ? null : el("div", { class: "empty" }, unmeasured(["changes", "spectra"], "Nothing was measured of it.", [run])),
    el("dl", { class: "facts" }, known.map(([name, text]) => el("div", null, el("dt", null, name), el("dd", null, text)))),
    el("div", { class: "tops" }, ["row", "column"].map((axis) => mostMoved(run, module, axis, selection, detail))),
  ];
}

function mostMoved(run, module, axis, selection, detail) {
  const { model } = app;
  const measure = selection.spread === "m" ? "m" : "d";
  const [index, value] = ["index", "value"].map((what) => model.column(`${run.index}.${what}.${axis}.${measure}`));
  if (!index || !detail) return el("div", null);
  const { most } = model.about.sizes;
  const at = (run.places.get(module.index) * run.details.length + detail.place) * most;
  const rows = [];
  for (let i = 0; i < most; i++) if (Number.isFinite(value.values[at + i]) && value.values[at + i] > 0) rows.push([index.values[at + i], value.values[at + i]]);
  if (!rows.length) return el("div", null);
  return el("div", null, el("h3", null, `Most moved ${AXES[axis]}, ${CHANGES[measure]}`), el("ol", null, rows.map(([which, size]) => el("li", null, el("span", null, `${axis} ${which}`), el("b", null, number(size, 3))))));
}

function distributionOf(selection) {
  const { model, state } = app;
  const run = state.focus;
  const module = lookedAt(selection);
  const detail = model.detail(run, selection.step);
  const measure = selection.spread === "m" ? "m" : "d";
  if (!module || !detail) return { empty: "No matrix is chosen." };
  const position = run.places.get(module.index) * run.details.length + detail.place;
  const found = ["row", "column"].map((axis) => {
    const bins = model.column(`${run.index}.bins.${axis}.${measure}`);
    const range = model.column(`${run.index}.range.${axis}.${measure}`);
    if (!bins || !Number.isFinite(range.values[2 * position])) return null;
    const size = model.about.sizes.bins;
    const [low, high] = [range.values[2 * position], range.values[2 * position + 1]];
    const width = (high - low) / size;
    const counts = [...bins.values.slice(position * size, (position + 1) * size)];
    const total = counts.reduce((sum, n) => sum + n, 0) || 1;
    return counts.map((n, i) => [low + i * width, n / total, low + (i + 1) * width, n]);
  });
  if (!found.some(Boolean)) return { empty: run.base ? "Nothing has moved yet at this step." : NEEDS_BASE };
  const since = run.since_first.includes(module.index) ? "since the first checkpoint" : "since W₀";
  const colors = [paint("accent"), isDark() ? "#f0b860" : "#c4640a"];
  return {
    sub: `${CHANGES[measure]} ${since}${model.trained ? ` at step ${detail.step}` : ""}, by share of the rows (blue) and columns (orange)`,
    rows: [["axis", "from", "to", "vectors"], ...["row", "column"].flatMap((axis, i) => (found[i] || []).map(([low, , high, n]) => [axis, low, high, n]))],
    runs: [run], height: 300,
    option: {
      grid: { left: 44, right: 26, top: 10, bottom: 40 },
      xAxis: { type: "value", scale: true, splitNumber: 4, name: UNITS[measure], nameLocation: "middle", nameGap: 24, axisLabel: { formatter: tick }, axisLine: { show: true, lineStyle: { color: paint("line") } }, splitLine: { show: false } },
      yAxis: { type: "value", axisLabel: { formatter: (value) => `${Math.round(100 * value)} %` }, splitNumber: 3 },
      tooltip: { trigger: "item", formatter: (hit) => tip(["rows", "columns"][hit.seriesIndex], [{ name: `${number(hit.value[0])} to ${number(hit.value[2])}`, value: `${hit.value[3]}` }]) },
      series: found.map((data, i) => ({
        type: "custom", name: ["rows", "columns"][i], data: data || [], encode: { x: [0, 2], y: 1 }, itemStyle: { color: colors[i], opacity: 0.5 },
        renderItem: (_, api) => {
          const [from, to] = [api.coord([api.value(0), api.value(1)]), api.coord([api.value(2), 0])];
          return { type: "rect", shape: { x: from[0], y: from[1], width: Math.max(0.5, to[0] - from[0] - 0.5), height: to[1] - from[1] }, style: { fill: colors[i], opacity: 0.5 } };
        },
      })),
    },
  };
}

function singularOf(selection) {
  const { model, state } = app;
  const module = lookedAt(selection);
  const size = model.about.sizes.leading;
  const curves = [];
  for (const run of state.shown) {
    const detail = model.detail(run, selection.step);
    const column = model.column(`${run.index}.singular`);
    if (!module || !detail || !column || !run.places.has(module.index)) continue;
    const at = (run.places.get(module.index) * run.details.length + detail.place) * size;
    const values = [...column.values.slice(at, at + size)];
    const points = values.map((value, i) => [i + 1, value]).filter(([, value]) => value > 0);
    if (points.length) curves.push({ run, points, step: detail.step });
  }
  if (!curves.length) return { empty: model.runs.some((run) => model.has(run, "singular")) ? "ΔW is zero here." : unmeasured(["spectra"], "No singular values were measured.") };
  return {
    sub: `of ΔW, ${Math.max(...curves.map(({ points }) => points.length)) < size ? "all that are not 0" : `the first ${size}`}${atSteps(curves)}`,
    says: spoken(curves.map(({ run, points }) => ({ run, data: points }))),
    rows: [["run", "index", "σ"], ...curves.flatMap(({ run, points }) => points.map(([i, value]) => [run.name, i, value]))],
    runs: curves.map(({ run }) => run), height: 300,
    option: singularOption(curves),
  };
}

// Which steps curves are of, where there are several: spectra are not measured at all of them.
const atSteps = (curves) => (app.model.trained ? `, at step ${[...new Set(curves.map(({ step }) => step))].slice(0, 3).join(" or ")}` : "");

function singularOption(curves) {
  const size = Math.max(2, ...curves.map(({ points }) => points[points.length - 1][0]));
  const top = extent(curves.flatMap(({ points }) => points.map((point) => point[1])));
  const low = Math.max(top[0], top[1] * 1e-7);
  const log = top[1] / top[0] > 20;
  return {
    grid: { left: 58, right: 12, top: 10, bottom: 40 },
    xAxis: { type: "value", min: 1, max: size, interval: Math.ceil((size - 1) / 7), name: "index k", nameLocation: "middle", nameGap: 24, splitLine: { show: false }, axisLine: { show: true, lineStyle: { color: paint("line") } } },
    yAxis: log ? { type: "log", min: 10 ** Math.floor(Math.log10(low)), max: 10 ** Math.ceil(Math.log10(top[1] * 0.999)), axisLabel: { formatter: tick } } : { type: "value", min: 0, max: roundUp(top[1]), axisLabel: { formatter: tick } },
    tooltip: { trigger: "axis", formatter: (hits) => tip(`σ${hits.length ? ` number ${hits[0].value[0]}` : ""}`, hits.map((hit) => ({ run: curves[hit.seriesIndex].run, name: curves[hit.seriesIndex].run.name, value: number(hit.value[1], 4) }))) },
    series: rimmed(curves.map(({ run, points }) => lineOf(run, { data: points.map(([i, value]) => [i, value < low ? null : value]), showSymbol: true, symbolSize: 4 })), log),
  };
}
