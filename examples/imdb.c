/* imdb.c - fine-tune a sentiment classifier on film reviews: the whole job in one file.

   Build:  cc -O2 examples/imdb.c -o imdb -lm
   Run:    ./imdb                                the small examples in examples/, under a minute
           ./imdb MODEL_DIR train.csv [eval.csv] a pretrained model and a file with a text and a label column
   Output: the model and the data, a progress bar, the accuracy after each epoch, a confusion matrix and five
           predictions with their texts; the fine-tuned model is saved in ./imdb_model. */
#define FT_IMPLEMENTATION
#include "../finetune.h"

#include <stdio.h>

static bool show_progress(void *user_data, const ft_train_progress *p) {
  (void)user_data;
  if (p->evaluation) {
    printf("\repoch %.0f: evaluation loss %.4f, accuracy %.4f%s%40s\n", p->epoch, p->evaluation->loss,
           p->evaluation->accuracy, p->best ? " (best)" : "", "");
  } else {
    int done = (int)(30 * p->step / p->total_steps), i;
    printf("\r[");
    for (i = 0; i < 30; ++i) putchar(i < done ? '#' : '.');
    printf("] step %lld/%lld  loss %.4f  %.0f tokens/s  %.0f s left   ", (long long)p->step, (long long)p->total_steps,
           p->loss, p->tokens_per_second, p->seconds_left);
  }
  fflush(stdout);
  return true;
}

static void show_data(const char *what, const ft_dataset *data) {
  int64_t row, bytes = 0, longest = 0;
  int c;
  for (row = 0; row < data->rows; ++row) {
    bytes += (int64_t)data->texts[row].length;
    if ((int64_t)data->texts[row].length > longest) longest = (int64_t)data->texts[row].length;
  }
  printf("%s: %lld texts (", what, (long long)data->rows);
  for (c = 0; c < data->label_count; ++c) {
    int64_t count = 0;
    for (row = 0; row < data->rows; ++row) count += data->labels[row] == c;
    printf("%s%lld %s", c ? ", " : "", (long long)count, data->label_names[c]);
  }
  printf("), %.0f characters on average, %lld at most\n", (double)bytes / (double)data->rows, (long long)longest);
}

static void show_confusion(const ft_dataset *data, const ft_metrics *m) {
  int truth, predicted;
  printf("\nconfusion matrix (rows: truth, columns: prediction)\n%12s", "");
  for (predicted = 0; predicted < m->classes; ++predicted) printf("%12.11s", data->label_names[predicted]);
  for (truth = 0; truth < m->classes; ++truth) {
    printf("\n%12.11s", data->label_names[truth]);
    for (predicted = 0; predicted < m->classes; ++predicted)
      printf("%12lld", (long long)m->confusion[truth * m->classes + predicted]);
  }
  printf("\n\nfive predictions\n");
}

/* The rows of a file in random order: the first four fifths to train on, the rest to evaluate on. */
static bool split(ft_context *context, const ft_dataset *all, ft_dataset **train, ft_dataset **evaluation) {
  int64_t *order = (int64_t *)ft_allocate(context, (size_t)all->rows * sizeof *order), cut = all->rows * 4 / 5;
  if (!order) return false;
  ft_shuffle(order, all->rows, 42);
  *train = ft_dataset_select(context, all, order, cut);
  *evaluation = ft_dataset_select(context, all, order + cut, all->rows - cut);
  ft_release(context, order);
  return *train && *evaluation;
}

static bool show_results(ft_context *context, const ft_model *model, const ft_tokenizer *tokenizer,
                         const ft_dataset *data, int max_length) {
  ft_encoded *encoded = ft_dataset_encode(context, data, tokenizer, max_length);
  float *logits = (float *)ft_allocate(context, (size_t)(data->rows * data->label_count) * sizeof *logits);
  ft_metrics metrics = {0};
  bool ok = encoded && logits && ft_predict(context, model, encoded, NULL, logits) == FT_OK &&
            ft_metrics_compute(context, data, logits, &metrics) == FT_OK;
  int64_t row;
  if (ok) show_confusion(data, &metrics);
  for (row = 0; ok && row < 5 && row < data->rows; ++row) {
    const float *z = logits + row * data->label_count;
    const ft_cell *text = &data->texts[row];
    int best = 0, c;
    for (c = 1; c < data->label_count; ++c) best = z[c] > z[best] ? c : best;
    printf("  predicted %s, truth %s: %.*s%s\n", data->label_names[best], data->label_names[data->labels[row]],
           (int)(text->length < 90 ? text->length : 90), text->text, text->length > 90 ? "..." : "");
  }
  if (ok) printf("\naccuracy %.4f, F1 %.4f\n", metrics.accuracy, metrics.f1_macro);
  ft_metrics_free(&metrics);
  ft_release(context, logits);
  ft_encoded_free(encoded);
  return ok;
}

int main(int argc, char **argv) {
  const bool small = argc < 3;
  const char *directory = small ? "examples/models/tiny" : argv[1];
  ft_context *context = ft_context_create(NULL);
  ft_dataset *all = ft_dataset_read(context, small ? "examples/data/reviews.csv" : argv[2], NULL);
  ft_dataset *train = NULL, *evaluation = NULL;
  ft_dataset_options evaluation_options = {0};
  ft_model_options model_options = {0};
  ft_train_options options = {0};
  ft_train_result result;
  ft_model *model = NULL;
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, directory);
  bool ok = all && tokenizer;
  if (ok && argc > 3) { /* labels numbered as in the training file */
    evaluation_options.label_names = all->label_names;
    evaluation_options.label_count = all->label_count;
    ok = (evaluation = ft_dataset_read(context, argv[3], &evaluation_options)) != NULL;
  } else if (ok) {
    ok = split(context, all, &train, &evaluation);
  }
  if (ok) {
    model_options.labels = all->label_count;
    model_options.label_names = all->label_names;
    model_options.from_config = small;
    ok = (model = ft_model_load(context, directory, &model_options)) != NULL;
  }
  if (ok) {
    printf("%s: a %s encoder with %lld parameters%s\n", directory, ft_model_config(model)->model_type,
           (long long)ft_model_size(model, false),
           small ? "; NOT pretrained, its weights are random: expect little" : "");
    show_data("training", train ? train : all);
    show_data("evaluation", evaluation);
    if (small)
      options.epochs = 8, options.learning_rate = 1e-3, options.warmup = 0.1; /* random weights have far to go */
    options.max_length = ft_max_length(context, model, tokenizer, 0);
    if (options.max_length > 256) options.max_length = 256;
    options.progress = show_progress;
    ok = ft_train(context, model, tokenizer, train ? train : all, evaluation, &options, &result) == FT_OK;
  }
  if (ok) printf("%lld steps in %.1f s; best epoch: %d\n", (long long)result.steps, result.seconds, result.best_epoch);
  ok = ok && ft_model_save(context, model, tokenizer, "imdb_model") == FT_OK;
  if (ok) printf("the model is saved in imdb_model\n");
  ok = ok && show_results(context, model, tokenizer, evaluation, options.max_length);
  if (!ok) printf("error: %s\n", ft_error_message(context));
  ft_model_free(model);
  ft_tokenizer_free(tokenizer);
  ft_dataset_free(train);
  ft_dataset_free(evaluation);
  ft_dataset_free(all);
  ft_context_free(context);
  return !ok;
}
