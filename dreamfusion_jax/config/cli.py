"""What every `python -m dreamfusion_jax...` shares: how it ends, and where compiled code is kept.

Exit codes: 0 done; 2 bad input and 1 what is no fault of the command's (a prior's files, a full
disk, numbers gone wrong), both told in one line; 130 interrupted by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

from dreamfusion_jax.config import help
from dreamfusion_jax.config.flags import parse_flags
from dreamfusion_jax.runtime import device, oom
from dreamfusion_jax.runtime.errors import RunError, UserError

EXIT_INTERRUPTED = 130

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def run(main: Callable[[], int]) -> None:
    """Parses the flags, runs `main` and exits with its code; bad input ends in one line."""

    def guarded(_: list[str]) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A prompt may hold letters that the terminal's encoding lacks.
            sys.stdout.reconfigure(errors="backslashreplace")
        # Orbax tells of every file it opens; the progress bar is all that a user needs.
        logging.set_verbosity(logging.ERROR)
        # What stops a job on a cluster says no more than Ctrl-C does.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return main()
        except UserError as error:
            return print_error(error)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            return print_error(not_writable(error))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not oom.is_oom(error):
                raise
            return print_error(oom.oom_error(error, "it ran"))
        except KeyboardInterrupt:
            print("\nStopped; the same command goes on from what was saved.", file=sys.stderr)
            return EXIT_INTERRUPTED

    app.run(guarded, flags_parser=_parse)


def use_platform(name: str) -> None:
    """Runs on the platform that `--platform` names.

    Raises:
      UserError: it is not here.
    """
    device.use(name)
    device.require(name)


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in `folder` ("auto": the user's cache folder; "none": nowhere)."""
    if folder == "none":
        return
    if folder == "auto":
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = str(Path(home) / "dreamfusion_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; prints the help where it is asked for. Refuses arguments that are no flags.

    absl's own help would list a command's own module alone, and nothing at all for `-h`.
    """
    if help.is_requested(argv[1:]):
        help.print_text(help.help_text(sys.modules["__main__"].__doc__ or "", flags.FLAGS))
        sys.exit(0)
    try:
        rest = parse_flags(argv)
    except flags.Error as error:
        sys.exit(print_error(UserError(error)))
    except (ValueError, RecursionError) as error:  # absl looks into a --flagfile without care
        sys.exit(print_error(UserError(f"--flagfile cannot be read ({error}).")))
    if len(rest) > 1:
        stray = UserError(f"{rest[1]} is not a flag; write flags as --name=value.")
        sys.exit(print_error(stray))
    return rest


def not_writable(error: OSError) -> RunError:
    """What is said of a disk that takes no more."""
    where = f"{error.filename} " if error.filename else ""
    return RunError(
        f"{where}cannot be written ({error.strerror}); what was saved before is kept: make room, or"
        " mend the permissions, and the same command goes on."
    )


def print_error(error: UserError) -> int:
    """Prints the message in one line, in which nothing that it quotes can command the terminal."""
    line = " ".join(str(error).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"Error: {shown}", file=sys.stderr)
    return error.exit_code
