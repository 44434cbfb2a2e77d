#!/usr/bin/env bash
# fetch.sh - tests tools/fetch.sh with curl and with wget against a small local server that answers as the hub does, and
# tools/to_safetensors.py where torch and transformers are installed. Needs Python, and curl or wget; no internet.
#
#   bash tests/fetch.sh          the last line is "N passed, N failed", and the exit status 1 if any failed
#
# PYTHON names the interpreter (python3).
# shellcheck disable=SC2317 # the blocks are called by check
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
python=${PYTHON:-python3}
passed=0 failed=0 skipped=0
unset HF_TOKEN HF_ENDPOINT http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy

skip() {
  echo "skipped: $*"
  skipped=$((skipped + 1))
}

finish() {
  if [ $skipped -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
  else
    echo "$passed passed, $failed failed"
  fi
  [ $failed -eq 0 ]
  exit
}

if ! command -v "$python" > /dev/null; then
  skip "there is no $python"
  finish
fi
scratch=$(mktemp -d) || exit 1
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$scratch"' EXIT

# ---- blocks ----

start_server() {
  [ -z "$server" ] || kill "$server"
  rm -f "$scratch/port"
  "$python" tests/hub_server.py "$scratch" &
  server=$!
  disown $server
  for _ in $(seq 100); do
    [ -s "$scratch/port" ] && break
    sleep 0.1
  done
  read -r hub < "$scratch/port" || exit 1
}

# A PATH with what fetch.sh may use, and one of the two programs.
make_path() { # curl or wget
  local tool
  rm -rf "${scratch:?}/bin"
  mkdir "$scratch/bin"
  for tool in bash awk cat cp cut df grep mkdir mktemp mv rm sed sha1sum sha256sum shasum sleep sort tail tr wc "$1"; do
    command -v "$tool" > /dev/null && ln -s "$(command -v "$tool")" "$scratch/bin/$tool"
  done
}

# Runs fetch.sh in the empty directory `here`; leaves `status`, and what it said in out and err.
fetch() { # arguments; variables NAME=VALUE may stand first
  local variables=()
  while [[ ${1-} == *=* && $1 != -* ]]; do
    variables+=("$1")
    shift
  done
  : > "$scratch/requests"
  (cd "$here" && env -i PATH="$scratch/bin" HOME="$scratch" TMPDIR="$scratch/tmp" HF_ENDPOINT="http://127.0.0.1:$hub" \
    ${variables[@]+"${variables[@]}"} bash "$root/tools/fetch.sh" "$@") > "$scratch/out" 2> "$scratch/err"
  status=$?
}

fresh() {
  rm -rf "$scratch/here" "$scratch/tmp"
  mkdir "$scratch/here" "$scratch/tmp"
  here=$scratch/here
}

check() { # words, command ...
  local words=$1
  shift
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "failed ($program): $words: $*"
    sed 's/^/    /' "$scratch/out" "$scratch/err" | head -n 5
  fi
}

is() { [ "$1" = "$2" ]; }
says() { grep -qF -- "$1" "$scratch/err"; }
requested() { grep -q "$1" "$scratch/requests"; }
not() { ! "$@"; }
holds() { # directory, names: it holds these and nothing else
  local directory=$1
  shift
  is "$(cd "$here/$directory" && find . -mindepth 1 | sed 's/^..//' | sort)" \
    "$([ $# = 0 ] || printf '%s\n' "$@" | sort)"
}
same() { # model, file, directory
  cmp -s "$scratch/published/$1/$2" "$here/$3/$2"
}
succeeds() { # model, directory, names: the files are there as published, and nothing else, here or elsewhere
  local model=$1 directory=$2 name
  shift 2
  check "$model: exit status" is $status 0
  check "$model: files" holds "$directory" "$@"
  for name in "$@"; do check "$model: $name" same "$model" "$name" "$directory"; done
  check "$model: temporary files" is "$(ls -A "$scratch/tmp")" ""
}
refuses() { # words, what stderr must say: one line, nothing on stdout
  check "$1: exit status" is $status 1
  check "$1: one sentence" is "$(grep -c '^error: ' "$scratch/err")" 1
  check "$1: message" says "$2"
  check "$1: stdout" is "$(cat "$scratch/out")" ""
  check "$1: temporary files" is "$(ls -A "$scratch/tmp")" ""
}

base="config.json vocab.txt tokenizer_config.json README.md"

# ---- tests ----

test_models() {
  fresh
  fetch org/plain
  # shellcheck disable=SC2086 # lists of names are split on purpose
  succeeds org/plain plain $base model.safetensors
  check "no token was made up" not requested Bearer
  check "only what is wanted" not requested 'training_args\|onnx\|run\.sh\|exe\|pytorch_model\|quo'
  check "the result" is "$(cat "$scratch/out")" "plain: 5 files, 300041 bytes, 5 downloaded"
  fetch org/plain
  check "a second run" is "$(cat "$scratch/out")" "plain: 5 files, 300041 bytes, 0 downloaded"
  check "a second run downloads nothing" is "$(wc -l < "$scratch/requests" | tr -d ' ')" 1
  fresh
  fetch bare --output-dir "some where/else"
  # shellcheck disable=SC2086
  for name in $base model.safetensors; do check "bare: $name" same org/plain "$name" "some where/else"; done
  fetch org/sharded --revision main
  # shellcheck disable=SC2086
  succeeds org/sharded sharded $base model.safetensors.index.json model-00001-of-00002.safetensors \
    model-00002-of-00002.safetensors
  fetch org/pickle
  # shellcheck disable=SC2086
  succeeds org/pickle pickle $base pytorch_model.bin
  check "pickle: what converts it" says "python3 tools/to_safetensors.py pickle"
  fetch org/adapter
  succeeds org/adapter adapter adapter_config.json adapter_model.safetensors
  check "adapter: its base" says "an adapter for org/plain"
  fetch org/revision --revision refs/pr/1
  # shellcheck disable=SC2086
  succeeds org/revision revision $base model.safetensors
  check "revision: slashes" requested '/resolve/refs%2Fpr%2F1/config.json'
}

test_token() {
  fresh
  fetch org/gated
  refuses "no token" "set HF_TOKEN to a token"
  fetch HF_TOKEN=hf_wrongTOKEN org/gated
  refuses "wrong token" "the server answers 403 to the token in HF_TOKEN"
  check "the token is not printed" not grep -q hf_wrongTOKEN "$scratch/err"
  check "nothing was made" is "$(ls -A "$here")" ""
  fetch HF_TOKEN=hf_testTOKEN org/gated
  # shellcheck disable=SC2086
  succeeds org/gated gated $base model.safetensors
  check "the hub sees the token" requested "^hub .*Bearer hf_testTOKEN"
  check "the other host was asked" requested "^cdn"
  check "the other host does not see the token" not requested "^cdn .*Bearer"
  check "the token is not printed" not grep -q hf_testTOKEN "$scratch/err" "$scratch/out"
  fetch HF_TOKEN='x" --output /tmp/y' org/gated
  refuses "no token at all" "HF_TOKEN holds characters that no token has"
}

test_resume() {
  fresh
  mkdir "$here/plain"
  head -c 1234 "$scratch/published/org/plain/model.safetensors" > "$here/plain/model.safetensors.part"
  head -c 4 "$scratch/published/org/plain/config.json" > "$here/plain/config.json.part"
  fetch org/plain
  # shellcheck disable=SC2086
  succeeds org/plain plain $base model.safetensors
  check "goes on where it was" requested '^cdn .*model.safetensors.* bytes=1234- '
  check "goes on where it was" requested '^hub /cache/.*config.json.* bytes=4- '
  for bytes in 1234 300000 300001 400000; do # a part of something else
    fresh
    mkdir "$here/plain"
    head -c $bytes /dev/zero > "$here/plain/model.safetensors.part"
    fetch org/plain
    # shellcheck disable=SC2086
    succeeds org/plain plain $base model.safetensors
  done
  fresh
  fetch org/cut # breaks off, the first two times
  # shellcheck disable=SC2086
  succeeds org/cut cut $base model.safetensors
  check "says so" says "model.safetensors: the connection broke at 150000 of 300001 bytes"
  check "says so" says "model.safetensors: the connection broke at 225000 of 300001 bytes"
  fresh
  mkdir "$here/no-range"
  head -c 1234 "$scratch/published/org/plain/model.safetensors" > "$here/no-range/model.safetensors.part"
  fetch org/no-range
  # shellcheck disable=SC2086
  succeeds org/no-range no-range $base model.safetensors
  fresh
  mkdir "$here/stuck"
  head -c 1234 "$scratch/published/org/stuck/model.safetensors" > "$here/stuck/model.safetensors.part"
  fetch org/stuck
  refuses "always cut" "model.safetensors: the download broke off at 1234 of 300001 bytes: run the command again"
  # shellcheck disable=SC2086
  check "always cut: no half file" holds stuck $base model.safetensors.part
}

test_wrong() {
  fresh
  fetch org/wrong
  refuses "wrong bytes" "model.safetensors: what came is not the published file"
  # shellcheck disable=SC2086
  check "wrong bytes: deleted" holds wrong $base
  fetch org/wrong-small
  refuses "wrong bytes in a small file" "config.json: what came is not the published file"
  check "wrong bytes in a small file: deleted" holds wrong-small
  fetch org/longer
  refuses "too many bytes" "model.safetensors: what came is not the published file"
  fetch org/shorter
  refuses "too few bytes" "model.safetensors: the download broke off at 1000 of 300001 bytes"
  fetch org/evil
  # shellcheck disable=SC2086
  succeeds org/evil evil $base model.safetensors
  check "nothing elsewhere" not [ -e "$here/../evil" ]
  check "nothing elsewhere" not [ -e "$here/evil/vocab.json" ]
  fetch org/lost-shard
  refuses "a shard is missing" "names a file model-00002-of-00002.safetensors that the model does not have"
  fetch org/no-weights
  refuses "no weights" "org/no-weights has no weights that finetune.h reads"
  fetch org/no-config
  refuses "no configuration" "org/no-config has no config.json"
  fetch org/nothing
  refuses "no such model" "org/nothing: not found (404)"
  fetch org/plain --revision v2
  refuses "no such revision" "with a revision v2"
  fetch org/busy
  refuses "busy" "org/busy: the server answers 503: try again later"
  fetch org/loop
  refuses "loop" "redirections"
  fetch org/html
  refuses "HTML" "gives no list of files"
  fetch org/half-list
  refuses "half a list" "gives no list of files"
  fetch org/other-scheme
  refuses "file:" 'redirects to "file:///etc/passwd"'
}

test_files_that_differ() {
  fresh
  mkdir "$here/plain"
  echo mine > "$here/plain/config.json"
  fetch org/plain
  refuses "another file" "plain/config.json is not the published file: --overwrite replaces it"
  check "is left alone" is "$(cat "$here/plain/config.json")" mine
  check "nothing is downloaded" holds plain config.json
  fetch org/plain --overwrite
  # shellcheck disable=SC2086
  succeeds org/plain plain $base model.safetensors
  printf x >> "$here/plain/model.safetensors"
  fetch --overwrite org/plain
  # shellcheck disable=SC2086
  succeeds org/plain plain $base model.safetensors
  check "only the one that differs" is "$(cat "$scratch/out")" "plain: 5 files, 300041 bytes, 1 downloaded"
  if [ -c /dev/full ]; then
    rm "$here/plain/model.safetensors"
    ln -s /dev/full "$here/plain/model.safetensors.part"
    fetch org/plain
    refuses "disk full" "model.safetensors.part cannot be written: is the disk full?"
  fi
}

test_usage() {
  local name
  fresh
  for name in "" "../x" "a/b/c" "a b" "/x" "x/" "a/../b" "-x" ".." "a/.x" 'a;b' 'http://x/y'; do
    fetch "$name"
    check "usage: \"$name\"" is $status 2
  done
  fetch
  check "usage: nothing" is $status 2
  fetch org/plain --revision
  check "usage: no value" is $status 2
  fetch org/plain --revision ../x
  check "usage: revision" is $status 2
  fetch org/plain org/cut
  check "usage: two models" is $status 2
  fetch --help
  check "usage: help" is $status 0
  check "usage: no requests" is "$(ls -A "$here")" ""
  fetch HF_ENDPOINT=http://127.0.0.1:1 org/plain
  refuses "no network" "org/plain: http://127.0.0.1:1 cannot be reached: "
  fetch HF_ENDPOINT=http://no-such-host.invalid/ org/plain
  refuses "no such host" "org/plain: http://no-such-host.invalid cannot be reached: "
  fetch HF_ENDPOINT=file:///etc org/plain
  refuses "no address" "HF_ENDPOINT is no address"
}

for program in curl wget; do
  if ! command -v $program > /dev/null; then
    skip "there is no $program"
    continue
  fi
  start_server
  make_path $program
  test_models
  test_token
  test_resume
  test_wrong
  test_files_that_differ
  test_usage
done

if "$python" -c 'import torch, transformers, safetensors' 2> /dev/null; then
  "$python" tests/to_safetensors.py > "$scratch/out"
  sed '$d' "$scratch/out"
  if [[ $(tail -n 1 "$scratch/out") =~ ^([0-9]+)\ passed,\ ([0-9]+)\ failed$ ]]; then
    passed=$((passed + BASH_REMATCH[1]))
    failed=$((failed + BASH_REMATCH[2]))
  else
    echo "failed: tests/to_safetensors.py gave no total"
    failed=$((failed + 1))
  fi
else
  skip "tools/to_safetensors.py: $python has no torch, transformers and safetensors"
fi
finish
