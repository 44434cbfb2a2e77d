/* foundation.c - memory, errors, threads and random numbers. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "counting.h"

#include <float.h>

/* ---- memory ---- */

/* A small network and its gradient: true if all of it worked. */
static bool small_step(ft_context *context, ft_tensor *x, ft_tensor *w) {
  ft_tensor *h = ft_activate(context, FT_GELU, ft_matmul(context, x, w));
  ft_tensor *y =
      ft_softmax(context, ft_divide(context, h, ft_activate(context, FT_EXP, ft_transpose(context, h, 0, 1))));
  ft_tensor *loss = ft_mean(context, ft_multiply(context, y, ft_linear(context, h, w, NULL, FT_TANH)), -1);
  bool worked = ft_backward(context, loss) == FT_OK;
  ft_tape_clear(context);
  return worked;
}

/* Everything from context to gradient, where any allocation may fail. */
static bool whole_life(counting_allocator *allocator) {
  const int64_t shape[2] = {40, 40};
  ft_context *context = counting_context(allocator, 2);
  ft_tensor *x, *w;
  bool worked;
  if (!context) return false;
  x = ft_tensor_create(context, FT_F32, 2, shape);
  w = ft_tensor_create(context, FT_F32, 2, shape);
  if (x) x->requires_gradient = true;
  if (w) w->requires_gradient = true;
  worked = small_step(context, x, w) && small_step(context, x, w);
  if (!worked) CHECK(ft_error_status(context) == FT_ERROR_MEMORY && strstr(ft_error_message(context), "out of memory"));
  ft_tensor_free(x);
  ft_tensor_free(w);
  ft_context_free(context);
  return worked;
}

static void test_allocator(void) {
  counting_allocator allocator = no_calls();
  ft_context_options options;
  int64_t total, n, failures = 0;
  CHECK(whole_life(&allocator) && allocator.live == 0 && allocator.calls > 5);
  total = allocator.calls;
  for (n = 1; n <= total; ++n) { /* each allocation in turn fails once */
    allocator = no_calls();
    allocator.fail_at = n;
    failures += !whole_life(&allocator);
    CHECK(allocator.live == 0);
  }
  CHECK(failures > total / 2);   /* the rest can do without: a thread less, a buffer not used again */
  for (n = 1; n <= total; ++n) { /* and every n-th */
    allocator = no_calls();
    allocator.fail_every = n;
    whole_life(&allocator);
    CHECK(allocator.live == 0);
  }
  memset(&options, 0, sizeof options);
  options.allocator.allocate = counting_allocate;
  CHECK(ft_context_create(&options) == NULL);
  options.allocator.allocate = NULL;
  options.allocator.release = counting_release;
  CHECK(ft_context_create(&options) == NULL);
  CHECK(strstr(ft_error_message(NULL), "allocator") != NULL && ft_error_status(NULL) != FT_OK);
  ft_context_free(NULL);
}

/* From the second step on, a step allocates nothing. */
static void test_reuse(void) {
  const int64_t shape[2] = {300, 300};
  counting_allocator allocator = no_calls();
  ft_context *context = counting_context(&allocator, 1);
  ft_tensor *x = ft_tensor_create(context, FT_F32, 2, shape), *w = ft_tensor_create(context, FT_F32, 2, shape);
  int64_t calls, peak;
  int step;
  x->requires_gradient = w->requires_gradient = true;
  CHECK(small_step(context, x, w));
  calls = allocator.calls;
  peak = ft_tape_peak_bytes(context);
  for (step = 0; step < 5; ++step) CHECK(small_step(context, x, w));
  CHECK(allocator.calls == calls);
  CHECK(ft_tape_peak_bytes(context) == peak && peak > 300 * 300 * 4);
  ft_tensor_free(x);
  ft_tensor_free(w);
  ft_context_free(context);
  CHECK(allocator.live == 0);
}

/* Blocks of an arena, and going back to a mark. */
static void test_arena(void) {
  counting_allocator allocator = no_calls();
  ft_context *context = counting_context(&allocator, 1);
  ft__arena *arena = &context->host_arena;
  int64_t before = allocator.live, i;
  char *first = (char *)ft__arena_allocate(context, arena, 100), *second;
  ft__arena_mark mark = ft__arena_here(arena);
  second = (char *)ft__arena_allocate(context, arena, 1);
  CHECK(second == first + 128); /* multiples of 64 bytes */
  memset(first, 1, 100);
  for (i = 0; i < 100; ++i) memset((char *)ft__arena_allocate(context, arena, 30000), 2, 30000);
  CHECK(arena->total == 128 + 64 + 100 * 30016 && allocator.live > before + 10);
  ft__arena_return(arena, mark);
  CHECK(arena->total == 128 && first[0] == 1 && first[99] == 1);
  for (i = 0; i < 100; ++i) CHECK(ft__arena_allocate(context, arena, 30000) != first);
  ft__arena_reset(context, arena);
  CHECK(arena->total == 0 && arena->first && !arena->first->next && arena->first->size >= 100 * 30016); /* one block */
  CHECK(ft__arena_allocate(context, arena, SIZE_MAX - 70) == NULL);
  CHECK(ft_error_status(context) == FT_ERROR_MEMORY);
  ft_context_free(context);
  CHECK(allocator.live == 0);
}

static void test_growth(ft_context *context) {
  int32_t *array = NULL;
  int64_t capacity = 0, i;
  ft__string string;
  void *memory;
  for (i = 0; i < 1000; ++i) {
    CHECK(ft__grow(context, &array, &capacity, i + 1, sizeof *array) && capacity > i && capacity < 2 * i + 32);
    array[i] = (int32_t)(i * i);
  }
  for (i = 0; i < 1000; ++i) CHECK(array[i] == (int32_t)(i * i));
  CHECK(!ft__grow(context, &array, &capacity, INT64_MAX / 4, sizeof *array)); /* too much: an error, contents stay */
  CHECK(ft_error_status(context) == FT_ERROR_MEMORY && array[999] == 999 * 999);
  ft__release(context, array);
  CHECK(ft__size_product(SIZE_MAX / 2, 3) == SIZE_MAX && ft__size_product(6, 7) == 42 && ft__size_product(5, 0) == 0);
  memset(&string, 0, sizeof string);
  string.context = context;
  for (i = 0; i < 100; ++i) ft__append_format(&string, "%d,", (int)i);
  ft__append(&string, "end");
  CHECK(!string.failed && string.length == 10 * 2 + 90 * 3 + 3 && strlen(string.text) == (size_t)string.length);
  CHECK(strncmp(string.text, "0,1,2,3,", 8) == 0 && strcmp(string.text + string.length - 6, "99,end") == 0);
  ft__string_free(&string);
  memory = ft_allocate(context, 100);
  CHECK(memory && ((char *)memory)[0] == 0 && ((char *)memory)[99] == 0);
  ft_release(context, memory);
  ft_release(context, NULL);
}

static void check_message(ft_context *context, ft_status status, const char *message) {
  CHECK(ft_error_status(context) == status);
  CHECK_TEXT(ft_error_message(context), message);
}

static void test_errors(void) {
  const int64_t shape[5] = {2, 3, 1, 1, 1}, negative[1] = {-1}, huge[4] = {1 << 20, 1 << 20, 1 << 20, 1 << 20};
  ft_context *context = ft_context_create(NULL);
  CHECK(ft_error_status(context) == FT_OK);
  CHECK_TEXT(ft_error_message(context), "");
  CHECK(!ft_tensor_create(context, FT_F32, 5, shape));
  check_message(context, FT_ERROR_SHAPE, "a tensor has 0 to 4 dimensions, not 5");
  CHECK(!ft_tensor_create(context, FT_F32, 1, negative));
  check_message(context, FT_ERROR_SHAPE, "a tensor cannot have -1 elements along dimension 0");
  CHECK(!ft_tensor_create(context, FT_F32, 4, huge));
  CHECK(ft_error_status(context) == FT_ERROR_SHAPE);
  CHECK(!ft_tensor_create(context, FT_F16, 2, shape));
  check_message(context, FT_ERROR_UNSUPPORTED, "tensors hold F32 or I32, not F16");
  ft__error(context, FT_ERROR_FILE, "%s: %d", "long", 7);
  check_message(context, FT_ERROR_FILE, "long: 7");
  ft_context_free(context);
}

/* ---- threads ---- */

typedef struct piece_count {
  int *done; /* [pieces]: how often each was run */
  int threads, wrong_threads;
  int64_t sum;
} piece_count;

static void count_piece(void *argument, int64_t piece, int thread) {
  piece_count *count = (piece_count *)argument;
  ++count->done[piece];
  if (thread < 0 || thread >= count->threads) count->wrong_threads = 1;
}

static void test_threads(int threads) {
  static const int64_t pieces[] = {0, 1, 2, 3, 4, 7, 8, 9, 63, 64, 1000, 20000};
  static int done[20000];
  ft_context_options options;
  ft_context *context;
  piece_count count;
  int64_t i, wrong = 0;
  size_t k;
  int round;
  memset(&options, 0, sizeof options);
  options.threads = threads;
  context = ft_context_create(&options);
  CHECK(context && ft_context_threads(context) >= 1 && ft_context_threads(context) <= threads);
  memset(&count, 0, sizeof count);
  count.done = done;
  count.threads = ft_context_threads(context);
  for (k = 0; k < sizeof pieces / sizeof *pieces; ++k) {
    memset(done, 0, sizeof done);
    ft__parallel_for(context, pieces[k], count_piece, &count);
    for (i = 0; i < 20000; ++i) wrong += done[i] != (i < pieces[k] ? 1 : 0);
  }
  CHECK(wrong == 0);
  memset(done, 0, sizeof done);
  for (round = 0; round < 5000; ++round) { /* one job after another, of every small size */
    ft__parallel_for(context, round % 10, count_piece, &count);
  }
  for (i = 0; i < 10; ++i) wrong += done[i] != 500 * (9 - i);
  CHECK(wrong == 0 && count.wrong_threads == 0);
  for (round = 0; round < count.threads; ++round) {
    char *scratch = (char *)ft__scratch(context, round);
    CHECK((uintptr_t)scratch % 64 == 0);
    scratch[0] = scratch[FT__SCRATCH_BYTES - 1] = 1; /* it is all there */
  }
  ft_context_free(context);
}

static void test_many_contexts(void) {
  ft_context_options options;
  int i;
  memset(&options, 0, sizeof options);
  options.threads = 4;
  for (i = 0; i < 200; ++i) { /* threads that end before they ever had work */
    ft_context *context = ft_context_create(&options);
    CHECK(context != NULL);
    ft_context_free(context);
  }
}

/* ---- random numbers ---- */

static void check_philox(const uint32_t counter[4], const uint32_t key[2], const uint32_t expected[4]) {
  uint32_t out[4];
  ft__philox(key[0], key[1], counter[0], counter[1], counter[2], counter[3], out);
  CHECK(memcmp(out, expected, sizeof out) == 0);
}

/* The known answers that Random123 is published with (kat_vectors, philox4x32 with 10 rounds). */
static void test_philox(void) {
  static const uint32_t zeros[4] = {0, 0, 0, 0}, ones[4] = {0xFFFFFFFFu, 0xFFFFFFFFu, 0xFFFFFFFFu, 0xFFFFFFFFu};
  static const uint32_t pi[4] = {0x243F6A88u, 0x85A308D3u, 0x13198A2Eu, 0x03707344u},
                        pi_key[2] = {0xA4093822u, 0x299F31D0u};
  static const uint32_t answer_zeros[4] = {0x6627E8D5u, 0xE169C58Du, 0xBC57AC4Cu, 0x9B00DBD8u};
  static const uint32_t answer_ones[4] = {0x408F276Du, 0x41C83B0Eu, 0xA20BC7C6u, 0x6D5451FDu};
  static const uint32_t answer_pi[4] = {0xD16CFE09u, 0x94FDCCEBu, 0x5001E420u, 0x24126EA1u};
  check_philox(zeros, zeros, answer_zeros);
  check_philox(ones, ones, answer_ones);
  check_philox(pi, pi_key, answer_pi);
}

/* The C++ standard demands that the 10,000th number of mt19937 with its default seed 5489 is 4123659995. */
static void test_mersenne(void) {
  ft__mersenne generator;
  uint32_t last = 0;
  int i;
  ft__mersenne_seed(&generator, 5489);
  for (i = 0; i < 10000; ++i) last = ft__mersenne_next(&generator);
  CHECK(last == 4123659995u);
}

/* torch.randperm(n, generator=torch.Generator().manual_seed(seed)), torch 2.15. */
static void test_shuffle(void) {
  static const struct {
    uint64_t seed;
    int64_t count, order[10];
  } small[] = {{0, 1, {0}},
               {0, 2, {0, 1}},
               {1, 2, {1, 0}},
               {0, 10, {4, 1, 7, 5, 3, 9, 0, 8, 6, 2}},
               {42, 10, {2, 6, 1, 8, 4, 5, 0, 9, 3, 7}},
               {43, 10, {8, 4, 9, 0, 5, 1, 6, 7, 2, 3}},
               {123456789, 10, {8, 5, 4, 6, 2, 1, 3, 9, 0, 7}},
               {4294967295u, 10, {1, 4, 6, 2, 0, 5, 8, 7, 9, 3}}};
  static const struct { /* sum of (i + 1) order[i] of 1,000 */
    uint64_t seed;
    int64_t first[3], checksum;
  } large[] = {
      {42, {542, 618, 816}, 251382058}, {7, {615, 284, 599}, 251546465}, {2147483648u, {386, 520, 839}, 251313948}};
  int64_t order[1000], i, checksum;
  size_t k;
  for (k = 0; k < sizeof small / sizeof *small; ++k) {
    ft_shuffle(order, small[k].count, small[k].seed);
    CHECK(memcmp(order, small[k].order, (size_t)small[k].count * sizeof *order) == 0);
  }
  for (k = 0; k < sizeof large / sizeof *large; ++k) {
    ft_shuffle(order, 1000, large[k].seed);
    CHECK(memcmp(order, large[k].first, sizeof large[k].first) == 0);
    for (i = checksum = 0; i < 1000; ++i) checksum += (i + 1) * order[i];
    CHECK(checksum == large[k].checksum);
  }
  ft_shuffle(order, 0, 42); /* nothing to do */
}

/* get_length_grouped_indices of transformers, for a shuffled order of 103 texts. */
static void test_group_by_length(ft_context *context) {
  static const struct {
    int64_t batch_size;
    uint64_t seed;
    int64_t first[6], checksum;
  } expected[] = {{4, 42, {36, 67, 66, 29, 27, 64}, 276280},
                  {1, 7, {36, 67, 65, 27, 100, 62}, 264438},
                  {200, 3, {36, 73, 72, 35, 71, 34}, 254829}};
  int64_t offsets[104], order[103], i, checksum;
  ft_encoded encoded;
  size_t k;
  memset(&encoded, 0, sizeof encoded);
  encoded.offsets = offsets;
  encoded.rows = 103;
  offsets[0] = 0;
  for (i = 0; i < 103; ++i) offsets[i + 1] = offsets[i] + i * 7919 % 37 + 2;
  for (k = 0; k < sizeof expected / sizeof *expected; ++k) {
    ft_shuffle(order, 103, expected[k].seed);
    CHECK(ft_group_by_length(context, &encoded, order, expected[k].batch_size) == FT_OK);
    CHECK(memcmp(order, expected[k].first, sizeof expected[k].first) == 0);
    for (i = checksum = 0; i < 103; ++i) checksum += (i + 1) * order[i];
    CHECK(checksum == expected[k].checksum);
  }
  CHECK(ft_group_by_length(context, &encoded, order, 0) == FT_ERROR_ARGUMENT);
  encoded.rows = 0;
  CHECK(ft_group_by_length(context, &encoded, order, 4) == FT_OK);
}

/* Moments of 200,000 numbers; the tolerances are five standard errors. */
static void test_normal(void) {
  const int64_t count = 200000;
  double sum = 0, squares = 0, cubes = 0, fourths = 0, products = 0, root = sqrt((double)count);
  int64_t i;
  for (i = 0; i < count; ++i) {
    double x = ft__random_normal(42, 3, (uint64_t)i), other = ft__random_normal(42, 4, (uint64_t)i);
    sum += x, squares += x * x, cubes += x * x * x, fourths += x * x * x * x, products += x * other;
  }
  CHECK_NEAR(sum / (double)count, 0, 5 / root);
  CHECK_NEAR(squares / (double)count, 1, 5 * sqrt(2.0) / root);
  CHECK_NEAR(cubes / (double)count, 0, 5 * sqrt(15.0) / root);
  CHECK_NEAR(fourths / (double)count, 3, 5 * sqrt(96.0) / root);
  CHECK_NEAR(products / (double)count, 0, 5 / root); /* streams do not know of each other */
  CHECK(ft__random_normal(42, 3, 5) == ft__random_normal(42, 3, 5));
  CHECK(ft__random_normal(42, 3, 5) != ft__random_normal(43, 3, 5));
}

/* Masks: as many zeros as the probability says, and others for each part of their place. */
static void test_dropout_masks(void) {
  const int64_t count = 100000;
  ft_dropout_mask base = {0.3f, 42, 5, 1, 17}, other[4];
  int64_t i, kept = 0, attention_kept = 0, agree[4] = {0, 0, 0, 0};
  int k;
  for (k = 0; k < 4; ++k) other[k] = base;
  other[0].seed = 43, other[1].step = 6, other[2].micro_batch = 2, other[3].site = 18;
  for (i = 0; i < count; ++i) {
    bool keeps = ft__dropout_keeps(&base, (uint64_t)i);
    kept += keeps;
    attention_kept += ft__attention_keeps(&base, i / 10000, 12, i / 1000 % 10, i / 30 % 33, i % 30);
    for (k = 0; k < 4; ++k) agree[k] += keeps == ft__dropout_keeps(&other[k], (uint64_t)i);
  }
  CHECK_NEAR((double)kept / (double)count, 0.7, 0.0073); /* five standard errors */
  CHECK_NEAR((double)attention_kept / (double)count, 0.7, 0.03);
  for (k = 0; k < 4; ++k) CHECK_NEAR((double)agree[k] / (double)count, 0.7 * 0.7 + 0.3 * 0.3, 0.008);
  base.probability = 0;
  for (i = kept = 0; i < 1000; ++i) kept += ft__dropout_keeps(&base, (uint64_t)i);
  CHECK(kept == 1000);
}

static double from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static void test_finite(void) {
  CHECK(ft_is_finite(0) && ft_is_finite(-1.5) && ft_is_finite(DBL_MAX) && ft_is_finite(-DBL_MAX) &&
        ft_is_finite(DBL_MIN));
  CHECK(!ft_is_finite(from_bits(0x7FF0000000000000u)) && !ft_is_finite(from_bits(0xFFF0000000000000u)));
  CHECK(!ft_is_finite(from_bits(0x7FF8000000000000u)) && !ft_is_finite(from_bits(0xFFF0000000000001u)));
}

int main(void) {
  double start = ft_seconds();
  ft_context *context = ft_context_create(NULL);
  test_allocator();
  test_reuse();
  test_arena();
  test_growth(context);
  test_errors();
  test_threads(1);
  test_threads(2);
  test_threads(3);
  test_threads(8);
  test_many_contexts();
  test_philox();
  test_mersenne();
  test_shuffle();
  test_group_by_length(context);
  test_normal();
  test_dropout_masks();
  test_finite();
  ft_context_free(context);
  CHECK(ft_seconds() > start);
  FINISH();
}
