/* model.c - loading and saving model directories: what is written is what was read, under the names and keys that
   transformers expects, and every way in which a directory can be wrong ends in a message that says what and where. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "files.h"

static ft_context *context;
static char directory[600]; /* for files of these tests */
static char logged[20000];  /* all messages since it was emptied, one a line */

static void log_message(void *user_data, ft_log_level level, const char *message) {
  (void)user_data, (void)level;
  if (strlen(logged) + strlen(message) + 2 < sizeof logged) strcat(strcat(logged, message), "\n");
}

static ft_model *load(const char *path, const ft_model_options *options) {
  ft_model *model;
  logged[0] = 0;
  model = ft_model_load(context, path, options);
  if (!model) printf("%s\n", ft_error_message(context));
  CHECK(model != NULL);
  if (!model) exit(1);
  return model;
}

static float *values_of(const ft_tensor *tensor) {
  float *values = (float *)malloc((size_t)ft_tensor_count(tensor) * sizeof *values);
  CHECK(values && ft_tensor_read(context, tensor, values) == FT_OK);
  return values;
}

static bool same_tensor(const ft_tensor *a, const ft_tensor *b) {
  float *x = values_of(a), *y = values_of(b);
  bool same = ft_tensor_count(a) == ft_tensor_count(b) && memcmp(x, y, (size_t)ft_tensor_count(a) * sizeof *x) == 0;
  free(x);
  free(y);
  return same;
}

static bool same_parameters(const ft_model *a, const ft_model *b) {
  int64_t i;
  if (ft_model_parameter_count(a) != ft_model_parameter_count(b)) return false;
  for (i = 0; i < ft_model_parameter_count(a); ++i) {
    const ft_parameter *p = ft_model_parameter(a, i), *q = ft_model_find(b, p->name);
    if (!q || p->decays != q->decays || !same_tensor(p->tensor, q->tensor)) return false;
  }
  return true;
}

static void check_member(const ft_json *json, const char *key, const char *text) {
  const ft_json *member = ft_json_get(json, key);
  CHECK_TEXT(member && member->type == FT_JSON_STRING ? member->string : NULL, text);
}

/* ---- saving ---- */

/* Loads a golden directory, saves it, loads that. */
static void test_round_trip(const char *golden, const char *class_name, const char *problem) {
  ft_model *first = load(golden, NULL), *second;
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, golden), *tokenizer_again;
  const ft_json *architectures;
  ft_json *config;
  CHECK(ft_model_save(context, first, tokenizer, directory) == FT_OK);
  second = load(directory, NULL);
  CHECK_TEXT(logged, ""); /* nothing is missing, nothing unexpected */
  CHECK(ft_model_unexpected_count(second) == 0);
  CHECK(same_parameters(first, second));
  CHECK(memcmp(&first->config.hidden_size, &second->config.hidden_size,
               offsetof(ft_config, label_names) - offsetof(ft_config, hidden_size)) == 0);
  config = ft_json_read(context, files_path(directory, "config.json"));
  check_member(config, "problem_type", problem);
  check_member(config, "dtype", "float32");
  check_member(config, "model_type", ft_model_config(first)->model_type);
  architectures = ft_json_get(config, "architectures");
  CHECK(architectures && architectures->count == 1);
  CHECK_TEXT(architectures ? architectures->child->string : NULL, class_name);
  CHECK(ft_json_get(config, "transformers_version") != NULL); /* keys that mean nothing to us are kept */
  tokenizer_again = ft_tokenizer_load(context, directory);
  CHECK(tokenizer && tokenizer_again && ft_tokenizer_size(tokenizer) == ft_tokenizer_size(tokenizer_again));
  ft_tokenizer_free(tokenizer);
  ft_tokenizer_free(tokenizer_again);
  ft_json_free(config);
  ft_model_free(first);
  ft_model_free(second);
}

/* bert-legacy has names without "bert." and with gamma and beta; what is saved has today's. */
static void test_modern_names(void) {
  ft_model *model = load("tests/golden/bert-legacy", NULL);
  ft_safetensors *file;
  int64_t i;
  CHECK(ft_model_save(context, model, NULL, directory) == FT_OK);
  file = ft_safetensors_open(context, files_path(directory, "model.safetensors"));
  CHECK(file && ft_safetensors_count(file) == ft_model_parameter_count(model));
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    const char *name = ft_model_parameter(model, i)->name;
    CHECK(ft_safetensors_find(file, name) != NULL);
    CHECK(strncmp(name, "bert.", 5) == 0 || strncmp(name, "classifier.", 11) == 0);
    CHECK(!strstr(name, "gamma") && !strstr(name, "beta"));
  }
  CHECK(ft_safetensors_find(file, "bert.encoder.layer.1.attention.output.LayerNorm.weight") != NULL);
  CHECK_TEXT(ft_safetensors_metadata(file, "format"), "pt");
  ft_safetensors_close(file);
  ft_model_free(model);
}

static void test_saved_labels(void) {
  static const char *const names[3] = {"very \"bad\"", "so-so", "gr\xc3\xb6\xc3\x9f"};
  ft_model_options options;
  ft_model *model;
  ft_json *config;
  const ft_json *to_label, *to_id;
  memset(&options, 0, sizeof options);
  options.labels = 3;
  options.label_names = names;
  options.task = FT_TASK_MULTI_LABEL;
  model = load("tests/golden/distilbert", &options);
  CHECK(ft_model_save(context, model, NULL, directory) == FT_OK);
  ft_model_free(model);
  config = ft_json_read(context, files_path(directory, "config.json"));
  to_label = ft_json_get(config, "id2label");
  to_id = ft_json_get(config, "label2id");
  CHECK(to_label && to_label->count == 3 && to_id && to_id->count == 3);
  check_member(to_label, "0", names[0]);
  check_member(to_label, "2", names[2]);
  CHECK(ft_json_get(to_id, names[0]) && ft_json_get(to_id, names[0])->integer == 0);
  CHECK(ft_json_get(to_id, names[2]) && ft_json_get(to_id, names[2])->integer == 2);
  check_member(config, "problem_type", "multi_label_classification");
  ft_json_free(config);
  model = load(directory, NULL); /* the file's own number, names and task */
  CHECK(ft_model_config(model)->labels == 3 && ft_model_config(model)->task == FT_TASK_MULTI_LABEL);
  CHECK_TEXT(ft_model_config(model)->label_names[1], "so-so");
  ft_model_free(model);
}

/* Without a head, as transformers' BertModel: no prefix; and back with a new head. */
static void test_encoder_only(void) {
  ft_model_options options;
  ft_model *encoder, *whole;
  ft_safetensors *file;
  ft_json *config;
  memset(&options, 0, sizeof options);
  options.encoder_only = true;
  encoder = load("tests/golden/bert-pairs", &options);
  CHECK(ft_model_find(encoder, "classifier.weight") == NULL);
  CHECK(ft_model_unexpected_count(encoder) == 2); /* the file's classifier */
  CHECK(ft_model_save(context, encoder, NULL, directory) == FT_OK);
  file = ft_safetensors_open(context, directory);
  CHECK(file && ft_safetensors_find(file, "embeddings.LayerNorm.bias") &&
        ft_safetensors_find(file, "pooler.dense.weight"));
  ft_safetensors_close(file);
  config = ft_json_read(context, files_path(directory, "config.json"));
  CHECK_TEXT(config ? ft_json_get(config, "architectures")->child->string : NULL, "BertModel");
  ft_json_free(config);
  whole = load(directory, NULL);
  CHECK_TEXT(logged, "newly initialised: classifier.weight\nnewly initialised: classifier.bias\n");
  CHECK(same_tensor(ft_model_find(whole, "bert.pooler.dense.weight")->tensor,
                    ft_model_find(encoder, "bert.pooler.dense.weight")->tensor));
  ft_model_free(encoder);
  ft_model_free(whole);
}

/* ---- new heads ---- */

/* New parameters are N(0, 0.02) and 0, from the seed alone. */
static void check_new_classifier(const ft_model *model) {
  const ft_parameter *weight = ft_model_find(model, "classifier.weight"),
                     *bias = ft_model_find(model, "classifier.bias");
  float *values = values_of(weight->tensor), *zeros = values_of(bias->tensor);
  int64_t i;
  double squares = 0;
  CHECK(!weight->loaded && !bias->loaded);
  for (i = 0; i < ft_tensor_count(weight->tensor); ++i) squares += (double)values[i] * (double)values[i];
  CHECK_NEAR(sqrt(squares / (double)ft_tensor_count(weight->tensor)), 0.02, 0.006);
  for (i = 0; i < ft_tensor_count(bias->tensor); ++i) CHECK(zeros[i] == 0);
  free(values);
  free(zeros);
}

static void test_new_head(void) {
  ft_model_options options;
  ft_model *model, *again, *other;
  memset(&options, 0, sizeof options);
  options.labels = 3; /* the file's classifier is for 2 */
  model = load("tests/golden/distilbert", &options);
  CHECK(strstr(logged, "newly initialised: classifier.weight\n") &&
        strstr(logged, "newly initialised: classifier.bias\n"));
  CHECK(!strstr(logged, "pre_classifier"));
  CHECK(ft_model_find(model, "pre_classifier.weight")->loaded);
  CHECK(ft_model_find(model, "classifier.weight")->tensor->shape[0] == 3);
  CHECK_TEXT(ft_model_config(model)->label_names[2], "LABEL_2");
  check_new_classifier(model);
  again = load("tests/golden/distilbert", &options);
  options.seed = 43;
  other = load("tests/golden/distilbert", &options);
  CHECK(same_parameters(model, again));
  CHECK(!same_tensor(ft_model_find(model, "classifier.weight")->tensor,
                     ft_model_find(other, "classifier.weight")->tensor));
  ft_model_free(model);
  ft_model_free(again);
  ft_model_free(other);
}

/* Copies a golden directory's config and weights; in the weights' header, every name that starts with `name` gets
   another first letter, so that these tensors are missing and unknown ones are there. */
static void copy_with_renamed(const char *golden, const char *name) {
  size_t size = 0, i, length = strlen(name);
  char *bytes = ft__file_read(context, files_path(golden, "model.safetensors"), &size);
  int renamed = 0;
  CHECK(bytes != NULL);
  for (i = 8; bytes && i + length < size && i < 20000; ++i) {
    if (bytes[i - 1] != '"' || memcmp(bytes + i, name, length) != 0) continue;
    bytes[i] = '#';
    ++renamed;
  }
  CHECK(renamed > 0);
  files_copy(context, golden, directory, "config.json");
  files_write(directory, "model.safetensors", bytes, size);
  ft__release(context, bytes);
}

static void test_base_only(void) {
  ft_model *model;
  copy_with_renamed("tests/golden/distilbert", "classifier.");
  model = load(directory, NULL);
  CHECK_TEXT(logged,
             "newly initialised: classifier.weight\nnewly initialised: classifier.bias\n"
             "not used by this model: #lassifier.bias\nnot used by this model: #lassifier.weight\n");
  CHECK(ft_model_unexpected_count(model) == 2);
  CHECK_TEXT(ft_model_unexpected(model, 0), "#lassifier.bias");
  check_new_classifier(model);
  ft_model_free(model);
  copy_with_renamed("tests/golden/bert-pairs", "bert.pooler."); /* as after masked language modelling */
  model = load(directory, NULL);
  CHECK(!ft_model_find(model, "bert.pooler.dense.weight")->loaded && ft_model_find(model, "classifier.weight")->loaded);
  ft_model_free(model);
}

/* ---- errors ---- */

static void check_error(const ft_model_options *options, ft_status status, const char *word, const char *second_word) {
  ft_model *model = ft_model_load(context, directory, options);
  const char *message = ft_error_message(context);
  bool told = !model && ft_error_status(context) == status && strstr(message, word) && strstr(message, second_word);
  if (!told) printf("%s, %s: status %d: %s\n", word, second_word, (int)ft_error_status(context), message);
  CHECK(told);
  ft_model_free(model);
}

/* Writes a golden directory's config.json with `from` replaced by `to`. */
static void write_config(const char *golden, const char *from, const char *to) {
  char text[4000];
  size_t size = 0;
  char *config = ft__file_read(context, files_path(golden, "config.json"), &size), *place;
  CHECK(config && size < 3000 && (place = strstr(config, from)) != NULL);
  if (!config || !(place = strstr(config, from))) return;
  snprintf(text, sizeof text, "%.*s%s%s", (int)(place - config), config, to, place + strlen(from));
  files_write_text(directory, "config.json", text);
  ft__release(context, config);
}

static void test_missing_keys(void) {
  static const char *const bert[] = {
      "model_type",        "hidden_size", "num_hidden_layers",       "num_attention_heads",
      "intermediate_size", "vocab_size",  "max_position_embeddings", "type_vocab_size",
      "hidden_act"};
  static const char *const distilbert[] = {
      "model_type", "dim", "n_layers", "n_heads", "hidden_dim", "vocab_size", "max_position_embeddings", "activation"};
  char key[64], renamed[64];
  size_t i, k;
  for (k = 0; k < 2; ++k) {
    for (i = 0; i < (k ? sizeof distilbert / sizeof *distilbert : sizeof bert / sizeof *bert); ++i) {
      snprintf(key, sizeof key, "\"%s\":", k ? distilbert[i] : bert[i]);
      snprintf(renamed, sizeof renamed, "\"no_%s\":", k ? distilbert[i] : bert[i]);
      write_config(k ? "tests/golden/distilbert" : "tests/golden/bert-pairs", key, renamed);
      snprintf(key, sizeof key, "\"%s\" is missing", k ? distilbert[i] : bert[i]);
      check_error(NULL, FT_ERROR_FORMAT, "config.json", key);
    }
  }
}

static void test_wrong_config(void) {
  static const char *const golden = "tests/golden/bert-pairs";
  write_config(golden, "\"model_type\": \"bert\"", "\"model_type\": \"gpt2\"");
  check_error(NULL, FT_ERROR_UNSUPPORTED, "config.json", "model_type \"gpt2\"");
  write_config(golden, "\"hidden_size\": 32", "\"hidden_size\": 0");
  check_error(NULL, FT_ERROR_FORMAT, "config.json", "\"hidden_size\"");
  write_config(golden, "\"hidden_size\": 32", "\"hidden_size\": \"32\"");
  check_error(NULL, FT_ERROR_FORMAT, "config.json", "\"hidden_size\"");
  write_config(golden, "\"vocab_size\": 200", "\"vocab_size\": 9000000000");
  check_error(NULL, FT_ERROR_FORMAT, "config.json", "\"vocab_size\"");
  write_config(golden, "\"num_attention_heads\": 4", "\"num_attention_heads\": 5");
  check_error(NULL, FT_ERROR_FORMAT, "32", "5");
  write_config(golden, "\"hidden_act\": \"gelu\"", "\"hidden_act\": \"mish\"");
  check_error(NULL, FT_ERROR_UNSUPPORTED, "\"hidden_act\"", "mish");
  write_config(golden, "\"is_decoder\": false", "\"is_decoder\": true");
  check_error(NULL, FT_ERROR_UNSUPPORTED, "config.json", "decoder");
  write_config(golden, "\"hidden_dropout_prob\": 0.0", "\"hidden_dropout_prob\": 1.5");
  check_error(NULL, FT_ERROR_FORMAT, "config.json", "\"hidden_dropout_prob\"");
  write_config(golden, "\"use_cache\"", "\"position_embedding_type\": \"relative_key\", \"use_cache\"");
  check_error(NULL, FT_ERROR_UNSUPPORTED, "position_embedding_type", "relative_key");
  write_config("tests/golden/bert-cosine-3labels", "\"1\": \"LABEL_1\"", "\"7\": \"LABEL_1\"");
  check_error(NULL, FT_ERROR_FORMAT, "id2label", "\"1\"");
  files_write_text(directory, "config.json", "{\"model_type\": ");
  check_error(NULL, FT_ERROR_FORMAT, "config.json", "line 1");
}

static void test_wrong_weights(void) {
  write_config("tests/golden/distilbert", "\"vocab_size\": 200", "\"vocab_size\": 201");
  files_copy(context, "tests/golden/distilbert", directory, "model.safetensors");
  check_error(NULL, FT_ERROR_SHAPE, "distilbert.embeddings.word_embeddings.weight", "[201, 20]");
  copy_with_renamed("tests/golden/distilbert", "distilbert.transformer.layer.1.ffn.lin2.bias");
  check_error(NULL, FT_ERROR_FORMAT, directory, "distilbert.transformer.layer.1.ffn.lin2.bias");
  copy_with_renamed("tests/golden/bert-pairs", "bert.embeddings.token_type_embeddings.weight");
  check_error(NULL, FT_ERROR_FORMAT, directory, "bert.embeddings.token_type_embeddings.weight");
  CHECK(remove(files_path(directory, "model.safetensors")) == 0);
  check_error(NULL, FT_ERROR_FILE, directory, "model.safetensors");
  CHECK(ft_model_load(context, "tests/golden/nowhere", NULL) == NULL);
  CHECK(ft_error_status(context) == FT_ERROR_FILE && strstr(ft_error_message(context), "tests/golden/nowhere"));
  CHECK(ft_model_load(context, "tests/golden/README.md", NULL) == NULL); /* no directory */
  CHECK(ft_error_status(context) == FT_ERROR_FILE && strstr(ft_error_message(context), "tests/golden/README.md"));
}

/* ---- sizes ---- */

/* Published sizes: 66,955,010 parameters for distilbert-base-uncased with 2 labels, 109,483,778 for bert-base-uncased;
   outside the base model 592,130 and 1,538. */
static void test_sizes(void) {
  ft_model_options options;
  ft_model *model;
  ft_batch batch;
  ft_output output;
  memset(&options, 0, sizeof options);
  memset(&batch, 0, sizeof batch);
  options.shapes_only = true;
  files_write_text(
      directory, "config.json",
      "{\"model_type\": \"distilbert\", \"dim\": 768, \"n_layers\": 6, \"n_heads\": 12, \"hidden_dim\": 3072,"
      " \"vocab_size\": 30522, \"max_position_embeddings\": 512, \"activation\": \"gelu\"}");
  model = load(directory, &options);
  CHECK(ft_model_size(model, false) == 66955010 && ft_model_size(model, true) == 66955010);
  CHECK(ft_model_parameter_count(model) == 104);
  ft_model_train_head(model);
  CHECK(ft_model_size(model, true) == 592130);
  ft_model_train_all(model, false);
  CHECK(ft_model_size(model, true) == 0);
  CHECK(ft_model_save(context, model, NULL, directory) == FT_ERROR_ARGUMENT);
  CHECK(ft_model_forward(context, model, &batch, NULL, &output) == FT_ERROR_ARGUMENT);
  ft_model_free(model);
  files_write_text(
      directory, "config.json",
      "{\"model_type\": \"bert\", \"hidden_size\": 768, \"num_hidden_layers\": 12, \"num_attention_heads\": 12,"
      " \"intermediate_size\": 3072, \"vocab_size\": 30522, \"max_position_embeddings\": 512,"
      " \"type_vocab_size\": 2, \"hidden_act\": \"gelu\"}");
  model = load(directory, &options);
  CHECK(ft_model_size(model, false) == 109483778 && ft_model_parameter_count(model) == 201);
  ft_model_train_head(model);
  CHECK(ft_model_size(model, true) == 1538);
  ft_model_free(model);
}

int main(void) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.log = log_message;
  options.threads = 1;
  context = ft_context_create(&options);
  if (!context) return 1;
  files_begin(context, directory, "model");
  test_sizes();
  test_missing_keys();
  test_wrong_config();
  test_wrong_weights();
  files_end(directory);
  files_begin(context, directory, "model");
  test_round_trip("tests/golden/bert-pairs", "BertForSequenceClassification", "single_label_classification");
  test_round_trip("tests/golden/bert-multilabel", "BertForSequenceClassification", "multi_label_classification");
  test_round_trip("tests/golden/distilbert-regression", "DistilBertForSequenceClassification", "regression");
  files_end(directory);
  files_begin(context, directory, "model");
  test_round_trip("tests/golden/bert-legacy", "BertForSequenceClassification", "single_label_classification");
  test_round_trip("tests/golden/distilbert", "DistilBertForSequenceClassification", "single_label_classification");
  test_modern_names();
  test_saved_labels();
  test_encoder_only();
  test_new_head();
  test_base_only();
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
