"""Many clients at once: patient, slow and gone; nothing is lost and memory does not grow."""

import asyncio
import json
import random
import threading

import httpx
import pytest
from serving import serving, tiny_assistant, tiny_world, wait_until


def resident():
    """Bytes of memory that this process holds."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("VmRSS"))
    except OSError:
        pytest.skip("needs /proc to see the process's memory")
    return int(line.split()[1]) * 1024


def body(number, **more):
    said = f"Client {number} asks where the boat lies, and why."
    return {"messages": [{"role": "user", "content": said}], "max_tokens": 8, **more}


async def client(http, number, kind, outcomes):
    """One client of some kind; notes what became of its request."""
    for _ in range(200):
        try:
            if kind == "whole":
                answer = await http.post("/v1/chat/completions", json=body(number))
                if answer.status_code == 200:
                    assert answer.json()["usage"]["completion_tokens"] >= 0
                    outcomes.append((number, "answered"))
                    return
            else:
                request = body(number, stream=True, max_tokens=60 if kind == "gone" else 8)
                async with http.stream("POST", "/v1/chat/completions", json=request) as answer:
                    if answer.status_code == 200:
                        lines = answer.aiter_lines()
                        await anext(lines)
                        if kind == "gone":
                            outcomes.append((number, "gone"))
                            return
                        events = []
                        async for line in lines:
                            events += [line] if line else []
                            await asyncio.sleep(0.02 if kind == "slow" else 0)
                        assert events[-1] == "data: [DONE]" and "error" not in events[-2]
                        assert json.loads(events[-2][6:])["choices"][0]["finish_reason"]
                        outcomes.append((number, "answered"))
                        return
            assert answer.status_code == 503 and answer.headers["retry-after"]
        except httpx.ReadError:  # the server has as many connections as it takes
            pass
        await asyncio.sleep(random.random() / 4)
    raise AssertionError(f"client {number} was never let in")


def crowd(url, count):
    """So many clients at the same time, a third of each kind."""
    outcomes = []

    async def main():
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
            kinds = ("whole", "slow", "gone")
            await asyncio.gather(*(client(http, n, kinds[n % 3], outcomes) for n in range(count)))

    asyncio.run(main())
    return outcomes


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    with serving(lambda: tiny_assistant(world, world / "store"), waiting=8) as running:
        running.post("/v1/memories", text="The blue boat lies at pier nine.", name="boat")
        yield running


def check(server, count):
    outcomes = crowd(server.url, count)
    assert sorted(number for number, _ in outcomes) == list(range(count))  # nobody was lost
    assert sum(what == "answered" for _, what in outcomes) >= count * 2 // 3
    wait_until(lambda: server.thread.pending() == 0)
    kept = server.endpoints.conversations
    assert kept.nbytes <= kept.limit
    assert threading.active_count() < 50
    whole = server.post("/v1/chat/completions", **body(0))
    assert whole.status_code == 200


def test_a_few_dozen_clients(server):
    check(server, 24)


@pytest.mark.slow
def test_hundreds_of_clients_and_memory_stays(server):
    check(server, 60)
    before = resident()
    check(server, 300)
    assert resident() - before < 300_000_000
