#!/usr/bin/env python3
"""Convert the weights of a model directory from PyTorch's pickles to model.safetensors, which finetune.h reads.

usage: to_safetensors.py DIR [--overwrite]

Reads DIR/pytorch_model.bin, or the shards that DIR/pytorch_model.bin.index.json names, as torch.load does with
weights_only: no code in them is run. Names, shapes and numbers stay as they are. A tensor that is there twice (output
weights tied to the word embeddings) is written once, under the name that transformers keeps. The pickles are left where
they are. Needs the packages torch and safetensors.
"""
import argparse
import json
import os
import sys

import torch
from safetensors.torch import save_file


def fail(message):
    sys.exit(f"error: {message}")


def pickles(directory):
    """The weight files of a directory."""
    single, index = (os.path.join(directory, name) for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"))
    if os.path.isfile(single):
        return [single]
    if not os.path.isfile(index):
        fail(f"{directory} holds neither pytorch_model.bin nor pytorch_model.bin.index.json")
    try:
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fail(f"{index}: no index with a weight_map: {error!r}")
    for name in names:
        if not isinstance(name, str) or name != os.path.basename(name) or not name.endswith(".bin"):
            fail(f"{index}: {name!r} is no file name of a shard")
    return [os.path.join(directory, name) for name in names]


def read(path):
    """The tensors of one pickle by name."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes torch raise; its first sentence
        fail(f"{path} cannot be read: {(str(error) or repr(error)).splitlines()[0].split('. ')[0]}")
    if not isinstance(content, dict):
        fail(f"{path}: a dict of tensors is expected, not {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
            fail(f"{path}: {name!r} is no dense tensor but {type(value).__name__}")
    return content


def preference(name):
    """Of tied tensors the smallest is kept: the word embeddings, and of two biases the one outside the decoder."""
    return "embeddings.word_embeddings." not in name, ".decoder." in name, len(name), name


def without_duplicates(tensors):
    """Leaves out tensors that are the same memory seen in the same way."""
    places = {}
    for name, tensor in tensors.items():
        place = tensor.dtype, tensor.shape, tensor.stride(), tensor.data_ptr()
        places.setdefault(place if tensor.numel() else name, []).append(name)
    for names in places.values():
        names.sort(key=preference)
        for name in names[1:]:
            print(f"{name} is {names[0]}: left out")
    return {names[0]: tensors[names[0]] for names in places.values()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--overwrite", action="store_true", help="replace a model.safetensors that is there")
    arguments = parser.parse_args()
    out = os.path.join(arguments.directory, "model.safetensors")
    for existing in (out, out + ".index.json"):
        if os.path.lexists(existing) and not (arguments.overwrite and existing == out):
            fail(f"{existing} is there already" + ("; --overwrite replaces it" if existing == out else ""))
    tensors = {}
    for path in pickles(arguments.directory):
        for name, tensor in read(path).items():
            if name in tensors:
                fail(f"{path}: {name} is in another shard too")
            tensors[name] = tensor
    if not tensors:
        fail(f"{arguments.directory}: the weights hold no tensor")
    # A clone: safetensors wants each tensor contiguous and in memory of its own.
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format)
               for name, tensor in without_duplicates(tensors).items()}
    temporary = f"{out}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, out)
    except Exception as error:
        fail(f"{out} cannot be written: {error}")
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)
    print(f"{out}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values())} numbers")


main()
