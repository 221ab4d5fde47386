function startBoard(board) {
  const table = DATA.tables[Number(board.dataset.table)];
  const tools = find(".tools", board), heads = all("thead th", board);
  const bodies = all("tbody", board), first = bodies.map((body) => [...body.rows]);
  const rows = all("tbody tr[data-line]", board), place = new Map(rows.map((row, index) => [row, index]));
  const lineOf = (row) => table.lines[Number(row.dataset.line)];
  const suffix = Number(board.dataset.table) || "", key = (name) => `${name}${suffix}`; // in the address
  const names = heads.map((head) => head.innerText.trim().replace(/\s+/g, " ")), menu = find(".menu", board);
  const allBudgets = all("input[name=budget]", tools).map((box) => box.value);
  let sorted = null;

  const value = (row, column) => {
    const text = row.cells[column].textContent.trim();
    const amount = parseFloat(text.replace("−", "-"));
    return column === 0 || Number.isNaN(amount) ? (text === "-" || text === "" ? null : text.toLowerCase()) : amount;
  };
  const compare = (a, b) => {
    if (!sorted) return place.get(a) - place.get(b);
    const x = value(a, sorted.column), y = value(b, sorted.column);
    if (x === null || y === null) return (x === null) - (y === null) || place.get(a) - place.get(b);
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return (sorted.down ? -order : order) || place.get(a) - place.get(b);
  };

  function arrange() {
    const grouped = tools.elements.grouped.checked;
    for (const [index, body] of bodies.entries()) {
      const mine = grouped ? first[index].filter((row) => row.dataset.line) : index ? [] : rows;
      const heading = first[index][0];
      heading.hidden = !grouped;
      body.append(heading, ...[...mine].sort(compare));
    }
    show();
  }

  function show() {
    const wanted = tools.elements.find.value.trim().toLowerCase();
    const budgets = new Set(all("input[name=budget]:checked", tools).map((box) => Number(box.value)));
    let shown = 0;
    for (const row of rows) {
      const line = lineOf(row);
      row.hidden = !(budgets.has(line.budget) && line.pruner.toLowerCase().includes(wanted) && (tools.elements.controls.checked || !line.control));
      shown += !row.hidden;
    }
    if (tools.elements.grouped.checked) for (const body of bodies) body.rows[0].hidden = [...body.rows].slice(1).every((row) => row.hidden);
    find("output", tools).textContent = `${shown} of ${rows.length} rows`;
    const cells = numbers();
    if (cells.length && !cells.some((cell) => cell.tabIndex === 0)) cells[0].tabIndex = 0;
  }

  const numbers = () => all("td[data-column]", board).filter((cell) => !cell.parentNode.hidden && !cell.hidden);
  const columnOf = (cell) => (cell.dataset.column === "Avg." ? null : table.columns.indexOf(cell.dataset.column));

  for (const [column, head] of heads.entries()) {
    find("button", head).addEventListener("click", () => {
      const words = column === 0 || head.classList.contains("words");
      const again = sorted && sorted.column === column;
      if (again && sorted.down === words) sorted = null;
      else sorted = { column, down: again ? !sorted.down : !words };
      address.set({ [key("rank")]: sorted && `${sorted.down ? "-" : ""}${names[column]}` });
      follow();
    });
  }
  tools.addEventListener("input", ({ target }) => {
    if (target.closest(".menu")) return;
    const budgets = all("input[name=budget]:checked", tools).map((box) => box.value), { controls, grouped, find: wanted } = tools.elements;
    const changes = { [key("method")]: wanted.value, [key("rows")]: budgets.length === allBudgets.length ? null : budgets.join(" ") || "none", [key("controls")]: controls.checked ? null : "off", [key("grouped")]: grouped.checked ? null : "off" };
    address.set(changes, target.name !== "find");
    follow();
  });
  // columns that are left out, by name, so that a column of a later report is seen
  function columns() {
    const off = new Set(address.list(key("without")));
    for (const row of [heads[0].parentNode, ...rows]) names.forEach((name, column) => { row.cells[column].hidden = off.has(name); });
    const seen = names.filter((name) => !off.has(name));
    for (const body of bodies) body.rows[0].cells[0].colSpan = seen.length;
    fillMenu(menu, names.slice(1), seen, (shown) => { address.set({ [key("without")]: names.slice(1).filter((name) => !shown.includes(name)) }); follow(); });
  }
  // everything as the address says
  function follow() {
    const { elements } = tools, wanted = address.get(key("method")), some = address.get(key("rows")), rank = address.get(key("rank")), down = rank.startsWith("-");
    if (elements.find.value !== wanted) elements.find.value = wanted;
    all("input[name=budget]", tools).forEach((box) => { box.checked = !some || some.split(" ").includes(box.value); });
    elements.controls.checked = address.get(key("controls")) !== "off";
    elements.grouped.checked = address.get(key("grouped")) !== "off";
    const column = names.indexOf(down ? rank.slice(1) : rank);
    sorted = rank && column >= 0 ? { column, down } : null;
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    if (sorted) heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    columns();
    arrange();
  }
  address.follow(follow);

  board.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("td[data-column]");
    if (cell) showTip(tellNumber(table, lineOf(cell.parentNode), columnOf(cell)), event.clientX, event.clientY);
    else hideTip();
  });
  board.addEventListener("mouseleave", hideTip);
  const open = (cell) => { hideTip(); openNumber(table, lineOf(cell.parentNode), columnOf(cell)); };
  board.addEventListener("click", (event) => {
    const cell = event.target.closest("td[data-column]");
    if (cell) { rove(cell); open(cell); }
  });

  // one stop for the Tab key, arrows inside
  function rove(cell) {
    all("td[tabindex='0']", board).forEach((other) => (other.tabIndex = -1));
    cell.tabIndex = 0;
    cell.focus();
  }
  board.addEventListener("keydown", (event) => {
    const cell = event.target.closest("td[data-column]");
    if (!cell) return;
    const inRow = (line_) => all("td[data-column]", line_).filter((one) => !one.hidden), mine = inRow(cell.parentNode), column = mine.indexOf(cell);
    const seen = all("tbody tr[data-line]", board).filter((row) => !row.hidden), row = seen.indexOf(cell.parentNode);
    const other = { ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column] }[event.key];
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(cell); }
    if (!other) return;
    event.preventDefault();
    const next = seen[other[0]] && inRow(seen[other[0]])[other[1]];
    if (next) rove(next);
  });
  all("td[data-column]", board).forEach((cell) => (cell.tabIndex = -1));
  follow();
}
