/* backend.c - a second back end, whose memory the host cannot read.

   Its buffers are real ones, but every address that it gives out has a constant added which points where no memory is:
   whoever looks inside one without going through the table crashes. The functions take the constant off again and call
   the processor's own. Whole training steps on it must give the same bits as without it: so all work on tensors goes
   through the table, and nothing but address + offset is done with an address outside it. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "files.h"
#include "small.h"

#define FAR ((uintptr_t)1 << (sizeof(uintptr_t) > 4 ? 54 : 31)) /* beyond what processors map for a program */

enum {
  ALLOCATE,
  RELEASE,
  WRITE,
  READ,
  ZERO,
  UNARY,
  UNARY_BACKWARD,
  BINARY,
  ACCUMULATE,
  SOFTMAX,
  SOFTMAX_BACKWARD,
  MATMUL,
  COLUMN_SUM,
  DROPOUT,
  LAYER_NORM,
  LAYER_NORM_BACKWARD,
  ATTENTION,
  ATTENTION_BACKWARD,
  EMBEDDING,
  EMBEDDING_BACKWARD,
  GATHER_ROWS,
  SCATTER_ROWS,
  CROSS_ENTROPY,
  CROSS_ENTROPY_BACKWARD,
  POINTWISE_LOSS,
  POINTWISE_LOSS_BACKWARD,
  SUM_OF_SQUARES,
  ADAMW,
  FUNCTIONS
};

static int64_t calls[FUNCTIONS];
static int64_t buffers; /* allocated and not released */

/* The real address. Every address given must be one of ours. */
static uintptr_t near_address(const void *address) {
  if (address && (uintptr_t)address < FAR) {
    printf("a back-end function was given a host address\n");
    exit(1);
  }
  return address ? (uintptr_t)address - FAR : 0;
}

static const ft_real *in(const ft_real *address) { return (const ft_real *)near_address(address); }
static ft_real *out(ft_real *address) { return (ft_real *)near_address(address); }
static const int32_t *ids(const int32_t *address) { return (const int32_t *)near_address(address); }

#define CPU (ft_backend_cpu())

static void *far_allocate(ft_context *c, size_t bytes) {
  uintptr_t address = (uintptr_t)CPU->allocate(c, bytes);
  ++calls[ALLOCATE];
  if (!address) return NULL;
  ++buffers;
  return (void *)(address + FAR);
}
static void far_release(ft_context *c, void *buffer) {
  ++calls[RELEASE];
  if (buffer) --buffers;
  CPU->release(c, (void *)near_address(buffer));
}
static void far_write(ft_context *c, void *buffer, const void *host, size_t bytes) {
  ++calls[WRITE];
  CPU->write(c, (void *)near_address(buffer), host, bytes);
}
static void far_read(ft_context *c, const void *buffer, void *host, size_t bytes) {
  ++calls[READ];
  CPU->read(c, (const void *)near_address(buffer), host, bytes);
}
static void far_zero(ft_context *c, void *buffer, size_t bytes) {
  ++calls[ZERO];
  CPU->zero(c, (void *)near_address(buffer), bytes);
}
static void far_unary(ft_context *c, ft_unary kind, int64_t count, const ft_real *x, ft_real *y) {
  ++calls[UNARY];
  CPU->unary(c, kind, count, in(x), out(y));
}
static void far_unary_backward(ft_context *c, ft_unary kind, int64_t count, const ft_real *x, const ft_real *y,
                               const ft_real *dy, ft_real *dx, bool accumulate) {
  ++calls[UNARY_BACKWARD];
  CPU->unary_backward(c, kind, count, in(x), in(y), in(dy), out(dx), accumulate);
}
static void far_binary(ft_context *c, ft_binary kind, const int64_t *shape, const ft_real *a, const int64_t *a_stride,
                       const ft_real *b, const int64_t *b_stride, ft_real *y) {
  ++calls[BINARY];
  CPU->binary(c, kind, shape, in(a), a_stride, in(b), b_stride, out(y));
}
static void far_accumulate(ft_context *c, const int64_t *shape, ft_real scale, const ft_real *x,
                           const int64_t *x_stride, ft_real *y, const int64_t *y_stride) {
  ++calls[ACCUMULATE];
  CPU->accumulate(c, shape, scale, in(x), x_stride, out(y), y_stride);
}
static void far_softmax(ft_context *c, int64_t rows, int64_t columns, const ft_real *x, ft_real *y) {
  ++calls[SOFTMAX];
  CPU->softmax(c, rows, columns, in(x), out(y));
}
static void far_softmax_backward(ft_context *c, int64_t rows, int64_t columns, const ft_real *y, const ft_real *dy,
                                 ft_real *dx) {
  ++calls[SOFTMAX_BACKWARD];
  CPU->softmax_backward(c, rows, columns, in(y), in(dy), out(dx));
}
static void far_matmul(ft_context *c, const ft_matmul_call *given) {
  ft_matmul_call call = *given;
  ++calls[MATMUL];
  call.a = in(call.a), call.b = in(call.b), call.c = out(call.c);
  call.bias = in(call.bias), call.before = out(call.before);
  call.packed = NULL; /* a back end may leave it alone */
  CPU->matmul(c, &call);
}
static void far_column_sum(ft_context *c, int64_t rows, int64_t columns, const ft_real *x, ft_real *sum) {
  ++calls[COLUMN_SUM];
  CPU->column_sum(c, rows, columns, in(x), out(sum));
}
static void far_dropout(ft_context *c, int64_t count, const ft_dropout_mask *mask, const ft_real *x, ft_real *y,
                        bool accumulate) {
  ++calls[DROPOUT];
  CPU->dropout(c, count, mask, in(x), out(y), accumulate);
}
static ft_layer_norm_call near_layer_norm(const ft_layer_norm_call *given) {
  ft_layer_norm_call call = *given;
  call.x = in(call.x), call.residual = in(call.residual), call.weight = in(call.weight), call.bias = in(call.bias);
  call.y = out(call.y), call.sum = out(call.sum), call.mean = out(call.mean), call.rstd = out(call.rstd);
  call.y_gradient = in(call.y_gradient), call.x_gradient = out(call.x_gradient);
  call.residual_gradient = out(call.residual_gradient);
  call.weight_gradient = out(call.weight_gradient), call.bias_gradient = out(call.bias_gradient);
  return call;
}
static void far_layer_norm(ft_context *c, const ft_layer_norm_call *given) {
  ft_layer_norm_call call = near_layer_norm(given);
  ++calls[LAYER_NORM];
  CPU->layer_norm(c, &call);
}
static void far_layer_norm_backward(ft_context *c, const ft_layer_norm_call *given) {
  ft_layer_norm_call call = near_layer_norm(given);
  ++calls[LAYER_NORM_BACKWARD];
  CPU->layer_norm_backward(c, &call);
}
static ft_attention_call near_attention(const ft_attention_call *given) {
  ft_attention_call call = *given;
  call.offsets = ids(call.offsets), call.lengths = ids(call.lengths);
  call.query = in(call.query), call.key = in(call.key), call.value = in(call.value);
  call.output = out(call.output), call.log_sum = out(call.log_sum), call.output_gradient = in(call.output_gradient);
  call.query_gradient = out(call.query_gradient), call.key_gradient = out(call.key_gradient);
  call.value_gradient = out(call.value_gradient);
  return call;
}
static void far_attention(ft_context *c, const ft_attention_call *given) {
  ft_attention_call call = near_attention(given);
  ++calls[ATTENTION];
  CPU->attention(c, &call);
}
static void far_attention_backward(ft_context *c, const ft_attention_call *given) {
  ft_attention_call call = near_attention(given);
  ++calls[ATTENTION_BACKWARD];
  CPU->attention_backward(c, &call);
}
static ft_embedding_call near_embedding(const ft_embedding_call *given) {
  ft_embedding_call call = *given;
  call.ids = ids(call.ids), call.position_ids = ids(call.position_ids), call.type_ids = ids(call.type_ids);
  call.words = in(call.words), call.positions = in(call.positions), call.types = in(call.types), call.y = out(call.y);
  call.y_gradient = in(call.y_gradient), call.words_gradient = out(call.words_gradient);
  call.positions_gradient = out(call.positions_gradient), call.types_gradient = out(call.types_gradient);
  return call;
}
static void far_embedding(ft_context *c, const ft_embedding_call *given) {
  ft_embedding_call call = near_embedding(given);
  ++calls[EMBEDDING];
  CPU->embedding(c, &call);
}
static void far_embedding_backward(ft_context *c, const ft_embedding_call *given) {
  ft_embedding_call call = near_embedding(given);
  ++calls[EMBEDDING_BACKWARD];
  CPU->embedding_backward(c, &call);
}
static void far_gather_rows(ft_context *c, int64_t count, int64_t columns, const int32_t *rows, const ft_real *x,
                            ft_real *y) {
  ++calls[GATHER_ROWS];
  CPU->gather_rows(c, count, columns, ids(rows), in(x), out(y));
}
static void far_scatter_rows(ft_context *c, int64_t count, int64_t columns, const int32_t *rows, const ft_real *y,
                             ft_real *x) {
  ++calls[SCATTER_ROWS];
  CPU->scatter_rows(c, count, columns, ids(rows), in(y), out(x));
}
static ft_cross_entropy_call near_cross_entropy(const ft_cross_entropy_call *given) {
  ft_cross_entropy_call call = *given;
  call.logits = in(call.logits), call.labels = ids(call.labels), call.loss = out(call.loss);
  call.loss_gradient = in(call.loss_gradient), call.logits_gradient = out(call.logits_gradient);
  return call;
}
static void far_cross_entropy(ft_context *c, const ft_cross_entropy_call *given) {
  ft_cross_entropy_call call = near_cross_entropy(given);
  ++calls[CROSS_ENTROPY];
  CPU->cross_entropy(c, &call);
}
static void far_cross_entropy_backward(ft_context *c, const ft_cross_entropy_call *given) {
  ft_cross_entropy_call call = near_cross_entropy(given);
  ++calls[CROSS_ENTROPY_BACKWARD];
  CPU->cross_entropy_backward(c, &call);
}
static ft_pointwise_loss_call near_pointwise_loss(const ft_pointwise_loss_call *given) {
  ft_pointwise_loss_call call = *given;
  call.x = in(call.x), call.targets = in(call.targets), call.loss = out(call.loss);
  call.loss_gradient = in(call.loss_gradient), call.x_gradient = out(call.x_gradient);
  return call;
}
static void far_pointwise_loss(ft_context *c, const ft_pointwise_loss_call *given) {
  ft_pointwise_loss_call call = near_pointwise_loss(given);
  ++calls[POINTWISE_LOSS];
  CPU->pointwise_loss(c, &call);
}
static void far_pointwise_loss_backward(ft_context *c, const ft_pointwise_loss_call *given) {
  ft_pointwise_loss_call call = near_pointwise_loss(given);
  ++calls[POINTWISE_LOSS_BACKWARD];
  CPU->pointwise_loss_backward(c, &call);
}
static double far_sum_of_squares(ft_context *c, int64_t count, const ft_real *x) {
  ++calls[SUM_OF_SQUARES];
  return CPU->sum_of_squares(c, count, in(x));
}
static void far_adamw(ft_context *c, const ft_adamw_step *given) {
  ft_adamw_step step = *given;
  ++calls[ADAMW];
  step.weight = out(step.weight), step.gradient = in(step.gradient);
  step.first_moment = out(step.first_moment), step.second_moment = out(step.second_moment);
  CPU->adamw(c, &step);
}

static const ft_backend far_backend = {"far memory",
                                       far_allocate,
                                       far_release,
                                       far_write,
                                       far_read,
                                       far_zero,
                                       far_unary,
                                       far_unary_backward,
                                       far_binary,
                                       far_accumulate,
                                       far_softmax,
                                       far_softmax_backward,
                                       far_matmul,
                                       far_column_sum,
                                       far_dropout,
                                       far_layer_norm,
                                       far_layer_norm_backward,
                                       far_attention,
                                       far_attention_backward,
                                       far_embedding,
                                       far_embedding_backward,
                                       far_gather_rows,
                                       far_scatter_rows,
                                       far_cross_entropy,
                                       far_cross_entropy_backward,
                                       far_pointwise_loss,
                                       far_pointwise_loss_backward,
                                       far_sum_of_squares,
                                       far_adamw};

/* ---- the same work on both ---- */

static ft_context *new_context(bool far_memory) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.threads = 2;
  options.backend = far_memory ? &far_backend : NULL;
  return ft_context_create(&options);
}

/* Steps 0, 1 and 2 of a model with dropout on a batch of three texts: everything that a training loop does; with `adapt`
   of an adapter, which then is merged. The model is saved in `directory`. numbers receives loss and gradient norm of
   each step. */
static void train_and_save(bool far_memory, const char *golden, bool adapt, const char *directory, double numbers[6]) {
  static const int32_t tokens[11] = {2, 17, 105, 3, 2, 2, 60, 61, 62, 119, 3}, labels[3] = {1, 0, 1};
  static const int64_t offsets[4] = {0, 4, 5, 11};
  static const float targets[12] = {0.5f, 1, 0, 1, 0, 0, 1, 1, -0.25f, 0, 1, 0};
  ft_context *context = new_context(far_memory);
  ft_model *model = small_model(context, golden, 0.2);
  ft_adamw_options adamw = {0, 0, 0, 0.01, 0};
  ft_forward_options options = {true, false, false, NULL, 0, 0, NULL, NULL, NULL, false};
  ft_adapter_options adapter_options;
  ft_adapter *adapter = NULL;
  ft_optimizer *optimizer;
  ft_batch batch;
  ft_output output;
  int step;
  memset(&batch, 0, sizeof batch);
  memset(&adapter_options, 0, sizeof adapter_options);
  adapter_options.dora = true;
  adapter_options.targets = "all-linear";
  if (adapt) ft_model_train_all(model, false);
  if (adapt) CHECK((adapter = ft_adapter_create(context, model, &adapter_options)) != NULL);
  options.adapter = adapter;
  optimizer = ft_optimizer_create(context, model, adapter, &adamw);
  CHECK(ft_batch_set(context, &batch, tokens, NULL, offsets, 3) == FT_OK);
  for (step = 0; step < 3; ++step) {
    ft_tensor *loss;
    ft_real value = 0;
    ft_random_position(context, 42, step, 0);
    CHECK(ft_model_forward(context, model, &batch, &options, &output) == FT_OK);
    loss = ft_model_loss(context, model, output.logits, labels, targets, 0);
    CHECK(ft_tensor_read(context, loss, &value) == FT_OK);
    CHECK(ft_backward(context, loss) == FT_OK);
    numbers[2 * step] = value;
    CHECK(ft_optimizer_gradient_norm(context, optimizer, &numbers[2 * step + 1]) == FT_OK);
    CHECK(ft_optimizer_step(context, optimizer, 1e-3, ft_clip_factor(numbers[2 * step + 1], 1)) == FT_OK);
    ft_tape_clear(context);
  }
  if (adapt) CHECK(ft_adapter_merge(context, model, adapter) == FT_OK);
  CHECK(ft_model_save(context, model, NULL, directory) == FT_OK);
  ft_adapter_free(adapter);
  ft_batch_free(&batch);
  ft_optimizer_free(optimizer);
  ft_model_free(model);
  ft_context_free(context);
}

static void check_step(const char *golden, bool adapt) {
  char directory[2][600];
  double numbers[2][6];
  char *bytes[2];
  size_t size[2] = {0, 1};
  ft_context *context = new_context(false);
  int i;
  for (i = 0; i < 2; ++i) {
    files_begin(context, directory[i], i ? "far" : "near");
    train_and_save(i == 1, golden, adapt, directory[i], numbers[i]);
    bytes[i] = ft__file_read(context, files_path(directory[i], "model.safetensors"), &size[i]);
  }
  CHECK(memcmp(numbers[0], numbers[1], sizeof numbers[0]) == 0);
  CHECK(numbers[0][0] > 0 && numbers[0][1] > 0 && numbers[0][0] != numbers[0][4]);
  CHECK(bytes[0] && bytes[1] && size[0] == size[1] && memcmp(bytes[0], bytes[1], size[0]) == 0);
  CHECK(buffers == 0);
  for (i = 0; i < 2; ++i) {
    ft__release(context, bytes[i]);
    files_end(directory[i]);
  }
  ft_context_free(context);
}

/* The small operations: result[0] the loss, then x's gradient. */
static void small_operations(bool far_memory, ft_real result[7]) {
  static const ft_real values[6] = {1, -2, 3, 0.5f, 0.25f, -1};
  const int64_t shape[2] = {2, 3};
  ft_context *context = new_context(far_memory);
  ft_tensor *x = ft_tensor_create(context, FT_F32, 2, shape), *y, *loss;
  x->requires_gradient = true;
  ft_tensor_write(context, x, values);
  y = ft_softmax(context, ft_dropout(context, ft_activate(context, FT_SILU, x), 0.25, 1));
  y = ft_add(context, ft_divide(context, y, ft_activate(context, FT_EXP, ft_slice(context, x, 0, 1, 1))), x);
  loss = ft_mean(context, ft_matmul(context, y, ft_transpose(context, ft_subtract(context, y, x), 0, 1)), -1);
  CHECK(ft_backward(context, loss) == FT_OK);
  CHECK(ft_tensor_read(context, loss, result) == FT_OK && ft_gradient_read(context, x, result + 1) == FT_OK);
  ft_tensor_free(x);
  ft_context_free(context);
}

int main(void) {
  ft_real near_result[7], far_result[7];
  int i;
  check_step("tests/golden/bert-pairs", false);
  check_step("tests/golden/distilbert", false);
  check_step("tests/golden/bert-multilabel", false);
  check_step("tests/golden/distilbert-regression", false);
  check_step("tests/golden/bert-pairs", true);
  check_step("tests/golden/distilbert", true);
  small_operations(false, near_result);
  small_operations(true, far_result);
  CHECK(memcmp(near_result, far_result, sizeof near_result) == 0);
  for (i = 0; i < FUNCTIONS; ++i) { /* nothing was done without the table */
    if (calls[i] == 0) printf("function %d of the table was never called\n", i);
    CHECK(calls[i] > 0);
  }
  CHECK(buffers == 0);
  FINISH();
}
