// The papers' claims, held against these runs.

function claimsView() {
  const { model } = app;
  const order = ["agrees", "disagrees", "unclear"];
  const claims = [...model.about.claims].sort((a, b) => order.indexOf(a.verdict) - order.indexOf(b.verdict));
  const notes = model.notes("claims");
  if (!claims.length && !notes.length) return;
  const node = section("claims", "What the papers say", "Claims of the DoRA, BoRA, SBoRA and Dual LoRA papers, each with the number in these runs that decides it.");
  const box = el("div", { class: "card" });
  node.append(box);
  if (!claims.length) {
    box.append(notesOf(notes));
    return;
  }
  const number_ = (claim) => (claim.statistic === null ? "–" : `${number(claim.statistic)}${claim.ci_low === null || claim.ci_high === null ? "" : ` [${number(claim.ci_low)}, ${number(claim.ci_high)}]`}`);
  const checked = claims.filter((claim) => claim.statistic !== null || claim.verdict !== "unclear");
  const of = (verdict) => checked.filter((claim) => claim.verdict === verdict);
  const among = { checked, agrees: of("agrees"), disagrees: of("disagrees"), unclear: of("unclear"), missing: claims.filter((claim) => !checked.includes(claim)), all: claims };
  const filters = el("span");
  const papers = ["all papers", ...new Set(claims.map((claim) => claim.paper))];
  let paper = papers[0];
  const scroll = el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Claims" });
  const sub = el("div", { class: "card-sub" });
  const save = el("button", { type: "button", class: "icon", onclick: () => downloadCsv("claims.csv", [Object.keys(claims[0]), ...claims.map((claim) => Object.values(claim))]) }, "CSV");
  box.append(el("div", { class: "card-head" }, el("div", { class: "card-text" }, sub), el("div", { class: "tools" }, filters, save)), scroll);
  const draw = () => {
    const verdict = among[app.state.now.verdict] ? app.state.now.verdict : "checked";
    const shown = among[verdict].filter((claim) => paper === papers[0] || claim.paper === paper);
    refill(
      filters,
      segments("Verdict", Object.entries({ checked: "checked here", agrees: "agrees", disagrees: "disagrees", unclear: "unclear", missing: "not checked", all: "all" }).map(([name, text]) => [name, `${text} (${among[name].length})`]), verdict, (one) => app.state.set({ verdict: one })),
      " ",
      choice("Paper", papers.map((one) => [one, one]), paper, (one) => { paper = one; draw(); }),
    );
    sub.textContent = `${checked.length} of ${many(claims.length, "claim")} can be checked in these runs: ${among.agrees.length} agree, ${among.disagrees.length} disagree, ${among.unclear.length} ${among.unclear.length === 1 ? "is" : "are"} unclear`;
    scroll.replaceChildren(
      shown.length
        ? el(
            "table",
            { class: "stacked" },
            el("caption", { class: "hidden-text" }, "Claims and verdicts"),
            el("thead", null, el("tr", null, ["claim", "these runs", "measured", "in the paper", "rule"].map((text) => el("th", { scope: "col" }, text)))),
            el("tbody", null, shown.map((claim) => el("tr", null, el("td", { class: "stack-head" }, claim.sentence, el("div", { class: "sub" }, `${claim.paper}, ${claim.source}`)), el("td", { "data-head": "these runs" }, el("span", { class: `badge ${among.missing.includes(claim) ? "unclear" : claim.verdict}` }, among.missing.includes(claim) ? "not checked" : claim.verdict)), el("td", { "data-head": "measured" }, number_(claim)), el("td", { "data-head": "in the paper" }, claim.paper_number === null ? "" : number(claim.paper_number)), el("td", { "data-head": "rule" }, claim.rule, claim.note ? el("div", { class: "sub" }, shortened(claim.note, 260)) : null)))),
          )
        : el("div", { class: "empty" }, verdict === "checked" && !checked.length ? "These runs decide none of the claims: most compare two methods, or need checkpoints over a whole training. What each one lacks stands under “not checked”." : "There is none of these."),
    );
  };
  lazily(box, draw, (name) => name === "verdict");
}
