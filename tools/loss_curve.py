#!/usr/bin/env python3
"""Does finetune.h follow PyTorch's loss curve, step by step?

  head    write a random new head, so that both sides start from the same weights
  torch   fine-tune with plain PyTorch and write one JSON line per step
  plot    draw two such files and print the largest difference

What `torch` does is what Trainer does without dropout. The order of epoch e is torch.randperm(n) from a generator
seeded with seed + e; an epoch's last batch may be smaller. Each step clips the norm of the gradient at 1.0, then
AdamW (0.9, 0.999, 1e-8) moves the weights, decaying all but biases and LayerNorm by 0.01. The learning rate falls
linearly from --lr to zero over --total-epochs, without warmup; --epochs may stop earlier. A line of the log, where
loss is the mean of the batch, learning_rate the one used in this step and grad_norm the norm before clipping:

  {"event": "step", "step": 1, "loss": 0.693, "learning_rate": 2e-05, "grad_norm": 1.2}

A comparison:

  loss_curve.py head --model DIR --labels 2 --seed 7 --out head.safetensors
  loss_curve.py torch --model DIR --head head.safetensors --csv train.csv --out theirs.jsonl
  ... the same run by ft, which writes ours.jsonl ...
  loss_curve.py plot ours.jsonl theirs.jsonl --out loss.svg

Needs torch, transformers, safetensors; plot needs matplotlib only.
"""

import argparse
import csv
import json
import math
import os
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

DROPOUT_KEYS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "classifier_dropout_prob",
                "dropout", "attention_dropout", "seq_classif_dropout", "summary_last_dropout")


def load_model(directory, num_labels):
    """The pretrained model without dropout, and the names of the tensors that its files lack."""
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(directory)
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, 0.0)
    config.num_labels = num_labels
    config.problem_type = "single_label_classification"
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        directory, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
    return model, set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}


# ---------------------------------------------------------------------------------------------------------------------
# head


def command_head(args):
    """Everything outside the base model, and what of the base model the files lack: normal with 0.02, biases zero."""
    import torch
    from safetensors.torch import save_file
    model, missing = load_model(args.model, args.labels)
    generator = torch.Generator().manual_seed(args.seed)
    head = {}
    for name, parameter in model.named_parameters():
        if name in missing or not name.startswith(model.base_model_prefix + "."):
            head[name] = (torch.zeros_like(parameter) if name.endswith("bias") else
                          torch.empty_like(parameter).normal_(0, 0.02, generator=generator)).detach()
    save_file(head, args.out, metadata={"format": "pt"})
    for name, tensor in head.items():
        print(name, list(tensor.shape))


# ---------------------------------------------------------------------------------------------------------------------
# torch


def read_rows(args):
    """Texts and label numbers; labels in numeric order if all are integers, else bytewise."""
    csv.field_size_limit(1 << 30)
    with open(args.csv, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if args.rows:
        rows = rows[:args.rows]
    labels = [row[args.label] for row in rows]
    try:
        names = sorted(set(labels), key=int)
    except ValueError:
        names = sorted(set(labels), key=lambda name: name.encode())
    number = {name: i for i, name in enumerate(names)}
    return [row[args.text] for row in rows], [number[label] for label in labels], names


def load_head(model, path, missing):
    """Put the head's tensors in place; every tensor that the model's files lack has to be among them."""
    import torch
    from safetensors.torch import load_file
    head = load_file(path)
    parameters = dict(model.named_parameters())
    for problem, names in (("tensors unknown to the model", set(head) - set(parameters)),
                           ("new tensors missing", missing - set(head))):
        if names:
            raise SystemExit(f"{path}: {problem}: {', '.join(sorted(names))}")
    with torch.no_grad():
        for name, tensor in head.items():
            if parameters[name].shape != tensor.shape:
                raise SystemExit(f"{path}: {name} is {list(tensor.shape)}, expected {list(parameters[name].shape)}")
            parameters[name].copy_(tensor)


def decay_groups(model, weight_decay):
    """Trainer's: biases and LayerNorm are spared."""
    import torch
    norms = {f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)
             for part, _ in module.named_parameters(recurse=False)}
    decayed, spared = [], []
    for name, parameter in model.named_parameters():
        (spared if name in norms or "bias" in name else decayed).append(parameter)
    return [dict(params=decayed, weight_decay=weight_decay), dict(params=spared, weight_decay=0.0)]


def pad_batch(ids, pad_id):
    import torch
    length = max(map(len, ids))
    input_ids = torch.full((len(ids), length), pad_id)
    mask = torch.zeros(len(ids), length, dtype=torch.long)
    for row, tokens in enumerate(ids):
        input_ids[row, :len(tokens)] = torch.tensor(tokens)
        mask[row, :len(tokens)] = 1
    return dict(input_ids=input_ids, attention_mask=mask)


def command_torch(args):
    import torch
    import transformers
    if args.threads:
        torch.set_num_threads(args.threads)
    texts, labels, names = read_rows(args)
    model, missing = load_model(args.model, len(names))
    load_head(model, args.head, missing)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(texts, truncation=True, max_length=args.max_length)["input_ids"]
    targets = torch.tensor(labels)

    steps_per_epoch = math.ceil(len(texts) / args.batch_size)
    total_steps = steps_per_epoch * (args.total_epochs or args.epochs)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.01), lr=args.lr, betas=(0.9, 0.999), eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, (total_steps - step) / total_steps))

    model.train()
    step, start = 0, time.time()
    with open(args.out, "w", encoding="utf-8") as out:
        for epoch in range(args.epochs):
            order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(args.seed + epoch)).tolist()
            for first in range(0, len(order), args.batch_size):
                if args.max_steps and step == args.max_steps:
                    return
                rows = order[first:first + args.batch_size]
                logits = model(**pad_batch([ids[i] for i in rows], tokenizer.pad_token_id)).logits
                loss = torch.nn.functional.cross_entropy(logits, targets[rows])
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                rate = schedule.get_last_lr()[0]
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                step += 1
                line = dict(event="step", step=step, loss=loss.item(), learning_rate=rate, grad_norm=norm.item())
                out.write(json.dumps(line) + "\n")
                out.flush()
                if step % 50 == 0:
                    print(f"step {step} loss {loss.item():.4f} {time.time() - start:.0f} s", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# plot


def read_curve(path):
    """{step: loss} of a log; its other events are passed over."""
    with open(path, encoding="utf-8") as file:
        events = [json.loads(line) for line in file if line.strip()]
    curve = {event["step"]: event["loss"] for event in events if event.get("event") == "step"}
    if not curve:
        raise SystemExit(f"{path}: no step events")
    return curve


def command_plot(args):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot
    ours, theirs = read_curve(args.ours), read_curve(args.theirs)
    steps = sorted(set(ours) & set(theirs))
    if not steps:
        raise SystemExit("the two files have no step in common")
    for path, curve in ((args.ours, ours), (args.theirs, theirs)):
        if not all(math.isfinite(loss) for loss in curve.values()):
            raise SystemExit(f"{path}: a loss is not finite")
    differences = [abs(ours[step] - theirs[step]) for step in steps]
    worst = max(range(len(steps)), key=differences.__getitem__)
    print(f"{len(steps)} steps compared ({len(ours)} and {len(theirs)}); largest difference {differences[worst]:.3e} "
          f"at step {steps[worst]}, where the losses are {ours[steps[worst]]:.6f} and {theirs[steps[worst]]:.6f}")

    pyplot.rcParams.update({"font.size": 9, "svg.hashsalt": "finetune.h", "axes.spines.top": False,
                            "axes.spines.right": False, "axes.linewidth": 0.8})
    figure, (top, bottom) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5), height_ratios=(3, 2),
                                            layout="constrained")
    top.plot(steps, [theirs[step] for step in steps], color="#e3a15b", linewidth=3, label=args.names[1])
    top.plot(steps, [ours[step] for step in steps], color="#1f3b5c", linewidth=0.9, label=args.names[0])
    top.set_ylabel("training loss")
    top.set_ylim(bottom=0)
    top.set_title(args.title, loc="left", fontsize=10)
    top.legend(frameon=False, loc="lower left")

    shown = [difference if difference > 0 else math.nan for difference in differences]  # a log scale has no zero
    bottom.plot(steps, shown, color="#5c5c5c", linewidth=0.9)
    bottom.plot(steps[worst], differences[worst] or math.nan, "o", color="#b3402a", markersize=4)
    if differences[worst] > 0:
        left = worst > len(steps) / 2
        bottom.annotate(f"{differences[worst]:.1e} at step {steps[worst]}", (steps[worst], differences[worst]),
                        xytext=(-6 if left else 6, 4), textcoords="offset points", ha="right" if left else "left",
                        color="#b3402a")
        bottom.set_yscale("log")
        bottom.margins(y=0.15)
    bottom.set_ylabel("|difference|")
    bottom.set_xlabel("step")
    bottom.grid(axis="y", color="#dddddd", linewidth=0.6)
    top.grid(axis="y", color="#dddddd", linewidth=0.6)
    figure.align_ylabels()
    figure.savefig(args.out, metadata={"Date": None} if args.out.endswith(".svg") else None)
    if args.png:
        figure.savefig(args.png, dpi=150)


# ---------------------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    sub = commands.add_parser("head", help="write a random new head")
    sub.set_defaults(function=command_head)
    add = sub.add_argument
    add("--model", required=True)
    add("--labels", type=int, default=2)
    add("--seed", type=int, default=7)
    add("--out", required=True)

    sub = commands.add_parser("torch", help="fine-tune with PyTorch")
    sub.set_defaults(function=command_torch)
    add = sub.add_argument
    add("--model", required=True)
    add("--head", required=True)
    add("--csv", required=True)
    add("--text", default="text")
    add("--label", default="label")
    add("--rows", type=int, default=0, help="use only the first rows of the file")
    add("--batch-size", type=int, default=16)
    add("--lr", type=float, default=2e-5)
    add("--max-length", type=int, default=128)
    add("--epochs", type=int, default=1)
    add("--total-epochs", type=int, default=0, help="epochs over which the learning rate falls; default --epochs")
    add("--max-steps", type=int, default=0, help="stop after so many steps; the schedule stays")
    add("--seed", type=int, default=42)
    add("--threads", type=int, default=0)
    add("--out", required=True)

    sub = commands.add_parser("plot", help="draw two logs")
    sub.set_defaults(function=command_plot)
    add = sub.add_argument
    add("ours")
    add("theirs")
    add("--out", required=True, help="figure to write, SVG by its name")
    add("--png", help="the same as PNG")
    add("--names", nargs=2, default=["finetune.h", "PyTorch"], metavar=("OURS", "THEIRS"))
    add("--title", default="Fine-tuning, dropout off")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    raise SystemExit(arguments.function(arguments))
