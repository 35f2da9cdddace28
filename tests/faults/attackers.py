"""python -m tests.faults.attackers --out FILE.csv --workers N: hostile devices against the mean and every robust rule.

A simulated fleet on real recordings (RELIEF_DATA). A run is one attack, share, rule and seed, and one row of the file
(tidy: a value per column); runs that the file holds already are not made again, so an interrupted table goes on. The
norm bound of the coordinator's edge is not in play: what is compared is aggregation alone. The verdict comes last.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from coordinator.robust import Robust, Rule
from models.spec import Mode
from tests.faults.hostile import ATTACKS, DRAWS, Hostile, drawn, worst

MEAN = "mean"
RULES = (MEAN, *(rule.value for rule in Rule))
SCORES = ("in_subject", "held_out", "rare_owners")


@dataclass(frozen=True)
class Case:
    """One run: what identifies it in the file."""

    fleet: str
    method: str
    draw: str
    attack: str
    share: float
    rule: str
    seed: int
    fold: int
    rounds: int
    rate: float


def run(case: Case) -> dict[str, Any]:
    """Make the run; its row."""
    import torch

    from tools.lab.cells import made, prepared
    from tools.lab.plan import Cell, Experiment, Method
    from tools.lab.simulate import Run

    torch.set_num_threads(1)
    cpu = time.process_time()
    method = Method(strategy=case.method, deadline="fastest")
    plan = Experiment(name="attackers", fleets=[case.fleet], reference=case.method, methods={case.method: method})
    cell = Cell(case.method, case.fleet, Mode.FULL, case.fold, case.seed, case.rate)
    where, engine, blocks, frozen = prepared(plan.model_dump_json(), cell)
    owned = {d.id: d.owned for d in where.devices}
    hostile = drawn(owned, case.share, case.seed, by=case.draw) if case.attack != "none" else set()
    strategy = made(method, where, plan, cell)
    # The operator does not know the share: rules are set for 30 % throughout.
    robust = None if case.rule == MEAN else Robust(Rule(case.rule), share=0.3)
    strategy.settings = replace(strategy.settings, robust=robust)
    attack = "flip" if case.attack == "none" else case.attack
    one = Run(where, strategy, Hostile(engine, attack, hostile, case.seed), dict(blocks), dict(frozen),  # type: ignore[arg-type]
              rounds=case.rounds, every=case.rounds)  # fmt: skip
    with np.errstate(all="ignore"):
        scores = one.go()[-1].scores
    return {
        **asdict(case),
        "devices": len(owned),
        "hostile": len(hostile),
        "worst_cohort": round(worst(owned, hostile), 4),
        **{name: round(float(scores[name]), 5) for name in SCORES},
        "cpu": round(time.process_time() - cpu, 1),
    }


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """All runs of the table, seed by seed: workers keep a seed's world."""
    attacks = [("none", 0.0)] + [(attack, share) for attack in given.attacks for share in given.shares]
    for seed in given.seeds:
        for attack, share in attacks:
            for rule in given.rules:
                fold = seed % 3
                yield Case(
                    given.fleet, given.method, given.draw, attack, share, rule, seed, fold, given.rounds, given.rate
                )


def key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What identifies a row, as text."""
    return tuple(str(row[field.name]) for field in fields(Case))


def written(path: Path) -> list[dict[str, str]]:
    """The rows of the file; an unfinished last line is none."""
    if not path.exists():
        return []
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(rows: list[dict[str, Any]], shown: str) -> list[str]:
    """Mean and spread over seeds: a line per attack and share, a column per rule."""
    found: dict[tuple[str, float], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    part: dict[tuple[str, float], list[float]] = defaultdict(list)
    for row in rows:
        where = row["attack"], float(row["share"])
        found[where][row["rule"]].append(float(row[shown]))
        part[where].append(float(row["worst_cohort"]))
    order = ["none", *ATTACKS]
    lines = [f"| {shown} | of a cohort, at most | " + " | ".join(RULES) + " |", "|---|---|" + "---|" * len(RULES)]
    for attack, share in sorted(found, key=lambda k: (order.index(k[0]), k[1])):
        values = [found[attack, share][rule] for rule in RULES]
        cells = [f"{mean(v):.3f} ± {stdev(v) if len(v) > 1 else 0.0:.3f}" if v else "" for v in values]
        name = attack if attack == "none" else f"{attack} {share:.0%}"
        lines.append(f"| {name} | {max(part[attack, share]):.0%} | " + " | ".join(cells) + " |")
    return lines


def verdict(rows: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether the best rule beats the mean clearly where attackers shout: fifty times the opposite."""
    by_rule: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["attack"] == "reverse":
            by_rule[row["rule"]].append(float(row["in_subject"]))
    if MEAN not in by_rule or len(by_rule) < 2:
        return True, "no run of reverse to judge by"
    plain = mean(by_rule.pop(MEAN))
    told = ", ".join(f"{rule} {mean(values):.3f}" for rule, values in by_rule.items())
    return all(
        mean(v) > plain + 0.1 for v in by_rule.values()
    ), f"under reverse in-subject {told}; the mean {plain:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.attackers", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("attackers.csv"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--fleet", default="coupled")
    parser.add_argument("--method", default="cohort-steps")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--draw", choices=DRAWS, default="cohort", help="hostile devices: a share of each, or of all")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args()
    began, before = time.perf_counter(), written(given.out)
    wanted = {tuple(map(str, astuple(case))): case for case in cases(given)}
    rows: list[dict[str, Any]] = [row for row in before if key(row) in wanted]
    todo = [case for name, case in wanted.items() if name not in {key(row) for row in rows}]
    # A process of its own for every worker, not a fork of this one: torch's threads do not survive a fork.
    with given.out.open("a", newline="") as file, multiprocessing.get_context("spawn").Pool(given.workers) as pool:
        out: csv.DictWriter[str] | None = None
        for n, row in enumerate(pool.imap_unordered(run, todo, chunksize=4), 1):
            if out is None:
                out = csv.DictWriter(file, list(row))
                if not before:
                    out.writeheader()
            out.writerow(row)
            file.flush()
            rows.append(row)
            what = f"{row['attack']} {row['share']:.0%} {row['rule']} seed {row['seed']}"
            print(
                f"{n}/{len(todo)} {what}: {row['in_subject']:.3f} / {row['held_out']:.3f}", file=sys.stderr, flush=True
            )
    for shown in SCORES:
        print("\n".join(table(rows, shown)), end="\n\n")
    good, why = verdict(rows)
    cpu = sum(float(row["cpu"]) for row in rows)
    print(f"{'OK' if good else 'FAILED'}: {len(rows)} runs of {given.rounds} rounds on {given.fleet}, {why}; "
          f"{cpu:.0f} s of CPU, {time.perf_counter() - began:.0f} s now for {len(todo)}")  # fmt: skip
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
