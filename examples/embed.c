/* embed.c - search by meaning: sentence embeddings from an encoder, and the texts of a file nearest to a query.

   Build:  cc -O2 examples/embed.c -o embed -lm
   Run:    ./embed                                    the small examples in examples/, under a second
           ./embed MODEL FILE.csv COLUMN "query" ...  a pretrained model (91 MB here) and a file with a column of texts:

             bash tools/fetch.sh sentence-transformers/all-MiniLM-L6-v2
             ./embed all-MiniLM-L6-v2 examples/data/reviews.csv text "A film for the whole family."

   Output: after each query the five nearest texts and their cosine similarity. The small model is NOT pretrained: with
           random weights a text is nearest to itself (1.0000), what comes next means nothing, and all similarities are
           high. all-MiniLM-L6-v2 finds the same meaning in other words:

             A film for the whole family.
               0.7161  Bright, silly and full of heart, this is the rare family film that never talks down to children.
               0.5776  What a delight to find a children's film with real wit, real danger and a grandmother who ... */
#define FT_IMPLEMENTATION
#include "../finetune.h"

#include <stdio.h>

enum { NEAREST = 5 };

/* A vector per text: [rows, H], each the mean of the last layer's outputs for the text's tokens, scaled to length 1. */
static float *embed(ft_context *context, const ft_model *model, const ft_tokenizer *tokenizer,
                    const ft_dataset *texts) {
  int max_length = ft_max_length(context, model, tokenizer, 0);
  ft_encoded *encoded = max_length ? ft_dataset_encode(context, texts, tokenizer, max_length) : NULL;
  size_t bytes = model && texts ? (size_t)(texts->rows * ft_model_config(model)->hidden_size) * sizeof(float) : 0;
  float *vectors = encoded ? (float *)ft_allocate(context, bytes) : NULL;
  if (vectors && ft_embed(context, model, encoded, 0, true, true, vectors) != FT_OK) {
    ft_release(context, vectors);
    vectors = NULL;
  }
  ft_encoded_free(encoded);
  return vectors;
}

/* Of vectors of length 1, the cosine of the angle between them: 1 for the same direction, 0 for unrelated ones. */
static double cosine(const float *a, const float *b, int size) {
  double sum = 0;
  int i;
  for (i = 0; i < size; ++i) sum += (double)a[i] * b[i];
  return sum;
}

/* Prints the texts whose vectors [rows, H] are nearest to the query's. */
static void show_nearest(const ft_cell *query, const float *query_vector, const ft_dataset *texts, const float *vectors,
                         int size) {
  int64_t rows[NEAREST + 1], row;
  double similarities[NEAREST + 1];
  int count = 0, i;
  for (row = 0; row < texts->rows; ++row) { /* insert it where it belongs; what falls off the end is forgotten */
    double similarity = cosine(query_vector, vectors + row * size, size);
    for (i = count; i > 0 && similarities[i - 1] < similarity; --i) {
      similarities[i] = similarities[i - 1];
      rows[i] = rows[i - 1];
    }
    similarities[i] = similarity;
    rows[i] = row;
    if (count < NEAREST) ++count;
  }
  printf("%s\n", query->text);
  for (i = 0; i < count; ++i) {
    const ft_cell *text = &texts->texts[rows[i]];
    size_t length = text->length < 140 ? text->length : 140, k;
    while (length < text->length && ((unsigned char)text->text[length] & 0xC0) == 0x80) --length; /* whole characters */
    printf("  %.4f  ", similarities[i]);
    for (k = 0; k < length; ++k) putchar(text->text[k] == '\n' ? ' ' : text->text[k]);
    printf("%s\n", length < text->length ? "..." : "");
  }
}

int main(int argc, char **argv) {
  static const char *const examples[] = {"What a lovely car. What a dismal film.", "A film for the whole family.",
                                         "I fell asleep before the end."};
  const bool small = argc < 5;
  const char *directory = small ? "examples/models/tiny" : argv[1];
  const int query_count = small ? 3 : argc - 4;
  ft_context *context = ft_context_create(NULL);
  ft_dataset_options dataset_options = {0};
  ft_model_options model_options = {0};
  ft_dataset *texts, queries = {0};
  ft_model *model;
  ft_tokenizer *tokenizer;
  ft_cell *cells;
  float *vectors = NULL, *query_vectors = NULL;
  double seconds;
  bool ok;
  int i;
  if (argc != 1 && argc < 5) {
    printf("usage: embed [MODEL FILE.csv COLUMN \"query\" ...]\n");
    return 2;
  }
  dataset_options.text_column = small ? "text" : argv[3];
  dataset_options.unlabelled = true;
  texts = ft_dataset_read(context, small ? "examples/data/reviews.csv" : argv[2], &dataset_options);
  model_options.encoder_only = true; /* no classification head */
  model_options.from_config = small; /* random weights */
  model = ft_model_load(context, directory, &model_options);
  tokenizer = ft_tokenizer_load(context, directory);
  cells = (ft_cell *)ft_allocate(context, (size_t)query_count * sizeof *cells);
  ok = texts && model && tokenizer && cells;
  for (i = 0; ok && i < query_count; ++i) {
    cells[i].text = small ? examples[i] : argv[4 + i];
    cells[i].length = strlen(cells[i].text);
  }
  queries.rows = query_count;
  queries.texts = cells;
  seconds = ft_seconds();
  ok = ok && (vectors = embed(context, model, tokenizer, texts)) != NULL &&
       (query_vectors = embed(context, model, tokenizer, &queries)) != NULL;
  if (ok) {
    const int size = ft_model_config(model)->hidden_size;
    printf("%lld texts as vectors of %d numbers in %.1f s%s\n", (long long)texts->rows, size, ft_seconds() - seconds,
           small ? "; the model is NOT pretrained: expect little" : "");
    for (i = 0; i < query_count; ++i) show_nearest(&cells[i], query_vectors + i * size, texts, vectors, size);
  } else {
    printf("error: %s\n", ft_error_message(context));
  }
  ft_release(context, vectors);
  ft_release(context, query_vectors);
  ft_release(context, cells);
  ft_tokenizer_free(tokenizer);
  ft_model_free(model);
  ft_dataset_free(texts);
  ft_context_free(context);
  return !ok;
}
