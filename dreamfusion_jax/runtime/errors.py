"""The exceptions whose messages are written for users."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the flag or file and the remedy."""

    exit_code = 2


class ArgumentError(UserError):
    """A bad argument of a library function. The message opens with `name=value`."""


class SettingError(UserError, ValueError):
    """Bad input to a function of the package rather than to a command."""


class RunError(UserError):
    """A fault of the machine or the numbers, not of the command. What was saved is kept."""

    exit_code = 1


class PriorError(UserError):
    """A fault in a prior's files. The message names the file and the fault."""

    exit_code = 1


class NumberFormatError(PriorError):
    """A prior's weights are beyond the number format that they were to be kept in."""
