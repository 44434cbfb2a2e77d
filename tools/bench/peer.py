#!/usr/bin/env python3
"""One measurement of a peer: PyTorch's training or scoring steps, ONNX Runtime's scoring, the tokenizers package's
encoding. Prints one JSON line with the keys of `ft bench`; tools/bench/run.py calls this and `ft bench` in turns.

The work is that of a course notebook: Hugging Face tokenizer and model, batches padded to their longest text (--pad
dynamic) or all to --max-length (--pad max), dropout as configured, cross-entropy, clipping at 1.0, AdamW with weight decay
0.01, a linear schedule. Rows are taken in file order, tokenizing is timed in mode tokenize alone (one thread, whole texts),
the first two steps are not counted.
"""
import argparse
import csv
import json
import os
import resource
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
WARMUP = 2


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config", required=True, help="directory with config.json; random weights if there are none beside it")
    add("--tokenizer", required=True)
    add("--csv", required=True)
    add("--text", default=None, help="column (text, review, sentence or content)")
    add("--mode", choices=("train", "lora", "predict", "onnx", "tokenize"), default="train")
    add("--batch-size", type=int, default=16)
    add("--steps", type=int, default=12)
    add("--max-length", type=int, default=256)
    add("--pad", choices=("dynamic", "max"), default="dynamic")
    add("--sort", action="store_true", help="rows sorted by length")
    add("--dtype", choices=("fp32", "bf16"), default="fp32")
    add("--threads", type=int, default=2)
    return parser.parse_args()


def read_texts(args):
    with open(args.csv, encoding="utf-8", newline="") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(args.batch_size * args.steps))]
    column = args.text or next(name for name in ("text", "review", "sentence", "content") if name in rows[0])
    return [row[column] for row in rows]


def print_result(args, peer, seconds, texts, tokens):
    """seconds of each step; texts and tokens of the steps that count"""
    seconds = seconds[WARMUP:]
    print(json.dumps(dict(
        peer=peer, mode=args.mode, dtype=args.dtype, pad=args.pad, batch_size=args.batch_size, threads=args.threads,
        ex_per_s=round(texts / sum(seconds), 3), real_tok_per_s=round(tokens / sum(seconds), 1),
        ms_per_step=round(1e3 * sorted(seconds)[len(seconds) // 2], 2),
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)))


def run_tokenizer(args):
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(os.path.join(args.tokenizer, "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    texts, seconds, tokens = read_texts(args), [], 0
    for first in range(0, len(texts), args.batch_size):
        start = time.perf_counter()
        encodings = tokenizer.encode_batch_fast(texts[first:first + args.batch_size])
        seconds.append(time.perf_counter() - start)
        tokens += sum(len(encoding.ids) for encoding in encodings) if len(seconds) > WARMUP else 0
    print_result(args, "tokenizers " + tokenizers.__version__, seconds, len(texts) - WARMUP * args.batch_size, tokens)


def read_batches(args):
    import transformers
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    encoded = tokenizer(read_texts(args), truncation=True, max_length=args.max_length)["input_ids"]
    if args.sort:
        encoded.sort(key=len, reverse=True)
    chunks = [encoded[i:i + args.batch_size] for i in range(0, len(encoded), args.batch_size)]
    padding = dict(padding="max_length", max_length=args.max_length) if args.pad == "max" else dict(padding=True)
    batches = [tokenizer.pad(dict(input_ids=chunk), return_tensors="pt", **padding) for chunk in chunks]
    return [{key: batch[key] for key in ("input_ids", "attention_mask")} for batch in batches]


def make_model(args):
    import transformers
    kind = transformers.AutoModelForSequenceClassification
    if os.path.exists(os.path.join(args.config, "model.safetensors")):
        model = kind.from_pretrained(args.config, num_labels=2)
    else:
        model = kind.from_config(transformers.AutoConfig.from_pretrained(args.config, num_labels=2))
    if args.mode == "lora":
        import peft
        targets = ["q_lin", "v_lin"] if model.config.model_type == "distilbert" else ["query", "value"]
        model = peft.get_peft_model(model, peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=8, lora_alpha=16,
                                                           lora_dropout=0.1, target_modules=targets))
    return model


def time_training(args, model, batches):
    import torch
    import transformers
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.01)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 0, len(batches))
    model.train()
    for batch in batches:
        batch["labels"] = torch.arange(len(batch["input_ids"])) % 2
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield time.perf_counter() - start


def time_scoring(args, model, batches):
    import torch
    model.eval()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
        for batch in batches:
            start = time.perf_counter()
            model(**batch)
            yield time.perf_counter() - start


def time_onnx(args, model, batches):
    import onnxruntime
    import torch
    model.eval()
    names = ["input_ids", "attention_mask"]
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "model.onnx")
        torch.onnx.export(model, tuple(batches[0][name] for name in names), path, input_names=names, dynamo=False,
                          output_names=["logits"], dynamic_axes={name: {0: "texts", 1: "tokens"} for name in names})
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = args.threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    for batch in batches:
        inputs = {name: batch[name].numpy() for name in names}
        start = time.perf_counter()
        session.run(None, inputs)
        yield time.perf_counter() - start


def main():
    args = parse_arguments()
    if args.mode == "tokenize":
        return run_tokenizer(args)
    import torch
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    batches = read_batches(args)
    timer = dict(train=time_training, lora=time_training, predict=time_scoring, onnx=time_onnx)[args.mode]
    seconds = list(timer(args, make_model(args), batches))
    print_result(args, "onnxruntime" if args.mode == "onnx" else "torch " + torch.__version__, seconds,
                 sum(len(batch["input_ids"]) for batch in batches[WARMUP:]),
                 sum(int(batch["attention_mask"].sum()) for batch in batches[WARMUP:]))


if __name__ == "__main__":
    main()
