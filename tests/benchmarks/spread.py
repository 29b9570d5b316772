"""How the benchmarks tell several measurements of one thing: their median, and between which the middle half lies."""

import statistics


def median_and_spread(values: list[float], form: str = ".2f") -> str:
    """`median (first quartile-third quartile)`, each in this format; of one value, that value three times."""
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{statistics.median(values):{form}} ({low:{form}}-{high:{form}})"
