#!/usr/bin/env bash
# Starts `jaxalign train` on every worker of the slice, detached, and reports the workers that did not start.
# The arguments after -- are those of `jaxalign train`; MODEL_DIR comes from the configuration.
# Gin files on this machine are uploaded with the files that they include; other names are jaxalign's own files.
# The same command resumes a stopped job; a running job is not changed.
#
# usage: tpu_scripts/launch.sh [--config=tpu.env] [--dry_run] -- --gin_file=FILE [--gin.NAME=VALUE] ...

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=tpu_scripts/gin_files.sh
source "$HERE/gin_files.sh"
TAKES_TRAIN_ARGS=true
start "$@"
train_command
need_gcloud
need_active

job=${CONFIG[NAME]}
copy_to_workers "$WORKER_SCRIPT" "$HERE/worker.sh"
if ((${#GIN_FILES[@]})); then
  staged=$(mktemp -d)
  trap 'rm -rf "$staged"' EXIT
  for target in "${!GIN_FILES[@]}"; do
    mkdir -p "$staged/files/$(dirname "$target")"
    cp "${GIN_FILES[$target]}" "$staged/files/$target"
    ! on dry_run || say "# $(quoted cp "${GIN_FILES[$target]}" "$staged/files/$target")"
  done
  on_workers all mkdir -p "jaxalign/jobs/$job"
  copy_to_workers "jaxalign/jobs/$job/" "$staged/files"
fi
[[ -z ${CONFIG[MOUNT_BUCKET]} ]] || on_workers all "${WORKER[@]}" mount "${CONFIG[MOUNT_BUCKET]}"
on_workers all "${WORKER[@]}" start "$job" "${JOB_ENVIRONMENT[@]}" -- "${COMMAND[@]}"

# If one worker does not start, all others wait for it.
on dry_run || sleep "$((CONFIG[POLL_SECONDS] < 5 ? CONFIG[POLL_SECONDS] : 5))"
states=$(worker_states)
expected=$(expected_workers)
running=$(grep -c ' running ' <<<"$states" || true)
on dry_run || say "job $job: $running of $expected workers are running it"
bad=$(grep -v ' running ' <<<"$states" || true)
[[ -z $bad ]] || fail "not running it: $(awk '{printf "%s%s (%s%s)", sep, $2, $3, ($4 == "-" ? "" : " with code " $4); sep = ", "}' <<<"$bad"); see watch.sh"
[[ $expected == '?' || $running == "$expected" ]] || fail "$((expected - running)) workers did not answer"
