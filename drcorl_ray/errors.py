"""The one exception a user can cause: its message is the whole report."""


class UserError(Exception):
    """A mistake in a file, a setting or an installation that its user can mend.

    The message is one line: what is wrong, where, and what to do. Launch scripts print it to stderr and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
