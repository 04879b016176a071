"""`vmapens verify`: silent on what was written, loud on anything that changed since."""

import json
import shutil
import subprocess

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from test_resume import spec_of, train

from vmapens.attention import attend_samples
from vmapens.checksum import checksums
from vmapens.cli import _main
from vmapens.directory import finish_run
from vmapens.run import open_run
from vmapens.verify import verify
from vmapens.weights import write_weights


@pytest.fixture(scope="module")
def original(cohort_folder, tmp_path_factory):
    run = train(spec_of(cohort_folder), tmp_path_factory.mktemp("runs") / "run")
    attend_samples(run.paths.root, "test:12")
    return run.paths.root


@pytest.fixture
def run(original, tmp_path):
    shutil.copytree(original, tmp_path / "run")
    return open_run(tmp_path / "run")


def faults(run):
    return {finding.what: finding.faults for finding in verify(run.paths.root) if not finding.holds}


def seal(run):
    """Write the checksums anew, as one would who changed a file on purpose: the other checks must find it."""
    finish_run(run.paths, run.manifest)


def test_a_run_as_it_was_written_holds(run, capsys):
    findings = list(verify(run.paths.root))
    assert [finding.what for finding in findings] == ["checksums", "tables", "blocks", "attention", "predictions"]
    assert all(finding.holds for finding in findings)
    assert findings[-1].note == "of variants 0, 1, 3 computed again, off by 0.0e+00 at most"
    assert _main(["verify", str(run.paths.root)]) == 0
    assert capsys.readouterr().out.count("ok ") == 5
    assert _main(["verify", str(run.paths.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == {"what": "checksums", "faults": [], "note": "29 files"}


def test_the_list_of_checksums_is_read_by_sha256sum(run):
    command = shutil.which("sha256sum")
    if command is None:
        pytest.skip("sha256sum is not installed")
    checked = subprocess.run([command, "--check", "--quiet", "SHA256SUMS"], cwd=run.paths.root, check=False)
    assert checked.returncode == 0


@pytest.mark.parametrize(
    "name", ["run.json", "variants.parquet", "history.parquet", "part-1.arrow", "best.safetensors"]
)
def test_any_changed_missing_or_additional_file_is_named(run, name, capsys):
    path = next(run.paths.root.rglob(name))
    path.write_bytes(path.read_bytes() + b" ")
    (run.paths.root / "blocks" / "more").write_text("?")
    (run.paths.root / "notes.txt").write_text("the user's own")
    run.paths.splits.unlink()
    assert _main(["verify", str(run.paths.root)]) == 2
    streams = capsys.readouterr()
    for text in (f"{path} has changed", "splits.parquet cannot be read", "more is not in SHA256SUMS"):
        assert text in streams.out
    assert "notes.txt" not in streams.out
    assert streams.err.startswith(f"error: {run.paths.root} has ")


def test_predictions_that_the_weights_do_not_give_are_found(run):
    frame = pl.read_parquet(run.paths.predictions)
    frame.with_columns(probability=(pl.col("probability") * 0.99).cast(pl.Float32)).write_parquet(run.paths.predictions)
    seal(run)
    assert list(faults(run)) == ["predictions"]
    assert "differs by" in faults(run)["predictions"][0]


def reweigh(run, stack):
    """Other kept weights of the first block, with checksums to fit."""
    folder = run.paths.block(0, 2)
    write_weights(folder / "best.safetensors", stack)
    done = json.loads((folder / "done.json").read_text())
    done["sha256"] |= checksums(folder, ["best.safetensors"])
    (folder / "done.json").write_text(json.dumps(done))
    seal(run)


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_predictions_that_are_no_numbers_are_found(run, value):
    frame = pl.read_parquet(run.paths.predictions)
    frame.with_columns(probability=pl.lit(value, pl.Float32)).write_parquet(run.paths.predictions)
    seal(run)
    assert list(faults(run)) == ["predictions"]


def test_a_status_that_the_history_does_not_say_is_found(run):
    path = run.paths.block(0, 2) / "done.json"
    path.write_text(path.read_text().replace('"ok"', '"failed"', 1))
    seal(run)
    assert "say that other variants failed" in faults(run)["blocks"][0]


def test_weights_that_others_took_the_place_of_are_found(run):
    stack = run.weights(block=(0, 2))
    stack.theta.mul_(1.5)
    reweigh(run, stack)
    assert faults(run).keys() == {"attention", "predictions"}
    stack.theta[0] = torch.nan
    reweigh(run, stack)
    assert "infinite weights or NaN of variants that are ok" in faults(run)["blocks"][0]


def test_attention_that_does_not_sum_to_1_or_is_of_other_weights_is_found(run):
    path = run.paths.attention(2, 4, 0)
    table = pa.ipc.open_file(path).read_all()
    values = np.array(table["attention"].to_pylist(), np.float32)
    values[3] *= 1.01
    nested = pa.array(values.tolist(), table.schema.field("attention").type)
    changed = table.set_column(4, table.schema.field("attention"), nested)
    metadata = json.loads(table.schema.metadata[b"vmapens"]) | {"weights": "0" * 64}
    changed = changed.replace_schema_metadata({b"vmapens": json.dumps(metadata)})
    with pa.ipc.new_file(path, changed.schema) as writer:
        for batch in changed.to_batches(max_chunksize=7):
            writer.write_batch(batch)
    seal(run)
    found = faults(run)
    assert list(found) == ["attention"]
    assert "is not of its block's weights" in found["attention"][0]
    assert "a row of attention is 1.0e-02 off its sum 1" in found["attention"][1]


def test_tables_of_other_rows_or_columns_are_found(run):
    run.metrics.head(3).write_parquet(run.paths.metrics)
    run.features.drop("unit").write_parquet(run.paths.features)
    folder = run.paths.block(0, 2)
    pl.read_parquet(folder / "history.parquet").head(5).write_parquet(folder / "history.parquet")
    done = json.loads((folder / "done.json").read_text())
    done["sha256"] |= checksums(folder, ["history.parquet"])
    (folder / "done.json").write_text(json.dumps(done))
    seal(run)
    found = faults(open_run(run.paths.root))
    assert any("metrics.parquet has 3 rows, wanted" in fault for fault in found["tables"])
    assert any("features.parquet is not the table that vmapens writes (unit" in fault for fault in found["tables"])
    assert "does not hold one row for each trained epoch" in found["blocks"][0]


def test_without_its_cohort_the_predictions_are_said_not_to_be_computed_again(cohort_folder, tmp_path, capsys):
    shutil.copytree(cohort_folder, tmp_path / "cohort")
    run = train(spec_of(tmp_path / "cohort", epochs=1), tmp_path / "run")
    shutil.move(tmp_path / "cohort", tmp_path / "moved")
    assert "not computed again: the cohort of" in list(verify(run.paths.root))[-1].note
    assert _main(["verify", str(run.paths.root), "--cohort", str(tmp_path / "moved")]) == 0
    assert "computed again, off by 0.0e+00" in capsys.readouterr().out
