"""The one exception that stands for a user's mistake or an environment that does not fit."""


class InputError(ValueError):
    """Bad input: the message names the value, the limit and the remedy.

    The command line prints it without a traceback and exits with status 1. Everything else that
    escapes is a defect of Larmor and keeps its traceback.
    """
