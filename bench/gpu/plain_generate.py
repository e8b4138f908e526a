"""Plain vLLM for the GPU checks: requests on standard input, answers as the last line of standard output.

usage: python -m bench.gpu.plain_generate MODEL DTYPE < requests.json
"""

import json
import os
import sys


def main() -> None:
    """Command line."""
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    from vllm import LLM, SamplingParams

    model, dtype = sys.argv[1:3]
    requests = json.load(sys.stdin)
    eager = os.environ.get("AUTELLIX_GPU_CHECK_EAGER") == "1"
    llm = LLM(
        model=model,
        dtype=dtype,
        seed=0,
        max_model_len=1024,
        block_size=32,
        enforce_eager=eager,
        gpu_memory_utilization=0.3,
        disable_log_stats=True,
    )
    params = [SamplingParams(logprobs=2, **request["sampling"]) for request in requests]
    prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
    answers = []
    for output in llm.generate(prompts, params, use_tqdm=False):
        best = output.outputs[0]
        gaps = []
        for row in best.logprobs or ():
            first, second = sorted((entry.logprob for entry in row.values()), reverse=True)[:2]
            gaps.append(first - second)
        answers.append({"token_ids": list(best.token_ids), "gaps": gaps})
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
