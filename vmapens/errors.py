"""What can go wrong that is the user's to mend.

Every error carries one line: what, where, got, wanted, what to do. The command line prints that line and exits with
status 2; any other exception is a fault of ours.
"""

_LONGEST = 2000


class VmapensError(Exception):
    """A problem the user can mend; its text is one printable line that says how, whatever names it repeats."""

    def __init__(self, text: str) -> None:
        line = printable(text)
        super().__init__(line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}")


class CohortError(VmapensError):
    """The data cannot be read, or contradicts itself."""


class SpecError(VmapensError):
    """A setting is unknown, missing or outside its range."""


class StackError(VmapensError):
    """A model cannot be stacked or trained under `torch.func.vmap`."""


class RunError(VmapensError):
    """A run directory is missing, in the way, or incomplete."""


class OutputError(VmapensError):
    """A file cannot be written."""


def printable(text: str) -> str:
    r"""The text with what a terminal would not show as a character (line ends, control and direction signs) escaped.

    >>> printable("heart\nrate")
    'heart\\nrate'
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def first_line(error: Exception) -> str:
    """What another library said, in one line without a full stop: the first of its text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
