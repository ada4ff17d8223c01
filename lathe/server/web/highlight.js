"use strict";

// Colours for code: comments, strings, numbers, keywords and what is called. No parser: a reader's aid.

const STRING = /"(?:\\[^]|[^"\\\n])*"?|'(?:\\[^]|[^'\\\n])*'?/.source;
const WORDS = {
  hash: "and as assert async await begin break case class continue def del do done elif else elsif end ensure esac except export False fi finally for from function global if import in is lambda local match module None nonlocal not or pass raise require rescue return self then True try unless until while with yield true false null nil",
  slash:
    "abstract any as async await bool boolean break byte case catch chan char class const constexpr continue debugger default defer delete do double else enum export extends extern false final finally float fn for fun func function go goto if impl implements import in int interface internal is let long loop map match mod module move mut namespace new nil null nullptr number object operator override package private protected pub public range readonly ref return self short signed sizeof static string struct super switch template this throw trait true try type typedef typeof typename undefined union unsafe unsigned use using val var virtual void volatile when where while with yield",
  dash: "add all alter and as asc begin between by case check constraint create cross default delete desc distinct do drop else elseif end exists false for foreign from full function group having if in index inner insert into is join key left like limit local nil not null offset on or order outer primary references repeat return right select set table then true union unique until update using values view when where while with",
  angle: "",
};
const COMMENTS = {
  hash: `(?<![\\w$&{])#[^\\n]*`,
  slash: `\\/\\/[^\\n]*|\\/\\*[^]*?(?:\\*\\/|$)`,
  dash: `--[^\\n]*`,
  angle: `<!--[^]*?(?:-->|$)`,
};
const FAMILIES = {
  hash: "python py python3 bash sh shell zsh console ruby rb yaml yml toml perl r make makefile dockerfile elixir julia ini cmake nix",
  slash:
    "javascript js jsx typescript ts tsx java c h cpp c++ cc hpp csharp cs go golang rust rs kotlin kt swift php scala dart json jsonc json5 css scss less zig glsl cuda proto protobuf groovy objectivec",
  dash: "sql postgresql mysql sqlite lua haskell hs ada elm",
  angle: "html xml svg vue svelte jsp",
};

function highlight(source, language) {
  const name = language.toLowerCase();
  const family = Object.keys(FAMILIES).find((key) => FAMILIES[key].split(" ").includes(name));
  if (name === "diff" || name === "patch") return source.split(/(?<=\n)/).map(drawDiffLine);
  if (!family || source.length > 50_000) return [source];
  const words = new Set(WORDS[family].split(" "));
  const strings = {
    hash: `"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)|${STRING}`,
    // A tick in Rust begins a lifetime as often as a character.
    slash: `\`(?:\\\\[^]|[^\`\\\\])*\`?|${/^(rs|rust)$/.test(name) ? /"(?:\\[^]|[^"\\])*"?|'(?:\\.|[^'\\\n])'/.source : STRING}`,
  };
  const number = "\\b(?:0[xXbBoO][\\da-fA-F_]+|\\d[\\d_]*(?:\\.\\d+)?(?:[eE][+-]?\\d+)?)[a-zA-Z]{0,3}\\b";
  const word = family === "angle" ? "</?[A-Za-z][\\w:-]*|/?>" : "[A-Za-z_$][\\w$]*";
  const tokens = new RegExp(
    `(${COMMENTS[family]})|(${strings[family] ?? STRING})|(${number})|(${word})`,
    "g",
  );
  const nodes = [];
  let done = 0;
  for (const token of source.matchAll(tokens)) {
    const kind = token[1] ? "c" : token[2] ? "s" : token[3] ? "n" : wordKind(token, family, words);
    if (!kind) continue;
    nodes.push(source.slice(done, token.index), el("span", { class: kind }, token[0]));
    done = token.index + token[0].length;
  }
  return [...nodes, source.slice(done)];
}

function wordKind(token, family, words) {
  if (family === "angle" || words.has(family === "dash" ? token[0].toLowerCase() : token[0])) return "k";
  return token.input[token.index + token[0].length] === "(" ? "f" : "";
}

function drawDiffLine(line) {
  const kind = { "+": "s", "-": "d", "@": "k" }[line[0]];
  return kind ? el("span", { class: kind }, line) : line;
}
