"""The commands serve and mcp: what they refuse, and a process from start to end."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from serving import tiny_world

from m3mlx.cli import main
from m3mlx.documents import find

ROOT = Path(__file__).parents[1]
TOKEN = "nine brass buttons"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    world = tiny_world(tmp_path_factory.mktemp("world"))
    (world / "short").write_text("short\n")
    (world / "blank").write_text("")
    (world / "token").write_text(f"{TOKEN}\n")
    return world


def environment(world, tmp_path, **more):
    return {
        **os.environ,
        "M3MLX_HOME": str(tmp_path / "home"),
        "M3MLX_MODEL": str(world / "decoder"),
        "M3MLX_STORE": str(tmp_path / "store"),
        **more,
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("serve --host 0.0.0.0", "a token is needed"),
        ("serve --host :: --token-file {world}/blank", "cannot be read"),
        ("serve --host 192.168.1.9", "a token is needed"),
        ("mcp --http --host 0.0.0.0", "a token is needed"),
        ("serve --token-file {world}/short", "at least 16"),
        ("serve --token-file {world}/none", "cannot be read"),
        ("serve --root {world}/none", "no folder"),
        ("mcp --root {world}/none", "no folder"),
        ("serve --host nowhere.invalid --token-file {world}/token", "cannot listen"),
        ("serve --port {taken}", "cannot listen"),
        ("serve --model /nowhere/model --port 0", "/nowhere/model"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(world, tmp_path, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        given = arguments.format(world=world, taken=port).split()
        result = CliRunner().invoke(main, given, env=environment(world, tmp_path))
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and re.search(words, line) and "bug" not in line


@pytest.mark.parametrize(
    "arguments", ["--port 99999", "--port x", "--queue 0", "--max-upload x", "--cache-size -1"]
)
def test_wrong_flags_end_with_2(world, tmp_path, arguments):
    result = CliRunner().invoke(main, ["serve", *arguments.split()])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command, library, extra", [("serve", "uvicorn", "serve"), ("mcp", "mcp", "mcp")]
)
def test_a_missing_extra_is_named(command, library, extra):
    code = (
        f"import sys\nsys.modules[{library!r}] = None\n"
        f"from m3mlx.cli import main\nmain([{command!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and f"pip install 'm3mlx[{extra}]'" in done.stderr, done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_very_beginning_ends_a_server_too(world, tmp_path, number):
    models = f"{str(world / 'decoder')!r}, {str(tmp_path / 'store')!r}"
    code = f"""
import os, socket
from m3mlx import Assistant
from m3mlx.serve import Settings, serve
make = lambda: Assistant({models}, encoder={str(world / "encoder")!r})
def started(address):
    socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))).close()
    os.kill(os.getpid(), {int(number)})
serve(make, Settings(port=0), started)
print("ended", flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(world, tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


def test_a_process_serves_the_page_and_ends_when_told(world, tmp_path):
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "m3mlx", "serve", "--port", "0"),
            *("--encoder", str(world / "encoder")),
        ],
        env=environment(world, tmp_path, M3MLX_TOKEN=TOKEN),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        with httpx.Client(base_url=address, timeout=60) as client:
            page = client.get("/")
            assert "<title>m3mlx</title>" in page.text
            for name in re.findall(r'(?:href|src)="(page\.\w+)"', page.text):
                assert client.get(f"/{name}").status_code == 200
            assert not re.search(r"https?://", page.text)
            assert client.get("/v1/memories").status_code == 401
            mine = {"authorization": f"Bearer {TOKEN}"}
            done = client.post("/v1/memories", json={"text": "A kite."}, headers=mine)
            assert done.json()["references"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read() == "" and "Traceback" not in process.stderr.read()
    finally:
        process.kill()
    assert list(find([tmp_path / "store"])) == []  # its files are no documents
