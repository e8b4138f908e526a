"""When a frontend takes calls, and what it says when it does not."""

from dataclasses import dataclass, field

from frontend_svc.readiness import Readiness
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb

MODEL = pb.ModelInfo(model="m", tokenizer_fingerprint="sha256:ours")


@dataclass
class Link:
    """A link whose state the test sets."""

    up: bool = True
    models: dict[str, pb.ModelInfo] = field(default_factory=lambda: {"m": MODEL})


def reason(readiness: Readiness) -> str:
    refusal = readiness.unavailable()
    return refusal.reason if refusal is not None else ""


def test_it_is_ready_while_the_scheduler_is_there() -> None:
    link = Link()
    readiness = Readiness(link, MODEL)
    assert reason(readiness) == ""
    link.up = False
    assert reason(readiness) == "SCHEDULER_UNAVAILABLE"


def test_calls_may_wait_for_an_executor() -> None:
    assert reason(Readiness(Link(models={}), MODEL)) == ""


def test_another_model_of_the_same_name_is_not_fed_our_tokens() -> None:
    link = Link()
    readiness = Readiness(link, MODEL)
    link.models["m"] = pb.ModelInfo(model="m", tokenizer_fingerprint="sha256:other")
    refusal = readiness.unavailable()
    assert refusal is not None
    assert (refusal.reason, refusal.limit) == ("MODEL_MISMATCH", "sha256:other")
    link.models["m"] = MODEL
    assert reason(readiness) == ""


def test_a_draining_frontend_takes_no_call() -> None:
    readiness = Readiness(Link(), MODEL)
    readiness.drain()
    assert reason(readiness) == "SHUTTING_DOWN"
