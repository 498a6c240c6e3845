"""Numbers of list items as they are shown: letters, Roman, decimal."""

from __future__ import annotations

ROMAN = tuple(
    zip(
        (1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
        "M CM D CD C XC L XL X IX V IV I".split(),
        strict=True,
    )
)
RUSSIAN = "абвгдежзиклмнопрстуфхцчшщыэюя"


def shown_number(number: int, kind: str) -> str:
    """Write a number as its list shows it."""
    if kind in ("lowerLetter", "upperLetter") and number > 0:
        letter = chr(ord("a") + (number - 1) % 26) * min(1 + (number - 1) // 26, 9)
        return letter.upper() if kind == "upperLetter" else letter
    if kind in ("lowerRoman", "upperRoman") and 0 < number < 4000:
        roman = ""
        for value, letters in ROMAN:
            roman += letters * (number // value)
            number %= value
        return roman if kind == "upperRoman" else roman.lower()
    if kind == "ordinal":
        ending = (
            "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10)
        )
        return f"{number}{ending or 'th'}"
    if kind.startswith("decimalEnclosedCircle") and 0 < number <= 20:
        return chr(ord("①") + number - 1)
    if kind in ("russianLower", "russianUpper") and 0 < number <= len(RUSSIAN):
        letter = RUSSIAN[number - 1]
        return letter.upper() if kind == "russianUpper" else letter
    return f"{number:02}" if kind == "decimalZero" else str(number)
