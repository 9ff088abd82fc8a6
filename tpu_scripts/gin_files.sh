# shellcheck shell=bash
# Builds the command on a worker from the arguments after --, and collects the gin files to upload from this machine.

declare -A GIN_FILES=() # path below the job's folder -> path on this machine
declare -a COMMAND=()   # jaxalign train ...

# Adds a local gin file and the files that it includes. Sets TARGET, the name of the file for the job.
add_gin_file() {
  local file=$1 included
  case $file in
    /* | ../* | */../*) TARGET=uploaded/$(basename "$file") ;;
    *) TARGET=${file#./} ;;
  esac
  if [[ -v GIN_FILES[$TARGET] ]]; then
    [[ ${GIN_FILES[$TARGET]} -ef $file ]] || usage_error "two gin files would be uploaded as $TARGET: ${GIN_FILES[$TARGET]} and $file"
    return
  fi
  GIN_FILES[$TARGET]=$file
  while IFS= read -r included; do
    # gin searches the current folder first; other names are jaxalign's own files.
    if [[ -f $included ]]; then
      case $included in
        /* | ../* | */../*) usage_error "$file includes $included, a path that does not exist on a worker; include the file by a path below this folder" ;;
      esac
      local target=$TARGET
      add_gin_file "$included"
      TARGET=$target
    fi
  done < <(sed -nE "s/^[[:space:]]*include[[:space:]]+['\"]([^'\"]+)['\"].*/\1/p" "$file")
}

# Sets COMMAND and GIN_FILES from TRAIN_ARGS and MODEL_DIR.
train_command() {
  local argument files file sent
  local -a rest=("${TRAIN_ARGS[@]}")
  ((${#rest[@]})) || usage_error "give the arguments of jaxalign train after --, for example: -- --gin_file=experiments/dro_paper/t5_xl_dro_v.gin"
  COMMAND=(jaxalign train)
  while ((${#rest[@]})); do
    argument=${rest[0]}
    rest=("${rest[@]:1}")
    case $argument in
      train) usage_error "the arguments after -- start after 'jaxalign train'" ;;
      --gin.MODEL_DIR | --gin.MODEL_DIR=* | --MODEL_DIR | --MODEL_DIR=* | --model_dir | --model_dir=*) usage_error "MODEL_DIR is set in $CONFIG_FILE, not after --" ;;
      --gin_search_paths*) usage_error "--gin_search_paths names folders, which are not uploaded; give the gin files by their paths" ;;
      --gin_file) ((${#rest[@]})) || usage_error "--gin_file needs a value"
        files=${rest[0]} rest=("${rest[@]:1}") ;;
      --gin_file=*) files=${argument#*=} ;;
      *) COMMAND+=("$argument"); continue ;;
    esac
    sent=''
    while IFS= read -r -d , file; do
      TARGET=$file
      [[ ! -f $file ]] || add_gin_file "$file"
      sent+=,$TARGET
    done <<<"$files,"
    COMMAND+=("--gin_file=${sent#,}")
  done
  COMMAND+=("--gin.MODEL_DIR='${CONFIG[MODEL_DIR]}'")
}
