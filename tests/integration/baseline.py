"""Plain `vllm.LLM.generate`, in a process of its own: the reference that the three services must equal.

`python -m tests.integration.baseline MODEL < requests.json > answers.json`; each request is
``{"prompt": [token ids], "sampling": {vllm.SamplingParams fields}, "json_schema": str | absent}``, each
answer ``{"token_ids": [...], "logprobs": [float, ...] | null}`` (the sampled tokens' log probabilities).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIMITS: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_seqs": 128,
    "max_num_batched_tokens": 2048,
    "block_size": 32,
}


def generate(model: Path, requests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs the baseline on `requests`; returns one answer each, in order."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.baseline", str(model)],
        input=json.dumps(list(requests)).encode(),
        capture_output=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"baseline failed:\n{done.stderr.decode()[-3000:]}")
    answers: list[dict[str, Any]] = json.loads(done.stdout.decode().splitlines()[-1])
    return answers


def _main() -> None:
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
    }
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    requests = json.load(sys.stdin)
    llm = LLM(
        model=sys.argv[1], dtype="float32", seed=0, enforce_eager=True, disable_log_stats=True, **LIMITS
    )
    params = []
    for request in requests:
        schema = request.get("json_schema")
        structured = StructuredOutputsParams(json=schema) if schema else None
        params.append(SamplingParams(structured_outputs=structured, **request["sampling"]))
    prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
    answers = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        best = output.outputs[0]
        ids = list(best.token_ids)
        logprobs = None
        if best.logprobs:
            logprobs = [row[token].logprob for token, row in zip(ids, best.logprobs, strict=True)]
        answers.append({"token_ids": ids, "logprobs": logprobs})
    print(json.dumps(answers))


if __name__ == "__main__":
    _main()
