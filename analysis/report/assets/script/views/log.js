// What was logged: the loss, and a score of choice.

const UNINTERESTING = /(runtime|per_second|total_flos|train_loss$|^epoch$|samples|num_tokens)/;

function logView() {
  const { model } = app;
  const names = [...new Set(model.runs.flatMap((run) => model.names(`${run.index}.scalar.`)))];
  const losses = names.filter((name) => /loss/i.test(name) && !UNINTERESTING.test(name));
  const others = names.filter((name) => !losses.includes(name) && !UNINTERESTING.test(name));
  const first = others.find((name) => /mcc|acc|f1|bleu|rouge|score|reward/i.test(name)) || others[0] || "";
  const node = section("log", "Loss and score", "What the runs logged while they trained.");
  const cells = grid(node);
  const scored = model.runs.some((run) => Object.keys(run.scores || {}).length);
  if (!losses.length && !others.length) {
    const scores = scored ? "The scores at the end stand in the first table." : "No result with a score was left either.";
    const notes = model.notes("scalars").map((note) => shortened(note, 300));
    cells.append(el("div", { class: "card w12 empty" }, el("span", null, `No loss and no score was logged: a folder of weights alone has none. ${scores} A recorded run has what recorder.step(step, loss=…) is given, or what the Trainer logs.`, notes.length ? ` ${notes.join(" ")}` : "")));
    return;
  }
  if (losses.length) new Card(cells, { id: "loss", title: "Loss", width: others.length ? "w6" : "w12", height: 280, make: (selection) => logOf(losses, selection), click: pickStep });
  if (!others.length) {
    if (!scored) node.querySelector(".lead").textContent += " No score was logged, and no result with one was left.";
    return;
  }
  const chosen = (selection) => (others.includes(selection.score) ? selection.score : first);
  new Card(cells, {
    id: "score", title: "Score", width: losses.length ? "w6" : "w12", height: 280, click: pickStep,
    make: (selection) => ({ ...logOf([chosen(selection)], selection), title: shortened(chosen(selection), 50) }),
    tools: (selection) => [choice("What was logged", others.map((name) => [name, name]), chosen(selection), (score) => app.state.set({ score }))],
  });
}

function logOf(names, selection) {
  const { model, state } = app;
  const curves = [];
  for (const run of state.shown) {
    for (const name of names) {
      const column = model.column(`${run.index}.scalar.${name}`);
      if (!column) continue;
      const n = column.shape[1];
      const data = Array.from({ length: n }, (_, i) => [column.values[i], column.values[n + i]]);
      if (data.some(([, y]) => Number.isFinite(y))) curves.push({ run, name, data: data.map(([x, y]) => [x, Number.isFinite(y) ? y : null]), evaluated: /eval/i.test(name) });
    }
  }
  if (!curves.length) return { empty: "The runs that are shown logged nothing of this." };
  const steps = [...model.steps, ...curves.flatMap(({ data }) => data.map(([x]) => x))];
  const [first, last] = extent(steps);
  const both = new Set(curves.map(({ name }) => name)).size > 1;
  return {
    sub: both ? "thin: in training; strong: evaluated" : "",
    says: spoken(curves),
    rows: [["run", "name", "step", "value"], ...curves.flatMap(({ run, name, data }) => data.map(([x, y]) => [run.name, name, x, y ?? NaN]))],
    height: 280,
    option: {
      grid: { left: 54, right: 14, top: 14, bottom: 44 },
      xAxis: { type: "value", min: first, max: last, name: "step", nameLocation: "middle", nameGap: 24, splitLine: { show: false }, axisLine: { show: true, lineStyle: { color: paint("line") } }, axisLabel: { formatter: count, alignMaxLabel: "right" } },
      yAxis: { type: "value", scale: true, axisLabel: { formatter: tick } },
      tooltip: { trigger: "axis", formatter: (hits) => tip(`step ${hits.length ? hits[0].value[0] : ""}`, hits.map((hit) => ({ run: curves[hit.seriesIndex].run, name: curves[hit.seriesIndex].run.name, value: number(hit.value[1], 4), sub: both ? shortened(curves[hit.seriesIndex].name, 18) : null }))) },
      series: curves.map(({ run, data, evaluated }, i) => lineOf(run, { data, connectNulls: true, showSymbol: data.length < 12, lineStyle: { width: both && !evaluated ? 1 : 2, opacity: both && !evaluated ? 0.55 : 1, type: DASHES[run.line], color: colorOf(run) }, markLine: i === 0 && model.trained ? stepMark(selection) : undefined })),
    },
  };
}
