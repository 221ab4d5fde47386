const HIGH = 380, PAD = { left: 46, right: 14, top: 12, bottom: 40 };

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

function frame(label, top) {
  const WIDE = width();
  const svg = make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, tabindex: 0, role: "application", "aria-label": label });
  const y = scale(0, top, HIGH - PAD.bottom, PAD.top);
  for (const tick of steps(top)) {
    svg.append(make("line", { class: "grid", x1: PAD.left, x2: WIDE - PAD.right, y1: y(tick), y2: y(tick) }),
      make("text", { x: PAD.left - 8, y: y(tick) + 4, "text-anchor": "end" }, String(Math.round(tick * 100) / 100)));
  }
  svg.append(make("text", { x: (PAD.left + WIDE - PAD.right) / 2, y: HIGH - 4, "text-anchor": "middle" }, label));
  return { svg, y, WIDE };
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

function legend(groups) {
  return make("div", { class: "legend" }, ...Object.entries(groups).map(([name, group]) => {
    const button = make("button", { type: "button", "aria-pressed": "true", colour: DATA.colours[name] }, name);
    button.addEventListener("click", () => {
      const off = group.toggleAttribute("hidden");
      button.setAttribute("aria-pressed", String(!off));
    });
    return button;
  }));
}

function whisker(x, y, average) {
  return known(average[1]) ? make("line", { class: "whisker", x1: x, x2: x, y1: y(average[1]), y2: y(average[2]) }) : null;
}

function topOf(scores) {
  return Math.min(100, 5 + Math.max(...scores.map((score) => Math.max(score[0], score[2] || 0))));
}

function budgetChart(table, column) {
  const scoreOf = (line) => (column === null ? line.average : line.scores[column]);
  const lines = table.lines.filter(scoreOf);
  const pruned = lines.filter((line) => !line.bound), bound = lines.find((line) => line.bound);
  if (!pruned.length) return null;
  const budgets = [...new Set(pruned.map((line) => line.budget))].sort((a, b) => a - b);
  const names = [...new Set(pruned.map((line) => line.pruner))];
  const { svg, y, WIDE } = frame("visual tokens (budget)", topOf(lines.map(scoreOf)));
  const slot = (WIDE - PAD.left - PAD.right) / budgets.length;
  const middle = (budget) => PAD.left + slot * (budgets.indexOf(budget) + 0.5);
  for (const budget of budgets) svg.append(make("text", { x: middle(budget), y: HIGH - PAD.bottom + 17, "text-anchor": "middle" }, String(budget)));
  if (bound) {
    svg.append(make("line", { class: "bound", x1: PAD.left, x2: WIDE - PAD.right, y1: y(scoreOf(bound)[0]), y2: y(scoreOf(bound)[0]) }),
      make("text", { x: PAD.left + 6, y: y(scoreOf(bound)[0]) - 5 }, `all ${bound.budget} tokens`));
  }
  const groups = {}, marks = [];
  for (const [place, name] of names.entries()) {
    const mine = pruned.filter((line) => line.pruner === name).sort((a, b) => a.budget - b.budget);
    const x = (line) => middle(line.budget) + (names.length > 1 ? (place / (names.length - 1) - 0.5) * Math.min(slot * 0.5, 14 * names.length) : 0);
    const group = (groups[name] = make("g", { colour: DATA.colours[name] }));
    group.append(make("path", { class: `line${mine[0].control ? " control" : ""}`, d: mine.map((line, at) => `${at ? "L" : "M"}${x(line)} ${y(scoreOf(line)[0])}`).join("") }));
    for (const line of mine) {
      const node = make("circle", { class: "mark", cx: x(line), cy: y(scoreOf(line)[0]), r: 5.5 });
      group.append(...[whisker(x(line), y, scoreOf(line)), node].filter(known));
      marks.push({ node, what: line });
    }
    svg.append(group);
  }
  reachable(svg, marks, (line) => tellNumber(table, line, column), (line) => openNumber(table, line, column));
  const named = column === null ? "Avg. of all columns" : table.columns[column];
  return make("figure", {}, make("figcaption", {}, DATA.tables.length > 1 ? `${table.title}: ${named}` : named), svg, legend(groups));
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

function front(points, higher) {
  const found = [];
  const sign = higher ? 1 : -1;
  for (const point of [...points].sort((a, b) => a[0] - b[0] || sign * (b[1] - a[1]))) if (!found.length || sign * (point[1] - found.at(-1)[1]) > 0) found.push(point);
  return found;
}

function costChart(table, price, label) {
  const lines = table.lines.filter((line) => line.average && known(line[price]));
  if (lines.length < 2) return null;
  const { svg, y, WIDE } = frame(label, topOf(lines.map((line) => line.average)));
  const most = Math.max(...lines.map((line) => line[price])) * 1.06, least = Math.min(...lines.map((line) => line[price])) * 0.92;
  const x = scale(least, most, PAD.left, WIDE - PAD.right);
  for (const tick of steps(most, 6).filter((tick) => tick >= least)) svg.append(make("text", { x: x(tick), y: HIGH - PAD.bottom + 17, "text-anchor": "middle" }, String(Math.round(tick * 1000) / 1000)));
  const path = front(lines.filter((line) => !line.truth).map((line) => [line[price], line.average[0]]), table.metric.higher);
  svg.append(make("path", { class: "bound", d: path.map(([a, b], at) => `${at ? "L" : "M"}${x(a)} ${y(b)}`).join("") }));
  const groups = {}, marks = [];
  for (const line of lines) {
    const group = (groups[line.pruner] ||= make("g", { colour: DATA.colours[line.pruner] }));
    const at = [x(line[price]), y(line.average[0])];
    const node = line.control
      ? make("rect", { class: "mark", x: at[0] - 5, y: at[1] - 5, width: 10, height: 10, rx: 2 })
      : make("circle", { class: "mark", cx: at[0], cy: at[1], r: 6 });
    group.append(...[whisker(at[0], y, line.average), node].filter(known));
    marks.push({ node, what: line });
  }
  svg.append(...Object.values(groups));
  const tell = (line) => `${tellNumber(table, line, null)}\n${label}: ${number(line[price], 2)}`;
  reachable(svg, marks, tell, (line) => openNumber(table, line, null));
  return make("figure", {}, make("figcaption", {}, `${table.title}: ${label}`), svg, legend(groups));
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
    cost: (table) => [costChart(table, "macs", "multiply-adds, G"), costChart(table, "prefill", "prefill, ms")],
    stages: (table) => [stageChart(table)],
  };
  for (const [kind, draw] of Object.entries(kinds)) {
    const drawn = DATA.tables.flatMap(draw).filter(known);
    find(`[data-chart=${kind}]`).append(...drawn);
    if (!drawn.length) all(`[data-needs=${kind}], #${kind}`).forEach((node) => (node.hidden = true));
  }
}
