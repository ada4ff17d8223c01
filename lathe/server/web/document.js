"use strict";

// Building the document

const $ = (id) => document.getElementById(id);

function el(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value != null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function icon(name, className = "") {
  const [svg, use] = ["svg", "use"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", className);
  svg.append(use);
  return svg;
}

function iconButton(name, label, click, className = "") {
  const type = { type: "button", class: `icon ${className}`, "aria-label": label, title: label };
  return el("button", { ...type, click }, icon(name));
}

function wordButton(label, click, className = "quiet") {
  return el("button", { type: "button", class: className, click }, label);
}

function copyButton(label, read) {
  const node = iconButton("copy", label, async () => {
    await copy(read());
    node.replaceChildren(icon("done"));
    say("Copied.");
    setTimeout(() => node.replaceChildren(icon("copy")), 1500);
  });
  return node;
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Browsers keep the clipboard to https and localhost; a page that comes from another machine gets the old way.
  const area = el("textarea", { class: "sr" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/** Tell a screen reader. */
function say(text) {
  $("status").textContent = text;
}

// What the browser keeps

function recall(name, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(`lathe.${name}`)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(`lathe.${name}`, JSON.stringify(value));
  } catch {
    toast("The browser's storage is full: this conversation will be gone when the page is closed.");
  }
}
