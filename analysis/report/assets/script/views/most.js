// The table "what moved most": every matrix of every shown run at the selected step.

const PAGE = 20;

function mostView() {
  const { model } = app;
  const node = section("most", "What moved most", "Every matrix of the shown runs at the selected step. Click a head to sort, a row to look into the matrix.");
  const box = el("div", { class: "card" });
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "What moved most" });
  const pager = el("div", { class: "pager" });
  const search = el("input", { type: "search", placeholder: "Find a module, run or kind", "aria-label": "Find a module, run or kind", value: app.state.now.find, oninput: (event) => app.state.set({ find: event.target.value, page: 0 }) });
  const save = el("button", { type: "button", class: "icon", id: "most-csv", onclick: saveMost }, "CSV of all rows");
  node.append(box);
  box.append(el("div", { class: "card-head" }, el("div", { class: "card-text" }, search), el("div", { class: "tools" }, save)), scroll, pager);
  lazily(
    box,
    () => {
    const rows = mostRows();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    const page = Math.min(app.state.now.page, pages - 1);
    const nothing = rows.length ? (mostColumns().some((column) => column.name) ? "" : unmeasured(["changes", "spectra"], "Nothing was measured of these matrices.")) : "No matrix fits this selection and search.";
    refill(scroll, ...(nothing ? [el("div", { class: "empty" }, nothing)] : []), ...(rows.length ? [mostTable(rows.slice(page * PAGE, (page + 1) * PAGE), rows)] : []));
    if (document.activeElement !== search) search.value = app.state.now.find;
    refill(
      pager,
      el("span", null, `${many(rows.length, "row")}${pages > 1 ? `, page ${page + 1} of ${pages}` : ""}`),
      pages > 1 ? el("span", null, el("button", { type: "button", disabled: page === 0, onclick: () => app.state.set({ page: page - 1 }) }, "Before"), " ", el("button", { type: "button", disabled: page === pages - 1, onclick: () => app.state.set({ page: page + 1 }) }, "Next")) : "",
    );
    },
    (name) => !["verdict", "spectrum", "geometry", "between", "k", "score", "first", "second"].includes(name),
  );
}

function saveMost() {
  const columns = mostColumns();
  downloadCsv("what-moved-most.csv", [columns.map((column) => column.text), ...mostRows().map((row) => columns.map((column) => column.of(row)))]);
}

function mostColumns() {
  const { model } = app;
  const { now } = app.state;
  const of = (name) => (row) => row.numbers[name];
  const columns = [
    { key: "run", text: "run", of: (row) => row.run.name },
    { key: "module", text: "module", of: (row) => row.module.name },
    { key: "layer", text: "layer", numeric: true, of: (row) => row.module.layer ?? NaN },
    { key: "kind", text: "kind", of: (row) => row.module.kind },
  ];
  if (model.pairs.length) {
    for (const measure of ["m", "d"]) {
      for (const axis of now.axis === "matrix" ? model.axes : ["row", "column"]) columns.push({ key: axis === now.axis ? measure : `${measure}-${axis}`, name: `changes.${now.pairs}.${axis}.${measure}`, text: `${CHANGES[measure]} by ${axis}`, numeric: true, bar: axis === now.axis });
    }
  }
  const k = model.about.sizes.principal;
  for (const [key, text, hint] of [["relative", "‖ΔW‖/‖W₀‖", "Size of the update, relative to W₀"], ["frobenius", "‖ΔW‖", "Frobenius norm of the update"], ["stable_rank", "stable rank", "‖ΔW‖² / σ₁²: how many directions carry the update"], ["rank", "rank", "Numerical rank of the update"]]) columns.push({ key, name: `spectra.${key}`, text, hint, numeric: true });
  for (const [key, text, hint] of [["rotation_right", "rotation,\u00a0°", `How far W₀’s ${k} leading directions of the input side turned`], ["principal", "in W₀’s", `Share of ‖ΔW‖² within W₀’s ${k} leading subspaces`], ["visible_bfloat16", "visible", "Share of weights that are another number in bfloat16"]]) columns.push({ key, name: `geometry.${key}`, text, hint, numeric: true });
  return columns
    .filter((column) => !column.name || model.runs.some((run) => model.has(run, column.name)))
    .map((column) => (column.name ? { ...column, of: of(column.name) } : column));
}

function mostRows() {
  const { model, state } = app;
  const { now } = state;
  const columns = mostColumns();
  const named = columns.filter((column) => column.name);
  const find = now.find.trim().toLowerCase();
  const rows = [];
  for (const run of state.shown) {
    const place = model.place(run, now.step);
    const placeOf = (name) => { const found = model.detail(run, now.step, model.stepsOf(run, name)); return found ? found.among : -1; };
    for (const module of model.chosen(now)) {
      if (!run.places.has(module.index)) continue;
      if (find && !`${run.name} ${module.name} ${module.kind} ${module.label}`.toLowerCase().includes(find)) continue;
      const numbers = {};
      for (const { name } of named) numbers[name] = model.value(run, name, module.index, name.startsWith("changes.") ? place : placeOf(name));
      rows.push({ run, module, numbers });
    }
  }
  const by = columns.find((column) => column.key === now.sort) || named[0] || columns[0];
  const way = now.order === "ascending" ? 1 : -1;
  const rank = (value) => (typeof value === "number" && Number.isNaN(value) ? -Infinity * way * way : value);
  return rows.sort((a, b) => {
    const [x, y] = [by.of(a), by.of(b)].map(rank);
    if (x === -Infinity || y === -Infinity) return x === y ? 0 : x === -Infinity ? 1 : -1; // what was not measured stands last
    return (x < y ? -1 : x > y ? 1 : 0) * way;
  });
}

function mostTable(rows, all) {
  const { state } = app;
  const { now } = state;
  const columns = mostColumns();
  const sorted = columns.find((column) => column.key === now.sort) || columns.find((column) => column.name);
  const most = new Map(columns.filter((column) => column.bar).map((column) => [column, all.map(column.of)]));
  const sort = (column) => state.set({ sort: column.key, page: 0, order: now.sort === column.key && now.order === "descending" ? "ascending" : "descending" });
  return el(
    "table",
    null,
    el("caption", { class: "hidden-text" }, "What moved most"),
    el("thead", null, el("tr", null, columns.map((column) => el("th", { scope: "col", class: column.numeric ? "number" : null, title: column.hint, "aria-sort": column === sorted || (sorted && column.key === sorted.key) ? now.order : null }, el("button", { type: "button", onclick: () => sort(column) }, column.text))))),
    el(
      "tbody",
      null,
      rows.map((row) => {
        const look = () => state.set({ run: row.run.index, module: row.module.index });
        return el(
          "tr",
          { class: "link", tabindex: "0", "aria-selected": String(row.module.index === now.module && row.run.index === now.run), onclick: look, onkeydown: (event) => { if (event.target === event.currentTarget && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); look(); } } },
          columns.map((column) => {
            const value = column.of(row);
            if (column.key === "run") return el("td", null, el("span", { class: "run-name" }, swatch(row.run), nameOf(row.run.name, 22)));
            if (column.bar) return el("td", { class: "number" }, meter(value, most.get(column), row.run));
            if (column.numeric) return el("td", { class: "number" }, column.key === "layer" ? (Number.isFinite(value) ? String(value) : "") : column.key === "visible_bfloat16" ? percent(value) : number(value, 3));
            return el("td", null, nameOf(value, column.key === "module" ? 52 : 20));
          }),
        );
      }),
    ),
  );
}
