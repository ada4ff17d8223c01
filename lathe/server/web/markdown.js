"use strict";

// Markdown, first its blocks

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)(?:\s[^`]*)?$/;
const HEADING = /^ {0,3}(#{1,6})[ \t](.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])[ \t]+/;
const DEEPEST = 8; // what is nested deeper stays as it was written

/** Draw a text that may have grown since the last call: blocks that are as they were are left alone. */
function drawMarkdown(box, text) {
  const blocks = splitBlocks(text);
  blocks.forEach((block, i) => {
    const source = block.kind + block.lines.join("\n");
    const old = box.children[i];
    if (old && old.source === source) return;
    const node = drawBlock(block, 0);
    node.source = source;
    if (old) old.replaceWith(node);
    else box.append(node);
  });
  while (box.children.length > blocks.length) box.lastChild.remove();
}

function splitBlocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const blocks = [];
  for (let i = 0; i < lines.length; i += blocks.at(-1).lines.length) blocks.push(readBlock(lines, i));
  return blocks.filter((block) => block.kind !== "blank");
}

function readBlock(lines, start) {
  const line = lines[start];
  const until = (ends) => {
    let i = start + 1;
    while (i < lines.length && !ends(i)) i += 1;
    return lines.slice(start, i);
  };
  if (!line.trim()) return { kind: "blank", lines: [line] };
  const fence = FENCE.exec(line);
  if (fence) {
    const close = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}[ \\t]*$`);
    return {
      kind: "code",
      close,
      language: fence[2],
      lines: until((i) => i - 1 > start && close.test(lines[i - 1])),
    };
  }
  if (HEADING.test(line)) return { kind: "heading", lines: [line] };
  if (RULE.test(line)) return { kind: "rule", lines: [line] };
  if (QUOTE.test(line)) return { kind: "quote", lines: until((i) => !QUOTE.test(lines[i])) };
  if (ITEM.test(line)) return { kind: "list", lines: until((i) => !listGoesOn(lines, start, i)) };
  if (isTable(lines, start))
    return { kind: "table", lines: until((i) => i > start + 1 && !lines[i].includes("|")) };
  return {
    kind: "paragraph",
    lines: until((i) => !lines[i].trim() || begins(lines[i]) || isTable(lines, i)),
  };
}

/** Whether a line is the first of another block, whatever comes before it. */
function begins(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((kind) => kind.test(line));
}

function listGoesOn(lines, start, i) {
  const belongs = (line) => {
    const item = ITEM.exec(line ?? "");
    const first = ITEM.exec(lines[start]);
    const isNested = item && item[1].length > first[1].length + 1;
    if (item && !isNested) return /\d/.test(item[2]) === /\d/.test(first[2]);
    return /^ {2,}\S/.test(line ?? "");
  };
  if (!lines[i].trim()) return belongs(lines[i + 1]);
  return belongs(lines[i]) || (lines[i - 1].trim() !== "" && !begins(lines[i]));
}

function isTable(lines, i) {
  if (!lines[i].includes("|") || !lines[i + 1]?.includes("-")) return false;
  const marks = cells(lines[i + 1]);
  return marks.length === cells(lines[i]).length && marks.every((mark) => /^:?-+:?$/.test(mark));
}

function cells(line) {
  const row = line.trim().replace(/^\|/, "");
  const found = row.replace(/(?<!\\)\|$/, "").split(/(?<!\\)\|/);
  return found.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function drawBlock({ kind, lines, close, language }, depth) {
  const text = lines.join("\n");
  if (depth > DEEPEST) return el("p", {}, text);
  switch (kind) {
    case "code": {
      const isClosed = lines.length > 1 && close.test(lines.at(-1));
      return drawCode(lines.slice(1, isClosed ? -1 : undefined).join("\n"), language);
    }
    case "heading": {
      const [, marks, words] = HEADING.exec(text);
      return el(`h${Math.min(marks.length + 1, 6)}`, {}, inline(words.trim())); // the page has its own h1
    }
    case "rule":
      return el("hr");
    case "quote":
      return el(
        "blockquote",
        {},
        ...drawBlocks(
          lines.map((line) => line.replace(QUOTE, "")),
          depth + 1,
        ),
      );
    case "list":
      return drawList(lines, depth);
    case "table":
      return drawTable(lines);
  }
  return el("p", {}, inline(text));
}

function drawBlocks(lines, depth) {
  return splitBlocks(lines.join("\n")).map((block) => drawBlock(block, depth));
}

function drawList(lines, depth) {
  const [, indent, mark] = ITEM.exec(lines[0]);
  const number = parseInt(mark, 10); // NaN for a list of dots
  const items = [];
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (found && found[1].length <= indent.length + 1) {
      const words = line
        .slice(found[0].length)
        .replace(/^\[([ xX])\] /, (_, done) => (done === " " ? "☐ " : "☑ "));
      items.push({ inset: new RegExp(`^ {0,${found[0].length}}`), lines: [words] });
    } else {
      items.at(-1).lines.push(line.replace(items.at(-1).inset, ""));
    }
  }
  const nodes = items.map((item) => el("li", {}, ...drawBlocks(item.lines, depth + 1)));
  return isNaN(number) ? el("ul", {}, ...nodes) : el("ol", { start: number }, ...nodes);
}

function drawTable(lines) {
  const [head, marks, ...rows] = lines.map(cells);
  const side = marks.map((mark) =>
    mark.endsWith(":") ? (mark.startsWith(":") ? "middle" : "end") : "start",
  );
  const row = (tag, texts) => {
    return el(
      "tr",
      {},
      ...head.map((_, i) => el(tag, { class: side[i] ?? "start" }, inline(texts[i] ?? ""))),
    );
  };
  const body = rows.map((texts) => row("td", texts));
  const table = el("table", {}, el("thead", {}, row("th", head)), el("tbody", {}, ...body));
  return el("div", { class: "table", tabindex: 0, role: "region", "aria-label": "Table" }, table);
}

function drawCode(source, language) {
  const caption = el(
    "figcaption",
    {},
    el("span", {}, language || "text"),
    copyButton("Copy this code", () => source),
  );
  const pre = el(
    "pre",
    { tabindex: 0, role: "region", "aria-label": "Code" },
    el("code", {}, ...highlight(source, language)),
  );
  return el("figure", { class: "code" }, caption, pre);
}

// Markdown, what stands in a line

const MARK = /\\[\\`*_{}[\]()#+\-.!|~<>]|`+|\*{1,3}|_{1,3}|~~|!?\[|<?https?:\/\/|\n/g;
const LINK =
  /!?\[((?:[^[\]\\]|\\.|\[[^[\]]{0,200}\]){0,500})\]\(\s*<?([^\s()<>]{0,2000}(?:\([^\s()<>]{0,500}\)[^\s()<>]{0,500}){0,9})>?(?:\s+(?:"[^"]{0,200}"|'[^']{0,200}'))?\s*\)/y;
const ADDRESS = /(<?)(https?:\/\/[^\s<>"`]{1,2000})(>?)/y;
const EMPHASIS = { "*": "em", _: "em", "**": "strong", __: "strong", "***": "em", ___: "em", "~~": "s" };

function inline(text, depth = 0, linked = false) {
  const box = document.createDocumentFragment();
  const marks = new RegExp(MARK); // a copy, for this function calls itself and the position is the expression's
  const unclosed = new Set(); // what nothing closes from here on is looked for once, not at every mark
  let done = 0;
  for (let found; depth <= DEEPEST && (found = marks.exec(text));) {
    const piece = readMark(text, found[0], found.index, { unclosed, depth, linked });
    if (!piece) continue;
    box.append(text.slice(done, found.index), piece.node);
    done = marks.lastIndex = piece.end;
  }
  box.append(text.slice(done));
  return box;
}

/** What begins at a mark, as a node and the position behind it; null where the mark is only itself. */
function readMark(text, mark, at, { unclosed, depth, linked }) {
  const after = at + mark.length;
  if (mark === "\n") return { node: el("br"), end: after };
  if (mark[0] === "\\") return { node: mark[1], end: after };
  if (mark.endsWith("[")) return linked ? null : readLink(text, at, depth);
  if (mark.endsWith("//")) return linked ? null : readAddress(text, at);
  if (unclosed.has(mark)) return null;
  const isCode = mark[0] === "`";
  if (!isCode && !opens(text, mark, at)) return null;
  const close = closing(mark);
  close.lastIndex = after;
  const end = close.exec(text)?.index;
  if (end === undefined) {
    unclosed.add(mark);
    return null;
  }
  const inside = text.slice(after, end);
  const next = end + mark.length;
  if (isCode) return { node: el("code", {}, inside.trim() || inside), end: next };
  const node = el(EMPHASIS[mark], {}, inline(inside, depth + 1, linked));
  return { node: mark.length === 3 ? el("strong", {}, node) : node, end: next };
}

function opens(text, mark, at) {
  const inWord = mark[0] === "_" && /\w/.test(text[at - 1] ?? ""); // snake_case_names
  return !inWord && /\S/.test(text[at + mark.length] ?? "");
}

function closing(mark) {
  const literal = mark.replaceAll("*", "\\*");
  const char = literal.slice(0, literal.length / mark.length);
  if (mark[0] === "`") return new RegExp(`(?<!\`)${literal}(?!\`)`, "g");
  const before = mark.length === 1 ? `(?<![\\s${char}])` : "(?<!\\s)";
  return new RegExp(`${before}${literal}(?!${char}${mark[0] === "_" ? "|\\w" : ""})`, "g");
}

/** A link; an image as well, for nothing is fetched from elsewhere. */
function readLink(text, at, depth) {
  LINK.lastIndex = at;
  const found = LINK.exec(text);
  if (!found || !/^(https?:\/\/|mailto:)/i.test(found[2])) return null;
  return { node: link(found[2], inline(found[1] || found[2], depth + 1, true)), end: at + found[0].length };
}

function readAddress(text, at) {
  ADDRESS.lastIndex = at;
  const [whole, open, address, close] = ADDRESS.exec(text) ?? [];
  if (!whole) return null;
  if (open) return close ? { node: link(address, address), end: at + whole.length } : null;
  const trimmed = address.replace(/[.,;:!?'*_~]+$/, "").replace(/^([^(]*)\)+$/, "$1");
  return { node: link(trimmed, trimmed), end: at + trimmed.length };
}

function link(href, children) {
  return el("a", { href, target: "_blank", rel: "noopener noreferrer" }, children);
}
