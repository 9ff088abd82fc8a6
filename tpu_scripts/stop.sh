#!/usr/bin/env bash
# Stops the job on every worker: its process gets SIGTERM, saves a checkpoint and ends with code 75. Nothing else on
# the machines is touched, and the slice stays (and costs money) until delete.sh. End run.sh first, or it starts the job
# again.
#
# usage: tpu_scripts/stop.sh [--config=tpu.env] [--force] [--dry_run]
#   --force   kill what has not ended after STOP_GRACE_SECONDS; steps since the last checkpoint are lost

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
OPTION=([force]=false)
start "$@"
need_gcloud
state=$(queued_state)
case $state in
  ABSENT) say "nothing to stop: there is no queued resource ${CONFIG[NAME]}"; exit ;;
  ACTIVE) ;;
  NO_ANSWER) fail "could not ask for the queued resource ${CONFIG[NAME]}" ;;
  *) say "nothing to stop: the queued resource ${CONFIG[NAME]} is $state"; exit ;;
esac
force=()
! on force || force=(force)

# All slices at once: a job that loses a part of itself has nothing left to wait for.
stops=()
while read -r node; do
  ssh_command "$node" all "${WORKER[@]}" stop "${CONFIG[NAME]}" "${CONFIG[STOP_GRACE_SECONDS]}" "${force[@]}"
  run "${SSH[@]}" </dev/null &
  stops+=("$!")
done < <(node_names)
failed=0
for process in "${stops[@]}"; do wait "$process" || failed=1; done
((failed == 0)) || fail "not every worker has stopped; its output is above"
