"""Where state and sockets live."""

import os
from pathlib import Path

import pytest

from pyxen.paths import SYSTEM_STATE, connect_unix, file_name, find_paths, listen_unix


def test_home_overrides_everything(tmp_path):
    paths = find_paths({"PYXEN_HOME": str(tmp_path), "XDG_STATE_HOME": "/x", "HOME": "/y"})
    assert (paths.state, paths.run) == (tmp_path, tmp_path / "run")


def test_xdg(tmp_path):
    paths = find_paths({"XDG_STATE_HOME": "/x", "XDG_RUNTIME_DIR": str(tmp_path)})
    if paths.state == SYSTEM_STATE:
        pytest.skip("a system xend runs here")
    assert (paths.state, paths.run) == (Path("/x/pyxen"), tmp_path / "pyxen")


@pytest.mark.parametrize("runtime", [None, "relative", "/nowhere/at/all"])
def test_without_a_runtime_directory(runtime):
    environ = {"XDG_STATE_HOME": "/x"} | ({"XDG_RUNTIME_DIR": runtime} if runtime else {})
    paths = find_paths(environ)
    if paths.state == SYSTEM_STATE:
        pytest.skip("a system xend runs here")
    assert paths.run == Path("/x/pyxen/run")


@pytest.mark.parametrize("name", ["a/b", "..", ".", "a\0b", "/", "\n", "ä", "x" * 300, "..%"])
def test_file_names_stay_in_their_directory(name):
    found = file_name(name)
    assert found and "/" not in found and "\0" not in found and not found.startswith(".")
    assert len(found.encode()) <= 200


def test_file_names_differ():
    assert len({file_name(name) for name in ("a/b", "a%2fb", "a b", "a_b")}) == 4


@pytest.mark.parametrize("depth", [1, 4])
def test_sockets_of_any_length(tmp_path, depth):
    directory = tmp_path.joinpath(*["d" * 50] * depth)
    directory.mkdir(parents=True)
    path = directory / "s.sock"
    with listen_unix(path) as listener, connect_unix(path) as client:
        server, _ = listener.accept()
        with server:
            client.sendall(b"x")
            assert server.recv(1) == b"x"
    assert path.stat().st_mode & 0o777 == 0o600
    with listen_unix(path):
        pass


def test_a_socket_that_is_not_there(tmp_path):
    before = os.listdir("/proc/self/fd")
    for name in ("x", "y" * 120):
        with pytest.raises(OSError):
            connect_unix(tmp_path / name)
    assert os.listdir("/proc/self/fd") == before
