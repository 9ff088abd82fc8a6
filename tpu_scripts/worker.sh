#!/usr/bin/env bash
# Runs on every worker of a slice; the other scripts copy it to the workers and call it over ssh.
#
#   setup PYTHON REQUIREMENT [CONSTRAINTS]   installs jaxalign in a virtual environment
#   mount BUCKET                             mounts the bucket at /gcs/BUCKET
#   start JOB NAME=VALUE... -- COMMAND...    starts the command, detached, with these environment variables
#   status JOB                               prints JOB_STATUS HOST STATE CODE SECONDS
#   stop JOB SECONDS [force]                 sends SIGTERM to the job's process only, and waits; force: then SIGKILL
#   log JOB LINES [follow]                   prints the end of the job's log
#   metrics FILE, checkpoints FOLDER         print the content of a run folder on this machine
#
# A job is a folder ~/jaxalign/jobs/JOB with log, command, process (its id and start time) and exit_code.

set -euo pipefail

ROOT=$HOME/jaxalign
VENV=$ROOT/venv

fail() { printf '%s: %s\n' "$(hostname)" "$*" >&2; exit 1; }

job_folder() { printf '%s' "$ROOT/jobs/$1"; }

# Prints the start time of a process in clock ticks since boot. Id and start time identify a process; an id alone does
# not, because ids are reused. The name in field 2 may contain blanks, so it is removed first.
started() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086  # words
  set -- $stat
  [[ $1 != Z ]] || return 1
  printf '%s' "${20}"
}

# Sets PID; true if the job's process is running.
running() {
  local began
  PID='' began=''
  read -r PID began 2>/dev/null <"$(job_folder "$1")/process" || return 1
  [[ -n $PID && $(started "$PID") == "$began" ]]
}

setup() {
  local python=$1 requirement=$2 constraints=${3:-} wanted
  local -a pip=("$VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
  wanted="$python $requirement $( [[ -z $constraints ]] || sha256sum <"$constraints")"
  if [[ -x $VENV/bin/jaxalign && $(cat "$ROOT/installed" 2>/dev/null) == "$wanted" ]]; then
    printf '%s: already set up\n' "$(hostname)"
    return
  fi
  mkdir -p "$ROOT"
  rm -rf "$VENV" "$ROOT/installed"
  if ! "python$python" -m venv "$VENV" 2>/dev/null; then
    # The images of TPU machines have an older Python; uv installs its own.
    rm -rf "$VENV"
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --disable-pip-version-check --user uv || fail "could not install uv"
    python3 -m uv venv --quiet --seed --python "$python" "$VENV" || fail "Python $python is not installed and uv could not install it"
  fi
  case $requirement in
    *.whl) requirement="jaxalign[tpu] @ file://$(realpath "$requirement")" ;;
    *) requirement="jaxalign[tpu] @ $requirement" ;;
  esac
  "${pip[@]}" ${constraints:+--constraint "$constraints"} "$requirement" || fail "pip could not install $requirement"
  "$VENV/bin/jaxalign" --version || fail "jaxalign does not start"
  printf '%s' "$wanted" >"$ROOT/installed"
  printf '%s: set up\n' "$(hostname)"
}

mount_bucket() {
  local point=/gcs/$1
  if mountpoint -q "$point" 2>/dev/null; then return; fi
  command -v gcsfuse >/dev/null || fail "gcsfuse is not installed; see https://cloud.google.com/storage/docs/cloud-storage-fuse/install"
  sudo mkdir -p "$point"
  sudo chown "$(id -u):$(id -g)" "$point"
  # A checkpoint is completed by renaming its folder, and a worker must see at once what another worker has written.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$1" "$point" || fail "could not mount gs://$1"
}

start() {
  local job=$1 folder
  local -a environment=() command=()
  folder=$(job_folder "$job")
  shift
  while [[ $1 != -- ]]; do environment+=("$1"); shift; done
  shift
  [[ -x $VENV/bin/jaxalign ]] || fail "jaxalign is not installed here; run setup.sh"
  mkdir -p "$folder/files"
  command=("$@")
  # gcloud repeats a command after a broken connection, so the same start may arrive twice, even at the same time.
  exec 8>"$folder/lock"
  flock 8
  if running "$job"; then
    [[ $(cat "$folder/command") == "${environment[*]@Q} -- ${command[*]@Q}" ]] ||
      fail "job $job is running here with another command; stop it first"
    printf '%s: job %s is already running (process %s)\n' "$(hostname)" "$job" "$PID"
    return
  fi
  printf '%s' "${environment[*]@Q} -- ${command[*]@Q}" >"$folder/command"
  rm -f "$folder/exit_code" "$folder/process"
  printf '== %s on %s: %s\n' "$(date -u +%FT%TZ)" "$(hostname)" "${command[*]@Q}" >>"$folder/log"
  setsid nohup bash "${BASH_SOURCE[0]}" supervise "$job" "${environment[@]}" -- "${command[@]}" \
    </dev/null >>"$folder/log" 2>&1 8>&- &
  for _ in $(seq 600); do
    if [[ -s $folder/process ]]; then
      printf '%s: started job %s\n' "$(hostname)" "$job"
      return
    fi
    sleep 0.1
  done
  fail "job $job did not start; see its log"
}

# Runs as the parent of the job: starts it, and writes its process id, start time and exit code to files.
supervise() {
  local job=$1 folder child code=0
  local -a environment=()
  folder=$(job_folder "$job")
  shift
  while [[ $1 != -- ]]; do environment+=("$1"); shift; done
  shift
  cd "$folder/files"
  # A shutdown of the machine signals every process. This process must outlive the job to write its exit code; the job
  # handles the signal itself. The job does not inherit a trap with a command; it would inherit a trap that ignores.
  trap : TERM HUP INT
  env PATH="$VENV/bin:$PATH" PYTHONUNBUFFERED=1 "${environment[@]}" "$@" &
  child=$!
  printf '%s %s\n' "$child" "$(started "$child" || echo gone)" >"$folder/process.new"
  mv "$folder/process.new" "$folder/process"
  while :; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  printf '%s\n' "$code" >"$folder/exit_code.new"
  mv "$folder/exit_code.new" "$folder/exit_code"
}

status() {
  local job=$1 folder state=absent code=- seconds=0
  folder=$(job_folder "$job")
  if running "$job"; then
    state=running
    seconds=$(($(date +%s) - $(stat -c %Y "$folder/process")))
  elif [[ -s $folder/exit_code ]]; then
    state=exited
    code=$(cat "$folder/exit_code")
  elif [[ -e $folder/process ]]; then
    # The machine was restarted, or the job and its parent were killed.
    state=lost
  fi
  printf 'JOB_STATUS %s %s %s %s\n' "$(hostname)" "$state" "$code" "$seconds"
}

stop() {
  local job=$1 seconds=$2 force=${3:-} waited=0
  if ! running "$job"; then
    printf '%s: job %s is not running\n' "$(hostname)" "$job"
    return
  fi
  kill -TERM "$PID"
  while running "$job" && ((waited < seconds * 5)); do
    sleep 0.2
    waited=$((waited + 1))
  done
  if running "$job"; then
    [[ $force == force ]] || fail "job $job (process $PID) is still running after ${seconds}s; stop.sh --force kills it"
    kill -KILL "$PID"
    printf '%s: killed job %s\n' "$(hostname)" "$job"
  else
    printf '%s: stopped job %s\n' "$(hostname)" "$job"
  fi
}

log() {
  local file
  file=$(job_folder "$1")/log
  [[ -f $file ]] || fail "job $1 has no log here"
  if [[ ${3:-} == follow ]]; then exec tail -n "$2" -F "$file"; fi
  tail -n "$2" "$file"
}

main() {
  local verb=${1:-}
  shift || true
  case $verb in
    setup) setup "$@" ;;
    mount) mount_bucket "$@" ;;
    start) start "$@" ;;
    supervise) supervise "$@" ;;
    status) status "$@" ;;
    stop) stop "$@" ;;
    log) log "$@" ;;
    metrics) tail -c 20000 "$1" 2>/dev/null || true ;;
    checkpoints) ls "$1" 2>/dev/null || true ;;
    *) fail "unknown command $verb" ;;
  esac
}

# This file may be overwritten by a newer copy while a job runs; bash has then read it up to this line.
{ main "$@"; exit; }
