// How ΔM and ΔD go together: the same formulas as deltaw.correlation, which a test holds these to.

const Z95 = 1.959963984540054;

function correlation(x, y) {
  const xs = [];
  const ys = [];
  for (let i = 0; i < x.length; i++) {
    if (Number.isFinite(x[i]) && Number.isFinite(y[i])) {
      xs.push(x[i]);
      ys.push(y[i]);
    }
  }
  const n = xs.length;
  const none = { n, r: NaN, slope: NaN, intercept: NaN, low: NaN, high: NaN, xLow: NaN, xHigh: NaN };
  if (n < 2) return none;
  const xScale = centred(xs);
  const yScale = centred(ys);
  if (xScale.scale === 0) return none;
  let xx = 0;
  let yy = 0;
  let xy = 0;
  for (let i = 0; i < n; i++) {
    const a = xScale.values[i];
    const b = yScale.values[i];
    xx += a * a;
    yy += b * b;
    xy += a * b;
  }
  const slope = (xy / xx) * (yScale.scale / xScale.scale || 0);
  const r = yScale.scale === 0 ? NaN : Math.max(-1, Math.min(1, xy / Math.sqrt(xx * yy)));
  let [low, high] = [NaN, NaN];
  if (n >= 4 && !Number.isNaN(r)) {
    const half = Z95 / Math.sqrt(n - 3);
    [low, high] = Math.abs(r) === 1 ? [r, r] : [Math.tanh(Math.atanh(r) - half), Math.tanh(Math.atanh(r) + half)];
  }
  const intercept = yScale.mean - slope * xScale.mean;
  return { n, r, slope, intercept, low, high, xLow: Math.min(...xs), xHigh: Math.max(...xs) };
}

// (values − mean) / scale, so that values of 1e-10 lose no digit.
function centred(values) {
  const first = values[0];
  let scale = 0;
  for (const value of values) scale = Math.max(scale, Math.abs(value - first));
  const shifted = values.map((value) => (value - first) / (scale || 1));
  const offset = shifted.reduce((sum, value) => sum + value, 0) / values.length;
  return { values: shifted.map((value) => value - offset), mean: first + offset * scale, scale };
}

function extent(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (Number.isFinite(value)) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  return low <= high ? [low, high] : [NaN, NaN];
}

// The next round number above a value: 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6 or 8 times a power of ten.
function roundUp(value) {
  if (!(value > 0) || !Number.isFinite(value)) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return unit * ([1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].find((step) => step * unit >= value * (1 - 1e-9)) || 10);
}

function mean(values) {
  let sum = 0;
  let n = 0;
  for (const value of values) {
    if (Number.isFinite(value)) {
      sum += value;
      n += 1;
    }
  }
  return n ? sum / n : NaN;
}
