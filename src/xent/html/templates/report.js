// The heads of the table of classes become buttons that sort it; without a script it stays as it is.
const table = document.getElementById("class-table");
const heads = [...table.tHead.rows[0].cells];
const value = (row, column) => {
  const words = row.cells[column].textContent.trim();
  const number = parseFloat(words.replace("−", "-").replaceAll(",", ""));
  return column === 0 ? row.dataset.order : words === "–" ? -Infinity : number;
};
[...table.tBodies[0].rows].forEach((row, place) => { row.dataset.order = place; });
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  head.replaceChildren(button);
  button.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : column > 0;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => (down ? -1 : 1) * (value(a, column) - value(b, column)) || a.dataset.order - b.dataset.order);
    table.tBodies[0].append(...rows);
  });
});
