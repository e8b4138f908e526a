"""What GPU a check ran on."""

from typing import Any


def describe() -> dict[str, Any]:
    """Name, memory and software of the first visible GPU; empty when there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
