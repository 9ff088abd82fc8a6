#!/usr/bin/env bash
# Runs a job to its end: creates the slice if it does not exist, waits until it is ready, sets it up, launches the job,
# watches it, and starts it again after a preemption of the slice or the loss of a worker. A preempted spot slice is
# deleted by name and requested again; without --yes every deletion needs a confirmation.
# Start it on a machine that stays up, for example in tmux. The same command continues after an interruption.
#
# usage: tpu_scripts/run.sh [--config=tpu.env] [--yes] [--delete_when_done] [--dry_run] -- --gin_file=FILE [--gin.NAME=VALUE] ...
#   --delete_when_done   delete the slice after the job has succeeded, so that it causes no further cost
#
# Exit codes: 0 the job is done; 2 a mistake in the command or the configuration, which another launch would not correct;
# 1 given up: too many launches without a new checkpoint, or too many defects, see MAX_*_WITHOUT_PROGRESS.

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/gin_files.sh
source "$HERE/gin_files.sh"
TAKES_TRAIN_ARGS=true
OPTION=([delete_when_done]=false)
start "$@"
train_command # reports mistakes before anything is created
need_gcloud

DONE=0 USER_MISTAKE=2 STOPPED=75 PEER_LOST=76
MAX_UNANSWERED_POLLS=10 # consecutive polls without an answer before the slice is given up

log() { say "$(date '+%F %T') $*"; }
mapfile -t SAME < <(same_options)
run_script() { local script=$1; shift; "$HERE/$script.sh" "${SAME[@]}" "$@"; }

interrupted() {
  note "stopped watching. The job and the slice continue: stop.sh stops the job, delete.sh deletes the slice, and the same run.sh command watches again"
  exit 130
}
trap interrupted INT TERM

launches=0 failures=0 unanswered=0 stragglers=0
copied=false set_up=false launched=false
best=$(latest_checkpoint)

# Another launch is useful only if it produces newer checkpoints.
count_launch() {
  local step
  step=$(latest_checkpoint)
  if ((step > best)); then
    best=$step launches=0 failures=0
  fi
  launches=$((launches + 1))
  ((launches <= CONFIG[MAX_LAUNCHES_WITHOUT_PROGRESS])) ||
    fail "given up: ${CONFIG[MAX_LAUNCHES_WITHOUT_PROGRESS]} launches without a checkpoint after step $best; the slice still exists, watch.sh shows the log and delete.sh deletes the slice"
}

count_defect() {
  local step
  step=$(latest_checkpoint)
  if ((step > best)); then
    best=$step launches=0 failures=0
  fi
  failures=$((failures + 1))
  ((failures < CONFIG[MAX_FAILURES_WITHOUT_PROGRESS])) || {
    run_script watch --lines=40 || true
    fail "given up: the job ended with a defect $failures times without a checkpoint after step $best; the slice still exists, delete.sh deletes it"
  }
}

launch() {
  count_launch
  if [[ $set_up == false ]]; then
    log "setting up"
    if ! run_script setup; then
      log "set-up failed"
      unanswered=$((unanswered + 1))
      return
    fi
    set_up=true
  fi
  log "launching, newest checkpoint: step $best"
  # The next poll sees workers that failed at once.
  run_script launch -- "${TRAIN_ARGS[@]}" || true
  launched=true stragglers=0
}

recreate() {
  log "$1: deleting ${CONFIG[NAME]} and requesting it again"
  run_script delete || fail "${CONFIG[NAME]} was not deleted, so it cannot be requested again"
  run_script create || fail "could not request ${CONFIG[NAME]} again"
  copied=false set_up=false launched=false unanswered=0 stragglers=0
}

finish() {
  log "done; newest checkpoint: step $(latest_checkpoint)"
  if on delete_when_done; then
    run_script delete
  else
    say "the slice ${CONFIG[NAME]} still exists and costs money; delete.sh deletes it"
  fi
  exit 0
}

# Decides the next action from the workers' states: lines NODE HOST STATE CODE SECONDS.
act_on_states() {
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
    unanswered=$((unanswered + 1))
    log "$total of $expected workers answer"
    return
  fi
  unanswered=0

  if [[ -n $misused && ( $launched == true || $running -gt 0 ) ]]; then
    run_script stop --force || true
    run_script watch --lines=40 || true
    note "the job ended with code 2, a mistake in its command or configuration; its log is above. Correct it and run again. The slice still exists and costs money; delete.sh deletes it"
    exit 2
  elif [[ $running -gt 0 && $launched == false ]]; then
    # Workers that already run this command continue, others are started; a job with another command is refused.
    log "$running of $total workers are running the job already"
    run_script launch -- "${TRAIN_ARGS[@]}" || fail "the job that runs on ${CONFIG[NAME]} cannot be continued; stop.sh stops it"
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
      log "stopping the workers that are still running"
      run_script stop --force || true
      stragglers=0
    fi
  elif [[ $launched == false ]]; then
    launch # the exit codes are those of an earlier job
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

# Workers can report their state only after the worker script has been copied to them.
copy_worker_script() {
  [[ $copied == false ]] || return 0
  if (copy_to_workers "$WORKER_SCRIPT" "$HERE/worker.sh"); then
    copied=true
  else
    unanswered=$((unanswered + 1))
    return 1
  fi
}

# Prints the nodes that must be replaced, with their states.
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
  say "# if the queued resource does not exist:"; run_script create
  say "# when it is ACTIVE and new:"; run_script setup
  say "# then, and after the job was stopped or lost a worker:"; run_script launch -- "${TRAIN_ARGS[@]}"
  say "# every ${CONFIG[POLL_SECONDS]} seconds:"; node_state "$(first_node)" >/dev/null; worker_states >/dev/null
  say "# if it was preempted (SUSPENDED, FAILED, or a node PREEMPTED):"; run_script delete; run_script create
  ! on delete_when_done || { say "# when the job is done:"; run_script delete; }
  exit 0
fi

was=''
while :; do
  state=$(queued_state)
  [[ $state == "$was" ]] || log "queued resource ${CONFIG[NAME]}: $state"
  was=$state
  case $state in
    ABSENT) run_script create ;;
    SUSPENDED | FAILED)
      # A slice without a launch counts as a launch; otherwise a request that cannot succeed would be repeated without end.
      [[ $launched == true ]] || count_launch
      recreate "${CONFIG[NAME]} is $state$(queued_reason | sed 's/^/ (/;s/$/)/')"
      ;;
    NO_ANSWER) unanswered=$((unanswered + 1)) ;;
    ACTIVE)
      gone=$(nodes_gone | head -n1)
      if [[ -n $gone ]]; then
        recreate "$gone"
      else
        waiting=$(nodes_not_ready | head -n1)
        if [[ -z $waiting ]]; then
          ! copy_worker_script || act_on_states "$(worker_states)"
        else
          log "$waiting"
          [[ $waiting != *" is ABSENT" && $waiting != *" is NO_ANSWER" ]] || unanswered=$((unanswered + 1))
        fi
      fi
      ;;
    *) ;; # waiting for resources, provisioning, suspending, deleting
  esac
  if ((unanswered >= MAX_UNANSWERED_POLLS)); then
    [[ $state == ACTIVE ]] || fail "given up: no answer about ${CONFIG[NAME]} $unanswered times in a row; the slice may still exist"
    recreate "workers have not answered $unanswered times in a row"
  fi
  sleep "${CONFIG[POLL_SECONDS]}"
done
