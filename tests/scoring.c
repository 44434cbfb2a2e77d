/* scoring.c - batches, padded and packed; scores and embeddings of whole datasets; snapshots. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "small.h"

static const ft_scoring_options three = {3, NULL, NULL}, four = {4, NULL, NULL}, five = {5, NULL, NULL};

static ft_context *context;
static const char bert[] = "tests/golden/bert-pairs", distilbert[] = "tests/golden/distilbert";

/* Three texts of 4, 1 and 6 tokens, of a vocabulary of 200, with token types where the model has them. */
static const int32_t three_ids[11] = {2, 17, 150, 3, 2, 2, 60, 61, 62, 199, 3};
static const int32_t three_types[11] = {0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1};
static const int64_t three_offsets[4] = {0, 4, 5, 11};

/* ---- batches ---- */

static void check_batch(const ft_model *model, const int32_t *ids, const int32_t *types, const int64_t *offsets,
                        int64_t texts, ft_status status, const char *word) {
  ft_batch batch;
  ft_output output;
  memset(&batch, 0, sizeof batch);
  CHECK(ft_batch_set(context, &batch, ids, types, offsets, texts) == FT_OK);
  CHECK(ft_model_forward(context, model, &batch, NULL, &output) == status);
  CHECK(status == FT_OK ? output.logits != NULL : strstr(ft_error_message(context), word) != NULL);
  ft_batch_free(&batch);
  ft_tape_clear(context);
}

static void test_batches(void) {
  static const int32_t ids[41] = {2, 199, 3, 2, 5}, high[2] = {2, 200}, negative[2] = {2, -1}, types[2] = {0, 2};
  static const int64_t one[2] = {0, 2}, two[3] = {0, 3, 5}, empty[3] = {0, 2, 2}, full[2] = {0, 40},
                       longer[2] = {0, 41};
  ft_model *model = small_model(context, bert, 0); /* vocabulary 200, 40 positions, 2 token types */
  check_batch(model, ids, NULL, two, 2, FT_OK, "");
  check_batch(model, ids, NULL, full, 1, FT_OK, "");
  check_batch(model, high, NULL, one, 1, FT_ERROR_ARGUMENT, "text 0 of the batch: token id 200");
  check_batch(model, negative, NULL, one, 1, FT_ERROR_ARGUMENT, "token id -1");
  check_batch(model, ids, types, one, 1, FT_ERROR_ARGUMENT, "token type 2");
  check_batch(model, ids, NULL, empty, 2, FT_ERROR_ARGUMENT, "text 1 of the batch has no tokens");
  check_batch(model, ids, NULL, longer, 1, FT_ERROR_ARGUMENT, "41 tokens, but the model has 40 positions");
  check_batch(model, ids, NULL, one, 0, FT_ERROR_ARGUMENT, "no texts");
  ft_model_free(model);
}

static void test_select(void) {
  static const int64_t rows[3] = {2, 0, 2}, outside[1] = {3};
  ft_encoded encoded;
  ft_batch batch;
  memset(&batch, 0, sizeof batch);
  encoded.rows = 3;
  encoded.ids = three_ids;
  encoded.token_types = three_types;
  encoded.offsets = three_offsets;
  encoded.truncated_rows = 0;
  CHECK(ft_batch_select(context, &batch, &encoded, rows, 3) == FT_OK);
  CHECK(batch.texts == 3 && batch.tokens == 16);
  CHECK(batch.offsets[0] == 0 && batch.offsets[1] == 6 && batch.offsets[2] == 10 && batch.offsets[3] == 16);
  CHECK(batch.lengths[0] == 6 && batch.lengths[1] == 4 && batch.lengths[2] == 6);
  CHECK(memcmp(batch.ids, three_ids + 5, 6 * sizeof(int32_t)) == 0);
  CHECK(memcmp(batch.ids + 6, three_ids, 4 * sizeof(int32_t)) == 0);
  CHECK(memcmp(batch.token_types + 10, three_types + 5, 6 * sizeof(int32_t)) == 0);
  CHECK(ft_batch_select(context, &batch, &encoded, outside, 1) == FT_ERROR_ARGUMENT);
  ft_batch_free(&batch);
}

/* ---- padded = packed ---- */

/* Logits [3, 2] of a batch; gradients of the loss go into the model's parameters. */
static void run_batch(ft_model *model, const ft_batch *batch, float *logits, ft_real *loss_value) {
  static const int32_t labels[3] = {1, 0, 1};
  ft_output output;
  ft_tensor *loss;
  CHECK(ft_model_forward(context, model, batch, NULL, &output) == FT_OK);
  CHECK(ft_tensor_read(context, output.logits, logits) == FT_OK);
  loss = ft_model_loss(context, model, output.logits, labels, NULL, 0);
  CHECK(ft_tensor_read(context, loss, loss_value) == FT_OK);
  CHECK(ft_backward(context, loss) == FT_OK);
  ft_tape_clear(context);
}

/* Twice, with the two batches: logits and every gradient must agree to rounding. */
static void check_padding(const char *directory, int64_t length) {
  ft_model *a = small_model(context, directory, 0), *b = small_model(context, directory, 0);
  ft_batch packed, padded;
  float first[6], second[6];
  ft_real loss_a = 0, loss_b = 0;
  int64_t i, k;
  memset(&packed, 0, sizeof packed);
  memset(&padded, 0, sizeof padded);
  CHECK(ft_batch_set(context, &packed, three_ids, three_types, three_offsets, 3) == FT_OK);
  CHECK(ft_batch_pad(context, &padded, &packed, length, 0) == FT_OK);
  CHECK(padded.tokens == 3 * (length ? length : 6) && padded.lengths[1] == 1 && padded.ids[5] == 0);
  run_batch(a, &packed, first, &loss_a);
  run_batch(b, &padded, second, &loss_b);
  CHECK_NEAR(loss_a, loss_b, 1e-6);
  for (i = 0; i < 6; ++i) CHECK_NEAR(first[i], second[i], 1e-6);
  for (k = 0; k < ft_model_parameter_count(a); ++k) {
    const ft_tensor *x = ft_model_parameter(a, k)->tensor, *y = ft_model_parameter(b, k)->tensor;
    ft_real *dx = (ft_real *)malloc((size_t)ft_tensor_count(x) * sizeof *dx);
    ft_real *dy = (ft_real *)malloc((size_t)ft_tensor_count(x) * sizeof *dy);
    double worst = 0;
    ft_gradient_read(context, x, dx);
    ft_gradient_read(context, y, dy);
    for (i = 0; i < ft_tensor_count(x); ++i) worst = fmax(worst, fabs((double)dx[i] - (double)dy[i]));
    if (!(worst <= 1e-6)) printf("%s: gradients differ by %g\n", ft_model_parameter(a, k)->name, worst);
    CHECK(worst <= 1e-6);
    free(dx);
    free(dy);
  }
  CHECK(ft_batch_pad(context, &padded, &packed, 5, 0) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "6 tokens, more than 5") != NULL);
  ft_batch_free(&packed);
  ft_batch_free(&padded);
  ft_model_free(a);
  ft_model_free(b);
}

/* ---- whole datasets ---- */

/* Each row's logits are those that it gets alone, whatever batches it was scored in and in whatever order. */
static void test_predict(const char *directory) {
  ft_model *model = small_model(context, directory, 0.5); /* dropout must not show: nothing is trained */
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, directory);
  small_data data = small_parse(context, small_csv, NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  float by_default[2 * SMALL_ROWS], by_three[2 * SMALL_ROWS], alone[2];
  int64_t row;
  ft_batch batch;
  ft_output output;
  memset(&batch, 0, sizeof batch);
  CHECK(ft_predict(context, model, encoded, NULL, by_default) == FT_OK);
  CHECK(ft_predict(context, model, encoded, &three, by_three) == FT_OK);
  for (row = 0; row < SMALL_ROWS; ++row) {
    CHECK(ft_batch_select(context, &batch, encoded, &row, 1) == FT_OK);
    CHECK(ft_model_forward(context, model, &batch, NULL, &output) == FT_OK);
    CHECK(ft_tensor_read(context, output.logits, alone) == FT_OK);
    CHECK_NEAR(by_default[2 * row], alone[0], 1e-6);
    CHECK_NEAR(by_default[2 * row + 1], alone[1], 1e-6);
    CHECK_NEAR(by_three[2 * row], alone[0], 1e-6);
    CHECK(row == 0 || fabs((double)(alone[0] - by_default[2 * row - 2])) > 1e-5); /* rows do differ */
    ft_tape_clear(context);
  }
  ft_batch_free(&batch);
  ft_encoded_free(encoded);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
}

/* The mean loss and accuracy of an evaluation, against a plain computation from the logits. */
static void test_evaluate(void) {
  ft_model *model = small_model(context, distilbert, 0);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, distilbert);
  small_data data = small_parse(context, small_csv, NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  float logits[2 * SMALL_ROWS];
  double loss = 0;
  int right = 0, row;
  ft_metrics metrics;
  memset(&metrics, 0, sizeof metrics);
  CHECK(ft_predict(context, model, encoded, NULL, logits) == FT_OK);
  for (row = 0; row < SMALL_ROWS; ++row) {
    double zero = logits[2 * row], one = logits[2 * row + 1];
    int label = data.dataset->labels[row];
    loss += log(exp(zero) + exp(one)) - (label ? one : zero);
    right += (one > zero) == label;
  }
  CHECK(ft_evaluate(context, model, encoded, data.dataset, &five, &metrics) == FT_OK);
  CHECK_NEAR(metrics.loss, loss / SMALL_ROWS, 1e-6);
  CHECK_NEAR(metrics.accuracy, (double)right / SMALL_ROWS, 1e-12);
  CHECK(metrics.rows == SMALL_ROWS && metrics.classes == 2);
  ft_metrics_free(&metrics);
  ft_encoded_free(encoded);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
}

/* Embeddings are the first token's last hidden state, or the mean over a text's tokens; length 1 if normalised. */
static void test_embed(void) {
  enum { H = 32 };
  ft_model *model = small_model(context, bert, 0);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, bert);
  small_data data = small_parse(context, small_csv, NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  float first[SMALL_ROWS * H], mean[SMALL_ROWS * H], unit[SMALL_ROWS * H], hidden[12 * H];
  ft_batch batch;
  ft_output output;
  ft_forward_options options;
  int64_t row, c, t;
  memset(&batch, 0, sizeof batch);
  memset(&options, 0, sizeof options);
  options.no_head = true;
  CHECK(ft_embed(context, model, encoded, &four, false, false, first) == FT_OK);
  CHECK(ft_embed(context, model, encoded, NULL, true, false, mean) == FT_OK);
  CHECK(ft_embed(context, model, encoded, &four, true, true, unit) == FT_OK);
  for (row = 0; row < SMALL_ROWS; ++row) {
    double squares = 0;
    CHECK(ft_batch_select(context, &batch, encoded, &row, 1) == FT_OK);
    CHECK(ft_model_forward(context, model, &batch, &options, &output) == FT_OK && !output.logits);
    CHECK(batch.tokens <= 12 && ft_tensor_read(context, output.hidden, hidden) == FT_OK);
    for (c = 0; c < H; ++c) squares += (double)mean[row * H + c] * (double)mean[row * H + c];
    for (c = 0; c < H; ++c) {
      double sum = 0;
      for (t = 0; t < batch.tokens; ++t) sum += (double)hidden[t * H + c];
      CHECK_NEAR(first[row * H + c], hidden[c], 1e-5);
      CHECK_NEAR(mean[row * H + c], sum / (double)batch.tokens, 1e-5);
      CHECK_NEAR(unit[row * H + c], (double)mean[row * H + c] / sqrt(squares), 1e-5);
    }
    ft_tape_clear(context);
  }
  ft_batch_free(&batch);
  ft_encoded_free(encoded);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  small_free(&data);
}

/* The most memory that a forward pass takes, in a context of its own, of a model's first `layers` layers without head
   (for which the last layer would do less). */
static int64_t forward_peak(int layers, bool scoring) {
  ft_context *fresh = ft_context_create(NULL);
  ft_model *model = small_model(fresh, bert, 0);
  ft_forward_options options;
  ft_batch batch;
  ft_output output;
  int64_t peak;
  memset(&batch, 0, sizeof batch);
  memset(&options, 0, sizeof options);
  options.no_head = true;
  model->config.layers = layers;
  CHECK(ft_batch_set(fresh, &batch, three_ids, three_types, three_offsets, 3) == FT_OK);
  if (scoring) ft_no_grad_begin(fresh);
  CHECK(ft_model_forward(fresh, model, &batch, &options, &output) == FT_OK);
  CHECK(!output.logits && output.hidden->requires_gradient == !scoring);
  if (scoring) ft_no_grad_end(fresh);
  peak = ft_tape_peak_bytes(fresh);
  model->config.layers = 2;
  ft_batch_free(&batch);
  ft_model_free(model);
  ft_context_free(fresh);
  return peak;
}

/* Scoring gives each layer's memory back: two layers need no more than one. Training keeps what each one computed. */
static void test_memory(void) {
  CHECK(forward_peak(2, true) == forward_peak(1, true));
  CHECK(forward_peak(2, false) > forward_peak(1, false) && forward_peak(1, false) > forward_peak(1, true));
}

/* A snapshot holds what trains, and gives it back; frozen parameters are none of its business. */
static void test_snapshot(void) {
  ft_model *model = small_model(context, distilbert, 0);
  ft_tensor *head = ft_model_find(model, "classifier.bias")->tensor;
  ft_tensor *base = ft_model_find(model, "distilbert.embeddings.LayerNorm.bias")->tensor;
  ft_real before[2], base_before[20], ones[20], now[20];
  ft_snapshot *snapshot;
  int i;
  for (i = 0; i < 20; ++i) ones[i] = 1;
  ft_tensor_read(context, head, before);
  ft_tensor_read(context, base, base_before);
  ft_model_train_head(model);
  snapshot = ft_snapshot_create(context, model, NULL);
  ft_tensor_write(context, head, ones);
  ft_tensor_write(context, base, ones);
  CHECK(ft_snapshot_restore(context, snapshot, model, NULL) == FT_OK);
  ft_tensor_read(context, head, now);
  CHECK(now[0] == before[0] && now[1] == before[1] && before[0] != 1);
  ft_tensor_read(context, base, now);
  CHECK(now[0] == 1 && base_before[0] != 1); /* was not taken */
  ft_tensor_write(context, head, ones);
  CHECK(ft_snapshot_take(context, snapshot, model, NULL) == FT_OK);
  ft_tensor_write(context, head, before);
  CHECK(ft_snapshot_restore(context, snapshot, model, NULL) == FT_OK);
  ft_tensor_read(context, head, now);
  CHECK(now[0] == 1 && now[1] == 1);
  ft_snapshot_free(snapshot);
  ft_model_free(model);
}

static void test_max_length(void) {
  ft_model *model = small_model(context, distilbert, 0); /* 40 positions, model_max_length 40 */
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, distilbert);
  CHECK(ft_max_length(context, model, tokenizer, 0) == 40);
  CHECK(ft_max_length(context, model, tokenizer, 12) == 12);
  CHECK(ft_max_length(context, model, tokenizer, 41) == 0);
  model->config.vocabulary_size = 199;
  CHECK(ft_max_length(context, model, tokenizer, 0) == 0);
  CHECK(strstr(ft_error_message(context), "they are not of one model") != NULL);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
}

/* A NULL that no earlier failure made is an error too, never a silent success. */
static void test_nulls(void) {
  ft_model *model = small_model(context, distilbert, 0);
  ft_context *fresh = ft_context_create(NULL);
  ft_batch batch;
  ft_output output;
  ft_metrics metrics;
  float logits[4];
  double norm;
  memset(&batch, 0, sizeof batch);
  memset(&metrics, 0, sizeof metrics);
#define REFUSED(call) \
  (fresh->status = FT_OK, fresh->message[0] = 0, CHECK((call) == FT_ERROR_ARGUMENT && ft_error_message(fresh)[0]))
  REFUSED(ft_tensor_write(fresh, NULL, logits));
  REFUSED(ft_tensor_read(fresh, NULL, logits));
  REFUSED(ft_gradient_read(fresh, NULL, NULL));
  REFUSED(ft_backward(fresh, NULL));
  REFUSED(ft_batch_select(fresh, &batch, NULL, NULL, 1));
  REFUSED(ft_model_save(fresh, NULL, NULL, "nowhere"));
  REFUSED(ft_model_forward(fresh, NULL, &batch, NULL, &output));
  REFUSED(ft_model_forward(fresh, model, NULL, NULL, &output));
  REFUSED(ft_optimizer_gradient_norm(fresh, NULL, &norm));
  REFUSED(ft_optimizer_step(fresh, NULL, 1, 1));
  REFUSED(ft_metrics_compute(fresh, NULL, logits, &metrics));
  REFUSED(ft_predict(fresh, model, NULL, NULL, logits));
  REFUSED(ft_predict(fresh, NULL, NULL, NULL, logits));
  REFUSED(ft_evaluate(fresh, model, NULL, NULL, NULL, &metrics));
  REFUSED(ft_embed(fresh, model, NULL, NULL, true, true, logits));
  REFUSED(ft_snapshot_take(fresh, NULL, model, NULL));
  REFUSED(ft_snapshot_restore(fresh, NULL, model, NULL));
  REFUSED(ft_train(fresh, NULL, NULL, NULL, NULL, NULL, NULL));
  CHECK(ft_train(NULL, model, NULL, NULL, NULL, NULL, NULL) != FT_OK);
#undef REFUSED
  ft_model_free(NULL), ft_tokenizer_free(NULL), ft_dataset_free(NULL), ft_encoded_free(NULL), ft_snapshot_free(NULL);
  ft_optimizer_free(NULL), ft_tensor_free(NULL), ft_table_free(NULL), ft_json_free(NULL), ft_safetensors_close(NULL);
  ft_model_free(model);
  ft_context_free(fresh);
}

/* Texts and answers that are not of one dataset, and a model without a head. */
static void test_mismatch(void) {
  ft_model_options options;
  ft_model *model = small_model(context, distilbert, 0), *headless;
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, distilbert);
  small_data data = small_parse(context, small_csv, NULL), two = small_parse(context, "text,label\nno,0\nit,1\n", NULL);
  ft_encoded *encoded = ft_dataset_encode(context, data.dataset, tokenizer, 40);
  ft_metrics metrics;
  float logits[2 * SMALL_ROWS];
  memset(&metrics, 0, sizeof metrics);
  memset(&options, 0, sizeof options);
  options.encoder_only = true;
  headless = ft_model_load(context, distilbert, &options);
  CHECK(ft_evaluate(context, model, encoded, two.dataset, NULL, &metrics) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "ft_evaluate: 14 encoded texts, but words.csv has 2 rows");
  CHECK(ft_predict(context, headless, encoded, NULL, logits) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "the model was loaded without its head");
  ft__error(context, FT_ERROR_FILE, "something else");
  CHECK(ft_train(context, headless, tokenizer, data.dataset, NULL, NULL, NULL) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "the model was loaded without its head");
  ft_encoded_free(encoded);
  small_free(&data);
  small_free(&two);
  ft_tokenizer_free(tokenizer);
  ft_model_free(headless);
  ft_model_free(model);
}

int main(void) {
  context = ft_context_create(NULL);
  if (!context) return 1;
  test_batches();
  test_select();
  check_padding(bert, 0);
  check_padding(bert, 11);
  check_padding(distilbert, 0);
  check_padding(distilbert, 40);
  test_predict(bert);
  test_predict(distilbert);
  test_evaluate();
  test_embed();
  test_memory();
  test_snapshot();
  test_max_length();
  test_nulls();
  test_mismatch();
  ft_context_free(context);
  FINISH();
}
