"""One table of a TOML file, read key by key, with errors that say which file, table and key."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from vmapens.errors import CohortError


class Section:
    """A table and where it stands.

    Args:
        path: The TOML file; paths in it count from its folder.
        name: As the user writes it, say `[series]`.
        table: What the file says.
        known: Its keys; any other is an error, with a misspelt one in mind.

    Raises:
        CohortError: If it is not a table, or has a key that is not known. All methods raise it too: for a value that
            is missing and has no default, or is of the wrong type.
    """

    def __init__(self, path: Path, name: str, table: object, known: Collection[str]) -> None:
        self.path, self.name = path, name
        if not isinstance(table, dict):
            self.fail(f"is {table!r}, wanted a table")
        self.table: Mapping[str, object] = table
        unknown = sorted(set(table) - set(known))
        if unknown:
            self.fail(f"has unknown keys ({', '.join(unknown)}); there are {', '.join(sorted(known))}")

    def fail(self, what: str) -> NoReturn:
        """Raise with the place in front."""
        raise CohortError(f"{self.path}, {self.name}: {what}.")

    def section(self, key: str, known: Collection[str]) -> "Section":
        """The table under a key; the key must be there."""
        return Section(self.path, f"[{key}]", self._value(key, None), known)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        return value if isinstance(value, str) else self._wrong(key, value, "a text")

    def choice(self, key: str, words: Sequence[str], default: str | None = None) -> str:
        """One of some words."""
        value = self.text(key, default)
        return value if value in words else self._wrong(key, value, " or ".join(f"`{word}`" for word in words))

    def texts(self, key: str, default: Sequence[str] | None = None) -> list[str]:
        """A list of different strings; one string stands for a list of one."""
        value = self._value(key, default)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
            self._wrong(key, value, "a list of texts")
        if len(set(value)) < len(value):
            self._wrong(key, value, "without repeats")
        return list(value)

    def number(self, key: str, least: float, most: float) -> float:
        """A number of a range."""
        value = self._value(key, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            return float(value)
        return self._wrong(key, value, f"a number from {least:g} to {most:g}")

    def whole(self, key: str) -> int:
        """A whole number above 0 that an int32 holds."""
        value = self._value(key, None)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31:
            return value
        return self._wrong(key, value, "a whole number above 0 and below 2^31")

    def column(self, key: str, columns: Collection[str], default: str | None = None) -> str:
        """The name of a column that is there."""
        value = self.text(key, default)
        if value not in columns:
            self.fail(f"{key} = `{value}` is no column of the file; it has {', '.join(list(columns)[:20])}")
        return value

    def files(self, key: str) -> list[Path]:
        """The files that paths and globs name, sorted within each glob."""
        found: list[Path] = []
        for pattern in self.texts(key):
            literal = self.path.parent / pattern
            globs = any(sign in pattern for sign in "*?[") and not literal.exists()
            # `Path.glob` refuses absolute patterns, hence the anchor.
            anchor = Path(literal.anchor) if literal.is_absolute() else Path()
            try:
                matches = sorted(anchor.glob(str(literal.relative_to(anchor)))) if globs else [literal]
            except (OSError, ValueError) as error:
                self.fail(f"{key} = `{pattern}` cannot be searched for ({error})")
            if not matches:
                self.fail(f"{key} = `{pattern}` matches no file in {self.path.parent}")
            found += [match for match in matches if match not in found]
        return found or self._wrong(key, [], "one file or more")

    def _value(self, key: str, default: object) -> object:
        if key not in self.table and default is None:
            self.fail(f"`{key}` is missing")
        return self.table.get(key, default)

    def _wrong(self, key: str, got: object, wanted: str) -> NoReturn:
        self.fail(f"{key} is {got!r}, wanted {wanted}")
