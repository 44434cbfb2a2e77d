#!/usr/bin/env python3
"""Test tools/to_safetensors.py on small models made with transformers; tests/fetch.sh calls it. The last line is
"N passed, N failed". Needs torch, transformers and safetensors.
"""
import json
import os
import pickle
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools", "to_safetensors.py")
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 20}
passed = failed = 0


def check(words, condition):
    global passed, failed
    passed, failed = passed + bool(condition), failed + (not condition)
    if not condition:
        print("failed:", words)


def convert(directory, *options):
    return subprocess.run([sys.executable, TOOL, directory, *options], capture_output=True, text=True)


def keys_transformers_saves(model):
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        return set(load_file(os.path.join(directory, "model.safetensors")))


def check_model(root, name, model, shards=1):
    """Saves a model as old checkpoints are, converts it, and loads it with transformers."""
    directory = os.path.join(root, name)
    os.mkdir(directory)
    model.eval().config.save_pretrained(directory)
    state, names = model.state_dict(), sorted(model.state_dict())
    for key in names:
        if key.endswith(("query.weight", "q_lin.weight")):
            state[key] = state[key].t().contiguous().t()  # the same numbers in another order in memory
    if shards == 1:
        torch.save(state, os.path.join(directory, "pytorch_model.bin"))
    else:
        files = [f"pytorch_model-0000{k + 1}-of-0000{shards}.bin" for k in range(shards)]
        for k, file in enumerate(files):
            torch.save({key: state[key] for key in names[k::shards]}, os.path.join(directory, file))
        with open(os.path.join(directory, "pytorch_model.bin.index.json"), "w") as file:
            json.dump({"weight_map": {key: files[k % shards] for k, key in enumerate(names)}}, file)
    result = convert(directory)
    check(f"{name}: {result.stderr}", result.returncode == 0)
    path = os.path.join(directory, "model.safetensors")
    converted = load_file(path)
    with safe_open(path, "pt") as file:
        check(f"{name}: metadata", file.metadata() == {"format": "pt"})
    check(f"{name}: the same bits", all(torch.equal(value, state[key]) for key, value in converted.items()))
    if shards == 1:  # tied tensors in two shards are two tensors
        check(f"{name}: transformers' names", set(converted) == keys_transformers_saves(model))
    for file in os.listdir(directory):
        if file.startswith("pytorch_model"):
            os.remove(os.path.join(directory, file))
    loaded, info = type(model).from_pretrained(directory, output_loading_info=True)
    check(f"{name}: nothing missing", not info["missing_keys"] and not info["unexpected_keys"])
    ids = torch.arange(5, 15).reshape(2, 5)
    with torch.no_grad():
        check(f"{name}: the same output", torch.equal(loaded.eval()(ids)[0], model(ids)[0]))


def check_refusals(root):
    directory = os.path.join(root, "refused")
    os.mkdir(directory)

    def refused(words, *options):
        result = convert(directory, *options)
        check(f"{words}: {result.stdout}{result.stderr}", result.returncode == 1 and words in result.stderr
              and result.stderr.count("\n") == 1 and not any("tmp" in name for name in os.listdir(directory)))

    def write(name, content):
        with open(os.path.join(directory, name), "wb") as file:
            file.write(content)

    refused("neither pytorch_model.bin nor")
    torch.save({"weight": torch.ones(2), "step": 3}, os.path.join(directory, "pytorch_model.bin"))
    refused("'step' is no dense tensor but int")
    torch.save([torch.ones(2)], os.path.join(directory, "pytorch_model.bin"))
    refused("a dict of tensors is expected, not list")
    torch.save({}, os.path.join(directory, "pytorch_model.bin"))
    refused("the weights hold no tensor")
    write("pytorch_model.bin", b"")
    check("an empty file", convert(directory).returncode == 1)
    write("pytorch_model.bin", pickle.dumps(print, protocol=2))  # code, not weights
    refused("cannot be read: Weights only load failed")
    check("nothing is left", sorted(os.listdir(directory)) == ["pytorch_model.bin"])
    torch.save({"weight": torch.ones(2)}, os.path.join(directory, "pytorch_model.bin"))
    write("model.safetensors", b"mine")
    refused("model.safetensors is there already; --overwrite replaces it")
    check("--overwrite", convert(directory, "--overwrite").returncode == 0)
    check("--overwrite", list(load_file(os.path.join(directory, "model.safetensors"))) == ["weight"])
    os.remove(os.path.join(directory, "model.safetensors"))
    os.remove(os.path.join(directory, "pytorch_model.bin"))
    write("pytorch_model.bin.index.json", json.dumps({"weight_map": {"a": "../pytorch_model.bin"}}).encode())
    refused("'../pytorch_model.bin' is no file name of a shard")
    write("pytorch_model.bin.index.json", b"[]")
    refused("no index with a weight_map")


with tempfile.TemporaryDirectory() as temporary:
    torch.manual_seed(1)
    bert, albert = transformers.BertConfig(**SIZES), transformers.AlbertConfig(embedding_size=8, **SIZES)
    distilbert = transformers.DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24)
    electra = transformers.ElectraConfig(embedding_size=8, **SIZES)
    check_model(temporary, "bert", transformers.BertForMaskedLM(bert))
    check_model(temporary, "bert-shards", transformers.BertForMaskedLM(bert), shards=3)
    check_model(temporary, "bert-classifier", transformers.BertForSequenceClassification(bert))
    check_model(temporary, "roberta", transformers.RobertaForMaskedLM(transformers.RobertaConfig(**SIZES)))
    check_model(temporary, "albert", transformers.AlbertForMaskedLM(albert))
    check_model(temporary, "electra", transformers.ElectraForMaskedLM(electra))
    check_model(temporary, "distilbert", transformers.DistilBertForMaskedLM(distilbert))
    check_refusals(temporary)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
