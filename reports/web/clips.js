const HIGH_CURVE = 132, EDGE_CURVE = { left: 34, right: 10, top: 8, bottom: 22 }, PACE = 350, SWIPE = 24;

// what is painted of a clip at one of its shown frames: as of an image
const shotOf = (item, place) => (item.frames ? item.frames[place].shot ??= { height: item.height, width: item.width, truth: item.frames[place].truth } : item);
const answerAt = (answer, place) => (answer.masks ? { ...answer, mask: answer.masks[place], kept: answer.keeps ? answer.keeps[place] : "", regions: answer.keeps ? answer.regions : [] } : answer);

function frameWords(item, answer, place) {
  const { number: frame } = item.frames[place], seen = answer && answer.seen ? answer.seen[place] : null;
  const saw = seen === null ? "which frames the model saw was not recorded" : seen === frame ? "the model saw this frame" : `nearest frame that the model saw: ${seen}`;
  return `frame ${frame} of 0 to ${item.length - 1}; ${saw}`;
}

const valueAt = (item, values, place) => (values ? values[item.points.indexOf(item.frames[place].number)] : null);

// J over all frames, a line for each pruner, and where the slider stands
function curveOf(item, answers, chosen, place, wide) {
  const last = item.length - 1, x = scale(0, last, EDGE_CURVE.left, wide - EDGE_CURVE.right), y = scale(0, 100, HIGH_CURVE - EDGE_CURVE.bottom, EDGE_CURVE.top);
  const drawn = answers.filter((answer) => answer.j), frame = item.frames[place].number;
  const told = drawn.map((answer) => `${answer.pruner} ${number(valueAt(item, answer.j, place))}`).join(", ");
  const svg = make("svg", { viewBox: `0 0 ${wide} ${HIGH_CURVE}`, role: "img", "aria-label": `J of every frame in percent; in frame ${frame}: ${told}` });
  for (const tick of [0, 50, 100]) {
    svg.append(make("line", { class: "grid", x1: EDGE_CURVE.left, x2: wide - EDGE_CURVE.right, y1: y(tick), y2: y(tick) }),
      make("text", { x: EDGE_CURVE.left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const { number: shown } of item.frames) svg.append(make("line", { class: "grid", x1: x(shown), x2: x(shown), y1: y(0), y2: y(0) + 5 }));
  svg.append(make("text", { x: x(0), y: HIGH_CURVE - 3, "text-anchor": "start" }, "frame 0"), make("text", { x: x(last), y: HIGH_CURVE - 3, "text-anchor": "end" }, String(last)));
  for (const answer of [...drawn.filter((one) => one.pruner !== chosen), ...drawn.filter((one) => one.pruner === chosen)]) {
    const path = answer.j.map((value, at) => `${at ? "L" : "M"}${x(item.points[at]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    svg.append(make("path", { class: `line${answer.pruner === chosen ? " chosen" : ""}`, d: path, colour: DATA.colours[answer.pruner], "stroke-dasharray": DATA.looks[answer.pruner].dash || null }, make("title", {}, answer.pruner)));
  }
  svg.append(make("line", { class: "now", x1: x(frame), x2: x(frame), y1: EDGE_CURVE.top, y2: y(0) + 5 }));
  for (const answer of drawn) svg.append(markOf(answer.pruner, x(frame), y(valueAt(item, answer.j, place)), 4, "still"));
  return { svg, frameAt: (left) => scale(EDGE_CURVE.left, wide - EDGE_CURVE.right, 0, last)(left) };
}

// slider, button and curve of the clip whose cards are shown; `draw` paints it at a place among its shown frames
function clipPlayer(root, cards) {
  const play = make("button", { type: "button", "aria-label": "Play the clip", "aria-pressed": "false" }, "▶");
  const slider = make("input", { type: "range", name: "frame", min: 0, value: 0, "aria-label": "Frame of the clip" });
  const words = make("span", { class: "told" }), curve = make("figure", { class: "curve" });
  root.append(make("div", { class: "tools" }, play, slider, words), curve);
  let open = null, waiting = 0, timer = 0, read = null;
  const place = () => Number(slider.value);
  const chosen = () => open.answers.find((answer) => answer.pruner === open.chosen);

  function tell() {
    const text = frameWords(open.item, chosen(), place());
    words.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    if (!open.answers.some((answer) => answer.j)) return curve.replaceChildren();
    const { svg, frameAt } = curveOf(open.item, open.answers, open.chosen, place(), Math.max(260, Math.min(root.clientWidth, 760)));
    read = frameAt;
    curve.replaceChildren(svg, make("figcaption", {}, "J of every frame, in percent; a line for each pruner, the chosen one's is thick."));
  }
  function update() {
    waiting = 0;
    if (!open) return;
    tell();
    open.draw(place());
    root.dataset.frame = open.item.frames[place()].number;
  }
  const soon = () => (waiting ||= requestAnimationFrame(update)); // one painting for many moves
  const go = (to) => {
    slider.value = Math.max(0, Math.min(open.item.frames.length - 1, to));
    soon();
  };
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶";
    play.setAttribute("aria-pressed", "false");
    play.setAttribute("aria-label", "Play the clip");
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    timer = setInterval(() => go((place() + 1) % open.item.frames.length), PACE);
    play.textContent = "⏸";
    play.setAttribute("aria-pressed", "true");
    play.setAttribute("aria-label", "Pause the clip");
  });
  slider.addEventListener("input", () => { stop(); soon(); });
  cards.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (open && by) { event.preventDefault(); stop(); go(place() + by); }
  });
  curve.addEventListener("click", (event) => {
    const svg = event.target.closest("svg");
    if (!svg) return;
    const box = svg.getBoundingClientRect(), near = read(((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width);
    const gaps = open.item.frames.map((one) => Math.abs(one.number - near));
    stop();
    go(gaps.indexOf(Math.min(...gaps)));
  });
  // a finger that moves sideways over a picture takes the clip along
  let from = null;
  cards.addEventListener("pointerdown", (event) => { from = open && event.pointerType === "touch" ? { x: event.clientX, place: place() } : null; });
  cards.addEventListener("pointermove", (event) => {
    if (!from) return;
    const steps = Math.round((event.clientX - from.x) / SWIPE);
    if (from.place + steps !== place()) { stop(); go(from.place + steps); }
  });
  for (const name of ["pointerup", "pointercancel"]) cards.addEventListener(name, () => { from = null; });
  addEventListener("resize", () => { if (open) soon(); });

  return (item, answers, pruner, draw) => {
    root.hidden = !item.frames;
    cards.classList.toggle("moving", Boolean(item.frames));
    if (!item.frames) {
      stop();
      open = null;
      return draw(0);
    }
    if (!open || open.item !== item) {
      stop();
      slider.max = item.frames.length - 1;
      slider.value = 0;
    }
    open = { item, answers, chosen: pruner, draw };
    update();
  };
}
