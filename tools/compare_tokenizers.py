#!/usr/bin/env python3
"""Compares finetune.h with the tokenizers package: ids, type ids and offsets.

    python3 tools/compare_tokenizers.py DIR FILE [--random N] [--sweep] [--class NAME]

Every line of FILE (split at \\n only) is encoded by both with the tokenizer in DIR. --random N then encodes N random pairs of
lines, cut-outs of lines and random characters, each with a maximum length and a truncation strategy of its own, with and
without special tokens. --sweep encodes every code point, alone and between letters, spaces and marks. Prints how many calls
differ, and the first differences; the exit status is 1 if any does. DIR without tokenizer.json is read by the class of
transformers that --class names (default: BertTokenizer with vocab.txt, RobertaTokenizer with vocab.json, else the class is
built as transformers builds it from a sentencepiece model, without the packages that it needs for that). Needs a C compiler,
and finetune.h in the current directory.
"""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from tokenizer_references import decode, describe, load_directory  # noqa: E402

PROGRAM = r"""
#define FT_IMPLEMENTATION
#include "finetune.h"
#include <stdio.h>
#include <stdlib.h>
/* DIR FILE: for each request of FILE, five int32 (max_length, truncation, special, length, pair length or -1) and the
   texts, a line "id,type,begin,end ..." or "error". */
int main(int argc, char **argv) {
  ft_context *context = ft_context_create(NULL);
  ft_tokenizer *tokenizer = argc > 2 ? ft_tokenizer_load(context, argv[1]) : NULL;
  size_t size = 0;
  char *bytes = tokenizer ? ft__file_read(context, argv[2], &size) : NULL, *at = bytes;
  ft_encoding encoding;
  memset(&encoding, 0, sizeof encoding);
  if (!bytes) return fprintf(stderr, "%s\n", ft_error_message(context)), 1;
  while (at < bytes + size) {
    int32_t head[5];
    ft_encode_options options;
    int64_t i;
    memcpy(head, at, sizeof head);
    at += sizeof head;
    memset(&options, 0, sizeof options);
    options.max_length = head[0];
    options.truncation = (ft_truncation)head[1];
    options.no_special_tokens = !head[2];
    options.offsets = true;
    if (ft_tokenizer_encode(context, tokenizer, at, (size_t)head[3], head[4] < 0 ? NULL : at + head[3],
                            head[4] < 0 ? 0 : (size_t)head[4], &options, &encoding) == FT_OK)
      for (i = 0; i < encoding.count; ++i) {
        printf("%s%d,%d,%d,%d", i ? " " : "", encoding.ids[i], encoding.token_types[i], encoding.begin[i],
               encoding.end[i]);
      }
    else
      printf("error");
    printf("\n");
    at += head[3] + (head[4] < 0 ? 0 : head[4]);
  }
  return 0;
}
"""


def read_lines(path):
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def build(folder):
    source, program = os.path.join(folder, "encode.c"), os.path.join(folder, "encode")
    with open(source, "w") as file:
        file.write(PROGRAM)
    flags = os.environ.get("CFLAGS", "-O1").split()
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-w", "-I", ".", source, "-o", program, "-lm"], check=True)
    return program


def ours(program, directory, calls):
    with tempfile.NamedTemporaryFile() as file:
        for text, pair, length, truncation, special in calls:
            file.write(struct.pack("<5i", length, truncation, special, len(text), -1 if pair is None else len(pair)))
            file.write(text + (pair or b""))
        file.flush()
        result = subprocess.run([program, directory, file.name], stdout=subprocess.PIPE, check=True)
    return result.stdout.decode().split("\n")[:-1]


def theirs(tokenizer, calls):
    answer, set_to = [], None
    for text, pair, length, truncation, special in calls:
        if set_to != (length, truncation):
            set_to = (length, truncation)
            tokenizer.no_truncation()
            if length:
                tokenizer.enable_truncation(length, strategy=("longest_first", "only_first", "only_second")[truncation])
        first, first_map = decode(text)
        second, second_map = decode(pair) if pair is not None else (None, None)
        try:
            encoding = tokenizer.encode(first, second, add_special_tokens=bool(special))
            answer.append(" ".join(",".join(map(str, token)) for token in describe(encoding, (first_map, second_map))))
        except BaseException as error:  # truncation that cannot be, or a panic of the package
            answer.append("error" if "runcation" in str(error) or "assertion" in str(error) else f"error: {error}")
    tokenizer.no_truncation()
    return answer


def compare(what, program, directory, tokenizer, calls):
    a, b = ours(program, directory, calls), theirs(tokenizer, calls)
    if len(a) != len(b):
        sys.exit(f"{what}: {len(a)} answers came back for {len(b)}")
    differ = [index for index in range(len(a)) if a[index] != b[index]]
    print(f"{what}: {len(differ)} of {len(a)} calls differ", flush=True)
    for index in differ[:3]:
        x, y = a[index].split(" "), b[index].split(" ")
        at = next((i for i, (p, q) in enumerate(zip(x, y)) if p != q), min(len(x), len(y)))
        print(f"  call {index}: {calls[index]!r}"[:600])
        for name, words in (("finetune.h", x), ("tokenizers", y)):
            print(f"    {name}, from token {max(0, at - 2)}: {' '.join(words[max(0, at - 2) : at + 4])}")
    return len(differ)


def random_text(generator, lines):
    kind = generator.randrange(6)
    if kind < 3:
        return generator.choice(lines)
    if kind == 3:  # cut anywhere, within characters too
        line = generator.choice(lines)
        begin = generator.randrange(len(line) + 1)
        return line[begin : begin + generator.randrange(60)]
    out = b""
    limits = (0x80, 0x250, 0x370, 0x600, 0xE00, 0x1200, 0x2100, 0x3100, 0xFFFF, 0x10FFFF)
    special = [b"<mask>", b"[MASK]", b" <mask> ", b"<s>", b"</s>", b"[SEP]", b"\xff", b"\xe2\x96\x81", b"``", b"''", b"\r\n",
               b"'s", b"'ll", b" ", b"  ", b"\n", b"\xcc\x81", b"\xe2\x80\x8d", b"\xc2\xa9", b"\xe3\x80\x80"]
    for _ in range(generator.randrange(40)):
        if generator.random() < 0.3:
            out += generator.choice(special)
        else:
            code = generator.randrange(generator.choice(limits))
            out += (chr(code) if not 0xD800 <= code < 0xE000 else "a").encode()
    return out


def random_calls(generator, lines, count):
    calls = []
    for _ in range(count):
        pair = random_text(generator, lines) if generator.random() < 0.8 else None
        length = generator.choice((0, 0, 4, 5, 6, 7, 8, 11, 16, 25, 63, 128, generator.randrange(4, 200)))
        calls.append((random_text(generator, lines), pair, length, generator.randrange(3), int(generator.random() < 0.8)))
    return calls


def sweep_calls():
    calls = []
    for code in range(0x110000):
        if not 0xD800 <= code < 0xE000:
            c = chr(code)
            for text in (c, f"a{c}b", f" {c} {c}{c}\u0301 1{c}1"):
                calls.append((text.encode(), None, 0, 0, 1))
    return calls


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("file")
    parser.add_argument("--random", type=int, default=0, metavar="N")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--class", dest="kind")
    arguments = parser.parse_args()
    tokenizer = load_directory(arguments.directory, arguments.kind)
    lines = read_lines(arguments.file)
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        run = lambda what, calls: compare(what, program, arguments.directory, tokenizer, calls)  # noqa: E731
        differ = run("lines", [(line, None, 0, 0, 1) for line in lines])
        if arguments.random:
            differ += run("random pairs", random_calls(random.Random(arguments.seed), lines, arguments.random))
        if arguments.sweep:
            differ += run("code points", sweep_calls())
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
