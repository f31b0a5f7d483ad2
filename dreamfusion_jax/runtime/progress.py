"""Shows how far a long job is: a bar on a terminal or in a notebook, a line at intervals elsewhere.

A bar returns to the start of its line. Where that is not possible, as in a pipe, under nohup or in
a cluster's logs, separate lines are printed:

  optimizing: step 300/1000  opacity 0.21  residual 0.93  4.6 steps/s  2 min 30 s left
"""

from __future__ import annotations

import sys
import threading
import time
import warnings
from typing import Self

from dreamfusion_jax.runtime import process

with warnings.catch_warnings():
    # Without ipywidgets a notebook shows the bar as text, which needs no warning.
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

LINE_EVERY_S = 30.0


class _Bar(tqdm):
    """A bar for the threads of one process.

    tqdm's own lock, for several processes, is reported as leaked by Python 3.14 where a process
    ends at once.
    """


_Bar.set_lock(threading.RLock())


class _WithBar:
    """What shows a bar until it is closed, or until the end of its `with`."""

    _bar: _Bar

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress(_WithBar):
    """Counts the finished units of a job and shows them. Close it, or use `with`.

    Args:
      total: number of units.
      what: what is being done.
      unit: the name of one unit.
      first: number of units done before.
      patience_s: seconds before anything is shown.
      leave: whether the last output stays at the end.
      shown: whether anything is shown at all.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        *,
        first: int = 0,
        patience_s: float = 0.0,
        leave: bool = True,
        shown: bool = True,
    ) -> None:
        self._total, self._unit, self._done = total, unit, first
        self._leave, self._lines = leave, shown and not has_cursor()
        self._numbers: dict[str, str] = {}
        self._bar = _Bar(
            total=total,
            initial=first,
            desc=what,
            unit=unit,
            delay=patience_s,
            leave=leave,
            dynamic_ncols=True,
            disable=not shown or self._lines,
        )
        self._started = time.monotonic()
        self.begin(what, announce=patience_s == 0.0)

    def begin(self, what: str, announce: bool = True) -> None:
        """Starts another phase of the job: its description, and the time its speed counts from."""
        self._what = what
        self._line_at, self._line_done = time.monotonic(), self._done
        self._bar.set_description(what, refresh=announce)
        if self._lines and announce:
            _print(f"{what} ...")

    def tell(self, **numbers: str) -> None:
        """Sets the numbers that are shown with the progress from now on."""
        self._numbers = numbers
        self._bar.set_postfix(numbers, refresh=False)

    def update(self) -> None:
        """Counts one more unit as done."""
        self._done += 1
        self._bar.update()
        if not self._lines:
            return
        now, ended = time.monotonic(), self._done >= self._total
        if ended and self._leave:
            _print(self._line(f"took {duration(now - self._started)}"))
        elif not ended and now - self._line_at >= LINE_EVERY_S:
            rate = (self._done - self._line_done) / (now - self._line_at)
            left = (self._total - self._done) / rate
            _print(self._line(_speed(rate, self._unit), f"{duration(left)} left"))
            self._line_at, self._line_done = now, self._done

    def write(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._lines:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def _line(self, *ends: str) -> str:
        numbers = (f"{name} {value}" for name, value in self._numbers.items())
        return "  ".join(
            [f"{self._what}: {self._unit} {self._done}/{self._total}", *numbers, *ends]
        )


class Stopwatch(_WithBar):
    """Shows how long a job takes of which nobody knows how far it is. Use `with`; tick often.

    Args:
      what: what is being done.
      patience_s: seconds before anything is shown.
    """

    def __init__(self, what: str, *, patience_s: float = 0.0) -> None:
        self._what, self._patience_s, self._lines = what, patience_s, not has_cursor()
        self._started = self._line_at = time.monotonic()
        self._bar = _Bar(
            desc=what,
            bar_format="{desc}: {elapsed}",
            delay=1e-9 + patience_s,  # shown by `tick` alone
            leave=False,
            disable=self._lines,
        )

    def tick(self) -> None:
        """Shows the time, where it is time to."""
        now = time.monotonic()
        if not self._lines and now - self._started >= self._patience_s:
            self._bar.refresh()
        elif self._lines and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            _print(f"{self._what}: {duration(now - self._started)} so far")


def _print(line: str) -> None:
    if process.is_usable(sys.stderr):
        print(line, file=sys.stderr, flush=True)


def has_cursor() -> bool:
    """Returns whether stderr can return to the start of a line: a terminal, or a notebook."""
    return (process.is_usable(sys.stderr) and sys.stderr.isatty()) or _in_notebook()


def _in_notebook() -> bool:
    """Returns whether this is a notebook, by the check that tqdm makes."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def _speed(rate: float, unit: str) -> str:
    return f"{rate:.1f} {unit}s/s" if rate >= 1.0 else f"{1.0 / rate:.1f} s a {unit}"


def duration(seconds: float) -> str:
    """Formats seconds in the two largest units that apply."""
    whole = round(seconds)
    for unit, next_unit, length, parts in (("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // parts} {next_unit}"
    return f"{whole} s"
