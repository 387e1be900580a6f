"""Chinese characters that sound alike, and so are typed for one another, by the readings that pypinyin has of them.

The 3,755 characters of level 1 of GB 2312; alike are those that share one of their two commonest readings, tones aside.
"""

from functools import cache

from athanor.corpus.normalize import rare


def common() -> list[str]:
    """The characters of level 1 of GB 2312, by their readings: rows 16 to 55."""
    places = (bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF))
    return [place.decode("gb2312") for place in places if place < b"\xd7\xfa"]


@cache
def homophones() -> dict[str, str]:
    """Character -> the others of its readings, in the order of GB 2312."""
    pypinyin = rare("pypinyin")
    readings = {
        character: pypinyin.pinyin(character, style=pypinyin.Style.NORMAL, heteronym=True)[0][:2]
        for character in common()
    }
    sounds: dict[str, list[str]] = {}
    for character, said in readings.items():
        for reading in said:
            sounds.setdefault(reading, []).append(character)
    return {
        character: "".join(dict.fromkeys(other for reading in said for other in sounds[reading] if other != character))
        for character, said in readings.items()
    }
