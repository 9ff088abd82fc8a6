#!/usr/bin/env bash
# Creates the cluster and its pool of TPU machines, and installs JobSet in it; with GKE_VIA=xpk, xpk does this.
# An existing cluster or pool is not changed.
#
# usage: tpu_scripts/gke/create.sh [--config=tpu.env] [--dry_run]

# shellcheck source=tpu_scripts/gke/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
start "$@"
need_cluster

# A newer version can be used; the manifest uses v1alpha2 fields of 0.6 and later.
JOBSET=https://github.com/kubernetes-sigs/jobset/releases/download/v0.8.1/manifests.yaml

hosts >/dev/null
if [[ ${CONFIG[GKE_VIA]} == xpk ]]; then
  mapfile -t where < <(xpk_place)
  command=(xpk cluster create "${where[@]}" "--tpu-type=${CONFIG[ACCELERATOR_TYPE]}" "--num-slices=${CONFIG[NUM_SLICES]}"
    --enable-workload-identity)
  case ${CONFIG[PROVISIONING]} in
    spot) command+=(--spot) ;;
    on_demand) command+=(--on-demand) ;;
    reserved) usage_error "$CONFIG_FILE: PROVISIONING: xpk needs the name of the reservation; create the cluster by hand with --reservation" ;;
  esac
  [[ -z ${CONFIG[MOUNT_BUCKET]} ]] || command+=(--enable-gcsfuse-csi-driver)
  run "${command[@]}" </dev/null || fail "xpk could not create ${CONFIG[CLUSTER]}; its reason is above"
  exit
fi

place=("--location=${CONFIG[ZONE]}" "--project=${CONFIG[PROJECT]}")
state=$(described ABSENT gcloud container clusters describe "${CONFIG[CLUSTER]}" "${place[@]}" '--format=value(status)')
case $state in
  NO_ANSWER) fail "could not query the cluster ${CONFIG[CLUSTER]}" ;;
  ABSENT)
    run gcloud container clusters create "${CONFIG[CLUSTER]}" "${place[@]}" --release-channel=regular \
      --machine-type=e2-standard-4 --num-nodes=1 "--workload-pool=${CONFIG[PROJECT]}.svc.id.goog" \
      --addons=GcsFuseCsiDriver </dev/null || fail "gcloud could not create ${CONFIG[CLUSTER]}; its reason is above"
    ;;
  *) say "the cluster ${CONFIG[CLUSTER]} exists already and is $state" ;;
esac

for ((i = 0; i < CONFIG[NUM_SLICES]; i++)); do
  pool=${CONFIG[NAME]}-$i
  state=$(described ABSENT gcloud container node-pools describe "$pool" "--cluster=${CONFIG[CLUSTER]}" "${place[@]}" '--format=value(status)')
  case $state in
    NO_ANSWER) fail "could not query the node pool $pool" ;;
    ABSENT)
      command=(gcloud container node-pools create "$pool" "--cluster=${CONFIG[CLUSTER]}" "${place[@]}"
        "--machine-type=${CONFIG[MACHINE_TYPE]}" "--num-nodes=$(hosts)"
        --scopes=https://www.googleapis.com/auth/cloud-platform --workload-metadata=GKE_METADATA)
      # A pool of several machines is one slice; the type of a single machine determines its shape.
      (($(hosts) == 1)) || command+=("--tpu-topology=${CONFIG[TPU_TOPOLOGY]}")
      case ${CONFIG[PROVISIONING]} in
        spot) command+=(--spot) ;;
        reserved) command+=(--reservation-affinity=any) ;;
      esac
      [[ -z ${CONFIG[SERVICE_ACCOUNT]} ]] || command+=("--service-account=${CONFIG[SERVICE_ACCOUNT]}")
      run "${command[@]}" </dev/null || fail "gcloud could not create the node pool $pool; its reason is above"
      ;;
    *) say "the node pool $pool exists already and is $state" ;;
  esac
done

use_cluster
run "${KUBECTL[@]}" apply --server-side -f "$JOBSET"
