// The end of the page: what the measures are, and how exact the numbers are.

const GLOSSARY = [
  ["ΔM", "mean over a matrix’ rows (or columns) of | ‖w after‖ − ‖w before‖ |"],
  ["ΔD", "mean over a matrix’ rows (or columns) of 1 − cos(w before, w after), from 0 to 2"],
  ["rows, columns", "one vector per output feature W[i, :], or per input feature W[:, j]"],
  ["W₀ → t", "from the base weights to a checkpoint; “first → t” from the first checkpoint, “t−1 → t” from the one before"],
  ["ΔW", "the true update W − W₀, whatever the method does to its base"],
  ["stable rank", "‖ΔW‖² / σ₁² with the Frobenius norm: how many directions carry the update"],
  ["effective rank", "exp of the entropy of σ / Σσ"],
  ["entropy", "of σ / Σσ, as a share of its largest value log min(out, in): 1 where all directions are alike"],
  ["r, slope", "Pearson’s correlation of ΔM with ΔD over the matrices of one checkpoint, and the slope of the line of least squares"],
  ["rotation", "the largest principal angle between the leading k singular subspaces of W₀ and of W′, on the input (right) or output (left) side"],
  ["spectral drift", "how far the singular values of W′ are from W₀’s, ‖σ(W′) − σ(W₀)‖ / ‖σ(W₀)‖"],
  ["off-principal", "share of ‖ΔW‖² outside of W₀’s leading k subspaces on both sides; what is inside is the rest to 1"],
  ["visible in bfloat16", "share of weights that are another number once W₀ and W′ are stored in bfloat16"],
  ["signs, Jaccard", "share of entries that two updates move the same way; and of the weights that either changes in bfloat16, those that both do"],
  ["overlap φ(k, k)", "share of the span of k leading singular directions that lies in the other’s; chance is k / n"],
];

function footView() {
  const { about } = app.model;
  const worst = Math.max(...about.columns.map((entry) => entry.precision), 0);
  byId("foot").append(
    el("h2", null, "How to read this"),
    el("dl", null, GLOSSARY.map(([name, text]) => [el("dt", null, name), el("dd", null, text)])),
    el("p", null, `Made by deltaw ${about.version} on ${about.made}${about.watch ? ", and made anew while the runs go on" : ""}. This file holds everything and asks for nothing over a network. Changes, norms and ranks are kept to seven digits${worst > 2 ** -24 ? `; singular values and overlaps to ${number(worst, 2)} of their size` : ""}. ← and → on a drawing move the step.`),
    el("p", { class: "sub" }, "Drawn with Apache ECharts, Apache License 2.0."),
  );
}
