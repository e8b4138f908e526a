"""SetPolicy over gRPC: live calls go on under the new policy; what makes no sense is refused."""

import grpc
import pytest
import structlog

from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from protos.autellix.scheduler.v1 import scheduler_pb2_grpc as pb_grpc
from scheduler_svc.core.config import Fit, ServiceUnit, Tie
from scheduler_svc.core.core import Core
from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.shell.policy_request import policy_changes
from svc_runtime.rpc_errors import parse_error
from tests.unit.scheduler_shell.conftest import Dial, Start, settings
from tests.unit.scheduler_shell.fake_executor import FakeExecutor
from tests.unit.scheduler_shell.fake_frontend import FakeFrontend
from tests.unit.scheduler_shell.waiting import until


async def test_live_calls_are_queued_again_and_finish(start: Start, dial: Dial) -> None:
    server = await start(policy="fcfs")
    async with (
        FakeExecutor(dial(server), obedient=False) as executor,
        FakeFrontend(dial(server)) as frontend,
    ):
        await frontend.open_program()
        for handle in (1, 2):
            await frontend.submit(handle, max_tokens=1)
        await until(lambda: len(frontend.started) == 2)
        with structlog.testing.capture_logs() as logged:
            answer = await frontend.programs.SetPolicy(pb.SetPolicyRequest(policy="gittins", tie="call"))
        assert (answer.policy, answer.requeued_calls) == ("gittins", 2)
        statistics = await frontend.programs.GetStatistics(pb.GetStatisticsRequest())
        assert statistics.policy == "gittins"
        answered = 0
        while len(frontend.finished) < 2:
            await until(lambda: len(executor.plans) > answered or len(frontend.finished) == 2)  # noqa: B023
            if len(executor.plans) > answered:
                await executor.answer()
                answered += 1
    assert {end.reason for end in frontend.finished.values()} == {pb.FINISH_REASON_LENGTH}
    (entry,) = [entry for entry in logged if entry["event"] == "policy_changed"]
    assert entry["changes"] == {"policy": "gittins", "tie": "call"}
    assert entry["requeued_calls"] == 2


async def test_a_frontend_that_connects_later_is_told_the_policy_of_then(start: Start, dial: Dial) -> None:
    server = await start(policy="fcfs")
    async with FakeFrontend(dial(server)) as first:
        assert first.welcome is not None
        assert first.welcome.policy == "fcfs"
        await first.programs.SetPolicy(pb.SetPolicyRequest(policy="plas"))
    async with FakeFrontend(dial(server)) as second:
        assert second.welcome is not None
        assert second.welcome.policy == "plas"


@pytest.mark.parametrize(
    ("request_", "field", "limit", "value"),
    [
        (pb.SetPolicyRequest(policy="lottery"), "policy", "one of fcfs, program_fcfs, mlfq", "lottery"),
        (pb.SetPolicyRequest(preset="papers"), "preset", "one of default, paper", "papers"),
        (pb.SetPolicyRequest(service_unit="joule"), "service_unit", "one of cost, seconds", "joule"),
        (pb.SetPolicyRequest(tie="coin"), "tie", "one of program, call, queue", "coin"),
        (pb.SetPolicyRequest(fit="loose"), "fit", "one of strict, backfill", "loose"),
        (pb.SetPolicyRequest(levels=0), "levels", "1..64", "0"),
        (pb.SetPolicyRequest(levels=65), "levels", "1..64", "65"),
        (pb.SetPolicyRequest(first_quantum_s=0.0), "first_quantum_s", "1e-06..3600", "0.0"),
        (pb.SetPolicyRequest(first_quantum_s=float("nan")), "first_quantum_s", "1e-06..3600", "nan"),
        (pb.SetPolicyRequest(quantum_ratio=0.5), "quantum_ratio", "1..100", "0.5"),
        (pb.SetPolicyRequest(starvation_beta=-1.0), "starvation_beta", "> 0 or None", "-1.0"),
        (
            pb.SetPolicyRequest(level_boundaries_s=[1.0]),
            "level_boundaries_s",
            "levels - 1 = 7 values",
            "(1.0,)",
        ),
        (
            pb.SetPolicyRequest(levels=3, level_boundaries_s=[2.0, 1.0]),
            "level_boundaries_s",
            "ascending and > 0",
            "(2.0, 1.0)",
        ),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    start: Start, dial: Dial, request_: pb.SetPolicyRequest, field: str, limit: str, value: str
) -> None:
    stub = pb_grpc.SchedulerServiceStub(dial(await start()))
    with pytest.raises(grpc.RpcError) as failed:
        await stub.SetPolicy(request_)
    failure = parse_error(failed.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "PARAMETER_OUT_OF_RANGE")
    assert (failure.field, failure.value) == (field, value)
    assert failure.limit.startswith(limit)
    assert (await stub.GetStatistics(pb.GetStatisticsRequest())).policy == "plas"


async def test_what_is_not_set_stays(start: Start, dial: Dial) -> None:
    core = Core(settings(policy="plas", levels=4).core_config())
    stub = pb_grpc.SchedulerServiceStub(dial(await start(core=core)))
    answer = await stub.SetPolicy(pb.SetPolicyRequest(fit="backfill"))
    assert answer.policy == "plas"
    assert (core.config.levels, core.config.fit, core.config.starvation_beta) == (4, Fit.BACKFILL, 10.0)
    await stub.SetPolicy(pb.SetPolicyRequest(preset="paper", service_unit="cost", starvation_beta=0))
    assert (core.config.tie, core.config.running_first) == (Tie.QUEUE_ARRIVAL, False)
    assert (core.config.service_unit, core.config.starvation_beta) == (ServiceUnit.COST, None)
    await stub.SetPolicy(pb.SetPolicyRequest(preset="default"))
    assert (core.config.tie, core.config.running_first) == (Tie.PROGRAM_ARRIVAL, True)


def test_boundaries_stay_unless_the_levels_change() -> None:
    assert "level_boundaries_s" not in policy_changes(pb.SetPolicyRequest(tie="call"))
    assert policy_changes(pb.SetPolicyRequest(levels=3))["level_boundaries_s"] is None
    changes = policy_changes(pb.SetPolicyRequest(levels=3, level_boundaries_s=[1.0, 2.0]))
    assert changes == {"levels": 3, "level_boundaries_s": (1.0, 2.0)}


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_the_paper_preset_of_the_settings_leaves_what_is_set(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("AUTELLIX_SCHEDULER_PRESET", "paper")
        monkeypatch.setenv("AUTELLIX_SCHEDULER_LEVELS", "3")
        monkeypatch.setenv("AUTELLIX_SCHEDULER_LEVEL_BOUNDARIES_S", "1,3")
        config = SchedulerSettings(_cli_parse_args=["--tie", "call"]).core_config()
    else:
        flags = ["--preset", "paper", "--levels", "3", "--level-boundaries-s", "1,3", "--tie", "call"]
        config = SchedulerSettings(_cli_parse_args=flags).core_config()
    assert (config.service_unit, config.running_first) == (ServiceUnit.SECONDS, False)
    assert (config.tie, config.level_boundaries_s) == (Tie.CALL_ARRIVAL, (1.0, 3.0))


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"level_boundaries_s must be levels - 1 = 7 values"):
        SchedulerSettings(level_boundaries_s=(1.0, 3.0))
