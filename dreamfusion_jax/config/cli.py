"""What all commands share: parsing, errors and exit codes, the platform, the compilation cache.

Exit codes: 0 done; 2 bad input; 1 any other fault (a prior's files, a full disk, non-finite
numbers); 130 interrupted by Ctrl-C, SIGTERM or SIGHUP. Errors are one line.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags, logging

from dreamfusion_jax.config import help
from dreamfusion_jax.config.flags import parse_flags
from dreamfusion_jax.runtime import device, jax_modes, oom, process
from dreamfusion_jax.runtime.errors import RunError, UserError

EXIT_INTERRUPTED = process.EXIT_INTERRUPTED

_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def run(main: Callable[[], int]) -> None:
    """Parses the flags, runs `main` and exits with its code. Bad input is reported in one line."""

    def guarded(_: list[str]) -> int:
        # Orbax logs every file that it opens; the progress bar is enough.
        logging.set_verbosity(logging.ERROR)
        # Clusters stop a job by SIGTERM, a lost connection by SIGHUP; both count as Ctrl-C.
        process.raise_on_signals()
        try:
            jax_modes.pin()
            with jax_modes.name_debug_nans():
                code = main()
            # A command may end well by an interruption, as the viewer does.
            return process.leave(code) if process.was_interrupted() else code
        except KeyboardInterrupt:
            return _stop()
        except Exception as error:
            if process.was_interrupted():  # and a library made another error of it
                return _stop()
            return _exit_code(error)
        finally:
            process.ignore_signals()

    app.run(guarded, flags_parser=_parse)


def _exit_code(error: Exception) -> int:
    """Prints an error that is not the program's fault; raises any other."""
    if isinstance(error, UserError):
        return print_error(error)
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return print_error(not_writable(error))
    if oom.is_oom(error):
        return print_error(oom.oom_error(error, "it ran"))
    raise error


def _stop() -> int:
    """Ends an interrupted command."""
    process.ignore_signals()
    print("\nStopped; the same command continues from what was saved.", file=sys.stderr)
    if jax.distributed.is_initialized():  # The other processes expect an orderly end.
        return EXIT_INTERRUPTED
    return process.leave(EXIT_INTERRUPTED)


def use_platform(name: str) -> None:
    """Makes JAX run on the platform that `--platform` names.

    Raises:
      UserError: it is not available.
    """
    device.use(name)
    device.require(name)


def use_compilation_cache(folder: str) -> None:
    """Stores compiled programs in `folder` ("auto": the user's cache folder; "none": nowhere)."""
    if folder == "none":
        return
    if folder == "auto":
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = str(Path(home) / "dreamfusion_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags, or prints the help. Exits where an argument is not a flag.

    absl's own help lists only the flags that the command's own module defines, and ignores `-h`.
    """
    if help.is_requested(argv[1:]):
        help.print_text(help.help_text(sys.modules["__main__"].__doc__ or "", flags.FLAGS))
        sys.exit(0)
    try:
        rest = parse_flags(argv)
    except flags.Error as error:
        sys.exit(print_error(UserError(error)))
    except (ValueError, RecursionError) as error:  # absl does not check a --flagfile
        sys.exit(print_error(UserError(f"--flagfile cannot be read ({error}).")))
    if len(rest) > 1:
        stray = UserError(f"{rest[1]} is not a flag; write flags as --name=value.")
        sys.exit(print_error(stray))
    return rest


def not_writable(error: OSError) -> RunError:
    """Builds the error for a disk that is full or may not be written to."""
    where = f"{error.filename} " if error.filename else ""
    return RunError(
        f"{where}cannot be written ({error.strerror}); what was saved before is kept: make room, or"
        " fix the permissions, and run the same command to continue."
    )


def print_error(error: UserError) -> int:
    """Prints the message in one line, with control characters escaped; returns the exit code."""
    line = " ".join(str(error).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    print(f"Error: {shown}", file=sys.stderr)
    return error.exit_code
