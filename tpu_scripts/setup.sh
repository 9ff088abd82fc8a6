#!/usr/bin/env bash
# Installs Python and jaxalign on every worker of the slice, and mounts the bucket if MOUNT_BUCKET names one.
# Workers that are already set up with the same INSTALL, PYTHON and CONSTRAINTS are not changed.
#
# usage: tpu_scripts/setup.sh [--config=tpu.env] [--dry_run]

# shellcheck source=tpu_scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
start "$@"
need_gcloud
need_active

requirement=${CONFIG[INSTALL]}
constraints=''
copy_to_workers "$WORKER_SCRIPT" "$HERE/worker.sh"
if [[ $requirement == *.whl ]]; then
  [[ -f $requirement ]] || usage_error "$CONFIG_FILE: INSTALL: there is no wheel $requirement; build one with: python -m build --wheel"
  copy_to_workers "$(basename "$requirement")" "$requirement"
  requirement=$(basename "$requirement")
fi
if [[ -n ${CONFIG[CONSTRAINTS]} ]]; then
  [[ -f ${CONFIG[CONSTRAINTS]} ]] || usage_error "$CONFIG_FILE: CONSTRAINTS: there is no file ${CONFIG[CONSTRAINTS]} here"
  constraints=jaxalign_constraints.txt
  copy_to_workers "$constraints" "${CONFIG[CONSTRAINTS]}"
fi
on_workers all "${WORKER[@]}" setup "${CONFIG[PYTHON]}" "$requirement" ${constraints:+"$constraints"}
[[ -z ${CONFIG[MOUNT_BUCKET]} ]] || on_workers all "${WORKER[@]}" mount "${CONFIG[MOUNT_BUCKET]}"
