// Elements of the page. Names of strangers become text nodes and attributes of plain text: nothing is ever parsed as HTML.

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// New children in the place of the old ones; the focus stays on what stands where the focused one stood.
const FOCUSABLE = "button, select, input, summary, a[href], [tabindex='0']";
function refill(node, ...children) {
  const at = node.contains(document.activeElement) ? [...node.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement) : -1;
  node.replaceChildren(...children);
  const again = at < 0 ? null : node.querySelectorAll(FOCUSABLE)[at];
  if (again) again.focus({ preventScroll: true });
}

const byId = (id) => document.getElementById(id);

// A long text by its beginning and its end, which is where names of modules differ.
function shortened(given, most) {
  const text = String(given);
  const limit = most || 60;
  if (text.length <= limit) return text;
  const begin = text.slice(0, Math.ceil(limit / 2) - 1).replace(/[\ud800-\udbff]$/, ""); // half of an emoji is none
  return `${begin}…${text.slice(1 - Math.floor(limit / 2)).replace(/^[\udc00-\udfff]/, "")}`;
}

function nameOf(text, most) {
  const shown = shortened(text, most);
  return el("bdi", { class: "name", title: shown === text && text.length < 24 ? null : shortened(text, 400) }, shown);
}

function swatch(run) {
  return el("span", { class: `swatch ${run.line}`, style: { borderColor: colorOf(run) }, "aria-hidden": "true" });
}

function segments(label, choices, chosen, pick) {
  return el(
    "span",
    { class: "segments", role: "group", "aria-label": label },
    choices.map(([value, text, disabled]) =>
      el("button", { type: "button", "aria-pressed": String(value === chosen), disabled, onclick: () => pick(value) }, text),
    ),
  );
}

function choice(label, choices, chosen, pick) {
  const select = el(
    "select",
    { "aria-label": label, onchange: (event) => pick(event.target.value) },
    choices.map(([value, text]) => el("option", { value, selected: String(value) === String(chosen) }, shortened(text, 48))),
  );
  return select;
}

let toastTimer = 0;
function toast(text) {
  const node = byId("toast");
  node.textContent = text;
  node.classList.add("on");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => node.classList.remove("on"), 2200);
}

function download(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// The fewest digits that say the number: of one that was kept in float32 not those that float64 would add to it.
function digitsOf(value) {
  if (Math.fround(value) !== value) return String(value);
  for (let places = 6; places < 9; places++) {
    const shorter = Number(value.toPrecision(places));
    if (Math.fround(shorter) === value) return String(shorter);
  }
  return String(value);
}

// A text that begins like a formula is computed by a spreadsheet, even in a file of somebody else's: an apostrophe marks it.
function csvCell(value) {
  if (typeof value === "number") return Number.isFinite(value) ? digitsOf(value) : "";
  if (value === null || value === undefined) return "";
  const text = /^[=+\-@\t\r\n]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function downloadCsv(name, rows) {
  const text = rows.map((row) => row.map(csvCell).join(",")).join("\r\n");
  download(name, new Blob(["\ufeff", text, "\r\n"], { type: "text/csv;charset=utf-8" }));
}
