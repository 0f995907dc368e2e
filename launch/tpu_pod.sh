#!/usr/bin/env bash
# Runs one command on all workers of a Cloud TPU pod; they find each other by themselves.
#
#     launch/tpu_pod.sh create --name=pod --zone=us-central2-b --type=v4-32 --version=tpu-ubuntu2204-base [--spot]
#     launch/tpu_pod.sh copy   --name=pod --zone=us-central2-b           the committed files, installed on each worker
#     launch/tpu_pod.sh run    --name=pod --zone=us-central2-b [--detach] -- python -m nml_jax.main --config=... \
#         --workdir=DIR --config.data_dir=DATA                           DIR and DATA on a disk that all workers share
#     launch/tpu_pod.sh logs   --name=pod --zone=us-central2-b           what worker 0 prints after run --detach
#     launch/tpu_pod.sh delete --name=pod --zone=us-central2-b
#
# --project=P where gcloud has no default; --dry_run prints the commands and runs none. With --detach the command
# goes on when this terminal is closed.
set -euo pipefail

usage() {
  [[ -z ${1:-} ]] || echo "$1" >&2
  echo "usage: launch/tpu_pod.sh create|copy|run|logs|delete --name=NAME --zone=ZONE [--project=P] [--dry_run]" >&2
  echo "       create: --type=TYPE --version=VERSION [--spot]    copy: [--python=python3.11]" >&2
  echo "       run: [--detach] -- COMMAND..." >&2
  exit 2
}

# Words as a shell takes them.
shown() {
  local line='' word
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+=" $word"
  done
  echo "${line# }"
}

# Runs a command, or with --dry_run prints it.
call() {
  if ((dry_run)); then shown "$@"; else "$@"; fi
}

action=${1:-}
[[ $action =~ ^(create|copy|run|logs|delete)$ ]] || usage "unknown action '$action'"
shift
name='' zone='' type='' version='' python=python3.11 dry_run=0 detach=0
place=()
kind=()
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} && place+=("$1") ;;
    --project=*) place+=("$1") ;;
    --type=*) type=${1#*=} && kind+=("--accelerator-type=$type") ;;
    --version=*) version=${1#*=} && kind+=("$1") ;;
    --python=*) python=${1#*=} ;;
    --spot) kind+=(--spot) ;;
    --detach) detach=1 ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *) usage "unknown argument $1" ;;
  esac
  shift
done
[[ -n $name && -n $zone ]] || usage "--name and --zone are needed"
[[ $action == run || $# -eq 0 ]] || usage "only run takes a command"
tpu=(gcloud compute tpus tpu-vm)

case $action in
  create)
    [[ -n $type && -n $version ]] || usage "create needs --type and --version"
    call "${tpu[@]}" create "$name" "${place[@]}" "${kind[@]}"
    ;;
  copy)
    cd "$(dirname "$0")/.."
    archive=nml_jax.tar.gz
    if ((!dry_run)); then
      folder=$(mktemp -d)
      trap 'rm -rf "$folder"' EXIT
      archive=$folder/nml_jax.tar.gz
    fi
    python=$(shown "$python")
    install="mkdir -p nml_jax && tar -xzf nml_jax.tar.gz -C nml_jax"
    install+=" && { $python -m ensurepip --version >/dev/null 2>&1"
    install+=" || { sudo apt-get update -q && sudo apt-get install -qy $python $python-venv; }; }"
    install+=" && $python -m venv venv && venv/bin/pip install -q -e 'nml_jax[tpu]'"
    call git archive --format=tar.gz "--output=$archive" HEAD
    call "${tpu[@]}" scp "$archive" "$name:nml_jax.tar.gz" "${place[@]}" --worker=all
    call "${tpu[@]}" ssh "$name" "${place[@]}" --worker=all "--command=$install"
    ;;
  run)
    (($#)) || usage "run needs a command after --"
    run="cd nml_jax && . ../venv/bin/activate && export PYTHONUNBUFFERED=1"
    if ((detach)); then
      run+=" && { setsid nohup $(shown "$@") >../nml_jax.log 2>&1 </dev/null & }"
    else
      run+=" && exec $(shown "$@")"
    fi
    call "${tpu[@]}" ssh "$name" "${place[@]}" --worker=all "--command=$run"
    ;;
  logs)
    call "${tpu[@]}" ssh "$name" "${place[@]}" --worker=0 "--command=tail -n 100 -f nml_jax.log"
    ;;
  delete)
    call "${tpu[@]}" delete "$name" "${place[@]}"
    ;;
esac
