"""A linear model with no negative coefficient, learned from a stream of noisy measurements.

Theory of operation: `seen = sum of coefficient[j] * column[j]`, fitted by least squares of the *relative*
error, so that a step of 5 ms and one of 5 s count alike. Measurements come in blocks; of the old ones only
their normal equations are kept (6 x 6 numbers for 6 columns), which fade with a half-life counted in
measurements.

- **Prior.** The median of the first block says how much faster or slower than the prior the thing is as a
  whole; the proportions follow from what is measured.
- **What is not measured stays.** Each fit is drawn slightly towards the one before, never back to the prior:
  after an hour without prefill the price of prefill is what it was.
- **Outliers.** Errors are relative to the larger of what was seen and what was expected, so none is above 1:
  a zero pulls no more than two ordinary errors of a half, and a hiccup less the longer it was.
- **Change.** When the median of a block is off by more than `_CHANGE`, most measurements say so, and that is
  no outlier: from then on the block counts, and what was known before only where the block says nothing.
  Smaller changes, and those of a minority of measurements, are followed as old ones fade.
- **Bounds.** Coefficients stay in 0..ceiling. Fading sums, and a pull that is never below a billionth of what
  it pulls against, keep the system well conditioned, whatever is measured, for ever. Arithmetic in a fixed
  order: equal inputs, equal coefficients.

Everything is plain Python on the columns of a block, where `sum(map(mul, ...))` runs at the speed of C.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import mul
from statistics import median

_HALF_LIFE = 4096
"""Measurements after which an old one counts half."""
_CHANGE = 0.25
"""Median error of a block that is taken for a change of what is measured."""
_KEPT_OVER_CHANGE = 0.002
"""Weight of old measurements after a change: they decide only what the new ones say nothing about."""
_PULL = 0.01
"""Pull towards the last fit, in measurements of a column by itself."""
_PULL_MIN = 1e-9
"""Of the sum of squares of a column; far above the rounding of sums."""
_RATIO_MAX = 1000.0
"""How much faster or slower something can be found to be at once."""
_UNIT_MIN = 0.01
"""Of the prior: nothing measured may ever be a reason to hold on to zero."""
_LEAST = 1e-5
"""What is smaller is as good as zero. No forward pass takes 10 us."""

Column = Sequence[float]


class OnlineFit:
    """Non-negative coefficients of a handful of columns.

    Args:
        prior: Coefficients to begin with; all > 0. Shape: (columns,).
        ceiling: Largest values allowed; all >= their prior. Shape: (columns,).
    """

    def __init__(self, prior: Sequence[float], ceiling: Sequence[float]) -> None:
        self.coefficients = tuple(prior)
        """Shape: (columns,)."""
        self.error = 0.0
        """Median error of the newest block, as it was predicted before the block was taken in. 0..1."""
        self.changes = 0
        """Times that the measured thing was found changed."""
        self._ceiling = tuple(ceiling)
        self._unit = tuple(prior)
        """What is a lot for a coefficient, to compare the pulls on them. > 0."""
        self._normal = [[0.0] * len(prior) for _ in prior]
        """Weighted sums of products of columns; the lower triangle."""
        self._right = [0.0] * len(prior)
        """The same of columns with what was seen."""
        self._began = False

    def take(self, columns: Sequence[Column], seen: Sequence[float]) -> None:
        """Learns from a block of measurements.

        Args:
            columns: Shape: (columns, measurements). Not negative; in each measurement one is positive.
            seen: Shape: (measurements,). Not negative.
        """
        expected = self._expect(columns)
        errors = list(map(_error, seen, expected))
        middle = median(errors)
        self.error = median(map(abs, errors))
        if not self._began or abs(middle) > _CHANGE:
            ratio = _ratio(middle)
            self._begin(ratio)
            expected = [ratio * each for each in expected]
        self._fade(0.5 ** (len(seen) / _HALF_LIFE))
        self._add(columns, seen, expected)
        self._solve()

    def _expect(self, columns: Sequence[Column]) -> list[float]:
        pairs = zip(self.coefficients, columns, strict=True)
        terms = [map(mul, column, repeat(each)) for each, column in pairs if any(column)]
        return list(map(sum, zip(*terms, strict=True)))

    def _begin(self, ratio: float) -> None:
        """Begins with the prior, or after a change, on what is `ratio` times as slow as was thought."""
        if self._began:
            self.changes += 1
            self._fade(_KEPT_OVER_CHANGE / max(1.0, ratio) ** 2)  # weights are relative to what is expected
            self._unit = self._bounded(max(1.0, ratio) * unit for unit in self._unit)
        else:
            self._began = True
            self.coefficients = self._bounded(ratio * prior for prior in self._unit)
            self._unit = self._bounded(max(_UNIT_MIN, ratio) * prior for prior in self._unit)

    def _bounded(self, values: Iterable[float]) -> tuple[float, ...]:
        return tuple(map(min, values, self._ceiling))

    def _fade(self, factor: float) -> None:
        self._normal = [[factor * value for value in row] for row in self._normal]
        self._right = [factor * value for value in self._right]

    def _add(self, columns: Sequence[Column], seen: Sequence[float], expected: Sequence[float]) -> None:
        scales = [1 / (larger + _LEAST) for larger in map(max, seen, expected)]
        present = [j for j, column in enumerate(columns) if any(column)]
        rows = [list(map(mul, columns[j], scales)) for j in present]
        targets = list(map(mul, seen, scales))
        for at, j in enumerate(present):
            row, normal = rows[at], self._normal[j]
            self._right[j] += sum(map(mul, row, targets))
            for k, other in zip(present, rows[: at + 1], strict=False):
                normal[k] += sum(map(mul, row, other))

    def _solve(self) -> None:
        size = len(self._unit)
        normal = [[self._normal[max(j, k)][min(j, k)] for k in range(size)] for j in range(size)]
        right = self._right.copy()
        for j, unit in enumerate(self._unit):
            pull = max(_PULL / unit**2, _PULL_MIN * normal[j][j])
            normal[j][j] += pull
            right[j] += pull * self.coefficients[j]
        self.coefficients = tuple(solve_within(normal, right, self._ceiling))


def _error(seen: float, expected: float) -> float:
    """Relative to the larger of the two: -1..1."""
    larger = seen if seen > expected else expected
    return (seen - expected) / (larger + _LEAST)


def _ratio(error: float) -> float:
    """seen / expected, bounded."""
    return max(1 + error, 1 / _RATIO_MAX) if error < 0 else 1 / max(1 - error, 1 / _RATIO_MAX)


def solve_within(
    normal: Sequence[Sequence[float]], right: Sequence[float], highest: Sequence[float]
) -> list[float]:
    """Solves `normal x = right` with 0 <= x <= highest: values outside are fixed at their bounds and the rest
    is solved again, until none is.

    Args:
        normal: Symmetric, positive definite. Shape: (size, size).
        right: Shape: (size,).
        highest: Shape: (size,).
    """
    free = list(range(len(right)))
    solution = [0.0] * len(right)
    while True:
        matrix = [[normal[j][k] for k in free] for j in free]
        fixed = [k for k in range(len(right)) if k not in free]
        rest = [right[j] - sum(normal[j][k] * solution[k] for k in fixed) for j in free]
        for j, value in zip(free, solve(matrix, rest), strict=True):
            solution[j] = value
        outside = {j for j in free if not 0 <= solution[j] <= highest[j]}
        if not outside:
            return solution
        for j in outside:
            solution[j] = min(max(solution[j], 0.0), highest[j])
        free = [j for j in free if j not in outside]


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Solves `matrix x = right` for a symmetric, positive definite matrix, by elimination without pivots.

    Args:
        matrix: Shape: (size, size).
        right: Shape: (size,).
    """
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for j, pivot in enumerate(rows):
        for row in rows[j + 1 :]:
            factor = row[j] / pivot[j]
            if factor:
                for k in range(j, size + 1):
                    row[k] -= factor * pivot[k]
    solution = [0.0] * size
    for j in reversed(range(size)):
        known = sum(rows[j][k] * solution[k] for k in range(j + 1, size))
        solution[j] = (rows[j][size] - known) / rows[j][j]
    return solution
