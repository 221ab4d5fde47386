// All expressions of the report in a list that draws the rows that are seen
const ROW = 54, BEFORE_ROWS = 6, SHOWN_METHODS = 6;
const ORDERS = {
  "": "order of the data set", loss: "loss against none, mean of the methods", lossof: "loss against none of", low: "lowest score of",
  high: "highest score of", over: "wins of",
};

function startSamples() {
  const index = DATA.samples;
  if (!index.count) return all("[data-needs=samples]").forEach((node) => (node.hidden = true));
  const section = find("#samples"), tools = find("#browse"), list = find("#list"), status = find("#found");
  const of = index.painted;
  find("#about").append(`${whole(index.count)} expressions, every row's score of each${of < index.count ? `; masks and tokens of ${whole(of)}` : ""}. Click a row, or press Enter on it, to see what every method kept and painted; arrow keys move. Click a heading to sort by that method's lowest scores.`);
  const choice = (name, label) => make("label", {}, `${label} `, make("select", { name }));
  const menu = make("details", { class: "menu" }, make("summary", {}, "Columns"), make("div"));
  tools.append(make("label", { class: "find" }, "Search ", make("input", { type: "search", name: "text", placeholder: "words, sample", autocomplete: "off" })),
    choice("table", "Table"), choice("set", "Data"), choice("at", "Budget"), choice("order", "Sort by"), choice("one", ""), choice("other", "over"), menu);
  const field = (name) => tools.elements[name];
  field("one").setAttribute("aria-label", "Sort by this one");
  let rows = null, reading = null, order = [], opened = -1, methods = [], head = [];
  let drawn = null; // of the rows: what they are sorted by, the budget, and the score of each method that is shown

  // --- what is asked for
  const tableNumber = () => Math.max(0, DATA.tables.findIndex((table) => table.title === address.get("table")));
  const table = () => DATA.tables[tableNumber()];
  const budgetsOf = (one) => inOrder(one.lines.filter((line) => !line.bound).map((line) => line.budget)).reverse();
  const budgets = () => { const found = budgetsOf(table()); return found.length ? found : inOrder(table().lines.map((line) => line.budget)); };
  const budget = () => { const there = budgets(), wanted = Number(address.get("budget")); return there.includes(wanted) ? wanted : there.at(-1); };
  const bound = () => table().lines.find((line) => line.bound);
  const best = (line) => (line.average ? line.average[0] : -1);
  // the upper bound, methods by their average, controls
  function linesAt() {
    const here = table().lines.filter((line) => !line.bound && line.budget === budget());
    return [bound(), ...here.sort((a, b) => a.control - b.control || best(b) - best(a))].filter(known);
  }
  const lineOf = (name) => linesAt().find((line) => line.pruner === name);
  function asked() {
    const names = linesAt().filter((line) => !line.bound).map((line) => line.pruner);
    const named = (key, other) => (lineOf(address.get(key)) ? address.get(key) : other);
    const kind = Object.hasOwn(ORDERS, address.get("order")) ? address.get("order") : "", a = named("a", names[0] ?? bound().pruner);
    return { kind, a, b: named("b", names.find((name) => name !== a) ?? a) };
  }
  function chosenMethods() {
    const names = linesAt().map((line) => line.pruner), { kind, a, b } = asked(), wanted = address.list("show").filter((name) => names.includes(name));
    const must = kind === "over" ? [a, b] : ["lossof", "low", "high"].includes(kind) ? [a] : [];
    const first = wanted.length ? wanted : names.slice(0, SHOWN_METHODS);
    return [...new Set([...(names.includes("none") && first.includes("none") ? ["none"] : []), ...must, ...first])];
  }

  // --- scores, in percent
  const minus = (x, y) => (known(x) && known(y) ? x - y : null);
  function column(line) {
    const { lines } = table(), place = lines.indexOf(line), scores = rows.scores[tableNumber()], wide = lines.length;
    return (at) => { const value = place < 0 ? -1 : scores[at * wide + place]; return value < 0 ? null : value / 10; };
  }
  function keyOf() {
    const { kind, a, b } = asked();
    const full = column(bound()), one = column(lineOf(a)), other = column(lineOf(b));
    if (kind === "loss") {
      const mean = linesAt().filter((line) => !line.control && !line.truth && !line.bound).map(column);
      return { head: "mean loss", form: signed, down: true, value: (at) => { const found = mean.map((method) => minus(full(at), method(at))).filter(known); return found.length ? found.reduce((sum, loss) => sum + loss, 0) / found.length : null; } };
    }
    if (kind === "lossof") return { head: `loss of ${a}`, form: signed, down: true, value: (at) => minus(full(at), one(at)) };
    if (kind === "low" || kind === "high") return { head: a, form: number, down: kind === "high", value: one };
    if (kind === "over") return { head: `${a} − ${b}`, form: signed, down: true, value: (at) => minus(one(at), other(at)) };
    return null;
  }
  function arrange() {
    const scores = rows.scores[tableNumber()], wide = table().lines.length, words = address.get("q").toLowerCase().split(/\s+/).filter(Boolean), set = index.columns.indexOf(address.get("set")), { key } = drawn;
    const held = (at) => { for (let place = at * wide; place < (at + 1) * wide; place++) if (scores[place] >= 0) return true; return false; };
    order = [];
    for (let at = 0; at < index.count; at++) {
      if (set >= 0 && rows.column[at] !== set) continue;
      if (words.length && !words.every((word) => rows.find[at].includes(word))) continue;
      if (held(at)) order.push(at);
    }
    if (!key) return;
    const values = new Map(order.map((at) => [at, key.value(at)]));
    order = order.filter((at) => known(values.get(at)));
    order.sort((x, y) => (key.down ? values.get(y) - values.get(x) : values.get(x) - values.get(y)) || x - y);
  }

  // --- the list
  const body = make("tbody"), heads = make("tr"), columns = make("colgroup"), grid = make("table", { role: "grid", "aria-label": "Samples" }, columns, make("thead", {}, heads), body);
  list.append(grid);
  let active = 0, waiting = 0;
  const words = (at) => `${rows.sample[at]}, expression ${rows.expression[at]}`;
  function cell(score) {
    const node = make("td", {}, number(score));
    if (known(score)) node.style.setProperty("--part", `${score}%`);
    return node;
  }
  function rowOf(place) {
    const at = order[place], { key } = drawn, picture = rows.picture[at];
    const image = picture < 0 ? make("span", { class: "thumb" }) : make("img", { class: "thumb", loading: "lazy", alt: "", src: addressOf(picture) });
    return make("tr", { tabindex: place === active ? 0 : -1, "data-place": place, "aria-rowindex": place + 2, "aria-label": `${rows.text[at]}, ${words(at)}: open` },
      make("th", { scope: "row", title: rows.text[at] }, image, make("span", { class: "words" }, make("b", {}, rows.text[at]), make("small", {}, words(at)))),
      make("td", {}, drawn.budget), key ? make("td", { class: "key-value" }, key.form(key.value(at))) : null, ...drawn.scores.map((score) => cell(score(at))));
  }
  const spacer = (high) => { const node = make("tr", { class: "spacer", "aria-hidden": "true" }, make("td", { colspan: head.length })); node.style.height = `${high}px`; return node; };
  function draw() {
    waiting = 0;
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - BEFORE_ROWS), last = Math.min(order.length, first + Math.ceil(list.clientHeight / ROW) + 2 * BEFORE_ROWS);
    const focused = body.contains(document.activeElement);
    const seen = [];
    for (let place = first; place < last; place++) seen.push(rowOf(place));
    body.replaceChildren(spacer(first * ROW), ...seen, spacer((order.length - last) * ROW));
    if (focused) (find(`[data-place="${active}"]`, body) || list).focus({ preventScroll: true });
    else if (seen.length && !find("[tabindex='0']", body)) seen[0].tabIndex = 0;
  }
  list.addEventListener("scroll", () => { waiting ||= requestAnimationFrame(draw); });
  addEventListener("resize", () => { if (rows) waiting ||= requestAnimationFrame(draw); });
  function move(to, focus = true) {
    active = Math.max(0, Math.min(order.length - 1, to));
    const top = active * ROW, room = list.clientHeight - find("thead", grid).offsetHeight;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW > list.scrollTop + room) list.scrollTop = top + ROW - room;
    draw();
    if (focus) { const node = find(`[data-place="${active}"]`, body); if (node) node.focus({ preventScroll: true }); }
  }
  list.addEventListener("keydown", (event) => {
    if (!event.target.closest("tbody") && event.target !== list) return;
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 2);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: active + page, PageUp: active - page, Home: 0, End: order.length - 1 }[event.key];
    if (known(to)) { event.preventDefault(); move(to); }
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(active); }
  });
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr[data-place]");
    if (row) { active = Number(row.dataset.place); open(active); }
  });

  function drawHead() {
    const { key } = drawn, { kind, a } = asked();
    const sort = (name) => make("button", { type: "button", title: `sort by ${name}`, on: { click: () => address.set({ order: kind === "low" && a === name ? "high" : "low", a: name }) || apply() } }, name);
    const names = ["expression", "budget", ...(key ? [key.head] : []), ...methods];
    head = names;
    columns.replaceChildren(...names.map((_, place) => make("col", { class: place ? (place === 1 ? "narrow" : "") : "wide" })));
    heads.replaceChildren(...names.map((name, place) => {
      const method = place >= names.length - methods.length;
      return make("th", { scope: "col", title: name, "aria-sort": method && name === a && ["low", "high"].includes(kind) ? (kind === "low" ? "ascending" : "descending") : null }, method ? sort(name) : make("span", {}, name));
    }));
    grid.setAttribute("aria-rowcount", order.length + 1);
  }
  function drawTools() {
    const { kind, a, b } = asked(), names = linesAt().map((line) => line.pruner), kinds = Object.keys(ORDERS).filter((one) => bound() || !one.startsWith("loss"));
    fillChoice(field("table"), DATA.tables.map((one) => one.title));
    field("table").value = table().title;
    field("table").parentNode.hidden = DATA.tables.length < 2;
    fillChoice(field("set"), ["", ...index.columns], (name) => name || "all");
    field("set").value = index.columns.includes(address.get("set")) ? address.get("set") : "";
    fillChoice(field("at"), budgets());
    field("at").value = budget();
    fillChoice(field("order"), kinds, (one) => ORDERS[one]);
    field("order").value = kind;
    fillChoice(field("one"), names);
    field("one").value = a;
    field("one").parentNode.hidden = !["lossof", "low", "high", "over"].includes(kind);
    fillChoice(field("other"), names);
    field("other").value = b;
    field("other").parentNode.hidden = kind !== "over";
    if (document.activeElement !== field("text")) field("text").value = address.get("q");
    fillMenu(menu, names, methods, (shown) => { address.set({ show: shown }); apply(); });
  }
  const measure = () => (table().metric.medium === "video" ? "J&F" : "IoU");
  function tell() {
    const { kind, a, b } = asked(), sum = `${whole(order.length)} of ${whole(index.count)} expressions`;
    status.textContent = `${sum}; ${measure()} in percent at ${budget()} tokens${kind === "over" ? `, where ${a} wins over ${b} first` : ""}.`;
  }

  // --- a sample
  const dialog = sampleDialog({
    go: (by) => { const to = opened + by; if (to >= 0 && to < order.length) { move(to, false); open(to, false); } },
    closed: () => { address.set({ open: null }); if (rows) move(active); },
    turn: (to) => { address.set({ budget: to }, false); apply(); },
  });
  const nameOf = (at) => `${rows.sample[at]}/${rows.expression[at]}`;
  function open(place, step = true) {
    if (!order.length) return;
    address.set({ open: nameOf(order[place]) }, step);
    showOpen(place);
  }
  function showOpen(place) {
    const at = order[place], here = linesAt(), { kind, a } = asked();
    opened = place;
    dialog.show({
      table: table(), budget: budget(), budgets: budgets(), at, part: rows.part[at], text: rows.text[at], lines: here, measure: measure(),
      scores: (line) => column(line)(at), chosen: kind && kind !== "loss" ? a : null, first: place === 0, last: place === order.length - 1,
      words: `${words(at)} · ${index.columns[rows.column[at]]} · ${whole(place + 1)} of ${whole(order.length)} in the list`,
    });
  }

  // --- all of it, as the address says
  async function read() {
    const lists = await Promise.all(Array.from({ length: index.lists }, (_, place) => partOf(`list-${place}`)));
    const joined = (name) => lists.flatMap((one) => one[name]);
    rows = { ...Object.fromEntries(["sample", "expression", "text", "column", "part", "picture"].map((name) => [name, joined(name)])) };
    rows.scores = DATA.tables.map((_, place) => Int16Array.from(lists.flatMap((one) => one.scores[place])));
    rows.find = rows.text.map((text, at) => `${text} ${words(at)} ${index.columns[rows.column[at]]}`.toLowerCase());
    for (let place = 0; place < index.lists; place++) partsRead.delete(`list-${place}`);
  }
  async function apply() {
    drawTools();
    try { await (reading ||= read()); } catch (error) { reading = null; status.textContent = error.message; return; }
    methods = chosenMethods();
    drawn = { key: keyOf(), budget: String(budget()), scores: methods.map((name) => column(lineOf(name))) };
    arrange();
    drawTools();
    drawHead();
    active = Math.max(0, Math.min(active, order.length - 1));
    draw();
    tell();
    section.dataset.ready = String(index.count);
    const wanted = address.get("open");
    if (!wanted) return dialog.close();
    const place = order.findIndex((at) => nameOf(at) === wanted);
    if (place < 0) { dialog.close(); status.textContent += ` ${wanted} is not among them.`; return; }
    active = place;
    move(place, false);
    showOpen(place);
  }
  const again = (changes, step) => { address.set(changes, step); list.scrollTop = 0; active = 0; apply(); };
  tools.addEventListener("input", ({ target }) => {
    const changes = { text: { q: target.value }, table: { table: tableNumber() || target.value !== DATA.tables[0].title ? target.value : null, budget: null, a: null, b: null, show: null }, set: { set: target.value }, at: { budget: target.value }, order: { order: target.value }, one: { a: target.value }, other: { b: target.value } }[target.name];
    if (changes) again(changes, target.name !== "text");
  });
  browseWorst = (line, column, inTable) => {
    const name = column === null ? "" : inTable.columns[column].replace(/ (?=\S+$)/, ":");
    return address.link({ table: DATA.tables.indexOf(inTable) ? inTable.title : null, budget: line.bound ? null : line.budget, order: "low", a: line.pruner, b: null, set: index.columns.includes(name) ? name : "", q: null, open: null });
  };
  showSamples = () => section.scrollIntoView({ behavior: "instant", block: "start" });
  address.follow(() => { if (rows || MINE.some((name) => address.list(name).length)) apply(); });
  if (MINE.some((name) => address.list(name).length)) { apply(); requestAnimationFrame(showSamples); return; }
  new IntersectionObserver((seen, watch) => { if (seen.some((one) => one.isIntersecting)) { watch.disconnect(); apply(); } }, { rootMargin: "600px" }).observe(section);
}
const MINE = ["table", "q", "set", "budget", "order", "a", "b", "show", "open"];
