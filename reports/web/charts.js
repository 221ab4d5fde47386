const HIGH = 380, PAD = { left: 46, right: 14, top: 26, bottom: 44 };

function scale(from, to, start, end) {
  return (value) => start + ((value - from) / (to - from || 1)) * (end - start);
}

function steps(top, count = 5) {
  const raw = top / count, unit = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((by) => by * unit).find((by) => by >= raw) || unit;
  return Array.from({ length: Math.floor(top / step + 1e-9) + 1 }, (_, place) => place * step);
}

// drawn at the size at which it is first seen, so that letters stay as large as the page's
function width(beside = true) {
  const room = find("#tables").clientWidth - 44;
  return Math.max(300, Math.min(beside && room > 1000 ? (room - 20) / 2 : room, 760));
}

// names stand beside the lines where there is room, else in the legend alone
const roomFor = (wide) => (wide >= 520 ? 138 : PAD.right);

function frame(label, up, top) {
  const WIDE = width(), right = roomFor(WIDE);
  const svg = make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, tabindex: 0, role: "application", "aria-label": `${up} against ${label}` });
  const y = scale(0, top, HIGH - PAD.bottom, PAD.top);
  for (const tick of steps(top)) {
    svg.append(make("line", { class: "grid", x1: PAD.left, x2: WIDE - right, y1: y(tick), y2: y(tick) }),
      make("text", { x: PAD.left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(Math.round(tick * 100) / 100)));
  }
  svg.append(make("text", { x: (PAD.left + WIDE - right) / 2, y: HIGH - 4, "text-anchor": "middle" }, label), make("text", { class: "axis", x: 2, y: 12 }, up));
  return { svg, y, WIDE, right };
}

function markOf(name, x, y, size, kind = "") {
  const { outline, hollow } = DATA.looks[name];
  return make("path", { class: `mark${hollow ? " hollow" : ""} ${kind}`, d: outline, transform: `translate(${x} ${y}) scale(${size})`, colour: DATA.colours[name] });
}

// a line and its mark, as in the charts
function sample(name) {
  const svg = make("svg", { class: "sample", viewBox: "0 0 34 12", "aria-hidden": "true" });
  svg.append(make("path", { class: "line", d: "M0 6H34", colour: DATA.colours[name], "stroke-dasharray": DATA.looks[name].dash || null }), markOf(name, 17, 6, 5, "still"));
  return svg;
}

// places moved as little as need be until neighbours are a gap apart
function spreadOut(places, gap, low, high) {
  const order = [...places.keys()].sort((a, b) => places[a] - places[b]), found = [];
  const step = Math.min(gap, (high - low) / Math.max(1, order.length - 1));
  let least = low, most = high;
  for (const at of order) { found[at] = Math.max(places[at], least); least = found[at] + step; }
  for (const at of [...order].reverse()) { found[at] = Math.min(found[at], most); most = found[at] - step; }
  return found;
}

// `ends`: where the line of each name ends
function nameLines(groups, ends, WIDE, right) {
  if (right === PAD.right) return;
  const names = Object.keys(ends), heights = spreadOut(names.map((name) => ends[name][1]), 13, PAD.top, HIGH - PAD.bottom);
  for (const [place, name] of names.entries()) {
    const [x, y] = ends[name], left = WIDE - right + 14, high = heights[place];
    groups[name].append(make("line", { class: "thread", x1: x, y1: y, x2: left, y2: high }), markOf(name, left + 5, high, 4, "still"),
      make("text", { class: "name", x: left + 13, y: high + 4 }, name.length > 19 ? `${name.slice(0, 18)}…` : name, make("title", {}, name)));
  }
}

const inOrder = (budgets) => [...new Set(budgets)].sort((a, b) => a - b);

// logarithmic; ticks at the run's budgets and nowhere else
function budgetsAxis(svg, budgets, WIDE, right) {
  const place = scale(Math.log(budgets[0] / 1.1), Math.log(budgets.at(-1) * 1.06), PAD.left, WIDE - right), x = (budget) => place(Math.log(budget));
  let before = -100, low = false;
  for (const budget of budgets) {
    low = x(budget) - before < 30 && !low;
    svg.append(make("line", { class: "grid", x1: x(budget), x2: x(budget), y1: PAD.top, y2: HIGH - PAD.bottom + 4 }),
      make("text", { class: "tick", x: x(budget), y: HIGH - PAD.bottom + (low ? 26 : 15), "text-anchor": "middle" }, String(budget)));
    before = x(budget);
  }
  return x;
}

function levelOf(svg, y, value, budget, WIDE, right) {
  svg.append(make("line", { class: "bound", x1: PAD.left, x2: WIDE - right, y1: y(value), y2: y(value) }), make("text", { x: PAD.left + 6, y: y(value) - 5 }, `all ${budget} tokens`));
}

// marks that mouse and arrow keys reach; `tell` and `open` get what a mark stands for
function reachable(svg, marks, tell, open) {
  let at = -1;
  const go = (place) => {
    const shown = marks.filter((mark) => !mark.node.closest("g").hasAttribute("hidden"));
    if (!shown.length) return;
    at = (place + shown.length) % shown.length;
    marks.forEach((mark) => mark.node.classList.remove("here"));
    const { node, what } = shown[at], box = node.getBoundingClientRect();
    node.classList.add("here");
    showTip(tell(what), box.x, box.y);
    svg.dataset.at = at;
  };
  for (const { node, what } of marks) {
    node.addEventListener("mousemove", (event) => showTip(tell(what), event.clientX, event.clientY));
    node.addEventListener("mouseleave", hideTip);
    node.addEventListener("click", () => { hideTip(); open(what); });
  }
  svg.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); go(at + by); }
    if (event.key === "Enter" && at >= 0) { find(".here", svg).dispatchEvent(new MouseEvent("click")); }
  });
  svg.addEventListener("blur", () => { hideTip(); marks.forEach((mark) => mark.node.classList.remove("here")); });
}

// a click hides a method; pointing at it, or reaching it with the Tab key, brings it forward
function legend(groups, svg) {
  return make("div", { class: "legend" }, ...Object.entries(groups).map(([name, group]) => {
    const button = make("button", { type: "button", "aria-pressed": "true" }, sample(name), name);
    button.addEventListener("click", () => {
      const off = group.toggleAttribute("hidden");
      button.setAttribute("aria-pressed", String(!off));
    });
    const forward = (on) => () => { svg.classList.toggle("dim", on); group.classList.toggle("forward", on); };
    for (const node of [button, group]) for (const [event, on] of [["mouseenter", true], ["mouseleave", false]]) node.addEventListener(event, forward(on));
    for (const [event, on] of [["focus", true], ["blur", false]]) button.addEventListener(event, () => { if (!on || button.matches(":focus-visible")) forward(on)(); });
    return button;
  }));
}

function whisker(x, y, average) {
  return known(average[1]) ? make("line", { class: "whisker", x1: x, x2: x, y1: y(average[1]), y2: y(average[2]) }) : null;
}

function topOf(scores) {
  return Math.min(100, 5 + Math.max(...scores.map((score) => Math.max(score[0], score[2] || 0))));
}

function curve(name, points, control) {
  const line = make("path", { class: `line${control ? " control" : ""}`, d: points.map(([x, y], at) => `${at ? "L" : "M"}${x} ${y}`).join(""), "stroke-dasharray": DATA.looks[name].dash || null });
  return make("g", { colour: DATA.colours[name] }, line);
}

function budgetChart(table, column) {
  const scoreOf = (line) => (column === null ? line.average : line.scores[column]);
  const lines = table.lines.filter(scoreOf);
  const pruned = lines.filter((line) => !line.bound), bound = lines.find((line) => line.bound);
  if (!pruned.length) return null;
  const named = column === null ? "Avg." : table.columns[column];
  const { svg, y, WIDE, right } = frame("visual tokens (budget), logarithmic", `${named} ${table.metric.title}, ${table.metric.unit}`, topOf(lines.map(scoreOf)));
  const x = budgetsAxis(svg, inOrder(pruned.map((line) => line.budget)), WIDE, right);
  if (bound) levelOf(svg, y, scoreOf(bound)[0], bound.budget, WIDE, right);
  const groups = {}, marks = [], ends = {};
  for (const name of new Set(pruned.map((line) => line.pruner))) {
    const mine = pruned.filter((line) => line.pruner === name).sort((a, b) => a.budget - b.budget);
    const points = mine.map((line) => [x(line.budget), y(scoreOf(line)[0])]);
    const group = (groups[name] = curve(name, points, mine[0].control));
    for (const [at, line] of mine.entries()) {
      const node = markOf(name, ...points[at], 5.5);
      group.append(...[whisker(points[at][0], y, scoreOf(line)), node].filter(known));
      marks.push({ node, what: line });
    }
    ends[name] = points.at(-1);
    svg.append(group);
  }
  nameLines(groups, ends, WIDE, right);
  reachable(svg, marks, (line) => tellNumber(table, line, column), (line) => openNumber(table, line, column));
  const title = column === null ? "Avg. of all columns" : table.columns[column];
  return make("figure", {}, make("figcaption", {}, DATA.tables.length > 1 ? `${table.title}: ${title}` : title), svg, legend(groups, svg));
}

// the same for one column, which the reader chooses
function splitChart(table) {
  if (table.columns.length < 2) return null;
  const choice = make("select", { "aria-label": "column" }, ...table.columns.map((name, place) => make("option", { value: place }, name)));
  const place = make("div");
  const show = () => {
    const drawn = budgetChart(table, Number(choice.value));
    if (drawn) find("figcaption", drawn).replaceWith(make("figcaption", {}, choice));
    place.replaceChildren(...[drawn].filter(known));
  };
  choice.addEventListener("input", () => { show(); choice.focus(); });
  show();
  return place;
}

const STANDS = { front: "no row beats it beyond the timing's noise", close: "beaten, within the intervals of accuracy", beaten: "beaten for sure" };

const tellPrice = (line, price, label) => {
  const [middle, cheap, dear] = line.prices[price].cost;
  return `${label}: ${number(middle, 2)}${dear > cheap ? ` (${number(cheap, 2)} to ${number(dear, 2)})` : ""}`;
};

// reports/pareto.py has the rule
function paretoChart(table, price) {
  const label = table.prices[price], lines = table.lines.filter((line) => line.average && line.prices[price]);
  if (lines.length < 2) return null;
  const { svg, y, WIDE, right } = frame(label, `Avg. ${table.metric.title}, ${table.metric.unit}`, topOf(lines.map((line) => line.average)));
  const priceOf = (line) => line.prices[price].cost, most = Math.max(...lines.map((line) => priceOf(line)[2])) * 1.03;
  const least = 0.93 * Math.min(...lines.map((line) => priceOf(line)[1])), x = scale(least, most, PAD.left, WIDE - right);
  for (const tick of steps(most, WIDE < 520 ? 4 : 6).filter((tick) => tick >= least)) svg.append(make("text", { x: x(tick), y: HIGH - PAD.bottom + 15, "text-anchor": "middle" }, String(Math.round(tick * 1000) / 1000)));
  const path = lines.filter((line) => line.prices[price].standing === "front").sort((a, b) => priceOf(a)[0] - priceOf(b)[0]);
  svg.append(make("path", { class: "bound", d: path.map((line, at) => `${at ? "L" : "M"}${x(priceOf(line)[0])} ${y(line.average[0])}`).join("") }));
  const groups = {}, marks = [], ends = {}, budgets = inOrder(lines.map((line) => line.budget));
  for (const line of lines) {
    const group = (groups[line.pruner] ||= make("g", { colour: DATA.colours[line.pruner] })), [middle, cheap, dear] = priceOf(line);
    const at = [x(middle), y(line.average[0])], node = markOf(line.pruner, ...at, 3.5 + (4 * budgets.indexOf(line.budget)) / Math.max(1, budgets.length - 1), line.prices[price].standing || "close");
    const spread = dear > cheap ? make("line", { class: "whisker", x1: x(cheap), x2: x(dear), y1: at[1], y2: at[1] }) : null;
    group.append(...[whisker(at[0], y, line.average), spread, node].filter(known));
    if (!ends[line.pruner] || at[1] < ends[line.pruner][1]) ends[line.pruner] = at;
    marks.push({ node, what: line });
  }
  svg.append(...Object.values(groups));
  nameLines(groups, ends, WIDE, right);
  const tell = (line) => [tellNumber(table, line, null), tellPrice(line, price, label), STANDS[line.prices[price].standing]].filter(Boolean).join("\n");
  reachable(svg, marks, tell, (line) => openNumber(table, line, null));
  return make("figure", {}, make("figcaption", {}, `${table.title}: accuracy against ${label}`), svg, legend(groups, svg));
}

function priceChart(table, price) {
  const label = table.prices[price], lines = table.lines.filter((line) => line.prices[price]), pruned = lines.filter((line) => !line.bound), bound = lines.find((line) => line.bound);
  const budgets = inOrder(pruned.map((line) => line.budget));
  if (budgets.length < 2) return null;
  const { svg, y, WIDE, right } = frame("visual tokens (budget), logarithmic", label, 1.05 * Math.max(...lines.map((line) => line.prices[price].cost[2])));
  const x = budgetsAxis(svg, budgets, WIDE, right);
  if (bound) levelOf(svg, y, bound.prices[price].cost[0], bound.budget, WIDE, right);
  const groups = {}, marks = [], ends = {};
  for (const name of new Set(pruned.map((line) => line.pruner))) {
    const mine = pruned.filter((line) => line.pruner === name).sort((a, b) => a.budget - b.budget);
    const points = mine.map((line) => [x(line.budget), y(line.prices[price].cost[0])]);
    const group = (groups[name] = curve(name, points, mine[0].control));
    for (const [at, line] of mine.entries()) {
      const node = markOf(name, ...points[at], 5), [, cheap, dear] = line.prices[price].cost;
      group.append(...[dear > cheap ? whisker(points[at][0], y, [0, cheap, dear]) : null, node].filter(known));
      marks.push({ node, what: line });
    }
    ends[name] = points.at(-1);
    svg.append(group);
  }
  nameLines(groups, ends, WIDE, right);
  reachable(svg, marks, (line) => `${lineName(line)}\n${tellPrice(line, price, label)}`, (line) => openNumber(table, line, null));
  return make("figure", {}, make("figcaption", {}, `${table.title}: ${label} against budget`), svg, legend(groups, svg));
}

function stageChart(table) {
  const lines = table.lines.filter((line) => Object.keys(line.stages).length);
  if (!lines.length) return null;
  const names = [...new Set(lines.flatMap((line) => Object.keys(line.stages)))];
  const total = (line) => Object.values(line.stages).reduce((sum, part) => sum + part, 0);
  const WIDE = width(false), row = 24, left = 150, high = lines.length * row + 46, x = scale(0, Math.max(...lines.map(total)), left, WIDE - PAD.right);
  const svg = make("svg", { viewBox: `0 0 ${WIDE} ${high}`, tabindex: 0, role: "application", "aria-label": "milliseconds per stage" });
  for (const tick of steps(Math.max(...lines.map(total)))) {
    svg.append(make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 4, y2: high - 40 }), make("text", { x: x(tick), y: high - 24, "text-anchor": "middle" }, String(tick)));
  }
  svg.append(make("text", { x: (left + WIDE) / 2, y: high - 4, "text-anchor": "middle" }, "median ms per image"));
  const group = make("g"), marks = [];
  for (const [place, line] of lines.entries()) {
    group.append(make("text", { x: left - 8, y: place * row + 19, "text-anchor": "end" }, `${line.pruner} ${line.budget}`));
    let start = 0;
    for (const name of names) {
      const part = line.stages[name] || 0;
      const node = make("rect", { class: "bar", x: x(start), y: place * row + 6, width: Math.max(0, x(start + part) - x(start)), height: row - 7, colour: DATA.palette[names.indexOf(name) % DATA.palette.length] });
      if (part) { group.append(node); marks.push({ node, what: { line, name, part } }); }
      start += part;
    }
  }
  svg.append(group);
  const tell = ({ line, name, part }) => `${lineName(line)}\n${name.replaceAll("_", " ")} ${number(part, 2)} ms of ${number(total(line), 2)} ms`;
  reachable(svg, marks, tell, ({ line }) => openNumber(table, line, null));
  const key = make("div", { class: "legend" }, ...names.map((name, place) => make("small", {}, make("span", { class: "key", colour: DATA.palette[place % DATA.palette.length] }), name.replaceAll("_", " "))));
  return make("figure", {}, make("figcaption", {}, table.title), svg, key);
}

// a section without anything to show goes, and its link with it
function startCharts() {
  const kinds = {
    budget: (table) => [budgetChart(table, null), splitChart(table)],
    cost: (table) => [paretoChart, priceChart].flatMap((draw) => Object.keys(table.prices).map((price) => draw(table, price))),
    stages: (table) => [stageChart(table)],
  };
  for (const [kind, draw] of Object.entries(kinds)) {
    const drawn = DATA.tables.flatMap(draw).filter(known);
    find(`[data-chart=${kind}]`).append(...drawn);
    if (!drawn.length) all(`[data-needs=${kind}], #${kind}`).forEach((node) => (node.hidden = true));
  }
}
