const DATA = JSON.parse(document.getElementById("data").textContent);
const find = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// text only: nothing that a run says is ever read as markup
function make(tag, facts = {}, ...children) {
  const drawn = ["svg", "g", "line", "path", "circle", "rect", "text", "title"].includes(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === "colour") node.style.setProperty("--c", value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const known = (value) => value !== null && value !== undefined;
const number = (value, digits = 1) => (known(value) ? value.toFixed(digits) : "–");
const signed = (value) => (known(value) ? (value > 0 ? "+" : value < 0 ? "−" : "±") + Math.abs(value).toFixed(1) : "–");
const whole = (value) => value.toLocaleString("en-US");
const between = (one, form = number) => (known(one[1]) ? `${form(one[1])} to ${form(one[2])}` : "no interval: too few images");
const chance = (p) => (!known(p) ? "–" : p < 0.001 ? "< 0.001" : p.toFixed(3));
const lineName = (line) => `${line.pruner} · ${line.bound ? "all " : ""}${line.budget} tokens`;

const tip = find("#tip");
function showTip(text, x, y) {
  tip.textContent = text;
  tip.classList.add("on");
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(6, Math.min(x + 14, innerWidth - box.width - 6))}px`;
  tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
}
const hideTip = () => tip.classList.remove("on");

function facts(rows) {
  const list = make("dl");
  for (const [name, value] of rows) if (known(value) && value !== "") list.append(make("dt", {}, name), make("dd", {}, String(value)));
  return list;
}

// a menu of columns: `act` gets the names that are left
function fillMenu(menu, names, shown, act) {
  const body = find("div", menu), focus = body.contains(document.activeElement) ? document.activeElement.value : null;
  body.replaceChildren(...names.map((name) => make("label", {}, make("input", { type: "checkbox", name: "column", value: name, checked: shown.includes(name) }), ` ${name}`)));
  body.onchange = () => act(all("input:checked", body).map((box) => box.value));
  if (focus !== null) all("input", body).find((box) => box.value === focus)?.focus();
  menu.hidden = false;
}
addEventListener("click", (event) => all("details.menu[open]").forEach((menu) => { if (!menu.contains(event.target) && event.target.isConnected) menu.open = false; }));
addEventListener("keydown", (event) => { if (event.key === "Escape") all("details.menu[open]").forEach((menu) => { menu.open = false; find("summary", menu).focus(); }); });

// set by the browser of samples, where there are any
let browseWorst = null, showSamples = null;

const dialog = find("#record");
function openRecord(heading, below, big, parts, links = []) {
  const body = find("div", dialog);
  body.replaceChildren(make("h3", {}, heading), make("small", {}, below));
  if (big) body.append(make("p", { class: "big" }, big[0], make("small", {}, ` ${big[1]}`)));
  body.append(...links);
  for (const [title, rows] of parts) if (rows.length) body.append(make("h4", {}, title), facts(rows));
  if (!dialog.open) dialog.showModal();
  dialog.focus();
  dialog.scrollTop = 0; // the browser would show its button first
}
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

function comparisons(line, column) {
  const words = { random: "random", best: "the best row", baseline: "the baseline" };
  return Object.entries(line.against).map(([kind, one]) => {
    const value = column === null ? one.average : one.columns[column];
    const sure = column === null ? `p after false-discovery control ${chance(one.q)}` : `p ${chance(value[3])}`;
    const name = one.other === kind ? words[kind] : `${words[kind]}, ${one.other}`;
    return [`minus ${name}`, `${signed(value[0])} (${between(value, signed)}), ${sure}`];
  });
}

// the record behind a number: what was counted, where, and by which cells
function openNumber(table, line, column) {
  const { facts: setting } = table;
  const score = column === null ? line.average : line.scores[column];
  const counts = line.counts.filter((one, place) => one && (column === null || place === column));
  const sum = (name) => counts.reduce((total, one) => total + one[name], 0);
  const runs = [...new Set(counts.flatMap((one) => one.run))].map((place) => DATA.runs[place]);
  const printed = column !== null && line.published ? line.published[column] : null;
  const rows = [
    ["images / expressions", `${whole(sum("images"))} / ${whole(sum("expressions"))}`],
    ["pixels", counts[0].union === undefined ? null : `${whole(sum("intersection"))} in intersections of ${whole(sum("union"))} in unions`],
    ...(column === null ? [] : table.details.filter((one) => one.key in counts[0]).map((one) => [one.label, `${number(counts[0][one.key])}${one.unit}`])),
    ["per seed", line.seeds.length > 1 && column === null ? line.seeds.map((seed) => number(seed)).join(", ") : null],
    ["visual tokens", `${line.tokens} in the last layer, ${line.layers} on average over the layers`],
    ["published", printed ? `${number(printed[1])} (ours ${signed(printed[0] - printed[1])})` : null],
  ];
  const origin = [
    ["backbone", setting.backbone], ["protocol", setting.protocol], ["device", setting.device], ["precision", setting.dtype],
    ["attention", setting.attn], ["weights", setting.fingerprint], ["data", [...new Set(counts.map((one) => one.data))].join(", ")],
    ["run", runs.map((run) => `${run.name} (${run.folder})`).join(", ")],
    ["cells", counts.flatMap((one) => one.cells).join(", ")],
  ];
  const where = column === null ? "Avg. over all columns" : table.columns[column];
  openRecord(lineName(line), `${where}, ${table.metric.title} in ${table.metric.unit}`, [number(score && score[0]), score ? `95 %: ${between(score)}` : ""], [
    ["Rests on", rows], [`Differences in ${table.metric.points} of ${table.metric.title}`, comparisons(line, column)], ["Costs", Object.entries(line.costs)], ["Comes from", origin],
  ], browseWorst && known(score) ? [make("p", {}, make("a", { href: browseWorst(line, column, table), on: { click: () => { dialog.close(); requestAnimationFrame(showSamples); } } }, "Its worst samples"))] : []);
}

function tellNumber(table, line, column) {
  const score = column === null ? line.average : line.scores[column];
  if (!score) return `${lineName(line)}\nno score`;
  const counts = line.counts.filter((one, place) => one && (column === null || place === column));
  const images = counts.reduce((total, one) => total + one.images, 0);
  return `${lineName(line)}\n${column === null ? "Avg." : table.columns[column]} ${number(score[0])} (${between(score)})\n${whole(images)} images`;
}
