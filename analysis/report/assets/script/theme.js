// Light and dark, and the colours of the drawings: those of the page, and of each run its method's.

function isDark() {
  return document.documentElement.dataset.theme === "dark";
}

function applyTheme(chosen) {
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  palette = null;
}

let palette = null;
function paint(name) {
  if (!palette) {
    const style = getComputedStyle(document.documentElement);
    palette = {};
    for (const word of ["paper", "card", "raised", "ink", "soft", "faint", "line", "hair", "accent", "tint"]) {
      palette[word] = style.getPropertyValue(`--${word}`).trim();
    }
  }
  return palette[name];
}

function mixed(color, other, share) {
  const parts = [color, other].map((text) => [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16)));
  const blend = parts[0].map((value, i) => Math.round(value * (1 - share) + parts[1][i] * share));
  return `#${blend.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function brightness(color) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16) / 255);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// The figures' colours are made for white paper; on a dark page the darkest become light.
function colorOf(run) {
  const light = brightness(run.color);
  if (!isDark()) return light < 0.02 ? "#1a1e23" : run.color;
  return light < 0.02 ? "#e8eaed" : light < 0.45 ? mixed(run.color, "#ffffff", 0.42 - light * 0.6) : run.color;
}

const HEAT = {
  light: ["#f4f6fa", "#d3dff0", "#9fbfe0", "#5b93c8", "#2566a5", "#123c6e"],
  dark: ["#1b222c", "#1d3a58", "#22608f", "#3a8cc2", "#7cc0e6", "#dcf1fb"],
};
const heat = () => HEAT[isDark() ? "dark" : "light"];

// Colours of what is no run: kinds of matrices (Okabe and Ito's, and two of Tol's).
const KIND_COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933"];
const kindColor = (i) => (isDark() ? mixed(KIND_COLORS[i % 8], "#ffffff", 0.3) : KIND_COLORS[i % 8]);
const kindLegend = (names) => ({ icon: "roundRect", itemWidth: 14, itemHeight: 3, itemGap: 12, textStyle: { color: paint("soft"), fontSize: 12 }, type: "scroll", data: names, formatter: (name) => shortened(name, 20) });

const DASHES = { solid: "solid", dashed: [7, 4], dotted: [2, 3], dashdot: [8, 3, 2, 3] };
