"""Files of every kind, sound and otherwise, as a character's knowledge."""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rpla.core.errors import RplaError
from rpla.core.home import Home
from rpla.core.ids import id_of
from rpla.core.settings import KnowledgeSettings
from rpla.memory import epub, folder, readers
from rpla.memory.html import read_html
from rpla.memory.knowledge import Knowledge
from rpla.memory.readers import markdown_parts, read_source, text_parts

ADA = id_of("bundled", "ada-lovelace")
CONTAINER = '<?xml version="1.0"?><container><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'


def pdf_bytes(*pages: str) -> bytes:
    """A PDF by hand: a page for each text; an empty text makes a page without any."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in pages:
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else ""
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {len(objects)} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\n"
    )
    return out + f"{end}startxref\n{len(out)}\n%%EOF\n".encode()


def encrypted_pdf(password: str) -> bytes:
    import pypdf

    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf_bytes("The engine is locked away.")))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def epub_bytes(pages: dict[str, str], spine: list[str] | None = None, **more: str) -> bytes:
    items = "".join(f'<item id="i{n}" href="{name}" media-type="x"/>' for n, name in enumerate(pages))
    order = "".join(f'<itemref idref="i{list(pages).index(name)}"/>' for name in spine or pages)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip")
        book.writestr("META-INF/container.xml", CONTAINER)
        book.writestr("OEBPS/book.opf", f"<package><manifest>{items}</manifest><spine>{order}</spine></package>")
        for name, text in pages.items():
            book.writestr(f"OEBPS/{name}", text)
        for name, text in more.items():
            book.writestr(name.replace("__", "/"), text)
    return out.getvalue()


def page(title: str, body: str) -> str:
    head = '<?xml version="1.0" encoding="utf-8"?><html><head><title>b</title></head>'
    return f"{head}<body><h1>{title}</h1>{body}</body></html>"


@pytest.fixture
def knowledge(tmp_path: Path) -> Iterator[Knowledge]:
    opened = Knowledge(Home(tmp_path / "home"), None, KnowledgeSettings())
    yield opened
    opened.close()


def found(knowledge: Knowledge, words: str) -> list[tuple[str, str]]:
    return [(passage.source, passage.place) for passage in knowledge.search(ADA, words, limit=5)]


# What is read, and where it is said to stand


@pytest.mark.parametrize(
    ("name", "data", "place"),
    [
        ("a.txt", b"Some line.\n\nThe loom weaves algebraical patterns.\n", "lines 1-3"),
        (
            "a.txt",
            b"\xff\xfeT\x00h\x00e\x00 \x00l\x00o\x00o\x00m\x00 \x00w\x00e\x00a\x00v\x00e\x00s\x00.\x00",
            "line 1",
        ),
        ("a.md", b"# Ada\n\nBorn 1815.\n\n## Work\n\nThe loom weaves flowers.\n", "Work"),
        ("a.html", b"<h1>Ada</h1><p>Born<h2>Work</h2><p>The loom <b>weaves</b> flowers", "Work"),
        ("README", b"The loom weaves flowers, says a file without an ending.", "line 1"),
        ("a.pdf", pdf_bytes("A title page.", "The loom weaves flowers."), "page 2"),
        ("a.epub", epub_bytes({"1.xhtml": page("First", "x"), "2.xhtml": page("Work", "The loom weaves.")}), "Work"),
    ],
    ids=["text", "utf-16", "markdown", "html", "no ending", "pdf", "epub"],
)
def test_each_kind_is_found_by_its_words_with_source_and_place(
    knowledge: Knowledge, tmp_path: Path, name: str, data: bytes, place: str
) -> None:
    (tmp_path / name).write_bytes(data)
    knowledge.add(ADA, tmp_path / name)
    assert (name, place) in found(knowledge, "loom weaves")


def test_chapters_of_a_novel_are_its_places(knowledge: Knowledge, tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(
        "CHAPTER I\n\nA quiet village.\n\nChapter 2: The Storm\n\nThunder over the mill.\n"
    )
    knowledge.add(ADA, tmp_path / "novel.txt")
    assert found(knowledge, "thunder mill") == [("novel.txt", "Chapter 2: The Storm, line 7")]


def test_chapter_headings_are_lines_of_their_own() -> None:
    text = (
        "Part of the plan was rain.\nCHAPTER IV\nbody\nBook the Second\nbody\nChapter Twenty-One. Home\nx\nPROLOGUE\ny"
    )
    assert [part.heading for part in text_parts(text)][1:] == [
        "CHAPTER IV",
        "Book the Second",
        "Chapter Twenty-One. Home",
        "PROLOGUE",
    ]


def test_headings_within_code_are_no_headings() -> None:
    parts = markdown_parts("# A\n```\n# not\n```\n## B\ntext\n# C\nmore")
    assert [part.heading for part in parts] == ["", "A", "A > B", "C"]


def test_a_web_page_is_read_without_what_is_no_text() -> None:
    html = (
        "<head><title>T</title><style>p{}</style></head><body><nav>menu</nav><p>one<br>two &amp; three</p>"
        "<script>alert('x')</script><h2>Head<p>under</h2>it"
    )
    title, parts = read_html(html)
    text = " ".join(part.text for part in parts)
    assert title == "T"
    assert "one two & three" in text
    assert "under" in text + "".join(part.heading for part in parts)
    assert not any(word in text for word in ("menu", "alert", "p{}"))


def test_an_epub_is_read_in_the_order_of_its_spine() -> None:
    pages = {
        "z.xhtml": page("One", "first"),
        "a%20b.xhtml": page("Two", "never there"),
        "c.xhtml": page("Three", "last"),
    }
    data = epub_bytes(pages, spine=["c.xhtml", "z.xhtml"])
    assert [part.heading for part in read_source(data, "b.epub").parts] == ["Three", "One"]


def test_a_kind_is_told_by_what_a_file_is_and_not_by_its_name() -> None:
    assert read_source(pdf_bytes("text"), "report.txt").kind == "pdf"
    assert read_source(epub_bytes({"1.xhtml": page("One", "first")}), "book.zip").kind == "epub"


def test_what_is_not_utf8_is_read_as_windows_1252_and_told(knowledge: Knowledge, tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_bytes("Crème brûlée – “sweet”".encode("cp1252"))
    report = knowledge.add(ADA, tmp_path / "old.txt")
    assert "Windows-1252" in report.notes[0]
    assert knowledge.search(ADA, "crème brûlée", limit=1)[0].text == "Crème brûlée – “sweet”"


def test_a_pdf_that_is_locked_against_changes_alone_is_read() -> None:
    assert "locked away" in read_source(encrypted_pdf(""), "a.pdf").parts[0].text


# What is refused, with nothing of it kept


def locked_epub() -> bytes:
    listed = '<encryption><CipherReference URI="OEBPS/1.xhtml"/></encryption>'
    return epub_bytes({"1.xhtml": page("One", "first")}, **{"META-INF__encryption.xml": listed})


def other_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t\n", "is empty"),
        ("a.txt", b"ELF\x00\x01\x02\x00" * 20, "is not a text file"),
        ("a.txt", bytes(range(128, 256)) * 4, "is not text in UTF-8"),
        ("a.md", b"# Only\n## Headings\n", "holds no text"),
        ("a.html", b"<script>var x = 1</script>", "holds no text"),
        ("a.pdf", b"not a pdf at all", "damaged, or no PDF"),
        ("a.pdf", b"%PDF-1.4 cut off here", "is a damaged PDF"),
        ("a.pdf", pdf_bytes("text")[:300], "is a damaged PDF"),
        ("a.pdf", pdf_bytes("", ""), "has no text"),
        ("a.pdf", encrypted_pdf("secret"), "is encrypted"),
        ("a.epub", b"not a zip", "damaged, or no EPUB"),
        ("a.epub", epub_bytes({"1.xhtml": page("One", "first")})[:200], "is a damaged EPUB"),
        ("a.epub", other_zip(), "is a zip file and no EPUB"),
        ("a.epub", locked_epub(), "is encrypted"),
        ("a.epub", epub_bytes({"1.xhtml": page("", "")}), "holds no text"),
    ],
)
def test_bad_files_are_refused_with_what_to_do_and_nothing_of_them_is_kept(
    knowledge: Knowledge, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RplaError, match=message) as raised:
        knowledge.add(ADA, tmp_path / name)
    assert raised.value.hint
    assert knowledge.sources(ADA) == []


def test_an_epub_that_unpacks_to_more_than_a_book_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epub, "LARGEST_FILE", 1_000_000)
    bomb = epub_bytes({"1.xhtml": page("One", "a" * 600_000), "2.xhtml": page("Two", "b" * 600_000)})
    assert len(bomb) < 10_000
    with pytest.raises(RplaError, match="unpacks to more than"):
        read_source(bomb, "bomb.epub")


def test_what_is_too_large_is_refused(knowledge: Knowledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "huge.txt").write_text("word " * 1000)
    monkeypatch.setattr(readers, "LONGEST_TEXT", 4000)
    with pytest.raises(RplaError, match="more than 4,000 characters"):
        knowledge.add(ADA, tmp_path / "huge.txt")
    monkeypatch.setattr(folder, "LARGEST_FILE", 4000)
    with pytest.raises(RplaError, match="is larger than"):
        knowledge.add(ADA, tmp_path / "huge.txt")
    assert knowledge.sources(ADA) == []


def test_paths_that_are_not_there_or_no_files_are_told(knowledge: Knowledge, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "empty").mkdir()
    for name, message in (("none.txt", "is not there"), ("pipe.txt", "is not a file"), ("empty", "holds no file")):
        with pytest.raises(RplaError, match=message):
            knowledge.add(ADA, tmp_path / name)


# Folders


def test_a_folder_is_followed_when_it_is_added_again(knowledge: Knowledge, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "deep").mkdir(parents=True)
    (docs / "loom.md").write_text("The loom weaves flowers.")
    (docs / "deep" / "mill.txt").write_text("The mill grinds numbers.")
    (docs / "picture.png").write_bytes(b"\x89PNG")
    (docs / ".hidden.txt").write_text("hidden")
    first = knowledge.add(ADA, docs)
    assert (sorted(first.added), first.failed) == (["deep/mill.txt", "loom.md"], ())
    (docs / "loom.md").write_text("The loom weaves carpets.")
    (docs / "deep" / "mill.txt").unlink()
    (docs / "rail.txt").write_text("The railway runs on Sundays.")
    second = knowledge.add(ADA, docs)
    assert (second.added, second.changed, second.removed) == (("rail.txt",), ("loom.md",), ("deep/mill.txt",))
    assert found(knowledge, "mill grinds") == []
    assert found(knowledge, "weaves carpets") == [("loom.md", "line 1")]
    assert found(knowledge, "flowers") == []
    third = knowledge.add(ADA, docs)
    assert (sorted(third.unchanged), third.passages) == (["loom.md", "rail.txt"], 0)


def test_a_folder_that_lost_all_its_files_is_empty_here_too(knowledge: Knowledge, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("The loom weaves.")
    knowledge.add(ADA, tmp_path / "docs")
    (tmp_path / "docs" / "a.txt").unlink()
    assert knowledge.add(ADA, tmp_path / "docs").removed == ("a.txt",)
    assert knowledge.sources(ADA) == []


def test_a_bad_file_in_a_folder_leaves_the_others_and_what_was_there_of_it(
    knowledge: Knowledge, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("good.txt", "bad.txt"):
        (tmp_path / "docs" / name).write_text(f"The {name} loom weaves.")
    knowledge.add(ADA, tmp_path / "docs")
    (tmp_path / "docs" / "bad.txt").write_bytes(b"\x00\x01")
    (tmp_path / "docs" / "good.txt").write_text("The good loom spins.")
    report = knowledge.add(ADA, tmp_path / "docs")
    assert (report.changed, len(report.failed)) == (("good.txt",), 1)
    assert "bad.txt is not a text file" in report.failed[0]
    assert [place[0] for place in found(knowledge, "loom weaves")] == ["bad.txt"]
    assert [place[0] for place in found(knowledge, "loom spins")] == ["good.txt"]


def test_links_within_a_folder_are_not_followed(knowledge: Knowledge, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("The password of the loom.")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("Nothing here.")
    (tmp_path / "docs" / "link.txt").symlink_to(tmp_path / "secret.txt")
    assert knowledge.add(ADA, tmp_path / "docs").added == ("a.txt",)
