"""A run directory that someone else has made, or a disk has spoilt: one line or an answer; no code is run."""

import dataclasses
import hashlib
import io
import json
import os
import shutil

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import safetensors.torch
import torch
from hostile import changed, damaged, ends_well, examples, listing
from hypothesis import given
from hypothesis import strategies as st

import vmapens
from vmapens import arrow
from vmapens.attention import attend_samples
from vmapens.cli import _main
from vmapens.cohort.synthetic import make_synthetic
from vmapens.directory import RunPaths
from vmapens.ensemble.stack import Column, Stack
from vmapens.errors import RunError
from vmapens.run import export_variant
from vmapens.spec import resolve
from vmapens.verify import verify
from vmapens.weights import read_weights, write_weights

V, T, F = 3, 4, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small run of two blocks, and its cohort."""
    folder = tmp_path_factory.mktemp("made")
    make_synthetic(folder / "cohort", samples=60, steps=T, features=F, seed=1)
    layers = {"cohort": {"path": str(folder / "cohort"), "task": "outcome"}, "variants": {"init_seeds": f"0:{V}"}}
    layers |= {"block": 2, "model": {"hidden": 2}, "train": {"epochs": 1, "batch_size": 32}, "save_attention": "test:3"}
    vmapens.train(None, None, resolve(layers), folder / "run")
    return folder


@pytest.fixture(scope="module")
def files(made):
    return {path.relative_to(made / "run"): path.read_bytes() for path in (made / "run").rglob("*") if path.is_file()}


@pytest.fixture
def copy(made, files, tmp_path):
    """Writes the run anew, with some files changed, and gives its place."""

    def write(changes):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        for name, data in {**files, **changes}.items():
            path = tmp_path / "run" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "run"

    return write


def everything(run):
    """All that a run can be asked, each for itself."""
    yield lambda: run.spec
    yield lambda: run.task.outputs
    for name in ("variants", "splits", "features", "metrics", "predictions", "history", "inputs", "saved_samples"):
        yield lambda name=name: getattr(run, name)
    yield lambda: run.summary()
    yield lambda: run.weights()
    yield lambda: run.weights("last").views()
    yield lambda: [run.state_dict(variant) for variant in range(V)]
    yield lambda: run.model()
    yield lambda: run.attention()
    yield lambda: run.attention(run.saved_samples[:1], 0)


def read_all(root):
    """Open a run and ask it for everything; how many answers there were."""
    run = ends_well(lambda: vmapens.open_run(root), root)
    return 0 if run is None else sum(ends_well(ask, root) is not None for ask in everything(run))


def test_the_run_that_is_spoilt_below_is_good(copy):
    root = copy({})
    assert read_all(root) == len(list(everything(vmapens.open_run(root))))


@examples(40)
@given(data=st.data())
def test_a_manifest_of_any_json_is_one_line_or_a_run(copy, files, data):
    name = next(name for name in files if name.name == "run.json")
    root = copy({name: json.dumps(data.draw(changed(json.loads(files[name])))).encode()})
    read_all(root)
    ends_well(lambda: list(verify(root)), root)


@examples(40)
@given(data=st.data())
def test_a_block_that_is_done_by_any_json_is_one_line_or_a_run(copy, files, data):
    name = next(name for name in files if name.name == "done.json")
    root = copy({name: json.dumps(data.draw(changed(json.loads(files[name])))).encode()})
    ends_well(lambda: list(verify(root)), root)


BLOCKS = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 3, 4, -1, 10**3, 2**40, 0.0, "../..", None]), max_size=3), max_size=3
)


@examples(20)
@given(blocks=BLOCKS | st.just([[0, 10**4]]) | st.just([[2, 3], [0, 2]]) | st.just([[0, 2], [1, 3]]))
def test_blocks_of_any_numbers_are_one_line_or_a_run(copy, files, blocks):
    name = next(name for name in files if name.name == "run.json")
    read_all(copy({name: json.dumps({**json.loads(files[name]), "blocks": blocks}).encode()}))


@examples(40)
@given(data=st.data())
def test_damaged_files_are_one_line_or_an_answer(copy, files, data):
    name = data.draw(st.sampled_from(sorted(files)))
    read_all(copy({name: data.draw(damaged(files[name]))}))


@pytest.mark.parametrize("name", ["variants", "splits", "features", "metrics", "predictions", "history", "index"])
def test_tables_of_other_columns_are_one_line(copy, files, name):
    paths = [path for path in files if path.name == f"{name}.parquet"]
    frame = pl.read_parquet(io.BytesIO(files[paths[0]]))
    for other in [frame.drop(column) for column in frame.columns] + [
        frame.cast(pl.String),
        frame.clear(),
        pl.DataFrame(),
    ]:
        sink = io.BytesIO()
        other.write_parquet(sink)
        assert read_all(copy(dict.fromkeys(paths, sink.getvalue()))) >= 8


@pytest.mark.parametrize("part", [-1, 2**31 - 1, None])
def test_parts_that_cannot_be_are_one_line(copy, files, part):
    name = next(path for path in files if path.name == "index.parquet")
    sink = io.BytesIO()
    pl.DataFrame({"sample": ["1"], "part": [part]}, schema={"sample": pl.String, "part": pl.Int32}).write_parquet(sink)
    root = copy({name: sink.getvalue()})
    before = listing(root)
    with pytest.raises(RunError, match="names samples or parts that cannot be"):
        attend_samples(root, "test")
    assert set(listing(root)) == before.keys()


def stacks(good):
    """Stacks that contradict themselves, in files whose checksums are right."""
    first, *others = good.columns
    for change in (
        {"stop": 10**12},
        {"start": -16},
        {"stop": first.stop + 1},
        {"shape": (2**40, 2**40)},
        {"shape": ()},
        {"shape": (-1, -first.stop)},
        {"name": others[0].name},
        {"name": "../x"},
    ):
        yield Stack(good.theta, (dataclasses.replace(first, **change), *others))
    yield Stack(good.theta, ())
    yield Stack(good.theta, tuple(others))
    yield Stack(good.theta[:, :16], good.columns)
    yield Stack(good.theta[:1], good.columns)
    yield Stack(torch.zeros(2, 10**6), (Column("x", 0, 10**6, (10**6,), True),))


def test_weights_that_contradict_themselves_are_one_line(copy):
    root = copy({})
    path = RunPaths(root).block(0, 2) / "best.safetensors"
    for stack in stacks(read_weights(path)):
        write_weights(path, stack)
        run = vmapens.open_run(root)
        for ask in (run.weights, lambda run=run: run.state_dict(0), run.model):
            ends_well(ask, root)
        assert ends_well(run.model, root) is None


@pytest.mark.parametrize(
    "description", ["[" * 100_000, "3", '{"columns": 1}', '{"columns": "[[]]", "sha256": 3}', None]
)
def test_weights_described_by_other_json_are_one_line(copy, description):
    root = copy({})
    metadata = None if description is None else {"vmapens": description}
    safetensors.torch.save_file(
        {"theta": torch.zeros(2, 16)}, RunPaths(root).block(0, 2) / "best.safetensors", metadata
    )
    with pytest.raises(RunError, match="cannot be read as weights"):
        vmapens.open_run(root).weights()


ATTENTION = {
    "no columns": pa.table({}),
    "no rows": None,
    "other samples": {"sample": pa.array(["x", "y", "z"])},
    "other variants": {"variant": pa.array([7, 7, 7], pa.int32())},
    "other shape": {"attention": arrow.nested(np.zeros((3, 2, 2), np.float32))},
    "a list": {"attention": pa.array([[0.0]] * 3, pa.list_(pa.float32()))},
    "doubles": {"attention": arrow.nested(np.zeros((3, T, F)))},
    "numbers": {"attention": pa.array([0.0] * 3, pa.float32())},
    "nulls": {"attention": pa.array([None] * 3, arrow.nested_type(pa.float32(), (T, F)))},
    "large text": {"sample": pa.array(["1", "2", "3"], pa.large_utf8())},
    "null samples": {"sample": pa.array([None] * 3, pa.utf8())},
    "numbers for samples": {"sample": pa.array([1, 2, 3])},
}


@pytest.mark.parametrize("case", ATTENTION)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_attention_of_other_columns_is_one_line(copy, case, compression):
    root = copy({})
    path = RunPaths(root).attention(0, 2, 0)
    with pa.ipc.open_file(path) as file:
        good = pa.Table.from_batches([file.get_batch(0)])
    other = ATTENTION[case]
    if other is None:
        other = good.slice(0, 0)
    if isinstance(other, dict):
        table = good
        for name, column in other.items():
            table = table.set_column(table.schema.names.index(name), name, column)
        other = table
    path.unlink()
    with pa.ipc.new_file(path, other.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        for batch in other.to_batches() * 2:
            writer.write_batch(batch)
    run = vmapens.open_run(root)
    assert ends_well(run.attention, root) is None
    one = ends_well(lambda: run.attention(run.saved_samples[0], 0), root)
    assert one is None or case == "other shape"


def test_attention_whose_texts_point_outside_the_file_is_one_line(copy):
    """Arrow itself believes offsets; followed, they would read other memory, or end the process."""
    root = copy({})
    path = RunPaths(root).attention(0, 2, 0)
    ids = "".join(vmapens.open_run(root).saved_samples).encode()
    data = bytearray(path.read_bytes())
    lengths = np.cumsum([0, *(len(sample) for sample in vmapens.open_run(root).saved_samples)]).astype("<i4").tobytes()
    place = data.index(lengths)
    data[place + 8 : place + 12] = (2**30).to_bytes(4, "little")
    path.write_bytes(data)
    assert ids in data
    assert ends_well(vmapens.open_run(root).attention, root) is None


def test_a_run_that_is_someone_elses_imports_nothing(copy, files, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nModel = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = next(name for name in files if name.name == "run.json")
    manifest = json.loads(files[name])
    manifest["spec"]["model"] = {"name": "evil:Model"}
    root = copy({name: json.dumps(manifest).encode()})
    assert read_all(root) > 10
    with pytest.raises(
        RunError, match=r"was trained with `evil:Model`, .* only imported if you name it, too: --model evil"
    ):
        attend_samples(root, "test")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RunError):
        attend_samples(root, "test", model="evil:Model")
    assert (tmp_path / "ran").exists()


def test_a_model_larger_than_its_weights_is_refused_before_it_is_made(copy, files):
    name = next(name for name in files if name.name == "run.json")
    manifest = json.loads(files[name])
    manifest["spec"]["model"]["hidden"] = 10**7
    with pytest.raises(RunError, match="holds weights of other names or shapes"):
        vmapens.open_run(copy({name: json.dumps(manifest).encode()})).model()


@pytest.mark.parametrize(
    "link", [".lock", "attention/block=000000-000001", "attention/index.parquet", ".run.json.1.tmp"]
)
def test_nothing_is_written_through_a_link(copy, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    root = copy({})
    place = root / link
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(outside if "block" in link else outside / "precious", target_is_directory="block" in link)
    before = listing(outside)
    with pytest.raises(vmapens.errors.VmapensError):
        attend_samples(root, "test")
    assert listing(outside) == before


def test_a_pipe_in_a_run_is_not_waited_for(copy):
    root = copy({})
    (root / "metrics.parquet").unlink()
    os.mkfifo(root / "metrics.parquet")
    with pytest.raises(RunError, match=r"metrics\.parquet is no file"):
        vmapens.open_run(root)


@pytest.mark.parametrize(
    "which", ["", ",", "@", "@\0", "@/", "test:0", "test:" + "9" * 5000, "a\nb", "none:3", "\u0663"]
)
def test_samples_in_any_words_are_one_line_or_none_are_written(copy, which):
    root = copy({})
    assert not ends_well(lambda: attend_samples(root, which), root)


@pytest.mark.parametrize("variant", [-1, V, 10**30])
def test_variants_that_are_not_there_are_one_line(copy, tmp_path, variant):
    root = copy({})
    assert ends_well(lambda: export_variant(root, variant, tmp_path / "v.pt"), tmp_path) is None


@examples(12)
@given(data=st.data())
def test_verify_answers_and_export_and_attend_write_a_result_or_nothing(copy, files, tmp_path, data):
    """Also with checksums that were made to fit."""
    name = data.draw(
        st.sampled_from(sorted(name for name in files if name.suffix in (".json", ".parquet", ".safetensors")))
    )
    root = copy({name: data.draw(damaged(files[name]))})
    sums = "".join(
        f"{hashlib.sha256((root / own).read_bytes()).hexdigest()}  {own}\n" for own in files if own.name != "SHA256SUMS"
    )
    (root / "SHA256SUMS").write_text(sums)
    ends_well(lambda: list(verify(root)), root)
    out = tmp_path / "v.safetensors"
    out.unlink(missing_ok=True)
    ends_well(lambda: export_variant(root, 0, out), tmp_path, out)
    before = listing(tmp_path)
    written = ends_well(lambda: attend_samples(root, "test:4"), tmp_path / "elsewhere")
    after = listing(tmp_path)
    if not written:
        assert after == before
    assert all(root in path.parents for path in after.keys() - before.keys())


@pytest.mark.parametrize("name", ["r\udcffun", "r\nu\u202en'\"", "r*u[n]?"])
def test_paths_of_any_name_are_one_line_or_a_run(made, tmp_path, capfd, name):
    """On Linux a name is bytes, and 0xff, which is no text, is one of them."""
    options = ["--task", "outcome", "--variants", "2", "--hidden", "2", "--epochs", "1", "--out", str(tmp_path / name)]
    status = _main(["train", str(made / "cohort"), *options])
    assert status == _main(["attend", str(tmp_path / name), "--samples", "test:17", "--json"])
    assert status == (2 if "\udcff" in name else 0)
    lines = capfd.readouterr().err.splitlines()
    assert all(line.isprintable() for line in lines)
    assert status == 0 or len(lines) == 2
