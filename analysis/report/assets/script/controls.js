// The bar: the runs, and the selection that all views share.

function drawChips() {
  const { model, state } = app;
  const shown = new Set(state.shown.map((run) => run.index));
  refill(
    byId("chips"),
    ...model.runs.map((run) =>
      el(
        "button",
        { type: "button", class: "chip", "aria-pressed": String(shown.has(run.index)), onclick: (event) => toggleRun(run, event), title: "Show or hide; with Alt this one alone" },
        swatch(run),
        nameOf(run.name, 30),
      ),
    ),
  );
}

function toggleRun(run, event) {
  const { model, state } = app;
  const shown = new Set(state.shown.map((one) => one.index));
  const alone = shown.size === 1 && shown.has(run.index);
  let off;
  if (event.altKey) off = alone ? [] : model.runs.filter((one) => one !== run).map((one) => one.index);
  else {
    if (shown.has(run.index)) shown.delete(run.index);
    else shown.add(run.index);
    off = shown.size ? model.runs.map((one) => one.index).filter((index) => !shown.has(index)) : [];
  }
  state.set({ off: off.join(",") });
}

const labelled = (text, node) => el("label", { class: "control" }, el("span", null, text), node);
const grouped = (text, node) => el("span", { class: "control" }, el("span", { "aria-hidden": "true" }, text), node);

function drawControls() {
  const { model, state } = app;
  const now = state.now;
  const form = byId("controls");
  const focused = document.activeElement && form.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") || document.activeElement.textContent : null;
  const parts = [];
  if (model.kinds.length > 1) {
    parts.push(labelled("Matrices", choice("Kind of matrix", [["all", "all kinds"], ...model.kinds.map((kind) => [kind, kind])], now.kind, (kind) => state.set({ kind, module: -1 }))));
  }
  if (model.layers.length > 1) {
    parts.push(labelled("Layer", choice("Layer", [["all", "all"], ...model.layers.map((layer) => [layer, layer])], now.layer, (layer) => state.set({ layer, module: -1 }))));
  }
  if (model.pairs.length) parts.push(grouped("Axis", segments("Axis", model.axes.map((axis) => [axis, AXES[axis]]), now.axis, (axis) => state.set({ axis }))));
  if (model.pairs.length) {
    parts.push(grouped("Change", segments("Pairs of checkpoints", ["base", "initial", "consecutive"].map((pairs) => [pairs, PAIRS_SHORT[pairs], !model.pairs.includes(pairs)]), now.pairs, (pairs) => state.set({ pairs }))));
  }
  if (model.trained) parts.push(stepControl());
  form.replaceChildren(...parts);
  if (focused) {
    const again = [...form.querySelectorAll("button, select, input")].find((node) => (node.getAttribute("aria-label") || node.textContent) === focused);
    if (again) again.focus({ preventScroll: true });
  }
}

function stepControl() {
  const { model, state } = app;
  const output = el("output", null, `${state.now.step}`);
  const input = el("input", {
    type: "range", min: 0, max: model.steps.length - 1, step: 1, value: model.steps.indexOf(state.now.step),
    "aria-label": "Step", "aria-valuetext": `step ${state.now.step}`,
    oninput: (event) => state.set({ step: model.steps[Number(event.target.value)] }),
  });
  app.stepInput = input;
  app.stepOutput = output;
  return el("span", { class: "control step" }, el("span", { "aria-hidden": "true" }, "Step"), el("button", { type: "button", class: "icon", "aria-label": playing ? "Pause" : "Play the training", onclick: play }, playing ? "❚❚" : "▶"), input, output);
}

let playing = 0;
function play() {
  const { steps } = app.model;
  if (playing) {
    clearInterval(playing);
    playing = 0;
  } else {
    if (app.state.now.step === steps[steps.length - 1]) app.state.set({ step: steps[0] });
    playing = setInterval(() => {
      moveStep(1);
      if (app.state.now.step === steps[steps.length - 1]) play();
    }, Math.max(60, Math.min(400, 8000 / steps.length)));
  }
  drawControls();
}

function drawButtons() {
  const { state } = app;
  byId("buttons").replaceChildren(
    el("button", { type: "button", class: "icon", "aria-label": isDark() ? "Light page" : "Dark page", title: "Light or dark", onclick: () => state.set({ theme: isDark() ? "light" : "dark" }) }, isDark() ? "☀" : "☾"),
    el("button", { type: "button", class: "icon", title: "Copy a link that restores this selection", onclick: copyLink }, "Copy link"),
    el("button", { type: "button", class: "icon", onclick: () => window.print() }, "Print"),
  );
}

async function copyLink() {
  app.state.write();
  try {
    await navigator.clipboard.writeText(location.href);
    toast("The link is copied; it restores this selection");
  } catch {
    toast("The link stands in the address bar");
  }
}
