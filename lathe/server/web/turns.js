"use strict";

// Turns on the screen

function show(turn) {
  const node = turn.role === "user" ? drawQuestion(turn) : drawReply(turn);
  $("log").append(node);
  $("empty").hidden = true;
  return node;
}

function showAll() {
  $("log").replaceChildren();
  $("empty").hidden = turns.length > 0;
  turns.forEach(show);
  scrollToEnd();
}

function drawQuestion(turn) {
  const bubble = el("div", { class: "bubble", dir: "auto" }, turn.content);
  const edit = iconButton("edit", "Edit", () => editQuestion(turn, node), "edit");
  const actions = el(
    "div",
    { class: "actions" },
    copyButton("Copy", () => turn.content),
    edit,
  );
  const node = el("article", { class: "turn user", "aria-label": "You" }, bubble, actions);
  return node;
}

function editQuestion(turn, node) {
  const area = el("textarea", { class: "input", "aria-label": "Edit your message", dir: "auto" });
  const cancel = () => {
    node.replaceWith(drawQuestion(turn));
    $("draft").focus();
  };
  const submit = (event) => {
    event.preventDefault();
    if (!area.value.trim() || running) return;
    turns.splice(turns.indexOf(turn));
    showAll();
    ask(area.value);
  };
  const keydown = (event) => {
    if (event.key === "Escape") cancel();
    else if (isSend(event)) submit(event);
    event.stopPropagation();
  };
  const buttons = [wordButton("Cancel", cancel), el("button", { class: "primary" }, "Send")];
  const form = el(
    "form",
    { class: "edited", submit, keydown },
    area,
    el("div", { class: "row" }, ...buttons),
  );
  node.replaceChildren(form);
  node.classList.add("editing");
  area.value = turn.content;
  area.focus();
  fit(area);
  area.addEventListener("input", () => fit(area));
}

/** A reply's element; its `update` draws the turn as it is by then. */
function drawReply(turn) {
  const thoughts = el("div", { class: "thoughts", dir: "auto" });
  const summary = el("span");
  const reasoning = el(
    "details",
    { class: "reasoning" },
    el("summary", {}, summary, icon("chevron", "chevron")),
    thoughts,
  );
  const waiting = el("p", { class: "waiting" });
  const prose = el("div", { class: "prose", dir: "auto" });
  const keydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) calls.requestSubmit();
  };
  const calls = el("form", { class: "calls", keydown, submit: (event) => answer(event, turn) });
  const notes = el("div", { class: "notes" });
  const foot = el("div", { class: "foot" });
  const node = el(
    "article",
    { class: "turn assistant", "aria-label": "Reply" },
    reasoning,
    waiting,
    prose,
    calls,
    notes,
    foot,
  );

  node.update = () => {
    const isLive = running !== null && turns.at(-1) === turn;
    const isEmpty = !turn.content && !turn.reasoning && !turn.calls.length;
    node.classList.toggle("live", isLive);
    node.setAttribute("aria-busy", isLive);
    waiting.hidden = !(isLive && isEmpty);
    waiting.textContent = `Reading the prompt${turn.waited_s > 1 ? `, ${turn.waited_s} s` : ""}`;
    reasoning.hidden = !turn.reasoning;
    reasoning.classList.toggle("thinking", isLive && turn.thought_s === undefined);
    summary.textContent =
      isLive && turn.thought_s === undefined ? "Thinking" : `Thought for ${seconds(turn.thought_s ?? 0)}`;
    thoughts.textContent = turn.reasoning.trim();
    drawMarkdown(prose, turn.content);
    drawCalls(calls, turn, isLive);
    notes.replaceChildren(...drawNotes(turn, isLive));
    foot.replaceChildren(...drawFoot(turn, isLive));
  };
  node.update();
  return node;
}

function drawCalls(form, turn, isLive) {
  turn.calls.forEach((call, i) => {
    const card = form.children[i] ?? form.appendChild(newCard());
    card.update(call, callState(turn, call, isLive));
  });
  const isAsked = turn.calls.some((call) => callState(turn, call, isLive) === "waits for its result");
  const last = form.querySelector(".continue");
  if (isAsked && !last)
    form.append(el("div", { class: "row continue" }, el("button", { class: "primary" }, "Send the results")));
  if (!isAsked) last?.remove();
}

function callState(turn, call, isLive) {
  if (call.result !== undefined) return "answered";
  if (isLive) return "being written";
  if (turn.finish_reason !== "tool_calls") return "cut off";
  return turns.at(-1) === turn ? "waits for its result" : "not answered";
}

function newCard() {
  const [name, preview, badge] = ["name", "preview", "badge"].map((kind) => el("span", { class: kind }));
  const summary = el("summary", {}, icon("tool"), name, preview, badge, icon("chevron", "chevron"));
  const given = el("pre", { tabindex: 0, role: "region", "aria-label": "Arguments" });
  const inside = el("div", { class: "inside" }, el("h3", {}, "Arguments"), given);
  const result = el("textarea", { class: "input mono", rows: 2, spellcheck: "false" });
  const label = el("label", {}, "Result", result);
  const card = el(
    "div",
    { class: "call" },
    el("details", {}, summary, inside),
    el("div", { class: "answer" }, label),
  );
  card.update = (call, state) => {
    name.textContent = call.name;
    preview.textContent = call.arguments;
    badge.textContent = state;
    badge.classList.toggle("done", state !== "waits for its result");
    given.replaceChildren(...highlight(pretty(call.arguments), "json"));
    label.firstChild.textContent = `Result of ${call.name}`;
    label.parentNode.hidden = state !== "waits for its result";
    if (state === "answered" && inside.children.length < 4) {
      const answered = el("pre", { tabindex: 0, role: "region", "aria-label": "Result" }, call.result);
      inside.append(el("h3", {}, "Result"), answered);
    }
  };
  return card;
}

function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // it is still being written
  }
}

function drawNotes(turn, isLive) {
  if (isLive) return [];
  const again = wordButton("Try again", regenerate, "quiet again");
  if (turn.error)
    return [el("div", { class: "note error", role: "alert" }, icon("alert"), el("p", {}, turn.error), again)];
  const why = {
    length: "The reply was cut: it reached the limit of tokens.",
    abort: "The server stopped before the reply was complete.",
  };
  const text = why[turn.finish_reason];
  return text ? [el("div", { class: "note" }, icon("alert"), el("p", {}, text))] : [];
}

function drawFoot(turn, isLive) {
  const facts = turn.stats ? describe(turn.stats) : [];
  const spans = (turn.stopped ? ["stopped", ...facts] : facts).map((fact) => el("span", {}, fact));
  if (isLive) return spans;
  const actions = turn.error ? [] : [iconButton("again", "Ask again", regenerate, "again")];
  if (turn.content) actions.unshift(copyButton("Copy the reply", () => turn.content));
  return [...spans, el("div", { class: "actions" }, ...actions)];
}

function describe(stats) {
  const facts = [];
  const about = stats.num_tokens === undefined ? "≈ " : ""; // pieces of text stand for tokens until the count comes
  if (stats.tokens_per_s)
    facts.push(`${about}${stats.tokens_per_s.toFixed(stats.tokens_per_s < 100 ? 1 : 0)} tok/s`);
  facts.push(`first token after ${seconds(stats.first_s)}`);
  if (stats.num_tokens !== undefined) {
    facts.push(`${count(stats.num_tokens)} tokens`);
    facts.push(`prompt ${count(stats.num_prompt_tokens)}, ${count(stats.num_cached_tokens)} cached`);
  }
  return facts;
}

function seconds(s) {
  return s < 1 ? `${Math.round(s * 1000)} ms` : `${s < 100 ? s.toPrecision(2) : Math.round(s)} s`;
}

function count(number) {
  return number.toLocaleString("en");
}

// Scrolling: what is new is followed as long as the reader is at the end

function isAtEnd() {
  const { scrollHeight, scrollTop, clientHeight } = $("scroller");
  return scrollHeight - scrollTop - clientHeight < 60;
}

function scrollToEnd() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
}

function following(act) {
  const follow = isAtEnd();
  act();
  if (follow) scrollToEnd();
}
