#!/usr/bin/env bash
# Deletes the queued resource and its nodes, with everything on their disks. Buckets are not changed.
# Names what it deletes and asks for confirmation, unless --yes is given.
#
# usage: tpu_scripts/delete.sh [--config=tpu.env] [--yes] [--dry_run]

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
start "$@"
need_gcloud
state=$(queued_state)
case $state in
  ABSENT) say "nothing to delete: there is no queued resource ${CONFIG[NAME]} in ${CONFIG[ZONE]} of ${CONFIG[PROJECT]}"; exit ;;
  NO_ANSWER) fail "could not query the queued resource ${CONFIG[NAME]}" ;;
esac
nodes=$(node_names | paste -sd' ' -)
[[ ${CONFIG[MODEL_DIR]} == /gcs/* ]] ||
  say "MODEL_DIR ${CONFIG[MODEL_DIR]} is on the slice's own disks and is deleted too"
confirm "Delete the queued resource ${CONFIG[NAME]} ($state) and its nodes ($nodes) in ${CONFIG[ZONE]} of ${CONFIG[PROJECT]}?"
mapfile -t where < <(place)
run "${QUEUED[@]}" delete "${CONFIG[NAME]}" "${where[@]}" --force --quiet </dev/null ||
  fail "gcloud could not delete ${CONFIG[NAME]}; its reason is above"
on dry_run || say "deleted ${CONFIG[NAME]}"
