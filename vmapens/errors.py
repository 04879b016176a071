"""What can go wrong that is the user's to mend.

Every error carries one line: what, where, got, wanted, what to do. The command line prints that line and exits with
status 2; any other exception is a fault of ours.
"""


class VmapensError(Exception):
    """A problem the user can mend; its text is one line that says how."""


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


def first_line(error: Exception) -> str:
    """What another library said, in one line without a full stop: the first of its text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
