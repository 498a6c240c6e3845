"""How much is left to memorize is judged by what was read."""

import pytest

from m3mlx.memorize.amount import Amount, File


def files(*sizes: int, ending: str = "md") -> list[File]:
    return [File(f"/{n}.{ending}", "", size) for n, size in enumerate(sizes)]


def read(amount: Amount, file: File, references: int) -> None:
    amount.take(file)
    amount.count(file, references)


def test_files_of_one_ending_are_alike():
    notes, books = files(*[5000] * 20), files(*[1_000_000] * 20, ending="pdf")
    amount = Amount([*notes, *books])
    read(amount, notes[0], 20)
    read(amount, books[0], 30)
    assert amount.waiting() == pytest.approx(19 * 20 + 19 * 30, rel=0.15)


def test_texts_have_more_references_than_other_formats_before_anything_is_read():
    assert Amount(files(10_000)).waiting() == 20
    assert Amount(files(10_000, ending="pdf")).waiting() < 5
    assert Amount(files(10_000, ending="odd")).waiting() == 20
    assert Amount([]).waiting() == 0


def test_nothing_waits_when_all_files_are_taken_even_unread_or_empty():
    some = files(0, 3000, 10)
    amount = Amount(some)
    amount.take(some[1])
    read(amount, some[0], 0)
    assert amount.waiting() == 0
    amount.take(some[2])
    assert amount.waiting() == 0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_estimate_of_mixed_files_is_right_within_a_third(share):
    mixed = [
        file
        for n in range(60)
        for file in (
            *files(4000 + 50 * n, ending="md"),
            *files(200_000 + 9000 * n, ending="pdf"),
            *files(30_000 + 500 * n, ending="xlsx"),
        )
    ]
    has = {file: file.size // {"md": 450, "df": 9000, "sx": 100}[file.path[-2:]] for file in mixed}
    amount, seen = Amount(mixed), int(share * len(mixed))
    for file in mixed[:seen]:
        read(amount, file, has[file])
    left = sum(has[file] for file in mixed[seen:])
    assert left / 1.33 < amount.waiting() < 1.33 * left
