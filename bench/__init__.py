"""Benchmarks: what the system costs and gains, both sides on one machine in one run.

Results go to bench/results/.
"""
