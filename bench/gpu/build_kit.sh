#!/bin/bash
# Builds the GPU kit: one archive that brings vLLM and our services to a Hopper host without a network.
# No GPU is needed here; pip must work. The host has Python 3.12, torch 2.11 (CUDA 13), triton and transformers.
# usage: build_kit.sh [OUT=.kit/out] [VLLM_VERSION=0.32.0]        env: PIP (pip to use), PART_MIB (archive part size)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-.kit/out}
version=${2:-0.32.0}
pip=${PIP:-pip}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$out/work
site=$work/site
rm -rf "$site" "$out"/kit.*
mkdir -p "$work/wheels" "$site"

target="--no-cache-dir --only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none"
for minor in 39 35 34 31 28 27 26 24 17 14 12 5; do target="$target --platform manylinux_2_${minor}_x86_64"; done
target="$target --platform manylinux2014_x86_64 --platform manylinux1_x86_64"

# shellcheck disable=SC2086  # $target and the package lists are lists of words on purpose
ls "$work"/wheels/vllm-"$version"-*.whl >/dev/null 2>&1 ||
  $pip download -q --no-deps $target -d "$work/wheels" "vllm==$version"
# Kernels that this check never runs are left out: they are most of the wheel.
unzip -qo "$work"/wheels/vllm-"$version"-*.whl -d "$site" -x '*/_vllm_fa2_C*' '*/vllm-rs' '*_qutlass_C*' '*_flashmla*' \
  '*_flashkda*' '*_deepselect*' '*/third_party/deep_gemm/*' '*/third_party/flashmla/*' '*/swagger-ui*' || true
rm -f "$site"/vllm/_moe_C*.so
for library in "$site"/vllm/_C_stable_libtorch.abi3.so; do
  [ -e "$library" ] && python3 "$here/slim_fatbin.py" "$library" "$library.slim" 90 && mv "$library.slim" "$library"
done

# What vLLM imports and the host lacks.
vllm_needs="pydantic pydantic_core annotated-types typing-inspection typing_extensions msgspec pyzmq cachetools blake3 cbor2
 pybase64 python-json-logger partial-json-parser jsonschema jsonschema-specifications referencing rpds-py lark==1.2.2
 setproctitle ijson openai<4 jiter distro sniffio httpx2 httpcore2 truststore fastapi<0.137 starlette uvicorn
 prometheus-fastapi-instrumentator>=8 depyf==0.20.0 astor dill watchfiles gguf xgrammar==0.2.8 apache-tvm-ffi==0.1.11
 llguidance>=1.7,<1.8 oss-harmony model-hosting-container-standards<1 jmespath supervisor"
# What our services import; versions as locked.
our_needs=$(grep -iE '^(grpcio|grpcio-health-checking|grpcio-reflection|grpcio-status|grpcio-tools|googleapis-common-protos|protobuf|structlog|uvloop|prometheus_client|pydantic-settings|python-dotenv|psutil|aiohttp|attrs|idna|filelock|aiosignal|aiohappyeyeballs|frozenlist|multidict|propcache|yarl|rich|setuptools)==' \
  "$here/../../requirements/cpu.lock")
# shellcheck disable=SC2086
$pip install -q --no-deps --no-compile --upgrade $target --target "$site" $vllm_needs $our_needs 2>&1 |
  grep -vE 'WARNING|^$' || true

rm -rf "$site/bin" "$site"/*/tests "$site"/*/test
find "$site" -name '*.so' -size -40M -exec strip --strip-debug {} + 2>/dev/null || true
du -sh "$site"
cp "$here/install_kit.py" "$out/"
tar -C "$site" --sort=name --owner=0 --group=0 -c . | xz -T2 -6 >"$out/kit.tar.xz"
cd "$out"
sha256sum kit.tar.xz >kit.sha256
split -b "${PART_MIB:-58}M" -d -a 2 kit.tar.xz kit.part.
rm kit.tar.xz
ls -l kit.*
