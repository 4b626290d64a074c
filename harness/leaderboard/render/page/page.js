"use strict";
const table = document.getElementById("board");
const headings = [...table.querySelectorAll("thead th")];
const say = (text) => { document.getElementById("said").textContent = text; };

// Sorts rows within their groups; unknown values stay at the end whichever way.
function sort(column, descending) {
  const order = (a, b) => {
    const [x, y] = [a, b].map((row) => row.cells[column].dataset.value);
    if (x === "" || y === "") return (x === "") - (y === "");
    const numeric = headings[column].classList.contains("number");
    const difference = numeric ? Number(x) - Number(y) : x.localeCompare(y);
    return descending ? -difference : difference;
  };
  for (const body of table.tBodies) {
    const rows = [...body.querySelectorAll("tr.row")].sort(order);
    body.append(...rows);
  }
  headings.forEach((heading, i) => {
    heading.setAttribute("aria-sort", i !== column ? "none" : descending ? "descending" : "ascending");
  });
  say(`Sorted by ${headings[column].textContent}, ${descending ? "falling" : "rising"}`);
}

headings.forEach((heading, column) => {
  heading.querySelector("button").addEventListener("click", () => {
    const now = heading.getAttribute("aria-sort");
    const scores = heading.classList.contains("number") && !["Rank", "p", "Merge, s"].includes(heading.textContent);
    sort(column, now === "none" ? scores : now === "ascending");
  });
});

const filter = document.getElementById("filter");
const roles = [...document.querySelectorAll('input[name="role"]')];
function show() {
  const wanted = filter.value.trim().toLowerCase();
  const checked = new Set(roles.filter((box) => box.checked).map((box) => box.value));
  let count = 0;
  for (const body of table.tBodies) {
    let here = 0;
    for (const row of body.querySelectorAll("tr.row")) {
      row.hidden = !checked.has(body.dataset.role) || !row.dataset.name.includes(wanted);
      here += !row.hidden;
    }
    body.hidden = here === 0;
    count += here;
  }
  document.getElementById("shown").textContent = `${count} ${count === 1 ? "row" : "rows"}`;
}
filter.addEventListener("input", show);
roles.forEach((box) => box.addEventListener("change", show));
document.querySelector("form.controls").addEventListener("submit", (event) => event.preventDefault());
show();

// Opened from a file, some browsers give no clipboard: then the command is selected, to be copied by hand.
document.querySelectorAll("button.copy").forEach((button) => {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      say("Command copied");
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      say("Command selected");
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
});

function open() {
  const target = location.hash.startsWith("#row-") && document.getElementById(location.hash.slice(1));
  if (target) { target.open = true; target.querySelector("summary").focus(); }
}
addEventListener("hashchange", open);
open();

const theme = document.getElementById("theme");
const dark = () => document.documentElement.dataset.theme
  ? document.documentElement.dataset.theme === "dark"
  : matchMedia("(prefers-color-scheme: dark)").matches;
const name = () => { theme.textContent = dark() ? "Light" : "Dark"; };
theme.addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  name();
});
name();
