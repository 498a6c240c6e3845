"""Nearest neighbours: the exact search is right, the graph nearly, and no file is trusted."""

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3mlx.store import index


def clustered(seed, count, dimensions=32, clusters=60):
    """Unit vectors in clusters, as those of documents are."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((clusters, dimensions))
    vectors = centers[random.integers(0, clusters, count)]
    vectors = vectors + 0.4 * random.standard_normal((count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def saved(path, slots, vectors, *, commit=1, stamp=None):
    slots = np.array(slots, dtype=np.int64)

    def some(wanted):
        places = np.flatnonzero(np.isin(slots, wanted))
        return slots[places], vectors[places]

    return index.save(path, slots, some, vectors.shape[1], commit, stamp)


def exact(where, queries, count):
    """Slots only."""
    return [[slot for _, slot in nearest] for nearest in where.search(queries, count)]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 60), k=st.integers(1, 70), queries=st.integers(1, 5))
def test_exact_search_finds_the_nearest_in_order(count, k, queries):
    vectors, asked = clustered(1, count), clustered(2, queries)
    slots = np.arange(count) * 3 + 1
    found = exact(index.Exact(slots, vectors), asked, k)
    for query, hits in zip(asked, found, strict=True):
        wanted = slots[np.argsort(-(vectors @ query), kind="stable")][:k]
        assert hits == wanted.tolist()


def test_exact_search_in_blocks_is_the_same(monkeypatch):
    vectors, asked = clustered(1, 50), clustered(2, 9)
    where = index.Exact(np.arange(50), vectors)
    whole = exact(where, asked, 4)
    monkeypatch.setattr(index, "_BLOCK", 100)
    assert exact(where, asked, 4) == whole


def test_the_graph_finds_what_the_exact_search_finds(tmp_path):
    vectors, asked = clustered(1, 3000), clustered(2, 100)
    slots = np.arange(3000) * 2 + 5
    stamp = saved(tmp_path / "i", slots, vectors)
    wanted = exact(index.Exact(slots, vectors), asked, 10)
    found = index.Graph(tmp_path / "i", stamp).search(asked, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(wanted, found, strict=True)]
    assert np.mean(shared) / 10 > 0.95


def test_the_graph_leads_to_every_vector(tmp_path):
    vectors = clustered(1, 2000)
    stamp = saved(tmp_path / "i", range(2000), vectors)
    found = index.Graph(tmp_path / "i", stamp).search(vectors, 1)
    assert found == [[slot] for slot in range(2000)]


def test_rounding_hardly_turns_a_vector():
    vectors = clustered(1, 500, dimensions=384)
    turned = index.quantize(vectors).astype(np.float64)
    assert np.abs(turned).max(axis=1).tolist() == [127] * 500
    turned /= np.linalg.norm(turned, axis=1, keepdims=True)
    assert (turned * vectors).sum(axis=1).min() > 0.9995


def test_vectors_are_kept_as_bytes_on_every_machine(tmp_path):
    vectors = clustered(1, 20)
    saved(tmp_path / "i", range(20), vectors)
    data = (tmp_path / "i").read_bytes()
    assert all(vector.tobytes() in data for vector in index.quantize(vectors))


def test_asking_for_more_than_there_is_gives_what_there_is(tmp_path):
    stamp = saved(tmp_path / "i", [0, 4, 9], clustered(1, 3))
    found = index.Graph(tmp_path / "i", stamp).search(clustered(2, 2), 50)
    assert [sorted(hits) for hits in found] == [[0, 4, 9], [0, 4, 9]]


def test_added_vectors_join_the_file(tmp_path):
    vectors = clustered(1, 300)
    first = saved(tmp_path / "i", range(200), vectors[:200])
    second = saved(tmp_path / "i", range(300), vectors, commit=2, stamp=first)
    assert second.commit == 2
    found = index.Graph(tmp_path / "i", second).search(vectors, 1)
    assert np.mean([hits == [slot] for slot, hits in enumerate(found)]) > 0.99


def test_removed_vectors_leave_no_bytes(tmp_path):
    vectors = clustered(1, 200)
    first = saved(tmp_path / "i", range(200), vectors)
    second = saved(tmp_path / "i", range(100), vectors[:100], stamp=first)
    data = (tmp_path / "i").read_bytes()
    assert not any(vector.tobytes() in data for vector in index.quantize(vectors[100:]))
    found = index.Graph(tmp_path / "i", second).search(vectors[:100], 1)
    assert np.mean([hits == [slot] for slot, hits in enumerate(found)]) > 0.99


def test_a_file_that_is_not_the_sealed_one_is_never_opened(tmp_path):
    path = tmp_path / "i"
    stamp = saved(path, range(50), clustered(1, 50))
    good = path.read_bytes()
    random = np.random.default_rng(0)
    bad = [b"", good[:100], good[:-1], good + b"\0", os.urandom(len(good))]
    for offset in random.integers(0, len(good), 40):
        flipped = bytearray(good)
        flipped[offset] ^= 1 << int(random.integers(8))
        bad.append(bytes(flipped))
    for data in bad:
        path.write_bytes(data)
        with pytest.raises(index.StaleIndex):
            index.Graph(path, stamp)
    path.write_bytes(good)
    index.Graph(path, stamp)
    with pytest.raises(index.StaleIndex):
        index.Graph(path, replace(stamp, sha256="0" * 64))
    path.unlink()
    with pytest.raises(index.StaleIndex):
        index.Graph(path, stamp)


def test_a_damaged_file_is_built_anew(tmp_path):
    path, vectors = tmp_path / "i", clustered(1, 60)
    first = saved(path, range(50), vectors[:50])
    path.write_bytes(path.read_bytes()[:-200] + os.urandom(200))
    second = saved(path, range(60), vectors, stamp=first)
    found = index.Graph(path, second).search(vectors, 1)
    assert np.mean([hits == [slot] for slot, hits in enumerate(found)]) > 0.95


def test_a_file_is_hashed_once_and_again_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "i"
    stamp = saved(path, range(50), clustered(1, 50))
    hashed, real = [], index._hash
    monkeypatch.setattr(index, "_hash", lambda data: hashed.append(1) or real(data))
    index.Graph(path, stamp)
    index.Graph(path, stamp)
    assert len(hashed) == 2  # it is so young that a change might not show in its times
    monkeypatch.setattr(index, "_SETTLED", -1)
    for _ in range(3):
        index.Graph(path, stamp)
    assert len(hashed) == 3
    os.utime(path, (1, 1))
    index.Graph(path, stamp)
    assert len(hashed) == 4
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(index.StaleIndex):
        index.Graph(path, stamp)


def test_an_open_index_survives_its_replacement(tmp_path):
    path, vectors = tmp_path / "i", clustered(1, 400)
    first = saved(path, range(400), vectors)
    graph = index.Graph(path, first)
    before = graph.search(vectors[:20], 5)
    saved(path, range(10), vectors[:10], stamp=first)
    assert graph.search(vectors[:20], 5) == before


def test_the_file_is_private(tmp_path):
    saved(tmp_path / "i", [1], clustered(1, 1))
    assert (tmp_path / "i").stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["i"]


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf, 1.01, -0.99])
def test_only_finite_vectors_of_length_one_are_unit(bad):
    vectors = np.eye(4, dtype=np.float32)
    assert index.are_unit(vectors)
    assert index.are_unit(vectors * 1.0005)
    vectors[2, 2] = bad
    assert not index.are_unit(vectors)
