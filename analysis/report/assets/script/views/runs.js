// The top: what the runs are, how they compare at the selected step, and what is wrong with them.

function runsView() {
  const { model } = app;
  const node = el("section", { class: "head", id: "runs", "aria-labelledby": "runs-heading" });
  byId("sections").append(node);
  const names = model.runs.map((run) => run.name);
  const title = names.length === 1 ? `How ${shortened(names[0], 60)} moved the weights` : `How ${names.length} runs moved the weights`;
  document.title = `${shortened(names.length === 1 ? names[0] : `${names.length} runs`, 60)} · deltaw report`;
  const table = el("div", { class: "scroll" });
  node.append(
    el("h1", { id: "runs-heading" }, title),
    el("p", { class: "lead" }, leadOf(model)),
    el("div", { class: "card", style: { marginTop: "18px" } }, table, findingsOf(model), notesOf([...model.notes("runs", "changes", "base"), ...differing(model)]), settingsOf(model)),
  );
  lazily(table, () => refill(table, runsTable(model, app.state)));
}

function leadOf(model) {
  const models = [...new Set(model.runs.map((run) => run.model).filter(Boolean))];
  const methods = [...new Set(model.runs.map((run) => run.title))];
  const steps = model.steps;
  const span = steps.length > 1 ? `${many(steps.length, "checkpoint")} from step ${steps[0]} to ${steps[steps.length - 1]}` : "one checkpoint";
  const layers = model.layers.length > 1 ? ` in ${many(model.layers.length, "layer")}` : "";
  const kinds = model.kinds.length <= 8 ? ` (${model.kinds.map((kind) => shortened(kind, 20)).join(", ")})` : "";
  return `${methods.map((method) => shortened(method, 40)).join(", ")}${models.length ? ` on ${models.map((name) => shortened(name, 60)).join(", ")}` : ""}: ${many(model.modules.length, "matrix", "matrices")}${layers}${kinds}, ${span}${model.about.watch ? `; the runs go on, and this page follows (made ${model.about.made})` : ""}.`;
}

// Runs of other matrices have means over other matrices.
function differing(model) {
  return model.runs.some((run) => run.modules.length < model.modules.length) ? ["The runs do not hold the same matrices; a mean is over those that its run has."] : [];
}

function runsTable(model, state) {
  const now = state.now;
  const measures = [
    ["ΔM", `changes.${now.pairs}.${now.axis}.m`, "Mean magnitude change of the chosen matrices"],
    ["ΔD", `changes.${now.pairs}.${now.axis}.d`, "Mean direction change of the chosen matrices"],
  ].filter(([, name]) => model.runs.some((run) => model.has(run, name)));
  if (model.runs.some((run) => model.has(run, "spectra.relative"))) measures.push(["‖ΔW‖/‖W₀‖", "spectra.relative", "Size of the update, relative"]);
  else measures.push(["‖ΔW‖", "spectra.frobenius", "Size of the update: its Frobenius norm"]);
  measures.push(["stable rank", "spectra.stable_rank", "‖ΔW‖² / σ₁²: how many directions carry the update"]);
  const shownMeasures = measures.filter(([, name]) => model.runs.some((run) => model.has(run, name)));
  const numbers = shownMeasures.map(([, name]) => model.runs.map((run) => atDetail(model, run, name, now)));
  const scored = model.runs.some((run) => Object.keys(run.scores || {}).length);
  const changed = model.pairs.length > 0;
  const head = ["run", "method", "sound", "checkpoints", "trained", scored ? "score" : null].filter(Boolean);
  const right = [...shownMeasures.map(([text, , hint]) => [text, hint]), changed ? ["rows ÷ columns", "ΔD by row over ΔD by column: 1 where both axes move alike"] : null].filter(Boolean);
  const moved = model.runs.map((run) => movedMost(run, now));
  const most = moved.some(Boolean) ? moved.find(Boolean).text : "";
  const cell = (text, attributes, ...content) => el("td", { "data-head": text, ...attributes }, ...content);
  return el(
    "table",
    { class: "stacked" },
    el("caption", { class: "hidden-text" }, "The runs, and their changes at the selected step"),
    el("thead", null, el("tr", null, head.map((text) => el("th", { scope: "col", class: ["checkpoints", "trained", "score"].includes(text) ? "number" : null }, text)), right.map(([text, hint]) => el("th", { scope: "col", class: "number", title: hint }, text)), most ? el("th", { scope: "col", title: `The matrix with the largest ${most} of the run at this step, and how many times the mean that is` }, "moved most") : null)),
    el(
      "tbody",
      null,
      model.runs.map((run, index) => {
        const [row, column] = ["row", "column"].map((axis) => model.at(run, `changes.${now.pairs}.${axis}.d`, now));
        return el(
          "tr",
          null,
          el("td", { class: "stack-head" }, el("span", { class: "run-name" }, swatch(run), nameOf(run.name, 34))),
          cell("method", null, el("span", null, shortened(run.title, 40)), optionsOf(run)),
          cell("sound", null, soundness(run)),
          cell("checkpoints", { class: "number" }, run.steps.length ? count(run.steps.length) : "none yet", run.steps_known ? null : el("div", { class: "sub" }, "step not known")),
          cell("trained", { class: "number" }, millions(run.trainable)),
          scored ? cell("score", { class: "number" }, Object.entries(run.scores || {}).slice(0, 2).map(([name, value]) => el("div", null, number(value, 3), el("span", { class: "sub" }, ` ${shortened(name, 14)}`)))) : null,
          shownMeasures.map(([text], at) => cell(text, { class: "number" }, meter(numbers[at][index], numbers[at], run))),
          changed ? cell("rows ÷ columns", { class: "number" }, number(row / column, 3)) : null,
          most ? cell("moved most", null, moved[index] ? mostButton(run, moved[index]) : "–") : null,
        );
      }),
    ),
  );
}

// The matrix of a run that moved most at the step: by ΔD, or where that is not known by the size of its update.
function movedMost(run, now) {
  const { model } = app;
  const choices = [["ΔD", `changes.${now.pairs}.${now.axis}.d`], ["‖ΔW‖/‖W₀‖", "spectra.relative"], ["‖ΔW‖", "spectra.frobenius"]];
  const found = choices.find(([, name]) => model.has(run, name));
  if (!found) return null;
  const detail = model.detail(run, now.step, model.stepsOf(run, found[1]));
  const values = detail ? model.chosen(now).map((module) => [module, model.value(run, found[1], module.index, detail.among)]).filter(([, value]) => Number.isFinite(value)) : [];
  const [module, value] = values.reduce((best, one) => (one[1] > best[1] ? one : best), [null, 0]);
  return module && values.length > 1 ? { module, value, text: found[0], times: value / mean(values.map((one) => one[1])) } : null;
}

function mostButton(run, { module, value, text, times }) {
  const look = () => {
    app.state.set({ run: run.index, module: module.index });
    byId("where").scrollIntoView();
  };
  return el("button", { type: "button", class: "most", onclick: look, title: `${shortened(module.name, 200)}\n${text} ${number(value)}` }, el("bdi", null, shortened(module.label, 26)), el("span", { class: "sub" }, ` ${number(times, 2)}× the mean`));
}

function atDetail(model, run, name, now) {
  if (!name.startsWith("spectra.")) return model.at(run, name, now);
  const found = model.detail(run, now.step);
  return found && model.has(run, name) ? model.curve(run, name, now)[found.among] : NaN;
}

function meter(value, all, run) {
  const most = Math.max(...all.filter(Number.isFinite), 0);
  const share = most > 0 && Number.isFinite(value) ? value / most : 0;
  const bar = el("i", { style: { width: `${(100 * share).toFixed(1)}%`, background: colorOf(run) } });
  return el("span", { class: "meter" }, bar, el("b", null, number(value)));
}

function optionsOf(run) {
  const shown = Object.entries(run.options || {}).filter(([name, value]) => ["rank", "alpha", "direction_rank"].includes(name) || (name.length < 16 && value && value !== true && name === "axis"));
  const every = Object.entries({ ...run.options, ...run.settings, base: run.base }).filter(([, value]) => value !== null && value !== undefined);
  const text = shown.map(([name, value]) => `${name} ${value}`).join(", ");
  return el("div", { class: "sub", title: shortened(every.map(([name, value]) => `${name} = ${value}`).join("\n"), 900) }, shortened(text, 60));
}

// All that is known of how the runs were made: folded up, but on paper too.
function settingsOf(model) {
  const rows = model.runs.map((run) => [run, Object.entries({ model: run.model, base: run.base, ...run.options, ...run.settings, "recorded on": run.created, format: run.format }).filter(([, value]) => value !== null && value !== undefined && value !== "")]);
  if (!rows.some(([, known]) => known.length)) return null;
  return el(
    "details",
    { class: "more" },
    el("summary", null, "Options and settings"),
    el("dl", { class: "settings" }, rows.map(([run, known]) => [el("dt", null, el("span", { class: "run-name" }, swatch(run), nameOf(run.name, 40))), el("dd", null, known.map(([name, value]) => el("span", { class: "setting" }, el("span", { class: "sub" }, `${shortened(name, 40)} `), shortened(value, 120))))])),
  );
}

function soundness(run) {
  const findings = run.findings || [];
  const broken = findings.filter((finding) => finding.level === "broken").length;
  if (broken) return el("span", { class: "badge broken" }, "broken");
  if (findings.length) return el("span", { class: "badge warning" }, many(findings.length, "finding"));
  return run.findings ? el("span", { class: "badge good" }, "sound") : el("span", { class: "badge unclear" }, "not checked");
}

function findingsOf(model) {
  const items = model.runs.flatMap((run) => (run.findings || []).map((finding) => [run, finding]));
  for (const run of model.runs) {
    const lost = (run.survives || {}).bfloat16;
    if (lost && lost.error > 0.5) items.push([run, { level: "warning", message: `merged into bfloat16, ${percent(lost.error)} of the last update would be lost: only ${percent(lost.entries)} of the entries change` }]);
  }
  if (!items.length) return null;
  items.sort(([, one], [, two]) => (one.level === "broken" ? 0 : 1) - (two.level === "broken" ? 0 : 1));
  const item = ([run, finding]) => el("li", { class: finding.level }, el("span", { class: "who" }, nameOf(run.name, 40)), finding.module ? [" · ", nameOf(finding.module, 70)] : null, finding.step === null || finding.step === undefined || !run.steps_known ? "" : `, step ${finding.step}`, ": ", shortened(finding.message, 400));
  const list = (found) => el("ul", { class: "findings", "aria-label": "What is wrong with the runs" }, found.map(item));
  const first = items.length > 5 ? 4 : 5;
  if (items.length <= first) return list(items);
  return [list(items.slice(0, first)), el("details", { class: "more" }, el("summary", null, `${items.length - first} more findings`), list(items.slice(first, 200)), items.length > 200 + first ? el("p", { class: "sub" }, `${items.length - first - 200} more; deltaw inspect lists all`) : null)];
}

function notesOf(notes) {
  if (!notes.length) return null;
  return el("div", { class: "notes" }, notes.slice(0, 8).map((note) => el("p", null, shortened(note, 500))));
}
