"""Many clients at once: patient, hasty and gone; nothing fails and memory does not grow."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest
from serving import serving, tiny_assistant, tiny_world, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import load


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    with serving(lambda: tiny_assistant(world, world / "store"), waiting=100) as running:
        running.post("/v1/memories", text="The blue boat lies at pier nine.", name="boat")
        yield running


def check(server, clients, seconds):
    outcomes = asyncio.run(load.crowd(server.url, clients, seconds, os.getpid(), tokens=8))
    assert outcomes.failed == {}
    assert sum(outcomes.counts.values()) >= clients
    wait_until(lambda: server.thread.pending() == 0)
    kept = server.endpoints.conversations
    assert kept.nbytes <= kept.limit
    assert threading.active_count() < 50
    said = [{"role": "user", "content": "Where does the boat lie?"}]
    assert server.post("/v1/chat/completions", messages=said, max_tokens=2).status_code == 200
    return outcomes


def test_a_dozen_clients(server, monkeypatch):
    monkeypatch.setattr(load, "HALF", 0.5)
    outcomes = check(server, clients=12, seconds=2)
    assert set(load.ANSWERS) & set(outcomes.seconds) and min(outcomes.memory) > 0


def test_what_fails_or_is_refused_is_told(server, monkeypatch):
    monkeypatch.setattr(load, "HALF", 0.1)
    monkeypatch.setattr(server.thread, "waiting", 0)
    outcomes = asyncio.run(load.crowd(server.url, 8, 1))
    assert any(how.endswith(": 503") for how in outcomes.failed)


@pytest.mark.slow
def test_fifty_clients_and_memory_stays(server):
    first = check(server, clients=50, seconds=60)
    again = check(server, clients=50, seconds=60)
    assert {kind for kind, _ in again.counts} == set(load.WEIGHTS)
    assert max(again.memory) - max(first.memory) < 300_000_000
    assert again.quantiles(load.CHEAP)[1] < 5
