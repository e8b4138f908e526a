"""The program API's model: vLLM's AsyncLLM in this process.

Theory of operation. Prompts are rendered and outputs detokenised by the same AsyncLLM that serves the
OpenAI routes, so that a call gives the same tokens and text through either door. `prepare` does everything
that can refuse a request (template, tokenizer, length, vocabulary, schema) before a program is touched;
`generate` hands the rendered prompt over under the call's id, by which the engine-core client finds its
`CallContext`.

Only this module of the program API imports vLLM.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vllm.exceptions import GenerationError, VLLMClientError
from vllm.inputs import EngineInput, TextPrompt, TokensPrompt
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.renderers import ChatParams
from vllm.renderers.chat_utils import load_chat_template
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.utils.mistral import is_mistral_tokenizer

from frontend_svc import program_calls as calls
from frontend_svc.call_context import CallContext
from frontend_svc.errors import Refused, refusal
from frontend_svc.llm import ProgramLLM
from frontend_svc.program_limits import empty_prompt, out_of_range, shown
from frontend_svc.vllm_errors import CallRefused

_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""What an absent option means where the model's generation config says nothing: as on the OpenAI routes."""

_FINISH = {
    "stop": calls.Finish.STOP,
    "length": calls.Finish.LENGTH,
    "abort": calls.Finish.CANCELLED,
}
_LENGTH_PARAMETERS = frozenset({"input_text", "input_tokens"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that can run."""

    engine_input: EngineInput
    params: SamplingParams
    prompt_tokens: int


class VllmGenerator:
    """Runs the calls of the program API.

    Args:
        llm: the process's AsyncLLM.
        model_names: the names under which its model is served, the first one is the default.
        chat_template: file that replaces the model's own template, or its text; None: the model's.
    """

    def __init__(
        self, llm: ProgramLLM, model_names: Sequence[str], *, chat_template: str | None = None
    ) -> None:
        self._llm = llm
        self._model_names = tuple(model_names)
        self._chat_params = ChatParams(
            chat_template=load_chat_template(chat_template),
            chat_template_kwargs={
                "add_generation_prompt": True,
                "continue_final_message": False,
                "tokenize": is_mistral_tokenizer(llm.renderer.tokenizer),
            },
        )
        self._defaults = _NEUTRAL | llm.model_config.get_diff_sampling_param()

    async def prepare(self, request: calls.CallRequest) -> Prepared:
        """Renders the prompt and checks the sampling options against the model.

        Raises:
            Refused: MODEL_UNKNOWN, PROMPT_TOO_LONG, PROMPT_EMPTY, INVALID_TOKEN_ID, PARAMETER_INVALID; or
                nothing can be served just now.
        """
        self._check_admission()
        self._check_model(request.model)
        try:
            engine_input = await self._render(request.prompt)
        except VLLMClientError as error:
            raise self._prompt_refused(error) from error
        prompt_tokens = self._check_length(len(engine_input["prompt_token_ids"]))
        try:
            params = self._sampling_params(request.sampling, prompt_tokens)
            self._verify(params)
        except VLLMClientError as error:
            raise _sampling_refused(error) from error
        return Prepared(engine_input, params, prompt_tokens)

    async def generate(self, prepared: Prepared, context: CallContext) -> AsyncGenerator[calls.Piece, None]:
        """Runs the call; closing the iterator cancels it.

        Raises:
            Refused: the scheduler refused the call or it was lost.
        """
        completion_tokens = 0
        try:
            async with aclosing(self._outputs(prepared, context.call_id)) as outputs:
                async for output in outputs:
                    completion_tokens += len(output.outputs[0].token_ids)
                    if (piece := _piece(output, prepared, completion_tokens)) is not None:
                        yield piece
        except (VLLMClientError, GenerationError) as error:
            raise _call_failed(error, context) from error

    def _outputs(self, prepared: Prepared, call_id: str) -> AsyncGenerator[RequestOutput, None]:
        return self._llm.generate(prepared.engine_input, prepared.params, call_id)

    async def cancel(self, call_id: str) -> None:
        """Ends a live call: its iterator then ends with `Finish.CANCELLED`. Unknown ids are ignored."""
        await self._llm.abort(call_id)

    def _check_admission(self) -> None:
        try:
            self._llm.check_admission()
        except CallRefused as error:
            raise Refused(error.refusal) from error

    def _check_model(self, model: str) -> None:
        if model and model not in self._model_names:
            served = ", ".join(self._model_names)
            message = f"this server does not serve that model; it serves {served}"
            raise Refused(refusal("MODEL_UNKNOWN", message, field="model", limit=served, value=shown(model)))

    async def _render(self, prompt: calls.Prompt) -> EngineInput:
        renderer = self._llm.renderer
        match prompt:
            case calls.ChatPrompt(messages):
                conversation: list[Any] = [{"role": role, "content": content} for role, content in messages]
                _, (engine_input,) = await renderer.render_chat_async([conversation], self._chat_params)
            case calls.TextPrompt(text):
                (engine_input,) = await renderer.render_cmpl_async([TextPrompt(prompt=text)])
            case calls.TokenPrompt(token_ids):
                renderer.validate_token_ids(token_ids, parameter="token_ids")
                (engine_input,) = await renderer.render_cmpl_async(
                    [TokensPrompt(prompt_token_ids=list(token_ids))]
                )
        return engine_input

    def _check_length(self, prompt_tokens: int) -> int:
        limit = self._llm.model_config.max_model_len - 1
        if prompt_tokens > limit:
            raise self._too_long(f"{prompt_tokens} tokens")
        if prompt_tokens == 0:
            raise empty_prompt("prompt")
        return prompt_tokens

    def _prompt_refused(self, error: VLLMClientError) -> Refused:
        parameter = getattr(error, "parameter", None)
        if parameter in _LENGTH_PARAMETERS:
            unit = "characters" if parameter == "input_text" else "tokens"
            return self._too_long(f"at least {getattr(error, 'value', None)} {unit}")
        reason = "INVALID_TOKEN_ID" if parameter == "token_ids" else "PARAMETER_INVALID"
        return Refused(refusal(reason, _reason_of(error), field=parameter or "prompt"))

    def _too_long(self, value: str) -> Refused:
        max_model_len = self._llm.model_config.max_model_len
        message = (
            f"the prompt has {value}; the model takes {max_model_len} tokens in all, "
            "at least one of them for its answer"
        )
        limit = f"{max_model_len - 1} tokens"
        return Refused(refusal("PROMPT_TOO_LONG", message, field="prompt", limit=limit, value=value))

    def _sampling_params(self, sampling: calls.Sampling, prompt_tokens: int) -> SamplingParams:
        """vLLM's parameters: the caller's options, then the model's defaults, then neutral ones."""
        chosen = {name: _first(getattr(sampling, name), self._defaults[name]) for name in _NEUTRAL}
        room = self._llm.model_config.max_model_len - prompt_tokens
        max_tokens = min(_first(sampling.max_tokens, self._defaults.get("max_tokens"), room), room)
        min_tokens, schema = sampling.min_tokens or 0, sampling.json_schema
        if min_tokens > max_tokens:
            raise out_of_range("sampling.min_tokens", f"{max_tokens} tokens", f"{min_tokens} tokens")
        return SamplingParams(
            **chosen,
            seed=sampling.seed,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop=list(sampling.stop),
            stop_token_ids=list(sampling.stop_token_ids),
            ignore_eos=sampling.ignore_eos,
            logprobs=sampling.logprobs,
            structured_outputs=StructuredOutputsParams(json=schema) if schema else None,
            output_kind=RequestOutputKind.DELTA,
        )

    def _verify(self, params: SamplingParams) -> None:
        config = self._llm.vllm_config
        params.verify(
            config.model_config, config.speculative_config, config.structured_outputs_config,
            self._llm.renderer.tokenizer,
        )  # fmt: skip


def _sampling_refused(error: VLLMClientError) -> Refused:
    """What is left after `program_limits`: the schema, or options that only this model cannot take."""
    parameter = getattr(error, "parameter", None) or "json_schema"
    return Refused(refusal("PARAMETER_INVALID", _reason_of(error), field=f"sampling.{parameter}"))


def _call_failed(error: VLLMClientError | GenerationError, context: CallContext) -> Refused:
    """Why a call ended: the scheduler's word if there is one. Other errors of vLLM's are faults, and stay."""
    if isinstance(error, CallRefused):
        return Refused(error.refusal)
    if context.refusal is not None:
        return Refused(context.refusal)
    if isinstance(error, VLLMClientError):
        field = getattr(error, "parameter", None) or ""
        return Refused(refusal("PARAMETER_INVALID", _reason_of(error), field=field))
    return Refused(refusal("EXECUTOR_FAILED", "the call failed while it was running"))


def _reason_of(error: Exception) -> str:
    """vLLM's message, which is made for clients, without its appended debug values."""
    return str(error.args[0]) if error.args else "the request is not valid"


def _piece(output: RequestOutput, prepared: Prepared, completion_tokens: int) -> calls.Piece | None:
    """What the output adds; None when it adds nothing."""
    completion = output.outputs[0]
    if completion.finish_reason == "error":
        raise GenerationError()
    finish = _FINISH[completion.finish_reason] if completion.finish_reason else None
    if finish is None and not (completion.text or completion.token_ids):
        return None
    usage = calls.Usage(prepared.prompt_tokens, completion_tokens, output.num_cached_tokens or 0)
    return calls.Piece(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=tuple(_logprobs(completion, prepared.params.logprobs)),
        finish=finish,
        usage=usage if finish is not None else None,
    )


def _logprobs(completion: CompletionOutput, alternatives: int | None) -> Iterable[calls.TokenLogprobs]:
    """One entry a token. vLLM mixes the taken token into the alternatives; `rank` 1 is the likeliest."""
    if alternatives is None or not completion.logprobs:
        return
    for token_id, position in zip(completion.token_ids, completion.logprobs, strict=True):
        likeliest = sorted(position.items(), key=lambda entry: entry[1].rank or 0)[:alternatives]
        top = tuple(_chance(*entry) for entry in likeliest if (entry[1].rank or 0) <= alternatives)
        yield calls.TokenLogprobs(_chance(token_id, position[token_id]), top)


def _chance(token_id: int, logprob: Logprob) -> calls.TokenChance:
    return calls.TokenChance(token_id, logprob.decoded_token or "", logprob.logprob)


def _first(*values: Any) -> Any:
    """The first value that is not None."""
    return next(value for value in values if value is not None)
