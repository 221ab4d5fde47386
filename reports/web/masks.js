const PAINT = DATA.paint, MASK = [1, 3, 5].map((at) => parseInt(PAINT.mask.slice(at, at + 2), 16));

// COCO's run lengths: five bits a character, differences to the run before the last, column by column
function runLengths(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function maskOf(text, height, width) {
  const mask = new Uint8Array(height * width);
  let at = 0, inside = 0;
  for (const run of runLengths(text)) {
    if (inside) for (let end = at + run; at < end; at++) mask[(at % height) * width + Math.floor(at / height)] = 1;
    else at += run;
    inside ^= 1;
  }
  return mask;
}

// pixels of a truth's outline; looked for once
const outlines = new WeakMap();
function outlineOf(item) {
  if (outlines.has(item)) return outlines.get(item);
  const { height, width } = item, truth = maskOf(item.truth, height, width), found = [];
  const at = (row, column) => row >= 0 && column >= 0 && row < height && column < width && truth[row * width + column];
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      if (at(row, column) && !(at(row - 1, column) && at(row + 1, column) && at(row, column - 1) && at(row, column + 1))) found.push([row, column]);
    }
  }
  outlines.set(item, found);
  return found;
}

// view after view, each in raster order
function keptOf({ kept, grid: [rows, columns], regions }) {
  const bytes = Uint8Array.from(atob(kept), (one) => one.charCodeAt(0));
  return Array.from({ length: rows * columns * Math.max(1, regions.length) }, (_, place) => (bytes[place >> 3] >> (7 - (place & 7))) & 1);
}

const loadedImages = new Map();
const addressOf = (place) => DATA.pictures.images[place] ?? `${DATA.samples.beside}picture-${place}.jpg`;
// calls back at once or later; with null where a sample has no picture, or it is gone
function withImage(place, act) {
  if (!known(place)) return act(null);
  if (!loadedImages.has(place)) {
    const image = new Image();
    image.src = addressOf(place);
    loadedImages.set(place, image);
  }
  const image = loadedImages.get(place), now = () => act(image.naturalWidth ? image : null);
  if (image.complete) return now();
  for (const event of ["load", "error"]) image.addEventListener(event, now, { once: true });
}

// dropped patches are dimmed, and so is what the model never saw; a picture from a folder may be painted and never read back
function paint(canvas, image, item, answer, wish) {
  const { height, width } = item, pen = canvas.getContext("2d");
  canvas.width = width;
  canvas.height = height;
  const ground = () => {
    if (image) return pen.drawImage(image, 0, 0, width, height);
    pen.fillStyle = "#8a8f94";
    pen.fillRect(0, 0, width, height);
  };
  ground();
  const kept = answer && wish.kept ? keptOf(answer) : [];
  if (answer && answer.regions.length && kept.length) {
    const [rows, columns] = answer.grid, bright = new Path2D();
    kept.forEach((one, place) => {
      if (!one) return;
      const [top, left, bottom, right] = answer.regions[Math.floor(place / (rows * columns))], patch = place % (rows * columns);
      const wide = ((right - left) * width) / columns, high = ((bottom - top) * height) / rows;
      bright.rect(left * width + (patch % columns) * wide, top * height + Math.floor(patch / columns) * high, wide, high);
    });
    pen.fillStyle = `rgb(0 0 0 / ${1 - PAINT.dim})`;
    pen.fillRect(0, 0, width, height);
    pen.save();
    pen.clip(bright);
    ground();
    pen.restore();
  }
  if (answer && wish.mask) {
    const layer = make("canvas", { width, height }), mask = maskOf(answer.mask, height, width), pixels = new ImageData(width, height);
    for (let place = 0; place < mask.length; place++) if (mask[place]) pixels.data.set([...MASK, Math.round(255 * PAINT.cover)], 4 * place);
    layer.getContext("2d").putImageData(pixels, 0, 0);
    pen.drawImage(layer, 0, 0);
  }
  if (!answer || wish.truth) {
    const thick = Math.max(1, Math.round(Math.min(height, width) / 130));
    for (const [colour, wide] of [[PAINT.edge, 2 * thick], [PAINT.truth, thick]]) {
      pen.fillStyle = colour;
      for (const [row, column] of outlineOf(item)) pen.fillRect(column - (wide - 1) / 2, row - (wide - 1) / 2, wide, wide);
    }
  }
}

const MATCHED = "another expression's: the official score matches masks with objects";
function openAnswer(table, budget, item, answer) {
  const { facts: setting } = table, ofCell = (counts) => Boolean(counts && counts.cells.includes(answer.cell));
  const line = table.lines.find((one) => one.counts.some(ofCell)), place = line ? line.counts.findIndex(ofCell) : -1;
  openRecord(`${answer.pruner} · ${answer.pruner === "none" ? "all" : budget} tokens`, `“${item.text}”`, answer.masks ? [number(answer.means && answer.means[0]), "J&F in percent"] : [number(answer.iou), "IoU in percent"], [
    ["Record", [
      ...(answer.masks ? [["J / F", answer.means && `${number(answer.means[1])} / ${number(answer.means[2])}`], ["frames", item.length], ["scored mask", answer.matched && MATCHED]] : []),
      ["sample", item.sample], ["expression", item.expression], ["seed", answer.seed],
      ["pixels", `${whole(answer.intersection)} in the intersection of ${whole(answer.union)} in the union`],
      ["tokens", answer.told],
      ["referent's tokens kept", known(answer.coverage) ? `${number(answer.coverage)} %` : "it covers none"],
      ["cell", answer.cell], ["backbone", setting.backbone], ["protocol", setting.protocol],
    ]],
  ], place < 0 ? [] : [make("p", {}, make("button", { type: "button", on: { click: () => openNumber(table, line, place) } }, `The number that it counts in: ${table.columns[place]}`))]);
}

function wordsOf(item, answer) {
  if (!answer) return [make("b", {}, "image"), "with the truth"];
  const name = make("b", {}, item.frames ? sample(answer.pruner) : null, answer.pruner);
  const score = item.frames ? [`J&F ${number(answer.means && answer.means[0])}`, make("small", { class: "here" }), answer.matched ? make("small", {}, "scored: another expression's mask") : null] : [`IoU ${number(answer.iou)}`];
  const covered = known(answer.coverage) && answer.patches ? make("small", {}, `${number(answer.coverage, 0)} % of the referent's patches`) : "";
  return [name, ...score.filter(Boolean), answer.mean ? make("small", {}, answer.mean) : "", make("small", {}, answer.told), covered];
}

// a card for the picture and one for each answer; `wish`: layers that are painted, `chosen`: the pruner that stands out
function showAnswers(cards, player, { table, budget, item, answers, chosen, wish }) {
  const card = (answer) => {
    const canvas = make("canvas", { role: "img", "aria-label": answer ? `mask of ${answer.pruner}` : "image with truth" });
    const act = answer ? { click: () => openAnswer(table, budget, item, answer) } : {};
    const node = make(answer ? "button" : "div", { class: `card${answer && answer.pruner === chosen ? " chosen" : ""}`, type: answer ? "button" : null, on: act }, canvas, make("span", {}, ...wordsOf(item, answer)));
    const draw = (place) => {
      canvas.dataset.place = place;
      if (item.frames) canvas.setAttribute("aria-label", `${answer ? `mask of ${answer.pruner}` : "image with truth"} in frame ${item.frames[place].number}`);
      if (item.frames && answer && answer.j) find(".here", node).textContent = `here J ${number(valueAt(item, answer.j, place))}, F ${number(valueAt(item, answer.f, place))}`;
      withImage(item.frames ? item.frames[place].image : item.image, (image) => {
        if (canvas.dataset.place === String(place)) paint(canvas, image, shotOf(item, place), answer && answerAt(answer, place), wish);
      });
    };
    return { node, draw };
  };
  const made = [null, ...answers].map(card);
  cards.replaceChildren(...made.map((one) => one.node));
  player(item, answers, chosen, (place) => made.forEach((one) => one.draw(place)));
}

const legendOfMasks = () => [
  make("span", { class: "key", style: `background:${PAINT.mask}` }), "prediction  ",
  make("span", { class: "key", style: `background:${PAINT.truth};border:2px solid ${PAINT.edge}` }), "truth  ",
  make("span", { class: "key", style: "background:#3b4046;border:1px solid #777" }), "dropped tokens (a token without a place in the picture, of a class, a mean or a pool, shows nowhere; where no token has one, nothing is dark)",
];
const layerBox = (name, label) => make("label", { class: "chip" }, make("input", { type: "checkbox", name, checked: true }), make("span", {}, label));
const layerBoxes = () => [layerBox("kept", "kept tokens"), layerBox("mask", "prediction"), layerBox("truth", "truth")];
// choices of a field, which keeps its value where it still is one
function fillChoice(field, values, words = String) {
  const before = field.value;
  field.replaceChildren(...values.map((value) => make("option", { value }, words(value))));
  if (values.map(String).includes(before)) field.value = before;
}

function startMasks() {
  const { items, answers, picks } = DATA.pictures;
  if (!picks.length) {
    all("[data-needs=masks]").forEach((node) => (node.hidden = true));
    return;
  }
  const { of, clips } = DATA.pictures, media = [of && `${whole(of)} images`, clips && `${whole(clips)} clips`].filter(Boolean).join(" and ");
  find("#pool").append(`Chosen among the ${media} whose pictures the run kept; of a pruner that draws, its first seed. ${clips ? "Arrow keys, a swipe over a picture or a click on the curve move through a clip. " : ""}`,
    ...legendOfMasks());
  const select = (name, label) => make("label", {}, `${label} `, make("select", { name }));
  const picker = find("#picker");
  picker.append(select("table", "Table"), select("budget", "Budget"), select("pruner", "Chosen for"), select("kind", "its"), ...layerBoxes());
  const field = (name) => picker.elements[name];
  const fill = (name, values, words) => fillChoice(field(name), values, words);
  const unique = (values) => [...new Set(values)];
  const here = () => picks.filter((pick) => pick[0] === Number(field("table").value) && pick[1] === Number(field("budget").value));

  function options() {
    fill("table", unique(picks.map((pick) => pick[0])), (place) => DATA.tables[place].title);
    field("table").parentNode.hidden = DATA.tables.length < 2;
    fill("budget", unique(picks.filter((pick) => pick[0] === Number(field("table").value)).map((pick) => pick[1])).sort((a, b) => b - a));
    fill("pruner", unique(here().map((pick) => pick[2])));
    fill("kind", unique(here().filter((pick) => pick[2] === field("pruner").value).map((pick) => pick[3])), (kind) => `${kind} expression`);
  }

  const cards = find("#cards"), player = clipPlayer(find("#clip"), cards);
  function show() {
    options();
    const pick = here().find((one) => one[2] === field("pruner").value && one[3] === field("kind").value);
    const item = items[pick[4]];
    find("#said").replaceChildren("“", make("b", {}, item.text), "” ", make("small", {}, `${item.sample}, expression ${item.expression}`));
    const wish = Object.fromEntries(["kept", "mask", "truth"].map((name) => [name, field(name).checked]));
    showAnswers(cards, player, { table: DATA.tables[pick[0]], budget: pick[1], item, answers: answers[`${pick[0]}:${pick[1]}:${pick[4]}`], chosen: pick[2], wish });
  }
  picker.addEventListener("input", show);
  show();
}
