"""PDF to text, page by page, by pypdf."""

import logging
import re
from io import BytesIO

from rpla.core.errors import MissingExtra, RplaError
from rpla.memory.readers import LONGEST_TEXT, Part

_MOST_PAGES = 5_000
_HYPHEN = re.compile(r"(?<=[a-z])-\n(?=[a-z])")


def read_pdf(data: bytes, name: str) -> list[Part]:
    """The pages that have text. Raises RplaError where it is encrypted, damaged, or pictures of pages alone."""
    try:
        import pypdf
        from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError
    except ImportError as error:
        raise MissingExtra("Reading PDF files", "local") from error
    # It tells of every oddity of a file, which readers of PDF pass over in silence.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    locked = RplaError(f"{name} is encrypted.", "Open it with its password and save a copy without one.")
    try:
        reader = pypdf.PdfReader(BytesIO(data))
        # Many are locked against changes alone: their password is empty.
        if reader.is_encrypted and not reader.decrypt(""):
            raise locked
        if len(reader.pages) > _MOST_PAGES:
            raise RplaError(f"{name} has more than {_MOST_PAGES:,} pages.", "Split it.")
        parts: list[Part] = []
        characters = 0
        for number, page in enumerate(reader.pages, 1):
            text = _HYPHEN.sub("", page.extract_text()).replace("\0", "")
            text = text.encode(errors="replace").decode()  # fonts with broken tables give half characters
            if text.strip():
                parts.append(Part(text=text, place=f"page {number}"))
            characters += len(text)
            if characters > LONGEST_TEXT:
                raise RplaError(f"{name} holds more than {LONGEST_TEXT:,} characters.", "Split it.")
    except (FileNotDecryptedError, DependencyError):
        raise locked from None
    except (
        PyPdfError,
        ArithmeticError,
        AttributeError,
        LookupError,
        NotImplementedError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:  # pypdf lets a damaged file's own shape show
        raise RplaError(f"{name} is a damaged PDF: {error}.", "Open it in a reader and save it anew.") from None
    if not parts:
        raise RplaError(f"{name} has no text: its pages are pictures.", "Run it through text recognition (OCR) first.")
    return parts
