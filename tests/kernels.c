/* kernels.c - each fast kernel against the plain loop that defines it, for every instruction set of this processor, and
   bit for bit between 1, 2 and 3 threads. */
static int test_set = -1; /* the instruction set that the library is made to use; -1: its own choice */
#define FT__INSTRUCTION_SET() (test_set < 0 ? ft__instruction_set_best() : (ft__instruction_set)test_set)
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

enum { THREADS = 3, ARRAYS = 24 };

static ft_context *context[THREADS]; /* with 1, 2 and 3 threads */
static const ft_backend *fast;
static const ft_backend *plain = &ft__backend_plain;
static uint64_t random_state = 1;

static uint32_t random_bits(void) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(random_state >> 33);
}

static int64_t random_below(int64_t count) { return (int64_t)random_bits() % count; }

static ft_real random_real(void) { return (ft_real)((double)random_bits() / 1073741824.0 - 1); } /* -1 .. 1 */

/* Arrays of one trial, freed together. Each array of numbers is one of three copies: [0] for the plain loop, [1] and [2]
   for the fast kernel with two numbers of threads. Inputs are the same in all three. */
typedef struct trial {
  ft_real *array[3][ARRAYS];
  int64_t count[ARRAYS];
  int arrays;
  double floor; /* numbers below this count as this large when errors are judged; 0: 1e-3 */
} trial;

static int trial_add(trial *t, int64_t count, double scale) {
  int64_t i;
  int copy, index = t->arrays++;
  t->count[index] = count;
  for (copy = 0; copy < 3; ++copy)
    t->array[copy][index] = (ft_real *)malloc((size_t)(count ? count : 1) * sizeof(ft_real));
  for (i = 0; i < count; ++i)
    t->array[0][index][i] = t->array[1][index][i] = t->array[2][index][i] = (ft_real)(scale * (double)random_real());
  return index;
}

/* Compares all arrays and frees them: fast near plain, to `tolerance` of the array's largest number; and the same bits
   for both numbers of threads. */
static void trial_end(trial *t, double tolerance, const char *what) {
  int a, copy;
  for (a = 0; a < t->arrays; ++a) {
    size_t bytes = (size_t)t->count[a] * sizeof(ft_real);
    double largest = t->floor > 0 ? t->floor : 1e-3, worst = 0;
    int64_t i;
    for (i = 0; i < t->count[a]; ++i) {
      double value = (double)t->array[0][a][i], error = fabs((double)t->array[1][a][i] - value);
      if (fabs(value) > largest) largest = fabs(value);
      if (!(error <= worst)) worst = error;
    }
    if (!(worst <= tolerance * largest))
      printf("%s, array %d, set %d: error %g of %g\n", what, a, test_set, worst, largest);
    CHECK(worst <= tolerance * largest);
    if (memcmp(t->array[1][a], t->array[2][a], bytes)) printf("%s, array %d: threads differ\n", what, a);
    CHECK(memcmp(t->array[1][a], t->array[2][a], bytes) == 0);
    for (copy = 0; copy < 3; ++copy) free(t->array[copy][a]);
  }
  t->arrays = 0;
}

/* Which back end and context make copy 0, 1, 2 of a trial. */
static const ft_backend *backend_of(int copy) { return copy ? fast : plain; }
static ft_context *context_of(int copy) { return copy == 0 ? context[0] : copy == 1 ? context[1] : context[2]; }

static ft_dropout_mask dropout_of(double probability) {
  ft_dropout_mask dropout;
  memset(&dropout, 0, sizeof dropout);
  dropout.probability = (float)probability, dropout.seed = 0x123456789u + (uint64_t)random_bits();
  dropout.step = 3, dropout.micro_batch = 1, dropout.site = (uint32_t)random_below(9);
  return dropout;
}

static void test_matmul_shape(int64_t m, int64_t n, int64_t k, int variant) {
  trial t;
  int a, b, c, bias, before, copy;
  int64_t c_row = n + (variant & 4 ? 5 : 0);
  memset(&t, 0, sizeof t);
  a = trial_add(&t, m * k, 1), b = trial_add(&t, n * k, 1), c = trial_add(&t, m * c_row, 1);
  bias = trial_add(&t, n, 1), before = trial_add(&t, m * c_row, 1);
  for (copy = 0; copy < 3; ++copy) {
    ft_matmul_call call;
    memset(&call, 0, sizeof call);
    call.m = m, call.n = n, call.k = k, call.c_row = c_row;
    call.a = t.array[copy][a], call.b = t.array[copy][b], call.c = t.array[copy][c];
    call.a_row = variant & 1 ? 1 : k, call.a_column = variant & 1 ? m : 1;
    call.b_row = variant & 2 ? n : 1, call.b_column = variant & 2 ? 1 : k;
    if (variant & 8) call.bias = t.array[copy][bias];
    if (variant & 16)
      call.accumulate = true;
    else if (variant & 32)
      call.activation = FT_GELU, call.before = t.array[copy][before];
    backend_of(copy)->matmul(context_of(copy), &call);
  }
  trial_end(&t, 2e-6, "matmul");
}

static void test_matmul(void) {
  static const int64_t large[][3] = {{100, 300, 600}, {433, 96, 70}, {1100, 40, 33}, {16, 768, 768},
                                     {30, 3100, 20},  {5, 70, 1000}, {200, 2, 768},  {1, 768, 768},
                                     {64, 64, 1},     {2, 768, 16},  {70, 400, 1100}};
  int i, variant;
  for (i = 0; i < 260; ++i)
    test_matmul_shape(1 + random_below(70), 1 + random_below(70), 1 + random_below(70), (int)random_below(64));
  for (i = 0; i < (int)(sizeof large / sizeof *large); ++i)
    for (variant = 0; variant < 4; ++variant)
      test_matmul_shape(large[i][0], large[i][1], large[i][2], variant | (int)random_below(16) * 4);
  test_matmul_shape(3, 4, 0, 8);
  test_matmul_shape(3300, 40, 1500, 8); /* several blocks of rows and of k, in the matrix unit */
}

/* NaN in an operand must reach every sum that it is part of, also through rounding to bfloat16. By bits. */
static int is_nan(const ft_real *x) {
  uint64_t bits = 0;
  memcpy(&bits, x, sizeof *x);
  return sizeof *x == 4 ? (bits & 0x7FFFFFFF) > 0x7F800000 : (bits << 1) > UINT64_C(0xFFE0000000000000);
}

static void test_matmul_nan(void) {
  static const uint32_t patterns[] = {0x7FC00000u, 0xFFFFFFFFu};
  ft_real a[40 * 40], c[40 * 40];
  ft_matmul_call call;
  int i, pattern;
  memset(&call, 0, sizeof call);
  call.m = call.n = call.k = call.a_row = call.b_row = call.c_row = 40, call.a_column = call.b_column = 1;
  call.a = a, call.b = a, call.c = c;
  for (pattern = 0; pattern < 2; ++pattern) {
    float value;
    memcpy(&value, &patterns[pattern], 4);
    for (i = 0; i < 40 * 40; ++i) a[i] = (ft_real)0.25;
    a[3 * 40 + 5] = (ft_real)value;
    fast->matmul(context[0], &call);
    for (i = 0; i < 40 * 40; ++i) CHECK(is_nan(&c[i]) == (i / 40 == 3 || i % 40 == 5));
  }
}

/* What a back end keeps of B changes no bit, and is dropped when a tensor is written. */
static void test_packed(void) {
  static const int64_t shapes[][3] = {{12, 70, 100}, {40, 4200, 50}, {1500, 33, 70}, {3, 40, 1100}, {70, 400, 1100}};
  const int64_t square[2] = {64, 64};
  ft_tensor *weight, *x;
  static ft_real values[2][64 * 64], y[3][64 * 64];
  int i, copy;
  for (i = 0; i < 5; ++i) {
    void *packed = NULL;
    trial t;
    int a, b, c;
    memset(&t, 0, sizeof t);
    a = trial_add(&t, shapes[i][0] * shapes[i][2], 1), b = trial_add(&t, shapes[i][1] * shapes[i][2], 1);
    c = trial_add(&t, shapes[i][0] * shapes[i][1], 1);
    for (copy = 0; copy < 3; ++copy) { /* without, made now, made before */
      ft_matmul_call call;
      memset(&call, 0, sizeof call);
      call.m = shapes[i][0], call.n = shapes[i][1], call.k = shapes[i][2];
      call.a = t.array[0][a], call.a_row = call.k, call.a_column = 1;
      call.b = t.array[0][b], call.b_row = 1, call.b_column = call.k;
      call.c = t.array[copy][c], call.c_row = call.n, call.packed = copy ? &packed : NULL;
      fast->matmul(context[copy], &call);
    }
    CHECK((packed != NULL) == (context[0]->compute_dtype == FT_BF16));
    fast->release(context[0], packed);
    trial_end(&t, 0, "packed");
  }
  weight = ft_tensor_create(context[0], FT_F32, 2, square), x = ft_tensor_create(context[0], FT_F32, 2, square);
  for (i = 0; i < 64 * 64; ++i) values[0][i] = random_real(), values[1][i] = 2 * values[0][i];
  CHECK(ft_tensor_write(context[0], x, values[0]) == FT_OK);
  ft_no_grad_begin(context[0]);
  for (copy = 0; copy < 3; ++copy) {
    if (copy != 1) CHECK(ft_tensor_write(context[0], weight, values[copy / 2]) == FT_OK);
    CHECK(ft_tensor_read(context[0], ft_linear(context[0], x, weight, NULL, FT_IDENTITY), y[copy]) == FT_OK);
  }
  ft_no_grad_end(context[0]);
  CHECK(memcmp(y[0], y[1], sizeof y[0]) == 0);
  for (i = 0; i < 64 * 64; ++i) CHECK(y[2][i] == 2 * y[0][i]);
  ft_tape_clear(context[0]);
  ft_tensor_free(weight);
  ft_tensor_free(x);
}

/* What is asked for is given, or float32 with a warning. */
static int warnings;
static void count_warnings(void *user_data, ft_log_level level, const char *message) {
  (void)user_data, (void)message;
  warnings += level == FT_LOG_WARNING;
}

static void test_compute_dtype(void) {
  ft_context_options options;
  ft_context *made;
  memset(&options, 0, sizeof options);
  options.compute_dtype = FT_BF16, options.log = count_warnings, options.threads = 1;
  made = ft_context_create(&options);
  CHECK(made && (ft_context_compute_dtype(made) == FT_BF16) == (warnings == 0));
  CHECK(ft_context_compute_dtype(made) == FT_BF16 || ft_context_compute_dtype(made) == FT_F32);
  ft_context_free(made);
}

static void test_rounding(void) { /* to the nearest of 1, 1 + 2^-7, ..; ties to even */
  CHECK(ft__round_bfloat16(1 + 1.0 / 256) == 1 && ft__round_bfloat16(1 + 3.0 / 256) == 1 + 2.0 / 128);
  CHECK(ft__round_bfloat16(1 + 1.0 / 256 + 1.0 / 65536) == 1 + 1.0 / 128 && ft__round_bfloat16(-3) == -3);
}

static void test_unary(void) {
  static const int64_t counts[] = {1, 15, 16, 17, 1000, 40000};
  int kind, i, copy;
  for (kind = FT_IDENTITY; kind <= FT_SQRT; ++kind)
    for (i = 0; i < 6; ++i) {
      trial t;
      int x, y, dy, dx;
      int64_t j;
      memset(&t, 0, sizeof t);
      t.floor = 0.1;
      x = trial_add(&t, counts[i], 6), y = trial_add(&t, counts[i], 1);
      dy = trial_add(&t, counts[i], 1), dx = trial_add(&t, counts[i], 1);
      for (j = 0; kind >= FT_LOG && j < counts[i]; ++j)
        for (copy = 0; copy < 3; ++copy) t.array[copy][x][j] = (ft_real)(fabs((double)t.array[copy][x][j]) + 0.1);
      for (copy = 0; copy < 3; ++copy) {
        backend_of(copy)->unary(context_of(copy), (ft_unary)kind, counts[i], t.array[copy][x], t.array[copy][y]);
        backend_of(copy)->unary_backward(context_of(copy), (ft_unary)kind, counts[i], t.array[copy][x],
                                         t.array[copy][y], t.array[copy][dy], t.array[copy][dx], i % 2 == 0);
      }
      trial_end(&t, 4e-6, "unary");
    }
}

/* Densely over the whole range of float, in blocks of neighbours: worst errors against libm in double. */
static void test_accuracy(void) {
  enum { BLOCK = 4096 };
  static const ft_unary kinds[] = {FT_EXP, FT_GELU, FT_GELU_TANH, FT_TANH, FT_SIGMOID, FT_SILU};
  static const double absolute[] = {1e-37, 1.5e-7, 1.5e-7, 0, 1e-37, 1e-36},
                      relative[] = {3e-7, 3e-7, 4e-7, 4e-7, 4e-7, 4e-7};
  static ft_real x[BLOCK], y[BLOCK], derivative[BLOCK], one[BLOCK];
  uint32_t bits, k, step = 200003;
  int i, count = 0;
  for (k = 0; k < 6; ++k) {
    double worst = 0, worst_x = 0, worst_derivative = 0;
    for (bits = 0; bits < 0xFF800000u - step; bits += step) {
      float value;
      if ((bits & 0x7F800000u) == 0x7F800000u) bits = 0x80000000u; /* leave out infinities and NaNs */
      memcpy(&value, &bits, 4);
      if (kinds[k] == FT_EXP && value > 88.3f) continue;
      if (fabs((double)value) > 1e18) continue; /* x^2 would overflow, also in the definition */
      x[count] = (ft_real)value, one[count++] = 1;
      if (count < BLOCK && bits < 0xFF800000u - 2 * step) continue;
      fast->unary(context[0], kinds[k], count, x, y);
      fast->unary_backward(context[0], kinds[k], count, x, y, one, derivative, false);
      for (i = 0; i < count; ++i) {
        double right = ft__unary_value(kinds[k], (double)x[i]);
        double error = fabs((double)y[i] - right) / (relative[k] * fabs(right) + absolute[k] + 1e-300);
        double slope = ft__unary_derivative(kinds[k], (double)x[i], right);
        if (error > worst) worst = error, worst_x = (double)x[i];
        error = fabs((double)derivative[i] - slope) / (2e-6 * fabs(slope) + 1e-6);
        if (error > worst_derivative) worst_derivative = error;
      }
      count = 0;
    }
    if (worst > 1 || worst_derivative > 1)
      printf("function %d: %g of the allowed error at %g, derivative %g\n", (int)kinds[k], worst, worst_x,
             worst_derivative);
    CHECK(worst <= 1);
    CHECK(worst_derivative <= 1);
  }
}

/* NaN must reach the loss, which is where training looks for it. */
static void test_nan(void) {
  static const ft_unary kinds[] = {FT_GELU, FT_GELU_TANH, FT_SILU, FT_TANH, FT_SIGMOID, FT_EXP};
  int kind, sign, i;
  for (kind = 0; kind < 6; ++kind)
    for (sign = 0; sign < 2; ++sign) {
      uint32_t bits = sign ? 0xFFC00000u : 0x7FC00000u;
      ft_real x[20], y[20];
      float value;
      memcpy(&value, &bits, 4);
      for (i = 0; i < 20; ++i) x[i] = (ft_real)(i == 3 ? value : 1.0f);
      fast->unary(context[0], kinds[kind], 20, x, y);
      CHECK(is_nan(&y[3]) && !is_nan(&y[4]));
    }
}

static void test_columns_and_squares(void) {
  static const int64_t shapes[][2] = {{1, 1}, {3, 17}, {70, 128}, {433, 131}, {200, 300}, {0, 5}};
  int i, copy;
  for (i = 0; i < 6; ++i) {
    int64_t rows = shapes[i][0], columns = shapes[i][1], count = rows * columns;
    trial t;
    double squares[3];
    int x, sum;
    memset(&t, 0, sizeof t);
    x = trial_add(&t, count, 1), sum = trial_add(&t, columns, 1);
    for (copy = 0; copy < 3; ++copy) {
      backend_of(copy)->column_sum(context_of(copy), rows, columns, t.array[copy][x], t.array[copy][sum]);
      squares[copy] = backend_of(copy)->sum_of_squares(context_of(copy), count, t.array[copy][x]);
    }
    CHECK_NEAR(squares[0], squares[1], 1e-6 * squares[0]);
    CHECK(squares[1] == squares[2]);
    trial_end(&t, 2e-6, "column_sum");
  }
}

static void test_dropout(void) {
  static const int64_t counts[] = {1, 5, 63, 64, 65, 1000, 50001};
  int i, copy;
  for (i = 0; i < 7; ++i) {
    trial t;
    ft_dropout_mask dropout = dropout_of(i == 3 ? 0 : 0.1);
    int64_t j, zeros = 0, count = counts[i];
    int x, y;
    memset(&t, 0, sizeof t);
    x = trial_add(&t, count, 1), y = trial_add(&t, count, 1);
    for (copy = 0; copy < 3; ++copy)
      backend_of(copy)->dropout(context_of(copy), count, &dropout, t.array[copy][x], t.array[copy][y], i % 2);
    for (j = 0; i == 6 && j < count; ++j) zeros += t.array[1][y][j] == 0;
    if (i == 6) CHECK_NEAR((double)zeros / (double)count, 0.1, 0.006); /* 4.5 standard deviations */
    trial_end(&t, 1e-7, "dropout");
  }
}

static void test_layer_norm_shape(int64_t rows, int64_t columns, int variant) {
  trial t;
  ft_dropout_mask dropout = dropout_of(variant & 1 ? 0.3 : 0);
  int x, residual, weight, bias, y, sum, mean, rstd, dy, dx, dr, dw, db, copy;
  int64_t count = rows * columns;
  memset(&t, 0, sizeof t);
  x = trial_add(&t, count, 1), residual = trial_add(&t, count, 1), weight = trial_add(&t, columns, 1);
  bias = trial_add(&t, columns, 1), y = trial_add(&t, count, 1), sum = trial_add(&t, count, 1);
  mean = trial_add(&t, rows, 1), rstd = trial_add(&t, rows, 1), dy = trial_add(&t, count, 1);
  dx = trial_add(&t, count, 1), dr = trial_add(&t, count, 1), dw = trial_add(&t, columns, 1);
  db = trial_add(&t, columns, 1);
  for (copy = 0; copy < 3; ++copy) {
    ft_layer_norm_call call;
    memset(&call, 0, sizeof call);
    call.rows = rows, call.columns = columns, call.dropout = dropout, call.epsilon = (ft_real)1e-2;
    call.x = t.array[copy][x], call.weight = t.array[copy][weight], call.bias = t.array[copy][bias];
    call.y = t.array[copy][y], call.sum = t.array[copy][sum];
    call.mean = t.array[copy][mean], call.rstd = t.array[copy][rstd];
    if (variant & 2) call.residual = t.array[copy][residual];
    backend_of(copy)->layer_norm(context_of(copy), &call);
    call.y_gradient = t.array[copy][dy];
    if (!(variant & 4)) call.x_gradient = t.array[copy][dx];
    if (variant & 2) call.residual_gradient = t.array[copy][dr];
    call.residual_accumulate = (variant & 8) != 0, call.x_accumulate = (variant & 16) != 0;
    if (!(variant & 16)) call.weight_gradient = t.array[copy][dw];
    if (!(variant & 32)) call.bias_gradient = t.array[copy][db];
    backend_of(copy)->layer_norm_backward(context_of(copy), &call);
  }
  trial_end(&t, 5e-6, "layer_norm");
}

static void test_layer_norm(void) {
  int i;
  for (i = 0; i < 64; ++i) test_layer_norm_shape(1 + random_below(40), 2 + random_below(90), i);
  test_layer_norm_shape(700, 33, 3);
  test_layer_norm_shape(20, 768, 3);
  test_layer_norm_shape(3, 1030, 11);
}

/* A call over texts of the given lengths, each followed by `padding` rows; x [3, T, A D] and so on. */
static void attention_call(ft_attention_call *call, const trial *t, int copy, const int *arrays, int64_t texts,
                           const int32_t *offsets, const int32_t *lengths, int64_t heads, int64_t size) {
  int64_t b;
  memset(call, 0, sizeof *call);
  call->texts = texts, call->tokens = offsets[texts], call->heads = heads, call->head_size = size;
  call->offsets = offsets, call->lengths = lengths, call->scale = (ft_real)(1 / sqrt((double)size));
  for (b = 0; b < texts; ++b)
    if (offsets[b + 1] - offsets[b] > call->longest) call->longest = offsets[b + 1] - offsets[b];
  call->query = t->array[copy][arrays[0]], call->key = t->array[copy][arrays[1]],
  call->value = t->array[copy][arrays[2]];
  call->output = t->array[copy][arrays[3]], call->log_sum = t->array[copy][arrays[4]];
  call->output_gradient = t->array[copy][arrays[5]], call->query_gradient = t->array[copy][arrays[6]];
  call->key_gradient = t->array[copy][arrays[7]], call->value_gradient = t->array[copy][arrays[8]];
}

static void attention_arrays(trial *t, int *arrays, int64_t tokens, int64_t heads, int64_t size) {
  int i;
  memset(t, 0, sizeof *t);
  t->floor = 0.1; /* gradients of a text of one token are 0, but for rounding */
  for (i = 0; i < 9; ++i) arrays[i] = trial_add(t, i == 4 ? tokens * heads : tokens * heads * size, 2);
}

static void test_attention_shape(int64_t texts, int64_t longest, int64_t heads, int64_t size, double probability,
                                 int64_t padding) {
  int32_t offsets[9], lengths[8];
  int64_t b;
  ft_dropout_mask dropout = dropout_of(probability);
  int arrays[9], copy;
  trial t;
  offsets[0] = 0;
  for (b = 0; b < texts; ++b) {
    lengths[b] = (int32_t)(b == 0 ? longest : random_below(longest + 1));
    offsets[b + 1] = offsets[b] + lengths[b] + (int32_t)(padding ? random_below(padding) : 0);
  }
  attention_arrays(&t, arrays, offsets[texts], heads, size);
  for (copy = 0; copy < 3; ++copy) {
    ft_attention_call call;
    attention_call(&call, &t, copy, arrays, texts, offsets, lengths, heads, size);
    call.dropout = dropout;
    backend_of(copy)->attention(context_of(copy), &call);
    backend_of(copy)->attention_backward(context_of(copy), &call);
  }
  trial_end(&t, context[0]->compute_dtype == FT_BF16 ? 4e-3 : 1e-5, "attention");
}

static void test_attention(void) {
  int i;
  for (i = 0; i < 24; ++i)
    test_attention_shape(1 + i % 4, 1 + random_below(70), 1 + i % 3, 4 + random_below(70), i % 2 ? 0.2 : 0,
                         i % 3 ? 0 : 9);
  test_attention_shape(2, 33, 2, 64, 0.1, 0);
  test_attention_shape(1, 200, 1, 64, 0.1, 3);
  test_attention_shape(3, 140, 2, 32, 0.1, 0); /* short and long texts */
  test_attention_shape(1, 4000, 1, 2, 0, 0);   /* more than scratch memory holds, backward */
}

/* Padding changes nothing: the same texts with and without padding rows. */
static void test_attention_padding(void) {
  static const int32_t packed_offsets[] = {0, 20, 27}, padded_offsets[] = {0, 30, 60}, lengths[] = {20, 7};
  enum { HEADS = 2, SIZE = 8, ROW = HEADS * SIZE };
  int packed_arrays[9], padded_arrays[9], a, b;
  trial packed, padded;
  ft_attention_call call;
  attention_arrays(&packed, packed_arrays, 27, HEADS, SIZE);
  attention_arrays(&padded, padded_arrays, 60, HEADS, SIZE);
  for (a = 0; a < 9; ++a)
    for (b = 0; a != 4 && b < 2; ++b)
      memcpy(padded.array[1][padded_arrays[a]] + padded_offsets[b] * ROW,
             packed.array[1][packed_arrays[a]] + packed_offsets[b] * ROW, (size_t)(lengths[b] * ROW) * sizeof(ft_real));
  attention_call(&call, &packed, 1, packed_arrays, 2, packed_offsets, lengths, HEADS, SIZE);
  call.dropout = dropout_of(0);
  fast->attention(context[0], &call), fast->attention_backward(context[0], &call);
  attention_call(&call, &padded, 1, padded_arrays, 2, padded_offsets, lengths, HEADS, SIZE);
  call.dropout = dropout_of(0);
  fast->attention(context[0], &call), fast->attention_backward(context[0], &call);
  for (a = 0; a < 9; ++a)
    for (b = 0; a != 4 && b < 2; ++b)
      CHECK(memcmp(padded.array[1][padded_arrays[a]] + padded_offsets[b] * ROW,
                   packed.array[1][packed_arrays[a]] + packed_offsets[b] * ROW,
                   (size_t)(lengths[b] * ROW) * sizeof(ft_real)) == 0);
  CHECK(padded.array[1][padded_arrays[3]][25 * ROW] == 0);
  CHECK(padded.array[1][padded_arrays[7]][59 * ROW] == 0);
  for (a = 0; a < 9; ++a)
    for (b = 0; b < 3; ++b) free(packed.array[b][packed_arrays[a]]), free(padded.array[b][padded_arrays[a]]);
}

/* With all scores equal and values that are one-hot, the output shows the mask itself: ft__attention_keeps. */
static void test_attention_mask(void) {
  enum { LENGTH = 37, HEADS = 2, SIZE = 64 };
  static const int32_t offsets[] = {0, LENGTH, 2 * LENGTH}, lengths[] = {LENGTH, LENGTH};
  int arrays[9], a, b, text, head, query, key;
  trial t;
  ft_attention_call call;
  attention_arrays(&t, arrays, 2 * LENGTH, HEADS, SIZE);
  attention_call(&call, &t, 1, arrays, 2, offsets, lengths, HEADS, SIZE);
  call.dropout = dropout_of(0.25);
  memset(t.array[1][arrays[0]], 0, (size_t)(2 * LENGTH * HEADS * SIZE) * sizeof(ft_real));
  memset(t.array[1][arrays[2]], 0, (size_t)(2 * LENGTH * HEADS * SIZE) * sizeof(ft_real));
  for (text = 0; text < 2; ++text)
    for (head = 0; head < HEADS; ++head)
      for (key = 0; key < LENGTH; ++key) t.array[1][arrays[2]][((text * LENGTH + key) * HEADS + head) * SIZE + key] = 1;
  fast->attention(context[0], &call);
  for (text = 0; text < 2; ++text)
    for (head = 0; head < HEADS; ++head)
      for (query = 0; query < LENGTH; ++query)
        for (key = 0; key < LENGTH; ++key) {
          bool kept = ft__attention_keeps(&call.dropout, text, HEADS, head, query, key);
          double value = (double)call.output[((text * LENGTH + query) * HEADS + head) * SIZE + key];
          CHECK_NEAR(value, kept ? 1 / 0.75 / LENGTH : 0, 1e-6);
        }
  for (a = 0; a < 9; ++a)
    for (b = 0; b < 3; ++b) free(t.array[b][arrays[a]]);
}

/* bfloat16, with and without the matrix unit, and float32 in three pieces on it: no other kernel uses these. */
static void test_bfloat16(bool has_tiles) {
  int i, tiles, dtype;
  bool has_pairs = context[0]->has_pairs;
  test_set = -1;
  for (tiles = 0; tiles < 2; ++tiles)
    for (dtype = 0; dtype < 2; ++dtype) {
      for (i = 0; i < THREADS; ++i) context[i]->has_tiles = tiles, context[i]->compute_dtype = dtype ? FT_BF16 : FT_F32;
      if (tiles ? !has_tiles : !has_pairs) {
        SKIP(tiles ? "no matrix unit in this processor" : "no products of bfloat16 in this processor");
        continue;
      }
      test_matmul();
      test_matmul_nan();
      test_packed();
      test_attention();
      test_attention_padding();
    }
}

static void test_embedding(void) {
  int i, copy;
  for (i = 0; i < 6; ++i) {
    enum { TOKENS = 50 };
    int32_t ids[TOKENS], positions[TOKENS], types[TOKENS];
    int64_t columns = 1 + random_below(300);
    int words, position, type, y, dy, dwords, dpositions, dtypes, token;
    trial t;
    memset(&t, 0, sizeof t);
    for (token = 0; token < TOKENS; ++token)
      ids[token] = (int32_t)random_below(20), positions[token] = token % 13, types[token] = token % 2;
    words = trial_add(&t, 20 * columns, 1), position = trial_add(&t, 13 * columns, 1),
    type = trial_add(&t, 2 * columns, 1);
    y = trial_add(&t, TOKENS * columns, 1), dy = trial_add(&t, TOKENS * columns, 1);
    dwords = trial_add(&t, 20 * columns, 1), dpositions = trial_add(&t, 13 * columns, 1);
    dtypes = trial_add(&t, 2 * columns, 1);
    for (copy = 0; copy < 3; ++copy) {
      ft_embedding_call call;
      memset(&call, 0, sizeof call);
      call.tokens = TOKENS, call.columns = columns, call.ids = ids, call.position_ids = positions;
      call.words = t.array[copy][words], call.words_rows = 20, call.y = t.array[copy][y];
      call.positions = i & 1 ? NULL : t.array[copy][position], call.positions_rows = 13;
      call.types = i & 2 ? NULL : t.array[copy][type], call.types_rows = 2;
      call.type_ids = i & 4 ? NULL : types;
      call.y_gradient = t.array[copy][dy];
      call.words_gradient = i & 1 ? NULL : t.array[copy][dwords];
      call.positions_gradient = i & 1 ? NULL : t.array[copy][dpositions];
      call.types_gradient = i & 2 ? NULL : t.array[copy][dtypes];
      backend_of(copy)->embedding(context_of(copy), &call);
      backend_of(copy)->embedding_backward(context_of(copy), &call);
    }
    trial_end(&t, 1e-6, "embedding");
  }
}

static void test_accumulate(void) {
  int64_t shape[4], contiguous[4], transposed[4], zero[4];
  int i, copy;
  for (i = 0; i < 4; ++i) {
    const int64_t *x_stride = i == 1 ? transposed : i == 2 ? zero : contiguous;
    const int64_t *y_stride = i == 3 ? zero : contiguous;
    int x, y;
    trial t;
    memset(&t, 0, sizeof t);
    shape[0] = 1, shape[1] = 30, shape[2] = 20, shape[3] = 50;
    contiguous[0] = 7, contiguous[1] = 1000, contiguous[2] = 50, contiguous[3] = 1;
    transposed[0] = 0, transposed[1] = 1, transposed[2] = 30, transposed[3] = 600;
    zero[0] = zero[1] = 0, zero[2] = 50, zero[3] = 1;
    x = trial_add(&t, 30000, 1), y = trial_add(&t, 30000, 1);
    for (copy = 0; copy < 3; ++copy)
      backend_of(copy)->accumulate(context_of(copy), shape, (ft_real)0.5, t.array[copy][x], x_stride, t.array[copy][y],
                                   y_stride);
    trial_end(&t, 1e-6, "accumulate");
  }
}

static void test_losses(void) {
  static const int64_t shapes[][2] = {{1, 2}, {16, 2}, {7, 40}, {300, 5}, {20, 5000}};
  int i, copy;
  for (i = 0; i < 5; ++i) {
    int64_t rows = shapes[i][0], columns = shapes[i][1], row;
    int32_t labels[300];
    int logits, gradient, loss, loss_gradient;
    trial t;
    memset(&t, 0, sizeof t);
    logits = trial_add(&t, rows * columns, 10), gradient = trial_add(&t, rows * columns, 1);
    loss = trial_add(&t, 1, 1), loss_gradient = trial_add(&t, 1, 1);
    for (row = 0; row < rows; ++row) labels[row] = row % 4 == 3 ? -100 : (int32_t)random_below(columns);
    for (copy = 0; copy < 3; ++copy) {
      ft_cross_entropy_call call;
      memset(&call, 0, sizeof call);
      call.rows = rows, call.columns = columns, call.labels = labels, call.divisor = (ft_real)rows;
      call.logits = t.array[copy][logits], call.loss = t.array[copy][loss];
      call.loss_gradient = t.array[copy][loss_gradient], call.logits_gradient = t.array[copy][gradient];
      backend_of(copy)->cross_entropy(context_of(copy), &call);
      backend_of(copy)->cross_entropy_backward(context_of(copy), &call);
    }
    trial_end(&t, 1e-6, "cross_entropy");
  }
}

static void test_adamw(void) {
  static const int64_t counts[] = {1, 16, 100, 40001};
  int i, copy;
  for (i = 0; i < 4; ++i) {
    int weight, gradient, first, second;
    int64_t j;
    trial t;
    memset(&t, 0, sizeof t);
    weight = trial_add(&t, counts[i], 1), gradient = trial_add(&t, counts[i], 1e-2);
    first = trial_add(&t, counts[i], 1e-2), second = trial_add(&t, counts[i], 1e-4);
    for (copy = 0; copy < 3; ++copy) {
      ft_adamw_step step;
      memset(&step, 0, sizeof step);
      for (j = 0; j < counts[i]; ++j)
        t.array[copy][second][j] = j % 10 == 1 ? 0 : (ft_real)fabs((double)t.array[copy][second][j]);
      for (j = 1; j < counts[i]; j += 20) t.array[copy][gradient][j] = 0;
      step.count = counts[i], step.weight = t.array[copy][weight], step.gradient = t.array[copy][gradient];
      step.first_moment = t.array[copy][first], step.second_moment = t.array[copy][second];
      step.gradient_scale = 0.7, step.learning_rate = 1e-3, step.beta1 = 0.9, step.beta2 = 0.999, step.epsilon = 1e-4;
      step.weight_decay = 0.01, step.step = 5;
      backend_of(copy)->adamw(context_of(copy), &step);
    }
    trial_end(&t, 1e-6, "adamw");
  }
}

/* Blocks that only decay get the same bits as in steps too short for such blocks, and as where `rows` tell them. */
static void test_adamw_zero_blocks(void) {
  enum { COUNT = 1280, SHORT = 40, COLUMNS = 80 };
  static ft_real array[3][4][COUNT];
  uint8_t rows[COUNT / COLUMNS] = {0};
  int i, j, copy;
  for (i = 0; i < COUNT; ++i) {
    bool zero = (i / 64) % 3 == 1 || (i / 64 == 6 && i % 64 != 9);
    if (i / COLUMNS % 5 > 2) zero = true;
    if (!zero) rows[i / COLUMNS] = 1;
    for (j = 0; j < 4; ++j) array[0][j][i] = j > 0 && zero ? 0 : random_real();
    array[0][3][i] = (ft_real)fabs((double)array[0][3][i]);
  }
  memcpy(array[1], array[0], sizeof array[0]);
  memcpy(array[2], array[0], sizeof array[0]);
  for (copy = 0; copy < 3; ++copy)
    for (i = 0; i < COUNT; i += copy == 1 ? SHORT : COUNT) {
      ft_adamw_step step;
      memset(&step, 0, sizeof step);
      if (copy == 2) step.rows = rows, step.columns = COLUMNS;
      step.count = copy == 1 ? SHORT : COUNT, step.weight = &array[copy][0][i], step.gradient = &array[copy][1][i];
      step.first_moment = &array[copy][2][i], step.second_moment = &array[copy][3][i];
      step.gradient_scale = 0.7, step.learning_rate = 1e-3, step.beta1 = 0.9, step.beta2 = 0.999, step.epsilon = 1e-8;
      step.weight_decay = 0.01, step.step = 5;
      fast->adamw(context[1], &step);
    }
  CHECK(memcmp(array[0], array[1], sizeof array[0]) == 0);
  CHECK(memcmp(array[0], array[2], sizeof array[0]) == 0);
}

static void test_memory(void) {
  int i;
  for (i = 0; i < 100; i += 7) {
    char *block = (char *)fast->allocate(context[0], (size_t)i);
    char written[100], seen[100];
    CHECK(block && (uintptr_t)block % 64 == 0);
    memset(written, i, sizeof written);
    fast->write(context[0], block, written, (size_t)i);
    fast->read(context[0], block, seen, (size_t)i);
    CHECK(memcmp(written, seen, (size_t)i) == 0);
    fast->zero(context[0], block, (size_t)i);
    fast->release(context[0], block);
  }
  for (i = 0; i < 3; ++i) { /* zeroed in pieces */
    size_t j, bytes = ((size_t)3 << 20) + (size_t)i * 5 - 5, wrong = 0;
    char *block = (char *)fast->allocate(context[2], bytes + 1);
    memset(block, 1, bytes + 1);
    fast->zero(context[2], block, bytes);
    for (j = 0; j < bytes; ++j) wrong += block[j] != 0;
    CHECK(wrong == 0 && block[bytes] == 1);
    fast->release(context[2], block);
  }
  CHECK(fast->allocate(context[0], SIZE_MAX) == NULL);
  fast->release(context[0], NULL);
}

static void test_all(void) {
  test_matmul();
  test_matmul_nan();
  test_unary();
  test_accuracy();
  test_nan();
  test_columns_and_squares();
  test_dropout();
  test_layer_norm();
  test_attention();
  test_attention_padding();
  test_attention_mask();
  test_embedding();
  test_accumulate();
  test_losses();
  test_adamw();
  test_adamw_zero_blocks();
}

/* The profile counts calls, and hands on every one of them. */
static void test_profile(void) {
  const ft_profile_entry *entry;
  ft_real x[70], y[70];
  int i, count = 0;
  int64_t calls = 0;
  CHECK(ft_profile_entries(context[1], &count) == NULL && count == 0);
  CHECK(ft_profile_begin(context[1]) == FT_OK && ft_profile_begin(context[1]) == FT_OK);
  for (i = 0; i < 70; ++i) x[i] = (ft_real)i;
  context[1]->backend->unary(context[1], FT_RELU, 70, x, y);
  context[1]->backend->unary(context[1], FT_RELU, 70, x, y);
  CHECK(y[69] == 69);
  CHECK(context[1]->backend->sum_of_squares(context[1], 3, x) == 5);
  entry = ft_profile_entries(context[1], &count);
  CHECK(entry && count > 20);
  for (i = 0; i < count; ++i) {
    calls += entry[i].calls;
    CHECK(entry[i].seconds >= 0 && (entry[i].calls > 0) == (entry[i].bytes > 0));
    if (strcmp(entry[i].name, "unary") == 0)
      CHECK(entry[i].calls == 2 && entry[i].bytes == (double)(4 * 70 * sizeof(ft_real)));
  }
  CHECK(calls == 3);
}

int main(void) {
  int i;
  bool has_tiles = false;
  for (i = 0; i < THREADS; ++i) {
    ft_context_options options;
    memset(&options, 0, sizeof options);
    options.threads = i + 1;
    context[i] = ft_context_create(&options);
    CHECK(context[i] != NULL);
    has_tiles = context[i]->has_tiles;
    context[i]->has_tiles = false; /* the sums' order of the other kernels, until test_bfloat16 */
  }
  fast = ft_backend_cpu();
  printf("kernels: %s\n", ft_cpu_instruction_set());
  test_memory();
  test_rounding();
  test_compute_dtype();
#if FT__FAST
  for (test_set = 0; test_set <= (int)ft__instruction_set_best(); ++test_set) test_all();
#else
  test_all();
#endif
  test_bfloat16(has_tiles);
  test_profile();
  for (i = 0; i < THREADS; ++i) ft_context_free(context[i]);
  FINISH();
}
