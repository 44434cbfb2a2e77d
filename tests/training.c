/* training.c - the training loop: what repeats bit for bit, what does not, and that each option does what it says. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "small.h"

static const char bert[] = "tests/golden/bert-pairs", distilbert[] = "tests/golden/distilbert";

enum { MAX_STEPS = 64 };

typedef struct run { /* a training run, as the progress callback saw it, and what it left */
  ft_train_options options;
  int64_t steps, evaluations, stop_at; /* stop_at: the callback returns false after this step; 0: never */
  double loss[MAX_STEPS], rate[MAX_STEPS], norm[MAX_STEPS], score[MAX_STEPS];
  ft_train_progress last;
  ft_train_result result;
  ft_status status;
  char message[1024];
  ft_real *weights; /* all parameters afterwards */
  int64_t size;
  double dropout;
  const char *directory;
  bool head_only;
} run;

static bool watch(void *user_data, const ft_train_progress *progress) {
  run *r = (run *)user_data;
  if (progress->evaluation) {
    if (r->evaluations < MAX_STEPS) r->score[r->evaluations] = progress->evaluation->accuracy;
    ++r->evaluations;
    return true;
  }
  CHECK(progress->step == r->steps + 1); /* every step once */
  if (r->steps < MAX_STEPS) {
    r->loss[r->steps] = progress->loss;
    r->rate[r->steps] = progress->learning_rate;
    r->norm[r->steps] = progress->gradient_norm;
  }
  r->last = *progress;
  return ++r->steps != r->stop_at;
}

static run run_new(const char *directory) {
  run r;
  memset(&r, 0, sizeof r);
  r.directory = directory;
  r.options.batch_size = 4;
  r.options.learning_rate = 1e-3;
  return r;
}

/* Trains on the small data in a context of its own. */
static void run_go(run *r, int threads) {
  ft_context_options options;
  ft_context *context;
  ft_model *model;
  ft_tokenizer *tokenizer;
  small_data data;
  memset(&options, 0, sizeof options);
  options.threads = threads;
  context = ft_context_create(&options);
  model = small_model(context, r->directory, r->dropout);
  tokenizer = ft_tokenizer_load(context, r->directory);
  data = small_parse(context, small_csv, NULL);
  if (r->head_only) ft_model_train_head(model);
  r->options.progress = watch;
  r->options.user_data = r;
  r->status = ft_train(context, model, tokenizer, data.dataset, NULL, &r->options, &r->result);
  snprintf(r->message, sizeof r->message, "%s", ft_error_message(context));
  r->weights = small_weights(context, model);
  r->size = ft_model_size(model, false);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
  ft_context_free(context);
}

static bool same_runs(const run *a, const run *b) {
  return a->status == FT_OK && b->status == FT_OK && a->steps == b->steps && a->steps > 0 && a->size == b->size &&
         memcmp(a->loss, b->loss, (size_t)a->steps * sizeof *a->loss) == 0 &&
         memcmp(a->norm, b->norm, (size_t)a->steps * sizeof *a->norm) == 0 &&
         memcmp(a->weights, b->weights, (size_t)a->size * sizeof *a->weights) == 0;
}

/* ---- what repeats ---- */

static run dropout_run(const char *directory, int threads, uint64_t seed) {
  run r = run_new(directory);
  r.dropout = 0.1;
  r.options.max_steps = 20;
  r.options.seed = seed;
  r.options.no_shuffle = seed != 0; /* with another seed, so that it can only be seen in the dropout */
  run_go(&r, threads);
  return r;
}

/* Bit for bit the same for any number of threads, and when repeated; another seed is another run. */
static void test_repeats(const char *directory) {
  run one = dropout_run(directory, 1, 0), two = dropout_run(directory, 2, 0), three = dropout_run(directory, 3, 0);
  run again = dropout_run(directory, 1, 0), a = dropout_run(directory, 1, 7), b = dropout_run(directory, 1, 8);
  CHECK(one.steps == 20 && one.result.steps == 20);
  CHECK(same_runs(&one, &two));
  CHECK(same_runs(&one, &three));
  CHECK(same_runs(&one, &again));
  CHECK(a.status == FT_OK && !same_runs(&a, &b) && a.loss[0] != b.loss[0]);
  CHECK(!same_runs(&one, &a));
  free(one.weights), free(two.weights), free(three.weights), free(again.weights), free(a.weights), free(b.weights);
}

/* Without dropout, the seed only shuffles; without shuffling, it does nothing. Batches of like lengths are others. */
static void test_order(void) {
  run a = run_new(distilbert), b = run_new(distilbert), c = run_new(distilbert), d = run_new(distilbert);
  a.dropout = b.dropout = c.dropout = 0.1;
  a.options.no_dropout = b.options.no_dropout = c.options.no_dropout = d.options.no_dropout = true;
  a.options.no_shuffle = b.options.no_shuffle = true;
  a.options.seed = c.options.seed = d.options.seed = 5;
  b.options.seed = 6;
  d.options.group_by_length = true;
  run_go(&a, 1), run_go(&b, 1), run_go(&c, 1), run_go(&d, 1);
  CHECK(d.status == FT_OK && d.steps == c.steps && !same_runs(&c, &d));
  CHECK(same_runs(&a, &b));
  CHECK(!same_runs(&a, &c));
  free(a.weights), free(b.weights), free(c.weights), free(d.weights);
}

/* ---- options ---- */

/* Batches of 2, four to a step, are batches of 8: 14 rows make steps of 8 and 6 texts, the second of three batches. */
static void test_accumulation(void) {
  run whole = run_new(bert), parts = run_new(bert);
  int64_t i;
  whole.options.batch_size = 8;
  parts.options.batch_size = 2;
  parts.options.gradient_accumulation = 4;
  run_go(&whole, 1), run_go(&parts, 1);
  CHECK(whole.status == FT_OK && whole.steps == 6 && parts.steps == 6);
  for (i = 0; i < 6; ++i) {
    CHECK_NEAR(parts.loss[i], whole.loss[i], 2e-6);
    CHECK_NEAR(parts.norm[i] / whole.norm[i], 1, 1e-4);
    CHECK(parts.rate[i] == whole.rate[i]);
  }
  CHECK_NEAR(parts.result.train_loss, whole.result.train_loss, 2e-6);
  free(whole.weights), free(parts.weights);
}

/* A step's loss is the mean over its texts, however many there are: one step over all 14 texts, in a batch that could
   hold 16 or in batches of 4, 4, 4 and 2, has the loss that an evaluation of the untrained model gives. */
static void test_mean_loss(void) {
  ft_context *context = ft_context_create(NULL);
  ft_model *model = small_model(context, bert, 0);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, bert);
  small_data data = small_parse(context, small_csv, NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  run whole = run_new(bert), parts = run_new(bert);
  ft_metrics metrics;
  memset(&metrics, 0, sizeof metrics);
  CHECK(ft_evaluate(context, model, encoded, data.dataset, NULL, &metrics) == FT_OK);
  whole.options.batch_size = 16;
  parts.options.gradient_accumulation = 4;
  whole.options.epochs = parts.options.epochs = 1;
  run_go(&whole, 1), run_go(&parts, 1);
  CHECK(whole.steps == 1 && parts.steps == 1);
  CHECK_NEAR(whole.loss[0], metrics.loss, 1e-6);
  CHECK_NEAR(parts.loss[0], metrics.loss, 1e-6);
  free(whole.weights), free(parts.weights);
  ft_metrics_free(&metrics);
  ft_encoded_free(encoded);
  small_free(&data);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  ft_context_free(context);
}

/* The small data's lengths, in order: 9 3 5 8 6 6 5 6 12 5 3 6 4 6. At most 12 tokens to a batch makes
   9 3 | 5 | 8 | 6 6 | 5 6 | 12 | 5 3 | 6 4 | 6: nine steps; at most 1 makes 14, one text each. */
static void test_batch_tokens(void) {
  run twelve = run_new(bert), one = run_new(bert), eight = run_new(bert);
  twelve.options.epochs = one.options.epochs = eight.options.epochs = 1;
  twelve.options.no_shuffle = one.options.no_shuffle = eight.options.no_shuffle = true;
  twelve.options.batch_tokens = 12;
  one.options.batch_tokens = 1;
  eight.options.batch_size = 8;
  run_go(&twelve, 1), run_go(&one, 1), run_go(&eight, 1);
  CHECK(twelve.steps == 9 && one.steps == 14 && eight.steps == 2);
  free(twelve.weights), free(one.weights), free(eight.weights);
}

/* Learning rates as the callback sees them: shares of the full rate, for six steps. */
static void check_rates(ft_schedule schedule, double warmup, const double *shares) {
  run r = run_new(distilbert);
  int i;
  r.options.max_steps = 6; /* an epoch has four: the second one is cut short */
  r.options.schedule = schedule;
  r.options.warmup = warmup;
  run_go(&r, 1);
  CHECK(r.status == FT_OK && r.steps == 6 && r.result.steps == 6 && r.last.total_steps == 6);
  CHECK_NEAR(r.last.epoch, 1.5, 1e-12);
  for (i = 0; i < 6; ++i) CHECK_NEAR(r.rate[i], 1e-3 * shares[i], 1e-12);
  CHECK_NEAR(r.result.train_loss, (r.loss[0] + r.loss[1] + r.loss[2] + r.loss[3] + r.loss[4] + r.loss[5]) / 6, 1e-12);
  free(r.weights);
}

static void test_schedules(void) {
  static const double linear[6] = {1, 5. / 6, 4. / 6, 3. / 6, 2. / 6, 1. / 6}, constant[6] = {1, 1, 1, 1, 1, 1};
  static const double two_steps[6] = {0, 0.5, 1, 0.75, 0.5, 0.25};
  static const double three_steps[6] = {0, 1. / 3, 2. / 3,
                                        1, 0.75,   0.25}; /* then (1 + cos(pi p)) / 2, p = 0, 1/3, 2/3 */
  check_rates(FT_SCHEDULE_LINEAR, 0, linear);
  check_rates(FT_SCHEDULE_CONSTANT, 0, constant);
  check_rates(FT_SCHEDULE_LINEAR, 2, two_steps);
  check_rates(FT_SCHEDULE_COSINE, 0.34, three_steps); /* 0.34 of six steps, rounded up */
}

static void test_stop(void) {
  run r = run_new(bert);
  r.stop_at = 3;
  run_go(&r, 1);
  CHECK(r.status == FT_ERROR_STOPPED && r.steps == 3 && r.result.steps == 3);
  CHECK_TEXT(r.message, "stopped at step 3 by the progress callback");
  free(r.weights);
}

/* A limit above every norm changes nothing. A tiny one does: gradients of 1e-6 are no larger than AdamW's epsilon, so
   its steps become shorter. */
static void test_clipping(void) {
  run off = run_new(bert), high = run_new(bert), low = run_new(bert);
  off.options.max_gradient_norm = -1;
  high.options.max_gradient_norm = 1e6;
  low.options.max_gradient_norm = 1e-6;
  run_go(&off, 1), run_go(&high, 1), run_go(&low, 1);
  CHECK(same_runs(&off, &high));
  CHECK(!same_runs(&off, &low));
  CHECK(off.norm[0] == low.norm[0] && off.norm[0] > 0.01); /* reported before clipping */
  free(off.weights), free(high.weights), free(low.weights);
}

static void test_head_only(void) {
  run before = run_new(distilbert), after = run_new(distilbert);
  int64_t i, head = 20 * 20 + 20 + 2 * 20 + 2, base, changed = 0;
  before.options.max_steps = 1;
  before.options.warmup = 1; /* a first step with learning rate 0: the weights as they were */
  before.head_only = after.head_only = true;
  run_go(&before, 1), run_go(&after, 1);
  base = before.size - head; /* the head's parameters come last */
  CHECK(after.status == FT_OK && memcmp(before.weights, after.weights, (size_t)base * sizeof *before.weights) == 0);
  for (i = base; i < before.size; ++i) changed += before.weights[i] != after.weights[i];
  CHECK(changed > head / 2);
  free(before.weights), free(after.weights);
}

int main(void) {
  test_repeats(bert);
  test_repeats(distilbert);
  test_order();
  test_accumulation();
  test_mean_loss();
  test_batch_tokens();
  test_schedules();
  test_stop();
  test_clipping();
  test_head_only();
  FINISH();
}
