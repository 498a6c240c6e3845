"""A server in the test's own process, with tiny models, on a real port."""

import atexit
import contextlib
import functools
import json
import shutil
import tempfile
import threading
import time
from pathlib import Path

import httpx
import tiny

from m3mlx import Assistant
from m3mlx.serve import http_server, listen, prepare
from m3mlx.serve.app import Endpoints
from m3mlx.serve.guard import Guard, Roots
from m3mlx.serve.model_thread import ModelThread


class Running:
    """A server that answers.

    Attributes:
        url: where.
        thread: its model thread.
        endpoints: its state.
        client: asks it.
    """

    def __init__(self, url, thread, endpoints):
        self.url, self.thread, self.endpoints = url, thread, endpoints
        self.client = httpx.Client(base_url=url, timeout=120)

    def post(self, path, **body):
        return self.client.post(path, json=body)

    def names(self):
        return [document["path"] for document in self.client.get("/v1/memories").json()["data"]]


def tiny_assistant(world, store, **options):
    return Assistant(str(world / "decoder"), store, encoder=str(world / "encoder"), **options)


def tiny_world(folder):
    """Tiny models in a folder; the decoder is one of those that need no calibration."""
    for name, path in _models().items():
        shutil.copytree(path, folder / name)
    return folder


@functools.cache
def _models():
    """The folders of the models, made once in a process."""
    made = Path(tempfile.mkdtemp(prefix="m3mlx-tiny-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    tiny.save_model(made / "decoder")
    (made / "decoder" / "memory.json").write_text(json.dumps({"memory_layers": [0, 1]}))
    tiny.save_encoder(made / "encoder")
    return {path.name: path for path in made.iterdir()}


@contextlib.contextmanager
def running_http(make, app, *, waiting=16):
    """An application on a free port, until the block ends: its address, and the model thread.

    Args:
        app: makes the application of the thread.
    """
    model_thread = ModelThread(make, waiting)
    listener = listen("127.0.0.1", 0)
    model_thread.start(prepare)
    server = http_server(app(model_thread))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", model_thread
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        model_thread.stop()


@contextlib.contextmanager
def serving(make, *, waiting=16, roots=(), collection=None, **guard):
    """The whole server, until the block ends."""
    made = []

    def app(thread):
        names = {"model": "decoder", "encoder": "encoder"}
        within = {"roots": Roots(roots), "collection": collection}
        made.append(Endpoints(thread, **names, **within, guard=Guard(**guard)))
        return made[0].app()

    with running_http(make, app, waiting=waiting) as (url, thread):
        yield Running(url, thread, made[0])


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
