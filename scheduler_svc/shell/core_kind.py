"""Which core this process runs: as compiled ahead of time, or interpreted from its sources."""

from pathlib import Path

from scheduler_svc.core import core


def core_kind() -> str:
    """`compiled` or `interpreted`. Both do the same; see docs/adr/0009-compiled-core.md."""
    return "interpreted" if Path(core.__file__).suffix == ".py" else "compiled"
