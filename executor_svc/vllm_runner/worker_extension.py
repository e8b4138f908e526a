"""Methods added to vLLM's worker: what plans need and vLLM's scheduler never asks for.

vLLM mixes this class into its worker (`worker_extension_cls`), in every rank; the runner calls the methods
with `collective_rpc`. All run between two steps, or between the forward pass and the sampling of one.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams, SamplingType
from vllm.v1.worker.gpu_input_batch import CachedRequestState

from executor_svc.vllm_runner.host_pool import HostPool, Pairs, open_host_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedCall:
    """A call that generated tokens on another executor and continues here."""

    req_id: str
    prompt_token_ids: list[int]
    output_token_ids: list[int]
    sampling_params: SamplingParams


class WorkerExtension:
    """Mixed into vLLM's Worker; `model_runner` is the worker's own."""

    model_runner: Any
    _autellix_held_generators: dict[int, torch.Generator]
    _autellix_host_pool: HostPool

    def autellix_open_host_pool(self, host_blocks: int) -> int:
        """Takes memory for so many host blocks.

        Returns: bytes of one block on this rank.
        Raises: ValueError, RuntimeError; see open_host_pool.
        """
        runner = self.model_runner
        num_blocks = runner.kv_cache_config.num_blocks
        self._autellix_host_pool = open_host_pool(runner.kv_caches, num_blocks, host_blocks)
        return self._autellix_host_pool.block_bytes

    def autellix_swap(self, swap_out: Pairs, swap_in: Pairs) -> None:
        """Copies blocks between device and host: after the steps so far, before the next one."""
        self._autellix_host_pool.copy(swap_out, swap_in)

    def autellix_swap_s(self) -> float:
        """Waits for the last `autellix_swap`; returns the seconds of its copies."""
        return self._autellix_host_pool.seconds()

    def autellix_adopt(self, calls: list[AdoptedCall]) -> None:
        """Puts calls into model runner V1 as if they had run here and been preempted.

        Sent as new requests their generated tokens would count as prompt: penalties, min_tokens and seeds
        would go wrong. The next step lists them as resumed.
        """
        runner = self.model_runner
        for call in calls:
            runner.requests[call.req_id] = CachedRequestState(
                req_id=call.req_id,
                prompt_token_ids=call.prompt_token_ids,
                mm_features=[],
                sampling_params=call.sampling_params,
                generator=self._autellix_generator(call),
                block_ids=([],),
                num_computed_tokens=0,
                output_token_ids=list(call.output_token_ids),
            )

    def autellix_hold_generators(self) -> None:
        """Takes the generators of rows that will not sample out of the batch.

        The runner undoes the draw of such a row by moving the generator's offset back, which CPU generators
        cannot do: without this, a seeded call whose prompt spans several steps ends the step for everybody.
        """
        runner = self.model_runner
        generators = runner.input_batch.generators
        discarded = np.flatnonzero(runner.discard_request_mask.np[: runner.input_batch.num_reqs])
        self._autellix_held_generators = {
            row: generators.pop(row) for row in discarded.tolist() if row in generators
        }

    def autellix_return_generators(self) -> None:
        """Undoes `autellix_hold_generators`."""
        self.model_runner.input_batch.generators.update(self._autellix_held_generators)
        self._autellix_held_generators = {}

    def autellix_abandon_step(self) -> None:
        """Forgets a step that ended between forward pass and sampling."""
        self.model_runner.execute_model_state = None

    def _autellix_generator(self, call: AdoptedCall) -> torch.Generator | None:
        """The call's generator, as it stood after its last token."""
        if call.sampling_params.sampling_type != SamplingType.RANDOM_SEED:
            return None
        generator = torch.Generator(device=self.model_runner.device)
        generator.manual_seed(call.sampling_params.seed)
        for _ in call.output_token_ids:
            self._autellix_draw(generator)
        return generator

    def _autellix_draw(self, generator: torch.Generator) -> None:
        """Draws what the sampler draws for one token.

        Source: vllm/v1/sample/ops/topk_topp_sampler.py: on CPU one 31-bit seed for a counter-based kernel,
        elsewhere (and for float64 noise) exponential noise over the vocabulary.
        """
        sampler = self.model_runner.sampler.topk_topp_sampler
        if (
            current_platform.is_cpu()
            and sampler.forward == sampler.forward_cpu
            and not sampler.use_fp64_gumbel
        ):
            torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)
            return
        dtype = torch.float64 if sampler.use_fp64_gumbel else torch.float32
        vocab_size = self.model_runner.input_batch.vocab_size
        noise = torch.empty(vocab_size, dtype=dtype, device=self.model_runner.device)
        noise.exponential_(generator=generator)
