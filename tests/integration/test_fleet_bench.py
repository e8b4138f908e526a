"""The fleet bench from end to end, small: real scheduler, two simulated executors, every token checked."""

from bench.fleet import Load, measure


def test_a_small_fleet_is_measured() -> None:
    load = Load(executors=2, calls_each=8, step_ms=10, settle_s=0.1, window_s=1.0, policy="fcfs")
    result = measure(load)
    assert len(result["executors"]) == 2
    assert all(figures["steps"] > 10 and figures["rows_min"] == 8 for figures in result["executors"])
    assert result["inflation"] > -1e-6, "a device cannot be faster than its steps"
    assert result["tokens_per_s"] > 0
    assert set(result["cpu_us_per_step"]) == {"scheduler", "executors", "client"}
