#!/usr/bin/env python3
"""Compare finetune.h with transformers: load what the other side saved, score the same text, measure the distance.

  load DIR [--texts F.csv]        load a model (or a PEFT adapter) as any user would. Fails if a tensor is missing,
                                  unexpected or of another shape. With --texts, writes the scores of its rows
                                  as `ft predict DIR --csv F.csv --text COL --logits` does
  diff A.csv B.csv                largest difference between the logits of two such files
  train DIR OUT --csv F.csv       a few plain torch steps, then save_pretrained: a directory for the C library to load
  embed DIR --csv F.csv --out E   text vectors, as `ft embed` writes them
  diff-embeddings A B             largest difference between two such files
  adapters FT BASE WORK --csv F   LoRA in all its forms, both ways: what peft writes, the program FT scores and merges;
                                  what `ft train` writes, peft and transformers load, score and merge

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
import subprocess
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
# adapters


def layer_paths(model):
    """Paths of the linear layers inside the encoder's layers."""
    return [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and "layer" in name]


def adapter_variants(model, targets, task_type):
    """Options of peft.LoraConfig by name; A, B and what else trains is random later."""
    paths = layer_paths(model)
    first = next(path for path in paths if path.endswith("." + targets[0]))
    classes = task_type is not None
    variants = {
        "plain": dict(target_modules=targets),
        "rslora": dict(target_modules=targets, use_rslora=True, r=4, lora_alpha=6),
        "dora": dict(target_modules=targets, use_dora=True),
        "dora-dropout": dict(target_modules=targets, use_dora=True, lora_dropout=0.2),
        "all-in-layers": dict(target_modules=paths, use_rslora=True),
        "regex": dict(target_modules=r".*\.(%s|%s)" % (targets[0], targets[1][0] + r"\w+")),
        "regex-layers": dict(target_modules=r"(?:.+\.)?\w*layers?.*\.[0-1]\..*%s" % targets[1]),
        "exclude": dict(target_modules=targets, exclude_modules=[first]),
        # peft sorts the patterns when it saves them, and the first that matches counts: these exclude each other
        "rank-pattern": dict(target_modules=targets, rank_pattern={targets[0]: 3, r".*\.0\..*" + targets[1]: 5},
                             alpha_pattern={first: 32, targets[1]: 10}),
        "layers": dict(target_modules=targets, layers_to_transform=[0]),
        "bias-all": dict(target_modules=targets, bias="all"),
        "bias-lora": dict(target_modules=targets, bias="lora_only"),
        "fan-in-fan-out": dict(target_modules=targets, fan_in_fan_out=False, init_lora_weights="gaussian"),
        "save-more": dict(target_modules=targets, modules_to_save=["embeddings.LayerNorm"]),
        "save-words": dict(target_modules=targets, modules_to_save=["word_embeddings"]),
    }
    if model.config.model_type not in ("distilbert", "electra") and classes and task_type != "TOKEN_CLS":
        variants["all-linear"] = dict(target_modules="all-linear")  # else peft adapts its own copy of the head, and fails
    if model.config.model_type in ("bert", "albert") and task_type == "SEQ_CLS":
        variants["save-pooler"] = dict(target_modules=targets, modules_to_save=["pooler"])
    if classes:
        variants["no-task"] = dict(target_modules=targets, task_type=None, modules_to_save=["classifier"])
    return {name: dict(dict(r=2, lora_alpha=4, task_type=task_type), **options) for name, options in variants.items()}


def run_ft(args, *words):
    done = subprocess.run([args.ft, *words], capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        fail(f"ft {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def ft_scores(args, directory, *more):
    """What `ft predict` computes: logits; of tokens the best label's probability."""
    out = run_ft(args, "predict", directory, "--csv", args.csv, "--text", args.text, "--logits", *more)
    rows = out.splitlines()
    if rows[0].startswith("{"):
        return torch.tensor([token["score"] for row in rows for token in json.loads(row)["tokens"]])
    names = rows[0].split(",")
    columns = [i for i, name in enumerate(names) if name.startswith("logit_")]
    return torch.tensor([[float(row[i]) for i in columns] for row in csv.reader(rows[1:])])


def torch_scores(args, model, tokenizer):
    [texts] = read_columns(args.csv, args.text)
    scores = []
    with torch.inference_mode():
        for text in texts:
            encoded = tokenizer(text, truncation=True, max_length=longest_text(tokenizer, model.config),
                                return_tensors="pt", return_offsets_mapping=True)
            offsets = encoded.pop("offset_mapping")[0]
            if not getattr(model.config, "type_vocab_size", 0):
                encoded.pop("token_type_ids", None)
            logits = model(**encoded).logits[0]
            real = offsets[:, 1] > offsets[:, 0]
            scores.append(logits.softmax(-1).max(-1).values[real] if logits.dim() == 2 else logits)
    return torch.cat(scores) if scores[0].dim() == 1 and args.tokens else torch.stack(scores)


def compare_scores(args, name, ours, theirs, failures):
    worst = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else math.inf
    print(f"{'ok  ' if worst <= args.tolerance else 'FAIL'} {name}: {worst:.2e}", flush=True)
    if not worst <= args.tolerance:
        failures.append(name)


def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def load_base(args, **options):
    auto = transformers.AutoModelForTokenClassification if args.tokens else transformers.AutoModelForSequenceClassification
    return auto.from_pretrained(args.base, dtype=torch.float32, **options)


def check_from_peft(args, tokenizer, targets, failures):
    """peft's adapters, scored and merged here."""
    import peft
    task_type = "TOKEN_CLS" if args.tokens else "SEQ_CLS"
    for number, (name, options) in enumerate(adapter_variants(load_base(args), targets, task_type).items()):
        directory = os.path.join(args.work, "peft-" + name)
        model = peft.get_peft_model(load_base(args), peft.LoraConfig(**options))
        randomize(model, number)
        model.save_pretrained(directory)
        model = peft.PeftModel.from_pretrained(load_base(args), directory).eval()
        theirs = torch_scores(args, model, tokenizer)
        compare_scores(args, f"peft {name}", ft_scores(args, directory), theirs, failures)
        run_ft(args, "merge", directory, "--output-dir", directory + "-merged", "--overwrite")
        compare_scores(args, f"peft {name}, merged", ft_scores(args, directory + "-merged"), theirs, failures)
        merged = torch_scores(args, model.merge_and_unload(), tokenizer)
        compare_scores(args, f"peft {name}, merged by peft", ft_scores(args, directory), merged, failures)


def check_from_ft(args, tokenizer, targets, failures):
    """Adapters trained here, loaded with nothing missing, unexpected or warned about."""
    import peft
    variants = {
        "plain": [],
        "rslora": ["--rslora", "--lora-r", "4", "--lora-alpha", "3"],
        "dora": ["--dora"],
        "all-linear": ["--lora-targets", "all-linear"],
        "one-layer": ["--lora-targets", r".*\.0\..*%s" % targets[0]],
        "save-more": ["--lora-modules-to-save", "embeddings.LayerNorm"],
    }
    for name, options in variants.items():
        directory = os.path.join(args.work, "ft-" + name)
        run_ft(args, "train", "--model", args.base, "--train", args.train, "--text", args.text, "--label", args.label,
               "--output-dir", directory, "--overwrite", "--method", "lora", "--quiet", "--max-steps", "20", "--lr",
               "1e-2", "--batch-size", "8", *options)
        ours = ft_scores(args, directory)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = peft.PeftConfig.from_pretrained(directory)
            base, _ = load_plain(config.base_model_name_or_path, num_labels=ours.shape[1], ignore_mismatched_sizes=True)
            model = peft.get_peft_model(base, config)
            result = peft.set_peft_model_state_dict(model, peft.load_peft_weights(directory, device="cpu"))
            automatic = transformers.AutoModelForSequenceClassification.from_pretrained(
                directory, num_labels=ours.shape[1], ignore_mismatched_sizes=True)
            saved_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        messages = [str(w.message) for w in caught if not issubclass(w.category, (FutureWarning, DeprecationWarning))]
        missing = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
        if messages or missing or result.unexpected_keys:
            print(f"FAIL ft {name}: {messages} missing {missing} unexpected {result.unexpected_keys}")
            failures.append(name)
        theirs = torch_scores(args, model.eval(), saved_tokenizer)
        compare_scores(args, f"ft {name}", ours, theirs, failures)
        if name != "dora":  # of which transformers 5.23 without peft's loader misses the magnitudes, whoever wrote them
            compare_scores(args, f"ft {name}, by AutoModel", ours, torch_scores(args, automatic.eval(), tokenizer),
                           failures)
        merged = torch_scores(args, model.merge_and_unload(), tokenizer)
        compare_scores(args, f"ft {name}, merged by peft", ours, merged, failures)
        run_ft(args, "merge", directory, "--output-dir", directory + "-merged", "--overwrite")
        plain, info = load_plain(directory + "-merged")
        check_keys(directory + "-merged", missing=info["missing_keys"], unexpected=info["unexpected_keys"])
        compare_scores(args, f"ft {name}, merged here", ours, torch_scores(args, plain.eval(), tokenizer), failures)


def command_adapters(args):
    warnings.simplefilter("ignore", FutureWarning)
    os.makedirs(args.work, exist_ok=True)
    config = transformers.AutoConfig.from_pretrained(args.base)
    args.tokens = any("TokenClassification" in name for name in config.architectures or [])
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.base)
    targets = ["q_lin", "v_lin"] if config.model_type == "distilbert" else ["query", "value"]
    failures = []
    check_from_peft(args, tokenizer, targets, failures)
    if args.train and not args.tokens:
        check_from_ft(args, tokenizer, targets, failures)
    return 1 if failures else 0


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

    add = command("adapters", command_adapters, "LoRA, both ways, with a program ft")
    add("ft", help="the program, built from tools/ft.c")
    add("base", help="directory of a small model")
    add("work", help="directory to write to")
    add("--csv", required=True, help="texts to score")
    add("--train", help="labelled texts for `ft train`; without, only peft's adapters are looked at")
    add("--text", default="text")
    add("--label", default="label")
    add("--tolerance", type=float, default=1e-4)
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    transformers.logging.disable_progress_bar()
    raise SystemExit(arguments.function(arguments) or 0)
