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
    el("div", { class: "card", style: { marginTop: "18px" } }, table, findingsOf(model), notesOf(model.notes("runs", "changes", "base"))),
  );
  lazily(table, () => table.replaceChildren(runsTable(model, app.state)));
}

function leadOf(model) {
  const models = [...new Set(model.runs.map((run) => run.model).filter(Boolean))];
  const methods = [...new Set(model.runs.map((run) => run.title))];
  const steps = model.steps;
  const span = steps.length > 1 ? `${many(steps.length, "checkpoint")} from step ${steps[0]} to ${steps[steps.length - 1]}` : "one checkpoint";
  const layers = model.layers.length > 1 ? ` in ${many(model.layers.length, "layer")}` : "";
  const kinds = model.kinds.length <= 8 ? ` (${model.kinds.map((kind) => shortened(kind, 20)).join(", ")})` : "";
  return `${methods.map((method) => shortened(method, 40)).join(", ")}${models.length ? ` on ${models.map((name) => shortened(name, 60)).join(", ")}` : ""}: ${many(model.modules.length, "matrix", "matrices")}${layers}${kinds}, ${span}.`;
}

function runsTable(model, state) {
  const now = state.now;
  const measures = [
    ["ΔM", `changes.${now.pairs}.${now.axis}.m`, "Mean magnitude change of the chosen matrices"],
    ["ΔD", `changes.${now.pairs}.${now.axis}.d`, "Mean direction change of the chosen matrices"],
  ].filter(([, name]) => model.runs.some((run) => model.has(run, name)));
  measures.push(["‖ΔW‖/‖W₀‖", "spectra.relative", "Size of the update, relative"], ["stable rank", "spectra.stable_rank", "‖ΔW‖² / σ₁²"]);
  const shownMeasures = measures.filter(([, name]) => model.runs.some((run) => model.has(run, name)));
  const numbers = shownMeasures.map(([, name]) => model.runs.map((run) => atDetail(model, run, name, now)));
  const scored = model.runs.some((run) => Object.keys(run.scores || {}).length);
  const changed = model.pairs.length > 0;
  const head = ["run", "method", "checkpoints", "trained", scored ? "score" : null].filter(Boolean);
  const right = [...shownMeasures.map(([text, , hint]) => [text, hint]), changed ? ["rows ÷ columns", "ΔD by row over ΔD by column: 1 where both axes move alike"] : null].filter(Boolean);
  return el(
    "table",
    null,
    el("caption", { class: "hidden-text" }, "The runs, and their changes at the selected step"),
    el("thead", null, el("tr", null, head.map((text) => el("th", { scope: "col", class: ["checkpoints", "trained", "score"].includes(text) ? "number" : null }, text)), right.map(([text, hint]) => el("th", { scope: "col", class: "number", title: hint }, text)), el("th", { scope: "col" }, "sound"))),
    el(
      "tbody",
      null,
      model.runs.map((run, index) => {
        const [row, column] = ["row", "column"].map((axis) => model.at(run, `changes.${now.pairs}.${axis}.d`, now));
        return el(
          "tr",
          null,
          el("td", null, el("span", { class: "run-name" }, swatch(run), nameOf(run.name, 34))),
          el("td", null, el("span", null, shortened(run.title, 40)), optionsOf(run)),
          el("td", { class: "number" }, run.steps.length ? count(run.steps.length) : "none yet", run.steps_known ? null : el("div", { class: "sub" }, "step not known")),
          el("td", { class: "number" }, millions(run.trainable)),
          scored ? el("td", { class: "number" }, Object.entries(run.scores || {}).slice(0, 2).map(([name, value]) => el("div", null, number(value, 3), el("span", { class: "sub" }, ` ${shortened(name, 14)}`)))) : null,
          shownMeasures.map((_, at) => el("td", { class: "number" }, meter(numbers[at][index], numbers[at], run))),
          changed ? el("td", { class: "number" }, number(row / column, 3)) : null,
          el("td", null, soundness(run)),
        );
      }),
    ),
  );
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
  return el(
    "ul",
    { class: "findings", "aria-label": "What is wrong with the runs" },
    items.slice(0, 12).map(([run, finding]) =>
      el("li", { class: finding.level }, el("span", { class: "who" }, nameOf(run.name, 40)), finding.module ? [" · ", nameOf(finding.module, 70)] : null, finding.step === null || finding.step === undefined ? "" : `, step ${finding.step}`, ": ", shortened(finding.message, 400)),
    ),
    items.length > 12 ? el("li", null, `${items.length - 12} more; deltaw inspect lists all`) : null,
  );
}

function notesOf(notes) {
  if (!notes.length) return null;
  return el("div", { class: "notes" }, notes.slice(0, 8).map((note) => el("p", null, shortened(note, 500))));
}
