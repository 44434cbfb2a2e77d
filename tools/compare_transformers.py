#!/usr/bin/env python3
"""Compare finetune.h with transformers: load what the other side saved, score the same text, measure the distance.

  load DIR [--texts F.csv]        load a model (or a PEFT adapter) as any user would. Fails if a tensor is missing,
                                  unexpected or of another shape. With --texts, writes the scores of its rows
                                  as `ft predict DIR --csv F.csv --text COL --logits` does
  diff A.csv B.csv                largest difference between the logits of two such files
  train DIR OUT --csv F.csv       a few plain torch steps, then save_pretrained: a directory for the C library to load
  embed DIR --csv F.csv --out E   text vectors, as `ft embed` writes them
  diff-embeddings A B             largest difference between two such files

`load` fails with exit status 1, and so do the two diffs above --tolerance. Results go to stdout, the rest to stderr.
A round trip:

  compare_transformers.py load out --texts test.csv --out theirs.csv
  ft predict out --csv test.csv --text text --logits > ours.csv
  compare_transformers.py diff ours.csv theirs.csv

Needs torch, transformers, safetensors; peft for adapters.
"""

import argparse
import csv
import itertools
import json
import logging
import math
import os
import sys
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file


def log(*words):
    print(*words, file=sys.stderr)


def fail(*words):
    log("compare_transformers.py:", *words)
    raise SystemExit(1)


# ---------------------------------------------------------------------------------------------------------------------
# Files and batches


def read_columns(path, *names):
    """The named columns of a CSV file, each a list of strings."""
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for name in names:
            if name not in (reader.fieldnames or []):
                fail(f"{path} has no column {name}, only {', '.join(reader.fieldnames or [])}")
        rows = list(reader)
    return [[row[name] for row in rows] for name in names]


def longest_text(tokenizer, config):
    """What ft uses too: the smaller of the tokenizer's limit and what the position table holds."""
    rows = getattr(config, "max_position_embeddings", 512)
    if config.model_type in ("roberta", "xlm-roberta"):
        rows -= config.pad_token_id + 1  # positions start behind the padding id
    return min(tokenizer.model_max_length, rows)


def encode(tokenizer, config, columns, max_length):
    """One padded batch; token types only for a model that has a table of them."""
    batch = dict(tokenizer(*columns, truncation=True, max_length=max_length, padding=True, padding_side="right",
                           return_tensors="pt"))
    if not getattr(config, "type_vocab_size", 0):
        batch.pop("token_type_ids", None)
    return batch


def batches(columns, size):
    for start in range(0, len(columns[0]), size):
        yield [column[start:start + size] for column in columns]


# ---------------------------------------------------------------------------------------------------------------------
# load


class WarningCounter(logging.Handler):
    """Collects what transformers and peft warn about while a model loads."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


def check_keys(directory, **groups):
    found = {group: sorted(map(str, keys)) for group, keys in groups.items() if keys}
    for group, keys in found.items():
        log(f"{directory}: {len(keys)} {group}: {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}")
    if found:
        fail(f"{directory} does not load cleanly")


def load_plain(directory, **options):
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, **options)
    return model, info


def load_adapter(directory, base):
    """A PEFT directory on its base model. The base's own head may be new: the adapter brings one."""
    import peft
    config = peft.PeftConfig.from_pretrained(directory)
    base = base or config.base_model_name_or_path
    if not base:
        fail(f"{directory} names no base model: use --base")
    weights = peft.load_peft_weights(directory, device="cpu")
    heads = [tensor for name, tensor in weights.items() if name.endswith((".classifier.weight", ".out_proj.weight"))]
    model, _ = load_plain(base, num_labels=len(heads[0]) if heads else 2, ignore_mismatched_sizes=True)
    model = peft.get_peft_model(model, config)
    result = peft.set_peft_model_state_dict(model, weights)
    missing = [name for name in result.missing_keys if "lora_" in name or "modules_to_save" in name]
    check_keys(directory, missing=missing, unexpected=result.unexpected_keys)
    return model, base


def load_checked(args):
    counter = WarningCounter()
    for name in ("transformers", "peft"):
        logging.getLogger(name).addHandler(counter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokenizer_directory = args.dir
        if os.path.exists(os.path.join(args.dir, "adapter_config.json")):
            model, base = load_adapter(args.dir, args.base)
            if not {"tokenizer.json", "vocab.txt", "vocab.json"} & set(os.listdir(args.dir)):
                tokenizer_directory = base
        else:
            model, info = load_plain(args.dir)
            check_keys(args.dir, missing=info["missing_keys"], unexpected=info["unexpected_keys"],
                       mismatched=info["mismatched_keys"], errors=info.get("error_msgs"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_directory)
    messages = counter.messages + [str(w.message) for w in caught
                                   if not issubclass(w.category, (FutureWarning, DeprecationWarning))]
    for message in messages:
        log("warning:", message)
    if messages and args.no_warnings:
        fail(f"{args.dir} loads with {len(messages)} warnings")
    count = sum(p.numel() for p in model.parameters())
    log(f"{args.dir}: {type(model).__name__}, {count} parameters, no missing, unexpected or mismatched tensor")
    return model.eval(), tokenizer


def judge(logits, config):
    """Label and score of one row of logits: the best of softmax; or all labels with a probability of at least one half,
    and the best probability; or the value itself."""
    if config.problem_type == "regression" or (config.num_labels == 1 and config.problem_type is None):
        return "%.9g" % logits[0], logits[0].item()
    if config.problem_type == "multi_label_classification":
        probabilities = torch.sigmoid(logits)
        return ";".join(config.id2label[i] for i, p in enumerate(probabilities) if p >= 0.5), probabilities.max().item()
    best = logits.argmax().item()
    return config.id2label[best], torch.softmax(logits, 0)[best].item()


def command_load(args):
    model, tokenizer = load_checked(args)
    if not args.texts:
        return
    columns = read_columns(args.texts, *([args.text] + ([args.pair] if args.pair else [])))
    max_length = args.max_length or longest_text(tokenizer, model.config)
    out = open(args.out, "w", encoding="utf-8", newline="") if args.out else sys.stdout
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["label", "score"] + [f"logit_{i}" for i in range(model.config.num_labels)])
    with torch.inference_mode():
        for batch in batches(columns, args.batch_size):
            for row in model(**encode(tokenizer, model.config, batch, max_length)).logits:
                label, score = judge(row, model.config)
                writer.writerow([label] + ["%.9g" % value for value in [score] + row.tolist()])
    if args.out:
        out.close()


# ---------------------------------------------------------------------------------------------------------------------
# diff


def read_logits(path):
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = [name for name in reader.fieldnames or [] if name.startswith("logit_")]
        if not names:
            fail(f"{path} has no logit_0 column")
        rows = list(reader)
    return [row["label"] for row in rows], [[float(row[name]) for name in names] for row in rows]


def command_diff(args):
    labels, logits = zip(*(read_logits(path) for path in (args.a, args.b)))
    if len(logits[0]) != len(logits[1]) or not logits[0] or len(logits[0][0]) != len(logits[1][0]):
        fail("shapes differ:", *(f"{path} [{len(rows)}, {len(rows[0]) if rows else 0}]"
                                 for path, rows in zip((args.a, args.b), logits)))
    worst, where = 0.0, 0
    for number, (ours, theirs) in enumerate(zip(*logits)):
        for a, b in zip(ours, theirs):
            difference = abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf
            if difference > worst:
                worst, where = difference, number
    changed = sum(a != b for a, b in zip(*labels))
    print(f"max abs logit difference {worst:.3e} at row {where} of {len(logits[0])}; {changed} labels differ")
    return 0 if worst <= args.tolerance else 1


def command_diff_embeddings(args):
    tensors = []
    for path in (args.a, args.b):
        with safe_open(path, "pt") as file:
            tensors.append(file.get_tensor("embeddings"))
    if tensors[0].shape != tensors[1].shape or tensors[0].dtype != tensors[1].dtype:
        fail("shapes differ:", *(f"{path} {t.dtype} {list(t.shape)}" for path, t in zip((args.a, args.b), tensors)))
    difference = (tensors[0].double() - tensors[1].double()).abs().nan_to_num(math.inf, math.inf)
    worst, row = difference.max().item(), difference.max(1).values.argmax().item()
    print(f"max abs embedding difference {worst:.3e} at row {row} of {len(difference)}; "
          f"largest magnitude {tensors[1].abs().max():.3f}")
    return 0 if worst <= args.tolerance else 1


# ---------------------------------------------------------------------------------------------------------------------
# train


def label_order(labels):
    """Numeric if all labels are integers, else bytewise."""
    names = set(labels)
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names, key=lambda name: name.encode())


def command_train(args):
    torch.manual_seed(args.seed)
    texts, labels = read_columns(args.csv, args.text, args.label)
    names = label_order(labels)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.dir)
    model, info = load_plain(args.dir, num_labels=len(names), ignore_mismatched_sizes=True,
                             id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    log("new:", ", ".join(sorted(info["missing_keys"])) or "nothing")
    model.config.problem_type = "single_label_classification"
    max_length = args.max_length or longest_text(tokenizer, model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(args.seed)).tolist()
    forever = itertools.cycle(order)
    model.train()
    for step in range(args.steps):
        rows = list(itertools.islice(forever, args.batch_size))
        batch = encode(tokenizer, model.config, [[texts[i] for i in rows]], max_length)
        loss = model(**batch, labels=torch.tensor([names.index(labels[i]) for i in rows])).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log(f"step {step + 1}/{args.steps} loss {loss.item():.4f} grad_norm {norm.item():.4f}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(json.dumps(dict(out=args.out, steps=args.steps, labels=names, loss=round(loss.item(), 6))))


# ---------------------------------------------------------------------------------------------------------------------
# embed


def command_embed(args):
    [texts] = read_columns(args.csv, args.text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.dir)
    model = transformers.AutoModel.from_pretrained(args.dir, dtype=torch.float32).eval()
    max_length = args.max_length or longest_text(tokenizer, model.config)
    vectors = []
    with torch.inference_mode():
        for batch in batches([texts], args.batch_size):
            inputs = encode(tokenizer, model.config, batch, max_length)
            hidden = model(**inputs).last_hidden_state  # [rows, tokens, hidden]
            if args.pool == "cls":
                vectors.append(hidden[:, 0])
            else:  # the mean over the real tokens, [CLS] and [SEP] among them
                mask = inputs["attention_mask"].unsqueeze(-1).float()
                vectors.append((hidden * mask).sum(1) / mask.sum(1))
    vectors = torch.cat(vectors)
    if args.normalize:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    save_file({"embeddings": vectors.contiguous()}, args.out)
    print(f"{args.out}: embeddings {list(vectors.shape)}")


# ---------------------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, function, text):
        sub = commands.add_parser(name, help=text)
        sub.set_defaults(function=function)
        return sub.add_argument

    add = command("load", command_load, "load strictly, and score texts")
    add("dir")
    add("--texts", "--csv", metavar="F.csv")
    add("--text", default="text", help="column of the text")
    add("--pair", help="column of a second text")
    add("--out", help="CSV to write, default stdout")
    add("--base", help="base model of a PEFT adapter, where adapter_config.json does not name it")
    add("--no-warnings", action="store_true", help="a warning while loading is a failure too")
    add("--max-length", type=int)
    add("--batch-size", type=int, default=32)

    add = command("diff", command_diff, "compare two files of logits")
    add("a")
    add("b")
    add("--tolerance", type=float, default=1e-4)

    add = command("train", command_train, "a short run, saved with save_pretrained")
    add("dir")
    add("out")
    add("--csv", required=True)
    add("--text", default="text")
    add("--label", default="label")
    add("--steps", type=int, default=20)
    add("--batch-size", type=int, default=16)
    add("--lr", type=float, default=2e-5)
    add("--max-length", type=int)
    add("--seed", type=int, default=42)

    add = command("embed", command_embed, "text vectors")
    add("dir")
    add("--csv", required=True)
    add("--text", default="text")
    add("--pool", choices=("cls", "mean"), default="cls")
    add("--normalize", action="store_true", help="scale each vector to length 1")
    add("--max-length", type=int)
    add("--batch-size", type=int, default=32)
    add("--out", required=True)

    add = command("diff-embeddings", command_diff_embeddings, "compare two files of text vectors")
    add("a")
    add("b")
    add("--tolerance", type=float, default=2e-6)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    transformers.logging.disable_progress_bar()
    raise SystemExit(arguments.function(arguments) or 0)
