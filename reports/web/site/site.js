"use strict";
const root = document.documentElement;
const memory = { read: () => { try { return localStorage.getItem("theme"); } catch { return null; } }, write: (value) => { try { localStorage.setItem("theme", value); } catch { /* a page from a folder may have no memory */ } } };
if (memory.read()) root.dataset.theme = memory.read();
document.querySelector("#theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  memory.write(root.dataset.theme);
});

const filters = document.querySelector("#filters");
if (filters) startFilters();

function startFilters() {
  const NAMES = ["backbone", "data", "budget", "positions", "answers", "find"];
  const AVERAGE = "Avg.", fields = filters.elements;
  const boards = [...document.querySelectorAll("article.board")].map((board) => ({
    board, columns: JSON.parse(board.dataset.columns), higher: board.dataset.higher === "1",
    bodies: [...board.querySelectorAll("tbody")].map((body) => ({
      body, rows: [...body.querySelectorAll("tr[data-row]")].map((row, place) => ({ row, place, scores: JSON.parse(row.dataset.scores) })),
    })),
  }));
  const text = (value) => (value === null || value === undefined ? "-" : value.toFixed(1));

  // what the address says, as far as there is such a choice
  function take() {
    const said = new URLSearchParams(location.hash.slice(1));
    for (const name of NAMES) {
      const wanted = said.get(name) ?? "", field = fields[name];
      field.value = field.tagName === "SELECT" && ![...field.options].some((one) => one.value === wanted) ? "" : wanted;
    }
    fields.controls.checked = said.get("controls") !== "0";
    show();
  }

  function tell() {
    const said = new URLSearchParams();
    for (const name of NAMES) if (fields[name].value) said.set(name, fields[name].value);
    if (!fields.controls.checked) said.set("controls", "0");
    const address = said.toString();
    history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
  }

  function show() {
    const is = Object.fromEntries(NAMES.map((name) => [name, fields[name].value.trim()]));
    const column = is.data || AVERAGE, wanted = is.find.toLowerCase();
    let shown = 0, all = 0;
    for (const { board, columns, higher, bodies } of boards) {
      const fits = (!is.backbone || board.dataset.backbone === is.backbone) && (!is.answers || board.dataset.answers === is.answers) && (!is.data || columns.includes(is.data));
      board.querySelector("[data-head]").textContent = column;
      for (const cell of board.querySelectorAll("[data-of]")) cell.classList.toggle("chosen", cell.dataset.of === is.data);
      const full = bodies.flatMap(({ rows }) => rows).find(({ row }) => "bound" in row.dataset);
      const [most] = (full && full.scores[column]) || [null];
      let here = 0;
      for (const { body, rows } of bodies) {
        const value = (one) => (one.scores[column] || [null])[0];
        const sorted = is.data
          ? [...rows].sort((a, b) => ("control" in a.row.dataset) - ("control" in b.row.dataset) || (value(a) === null) - (value(b) === null) || (higher ? value(b) - value(a) : value(a) - value(b)) || a.place - b.place)
          : rows;
        let rank = 0, mine = 0;
        for (const one of sorted) {
          const data = one.row.dataset, [score, low, high] = one.scores[column] || [null, null, null];
          const bound = "bound" in data;
          const stays = fits && (score !== null || !is.data) && data.name.includes(wanted)
            && (bound || ((!is.budget || data.budget === is.budget) && (!is.positions || data.positions === is.positions)))
            && (fields.controls.checked || !("control" in data));
          one.row.querySelector("[data-rank]").textContent = "ranks" in data && score !== null ? ++rank : "";
          one.row.querySelector("[data-score]").textContent = text(score);
          one.row.querySelector("[data-between]").textContent = low === null || low === undefined ? "-" : `${text(low)} to ${text(high)}`;
          // of one split: its share of `none` there; what is told apart is told of the average
          const relative = one.row.querySelector("[data-relative]");
          relative.textContent = is.data ? (score !== null && most ? text((100 * score) / most) : "-") : relative.dataset.relative;
          for (const badge of one.row.querySelectorAll("[data-close] .badge")) badge.hidden = Boolean(is.data) && columns.length > 1;
          one.row.hidden = !stays;
          mine += stays; all += 1;
          body.append(one.row);
        }
        body.hidden = !mine;
        here += mine;
      }
      board.hidden = !here;
      shown += here;
    }
    filters.querySelector("output").textContent = `${shown} of ${all} rows`;
    document.querySelector("#nothing").hidden = shown > 0;
  }

  filters.addEventListener("input", () => { show(); tell(); });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(() => { show(); tell(); }));
  addEventListener("hashchange", take);
  take();
}
