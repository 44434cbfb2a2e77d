/* optimizer.c - AdamW, clipping, learning-rate schedules and metrics against torch, transformers and scikit-learn. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "small.h"

static ft_context *context;

/* ---- AdamW ---- */

enum { STEPS = 4, SHOWN = 6 };

/* Gives classifier.weight [2, 20] the gradient 0.1 sin(i + 1 + 0.7 t) and classifier.bias [2] (0.3, -0.001 (t - 1)):
   those of the loss sum(weight * g) + sum(bias * h). */
static void give_gradients(ft_tensor *weight, ft_tensor *bias, int t) {
  ft_tensor *g = ft_tensor_temporary(context, FT_F32, 2, weight->shape);
  ft_tensor *h = ft_tensor_temporary(context, FT_F32, 1, bias->shape);
  ft_real values[40], bias_values[2];
  int i;
  for (i = 0; i < 40; ++i) values[i] = (ft_real)(0.1 * sin(i + 1 + 0.7 * t));
  bias_values[0] = (ft_real)0.3, bias_values[1] = (ft_real)(-0.001 * (t - 1));
  ft_tensor_write(context, g, values);
  ft_tensor_write(context, h, bias_values);
  CHECK(ft_backward(context, ft_add(context, ft_sum(context, ft_multiply(context, weight, g), -1),
                                    ft_sum(context, ft_multiply(context, bias, h), -1))) == FT_OK);
  ft_tape_clear(context);
}

/* Four steps with other learning rates; after each, weights 0, 1, 2, 39 and both biases. */
static void check_adamw(const ft_adamw_options *options, double gradient_scale, const double expected[STEPS][SHOWN]) {
  static const double rates[STEPS] = {1e-3, 5e-4, 2e-3, 1e-2};
  static const ft_real bias_start[2] = {0.5f, -0.25f};
  ft_model *model = small_model(context, "tests/golden/distilbert", 0);
  const ft_parameter *weight = ft_model_find(model, "classifier.weight"),
                     *bias = ft_model_find(model, "classifier.bias");
  ft_optimizer *optimizer;
  ft_real values[40], bias_values[2];
  double norm, squares;
  int t, i;
  CHECK(weight->decays && !bias->decays);
  ft_model_train_all(model, false);
  weight->tensor->requires_gradient = bias->tensor->requires_gradient = true;
  for (i = 0; i < 40; ++i) values[i] = (ft_real)cos(0.3 * i);
  ft_tensor_write(context, weight->tensor, values);
  ft_tensor_write(context, bias->tensor, bias_start);
  optimizer = ft_optimizer_create(context, model, NULL, options);
  CHECK(ft_optimizer_gradient_norm(context, optimizer, &norm) == FT_ERROR_ARGUMENT); /* nothing has a gradient yet */
  CHECK(ft_optimizer_step(context, optimizer, 1, 1) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "classifier.weight is to be trained, but the loss does not depend on it"));
  for (t = 0; t < STEPS; ++t) {
    give_gradients(weight->tensor, bias->tensor, t);
    squares = 0.09 + 1e-6 * (t - 1) * (t - 1);
    for (i = 0; i < 40; ++i) squares += pow(0.1 * sin(i + 1 + 0.7 * t), 2);
    CHECK(ft_optimizer_gradient_norm(context, optimizer, &norm) == FT_OK);
    CHECK_NEAR(norm, sqrt(squares), 1e-6);
    CHECK(ft_optimizer_step(context, optimizer, rates[t], gradient_scale) == FT_OK);
    ft_tensor_read(context, weight->tensor, values);
    ft_tensor_read(context, bias->tensor, bias_values);
    CHECK_NEAR(values[0], expected[t][0], 4e-7);
    CHECK_NEAR(values[1], expected[t][1], 4e-7);
    CHECK_NEAR(values[2], expected[t][2], 4e-7);
    CHECK_NEAR(values[39], expected[t][3], 4e-7);
    CHECK_NEAR(bias_values[0], expected[t][4], 4e-7);
    CHECK_NEAR(bias_values[1], expected[t][5], 4e-7);
    ft_gradient_read(context, weight->tensor, values);
    CHECK(values[0] == 0 && values[39] == 0); /* zeroed */
  }
  ft_optimizer_free(optimizer);
  ft_model_free(model);
}

/* torch.optim.AdamW (torch 2.15) in double precision, on the same start and gradients. */
static void test_adamw(void) {
  static const double decayed[STEPS][SHOWN] = {
      {0.998990000, 0.954326936, 0.824327362, 0.646589863, 0.499000000, -0.250999990},
      {0.998484547, 0.953860652, 0.824596599, 0.646188534, 0.498500000, -0.251335014},
      {0.996502329, 0.952773875, 0.826109075, 0.645900455, 0.496500000, -0.251163281},
      {0.988204158, 0.952851260, 0.834560073, 0.649219827, 0.486500000, -0.246011025}};
  static const double plain[STEPS][SHOWN] = {
      {0.999000000, 0.954336489, 0.824335616, 0.646596339, 0.499000000, -0.250999990},
      {0.998499541, 0.953874977, 0.824608974, 0.646198243, 0.498500000, -0.251335014},
      {0.996537294, 0.952807277, 0.826137942, 0.645923088, 0.496500000, -0.251163281},
      {0.988338773, 0.952979940, 0.834671551, 0.649307049, 0.486500000, -0.246011025}};
  static const double other[STEPS][SHOWN] = {
      /* betas 0.8 and 0.95, epsilon 1e-3, decay 0.1, gradients times 1/4 */
      {0.998945379, 0.954283092, 0.824473929, 0.646582527, 0.499013158, -0.250200000},
      {0.998414486, 0.953804573, 0.824700800, 0.646191163, 0.498519737, -0.250247302},
      {0.996352479, 0.952741023, 0.826071547, 0.645977835, 0.496546053, -0.250186039},
      {0.988024832, 0.953165137, 0.833819367, 0.649647884, 0.486677632, -0.248710044}};
  static const ft_adamw_options decay = {0, 0, 0, 0.01, 0}, all = {0.8, 0.95, 1e-3, 0.1, 0};
  check_adamw(&decay, 1, decayed);
  check_adamw(NULL, 1, plain);
  check_adamw(&all, 0.25, other);
}

/* Layer decay, and a parameter that is frozen at the first and third step: torch with the group's learning rate times
   0.5^(3 - layer), and with grad None. Layer 1's query bias [20] gets 0.1 sin(i + 1 + 0.7 t). */
static void test_layer_decay(void) {
  static const double rates[STEPS] = {1e-3, 5e-4, 2e-3, 1e-2};
  static const double expected[STEPS][3] = {{1.000000000, 0.955336511, 0.834712803},
                                            {0.999875000, 0.955211511, 0.834587803},
                                            {0.999875000, 0.955211511, 0.834587803},
                                            {0.998123352, 0.956085458, 0.833132310}};
  static const double weights[STEPS] = {0.998990000, 0.998484547, 0.996502329, 0.988204158};
  const ft_adamw_options options = {0, 0, 0, 0.01, 0.5};
  ft_model *model = small_model(context, "tests/golden/distilbert", 0);
  ft_tensor *weight = ft_model_find(model, "classifier.weight")->tensor;
  ft_tensor *bias = ft_model_find(model, "classifier.bias")->tensor;
  ft_tensor *low = ft_model_find(model, "distilbert.transformer.layer.0.attention.q_lin.bias")->tensor, *g;
  ft_optimizer *optimizer;
  ft_real values[40];
  double norm, squares;
  int t, i;
  ft_model_train_all(model, false);
  weight->requires_gradient = bias->requires_gradient = low->requires_gradient = true;
  for (i = 0; i < 40; ++i) values[i] = (ft_real)cos(0.3 * i);
  ft_tensor_write(context, weight, values);
  ft_tensor_write(context, low, values);
  optimizer = ft_optimizer_create(context, model, NULL, &options);
  for (t = 0; t < STEPS; ++t) {
    low->requires_gradient = t % 2 == 1;
    squares = 0.09 + 1e-6 * (t - 1) * (t - 1);
    for (i = 0; i < 40; ++i) squares += pow(0.1 * sin(i + 1 + 0.7 * t), 2) * (i < 20 && t % 2 ? 2 : 1);
    give_gradients(weight, bias, t);
    if (low->requires_gradient) {
      CHECK(ft_optimizer_step(context, optimizer, 1, 1) == FT_ERROR_ARGUMENT); /* it trains, and has no gradient */
      g = ft_tensor_temporary(context, FT_F32, 1, low->shape);
      for (i = 0; i < 20; ++i) values[i] = (ft_real)(0.1 * sin(i + 1 + 0.7 * t));
      ft_tensor_write(context, g, values);
      CHECK(ft_backward(context, ft_sum(context, ft_multiply(context, low, g), -1)) == FT_OK);
      ft_tape_clear(context);
    }
    CHECK(ft_optimizer_gradient_norm(context, optimizer, &norm) == FT_OK);
    CHECK_NEAR(norm, sqrt(squares), 1e-6);
    CHECK(ft_optimizer_step(context, optimizer, rates[t], 1) == FT_OK);
    ft_tensor_read(context, weight, values);
    CHECK_NEAR(values[0], weights[t], 4e-7);
    ft_tensor_read(context, low, values);
    CHECK_NEAR(values[0], expected[t][0], 4e-7);
    CHECK_NEAR(values[1], expected[t][1], 4e-7);
    CHECK_NEAR(values[19], expected[t][2], 4e-7);
  }
  ft_optimizer_free(optimizer);
  ft_model_free(model);
}

/* Rows of a table that no batch has used only decay, unread: the same bits as if all rows had been looked at. */
static void test_unused_rows(void) {
  static const int32_t ids[STEPS][3] = {{5, 9, 5}, {7, 7, 8}, {199, 0, 5}, {10, 11, 12}}, places[3] = {0, 1, 2};
  const ft_adamw_options options = {0, 0, 0, 0.01, 0};
  ft_real *weights[2];
  double norms[2][STEPS];
  int copy, t;
  for (copy = 0; copy < 2; ++copy) {
    ft_model *model = small_model(context, "tests/golden/distilbert", 0);
    const int64_t three = 3;
    ft_tensor *words = model->words.weight, *positions = model->positions.weight, *id, *place, *y;
    ft_optimizer *optimizer;
    ft_model_train_all(model, false);
    words->requires_gradient = positions->requires_gradient = true;
    optimizer = ft_optimizer_create(context, model, NULL, &options);
    for (t = 0; t < STEPS; ++t) {
      id = ft_tensor_temporary(context, FT_I32, 1, &three), place = ft_tensor_temporary(context, FT_I32, 1, &three);
      ft_tensor_write(context, id, ids[t]);
      ft_tensor_write(context, place, places);
      y = ft_activate(context, FT_TANH, ft_embedding(context, words, id, positions, place, NULL, NULL));
      CHECK(ft_backward(context, ft_sum(context, y, -1)) == FT_OK);
      ft_tape_clear(context);
      CHECK(words->gradient_rows[ids[t][1]] == 1 && words->gradient_rows[100] == 0);
      if (copy) memset(words->gradient_rows, 1, (size_t)words->shape[0]);
      CHECK(ft_optimizer_gradient_norm(context, optimizer, &norms[copy][t]) == FT_OK && norms[copy][t] > 0);
      CHECK(ft_optimizer_step(context, optimizer, 1e-2, 0.5) == FT_OK);
    }
    weights[copy] = small_weights(context, model);
    if (copy) CHECK(memcmp(weights[0], weights[1], (size_t)ft_model_size(model, false) * sizeof(ft_real)) == 0);
    ft_optimizer_free(optimizer);
    ft_model_free(model);
  }
  for (t = 0; t < STEPS; ++t) CHECK_NEAR(norms[0][t], norms[1][t], 1e-6 * norms[0][t]);
  free(weights[0]);
  free(weights[1]);
}

static void test_clipping(void) {
  CHECK(ft_clip_factor(0.5, 1) == 1 && ft_clip_factor(0, 1) == 1);
  CHECK_NEAR(ft_clip_factor(4, 1), 1 / 4.000001, 1e-15);
  CHECK_NEAR(ft_clip_factor(1, 1), 1 / 1.000001, 1e-15); /* torch's too is below 1 here */
  CHECK_NEAR(ft_clip_factor(10, 5), 5 / 10.000001, 1e-15);
}

/* ---- schedules: get_scheduler(name, SGD(lr=1), warmup, total) of transformers 5.23, steps 0 to 9 ---- */

static void check_schedule(ft_schedule schedule, int64_t warmup, int64_t total, const double expected[10]) {
  int step;
  for (step = 0; step < 10; ++step) CHECK_NEAR(ft_schedule_factor(schedule, step, warmup, total), expected[step], 1e-9);
}

static void test_schedules(void) {
  static const double linear[10] = {1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0, 0};
  static const double linear_3[10] = {0, 0.333333333, 0.666666667, 1, 0.8, 0.6, 0.4, 0.2, 0, 0};
  static const double linear_8[10] = {0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 0, 0};
  static const double linear_12[10] = {0,           0.0833333333, 0.166666667, 0.25,        0.333333333,
                                       0.416666667, 0.5,          0.583333333, 0.666666667, 0.75};
  static const double linear_1_1[10] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0};
  static const double cosine[10] = {1,           0.961939766, 0.853553391,  0.691341716, 0.5,
                                    0.308658284, 0.146446609, 0.0380602337, 0,           0.0380602337};
  static const double cosine_3[10] = {0,           0.333333333, 0.666666667,  1, 0.904508497,
                                      0.654508497, 0.345491503, 0.0954915028, 0, 0.0954915028};
  static const double cosine_8[10] = {0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 0};
  static const double constant[10] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  static const double constant_3[10] = {0, 0.333333333, 0.666666667, 1, 1, 1, 1, 1, 1, 1};
  ft_schedule schedule = FT_SCHEDULE_CONSTANT;
  check_schedule(FT_SCHEDULE_LINEAR, 0, 8, linear);
  check_schedule(FT_SCHEDULE_LINEAR, 3, 8, linear_3);
  check_schedule(FT_SCHEDULE_LINEAR, 8, 8, linear_8); /* never anything but warmup */
  check_schedule(FT_SCHEDULE_LINEAR, 12, 8, linear_12);
  check_schedule(FT_SCHEDULE_LINEAR, 1, 1, linear_1_1);
  check_schedule(FT_SCHEDULE_COSINE, 0, 8, cosine);
  check_schedule(FT_SCHEDULE_COSINE, 3, 8, cosine_3);
  check_schedule(FT_SCHEDULE_COSINE, 8, 8, cosine_8);
  check_schedule(FT_SCHEDULE_CONSTANT, 0, 8, constant);
  check_schedule(FT_SCHEDULE_CONSTANT, 3, 8, constant_3);
  CHECK(ft_schedule_parse("linear", &schedule) && schedule == FT_SCHEDULE_LINEAR);
  CHECK(ft_schedule_parse("cosine", &schedule) && schedule == FT_SCHEDULE_COSINE);
  CHECK(ft_schedule_parse("constant", &schedule) && schedule == FT_SCHEDULE_CONSTANT);
  CHECK(!ft_schedule_parse("Linear", &schedule) && !ft_schedule_parse("", &schedule));
  CHECK(schedule == FT_SCHEDULE_CONSTANT);
}

/* ---- metrics: scikit-learn 1.9 with labels=range(C), zero_division=0 ---- */

/* A dataset without texts: its answers are all that metrics look at. */
static ft_dataset answers(ft_task task, int64_t rows, int classes, const int32_t *labels, const float *targets) {
  ft_dataset data;
  memset(&data, 0, sizeof data);
  data.task = task;
  data.rows = rows;
  data.label_count = classes;
  data.labels = labels;
  data.targets = targets;
  data.name = "answers";
  return data;
}

static void check_averages(const ft_metrics *m, const double macro[3], const double micro[3],
                           const double weighted[3]) {
  CHECK_NEAR(m->precision_macro, macro[0], 1e-9);
  CHECK_NEAR(m->recall_macro, macro[1], 1e-9);
  CHECK_NEAR(m->f1_macro, macro[2], 1e-9);
  CHECK_NEAR(m->precision_micro, micro[0], 1e-9);
  CHECK_NEAR(m->recall_micro, micro[1], 1e-9);
  CHECK_NEAR(m->f1_micro, micro[2], 1e-9);
  CHECK_NEAR(m->precision_weighted, weighted[0], 1e-9);
  CHECK_NEAR(m->recall_weighted, weighted[1], 1e-9);
  CHECK_NEAR(m->f1_weighted, weighted[2], 1e-9);
}

static void check_classes(const ft_metrics *m, const ft_class_metrics *expected) {
  int c;
  for (c = 0; c < m->classes; ++c) {
    CHECK_NEAR(m->by_class[c].precision, expected[c].precision, 1e-9);
    CHECK_NEAR(m->by_class[c].recall, expected[c].recall, 1e-9);
    CHECK_NEAR(m->by_class[c].f1, expected[c].f1, 1e-9);
    CHECK(m->by_class[c].support == expected[c].support);
  }
}

/* Five classes: 3 is never predicted, 4 is predicted once and never true. */
static void test_single_label(void) {
  static const int32_t truth[14] = {0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 0};
  static const int predicted[14] = {0, 0, 1, 4, 1, 1, 2, 2, 2, 0, 2, 0, 2, 0};
  static const int64_t confusion[25] = {3, 1, 0, 0, 1, 0, 2, 1, 0, 0, 1, 0, 3, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0};
  static const ft_class_metrics classes[5] = {
      {0.6, 0.6, 0.6, 5}, {2. / 3, 2. / 3, 2. / 3, 3}, {0.6, 0.75, 2. / 3, 4}, {0, 0, 0, 2}, {0, 0, 0, 0}};
  static const double macro[3] = {0.37333333333, 0.40333333333, 0.38666666667};
  static const double micro[3] = {0.57142857143, 0.57142857143, 0.57142857143};
  static const double weighted[3] = {0.52857142857, 0.57142857143, 0.54761904762};
  const ft_dataset data = answers(FT_TASK_SINGLE_LABEL, 14, 5, truth, NULL);
  float logits[14 * 5];
  ft_metrics metrics;
  int row, c, pass;
  memset(&metrics, 0, sizeof metrics);
  for (row = 0; row < 14; ++row)
    for (c = 0; c < 5; ++c) logits[5 * row + c] = c == predicted[row] ? 0.5f : -0.1f * (float)(c + 1);
  for (pass = 0; pass < 2; ++pass) { /* computed twice into one struct: nothing adds up or leaks */
    metrics.loss = 0.25;
    CHECK(ft_metrics_compute(context, &data, logits, &metrics) == FT_OK);
    CHECK(metrics.rows == 14 && metrics.classes == 5 && metrics.loss == 0.25);
    CHECK_NEAR(metrics.accuracy, 0.57142857143, 1e-9);
    CHECK_NEAR(metrics.matthews, 0.41736340531, 1e-9);
    CHECK(memcmp(metrics.confusion, confusion, sizeof confusion) == 0);
    check_classes(&metrics, classes);
    check_averages(&metrics, macro, micro, weighted);
    CHECK(ft_metrics_score(&metrics, FT_TASK_SINGLE_LABEL) == metrics.accuracy);
  }
  for (row = 0; row < 14 * 5; ++row) logits[row] = 1; /* a tie: the first class, as numpy's argmax */
  CHECK(ft_metrics_compute(context, &data, logits, &metrics) == FT_OK);
  CHECK_NEAR(metrics.accuracy, 5. / 14, 1e-12);
  CHECK(metrics.matthews == 0 && metrics.confusion[0] == 5 && metrics.confusion[15] == 2);
  ft_metrics_free(&metrics);
  CHECK(metrics.confusion == NULL);
}

/* Four labels: 2 is never true, 3 is never predicted. One row of six is right in all of them. */
static void test_multi_label(void) {
  static const float truth[24] = {1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1};
  static const int predicted[24] = {1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0};
  static const ft_class_metrics classes[4] = {
      {2. / 3, 2. / 3, 2. / 3, 3}, {1, 2. / 3, 0.8, 3}, {0, 0, 0, 0}, {0, 0, 0, 3}};
  static const double macro[3] = {0.41666666667, 0.33333333333, 0.36666666667};
  static const double micro[3] = {0.66666666667, 0.44444444444, 0.53333333333};
  static const double weighted[3] = {0.55555555556, 0.44444444444, 0.48888888889};
  const ft_dataset data = answers(FT_TASK_MULTI_LABEL, 6, 4, NULL, truth);
  float logits[24];
  ft_metrics metrics;
  int i;
  memset(&metrics, 0, sizeof metrics);
  for (i = 0; i < 24; ++i) logits[i] = predicted[i] ? 0.01f : i % 3 ? -2.0f : 0; /* 0 is not above 0 */
  CHECK(ft_metrics_compute(context, &data, logits, &metrics) == FT_OK);
  CHECK_NEAR(metrics.accuracy, 1. / 6, 1e-9);
  CHECK(metrics.confusion == NULL);
  check_classes(&metrics, classes);
  check_averages(&metrics, macro, micro, weighted);
  ft_metrics_free(&metrics);
}

static void test_regression(void) {
  static const float truth[5] = {3, -0.5f, 2, 7, 4.25f}, predicted[5] = {2.5f, 0, 2, 8, 4}, same[2] = {1, 1};
  ft_dataset data = answers(FT_TASK_REGRESSION, 5, 1, NULL, truth);
  ft_metrics metrics;
  memset(&metrics, 0, sizeof metrics);
  CHECK(ft_metrics_compute(context, &data, predicted, &metrics) == FT_OK);
  CHECK_NEAR(metrics.mean_squared_error, 0.3125, 1e-9);
  CHECK_NEAR(metrics.mean_absolute_error, 0.45, 1e-9);
  CHECK_NEAR(metrics.r2, 0.94910423453, 1e-9);
  CHECK(ft_metrics_score(&metrics, FT_TASK_REGRESSION) == metrics.r2);
  data = answers(FT_TASK_REGRESSION, 2, 1, NULL, same); /* no spread: R2 has no meaning, and is 0 */
  CHECK(ft_metrics_compute(context, &data, predicted, &metrics) == FT_OK && metrics.r2 == 0);
  ft_metrics_free(&metrics);
  data = answers(FT_TASK_SINGLE_LABEL, 2, 2, NULL, NULL);
  CHECK(ft_metrics_compute(context, &data, predicted, &metrics) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "answers has no labels to compare with");
}

int main(void) {
  context = ft_context_create(NULL);
  if (!context) return 1;
  test_adamw();
  test_layer_decay();
  test_unused_rows();
  test_clipping();
  test_schedules();
  test_single_label();
  test_multi_label();
  test_regression();
  ft_context_free(context);
  FINISH();
}
