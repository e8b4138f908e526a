"""Deterministic simulation: the real core in virtual time, with simulated executors and faults.

A proof machine, not a benchmark: `python -m sim --seed S --steps N --faults` runs random worlds, drawn from
one seed, and fails when an invariant of the core breaks, a plan cannot be obeyed, a token comes out wrong,
twice or not at all, or a call does not end as it must. The same seed gives the same trace, byte for byte.

    cli ── run ── episode ──┬─ world       the core, the executors, the agenda of what comes
                            ├─ machines    executors that come and go
                            ├─ traffic     programs and their calls
                            ├─ faults      what goes wrong
                            └─ oracle      what must hold when all is over

A run is a string of episodes: small worlds of some hundred calls, each with a configuration, executors and
traffic of its own. Time is a number that the agenda advances; nobody waits.
"""
