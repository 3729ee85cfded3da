"""JSON from strangers: what is refused in it, and how values of the wrong type are read all the same."""

import json
import math
import re
from collections import Counter
from itertools import count
from typing import Any

from rpla.core.errors import RplaError
from rpla.core.terminal import terminal_safe

Json = dict[str, Any]

LARGEST = 8 * 1024 * 1024
"""Most bytes in a file."""
_DEEPEST = 64
_MOST_VALUES = 300_000
_MOST_REPAIRS = 50
_SURROGATE = re.compile("[\ud800-\udfff]")
_FLAGS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


class Repairs:
    """Takes values of the wrong type for what they must have meant, and notes each."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._more = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What was mended, a sentence each."""
        return (*self._notes, f"There were {self._more} more repairs.") if self._more else tuple(self._notes)

    def add(self, note: str) -> None:
        """Note a repair; a hostile file's millionth is only counted."""
        if len(self._notes) < _MOST_REPAIRS:
            self._notes.append(note)
        else:
            self._more += 1

    def unread(self, field: str, value: object) -> None:
        """Note a value that nothing can be made of."""
        kind = {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), "a number")
        self.add(f"{field} was {'null' if value is None else kind}; kept in the file but not read.")

    def text(self, value: Any, field: str) -> str:
        """Text; numbers become text, null becomes empty."""
        if isinstance(value, str):
            return value
        if value is None:
            self.add(f"{field} was null; read as empty.")
        elif isinstance(value, int | float):
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            self.add(f"{field} was not text; read as {text[:60]}.")
            return text
        else:
            self.unread(field, value)
        return ""

    def texts(self, value: Any, field: str, *, split: bool = False) -> tuple[str, ...]:
        """A list of text; text alone is split at its commas or becomes the only item."""
        if isinstance(value, str):
            self.add(f"{field} was text; read as a list.")
            items = value.split(",") if split else [value]
            return tuple(item.strip() for item in items if item.strip())
        if value is None:
            self.add(f"{field} was null; read as empty.")
            return ()
        if not isinstance(value, list):
            self.unread(field, value)
            return ()
        return tuple(self.text(item, f"{field}[{place}]") for place, item in enumerate(value))

    def number(self, value: Any, field: str, default: int, *, least: int | None = None) -> int:
        """A whole number; nothing at all is the default."""
        if value is None:
            return default
        try:
            number = int(float(value)) if isinstance(value, str | float) else value
            if isinstance(value, bool) or not isinstance(number, int) or (least is not None and number < least):
                raise ValueError
        except (ValueError, OverflowError):
            self.add(f"{field} was not a number that can stand there; read as {default}.")
            return default
        if number != value:
            self.add(f"{field} was not a whole number; read as {number}.")
        return number

    def flag(self, value: Any, field: str, default: bool) -> bool:
        """True or false; nothing at all is the default."""
        if isinstance(value, bool) or value is None:
            return default if value is None else value
        flag = _FLAGS.get(str(value).strip().lower(), default)
        self.add(f"{field} was not true or false; read as {'true' if flag else 'false'}.")
        return flag


def load_object(data: bytes | str, what: str) -> tuple[Json, Repairs]:
    """The JSON object in a file, and what had to be mended to read it. ``what`` is what messages call the file.

    Raises:
        RplaError: It is not JSON, not an object, larger than `LARGEST`, or `check_object` refuses it.
    """
    if len(data) > LARGEST:
        raise RplaError(f"The {what} is larger than {LARGEST // 1024**2} MB.", "Remove what is embedded in it.")
    repairs = Repairs()
    twice: set[str] = set()
    objects = count(1)

    def pairs(items: list[tuple[str, Any]]) -> Json:
        if next(objects) > _MOST_VALUES:
            raise _too_many(what)
        found = dict(items)
        if len(found) < len(items):
            twice.update(key for key, times in Counter(key for key, _ in items).items() if times > 1)
        return found

    try:
        text = data if isinstance(data, str) else data.decode(json.detect_encoding(data))
        if text.startswith("\ufeff") or (isinstance(data, bytes) and data.startswith(b"\xef\xbb\xbf")):
            repairs.add("The file began with a byte order mark; it was skipped.")
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=pairs)
    except RecursionError:
        raise _too_deep(what) from None
    except UnicodeDecodeError:
        raise RplaError(f"The {what} is not text in UTF-8.", "Save it as UTF-8, or export it again.") from None
    except json.JSONDecodeError as error:
        raise RplaError(
            f"The {what} is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
            "Mend that line, or export the file again.",
        ) from None
    except ValueError:  # a whole number of thousands of digits
        raise RplaError(f"The {what} holds a number that is too long.", "Shorten it.") from None
    if not isinstance(value, dict):
        raise RplaError(f"The {what} is not a JSON object.", 'It must begin with "{".')
    check_object(value, what)
    for key in sorted(twice):
        repairs.add(f"{shown(key)} stood twice in one object; the last was read.")
    return value, repairs


def check_object(tree: Json, what: str) -> None:
    """Refuse what no later stage can store.

    Raises:
        RplaError: It holds half a surrogate pair, NaN or an infinity (the field is named), is nested too deep, or
            holds so many values that reading it would take seconds.
    """

    def refuse(at: Any, problem: str) -> RplaError:
        keys: list[str] = []
        while at:
            at, key = at
            keys.append(f"[{key}]" if isinstance(key, int) else f".{shown(key)}")
        path = "".join(reversed(keys)).removeprefix(".")
        return RplaError(f"The {what}'s {path} {problem}.", "Mend that field, or export the file again.")

    todo: list[tuple[Any, Any, int]] = [(tree, None, 1)]
    values = 0
    while todo:
        value, at, depth = todo.pop()
        values += len(value)
        if values > _MOST_VALUES:
            raise _too_many(what)
        if depth > _DEEPEST:
            raise _too_deep(what)
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and _SURROGATE.search(key):
                raise refuse((at, key), "has half a surrogate pair in its key")
            if isinstance(child, str):
                if _SURROGATE.search(child):
                    raise refuse((at, key), "holds half a surrogate pair")
            elif isinstance(child, float):
                if not math.isfinite(child):
                    raise refuse((at, key), "is not a finite number")
            elif isinstance(child, dict | list):
                todo.append((child, (at, key), depth + 1))


def _too_deep(what: str) -> RplaError:
    return RplaError(f"The {what} is nested too deep.", f"At most {_DEEPEST} levels are read.")


def _too_many(what: str) -> RplaError:
    return RplaError(f"The {what} holds too many values.", f"At most {_MOST_VALUES:,} are read.")


def shown(text: object) -> str:
    """The start of a stranger's text, fit to stand in a message of one line."""
    return terminal_safe(str(text)).replace("\n", " ")[:60]
