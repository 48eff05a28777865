// Reads what the file holds, builds the views, and redraws what a selection changes.

const app = { model: null, state: null, frame: 0 };

// Which parts of a selection leave the drawings as they are.
const NOT_DRAWN = new Set(["theme", "find", "page", "sort", "order", "verdict"]);

function section(id, title, lead) {
  const node = el("section", { id, "aria-labelledby": `${id}-heading` }, el("h2", { id: `${id}-heading` }, title), lead ? el("p", { class: "lead" }, lead) : null);
  byId("sections").append(node);
  return node;
}

function grid(parent) {
  const node = el("div", { class: "grid" });
  parent.append(node);
  return node;
}

function changed(names) {
  if (names.has("theme")) {
    applyTheme(app.state.now.theme);
    drawButtons();
  }
  const onlyStep = names.size === 1 && names.has("step");
  if (names.has("theme") || names.has("off")) drawChips();
  if (onlyStep && app.stepInput) {
    app.stepInput.value = app.model.steps.indexOf(app.state.now.step);
    app.stepInput.setAttribute("aria-valuetext", `step ${app.state.now.step}`);
    app.stepOutput.textContent = `${app.state.now.step}`;
  } else drawControls();
  for (const drawing of drawings) drawing.dirty = drawing.dirty || [...names].some((name) => drawing.concerned(name));
  drawSoon();
  if (![...names].every((name) => NOT_DRAWN.has(name))) say();
}

// What is chosen, for paper, where the controls are not.
function selectionInWords() {
  const { now } = app.state;
  const { model } = app;
  return [
    now.kind === "all" ? "all kinds of matrices" : `${now.kind} matrices`, now.layer === "all" ? "all layers" : `layer ${now.layer}`, `by ${now.axis}`,
    model.pairs.length ? PAIRS[now.pairs] : null, model.trained ? `at step ${now.step}` : null,
    now.module >= 0 ? `matrix ${shortened(model.modules[now.module].name, 120)} of ${shortened(app.state.focus.name, 60)}` : null,
  ].filter(Boolean).join(", ").replace(/^./, (letter) => letter.toUpperCase());
}

// On paper every drawing is a picture on white, as wide as its place there.
function beforePrint() {
  applyTheme("light");
  byId("runs").append(el("p", { class: "printed lead" }, selectionInWords()));
  for (const more of document.querySelectorAll("details.more")) if (!more.open) { more.open = true; more.dataset.folded = "true"; }
  drawChips();
  for (const drawing of drawings) {
    drawing.dirty = true;
    drawing.draw();
    if (!drawing.chart || drawing.plot.hidden) continue;
    drawing.chart.getZr().flush();
    drawing.plot.after(el("img", { class: "printed", alt: drawing.plot.getAttribute("aria-label"), src: drawing.chart.getDataURL({ pixelRatio: devicePixelRatio + 1, backgroundColor: "#ffffff" }) }));
  }
}

function afterPrint() {
  for (const picture of document.querySelectorAll(".printed")) picture.remove();
  for (const more of document.querySelectorAll("details.more[data-folded]")) { more.open = false; delete more.dataset.folded; }
  changed(new Set(["theme"]));
}

// An open page reads its file anew while its runs go on, and stays where it is read: the card at the top keeps its place,
// a focused drawing its focus. It waits while something is typed, chosen or played.
const places = () => document.querySelectorAll("section .card[id], section");
function follow(after) {
  const back = history.state;
  const node = back && byId(back.at);
  if (node) {
    const there = () => scrollBy(0, node.getBoundingClientRect().top - back.top);
    there();
    const stay = new ResizeObserver(there); // what is near is drawn a moment later, and only then has its height
    stay.observe(byId("sections"));
    const leave = () => stay.disconnect();
    setTimeout(leave, 3000);
    for (const act of ["wheel", "touchstart", "pointerdown", "keydown"]) addEventListener(act, leave, { once: true });
    if (back.focus && byId(back.focus)) byId(back.focus).querySelector(".plot").focus({ preventScroll: true });
  }
  setTimeout(readAnew, after);
}

function readAnew() {
  const focused = document.activeElement;
  if (playing || focused.matches("input, select") || document.querySelector(".save[open]")) {
    setTimeout(readAnew, 2000);
    return;
  }
  const top = [...places()].find((node) => node.getBoundingClientRect().top >= 0 && isSeen(node));
  const card = focused.closest(".plot") && focused.closest(".card[id]");
  history.replaceState(scrollY > 0 && top ? { at: top.id, top: top.getBoundingClientRect().top, focus: card ? card.id : "" } : null, "");
  location.reload();
}

// What is chosen is said to readers of screens, once it stays so.
let saying = 0;
function say() {
  clearTimeout(saying);
  saying = setTimeout(() => { byId("said").textContent = selectionInWords(); }, 500);
}

async function begin() {
  const about = JSON.parse(byId("about").textContent);
  const model = new Model(about, await unpacked(byId("numbers").textContent));
  byId("numbers").remove();
  app.model = model;
  app.state = new State(model);
  applyTheme(app.state.now.theme);
  drawChips();
  drawButtons();
  drawControls();
  byId("sections").hidden = false;
  for (const build of [runsView, changesView, togetherView, whereView, spectrumView, geometryView, betweenView, logView, mostView, claimsView, footView]) {
    try {
      build();
    } catch (error) {
      byId("sections").append(el("p", { class: "message" }, failed(error))); // the other views go on
    }
  }
  byId("message").remove();
  byId("foot").hidden = false;
  app.state.listeners.push(changed);
  window.addEventListener("hashchange", () => app.state.restore());
  window.addEventListener("resize", () => requestAnimationFrame(() => { for (const drawing of drawings) if (drawing.chart && drawing.width !== drawing.node.clientWidth - 34) drawing.dirty = true; drawSoon(); }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changed(new Set(["theme"])));
  window.addEventListener("beforeprint", beforePrint);
  window.addEventListener("afterprint", afterPrint);
  document.addEventListener("click", (event) => { for (const open of document.querySelectorAll(".save[open]")) if (!open.contains(event.target)) open.open = false; });
  if (about.watch) follow(1000 * about.watch);
  document.documentElement.dataset.ready = "true";
}

begin().catch((error) => {
  const message = byId("message") || document.body.appendChild(el("p", { class: "message" }));
  message.textContent = `This report cannot be shown: ${error.message}`;
  throw error;
});
