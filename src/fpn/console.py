"""Lines of text for the terminal, or for the file that standard output is sent to."""

from rich.console import Console


def say(line: str) -> None:
    """Print a line as it is: not wrapped, and with its square brackets, which a path or a name may have."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)
