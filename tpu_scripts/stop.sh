#!/usr/bin/env bash
# Stops the job on every worker: its process gets SIGTERM, saves a checkpoint and ends with code 75. Other processes on
# the machines are not affected, and the slice exists (and costs money) until delete.sh deletes it. End run.sh first;
# otherwise it starts the job again.
#
# usage: tpu_scripts/stop.sh [--config=tpu.env] [--force] [--dry_run]
#   --force   kill processes that have not ended after STOP_GRACE_SECONDS; steps since the last checkpoint are lost

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
OPTION=([force]=false)
start "$@"
need_gcloud
state=$(queued_state)
case $state in
  ABSENT) say "nothing to stop: there is no queued resource ${CONFIG[NAME]}"; exit ;;
  ACTIVE) ;;
  NO_ANSWER) fail "could not query the queued resource ${CONFIG[NAME]}" ;;
  *) say "nothing to stop: the queued resource ${CONFIG[NAME]} is $state"; exit ;;
esac
force=()
! on force || force=(force)

# All slices are stopped at the same time, because a job cannot continue without one of its slices.
stops=()
while read -r node; do
  ssh_command "$node" all "${WORKER[@]}" stop "${CONFIG[NAME]}" "${CONFIG[STOP_GRACE_SECONDS]}" "${force[@]}"
  run "${SSH[@]}" </dev/null &
  stops+=("$!")
done < <(node_names)
failed=0
for process in "${stops[@]}"; do wait "$process" || failed=1; done
((failed == 0)) || fail "not all workers have stopped; their output is above"
