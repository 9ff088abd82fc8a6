#!/usr/bin/env bash
# Requests the slice that the configuration describes, as a queued resource: on demand, spot or reserved.
# An existing queued resource is not changed.
#
# usage: tpu_scripts/create.sh [--config=tpu.env] [--wait] [--dry_run]
#   --wait   return when the slice is ready; the request may be queued for hours

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
OPTION=([wait]=false)
start "$@"
need_gcloud

create() {
  local -a where command
  mapfile -t where < <(place)
  command=("${QUEUED[@]}" create "${CONFIG[NAME]}" "${where[@]}"
    "--accelerator-type=${CONFIG[ACCELERATOR_TYPE]}" "--runtime-version=${CONFIG[RUNTIME_VERSION]}")
  if ((CONFIG[NUM_SLICES] == 1)); then
    command+=("--node-id=${CONFIG[NAME]}")
  else
    command+=("--node-count=${CONFIG[NUM_SLICES]}" "--node-prefix=${CONFIG[NAME]}")
  fi
  case ${CONFIG[PROVISIONING]} in
    spot) command+=(--spot) ;;
    reserved) command+=(--reserved) ;;
  esac
  [[ ${CONFIG[SSH_VIA]} == external ]] || command+=(--internal-ips)
  # Without this scope the machines could not write to the bucket; the roles of the account define their permissions.
  command+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
  [[ -z ${CONFIG[SERVICE_ACCOUNT]} ]] || command+=("--service-account=${CONFIG[SERVICE_ACCOUNT]}")
  [[ -z ${CONFIG[NETWORK]} ]] || command+=("--network=${CONFIG[NETWORK]}")
  [[ -z ${CONFIG[SUBNETWORK]} ]] || command+=("--subnetwork=${CONFIG[SUBNETWORK]}")
  run "${command[@]}" </dev/null || fail "gcloud refused to create ${CONFIG[NAME]}; its reason is above"
}

state=$(queued_state ABSENT)
case $state in
  ABSENT) create ;;
  NO_ANSWER) fail "could not query the queued resource ${CONFIG[NAME]}" ;;
  SUSPENDED | FAILED)
    fail "the queued resource ${CONFIG[NAME]} exists and is $state: $(queued_reason); delete it with delete.sh, then create it again" ;;
  *) say "the queued resource ${CONFIG[NAME]} exists already and is $state" ;;
esac

if on wait; then
  while :; do
    state=$(queued_state ACTIVE)
    case $state in
      ACTIVE) break ;;
      ABSENT | FAILED | SUSPENDED) fail "the queued resource ${CONFIG[NAME]} is $state: $(queued_reason)" ;;
    esac
    say "$(date +%T) ${CONFIG[NAME]} is $state"
    sleep "${CONFIG[POLL_SECONDS]}"
  done
fi
on dry_run || say "${CONFIG[NAME]} is $(queued_state); it costs money from the state ACTIVE until delete.sh deletes it"
