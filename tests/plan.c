/* plan.c - gradient checkpointing gives the same numbers, bit for bit, from less memory; and the plan of a step is what
   the step then takes, to the byte. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "counting.h"
#include "files.h"
#include "small.h"
#include "every_family.h"

typedef enum training { FULL, UPPER, HEAD, LORA, DORA, TRAININGS } training; /* what trains */

typedef struct run { /* a model and all that a step of it needs */
  ft_context *context;
  ft_model *model;
  ft_adapter *adapter;
  ft_optimizer *optimizer;
  ft_batch batch;
  ft_forward_options forward;
  texts data;
  int32_t labels[ROWS * 9];
  float targets[BATCH];
} run;

static void run_begin(run *r, int family, ft_task task, training what, int threads) {
  ft_adapter_options adapter;
  int64_t i, k, rows = 0;
  memset(r, 0, sizeof *r);
  memset(&adapter, 0, sizeof adapter);
  texts_make(&r->data);
  r->context = new_context(threads);
  r->model = new_model(r->context, family, task, 0.2);
  adapter.targets = what == DORA ? "all-linear" : "query,value,q_lin,v_lin";
  adapter.dropout = 0.3;
  adapter.dora = what == DORA;
  if (what == UPPER) freeze_below(r->model, 2);
  if (what == HEAD) ft_model_train_head(r->model);
  if (what == LORA || what == DORA) {
    ft_model_train_all(r->model, false);
    CHECK((r->adapter = ft_adapter_create(r->context, r->model, &adapter)) != NULL);
  }
  r->optimizer = ft_optimizer_create(r->context, r->model, r->adapter, NULL);
  r->forward.training = true;
  r->forward.adapter = r->adapter;
  for (i = 0; i < BATCH; ++i) {
    r->targets[i] = (float)i / 8;
    if (ft__is_over_texts(r->model)) r->labels[rows++] = (int32_t)(i % 2);
    for (k = r->data.offsets[chosen[i]]; !ft__is_over_texts(r->model) && k < r->data.offsets[chosen[i] + 1]; ++k)
      r->labels[rows++] = r->data.labels[k];
  }
  CHECK(ft_batch_select(r->context, &r->batch, &r->data.encoded, chosen, BATCH) == FT_OK);
}

static void run_end(run *r) {
  ft_batch_free(&r->batch);
  ft_optimizer_free(r->optimizer);
  ft_adapter_free(r->adapter);
  ft_model_free(r->model);
  ft_context_free(r->context);
}

/* Two accumulated batches and an optimizer step; numbers [3] receive the losses and the norm. */
static void run_step(run *r, int64_t step, double *numbers) {
  ft_output output;
  int micro_batch;
  for (micro_batch = 0; micro_batch < 2; ++micro_batch) {
    ft_tensor *loss;
    ft_real value = 0;
    ft_random_position(r->context, 42, step, micro_batch);
    CHECK(ft_model_forward(r->context, r->model, &r->batch, &r->forward, &output) == FT_OK);
    loss = ft_model_loss(r->context, r->model, output.logits, r->labels, r->targets, 0);
    if (r->forward.hidden_states) /* a second way for gradients into the layers' outputs */
      loss = ft_add(r->context, loss,
                    ft_mean(r->context, ft_multiply(r->context, output.hidden_states[2], output.hidden_states[2]), -1));
    CHECK(ft_tensor_read(r->context, loss, &value) == FT_OK);
    numbers[micro_batch] = (double)value;
    ft_random_position(r->context, 7, 7, 7); /* what runs again has its masks and is recorded all the same */
    ft_no_grad_begin(r->context);
    CHECK(ft_backward(r->context, loss) == FT_OK);
    ft_no_grad_end(r->context);
    ft_tape_clear(r->context);
  }
  CHECK(ft_optimizer_gradient_norm(r->context, r->optimizer, &numbers[2]) == FT_OK);
  CHECK(ft_optimizer_step(r->context, r->optimizer, 1e-2, 1) == FT_OK);
}

static bool same_weights(const run *a, const run *b) {
  int64_t i, count = ft_model_parameter_count(a->model) + ft_adapter_parameter_count(a->adapter);
  bool same = true;
  for (i = 0; i < count; ++i) {
    const ft_tensor *x = ft__any_parameter(a->model, a->adapter, i)->tensor;
    ft_real *of_a = ft__values_of(a->context, x);
    ft_real *of_b = ft__values_of(b->context, ft__any_parameter(b->model, b->adapter, i)->tensor);
    same = same && of_a && of_b && memcmp(of_a, of_b, ft__tensor_bytes(x)) == 0;
    ft__release(a->context, of_a), ft__release(b->context, of_b);
  }
  return same;
}

/* Three steps with dropout, with and without checkpoints. */
static void check_same(int family, ft_task task, training what, int threads, bool hidden_states) {
  run plain, kept;
  double numbers[2][3];
  int step;
  run_begin(&plain, family, task, what, 1);
  run_begin(&kept, family, task, what, threads);
  kept.forward.gradient_checkpointing = true;
  plain.forward.hidden_states = kept.forward.hidden_states = hidden_states;
  for (step = 0; step < 3; ++step) {
    run_step(&plain, step, numbers[0]);
    run_step(&kept, step, numbers[1]);
    CHECK(memcmp(numbers[0], numbers[1], sizeof numbers[0]) == 0 && numbers[0][2] > 0);
  }
  CHECK(numbers[0][0] != numbers[0][1]); /* there is dropout */
  CHECK(same_weights(&plain, &kept));
  if (what == FULL || what == DORA) CHECK(ft_tape_peak_bytes(kept.context) < ft_tape_peak_bytes(plain.context) * 3 / 4);
  if (what == HEAD) CHECK(hidden_states || ft_tape_peak_bytes(kept.context) == ft_tape_peak_bytes(plain.context));
  CHECK(kept.context->host_arena.total == 0 && kept.context->backend_arena.total == 0);
  run_end(&plain);
  run_end(&kept);
}

static void test_same(void) {
  static const ft_task tasks[] = {FT_TASK_SINGLE_LABEL, FT_TASK_TOKENS, FT_TASK_MASKED, FT_TASK_REGRESSION};
  int family, k;
  for (family = 0; family < FAMILIES; ++family) {
    for (k = 0; k < 4; ++k) check_same(family, tasks[k], FULL, 1 + (family + k) % 3, false);
    for (k = UPPER; k < TRAININGS; ++k) check_same(family, FT_TASK_SINGLE_LABEL, (training)k, 2, false);
    check_same(family, FT_TASK_SINGLE_LABEL, FULL, 2, true);
    check_same(family, FT_TASK_TOKENS, UPPER, 1, true);
  }
}

/* ---- the plan ---- */

/* The plan made before the first step is what the steps take; and making it between them changes nothing. */
static void check_plan(int family, ft_task task, training what, bool checkpointing) {
  run r, other;
  ft_plan plan, again;
  ft_batch empty;
  double numbers[2][3];
  int64_t i, gradients = 0, moments = 0, weights;
  memset(&empty, 0, sizeof empty);
  run_begin(&r, family, task, what, 2);
  run_begin(&other, family, task, what, 1);
  r.forward.gradient_checkpointing = other.forward.gradient_checkpointing = checkpointing;
  CHECK(ft_plan_step(r.context, r.model, &r.batch, &r.forward, &plan) == FT_OK);
  CHECK(ft_tape_peak_bytes(r.context) == 0);
  CHECK(ft_tape_reserve(r.context, plan.activations) == FT_OK);
  run_step(&r, 0, numbers[0]);
  CHECK(r.context->backend_arena.first->size == (size_t)plan.activations && !r.context->backend_arena.first->next);
  run_step(&other, 0, numbers[0]);
  CHECK(plan.activations == ft_tape_peak_bytes(r.context));
  weights = ft_model_size(r.model, false) + ft_adapter_size(r.adapter);
  CHECK(plan.weights == weights * (int)sizeof(ft_real));
  for (i = 0; i < r.optimizer->count; ++i) {
    const ft__trained *trained = &r.optimizer->trained[i];
    if (trained->parameter.tensor->gradient) gradients += (int64_t)ft__tensor_bytes(trained->parameter.tensor);
    moments += (int64_t)(ft__tensor_bytes(trained->first_moment) + ft__tensor_bytes(trained->second_moment));
  }
  CHECK(plan.gradients == gradients && plan.moments == moments && moments == 2 * gradients && gradients > 0);
  CHECK(plan.total == plan.weights + plan.gradients + plan.moments + plan.activations);
  CHECK(ft_plan_step(r.context, r.model, &r.batch, &r.forward, &again) == FT_OK);
  CHECK(memcmp(&plan, &again, sizeof plan) == 0);
  run_step(&r, 1, numbers[0]);
  run_step(&other, 1, numbers[1]);
  CHECK(memcmp(numbers[0], numbers[1], sizeof numbers[0]) == 0 && same_weights(&r, &other));
  ft_no_grad_begin(r.context); /* scoring: no gradients, and less to keep */
  CHECK(ft_plan_step(r.context, r.model, &r.batch, &r.forward, &again) == FT_OK);
  ft_no_grad_end(r.context);
  CHECK(again.gradients == 0 && again.moments == 0 && again.backward_operations == 0);
  CHECK(again.forward_operations == plan.forward_operations && again.activations <= plan.activations);
  CHECK(ft_plan_step(r.context, r.model, &empty, &r.forward, &again) == FT_ERROR_ARGUMENT && again.total > 0);
  CHECK(strstr(ft_error_message(r.context), "no texts"));
  run_end(&r);
  run_end(&other);
}

static void test_plan(void) {
  static const ft_task tasks[] = {FT_TASK_SINGLE_LABEL, FT_TASK_TOKENS, FT_TASK_MASKED, FT_TASK_REGRESSION};
  int family, k;
  for (family = 0; family < FAMILIES; ++family) {
    for (k = 0; k < 8; ++k) check_plan(family, tasks[k % 4], FULL, k >= 4);
    for (k = 2 * UPPER; k < 2 * TRAININGS; ++k) check_plan(family, FT_TASK_SINGLE_LABEL, (training)(k / 2), k % 2);
  }
}

enum { H = 768, F = 3072, B = 16, N = 256, T = B * N };

/* BERT's sizes with so many layers, without weights; 16 texts of 256 tokens, without and with checkpoints. */
static void plan_large(ft_context *context, int layers, ft_plan plans[2]) {
  int32_t *ids = (int32_t *)calloc(T, sizeof *ids);
  int64_t offsets[B + 1], i;
  char text[600];
  ft_forward_options forward;
  ft_model_options options;
  ft_model *model;
  ft_batch batch;
  ft_output output;
  snprintf(text, sizeof text,
           "{\"model_type\": \"bert\", \"hidden_size\": 768, \"num_hidden_layers\": %d,"
           " \"num_attention_heads\": 12, \"intermediate_size\": 3072, \"vocab_size\": 30522,"
           " \"max_position_embeddings\": 512, \"type_vocab_size\": 2, \"hidden_act\": \"gelu\"}",
           layers);
  files_write_text(directory, "config.json", text);
  memset(&options, 0, sizeof options);
  memset(&forward, 0, sizeof forward);
  memset(&batch, 0, sizeof batch);
  options.shapes_only = true;
  forward.training = true;
  for (i = 0; i <= B; ++i) offsets[i] = i * N;
  CHECK((model = ft_model_load(context, directory, &options)) != NULL);
  CHECK(ids && ft_batch_set(context, &batch, ids, NULL, offsets, B) == FT_OK);
  for (i = 0; i < 2; ++i) {
    forward.gradient_checkpointing = i == 1;
    CHECK(ft_plan_step(context, model, &batch, &forward, &plans[i]) == FT_OK);
  }
  CHECK(ft_model_forward(context, model, &batch, &forward, &output) == FT_ERROR_ARGUMENT); /* still without weights */
  CHECK(!ft_model_parameter(model, 0)->tensor->data);
  CHECK(ft_plan_step(context, NULL, &batch, NULL, &plans[2]) != FT_OK);
  ft_batch_free(&batch);
  ft_model_free(model);
  free(ids);
}

/* The operations are those of the formula, and with checkpoints a layer keeps [T, H] alone. */
static void test_large(ft_context *context) {
  /* products of a layer behind attention are done for B rows in the last one */
  const double attention = 2.0 * T * N * H, behind = 2.0 * (H * H + 2.0 * H * F), head = 2.0 * B * H * (H + 2);
  const double layers = 12 * (2.0 * T * 3 * H * H + 2 * attention) + (11.0 * T + B) * behind;
  ft_plan small[3], large[3];
  plan_large(context, 4, small);
  plan_large(context, 12, large);
  CHECK(large[0].weights == 109483778 * (int64_t)sizeof(ft_real)); /* bert-base-uncased with two labels */
  CHECK(large[0].gradients == large[0].weights && large[0].moments == 2 * large[0].weights);
  CHECK_NEAR(large[0].forward_operations / (layers + head), 1, 1e-12);
  CHECK_NEAR(large[0].backward_operations / (2 * (layers + head) + 12 * attention), 1, 1e-12);
  CHECK(large[1].forward_operations == large[0].forward_operations);
  CHECK_NEAR((large[1].backward_operations - large[0].backward_operations) / layers, 1, 1e-12);
  CHECK(large[1].activations - small[1].activations == 8 * (int64_t)T * H * (int)sizeof(ft_real));
  CHECK(large[1].activations < large[0].activations / 4 && large[1].gradients == large[0].gradients);
  printf("activations of BERT, %d texts of %d tokens: %.0f MiB, with checkpoints %.0f MiB\n", B, N,
         (double)large[0].activations / 1048576, (double)large[1].activations / 1048576);
}

/* ---- memory ---- */

/* Steps after the first allocate nothing, and a failing allocation is an error wherever it happens. */
static void test_allocations(void) {
  int64_t fail;
  bool done = false;
  for (fail = 0; !done && fail < 2000; ++fail) {
    counting_allocator allocator = no_calls();
    ft_context *context = counting_context(&allocator, 1);
    ft_model *model = new_model(context, 0, FT_TASK_SINGLE_LABEL, 0.1);
    ft_forward_options forward;
    ft_output output;
    ft_batch batch;
    ft_plan plan;
    ft_tensor *loss;
    ft_status status;
    int64_t calls;
    texts t;
    int step;
    texts_make(&t);
    memset(&batch, 0, sizeof batch);
    memset(&forward, 0, sizeof forward);
    forward.training = forward.gradient_checkpointing = true;
    CHECK(ft_batch_select(context, &batch, &t.encoded, chosen, BATCH) == FT_OK);
    calls = allocator.calls;
    if (fail) allocator.fail_at = calls + fail;
    status = ft_plan_step(context, model, &batch, &forward, &plan);
    if (status == FT_OK && fail % 2) status = ft_tape_reserve(context, plan.activations);
    for (step = 0; step < 3 && status == FT_OK; ++step) {
      status = ft_model_forward(context, model, &batch, &forward, &output);
      loss = status == FT_OK ? ft_model_loss(context, model, output.logits, t.labels, NULL, 0) : NULL;
      if (status == FT_OK) status = loss ? ft_backward(context, loss) : ft_error_status(context);
      if (step == 0 && status == FT_OK) CHECK(ft_tape_reserve(context, 1) == FT_ERROR_ARGUMENT);
      ft_tape_clear(context);
      if (step == 0) calls = allocator.calls;
    }
    if (!fail) CHECK(status == FT_OK && allocator.calls == calls);
    done = fail && allocator.calls < allocator.fail_at;
    CHECK(status == FT_OK || (status == FT_ERROR_MEMORY && strstr(ft_error_message(context), "out of memory")));
    ft_batch_free(&batch);
    ft_model_free(model);
    ft_context_free(context);
    CHECK(allocator.live == 0);
  }
  CHECK(done && fail > 20);
}

static void keep_message(void *user_data, ft_log_level level, const char *message) {
  (void)level;
  if (strstr(message, "a step of")) snprintf((char *)user_data, 300, "%s", message);
}

/* ft_train: the same result, and the plan in the log. */
static void test_train(void) {
  char message[2][300];
  ft_real *weights[2];
  size_t bytes = 0;
  int k;
  for (k = 0; k < 2; ++k) {
    ft_context_options logged;
    ft_train_options options;
    ft_context *context;
    ft_model *model;
    ft_tokenizer *tokenizer;
    small_data data;
    char expected[300];
    memset(&logged, 0, sizeof logged);
    memset(&options, 0, sizeof options);
    message[k][0] = 0;
    logged.log = keep_message, logged.log_user_data = message[k];
    context = ft_context_create(&logged);
    model = small_model(context, "tests/golden/bert-pairs", 0.1);
    tokenizer = ft_tokenizer_load(context, "tests/golden/bert-pairs");
    data = small_parse(context, small_csv, NULL);
    options.gradient_checkpointing = k == 1;
    options.batch_size = SMALL_ROWS;
    options.learning_rate = 1e-3;
    CHECK(ft_train(context, model, tokenizer, data.dataset, NULL, &options, NULL) == FT_OK);
    snprintf(expected, sizeof expected, "activations %.1f;", (double)ft_tape_peak_bytes(context) / 1048576);
    CHECK(strstr(message[k], "a step of 14 texts, 85 tokens takes") && strstr(message[k], expected));
    weights[k] = small_weights(context, model);
    bytes = (size_t)ft_model_size(model, false) * sizeof(ft_real);
    ft_tokenizer_free(tokenizer);
    small_free(&data);
    ft_model_free(model);
    ft_context_free(context);
  }
  CHECK(memcmp(weights[0], weights[1], bytes) == 0 && strcmp(message[0], message[1]) != 0);
  free(weights[0]), free(weights[1]);
}

int main(void) {
  ft_context *context = new_context(1);
  files_begin(context, directory, "plan");
  test_same();
  test_plan();
  test_large(context);
  test_allocations();
  test_train();
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
