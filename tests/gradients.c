/* gradients.c - the backward pass of every operation against central finite differences, in double precision.

   For an operation y = f(x1, .., xn) and fixed random weights w, L = sum(w y) is a number. Its derivative in each
   element of each xi by backward must equal (L(xi + h) - L(xi - h)) / 2h to many digits: with double precision and h =
   1e-5 the error of the difference is about 1e-9. */
#undef FT_REAL
#define FT_REAL double
#ifndef FT_NAIVE
#define FT_NAIVE
#endif
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

enum { MAX_INPUTS = 5, MAX_ELEMENTS = 512 };

typedef struct gradient_case {
  const char *name;
  ft_tensor *(*apply)(ft_context *context, ft_tensor **x);
  int inputs;
  struct {
    int dimensions;
    int64_t shape[4];
  } input[MAX_INPUTS];
  double low, high; /* range of the inputs' values */
} gradient_case;

static ft_tensor *ids_tensor(ft_context *context, const int32_t *values, int64_t count) {
  ft_tensor *tensor = ft_tensor_temporary(context, FT_I32, 1, &count);
  ft_tensor_write(context, tensor, values);
  return tensor;
}

static ft_tensor *apply_add(ft_context *c, ft_tensor **x) { return ft_add(c, x[0], x[1]); }
static ft_tensor *apply_subtract(ft_context *c, ft_tensor **x) { return ft_subtract(c, x[0], x[1]); }
static ft_tensor *apply_multiply(ft_context *c, ft_tensor **x) { return ft_multiply(c, x[0], x[1]); }
static ft_tensor *apply_divide(ft_context *c, ft_tensor **x) { return ft_divide(c, x[0], x[1]); }
static ft_tensor *apply_scale(ft_context *c, ft_tensor **x) { return ft_scale(c, x[0], -2.5); }
static ft_tensor *apply_square(ft_context *c, ft_tensor **x) { return ft_multiply(c, x[0], x[0]); }
static ft_tensor *apply_sum(ft_context *c, ft_tensor **x) { return ft_sum(c, x[0], 1); }
static ft_tensor *apply_sum_all(ft_context *c, ft_tensor **x) { return ft_sum(c, x[0], -1); }
static ft_tensor *apply_mean(ft_context *c, ft_tensor **x) { return ft_mean(c, x[0], 0); }
static ft_tensor *apply_softmax(ft_context *c, ft_tensor **x) { return ft_softmax(c, x[0]); }
static ft_tensor *apply_matmul(ft_context *c, ft_tensor **x) { return ft_matmul(c, x[0], x[1]); }
static ft_tensor *apply_matmul_transposed(ft_context *c, ft_tensor **x) {
  return ft_matmul(c, x[0], ft_transpose(c, x[1], 0, 1));
}
static ft_tensor *apply_identity(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_IDENTITY, x[0]); }
static ft_tensor *apply_gelu(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_GELU, x[0]); }
static ft_tensor *apply_gelu_tanh(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_GELU_TANH, x[0]); }
static ft_tensor *apply_relu(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_RELU, x[0]); }
static ft_tensor *apply_silu(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_SILU, x[0]); }
static ft_tensor *apply_tanh(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_TANH, x[0]); }
static ft_tensor *apply_sigmoid(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_SIGMOID, x[0]); }
static ft_tensor *apply_exp(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_EXP, x[0]); }
static ft_tensor *apply_log(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_LOG, x[0]); }
static ft_tensor *apply_sqrt(ft_context *c, ft_tensor **x) { return ft_activate(c, FT_SQRT, x[0]); }
static ft_tensor *apply_reshape(ft_context *c, ft_tensor **x) {
  const int64_t shape[2] = {6, 4};
  return ft_reshape(c, x[0], 2, shape);
}
static ft_tensor *apply_transpose(ft_context *c, ft_tensor **x) {
  return ft_contiguous(c, ft_transpose(c, x[0], 0, 2));
}
static ft_tensor *apply_slice(ft_context *c, ft_tensor **x) {
  return ft_contiguous(c, ft_slice(c, ft_slice(c, x[0], 1, 1, 2), 2, 0, 3));
}
static ft_tensor *apply_slice_of_transpose(ft_context *c, ft_tensor **x) {
  return ft_contiguous(c, ft_slice(c, ft_transpose(c, x[0], 0, 2), 0, 1, 2));
}
static ft_tensor *apply_linear(ft_context *c, ft_tensor **x) { return ft_linear(c, x[0], x[1], x[2], FT_IDENTITY); }
static ft_tensor *apply_linear_gelu(ft_context *c, ft_tensor **x) { return ft_linear(c, x[0], x[1], x[2], FT_GELU); }
static ft_tensor *apply_linear_tanh(ft_context *c, ft_tensor **x) { return ft_linear(c, x[0], x[1], NULL, FT_TANH); }
static ft_tensor *apply_low_rank(ft_context *c, ft_tensor **x) {
  return ft_linear_low_rank(c, x[0], x[1], x[2], x[3], x[4], FT_IDENTITY);
}
static ft_tensor *apply_low_rank_gelu(ft_context *c, ft_tensor **x) {
  return ft_linear_low_rank(c, x[0], x[1], x[2], x[3], x[4], FT_GELU);
}
static ft_tensor *apply_low_rank_of_itself(ft_context *c,
                                           ft_tensor **x) { /* the low-rank part reads x too, as in LoRA */
  return ft_linear_low_rank(c, x[0], x[1], NULL, ft_linear(c, x[0], x[2], NULL, FT_IDENTITY), x[3], FT_TANH);
}
static ft_tensor *apply_dropout(ft_context *c, ft_tensor **x) { return ft_dropout(c, x[0], 0.4, 7); }
static ft_tensor *apply_layer_norm(ft_context *c, ft_tensor **x) {
  return ft_residual_layer_norm(c, x[0], NULL, x[1], x[2], 1e-5, 0, 0);
}
static ft_tensor *apply_residual_layer_norm(ft_context *c, ft_tensor **x) {
  return ft_residual_layer_norm(c, x[0], x[3], x[1], x[2], 1e-12, 0.3, 9);
}
static ft_tensor *apply_layer_norm_of_itself(ft_context *c, ft_tensor **x) { /* x is its own residual */
  return ft_residual_layer_norm(c, x[0], x[0], x[1], x[2], 1e-12, 0.3, 9);
}
static ft_tensor *apply_gather_rows(ft_context *c, ft_tensor **x) {
  static const int32_t rows[] = {2, 0, 2, 1};
  return ft_gather_rows(c, x[0], ids_tensor(c, rows, 4));
}
static ft_tensor *apply_embedding(ft_context *c, ft_tensor **x) {
  static const int32_t ids[] = {3, 1, 3, 0, 2}, positions[] = {0, 1, 2, 0, 1}, types[] = {0, 0, 1, 0, 1};
  return ft_embedding(c, x[0], ids_tensor(c, ids, 5), x[1], ids_tensor(c, positions, 5), x[2], ids_tensor(c, types, 5));
}
static ft_tensor *apply_embedding_without_types(ft_context *c, ft_tensor **x) {
  static const int32_t ids[] = {3, 1, 3, 0, 2}, positions[] = {0, 1, 2, 0, 1};
  return ft_embedding(c, x[0], ids_tensor(c, ids, 5), x[1], ids_tensor(c, positions, 5), NULL, NULL);
}
static ft_tensor *attention(ft_context *c, ft_tensor *q, ft_tensor *k, ft_tensor *v, double probability) {
  static const int32_t offsets[] = {0, 3, 4, 9}, lengths[] = {3, 1, 4}; /* the last text has a padding row */
  return ft_attention(c, q, k, v, ids_tensor(c, offsets, 4), ids_tensor(c, lengths, 3), 5, 2, probability, 5);
}
static ft_tensor *apply_attention(ft_context *c, ft_tensor **x) { return attention(c, x[0], x[1], x[2], 0); }
static ft_tensor *apply_attention_dropout(ft_context *c, ft_tensor **x) { return attention(c, x[0], x[1], x[2], 0.25); }
static ft_tensor *apply_attention_shared(ft_context *c, ft_tensor **x) { return attention(c, x[0], x[0], x[0], 0.25); }
static ft_tensor *apply_cross_entropy(ft_context *c, ft_tensor **x) {
  static const int32_t labels[] = {2, 0, -100, 1};
  return ft_cross_entropy_loss(c, x[0], ids_tensor(c, labels, 4), 3);
}
static ft_tensor *pointwise(ft_context *c, ft_tensor *x, bool binary) {
  static const ft_real targets[] = {0, 1, 1, 0, 0, 1};
  ft_tensor *target = ft_tensor_temporary(c, FT_F32, 2, x->shape);
  ft_tensor_write(c, target, targets);
  return binary ? ft_binary_cross_entropy_loss(c, x, target, 2) : ft_squared_error_loss(c, x, target, 2);
}
static ft_tensor *apply_binary_cross_entropy(ft_context *c, ft_tensor **x) { return pointwise(c, x[0], true); }
static ft_tensor *apply_squared_error(ft_context *c, ft_tensor **x) { return pointwise(c, x[0], false); }

static const gradient_case cases[] = {
    {"add", apply_add, 2, {{2, {3, 4}}, {2, {3, 4}}}, -2, 2},
    {"add, broadcast", apply_add, 2, {{3, {2, 3, 4}}, {1, {4}}}, -2, 2},
    {"subtract, broadcast both ways", apply_subtract, 2, {{3, {2, 1, 4}}, {2, {3, 1}}}, -2, 2},
    {"multiply, broadcast", apply_multiply, 2, {{4, {2, 3, 1, 2}}, {3, {1, 4, 1}}}, -2, 2},
    {"divide, broadcast", apply_divide, 2, {{2, {3, 4}}, {1, {4}}}, 0.5, 2},
    {"scale", apply_scale, 1, {{2, {3, 4}}}, -2, 2},
    {"a tensor times itself", apply_square, 1, {{2, {3, 4}}}, -2, 2},
    {"sum", apply_sum, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"sum of all", apply_sum_all, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"mean", apply_mean, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"softmax", apply_softmax, 1, {{2, {3, 5}}}, -3, 3},
    {"matmul", apply_matmul, 2, {{2, {3, 4}}, {2, {4, 5}}}, -2, 2},
    {"matmul, batched and broadcast", apply_matmul, 2, {{4, {2, 3, 2, 4}}, {3, {1, 4, 2}}}, -2, 2},
    {"matmul with a transposed view", apply_matmul_transposed, 2, {{2, {3, 4}}, {2, {5, 4}}}, -2, 2},
    {"identity", apply_identity, 1, {{2, {3, 4}}}, -2, 2},
    {"gelu", apply_gelu, 1, {{2, {5, 8}}}, -5, 5},
    {"gelu_tanh", apply_gelu_tanh, 1, {{2, {5, 8}}}, -5, 5},
    {"relu", apply_relu, 1, {{2, {5, 8}}}, 0.1, 2},
    {"relu below 0", apply_relu, 1, {{2, {5, 8}}}, -2, -0.1},
    {"silu", apply_silu, 1, {{2, {5, 8}}}, -5, 5},
    {"tanh", apply_tanh, 1, {{2, {5, 8}}}, -3, 3},
    {"sigmoid", apply_sigmoid, 1, {{2, {5, 8}}}, -5, 5},
    {"exp", apply_exp, 1, {{2, {5, 8}}}, -2, 2},
    {"log", apply_log, 1, {{2, {5, 8}}}, 0.5, 4},
    {"sqrt", apply_sqrt, 1, {{2, {5, 8}}}, 0.5, 4},
    {"reshape", apply_reshape, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"transpose", apply_transpose, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"slice", apply_slice, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"slice of a transposed view", apply_slice_of_transpose, 1, {{3, {2, 3, 4}}}, -2, 2},
    {"linear", apply_linear, 3, {{2, {4, 3}}, {2, {5, 3}}, {1, {5}}}, -2, 2},
    {"linear + gelu", apply_linear_gelu, 3, {{2, {4, 3}}, {2, {5, 3}}, {1, {5}}}, -2, 2},
    {"linear + tanh, no bias", apply_linear_tanh, 2, {{2, {4, 3}}, {2, {5, 3}}}, -1, 1},
    {"linear + low rank", apply_low_rank, 5, {{2, {4, 3}}, {2, {5, 3}}, {1, {5}}, {2, {4, 2}}, {2, {5, 2}}}, -2, 2},
    {"linear + low rank + gelu",
     apply_low_rank_gelu,
     5,
     {{2, {4, 3}}, {2, {5, 3}}, {1, {5}}, {2, {4, 2}}, {2, {5, 2}}},
     -1,
     1},
    {"linear + low rank of its input",
     apply_low_rank_of_itself,
     4,
     {{2, {4, 3}}, {2, {5, 3}}, {2, {2, 3}}, {2, {5, 2}}},
     -1,
     1},
    {"dropout", apply_dropout, 1, {{2, {7, 9}}}, -2, 2},
    {"layer norm", apply_layer_norm, 3, {{2, {4, 6}}, {1, {6}}, {1, {6}}}, -2, 2},
    {"residual layer norm with dropout",
     apply_residual_layer_norm,
     4,
     {{2, {4, 6}}, {1, {6}}, {1, {6}}, {2, {4, 6}}},
     -2,
     2},
    {"layer norm with itself as residual", apply_layer_norm_of_itself, 3, {{2, {4, 6}}, {1, {6}}, {1, {6}}}, -2, 2},
    {"gather rows", apply_gather_rows, 1, {{2, {3, 4}}}, -2, 2},
    {"embedding", apply_embedding, 3, {{2, {4, 3}}, {2, {3, 3}}, {2, {2, 3}}}, -2, 2},
    {"embedding without types", apply_embedding_without_types, 2, {{2, {4, 3}}, {2, {3, 3}}}, -2, 2},
    {"attention", apply_attention, 3, {{2, {9, 6}}, {2, {9, 6}}, {2, {9, 6}}}, -2, 2},
    {"attention with dropout", apply_attention_dropout, 3, {{2, {9, 6}}, {2, {9, 6}}, {2, {9, 6}}}, -2, 2},
    {"attention, query = key = value", apply_attention_shared, 1, {{2, {9, 6}}}, -1, 1},
    {"cross-entropy", apply_cross_entropy, 1, {{2, {4, 3}}}, -3, 3},
    {"binary cross-entropy", apply_binary_cross_entropy, 1, {{2, {3, 2}}}, -3, 3},
    {"squared error", apply_squared_error, 1, {{2, {3, 2}}}, -3, 3}};

/* L = sum(w y) with w_i = cos(i + 1), as a tensor; NULL if the operation failed. */
static ft_tensor *weighted_sum(ft_context *context, const gradient_case *test, ft_tensor **x) {
  ft_real weights[MAX_ELEMENTS];
  ft_tensor *y = test->apply(context, x), *w;
  int i;
  if (!y) return NULL;
  for (i = 0; i < MAX_ELEMENTS; ++i) weights[i] = cos(i + 1.0);
  w = ft_tensor_temporary(context, FT_F32, y->dimensions, y->shape);
  ft_tensor_write(context, w, weights);
  return ft_sum(context, ft_multiply(context, y, w), -1);
}

static double value_of(ft_context *context, const gradient_case *test, ft_tensor **x) {
  ft_tensor *loss;
  ft_real value = 0;
  ft_no_grad_begin(context);
  loss = weighted_sum(context, test, x);
  ft_tensor_read(context, loss, &value);
  ft_no_grad_end(context);
  ft_tape_clear(context);
  return value;
}

static double random_value(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return (double)(*state >> 8) / 16777216.0;
}

/* The largest |analytic - numeric| over all elements of input k. */
static double worst_difference(ft_context *context, const gradient_case *test, ft_tensor **x, int k) {
  const double h = 1e-5;
  ft_real values[MAX_ELEMENTS], analytic[MAX_ELEMENTS];
  int64_t i, count = ft_tensor_count(x[k]);
  double worst = 0;
  ft_tensor_read(context, x[k], values);
  ft_gradient_read(context, x[k], analytic);
  for (i = 0; i < count; ++i) {
    double kept = values[i], up, down, difference;
    values[i] = kept + h;
    ft_tensor_write(context, x[k], values);
    up = value_of(context, test, x);
    values[i] = kept - h;
    ft_tensor_write(context, x[k], values);
    down = value_of(context, test, x);
    values[i] = kept;
    ft_tensor_write(context, x[k], values);
    difference = fabs(analytic[i] - (up - down) / (2 * h));
    if (difference > worst) worst = difference;
  }
  return worst;
}

static void check_case(ft_context *context, const gradient_case *test) {
  ft_tensor *x[MAX_INPUTS], *loss;
  ft_real values[MAX_ELEMENTS];
  uint32_t state = 12345;
  int k, i, repeat;
  for (k = 0; k < test->inputs; ++k) {
    x[k] = ft_tensor_create(context, FT_F32, test->input[k].dimensions, test->input[k].shape);
    for (i = 0; i < MAX_ELEMENTS; ++i) values[i] = test->low + (test->high - test->low) * random_value(&state);
    ft_tensor_write(context, x[k], values);
    x[k]->requires_gradient = true;
  }
  for (repeat = 0; repeat < 2; ++repeat) { /* gradients accumulate: twice the same is twice as much */
    loss = weighted_sum(context, test, x);
    CHECK(ft_backward(context, loss) == FT_OK);
    ft_tape_clear(context);
    for (k = 0; k < test->inputs && repeat == 0; ++k) {
      double worst = worst_difference(context, test, x, k);
      if (!(worst < 1e-7)) printf("%s, input %d: off by %g\n", test->name, k, worst);
      CHECK(worst < 1e-7);
      ft_gradient_read(context, x[k], values);
    }
  }
  for (k = 0; k < test->inputs; ++k) {
    ft_real twice[MAX_ELEMENTS];
    ft_gradient_read(context, x[k], twice);
    if (k == test->inputs - 1)
      for (i = 0; i < (int)ft_tensor_count(x[k]); ++i)
        CHECK_NEAR(twice[i], 2 * values[i], 1e-12 + 1e-12 * fabs(twice[i]));
    ft_tensor_free(x[k]);
  }
}

int main(void) {
  ft_context *context = ft_context_create(NULL);
  size_t i;
  ft_random_position(context, 3, 1, 0);
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) check_case(context, &cases[i]);
  ft_context_free(context);
  FINISH();
}
