"""`bench.swap` on the GPU: copies of KV blocks between device and pinned host memory."""

import sys
from pathlib import Path

from bench import swap

RESULT = Path(__file__).parents[1] / "results" / "gpu_swap.json"

if __name__ == "__main__":
    swap.main(["--device", "cuda", "--out", str(RESULT), *sys.argv[1:]])
