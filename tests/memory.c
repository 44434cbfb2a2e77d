/* memory.c - a whole job, from loading to saving, with the caller's allocator: everything is given back, later steps
   ask for nothing, and whichever allocation fails, the answer is an error and no crash, leak, or wrong result. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "counting.h"
#include "files.h"
#include "small.h"

static char directory[600];

typedef struct job { /* what a job makes, in the order in which it is made */
  ft_context *context;
  ft_table *table;
  ft_dataset *data;
  ft_tokenizer *tokenizer;
  ft_model *model;
  ft_encoded *encoded;
  ft_metrics metrics;
  float logits[2 * SMALL_ROWS];
} job;

/* Returns whether all of it worked. Errors are looked for only here and there: a NULL that is handed on is no crash. */
static bool job_run(job *j, const char *golden) {
  ft_train_options options;
  ft_train_result result;
  ft_status trained, evaluated, saved;
  memset(&options, 0, sizeof options);
  options.max_steps = 2;
  options.batch_size = 4;
  options.learning_rate = 1e-3;
  options.gradient_checkpointing = strstr(golden, "bert-pairs") != NULL;
  j->table = ft_table_parse(j->context, small_csv, strlen(small_csv), "words.csv", FT_TABLE_CSV);
  j->data = ft_dataset_from_table(j->context, j->table, NULL);
  j->tokenizer = ft_tokenizer_load(j->context, golden);
  j->model = ft_model_load(j->context, golden, NULL);
  trained = ft_train(j->context, j->model, j->tokenizer, j->data, j->data, &options, &result);
  j->encoded = ft_dataset_encode(j->context, j->data, j->tokenizer, 40);
  evaluated = ft_evaluate(j->context, j->model, j->encoded, j->data, NULL, &j->metrics);
  if (evaluated == FT_OK) evaluated = ft_predict(j->context, j->model, j->encoded, NULL, j->logits);
  saved = ft_model_save(j->context, j->model, j->tokenizer, directory);
  return trained == FT_OK && evaluated == FT_OK && saved == FT_OK;
}

static void job_free(job *j) {
  ft_metrics_free(&j->metrics);
  ft_encoded_free(j->encoded);
  ft_model_free(j->model);
  ft_tokenizer_free(j->tokenizer);
  ft_dataset_free(j->data);
  ft_table_free(j->table);
  ft_context_free(j->context);
}

/* Runs the job with allocations failing as the allocator says. If it claims success, the result must be right. */
static bool check_job(counting_allocator *allocator, const char *golden, const float *expected) {
  job j;
  bool worked = false;
  memset(&j, 0, sizeof j);
  j.context = counting_context(allocator, 1);
  if (j.context) {
    worked = job_run(&j, golden);
    if (!worked && ft_error_message(j.context)[0] == 0) printf("failed without a message\n");
    CHECK(worked || ft_error_message(j.context)[0]);
    if (worked && memcmp(j.logits, expected, sizeof j.logits) != 0)
      printf("unnoticed: allocation %lld, every %lld\n", (long long)allocator->fail_at,
             (long long)allocator->fail_every);
    CHECK(!worked || memcmp(j.logits, expected, sizeof j.logits) == 0);
  }
  job_free(&j);
  CHECK(allocator->live == 0);
  return worked;
}

/* Every allocation of the job fails once; where there are many, every stride-th. */
static void test_failures(const char *golden) {
  counting_allocator allocator = no_calls();
  float expected[2 * SMALL_ROWS];
  int64_t total, n, stride, failed = 0, tried = 0;
  job j;
  memset(&j, 0, sizeof j);
  j.context = counting_context(&allocator, 1);
  CHECK(job_run(&j, golden));
  memcpy(expected, j.logits, sizeof expected);
  job_free(&j);
  CHECK(allocator.live == 0);
  total = allocator.calls;
  stride = total / 400 + 1;
  for (n = 1; n <= total; n += stride, ++tried) {
    allocator = no_calls();
    allocator.fail_at = n;
    failed += !check_job(&allocator, golden, expected);
  }
  printf("%s: %lld allocations; of %lld that failed, %lld were fatal\n", golden, (long long)total, (long long)tried,
         (long long)failed);
  CHECK(failed > tried / 2);
  for (n = 2; n < total; n += n / 3 + 1) { /* again and again */
    allocator = no_calls();
    allocator.fail_every = n;
    check_job(&allocator, golden, expected);
  }
}

/* Training steps after the first allocate nothing; nor do batches of scoring after the first, which is the largest. */
static void test_steady(bool gradient_checkpointing) {
  counting_allocator allocator = no_calls();
  ft_context *context = counting_context(&allocator, 1);
  ft_model *model = small_model(context, "tests/golden/bert-pairs", 0.1);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, "tests/golden/bert-pairs");
  ft_optimizer *optimizer = ft_optimizer_create(context, model, NULL, NULL);
  small_data data = small_parse(context, small_csv, NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  ft_forward_options options = {true, false, false, NULL, 0, 0, NULL, NULL, NULL, gradient_checkpointing};
  int64_t rows[SMALL_ROWS], calls = 0, i;
  ft_batch batch;
  int step;
  memset(&batch, 0, sizeof batch);
  for (step = 0; step < 4; ++step) {
    ft_output output;
    ft_tensor *loss;
    double norm;
    for (i = 0; i < SMALL_ROWS; ++i) rows[i] = (i + step) % SMALL_ROWS;
    CHECK(ft_batch_select(context, &batch, encoded, rows, SMALL_ROWS - step) == FT_OK); /* ever fewer */
    CHECK(ft_model_forward(context, model, &batch, &options, &output) == FT_OK);
    loss = ft_model_loss(context, model, output.logits, data.dataset->labels, NULL, 0);
    CHECK(ft_backward(context, loss) == FT_OK);
    CHECK(ft_optimizer_gradient_norm(context, optimizer, &norm) == FT_OK);
    CHECK(ft_optimizer_step(context, optimizer, 1e-4, ft_clip_factor(norm, 1)) == FT_OK);
    ft_tape_clear(context);
    if (step == 0) calls = allocator.calls;
  }
  CHECK(allocator.calls == calls);
  ft_batch_free(&batch);
  ft_encoded_free(encoded);
  small_free(&data);
  ft_optimizer_free(optimizer);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  ft_context_free(context);
  CHECK(allocator.live == 0);
}

/* A config.json that promises gigabytes beside a small file of weights: refused before they are asked for. */
static void test_promises(ft_context *context) {
  counting_allocator allocator = no_calls();
  ft_context *counting = counting_context(&allocator, 1);
  int64_t before = allocator.bytes;
  files_write_text(
      directory, "config.json",
      "{\"model_type\": \"bert\", \"hidden_size\": 32, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
      " \"intermediate_size\": 64, \"vocab_size\": 16777216, \"max_position_embeddings\": 40,"
      " \"type_vocab_size\": 2, \"hidden_act\": \"gelu\"}");
  files_copy(context, "tests/golden/bert-pairs", directory, "model.safetensors");
  CHECK(ft_model_load(counting, directory, NULL) == NULL && ft_error_status(counting) == FT_ERROR_SHAPE);
  CHECK(strstr(ft_error_message(counting), "[16777216, 32]") && allocator.bytes - before < 1000000);
  ft_context_free(counting);
  CHECK(allocator.live == 0);
}

int main(void) {
  ft_context *context = ft_context_create(NULL);
  files_begin(context, directory, "memory");
  test_steady(false);
  test_steady(true);
  test_failures("tests/golden/distilbert");
  test_failures("tests/golden/bert-pairs");
  test_promises(context);
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
