"""Put the answer, the figures, the explorer and the methods on one page that needs nothing else.

Styles, script and figures are in it, and its policy (Content-Security-Policy) forbids it to ask for anything else.
Every text of the user's (names, paths, notes) is escaped.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Literal

import polars as pl

from vmapens.analysis.tables import ATTRIBUTIONS, GRAINS, MEASURES, QUANTITIES
from vmapens.atomic import write_text
from vmapens.report.methods import INTERVALS, METHODS
from vmapens.report.selection import Settings, completed, name_of
from vmapens.report.sentences import QUESTIONS, sentences

if TYPE_CHECKING:
    from vmapens.report.figures import Drawn


_PAGE_BYTES = 4_700_000  # of figures and maps; with texts and tables the page stays under 5 MB


def write_report(
    tables: Mapping[str, pl.DataFrame],
    settings: Settings,
    out: Path,
    *,
    figures: Literal["svg", "png", "pdf"] | None = None,
) -> None:
    """Write the report of an analysis: one HTML file, and its figures as files if asked for.

    Nothing is computed here but means of what is drawn. The same input gives the same bytes.

    Args:
        tables: Those of `vmapens.analysis.tables.TABLES`, by name; any may be empty or absent.
        settings: The content of `analysis.json`.
        out: The HTML file.
        figures: Format of the files `figures/<name>.<format>` beside the page; None writes none.

    Raises:
        OutputError: If a file cannot be written.
    """
    from vmapens.report.explorer import payload  # late: Matplotlib takes a second to import
    from vmapens.report.figures import SECTIONS, draw_all

    frames = completed(tables)
    folder = out.parent / "figures" if figures else None
    drawn = list(draw_all(frames, settings, folder, figures or "svg"))
    sections, number = [], 0
    for section, title in SECTIONS.items():
        parts = []
        for one in drawn:
            if one.plot.section != section:
                continue
            number += one.svg is not None
            parts.append(_figure(one, number) if one.svg else _missing(one.plot.title, one.plot.missing))
        sections.append(f'<section id="{section}"><h2>{escape(title)}</h2>{"".join(parts)}</section>')
    explorer = payload(frames, settings, budget=max(0, _PAGE_BYTES - sum(map(len, sections))))
    counterparts = [[one.plot.counterpart, one.plot.title] for one in drawn if one.plot.counterpart]
    folder_of_texts = resources.files("vmapens.report")
    page = Template((folder_of_texts / "page.html").read_text(encoding="utf-8")).substitute(
        style=(folder_of_texts / "style.css").read_text(encoding="utf-8"),
        script=(folder_of_texts / "explorer.js").read_text(encoding="utf-8"),
        title=f"{settings['variants']:,} variants, one patient: do their explanations agree?",
        task=escape(str(settings["task"])),
        run=escape(str(settings["run"])),
        facts=_facts(settings),
        answer=_answer(sentences(frames, settings)),
        sections="".join(sections),
        explorer="" if explorer["stays"] else " hidden",
        no_explorer=" hidden" if explorer["stays"] else "",
        licence=escape(str(settings.get("licence") or "not stated")),
        # "<" cannot end the script element, whatever a feature is called
        data=json.dumps(explorer, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        explorer_notes="".join(f"<p>{escape(note)}</p>" for note in explorer["notes"]),
        methods=_methods(),
        counterparts=_table([["figure of the paper", "figure here"], *counterparts]),
        settings=_settings(settings),
        notes=_list(settings.get("notes") or []),
        train_command=escape(_command(settings.get("train_command"))),
        command=escape(_command(settings.get("command"))),
    )
    write_text(out, page)


def _answer(answer: Sequence[str]) -> str:
    pairs = zip(QUESTIONS, answer, strict=True)
    return "".join(
        f"<li><strong>{escape(question)}?</strong> <span>{escape(text)}</span></li>" for question, text in pairs
    )


def _facts(settings: Settings) -> str:
    failed = f", {settings['failed']} failed" if settings.get("failed") else ""
    facts = {
        "variants": f"{settings['variants']:,}{failed} ({settings['design']})",
        "task": f"{settings['task']} ({settings['kind']}), kept epochs chosen on {settings['select_on']}",
        "attention": f"{settings['form']}, over {' and '.join(settings['axes'])}",
        "stays analysed": f"{settings['stays']:,} ({settings['samples']})",
        "input": f"{settings['steps']:,} steps of {settings['minutes_per_step']:g} min, "
        f"{len(settings['features']):,} features",
        "cohort": str(settings.get("cohort_source") or "not stated"),
    }
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())


def _figure(drawn: "Drawn", number: int) -> str:
    plot = drawn.plot
    counterpart = (
        f'<p class="counterpart">Counterpart of the paper\'s {escape(plot.counterpart)}</p>' if plot.counterpart else ""
    )
    numbers = f"<details><summary>The numbers</summary>{_table(drawn.numbers)}</details>" if drawn.numbers else ""
    return (
        f'<figure id="figure-{plot.name}"><h3>Figure {number}. {escape(plot.title)}</h3>{counterpart}'
        f'<div class="drawing">{drawn.svg}</div><figcaption>{escape(drawn.caption)}</figcaption>{numbers}</figure>'
    )


def _missing(title: str, what_to_run: str) -> str:
    return f'<p class="missing"><b>{escape(title)}</b> is not shown; for it, {escape(what_to_run)}.</p>'


def _table(table: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(str(line))}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else "<p>Nothing was left out.</p>"


def _definitions(meanings: Mapping[str, str]) -> str:
    return (
        "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in meanings.items()) + "</dl>"
    )


def _methods() -> str:
    words = {f"Attribution: {name_of(name)}": text for name, text in ATTRIBUTIONS.items()}
    words |= {f"Grain: {name_of(name)}": text for name, text in GRAINS.items() if name_of(name) != text}
    words |= {f"Measure: {name_of(name)}": text for name, text in MEASURES.items()}
    words |= {f"Quantity: {name_of(name)}": text for name, text in QUANTITIES.items()}
    exact = f"<details><summary>Every word of the tables</summary>{_definitions(words)}</details>"
    return f"{_definitions(METHODS)}<h3>Which interval answers which question</h3>{_table(INTERVALS)}{exact}"


_SHOWN_ELSEWHERE = {"features", "notes", "command", "train_command"}


def _settings(settings: Settings) -> str:
    rows = [["setting", "value"]]
    for name, value in settings.items():
        if name not in _SHOWN_ELSEWHERE:
            rows.append([name_of(name), _text(value)])
    return _table(rows)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(inner) for inner in value)
    return "-" if value is None else str(value)


def _command(words: Sequence[str] | None) -> str:
    return shlex.join(words) if words else "not recorded"
