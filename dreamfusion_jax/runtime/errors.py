"""Errors whose messages are for users: one sentence, and no traceback."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the flag or file and the remedy."""

    exit_code = 2


class ArgumentError(UserError):
    """A bad argument of a library function. The message opens with `name=value`."""


class SettingError(UserError, ValueError):
    """Bad input to a function of the package rather than to a command."""


class RunError(UserError):
    """The machine, or the numbers, are at fault, not the command. What was saved is kept."""

    exit_code = 1


class PriorError(UserError):
    """A prior's files are at fault, not the command. The message names the file and the fault."""

    exit_code = 1


class NumberFormatError(PriorError):
    """A prior's weights are beyond the number format that they were to be kept in."""
