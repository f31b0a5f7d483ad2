"""xatlas in a process of its own: it can be ended, it may crash or be missing, and it is light."""

import ast
import importlib.util
import os
import signal
import threading
import time

import numpy as np
import pytest
import trimesh

from dreamfusion_jax.runs import unwrapping
from dreamfusion_jax.runtime import process, progress

BALL = trimesh.creation.icosphere(subdivisions=2)


def child(tmp_path, monkeypatch, source: str) -> None:
    """Puts another program in the place of the one that calls xatlas."""
    (tmp_path / "child.py").write_text(source)
    monkeypatch.setattr(unwrapping, "_CHILD", tmp_path / "child.py")


def assert_unwrapped(unwrapped) -> None:
    source, faces, uv = unwrapped
    np.testing.assert_array_equal(source[faces], BALL.faces)
    assert uv.shape == (len(source), 2) and uv.min() >= 0.0 and uv.max() <= 1.0


def test_xatlas_unwraps_in_silence(capfd):
    assert_unwrapped(unwrapping.unwrap(BALL, 128))
    assert capfd.readouterr() == ("", "")


def test_a_child_that_is_slow_to_start_gets_all_of_a_large_surface(tmp_path, monkeypatch, capsys):
    real, large = unwrapping._CHILD, trimesh.creation.icosphere(subdivisions=4)
    slow = f"import runpy, time; time.sleep({3 * unwrapping._TICK_S})\n"
    child(tmp_path, monkeypatch, slow + f"runpy.run_path({str(real)!r}, run_name='__main__')")
    source, faces, _ = unwrapping.unwrap(large, 128)
    np.testing.assert_array_equal(source[faces], large.faces)
    assert capsys.readouterr().err == ""


def test_the_child_imports_neither_jax_nor_the_package():
    tree = ast.parse(unwrapping._CHILD.read_text())
    imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert imports <= {"ctypes", "io", "os", "signal", "sys", "numpy", "xatlas"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_child_within_seconds(number, tmp_path, monkeypatch):
    """The child hears none itself, as in a call of native code."""
    ignoring = (
        "import os, pathlib, signal, sys, time; sys.stdin.buffer.read()\n"
        "[signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    child(tmp_path, monkeypatch, ignoring)
    before = [(n, signal.getsignal(n)) for n in process.stop_signals()]
    process.raise_on_signals()

    def send():
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            unwrapping.unwrap(BALL, 128)
        assert time.monotonic() - started < 20
    finally:
        sender.join()
        for n, handler in before:
            signal.signal(n, handler)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by signal 11"),
        ("raise MemoryError('no room')", "MemoryError: no room"),
        ("import no_such_library", "No module named 'no_such_library'"),
    ],
    ids=["crash", "error", "import"],
)
def test_a_child_that_fails_costs_sharpness_alone(source, reason, tmp_path, monkeypatch, capsys):
    child(tmp_path, monkeypatch, source)
    assert_unwrapped(unwrapping.unwrap(BALL, 128))
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and f"xatlas failed ({'it was ' * ('signal' in reason)}" in note
    assert reason in note and "less sharp" in note and "--mesh_faces" in note


def test_without_xatlas_the_note_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert_unwrapped(unwrapping.unwrap(BALL, 128))
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and "pip install xatlas" in note and "seams" in note


def test_a_long_unwrapping_shows_that_it_goes_on(tmp_path, monkeypatch, capsys):
    child(tmp_path, monkeypatch, "import time; time.sleep(1.5); raise SystemExit(1)")
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.4)
    unwrapping.unwrap(BALL, 128)
    assert "unwrapping 320 triangles: 1 s so far" in capsys.readouterr().err
