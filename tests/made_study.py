"""A small cohort of patients, and studies made of it quickly: what the tests of studies start from."""

from pathlib import Path

import polars as pl
from small_cohort import TASK, small_labels, write_small

import vmapens
from vmapens.spec import resolve


def patients(folder):
    """A cohort of 40 samples of 20 patients."""
    labels = small_labels().with_columns(group=pl.Series([f"p{i // 2}" for i in range(40)]))
    return write_small(folder, labels=labels)


def spec_of(folder, *, cohort=None, **layers):
    base = {"cohort": {"path": str(folder), "task": TASK.name} | (cohort or {}), "model": {"hidden": 4}}
    base |= {"train": {"epochs": 1}, "variants": {"init_seeds": "0:2"}, "save_attention": "test:3"}
    return resolve(base | layers)


def train(folder, out, *, folds=None, split_seeds=(), listener=None, resume=False, overwrite=False, **layers):
    options = {"folds": folds, "split_seeds": split_seeds, "resume": resume, "overwrite": overwrite}
    return vmapens.train_study(None, None, spec_of(folder, **layers), out, listener=listener, **options)


def command(cohort, out, *more):
    line = ["train", str(cohort), "--task", TASK.name, "--hidden", "4", "--epochs", "1", "--variants", "2"]
    return [*line, "--save-attention", "test:3", "--out", str(out), *more]


class Heard:
    """A listener that adds up what it hears, and may interrupt."""

    def __init__(self, stop_after=10**9):
        self.totals, self.done, self.lines, self.stop_after = [], 0, [], stop_after

    def start(self, amount):
        self.totals.append(amount)

    def advance(self, amount):
        self.done += amount
        if self.done > self.stop_after:
            raise KeyboardInterrupt

    def say(self, line):
        self.lines.append(line)


def interrupted_at(name, occurrence):
    """In place of `Path.replace`: an interrupt where a file of that name is to take it for so manieth time."""
    replace, seen = Path.replace, []

    def replace_or_stop(temporary, path):
        seen.append(Path(path).name)
        if seen[-1] == name and seen.count(name) == occurrence:
            raise KeyboardInterrupt
        return replace(temporary, path)

    return replace_or_stop
