"""Words are found in scripts without spaces, inside of compounds, and behind their articles."""

import sqlite3

import pytest
from small_store import A, fill, matching, memorize, new_store, search

from m3mlx.store import MemoryStore, pieces

OTHERS = ["The boat is blue.", "Das Dach ist neu.", "这台打印机放在仓库里", "الكرسي في الغرفة"]
FINDS = [
    ("郑晓霞", "上个月郑晓霞在仓库里修理过洗衣机"),
    ("猫", "那只猫"),
    ("田中", "先月は田中さんが時計を修理しました"),
    ("テレビ", "古いﾃﾚﾋﾞは物置にあります"),
    ("프린터", "지난달에 프린터를 고쳤다"),
    ("프린터는", "새 프린터가 왔다"),
    ("เครื่องพิมพ์", "ผมซ่อมเครื่องพิมพ์เมื่อวานนี้"),
    ("ເຄື່ອງພິມ", "ຂ້ອຍສ້ອມແປງເຄື່ອງພິມມື້ວານ"),
    ("كتاب", "اشترينا والكتاب الجديد أمس"),
    ("الكتاب", "هذا كتاب جديد"),
    ("كِتَاب", "هذا كتاب جديد"),
    ("ספר", "קראתי את הספר אתמול"),
    ("प्रिंटर", "मैंने कल प्रिंटर ठीक किया"),
    ("Frist", "Die Kündigungsfrist endet im Mai."),
    ("Fristen", "Die Kündigungsfrist endet im Mai."),
    ("Vertrag", "Alle Wartungsverträge wurden verlängert."),
    ("Kessel", "Der Heizungskessel wurde gereinigt."),
    ("Tür", "Die Haustüre klemmt."),
    ("kontrakt", "Hyreskontraktet skrevs under i maj."),
    ("python", "使用Python编写的程序"),
    ("USB", "需要USB3接口"),
]


@pytest.mark.parametrize(("question", "text"), FINDS)
def test_a_word_is_found(catalog, question, text):
    fill(catalog, "/a", [*OTHERS, text], 0)
    assert matching(catalog, question)[:1] == [len(OTHERS)]


def test_nothing_is_found_by_a_word_that_is_nowhere(catalog):
    fill(catalog, "/a", OTHERS, 0)
    for question, _ in FINDS:
        if question != "الكتاب":  # which has the article in common
            assert matching(catalog, question) == []


def test_english_has_no_pieces_and_is_found_as_ever(catalog):
    english = "The boiler of the understanding keeper was serviced and that is the documentation."
    assert pieces.pieces(english) == ""
    fill(catalog, "/a", [english, *OTHERS], 0)
    assert catalog.db.value("SELECT count(*) FROM piece WHERE rowid = 0") == 0
    assert matching(catalog, "documents") == [0]
    assert matching(catalog, "standing") == []


def test_words_keep_their_order_when_some_also_stand_in_compounds(catalog):
    fill(catalog, "/a", ["Die Frist endet.", "Die Kündigungsfrist endet.", *OTHERS], 0)
    assert sorted(matching(catalog, "Frist")) == [0, 1]


def test_pieces_go_with_their_document(tmp_path):
    path = tmp_path / "store"
    with new_store(path) as store:
        document = memorize(store, "/a", ["上个月郑晓霞在仓库里", *A])
        memorize(store, "/b", ["Die Kündigungsfrist"])
        store.forget([document])
        store.maintain()
        left = store._catalog.db.column("SELECT text FROM piece")
        assert left == [pieces.pieces("Die Kündigungsfrist")]
        assert "郑晓".encode() not in (path / "catalog.sqlite").read_bytes()
        store.compact()
        assert search(store, "Frist", mode="text") == ["Die Kündigungsfrist"]


def test_missing_pieces_are_found_by_check_and_made_by_repair(tmp_path):
    path = tmp_path / "store"
    with new_store(path) as store:
        memorize(store, "/a", ["上个月郑晓霞在仓库里", *A])
    with sqlite3.connect(path / "catalog.sqlite") as db:
        db.execute("DELETE FROM piece")
    db.close()
    report = MemoryStore.check(path)
    assert {damage.part for damage in report.damages} == {"words"}
    MemoryStore.repair(path)
    assert MemoryStore.check(path).damages == []
    with MemoryStore.open(path) as store:
        assert search(store, "郑晓霞", mode="text") == ["上个月郑晓霞在仓库里"]
