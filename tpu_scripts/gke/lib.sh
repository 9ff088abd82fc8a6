# shellcheck shell=bash
# Common functions of the scripts for GKE, in addition to ../lib.sh.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

need_cluster() {
  need CLUSTER
  need_gcloud
  if [[ ${CONFIG[GKE_VIA]} == xpk ]]; then
    need_tool xpk "pip install xpk"
  else
    need_tool kubectl "gcloud components install kubectl gke-gcloud-auth-plugin"
  fi
}

# Print the number of chips of the slice and of its machines, from TPU_TOPOLOGY and CHIPS_PER_HOST.
chips() { printf '%s\n' "$((${CONFIG[TPU_TOPOLOGY]//x/*}))"; }

hosts() {
  local chips
  chips=$(chips)
  ((chips % CONFIG[CHIPS_PER_HOST] == 0)) ||
    usage_error "$CONFIG_FILE: TPU_TOPOLOGY ${CONFIG[TPU_TOPOLOGY]} has $chips chips, which is not a multiple of CHIPS_PER_HOST ${CONFIG[CHIPS_PER_HOST]}"
  printf '%s\n' "$((chips / CONFIG[CHIPS_PER_HOST]))"
}

# Sets KUBECTL. It names the cluster in every call, so that it never acts on another cluster that is selected.
# shellcheck disable=SC2034  # the scripts use it
use_cluster() {
  local location=${CONFIG[ZONE]}
  # xpk creates regional clusters, create.sh zonal clusters.
  [[ ${CONFIG[GKE_VIA]} != xpk ]] || location=${location%-*}
  run gcloud container clusters get-credentials "${CONFIG[CLUSTER]}" "--location=$location" \
    "--project=${CONFIG[PROJECT]}" </dev/null || fail "there is no cluster ${CONFIG[CLUSTER]} in $location of ${CONFIG[PROJECT]}, or you lack the permission to use it"
  KUBECTL=(kubectl "--context=gke_${CONFIG[PROJECT]}_${location}_${CONFIG[CLUSTER]}" "--namespace=${CONFIG[NAMESPACE]}")
}

# Prints the name of the ConfigMap that holds the job's gin files.
config_map() { printf '%s-gin\n' "${CONFIG[NAME]}"; }

xpk_place() { printf '%s\n' "--project=${CONFIG[PROJECT]}" "--zone=${CONFIG[ZONE]}" "--cluster=${CONFIG[CLUSTER]}"; }
