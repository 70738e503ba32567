"use strict";

const theme = JSON.parse(document.getElementById("theme").textContent);
const config = { responsive: true, displaylogo: false, showSendToCloud: false };  // no data leaves the page

// Draw a figure only when it scrolls near the screen, so that a page of forty tasks opens without delay.
function draw(box) {
  const source = box.querySelector("script");
  if (!source) return;
  const { data, layout } = JSON.parse(source.textContent);
  source.remove();
  Plotly.newPlot(box, data, { ...layout, template: theme }, config);
}

const plots = [...document.querySelectorAll(".plot")];
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) { near.unobserve(target); draw(target); }
}, { rootMargin: "300px" });
for (const box of plots) near.observe(box);
window.addEventListener("beforeprint", () => plots.filter((box) => !box.closest("[hidden]")).forEach(draw));

function show(task) {
  for (const part of document.querySelectorAll("[data-tasks]"))
    part.hidden = task !== "" && !part.dataset.tasks.split(" ").includes(task);
  window.dispatchEvent(new Event("resize"));
}

const chooser = document.getElementById("task");
if (chooser) {
  chooser.addEventListener("change", () => show(chooser.value));
  show(chooser.value);
}

function sort(table, column) {
  const body = table.tBodies[0];
  const sign = table.dataset.sorted === String(column) ? -1 : 1;
  table.dataset.sorted = sign === 1 ? column : "";
  const key = (row) => row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [parseFloat(key(a)), parseFloat(key(b))];
    return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) || key(a).localeCompare(key(b)) : x - y;
  };
  body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
}

for (const table of document.querySelectorAll(".sortable"))
  [...table.tHead.rows[0].cells].forEach((cell, column) => cell.addEventListener("click", () => sort(table, column)));
