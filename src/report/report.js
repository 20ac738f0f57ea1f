"use strict";
const control = (id) => document.getElementById(id);
const data = JSON.parse(control("data").textContent);
function make(tag, attributes = {}, ...children) { // children that are texts stay texts, whatever they hold
  const drawn = ["svg", "rect", "image"].includes(tag);
  const element = document.createElementNS(`http://www.w3.org/${drawn ? "2000/svg" : "1999/xhtml"}`, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
// Maps of gates: shares in per cent; of one question 0 and 100, with the gates that depart from the usual choice.
function paint(map, shares, departing) {
  for (const cell of map.querySelectorAll("[data-gate]:not(.dead)")) {
    const share = shares[cell.dataset.gate], odd = departing?.[cell.dataset.gate], copy = share ? "tuned" : "frozen";
    cell.querySelector(".fill").setAttribute("fill-opacity", share / 100);
    cell.classList.toggle("full", share > 57);
    cell.classList.toggle("odd", Boolean(odd));
    const [label, words] = departing ? (odd ? ["!", `${copy}, unlike most questions`] : ["", copy]) : [share, `${share} %`];
    cell.querySelector("text").textContent = label;
    cell.querySelector("title").textContent = `${cell.dataset.name}: ${words}`;
  }
}
for (const figure of document.querySelectorAll("figure.map")) {
  const map = data.maps[figure.dataset.map];
  const [slider, choice, output] = [".epoch", ".examples", "output"].map((name) => figure.querySelector(name));
  choice.append(new Option("validation", "val"), new Option("training", "train"));
  map.types.forEach(([name], number) => choice.append(new Option(`validation: ${name}`, number)));
  figure.oninput = () => {
    const byEpoch = choice.value in map, place = byEpoch ? slider.value - 1 : map.epochs.length - 1;
    slider.disabled = !byEpoch; // types are known of the last epoch only
    output.textContent = `epoch ${map.epochs[place]}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    paint(figure, byEpoch ? map[choice.value][place] : map.types[choice.value][1]);
  };
  figure.oninput();
}
// Questions, one at a time; the address says which: #question=ID.
const isWrong = (run) => run.score < 0.5;
const answers = (question) => question.runs.filter(Boolean);
const ORDERS = {
  unusual: (question) => Math.max(...answers(question).map((run) => run.unusual ?? -1)),
  sure: (question) => Math.max(...answers(question).map((run) => run.answers[0][1])),
};
const bits = (hex) => [...hex].flatMap((digit) => [8, 4, 2, 1].map((bit) => (parseInt(digit, 16) & bit ? 1 : 0)));
const mark = (wrong, words = "") => make("span", { class: wrong ? "wrong" : "right" }, (wrong ? "✗" : "✓") + words);
const say = (text) => Object.assign(control("missing"), { textContent: text, hidden: !text });
let shown = [], current, boxes = true;
function filter() {
  const [kind, name] = JSON.parse(control("type").value || "[null]"), order = ORDERS[control("order").value];
  shown = data.questions.filter((question) => (kind === null || question.types?.[kind] === name) &&
    (!control("wrong").checked || answers(question).some(isWrong)) && (!control("differ")?.checked || question.differ));
  if (order) shown.sort((one, other) => order(other) - order(one));
  control("list").replaceChildren(...shown.map((question) => make("li", {}, make("a", { href: `#question=${question.id}` },
    mark(answers(question).some(isWrong)), " ", make("bdi", {}, question.text || `question ${question.id}`)))));
  show(shown.includes(current) ? current : shown[0]);
}
function show(question) {
  const list = control("list"), place = shown.indexOf(question);
  current = question;
  control("count").textContent = shown.length ? `${place + 1} of ${shown.length}` : "none";
  list.querySelectorAll("a").forEach((link, number) => {
    link.tabIndex = number === place ? 0 : -1;
    link.toggleAttribute("aria-current", number === place);
    if (number === place) list.scrollTop = link.offsetTop - list.offsetTop - list.clientHeight / 3;
  });
  control("question").replaceChildren(...(question ? describe(question) : [make("p", {}, "No question is like that.")]));
}
function* describe(question) {
  const { id, text, human, types, why } = question, image = data.images[question.image];
  yield make("h3", { dir: "auto" }, text || `Question ${id}`);
  const named = Object.entries(types || {}).filter(([, name]) => name).map((pair) => pair.join(" "));
  const facts = [`image ${image ? image.name : "unknown"}`, ...named, why].filter(Boolean);
  yield make("p", { class: "hint" }, make("a", { href: `#question=${id}` }, `question ${id}`),
    ...facts.flatMap((fact) => [" · ", make("bdi", {}, fact)]));
  if (image?.picture || image?.boxes.length) yield picture(image);
  if (human.length) yield make("ul", { class: "human" }, make("li", {}, "Humans: "), ...human.map(([answer, weight]) =>
    make("li", {}, make("bdi", {}, answer), " ", make("small", {}, weight))));
  yield make("div", { class: "runs" }, ...question.runs.flatMap((run, number) => (run ? [outcome(run, number)] : [])));
}
function picture(image) {
  const [url, width, height] = image.picture || [null, 100, 75], named = { role: "img", "aria-label": image.name };
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, class: "picture", ...named },
    url ? make("image", { href: url, width, height }) : make("rect", { class: "ground", width, height }));
  for (const [left, top, right, bottom] of boxes ? image.boxes : []) {
    const place = { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height };
    svg.append(make("rect", { class: "halo", ...place }), make("rect", { class: "box", ...place }));
  }
  return svg;
}
function outcome(run, number) {
  const tone = `t${number % 6}`, letter = data.letters[number], size = { height: 10, width: 120 };
  const section = make("section", {}, make("p", { class: "verdict" },
    ...(letter ? [make("span", { class: `letter ${tone}` }, letter), " "] : []),
    mark(isWrong(run), isWrong(run) ? " wrong" : " right"), `, score ${run.score}`));
  section.append(make("table", { class: "answers" }, make("tbody", {}, ...run.answers.map(([answer, percent]) => make("tr", {},
    make("th", { scope: "row" }, make("bdi", {}, answer)),
    make("td", {}, make("svg", { class: `bar ${tone}`, "aria-hidden": "true", ...size },
      make("rect", { class: "ground", ...size }), make("rect", { class: "fill", ...size, width: 1.2 * percent }))),
    make("td", { class: "number" }, `${percent.toFixed(1)} %`))))));
  const map = document.querySelector(`figure.map[data-run="${number}"]`);
  if (!run.gates || !map) return section;
  const panels = make("div", { class: "panels small" }, ...map.querySelector(".panels").cloneNode(true).children);
  const gates = bits(run.gates).map((bit) => 100 * bit);
  paint(panels, gates, bits(run.departing));
  const live = [...panels.querySelectorAll("[data-gate]:not(.dead)")].map((cell) => gates[cell.dataset.gate]);
  section.append(make("p", { class: "hint" }, `${live.filter(Boolean).length} of ${live.length} gates ran tuned (filled); ` +
    `${run.unusual} unlike most questions (!).`), panels);
  return section;
}
function follow() { // the address
  const id = /^#question=(-?\d+)$/.exec(location.hash)?.[1], question = data.questions.find((each) => each.id === id);
  say(id && !question ? `Question ${id} is not among those that this report keeps.` : data.missing);
  if (!question) return;
  if (!shown.includes(question)) {
    for (const name of ["wrong", "differ"]) if (control(name)) control(name).checked = false;
    control("type").value = "";
    filter();
  }
  show(question);
}
function step(by) {
  const next = shown[shown.indexOf(current) + by];
  if (next) location.replace(`#question=${next.id}`);
}
const KEYS = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  w: () => control("wrong").click(),
  b: () => show(current, (boxes = !boxes)),
  u: () => { control("order").value = control("order").value ? "" : "unusual"; filter(); },
};
say(data.missing);
if (data.questions.length) {
  const kinds = {};
  for (const { types } of data.questions) for (const [kind, name] of Object.entries(types || {})) (kinds[kind] ??= new Set()).add(name);
  for (const [kind, names] of Object.entries(kinds)) control("type").append(make("optgroup", { label: kind },
    ...[...names].sort().map((name) => new Option(name || "(none)", JSON.stringify([kind, name])))));
  for (const name of ["wrong", "differ", "type", "order"]) control(name)?.addEventListener("change", filter);
  control("previous").onclick = () => step(-1);
  control("next").onclick = () => step(1);
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    const handle = Object.hasOwn(KEYS, event.key) && KEYS[event.key];
    if (!handle || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, [type=range]")) return;
    event.preventDefault(handle());
  });
  control("browser").hidden = false;
  filter();
  follow();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => { each.open = true; }));
