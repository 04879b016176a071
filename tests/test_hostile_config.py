"""Settings that are wrong in any way are one line, or are read right; nothing that data say is run."""

import ast
import json
from pathlib import Path

import pytest
from hostile import changed, damaged, dates, document, ends_well, examples, names, plain
from hypothesis import example, given
from hypothesis import strategies as st

from vmapens.errors import SpecError
from vmapens.spec import PRESETS, RunSpec, from_table, read_config, resolve, to_table, whole_numbers

ROOT = Path(__file__).parents[1]
GOOD = {
    "cohort": {"path": "c", "task": "t", "split_seed": 0, "fractions": [0.7, 0.15, 0.15], "unmatched": "error"},
    "model": {"name": "mine:Own", "options": {"width": 3}},
    "train": {"epochs": 3, "batch_size": 4, "lr": [0.1, 0.2], "weight_decay": 0.0, "snapshots": [0, 3]},
    "variants": {"design": "crossed", "init_seeds": "0:2", "order_seeds": [0, 1], "bootstrap_seeds": []},
    "block": "auto",
    "preset": "",
}
SEEDS = st.sampled_from(
    ["0:10000000000", "0:1000000", "3:1", "-1:2", "0:", ":", "0,0", "1e3", "9" * 5000, "\u0663:\u0665", "0:0x10"]
)


@examples(150)
@given(config=changed(GOOD, plain | dates | SEEDS | st.sampled_from([*PRESETS, "auto", "test:99", "a:b"])))
def test_settings_of_any_type_are_one_line_or_a_spec_that_reads_back(tmp_path, config):
    path = tmp_path / "study.toml"
    path.write_text(document(config if isinstance(config, dict) else {"train": config}), encoding="utf-8")
    spec = ends_well(lambda: resolve({}, read_config(path)), tmp_path)
    if spec is not None:
        assert from_table(json.loads(json.dumps(to_table(spec)))) == spec


@examples(100)
@given(table=changed(to_table(RunSpec())))
def test_a_spec_of_any_json_is_one_line_or_a_spec(tmp_path, table):
    if isinstance(table, dict):
        ends_well(lambda: from_table(table), tmp_path)


@examples(100)
@given(data=damaged(document(GOOD).encode()) | names.map(lambda text: text.encode()))
@example(b"a = " + b"[" * 5000)
@example(b"a = " + b"9" * 5000)
@example(b"train.epochs = 0x" + b"f" * 5000)
@example(b"[[variants]]\n" * 3)
@example(b"\xff\xfe")
def test_a_file_that_is_no_toml_is_one_line(tmp_path, data):
    path = tmp_path / "study.toml"
    path.write_bytes(data)
    ends_well(lambda: resolve({}, read_config(path)), tmp_path)


@examples(100)
@given(text=SEEDS | st.text("0123456789:,- _+\n", max_size=12))
def test_seeds_in_any_words_are_one_line_or_whole_numbers(tmp_path, text):
    found = ends_well(lambda: whole_numbers(text, "--seeds"), tmp_path)
    assert found is None or (len(found) > 0 and all(type(number) is int for number in found))


def test_more_variants_than_a_table_holds_are_refused_before_there_is_one():
    million = "0:1000000"
    with pytest.raises(SpecError, match="the number of variants is 1000000000000, but must be 1000000 at most"):
        resolve({"variants": {"design": "crossed", "init_seeds": million, "order_seeds": million}})
    with pytest.raises(SpecError, match="too long"):
        resolve({"variants": {"init_seeds": "0:10000000000"}})


def test_no_source_runs_what_data_say():
    sources = [path for folder in ("vmapens", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    sources.remove(ROOT / "tests" / "test_hostile_archives.py")  # makes pickles, to see that they are not read
    assert {path: found for path in sources if (found := dangers(path.read_text(encoding="utf-8")))} == {}


DANGEROUS = """
torch.load(p)
torch.load(p, weights_only=False)
np.load(p)
np.load(p, allow_pickle=True)
import pickle
from pickle import loads
exec(t)
eval(t)
yaml.load(f)
safe_globals([X])
"""


@pytest.mark.parametrize("source", DANGEROUS.split("\n")[1:-1])
def test_the_test_can_fail(source):
    assert dangers(source)


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "add_safe_globals", "safe_globals"}
NEEDED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}


def dangers(source: str) -> list[str]:
    """Calls and imports by which data could be run as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found += [module for module in modules if module.split(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given_values = {word.arg: ast.unparse(word.value) for word in node.keywords}
        forbidden = name in FORBIDDEN_CALLS or name.split(".")[0] in FORBIDDEN_MODULES
        word, value = NEEDED.get(name, ("allow_pickle", False))
        if forbidden or given_values.get(word, "False" if name not in NEEDED else "") != str(value):
            found.append(ast.unparse(node))
    return found
