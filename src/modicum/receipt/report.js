"use strict";
// The slider moves along the plans of the frontier; all numbers were made by modicum, here they are only shown.
const data = JSON.parse(document.getElementById("plans").textContent);
const byId = (id) => document.getElementById(id);
const cells = [...document.querySelectorAll("[data-row]")];
const slider = byId("at");
let at = data.chosen, view = "bits", pointed = null;

const few = (value) => Number(value.toPrecision(3)).toString();
const fixed = (value) => value === null ? "" : value.toFixed(2);
const many = (value) => value === null ? "" : value.toLocaleString("en-US");
const stateOf = (cell) => data.rows[cell.dataset.row].cells[cell.dataset.cell].states.findLast((state) => state.at <= at);

function valueOf(state) {
  if (view === "loss") return data.points[at].forecast ? state.harm / data.points[at].forecast : null;
  return state[view];
}

function shown(state, value) {
  if (state.short && (view === "bits" || state.short === "–")) return state.short === "keep" && state.bits !== null ? few(state.bits) : state.short;
  if (value === null) return "";
  return view === "loss" ? `${Math.round(100 * value)}%` : String(Number(value.toFixed(value < 10 ? 1 : 0)));
}

function colour(state, value) {
  if (state.short === "–") return "gone";
  if (state.short === "keep") return "kept";
  if (view === "bits" && state.bits === null) return "cut";
  return value === null ? "none" : `c${data.views[view].filter((limit) => value >= limit).length}`;
}

function told(cell) {
  const state = stateOf(cell), forecast = data.points[at].forecast, parts = [`${cell.dataset.name}: ${state.said}`];
  if (state.bits !== null) parts.push(`${fixed(state.bits)} bits per weight`, `${many(state.bytes)} bytes`);
  if (state.beyond !== null) parts.push(`${fixed(state.beyond)} bits beyond the reference`);
  if (forecast && state.harm) parts.push(`${few(100 * state.harm / forecast)} % of the forecast loss`);
  return parts.join(", ");
}

function paintMap() {
  for (const cell of cells) {
    const state = stateOf(cell), value = valueOf(state);
    cell.textContent = shown(state, value);
    cell.className = colour(state, value);
    cell.title = told(cell);
    cell.setAttribute("aria-label", cell.title);
  }
  for (const legend of document.querySelectorAll("[data-legend]")) legend.hidden = legend.dataset.legend !== view;
  if (pointed) byId("told").textContent = told(pointed);
}

function row(entry, whole) {
  const line = document.createElement("tr");
  const words = [entry.option, entry.sites === null ? "" : many(entry.sites), fixed(entry.bits), fixed(entry.beyond), many(entry.bytes)];
  for (const [place, word] of words.entries()) {
    const part = document.createElement(place ? "td" : "th");
    part.textContent = word;
    if (place) part.className = "n"; else part.scope = "row";
    line.append(part);
  }
  const share = document.createElement("td"), bar = document.createElement("span");
  bar.className = "bar";
  bar.style.setProperty("--share", `${100 * entry.bytes / whole}%`);
  share.append(bar);
  line.append(share);
  return line;
}

function paintPlan() {
  const point = data.points[at], own = at === data.chosen;
  const loss = point.lost === null ? "" : `, ${own ? "measured" : "expected"} to lose ${few(point.lost)}`;
  const said = `${point.size}, ${fixed(point.bits)} bits per weight${loss}${point.degree ? ` (${point.degree})` : ""}`;
  byId("shown").textContent = own ? `This result: ${said.replace("measured to lose", "loses")}` : said;
  byId("shown").dataset.degree = point.degree;
  byId("spent").replaceChildren(...point.spent.map((entry) => row(entry, point.bytes)));
  if (!slider) return;
  slider.setAttribute("aria-valuetext", said);
  byId("own").disabled = own;
  for (const [shape, places] of Object.entries(data.places)) {
    const ring = document.querySelector(`.${shape} .here`);
    ring.setAttribute("cx", places[at][0]);
    ring.setAttribute("cy", places[at][1]);
  }
}

function go(place) {
  at = place;
  if (slider) slider.value = at;
  paintPlan();
  paintMap();
}

function point(cell) {
  pointed = cell;
  byId("told").textContent = told(cell);
}

// The map is one stop of the tab key; arrows move inside.
function move(event) {
  const row = Number(event.target.dataset.row), column = Number(event.target.dataset.cell);
  const line = (place) => cells.filter((other) => Number(other.dataset.row) === place);
  const far = (other) => Math.abs(Number(other.dataset.cell) - column);
  const mine = line(row), place = mine.indexOf(event.target);
  const nearest = (others) => others.length ? others.reduce((best, other) => far(other) < far(best) ? other : best) : null;
  const next = {
    ArrowRight: () => mine[place + 1], ArrowLeft: () => mine[place - 1], Home: () => mine[0], End: () => mine.at(-1),
    ArrowDown: () => nearest(line(row + 1)), ArrowUp: () => nearest(line(row - 1)),
  }[event.key]?.();
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

for (const cell of cells) {
  cell.addEventListener("focus", () => point(cell));
  cell.addEventListener("mouseenter", () => point(cell));
  cell.addEventListener("keydown", move);
}
for (const radio of document.querySelectorAll("input[name=view]")) radio.addEventListener("change", () => { view = radio.value; paintMap(); });
if (slider) {
  slider.addEventListener("input", () => go(Number(slider.value)));
  byId("own").addEventListener("click", () => go(data.chosen));
}
for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;
go(data.chosen);
