// The end of the page: what the measures are, and how exact the numbers are.

const GLOSSARY = [
  ["ΔM", "mean over a matrix’ rows (or columns) of | ‖w after‖ − ‖w before‖ |"],
  ["ΔD", "mean over a matrix’ rows (or columns) of 1 − cos(w before, w after), from 0 to 2"],
  ["rows, columns", "one vector per output feature W[i, :], or per input feature W[:, j]"],
  ["W₀ → t", "from the base weights to a checkpoint; “first → t” from the first checkpoint, “t−1 → t” from the one before"],
  ["ΔW", "the true update W − W₀, whatever the method does to its base"],
  ["stable rank", "‖ΔW‖² / σ₁² with the Frobenius norm: how many directions carry the update"],
  ["effective rank", "exp of the entropy of σ / Σσ"],
  ["overlap φ(k, k)", "share of the span of k leading singular directions that lies in the other’s; chance is k / n"],
];

function footView() {
  const { about } = app.model;
  const worst = Math.max(...about.columns.map((entry) => entry.precision), 0);
  byId("foot").append(
    el("h2", null, "How to read this"),
    el("dl", null, GLOSSARY.map(([name, text]) => [el("dt", null, name), el("dd", null, text)])),
    el("p", null, `Made by deltaw ${about.version} on ${about.made}${about.watch ? ", and made anew while the runs go on" : ""}. This file holds everything and asks for nothing over a network. Changes, norms and ranks are kept to seven digits; singular values and overlaps to ${number(worst, 2)} of their size. ← and → on a drawing move the step.`),
    el("p", { class: "sub" }, "Drawn with Apache ECharts, Apache License 2.0."),
  );
}
