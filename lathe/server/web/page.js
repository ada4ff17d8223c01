"use strict";

// One conversation and the settings; all that is on the screen is drawn from them. A turn is
//   {role: "user", content} or
//   {role: "assistant", content, reasoning, calls: [{id, name, arguments, result?}], finish_reason, stats,
//    thought_s, stopped, error}
// Text enters the document as text and is never parsed as HTML. The page's Content-Security-Policy asks for
// Trusted Types and allows none, so that innerHTML would throw.

const turns = recall("turns", []);
const settings = recall("settings", {});
let running = null; // the AbortController of the reply that streams
let model = null;

// Composer

function isTouch() {
  return matchMedia("(pointer: coarse)").matches;
}

function isSend(event) {
  // A phone's keyboard has no Shift to hold with Enter; there the button sends.
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && !isTouch();
}

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}

function showButtons() {
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
  $("send").disabled = !$("draft").value.trim();
  if (hadFocus) $("draft").focus();
}

function submitDraft() {
  const text = $("draft").value;
  if (running || !text.trim()) return;
  $("draft").value = "";
  draftChanged();
  ask(text);
}

function draftChanged() {
  fit($("draft"));
  showButtons();
  keep("draft", $("draft").value);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submitDraft();
});
$("draft").addEventListener("input", draftChanged);
$("draft").addEventListener("keydown", (event) => {
  if (isSend(event)) {
    event.preventDefault();
    submitDraft();
  } else if (event.key === "ArrowUp" && !$("draft").value && !running) {
    event.preventDefault();
    [...document.querySelectorAll(".edit")].at(-1)?.click();
  }
});
$("stop").addEventListener("click", () => running?.abort());
for (const example of $("examples").children) {
  example.addEventListener("click", () => !running && ask(example.textContent));
}

$("scroller").addEventListener("scroll", () => ($("jump").hidden = isAtEnd()));
$("jump").addEventListener("click", scrollToEnd);

// Header and settings

let toastTimer = 0;

function toast(text, undo = null) {
  $("toast").firstElementChild.textContent = text;
  $("toast").lastElementChild.hidden = !undo;
  $("toast").lastElementChild.onclick = () => {
    $("toast").hidden = true;
    undo();
  };
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 8000);
}

$("clear").addEventListener("click", () => {
  running?.abort();
  const old = turns.splice(0);
  showAll();
  keep("turns", turns);
  $("draft").focus();
  if (!old.length) return;
  toast("The conversation was cleared.", () => {
    turns.unshift(...old);
    showAll();
    keep("turns", turns);
  });
});

$("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const now = document.documentElement.dataset.theme ?? system;
  const next = now === "dark" ? "light" : "dark";
  setTheme(next === system ? null : next); // back at the system's own, it follows the system again
});

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  keep("theme", theme);
}

function openSettings(open) {
  $("settings").hidden = !open;
  $("tune").setAttribute("aria-expanded", open);
  (open ? $("close") : $("tune")).focus();
}

const FIELDS = [
  "system",
  "temperature",
  "max_tokens",
  "top_p",
  "top_k",
  "seed",
  "answer_at_once",
  "deterministic",
  "tools",
];
const EXAMPLE_TOOL = {
  name: "get_weather",
  description: "The weather of a city, today.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};

function showSettings() {
  for (const id of FIELDS) {
    if ($(id).type === "checkbox") $(id).checked = Boolean(settings[id]);
    else $(id).value = settings[id] ?? "";
  }
  checkTools();
}

function checkTools() {
  let problem = "";
  try {
    readTools($("tools").value);
  } catch (error) {
    problem = error.message;
  }
  $("tools-problem").textContent = problem;
  $("tools").setAttribute("aria-invalid", problem !== "");
}

$("tune").addEventListener("click", () => openSettings($("settings").hidden));
$("close").addEventListener("click", () => openSettings(false));
$("options").addEventListener("submit", (event) => event.preventDefault());
$("options").addEventListener("input", ({ target }) => {
  settings[target.id] = target.type === "checkbox" ? target.checked : target.value;
  if (target.id === "tools") checkTools();
  keep("settings", settings);
});
$("options").addEventListener("reset", (event) => {
  event.preventDefault();
  for (const id of FIELDS) delete settings[id];
  keep("settings", settings);
  showSettings();
});
$("example-tool").addEventListener("click", () => {
  $("tools").value = settings.tools = JSON.stringify([EXAMPLE_TOOL], null, 2);
  keep("settings", settings);
  checkTools();
});

$("key-dialog").firstElementChild.addEventListener("submit", () => {
  sessionStorage.setItem("lathe.key", $("key").value.trim());
  meet(afterKey);
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("change-key").addEventListener("click", () => askForKey());

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("key-dialog").open) return;
  if (running) running.abort();
  else if (!$("settings").hidden) openSettings(false);
});

// Begin

setTheme(recall("theme", null));
for (const turn of turns) {
  // The page was closed while it was written.
  if (turn.role === "assistant" && !turn.finish_reason && !turn.error) turn.stopped = true;
}
$("draft").value = recall("draft", "");
draftChanged();
showSettings();
showAll();
meet();
