"""A variant is its seeds: tables, and the orders of a real DataLoader."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vmapens.ensemble.seeds import Order, construct, orders, variant_table
from vmapens.errors import SpecError
from vmapens.nn import AttentionLSTM
from vmapens.spec import TrainSpec, VariantSpec


def factory():
    return AttentionLSTM(3, 4, hidden=2)


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_orders_are_those_of_a_shuffling_dataloader(seed):
    count, epochs = 23, 3
    torch.manual_seed(seed)
    factory()
    data = TensorDataset(torch.arange(count))
    loader, evaluation = DataLoader(data, 5, shuffle=True), DataLoader(data, 5)
    wanted = []
    for _ in range(epochs):
        wanted.append(torch.cat([batch for (batch,) in loader]))
        list(evaluation)
    order = Order(construct(factory, seed)[1], count, None)
    for epoch in range(epochs):
        assert torch.equal(order.next_epoch(), wanted[epoch])


def test_orders_do_not_depend_on_or_move_the_global_generator():
    table = variant_table(VariantSpec(init_seeds=(0, 1)), TrainSpec())
    torch.manual_seed(1)
    first = [order.next_epoch() for order in orders(factory, table, 10)]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = [order.next_epoch() for order in orders(factory, table, 10)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_variants_are_paired_by_default_and_what_is_not_varied_has_seed_zero_when_crossed():
    paired = variant_table(VariantSpec(init_seeds=(4, 5)), TrainSpec())
    assert paired["order_seed"].to_list() == [4, 5]
    assert paired["bootstrap_seed"].to_list() == [None, None]
    crossed = variant_table(VariantSpec(design="crossed", init_seeds=(4, 5)), TrainSpec())
    assert crossed["order_seed"].to_list() == [0, 0]
    orders_only = variant_table(VariantSpec(design="crossed", order_seeds=(5, 6)), TrainSpec())
    assert orders_only.select("init_seed", "order_seed").rows() == [(0, 5), (0, 6)]
    grid = variant_table(VariantSpec(design="crossed", init_seeds=(0, 1), order_seeds=(5, 6, 7)), TrainSpec())
    assert grid.select("init_seed", "order_seed").rows() == [(i, o) for i in (0, 1) for o in (5, 6, 7)]
    assert grid["variant"].to_list() == list(range(6))


def test_bootstrap_resamples_with_its_own_seed_and_keeps_the_order_protocol():
    state = construct(factory, 0)[1]
    whole = Order(state, 50, None).next_epoch()
    first, again = Order(state, 50, 3).next_epoch(), Order(state, 50, 3).next_epoch()
    assert torch.equal(first, again)
    assert 20 < len(first.unique()) < 45  # 63 % of 50 in expectation, SD 2.2
    sample = torch.randint(50, (50,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, sample[whole])


def test_settings_are_per_variant():
    table = variant_table(VariantSpec(init_seeds=(0, 1)), TrainSpec(lr=(1e-3, 1e-4)))
    assert table["lr"].to_list() == [1e-3, 1e-4]
    with pytest.raises(SpecError, match="lr has 3 values for 2 variants"):
        variant_table(VariantSpec(init_seeds=(0, 1)), TrainSpec(lr=(1.0, 1.0, 1.0)))
