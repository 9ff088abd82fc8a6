#!/usr/bin/env bash
# Carries a job through to its end: creates the slice if it is not there, waits until it is ready, sets it up, launches
# the job, watches it, and starts it again when the slice was preempted or a worker was lost. A spot slice that was
# taken away is deleted by name and asked for again; without --yes every deletion is asked about first.
# Start it on a machine that stays up, for example in tmux; given again, it takes up where things are.
#
# usage: tpu_scripts/run.sh [--config=tpu.env] [--yes] [--delete_when_done] [--dry_run] -- --gin_file=FILE [--gin.NAME=VALUE] ...
#   --delete_when_done   delete the slice when the job has ended well, so that it costs nothing more
#
# Exit codes: 0 the job is done; 2 a mistake in the command or the configuration, which starting again does not mend;
# 1 given up: too many launches without a new checkpoint, or too many defects, see MAX_*_WITHOUT_PROGRESS.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/gin_files.sh
source "$HERE/gin_files.sh"
TAKES_TRAIN_ARGS=true
OPTION=([delete_when_done]=false)
start "$@"
train_command # refuses mistakes before anything is created
need_gcloud

DONE=0 USER_MISTAKE=2 STOPPED=75 PEER_LOST=76
MAX_SILENT_LOOKS=10 # looks in a row that get no answer, before the slice is given up

log() { say "$(date '+%F %T') $*"; }
mapfile -t SAME < <(same_options)
other() { local script=$1; shift; "$HERE/$script.sh" "${SAME[@]}" "$@"; }

interrupted() {
  note "no longer watching. The job and the slice go on; stop.sh stops the one, delete.sh the other; the same run.sh goes on watching"
  exit 130
}
trap interrupted INT TERM

launches=0 failures=0 silent=0 stragglers=0
reached=false set_up=false launched=false
best=$(latest_checkpoint)

look_again() { sleep "${CONFIG[POLL_SECONDS]}"; }

# Starting again is only worth it if checkpoints get newer.
count_launch() {
  local step
  step=$(latest_checkpoint)
  if ((step > best)); then
    best=$step launches=0 failures=0
  fi
  launches=$((launches + 1))
  ((launches <= CONFIG[MAX_LAUNCHES_WITHOUT_PROGRESS])) ||
    fail "given up: ${CONFIG[MAX_LAUNCHES_WITHOUT_PROGRESS]} launches without a checkpoint after step $best; the slice is still there, watch.sh shows the log and delete.sh deletes it"
}

count_defect() {
  local step
  step=$(latest_checkpoint)
  if ((step > best)); then
    best=$step launches=0 failures=0
  fi
  failures=$((failures + 1))
  ((failures < CONFIG[MAX_FAILURES_WITHOUT_PROGRESS])) || {
    other watch --lines=40 || true
    fail "given up: the job ended in a defect $failures times without a checkpoint after step $best; the slice is still there, delete.sh deletes it"
  }
}

launch() {
  count_launch
  if [[ $set_up == false ]]; then
    log "setting up"
    if ! other setup; then
      log "set-up failed"
      silent=$((silent + 1))
      return
    fi
    set_up=true
  fi
  log "launching, newest checkpoint: step $best"
  # Workers that failed at once are seen in the next look.
  other launch -- "${TRAIN_ARGS[@]}" || true
  launched=true stragglers=0
}

recreate() {
  log "$1: deleting ${CONFIG[NAME]} and asking for it again"
  other delete || fail "${CONFIG[NAME]} was not deleted, so it cannot be asked for again"
  other create || fail "could not ask for ${CONFIG[NAME]} again"
  reached=false set_up=false launched=false silent=0 stragglers=0
}

finish() {
  log "done; newest checkpoint: step $(latest_checkpoint)"
  if on delete_when_done; then
    other delete
  else
    say "the slice ${CONFIG[NAME]} is still there and costs money; delete.sh deletes it"
  fi
  exit 0
}

# Decides by what the workers say. Sees: lines NODE HOST STATE CODE SECONDS.
judge() {
  local states=$1 expected state code running=0 ended=0 absent=0 done=0 total=0 defect='' misused='' why=''
  while read -r _ _ state code _; do
    [[ -n $state ]] || continue
    total=$((total + 1))
    case $state in
      running) running=$((running + 1)) ;;
      absent) absent=$((absent + 1)) ;;
      lost) ended=$((ended + 1)) why="a worker was lost" ;;
      exited)
        ended=$((ended + 1))
        case $code in
          "$DONE") done=$((done + 1)) ;;
          "$USER_MISTAKE") misused=yes ;;
          "$STOPPED") why=${why:-"stopped after saving"} ;;
          "$PEER_LOST") why=${why:-"a worker was lost"} ;;
          *) defect=$code ;;
        esac
        ;;
    esac
  done <<<"$states"
  expected=$(expected_workers)
  if ((total == 0)) || [[ $expected != '?' && $total -lt $expected ]]; then
    silent=$((silent + 1))
    log "$total of $expected workers answer"
    return
  fi
  silent=0

  if [[ -n $misused && ( $launched == true || $running -gt 0 ) ]]; then
    other stop --force || true
    other watch --lines=40 || true
    note "the job ended with code 2, a mistake in its command or configuration; its log is above. Correct it and run again; the slice is still there and costs money, delete.sh deletes it"
    exit 2
  elif [[ $running -gt 0 && $launched == false ]]; then
    # Workers that run this very command are left alone, others are started; another command is refused.
    log "$running of $total workers are running the job already"
    other launch -- "${TRAIN_ARGS[@]}" || fail "what runs on ${CONFIG[NAME]} could not be taken up; stop.sh stops it"
    set_up=true launched=true
  elif ((running == total)); then
    stragglers=0
  elif ((running > 0 && ended == 0)); then
    log "$absent workers are not running the job"
    launch
  elif ((running > 0)); then
    stragglers=$((stragglers + 1))
    log "$ended workers have ended, $running are still running"
    if ((stragglers * CONFIG[POLL_SECONDS] >= CONFIG[STOP_GRACE_SECONDS] || stragglers > 1000)); then
      log "stopping those that are still running"
      other stop --force || true
      stragglers=0
    fi
  elif [[ $launched == false ]]; then
    launch # the end of an earlier job says nothing about this one
  elif ((done == total)); then
    finish
  elif [[ -n $defect ]]; then
    log "the job ended with code $defect, a defect"
    count_defect
    launch
  else
    log "${why:-"the job is not running"}: launching again"
    launch
  fi
}

# Workers can say nothing before they have the script that says it.
reach() {
  [[ $reached == false ]] || return 0
  if (copy_to_workers "$WORKER_SCRIPT" "$HERE/worker.sh"); then
    reached=true
  else
    silent=$((silent + 1))
    return 1
  fi
}

# States of nodes that have to be replaced.
nodes_gone() {
  local node state
  while read -r node; do
    state=$(node_state "$node")
    case ${state%% *} in
      PREEMPTED | TERMINATED | STOPPED | STOPPING | UNKNOWN) say "node $node is ${state%% *}" ;;
    esac
  done < <(node_names)
}

nodes_not_ready() {
  local node state
  while read -r node; do
    state=$(node_state "$node")
    [[ $state == READY* ]] || say "node $node is ${state%% *}"
  done < <(node_names)
}

if on dry_run; then
  say "# until the job is done:"
  queued_state >/dev/null
  say "# if there is no such queued resource:"; other create
  say "# when it is ACTIVE and new:"; other setup
  say "# then, and again when the job was stopped or lost a worker:"; other launch -- "${TRAIN_ARGS[@]}"
  say "# every ${CONFIG[POLL_SECONDS]} seconds:"; node_state "$(first_node)" >/dev/null; worker_states >/dev/null
  say "# if it was preempted (SUSPENDED, FAILED, or a node PREEMPTED):"; other delete; other create
  ! on delete_when_done || { say "# when the job is done:"; other delete; }
  exit 0
fi

was=''
while :; do
  state=$(queued_state)
  [[ $state == "$was" ]] || log "queued resource ${CONFIG[NAME]}: $state"
  was=$state
  case $state in
    ABSENT) other create ;;
    SUSPENDED | FAILED)
      # A slice that never came to a launch counts as one, or a request that cannot succeed would be made for ever.
      [[ $launched == true ]] || count_launch
      recreate "${CONFIG[NAME]} is $state$(queued_reason | sed 's/^/ (/;s/$/)/')"
      ;;
    NO_ANSWER) silent=$((silent + 1)) ;;
    ACTIVE)
      gone=$(nodes_gone | head -n1)
      if [[ -n $gone ]]; then
        recreate "$gone"
      else
        waiting=$(nodes_not_ready | head -n1)
        if [[ -z $waiting ]]; then
          ! reach || judge "$(worker_states)"
        else
          log "$waiting"
          [[ $waiting != *" is ABSENT" && $waiting != *" is NO_ANSWER" ]] || silent=$((silent + 1))
        fi
      fi
      ;;
    *) ;; # waiting for resources, provisioning, suspending, deleting
  esac
  if ((silent >= MAX_SILENT_LOOKS)); then
    [[ $state == ACTIVE ]] || fail "given up: no answer about ${CONFIG[NAME]} $silent times in a row; the slice may still be there"
    recreate "workers have not answered $silent times in a row"
  fi
  look_again
done
