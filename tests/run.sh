#!/usr/bin/env bash
# run.sh - builds and runs every test program: tests/*.c, the example xor, and three units linked into one program.
#
#   bash tests/run.sh            all of them; the last line is "N passed, N failed", and the exit status 1 if any failed
#   bash tests/run.sh NAME ...   some, e.g. model training
#
# CC (default cc), CFLAGS (default -O2 -std=c99) and FT_TEST_FLAGS (appended, e.g. -DFT_NAIVE) choose the build; CC may be
# a C++ compiler: CC="g++ -x c++ -std=c++11" CFLAGS=-O2. FT_TEST_JOBS programs are built and run at once (default 2). With
# FT_TEST_QUICK=1 the one large model is left out, for builds that are many times slower.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Sanitizers: a refused allocation is NULL, as it is elsewhere; tests look at that.
export ASAN_OPTIONS=allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}
export TSAN_OPTIONS=allocator_may_return_null=1${TSAN_OPTIONS:+:$TSAN_OPTIONS}

# A failing program's output, at most this many lines of it.
shown_lines=60

sources_of() {
  case $1 in
    xor) echo examples/xor.c ;;
    two_units) echo tests/two_units_a.c tests/two_units_b.c tests/two_units_static.c ;;
    *) echo "tests/$1.c" ;;
  esac
}

# Builds and runs one program; leaves a file NAME.passed or NAME.failed, and prints a line.
run_one() {
  local name=$1 log=$2/$1.log start=$SECONDS result=failed limit=
  command -v timeout > /dev/null && limit="timeout 900"
  # shellcheck disable=SC2046,SC2086 # flags and file names are split on purpose
  if ${CC:-cc} ${CFLAGS:--O2 -std=c99} ${FT_TEST_FLAGS-} $(sources_of "$name") -o "$2/$name" -lm > "$log" 2>&1; then
    $limit "$2/$name" >> "$log" 2>&1 && result=passed || echo "exit status $?" >> "$log"
  fi
  touch "$2/$name.$result"
  {
    printf '%-6s %-12s %4d s  %s\n' "$result" "$name" $((SECONDS - start)) "$(tail -n 1 "$log")"
    if [ $result = failed ]; then tail -n $shown_lines "$log"; else grep '^skipped: ' "$log"; fi
  } > "$2/$name.report"
  cat "$2/$name.report" # in one piece, as programs end side by side
}

if [ "$1" = --one ]; then
  run_one "$3" "$2"
  exit 0
fi

directory=$(mktemp -d) || exit 1
trap 'rm -rf "$directory"' EXIT
names=("$@")
if [ $# -eq 0 ]; then
  for source in tests/*.c; do
    name=$(basename "$source" .c)
    case $name in two_units_*) ;; *) names+=("$name") ;; esac
  done
  names+=(xor two_units)
fi
printf '%s\n' "${names[@]}" | xargs -n 1 -P "${FT_TEST_JOBS:-2}" bash tests/run.sh --one "$directory"

count() { find "$directory" -name "*.$1" | wc -l | tr -d ' '; }
skipped=$(cat "$directory"/*.log | sed -n 's/^tests.*: [0-9]* checks passed, [0-9]* failed, \([0-9]*\) skipped$/\1/p' |
  awk '{ n += $1 } END { print n + 0 }')
passed=$(count passed)
failed=$((${#names[@]} - passed))
if [ "$skipped" -gt 0 ]; then
  echo "$passed passed, $failed failed, $skipped skipped"
else
  echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ]
