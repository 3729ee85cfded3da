"""HTML to text: what a reader of the page would read, by its headings."""

from html.parser import HTMLParser

from rpla.memory.readers import Part

_SKIPPED = {"script", "style", "template", "noscript", "svg", "nav", "iframe", "object"}
_BLOCK_TAGS = """
    address article aside blockquote body br caption center dd details div dl dt fieldset figcaption figure footer form
    h1 h2 h3 h4 h5 h6 header hr li main ol p pre section summary table td th tr ul
"""
_BLOCKS = frozenset(_BLOCK_TAGS.split())
_HEADINGS = {f"h{level}": level for level in range(1, 7)}


def read_html(text: str) -> tuple[str, list[Part]]:
    """The page's title and its parts. Whatever is malformed is read as far as it goes, as browsers do."""
    page = _Page()
    page.feed(text)
    page.close()
    return page.finish()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._title: list[str] = []
        self._parts: list[Part] = []
        self._words: list[str] = []
        self._above: list[tuple[int, str]] = []
        self._heading: list[str] | None = None
        self._in_title = False
        self._skipping = ""
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skipping:
            self._depth += tag == self._skipping
        elif tag in _SKIPPED:
            self._skipping, self._depth = tag, 1
        elif tag == "title":
            self._in_title = True
        elif tag in _HEADINGS:
            self._close_part()
            self._heading = []
        elif tag in _BLOCKS:
            self._in_title = False
            self._add("\n" if tag in ("br", "tr", "li", "td", "th") else "\n\n")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # XHTML closes any element within its tag; nothing is inside it to be skipped.
        if tag in _BLOCKS and tag not in _HEADINGS and not self._skipping:
            self._add("\n")

    def handle_endtag(self, tag: str) -> None:
        if self._skipping:
            self._depth -= tag == self._skipping
            if not self._depth:
                self._skipping = ""
        elif tag == "title":
            self._in_title = False
        elif tag in _HEADINGS and self._heading is not None:
            level, title = _HEADINGS[tag], " ".join("".join(self._heading).split())
            self._heading = None
            if title:
                self._above = [*((depth, name) for depth, name in self._above if depth < level), (level, title)]
        elif tag in _BLOCKS:
            self._add("\n\n")

    def handle_data(self, data: str) -> None:
        if self._skipping:
            return
        if self._in_title:
            self._title.append(data)
        else:
            self._add(data)

    def finish(self) -> tuple[str, list[Part]]:
        """What was read."""
        if self._heading is not None:  # a heading that never ended: its words are text
            self._words += self._heading
            self._heading = None
        self._close_part()
        return " ".join("".join(self._title).split()), self._parts

    def _add(self, text: str) -> None:
        (self._words if self._heading is None else self._heading).append(text)

    def _close_part(self) -> None:
        if self._heading is not None:
            self._words += self._heading
            self._heading = None
        paragraphs = (" ".join(block.split()) for block in "".join(self._words).split("\n\n"))
        text = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
        self._words = []
        if text:
            heading = " > ".join(name for _, name in self._above)
            where = " > ".join(name for _, name in self._above[1:]) or heading
            self._parts.append(Part(text=text, place=where, heading=heading))
