/* predict.h - ft predict and ft embed: scores or embeddings of the texts of a CSV file, or of one text. */
#ifndef FT_PREDICT_H
#define FT_PREDICT_H

typedef struct predict_inputs { /* what both commands load */
  ft_context *context;
  adapter_opened opened;
  ft_model *model; /* opened's */
  ft_tokenizer *tokenizer;
  ft_dataset *dataset;
  ft_encoded *encoded;
} predict_inputs;

static void predict_close(predict_inputs *in) {
  ft_encoded_free(in->encoded);
  ft_dataset_free(in->dataset);
  ft_tokenizer_free(in->tokenizer);
  adapter_close(&in->opened);
  ft_context_free(in->context);
}

static bool predict_open(predict_inputs *in, const char *directory, const char *base,
                         const ft_model_options *model_options, const char *csv, const char *text_column,
                         const char *pair_column, int max_length, int threads, const char *dtype) {
  ft_dataset_options options;
  memset(in, 0, sizeof *in);
  memset(&options, 0, sizeof options);
  options.text_column = text_column;
  options.pair_column = pair_column;
  options.unlabelled = true;
  if (!(in->context = common_context(threads, true, dtype))) return false;
  if (!adapter_open(in->context, directory, base, model_options, &in->opened)) return false;
  in->model = in->opened.model;
  in->tokenizer = ft_tokenizer_load(in->context, in->opened.tokenizer);
  if (!in->tokenizer) return false;
  if (!csv) return true;
  max_length = ft_max_length(in->context, in->model, in->tokenizer, max_length);
  in->dataset = max_length ? ft_dataset_read(in->context, csv, &options) : NULL;
  in->encoded = in->dataset ? ft_dataset_encode(in->context, in->dataset, in->tokenizer, max_length) : NULL;
  return in->encoded != NULL;
}

/* A head that came with the files: scores of one just initialised would be noise. */
static bool predict_has_head(const adapter_opened *opened) {
  int64_t i, k;
  for (i = 0; i < ft_model_parameter_count(opened->model); ++i) {
    const ft_parameter *parameter = ft_model_parameter(opened->model, i);
    bool has = parameter->loaded;
    for (k = 0; !has && k < ft_adapter_parameter_count(opened->adapter); ++k)
      has = strcmp(ft_adapter_parameter(opened->adapter, k)->name + strlen("base_model.model."), parameter->name) == 0;
    if (has) continue;
    fprintf(stderr, "error: the files have no %s: fine-tune the model first (ft train)\n", parameter->name);
    return false;
  }
  return true;
}

static void predict_print_row(const ft_config *config, const float *logits, double *probabilities, bool with_logits) {
  double score = 0;
  int c, shown = 0;
  common_probabilities(config, logits, probabilities);
  if (config->task == FT_TASK_REGRESSION) {
    printf("%.9g", (double)logits[0]);
  } else if (config->task == FT_TASK_SINGLE_LABEL) {
    c = common_argmax(logits, config->labels);
    common_print_csv_field(stdout, config->label_names[c]);
    printf(",%.9g", probabilities[c]);
  } else { /* the labels above one half; the score is the highest probability */
    for (c = 0; c < config->labels; ++c) {
      if (probabilities[c] > score) score = probabilities[c];
      if (logits[c] > 0) printf("%s%s", shown++ ? ";" : "", config->label_names[c]);
    }
    printf(",%.9g", score);
  }
  for (c = 0; with_logits && c < config->labels; ++c) printf(",%.9g", (double)logits[c]);
  printf("\n");
}

static void predict_print_json_string(const char *text, size_t length) {
  size_t i;
  putchar('"');
  for (i = 0; i < length; ++i) {
    unsigned char c = (unsigned char)text[i];
    if (c == '"' || c == '\\')
      printf("\\%c", c);
    else if (c < 0x20)
      printf("\\u%04x", c);
    else
      putchar(c);
  }
  putchar('"');
}

/* One text's tokens as a JSON object: word, bytes [start, end), label and its probability; special tokens left out. */
static bool predict_print_tokens(const predict_inputs *in, const ft_cell *text, const ft_encoding *encoding,
                                 const float *logits, double *probabilities) {
  const ft_config *config = ft_model_config(in->model);
  int64_t t;
  bool first = true;
  printf("{\"tokens\":[");
  for (t = 0; t < encoding->count; ++t) {
    int best = common_argmax(logits + t * config->labels, config->labels);
    if (encoding->end[t] <= encoding->begin[t]) continue;
    common_probabilities(config, logits + t * config->labels, probabilities);
    printf("%s{\"word\":", first ? "" : ",");
    predict_print_json_string(text->text + encoding->begin[t], (size_t)(encoding->end[t] - encoding->begin[t]));
    printf(",\"start\":%d,\"end\":%d,\"label\":", encoding->begin[t], encoding->end[t]);
    predict_print_json_string(config->label_names[best], strlen(config->label_names[best]));
    printf(",\"score\":%.9g}", probabilities[best]);
    first = false;
  }
  printf("]}\n");
  return true;
}

/* Token classification: every text is encoded once more for its offsets. */
static bool predict_tokens(const predict_inputs *in, const ft_dataset *dataset, const ft_encoded *encoded,
                           const ft_scoring_options *options, int max_length) {
  int64_t tokens = encoded->offsets[encoded->rows], row;
  size_t labels = (size_t)ft_model_config(in->model)->labels;
  float *logits = (float *)malloc(((size_t)tokens * labels + 1) * sizeof *logits);
  double *probabilities = (double *)malloc(labels * sizeof *probabilities);
  ft_encode_options encode;
  ft_encoding encoding;
  bool ok = logits && probabilities && ft_predict_tokens(in->context, in->model, encoded, options, logits) == FT_OK;
  memset(&encode, 0, sizeof encode);
  memset(&encoding, 0, sizeof encoding);
  encode.offsets = true;
  encode.max_length = max_length;
  for (row = 0; ok && row < encoded->rows; ++row) {
    const ft_cell *text = &dataset->texts[row], *pair = dataset->pairs ? &dataset->pairs[row] : NULL;
    ok = ft_tokenizer_encode(in->context, in->tokenizer, text->text, text->length, pair ? pair->text : NULL,
                             pair ? pair->length : 0, &encode, &encoding) == FT_OK &&
         predict_print_tokens(in, text, &encoding, logits + (size_t)encoded->offsets[row] * labels, probabilities);
  }
  ft_encoding_free(&encoding);
  free(logits);
  free(probabilities);
  return ok;
}

static bool predict_csv(const predict_inputs *in, const ft_scoring_options *options, bool with_logits) {
  const ft_config *config = ft_model_config(in->model);
  int64_t rows = in->encoded->rows, row;
  float *logits = (float *)malloc((size_t)(rows * config->labels + 1) * sizeof *logits);
  double *probabilities = (double *)malloc((size_t)config->labels * sizeof *probabilities);
  bool ok = logits && probabilities && ft_predict(in->context, in->model, in->encoded, options, logits) == FT_OK;
  int c;
  if (ok) {
    printf(config->task == FT_TASK_REGRESSION ? "value" : "label,score");
    for (c = 0; with_logits && c < config->labels; ++c) printf(",logit_%d", c);
    printf("\n");
    for (row = 0; row < rows; ++row)
      predict_print_row(config, logits + row * config->labels, probabilities, with_logits);
  }
  free(logits);
  free(probabilities);
  return ok;
}

/* The label and its probability, then a bar for each label. */
static void predict_print_bars(const ft_config *config, const float *logits, double *probabilities) {
  int c, k, best = common_argmax(logits, config->labels);
  common_probabilities(config, logits, probabilities);
  if (config->task == FT_TASK_REGRESSION) {
    printf("%.9g\n", (double)logits[0]);
    return;
  }
  printf("%s %.4f\n", config->label_names[best], probabilities[best]);
  for (c = 0; c < config->labels; ++c) {
    printf("  %-20s %.4f ", config->label_names[c], probabilities[c]);
    for (k = 0; k < (int)(40 * probabilities[c] + 0.5); ++k) putchar('#');
    putchar('\n');
  }
}

static bool predict_text(const predict_inputs *in, const ft_scoring_options *options, const char *text,
                         int max_length) {
  const ft_config *config = ft_model_config(in->model);
  double *probabilities = (double *)malloc((size_t)config->labels * sizeof *probabilities);
  float *logits = (float *)malloc((size_t)config->labels * sizeof *logits);
  ft_cell cell;
  ft_dataset one;
  ft_encoded *encoded;
  bool ok;
  memset(&one, 0, sizeof one);
  cell.text = text;
  cell.length = strlen(text);
  one.rows = 1;
  one.texts = &cell;
  max_length = ft_max_length(in->context, in->model, in->tokenizer, max_length);
  encoded = max_length ? ft_dataset_encode(in->context, &one, in->tokenizer, max_length) : NULL;
  if (encoded && config->task == FT_TASK_TOKENS) {
    ok = predict_tokens(in, &one, encoded, options, max_length);
  } else {
    ok = probabilities && logits && encoded && ft_predict(in->context, in->model, encoded, options, logits) == FT_OK;
    if (ok) predict_print_bars(config, logits, probabilities);
  }
  ft_encoded_free(encoded);
  free(probabilities);
  free(logits);
  return ok;
}

static int command_predict(int argc, char **argv) {
  static const char usage[] = "ft predict DIR (\"some text\" | --csv FILE [--text COLUMN]) [options]";
  const char *csv = NULL, *text_column = NULL, *pair_column = NULL, *base = NULL, *dtype = "fp32";
  long long batch_size = 32, max_length = 0, threads = 0;
  bool with_logits = false, ok;
  ft_scoring_options scoring;
  const arguments_option table[] = {
      {"--csv", ARGUMENT_TEXT, &csv, "score every row of this CSV, TSV or JSONL file"},
      {"--text", ARGUMENT_TEXT, &text_column, "the column of texts (text, review, sentence or content)"},
      {"--pair", ARGUMENT_TEXT, &pair_column, "the column of second texts (none)"},
      {"--logits", ARGUMENT_FLAG, &with_logits, "add the logits, 9 significant digits"},
      {"--base", ARGUMENT_TEXT, &base, "of a PEFT directory: its base model (the one that it names)"},
      {"--batch-size", ARGUMENT_INTEGER, &batch_size, "texts at a time (32)"},
      {"--max-length", ARGUMENT_INTEGER, &max_length, "tokens of a text (the tokenizer's or model's limit)"},
      {"--dtype", ARGUMENT_TEXT, &dtype, "fp32, or bf16: products of matrices in bfloat16 (fp32)"},
      {"--threads", ARGUMENT_INTEGER, &threads, "(one per processor)"}};
  arguments_positional positional;
  predict_inputs in;
  if (!arguments_parse(argc, argv, usage, table, ARGUMENTS_COUNT(table), &positional)) return EXIT_USAGE;
  if (positional.count != (csv ? 1 : 2)) {
    fprintf(stderr, "usage: %s\n", usage);
    return EXIT_USAGE;
  }
  memset(&scoring, 0, sizeof scoring);
  ok = predict_open(&in, positional.value[0], base, NULL, csv, text_column, pair_column, (int)max_length, (int)threads,
                    dtype);
  if (!ok && in.context) common_failed(in.context);
  if (ok && (ok = predict_has_head(&in.opened))) {
    scoring.batch_size = (int)batch_size;
    scoring.adapter = in.opened.adapter;
    if (!csv)
      ok = predict_text(&in, &scoring, positional.value[1], (int)max_length);
    else if (ft_model_config(in.model)->task == FT_TASK_TOKENS)
      ok = predict_tokens(&in, in.dataset, in.encoded, &scoring,
                          ft_max_length(in.context, in.model, in.tokenizer, (int)max_length));
    else
      ok = predict_csv(&in, &scoring, with_logits);
    if (!ok) common_failed(in.context);
  }
  predict_close(&in);
  return ok ? EXIT_OK : EXIT_FAILED;
}

static int command_embed(int argc, char **argv) {
  static const char usage[] = "ft embed DIR --csv FILE --out FILE.safetensors [--text COLUMN] [options]";
  static const char *const metadata[] = {"format", "pt"};
  const char *csv = NULL, *text_column = NULL, *pool = "mean", *out = NULL, *base = NULL, *dtype = "fp32";
  long long batch_size = 32, max_length = 0, threads = 0;
  bool normalize = false, ok;
  const arguments_option table[] = {
      {"--csv", ARGUMENT_TEXT, &csv, "embed every row of this CSV, TSV or JSONL file"},
      {"--text", ARGUMENT_TEXT, &text_column, "the column of texts (text, review, sentence or content)"},
      {"--pool", ARGUMENT_TEXT, &pool, "cls: the first token's hidden state; mean: over all tokens (mean)"},
      {"--normalize", ARGUMENT_FLAG, &normalize, "scale every embedding to length 1"},
      {"--out", ARGUMENT_TEXT, &out, "the file to write: embeddings F32 [rows, hidden size]"},
      {"--base", ARGUMENT_TEXT, &base, "of a PEFT directory: its base model (the one that it names)"},
      {"--batch-size", ARGUMENT_INTEGER, &batch_size, "texts at a time (32)"},
      {"--max-length", ARGUMENT_INTEGER, &max_length, "tokens of a text (the tokenizer's or model's limit)"},
      {"--dtype", ARGUMENT_TEXT, &dtype, "fp32, or bf16: products of matrices in bfloat16 (fp32)"},
      {"--threads", ARGUMENT_INTEGER, &threads, "(one per processor)"}};
  arguments_positional positional;
  predict_inputs in;
  ft_model_options options;
  ft_scoring_options scoring;
  ft_safetensors_item item;
  float *embeddings = NULL;
  if (!arguments_parse(argc, argv, usage, table, ARGUMENTS_COUNT(table), &positional)) return EXIT_USAGE;
  if (positional.count != 1 || !csv || !out || (strcmp(pool, "cls") != 0 && strcmp(pool, "mean") != 0)) {
    fprintf(stderr, "usage: %s\n", usage);
    return EXIT_USAGE;
  }
  memset(&options, 0, sizeof options);
  memset(&scoring, 0, sizeof scoring);
  scoring.batch_size = (int)batch_size;
  options.encoder_only = true;
  ok = predict_open(&in, positional.value[0], base, &options, csv, text_column, NULL, (int)max_length, (int)threads,
                    dtype);
  if (ok) {
    scoring.adapter = in.opened.adapter;
    memset(&item, 0, sizeof item);
    item.name = "embeddings";
    item.dimensions = 2;
    item.shape[0] = in.encoded->rows;
    item.shape[1] = ft_model_config(in.model)->hidden_size;
    item.data = embeddings = (float *)malloc((size_t)(item.shape[0] * item.shape[1] + 1) * sizeof *embeddings);
    ok = embeddings &&
         ft_embed(in.context, in.model, in.encoded, &scoring, strcmp(pool, "mean") == 0, normalize, embeddings) ==
             FT_OK &&
         ft_safetensors_write(in.context, out, &item, 1, metadata, 2) == FT_OK;
  }
  if (!ok && in.context) common_failed(in.context);
  free(embeddings);
  predict_close(&in);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
