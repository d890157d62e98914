"""The one exception for mistakes a user can mend."""


class InputError(ValueError):
    """A file, key or value given by the user is wrong.

    The message is one line that names what is wrong and what to do about it; the command line prints it
    and exits with status 2, without a traceback.
    """
