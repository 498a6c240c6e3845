"""A pytest plugin that points other servers' tests at a server that runs already.

The suites start servers of their own: mlx-lm's in ``setUpClass``, vLLM's through
``RemoteOpenAIServer``; llama.cpp's take one by environment variables. Tests of a project's own
functions are left out, as they ask no server, and a test that takes longer than SECONDS fails.
PEER_URL names the server.
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import types
from unittest.mock import MagicMock
from urllib.parse import urlsplit

import pytest

URL = os.environ["PEER_URL"]
SECONDS = 60  # of one test


class _Anything(types.ModuleType):
    """A module of vLLM, all of whose names are there and do nothing."""

    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (Exception,), {}) if name.endswith("Error") else MagicMock(name=name)
        setattr(self, name, found)
        return found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vllm", "torch") or name == "tests.utils":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Remote(spec.name) if spec.name == "tests.utils" else _Anything(spec.name)

    def exec_module(self, module):
        pass


class RemoteOpenAIServer:
    """What vLLM's tests use of theirs."""

    DUMMY_API_KEY = "none"
    url_root = URL

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def url_for(self, *parts):
        return "/".join([URL, *parts])

    def get_client(self, **kwargs):
        import openai

        given = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, **kwargs}
        return openai.OpenAI(**given)

    def get_async_client(self, **kwargs):
        import openai

        given = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, **kwargs}
        return openai.AsyncOpenAI(**given)


class _Remote(_Anything):
    RemoteOpenAIServer = RemoteOpenAIServer


sys.modules.setdefault("wget", _Anything("wget"))  # llama.cpp's would fetch models with it


if os.environ.get("PEER") == "vllm":
    sys.meta_path.insert(0, _Finder())


def pytest_pycollect_makeitem(collector, name, obj):
    """Let mlx-lm's classes start no server, before their fixtures are made."""
    if os.environ.get("PEER") == "mlx-lm" and "setUpClass" in getattr(obj, "__dict__", ()):
        obj.port = urlsplit(URL).port
        obj.setUpClass = obj.tearDownClass = classmethod(lambda cls: None)


def pytest_collection_modifyitems(config, items):
    peer = os.environ.get("PEER")
    if peer == "mlx-lm":
        asking = [i for i in items if hasattr(i.cls, "port") and "machine" not in i.name]
    elif peer == "vllm":
        asking = [i for i in items if {"client", "server"} & set(i.fixturenames)]
    else:
        return
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    items[:] = asking


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    def late(number, frame):
        raise TimeoutError(f"took longer than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return (yield)
    finally:
        signal.alarm(0)
