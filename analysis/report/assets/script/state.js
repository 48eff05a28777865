// The one selection that all views share. It stands in the address after #, so that a link restores it.

class State {
  constructor(model) {
    this.model = model;
    this.listeners = [];
    const last = model.steps.length ? model.steps[model.steps.length - 1] : 0;
    this.defaults = {
      off: "", run: 0, kind: "all", layer: "all", axis: "row", pairs: model.pairs[0] || "base", step: last, module: -1,
      scale: "linear", asymmetry: "d", points: "step", cloud: "apart", map: this.defaultMap(), spread: "d", spectrum: "stable_rank", geometry: "rotation_right",
      between: "overlap.right", k: this.defaultDirections(), first: 0, second: 1, score: "", sort: "d", order: "descending", find: "", page: 0,
      verdict: "checked", theme: "",
    };
    this.now = { ...this.defaults, ...this.read() };
  }

  defaultMap() {
    if (this.model.pairs.length) return "d";
    return "frobenius";
  }

  // As many leading directions as any two runs have that have one.
  defaultDirections() {
    const ranks = this.model.about.sizes.ranks;
    const column = this.model.column("between.overlap.right");
    if (!column) return ranks;
    const known = Array.from({ length: ranks }, () => 0);
    column.values.forEach((value, at) => { known[at % ranks] += Number.isFinite(value); });
    return Math.max(1, known.lastIndexOf(known[0]) + 1);
  }

  read() {
    const found = {};
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      if (!(name in this.defaults)) continue;
      const value = typeof this.defaults[name] === "number" ? Number(text) : text;
      if (typeof value === "string" || Number.isFinite(value)) found[name] = value;
    }
    return this.sound(found);
  }

  // A link may be of another report, or of nobody's: what is not there is left out.
  sound(found) {
    const { model } = this;
    const among = {
      kind: ["all", ...model.kinds],
      layer: ["all", ...model.layers.map(String)],
      axis: model.axes,
      pairs: model.pairs,
      step: model.steps,
      run: model.runs.map((run) => run.index),
      first: model.runs.map((run) => run.index),
      second: model.runs.map((run) => run.index),
      module: [-1, ...model.modules.map((module) => module.index)],
      scale: ["linear", "log"],
      asymmetry: ["m", "d"],
      spread: ["m", "d"],
      points: ["step", "trail"],
      cloud: ["apart", "together"],
      map: Object.keys(MAPS),
      spectrum: Object.keys(SPECTRA),
      geometry: Object.keys(GEOMETRY),
      between: Object.keys(BETWEEN),
      k: Array.from({ length: model.about.sizes.ranks }, (_, i) => i + 1),
      order: ["ascending", "descending"],
      theme: ["", "light", "dark"],
    };
    for (const [name, choices] of Object.entries(among)) {
      if (name in found && !choices.includes(found[name])) delete found[name];
    }
    return found;
  }

  get shown() {
    const off = new Set(this.now.off.split(",").filter(Boolean).map(Number));
    const shown = this.model.runs.filter((run) => !off.has(run.index));
    return shown.length ? shown : this.model.runs;
  }

  get focus() {
    return this.model.runs[this.now.run];
  }

  set(changes) {
    const before = this.now;
    this.now = { ...before, ...this.sound({ ...changes }) };
    const changed = new Set(Object.keys(this.now).filter((name) => this.now[name] !== before[name]));
    if (!changed.size) return;
    this.write();
    for (const listener of this.listeners) listener(changed);
  }

  restore() {
    const before = this.now;
    this.now = { ...this.defaults, ...this.read() };
    const changed = new Set(Object.keys(this.now).filter((name) => this.now[name] !== before[name]));
    if (changed.size) for (const listener of this.listeners) listener(changed);
  }

  write() {
    const words = new URLSearchParams();
    for (const [name, value] of Object.entries(this.now)) if (value !== this.defaults[name]) words.set(name, value);
    const hash = words.toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }
}
