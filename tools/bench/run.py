#!/usr/bin/env python3
"""finetune.h beside PyTorch, ONNX Runtime and the tokenizers package: builds `ft`, sets up the peers in a virtual
environment, runs the programs in turns for several rounds, and prints the ratios with their spread as a Markdown table.
Nothing else may run meanwhile.

    python3 tools/bench/run.py --short sentences.csv --long reviews.csv --tokenizer bert-base-uncased [--minilm DIR]

--short and --long are CSV files of sentences and of reviews (columns text, review, ...); --tokenizer a directory with
BERT's uncased tokenizer; --minilm a directory with a MiniLM encoder (default: random weights of its size). DistilBERT and
BERT have their published sizes and random weights: a step costs the same. A ratio is one of real tokens per second, medians
over the rounds; the spread is the lowest and highest ratio of a single round.
"""
import argparse
import json
import operator
import os
import re
import statistics
import subprocess
import sys
import tempfile
import venv

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ["torch", "transformers", "peft", "onnx", "onnxruntime"]

DISTILBERT = dict(model_type="distilbert", dim=768, n_layers=6, n_heads=12, hidden_dim=3072, activation="gelu",
                  vocab_size=30522, max_position_embeddings=512, dropout=0.1, attention_dropout=0.1,
                  seq_classif_dropout=0.2)
BERT = dict(model_type="bert", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
            hidden_act="gelu", vocab_size=30522, max_position_embeddings=512, type_vocab_size=2,
            hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
MINILM = dict(BERT, hidden_size=384, num_hidden_layers=6, intermediate_size=1536)

# name, model, data, arguments of both, of ours, of the peer's, ratio asked for; a peer "ft" is this library again
TRAIN, SCORE = ["--mode", "train"], ["--mode", "predict"]
LONG = ["--max-length", "512", "--steps", "6"]
ONE = ["--batch-size", "1", "--steps", "50"]
WORK = [
    ("DistilBERT step, sentences, float32", "distilbert", "short", TRAIN, [], [], 3.5),
    ("DistilBERT step, sentences, bfloat16", "distilbert", "short", TRAIN + ["--dtype", "bf16"], [], [], 2.5),
    ("DistilBERT step, reviews of 512, float32", "distilbert", "long", TRAIN + LONG, [], [], 4.5),
    ("the same, peer padded to 512", "distilbert", "long", TRAIN + LONG, [], ["--pad", "max"], 5),
    ("DistilBERT step, reviews of 512, bfloat16", "distilbert", "long", TRAIN + LONG + ["--dtype", "bf16"], [], [], 3.5),
    ("LoRA r=8 step, DistilBERT, sentences, float32", "distilbert", "short", ["--mode", "lora"], [], [], 3.5),
    ("MiniLM step, sentences, float32", "minilm", "short", TRAIN, [], [], 4),
    ("MiniLM step, sentences, bfloat16", "minilm", "short", TRAIN + ["--dtype", "bf16"], [], [], 3),
    ("BERT-base step, batch 8, reviews of 256, float32", "bert", "long",
     TRAIN + ["--batch-size", "8", "--max-length", "256", "--steps", "6"], [], [], 3),
    ("scoring reviews, DistilBERT, float32, against ONNX Runtime", "distilbert", "long", LONG, SCORE,
     ["--mode", "onnx"], 2),
    ("the same, ONNX Runtime's rows sorted by length", "distilbert", "long", LONG, SCORE, ["--mode", "onnx", "--sort"], 1.3),
    ("scoring reviews, bfloat16, against PyTorch", "distilbert", "long", SCORE + LONG + ["--dtype", "bf16"], [], [], 2.5),
    ("one sentence, DistilBERT, float32, against ONNX Runtime", "distilbert", "short",
     ONE, SCORE, ["--mode", "onnx"], 1),
    ("one sentence, DistilBERT, bfloat16, against our float32", "distilbert", "short",
     ONE + SCORE, ["--dtype", "bf16"], ["ft"], 1.67),
    ("tokenizing reviews, one thread, against tokenizers", "distilbert", "long", ["--mode", "tokenize", "--steps", "120"],
     [], [], 20),
]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--short", required=True, metavar="CSV")
    add("--long", required=True, metavar="CSV")
    add("--tokenizer", required=True, metavar="DIR")
    add("--minilm", metavar="DIR")
    add("--python", help="an interpreter that has the peers already: no virtual environment is made")
    add("--venv", default=os.path.join(tempfile.gettempdir(), "finetune-bench"), help="default %(default)s")
    add("--cc", default="cc", help="C compiler (cc)")
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--only", default="", metavar="REGEX", help="rows whose name matches")
    return parser.parse_args()


def make_environment(args):
    if args.python:
        return args.python
    python = os.path.join(args.venv, "bin", "python")
    if not os.path.exists(python):
        venv.create(args.venv, with_pip=True)
    subprocess.check_call([python, "-m", "pip", "install", "--quiet"] + PACKAGES)
    return python


def write_models(args, directory):
    models = dict(minilm=args.minilm) if args.minilm else {}
    for name, config in (("distilbert", DISTILBERT), ("bert", BERT), ("minilm", MINILM)):
        if name in models:
            continue
        models[name] = os.path.join(directory, name)
        os.makedirs(models[name])
        with open(os.path.join(models[name], "config.json"), "w", encoding="utf-8") as file:
            json.dump(config, file)
    return models


def measure(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(" ".join(command), done.stderr[-2000:], sep="\n", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def print_row(name, asked, ours, peers):
    if not all(ours) or not all(peers):
        print(f"| {name} | failed | | | {asked} | |", flush=True)
        return
    ratios = [a["real_tok_per_s"] / b["real_tok_per_s"] for a, b in zip(ours, peers)]
    our, peer = (statistics.median(run["ex_per_s"] for run in runs) for runs in (ours, peers))
    ratio = operator.truediv(*(statistics.median(run["real_tok_per_s"] for run in runs) for runs in (ours, peers)))
    memory = "{} / {}".format(*(max(run["peak_rss_mib"] for run in runs) for runs in (ours, peers)))
    our, peer = (f"{speed:.4g}" if speed < 1000 else f"{speed:.0f}" for speed in (our, peer))
    print(f"| {name} | {our} | {peer} | {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {asked} "
          f"| {memory} |", flush=True)


def main():
    args = parse_arguments()
    python = make_environment(args)
    with tempfile.TemporaryDirectory() as directory:
        program = os.path.join(directory, "ft")
        subprocess.check_call([args.cc, "-O2", os.path.join(ROOT, "tools", "ft.c"), "-o", program, "-lm"])
        models = write_models(args, directory)
        print("| work | finetune.h, texts/s | peer | ratio (spread) | asked | MiB, ours / peer |")
        print("|-|-|-|-|-|-|", flush=True)
        for name, model, data, both, ours, peers, asked in WORK:
            if not re.search(args.only, name):
                continue
            common = ["--config", models[model], "--tokenizer", args.tokenizer, "--csv", getattr(args, data),
                      "--threads", str(args.threads)] + both
            peer, rest = [python, os.path.join(HERE, "peer.py")], peers
            if peers[:1] == ["ft"]:
                peer, rest = [program, "bench"], peers[1:]
            our_runs, peer_runs = [], []
            for _ in range(args.rounds):
                our_runs.append(measure([program, "bench"] + common + ours))
                peer_runs.append(measure(peer + common + rest))
            print_row(name, asked, our_runs, peer_runs)


if __name__ == "__main__":
    main()
