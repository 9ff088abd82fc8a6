#!/usr/bin/env bash
# Shows the state of the job on the cluster: its pods, the last metrics, and the end of a pod's log.
#
# usage: tpu_scripts/gke/watch.sh [--config=tpu.env] [--worker=0] [--lines=20] [--follow] [--dry_run]

# shellcheck source=tpu_scripts/gke/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
OPTION=([worker]=0 [lines]=20 [follow]=false)
start "$@"
[[ ${OPTION[worker]} =~ ^[0-9]+$ ]] || usage_error "--worker must be a number, not ${OPTION[worker]}"
[[ ${OPTION[lines]} =~ ^[0-9]+$ ]] || usage_error "--lines must be a number, not ${OPTION[lines]}"
need_cluster
if [[ ${CONFIG[GKE_VIA]} == xpk ]]; then
  mapfile -t where < <(xpk_place)
  # xpk provides this list only; its pods have the usual JobSet labels.
  ask '' xpk workload list "${where[@]}" "--filter-by-job=${CONFIG[NAME]}" </dev/null
fi
use_cluster
pods=("--selector=jobset.sigs.k8s.io/jobset-name=${CONFIG[NAME]}")
ask '' "${KUBECTL[@]}" get jobset "${CONFIG[NAME]}" --ignore-not-found
ask '' "${KUBECTL[@]}" get pods "${pods[@]}" --output=wide
say "metrics in ${CONFIG[MODEL_DIR]%/}/metrics.jsonl, the last of each split:"
last_metrics bucket | last_of_each_split
say "log of pod ${OPTION[worker]}:"
follow=()
! on follow || follow=(--follow)
ask '' "${KUBECTL[@]}" logs "${pods[0]},batch.kubernetes.io/job-completion-index=${OPTION[worker]}" \
  "--tail=${OPTION[lines]}" --prefix "${follow[@]}" || true
