"""Not worse by a margin, chances, power and means over networks: against scipy, simulations and definitions."""

import itertools
import math
import statistics

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from dnat.lab.cli import cli
from dnat.lab.summary import markdown, summarize
from dnat.lab.summary.aggregation import aggregates, interquartile_mean, stratified_interval
from dnat.lab.summary.comparison import not_worse
from dnat.lab.summary.judgements import judgements
from dnat.lab.summary.power import (
    Question,
    deviation_interval,
    pooled_deviation,
    seeds_of_exact,
    seeds_of_t,
    shown_sizes,
    t_power,
)
from dnat.lab.summary.statistics import chances, holm, sign_flip
from tests.test_summary import OURS, THEIRS, close, record, records_of

SAMPLES = [
    [0.1, -0.2, 0.05],
    [0.5, 0.5, 0.4, 0.6, 0.55],
    [-1.0, 0.2, -0.4, 0.1, 0.3, -0.2],
    [0.0, 0.0, 1.0, -1.0],
    [-0.3, -0.3, -0.3],
]


# Not worse by a margin.


@pytest.mark.parametrize("merits", SAMPLES)
@pytest.mark.parametrize("margin", [0.1, 0.3, 1.0])
def test_not_worse_is_scipys_one_sided_test_of_shifted_differences(merits, margin):
    found = not_worse(merits, margin, 0.95)
    shifted = np.array(merits) + margin
    # Each way to choose signs, rounding aside.
    ways = [np.dot(signs, shifted) for signs in itertools.product((1, -1), repeat=len(shifted))]
    assert found.p_flip == close(np.mean(np.array(ways) >= shifted.sum() - 1e-12))
    flips = stats.permutation_test(
        (shifted,), np.mean, permutation_type="samples", alternative="greater", n_resamples=math.inf
    )
    assert found.p_flip == close(flips.pvalue)
    if len(set(merits)) > 1:
        assert found.p_t == close(stats.ttest_1samp(merits, -margin, alternative="greater").pvalue)
        bound = stats.ttest_1samp(merits, 0, alternative="greater").confidence_interval(0.95).low
        assert found.worst == close(bound)
        # What the interval says is what the t test says.
        assert (found.worst > -margin) == (found.p_t < 0.05)
    else:
        assert (found.p_t, found.worst) == (None, merits[0])
    assert (found.test, found.p, found.least_p) == ("sign-flip", found.p_flip, 0.5 ** len(merits))


def told(summary):
    """The tables of judgements in Markdown."""
    return "\n\n".join(table.markdown() for table in judgements(summary))


def over_all(summary):
    """That over all networks; empty where there is none."""
    return "".join(t.markdown() for t in judgements(summary) if t.title == "Over all networks")


def test_many_seeds_take_the_t_test():
    merits = np.random.default_rng(0).normal(0, 0.3, 21).tolist()
    found = not_worse(merits, 0.2, 0.95)
    assert (found.test, found.p_flip, found.least_p) == ("t", None, 0.0)
    assert found.p == close(stats.ttest_1samp(merits, -0.2, alternative="greater").pvalue)
    equal = not_worse([0.0] * 21, 0.2, 0.95)
    assert (equal.test, equal.p) == ("", None)


def test_a_method_at_the_margin_is_passed_as_rarely_as_it_says():
    """Of differences that are as bad as the margin on average, 5 % at most are called not worse."""
    drawn = np.random.default_rng(2).normal(-0.3, 0.4, size=(2000, 7)).tolist()
    passed = [not_worse(merits, 0.3, 0.95) for merits in drawn]
    assert np.mean([t.p_flip <= 0.05 for t in passed]) < 0.065
    assert np.mean([t.p_t <= 0.05 for t in passed]) == pytest.approx(0.05, abs=0.015)


def summary_of(margin, **methods):
    return summarize(records_of({"original": OURS} | methods), margin=margin)


def test_methods_of_a_summary_are_not_worse():
    equal = [a + d for a, d in zip(OURS, (0.1, -0.1, 0.05, 0.0, -0.05, 0.1), strict=True)]
    summary = summary_of(0.5, nat=THEIRS, random=equal)
    tests = {c.method: c.not_worse for c in summary.comparisons}
    alone = {
        m: not_worse([b - a for a, b in zip(OURS, v, strict=True)], 0.5, 0.95)
        for m, v in (("nat", THEIRS), ("random", equal))
    }
    assert {m: t.p for m, t in tests.items()} == {m: close(t.p) for m, t in alone.items()}
    corrected = holm([tests["nat"].p, tests["random"].p])
    assert [tests["nat"].p_holm, tests["random"].p_holm] == corrected
    assert tests["random"].p_holm == 2 / 2**6 <= summary.significance < tests["nat"].p_holm
    assert tests["nat"].least_p_holm == 2 / 2**6
    text = told(summary)
    (row,) = (line for line in text.splitlines() if line.startswith("|  | random") or "| random" in line)
    assert row.endswith(r"| 0.0312 * |")
    assert "within ±0.5 points" in text
    assert "original by 0.5 points or more" not in text
    assert told(summarize(records_of({"nat": OURS}))) == ""
    assert "at worst" not in told(summarize(records_of({"original": OURS, "nat": THEIRS})))
    assert "?" in told(summarize(records_of({"original": OURS[:3], "nat": OURS[:3]}), margin=0.5))


def test_less_is_better_of_some_metrics():
    """A method with a smaller error is better; its worst case is the largest difference."""
    made = records_of({"original": (1.0, 2.0, 3.0, 2.5), "nat": (0.9, 1.8, 2.9, 2.3)})
    for r in made:
        error = 100 * r["results"].pop("test_accuracy")
        r["results"]["test_mae"] = error
        r["metrics"] = {"mae": "min"}
    (c,) = summarize(made, margin=0.05).comparisons
    assert c.mean == close(-0.15)
    assert c.chances.better > 0.95
    assert c.not_worse.p == 0.5**4
    assert c.mean < c.not_worse.worst < 0
    (c,) = summarize(made, baseline="nat", margin=0.05).comparisons
    assert c.chances.worse > 0.95
    assert c.not_worse.worst > 0.15
    assert "±0.05" in told(summarize(made, margin=0.05))


@pytest.mark.parametrize("margin", [0, -0.3, math.nan, math.inf, True, "0.3"])
def test_margins_that_are_none_are_refused(margin):
    with pytest.raises(ValueError, match="a margin must be a positive number"):
        summary_of(margin, nat=THEIRS)


def test_one_seed_is_no_test():
    (c,) = summarize([record("original", 0, 90.0), record("nat", 0, 91.0)], margin=1).comparisons
    assert (c.chances, c.not_worse) == (None, None)


# Probabilities.


@pytest.mark.parametrize("merits", SAMPLES[:4])
@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_chances_are_the_posterior_of_the_mean(merits, margin):
    """Scipy's Student's t; and the posterior itself, likelihood times 1/sigma, integrated over sigma by number."""
    found = chances(merits, margin)
    t = stats.t(len(merits) - 1, np.mean(merits), stats.sem(merits))
    assert found == close((t.sf(margin), t.cdf(margin) - t.cdf(-margin), t.cdf(-margin)))
    assert sum(found) == close(1.0)

    def density(mu):
        squares = sum((x - mu) ** 2 for x in merits)
        return integrate.quad(
            lambda s: math.exp(-squares / (2 * s * s) - (len(merits) + 1) * math.log(s)), 1e-3, 60, limit=200
        )[0]

    at = np.linspace(-1, 1, 5)
    numbers = np.array([density(mu) for mu in at])
    assert numbers / numbers.sum() == pytest.approx(t.pdf(at) / t.pdf(at).sum(), rel=0.02)


def test_chances_of_equal_differences_are_certain():
    assert chances([0.0, 0.0, 0.0]) == (0, 1, 0)
    assert chances([0.2, 0.2]) == (1, 0, 0)
    assert chances([0.2, 0.2], 0.2) == (0, 1, 0)
    assert chances([-0.3, -0.3], 0.2) == (0, 0, 1)


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8), st.integers(0, 30))
def test_chances_turn_with_the_sign(values, margin):
    better, equal, worse = chances([-v / 10 for v in values], margin / 10)
    assert chances([v / 10 for v in values], margin / 10) == pytest.approx((worse, equal, better), abs=1e-9)


# How many seeds.


def test_power_is_that_of_scipys_noncentral_t_and_of_a_simulation():
    generator = np.random.default_rng(3)
    for effect, n, tests, margin in ((0.5, 20, 1, None), (1.5, 6, 3, None), (0.0, 9, 1, 1.0), (-0.4, 12, 2, 1.2)):
        q = Question(difference=effect, deviation=1.0, tests=tests, margin=margin)
        each = 0.05 / tests
        drawn = generator.normal(effect, 1, size=(20000, n))
        shift = math.sqrt(n) * (effect + (margin or 0))
        if margin is None:
            least = stats.t.ppf(1 - each / 2, n - 1)
            expected = stats.nct.sf(least, n - 1, shift) + stats.nct.cdf(-least, n - 1, shift)
            p = stats.ttest_1samp(drawn, 0, axis=1).pvalue
        else:
            expected = stats.nct.sf(stats.t.ppf(1 - each, n - 1), n - 1, shift)
            p = stats.ttest_1samp(drawn, -margin, axis=1, alternative="greater").pvalue
        assert t_power(q, n) == pytest.approx(expected, abs=1e-5)
        assert t_power(q, n) == pytest.approx(np.mean(p <= each), abs=0.012)


def test_published_numbers_of_seeds():
    """Those of G*Power and statsmodels for d_z = 0.2, 0.5 and 0.8 at 5 %, two-sided, power 0.8: 199, 34 and 15."""
    for effect, n in ((0.2, 199), (0.5, 34), (0.8, 15)):
        assert seeds_of_t(Question(difference=effect, deviation=1)) == n
        assert seeds_of_t(Question(difference=-3 * effect, deviation=3)) == n
    assert seeds_of_t(Question(difference=0.01, deviation=1)) is None


@pytest.mark.parametrize(("difference", "deviation"), [(40.0, 0.1), (3.0, 1e-6), (1e6, 1.0)])
def test_the_power_of_large_effects_is_certain(difference, deviation):
    q = Question(difference=difference, deviation=deviation)
    powers = [t_power(q, n) for n in range(2, 40)]
    assert all(0.99 < p <= 1 for p in powers[1:])
    assert t_power(q, 1) == 0


def test_power_grows():
    for effect, tests in itertools.product((0.1, 0.7, 1.4, 2.0, 5.0, 20.0, 400.0), (1, 9)):
        q = Question(difference=effect, deviation=1.0, tests=tests)
        powers = [t_power(q, n) for n in range(2, 120)]
        assert all(0 < a <= b + 1e-9 <= 1 + 2e-9 for a, b in itertools.pairwise(powers)), effect


@pytest.mark.parametrize("tests", [1, 2, 3, 8])
@pytest.mark.parametrize("margin", [None, 1.0])
def test_the_least_seeds_of_exact_tests_are_tried(tests, margin):
    """With one seed fewer not even the clearest differences are significant; with so many they are."""
    n = seeds_of_exact(Question(difference=5.0, deviation=1.0, tests=tests, margin=margin))
    side = "two-sided" if margin is None else "greater"
    assert (
        sign_flip([5.0 + i for i in range(n)], side)
        <= 0.05 / tests
        < sign_flip([5.0 + i for i in range(n - 1)], side)
    )


def test_the_sign_flip_test_has_about_the_power_of_the_t_test():
    drawn = np.random.default_rng(4).normal(1.0, 1.0, size=(1500, 10)).tolist()
    found = np.mean([sign_flip(d) <= 0.05 for d in drawn])
    assert found == pytest.approx(t_power(Question(difference=1.0, deviation=1.0), 10), abs=0.04)


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"difference": 0.0}, "no number of seeds shows a difference of 0"),
        ({"difference": -0.5, "margin": 0.3}, "worse by the margin 0.3"),
        ({"difference": 1.0, "deviation": 0.0}, "deviation must be"),
        ({"difference": 1.0, "tests": 0}, "tests must be"),
        ({"difference": 1.0, "power": 1.0}, "power must be"),
        ({"difference": math.nan}, "difference must be"),
        ({"difference": 1.0, "margin": -1.0}, "margin must be"),
    ],
)
def test_questions_without_an_answer_are_refused(given_, words):
    with pytest.raises(ValueError, match=words):
        Question(**{"deviation": 1.0} | given_)


def test_deviations_are_pooled():
    summary = summarize(records_of({"original": OURS, "nat": THEIRS, "random": OURS[:3]}))
    differences = [b - a for a, b in zip(OURS, THEIRS, strict=True)]
    squares = 5 * statistics.variance(differences)  # and nothing of the other, which is equal
    assert pooled_deviation(summary.comparisons) == (close(math.sqrt(squares / 7)), 7)
    with pytest.raises(ValueError, match="give --deviation"):
        pooled_deviation(summarize(records_of({"original": OURS[:1], "nat": OURS[:1]})).comparisons)


def test_the_interval_of_a_deviation_holds_it():
    drawn = np.random.default_rng(5).normal(0, 2, size=(2000, 4)).std(axis=1, ddof=1)
    held = [low <= 2 <= high for low, high in (deviation_interval(s, 3) for s in drawn)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_sizes_that_are_shown_have_the_answer():
    for answer, exact in ((8, 7), (3, 6), (34, 6), (None, 7), (1000, 6)):
        sizes = shown_sizes(answer, exact)
        assert max(answer or 1000, exact) in sizes
        assert list(sizes) == sorted(set(sizes))
        assert len(sizes) <= 14


# Over networks.


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30))
def test_the_interquartile_mean_is_scipys(values):
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), abs=1e-9)


@pytest.mark.parametrize(
    "strata", [[[1.0, 5.0], [2.0, 8.0, 3.0]], [[0.0, 1.0, 7.0], [4.0]], [[1.0, 2.0, 4.0, 9.0]]]
)
def test_the_stratified_bootstrap_draws_within_each(strata):
    """Quantiles among all ways to draw."""
    ways = itertools.product(*(itertools.product(s, repeat=len(s)) for s in strata))
    means = [stats.trim_mean(np.concatenate(way), 0.25) for way in ways]
    found = stratified_interval(strata, 0.9, resamples=40000)
    for end, share in zip(found, (0.05, 0.95), strict=True):
        low, high = np.quantile(means, [share - 0.01, share + 0.01], method="inverted_cdf")
        assert low - 1e-9 <= end <= high + 1e-9
    assert stratified_interval([[1.0], [2.0]]) is None


def test_methods_over_networks():
    first = records_of({"original": OURS, "nat": THEIRS})
    second = records_of({"original": THEIRS, "nat": OURS[:4]}, network="resnet56")
    third = records_of({"nat": OURS, "random": OURS}, network="resnet110")  # without a baseline
    fourth = records_of({"original": THEIRS, "random": THEIRS}, data="cifar100")
    summary = summarize([*first, *second, *third, *fourth])
    found = {a.method: a for a in aggregates(summary)}
    assert list(found) == ["original", "nat"]  # random shares one network with the baseline
    nat = found["nat"]
    assert (nat.runs, len(nat.groups), nat.of) == (10, 2, 3)
    assert nat.value == close(stats.trim_mean([*THEIRS, *OURS[:4]], 0.25))
    differences = [b - a for a, b in zip(OURS, THEIRS, strict=True)]
    differences += [b - a for a, b in zip(THEIRS, OURS[:4], strict=False)]
    assert nat.difference == pytest.approx(stats.trim_mean(differences, 0.25))
    assert nat.difference_interval[0] <= nat.difference <= nat.difference_interval[1]
    assert (found["original"].difference, found["original"].runs) == (None, 18)
    text = over_all(summary)
    assert "| nat | 2 of 3 | 10 |" in text
    assert "| original | 3 | 18 |" in text
    assert over_all(summarize(first)) == ""


# The commands.


def said(*words):
    result = CliRunner().invoke(cli, ["power", *words])
    return result.output if result.exit_code == 0 else str(result.exception)


def test_the_command_tells_how_many_seeds():
    text = said("--difference", "0.5", "--deviation", "1")
    assert "34     0.808" in text
    assert "\n34 seeds: the t test needs 34 for a power of 0.8" in text
    assert "with fewer than 6." in text
    assert "\n7 seeds: the t test needs 4 " in said("--difference", "9", "--deviation", "2", "--tests", "3")
    assert "one-sided" in said("--margin", "0.3", "--deviation", "0.2")
    assert "more than 1000 seeds" in said("--difference", "0.001", "--deviation", "1")
    assert "what is to be seen?" in said("--deviation", "1")
    assert "give either --deviation" in said("--difference", "1")
    assert max(map(len, text.splitlines())) <= 80


def test_the_long_table_is_as_it_was_without_a_margin():
    made = records_of({"original": OURS, "nat": THEIRS})
    assert markdown(summarize(made)) == markdown(summarize(made, margin=0.3))
