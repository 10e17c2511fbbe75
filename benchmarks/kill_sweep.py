"""A sweep that is killed again and again, beside the same one undisturbed: all results must be equal to the bit.

    python benchmarks/kill_sweep.py --data-root DIR                  CIFAR-10: 2 networks, 2 methods, 3 seeds
    python benchmarks/kill_sweep.py --data digits --seeds 2          smaller
    python benchmarks/kill_sweep.py --engine ray --data-root DIR     kills Ray's workers, too

At random moments (from --kill-seed) either the sweep itself or one of its trials is ended by SIGKILL; the sweep is
started again until all is done. Then the results in every record.json and the whole table of the summary, but for
times, are compared. Ends with exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dnat.lab.summary import markdown, summarize
from dnat.lab.sweep import Standing, read

COMMAND = [sys.executable, "-m", "dnat.lab.cli", "sweep"]


def arguments(options: argparse.Namespace) -> list[str]:
    """What both sweeps are told."""
    given = ["--networks", options.networks, "--methods", options.methods, "--seeds", options.seeds]
    given += ["--data", options.data, "--epochs", str(options.epochs), "--jobs", str(options.jobs)]
    given += ["--architecture-epochs", str(max(1, options.epochs // 2)), "--engine", options.engine]
    given += ["--train-limit", str(options.train_limit), "--test-limit", str(options.test_limit)]
    given += ["--set", f"network.width={options.width}", "--set", "lr_theta=0.2", "--set", "threads=1"]
    return given + (["--data-root", options.data_root] if options.data_root else [])


def undisturbed(given: list[str], place: Path) -> float:
    """Run the sweep once; returns the seconds that it took."""
    began = time.monotonic()
    subprocess.run([*COMMAND, *given, "--out", place], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def killed(given: list[str], place: Path, generator: random.Random, wait: float) -> dict[str, int]:
    """Run the sweep until it is done, killing it or its trials at random; returns the kills of each kind."""
    kills = {"sweep": 0, "trial": 0, "worker": 0, "starts": 0}
    while True:
        kills["starts"] += 1
        process = subprocess.Popen(
            [*COMMAND, *given, "--out", place], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None:
            try:
                process.wait(timeout=generator.uniform(0.5, 2) * wait)
                break
            except subprocess.TimeoutExpired:
                _kill_something(process, place, generator, kills)
        errors = process.stderr.read()
        process.stderr.close()
        if process.returncode not in (0, 75, -signal.SIGKILL):
            raise SystemExit(f"the sweep ended with {process.returncode}: {errors}")
        if process.returncode == 0:
            return kills
        print(
            f"  {sum(s.state == 'done' for s in read(place)) if place.exists() else 0} done, {kills}", flush=True
        )


def _kill_something(
    process: subprocess.Popen[str], place: Path, generator: random.Random, kills: dict[str, int]
) -> None:
    kind, trials, victim = generator.choice(["sweep", "trial", "worker"]), running(place), process.pid
    if kind != "sweep":
        if not trials:
            return
        victim = generator.choice(trials)
        parent = parent_of(victim)
        kind = kind if is_worker(parent) else "trial"  # an orphan's parent may be anybody: never end that
        victim = parent if kind == "worker" else victim
    try:
        os.kill(victim, signal.SIGKILL)
        kills[kind] += 1
    except ProcessLookupError:
        pass


def running(place: Path) -> list[int]:
    """The processes of trials that run now, in order."""
    found = subprocess.run(
        ["pgrep", "-f", f"dnat.lab.cli transform .*{re.escape(str(place))}/"], capture_output=True, text=True
    )
    return sorted(map(int, found.stdout.split()))


def parent_of(pid: int) -> int:
    """The process that started another; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid"))


def is_worker(pid: int) -> bool:
    """Whether a process is a worker of Ray that carries a task out."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def without_times(text: str) -> str:
    """A summary without what differs from run to run: latencies and hours."""
    rows = []
    for line in text.splitlines():
        if line.startswith("|"):
            cells = line.split("|")
            line = "|".join(cells[:-4] + cells[-2:])
        rows.append(re.sub(r"[0-9.]+ hours in all", "hours in all", line))
    return "\n".join(rows)


def summary(standings: tuple[Standing, ...]) -> str:
    """The table of all records, without times."""
    return without_times(markdown(summarize([s.record() for s in standings])))


def compare(whole: tuple[Standing, ...], broken: tuple[Standing, ...]) -> list[str]:
    """What differs between two sweeps that should be equal."""
    differing = []
    for one, other in zip(whole, broken, strict=True):
        ours, theirs = _results(one), _results(other)
        if one.name != other.name or ours != theirs:
            differing.append(f"{one.name}: {[k for k in ours if ours[k] != theirs.get(k)]}")
        rows = [
            [json.loads(line)["epoch"] for line in (s.directory / "metrics.jsonl").read_text().splitlines()]
            for s in (one, other)
        ]
        if rows[0] != rows[1]:
            differing.append(f"{one.name}: rows of epochs {rows[1]}")
    if summary(whole) != summary(broken):
        differing.append("the summary")
    return differing


def _results(standing: Standing) -> dict[str, Any]:
    return standing.record()["results"]


def main() -> None:
    """Parse, run, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet8,resnet20")
    parser.add_argument("--methods", default="original,dnat-full")
    parser.add_argument("--seeds", default="3")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--train-limit", type=int, default=600)
    parser.add_argument("--test-limit", type=int, default=200)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--kill-seed", type=int, default=0)
    parser.add_argument("--wait", type=float, default=7.0, help="seconds between kills, about")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    given = arguments(options)
    places = {name: options.out / f"kill-sweep-{name}" for name in ("undisturbed", "killed")}
    for place in places.values():
        shutil.rmtree(place, ignore_errors=True)
    taken = undisturbed(given, places["undisturbed"])
    print(f"undisturbed: {taken:.0f} s", flush=True)
    began = time.monotonic()
    kills = killed(given, places["killed"], random.Random(options.kill_seed), options.wait)
    whole, broken = read(places["undisturbed"]), read(places["killed"])
    attempts = sum(s.attempts for s in broken)
    print(f"killed: {time.monotonic() - began:.0f} s, {kills}, {attempts} attempts at {len(broken)} trials")
    print(summary(broken))
    if not sum(kills[kind] for kind in ("sweep", "trial", "worker")):
        raise SystemExit("nothing was killed: take a shorter --wait, or more epochs")
    differing = compare(whole, broken)
    if differing:
        raise SystemExit("not equal: " + "; ".join(differing))
    print(f"{len(whole)} of {len(whole)} results, all rows of epochs and the summary are equal to the bit")


if __name__ == "__main__":
    main()
