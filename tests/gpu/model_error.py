"""How far the cost model of Hopper's products is from what was timed, and what its choices cost. Needs no GPU.

    PYTHONPATH=. python3 tests/gpu/model_error.py

Plans of the suites of bench_variants.py with b = 32 and more that `results/` has times of. A plan's time is the median over the
files; variants that are no more are left out.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

from bench_variants import SUITES

RESULTS = [
    Path(__file__).parent / "results" / f"{name}_h200.json" for name in ("lines", "forms", "rings", "four", "across")
]


def timed() -> dict[str, dict[str, float]]:
    """Seconds by case and plan."""
    found: dict[str, dict[str, list[float]]] = {}
    for file in RESULTS:
        for case in json.loads(file.read_text())["cases"]:
            for plan in case["plans"]:
                found.setdefault(case["case"], {}).setdefault(plan["plan"], []).append(plan["seconds"])
    return {case: {plan: statistics.median(times) for plan, times in plans.items()} for case, plans in found.items()}


def main() -> None:
    """Print each case's choice beside the fastest, and the error over all plans."""
    times, errors, regrets = timed(), [], []
    for make in (make for suite in ("lines", "small", "forms", "rings", "four", "across") for make in SUITES[suite]):
        name, _, plans = make()
        known = {plan.summary: plan.cost.seconds for plan in plans if plan.summary in times.get(name, {})}
        if not known:
            continue
        errors += [math.log(predicted / times[name][plan]) for plan, predicted in known.items()]
        choice, best = min(known, key=lambda plan: known[plan]), min(times[name][plan] for plan in known)
        regrets.append(times[name][choice] / best)
        print(
            f"{name:42} {len(known):3} plans, best {best * 1e6:7.2f} us, choice {regrets[-1]:.3f} of it: {choice}",
            flush=True,
        )
    error = math.sqrt(statistics.fmean(error**2 for error in errors))
    print(f"{len(errors)} plans: root mean square error {error:.1%}")
    print(
        f"choices take at most {max(regrets):.3f} times as long as the best, {statistics.fmean(regrets):.3f} on average"
    )


if __name__ == "__main__":
    main()
