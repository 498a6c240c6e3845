"""Guess the encoding of a text that is not Unicode, or refuse to.

Any encoding turns any bytes into letters; only the right one gives the letters of one language,
where letters belong. General detectors choose among a hundred encodings and take cp1250 for cp1252
in French and Swedish. Here few encodings compete, each with the alphabets that it is used for.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from operator import itemgetter

SAMPLE = 16_000  # bytes to look at, from lines with other characters than ASCII
SURE = 0.85  # lowest score of a guess
MARGIN = 0.05  # by which the best guess must beat those that give another text
RARE = 0.03  # accented letters per byte of a text with a few foreign words
ANYWHERE = "ªºµ"  # signs that Unicode counts as letters
SIGNS = set("\u00a0–—‘’‚“”„†‡•…‰‹›€™¡¢£¤¥§©«¬®°±²³¶·»¼½¾¿×÷№´¨")
DETACHED = set("†‡•¤¶±¬¿¡§£¥¢¼½¾")  # never right behind a letter
INNER = set("’–—…")  # the only signs that stand between letters


@dataclass(frozen=True)
class Alphabet:
    """The letters beyond ASCII of one language, or of several.

    Attributes:
        encodings: those in use for it.
        letters: all of them, in lower case; None for scripts with thousands.
        common: the most frequent ones; "" where the letters alone decide.
        least: smallest share of the common ones among all letters.
        penalty: taken from the score.
    """

    encodings: tuple[str, ...]
    letters: str | None
    common: str = ""
    least: float = 0.0
    penalty: float = 0.0


WEST, MAC, EAST = ("cp1252",), ("mac_roman",), ("cp1250", "iso8859_2")
KANA = "".join(map(chr, (*range(0x3041, 0x3094), *range(0x30A1, 0x30FD))))
# the most frequent characters of Chinese and Korean
SIMPLIFIED = """
的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就要下以生会自去过家学对可里后小多天能好都没
"""
TRADITIONAL = """
的一是不了在人有我他這中大來上國個到說們為子和你地出道也時年得就要下以生會自去過家學對可裡後小多天能好都沒
"""
HANGUL = "이다는을에의가고하지은로한기도서사인대어나리자를니습요세안녕있것해보그수"
CYRILLIC = ("cp1251", "koi8_r", "cp866", "iso8859_5")
EUROPE = "àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿœß"
LATIN = re.compile("[A-Za-z]")
WESTERN = (
    "àâæçèéêëîïôœùûüÿ",  # French
    "äöüßé",  # German
    "áéíóúñü",  # Spanish
    "àçèéíïòóúü",  # Catalan
    "àáâãçéêíóôõú",  # Portuguese
    "àèéìíîòóùú",  # Italian
    "åäöæøéü",  # Nordic
    "áðéíóúýþæö",  # Icelandic
    "áäéëèêíïóöúüç",  # Dutch
)
ALPHABETS = (  # among equals the first wins
    *(Alphabet(WEST, letters) for letters in WESTERN),
    Alphabet(EAST, "ąćęłńóśźż"),  # Polish
    Alphabet(EAST, "áčďéěíňóřšťúůýž"),  # Czech
    Alphabet(EAST, "áäčďéíĺľňóôŕšťúýž"),  # Slovak
    Alphabet(EAST, "áéíóöőúüű"),  # Hungarian
    Alphabet(EAST, "čćđšž"),  # Croatian, Slovenian
    Alphabet(EAST, "ăâîşţ"),  # Romanian
    Alphabet(("cp1254",), "çğıİöşüâîû"),  # Turkish; its capital İ has no single lower case
    Alphabet(("cp1257", "iso8859_13"), "āčēģīķļņšūžąęėįųõäöü"),  # Baltic
    Alphabet(CYRILLIC, "абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "оеаинтср", 0.4),
    Alphabet(("koi8_u", "cp1251"), "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя", "оаинтіев", 0.4),
    Alphabet(("cp1253", "iso8859_7"), "αβγδεζηθικλμνξοπρσςτυφχψωάέήίόύώϊϋΐΰ", "αοιετσνη", 0.4),
    Alphabet(("cp1255",), "אבגדהוזחטיךכלםמןנסעףפץצקרשת", "יוהלאתרמ", 0.4),
    Alphabet(("cp1256",), "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيپچژگـ", "اليمونرت", 0.4),
    Alphabet(("cp932", "euc_jp"), None, KANA, 0.3),
    Alphabet(("gb18030",), None, SIMPLIFIED, 0.1),
    Alphabet(("big5",), None, TRADITIONAL, 0.1),
    Alphabet(("cp949",), None, HANGUL, 0.2),
    *(Alphabet(MAC, letters) for letters in WESTERN),
    Alphabet(WEST, EUROPE, penalty=0.1),  # names of many countries, if nothing fits better
)


def guess(data: bytes) -> str | None:
    """Return the encoding of a text that is not UTF-8, or None if it is not certain."""
    sample = b"\n".join(line for line in data.splitlines() if not line.isascii())[:SAMPLE]
    if set(sample) - set(range(128)) == {0xA0}:
        return "cp1252"  # no-break spaces, as in every encoding that is in use on the web
    if _beyond_ascii(sample.decode(errors="ignore").encode()) > _beyond_ascii(sample) / 2:
        return None  # damaged UTF-8
    found: list[tuple[float, str, str, Alphabet]] = []  # score, encoding, text
    for alphabet in ALPHABETS:
        for encoding in alphabet.encodings:
            try:  # incrementally, for the sample may end within a character
                text = codecs.getincrementaldecoder(encoding)().decode(sample)
            except UnicodeDecodeError:
                continue
            score = _score(text, alphabet) - alphabet.penalty
            if score > SURE:
                found.append((score, encoding, text, alphabet))
    if not found:
        return None
    best, encoding, text, alphabet = max(found, key=itemgetter(0))
    margin = MARGIN + (0.3 / _beyond_ascii(sample) ** 0.5 if alphabet.common else 0)
    rivals = any(score > best - margin and other != text for score, _, other, _ in found)
    # a few foreign words or signs in English are Western; any other doubt remains one
    few = sum(c > "\x7f" for c in text if c.isalpha()) <= RARE * len(data)
    return encoding if not rivals or (few and encoding in WEST) else None


def _beyond_ascii(data: bytes) -> int:
    return len(data.translate(None, delete=bytes(range(128))))


def _score(text: str, alphabet: Alphabet) -> float:
    """Return the share of characters beyond ASCII that are where this alphabet has them.

    Half the share of the common letters is added, to rank what else would be equal.
    """
    fitting = 0.0
    letters = common = signs = 0
    for word in "".join(c if c.isalpha() else " " for c in text).split():
        if own := [c for c in word if c > "\x7f"]:
            letters += len(own)
            if right := _plausible(word, len(own), alphabet):
                fitting += right
                common += sum(c.lower() in alphabet.common for c in own)
    for before, sign, after in zip(" " + text, text, text[1:] + " ", strict=False):
        if sign > "\x7f" and not sign.isalpha():
            signs += 1
            inside = before.isalpha() and after.isalpha()
            misplaced = (inside and sign not in INNER) or (before.isalpha() and sign in DETACHED)
            wide = "\u3000" <= sign <= "\u303f" or sign >= "\uff00"
            fitting += (wide and not alphabet.letters) or (sign in SIGNS and not misplaced)
    # the fewer the letters, the further their frequencies stray
    if not fitting or common < alphabet.least * letters - letters**0.5:
        return 0.0
    return (fitting + 0.5 * common) / (letters + signs)


def _plausible(word: str, own: int, alphabet: Alphabet) -> float:
    """Count the letters beyond ASCII of a word, ``own`` in all, that this alphabet allows there."""
    if alphabet.letters is None:
        near = zip(" " + word, word, word[1:] + " ", strict=False)
        return sum(c >= "\u3000" and not LATIN.search(before + after) for before, c, after in near)
    if alphabet.common:
        if own < len(word) or own < 2:
            return 0  # a Latin accent read as a foreign alphabet
    elif own > 4 and own > len(word) / 2:
        return 0  # Cyrillic or Greek read as Latin
    right = 0.0
    for before, c in zip(" " + word, word, strict=False):
        known = c in alphabet.letters or c.lower() in alphabet.letters or c in ANYWHERE
        if c > "\x7f" and known and not (c.isupper() and before.islower()):
            # words in capitals are rare, and mostly small letters of another encoding
            right += 0.85 if alphabet.common and c.isupper() and before != " " else 1.0
    return right
