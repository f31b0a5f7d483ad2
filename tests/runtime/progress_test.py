import io

import pytest

from dreamfusion_jax.runtime import progress
from dreamfusion_jax.runtime.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_lines_with_speed_and_remaining_time(clock, capsys):
    with Progress(1000, "compiling", "step", first=100) as bar:
        clock[0] += 60.0
        bar.begin("optimizing")  # what compiling took is no part of the speed
        bar.update()
        for step in range(102, 1001):
            bar.tell(opacity=f"{step / 1000:.2f}")
            clock[0] += 0.25 if step < 301 else 2.0
            bar.update()
        bar.write("Done.")
    stdout, shown = capsys.readouterr()
    lines = shown.splitlines()
    assert "\r" not in shown and stdout == "Done.\n"
    assert lines[:3] == [
        "compiling ...",
        "optimizing ...",
        "optimizing: step 221/1000  opacity 0.22  4.0 steps/s  3 min 13 s left",
    ]
    assert "optimizing: step 336/1000  opacity 0.34  2.0 s a step  22 min 8 s left" in lines
    assert lines[-1] == "optimizing: step 1000/1000  opacity 1.00  took 25 min 10 s"


def test_a_bar_that_does_not_stay_prints_nothing_in_a_log(clock, capsys):
    with Progress(9, "rendering", "tile", patience_s=2.0, leave=False) as bar:
        for _ in range(9):
            clock[0] += 3.0
            bar.update()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("shown", [True, False])
def test_on_a_terminal_there_is_one_bar(monkeypatch, shown):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(3, "optimizing", "step", shown=shown) as bar:
        bar.tell(opacity="0.21", residual="0.93")
        for _ in range(3):
            bar.update()
    text = terminal.getvalue()
    assert text.count("\n") == shown and ("\r" in text) == shown
    last = text.split("\r")[-1]
    assert ("3/3" in last and "opacity=0.21, residual=0.93" in last and "step/s" in last) == shown


def test_a_bar_that_is_not_shown_prints_nothing(clock, capsys):
    with Progress(1, "optimizing", "step", shown=False) as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
