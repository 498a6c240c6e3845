"""The model thread: order, a bound, readers between a writer's batches, and giving up."""

import asyncio
import threading
import time
from functools import partial

import pytest
from serving import tiny_assistant, tiny_world

from m3mlx import serve
from m3mlx.errors import M3Error, StoreError
from m3mlx.memorize.run import BATCH
from m3mlx.serve import documents
from m3mlx.serve.errors import FullError
from m3mlx.serve.model_thread import ModelThread


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def thread(world, tmp_path):
    thread = ModelThread(lambda: tiny_assistant(world, tmp_path / "store"), waiting=3)
    thread.start(lambda assistant: None)
    yield thread
    thread.stop()


def count_forever(begun, gate, ended):
    """A task that yields numbers until nobody wants more."""

    def task(assistant, job):
        begun.set()
        gate.wait(20)
        try:
            for number in range(10**9):
                yield number
                time.sleep(0.001)
        finally:
            ended.set()

    return task


def events(count):
    return [threading.Event() for _ in range(count)]


def test_tasks_are_done_in_order_on_one_thread_with_one_assistant(thread):
    async def main():
        def task(assistant):
            return threading.get_ident(), id(assistant)

        return await asyncio.gather(*(thread.call(task) for _ in range(3)))

    calls = asyncio.run(main())
    assert len(set(calls)) == 1 and calls[0][0] != threading.get_ident()


def test_more_tasks_than_may_wait_are_refused_and_room_is_free_when_one_leaves(thread):
    async def main():
        begun, gate, ended = events(3)
        steps = thread.stream(count_forever(begun, gate, ended))
        first = asyncio.ensure_future(anext(steps))
        await asyncio.to_thread(begun.wait, 20)
        waiting = [asyncio.ensure_future(thread.call(id)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(FullError, match="3 requests wait"):
            await thread.call(lambda assistant: None)
        waiting[0].cancel()
        await asyncio.sleep(0.05)
        last = asyncio.ensure_future(thread.call(lambda assistant: "last"))
        gate.set()
        assert await first == 0
        await steps.aclose()  # now the thread is free for the others
        assert await last == "last"
        assert ended.is_set()
        async with asyncio.timeout(20):
            while thread.pending():  # a result arrives before its task has left
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_task_ends_soon_after_its_client_has_left(thread):
    async def main():
        begun, gate, ended = events(3)
        gate.set()
        async for number in thread.stream(count_forever(begun, gate, ended)):
            if number == 5:
                break
        await asyncio.to_thread(ended.wait, 20)
        assert ended.is_set()

    asyncio.run(main())


def test_errors_reach_the_client_and_the_thread_goes_on(thread):
    def wrong(assistant):
        raise StoreError("this is wrong")

    async def main():
        with pytest.raises(StoreError, match="this is wrong"):
            await thread.call(wrong)
        with pytest.raises(ZeroDivisionError):
            await thread.call(lambda assistant: 1 / 0)
        assert await thread.call(lambda assistant: 7) == 7

    asyncio.run(main())


def test_what_fails_at_the_start_is_told(world, tmp_path):
    def wrong(assistant):
        raise M3Error("no such model")

    with pytest.raises(M3Error, match="no such model"):
        ModelThread(lambda: tiny_assistant(world, tmp_path / "store")).start(wrong)


def long_text(batches):
    """A text of more than so many batches of references, each a line."""
    return "\n\n".join(f"Paragraph {n}: " + "word " * 24 for n in range(BATCH * batches)).encode()


def memorize(name, content):
    return partial(documents.memorize, contents={name: content})


def test_readers_are_answered_between_the_batches_of_a_writer(thread):
    async def main():
        seen = []
        async for event in thread.stream(memorize("text:long", long_text(2)), writes=True):
            if event.get("progress") == "memorizing" and 0 < event["done"] < event["total"]:
                listed = await thread.call(documents.list_documents)  # while the writer goes on
                seen.append([document["state"] for document in listed])
        assert event["added"] == ["text:long"] and event["references"] > 2 * BATCH
        assert ["partial"] in seen
        assert [one["state"] for one in await thread.call(documents.list_documents)] == ["cold"]

    asyncio.run(main())


def test_of_an_upload_that_is_given_up_nothing_stays(thread):
    async def main():
        results = thread.stream(memorize("upload:long.txt", long_text(2)), writes=True)
        async for event in results:
            if event.get("done", 0) > 0:
                break
        await results.aclose()
        assert await thread.call(documents.list_documents, writes=True) == []  # behind the writer

    asyncio.run(main())


def test_stopping_gives_up_what_is_being_done(world, tmp_path):
    thread = ModelThread(lambda: tiny_assistant(world, tmp_path / "store"))
    thread.start(lambda assistant: None)
    begun, gate, ended = events(3)
    gate.set()

    async def main():
        steps = thread.stream(count_forever(begun, gate, ended))
        await anext(steps)
        await asyncio.to_thread(thread.stop)
        assert ended.is_set()
        await steps.aclose()

    asyncio.run(main())


def test_memories_are_written_while_nothing_is_asked_and_requests_go_first(
    world, tmp_path, monkeypatch
):
    monkeypatch.setattr("m3mlx.serve.model_thread.QUIET", 0.05)
    thread = ModelThread(
        lambda: tiny_assistant(world, tmp_path / "store"), idle=serve._write_memories
    )
    thread.start(lambda assistant: None)

    async def main():
        async for _ in thread.stream(memorize("text:long", long_text(1)), writes=True):
            pass
        seen = []
        end = time.monotonic() + 60
        while (state := await thread.call(documents.status))["cold"]:  # answered meanwhile
            seen.append(state["cold"])
            assert time.monotonic() < end
            await asyncio.sleep(0.2)
        assert seen[0] > 1 and seen == sorted(seen, reverse=True)
        assert [one["state"] for one in await thread.call(documents.list_documents)] == ["warm"]

    try:
        asyncio.run(main())
    finally:
        thread.stop()


def test_idle_work_that_fails_ends_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr("m3mlx.serve.model_thread.QUIET", 0.01)
    tried = threading.Event()

    def work(assistant):
        tried.set()
        raise StoreError("busy")
        yield

    thread = ModelThread(lambda: tiny_assistant(world, tmp_path / "store"), idle=work)
    thread.start(lambda assistant: None)
    try:
        assert tried.wait(20)
        assert asyncio.run(thread.call(lambda assistant: 7)) == 7
    finally:
        thread.stop()
