"use strict";
(() => {
  const root = document.documentElement;
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = getComputedStyle(root).getPropertyValue("--back").trim() === "#14171b";
    root.dataset.theme = dark ? "light" : "dark";
  });

  const fold = (button, open) => {
    button.setAttribute("aria-expanded", String(open));
    document.getElementById(button.getAttribute("aria-controls")).hidden = !open;
  };
  for (const button of document.querySelectorAll("button[aria-controls]")) {
    fold(button, false);
    button.addEventListener("click", () => fold(button, button.getAttribute("aria-expanded") === "false"));
  }

  const key = (body, column) => {
    const cell = body.rows[0].cells[column];
    if (!cell.hasAttribute("data-value")) return cell.textContent.trim().toLowerCase();
    const value = cell.getAttribute("data-value");
    return value === "" ? NaN : Number(value);
  };
  const compare = (one, other) => {
    if (typeof one === "string") return one < other ? -1 : one > other ? 1 : 0;
    return one - other;
  };
  for (const header of document.querySelectorAll("th[data-sort]")) {
    header.querySelector("button").addEventListener("click", () => {
      const table = header.closest("table");
      const descending = header.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const rows = [...table.tBodies].map((body) => ({ body, key: key(body, header.cellIndex) }));
      // What has no number stays last, either way.
      const known = rows.filter((row) => !Number.isNaN(row.key));
      known.sort((one, other) => (descending ? -1 : 1) * compare(one.key, other.key));
      for (const row of [...known, ...rows.filter((row) => Number.isNaN(row.key))]) table.append(row.body);
    });
  }
})();
