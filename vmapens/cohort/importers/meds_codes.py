"""Which codes of a MEDS data set become features: those named, matched by a pattern, or frequent enough."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from vmapens.cohort.identity import first_five
from vmapens.errors import CohortError, first_line

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)%")


class CodeCounts(NamedTuple):
    """How often each of K codes is there.

    Args:
        events: In the whole data set.
        measured: Events in a window and with a number.
        samples: Training samples with such an event.
    """

    events: Int64[np.ndarray, "K"]
    measured: Int64[np.ndarray, "K"]
    samples: Int64[np.ndarray, "K"]


@dataclass(frozen=True)
class CodeChoice:
    """What was asked for.

    Args:
        named: Codes.
        patterns: Each code that one of them matches anywhere is meant too.
        share: In percent; of the codes meant (all codes if none was), those that as many of the training samples have.
        said: The choice as a reader would say it.
    """

    named: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]
    share: Fraction | None
    said: str

    def features(self, codes: Mapping[str, int], counts: CodeCounts, training: int) -> tuple[str, ...]:
        """The sorted codes to be features, each with a number in the window of some sample.

        Args:
            codes: Each code of the data set with its place in the counts.
            counts: Of all codes.
            training: Training samples in all.

        Raises:
            CohortError: If a named code never has a number in a window, or none is left.
        """
        found = {code for code, place in codes.items() if counts.measured[place]}
        self._refuse_absent(found, {code for code, place in codes.items() if counts.events[place]})
        meant = {code for code in found if any(pattern.search(code) for pattern in self.patterns)} | self.named
        if self.share is not None:
            if not training:
                raise CohortError(f"codes {self.said}: no label is of a subject in the training split; name codes.")
            narrowed = meant if self.named or self.patterns else found
            meant = {code for code in narrowed if 100 * int(counts.samples[codes[code]]) >= self.share * training}
        if not meant:
            raise CohortError(
                f"codes {self.said}: none is left of {len(found)} with a number in the window of a sample; "
                "wanted one or more. Ask for a lower percentage, another pattern, or a longer window."
            )
        return tuple(sorted(meant))

    def _refuse_absent(self, found: set[str], occurring: set[str]) -> None:
        absent, unmeasured = self.named - occurring, (self.named & occurring) - found
        problems = []
        if absent:
            problems.append(f"{len(absent)} of {len(self.named)} named are not in the data ({first_five(absent)})")
        if unmeasured:
            problems.append(f"{len(unmeasured)} never have a number in a window ({first_five(unmeasured)})")
        if problems:
            raise CohortError(f"codes: {'; '.join(problems)}; correct them, or leave them out.")


def parse_codes(entries: Sequence[str]) -> CodeChoice:
    """Read a choice: each entry is a code, `@FILE` with one code a line, `re:PATTERN`, or `N%`.

    Raises:
        CohortError: If there is no entry, two say a percentage, a pattern is not one, or a file cannot be read.
    """
    named: set[str] = set()
    patterns: list[re.Pattern[str]] = []
    shares: list[Fraction] = []
    for entry in entries:
        if match := _SHARE.fullmatch(entry):
            shares.append(Fraction(match[1]))
        elif entry.startswith("@"):
            named |= _listed(Path(entry[1:]))
        elif entry.startswith("re:"):
            patterns.append(_pattern(entry[3:]))
        else:
            named.add(entry)
    if len(shares) > 1 or any(not 0 < share <= 100 for share in shares):
        raise CohortError(f"codes: got {', '.join(entries)}; wanted one percentage at most, above 0% and up to 100%.")
    if not entries or "" in named:
        raise CohortError("codes: got an empty one, or none at all; wanted codes, @FILE, re:PATTERN or N%.")
    said = [f"{len(named)} named"] * bool(named) + [f"re:{pattern.pattern}" for pattern in patterns]
    said += [f"in at least {float(share):g} % of the training samples" for share in shares]
    return CodeChoice(frozenset(named), tuple(patterns), shares[0] if shares else None, ", ".join(said))


def _listed(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} cannot be read as a list of codes ({first_line(error)}); wanted text.") from error
    codes = {line.strip() for line in lines} - {""}
    if not codes:
        raise CohortError(f"{path} holds no code: wanted one a line.")
    return codes


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise CohortError(f"codes: `re:{text}` is no pattern ({first_line(error)}); correct it.") from error
