"""How far the cost models of Hopper's wide blocks are from what was timed, and what their choices cost. Needs no GPU.

    PYTHONPATH=. python3 tests/gpu/model_error.py [--fit]

Plans that `results/` has times of, by the suites of bench_variants.py: products, then wgrad. A product's time is the median over
the files, and variants that are no more are left out. --fit then looks for better constants of bsgen/plan/hopper_cost.py, from
those it has on, by least squares of the logarithms: those within 5 % of a case's best count most. Choose between its constants
and others by what the choices cost, too: the error alone does not rank plans.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from bench_variants import SUITES, TARGET
from scipy.optimize import least_squares

from bsgen.plan import (
    HopperCoarseWGradPlan,
    HopperPlan,
    HopperWGradPlan,
    hopper,
    hopper_coarse_wgrad,
    hopper_cost,
    hopper_wgrad,
)
from bsgen.plan.blocks import output_blocks
from bsgen.plan.hopper_cost import Counts, tile_counts
from bsgen.plan.hopper_shapes import few_rows, rings_worth
from bsgen.plan.warpgroup import streamed
from bsgen.problem import Problem

FILES = ("lines", "forms", "rings", "four", "across", "direct", "six", "middle", "joined")
RESULTS_FOLDER = Path(__file__).parent / "results"
RESULTS = [RESULTS_FOLDER / f"{name}_h200.json" for name in FILES]
GRADIENTS = ("wide_wgrad", "coarse")  # of wgrad
FITTED = (
    "AGAIN", "LEAST_STEP", "VISIT", "PAIR", "PAIRED_VISIT", "TALL_VISIT", "STEP", "WAITS", "PRODUCT", "PAIRED_PRODUCT",
    "DIRECT_READS", "LARGE_TILE", "COPY", "OUTPUT", "STORED", "ACTIVATION", "RESIDUAL",
    "TOGETHER", "RINGED", "RINGED_LINES", "LINE_RATE", "START_SECONDS", "OVERLAP", "MEMORY_OVERLAP", "TOGETHER_MEMORY",
)  # fmt: skip
NEAR = ((1.05, 1.2), (1.15, 0.8), (math.inf, 0.25))  # times of the best, and what plans up to there weigh
TOUCH = 0.2  # what it weighs that a constant stays


class Timed(NamedTuple):
    """A draft that was timed."""

    case: str
    problem: Problem
    draft: hopper.Draft
    counts: Counts
    seconds: float


def times() -> dict[str, dict[str, float]]:
    """Seconds by case and plan."""
    found: dict[str, dict[str, list[float]]] = {}
    for file in RESULTS:
        for case in json.loads(file.read_text())["cases"]:
            for plan in case["plans"]:
                found.setdefault(case["case"], {}).setdefault(plan["plan"], []).append(plan["seconds"])
    return {case: {plan: statistics.median(times) for plan, times in plans.items()} for case, plans in found.items()}


def summary(problem: Problem, draft: hopper.Draft) -> str:
    """What its plan says of itself, without the tables of the plan."""
    row = np.zeros(1, np.int32)
    tables = (draft.geometry, row[None], row[None], draft.band, streamed(problem, draft.geometry))
    plan = HopperPlan(problem, TARGET, draft.grouping, row, row[None], draft.reductions, draft.cost, *tables)
    return plan.summary


def timed() -> Iterator[Timed]:
    """The drafts of each case that there are times of."""
    known = times()
    for make in (make for suite in (*FILES, "small") for make in SUITES[suite]):
        case, problem, _ = make()
        left, inputs = dict(known.get(case, {})), output_blocks(problem).inputs_total
        for draft in hopper.drafts(problem, TARGET, across=(1, 2, 4), rings=(1, 2)) if left else ():
            seconds = left.pop(summary(problem, draft), math.inf)
            if math.isfinite(seconds):
                yield Timed(case, problem, draft, tile_counts(draft.tiles, inputs, draft.geometry), seconds)


def predicted(rows: Sequence[Timed]) -> np.ndarray:
    """Seconds by the model, for inputs of which L2 fetched whole lines, as when they were timed."""
    return np.array(
        [hopper_cost.hopper_cost(row.problem, TARGET, row.draft.geometry, row.counts, 0.0, 0).seconds for row in rows]
    )


def rings_considered(problem: Problem) -> tuple[int, ...]:
    """Numbers of rings that the planner considers: others were timed, but are never its choice."""
    return rings_worth(problem, output_blocks(problem).idle)


def report(rows: Sequence[Timed]) -> None:
    """Print each case's choice beside the fastest, and the error over all."""
    seconds, regrets = predicted(rows), []
    for case in dict.fromkeys(row.case for row in rows):
        places = [place for place, row in enumerate(rows) if row.case == case]
        best, worth = min(rows[place].seconds for place in places), rings_considered(rows[places[0]].problem)
        offered = [place for place in places if rows[place].draft.geometry.shape.rings in worth]
        least = min(seconds[place] for place in offered)
        alike = [rows[place] for place in offered if seconds[place] <= least]
        choice = max(alike, key=lambda row: hopper.suitable(row.draft, few_rows(row.problem)))
        regrets.append(choice.seconds / best)
        print(
            f"{case:42} {len(places):3} plans, best {best * 1e6:7.2f} us, choice {regrets[-1]:.3f} of it: "
            f"{summary(choice.problem, choice.draft)}"
        )
    error = np.sqrt(np.mean(np.log(seconds / [row.seconds for row in rows]) ** 2))
    print(f"{len(rows)} plans: root mean square error {error:.1%}")
    print(
        f"choices take at most {max(regrets):.3f} times as long as the best, {statistics.fmean(regrets):.3f} on average"
    )


def fit(rows: Sequence[Timed]) -> dict[str, float]:
    """Constants that bring predictions nearer, which the model has from here on."""
    begin = {name: getattr(hopper_cost, name) for name in FITTED}
    rates, measured = dict(hopper_cost.L2_RATE), np.log([row.seconds for row in rows])
    best = {case: min(row.seconds for row in rows if row.case == case) for case in {row.case for row in rows}}
    weights = [next(w for most, w in NEAR if row.seconds <= most * best[row.case]) for row in rows]

    def take(scales: np.ndarray) -> dict[str, float]:
        made = {name: value * scale for (name, value), scale in zip(begin.items(), scales[2:], strict=True)}
        for name, value in made.items():
            setattr(hopper_cost, name, value)
        for (size, rate), scale in zip(rates.items(), scales[:2], strict=True):
            hopper_cost.L2_RATE[size] = rate * scale
        return {**{f"L2_RATE[{size}]": rate for size, rate in hopper_cost.L2_RATE.items()}, **made}

    def misses(scales: np.ndarray) -> np.ndarray:
        take(scales)
        return np.concatenate([weights * (np.log(predicted(rows)) - measured), TOUCH * (scales - 1)])

    start = np.ones(len(begin) + len(rates))
    found = least_squares(misses, start, loss="soft_l1", f_scale=0.08, diff_step=1e-3, max_nfev=25)
    return take(found.x)


def gradients(problem: Problem) -> Iterator[tuple[str, float]]:
    """What plans of wgrad by wgmma say of themselves, without tables, and predicted seconds: sums of blocks, and whole ones."""
    row = np.zeros(1, np.int32)
    for family, kept in ((hopper_wgrad, {}), (hopper_coarse_wgrad, {"kept": row})):
        plan_of = HopperCoarseWGradPlan if kept else HopperWGradPlan
        for draft in family.drafts(problem, TARGET):
            tables = (row, np.zeros((len(draft.tiles), 1), np.int32), row, row, draft.cost)
            plan = plan_of(problem, TARGET, draft.geometry, draft.height, draft.splits, *tables, **kept)
            yield plan.summary, draft.cost.seconds


def report_gradients(suite: str) -> None:
    """The same of a suite of wgrad; plans of warps by themselves are left out."""
    ratios, regrets = [], []
    cases = json.loads((RESULTS_FOLDER / f"{suite}_h200.json").read_text())["cases"]
    known = {case["case"]: {plan["plan"]: plan["seconds"] for plan in case["plans"]} for case in cases}
    for make in SUITES[suite]:
        name, problem, _ = make()
        found = [(seconds, known[name].pop(text)) for text, seconds in gradients(problem) if text in known[name]]
        ratios += [predicted / seconds for predicted, seconds in found]
        regrets.append(min(found)[1] / min(seconds for _, seconds in found))
        print(f"{name:48} {len(found):3} plans, choice {regrets[-1]:.3f} of the best")
    print(f"{len(ratios)} plans of {suite}: root mean square error {np.sqrt(np.mean(np.log(ratios) ** 2)):.1%}")
    print(f"choices take at most {max(regrets):.3f} times as long, {statistics.fmean(regrets):.3f} on average")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true", help="look for better constants")
    given, rows = parser.parse_args(), list(timed())
    report(rows)
    for suite in GRADIENTS:
        report_gradients(suite)
    if given.fit:
        for name, value in fit(rows).items():
            print(f"{name} = {value:.4g}")
        report(rows)


if __name__ == "__main__":
    main()
