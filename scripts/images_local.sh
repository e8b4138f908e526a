#!/usr/bin/env bash
# Builds the images and starts one of each without a Docker engine: buildah, podman, runc, debootstrap; needs root.
#
#   make images-local                                     scheduler, frontend, executor-cpu with MODEL=<directory>
#   make images-local TARGETS=scheduler                   builds one and starts it
#   make images-local VOLUMES="/etc/pip.conf /srv/wheels" paths of this machine that pip needs during the build
#
# Meant for machines where containers are an exception (CI sandboxes): chroot isolation for the build, host
# network, no cgroups, lowered limits. On a machine with Docker use `docker compose`.
set -euo pipefail
cd "$(dirname "$0")/.."

targets=${TARGETS:-"scheduler frontend executor-cpu"}
base=${BASE:-localhost/autellix-base}
suite=bookworm
port_scheduler=${SCHEDULER_PORT:-50951}
port_health=${HEALTH_PORT:-50952}
port_http=${PORT:-8900}
port_grpc=${GRPC_PORT:-50950}
ready_s=${READY_S:-300}
token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')

say() { printf 'images-local: %s\n' "$*"; }

for tool in buildah podman runc debootstrap; do
  command -v "$tool" >/dev/null || { say "needs $tool: apt install buildah podman runc debootstrap" >&2; exit 1; }
done

mounts=()
for path in ${VOLUMES:-}; do mounts+=(--volume "$path:$path:ro"); done
arguments=()
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS; do
  [[ -n ${!name:-} ]] && arguments+=(--build-arg "$name=${!name}")
done

make_base() {
  local root
  root=$(mktemp -d)
  say "making $base from Debian $suite"
  debootstrap --variant=minbase --include=python3,python3-dev,python3-venv,ca-certificates "$suite" "$root" >/dev/null
  tar -C "$root" -c . | podman import --quiet - "$base" >/dev/null
  rm -rf "$root"
}

build() {
  say "building autellix-$1"
  buildah --log-level error bud --quiet --isolation chroot --format docker --layers --build-arg "BASE=$base" \
    "${arguments[@]}" "${mounts[@]}" --file deploy/Dockerfile --target "$1" --tag "autellix-$1" .
}

# Starts a container as compose.yaml does where this kind of machine lets it: read-only, without capabilities.
start() {
  local name=$1
  shift
  podman --cgroup-manager=cgroupfs --runtime=runc run --detach --name "autellix-$name-local" --network=host \
    --ulimit=nofile=1024:1024 --ulimit=nproc=2048:2048 --read-only --cap-drop=all \
    --security-opt=no-new-privileges --tmpfs=/tmp:rw,exec,mode=1777 "$@" >/dev/null
}

stop_all() {
  for target in $targets; do podman rm --force --time 10 "autellix-$target-local" >/dev/null 2>&1 || true; done
  podman volume rm --force autellix-cache-local >/dev/null 2>&1 || true
}

wait_until_serving() {
  local name=$1 port=$2 deadline=$((SECONDS + ready_s))
  until podman exec "autellix-$name-local" python -m svc_runtime.healthcheck "127.0.0.1:$port" >/dev/null 2>&1; do
    if ((SECONDS > deadline)) || [[ $(podman inspect -f '{{.State.Running}}' "autellix-$name-local") != true ]]; then
      podman logs --tail 30 "autellix-$name-local" >&2
      say "$name does not serve" >&2
      exit 1
    fi
    sleep 1
  done
  say "$name is serving (grpc health on port $port)"
}

wants() { [[ " $targets " == *" $1 "* ]]; }

buildah inspect --type image "$base" >/dev/null 2>&1 || make_base
for target in $targets; do build "$target"; done
buildah images --format '{{.Name}} {{.Size}}' | grep autellix- || true

trap stop_all EXIT
stop_all
if wants scheduler; then
  start scheduler --env "AUTELLIX_SCHEDULER_PEER_TOKEN=$token" --env AUTELLIX_SCHEDULER_HOST=127.0.0.1 \
    --env "AUTELLIX_SCHEDULER_PORT=$port_scheduler" --env AUTELLIX_SCHEDULER_METRICS_PORT=0 autellix-scheduler
  wait_until_serving scheduler "$port_scheduler"
fi
if wants executor-cpu && wants frontend; then
  model=$(cd "${MODEL:?MODEL=<directory of a model>}" && pwd)
  start executor-cpu --volume "$model:/models/local:ro" --env AUTELLIX_EXECUTOR_MODEL=/models/local \
    --env "AUTELLIX_EXECUTOR_SCHEDULER=127.0.0.1:$port_scheduler" --env "AUTELLIX_EXECUTOR_PEER_TOKEN=$token" \
    --env "AUTELLIX_EXECUTOR_HEALTH_PORT=$port_health" --env AUTELLIX_EXECUTOR_METRICS_PORT=0 \
    --env AUTELLIX_EXECUTOR_KV_CACHE_GIB=1 --env AUTELLIX_EXECUTOR_DTYPE=float32 \
    --volume autellix-cache-local:/var/cache/autellix autellix-executor-cpu
  start frontend --volume "$model:/models/local:ro" --env AUTELLIX_FRONTEND_MODEL=/models/local \
    --env "AUTELLIX_FRONTEND_SCHEDULER=127.0.0.1:$port_scheduler" --env "AUTELLIX_FRONTEND_PEER_TOKEN=$token" \
    --env AUTELLIX_FRONTEND_HOST=127.0.0.1 --env "AUTELLIX_FRONTEND_PORT=$port_http" \
    --env "AUTELLIX_FRONTEND_GRPC_PORT=$port_grpc" --env AUTELLIX_FRONTEND_METRICS_PORT=0 \
    --volume autellix-cache-local:/var/cache/autellix autellix-frontend
  wait_until_serving executor-cpu "$port_health"
  wait_until_serving frontend "$port_grpc"
  say "a completion through all three:"
  podman exec autellix-frontend-local python -c "
import json, urllib.request
body = {'model': '/models/local', 'prompt': 'Hello', 'max_tokens': 8, 'temperature': 0}
request = urllib.request.Request('http://127.0.0.1:$port_http/v1/completions', json.dumps(body).encode(),
                                 {'content-type': 'application/json'})
answer = json.load(urllib.request.urlopen(request, timeout=60))
assert answer['usage']['completion_tokens'] > 0, answer
print(answer['choices'][0]['text'], answer['usage'])"
fi
say "works; stopping"
