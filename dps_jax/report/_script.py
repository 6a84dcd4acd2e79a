"""The script of the page, which shows values under the pointer or by the arrow keys, and sorts and filters tables."""

JS = """
"use strict";
const NS = document.documentElement.querySelector("svg")?.namespaceURI;
function nearest(list, value) {
  let low = 0, high = list.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle; else high = middle;
  }
  return Math.abs(list[low] - value) <= Math.abs(list[high] - value) ? low : high;
}
for (const svg of document.querySelectorAll("svg.plot")) {
  const {axis: [low, high, start, stop], series} = JSON.parse(svg.dataset.readings);
  const tip = svg.parentElement.querySelector(".tip"), cursor = svg.querySelector(".cursor");
  const places = [...new Set(series.flatMap(curve => curve.x))].sort((one, other) => one - other);
  let current = places.length - 1;
  function hide() { tip.replaceChildren(); cursor.replaceChildren(); }
  function show(index) {
    current = Math.max(0, Math.min(places.length - 1, index));
    const value = places[current], box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const across = start + (value - low) / (high - low) * (stop - start);
    const line = document.createElementNS(NS, "line");
    for (const [name, place] of [["x1", across], ["x2", across], ["y1", 8], ["y2", svg.viewBox.baseVal.height - 40]])
      line.setAttribute(name, place);
    cursor.replaceChildren(line);
    const head = document.createElement("div");
    head.textContent = svg.dataset.x + " " + value.toLocaleString("en", {maximumFractionDigits: 1});
    const isThere = curve => curve.x.length && value >= curve.x[0] && value <= curve.x[curve.x.length - 1];
    const rows = series.filter(isThere).map(curve => {
      const row = document.createElement("div"), key = document.createElement("i");
      key.className = "key " + curve.color;
      const at = nearest(curve.x, value);
      row.append(key, curve.name + ": " + curve.y[at]);
      return row;
    });
    tip.replaceChildren(head, ...rows);
    const left = svg.offsetLeft ?? 12, place = 12 + across * scale;
    const width = svg.parentElement.clientWidth;
    if (place > width / 2) { tip.style.left = "auto"; tip.style.right = width - place + 10 + "px"; }
    else { tip.style.right = "auto"; tip.style.left = place + 10 + "px"; }
  }
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const across = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    show(nearest(places, low + (across - start) / (stop - start) * (high - low)));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1, Home: -places.length, End: places.length}[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(current + step);
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((one, other) => {
        const [a, b] = [key(one), key(other)];
        return sign * (a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b));
      });
      table.tBodies[0].append(...rows);
    });
  });
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  const part = document.getElementById(input.dataset.filters);
  input.hidden = false;
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const block of part.querySelectorAll("details.class")) {
      let shown = 0;
      for (const row of block.querySelectorAll("tbody tr")) {
        row.hidden = !row.textContent.toLowerCase().includes(wanted);
        shown += !row.hidden;
      }
      if (wanted) block.open = shown > 0;
      block.querySelector(".shown").textContent = wanted ? " " + shown + " match" : "";
    }
  });
}
"""
