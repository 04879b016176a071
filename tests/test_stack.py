"""One tensor holds V modules, bit by bit."""

import pytest
import torch

from vmapens.ensemble.seeds import construct
from vmapens.ensemble.stack import columns_of, stack_modules
from vmapens.errors import StackError
from vmapens.nn import AttentionLSTM


def factory():
    return AttentionLSTM(5, 7, 2, hidden=3)


def test_row_s_is_plain_construction_under_seed_s_bit_by_bit():
    seeds = [0, 7, 3, 2**40]
    stack = stack_modules((construct(factory, seed)[0] for seed in seeds), len(seeds))
    for row, seed in enumerate(seeds):
        torch.manual_seed(seed)
        plain = factory().state_dict()
        own = stack.state_dict(row)
        assert own.keys() == plain.keys()
        assert all(torch.equal(own[name], plain[name]) for name in plain)


def test_construction_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    construct(factory, 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_columns_are_aligned_disjoint_and_views_share_memory():
    stack = stack_modules([factory(), factory()], 2)
    ends = 0
    for column in stack.columns:
        assert column.start % 16 == 0
        assert column.start >= ends
        ends = column.stop
    assert stack.theta.shape[1] % 16 == 0
    stack.views(trained=True)["dense.bias"][1] = 9.0
    assert torch.equal(stack.state_dict(1)["dense.bias"], torch.full((2,), 9.0))
    assert stack.parameters_per_variant == sum(p.numel() for p in factory().parameters())


def test_frozen_parameters_and_float_buffers_come_last_and_are_not_trained():
    class WithBuffer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.randn(3))
            self.register_buffer("count", torch.tensor(1))
            self.frozen = torch.nn.Parameter(torch.randn(2), requires_grad=False)
            self.weight = torch.nn.Parameter(torch.randn(()))

    columns = columns_of(WithBuffer())
    assert [(c.name, c.trained) for c in columns] == [("weight", True), ("frozen", False), ("scale", False)]
    stack = stack_modules([WithBuffer()], 1)
    assert stack.trained_width == 16
    assert stack.views(trained=True)["weight"].shape == (1,)


def test_modules_of_another_shape_are_refused_by_variant_and_name():
    with pytest.raises(StackError, match=r"variant 1 of 2: `lstm.weight_ih_l0` has shape \(16, 5\), but variant 0"):
        stack_modules([AttentionLSTM(5, 7, 2, hidden=3), AttentionLSTM(5, 7, 2, hidden=4)], 2)
    with pytest.raises(StackError, match=r"variant 1 of 2 has other parameters than variant 0: attention\."):
        stack_modules([AttentionLSTM(5, 7, 2, hidden=3), AttentionLSTM(5, 7, 2, hidden=3, attend_over="uniform")], 2)


def test_whole_number_buffers_must_be_the_same_in_all_variants():
    def module(number):
        built = torch.nn.Linear(2, 1)
        built.register_buffer("places", torch.tensor([number, 1]))
        return built

    stack_modules([module(0), module(0)], 2)
    with pytest.raises(StackError, match=r"variant 1 of 2: the buffer `places` \(torch\.int64\) differs"):
        stack_modules([module(0), module(5)], 2)


def test_nothing_to_train_is_refused():
    with pytest.raises(StackError, match="nothing to train"):
        columns_of(torch.nn.Identity())
