"use strict";
// Tables are sorted by a click on a heading, and filtered by a word. Numbers sort by their value, which is kept in full in data-v.
function key(row, column) {
  const cell = row.cells[column];
  const value = cell.dataset.v;
  return value === undefined ? cell.textContent.trim().toLowerCase() : parseFloat(value);
}
function before(a, b) {
  const empty = (x) => x === "" || x === "-" || Number.isNaN(x);
  if (empty(a) || empty(b)) return empty(a) - empty(b); // what is missing goes last, either way
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0;
}
function sort(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const up = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row, place) => ({ row, place, key: key(row, column) }));
  const missing = (x) => x === "" || x === "-" || Number.isNaN(x);
  rows.sort((a, b) => (missing(a.key) || missing(b.key) || up ? before(a.key, b.key) : before(b.key, a.key)) || a.place - b.place);
  table.tBodies[0].append(...rows.map((entry) => entry.row));
}
for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => heading.addEventListener("click", () => sort(table, column)));
}
for (const input of document.querySelectorAll("input.filter")) {
  const table = document.getElementById(input.dataset.table);
  input.addEventListener("input", () => {
    const word = input.value.toLowerCase();
    for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(word);
  });
}
