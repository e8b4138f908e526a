"""The executors that are attached, the models they serve, and the calls that wait for one.

A model is known from the first time an executor of it registers: calls for it are accepted from then on, and
wait when its executors are gone. A model that nobody ever served is refused at the door. Executors of one
model must agree on the fingerprint of weights, tokenizer and configuration, or calls could not move between
them.
"""

from collections.abc import Iterator

from scheduler_svc.core.call import Call
from scheduler_svc.core.errors import Refusal, Refused
from scheduler_svc.core.events import ExecutorSpec
from scheduler_svc.core.executor import Executor
from scheduler_svc.core.ids import CallId, ExecutorId
from scheduler_svc.core.placement import place
from scheduler_svc.core.policies import Policy


class Fleet:
    """Executors by id; known models; unplaced calls."""

    def __init__(
        self, policy: Policy, *, short_prompt_tokens: int, columnar: bool, swaps_always: bool
    ) -> None:
        self._policy = policy
        self._short_prompt_tokens = short_prompt_tokens
        self._columnar = columnar
        self._swaps_always = swaps_always
        self._executors: dict[ExecutorId, Executor] = {}
        self._last_spec: dict[str, ExecutorSpec] = {}
        """model -> the newest registration, kept when its executors are gone."""
        self.unplaced: dict[CallId, Call] = {}
        """Live calls that no executor can take now, in order of submission or return."""

    def __iter__(self) -> Iterator[Executor]:
        """Executors in order of joining."""
        return iter(self._executors.values())

    def get(self, executor_id: ExecutorId) -> Executor | None:
        """An attached executor."""
        return self._executors.get(executor_id)

    def of_model(self, model: str) -> list[Executor]:
        """Attached executors of a model."""
        return [executor for executor in self if executor.spec.model == model]

    def unplaced_of(self, model: str) -> list[Call]:
        """Calls of a model that wait for an executor."""
        return [call for call in self.unplaced.values() if call.spec.model == model]

    def specs_of(self, model: str) -> list[ExecutorSpec]:
        """What is known of a model: its attached executors, else the last one there was, else nothing."""
        attached = [executor.spec for executor in self.of_model(model)]
        if attached:
            return attached
        return [self._last_spec[model]] if model in self._last_spec else []

    def check_joining(self, spec: ExecutorSpec) -> None:
        """Looks at a registration before anything is changed.

        Raises: Refused(UNSUPPORTED_EXECUTOR, MODEL_MISMATCH).
        """
        for field, least in _least_values(spec).items():
            if getattr(spec, field) < least:
                raise Refused(_unsupported(field, least, getattr(spec, field)))
        for other in self.of_model(spec.model):
            if other.executor_id != spec.executor_id:
                _require_same_model(spec, other.spec)

    def replaces_model(self, spec: ExecutorSpec) -> bool:
        """Whether a registration that was checked brings other weights, tokenizer or configuration than its
        model had so far. Nobody else serves the model then."""
        last = self._last_spec.get(spec.model)
        return last is not None and last.model_fingerprint != spec.model_fingerprint

    def attach(self, spec: ExecutorSpec) -> Executor:
        """Adds an executor whose id is free."""
        assert spec.executor_id not in self._executors, "the former registration must be lost first"
        executor = Executor.attach(
            spec, self._policy, columnar=self._columnar, swaps_always=self._swaps_always
        )
        self._executors[spec.executor_id] = executor
        self._last_spec[spec.model] = spec
        return executor

    def use(self, policy: Policy) -> None:
        """Orders every queue by another policy, which has given the calls their levels."""
        self._policy = policy
        for executor in self:
            executor.queue.use(policy)

    def detach(self, executor: Executor) -> None:
        """Removes an executor that holds no calls any more."""
        assert not executor.calls, "calls of a leaving executor must be requeued first"
        del self._executors[executor.executor_id]

    def choose(self, call: Call) -> Executor | None:
        """The executor for a call, or None when it has to wait for one."""
        return place(call, self.of_model(call.spec.model), short_prompt_tokens=self._short_prompt_tokens)


def _least_values(spec: ExecutorSpec) -> dict[str, int]:
    return {
        "block_size": 1,
        "num_blocks": 2,
        "max_num_seqs": 1,
        "max_num_batched_tokens": spec.max_num_seqs,
        "max_model_len": 2,
        "max_plans_in_flight": 1,
    }


def _unsupported(field: str, least: int, value: int) -> Refusal:
    return Refusal(
        reason="UNSUPPORTED_EXECUTOR",
        message=f"{field} must be at least {least}, got {value}.",
        field=field,
        limit=str(least),
        value=str(value),
    )


def _require_same_model(spec: ExecutorSpec, other: ExecutorSpec) -> None:
    if spec.model_fingerprint != other.model_fingerprint:
        message = (
            f"Executor {other.executor_id} serves other weights, tokenizer or configuration under the name "
            f"{spec.model!r}; all executors of a model must agree."
        )
        raise Refused(
            Refusal(
                reason="MODEL_MISMATCH",
                message=message,
                field="model_fingerprint",
                limit=other.model_fingerprint,
                value=spec.model_fingerprint,
            )
        )
