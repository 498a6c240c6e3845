"""What says the same as a better hit leaves its place to what says something else."""

import numpy as np
import pytest
from small_store import memorize, new_store, vector

from m3mlx.store import Stores

TEXT = (
    "The garden pump is switched on in April and switched off in October. It stands in the shed "
    "behind the house, beside the barrels, and its key hangs at the door of the cellar."
)
QUOTED = "> " + "\n> ".join(TEXT[at : at + 30] for at in range(0, len(TEXT), 30))
OTHERS = ["The seal of the garden pump was replaced.", "A garden hose.", "A pump for the boat."]


@pytest.fixture
def found(tmp_path):
    """A function from texts to those of the first hits."""

    def first(texts, k=5, query="garden pump", mode="text"):
        with new_store(tmp_path / str(len(texts))) as store:
            memorize(store, "/all", texts)
            searched = Stores([(store, None)])
            (hits,) = searched.search(np.stack([vector(query)]), [query], k, mode)
        return [hit.text for hit in hits]

    return first


@pytest.mark.parametrize("copy", [TEXT, TEXT.upper(), QUOTED, TEXT[: len(TEXT) * 2 // 3]])
@pytest.mark.parametrize("mode", ["text", "dense", "hybrid"])
def test_copies_take_one_place(found, copy, mode):
    hits = found([TEXT, *[copy] * 40, *OTHERS], k=5, mode=mode)
    assert set(OTHERS) <= set(hits)


def test_copies_fill_the_places_that_nothing_else_takes(found):
    assert found([TEXT] * 3 + OTHERS[:1], k=5) == [OTHERS[0], TEXT, TEXT, TEXT]
    assert len(found([TEXT] * 9, k=5)) == 5


def test_of_editions_with_other_numbers_two_are_found_first(found):
    editions = [f"{TEXT} It was checked on {day} May." for day in range(1, 8)]
    hits = found(editions + OTHERS, k=5)
    assert sum(hit.startswith(TEXT) for hit in hits) == 2 and set(OTHERS) < set(hits)


def test_texts_of_one_form_with_other_names_are_no_copies(found):
    names = ["Ada Quill", "Jo Lark", "Gus Reed", "Ina Moss", "Tom Ash", "Eva Dell"]
    forms = [f"The pump at {name[-4:]} was serviced by {name} in the spring." for name in names]
    assert sorted(found([*forms, TEXT], k=6, query="pump serviced spring")) == sorted(forms)


def test_copies_without_spaces_between_words(found):
    text = "这台打印机由王小明在去年春天修理完毕放在仓库里等待取走"
    other = "仓库里的洗衣机坏了"
    hits = found([text, text + "。", f"“{text}”", other], k=2, query="仓库里", mode="text")
    assert other in hits


def test_a_copy_that_is_cut_at_other_places_is_no_new_text(found):
    words = TEXT.split()
    halves, shifted = [" ".join(words[:17]), " ".join(words[17:])], " ".join(words[4:30])
    hits = found([*halves, shifted, OTHERS[0]], k=3, query="garden pump shed house seal")
    assert OTHERS[0] in hits and not {shifted, *halves} <= set(hits)
