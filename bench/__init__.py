"""Benchmarks: what the system costs and gains, measured on one machine in one run. Results go to bench/results/."""
