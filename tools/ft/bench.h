/* bench.h - ft bench: how fast training steps, scoring or tokenizing are on this machine, as one JSON line.

   The work of a training step is forward with dropout, cross-entropy, backward, clipping at 1.0, AdamW with weight
   decay 0.01, a linear schedule; in mode lora only an adapter of rank 8 and the head train. Rows are taken in file
   order; tokenizing is timed in mode tokenize alone, on one thread, whole texts; the first two steps are not counted. */
#ifndef FT_BENCH_H
#define FT_BENCH_H

#ifndef _WIN32
#include <sys/resource.h>
#endif

enum { BENCH_WARMUP = 2, BENCH_ENTRIES = 64 };

typedef struct bench_state {
  ft_context *context;
  ft_model *model;
  ft_adapter *adapter; /* of mode lora, else NULL */
  ft_tokenizer *tokenizer;
  ft_dataset *dataset;
  ft_encoded *encoded;
  ft_optimizer *optimizer;
  ft_batch batch;
  long long batch_size, steps, max_length;
  const char *mode;
  bool training, profile, gradient_checkpointing;
  ft_profile_entry warmup[BENCH_ENTRIES]; /* the profile when counting begins */
} bench_state;

static long bench_peak_mib(void) {
#ifdef _WIN32
  return 0;
#else
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
#ifdef __APPLE__
  return usage.ru_maxrss >> 20;
#else
  return usage.ru_maxrss >> 10;
#endif
#endif
}

/* ---- what the processor can do at most, on all threads at once ---- */

#if FT__FAST
enum { BENCH_K = 256, BENCH_FLOATS = 1 << 23 };

typedef struct bench_bound {
  const ft__micro *micro;
  float *memory[64]; /* of each piece */
  int64_t repeats;
} bench_bound;

/* The innermost kernel of the products over panels that stay in the first-level cache. */
static void bench_multiply(void *argument, int64_t piece, int thread) {
  const bench_bound *job = (const bench_bound *)argument;
  const ft__micro *micro = job->micro;
  float *a = job->memory[piece], *b = a + FT__TILE_ROWS * ft__packed_line(micro, BENCH_K);
  float *c = b + FT__TILE_COLUMNS * ft__packed_line(micro, BENCH_K);
  int64_t i;
  (void)thread;
  if (micro->begin) micro->begin();
  for (i = 0; i < job->repeats; ++i) micro->tile(BENCH_K, a, b, c, micro->columns, true, NULL);
  if (micro->end) micro->end();
}

/* Numbers from 1 to 2 that are two such bfloat16 numbers as well: a processor multiplies zeros at a higher clock. */
static void bench_fill(float *memory) {
  uint32_t i, word;
  for (i = 0; i < BENCH_FLOATS; ++i) {
    word = 0x3F803F80u + (i * 2654435761u >> 8 & 0x7F007Fu);
    memcpy(memory + i, &word, sizeof word);
  }
}

/* Copies memory that no cache holds. */
static void bench_copy(void *argument, int64_t piece, int thread) {
  const bench_bound *job = (const bench_bound *)argument;
  int64_t i;
  (void)thread;
  for (i = 0; i < job->repeats; ++i)
    memcpy(job->memory[piece], job->memory[piece] + BENCH_FLOATS / 2, BENCH_FLOATS / 2 * sizeof(float));
}

/* The best of five trials: GFLOP/s of the kernel for this context's products; GB/s read and written by a copy. */
static bool bench_bounds(ft_context *context, double *gflops, double *bandwidth) {
  int i, threads = ft_context_threads(context) < 64 ? ft_context_threads(context) : 64;
  bool ok = true;
  bench_bound job;
  memset(&job, 0, sizeof job);
  job.micro = ft__micro_choose(context, FT__TILE_ROWS);
  *gflops = *bandwidth = 0;
  for (i = 0; i < threads; ++i) {
    job.memory[i] = (float *)ft__cpu_allocate(context, BENCH_FLOATS * sizeof(float)); /* aligned, as tensors are */
    ok = ok && job.memory[i];
    if (ok) bench_fill(job.memory[i]);
  }
  for (i = 0; ok && i < 5; ++i) {
    double start = ft_seconds(), rate, work;
    job.repeats = 100000;
    ft__parallel_for(context, threads, bench_multiply, &job);
    work = 2.0 * job.micro->rows * job.micro->columns * BENCH_K * (double)job.repeats * threads;
    rate = 1e-9 * work / (ft_seconds() - start);
    if (rate > *gflops) *gflops = rate;
    start = ft_seconds();
    job.repeats = 8;
    ft__parallel_for(context, threads, bench_copy, &job);
    work = (double)(BENCH_FLOATS * sizeof(float)) * (double)job.repeats * threads;
    rate = 1e-9 * work / (ft_seconds() - start);
    if (rate > *bandwidth) *bandwidth = rate;
  }
  for (i = 0; i < threads; ++i) ft__cpu_release(context, job.memory[i]);
  return ok;
}
#else
static bool bench_bounds(ft_context *context, double *gflops, double *bandwidth) {
  (void)context;
  *gflops = *bandwidth = 0; /* the plain loops know no bound */
  return false;
}
#endif

static ft_forward_options bench_options(const bench_state *s) {
  ft_forward_options options;
  memset(&options, 0, sizeof options);
  options.training = s->training;
  options.adapter = s->adapter;
  options.gradient_checkpointing = s->gradient_checkpointing;
  return options;
}

static bool bench_select(bench_state *s, long long step, int64_t *rows) {
  int64_t i;
  for (i = 0; i < s->batch_size; ++i) rows[i] = (step * s->batch_size + i) % s->encoded->rows;
  return ft_batch_select(s->context, &s->batch, s->encoded, rows, s->batch_size) == FT_OK;
}

static bool bench_step(bench_state *s, long long step, const int32_t *labels, double *seconds) {
  ft_forward_options options = bench_options(s);
  ft_output output;
  ft_tensor *loss;
  double start = ft_seconds(), norm = 0;
  bool ok;
  ft_random_position(s->context, 42, step, 0);
  if (!s->training) ft_no_grad_begin(s->context);
  ok = ft_model_forward(s->context, s->model, &s->batch, &options, &output) == FT_OK;
  if (!s->training) ft_no_grad_end(s->context);
  if (ok && s->training) {
    loss = ft_model_loss(s->context, s->model, output.logits, labels, NULL, 0);
    ok = loss && ft_backward(s->context, loss) == FT_OK &&
         ft_optimizer_gradient_norm(s->context, s->optimizer, &norm) == FT_OK &&
         ft_optimizer_step(s->context, s->optimizer, 2e-5 * ft_schedule_factor(FT_SCHEDULE_LINEAR, step, 0, s->steps),
                           ft_clip_factor(norm, 1.0)) == FT_OK;
  }
  ft_tape_clear(s->context);
  *seconds = ft_seconds() - start;
  return ok;
}

/* Floating-point operations of the counted steps. Planned after they ran, so that it does not disturb them. */
static bool bench_operations(bench_state *s, int64_t *rows, double *operations) {
  ft_forward_options options = bench_options(s);
  ft_plan plan;
  long long step;
  bool ok = true;
  *operations = 0;
  if (!s->training) ft_no_grad_begin(s->context);
  for (step = BENCH_WARMUP; ok && step < s->steps; ++step) {
    ok = bench_select(s, step, rows) && ft_plan_step(s->context, s->model, &s->batch, &options, &plan) == FT_OK;
    if (ok) *operations += plan.forward_operations + plan.backward_operations;
  }
  if (!s->training) ft_no_grad_end(s->context);
  return ok;
}

static int bench_compare_entries(const void *a, const void *b) {
  double x = ((const ft_profile_entry *)a)->seconds, y = ((const ft_profile_entry *)b)->seconds;
  return x < y ? 1 : x > y ? -1 : 0;
}

/* The profile of the counted steps on stderr, what took longest first. */
static void bench_print_profile(const bench_state *s, double total) {
  ft_profile_entry entries[BENCH_ENTRIES];
  double peak = 0, bandwidth = 0, sum = 0, steps = (double)(s->steps - BENCH_WARMUP);
  int i, count = 0;
  const ft_profile_entry *given = ft_profile_entries(s->context, &count);
  for (i = 0; i < count && i < BENCH_ENTRIES; ++i) {
    entries[i] = given[i];
    entries[i].calls -= s->warmup[i].calls, entries[i].seconds -= s->warmup[i].seconds;
    entries[i].operations -= s->warmup[i].operations, entries[i].bytes -= s->warmup[i].bytes;
    sum += entries[i].seconds;
  }
  qsort(entries, (size_t)i, sizeof *entries, bench_compare_entries);
  if (!bench_bounds(s->context, &peak, &bandwidth))
    peak = bandwidth = 1e30;
  else
    fprintf(stderr, "at most %.1f GFLOP/s (the products' innermost kernel, from cache) and %.1f GB/s (a copy)\n", peak,
            bandwidth);
  fprintf(stderr, "%-24s %8s %9s %7s %9s %7s %9s\n", "back end", "calls", "ms/step", "share", "GFLOP/s", "GB/s",
          "of bound");
  for (count = i, i = 0; i < count && entries[i].calls; ++i) {
    double rate = 1e-9 * entries[i].operations / entries[i].seconds,
           flow = 1e-9 * entries[i].bytes / entries[i].seconds;
    fprintf(stderr, "%-24s %8lld %9.3f %6.1f%% %9.1f %7.1f %8.1f%%\n", entries[i].name, (long long)entries[i].calls,
            1e3 * entries[i].seconds / steps, 100 * entries[i].seconds / total, rate, flow,
            100 * (rate / peak > flow / bandwidth ? rate / peak : flow / bandwidth));
  }
  fprintf(stderr, "%-24s %8s %9.3f %6.1f%%\n", "all else", "", 1e3 * (total - sum) / steps,
          100 * (total - sum) / total);
}

static int bench_compare(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* The line of results. */
static void bench_print(const bench_state *s, double *seconds, double tokens, double operations, long peak) {
  long long step, counted = s->steps - BENCH_WARMUP;
  double total = 0;
  for (step = BENCH_WARMUP; step < s->steps; ++step) total += seconds[step];
  qsort(seconds + BENCH_WARMUP, (size_t)counted, sizeof *seconds, bench_compare);
  printf("{\"mode\":\"%s\",\"batch_size\":%lld,\"steps\":%lld,\"threads\":%d,\"kernels\":\"%s\",\"dtype\":\"%s\",",
         s->mode, s->batch_size, counted, ft_context_threads(s->context), ft_cpu_instruction_set(),
         ft_context_compute_dtype(s->context) == FT_BF16 ? "bf16" : "fp32");
  printf("\"ex_per_s\":%.3f,\"real_tok_per_s\":%.1f,\"ms_per_step\":%.2f,\"gflops\":%.1f,\"peak_rss_mib\":%ld}\n",
         (double)(counted * s->batch_size) / total, tokens / total, 1e3 * seconds[BENCH_WARMUP + counted / 2],
         operations / total * 1e-9, peak);
}

static bool bench_tokenize(bench_state *s) {
  double *seconds = (double *)malloc((size_t)s->steps * sizeof *seconds), tokens = 0;
  long long step;
  int64_t i;
  ft_encoding encoding;
  bool ok = seconds != NULL;
  memset(&encoding, 0, sizeof encoding);
  for (step = 0; ok && step < s->steps; ++step) {
    double start = ft_seconds();
    for (i = 0; ok && i < s->batch_size; ++i) {
      const ft_cell *text = &s->dataset->texts[(step * s->batch_size + i) % s->dataset->rows];
      ok = ft_tokenizer_encode(s->context, s->tokenizer, text->text, text->length, NULL, 0, NULL, &encoding) == FT_OK;
      if (step >= BENCH_WARMUP) tokens += (double)encoding.count;
    }
    seconds[step] = ft_seconds() - start;
  }
  if (ok) bench_print(s, seconds, tokens, 0, bench_peak_mib());
  ft_encoding_free(&encoding);
  free(seconds);
  return ok;
}

static bool bench_run(bench_state *s) {
  long long step;
  int64_t *rows = (int64_t *)malloc((size_t)s->batch_size * sizeof *rows), i;
  int32_t *labels = (int32_t *)malloc((size_t)s->batch_size * sizeof *labels);
  double *seconds = (double *)malloc((size_t)s->steps * sizeof *seconds), total = 0, tokens = 0, operations;
  long peak;
  bool ok = rows && labels && seconds;
  for (step = 0; ok && step < s->steps; ++step) {
    ok = bench_select(s, step, rows);
    for (i = 0; i < s->batch_size; ++i) labels[i] = (int32_t)(rows[i] % 2);
    if (step == BENCH_WARMUP && s->profile) {
      int entries = 0;
      const ft_profile_entry *entry = ft_profile_entries(s->context, &entries);
      memcpy(s->warmup, entry, (size_t)(entries < BENCH_ENTRIES ? entries : BENCH_ENTRIES) * sizeof *entry);
    }
    ok = ok && bench_step(s, step, labels, &seconds[step]);
    if (!ok || step < BENCH_WARMUP) continue;
    total += seconds[step];
    tokens += (double)s->batch.tokens;
  }
  peak = bench_peak_mib();
  ok = ok && bench_operations(s, rows, &operations);
  if (ok) bench_print(s, seconds, tokens, operations, peak);
  if (ok && s->profile) bench_print_profile(s, total);
  free(rows);
  free(labels);
  free(seconds);
  return ok;
}

/* Whether weights stand beside the configuration. A path to config.json becomes that of its directory. */
static bool bench_has_weights(const char *config, char *directory, size_t size) {
  static const char name[] = "config.json";
  char weights[4200];
  size_t length = strlen(config), end = sizeof name - 1;
  FILE *file;
  snprintf(directory, size, "%s", config);
  if (length >= end && length < size && strcmp(config + length - end, name) == 0)
    snprintf(directory, size, "%.*s", (int)(length > end ? length - end : 1), length > end ? config : ".");
  snprintf(weights, sizeof weights, "%s/model.safetensors", directory);
  file = fopen(weights, "rb");
  if (file) fclose(file);
  return file != NULL;
}

static bool bench_load(bench_state *s, const char *config, const char *tokenizer, const char *csv, const char *text) {
  char directory[4096];
  ft_model_options options;
  ft_dataset_options data;
  ft_adamw_options adamw;
  memset(&options, 0, sizeof options);
  memset(&data, 0, sizeof data);
  memset(&adamw, 0, sizeof adamw);
  options.from_config = !bench_has_weights(config, directory, sizeof directory);
  options.labels = 2;
  options.task = FT_TASK_SINGLE_LABEL;
  adamw.weight_decay = 0.01;
  data.text_column = text;
  data.unlabelled = true;
  data.limit = s->batch_size * s->steps;
  s->tokenizer = ft_tokenizer_load(s->context, tokenizer ? tokenizer : directory);
  s->dataset = s->tokenizer ? ft_dataset_read(s->context, csv, &data) : NULL;
  if (strcmp(s->mode, "tokenize") == 0) return s->dataset != NULL;
  s->model = s->dataset ? ft_model_load(s->context, options.from_config ? config : directory, &options) : NULL;
  s->encoded = s->model ? ft_dataset_encode(s->context, s->dataset, s->tokenizer, (int)s->max_length) : NULL;
  if (s->encoded && strcmp(s->mode, "lora") == 0) {
    ft_model_train_all(s->model, false);
    if (!(s->adapter = ft_adapter_create(s->context, s->model, NULL))) return false;
  }
  if (s->encoded && s->training) s->optimizer = ft_optimizer_create(s->context, s->model, s->adapter, &adamw);
  return s->encoded && (s->optimizer || !s->training);
}

static int command_bench(int argc, char **argv) {
  static const char usage[] = "ft bench --config CONFIG.json|DIR --csv FILE [--tokenizer DIR] [options]";
  const char *config = NULL, *tokenizer = NULL, *csv = NULL, *text = NULL, *dtype = "fp32";
  long long threads = 0;
  bench_state s;
  const arguments_option table[] = {
      {"--config", ARGUMENT_TEXT, &config, "config.json or its directory; random weights if there are none beside it"},
      {"--tokenizer", ARGUMENT_TEXT, &tokenizer, "directory of the tokenizer (the config's)"},
      {"--csv", ARGUMENT_TEXT, &csv, "texts, in file order"},
      {"--text", ARGUMENT_TEXT, &text, "column of texts (text, review, sentence or content)"},
      {"--mode", ARGUMENT_TEXT, &s.mode, "train, lora, predict or tokenize (train)"},
      {"--batch-size", ARGUMENT_INTEGER, &s.batch_size, "(16)"},
      {"--steps", ARGUMENT_INTEGER, &s.steps, "steps, the first two not counted (12)"},
      {"--max-length", ARGUMENT_INTEGER, &s.max_length, "(256)"},
      {"--dtype", ARGUMENT_TEXT, &dtype, "fp32 or bf16 (fp32)"},
      {"--gradient-checkpointing", ARGUMENT_FLAG, &s.gradient_checkpointing, "keep of each layer its input alone"},
      {"--profile", ARGUMENT_FLAG, &s.profile, "what each operation takes, on stderr"},
      {"--threads", ARGUMENT_INTEGER, &threads, "(one per processor)"}};
  arguments_positional positional;
  bool ok, tokenize;
  memset(&s, 0, sizeof s);
  s.batch_size = 16, s.steps = 12, s.max_length = 256, s.mode = "train";
  if (!arguments_parse(argc, argv, usage, table, ARGUMENTS_COUNT(table), &positional)) return EXIT_USAGE;
  tokenize = strcmp(s.mode, "tokenize") == 0;
  s.training = strcmp(s.mode, "train") == 0 || strcmp(s.mode, "lora") == 0;
  if (positional.count || !config || !csv || s.batch_size < 1 || s.steps <= BENCH_WARMUP ||
      (!s.training && !tokenize && strcmp(s.mode, "predict") != 0)) {
    fprintf(stderr, "usage: %s; --steps above %d, --mode train, lora, predict or tokenize\n", usage, BENCH_WARMUP);
    return EXIT_USAGE;
  }
  if (!(s.context = common_context((int)threads, true, dtype))) return EXIT_FAILED;
  ok = (!s.profile || ft_profile_begin(s.context) == FT_OK) && bench_load(&s, config, tokenizer, csv, text) &&
       (tokenize ? bench_tokenize(&s) : bench_run(&s));
  if (!ok) common_failed(s.context);
  ft_batch_free(&s.batch);
  ft_optimizer_free(s.optimizer);
  ft_encoded_free(s.encoded);
  ft_dataset_free(s.dataset);
  ft_tokenizer_free(s.tokenizer);
  ft_adapter_free(s.adapter);
  ft_model_free(s.model);
  ft_context_free(s.context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
