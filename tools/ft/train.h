/* train.h - ft train: fine-tune a model on a file of labelled texts, measure it, save it. */
#ifndef FT_TRAIN_H
#define FT_TRAIN_H

#ifndef _WIN32
#include <unistd.h>
#endif

typedef struct train_command {
  const char *model, *train, *evaluation, *test, *text, *pair, *label, *output, *task, *schedule, *dtype, *jsonl;
  const char *initial;
  selection chosen; /* what trains */
  long long batch_size, batch_tokens, max_length, seed, threads, accumulation, max_steps, limit;
  long long reinitialize, unfreeze_per_epoch, cache_memory;
  double epochs, learning_rate, weight_decay, warmup, max_gradient_norm, layer_decay;
  bool overwrite, no_dropout, gradient_checkpointing, keep_last, quiet, cache, no_cache, group_by_length;
  /* filled in while running */
  ft_context *context;
  ft_tokenizer *tokenizer;
  ft_model *network;
  ft_adapter *adapter; /* of method lora, else NULL */
  ft_dataset *train_set, *evaluation_set, *test_set;
  FILE *log;
  bool is_terminal;
  double best;
} train_command;

static void train_bar(const ft_train_progress *p) {
  int width = 30, filled = (int)((double)width * (double)p->step / (double)p->total_steps), k;
  fprintf(stderr, "\r[");
  for (k = 0; k < width; ++k) fputc(k < filled ? '#' : '.', stderr);
  fprintf(stderr, "] %lld/%lld epoch %.2f loss %.4f lr %.2e %.0f tokens/s %.0f s left  ", (long long)p->step,
          (long long)p->total_steps, p->epoch, p->loss, p->learning_rate, p->tokens_per_second, p->seconds_left);
  fflush(stderr);
}

static bool train_progress(void *user_data, const ft_train_progress *p) {
  train_command *c = (train_command *)user_data;
  const ft_metrics *m = p->evaluation;
  if (m) {
    double score = ft_metrics_score(m, c->evaluation_set->task);
    if (c->is_terminal) fprintf(stderr, "\n");
    fprintf(stderr, "epoch %.0f: eval loss %.4f, accuracy %.4f, F1 macro %.4f%s\n", p->epoch, m->loss, score,
            m->f1_macro, p->best ? ", best so far" : "");
    if (c->log)
      fprintf(c->log,
              "{\"event\":\"eval\",\"step\":%lld,\"epoch\":%.6g,\"eval_loss\":%.9g,\"eval_accuracy\":%.9g,"
              "\"eval_f1_macro\":%.9g,\"seconds\":%.3f}\n",
              (long long)p->step, p->epoch, m->loss, score, m->f1_macro, p->seconds);
  } else {
    if (c->is_terminal)
      train_bar(p);
    else if (!c->quiet && (p->step % 100 == 0 || p->step == p->total_steps))
      fprintf(stderr, "step %lld/%lld epoch %.2f loss %.4f lr %.2e %.0f tokens/s %.0f s left\n", (long long)p->step,
              (long long)p->total_steps, p->epoch, p->loss, p->learning_rate, p->tokens_per_second, p->seconds_left);
    if (c->log)
      fprintf(c->log,
              "{\"event\":\"step\",\"step\":%lld,\"epoch\":%.6g,\"loss\":%.9g,\"learning_rate\":%.9g,"
              "\"grad_norm\":%.9g}\n",
              (long long)p->step, p->epoch, p->loss, p->learning_rate, p->gradient_norm);
  }
  if (c->log) fflush(c->log);
  return true;
}

static bool train_same_names(const ft_config *config, const ft_dataset *dataset) {
  int i, k, found = 0;
  if (config->labels != dataset->label_count) return false;
  for (i = 0; i < config->labels; ++i)
    for (k = 0; k < dataset->label_count; ++k)
      if (strcmp(config->label_names[i], dataset->label_names[k]) == 0) ++found;
  return found == config->labels;
}

static bool train_read(train_command *c, const char *path, const ft_dataset_options *options, ft_dataset **dataset) {
  if (!path) return true;
  *dataset = ft_dataset_read(c->context, path, options);
  return *dataset != NULL;
}

/* Reads the data sets. A fine-tuned model's own label order wins where it has the same labels as the training file. */
static bool train_read_data(train_command *c) {
  ft_dataset_options options;
  ft_model_options shapes;
  ft_model *model;
  bool ok;
  memset(&options, 0, sizeof options);
  memset(&shapes, 0, sizeof shapes);
  options.text_column = c->text;
  options.pair_column = c->pair;
  options.label_column = c->label;
  options.limit = c->limit;
  options.task = strcmp(c->task, "multi-label") == 0  ? FT_TASK_MULTI_LABEL
                 : strcmp(c->task, "regression") == 0 ? FT_TASK_REGRESSION
                                                      : FT_TASK_SINGLE_LABEL;
  shapes.shapes_only = true;
  model = ft_model_load(c->context, c->model, &shapes);
  ok = model && train_read(c, c->train, &options, &c->train_set);
  options.limit = 0;
  if (ok && options.task != FT_TASK_REGRESSION) {
    options.label_names = c->train_set->label_names;
    options.label_count = c->train_set->label_count;
    if (train_same_names(ft_model_config(model), c->train_set)) {
      options.label_names = ft_model_config(model)->label_names;
      ft_dataset_free(c->train_set);
      options.limit = c->limit;
      ok = train_read(c, c->train, &options, &c->train_set);
      options.limit = 0;
    }
  }
  ok = ok && train_read(c, c->evaluation, &options, &c->evaluation_set) &&
       train_read(c, c->test, &options, &c->test_set);
  ft_model_free(model);
  return ok;
}

/* Tensors of a file replace the model's parameters of the same names. */
static bool train_apply_initial(train_command *c) {
  ft_safetensors *file = ft_safetensors_open(c->context, c->initial);
  int64_t i;
  bool ok = file != NULL;
  for (i = 0; ok && i < ft_safetensors_count(file); ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_at(file, i);
    const ft_parameter *parameter = ft_model_find(c->network, entry->name);
    float *values = (float *)malloc(((size_t)entry->count + 1) * sizeof *values);
    if (!parameter || ft_tensor_count(parameter->tensor) != entry->count) {
      fprintf(stderr, "error: %s: the model has no parameter %s of %lld elements\n", c->initial, entry->name,
              (long long)entry->count);
      ok = false;
    } else {
      ok = values && ft_safetensors_read_float(c->context, file, entry, values) == FT_OK &&
           ft_tensor_write(c->context, parameter->tensor, values) == FT_OK;
      if (!ok) common_failed(c->context);
    }
    free(values);
  }
  ft_safetensors_close(file);
  return ok;
}

static bool train_load_model(train_command *c) {
  ft_model_options options;
  memset(&options, 0, sizeof options);
  options.labels = c->train_set->label_count;
  options.label_names = c->train_set->label_names;
  options.task = c->train_set->task;
  options.seed = (uint64_t)c->seed;
  selection_options(&c->chosen, &options);
  c->network = ft_model_load(c->context, c->model, &options);
  c->tokenizer = c->network ? ft_tokenizer_load(c->context, c->model) : NULL;
  if (!c->tokenizer) {
    common_failed(c->context);
    return false;
  }
  if (c->reinitialize &&
      ft_model_reinitialize(c->context, c->network, (int)c->reinitialize, (uint64_t)c->seed) != FT_OK) {
    common_failed(c->context);
    return false;
  }
  if (!selection_apply(&c->chosen, c->network) || (c->initial && !train_apply_initial(c))) return false;
  if (!selection_is_lora(&c->chosen)) return true;
  c->adapter = adapter_create(c->context, c->network, &c->chosen.adapter, (uint64_t)c->seed);
  if (!c->adapter) common_failed(c->context);
  return c->adapter != NULL;
}

static bool train_save(train_command *c) {
  char base[4096];
  if (!c->adapter) return ft_model_save(c->context, c->network, c->tokenizer, c->output) == FT_OK;
  adapter_base_path(c->model, base);
  return ft_adapter_save(c->context, c->network, c->adapter, c->tokenizer, base, c->output) == FT_OK;
}

/* An output directory that holds a model already is left alone unless --overwrite says otherwise. */
static bool train_check_output(const train_command *c) {
  if (c->overwrite) return true;
  if (!adapter_has_file(c->output, "config.json") && !adapter_has_file(c->output, "adapter_config.json")) return true;
  fprintf(stderr,
          "error: %s already holds a run: choose another directory, or --overwrite it (a run keeps no checkpoints "
          "yet that --resume could go on from)\n",
          c->output);
  return false;
}

static bool train_run(train_command *c, ft_train_result *result) {
  ft_train_options options;
  memset(&options, 0, sizeof options);
  options.epochs = c->epochs;
  options.max_steps = c->max_steps;
  options.batch_size = (int)c->batch_size;
  options.batch_tokens = c->batch_tokens;
  options.gradient_accumulation = (int)c->accumulation;
  options.learning_rate = c->learning_rate > 0 ? c->learning_rate : selection_is_head(&c->chosen) ? 1e-3 : 0;
  options.weight_decay = c->weight_decay > 0 ? c->weight_decay : -1;
  options.warmup = c->warmup;
  ft_schedule_parse(c->schedule, &options.schedule);
  options.max_gradient_norm = c->max_gradient_norm > 0 ? c->max_gradient_norm : -1;
  options.max_length = (int)c->max_length;
  options.seed = (uint64_t)c->seed;
  options.no_dropout = c->no_dropout;
  options.group_by_length = c->group_by_length;
  options.gradient_checkpointing = c->gradient_checkpointing;
  options.keep_last = c->keep_last;
  options.adapter = c->adapter;
  options.layer_decay = c->layer_decay;
  options.unfreeze_layers_per_epoch = (int)c->unfreeze_per_epoch;
  options.cache_frozen =
      c->cache || (selection_is_head(&c->chosen) && !c->no_cache && ft_model_frozen_parts(c->network, NULL) > 0);
  options.cache_memory_limit = c->cache_memory * 1048576;
  options.progress = train_progress;
  options.user_data = c;
  if (ft_train(c->context, c->network, c->tokenizer, c->train_set, c->evaluation_set, &options, result) == FT_OK)
    return true;
  fprintf(stderr, "\n");
  common_failed(c->context);
  return false;
}

/* Metrics of the model kept. */
static bool train_measure(train_command *c, const ft_dataset *dataset, ft_metrics *metrics) {
  ft_scoring_options scoring;
  ft_encoded *encoded;
  bool ok;
  memset(metrics, 0, sizeof *metrics);
  memset(&scoring, 0, sizeof scoring);
  scoring.adapter = c->adapter;
  if (!dataset) return true;
  encoded = ft_dataset_encode(c->context, dataset, c->tokenizer,
                              ft_max_length(c->context, c->network, c->tokenizer, (int)c->max_length));
  ok = encoded && ft_evaluate(c->context, c->network, encoded, dataset, &scoring, metrics) == FT_OK;
  ft_encoded_free(encoded);
  if (!ok) common_failed(c->context);
  return ok;
}

static void train_print_row(const char *name, const ft_dataset *dataset, const ft_metrics *m) {
  if (!dataset) return;
  if (dataset->task == FT_TASK_REGRESSION)
    printf("%-6s %6lld rows  loss %.4f  R2 %.4f  MSE %.4f  MAE %.4f\n", name, (long long)dataset->rows, m->loss, m->r2,
           m->mean_squared_error, m->mean_absolute_error);
  else
    printf("%-6s %6lld rows  loss %.4f  accuracy %.4f  F1 macro %.4f  micro %.4f  weighted %.4f  Matthews %.4f\n", name,
           (long long)dataset->rows, m->loss, m->accuracy, m->f1_macro, m->f1_micro, m->f1_weighted, m->matthews);
}

static bool train_finish(train_command *c, const ft_train_result *result) {
  ft_metrics evaluation, test;
  long long trained = (long long)(ft_model_size(c->network, true) + ft_adapter_size(c->adapter));
  bool ok = train_measure(c, c->evaluation_set, &evaluation) && train_measure(c, c->test_set, &test) && train_save(c);
  if (ok) {
    if (c->is_terminal) fprintf(stderr, "\n");
    printf("method %s, %lld of %lld parameters trained, %lld steps in %.1f s, training loss %.4f", c->chosen.method,
           trained, (long long)(ft_model_size(c->network, false) + ft_adapter_size(c->adapter)),
           (long long)result->steps, result->seconds, result->train_loss);
    if (result->best_epoch) printf(", best epoch %d", result->best_epoch);
    printf("\n");
    if (result->truncated_rows)
      printf("%lld texts were cut to the maximal length\n", (long long)result->truncated_rows);
    train_print_row("eval", c->evaluation_set, &evaluation);
    train_print_row("test", c->test_set, &test);
    printf("saved in %s\n", c->output);
    if (c->log) {
      fprintf(c->log, "{\"event\":\"end\"");
      if (c->evaluation_set)
        fprintf(c->log, ",\"eval_accuracy\":%.9g", ft_metrics_score(&evaluation, c->evaluation_set->task));
      if (c->test_set) fprintf(c->log, ",\"test_accuracy\":%.9g", ft_metrics_score(&test, c->test_set->task));
      fprintf(c->log, ",\"train_loss\":%.9g,\"train_seconds\":%.3f,\"trained_parameters\":%lld}\n", result->train_loss,
              result->seconds, trained);
    }
  } else {
    common_failed(c->context);
  }
  ft_metrics_free(&evaluation);
  ft_metrics_free(&test);
  return ok;
}

static const char *train_check_usage(const train_command *c, const arguments_positional *positional) {
  ft_schedule schedule;
  if (positional->count || !c->model || !c->train || !c->output)
    return "usage: ft train --model DIR --train FILE --output-dir OUT [options]; see ft train --help";
  if (selection_check(&c->chosen)) return selection_check(&c->chosen);
  if (c->cache && c->no_cache) return "--cache and --no-cache exclude each other";
  if (c->layer_decay < 0 || c->unfreeze_per_epoch < 0 || c->cache_memory < 0 || c->cache_memory > (1 << 30))
    return "--layer-decay, --unfreeze-per-epoch and --cache-memory are not negative";
  if (selection_is_lora(&c->chosen) && (c->reinitialize || c->unfreeze_per_epoch))
    return "--reinit-layers and --unfreeze-per-epoch do not go with --method lora: its base model stays as it is";
  if (c->reinitialize < 0 || c->reinitialize > 64) return "--reinit-layers is at most the number of layers";
  if (!ft_schedule_parse(c->schedule, &schedule)) return "--schedule is linear, cosine or constant";
  if (strcmp(c->task, "single-label") != 0 && strcmp(c->task, "multi-label") != 0 && strcmp(c->task, "regression") != 0)
    return "--task is single-label, multi-label or regression";
  if (c->batch_size < 1 || c->accumulation < 1 || c->epochs <= 0 || c->max_length < 0 || c->seed < 0 || c->threads < 0)
    return "--batch-size and --gradient-accumulation are at least 1, --epochs above 0, no number is negative";
  return NULL;
}

static bool train_execute(train_command *c) {
  ft_train_result result;
  if (!train_check_output(c)) return false;
  if (c->jsonl && !(c->log = fopen(c->jsonl, "wb"))) {
    fprintf(stderr, "error: cannot write %s\n", c->jsonl);
    return false;
  }
  if (!train_read_data(c)) {
    common_failed(c->context);
    return false;
  }
  return train_load_model(c) && train_run(c, &result) && train_finish(c, &result);
}

static int command_train(int argc, char **argv) {
  train_command c;
  const char *usage;
  arguments_positional positional;
  bool ok;
  const arguments_option table[] = {
      {"--model", ARGUMENT_TEXT, &c.model, "directory of the pretrained model"},
      {"--train", ARGUMENT_TEXT, &c.train, "training texts: CSV, TSV or JSONL"},
      {"--eval", ARGUMENT_TEXT, &c.evaluation, "measured after each epoch; the best epoch's model is kept"},
      {"--test", ARGUMENT_TEXT, &c.test, "measured once, with the model kept"},
      {"--text", ARGUMENT_TEXT, &c.text, "column of texts (text, review, sentence or content)"},
      {"--pair", ARGUMENT_TEXT, &c.pair, "column of second texts (none)"},
      {"--label", ARGUMENT_TEXT, &c.label, "column of labels (label, sentiment or labels)"},
      {"--output-dir", ARGUMENT_TEXT, &c.output, "where the model is saved; with --method lora as a PEFT directory"},
      {"--overwrite", ARGUMENT_FLAG, &c.overwrite, "even if a run is there"},
      SELECTION_OPTIONS(c.chosen),
      {"--reinit-layers", ARGUMENT_INTEGER, &c.reinitialize, "give the top N layers new random weights first (0)"},
      {"--layer-decay", ARGUMENT_NUMBER, &c.layer_decay, "learning rate times this for each layer further down (1)"},
      {"--unfreeze-per-epoch", ARGUMENT_INTEGER, &c.unfreeze_per_epoch,
       "train the head alone in epoch 1, then N layers more each epoch, from the top (0: all at once)"},
      {"--cache", ARGUMENT_FLAG, &c.cache, "run what is frozen once, without dropout, and keep its output"},
      {"--no-cache", ARGUMENT_FLAG, &c.no_cache, "do not (the default but for --method head)"},
      {"--cache-memory", ARGUMENT_INTEGER, &c.cache_memory, "MiB; a larger cache is a temporary file (1024)"},
      {"--task", ARGUMENT_TEXT, &c.task, "single-label, multi-label (labels written a;b) or regression"},
      {"--epochs", ARGUMENT_NUMBER, &c.epochs, "(3)"},
      {"--max-steps", ARGUMENT_INTEGER, &c.max_steps, "stop after so many steps (as the epochs say)"},
      {"--lr", ARGUMENT_NUMBER, &c.learning_rate, "learning rate (2e-5; head 1e-3; lora 5e-4)"},
      {"--schedule", ARGUMENT_TEXT, &c.schedule, "linear, cosine or constant (linear)"},
      {"--warmup", ARGUMENT_NUMBER, &c.warmup, "steps, or a share of all if below 1 (0)"},
      {"--batch-size", ARGUMENT_INTEGER, &c.batch_size, "texts (16)"},
      {"--batch-tokens", ARGUMENT_INTEGER, &c.batch_tokens, "instead: as many texts as fit into so many tokens"},
      {"--group-by-length", ARGUMENT_FLAG, &c.group_by_length, "batches of texts of like length"},
      {"--gradient-accumulation", ARGUMENT_INTEGER, &c.accumulation, "batches to a step (1)"},
      {"--gradient-checkpointing", ARGUMENT_FLAG, &c.gradient_checkpointing,
       "run each layer again in the backward pass instead of keeping its inside: less memory, more time"},
      {"--max-length", ARGUMENT_INTEGER, &c.max_length, "tokens of a text (the tokenizer's or model's limit)"},
      {"--weight-decay", ARGUMENT_NUMBER, &c.weight_decay, "(0.01)"},
      {"--max-grad-norm", ARGUMENT_NUMBER, &c.max_gradient_norm, "clip gradients to this norm; 0: do not (1.0)"},
      {"--seed", ARGUMENT_INTEGER, &c.seed, "of shuffling, dropout and new parameters (42)"},
      {"--no-dropout", ARGUMENT_FLAG, &c.no_dropout, "train without dropout"},
      {"--keep-last", ARGUMENT_FLAG, &c.keep_last, "keep the last epoch's model, not the best"},
      {"--init", ARGUMENT_TEXT, &c.initial, "safetensors whose tensors replace parameters before training"},
      {"--limit", ARGUMENT_INTEGER, &c.limit, "use only the first N training rows"},
      {"--dtype", ARGUMENT_TEXT, &c.dtype, "fp32, or bf16: products of matrices in bfloat16 (fp32)"},
      {"--threads", ARGUMENT_INTEGER, &c.threads, "(one per processor)"},
      {"--jsonl", ARGUMENT_TEXT, &c.jsonl, "log of steps, evaluations and the end, a JSON object a line"},
      {"--quiet", ARGUMENT_FLAG, &c.quiet, "no progress on stderr"}};
  memset(&c, 0, sizeof c);
  c.chosen = selection_default();
  c.task = "single-label", c.schedule = "linear", c.dtype = "fp32";
  c.epochs = 3, c.batch_size = 16, c.accumulation = 1, c.seed = 42, c.weight_decay = 0.01, c.max_gradient_norm = 1;
  if (!arguments_parse(argc, argv, "ft train --model DIR --train FILE --output-dir OUT [options]", table,
                       ARGUMENTS_COUNT(table), &positional))
    return EXIT_USAGE;
  if ((usage = train_check_usage(&c, &positional)) != NULL) return common_usage(usage);
#ifndef _WIN32
  c.is_terminal = isatty(2) && !c.quiet;
#endif
  if (!(c.context = common_context((int)c.threads, c.quiet, c.dtype))) return EXIT_FAILED;
  ok = train_execute(&c);
  if (c.log) fclose(c.log);
  ft_adapter_free(c.adapter);
  ft_model_free(c.network);
  ft_tokenizer_free(c.tokenizer);
  ft_dataset_free(c.train_set);
  ft_dataset_free(c.evaluation_set);
  ft_dataset_free(c.test_set);
  ft_context_free(c.context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

#endif
