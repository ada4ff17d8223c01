"""Recipes: a TOML file and `key=value` overrides become a tree of frozen dataclasses, and TOML again.

A table is a dataclass, a key one of its fields, and the field's annotation says what may stand there: int,
float (a whole number will do), bool, str, Path, Literal, tuple[X, ...], dict[str, X], X | None, or another
dataclass. What isn't understood is refused, with the file, the line and a likely meaning. TOML has no null:
in a field `X | None` the text "none" stands for it.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lathe.errors import ConfigError

Recipe = TypeVar("Recipe")
Place = tuple[str, ...]  # of a setting in its tree: ("train", "lr")


def load_recipe(cls: type[Recipe], path: Path | str, sets: Sequence[str] = ()) -> Recipe:
    """The recipe of a file, with `sets` such as "train.lr=3e-4" laid over it, the last one on top.

    A set's value is read as TOML; a bare word is text. A relative Path in the file, or in a default, counts
    from the file's folder, one in a set from the current folder. Raises ConfigError, which names the setting.
    """
    path = Path(path)
    source = _Source(path, _read(path))
    tree = source.tree
    for text in sets:
        place, value = _parse_set(text)
        _lay_over(tree, place, value, text)
        source.sets[place] = text
    return _anchored(_Reader(cls, source).table(cls, tree, (), None), path.parent)


def dump(recipe: Any) -> str:
    """The whole recipe as TOML, defaults written out. `load_recipe` reads an equal one from it, wherever the
    file stands, if its Paths are absolute; those of `load_recipe` are."""
    return "\n".join(_table_lines(recipe, ())).lstrip("\n") + "\n"


# Where a setting comes from


class _Source:
    """A recipe's text, its tree, and what was laid over it."""

    def __init__(self, path: Path, text: str):
        self.path = path
        self.text = text
        self.sets: dict[Place, str] = {}
        try:
            self.tree = tomllib.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path} is no TOML: {error}") from None

    def set_of(self, place: Place) -> str | None:
        """The last override that gave this place, or a table around it."""
        found = None
        for given, text in self.sets.items():
            if place[: len(given)] == given:
                found = text
        return found

    def where(self, place: Place) -> str:
        """Where a setting was given, in words."""
        if (text := self.set_of(place)) is not None:
            return f"--set {text}"
        line = self._line(place)
        return str(self.path) if line is None else f"{self.path}, line {line}"

    def _line(self, place: Place) -> int | None:
        """The line that a setting begins in. tomllib doesn't say: it is the first one behind the longest
        beginning of the file that is TOML and lacks the setting."""
        lines = self.text.splitlines(keepends=True)
        begins = 0
        for number in range(1, len(lines) + 1):
            try:
                tree: Any = tomllib.loads("".join(lines[:number]))
            except ValueError:
                continue
            if _holds(tree, place):
                return begins + 1
            begins = number
        return None


def _holds(tree: Any, place: Place) -> bool:
    for name in place:
        if isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        elif isinstance(tree, dict) and name in tree:
            tree = tree[name]
        else:
            return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: name a recipe, a file in TOML.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: name a recipe, a file in TOML.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from None


def _parse_set(text: str) -> tuple[Place, Any]:
    """The place and value of "train.lr=3e-4"."""
    key, equals, value = text.partition("=")
    try:
        text.encode()
        parsed: Any = tomllib.loads(f"{key.strip()} = 0")
    except ValueError:
        parsed = {}
    place: list[str] = []
    while isinstance(parsed, dict) and len(parsed) == 1:
        ((name, parsed),) = parsed.items()
        place.append(name)
    if not equals or not place or parsed != 0:
        raise ConfigError(f"--set {text}: write it as KEY=VALUE, as in train.lr=3e-4.")
    value = value.strip()
    try:
        document = tomllib.loads(f"value = {value}")
    except ValueError:
        if value[:1] in ("[", "{", '"', "'"):
            raise ConfigError(f"--set {text}: the value is no TOML; is a bracket or a quote open?") from None
        return tuple(place), value
    return tuple(place), document["value"] if len(document) == 1 else value


def _lay_over(tree: dict[str, Any], place: Place, value: Any, text: str) -> None:
    for depth, name in enumerate(place[:-1], 1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(
                f"--set {text}: {_dotted(place[:depth])} is one value, not a table of settings."
            )
    tree[place[-1]] = value


def _dotted(place: Place) -> str:
    return ".".join(name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _quoted(name) for name in place)


# From plain data to dataclasses


class _Misfit(Exception):
    """A value is not of the kind that is wanted."""


@dataclass(frozen=True)
class _Reader:
    """Makes a recipe of what a source gives."""

    recipe: type
    source: _Source

    def table(self, kind: Any, given: Any, place: Place, base: Any) -> Any:
        """A dataclass from its table. What the table leaves out stands as in `base`, the parent's default."""
        self._expect(isinstance(given, dict), place, given, f"a table of settings ([{_dotted(place)}])")
        hints = get_type_hints(kind)
        known = {each.name: each for each in fields(kind) if each.init}
        for name in given:
            if name not in known:
                raise self._unknown((*place, name), known)
        values = {}
        for name, each in known.items():
            inside = (*place, name)
            default = _default(each) if base is None else getattr(base, name)
            if name in given:
                values[name] = self.value(hints[name], given[name], inside, default)
            elif default is not MISSING:
                values[name] = default
            elif is_dataclass(hints[name]):  # what it lacks says so itself, or it lacks nothing
                values[name] = self.table(hints[name], {}, inside, None)
            else:
                raise self._missing(inside, hints[name])
        try:
            return kind(**values)
        except (ValueError, ConfigError) as error:  # what the settings' own class refuses
            about = f"{_dotted(place)}: " if place else ""
            raise ConfigError(f"{about}{error} ({self.source.where(place)})") from error

    def value(self, kind: Any, given: Any, place: Place, default: Any = MISSING) -> Any:
        """A setting of that kind. Raises ConfigError, which says what would have been."""
        origin, inner = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            return self._one_of(inner, given, place, default)
        if is_dataclass(kind):
            return self.table(kind, given, place, default if isinstance(default, kind) else None)  # type: ignore[arg-type]
        if origin is tuple:
            self._expect(isinstance(given, list), place, given, "a list")
            kinds = inner[:1] * len(given) if inner[1:] == (...,) else inner
            self._expect(len(given) == len(kinds), place, given, f"a list of {len(kinds)}")
            return tuple(self.value(kinds[n], item, (*place, str(n))) for n, item in enumerate(given))
        if origin in (dict, Mapping):
            self._expect(isinstance(given, dict), place, given, f"a table ([{_dotted(place)}])")
            return {name: self.value(inner[1], item, (*place, name)) for name, item in given.items()}
        try:
            value = _scalar(kind, given)
        except _Misfit as misfit:
            raise self._wrong(place, given, str(misfit)) from None
        if isinstance(value, Path) and self.source.set_of(place) is not None:
            return _absolute(value)  # whoever types it stands in the current folder
        return value

    def _one_of(self, kinds: tuple[Any, ...], given: Any, place: Place, default: Any) -> Any:
        if NoneType in kinds and given == "none":
            return None
        others = [kind for kind in kinds if kind is not NoneType]
        for kind in others[:-1]:
            try:
                return self.value(kind, given, place, default)
            except ConfigError:
                continue
        return self.value(others[-1], given, place, default)

    def _expect(self, is_so: bool, place: Place, given: Any, wanted: str) -> None:
        if not is_so:
            raise self._wrong(place, given, wanted)

    def _wrong(self, place: Place, given: Any, wanted: str) -> ConfigError:
        said = f"{_inline(given):.80}"
        return ConfigError(
            f"{_dotted(place)} is {said}, but {wanted} is wanted ({self.source.where(place)})."
        )

    def _missing(self, place: Place, kind: Any) -> ConfigError:
        hint = f"--set {_dotted(place)}=…"
        return ConfigError(f"{_dotted(place)} is missing ({self.source.path}). Add it there, or with {hint}")

    def _unknown(self, place: Place, known: Mapping[str, Any]) -> ConfigError:
        message = f"{_dotted(place)} is not a setting ({self.source.where(place)})."
        everywhere = [*_places(self.recipe, ())]
        near = [(*place[:-1], name) for name in get_close_matches(place[-1], known, 1)]
        near += [other for other in everywhere if other[-1] == place[-1]]  # right name, wrong table
        names = {_dotted(other): other for other in everywhere}
        near += [names[name] for name in get_close_matches(_dotted(place), names, 1, 0.8)]
        if near:
            return ConfigError(f"{message} Did you mean {_dotted(near[0])}?")
        table = f"[{_dotted(place[:-1])}]" if place[:-1] else "The recipe"
        return ConfigError(f"{message} {table} has {', '.join(known) or 'no settings'}.")


def _scalar(kind: Any, given: Any) -> Any:
    """A single value. Raises _Misfit, which says what is wanted."""
    if kind is Any:
        return given
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        if not any(given == choice and type(given) is type(choice) for choice in choices):
            raise _Misfit(f"one of {', '.join(map(_inline, choices))}")
        return given
    if kind is float and type(given) in (int, float):
        try:
            return float(given)
        except OverflowError:
            raise _Misfit("a smaller number") from None
    if kind is Path and type(given) is str:
        return Path(given)
    if kind not in NAMES:
        raise TypeError(f"a recipe has no settings of the type {kind}")
    if type(given) is not kind:  # not isinstance: true is no number
        raise _Misfit(NAMES[kind])
    return given


NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    Path: "a path in quotes",
}


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _places(kind: Any, place: Place) -> Iterator[Place]:
    """Every setting that a recipe can have, tables too."""
    hints = get_type_hints(kind)
    for each in fields(kind):
        inside = (*place, each.name)
        yield inside
        for inner in (hints[each.name], *get_args(hints[each.name])):
            if is_dataclass(inner):
                yield from _places(inner, inside)


def _anchored(value: Any, folder: Path) -> Any:
    """The same with its relative paths made absolute, counted from the folder."""
    if isinstance(value, Path):
        return _absolute(folder / value.expanduser())
    if isinstance(value, tuple):
        return tuple(_anchored(item, folder) for item in value)
    if isinstance(value, dict):
        return {name: _anchored(item, folder) for name, item in value.items()}
    if not is_dataclass(value):
        return value
    old = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
    new = {name: _anchored(item, folder) for name, item in old.items()}
    return value if new == old else replace(value, **new)  # type: ignore[type-var]


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100, resolve() would follow links


# And back


def _table_lines(value: Any, place: Place) -> Iterator[str]:
    items = _items(value)
    tables = {name for name, item in items.items() if is_dataclass(item) or isinstance(item, Mapping)}
    if place:
        yield f"\n[{_dotted(place)}]"
    for name, item in items.items():
        if name not in tables:
            yield f"{_dotted((name,))} = {_inline(item)}"
    for name, item in items.items():
        if name in tables:
            yield from _table_lines(item, (*place, name))


def _items(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    return {each.name: getattr(value, each.name) for each in fields(value) if each.init}


def _inline(value: Any) -> str:
    """One value in TOML, on one line."""
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return _quoted(str(value))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_inline, value))}]"
    if is_dataclass(value) or isinstance(value, Mapping):
        pairs = [f"{_dotted((name,))} = {_inline(item)}" for name, item in _items(value).items()]
        return f"{{{', '.join(pairs)}}}"
    return str(value)  # a number; inf and nan are TOML's words, too


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
