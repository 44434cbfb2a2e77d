/* freeze.c - full fine-tuning, the top layers only, the head only: what each trains, costs and reaches.

   Build:  cc -O2 examples/freeze.c -o freeze -lm
   Run:    ./freeze                               the small examples in examples/, some seconds
           ./freeze MODEL_DIR train.csv eval.csv  a pretrained model and files with a text and a label column
   Output: a table with a row for each method: how many parameters train, seconds of the first epoch and of a later one,
           memory beside the weights, the best accuracy on the evaluation texts. Where only the head trains, what the
           rest makes of each text can be kept: epochs after the first then cost next to nothing. The small model's
           weights are random, not pretrained, so that a part of it alone learns nothing; on two processor cores:

           method           trained  first epoch  later epoch     memory  accuracy
           full              207682       0.23 s      0.221 s    7.0 MiB    0.8235
           top layers         37762       0.13 s      0.130 s    5.0 MiB    0.5809
           head only            130       0.09 s      0.088 s    4.6 MiB    0.4926
           head, cached         130       0.08 s      0.001 s    5.5 MiB    0.4926 */
#define FT_IMPLEMENTATION
#include "../finetune.h"

#include <stdio.h>

typedef struct job {
  const char *directory;
  const ft_dataset *train, *evaluation;
  bool small;
} job;

typedef struct method {
  const char *name;
  int top_layers; /* how many train; -1: all, and the embeddings */
  bool cache;
  double learning_rate;
} method;

typedef struct stopwatch { /* when each epoch's evaluation ended */
  double start, first, last, accuracy;
  int epochs;
} stopwatch;

static bool watch(void *user_data, const ft_train_progress *p) {
  stopwatch *c = (stopwatch *)user_data;
  if (!p->evaluation) return true;
  c->last = ft_seconds() - c->start;
  if (c->epochs++ == 0) c->first = c->last;
  if (p->best) c->accuracy = p->evaluation->accuracy;
  return true;
}

/* The head, and with the top layers what stands between: BERT's pooler. */
static void choose(ft_model *model, int top_layers) {
  int layers = ft_model_config(model)->layers;
  int64_t i;
  if (top_layers < 0) return;
  ft_model_train_head(model);
  for (i = 0; top_layers > 0 && i < ft_model_parameter_count(model); ++i)
    if (ft_model_parameter(model, i)->layer > layers - top_layers) ft_model_train_parameter(model, i, true);
}

/* Trains a fresh copy of the model and prints its row. */
static bool run(const job *j, const method *m) {
  ft_context *context = ft_context_create(NULL);
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, j->directory);
  ft_model_options model_options = {0};
  ft_train_options options = {0};
  ft_encoded *encoded = NULL;
  ft_model *model;
  stopwatch c = {0};
  double bytes;
  bool ok;
  model_options.labels = j->train->label_count;
  model_options.label_names = j->train->label_names;
  model_options.from_config = j->small;
  model = ft_model_load(context, j->directory, &model_options);
  options.learning_rate = j->small ? 1e-3 : m->learning_rate;
  options.epochs = j->small ? 8 : 3;
  options.max_length = ft_max_length(context, model, tokenizer, 0);
  if (options.max_length > 256) options.max_length = 256;
  options.cache_frozen = m->cache;
  options.progress = watch;
  options.user_data = &c;
  c.start = ft_seconds();
  if (model) choose(model, m->top_layers);
  ok = model && tokenizer && ft_train(context, model, tokenizer, j->train, j->evaluation, &options, NULL) == FT_OK;
  if (ok && m->cache) ok = (encoded = ft_dataset_encode(context, j->train, tokenizer, options.max_length)) != NULL;
  if (ok) { /* activations, gradients and two moments, kept features */
    bytes = (double)ft_tape_peak_bytes(context) + 12.0 * (double)ft_model_size(model, true) +
            (double)ft_features_bytes(model, NULL, encoded);
    printf("%-12s %11lld %10.2f s %10.3f s %6.1f MiB %9.4f\n", m->name, (long long)ft_model_size(model, true), c.first,
           (c.last - c.first) / (c.epochs - 1), bytes / 1048576, c.accuracy);
    fflush(stdout);
  } else {
    printf("error: %s\n", ft_error_message(context));
  }
  ft_encoded_free(encoded);
  ft_model_free(model);
  ft_tokenizer_free(tokenizer);
  ft_context_free(context);
  return ok;
}

int main(int argc, char **argv) {
  job j = {0};
  method methods[] = {{"full", -1, false, 2e-5},
                      {"top layers", 2, false, 5e-5},
                      {"head only", 0, false, 1e-3},
                      {"head, cached", 0, true, 1e-3}};
  ft_context *context = ft_context_create(NULL);
  ft_dataset_options evaluation_options = {0};
  ft_dataset *all, *train = NULL, *evaluation = NULL;
  bool ok;
  size_t i;
  j.small = argc < 4;
  j.directory = j.small ? "examples/models/tiny" : argv[1];
  if (j.small) methods[1].top_layers = 1; /* of two */
  all = ft_dataset_read(context, j.small ? "examples/data/reviews.csv" : argv[2], NULL);
  if (all && j.small) { /* four fifths to train on, the rest to evaluate on */
    int64_t *order = (int64_t *)ft_allocate(context, (size_t)all->rows * sizeof *order), cut = all->rows * 4 / 5;
    if (order) ft_shuffle(order, all->rows, 42);
    train = order ? ft_dataset_select(context, all, order, cut) : NULL;
    evaluation = order ? ft_dataset_select(context, all, order + cut, all->rows - cut) : NULL;
    ft_release(context, order);
  } else if (all) {
    evaluation_options.label_names = all->label_names;
    evaluation_options.label_count = all->label_count;
    evaluation = ft_dataset_read(context, argv[3], &evaluation_options);
  }
  j.train = j.small ? train : all;
  j.evaluation = evaluation;
  ok = j.train && j.evaluation;
  if (!ok) printf("error: %s\n", ft_error_message(context));
  if (ok) printf("method           trained  first epoch  later epoch     memory  accuracy\n");
  for (i = 0; ok && i < sizeof methods / sizeof methods[0]; ++i) ok = run(&j, &methods[i]);
  ft_dataset_free(train);
  ft_dataset_free(evaluation);
  ft_dataset_free(all);
  ft_context_free(context);
  return !ok;
}
