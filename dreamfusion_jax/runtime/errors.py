"""The exceptions that a person, not a programmer, is meant to read."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the flag or file and the mend."""

    exit_code = 2


class SettingError(UserError, ValueError):
    """Bad input to a function of the package rather than to a command."""


class RunError(UserError):
    """The machine, or the numbers, are at fault, not the command. What was saved is kept."""

    exit_code = 1


class PriorError(UserError):
    """A prior's files are at fault, not the command. The message names the file and the fault."""

    exit_code = 1
