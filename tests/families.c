/* families.c - what differs between the families of encoders and between heads: dropout, sizes, shared layers, saving.
   Numbers of the forward and backward pass are compared with PyTorch's in verify.c. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "files.h"
#include "small.h"

static ft_context *context;
static char directory[600];

static ft_model *load(const char *path, ft_task task) {
  ft_model_options options;
  ft_model *model;
  memset(&options, 0, sizeof options);
  options.task = task;
  model = ft_model_load(context, path, &options);
  if (!model) printf("%s\n", ft_error_message(context));
  CHECK(model != NULL);
  if (!model) exit(1);
  return model;
}

static ft_task task_of(const char *name) { return strstr(name, "-masked") ? FT_TASK_MASKED : FT_TASK_AUTO; }

static const char *golden_path(const char *name) {
  static char path[200];
  snprintf(path, sizeof path, "tests/golden/%s", name);
  return path;
}

static ft_status run_batch(const ft_model *model, const int32_t *ids, int count, const ft_forward_options *options,
                           ft_output *output) {
  ft_batch batch;
  int64_t offsets[2] = {0, 0};
  ft_status status;
  memset(&batch, 0, sizeof batch);
  offsets[1] = count;
  status = ft_batch_set(context, &batch, ids, NULL, offsets, 1);
  if (status == FT_OK) status = ft_model_forward(context, model, &batch, options, output);
  ft_batch_free(&batch);
  return status;
}

/* ---- dropout: a back end that notes each probability as a letter ---- */

static char noted[200];

static void note(float probability) {
  size_t length = strlen(noted);
  if (probability == 0) return;
  noted[length] = probability == 0.11f ? 'h' : probability == 0.22f ? 'a' : probability == 0.33f ? 'c' : '?';
  noted[length + 1] = 0;
}

static void noting_dropout(ft_context *c, int64_t count, const ft_dropout_mask *mask, const ft_real *x, ft_real *y,
                           bool accumulate) {
  note(mask->probability);
  ft_backend_cpu()->dropout(c, count, mask, x, y, accumulate);
}

static void noting_layer_norm(ft_context *c, const ft_layer_norm_call *call) {
  note(call->dropout.probability);
  ft_backend_cpu()->layer_norm(c, call);
}

static void noting_attention(ft_context *c, const ft_attention_call *call) {
  note(call->dropout.probability);
  ft_backend_cpu()->attention(c, call);
}

/* Where PyTorch calls dropout in a forward pass: h hidden, a attention's probabilities, c classifier. Seen by replacing
   torch.nn.functional.dropout. */
static void check_dropout(const char *name, const char *expected) {
  const int32_t ids[4] = {2, 7, 9, 3};
  ft_model *model = load(golden_path(name), task_of(name));
  ft_forward_options options;
  ft_output output;
  memset(&options, 0, sizeof options);
  options.training = true;
  model->config.hidden_dropout = 0.11;
  model->config.attention_dropout = 0.22;
  model->config.classifier_dropout = 0.33;
  noted[0] = 0;
  CHECK(run_batch(model, ids, 4, &options, &output) == FT_OK);
  CHECK_TEXT(noted, expected);
  noted[0] = 0;
  options.training = false;
  CHECK(run_batch(model, ids, 4, &options, &output) == FT_OK);
  CHECK_TEXT(noted, "");
  ft_tape_clear(context);
  ft_model_free(model);
}

static void test_dropout(void) {
  ft_context *plain = context;
  ft_backend backend = *ft_backend_cpu();
  ft_context_options options;
  memset(&options, 0, sizeof options);
  backend.dropout = noting_dropout;
  backend.layer_norm = noting_layer_norm;
  backend.attention = noting_attention;
  options.backend = &backend;
  context = ft_context_create(&options);
  check_dropout("bert-pairs", "hahhahhc");
  check_dropout("distilbert", "hahahc");
  check_dropout("roberta", "hahhahhcc");
  check_dropout("electra", "hahhahhcc");
  check_dropout("albert-groups", "hahahahahahahahahahahahahc");
  check_dropout("bert-tokens", "hahhahhc");
  check_dropout("distilbert-tokens", "hahahc");
  check_dropout("roberta-tokens", "hahhahhc");
  check_dropout("bert-masked", "hahhahh");
  check_dropout("distilbert-masked", "hahah");
  check_dropout("roberta-masked", "hahhahh");
  check_dropout("albert-masked", "hahah");
  check_dropout("electra-masked", "hahhahh");
  ft_context_free(context);
  context = plain;
}

/* ---- config.json of published models ---- */

#define BERT_SIZES(layers, hidden, heads, wide)                                                        \
  "\"num_hidden_layers\": " #layers ", \"hidden_size\": " #hidden ", \"num_attention_heads\": " #heads \
  ", \"intermediate_size\": " #wide ", \"hidden_act\": \"gelu\", "
#define ROBERTA_SIZES \
  "\"vocab_size\": 50265, \"max_position_embeddings\": 514, \"type_vocab_size\": 1, \"pad_token_id\": 1"
#define UNCASED_SIZES "\"vocab_size\": 30522, \"max_position_embeddings\": 512, \"type_vocab_size\": 2"

static const struct {
  const char *config;
  int64_t texts, head, masked; /* parameters with two labels; those outside the base model; of the masked LM */
  int positions;
} published[] = {
    {"\"model_type\": \"distilbert\", \"n_layers\": 6, \"dim\": 768, \"n_heads\": 12, \"hidden_dim\": 3072, "
     "\"activation\": \"gelu\", \"vocab_size\": 30522, \"max_position_embeddings\": 512",
     66955010, 592130, 66985530, 512},
    {"\"model_type\": \"bert\", " BERT_SIZES(12, 768, 12, 3072) UNCASED_SIZES, 109483778, 1538, 109514298, 512},
    {"\"model_type\": \"roberta\", " BERT_SIZES(12, 768, 12, 3072) ROBERTA_SIZES, 124647170, 592130, 124697433, 512},
    {"\"model_type\": \"roberta\", " BERT_SIZES(6, 768, 12, 3072) ROBERTA_SIZES, 82119938, 592130, 82170201, 512},
    {"\"model_type\": \"roberta\", " BERT_SIZES(24, 1024, 16, 4096) ROBERTA_SIZES, 355361794, 1051650, 355412057, 512},
    {"\"model_type\": \"albert\", \"embedding_size\": 128, \"num_hidden_groups\": 1, \"inner_group_num\": "
     "1, " BERT_SIZES(12, 768, 12,
                      3072) "\"vocab_size\": 30000, \"max_position_embeddings\": 512, \"type_vocab_size\": 2",
     11685122, 1538, 11221680, 512},
    {"\"model_type\": \"electra\", \"embedding_size\": 128, " BERT_SIZES(12, 256, 4, 1024) UNCASED_SIZES, 13549314,
     66306, 13546682, 512},
};

static void check_count(const char *path, ft_task task, int64_t size, int64_t trained, int positions) {
  ft_model_options options;
  ft_model *model;
  memset(&options, 0, sizeof options);
  options.shapes_only = true;
  options.task = task;
  model = ft_model_load(context, path, &options);
  if (!model) printf("%s\n", ft_error_message(context));
  CHECK(model != NULL);
  if (!model) return;
  if (ft_model_size(model, false) != size)
    printf("%s: %lld\n", ft_model_config(model)->model_type, (long long)ft_model_size(model, false));
  CHECK(ft_model_size(model, false) == size);
  CHECK(ft_model_config(model)->max_positions == positions);
  ft_model_train_head(model);
  if (trained) CHECK(ft_model_size(model, true) == trained);
  ft_model_free(model);
}

static void test_published_sizes(void) {
  size_t i;
  for (i = 0; i < sizeof published / sizeof published[0]; ++i) {
    char text[600];
    snprintf(text, sizeof text, "{%s}", published[i].config);
    files_write_text(directory, "published.json", text);
    check_count(files_path(directory, "published.json"), FT_TASK_AUTO, published[i].texts, published[i].head,
                published[i].positions);
    check_count(files_path(directory, "published.json"), FT_TASK_MASKED, published[i].masked, 0,
                published[i].positions);
  }
}

static void check_refused(const char *config, ft_task task, const char *expected) {
  ft_model_options options;
  memset(&options, 0, sizeof options);
  options.shapes_only = true;
  options.task = task;
  files_write_text(directory, "refused.json", config);
  CHECK(ft_model_load(context, files_path(directory, "refused.json"), &options) == NULL);
  if (!strstr(ft_error_message(context), expected)) printf("%s\n", ft_error_message(context));
  CHECK(strstr(ft_error_message(context), expected) != NULL);
}

static void test_refused(void) {
  check_refused("{\"model_type\": \"gpt2\"}", FT_TASK_AUTO,
                "model_type \"gpt2\" is not one of bert, distilbert, roberta, xlm-roberta, camembert, albert, electra");
  check_refused("{\"model_type\": \"bert\", \"tie_word_embeddings\": false, " BERT_SIZES(2, 8, 2, 16) UNCASED_SIZES "}",
                FT_TASK_MASKED, "\"tie_word_embeddings\" is false");
  check_refused("{\"model_type\": \"roberta\", " BERT_SIZES(
                    2, 8, 2, 16) "\"vocab_size\": 9, \"max_position_embeddings\": 2, \"type_vocab_size\": 1}",
                FT_TASK_AUTO, "leaves no position for a text behind \"pad_token_id\" 1");
  check_refused("{\"model_type\": \"albert\", \"num_hidden_groups\": 3, " BERT_SIZES(2, 8, 2, 16) UNCASED_SIZES "}",
                FT_TASK_AUTO, "\"num_hidden_groups\" must be a whole number from 1 to 2");
  check_refused("{\"model_type\": \"electra\", \"embedding_size\": 0, " BERT_SIZES(2, 8, 2, 16) UNCASED_SIZES "}",
                FT_TASK_AUTO, "\"embedding_size\" must be a whole number");
}

/* ---- layers ---- */

static void test_layers(void) {
  ft_model *model = load("tests/golden/albert-groups", FT_TASK_AUTO);
  const ft_config *config = ft_model_config(model);
  CHECK(config->layers == 6 && config->groups == 2 && config->layers_of_group == 2);
  CHECK(config->embedding_size == 6 && config->hidden_size == 12);
  CHECK(ft_model_find(model, "albert.embeddings.word_embeddings.weight")->layer == 0);
  CHECK(ft_model_find(model, "albert.encoder.embedding_hidden_mapping_in.weight")->layer == 0);
  CHECK(ft_model_find(model, "albert.encoder.albert_layer_groups.0.albert_layers.1.ffn.weight")->layer == 1);
  CHECK(ft_model_find(model, "albert.encoder.albert_layer_groups.1.albert_layers.0.ffn.weight")->layer == 4);
  CHECK(ft_model_find(model, "albert.pooler.weight")->layer == 7 &&
        ft_model_find(model, "classifier.bias")->layer == 7);
  CHECK(ft_model_reinitialize(context, model, 1, 1) == FT_ERROR_ARGUMENT);
  ft_model_free(model);
}

/* ---- heads over tokens ---- */

static void test_rows(void) {
  const int32_t ids[6] = {0, 30, 31, 32, 33, 2}, rows[3] = {4, 1, 4}, outside[1] = {6};
  ft_model *model = load("tests/golden/roberta-masked", FT_TASK_MASKED);
  int64_t columns = ft_model_config(model)->labels, i, k;
  ft_forward_options options;
  ft_output all, some;
  ft_real *whole, *part;
  memset(&options, 0, sizeof options);
  CHECK(run_batch(model, ids, 6, &options, &all) == FT_OK);
  options.rows = rows;
  options.row_count = 3;
  CHECK(run_batch(model, ids, 6, &options, &some) == FT_OK);
  CHECK(all.logits->shape[0] == 6 && all.logits->shape[1] == columns && some.logits->shape[0] == 3);
  whole = (ft_real *)malloc((size_t)(6 * columns) * sizeof *whole);
  part = (ft_real *)malloc((size_t)(3 * columns) * sizeof *part);
  CHECK(ft_tensor_read(context, all.logits, whole) == FT_OK && ft_tensor_read(context, some.logits, part) == FT_OK);
  for (i = 0; i < 3; ++i)
    for (k = 0; k < columns; ++k) CHECK_NEAR(part[i * columns + k], whole[rows[i] * columns + k], 1e-5);
  options.rows = outside;
  options.row_count = 1;
  CHECK(run_batch(model, ids, 6, &options, &some) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "row 6 is outside the 6 tokens of the batch");
  free(whole);
  free(part);
  ft_tape_clear(context);
  ft_model_free(model);
}

/* The mean is over the labelled tokens, whatever the negative label of the others. */
static void test_ignored_labels(void) {
  const int32_t ids[5] = {2, 30, 31, 32, 3}, labels[5] = {-100, 1, -1, 4, -100}, kept[2] = {1, 4}, rows[2] = {1, 3};
  const int32_t none[5] = {-100, -100, -100, -100, -100}, wrong[5] = {-100, 5, 0, 0, 0};
  ft_model *model = load("tests/golden/bert-tokens", FT_TASK_AUTO);
  ft_forward_options options;
  ft_output output;
  ft_real all = 0, some = 0, nothing = 1;
  CHECK(ft_model_config(model)->task == FT_TASK_TOKENS && ft_model_config(model)->labels == 5);
  memset(&options, 0, sizeof options);
  CHECK(run_batch(model, ids, 5, &options, &output) == FT_OK);
  CHECK(ft_tensor_read(context, ft_model_loss(context, model, output.logits, labels, NULL, 0), &all) == FT_OK);
  CHECK(ft_tensor_read(context, ft_model_loss(context, model, output.logits, none, NULL, 0), &nothing) == FT_OK);
  CHECK(nothing == 0);
  CHECK(ft_model_loss(context, model, output.logits, wrong, NULL, 0) == NULL);
  CHECK_TEXT(ft_error_message(context), "ft_model_loss: label 5, but the model has 5");
  options.rows = rows;
  options.row_count = 2;
  CHECK(run_batch(model, ids, 5, &options, &output) == FT_OK);
  CHECK(ft_tensor_read(context, ft_model_loss(context, model, output.logits, kept, NULL, 0), &some) == FT_OK);
  CHECK_NEAR(all, some, 1e-6);
  ft_tape_clear(context);
  ft_model_free(model);
}

/* Scoring many texts gives what one text at a time gives, every text in its place. */
static void test_predict_tokens(void) {
  ft_model *model = load("tests/golden/bert-tokens", FT_TASK_AUTO),
           *texts = load("tests/golden/bert-pairs", FT_TASK_AUTO);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, "tests/golden/bert-tokens");
  small_data data = small_parse(context, small_csv, NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  ft_scoring_options scoring = {3, NULL, NULL};
  ft_output output;
  float *logits;
  ft_real one[40 * 5];
  int64_t row, i, tokens;
  CHECK(tokenizer && encoded);
  if (!encoded) exit(1);
  tokens = encoded->offsets[encoded->rows];
  logits = (float *)malloc((size_t)(tokens * 5) * sizeof *logits);
  CHECK(ft_predict_tokens(context, model, encoded, &scoring, logits) == FT_OK);
  for (row = 0; row < encoded->rows; ++row) {
    int64_t start = encoded->offsets[row], count = encoded->offsets[row + 1] - start;
    CHECK(run_batch(model, encoded->ids + start, (int)count, NULL, &output) == FT_OK);
    CHECK(ft_tensor_read(context, output.logits, one) == FT_OK);
    for (i = 0; i < count * 5; ++i) CHECK_NEAR(logits[start * 5 + i], one[i], 1e-5);
    ft_tape_clear(context);
  }
  CHECK(ft_predict(context, model, encoded, NULL, logits) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "the model's head scores tokens, not texts: use ft_predict_tokens");
  CHECK(ft_predict_tokens(context, texts, encoded, NULL, logits) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "the model's head scores texts, not tokens: use ft_predict");
  free(logits);
  ft_encoded_free(encoded);
  small_free(&data);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  ft_model_free(texts);
}

/* RoBERTa counts positions behind pad_id and skips padding tokens, also inside a text: with equal words, tokens at the
   same position have the same embedding. */
static void test_positions(void) {
  const int32_t plain[5] = {0, 30, 30, 30, 2}, padded[6] = {0, 30, 1, 30, 30, 2};
  static const int same[5] = {0, 1, 3, 4, 5};
  ft_model *model = load("tests/golden/roberta", FT_TASK_AUTO);
  int64_t width = ft_model_config(model)->hidden_size, i, k;
  ft_forward_options options;
  ft_output a, b;
  ft_real first[5 * 12], second[6 * 12];
  memset(&options, 0, sizeof options);
  options.hidden_states = true;
  CHECK(width == 12 && run_batch(model, plain, 5, &options, &a) == FT_OK);
  CHECK(run_batch(model, padded, 6, &options, &b) == FT_OK);
  CHECK(ft_tensor_read(context, a.hidden_states[0], first) == FT_OK);
  CHECK(ft_tensor_read(context, b.hidden_states[0], second) == FT_OK);
  for (i = 0; i < 5; ++i)
    for (k = 0; k < width; ++k) CHECK(first[i * width + k] == second[same[i] * width + k]);
  ft_tape_clear(context);
  ft_model_free(model);
}

/* ---- saving: what is read again is what was written ---- */

static void check_saved(const char *name, const char *architecture) {
  ft_model *model = load(golden_path(name), task_of(name)), *again;
  ft_json *config;
  char saved[1000];
  ft_real *before, *after;
  snprintf(saved, sizeof saved, "%s", files_path(directory, name));
  CHECK(ft_model_save(context, model, NULL, saved) == FT_OK);
  again = load(saved, task_of(name));
  config = ft_json_read(context, files_path(saved, "config.json"));
  CHECK_TEXT(ft_json_get(config, "architectures")->child->string, architecture);
  CHECK(ft_model_unexpected_count(again) == 0);
  CHECK(ft_model_parameter_count(again) == ft_model_parameter_count(model));
  CHECK(ft_model_config(again)->task == ft_model_config(model)->task);
  CHECK(ft_model_config(again)->labels == ft_model_config(model)->labels);
  before = small_weights(context, model);
  after = small_weights(context, again);
  CHECK(memcmp(before, after, (size_t)ft_model_size(model, false) * sizeof *before) == 0);
  free(before);
  free(after);
  ft_json_free(config);
  ft_model_free(model);
  ft_model_free(again);
  files_end(saved);
}

static void test_saving(void) {
  check_saved("roberta", "RobertaForSequenceClassification");
  check_saved("albert-groups", "AlbertForSequenceClassification");
  check_saved("electra", "ElectraForSequenceClassification");
  check_saved("roberta-tokens", "RobertaForTokenClassification");
  check_saved("distilbert-tokens", "DistilBertForTokenClassification");
  check_saved("bert-masked", "BertForMaskedLM");
  check_saved("distilbert-masked", "DistilBertForMaskedLM");
  check_saved("roberta-masked", "RobertaForMaskedLM");
  check_saved("albert-masked", "AlbertForMaskedLM");
  check_saved("electra-masked", "ElectraForMaskedLM");
}

int main(void) {
  context = ft_context_create(NULL);
  if (!context) return 1;
  files_begin(context, directory, "families");
  test_dropout();
  test_published_sizes();
  test_refused();
  test_layers();
  test_rows();
  test_ignored_labels();
  test_predict_tokens();
  test_positions();
  test_saving();
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
