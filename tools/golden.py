#!/usr/bin/env python3
"""Write a small random model with PyTorch's reference numbers beside it.

The model directory has the Hugging Face layout (config.json, model.safetensors, tokenizer files), so both `ft` and
transformers load it. golden.safetensors beside it is what `ft verify DIR` compares with. It holds, dropout off:

  one batch     input_ids, attention_mask, token_type_ids (with --pairs), labels
                -> logits, loss [1], hidden.N (0 = what the first layer reads, N = what layer N writes),
                   grad.NAME for each trained parameter
  a short run   train.K.input_ids, .attention_mask, .token_type_ids, .labels for step K = 0, 1, ...
                -> losses [S], grad_norms [S] (before clipping), lrs [S], final.NAME (after the last step)
  metadata      lr, beta1, beta2, eps, weight_decay, scheduler, warmup_steps, total_steps, max_grad_norm, task,
                trained, lora_r, lora_alpha, family: all as strings

Biases of the attention keys are left out of grad and final: they shift every score of a row alike, so softmax cancels
them, their exact gradient is zero, and what is computed is rounding noise.

With --from DIR the model is a pretrained one and its weights are not copied. Then
  init.NAME            a tensor that DIR lacks, as a rule the new head
  index.NAME           flat indices: grad.NAME and final.NAME hold only these elements (--sample of them)
  scale.grad.NAME [1]  the largest magnitude in the whole gradient
  hidden.N             the first token only, [rows, 1, hidden]
With --trained lora, adapter/ holds the untrained adapter as PEFT saves it, and NAME is PEFT's name.

Three traps of writing references:
  - Labels go through the model's own loss with one batch per step. transformers 5.23 does not divide by the number of
    micro-batches under gradient accumulation, so the run has none.
  - Weight decay spares what Trainer spares: biases and every LayerNorm, but not the embeddings.
  - Adam divides a gradient by its own size, so where the exact gradient is (nearly) zero, rounding noise becomes a
    whole step. --check repeats everything in float64 and fails when the float32 numbers are not a usable reference.

usage: golden.py OUT [--family bert] [--task seq|mlm|tok] [--labels N] [--trained all|head|lora] [...]
       golden.py OUT --from DIR --texts FILE
golden_all.sh shows the commands behind tests/golden. Needs torch, transformers, tokenizers, safetensors; peft for lora.
"""

import argparse
import copy
import json
import os
import re
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

# Text of very different lengths: the shortest is one word, the longest is cut at 40 tokens.
SENTENCES = """
Splendid!
Never again.
The soup was cold.
I would watch it twice.
Two of the three lamps arrived broken.
A quiet film about a loud family, and the best thing I have seen this year.
Our train left at 7:45, eleven minutes late.
She plays the cello as if the room were empty.
Don't buy this kettle; it leaks.
Well-made, well-priced, well worth the wait.
The first chapter promises, the second explains, the third takes it all back.
It rained.
My grandmother's recipe needs four eggs and a great deal of patience.
The café closes at noon, a pity, because the crème brûlée is superb.
This is the dullest lecture on volcanoes ever given.
After the update the phone no longer rings, the screen flickers, and the battery is empty before lunch.
He laughed, she cried, I slept.
An honest portrait of a difficult man.
No lift, no heating, no breakfast, and we were happy there.
Read the instructions first!
Cheap, cheerful, gone in a week.
What a waste of paper.
The children built a bridge of ice and watched the river carry it off in April.
A guide for people who like long walks and short sentences.
Nothing works as described.
The orchestra was wonderful; the hall was not.
They promised 3 days and needed 30.
A slow beginning, a strong middle, a perfect end.
Why is the sequel never funny?
The bread is good and the coffee is even better.
I expected little and received less.
Light, fast, simple to repair.
Her second novel is warmer than the first, less clever, and far more likely to be read again.
The finest paintings hang where nobody stops.
Perfect for beginners.
The plot makes no sense, and still the evening flew by.
Too sweet.
We asked for a window and were given the kitchen door.
On the last page the detective admits that he guessed, and I have rarely been so angry with a book.
Good shoes, bad laces.
Whoever wrote this manual has never met the machine.
Thank you, it fits!
""".strip().splitlines()

# ---------------------------------------------------------------------------------------------------------------------
# The families. Adding one is adding a row.
#   config       class and the values that its published checkpoints have and the class defaults do not
#   sizes        the family's config keys for hidden, layers, heads, intermediate, activation
#   embedding    config key of an embedding width of its own (half of hidden is used), or None
#   positions    rows in the position table beyond the longest text
#   token_types  whether a pair's second text has token type 1
#   lora         modules that get an adapter
#   vocabulary   how the built-in tokenizer is made

BERT_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
DISTILBERT_SIZES = ("dim", "n_layers", "n_heads", "hidden_dim", "activation")
ROBERTA_CONFIG = dict(type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1, bos_token_id=0, eos_token_id=2)
BERT_LORA = ["query", "value"]

FAMILIES = {
    "bert": dict(config=(transformers.BertConfig, {}), sizes=BERT_SIZES, embedding=None, positions=0,
                 token_types=True, lora=BERT_LORA, vocabulary="wordpiece"),
    "distilbert": dict(config=(transformers.DistilBertConfig, {}), sizes=DISTILBERT_SIZES, embedding=None, positions=0,
                       token_types=False, lora=["q_lin", "v_lin"], vocabulary="wordpiece"),
    "roberta": dict(config=(transformers.RobertaConfig, ROBERTA_CONFIG), sizes=BERT_SIZES, embedding=None, positions=2,
                    token_types=False, lora=BERT_LORA, vocabulary="bytes"),
    "albert": dict(config=(transformers.AlbertConfig, dict(num_hidden_groups=1)), sizes=BERT_SIZES,
                   embedding="embedding_size", positions=0, token_types=True, lora=BERT_LORA, vocabulary="wordpiece"),
    "electra": dict(config=(transformers.ElectraConfig, {}), sizes=BERT_SIZES, embedding="embedding_size", positions=0,
                    token_types=True, lora=BERT_LORA, vocabulary="wordpiece"),
}

MODEL_CLASSES = {
    "seq": transformers.AutoModelForSequenceClassification,
    "mlm": transformers.AutoModelForMaskedLM,
    "tok": transformers.AutoModelForTokenClassification,
}

DROPOUT_KEYS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "classifier_dropout_prob",
                "dropout", "attention_dropout", "seq_classif_dropout", "summary_last_dropout")

IGNORED_LABEL = -100  # torch's cross-entropy skips it
BETA1, BETA2, EPSILON, MAX_GRAD_NORM = 0.9, 0.999, 1e-8, 1.0


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer


def train_wordpiece(sentences, size):
    """A lower-casing WordPiece vocabulary, as a list in the order of the ids.

    The trainer numbers the continuation letters (##a, ##b, ...) in the order of a hash table, which differs from run
    to run, and breaks ties between merges by those numbers. Naming the letters as special tokens fixes both.
    """
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trained = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = tokenizers.normalizers.BertNormalizer()
    trained.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    letters = sorted(set("".join(trained.normalizer.normalize_str(s) for s in sentences)) - {" "})
    alphabet = letters + ["##" + letter for letter in letters if letter.isalnum()]
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials + alphabet,
                                                   show_progress=False)
    trained.train_from_iterator(sentences, trainer)
    vocabulary = trained.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def train_byte_pairs(sentences, size):
    """A byte-level BPE in RoBERTa's manner: its vocabulary, which holds all 256 bytes, and its merges."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=max(size, 320), special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    trained.train_from_iterator(sentences, trainer)
    model = json.loads(trained.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def make_tokenizer(family, vocabulary_size, max_length):
    if FAMILIES[family]["vocabulary"] == "bytes":
        vocabulary, merges = train_byte_pairs(SENTENCES, vocabulary_size)
        return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)
    vocabulary = {token: i for i, token in enumerate(train_wordpiece(SENTENCES, vocabulary_size))}
    tokenizer_class = transformers.DistilBertTokenizer if family == "distilbert" else transformers.BertTokenizer
    return tokenizer_class(vocab=vocabulary, model_max_length=max_length)


def save_tokenizer(tokenizer, directory, layout):
    """Layout "json" is tokenizer.json; "vocab" the older files, vocab.txt or vocab.json and merges.txt."""
    tokenizer.save_pretrained(directory)
    config_path = os.path.join(directory, "tokenizer_config.json")
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    for key in ("is_local", "local_files_only", "name_or_path"):  # where it came from is no property of the tokenizer
        config.pop(key, None)
    if layout == "vocab":
        tokenizer.backend_tokenizer.model.save(directory)
        os.remove(os.path.join(directory, "tokenizer.json"))
        if isinstance(tokenizer, transformers.BertTokenizer):
            config = {key: config[key] for key in ("tokenizer_class", "do_lower_case", "model_max_length")}
    write_json(config_path, config)


# ---------------------------------------------------------------------------------------------------------------------
# Model


def make_config(args, vocabulary_size, pad_token_id):
    family = FAMILIES[args.family]
    config_class, values = family["config"]
    values = dict(values, vocab_size=vocabulary_size, pad_token_id=pad_token_id,
                  max_position_embeddings=args.max_positions + family["positions"])
    for key, value in zip(family["sizes"], (args.hidden, args.layers, args.heads, args.intermediate, args.activation)):
        if value is not None:
            values[key] = value
    if family["embedding"]:
        values[family["embedding"]] = args.hidden // 2
    values.update((key, int(value)) for key, value in (setting.split("=") for setting in args.set))
    return config_class(**values)


def set_task(config, args):
    """Number of labels, kind of loss, and no dropout anywhere."""
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, 0.0)
    if args.task == "mlm":
        return
    config.num_labels = 1 if args.regression else args.labels
    if args.task == "seq":
        config.problem_type = ("regression" if args.regression else
                               "multi_label_classification" if args.multi_label else "single_label_classification")


def layer_norm_parameters(model):
    return {f"{name}.{part}" for name, module in model.named_modules() if isinstance(module, torch.nn.LayerNorm)
            for part, _ in module.named_parameters(recurse=False)}


def widen_weights(model, generator, std):
    """The usual initialisation (0.02) makes nearly constant outputs that hide mistakes: spread the weights."""
    norms = layer_norm_parameters(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, std, generator=generator)
            else:
                parameter.normal_(0, 0.1, generator=generator)
                if name in norms and name.endswith("weight"):
                    parameter += 1


def load_pretrained(args):
    """The model of --from with a new head, and the new tensors: the head's and whatever else the files lack."""
    config = transformers.AutoConfig.from_pretrained(args.source)
    set_task(config, args)
    model, info = MODEL_CLASSES[args.task].from_pretrained(
        args.source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True)
    new = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    if args.task != "mlm":  # whose head is pretrained too
        new |= {name for name, _ in model.named_parameters() if not name.startswith(model.base_model_prefix + ".")}
    norms = layer_norm_parameters(model)
    generator = torch.Generator().manual_seed(args.seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in new and parameter.dim() > 1:
                parameter.normal_(0, model.config.initializer_range, generator=generator)
            elif name in new:
                parameter.fill_(1.0 if name in norms and name.endswith("weight") else 0.0)
    return model, {name: p.detach().clone() for name, p in model.named_parameters() if name in new}


def save_legacy_names(model, directory):
    """Rewrite model.safetensors as older checkpoints are: two shards, no base prefix, LayerNorm.gamma and .beta."""
    path = os.path.join(directory, "model.safetensors")
    tensors = {}
    for name, tensor in load_file(path).items():
        name = re.sub(r"^" + model.base_model_prefix + r"\.", "", name)
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[name] = tensor
    os.remove(path)
    total = sum(tensor.nbytes for tensor in tensors.values())
    shards, seen = ({}, {}), 0
    for name in sorted(tensors):
        shards[2 * seen >= total][name] = tensors[name]
        seen += tensors[name].nbytes
    weight_map = {}
    for i, shard in enumerate(shards):
        file_name = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file(shard, os.path.join(directory, file_name), metadata={"format": "pt"})
        weight_map.update((name, file_name) for name in shard)
    write_json(path + ".index.json", dict(metadata=dict(total_size=total), weight_map=weight_map))


def choose_trained(model, args):
    """Freeze what does not train; for lora, wrap the model and write the untrained adapter."""
    if args.trained == "head":
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(False)
    if args.trained != "lora":
        return model
    import peft
    task_type = {"seq": peft.TaskType.SEQ_CLS, "tok": peft.TaskType.TOKEN_CLS, "mlm": None}[args.task]
    options = dict(task_type=task_type, r=args.lora_r, lora_alpha=args.lora_alpha, lora_dropout=0.0,
                   target_modules=FAMILIES[args.family]["lora"])
    model = peft.get_peft_model(model, peft.LoraConfig(**dict(options, **json.loads(args.peft))))
    generator = torch.Generator().manual_seed(args.seed + 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter *= 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
            elif "lora_" in name:  # B starts at zero in PEFT, which would leave A without a gradient
                parameter.normal_(0, 0.1, generator=generator)
    adapter = os.path.join(args.out, "adapter")
    model.save_pretrained(adapter)
    config_path = os.path.join(adapter, "adapter_config.json")
    with open(config_path, encoding="utf-8") as file:
        config = json.load(file)
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # it came from a set
    write_json(config_path, dict(config, base_model_name_or_path=None))  # the base is beside it, wherever that is
    readme = os.path.join(adapter, "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Batches


def random_labels(batch, args, num_labels, tokenizer, generator):
    ids, rows = batch["input_ids"], len(batch["input_ids"])
    if args.task == "seq":
        if args.regression:
            return torch.randn(rows, generator=generator)
        if args.multi_label:
            return torch.randint(0, 2, (rows, num_labels), generator=generator).float()
        # Every label occurs, but not equally often: over a balanced batch the gradients of a new head's biases cancel,
        # and what is left of them is rounding noise.
        shift = torch.randint(0, num_labels, (1,), generator=generator)
        return (torch.randperm(rows, generator=generator).clamp(max=num_labels - 1) + shift) % num_labels
    special = torch.tensor([tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True)
                            for row in ids.tolist()], dtype=torch.bool)
    if args.task == "tok":
        return torch.randint(0, num_labels, ids.shape, generator=generator).masked_fill(special, IGNORED_LABEL)
    picked = (torch.rand(ids.shape, generator=generator) < 0.25) & ~special
    picked[:, 1] |= ~special[:, 1]  # at least the first real token of each text
    labels = ids.masked_fill(~picked, IGNORED_LABEL)
    ids[picked] = tokenizer.mask_token_id
    return labels


def make_batch(args, tokenizer, texts, num_labels, number):
    """Batch `number` of this seed: different texts, padded on the right to the longest of them."""
    generator = torch.Generator().manual_seed(1000 * args.seed + number)

    def pick():
        return [texts[i] for i in torch.randperm(len(texts), generator=generator)[:args.batch_size]]

    columns = (pick(), pick()) if args.pairs else (pick(),)
    encoded = tokenizer(*columns, truncation=True, max_length=args.max_length, padding=True, padding_side="right",
                        return_tensors="pt", return_token_type_ids=args.pairs and FAMILIES[args.family]["token_types"])
    batch = dict(encoded)
    batch["labels"] = random_labels(batch, args, num_labels, tokenizer, generator)
    return batch


# ---------------------------------------------------------------------------------------------------------------------
# The reference numbers


def is_key_bias(name):
    return re.search(r"\.(key|k_lin)\.bias$", name) is not None


def make_optimizer(model, trained, args):
    norms = layer_norm_parameters(model)
    spared = [name in norms or "bias" in name for name in trained]
    groups = [dict(params=[p for p, s in zip(trained.values(), spared) if not s], weight_decay=args.weight_decay),
              dict(params=[p for p, s in zip(trained.values(), spared) if s], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(BETA1, BETA2), eps=EPSILON)
    name = "constant_with_warmup" if args.scheduler == "constant" else args.scheduler
    return optimizer, transformers.get_scheduler(name, optimizer, args.warmup, args.steps)


def compute_reference(model, batches, args):
    """All outputs for batches[0] at the model's weights, then one training step on each of the others."""
    dtype = next(model.parameters()).dtype
    floats = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()} for batch in batches]
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    kept = [name for name in trained if not is_key_bias(name)]
    reference = {}
    model.train()  # as a training run would; every dropout probability is zero

    output = model(**floats[0], output_hidden_states=True)
    output.loss.backward()
    reference["logits"] = output.logits.detach()
    reference["loss"] = output.loss.detach().reshape(1)
    # one for every layer that runs; an ALBERT layer runs all layers of its group
    hidden_states = output.hidden_states[::getattr(model.config, "inner_group_num", 1)]
    assert len(hidden_states) == args.layers + 1
    for i, hidden in enumerate(hidden_states):
        reference[f"hidden.{i}"] = hidden.detach()
    for name in kept:
        gradient = trained[name].grad
        reference["grad." + name] = torch.zeros_like(trained[name]) if gradient is None else gradient.clone()
    model.zero_grad()

    optimizer, schedule = make_optimizer(model, trained, args)
    losses, norms, rates = [], [], []
    for batch in floats[1:]:
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), MAX_GRAD_NORM).item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    reference["losses"] = torch.tensor(losses, dtype=dtype)
    reference["grad_norms"] = torch.tensor(norms, dtype=dtype)
    reference["lrs"] = torch.tensor(rates, dtype=dtype)
    for name in kept:
        reference["final." + name] = trained[name].detach().clone()
    return reference


def sample_elements(reference, count, generator):
    """For large models: of each tensor keep the largest gradients and as many random elements."""
    for name in [key[len("grad."):] for key in reference if key.startswith("grad.")]:
        gradient = reference["grad." + name].flatten()
        half = min((count + 1) // 2, gradient.numel())
        index = torch.unique(torch.cat([gradient.abs().topk(half).indices,
                                        torch.randint(0, gradient.numel(), (half,), generator=generator)]))
        reference["index." + name] = index
        reference["scale.grad." + name] = gradient.abs().max().reshape(1)
        reference["grad." + name] = gradient[index]
        reference["final." + name] = reference["final." + name].flatten()[index]
    for key in reference:
        if key.startswith("hidden."):
            reference[key] = reference[key][:, :1]


def check_against_float64(reference, exact, mask):
    """Print float32's distance from float64, with `ft verify`'s measure; False when half of its tolerance is passed."""
    tolerance = dict(logits=1e-5, hidden=1e-5, loss=5e-6, losses=5e-6, grad_norms=5e-5, lrs=1e-6, grad=1e-4)
    grad_scale = max([v.abs().max() for k, v in exact.items() if k.startswith("grad.")])
    worst, fine = {}, True
    for key, ours in reference.items():
        group, theirs = key.split(".")[0], exact[key]
        difference = (ours.double() - theirs).abs()
        scale = theirs.abs().max()
        if group == "hidden" or (group == "logits" and theirs.dim() == 3):
            difference, scale = difference[mask], theirs[mask].abs().max()
        if group == "grad":
            scale = max(scale, 1e-4 * grad_scale)
        if group == "final":  # `ft verify` allows 0.1 % of the elements to be 1e-4 of the scale away
            error = (difference > 3e-5 * scale).double().mean().item()
            limit = 5e-4
        else:
            error = (difference.max() / scale).item()
            limit = tolerance[group] / 2
        worst[group] = max(worst.get(group, 0.0), error)
        if not error <= limit:
            print(f"float32 is no reference for {key}: {error:.2e} from float64")
            fine = False
    print("  float64 check:", " ".join(f"{group} {error:.1e}" for group, error in worst.items()))
    return fine


# ---------------------------------------------------------------------------------------------------------------------


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, sort_keys=True)
        file.write("\n")


def sort_metadata(path):
    """safetensors writes __metadata__ in the order of a hash table: sort it, so that equal numbers make equal files."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def read_texts(path):
    if path is None:
        return SENTENCES
    with open(path, encoding="utf-8", newline="\n") as file:
        return [line.strip() for line in file if line.strip()]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="The file format is described at the "
                                     "top of this script.")
    add = parser.add_argument
    add("out", help="directory to write; an existing one is replaced file by file")
    add("--family", choices=sorted(FAMILIES), help="default bert, or what --from has")
    add("--task", choices=sorted(MODEL_CLASSES), default="seq")
    add("--labels", type=int, default=2)
    add("--multi-label", action="store_true", help="labels are float [rows, labels], loss is binary cross-entropy")
    add("--regression", action="store_true", help="labels are float [rows], loss is the squared error")
    add("--pairs", action="store_true", help="two texts per row, with token types where the family has them")
    add("--trained", choices=("all", "head", "lora"), default="all")
    add("--lora-r", "--lora", type=int, default=0, metavar="R", help="rank; implies --trained lora (default 4)")
    add("--lora-alpha", type=int, default=0, help="default 2 R")
    add("--peft", metavar="JSON", default="{}", help="further options of peft.LoraConfig: '{\"use_dora\": true}'")
    add("--hidden", type=int, default=32)
    add("--layers", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--intermediate", type=int, default=64)
    add("--activation", help="default: the family's")
    add("--set", action="append", default=[], metavar="KEY=N", help="any other whole number of config.json")
    add("--std", type=float, default=0.12, help="spread of the random matrices")
    add("--max-positions", type=int, default=40, help="longest text that the position table allows")
    add("--vocabulary", type=int, default=250, help="entries of the built-in tokenizer (byte level: at least 320)")
    add("--tokenizer", metavar="DIR", help="use this tokenizer rather than the built-in one")
    add("--tokenizer-layout", choices=("json", "vocab"), default="json", help="tokenizer.json, or vocab.txt instead")
    add("--legacy-names", action="store_true", help="two shards, no base prefix, LayerNorm.gamma/beta")
    add("--from", dest="source", metavar="DIR", help="a pretrained model; its weights are not copied")
    add("--sample", type=int, default=64, help="elements kept of each tensor with --from")
    add("--texts", metavar="FILE", help="one text per line; default: sentences built in")
    add("--max-length", type=int, help="tokens per row; default --max-positions (128 with --from)")
    add("--batch-size", type=int, default=4)
    add("--steps", type=int, default=5)
    add("--scheduler", choices=("linear", "cosine", "constant"), default="linear")
    add("--warmup", type=int, default=2)
    add("--lr", type=float, default=5e-4)
    add("--weight-decay", type=float, default=0.01)
    add("--seed", type=int, default=1)
    add("--check", action="store_true", help="compare with float64; exit 1 if the reference is not sharp enough")
    args = parser.parse_args()
    if args.source:
        found = transformers.AutoConfig.from_pretrained(args.source).model_type
        if found not in FAMILIES or args.family not in (None, found):
            parser.error(f"{args.source} is a {found} model")
        args.family = found
        if args.legacy_names:
            parser.error("--from copies no weights, so there are none to give --legacy-names")
    args.family = args.family or "bert"
    args.max_length = args.max_length or (128 if args.source else args.max_positions)
    if args.lora_r:
        args.trained = "lora"
    if args.trained == "lora":
        args.lora_r = args.lora_r or 4
        args.lora_alpha = args.lora_alpha or 2 * args.lora_r
    if (args.multi_label or args.regression) and args.task != "seq" or (args.multi_label and args.regression):
        parser.error("--multi-label and --regression exclude each other and go with --task seq")
    return args


def main():
    args = parse_arguments()
    warnings.simplefilter("ignore", FutureWarning)  # peft's, about transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)  # sums in a fixed order
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)

    tokenizer_source = args.tokenizer or args.source
    tokenizer = (transformers.AutoTokenizer.from_pretrained(tokenizer_source) if tokenizer_source else
                 make_tokenizer(args.family, args.vocabulary, args.max_positions))
    new_tensors = {}
    if args.source:
        model, new_tensors = load_pretrained(args)
        args.layers = model.config.num_hidden_layers
    else:
        config = make_config(args, len(tokenizer), tokenizer.pad_token_id)
        set_task(config, args)
        model = MODEL_CLASSES[args.task].from_config(config)
        widen_weights(model, torch.Generator().manual_seed(args.seed + 1), args.std)
        model.save_pretrained(args.out)
        if args.legacy_names:
            save_legacy_names(model, args.out)
        save_tokenizer(tokenizer, args.out, args.tokenizer_layout)
    num_labels = model.config.num_labels
    model = choose_trained(model, args)

    texts = read_texts(args.texts)
    batches = [make_batch(args, tokenizer, texts, num_labels, number) for number in range(args.steps + 1)]
    lengths = batches[0]["attention_mask"].sum(1).tolist()
    if args.batch_size > 1 and len(set(lengths)) == 1:
        print("all texts of the first batch are equally long, so it tests no padding: change --seed or --max-length")

    double = copy.deepcopy(model).double() if args.check else None
    trained_count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    reference = compute_reference(model, batches, args)
    fine = True
    print(f"{args.out}: {args.family} {args.task}, {trained_count} trained, lengths {lengths}, losses",
          " ".join(f"{loss:.4f}" for loss in reference["losses"].tolist()))
    if args.check:
        fine = check_against_float64(reference, compute_reference(double, batches, args),
                                     batches[0]["attention_mask"].bool())

    if args.source:
        sample_elements(reference, args.sample, torch.Generator().manual_seed(args.seed + 3))
    reference.update(("init." + name, tensor) for name, tensor in new_tensors.items())
    reference.update(batches[0])
    for step, batch in enumerate(batches[1:]):
        reference.update((f"train.{step}.{name}", tensor) for name, tensor in batch.items())
    metadata = dict(family=args.family, task=args.task, trained=args.trained, lora_r=args.lora_r,
                    lora_alpha=args.lora_alpha, lr=args.lr, beta1=BETA1, beta2=BETA2, eps=EPSILON,
                    weight_decay=args.weight_decay, max_grad_norm=MAX_GRAD_NORM, scheduler=args.scheduler,
                    warmup_steps=args.warmup, total_steps=args.steps)
    path = os.path.join(args.out, "golden.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in reference.items()}, path,
              metadata={key: str(value) for key, value in metadata.items()})
    sort_metadata(path)
    return 0 if fine else 1


if __name__ == "__main__":
    raise SystemExit(main())
