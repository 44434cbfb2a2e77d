#!/usr/bin/env python3
"""Make examples/models/tiny: a configuration and a WordPiece vocabulary for trying the library without a download.

usage: make_tiny.py [--csv examples/data/reviews.csv] [--out examples/models/tiny] [--vocab 2000]

There are no weights: examples/imdb.c initialises them from the configuration and a seed. The vocabulary is trained on the
reviews by the tokenizers package. Its trainer numbers letters in the order of a hash table and breaks ties by number; named
as special tokens, in sorted order, they make it write the same file every time.
"""
import argparse
import csv
import json
import os

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--csv", default="examples/data/reviews.csv")
parser.add_argument("--out", default="examples/models/tiny")
parser.add_argument("--vocab", type=int, default=2000)
arguments = parser.parse_args()

with open(arguments.csv, encoding="utf-8", newline="") as file:
    texts = [row["text"] for row in csv.DictReader(file)]

tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer()
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
letters = sorted(set("".join(tokenizer.normalizer.normalize_str(text) for text in texts)) - {" "})
alphabet = letters + ["##" + letter for letter in letters if letter.isalnum()]
special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
trainer = trainers.WordPieceTrainer(vocab_size=arguments.vocab, min_frequency=2, special_tokens=special + alphabet,
                                    show_progress=False)
tokenizer.train_from_iterator(texts, trainer)
pieces = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])

config = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 128,
    "model_type": "bert",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(pieces),
}

os.makedirs(arguments.out, exist_ok=True)
with open(os.path.join(arguments.out, "vocab.txt"), "w", encoding="utf-8", newline="\n") as file:
    file.write("".join(piece + "\n" for piece, _ in pieces))
with open(os.path.join(arguments.out, "config.json"), "w", encoding="utf-8", newline="\n") as file:
    file.write(json.dumps(config, indent=2) + "\n")
print(f"{arguments.out}: {len(pieces)} pieces from {len(texts)} texts")
