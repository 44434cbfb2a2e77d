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

static void inspect_tree(const ft_model *model) {
  const ft_config *config = ft_model_config(model);
  const char *previous = "";
  int64_t i;
  int d;
  printf("%s: %d layers, hidden size %d, %d heads, intermediate size %d, vocabulary %d, positions %d, labels %d\n",
         config->model_type, config->layers, config->hidden_size, config->heads, config->intermediate_size,
         config->vocabulary_size, config->max_positions, config->labels);
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    const ft_parameter *parameter = ft_model_parameter(model, i);
    inspect_branch(parameter->name, previous);
    printf(" [");
    for (d = 0; d < parameter->tensor->dimensions; ++d)
      printf("%s%lld", d ? ", " : "", (long long)parameter->tensor->shape[d]);
    printf("]%s\n", parameter->tensor->requires_gradient ? "" : " frozen");
    previous = parameter->name;
  }
  printf("parameters: %lld total, %lld trained\n", (long long)ft_model_size(model, false),
         (long long)ft_model_size(model, true));
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

static bool inspect_hidden(ft_context *context, const ft_model *model, const ft_encoding *encoding) {
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

static bool inspect_text(ft_context *context, const ft_model *model, const char *directory, const char *text) {
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, directory);
  ft_encode_options options;
  ft_encoding encoding;
  bool ok;
  memset(&encoding, 0, sizeof encoding);
  memset(&options, 0, sizeof options);
  options.offsets = true;
  options.max_length = ft_max_length(context, model, tokenizer, 0);
  ok = options.max_length > 0 &&
       ft_tokenizer_encode(context, tokenizer, text, strlen(text), NULL, 0, &options, &encoding) == FT_OK;
  if (ok) {
    inspect_tokens(tokenizer, text, &encoding);
    ok = inspect_hidden(context, model, &encoding);
  }
  ft_encoding_free(&encoding);
  ft_tokenizer_free(tokenizer);
  return ok;
}

static int command_inspect(int argc, char **argv) {
  selection chosen = selection_default();
  long long labels = 0;
  const char *usage;
  const arguments_option options[] = {
      SELECTION_OPTIONS(chosen),
      {"--labels", ARGUMENT_INTEGER, &labels, "outputs of the head (the model's own, else 2)"}};
  arguments_positional positional;
  ft_context *context;
  ft_model_options model_options;
  ft_model *model;
  bool ok;
  if (!arguments_parse(argc, argv, "ft inspect DIR [\"some text\"] [options]", options, ARGUMENTS_COUNT(options),
                       &positional))
    return EXIT_USAGE;
  if (positional.count < 1 || positional.count > 2)
    return common_usage("usage: ft inspect DIR [\"some text\"] [options]");
  if ((usage = selection_check(&chosen)) != NULL) return common_usage(usage);
  if (!(context = common_context(0, true))) return EXIT_FAILED;
  memset(&model_options, 0, sizeof model_options);
  model_options.labels = (int)labels;
  selection_options(&chosen, &model_options);
  model_options.shapes_only = positional.count == 1;
  model = ft_model_load(context, positional.value[0], &model_options);
  if (model && !selection_apply(&chosen, model)) {
    ft_model_free(model);
    ft_context_free(context);
    return EXIT_FAILED;
  }
  ok = model && (positional.count == 1 || inspect_text(context, model, positional.value[0], positional.value[1]));
  if (ok && positional.count == 1) inspect_tree(model);
  if (!ok) common_failed(context);
  ft_model_free(model);
  ft_context_free(context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
