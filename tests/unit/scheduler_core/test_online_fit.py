"""The solver under the step-cost model."""

from random import Random

import pytest

from scheduler_svc.core.online_fit import OnlineFit, solve, solve_within


def random_system(random: Random, size: int) -> tuple[list[list[float]], list[float]]:
    """A positive definite matrix and a solution in -1..1."""
    rows = [[random.gauss(0, 1) for _ in range(size)] for _ in range(3 * size)]
    matrix = [[sum(row[j] * row[k] for row in rows) for k in range(size)] for j in range(size)]
    return matrix, [random.uniform(-1, 1) for _ in range(size)]


def times(matrix: list[list[float]], vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


@pytest.mark.parametrize("size", [1, 2, 6])
def test_a_system_is_solved(size: int) -> None:
    for seed in range(20):
        matrix, solution = random_system(Random(seed), size)
        assert solve(matrix, times(matrix, solution)) == pytest.approx(solution, abs=1e-9)


def test_scales_of_columns_do_not_matter() -> None:
    """Columns of steps range from 1 to 10^11."""
    matrix, solution = random_system(Random(3), 6)
    scales = [10.0 ** (2 * j) for j in range(6)]
    scaled = [[matrix[j][k] * scales[j] * scales[k] for k in range(6)] for j in range(6)]
    expected = [value / scale for value, scale in zip(solution, scales, strict=True)]
    found = solve(scaled, times(scaled, expected))
    assert [a / b for a, b in zip(found, expected, strict=True)] == pytest.approx([1.0] * 6, rel=1e-6)


def test_a_solution_in_range_is_found_unbounded() -> None:
    matrix, solution = random_system(Random(4), 4)
    inside = [abs(value) for value in solution]
    assert solve_within(matrix, times(matrix, inside), [2.0] * 4) == pytest.approx(inside)


def test_what_leaves_its_range_stands_at_the_bound_and_the_rest_makes_up_for_it() -> None:
    """Least squares of |x0 + x1 - 3|^2 + |x0 - x1 - 5|^2 is at (4, -1)."""
    normal, right = [[2.0, 0.0], [0.0, 2.0]], [8.0, -2.0]
    assert solve_within(normal, right, [10.0, 10.0]) == pytest.approx([4.0, 0.0])
    assert solve_within(normal, right, [2.0, 10.0]) == pytest.approx([2.0, 0.0])
    tied, tied_right = [[2.0, 1.0], [1.0, 2.0]], [3.0, 0.0]
    assert solve_within(tied, tied_right, [10.0, 10.0]) == pytest.approx([1.5, 0.0]), "not (2, -1)"


def test_a_block_may_lack_columns() -> None:
    """Columns without a measurement keep their coefficient; the others are learned beside them."""
    fit = OnlineFit([1.0, 1.0], [100.0, 100.0])
    fit.take(([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]), [2.0, 4.0, 6.0])
    assert fit.coefficients == pytest.approx((2.0, 2.0), rel=1e-4), "the first block scales the whole prior"
    fit.take(([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), [5.0, 10.0, 15.0])
    for _ in range(20):
        fit.take(([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), [5.0, 10.0, 15.0])
    assert fit.coefficients == pytest.approx((2.0, 5.0), rel=0.01)
    assert fit.changes == 1
