"""Checks what deploys us, no engine needed: `docker compose config` for each profile, hadolint.

Run by `make lint`. Placeholders stand in for the variables that compose.yaml demands.
"""

import os
import subprocess
import sys
from pathlib import Path

PROFILES = ("gpu", "cpu")
DEMANDED = {"AUTELLIX_PEER_TOKEN": "placeholder", "AUTELLIX_API_KEYS": "tenant:placeholder"}


def main() -> int:
    """Returns the number of failed checks."""
    tools = Path(sys.executable).parent
    checks: list[list[str | Path]] = [
        [tools / "docker-compose", "--profile", name, "config", "--quiet"] for name in PROFILES
    ]
    checks += [[tools / "hadolint", dockerfile] for dockerfile in sorted(Path("deploy").glob("*Dockerfile*"))]
    failed = 0
    for check in checks:
        done = subprocess.run(check, env={**os.environ, **DEMANDED}, check=False)
        failed += done.returncode != 0
        print("ok    " if done.returncode == 0 else "FAILED", Path(check[0]).name, *check[1:])
    return failed


if __name__ == "__main__":
    sys.exit(main())
