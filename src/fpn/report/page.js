for (const head of document.querySelectorAll(".sortable th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], place = head.cellIndex;
  // Words first from A to Z, numbers first from the greatest.
  const up = head.ariaSort ? head.ariaSort === "descending" : place === 0;
  const text = row => row.cells[place].textContent.trim();
  const value = row => { const t = text(row).replace(/,/g, ""); return t === "" || isNaN(t) ? null : +t; };
  const order = (a, b) => {
    const x = value(a), y = value(b);
    if (x !== null && y !== null) return x - y;
    if (x !== null || y !== null) return x === null ? -1 : 1;
    return text(a).localeCompare(text(b));
  };
  const rows = [...body.rows].sort((a, b) => up ? order(a, b) : order(b, a));
  for (const other of head.parentNode.cells) other.ariaSort = null;
  head.ariaSort = up ? "ascending" : "descending";
  body.append(...rows);
};
