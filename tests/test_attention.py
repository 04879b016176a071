"""Attention of chosen samples: computed and written at the same time, in bounded memory, whole or not at all."""

import dataclasses
import errno
import shutil
import signal
import threading
import time

import numpy as np
import pytest

import vmapens
from vmapens import arrow
from vmapens import attention as attention_room
from vmapens.attention import attend_samples, choose_samples
from vmapens.cohort.schema import Task
from vmapens.cohort.synthetic import make_synthetic
from vmapens.errors import OutputError, SpecError
from vmapens.spec import CohortSpec, resolve
from vmapens.verify import verify

PATIENCE = 20  # seconds after which a test that waits for a thread gives up
V = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attention")
    make_synthetic(folder / "cohort", samples=60, steps=6, features=5, seed=1)
    spec = {"cohort": {"path": str(folder / "cohort"), "task": "outcome"}, "variants": {"init_seeds": f"0:{V}"}}
    spec |= {"model": {"hidden": 2}, "train": {"epochs": 1}, "block": 3, "save_attention": "none"}
    return vmapens.train(None, None, resolve(spec), folder / "run").paths.root


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return vmapens.open_run(tmp_path / "run")


def attention_files(run) -> dict[str, bytes]:
    folder = run.paths.root / "attention"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("attention-writer")]


@pytest.fixture
def passes_of_one(monkeypatch):
    """Passes of one variant, so that a small run has several."""
    monkeypatch.setattr(attention_room, "_GROUP", 1)


def replace_attend(monkeypatch, before):
    """Call `before(number of the pass)` before each pass is computed."""
    attend, count = attention_room.attend, iter(range(1000))

    def watched(*arguments):
        before(next(count))
        return attend(*arguments)

    monkeypatch.setattr(attention_room, "attend", watched)


def test_computing_and_writing_overlap(run, monkeypatch, passes_of_one):
    """Each waits here until the other has begun: in turn, they would wait for ever."""
    writing, computing_next = threading.Event(), threading.Event()
    push = arrow.AttentionWriter._push

    def before(number):
        if number == 1:
            computing_next.set()
            assert writing.wait(PATIENCE)

    def slow_push(writer):
        writing.set()
        assert computing_next.wait(PATIENCE)
        push(writer)

    replace_attend(monkeypatch, before)
    monkeypatch.setattr(arrow.AttentionWriter, "_push", slow_push)
    assert len(attend_samples(run.paths.root, "test")) == 9
    assert no_thread_is_left()


def test_passes_change_no_byte(run, tmp_path, monkeypatch):
    shutil.copytree(run.paths.root, tmp_path / "again")
    again, sizes = vmapens.open_run(tmp_path / "again"), []
    monkeypatch.setattr(arrow, "BATCH_ROWS", 4)
    attend_samples(run.paths.root, "test")
    attend = attention_room.attend

    def watched(model, stack, x):
        sizes.append((len(stack.theta), len(x)))
        return attend(model, stack, x)

    monkeypatch.setattr(attention_room, "attend", watched)
    monkeypatch.setattr(attention_room, "ATTENTION_PASS_MIB", 1e-9)  # nothing fits: one variant and one batch at a time
    attend_samples(again.paths.root, "test")
    assert sizes == [(1, 4), (1, 4), (1, 1)] * V
    assert attention_files(again) == attention_files(run)
    assert np.abs(vmapens.open_run(again.paths.root).attention().sum(axis=3) - 1).max() < 1e-6


def test_an_error_of_the_writer_stops_computing_and_leaves_nothing(run, monkeypatch, passes_of_one):
    passes = []

    def push(writer):
        raise OSError(errno.ENOSPC, "No space left on device")

    replace_attend(monkeypatch, passes.append)
    monkeypatch.setattr(arrow.AttentionWriter, "_push", push)
    with pytest.raises(OutputError, match=r"part-0\.arrow cannot be written: .*No space left"):
        attend_samples(run.paths.root, "test")
    assert passes == [0, 1]
    assert attention_files(run) == {}
    assert no_thread_is_left()


def test_an_error_of_computing_stops_the_writer_and_leaves_no_file(run, monkeypatch, passes_of_one):
    def before(number):
        if number == 4:  # in the second block
            raise ValueError("no more")

    with monkeypatch.context() as patch:
        replace_attend(patch, before)
        with pytest.raises(ValueError, match="no more"):
            attend_samples(run.paths.root, "test")
    assert attention_files(run) == {}
    assert vmapens.open_run(run.paths.root).saved_samples == []
    assert no_thread_is_left()
    assert len(attend_samples(run.paths.root, "test")) == 9
    assert vmapens.open_run(run.paths.root).attention().shape == (V, 9, 6, 5)


def test_an_interrupt_stops_both_and_leaves_nothing(run, monkeypatch, passes_of_one):
    """It comes while one pass is written and the next is computed."""
    computing, passes = threading.Event(), []

    def before(number):
        passes.append(number)
        if number == 1:
            computing.set()
            threading.Event().wait(PATIENCE)

    def push(writer):
        assert computing.wait(PATIENCE)
        time.sleep(0.2)  # until it waits: raised in a destructor that happens to run, an interrupt would be ignored
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    replace_attend(monkeypatch, before)
    monkeypatch.setattr(arrow.AttentionWriter, "_push", push)
    with pytest.raises(KeyboardInterrupt):
        attend_samples(run.paths.root, "test")
    assert passes == [0, 1]
    assert attention_files(run) == {}
    assert no_thread_is_left()


def test_an_attend_that_fails_leaves_no_part_behind(run, monkeypatch):
    """Nor do the parts of one that was killed stay."""
    root = run.paths.root
    stray = run.paths.attention(*run.blocks[0], 7)
    before = sorted(root.rglob("part-*"))
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of a process that was killed")
    plain, calls = attention_room._write_part, []

    def fail_in_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError
        plain(*arguments)

    monkeypatch.setattr(attention_room, "_write_part", fail_in_the_second)
    with pytest.raises(MemoryError):
        attend_samples(root, "test:11")
    assert sorted(root.rglob("part-*")) == before
    assert all(finding.holds for finding in verify(root))


@pytest.fixture(scope="module")
def cohort(trained):
    return vmapens.load(CohortSpec(path=str(trained.parent / "cohort"), task="outcome"))


def of_class(cohort, split, code):
    return [row for row in cohort.rows(split).tolist() if cohort.y[row] == code]


@pytest.mark.parametrize(("name", "code"), [("positive", 1), ("yes", 1), ("no", 0)])
def test_samples_of_a_class(cohort, name, code):
    wanted = of_class(cohort, "train", code)
    assert choose_samples(cohort, f"train:{name}").tolist() == wanted
    some = choose_samples(cohort, f"train:{name}:3", seed=4).tolist()
    assert len(some) == 3
    assert set(some) <= set(wanted)
    assert some == choose_samples(cohort, f"train:{name}:3", seed=4).tolist()
    assert any(some != choose_samples(cohort, f"train:{name}:3", seed=seed).tolist() for seed in range(5, 9))
    assert choose_samples(cohort, f"train:{name}:1000").tolist() == wanted


def test_a_number_alone_takes_some_of_each_class(cohort):
    rows = choose_samples(cohort, "train:6")
    assert len(rows) == 6
    assert set(cohort.y[rows].tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (
            "test:dead",
            r"`test:dead` cannot be read: .*N of 1 or more, or a class of task `outcome` \(positive, no, yes\)",
        ),
        ("test:dead:3", r"`test:dead:3` cannot be read: .*\(positive, no, yes\)"),
        ("test:yes:0", r"`test:yes:0` cannot be read"),
        ("test:yes:x", r"`test:yes:x` cannot be read"),
        ("test:0", r"`test:0` cannot be read"),
        ("test:-1", r"`test:-1` cannot be read"),
        ("test:\N{ARABIC-INDIC DIGIT THREE}x", "cannot be read"),
        ("none:yes", "1 samples are not in the cohort"),
    ],
)
def test_a_class_that_does_not_exist_is_one_line(cohort, which, message):
    with pytest.raises(SpecError, match=message):
        choose_samples(cohort, which)


def test_a_class_without_samples_is_one_line(cohort):
    three = dataclasses.replace(cohort, task=Task("outcome", "multiclass", ("no", "yes", "maybe")))
    with pytest.raises(SpecError, match=r"`test:maybe` is empty: no sample of the test split is maybe; take another"):
        choose_samples(three, "test:maybe")
    assert choose_samples(three, "test:yes").tolist() == of_class(cohort, "test", 1)
    with pytest.raises(SpecError, match=r"cannot be read: .* \(no, yes, maybe\)"):  # of several classes none is it
        choose_samples(three, "test:positive")


def test_a_class_may_have_a_number_or_a_colon_in_its_name(cohort):
    odd = dataclasses.replace(cohort, task=Task("outcome", "binary", ("7", "stage:2")))
    assert choose_samples(odd, "test:class=7").tolist() == of_class(cohort, "test", 0)
    assert len(choose_samples(odd, "test:7")) == 7  # a number alone is a number of samples
    assert choose_samples(odd, "test:stage:2").tolist() == of_class(cohort, "test", 1)
    assert len(choose_samples(odd, "train:stage:2:2")) == 2
