"""The one exception that a person, not a programmer, is meant to read."""


class UserError(Exception):
    """Bad input. The message is one sentence that names the flag or file and the mend."""
