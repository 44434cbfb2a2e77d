/* freezing.c - choosing what trains: patterns, new layers and heads, that nothing is computed for what is frozen, and
   that training from kept features is training without them, bit for bit. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "counting.h"
#include "files.h"
#include "small.h"
#include "every_family.h"

/* ---- patterns ---- */

static void test_patterns(void) {
  ft_context *context = new_context(1);
  ft_model *model = small_model(context, "tests/golden/bert-pairs", 0);
  int64_t count = ft_model_parameter_count(model), all = ft_model_size(model, false);
  int layers = ft_model_config(model)->layers;
  CHECK(ft_model_train_matching(model, "*", false) == count && ft_model_size(model, true) == 0);
  CHECK(ft_model_train_matching(model, "", true) == 0 && ft_model_train_matching(model, "classifier", true) == 0);
  CHECK(ft_model_train_matching(model, "classifier.*", true) == 2);
  CHECK(ft_model_size(model, true) == 2 * 32 + 2);
  CHECK(ft_model_train_matching(model, "*.layer.1.*", true) == 16);
  CHECK(ft_model_train_matching(model, "bert.encoder.layer.?.output.dense.weight", true) == layers);
  CHECK(ft_model_train_matching(model, "*.layer.??.*", true) == 0);
  CHECK(ft_model_train_matching(model, "*er.*.att*n.self.*y.*", true) == 4 * layers); /* query and key */
  CHECK(ft_model_train_matching(model, "?lassifie?.bias", false) == 1);
  CHECK(ft_model_train_matching(model, "*LayerNorm.weight", true) == 2 * layers + 1);
  CHECK(ft_model_train_matching(model, "*LayerNorm.weights", true) == 0);
  CHECK(ft_model_train_matching(model, "***", true) == count && ft_model_size(model, true) == all);
  ft_model_train_matching(model, "*", false); /* the last word counts */
  ft_model_train_matching(model, "*.layer.0.*", true);
  ft_model_train_matching(model, "*.bias", false);
  CHECK(!ft_model_find(model, "bert.encoder.layer.0.output.dense.bias")->tensor->requires_gradient);
  CHECK(ft_model_find(model, "bert.encoder.layer.0.output.dense.weight")->tensor->requires_gradient);
  CHECK(ft_model_frozen_parts(model, NULL) == 1);
  ft_model_train_matching(model, "*position*", true);
  CHECK(ft_model_frozen_parts(model, NULL) == 0);
  ft_model_train_head(model);
  CHECK(ft_model_frozen_parts(model, NULL) == layers + 1 && ft_model_size(model, true) == 2 * 32 + 2);
  ft_model_free(model);
  ft_context_free(context);
}

/* ---- new layers, another head ---- */

static void test_reinitialize(void) {
  ft_context *context = new_context(2);
  ft_model *model = small_model(context, "tests/golden/bert-pairs", 0);
  ft_model_options options;
  ft_real *before = small_weights(context, model), *after, *again;
  int64_t i, k, used = 0;
  int layers = ft_model_config(model)->layers;
  CHECK(ft_model_reinitialize(context, model, 0, 1) == FT_ERROR_ARGUMENT);
  CHECK(ft_model_reinitialize(context, model, layers + 1, 1) == FT_ERROR_ARGUMENT);
  CHECK(ft_model_reinitialize(context, model, 1, 1) == FT_OK);
  after = small_weights(context, model);
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    const ft_parameter *parameter = ft_model_parameter(model, i);
    int64_t count = ft_tensor_count(parameter->tensor), same = 0;
    const ft_real *values = after + used;
    bool renewed = parameter->layer == layers, norm = strstr(parameter->name, "Norm.weight") != NULL;
    for (k = 0; k < count; ++k) same += before[used + k] == values[k];
    CHECK(parameter->loaded == !renewed && (renewed || same == count));
    if (renewed && !parameter->decays) CHECK(values[0] == (norm ? 1 : 0) && values[count - 1] == values[0]);
    if (renewed && parameter->decays) CHECK(same == 0 && fabs((double)values[0]) < 0.2);
    used += count;
  }
  CHECK(ft_model_reinitialize(context, model, 1, 2) == FT_OK);
  again = small_weights(context, model);
  CHECK(memcmp(after, again, (size_t)used * sizeof *after) != 0);
  free(again);
  CHECK(ft_model_reinitialize(context, model, 1, 1) == FT_OK);
  again = small_weights(context, model);
  CHECK(memcmp(after, again, (size_t)used * sizeof *after) == 0);
  ft_model_free(model);
  memset(&options, 0, sizeof options);
  options.shapes_only = true;
  model = ft_model_load(context, "tests/golden/bert-pairs", &options);
  CHECK(ft_model_reinitialize(context, model, 1, 1) == FT_ERROR_ARGUMENT);
  ft_model_free(model);
  model = new_model(context, ALBERT, FT_TASK_SINGLE_LABEL, 0);
  CHECK(ft_model_reinitialize(context, model, 1, 1) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "share"));
  ft_model_free(model);
  free(before), free(after), free(again);
  ft_context_free(context);
}

/* Logits of two texts; out has room for 4. */
static void two_logits(ft_context *context, const ft_model *model, ft_real *out) {
  static const int32_t ids[9] = {2, 60, 61, 3, 2, 17, 62, 63, 3};
  static const int64_t offsets[3] = {0, 4, 9};
  ft_batch batch;
  ft_output output;
  memset(&batch, 0, sizeof batch);
  CHECK(ft_batch_set(context, &batch, ids, NULL, offsets, 2) == FT_OK);
  CHECK(ft_model_forward(context, model, &batch, NULL, &output) == FT_OK);
  CHECK(output.logits && ft_tensor_read(context, output.logits, out) == FT_OK);
  ft_tape_clear(context);
  ft_batch_free(&batch);
}

/* A head of another width and activation: made anew, saved, and loaded again by its config.json alone. */
static void test_other_head(void) {
  ft_context *context = new_context(1);
  int family;
  for (family = 0; family < FAMILIES; ++family) {
    ft_model *model = new_model(context, family, FT_TASK_SINGLE_LABEL, 0), *other, *loaded;
    ft_model_options options;
    ft_real expected[4], found[4];
    CHECK(ft_model_save(context, model, NULL, directory) == FT_OK);
    two_logits(context, model, expected);
    memset(&options, 0, sizeof options);
    options.head_activation = FT_SILU;
    other = ft_model_load(context, directory, &options); /* the same weights */
    CHECK(other->dense.weight->shape[0] == 16);
    CHECK(ft_model_parameter(other, ft_model_parameter_count(other) - 1)->loaded);
    two_logits(context, other, found);
    CHECK(memcmp(expected, found, sizeof found) != 0);
    ft_model_free(other);
    options.head_size = 24;
    other = ft_model_load(context, directory, &options);
    CHECK(other->dense.weight->shape[0] == 24 && other->classifier.weight->shape[1] == 24);
    CHECK(ft_model_parameter(other, 0)->loaded);
    CHECK(!ft_model_find(other, other->dense.weight->name)->loaded);
    CHECK(!ft_model_find(other, other->dense.bias->name)->loaded);
    CHECK(!ft_model_find(other, other->classifier.weight->name)->loaded);
    CHECK(ft_model_find(other, other->classifier.bias->name)->loaded); /* [2] in both */
    two_logits(context, other, expected);
    CHECK(ft_model_save(context, other, NULL, directory) == FT_OK);
    loaded = ft_model_load(context, directory, NULL);
    CHECK(loaded && loaded->config.head_size == 24 && loaded->config.head_activation == FT_SILU);
    two_logits(context, loaded, found);
    CHECK(memcmp(expected, found, sizeof found) == 0);
    ft_model_free(model), ft_model_free(other), ft_model_free(loaded);
    options.task =
        family % 2 ? FT_TASK_TOKENS : FT_TASK_MASKED; /* no dense layer there, or one tied to the embeddings */
    CHECK(ft_model_load(context, directory, &options) == NULL);
    CHECK(strstr(ft_error_message(context), "for a head over texts"));
  }
  ft_context_free(context);
}

/* ---- the same numbers, whatever is frozen, and from features ---- */

/* Loss and gradients of one batch, all into numbers [1 + model size]; frozen parameters' stay 0 and without memory. */
static ft_real *step_numbers(ft_context *context, ft_model *model, const texts *t, const ft_features *features) {
  ft_real *numbers = (ft_real *)calloc((size_t)ft_model_size(model, false) + 1, sizeof *numbers);
  static const float targets[BATCH] = {0.5f, 1, -1, 0, 0.25f, 2, 0, 1, -0.5f};
  int32_t labels[ROWS * 9];
  ft_forward_options options;
  ft_output output;
  ft_batch batch;
  ft_tensor *loss;
  int64_t i, k, used = 1, rows = 0;
  memset(&batch, 0, sizeof batch);
  memset(&options, 0, sizeof options);
  options.training = true;
  options.features = features;
  options.feature_rows = chosen;
  for (i = 0; i < BATCH; ++i) {
    if (ft__is_over_texts(model)) labels[rows++] = (int32_t)(i % 2);
    for (k = t->offsets[chosen[i]]; !ft__is_over_texts(model) && k < t->offsets[chosen[i] + 1]; ++k)
      labels[rows++] = t->labels[k];
  }
  ft_random_position(context, 42, 3, 1);
  CHECK(ft_batch_select(context, &batch, &t->encoded, chosen, BATCH) == FT_OK && batch.tokens > 32);
  if (ft_model_forward(context, model, &batch, &options, &output) != FT_OK) printf("%s\n", ft_error_message(context));
  loss = ft_model_loss(context, model, output.logits, labels, targets, 0);
  CHECK(loss && ft_tensor_read(context, loss, numbers) == FT_OK && ft_backward(context, loss) == FT_OK);
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    ft_tensor *tensor = ft_model_parameter(model, i)->tensor;
    if (tensor->requires_gradient) {
      CHECK(tensor->gradient && tensor->gradient_is_set);
      ft_gradient_read(context, tensor, numbers + used);
    } else {
      CHECK(!tensor->gradient && !tensor->gradient_is_set);
    }
    ft_gradient_zero(context, tensor);
    used += ft_tensor_count(tensor);
  }
  ft_tape_clear(context);
  ft_batch_free(&batch);
  return numbers;
}

/* What trains has the same gradient as where everything trains. */
static void check_subset(const ft_model *model, const ft_real *all, const ft_real *some) {
  int64_t i, used = 1;
  CHECK(all[0] == some[0]);
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    const ft_tensor *tensor = ft_model_parameter(model, i)->tensor;
    size_t bytes = (size_t)ft_tensor_count(tensor) * sizeof *all;
    if (tensor->requires_gradient) CHECK(memcmp(all + used, some + used, bytes) == 0);
    used += ft_tensor_count(tensor);
  }
}

/* The same but for rounding. */
static void check_rounding(const ft_real *a, const ft_real *b, int64_t count) {
  double largest = 0, difference = 0;
  for (; count > 0; --count, ++a, ++b) {
    if (fabs((double)*a) > largest) largest = fabs((double)*a);
    if (fabs((double)(*a - *b)) > difference) difference = fabs((double)(*a - *b));
  }
  CHECK(largest > 0 && difference <= 2e-6 * largest);
}

/* Freezing more and more from below. A set of weights that ALBERT's layers share counts where it is first used. */
static void check_family(int family, ft_task task, int threads) {
  texts t;
  int parts, last = LAYERS + 1, counted = -1;
  texts_make(&t);
  for (parts = 0; parts <= last; ++parts) {
    ft_context *context = new_context(threads); /* so that gradients of an earlier turn leave no memory */
    ft_model *model = new_model(context, family, task, 0);
    ft_features_options in_file;
    ft_features *features[2];
    ft_real *all, *some, *from[2];
    size_t bytes = ((size_t)ft_model_size(model, false) + 1) * sizeof(ft_real);
    int i, frozen;
    double dropout;
    freeze_below(model, parts);
    if (task == FT_TASK_MASKED && parts > 0) CHECK(!model->words.weight->requires_gradient);
    frozen = ft_model_frozen_parts(model, NULL);
    CHECK(frozen >= parts && frozen <= last && frozen >= counted);
    CHECK(frozen == parts || (families[family][1][0] && strstr(families[family][1], "embedding_size")));
    counted = frozen;
    memset(&in_file, 0, sizeof in_file);
    in_file.memory_limit = -1;
    for (dropout = 0; dropout < 0.3; dropout += 0.2) { /* the frozen part has dropout too */
      ft_context *other = new_context(1);
      ft_model *full = new_model(other, family, task, dropout);
      model->config.hidden_dropout = model->config.attention_dropout = model->config.classifier_dropout = dropout;
      all = step_numbers(other, full, &t, NULL);
      some = step_numbers(context, model, &t, NULL);
      check_subset(model, all, some);
      ft_model_free(full);
      ft_context_free(other);
      free(all);
      if (dropout == 0 && frozen > 0) {
        features[0] = ft_features_create(context, model, NULL, &t.encoded, NULL);
        features[1] = ft_features_create(context, model, NULL, &t.encoded, &in_file);
        for (i = 0; i < 2; ++i) {
          CHECK(features[i] && (features[i]->values != NULL) == (i == 0) && features[i]->parts == frozen);
          from[i] = step_numbers(context, model, &t, features[i]);
          if (frozen < last || !ft__is_over_texts(model))
            CHECK(memcmp(some, from[i], bytes) == 0);
          else /* features are made by all rows of the last layer, a step by the head's rows: sums in another order */
            check_rounding(some, from[i], ft_model_size(model, false) + 1);
          CHECK(i == 0 || memcmp(from[0], from[1], bytes) == 0);
          ft_features_free(features[i]);
        }
        free(from[0]);
        free(from[1]);
        CHECK(ft_features_bytes(model, NULL, &t.encoded) ==
              (frozen == last && ft__is_over_texts(model) ? (int64_t)ROWS : t.offsets[ROWS]) * 16 *
                  (int)sizeof(ft_real));
      }
      free(some);
    }
    ft_model_free(model);
    ft_context_free(context);
  }
}

static void test_families(void) {
  int family;
  for (family = 0; family < FAMILIES; ++family) {
    check_family(family, FT_TASK_SINGLE_LABEL, 1 + family % 3);
    check_family(family, FT_TASK_TOKENS, 1 + (family + 1) % 3);
    check_family(family, FT_TASK_MASKED, 1 + (family + 2) % 3);
  }
  check_family(0, FT_TASK_REGRESSION, 2);
}

/* ---- nothing is computed for what is frozen ---- */

static struct { int64_t matmul, attention, layer_norm, embedding, bytes; } counted;

static void count_matmul(ft_context *c, const ft_matmul_call *call) {
  ++counted.matmul;
  ft_backend_cpu()->matmul(c, call);
}
static void count_attention_backward(ft_context *c, const ft_attention_call *call) {
  ++counted.attention;
  ft_backend_cpu()->attention_backward(c, call);
}
static void count_layer_norm_backward(ft_context *c, const ft_layer_norm_call *call) {
  ++counted.layer_norm;
  ft_backend_cpu()->layer_norm_backward(c, call);
}
static void count_embedding_backward(ft_context *c, const ft_embedding_call *call) {
  ++counted.embedding;
  ft_backend_cpu()->embedding_backward(c, call);
}

/* A backward pass of DistilBERT: six products of weights in a layer, each with two in the backward pass. */
static void test_backward_ends(void) {
  int parts;
  int64_t peak = INT64_MAX;
  texts t;
  texts_make(&t);
  for (parts = 0; parts <= LAYERS + 1; ++parts) {
    ft_backend backend = *ft_backend_cpu();
    ft_context_options options;
    ft_context *context;
    ft_model *model;
    ft_forward_options forward;
    ft_output output;
    ft_batch batch;
    ft_tensor *loss;
    int32_t labels[BATCH] = {0, 1, 0, 1, 0, 1, 0, 1, 0};
    int trained = LAYERS + 1 - (parts ? parts : 1);
    backend.matmul = count_matmul;
    backend.attention_backward = count_attention_backward;
    backend.layer_norm_backward = count_layer_norm_backward;
    backend.embedding_backward = count_embedding_backward;
    memset(&options, 0, sizeof options);
    options.threads = 1;
    options.backend = &backend;
    context = ft_context_create(&options);
    model = new_model(context, FAMILIES - 1, FT_TASK_SINGLE_LABEL, 0.1);
    freeze_below(model, parts);
    memset(&batch, 0, sizeof batch);
    memset(&forward, 0, sizeof forward);
    forward.training = true;
    CHECK(ft_batch_select(context, &batch, &t.encoded, chosen, BATCH) == FT_OK);
    memset(&counted, 0, sizeof counted);
    CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_OK);
    CHECK(counted.matmul == 6 * LAYERS + 2);
    CHECK(ft_tape_peak_bytes(context) < peak || parts == 1 ||
          parts > LAYERS); /* frozen layers keep nothing, the last one little anyway */
    peak = ft_tape_peak_bytes(context);
    loss = ft_model_loss(context, model, output.logits, labels, NULL, 0);
    memset(&counted, 0, sizeof counted);
    CHECK(ft_backward(context, loss) == FT_OK);
    CHECK(counted.matmul == (trained ? 12 * trained - (parts ? 3 : 0) + 4 : 3)); /* none for the lowest input */
    CHECK(counted.attention == trained && counted.layer_norm == 2 * trained + (parts == 0));
    CHECK(counted.embedding == (parts == 0));
    ft_tape_clear(context);
    ft_batch_free(&batch);
    ft_model_free(model);
    ft_context_free(context);
  }
}

/* ---- the training loop ---- */

typedef struct run {
  ft_train_options options;
  ft_train_result result;
  ft_model *model;
  int family;
  const char *pattern; /* trains beside the head */
  double dropout, loss[64], score[16];
  int64_t steps, evaluations;
  int lowest[64]; /* at each step: ft_model_frozen_parts */
  ft_real *weights;
  size_t bytes;
  ft_status status;
  char message[1024];
} run;

static bool watch(void *user_data, const ft_train_progress *progress) {
  run *r = (run *)user_data;
  if (progress->evaluation) {
    r->score[r->evaluations++] = progress->evaluation->loss;
    return true;
  }
  r->lowest[r->steps] = ft_model_frozen_parts(r->model, NULL);
  r->loss[r->steps++] = progress->loss;
  return true;
}

static run run_new(int family, const char *pattern) {
  run r;
  memset(&r, 0, sizeof r);
  r.family = family;
  r.pattern = pattern;
  r.options.batch_size = 7;
  r.options.learning_rate = 1e-2;
  return r;
}

static void run_go(run *r, int threads) {
  ft_context *context = new_context(threads);
  ft_model *model = r->model = new_model(context, r->family, FT_TASK_SINGLE_LABEL, r->dropout);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, "tests/golden/bert-pairs");
  small_data data = small_parse(context, small_csv, NULL);
  int64_t trained;
  ft_model_train_head(model);
  if (r->pattern) CHECK(ft_model_train_matching(model, r->pattern, true) > 0);
  trained = ft_model_size(model, true);
  r->options.progress = watch;
  r->options.user_data = r;
  r->status = ft_train(context, model, tokenizer, data.dataset, data.dataset, &r->options, &r->result);
  snprintf(r->message, sizeof r->message, "%s", ft_error_message(context));
  CHECK(ft_model_size(model, true) == trained); /* flags are as they were */
  r->weights = small_weights(context, model);
  r->bytes = (size_t)ft_model_size(model, false) * sizeof(ft_real);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
  ft_context_free(context);
}

static bool same_runs(const run *a, const run *b) {
  return a->status == FT_OK && b->status == FT_OK && a->steps == b->steps && a->steps > 0 && a->evaluations == 3 &&
         memcmp(a->loss, b->loss, sizeof a->loss) == 0 && memcmp(a->score, b->score, sizeof a->score) == 0 &&
         a->bytes == b->bytes && memcmp(a->weights, b->weights, a->bytes) == 0;
}

/* With the cache, in memory or in a file, for any number of threads: the same as without. */
static void test_cache(void) {
  static const char *const patterns[] = {NULL, "*.layer.2.*"};
  int family, k;
  for (family = 0; family < FAMILIES; family += family < 4 ? 4 : 1)
    for (k = 0; k < 2; ++k) {
      const char *pattern = patterns[k];
      run plain, memory, file;
      if (pattern && strcmp(families[family][0], "albert") == 0) pattern = "*pooler*"; /* its names count groups */
      plain = run_new(family, pattern), memory = plain, file = plain;
      memory.options.cache_frozen = file.options.cache_frozen = true;
      file.options.cache_memory_limit = 100; /* bytes */
      file.options.cache_directory = directory;
      run_go(&plain, 1), run_go(&memory, 2), run_go(&file, 3);
      CHECK(plain.steps == 6 && plain.loss[0] != plain.loss[5]);
      CHECK(same_runs(&plain, &memory));
      CHECK(same_runs(&plain, &file));
      free(plain.weights), free(memory.weights), free(file.weights);
    }
}

/* The cached part has no dropout, what trains has. */
static void test_cache_dropout(void) {
  run plain = run_new(0, "*.layer.2.*"), cached = plain, again = plain, without = plain;
  plain.dropout = cached.dropout = again.dropout = 0.3;
  cached.options.cache_frozen = again.options.cache_frozen = true;
  run_go(&plain, 1), run_go(&cached, 1), run_go(&again, 2), run_go(&without, 1);
  CHECK(same_runs(&cached, &again));
  CHECK(!same_runs(&cached, &plain) && !same_runs(&cached, &without));
  free(plain.weights), free(cached.weights), free(again.weights), free(without.weights);
}

static void check_message(run *r, ft_status status, const char *part) {
  run_go(r, 1);
  CHECK(r->status == status && strstr(r->message, part) && r->steps == 0);
  if (!strstr(r->message, part)) printf("%s\n", r->message);
  free(r->weights);
}

static void test_cache_errors(void) {
  run everything = run_new(0, "*"), nowhere = run_new(0, NULL);
  everything.options.cache_frozen = nowhere.options.cache_frozen = true;
  nowhere.options.cache_memory_limit = -1;
  nowhere.options.cache_directory = "tests/no/such/directory";
  check_message(&everything, FT_ERROR_ARGUMENT, "the embeddings train");
  check_message(&nowhere, FT_ERROR_FILE, "tests/no/such/directory");
}

/* Two steps to an epoch; what trains from which part on. */
static void check_unfreezing(const char *pattern, int per_epoch, bool cache, const int lowest[5]) {
  run r = run_new(0, pattern), whole;
  int i;
  r.options.epochs = 5;
  r.options.unfreeze_layers_per_epoch = per_epoch;
  r.options.cache_frozen = cache;
  whole = r;
  whole.options.cache_frozen = false;
  run_go(&r, 1), run_go(&whole, 2);
  CHECK(r.status == FT_OK && r.steps == 10);
  for (i = 0; i < 10; ++i) CHECK(r.lowest[i] == lowest[i / 2]);
  CHECK(memcmp(r.loss, whole.loss, sizeof r.loss) == 0 && memcmp(r.weights, whole.weights, r.bytes) == 0);
  free(r.weights), free(whole.weights);
}

static void test_unfreezing(void) {
  static const int one[5] = {4, 3, 2, 1, 0}, two[5] = {4, 2, 0, 0, 0}, top[5] = {4, 4, 2, 2, 2};
  check_unfreezing("*", 1, false, one);
  check_unfreezing("*", 2, false, two);
  check_unfreezing("*.layer.1.*", 1, true, top); /* layer 3 holds nothing that ever trains */
}

/* ---- features on their own ---- */

static void test_features(void) {
  ft_context *context = new_context(2);
  ft_model *model = new_model(context, 0, FT_TASK_SINGLE_LABEL, 0);
  ft_scoring_options scoring;
  ft_forward_options forward;
  ft_features *features;
  ft_output output;
  ft_batch batch;
  texts t;
  int64_t wrong[BATCH];
  float plain[ROWS * 2], cached[ROWS * 2], embeddings[ROWS * 16];
  texts_make(&t);
  memset(&scoring, 0, sizeof scoring);
  memset(&forward, 0, sizeof forward);
  memset(&batch, 0, sizeof batch);
  CHECK(ft_features_create(context, model, NULL, &t.encoded, NULL) == NULL);
  CHECK(ft_error_status(context) == FT_ERROR_ARGUMENT);
  freeze_below(model, 2);
  CHECK(ft_features_bytes(model, NULL, &t.encoded) == t.offsets[ROWS] * 16 * (int)sizeof(ft_real));
  features = ft_features_create(context, model, NULL, &t.encoded, NULL);
  scoring.features = features;
  CHECK(ft_predict(context, model, &t.encoded, NULL, plain) == FT_OK);
  CHECK(ft_predict(context, model, &t.encoded, &scoring, cached) == FT_OK);
  CHECK(memcmp(plain, cached, sizeof plain) == 0);
  CHECK(ft_embed(context, model, &t.encoded, &scoring, true, false, embeddings) == FT_ERROR_ARGUMENT);
  /* every hidden state from the features on */
  forward.features = features;
  forward.feature_rows = chosen;
  forward.hidden_states = true;
  CHECK(ft_batch_select(context, &batch, &t.encoded, chosen, BATCH) == FT_OK);
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_OK);
  CHECK(!output.hidden_states[0] && output.hidden_states[1] && output.hidden_states[LAYERS] == output.hidden);
  forward.parts = 3;
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_OK);
  CHECK(output.hidden == output.hidden_states[2] && !output.hidden_states[3] && !output.logits);
  /* misuse */
  forward.parts = 1;
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT);
  forward.parts = LAYERS + 2;
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT);
  forward.parts = 0;
  memcpy(wrong, chosen, sizeof wrong);
  forward.feature_rows = wrong;
  wrong[4] = 4; /* a text of another length */
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "text 4 of the batch is not row 4"));
  wrong[4] = ROWS;
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT);
  forward.feature_rows = NULL;
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT);
  forward.feature_rows = chosen;
  freeze_below(model, 1);
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "only 1 of them are frozen"));
  ft_tape_clear(context);
  ft_batch_free(&batch);
  ft_features_free(features);
  ft_features_free(NULL);
  ft_model_free(model);
  ft_context_free(context);
}

/* Every allocation may fail: an error, and nothing lost. */
static void test_memory(void) {
  int64_t fail;
  texts t;
  bool done = false;
  texts_make(&t);
  for (fail = 1; !done && fail < 1000; ++fail) {
    counting_allocator allocator = no_calls();
    ft_context *context = counting_context(&allocator, 1);
    ft_model *model = new_model(context, 0, FT_TASK_SINGLE_LABEL, 0);
    ft_features_options options;
    ft_features *features;
    memset(&options, 0, sizeof options);
    options.memory_limit = fail % 2 ? 0 : -1;
    freeze_below(model, 3);
    allocator.fail_at = allocator.calls + fail;
    features = ft_features_create(context, model, NULL, &t.encoded, &options);
    done = allocator.calls < allocator.fail_at;
    CHECK(done ? features != NULL : !features && ft_error_status(context) == FT_ERROR_MEMORY);
    allocator.fail_at = 0;
    ft_features_free(features);
    ft_model_free(model);
    ft_context_free(context);
    CHECK(allocator.live == 0);
  }
  CHECK(done && fail > 5);
}

int main(void) {
  ft_context *context = new_context(1);
  files_begin(context, directory, "freezing");
  test_patterns();
  test_reinitialize();
  test_other_head();
  test_families();
  test_backward_ends();
  test_cache();
  test_cache_dropout();
  test_cache_errors();
  test_unfreezing();
  test_features();
  test_memory();
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
