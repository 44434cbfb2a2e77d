/* tape.c - tensors and the tape: what operations compute, what is recorded, and what is refused. That gradients are
   right is the business of gradients.c. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

#include <stdlib.h>

static ft_context *context;

/* A persistent tensor that requires a gradient; freed with the others at the end. */
static ft_tensor *made[100];
static int made_count;

static ft_tensor *tensor(int dimensions, int64_t d0, int64_t d1, int64_t d2, const ft_real *values) {
  const int64_t shape[3] = {d0, d1, d2};
  ft_tensor *x = ft_tensor_create(context, FT_F32, dimensions, shape);
  if (!x || made_count == 100) exit(1);
  if (values) CHECK(ft_tensor_write(context, x, values) == FT_OK);
  x->requires_gradient = true;
  return made[made_count++] = x;
}

static ft_tensor *indices(int64_t count, const int32_t *values) {
  ft_tensor *x = ft_tensor_temporary(context, FT_I32, 1, &count);
  CHECK(ft_tensor_write(context, x, values) == FT_OK);
  return x;
}

/* Checks shape and values of a result, and clears the tape. */
static void check_values(ft_tensor *x, int line, int dimensions, int64_t d0, int64_t d1, int64_t d2,
                         const double *expected) {
  ft_real values[64];
  const int64_t shape[3] = {d0, d1, d2};
  int64_t i;
  bool right = x && x->dimensions == dimensions;
  for (i = 0; right && i < dimensions; ++i) right = x->shape[i] == shape[i];
  right = right && ft_tensor_count(x) <= 64 && ft_tensor_read(context, ft_contiguous(context, x), values) == FT_OK;
  for (i = 0; right && i < ft_tensor_count(x); ++i)
    if (!(fabs((double)values[i] - expected[i]) <= 2e-6 * (1 + fabs(expected[i])))) {
      printf("line %d, element %d: %.9g, expected %.9g\n", line, (int)i, (double)values[i], expected[i]);
      right = false;
    }
  check_report(right, __FILE__, line, x ? "shape and values" : ft_error_message(context));
  ft_tape_clear(context);
}

#define IS(x, dimensions, d0, d1, d2, ...)                        \
  do {                                                            \
    static const double expected_[] = {__VA_ARGS__};              \
    check_values(x, __LINE__, dimensions, d0, d1, d2, expected_); \
  } while (0)
#define IS0(x, ...) IS(x, 0, 0, 0, 0, __VA_ARGS__)
#define IS1(x, d0, ...) IS(x, 1, d0, 0, 0, __VA_ARGS__)
#define IS2(x, d0, d1, ...) IS(x, 2, d0, d1, 0, __VA_ARGS__)
#define IS3(x, d0, d1, d2, ...) IS(x, 3, d0, d1, d2, __VA_ARGS__)

/* ---- values ---- */

static const ft_real one_to_six[6] = {1, 2, 3, 4, 5, 6}, tens[3] = {10, 20, 30}, one_two[2] = {1, 2};

static void test_elementwise(void) {
  ft_tensor *a = tensor(2, 2, 3, 0, one_to_six), *row = tensor(1, 3, 0, 0, tens), *column = tensor(2, 2, 1, 0, one_two);
  ft_tensor *box = tensor(3, 2, 1, 1, one_two), *scalar = tensor(0, 0, 0, 0, tens);
  IS2(ft_add(context, a, row), 2, 3, 11, 22, 33, 14, 25, 36);
  IS2(ft_subtract(context, a, column), 2, 3, 0, 1, 2, 2, 3, 4);
  IS2(ft_subtract(context, row, column), 2, 3, 9, 19, 29, 8, 18, 28); /* both stretch */
  IS2(ft_multiply(context, row, a), 2, 3, 10, 40, 90, 40, 100, 180);
  IS2(ft_divide(context, row, a), 2, 3, 10, 10, 10, 2.5, 4, 5);
  IS3(ft_multiply(context, a, box), 2, 2, 3, 1, 2, 3, 4, 5, 6, 2, 4, 6, 8, 10, 12);
  IS2(ft_add(context, a, scalar), 2, 3, 11, 12, 13, 14, 15, 16);
  IS0(ft_multiply(context, scalar, scalar), 100);
  IS2(ft_scale(context, a, -0.5), 2, 3, -0.5, -1, -1.5, -2, -2.5, -3);
  IS2(ft_multiply(context, ft_transpose(context, a, 0, 1), ft_transpose(context, column, 0, 1)), 3, 2, 1, 8, 2, 10, 3,
      12);
}

static void test_reductions(void) {
  ft_tensor *a = tensor(2, 2, 3, 0, one_to_six);
  IS2(ft_sum(context, a, 0), 1, 3, 5, 7, 9);
  IS2(ft_sum(context, a, 1), 2, 1, 6, 15);
  IS1(ft_sum(context, a, -1), 1, 21);
  IS2(ft_mean(context, a, 0), 1, 3, 2.5, 3.5, 4.5);
  IS2(ft_mean(context, ft_transpose(context, a, 0, 1), 0), 1, 2, 2, 5);
  IS1(ft_mean(context, a, -1), 1, 3.5);
}

/* Reference: torch, double precision. */
static void test_activations(void) {
  static const ft_real values[5] = {-2, -0.5f, 0, 1, 3}, positive[5] = {0.25f, 0.5f, 1, 2, 10};
  ft_tensor *x = tensor(1, 5, 0, 0, values);
  IS1(ft_activate(context, FT_IDENTITY, x), 5, -2, -0.5, 0, 1, 3);
  IS1(ft_activate(context, FT_GELU, x), 5, -0.0455002639, -0.1542687694, 0, 0.8413447461, 2.995950306);
  IS1(ft_activate(context, FT_GELU_TANH, x), 5, -0.04540230591, -0.1542859902, 0, 0.8411919906, 2.996362608);
  IS1(ft_activate(context, FT_RELU, x), 5, 0, 0, 0, 1, 3);
  IS1(ft_activate(context, FT_SILU, x), 5, -0.238405844, -0.1887703344, 0, 0.7310585786, 2.85772238);
  IS1(ft_activate(context, FT_TANH, x), 5, -0.9640275801, -0.4621171573, 0, 0.761594156, 0.9950547537);
  IS1(ft_activate(context, FT_SIGMOID, x), 5, 0.119202922, 0.3775406688, 0.5, 0.7310585786, 0.9525741268);
  IS1(ft_activate(context, FT_EXP, x), 5, 0.1353352832, 0.6065306597, 1, 2.718281828, 20.08553692);
  IS1(ft_activate(context, FT_LOG, tensor(1, 5, 0, 0, positive)), 5, -1.386294361, -0.6931471806, 0, 0.6931471806,
      2.302585093);
}

static void test_softmax(void) {
  const ft_real logs[6] = {0, (ft_real)0.69314718056, (ft_real)1.09861228867, 1000, 1000, -1000}; /* 0, ln 2, ln 3 */
  IS2(ft_softmax(context, tensor(2, 2, 3, 0, logs)), 2, 3, 1. / 6, 2. / 6, 3. / 6, 0.5, 0.5, 0);
}

static void test_matmul(void) {
  static const ft_real b[6] = {1, 0, 0, 1, 1, 1}, twelve[12] = {1, 2, 3, 4, 5, 6, 0, 1, 0, 2, 0, 1};
  ft_tensor *a = tensor(2, 2, 3, 0, one_to_six), *x = tensor(2, 3, 2, 0, b), *batch = tensor(3, 2, 2, 3, twelve);
  IS2(ft_matmul(context, a, x), 2, 2, 4, 5, 10, 11);
  IS2(ft_matmul(context, a, ft_transpose(context, a, 0, 1)), 2, 2, 14, 32, 32, 77);
  IS2(ft_matmul(context, ft_transpose(context, x, 0, 1), x), 2, 2, 2, 1, 1, 2);
  IS3(ft_matmul(context, batch, x), 2, 2, 2, 4, 5, 10, 11, 0, 1, 3, 1);
  IS3(ft_matmul(context, batch, ft_transpose(context, batch, 1, 2)), 2, 2, 2, 14, 32, 32, 77, 1, 0, 0, 5);
}

static void test_views(void) {
  const int64_t three_two[2] = {3, 2}, flat[1] = {6};
  ft_tensor *a = tensor(2, 2, 3, 0, one_to_six), *t;
  IS2(ft_reshape(context, a, 2, three_two), 3, 2, 1, 2, 3, 4, 5, 6);
  IS2(ft_transpose(context, a, 0, 1), 3, 2, 1, 4, 2, 5, 3, 6);
  IS1(ft_reshape(context, ft_transpose(context, a, 0, 1), 1, flat), 6, 1, 4, 2, 5, 3, 6); /* copies */
  IS2(ft_slice(context, a, 1, 1, 2), 2, 2, 2, 3, 5, 6);
  IS2(ft_slice(context, ft_transpose(context, ft_slice(context, a, 1, 1, 2), 0, 1), 0, 1, 1), 1, 2, 3, 6);
  t = ft_transpose(context, a, 0, 1);
  CHECK(t->data == a->data && ft_contiguous(context, a) == a); /* a view has no memory of its own */
  CHECK(ft_tensor_read(context, t, NULL) == FT_ERROR_SHAPE);
  CHECK_TEXT(ft_error_message(context), "ft_tensor_read wants a contiguous tensor, not a view: see ft_contiguous");
  ft_tape_clear(context);
}

static void test_fused(void) {
  static const ft_real weight[6] = {1, 0, 0, 0, 1, 1}, bias[2] = {-1, -8}, line[4] = {1, 2, 3, 4},
                       twos[4] = {2, 2, 2, 2}, ones[4] = {1, 1, 1, 1};
  static const int32_t rows[3] = {1, 0, 1};
  ft_tensor *a = tensor(2, 2, 3, 0, one_to_six), *w = tensor(2, 2, 3, 0, weight), *b = tensor(1, 2, 0, 0, bias);
  ft_tensor *x = tensor(2, 1, 4, 0, line), *two = tensor(1, 4, 0, 0, twos), *one = tensor(1, 4, 0, 0, ones);
  const double s = 1 / sqrt(1.25); /* of 1 2 3 4 the mean is 2.5, the variance 1.25 */
  double normed[4], doubled[4];
  int i;
  for (i = 0; i < 4; ++i) normed[i] = 2 * s * (i - 1.5) + 1, doubled[i] = s * (i - 1.5) + 2;
  IS2(ft_linear(context, a, w, NULL, FT_IDENTITY), 2, 2, 1, 5, 4, 11);
  IS2(ft_linear(context, a, w, b, FT_RELU), 2, 2, 0, 0, 3, 3);
  check_values(ft_residual_layer_norm(context, x, NULL, two, one, 0, 0, 0), __LINE__, 2, 1, 4, 0, normed);
  check_values(ft_residual_layer_norm(context, x, x, one, two, 0, 0, 0), __LINE__, 2, 1, 4, 0, doubled);
  IS2(ft_gather_rows(context, a, indices(3, rows)), 3, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6);
  IS2(ft_embedding(context, a, indices(3, rows), w, indices(3, rows), NULL, NULL), 3, 3, 4, 6, 7, 2, 2, 3, 4, 6, 7);
}

/* One head of one column: scores are products. Texts of 2 and 1 tokens; softmax of (0, ln 2) is 1/3, 2/3, and of
   (0, 2 ln 2) 1/5, 4/5; the second text sees itself alone. */
static void test_attention(void) {
  const ft_real query[3] = {1, 2, 5}, key[3] = {0, (ft_real)0.69314718056, 3}, value[3] = {3, 6, 7};
  static const int32_t offsets[3] = {0, 2, 3}, lengths[2] = {2, 1};
  IS2(ft_attention(context, tensor(2, 3, 1, 0, query), tensor(2, 3, 1, 0, key), tensor(2, 3, 1, 0, value),
                   indices(3, offsets), indices(2, lengths), 2, 1, 0, 0),
      3, 1, 5, 5.4, 7);
}

static void test_losses(void) {
  const ft_real logits[4] = {0, (ft_real)1.09861228867, 5, 5}, targets[2] = {1, 0}; /* 0, ln 3 */
  static const int32_t labels[2] = {1, -100}, both[2] = {1, 0};
  ft_tensor *x = tensor(2, 2, 2, 0, logits), *t = tensor(2, 1, 2, 0, targets);
  ft_tensor *first = ft_slice(context, x, 0, 0, 1);
  IS1(ft_binary_cross_entropy_loss(context, first, t, 2), 1, 0.5 * (0.69314718056 + 1.38629436112)); /* ln 2, ln 4 */
  first = ft_slice(context, x, 0, 1, 1);
  IS1(ft_squared_error_loss(context, first, t, 2), 1, (16 + 25) / 2.0);
  IS1(ft_cross_entropy_loss(context, x, indices(2, labels), 1), 1, 0.287682072452); /* ln 4/3 */
  IS1(ft_cross_entropy_loss(context, x, indices(2, both), 2), 1, 0.5 * (0.287682072452 + 0.69314718056));
}

static void test_dropout(void) {
  ft_real ones[1000], first[1000], again[1000], other[1000];
  ft_tensor *x;
  int i, zeros = 0, wrong = 0, moved = 0;
  for (i = 0; i < 1000; ++i) ones[i] = 1;
  x = tensor(1, 1000, 0, 0, ones);
  ft_random_position(context, 42, 3, 0);
  ft_tensor_read(context, ft_dropout(context, x, 0.2, 5), first);
  ft_tensor_read(context, ft_dropout(context, x, 0.2, 5), again);
  ft_tensor_read(context, ft_dropout(context, x, 0.2, 6), other);
  for (i = 0; i < 1000; ++i) {
    zeros += first[i] == 0;
    wrong += first[i] != 0 && fabs((double)first[i] - 1.25) > 1e-6;
    moved += first[i] != other[i];
  }
  CHECK(wrong == 0 && zeros > 150 && zeros < 250);
  CHECK(memcmp(first, again, sizeof first) == 0 && moved > 200);
  CHECK(ft_dropout(context, x, 0, 5) == x);
  CHECK(!ft_dropout(context, x, 1, 5) && strstr(ft_error_message(context), "ft_dropout: a dropout probability"));
  ft_tape_clear(context);
}

/* ---- the tape ---- */

static double gradient_of(ft_tensor *x, int index) {
  ft_real values[64];
  CHECK(ft_gradient_read(context, x, values) == FT_OK);
  return (double)values[index];
}

/* L = sum of x^2, dL/dx = 2 x; calls add up, and one tape may be walked twice. */
static void test_accumulation(void) {
  ft_tensor *x = tensor(1, 3, 0, 0, tens), *loss;
  CHECK(gradient_of(x, 0) == 0);
  loss = ft_sum(context, ft_multiply(context, x, x), -1);
  CHECK(ft_backward(context, loss) == FT_OK);
  CHECK(gradient_of(x, 0) == 20 && gradient_of(x, 2) == 60);
  CHECK(ft_backward(context, loss) == FT_OK);
  CHECK(gradient_of(x, 0) == 40 && gradient_of(x, 2) == 120);
  ft_tape_clear(context);
  CHECK(ft_backward(context, ft_sum(context, x, -1)) == FT_OK);
  CHECK(gradient_of(x, 0) == 41);
  ft_gradient_zero(context, x);
  CHECK(gradient_of(x, 0) == 0);
  ft_tape_clear(context);
  CHECK(ft_backward(context, ft_scale(context, ft_sum(context, x, -1), 3)) == FT_OK);
  CHECK(gradient_of(x, 0) == 3);
  ft_tape_clear(context);
}

/* One value used along several ways: L = sum(h^2) + 5 sum(h) with h = x + x, so dL/dx = 2 (2 h + 5) = 8 x + 10. Two
   losses on one tape add up as well; what a loss does not depend on is left alone. */
static void test_shared(void) {
  ft_tensor *x = tensor(1, 3, 0, 0, tens), *unused = tensor(1, 3, 0, 0, tens), *h, *squares, *sum;
  h = ft_add(context, x, x);
  squares = ft_sum(context, ft_multiply(context, h, h), -1);
  sum = ft_scale(context, ft_sum(context, h, -1), 5);
  ft_sum(context, unused, -1);
  CHECK(ft_backward(context, ft_add(context, squares, sum)) == FT_OK);
  CHECK(gradient_of(x, 0) == 90 && gradient_of(x, 2) == 250);
  CHECK(gradient_of(unused, 0) == 0);
  ft_gradient_zero(context, x);
  CHECK(ft_backward(context, squares) == FT_OK && ft_backward(context, sum) == FT_OK);
  CHECK(gradient_of(x, 0) == 90 && gradient_of(x, 2) == 250);
  ft_tape_clear(context);
}

static void test_no_grad(void) {
  ft_tensor *x = tensor(1, 3, 0, 0, tens), *y;
  ft_no_grad_begin(context);
  ft_no_grad_begin(context);
  ft_no_grad_end(context);
  y = ft_sum(context, x, -1); /* still inside */
  ft_no_grad_end(context);
  CHECK(!y->requires_gradient);
  CHECK(ft_backward(context, y) == FT_ERROR_ARGUMENT && strstr(ft_error_message(context), "requires a gradient"));
  y = ft_multiply(context, y, ft_sum(context, x, -1)); /* the first factor counts as a constant, 60 */
  CHECK(y->requires_gradient && ft_backward(context, y) == FT_OK);
  CHECK(gradient_of(x, 1) == 60);
  x->requires_gradient = false;
  CHECK(!ft_add(context, x, x)->requires_gradient);
  ft_tape_clear(context);
}

/* The gradients of a table's five rows [5, 1] after a backward pass of the sum of embedded rows `ids`. */
static void check_rows(ft_tensor *table, int count, const int32_t *ids, int line, const double expected[5],
                       const char *marked) {
  static const int32_t zeros[4] = {0, 0, 0, 0};
  ft_tensor *position = tensor(2, 1, 1, 0, NULL);
  int i;
  CHECK(ft_backward(context, ft_sum(context,
                                    ft_embedding(context, table, indices(count, ids), position, indices(count, zeros),
                                                 NULL, NULL),
                                    -1)) == FT_OK);
  ft_tape_clear(context);
  for (i = 0; i < 5; ++i) {
    check_report(gradient_of(table, i) == expected[i], __FILE__, line, "a row's gradient");
    check_report(table->gradient_rows[i] == marked[i] - '0', __FILE__, line, "a row's mark");
  }
}

/* Gradients of tables: rows without a mark are zero, whatever was added, cleared or written over all of the table. */
static void test_rows(void) {
  static const int32_t ids[] = {3, 1, 3, 4};
  static const double steps[][5] = {
      {0, 1, 0, 2, 0}, {0, 0, 0, 0, 1}, {0, 1, 0, 2, 1}, {2, 3, 2, 4, 2}, {0, 0, 0, 1, 0}};
  ft_tensor *table = tensor(2, 5, 1, 0, one_to_six);
  check_rows(table, 3, ids, __LINE__, steps[0], "01010");
  ft_gradient_zero(context, table);
  CHECK(gradient_of(table, 3) == 0);
  check_rows(table, 1, ids + 3, __LINE__, steps[1], "00001");
  check_rows(table, 3, ids, __LINE__, steps[2], "01011"); /* no zeroing: one more micro-batch */
  ft_gradient_zero(context, table);
  CHECK(ft_backward(context, ft_scale(context, ft_sum(context, table, -1), 2)) == FT_OK);
  check_rows(table, 3, ids, __LINE__, steps[3], "11111"); /* as a tied decoder does */
  ft_gradient_zero(context, table);
  check_rows(table, 1, ids, __LINE__, steps[4], "00010");
  table = tensor(2, 5, 1, 0, one_to_six); /* written over as a whole first */
  CHECK(ft_backward(context, ft_scale(context, ft_sum(context, table, -1), 2)) == FT_OK);
  check_rows(table, 3, ids, __LINE__, steps[3], "11111");
}

/* A chain of n operations keeps n activations, but only a few gradient buffers. */
static void test_gradient_memory(void) {
  enum { COUNT = 1 << 16, LENGTH = 50 };
  ft_context *fresh = ft_context_create(NULL);
  const int64_t shape[1] = {COUNT}, bytes = COUNT * (int64_t)sizeof(ft_real);
  ft_tensor *x = ft_tensor_create(fresh, FT_F32, 1, shape), *y = x;
  int i;
  x->requires_gradient = true;
  for (i = 0; i < LENGTH; ++i) y = ft_activate(fresh, FT_TANH, y);
  CHECK(ft_tape_peak_bytes(fresh) == LENGTH * bytes);
  CHECK(ft_backward(fresh, ft_sum(fresh, y, -1)) == FT_OK);
  CHECK(ft_tape_peak_bytes(fresh) <= (LENGTH + 3) * bytes);
  ft_tensor_free(x);
  ft_context_free(fresh);
}

/* ---- errors ---- */

static void check_refused(const ft_tensor *x, const char *message) {
  CHECK(x == NULL);
  CHECK_TEXT(ft_error_message(context), message);
}

static void test_errors(void) {
  const int64_t seven[1] = {7};
  static const int32_t rows[3] = {1, 0, 1};
  ft_tensor *a = tensor(2, 2, 3, 0, one_to_six), *row = tensor(1, 2, 0, 0, one_two), *failed;
  check_refused(ft_add(context, a, row), "ft_add: shapes [2, 3] and [2] do not fit together");
  check_refused(ft_divide(context, row, a), "ft_divide: shapes [2] and [2, 3] do not fit together");
  check_refused(ft_matmul(context, a, a), "ft_matmul: shapes [2, 3] and [2, 3] do not fit together");
  check_refused(ft_matmul(context, a, row), "ft_matmul: shapes [2, 3] and [2] do not fit together");
  check_refused(ft_linear(context, a, ft_transpose(context, a, 0, 1), NULL, FT_RELU),
                "ft_linear: shapes [2, 3] and [3, 2] do not fit together");
  check_refused(ft_linear(context, a, a, tensor(1, 3, 0, 0, tens), FT_RELU),
                "ft_linear, weight and bias: shapes [2, 3] and [3] do not fit together");
  check_refused(ft_reshape(context, a, 1, seven), "ft_reshape: [7] has not as many elements as [2, 3]");
  check_refused(ft_sum(context, a, 2), "ft_sum: there is no dimension 2 in 2 dimensions");
  check_refused(ft_mean(context, a, -2), "ft_mean: there is no dimension -2 in 2 dimensions");
  check_refused(ft_transpose(context, a, 0, 2), "ft_transpose: dimensions 0 and 2 of a tensor with 2");
  check_refused(ft_slice(context, a, 1, 2, 2), "ft_slice: 2 elements from 2 along dimension 1 of [2, 3]");
  check_refused(ft_residual_layer_norm(context, a, NULL, row, row, 0, 0, 0),
                "ft_residual_layer_norm: shapes [2, 3] and [2] do not fit together");
  check_refused(ft_cross_entropy_loss(context, a, indices(3, rows), 1),
                "ft_cross_entropy_loss: shapes [2, 3] and [3] do not fit together");
  check_refused(ft_attention(context, a, a, a, indices(3, rows), indices(2, rows), 2, 2, 0, 0),
                "ft_attention: 3 columns cannot be cut into 2 heads");
  CHECK(ft_backward(context, a) == FT_ERROR_SHAPE);
  CHECK_TEXT(ft_error_message(context), "ft_backward starts at a loss of one element, not at one of shape [2, 3]");
  failed = ft_slice(context, a, 5, 0, 1); /* NULL goes through a whole chain and leaves the message in place */
  failed = ft_softmax(context, ft_add(context, ft_scale(context, ft_reshape(context, failed, 1, seven), 2), a));
  failed = ft_sum(context, ft_linear(context, ft_activate(context, FT_GELU, failed), a, NULL, FT_GELU), -1);
  CHECK(ft_backward(context, failed) == FT_ERROR_ARGUMENT);
  check_refused(failed, "ft_slice: 1 elements from 0 along dimension 5 of [2, 3]");
  ft_tape_clear(context);
}

static void copy_forward(ft_context *c, ft__node *node) {
  c->backend->accumulate(c, ft__layout_of(node->input[0]).shape, 1, ft__data(node->input[0]),
                         ft__layout_of(node->input[0]).stride, ft__out(node->output),
                         ft__layout_of(node->output).stride);
}

static void failing_forward(ft_context *c, ft__node *node) {
  (void)node;
  ft__error(c, FT_ERROR_MEMORY, "the back end could not do it");
}

static ft_tensor *record(const ft__operation *operation, ft_tensor *x) {
  ft__node *node = ft__node_create(context, operation);
  node->input[0] = x;
  node->output = ft_tensor_temporary(context, FT_F32, x->dimensions, x->shape);
  context->backend->zero(context, node->output->data, ft__tensor_bytes(x));
  return ft__record(context, node);
}

/* An operation without a backward pass may compute, but not on the way to a gradient; one that fails has no result. */
static void test_operations_of_ones_own(void) {
  static const ft__operation copy = {"copy", copy_forward, NULL}, failing = {"failing", failing_forward, NULL};
  ft_tensor *x = tensor(1, 3, 0, 0, tens);
  CHECK(record(&copy, x) == NULL && ft_error_status(context) == FT_ERROR_UNSUPPORTED);
  CHECK_TEXT(ft_error_message(context), "copy has no backward pass, but its input requires a gradient");
  ft_no_grad_begin(context);
  IS1(record(&copy, x), 3, 10, 20, 30);
  check_refused(record(&failing, x), "the back end could not do it");
  ft_no_grad_end(context);
  ft_tape_clear(context);
}

/* ---- learning ---- */

/* Gradient descent on tanh(x W1 + b1) W2 + b2 learns XOR from a start that is not a solution. */
static void test_xor(void) {
  static const ft_real inputs[8] = {0, 0, 0, 1, 1, 0, 1, 1}, answers[4] = {0, 1, 1, 0};
  static const ft_real start[8] = {0.5f, -0.75f, 0.25f, 1, -0.5f, 0.6f, -0.9f, 0.3f};
  ft_tensor *x = tensor(2, 4, 2, 0, inputs), *y = tensor(2, 4, 1, 0, answers), *parameters[4], *logits, *loss;
  ft_real value = 0, first = 0, weights[8], gradient[8];
  int step, k, i;
  x->requires_gradient = y->requires_gradient = false;
  parameters[0] = tensor(2, 2, 4, 0, start), parameters[1] = tensor(1, 4, 0, 0, NULL);
  parameters[2] = tensor(2, 4, 1, 0, start), parameters[3] = tensor(1, 1, 0, 0, NULL);
  for (step = 0; step < 1000; ++step) {
    logits = ft_activate(context, FT_TANH, ft_add(context, ft_matmul(context, x, parameters[0]), parameters[1]));
    logits = ft_add(context, ft_matmul(context, logits, parameters[2]), parameters[3]);
    loss = ft_binary_cross_entropy_loss(context, logits, y, 4);
    CHECK(ft_backward(context, loss) == FT_OK && ft_tensor_read(context, loss, &value) == FT_OK);
    if (step == 0) first = value;
    for (k = 0; k < 4; ++k) {
      ft_tensor_read(context, parameters[k], weights);
      ft_gradient_read(context, parameters[k], gradient);
      for (i = 0; i < (int)ft_tensor_count(parameters[k]); ++i) weights[i] -= (ft_real)0.5 * gradient[i];
      ft_tensor_write(context, parameters[k], weights);
      ft_gradient_zero(context, parameters[k]);
    }
    ft_tape_clear(context);
  }
  CHECK(first > 0.5f && value < 0.05f);
}

int main(void) {
  context = ft_context_create(NULL);
  if (!context) return 1;
  test_elementwise();
  test_reductions();
  test_activations();
  test_softmax();
  test_matmul();
  test_views();
  test_fused();
  test_attention();
  test_losses();
  test_dropout();
  test_accumulation();
  test_shared();
  test_no_grad();
  test_rows();
  test_gradient_memory();
  test_errors();
  test_operations_of_ones_own();
  test_xor();
  while (made_count > 0) ft_tensor_free(made[--made_count]);
  ft_context_free(context);
  FINISH();
}
