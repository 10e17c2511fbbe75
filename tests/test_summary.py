"""Statistics over seeds: against scipy, definitions tried out in full, and the paper's own numbers."""

import dataclasses
import itertools
import json
import math
import random
import re
import statistics
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dnat.lab.labels import label
from dnat.lab.summary import Comparison, Row, markdown, summarize, trial_from
from dnat.lab.summary.statistics import bootstrap_interval, holm, paired_t, sign_flip, t_interval, wilcoxon
from dnat.settings import METHODS, Config, Job, Search

# NAT on ResNet20 and CIFAR-10, five runs, as the DNAT paper's second table has them.
NAT_RESNET20 = (10.0, 75.14, 91.05, 10.0, 92.68)

# Accuracies of two methods at six seeds.
OURS = (93.1, 92.7, 93.4, 93.3, 92.9, 93.6)
THEIRS = (91.6, 91.9, 91.5, 91.8, 91.4, 91.7)

LISTS = [
    [0.5, -1.25],
    [1.0, 2.0, 0.5],
    [-0.3, 1.7, 0.9, 2.2, -0.1],
    [1.6, 1.5, 1.7, 1.4, 1.9, 1.2],
    [-40.0, 0.2, 0.3, -0.4, 0.5, 0.6, 0.7, 41.0],
    [0.7, -0.2, 1.1, 0.4, 0.9, -1.3, 2.4, 0.05, 1.2, -0.6, 3.1],
]
WITH_TIES = [[1.0, 1.0, -1.0, 2.0], [0.0, 0.5, -0.5, 0.5, 1.5], [2.0, 2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 1.0]]


def job_of(method, seed, **others):
    name, _, mode = method.partition("-") if method.startswith("dnat-") else (method, "", "full")
    return {
        "network": "resnet20",
        "data": "cifar10",
        "method": name,
        "mode": mode,
        "seed": seed,
        "epochs": 600,
        "device": "auto",
    } | others


def record(method, seed, accuracy, **others):
    """A record; accuracy in percent."""
    made = {
        "results": {
            "test_accuracy": accuracy / 100,
            "dead": accuracy <= 10,
            "cost_before": {"params": 1000, "madds": 2000},
            "cost_after": {"params": 900, "madds": 1500},
        },
        "seconds": {"search": 1800.0, "architecture": 0.0, "network": 3600.0},
        "latency": {
            "before": {"seconds": 0.004, "device": "cpu"},
            "after": {"seconds": 0.003, "device": "cpu"},
        },
        "job": job_of(method, seed, **others),
        "finished": f"2026-01-01T00:00:0{seed % 10}Z",
    }
    return made


def records_of(table, **others):
    """Records of {method: accuracies of seeds 0, 1, ...}."""
    return [
        record(method, seed, accuracy, **others)
        for method, found in table.items()
        for seed, accuracy in enumerate(found)
    ]


def row_of(summary, method):
    (found,) = (row for row in summary.rows if row.method == method)
    return found


def comparison_of(summary, method):
    (found,) = (c for c in summary.comparisons if c.method == method)
    return found


def close(numbers, tolerance=1e-9):
    return pytest.approx(numbers, rel=tolerance, abs=tolerance)


# Intervals.


@pytest.mark.parametrize("values", LISTS)
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_t_intervals_are_scipys(values, confidence):
    expected = stats.t.interval(confidence, len(values) - 1, np.mean(values), stats.sem(values))
    assert t_interval(values, confidence) == close(expected)


def test_the_t_interval_of_two_has_a_closed_form():
    # With one degree of freedom t is Cauchy's quantile, and std / sqrt(2) half the distance.
    reach = math.tan(math.pi * 0.95 / 2) * 0.6 / 2
    assert t_interval([92.0, 92.6]) == close((92.3 - reach, 92.3 + reach))


def test_intervals_of_equal_values_are_that_value():
    for values in ([0.1] * 3, [10.0] * 5, [91.17] * 7):
        assert t_interval(values) == (values[0], values[0])
        assert bootstrap_interval(values) == (values[0], values[0])


@pytest.mark.parametrize("values", [v for v in LISTS if len(v) > 4])
def test_bootstrap_intervals_are_scipys_but_for_the_draws(values):
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    spread = statistics.stdev(values) / math.sqrt(len(values))
    assert bootstrap_interval(values, resamples=20000) == pytest.approx(tuple(expected), abs=0.1 * spread)


@pytest.mark.parametrize("values", [LISTS[0], LISTS[1], [1.0, 2.5, 3.25, 7.0], LISTS[2]])
@pytest.mark.parametrize("confidence", [0.6, 0.9])
def test_bootstrap_intervals_are_the_quantiles_of_all_resamples(values, confidence):
    means = np.sort([np.mean(drawn) for drawn in itertools.product(values, repeat=len(values))])
    tail = (1 - confidence) / 2
    found = bootstrap_interval(values, confidence, resamples=40000)
    for end, share in zip(found, (tail, 1 - tail), strict=True):
        # 0.01 is four standard deviations of a share among so many draws.
        low, high = np.quantile(means, [share - 0.01, share + 0.01], method="inverted_cdf")
        assert low - 1e-9 <= end <= high + 1e-9


def test_the_bootstrap_is_seeded_and_blind_to_order():
    values = LISTS[-1]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values[::-1], seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


def test_intervals_hold_the_mean_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(90, 2, size=(1500, 20))
    few, many = drawn[:, :5].tolist(), drawn.tolist()

    def coverage(interval, samples, **options):
        return np.mean([low <= 90 <= high for low, high in (interval(v, **options) for v in samples)])

    assert 0.93 < coverage(t_interval, few) < 0.97
    assert 0.77 < coverage(t_interval, few, confidence=0.8) < 0.83
    assert 0.89 < coverage(bootstrap_interval, many, resamples=499) < 0.95
    assert 0.80 < coverage(bootstrap_interval, few, resamples=499) < 0.87  # too short, as the docstring says


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
def test_intervals_refuse_what_they_cannot_use(interval):
    with pytest.raises(ValueError, match="at least 2 are needed, not 1"):
        interval([91.0])
    with pytest.raises(ValueError, match="finite, not nan"):
        interval([91.0, math.nan])
    with pytest.raises(TypeError, match="numbers, not str '91'"):
        interval([91.0, "91"])
    with pytest.raises(TypeError, match="numbers, not bool True"):
        interval([91.0, True])
    for confidence in (0, 1, 95, -0.5, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval([91.0, 92.0], confidence)
    with pytest.raises(TypeError, match=r"confidence must be a number, not str '0\.95'"):
        interval([91.0, 92.0], "0.95")


def test_the_bootstrap_refuses_a_seed_or_a_number_of_draws():
    for seed in (-1, 1.5, True):
        with pytest.raises(ValueError, match="seed must be"):
            bootstrap_interval([1.0, 2.0], seed=seed)
    for resamples in (0, 10.0, True):
        with pytest.raises(ValueError, match="resamples must be"):
            bootstrap_interval([1.0, 2.0], resamples=resamples)


# Tests.


def brute_force(differences):
    """All ways to choose signs, one by one, in exact arithmetic."""
    from fractions import Fraction

    exact = [Fraction(d).limit_denominator(10**6) for d in differences]
    ways = list(itertools.product((1, -1), repeat=len(exact)))
    found = abs(sum(exact))
    return sum(abs(sum(s * d for s, d in zip(way, exact, strict=True))) >= found for way in ways) / len(ways)


@pytest.mark.parametrize("differences", LISTS + WITH_TIES)
def test_sign_flips_are_all_ways_to_choose_signs(differences):
    assert sign_flip(differences) == brute_force(differences)
    assert sign_flip([-d for d in differences]) == brute_force(differences)


@given(st.lists(st.integers(-500, 500), min_size=1, max_size=9), st.sampled_from([1e-4, 0.01, 0.1, 1.0]))
@settings(max_examples=80, deadline=None)
def test_sign_flips_do_not_stumble_over_rounding(steps, unit):
    # Sums that are equal but for rounding must count: with 0.1, 0.2 and 0.3 they are not equal as floats.
    assert sign_flip([s * unit for s in steps]) == brute_force(steps)


@pytest.mark.parametrize("differences", LISTS)
def test_sign_flips_are_scipys_permutations(differences):
    found = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences) == close(found.pvalue)


def test_the_smallest_p_of_sign_flips():
    for n in range(1, 21):
        assert sign_flip([1.0 + i / 7 for i in range(n)]) == 2 / 2**n
    assert sign_flip([0.0] * 5) == 1.0
    assert sign_flip([3.0]) == 1.0


def test_sign_flips_err_at_most_as_often_as_they_say():
    drawn = np.random.default_rng(1).standard_t(2, size=(1500, 8))
    p = np.array([sign_flip(v) for v in drawn.tolist()])
    for level in (0.05, 0.1, 0.5):
        assert np.mean(p <= level) < level + 3 * math.sqrt(level * (1 - level) / len(p))
    assert np.mean(p <= 0.5) > 0.45


def test_sign_flips_refuse():
    with pytest.raises(ValueError, match="at most 20 differences can be flipped in all ways, not of 21"):
        sign_flip([1.0] * 21)
    with pytest.raises(ValueError, match="at least 1 is needed, not 0"):
        sign_flip([])
    with pytest.raises(ValueError, match="finite, not inf"):
        sign_flip([math.inf])


@pytest.mark.parametrize("differences", LISTS)
def test_wilcoxon_is_scipys(differences):
    assert wilcoxon(differences) == close(stats.wilcoxon(differences, method="exact").pvalue)


def test_wilcoxon_is_scipys_for_many():
    values = np.random.default_rng(3).normal(0.3, 1, 40).tolist()
    assert wilcoxon(values) == close(stats.wilcoxon(values, method="exact").pvalue)


@pytest.mark.parametrize("differences", [*LISTS[:5], *WITH_TIES])
def test_wilcoxon_is_exact_with_ties(differences):
    left = [d for d in differences if d]
    ranks = stats.rankdata(np.abs(left))
    signed = (np.sign(left) * ranks).tolist()
    assert wilcoxon(differences) == close(brute_force(signed))


@given(st.lists(st.integers(-4, 4).filter(bool), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_wilcoxon_gives_equal_sizes_their_mean_rank(differences):
    signed = np.sign(differences) * stats.rankdata(np.abs(differences))
    assert wilcoxon([d / 10 for d in differences]) == close(brute_force(signed.tolist()))


def test_wilcoxon_of_nothing_but_zeros():
    assert wilcoxon([0.0, 0.0]) == 1.0
    with pytest.raises(ValueError, match="at least 1"):
        wilcoxon([])


@pytest.mark.parametrize("differences", LISTS)
def test_paired_t_is_scipys(differences):
    assert paired_t(differences) == close(stats.ttest_1samp(differences, 0).pvalue)
    assert paired_t([1.5, 1.5, 1.5]) is None


def closure(p_values):
    """Holm's by definition: the largest Bonferroni p of all sets of hypotheses that a hypothesis is in."""
    m = len(p_values)
    sets = [s for k in range(1, m + 1) for s in itertools.combinations(range(m), k)]
    return [max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s) for i in range(m)]


@given(st.lists(st.floats(0, 1), max_size=6))
@settings(max_examples=150, deadline=None)
def test_holm_is_the_closure_of_bonferroni(p_values):
    assert holm(p_values) == close(closure(p_values), 1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.data())
@settings(max_examples=100, deadline=None)
def test_holm_never_grows_when_a_p_shrinks(p_values, data):
    # This is why `least_p_holm` is the smallest that can become of a p.
    smaller = [data.draw(st.floats(0, p)) for p in p_values]
    assert all(a <= b for a, b in zip(holm(smaller), holm(p_values), strict=True))


def test_holm_by_hand():
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.01, 0.01, 0.01]) == close([0.03] * 3)
    assert holm([0.04, 0.001, 0.03, 0.9]) == close([0.09, 0.004, 0.09, 0.9])
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="p values must be"):
            holm([0.5, p])


# What stands in a record.


def test_labels():
    assert label(job_of("dnat-full", 0)) == "dnat-full"
    assert label(job_of("dnat-cell", 0, budget=0.7)) == "dnat-cell 0.7"
    assert label(job_of("dnat-full", 0, latency_budget="5ms")) == "dnat-full latency 5ms"
    assert label(job_of("original", 0)) == "original"
    assert label(job_of("nat", 0, search={"official": True}, budget="120M")) == "nat (official) 120M"
    assert label(job_of("nat", 0, search={"official": False})) == "nat"
    with pytest.raises(ValueError, match=r"lacks job\.mode"):
        label({"method": "dnat"})
    with pytest.raises(ValueError, match=r"lacks job\.method"):
        label({})


@pytest.mark.parametrize("method", METHODS)
def test_labels_of_real_jobs(method):
    budget = None if method == "original" else 0.5
    job = Job(network="resnet20", method=method, config=Config(mode="cell", budget=budget))
    names = {"dnat": "dnat-cell 0.5", "original": "original"}
    assert label(job.flat()) == names.get(method, f"{method} 0.5")


def test_the_label_of_nats_official_code():
    config = Config(search=Search(official=True))
    assert label(Job(network="resblock", method="nat", config=config).flat()) == "nat (official)"
    # Of NAO's code the model is there, and not its search.
    assert label(Job(network="resblock", method="nao", config=config).flat()) == "nao (official model)"


def test_a_trial_has_what_stands_in_its_record():
    trial = trial_from(record("dnat-full", 7, 91.5))
    assert (trial.network, trial.data, trial.method, trial.seed) == ("resnet20", "cifar10", "dnat-full", 7)
    assert trial.value == close(91.5)
    assert (trial.params_before, trial.madds_before, trial.params, trial.madds) == (1000, 2000, 900, 1500)
    assert (trial.latency_before, trial.latency_after, trial.device) == (0.004, 0.003, "cpu")
    assert (trial.search_seconds, trial.training_seconds, trial.dead) == (1800, 3600, False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.seed = 1


def test_all_stages_but_the_search_are_training():
    made = record("dnat-full", 0, 90)
    made["seconds"] = {"architecture": 2.5, "network": 4.0}
    assert (trial_from(made).search_seconds, trial_from(made).training_seconds) == (0.0, 6.5)


def test_older_records_lack_something():
    made = record("original", 0, 90)
    del made["latency"], made["results"]["dead"], made["finished"]
    trial = trial_from(made)
    assert (trial.latency_before, trial.latency_after, trial.dead, trial.device) == (None, None, None, "")
    made["job"]["device"] = "cuda:1"
    assert trial_from(made).device == "cuda:1"
    summary = summarize([made])
    assert (summary.rows[0].dead, summary.rows[0].unknown, summary.rows[0].latency_after) == (0, 1, None)
    assert any("whether results are dead is not known" in note for note in summary.notes)
    assert table_of(markdown(summary))["original"]["latency, ms"] == "-"
    assert table_of(markdown(summary))["original"]["dead"] == "-"


@pytest.mark.parametrize(
    "path",
    [
        "job",
        "results",
        "seconds",
        "results.test_accuracy",
        "results.cost_before",
        "results.cost_after.params",
        "results.cost_before.madds",
        "job.network",
        "job.data",
        "job.method",
        "job.mode",
        "job.seed",
        "latency.after",
        "latency.before.seconds",
    ],
)
def test_a_record_that_lacks_something_is_refused(path):
    made = record("dnat-full", 0, 90)
    *folders, name = path.split(".")
    table = made
    for folder in folders:
        table = table[folder]
    del table[name]
    with pytest.raises(ValueError, match=rf"lacks {re.escape(path)}\b"):
        trial_from(made)
    with pytest.raises(ValueError, match=rf"record 2: .*lacks {re.escape(path)}\b"):
        summarize([record("original", 0, 90), made])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("results.test_accuracy", math.nan, "finite number, not nan"),
        ("results.test_accuracy", math.inf, "finite number, not inf"),
        ("results.test_accuracy", None, "finite number, not None"),
        ("results.test_accuracy", True, "finite number, not True"),
        ("results.test_accuracy", 91.5, "from 0 to 1, not 91.5"),
        ("results.test_accuracy", -0.1, "from 0 to 1, not -0.1"),
        ("results.cost_before.params", 0, "at least 1, not 0"),
        ("results.cost_after.madds", -5, "at least 0, not -5"),
        ("results.cost_after.madds", 5.5, "an integer"),
        ("results.dead", "no", "true or false, not 'no'"),
        ("results", [1], "must be a table"),
        ("seconds.network", -1.0, "at least 0, not -1"),
        ("seconds.network", math.nan, "finite"),
        ("job.seed", -1, "seed must be an integer"),
        ("job.network", 5, "must be a name, not 5"),
        ("latency.after.seconds", "fast", "finite number, not 'fast'"),
    ],
)
def test_a_record_with_something_wrong_is_refused(path, value, message):
    made = record("dnat-full", 0, 90)
    *folders, name = path.split(".")
    table = made
    for folder in folders:
        table = table[folder]
    table[name] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        trial_from(made)


def test_what_is_no_record_is_refused():
    with pytest.raises(TypeError, match="record 1: a record must be a table"):
        summarize(["record.json"])


# Rows.


def test_the_papers_own_numbers():
    row = summarize(records_of({"nat": NAT_RESNET20})).rows[0]
    assert round(row.mean, 2) == 55.77  # 55.774; the paper has 55.78
    assert round(row.std, 2) == 42.34
    assert row.dead == 2
    assert row.values == close(NAT_RESNET20)
    assert row.interval == close(stats.t.interval(0.95, 4, np.mean(NAT_RESNET20), stats.sem(NAT_RESNET20)))


def test_a_row_has_means_and_changes():
    made = records_of({"nat": (80.0, 84.0)})
    made[1]["results"]["cost_after"] = {"params": 500, "madds": 500}
    made[1]["results"]["cost_before"] = {"params": 2000, "madds": 2000}
    made[1]["seconds"] = {"search": 0.0, "network": 7200.0}
    made[1]["latency"]["after"]["seconds"] = 0.001
    row = summarize(made).rows[0]
    assert (row.n, row.seeds, row.mean, row.std) == (2, (0, 1), close(82.0), close(math.sqrt(8)))
    assert (row.params, row.madds) == (700, 1000)
    assert (row.params_change, row.madds_change) == close(((-10 - 75) / 2, (-25 - 75) / 2))
    assert (row.latency_before, row.latency_after) == close((0.004, 0.002))
    assert (row.search_hours, row.training_hours, row.total_hours) == close((0.25, 1.5, 3.5))
    assert row.devices == ("cpu",)
    assert row.bootstrap == close((80.0, 84.0))


def test_a_latency_that_is_not_known_of_all_has_no_mean():
    made = records_of({"original": OURS})
    del made[2]["latency"]
    row = summarize(made).rows[0]
    assert (row.latency_before, row.latency_after, row.devices) == (None, None, ("cpu",))


def test_equal_accuracies_have_themselves_as_mean():
    for accuracy in (91.17, 70.1, 33.3):
        row = summarize(records_of({"original": [accuracy] * 7})).rows[0]
        assert row.values[0] == row.mean == row.interval[0] == row.bootstrap[1]
        assert row.std == 0.0


def test_one_trial_has_no_deviation():
    summary = summarize(records_of({"original": (90.0,), "dnat-full": (92.0,)}))
    for row in summary.rows:
        assert (row.n, row.std, row.interval, row.bootstrap) == (1, None, None, None)
    found = comparison_of(summary, "dnat-full")
    assert (found.mean, found.n) == (close(2.0), 1)
    for name in ("std", "interval", "d_z", "p_t", "p_flip", "p_wilcoxon", "p", "p_holm", "least_p"):
        assert getattr(found, name) is None
    assert (found.test, found.why) == ("", "one seed in common: no test")
    text = table_of(markdown(summary))["dnat-full"]
    assert (text["accuracy, %"], text["difference"], text["p (Holm)"]) == ("92.00", "+2.00", "-")
    assert "±" not in "".join(text.values())


def test_the_dead_are_counted():
    made = records_of({"nat": (10.0, 10.0, 90.0, 91.0)})
    del made[3]["results"]["dead"]
    row = summarize(made).rows[0]
    assert (row.dead, row.unknown) == (2, 1)
    assert table_of(markdown(summarize(made)))["nat"]["dead"] == "2 (1 unknown)"


def test_rows_stand_in_order():
    names = ["zebra", "nat 0.7", "nat", "random", "original", "dnat-cell", "dnat-full", "dnat-full 0.7", "nat++"]
    made = [record(name, 0, 90) for name in names]
    made[7]["job"] |= {"method": "dnat", "mode": "full", "budget": 0.7}
    made[1]["job"] |= {"method": "nat", "budget": 0.7}
    rest = ["nat", "nat 0.7", "nat++", "random", "zebra"]
    expected = ["original", "dnat-full", "dnat-full 0.7", "dnat-cell", *rest]
    assert [row.method for row in summarize(made).rows] == expected
    expected = [
        "nat",
        "dnat-full",
        "dnat-full 0.7",
        "dnat-cell",
        "original",
        "nat 0.7",
        "nat++",
        "random",
        "zebra",
    ]
    assert [row.method for row in summarize(made, baseline="nat").rows] == expected


def test_networks_and_data_stand_in_the_order_of_their_numbers():
    made = [
        record("original", 0, 90, network=network, data=data)
        for data in ("digits", "cifar100", "cifar10")
        for network in ("resnet56", "resnet8", "resnet20")
    ]
    found = [(row.data, row.network) for row in summarize(made).rows]
    datas, networks = ("cifar10", "cifar100", "digits"), ("resnet8", "resnet20", "resnet56")
    assert found == list(itertools.product(datas, networks))


# Comparisons.


def test_a_comparison_is_scipys_paired_test():
    summary = summarize(records_of({"original": THEIRS, "dnat-full": OURS}))
    found = comparison_of(summary, "dnat-full")
    differences = np.subtract(OURS, THEIRS)
    expected = stats.ttest_rel(OURS, THEIRS)
    assert found.differences == close(tuple(differences))
    assert found.p_t == close(expected.pvalue)
    assert found.interval == close(tuple(expected.confidence_interval(0.95)))
    assert found.mean == close(differences.mean())
    assert found.std == close(differences.std(ddof=1))
    assert found.d_z == close(expected.statistic / math.sqrt(6))
    assert found.p_wilcoxon == close(stats.wilcoxon(differences, method="exact").pvalue)
    assert found.p == found.p_flip == found.least_p == found.p_holm == found.least_p_holm == 2 / 64
    assert (found.test, found.why) == ("sign-flip", "")
    assert table_of(markdown(summary))["dnat-full"]["p (Holm)"] == "0.0312 *"


def test_pairs_are_of_equal_seeds():
    made = [record("original", s, a) for s, a in ((4, 90.0), (1, 80.0), (2, 85.0))]
    made += [record("nat", s, a) for s, a in ((1, 81.0), (3, 10.0), (4, 93.0), (5, 10.0))]
    summary = summarize(made)
    found = comparison_of(summary, "nat")
    assert (found.seeds, found.differences) == ((1, 4), close((1.0, 3.0)))
    assert "resnet20 on cifar10: original lacks seeds 3, 5" in summary.notes
    assert "resnet20 on cifar10: nat lacks seed 2" in summary.notes
    assert table_of(markdown(summary))["nat"]["difference"].endswith(" (n = 2)")


def test_five_seeds_cannot_be_significant():
    table = {"original": THEIRS[:5], "dnat-full": OURS[:5]}
    summary = summarize(records_of(table))
    found = comparison_of(summary, "dnat-full")
    assert found.p_t < 0.002  # it is not for want of an effect
    assert found.p == found.least_p == found.least_p_holm == 0.0625
    (note,) = summary.notes
    assert "dnat-full cannot be significant at n = 5" in note
    assert "0.0625" in note
    assert "6 seeds for each would be enough" in note
    assert table_of(markdown(summary))["dnat-full"]["p (Holm)"] == "0.0625 ?"
    assert not any("cannot" in note for note in summarize(records_of(table), confidence=0.9).notes)


def test_six_seeds_cannot_be_significant_among_three_methods():
    table = {"original": THEIRS, "dnat-full": OURS, "dnat-cell": OURS, "nat": OURS}
    summary = summarize(records_of(table))
    for method in ("dnat-full", "dnat-cell", "nat"):
        found = comparison_of(summary, method)
        assert (found.p, found.least_p, found.p_holm, found.least_p_holm) == close(
            (1 / 32, 1 / 32, 3 / 32, 3 / 32)
        )
    (note,) = summary.notes
    assert "dnat-full, dnat-cell, nat cannot be significant at n = 6" in note
    assert "7 seeds for each would be enough" in note  # 3 * 2 / 2**7 = 0.047
    assert summarize(records_of({m: (*v, 91.0 + (m != "original")) for m, v in table.items()})).notes == ()


def test_holms_family_is_a_network_and_a_data_set():
    rng = np.random.default_rng(2)
    methods = ("original", "dnat-full", "dnat-cell", "nat")
    made = []
    for network, data in (("a", "x"), ("a", "y"), ("b", "x")):
        table = {m: (90 + rng.normal(0.4 * i, 0.5, 8)).tolist() for i, m in enumerate(methods)}
        made += records_of(table, network=network, data=data)
    summary = summarize(made)
    assert len(summary.comparisons) == 9
    for network, data in (("a", "x"), ("a", "y"), ("b", "x")):
        family = [c for c in summary.comparisons if (c.network, c.data) == (network, data)]
        assert [c.p_holm for c in family] == close(closure([c.p for c in family]))
        assert [c.p for c in family] == [brute_force(c.differences) for c in family]


def test_a_comparison_without_a_test_is_not_in_the_family():
    made = [*records_of({"original": OURS, "dnat-full": THEIRS}), record("nat", 0, 90)]
    summary = summarize(made)
    assert comparison_of(summary, "nat").p_holm is None
    assert comparison_of(summary, "dnat-full").p_holm == comparison_of(summary, "dnat-full").p


def test_equal_differences_have_no_t_test():
    # As shares of 836 images the differences are equal but for rounding.
    theirs = [700 / 8.36, 731 / 8.36, 655 / 8.36, 691 / 8.36]
    for step in (0, 3):
        ours = [100 * (round(a * 8.36) + step) / 836 for a in theirs]
        found = comparison_of(summarize(records_of({"original": theirs, "nat": ours})), "nat")
        assert (found.std, found.d_z, found.p_t) == (0.0, None, None)
        assert found.why == "all differences are equal: no t test"
        assert found.interval == (found.mean, found.mean)
        assert found.p == found.p_wilcoxon == (2 / 16 if step else 1.0)


def test_many_seeds_take_the_t_test():
    rng = np.random.default_rng(4)
    theirs, ours = (rng.normal(90, 1, 21), rng.normal(91, 1, 21))
    found = comparison_of(summarize(records_of({"original": theirs, "nat": ours})), "nat")
    assert (found.test, found.p_flip, found.least_p) == ("t", None, 0.0)
    assert found.p == found.p_t == close(stats.ttest_rel(ours, theirs).pvalue)
    assert found.why == "more than 20 seeds: no sign-flip test"
    fewer = comparison_of(summarize(records_of({"original": theirs[:20], "nat": ours[:20]})), "nat")
    assert (fewer.test, fewer.p) == ("sign-flip", fewer.p_flip)
    same = comparison_of(summarize(records_of({"original": theirs, "nat": theirs})), "nat")
    assert (same.test, same.p, same.p_t) == ("wilcoxon", 1.0, None)


def test_another_baseline():
    summary = summarize(records_of({"nat": THEIRS, "dnat-full": OURS, "original": OURS}), baseline="nat")
    assert {(c.method, c.baseline) for c in summary.comparisons} == {("dnat-full", "nat"), ("original", "nat")}
    assert "Difference: to nat," in markdown(summary)
    with pytest.raises(ValueError, match=r"unknown baseline 'orignal'; did you mean 'original'\?"):
        summarize(records_of({"original": THEIRS}), baseline="orignal")


def test_without_a_baseline_nothing_is_compared():
    summary = summarize(records_of({"dnat-full": OURS}))
    assert summary.comparisons == ()
    assert summary.notes == ("resnet20 on cifar10: there are no runs of original, so that nothing is compared",)
    assert table_of(markdown(summary))["dnat-full"]["difference"] == "-"


def test_without_a_common_seed_nothing_is_compared():
    summary = summarize([record("original", 0, 90), record("nat", 1, 90)])
    assert summary.comparisons == ()
    assert "resnet20 on cifar10: nat has no seed in common with original" in summary.notes


# What is given to `summarize`.


def test_nothing_is_refused():
    with pytest.raises(ValueError, match="no records"):
        summarize([])
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        summarize([record("original", 0, 90)], confidence=95)


def test_duplicates_are_refused_and_both_named():
    made = [*records_of({"original": OURS}), record("original", 3, 91.0)]
    with pytest.raises(
        ValueError, match=re.escape("records 4 (finished 2026-01-01T00:00:03Z) and 7 (finished")
    ) as e:
        summarize(made)
    assert "both of original with resnet20 on cifar10 at seed 3: leave one of them out" in str(e.value)
    made[-1]["job"] |= {"epochs": 24, "search": {"epochs": 4}, "data_root": "/elsewhere"}
    words = (
        r"differ in epochs \(600 and 24\), search\.epochs \(none and 4\): --by epochs,search\.epochs makes a row"
    )
    with pytest.raises(ValueError, match=words):
        summarize(made)
    assert [row.method for row in summarize(made, by=("epochs", "search.epochs")).rows] == [
        "original epochs=24 search.epochs=4",
        "original epochs=600 search.epochs=none",
    ]
    made[-1]["job"]["data"] = "cifar100"
    assert len(summarize(made).rows) == 2


def test_runs_are_told_apart_by_any_setting():
    """Where the runs of a label differ in it; others keep their names, and numbers are those of each apart."""
    slow = records_of({"original": OURS, "dnat-full": THEIRS}, preset="paper", lr_theta=0.1)
    fast = records_of({"dnat-full": OURS[:4]}, preset="improved", lr_theta=0.2)
    mine = records_of({"nat": THEIRS[:3]}, preset="paper", label="mine", network_options={"width": 4})
    both = summarize([*slow, *fast, *mine], by=("preset", "network.width"))
    assert [row.method for row in both.rows] == [
        "original",
        "dnat-full preset=improved",
        "dnat-full preset=paper",
        "mine",
    ]
    alone = summarize([*slow[:6], *fast])
    (theirs,) = alone.comparisons
    assert dataclasses.replace(both.comparisons[0], p_holm=0, least_p_holm=0) == dataclasses.replace(
        theirs, method="dnat-full preset=improved", p_holm=0, least_p_holm=0
    )
    assert row_of(both, "dnat-full preset=paper").values == close(THEIRS)
    with pytest.raises(
        ValueError, match=r"they differ in lr_theta \(0\.1 and 0\.2\), preset .* --by preset makes"
    ):
        summarize([*slow, *fast])
    turned = summarize([*slow, *fast], by=("lr_theta",), baseline="dnat-full lr_theta=0.2")
    assert {c.method: c.mean for c in turned.comparisons} == {
        "original": 0,
        "dnat-full lr_theta=0.1": close(statistics.mean(THEIRS[:4]) - statistics.mean(OURS[:4])),
    }
    split = summarize([*slow, *records_of({"original": THEIRS}, preset="improved")], by=("preset",))
    assert split.comparisons == ()
    assert "--baseline takes 'original preset=improved' or 'original preset=paper'" in " ".join(split.notes)
    with pytest.raises(ValueError, match="unknown setting 'pre_set'; did you mean 'preset'"):
        summarize(slow, by=("pre_set",))
    with pytest.raises(ValueError, match="name another setting than seed"):
        summarize(slow, by=("seed",))
    assert summarize(slow, by=("preset",)) == summarize(slow)


def test_a_label_names_the_row():
    made = records_of({"original": OURS}) + records_of({"dnat-full": THEIRS}, label="slow")
    assert [row.method for row in summarize(made).rows] == ["original", "slow"]
    for wrong in ("", 3, ["slow"]):
        with pytest.raises(ValueError, match=r"job\.label of a record must be a name"):
            label(job_of("nat", 0, label=wrong))
    made[-1]["job"] |= {"mode": "cell"}
    (note,) = (n for n in summarize(made).notes if "differ in" in n)
    assert note.endswith("the runs of slow differ in mode: cell, full")
    made[0]["job"] |= {"mode": "cell"}
    (note,) = (n for n in summarize(made).notes if "differ in" in n)
    assert note.endswith("the runs of original, slow differ in mode: cell, full")
    made[0]["job"] |= {"mode": "full"}
    made[-1]["job"] |= {"method": "nat", "mode": "full"}  # a label may stand for one method alone
    (note,) = (n for n in summarize(made).notes if "differ in" in n)
    assert note.endswith("the runs of slow differ in method: dnat, nat")


def test_settings_that_differ_are_noted():
    made = records_of({"original": OURS, "nat": THEIRS})
    for r in made[:6]:
        r["job"]["epochs"] = 24
    made[0]["job"]["workers"] = 3  # changes nothing
    made[7]["job"]["search"] = {"epochs": 50}
    made[8]["data_fingerprint"], made[9]["data_fingerprint"] = "aa", "ab"
    made[2]["latency"]["after"]["device"] = "cuda:0"
    made[10]["job"]["preset"] = "paper"
    assert list(summarize(made).notes) == [
        "resnet20 on cifar10: not all were trained alike: epochs is 24 (original), 600 (nat)",
        "resnet20 on cifar10: the runs of nat differ in preset: not set, paper",
        "resnet20 on cifar10: the runs of nat differ in search.epochs: 50, not set",
        "resnet20 on cifar10: the images' fingerprints differ (also where some runs read images from files as "
        "they train)",
        "resnet20 on cifar10: hours and latencies were taken on different devices: cpu, cuda:0",
    ]


def test_networks_that_differ_are_noted():
    made = records_of({"original": OURS, "nat": THEIRS})
    for r in made[6:]:
        r["results"]["cost_before"] = {"params": 1200, "madds": 2000}
    assert summarize(made).notes == (
        "resnet20 on cifar10: not all began with the same network: 1,000 params, 2,000 MAdds (original); "
        "1,200 params, 2,000 MAdds (nat)",
    )


def test_settings_of_methods_are_their_own():
    made = records_of({"original": OURS, "dnat-full": THEIRS})
    for threads, r in enumerate(made[6:]):
        r["job"] |= {"gate": "sigmoid", "settle": 0.5, "threads": 1 + threads}
    assert summarize(made).notes == ()


def test_summaries_are_plain_values():
    made = records_of({"original": OURS, "nat": THEIRS})
    summary = summarize(made)
    assert all(isinstance(row, Row) for row in summary.rows)
    assert all(isinstance(c, Comparison) for c in summary.comparisons)
    json.dumps(dataclasses.asdict(summary), allow_nan=False)
    assert hash(summary) == hash(summarize(iter(made)))
    assert summary != summarize(made, seed=1)  # of the bootstrap
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.notes = ()


# Accuracies as shares of 1000 images.
TABLES = st.dictionaries(
    st.sampled_from(["original", "dnat-full", "dnat-cell", "nat"]),
    st.dictionaries(st.integers(0, 9), st.integers(101, 800), min_size=1, max_size=7),
    min_size=1,
)


def drawn_records(table, added=0):
    return [record(m, s, (a + added) / 10) for m, found in table.items() for s, a in found.items()]


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_records_does_not_matter(table, shuffler):
    made = drawn_records(table)
    expected = summarize(made)
    shuffler.shuffle(made)
    found = summarize(made)
    assert found == expected
    assert markdown(found) == markdown(expected)


@given(TABLES, st.integers(-90, 190))
@settings(max_examples=40, deadline=None)
def test_a_constant_moves_means_and_nothing_else(table, added):
    before, after = summarize(drawn_records(table)), summarize(drawn_records(table, added))
    for a, b in zip(before.rows, after.rows, strict=True):
        assert b.mean == close(a.mean + added / 10)
        if a.n > 1:
            assert b.std == close(a.std)
            assert b.interval == close(tuple(end + added / 10 for end in a.interval))
            assert b.bootstrap == close(tuple(end + added / 10 for end in a.bootstrap))
    for a, b in zip(before.comparisons, after.comparisons, strict=True):
        for name, value in dataclasses.asdict(a).items():
            found = getattr(b, name)
            numeric = isinstance(value, float) or (isinstance(value, tuple) and name != "seeds")
            assert found == (close(value) if numeric else value), name


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_swapping_method_and_baseline_turns_the_sign(counts):
    ours = [c / 10 for c in counts]
    theirs = [50.0] * len(ours)
    there = comparison_of(summarize(records_of({"original": theirs, "nat": ours})), "nat")
    back = comparison_of(summarize(records_of({"original": theirs, "nat": ours}), baseline="nat"), "original")
    assert back.mean == close(-there.mean)
    assert back.interval == close((-there.interval[1], -there.interval[0]))
    assert (back.p_flip, back.p_wilcoxon, back.std) == (there.p_flip, there.p_wilcoxon, there.std)


# The table.


def table_of(text):
    """{method: {column: cell}} of the first table of a text."""
    lines = [line for line in text.split("\n\n")[1].split("\n")]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in cells}) == 1
    assert all(re.fullmatch("-+:?", c) for c in cells[1])
    return {row[1]: dict(zip(cells[0], row, strict=True)) for row in cells[2:]}


def test_the_table():
    made = records_of({"original": THEIRS, "dnat-full": OURS})
    made[-1]["results"]["cost_after"] = {"params": 1234567, "madds": 40_550_000_000}
    row = table_of(markdown(summarize(made)))["dnat-full"]
    interval = stats.ttest_rel(OURS, THEIRS).confidence_interval(0.95)
    assert row["accuracy, %"] == f"{np.mean(OURS):.2f} ± {np.std(OURS, ddof=1):.2f}"
    assert row["difference"] == f"+{np.mean(OURS) - np.mean(THEIRS):.2f} [+{interval[0]:.2f}, +{interval[1]:.2f}]"
    assert row["n"] == "6"
    assert row["params"].startswith("207 k (+")
    assert row["MAdds"].startswith("6.76 G (+")
    assert row["latency, ms"] == "3"
    assert row["hours"] == "0.5 + 1"
    assert row["dead"] == "0"
    original = table_of(markdown(summarize(made)))["original"]
    assert (original["network"], row["network"]) == ("resnet20", "")
    assert (original["params"], original["MAdds"]) == ("900 (-10.0 %)", "1.5 k (-25.0 %)")
    assert (original["difference"], original["p (Holm)"]) == ("-", "-")
    assert "12 runs, 18 hours in all (cpu)." in markdown(summarize(made))


def test_a_table_for_each_data_set():
    made = [record("original", s, 90, data=d) for d in ("tiny-imagenet", "cifar10") for s in (0, 1)]
    text = markdown(summarize(made))
    assert re.findall("^## (.*)$", text, re.M) == ["cifar10", "tiny-imagenet"]
    assert text.count("| network |") == 2
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_names_stay_in_their_cells():
    made = [record("original", s, 90, network="a|b\nc", data="x|y") for s in (0, 2)] + [
        record("na|t", 0, 90, network="a|b\nc", data="x|y")
    ]
    text = markdown(summarize(made))
    assert set(table_of(text)) == {"original", r"na\|t"}
    assert table_of(text)["original"]["network"] == r"a\|b c"
    assert r"- a\|b c on x\|y: na\|t lacks seed 2" in text.split("\n")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0"),
        (8 * 3600, "8"),
        (41.123 * 3600, "41.1"),
        (0.36, "0.0001"),
        (1234.5 * 3600, "1230"),
        (9.8, "0.00272"),
    ],
)
def test_hours_have_three_digits(seconds, shown):
    made = record("original", 0, 90)
    made["seconds"] = {"network": seconds}
    assert table_of(markdown(summarize([made])))["original"]["hours"] == shown


@pytest.mark.parametrize(
    ("params", "shown"),
    [
        (7, "7"),
        (999, "999"),
        (1000, "1 k"),
        (16444, "16.4 k"),
        (999_999, "1 M"),
        (3_346_000, "3.35 M"),
        (2 * 10**9, "2 G"),
    ],
)
def test_counts_have_three_digits(params, shown):
    made = record("original", 0, 90)
    for cost in ("cost_before", "cost_after"):
        made["results"][cost] = {"params": params, "madds": 1}
    assert table_of(markdown(summarize([made])))["original"]["params"] == shown


def test_small_p_values_and_small_differences_are_written_plainly():
    rng = random.Random(0)
    theirs = [90 + rng.random() for _ in range(12)]
    table = {
        "original": theirs,
        "nat": [a + 1 + rng.random() for a in theirs],
        "nat++": [a - 0.0001 for a in theirs],
    }
    found = table_of(markdown(summarize(records_of(table))))
    assert found["nat"]["p (Holm)"] == "< 0.001 *"
    assert found["nat++"]["difference"] == "+0.00 [+0.00, +0.00]"


def test_the_modules_need_no_torch_of_their_own():
    import ast
    from pathlib import Path

    folder = Path(sys.modules["dnat.lab.summary"].__file__).parent
    files = [*folder.glob("*.py"), *(folder.parent / f"{name}.py" for name in ("formatting", "fields", "labels"))]
    assert len(files) > 10
    for path in files:
        tree = ast.parse(path.read_text())
        modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        modules |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not modules & {"torch", "pathlib", "os", "io", "json"}
        assert not any(isinstance(n, ast.Name) and n.id == "open" for n in ast.walk(tree))
