/* lora.c - adapters: which modules they adapt, PEFT directories read and written, merging, many over one model,
   training that leaves the model as it is, and broken files. That their numbers are PEFT's is for verify.c. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "counting.h"
#include "files.h"
#include "small.h"

static ft_context *context;
static char directory[600];

/* ---- regular expressions ---- */

static void check_regex(const char *pattern, const char *text, bool anywhere, bool expected) {
  bool matches = !expected;
  ft_status status = ft__regex_match(context, pattern, text, anywhere, &matches);
  if (status != FT_OK || matches != expected) printf("%s against %s\n", pattern, text);
  CHECK(status == FT_OK && matches == expected);
}

static void test_regex(void) {
  static const char *const refused[] = {"(",     "a)",
                                        "[a",    "*a",
                                        "a**b",  "a{2}",
                                        "(?=a)", "(?P<n>a)",
                                        "a\\",   "\\1",
                                        "\\ba",  "a++",
                                        "[a\\",  "((((((((((((((((((((((((((((((((a))))))))))))))))))))))))))))))))"};
  char nested[100] = "a", bigger[110];
  size_t i;
  bool matches;
  check_regex("abc", "abc", false, true);
  check_regex("abc", "abcd", false, false);
  check_regex("abc", "xabc", false, false);
  check_regex("", "", false, true);
  check_regex("a*", "", false, true);
  check_regex("a+", "", false, false);
  check_regex("a+b?a", "aaaa", false, true);
  check_regex(".*\\.(q|v)_lin", "layer.3.attention.q_lin", false, true);
  check_regex(".*\\.(q|v)_lin", "layer.3.attention.k_lin", false, false);
  check_regex(".*\\.(?:q|v)_lin|classifier", "classifier", false, true);
  check_regex("layer\\.\\d+\\..*", "layer.12.output", false, true);
  check_regex("layer\\.\\d+\\..*", "layer.x.output", false, false);
  check_regex("layer.([0-3]|1[01]).key", "layer.11.key", false, true);
  check_regex("layer.([0-3]|1[01]).key", "layer.12.key", false, false);
  check_regex("[^a-c_]+", "xyz", false, true);
  check_regex("[^a-c_]+", "xy_", false, false);
  check_regex("[]a]*[\\w.-]\\S", "a]].b", false, true);
  check_regex("^(a|ab)(c|bcd)(d*)$", "abcd", false, true);
  check_regex("(a?)*?b+?", "aaabb", false, true);
  check_regex("query", "bert.encoder.query", true, true);
  check_regex("encoder.query", "bert.encoder.query", true, true);
  check_regex("uery", "bert.encoder.query", true, false);
  check_regex("encoder", "bert.encoder.query", true, false);
  for (i = 0; i < sizeof refused / sizeof refused[0]; ++i)
    CHECK(ft__regex_match(context, refused[i], "aab", false, &matches) == FT_ERROR_UNSUPPORTED && !matches);
  for (i = 0; i < 12; ++i) { /* ((((a*)*)*)*)*b: exponential for backtracking */
    snprintf(bigger, sizeof bigger, "(%s*)", nested);
    memcpy(nested, bigger, strlen(bigger) + 1);
  }
  ft__regex_match(context, nested, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", false, &matches);
  CHECK(!matches);
}

/* ---- what the tests share ---- */

static ft_model *open_model(const char *path) {
  ft_model *model = ft_model_load(context, path, NULL);
  if (!model) printf("%s\n", ft_error_message(context));
  CHECK(model != NULL);
  if (!model) exit(1);
  return model;
}

static ft_adapter *make(const ft_model *model, const char *targets, const char *saved) {
  ft_adapter_options options;
  memset(&options, 0, sizeof options);
  options.rank = 2;
  options.alpha = 6;
  options.targets = targets;
  options.modules_to_save = saved;
  return ft_adapter_create(context, model, &options);
}

/* Random values, as a file holds them, in all of an adapter's tensors, so that it changes something. */
static void fill(ft_adapter *adapter, uint64_t seed) {
  int64_t i, k;
  for (i = 0; i < ft_adapter_parameter_count(adapter); ++i) {
    ft_tensor *tensor = ft_adapter_parameter(adapter, i)->tensor;
    ft_real *values = ft__values_of(context, tensor);
    for (k = 0; k < ft_tensor_count(tensor); ++k)
      values[k] = (ft_real)(float)((double)values[k] + 0.1 * ft__random_normal(seed, (uint32_t)i, (uint64_t)k));
    CHECK(ft_tensor_write(context, tensor, values) == FT_OK);
    ft__release(context, values);
  }
}

enum { TEXTS = 3, OUTPUTS = 200 };

/* Logits, or the hidden states of a model without head, of three texts: how many numbers. */
static int64_t run(const ft_model *model, const ft_adapter *adapter, ft_real *out) {
  static const int32_t ids[] = {2, 17, 9, 33, 4, 40, 8, 3, 2, 21, 3, 2, 5, 60, 7, 3};
  static const int64_t offsets[] = {0, 8, 11, 16};
  ft_forward_options options;
  ft_output output;
  ft_tensor *result;
  ft_batch batch;
  int64_t count;
  memset(&options, 0, sizeof options);
  memset(&batch, 0, sizeof batch);
  options.adapter = adapter;
  ft_no_grad_begin(context);
  CHECK(ft_batch_set(context, &batch, ids, NULL, offsets, TEXTS) == FT_OK);
  CHECK(ft_model_forward(context, model, &batch, &options, &output) == FT_OK);
  result = output.logits ? output.logits : output.hidden;
  count = result ? ft_tensor_count(result) : 0;
  if (count > OUTPUTS)
    result = ft_contiguous(context, ft_slice(context, result, 0, 0, 4)), count = ft_tensor_count(result);
  CHECK(result && count <= OUTPUTS && ft_tensor_read(context, result, out) == FT_OK);
  ft_no_grad_end(context);
  ft_tape_clear(context);
  ft_batch_free(&batch);
  return count;
}

static double distance(const ft_real *a, const ft_real *b, int64_t count) {
  double worst = 0;
  int64_t i;
  for (i = 0; i < count; ++i)
    if (fabs((double)a[i] - (double)b[i]) > worst) worst = fabs((double)a[i] - (double)b[i]);
  return worst;
}

/* ---- which modules ---- */

static void check_size(const char *path, const char *targets, const char *saved, int64_t size) {
  ft_model *model = open_model(path);
  ft_adapter *adapter = make(model, targets, saved);
  if (!adapter) printf("%s\n", ft_error_message(context));
  CHECK(adapter != NULL);
  if (adapter && ft_adapter_size(adapter) != size)
    printf("%s: %lld numbers, not %lld\n", targets ? targets : "the usual targets", (long long)ft_adapter_size(adapter),
           (long long)size);
  CHECK(adapter && ft_adapter_size(adapter) == size);
  ft_adapter_free(adapter);
  ft_model_free(model);
}

/* Rank 2. bert-pairs: 2 layers, H 32, F 64, 2 labels; distilbert: 2 layers, H 20, F 44. */
static void test_targets(void) {
  const char *bert = "tests/golden/bert-pairs", *distil = "tests/golden/distilbert";
  const int64_t head = 2 * 32 + 2, square = 2 * (32 + 32), wide = 2 * (32 + 64), small = 2 * (20 + 20);
  ft_model *model = open_model(bert);
  check_size(bert, NULL, NULL, 4 * square + head);
  check_size(bert, "query,value", NULL, 4 * square + head);
  check_size(bert, "bert.encoder.layer.1.attention.self.key", NULL, square + head);
  check_size(bert, "all-linear", NULL, 2 * (4 * square + 2 * wide) + square + head);
  check_size(bert, "All-Linear", NULL, 2 * (4 * square + 2 * wide) + square + head);
  check_size(bert, ".*\\.0\\..*(query|key)", NULL, 2 * square + head);
  check_size(bert, "*.0.*.query,*.1.*output.dense", NULL, 2 * square + wide + head);
  check_size(bert, "query", "pooler", 2 * square + 32 * 33 + head);
  check_size(bert, "query,dense", "pooler", 2 * (2 * square + 2 * wide) + 32 * 33 + head);
  check_size(bert, "query", "token_type_embeddings,LayerNorm", 2 * square + 2 * 32 + 5 * 64 + head);
  check_size(bert, "query", "layer.0", square + (4 * 32 * 33 + 64 * 33 + 32 * 65 + 128) + head);
  check_size(distil, NULL, NULL, 4 * small + 20 * 21 + 2 * 21); /* pre_classifier ends with "classifier" */
  check_size("tests/golden/roberta", "dense", NULL, 2 * 2 * (24 + 32 + 32) + 12 * 13 + 3 * 13);
  check_size("tests/golden/albert-groups", NULL, NULL, 4 * 2 * 2 * 24 + 2 * 13); /* six layers, four sets of weights */
  CHECK(make(model, "querry", NULL) == NULL && strstr(ft_error_message(context), "no linear layer"));
  CHECK(make(model, "LayerNorm", NULL) == NULL && strstr(ft_error_message(context), "LayerNorm is not a linear layer"));
  CHECK(make(model, "query", "poolers") == NULL && strstr(ft_error_message(context), "\"poolers\""));
  CHECK(make(model, "(query", NULL) == NULL && strstr(ft_error_message(context), "a ( without )"));
  CHECK(ft_adapter_create(context, NULL, NULL) == NULL);
  ft_model_free(model);
  model = open_model("tests/golden/bert-masked"); /* has no pooler: new in a model for texts, so the adapter keeps it */
  ft_model_free(model);
  check_size("tests/golden/bert-masked", NULL, NULL, 4 * 2 * 24 + 12 * 13 + 2 * 13);
}

static void test_start(void) {
  ft_model *model = open_model("tests/golden/bert-pairs");
  ft_adapter *adapter = make(model, NULL, NULL), *dora, *other;
  ft_adapter_options options;
  ft_real base[OUTPUTS], with[OUTPUTS], *a, *b;
  int64_t count = run(model, NULL, base), i;
  double sum = 0, limit = 1 / sqrt(32.0);
  run(model, adapter, with);
  CHECK(memcmp(base, with, (size_t)count * sizeof *base) == 0);
  CHECK_TEXT(ft_adapter_parameter(adapter, 0)->name,
             "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight");
  CHECK_TEXT(ft_adapter_parameter(adapter, 8)->name, "base_model.model.classifier.weight");
  CHECK(ft_adapter_parameter(adapter, 0)->layer == 1 && ft_adapter_parameter(adapter, 8)->layer == 3);
  CHECK(ft_adapter_parameter(adapter, 0)->decays && !ft_adapter_parameter(adapter, 9)->decays);
  a = ft__values_of(context, ft_adapter_parameter(adapter, 0)->tensor);
  b = ft__values_of(context, ft_adapter_parameter(adapter, 1)->tensor);
  for (i = 0; i < 64; ++i) {
    CHECK(fabs((double)a[i]) <= limit && b[i] == 0);
    sum += (double)a[i] * (double)a[i];
  }
  CHECK_NEAR(sum / 64, limit * limit / 3, limit * limit / 8); /* the variance of a uniform number */
  ft__release(context, b);
  memset(&options, 0, sizeof options);
  options.seed = 7;
  other = ft_adapter_create(context, model, &options);
  CHECK(ft_json_get(other->config, "r")->integer == 8 && ft_json_get(other->config, "lora_alpha")->integer == 16);
  CHECK(other->dropout == 0.1 && other->modules[model->layers[0].query.number].scale == 2);
  b = ft__values_of(context, ft_adapter_parameter(other, 0)->tensor);
  CHECK(memcmp(a, b, 64 * sizeof *a) != 0);
  ft__release(context, a), ft__release(context, b);
  options.dora = options.rslora = true;
  options.rank = 4;
  options.alpha = 3;
  options.dropout = -1;
  dora = ft_adapter_create(context, model, &options);
  CHECK(dora->modules[model->layers[0].query.number].scale == 1.5 && dora->dropout == 0);
  run(model, dora, with); /* the rows' lengths are divided by themselves */
  CHECK(distance(base, with, count) < 1e-5);
  ft_adapter_free(adapter), ft_adapter_free(other), ft_adapter_free(dora);
  ft_model_free(model);
}

/* ---- PEFT directories ---- */

static const struct {
  const char *adapter, *model; /* in tests/golden; adapters written by peft */
} golden[] = {{"bert-lora", "bert-pairs"},        {"roberta-lora", "roberta"},
              {"distilbert-lora", "distilbert"},  {"bert-dora", "bert-pairs"},
              {"albert-lora", "albert-groups"},   {"bert-lora-patterns", "bert-cosine-3labels"},
              {"bert-tokens-lora", "bert-tokens"}};
enum { GOLDEN = (int)(sizeof golden / sizeof golden[0]) };

static void golden_paths(int i, char *adapter, char *model) {
  snprintf(adapter, 200, "tests/golden/%s/adapter", golden[i].adapter);
  snprintf(model, 200, "tests/golden/%s", golden[i].model);
}

/* Adapters with the same tensors, bit for bit. */
static void check_same(const ft_adapter *one, const ft_adapter *two) {
  int64_t i;
  CHECK(ft_adapter_parameter_count(one) == ft_adapter_parameter_count(two));
  for (i = 0; i < ft_adapter_parameter_count(one); ++i) {
    const ft_parameter *a = ft_adapter_parameter(one, i), *b = ft_adapter_parameter(two, i);
    ft_real *first = ft__values_of(context, a->tensor), *second = ft__values_of(context, b->tensor);
    CHECK_TEXT(a->name, b->name);
    CHECK(memcmp(first, second, ft__tensor_bytes(a->tensor)) == 0);
    ft__release(context, first), ft__release(context, second);
  }
}

/* What peft wrote is read, runs, merges into the model to the same numbers, and comes out bit for bit; written here and
   read again it is the same. */
static void test_golden(int i) {
  char path[200], base_path[200], out[700];
  ft_adapter *adapter, *again;
  ft_adapter_base *base;
  ft_model *model;
  ft_real alone[OUTPUTS], with[OUTPUTS], merged[OUTPUTS], *before, *after;
  int64_t count;
  golden_paths(i, path, base_path);
  base = ft_adapter_base_read(context, path);
  CHECK(base && base->model == NULL);
  if (!base) return;
  model = ft_model_load(context, base_path, &base->options);
  adapter = ft_adapter_load(context, model, path);
  if (!adapter) printf("%s: %s\n", path, ft_error_message(context));
  CHECK(adapter != NULL);
  if (!adapter) return;
  CHECK(base->options.labels == model->config.labels);
  before = small_weights(context, model);
  run(model, NULL, alone);
  count = run(model, adapter, with);
  CHECK(distance(alone, with, count) > 1e-3);
  CHECK(ft_adapter_merge(context, model, adapter) == FT_OK);
  run(model, NULL, merged);
  CHECK(distance(merged, with, count) < 1e-5);
  CHECK(ft_adapter_merge(context, model, adapter) == FT_ERROR_ARGUMENT); /* twice */
  CHECK(ft_adapter_unmerge(context, model, adapter) == FT_OK);
  CHECK(ft_adapter_unmerge(context, model, adapter) == FT_ERROR_ARGUMENT);
  after = small_weights(context, model);
  CHECK(memcmp(before, after, (size_t)ft_model_size(model, false) * sizeof *before) == 0);
  free(before), free(after);
  snprintf(out, sizeof out, "%s/saved", directory);
  CHECK(ft_adapter_save(context, model, adapter, NULL, "some/base", out) == FT_OK);
  again = ft_adapter_load(context, model, out);
  CHECK(again != NULL);
  if (again) {
    check_same(adapter, again);
    run(model, again, merged);
    CHECK(memcmp(with, merged, (size_t)count * sizeof *with) == 0);
    CHECK(again->dropout == adapter->dropout);
  }
  files_end(out);
  ft_adapter_free(adapter), ft_adapter_free(again);
  ft_adapter_base_free(base);
  ft_model_free(model);
}

/* Labels, task and head of the model go with its adapter. */
static void test_base(void) {
  static const char *const names[] = {"bad", "so \"so\"", "good"};
  char out[700];
  ft_model_options options;
  ft_model *model, *loaded;
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, "tests/golden/bert-pairs");
  ft_adapter *adapter;
  ft_adapter_base *base;
  ft_json *config;
  ft_real one[OUTPUTS], two[OUTPUTS];
  int64_t count;
  memset(&options, 0, sizeof options);
  options.labels = 3;
  options.label_names = names;
  options.task = FT_TASK_MULTI_LABEL;
  options.head_size = 10;
  options.head_activation = FT_RELU;
  model = ft_model_load(context, "tests/golden/bert-pairs", &options);
  adapter = make(model, "all-linear", NULL);
  fill(adapter, 3);
  count = run(model, adapter, one);
  snprintf(out, sizeof out, "%s/adapter", directory);
  CHECK(ft_adapter_save(context, model, adapter, tokenizer, "tests/golden/bert-pairs", out) == FT_OK);
  CHECK(ft__file_exists(files_path(out, "tokenizer.json")));
  CHECK(!ft__file_exists(files_path(out, "config.json"))); /* transformers would take it for a whole model */
  config = ft_json_read(context, files_path(out, "adapter_config.json"));
  CHECK(ft_json_get(config, "target_modules")->count == 12);                              /* "all-linear" written out */
  CHECK_TEXT(ft_json_get(config, "modules_to_save")->child->string, "bert.pooler.dense"); /* new by its width */
  CHECK_TEXT(ft_json_get(config, "modules_to_save")->child->next->string, "classifier");
  CHECK_TEXT(ft_json_get(config, "lora_alpha")->string, "6");
  ft_json_free(config);
  base = ft_adapter_base_read(context, out);
  CHECK(base != NULL);
  CHECK_TEXT(base->model, "tests/golden/bert-pairs");
  loaded = ft_model_load(context, base->model, &base->options);
  CHECK(loaded->config.task == FT_TASK_MULTI_LABEL && loaded->config.labels == 3 && loaded->config.head_size == 10);
  CHECK(loaded->config.head_activation == FT_RELU);
  CHECK_TEXT(loaded->config.label_names[1], names[1]);
  ft_adapter_free(adapter);
  adapter = ft_adapter_load(context, loaded, out);
  CHECK(adapter != NULL);
  run(loaded, adapter, two);
  CHECK(memcmp(one, two, (size_t)count * sizeof *one) == 0);
  ft_model_free(loaded), ft_adapter_free(adapter);
  base->options.encoder_only = true; /* for embeddings: the head's copy is not looked at */
  loaded = ft_model_load(context, base->model, &base->options);
  adapter = ft_adapter_load(context, loaded, out);
  CHECK(adapter != NULL && ft_adapter_size(adapter) > 0);
  run(loaded, adapter, two);
  ft_adapter_base_free(base);
  files_end(out);
  ft_adapter_free(adapter), ft_tokenizer_free(tokenizer);
  ft_model_free(model), ft_model_free(loaded);
}

/* An encoder without a head: paths without the base model's prefix, as PEFT has them for AutoModel. */
static void test_encoder(void) {
  char out[700];
  ft_model_options options;
  ft_model *model, *whole = open_model("tests/golden/bert-pairs");
  ft_adapter *adapter, *again;
  ft_adapter_base *base;
  memset(&options, 0, sizeof options);
  options.encoder_only = true;
  model = ft_model_load(context, "tests/golden/bert-pairs", &options);
  adapter = make(model, "encoder\\.layer\\.1\\..*dense", NULL);
  fill(adapter, 5);
  CHECK_TEXT(ft_adapter_parameter(adapter, 0)->name,
             "base_model.model.encoder.layer.1.attention.output.dense.lora_A.weight");
  snprintf(out, sizeof out, "%s/adapter", directory);
  CHECK(ft_adapter_save(context, model, adapter, NULL, NULL, out) == FT_OK);
  base = ft_adapter_base_read(context, out);
  CHECK(base && base->model == NULL && base->options.encoder_only);
  again = ft_adapter_load(context, model, out);
  CHECK(again != NULL);
  if (again) check_same(adapter, again);
  ft_adapter_free(again);
  again = ft_adapter_load(context, whole, out); /* the prefix may come in between */
  CHECK(again && ft_adapter_size(again) == ft_adapter_size(adapter));
  files_end(out);
  ft_adapter_free(adapter), ft_adapter_free(again);
  ft_adapter_base_free(base);
  ft_model_free(model), ft_model_free(whole);
}

/* ---- several adapters over one model ---- */

static void test_two(void) {
  ft_model *model = open_model("tests/golden/bert-pairs"), *other = open_model("tests/golden/bert-pairs");
  ft_model *distil = open_model("tests/golden/distilbert");
  ft_adapter *one = make(model, NULL, NULL), *two = make(model, "all-linear", "embeddings.LayerNorm");
  ft_adapter *alone = make(other, "all-linear", "embeddings.LayerNorm");
  ft_real base[OUTPUTS], first[OUTPUTS], second[OUTPUTS], again[OUTPUTS];
  ft_real *before = small_weights(context, model), *after;
  ft_forward_options options;
  ft_output output;
  ft_batch batch;
  size_t bytes;
  fill(one, 1), fill(two, 2), fill(alone, 2);
  bytes = (size_t)run(model, NULL, base) * sizeof *base;
  run(model, one, first);
  run(model, two, second);
  CHECK(memcmp(base, first, bytes) != 0 && memcmp(first, second, bytes) != 0);
  run(model, one, again);
  CHECK(memcmp(first, again, bytes) == 0);
  run(model, NULL, again);
  CHECK(memcmp(base, again, bytes) == 0);
  run(other, alone, again); /* as if there were no other adapter */
  CHECK(memcmp(second, again, bytes) == 0);
  run(other, two, again); /* another model of the same weights */
  CHECK(memcmp(second, again, bytes) == 0);
  after = small_weights(context, model);
  CHECK(memcmp(before, after, (size_t)ft_model_size(model, false) * sizeof *before) == 0);
  free(before), free(after);
  memset(&options, 0, sizeof options);
  memset(&batch, 0, sizeof batch);
  options.adapter = one;
  CHECK(ft_model_forward(context, distil, &batch, &options, &output) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "another model"));
  CHECK(ft_adapter_merge(context, model, one) == FT_OK);
  CHECK(ft_model_forward(context, model, &batch, &options, &output) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "merged"));
  CHECK(ft_adapter_unmerge(context, other, one) == FT_ERROR_ARGUMENT);
  CHECK(ft_adapter_unmerge(context, model, one) == FT_OK);
  CHECK(ft_adapter_merge(context, distil, one) == FT_ERROR_ARGUMENT);
  ft_adapter_free(one), ft_adapter_free(two), ft_adapter_free(alone);
  ft_model_free(model), ft_model_free(other), ft_model_free(distil);
}

/* ---- training ---- */

/* Trains for some epochs with `threads`; the adapter's numbers go to *numbers (the caller frees): how many. */
static int64_t train(const char *path, int threads, const ft_adapter_options *adapter_options, bool evaluate,
                     bool cache, ft_real **numbers) {
  ft_context_options settings;
  ft_context *own;
  ft_train_options options;
  ft_train_result result;
  ft_model *model;
  ft_tokenizer *tokenizer;
  ft_adapter *adapter;
  ft_real *before, *after;
  small_data data;
  int64_t i, used = 0;
  memset(&settings, 0, sizeof settings);
  memset(&options, 0, sizeof options);
  settings.threads = threads;
  own = ft_context_create(&settings);
  model = small_model(own, path, 0.2);
  tokenizer = ft_tokenizer_load(own, path);
  data = small_parse(own, small_csv, NULL);
  adapter = ft_adapter_create(own, model, adapter_options);
  CHECK(adapter && tokenizer);
  before = small_weights(own, model);
  options.epochs = 4;
  options.batch_size = 4;
  options.learning_rate = 1e-2;
  options.adapter = adapter;
  options.cache_frozen = options.no_dropout = cache;
  CHECK(ft_train(own, model, tokenizer, data.dataset, evaluate ? data.dataset : NULL, &options, &result) == FT_OK);
  after = small_weights(own, model);
  CHECK(memcmp(before, after, (size_t)ft_model_size(model, false) * sizeof *before) == 0);
  CHECK(ft_model_size(model, true) == 0);
  for (i = 0; i < ft_model_parameter_count(model); ++i) /* nor was a gradient of the model computed */
    CHECK(ft_model_parameter(model, i)->tensor->gradient == NULL);
  if (evaluate) { /* the best epoch's values are back */
    ft_encoded *encoded = ft_dataset_encode(own, data.dataset, tokenizer, 40);
    ft_scoring_options scoring;
    ft_metrics metrics;
    memset(&scoring, 0, sizeof scoring);
    memset(&metrics, 0, sizeof metrics);
    scoring.adapter = adapter;
    CHECK(ft_evaluate(own, model, encoded, data.dataset, &scoring, &metrics) == FT_OK);
    CHECK(metrics.accuracy == result.best_score && metrics.accuracy > 0.6);
    ft_metrics_free(&metrics);
    ft_encoded_free(encoded);
  }
  *numbers = (ft_real *)malloc((size_t)ft_adapter_size(adapter) * sizeof **numbers);
  for (i = 0; i < ft_adapter_parameter_count(adapter); ++i) {
    CHECK(ft_tensor_read(own, ft_adapter_parameter(adapter, i)->tensor, *numbers + used) == FT_OK);
    used += ft_tensor_count(ft_adapter_parameter(adapter, i)->tensor);
  }
  free(before), free(after);
  ft_adapter_free(adapter);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
  ft_context_free(own);
  return used;
}

static void test_training(void) {
  ft_adapter_options options;
  ft_real *one, *two;
  int64_t count;
  int threads;
  memset(&options, 0, sizeof options);
  options.dropout = 0.3;
  count = train("tests/golden/bert-pairs", 1, &options, true, false, &one);
  for (threads = 2; threads <= 3; ++threads) {
    CHECK(train("tests/golden/bert-pairs", threads, &options, true, false, &two) == count);
    CHECK(memcmp(one, two, (size_t)count * sizeof *one) == 0);
    free(two);
  }
  options.dropout = -1; /* which mask changes what comes out */
  CHECK(train("tests/golden/bert-pairs", 1, &options, false, false, &two) == count);
  CHECK(memcmp(one, two, (size_t)count * sizeof *one) != 0);
  free(one), free(two);
  options.dropout = 0.3;
  options.dora = true;
  options.targets = "all-linear";
  count = train("tests/golden/albert-groups", 1, &options, false, false, &one);
  CHECK(train("tests/golden/albert-groups", 2, &options, false, false, &two) == count);
  CHECK(memcmp(one, two, (size_t)count * sizeof *one) == 0);
  free(one), free(two);
}

/* The backward pass ends at the lowest adapted layer; below it nothing is kept, and dropout's masks are in place. */
static void test_lowest(void) {
  ft_model *model = small_model(context, "tests/golden/bert-pairs", 0.1);
  ft_adapter *low = make(model, NULL, NULL), *high = make(model, "*.1.*.query", NULL),
             *words = make(model, "query", "word_embeddings");
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, "tests/golden/bert-pairs");
  ft_adapter_options options;
  ft_scoring_options scoring;
  ft_encoded *encoded;
  small_data data;
  float kept[2 * SMALL_ROWS], plain[2 * SMALL_ROWS];
  ft_real *numbers;
  int i;
  CHECK(ft_model_frozen_parts(model, low) == 0); /* the model itself trains */
  ft_model_train_all(model, false);
  CHECK(ft_model_frozen_parts(model, NULL) == 3 && ft_model_frozen_parts(model, low) == 1);
  CHECK(ft_model_frozen_parts(model, high) == 2 && ft_model_frozen_parts(model, words) == 0);
  data = small_parse(context, small_csv, NULL);
  encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  memset(&scoring, 0, sizeof scoring);
  scoring.features = ft_features_create(context, model, high, encoded, NULL); /* the embeddings and the first layer */
  CHECK(scoring.features != NULL);
  scoring.adapter = high;
  CHECK(ft_predict(context, model, encoded, &scoring, kept) == FT_OK);
  scoring.adapter = low;
  CHECK(ft_predict(context, model, encoded, &scoring, plain) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "that the adapter changes"));
  ft_features_free((ft_features *)(uintptr_t)scoring.features);
  scoring.features = NULL;
  scoring.adapter = high;
  CHECK(ft_predict(context, model, encoded, &scoring, plain) == FT_OK);
  for (i = 0; i < 2 * SMALL_ROWS; ++i) CHECK_NEAR(kept[i], plain[i], 1e-5);
  ft_encoded_free(encoded);
  small_free(&data);
  ft_tokenizer_free(tokenizer);
  memset(&options, 0, sizeof options);
  options.targets = "*.1.*.query"; /* training over kept features */
  options.dropout = -1;
  CHECK(train("tests/golden/bert-pairs", 1, &options, true, true, &numbers) > 0);
  free(numbers);
  ft_adapter_free(low), ft_adapter_free(high), ft_adapter_free(words);
  ft_model_free(model);
}

/* Each application of a linear layer draws its own mask: also where layers share it, as ALBERT's do. In training with
   the adapter's dropout alone, the mean over many masks comes near the value without dropout. */
static void test_dropout(void) {
  ft_model *model = open_model("tests/golden/albert-groups");
  ft_adapter *adapter = make(model, NULL, NULL);
  static const int32_t ids[] = {2, 17, 9, 33, 4, 40, 8, 3};
  static const int64_t offsets[] = {0, 8};
  uint32_t used[64];
  int sites = 0, layer, place, k;
  ft_forward_options options;
  ft_batch batch;
  ft_output output;
  ft_real first[2], second[2];
  memset(&options, 0, sizeof options);
  memset(&batch, 0, sizeof batch);
  fill(adapter, 4);
  adapter->dropout = 0.5;
  options.training = true;
  options.adapter = adapter;
  ft_no_grad_begin(context);
  CHECK(ft_batch_set(context, &batch, ids, NULL, offsets, 1) == FT_OK);
  for (k = 0; k < 3; ++k) { /* the same mask at the same step, another at the next */
    ft_random_position(context, 1, k / 2, 0);
    CHECK(ft_model_forward(context, model, &batch, &options, &output) == FT_OK);
    CHECK(ft_tensor_read(context, output.logits, k ? second : first) == FT_OK);
    if (k) CHECK((memcmp(first, second, sizeof first) == 0) == (k == 1));
    ft_tape_clear(context);
  }
  ft_no_grad_end(context);
  for (layer = 0; layer < 4; ++layer)
    for (place = 0; place < 16; ++place) used[sites++] = ft__site(layer, place);
  for (k = 1; k < sites; ++k) CHECK(used[k] != used[k - 1] && used[k] == (uint32_t)k); /* no two sites are one */
  CHECK(FT__SITE_LINEAR + 5 < 16);
  ft_batch_free(&batch);
  ft_adapter_free(adapter);
  ft_model_free(model);
}

/* ---- errors ---- */

static const char plain_config[] =
    "{\"peft_type\": \"LORA\", \"task_type\": \"SEQ_CLS\", \"r\": 4, \"lora_alpha\": 8, \"target_modules\": [\"query\","
    " \"value\"]";

/* adapter_config.json = the plain one with more members behind it: loading must fail with these words. */
static void check_config(const ft_model *model, const char *members, const char *words) {
  char text[2000];
  ft_adapter *adapter;
  snprintf(text, sizeof text, "%s%s}", plain_config, members);
  files_write_text(directory, "adapter_config.json", text);
  adapter = ft_adapter_load(context, model, directory);
  if ((adapter != NULL) != (words == NULL) || (words && !strstr(ft_error_message(context), words)))
    printf("%s: %s\n", members, adapter ? "accepted" : ft_error_message(context));
  CHECK((adapter != NULL) == (words == NULL));
  CHECK(!words || (strstr(ft_error_message(context), words) && ft_error_status(context) != FT_OK));
  ft_adapter_free(adapter);
}

static void test_configs(void) {
  ft_model *model = open_model("tests/golden/bert-pairs"), *three = open_model("tests/golden/bert-cosine-3labels");
  files_copy(context, "tests/golden/bert-lora/adapter", directory, "adapter_model.safetensors");
  check_config(model, "", NULL);
  check_config(model, ", \"use_qalora\": false, \"target_parameters\": null, \"layer_replication\": []", NULL);
  check_config(model, ", \"invented_in_2030\": 16, \"qalora_group_size\": 16", NULL);
  check_config(model, ", \"fan_in_fan_out\": true, \"init_lora_weights\": \"gaussian\"", NULL); /* as peft */
  check_config(model, ", \"use_qalora\": true", "\"use_qalora\"");
  check_config(model, ", \"lora_bias\": true", "\"lora_bias\"");
  check_config(model, ", \"target_parameters\": [\"a\"]", "\"target_parameters\"");
  check_config(model, ", \"trainable_token_indices\": {\"a\": [1]}", "\"trainable_token_indices\"");
  check_config(model, ", \"layer_replication\": [[0, 1]]", "\"layer_replication\"");
  check_config(model, ", \"invented_in_2030\": true", "\"invented_in_2030\"");
  check_config(model, ", \"init_lora_weights\": \"pissa\"", "\"pissa\"");
  check_config(model, ", \"use_dora\": true", "lora_magnitude_vector");
  check_config(model, ", \"bias\": \"all\"", "bert.embeddings.LayerNorm.bias");
  check_config(model, ", \"bias\": \"some\"", "\"bias\"");
  check_config(model, ", \"modules_to_save\": [\"pooler\"]", "lacks base_model.model.bert.pooler.dense.weight");
  check_config(model, ", \"modules_to_save\": \"pooler\"", "\"modules_to_save\"");
  check_config(model, ", \"lora_dropout\": 1.5", "\"lora_dropout\"");
  check_config(model, ", \"exclude_modules\": [7]", "\"exclude_modules\"");
  check_config(model, ", \"exclude_modules\": [\"query\", \"value\"]", "no linear layer");
  check_config(model, ", \"exclude_modules\": \".*(query|value)\"", "no linear layer");
  check_config(model, ", \"layers_to_transform\": [5]", "no linear layer");
  check_config(model, ", \"layers_to_transform\": 1, \"layers_pattern\": \"layer\"", NULL);
  check_config(model, ", \"layers_to_transform\": 1, \"layers_pattern\": [\"h\"]", "no linear layer");
  check_config(model, ", \"rank_pattern\": {\"query\": 3}", "should have shape [3, 32]");
  check_config(model, ", \"rank_pattern\": {\"query\": 2.5}", "whole number");
  check_config(model, ", \"rank_pattern\": {\"query\": -1}", "whole number");
  check_config(model, ", \"rank_pattern\": {\"(query\": 3}", "a ( without )");
  check_config(model, ", \"rank_pattern\": [1]", "\"rank_pattern\"");
  check_config(model, ", \"alpha_pattern\": {\"no.*such\": 3}", NULL);
  check_config(three, "", "should have shape"); /* another model's */
  files_write_text(directory, "adapter_config.json", "{\"peft_type\": \"IA3\", \"r\": 4}");
  CHECK(ft_adapter_load(context, model, directory) == NULL && strstr(ft_error_message(context), "\"peft_type\""));
  files_write_text(directory, "adapter_config.json", "{\"peft_type\": \"LORA\", \"r\": 4}");
  CHECK(ft_adapter_load(context, model, directory) == NULL && strstr(ft_error_message(context), "\"target_modules\""));
  files_write_text(directory, "adapter_config.json", "[]");
  CHECK(ft_adapter_load(context, model, directory) == NULL);
  CHECK(ft_adapter_load(context, model, "tests/golden/bert-pairs") == NULL); /* a model is no adapter */
  CHECK(ft_adapter_load(context, NULL, directory) == NULL && ft_adapter_base_read(context, NULL) == NULL);
  CHECK(ft_adapter_base_read(context, "tests/golden/bert-pairs") == NULL);
  ft_adapter_free(NULL), ft_adapter_base_free(NULL);
  CHECK(ft_adapter_parameter_count(NULL) == 0 && ft_adapter_size(NULL) == 0);
  remove(files_path(directory, "adapter_config.json"));
  remove(files_path(directory, "adapter_model.safetensors"));
  ft_model_free(model), ft_model_free(three);
}

/* Every byte of a file changed in some way: an error or a right result, no crash and no leak. */
static void attack(const ft_model *model, const char *from, const char *changed, const char *other, size_t limit) {
  static const char signs[] = "\"{}[],:0-e9.tn\\(*|\xFF";
  size_t size = 0, i;
  char *bytes = ft__file_read(context, files_path(from, changed), &size);
  int64_t accepted = 0;
  CHECK(bytes != NULL);
  if (!bytes) return;
  files_copy(context, from, directory, other);
  for (i = 0; i < size && i < limit; ++i) {
    char kept = bytes[i];
    ft_adapter *adapter;
    ft_adapter_base *base;
    bytes[i] = signs[(i * 7 + i / 13) % (sizeof signs - 1)];
    remove(files_path(directory, changed));
    files_write(directory, changed, bytes, i % 17 == 16 ? i : size);
    adapter = ft_adapter_load(context, model, directory);
    base = ft_adapter_base_read(context, directory);
    accepted += adapter != NULL;
    CHECK(adapter || ft_error_message(context)[0]);
    ft_adapter_free(adapter);
    ft_adapter_base_free(base);
    bytes[i] = kept;
  }
  CHECK(accepted < (int64_t)size);
  ft__release(context, bytes);
  remove(files_path(directory, changed));
  remove(files_path(directory, other));
}

static void test_hostile(void) {
  ft_model *bert = open_model("tests/golden/bert-cosine-3labels"), *distil = open_model("tests/golden/distilbert");
  const char *patterns = "tests/golden/bert-lora-patterns/adapter", *plain = "tests/golden/distilbert-lora/adapter";
  attack(bert, patterns, "adapter_config.json", "adapter_model.safetensors", 3000);
  attack(distil, plain, "adapter_config.json", "adapter_model.safetensors", 3000);
  attack(distil, plain, "adapter_model.safetensors", "adapter_config.json", 2500); /* its header and a little more */
  ft_model_free(bert), ft_model_free(distil);
}

/* Everything once, with a counting allocator. */
static bool whole_life(ft_context *own, const char *out) {
  ft_model *model = ft_model_load(own, "tests/golden/bert-pairs", NULL);
  ft_adapter *made = ft_adapter_create(own, model, NULL), *loaded = NULL;
  ft_adapter_base *base = NULL;
  bool ok = model && made && ft_adapter_save(own, model, made, NULL, "base", out) == FT_OK &&
            (base = ft_adapter_base_read(own, out)) != NULL &&
            (loaded = ft_adapter_load(own, model, "tests/golden/bert-dora/adapter")) != NULL &&
            ft_adapter_merge(own, model, loaded) == FT_OK && ft_adapter_unmerge(own, model, loaded) == FT_OK;
  ft_adapter_base_free(base);
  ft_adapter_free(made), ft_adapter_free(loaded);
  ft_model_free(model);
  return ok;
}

static void test_memory(void) {
  counting_allocator allocator = no_calls();
  ft_context *own = counting_context(&allocator, 1);
  char out[700];
  int64_t total, n;
  snprintf(out, sizeof out, "%s/life", directory);
  CHECK(whole_life(own, out));
  total = allocator.calls;
  ft_context_free(own);
  CHECK(allocator.live == 0);
  for (n = 1; n <= total; n += total / 300 + 1) {
    allocator = no_calls();
    allocator.fail_at = n;
    if ((own = counting_context(&allocator, 1)) != NULL) {
      bool ok = whole_life(own, out);
      if (ok) printf("unnoticed: allocation %lld\n", (long long)n);
      CHECK(!ok && ft_error_message(own)[0]);
    }
    ft_context_free(own);
    CHECK(allocator.live == 0);
  }
  files_end(out);
}

int main(void) {
  ft_context_options options;
  int i;
  memset(&options, 0, sizeof options);
  options.threads = 1;
  context = ft_context_create(&options);
  if (!context) return 1;
  files_begin(context, directory, "lora");
  test_regex();
  test_targets();
  test_start();
  for (i = 0; i < GOLDEN; ++i) test_golden(i);
  test_base();
  test_encoder();
  test_two();
  test_training();
  test_lowest();
  test_dropout();
  test_configs();
  test_hostile();
  test_memory();
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
