// One expression in full: picture, truth, every method's mask and tokens at a budget. The dialog is in the page while it is open.
// `go(by)` leads to a neighbour in the list, `closed()` is called when the reader closes it, `turn(budget)` when another budget is chosen
function sampleDialog({ go, closed, turn }) {
  const heading = make("h3"), below = make("small"), told = make("p", { class: "hint", role: "status" }), clip = make("div", { class: "clip", hidden: true }), cards = make("div", { class: "cards" });
  const button = (label, text, act) => make("button", { type: "button", "aria-label": label, title: label, on: { click: act } }, text);
  const back = button("Previous sample", "←", () => go(-1)), on = button("Next sample", "→", () => go(1));
  const budget = make("select", { "aria-label": "Budget of this sample" });
  const layers = layerBoxes();
  const tools = make("form", { class: "tools", on: { submit: (event) => event.preventDefault() } }, make("label", {}, "Budget ", budget), ...layers);
  const node = make("dialog", { class: "sample", "aria-label": "A sample" },
    make("div", { class: "top" }, make("div", {}, heading, below), make("div", { class: "steps" }, back, on, button("Close", "×", () => node.close()))), tools, told, clip, cards, make("p", { class: "hint" }, ...legendOfMasks()));
  const player = clipPlayer(clip, cards);
  let shown = null, wanted = 0, silent = false;

  const wish = () => Object.fromEntries(all("input", tools).map((box) => [box.name, box.checked]));
  const words = (line, score) => make("div", { class: "card bare" }, make("span", {}, make("b", {}, line.pruner), `${shown.measure} ${number(score)}`));

  function draw(part) {
    const { table, at, lines, scores, chosen } = shown, item = part && part.items[at], found = part ? part.answers[at] : {};
    const answers = [], without = [];
    for (const line of lines) {
      const cell = line.counts.flatMap((one) => (one ? one.cells : [])).find((one) => found[one]), score = scores(line);
      if (!cell) { if (known(score)) without.push(words(line, score)); continue; }
      const answer = found[cell], mine = answer.masks ? answer.means && answer.means[0] : answer.iou;
      const mean = line.seeds.length > 1 && known(score) ? `seed ${answer.seed}; mean over seeds ${number(score)}` : "";
      answers.push({ ...answer, cell, mean, pruner: line.pruner, budget: line.budget, regions: item.regions[answer.geometry], score: mine });
    }
    if (item) showAnswers(cards, player, { table, budget: shown.budget, item, answers, chosen, wish: wish() });
    else cards.replaceChildren();
    cards.append(...without);
    told.textContent = item ? (known(item.image) || (item.frames && known(item.frames[0].image)) ? "" : `The run kept no picture of this sample; its masks stand on grey, ${item.width} × ${item.height} pixels.`)
      : "The masks of this sample are not part of this report, which holds those of the first samples of every split; the run's records have them.";
    told.hidden = !told.textContent;
  }
  function read() {
    const mine = (wanted += 1), here = shown;
    if (here.part < 0) return draw(null);
    cards.setAttribute("aria-busy", "true");
    return partOf(`masks-${here.part}`).then((part) => { if (mine === wanted) draw(part); }, (error) => { if (mine === wanted) { told.hidden = false; told.textContent = error.message; } })
      .finally(() => cards.removeAttribute("aria-busy"));
  }

  tools.addEventListener("input", (event) => (event.target === budget ? turn(budget.value) : read()));
  node.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || event.defaultPrevented || event.altKey || event.target.matches("input[type=range], select")) return;
    event.preventDefault();
    go(by);
  });
  node.addEventListener("click", (event) => { if (event.target === node) node.close(); });
  node.addEventListener("close", () => {
    wanted += 1;
    player({}, [], null, () => {});
    node.remove();
    if (!silent) closed();
    silent = false;
  });
  return {
    node,
    // `what`: table, budget, budgets, at, part, text, words, lines, scores, chosen, first, last, measure
    show(what) {
      shown = what;
      heading.textContent = `“${what.text}”`;
      below.textContent = what.words;
      back.disabled = what.first;
      on.disabled = what.last;
      budget.replaceChildren(...what.budgets.map((value) => make("option", { value }, String(value))));
      budget.value = what.budget;
      if (!node.isConnected) { document.body.append(node); node.showModal(); node.focus(); }
      read();
    },
    close() { if (node.isConnected) { silent = true; node.close(); } },
  };
}
