const press = (buttons, chosen) => buttons.forEach(b => b.setAttribute("aria-pressed", b === chosen));
const hours = [...document.querySelectorAll("[data-hours]")];
hours.forEach(b => b.addEventListener("click", () => {
  press(hours, b);
  document.querySelectorAll("[data-table-hours]").forEach(t => { t.hidden = t.dataset.tableHours !== b.dataset.hours; });
}));
const themes = [...document.querySelectorAll("[data-theme-choice]")];
themes.forEach(b => b.addEventListener("click", () => {
  press(themes, b);
  document.documentElement.dataset.theme = b.dataset.themeChoice;
}));
document.querySelectorAll("table.sortable").forEach(table => {
  table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
    const down = button.dataset.down = button.dataset.down === "1" ? "0" : "1";
    const value = row => row.cells[column].textContent.trim().replace(/,(?=\d{3})/g, "");
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const x = parseFloat(value(a)), y = parseFloat(value(b));
      const order = isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
      return down === "1" ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
});
