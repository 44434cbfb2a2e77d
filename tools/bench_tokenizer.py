#!/usr/bin/env python3
"""How fast finetune.h tokenizes, against the tokenizers package, on one thread each.

    python3 tools/bench_tokenizer.py DIR FILE [--rounds N] [--column NAME]

FILE is a CSV with a column of texts (--column, default review, text or sentence) or plain lines. The two take turns, so
that a machine that is busy is as busy for both; the fastest round of each counts. Needs a C compiler, and finetune.h in
the current directory.
"""

import argparse
import csv
import gzip
import os
import subprocess
import sys
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from tokenizer_references import load_directory  # noqa: E402

PROGRAM = r"""
#define FT_IMPLEMENTATION
#include "finetune.h"
/* DIR FILE: encodes the texts of FILE (each ends with a zero byte) once to warm up and once for the clock. */
int main(int argc, char **argv) {
  ft_context_options options;
  ft_context *context;
  ft_tokenizer *tokenizer;
  ft_encoding encoding;
  size_t size = 0;
  char *texts, *text;
  double start = 0;
  int round;
  long long tokens = 0;
  memset(&options, 0, sizeof options);
  memset(&encoding, 0, sizeof encoding);
  options.threads = 1;
  context = ft_context_create(&options);
  tokenizer = argc > 2 ? ft_tokenizer_load(context, argv[1]) : NULL;
  texts = tokenizer ? ft__file_read(context, argv[2], &size) : NULL;
  if (!texts) return fprintf(stderr, "%s\n", ft_error_message(context)), 1;
  for (round = 0; round < 2; ++round) {
    start = ft_seconds();
    for (text = texts, tokens = 0; text < texts + size; text += strlen(text) + 1) {
      if (ft_tokenizer_encode(context, tokenizer, text, strlen(text), NULL, 0, NULL, &encoding) != FT_OK) return 1;
      tokens += encoding.count;
    }
  }
  printf("%.9f %lld\n", ft_seconds() - start, tokens);
  return 0;
}
"""


def read_texts(path, column):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        if ".csv" not in path:
            return file.read().split("\n")
        csv.field_size_limit(1 << 30)
        rows = csv.DictReader(file)
        name = column or next(name for name in ("review", "text", "sentence") if name in rows.fieldnames)
        return [row[name] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--column")
    arguments = parser.parse_args()
    texts = [text.replace("\0", " ") for text in read_texts(arguments.file, arguments.column)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    tokenizer = load_directory(arguments.directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    with tempfile.TemporaryDirectory() as folder:
        source, program, data = (os.path.join(folder, name) for name in ("bench.c", "bench", "texts"))
        with open(source, "w") as file:
            file.write(PROGRAM)
        with open(data, "wb") as file:
            file.write(b"".join(text.encode() + b"\0" for text in texts))
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-w", "-I", ".", source, "-o", program, "-lm"], check=True)
        best = {"finetune.h": 1e9, "encode": 1e9, "encode_batch_fast": 1e9}
        tokens = {}
        for _ in range(arguments.rounds):
            answer = subprocess.run([program, arguments.directory, data], stdout=subprocess.PIPE, check=True).stdout.split()
            best["finetune.h"] = min(best["finetune.h"], float(answer[0]))
            tokens["finetune.h"] = int(answer[1])
            start = time.perf_counter()
            tokens["encode"] = sum(len(tokenizer.encode(text).ids) for text in texts)
            best["encode"] = min(best["encode"], time.perf_counter() - start)
            start = time.perf_counter()
            encodings = tokenizer.encode_batch_fast(texts)
            best["encode_batch_fast"] = min(best["encode_batch_fast"], time.perf_counter() - start)
            tokens["encode_batch_fast"] = sum(len(encoding.ids) for encoding in encodings)
    for name, seconds in best.items():
        print(f"{name}: {len(texts) / seconds:.0f} texts/s, {megabytes / seconds:.1f} MB/s, {tokens[name]} tokens")
    print(f"ratio to the faster of the package: {min(best['encode'], best['encode_batch_fast']) / best['finetune.h']:.1f}")


if __name__ == "__main__":
    main()
