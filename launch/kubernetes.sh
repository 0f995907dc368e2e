#!/usr/bin/env bash
# Runs one command as N pods of one Indexed Job, one process a pod; process 0's address is a headless service's.
#
#     launch/kubernetes.sh --name=NAME --image=IMAGE --processes=N [--gpus=8] [--claim=CLAIM:/mnt/data] -- \
#         python -m nml_jax.main --config=... --workdir=/mnt/data/DIR
#
#     --gpus       GPUs of each pod                       --cpu, --memory   requests of each pod, such as 16 and 64Gi
#     --claim      a volume that all pods can write, and where it is mounted
#     --namespace  where kubectl has another default      --port            of process 0, default 8476
#     --dry_run    prints the manifest and applies nothing
#
# The image has Python, nml_jax and its configs. A pod that is evicted gets SIGTERM, saves and starts again, the
# others with it: as long as DIR has no done.json, a pre-training that ends well was only stopped (status 75).
set -euo pipefail

usage() {
  [[ -z ${1:-} ]] || echo "$1" >&2
  echo "usage: launch/kubernetes.sh --name=NAME --image=IMAGE --processes=N [--gpus=N] [--cpu=N] [--memory=SIZE]" >&2
  echo "       [--claim=CLAIM:/PATH] [--namespace=NAMESPACE] [--port=PORT] [--dry_run] -- COMMAND..." >&2
  exit 2
}

# A JSON string, which YAML reads too. Kubernetes replaces $(NAME) in commands, and $$(NAME) by $(NAME).
quoted() {
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  text=${text//\$(/\$\$(}
  printf '"%s"' "$text"
}

name='' image='' processes='' gpus=0 cpu='' memory='' claim='' port=8476 dry_run=0
apply=(kubectl apply --filename=-)
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --processes=*) processes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --cpu=*) cpu=${1#*=} ;;
    --memory=*) memory=${1#*=} ;;
    --claim=*) claim=${1#*=} ;;
    --namespace=*) apply+=("$1") ;;
    --port=*) port=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *) usage "unknown argument $1" ;;
  esac
  shift
done
(($#)) || usage "no command; give it after --"
[[ -n $image ]] || usage "--image is needed"
[[ $name =~ ^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$ ]] || usage "--name=$name is no name of small letters, digits and -"
[[ $processes =~ ^[1-9][0-9]*$ ]] || usage "--processes=$processes is no number from 1"
[[ $gpus =~ ^[0-9]+$ && $port =~ ^[1-9][0-9]*$ ]] || usage "--gpus and --port are numbers"
[[ -z $claim || $claim =~ ^[-a-z0-9.]+:/ ]] || usage "--claim=$claim is not CLAIM:/PATH"

# shellcheck disable=SC2016  # the pod's shell replaces these
keep_going='"$@" & child=$!
trap "kill -TERM $child" TERM
wait $child; status=$?
while kill -0 $child 2>/dev/null; do wait $child; status=$?; done
[ $status -eq 0 ] || exit $status
workdir=
for argument in "$@"; do case $argument in --workdir=*) workdir=${argument#--workdir=};; esac; done
[ -z "$workdir" ] || [ ! -d "$workdir/checkpoints" ] || [ -e "$workdir/done.json" ] || exit 75'

manifest() {
  cat <<YAML
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: $name
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $processes
  parallelism: $processes
  backoffLimit: $((processes * 10))
  podFailurePolicy:
    rules:
      - action: FailJob # something given is wrong
        onExitCodes: {operator: In, values: [2]}
      - action: Ignore # stopped before the end: again
        onExitCodes: {operator: In, values: [75]}
      - action: Ignore
        onPodConditions: [{type: DisruptionTarget}]
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 120
      containers:
        - name: $name
          image: $(quoted "$image")
          command:
            - sh
            - -c
            - $(quoted "$keep_going")
            - sh
YAML
  local argument
  for argument in "$@"; do
    echo "            - $(quoted "$argument")"
  done
  cat <<YAML
          env:
            - {name: JAX_COORDINATOR_ADDRESS, value: "$name-0.$name:$port"}
            - {name: JAX_NUM_PROCESSES, value: "$processes"}
            - {name: PYTHONUNBUFFERED, value: "1"}
          ports:
            - containerPort: $port
          resources:
            requests: {$(requests)}
            limits: {$( ((gpus == 0)) || echo "nvidia.com/gpu: $gpus")}
          volumeMounts:
            - {name: shm, mountPath: /dev/shm}
YAML
  [[ -z $claim ]] || echo "            - {name: claim, mountPath: $(quoted "${claim#*:}")}"
  cat <<YAML
      volumes:
        - {name: shm, emptyDir: {medium: Memory}} # the data workers hand batches over in it
YAML
  [[ -z $claim ]] || echo "        - {name: claim, persistentVolumeClaim: {claimName: ${claim%%:*}}}"
}

requests() {
  local list=()
  [[ -z $cpu ]] || list+=("cpu: $(quoted "$cpu")")
  [[ -z $memory ]] || list+=("memory: $(quoted "$memory")")
  local IFS=,
  echo "${list[*]:-}"
}

if ((dry_run)); then
  manifest "$@"
else
  manifest "$@" | "${apply[@]}"
fi
