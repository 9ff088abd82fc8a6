#!/usr/bin/env bash
# Starts `jaxalign train` on the cluster, as a JobSet or through xpk. The cluster restarts the job after a preemption or
# the loss of a machine, up to MAX_RESTARTS times; exit code 2, a mistake of the user, ends it.
#
# usage: tpu_scripts/gke/launch.sh [--config=tpu.env] [--dry_run] -- --gin_file=FILE [--gin.NAME=VALUE] ...

# shellcheck source=tpu_scripts/gke/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/gin_files.sh
source "$HERE/gin_files.sh"
TAKES_TRAIN_ARGS=true
start "$@"
train_command
need IMAGE
need_cluster
[[ ${CONFIG[MODEL_DIR]} == /gcs/* ]] ||
  usage_error "$CONFIG_FILE: MODEL_DIR must be on the mounted bucket, below /gcs: a pod's own disk is deleted with the pod"
machines=$(hosts)

# Kubernetes expands $(NAME) in a command as a variable and $$ to one $.
escaped() {
  local dollar='$'
  printf '%s' "${1//$dollar/$dollar$dollar}"
}

# --- xpk ---------------------------------------------------------------------------------------------------------

if [[ ${CONFIG[GKE_VIA]} == xpk ]]; then
  ((${#GIN_FILES[@]} == 0)) ||
    usage_error "xpk uploads no files; put ${GIN_FILES[*]} into the image, or use GKE_VIA=jobset"
  mapfile -t where < <(xpk_place)
  command=(xpk workload create "${where[@]}" "--workload=${CONFIG[NAME]}" "--tpu-type=${CONFIG[ACCELERATOR_TYPE]}"
    "--num-slices=${CONFIG[NUM_SLICES]}" "--docker-image=${CONFIG[IMAGE]}" "--max-restarts=${CONFIG[MAX_RESTARTS]}"
    # By default xpk restarts only after 42 and 127 to 255; 75 and 76 are jaxalign's codes, and 1 is Python's for a defect.
    "--restart-on-exit-codes=1,75,76" "--termination-grace-period-seconds=${CONFIG[STOP_GRACE_SECONDS]}")
  case ${CONFIG[PROVISIONING]} in
    spot) command+=(--spot) ;;
    on_demand) command+=(--on-demand) ;;
  esac
  for variable in "${JOB_ENVIRONMENT[@]}"; do command+=("--env=$(escaped "$variable")"); done
  # xpk forwards SIGTERM to the shell that it starts for the command; exec replaces this shell by our process.
  command+=("--command=$(escaped "exec $(quoted "${COMMAND[@]}")")")
  run "${command[@]}" </dev/null || fail "xpk did not start ${CONFIG[NAME]}; its reason is above"
  exit
fi

# --- JobSet ------------------------------------------------------------------------------------------------------

# A YAML string. Newlines would need another style, and nothing here has a use for them.
yaml_string() {
  local quote="'"
  [[ $1 != *$'\n'* ]] || usage_error "a value has a line break in it: ${1@Q}"
  printf "'%s'" "${1//$quote/$quote$quote}"
}

# Prints the template with its placeholders filled in. A placeholder alone on a line stands for any number of lines.
manifest() {
  local word variable key line target index=0 fuse=false
  local -a arguments=() environment=() mounts=() volumes=() spot_selector=() spot_toleration=()
  for word in "${COMMAND[@]}"; do arguments+=("- $(yaml_string "$(escaped "$word")")"); done
  for variable in "${JOB_ENVIRONMENT[@]}"; do
    environment+=("- name: ${variable%%=*}" "  value: $(yaml_string "$(escaped "${variable#*=}")")")
  done
  if [[ ${CONFIG[PROVISIONING]} == spot ]]; then
    spot_selector=("cloud.google.com/gke-spot: 'true'")
    spot_toleration=("- key: cloud.google.com/gke-spot" "  operator: Equal" "  value: 'true'" "  effect: NoSchedule")
  fi
  if ((${#GIN_FILES[@]})); then
    # File by file: a mounted folder could not be written to, and the job may keep a cache there.
    while IFS= read -r target; do
      mounts+=("- name: gin" "  mountPath: $(yaml_string "/job/$target")" "  subPath: $(yaml_string "$target")")
    done < <(gin_targets)
    volumes+=("- name: gin" "  configMap:" "    name: $(config_map)" "    items:")
    while IFS= read -r target; do
      volumes+=("      - key: file-$index" "        path: $(yaml_string "$target")")
      index=$((index + 1))
    done < <(gin_targets)
  fi
  if [[ -n ${CONFIG[MOUNT_BUCKET]} ]]; then
    fuse=true
    mounts+=("- name: bucket" "  mountPath: /gcs/${CONFIG[MOUNT_BUCKET]}")
    volumes+=("- name: bucket" "  csi:" "    driver: gcsfuse.csi.storage.gke.io" "    volumeAttributes:"
      "      bucketName: ${CONFIG[MOUNT_BUCKET]}" 
      "      mountOptions: implicit-dirs,file-system:rename-dir-limit:200000,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0")
  fi
  while IFS= read -r line; do
    case $line in
      *@COMMAND@) indented "$line" "${arguments[@]}" ;;
      *@ENVIRONMENT@) indented "$line" "${environment[@]}" ;;
      *@VOLUME_MOUNTS@) indented "$line" "${mounts[@]}" ;;
      *@VOLUMES@) indented "$line" "${volumes[@]}" ;;
      *@SPOT_SELECTOR@) indented "$line" "${spot_selector[@]}" ;;
      *@SPOT_TOLERATION@) indented "$line" "${spot_toleration[@]}" ;;
      *)
        line=${line/@HOSTS@/"$machines"}
        line=${line/@FUSE@/"$fuse"}
        for key in NAME NAMESPACE MAX_RESTARTS NUM_SLICES K8S_SERVICE_ACCOUNT STOP_GRACE_SECONDS GKE_ACCELERATOR \
          TPU_TOPOLOGY CHIPS_PER_HOST; do
          line=${line/@$key@/"${CONFIG[$key]}"}
        done
        [[ $line != *@IMAGE@ ]] || line=${line/@IMAGE@/"$(yaml_string "${CONFIG[IMAGE]}")"}
        printf '%s\n' "$line"
        ;;
    esac
  done <"$HERE/gke/jobset.yaml.template"
}

# indented PLACEHOLDER LINE...: the lines, moved in as far as the placeholder.
indented() {
  local indent=${1%%@*} line
  shift
  for line in "$@"; do printf '%s%s\n' "$indent" "$line"; done
}

gin_targets() { printf '%s\n' "${!GIN_FILES[@]}" | LC_ALL=C sort; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
manifest >"$folder/jobset.yaml"
if on dry_run; then
  say "# $folder/jobset.yaml:"
  sed 's/^/# /' "$folder/jobset.yaml"
fi

use_cluster
state=$(described ABSENT "${KUBECTL[@]}" get jobset "${CONFIG[NAME]}" '--output=jsonpath={.metadata.name}')
case $state in
  ABSENT) ;;
  NO_ANSWER) fail "could not query the JobSet ${CONFIG[NAME]}; does the cluster have JobSet? gke/create.sh installs it" ;;
  *) say "the JobSet ${CONFIG[NAME]} exists already; gke/watch.sh shows it, gke/delete.sh deletes it"; exit ;;
esac
if ((${#GIN_FILES[@]})); then
  command=("${KUBECTL[@]}" create configmap "$(config_map)" --dry-run=client --output=yaml)
  index=0
  while IFS= read -r target; do
    command+=("--from-file=file-$index=${GIN_FILES[$target]}")
    index=$((index + 1))
  done < <(gin_targets)
  if on dry_run; then
    say "$(quoted "${command[@]}") > $(quoted "$folder/gin.yaml")"
  else
    "${command[@]}" >"$folder/gin.yaml"
  fi
  run "${KUBECTL[@]}" apply -f "$folder/gin.yaml"
fi
run "${KUBECTL[@]}" create -f "$folder/jobset.yaml"
