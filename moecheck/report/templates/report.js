"use strict";
const table = document.getElementById("kernels");
if (table) {
  const body = table.tBodies[0], rows = [...body.rows];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y) ? x - y : a.localeCompare(b);
  };
  const order = (column, down) => {
    rows.sort((a, b) => compare(key(a, column), key(b, column)) * (down ? -1 : 1));
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((cell, index) => {
      cell.setAttribute("aria-sort", index !== column ? "none" : down ? "descending" : "ascending");
    });
  };
  table.tHead.querySelectorAll("button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const state = button.parentElement.getAttribute("aria-sort");
      order(column, state === "none" ? button.parentElement.classList.contains("number") : state === "ascending");
    });
  });
  const words = document.getElementById("words"), verdict = document.getElementById("verdict");
  const shown = document.getElementById("shown");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let visible = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word)) ||
        (verdict.value !== "" && row.dataset.verdict !== verdict.value);
      visible += row.hidden ? 0 : 1;
    }
    shown.textContent = visible === rows.length ? "" : `${visible} of ${rows.length} shown`;
  };
  words.addEventListener("input", filter);
  verdict.addEventListener("change", filter);
}
document.querySelectorAll("button.copy").forEach((button) => {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(code); // a page opened as a file may not reach the clipboard
      button.textContent = "selected";
    }
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
});
