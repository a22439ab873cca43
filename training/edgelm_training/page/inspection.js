"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const T = data.tokens.length, L = data.layers, N = data.heads, cells = T * (T + 1) / 2;
const A = data.attention_layers.length; // of the layers with attention, chosen.layer counts these
const numbered = (layer) => data.attention_layers[layer] + 1;
const byId = (id) => document.getElementById(id);
// Weights in 65535ths, little-endian, row by row up to the diagonal, head after head.
const weights = new DataView(Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0)).buffer);
const weight = (layer, head, row, column) =>
  column > row ? 0 : weights.getUint16(2 * ((layer * N + head) * cells + row * (row + 1) / 2 + column), true) / 65535;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }; // rows, columns
const chosen = { token: Math.max(0, T - 2), layer: 0, head: 0, column: 0 };

// A text with its blanks made visible; only text nodes, never markup.
function show(element, text) {
  element.replaceChildren();
  for (const part of text === "" ? ["∅"] : text.split(/([ \n\t\r]|∅)/).filter((x) => x !== "")) {
    const mark = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍", "∅": "∅" }[part];
    if (mark === undefined) { element.append(part); continue; }
    const span = document.createElement("span");
    span.className = "mark";
    span.textContent = mark;
    element.append(span);
  }
}
const percent = (p) => p >= 0.0995 ? (100 * p).toFixed(0) + " %" : p >= 0.001 ? (100 * p).toFixed(1) + " %" : "< 0.1 %";
const named = (index) => "“" + data.tokens[index].replace(/\n/g, "⏎") + "”";

// Colours as numbers, from whatever form the theme has them in.
function color(name) {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  pixel.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  pixel.fillRect(0, 0, 1, 1);
  return pixel.getImageData(0, 0, 1, 1).data;
}
function paint(canvas, layer, head, tint) {
  canvas.width = canvas.height = T;
  const context = canvas.getContext("2d"), image = context.createImageData(T, T);
  for (let row = 0; row < T; row++) for (let column = 0; column <= row; column++) {
    const at = 4 * (row * T + column);
    image.data.set(tint.subarray(0, 3), at);
    image.data[at + 3] = 255 * Math.sqrt(weight(layer, head, row, column)); // the eye sees small ones too
  }
  context.putImageData(image, 0, 0);
}

// Tokens
const tokens = data.tokens.map((text, index) => {
  const token = document.createElement("span");
  token.className = "token";
  token.setAttribute("role", "option");
  show(token, text);
  token.title = `token ${index}, id ${data.ids[index]}`;
  token.onclick = () => chooseToken(index, true);
  byId("tokens").append(token);
  if (text.includes("\n")) byId("tokens").append(document.createElement("br"));
  return token;
});
byId("tokens").onkeydown = (event) => {
  const to = { ArrowLeft: chosen.token - 1, ArrowRight: chosen.token + 1, Home: 0, End: T - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  chooseToken(Math.min(T - 1, Math.max(0, to)), true);
};
function shade() {
  const byAttention = document.querySelector('input[name="shade"]:checked').value === "attention";
  tokens.forEach((token, index) => {
    const before = index ? data.positions[index - 1].next_probability : null;
    // Twelve bits of surprise are the deepest colour.
    const share = byAttention ? Math.sqrt(weight(chosen.layer, chosen.head, chosen.token, index))
      : before === null ? 0 : Math.min(1, -Math.log2(Math.max(before, 1e-9)) / 12);
    token.style.setProperty("--share", share.toFixed(3));
    token.style.setProperty("--shade", byAttention ? "var(--accent)" : "var(--warm)");
  });
}
document.querySelectorAll('input[name="shade"]').forEach((input) => { input.onchange = shade; });
function chooseToken(index, focus) {
  chosen.token = index;
  chosen.column = Math.min(chosen.column, index);
  tokens.forEach((token, i) => {
    token.setAttribute("aria-selected", i === index);
    token.tabIndex = i === index ? 0 : -1;
  });
  if (focus) tokens[index].focus();
  drawGuesses(); drawMap(); drawStream(); shade();
}

// Guesses
function drawGuesses() {
  const position = data.positions[chosen.token], next = data.tokens[chosen.token + 1];
  byId("position").replaceChildren("After ");
  const token = document.createElement("b");
  show(token, data.tokens[chosen.token]);
  byId("position").append(token);
  const body = byId("guesses").tBodies[0];
  body.replaceChildren();
  for (const [rank, [text, probability]] of position.guesses.entries()) {
    const row = body.insertRow();
    row.classList.toggle("real", position.next_rank === rank + 1);
    show(row.insertCell(), text);
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = 100 * probability + "%";
    row.insertCell().append(bar);
    const figure = row.insertCell();
    figure.textContent = percent(probability);
    figure.title = probability;
  }
  const real = next === undefined ? "The text ends here."
    : `What comes is ${named(chosen.token + 1)}: rank ${position.next_rank}, ${percent(position.next_probability)}.`;
  byId("real-next").textContent = `${real} The distribution has ${position.entropy.toFixed(2)} bits.`;
}

// One head
function drawMap() {
  byId("head-title").textContent = `Layer ${numbered(chosen.layer)}, head ${chosen.head + 1}`;
  const map = byId("map");
  paint(map, chosen.layer, chosen.head, color("--accent"));
  const context = map.getContext("2d"), [r, g, b] = color("--warm");
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = `rgba(${r}, ${g}, ${b}, .18)`;
  context.fillRect(0, chosen.token, chosen.token + 1, 1);
  drawCell(chosen.token, chosen.column);
}
function drawCell(row, column) {
  byId("cell").textContent = column > row ? `${named(row)} comes before ${named(column)}, and does not see it.`
    : `${named(row)} takes ${(100 * weight(chosen.layer, chosen.head, row, column)).toFixed(2)} % from ${named(column)}`
      + (row === column ? ", itself." : ".");
}
function cellAt(event) {
  const box = byId("map").getBoundingClientRect();
  const place = (at, start, size) => Math.min(T - 1, Math.max(0, Math.floor((at - start) / size * T)));
  return [place(event.clientY, box.top, box.height), place(event.clientX, box.left, box.width)];
}
byId("map").onmousemove = (event) => drawCell(...cellAt(event));
byId("map").onmouseleave = () => drawCell(chosen.token, chosen.column);
byId("map").onclick = (event) => {
  const [row, column] = cellAt(event);
  chosen.column = column;
  chooseToken(row, false);
};
byId("map").onkeydown = (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const row = Math.min(T - 1, Math.max(0, chosen.token + step[0]));
  chosen.column = Math.min(row, Math.max(0, chosen.column + step[1]));
  chooseToken(row, false);
};

// All heads
const heads = [];
for (let layer = 0; layer < A; layer++) {
  const row = document.createElement("div");
  row.setAttribute("role", "row");
  const label = document.createElement("span");
  label.className = "label";
  label.setAttribute("role", "rowheader");
  label.textContent = numbered(layer);
  row.append(label);
  for (let head = 0; head < N; head++) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "head";
    button.setAttribute("role", "gridcell");
    button.setAttribute("aria-label", `Layer ${numbered(layer)}, head ${head + 1}`);
    button.title = `layer ${numbered(layer)}, head ${head + 1}`;
    button.append(document.createElement("canvas"));
    button.onclick = () => chooseHead(layer, head, true);
    row.append(button);
    heads.push(button);
  }
  byId("heads").append(row);
}
byId("heads").onkeydown = (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const within = (value, count) => Math.min(count - 1, Math.max(0, value));
  chooseHead(within(chosen.layer + step[0], A), within(chosen.head + step[1], N), true);
};
function chooseHead(layer, head, focus) {
  Object.assign(chosen, { layer, head });
  heads.forEach((button, index) => {
    const selected = index === layer * N + head;
    button.setAttribute("aria-selected", selected);
    button.tabIndex = selected ? 0 : -1;
    if (selected && focus) button.focus();
  });
  drawMap(); shade();
}
function drawHeads() {
  const tint = color("--accent");
  heads.forEach((button, index) => paint(button.firstChild, Math.floor(index / N), index % N, tint));
}

// Residual stream
function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}
const WIDTH = 520, HEIGHT = 330, LEFT = 52, RIGHT = 12, TOP = 12, BOTTOM = 34;
const logs = data.stream_norms.flat().map((norm) => Math.log10(Math.max(norm, 1e-6)));
const low = Math.floor(Math.min(...logs)), high = Math.max(low + 1, Math.ceil(Math.max(...logs)));
const x = (layer) => LEFT + (WIDTH - LEFT - RIGHT) * layer / L;
const y = (norm) => TOP + (HEIGHT - TOP - BOTTOM) * (high - Math.log10(Math.max(norm, 1e-6))) / (high - low);
const line = (token) => data.stream_norms.map((row, layer) => `${x(layer).toFixed(1)},${y(row[token]).toFixed(1)}`).join(" ");
const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-labelledby": "stream-title" });
for (let power = low; power <= high; power++) {
  picture.append(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(10 ** power), y2: y(10 ** power) }));
  picture.append(svg("text", { x: LEFT - 8, y: y(10 ** power) + 4, "text-anchor": "end" }, String(10 ** power)));
}
const every = Math.max(1, Math.ceil(L / 8));
for (let layer = 0; layer <= L; layer += every)
  picture.append(svg("text", { x: x(layer), y: HEIGHT - 12, "text-anchor": "middle" }, String(layer)));
for (let token = 0; token < T; token++) picture.append(svg("polyline", { class: "other", points: line(token) }));
const strong = svg("polyline", { class: "chosen" });
picture.append(strong);
byId("stream").append(picture);
function drawStream() {
  strong.setAttribute("points", line(chosen.token));
  const values = data.stream_norms.map((row) => row[chosen.token]);
  const shown = (value) => value >= 100 ? value.toFixed(0) : value.toPrecision(3);
  byId("stream-values").textContent = `${named(chosen.token)}: embedding ${shown(values[0])}; layers `
    + values.slice(1).map(shown).join(", ") + ".";
}

// Theme
const dark = matchMedia("(prefers-color-scheme: dark)");
function theme(name) {
  document.documentElement.dataset.theme = name;
  drawHeads(); drawMap();
}
byId("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
dark.onchange = () => theme(dark.matches ? "dark" : "light");

document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
chooseHead(Math.floor(L / 2), 0, false);
chooseToken(chosen.token, false);
drawHeads();
