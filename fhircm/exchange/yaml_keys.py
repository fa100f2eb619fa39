"""Read a YAML file key by key: every key is asked for by somebody, and each mistake names file, key and remedy.

One file may lie over another: what it does not say, the one below says, and a mistake names the file that it stands in.

https://yaml.org/spec/1.1/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

Wanted = TypeVar("Wanted")
_FILLED = re.compile(r".*\S.*")


class YamlWrong(Exception):
    """A file cannot be used; the message names the file, the key and how to mend it."""


def load(path: Path) -> Keys:
    """The keys of a file. Raises YamlWrong for one that is missing, no YAML, or no mapping."""
    try:
        return Keys(path, "", yaml.load(path.read_bytes(), Loader=_Loader))  # noqa: S506 a SafeLoader, only stricter
    except OSError as error:
        raise YamlWrong(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlWrong(f"{path} is not YAML: {' '.join(str(error).split())}") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the one in C, where there is one
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


class Keys:
    """A mapping of the file: each key is taken once, and what nobody took is a mistake.

    `under` holds the same mapping of the file below: a key that is not here is taken there, and mappings are put together key by key.
    """

    def __init__(self, path: Path, place: str, tree: Any, under: Keys | None = None) -> None:
        self.path, self.place, self.under = path, place, under
        if not isinstance(tree, dict):
            self.wrong("", "must be a mapping of keys to values")
        self.tree: dict[str, Any] = dict(tree)
        self.known: list[str] = []
        self._lent: set[str] = set()  # keys that the file below gave

    @property
    def names(self) -> list[str]:
        """The keys that are there and not yet taken."""
        return list(dict.fromkeys([*(self.under.names if self.under else ()), *self.tree]))

    def wrong(self, key: str, remedy: str) -> NoReturn:
        """Raise YamlWrong for a key here, in the file that gave it."""
        if self.under is not None and re.split(r"[.\[]", key)[0] in self._lent:
            self.under.wrong(key, remedy)
        place = ".".join(part for part in (self.place, key) if part) or "the file"
        raise YamlWrong(f"{self.path}: {place} {remedy}")

    def has(self, key: str) -> bool:
        """Whether a key stands here or in the file below."""
        return key in self.tree or (self.under is not None and key in self.under.tree)

    def take(self, key: str, kind: type[Wanted], remedy: str, default: Any = ...) -> Wanted:
        """The value of a key, which must be of a kind; `default` for one that is absent, and without a default it must be there."""
        self.known.append(key)
        if self.under is not None and key in self.under.tree:
            if key not in self.tree:
                self._lent.add(key)
                return self.under.take(key, kind, remedy, default)
            self.under.tree.pop(key)
        if key not in self.tree:
            return self.wrong(key, f"is missing: give {remedy}") if default is ... else default
        value = self.tree.pop(key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            self.wrong(key, f"must be {remedy}" + (" (put it in quotes)" if kind is str else ""))
        return value

    def text(self, key: str, remedy: str, pattern: re.Pattern[str] = _FILLED, default: Any = ...) -> str:
        """A text that matches a pattern."""
        value = self.take(key, str, remedy, default)
        if isinstance(value, str) and not pattern.fullmatch(value):
            self.wrong(key, f"must be {remedy}")
        return value

    def choice(self, key: str, values: Sequence[str], default: Any = ...) -> str:
        """One of a few texts."""
        value = self.take(key, str, f"one of {', '.join(values)}", default)
        return value if value is default or value in values else self.wrong(key, f"must be one of {', '.join(values)}")

    def number(self, key: str, kind: type[Wanted], least: float, most: float, default: Any) -> Wanted:
        """A number within limits."""
        value: Any = self.take(key, kind, f"a number from {least} to {most}", default)
        return value if least <= value <= most else self.wrong(key, f"must be a number from {least} to {most}")

    def says(self, key: str, value: Any) -> bool:
        """Whether a key has just this value; then it is taken."""
        if (self.tree if key in self.tree or self.under is None else self.under.tree).get(key) != value:
            return False
        self.take(key, type(value), str(value))
        return True

    def keys(self, key: str, remedy: str, default: Any = ...) -> Keys:
        """The keys of a mapping within this one, over those of the file below."""
        below = self.under.keys(key, remedy) if self.under is not None and key in self.under.tree else None
        if below is not None and key not in self.tree:
            self.known.append(key)
            self._lent.add(key)
            return self.at(key, {}, below)
        return self.at(key, self.take(key, dict, remedy, default), below)

    def at(self, key: str, tree: Any, under: Keys | None = None) -> Keys:
        """The keys of a tree that stands at this place."""
        return Keys(self.path, f"{self.place}.{key}" if self.place else key, tree, under)

    def each(self, key: str, remedy: str, read: Callable[[Keys], Wanted], default: Any = ...) -> tuple[Wanted, ...]:
        """A list of mappings, each read by a function. A list is not put together with that of the file below: it takes its place."""
        listed = self.take(key, list, remedy, default)
        giver = self.under if self.under is not None and key in self._lent else self
        return tuple(read(giver.at(f"{key}[{number}]", tree)) for number, tree in enumerate(listed))

    def done(self) -> None:
        """Raise YamlWrong for a key that nobody asked for, in either file."""
        for key in self.tree:
            self.wrong(str(key), f"is not a key that fhircm knows here; remove it, or mean one of: {', '.join(self.known)}")
        if self.under is not None:
            self.under.known = self.known
            self.under.done()
