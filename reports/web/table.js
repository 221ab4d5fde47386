function startBoard(board) {
  const table = DATA.tables[Number(board.dataset.table)];
  const tools = find(".tools", board), heads = all("thead th", board);
  const bodies = all("tbody", board), first = bodies.map((body) => [...body.rows]);
  const rows = all("tbody tr[data-line]", board), place = new Map(rows.map((row, index) => [row, index]));
  const lineOf = (row) => table.lines[Number(row.dataset.line)];
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

  const numbers = () => all("td[data-column]", board).filter((cell) => !cell.parentNode.hidden);
  const columnOf = (cell) => (cell.dataset.column === "Avg." ? null : table.columns.indexOf(cell.dataset.column));

  for (const [column, head] of heads.entries()) {
    find("button", head).addEventListener("click", () => {
      const words = column === 0 || head.classList.contains("words");
      const again = sorted && sorted.column === column;
      if (again && sorted.down === words) sorted = null;
      else sorted = { column, down: again ? !sorted.down : !words };
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (sorted) head.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      arrange();
    });
  }
  tools.addEventListener("input", (event) => (event.target.name === "grouped" ? arrange() : show()));

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
    const mine = all("td[data-column]", cell.parentNode), column = mine.indexOf(cell);
    const seen = all("tbody tr[data-line]", board).filter((row) => !row.hidden), row = seen.indexOf(cell.parentNode);
    const other = { ArrowRight: [row, column + 1], ArrowLeft: [row, column - 1], ArrowDown: [row + 1, column], ArrowUp: [row - 1, column] }[event.key];
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(cell); }
    if (!other) return;
    event.preventDefault();
    const next = seen[other[0]] && all("td[data-column]", seen[other[0]])[other[1]];
    if (next) rove(next);
  });
  all("td[data-column]", board).forEach((cell) => (cell.tabIndex = -1));
  show();
}
