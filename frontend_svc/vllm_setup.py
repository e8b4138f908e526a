"""Builds what vLLM's OpenAI server needs of a model, without weights and without a GPU.

Only tokenizer and configuration are read. Everything that depends on the engine (context length, block
size, number of blocks, grammar backend, reasoning parser) is what the executors said of themselves, never
this machine's guess.
"""

from argparse import Namespace

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from frontend_svc.settings import FrontendSettings
from protos.autellix.scheduler.v1 import scheduler_pb2 as pb
from svc_runtime.lifecycle import ExitCode, StartupError


def serve_arguments(settings: FrontendSettings, model: pb.ModelInfo) -> Namespace:
    """vLLM's serve arguments for this frontend, as `vllm serve` would parse them.

    Raises:
        StartupError: MODEL_MISSING or USAGE, with vLLM's reason.
    """
    options: dict[str, str] = {
        "model": settings.model,
        "served-model-name": settings.model_name,
        "max-model-len": str(model.max_model_len),
        "chat-template": settings.chat_template,
        "tool-call-parser": settings.tool_call_parser,
        "reasoning-parser": settings.reasoning_parser or model.reasoning_parser,
    }
    backend = settings.structured_output_backend or model.structured_output_backend
    if backend:
        options["structured-outputs-config.backend"] = backend
    argv = [text for name, value in options.items() if value for text in (f"--{name}", value)]
    if settings.tool_call_parser:
        argv.append("--enable-auto-tool-choice")
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    try:
        validate_parsed_serve_args(args)
    except (TypeError, ValueError, KeyError) as error:
        raise StartupError(f"vLLM refuses the settings: {error}", ExitCode.USAGE) from error
    args.enable_prompt_tokens_details = True
    args.disable_log_stats = True  # the metrics have a port of their own
    return args


def engine_config(args: Namespace, model: pb.ModelInfo) -> VllmConfig:
    """The engine's configuration as the tokenizer side sees it.

    Raises:
        StartupError: MODEL_MISSING, tokenizer or configuration cannot be read.
    """
    try:
        config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except (OSError, ValueError) as error:
        raise StartupError(
            f"cannot read the model {args.model!r}: {error}", ExitCode.MODEL_MISSING
        ) from error
    config.cache_config.block_size = model.block_size
    config.cache_config.num_gpu_blocks = model.num_blocks
    return config
