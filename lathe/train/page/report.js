// What a pointer is over: a step of the curves, or a token. All text goes in as text.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const LEFT = 46, RIGHT = 10, WIDTH = 420; // a chart's margins, as curves.py draws it
const [first, last] = data.steps;

function show(event, rows) {
  tip.replaceChildren(...rows.map(([name, value, color]) => {
    const row = document.createElement("div");
    if (color !== undefined) {
      const swatch = document.createElement("s");
      swatch.className = "c" + color % 8;
      row.append(swatch);
    }
    const bold = document.createElement("b");
    bold.textContent = value;
    row.append(name, bold);
    return row;
  }));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const right = event.clientX + 16, above = event.clientY - box.height - 14;
  tip.style.left = Math.max(6, right + box.width > innerWidth - 6 ? event.clientX - box.width - 16 : right) + "px";
  tip.style.top = (above < 6 ? event.clientY + 22 : above) + "px";
}

function hide() {
  tip.hidden = true;
  for (const cross of document.querySelectorAll(".cross.on")) cross.classList.remove("on");
}

function nearest(steps, step) { // the place in an ascending list
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return steps[high] - step < step - steps[low] ? high : low;
}

function overChart(event, svg) {
  const box = svg.getBoundingClientRect();
  const share = ((event.clientX - box.left) / box.width * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT);
  const step = first + Math.min(1, Math.max(0, share)) * (last - first);
  const lines = data.metrics[svg.closest("figure").dataset.metric];
  const found = lines.map(([steps, values], run) => {
    const place = nearest(steps, step);
    return { run, step: steps[place], value: values[place] };
  }).filter((each) => each.step !== undefined);
  if (!found.length) return hide();
  const at = found.reduce((a, b) => Math.abs(b.step - step) < Math.abs(a.step - step) ? b : a).step;
  const x = LEFT + (at - first) / (last - first) * (WIDTH - LEFT - RIGHT);
  for (const cross of document.querySelectorAll(".cross")) {
    cross.setAttribute("transform", `translate(${x} 0)`);
    cross.classList.add("on");
  }
  const rows = found.map((each) =>
    [data.runs[each.run] + (each.step === at ? "" : ` (step ${each.step})`), each.value, each.run]);
  show(event, [[`step ${at}`, ""], ...rows]);
}

function overToken(event, token) {
  const rows = [["token", token.dataset.id]];
  if (token.dataset.lp) {
    const sum = token.dataset.lp.split(" ").reduce((a, b) => a + Number(b), 0);
    rows.push(["log-probability", token.dataset.lp], ["probability", Math.exp(sum).toPrecision(2)]);
  } else rows.push(["read, not trained", ""]);
  show(event, rows);
}

function look(event) {
  const svg = event.target.closest?.("figure svg");
  const token = event.target.closest?.("[data-id]");
  if (svg) overChart(event, svg);
  else if (token) overToken(event, token);
  else hide();
}
addEventListener("pointermove", look);
addEventListener("pointerdown", look);
addEventListener("scroll", hide, { passive: true });
document.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide()); // a lifted finger leaves

for (const input of document.querySelectorAll("input[name=tint]")) {
  input.addEventListener("change", () => document.body.classList.toggle("by-surprise", input.value === "surprise"));
}
