#!/usr/bin/env python3
"""Compares `ft tokenize` with the tokenizers package, line by line.

    python3 tools/compare_tokenizers.py DIR FILE [--pair FILE2] [--max-length N] [--random N] [--ft ./ft]

Every line of FILE (split at \\n only) is encoded by both with the tokenizer in DIR; with --pair together with the same
line of FILE2. --random N then encodes N random pairs of lines of FILE at each of several maximum lengths. Prints how many
lines differ, and the first differences; the exit status is 1 if any does. DIR without tokenizer.json is read by
transformers.BertTokenizer.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def read_lines(path):
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def load(directory):
    path = os.path.join(directory, "tokenizer.json")
    if os.path.exists(path):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_padding()
        return tokenizer
    from transformers import BertTokenizer

    return BertTokenizer.from_pretrained(directory)._tokenizer


def ours(program, directory, lines, pairs, max_length):
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "tokenize", directory]
        for name, content in (("lines", lines), ("pairs", pairs)):
            if content is None:
                continue
            path = os.path.join(folder, name)
            with open(path, "wb") as file:
                file.write(b"".join(line + b"\n" for line in content))
            command += [path] if name == "lines" else ["--pair", path]
        if max_length:
            command += ["--max-length", str(max_length)]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    answer = result.stdout.decode().split("\n")[:-1]
    return [[int(word) for word in line.split()] for line in answer]


def theirs(tokenizer, lines, pairs, max_length):
    tokenizer.no_truncation()
    if max_length:
        tokenizer.enable_truncation(max_length)
    texts = [line.decode("utf-8", "replace") for line in lines]
    if pairs is not None:
        texts = list(zip(texts, (line.decode("utf-8", "replace") for line in pairs)))
    answer = []
    for first in range(0, len(texts), 1000):
        answer += [encoding.ids for encoding in tokenizer.encode_batch(texts[first : first + 1000])]
    return answer


def compare(what, arguments, tokenizer, lines, pairs, max_length):
    a = ours(arguments.ft, arguments.directory, lines, pairs, max_length)
    b = theirs(tokenizer, lines, pairs, max_length)
    if len(a) != len(b):
        sys.exit(f"{what}: {len(a)} lines came back for {len(b)}")
    differ = [index for index in range(len(a)) if a[index] != b[index]]
    print(f"{what}: {len(differ)} of {len(a)} lines differ")
    for index in differ[:3]:
        at = next((i for i, (x, y) in enumerate(zip(a[index], b[index])) if x != y), min(len(a[index]), len(b[index])))
        print(f"  line {index + 1}: {lines[index][:200]!r}")
        if pairs is not None:
            print(f"  with: {pairs[index][:200]!r}")
        for name, ids in (("ft", a[index]), ("tokenizers", b[index])):
            shown = ids[max(0, at - 3) : at + 5]
            print(f"    {name}, from token {max(0, at - 3)}: {shown} {[tokenizer.id_to_token(i) for i in shown]}")
    return len(differ)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("file")
    parser.add_argument("--pair", help="second texts, line by line")
    parser.add_argument("--max-length", type=int, default=0)
    parser.add_argument("--random", type=int, default=0, metavar="N", help="also N random pairs at several lengths")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ft", default="./ft", help="the program")
    arguments = parser.parse_args()
    tokenizer = load(arguments.directory)
    lines = read_lines(arguments.file)
    pairs = read_lines(arguments.pair) if arguments.pair else None
    if pairs is not None and len(pairs) != len(lines):
        sys.exit(f"{arguments.pair} has {len(pairs)} lines, {arguments.file} has {len(lines)}")
    differ = compare("lines", arguments, tokenizer, lines, pairs, arguments.max_length)
    generator = random.Random(arguments.seed)
    for max_length in (0, 3, 4, 5, 8, 16, 63, 128, 512) if arguments.random else ():
        first = [generator.choice(lines) for _ in range(arguments.random)]
        second = [generator.choice(lines) for _ in range(arguments.random)]
        differ += compare(f"random pairs, max_length {max_length or 'none'}", arguments, tokenizer, first, second,
                          max_length)
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
