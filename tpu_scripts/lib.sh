# shellcheck shell=bash
# Common functions of the scripts: configuration, options, quoting, --dry_run, confirmation, and calls of gcloud.
#
# A script sources this file, declares its options in OPTION, and calls `start "$@"`.
# Exit codes: 0 success, 1 a failure outside the scripts, 2 a mistake in the command or the configuration.

set -euo pipefail

PROGRAM=${0##*/}
# shellcheck disable=SC2034  # the scripts use it
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf '%s\n' "$*"; }
note() { printf '%s: %s\n' "$PROGRAM" "$*" >&2; }
usage_error() { note "$*"; exit 2; }
fail() { note "$*"; exit 1; }

if ((BASH_VERSINFO[0] < 4 || (BASH_VERSINFO[0] == 4 && BASH_VERSINFO[1] < 4))); then
  usage_error "needs bash 4.4 or newer and this is $BASH_VERSION; on macOS: brew install bash"
fi

# --- configuration -----------------------------------------------------------------------------------------------

declare -A CONFIG=()
declare -a JOB_ENVIRONMENT=()
CONFIG_FILE=tpu.env

# KEY default pattern, and a description of valid values. A default of ! means that the key is required, - that it is empty.
NAME_PATTERN='^[a-z]([-a-z0-9]{0,37}[a-z0-9])?$'
NUMBER='^[1-9][0-9]{0,8}$'
read -r -d '' CONFIG_KEYS <<TABLE || true
PROJECT ! ^[a-z][-a-z0-9.:]*[a-z0-9]$ a project id
ZONE ! ^[a-z]+-[a-z]+[0-9]+-[a-z]$ a zone such as us-west4-a
NAME ! $NAME_PATTERN at most 39 of a-z, 0-9 and -, a letter first
ACCELERATOR_TYPE ! ^[a-z0-9]+-[0-9]+$ a type such as v5litepod-32
RUNTIME_VERSION ! ^[-a-z0-9.]+$ a version such as v2-alpha-tpuv5-lite
PROVISIONING on_demand ^(on_demand|spot|reserved)$ on_demand, spot or reserved
NUM_SLICES 1 $NUMBER a number, 1 or more
SERVICE_ACCOUNT - ^[^@[:space:]]+@[^@[:space:]]+$ an e-mail address
NETWORK - ^[-a-z0-9/.]+$ a network's name
SUBNETWORK - ^[-a-z0-9/.]+$ a subnetwork's name
SSH_VIA external ^(external|internal|iap)$ external, internal or iap
INSTALL ! ^(git\+(https|ssh)://.+@[0-9a-f]{40}|.*\.whl)$ git+https://HOST/PATH@COMMIT with the commit's 40 digits, or the path of a wheel
CONSTRAINTS - . a file
PYTHON 3.12 ^3\.(11|12)$ 3.11 or 3.12
MOUNT_BUCKET - ^[a-z0-9][-a-z0-9_.]*$ a bucket's name without gs://
MODEL_DIR ! ^/[^\'\"\\\\]+$ an absolute path without quotes and backslashes; a path on a bucket is below /gcs/BUCKET, with MOUNT_BUCKET=BUCKET
POLL_SECONDS 60 ^[0-9]{1,5}$ a number of seconds
STOP_GRACE_SECONDS 600 ^[0-9]{1,5}$ a number of seconds
MAX_LAUNCHES_WITHOUT_PROGRESS 10 $NUMBER a number, 1 or more
MAX_FAILURES_WITHOUT_PROGRESS 3 $NUMBER a number, 1 or more
GKE_VIA jobset ^(jobset|xpk)$ jobset or xpk
CLUSTER - $NAME_PATTERN at most 39 of a-z, 0-9 and -, a letter first
IMAGE - ^[^[:space:]]+$ an image's name
NAMESPACE default ^[-a-z0-9]+$ a namespace
K8S_SERVICE_ACCOUNT default ^[-a-z0-9.]+$ a service account's name
MACHINE_TYPE ct5lp-hightpu-4t ^[-a-z0-9]+$ a machine type
GKE_ACCELERATOR tpu-v5-lite-podslice ^[-a-z0-9]+$ an accelerator's label
TPU_TOPOLOGY 4x8 ^[0-9]+(x[0-9]+){1,2}$ a shape such as 4x8
CHIPS_PER_HOST 4 ^[1248]$ 1, 2, 4 or 8
MAX_RESTARTS 50 ^[0-9]{1,5}$ a number
TABLE

# Reads CONFIG_FILE into CONFIG. The file is plain text: nothing in it is executed or expanded.
read_config() {
  local key default pattern what line value number=0
  local -A default_of=() pattern_of=() what_of=()
  while read -r key default pattern what; do
    default_of[$key]=$default pattern_of[$key]=$pattern what_of[$key]=$what
  done <<<"$CONFIG_KEYS"

  [[ -f $CONFIG_FILE ]] ||
    usage_error "$CONFIG_FILE: no such file; copy tpu_scripts/tpu.env.example to this name and fill it in, or give --config=FILE"
  while IFS= read -r line || [[ -n $line ]]; do
    number=$((number + 1))
    line=${line%$'\r'}
    [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
    [[ $line =~ ^[[:space:]]*([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] ||
      usage_error "$CONFIG_FILE:$number: the line is not KEY=VALUE: $line"
    key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
    value=${value#"${value%%[![:space:]]*}"} value=${value%"${value##*[![:space:]]}"}
    if [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]]; then value=${BASH_REMATCH[1]}; fi
    if [[ $key == ENV_?* ]]; then
      JOB_ENVIRONMENT+=("${key#ENV_}=$value")
      continue
    fi
    [[ -v default_of[$key] ]] || usage_error "$CONFIG_FILE:$number: unknown key $key; tpu.env.example lists them"
    [[ ! -v CONFIG[$key] ]] || usage_error "$CONFIG_FILE:$number: $key is set twice"
    CONFIG[$key]=$value
    [[ -z $value || $value =~ ${pattern_of[$key]} ]] ||
      usage_error "$CONFIG_FILE:$number: $key must be ${what_of[$key]}, not $value"
  done <"$CONFIG_FILE"

  for key in "${!default_of[@]}"; do
    [[ -z ${CONFIG[$key]:-} ]] || continue
    case ${default_of[$key]} in
      '!') usage_error "$CONFIG_FILE: $key is missing; it must be ${what_of[$key]}" ;;
      '-') CONFIG[$key]='' ;;
      *) CONFIG[$key]=${default_of[$key]} ;;
    esac
  done
  if [[ ${CONFIG[MODEL_DIR]} == /gcs/* && ${CONFIG[MODEL_DIR]} != /gcs/${CONFIG[MOUNT_BUCKET]:-?}/* ]]; then
    usage_error "$CONFIG_FILE: MODEL_DIR is below /gcs but not in /gcs/MOUNT_BUCKET, and MOUNT_BUCKET is '${CONFIG[MOUNT_BUCKET]}'"
  fi
}

# Refuses empty values of keys that only some scripts need.
need() {
  local key
  for key in "$@"; do
    [[ -n ${CONFIG[$key]} ]] || usage_error "$CONFIG_FILE: $key is missing; $PROGRAM needs it"
  done
}

# --- options -----------------------------------------------------------------------------------------------------

declare -A OPTION=()   # options of the script: name -> default; 'false' makes it a switch
declare -a TRAIN_ARGS=()  # the arguments after --

# Reads --config, --dry_run, --yes, --help, the script's own options and the arguments after --; then the configuration.
start() {
  local argument name value
  exec 9>&1
  OPTION[dry_run]=false OPTION[yes]=false
  while (($#)); do
    argument=$1
    shift
    case $argument in
      --) TRAIN_ARGS=("$@"); break ;;
      --help | -h) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
      --config=*) CONFIG_FILE=${argument#*=} ;;
      --*)
        name=${argument#--} value=true
        [[ $name != *=* ]] || { value=${name#*=} name=${name%%=*}; }
        [[ -v OPTION[$name] ]] || usage_error "unknown option $argument; see $PROGRAM --help"
        if [[ ${OPTION[$name]} =~ ^(true|false)$ ]]; then
          [[ $value =~ ^(true|false)$ ]] || usage_error "--$name is a switch and takes no value, not $value"
        elif [[ $argument != *=* ]]; then
          usage_error "--$name needs a value: --$name=VALUE"
        fi
        OPTION[$name]=$value
        ;;
      *) usage_error "unexpected argument $argument; see $PROGRAM --help" ;;
    esac
  done
  ((${#TRAIN_ARGS[@]} == 0)) || [[ ${TAKES_TRAIN_ARGS:-false} == true ]] ||
    usage_error "takes no arguments after --"
  read_config
}

on() { [[ ${OPTION[$1]} == true ]]; }

# Prints the options to pass to another script.
same_options() {
  printf '%s\n' "--config=$CONFIG_FILE"
  ! on dry_run || printf '%s\n' --dry_run
  ! on yes || printf '%s\n' --yes
}

# --- commands ----------------------------------------------------------------------------------------------------

# Prints the words as one line that a shell parses into the same words.
quoted() {
  local word line=''
  for word in "$@"; do
    if [[ $word =~ ^[-A-Za-z0-9_./:=@%+,]+$ ]]; then line+=" $word"; else line+=" ${word@Q}"; fi
  done
  printf '%s' "${line# }"
}

# Runs a command that changes something; with --dry_run, prints it.
run() {
  if on dry_run; then say "$(quoted "$@")"; else "$@"; fi
}

# ask ANSWER COMMAND...: prints the output of a read-only command; with --dry_run, prints the command and uses ANSWER.
ask() {
  local answer=$1
  shift
  if on dry_run; then
    printf '%s\n' "$(quoted "$@")" >&9 # standard output carries the answer
    [[ -z $answer ]] || printf '%s\n' "$answer"
  else
    "$@"
  fi
}

# Asks for confirmation before a deletion; --yes answers yes. The question names what is deleted. Answers that do not
# come from a terminal count only with ANSWERS_FROM_STDIN=true.
confirm() {
  local answer
  if on yes || on dry_run; then
    say "$(on dry_run && printf "# ")$1 yes"
    return
  fi
  [[ -t 0 || ${ANSWERS_FROM_STDIN:-} == true ]] || usage_error "$1 There is no terminal to ask on; give --yes to confirm"
  read -r -p "$1 [y/N] " answer || answer=''
  [[ $answer =~ ^[Yy]([Ee][Ss])?$ ]] || fail "nothing was deleted"
}

need_tool() {
  on dry_run || command -v "$1" >/dev/null || fail "$1 is not installed; $2"
}

# Checks that gcloud is installed and has an account.
need_gcloud() {
  local account
  need_tool gcloud "see https://cloud.google.com/sdk/docs/install"
  on dry_run && return
  account=$(gcloud auth list --filter=status:ACTIVE '--format=value(account)' 2>/dev/null </dev/null) || account=''
  [[ -n $account ]] || fail "gcloud has no active account; run: gcloud auth login"
}

# --- the slice ---------------------------------------------------------------------------------------------------

QUEUED=(gcloud compute tpus queued-resources)
NODES=(gcloud compute tpus tpu-vm)

place() { printf '%s\n' "--project=${CONFIG[PROJECT]}" "--zone=${CONFIG[ZONE]}"; }

node_names() {
  local i
  if ((CONFIG[NUM_SLICES] == 1)); then
    say "${CONFIG[NAME]}"
  else
    for ((i = 0; i < CONFIG[NUM_SLICES]; i++)); do say "${CONFIG[NAME]}-$i"; done
  fi
}

# described ANSWER COMMAND...: prints the output of a describe command; ABSENT if the resource does not exist; NO_ANSWER,
# with gcloud's reason on stderr, if the request failed.
described() {
  local out errors status=0
  errors=$(mktemp)
  out=$(ask "$@" 2>"$errors" </dev/null) || status=$?
  if ((status)); then
    if grep -qiE 'not_found|not found' "$errors"; then
      out=ABSENT
    else
      note "$(grep -m1 -E 'ERROR' "$errors" || head -n1 "$errors")"
      out=NO_ANSWER
    fi
  fi
  rm -f "$errors"
  printf '%s\n' "${out:-NO_ANSWER}"
}

# Prints the state of the queued resource: ABSENT, NO_ANSWER, or the service's name of the state.
queued_state() {
  local where
  mapfile -t where < <(place)
  described "${1:-ACTIVE}" "${QUEUED[@]}" describe "${CONFIG[NAME]}" "${where[@]}" '--format=value(state.state)'
}

# Prints the service's reason for the failure of the queued resource, if there is one.
queued_reason() {
  local where
  mapfile -t where < <(place)
  ask '' "${QUEUED[@]}" describe "${CONFIG[NAME]}" "${where[@]}" '--format=value(state.failedData.error.message)' \
    2>/dev/null </dev/null || true
}

# Prints state, health and number of workers of a node, separated by blanks.
node_state() {
  local where
  mapfile -t where < <(place)
  described "READY HEALTHY ?" "${NODES[@]}" describe "$1" "${where[@]}" \
    '--format=value(state,health,networkEndpoints.len())' | tr '\t' ' '
}

# Fails unless the slice exists and is ready.
need_active() {
  local state node
  state=$(queued_state)
  case $state in
    ACTIVE) ;;
    ABSENT) fail "there is no queued resource ${CONFIG[NAME]} in ${CONFIG[ZONE]} of ${CONFIG[PROJECT]}; run create.sh" ;;
    *) fail "the queued resource ${CONFIG[NAME]} is $state, not ACTIVE; create.sh --wait waits for it" ;;
  esac
  while read -r node; do
    state=$(node_state "$node")
    [[ $state == READY* ]] || fail "node $node is ${state%% *}, not READY"
  done < <(node_names)
}

ssh_track() { if [[ ${CONFIG[SSH_VIA]} == iap ]]; then say alpha; fi; }

ssh_route() {
  case ${CONFIG[SSH_VIA]} in
    internal) say --internal-ip ;;
    iap) say --tunnel-through-iap ;;
  esac
}

# ssh_command NODE WORKER COMMAND...: sets SSH to the gcloud command that runs COMMAND on a worker ('all' for all).
# The words of COMMAND arrive unchanged, independent of their characters.
ssh_command() {
  local node=$1 worker=$2 track route where
  shift 2
  mapfile -t track < <(ssh_track)
  mapfile -t route < <(ssh_route)
  mapfile -t where < <(place)
  SSH=(gcloud "${track[@]}" compute tpus tpu-vm ssh "$node" "${where[@]}" "--worker=$worker" "${route[@]}" --quiet
    "--command=$(quoted "$@")")
}

# on_workers WORKER COMMAND...: runs a command on one worker, or on 'all' workers, of every node.
on_workers() {
  local worker=$1 node
  shift
  while read -r node <&3; do
    ssh_command "$node" "$worker" "$@"
    run "${SSH[@]}" </dev/null || fail "node $node: a worker failed; its output is above"
  done 3< <(node_names)
}

# copy_to_workers TARGET FILE...: copies files or folders to the same place below the home folder of every worker.
copy_to_workers() {
  local target=$1 node track route where
  shift
  mapfile -t track < <(ssh_track)
  mapfile -t route < <(ssh_route)
  mapfile -t where < <(place)
  while read -r node <&3; do
    run gcloud "${track[@]}" compute tpus tpu-vm scp "$@" "$node:$target" "${where[@]}" --worker=all "${route[@]}" \
      --recurse --quiet </dev/null || fail "node $node: could not copy $*"
  done 3< <(node_names)
}

# --- the job -----------------------------------------------------------------------------------------------------

WORKER_SCRIPT=jaxalign_worker.sh
WORKER=(bash "$WORKER_SCRIPT")

# Prints one line for each worker that answered: NODE HOST STATE CODE SECONDS. STATE is running, exited, lost or absent.
# gcloud prints messages about every connection; they are shown only after a failure.
worker_states() {
  local node line messages
  messages=$(mktemp)
  while read -r node <&3; do
    ssh_command "$node" all "${WORKER[@]}" status "${CONFIG[NAME]}"
    { ask "JOB_STATUS worker-0 running - 0" "${SSH[@]}" </dev/null 2>"$messages" ||
      { grep -v 'Attempting to connect' "$messages" | tail -n 3 >&2 || true; }; } | tr -d '\r' |
      while read -r line; do
        [[ $line != JOB_STATUS\ * ]] || say "$node ${line#JOB_STATUS }"
      done
  done 3< <(node_names)
  rm -f "$messages"
}

# Prints the number of workers in the descriptions of the nodes; ? if the request failed.
expected_workers() {
  local node count total=0
  while read -r node <&3; do
    read -r _ _ count < <(node_state "$node") || true
    [[ ${count:-} =~ ^[0-9]+$ ]] || { say '?'; return; }
    total=$((total + count))
  done 3< <(node_names)
  say "$total"
}

first_node() { node_names | { read -r node; cat >/dev/null; say "$node"; }; }

# Prints the gs:// address of a path on the mounted bucket.
on_bucket() { printf 'gs://%s' "${1#/gcs/}"; }

# last_metrics STATE: prints the end of metrics.jsonl; from the slice while it exists, because the bucket may be behind.
last_metrics() {
  local file="${CONFIG[MODEL_DIR]%/}/metrics.jsonl"
  if [[ $1 == ACTIVE ]]; then
    ssh_command "$(first_node)" 0 "${WORKER[@]}" metrics "$file"
    ask '' "${SSH[@]}" 2>/dev/null </dev/null | tr -d '\r' || true
  else
    ask '' gcloud storage cat "--range=-20000" "$(on_bucket "$file")" "--project=${CONFIG[PROJECT]}" 2>/dev/null </dev/null || true
  fi
}

# Prints the last line of each split of a metrics.jsonl on standard input.
last_of_each_split() {
  awk -F'"split": "' 'NF > 1 { split($2, name, "\""); last[name[1]] = $0; any = 1 }
    END { for (which in last) print "  " last[which]; if (!any) print "  none yet" }'
}

# Prints the newest step with a checkpoint; -1 if there is none or the request failed.
latest_checkpoint() {
  local folder="${CONFIG[MODEL_DIR]%/}/checkpoints" listing
  if [[ $folder == /gcs/* ]]; then
    listing=$(ask '' gcloud storage ls "$(on_bucket "$folder")/" "--project=${CONFIG[PROJECT]}" 2>/dev/null </dev/null || true)
  else
    ssh_command "$(first_node)" 0 "${WORKER[@]}" checkpoints "$folder"
    listing=$(ask '' "${SSH[@]}" 2>/dev/null </dev/null || true)
  fi
  printf '%s\n' "$listing" | tr -d '\r' | sed -nE 's#^(.*/)?([0-9]+)/?$#\2#p' | sort -n | tail -n1 | grep . || say -1
}
