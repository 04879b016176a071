"""The proof: a variant is the model that a plain sequential script trains, and the same bytes in any company."""

import pytest
import torch
from twin import PlainAttentionLSTM, train_one_seed

from vmapens.cohort.importers.physionet2012 import read_physionet2012
from vmapens.cohort.load import load_cohort
from vmapens.cohort.write import write_cohort
from vmapens.ensemble.epoch import Block, Data, train_epoch
from vmapens.ensemble.seeds import construct, orders, variant_table
from vmapens.ensemble.stack import stack_modules
from vmapens.ensemble.step import attend, predict
from vmapens.nn import AttentionLSTM
from vmapens.nn.kernels import use_kernel
from vmapens.nn.threads import spread_over
from vmapens.spec import CohortSpec, TrainSpec, VariantSpec

# float64: another order of sums (seen: 1e-15). float32: two epochs of rounding at 6e-8 each (seen: 3e-7).
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
KERNELS = [
    ("reference", torch.float64),
    ("reference", torch.float32),
    ("onednn", torch.float32),
    ("compiled", torch.float32),
    ("batched", torch.float64),
    ("batched", torch.float32),
]


def made_data(samples, steps, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, steps, features, generator=generator)
    return x, (torch.rand(samples, generator=generator) < 0.3).long()


def train_ensemble(
    seeds, x, y, *, hidden, epochs, batch_size=64, width=None, workers=None, dtype=torch.float32, outputs=1,
    over="feature", settings_of=None, nan_in=None,
):  # fmt: skip
    """Train the seeds as one block; gives the block, predictions and attention of the first samples."""
    kind = "binary" if outputs == 1 else "multiclass"

    def factory():
        return AttentionLSTM(x.shape[2], x.shape[1], outputs, hidden=hidden, attend_over=over)

    spec = TrainSpec(epochs=epochs, batch_size=batch_size, **(settings_of or {}))
    table = variant_table(VariantSpec(init_seeds=tuple(seeds)), spec)
    stack = stack_modules((construct(factory, seed)[0] for seed in seeds), len(seeds), dtype)
    if nan_in is not None:
        stack.theta[nan_in, 0] = torch.nan
    x = x.to(dtype)
    data = Data(kind, x, y, torch.arange(len(x)), torch.arange(len(x))[:50], torch.arange(len(x))[:50])
    block = Block.start(stack, table, list(orders(factory, table, len(x))))
    model = factory().to(dtype)
    with spread_over(workers):
        for _ in range(epochs):
            block.retire(spec.patience)
            train_epoch(model, block, data, spec, width=width or len(seeds))
        block.sort()
        stack = block.stack
        probability, attention = predict(model, kind, stack, x[:70]), attend(model, stack, x[:5])
    return block, probability, attention, block.scores()


def largest_difference(block, row, plain):
    own = block.stack.state_dict(row)
    assert own.keys() == plain.state_dict().keys()
    return max((own[name] - value).abs().max().item() for name, value in plain.state_dict().items())


@pytest.fixture(scope="module")
def physionet(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("physionet") / "set-a"
    write_cohort(folder, *read_physionet2012([shared_data / "physionet2012-set-a.tar.xz"]))
    cohort = load_cohort(CohortSpec(path=str(folder), task="mortality"))
    rows = cohort.rows("train")[:300]
    return cohort.x[rows], cohort.y[rows]


@pytest.mark.parametrize(("kernel", "dtype"), KERNELS)
def test_a_variant_is_the_model_of_the_sequential_script_on_real_patients(physionet, kernel, dtype):
    x, y = physionet
    seeds = (0, 1, 7)
    with use_kernel(kernel):
        block, *_ = train_ensemble(seeds, x, y, hidden=32, epochs=2, dtype=dtype)
    for row, seed in enumerate(seeds):
        plain = train_one_seed(seed, x, y, hidden=32, epochs=2, batch_size=64, dtype=dtype)
        assert largest_difference(block, row, plain) <= TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "dtype"), [("reference", torch.float64), ("onednn", torch.float32), ("compiled", torch.float32)]
)
def test_a_variant_is_the_model_of_the_sequential_script_at_the_papers_shape(kernel, dtype):
    x, y = made_data(130, 288, 231)
    with use_kernel(kernel):
        block, *_ = train_ensemble((0, 1), x, y, hidden=128, epochs=1, dtype=dtype)
    for row, seed in enumerate((0, 1)):
        plain = train_one_seed(seed, x, y, hidden=128, epochs=1, batch_size=64, dtype=dtype)
        assert largest_difference(block, row, plain) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("over", "outputs"), [("time", 1), ("feature", 4), ("time", 3)])
def test_time_attention_and_several_classes_follow_the_script_too(over, outputs):
    x, y = made_data(90, 12, 7)
    y = (torch.arange(90) * 7) % outputs if outputs > 1 else y
    with use_kernel("reference"):
        block, *_ = train_ensemble((0, 3), x, y, hidden=5, epochs=2, dtype=torch.float64, over=over, outputs=outputs)
    for row, seed in enumerate((0, 3)):
        options = {"hidden": 5, "epochs": 2, "batch_size": 64, "over": over, "outputs": outputs}
        plain = train_one_seed(seed, x, y, dtype=torch.float64, **options)
        assert largest_difference(block, row, plain) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("over", ["feature", "time", "pool", "uniform"])
def test_the_interpreted_triton_kernels_follow_the_script_for_a_few_steps(over):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("runs in Triton's interpreter; make gpu-check compiles")
    x, y = made_data(20, 4, 7)
    options = {"hidden": 5, "epochs": 1, "batch_size": 8, "over": over}
    with use_kernel("triton"):
        block, *_ = train_ensemble((0, 3), x, y, **options)
    if over in ("feature", "time"):
        plain = [train_one_seed(seed, x, y, **options) for seed in (0, 3)]
        assert max(largest_difference(block, row, plain[row]) for row in (0, 1)) <= TOLERANCE[torch.float32]
    with use_kernel("reference"):
        wanted, *_ = train_ensemble((0, 3), x, y, **options)
    assert (block.stack.theta - wanted.stack.theta).abs().max() <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("kernel", ["reference", "onednn", "compiled"])
def test_company_block_width_and_threads_change_no_byte(physionet, kernel):
    x, y = physionet
    options = {"hidden": 32, "epochs": 2}
    with use_kernel(kernel):
        alone = {s: train_ensemble((s,), x, y, workers=1, **options) for s in (0, 1, 7)}
        for seeds, width, workers in [
            ((0, 1, 7), 3, 2),
            ((5, 7, 2, 1, 3, 0, 4, 6), 8, 2),
            ((5, 7, 2, 1, 3, 0, 4, 6), 3, 3),
        ]:
            together = train_ensemble(seeds, x, y, width=width, workers=workers, **options)
            for seed, (block, probability, attention, history) in alone.items():
                row = seeds.index(seed)
                assert torch.equal(together[0].stack.theta[row], block.stack.theta[0])
                assert torch.equal(together[0].best.theta[row], block.best.theta[0])
                assert torch.equal(together[0].state.second[row], block.state.second[0])
                assert torch.equal(together[1][row], probability[0])
                assert torch.equal(together[2][row], attention[0])
                assert together[3].filter(variant=row).drop("variant").equals(history.drop("variant"))


@pytest.mark.parametrize("metric", ["auroc", "log_loss"])
@pytest.mark.parametrize("kernel", ["reference", "onednn", "compiled"])
def test_nan_in_one_variant_leaves_all_others_bit_identical(kernel, metric):
    x, y = made_data(70, 6, 5)
    options = {"hidden": 4, "epochs": 2, "settings_of": {"select_by": metric}}
    with use_kernel(kernel):
        good = train_ensemble((0, 1, 2), x, y, **options)
        bad = train_ensemble((0, 1, 2), x, y, **options, nan_in=1)
    assert bad[0].status() == ["ok", "failed", "ok"]
    assert bad[0].scores().filter(status="failed").select("variant", "epoch").rows() == [(1, 1)]
    theta = bad[0].stack.theta
    assert torch.isnan(theta[1, 0])  # put back to where it was
    for row in (0, 2):
        assert torch.equal(good[0].stack.theta[row], theta[row])
        assert torch.equal(good[1][row], bad[1][row])


def test_other_learning_rates_beside_it_change_no_byte():
    x, y = made_data(70, 6, 5)
    same = train_ensemble((0, 1), x, y, hidden=4, epochs=2)
    other = train_ensemble(
        (0, 1), x, y, hidden=4, epochs=2, settings_of={"lr": (5e-4, 1e-1), "weight_decay": (1e-6, 0.1)}
    )
    assert torch.equal(same[0].stack.theta[0], other[0].stack.theta[0])
    assert not torch.equal(same[0].stack.theta[1], other[0].stack.theta[1])


def test_the_best_epoch_is_kept_and_of_equal_ones_the_earliest():
    x, y = made_data(70, 6, 5)
    block, *_, history = train_ensemble((0, 1), x, y, hidden=4, epochs=4, settings_of={"lr": (1e-2, 1e-30)})
    scores = [history.filter(variant=row)["valid_auroc"].to_list() for row in (0, 1)]
    assert block.kept_epoch[0] == scores[0].index(max(scores[0])) + 1
    assert len(set(scores[1])) == 1  # nothing moves at that learning rate
    assert block.kept_epoch[1] == 1


def test_a_samples_attention_does_not_depend_on_which_others_are_asked_for():
    x, y = made_data(150, 6, 5)
    for over in ("feature", "time", "pool"):
        block, *_ = train_ensemble((3, 4), x, y, hidden=4, epochs=1, over=over)
        model = AttentionLSTM(5, 6, 1, hidden=4, attend_over=over)
        order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
        every = attend(model, block.stack, x)
        assert torch.equal(attend(model, block.stack, x[order]), every[:, order])
        assert torch.equal(attend(model, block.stack, x[7:8]), every[:, 7:8])


def test_predictions_equal_the_plain_modules_probabilities():
    x, y = made_data(300, 6, 5)
    block, probability, attention, _ = train_ensemble((3,), x, y, hidden=4, epochs=1)
    plain = PlainAttentionLSTM(5, 6, 4, 1)
    plain.load_state_dict(block.stack.state_dict(0))
    with torch.no_grad():
        assert (torch.sigmoid(plain(x[:70]))[:, 0] - probability[0]).abs().max() < 1e-6
        assert (plain.attend(x[:5]) - attention[0]).abs().max() < 1e-6
