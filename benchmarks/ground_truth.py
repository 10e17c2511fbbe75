"""Methods against a table of accuracies of NAS-Bench-201 or NAS-Bench-Macro of yours (docs/ground_truth.md).

    python benchmarks/ground_truth.py nasbench201 TABLE.csv --data cifar10 --data-root DIR --random 20
    python benchmarks/ground_truth.py nasbench_macro TABLE.json.xz --inputs 12212112 --methods dnat original

Transforms architectures of the space, those that are named and some drawn at random from the table, by each
method, and prints what became of each and what else could have been reached within the budget. --set changes any
setting (`budget=0.7`, `space="nat++"`, `epochs=60`), or an option of the networks (`network.width=8`). --json
keeps every outcome; the same command goes on after those that are there.
"""

import argparse
import json
import random
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dnat
from dnat.lab.cli import make_job
from dnat.lab.ground_truth import (
    SPACES,
    Known,
    Lookup,
    LookupSummary,
    Ranking,
    compare_with_table,
    live_form,
    reachable,
    read_table,
    summary,
)
from dnat.lab.methods import METHODS
from dnat.naming import unknown


def drawn(space: str, table: dict[str, float], n: int, seed: int) -> list[str]:
    """Architectures of the table, drawn at random: live ones that may change."""

    def fits(architecture: str) -> bool:
        try:
            return live_form(space, architecture) == architecture and len(reachable(space, architecture)) > 1
        except ValueError:
            return False

    order = sorted(table)
    random.Random(seed).shuffle(order)
    found = (architecture for architecture in order if fits(architecture))
    return [architecture for architecture, _ in zip(found, range(n), strict=False)]


def row(method: str, outcome: Lookup) -> str:
    """A line of the printed table."""
    before, after, s = outcome.before, outcome.after, outcome.ranking
    start = f"| {method} | {before.architecture} | {before.accuracy:.2f} |"
    if after is None or s is None:
        return f"{start} {outcome.problem} | | | | | | |"
    result = f"{after.architecture} | {after.accuracy:.2f} | {after.madds / before.madds:.0%}"
    draw = f"{s.mean:.2f} ± {s.std:.2f}"
    others = f"{s.best.accuracy:.2f} | {s.rank} of {s.among} | {draw} | {s.best_anywhere.accuracy:.2f}"
    return f"{start} {result} | {others} |"


def verdict(method: str, found: LookupSummary) -> str:
    """What a method's outcomes come to, beside random draws."""
    share = f"{found.regret / found.control_regret:.2f} of it" if found.control_regret else "all are equal"
    return (
        f"{method}: n = {found.n} ({found.failed} failed, {found.unchanged} unchanged), mean regret "
        f"{found.regret:.2f}, of a random draw {found.control_regret:.2f} ({share}); better than the draw "
        f"{found.wins}, worse {found.losses}, equal {found.ties} (by chance {found.wins_by_chance:.1f} better, "
        f"p = {found.p_value:.2g}); {found.used:.1%} of the allowed cost used"
    )


def kept_lookup(row: dict[str, Any]) -> Lookup:
    """An outcome as --json keeps it."""
    before, after, ranking = row["before"], row["after"], row["ranking"]
    if ranking:
        ranking |= {name: Known(**ranking[name]) for name in ("best", "best_anywhere")}
    return Lookup(
        Known(**before),
        Known(**after) if after else None,
        Ranking(**ranking) if ranking else None,
        row["problem"],
    )


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", choices=SPACES)
    parser.add_argument("table", type=Path)
    parser.add_argument("--inputs", nargs="*", default=[], help="architectures to transform")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="and so many drawn from the table")
    parser.add_argument("--draw-seed", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["dnat"], metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root")
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = {k: getattr(options, k) for k in ("space", "data", "train_limit", "test_limit", "image_size", "set")}
    try:
        there = options.json is not None and options.json.exists()
        kept = json.loads(options.json.read_text()) if there else []
        known = {(r["method"], r["before"]["architecture"]): kept_lookup(r) for r in kept if r["asked"] == asked}
        for name in options.methods:
            if name not in METHODS:
                raise unknown("method", name, METHODS)
        table = read_table(options.table, options.space)
        named = (live_form(options.space, text) for text in options.inputs)
        inputs = list(dict.fromkeys([*named, *drawn(options.space, table, options.random, options.draw_seed)]))
        # The network's name stands for all of the space: only the settings and options are read.
        job = make_job(None, tuple(options.set), {"network": options.space})
        limits = {"train_limit": options.train_limit, "test_limit": options.test_limit}
        data = dnat.load(options.data, options.data_root, image_size=options.image_size, **limits)
        print("| method | input | accuracy | result | accuracy | cost | best allowed | rank | a draw | best |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        for name in options.methods:
            outcomes = []
            for given in inputs:  # one by one, so that each is printed and kept when it is there
                outcome = known.get((name, given))
                if outcome is None:
                    (outcome,) = compare_with_table(
                        METHODS[name],
                        options.space,
                        table,
                        [given],
                        data,
                        job.config,
                        network_options=job.network_options,
                    )
                    kept.append({"method": name, "asked": asked, **asdict(outcome)})
                outcomes.append(outcome)
                print(row(name, outcome), flush=True)
                if options.json:
                    options.json.write_text(json.dumps(kept, indent=1) + "\n")
            if any(outcome.after for outcome in outcomes):
                print(f"\n{verdict(name, summary(outcomes))}\n")
    except (ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
