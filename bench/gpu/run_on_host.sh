#!/bin/bash
# On the GPU host, from the repository root: unpacks the kit and runs one check. Results: bench/results/ and, when
# RESULTS is set, a copy there.
# usage: run_on_host.sh KIT_DIR equality|throughput|swap [options of the check]
set -euo pipefail
kit=${1:?directory of kit.part.*}
check=${2:?equality, throughput or swap}
shift 2
site=${SITE:-/tmp/autellix-kit}
[ -e "$site/.unpacked" ] || { python3 "$kit/install_kit.py" "$kit" "$site" && touch "$site/.unpacked"; }
export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
export VLLM_USE_FLASHINFER_SAMPLER=0
find protos -name '*.proto' -print0 |
  xargs -0 python3 -m grpc_tools.protoc --proto_path=. --python_out=. --grpc_python_out=.
status=0
python3 -m "bench.gpu.$check" "$@" || status=$?
[ -z "${RESULTS:-}" ] || cp bench/results/gpu_*.json "$RESULTS"/
exit "$status"
