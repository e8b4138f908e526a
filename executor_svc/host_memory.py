"""How much main memory the host tier of the KV cache may take.

Asked twice. Before a model is loaded: whether what the settings say is there at all, since loading takes
minutes. After that: how much to take, since weights and, on a CPU, the KV cache are main memory too.
"""

from pathlib import Path

import structlog

from svc_runtime.lifecycle import ExitCode, StartupError

log = structlog.get_logger("autellix.host_memory")

DEFAULT_GIB = 4.0
DEFAULT_SHARE = 0.25
"""Of the free memory: other executors of the host want as much."""
_GIB = 1 << 30


def require_host_memory(gib: float | None, free: int) -> None:
    """See host_kv_bytes. Raises: StartupError when more is asked for than is free."""
    if gib is not None and gib * _GIB > free:
        raise StartupError(
            f"--host-kv-gib (AUTELLIX_EXECUTOR_HOST_KV_GIB) is {gib:g}, {free / _GIB:.1f} GiB are free: "
            "ask for less, or for 0 to serve without a host tier",
            ExitCode.USAGE,
        )


def host_kv_bytes(gib: float | None, free: int) -> int:
    """Bytes for the host tier, all ranks together.

    Args:
        gib: what the settings say; None: a default that leaves room for others.
        free: bytes that this process may still take.

    Raises: StartupError when more is asked for than is free.
    """
    require_host_memory(gib, free)
    chosen = min(DEFAULT_GIB * _GIB, DEFAULT_SHARE * free) if gib is None else gib * _GIB
    log.info(
        "host_memory_chosen",
        gib=round(chosen / _GIB, 2),
        free_gib=round(free / _GIB, 2),
        by="default" if gib is None else "setting",
    )
    return int(chosen)


def free_bytes(meminfo: Path = Path("/proc/meminfo"), control_group: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may still take, within the limit of its container (cgroup v2)."""
    free = _table(meminfo)["MemAvailable"] * 1024
    limit = control_group / "memory.max"
    if not limit.is_file() or (limit_text := limit.read_text().strip()) == "max":
        return free
    used = int((control_group / "memory.current").read_text())
    page_cache = _table(control_group / "memory.stat")["inactive_file"]  # given up when others need it
    return max(0, min(free, int(limit_text) - used + page_cache))


def _table(file: Path) -> dict[str, int]:
    """The numbers of a file with lines such as `name: 123 kB` or `name 123`."""
    words = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    return {name: int(number) for name, number, *_ in words}
