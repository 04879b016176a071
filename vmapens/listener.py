"""Who hears how far long work is: rooms below the terminal tell a listener, and print nothing."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Listener(Protocol):
    """Hears how far long work is: a training in epochs of one variant, an analysis or an import in stays."""

    def start(self, amount: int) -> None:
        """The work is known: so much of it."""

    def advance(self, amount: int) -> None:
        """So much more is done."""

    def say(self, line: str) -> None:
        """A line of interest."""


class Silence:
    """A listener that says nothing."""

    def start(self, amount: int) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""
