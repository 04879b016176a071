"""The answer in four sentences: its numbers are those of the tables, and what holds 0 is not called an effect."""

import polars as pl
import pytest

from tests.made_analysis import made_settings, made_tables
from vmapens.analysis.tables import TABLES
from vmapens.report import sentences


def table(name, *rows):
    return {name: pl.DataFrame(list(rows), schema=TABLES[name], orient="row", strict=False)}


def consistency(**estimates):
    what = ("attention", "cell", "all", "overlap", 7, 3)
    return table("consistency", *((*what, quantity, *three, "stays") for quantity, three in estimates.items()))


def control(form, metric, difference, low, high):
    return (f"runs/{form}", form, 12, "test", metric, 0.8, 0.01, 0.7, 0.9, difference, low, high)


def test_how_well_gives_mean_sd_range_and_chance():
    tables = table("scores", *((v, "test", "auroc", value, 0.0, "ok") for v, value in enumerate((0.7, 0.8, 0.9))))
    first = sentences(tables, made_settings(bayes_auroc=0.95))[0]
    assert first == (
        "On the test stays the 3 variants reach a mean AUROC of 0.800 (SD 0.100, 0.700 to 0.900), where chance is 0.5, "
        "and the best possible 0.950."
    )


def test_with_several_classes_chance_is_their_share():
    tables = made_tables(kind="multiclass")
    assert "balanced accuracy" in (first := sentences(tables, made_settings(kind="multiclass"))[0])
    assert "chance is 0.25" in first


def test_how_consistent_gives_the_part_about_the_patient():
    tables = consistency(
        value=(0.5, 0.4, 0.6),
        corrected=(0.41, 0.38, 0.44),
        cross_patient=(0.4, 0.3, 0.5),
        patient_share=(0.25, 0.2, 0.3),
    )
    assert sentences(tables, made_settings())[1] == (
        "Two variants share 50.0 % of the 7 cells that each attends to most on the same stay: 0.410 [0.380, 0.440] on "
        "a scale from 0 (chance) to 1 (all alike); but two variants that look at two different stays share 40.0 % "
        "already, so 25 [20, 30] % of what is beyond chance is about the patient."
    )


def test_agreement_that_may_be_chance_or_not_about_the_patient_is_said_to_be():
    tables = consistency(
        value=(0.2, 0.1, 0.3), corrected=(0.01, -0.02, 0.04), cross_patient=(0.2, 0.1, 0.3), patient_share=(0.1, -1, 1)
    )
    second = sentences(tables, made_settings())[1]
    assert "cannot be told from chance" in second
    assert "what is about the patient, 10 [-100, 100] % of it, cannot be told from nothing" in second


@pytest.mark.parametrize(
    ("ends", "words"),
    [((0.001, 0.005), False), ((-0.001, 0.005), True), ((None, None), True)],
)
def test_does_it_matter_calls_no_difference_that_may_be_none(ends, words):
    controls = table("controls", control("feature", "auroc", 0, 0, 0), control("uniform", "auroc", 0.003, *ends))
    third = sentences(controls, made_settings())[2]
    assert "changes by +0.003" in third
    assert ("cannot be told from none" in third) == words


@pytest.mark.parametrize(
    ("three", "words"),
    [
        ((0.3, 0.2, 0.4), "further, either way, than erasing the same mask rolled in time, by 0.300 [0.200, 0.400]"),
        (
            (-0.3, -0.4, -0.2),
            "less far, either way, than erasing the same mask rolled in time, by 0.300 [0.200, 0.400]",
        ),
        ((0.1, -0.1, 0.3), "no further, either way, than erasing the same mask rolled in time, as far as can be told"),
    ],
)
def test_does_it_matter_compares_erasing_with_the_mask_rolled_in_time(three, words):
    tables = table("attributions", ("attention", "faithful", *three, 0.0))
    assert words in sentences(tables, made_settings())[2]


def test_a_run_without_attention_is_not_compared_with_itself():
    controls = table("controls", control("uniform", "auroc", 0, 0, 0), control("feature", "auroc", 0.1, 0.05, 0.2))
    assert "changes by" not in sentences(controls, made_settings(form="uniform"))[2]


def test_why_they_differ_gives_the_share_of_each_factor():
    rows = [
        ("runs/x", "overlap", 7, component, 8, *three, "levels")
        for component, three in {
            "init": (0.9, 0.8, 1.0),
            "order": (0.01, -0.02, 0.04),
            "residual": (0.1, 0, 0.2),
        }.items()
    ]
    assert sentences(table("decomposition", *rows), made_settings())[3] == (
        "Of the disagreement of variants that share no seed, the initialisation explains 90 [80, 100] % and the order "
        "of the data 1 [-2, 4] % (which cannot be told from nothing); these intervals are over seeds."
    )


def test_what_was_not_analysed_says_what_to_run():
    well, consistent, matter, differ = sentences({}, made_settings())
    assert "No score is known" in well
    assert "vmapens analyze" in consistent
    assert "--attend-over uniform" in matter
    assert "--design crossed" in differ


def test_the_answer_is_plain_text_of_one_line_each():
    for kind in ("binary", "multiclass"):
        answer = sentences(made_tables(kind=kind), made_settings(kind=kind))
        assert len(answer) == 4
        assert all(text.isascii() and text.endswith(".") and "\n" not in text for text in answer)
