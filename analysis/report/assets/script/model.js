// What the report holds, and what is read off it for a selection.

// Kinds in the order of a block; others after them, as they come.
const KINDS = ["query", "key", "value", "qkv", "output", "gate", "up", "gate_up", "down"];
const usual = (kind) => (KINDS.includes(kind) ? KINDS.indexOf(kind) : KINDS.length);

class Model {
  constructor(about, bytes) {
    this.about = about;
    this.runs = about.runs.map((run, index) => ({ ...run, index, places: new Map(run.modules.map((m, i) => [m, i])) }));
    this.modules = about.modules.map((module, index) => ({ ...module, index }));
    this.table = new Map(about.columns.map((entry) => [entry.name, entry]));
    this.bytes = bytes;
    this.columns = new Map();
    this.curves = new Map();
    this.steps = [...new Set(this.runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
    this.kinds = [...new Set(this.modules.map((module) => module.kind))].sort((a, b) => usual(a) - usual(b));
    this.layers = [...new Set(this.modules.map((module) => module.layer).filter((layer) => layer !== null))].sort((a, b) => a - b);
    // Within a layer by kind, in the order of a block.
    const run = this.modules.map((module, i) => i);
    for (let i = 1; i < run.length; i++) if (this.modules[i].layer === this.modules[i - 1].layer) run[i] = run[i - 1];
    const kindOf = (i) => (this.modules[i].layer === null ? 0 : usual(this.modules[i].kind));
    this.inOrder = run.map((_, i) => i).sort((a, b) => run[a] - run[b] || kindOf(a) - kindOf(b) || a - b).map((i) => this.modules[i]);
    this.pairs = ["base", "initial", "consecutive"].filter((pairs) =>
      this.runs.some((run) => this.table.has(`${run.index}.changes.${pairs}.row.m`)),
    );
    this.axes = ["row", "column", "matrix"].filter((axis) => axis !== "matrix" || [...this.table.keys()].some((name) => name.includes(".matrix.")));
    this.trained = this.runs.some((run) => run.steps.length > 1);
  }

  column(name) {
    if (!this.columns.has(name)) {
      const entry = this.table.get(name);
      this.columns.set(name, entry ? columnOf(entry, this.bytes) : null);
    }
    return this.columns.get(name);
  }

  names(prefix) {
    return [...this.table.keys()].filter((name) => name.startsWith(prefix)).map((name) => name.slice(prefix.length));
  }

  // The place of a run's last checkpoint up to a step; −1 where it has none yet.
  place(run, step, steps) {
    const of = steps || run.steps;
    let [low, high] = [0, of.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (of[middle] <= step) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  // One number of a matrix at a checkpoint's place: a change "changes.base.row.m", or a spectrum's "spectra.rank".
  value(run, name, module, place) {
    if (name === "spectra.relative") {
      const norms = this.column(`${run.index}.base_norm`);
      const position = run.places.get(module);
      return norms && position !== undefined
        ? this.value(run, "spectra.frobenius", module, place) / norms.values[position]
        : NaN;
    }
    if (name === "spectra.entropy") return this.evenness(module, this.value(run, "spectra.effective_rank", module, place));
    const column = this.column(`${run.index}.${name}`);
    const position = run.places.get(module);
    if (!column || position === undefined || place < 0) return NaN;
    return column.values[position * column.shape[1] + place];
  }

  has(run, name) {
    if (name === "spectra.relative") return this.has(run, "spectra.frobenius") && this.table.has(`${run.index}.base_norm`);
    if (name === "spectra.entropy") return this.has(run, "spectra.effective_rank");
    return this.table.has(`${run.index}.${name}`);
  }

  // The normalised entropy of σ: the effective rank is exp(H).
  evenness(module, rank) {
    const size = Math.min(...this.modules[module].shape);
    return rank > 0 && size > 1 ? Math.log(rank) / Math.log(size) : NaN;
  }

  chosen(selection) {
    const key = `${selection.kind}|${selection.layer}`;
    if (this.chosenKey !== key) {
      this.chosenKey = key;
      this.chosenModules = this.inOrder.filter(
        (module) =>
          (selection.kind === "all" || module.kind === selection.kind) &&
          (selection.layer === "all" || String(module.layer) === selection.layer),
      );
    }
    return this.chosenModules;
  }

  // The mean over the chosen matrices at every checkpoint of a run.
  curve(run, name, selection) {
    const key = `${run.index}|${name}|${selection.kind}|${selection.layer}`;
    if (!this.curves.has(key)) this.curves.set(key, this.means(run, name, this.chosen(selection)));
    return this.curves.get(key);
  }

  means(run, name, modules) {
    const steps = run.steps.length;
    const relative = name === "spectra.relative";
    const even = name === "spectra.entropy";
    const column = this.column(`${run.index}.${relative ? "spectra.frobenius" : even ? "spectra.effective_rank" : name}`);
    const norms = relative ? this.column(`${run.index}.base_norm`).values : null;
    const sums = new Float64Array(steps);
    const counts = new Uint32Array(steps);
    for (const module of modules) {
      const position = run.places.get(module.index);
      if (position === undefined) continue;
      const unit = norms ? norms[position] : 1;
      for (let place = 0, at = position * steps; place < steps; place++, at++) {
        const value = even ? this.evenness(module.index, column.values[at]) : column.values[at] / unit;
        if (Number.isFinite(value)) {
          sums[place] += value;
          counts[place] += 1;
        }
      }
    }
    return Array.from(sums, (sum, place) => (counts[place] ? sum / counts[place] : NaN));
  }

  // Of how many of the chosen matrices each run has a number, in words: "6 matrices", or "6 to 12 matrices".
  measured(runs, name, selection) {
    const counts = runs.map((run) => this.chosen(selection).filter((module) => Number.isFinite(this.value(run, name, module.index, run.steps.length - 1))).length);
    const [least, most] = [Math.min(...counts), Math.max(...counts)];
    return least === most ? many(most, "matrix", "matrices") : `${count(least)} to ${many(most, "matrix", "matrices")}`;
  }

  at(run, name, selection) {
    const place = this.place(run, selection.step);
    return place < 0 || !this.has(run, name) ? NaN : this.curve(run, name, selection)[place];
  }

  // The checkpoints at which something was measured: spectra and geometry are not at all of them.
  stepsOf(run, name) {
    return name.startsWith("spectra.") ? run.details : name.startsWith("geometry.") ? run.geometry : run.steps;
  }

  // The last of these checkpoints up to a step, or the first, and its place among all.
  detail(run, step, steps) {
    const of = steps || run.details;
    const at = Math.max(0, this.place(run, step, of));
    return of.length ? { place: at, step: of[at], among: run.steps.indexOf(of[at]) } : null;
  }

  notes(...parts) {
    return parts.flatMap((part) => this.about.notes[part] || []);
  }
}
