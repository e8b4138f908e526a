"""At the start: which model do the executors serve, and is it the one whose tokenizer is here?

A frontend with another tokenizer, chat template or grammar backend than its executors would answer fluently
and wrong, so every difference is a refusal that names both sides.
"""

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path

import structlog

from frontend_svc.scheduler_link import SchedulerLink
from frontend_svc.settings import FrontendSettings
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.fingerprint import tokenizer_fingerprint
from svc_runtime.lifecycle import ExitCode, StartupError

PROGRESS_S = 5.0
"""Seconds between two lines that say what is waited for."""
SIMULATED = "simulated:"
"""Beginning of the fingerprint of executors that have no model files."""

log = structlog.get_logger(__name__)


async def wait_for_model(
    link: SchedulerLink, name: str, *, timeout_s: float, stop: asyncio.Event
) -> pb.ModelInfo | None:
    """Wait until an executor serves the model.

    Returns: what is known of it; None when `stop` was set first.

    Raises:
        StartupError: MODEL_MISSING, not within `timeout_s` seconds.
    """
    started = time.monotonic()
    while not stop.is_set():
        if (model := link.models.get(name)) is not None:
            return model
        waited_s = time.monotonic() - started
        if waited_s > timeout_s:
            raise StartupError(_not_served(name, link, timeout_s), ExitCode.MODEL_MISSING)
        log.info("waiting_for_model", model=name, served=sorted(link.models), waited_s=round(waited_s, 1))
        await _first_of(link.wait_models_changed(PROGRESS_S), stop.wait())
    return None


def check_model(model: pb.ModelInfo, settings: FrontendSettings, *, params_format: str) -> None:
    """Compare what the executors said of the model with what this frontend has.

    Raises:
        StartupError: REFUSED, naming the first difference.
    """
    ours = {
        "structured_output_backend": settings.structured_output_backend,
        "reasoning_parser": settings.reasoning_parser,
    }
    for name, value in ours.items():
        theirs = getattr(model, name)
        if value and value != theirs:
            raise _different(name, value, theirs or "none")
    if model.params_formats and params_format not in model.params_formats:
        raise _different("params_format", params_format, ", ".join(model.params_formats))
    _check_tokenizer(model, Path(settings.model))


def _check_tokenizer(model: pb.ModelInfo, directory: Path) -> None:
    """Compare the files themselves, where both sides have them as files."""
    theirs = model.tokenizer_fingerprint
    if not directory.is_dir() or not theirs or theirs.startswith(SIMULATED):
        log.warning("tokenizer_not_compared", model=model.model, simulated=model.simulated)
        return
    ours = tokenizer_fingerprint(directory)
    if ours != theirs:
        raise _different("tokenizer_fingerprint", ours, theirs)


def _different(name: str, ours: str, theirs: str) -> StartupError:
    return StartupError(
        f"{name} differs: this frontend has {ours}, the executors have {theirs}; "
        "give both the same model and settings",
        ExitCode.REFUSED,
    )


def _not_served(name: str, link: SchedulerLink, timeout_s: float) -> str:
    served = ", ".join(sorted(link.models)) or "no model"
    return f"no executor serves {name!r} after {timeout_s:g} s; served: {served}"


async def _first_of(*coroutines: Coroutine[object, object, object]) -> None:
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
