"""What the report says about how each number is computed: plain text, a term to its meaning."""

METHODS = {
    "Attention and stays": """Attention is computed anew from the weights of every variant, stay by stay. A cell is one
        feature at one step. N is the number of cells, V that of variants, k the size of a set of most attended
        cells.""",
    "Overlap": """Share of their k most attended cells that two variants have in common, mean over all pairs; ties are
        broken at random. Unrelated variants reach k/N. Corrected for chance: (overlap - k/N) / (1 - k/N).""",
    "Spearman": """Rank correlation of all cells (average ranks for ties), mean over all pairs of variants, by the
        identity that needs no loop over pairs. A variant whose map is constant has no ranking and is left out.""",
    "Divergence": """Generalised Jensen-Shannon divergence over all variants, step by step: entropy of the mean less
        mean entropy, over the entropy of the mean; mean over the steps. Without the division, maps near uniform would
        pass for alike.""",
    "Grains": """The same for features (summed over time), groups of features (mean of these sums), windows of time
        (summed over features), and for cells with a tolerance of a few steps.""",
    "The five references": """Chance; features permuted within each step, which keeps how peaked each step is; two
        variants on two different stays; the variants before any training; each variant against itself before
        training. About the patient: agreement on the same stay less that on different stays, also as a share of what
        is beyond chance.""",
    "Attention drop": """Cells that the first n variants all have in their top k. One random order for each stay and k,
        from the seed below; and the mean over all orders, exactly: the sum over cells of C(c, n) / C(V, n), c the
        number of variants that have the cell.""",
    "Faithfulness": """Change of the signed logit (of class 1; of the true class if there are several) when the top q of
        the cells by a mask are erased, or only they are kept. Baselines rank the cells otherwise; the one to beat
        is the same mask rolled in time.""",
    "Permuted attention": """Total variation of the prediction when each step's weights are permuted over features,
        or, where the softmax runs over steps, over steps.""",
    "Planted truth": """Average precision of finding the cells that cause the outcome, on stays in which the cause
        acts.""",
    "Decomposition": """Random effects of initialisation, order of the data (and choice of the training stays) on the
        agreement of pairs, in a crossed design; as shares of the disagreement of variants that share nothing.""",
    "Good variants": """Within epsilon of the lowest validation loss; their agreement is measured on test stays. The
        test against the best is paired over stays and corrected for having chosen the best among V. Ambiguity: share
        of test stays on which some good variant flips the best one's decision; discrepancy: largest share that one of
        them flips.""",
    "Learned masks": """ExtremalMask (Enguehard 2023), for the best variants: the smallest mask that keeps the
        prediction, what stands in the other cells being learned, too.""",
}
INTERVALS = (
    ("question", "drawn again", "how"),
    ("Would other stays of this kind say the same?", "stays", "bootstrap, whole patients at a time"),
    (
        "Would other seeds say the same?",
        "variants",
        "jackknife, one variant left out at a time; never a bootstrap, whose duplicates agree with themselves",
    ),
    (
        "Would other initialisations or orders say the same?",
        "levels",
        "jackknife, one level of a factor left out at a time",
    ),
)
