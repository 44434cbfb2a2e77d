/* tokenize.h - ft tokenize: a line of ids for each line of a file. */
#ifndef FT_TOKENIZE_H
#define FT_TOKENIZE_H

/* A whole file; the caller frees. */
static char *tokenize_read(const char *path, size_t *size) {
  FILE *file = fopen(path, "rb");
  char *text = NULL;
  size_t capacity = 0, got;
  *size = 0;
  if (!file) {
    fprintf(stderr, "error: cannot open %s\n", path);
    return NULL;
  }
  do {
    char *grown = (char *)realloc(text, capacity += 1 << 20);
    if (!grown) break;
    text = grown;
    *size += got = fread(text + *size, 1, capacity - *size, file);
  } while (*size == capacity || (got > 0 && !feof(file)));
  fclose(file);
  return text;
}

/* The next line of text, split at \n only; false at the end. A last line without \n counts, an empty rest does not. */
static bool tokenize_next_line(const char *text, size_t size, size_t *position, const char **line, size_t *length) {
  const char *end;
  if (*position >= size) return false;
  *line = text + *position;
  end = (const char *)memchr(*line, '\n', size - *position);
  *length = end ? (size_t)(end - *line) : size - *position;
  *position += *length + 1;
  return true;
}

static void tokenize_print(const ft_tokenizer *tokenizer, const ft_encoding *encoding, bool explain) {
  int64_t i;
  for (i = 0; i < encoding->count; ++i) {
    const char *piece = explain ? ft_tokenizer_token(tokenizer, encoding->ids[i]) : NULL;
    if (i) putchar(' ');
    printf("%d", encoding->ids[i]);
    if (explain) printf(":%s[%d,%d)", piece ? piece : "?", encoding->begin[i], encoding->end[i]);
  }
  putchar('\n');
}

static bool tokenize_files(ft_context *context, const ft_tokenizer *tokenizer, const char *text, size_t size,
                           const char *pair, size_t pair_size, const ft_encode_options *options) {
  size_t position = 0, pair_position = 0, length, second_length = 0;
  const char *line, *second = NULL;
  ft_encoding encoding;
  bool ok = true;
  memset(&encoding, 0, sizeof encoding);
  while (ok && tokenize_next_line(text, size, &position, &line, &length)) {
    if (pair && !tokenize_next_line(pair, pair_size, &pair_position, &second, &second_length)) {
      second = "";
      second_length = 0;
    }
    ok = ft_tokenizer_encode(context, tokenizer, line, length, second, second_length, options, &encoding) == FT_OK;
    if (ok) tokenize_print(tokenizer, &encoding, options->offsets);
  }
  ft_encoding_free(&encoding);
  return ok;
}

static int command_tokenize(int argc, char **argv) {
  const char *pair_path = NULL, *truncation = "longest_first";
  long long max_length = 0;
  bool explain = false, ok;
  const arguments_option table[] = {
      {"--pair", ARGUMENT_TEXT, &pair_path, "a second file: its lines are the second texts"},
      {"--max-length", ARGUMENT_INTEGER, &max_length, "truncate to so many tokens (no truncation)"},
      {"--truncation", ARGUMENT_TEXT, &truncation, "longest_first, only_first or only_second"},
      {"--explain", ARGUMENT_FLAG, &explain, "show pieces and byte offsets"}};
  arguments_positional positional;
  ft_encode_options options;
  ft_context *context;
  ft_tokenizer *tokenizer;
  char *text = NULL, *pair = NULL;
  size_t size = 0, pair_size = 0;
  if (!arguments_parse(argc, argv, "ft tokenize DIR FILE [options]", table, ARGUMENTS_COUNT(table), &positional))
    return EXIT_USAGE;
  if (positional.count != 2) return common_usage("usage: ft tokenize DIR FILE [options]");
  memset(&options, 0, sizeof options);
  options.max_length = (int)max_length;
  options.offsets = explain;
  if (strcmp(truncation, "only_first") == 0)
    options.truncation = FT_TRUNCATE_ONLY_FIRST;
  else if (strcmp(truncation, "only_second") == 0)
    options.truncation = FT_TRUNCATE_ONLY_SECOND;
  else if (strcmp(truncation, "longest_first") != 0)
    return common_usage("--truncation is longest_first, only_first or only_second");
  if (!(context = common_context(1, false, "fp32"))) return EXIT_FAILED;
  tokenizer = ft_tokenizer_load(context, positional.value[0]);
  ok = tokenizer && (text = tokenize_read(positional.value[1], &size)) != NULL &&
       (!pair_path || (pair = tokenize_read(pair_path, &pair_size)) != NULL);
  ok = ok && tokenize_files(context, tokenizer, text, size, pair, pair_size, &options);
  if (!ok && (!tokenizer || text)) common_failed(context);
  free(text);
  free(pair);
  ft_tokenizer_free(tokenizer);
  ft_context_free(context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
