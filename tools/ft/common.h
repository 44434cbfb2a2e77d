/* common.h - what the commands of tools/ft.c share: the context, loading a model with its tokenizer, printing. */
#ifndef FT_COMMON_H
#define FT_COMMON_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

static void common_log(void *user_data, ft_log_level level, const char *message) {
  (void)user_data;
  fprintf(stderr, "%s%s\n", level == FT_LOG_WARNING ? "warning: " : "", message);
}

/* Warnings are told anyway; quiet leaves out the rest. */
static void common_log_warnings(void *user_data, ft_log_level level, const char *message) {
  if (level == FT_LOG_WARNING) common_log(user_data, level, message);
}

/* dtype: what --dtype says, "fp32" or "bf16". After a failure, which it tells, NULL. */
static ft_context *common_context(int threads, bool quiet, const char *dtype) {
  ft_context_options options;
  ft_context *context;
  memset(&options, 0, sizeof options);
  options.threads = threads;
  options.compute_dtype = strcmp(dtype, "bf16") == 0 ? FT_BF16 : FT_F32;
  if (options.compute_dtype == FT_F32 && strcmp(dtype, "fp32") != 0) {
    fprintf(stderr, "error: --dtype %s is unknown: fp32 or bf16\n", dtype);
    return NULL;
  }
  options.log = !quiet ? common_log : options.compute_dtype == FT_F32 ? NULL : common_log_warnings;
  context = ft_context_create(&options);
  if (!context) fprintf(stderr, "%s\n", ft_error_message(NULL));
  return context;
}

/* Says the context's error on stderr. */
static int common_failed(const ft_context *context) {
  fprintf(stderr, "error: %s\n", ft_error_message(context));
  return EXIT_FAILED;
}

static int common_usage(const char *message) {
  fprintf(stderr, "%s\n", message);
  return EXIT_USAGE;
}

/* The label in words: the probability of the class for single label, else of each class. */
static void common_probabilities(const ft_config *config, const float *logits, double *probabilities) {
  double largest = logits[0], sum = 0;
  int c;
  if (config->task == FT_TASK_MULTI_LABEL || config->labels == 1) {
    for (c = 0; c < config->labels; ++c) probabilities[c] = 1 / (1 + exp(-(double)logits[c]));
    return;
  }
  for (c = 1; c < config->labels; ++c)
    if (logits[c] > largest) largest = logits[c];
  for (c = 0; c < config->labels; ++c) sum += probabilities[c] = exp(logits[c] - largest);
  for (c = 0; c < config->labels; ++c) probabilities[c] /= sum;
}

static int common_argmax(const float *values, int count) {
  int c, best = 0;
  for (c = 1; c < count; ++c)
    if (values[c] > values[best]) best = c;
  return best;
}

static void common_print_csv_field(FILE *out, const char *text) {
  if (!strpbrk(text, ",\"\r\n")) {
    fputs(text, out);
    return;
  }
  fputc('"', out);
  for (; *text; ++text) {
    if (*text == '"') fputc('"', out);
    fputc(*text, out);
  }
  fputc('"', out);
}

#endif
