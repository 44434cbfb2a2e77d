/* every_family.h - a small new model of each family, and texts for it. Include it after finetune.h, check.h and files.h;
   main begins with files_begin(context, directory, ...). */
#ifndef EVERY_FAMILY_H
#define EVERY_FAMILY_H
#include <stdlib.h>

enum { LAYERS = 3, ROWS = 12, BATCH = 9 };

static char directory[600]; /* one model's config.json, rewritten by each test */

/* A model of every family, 3 layers of 16. What %s holds is the family's own. */
static const char *const families[][2] = {
    {"bert", ""},
    {"roberta", ", \"pad_token_id\": 1"},
    {"xlm-roberta", ", \"pad_token_id\": 1"},
    {"camembert", ", \"pad_token_id\": 1"},
    {"albert", ", \"embedding_size\": 8"},
    {"albert", ", \"embedding_size\": 8, \"num_hidden_groups\": 3, \"inner_group_num\": 2"},
    {"albert", ", \"embedding_size\": 8, \"num_hidden_groups\": 2"},
    {"electra", ", \"embedding_size\": 8"},
    {"distilbert", ""}};
enum { FAMILIES = (int)(sizeof families / sizeof families[0]), ALBERT = 4 };

FT__UNUSED static ft_context *new_context(int threads) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.threads = threads;
  return ft_context_create(&options);
}

static ft_model *new_model(ft_context *context, int family, ft_task task, double dropout) {
  char text[1000];
  ft_model_options options;
  ft_model *model;
  if (strcmp(families[family][0], "distilbert") == 0)
    snprintf(text, sizeof text,
             "{\"model_type\": \"distilbert\", \"dim\": 16, \"n_layers\": 3, \"n_heads\": 2, \"hidden_dim\": 24,"
             " \"vocab_size\": 200, \"max_position_embeddings\": 40, \"activation\": \"gelu\"}");
  else
    snprintf(text, sizeof text,
             "{\"model_type\": \"%s\", \"hidden_size\": 16, \"num_hidden_layers\": 3, \"num_attention_heads\": 2,"
             " \"intermediate_size\": 24, \"vocab_size\": 200, \"max_position_embeddings\": 40,"
             " \"type_vocab_size\": 2, \"hidden_act\": \"gelu\", \"initializer_range\": 0.2%s}",
             families[family][0], families[family][1]);
  files_write_text(directory, "config.json", text);
  memset(&options, 0, sizeof options);
  options.from_config = true;
  options.task = task;
  options.labels = task == FT_TASK_MASKED ? 0 : task == FT_TASK_REGRESSION ? 1 : 2;
  model = ft_model_load(context, directory, &options);
  if (!model) printf("%s: %s\n", families[family][0], ft_error_message(context));
  CHECK(model != NULL);
  if (!model) exit(1);
  model->config.hidden_dropout = model->config.attention_dropout = model->config.classifier_dropout = dropout;
  return model;
}

/* Trains what stands in part `parts` and above. */
FT__UNUSED static void freeze_below(ft_model *model, int parts) {
  int64_t i;
  for (i = 0; i < ft_model_parameter_count(model); ++i)
    ft_model_train_parameter(model, i, ft_model_parameter(model, i)->layer >= parts);
}

typedef struct texts { /* 12 texts of 4 to 9 tokens; half of each is of token type 1 */
  ft_encoded encoded;
  int32_t ids[ROWS * 9], types[ROWS * 9], labels[ROWS * 9];
  int64_t offsets[ROWS + 1];
} texts;

static void texts_make(texts *t) {
  int64_t row, k, used = 0;
  memset(t, 0, sizeof *t);
  for (row = 0; row < ROWS; ++row) {
    int64_t length = 4 + row * 5 % 6;
    t->offsets[row] = used;
    for (k = 0; k < length; ++k, ++used) {
      t->ids[used] = k == 0 ? 2 : k == length - 1 ? 3 : (int32_t)(10 + (row * 31 + k * 17) % 180);
      t->types[used] = k > length / 2;
      t->labels[used] = k % 3 == 2 ? -100 : (int32_t)((row + k) % 2);
    }
  }
  t->offsets[ROWS] = used;
  t->encoded.rows = ROWS;
  t->encoded.ids = t->ids;
  t->encoded.token_types = t->types;
  t->encoded.offsets = t->offsets;
}

static const int64_t chosen[BATCH] = {5, 0, 7, 11, 3, 8, 2, 9, 6};

#endif
