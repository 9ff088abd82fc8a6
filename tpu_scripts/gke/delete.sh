#!/usr/bin/env bash
# Deletes the job, which stops it: its pods get SIGTERM and STOP_GRACE_SECONDS to save. --node_pools deletes the pools
# of TPU machines too, which cost money while they exist; --cluster deletes the whole cluster.
# Names what it deletes and asks for confirmation, unless --yes is given. Buckets are not changed.
#
# usage: tpu_scripts/gke/delete.sh [--config=tpu.env] [--node_pools] [--cluster] [--yes] [--dry_run]

# shellcheck source=tpu_scripts/gke/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
OPTION=([node_pools]=false [cluster]=false)
start "$@"
need_cluster
place=("--location=${CONFIG[ZONE]}" "--project=${CONFIG[PROJECT]}")
mapfile -t where < <(xpk_place)

if on cluster; then
  confirm "Delete the cluster ${CONFIG[CLUSTER]} with all its node pools and jobs, in ${CONFIG[ZONE]} of ${CONFIG[PROJECT]}?"
  if [[ ${CONFIG[GKE_VIA]} == xpk ]]; then
    run xpk cluster delete "${where[@]}" --force </dev/null
  else
    run gcloud container clusters delete "${CONFIG[CLUSTER]}" "${place[@]}" --quiet </dev/null
  fi
  exit
fi

if [[ ${CONFIG[GKE_VIA]} == xpk ]]; then
  confirm "Delete the workload ${CONFIG[NAME]} in the cluster ${CONFIG[CLUSTER]} of ${CONFIG[PROJECT]}?"
  run xpk workload delete "${where[@]}" "--workload=${CONFIG[NAME]}" --force </dev/null
  ! on node_pools || note "xpk manages the node pools; --cluster deletes them with the cluster"
  exit
fi

use_cluster
state=$(described present "${KUBECTL[@]}" get jobset "${CONFIG[NAME]}" '--output=jsonpath={.metadata.name}')
case $state in
  ABSENT) say "nothing to delete: there is no JobSet ${CONFIG[NAME]} in the cluster ${CONFIG[CLUSTER]}" ;;
  NO_ANSWER) fail "could not query the JobSet ${CONFIG[NAME]}" ;;
  *)
    confirm "Delete the JobSet ${CONFIG[NAME]}, its pods and its ConfigMap $(config_map), in the cluster ${CONFIG[CLUSTER]} of ${CONFIG[PROJECT]}?"
    run "${KUBECTL[@]}" delete jobset "${CONFIG[NAME]}"
    run "${KUBECTL[@]}" delete configmap "$(config_map)" --ignore-not-found
    ;;
esac
on node_pools || exit 0
for ((i = 0; i < CONFIG[NUM_SLICES]; i++)); do
  pool=${CONFIG[NAME]}-$i
  state=$(described RUNNING gcloud container node-pools describe "$pool" "--cluster=${CONFIG[CLUSTER]}" "${place[@]}" '--format=value(status)')
  case $state in
    ABSENT) say "nothing to delete: there is no node pool $pool" ;;
    NO_ANSWER) fail "could not query the node pool $pool" ;;
    *)
      confirm "Delete the node pool $pool ($state) of the cluster ${CONFIG[CLUSTER]}?"
      run gcloud container node-pools delete "$pool" "--cluster=${CONFIG[CLUSTER]}" "${place[@]}" --quiet </dev/null
      ;;
  esac
done
