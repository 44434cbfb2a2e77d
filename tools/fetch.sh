#!/usr/bin/env bash
# fetch.sh - download a published model from huggingface.co into a directory that finetune.h loads.
#
# Needs curl or wget, and sha256sum, shasum or openssl. The server's list of the model's files gives the size and the
# checksum of each: SHA-256 for large files, for small ones git's SHA-1 of "blob SIZE\0" and the content. A file is
# downloaded as NAME.part, beginning where an earlier run was cut off, and gets its name once both are right.
usage="usage: bash tools/fetch.sh ORG/NAME [--revision R] [--output-dir DIR] [--overwrite]

Downloads what finetune.h reads of a model: configuration, tokenizer, weights (pytorch_model.bin only where there are
no safetensors), adapter. What is there already and right is not downloaded again.

  ORG/NAME          as on the hub, e.g. sentence-transformers/all-MiniLM-L6-v2; NAME alone for those that have no ORG
  --revision R      branch, tag or commit (main)
  --output-dir DIR  where the files are put (./NAME)
  --overwrite       replace files in DIR that are not the published ones

environment: HF_TOKEN     a token, for models that are gated or private; only HF_ENDPOINT gets to see it
             HF_ENDPOINT  another server (https://huggingface.co)"

export LC_ALL=C

# ---- errors ----

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

say() { printf '%s\n' "$*" >&2; }

wrong_usage() {
  printf '%s\n\n%s\n' "$1" "$usage" >&2
  exit 2
}

# An answer that is no success, as a sentence.
fail_status() { # what was asked for
  local page=$endpoint/$model
  case $status in
    401 | 403)
      if [ -n "$token" ]; then
        fail "$1: the server answers $status to the token in HF_TOKEN: the model does not exist, or the token's owner" \
          "must first accept its conditions at $page"
      fi
      fail "$1: the server answers $status: the model does not exist, or it is gated or private. Accept its" \
        "conditions at $page and set HF_TOKEN to a token from $endpoint/settings/tokens"
      ;;
    404) fail "$1: not found (404): is there a model $page with a revision $revision?" ;;
    429 | 5??) fail "$1: the server answers $status: try again later" ;;
    '') fail "$1: $(origin_of "$url") cannot be reached: $reason" ;;
    *) fail "$1: unexpected answer $status from $(origin_of "$url")" ;;
  esac
}

# ---- requests ----

origin_of() { # URL -> https://host:port
  local rest=${1#*://}
  printf '%s\n' "${1%%://*}://${rest%%[/?#]*}"
}

# One request; what comes is added to FILE, from the byte on where it ends. Sets `result` (0 if the program was
# content), `status`, and from the headers `location` and `next_page`; `reason` is the program's own message. It follows
# no redirections: that is done below, since not every version of these programs keeps the token from other hosts.
transfer() { # URL FILE
  local config=$scratch/plain log=$scratch/log
  if [ -n "$token" ] && [ "$(origin_of "$1")" = "$(origin_of "$endpoint")" ]; then config=$scratch/with_token; fi
  : > "$scratch/headers"
  : > "$log"
  if [ "$program" = curl ]; then
    curl --silent --show-error --globoff --fail --location --max-redirs 0 --proto '=http,https' --connect-timeout 30 \
      --speed-limit 1 --speed-time 60 --config "$config" --dump-header "$scratch/headers" --continue-at - \
      --output "$2" "$1" 2> "$log"
    result=$?
  else
    WGETRC=$config wget --server-response --continue --max-redirect=0 --tries=1 --timeout=60 --progress=dot:giga \
      --output-file="$log" --output-document="$2" -- "$1"
    result=$?
    cp "$log" "$scratch/headers"
  fi
  reason=$(grep . "$log" | tail -n 1 | tr -d '\000-\037')
  # The last answer's: a proxy may have given one before.
  tr -d '\r' < "$scratch/headers" | awk '
    { sub(/^ */, ""); name = tolower($1) }
    /^HTTP\/[0-9.]+ [0-9]/ { status = $2; location = next_page = "" }
    name == "location:" { location = $2 }
    name == "link:" && /rel="next"/ { next_page = $2; gsub(/[<>;,]/, "", next_page) }
    END { print status; print location; print next_page }' > "$scratch/answer"
  { read -r status && read -r location && read -r next_page; } < "$scratch/answer"
}

# Where a redirection leads from $url, as a full address.
follow() { # LOCATION
  local old=$url
  case $1 in
    http://* | https://*) url=$1 ;;
    //*) url=${url%%://*}:$1 ;;
    /*) url=$(origin_of "$url")$1 ;;
    *) fail "$url: the server redirects to \"$1\"" ;;
  esac
  case $old,$url in https:*,http:*) fail "$old: the server redirects to an address without encryption, $url" ;; esac
}

# As transfer, over redirections. Only a success writes to FILE.
request() { # URL FILE
  local hop
  url=$1
  for hop in 1 2 3 4 5 6 7 8; do
    transfer "$url" "$2"
    case $status in 301 | 302 | 303 | 307 | 308) ;; *) return ;; esac
    follow "$location"
  done
  fail "$1: more than $hop redirections"
}

# ---- the list of files ----

# A page of JSON, [{"type": "file", "path": "config.json", "size": 612, "oid": "1c53", "lfs": {"oid": "77", "size": 8}},
# ...], as lines "PATH SIZE KIND CHECKSUM" of the files in the top directory. grep cuts it into tokens, one a line.
parse_list() {
  grep -oE '"([^"\\]|\\.)*"|[][{}:,]|[^][{}:,"[:space:]]+' | awk '
    function text(name) { # a member that is a string, without its quotes
      return name in value && value[name] ~ /^"/ ? substr(value[name], 2, length(value[name]) - 2) : ""
    }
    function is_hex(word, digits) { return length(word) == digits && word !~ /[^0-9a-f]/ }
    function put(word) { # depth 1 is the array, 2 a file, 3 its member "lfs"
      if (depth == 2) value[key[2]] = word
      if (depth == 3 && key[2] == "\"lfs\"") value["lfs" key[3]] = word
    }
    function list(   size, path) {
      path = text("\"path\"")
      size = "lfs\"oid\"" in value ? value["lfs\"size\""] : value["\"size\""]
      if (text("\"type\"") != "file" || path == "" || path ~ /[^A-Za-z0-9._-]/) return
      if (size == "" || size ~ /[^0-9]|^0./ || length(size) > 15) return
      if (is_hex(text("lfs\"oid\""), 64)) print path, size, "sha256", text("lfs\"oid\"")
      else if (!("lfs\"oid\"" in value) && is_hex(text("\"oid\""), 40)) print path, size, "git", text("\"oid\"")
    }
    NR == 1 && $0 != "[" { exit }
    $0 == "{" || $0 == "[" {
      if (++depth == 2) split("", value)
      key[depth] = waiting = ""
      next
    }
    $0 == ":" { key[depth] = waiting; waiting = ""; next }
    $0 == "," || $0 == "}" || $0 == "]" {
      if (waiting != "") put(waiting)
      waiting = ""
      if ($0 == ",") next
      if (depth == 2 && $0 == "}") list()
      if (--depth == 0) { complete = 1; exit }
      next
    }
    { waiting = $0 }
    END { exit !complete }'
}

read_list() {
  local page=0 next=$endpoint/api/models/$model"/tree/${revision//\//%2F}?recursive=1"
  : > "$scratch/list"
  while [ -n "$next" ]; do
    [ $((page += 1)) -le 100 ] || fail "$model: the list of files has more than 100 pages"
    rm -f "$scratch/page"
    request "$next" "$scratch/page"
    [ "$status" = 200 ] || fail_status "$model"
    [ $result = 0 ] || fail "$model: the list of files broke off: $reason"
    parse_list < "$scratch/page" >> "$scratch/list" || fail "$model: $(origin_of "$url") gives no list of files"
    next=
    if [ -n "$next_page" ]; then
      follow "$next_page"
      next=$url
    fi
  done
}

# The list's line for a file, without its name: SIZE KIND CHECKSUM.
listed() { # NAME
  awk -v name="$1" '$1 == name { print $2, $3, $4; found = 1; exit } END { exit !found }' "$scratch/list"
}

# Adds those of the files that the model has to `files`.
want() { # NAME ...
  local name
  for name in "$@"; do listed "$name" > /dev/null && files+=("$name"); done
}

want_shards() { # model .safetensors
  local name
  while read -r name _; do
    case $name in "$1"-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9]"$2") files+=("$name") ;; esac
  done < "$scratch/list"
}

# What to download: these names and no others, whatever the server lists.
choose_files() {
  files=()
  want config.json tokenizer.json tokenizer_config.json special_tokens_map.json vocab.txt vocab.json merges.txt \
    spiece.model sentencepiece.bpe.model added_tokens.json README.md adapter_config.json adapter_model.safetensors
  if listed model.safetensors > /dev/null; then
    want model.safetensors
  elif listed model.safetensors.index.json > /dev/null; then
    want model.safetensors.index.json
    want_shards model .safetensors
  elif listed adapter_model.safetensors > /dev/null; then
    : # an adapter has no weights of its own
  elif listed pytorch_model.bin > /dev/null; then
    want pytorch_model.bin
  elif listed pytorch_model.bin.index.json > /dev/null; then
    want pytorch_model.bin.index.json
    want_shards pytorch_model .bin
  else
    fail "$model has no weights that finetune.h reads: no model.safetensors, no pytorch_model.bin, no" \
      "adapter_model.safetensors"
  fi
  listed config.json > /dev/null || listed adapter_config.json > /dev/null ||
    fail "$model has no config.json: it is no model that finetune.h reads"
}

# Every shard that an index names must be among the files.
check_index() { # INDEX
  local name
  case " ${files[*]} " in *" $1 "*) ;; *) return ;; esac
  grep -oE '"[^"]*\.(safetensors|bin)"' "$directory/$1" | tr -d '"' | sort -u > "$scratch/shards"
  while read -r name; do
    case " ${files[*]} " in *" $name "*) ;; *) fail "$1 names a file $name that the model does not have" ;; esac
  done < "$scratch/shards"
}

# ---- files ----

size_of() { if [ -f "$1" ]; then wc -c < "$1" | tr -d ' '; else echo 0; fi; }

# The SHA-256 or SHA-1 of what comes in, in hexadecimal.
digest() { # 256 or 1
  if command -v "sha$1sum" > /dev/null; then
    "sha$1sum" | cut -d ' ' -f 1
  elif command -v shasum > /dev/null; then
    shasum -a "$1" | cut -d ' ' -f 1
  else
    openssl dgst "-sha$1" | sed 's/.* //'
  fi
}

# Whether a file has the size and the checksum that the list gives.
right() { # FILE SIZE KIND CHECKSUM
  local sum
  [ -f "$1" ] && [ "$(size_of "$1")" = "$2" ] || return 1
  if [ "$3" = sha256 ]; then
    sum=$(digest 256 < "$1")
  else
    sum=$({ printf 'blob %s\0' "$2" && cat "$1"; } | digest 1)
  fi
  [ "$sum" = "$4" ]
}

# Splits `files` into those that are right and `missing`; counts the bytes to come.
look_around() {
  local name size kind sum
  missing=() wanted_bytes=0 total_bytes=0
  for name in "${files[@]}"; do
    read -r size kind sum <<< "$(listed "$name")"
    total_bytes=$((total_bytes + size))
    right "$directory/$name" "$size" "$kind" "$sum" && continue
    [ ! -e "$directory/$name" ] || { [ $overwrite = yes ] && [ -f "$directory/$name" ]; } ||
      fail "$directory/$name is not the published file: --overwrite replaces it, --output-dir chooses another directory"
    missing+=("$name")
    wanted_bytes=$((wanted_bytes + size - $(size_of "$directory/$name.part")))
  done
}

free_kib() { df -Pk "$directory" 2> /dev/null | awk 'NR == 2 && $4 ~ /^[0-9]+$/ { print $4 }'; }

check_space() {
  local free
  free=$(free_kib)
  [ -z "$free" ] || [ $((wanted_bytes / 1024)) -le "$free" ] ||
    fail "$directory: the disk is too full: $((wanted_bytes / 1048576)) MiB are to come, $((free / 1024)) MiB are free"
}

# Says every second how far a file is, for people who watch.
watch_part() { # NAME SIZE
  while sleep 1; do
    printf '\r%s: %d of %d MB' "$1" $(($(size_of "$directory/$1.part") / 1000000)) $(($2 / 1000000)) >&2
  done
}

stop_watching() {
  [ -n "$watcher" ] || return 0
  kill "$watcher"
  wait "$watcher" 2> /dev/null
  watcher=
  printf '\r\033[K' >&2
}

# Downloads to NAME.part until it is complete; a connection that breaks is taken up again as long as bytes come.
complete_part() { # NAME SIZE
  local part=$directory/$1.part before after attempt
  for attempt in 1 2 3 4 5; do
    before=$(size_of "$part")
    if [ "$before" -gt "$2" ]; then rm -f "$part" && before=0; fi
    [ "$before" = 0 ] || resumed=yes
    [ "$before" = "$2" ] && [ -f "$part" ] && return
    if [ -t 2 ] && [ "$2" -gt 4000000 ]; then
      watch_part "$1" "$2" &
      watcher=$!
    fi
    request "$endpoint/$model/resolve/${revision//\//%2F}/$1" "$part"
    stop_watching
    case $program$result in
      curl23 | wget3) fail "$part cannot be written: is the disk full? $(free_kib) KiB are free. ($reason)" ;;
      curl33) rm -f "$part" && continue ;; # the server sends whole files only
    esac
    if [ "$status" = 416 ]; then rm -f "$part" && continue; fi # its file ends before
    case $status in 200 | 206) ;; *) fail_status "$model: $1" ;; esac
    [ -e "$part" ] || : > "$part" # an empty file
    after=$(size_of "$part")
    [ "$after" -ge "$2" ] && return
    [ "$after" -gt "$before" ] || break
    say "$1: the connection broke at $after of $2 bytes"
    sleep "$attempt"
  done
  fail "$1: the download broke off at $(size_of "$part") of $2 bytes: run the command again to go on. ($reason)"
}

download() { # NAME
  local part=$directory/$1.part size kind sum attempt resumed
  read -r size kind sum <<< "$(listed "$1")"
  say "$1: $size bytes"
  for attempt in 1 2; do
    resumed=no
    complete_part "$1" "$size"
    if right "$part" "$size" "$kind" "$sum"; then
      mv -f "$part" "$directory/$1" || fail "$directory/$1 cannot be written"
      return
    fi
    rm -f "$part"
    if [ $resumed = no ] || [ $attempt = 2 ]; then break; fi
    say "$1: the part that was there does not belong to this file: once more from its start"
  done
  fail "$1: what came is not the published file (wrong size or checksum, $kind $sum expected): it was deleted"
}

# ---- main ----

model='' revision=main directory='' overwrite=no watcher=''
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help)
      printf '%s\n' "$usage"
      exit 0
      ;;
    --revision | --output-dir)
      [ -n "${2-}" ] || wrong_usage "$1 needs a value"
      if [ "$1" = --revision ]; then revision=$2; else directory=$2; fi
      shift
      ;;
    --overwrite) overwrite=yes ;;
    -*) wrong_usage "unknown option $1" ;;
    *)
      [ -z "$model" ] || wrong_usage "one model at a time: $model or $1"
      model=$1
      ;;
  esac
  shift
done
word='[A-Za-z0-9_][A-Za-z0-9._-]*'
[ -n "$model" ] || wrong_usage "which model?"
[[ $model =~ ^($word/)?$word$ && $model != *..* ]] || wrong_usage "\"$model\" is no model's name: ORG/NAME or NAME"
[[ $revision =~ ^$word(/$word)*$ && $revision != *..* ]] || wrong_usage "\"$revision\" is no revision's name"
[ -n "$directory" ] || directory=${model##*/}
case $directory in -*) directory=./$directory ;; esac

endpoint=${HF_ENDPOINT:-https://huggingface.co}
endpoint=${endpoint%/}
[[ $endpoint =~ ^https?://[^/@[:space:]]+(/[^[:space:]]*)?$ ]] || fail "HF_ENDPOINT is no address: $endpoint"
token=${HF_TOKEN-}
[[ $token =~ ^[A-Za-z0-9_.-]*$ ]] || fail "HF_TOKEN holds characters that no token has"
if command -v curl > /dev/null; then
  program=curl
elif command -v wget > /dev/null; then
  program=wget
else
  fail "neither curl nor wget is installed"
fi
command -v sha256sum > /dev/null || command -v shasum > /dev/null || command -v openssl > /dev/null ||
  fail "none of sha256sum, shasum and openssl is installed, to check what is downloaded"

# Both programs take the token from a file: arguments can be seen by other users.
umask_before=$(umask)
umask 077
scratch=$(mktemp -d) || fail "there is no temporary directory"
trap 'stop_watching; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM HUP
: > "$scratch/plain"
[ $program = curl ] || cat "${WGETRC:-${HOME-}/.wgetrc}" > "$scratch/plain" 2> /dev/null
if [ -n "$token" ]; then
  cp "$scratch/plain" "$scratch/with_token"
  if [ $program = curl ]; then
    printf 'header = "Authorization: Bearer %s"\n' "$token" >> "$scratch/with_token"
  else
    printf '\nheader = Authorization: Bearer %s\n' "$token" >> "$scratch/with_token"
  fi
fi
umask "$umask_before"

read_list
choose_files
mkdir -p -- "$directory" || fail "directory $directory cannot be created"
look_around
check_space
for name in ${missing[@]+"${missing[@]}"}; do download "$name"; done
check_index model.safetensors.index.json
check_index pytorch_model.bin.index.json
for name in "${files[@]}"; do
  case $name in
    pytorch_model.bin | pytorch_model.bin.index.json)
      say "the weights are a pickle, which finetune.h does not read: python3 tools/to_safetensors.py $directory" ;;
    adapter_config.json)
      base=$(grep -oE '"base_model_name_or_path": *"[A-Za-z0-9._/-]+"' "$directory/$name" | cut -d '"' -f 4)
      [ -z "$base" ] || say "an adapter for $base, which is a model of its own to download"
      ;;
  esac
done
echo "$directory: ${#files[@]} files, $total_bytes bytes, ${#missing[@]} downloaded"
