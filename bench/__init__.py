"""Benchmarks: what the system costs and gains, both sides on one machine in one run.

Results go to bench/results/.
"""

import svc_runtime  # noqa: F401 - before grpc is loaded, see there
