/* inspect.h - ft inspect: the model as a tree of its parts with shapes, and a text on its way through it. */
#ifndef FT_INSPECT_H
#define FT_INSPECT_H

/* Prints the dots-separated path's parts that differ from the previous parameter's, indented by depth. */
static void inspect_branch(const char *name, const char *previous) {
  size_t common = 0, i, start;
  int depth = 0;
  for (i = 0; name[i] && name[i] == previous[i]; ++i)
    if (name[i] == '.') common = i + 1, ++depth;
  for (start = common; strchr(name + start, '.'); start += strcspn(name + start, ".") + 1, ++depth)
    printf("%*s%.*s\n", 2 * depth, "", (int)strcspn(name + start, "."), name + start);
  printf("%*s%s", 2 * depth, "", name + start);
}

static void inspect_parameter(const ft_parameter *parameter, const char *previous) {
  int d;
  inspect_branch(parameter->name, previous);
  printf(" [");
  for (d = 0; d < parameter->tensor->dimensions; ++d)
    printf("%s%lld", d ? ", " : "", (long long)parameter->tensor->shape[d]);
  printf("]%s\n", parameter->tensor->requires_gradient ? "" : " frozen");
}

/* The model's parts, then the adapter's (or NULL). */
static void inspect_tree(const ft_model *model, const ft_adapter *adapter) {
  const ft_config *config = ft_model_config(model);
  const char *previous = "";
  int64_t i;
  printf("%s: %d layers, hidden size %d, %d heads, intermediate size %d, vocabulary %d, positions %d, labels %d\n",
         config->model_type, config->layers, config->hidden_size, config->heads, config->intermediate_size,
         config->vocabulary_size, config->max_positions, config->labels);
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    inspect_parameter(ft_model_parameter(model, i), previous);
    previous = ft_model_parameter(model, i)->name;
  }
  for (i = 0; i < ft_adapter_parameter_count(adapter); ++i) {
    inspect_parameter(ft_adapter_parameter(adapter, i), previous);
    previous = ft_adapter_parameter(adapter, i)->name;
  }
  printf("parameters: %lld total, %lld trained\n", (long long)(ft_model_size(model, false) + ft_adapter_size(adapter)),
         (long long)(ft_model_size(model, true) + ft_adapter_size(adapter)));
}

static void inspect_tokens(const ft_tokenizer *tokenizer, const char *text, const ft_encoding *encoding) {
  int64_t i;
  printf("%-16s %7s %6s %6s  %s\n", "token", "id", "begin", "end", "text");
  for (i = 0; i < encoding->count; ++i) {
    const char *piece = ft_tokenizer_token(tokenizer, encoding->ids[i]);
    printf("%-16s %7d %6d %6d  %.*s\n", piece ? piece : "?", encoding->ids[i], encoding->begin[i], encoding->end[i],
           encoding->end[i] - encoding->begin[i], text + encoding->begin[i]);
  }
}

static bool inspect_hidden(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                           const ft_encoding *encoding) {
  const ft_config *config = ft_model_config(model);
  ft_forward_options options;
  ft_output output;
  ft_batch batch;
  int64_t offsets[2];
  int layer, k;
  bool ok;
  ft_real *values = NULL;
  memset(&batch, 0, sizeof batch);
  memset(&options, 0, sizeof options);
  options.hidden_states = true;
  options.adapter = adapter;
  offsets[0] = 0, offsets[1] = encoding->count;
  ft_no_grad_begin(context);
  ok = ft_batch_set(context, &batch, encoding->ids, encoding->token_types, offsets, 1) == FT_OK &&
       ft_model_forward(context, model, &batch, &options, &output) == FT_OK &&
       (values = (ft_real *)malloc((size_t)(encoding->count * config->hidden_size) * sizeof *values)) != NULL;
  for (layer = 0; ok && layer <= config->layers; ++layer) {
    ok = ft_tensor_read(context, output.hidden_states[layer], values) == FT_OK;
    printf("%s %-3d [%lld, %d]  [CLS]:", layer ? "layer " : "embed.", layer, (long long)encoding->count,
           config->hidden_size);
    for (k = 0; k < 6 && k < config->hidden_size; ++k) printf(" %9.5f", (double)values[k]);
    printf(" ...\n");
  }
  if (ok && output.logits && (ok = ft_tensor_read(context, output.logits, values) == FT_OK)) {
    printf("logits     [1, %d]:", config->labels);
    for (k = 0; k < config->labels && k < 20; ++k) printf(" %9.5f", (double)values[k]);
    printf("\n");
  }
  ft_no_grad_end(context);
  ft_tape_clear(context);
  ft_batch_free(&batch);
  free(values);
  return ok;
}

static bool inspect_text(ft_context *context, const adapter_opened *opened, const char *text) {
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, opened->tokenizer);
  ft_encode_options options;
  ft_encoding encoding;
  bool ok;
  memset(&encoding, 0, sizeof encoding);
  memset(&options, 0, sizeof options);
  options.offsets = true;
  options.max_length = ft_max_length(context, opened->model, tokenizer, 0);
  ok = options.max_length > 0 &&
       ft_tokenizer_encode(context, tokenizer, text, strlen(text), NULL, 0, &options, &encoding) == FT_OK;
  if (ok) {
    inspect_tokens(tokenizer, text, &encoding);
    ok = inspect_hidden(context, opened->model, opened->adapter, &encoding);
  }
  ft_encoding_free(&encoding);
  ft_tokenizer_free(tokenizer);
  return ok;
}

static int command_inspect(int argc, char **argv) {
  selection chosen = selection_default();
  long long labels = 0;
  const char *usage, *base = NULL;
  const arguments_option options[] = {
      SELECTION_OPTIONS(chosen),
      {"--labels", ARGUMENT_INTEGER, &labels, "outputs of the head (the model's own, else 2)"},
      {"--base", ARGUMENT_TEXT, &base, "of a PEFT directory: its base model (the one that it names)"}};
  arguments_positional positional;
  ft_context *context;
  ft_model_options model_options;
  adapter_opened opened;
  bool ok;
  if (!arguments_parse(argc, argv, "ft inspect DIR [\"some text\"] [options]", options, ARGUMENTS_COUNT(options),
                       &positional))
    return EXIT_USAGE;
  if (positional.count < 1 || positional.count > 2)
    return common_usage("usage: ft inspect DIR [\"some text\"] [options]");
  if ((usage = selection_check(&chosen)) != NULL) return common_usage(usage);
  if (!(context = common_context(0, true, "fp32"))) return EXIT_FAILED;
  memset(&model_options, 0, sizeof model_options);
  model_options.labels = (int)labels;
  model_options.shapes_only = positional.count == 1;
  ok = selection_open(context, positional.value[0], base, &chosen, &model_options, &opened);
  if (ok && positional.count == 1) inspect_tree(opened.model, opened.adapter);
  if (ok && positional.count == 2 && !(ok = inspect_text(context, &opened, positional.value[1])))
    common_failed(context);
  adapter_close(&opened);
  ft_context_free(context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
