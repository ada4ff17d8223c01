"""From messages and tools to the prompt that a model was trained to read, by its own Jinja template.

Control tokens can't be forged: see `ChatTemplate.encode`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lathe.errors import TemplateError
from lathe.text.byte_level import SpecialToken
from lathe.text.conversation import (
    Supply,
    ToolDict,
    Traits,
    Turn,
    find_traits,
    fit,
    to_tool_dict,
    to_turn,
)
from lathe.text.supplied_text import Marks, strings_in
from lathe.text.tokenizer import Tokenizer
from lathe.text.tokenizer_json import read_json
from lathe.text.tool_calls import Dialect
from lathe.types import Message, Tool

BUILTIN = Path(__file__).with_name("qwen3_coder.jinja")


class ChatTemplate:
    """A chat template. Templates run in a sandbox that reaches no files and changes no data.

    `source` is Jinja, `tool_use` another template for conversations with tools where a checkpoint has one.
    Raises TemplateError when the source is no Jinja.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "", tool_use: str | None = None):
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._template = _compile(source)
        self._tool_use = None if tool_use is None else ChatTemplate(tool_use, **self._tokens)

    @classmethod
    def builtin(cls) -> ChatTemplate:
        """Qwen3-Coder's format, for checkpoints that come without a template."""
        return cls(BUILTIN.read_text(encoding="utf-8"))

    @classmethod
    def from_folder(cls, folder: Path | str, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template of a checkpoint in Hugging Face's layout, None when it has none."""
        sources = _read_sources(Path(folder))
        if "default" not in sources and "tool_use" not in sources:
            return None
        return cls(
            sources.get("default", sources.get("tool_use", "")),
            bos_token=tokenizer.bos_token,
            eos_token=tokenizer.eos_token,
            tool_use=sources.get("tool_use"),
        )

    def save(self, folder: Path | str) -> None:
        """Writes it as `from_folder` and transformers read it."""
        folder = Path(folder)
        (folder / "chat_template.jinja").write_text(self.source, encoding="utf-8")
        if self._tool_use is not None:
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            path = folder / "additional_chat_templates" / "tool_use.jinja"
            path.write_text(self._tool_use.source, encoding="utf-8")

    @property
    def dialect(self) -> Dialect:
        """The syntax of tool calls in this template's prompts. One that knows no tools gets Qwen3-Coder's, as
        text.
        """
        return self._for_tools()._traits.dialect or "qwen3_coder"

    @property
    def thinks(self) -> bool:
        """Does its model think before it answers (see `reasoning`)?"""
        return self._traits.thinks or (self._tool_use is not None and self._tool_use.thinks)

    def _for_tools(self) -> ChatTemplate:
        """The template for tools, unless Lathe could not read the calls that it would lead to."""
        return self._tool_use if self._tool_use and self._tool_use._traits.dialect else self

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> str:
        """The prompt as text, as transformers' apply_chat_template writes it.

        Conversations that the template would refuse or cut are fitted to it first (see `conversation.fit`).
        Control tokens in the messages look just like the template's own here: to get ids, call `encode`.
        Raises TemplateError when the template refuses the conversation.
        """
        template_kwargs["add_generation_prompt"] = add_generation_prompt
        return self._render(messages, tools, template_kwargs, _plain_data)

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> list[int]:
        """The prompt's ids. Only the template's own words give ids of special tokens.

        A control token's text inside of a message, a tool or a template argument is encoded as the ordinary
        text that it is there, and the template does not take it for structure either. Without such text the
        ids are those of transformers. Raises TemplateError as `render` does.
        """
        marked = Marked(self, tokenizer, messages, tools, **template_kwargs)
        return marked.encode(marked.render(len(messages), add_generation_prompt=add_generation_prompt))

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Any], supply: Supply
    ) -> str:
        if tools and (template := self._for_tools()) is not self:
            return template._render(messages, tools, options, supply)
        if not messages:
            raise TemplateError("A conversation needs at least one message.")
        turns, described, options = _given(messages, tools, options, supply)
        with _as_template_errors():
            turns, described = fit(turns, described, self._traits, describe_tools)
        return self._run(turns, described, options)

    def _run(self, turns: list[Turn], tools: list[ToolDict], options: Mapping[str, Any]) -> str:
        # transformers passes None, not an empty list, where there are no tools or documents.
        names = {"documents": None, **self._tokens, **options, "messages": turns, "tools": tools or None}
        with _as_template_errors():
            return self._template.render(names)

    @cached_property
    def _traits(self) -> Traits:
        def render(turns: list[Turn], tools: list[ToolDict], **options: Any) -> str | None:
            try:
                return self._run(turns, tools, {"add_generation_prompt": True, **options})
            except TemplateError:
                return None

        return find_traits(render)


class Marked:
    """Prompts to the beginnings of one conversation, as text in which all that was supplied is marked: what
    looks like a control token is the template's own. Their ids depend on no mark."""

    def __init__(
        self,
        template: ChatTemplate,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        **template_kwargs: Any,
    ):
        self._template, self.tokenizer = template, tokenizer
        self._messages, self._tools, self._options = messages, tools, template_kwargs
        used = strings_in(_given(messages, tools, template_kwargs, _plain_data))
        sources = (template.source, template._for_tools().source)
        self._marks = Marks(tokenizer.special_tokens, (*used, *sources))
        self.behind = self._marks.behind

    def render(self, num_messages: int, *, add_generation_prompt: bool) -> str:
        """The prompt to that many of the messages. Raises TemplateError as `ChatTemplate.render` does."""
        options = {**self._options, "add_generation_prompt": add_generation_prompt}
        messages = self._messages[:num_messages]
        return self._template._render(messages, self._tools, options, self._marks.supply)

    def encode(self, text: str) -> list[int]:
        """The ids of such a text, or of a part of one that ends where a control token does."""
        ids: list[int] = []
        for piece in self.tokenizer.split(text):
            if isinstance(piece, SpecialToken):
                ids.append(piece.id)
            else:
                ids += self.tokenizer.encode(self._marks.plain(piece))
        return ids


def _given(
    messages: Sequence[Message], tools: Sequence[Tool], options: Mapping[str, Any], supply: Supply
) -> tuple[list[Turn], list[ToolDict], dict[str, Any]]:
    """All that comes from outside, as dicts."""
    try:
        turns = [to_turn(message, supply) for message in messages]
        described = [to_tool_dict(tool, supply) for tool in tools]
        return turns, described, {name: supply(value) for name, value in options.items()}
    except RecursionError:
        raise TemplateError("The conversation holds JSON that is nested too deeply.") from None


def _plain_data(value: Any) -> Any:
    """A JSON value as the plain dicts and lists that templates can write as JSON."""
    if isinstance(value, Mapping):
        return {key: _plain_data(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain_data(item) for item in value]
    return value


@contextmanager
def _as_template_errors() -> Iterator[None]:
    try:
        yield
    except TemplateError:
        raise
    except jinja2.TemplateError as error:
        raise TemplateError(f"The chat template refuses this conversation: {error.message}") from error
    except Exception as error:  # templates are programs of others and may fail in any way
        raise TemplateError(f"The chat template fails on this conversation: {error}") from error


def describe_tools(tools: list[ToolDict]) -> str:
    """What the built-in template's system message says about tools, for templates that know none."""
    return _builtin_macros().describe_tools(tools)


@cache
def _builtin_macros() -> Any:
    return _compile(BUILTIN.read_text(encoding="utf-8")).make_module({"messages": []})


# The environment that Hugging Face's templates are written for


class Generation(Extension):
    """`{% generation %}` marks what the model wrote, for training. A prompt has its content as it stands."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja only looks into it

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


@lru_cache(maxsize=32)  # 20 ms for Qwen3-Coder's; a compiled template holds no state
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise TemplateError(f"The chat template is not valid Jinja{line}: {error.message}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's escapes for HTML. Characters that serve as marks stay readable under
    `ensure_ascii`.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub(r"[^\x00-\x7f\U00020000-\U0010ffff]", _escape, text) if ensure_ascii else text


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match.group())[1:-1]


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


# Where checkpoints keep it


def _read_sources(folder: Path) -> dict[str, str]:
    """The templates of a checkpoint by name: "default", and "tool_use" where there is one for tools."""
    sources = {}
    config = folder / "tokenizer_config.json"
    if config.exists():
        found = read_json(config).get("chat_template")
        if isinstance(found, str):
            sources["default"] = found
        elif isinstance(found, list):
            sources |= {entry["name"]: entry["template"] for entry in found}
    for name, file in (
        ("default", "chat_template.jinja"),
        ("tool_use", "additional_chat_templates/tool_use.jinja"),
    ):
        if (folder / file).exists():
            sources[name] = (folder / file).read_text(encoding="utf-8")
    return sources
