/* plan.h - ft plan: what memory and how many operations a training step takes, from config.json alone. */
#ifndef FT_PLAN_H
#define FT_PLAN_H

/* The step of `texts` texts of `length` tokens each, without and with gradient checkpointing. */
static bool plan_steps(ft_context *context, const adapter_opened *opened, int64_t texts, int64_t length,
                       ft_plan plans[2]) {
  bool small = texts * length <= 1 << 28;
  int32_t *ids = small ? (int32_t *)calloc((size_t)(texts * length), sizeof *ids) : NULL;
  int64_t *offsets = (int64_t *)calloc((size_t)texts + 1, sizeof *offsets), i;
  ft_forward_options options;
  ft_batch batch;
  bool ok = ids && offsets;
  if (!ok) ft_error_set(context, FT_ERROR_MEMORY, "a batch of this size does not fit into memory");
  memset(&batch, 0, sizeof batch);
  memset(&options, 0, sizeof options);
  options.training = true;
  options.adapter = opened->adapter;
  for (i = 0; ok && i <= texts; ++i) offsets[i] = i * length;
  ok = ok && ft_batch_set(context, &batch, ids, NULL, offsets, texts) == FT_OK;
  for (i = 0; ok && i < 2; ++i) {
    options.gradient_checkpointing = i == 1;
    ok = ft_plan_step(context, opened->model, &batch, &options, &plans[i]) == FT_OK;
  }
  ft_batch_free(&batch);
  free(ids);
  free(offsets);
  return ok;
}

static void plan_row(const char *name, const char *unit, double plain, double checkpointed) {
  printf("%-12s %14.1f %26.1f  %s\n", name, plain, checkpointed, unit);
}

static void plan_print(const ft_plan *plain, const ft_plan *checkpointed) {
  const double mib = 1.0 / 1048576, giga = 1e-9;
  printf("%-12s %14s %26s\n", "", "without", "--gradient-checkpointing");
  plan_row("weights", "MiB", mib * (double)plain->weights, mib * (double)checkpointed->weights);
  plan_row("gradients", "MiB", mib * (double)plain->gradients, mib * (double)checkpointed->gradients);
  plan_row("moments", "MiB", mib * (double)plain->moments, mib * (double)checkpointed->moments);
  plan_row("activations", "MiB", mib * (double)plain->activations, mib * (double)checkpointed->activations);
  plan_row("peak", "MiB", mib * (double)plain->total, mib * (double)checkpointed->total);
  plan_row("forward", "GFLOP", giga * plain->forward_operations, giga * checkpointed->forward_operations);
  plan_row("backward", "GFLOP", giga * plain->backward_operations, giga * checkpointed->backward_operations);
  printf(
      "beside it: the best epoch's parameters, %.1f MiB; %.0f MiB a thread for kernels; the texts and their tokens\n",
      mib * (double)plain->gradients, mib * (double)FT__SCRATCH_BYTES);
}

static int command_plan(int argc, char **argv) {
  static const char usage[] = "ft plan --model DIR|CONFIG.json [options]";
  selection chosen = selection_default();
  const char *model = NULL, *base = NULL, *wrong;
  long long labels = 0, batch_size = 16, max_length = 0;
  const arguments_option table[] = {
      {"--model", ARGUMENT_TEXT, &model, "directory, or config.json alone: no weights are read"},
      {"--batch-size", ARGUMENT_INTEGER, &batch_size, "texts (16)"},
      {"--max-length", ARGUMENT_INTEGER, &max_length, "tokens of each text (the model's positions)"},
      {"--labels", ARGUMENT_INTEGER, &labels, "outputs of the head (the model's own, else 2)"},
      {"--base", ARGUMENT_TEXT, &base, "of a PEFT directory: its base model (the one that it names)"},
      SELECTION_OPTIONS(chosen)};
  arguments_positional positional;
  ft_model_options options;
  adapter_opened opened;
  ft_context *context;
  ft_plan plans[2];
  bool ok;
  if (!arguments_parse(argc, argv, usage, table, ARGUMENTS_COUNT(table), &positional)) return EXIT_USAGE;
  if (positional.count || !model) return common_usage("usage: ft plan --model DIR|CONFIG.json [options]");
  if ((wrong = selection_check(&chosen)) != NULL) return common_usage(wrong);
  if (batch_size < 1 || batch_size > 1 << 20 || max_length < 0 || max_length > 1 << 20)
    return common_usage("--batch-size is 1 to 1048576, --max-length at most the model's positions");
  if (!(context = common_context(1, true, "fp32"))) return EXIT_FAILED;
  memset(&options, 0, sizeof options);
  options.shapes_only = true;
  options.labels = (int)labels;
  ok = selection_open(context, model, base, &chosen, &options, &opened);
  if (ok) {
    const ft_config *config = ft_model_config(opened.model);
    if (!max_length || max_length > config->max_positions) max_length = config->max_positions;
    if ((ok = plan_steps(context, &opened, batch_size, max_length, plans)) == false) common_failed(context);
    if (ok)
      printf("%s, %d layers of %d; %lld of %lld parameters train; %lld texts of %lld tokens\n", config->model_type,
             config->layers, config->hidden_size,
             (long long)(ft_model_size(opened.model, true) + ft_adapter_size(opened.adapter)),
             (long long)(ft_model_size(opened.model, false) + ft_adapter_size(opened.adapter)), batch_size, max_length);
  }
  if (ok) plan_print(&plans[0], &plans[1]);
  adapter_close(&opened);
  ft_context_free(context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
