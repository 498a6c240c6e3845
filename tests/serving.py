"""A server in the test's own process, with tiny models, on a real port."""

import contextlib
import json
import threading
import time

import httpx
import tiny

from m3mlx import Assistant
from m3mlx.serve import http, listening, prepare
from m3mlx.serve.app import Server
from m3mlx.serve.guard import Guard, Roots
from m3mlx.serve.owner import Owner


class Running:
    """A server that answers.

    Attributes:
        url: where.
        owner: its owner.
        client: asks it.
    """

    def __init__(self, url, owner, server):
        self.url, self.owner, self.server = url, owner, server
        self.client = httpx.Client(base_url=url, timeout=120)

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def names(self):
        return [document["path"] for document in self.client.get("/v1/memories").json()["data"]]


def tiny_assistant(world, store, **options):
    return Assistant(str(world / "decoder"), store, encoder=str(world / "encoder"), **options)


def tiny_world(folder):
    """Tiny models in a folder; the decoder is one of those that need no calibration."""
    tiny.save_model(folder / "decoder")
    (folder / "decoder" / "memory.json").write_text(json.dumps({"memory_layers": [0, 1]}))
    tiny.save_encoder(folder / "encoder")
    return folder


@contextlib.contextmanager
def running_http(make, app, *, waiting=16):
    """An application of an owner on a free port, until the block ends: its address, and the owner.

    Args:
        app: makes the application of the owner.
    """
    owner = Owner(make, waiting)
    listener = listening("127.0.0.1", 0)
    owner.start(prepare)
    server = http(app(owner))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", owner
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        owner.stop()


@contextlib.contextmanager
def serving(make, *, waiting=16, roots=(), collection=None, **guard):
    """The whole server, until the block ends."""
    made = []

    def app(owner):
        names = {"model": "decoder", "encoder": "encoder"}
        within = {"roots": Roots(roots), "collection": collection}
        made.append(Server(owner, **names, **within, guard=Guard(**guard)))
        return made[0].app()

    with running_http(make, app, waiting=waiting) as (url, owner):
        yield Running(url, owner, made[0])


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
