for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const text = (row, k) => row.cells[k].textContent;
  const number = (row, k) => text(row, k) === "" ? -Infinity : Number(text(row, k));
  const words = new Intl.Collator(undefined, {numeric: true});
  heads.forEach((head, k) => head.addEventListener("click", () => {
    const numbers = head.classList.contains("n"), last = head.getAttribute("aria-sort");
    const down = last ? last === "ascending" : numbers && k > 0;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = numbers ? (a, b) => Math.sign(number(a, k) - number(b, k) || 0)
                          : (a, b) => words.compare(text(a, k), text(b, k));
    body.append(...[...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)));
  }));
}
