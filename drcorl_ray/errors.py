"""The exception for mistakes that the user can fix; its message is all that the user sees."""


class UserError(Exception):
    """A mistake in a file, a setting or an installation that the user can fix.

    The message is one line: what is wrong, where, and what to do. The command line prints it to stderr and exits with code 2.

    >>> import drcorl_ray
    >>> try:
    ...     drcorl_ray.load_config(["extract.step=900"])
    ... except drcorl_ray.UserError as error:
    ...     print(error)
    arguments: unknown key extract.step; did you mean 'steps'?
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
