"""The machines behind the executors: they start, come back under a higher epoch, and are replaced."""

from collections.abc import Callable

from scheduler_svc.core.events import ExecutorSpec
from scheduler_svc.core.ids import ExecutorId
from sim.draws import Model, Shape, draw_executor
from sim.executor import SimulatedExecutor
from sim.world import World


class Machines:
    """Brings executors up. Every one that is gone comes back some time later."""

    def __init__(self, world: World, shape: Shape) -> None:
        self._world = world
        self._shape = shape
        self._epochs: dict[ExecutorId, int] = {}
        self._model_of = {executor_id: model for model in shape.models for executor_id in model.executor_ids}
        self.models = shape.models
        world.on_gone = self._gone

    def start(self) -> None:
        """Brings the machines up, most of them at once."""
        for executor_id in self._model_of:
            self._world.agenda.after(self._world.random.choice((0.0, 0.0, 0.0, 5.0)), self._up(executor_id))

    def next_spec(self, executor_id: ExecutorId, *, holds_all: bool = False) -> ExecutorSpec:
        """A new registration of a machine."""
        epoch = self._epochs[executor_id] = self._epochs.get(executor_id, 0) + 1
        model = self._model_of[executor_id]
        return draw_executor(self._world.random, self._shape, model, executor_id, epoch, holds_all=holds_all)

    def join(self, executor_id: ExecutorId, *, holds_all: bool = False) -> None:
        """Registers a machine, also over its present registration."""
        self._world.join(self.next_spec(executor_id, holds_all=holds_all), self._shape.cost)

    def model_of(self, executor: SimulatedExecutor) -> Model:
        """The model that a machine serves."""
        return self._model_of[executor.spec.executor_id]

    def replace_model(self, model: Model) -> None:
        """All executors of a model are lost, and one of them comes back with other weights."""
        for executor in self._world.executors_of(model.name):
            self._world.lose(executor)
        model.generation += 1
        self.join(model.executor_ids[0])

    def heal(self) -> None:
        """Makes sure that every call can end: all machines are up, one of each model holds the longest."""
        for model in self.models:
            for executor_id in model.executor_ids:
                executor = self._world.attached.get(executor_id)
                if executor is None:
                    self.join(executor_id)
            first = self._world.attached[model.executor_ids[0]]
            if first.draining or first.spec.max_call_tokens < model.longest:
                self.join(model.executor_ids[0], holds_all=True)

    def _gone(self, executor: SimulatedExecutor) -> None:
        executor_id = executor.spec.executor_id
        self._world.agenda.after(self._world.random.choice((0.0, 0.5, 3.0, 20.0)), self._up(executor_id))

    def _up(self, executor_id: ExecutorId) -> Callable[[], None]:
        def up() -> None:
            if executor_id not in self._world.attached:
                self.join(executor_id)

        return up
