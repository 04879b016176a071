"""The figures in the order of the argument: what each is called, what to look for in it, and what draws it.

The paper is Yadav and Subbian, "When Attention Fails", CHIL 2025; every figure of it has its counterpart here, named.
Matplotlib is imported by this module and those it imports alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from vmapens.atomic import atomic_path
from vmapens.report import canvas, causes, consistency, faithfulness, maps, scores
from vmapens.report.selection import Settings, Tables

SECTIONS = {
    "well": "How well do the variants do?",
    "consistent": "How consistent are they, and about what?",
    "matter": "Does attention matter?",
    "differ": "Why do they differ?",
}


@dataclass(frozen=True)
class Plot:
    """One figure of the report.

    Args:
        name: Of its file and its place on the page.
        section: A key of SECTIONS.
        title: What it shows.
        caption: What to look for, and what chance looks like; `{stay}` and the like are filled in.
        missing: What to run where the tables hold nothing for it.
        draw: From tables and settings to the figure; None where there is nothing to draw.
        counterpart: What it is the counterpart of, in the paper.
        numbers: The same as a table, header first.
    """

    name: str
    section: str
    title: str
    caption: str
    missing: str
    draw: Callable[[Tables, Settings], Figure | None]
    counterpart: str = ""
    numbers: Callable[[Tables, Settings], list[list[str]]] | None = None


@dataclass(frozen=True)
class Drawn:
    """A figure as it stands on the page: its SVG, or None where there was nothing to draw."""

    plot: Plot
    svg: str | None
    caption: str
    numbers: list[list[str]]


_COMPARED = (
    "analyze 2 variants or more whose attention is not uniform: weights that are the same everywhere have no ranking "
    "to compare"
)
_FAITHFUL = "run `vmapens analyze` without `--without faithfulness`"
_OF_FEATURES = (
    "analyze a model whose attention has a weight of its own for every feature (`vmapens train --attend-over feature`)"
)

PLOTS = (
    Plot(
        "scores",
        "well",
        "Scores of the variants",
        "Look for the width: the same model and data, only the seeds differ. Every variant is shown, whatever its "
        "score. The red line is the mean; below, it should have settled long before the last variant. Chance is "
        "{chance}.{failed}",
        "run `vmapens train` to its end, which scores every variant",
        scores.scores,
        "score histograms and running means (analysis 1)",
    ),
    Plot(
        "agreement",
        "consistent",
        "Agreement, and five things it should beat",
        "Red: two variants on the same stay. The blue diamond is what two variants share when they look at two "
        "different stays, a preference that has nothing to do with this patient; the shaded stretch between the two is "
        "the part about the patient. Grey is what unrelated rankings reach. Orange keeps which steps are peaked and "
        "permutes the features within each. Green and pink: before training, and against a variant's own start. Lines "
        "are 95 % intervals over stays.",
        _COMPARED,
        consistency.agreement,
        numbers=consistency.agreement_numbers,
    ),
    Plot(
        "grains",
        "consistent",
        "Agreement about what? Coarser units",
        "A clinician reads a feature in the evening, not one cell: look whether agreement rises as the unit grows, and "
        "whether it is then still about the patient. Orange looks at measured cells alone. 0 is chance in both "
        "panels. Each grain at its own middle k, at least 1: where units are few, that is a larger share of them. "
        "Windows have no ranking, and no dot, where the attention of each step sums to 1. Lines are 95 % intervals "
        "over stays.",
        _COMPARED,
        consistency.grains,
    ),
    Plot(
        "measured",
        "consistent",
        "Were the most attended cells measured at all?",
        "Share of the k most attended cells that were measured in that very step, a dot a stay. An imputed cell whose "
        "scaled value is 0 carries weight but no information. The dotted line is chance: the share of all cells "
        "that were measured. Left of it, attention prefers what was filled in.",
        "run `vmapens analyze` again: this analysis lacks the table",
        consistency.measured,
    ),
    Plot(
        "drop",
        "consistent",
        "Attention drop",
        "Cells that the first n variants all have among their k most attended. Thin: one stay, variants in a random "
        "order of its own; bold: their mean; dashed: the mean over all orders, exactly, which should lie on the bold "
        "line. Dotted is chance, k (k/N)^(n-1). All fall by construction; look at how far they lie above it. Below 1 "
        "the scale is linear, so that 0 shows.",
        _COMPARED,
        consistency.drop,
        "attention drop (analysis 2), in its form and in the exact one",
    ),
    Plot(
        "held",
        "consistent",
        "Cells that most variants hold",
        "Cells in the top k of at least 50, 80 and 95 % of the variants, as a share of k, a dot a stay. 1 would mean "
        "that all agree on the same k cells. The black tick is chance, mostly no cell at all.",
        _COMPARED,
        consistency.held,
    ),
    Plot(
        "rank_maps",
        "consistent",
        "Mean and SD of the rank of every cell",
        "Stay {stay}. Whole columns of one colour are steps at which the softmax is more peaked: they make ranks agree "
        "and say nothing about features. Without any agreement the mean would be {half} everywhere, give or take "
        "the SD over the root of the number of variants.",
        _OF_FEATURES,
        maps.rank_maps,
        "maps of rank mean and variance (analysis 3)",
    ),
    Plot(
        "rank_histograms",
        "consistent",
        "Mean rank over more and more variants",
        "If variants did not agree, mean ranks would gather around the middle as n grows: the red outline. As long as "
        "the blue area stays wide, the variants agree on what ranks high and low. At n = 1 the two are alike "
        "(where cells are few, but for bins that hold more ranks than others). Mean over the stays.",
        _COMPARED,
        maps.rank_histograms,
        "cumulative histograms of the mean rank (analysis 3)",
    ),
    Plot(
        "rank_spread",
        "consistent",
        "Smallest and largest spread of a rank",
        "SD over the first n variants of the rank of the steadiest and of the least steady cell; thin lines are "
        "stays. Both are extremes of many cells and move with n; the dotted line is the SD that a cell has without "
        "agreement, in the mean. No interval: near n = V there is none that is valid.",
        _COMPARED,
        maps.rank_spread,
        "smallest and largest SD against the number of variants (analysis 4)",
    ),
    Plot(
        "maps",
        "consistent",
        "Four variants on one stay",
        "Stay {stay}; best, median and worst by validation loss, and the one that agrees least with all others: none "
        "picked by hand. Squares mark the {map_k} most attended cells. All panels have one scale. Look whether the "
        "squares are in the same places; by chance {map_share} of them would be.",
        _OF_FEATURES,
        maps.maps,
        "attention maps with the largest cells marked (analysis 5)",
    ),
    Plot(
        "weights",
        "consistent",
        "The attention's weight matrix",
        "What makes the attention: its linear layer. Look for structure that survives the mean over variants; of "
        "unrelated matrices it would fade to {fade} of a single one. Orange is negative, purple positive.",
        "analyze a model with a linear attention layer (`vmapens train --attend-over feature` or `time`)",
        maps.weights,
        "weight matrix, plain and clustered (analysis 5)",
    ),
    Plot(
        "controls",
        "matter",
        "The same model with other attention, and with none",
        "If the model needed its attention, uniform weights (no attention) and attention frozen as initialised would "
        "score lower. Dots are means over variants (their number in brackets), lines 95 % intervals over stays. A "
        "difference whose line crosses 0 cannot be told from none.",
        "give `vmapens analyze` several runs on the same cohort: first the one with attention, then ones trained with "
        "`--attend-over uniform` and `--freeze-attention`",
        scores.controls,
        numbers=scores.controls_numbers,
    ),
    Plot(
        "faithfulness",
        "matter",
        "Erasing what is attended to",
        "Change of the logit of class 1 (of the true class, if there are several) when the cells that a mask ranks "
        "highest are replaced by the training mean, or only they are kept. What matters is attention (red, bold) "
        "against the same mask rolled in time (black, dashed): if they are close, it is the shape of the mask that "
        "moves the logit, not its place. Random cells are the weakest baseline. Bands are 95 % intervals over stays.",
        _FAITHFUL,
        faithfulness.faithfulness,
        "erasing the cells common to all variants (analysis 7)",
    ),
    Plot(
        "faithfulness_choices",
        "matter",
        "The same with other ways to erase",
        "Replaced by the training mean, or by another patient's value; attention computed anew on what is left, or "
        "held as it was. A finding that turns with this choice is about the choice.",
        _FAITHFUL,
        faithfulness.faithfulness_choices,
    ),
    Plot(
        "permutation",
        "matter",
        "Permuting the attention",
        "How far the prediction moves when the weights are handed to other features of the step, or, where the softmax "
        "runs over steps, to other steps. Near 0, the prediction does not depend on where each weight is.",
        _FAITHFUL + ", on a model that can be given its attention (it has `logits_given`)",
        faithfulness.permutation,
        "shuffling the attention weights (analysis 7)",
    ),
    Plot(
        "attributions",
        "matter",
        "Consistent, faithful, right: three things",
        "Attention (red) beside its alternatives. Agreement among variants does not make an explanation faithful to "
        "the model, nor right about the cause. More is better in every panel; grey ticks are chance. Lines are 95 % "
        "intervals.",
        "run `vmapens analyze` on 2 variants or more",
        faithfulness.attributions,
        numbers=faithfulness.attributions_numbers,
    ),
    Plot(
        "planted",
        "matter",
        "Finding the planted cause",
        "On this made-up cohort the cells that cause the outcome are known. A dot a variant; the dotted line is what a "
        "random order of the cells reaches in the mean. The cause shows in correlated features and in values carried "
        "forward too, so even a perfect model does not reach 1.",
        "make a cohort of which the truth is known (`vmapens import synthetic --out COHORT`) and train on it",
        faithfulness.planted,
    ),
    Plot(
        "learned_mask",
        "matter",
        "A learned mask instead of attention",
        "ExtremalMask (Enguehard 2023) for the best variants, and their attention, a dot a stay. Orange is the same "
        "overlap with features permuted within each step, the part that is recency alone. Masks that beat attention "
        "only as far as orange does agree on time, not on features.",
        "run `vmapens analyze` without `--without learned_mask`",
        faithfulness.learned_mask,
        "learned-mask attribution (analysis 6)",
    ),
    Plot(
        "decomposition",
        "differ",
        "Initialisation or order of the data?",
        "Of the disagreement between variants that share no seed, the share that goes away when two variants share "
        "one. Without any effect a share is 0. Lines are 95 % intervals over the levels of the factor.",
        "train a model with attention (not `uniform`) with `--design crossed --init-seeds 0:16 --order-seeds 0:8`, and "
        "give that run to `vmapens analyze`",
        causes.decomposition,
    ),
    Plot(
        "epochs",
        "differ",
        "When do they come apart?",
        "Agreement of the variants at each saved epoch, from before training to the last, and at the epoch that was "
        "kept for each. If the red diamond lies off the line, the rule that picks the epoch is itself a cause. Lines "
        "are 95 % intervals over stays.",
        "train a model with attention (not `uniform`) with `--snapshots 0,1,5,15`, and analyze that run",
        causes.epochs,
    ),
    Plot(
        "rashomon",
        "differ",
        "Are the good ones alike?",
        "Variants within epsilon of the lowest validation loss. If good variants converged on one explanation, red "
        "would rise above grey towards small epsilon. The grey band holds 95 % of sets of as many variants drawn at "
        "random: agreement within epsilon means something only above it. Ambiguity is the share of test "
        "stays on which some of them flips the best one's decision (threshold {threshold}). A p-value above 0.05 "
        "(dotted) means that a variant cannot be told from the best, chosen as that one is among {variants}.",
        _COMPARED,
        causes.rashomon,
    ),
    Plot(
        "reliability",
        "differ",
        "Is a better score a better variant?",
        "If scores were a property of the variants, those that do well on the validation stays would do well on the "
        "test stays. At a rank correlation of 0 (dotted) picking the best variant picks noise.",
        "take more variants, scored on both the validation and the test stays",
        scores.reliability,
    ),
)


def draw_all(tables: Tables, settings: Settings, folder: Path | None = None, form: str = "svg") -> Iterator[Drawn]:
    """Draw every figure for the page, and each as a file too where there is a folder for them."""
    words = _words(tables, settings)
    for plot in PLOTS:
        svg, numbers = None, []
        with canvas.style(plot.name):
            figure = plot.draw(tables, settings)
            if figure is not None:
                svg = canvas.inline_svg(figure, plot.name, escape(plot.title, quote=True))
                numbers = plot.numbers(tables, settings) if plot.numbers else []
                if folder is not None:
                    with atomic_path(folder / f"{plot.name}.{form}") as temporary:
                        canvas.write(figure, temporary, form)
        yield Drawn(plot, svg, plot.caption.format_map(words), numbers)


def _words(tables: Tables, settings: Settings) -> dict[str, str]:
    """What the captions fill in."""
    stay = maps.first_stay(tables)
    shape = maps.read_map(tables, settings, sample=stay, kind="mean") if stay is not None else None
    cells = int(settings["steps"]) * len(settings["features"]) if shape is None else shape.size
    variants = int(settings["variants"])
    failed, prevalence, threshold = settings.get("failed"), settings.get("prevalence"), settings.get("threshold")
    if settings.get("kind") == "binary":
        chance = "0.5 for AUROC, and for average precision the prevalence"
        chance += f" ({prevalence:.3f} in the training split)" if isinstance(prevalence, float) else ""
    else:
        chance = f"1/{len(settings['classes'])} for balanced accuracy, and 0.5 for macro AUROC"
    return {
        "stay": stay or "",
        "half": f"{(cells + 1) / 2:,.0f}",
        "map_k": f"{settings['map_k']:,}",
        "map_share": f"{100 * settings['map_k'] / cells:.2g} %",
        "fade": f"1/{variants**0.5:.0f}",
        "failed": f" {failed} variants failed and are left out." if failed else "",
        "chance": chance,
        "threshold": f"{threshold:.3g}" if threshold is not None else "not given",
        "variants": f"{variants:,}",
    }
