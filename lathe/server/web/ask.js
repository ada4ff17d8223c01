"use strict";

// Asking

function ask(content) {
  const turn = { role: "user", content };
  turns.push(turn);
  show(turn);
  scrollToEnd();
  return reply();
}

/** Send the results that were written for the calls of a turn. */
function answer(event, turn) {
  event.preventDefault();
  if (running) return;
  const areas = event.target.querySelectorAll("textarea");
  turn.calls.forEach((call, i) => (call.result ??= areas[i].value));
  reply();
}

function regenerate() {
  if (running || turns.at(-1)?.role !== "assistant") return;
  turns.pop();
  $("log").lastChild.remove();
  reply();
}

/** Let the model write the next turn. */
async function reply() {
  const turn = { role: "assistant", content: "", reasoning: "", calls: [] };
  const before = $("log").lastChild;
  turns.push(turn);
  running = new AbortController();
  document.body.classList.add("busy");
  showButtons();
  const node = show(turn);
  before?.update?.(); // it is not the last any more
  scrollToEnd();
  say("The model is writing.");
  if (!isTouch()) $("draft").focus(); // what was pressed is gone, and a phone's keyboard would cover the reply

  let frame = 0;
  const draw = () => following(node.update);
  const changed = () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      draw();
    });
  };
  const started = performance.now();
  const clock = setInterval(() => {
    turn.waited_s = Math.round((performance.now() - started) / 1000);
    keep("turns", turns);
    changed();
  }, 1000);
  let refused = false;
  try {
    await stream(turn, running.signal, changed);
    say("The reply is complete.");
  } catch (error) {
    if (error.name === "AbortError") {
      turn.stopped = true;
      say("Stopped.");
    } else {
      turn.error = error.message;
      refused = error.status === 401;
    }
  }
  clearInterval(clock);
  cancelAnimationFrame(frame);
  delete turn.waited_s;
  running = null;
  document.body.classList.remove("busy");
  draw();
  keep("turns", turns);
  showButtons();
  if (!$("draft").value) node.querySelector(".answer:not([hidden]) textarea")?.focus();
  if (refused) askForKey(regenerate);
}

/** Fill the turn from the server's events. Throws what a person should read. */
async function stream(turn, signal, changed) {
  const started = performance.now();
  const response = await request("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify(body()),
    signal,
  });
  const stats = { first_s: 0 };
  let [firstAt, lastAt, numPieces] = [0, 0, 0];
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    if (choice && take(turn, choice.delta ?? {})) {
      lastAt = performance.now();
      if (!numPieces) firstAt = lastAt;
      numPieces += 1;
      stats.first_s = (firstAt - started) / 1000;
      turn.stats = stats;
      if (turn.reasoning && turn.thought_s === undefined && (turn.content || turn.calls.length)) {
        turn.thought_s = (lastAt - firstAt) / 1000;
      }
    }
    if (choice?.finish_reason) turn.finish_reason = choice.finish_reason;
    if (chunk.usage) {
      stats.num_tokens = chunk.usage.completion_tokens;
      stats.num_prompt_tokens = chunk.usage.prompt_tokens;
      stats.num_cached_tokens = chunk.usage.prompt_tokens_details?.cached_tokens ?? 0;
      turn.stats = stats;
    }
    const numTokens = stats.num_tokens ?? numPieces;
    if (numTokens > 1 && lastAt > firstAt) stats.tokens_per_s = ((numTokens - 1) * 1000) / (lastAt - firstAt);
    changed();
  }
}

/** Add a delta to the turn. Whether it held anything. */
function take(turn, delta) {
  const thought = delta.reasoning_content ?? delta.reasoning ?? "";
  turn.content += delta.content ?? "";
  turn.reasoning += thought;
  for (const piece of delta.tool_calls ?? []) {
    const call = (turn.calls[piece.index] ??= { id: "", name: "", arguments: "" });
    call.id ||= piece.id;
    call.name ||= piece.function?.name;
    call.arguments += piece.function?.arguments ?? "";
  }
  return Boolean(delta.content || thought || delta.tool_calls?.length);
}

/** The data of server-sent events. Throws when they end: what is last says so before. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Error("The connection closed before the reply was complete.");
    const lines = (held + value).split(/\r?\n/);
    held = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

async function request(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  // A header holds bytes, and the server reads a key as UTF-8.
  const key = String.fromCharCode(...new TextEncoder().encode(sessionStorage.getItem("lathe.key") ?? ""));
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server can't be reached. Is it still running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  const error = new Error(
    said?.error?.message ?? `The server answered ${response.status} ${response.statusText}.`,
  );
  throw Object.assign(error, { status: response.status });
}

function body() {
  const number = (id) => (settings[id] ? Number(settings[id]) : undefined);
  const system = settings.system?.trim() ? [{ role: "system", content: settings.system }] : [];
  return {
    model,
    messages: [...system, ...turns.slice(0, -1).flatMap(toMessages)],
    stream: true,
    stream_options: { include_usage: true },
    tools: readTools(settings.tools ?? ""),
    temperature: number("temperature"),
    top_p: number("top_p"),
    top_k: number("top_k"),
    max_tokens: number("max_tokens"),
    seed: number("seed"),
    enable_thinking: settings.answer_at_once ? false : undefined,
    deterministic: settings.deterministic || undefined,
  };
}

/** A turn as the API takes it: none for a reply that never came, and no call that was cut. */
function toMessages(turn) {
  if (turn.role === "user") return [{ role: "user", content: turn.content }];
  const calls = turn.finish_reason === "tool_calls" ? turn.calls : [];
  if (!turn.content && !calls.length) return [];
  const message = { role: "assistant", content: turn.content };
  if (turn.reasoning) message.reasoning_content = turn.reasoning;
  if (calls.length) {
    message.tool_calls = calls.map(({ id, name, arguments: given }) => {
      return { id, type: "function", function: { name, arguments: given } };
    });
  }
  const results = calls.filter((call) => call.result !== undefined);
  return [message, ...results.map((call) => ({ role: "tool", tool_call_id: call.id, content: call.result }))];
}

/** The tools of a text, undefined for none. Bare functions are taken as well. Throws what is wrong with it. */
function readTools(text) {
  if (!text.trim()) return undefined;
  let given;
  try {
    given = JSON.parse(text);
  } catch (error) {
    throw new Error(`The tools are no valid JSON: ${error.message}.`);
  }
  const tools = [given].flat().map((tool, i) => {
    if (tool?.function?.name) return tool;
    if (tool?.name) return { type: "function", function: tool };
    throw new Error(`The tools: number ${i + 1} has no name.`);
  });
  return tools.length ? tools : undefined;
}

// The API key, if the server wants one. Not in localStorage: it should not outlive the tab.

let afterKey = null;

function askForKey(then = null) {
  afterKey = then;
  $("key-problem").textContent = sessionStorage.getItem("lathe.key")
    ? "The server did not accept this key."
    : "";
  $("key").value = "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

/** Learn the model's name, and whether the server answers; then go on. */
async function meet(then = null) {
  try {
    const [found] = (await (await request("v1/models")).json()).data;
    model = found.id;
    $("model").replaceChildren(
      el("b", {}, model),
      el("span", {}, ` with ${count(found.max_model_len)} tokens of context`),
    );
    document.title = `${model} · Lathe`;
    then?.();
  } catch (error) {
    if (error.status === 401) askForKey(then);
    else $("model").textContent = error.message;
  }
}
