"""The exception for mistakes that the user can fix; its message is all that the user sees."""


class UserError(Exception):
    """A mistake in a file, a setting or an installation that the user can fix.

    The message is one line: what is wrong, where, and what to do. Launch scripts print it to stderr and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
