// The columns of numbers: one compressed text, see analysis/report/pack.py.

const ARRAYS = { f32: Float32Array, u8: Uint8Array, u16: Uint16Array, u32: Uint32Array };

async function unpacked(text) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("this browser is too old to unpack the numbers; Chrome 80, Firefox 113 or Safari 16.4 can");
  }
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// All first bytes of a column's numbers stand together, then all second ones, and so on.
function columnOf(entry, bytes) {
  const kind = ARRAYS[entry.type];
  const length = entry.shape.reduce((product, size) => product * size, 1);
  const width = kind.BYTES_PER_ELEMENT;
  const data = new Uint8Array(length * width);
  for (let part = 0; part < width; part++) {
    const from = entry.start + part * length;
    for (let i = 0; i < length; i++) data[i * width + part] = bytes[from + i];
  }
  const codes = new kind(data.buffer);
  if (!entry.scale) return { values: codes, shape: entry.shape };
  const [low, high] = entry.scale.map(Math.log);
  const values = Float64Array.from(codes, (code) => {
    if (code === 0) return NaN;
    return code === 1 ? 0 : Math.exp(low + ((code - 2) / 65533) * (high - low));
  });
  return { values, shape: entry.shape };
}
