"""Errors that are the user's to fix, not the program's."""


class UserError(ValueError):
    """A mistake in data, configuration or a checkpoint path, told in one sentence.

    The message names the file and line, the gin binding, or the array with its shape, and says
    what to do. The command line prints it without a traceback and exits with code 2.
    """
