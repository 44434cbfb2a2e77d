/* best.c - evaluation while training and the weights that are kept; and what training refuses, or stops at. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "small.h"

static const char bert[] = "tests/golden/bert-pairs";

/* ---- the best weights ---- */

typedef struct best_test { /* a callback that changes the model while it is trained */
  ft_context *context;
  ft_model *model;
  int epoch, best_epoch;
  double score[3];
} best_test;

/* Makes the classifier always say one class. */
static void always_say(best_test *test, int label) {
  ft_real bias[2] = {0, 0};
  bias[label] = 1000;
  ft_tensor_write(test->context, ft_model_find(test->model, "classifier.bias")->tensor, bias);
}

/* Epochs one and two end with a model that always says 1, the third with one that always says 0. Equal is not better:
   the first is the best. */
static bool spoil(void *user_data, const ft_train_progress *progress) {
  best_test *test = (best_test *)user_data;
  if (progress->evaluation) {
    if (progress->best) test->best_epoch = test->epoch + 1;
    if (test->epoch < 3) test->score[test->epoch] = progress->evaluation->accuracy;
    ++test->epoch;
  } else {
    always_say(test, test->epoch < 2);
  }
  return true;
}

static void test_best(bool keep_last) {
  static const char mostly_one[] = "text,label\nno,1\nit is,1\nwell,1\nthis was long,0\n";
  best_test test;
  small_data train, evaluation;
  ft_train_options options;
  ft_train_result result;
  ft_metrics metrics;
  ft_tokenizer *tokenizer;
  ft_encoded *encoded;
  memset(&test, 0, sizeof test);
  memset(&options, 0, sizeof options);
  memset(&metrics, 0, sizeof metrics);
  test.context = ft_context_create(NULL);
  test.model = small_model(test.context, bert, 0);
  tokenizer = ft_tokenizer_load(test.context, bert);
  train = small_parse(test.context, small_csv, NULL);
  evaluation = small_parse(test.context, mostly_one, NULL);
  options.progress = spoil;
  options.user_data = &test;
  options.keep_last = keep_last;
  CHECK(ft_train(test.context, test.model, tokenizer, train.dataset, evaluation.dataset, &options, &result) == FT_OK);
  CHECK(test.epoch == 3 && test.score[0] == 0.75 && test.score[1] == 0.75 && test.score[2] == 0.25);
  CHECK(test.best_epoch == 1 && result.best_epoch == 1 && result.best_score == 0.75);
  encoded = ft_dataset_encode(test.context, evaluation.dataset, tokenizer, 40);
  CHECK(ft_evaluate(test.context, test.model, encoded, evaluation.dataset, NULL, &metrics) == FT_OK);
  CHECK(metrics.accuracy == (keep_last ? 0.25 : result.best_score));
  ft_metrics_free(&metrics);
  ft_encoded_free(encoded);
  small_free(&train);
  small_free(&evaluation);
  ft_tokenizer_free(tokenizer);
  ft_model_free(test.model);
  ft_context_free(test.context);
}

/* ---- errors ---- */

/* Puts NaN or a huge number into the embedding of a word that occurs in one line only. */
static void check_not_finite(bool nan, const char *message) {
  ft_context *context = ft_context_create(NULL);
  ft_model *model = small_model(context, bert, 0);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, bert);
  small_data data = small_parse(context, small_csv, NULL);
  ft_tensor *words = ft_model_find(model, "bert.embeddings.word_embeddings.weight")->tensor;
  int64_t columns = words->shape[1];
  ft_real *values = (ft_real *)malloc((size_t)ft_tensor_count(words) * sizeof *values);
  const uint32_t nan_bits = 0x7FC00000u, infinity_bits = 0x7F800000u;
  ft_train_options options;
  ft_train_result result;
  memset(&options, 0, sizeof options);
  options.batch_size = 2;
  options.no_shuffle = true;
  ft_tensor_read(context, words, values);
  memcpy(values + ft_tokenizer_id(tokenizer, "we") * columns, nan ? &nan_bits : &infinity_bits, sizeof nan_bits);
  ft_tensor_write(context, words, values);
  CHECK(ft_train(context, model, tokenizer, data.dataset, NULL, &options, &result) == FT_ERROR_NUMERIC);
  CHECK_TEXT(ft_error_message(context), message);
  CHECK(result.steps == 3);
  free(values);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
  ft_context_free(context);
}

static void check_refused(ft_task task, bool unlabelled, const char *csv, int max_length, const char *word) {
  ft_context *context = ft_context_create(NULL);
  ft_model *model = small_model(context, bert, 0);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, bert);
  ft_dataset_options options;
  ft_train_options train;
  small_data data, good = small_parse(context, small_csv, NULL);
  memset(&options, 0, sizeof options);
  memset(&train, 0, sizeof train);
  options.task = task;
  options.unlabelled = unlabelled;
  train.max_length = max_length;
  data = small_parse(context, csv, &options);
  CHECK(ft_train(context, model, tokenizer, data.dataset, NULL, &train, NULL) == FT_ERROR_ARGUMENT);
  if (!strstr(ft_error_message(context), word)) printf("%s\n", ft_error_message(context));
  CHECK(strstr(ft_error_message(context), word) != NULL);
  CHECK(ft_train(context, model, tokenizer, good.dataset, max_length ? NULL : data.dataset, &train, NULL) ==
        FT_ERROR_ARGUMENT); /* nor for evaluation */
  small_free(&data);
  small_free(&good);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  ft_context_free(context);
}

static void test_errors(void) {
  check_not_finite(true, "step 4: the loss is not a finite number; its texts are at lines 8 9 of words.csv");
  check_not_finite(false, "step 4: the loss is not a finite number; its texts are at lines 8 9 of words.csv");
  check_refused(FT_TASK_AUTO, false, "text,label\na,0\nb,1\nc,2\n", 0, "words.csv has 3 labels, but the model has 2");
  check_refused(FT_TASK_REGRESSION, false, "text,label\na,0.5\nb,1\n", 0, "words.csv was read for another task");
  check_refused(FT_TASK_AUTO, true, "text\na\nb\n", 0, "words.csv has no labels");
  check_refused(FT_TASK_AUTO, false, small_csv, 41, "max_length 41 is more than the model's 40 positions");
}

/* Training and evaluation texts whose labels have other names: 0 would mean one thing here and another there. */
static void test_label_names(void) {
  ft_context *context = ft_context_create(NULL);
  ft_model *model = small_model(context, bert, 0);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, bert);
  small_data train = small_parse(context, "text,label\nno,bad\nwell,good\n", NULL);
  small_data evaluation = small_parse(context, "text,label\nno,good\nwell,superb\n", NULL);
  CHECK(ft_train(context, model, tokenizer, train.dataset, evaluation.dataset, NULL, NULL) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "label 0 is \"bad\" in words.csv but \"good\" in words.csv") != NULL);
  small_free(&train);
  small_free(&evaluation);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  ft_context_free(context);
}

int main(void) {
  test_best(false);
  test_best(true);
  test_errors();
  test_label_names();
  FINISH();
}
