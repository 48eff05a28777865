// Numbers and words as they are shown.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

function power(exponent) {
  return `10${[...String(exponent)].map((digit) => SUPERSCRIPT[digit]).join("")}`;
}

// A number to some digits: 0.0123, 1.23×10⁻⁵, 12,345.
function number(value, digits) {
  const places = digits || 3;
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) {
    const [mantissa, exponent] = size.toExponential(places - 1).split("e");
    const shown = mantissa.replace(/\.?0+$/, "");
    return `${value < 0 ? "−" : ""}${shown === "1" ? "" : `${shown}×`}${power(Number(exponent))}`;
  }
  const rounded = size >= 1000 ? Math.round(size).toLocaleString("en-US") : String(Number(size.toPrecision(places)));
  return `${value < 0 ? "−" : ""}${rounded}`;
}

// A number with as many decimals whatever its size: correlations, whose error is the same near 0 and near 1.
const decimals = (value, places) => (Number.isFinite(value) ? (Number(value.toFixed(places)) || 0).toFixed(places).replace("-", "−") : "–");

const tick = (value) => number(value, 6); // where a tick stands the digits are few, and two ticks are never one text
const count = (value) => (Number.isFinite(value) ? Math.round(value).toLocaleString("en-US") : "–");
const percent = (value) => (Number.isFinite(value) ? `${number(100 * value, 3)} %` : "–");
const times = (log) => (Math.abs(log) < 1e-12 ? "1" : `${number(2 ** log, 3)}`);
const many = (quantity, word, plural) => `${count(quantity)} ${quantity === 1 ? word : plural || `${word}s`}`;

function millions(value) {
  if (!Number.isFinite(value)) return "–";
  if (value >= 1e9) return `${number(value / 1e9)} B`;
  if (value >= 1e6) return `${number(value / 1e6)} M`;
  if (value >= 1e4) return `${number(value / 1e3)} k`;
  return count(value);
}

const AXES = { row: "rows", column: "columns", matrix: "whole" };
const CHANGES = { m: "ΔM", d: "ΔD" };
const UNITS = { m: "ΔM, in the weights’ units", d: "ΔD = 1 − cos" };
const PAIRS = {
  base: "since W₀",
  initial: "since the first checkpoint",
  consecutive: "from checkpoint to checkpoint",
};
const PAIRS_SHORT = { base: "W₀ → t", initial: "first → t", consecutive: "t−1 → t" };
const SPECTRA = {
  stable_rank: "stable rank ‖ΔW‖² / σ₁²",
  effective_rank: "effective rank exp(H)",
  entropy: "entropy H / log min(out, in)",
  rank: "rank of ΔW",
  frobenius: "‖ΔW‖ (Frobenius)",
  spectral: "σ₁ of ΔW",
  relative: "‖ΔW‖ / ‖W₀‖",
};
