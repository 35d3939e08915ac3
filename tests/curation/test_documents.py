"""A user's own documents: cut at paragraphs, named by content, broken files named and passed over."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from curation.errors import CurationError
from curation.importing.documents import cut, import_documents
from db.store import Store
from db.tables.texts import Document, Passage

PARAGRAPH = "The otter lives near water and eats fish, and it sleeps in a den that it digs itself at night."


@given(
    st.lists(st.sampled_from([PARAGRAPH, "# Heading", "short", "\n\n", "\n", "word " * 90, "One. Two three. " * 30])),
    st.integers(20, 120),
)
def test_passages_are_short_enough_and_hold_words_of_the_text(parts: list[str], most: int) -> None:
    text = "\n\n".join(parts)
    for passage in cut(text, most):
        body = passage.removeprefix("Heading\n")
        assert 15 <= len(body.split()) <= most
        assert set(passage.split()) <= set(text.split())


def test_headings_stand_before_what_is_under_them_and_nothing_long_is_lost() -> None:
    text = f"# Otters\n\n{PARAGRAPH}\n\n{PARAGRAPH}\n## Dens\n{PARAGRAPH}"
    assert list(cut(text, 200)) == [f"Otters\n{PARAGRAPH}\n{PARAGRAPH}", f"Dens\n{PARAGRAPH}"]
    assert list(cut(text, 25)) == [f"Otters\n{PARAGRAPH}", f"Otters\n{PARAGRAPH}", f"Dens\n{PARAGRAPH}"]


def pdf(text: str) -> bytes:
    """The smallest PDF with one line of text."""
    stream = f"BT /F1 12 Tf 20 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 999 800]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        b"<</Length %d>>stream\n" % len(stream) + stream + b"\nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]  # fmt: skip
    out, places = b"%PDF-1.4\n", []
    for number, item in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj" % number + item + b"endobj\n"
    table = b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + table + b"trailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % len(out)


def test_a_folder_is_imported_once_and_bad_files_are_named(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.md").write_text(f"# Otters\n\n{PARAGRAPH}")
    (folder / "deep" / "b.txt").write_text(PARAGRAPH.replace("otter", "badger"))
    (folder / "deep" / "same.txt").write_text(PARAGRAPH.replace("otter", "badger"))
    (folder / "c.pdf").write_bytes(pdf(PARAGRAPH.replace("otter", "beaver")))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    (folder / "latin.txt").write_bytes("Käse".encode("latin-1") * 20)
    (folder / "empty.txt").write_text("\n")
    (folder / "image.png").write_bytes(b"x")
    report = import_documents(store, folder, name="mine")
    assert {fault.where: fault.reason for fault in report.faults} == {
        "broken.pdf": "unreadable_pdf", "latin.txt": "not_utf8", "empty.txt": "empty",
    }  # fmt: skip
    with store.read() as session:
        texts = session.execute(
            select(Document.external_id, Passage.text).join(Passage, Passage.id == Document.passage_id)
        ).all()
    assert sorted(name.partition("#")[0] for name, _ in texts) == ["a.md", "c.pdf", "deep/b.txt"]
    assert any("beaver" in text for _, text in texts)
    assert import_documents(store, folder, name="mine").num_new == 0
    (folder / "a.md").write_text(f"# Otters\n\n{PARAGRAPH} They swim.")
    assert import_documents(store, folder, name="mine").num_new == 1


def test_a_folder_without_documents_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CurationError, match="no such folder"):
        import_documents(store, tmp_path / "nowhere")
    with pytest.raises(CurationError, match=r"no \.txt"):
        import_documents(store, tmp_path)


def test_links_and_short_texts_are_told_and_pypdf_is_quiet(
    store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "docs"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text(PARAGRAPH)
    (folder / "short.txt").write_text("Only a few words.")
    (folder / "cut.pdf").write_bytes(pdf(PARAGRAPH)[:300])
    (folder / "odd.pdf").write_bytes(b"%PDF-1.4\n%%EOF")
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "round").symlink_to(folder)
    (folder / "deep" / "linked.txt").symlink_to(folder / "a.txt")
    report = import_documents(store, folder, name="mine")
    assert {fault.where: fault.reason for fault in report.faults} == {
        "short.txt": "too_short", "cut.pdf": "unreadable_pdf", "odd.pdf": "unreadable_pdf",
        "gone.txt": "dangling_link", "round": "link_to_folder",
    }  # fmt: skip
    assert report.counts["files"] == 2 and report.num_new == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize("name", ["a\nb", "x\x1b[31m", "y" * 201])
def test_a_name_that_cannot_be_shown_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text(PARAGRAPH)
    with pytest.raises(CurationError, match="--name"):
        import_documents(store, tmp_path, name=name)
