"""What a GGUF file says about itself: its header, read without its weights and without trust."""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rpla.core.errors import RplaError

_MAGIC = b"GGUF"
_MAX_KEYS, _MAX_TENSORS, _MAX_ITEMS, _MAX_TEXT = 4096, 65_536, 4 << 20, 4 << 20
_TEXT, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FILE_TYPES = (
    "0:F32 1:F16 2:Q4_0 3:Q4_1 7:Q8_0 8:Q5_0 9:Q5_1 10:Q2_K 11:Q3_K_S 12:Q3_K_M 13:Q3_K_L 14:Q4_K_S 15:Q4_K_M "
    "16:Q5_K_S 17:Q5_K_M 18:Q6_K 19:IQ2_XXS 20:IQ2_XS 21:Q2_K_S 22:IQ3_XS 23:IQ3_XXS 24:IQ1_S 25:IQ4_NL 26:IQ3_S "
    "27:IQ3_M 28:IQ2_S 29:IQ2_M 30:IQ4_XS 31:IQ1_M 32:BF16 36:TQ1_0 37:TQ2_0 38:MXFP4"
)
_FILE_TYPE_NAMES = {int(number): name for number, name in (pair.split(":") for pair in _FILE_TYPES.split())}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufInfo:
    """The facts of a GGUF header; what it leaves out is empty, or 0."""

    title: str
    architecture: str
    context: int
    """The longest context it was trained for, in tokens."""
    file_type: str
    """The number format of most weights, such as ``Q4_1``."""
    parameters: int
    chat_template: bool
    license: str


def read_gguf(path: Path) -> GgufInfo:
    """Read a header. Raises RplaError where the file is not GGUF, is cut short, or claims absurd sizes."""
    try:
        with path.open("rb") as file:
            values, parameters = _Reader(file, path.stat().st_size).header()
    except (OSError, ValueError) as error:
        raise RplaError(
            f"{path} is not a whole GGUF model: {error}.", "Pull it again, or compare its sha256 with its source's."
        ) from error
    texts = {key: value for key, value in values.items() if isinstance(value, str)}
    numbers = {key: value for key, value in values.items() if isinstance(value, int)}
    architecture, file_type = texts.get("general.architecture", ""), numbers.get("general.file_type")
    return GgufInfo(
        title=texts.get("general.name", ""),
        architecture=architecture,
        context=numbers.get(f"{architecture}.context_length", 0),
        file_type=_FILE_TYPE_NAMES.get(file_type, f"type {file_type}") if file_type is not None else "",
        parameters=parameters,
        chat_template=bool(texts.get("tokenizer.chat_template")),
        license=texts.get("general.license", ""),
    )


class _Reader:
    """Takes a header apart. Every length is checked against the bytes left before anything of that length is read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def header(self) -> tuple[dict[str, Any], int]:
        """The metadata (arrays left out), and the number of weights."""
        if self._bytes(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        if (version := self._number("I")) not in (2, 3):
            raise ValueError(f"version {version} of the format is not supported")
        tensors, keys = self._bounded("Q", _MAX_TENSORS, "tensors"), self._bounded("Q", _MAX_KEYS, "keys")
        values = {self._string(): self._value(self._number("I")) for _ in range(keys)}
        return values, sum(self._tensor() for _ in range(tensors))

    def _tensor(self) -> int:
        self._string()
        shape = [self._number("Q") for _ in range(self._bounded("I", 8, "dimensions"))]
        self._bytes(12)  # its number format and its place
        return math.prod(shape)

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._string()
        if kind == _ARRAY:
            item = self._number("I")
            count = self._bounded("Q", _MAX_ITEMS, "items")
            if item == _TEXT:
                for _ in range(count):
                    self._bytes(self._bounded("Q", _MAX_TEXT, "bytes of text"))
            else:
                self._bytes(count * struct.calcsize(self._format(item)))
            return None
        return self._number(self._format(kind))

    def _format(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise ValueError(f"it has a value of unknown kind {kind}")
        return _NUMBERS[kind]

    def _string(self) -> str:
        return self._bytes(self._bounded("Q", _MAX_TEXT, "bytes of text")).decode("utf-8", "replace")

    def _bounded(self, number_format: str, most: int, what: str) -> int:
        if (count := int(self._number(number_format))) > most:
            raise ValueError(f"it claims {count} {what}")
        return count

    def _number(self, number_format: str) -> Any:
        return struct.unpack(f"<{number_format}", self._bytes(struct.calcsize(number_format)))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            raise ValueError("it is cut short")
        self._left -= count
        if len(data := self._file.read(count)) != count:
            raise ValueError("it shrank while it was read")
        return data
