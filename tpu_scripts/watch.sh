#!/usr/bin/env bash
# Shows the state of the slice, the workers that run the job, the last metrics, and the end of a worker's log.
#
# usage: tpu_scripts/watch.sh [--config=tpu.env] [--worker=0] [--lines=20] [--follow] [--dry_run]
#   --worker=N   worker whose log is shown; with several slices, of each slice
#   --lines=N    number of lines
#   --follow     continue to print the log until Ctrl-C, which does not affect the job

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
OPTION=([worker]=0 [lines]=20 [follow]=false)
start "$@"
[[ ${OPTION[worker]} =~ ^[0-9]+$ ]] || usage_error "--worker must be a number, not ${OPTION[worker]}"
[[ ${OPTION[lines]} =~ ^[0-9]+$ ]] || usage_error "--lines must be a number, not ${OPTION[lines]}"
need_gcloud

job=${CONFIG[NAME]}
state=$(queued_state)
case $state in
  ABSENT) fail "there is no queued resource ${CONFIG[NAME]} in ${CONFIG[ZONE]} of ${CONFIG[PROJECT]}" ;;
  FAILED | SUSPENDED) say "queued resource ${CONFIG[NAME]}: $state $(queued_reason)" ;;
  *) say "queued resource ${CONFIG[NAME]}: $state" ;;
esac

if [[ $state == ACTIVE ]]; then
  while read -r node; do
    read -r node_is health workers < <(node_state "$node") || true
    say "node $node: $node_is, health ${health:-?}, ${workers:-?} workers"
  done < <(node_names)
  states=$(worker_states)
  expected=$(expected_workers)
  say "job $job: $(grep -c ' running ' <<<"$states" || true) of $expected workers are running it"
  awk 'NF {
    if ($3 == "running") detail = sprintf("for %dh%02dm", $5 / 3600, $5 % 3600 / 60)
    else if ($3 == "exited") detail = "code " $4 ($4 == 0 ? ": done" : $4 == 2 ? ": a mistake in the command, see the log" \
      : $4 == 75 ? ": stopped after saving, run.sh or launch.sh resumes" : $4 == 76 ? ": lost another worker, run.sh or launch.sh resumes" \
      : ": a defect, see the log")
    else if ($3 == "lost") detail = "the machine was restarted or the job killed"
    else detail = "not started on this worker"
    printf "  %-40s %-8s %s\n", $2, $3, detail
  }' <<<"$states"
  answered=$(grep -c . <<<"$states" || true)
  [[ $expected == '?' || $answered == "$expected" ]] || say "  $((expected - answered)) workers did not answer"
fi

say "metrics in ${CONFIG[MODEL_DIR]%/}/metrics.jsonl, the last of each split:"
if [[ $state == ACTIVE || ${CONFIG[MODEL_DIR]} == /gcs/* ]]; then
  last_metrics "$state" | last_of_each_split
else
  say "  on the slice's own disk, which no longer exists"
fi

if [[ $state == ACTIVE ]]; then
  say "log of worker ${OPTION[worker]}:"
  follow=()
  ! on follow || follow=(follow)
  (on_workers "${OPTION[worker]}" "${WORKER[@]}" log "$job" "${OPTION[lines]}" "${follow[@]}") || true
fi
