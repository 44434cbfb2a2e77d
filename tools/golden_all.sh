#!/bin/sh
# Write tests/golden: small random models with PyTorch's reference numbers beside them (the format: tools/golden.py).
#
# usage: tools/golden_all.sh [OUT]        default OUT: tests/golden; PYTHON names the interpreter, default python3
#
# Sizes are small because the files are kept in the repository, and mostly odd because kernels go wrong at the edges.
# The same versions of torch and transformers on the same kind of processor write the same bytes again.
set -e
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$(dirname "$here")/tests/golden}
golden() { name=$1; shift; "${PYTHON:-python3}" "$here/golden.py" "$out/$name" --check --vocabulary 200 "$@"; }

# every part of BERT: two texts per row, token types, pooler; tokenizer.json
golden bert-pairs           --family bert --pairs --scheduler linear --seed 11
# no token types, no pooler but pre_classifier; vocab.txt; heads of 5
golden distilbert           --family distilbert --hidden 20 --intermediate 44 --scheduler linear --seed 12 --tokenizer-layout vocab
# three labels, cosine schedule, tanh gelu, one layer more
golden bert-cosine-3labels  --family bert --labels 3 --hidden 15 --heads 3 --layers 3 --intermediate 38 --activation gelu_new --scheduler cosine --warmup 1 --vocabulary 120 --seed 13
# several labels at once: binary cross-entropy over float labels; no warmup; relu
golden bert-multilabel      --family bert --labels 4 --multi-label --hidden 14 --heads 2 --intermediate 35 --activation relu --scheduler constant --warmup 0 --steps 4 --vocabulary 120 --seed 14
# one output, squared error over float labels
golden distilbert-regression --family distilbert --regression --hidden 16 --intermediate 33 --scheduler linear --vocabulary 120 --seed 15
# only pre_classifier and classifier train
golden distilbert-head      --family distilbert --trained head --hidden 20 --intermediate 40 --scheduler constant --lr 1e-2 --seed 16
# two shards, names as old checkpoints have them (no bert., LayerNorm.gamma and .beta); golden.safetensors has today's
golden bert-legacy          --family bert --hidden 16 --intermediate 32 --scheduler linear --vocabulary 120 --seed 17 --legacy-names --tokenizer-layout vocab
# a reference as for large models, whose weights are elsewhere: ft verify bert-sampled --model bert-pairs
golden bert-sampled         --from "$out/bert-pairs" --sample 16 --max-length 40 --scheduler linear --seed 18

# The other families and heads, with few numbers: a reference holds its weights three times.
small() { name=$1; shift; golden "$name" --hidden 12 --heads 2 --intermediate 20 --vocabulary 100 --max-length 24 --steps 2 --warmup 1 "$@"; }

# positions that begin behind the padding's, a new dense layer between two dropouts
small roberta               --family roberta --labels 3 --seed 21
# two groups of two layers each that six layers share, embeddings half as wide, token types
small albert-groups         --family albert --pairs --max-length 40 --layers 6 --set num_hidden_groups=2 --set inner_group_num=2 --seed 22
# embeddings half as wide, and a head of its own
small electra               --family electra --pairs --max-length 40 --labels 3 --seed 23
# masked language models of every family: tied decoders, two of them at the embeddings' width; silu in one
small bert-masked           --family bert --task mlm --activation silu --max-length 14 --seed 34
small distilbert-masked     --family distilbert --task mlm --max-length 14 --seed 25
small roberta-masked        --family roberta --task mlm --batch-size 3 --activation relu --max-length 14 --seed 26
small albert-masked         --family albert --task mlm --seed 37
small electra-masked        --family electra --task mlm --max-length 14 --seed 28
# token classification, with special tokens left out of the loss
small bert-tokens           --family bert --task tok --labels 5 --seed 29
small distilbert-tokens     --family distilbert --task tok --labels 3 --seed 30
small roberta-tokens        --family roberta --task tok --labels 3 --trained head --seed 33

# Adapters for some of these models, with what peft makes of them: ft verify bert-lora --model bert-pairs
lora() { name=$1; base=$2; shift 2; golden "$name" --from "$out/$base" --sample 16 --max-length 24 --steps 2 --warmup 1 --trained lora "$@"; }

lora bert-lora              bert-pairs --seed 41
lora roberta-lora           roberta --labels 3 --seed 42
# names by a regular expression, scaling by the root of the rank, two different heads trained with it
lora distilbert-lora        distilbert --lora-r 3 --seed 43 --peft '{"use_rslora": true, "target_modules": ".*\\.(?:[qv]_lin|lin\\d)"}'
lora bert-dora              bert-pairs --lora-r 2 --seed 44 --peft '{"use_dora": true}'
# every linear layer; six layers share two groups, so each update serves three of them
lora albert-lora            albert-groups --lora-r 2 --seed 45 --peft '{"target_modules": "all-linear"}'
# what selects and scales: some layers, ranks and alphas by pattern; all biases train too, and the pooler
lora bert-lora-patterns     bert-cosine-3labels --labels 3 --lora-r 2 --seed 46 --peft '{"target_modules": ["query", "key", "output.dense"], "layers_to_transform": [0, 2], "rank_pattern": {"query": 3, "2.output.dense": 1}, "alpha_pattern": {"attention.*": 5}, "bias": "all", "modules_to_save": ["pooler"]}'
lora bert-tokens-lora       bert-tokens --task tok --labels 5 --seed 49 --peft '{"bias": "lora_only"}'
