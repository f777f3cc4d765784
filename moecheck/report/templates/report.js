"use strict";
document.querySelectorAll("table.listing").forEach((table) => {
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
  table.tHead.querySelectorAll("button").forEach((button) => {
    const cell = button.parentElement;
    button.addEventListener("click", () => {
      const state = cell.getAttribute("aria-sort");
      order(cell.cellIndex, state === "none" ? cell.classList.contains("number") : state === "ascending");
    });
  });
  const tools = table.closest("section").querySelector(".tools");
  if (!tools) return;
  const words = tools.querySelector("input"), choice = tools.querySelector("select"), shown = tools.querySelector(".shown");
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    let visible = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word)) ||
        (choice !== null && choice.value !== "" && row.dataset.choice !== choice.value);
      visible += row.hidden ? 0 : 1;
    }
    shown.textContent = visible === rows.length ? "" : `${visible} of ${rows.length} shown`;
  };
  words.addEventListener("input", filter);
  choice?.addEventListener("change", filter);
  if (words.value || choice?.value) filter(); // what the browser kept while another page was looked at
});
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
