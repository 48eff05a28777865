// The update against W₀: how far it turns W₀'s leading singular subspaces, where it lies, and what of it is seen.

const GEOMETRY = {
  rotation_right: "rotation of the input side, °",
  rotation_left: "rotation of the output side, °",
  drift: "spectral drift ‖σ(W′) − σ(W₀)‖ / ‖σ(W₀)‖",
  off_principal: "off-principal share of ‖ΔW‖²",
  principal: "share of ‖ΔW‖² within W₀’s subspaces",
  visible_bfloat16: "share of weights that change in bfloat16",
};

// What chance gives: [the column, what it is, whether it is of each run].
const GEOMETRY_CHANCE = {
  rotation_right: ["rotation_random", "a random update of the same norm", true],
  rotation_left: ["rotation_random", "a random update of the same norm", true],
  off_principal: ["off_principal_expected", "a random update", false],
  principal: ["principal_expected", "a random update", false],
};

function geometryView() {
  const { model } = app;
  const k = model.about.sizes.principal;
  const node = section("geometry", "The update against W₀", `How far ΔW turns the subspaces of W₀’s ${k} leading singular directions, how far it moves W₀’s singular values, how much of it lies outside of these subspaces, and how many weights differ once they are stored in bfloat16. Means over the chosen matrices.`);
  const cells = grid(node);
  const choose = (selection) => [
    choice("Measure against W₀", Object.entries(GEOMETRY).filter(([key]) => model.runs.some((run) => model.has(run, `geometry.${key}`))), selection.geometry, (geometry) => app.state.set({ geometry })),
  ];
  const over = model.runs.some((run) => run.geometry.length > 1);
  new Card(cells, { id: "geometry-layers", title: "By layer", width: over ? "w6" : "w12", height: 300, make: (selection) => withNotes(withExpected(overLayers(selection, geometryShown(selection)), selection), "geometry"), tools: choose });
  if (over) new Card(cells, { id: "geometry-training", title: "Over training", width: "w6", height: 300, make: (selection) => overSteps(selection, geometryShown(selection)), click: pickStep });
}

function geometryShown(selection) {
  const key = selection.geometry;
  const chance = GEOMETRY_CHANCE[key];
  const angle = key.startsWith("rotation");
  const wide = angle && app.state.shown.some((run) => app.model.has(run, `geometry.${key}`) && extent(app.model.column(`${run.index}.geometry.${key}`).values)[1] > 45);
  const axes = { principal: { type: "log", scale: false }, off_principal: { scale: true, axisLabel: { formatter: (value) => number(value, 6) } } };
  return {
    name: `geometry.${key}`, text: GEOMETRY[key], short: key, empty: noGeometry,
    chance: chance ? { name: `geometry.${chance[0]}`, text: chance[1], each: chance[2] } : null,
    axis: axes[key] || { scale: false, min: 0, ...(angle && wide ? { max: 90, interval: 30 } : {}), axisLabel: { formatter: angle ? (value) => `${tick(value)}°` : tick } },
    shown: (value) => (value === null || value === undefined ? "–" : angle ? `${number(value, 3)}°` : key === "visible_bfloat16" ? percent(value) : number(value, key === "off_principal" ? 6 : 4)),
  };
}

const noGeometry = () => ({ empty: unmeasured(["geometry"], "This was not measured.") });
const withNotes = (made, part) => (made.option ? { ...made, notes: app.model.notes(part) } : made);

// Two random subspaces are far more than any update turns one: said, and not drawn.
function withExpected(made, selection) {
  const { model, state } = app;
  if (!made.option || !selection.geometry.startsWith("rotation")) return made;
  const run = state.shown.find((one) => model.has(one, "geometry.rotation_expected"));
  const expected = run ? mean(model.chosen(selection).map((module) => model.value(run, "geometry.rotation_expected", module.index, run.steps.indexOf(run.geometry[run.geometry.length - 1])))) : NaN;
  return Number.isFinite(expected) ? { ...made, sub: `${made.sub}; two random subspaces: ${number(expected, 3)}°` } : made;
}
