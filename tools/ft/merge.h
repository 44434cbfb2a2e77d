/* merge.h - ft merge: an adapter written into its base model, as a plain model directory. */
#ifndef FT_MERGE_H
#define FT_MERGE_H

static int command_merge(int argc, char **argv) {
  static const char usage[] = "ft merge ADAPTER --output-dir OUT [--base DIR]";
  const char *output = NULL, *base = NULL;
  bool overwrite = false, ok;
  const arguments_option table[] = {
      {"--output-dir", ARGUMENT_TEXT, &output, "where the model is saved"},
      {"--base", ARGUMENT_TEXT, &base, "directory of the base model (the one that the adapter names)"},
      {"--overwrite", ARGUMENT_FLAG, &overwrite, "even if a model is there"}};
  arguments_positional positional;
  ft_context *context;
  ft_tokenizer *tokenizer = NULL;
  adapter_opened opened;
  if (!arguments_parse(argc, argv, usage, table, ARGUMENTS_COUNT(table), &positional)) return EXIT_USAGE;
  if (positional.count != 1 || !output) {
    fprintf(stderr, "usage: %s\n", usage);
    return EXIT_USAGE;
  }
  if (!overwrite && adapter_has_file(output, "config.json")) {
    fprintf(stderr, "error: %s already holds a model: choose another directory, or --overwrite it\n", output);
    return EXIT_FAILED;
  }
  if (!(context = common_context(0, true, "fp32"))) return EXIT_FAILED;
  ok = adapter_open(context, positional.value[0], base, NULL, &opened);
  if (ok && !opened.adapter)
    ok = ft_error_set(context, FT_ERROR_ARGUMENT, "this is no PEFT directory: it has no adapter_config.json") == FT_OK;
  ok = ok && (tokenizer = ft_tokenizer_load(context, opened.tokenizer)) != NULL &&
       ft_adapter_merge(context, opened.model, opened.adapter) == FT_OK &&
       ft_model_save(context, opened.model, tokenizer, output) == FT_OK;
  if (ok)
    printf("saved in %s\n", output);
  else
    common_failed(context);
  ft_tokenizer_free(tokenizer);
  adapter_close(&opened);
  ft_context_free(context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
