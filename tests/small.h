/* small.h - what tests that train need: a few labelled texts in memory, and a small model of tests/golden with dropout.
   Include it after finetune.h and check.h. */
#ifndef SMALL_H
#define SMALL_H
#include <stdlib.h>

/* Each word is one token of the golden models' vocabulary, so a text of n words has n + 2 tokens. Labels 0 and 1. */
FT__UNUSED static const char small_csv[] =
    "text,label\n"
    "well well this man never was first,1\n"      /* line 2: 9 tokens */
    "no,0\n"                                      /* 3: 3 */
    "it is long,0\n"                              /* 4: 5 */
    "the first man is even less,1\n"              /* 5: 8 */
    "this was never long,1\n"                     /* 6: 6 */
    "less is no less,0\n"                         /* 7: 6 */
    "we were well,1\n"                            /* 8: 5 */
    "it was no man,0\n"                           /* 9: 6 */
    "for the long of it he is well and first,1\n" /* 10: 12 */
    "as it is,0\n"                                /* 11: 5 */
    "never,1\n"                                   /* 12: 3 */
    "no no no no,0\n"                             /* 13: 6 */
    "be first,1\n"                                /* 14: 4 */
    "less or even less,0\n";                      /* 15: 6 */
enum { SMALL_ROWS = 14 };

typedef struct small_data {
  ft_table *table;
  ft_dataset *dataset; /* its texts are the table's */
} small_data;

FT__UNUSED static small_data small_parse(ft_context *context, const char *csv, const ft_dataset_options *options) {
  small_data data;
  data.table = ft_table_parse(context, csv, strlen(csv), "words.csv", FT_TABLE_CSV);
  data.dataset = ft_dataset_from_table(context, data.table, options);
  if (!data.dataset) printf("%s\n", ft_error_message(context));
  CHECK(data.dataset != NULL);
  if (!data.dataset) exit(1);
  return data;
}

FT__UNUSED static void small_free(small_data *data) {
  ft_dataset_free(data->dataset);
  ft_table_free(data->table);
}

/* A model of tests/golden. Their configurations have no dropout; this gives one. */
FT__UNUSED static ft_model *small_model(ft_context *context, const char *directory, double dropout) {
  ft_model *model = ft_model_load(context, directory, NULL);
  if (!model) printf("%s\n", ft_error_message(context));
  CHECK(model != NULL);
  if (!model) exit(1);
  model->config.hidden_dropout = model->config.attention_dropout = model->config.classifier_dropout = dropout;
  return model;
}

/* All parameters one after another [ft_model_size]; the caller frees. */
FT__UNUSED static ft_real *small_weights(ft_context *context, const ft_model *model) {
  ft_real *weights = (ft_real *)malloc((size_t)ft_model_size(model, false) * sizeof *weights);
  int64_t i, used = 0;
  CHECK(weights != NULL);
  if (!weights) exit(1);
  for (i = 0; i < ft_model_parameter_count(model); ++i) {
    const ft_tensor *tensor = ft_model_parameter(model, i)->tensor;
    CHECK(ft_tensor_read(context, tensor, weights + used) == FT_OK);
    used += ft_tensor_count(tensor);
  }
  return weights;
}

#endif
