"""The one exception that means: the input is wrong, and the message says what to do about it."""


class InputError(ValueError):
    """Raised at the edge for input a user can mend; the command line turns it into exit code 2."""
