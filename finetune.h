/* finetune.h - fine-tune a BERT-family text encoder in plain C - version 0.1 - CC0 / public domain (end of file)

   One header: load a pretrained encoder from its Hugging Face files, fine-tune it on labelled texts, measure it,
   save it in the same format, and score texts with it. Nothing else is needed than a C compiler, libc and libm.

   Do this in ONE C or C++ file, before any other #include, to create the implementation:

       #define FT_IMPLEMENTATION
       #include "finetune.h"

   A complete program, every error handled:

       #define FT_IMPLEMENTATION
       #include "finetune.h"
       #include <stdio.h>
       int main(void) {
         ft_context *context = ft_context_create(NULL);
         ft_dataset *train = ft_dataset_read(context, "reviews.csv", NULL);
         ft_model_options options = {0};
         ft_train_result result;
         ft_model *model;
         ft_tokenizer *tokenizer = ft_tokenizer_load(context, "bert-base-uncased");
         options.labels = train ? train->label_count : 0;
         options.label_names = train ? train->label_names : NULL;
         model = ft_model_load(context, "bert-base-uncased", &options);
         if (ft_train(context, model, tokenizer, train, NULL, NULL, &result) != FT_OK ||
             ft_model_save(context, model, tokenizer, "my-model") != FT_OK)
           printf("%s\n", ft_error_message(context));
         else
           printf("training loss %.4f\n", result.train_loss);
         ft_model_free(model), ft_tokenizer_free(tokenizer), ft_dataset_free(train), ft_context_free(context);
         return 0;
       }

       cc -O2 program.c -o program -lm

   Kernels are chosen when the program runs (AMX, AVX-512, AVX2, NEON or plain C): no other compiler flag is needed.

   finetune.h DOES NOT
   - pretrain from nothing on billions of words, or run decoders such as GPT: it fine-tunes encoders;
   - read pickles (pytorch_model.bin): convert them to safetensors once, with tools/to_safetensors.py;
   - use the network (tools/fetch.sh downloads models), print, exit or abort: errors come back as a status and a
     sentence, messages through a callback.

   CONTENTS (search for the tag)
     Part I, what a user reads: documentation, then declarations
       >>conventions  >>context  >>json        >>safetensors  >>tables     >>datasets   >>hub        >>tokenizer
       >>batches      >>tensors  >>operations  >>model        >>features   >>adapters   >>optimizer  >>plan
       >>metrics      >>training >>backend
     Part II, the implementation (FT_IMPLEMENTATION), a chapter each
       >>memory and errors  >>threads  >>random numbers  >>text  >>json parsing  >>files  >>safetensors files
       >>tables  >>datasets  >>tokenizer  >>vocabulary  >>normalising  >>tokenizer objects  >>wordpiece
       >>byte-pair encoding  >>unigram  >>pre-tokenizers  >>added tokens  >>encoding texts  >>loading tokenizers
       >>kernels  >>tape  >>operations  >>batching  >>encoder  >>adapters  >>adamw  >>plan  >>scores
       >>scoring  >>frozen features  >>training loop

   COMPILE-TIME OPTIONS (define them in the implementation file; FT_STATIC and FT_REAL wherever the header is included)
     FT_STATIC       every function is static: the library is private to one file
     FT_NO_THREADS   no threads: everything runs on the caller's
     FT_NAIVE        only the plain loops that define each kernel: slow, for reading and testing
     FT_REAL double  computes in double (implies FT_NAIVE): how the tests check every gradient to many digits
     FT_ASSERT(x)    what happens on a caller's bug; the default is assert()
*/
#if defined(FT_IMPLEMENTATION) && !defined(_WIN32)
/* -std=c99 hides clock_gettime, fseeko and fileno unless these stand before the first system header. */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _DARWIN_C_SOURCE
#define _DARWIN_C_SOURCE
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#endif

#ifndef FINETUNE_H
#define FINETUNE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef FT_STATIC
#if defined(__GNUC__)
#define FT_API static __attribute__((unused))
#else
#define FT_API static
#endif
#elif !defined(FT_API)
#define FT_API extern
#endif

#ifdef __cplusplus
extern "C" {
#endif

#ifndef FT_REAL
#define FT_REAL float
#endif
typedef FT_REAL ft_real; /* the number that tensors hold and kernels compute with */

/* ---------------------------------------------------------------------------------------------------------------------
   >>conventions

   Letters in shapes: T tokens of a batch (all texts one after another, no padding), B texts of a batch, H hidden_size,
   F intermediate_size, A attention heads, D = H / A head size, V vocabulary, C classes, L layers.

   Options are structs in which 0 (or NULL) means the default given in the comment: start from {0}.
   A pointer-returning function returns NULL when it fails; any other returns a status. The sentence that says what was
   wrong, and where, is then in ft_error_message(context). Functions given a NULL made by an earlier failure fail in
   turn and leave the first message in place, so a chain of calls can be checked once, at its end.

   Threads: a context serves one thread at a time. Models, tokenizers and datasets are read-only while texts are scored:
   any number of contexts, one per thread, may share them. Functions that change a model (training) want it alone.
   Ownership: what a function with _create, _load, _read, _open or _parse in its name returns is the caller's, who gives
   it back to the matching _free or _close; these accept NULL. What was made with a context's allocator must be freed
   before that context. Everything else that is returned belongs to the object it came from. */

typedef enum ft_status {
  FT_OK = 0,
  FT_ERROR_ARGUMENT,    /* an option or argument that makes no sense */
  FT_ERROR_MEMORY,      /* out of memory */
  FT_ERROR_FILE,        /* a file that cannot be opened, read or written */
  FT_ERROR_FORMAT,      /* a file whose content is broken */
  FT_ERROR_SHAPE,       /* tensors that do not fit together */
  FT_ERROR_UNSUPPORTED, /* well-formed, but not something this library does */
  FT_ERROR_NUMERIC,     /* NaN or Inf appeared in training */
  FT_ERROR_STOPPED      /* a callback asked to stop */
} ft_status;

/* ---------------------------------------------------------------------------------------------------------------------
   >>context: memory, log, threads, random numbers, last error */

typedef struct ft_context ft_context;
typedef struct ft_backend ft_backend;

typedef struct ft_allocator {
  void *(*allocate)(void *user_data, size_t bytes); /* NULL with release NULL: malloc and free; else both must be set */
  void (*release)(void *user_data, void *pointer);
  void *user_data;
} ft_allocator;

typedef enum ft_dtype { FT_F32 = 0, FT_BF16, FT_I32, FT_F16, FT_F64, FT_I64, FT_U8 } ft_dtype;

typedef enum ft_log_level { FT_LOG_INFO = 0, FT_LOG_WARNING } ft_log_level;

typedef struct ft_context_options {
  ft_allocator allocator;
  void (*log)(void *user_data, ft_log_level level, const char *message); /* NULL: silent */
  void *log_user_data;
  int threads;               /* 0: one per processor; 1: the caller's alone */
  const ft_backend *backend; /* NULL: this processor */
  /* FT_F32; FT_BF16: mixed precision. Products of matrices, attention's too, round their operands to bfloat16 (a float's
     upper half) and add in float32; weights, sums, all other operations and the optimizer stay float32. A processor
     without instructions for it computes in float32, and the log says so. */
  ft_dtype compute_dtype;
} ft_context_options;

/* Makes a context; options may be NULL. Returns NULL only when memory is short or the allocator has one hook of two. */
FT_API ft_context *ft_context_create(const ft_context_options *options);
FT_API void ft_context_free(ft_context *context);

/* The last error in words ("" if there was none) and as a status. A NULL context (creation failed) has a message too.
   The text belongs to the context and changes with the next error. */
FT_API const char *ft_error_message(const ft_context *context);
FT_API ft_status ft_error_status(const ft_context *context);
/* Records an error as the library's own functions do, for code built on it; returns status. */
FT_API ft_status ft_error_set(ft_context *context, ft_status status, const char *message);
FT_API int ft_context_threads(const ft_context *context);
FT_API ft_dtype ft_context_compute_dtype(const ft_context *context); /* what it computes in: FT_F32 or FT_BF16 */
/* Which kernels this processor gets: "AVX-512", "AVX2", "NEON" or "plain C". */
FT_API const char *ft_cpu_instruction_set(void);

/* Where dropout's random numbers stand. They are counter-based: element i of the mask at a site depends on seed, step,
   micro_batch, site and i alone - not on the threads, the order of calls, or what was drawn before. */
FT_API void ft_random_position(ft_context *context, uint64_t seed, int64_t step, int64_t micro_batch);

/* order[0..count) = torch.randperm(count) for a generator seeded with seed: Trainer's shuffle of epoch e of a run with
   seed s is ft_shuffle(order, count, s + e). Pure: any thread. */
FT_API void ft_shuffle(int64_t *order, int64_t count, uint64_t seed);

/* Seconds on a monotonic clock, from an arbitrary start. Any thread. */
FT_API double ft_seconds(void);

/* ---------------------------------------------------------------------------------------------------------------------
   >>json: RFC 8259, read-only tree. Nesting is limited to 200 levels, input to 1 GiB; \u escapes become UTF-8 exactly,
   lone surrogates and invalid UTF-8 are errors, duplicate keys are errors. */

typedef enum ft_json_type {
  FT_JSON_NULL = 0,
  FT_JSON_BOOLEAN,
  FT_JSON_NUMBER,
  FT_JSON_STRING,
  FT_JSON_ARRAY,
  FT_JSON_OBJECT
} ft_json_type;

typedef struct ft_json {
  ft_json_type type;
  bool is_integer; /* the number was written without point or exponent and fits int64_t */
  bool boolean;
  int64_t integer; /* if is_integer */
  double number;
  const char *key; /* name within the parent object, else NULL; zero-terminated, may hold \0 inside */
  size_t key_length;
  const char *string; /* zero-terminated; of a number, its text as written */
  size_t string_length;
  int64_t count;               /* children of an array or object */
  const struct ft_json *child; /* first child */
  const struct ft_json *next;  /* next sibling */
} ft_json;

/* Parses text (length bytes); name is what error messages call it, with line and column. The tree copies what it needs.
   Free the root with ft_json_free. */
FT_API ft_json *ft_json_parse(ft_context *context, const char *text, size_t length, const char *name);
FT_API ft_json *ft_json_read(ft_context *context, const char *path);
FT_API void ft_json_free(ft_json *root);
/* The member of an object, or NULL (also when object is NULL or no object). */
FT_API const ft_json *ft_json_get(const ft_json *object, const char *key);

/* ---------------------------------------------------------------------------------------------------------------------
   >>safetensors: named arrays in a file (format: an 8-byte little-endian header size, a JSON header, the data).
   Checked before anything is believed: header size against the file, offsets against shape and dtype, overlaps, gaps,
   overflow, duplicate names. Sharded models (model.safetensors.index.json) appear as one. */

FT_API const char *ft_dtype_name(ft_dtype dtype); /* "F32", ... as safetensors writes it */
FT_API size_t ft_dtype_size(ft_dtype dtype);      /* bytes of one element */

typedef struct ft_safetensors ft_safetensors;

typedef struct ft_safetensors_entry {
  const char *name;
  ft_dtype dtype; /* one that is not in ft_dtype appears as FT_U8, and reading it is an error */
  int dimensions; /* 0..8 */
  int64_t shape[8];
  int64_t count; /* elements */
} ft_safetensors_entry;

/* path: a .safetensors file, a model.safetensors.index.json, or a directory that holds model.safetensors or that index.
   The file stays open for reading until _close. */
FT_API ft_safetensors *ft_safetensors_open(ft_context *context, const char *path);
/* The same from memory that the caller keeps alive and unchanged; name is for messages. */
FT_API ft_safetensors *ft_safetensors_parse(ft_context *context, const void *bytes, size_t size, const char *name);
FT_API void ft_safetensors_close(ft_safetensors *file);
FT_API int64_t ft_safetensors_count(const ft_safetensors *file);
FT_API const ft_safetensors_entry *ft_safetensors_at(const ft_safetensors *file, int64_t index);
FT_API const ft_safetensors_entry *ft_safetensors_find(const ft_safetensors *file, const char *name); /* or NULL */
FT_API const char *ft_safetensors_metadata(const ft_safetensors *file, const char *key);              /* or NULL */
/* Reads all elements of an entry into out [entry->count], converted to float (from F32, F16, BF16, F64) or to int64_t
   (from I64, I32, U8). Another dtype is an error that names the tensor. One thread per file at a time. */
FT_API ft_status ft_safetensors_read_float(ft_context *context, ft_safetensors *file, const ft_safetensors_entry *entry,
                                           float *out);
FT_API ft_status ft_safetensors_read_int(ft_context *context, ft_safetensors *file, const ft_safetensors_entry *entry,
                                         int64_t *out);

typedef struct ft_safetensors_item { /* what to write */
  const char *name;
  ft_dtype dtype;
  int dimensions;
  int64_t shape[8];
  const void *data; /* host memory, count * ft_dtype_size(dtype) bytes */
} ft_safetensors_item;

/* Writes a file, its tensors sorted as the reference implementation does. metadata: key, value, key, value, ...
   (metadata_count strings), may be NULL. The final name never holds half a file: a temporary one beside it is written,
   flushed to the disk, and renamed. */
FT_API ft_status ft_safetensors_write(ft_context *context, const char *path, const ft_safetensors_item *items,
                                      int64_t count, const char *const *metadata, int64_t metadata_count);

/* ---------------------------------------------------------------------------------------------------------------------
   >>tables: CSV after RFC 4180 (quoted fields over several lines, doubled quotes, CRLF or LF, byte-order mark), TSV
   (tab-separated, same quoting), JSONL (one object a line; columns are the keys of the first). Empty lines are skipped;
   lines end with LF, CRLF or CR. A row with another number of fields than the header is an error that gives its line.
   */

typedef enum ft_table_format { FT_TABLE_AUTO = 0, FT_TABLE_CSV, FT_TABLE_TSV, FT_TABLE_JSONL } ft_table_format;

typedef struct ft_cell {
  const char *text; /* zero-terminated */
  size_t length;
} ft_cell;

typedef struct ft_table {
  int64_t rows, columns;
  const ft_cell *header; /* [columns] */
  const ft_cell *cells;  /* [rows, columns] */
  const int64_t *lines;  /* [rows]: the line of the file, from 1, where each row starts */
  const char *name;      /* the file's name, for messages */
} ft_table;

/* FT_TABLE_AUTO goes by the ending: .tsv, .jsonl or .ndjson, anything else is CSV. */
FT_API ft_table *ft_table_read(ft_context *context, const char *path, ft_table_format format);
FT_API ft_table *ft_table_parse(ft_context *context, const char *text, size_t length, const char *name,
                                ft_table_format format);
FT_API void ft_table_free(ft_table *table);
FT_API int64_t ft_table_column(const ft_table *table, const char *name); /* its index, or -1 */

/* ---------------------------------------------------------------------------------------------------------------------
   >>datasets: texts with labels, read from a table */

typedef enum ft_task {
  FT_TASK_AUTO = 0,     /* a model's own; single label where nothing else says */
  FT_TASK_SINGLE_LABEL, /* one class per text; cross-entropy */
  FT_TASK_MULTI_LABEL,  /* any number of classes per text, written "a;b"; binary cross-entropy */
  FT_TASK_REGRESSION,   /* a number per text; mean squared error */
  FT_TASK_TOKENS,       /* one class per token (names, parts of speech); cross-entropy over tokens with label >= 0 */
  FT_TASK_MASKED        /* masked language model: the piece that stood at a token; decoder tied to the embeddings */
} ft_task;

typedef struct ft_dataset_options {
  const char *text_column;        /* NULL: "text", else "review", "sentence", "content" */
  const char *pair_column;        /* NULL: no second text */
  const char *label_column;       /* NULL: "label", else "sentiment", "labels" if there is one */
  bool unlabelled;                /* do not look for labels at all */
  ft_task task;                   /* default FT_TASK_SINGLE_LABEL */
  ft_table_format format;         /* default: by the file's ending */
  const char *const *label_names; /* NULL: the file's own, numeric order if all are integers, else bytewise */
  int label_count;                /* with label_names: how many; a label outside them is an error with its line */
  int64_t limit;                  /* 0: all rows; else the first limit rows */
} ft_dataset_options;

typedef struct ft_dataset {
  int64_t rows;
  const ft_cell *texts;           /* [rows] */
  const ft_cell *pairs;           /* [rows], or NULL */
  ft_task task;                   /* never AUTO */
  int label_count;                /* C; 0 without labels; 1 for regression */
  const char *const *label_names; /* [C]; NULL for regression */
  const int32_t *labels;          /* [rows], single label: the class; else NULL */
  const float *targets;           /* [rows, C], multi-label 0 or 1, regression the number; else NULL */
  const int64_t *lines;           /* [rows], for messages */
  const char *name;
} ft_dataset;

FT_API ft_dataset *ft_dataset_read(ft_context *context, const char *path, const ft_dataset_options *options);
FT_API ft_dataset *ft_dataset_from_table(ft_context *context, const ft_table *table, const ft_dataset_options *options);
/* The given rows, in that order: with ft_shuffle a random split into parts. The texts stay the source's, which must
   outlive the selection. */
FT_API ft_dataset *ft_dataset_select(ft_context *context, const ft_dataset *dataset, const int64_t *rows,
                                     int64_t count);
FT_API void ft_dataset_free(ft_dataset *dataset);

/* ---------------------------------------------------------------------------------------------------------------------
   >>hub: published models by their names

   Where a model's directory is asked for, its name on the Hugging Face hub does as well, ORG/NAME or NAME, if Python's
   libraries have downloaded it. Without Python, `bash tools/fetch.sh ORG/NAME` downloads it to the directory NAME. */

/* path = where the files of a model are: `name` itself if there is such a directory (or file), else the snapshot of
   that name's main revision in the Hugging Face cache. Fails when there is neither, or the path with its final zero has
   more than `capacity` bytes. Reads the environment: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, HOME. */
FT_API ft_status ft_model_path(ft_context *context, const char *name, char *path, size_t capacity);

/* ---------------------------------------------------------------------------------------------------------------------
   >>tokenizer: text to token ids, exactly as the Hugging Face tokenizers do: WordPiece (BERT), byte-level BPE (RoBERTa)
   and Unigram (ALBERT, XLM-RoBERTa). Input is UTF-8; each invalid byte sequence counts as U+FFFD. */

typedef struct ft_tokenizer ft_tokenizer;

/* Loads the tokenizer of a model directory: tokenizer.json if there is one, else vocab.txt, vocab.json with
   merges.txt, spiece.model (ALBERT) or sentencepiece.bpe.model (XLM-RoBERTa), with tokenizer_config.json and
   special_tokens_map.json beside it. An unsupported part of a tokenizer.json is an error that names it. */
FT_API ft_tokenizer *ft_tokenizer_load(ft_context *context, const char *directory);
FT_API void ft_tokenizer_free(ft_tokenizer *tokenizer);

typedef enum ft_truncation {
  FT_TRUNCATE_LONGEST_FIRST = 0,
  FT_TRUNCATE_ONLY_FIRST,
  FT_TRUNCATE_ONLY_SECOND
} ft_truncation;

typedef struct ft_encode_options {
  int max_length;           /* tokens, special ones included; 0: no truncation */
  ft_truncation truncation; /* which text gives way */
  bool no_special_tokens;   /* leave out [CLS] and [SEP] */
  bool offsets;             /* fill begin and end */
} ft_encode_options;

typedef struct ft_encoding { /* start from {0}; arrays grow and are used again from call to call */
  int32_t *ids;              /* [count] */
  int32_t *token_types;      /* [count]: 0 first text, 1 second */
  int32_t *begin, *end;      /* [count], if asked: the bytes [begin, end) of the original text; 0, 0: special */
  int64_t count;
  int64_t truncated; /* tokens that were cut off */
  int64_t capacity;  /* private: what the arrays have room for */
  ft_context *owner; /* private */
} ft_encoding;

/* Encodes text, with pair (NULL: none) as second text, into encoding. options may be NULL. Lengths are in bytes. Any
   number of contexts may use one tokenizer at once, each with an encoding of its own. Fails when memory is short, or
   when max_length cannot be met by the texts that may be cut. */
FT_API ft_status ft_tokenizer_encode(ft_context *context, const ft_tokenizer *tokenizer, const char *text,
                                     size_t length, const char *pair, size_t pair_length,
                                     const ft_encode_options *options, ft_encoding *encoding);
FT_API void ft_encoding_free(ft_encoding *encoding);

FT_API int ft_tokenizer_size(const ft_tokenizer *tokenizer);                      /* V: largest id + 1 */
FT_API const char *ft_tokenizer_token(const ft_tokenizer *tokenizer, int32_t id); /* its piece, or NULL */
FT_API int32_t ft_tokenizer_id(const ft_tokenizer *tokenizer, const char *token); /* or -1 */
typedef enum ft_special_token {
  FT_TOKEN_PAD = 0,
  FT_TOKEN_UNKNOWN,
  FT_TOKEN_CLS,
  FT_TOKEN_SEP,
  FT_TOKEN_MASK
} ft_special_token;
/* The id of the token that plays a role, or -1: as the configuration names it, else by the usual names. */
FT_API int32_t ft_tokenizer_special(const ft_tokenizer *tokenizer, ft_special_token token);
FT_API bool ft_tokenizer_is_special(const ft_tokenizer *tokenizer, int32_t id); /* has such a role, or is marked so */
FT_API int ft_tokenizer_max_length(const ft_tokenizer *tokenizer); /* model_max_length of its config; 0: not stated */
FT_API ft_status ft_tokenizer_save(ft_context *context, const ft_tokenizer *tokenizer, const char *directory);

/* ---------------------------------------------------------------------------------------------------------------------
   >>batches: several texts packed one after another, no padding. Text b is ids[offsets[b] .. offsets[b + 1]). */

typedef struct ft_encoded { /* a whole dataset's tokens */
  int64_t rows;
  const int32_t *ids;         /* [offsets[rows]] */
  const int32_t *token_types; /* the same */
  const int64_t *offsets;     /* [rows + 1] */
  int64_t truncated_rows;     /* how many texts were cut to max_length */
} ft_encoded;

/* Tokenizes every text of a dataset (pairs as pairs); max_length as in ft_encode_options. */
FT_API ft_encoded *ft_dataset_encode(ft_context *context, const ft_dataset *dataset, const ft_tokenizer *tokenizer,
                                     int max_length);
FT_API void ft_encoded_free(ft_encoded *encoded);

typedef struct ft_batch { /* start from {0}; arrays grow and are used again */
  int64_t texts;          /* B */
  int64_t tokens;         /* T */
  int32_t *ids;           /* [T] */
  int32_t *token_types;   /* [T] */
  int32_t *offsets;       /* [B + 1] */
  int32_t *lengths;       /* [B]: valid tokens of each text; less than offsets[b + 1] - offsets[b] only when padded */
  int64_t capacity_texts, capacity_tokens; /* private */
  ft_context *owner;                       /* private */
} ft_batch;

/* Rows in an order by which batches of batch_size texts have like lengths, as Trainer's group_by_length has it: the given
   order is cut into groups of up to 50 batches (of fewer where there would be less than four groups), each group is
   sorted longest first, and the longest text of all changes places with the first. order [rows], as ft_shuffle made it. */
FT_API ft_status ft_group_by_length(ft_context *context, const ft_encoded *encoded, int64_t *order, int64_t batch_size);
/* batch = the given rows of an encoded dataset, in that order. */
FT_API ft_status ft_batch_select(ft_context *context, ft_batch *batch, const ft_encoded *encoded, const int64_t *rows,
                                 int64_t count);
/* batch = the given id sequences; token_types may be NULL (all 0). ids [offsets[count]], offsets [count + 1]. */
FT_API ft_status ft_batch_set(ft_context *context, ft_batch *batch, const int32_t *ids, const int32_t *token_types,
                              const int64_t *offsets, int64_t count);
/* padded = batch with every text filled up to `length` tokens (0: the longest) with pad_id, as course notebooks do:
   only for measuring what padding costs and for the test that padded equals packed. */
FT_API ft_status ft_batch_pad(ft_context *context, ft_batch *padded, const ft_batch *batch, int64_t length,
                              int32_t pad_id);
FT_API void ft_batch_free(ft_batch *batch);

/* ---------------------------------------------------------------------------------------------------------------------
   >>tensors and the tape

   A tensor is an array of up to 4 dimensions in a back end's memory. Operations on tensors compute at once and write
   themselves on the context's tape; ft_backward(loss) walks the tape in reverse and adds d loss / d x into the gradient
   of every tensor x that requires it. Results of operations live until ft_tape_clear. */

typedef struct ft_tensor {
  const char *name;  /* for messages; may be NULL */
  ft_dtype dtype;    /* FT_F32 (of ft_real) or FT_I32 */
  int dimensions;    /* 0 (a scalar) to 4 */
  int64_t shape[4];  /* [dimensions] */
  int64_t stride[4]; /* in elements; 0 along a broadcast dimension */
  bool requires_gradient;
  bool gradient_is_set;   /* private: the gradient's memory holds a value, not yet garbage */
  bool persistent;        /* private: made by ft_tensor_create */
  void *data;             /* back-end memory: opaque, only ft_tensor_read and ft_tensor_write look inside */
  void *gradient;         /* back-end memory of the same shape, contiguous, or NULL */
  uint8_t *gradient_rows; /* private: see ft__gradient_of_rows */
  void *packed;           /* private: see ft_matmul_call.packed */
  ft_context *owner;      /* private: whose allocator made a persistent tensor */
} ft_tensor;

/* A persistent tensor, zero-filled; free it with ft_tensor_free. A temporary one lives until ft_tape_clear. */
FT_API ft_tensor *ft_tensor_create(ft_context *context, ft_dtype dtype, int dimensions, const int64_t *shape);
FT_API ft_tensor *ft_tensor_temporary(ft_context *context, ft_dtype dtype, int dimensions, const int64_t *shape);
FT_API void ft_tensor_free(ft_tensor *tensor);
FT_API int64_t ft_tensor_count(const ft_tensor *tensor); /* elements */
/* Copies all elements between host memory (contiguous; ft_real, or int32_t for FT_I32) and a contiguous tensor. */
FT_API ft_status ft_tensor_write(ft_context *context, ft_tensor *tensor, const void *values);
FT_API ft_status ft_tensor_read(ft_context *context, const ft_tensor *tensor, void *values);
/* The gradient, all elements; zeros if nothing has reached the tensor since ft_gradient_zero. */
FT_API ft_status ft_gradient_read(ft_context *context, const ft_tensor *tensor, ft_real *values);
FT_API void ft_gradient_zero(ft_context *context, ft_tensor *tensor);

/* d loss / d x for everything on the tape; loss must have one element. Gradients of persistent tensors accumulate from
   call to call until ft_gradient_zero. */
FT_API ft_status ft_backward(ft_context *context, ft_tensor *loss);
/* Forgets the tape and all temporary tensors; their memory is kept and used again. */
FT_API void ft_tape_clear(ft_context *context);
/* Between these, operations compute but are not recorded. Pairs nest. */
FT_API void ft_no_grad_begin(ft_context *context);
FT_API void ft_no_grad_end(ft_context *context);
/* Bytes that temporary tensors have taken at most since the context was made. */
FT_API int64_t ft_tape_peak_bytes(const ft_context *context);
/* Takes the memory for so many bytes of them now, in one piece; while there are none. */
FT_API ft_status ft_tape_reserve(ft_context *context, int64_t bytes);

/* ---------------------------------------------------------------------------------------------------------------------
   >>operations. Each returns a new temporary tensor, or NULL with an error that names the operation and the shapes.
   Small operations broadcast as NumPy does: shapes are aligned at their last dimension, and a dimension of 1 stretches.
   They accept views (transposed, sliced); fused operations want what their comments say. */

typedef enum ft_unary { /* functions of one number */
                        FT_IDENTITY = 0,
                        FT_GELU,      /* x/2 (1 + erf(x / sqrt 2)) */
                        FT_GELU_TANH, /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): "gelu_new" */
                        FT_RELU,
                        FT_SILU, /* x / (1 + exp(-x)) */
                        FT_TANH,
                        FT_SIGMOID,
                        FT_EXP,
                        FT_LOG,
                        FT_SQRT
} ft_unary;

FT_API ft_tensor *ft_add(ft_context *context, ft_tensor *a, ft_tensor *b);
FT_API ft_tensor *ft_subtract(ft_context *context, ft_tensor *a, ft_tensor *b);
FT_API ft_tensor *ft_multiply(ft_context *context, ft_tensor *a, ft_tensor *b);
FT_API ft_tensor *ft_divide(ft_context *context, ft_tensor *a, ft_tensor *b);
FT_API ft_tensor *ft_scale(ft_context *context, ft_tensor *x, double factor);
FT_API ft_tensor *ft_activate(ft_context *context, ft_unary kind, ft_tensor *x); /* gelu, relu, tanh, exp, ... */
/* config.json's names: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish, tanh; false for any other. */
FT_API bool ft_activation_parse(const char *name, ft_unary *activation);
FT_API ft_tensor *ft_sum(ft_context *context, ft_tensor *x, int dimension); /* keeps it as size 1; -1: all, to [1] */
FT_API ft_tensor *ft_mean(ft_context *context, ft_tensor *x, int dimension);
FT_API ft_tensor *ft_softmax(ft_context *context, ft_tensor *x);              /* over the last dimension */
FT_API ft_tensor *ft_matmul(ft_context *context, ft_tensor *a, ft_tensor *b); /* [.., m, k] x [.., k, n] */

/* Views: the same memory seen with another shape. ft_reshape copies if x is not contiguous. */
FT_API ft_tensor *ft_reshape(ft_context *context, ft_tensor *x, int dimensions, const int64_t *shape);
FT_API ft_tensor *ft_transpose(ft_context *context, ft_tensor *x, int dimension_a, int dimension_b);
FT_API ft_tensor *ft_slice(ft_context *context, ft_tensor *x, int dimension, int64_t start, int64_t count);
FT_API ft_tensor *ft_contiguous(ft_context *context, ft_tensor *x); /* x itself if it already is */

/* y [T, out] = activation(x [T, in] weight^T + bias): weight [out, in] as in the files, bias [out] or NULL. */
FT_API ft_tensor *ft_linear(ft_context *context, ft_tensor *x, ft_tensor *weight, ft_tensor *bias, ft_unary activation);
/* The same with a second, thin product: activation(x weight^T + bias + low up^T), low [T, r], up [out, r]: how LoRA's
   update joins a frozen layer. */
FT_API ft_tensor *ft_linear_low_rank(ft_context *context, ft_tensor *x, ft_tensor *weight, ft_tensor *bias,
                                     ft_tensor *low, ft_tensor *up, ft_unary activation);
/* Inverted dropout: zero with the probability, else x / (1 - probability). site: which mask of the step. */
FT_API ft_tensor *ft_dropout(ft_context *context, ft_tensor *x, double probability, uint32_t site);
/* LayerNorm(residual + dropout(x)) over the last dimension; residual may be NULL. Ba, Kiros, Hinton 2016. */
FT_API ft_tensor *ft_residual_layer_norm(ft_context *context, ft_tensor *x, ft_tensor *residual, ft_tensor *weight,
                                         ft_tensor *bias, double epsilon, double probability, uint32_t site);
/* Rows of a table: y [n, H] = x[rows[n]]. */
FT_API ft_tensor *ft_gather_rows(ft_context *context, ft_tensor *x, ft_tensor *rows);
/* Sum of word, position and token type embeddings [T, H]; ids and so on are I32 [T]; types and type_ids may be NULL. */
FT_API ft_tensor *ft_embedding(ft_context *context, ft_tensor *words, ft_tensor *ids, ft_tensor *positions,
                               ft_tensor *position_ids, ft_tensor *types, ft_tensor *type_ids);
/* Multi-head attention within each text of a packed batch (Vaswani et al. 2017): query, key, value [T, A * D], offsets
   I32 [B + 1], lengths I32 [B]; longest: the most rows that any text has. */
FT_API ft_tensor *ft_attention(ft_context *context, ft_tensor *query, ft_tensor *key, ft_tensor *value,
                               ft_tensor *offsets, ft_tensor *lengths, int64_t longest, int heads, double probability,
                               uint32_t site);
/* Losses, [1]: the sum over rows (or elements), divided by divisor. logits [n, C], labels I32 [n], negative: left out.
   */
FT_API ft_tensor *ft_cross_entropy_loss(ft_context *context, ft_tensor *logits, ft_tensor *labels, double divisor);
FT_API ft_tensor *ft_binary_cross_entropy_loss(ft_context *context, ft_tensor *logits, ft_tensor *targets,
                                               double divisor);
FT_API ft_tensor *ft_squared_error_loss(ft_context *context, ft_tensor *x, ft_tensor *targets, double divisor);

/* ---------------------------------------------------------------------------------------------------------------------
   >>model: a pretrained encoder with a head for its task, from a directory in the Hugging Face layout */

typedef struct ft_config { /* config.json, in one vocabulary for all families */
  const char *model_type;  /* "bert", "distilbert", "roberta", "xlm-roberta", "camembert", "albert", "electra" */
  int hidden_size, layers, heads, intermediate_size, vocabulary_size, token_types;
  int embedding_size;  /* E: width of the embeddings; not H in ALBERT and small ELECTRAs, which project E to H */
  int max_positions;   /* tokens of the longest text: the rows of the position table less what RoBERTa leaves unused */
  int groups;          /* sets of weights that the layers share (ALBERT); else as many as layers */
  int layers_of_group; /* ALBERT's inner_group_num: layers that run for each of `layers`; else 1 */
  double layer_norm_epsilon, hidden_dropout, attention_dropout, classifier_dropout, initializer_range;
  ft_unary activation;
  int pad_id;
  ft_task task;                   /* what the head is for */
  int labels;                     /* C: outputs of the head; the vocabulary for FT_TASK_MASKED */
  const char *const *label_names; /* [C]; NULL for FT_TASK_MASKED */
  int head_size;                  /* width of the dense layer before the classifier */
  ft_unary head_activation;       /* and its activation */
} ft_config;

typedef struct ft_parameter {
  const char *name; /* its Hugging Face name, with the base prefix: "bert.pooler.dense.weight" */
  ft_tensor *tensor;
  bool decays; /* weight decay applies: not to biases and LayerNorm */
  bool loaded; /* came from the file; else newly initialised */
  int layer;   /* 0: embeddings; 1 .. L: that layer (the first that uses it, where layers share); L + 1: pooler, head */
} ft_parameter;

typedef struct ft_model ft_model;
typedef struct ft_adapter ft_adapter; /* LoRA: see >>adapters */

typedef struct ft_model_options {
  int labels;                     /* 0: the file's (id2label), else 2 */
  const char *const *label_names; /* [labels]; NULL: the file's, else LABEL_0, ... */
  ft_task task;                   /* FT_TASK_AUTO: the file's problem_type, else single label (regression for 1) */
  int head_size;                  /* over texts: another width of the dense layer before the classifier, made anew */
  ft_unary head_activation;       /* and another activation; 0: the family's */
  uint64_t seed;                  /* for newly initialised parts; default 42 */
  bool from_config;               /* take no weights from files: every parameter newly initialised */
  bool encoder_only;              /* no head: for embeddings */
  bool shapes_only;               /* no memory for weights at all: to count and list parameters */
} ft_model_options;

/* Loads DIR/config.json and DIR/model.safetensors (or its shards). Tensors are found with or without the base prefix
   and under the old names gamma and beta. Parameters that the file lacks are newly initialised, N(0,
   initializer_range): allowed for the head and pooler alone, anything else missing is an error that names it, as are
   wrong shapes. What was missing or unexpected goes to the log. options may be NULL. With from_config or shapes_only,
   DIR may be a .json file. A head_size or head_activation of one's own is saved in config.json under these names;
   transformers does not know them. */
FT_API ft_model *ft_model_load(ft_context *context, const char *directory, const ft_model_options *options);
FT_API void ft_model_free(ft_model *model);
/* Writes config.json and model.safetensors (and the tokenizer's files, if given) so that transformers loads them with
   nothing missing or unexpected. */
FT_API ft_status ft_model_save(ft_context *context, const ft_model *model, const ft_tokenizer *tokenizer,
                               const char *directory);

FT_API const ft_config *ft_model_config(const ft_model *model);
FT_API int64_t ft_model_parameter_count(const ft_model *model); /* tensors */
FT_API const ft_parameter *ft_model_parameter(const ft_model *model, int64_t index);
FT_API const ft_parameter *ft_model_find(const ft_model *model, const char *name); /* or NULL */
FT_API int64_t ft_model_size(const ft_model *model, bool trained_only);            /* numbers in all of them */
/* Names in the weight files that no parameter took; [0 .. count). */
FT_API int64_t ft_model_unexpected_count(const ft_model *model);
FT_API const char *ft_model_unexpected(const ft_model *model, int64_t index);
/* Turns training of every parameter on or off: gradients are computed for those that train, and only those. */
FT_API void ft_model_train_all(ft_model *model, bool trained);
FT_API void ft_model_train_parameter(ft_model *model, int64_t index, bool trained);
/* The same for all parameters whose names match a pattern, in which * stands for any characters and ? for one:
   "*.layer.5.*". Returns how many matched. Calls are applied in their order, as in freeze "*", unfreeze "classifier.*". */
FT_API int64_t ft_model_train_matching(ft_model *model, const char *pattern, bool trained);
/* New random values for the parameters of the top `layers` layers (Zhang et al. 2021); the pooler and head stay. */
FT_API ft_status ft_model_reinitialize(ft_context *context, ft_model *model, int layers, uint64_t seed);
/* Freezes the base model, leaving what stands outside it (the head) to train, as peers' "head only" does. */
FT_API void ft_model_train_head(ft_model *model);
/* How many parts at the bottom of the model hold nothing that trains, nor anything of an adapter (or NULL). The
   embeddings are the first part and each layer is one: 0 (the embeddings train) to L + 1 (all but the pooler and head
   is frozen). The backward pass ends above them, and the forward pass keeps nothing of them. */
FT_API int ft_model_frozen_parts(const ft_model *model, const ft_adapter *adapter);

typedef struct ft_features ft_features; /* the output of the frozen parts, kept: see >>features */

typedef struct ft_forward_options {
  bool training;       /* with dropout */
  bool hidden_states;  /* keep every layer's output */
  bool no_head;        /* stop after the last layer */
  const int32_t *rows; /* tokens and masked language models: the rows of [0, T) for which logits are wanted ... */
  int64_t row_count;   /* ... and their number; NULL: all T */
  int parts;           /* run only the lowest: 1 the embeddings, 1 + l those and l layers, without head; 0: all */
  const ft_features *features; /* start from this output of the lower parts ... */
  const int64_t *feature_rows; /* ... [B]: the texts' rows in the encoded dataset that the features were made of */
  const ft_adapter *adapter;   /* runs with the model, which stays as it is; NULL: the model alone */
  /* Keep of each layer its input alone: ft_backward runs the layer again. Less memory for one more forward pass; the
     same results, bit for bit. The model and the adapter must stay as they are until then. */
  bool gradient_checkpointing;
} ft_forward_options;

typedef struct ft_output { /* tensors live until ft_tape_clear */
  ft_tensor *logits;       /* [B, C]; of tokens [row_count or T, C]; NULL without head */
  /* [T, H]: the last layer's output. Where a head runs and hidden_states was not asked for, and from features of first
     tokens alone, the rows that the head reads: [B, H] or [row_count, H]. */
  ft_tensor *hidden;
  ft_tensor *hidden_states[65]; /* [0]: embeddings .. [L]: last layer; NULL unless asked for, and below features */
} ft_output;

/* Runs the model on a batch. The model may be shared by contexts that do not train. Errors: a token id or token type
   outside the tables, a text longer than the positions, each named by its place in the batch. */
FT_API ft_status ft_model_forward(ft_context *context, const ft_model *model, const ft_batch *batch,
                                  const ft_forward_options *options, ft_output *output);
/* The loss of the model's task for logits [n, C], n texts or tokens: labels [n] (negative ones, such as -100, are left
   out) for classes, else targets [n, C]; summed over n (for multi-label averaged over classes) and divided by divisor
   (0: by how many were not left out). */
FT_API ft_tensor *ft_model_loss(ft_context *context, const ft_model *model, ft_tensor *logits, const int32_t *labels,
                                const float *targets, double divisor);

/* ---------------------------------------------------------------------------------------------------------------------
   >>features: what the frozen parts of a model make of a dataset's texts, computed once for all epochs. They run
   without dropout. Where training has none either, results are those without features, bit for bit; but products of at
   most 32 rows are summed in another order, so that batches of so few tokens may differ in the last bits, as all may
   under -Ofast. */

typedef struct ft_features_options { /* NULL instead of one: all defaults */
  int64_t memory_limit;              /* bytes; more than this goes into a temporary file; 0: 1 GiB; negative: a file */
  const char *directory;             /* of that file; NULL: $TMPDIR, else /tmp */
  int batch_size;                    /* texts at a time; 0: 32 */
} ft_features_options;

/* Runs the parts that ft_model_frozen_parts counts on all texts. Of each text every token's state is kept, [tokens, H];
   where all layers are frozen and the head is over texts, the first token's alone, [rows, H]. The size goes to the log
   first, then every ten seconds how far it is. The file has no name, or one that goes away with it. Fails when nothing
   is frozen, when memory or the disk is short. One thread at a time may use features that are in a file. */
FT_API ft_features *ft_features_create(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                       const ft_encoded *encoded, const ft_features_options *options);
/* What _create would keep. */
FT_API int64_t ft_features_bytes(const ft_model *model, const ft_adapter *adapter, const ft_encoded *encoded);
FT_API void ft_features_free(ft_features *features);

/* ---------------------------------------------------------------------------------------------------------------------
   >>adapters: LoRA (Hu et al. 2021) and its relatives. An adapter belongs beside a model: it adds a low-rank update to
   some linear layers and holds copies of its own of others, such as the head. It is passed to each call that shall run
   with it and never changes the model, so one model in memory serves any number of adapters. On disk it is a PEFT
   directory: adapter_config.json and adapter_model.safetensors. */

typedef struct ft_adapter_options {
  int rank;       /* r; 0: 8 */
  double alpha;   /* the update is scaled by alpha / r; 0: 16 */
  double dropout; /* of what the update reads; 0: 0.1; negative: none */
  /* The linear layers that get an update: names by their end, "query,value"; or "all-linear"; or a regular expression
     for whole names such as "bert.encoder.layer.0.attention.self.query"; or patterns that begin with *, "*.0.*.query".
     NULL: query and value of all layers. */
  const char *targets;
  const char *modules_to_save; /* "pooler,..": further modules to train whole, names by their end. The head always is
                                  trained whole, and so is what the model's files lacked, such as a pooler */
  bool rslora;                 /* scaled by alpha / sqrt(r) (Kalajdzievski 2023) */
  bool dora;                   /* magnitude and direction apart (Liu et al. 2024) */
  uint64_t seed;               /* 0: 42 */
} ft_adapter_options;

/* A new adapter: its updates are zero and its copies the model's values, so that at first nothing changes. options may
   be NULL. The model is only read, and any of the same architecture can be used with the adapter later. */
FT_API ft_adapter *ft_adapter_create(ft_context *context, const ft_model *model, const ft_adapter_options *options);
/* Reads a PEFT directory for a model loaded as ft_adapter_base_read says. A missing tensor, a wrong shape, an option of
   PEFT that would change the result and is not known here: an error that names it. */
FT_API ft_adapter *ft_adapter_load(ft_context *context, const ft_model *model, const char *directory);
FT_API void ft_adapter_free(ft_adapter *adapter);
/* Writes a PEFT directory, with the tokenizer's files if given. base: the model's name or directory, or NULL. */
FT_API ft_status ft_adapter_save(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                 const ft_tokenizer *tokenizer, const char *base, const char *directory);

typedef struct ft_adapter_base { /* the model that a PEFT directory belongs to */
  const char *model;             /* base_model_name_or_path; NULL: not stated */
  ft_model_options options;      /* with which to load it: the head's task, labels and their names */
} ft_adapter_base;

FT_API ft_adapter_base *ft_adapter_base_read(ft_context *context, const char *directory);
FT_API void ft_adapter_base_free(ft_adapter_base *base);

/* Its parameters, under their names in adapter_model.safetensors. */
FT_API int64_t ft_adapter_parameter_count(const ft_adapter *adapter);
FT_API const ft_parameter *ft_adapter_parameter(const ft_adapter *adapter, int64_t index);
FT_API int64_t ft_adapter_size(const ft_adapter *adapter); /* numbers in all of them */
/* Writes W + scale B A and the adapter's copies into the model's weights: alone it then computes what it did with the
   adapter, which cannot be passed to calls until ft_adapter_unmerge has put the old weights back, bit for bit. */
FT_API ft_status ft_adapter_merge(ft_context *context, ft_model *model, ft_adapter *adapter);
FT_API ft_status ft_adapter_unmerge(ft_context *context, ft_model *model, ft_adapter *adapter);

/* ---------------------------------------------------------------------------------------------------------------------
   >>optimizer: AdamW (Loshchilov and Hutter 2019) as torch.optim.AdamW computes it, and learning-rate schedules as
   transformers names them */

typedef struct ft_adamw_options {
  double beta1;        /* 0: 0.9 */
  double beta2;        /* 0: 0.999 */
  double epsilon;      /* 0: 1e-8 */
  double weight_decay; /* for parameters that decay; 0: none */
  double layer_decay;  /* learning rate times layer_decay^(L + 1 - ft_parameter.layer); 0 or 1: the same for all */
} ft_adamw_options;

typedef struct ft_optimizer ft_optimizer;

/* Moments for every parameter of the model, and of an adapter (or NULL), that trains now. One that is frozen later
   keeps its moments and is left out of norms and steps until it trains again, as torch leaves out a parameter whose
   gradient is None. */
FT_API ft_optimizer *ft_optimizer_create(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                         const ft_adamw_options *options);
FT_API void ft_optimizer_free(ft_optimizer *optimizer);
/* The global norm of all gradients: sqrt(sum of squares). */
FT_API ft_status ft_optimizer_gradient_norm(ft_context *context, ft_optimizer *optimizer, double *norm);
/* One step with the given learning rate; gradients are first multiplied by gradient_scale (1, or the clipping factor),
   and zeroed afterwards. */
FT_API ft_status ft_optimizer_step(ft_context *context, ft_optimizer *optimizer, double learning_rate,
                                   double gradient_scale);
/* torch.nn.utils.clip_grad_norm_'s factor: min(1, max_norm / (norm + 1e-6)). */
FT_API double ft_clip_factor(double norm, double max_norm);

typedef enum ft_schedule { FT_SCHEDULE_LINEAR = 0, FT_SCHEDULE_COSINE, FT_SCHEDULE_CONSTANT } ft_schedule;
/* What the learning rate is multiplied by at step (from 0): rises linearly over warmup_steps, then falls to 0 at
   total_steps along a line or half a cosine, or stays. */
FT_API double ft_schedule_factor(ft_schedule schedule, int64_t step, int64_t warmup_steps, int64_t total_steps);
FT_API bool ft_schedule_parse(const char *name, ft_schedule *schedule); /* "linear", "cosine", "constant" */

/* ---------------------------------------------------------------------------------------------------------------------
   >>plan: the memory and the work of a training step, known before it runs */

typedef struct ft_plan {
  int64_t weights;     /* bytes of all parameters, the adapter's too */
  int64_t gradients;   /* of those that train */
  int64_t moments;     /* of AdamW: two for each that trains */
  int64_t activations; /* what temporary tensors take at most: ft_tape_peak_bytes after such a step */
  int64_t total;       /* the sum: the step's peak, in the back end's memory */
  double forward_operations, backward_operations; /* multiplications and additions of matrix products and attention */
} ft_plan;

/* What the step ft_model_forward(batch, options), ft_model_loss, ft_backward, ft_optimizer_step takes, computed without
   running it; of the batch only the shape counts. Between ft_no_grad_begin and _end, or without a head: the forward
   pass alone. The model may be one loaded with shapes_only; it is as before at the end, but no other thread may use it
   meanwhile. The plan goes to the log. Errors are those of the step. */
FT_API ft_status ft_plan_step(ft_context *context, ft_model *model, const ft_batch *batch,
                              const ft_forward_options *options, ft_plan *plan);

/* ---------------------------------------------------------------------------------------------------------------------
   >>metrics, as scikit-learn defines them; where a denominator is 0 the value is 0 */

typedef struct ft_class_metrics {
  double precision, recall, f1;
  int64_t support; /* how many truly are of this class */
} ft_class_metrics;

typedef struct ft_metrics { /* start from {0}; arrays are allocated by ft_metrics_compute */
  int64_t rows;
  int classes;
  double loss;     /* mean, if the evaluation computed one */
  double accuracy; /* multi-label: rows in which every label is right */
  double precision_macro, recall_macro, f1_macro;
  double precision_micro, recall_micro, f1_micro;
  double precision_weighted, recall_weighted, f1_weighted;
  double matthews;                                    /* Matthews correlation coefficient, single label */
  double mean_squared_error, mean_absolute_error, r2; /* regression */
  int64_t *confusion;         /* [classes, classes], row = truth, column = prediction; single label */
  ft_class_metrics *by_class; /* [classes] */
  ft_context *owner;
} ft_metrics;

/* Metrics of logits [rows, C] for a dataset's labels or targets: argmax for single label, logit > 0 for multi-label. */
FT_API ft_status ft_metrics_compute(ft_context *context, const ft_dataset *dataset, const float *logits,
                                    ft_metrics *metrics);
FT_API void ft_metrics_free(ft_metrics *metrics);
/* The one number by which models are compared: accuracy, or R2 for regression. */
FT_API double ft_metrics_score(const ft_metrics *metrics, ft_task task);

/* ---------------------------------------------------------------------------------------------------------------------
   >>training: the loop. It is written with nothing but the functions above: copy it and change it. */

typedef struct ft_train_progress {
  int64_t step, total_steps; /* optimizer steps done and planned */
  double epoch;              /* 1.5: half of the second epoch is done */
  double loss;               /* of this step's texts */
  double learning_rate, gradient_norm;
  double seconds, seconds_left, tokens_per_second;
  const ft_metrics *evaluation; /* set after an evaluation, else NULL */
  bool best;                    /* this evaluation is the best so far */
} ft_train_progress;

typedef struct ft_train_options {
  double epochs;             /* 0: 3 */
  int64_t max_steps;         /* 0: as the epochs say */
  int batch_size;            /* texts; 0: 16 */
  int64_t batch_tokens;      /* if set: as many texts as fit into this many tokens (at least one) */
  int gradient_accumulation; /* batches per optimizer step; 0: 1 */
  double learning_rate;      /* 0: 2e-5; with an adapter 5e-4 */
  double weight_decay;       /* 0: 0.01; negative: none */
  double warmup;             /* below 1: share of all steps, rounded up; else steps */
  ft_schedule schedule;
  double max_gradient_norm; /* 0: 1.0; negative: no clipping */
  int max_length;           /* 0: the smaller of the tokenizer's and the model's positions */
  uint64_t seed;            /* 0: 42 */
  bool no_shuffle;
  bool group_by_length; /* see ft_group_by_length */
  bool no_dropout;
  bool gradient_checkpointing; /* as in ft_forward_options */
  bool keep_last;              /* keep the last weights, not those of the best evaluation */
  int evaluation_batch_size;   /* 0: 32 */
  double layer_decay;          /* as in ft_adamw_options */
  /* n > 0: of what trains, the first epoch trains the topmost part (the head) alone, and each further one n parts more
     from the top down: layers, and below them the embeddings (Howard and Ruder 2018, "gradual unfreezing") */
  int unfreeze_layers_per_epoch;
  bool cache_frozen;           /* compute the frozen parts' output once, see >>features */
  int64_t cache_memory_limit;  /* of each dataset's cache, as in ft_features_options */
  const char *cache_directory; /* the same */
  ft_adapter *adapter; /* trains this alone: the model is frozen first (ft_model_train_all) and stays as it is */
  /* Called after every optimizer step and every evaluation; returning false stops with FT_ERROR_STOPPED. */
  bool (*progress)(void *user_data, const ft_train_progress *progress);
  void *user_data;
} ft_train_options;

typedef struct ft_train_result {
  int64_t steps;
  double train_loss; /* mean over all steps */
  double seconds;
  double best_score; /* of the evaluation set, see ft_metrics_score; 0 without one */
  int best_epoch;    /* from 1; 0 without an evaluation set */
  int64_t truncated_rows;
} ft_train_result;

/* Fine-tunes model on train; with evaluation (may be NULL) measures it after each epoch and leaves the best weights in
   the model. options may be NULL. A NaN or infinite loss or gradient stops with FT_ERROR_NUMERIC and names step and
   rows. */
FT_API ft_status ft_train(ft_context *context, ft_model *model, const ft_tokenizer *tokenizer, const ft_dataset *train,
                          const ft_dataset *evaluation, const ft_train_options *options, ft_train_result *result);

/* FT_OK if the dataset has rows, and labels of the model's task and number. */
FT_API ft_status ft_model_check_dataset(ft_context *context, const ft_model *model, const ft_dataset *dataset);
typedef struct ft_scoring_options { /* NULL instead of one: all defaults */
  int batch_size;                   /* texts at a time; 0: 32 */
  const ft_features *features;      /* of the encoded texts: start from these; not for ft_embed */
  const ft_adapter *adapter;        /* NULL: the model alone */
} ft_scoring_options;

/* Scores encoded texts: logits [rows, C], in the order of the rows. Texts are batched by length. Like training, scoring
   ends with ft_tape_clear. */
FT_API ft_status ft_predict(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                            const ft_scoring_options *options, float *logits);
/* The same for models of FT_TASK_TOKENS and FT_TASK_MASKED: logits [encoded->offsets[rows], C], all texts' tokens. */
FT_API ft_status ft_predict_tokens(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                                   const ft_scoring_options *options, float *logits);
/* ft_predict followed by ft_metrics_compute, with the mean loss. */
FT_API ft_status ft_evaluate(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                             const ft_dataset *dataset, const ft_scoring_options *options, ft_metrics *metrics);
/* Sentence embeddings [rows, H]: the first token's last hidden state, or the mean over all tokens, normalised to length
   1 if asked. */
FT_API ft_status ft_embed(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                          const ft_scoring_options *options, bool mean, bool normalize, float *embeddings);
/* A copy of all parameters of model and adapter (or NULL) that train now, taken at once and again whenever _take is
   called; _restore writes it back. */
typedef struct ft_snapshot ft_snapshot;
FT_API ft_snapshot *ft_snapshot_create(ft_context *context, const ft_model *model, const ft_adapter *adapter);
FT_API void ft_snapshot_free(ft_snapshot *snapshot);
FT_API ft_status ft_snapshot_take(ft_context *context, ft_snapshot *snapshot, const ft_model *model,
                                  const ft_adapter *adapter);
FT_API ft_status ft_snapshot_restore(ft_context *context, const ft_snapshot *snapshot, ft_model *model,
                                     ft_adapter *adapter);

/* Zeroed memory from the context's allocator, and back; NULL is an error of the context. */
FT_API void *ft_allocate(ft_context *context, size_t bytes);
FT_API void ft_release(ft_context *context, void *memory);
/* Neither NaN nor infinite, also under -Ofast. */
FT_API bool ft_is_finite(double value);

/* max_length for a model and tokenizer: asked, or if 0 the smaller of what both allow; an error if more than the
   model's positions. */
FT_API int ft_max_length(ft_context *context, const ft_model *model, const ft_tokenizer *tokenizer, int asked);

/* ---------------------------------------------------------------------------------------------------------------------
   >>backend: everything that touches tensor memory. A back end is a table of functions over opaque addresses, on which
   only the arithmetic address + offset is done outside it. Every function is deterministic: its result does not depend
   on the number of threads. Functions report failure through the context. All matrices are row-major and contiguous
   unless strides are given; `accumulate` means that the result is added to what the output holds, else overwritten. */

typedef enum ft_binary { FT_ADD = 0, FT_SUBTRACT, FT_MULTIPLY, FT_DIVIDE } ft_binary;

typedef struct ft_dropout_mask { /* which mask: see ft_random_position */
  float probability;             /* of zeroing an element; 0: no dropout, and the rest is not looked at */
  uint64_t seed;
  uint32_t step, micro_batch, site;
} ft_dropout_mask;

typedef struct ft_matmul_call { /* C [m, n] (+)= activation(A [m, k] B [k, n] + bias [n]) */
  int64_t m, n, k;
  const ft_real *a; /* element (i, p) at a[i * a_row + p * a_column]: transposing is a matter of strides */
  int64_t a_row, a_column;
  const ft_real *b; /* element (p, j) at b[p * b_row + j * b_column] */
  int64_t b_row, b_column;
  ft_real *c; /* element (i, j) at c[i * c_row + j] */
  int64_t c_row;
  bool accumulate;     /* excludes activation */
  const ft_real *bias; /* [n] or NULL */
  ft_unary activation;
  ft_real *before; /* NULL, or [m, n] with rows of c_row: receives the sum before the activation */
  /* NULL, or where a back end may keep B in the form in which it multiplies: NULL at first, then a buffer of its own,
     to be released when B changes. Calls with the same `packed` have the same B. */
  void **packed;
} ft_matmul_call;

/* Over packed texts: rows offsets[b] .. offsets[b] + lengths[b] attend to each other. The mask element of text b, head
   a, query i and key j (counted within the text) is ft__attention_keeps's. */
typedef struct ft_attention_call {
  int64_t texts, tokens, heads, head_size;
  const int32_t *offsets;             /* [B + 1] */
  const int32_t *lengths;             /* [B]: rows beyond the valid length are padding: output and gradients 0 */
  int32_t longest;                    /* max of offsets[b + 1] - offsets[b]; host value */
  ft_real scale;                      /* 1 / sqrt(head_size) */
  const ft_real *query, *key, *value; /* [T, A * D] */
  ft_real *output;                    /* [T, A * D] */
  ft_real *log_sum;                   /* [A, T]: log of the sum of exponentials of each row of scores, for backward */
  ft_dropout_mask dropout;            /* on the probabilities */
  const ft_real *output_gradient;     /* backward only: [T, A * D] */
  ft_real *query_gradient, *key_gradient, *value_gradient; /* backward only: [T, A * D], overwritten */
} ft_attention_call;

/* s = residual + dropout(x);  y = (s - mean(s)) / sqrt(var(s) + epsilon) * weight + bias */
typedef struct ft_layer_norm_call {
  int64_t rows, columns;
  const ft_real *x;             /* [rows, columns] */
  const ft_real *residual;      /* the same, or NULL */
  ft_dropout_mask dropout;      /* of x; mask element row * columns + column */
  const ft_real *weight, *bias; /* [columns] */
  ft_real epsilon;
  ft_real *y;                 /* [rows, columns] */
  ft_real *sum;               /* [rows, columns]: s, for the backward pass */
  ft_real *mean, *rstd;       /* [rows]: mean and 1 / sqrt(var + eps), for the backward pass */
  const ft_real *y_gradient;  /* backward only: [rows, columns] */
  ft_real *x_gradient;        /* backward only: [rows, columns] or NULL */
  bool x_accumulate;          /* add to x_gradient, else overwrite it */
  ft_real *residual_gradient; /* backward only: or NULL; added to if residual_accumulate, else overwritten */
  bool residual_accumulate;
  ft_real *weight_gradient, *bias_gradient; /* backward only: [columns] or NULL, added to */
} ft_layer_norm_call;

typedef struct ft_embedding_call { /* y[t] = words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]] */
  int64_t tokens, columns;
  const int32_t *ids, *position_ids, *type_ids; /* [T]; type_ids may be NULL */
  const ft_real *words, *positions, *types;     /* [V, H], [P, H], [Y, H] or NULL */
  int64_t words_rows, positions_rows, types_rows;
  ft_real *y;                                                    /* [T, H] */
  const ft_real *y_gradient;                                     /* backward only */
  ft_real *words_gradient, *positions_gradient, *types_gradient; /* backward only, or NULL; added to */
} ft_embedding_call;

/* loss = sum over rows with label >= 0 of -log softmax(logits)[label] / divisor */
typedef struct ft_cross_entropy_call {
  int64_t rows, columns;
  const ft_real *logits; /* [rows, C] */
  const int32_t *labels; /* [rows]: class, or negative to leave the row out */
  ft_real divisor;
  ft_real *loss;                /* [1] */
  const ft_real *loss_gradient; /* backward only: [1] */
  ft_real *logits_gradient;     /* backward only: added to */
} ft_cross_entropy_call;

typedef struct ft_pointwise_loss_call { /* loss = sum over elements of l(x, target) / divisor */
  int64_t count;
  bool binary_cross_entropy;  /* l = -t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)); else l = (x - t)^2 */
  const ft_real *x, *targets; /* [count] */
  ft_real divisor;
  ft_real *loss;                /* [1] */
  const ft_real *loss_gradient; /* backward only: [1] */
  ft_real *x_gradient;          /* backward only: added to */
} ft_pointwise_loss_call;

typedef struct ft_adamw_step { /* one step for one tensor: see ft_optimizer_step */
  int64_t count;
  ft_real *weight, *first_moment, *second_moment; /* [count] */
  const ft_real *gradient;                        /* [count] */
  double gradient_scale;                          /* the gradient is multiplied by this first: clipping */
  double learning_rate, beta1, beta2, epsilon, weight_decay;
  int64_t step; /* from 1 */
  /* Host memory, or NULL: for each row of `columns` elements, 0 where gradient and moments are all zero. They need not
     be read there; the result is the same if they are. */
  const uint8_t *rows;
  int64_t columns;
} ft_adamw_step;

struct ft_backend {
  const char *name;
  void *(*allocate)(ft_context *context, size_t bytes); /* 64-byte aligned; NULL: out of memory */
  void (*release)(ft_context *context, void *buffer);
  void (*write)(ft_context *context, void *buffer, const void *host, size_t bytes);
  void (*read)(ft_context *context, const void *buffer, void *host, size_t bytes);
  void (*zero)(ft_context *context, void *buffer, size_t bytes);
  /* small operations */
  void (*unary)(ft_context *context, ft_unary kind, int64_t count, const ft_real *x, ft_real *y);
  /* dx (+)= dy * f'(x); y = f(x) is given too because some derivatives are simpler in it */
  void (*unary_backward)(ft_context *context, ft_unary kind, int64_t count, const ft_real *x, const ft_real *y,
                         const ft_real *dy, ft_real *dx, bool accumulate);
  /* y [shape], contiguous, = a op b; strides in elements, 0 where an operand is broadcast; always 4 dimensions */
  void (*binary)(ft_context *context, ft_binary kind, const int64_t *shape, const ft_real *a, const int64_t *a_stride,
                 const ft_real *b, const int64_t *b_stride, ft_real *y);
  /* y[...] += scale * x[...] over shape [4]; a stride of 0 in y sums over that dimension: views, broadcasts and
     reductions in one */
  void (*accumulate)(ft_context *context, const int64_t *shape, ft_real scale, const ft_real *x,
                     const int64_t *x_stride, ft_real *y, const int64_t *y_stride);
  void (*softmax)(ft_context *context, int64_t rows, int64_t columns, const ft_real *x, ft_real *y);
  void (*softmax_backward)(ft_context *context, int64_t rows, int64_t columns, const ft_real *y, const ft_real *dy,
                           ft_real *dx); /* dx += */
  void (*matmul)(ft_context *context, const ft_matmul_call *call);
  /* the encoder's fused operations */
  void (*column_sum)(ft_context *context, int64_t rows, int64_t columns, const ft_real *x, ft_real *sum); /* sum += */
  void (*dropout)(ft_context *context, int64_t count, const ft_dropout_mask *dropout, const ft_real *x, ft_real *y,
                  bool accumulate); /* y (+)= mask * x / (1 - p): forward, and backward on gradients */
  void (*layer_norm)(ft_context *context, const ft_layer_norm_call *call);
  void (*layer_norm_backward)(ft_context *context, const ft_layer_norm_call *call);
  void (*attention)(ft_context *context, const ft_attention_call *call);
  void (*attention_backward)(ft_context *context, const ft_attention_call *call);
  void (*embedding)(ft_context *context, const ft_embedding_call *call);
  void (*embedding_backward)(ft_context *context, const ft_embedding_call *call);
  /* y[i] = x[rows[i]], and its reverse x[rows[i]] += y[i]; rows of `columns` elements */
  void (*gather_rows)(ft_context *context, int64_t count, int64_t columns, const int32_t *rows, const ft_real *x,
                      ft_real *y);
  void (*scatter_rows)(ft_context *context, int64_t count, int64_t columns, const int32_t *rows, const ft_real *y,
                       ft_real *x);
  void (*cross_entropy)(ft_context *context, const ft_cross_entropy_call *call);
  void (*cross_entropy_backward)(ft_context *context, const ft_cross_entropy_call *call);
  void (*pointwise_loss)(ft_context *context, const ft_pointwise_loss_call *call);
  void (*pointwise_loss_backward)(ft_context *context, const ft_pointwise_loss_call *call);
  double (*sum_of_squares)(ft_context *context, int64_t count, const ft_real *x);
  void (*adamw)(ft_context *context, const ft_adamw_step *step);
};

/* The processor's own back end: a full table that another one may borrow from. */
FT_API const ft_backend *ft_backend_cpu(void);

typedef struct ft_profile_entry { /* what the calls of one of the back end's functions have taken */
  const char *name;
  int64_t calls;
  double seconds, operations,
      bytes; /* operations: multiplications and additions of products; bytes: read and written */
} ft_profile_entry;

/* From here on, times what the context's back end does; entries holds the sums so far, and is NULL before. A back end
   that returns before its work is done is charged with the starting alone. */
FT_API ft_status ft_profile_begin(ft_context *context);
FT_API const ft_profile_entry *ft_profile_entries(const ft_context *context, int *count);

#ifdef __cplusplus
}
#endif
#endif /* FINETUNE_H */

/* =====================================================================================================================
   PART II: THE IMPLEMENTATION
   ================================================================================================================== */
#if defined(FT_IMPLEMENTATION) && !defined(FT__IMPLEMENTED)
#define FT__IMPLEMENTED

#if defined(__GLIBC__) && !defined(__USE_POSIX199309)
#error "the file that defines FT_IMPLEMENTATION must include finetune.h before any system header"
#endif
#include <errno.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#ifdef _WIN32
#include <direct.h>
#include <io.h>
#include <windows.h>
#else
#include <sys/mman.h>
#include <unistd.h>
#endif
#ifndef FT_ASSERT
#include <assert.h>
#define FT_ASSERT(condition) assert(condition)
#endif

#if defined(__GNUC__)
#define FT__PRINTF(text, first) __attribute__((format(printf, text, first)))
#define FT__UNUSED __attribute__((unused))
#else
#define FT__PRINTF(text, first)
#define FT__UNUSED
#endif

/* =====================================================================================================================
   >>memory and errors

   All memory comes from the context's allocator. Host memory of one step (tape nodes, tensor headers) and back-end
   memory of one step (activations, gradients) each come from an arena: a list of blocks that is filled front to back,
   and emptied at once by ft_tape_clear. A step that outgrew its block leaves several; clearing replaces them by one
   block for all that was in use, so that from the second step on a step allocates nothing. */

typedef struct ft__block {
  struct ft__block *next;
  char *memory;
  size_t size, used;
} ft__block;

typedef struct ft__arena {
  ft__block *first;
  ft__block *current; /* where memory is taken from; blocks after it are empty */
  size_t total;       /* bytes in use over all blocks */
  size_t peak;
  bool on_backend; /* memory comes from the back end, not the host allocator */
} ft__arena;

typedef struct ft__pool ft__pool; /* threads: next chapter */
typedef struct ft__tape ft__tape; /* see >>tape */

struct ft_context {
  ft_allocator allocator;
  void (*log)(void *user_data, ft_log_level level, const char *message);
  void *log_user_data;
  const ft_backend *backend;
  struct ft__profile *profile; /* NULL: not asked for */
  ft__pool *pool;
  int threads;
  ft_dtype compute_dtype;
  bool has_pairs, has_tiles; /* the processor's instructions for bfloat16: see >>kernels */
  ft__arena host_arena, backend_arena;
  ft__tape *tape;
  int no_grad;          /* depth of ft_no_grad_begin */
  uint64_t random_seed; /* see ft_random_position */
  uint32_t random_step, random_micro_batch;
  void *scratch; /* [threads] pieces of FT__SCRATCH_BYTES for kernels */
  ft_status status;
  char message[1024];
};

static void *ft__malloc_default(void *user_data, size_t bytes) {
  (void)user_data;
  return malloc(bytes ? bytes : 1);
}

static void ft__free_default(void *user_data, void *pointer) {
  (void)user_data;
  free(pointer);
}

/* Records an error and returns its status, so that `return ft__error(...)` reads well. */
FT__PRINTF(3, 4)
static ft_status ft__error(ft_context *context, ft_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  context->status = status;
  vsnprintf(context->message, sizeof context->message, format, arguments);
  va_end(arguments);
  return status;
}

FT__PRINTF(3, 4)
static void ft__log(ft_context *context, ft_log_level level, const char *format, ...) {
  char message[1024];
  va_list arguments;
  if (!context->log) return;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  context->log(context->log_user_data, level, message);
}

/* Host memory. NULL is recorded as an error that says how much was wanted. */
static void *ft__allocate(ft_context *context, size_t bytes) {
  void *memory = context->allocator.allocate(context->allocator.user_data, bytes ? bytes : 1);
  if (!memory) ft__error(context, FT_ERROR_MEMORY, "out of memory: %zu bytes were asked for", bytes);
  return memory;
}

static void *ft__allocate_zero(ft_context *context, size_t bytes) {
  void *memory = ft__allocate(context, bytes);
  if (memory) memset(memory, 0, bytes);
  return memory;
}

static void ft__release(ft_context *context, void *memory) {
  if (memory) context->allocator.release(context->allocator.user_data, memory);
}

/* Multiplies sizes; SIZE_MAX when the product does not fit, which no allocator grants. */
static size_t ft__size_product(size_t a, size_t b) { return b && a > SIZE_MAX / b ? SIZE_MAX : a * b; }

/* Makes room for `needed` elements in an array that grows by half its size; contents are kept. */
static bool ft__grow(ft_context *context, void *array_address, int64_t *capacity, int64_t needed, size_t element_size) {
  void *grown, *old;
  int64_t room;
  memcpy(&old, array_address, sizeof old); /* the address of any kind of pointer: copied, not cast */
  if (needed <= *capacity) return true;
  room = *capacity + *capacity / 2;
  if (room < needed) room = needed;
  if (room < 16) room = 16;
  grown = ft__allocate(context, ft__size_product((size_t)room, element_size));
  if (!grown) return false;
  if (old) memcpy(grown, old, (size_t)*capacity * element_size);
  ft__release(context, old);
  memcpy(array_address, &grown, sizeof grown);
  *capacity = room;
  return true;
}

/* A zero-terminated copy of length bytes. */
static char *ft__string_copy(ft_context *context, const char *text, size_t length) {
  char *copy = (char *)ft__allocate(context, length + 1);
  if (!copy) return NULL;
  memcpy(copy, text, length);
  copy[length] = 0;
  return copy;
}

/* A string that grows: how JSON is written. `failed` sticks, so that appends need no checks of their own. */
typedef struct ft__string {
  ft_context *context;
  char *text; /* zero-terminated once anything was appended */
  int64_t length, capacity;
  bool failed;
} ft__string;

static void ft__append_bytes(ft__string *string, const char *bytes, size_t count) {
  if (string->failed ||
      !ft__grow(string->context, &string->text, &string->capacity, string->length + (int64_t)count + 1, 1)) {
    string->failed = true;
    return;
  }
  memcpy(string->text + string->length, bytes, count);
  string->length += (int64_t)count;
  string->text[string->length] = 0;
}

static void ft__append(ft__string *string, const char *text) { ft__append_bytes(string, text, strlen(text)); }

FT__PRINTF(2, 3)
static void ft__append_format(ft__string *string, const char *format, ...) {
  char piece[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(piece, sizeof piece, format, arguments);
  va_end(arguments);
  ft__append(string, piece);
}

static void ft__string_free(ft__string *string) {
  ft__release(string->context, string->text);
  string->text = NULL;
  string->length = string->capacity = 0;
}

static void *ft__block_memory(ft_context *context, const ft__arena *arena, size_t bytes) {
  if (!arena->on_backend) return ft__allocate(context, bytes);
  {
    void *memory = context->backend->allocate(context, bytes);
    if (!memory)
      ft__error(context, FT_ERROR_MEMORY, "out of memory: back end %s cannot give %zu bytes", context->backend->name,
                bytes);
    return memory;
  }
}

static void ft__block_release(ft_context *context, const ft__arena *arena, ft__block *block) {
  if (arena->on_backend)
    context->backend->release(context, block->memory);
  else
    ft__release(context, block->memory);
  ft__release(context, block);
}

/* Puts a new block behind the current one. */
static ft__block *ft__block_add(ft_context *context, ft__arena *arena, size_t size) {
  ft__block *block = (ft__block *)ft__allocate_zero(context, sizeof *block);
  if (!block) return NULL;
  block->memory = (char *)ft__block_memory(context, arena, size);
  if (!block->memory) {
    ft__release(context, block);
    return NULL;
  }
  block->size = size;
  if (arena->current) {
    block->next = arena->current->next;
    arena->current->next = block;
  } else {
    arena->first = block;
  }
  arena->current = block;
  return block;
}

static size_t ft__least_block(const ft__arena *arena) { return arena->on_backend ? (size_t)4 << 20 : (size_t)64 << 10; }

/* Memory until ft__arena_reset; 64-byte aligned relative to the block's start. */
static void *ft__arena_allocate(ft_context *context, ft__arena *arena, size_t bytes) {
  size_t least = ft__least_block(arena);
  char *memory;
  if (bytes > SIZE_MAX / 4) {
    ft__error(context, FT_ERROR_MEMORY, "out of memory: a step asked for %zu bytes at once", bytes);
    return NULL;
  }
  bytes = (bytes + 63) / 64 * 64;
  while (!arena->current || arena->current->size - arena->current->used < bytes) {
    if (arena->current && arena->current->next)
      arena->current = arena->current->next;
    else if (!ft__block_add(context, arena, bytes > least ? bytes : least))
      return NULL;
  }
  memory = arena->current->memory + arena->current->used;
  arena->current->used += bytes;
  arena->total += bytes;
  if (arena->total > arena->peak) arena->peak = arena->total;
  return memory;
}

static void ft__arena_free(ft_context *context, ft__arena *arena) {
  while (arena->first) {
    ft__block *next = arena->first->next;
    ft__block_release(context, arena, arena->first);
    arena->first = next;
  }
  arena->current = NULL;
}

/* Empties the arena. Several blocks become one that holds what was in use at most; if that cannot be had, the next step
   asks again, in pieces. */
static void ft__arena_reset(ft_context *context, ft__arena *arena) {
  arena->total = 0;
  arena->current = arena->first;
  if (!arena->first) return;
  arena->first->used = 0;
  if (arena->first->next) {
    size_t least = ft__least_block(arena);
    ft_status status = context->status;
    ft__arena_free(context, arena);
    if (!ft__block_add(context, arena, (arena->peak + least - 1) / least * least)) context->status = status;
  }
}

/* A place to return to: what was allocated since is given up, its memory kept for what comes. */
typedef struct ft__arena_mark {
  ft__block *block;
  size_t used, total;
} ft__arena_mark;

static ft__arena_mark ft__arena_here(const ft__arena *arena) {
  ft__arena_mark mark;
  mark.block = arena->current;
  mark.used = arena->current ? arena->current->used : 0;
  mark.total = arena->total;
  return mark;
}

static void ft__arena_return(ft__arena *arena, ft__arena_mark mark) {
  ft__block *block;
  arena->current = mark.block ? mark.block : arena->first;
  arena->total = mark.total;
  if (!arena->current) return;
  arena->current->used = mark.used;
  for (block = arena->current->next; block; block = block->next) block->used = 0;
}

FT_API const char *ft_error_message(const ft_context *context) {
  return context ? context->message : "the context could not be created: out of memory, or only one allocator hook set";
}

FT_API ft_status ft_error_set(ft_context *context, ft_status status, const char *message) {
  return ft__error(context, status, "%s", message);
}

FT_API ft_status ft_error_status(const ft_context *context) { return context ? context->status : FT_ERROR_MEMORY; }

FT_API double ft_seconds(void) {
#ifdef _WIN32
  LARGE_INTEGER count, frequency;
  QueryPerformanceCounter(&count);
  QueryPerformanceFrequency(&frequency);
  return (double)count.QuadPart / (double)frequency.QuadPart;
#else
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
#endif
}

/* =====================================================================================================================
   >>threads

   A pool of threads that runs `task(argument, piece)` for piece = 0 .. count - 1. Pieces are handed out one at a time
   by an atomic counter; since what a piece computes depends on the piece alone, results are the same for any number of
   threads. The caller takes pieces too, and waits for pieces, not for threads: on a busy machine it does not stand still
   until a worker that has nothing left to do was woken. Waiting threads spin a moment, because a training step hands out
   work every few microseconds, and then sleep. */

typedef void (*ft__task)(void *argument, int64_t piece, int thread);

#define FT__SCRATCH_BYTES ((size_t)4 << 20) /* for each thread, for kernels: packed panels, rows of scores */

#if defined(FT_NO_THREADS) || !(defined(_WIN32) || defined(__GNUC__))
#define FT__THREADS 0
#else
#define FT__THREADS 1
#endif

#if FT__THREADS
#ifdef _WIN32
typedef HANDLE ft__thread;
typedef CRITICAL_SECTION ft__mutex;
typedef CONDITION_VARIABLE ft__condition;
#define FT__THREAD_RESULT DWORD WINAPI
#define ft__mutex_initialize(mutex) InitializeCriticalSection(mutex)
#define ft__mutex_destroy(mutex) DeleteCriticalSection(mutex)
#define ft__mutex_lock(mutex) EnterCriticalSection(mutex)
#define ft__mutex_unlock(mutex) LeaveCriticalSection(mutex)
#define ft__condition_initialize(condition) InitializeConditionVariable(condition)
#define ft__condition_destroy(condition) ((void)(condition))
#define ft__condition_wait(condition, mutex) SleepConditionVariableCS(condition, mutex, INFINITE)
#define ft__condition_wake_all(condition) WakeAllConditionVariable(condition)
#define ft__thread_join(thread) (WaitForSingleObject(thread, INFINITE), CloseHandle(thread))
#else
#include <pthread.h>
typedef pthread_t ft__thread;
typedef pthread_mutex_t ft__mutex;
typedef pthread_cond_t ft__condition;
#define FT__THREAD_RESULT void *
#define ft__mutex_initialize(mutex) pthread_mutex_init(mutex, NULL)
#define ft__mutex_destroy(mutex) pthread_mutex_destroy(mutex)
#define ft__mutex_lock(mutex) pthread_mutex_lock(mutex)
#define ft__mutex_unlock(mutex) pthread_mutex_unlock(mutex)
#define ft__condition_initialize(condition) pthread_cond_init(condition, NULL)
#define ft__condition_destroy(condition) pthread_cond_destroy(condition)
#define ft__condition_wait(condition, mutex) pthread_cond_wait(condition, mutex)
#define ft__condition_wake_all(condition) pthread_cond_broadcast(condition)
#define ft__thread_join(thread) pthread_join(thread, NULL)
#if defined(__GLIBC__) && !(__GLIBC__ > 2 || __GLIBC_MINOR__ >= 34)
/* Older glibc keeps threads in a library of its own: without -pthread the address is NULL, and one thread must do. */
#pragma weak pthread_create
#pragma weak pthread_join
#define FT__THREADS_LINKED (pthread_create != NULL)
#endif
#endif
#ifndef FT__THREADS_LINKED
#define FT__THREADS_LINKED true
#endif

typedef struct ft__worker {
  ft__pool *pool;
  ft__thread thread;
  int index; /* 1 .. workers; the caller is 0 */
} ft__worker;

typedef struct ft__job {
  ft__task task;
  void *argument;
  int64_t count;
  uint32_t generation; /* which job this is */
} ft__job;

struct ft__pool {
  ft_context *context;
  ft__mutex mutex;
  ft__condition work_arrived, work_done;
  ft__job job;     /* the latest; read and written under the mutex */
  uint64_t ticket; /* its generation << 32 | its next piece to hand out: atomic */
  int64_t done;    /* its pieces that are finished: atomic */
  bool quit;
  int workers;        /* threads started: ft_context.threads - 1 */
  ft__worker *worker; /* [workers] */
};

/* Takes pieces of a job until none is left, or another job has taken its place. Each piece is drawn by moving the ticket
   on, which succeeds for one thread only and only while the ticket is this job's. */
static void ft__pool_take_pieces(ft__pool *pool, const ft__job *job, int thread) {
  uint64_t ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
  while ((uint32_t)(ticket >> 32) == job->generation && (int64_t)(ticket & UINT32_MAX) < job->count) {
    if (!__atomic_compare_exchange_n(&pool->ticket, &ticket, ticket + 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      continue; /* another thread was faster; `ticket` is now what it left */
    job->task(job->argument, (int64_t)(ticket & UINT32_MAX), thread);
    if (__atomic_add_fetch(&pool->done, 1, __ATOMIC_ACQ_REL) == job->count && thread != 0) {
      ft__mutex_lock(&pool->mutex);
      ft__condition_wake_all(&pool->work_done);
      ft__mutex_unlock(&pool->mutex);
    }
    ticket = __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE);
  }
}

static void ft__pause(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

enum { FT__SPINS = 4000 }; /* some tens of microseconds */

static FT__THREAD_RESULT ft__worker_main(void *argument) {
  ft__worker *self = (ft__worker *)argument;
  ft__pool *pool = self->pool;
  uint32_t seen = 0;
  for (;;) {
    ft__job job;
    int spin;
    bool quit;
    for (spin = 0; spin < FT__SPINS && __atomic_load_n(&pool->ticket, __ATOMIC_ACQUIRE) >> 32 == seen; ++spin)
      ft__pause();
    ft__mutex_lock(&pool->mutex);
    while (pool->job.generation == seen && !pool->quit) ft__condition_wait(&pool->work_arrived, &pool->mutex);
    job = pool->job;
    quit = pool->quit;
    ft__mutex_unlock(&pool->mutex);
    if (quit) return 0;
    seen = job.generation;
    ft__pool_take_pieces(pool, &job, self->index);
  }
}

static void ft__pool_free(ft_context *context) {
  ft__pool *pool = context->pool;
  int i;
  if (!pool) return;
  ft__mutex_lock(&pool->mutex);
  pool->quit = true;
  ft__condition_wake_all(&pool->work_arrived);
  ft__mutex_unlock(&pool->mutex);
  for (i = 0; i < pool->workers; ++i) ft__thread_join(pool->worker[i].thread);
  ft__condition_destroy(&pool->work_arrived);
  ft__condition_destroy(&pool->work_done);
  ft__mutex_destroy(&pool->mutex);
  ft__release(context, pool->worker);
  ft__release(context, pool);
  context->pool = NULL;
}

static bool ft__thread_start(ft__worker *worker) {
#ifdef _WIN32
  worker->thread = CreateThread(NULL, 0, ft__worker_main, worker, 0, NULL);
  return worker->thread != NULL;
#else
  return pthread_create(&worker->thread, NULL, ft__worker_main, worker) == 0;
#endif
}

/* Starts workers; a thread that cannot be had is done without. */
static bool ft__pool_create(ft_context *context, int threads) {
  ft__pool *pool;
  if (threads < 2 || !FT__THREADS_LINKED) return true;
  pool = (ft__pool *)ft__allocate_zero(context, sizeof *pool);
  if (!pool) return false;
  context->pool = pool;
  pool->context = context;
  ft__mutex_initialize(&pool->mutex);
  ft__condition_initialize(&pool->work_arrived);
  ft__condition_initialize(&pool->work_done);
  pool->worker = (ft__worker *)ft__allocate_zero(context, sizeof *pool->worker * (size_t)(threads - 1));
  if (!pool->worker) return false;
  while (pool->workers < threads - 1) {
    ft__worker *worker = &pool->worker[pool->workers];
    worker->pool = pool;
    worker->index = pool->workers + 1;
    if (!ft__thread_start(worker)) break;
    ++pool->workers;
  }
  return true;
}

static int ft__processors(void) {
#ifdef _WIN32
  SYSTEM_INFO information;
  GetSystemInfo(&information);
  return (int)information.dwNumberOfProcessors;
#elif defined(_SC_NPROCESSORS_ONLN)
  long count = sysconf(_SC_NPROCESSORS_ONLN);
  return count > 0 && count < 1024 ? (int)count : 1;
#else
  return 1;
#endif
}

/* count is below 2^32. When all pieces are done the caller goes on, whether or not every worker has woken up: one that
   comes late finds the ticket of another job, and takes none. */
static void ft__pool_run(ft__pool *pool, int64_t count, ft__task task, void *argument) {
  ft__job job;
  int spin;
  job.task = task;
  job.argument = argument;
  job.count = count;
  ft__mutex_lock(&pool->mutex);
  job.generation = pool->job.generation + 1;
  pool->job = job;
  __atomic_store_n(&pool->done, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&pool->ticket, (uint64_t)job.generation << 32, __ATOMIC_RELEASE);
  ft__condition_wake_all(&pool->work_arrived);
  ft__mutex_unlock(&pool->mutex);
  ft__pool_take_pieces(pool, &job, 0);
  for (spin = 0; spin < FT__SPINS; ++spin) {
    if (__atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) == count) return;
    ft__pause();
  }
  ft__mutex_lock(&pool->mutex);
  while (__atomic_load_n(&pool->done, __ATOMIC_ACQUIRE) != count) ft__condition_wait(&pool->work_done, &pool->mutex);
  ft__mutex_unlock(&pool->mutex);
}
#else
static bool ft__pool_create(ft_context *context, int threads) {
  (void)context, (void)threads;
  return true;
}
static void ft__pool_free(ft_context *context) { (void)context; }
static int ft__processors(void) { return 1; }
#endif

/* Runs task(argument, piece, thread) for every piece; thread (0 .. threads - 1) chooses scratch memory only. */
static void ft__parallel_for(ft_context *context, int64_t count, ft__task task, void *argument) {
#if FT__THREADS
  if (context->pool && context->pool->workers && count > 1 && count < UINT32_MAX) {
    ft__pool_run(context->pool, count, task, argument);
    return;
  }
#endif
  {
    int64_t piece;
    (void)context;
    for (piece = 0; piece < count; ++piece) task(argument, piece, 0);
  }
}

/* A thread's own FT__SCRATCH_BYTES, 64-byte aligned. */
static void *ft__scratch(ft_context *context, int thread) {
  uintptr_t start = ((uintptr_t)context->scratch + 63) / 64 * 64;
  return (void *)(start + (uintptr_t)thread * FT__SCRATCH_BYTES);
}

FT_API int ft_context_threads(const ft_context *context) { return context->threads; }
FT_API ft_dtype ft_context_compute_dtype(const ft_context *context) { return context->compute_dtype; }

static void ft__tape_free(ft_context *context);
static void ft__kernels_choose(ft_context *context);

FT_API void ft_context_free(ft_context *context) {
  if (!context) return;
  ft__tape_free(context);
  ft__pool_free(context);
  ft__arena_free(context, &context->host_arena);
  ft__arena_free(context, &context->backend_arena);
  ft__release(context, context->scratch);
  ft__release(context, context->profile);
  ft__release(context, context);
}

FT_API ft_context *ft_context_create(const ft_context_options *options) {
  ft_context_options none;
  ft_context *context;
  memset(&none, 0, sizeof none);
  if (!options) options = &none;
  none = *options;
  if (!none.allocator.allocate != !none.allocator.release) return NULL;
  if (!none.allocator.allocate) {
    none.allocator.allocate = ft__malloc_default;
    none.allocator.release = ft__free_default;
  }
  context = (ft_context *)none.allocator.allocate(none.allocator.user_data, sizeof *context);
  if (!context) return NULL;
  memset(context, 0, sizeof *context);
  context->allocator = none.allocator;
  context->log = none.log;
  context->log_user_data = none.log_user_data;
  context->backend = none.backend ? none.backend : ft_backend_cpu();
  context->backend_arena.on_backend = true;
  context->compute_dtype = none.compute_dtype;
  context->threads = 1;
  if (!ft__pool_create(context, none.threads > 0 ? none.threads : ft__processors())) {
    ft_context_free(context);
    return NULL;
  }
#if FT__THREADS
  if (context->pool) context->threads = context->pool->workers + 1;
#endif
  context->scratch = ft__allocate(context, FT__SCRATCH_BYTES * (size_t)context->threads + 64);
  if (!context->scratch) {
    ft_context_free(context);
    return NULL;
  }
  ft__kernels_choose(context);
  return context;
}

/* =====================================================================================================================
   >>random numbers

   Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a keyed bijection
   of 128-bit counters. Ten rounds of two 32 x 32 -> 64 bit products:

       (c0, c1, c2, c3)  ->  (hi(M1 c2) ^ c1 ^ k0,  lo(M1 c2),  hi(M0 c0) ^ c3 ^ k1,  lo(M0 c0)),   k += W

   There is no state: which numbers come out depends on the counter alone, so any element of any mask can be computed
   again at any time, by any thread. Key = seed mixed with the micro-batch; counter = (block, row, site, step). */

static void ft__philox(uint32_t key0, uint32_t key1, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                       uint32_t out[4]) {
  int round;
  for (round = 0; round < 10; ++round) {
    uint64_t product0 = (uint64_t)0xD2511F53u * c0, product1 = (uint64_t)0xCD9E8D57u * c2;
    uint32_t next0 = (uint32_t)(product1 >> 32) ^ c1 ^ key0, next2 = (uint32_t)(product0 >> 32) ^ c3 ^ key1;
    c1 = (uint32_t)product1;
    c3 = (uint32_t)product0;
    c0 = next0;
    c2 = next2;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Four numbers of a dropout mask: elements 4 block .. 4 block + 3 of row `row` (0 for masks without rows). */
static void ft__dropout_random(const ft_dropout_mask *dropout, uint32_t block, uint32_t row, uint32_t out[4]) {
  ft__philox((uint32_t)dropout->seed, (uint32_t)(dropout->seed >> 32) ^ (dropout->micro_batch * 0x85EBCA6Bu), block,
             row, dropout->site, dropout->step, out);
}

/* An element is zeroed when its 32-bit number is below this: probability p to within 2^-32. */
static uint32_t ft__dropout_threshold(float probability) {
  double scaled = (double)probability * 4294967296.0;
  return scaled >= 4294967295.0 ? 0xFFFFFFFFu : scaled > 0 ? (uint32_t)scaled : 0;
}

/* Element `index` of a mask without rows. */
FT__UNUSED static bool ft__dropout_keeps(const ft_dropout_mask *dropout, uint64_t index) {
  uint32_t random[4];
  ft__dropout_random(dropout, (uint32_t)(index / 4), (uint32_t)(index >> 34), random);
  return random[index % 4] >= ft__dropout_threshold(dropout->probability);
}

/* The mask element of probability (text, head, query, key), all counted within the batch's text: up to 65,536 keys. */
FT__UNUSED static bool ft__attention_keeps(const ft_dropout_mask *dropout, int64_t text, int64_t heads, int64_t head,
                                           int64_t query, int64_t key) {
  uint32_t random[4];
  ft__dropout_random(dropout, (uint32_t)(query * 16384 + key / 4), (uint32_t)(text * heads + head), random);
  return random[key % 4] >= ft__dropout_threshold(dropout->probability);
}

/* The mask of a site at the context's random position. */
static ft_dropout_mask ft__dropout_mask(const ft_context *context, double probability, uint32_t site) {
  ft_dropout_mask mask;
  mask.probability = (float)probability;
  mask.seed = context->random_seed;
  mask.step = context->random_step;
  mask.micro_batch = context->random_micro_batch;
  mask.site = site;
  return mask;
}

FT_API void ft_random_position(ft_context *context, uint64_t seed, int64_t step, int64_t micro_batch) {
  context->random_seed = seed;
  context->random_step = (uint32_t)step;
  context->random_micro_batch = (uint32_t)micro_batch;
}

/* A stream of numbers for initialisation: element `index` of stream (seed, site), normal with deviation 1 (Box-Muller).
 */
static double ft__random_normal(uint64_t seed, uint32_t site, uint64_t index) {
  uint32_t random[4];
  double u1, u2;
  ft__philox((uint32_t)seed, (uint32_t)(seed >> 32), (uint32_t)index, (uint32_t)(index >> 32), site, 0x494E4954u,
             random);
  u1 = ((double)random[0] + 1.0) / 4294967297.0;
  u2 = (double)random[1] / 4294967296.0;
  return sqrt(-2.0 * log(u1)) * cos(6.283185307179586 * u2);
}

/* The same, uniform in [0, 1). */
static double ft__random_uniform(uint64_t seed, uint32_t site, uint64_t index) {
  uint32_t random[4];
  ft__philox((uint32_t)seed, (uint32_t)(seed >> 32), (uint32_t)index, (uint32_t)(index >> 32), site, 0x554E4946u,
             random);
  return (double)random[0] / 4294967296.0;
}

/* MT19937 (Matsumoto and Nishimura 1998), as torch's CPU generator and Trainer's shuffle use it. */
typedef struct ft__mersenne {
  uint32_t state[624];
  int index;
} ft__mersenne;

static void ft__mersenne_seed(ft__mersenne *generator, uint32_t seed) {
  int i;
  generator->state[0] = seed;
  for (i = 1; i < 624; ++i)
    generator->state[i] = 1812433253u * (generator->state[i - 1] ^ (generator->state[i - 1] >> 30)) + (uint32_t)i;
  generator->index = 624;
}

static uint32_t ft__mersenne_next(ft__mersenne *generator) {
  uint32_t *state = generator->state, y;
  if (generator->index == 624) {
    int i;
    for (i = 0; i < 624; ++i) {
      y = (state[i] & 0x80000000u) | (state[(i + 1) % 624] & 0x7FFFFFFFu);
      state[i] = state[(i + 397) % 624] ^ (y >> 1) ^ (y & 1 ? 0x9908B0DFu : 0);
    }
    generator->index = 0;
  }
  y = state[generator->index++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9D2C5680u;
  y ^= (y << 15) & 0xEFC60000u;
  return y ^ (y >> 18);
}

FT_API void ft_shuffle(int64_t *order, int64_t count, uint64_t seed) {
  ft__mersenne generator;
  int64_t i;
  ft__mersenne_seed(&generator, (uint32_t)seed);
  for (i = 0; i < count; ++i) order[i] = i;
  for (i = 0; i < count - 1; ++i) {
    int64_t chosen = i + (int64_t)(ft__mersenne_next(&generator) % (uint64_t)(count - i));
    int64_t swapped = order[i];
    order[i] = order[chosen];
    order[chosen] = swapped;
  }
}
/* =====================================================================================================================
   >>text: UTF-8, decimal numbers, sorted names

   UTF-8 writes a code point in one to four bytes: 0xxxxxxx, 110xxxxx 10xxxxxx, 1110xxxx 10xxxxxx 10xxxxxx, and 11110xxx
   with three more. Overlong forms, the surrogates U+D800..U+DFFF and anything above U+10FFFF are invalid; all of these
   can be told from the first two bytes, so a table-free decoder needs only the range of the second byte. */

/* What a function does with a NULL that it needs: an earlier failure keeps its message, else this is the caller's
   error. Returns NULL, so that `return (type *)ft__null_argument(...)` reads well. */
static void *ft__null_argument(ft_context *context, const char *message) {
  if (context && context->status == FT_OK) ft__error(context, FT_ERROR_ARGUMENT, "%s", message);
  return NULL;
}

static bool ft__ends_with(const char *text, const char *end) {
  size_t length = strlen(text), end_length = strlen(end);
  return length >= end_length && strcmp(text + length - end_length, end) == 0;
}

/* Decodes the code point at text (length > 0) and returns how many bytes it took. An invalid sequence gives U+FFFD and
   takes the longest prefix that could have begun a valid one, at least one byte: as the WHATWG standard has it. */
static int ft__utf8_decode(const char *text, size_t length, uint32_t *code) {
  const unsigned char *byte = (const unsigned char *)text;
  unsigned lead = byte[0], low = 0x80, high = 0xBF; /* the range of the second byte */
  int needed, i;
  uint32_t value;
  *code = lead;
  if (lead < 0x80) return 1;
  *code = 0xFFFD;
  if (lead < 0xC2 || lead > 0xF4) return 1;
  needed = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (lead == 0xE0) low = 0xA0;  /* less would be overlong */
  if (lead == 0xED) high = 0x9F; /* more would be a surrogate */
  if (lead == 0xF0) low = 0x90;  /* overlong */
  if (lead == 0xF4) high = 0x8F; /* above U+10FFFF */
  value = lead & (0x7Fu >> needed);
  for (i = 1; i < needed; ++i) {
    if ((size_t)i >= length || byte[i] < low || byte[i] > high) return i;
    value = value << 6 | (byte[i] & 0x3Fu);
    low = 0x80, high = 0xBF;
  }
  *code = value;
  return needed;
}

/* The bytes of the valid sequence at text (length > 0), or 0. Only U+FFFD itself decodes to it from a lead of EF. */
static int ft__utf8_valid(const char *text, size_t length) {
  uint32_t code;
  int bytes = ft__utf8_decode(text, length, &code);
  return code != 0xFFFD || (bytes == 3 && (unsigned char)text[0] == 0xEF) ? bytes : 0;
}

/* Whether text is valid UTF-8. */
static bool ft__utf8_is_valid(const char *text, size_t length) {
  size_t i = 0;
  while (i < length) {
    int bytes = ft__utf8_valid(text + i, length - i);
    if (!bytes) return false;
    i += (size_t)bytes;
  }
  return true;
}

/* Writes a code point (one that is none becomes U+FFFD) to out [4] and returns the number of bytes. */
static int ft__utf8_encode(uint32_t code, char *out) {
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) code = 0xFFFD;
  if (code < 0x80) {
    out[0] = (char)code;
    return 1;
  }
  if (code < 0x800) {
    out[0] = (char)(0xC0 | code >> 6);
    out[1] = (char)(0x80 | (code & 0x3F));
    return 2;
  }
  if (code < 0x10000) {
    out[0] = (char)(0xE0 | code >> 12);
    out[1] = (char)(0x80 | (code >> 6 & 0x3F));
    out[2] = (char)(0x80 | (code & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | code >> 18);
  out[1] = (char)(0x80 | (code >> 12 & 0x3F));
  out[2] = (char)(0x80 | (code >> 6 & 0x3F));
  out[3] = (char)(0x80 | (code & 0x3F));
  return 4;
}

/* Looks for bytes in eight at once: the high bit of a byte of the result is set if that byte of `eight` is zero (only
   bytes above a true zero can be set wrongly: enough to know whether there is one). */
#define FT__ONES ((uint64_t)0x0101010101010101u)
#define FT__HIGH_BITS (FT__ONES << 7)
#define FT__ZERO_BYTE(eight) (((eight)-FT__ONES) & ~(eight)&FT__HIGH_BITS)
#define FT__HAS_BYTE(eight, byte) FT__ZERO_BYTE((eight) ^ (FT__ONES * (unsigned char)(byte)))

/* What -Ofast assumes away (infinity, the sign of zero, numbers below 2^-1022) is asked of a double's bits: 1 for the
   sign, 11 for the exponent, 52 for the fraction. */
static uint64_t ft__double_bits(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static double ft__double_from_bits(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static bool ft__double_is_finite(double value) { return (ft__double_bits(value) >> 52 & 0x7FF) != 0x7FF; }

enum {
  FT__DECIMAL_DIGITS = 800
}; /* no double needs more than 767 to be rounded correctly; one more says "and a bit" */

/* A decimal number taken apart: sign 0.d1 d2 d3 ... as digits * 10^exponent. */
typedef struct ft__decimal {
  bool negative;
  char digits[FT__DECIMAL_DIGITS + 32]; /* without leading zeros; room for an exponent behind them */
  int count;
  uint64_t mantissa; /* the digits as a number while count <= 19 */
  int64_t exponent;
} ft__decimal;

/* Reads [+-] digits [. digits] [e [+-] digits], with a digit on at least one side of the point and nothing after. */
static bool ft__decimal_scan(const char *at, const char *end, ft__decimal *decimal) {
  bool point = false, any = false, dropped = false;
  decimal->count = 0, decimal->mantissa = 0, decimal->exponent = 0;
  decimal->negative = at < end && *at == '-';
  if (at < end && (*at == '-' || *at == '+')) ++at;
  for (; at < end && ((*at >= '0' && *at <= '9') || (*at == '.' && !point)); ++at) {
    if (*at == '.') {
      point = true;
      continue;
    }
    any = true;
    if (decimal->count == FT__DECIMAL_DIGITS) {
      if (*at != '0') dropped = true;
      if (!point) ++decimal->exponent;
      continue;
    }
    if (point) --decimal->exponent;
    if (decimal->count == 0 && *at == '0') continue;
    if (decimal->count < 19) decimal->mantissa = decimal->mantissa * 10 + (uint64_t)(*at - '0');
    decimal->digits[decimal->count++] = *at;
  }
  if (dropped) decimal->digits[decimal->count++] = '1', --decimal->exponent;
  if (any && at < end && (*at == 'e' || *at == 'E')) {
    bool minus = ++at < end && *at == '-';
    int64_t written = 0;
    if (at < end && (*at == '-' || *at == '+')) ++at;
    for (any = false; at < end && *at >= '0' && *at <= '9'; ++at, any = true)
      if (written < (int64_t)1 << 50) written = written * 10 + (*at - '0');
    decimal->exponent += minus ? -written : written;
  }
  return any && at == end;
}

/* The double nearest to a decimal number, infinity beyond the largest; false if the text is not a number. Products and
   quotients of integers up to 2^53 with powers up to 10^22 are exact but for one rounding; strtod does the rest, from
   digits without a point, since what it takes for a point depends on the locale. */
static bool ft__decimal_parse(const char *text, size_t length, double *value) {
  static const double powers[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
  ft__decimal decimal;
  int64_t exponent;
  if (!ft__decimal_scan(text, text + length, &decimal)) return false;
  exponent = decimal.exponent;
  if (decimal.count == 0) {
    *value = 0;
  } else if (FLT_EVAL_METHOD == 0 && decimal.count <= 19 && decimal.mantissa <= (uint64_t)1 << 53 && exponent >= -22 &&
             exponent <= 22) {
    *value = (double)decimal.mantissa;
    *value = exponent < 0 ? *value / powers[-exponent] : *value * powers[exponent];
  } else {
    if (exponent > 9999) exponent = 9999;
    if (exponent < -9999) exponent = -9999;
    snprintf(decimal.digits + decimal.count, 16, "e%d", (int)exponent);
    *value = strtod(decimal.digits, NULL);
  }
  if (decimal.negative) *value = ft__double_from_bits(ft__double_bits(*value) ^ (uint64_t)1 << 63);
  return true;
}

/* Whether digits [count] * 10^(exponent - count + 1) reads as exactly value. */
static bool ft__digits_read_as(const char *digits, int count, int exponent, double value) {
  char text[48];
  double back = 0;
  int length = snprintf(text, sizeof text, "%.*se%d", count, digits, exponent - count + 1);
  return ft__decimal_parse(text, (size_t)length, &back) && ft__double_bits(back) == ft__double_bits(value);
}

/* The fewest digits that read back as value > 0, written d.ddd * 10^exponent; returns their count. Rounding to more and
   more digits finds them, except that below a power of two doubles are twice as dense as above it: there the next
   decimal up may do where the nearest does not. */
static int ft__digits_shortest(double value, char digits[20], int *exponent) {
  int count, i;
  for (count = 1; count <= 17; ++count) {
    char text[40];
    int found = 0;
    snprintf(text, sizeof text, "%.*e", count - 1, value);
    for (i = 0; text[i] && text[i] != 'e'; ++i)
      if (text[i] >= '0' && text[i] <= '9') digits[found++] = text[i];
    *exponent = text[i] ? atoi(text + i + 1) : 0;
    if (ft__digits_read_as(digits, count, *exponent, value)) return count;
    if (digits[count - 1] == '9') continue; /* the carry would make it a shorter number, tried before */
    ++digits[count - 1];
    if (ft__digits_read_as(digits, count, *exponent, value)) return count;
  }
  return 17;
}

/* A number as Python's repr writes it: 0.1, 1e-12, 3.0; null if it is not finite, since JSON has no other word. */
static void ft__append_number(ft__string *out, double value) {
  char digits[20];
  int count, exponent = 0, i;
  uint64_t bits = ft__double_bits(value);
  if (!ft__double_is_finite(value)) {
    ft__append(out, "null");
    return;
  }
  if (bits >> 63) ft__append(out, "-"); /* minus zero too */
  if (bits << 1 == 0) {
    ft__append(out, "0.0");
    return;
  }
  count = ft__digits_shortest(ft__double_from_bits(bits << 1 >> 1), digits, &exponent);
  if (exponent < -4 || exponent >= 16) {
    ft__append_bytes(out, digits, 1);
    if (count > 1) ft__append(out, ".");
    ft__append_bytes(out, digits + 1, (size_t)count - 1);
    ft__append_format(out, "e%c%02d", exponent < 0 ? '-' : '+', exponent < 0 ? -exponent : exponent);
    return;
  }
  if (exponent < 0) ft__append(out, "0.");
  for (i = exponent; i < -1; ++i) ft__append(out, "0");
  for (i = 0; i < count || i <= exponent; ++i) {
    ft__append_bytes(out, i < count ? digits + i : "0", 1);
    if (i == exponent) ft__append(out, i + 1 < count ? "." : ".0");
  }
}

/* Names in bytewise order: how duplicates are found and names looked up, in n log n steps whatever the names are (a
   hash table can be made slow by names chosen to collide). */
typedef struct ft__name {
  uint64_t prefix; /* the first 8 bytes as a big-endian number: decides most comparisons without a look at the text */
  const char *text;
  size_t length;
  int64_t position; /* the caller's */
} ft__name;

static ft__name ft__name_make(const char *text, size_t length, int64_t position) {
  ft__name name;
  size_t i;
  name.prefix = 0;
  for (i = 0; i < 8; ++i) name.prefix = name.prefix << 8 | (i < length ? (unsigned char)text[i] : 0u);
  name.text = text;
  name.length = length;
  name.position = position;
  return name;
}

static int ft__name_compare(const ft__name *a, const ft__name *b) {
  size_t shorter = a->length < b->length ? a->length : b->length;
  int order;
  if (a->prefix != b->prefix) return a->prefix < b->prefix ? -1 : 1;
  order = shorter > 8 ? memcmp(a->text + 8, b->text + 8, shorter - 8) : 0;
  if (order) return order;
  return a->length < b->length ? -1 : a->length > b->length;
}

/* Sorts names [count] with spare [count] by merging runs of 1, 2, 4, ... names (stable). The result stands in names. */
static void ft__names_sort(ft__name *names, ft__name *spare, int64_t count) {
  ft__name *from = names, *to = spare;
  int64_t width, start;
  for (width = 1; width < count; width *= 2) {
    ft__name *swapped = from;
    for (start = 0; start < count; start += 2 * width) {
      int64_t left = start, middle = start + width < count ? start + width : count, right = middle, out = start;
      int64_t end = middle + width < count ? middle + width : count;
      if (middle < end && ft__name_compare(&from[middle - 1], &from[middle]) <= 0) left = start, right = end;
      if (right == end) { /* one run, or two in order already */
        memcpy(to + start, from + start, (size_t)(end - start) * sizeof *to);
        continue;
      }
      while (left < middle && right < end)
        to[out++] = ft__name_compare(&from[right], &from[left]) < 0 ? from[right++] : from[left++];
      memcpy(to + out, from + left, (size_t)(middle - left) * sizeof *to);
      memcpy(to + out + (middle - left), from + right, (size_t)(end - right) * sizeof *to);
    }
    from = to;
    to = swapped;
  }
  if (from != names) memcpy(names, from, (size_t)count * sizeof *names);
}

/* The first name that stands twice in sorted names [count] (the later of the two), or NULL. */
static const ft__name *ft__names_repeated(const ft__name *names, int64_t count) {
  int64_t i;
  for (i = 1; i < count; ++i)
    if (ft__name_compare(&names[i - 1], &names[i]) == 0) return &names[i];
  return NULL;
}

/* A name that stands twice in names [count], which need not be sorted, or NULL; dealt [count], starts [count / 4 + 2].
   A hash deals the names into count / 4 buckets, and each bucket is sorted: ordinary names take steps in proportion to
   their number, names chosen to share a bucket no more than sorting them all. */
static const ft__name *ft__names_repeated_unsorted(ft__name *names, ft__name *dealt, int64_t *starts, int64_t count) {
  const ft__name *repeated = NULL;
  int64_t buckets = count / 4 + 1, i, first = 0;
  size_t k;
  memset(starts, 0, (size_t)(buckets + 1) * sizeof *starts);
  for (i = 0; i < count; ++i) {
    uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
    for (k = 0; k < names[i].length; ++k) hash = (hash ^ (unsigned char)names[i].text[k]) * 0x100000001B3u;
    names[i].position = (int64_t)(hash % (uint64_t)buckets);
    ++starts[names[i].position + 1];
  }
  for (i = 0; i < buckets; ++i) starts[i + 1] += starts[i];                  /* where each bucket begins ... */
  for (i = 0; i < count; ++i) dealt[starts[names[i].position]++] = names[i]; /* ... and now where it ends */
  for (i = 0; i < buckets && !repeated; ++i) {
    ft__names_sort(dealt + first, names + first, starts[i] - first);
    repeated = ft__names_repeated(dealt + first, starts[i] - first);
    first = starts[i];
  }
  return repeated;
}

/* The position of a name in sorted names [count], or -1. */
static int64_t ft__names_find(const ft__name *names, int64_t count, const char *text, size_t length) {
  ft__name wanted = ft__name_make(text, length, 0);
  int64_t low = 0, high = count;
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    int order = ft__name_compare(&names[middle], &wanted);
    if (order == 0) return names[middle].position;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return -1;
}

/* =====================================================================================================================
   >>json parsing and writing (RFC 8259)

       value  = null | true | false | number | string | [ value, ... ] | { string: value, ... }
       number = -? (0 | 1-9 0-9*) (. 0-9+)? ((e|E) (+|-)? 0-9+)?
       string = " any code points but " \ and U+0000..U+001F, or \" \\ \/ \b \f \n \r \t \uXXXX "

   The parser keeps its own stack of open arrays and objects, so that nesting costs no recursion. Nodes come from blocks
   that double in size; all strings stand in one buffer as long as the text, because a string with its zero byte is
   never longer than it was with its quotes. Numbers keep their text too (in `string`), which says what a double cannot.
 */

enum { FT__JSON_DEPTH = 200, FT__JSON_BLOCK = 1 << 16 };
#define FT__JSON_BYTES ((size_t)1 << 30)

typedef struct ft__json_document {
  ft_json root; /* first, so that its address is the document's */
  ft_context *context;
  char *strings;   /* [length of the text + 1] */
  ft_json *blocks; /* the newest; node 0 of a block only links to the block before: nodes[0].next */
} ft__json_document;

typedef struct ft__json_parser {
  ft_context *context;
  ft__json_document *document;
  const char *name, *text, *at, *end;
  int64_t first_line;
  char *string;                    /* where the next one goes */
  int64_t block_size, block_used;  /* of the newest block */
  int depth;                       /* open arrays and objects */
  ft_json *open[FT__JSON_DEPTH];   /* [depth] */
  ft_json *newest[FT__JSON_DEPTH]; /* [depth]: the last child of each so far */
  ft__name *names;                 /* scratch for finding duplicate keys */
  int64_t *starts;
  int64_t names_capacity, starts_capacity;
} ft__json_parser;

/* Records what is wrong at a place in the text. Columns count characters. */
FT__PRINTF(3, 4)
static bool ft__json_error(ft__json_parser *parser, const char *where, const char *format, ...) {
  char message[320];
  int64_t line = parser->first_line, column = 1;
  const char *at;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  for (at = parser->text; at < where; ++at) {
    if (*at == '\n')
      ++line, column = 1;
    else if (((unsigned char)*at & 0xC0) != 0x80)
      ++column;
  }
  ft__error(parser->context, FT_ERROR_FORMAT, "%s: line %lld, column %lld: %s", parser->name, (long long)line,
            (long long)column, message);
  return false;
}

static bool ft__json_expected(ft__json_parser *parser, const char *what) {
  const char *at = parser->at;
  if (at == parser->end) return ft__json_error(parser, at, "expected %s, found the end", what);
  if ((unsigned char)*at < 0x21 || (unsigned char)*at > 0x7E)
    return ft__json_error(parser, at, "expected %s, found byte 0x%02X", what, (unsigned char)*at);
  return ft__json_error(parser, at, "expected %s, found %c", what, *at);
}

static void ft__json_skip_space(ft__json_parser *parser) {
  const char *at = parser->at, *end = parser->end;
  while (at < end && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) ++at;
  parser->at = at;
}

/* Four hexadecimal digits at `at` as a number, or -1. */
static int32_t ft__json_hexadecimal(const char *at, const char *end) {
  int32_t value = 0;
  int i;
  if (end - at < 4) return -1;
  for (i = 0; i < 4; ++i) {
    int c = at[i], digit = c >= '0' && c <= '9'                 ? c - '0'
                           : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                                : -1;
    if (digit < 0) return -1;
    value = value * 16 + digit;
  }
  return value;
}

/* Decodes the escape at parser->at (a backslash) to `to`; returns the end of what it wrote, or NULL. */
static char *ft__json_escape(ft__json_parser *parser, char *to) {
  static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
  const char *at = parser->at, *end = parser->end, *letter;
  int32_t code, low;
  if (end - at < 2 || !at[1] || (at[1] != 'u' && !strchr(letters, at[1]))) {
    ft__json_error(parser, at, "unknown escape in a string: after \\ comes one of \" \\ / b f n r t u");
    return NULL;
  }
  if (at[1] != 'u') {
    letter = strchr(letters, at[1]);
    *to = meanings[letter - letters];
    parser->at = at + 2;
    return to + 1;
  }
  code = ft__json_hexadecimal(at + 2, end);
  if (code < 0) {
    ft__json_error(parser, at, "\\u is not followed by four hexadecimal digits");
    return NULL;
  }
  parser->at = at + 6;
  if (code >= 0xD800 && code < 0xE000) { /* beyond U+FFFF: two halves of ten bits */
    low = end - at >= 12 && at[6] == '\\' && at[7] == 'u' ? ft__json_hexadecimal(at + 8, end) : -1;
    if (code >= 0xDC00 || low < 0xDC00 || low > 0xDFFF) {
      ft__json_error(parser, at, "\\u%04X is half of a surrogate pair, the other half is missing", (unsigned)code);
      return NULL;
    }
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    parser->at = at + 12;
  }
  return to + ft__utf8_encode((uint32_t)code, to);
}

/* Copies the plain characters at `at`: ASCII but quotes, backslashes and control characters. Eight bytes at a time
   while all are plain. */
static const char *ft__json_copy_plain(const char *at, const char *end, char **to_address) {
  char *to = *to_address;
  while (end - at >= 8) {
    uint64_t eight;
    memcpy(&eight, at, 8);
    if ((eight & FT__HIGH_BITS) | FT__HAS_BYTE(eight, '"') | FT__HAS_BYTE(eight, '\\') |
        ((eight - FT__ONES * 0x20) & ~eight & FT__HIGH_BITS))
      break;
    memcpy(to, at, 8);
    at += 8, to += 8;
  }
  while (at < end && (unsigned char)*at >= 0x20 && (unsigned char)*at < 0x80 && *at != '"' && *at != '\\')
    *to++ = *at++;
  *to_address = to;
  return at;
}

/* Reads the string at parser->at, an opening quote. */
static bool ft__json_string(ft__json_parser *parser, const char **string, size_t *length) {
  const char *opening = parser->at, *end = parser->end;
  char *to = parser->string;
  for (++parser->at;;) {
    const char *at = parser->at = ft__json_copy_plain(parser->at, end, &to);
    if (at == end) return ft__json_error(parser, opening, "the string that begins here has no closing quote");
    if (*at == '"') break;
    if (*at == '\\') {
      to = ft__json_escape(parser, to);
      if (!to) return false;
    } else if ((unsigned char)*at < 0x20) {
      return ft__json_error(parser, at, "control character 0x%02X in a string: write it as \\u%04X", (unsigned char)*at,
                            (unsigned char)*at);
    } else {
      int bytes = ft__utf8_valid(at, (size_t)(end - at));
      if (!bytes) return ft__json_error(parser, at, "byte 0x%02X is not valid UTF-8 here", (unsigned char)*at);
      memcpy(to, at, (size_t)bytes);
      to += bytes;
      parser->at += bytes;
    }
  }
  ++parser->at;
  *to = 0;
  *string = parser->string;
  *length = (size_t)(to - parser->string);
  parser->string = to + 1;
  return true;
}

/* The end of the digits at `at`. */
static const char *ft__json_digits(const char *at, const char *end) {
  while (at < end && *at >= '0' && *at <= '9') ++at;
  return at;
}

/* Checks the grammar of the number at parser->at and returns its end, or NULL; *whole: no point, no exponent. */
static const char *ft__json_number_end(ft__json_parser *parser, bool *whole) {
  const char *end = parser->end, *digits = parser->at + (*parser->at == '-'), *at = ft__json_digits(digits, end);
  *whole = true;
  if (at == digits) {
    if (at < end && *at == 'I')
      ft__json_error(parser, parser->at, "-Infinity is not JSON: Python writes it for a number that overflowed");
    else
      ft__json_error(parser, parser->at, "a digit must follow the minus sign");
    return NULL;
  }
  if (*digits == '0' && at - digits > 1) {
    ft__json_error(parser, digits, "a number must not begin with 0 and another digit");
    return NULL;
  }
  if (at < end && *at == '.') {
    digits = at + 1;
    at = ft__json_digits(digits, end);
    *whole = false;
  }
  if (at != digits && at < end && (*at == 'e' || *at == 'E')) {
    digits = at + 1;
    if (digits < end && (*digits == '+' || *digits == '-')) ++digits;
    at = ft__json_digits(digits, end);
    *whole = false;
  }
  if (at != digits) return at;
  ft__json_error(parser, at, "a digit is missing in a number");
  return NULL;
}

static bool ft__json_number(ft__json_parser *parser, ft_json *node) {
  bool whole;
  const char *start = parser->at, *end = ft__json_number_end(parser, &whole), *digit;
  uint64_t magnitude = 0, limit = (uint64_t)INT64_MAX + (*start == '-');
  if (!end) return false;
  node->type = FT_JSON_NUMBER;
  node->string = parser->string;
  node->string_length = (size_t)(end - start);
  memcpy(parser->string, start, node->string_length);
  parser->string[node->string_length] = 0;
  parser->string += node->string_length + 1;
  parser->at = end;
  for (digit = start + (*start == '-'); whole && digit < end; ++digit) {
    uint64_t value = (uint64_t)(*digit - '0');
    if (magnitude > (limit - value) / 10) whole = false;
    magnitude = magnitude * 10 + value;
  }
  if (whole) {
    node->is_integer = true;
    node->integer = *start != '-' ? (int64_t)magnitude : magnitude ? -(int64_t)(magnitude - 1) - 1 : 0;
    node->number = (double)node->integer;
    return true;
  }
  if (!ft__decimal_parse(start, (size_t)(end - start), &node->number) || !ft__double_is_finite(node->number))
    return ft__json_error(parser, start, "the number is too large for a double");
  return true;
}

static bool ft__json_word(ft__json_parser *parser, ft_json *node) {
  static const char *const words[] = {"null", "true", "false", "NaN", "Infinity"};
  int i;
  for (i = 0; i < 5; ++i) {
    size_t length = strlen(words[i]);
    if ((size_t)(parser->end - parser->at) < length || memcmp(parser->at, words[i], length) != 0) continue;
    if (i > 2)
      return ft__json_error(parser, parser->at, "%s is not JSON: Python writes it for a number that is not finite",
                            words[i]);
    parser->at += length;
    node->type = i == 0 ? FT_JSON_NULL : FT_JSON_BOOLEAN;
    node->boolean = i == 1;
    return true;
  }
  return ft__json_expected(parser, "a value");
}

/* A new node, a child of the innermost open array or object. */
static ft_json *ft__json_node(ft__json_parser *parser) {
  ft_json *node, *parent;
  if (parser->depth == 0) return &parser->document->root;
  if (parser->block_used == parser->block_size) {
    int64_t size = parser->block_size ? 2 * parser->block_size : 16;
    ft_json *block;
    if (size > FT__JSON_BLOCK) size = FT__JSON_BLOCK;
    block = (ft_json *)ft__allocate(parser->context, (size_t)size * sizeof *block);
    if (!block) return NULL;
    block[0].next = parser->document->blocks;
    parser->document->blocks = block;
    parser->block_size = size;
    parser->block_used = 1;
  }
  node = &parser->document->blocks[parser->block_used++];
  memset(node, 0, sizeof *node);
  parent = parser->open[parser->depth - 1];
  if (parent->count++)
    parser->newest[parser->depth - 1]->next = node;
  else
    parent->child = node;
  parser->newest[parser->depth - 1] = node;
  return node;
}

/* Reads a value - of an array or object only its bracket -, and before it, inside an object, its key. */
static bool ft__json_value(ft__json_parser *parser) {
  const char *key = NULL;
  size_t key_length = 0;
  ft_json *node;
  ft__json_skip_space(parser);
  if (parser->depth && parser->open[parser->depth - 1]->type == FT_JSON_OBJECT) {
    if (parser->at == parser->end || *parser->at != '"') return ft__json_expected(parser, "a key in double quotes");
    if (!ft__json_string(parser, &key, &key_length)) return false;
    ft__json_skip_space(parser);
    if (parser->at == parser->end || *parser->at != ':') return ft__json_expected(parser, "a colon after the key");
    ++parser->at;
    ft__json_skip_space(parser);
  }
  if (parser->at == parser->end) return ft__json_expected(parser, "a value");
  node = ft__json_node(parser);
  if (!node) return false;
  node->key = key;
  node->key_length = key_length;
  if (*parser->at == '"') {
    node->type = FT_JSON_STRING;
    return ft__json_string(parser, &node->string, &node->string_length);
  }
  if (*parser->at == '-' || (*parser->at >= '0' && *parser->at <= '9')) return ft__json_number(parser, node);
  if (*parser->at != '[' && *parser->at != '{') return ft__json_word(parser, node);
  if (parser->depth == FT__JSON_DEPTH)
    return ft__json_error(parser, parser->at, "more than %d arrays and objects inside each other", FT__JSON_DEPTH);
  node->type = *parser->at++ == '[' ? FT_JSON_ARRAY : FT_JSON_OBJECT;
  parser->open[parser->depth++] = node;
  return true;
}

/* Closes the innermost array or object; no key of an object may stand there twice. */
static bool ft__json_close(ft__json_parser *parser) {
  const ft_json *node = parser->open[--parser->depth], *member;
  const ft__name *repeated;
  int64_t i = 0;
  if (node->type != FT_JSON_OBJECT || node->count < 2) return true;
  if (!ft__grow(parser->context, &parser->names, &parser->names_capacity, 2 * node->count, sizeof *parser->names) ||
      !ft__grow(parser->context, &parser->starts, &parser->starts_capacity, node->count / 4 + 2,
                sizeof *parser->starts))
    return false;
  for (member = node->child; member; member = member->next, ++i)
    parser->names[i] = ft__name_make(member->key, member->key_length, i);
  repeated = ft__names_repeated_unsorted(parser->names, parser->names + node->count, parser->starts, node->count);
  if (!repeated) return true;
  return ft__json_error(parser, parser->at, "the object that ends here has the key \"%.100s\" twice", repeated->text);
}

static bool ft__json_parse_document(ft__json_parser *parser) {
  for (;;) {
    if (!ft__json_value(parser)) return false;
    for (;;) { /* what follows a value: closing brackets, then a comma or the end */
      const ft_json *parent;
      char closing;
      ft__json_skip_space(parser);
      if (parser->depth == 0)
        return parser->at == parser->end || ft__json_expected(parser, "nothing more after the value");
      parent = parser->open[parser->depth - 1];
      closing = parent->type == FT_JSON_ARRAY ? ']' : '}';
      if (parser->at < parser->end && *parser->at == closing) {
        ++parser->at;
        if (!ft__json_close(parser)) return false;
        continue;
      }
      if (parent->count == 0) break; /* just opened: the first value has no comma before it */
      if (parser->at == parser->end || *parser->at != ',')
        return ft__json_expected(parser, closing == ']' ? "a comma or ]" : "a comma or }");
      ++parser->at;
      break;
    }
  }
}

/* Parses text whose first line is line `first_line` of what `name` names. */
static ft_json *ft__json_parse_at(ft_context *context, const char *text, size_t length, const char *name,
                                  int64_t first_line) {
  ft__json_parser parser;
  bool parsed;
  if (length > FT__JSON_BYTES) {
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s: JSON text of %zu bytes is beyond the limit of 1 GiB", name, length);
    return NULL;
  }
  memset(&parser, 0, sizeof parser);
  parser.context = context;
  parser.document = (ft__json_document *)ft__allocate_zero(context, sizeof *parser.document);
  if (!parser.document) return NULL;
  parser.document->context = context;
  parser.document->strings = parser.string = (char *)ft__allocate(context, length + 1);
  if (!parser.string) {
    ft_json_free(&parser.document->root);
    return NULL;
  }
  parser.name = name;
  parser.first_line = first_line;
  parser.text = parser.at = text;
  parser.end = text + length;
  if (length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0) parser.text = parser.at = text + 3; /* byte-order mark */
  parsed = ft__json_parse_document(&parser);
  ft__release(context, parser.names);
  ft__release(context, parser.starts);
  if (parsed) return &parser.document->root;
  ft_json_free(&parser.document->root);
  return NULL;
}

FT_API ft_json *ft_json_parse(ft_context *context, const char *text, size_t length, const char *name) {
  if (!context) return NULL;
  if (!text) return (ft_json *)ft__null_argument(context, "ft_json_parse needs a text");
  return ft__json_parse_at(context, text, length, name ? name : "JSON", 1);
}

FT_API void ft_json_free(ft_json *root) {
  ft__json_document *document = (ft__json_document *)(void *)root;
  if (!document) return;
  while (document->blocks) {
    ft_json *previous = (ft_json *)document->blocks[0].next;
    ft__release(document->context, document->blocks);
    document->blocks = previous;
  }
  ft__release(document->context, document->strings);
  ft__release(document->context, document);
}

FT_API const ft_json *ft_json_get(const ft_json *object, const char *key) {
  const ft_json *member;
  size_t length;
  if (!object || object->type != FT_JSON_OBJECT || !key) return NULL;
  length = strlen(key);
  for (member = object->child; member; member = member->next)
    if (member->key_length == length && memcmp(member->key, key, length) == 0) return member;
  return NULL;
}

/* A string in quotes. Only what must be escaped is; an invalid byte sequence becomes U+FFFD. */
static void ft__append_json_string(ft__string *out, const char *text, size_t length) {
  static const char letters[] = "btn-fr"; /* U+0008 .. U+000D: U+000B has no letter */
  size_t plain = 0, i = 0;                /* text[plain .. i) waits to be copied */
  ft__append(out, "\"");
  while (i < length) {
    unsigned char c = (unsigned char)text[i];
    int bytes = c < 0x80 ? 1 : ft__utf8_valid(text + i, length - i);
    if (bytes && c >= 0x20 && c != '"' && c != '\\') {
      i += (size_t)bytes;
      continue;
    }
    ft__append_bytes(out, text + plain, i - plain);
    if (!bytes) {
      uint32_t code;
      i += (size_t)ft__utf8_decode(text + i, length - i, &code) - 1;
      ft__append(out, "\xEF\xBF\xBD");
    } else if (c >= 0x20) {
      ft__append_format(out, "\\%c", c);
    } else if (c >= 8 && c <= 13 && c != 11) {
      ft__append_format(out, "\\%c", letters[c - 8]);
    } else {
      ft__append_format(out, "\\u%04x", c);
    }
    plain = ++i;
  }
  ft__append_bytes(out, text + plain, length - plain);
  ft__append(out, "\"");
}

static void ft__append_json_scalar(ft__string *out, const ft_json *value) {
  if (value->type == FT_JSON_NULL)
    ft__append(out, "null");
  else if (value->type == FT_JSON_BOOLEAN)
    ft__append(out, value->boolean ? "true" : "false");
  else if (value->type == FT_JSON_STRING)
    ft__append_json_string(out, value->string, value->string_length);
  else if (value->is_integer)
    ft__append_format(out, "%lld", (long long)value->integer);
  else if (value->string && !strpbrk(value->string, ".eE")) /* an integer beyond 64 bits */
    ft__append_bytes(out, value->string, value->string_length);
  else
    ft__append_number(out, value->number);
}

static void ft__append_json_line(ft__string *out, int spaces) {
  ft__append(out, "\n");
  while (spaces-- > 0) ft__append(out, " ");
}

/* The tree as json.dumps(value, indent=indent, ensure_ascii=False) writes it; indent < 0: on one line. */
static void ft__append_json(ft__string *out, const ft_json *value, int indent) {
  const ft_json *open[FT__JSON_DEPTH + 1]; /* path from the root to the value being written */
  int depth = 0;
  const ft_json *at = value;
  for (;;) {
    bool container = at->type == FT_JSON_ARRAY || at->type == FT_JSON_OBJECT;
    if (at->key && depth) {
      ft__append_json_string(out, at->key, at->key_length);
      ft__append(out, ": ");
    }
    if (container && at->child && depth < FT__JSON_DEPTH) {
      open[depth++] = at;
      ft__append(out, at->type == FT_JSON_ARRAY ? "[" : "{");
      if (indent >= 0) ft__append_json_line(out, indent * depth);
      at = at->child;
      continue;
    }
    if (container)
      ft__append(out, at->type == FT_JSON_ARRAY ? "[]" : "{}");
    else
      ft__append_json_scalar(out, at);
    while (depth && !at->next) {
      at = open[--depth];
      if (indent >= 0) ft__append_json_line(out, indent * depth);
      ft__append(out, at->type == FT_JSON_ARRAY ? "]" : "}");
    }
    if (!depth) return;
    ft__append(out, indent >= 0 ? "," : ", ");
    if (indent >= 0) ft__append_json_line(out, indent * depth);
    at = at->next;
  }
}
/* =====================================================================================================================
   >>files: reading whole files, writing them so that their name never holds half a file

   A file is written under another name beside its own, flushed to the disk, and renamed, which replaces an old file in
   one step: whoever opens the name sees all of the old content or all of the new. */

#ifdef _WIN32
#define FT__STAT struct _stat64
#define ft__stat(path, information) _stat64(path, information)
#define ft__seek(file, offset, from) _fseeki64(file, offset, from)
#define ft__tell(file) _ftelli64(file)
#define ft__flush_to_disk(file) _commit(_fileno(file))
#define ft__rename(from, to) (MoveFileExA(from, to, MOVEFILE_REPLACE_EXISTING) ? 0 : -1)
#define ft__make_directory(path) _mkdir(path)
#define ft__process() ((unsigned long)GetCurrentProcessId())
#define ft__is_separator(c) ((c) == '/' || (c) == '\\')
#define ft__mode_is_directory(mode) (((mode)&_S_IFMT) == _S_IFDIR)
#else
#define FT__STAT struct stat
#define ft__stat(path, information) stat(path, information)
#define ft__seek(file, offset, from) fseeko(file, (off_t)(offset), from)
#define ft__tell(file) ((int64_t)ftello(file))
#define ft__flush_to_disk(file) fsync(fileno(file))
#define ft__rename(from, to) rename(from, to)
#define ft__make_directory(path) mkdir(path, 0777)
#define ft__process() ((unsigned long)getpid())
#define ft__is_separator(c) ((c) == '/')
#define ft__mode_is_directory(mode) S_ISDIR(mode)
#endif

static bool ft__is_directory(const char *path) {
  FT__STAT information;
  return ft__stat(path, &information) == 0 && ft__mode_is_directory(information.st_mode);
}

static bool ft__file_exists(const char *path) {
  FT__STAT information;
  return ft__stat(path, &information) == 0 && !ft__mode_is_directory(information.st_mode);
}

static FILE *ft__file_open(ft_context *context, const char *path) {
  FILE *file;
  if (ft__is_directory(path)) {
    ft__error(context, FT_ERROR_FILE, "%s is a directory, not a file", path);
    return NULL;
  }
  file = fopen(path, "rb");
  if (!file) ft__error(context, FT_ERROR_FILE, "%s cannot be opened: %s", path, strerror(errno));
  return file;
}

/* The size of an open file, which is then at its start; -1 if it has none, as a pipe. */
static int64_t ft__file_size(FILE *file) {
  int64_t size = ft__seek(file, 0, SEEK_END) == 0 ? ft__tell(file) : -1;
  rewind(file);
  return size;
}

/* The whole file, with a zero byte behind it. Reads until the end, whatever the size was said to be. */
static char *ft__file_read(ft_context *context, const char *path, size_t *size) {
  char *text = NULL;
  int64_t capacity = 0, used = 0, wanted;
  size_t read = 1;
  FILE *file = ft__file_open(context, path);
  *size = 0;
  if (!file) return NULL;
  wanted = ft__file_size(file) + 2; /* one more than the file has, to see its end; one for the zero byte */
  while (read > 0) {
    if (used + 1 >= capacity && !ft__grow(context, &text, &capacity, wanted > used + 2 ? wanted : used + 2, 1)) break;
    read = fread(text + used, 1, (size_t)(capacity - used) - 1, file);
    used += (int64_t)read;
  }
  if (read > 0 || ferror(file)) {
    if (read == 0) ft__error(context, FT_ERROR_FILE, "%s cannot be read: %s", path, strerror(errno));
    ft__release(context, text);
    text = NULL;
  } else {
    text[used] = 0;
    *size = (size_t)used;
  }
  fclose(file);
  return text;
}

/* A file being written. The first failure is recorded and sticks; ft__output_close says how it went. */
typedef struct ft__output {
  ft_context *context;
  const char *path;
  char *temporary; /* the name it has while it is being written */
  FILE *file;
  bool failed;
} ft__output;

static void ft__output_fail(ft__output *output, const char *what) {
  if (!output->failed)
    ft__error(output->context, FT_ERROR_FILE, "%s cannot be %s: %s", output->path, what, strerror(errno));
  output->failed = true;
}

static void ft__output_open(ft__output *output, ft_context *context, const char *path) {
  size_t room = strlen(path) + 64;
  output->context = context;
  output->path = path;
  output->failed = false;
  output->file = NULL;
  output->temporary = (char *)ft__allocate(context, room);
  if (!output->temporary) {
    output->failed = true;
    return;
  }
  snprintf(output->temporary, room, "%s.%lu-%llx.tmp", path, ft__process(), (unsigned long long)(uintptr_t)context);
  output->file = fopen(output->temporary, "wb");
  if (!output->file) ft__output_fail(output, "created");
}

static void ft__output_write(ft__output *output, const void *bytes, size_t size) {
  if (output->failed || size == 0) return;
  if (fwrite(bytes, 1, size, output->file) != size) ft__output_fail(output, "written");
}

/* Gives the file its name if all went well, else removes it. */
static ft_status ft__output_close(ft__output *output) {
  if (output->file) {
    if (!output->failed && (fflush(output->file) != 0 || ft__flush_to_disk(output->file) != 0))
      ft__output_fail(output, "written");
    if (fclose(output->file) != 0) ft__output_fail(output, "written");
    if (!output->failed && ft__rename(output->temporary, output->path) != 0) ft__output_fail(output, "replaced");
    if (output->failed) remove(output->temporary);
  }
  ft__release(output->context, output->temporary);
  return output->failed ? output->context->status : FT_OK;
}

static ft_status ft__file_write(ft_context *context, const char *path, const void *bytes, size_t size) {
  ft__output output;
  ft__output_open(&output, context, path);
  ft__output_write(&output, bytes, size);
  return ft__output_close(&output);
}

/* directory/name; the name alone if the directory is "". */
static char *ft__path_join(ft_context *context, const char *directory, const char *name) {
  size_t length = strlen(directory), name_length = strlen(name);
  char *path = (char *)ft__allocate(context, length + name_length + 2);
  if (!path) return NULL;
  memcpy(path, directory, length);
  if (length && !ft__is_separator(directory[length - 1])) path[length++] = '/';
  memcpy(path + length, name, name_length + 1);
  return path;
}

/* Creates a directory and those above it; one that exists is fine. */
static ft_status ft__directory_create(ft_context *context, const char *path) {
  size_t length = strlen(path), i;
  ft_status status = FT_OK;
  char *part = ft__string_copy(context, path, length);
  if (!part) return FT_ERROR_MEMORY;
  for (i = 1; i <= length && status == FT_OK; ++i) {
    if (i < length && !ft__is_separator(part[i])) continue;
    part[i] = 0;
    if (!ft__is_directory(part) && ft__make_directory(part) != 0 && !ft__is_directory(part))
      status = ft__error(context, FT_ERROR_FILE, "directory %s cannot be created: %s", part, strerror(errno));
    part[i] = path[i];
  }
  ft__release(context, part);
  return status;
}

/* A file for this process alone that goes away when it is closed or the process ends. NULL directory: the system's. */
static FILE *ft__file_temporary(ft_context *context, const char *directory) {
  FILE *file = NULL;
#ifdef _WIN32
  char path[MAX_PATH + 1], standard[MAX_PATH + 1];
  if (!directory && GetTempPathA(sizeof standard, standard)) directory = standard;
  if (!directory) directory = ".";
  if (GetTempFileNameA(directory, "ft", 0, path)) file = fopen(path, "w+bTD"); /* D: deleted when closed */
#else
  char *path;
  int descriptor;
  if (!directory) directory = getenv("TMPDIR");
  if (!directory || !*directory) directory = "/tmp";
  if (!(path = ft__path_join(context, directory, "finetune-XXXXXX"))) return NULL;
  if ((descriptor = mkstemp(path)) >= 0) {
    unlink(path); /* it lives on, without a name, as long as it is open */
    if (!(file = fdopen(descriptor, "w+b"))) close(descriptor);
  }
  ft__release(context, path);
#endif
  if (!file) ft__error(context, FT_ERROR_FILE, "no temporary file can be made in %s: %s", directory, strerror(errno));
  return file;
}

FT_API ft_json *ft_json_read(ft_context *context, const char *path) {
  size_t size;
  char *text;
  ft_json *root;
  if (!context) return NULL;
  if (!path) return (ft_json *)ft__null_argument(context, "ft_json_read needs a path");
  text = ft__file_read(context, path, &size);
  if (!text) return NULL;
  root = ft__json_parse_at(context, text, size, path, 1);
  ft__release(context, text);
  return root;
}

/* ---- the Hugging Face cache ----

   What Python's libraries download, they keep in a directory HUB that all programs share:

       HUB/models--ORG--NAME/refs/main            the commit at which the revision "main" was, in hexadecimal
       HUB/models--ORG--NAME/snapshots/COMMIT/    that commit's files, most of them links to ../../blobs/CHECKSUM */

enum { FT__PATH_BYTES = 4096 };

/* ORG/NAME or NAME as the hub allows them: nothing that could lead out of the cache. */
static bool ft__hub_name(const char *name) {
  static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.";
  const char *second = strchr(name, '/');
  size_t first_length = strspn(name, letters), second_length = second ? strspn(++second, letters) : 0;
  if (strstr(name, "..") || first_length == 0 || strchr("-.", name[0])) return false;
  if (!second) return name[first_length] == 0;
  return second == name + first_length + 1 && second_length > 0 && !strchr("-.", second[0]) && !second[second_length];
}

/* folder [FT__PATH_BYTES] = HUB/models--ORG--NAME. Cut short if it is longer, which then is no directory. */
static void ft__hub_folder(const char *name, char *folder) {
  static const char *const places[][2] = {{"HF_HUB_CACHE", ""},
                                          {"HF_HOME", "/hub"},
                                          {"XDG_CACHE_HOME", "/huggingface/hub"},
                                          {"HOME", "/.cache/huggingface/hub"},
                                          {"USERPROFILE", "/.cache/huggingface/hub"}}; /* Windows */
  const char *value = NULL, *slash = strchr(name, '/');
  int i = -1, organisation = slash ? (int)(slash - name) : 0;
  while (i < 4 && (!value || !*value)) value = getenv(places[++i][0]);
  snprintf(folder, FT__PATH_BYTES, "%s%s/models--%.*s%s%s", value && *value ? value : ".", places[i][1], organisation,
           name, slash ? "--" : "", slash ? slash + 1 : name);
}

/* path = folder/snapshots/COMMIT. Returns its length, or -1 if there is none. */
static int ft__hub_snapshot(const char *folder, char *path, size_t capacity) {
  char file_path[FT__PATH_BYTES + 16], commit[65];
  size_t length = 0;
  FILE *file;
  snprintf(file_path, sizeof file_path, "%s/refs/main", folder);
  file = fopen(file_path, "rb");
  if (!file) return -1;
  length = fread(commit, 1, sizeof commit - 1, file);
  fclose(file);
  commit[length] = 0;
  commit[strspn(commit, "0123456789abcdef")] = 0; /* without the end of the line, or anything that is no commit */
  return commit[0] ? snprintf(path, capacity, "%s/snapshots/%s", folder, commit) : -1;
}

FT_API ft_status ft_model_path(ft_context *context, const char *name, char *path, size_t capacity) {
  char folder[FT__PATH_BYTES];
  int length;
  if (!context) return FT_ERROR_ARGUMENT;
  if (!name || !path) {
    ft__null_argument(context, "a model's directory or name is missing");
    return context->status;
  }
  if (ft__is_directory(name) || ft__file_exists(name)) {
    length = snprintf(path, capacity, "%s", name);
  } else {
    if (!ft__hub_name(name)) return ft__error(context, FT_ERROR_FILE, "there is no directory %s", name);
    ft__hub_folder(name, folder);
    length = ft__hub_snapshot(folder, path, capacity);
    if (length < 0 || ((size_t)length < capacity && !ft__is_directory(path)))
      return ft__error(context, FT_ERROR_FILE,
                       "there is no directory %.200s, and its snapshot is not in the Hugging Face cache, %.400s: "
                       "\"bash tools/fetch.sh %.200s\" downloads the model to ./%.200s",
                       name, folder, name, strchr(name, '/') ? strchr(name, '/') + 1 : name);
  }
  if ((size_t)length < capacity) return FT_OK;
  return ft__error(context, FT_ERROR_ARGUMENT, "the path of model %.200s has %d bytes, there is room for %zu", name,
                   length + 1, capacity);
}

/* =====================================================================================================================
   >>safetensors files

       8 bytes             N, the size of the header, little-endian
       N bytes             JSON: {"__metadata__": {"format": "pt"},
                                  "classifier.weight": {"dtype": "F32", "shape": [2, 768], "data_offsets": [0, 6144]},
                                  ...}
       the rest            the data: arrays in row-major order, little-endian; offsets count from here

   Sorted by their offsets, the tensors must follow one another without gap or overlap from 0 to the end of the file,
   and each must have the size that its shape and dtype say. A model too large for one file comes as several, with an
   index beside them: {"weight_map": {"classifier.weight": "model-00002-of-00002.safetensors", ...}}. */

#define FT__HEADER_BYTES 100000000 /* the reference implementation's limit on N */

/* Every dtype of the format, in the order by which the reference implementation sorts tensors: the last goes first. */
static const struct ft__dtype {
  const char *name;
  int bits;
  int dtype; /* ft_dtype, or -1 for those this library does not read */
} ft__dtypes[] = {{"BOOL", 8, -1},     {"F4", 4, -1},          {"F6_E2M3", 6, -1},     {"F6_E3M2", 6, -1},
                  {"U8", 8, FT_U8},    {"I8", 8, -1},          {"F8_E5M2", 8, -1},     {"F8_E4M3", 8, -1},
                  {"F8_E8M0", 8, -1},  {"F8_E4M3FNUZ", 8, -1}, {"F8_E5M2FNUZ", 8, -1}, {"I16", 16, -1},
                  {"U16", 16, -1},     {"F16", 16, FT_F16},    {"BF16", 16, FT_BF16},  {"I32", 32, FT_I32},
                  {"U32", 32, -1},     {"F32", 32, FT_F32},    {"C64", 64, -1},        {"F64", 64, FT_F64},
                  {"I64", 64, FT_I64}, {"U64", 64, -1}};
enum { FT__DTYPES = (int)(sizeof ft__dtypes / sizeof ft__dtypes[0]) };

/* The row of ft__dtypes for an ft_dtype, or -1. */
static int ft__dtype_row(ft_dtype dtype) {
  int row = FT__DTYPES - 1;
  while (row >= 0 && ft__dtypes[row].dtype != (int)dtype) --row;
  return row;
}

FT_API const char *ft_dtype_name(ft_dtype dtype) {
  int row = ft__dtype_row(dtype);
  return row < 0 ? "unknown" : ft__dtypes[row].name;
}

FT_API size_t ft_dtype_size(ft_dtype dtype) {
  int row = ft__dtype_row(dtype);
  return row < 0 ? 0 : (size_t)ft__dtypes[row].bits / 8;
}

typedef struct ft__tensor_record {
  ft_safetensors_entry entry; /* first, so that its address is the record's */
  const char *stored_dtype;   /* as the header has it */
  int64_t begin, end;         /* bytes, from the start of the file */
  int shard;
  bool readable; /* the dtype is one of ft_dtype; else entry.dtype is FT_U8 */
} ft__tensor_record;

typedef struct ft__shard { /* one .safetensors file: open, or in memory */
  char *name;
  FILE *file;
  const unsigned char *bytes; /* NULL for a file */
  int64_t size;
  ft_json *header; /* holds the names of the tensors */
} ft__shard;

struct ft_safetensors {
  ft_context *context;
  ft__shard *shards;
  int64_t shard_count, shard_capacity;
  ft__tensor_record *tensors; /* as the headers list them */
  int64_t count, capacity;
  ft__name *names; /* [count], sorted */
};

FT_API void ft_safetensors_close(ft_safetensors *file) {
  int64_t i;
  if (!file) return;
  for (i = 0; i < file->shard_count; ++i) {
    if (file->shards[i].file) fclose(file->shards[i].file);
    ft_json_free(file->shards[i].header);
    ft__release(file->context, file->shards[i].name);
  }
  ft__release(file->context, file->shards);
  ft__release(file->context, file->tensors);
  ft__release(file->context, file->names);
  ft__release(file->context, file);
}

/* Copies bytes [begin, begin + size) of a shard to out. */
static ft_status ft__shard_read(ft_context *context, ft__shard *shard, int64_t begin, size_t size, void *out) {
  if (size == 0) return FT_OK;
  if (shard->bytes) {
    memcpy(out, shard->bytes + begin, size);
    return FT_OK;
  }
  if (ft__seek(shard->file, begin, SEEK_SET) == 0 && fread(out, 1, size, shard->file) == size) return FT_OK;
  return ft__error(context, FT_ERROR_FILE, "%s: bytes %lld to %lld cannot be read: %s", shard->name, (long long)begin,
                   (long long)begin + (long long)size, ferror(shard->file) ? strerror(errno) : "the file ends before");
}

/* Reads an array of integers >= 0 from a tensor's description, the first `limit` into values. Returns how many there
   are, or -1 if it is no such array. */
static int64_t ft__header_integers(const ft_json *tensor, const char *key, int64_t *values, int64_t limit) {
  const ft_json *array = ft_json_get(tensor, key), *item;
  int64_t count = 0;
  if (!array || array->type != FT_JSON_ARRAY) return -1;
  for (item = array->child; item; item = item->next, ++count) {
    if (!item->is_integer || item->integer < 0) return -1;
    if (count < limit) values[count] = item->integer;
  }
  return count;
}

/* Fills a record from one member of the header. Whether its offsets fit the others' is seen later. */
static ft_status ft__tensor_describe(ft_context *context, const ft__shard *shard, const ft_json *tensor,
                                     ft__tensor_record *record) {
  const ft_json *dtype = ft_json_get(tensor, "dtype");
  int64_t offsets[2] = {0, 0}, dimensions = ft__header_integers(tensor, "shape", record->entry.shape, 8);
  int i, row = 0;
  if (strlen(tensor->key) != tensor->key_length)
    return ft__error(context, FT_ERROR_FORMAT, "%s: tensor name \"%.200s...\" holds a zero byte", shard->name,
                     tensor->key);
  if (!dtype || dtype->type != FT_JSON_STRING || strlen(dtype->string) != dtype->string_length || dimensions < 0 ||
      ft__header_integers(tensor, "data_offsets", offsets, 2) != 2)
    return ft__error(
        context, FT_ERROR_FORMAT,
        "%s: tensor \"%.200s\" must have a dtype, a shape and two data_offsets, the numbers from 0 to 2^63",
        shard->name, tensor->key);
  if (dimensions > 8)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: tensor \"%.200s\" has %lld dimensions, the limit is 8",
                     shard->name, tensor->key, (long long)dimensions);
  record->entry.name = tensor->key;
  record->entry.dimensions = (int)dimensions;
  record->entry.count = 1;
  for (i = 0; i < record->entry.dimensions; ++i) {
    int64_t size = record->entry.shape[i];
    if (size && record->entry.count > INT64_MAX / 64 / size)
      return ft__error(context, FT_ERROR_FORMAT, "%s: the shape of tensor \"%.200s\" overflows", shard->name,
                       tensor->key);
    record->entry.count *= size;
  }
  while (row < FT__DTYPES && strcmp(dtype->string, ft__dtypes[row].name) != 0) ++row;
  record->readable = row < FT__DTYPES && ft__dtypes[row].dtype >= 0;
  record->entry.dtype = record->readable ? (ft_dtype)ft__dtypes[row].dtype : FT_U8;
  record->stored_dtype = dtype->string;
  record->begin = offsets[0];
  record->end = offsets[1];
  if (record->begin > record->end ||
      (row < FT__DTYPES && (record->entry.count * ft__dtypes[row].bits % 8 ||
                            record->end - record->begin != record->entry.count * ft__dtypes[row].bits / 8)))
    return ft__error(context, FT_ERROR_FORMAT,
                     "%s: tensor \"%.200s\" has %lld elements of dtype %.20s, but data_offsets %lld and %lld",
                     shard->name, tensor->key, (long long)record->entry.count, dtype->string, (long long)record->begin,
                     (long long)record->end);
  return FT_OK;
}

/* Checks that the newest shard's tensors cover its data, which begins at `start`, and makes their offsets count from
   the start of the file. Sorted by offset; of two that begin at the same byte, the empty one first. */
static ft_status ft__shard_check_layout(ft_safetensors *file, const ft__shard *shard, int64_t first, int64_t start) {
  int64_t i, covered = 0, count = file->count - first, data = shard->size - start;
  ft_status status = FT_OK;
  ft__name *order = (ft__name *)ft__allocate(file->context, ft__size_product((size_t)count, 2 * sizeof *order));
  if (!order) return FT_ERROR_MEMORY;
  for (i = 0; i < count; ++i) {
    const ft__tensor_record *record = &file->tensors[first + i];
    order[i] = ft__name_make(NULL, 0, first + i);
    order[i].prefix = (uint64_t)record->begin * 2 + (record->end > record->begin);
  }
  ft__names_sort(order, order + count, count);
  for (i = 0; i < count && status == FT_OK; ++i) {
    ft__tensor_record *record = &file->tensors[order[i].position];
    if (record->begin != covered)
      status = ft__error(file->context, FT_ERROR_FORMAT,
                         "%s: tensor \"%.200s\" begins at byte %lld of the data, the one before it ends at %lld",
                         shard->name, record->entry.name, (long long)record->begin, (long long)covered);
    covered = record->end;
    if (status == FT_OK && covered > data)
      status = ft__error(file->context, FT_ERROR_FORMAT, "%s: tensor \"%.200s\" ends at byte %lld of %lld of the data",
                         shard->name, record->entry.name, (long long)covered, (long long)data);
    if (status == FT_OK) record->begin += start, record->end += start;
  }
  if (status == FT_OK && covered < data)
    status = ft__error(file->context, FT_ERROR_FORMAT, "%s: the tensors end at byte %lld of %lld of the data",
                       shard->name, (long long)covered, (long long)data);
  ft__release(file->context, order);
  return status;
}

static ft_status ft__shard_check_metadata(ft_context *context, const ft__shard *shard, const ft_json *metadata) {
  const ft_json *item;
  if (metadata->type == FT_JSON_NULL) return FT_OK;
  if (metadata->type != FT_JSON_OBJECT)
    return ft__error(context, FT_ERROR_FORMAT, "%s: __metadata__ must be an object of strings", shard->name);
  for (item = metadata->child; item; item = item->next)
    if (item->type != FT_JSON_STRING)
      return ft__error(context, FT_ERROR_FORMAT, "%s: __metadata__ \"%.200s\" must be a string", shard->name,
                       item->key);
  return FT_OK;
}

/* Reads and parses the header; *start becomes where the data begins. */
static ft_status ft__shard_read_header(ft_context *context, ft__shard *shard, int64_t *start) {
  unsigned char prefix[8];
  uint64_t size = 0;
  char *text;
  int i;
  if (shard->size < 8)
    return ft__error(context, FT_ERROR_FORMAT, "%s: %lld bytes are too few for a safetensors file", shard->name,
                     (long long)shard->size);
  if (ft__shard_read(context, shard, 0, 8, prefix) != FT_OK) return context->status;
  for (i = 7; i >= 0; --i) size = size << 8 | prefix[i];
  if (size > FT__HEADER_BYTES || (int64_t)size > shard->size - 8)
    return ft__error(context, FT_ERROR_FORMAT, "%s: a header of %llu bytes in a file of %lld (limit %d)", shard->name,
                     (unsigned long long)size, (long long)shard->size, FT__HEADER_BYTES);
  text = (char *)ft__allocate(context, (size_t)size);
  if (!text) return FT_ERROR_MEMORY;
  if (ft__shard_read(context, shard, 8, (size_t)size, text) == FT_OK) {
    if (size == 0 || text[0] != '{')
      ft__error(context, FT_ERROR_FORMAT, "%s: the header must begin with {", shard->name);
    else
      shard->header = ft__json_parse_at(context, text, (size_t)size, shard->name, 1);
  }
  ft__release(context, text);
  *start = 8 + (int64_t)size;
  return shard->header ? FT_OK : context->status;
}

/* Adds the tensors of the newest shard to the file's. */
static ft_status ft__shard_add_tensors(ft_safetensors *file) {
  ft_context *context = file->context;
  ft__shard *shard = &file->shards[file->shard_count - 1];
  int64_t start = 0, first = file->count;
  const ft_json *member;
  if (ft__shard_read_header(context, shard, &start) != FT_OK) return context->status;
  if (!ft__grow(context, &file->tensors, &file->capacity, file->count + shard->header->count, sizeof *file->tensors))
    return FT_ERROR_MEMORY;
  for (member = shard->header->child; member; member = member->next) {
    ft__tensor_record *record = &file->tensors[file->count];
    ft_status status;
    if (member->key_length == 12 && memcmp(member->key, "__metadata__", 12) == 0) {
      if (ft__shard_check_metadata(context, shard, member) != FT_OK) return context->status;
      continue;
    }
    memset(record, 0, sizeof *record);
    status = ft__tensor_describe(context, shard, member, record);
    if (status != FT_OK) return status;
    record->shard = (int)(file->shard_count - 1);
    ++file->count;
  }
  return ft__shard_check_layout(file, shard, first, start);
}

static ft__shard *ft__shard_new(ft_safetensors *file, const char *name) {
  ft__shard *shard;
  if (!ft__grow(file->context, &file->shards, &file->shard_capacity, file->shard_count + 1, sizeof *file->shards))
    return NULL;
  shard = &file->shards[file->shard_count];
  memset(shard, 0, sizeof *shard);
  shard->name = ft__string_copy(file->context, name, strlen(name));
  if (!shard->name) return NULL;
  ++file->shard_count;
  return shard;
}

static ft_status ft__shard_open(ft_safetensors *file, const char *path) {
  ft__shard *shard = ft__shard_new(file, path);
  if (!shard) return FT_ERROR_MEMORY;
  shard->file = ft__file_open(file->context, path);
  if (!shard->file) return FT_ERROR_FILE;
  shard->size = ft__file_size(shard->file);
  if (shard->size < 0) return ft__error(file->context, FT_ERROR_FILE, "%s is not a regular file", path);
  return ft__shard_add_tensors(file);
}

/* The number of the shard that an index names (opened if it is new), or -1. Only a plain file name is taken, so that an
   index cannot point outside its directory. */
static int64_t ft__index_shard(ft_safetensors *file, const char *path, const ft_json *entry) {
  size_t directory = strlen(path), shard_directory;
  int64_t i = file->shard_count;
  char *shard_path;
  ft_status status;
  if (entry->type != FT_JSON_STRING || entry->string_length == 0 || strlen(entry->string) != entry->string_length ||
      strpbrk(entry->string, "/\\:") || strcmp(entry->string, ".") == 0 || strcmp(entry->string, "..") == 0) {
    ft__error(file->context, FT_ERROR_FORMAT, "%s: the file of tensor \"%.200s\" must be a plain name", path,
              entry->key);
    return -1;
  }
  while (directory && !ft__is_separator(path[directory - 1])) --directory;
  while (i-- > 0) { /* newest first: neighbours in the map mostly stand in the same file */
    shard_directory = strlen(file->shards[i].name) - entry->string_length;
    if (shard_directory == directory && strcmp(file->shards[i].name + directory, entry->string) == 0) return i;
  }
  shard_path = (char *)ft__allocate(file->context, directory + entry->string_length + 1);
  if (!shard_path) return -1;
  memcpy(shard_path, path, directory);
  memcpy(shard_path + directory, entry->string, entry->string_length + 1);
  status = ft__file_exists(shard_path)
               ? ft__shard_open(file, shard_path)
               : ft__error(file->context, FT_ERROR_FILE, "%s: the file %s, which holds tensor \"%.200s\", is missing",
                           path, shard_path, entry->key);
  ft__release(file->context, shard_path);
  return status == FT_OK ? file->shard_count - 1 : -1;
}

/* Makes the sorted index of the tensors' names. Within a file the header's parser has seen to it that none repeats. */
static ft_status ft__safetensors_index(ft_safetensors *file) {
  int64_t i;
  ft__release(file->context, file->names);
  file->names = (ft__name *)ft__allocate(file->context, ft__size_product((size_t)file->count, 2 * sizeof(ft__name)));
  if (!file->names) return FT_ERROR_MEMORY;
  for (i = 0; i < file->count; ++i) {
    const char *name = file->tensors[i].entry.name;
    file->names[i] = ft__name_make(name, strlen(name), i);
  }
  ft__names_sort(file->names, file->names + file->count, file->count);
  return FT_OK;
}

/* Of all tensors, keeps those that stand in the file that the map says; none may be missing. map [count]: the names in
   the map, sorted, each with the number of its shard as position. */
static ft_status ft__index_select(ft_safetensors *file, const char *path, const ft__name *map, int64_t count) {
  int64_t i, kept = 0;
  for (i = 0; i < file->count; ++i) {
    const ft__tensor_record *record = &file->tensors[i];
    if (ft__names_find(map, count, record->entry.name, strlen(record->entry.name)) == record->shard)
      file->tensors[kept++] = *record;
  }
  if (kept < file->count)
    ft__log(file->context, FT_LOG_WARNING, "%s does not list %lld of the tensors in its files: they are left out", path,
            (long long)(file->count - kept));
  file->count = kept;
  if (ft__safetensors_index(file) != FT_OK) return FT_ERROR_MEMORY;
  for (i = 0; i < count; ++i)
    if (ft__names_find(file->names, file->count, map[i].text, map[i].length) < 0)
      return ft__error(file->context, FT_ERROR_FORMAT, "%s: tensor \"%.200s\" is not in %s", path, map[i].text,
                       file->shards[map[i].position].name);
  return FT_OK;
}

/* Opens all files of a sharded model. */
static ft_status ft__index_open(ft_safetensors *file, const char *path, const ft_json *index) {
  const ft_json *weights = ft_json_get(index, "weight_map"), *entry;
  int64_t count = 0;
  ft_status status = FT_OK;
  ft__name *map;
  if (!weights || weights->type != FT_JSON_OBJECT)
    return ft__error(file->context, FT_ERROR_FORMAT, "%s has no object \"weight_map\"", path);
  map = (ft__name *)ft__allocate(file->context, ft__size_product((size_t)weights->count, 2 * sizeof *map));
  if (!map) return FT_ERROR_MEMORY;
  for (entry = weights->child; entry && status == FT_OK; entry = entry->next) {
    int64_t shard = ft__index_shard(file, path, entry);
    if (shard < 0) status = file->context->status;
    map[count++] = ft__name_make(entry->key, entry->key_length, shard);
  }
  if (status == FT_OK) {
    ft__names_sort(map, map + count, count);
    status = ft__index_select(file, path, map, count);
  }
  ft__release(file->context, map);
  return status;
}

static ft_safetensors *ft__safetensors_new(ft_context *context) {
  ft_safetensors *file = (ft_safetensors *)ft__allocate_zero(context, sizeof *file);
  if (file) file->context = context;
  return file;
}

/* The file to open for a path that may be a directory. */
static char *ft__safetensors_path(ft_context *context, const char *path) {
  static const char *const names[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                      "pytorch_model.bin.index.json"};
  int i;
  if (!ft__is_directory(path)) return ft__string_copy(context, path, strlen(path));
  for (i = 0; i < 4; ++i) {
    char *inside = ft__path_join(context, path, names[i]);
    bool found = inside && ft__file_exists(inside);
    if (!inside || (found && i < 2)) return inside;
    ft__release(context, inside);
    if (found) {
      ft__error(context, FT_ERROR_UNSUPPORTED,
                "%s holds no %s but only %s, a pickle: \"python3 tools/to_safetensors.py %s\" converts it", path,
                names[0], names[i], path);
      return NULL;
    }
  }
  ft__error(context, FT_ERROR_FILE, "%s holds neither %s nor %s", path, names[0], names[1]);
  return NULL;
}

FT_API ft_safetensors *ft_safetensors_open(ft_context *context, const char *path) {
  ft_safetensors *file;
  ft_json *index = NULL;
  ft_status status = FT_ERROR_MEMORY;
  char *found;
  size_t length;
  if (!context) return NULL;
  if (!path) return (ft_safetensors *)ft__null_argument(context, "ft_safetensors_open needs a path");
  found = ft__safetensors_path(context, path);
  if (!found) return NULL;
  length = strlen(found);
  file = ft__safetensors_new(context);
  if (file && length > 5 && strcmp(found + length - 5, ".json") == 0) {
    index = ft_json_read(context, found);
    status = index ? ft__index_open(file, found, index) : context->status;
  } else if (file) {
    status = ft__shard_open(file, found);
    if (status == FT_OK) status = ft__safetensors_index(file);
  }
  ft_json_free(index);
  ft__release(context, found);
  if (status == FT_OK) return file;
  ft_safetensors_close(file);
  return NULL;
}

FT_API ft_safetensors *ft_safetensors_parse(ft_context *context, const void *bytes, size_t size, const char *name) {
  ft_safetensors *file;
  ft__shard *shard;
  if (!context) return NULL;
  if (!bytes) return (ft_safetensors *)ft__null_argument(context, "ft_safetensors_parse needs the bytes of a file");
  file = ft__safetensors_new(context);
  if (!file) return NULL;
  shard = ft__shard_new(file, name ? name : "safetensors");
  if (shard) {
    shard->bytes = (const unsigned char *)bytes;
    shard->size = (int64_t)size;
    if (ft__shard_add_tensors(file) == FT_OK && ft__safetensors_index(file) == FT_OK) return file;
  }
  ft_safetensors_close(file);
  return NULL;
}

FT_API int64_t ft_safetensors_count(const ft_safetensors *file) { return file ? file->count : 0; }

FT_API const ft_safetensors_entry *ft_safetensors_at(const ft_safetensors *file, int64_t index) {
  return file && index >= 0 && index < file->count ? &file->tensors[index].entry : NULL;
}

FT_API const ft_safetensors_entry *ft_safetensors_find(const ft_safetensors *file, const char *name) {
  return file && name ? ft_safetensors_at(file, ft__names_find(file->names, file->count, name, strlen(name))) : NULL;
}

FT_API const char *ft_safetensors_metadata(const ft_safetensors *file, const char *key) {
  int64_t i;
  for (i = 0; file && i < file->shard_count; ++i) {
    const ft_json *value = ft_json_get(ft_json_get(file->shards[i].header, "__metadata__"), key);
    if (value) return value->string;
  }
  return NULL;
}

/* Little-endian numbers as they stand in a file; compilers make one load of each. */
static uint32_t ft__load16(const unsigned char *bytes) { return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8; }

static uint32_t ft__load32(const unsigned char *bytes) { return ft__load16(bytes) | ft__load16(bytes + 2) << 16; }

static uint64_t ft__load64(const unsigned char *bytes) {
  return ft__load32(bytes) | (uint64_t)ft__load32(bytes + 4) << 32;
}

static bool ft__little_endian(void) {
  const uint16_t one = 1;
  unsigned char first;
  memcpy(&first, &one, 1);
  return first == 1;
}

static float ft__float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

/* binary16, 1 + 5 + 10 bits with exponent bias 15, to binary32, 1 + 8 + 23 bits with bias 127: every half is a float.
 */
static float ft__float_from_half(uint32_t half) {
  uint32_t sign = (half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FF;
  if (exponent == 31) return ft__float_from_bits(sign | 0x7F800000 | fraction << 13); /* Inf, NaN */
  if (exponent) return ft__float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
  if (!fraction) return ft__float_from_bits(sign);
  for (exponent = 113; !(fraction & 0x400); --exponent) fraction <<= 1; /* subnormal: normalised by shifting */
  return ft__float_from_bits(sign | exponent << 23 | (fraction & 0x3FF) << 13);
}

static void ft__convert_float(ft_dtype dtype, const unsigned char *bytes, int64_t count, float *out) {
  int64_t i;
  if (dtype == FT_F32) {
    for (i = 0; i < count; ++i) out[i] = ft__float_from_bits(ft__load32(bytes + 4 * i));
  } else if (dtype == FT_BF16) { /* the upper half of a float */
    for (i = 0; i < count; ++i) out[i] = ft__float_from_bits(ft__load16(bytes + 2 * i) << 16);
  } else if (dtype == FT_F16) {
    for (i = 0; i < count; ++i) out[i] = ft__float_from_half(ft__load16(bytes + 2 * i));
  } else {
    for (i = 0; i < count; ++i) {
      out[i] = (float)ft__double_from_bits(ft__load64(bytes + 8 * i));
    }
  }
}

static void ft__convert_int(ft_dtype dtype, const unsigned char *bytes, int64_t count, int64_t *out) {
  int64_t i;
  if (dtype == FT_U8) {
    for (i = 0; i < count; ++i) out[i] = bytes[i];
  } else if (dtype == FT_I32) {
    for (i = 0; i < count; ++i) out[i] = (int32_t)ft__load32(bytes + 4 * i);
  } else {
    for (i = 0; i < count; ++i) out[i] = (int64_t)ft__load64(bytes + 8 * i);
  }
}

/* Reads a tensor piece by piece into floats or integers (the other is NULL). */
static ft_status ft__tensor_load(ft_context *context, ft_safetensors *file, const ft_safetensors_entry *entry,
                                 float *floats, int64_t *integers) {
  unsigned char piece[16384];
  const ft__tensor_record *record = (const ft__tensor_record *)(const void *)entry;
  ft_dtype dtype = entry->dtype;
  bool integer = dtype == FT_I64 || dtype == FT_I32 || dtype == FT_U8;
  int64_t size = (int64_t)ft_dtype_size(dtype), done = 0;
  ft__shard *shard = &file->shards[record->shard];
  if (!record->readable || integer != (integers != NULL))
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: tensor \"%.200s\" of dtype %.20s cannot be read as %s",
                     shard->name, entry->name, record->stored_dtype, integers ? "integers" : "floats");
  if (dtype == FT_F32 && ft__little_endian()) /* no conversion, no copy */
    return ft__shard_read(context, shard, record->begin, (size_t)entry->count * sizeof *floats, floats);
  while (done < entry->count) {
    int64_t count = (int64_t)sizeof piece / size;
    if (count > entry->count - done) count = entry->count - done;
    if (ft__shard_read(context, shard, record->begin + done * size, (size_t)(count * size), piece) != FT_OK)
      return context->status;
    if (integers)
      ft__convert_int(dtype, piece, count, integers + done);
    else
      ft__convert_float(dtype, piece, count, floats + done);
    done += count;
  }
  return FT_OK;
}

FT_API ft_status ft_safetensors_read_float(ft_context *context, ft_safetensors *file, const ft_safetensors_entry *entry,
                                           float *out) {
  if (!context) return FT_ERROR_MEMORY;
  if (file && entry && out) return ft__tensor_load(context, file, entry, out, NULL);
  ft__null_argument(context, "ft_safetensors_read_float needs a file, an entry and memory");
  return context->status;
}

FT_API ft_status ft_safetensors_read_int(ft_context *context, ft_safetensors *file, const ft_safetensors_entry *entry,
                                         int64_t *out) {
  if (!context) return FT_ERROR_MEMORY;
  if (file && entry && out) return ft__tensor_load(context, file, entry, NULL, out);
  ft__null_argument(context, "ft_safetensors_read_int needs a file, an entry and memory");
  return context->status;
}

/* The bytes of an item's data, or -1 with an error. */
static int64_t ft__item_bytes(ft_context *context, const ft_safetensors_item *item) {
  int row = ft__dtype_row(item->dtype), i;
  int64_t count = 1;
  if (!item->name || row < 0 || item->dimensions < 0 || item->dimensions > 8 ||
      !ft__utf8_is_valid(item->name, strlen(item->name)) || strcmp(item->name, "__metadata__") == 0) {
    ft__error(context, FT_ERROR_ARGUMENT,
              "tensor \"%.200s\" to be written needs a name in UTF-8, a known dtype and 0 to 8 dimensions",
              item->name ? item->name : "NULL");
    return -1;
  }
  for (i = 0; i < item->dimensions; ++i) {
    if (item->shape[i] < 0 || (item->shape[i] && count > INT64_MAX / 64 / item->shape[i])) {
      ft__error(context, FT_ERROR_ARGUMENT, "tensor \"%.200s\" to be written has dimension %d of %lld", item->name, i,
                (long long)item->shape[i]);
      return -1;
    }
    count *= item->shape[i];
  }
  if (count && !item->data) {
    ft__error(context, FT_ERROR_ARGUMENT, "tensor \"%.200s\" to be written has no data", item->name);
    return -1;
  }
  return count * ft__dtypes[row].bits / 8;
}

/* The order in which items are written, by dtype and then by name: order [count], with spare [count]. */
static ft_status ft__items_order(ft_context *context, const ft_safetensors_item *items, int64_t count, ft__name *order,
                                 ft__name *spare) {
  const ft__name *repeated;
  int64_t i, placed = 0;
  int row;
  for (i = 0; i < count; ++i) {
    if (ft__item_bytes(context, &items[i]) < 0) return context->status;
    order[i] = ft__name_make(items[i].name, strlen(items[i].name), i);
  }
  ft__names_sort(order, spare, count);
  repeated = ft__names_repeated(order, count);
  if (repeated)
    return ft__error(context, FT_ERROR_ARGUMENT, "two tensors to be written are called \"%.200s\"", repeated->text);
  for (row = FT__DTYPES - 1; row >= 0; --row)
    for (i = 0; i < count && ft__dtypes[row].dtype >= 0; ++i)
      if ((int)items[order[i].position].dtype == ft__dtypes[row].dtype) spare[placed++] = order[i];
  memcpy(order, spare, (size_t)count * sizeof *order);
  return FT_OK;
}

/* The header, from its size to its padding, which makes the data begin at a multiple of 8. */
static void ft__append_header(ft__string *out, const ft_safetensors_item *items, const ft__name *order, int64_t count,
                              const char *const *metadata, int64_t metadata_count) {
  int64_t i, offset = 0;
  ft__append_bytes(out, "\0\0\0\0\0\0\0\0{", 9);
  for (i = 0; i + 1 < metadata_count; i += 2) {
    ft__append(out, i ? "," : "\"__metadata__\":{");
    ft__append_json_string(out, metadata[i], strlen(metadata[i]));
    ft__append(out, ":");
    ft__append_json_string(out, metadata[i + 1], strlen(metadata[i + 1]));
  }
  if (metadata_count) ft__append(out, count ? "}," : "}");
  for (i = 0; i < count; ++i) {
    const ft_safetensors_item *item = &items[order[i].position];
    int64_t bytes = ft__item_bytes(out->context, item);
    int d;
    if (i) ft__append(out, ",");
    ft__append_json_string(out, item->name, strlen(item->name));
    ft__append_format(out, ":{\"dtype\":\"%s\",\"shape\":[", ft_dtype_name(item->dtype));
    for (d = 0; d < item->dimensions; ++d) ft__append_format(out, d ? ",%lld" : "%lld", (long long)item->shape[d]);
    ft__append_format(out, "],\"data_offsets\":[%lld,%lld]}", (long long)offset, (long long)(offset + bytes));
    offset += bytes;
  }
  ft__append(out, "}");
  while (!out->failed && out->length % 8) ft__append(out, " ");
  for (i = 0; i < 8 && !out->failed; ++i) out->text[i] = (char)((uint64_t)(out->length - 8) >> 8 * i & 0xFF);
}

/* Writes host numbers as little-endian ones. */
static void ft__output_numbers(ft__output *output, const void *numbers, int64_t bytes, size_t element) {
  const unsigned char *from = (const unsigned char *)numbers;
  unsigned char piece[4096]; /* a multiple of every element size */
  int64_t done = 0;
  if (ft__little_endian() || element == 1) {
    ft__output_write(output, numbers, (size_t)bytes);
    return;
  }
  while (done < bytes) {
    size_t count = bytes - done < (int64_t)sizeof piece ? (size_t)(bytes - done) : sizeof piece, i;
    for (i = 0; i < count; ++i) piece[i] = from[(size_t)done + i / element * element + (element - 1 - i % element)];
    ft__output_write(output, piece, count);
    done += (int64_t)count;
  }
}

static ft_status ft__metadata_check(ft_context *context, const char *const *metadata, int64_t count) {
  int64_t i, j;
  if (count < 0 || count % 2 || (count && !metadata))
    return ft__error(context, FT_ERROR_ARGUMENT,
                     "metadata to be written must be pairs of key and value, not %lld strings", (long long)count);
  for (i = 0; i < count; ++i)
    if (!metadata[i] || !ft__utf8_is_valid(metadata[i], strlen(metadata[i])))
      return ft__error(context, FT_ERROR_ARGUMENT, "metadata string %lld to be written is not UTF-8", (long long)i);
  for (i = 0; i < count; i += 2)
    for (j = 0; j < i; j += 2)
      if (strcmp(metadata[i], metadata[j]) == 0)
        return ft__error(context, FT_ERROR_ARGUMENT, "metadata key \"%.200s\" to be written stands twice", metadata[i]);
  return FT_OK;
}

FT_API ft_status ft_safetensors_write(ft_context *context, const char *path, const ft_safetensors_item *items,
                                      int64_t count, const char *const *metadata, int64_t metadata_count) {
  ft__output output;
  ft__string header;
  ft__name *order;
  ft_status status;
  int64_t i;
  if (!context) return FT_ERROR_MEMORY;
  if (!path || count < 0 || (count && !items))
    return ft__error(context, FT_ERROR_ARGUMENT, "ft_safetensors_write needs a path and items");
  if (ft__metadata_check(context, metadata, metadata_count) != FT_OK) return context->status;
  order = (ft__name *)ft__allocate(context, ft__size_product((size_t)count, 2 * sizeof *order));
  if (!order) return FT_ERROR_MEMORY;
  memset(&header, 0, sizeof header);
  header.context = context;
  status = ft__items_order(context, items, count, order, order + count);
  if (status == FT_OK) {
    ft__append_header(&header, items, order, count, metadata, metadata_count);
    if (header.failed) status = FT_ERROR_MEMORY;
    if (header.length - 8 > FT__HEADER_BYTES)
      status = ft__error(context, FT_ERROR_ARGUMENT, "%s: a header of %lld bytes is beyond the format's limit of %d",
                         path, (long long)header.length - 8, FT__HEADER_BYTES);
  }
  if (status == FT_OK) {
    ft__output_open(&output, context, path);
    ft__output_write(&output, header.text, (size_t)header.length);
    for (i = 0; i < count; ++i) {
      const ft_safetensors_item *item = &items[order[i].position];
      ft__output_numbers(&output, item->data, ft__item_bytes(context, item), ft_dtype_size(item->dtype));
    }
    status = ft__output_close(&output);
  }
  ft__string_free(&header);
  ft__release(context, order);
  return status;
}

/* =====================================================================================================================
   >>tables: CSV, TSV, JSONL

       CSV     text,label\r\n                          fields end at commas, rows at line ends (\r\n, \n or \r)
               "He said ""no"", and left.",negative    a field in quotes may hold commas, line ends, and doubled quotes
       TSV     the same with tabs for commas
       JSONL   {"text": "Fine.", "label": "positive"}  an object a line; true, 12 or [1, 2] become that text, null ""

   Quotes count only where a field begins with one; inside another field they are characters like any other, as Python's
   csv module has it. Empty lines are skipped. A CSV file is parsed where it was read: most fields need no more than a
   zero byte in place of the comma behind them, and removing doubled quotes only makes a field shorter. */

typedef struct ft__table {
  ft_table table; /* first, so that its address is this one's */
  ft_context *context;
  char *name;
  char *text; /* holds all cells */
  ft_cell *header, *cells;
  int64_t *lines;
  int64_t header_capacity, cells_capacity, lines_capacity;
} ft__table;

FT_API void ft_table_free(ft_table *table) {
  ft__table *inner = (ft__table *)(void *)table;
  if (!table) return;
  ft__release(inner->context, inner->name);
  ft__release(inner->context, inner->text);
  ft__release(inner->context, inner->header);
  ft__release(inner->context, inner->cells);
  ft__release(inner->context, inner->lines);
  ft__release(inner->context, inner);
}

FT_API int64_t ft_table_column(const ft_table *table, const char *name) {
  size_t length = name ? strlen(name) : 0;
  int64_t i;
  for (i = 0; table && name && i < table->columns; ++i)
    if (table->header[i].length == length && memcmp(table->header[i].text, name, length) == 0) return i;
  return -1;
}

/* Sorts the names of the columns into names [2 * columns]; no two may be the same. */
static ft_status ft__table_sort_header(ft__table *table, ft__name *names) {
  const ft__name *repeated;
  int64_t i, columns = table->table.columns;
  for (i = 0; i < columns; ++i) names[i] = ft__name_make(table->header[i].text, table->header[i].length, i);
  ft__names_sort(names, names + columns, columns);
  repeated = ft__names_repeated(names, columns);
  if (!repeated) return FT_OK;
  return ft__error(table->context, FT_ERROR_FORMAT, "%s: two columns are called \"%.100s\"", table->name,
                   repeated->text);
}

/* Makes room for `rows` rows. */
static ft_status ft__table_reserve(ft__table *table, int64_t rows) {
  int64_t cells = rows * table->table.columns;
  if (!ft__grow(table->context, &table->cells, &table->cells_capacity, cells, sizeof(ft_cell)) ||
      !ft__grow(table->context, &table->lines, &table->lines_capacity, rows, sizeof(int64_t)))
    return FT_ERROR_MEMORY;
  return FT_OK;
}

/* Makes room for one more row and notes its line. */
static ft_status ft__table_add_row(ft__table *table, int64_t line) {
  if (ft__table_reserve(table, table->table.rows + 1) != FT_OK) return FT_ERROR_MEMORY;
  table->lines[table->table.rows++] = line;
  return FT_OK;
}

typedef struct ft__csv {
  ft__table *table;
  char *at, *end; /* the byte at end can be written */
  char delimiter;
  bool row_ended; /* the last field was the last of its row */
  int64_t line;
} ft__csv;

/* The first of three bytes in [at, end), or end. */
static char *ft__find_any(char *at, char *end, char a, char b, char c) {
  while (end - at >= 8) {
    uint64_t eight;
    memcpy(&eight, at, 8);
    if (FT__HAS_BYTE(eight, a) | FT__HAS_BYTE(eight, b) | FT__HAS_BYTE(eight, c)) break;
    at += 8;
  }
  while (at < end && *at != a && *at != b && *at != c) ++at;
  return at;
}

/* Steps over the line end at csv->at. */
static void ft__csv_end_line(ft__csv *csv) {
  bool carriage_return = *csv->at++ == '\r';
  if (carriage_return && csv->at < csv->end && *csv->at == '\n') ++csv->at;
  ++csv->line;
}

/* Reads what stands in quotes from csv->at, behind the opening quote, to behind the closing one. */
static ft_status ft__csv_quoted(ft__csv *csv, ft_cell *cell) {
  char *to = csv->at, *from = csv->at; /* [from, csv->at) waits to be moved to `to` */
  int64_t opened = csv->line;
  cell->text = to;
  for (;;) {
    csv->at = ft__find_any(csv->at, csv->end, '"', '\n', '\r');
    if (csv->at == csv->end)
      return ft__error(csv->table->context, FT_ERROR_FORMAT, "%s: line %lld: the quote that opens here is never closed",
                       csv->table->name, (long long)opened);
    if (*csv->at != '"') {
      ft__csv_end_line(csv);
      continue;
    }
    if (csv->at + 1 == csv->end || csv->at[1] != '"') break;
    ++csv->at; /* of two quotes keep the first */
    if (to != from) memmove(to, from, (size_t)(csv->at - from));
    to += csv->at - from;
    from = ++csv->at;
  }
  if (to != from) memmove(to, from, (size_t)(csv->at - from));
  to += csv->at - from;
  cell->length = (size_t)(to - cell->text);
  ++csv->at;
  if (csv->at < csv->end && *csv->at != csv->delimiter && *csv->at != '\n' && *csv->at != '\r')
    return ft__error(csv->table->context, FT_ERROR_FORMAT, "%s: line %lld: text after a closing quote",
                     csv->table->name, (long long)csv->line);
  *to = 0;
  return FT_OK;
}

/* Reads a field and steps over the delimiter or line end behind it. */
static ft_status ft__csv_field(ft__csv *csv, ft_cell *cell) {
  if (csv->at < csv->end && *csv->at == '"') {
    ++csv->at;
    if (ft__csv_quoted(csv, cell) != FT_OK) return FT_ERROR_FORMAT;
  } else {
    cell->text = csv->at;
    csv->at = ft__find_any(csv->at, csv->end, csv->delimiter, '\n', '\r');
    cell->length = (size_t)(csv->at - cell->text);
  }
  csv->row_ended = csv->at == csv->end || *csv->at != csv->delimiter;
  if (csv->at == csv->end) {
    *csv->at = 0;
  } else {
    char *stop = csv->at;
    if (csv->row_ended)
      ft__csv_end_line(csv);
    else
      ++csv->at;
    *stop = 0;
  }
  return FT_OK;
}

static void ft__csv_skip_empty_lines(ft__csv *csv) {
  while (csv->at < csv->end && (*csv->at == '\n' || *csv->at == '\r')) ft__csv_end_line(csv);
}

static ft_status ft__csv_header(ft__csv *csv) {
  ft__table *table = csv->table;
  ft_status status;
  ft__name *names;
  ft__csv_skip_empty_lines(csv);
  if (csv->at == csv->end)
    return ft__error(table->context, FT_ERROR_FORMAT, "%s is empty: a header line was expected", table->name);
  for (csv->row_ended = false; !csv->row_ended; ++table->table.columns) {
    if (!ft__grow(table->context, &table->header, &table->header_capacity, table->table.columns + 1, sizeof(ft_cell)))
      return FT_ERROR_MEMORY;
    if (ft__csv_field(csv, &table->header[table->table.columns]) != FT_OK) return FT_ERROR_FORMAT;
  }
  names = (ft__name *)ft__allocate(table->context, ft__size_product((size_t)table->table.columns, 2 * sizeof *names));
  if (!names) return FT_ERROR_MEMORY;
  status = ft__table_sort_header(table, names);
  ft__release(table->context, names);
  return status;
}

static ft_status ft__table_parse_csv(ft__table *table, char *text, size_t length, char delimiter) {
  ft__csv csv;
  csv.table = table;
  csv.at = text;
  csv.end = text + length;
  csv.delimiter = delimiter;
  csv.line = 1;
  if (ft__csv_header(&csv) != FT_OK) return table->context->status;
  for (ft__csv_skip_empty_lines(&csv); csv.at < csv.end; ft__csv_skip_empty_lines(&csv)) {
    int64_t line = csv.line, columns = table->table.columns, count = 0;
    ft_cell beyond;
    if (table->table.rows == 1000) { /* these rows tell about how many there will be */
      double rows = 1010.0 * (double)length / (double)(csv.at - text);
      if (ft__table_reserve(table, (int64_t)rows) != FT_OK) return FT_ERROR_MEMORY;
    }
    if (ft__table_add_row(table, line) != FT_OK) return FT_ERROR_MEMORY;
    for (csv.row_ended = false; !csv.row_ended; ++count) {
      ft_cell *row = table->cells + (table->table.rows - 1) * columns;
      if (ft__csv_field(&csv, count < columns ? row + count : &beyond) != FT_OK) return FT_ERROR_FORMAT;
    }
    if (count != columns)
      return ft__error(table->context, FT_ERROR_FORMAT, "%s: line %lld: %lld fields, but the header has %lld",
                       table->name, (long long)line, (long long)count, (long long)columns);
  }
  return FT_OK;
}

typedef struct ft__jsonl {
  ft__table *table;
  ft__string text;        /* header and cells, each with a zero byte; where it stands is known at the end only */
  ft_json *first;         /* the first object, whose keys are the columns */
  ft__name *names;        /* [2 * columns]: the columns, sorted; scratch */
  const ft_json **values; /* [columns]: one row */
} ft__jsonl;

/* Makes the columns from the keys of the first object. */
static ft_status ft__jsonl_header(ft__jsonl *jsonl, ft_json *object, int64_t line) {
  ft__table *table = jsonl->table;
  int64_t columns = object->count, i = 0;
  const ft_json *member;
  jsonl->first = object;
  if (columns == 0)
    return ft__error(table->context, FT_ERROR_FORMAT, "%s: line %lld: the first object has no keys", table->name,
                     (long long)line);
  if (!ft__grow(table->context, &table->header, &table->header_capacity, columns, sizeof(ft_cell)))
    return FT_ERROR_MEMORY;
  jsonl->names = (ft__name *)ft__allocate(table->context, ft__size_product((size_t)columns, 2 * sizeof(ft__name)));
  jsonl->values = (const ft_json **)ft__allocate(table->context, ft__size_product((size_t)columns, sizeof(ft_json *)));
  if (!jsonl->names || !jsonl->values) return FT_ERROR_MEMORY;
  table->table.columns = columns;
  for (member = object->child; member; member = member->next, ++i) {
    table->header[i].text = member->key;
    table->header[i].length = member->key_length;
    ft__append_bytes(&jsonl->text, member->key, member->key_length + 1);
  }
  return ft__table_sort_header(table, jsonl->names);
}

/* Appends a value as the text of a cell. */
static void ft__jsonl_cell(ft__string *out, const ft_json *value, ft_cell *cell) {
  int64_t start = out->length;
  if (value->type == FT_JSON_STRING || value->type == FT_JSON_NUMBER)
    ft__append_bytes(out, value->string, value->string_length);
  else if (value->type != FT_JSON_NULL)
    ft__append_json(out, value, -1);
  cell->length = (size_t)(out->length - start);
  ft__append_bytes(out, "", 1);
}

/* Appends a row, its values in the order of the columns. */
static ft_status ft__jsonl_row(ft__jsonl *jsonl, const ft_json *object, int64_t line) {
  ft__table *table = jsonl->table;
  int64_t columns = table->table.columns, next = 0, i;
  const ft_json *member;
  memset((void *)jsonl->values, 0, (size_t)columns * sizeof *jsonl->values);
  for (member = object->child; member; member = member->next, ++next) {
    i = next; /* most often keys come in the same order */
    if (i >= columns || table->header[i].length != member->key_length ||
        memcmp(table->header[i].text, member->key, member->key_length) != 0)
      i = ft__names_find(jsonl->names, columns, member->key, member->key_length);
    if (i < 0)
      return ft__error(table->context, FT_ERROR_FORMAT, "%s: line %lld: key \"%.100s\" is not in the first object",
                       table->name, (long long)line, member->key);
    jsonl->values[i] = member;
  }
  for (i = 0; i < columns; ++i)
    if (!jsonl->values[i])
      return ft__error(table->context, FT_ERROR_FORMAT, "%s: line %lld: key \"%.100s\" of the first object is missing",
                       table->name, (long long)line, table->header[i].text);
  if (ft__table_add_row(table, line) != FT_OK) return FT_ERROR_MEMORY;
  for (i = 0; i < columns; ++i)
    ft__jsonl_cell(&jsonl->text, jsonl->values[i], &table->cells[(table->table.rows - 1) * columns + i]);
  return jsonl->text.failed ? FT_ERROR_MEMORY : FT_OK;
}

static bool ft__is_blank(const char *text, size_t length) {
  while (length && (*text == ' ' || *text == '\t' || *text == '\r')) ++text, --length;
  return length == 0;
}

static ft_status ft__jsonl_lines(ft__jsonl *jsonl, const char *text, size_t length) {
  ft__table *table = jsonl->table;
  const char *at = text, *end = text + length;
  int64_t line = 1;
  for (; at < end; ++line) {
    const char *stop = (const char *)memchr(at, '\n', (size_t)(end - at));
    size_t count = (size_t)((stop ? stop : end) - at);
    if (!ft__is_blank(at, count)) {
      ft_json *object = ft__json_parse_at(table->context, at, count, table->name, line);
      ft_status status = FT_OK;
      if (!object) return table->context->status;
      if (object->type != FT_JSON_OBJECT)
        status = ft__error(table->context, FT_ERROR_FORMAT, "%s: line %lld: an object was expected", table->name,
                           (long long)line);
      else if (!jsonl->first)
        status = ft__jsonl_header(jsonl, object, line);
      if (status == FT_OK) status = ft__jsonl_row(jsonl, object, line);
      if (object != jsonl->first) ft_json_free(object);
      if (status != FT_OK) return status;
    }
    at += count + (stop != NULL);
  }
  if (jsonl->first) return FT_OK;
  return ft__error(table->context, FT_ERROR_FORMAT, "%s is empty: an object was expected", table->name);
}

static ft_status ft__table_parse_jsonl(ft__table *table, const char *text, size_t length) {
  ft__jsonl jsonl;
  ft_status status;
  memset(&jsonl, 0, sizeof jsonl);
  jsonl.table = table;
  jsonl.text.context = table->context;
  status = ft__jsonl_lines(&jsonl, text, length);
  if (status == FT_OK) { /* the text stands still now */
    int64_t i;
    char *at = table->text = jsonl.text.text;
    for (i = 0; i < table->table.columns; at += table->header[i++].length + 1) table->header[i].text = at;
    for (i = 0; i < table->table.columns * table->table.rows; at += table->cells[i++].length + 1)
      table->cells[i].text = at;
  } else {
    ft__string_free(&jsonl.text);
  }
  ft_json_free(jsonl.first);
  ft__release(table->context, jsonl.names);
  ft__release(table->context, (void *)jsonl.values);
  return status;
}

/* Makes a table from text [length + 1], which becomes the table's or is released. */
static ft_table *ft__table_make(ft_context *context, char *text, size_t length, const char *name,
                                ft_table_format format) {
  ft__table *table = (ft__table *)ft__allocate_zero(context, sizeof *table);
  size_t skipped = length >= 3 && memcmp(text, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0; /* byte-order mark */
  ft_status status = FT_ERROR_MEMORY;
  if (format == FT_TABLE_AUTO)
    format = ft__ends_with(name, ".tsv")                                       ? FT_TABLE_TSV
             : ft__ends_with(name, ".jsonl") || ft__ends_with(name, ".ndjson") ? FT_TABLE_JSONL
                                                                               : FT_TABLE_CSV;
  if (table) {
    table->context = context;
    table->name = ft__string_copy(context, name, strlen(name));
  }
  if (!table || !table->name) {
    ft__release(context, text);
  } else if (length >= 2 && (memcmp(text, "\xFF\xFE", 2) == 0 || memcmp(text, "\xFE\xFF", 2) == 0)) {
    status = ft__error(context, FT_ERROR_UNSUPPORTED, "%s is in UTF-16: it must be saved as UTF-8", name);
    ft__release(context, text);
  } else if (format == FT_TABLE_JSONL) {
    status = ft__table_parse_jsonl(table, text + skipped, length - skipped);
    ft__release(context, text);
  } else {
    table->text = text;
    status = ft__table_parse_csv(table, text + skipped, length - skipped, format == FT_TABLE_TSV ? '\t' : ',');
  }
  if (status != FT_OK) {
    if (table) ft_table_free(&table->table);
    return NULL;
  }
  table->table.name = table->name;
  table->table.header = table->header;
  table->table.cells = table->cells;
  table->table.lines = table->lines;
  return &table->table;
}

FT_API ft_table *ft_table_parse(ft_context *context, const char *text, size_t length, const char *name,
                                ft_table_format format) {
  char *copy;
  if (!context) return NULL;
  if (!text) return (ft_table *)ft__null_argument(context, "ft_table_parse needs a text");
  copy = ft__string_copy(context, text, length);
  return copy ? ft__table_make(context, copy, length, name ? name : "table", format) : NULL;
}

FT_API ft_table *ft_table_read(ft_context *context, const char *path, ft_table_format format) {
  size_t length;
  char *text;
  if (!context) return NULL;
  if (!path) return (ft_table *)ft__null_argument(context, "ft_table_read needs a path");
  text = ft__file_read(context, path, &length);
  return text ? ft__table_make(context, text, length, path, format) : NULL;
}

/* =====================================================================================================================
   >>datasets: which columns hold what, and labels as numbers

   Classes are numbered in the order of their names: by value if every label is an integer ("01" and "1" are two
   labels), else bytewise, unless the caller names them. A dataset's texts are cells of the table it was read from,
   which it keeps; made from a caller's table, it copies them. */

typedef struct ft__dataset {
  ft_dataset dataset; /* first, so that its address is this one's */
  ft_context *context;
  ft_table *table; /* the table that holds the texts, or NULL */
  char *text;      /* else the texts themselves */
  char *copied;    /* how far text is filled */
  char *name, *label_text;
  ft_cell *texts, *pairs;
  int64_t *lines;
  const char **label_names;
  int32_t *labels;
  float *targets;
} ft__dataset;

FT_API void ft_dataset_free(ft_dataset *dataset) {
  ft__dataset *inner = (ft__dataset *)(void *)dataset;
  if (!dataset) return;
  ft_table_free(inner->table);
  ft__release(inner->context, inner->text);
  ft__release(inner->context, inner->name);
  ft__release(inner->context, inner->label_text);
  ft__release(inner->context, inner->texts);
  ft__release(inner->context, inner->pairs);
  ft__release(inner->context, inner->lines);
  ft__release(inner->context, (void *)inner->label_names);
  ft__release(inner->context, inner->labels);
  ft__release(inner->context, inner->targets);
  ft__release(inner->context, inner);
}

/* Writes "a, b, c" to out [size], with ", ..." for what has no room. */
static void ft__list_names(char *out, size_t size, const ft_cell *names, int64_t count) {
  size_t used = 0;
  int64_t i;
  out[0] = 0;
  for (i = 0; i < count; ++i) {
    if (size - used < 80) {
      snprintf(out + used, size - used, ", ...");
      return;
    }
    used += (size_t)snprintf(out + used, size - used, "%s%.60s", i ? ", " : "", names[i].text);
  }
}

/* The column `wanted`, or, if that is NULL, the first of the usual ones; -1 with an error if there is none. */
static int64_t ft__dataset_column(ft_context *context, const ft_table *table, const char *wanted,
                                  const char *const *usual) {
  char names[600];
  int64_t column = -1;
  if (wanted)
    column = ft_table_column(table, wanted);
  else
    while (*usual && column < 0) column = ft_table_column(table, *usual++);
  if (column >= 0) return column;
  ft__list_names(names, sizeof names, table->header, table->columns);
  ft__error(context, FT_ERROR_ARGUMENT, "%s has no column %.100s: it has %s", table->name,
            wanted ? wanted : "text, review, sentence or content", names);
  return -1;
}

/* The cells of a column: those of the table, or copies of them behind inner->copied. */
static ft_cell *ft__dataset_cells(ft__dataset *inner, const ft_table *table, int64_t column) {
  int64_t i, rows = inner->dataset.rows;
  ft_cell *cells = (ft_cell *)ft__allocate(inner->context, ft__size_product((size_t)rows, sizeof *cells));
  for (i = 0; cells && i < rows; ++i) {
    cells[i] = table->cells[i * table->columns + column];
    if (inner->table) continue;
    memcpy(inner->copied, cells[i].text, cells[i].length + 1);
    cells[i].text = inner->copied;
    inner->copied += cells[i].length + 1;
  }
  return cells;
}

/* Takes the texts, and the pairs if pair >= 0. Unless the table is the dataset's own, all is copied. */
static ft_status ft__dataset_take_rows(ft__dataset *inner, const ft_table *table, int64_t text, int64_t pair) {
  int64_t i, rows = inner->dataset.rows;
  size_t bytes = 1;
  if (!inner->table) {
    inner->lines = (int64_t *)ft__allocate(inner->context, ft__size_product((size_t)rows, sizeof(int64_t)));
    if (!inner->lines) return FT_ERROR_MEMORY;
    if (rows) memcpy(inner->lines, table->lines, (size_t)rows * sizeof(int64_t));
    inner->dataset.lines = inner->lines;
    for (i = 0; i < rows; ++i) {
      const ft_cell *row = table->cells + i * table->columns;
      bytes += row[text].length + 1 + (pair < 0 ? 0 : row[pair].length + 1);
    }
    inner->text = inner->copied = (char *)ft__allocate(inner->context, bytes);
    if (!inner->text) return FT_ERROR_MEMORY;
  }
  inner->texts = ft__dataset_cells(inner, table, text);
  if (!inner->texts) return FT_ERROR_MEMORY;
  if (pair >= 0) {
    inner->pairs = ft__dataset_cells(inner, table, pair);
    if (!inner->pairs) return FT_ERROR_MEMORY;
  }
  return FT_OK;
}

typedef struct ft__labels { /* the names of the classes, sorted bytewise; position = class */
  ft_context *context;
  const ft_table *table;
  int64_t column, rows;
  bool multi;      /* several labels to a cell */
  bool by_index;   /* the file has the number of each class in place of its name */
  ft__name *names; /* [capacity]: the first half holds names, the second is for sorting */
  int64_t count, capacity;
} ft__labels;

/* The next label of a cell: the whole cell, or what stands between semicolons, trimmed, empty parts left out. *at
   starts as 0. */
static bool ft__labels_next(const ft__labels *labels, const ft_cell *cell, size_t *at, ft_cell *label) {
  if (!labels->multi) {
    *label = *cell;
    return (*at)++ == 0;
  }
  while (*at < cell->length) {
    const char *start = cell->text + *at, *end = (const char *)memchr(start, ';', cell->length - *at);
    if (!end) end = cell->text + cell->length;
    *at = (size_t)(end - cell->text) + 1;
    while (start < end && (*start == ' ' || *start == '\t')) ++start;
    while (end > start && (end[-1] == ' ' || end[-1] == '\t')) --end;
    label->text = start;
    label->length = (size_t)(end - start);
    if (label->length) return true;
  }
  return false;
}

static const ft_cell *ft__labels_cell(const ft__labels *labels, int64_t row) {
  return &labels->table->cells[row * labels->table->columns + labels->column];
}

/* Sorts the names and drops repetitions. */
static void ft__labels_compact(ft__labels *labels) {
  int64_t i, kept = 0;
  ft__names_sort(labels->names, labels->names + labels->capacity / 2, labels->count);
  for (i = 0; i < labels->count; ++i)
    if (kept == 0 || ft__name_compare(&labels->names[kept - 1], &labels->names[i]) != 0)
      labels->names[kept++] = labels->names[i];
  labels->count = kept;
}

/* Adds a name. When the room is used up, repetitions are dropped; it doubles when that does not free half of it: any
   number of labels takes n log n steps, and memory in proportion to the different ones. */
static bool ft__labels_add(ft__labels *labels, const char *text, size_t length) {
  if (labels->count == labels->capacity / 2) {
    if (labels->count) ft__labels_compact(labels);
    if (labels->count >= labels->capacity / 4 &&
        !ft__grow(labels->context, &labels->names, &labels->capacity, labels->capacity ? 2 * labels->capacity : 256,
                  sizeof *labels->names))
      return false;
  }
  labels->names[labels->count++] = ft__name_make(text, length, 0);
  return true;
}

/* Reads -?[0-9]{1,18}. */
static bool ft__label_integer(const char *text, size_t length, int64_t *value) {
  size_t i = length && text[0] == '-';
  bool negative = i == 1;
  *value = 0;
  if (length <= i || length - i > 18) return false;
  for (; i < length; ++i) {
    if (text[i] < '0' || text[i] > '9') return false;
    *value = *value * 10 + (text[i] - '0');
  }
  if (negative) *value = -*value;
  return true;
}

/* The class of a label, or -1. */
static int64_t ft__labels_class(const ft__labels *labels, const ft_cell *label) {
  int64_t value;
  if (!labels->by_index) return ft__names_find(labels->names, labels->count, label->text, label->length);
  if (!ft__label_integer(label->text, label->length, &value) || value < 0 || value >= labels->count) return -1;
  return label->length > 1 && label->text[0] <= '0' ? -1 : value; /* neither 01 nor -0 */
}

/* Collects the labels that occur and numbers them. */
static ft_status ft__labels_collect(ft__labels *labels) {
  int64_t row, i, value = 0;
  bool integers = true;
  for (row = 0; row < labels->rows; ++row) {
    ft_cell label;
    size_t at = 0;
    while (ft__labels_next(labels, ft__labels_cell(labels, row), &at, &label)) {
      if (memchr(label.text, 0, label.length))
        return ft__error(labels->context, FT_ERROR_FORMAT, "%s: line %lld: a zero byte in label \"%.60s\"",
                         labels->table->name, (long long)labels->table->lines[row], label.text);
      if (!ft__labels_add(labels, label.text, label.length)) return FT_ERROR_MEMORY;
    }
  }
  if (labels->count) ft__labels_compact(labels);
  for (i = 0; i < labels->count && integers; ++i)
    integers = ft__label_integer(labels->names[i].text, labels->names[i].length, &value);
  for (i = 0; i < labels->count && integers; ++i) { /* sort by value: see ft__name_compare */
    ft__label_integer(labels->names[i].text, labels->names[i].length, &value);
    labels->names[i].prefix = (uint64_t)value ^ (uint64_t)1 << 63;
  }
  if (integers && labels->count) ft__names_sort(labels->names, labels->names + labels->capacity / 2, labels->count);
  for (i = 0; i < labels->count; ++i) labels->names[i].position = i;
  return FT_OK;
}

/* Takes the names that the caller gives. */
static ft_status ft__labels_given(ft__labels *labels, const char *const *names, int count) {
  int i;
  if (count < 1)
    return ft__error(labels->context, FT_ERROR_ARGUMENT, "label_names are given, but label_count is %d", count);
  if (!ft__grow(labels->context, &labels->names, &labels->capacity, 2 * (int64_t)count, sizeof *labels->names))
    return FT_ERROR_MEMORY;
  for (i = 0; i < count; ++i) {
    if (!names[i] || !names[i][0]) return ft__error(labels->context, FT_ERROR_ARGUMENT, "label name %d is empty", i);
    labels->names[i] = ft__name_make(names[i], strlen(names[i]), i);
  }
  labels->count = count;
  return FT_OK;
}

/* Copies the names, which stand in the order of their classes, into the dataset. */
static ft_status ft__dataset_take_names(ft__dataset *inner, const ft__labels *labels) {
  int64_t i;
  size_t bytes = 0;
  char *to;
  for (i = 0; i < labels->count; ++i) bytes += labels->names[i].length + 1;
  inner->label_text = to = (char *)ft__allocate(inner->context, bytes);
  inner->label_names =
      (const char **)ft__allocate(inner->context, ft__size_product((size_t)labels->count, sizeof(char *)));
  if (!inner->label_text || !inner->label_names) return FT_ERROR_MEMORY;
  for (i = 0; i < labels->count; ++i) {
    memcpy(to, labels->names[i].text, labels->names[i].length);
    to[labels->names[i].length] = 0;
    inner->label_names[i] = to;
    to += labels->names[i].length + 1;
  }
  return FT_OK;
}

/* Goes from the order of the classes to the bytewise order in which names are looked up. */
static ft_status ft__labels_sort(ft__labels *labels) {
  const ft__name *repeated;
  int64_t i;
  for (i = 0; i < labels->count; ++i)
    labels->names[i] = ft__name_make(labels->names[i].text, labels->names[i].length, i);
  if (labels->count) ft__names_sort(labels->names, labels->names + labels->capacity / 2, labels->count);
  repeated = ft__names_repeated(labels->names, labels->count);
  if (!repeated) return FT_OK;
  return ft__error(labels->context, FT_ERROR_ARGUMENT, "label name \"%.100s\" is given twice", repeated->text);
}

/* The first row with a label that is no class, which is left in *label; or -1. */
static int64_t ft__labels_unknown(const ft__labels *labels, ft_cell *label) {
  int64_t row;
  for (row = 0; row < labels->rows; ++row) {
    size_t at = 0;
    while (ft__labels_next(labels, ft__labels_cell(labels, row), &at, label))
      if (ft__labels_class(labels, label) < 0) return row;
  }
  return -1;
}

/* Checks all labels of the file against the names given. If these are words and the file has numbers from 0 to C - 1
   throughout, they are taken for the numbers of the classes. */
static ft_status ft__labels_check(ft__labels *labels, const ft_dataset *dataset) {
  ft_cell label, other, names[16];
  char list[600];
  int64_t row = ft__labels_unknown(labels, &label), value;
  int i;
  if (row < 0) return FT_OK;
  labels->by_index = true;
  for (i = 0; i < labels->count; ++i)
    if (ft__label_integer(labels->names[i].text, labels->names[i].length, &value)) labels->by_index = false;
  if (labels->by_index && ft__labels_unknown(labels, &other) < 0) {
    ft__log(labels->context, FT_LOG_INFO, "%s: the labels are taken for the numbers of the classes, 0 being %s",
            dataset->name, dataset->label_names[0]);
    return FT_OK;
  }
  for (i = 0; i < 16 && i < labels->count; ++i)
    names[i].text = dataset->label_names[i], names[i].length = strlen(names[i].text);
  ft__list_names(list, sizeof list, names, i);
  return ft__error(labels->context, FT_ERROR_FORMAT, "%s: line %lld: label \"%.*s\" is none of the %lld allowed: %s%s",
                   dataset->name, (long long)dataset->lines[row], label.length < 60 ? (int)label.length : 60,
                   label.text, (long long)labels->count, list, labels->count > 16 ? ", ..." : "");
}

/* Writes labels [rows], or targets [rows, C] for several labels to a row. All labels are known to be classes. */
static ft_status ft__dataset_take_labels(ft__dataset *inner, const ft__labels *labels) {
  int64_t rows = labels->rows, row;
  if (!labels->multi) {
    inner->labels = (int32_t *)ft__allocate(inner->context, ft__size_product((size_t)rows, sizeof(int32_t)));
    if (!inner->labels) return FT_ERROR_MEMORY;
  } else if (labels->count && rows > ((int64_t)1 << 28) / labels->count) {
    return ft__error(inner->context, FT_ERROR_UNSUPPORTED,
                     "%s: %lld rows with any of %lld labels are beyond the limit "
                     "of 2^28 targets",
                     inner->name, (long long)rows, (long long)labels->count);
  } else {
    inner->targets = (float *)ft__allocate_zero(inner->context, (size_t)(rows * labels->count) * sizeof(float));
    if (!inner->targets) return FT_ERROR_MEMORY;
  }
  for (row = 0; row < rows; ++row) {
    ft_cell label;
    size_t at = 0;
    while (ft__labels_next(labels, ft__labels_cell(labels, row), &at, &label)) {
      int64_t number = ft__labels_class(labels, &label);
      if (labels->multi)
        inner->targets[row * labels->count + number] = 1;
      else
        inner->labels[row] = (int32_t)number;
    }
  }
  return FT_OK;
}

static ft_status ft__dataset_classify(ft__dataset *inner, ft__labels *labels, const ft_dataset_options *options) {
  ft_status status;
  int64_t row;
  for (row = 0; row < labels->rows && !labels->multi; ++row)
    if (ft__labels_cell(labels, row)->length == 0)
      return ft__error(inner->context, FT_ERROR_FORMAT, "%s: line %lld: the label is empty", inner->name,
                       (long long)inner->dataset.lines[row]);
  status = options->label_names ? ft__labels_given(labels, options->label_names, options->label_count)
                                : ft__labels_collect(labels);
  if (status == FT_OK && labels->count > INT32_MAX)
    status = ft__error(inner->context, FT_ERROR_UNSUPPORTED, "%s has more than 2^31 labels", inner->name);
  if (status == FT_OK) status = ft__dataset_take_names(inner, labels);
  if (status == FT_OK) status = ft__labels_sort(labels);
  if (status != FT_OK) return status;
  inner->dataset.label_names = inner->label_names;
  inner->dataset.label_count = (int)labels->count;
  status = ft__labels_check(labels, &inner->dataset);
  if (status == FT_OK) status = ft__dataset_take_labels(inner, labels);
  if (status == FT_OK && labels->count < 2 && !labels->multi)
    ft__log(inner->context, FT_LOG_WARNING, "%s has %lld different labels: there is nothing to tell apart", inner->name,
            (long long)labels->count);
  return status;
}

/* Reads targets [rows, 1]: decimal numbers, blanks around them allowed. */
static ft_status ft__dataset_take_numbers(ft__dataset *inner, const ft__labels *labels) {
  int64_t row;
  inner->dataset.label_count = 1;
  inner->targets = (float *)ft__allocate(inner->context, ft__size_product((size_t)labels->rows, sizeof(float)));
  if (!inner->targets) return FT_ERROR_MEMORY;
  for (row = 0; row < labels->rows; ++row) {
    const ft_cell *cell = ft__labels_cell(labels, row);
    const char *start = cell->text, *end = start + cell->length;
    double value = 0;
    while (start < end && (*start == ' ' || *start == '\t')) ++start;
    while (end > start && (end[-1] == ' ' || end[-1] == '\t')) --end;
    if (!ft__decimal_parse(start, (size_t)(end - start), &value))
      return ft__error(inner->context, FT_ERROR_FORMAT, "%s: line %lld: label \"%.60s\" is not a number", inner->name,
                       (long long)inner->dataset.lines[row], cell->text);
    if (!ft__double_is_finite(value) || fabs(value) > FLT_MAX)
      return ft__error(inner->context, FT_ERROR_FORMAT, "%s: line %lld: label %.60s is too large", inner->name,
                       (long long)inner->dataset.lines[row], cell->text);
    inner->targets[row] = (float)value;
  }
  return FT_OK;
}

static ft_status ft__dataset_fill(ft__dataset *inner, const ft_table *table, const ft_dataset_options *options) {
  static const char *const texts[] = {"text", "review", "sentence", "content", NULL};
  static const char *const names[] = {"label", "sentiment", "labels", NULL};
  ft__labels labels;
  ft_status status;
  int64_t text = ft__dataset_column(inner->context, table, options->text_column, texts), pair = -1;
  int i;
  memset(&labels, 0, sizeof labels);
  labels.column = -1;
  if (text >= 0 && options->pair_column) pair = ft__dataset_column(inner->context, table, options->pair_column, NULL);
  if (text < 0 || (options->pair_column && pair < 0)) return inner->context->status;
  if (options->label_column && !options->unlabelled) {
    labels.column = ft__dataset_column(inner->context, table, options->label_column, NULL);
    if (labels.column < 0) return inner->context->status;
  }
  for (i = 0; !options->unlabelled && labels.column < 0 && names[i]; ++i)
    labels.column = ft_table_column(table, names[i]);
  status = ft__dataset_take_rows(inner, table, text, pair);
  if (status == FT_OK && labels.column < 0 && !options->unlabelled)
    ft__log(inner->context, FT_LOG_INFO, "%s has no column label, sentiment or labels: texts only", table->name);
  if (status != FT_OK || labels.column < 0) return status;
  labels.context = inner->context;
  labels.table = table;
  labels.rows = inner->dataset.rows;
  labels.multi = inner->dataset.task == FT_TASK_MULTI_LABEL;
  if (inner->dataset.task == FT_TASK_REGRESSION) return ft__dataset_take_numbers(inner, &labels);
  status = ft__dataset_classify(inner, &labels, options);
  ft__release(inner->context, labels.names);
  return status;
}

/* Makes a dataset from a table; kept is NULL, or the table, which then becomes the dataset's if one can be made. */
static ft_dataset *ft__dataset_make(ft_context *context, const ft_table *table, const ft_dataset_options *options,
                                    ft_table *kept) {
  ft_dataset_options none;
  ft__dataset *inner;
  memset(&none, 0, sizeof none);
  if (!options) options = &none;
  if (options->limit < 0 || (int)options->task < 0 || options->task > FT_TASK_REGRESSION) {
    ft__error(context, FT_ERROR_ARGUMENT, "dataset options: limit %lld or task %d makes no sense",
              (long long)options->limit, (int)options->task);
    return NULL;
  }
  inner = (ft__dataset *)ft__allocate_zero(context, sizeof *inner);
  if (!inner) return NULL;
  inner->context = context;
  inner->table = kept;
  inner->name = ft__string_copy(context, table->name, strlen(table->name));
  inner->dataset.rows = options->limit && options->limit < table->rows ? options->limit : table->rows;
  inner->dataset.task = options->task == FT_TASK_AUTO ? FT_TASK_SINGLE_LABEL : options->task;
  inner->dataset.lines = table->lines;
  inner->dataset.name = inner->name;
  if (!inner->name || ft__dataset_fill(inner, table, options) != FT_OK) {
    inner->table = NULL; /* still the caller's */
    ft_dataset_free(&inner->dataset);
    return NULL;
  }
  inner->dataset.texts = inner->texts;
  inner->dataset.pairs = inner->pairs;
  inner->dataset.labels = inner->labels;
  inner->dataset.targets = inner->targets;
  return &inner->dataset;
}

FT_API ft_dataset *ft_dataset_from_table(ft_context *context, const ft_table *table,
                                         const ft_dataset_options *options) {
  if (!context) return NULL;
  if (!table) return (ft_dataset *)ft__null_argument(context, "ft_dataset_from_table needs a table");
  return ft__dataset_make(context, table, options, NULL);
}

FT_API ft_dataset *ft_dataset_read(ft_context *context, const char *path, const ft_dataset_options *options) {
  ft_table *table = ft_table_read(context, path, options ? options->format : FT_TABLE_AUTO);
  ft_dataset *dataset = table ? ft__dataset_make(context, table, options, table) : NULL;
  if (dataset) { /* the texts have cells of their own by now */
    ft__table *inner = (ft__table *)(void *)table;
    ft__release(context, inner->cells);
    inner->cells = NULL;
  } else {
    ft_table_free(table);
  }
  return dataset;
}
/* =====================================================================================================================
   >>tokenizer: text to token ids

       text -> split at added tokens -> normalise -> words -> pieces -> ids -> truncate -> [CLS] .. [SEP]

   Added tokens such as [SEP] are found first, in the text as it is. What lies between them goes through the steps of a
   normalizer (BERT: control characters go, letters lose their accents and become lower case, ...) and of a
   pre-tokenizer, which cuts it into words; a model (WordPiece, BPE, Unigram) cuts each word into pieces of the
   vocabulary. Steps and models are rows of tables: any combination works. Each character carries the bytes [begin, end)
   of the original text that it came from, so tokens know where they stand.

   There are two ways through: the plain one goes step by step, over arrays of code points (FT_NAIVE uses nothing else),
   and is the definition. The usual combinations have a fast one that reads words straight from the text, and gives only
   what is out of the ordinary to the plain one; most words are then one look into a hash table.

   The Unicode tables are what the Hugging Face package was seen to do with every code point: models were trained with
   it, and it mixes the tables of several Unicode versions. */

/* GENERATED by tools/unicode_tables.py: begin */
/* clang-format off */
/* clean_text drops */
static const char *const ft__unicode_deleted[] = {
  "#+%$$4b%C$0#UM$(9#C)#T$#aJ'#_b$'='T$'$,S_R$bJ)bR$#}*%$#bH'#EbM$&RI(*IWN;#Ab%C_b$`bb$%`bb$", NULL};
/* separates words */
static const char *const ft__unicode_whitespace[] = {
  ",'5#G&#=#bQ(#bN%-@$(#R$#C`&#", NULL};
/* tokenize_chinese_chars puts spaces around */
static const char *const ft__unicode_chinese[] = {
  "CC0bP)C%bR7CK9b2CKD%bYL$C$bK'C+RO(SM-b3", NULL};
/* a word of its own */
static const char *const ft__unicode_punctuation[] = {
  "D$1-)=(=&E$#(#&#-$&#&#a8#+#U1(L$$V$#$#%#%#O$$7$$$0#%$M%&I&#N$0L*%Y$1B#H+$-#b.#F;#]%#-$K(1$#H$&J%#M%''$R&(N(#G6+",
  "Z'#O6$O$$Q%%J%$`'%$%H$-},$[)$C')$(O()^'&^$'a$$C%*.#_<:+6$/$.A$1$}6&@$`D$0R%$B,V/8b$&C$$^:&$$S&#R'Q$$5a0%',%.3#/#",
  "E&#]%#EC@$P+%F&#-#V&(_.&Y%$K$%$#T$$R$#D&/3$_&&a&$3$}*#UM7$S),9E$$0$#'#$$X'%$($&-$&$=%$#>#$#$)]/%_7#S$#a/#J:#J)#B",
  "#S++I$#S&)E%)}%&MH$)P&$$&a&&S$$R%'&#0#$%[%(N&#_3#]*9L&%[*%TL&'}R4$H'#D%'+#]M7#JR*'", NULL};
/* part of a word: \w */
static const char *const ft__unicode_word[] = {
  "S$,*<'#$<R$#-#'#(9$A$L1'.1'*#$#4W&$$%&$#)#$%$#$6$U%$M'$O($H$%#)K$+O$$#$$$$$#+='&@-(L%'H&$*%,$5%#3]$%G&1X$'#%#%P$",
  "5>'-(:$(+M%$C'%,$5$*%$%8$)$#&&%+%$%&+#'$$'%.-#$#%%$('$%8$)$$$$$$%#$''$%%&#*&$#*2.%$+$%$8$)$$$'%,$%$%%#2&%,,)$%$*",
  "%$%8$)$$$'%+%$%%*%'$$'%,$#3$$(&%$&&$$#$$&$&%&.''&%$&%#)#1,3/$%$9$2%+$%$&*$$%%#%&%,3&$*$%$9$,$'%+$%$&*$)$$&%,$%//",
  "$%$U$$%$'(&*'%,-($%$4&:$+$#%)&#'($#$*),%$0}$(1$,J$$$#$'$:$#$9%'$#$)$,%&C$#:$),.#$#$#',$F$'6$4$F$,#}$L%)P%%H$$#(#",
  "%M$$O-$&%)$#$&%K$$&%C$$&%)$#$&%1$[$$&%E%%%C$23X%%(&N6%3$<(M%&-*8,8.6//$%$$/V%&#'$%,D$%$-)[%*M$(H%-A$.'.-J$%'.N$'",
  "<),I$>'a$$~%-),0#+AT$O%&,4+/V&/Z$+,&S$%-(M$%%3%$I$(X3%(%H$%(%*$#$#$#$A%W$$)$#&%$)&&%('/(%$)2$T$$6#~#0#3/V$C$4#'#",
  "%,$#&')#$#$#$&$-%&(''#4K$P<V$Y[$G*)+/H$$#(#%Z$*#2:,)$)$)$)$)$)$)$)$BR$#X1%<1$'%''X%%$%%$}%$&(M$$`%4BS$2C3bP)C%",
  "OW8F%P$%O+&>7U$$,$U&H$+%I&%E%%$$#$*8X$'#6V$/H%-,):&#$S$%F$/~&C%1-)A$Y$,0%,)9&K%;%%2%'-(%(%(,)$)$M$$0)]&$$%,)F`-/",
  "9'S$GK+P.%L&I$)/'(.$/$'$#$$$$$N&D$M.5b$%X$K$.'232&$;%C$'$I'6,*<'#$<.[%&(%(%(%%F$.$<$5$$$1%0E$]&H%W$K'#E'~&S$2#BB",
  "0@(M$(@%F$'*$'M$`'%,)F$'F$'J$+V$/-$1$)$$$-$1$)$$&V$/Y,,8-*;($L$$+H%(%#$N$$$&#%9-9,AD%5$$-8-<I%Z$)$C%&$$(*$%$~%%'",
  "#C$~&~F$*$@<X$-8-504Q&K%Z$U$0U$0J$+,)H$&'$9]*L$$$&$3%Z$C$-#+C$B8M$7>9,I%B2,^$*#0;*,)W$$,'&+F$%#,G%'&$/$#F$4$G$)&",
  "a$)$#$&$1$,*]$(,)&$*%$%8$)$$$'$,%$%%%#)#()%)&'.,$#%#$H$$,$#%#$&$*0$@M%(,'&AH%$#+,I(X$%+:(E$C%&#.,I$[$*,)6~=%1',)",
  ")}(]$H&L%8*%#%*$$$@$$%+/,I%*%P$%*$$>a$+#+L%&#5K%J)C$2,)+$O$$+2,;@%8$0L%)$$$N$&#$$$++,)($$$G$$$$(*,Y,9,3$K$&'0-X%",
  "#R%}~I&Q&4F)OU%C&2RD$38-]_&(I5}X)}$IY$[4*A$,)Q%$,)@%'.Y$,&/,,7(5S0O$&,I)b$C'M%'[$*3C%$$$.$1Zb(+XI$L$,JZ+&$)$$$E,",
  "2#@%%#1&+N/GK%M&(/&+*,&$TE',I3P$%9a3'&(+*%)A&W'%^0W%$I%$$%#%$%&$.$#$)$C%$&%*$)$>$&$'$#&)$V-%;$;$A$;$A$;$A$;$A$;$",
  "*%T$C3Y$'T$+#1#9'$1SE$A)(X))$3%)$$$'(`$D$#S&O$&0%,'#D-A4}$Y1L$Y)M$H2)$&$$$1$G).)L$N%',IH$&$=$$$#%#$,$&$#$#)#'#$#",
  "$#$%$$$#%#$#$#$#$#$$$#%&$)$&$&$#$,$3(%$'$3W6<)<)<IV%,IC$bYL$C$}D')`)%DW(1SL*2P6EP%`3ER$M]'(bE'SMZ8R*", NULL};
/* \p{L} of the byte-level expression */
static const char *const ft__unicode_letters[] = {
  "D%<)<R$#-#'#(9$A$L1'.1'*#$#D''$$%&$#)#$%$#$6$U%$M'+H($H$%#)K$J%='&P$M$F$$$E&$#2$*$-%%#3#$@@[%.#;C$,$'#(8'#,#&#:;",
  "*-(:$(4L$]$X$&#5#*,22'*%$%8$)$#&&&#3#0$$%1$-#+('$%8$)$$$$$$B&$#6%3+$%$8$)$$$'&#5#2$:#.*%$%8$)$$$'&#A$$%2#4#$(&%$",
  "&&$$#$$&$&%&.9#W$*$%$9$2&#=%%#%$A#'*$%$9$,$'&#B$$$2$4+$%$K$%#3#(%+%;((4&:$+$#%)]$R$$$/)]$$$#$'$:$#$,$$,#%'$#8&C$",
  "#b$*$F$>'V&M$7#3('&&#&$*%'//#4H$$#(#%M$$O-$&%)$#$&%K$$&%C$$&%)$#$&%1$[$$&%E%H$23X%%(&N6%3$<(M%)**405141/$%2V$F$#",
  "'#F%[%*'%D$$#(H%-AT$@%'.N$'<Y$9,W$U%#`%Q$4*Y$@0$-N$=F$L$%-F$%-(M$%%L$&$($$&#(b(C%X+%(%H$%(%*$#$#$#$A%W$$)$#&%$)&",
  "&%('/(%$)W&#0#3/H&#'#%,$#&')#$#$#$&$-%&(''#W$$^V%G*)&&$/H$$#(#%Z$*#39,)$)$)$)$)$)$)$)S%#X1$M$'($'X%)%$}%$&(M$$`%",
  "4BS$2C3bP)C%OW8F%P$%O+&2-$7Q$3A%H%T$+%I&%E%%$$#$*82$%$&$9@V$1T$a$(&#$$.>-9<~*Q$~#3'$,-'$K$:%$*79&#&T$$#&$%'%#$#;",
  "%%-*%/(%(%(,)$)$M$$0)U&@F`-/9'S$GK+P.%L&I$)/'(#$,$/$'$#$$$$$N&D$M.5b$%X$K$.W&'$I'G$<)<.[%&(%(%(%%F$.$<$5$$$1%0E$",
  "]&H/~&S$R$B06$*)H$-@%F$'*S$`'5F$'F$'J$+V$/-$1$)$$$-$1$)$$&V$/Y,,8-*;($L$$+H%(%#$N$$$&#%9-9,AD%5$$-8-<I%Z$)$C%#2&",
  "$%$~M$~&~F$*$>>X$-8-504Q&K%Z$U$0U$0F$I$>,9]*L$)$3%^$~-#+8M$4Q$7>9/W$}$$%#0O$C$;=F$@#%#+E$&#/R$1&8#$#F$4$;6$b$)$#",
  "$&$1$,*Q$I$*%$%8$)$$$'&#5#/'A,$#%#$H$$#<#$#O$W$5&7%AR$7$$#[(Q$L$&G$R$7#^$M$0#J%=H$)}(N$W&b$B*%#%*$$$:2#$#a%*%I$3",
  "#$#~#-J$*#8#.P$6#5K%J)C$B+$G$4#T$@S&)$$$H$8#<($$$B1#J-52#$/$D$_&#R%}~I*F)OU%C&2RD$4(<]_&(I5}X)@EZ$[4*A4Q%4@5R$3&",
  "B7(5S0O$V)b$C'M%(#E%/C%$$#~Zb(+XI$L$,JZ+&$)$$$E,2#@%%#1&+N/GK%M&(/&+*,I^(W%$I%$$%#%$%&$.$#$)$C%$&%*$)$>$&$'$#&)$",
  "V-%;$;$A$;$A$;$A$;$A$;$*W}$A)(H+`$U'O$-)3#D-@5N$G2>G*@%#R2)$&$$$1$G)^$F%*#WH$&$=$$$#%#$,$&$#$#)#'#$#$#$%$$$#%#$#",
  "$#$#$#$$$#%&$)$&$&$#$,$3(%$'$3GM'bYL$C$}D')`)%DW(1SL*2P6EP%`3ER$M]'(bE'", NULL};
/* \p{N} */
static const char *const ft__unicode_numbers[] = {
  "S$,[&$(#%%DP$,I',I),_/,Y&,'(O&,Y&,Y&,%(Q&/V&,+)J&,K&)*5P&,C&,Y&,I%6O+,I%,R96T>%R*,),9,O,,C'-H(,),Y(,Y%,I',),YC$#",
  "&(),I)U$%'Y9^$Q%8Y6@LN$#L;#<+1%Z-&M',A*$1C$,J$1C^~,_(,C-(]',I$,I),9,Y%,Y/,Y[7,P2O$/[$4$X-=G$&@#+#I''M),Q@*<)J$+",
  "N%'9(C($%2%P$C%+W$$A%N%'K&*;*L$)M-(S$,),Y+Aa',M$&S&)I'@C',_$,S',*6^*,Y-,Y&,Y.,I&,)6O%.G05`%,Y7,Y%~F*,I%,I0,I&7",
  "ND$Q&DI2,IL%,Y%,I',$)Q3,I+9}U:,IQ$6/6O&;XE$T$CM%,I0,Y2,Z*,O9+C',Z;]$$%$&O%O$$1EA/FZ%,", NULL};
/* StripAccents drops */
static const char *const ft__unicode_accents[] = {
  "C;R&V+)J+O$$#$$$$$#K%-S$73#H&)%(%$$&F$#A=^%-]$+E$&$+$%$'N$%[&0$C$Y$%$4$)-$@%[$#$)%$%%,#-$@%[$#$''$%%&#A$&#.%[$#$",
  "*$%$%7$@%[$#$)%$%%+$-$A#^$'&%$&,#K$&]$)$%$&*$.$@%[$#$)$%$&*$.$@%]$)$%$&,#-$A$I%#'($#$*5$`$#%)/*E&#%($$.(M%$>#$#$",
  "#'$T$6$$(-$F$,#G&6:&'%$%%)&&0.$#-&b8%U@%@%@$A$C%B,#P$%Z&$E$#Y&.'.^)'}$,$~%#S$1D%'R$3I$+/%A/[$0S$6['%$7'#'%&$I)X$",
  "('S9C$ab%%P'#C&BM4(L&$WQ@&$,C$$S%$S+#&#'#:'[%$U$4=4W$*</O$&R$0G$#F%0/#+$P$%U$#$%%$($$#L$'($O**$$S}6#D:232PA#E*#",
  "X''IW$%$$(&K$%'#H($}K$%X$1[$&P$-H%%G$0a$#/%S$0,%b%.)#C(.8&[$#$)%$%%,#-$%)&'C)4L&6N*)%+>$U%3M&/H&1FK$*$*U%8$0}T6'",
  "^$)]C$P$3&MK6$II('&(+*%)A&W'%^`$Y$'T$+#1#9'$1SM$)$3%)$$$'HH%)P&)X`H;R*", NULL};
/* grapheme classes: + class, see FT__GRAPHEME */
static const char *const ft__unicode_graphemes[] = {
  "#B$b%C$$,#+&#$##+T5R&%V+)%J+O$%$#%$$%$$%$#%[$(&--%$#$Q$7%3#%H&)%##&$(%%$%$&%D$#&$#%A=%^%-%]$+%,#%;&%$+%$%%$'%N$%",
  "%W$$&(+%M$:%##&#B%##'4G$,##%##'##%$%'#*%#&'##-#$'$)%#*,%$%7*,$#%#$'46,$),$#,&&,%#%$#%#$'#&%%$'%$'##-,#%'$,$#,%$%",
  "/$,/#%%$%##'[$#%$%'#$%'$%%%%&#%A$%&#%.$%##'46,$),$$,$',%#%$%'#'%$$%##'$$'##-7$%8#,#(%$#%#$'46,$),$$,$',%#%$$%##'",
  "#&%%$'%$'##-*%%'$,$#,%$%0#,3#%^$#%##'##%#$'&%'$%'##%,#%K$#%#%'##%36,$2,%#%$%%#&'$%%$%%##-*$%$%,*$%@#%#$'[$#%$#'#",
  "$%##'##%#$'$%%$&%*$%.$%2#'/$%#$'4H$,#$%$#%#$'#&%$%'$%'##-##&+#%-$%@#%#$'I%#%'#%#$'#%%$#%$)'##%5$'`$#%$#'#)%/*%E&",
  "#%$#'#+%.)%L%$%>#%$#%$#%'$'T$0%##'#'%$$%(-%$F$%,#%}$M$,%&%##'#(%$#-##%#$'#$%##,3(,#$'#$%#&,#%%##,&$,*%,#&%#/,##%",
  "$#'#$%)#%##,1#%E&b%(#J%)#Z%*`-%%U@&%~%%@$%A$%/V$,#$%##'#)%#*'##%#$'#+%##-##%,#%P$%%##$##%X&$%E$#%Y&%%#&'#$%#%''$",
  "'##%#('#%%^)$%#$'##%'W$,##'##%##'#)%$#-$#%%*%#('#,%%#%S$P$%%.%7&%##')$,)C$,#,%#&'#$%##-#*,A+%/$%##'#@,##'#&%#$'#",
  "%%##-#$%#$,.%,K$#%##'#$%#%'##%##'#'%S$*'#*%#$'#$%['%%$/%##'#)%'#%)#%%#'#$%I)b$%N3#$##%##'#$$;)$0#+/#+92$C&C$%T$#",
  "+9#+]%(+2$+R.$+/#+I(#+<-+'%+J)#+J*$+-#+,#+]$&+$'+,#+%#+%$+%#+'#+%#+$$+%#+&#+&$++%+(#+$#+(.+.$+%#+$$+$#+5#+%$+5(+",
  "$#+$$+&$+(#+%$+'$+.$+($+%#+($+$#+$$+7$+((+$&+%#+'#+%#+%(+$#+%#+$#+$#+)#+&#+)#+-$+2#+%#+'#+$#+'%+$#+.$+S$%+,#+1#+",
  "1#+W.$+R1%+6$+V$#+'#+}/%%P'#%C&B%M4(%##+/#+^%$%_2#+$#+Xa~&%$,%C$$%S%$%S+#%&#%'#%:$'#$%##''#%V%$'U$2'#$%=4%0#%I$*",
  "%<-%##'##%/~(&%%##'(%,&F$,##%#$'#&%#$'#$%#$'##-B',##%$+,-',M$(%#$'#$%#$'#$%/#%+#%##'52,$%,)#,$#%$$,S$#%$%%%$%($%",
  "$#%A-,##'#$%#$'(#'##-L)=,+$'##%#$'##%#$'$#'##%Ea-9)'S$*E}+#%D:2%32%R)#$a'$%S%.$D3#%E*#%X''%HW$#,#%%$$%(&%#&,$%,$",
  "~,%%%'#-H($%`4&%D%'%`,$%P%(%I%-%T$&%]&#'##%##'X$1%L$#%%$%-%%##'P$%'#&%#$'#$%%#&'#%-#&U$%%#F$,#'%##'#(%##-##%2#,#",
  "$'##,N$#%/$%##'S$%'#+%##'##%$$&(&%$#'##%_%%'#%%#$'#&%)#%%#%`'#%#%'#*%8$%#$'Z$$%$#%##'##%#&'%$'%$'##%,#%-$'%)%&'%",
  ".,,$#,%#,$H$,%#%#$'#(%$#%%#%$%%##'$$'#$%##-##&##%1$%U%%'#*%#$'#%%##'##%:#%T%#%#$'#(%##'##%#$'##%##'#$%##'#$%N*#%",
  "#$'#&%%&'#$%##'#$%>$%U%%'#*%#$'##%##'#$%M&#%##'##%#$'#*%H&#%##'##%%&%##'#'%C+%'#+%##'#$%H)),%#,%*,$$,$:,##%#''$$",
  "'%%%##-##&##'##&##'##%P'%'#&%%$%#&'##%&#'>#,#,%#J$,#(%##'$&%+#-+#,#(%#$'#%%#J$,#(&#/%##'##%##-I)#%##'#%%##'##%##",
  "'J)#'#)%$(%##'##%U%8%$#'#)%##'#$%##'#$%]&(%&#%$$%$)%##&##%E%''$$%$$'##%##'##%^-$%#$',$%##&##'#/,$D$,#$'#'%&$'#$%",
  "##-:#%HJ(#%)1%KI..%#%'#%%CQ%'%^$)%O4#)&&)G2#%$Y$'*&%T%#%.$%NH6$%DV'P$%%9%a3'%&(%+*%%)%A&%W'%%^`$Y$%'T$%+#%1#%9'%",
  "$1%SM$)%$3%%)%$$%$'%G&#%C()%Z.#%`$&%_2&%a*$%V*#%%#%*$%(#%]1)%P&)%}X$#+J$&+G&.+2$+2#+1$+H$,+S&$+/$+1#+%,+6Z$+>1+-",
  "#+7#+%++$&+,9+)^(+%R&+%$+$%+%U%+%%+$&+#'%#`*+$a$+.(+$:+*$+%*+/#+%&+%#+'$+0$+%#++$+,#+(%+/%++%+%#+$#+'#+)#+&#+)X%",
  "+S$H%+(*+%3+&#+$(+%/+])H$+/&+[$*+-(+K$*+A$+/&+%0+,I$+/Q$+$,+$[(+[%*+1T'+C+`B+EDC;b%%C'R*%", NULL};
/* + 2 * rank of the canonical combining class + (strip_accents drops it) */
static const char *const ft__unicode_marks[] = {
  "C;7H&##J&#&^%##J&##Z%#'^%#$V%#&^%#$V%#-^%#'&#&^%#%H&%#H&%#P&##H&#%^%#%H&#$^%##$#%H&#&^%##H&##J&#$^%##H&##L&#$N&#",
  "#L&#$N&##L&#/H&V+'H&L+#^%#&H&##^%#%H&##`%##^%#(H&#(^%#$H&##^%#$H&##`%##F&##H&##.##0##2##4##6##8##:##<##>#$@##B##",
  "D$##F$$#H$$#J$##L$$#H&##^%$#>K%*H&##V$##X$##Z$S$#P$##R$##T$##V$##X$##Z$##}$##^$#$H&#$^%#'H&##^%#$H&##^%3#`$H&)H&",
  "%&H&##^%##H&%$H&$#^%#$H&##^%F$#b$A#H&##^%#$H&##^%#$H&#%^%##H&#$^%##H&##^%#%H&##^%##H&##^%##H&##^%##H&##^%#$H&^%-",
  "$]$)H&##^%##H&E$&H&$+H&$%H&$'H&N$%^%[&0G&$#^%#$H&##^%#$H&##^%#%H&#%^%##P$##R$##T$#%H&##^%#$H&#$^%#'H&#%$Z$#$$#('",
  "*$'#,&#H&##^%#$H&#%$-$$@#$]$#('&$+#,7$$@$$}$#('$$'$$%$$##,&#$A$$&#$.$$}$#(''$$$$'#,7$$@#$]$#(%#$$&$+#,+#$.$$A#$",
  "`$#$/#,U$#$`$%$($$%%$##,*#D%##F%.$$@#$]$#(%#$)#$(#$##,7$$@#$b$&$+#,7$$I&#,*%$$#$]%#$%&$#$H%##,/#$#&J%#%$E&#$%&$#",
  "$L%$$$.&N%#$$M%$^%>#^%$#^%$#Z%Z$#P%##R%$#T%%#$$#$#&R%##$$#R%$$H&##,$$H&(($$&$$&$$&$$&$$&$$.$$%$,#^%I&&$$'$##($$,",
  "%$$<$$'%$3&$0#$%$$)#^%2#$b8%H&U@$$##,@$$##,@$$A$$C%$$$)$+#$%+$##,##$,#H&P$%$^'#F&Y&%$'$$,#$)#`%##H&##^%^)#H&##^%",
  "%#$]$#$$)$$#,$#$%*$)$$#*H&%#^%S$'H&#(^%#$H&##^%E%&$S$#($'$$#$(#$$#+I$#H&##^%#)H&/$$C$&$%$$##+##,#$$[$#($$$&#$$%$",
  "#$+[$*$%#$##(['%H&$#&#'^%#$H&#&^%##H&$)&'#^%)#H&&$H&I)$H&##^%#)H&##^%#$H&##N&##X%##^%##V%#G$H&(#G&##L&##^%##H&##",
  "^%S9$H&#$&#&H&#%&#$H&'#H&&$&##H&##^%##H&#$&#&^%##H&ab%%H&P'#,C&BH&M4#}%##F&##J&##`%#$a%L&$*WQ@#H&',H&C$$H&S%$H&",
  "S+#$&#,'#$<$$`'#,>4H&W$'$#%^%<-$$#+O$%$S$#(%&$%#$&#+G$#$F%($%$$%$$/#$+#$R$#$V$#H&$$H&##^%%$H&($H&$#H&M$$$+#,Q*#$",
  "%#$'#,S}6#N$D:2$3)H&#)^%#$H&PA#^%E*#^%X''H&IW$%$$$$(#$##^%##$##H&K$#H&##&##^%'#,H(#H&##^%]K$#$Y$0$##,[$#,#$$T$&$",
  "%#,##(H%%H&G$'$$#$%%$#$,a$#(/$$W$+$$#+,#(#$$E&%$%#$##+##(##$J(#$&($##(##,8$$]$#(&#$/#+;)H&&'H&P)#+&#'O&($$#$'$$$",
  "#,##(Q*&$)$$$#,##(>$$X%*$%#$$#,##$M&#$$#$%($##+##(H&%$%&$$&$##,VK$#+SX6'&^$)H&[E$&$MK6#$##&II($Y%#%&&#C&#'Y%+*^%",
  "%'H&#$^%A&H&W'%H&^`$Y$$'T$$+#$1#$9'$$1$SM$)G&$3G&%)G&$$G&$'G&HH%)^%P&(G&##'X`H;R*$", NULL};
/* lower case: first - that before, 2 * steps + (stride is 2), difference */
static const char *const ft__unicode_lower[] = {
  "E'U$C%a*O$C%S$/C%S%R$%G&(%12%E$P$%_%#T*%(%3#G0%&%+#_/%#%'%]/'#%)#a'%#W/%#Y/%#%'#]/%#a/'#I0%#E0%#%+#I0%#M0'#O0%(%",
  "/#W0%#%'#W0)#%'#W0%#%'%U0'&%+#Y0%#%+#%3#'%#%'#'%#%'#'%4%I$4%I$#'%&%+#D)%#R&%J$%S%#F+'4%S$#YE8%#%'#H-%#SE8)#%'#H/",
  "%#M'%#Q'%,%W5&%/#%5#K*1#O%''M%+#C''%a&)C$C%G$3C%[%#35:%[$#Z&)#%'#0%#%)'F+)AC(C$a$C%C(D$%W%X$%O&#A%0%Ab%%E)M%C&",
  "aY(M%CI1Q%#CI1/#CI1IP$a'C`N%C(-3UL'#%1W%b^(]%'b^(I7X'%_,#`^1'b%%S)12C$-2C$12C$12C$-2E$*2A12C%12C$12C$12C$%2'%V''",
  "#4;)N(+#4;%2'%J)~%2'%b)'#0;%b*'%^*'#4W5#}X1+#`N3%#NG31#[$_%AC$I%#%IV$U$W$WW&a%C&C)#%'#Pb7%#NQ*%#Pa7)(%/#ZD8%#}b7",
  "%#`D8%#^D8'#%)#%5%`F8'F&%Y)&%1#%_W_$P$%C'>%G-0%C$`$%Q'&%+#JCH%%,%=#%'#RUU%)&%/6%K$#JWU%%#`WU%%#XWU%%#DWU%%#JWU%'",
  "#FTU%%#VUU%%#LTU%%#C]$%2%C$#b%%#HWU%%#RFH%%&%+#PYU%%2%C$#DGV%U$#%[UN$U$C%aP%Q%S%C.I%S%C/#Q%%5Q%9~Q%C$/Q%3%Q%[Q&",
  "G&C'C0M$C%CX(a$C%C]M$a$C%C)S$Y$CI`$E%G%", NULL};
/* second parts of canonical decompositions */
static const char *const ft__unicode_seconds[] = {
  "#D;C;H=K;}G/J;[<G;F<O;E;I;E=F;L;J<_P$T<W;R;V;T;P<_L%X})K<Z`&]G/M;N;WU$_T%S<^;I<HNW&_P%XI&C_&bP$]HG%QNW&RNW&_}%",
  "Za%a`%aL&MQ&X`&H<Q<G<ZP$DQ$EQ$JLG%RPH%VU$XU$aP%ZQ%Y]%a}%Z]%YE&YI&EI&ZM&RQ&bQ&U^&W^&QD'WP$[P$}P$a}G%Z]G%]HH%SHH%",
  "`HH%SNW&TNW&UNW&", NULL};
/* gap, first part - that before, 2 * index of the second + (NFC does not compose) */
static const char *const ft__unicode_canonical[] = {
  "b(E''##%##9##~##+##]$$'C$#''##%##9##+#+'##%##9##+$-~#%'##%##9##~##+%/'##%##9##+#+%%3'##%##9##~##+##]$$'C$#''##%#",
  "#9##+#+'##%##9##+$-~#%'##%##9##~##+%/'##%##9##+#+%$#+#R&3#C%3#b$;#C%;#b$W$#C%W$#^$%#C%%#b$9#C%9#b$/#C%/#b$7#C%7#",
  "`$7#C%7%`$3#C%3#b$;#C%;#b$/#C%/#b$W$#C%W$#b$7#C%7#^$9#C%9#b$;#C%;#b$/#C%/#b$C$#C%C$#`$9#C%9%`$~#C%~#b$3#C%3#b$;#",
  "C%;#b$W$#C%W$#b$/&%9#C%9#`$C$#C%C$$`$%#C%%#b$C$#C%C$#b$7#C%7'^$%#C%%#b$C$#C%C$#b$7#C%7&`$3#C%3#b$;#C%;#b$_$#C%_$",
  "%}$%#C%%#b$C$#C%C$#b$7#C%7#`$%#C%%#b$9#C%9#b$C$#C%C$#b$7#C%7#`$C$#C%C$#b$7#C%7%`$~#C%~#b$3#C%3#b$;#C%;#b$]$#C%]$",
  "#b$_$#C%_$#b$W$#C%W$#^$9#C%9#^$9#C%9#b$+#%%#C%%#b$/#C%/#b$7#C%7D$X%G%#C%G%0V$G%#C%G%~J&7#C%7#R$7#C%7#V$7#C%7#V$7",
  "#C%7#Q)3#C%3#b$%#C%%#b$7#C%7#b$'#C%'$R&3#C%3#G73#%3#D93#C%3%`,7#C%7#Z$7#C%7#Z$W$#C%W$#Y:3#%3#J&7#Y07#RE$7&H%%#C%",
  "%%T$'#C%'#Q(%#C%%#`$%#C%%#>%#C%%#P.K$#C%K$#b$O$#C%O$#Z$K$#C%K$#b$O$#C%O$#Z$K$#C%K$#b$O$#C%O$#V$K$#C%K$#b$O$#C%O$",
  "#}$K$#C%K$#b$O$#C%O$#}$K$#C%K$#b$O$#C%O$#F%I%#C%I%#`$I%#C%I%%Z%7#C%7)P%/#C%/#Z$C$#C%C$#E*3#C%3#D%3#C%3#N-/#C%/#",
  "a>3#%3#N@3#C%3O+QK$##%#$G$##8&R$`'#,^J$#)])%#UQ$%#VP$##_P$%#'%#'%$/%$/%#+%#E%%<D&+#;+#;%#+%#'%#'%#G$%<F$+#;+#.%#",
  "/%#+%'5%##+N$I''##+$&%&<+'K$%#&'#9;-8;BC%;9('##+$&%&I%+'Z$%#&'#9;:E&K$#%K$L%`(;#C%;0N%;#C%;#b$+#C%+%X$;#C%;%I-+#",
  "%+#H/+#C%+#`$+#C%+%`$3#C%3#b$+#C%+#V$+#C%+%W-+#%+#Z.+#C%+#V%3#C%3#b$+#C%+#b$_$#C%_$#Z$+#C%+%Z$+#C%+K,[@W&##a$#E%",
  "a$#D%Y&#I%a$}'Y+a$$J$a$3E$a$X5OH$S$*3S$%)S$F$^$T$#%T$#%T$#-T$#-T$#%T$#5T$#+T$N&S,[&##]&2N%N%#%N%$=N%V%I+D%%/D%E$",
  "F%D%#%D%#-D%%AD%L*[4_&%#a&##C'2N%}%#%}%Y$C*]%X$K&_%#%_%#$]%^&C+E'Z&U*O%)1O%##G'$#I'#+O%a&[*a%#%a%#$K'P'I,C&$#M'#",
  ")C&#(O'G.U9Z$,7Z$'-Z$'-Z$'-Z$/X$F&,E&R'$#T'#E'R%$%R%+F'R%4E%Z$,7Z$'-Z$'-Z$'-Z$/X$F&O&M,U'bY%CQ(U$$'U$$'U$$'U$$'",
  "U$&+U$K$U%U$$'U$%'U$#%U$$)U$_8DS0G&#C%G&#`$/#C%/#b$5#C%5#b$G$#C%G$#M)%#C%%#H-/#C%/#b$5#C%5#b$G$#C%G$#b$C$#C%C$#",
  "b$Q$#C%Q$#_-'#%'#$%#%%#^/Q$#C%Q$#b$E%#C%E%#I~;#%;#HA/#C%/#`$3#C%3#`$/#C%/#b$5#C%5#b$+#C%+#b$C$#C%C$#b$I&#C%I&#`$",
  "E%#C%E%#O)%#C%%#J-%#C%%#b$5#C%5#b$G$#C%G$#`$5#C%5#W_13#%3#Xa1G$#C%G$#b$Q$#C%Q$#`$%#C%%#b$/#C%/#b$5#C%5#`$/#C%/#",
  "b$5#C%5#b$G$#C%G$#b$Q$#C%Q$#Q)%#C%%#b$+#C%+#Q('#%'#$%#%%#}2%#C%%#b$/#C%/#^$/#C%/#b$5#C%5#Sa13#%3#TC2G$#C%G$#`$/#",
  "C%/#b$5#C%5#Q1/#%/#-/#%/#ES1/#%/#`C2/#C%/#b$5#C%5#b$G$#C%G$#b$Q$#C%Q$#`$K&#C%K&#b$E%#C%E%#b$Q$#C%Q$#I2%#%%#%+#%+",
  "#L4~#C%~#b$5#C%5#`$'#C%'#b$%#C%%#b$+#C%+#b$/#C%/#b$5#C%5#`$/#C%/#b$+#C%+#`$/#C%/#`$9#C%9#b$5#C%5#b$G$#C%G$#F$G$#",
  ";+#)]$#']$$O3/'^65#C%5#b$A#C%A#E)%#C%%#b$'#C%'#b$A#C%A#b$~#C%~#_^19#%9#`}1%#%%#$'#%'#$A#%A#$~#%~#]}1;#%;#ZH25#C%",
  "5#b$A#C%A#b$~#C%~#M)%#C%%#b$'#C%'#b$A#C%A#b$~#C%~#__19#%9#bI2A#C%A#b$5#C%5#V$5#C%5#b$A#C%A#M)%#C%%#b$'#C%'#b$A#",
  "C%A#b$~#C%~#S`19#%9#}U1%#%%#$'#%'#$A#%A#$~#%~#$5#%5#Z75#C%5#b$A#C%A#W6%#%%#$'#%'#$A#%A#$~#%~#$5#%5#P8'#C%'#b$5#",
  "C%5#b$A#C%A#b$~#C%~)SV$M$##I$#aW0'#%'#$%#%%#$=#%=#bY0M$##I$#QZ0'#%'#$%#%%#$=#%=#JX0M$##I$#YX0'#%'#$%#%%%ZZ0M$##",
  "I$#I[0'#%'#$%#%%%FY0M$##I$#UY0'#%'#$%#%%#$=#%=#V[0M$##I$#E}0'#%'#$%#%%#$=#%=#bY0M$##I$#QZ0'#%'#$%#%%#$=#%=#R}0M$",
  "##I$#a}0'#%'#$%#%%#$=#%=#VZ0M$##I$#E[0'#%'#$%#%%%F]0M$##I$#U]0'#%'#$%#%%%J[0M$##I$#Y[0'#%'#$%#%%#$=#%=$Z]0I$$K^0",
  "'$#%$#=#b[0M$##I$#Q}0'#%'#$%#%%#$=#%=#R^0M$##I$#a^0'#%'#$%#%%#$=#%=#R^0'##&#+'##&#''##&#''##&#/'##&#/'##&#+'##&%",
  "QV0)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#E$)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#E&)#%)#%)#%)#",
  "%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#%)#^^0;##3#a^0)#`^0)#,)$-=#MC1)#LE1;##3##'##&##)$S%#%DT$=#[O2)#}^0)#4)$5=#aC1)#",
  "DF1'##&#''##&##)#SE1'##%##=#NC1;##3#E$'##&%D$=#E$=#D&;##3##'##&$MI1'##%##=#TF1;##3#/'##&#6M$##I$#+=#/=#N%;##3##'",
  "##&#*I$#TR$'##&#R'#%[T2)#H^0)#-)$,=#]E1)#PH1'##&#7'##&##)#LR$#%_W2##%#G,VH1#&^X$##6^$Q&aW31#'15'1A[&1#+1#&1W$E&1",
  "'-1%)1:S$1$'1=Q$1%11%'1$)19XC41$KE41-J$1#DD41#'1#OE41#%1%=1#%1%)1#%1))1#%1%11#%1%)1#%1E$Y$1#/1#%1#'1S$`%1#%1#K$1",
  "#%1)C%1#%1#%1#%1^$IX)##%#T`$ZU%2RN$_Y%-$'-$'-$'-$'-$'-$'-$'-$'-$'-$'-$'-%)-$'-$'-)1-##[$$)-##[$$)-##[$$)-##[$$)-",
  "##[$9L&-,Q(-0~-$'-$'-$'-$'-$'-$'-$'-$'-$'-$'-$'-%)-$'-$'-)1-##[$$)-##[$$)-##[$$)-##[$$)-##[$9L&-%U'-#%-#%-#%-&9-",
  "DCU$YWP$##JX5##O`6##FC$##Pb1##`L3##I^%##Q^H$#####XGF$##CK~##VGA##E_$##_M'##IJ-##[T'##WN&##Y:##_6##Q}&##}K6##UT$#",
  "#_^$##MS$##aH+##]U)##QK'##`YH$##IR%##a[.##QT&##GD-##Eb.##^OC$##YL,##Ga-##Q}$##XL6##aS2##QG&##LX7##]G'##IH&##G}%#",
  "#G`1##RWC$##EF$##Q5##Oa+##aC&##]V&##QP%##WT'##MC&##O(##I}&##IW'##]F%##YK$##^Y5##I2##EE%##UE&##YV*##YZ(##T],##Pb;",
  "##ME&##[X1##_D%##ZD*##SI&##Sb,##MF(##`DB##W[$##E^)##Q_$##M6##CE*##S3##KD/##TZD$##U^9##`M:##B##CH7##G]$##IF&##KK,",
  "##LR(##DN7##IV&##[R3##LOA##_])##YE%##MZ,##UA##TH4##Ka5##ZV7##Wa*##Z}+##aN2##JX&##W].##`X7##YL%##IM2##SW)##EI&##",
  "bQ2##Ob4##RU4##V['##Qa2##LW2##M_+##PN6##YN$##C)##SN.##OI-##S[%##II'##]R&##VPB##]7##EV%##UZ%##UP&##UF(##[U'##IK1#",
  "#]N%##]E%##Q&##HFI$##YE-##EN%##Ya4##^Q;##[T$##C*##WL$##UK(##OE$##CW$##EW%##WE%##YJ$##QN*##RF(##MV(##QU$##HVC$##",
  "[+##WD$##YC1##Wb.##SA##Da8##[5##O[$##IF'##CL+##TO'##DL5##MD'##_Q%##I@##GI$##O},##Q.##EV(##[-##_a+##GO%##G(##C0##",
  "}KG$##IE8##OC/##KS%##P`=##XH,##KH$##KT(##E(##WX'##UI%##[_&##KJ%##WN*##C[(##ET*##LS~##O]:##L]D$##GR-##S*##_W%##Y8",
  "##]Y%##C8##GT$##MM%##_W0##DRF$##EO+##WG=##}GF$##_Q)##EP+##CW3##`}:##U>##IP&##CZ(##aR4##}HE$##OA##OH'##_]'##Y6##",
  "W8##]F%##EU&##[@##Q}'##OX'##G$##YQ'##OT%##H]D$##YZ0##}L0##I^1##SO$##GY+##UM+##K^%##SG$##RS>##KF&##]D-##}T&##M(##",
  "G:##F`'##PE$##aN0##RLA##OJ=##ZR;##H&##aL)##]E%##IC0##DX3##U}+##VI&##QK7##`Q&##EC*##FO)##RN8##H})##CK%#%WL$#$WD*#",
  "%NL-##[W3##C]$##GJ$##G%##1##W%##Q_1##RL0##aR$#$MH&#$OQ%#%CW%##M/#&Gb&##=##[%##[K%##NP)##U`%##TSF$##U6##O)##[:##",
  "Y$##])##[G$##U)##G)##S@##S)##[^$##7##OE%##K0##O%##K)##]X$##I,##a-##KB##GR%##I-##S3##[G$##].##QB##aI%##]-##9##$##",
  "3##/##1##C&##%##G.##E'##a6##KF$##M$##S&##E6##I,##SA##[+#####_@##UN%##O+##Y9##S&##W<##M&##_M$##G+##YM&##[4##[&##",
  "N_>##UJT*##NPC*#%Fb<##a[$##}'##RA##M~##Y&##Q7##I&##IM$##R'##K'##U'##SJ$##U(##E,##C$##_3##O/##W]$##1##C,##K'##Y5#",
  "#O*##N'##O+##^%##G,##G'##C<##S(##O&##K3##_4##I-##+##Y&##IE%##E'##Q;##W<##B##Q(##[2##C8##UF&##FZ%##W*##Y*##Q7##M,",
  "##M&##G1##'##Y-##E$##U$##O(##6##[;##MA##a3##Y.##C1##U,##W7##Q/##]W$##],##W[$##S~##M'##C$##U5##U&##}%##O&##(##D$#",
  "#['##E(##_:##CF$##W6##Q5##]0##OC%##Q)##I*##M+##K%##;##C&##QP$##WK%##_MG)##.##E}(##RF_*##YJ%##E%##CDL+##QK(##IC4#",
  "#b[R*##Y'#F%L^O%X'$U$N&-4P&##R&#CY]&P&##R&#TZ]&N&##Z'##F$#%F$#%F$#%F$#%F$#%F$#%F$$'F$#%F$#%F$#%F$#%F$$'F$$'F$#%",
  "F$$'F$#%F$$'F$#%F$#%F$#%F$#%F$#L$}'#*T%#7T%#5T%NM(MNH'U%$'U%17U%E'[+S&#%S&^3MD$]'##_'Q.G:a'##C($#E(^*a2U&#%U&",
  "E`Q$_}`%L%#%L%#1X%##Z%##H(##J(##L(Y%W(L%#%L%#%X%#%X%#$Z%#%Z%bTL%`ZD)##,##5##EQ})##F_[)##_'##=##Q'##S*##a$##_'##",
  "R$##DF1##[}K*##}Q])##1##C$##I$##M]})##HIK*##_M1##O%##_^})##J^})##=##RP$##CQ$##5##WEC,##Vab+##~##JU1##[X1##9##[%#",
  "#-##FY1##G^1##'##Y$##O$##9##%##E$##G&##3##5##U$##7##'########]M^)##Z^O)##NM1##M$##K[^)##RZ^)##/##M$##S,##N)##C$#",
  "#C%##W&##K(##W$##I'##C$##E%#####M$##G$##3##A##K8##b3##E4##N/##I%##}I%##QQ&##b4##O%##U$##F+##Q-##$##Y*##SFa)##",
  "Fb`)##-##A##K$##3##C'##OWa)##G'##^Ra)##a%##;##`'##_+##RZ4##~##[C5##O&#####WKb)##LCb)##M$##A##;##MUb)##TTb)##1##",
  "]W$##DV$##DM5##aP5##~##G(##H&##QXC*##DMC*##IMC*##RJC*##(##E$##M)##%##H^5##__5##Y%##M$##[%##PC6##EUW*##PSW*##KF6#",
  "#)##)##K$##SOE,##JLE,##IFE*#####bUS)##`P4#####XH6##Eb_*##GU:##RJD+##5##RK6##QN6##I&##7##G%##S+##PW6##^$##SZ6##",
  "CGF*##}CF*##E+##+##'##&##_%##K$##K%##>##9##a%##K$##+##W$##9##G'##K(##I%##[*##[^F*##`_F*##D'##[)##Y$##E)##]CG*##",
  "`_F*##}(##Z$##XZ7##YF8##M$##a$##N%##XC8##IQ8##]$##_LH*##PEH*##M4##`-##bU8##SZ8##T[8##J%##_M.##)##YY-##J)##ED0##",
  "JPA##_V4##+##/##]&##8##CJI*##VJ_*##EN9##L*##]/##I&##SaH*##``H*##`)##M2##PZ9##M]9##E)##Q'##_.##YbH*##R_H*##HO:##",
  "US:##O[I*##HXI*##NS:##KU:##]%##Y$##%##GPJ*##F[1##aa1##ZMJ*##_IK*##}bJ*##~##N)##a-##S%##U&##N&##S%##A##=##U}J*##",
  "VaJ*##Y2##a&##XV;##S};##*##WCK*##RPK*##M:##CbJ*##C&##R_J*##I*##X$##(##LK<##KN<##I&##.##O&##SJM)##b`L)##_TK*##",
  "POK*##aCL*##H[K*##=##Y$##S^L*##R[L*##M$##CMM*##a0##VLM*##E$##`P=##UR=##}Q=#####a[=##M$##M$##K$##M'##`]=##UC>##",
  "GTN*##RRN*##KXN*##FUN*##aEY)##`[X)##E}O*##Q$##[+##RGK+##;##[Q>##abO*##$##Q%##W$##LDP*##%#####Y%##DT>##GX>##LW>##",
  "C(##Q[L+##`_P*##_&##C'##Ta>##IWM+##bOQ*##KWQ*##Y%##NVQ*##[(##ZN~##ET~##7##-##]UR*##Y5#####T^R*##ZQ~##U]O+##LaR*#",
  "#)##F]~##UHP+##^]R*##FF@##SG@##,##]$##OKT*##HET*##FI@##OO@##Y&##I'##DT@##KRR+##a$##^QR+##C[R+##`XT*##K_T*##T]T*#",
  "#M)##9##MPU*##U'##HOU*##SWU*##RVU*##aQ})##V[Z*##]PA##E(##RRA##IVA##TK6##GRI+##~##FE=##5##X}[)##)##W})##HVH$##OEB",
  "##.##G$##Va:##_b:##'##7##U%##OHW*##PHW*##S&##O'##W'##V+##W,##W%##C*##J3##Q*##'##C$##WHW*##M6##N,##V]V+##O_B##'##",
  "I%##KNZ*##NIZ*##S_W*##`_W+##+##CHX+##E5##PYX+##MQC$##;##9##'##C'##D%##O+##Z%##Q,##D(##I'##Y$##`]C$##WCD$##C%##",
  "RCD$##QID$##)##KCZ*##b[Y*##1##TMD$##MOD$##`FM$##IbD,##S.##RM}+##5##U`D$##]'##],##Y/##IH[*##}bZ*##O$##W(##[(##",
  "S^[*##XU^$##TF`(##@##K&##_Q`(##VC`(##K)##WL^*##Y$##TX]*##](##C%##]D^*##HD^*##]4##a,##%##Z(##]:##[$##Ma^*##`I^*##",
  "NbH$##GEI$##C_^*##D}D,##]PI$##DT~##EZ~##GE`*##M0##Z]F,##3##WYI$##WEa*##RXG,##KaG,##XKa*#####_$##][a*##JPa*##`]I$",
  "##ObI$##_*##Y$##[&##bEJ$##GYJ,##^DC+##_5##].##`EK$##a$##WJK$##QYD+##N`L,##]CM,##U3##I+##N`D+##LYK$##I]K$##-##1##",
  "7##1##M%##MOF+#", NULL};
/* NFKD where it is not NFD: 32 * gap + length - 1, each part - that before */
static const char *const ft__unicode_compatible[] = {
  "Cb'C%D*#SQ$C$PM$D'D'KQ$C%FP$#%$H$EQ$#Y.D%Z}$QS$#NR$#_&E$^&ID3bC3%(ID3FD3%%ED3bC3DV&M$%$a$%D.^$Y)$X'Y'D+MC$^G$CX$",
  "-EG%`%O$GN$%RO$O&GL$%RM$O$GL$$bN$&$'_$$'&$Z$*$+[$$+*DG$N%O$$N$O&$N$O$C_(F$#_B#ZB#3#QC$#'#/#VC$#'DBT(OQ$$NQ$QQ$$",
  "PQ$WQ$$VQ$SS$$RS$IQ$$HQ$YQ$C%R-#PB#1#-#]D$DX'LJ$MU$D,LU$EQ$%DQ$SQ$0CM%E.#/#H$$#J-$K-},#_.#.C<.#1#%C$V%#]$C&F$DP/",
  "G~]$DP*M-]'$Z%[%$I(H($V%W%D]`$U`&X$Db&Y,X$DK$0F$$G$6CQ$W)EM&Q-D'AE$I&F'ACE/[8CRD&XL+#M+#J+C$'#%#U7#P7#%#%#%#%#%#",
  "%#%C$%#I@#F@#'#'#%#'#7#aA#%#EN0#bL1#'#%#KB#'#%#LBC$+#'#_0#Z0#MA#GO0#%#PM1#+#%#SM1#^M0#TB#aM1#HZ/#%#%#G$#%#^X$#5#",
  ")#%#[V$#%#~#-#%C0O*CE$XA#`A#GB#L9#[9#NB#UB#'#+#)#%#%#ET0#^P0#b%#ST0#NQ0#^%#$#'#%#%#%#)#7#%#R0#_0#%#GL0#DL0#%#FD$",
  "#OD$#%#%#O5D])PX$]H$$XG$KL$DD,PQ$IR$D$HR$IR$$HR$GU$%FU$SQ$W&E.FU$IR$H$%bP$IR$F$%DQ$IR$a%E0FU$KR$J$%bP$KR$H$%DQ$",
  "KR$_%E0FU$SQ$2%bP$SQ$0D1DQ$EQ$$DQ$KR$C$JR$####################C)Cb2D(ba2IT$C/LS$$##%###C+>D&GD3#%###D$)#%###D'",
  "JD3#D$$MQ$D+NO$#$#^$$#_$F0Ib2###C*FD3C3C$#U&C%L&#%#%#%#%#%#>#Qa3#L`3#L$#%#M'#^&#%#%#%#%#%#%#%#%#%#>#Qa3#L`3#L$#%",
  "C$S&#+#7#5#EA#DB#)#%#%#%#'#)#%D.F%E%EZ%F$F&K&%&F&K'#b%$])})E$C%J&C'%:J&O'#Y4D$b0V)#E%#`$#####C%#a.#^0###)#C%C$^$",
  "$#E%C%`$#%#%####D%%.%1@1$30C$=C&#C&R$#%C$G%#b$#%C$1#G%#EY%#%#%#%#VY%E$H%,Q$#SY$#<#b$#=#EJ2C'}_3#C%#%#+#%E)T&ID3",
  "}C3%.ID3XC3&2ID3HD3$%%ID3DD3%$GD3DD3%&ID3`C3%(GD3`C3%&ED3`C3%$CD3`C3%*ID3^C3%$aC3^C3%,ID3ZC3%,ED3ZC3%(aC3ZC3%$",
  "]C3ZC3$0ID3#Xb2$##%###$#=##$#<%=<#&=<##$#A##$#@%A@##)#4#%#5#[$$##%###$#=##$#<%=<#&=<##$#A##$#@%A@##)#4#%#5E,}&",
  "KD3DD3DE(Sb3#%###D$)#%###CR4}b3#%#%#%#%#%#%#%#%$2$$%#$#%$$'$&)$(+$*-$,/$.1$03$0&%252%$74%$96%$;8%$=:%$~<%$A>%$C$",
  "@%$E$B&$5$0&$5#2&$5%4&$5'6&$5)8&$5+:&$5-<&$5/>&$51@&$53B&$7&0$3($+*$-,$/.$10$32$54$76$98%)$&%)#(%)%*%)',%)).%)+0",
  "%)-2%)/4%)16%)38%+&&%.U&R&%$W&T&%$Y&V&%$[&X&%$]&Z&%$_&}&%$a&^&%$C'`&%$E'b&%$G'D'%$I'F'%$K'H'%$M'J'%$O'L'%$Q'N'%$",
  "S'P'%$U'R'%$W'T'%$Y'V'%$['X'%$]'Z'%$_'}'%$a'^'%$C(`'%$E(b'%$G(D(#S$#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#",
  "%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#V'FDL$Yb3###EJ&Db3#)$##%###CH3]%#J$CT*YS9CR,[IBCV%G`<",
  "C/`}K$#S%#~#5#W$#[%#1#K$#W$#MK$#O%#/#Q$#K$#M$#M&#M$#9#Y,#_(#[$#-#_$#5#Y$#=#U$#K&#G$#Y$#KR$#S'#[~#Q$#3#9#G$#['#]@",
  "#C&#S*#Q$#I$#O$#O&#)#W9#7#;#=#K*#3#-#M*#7#=#3#]&#E$#G$#C(#MG$#_%#M$#KQ$#-#I(#C$#=#M$#Q%#-#Y3#S$#C%#Sb$#G'#Q$#W&#",
  "S$#5#1#K&#-#C%#QF%#a>#;#-#+#3#G$#'#E(#S0#-#I8#7#G&#1#5#3#Y(#1#K1#1#E&#E$#a%#]1#1#E$#Q7#_*#/#O.#Q(#_%#W:#M+#_F$#",
  "Y$#U&#I&#K'#9#/#E%#['#7#W8#1#5#5#C$#A#+#a'#+#/#M`$#_$#M@#;#Q$#Y4#=#Q'#_%#QF$#A#A#I%#M%#Q/#;#I'#S2#a$#E0#M$#-#[0#",
  "S.#]*#/#-#O]$#5#[,#W,#)#a%#U)#=#+#1#G)#G%#/#~#Q-#I&#+#Q.#)#I$#[2#C&#1#O'#7#)#7#_$#Y;#C<#7#O%#O$#3#7#+#S%#+#E$#-#",
  "=#Y$#A#3#Y&#A#+CM$bZR%CX$Gb:C$aU4#)#%DC&LUL$UJ;$TJ;WJ;D%F$'Db%U%M$CT$R_2#%#U-#R-#W-#%#V-#%#%#Y-#%#%#%#%#%#X,#J$#",
  "%#%#U$#R$#%#%#%#%#%#%#%#%#%#a'#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#L$#Z'#%#G.#%#+#'#-#+#'#}.#E/#'#F/#%#'#'#%",
  "#+#'#'#%#%#%#%#)#+#7#1#-#M-#%#X,#%#%#Y%#%#)#5#%#'#7#)C&aHA#[+#H+#GP'#DP'#I%#F%#QU6#TP6#b&#R$#SU(#TB#NJ'EC&FLJ$",
  "SP+PP+%$WP+TP+%$YP+VP+%$]P+ZP+%$_P+}P+%$aP+^P+%$EQ+bP+%$IQ+FQ+%$KQ+HQ+%$OQ+LQ+%$QQ+NQ+%$SQ+PQ+%$UQ+RQ+%$WQ+TQ+&$",
  "SP+E)RV+&$WP+a(RV+&$YP+_(RV+&$]P+[(RV+&$_P+Y(RV+&$aP+W(RV+&$EQ+S(RV+&$IQ+O(RV+&$KQ+M(RV+&$OQ+I(RV+&$QQ+G(RV+&$",
  "SQ+E(RV+&$UQ+C(RV+&$WQ+a'RV+&$KQ+G)LW+)$IQ+_(}(U(O'F[+($IQ+_(P([(LW+E$$S`I$P`I$%$KIJ$HIJ$%$EaI$b`I$%$INN$FNN$%$",
  "[IJ$XIJ$%$MWK$JWK$%$Y`I$V`I$%$IWK$FWK$%$MFJ$JFJ$%$UTL$RTL$%$CQV$`PV$%$IG[$FG[$%$[CY$XCY$%$CSV$`RV$%$U]K%R]K%%$",
  "QRN$NRN$%$]^U$Z^U$%$GCW$DCW$%$EQV$bPV$%$OT_$LT_$%$MaL$JaL$%$EH}$bG}$%$UJI%RJI%%$MV_$JV_$%$[KL$XKL$%$YNJ$VNJ$%$",
  "KHM$HHM$%$_VP$}VP$%$YN^$VN^$%$UPJ$RPJ$%$aLI%^LI%%$[UL$XUL$%$MW_$JW_$%$UQJ$RQJ$%$G_C%D_C%%$Y_C%V_C%#OUM$#]U'#YS&#",
  "SC.E+`V`$+@$H$$$%#$#%$$'$&)$(+$*-$,/$.1$.($)&$'$$%#$#%$$'#YO+#'#%#'#%#%#'#'#%#'#%#%#%#%$F$E)$`(a($^(_($Z([($X(Y(",
  "$V(W($R(S($N(O($L(M($H(I($F(G($D(E($b'C($`'a''H(I(O(P.U)&}(G)H)U)$T)I)C$GLA#[+#H+#GP'#PG'#UP$#VY$#SY$#^S$#KQ%#",
  "Q_,#IY'#PF%#ZS%#UM8#FN@#OO*#MG$#D5#MF,#DV5#[I2#SE0#JW,#TM6#KU6#DM%#J_0#OR>#`VB#OG$#SZ/#]T8#JRG$#SK$#W_/#TX1#I%#",
  "F%#Y`*#Hb'#R.#[H'#D&#]Z0#Fa6#O_A#HZ~#S_%$TQO$)$(+$*-$,/$,*$+($)&$'$$%#$#%$$'$&)$(+$*-$*,$%QPV$$NPV$OPV$$LPV$MPV$",
  "$JPV$KPV$$HPV$IPV$$FPV$GPV$$DPV$EPV$$bOV$CPV$$`OV$aOV$%PPV$$SPV$%PPV$#QPV$%PPV$%OPV$$bNV$a$%&=8$&@%63B#_H;#'#'#'",
  "#'#%#'#'#'#'#'#'#'#'#'#'#'#)#'#'#'#%#%#%#%#%#)#)#)#)#)#%#%#%#%#'#'#'#%#%#%#%#%#'#%#%#%G$b']%L&G)J&&N%U'N$J&'%E(",
  "X$^&3%#W(D$'P'Q%S%J'N$%9a'F&%X$)W'(X'E$6]'J&`%&AK(D(E(%F(U'V&%@G(Z$%L&0O'&`&_&N%-&}$G'(G$&D(F$K(/&R'F$W(L$&D&J$",
  "G$F$&K$J$G&E&&`'S&-G$(`'J$G(Z%N%I)$`'C'(b&C'^&N$C(4(H&C':Y$J&I%'^&C''Z%-&T$N$C(4(D&N$C(4R$Y%(J'[&b%F%9U'&^&_&A`%",
  "%Z$Y'H'%.S&D%&P$U'D%D'&Y$D$9[&'N&_&F&Y&Z$'T%I&5J'N$%G%S&F&%.S&X%&4N%I)H'%=}%_$%E$`%G($H%Y%$T%+%#8-%1X%C%(9L&G)D'",
  "S&X%&1L&G)R&'9N&I)B$(T$R&3Q$AI%&T$R&M$[&%T$R&U$%a$T&G((N$J&S'N%-`%&[&F&U(J&(=Z&W%:BK'%N$K$7'X$T%C$]&D$%H$^&I%&Y$",
  "^&E&1%/I$P%&K$^&U(V&'a$^&G)L'^$&a&`&I)}&'[$D'7a'X%&I$F'G(H%$I$S$'R$D'U(X%`%%G'E%D$%BE%4&L$V&9_&%@V&Q'%<X$;%A=Z&'",
  "a%M$Z&C&;&J$b%_&/$J$9(89X$N&I)D$%6N&F$'S'N&F$a%Y%&F$Y$J&I%&0S$J&`%%Y'S$D$%,J'E(&4P%-I%$$$&'T$R&G)'D$E$P%Z&G($%:(",
  ";1X%P$R$W(%*Z%-$RL;UK[$$RK[$SK[$$PK[$QK[$$NK[$OK[$$LK[$MK[$$JK[$KK[$$HK[$IK[$$FK[$GK[$$DK[$EK[$$bJ[$CK[$%RK[$$",
  "UK[$%RK[$#SK[$%RK[$%QK[$%RK[$'OK[$%RK[$)MK[$%RK[$+KK[$%RK[$-IK[$%RK[$/GK[$%RK[$1EK[$%RK[$3CK[$%PK[$&UK[$%PK[$$",
  "SK[$%PK[$#QK[$%PK[$%OK[$%PK[$'MK[$%DH[$R$E$$)($b$K$%=$E$$(T$$W$<$%5%45X&%G&5V&$O$;$_DR$]}$$]D%D]+$YL%[F,$LX%]M&&",
  "DL%XT'Lb*KE8$^O_$`%$]%}%$YZ$XZ$$[%Z%$W%V%$74$98$-,%E%&9&$2&9$+V%$S%R%$OZ$NZ$$OZ$LX$$/.$+*$`$G&%@H%G&%}%,G&%H&%G&",
  "%N%:G&$GW$bW$$%$$23$$%$.1$%$$aW$`W$$##$67$&'%##X&%E&7X&$Y&X&%U&'X&%Y&#V&%C&7V&$W&V&%S&'V&%W&S]3F]3&.S]3F]3D'$_$",
  "E$%7X$E$%J$)E$%V$5E$%E$D$)'~D$)E^3F]3($D$)E^3F]3D'$_&)$,-$UW$TW$$./$(V$$S$R$$OY$NY$$Q$P$$M$L$$45$W$T$$Q$P$$MY$",
  "LY$$O$N$$K$J$$67$K$_V$$ZX$[X$&RW$H&a&`&$K$a%$>#$#%&D%G`3V]3*%J%[%D'$O&F%$-G&$D$0$T$3$U$-$H%#$#'$_$5$2%$$'%&)2$-;",
  "$88%9*)%%'($Z$2&S%F'a&`&%G%#($)'$E%$$`$I%$`$9%:a^3R]3%Z%K`3R]3$Z&K^U$$H^U$I^U$$F^U$G^U$$D^U$E^U$$b]U$C^U$$`]U$",
  "a]U$$^]U$_]U$$}]U$]]U$$Z]U$[]U$%J^U$$M^U$%J^U$#K^U$%J^U$%I^U$%J^U$'G^U$%J^U$)E^U$%J^U$+C^U$%J^U$-a]U$%J^U$/_]U$%",
  "J^U$1]]U$%J^U$3[]U$%H^U$&M^U$%H^U$$K^U$%H^U$#I^U$%H^U$%G^U$%H^U$'E^U$%H^U$)C^U$%H^U$+a]U$%H^U$-_]U$%H^U$/]]U$%",
  "H^U$1[]U$%F^U$(M^U$%F^U$&K^U$%^ZU$.9C_W~_`$#'CU)IUT%CJ'TGV%#]%CE>K`U%#CD%#ZOW%#QQW%DC`6ZQX%#$#)$(/%.#)%(#/$1%$$%",
  "D/CS%'$&@$A4$I$2$&0C+M*#F$#)#%#1#%#%#9#'#`^%DH$M]%;#M,###7#######)#######'#######.#######-#######.#######Y%#####",
  "##'#######F%#######$#######)#######%#######/###$###'###.###C$###0###S$#######/#######+#######&#######5###%######",
  "$W$D+$E+D+#])#######(#######K$##$#^*$_*^*CD$U(#######W$###$###'##$$H(#Q(###.###+###1#######P+##%%7}%%I%7}%%I%7E+",
  "%X+7E+%X+7:%'7:%'7I*%}*7I*%}*7G*%Z*7G*%Z*7K*%^*7K*%^*7[*%N+7[*%N+7[*%N+78%%78%%78#I+######%F+7R%%_$7P%%]$7@%-78%",
  "%76$F%+$*-$,/$.]$$}$E%$D%G%$b$'$&)$(+$*Y$$X$a$$`$C%$`$%$$W$$V$_$$^$a$$^$%$$U$$R$$$%S$$P$&$'$$%Q$$F$0$1.$/,$-G$$B",
  "2$3C$$@6$74$52$3A$>6$7~$<=$:<$=;$8>$~9$*L$$M$J$$K$H$$I$+$*3$25$2L$$M$)$(1$03$0Z$$[$P$$Q$N$$O$L$$M$%$$'$&/$.1$.R$",
  "$S$P$$Q$N$$O$%$$-$,/$,T$$U$R$$S$P$$Q$#$#+$*-$*V$$W$T$$U$R$$S$$$%)$(+$(X$$Y$&$''$&)$#^$$_$}$$]$Z$$[$,$-$$%#$V$C'$",
  "`&a&$P%Q%%bG&[E&-%DF&]E&+%DF&_E&)%DF&aE&'%DF&CF&%%DF&EF&a$%N%7H%%U$7F%%S$7@%-7>%+78%%76$F%5$47$6]$$}$_$$^$E%$D%",
  "G%$b$1$03$2Y$$X$[$$Z$a$$`$C%$`$/$.1$0W$$V$Y$$X$_$$^$a$$43$25$21$03$0Z$$[$%$$'$&/$.1$.%$$-$,/$,^$$_$#$%L$$M$J$$K$",
  "$$%#$#)$(+$$Q%$N%T$$U$R$$S$,$-*$+$$%#%#7R%%_$7P%%]$7N%%[$7@%-7<$`$+$*-$,/$.]$$}$a$$}$'$&)$(+$*Y$$X$]$$Z$W$$T$%$$",
  "U$$R$$$%S$$P$&$'Q$$F$0$1.$/,$-G$$B2$30$1C$$@6$74$52$3A$>6$9=$:<$=;$8>$~9$*L$$M$J$$K$H$$I$+$(L$$M$)$&P$$Q$N$$O$L$",
  "$M$%$$'$$R$$S$P$$Q$N$$O$%$$)$&T$$U$R$$S$P$$Q$#$%V$$W$T$$U$R$$S$$$%%$#X$$Y$&$'U%$N%^$$_$}$$]$Z$$[$,$-(%)7@%-7<$`$",
  "]$$}$a$$}$Y$$X$]$$Z$W$$V$[$$J$G$$F$K$$H$E$$D$I$$*%$$'$$%$%$$%%$),$-(%0~)%D$A'%D$C$%$V$G$$F$I$$D$C$$BE$$BA$@C$$P$",
  "O$$N$Q$$N$M$$L$O$$}$[$$Z$]$$^$]$$}$_$$Z$Y$$X$[$$L$K$$J$M$$J$I$$H$K$$N$2$30$1.$/E$$D$($'&$+*$-,$/G$$F$I$$D$C$$BE$",
  "$BA$@C$$P$O$$N$Q$$N$M$$L$O$$}$[$$Z$]$$^$]$$}$_$$Z$Y$$X$[$$L$K$$J$M$$J$I$$H$K$$N$2$30$1.$/E$$D$($'&$+*$-,$)2$30$1",
  ".$/E$$F$K$$H$I$$B~$F$0$1.$/,$/2$30$1.$5~$<=$^$K%$J%K%E5D%'U$%X$)$%&)$%&)S$%X$+Q$%X$Y$T$%&Y$R$%(Y$P$%&U$R$%$U$R$%",
  "#S$-%}$S$+%N$.$%10%%/0]$%N$G$R$%/G$R$%/G$T$%1G$#%F$G$#%B2#%32#%3C$#%D$0S$%D$0S$%D$2_$%N$E$P$%/E$P$%/E$#%D$E$#%@4",
  "[$%H$2Q$%@2Q$%>~R$%7~R$%7~#%>~-%D$<U$%:;#%:;#%:;+%@9#%89-%B9+%2H$Q$%*H$Q$%()R$%M$)#%$P$S$%$P$]$%.P$[$%,R$#%S$R$#",
  "%S$N$Q$%$N$Q$%$%R$%Q$%R$%S$R$$%U$R$S$%#R$]$%,T$%%S$T$U$%#P$&%U$P$Q$E%#T$'%U$&T$%Y$&#%%T$S$%%T$[$%(V$U$%%V$U$%%V$",
  "]$%($-%*$+%%,#%-,#%}$/[$%b$'_$%b$']$%`$+[$%b$+Y$%`$Y$-%b$Y$+%}$U$-%^$%[$%}$U$+%N$,Y$%J$2]$%N$0]$%J$4]$%.R$_$%.%-",
  "%#}$]$%#^$_$%#,-%,#-%2)-%*T$]$%2)R$%Q$P$S$%:;-%0'-%*V$%%S$P$[$%.R$U$%&'#%$R$U$%%V$%%$%]$%}$$_$%,T$_$%4+-%F%-]$%0",
  "'#%:<U$%BC$#%F$,[$%*V$_$EK$L$A_+%b+'_+&X-]$#)&b$[$X$5&K$R$S$N$&/A8;&J$'M$*&89/(&%L$E$%%BA-4J$A-TE&QC&]$#)PE&UD&9",
  "/(PE&SE&L$E$%*T$S$JE&[C&S$}$]$)&N$Y,L-]$C6RD&#M`:#%#R_:#%#V$#_$#Q`:#%%Ta:##D9###Oa2#$#J^2###P&#%#G(#'#Q}:#%#,#%#",
  "0#%#(#%#)#%#%#%C%J^:#'$}&MQ$$LQ$MQ$$LQ$MQ$$LQ$MQ$#NM$#####H&#M`:#H`:C$=#$#-#^$#Ib2#Za2#%#G(#'#Q}:#%#Fb:#)#+#%#'#",
  "A#'#$C$a$#R&#%#Y$D'b$YE&$89$XE&[E&D$ZE&]E&D$}E&_E&$>~$^E&aE&$@A$`E&CF&$BC$$bE&EF&$D$E$$DF&GF&$F$G$#D&$/[%$Z%[%$",
  "Z%]%$}%]%$:;$:;$}%_%$^%_%$87$67$67$67#}%###%#######%###%#######%#######%#######%#######%#######%###%###%###%###%",
  "#######%#######%#######%#######%#######%#######%#######%#######1#######%#######%#######%#######%#######%#######%",
  "#######%###%###%######%.}$[%%@}$[%%@}$]%%B}$]%%B}$_%%D$}$_%$D$}$$]$}$C'NC&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%",
  "#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%",
  "#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#QS7#%#[J&#7#%#:#W2#4#D(#'#'#'#'#W&#'#'#J%#U&#V(#'#'#'#'#%#'#'#'#'#'#'#'#'#'",
  "#'#'#)#'#'#'#%#%#%#%#%#)#)#)#)#)#%#%#%#%#'#'#'#%#%#%#%#%#'#+#V(#%#VV2#b(#%#U-#R-#W-#%#V-#%#%#Y-#%#%#%#%#%#X,#J$#",
  "%#%#U$#R$#%#%#%#%#%#%#%#%#%C&a'#%#%#%#%#%C%%#%#%#%#%#%C%%#%#%#%#%#%C%%#%#%C&HP+#%#5$Z+KQ$#^H$#$#KC3C$UH%#FZ$#%#%",
  "#%#]C%#Y%CTCX$V[5#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#",
  "%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%C$'#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#",
  "T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#T&C$'#%",
  "C%)C%)#%C%)#%#%#%C$'#%#%#%#%#%#%#%#1#%#%#%C$'C$'#%#%#%#%#%#%C$'#%#%#%#%#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%",
  "#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#T&#%C$'#%#%#%C%)#%#%#%#%#%#%#%C$'#%",
  "#%#%#%#%#%C$3#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#T&#%C$'#%#%#%C$'#%#%#%#%C$'C&+#%#%#%#%#%#%C$3#%#",
  "%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%",
  "#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#",
  "%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%",
  "#%#%#%#%#%#%#%#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#",
  "%#%#%#%#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%",
  "#%#%#%#%#%#%#T&#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#1#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#",
  "%#%#%#Q.#O3C%W8#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#4#9#%#%#%#%#%#%#_H2#NH2#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#",
  "%#%#%#%#UF2#}G2#)#'#;#,#$#`%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#4#9#%#%#%#%#%#%#_H2#NH2#%#%#%#%#%#%#%#%#%#%#%#%#%#%",
  "#%#%#%#%#%#%#%#%#%#%#UF2#}G2#)#'#;#,#$#`%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#4#9#%#%#%#%#%#%#_H2#NH2#%#%#%#%#%#%#%#",
  "%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#UF2#}G2#)#'#;#,#$#`%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#4#9#%#%#%#%#%#%#_H2#NH2#%",
  "#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#UF2#}G2#)#'#;#,#$#`%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#4#9#%#%#%#%#",
  "%#%#_H2#NH2#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#%#UF2#}G2#)#'#;#,#$#[$#%C%}]$#%#%#%#%#%#%#%#%#%#4#%#%#",
  "%#%#%#%#%#%#%#4#%#%#%#%#%#%#%#%#%#4#%#%#%#%#%#%#%#%#%#4#%#%#%#%#%#%#%#%#%CCS(_a%#%#+#)C$U$#N$#,#7#I$#0#%#%#%#H$#",
  "/#3#:#=#D$#)#6#%#)#'#/#'#'#K&#['#T$#F&C$P'#+C$Y$C%V$C$]$#0#%#%#%#H$#/#3#:#=C$>#6#%#)C$3C$+C)>C'%C$]$C$.C$'#H$#/",
  "C$*#=C$>C%.C$3C$+C$C+C$X'C$P'#+C$Y$C%V$#7#I$#0C$'#%#H$#/#3#:#=C$>#6#%#)C$3#'#'#K&C$I&C$V*#%#+#)#S$#%#N$#,#7#I$C$",
  ".#%#%#H$#/#3#:#=#D$#)#6#%#)#'#/#'#'C(F$#+#)C$U$#N$#,#7#I$C$.#%#%#H$#/#3#:#=#D$#)#6#%#)#'#/#'#'DG5VC&&$'*$-,$/.$1",
  "0$32$54$76$98$;:$=<E(*U$R$%$W$T$%$Y$V$%$[$X$%$]$Z$%$_$}$%$a$^$%$C%`$%$E%b$%$G%D%%$I%F%%$K%H%%$M%J%%$O%L%%$Q%N%%$",
  "S%P%%$U%R%%$W%T%%$Y%V%%$[%X%%$]%Z%%$_%}%%$a%^%%$C&`%%$E&b%%$G&D&%Ya:D_:G_:#F`:#A$@%$I$)C$T$#%#%#%#%#%#%#%#%#%#%#",
  "%#%#%#%#%#%#%#%#%#%#%#%#%#%#%$F$~$45$(@$A#%(#/$%J$D=76$74DG$#/DR&EF;b%$S)##'C0O};#JR&#X[&$NS4}%#Ib1#_K(#UO;#VN;#",
  "LK(#[Z.#ES(#R[(#ZW,#aV)#`b)#IE-#H},#MU8#HE'#W[.#T^<#PN%#YP0#`J)#C/#LX-#5#EGD$#JI<#T^*#O_%#KT*#UI8#}T8#_U.#U2#FJ6",
  "#SJ0#PZ&#$#YE*#DO4#KW$#Q}@E'TVS$ST>PT>%$Mb1Jb1%$SJ2PJ2%$MZ8JZ8%$MMC$JMC$%$aF<^F<%$IOF$FOF$%$UO4RO4%$IW=FW=C*G[:#",
  "R](", NULL};
/* clang-format on */
/* GENERATED by tools/unicode_tables.py: end */

#define FT__CODE_POINTS 0x110000

/* What is known of a code point, as bits; FT__GRAPHEME is a number, see ft__grapheme_class. */
enum {
  FT__DELETED = 1,
  FT__WHITESPACE = 2,
  FT__CHINESE = 4,
  FT__PUNCTUATION = 8,
  FT__WORD = 16,        /* letters, digits, marks, connectors */
  FT__MARK = 32,        /* has a combining class, or is dropped with the accents of BERT */
  FT__UPPER = 64,       /* has a lower case */
  FT__DECOMPOSED = 128, /* has a canonical decomposition */
  FT__COMPATIBLE = 256, /* NFKD differs from NFD */
  FT__LETTER = 512,
  FT__NUMBER = 1024,
  FT__ACCENT = 2048, /* StripAccents drops it: all marks */
  FT__GRAPHEME = 1 << 12
};

#define FT__HANGUL_FIRST 0xAC00u /* syllables: 19 leading x 21 vowel x 28 trailing jamo, by arithmetic */
#define FT__HANGUL_COUNT 11172u
#define FT__DOTTED_I 0x130u /* the one character whose lower case is two: i and a dot above */

typedef struct ft__code_value {
  uint32_t code, value;
} ft__code_value;

typedef struct ft__code_pair {
  uint32_t first, second, code;
} ft__code_pair;

typedef struct ft__code_map { /* code points to values, sorted */
  ft__code_value *at;         /* [count] */
  int64_t count, capacity;
} ft__code_map;

/* The tables, unpacked when a tokenizer is loaded. */
typedef struct ft__unicode {
  ft_context *context;
  bool failed;          /* memory was short */
  uint16_t *properties; /* [FT__CODE_POINTS]: so that most characters cost one look */
  ft__code_map marks;   /* 2 * rank of the combining class (0: a starter) + 1 if strip_accents drops it */
  ft__code_map lower;
  ft__code_map canonical;  /* first part + 2^21 * index of the second + 2^31 if NFC does not compose the two */
  ft__code_map seconds;    /* index: second part, or 0 */
  ft__code_map compatible; /* where its parts start + 2^24 * how many */
  ft__code_map parts;      /* index: part */
  ft__code_pair *pairs;    /* [pair_count]: what NFC composes, sorted; made when a normalizer asks for it */
  int64_t pair_count;
} ft__unicode;

typedef struct ft__table_reader {
  const char *const *line; /* NULL ends the table */
  const char *at;
} ft__table_reader;

static ft__table_reader ft__table_read(const char *const *table) {
  ft__table_reader reader;
  reader.line = table;
  reader.at = table[0];
  return reader;
}

static bool ft__table_more(const ft__table_reader *reader) { return *reader->line != NULL; }

/* The next number: five bits a character from '#' on, lowest first, 32 more if others follow; ~ and } stand for ? and
   \, which would need escapes. */
static uint32_t ft__table_next(ft__table_reader *reader) {
  uint32_t value = 0, digit = 32;
  int shift;
  for (shift = 0; digit & 32; shift += 5) {
    char c = *reader->at++;
    digit = (uint32_t)((c == '~' ? '?' : c == '}' ? '\\' : c) - '#');
    value |= (digit & 31) << shift;
  }
  if (!*reader->at && *++reader->line) reader->at = *reader->line;
  return value;
}

static uint32_t ft__table_signed(ft__table_reader *reader) { /* 0, -1, 1, -2, ... */
  uint32_t value = ft__table_next(reader);
  return value >> 1 ^ (0u - (value & 1));
}

static void ft__code_add(ft__unicode *unicode, ft__code_map *map, uint32_t code, uint32_t value) {
  if (!ft__grow(unicode->context, &map->at, &map->capacity, map->count + 1, sizeof *map->at)) {
    unicode->failed = true;
    return;
  }
  map->at[map->count].code = code;
  map->at[map->count++].value = value;
}

/* The value of a code point, or missing. */
static uint32_t ft__code_find(const ft__code_map *map, uint32_t code, uint32_t missing) {
  int64_t low = 0, high = map->count;
  while (low < high) {
    int64_t middle = (low + high) / 2;
    if (map->at[middle].code < code)
      low = middle + 1;
    else
      high = middle;
  }
  return low < map->count && map->at[low].code == code ? map->at[low].value : missing;
}

static int ft__code_compare(const void *a, const void *b) {
  uint32_t x = ((const ft__code_value *)a)->code, y = ((const ft__code_value *)b)->code;
  return x < y ? -1 : x > y;
}

/* Sets bits of all code points in a table of ranges; with a value behind each range, that times `bits`. */
static void ft__unicode_ranges(ft__unicode *unicode, const char *const *table, bool valued, int bits,
                               ft__code_map *values) {
  ft__table_reader reader = ft__table_read(table);
  uint32_t code = 0, end, value = 1;
  while (ft__table_more(&reader)) {
    code += ft__table_next(&reader);
    end = code + ft__table_next(&reader);
    if (valued) value = ft__table_next(&reader);
    for (; code <= end; ++code) {
      unicode->properties[code] |= (uint16_t)(values ? (uint32_t)bits : (uint32_t)bits * value);
      if (values) ft__code_add(unicode, values, code, value);
    }
  }
}

static void ft__unicode_unpack_lower(ft__unicode *unicode) {
  ft__table_reader reader = ft__table_read(ft__unicode_lower);
  uint32_t first = 0, steps, difference, i;
  while (ft__table_more(&reader)) {
    first += ft__table_signed(&reader);
    steps = ft__table_next(&reader);
    difference = ft__table_signed(&reader);
    for (i = 0; i <= steps / 2; ++i) {
      uint32_t code = first + i * (1 + steps % 2);
      ft__code_add(unicode, &unicode->lower, code, code + difference);
      unicode->properties[code] |= FT__UPPER;
    }
  }
  unicode->properties[FT__DOTTED_I] |= FT__UPPER;
  if (unicode->lower.count) /* rules that skip every other code point overlap */
    qsort(unicode->lower.at, (size_t)unicode->lower.count, sizeof *unicode->lower.at, ft__code_compare);
}

static void ft__unicode_unpack_decompositions(ft__unicode *unicode) {
  ft__table_reader reader = ft__table_read(ft__unicode_seconds);
  uint32_t code = 0, first = 0, part = 0, count;
  while (ft__table_more(&reader)) ft__code_add(unicode, &unicode->seconds, 0, ft__table_next(&reader));
  reader = ft__table_read(ft__unicode_canonical);
  while (ft__table_more(&reader)) {
    uint32_t second;
    code += 1 + ft__table_next(&reader);
    first += ft__table_signed(&reader);
    second = ft__table_next(&reader);
    ft__code_add(unicode, &unicode->canonical, code, first | second / 2 << 21 | second % 2 << 31);
    unicode->properties[code] |= FT__DECOMPOSED;
  }
  for (code = FT__HANGUL_FIRST; code < FT__HANGUL_FIRST + FT__HANGUL_COUNT; ++code)
    unicode->properties[code] |= FT__DECOMPOSED;
  reader = ft__table_read(ft__unicode_compatible);
  for (code = 0; ft__table_more(&reader);) {
    count = ft__table_next(&reader);
    code += 1 + count / 32;
    count = count % 32 + 1;
    ft__code_add(unicode, &unicode->compatible, code, (uint32_t)unicode->parts.count | count << 24);
    unicode->properties[code] |= FT__COMPATIBLE;
    for (; count > 0; --count) ft__code_add(unicode, &unicode->parts, 0, part += ft__table_signed(&reader));
  }
}

static bool ft__unicode_create(ft_context *context, ft__unicode *unicode) {
  unicode->context = context;
  unicode->properties = (uint16_t *)ft__allocate_zero(context, FT__CODE_POINTS * sizeof *unicode->properties);
  if (!unicode->properties) return false;
  ft__unicode_ranges(unicode, ft__unicode_deleted, false, FT__DELETED, NULL);
  ft__unicode_ranges(unicode, ft__unicode_whitespace, false, FT__WHITESPACE, NULL);
  ft__unicode_ranges(unicode, ft__unicode_chinese, false, FT__CHINESE, NULL);
  ft__unicode_ranges(unicode, ft__unicode_punctuation, false, FT__PUNCTUATION, NULL);
  ft__unicode_ranges(unicode, ft__unicode_word, false, FT__WORD, NULL);
  ft__unicode_ranges(unicode, ft__unicode_letters, false, FT__LETTER, NULL);
  ft__unicode_ranges(unicode, ft__unicode_numbers, false, FT__NUMBER, NULL);
  ft__unicode_ranges(unicode, ft__unicode_accents, false, FT__ACCENT, NULL);
  ft__unicode_ranges(unicode, ft__unicode_graphemes, true, FT__GRAPHEME, NULL);
  ft__unicode_ranges(unicode, ft__unicode_marks, true, FT__MARK, &unicode->marks);
  ft__unicode_unpack_lower(unicode);
  ft__unicode_unpack_decompositions(unicode);
  return !unicode->failed;
}

static void ft__unicode_free(ft__unicode *unicode) {
  ft__release(unicode->context, unicode->properties);
  ft__release(unicode->context, unicode->marks.at);
  ft__release(unicode->context, unicode->lower.at);
  ft__release(unicode->context, unicode->canonical.at);
  ft__release(unicode->context, unicode->seconds.at);
  ft__release(unicode->context, unicode->compatible.at);
  ft__release(unicode->context, unicode->parts.at);
  ft__release(unicode->context, unicode->pairs);
}

enum { FT__MOST_PARTS = 20 }; /* of a decomposition; the table's longest has 18 */

/* parts = the full decomposition of a code point, canonical or compatible; returns how many. */
static int ft__unicode_decompose(const ft__unicode *unicode, uint32_t code, bool compatible,
                                 uint32_t parts[FT__MOST_PARTS]) {
  uint32_t tail[4], found;
  int tails = 0, count = 0, property = unicode->properties[code];
  if (compatible && property & FT__COMPATIBLE) {
    found = ft__code_find(&unicode->compatible, code, 0);
    for (; count < (int)(found >> 24); ++count)
      parts[count] = unicode->parts.at[(found & 0xFFFFFF) + (uint32_t)count].value;
    return count;
  }
  parts[0] = code;
  if (!(property & FT__DECOMPOSED)) return 1;
  if (code - FT__HANGUL_FIRST < FT__HANGUL_COUNT) {
    uint32_t index = code - FT__HANGUL_FIRST;
    parts[0] = 0x1100 + index / 588;
    parts[1] = 0x1161 + index % 588 / 28;
    parts[2] = 0x11A7 + index % 28;
    return index % 28 ? 3 : 2;
  }
  for (;;) { /* first parts decompose further, second parts do not */
    found = ft__code_find(&unicode->canonical, code, 0);
    if (found == 0 || tails == 3) break;
    tail[tails] = unicode->seconds.at[found >> 21 & 0x3FF].value;
    if (tail[tails]) ++tails;
    code = found & 0x1FFFFF;
  }
  parts[count++] = code;
  while (tails) parts[count++] = tail[--tails];
  return count;
}

static int ft__code_pair_compare(const void *a, const void *b) {
  const ft__code_pair *x = (const ft__code_pair *)a, *y = (const ft__code_pair *)b;
  if (x->first != y->first) return x->first < y->first ? -1 : 1;
  return x->second < y->second ? -1 : x->second > y->second;
}

/* Prepares ft__unicode_compose. */
static bool ft__unicode_pairs(ft__unicode *unicode) {
  int64_t i;
  if (unicode->pairs) return true;
  unicode->pairs =
      (ft__code_pair *)ft__allocate(unicode->context, (size_t)unicode->canonical.count * sizeof *unicode->pairs);
  if (!unicode->pairs) return false;
  for (i = 0; i < unicode->canonical.count; ++i) {
    uint32_t value = unicode->canonical.at[i].value, second = unicode->seconds.at[value >> 21 & 0x3FF].value;
    ft__code_pair *pair = &unicode->pairs[unicode->pair_count];
    if (value >> 31 || second == 0) continue;
    pair->first = value & 0x1FFFFF;
    pair->second = second;
    pair->code = unicode->canonical.at[i].code;
    ++unicode->pair_count;
  }
  qsort(unicode->pairs, (size_t)unicode->pair_count, sizeof *unicode->pairs, ft__code_pair_compare);
  return true;
}

/* What NFC makes of two characters, or 0. */
static uint32_t ft__unicode_compose(const ft__unicode *unicode, uint32_t first, uint32_t second) {
  ft__code_pair wanted;
  const ft__code_pair *found;
  if (first - 0x1100 < 19 && second - 0x1161 < 21)
    return FT__HANGUL_FIRST + ((first - 0x1100) * 21 + second - 0x1161) * 28;
  if (first - FT__HANGUL_FIRST < FT__HANGUL_COUNT && (first - FT__HANGUL_FIRST) % 28 == 0 && second - 0x11A8 < 27)
    return first + second - 0x11A7;
  wanted.first = first, wanted.second = second, wanted.code = 0;
  found = (const ft__code_pair *)bsearch(&wanted, unicode->pairs, (size_t)unicode->pair_count, sizeof wanted,
                                         ft__code_pair_compare);
  return found ? found->code : 0;
}

/* =====================================================================================================================
   >>vocabulary: pieces and ids

   All pieces stand in one string, each with a zero byte. Two open-addressing hash tables, at most half full, find ids:
   `words` by the whole piece, `continuations` by what follows "##". A slot of 16 bytes holds the id, half of the hash
   and the first eight bytes, so that a look-up of a short piece reads one cache line.

   The hash takes eight bytes a time; hash(word[at .. end)) for every end comes from the hash states at multiples of
   eight, so the search for the longest prefix costs one step for each length tried. */

enum {
  FT__MOST_IDS = 1 << 24,   /* an id and a length share 32 bits */
  FT__LONGEST_PIECE = 1024, /* bytes of a piece or an added token */
  FT__LONGEST_WORD = 1000,  /* most that max_input_chars_per_word may be */
  FT__LONGEST_PROBE = 4096  /* slots: more only for words chosen to collide */
};
#define FT__NO_PIECE 0xFFFFFFFFu

typedef struct ft__piece_slot {
  uint64_t head;          /* first eight bytes, zeros behind a shorter piece */
  uint32_t hash;          /* upper half */
  uint32_t id_and_length; /* id | min(length, 255) << 24; FT__NO_PIECE: empty (no id is as high) */
} ft__piece_slot;

typedef struct ft__piece_table {
  ft__piece_slot *slots; /* [mask + 1] */
  uint64_t mask;
  uint8_t *filter; /* [mask + 1] times eight bits, one in sixteen of them set at most: most absent keys end here */
  int64_t skip;    /* bytes of the stored piece before the key: the prefix's length in `continuations` */
  int64_t longest; /* bytes of the longest key */
} ft__piece_table;

typedef struct ft__vocabulary {
  char *text;        /* all pieces */
  uint32_t *starts;  /* [size]: where piece id stands in text, or FT__NO_PIECE */
  uint32_t *lengths; /* [size] */
  int32_t size;      /* largest id + 1 */
  int64_t count;     /* different pieces */
  ft__piece_table words, continuations;
} ft__vocabulary;

static uint64_t ft__load_bytes(const char *bytes, size_t count) { /* up to eight, the first lowest */
  uint64_t value = 0;
  size_t i;
  for (i = 0; i < count && i < 8; ++i) value |= (uint64_t)(unsigned char)bytes[i] << (8 * i);
  return value;
}

static uint64_t ft__load_eight(const char *bytes) {
  const unsigned char *b = (const unsigned char *)bytes;
  return (uint64_t)b[0] | (uint64_t)b[1] << 8 | (uint64_t)b[2] << 16 | (uint64_t)b[3] << 24 | (uint64_t)b[4] << 32 |
         (uint64_t)b[5] << 40 | (uint64_t)b[6] << 48 | (uint64_t)b[7] << 56;
}

static uint64_t ft__hash_block(uint64_t state, uint64_t eight) {
  state = (state ^ eight) * 0x9E3779B97F4A7C15u;
  return state ^ state >> 29;
}

/* state: after the full blocks; rest: the length % 8 bytes behind them. */
static uint64_t ft__hash_finish(uint64_t state, uint64_t rest, size_t length) {
  state = ft__hash_block(state, rest) + length;
  state *= 0xBF58476D1CE4E5B9u;
  return state ^ state >> 32;
}

static uint64_t ft__hash(const char *bytes, size_t length) {
  uint64_t state = 0;
  size_t i;
  for (i = 0; i + 8 <= length; i += 8) state = ft__hash_block(state, ft__load_eight(bytes + i));
  return ft__hash_finish(state, ft__load_bytes(bytes + i, length - i), length);
}

/* The slot of a key, or the empty slot where it belongs; NULL after too many steps. head: its first eight bytes. */
static ft__piece_slot *ft__piece_slot_find(const ft__vocabulary *vocabulary, const ft__piece_table *table,
                                           const char *key, size_t length, uint64_t head, uint64_t hash) {
  uint64_t at = hash & table->mask;
  uint32_t short_length = length < 255 ? (uint32_t)length : 255;
  int steps;
  for (steps = 0; steps < FT__LONGEST_PROBE; ++steps, at = (at + 1) & table->mask) {
    ft__piece_slot *slot = &table->slots[at];
    uint32_t id = slot->id_and_length & (FT__MOST_IDS - 1);
    if (slot->id_and_length == FT__NO_PIECE) return slot;
    if (slot->hash != (uint32_t)(hash >> 32) || slot->head != head || slot->id_and_length >> 24 != short_length)
      continue;
    if (length <= 8) return slot;
    if (vocabulary->lengths[id] == length + (size_t)table->skip &&
        memcmp(vocabulary->text + vocabulary->starts[id] + table->skip + 8, key + 8, length - 8) == 0)
      return slot;
  }
  return NULL;
}

/* A hash's byte of the filter, and its bit there. */
static uint8_t *ft__filter_byte(const ft__piece_table *table, uint64_t hash) {
  return &table->filter[hash >> 32 & table->mask];
}

static uint8_t ft__filter_bit(uint64_t hash) { return (uint8_t)(1 << (hash >> 61)); }

static int32_t ft__slot_id(const ft__piece_slot *slot) {
  return slot && slot->id_and_length != FT__NO_PIECE ? (int32_t)(slot->id_and_length & (FT__MOST_IDS - 1)) : -1;
}

/* The id of a piece written in full ("##ing"), or -1. */
static int32_t ft__vocabulary_find(const ft__vocabulary *vocabulary, const char *piece, size_t length) {
  return ft__slot_id(ft__piece_slot_find(vocabulary, &vocabulary->words, piece, length, ft__load_bytes(piece, length),
                                         ft__hash(piece, length)));
}

/* The same for a word inside a text, of which `readable` bytes may be looked at. */
static int32_t ft__vocabulary_find_word(const ft__vocabulary *vocabulary, const char *word, size_t length,
                                        size_t readable) {
  uint64_t head;
  if (length == 0 || length > 8 || readable < 8) return ft__vocabulary_find(vocabulary, word, length);
  head = ft__load_eight(word) & (~(uint64_t)0 >> (64 - 8 * length));
  return ft__slot_id(ft__piece_slot_find(
      vocabulary, &vocabulary->words, word, length, head,
      length < 8 ? ft__hash_finish(0, head, length) : ft__hash_finish(ft__hash_block(0, head), 0, length)));
}

/* =====================================================================================================================
   >>normalising: lists of characters, and the steps that change them

   A step writes a new list. Where characters come, go or change places, each carries a `change`: 0 takes the place of
   the next character of the old list, 1 is inserted behind it, -n takes its place and n more are dropped. Bytes of the
   original text follow from these (ft__align), also where the reference's books are odd. */

typedef struct ft__character {
  uint32_t code;
  int32_t begin, end; /* bytes of the original text */
  int32_t change;
  uint8_t mark; /* combining class, see ft__unicode; only between decomposing and composing */
} ft__character;

enum { FT__ROOM = 192 };

typedef struct ft__characters {
  ft_context *context;
  ft__character *at; /* room, or allocated when that is full */
  int64_t count, capacity;
  bool failed; /* memory was short */
  bool forgot; /* see ft__charsmap_put */
  ft__character room[FT__ROOM];
} ft__characters;

static void ft__characters_start(ft__characters *list, ft_context *context) {
  list->context = context;
  list->at = list->room;
  list->count = 0;
  list->capacity = FT__ROOM;
  list->failed = list->forgot = false;
}

static void ft__characters_free(ft__characters *list) {
  if (list->at != list->room) ft__release(list->context, list->at);
}

static void ft__characters_double(ft__characters *list) {
  ft__character *grown =
      (ft__character *)ft__allocate(list->context, ft__size_product((size_t)list->capacity * 2, sizeof *grown));
  if (!grown) {
    list->failed = true;
    list->count = 0;
    return;
  }
  memcpy(grown, list->at, (size_t)list->count * sizeof *grown);
  ft__characters_free(list);
  list->at = grown;
  list->capacity *= 2;
}

static ft__character *ft__characters_add(ft__characters *list, uint32_t code, int32_t begin, int32_t end) {
  ft__character *added;
  if (list->count == list->capacity) ft__characters_double(list);
  added = &list->at[list->count++];
  added->code = code;
  added->begin = begin;
  added->end = end;
  added->change = 0;
  added->mark = 0;
  return added;
}

static void ft__characters_copy(ft__characters *list, const ft__character *c) {
  if (list->count == list->capacity) ft__characters_double(list);
  list->at[list->count++] = *c;
}

/* Gives each character of `to` the bytes of the one of `from` that its change points at. */
static void ft__align(const ft__characters *from, ft__characters *to) {
  int64_t i, next = 0;
  if (to->failed) return;
  for (i = 0; i < to->count; ++i) {
    ft__character *c = &to->at[i];
    int64_t source = c->change > 0 && next > 0 ? next - 1 : next;
    if (source >= from->count) source = from->count - 1;
    c->begin = from->at[source].begin;
    c->end = c->change > 0 && next == 0 ? c->begin : from->at[source].end;
    if (c->change <= 0) next += 1 - c->change;
  }
}

typedef struct ft__encoder ft__encoder;
typedef struct ft__normalizer ft__normalizer;
typedef struct ft__step ft__step;

struct ft__normalizer {
  ft__unicode unicode;
  ft__step *steps; /* [count] */
  int64_t count, capacity;
  bool is_bert;                        /* nothing, or one BertNormalizer: */
  bool clean_text, chinese, lowercase; /* its switches; lowercase of any other too */
};

/* A step of the normalizer or of the pre-tokenizer; what a kind does not mention it leaves empty. */
struct ft__step {
  /* Normalizer: writes what it makes of `from` (not empty) to `to` (empty). */
  void (*normalize)(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                    ft__characters *to);
  /* Pre-tokenizer: hands the parts of characters [count > 0] to the step behind this one, by number. */
  void (*split)(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count);
  bool flags[2];     /* what they say stands beside the functions */
  uint32_t *pattern; /* [pattern_count] code points */
  uint32_t *content; /* [content_count] */
  int64_t pattern_count, content_count;
  char *charsmap; /* [charsmap_size]: a table of sentencepiece, see ft__charsmap_find */
  size_t charsmap_size, trie_size;
};

/* clean_text of BERT: control characters go, all white space becomes spaces. */
static void ft__clean(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                      ft__characters *to) {
  int64_t i;
  (void)step;
  for (i = 0; i < from->count; ++i) {
    const ft__character *c = &from->at[i];
    int property = normalizer->unicode.properties[c->code];
    if (property & FT__DELETED) continue;
    ft__characters_add(to, property & FT__WHITESPACE ? ' ' : c->code, c->begin, c->end);
  }
}

/* A space on either side of a Chinese character; both stand for the bytes of the character. */
static void ft__space_chinese(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                              ft__characters *to) {
  int64_t i;
  (void)step;
  for (i = 0; i < from->count; ++i) {
    const ft__character *c = &from->at[i];
    bool spaced = (normalizer->unicode.properties[c->code] & FT__CHINESE) != 0;
    if (spaced) ft__characters_add(to, ' ', c->begin, c->end);
    ft__characters_copy(to, c);
    if (spaced) ft__characters_add(to, ' ', c->begin, c->end);
  }
}

/* Sorts marks [start, count) of a list by combining class, keeping the order within a class: canonical ordering. Long
   runs are copied class by class behind the list and back, so that no text costs quadratic time. */
static void ft__order_marks(ft__characters *list, int64_t start) {
  int64_t end = list->count, i, j;
  int rank;
  if (end - start <= 16) {
    for (i = start + 1; i < end; ++i) {
      ft__character moved = list->at[i];
      for (j = i; j > start && list->at[j - 1].mark >> 1 > moved.mark >> 1; --j) list->at[j] = list->at[j - 1];
      list->at[j] = moved;
    }
    return;
  }
  for (rank = 0; rank < 128; ++rank)
    for (i = start; i < end && !list->failed; ++i)
      if (list->at[i].mark >> 1 == rank) {
        ft__character moved = list->at[i];
        ft__characters_copy(list, &moved);
      }
  if (list->failed) return;
  memmove(list->at + start, list->at + end, (size_t)(end - start) * sizeof *list->at);
  list->count = end;
}

/* Canonical composition, in place: a mark joins the last starter if they compose and no mark between has its class or a
   higher one. */
static void ft__compose(const ft__unicode *unicode, ft__characters *list) {
  int64_t starter = -1, kept = 0, i;
  int last = -1; /* class of the mark before, -1: none behind the starter */
  for (i = 0; i < list->count; ++i) {
    ft__character *c = &list->at[i];
    int rank = c->mark >> 1;
    uint32_t composed = 0;
    if (starter >= 0 && last < rank) composed = ft__unicode_compose(unicode, list->at[starter].code, c->code);
    if (composed) {
      list->at[starter].code = composed;
      list->at[starter].change = list->at[starter].change + c->change - 1;
      continue;
    }
    if (rank == 0)
      starter = kept, last = -1;
    else if (starter >= 0)
      last = rank;
    list->at[kept++] = *c;
  }
  list->count = kept;
}

/* NFD, NFKD (flag 0: compatible), NFC, NFKC (flag 1: composed). */
static void ft__decompose(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                          ft__characters *to) {
  const ft__unicode *unicode = &normalizer->unicode;
  int64_t marks = 0, i;
  for (i = 0; i < from->count; ++i) {
    uint32_t parts[FT__MOST_PARTS];
    int count = ft__unicode_decompose(unicode, from->at[i].code, step->flags[0], parts), k;
    for (k = 0; k < count; ++k) {
      ft__character *added;
      uint8_t mark = 0;
      if (unicode->properties[parts[k]] & FT__MARK) mark = (uint8_t)ft__code_find(&unicode->marks, parts[k], 0);
      if (mark >> 1 == 0) {
        if (to->count - marks > 1) ft__order_marks(to, marks);
        marks = to->count + 1;
      }
      added = ft__characters_add(to, parts[k], 0, 0);
      added->mark = mark;
      added->change = k > 0;
    }
  }
  if (to->count - marks > 1) ft__order_marks(to, marks);
  if (step->flags[1]) ft__compose(unicode, to);
  ft__align(from, to);
}

/* Drops all marks (StripAccents) or, with flag 0, those that BERT drops after decomposing. */
static void ft__strip_accents(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                              ft__characters *to) {
  const ft__unicode *unicode = &normalizer->unicode;
  int64_t i;
  for (i = 0; i < from->count; ++i) {
    uint32_t code = from->at[i].code;
    int property = unicode->properties[code];
    if (step->flags[0] ? property & FT__MARK && ft__code_find(&unicode->marks, code, 0) & 1 : property & FT__ACCENT)
      continue;
    ft__characters_copy(to, &from->at[i]);
  }
}

static uint32_t ft__unicode_lower_case(const ft__unicode *unicode, uint32_t code) {
  return unicode->properties[code] & FT__UPPER ? ft__code_find(&unicode->lower, code, code) : code;
}

static void ft__make_lower_case(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                                ft__characters *to) {
  int64_t i;
  (void)step;
  for (i = 0; i < from->count; ++i) {
    const ft__character *c = &from->at[i];
    bool dotted = c->code == FT__DOTTED_I;
    ft__characters_add(to, dotted ? 'i' : ft__unicode_lower_case(&normalizer->unicode, c->code), c->begin, c->end);
    if (dotted) ft__characters_add(to, 0x307, c->begin, c->end);
  }
}

/* Strip: white space at the left (flag 0) and at the right (flag 1). */
static void ft__strip(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                      ft__characters *to) {
  const uint16_t *properties = normalizer->unicode.properties;
  int64_t begin = 0, end = from->count;
  while (step->flags[0] && begin < end && properties[from->at[begin].code] & FT__WHITESPACE) ++begin;
  while (step->flags[1] && begin < end && properties[from->at[end - 1].code] & FT__WHITESPACE) --end;
  while (begin < end) ft__characters_copy(to, &from->at[begin++]);
}

/* Replace: the content stands for the last character of what matched. Flag 0: the pattern is one character, `minimum` =
   pattern[1] or more of it (the expression " {2,}"). */
static void ft__replace(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                        ft__characters *to) {
  int64_t i = 0, k, length;
  (void)normalizer;
  while (i < from->count) {
    if (step->flags[0]) {
      for (length = 0; i + length < from->count && from->at[i + length].code == step->pattern[0];) ++length;
      if (length < (int64_t)step->pattern[1]) length = 0;
    } else {
      for (k = 0; k < step->pattern_count && i + k < from->count && from->at[i + k].code == step->pattern[k];) ++k;
      length = k == step->pattern_count ? k : 0;
    }
    for (k = 0; k < step->content_count && length; ++k)
      ft__characters_add(to, step->content[k], from->at[i + length - 1].begin, from->at[i + length - 1].end);
    if (!length) ft__characters_copy(to, &from->at[i]);
    i += length ? length : 1;
  }
}

static void ft__prepend(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                        ft__characters *to) {
  int64_t i;
  (void)normalizer;
  for (i = 0; i < step->content_count; ++i)
    ft__characters_add(to, step->content[i], from->at[0].begin, from->at[0].end);
  for (i = 0; i < from->count; ++i) ft__characters_copy(to, &from->at[i]);
}

/* ---- Precompiled: sentencepiece's table of replacements ----

   u32 size, double array of size / 4 units u32, texts that each end with a zero byte. A unit holds, from bit 0: label
   (8 bits), whether a value hangs on it (1), shift (1), offset (21 bits, by 8 bits more with shift), and bit 31 marks a
   value. From node n with offset o, byte b leads to unit n ^ o ^ b if its label is b; the value of that unit u is at
   (n ^ o ^ b) ^ offset(u): where in the texts the replacement starts. */

/* The replacement of the shortest prefix of bytes [length] in the table, or NULL; and its length. */
static const char *ft__charsmap_find(const ft__step *step, const char *bytes, size_t length, size_t *found) {
  const char *units = step->charsmap + 4;
  size_t count = step->trie_size / 4, node = 0, text, i;
  for (i = 0; i <= length; ++i) {
    uint32_t unit;
    if (i > 0) node ^= (unsigned char)bytes[i - 1];
    if (node >= count || (i > 0 && bytes[i - 1] == 0)) return NULL;
    unit = (uint32_t)ft__load_bytes(units + 4 * node, 4);
    if (i > 0 && (unit & 0x800000FFu) != (unsigned char)bytes[i - 1]) return NULL;
    node ^= (size_t)(unit >> 10) << ((unit & 1 << 9) >> 6);
    if (i == 0 || !(unit >> 8 & 1)) continue;
    if (node >= count) return NULL;
    text = 4 + step->trie_size;
    unit = (uint32_t)ft__load_bytes(units + 4 * node, 4) & 0x7FFFFFFFu;
    if (unit > step->charsmap_size - text) return NULL;
    text += unit;
    for (*found = 0; text + *found < step->charsmap_size && step->charsmap[text + *found];) ++*found;
    return step->charsmap + text;
  }
  return NULL;
}

/* What cuts text into grapheme clusters (Unicode's annex 29); the class of a code point, from the tables. */
enum {
  FT__GRAPHEME_OTHER,
  FT__GRAPHEME_CONTROL,
  FT__GRAPHEME_EXTEND,
  FT__GRAPHEME_PREPEND,
  FT__GRAPHEME_SPACING,
  FT__GRAPHEME_LEADING, /* jamo; syllables count as vowel or trailing by arithmetic */
  FT__GRAPHEME_VOWEL,
  FT__GRAPHEME_TRAILING,
  FT__GRAPHEME_PICTOGRAPH,
  FT__GRAPHEME_CONSONANT, /* of Indic scripts, and the virama that links two */
  FT__GRAPHEME_LINKER
};

typedef struct ft__grapheme_state {
  int previous;    /* class, -1: start of the text */
  uint32_t code;   /* the character before */
  bool pictograph; /* pictograph extend* came before; joined: then a zero width joiner */
  bool joined;
  int consonant; /* 1: consonant [extend linker]*; 2: with a linker */
} ft__grapheme_state;

/* Whether a cluster starts before code. */
static bool ft__grapheme_starts(const ft__unicode *unicode, ft__grapheme_state *state, uint32_t code) {
  int kind = unicode->properties[code] / FT__GRAPHEME, p = state->previous;
  bool syllable = code - FT__HANGUL_FIRST < FT__HANGUL_COUNT, starts = true;
  bool extends = kind == FT__GRAPHEME_EXTEND || kind == FT__GRAPHEME_LINKER;
  if (p < 0)
    starts = true;
  else if (p == FT__GRAPHEME_CONTROL || kind == FT__GRAPHEME_CONTROL)
    starts = !(state->code == '\r' && code == '\n');
  else if (extends || kind == FT__GRAPHEME_SPACING || p == FT__GRAPHEME_PREPEND)
    starts = false;
  else if (p == FT__GRAPHEME_LEADING && (syllable || kind == FT__GRAPHEME_LEADING || kind == FT__GRAPHEME_VOWEL))
    starts = false;
  else if (p == FT__GRAPHEME_VOWEL && (kind == FT__GRAPHEME_VOWEL || kind == FT__GRAPHEME_TRAILING))
    starts = false;
  else if (p == FT__GRAPHEME_TRAILING && kind == FT__GRAPHEME_TRAILING)
    starts = false;
  else if ((state->joined && kind == FT__GRAPHEME_PICTOGRAPH) ||
           (state->consonant == 2 && kind == FT__GRAPHEME_CONSONANT))
    starts = false;
  state->joined = state->pictograph && code == 0x200D;
  state->pictograph = kind == FT__GRAPHEME_PICTOGRAPH || (state->pictograph && extends && code != 0x200D);
  if (kind == FT__GRAPHEME_CONSONANT)
    state->consonant = 1;
  else if ((!extends && code != 0x200D) || code == 0x200C)
    state->consonant = 0;
  else if (kind == FT__GRAPHEME_LINKER && state->consonant)
    state->consonant = 2;
  if (syllable) kind = (code - FT__HANGUL_FIRST) % 28 ? FT__GRAPHEME_TRAILING : FT__GRAPHEME_VOWEL;
  state->previous = kind;
  state->code = code;
  return starts;
}

/* Replaces `old` characters by text [length], if there is any. The changes are those of the reference, which forgets
   what an empty text dropped before anything else was written: all that follows is then counted from too far left. */
static void ft__charsmap_put(ft__characters *to, const char *text, size_t length, int64_t old) {
  int64_t before = to->count, added, i;
  size_t at = 0;
  while (at < length) {
    uint32_t code;
    at += (size_t)ft__utf8_decode(text + at, length - at, &code);
    ft__characters_add(to, code, 0, 0);
  }
  added = to->count - before;
  for (i = old; i < added; ++i) to->at[to->count - 1 - (i - old)].change = 1;
  if (added < old && to->count > 0)
    to->at[to->count - 1].change += (int32_t)(added - old);
  else if (added < old)
    to->forgot = true;
}

/* A cluster of less than six bytes is replaced as a whole, by what its shortest known prefix stands for; any other
   character by character. */
static void ft__precompiled(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                            ft__characters *to) {
  ft__grapheme_state state;
  int64_t begin = 0, i, k;
  memset(&state, 0, sizeof state);
  state.previous = -1;
  ft__grapheme_starts(&normalizer->unicode, &state, from->at[0].code);
  for (i = 1; i <= from->count; ++i) { /* cluster [begin, i) */
    char bytes[9];
    const char *text = NULL;
    size_t length = 0, found = 0;
    if (i < from->count && !ft__grapheme_starts(&normalizer->unicode, &state, from->at[i].code)) continue;
    for (k = begin; k < i && length < 6; ++k) length += (size_t)ft__utf8_encode(from->at[k].code, bytes + length);
    if (length < 6) text = ft__charsmap_find(step, bytes, length, &found);
    if (text) ft__charsmap_put(to, text, found, i - begin);
    for (k = begin; k < i && !text; ++k) {
      const char *part = ft__charsmap_find(step, bytes, (size_t)ft__utf8_encode(from->at[k].code, bytes), &found);
      if (part)
        ft__charsmap_put(to, part, found, 1);
      else
        ft__characters_add(to, from->at[k].code, 0, 0);
    }
    begin = i;
  }
  ft__align(from, to);
}

/* Normalises text [begin, end); two lists take turns, and the one that holds the result is returned. */
static ft__characters *ft__normalize(const ft__normalizer *normalizer, const char *text, int64_t begin, int64_t end,
                                     ft__characters *list, ft__characters *other) {
  int64_t i;
  list->count = 0;
  while (begin < end) {
    uint32_t code;
    int bytes = ft__utf8_decode(text + begin, (size_t)(end - begin), &code);
    ft__characters_add(list, code, (int32_t)begin, (int32_t)(begin + bytes));
    begin += bytes;
  }
  for (i = 0; i < normalizer->count && list->count > 0 && !list->failed; ++i) {
    ft__characters *swapped = list;
    other->count = 0;
    normalizer->steps[i].normalize(normalizer, &normalizer->steps[i], list, other);
    list = other;
    other = swapped;
  }
  return list;
}

/* =====================================================================================================================
   >>tokenizer objects: what a loaded tokenizer holds */

typedef struct ft__added_token { /* found in the text before anything else looks at it */
  char *content;
  size_t length;
  char *pattern; /* what is searched for: the content, normalised if `normalized` */
  size_t pattern_length;
  int32_t id;
  bool single_word;    /* no word character may touch it */
  bool lstrip, rstrip; /* takes the white space on that side with it */
  bool normalized;     /* searched for in the normalised text, else in the text as it is */
  bool special;
} ft__added_token;

typedef struct ft__matcher {      /* finds the longest of some patterns at a place */
  const ft__added_token **sorted; /* [count], by pattern */
  int64_t count;
  bool starts[256]; /* first bytes of patterns */
} ft__matcher;

/* What stands around the tokens of a text: special_ids[0 .. first), text, [first .. second), pair, [second .. count).
 */
typedef struct ft__template {
  int32_t *ids, *types; /* [count] */
  int64_t count, first, second;
  int32_t text_type, pair_type;
} ft__template;

typedef struct ft__merge {       /* of two pieces: rank in the list of merges, and what they become */
  int32_t left, right, rank, id; /* left -1: an empty slot */
} ft__merge;

typedef struct ft__loader ft__loader;

/* A kind of model: WordPiece, BPE, Unigram. */
typedef struct ft__model_kind {
  const char *type;
  const char *keys[10]; /* of "model" in tokenizer.json, NULL at the end */
  ft_status (*load)(ft__loader *loader, const ft_json *model);
  void (*word)(ft__encoder *encoder, const ft__character *word, int64_t count); /* appends the pieces of a word */
  bool (*prepare)(ft__loader *loader); /* sets tokenizer->fast where `fast` is right; false: an error */
  void (*fast)(ft__encoder *encoder, int64_t begin, int64_t end); /* the fast way through a stretch of text */
} ft__model_kind;

enum { FT__KEPT_FILES = 8, FT__ROLES = 7 };
static const char *const ft__kept_names[FT__KEPT_FILES] = {
    "tokenizer.json", "vocab.txt",  "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json",     "merges.txt", "spiece.model",          "sentencepiece.bpe.model"};
static const char *const ft__role_names[FT__ROLES] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                      "pad_token", "cls_token", "mask_token"};
enum { FT__ROLE_BOS, FT__ROLE_EOS, FT__ROLE_UNK, FT__ROLE_SEP, FT__ROLE_PAD, FT__ROLE_CLS, FT__ROLE_MASK };

struct ft_tokenizer {
  ft_context *owner;
  bool plain; /* use the plain way only */
  bool fast;  /* the model's fast way can be used */
  const ft__model_kind *model;
  ft__vocabulary vocabulary;
  ft__normalizer normalizer;
  ft__step *splits; /* [split_count]: the pre-tokenizer */
  int64_t split_count, split_capacity;
  char *prefix; /* of continuing pieces: "##" */
  size_t prefix_length;
  char *suffix; /* of a word's last character, BPE; NULL: none */
  int32_t unknown_id;
  int64_t longest_word; /* WordPiece: characters; a longer word is unknown */
  ft__merge *merges;    /* BPE: hash table [merge_mask + 1] */
  uint64_t merge_mask;
  bool ignore_merges, fuse_unknown, byte_fallback;
  int32_t byte_ids[256];   /* byte_fallback: of <0x00> ..; else, with bytes as characters, of each byte */
  double *scores;          /* [vocabulary.size]: Unigram: logarithms of probabilities */
  double unknown_score;    /* of a character that no piece holds */
  ft__vocabulary whole;    /* the fast way's: words, as they stand in the text, that are one piece, with its id */
  bool trims, trims_space; /* offsets leave out white space, but not what add_prefix_space added */
  ft__added_token *added;
  int64_t added_count, added_capacity;
  int64_t largest_added; /* id, or -1 */
  ft__matcher raw, normalized;
  ft__template single, pair;
  int32_t roles[FT__ROLES]; /* ids, or -1 */
  uint8_t *special;         /* [size] */
  int size;                 /* largest id of all + 1 */
  int max_length;
  uint8_t fold[256];  /* an ASCII byte that can only be part of a word, in lower case where wanted; else 0 */
  uint8_t ascii[256]; /* FT__WHITESPACE, FT__PUNCTUATION, 0 for the rest */
  int32_t punctuation_ids[128];
  uint8_t doubles[256]; /* Unigram: bytes that the normalizer treats as something else when they stand twice */
  struct {
    char *bytes; /* NULL: there was no such file */
    size_t size;
  } kept[FT__KEPT_FILES]; /* the files, for ft_tokenizer_save */
};

struct ft__encoder { /* one call of ft_tokenizer_encode */
  ft_context *context;
  const ft_tokenizer *tokenizer;
  ft_encoding *encoding;
  const char *text;
  int64_t length, first; /* bytes of the text; its first token */
  bool offsets, failed;
};

static bool ft__encoding_reserve(ft_context *context, ft_encoding *encoding, int64_t needed, bool offsets) {
  int64_t wanted = encoding->capacity, capacity;
  bool missing = offsets && (!encoding->begin || !encoding->end);
  if (!encoding->owner) encoding->owner = context;
  if (needed <= wanted && wanted > 0 && !missing) return true;
  if (needed > wanted) wanted += wanted / 2;
  if (wanted < needed) wanted = needed;
  if (wanted < 64) wanted = 64;
  offsets = offsets || encoding->begin;
  capacity = encoding->capacity;
  if (!ft__grow(encoding->owner, &encoding->ids, &capacity, wanted, sizeof(int32_t))) goto failed;
  capacity = encoding->capacity;
  if (!ft__grow(encoding->owner, &encoding->token_types, &capacity, wanted, sizeof(int32_t))) goto failed;
  capacity = encoding->begin ? encoding->capacity : 0;
  if (offsets && !ft__grow(encoding->owner, &encoding->begin, &capacity, wanted, sizeof(int32_t))) goto failed;
  capacity = encoding->end ? encoding->capacity : 0;
  if (offsets && !ft__grow(encoding->owner, &encoding->end, &capacity, wanted, sizeof(int32_t))) goto failed;
  encoding->capacity = wanted;
  return true;
failed:
  ft__error(context, FT_ERROR_MEMORY, "out of memory: %lld tokens", (long long)wanted);
  return false;
}

/* Moves *at over `count` characters of the encoder's text, by `step` 1 or -1; false: it has less. */
static bool ft__skip_characters(const ft__encoder *encoder, int64_t *at, int64_t count, int step) {
  int64_t i = *at;
  for (; count > 0; --count) {
    if (step > 0 ? i >= encoder->length : i <= 0) return false;
    do i += step;
    while (i > 0 && i < encoder->length && ((unsigned char)encoder->text[i] & 0xC0) == 0x80);
  }
  *at = i;
  return true;
}

/* Takes the spaces at either end of a token out of its offsets, counted in its piece. */
static void ft__trim(ft__encoder *encoder, int64_t token, const char *piece, size_t length) {
  const uint16_t *properties = encoder->tokenizer->normalizer.unicode.properties;
  int32_t *begin = &encoder->encoding->begin[token], *end = &encoder->encoding->end[token];
  int64_t leading = 0, trailing = 0, all = 0, moved;
  size_t at = 0;
  while (at < length) {
    uint32_t code;
    at += (size_t)ft__utf8_decode(piece + at, length - at, &code);
    trailing = code == 0x120 || properties[code] & FT__WHITESPACE ? trailing + 1 : 0;
    if (trailing == ++all) leading = all;
  }
  if (leading == 1 && encoder->tokenizer->trims_space && (token == encoder->first || *begin == 0)) leading = 0;
  moved = *begin;
  *begin = ft__skip_characters(encoder, &moved, leading, 1) && moved < *end ? (int32_t)moved : *end;
  moved = *end;
  if (ft__skip_characters(encoder, &moved, trailing, -1)) *end = moved > *begin ? (int32_t)moved : *begin;
}

static void ft__emit_plain(ft__encoder *encoder, int32_t id, int64_t begin, int64_t end) {
  ft_encoding *encoding = encoder->encoding;
  int64_t at = encoding->count;
  if (at == encoding->capacity && !ft__encoding_reserve(encoder->context, encoding, at + 1, encoder->offsets)) {
    encoder->failed = true;
    return;
  }
  encoding->ids[at] = id;
  if (encoder->offsets) {
    encoding->begin[at] = (int32_t)begin;
    encoding->end[at] = (int32_t)end;
  }
  encoding->count = at + 1;
}

/* A piece of the vocabulary. */
static void ft__emit(ft__encoder *encoder, int32_t id, int64_t begin, int64_t end) {
  const ft__vocabulary *vocabulary = &encoder->tokenizer->vocabulary;
  ft__emit_plain(encoder, id, begin, end);
  if (encoder->offsets && encoder->tokenizer->trims && !encoder->failed)
    ft__trim(encoder, encoder->encoding->count - 1, vocabulary->text + vocabulary->starts[id], vocabulary->lengths[id]);
}

/* An added token, which is text [begin, end) with the white space that it took along. */
static void ft__emit_added(ft__encoder *encoder, int32_t id, int64_t begin, int64_t end) {
  ft__emit_plain(encoder, id, begin, end);
  if (encoder->offsets && encoder->tokenizer->trims && !encoder->failed)
    ft__trim(encoder, encoder->encoding->count - 1, encoder->text + begin, (size_t)(end - begin));
}

typedef struct ft__span {    /* goes through a word piece by piece: bytes of UTF-8 to bytes of the text */
  const ft__character *word; /* [count], or NULL: ASCII at `base` of the text behind `lead` bytes that are not there */
  int64_t count, index;      /* a character of word */
  int64_t start;             /* the byte of the word where that starts */
  int64_t at;                /* the byte where the next piece starts */
  int64_t base, lead;
} ft__span;

static void ft__span_start(ft__span *span, const ft__character *word, int64_t count) {
  memset(span, 0, sizeof *span);
  span->word = word;
  span->count = count;
}

/* The bytes of the original text under the next `length` bytes of the word; whole characters. */
static void ft__span_take(ft__span *span, int64_t length, int64_t *begin, int64_t *end) {
  int64_t from = span->at, to = from + length;
  char scratch[4];
  int bytes;
  span->at = to;
  if (!span->word) {
    *begin = span->base + (from > span->lead ? from - span->lead : 0);
    *end = span->base + (to > span->lead ? to - span->lead : 1);
    return;
  }
  while (span->index + 1 < span->count &&
         span->start + (bytes = ft__utf8_encode(span->word[span->index].code, scratch)) <= from)
    span->start += bytes, ++span->index;
  *begin = span->word[span->index].begin;
  while (span->index + 1 < span->count &&
         span->start + (bytes = ft__utf8_encode(span->word[span->index].code, scratch)) < to)
    span->start += bytes, ++span->index;
  *end = span->word[span->index].end;
}

static void ft__emit_span(ft__encoder *encoder, ft__span *span, int32_t id, int64_t length) {
  int64_t begin = 0, end = 0;
  if (encoder->offsets) ft__span_take(span, length, &begin, &end);
  ft__emit(encoder, id, begin, end);
}

/* =====================================================================================================================
   >>wordpiece: the longest pieces first

       at = 0;  while at < |word|:  piece = the longest prefix of word[at ..] in the vocabulary, written "##" + prefix
       where at > 0;  at += |prefix|.    If there is none, or the word is too long, the whole word is one [UNK]. */

/* "##" (if continues) and the characters as UTF-8 to out [FT__LONGEST_PIECE]; the length, or 0 if there is no room. */
static size_t ft__piece_write(const ft_tokenizer *tokenizer, const ft__character *at, int64_t count, bool continues,
                              char *out) {
  size_t length = continues ? tokenizer->prefix_length : 0;
  int64_t i;
  memcpy(out, tokenizer->prefix, length);
  for (i = 0; i < count; ++i) {
    if (length + 4 > FT__LONGEST_PIECE + 4) return 0;
    length += (size_t)ft__utf8_encode(at[i].code, out + length);
  }
  return length <= FT__LONGEST_PIECE ? length : 0;
}

/* WordPiece as defined above: the plain twin of ft__word_pieces. */
static void ft__word_pieces_plain(ft__encoder *encoder, const ft__character *word, int64_t count) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  int64_t before = encoder->encoding->count, start, stop = 0;
  for (start = 0; start < count; start = stop) {
    char piece[FT__LONGEST_PIECE + 4];
    int32_t id = -1;
    for (stop = count; stop > start; --stop) {
      size_t length = ft__piece_write(tokenizer, word + start, stop - start, start > 0, piece);
      id = length ? ft__vocabulary_find(&tokenizer->vocabulary, piece, length) : -1;
      if (id >= 0) break;
    }
    if (id < 0) {
      encoder->encoding->count = before;
      ft__emit(encoder, tokenizer->unknown_id, word[0].begin, word[count - 1].end);
      return;
    }
    ft__emit(encoder, id, word[start].begin, word[stop - 1].end);
  }
}

/* The longest prefix of bytes [0, length) in a table: its id, or -1, and its length. Eight bytes behind may be read. */
static int32_t ft__longest_piece(const ft__vocabulary *vocabulary, const ft__piece_table *table, const char *bytes,
                                 size_t length, size_t *found) {
  uint64_t states[FT__LONGEST_PIECE / 8 + 1], first = ft__load_eight(bytes);
  size_t blocks, i;
  if (length > (size_t)table->longest) length = (size_t)table->longest;
  blocks = length / 8;
  states[0] = 0;
  for (i = 0; i < blocks; ++i) states[i + 1] = ft__hash_block(states[i], ft__load_eight(bytes + 8 * i));
  for (; length > 0; --length) {
    size_t full = length / 8, rest = length % 8;
    uint64_t mask = ((uint64_t)1 << (8 * rest)) - 1, tail = ft__load_eight(bytes + 8 * full) & mask;
    uint64_t hash = ft__hash_finish(states[full], tail, length);
    int32_t id;
    if (!(*ft__filter_byte(table, hash) & ft__filter_bit(hash))) continue;
    id = ft__slot_id(ft__piece_slot_find(vocabulary, table, bytes, length, full ? first : tail, hash));
    *found = length;
    if (id >= 0) return id;
  }
  return -1;
}

/* WordPiece over UTF-8 bytes [0, length), with eight more that may be read. Tokens' offsets are base + byte. */
static void ft__word_pieces(ft__encoder *encoder, const char *bytes, size_t length, int64_t base) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  const ft__vocabulary *vocabulary = &tokenizer->vocabulary;
  const ft__piece_table *table = &vocabulary->words;
  int64_t before = encoder->encoding->count;
  size_t start, found;
  for (start = 0; start < length; start += found, table = &vocabulary->continuations) {
    int32_t id = ft__longest_piece(vocabulary, table, bytes + start, length - start, &found);
    if (id < 0) {
      encoder->encoding->count = before;
      ft__emit(encoder, tokenizer->unknown_id, base, base + (int64_t)length);
      return;
    }
    ft__emit(encoder, id, base + (int64_t)start, base + (int64_t)(start + found));
  }
}

/* The same for a word of characters: as bytes, whose offsets are then turned into those of the characters. */
static void ft__word_pieces_of_characters(ft__encoder *encoder, const ft__character *word, int64_t count) {
  char bytes[FT__LONGEST_WORD * 4 + 8];
  ft_encoding *encoding = encoder->encoding;
  int64_t token = encoding->count, i = 0;
  size_t length = 0, at = 0;
  for (i = 0; i < count; ++i) length += (size_t)ft__utf8_encode(word[i].code, bytes + length);
  memset(bytes + length, 0, 8);
  ft__word_pieces(encoder, bytes, length, 0);
  if (!encoder->offsets || encoder->failed) return;
  for (i = 0; token < encoding->count; ++token) {
    encoding->begin[token] = word[i].begin;
    while (at < (size_t)encoding->end[token]) {
      char scratch[4];
      at += (size_t)ft__utf8_encode(word[i++].code, scratch);
    }
    encoding->end[token] = word[i - 1].end;
  }
}

static void ft__wordpiece_word(ft__encoder *encoder, const ft__character *word, int64_t count) {
  if (count > encoder->tokenizer->longest_word)
    ft__emit(encoder, encoder->tokenizer->unknown_id, word[0].begin, word[count - 1].end);
  else if (encoder->tokenizer->plain)
    ft__word_pieces_plain(encoder, word, count);
  else
    ft__word_pieces_of_characters(encoder, word, count);
}

/* =====================================================================================================================
   >>byte-pair encoding (Sennrich et al. 2016)

   A word starts as its characters. Of all neighbours in it that stand in the list of merges, those that come first in
   the list become one piece, the leftmost of equals first; and so on until there are none:

       while any pair (s_i, s_(i+1)) has a rank:  i = argmin rank;  s_i = s_i + s_(i+1);  drop s_(i+1)

   Byte-level BPE (GPT-2, RoBERTa) writes each byte of a word as one printable character first, so that 256 characters
   spell everything: 33 .. 126, 161 .. 172 and 174 .. 255 stand for themselves, the other 68 bytes are U+0100 .. U+0143
   in order; a space is U+0120. */

typedef struct ft__symbol {
  int32_t id, length; /* piece, and how many bytes of the word it covers; 0: gone */
  int32_t before, after;
} ft__symbol;

typedef struct ft__candidate { /* for a merge of the symbol at `at` with the one after it */
  int32_t rank, at, id;
} ft__candidate;

static uint32_t ft__byte_character(unsigned byte) {
  if (byte <= 32) return 0x100 + byte;
  if (byte >= 127 && byte <= 160) return 0x121 + byte - 127;
  return byte == 173 ? 0x143 : byte;
}

/* The byte that a character stands for, or -1. */
static int ft__character_byte(uint32_t code) {
  if (code >= 0x100 && code <= 0x120) return (int)code - 0x100;
  if (code >= 0x121 && code <= 0x142) return (int)code - 0x121 + 127;
  if (code == 0x143) return 173;
  return code < 256 && code > 32 && !(code >= 127 && code <= 160) && code != 173 ? (int)code : -1;
}

static uint64_t ft__merge_hash(int32_t left, int32_t right) {
  uint64_t key = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
  return key ^ key >> 32;
}

/* The merge of two pieces, or the empty slot where it belongs; NULL after too many steps. */
static ft__merge *ft__merge_slot(const ft_tokenizer *tokenizer, int32_t left, int32_t right) {
  uint64_t at = ft__merge_hash(left, right) & tokenizer->merge_mask;
  int steps;
  for (steps = 0; steps < FT__LONGEST_PROBE; ++steps, at = (at + 1) & tokenizer->merge_mask) {
    ft__merge *slot = &tokenizer->merges[at];
    if (slot->left < 0 || (slot->left == left && slot->right == right)) return slot;
  }
  return NULL;
}

static const ft__merge *ft__merge_find(const ft_tokenizer *tokenizer, int32_t left, int32_t right) {
  const ft__merge *slot = ft__merge_slot(tokenizer, left, right);
  return slot && slot->left >= 0 ? slot : NULL;
}

/* The definition, for short words and for the plain way: returns how many symbols are left, at the front. */
static int64_t ft__merge_scan(const ft_tokenizer *tokenizer, ft__symbol *symbols, int64_t count) {
  for (;;) {
    int64_t best = -1, i;
    int32_t rank = INT32_MAX, id = 0;
    for (i = 0; i + 1 < count; ++i) {
      const ft__merge *merge;
      if (symbols[i].after == INT32_MIN) { /* not looked up yet; `before` and `after` keep rank and result here */
        merge = ft__merge_find(tokenizer, symbols[i].id, symbols[i + 1].id);
        symbols[i].before = merge ? merge->rank : INT32_MAX;
        symbols[i].after = merge ? merge->id : -1;
      }
      if (symbols[i].before < rank) best = i, rank = symbols[i].before, id = symbols[i].after;
    }
    if (best < 0) return count;
    symbols[best].id = id;
    symbols[best].length += symbols[best + 1].length;
    symbols[best].after = INT32_MIN;
    if (best > 0) symbols[best - 1].after = INT32_MIN;
    --count;
    memmove(symbols + best + 1, symbols + best + 2, (size_t)(count - best - 1) * sizeof *symbols);
  }
}

static bool ft__candidate_before(const ft__candidate *a, const ft__candidate *b) {
  return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void ft__candidate_push(const ft_tokenizer *tokenizer, const ft__symbol *symbols, ft__candidate *heap,
                               int64_t *count, int32_t left) {
  const ft__merge *merge = ft__merge_find(tokenizer, symbols[left].id, symbols[symbols[left].after].id);
  ft__candidate added;
  int64_t at = (*count)++;
  if (!merge) {
    --*count;
    return;
  }
  added.rank = merge->rank, added.at = left, added.id = merge->id;
  for (; at > 0 && ft__candidate_before(&added, &heap[(at - 1) / 2]); at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
  heap[at] = added;
}

static ft__candidate ft__candidate_pop(ft__candidate *heap, int64_t *count) {
  ft__candidate top = heap[0], last = heap[--*count];
  int64_t at = 0, child;
  while ((child = 2 * at + 1) < *count) {
    if (child + 1 < *count && ft__candidate_before(&heap[child + 1], &heap[child])) ++child;
    if (!ft__candidate_before(&heap[child], &last)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = last;
  return top;
}

/* The same with a heap [3 * count] of pairs, for words of any length. A merge makes two new pairs; pairs that are no
   more are told by what they would become. */
static int64_t ft__merge_heap(const ft_tokenizer *tokenizer, ft__symbol *symbols, int64_t count, ft__candidate *heap) {
  int64_t candidates = 0, kept = 0, i;
  for (i = 0; i < count; ++i) {
    symbols[i].before = (int32_t)i - 1;
    symbols[i].after = i + 1 < count ? (int32_t)i + 1 : -1;
  }
  for (i = 0; i + 1 < count; ++i) ft__candidate_push(tokenizer, symbols, heap, &candidates, (int32_t)i);
  while (candidates > 0) {
    ft__candidate top = ft__candidate_pop(heap, &candidates);
    ft__symbol *left = &symbols[top.at], *right;
    const ft__merge *merge;
    if (left->length == 0 || left->after < 0) continue;
    right = &symbols[left->after];
    merge = ft__merge_find(tokenizer, left->id, right->id);
    if (!merge || merge->id != top.id) continue;
    left->id = top.id;
    left->length += right->length;
    left->after = right->after;
    right->length = 0;
    if (left->after >= 0) symbols[left->after].before = top.at;
    if (left->before >= 0) ft__candidate_push(tokenizer, symbols, heap, &candidates, left->before);
    if (left->after >= 0) ft__candidate_push(tokenizer, symbols, heap, &candidates, top.at);
  }
  for (i = 0; i < count; ++i)
    if (symbols[i].length) symbols[kept++] = symbols[i];
  return kept;
}

enum { FT__SCANNED_WORD = 32 };

/* Merges symbols [count], ids and lengths given; returns how many are left, or -1: out of memory. */
static int64_t ft__merge_symbols(ft__encoder *encoder, ft__symbol *symbols, int64_t count) {
  ft__candidate *heap;
  int64_t i;
  if (encoder->tokenizer->plain || count <= FT__SCANNED_WORD) {
    for (i = 0; i < count; ++i) symbols[i].after = INT32_MIN;
    return ft__merge_scan(encoder->tokenizer, symbols, count);
  }
  heap = (ft__candidate *)ft__allocate(encoder->context, ft__size_product((size_t)count, 3 * sizeof *heap));
  if (!heap) return -1;
  count = ft__merge_heap(encoder->tokenizer, symbols, count, heap);
  ft__release(encoder->context, heap);
  return count;
}

static int64_t ft__symbol_add(ft__symbol *symbols, int64_t count, int32_t id, int64_t length) {
  symbols[count].id = id;
  symbols[count].length = (int32_t)length;
  return count + 1;
}

/* A word's symbols [at most 4 * count]: its characters, those that are no piece as bytes or as unknown. Unknown ones
   wait, so that they can fuse, and bytes overtake them: as in the reference. Without an unknown token they vanish. */
static int64_t ft__word_symbols(const ft_tokenizer *tokenizer, const ft__character *word, int64_t count,
                                ft__symbol *symbols) {
  int64_t made = 0, unknown = 0, i, k;
  for (i = 0; i < count; ++i) {
    char piece[2 * FT__LONGEST_PIECE + 8];
    size_t start = i > 0 ? tokenizer->prefix_length : 0, length = start;
    int64_t bytes;
    int32_t id;
    memcpy(piece, tokenizer->prefix, start);
    bytes = ft__utf8_encode(word[i].code, piece + start);
    length += (size_t)bytes;
    if (i + 1 == count && tokenizer->suffix) {
      memcpy(piece + length, tokenizer->suffix, strlen(tokenizer->suffix));
      length += strlen(tokenizer->suffix);
    }
    id = ft__vocabulary_find(&tokenizer->vocabulary, piece, length);
    if (id >= 0) {
      if (unknown) made = ft__symbol_add(symbols, made, tokenizer->unknown_id, unknown);
      unknown = 0;
      made = ft__symbol_add(symbols, made, id, bytes);
      continue;
    }
    for (k = 0; tokenizer->byte_fallback && k < (int64_t)length; ++k)
      if (tokenizer->byte_ids[(unsigned char)piece[k]] < 0) break;
    if (tokenizer->byte_fallback && k == (int64_t)length) {
      for (k = 0; k < (int64_t)length; ++k)
        made = ft__symbol_add(symbols, made, tokenizer->byte_ids[(unsigned char)piece[k]], 1);
    } else if (tokenizer->unknown_id >= 0) {
      if (unknown && !tokenizer->fuse_unknown) {
        made = ft__symbol_add(symbols, made, tokenizer->unknown_id, unknown);
        unknown = 0;
      }
      unknown += bytes;
    }
  }
  if (unknown) made = ft__symbol_add(symbols, made, tokenizer->unknown_id, unknown);
  return made;
}

/* The plain way for a word. */
static void ft__bpe_word(ft__encoder *encoder, const ft__character *word, int64_t count) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  char piece[FT__LONGEST_PIECE + 4];
  size_t length = tokenizer->ignore_merges ? ft__piece_write(tokenizer, word, count, false, piece) : 0;
  int32_t id = length ? ft__vocabulary_find(&tokenizer->vocabulary, piece, length) : -1;
  ft__symbol *symbols;
  ft__span span;
  int64_t made, i;
  if (id >= 0) {
    ft__emit(encoder, id, word[0].begin, word[count - 1].end);
    return;
  }
  symbols = (ft__symbol *)ft__allocate(
      encoder->context, ft__size_product((size_t)count, (tokenizer->byte_fallback ? 4 : 1) * sizeof *symbols));
  made = symbols ? ft__merge_symbols(encoder, symbols, ft__word_symbols(tokenizer, word, count, symbols)) : -1;
  if (made < 0) encoder->failed = true;
  ft__span_start(&span, word, count);
  for (i = 0; i < made; ++i) ft__emit_span(encoder, &span, symbols[i].id, symbols[i].length);
  ft__release(encoder->context, symbols);
}

/* Where the next word of UTF-8 text [at, end) ends, by the expression of GPT-2:

       's|'t|'re|'ve|'m|'ll|'d | ?\p{L}+ | ?\p{N}+ | ?[^\s\p{L}\p{N}]+ | \s+(?!\S) | \s+

   So white space before a word is a word of its own but for its last character, which joins the word if it is a space.
   *broken: whether U+FFFD, or bytes that stand for it, were seen. */
static int64_t ft__byte_word_end(const uint16_t *properties, const char *text, int64_t at, int64_t end, bool *broken) {
  int64_t start = at, last = at;
  int kind = -1;
  if (text[at] == '\'' && at + 1 < end) {
    char a = text[at + 1], b = at + 2 < end ? text[at + 2] : 0;
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return at + 2;
    if ((b == 'e' && (a == 'r' || a == 'v')) || (a == 'l' && b == 'l')) return at + 3;
  }
  if (text[at] == ' ' && at + 1 < end) ++at;
  while (at < end) {
    uint32_t code = (unsigned char)text[at];
    int bytes = code < 0x80 ? 1 : ft__utf8_decode(text + at, (size_t)(end - at), &code);
    int here = properties[code] & (FT__LETTER | FT__NUMBER | FT__WHITESPACE);
    if (kind >= 0 && here != kind) break;
    if (code == 0xFFFD) *broken = true;
    kind = here;
    last = at;
    at += bytes;
  }
  return kind == FT__WHITESPACE && at < end && last > start ? last : at;
}

enum { FT__SHORT_WORD = 64 };

/* A word [begin, end) of the text that is no single piece, or in which something is not UTF-8. */
static void ft__byte_word(ft__encoder *encoder, int64_t begin, int64_t end, bool broken) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  const char *text = encoder->text;
  ft__symbol room[FT__SHORT_WORD];
  int64_t count = end - begin, i;
  if (broken || count > FT__SHORT_WORD) {
    ft__characters characters;
    ft__characters_start(&characters, encoder->context);
    while (begin < end && !characters.failed) {
      uint32_t code;
      int bytes = ft__utf8_decode(text + begin, (size_t)(end - begin), &code), k, written;
      char utf8[4];
      written = ft__utf8_encode(code, utf8);
      for (k = 0; k < written; ++k)
        ft__characters_add(&characters, ft__byte_character((unsigned char)utf8[k]), (int32_t)begin,
                           (int32_t)(begin + bytes));
      begin += bytes;
    }
    if (characters.failed)
      encoder->failed = true;
    else
      ft__bpe_word(encoder, characters.at, characters.count);
    ft__characters_free(&characters);
    return;
  }
  for (i = 0; i < count; ++i) ft__symbol_add(room, i, tokenizer->byte_ids[(unsigned char)text[begin + i]], 1);
  count = ft__merge_symbols(encoder, room, count);
  if (count < 0) encoder->failed = true;
  for (i = 0; i < count; begin += room[i++].length) { /* a token that ends within a character has all of its bytes */
    int64_t from = begin, to = begin + room[i].length;
    while (((unsigned char)text[from] & 0xC0) == 0x80) --from;
    while (to < end && ((unsigned char)text[to] & 0xC0) == 0x80) ++to;
    ft__emit(encoder, room[i].id, from, to);
  }
}

/* The fast way of byte-level BPE: most words are one piece, and found by their bytes. */
static void ft__bpe_fast(ft__encoder *encoder, int64_t begin, int64_t end) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  const char *text = encoder->text;
  while (begin < end && !encoder->failed) {
    bool broken = false;
    int64_t stop = ft__byte_word_end(tokenizer->normalizer.unicode.properties, text, begin, end, &broken);
    int32_t id = broken ? -1
                        : ft__vocabulary_find_word(&tokenizer->whole, text + begin, (size_t)(stop - begin),
                                                   (size_t)(encoder->length - begin));
    if (id >= 0)
      ft__emit(encoder, id, begin, stop);
    else
      ft__byte_word(encoder, begin, stop, broken);
    begin = stop;
  }
}

/* =====================================================================================================================
   >>unigram (Kudo 2018): the most probable pieces

   Every piece has a score, the logarithm of its probability. A word becomes the pieces that spell it with the greatest
   sum (Viterbi):

       best[0] = 0;  best[j] = max over pieces word[i .. j) of best[i] + score(piece);  equal sums: the smaller i

   A character that is no piece by itself may be unknown, for ten less than the lowest score of all. Unknown neighbours
   become one token. */

typedef struct ft__path { /* the best way to a place of a word */
  double score;
  int32_t from, id; /* where its last piece starts (-1: not reached), and which it is */
  int32_t to;       /* where the next piece ends, once the best way is known */
} ft__path;

/* Extends the paths through byte `start` by all pieces that start there; character: the bytes of that character. */
static void ft__paths_extend(const ft_tokenizer *tokenizer, const char *bytes, int64_t start, int64_t length,
                             int64_t character, ft__path *paths) {
  const ft__vocabulary *vocabulary = &tokenizer->vocabulary;
  const ft__piece_table *table = &vocabulary->words;
  int64_t most = length - start < table->longest ? length - start : table->longest, n;
  uint64_t state = 0, rest = 0, head = 0;
  double here = paths[start].score, sum;
  bool single = false;
  for (n = 1; n <= most || n <= character; ++n) {
    int32_t id = -1;
    rest |= (uint64_t)(unsigned char)bytes[start + n - 1] << (8 * ((n - 1) % 8));
    if (n <= 8) head = rest;
    if (n % 8 == 0) state = ft__hash_block(state, rest), rest = 0;
    if (n < character || (start + n < length && ((unsigned char)bytes[start + n] & 0xC0) == 0x80)) continue;
    if (n <= most) {
      uint64_t hash = ft__hash_finish(state, rest, (size_t)n);
      if (*ft__filter_byte(table, hash) & ft__filter_bit(hash))
        id = ft__slot_id(ft__piece_slot_find(vocabulary, table, bytes + start, (size_t)n, head, hash));
    }
    if (id < 0) continue;
    sum = here + tokenizer->scores[id];
    if (n == character) single = true;
    if (paths[start + n].from >= 0 && !(sum > paths[start + n].score)) continue;
    paths[start + n].score = sum;
    paths[start + n].from = (int32_t)start;
    paths[start + n].id = id;
  }
  sum = here + tokenizer->unknown_score;
  if (single || (paths[start + character].from >= 0 && !(sum > paths[start + character].score))) return;
  paths[start + character].score = sum;
  paths[start + character].from = (int32_t)start;
  paths[start + character].id = tokenizer->unknown_id;
}

/* What is unknown: with byte_fallback a token for each byte, if all of these exist. */
static void ft__emit_unknown(ft__encoder *encoder, ft__span *span, const char *bytes, int64_t length) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  int32_t id =
      ft__vocabulary_find(&tokenizer->vocabulary, bytes, (size_t)length); /* fused, it may be a piece after all */
  int64_t begin = 0, end = 0, i = 0;
  if (encoder->offsets) ft__span_take(span, length, &begin, &end);
  if (id < 0 && tokenizer->byte_fallback)
    while (i < length && tokenizer->byte_ids[(unsigned char)bytes[i]] >= 0) ++i;
  if (id >= 0 || i < length) {
    ft__emit(encoder, id >= 0 ? id : tokenizer->unknown_id, begin, end);
    return;
  }
  for (i = 0; i < length; ++i) ft__emit(encoder, tokenizer->byte_ids[(unsigned char)bytes[i]], begin, end);
}

/* A word as bytes of UTF-8 [length], with paths [length + 1] to work in. */
static void ft__unigram_bytes(ft__encoder *encoder, ft__span *span, const char *bytes, int64_t length,
                              ft__path *paths) {
  int64_t at, stop;
  for (at = 0; at <= length; ++at) paths[at].from = -1;
  paths[0].score = 0;
  for (at = 0; at < length; at = stop) {
    for (stop = at + 1; stop < length && ((unsigned char)bytes[stop] & 0xC0) == 0x80;) ++stop;
    ft__paths_extend(encoder->tokenizer, bytes, at, length, stop - at, paths);
  }
  for (at = length; at > 0; at = paths[at].from) paths[paths[at].from].to = (int32_t)at;
  for (at = 0; at < length && !encoder->failed; at = stop) {
    stop = paths[at].to;
    if (paths[stop].id != encoder->tokenizer->unknown_id) {
      ft__emit_span(encoder, span, paths[stop].id, stop - at);
      continue;
    }
    while (stop < length && paths[paths[stop].to].id == encoder->tokenizer->unknown_id) stop = paths[stop].to;
    ft__emit_unknown(encoder, span, bytes + at, stop - at);
  }
}

static void ft__unigram_word(ft__encoder *encoder, const ft__character *word, int64_t count) {
  char room[FT__ROOM] = "", *bytes = room;
  ft__path paths_room[FT__ROOM + 1], *paths = paths_room;
  int64_t length = 0, i;
  ft__span span;
  if (count > FT__ROOM / 4) {
    bytes = (char *)ft__allocate(encoder->context, ft__size_product((size_t)count, 4));
    paths = (ft__path *)ft__allocate(encoder->context, ft__size_product((size_t)count * 4 + 1, sizeof *paths));
  }
  if (bytes && paths) {
    for (i = 0; i < count; ++i) length += ft__utf8_encode(word[i].code, bytes + length);
    ft__span_start(&span, word, count);
    ft__unigram_bytes(encoder, &span, bytes, length, paths);
  } else {
    encoder->failed = true;
  }
  if (bytes != room) ft__release(encoder->context, bytes);
  if (paths != paths_room) ft__release(encoder->context, paths);
}

/* =====================================================================================================================
   >>pre-tokenizers: text to words

   Each step cuts characters into parts, for some of which it writes new characters, and hands every part to the next
   step; what comes out of the last is a word for the model. Empty parts are dropped. */

static void ft__split_next(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  if (count == 0 || encoder->failed) return;
  if (step + 1 < tokenizer->split_count)
    tokenizer->splits[step + 1].split(encoder, step + 1, at, count);
  else
    tokenizer->model->word(encoder, at, count);
}

/* Parts between characters with a property; a character with one of `alone` is a part of its own. */
static void ft__split_properties(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count,
                                 int dropped, int alone) {
  const uint16_t *properties = encoder->tokenizer->normalizer.unicode.properties;
  int64_t start = 0, i;
  for (i = 0; i < count; ++i) {
    int property = properties[at[i].code];
    if (!(property & (dropped | alone))) continue;
    ft__split_next(encoder, step, at + start, i - start);
    if (property & alone) ft__split_next(encoder, step, at + i, 1);
    start = i + 1;
  }
  ft__split_next(encoder, step, at + start, count - start);
}

static void ft__split_bert(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  ft__split_properties(encoder, step, at, count, FT__WHITESPACE, FT__PUNCTUATION);
}

static void ft__split_white_space(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  ft__split_properties(encoder, step, at, count, FT__WHITESPACE, 0);
}

static void ft__split_punctuation(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  ft__split_properties(encoder, step, at, count, 0, FT__PUNCTUATION);
}

/* Whitespace: \w+|[^\w\s]+ */
static void ft__split_words(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  const uint16_t *properties = encoder->tokenizer->normalizer.unicode.properties;
  int64_t start = 0, i;
  int kind = 0;
  for (i = 0; i < count; ++i) {
    int property = properties[at[i].code];
    int here = property & FT__WORD ? FT__WORD : property & FT__WHITESPACE;
    if (i > 0 && here == kind) continue;
    if (kind != FT__WHITESPACE) ft__split_next(encoder, step, at + start, i - start);
    start = i;
    kind = here;
  }
  if (kind != FT__WHITESPACE) ft__split_next(encoder, step, at + start, count - start);
}

enum { FT__PREPEND_ALWAYS, FT__PREPEND_FIRST, FT__PREPEND_NEVER };

/* Metaspace: pattern[0] stands for each space, and before the text (pattern[1]: when); flag 0: parts start at it. */
static void ft__split_metaspace(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  const ft__step *settings = &encoder->tokenizer->splits[step];
  uint32_t mark = settings->pattern[0], when = settings->pattern[1];
  bool starts = at[0].code == mark || at[0].code == ' ';
  ft__characters list;
  int64_t start = 0, i;
  ft__characters_start(&list, encoder->context);
  if (!starts && (when == FT__PREPEND_ALWAYS || (when == FT__PREPEND_FIRST && at[0].begin == 0)))
    ft__characters_add(&list, mark, at[0].begin, at[0].end);
  for (i = 0; i < count; ++i) ft__characters_add(&list, at[i].code == ' ' ? mark : at[i].code, at[i].begin, at[i].end);
  if (list.failed) encoder->failed = true;
  for (i = 1; i < list.count && settings->flags[0]; ++i)
    if (list.at[i].code == mark) {
      ft__split_next(encoder, step, list.at + start, i - start);
      start = i;
    }
  ft__split_next(encoder, step, list.at + start, list.count - start);
  ft__characters_free(&list);
}

/* ft__byte_word_end for characters. */
static int64_t ft__byte_word_length(const uint16_t *properties, const ft__character *at, int64_t count) {
  static const int kinds = FT__LETTER | FT__NUMBER | FT__WHITESPACE;
  uint32_t a = count > 1 ? at[1].code : 0, b = count > 2 ? at[2].code : 0;
  int64_t i = at[0].code == ' ' && count > 1 && !(properties[a] & FT__WHITESPACE);
  int kind = properties[at[i].code] & kinds;
  if (at[0].code == '\'') {
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if ((b == 'e' && (a == 'r' || a == 'v')) || (a == 'l' && b == 'l')) return 3;
  }
  while (i < count && (properties[at[i].code] & kinds) == kind) ++i;
  return kind == FT__WHITESPACE && i > 1 && i < count ? i - 1 : i;
}

/* ByteLevel: flag 0: a space before text that does not start with one; flag 1: words by the expression; then a
   character for each byte. */
static void ft__split_bytes(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  const ft__step *settings = &tokenizer->splits[step];
  ft__characters list, bytes;
  int64_t start, length, i;
  ft__characters_start(&list, encoder->context);
  ft__characters_start(&bytes, encoder->context);
  if (settings->flags[0] && at[0].code != ' ') ft__characters_add(&list, ' ', at[0].begin, at[0].end);
  for (i = 0; i < count; ++i) ft__characters_copy(&list, &at[i]);
  for (start = 0; start < list.count && !list.failed; start += length) {
    length = list.count - start;
    if (settings->flags[1])
      length = ft__byte_word_length(tokenizer->normalizer.unicode.properties, list.at + start, length);
    bytes.count = 0;
    for (i = start; i < start + length; ++i) {
      char utf8[4];
      int written = ft__utf8_encode(list.at[i].code, utf8), k;
      for (k = 0; k < written; ++k)
        ft__characters_add(&bytes, ft__byte_character((unsigned char)utf8[k]), list.at[i].begin, list.at[i].end);
    }
    if (bytes.failed) break;
    ft__split_next(encoder, step, bytes.at, bytes.count);
  }
  if (list.failed || bytes.failed) encoder->failed = true;
  ft__characters_free(&bytes);
  ft__characters_free(&list);
}

/* =====================================================================================================================
   >>added tokens: leftmost, and longest of those that start there */

static int ft__pattern_compare(const void *a, const void *b) {
  const ft__added_token *x = *(const ft__added_token *const *)a, *y = *(const ft__added_token *const *)b;
  size_t common = x->pattern_length < y->pattern_length ? x->pattern_length : y->pattern_length;
  int order = memcmp(x->pattern, y->pattern, common);
  if (order) return order;
  if (x->pattern_length != y->pattern_length) return x->pattern_length < y->pattern_length ? -1 : 1;
  if (x->special != y->special) return x->special ? -1 : 1; /* equal patterns: the first of these is found */
  return x < y ? -1 : x > y;
}

static bool ft__matcher_build(ft_tokenizer *tokenizer, ft__matcher *matcher, bool normalized) {
  int64_t i;
  size_t room = (size_t)tokenizer->added_count * sizeof *matcher->sorted;
  matcher->sorted = (const ft__added_token **)ft__allocate(tokenizer->owner, room);
  if (!matcher->sorted) return false;
  for (i = 0; i < tokenizer->added_count; ++i) {
    const ft__added_token *token = &tokenizer->added[i];
    if (token->normalized != normalized || token->pattern_length == 0) continue;
    matcher->sorted[matcher->count++] = token;
    matcher->starts[(unsigned char)token->pattern[0]] = true;
  }
  if (matcher->count) qsort(matcher->sorted, (size_t)matcher->count, sizeof *matcher->sorted, ft__pattern_compare);
  return true;
}

/* The longest pattern that starts at text [0, length), or NULL. Patterns [low, high) agree with the text so far. */
static const ft__added_token *ft__matcher_at(const ft__matcher *matcher, const char *text, size_t length) {
  const ft__added_token *best = NULL;
  int64_t low = 0, high = matcher->count;
  size_t depth;
  for (depth = 0; low < high; ++depth) {
    int side;
    int64_t bounds[2];
    if (matcher->sorted[low]->pattern_length == depth) best = matcher->sorted[low];
    while (low < high && matcher->sorted[low]->pattern_length == depth) ++low;
    if (depth == length) break;
    for (side = 0; side < 2; ++side) { /* where the byte starts, and where it ends, in the sorted column `depth` */
      int wanted = (unsigned char)text[depth] + side;
      int64_t from = low, to = high;
      while (from < to) {
        int64_t middle = (from + to) / 2;
        if ((unsigned char)matcher->sorted[middle]->pattern[depth] < wanted)
          from = middle + 1;
        else
          to = middle;
      }
      bounds[side] = from;
    }
    low = bounds[0];
    high = bounds[1];
  }
  return best;
}

/* Goes through a text from match to match. */
typedef struct ft__splitter {
  const ft__matcher *matcher;
  const uint16_t *properties;
  const char *text;
  int64_t length;
  int64_t searched;               /* no further match begins before */
  int64_t done;                   /* end of the last match, white space included */
  int64_t space_begin, space_end; /* a stretch known to be white space: none is walked twice */
} ft__splitter;

static int ft__property_before(const ft__splitter *splitter, int64_t at, int64_t *begin) {
  int bytes;
  uint32_t code;
  for (bytes = 1; bytes < 4 && bytes < at; ++bytes)
    if (((unsigned char)splitter->text[at - bytes] & 0xC0) != 0x80) break;
  if (ft__utf8_decode(splitter->text + at - bytes, (size_t)bytes, &code) != bytes) code = 0xFFFD, bytes = 1;
  *begin = at - bytes;
  return splitter->properties[code];
}

static int ft__property_after(const ft__splitter *splitter, int64_t at, int64_t *end) {
  uint32_t code;
  *end = at + ft__utf8_decode(splitter->text + at, (size_t)(splitter->length - at), &code);
  return splitter->properties[code];
}

static int64_t ft__skip_space(ft__splitter *splitter, int64_t at) {
  int64_t end;
  if (at >= splitter->space_begin && at <= splitter->space_end) return splitter->space_end;
  splitter->space_begin = at;
  while (at < splitter->length && ft__property_after(splitter, at, &end) & FT__WHITESPACE) at = end;
  splitter->space_end = at;
  return at;
}

/* The next match [begin, end), white space that it takes along included; NULL at the end of the text. */
static const ft__added_token *ft__splitter_next(ft__splitter *splitter, int64_t *begin, int64_t *end) {
  while (splitter->searched < splitter->length) {
    int64_t at = splitter->searched, unused, before;
    const ft__added_token *token = NULL;
    if (splitter->matcher->starts[(unsigned char)splitter->text[at]])
      token = ft__matcher_at(splitter->matcher, splitter->text + at, (size_t)(splitter->length - at));
    splitter->searched = token ? at + (int64_t)token->pattern_length : at + 1;
    if (!token) continue;
    *begin = at;
    *end = splitter->searched;
    if (token->single_word && ((at > 0 && ft__property_before(splitter, at, &unused) & FT__WORD) ||
                               (*end < splitter->length && ft__property_after(splitter, *end, &unused) & FT__WORD)))
      continue;
    if (token->lstrip) {
      while (*begin > splitter->done && ft__property_before(splitter, *begin, &before) & FT__WHITESPACE)
        *begin = before;
      if (*begin < splitter->done) *begin = splitter->done;
    }
    if (token->rstrip) *end = ft__skip_space(splitter, *end);
    return token;
  }
  return NULL;
}

static void ft__splitter_start(ft__splitter *splitter, const ft_tokenizer *tokenizer, const ft__matcher *matcher,
                               const char *text, int64_t length) {
  splitter->matcher = matcher;
  splitter->properties = tokenizer->normalizer.unicode.properties;
  splitter->text = text;
  splitter->length = length;
  splitter->searched = splitter->done = 0;
  splitter->space_begin = 0, splitter->space_end = -1;
}

/* Characters, between added tokens that are searched for in normalised text. */
static void ft__split_normalized(ft__encoder *encoder, const ft__character *at, int64_t count) {
  ft_context *context = encoder->context;
  ft__splitter splitter;
  const ft__added_token *token;
  int64_t begin, end, length = 0, i;
  char *text = (char *)ft__allocate(context, (size_t)count * 4);
  int32_t *index = (int32_t *)ft__allocate(context, ((size_t)count * 4 + 1) * sizeof *index); /* byte to character */
  for (i = 0; i < count && text && index; ++i) {
    int bytes = ft__utf8_encode(at[i].code, text + length);
    while (bytes-- > 0) index[length++] = (int32_t)i;
  }
  if (text && index) {
    index[length] = (int32_t)count;
    ft__splitter_start(&splitter, encoder->tokenizer, &encoder->tokenizer->normalized, text, length);
    while ((token = ft__splitter_next(&splitter, &begin, &end)) != NULL) {
      int64_t from = index[splitter.done], to = index[begin];
      ft__split_next(encoder, -1, at + from, to - from);
      ft__emit_added(encoder, token->id, at[to].begin, at[index[end] - 1].end);
      splitter.done = end;
    }
    ft__split_next(encoder, -1, at + index[splitter.done], count - index[splitter.done]);
  } else {
    encoder->failed = true;
  }
  ft__release(context, index);
  ft__release(context, text);
}

/* =====================================================================================================================
   >>encoding texts */

/* The plain way for bytes [begin, end) of the text. */
static void ft__encode_plain(ft__encoder *encoder, int64_t begin, int64_t end) {
  ft__characters first, second, *result;
  ft__characters_start(&first, encoder->context);
  ft__characters_start(&second, encoder->context);
  result = ft__normalize(&encoder->tokenizer->normalizer, encoder->text, begin, end, &first, &second);
  if (first.failed || second.failed)
    encoder->failed = true;
  else if (encoder->tokenizer->normalized.count)
    ft__split_normalized(encoder, result->at, result->count);
  else
    ft__split_next(encoder, -1, result->at, result->count);
  ft__characters_free(&first);
  ft__characters_free(&second);
}

/* The end of a stretch that can be normalised by itself: the next place before a character that ends words. Such
   characters are starters, so no mark changes places across it. */
static int64_t ft__stretch_end(const ft_tokenizer *tokenizer, const char *text, int64_t begin, int64_t end) {
  int separators = FT__WHITESPACE | FT__PUNCTUATION | (tokenizer->normalizer.chinese ? FT__CHINESE : 0);
  int64_t at = begin;
  while (at < end) {
    uint32_t code;
    int bytes = ft__utf8_decode(text + at, (size_t)(end - at), &code);
    int property = tokenizer->normalizer.unicode.properties[code];
    bool deleted = tokenizer->normalizer.clean_text && property & FT__DELETED;
    if (at > begin && property & separators && !deleted) break;
    at += bytes;
  }
  return at;
}

/* The fast way of WordPiece: words of plain ASCII without further ado, stretches around anything else by the plain
   one. */
static void ft__wordpiece_fast(ft__encoder *encoder, int64_t begin, int64_t end) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  const uint8_t *fold = tokenizer->fold, *text = (const uint8_t *)encoder->text;
  int64_t at = begin;
  while (at < end && !encoder->failed) {
    char word[FT__SHORT_WORD + 8];
    int64_t start = at, length = 0;
    if (tokenizer->ascii[text[at]] == FT__WHITESPACE) {
      ++at;
      continue;
    }
    if (tokenizer->ascii[text[at]] == FT__PUNCTUATION) {
      ft__emit(encoder, tokenizer->punctuation_ids[text[at]], at, at + 1);
      ++at;
      continue;
    }
    while (at < end && length < FT__SHORT_WORD && fold[text[at]]) word[length++] = (char)fold[text[at++]];
    if (at < end && (length == FT__SHORT_WORD || !tokenizer->ascii[text[at]])) {
      at = ft__stretch_end(tokenizer, encoder->text, start, end);
      ft__encode_plain(encoder, start, at);
    } else if (length > tokenizer->longest_word) {
      ft__emit(encoder, tokenizer->unknown_id, start, at);
    } else {
      memset(word + length, 0, 8);
      ft__word_pieces(encoder, word, (size_t)length, start);
    }
  }
}

/* Whether what stands before white space text[at] and what follows it can be normalised apart: all about it is ASCII,
   or what follows does not join it. */
static bool ft__is_border(const ft_tokenizer *tokenizer, const char *text, int64_t at, int64_t end) {
  uint32_t code;
  int property;
  if (tokenizer->ascii[(unsigned char)text[at]] != FT__WHITESPACE || (unsigned char)text[at - 1] >= 0x80) return false;
  if (at + 1 == end || (unsigned char)text[at + 1] < 0x80) return true;
  ft__utf8_decode(text + at + 1, (size_t)(end - at - 1), &code);
  property = tokenizer->normalizer.unicode.properties[code];
  return property / FT__GRAPHEME == FT__GRAPHEME_OTHER && !(property & (FT__MARK | FT__ACCENT));
}

/* Whether normalising text [begin, end) makes the books wrong for all that follows. */
static bool ft__forgets(ft__encoder *encoder, int64_t begin, int64_t end) {
  ft__characters first, second;
  bool forgot;
  ft__characters_start(&first, encoder->context);
  ft__characters_start(&second, encoder->context);
  ft__normalize(&encoder->tokenizer->normalizer, encoder->text, begin, end, &first, &second);
  if (first.failed || second.failed) encoder->failed = true;
  forgot = first.forgot || second.forgot;
  ft__characters_free(&first);
  ft__characters_free(&second);
  return forgot;
}

/* The fast way of Unigram behind WhitespaceSplit and Metaspace: as that of WordPiece. A word's three bytes in front are
   the U+2581 that Metaspace writes. */
static void ft__unigram_fast(ft__encoder *encoder, int64_t begin, int64_t end) {
  const ft_tokenizer *tokenizer = encoder->tokenizer;
  const uint8_t *fold = tokenizer->fold, *text = (const uint8_t *)encoder->text;
  int64_t at = begin;
  while (at < end && !encoder->failed) {
    char word[3 + FT__SHORT_WORD + 8] = "\xE2\x96\x81";
    ft__path paths[3 + FT__SHORT_WORD + 1];
    ft__span span;
    int64_t start = at, length = 0;
    int32_t id;
    if (tokenizer->ascii[text[at]] == FT__WHITESPACE && (at + 1 == end || text[at + 1] < 0x80)) {
      ++at;
      continue;
    }
    while (at < end && length < FT__SHORT_WORD && fold[text[at]]) {
      if (tokenizer->doubles[text[at]] && at + 1 < end && text[at + 1] == text[at]) break;
      word[3 + length++] = (char)fold[text[at++]];
    }
    if (at < end && (length == 0 || !ft__is_border(tokenizer, encoder->text, at, end))) {
      for (at = start + 1; at < end && !ft__is_border(tokenizer, encoder->text, at, end);) ++at;
      if (start == begin && ft__forgets(encoder, start, at)) at = end;
      if (start > begin && tokenizer->ascii[text[start]] != FT__WHITESPACE)
        --start; /* the space before: for the books */
      ft__encode_plain(encoder, start, at);
      continue;
    }
    id = ft__vocabulary_find_word(&tokenizer->whole, word + 3, (size_t)length, FT__SHORT_WORD + 8);
    if (id >= 0) {
      ft__emit(encoder, id, start, at);
      continue;
    }
    memset(&span, 0, sizeof span);
    span.base = start;
    span.lead = 3;
    ft__unigram_bytes(encoder, &span, word, 3 + length, paths);
  }
}

static void ft__encode_between(ft__encoder *encoder, int64_t begin, int64_t end) {
  if (begin >= end) return;
  if (encoder->tokenizer->plain || !encoder->tokenizer->fast || encoder->tokenizer->normalized.count)
    ft__encode_plain(encoder, begin, end);
  else
    encoder->tokenizer->model->fast(encoder, begin, end);
}

/* Appends the tokens of a whole text, without any around it. */
static bool ft__encode_text(ft__encoder *encoder, const char *text, size_t length) {
  ft__splitter splitter;
  const ft__added_token *token;
  int64_t begin, end;
  encoder->text = text;
  encoder->length = (int64_t)length;
  encoder->first = encoder->encoding->count;
  ft__splitter_start(&splitter, encoder->tokenizer, &encoder->tokenizer->raw, text, (int64_t)length);
  while ((token = ft__splitter_next(&splitter, &begin, &end)) != NULL) {
    ft__encode_between(encoder, splitter.done, begin);
    ft__emit_added(encoder, token->id, begin, end);
    splitter.done = end;
  }
  ft__encode_between(encoder, splitter.done, (int64_t)length);
  return !encoder->failed;
}

/* lengths [2] of text and pair, cut to `room` tokens in all. longest_first: the longer gives way until both are equal.
 */
static ft_status ft__truncate(ft_context *context, int64_t lengths[2], bool has_pair, int64_t room,
                              ft_truncation truncation) {
  int64_t excess = lengths[0] + lengths[1] - room;
  if (excess <= 0) return FT_OK;
  if (room == 0) {
    lengths[0] = lengths[1] = 0;
  } else if (truncation == FT_TRUNCATE_LONGEST_FIRST) {
    int shorter = lengths[0] <= lengths[1] ? 0 : 1;
    if (!has_pair) {
      lengths[0] = room;
    } else if (lengths[shorter] <= room - lengths[shorter]) {
      lengths[1 - shorter] = room - lengths[shorter];
    } else {
      lengths[shorter] = room / 2;
      lengths[1 - shorter] = room - room / 2;
    }
  } else {
    int which = truncation == FT_TRUNCATE_ONLY_FIRST ? 0 : 1;
    if (which == 1 && !has_pair)
      return ft__error(context, FT_ERROR_ARGUMENT, "truncation: second text not provided, and only it may be cut");
    if (lengths[which] <= excess)
      return ft__error(context, FT_ERROR_ARGUMENT,
                       "truncation: the %s text has %lld tokens, too few to cut %lld and respect max_length",
                       which ? "second" : "first", (long long)lengths[which], (long long)excess);
    lengths[which] -= excess;
  }
  return FT_OK;
}

/* Fills places [at, at + count) with special tokens. */
static void ft__place_special(const ft__encoder *encoder, const ft__template *frame, int64_t from, int64_t count,
                              int64_t at) {
  ft_encoding *encoding = encoder->encoding;
  int64_t i;
  for (i = 0; i < count; ++i) {
    encoding->ids[at + i] = frame->ids[from + i];
    encoding->token_types[at + i] = frame->types[from + i];
    if (encoder->offsets) encoding->begin[at + i] = encoding->end[at + i] = 0;
  }
}

/* Puts text and pair, whose tokens stand with gaps for special ones before each, into their final places. */
static void ft__place_texts(const ft__encoder *encoder, const ft__template *frame, const int64_t counts[3],
                            const int64_t lengths[2], int64_t pair_from) {
  ft_encoding *encoding = encoder->encoding;
  int64_t pair_at = counts[0] + lengths[0] + counts[1], end = pair_at + lengths[1], i;
  size_t moved = (size_t)lengths[1] * sizeof(int32_t);
  if (pair_from != pair_at) {
    memmove(encoding->ids + pair_at, encoding->ids + pair_from, moved);
    if (encoder->offsets) {
      memmove(encoding->begin + pair_at, encoding->begin + pair_from, moved);
      memmove(encoding->end + pair_at, encoding->end + pair_from, moved);
    }
  }
  for (i = counts[0]; i < counts[0] + lengths[0]; ++i) encoding->token_types[i] = frame->text_type;
  for (i = pair_at; i < end; ++i) encoding->token_types[i] = frame->pair_type;
  ft__place_special(encoder, frame, 0, counts[0], 0);
  ft__place_special(encoder, frame, frame->first, counts[1], counts[0] + lengths[0]);
  ft__place_special(encoder, frame, frame->second, counts[2], end);
  encoding->count = end + counts[2];
}

/* Encodes both texts behind gaps for the special tokens; lengths [2] become their counts of tokens. */
static bool ft__encode_texts(ft__encoder *encoder, const char *text, size_t length, const char *pair,
                             size_t pair_length, const int64_t counts[3], int64_t lengths[2]) {
  ft_encoding *encoding = encoder->encoding;
  int64_t around = counts[0] + counts[1] + counts[2], pair_from;
  if (!ft__encoding_reserve(encoder->context, encoding, around + 1, encoder->offsets)) return false;
  encoding->count = counts[0];
  if (!ft__encode_text(encoder, text, length)) return false;
  lengths[0] = encoding->count - counts[0];
  if (!ft__encoding_reserve(encoder->context, encoding, encoding->count + around, encoder->offsets)) return false;
  encoding->count += counts[1];
  pair_from = encoding->count;
  if (pair && !ft__encode_text(encoder, pair, pair_length)) return false;
  lengths[1] = encoding->count - pair_from;
  return ft__encoding_reserve(encoder->context, encoding, encoding->count + around, encoder->offsets);
}

FT_API ft_status ft_tokenizer_encode(ft_context *context, const ft_tokenizer *tokenizer, const char *text,
                                     size_t length, const char *pair, size_t pair_length,
                                     const ft_encode_options *options, ft_encoding *encoding) {
  ft_encode_options none;
  ft__encoder encoder;
  const ft__template *frame;
  int64_t counts[3] = {0, 0, 0}, lengths[2], whole, room, pair_from;
  memset(&none, 0, sizeof none);
  if (!options) options = &none;
  if (!tokenizer || !text || !encoding) {
    ft__null_argument(context, "ft_tokenizer_encode needs a tokenizer, a text and an encoding");
    return context->status;
  }
  if (length > INT32_MAX || (pair && pair_length > INT32_MAX))
    return ft__error(context, FT_ERROR_ARGUMENT, "a text of %llu bytes is too long to encode",
                     (unsigned long long)(length > INT32_MAX ? length : pair_length));
  frame = pair ? &tokenizer->pair : &tokenizer->single;
  if (!options->no_special_tokens) {
    counts[0] = frame->first;
    counts[1] = frame->second - frame->first;
    counts[2] = frame->count - frame->second;
  }
  if (options->max_length < 0 || (options->max_length > 0 && options->max_length < counts[0] + counts[1] + counts[2]))
    return ft__error(context, FT_ERROR_ARGUMENT, "max_length %d leaves no room: the special tokens alone are %lld",
                     options->max_length, (long long)(counts[0] + counts[1] + counts[2]));
  encoder.context = context;
  encoder.tokenizer = tokenizer;
  encoder.encoding = encoding;
  encoder.offsets = options->offsets;
  encoder.failed = false;
  encoding->count = encoding->truncated = 0;
  if (!ft__encode_texts(&encoder, text, length, pair, pair_length, counts, lengths)) {
    encoding->count = 0;
    return context->status;
  }
  whole = lengths[0] + lengths[1];
  pair_from = counts[0] + lengths[0] + counts[1];
  room = options->max_length - (counts[0] + counts[1] + counts[2]);
  if (options->max_length > 0 && ft__truncate(context, lengths, pair != NULL, room, options->truncation) != FT_OK) {
    encoding->count = 0;
    return context->status;
  }
  encoding->truncated = whole - lengths[0] - lengths[1];
  ft__place_texts(&encoder, frame, counts, lengths, pair_from);
  return FT_OK;
}

FT_API void ft_encoding_free(ft_encoding *encoding) {
  if (!encoding || !encoding->owner) return;
  ft__release(encoding->owner, encoding->ids);
  ft__release(encoding->owner, encoding->token_types);
  ft__release(encoding->owner, encoding->begin);
  ft__release(encoding->owner, encoding->end);
  memset(encoding, 0, sizeof *encoding);
}

/* =====================================================================================================================
   >>loading tokenizers

   tokenizer.json  { added_tokens: [{id, content, special, ...}], normalizer, pre_tokenizer, post_processor,
                     model: {type, vocab, ...} }; each part has a "type", and a table below has a row for each type.
   vocab.txt       WordPiece: one piece a line, its id the line's number from 0; white space at a line's end is dropped,
                   and of equal lines the last counts.
   vocab.json      BPE: {piece: id}, with merges.txt beside it: "left right" a line, the first merge first.
   spiece.model, sentencepiece.bpe.model
                   Unigram: a protocol buffer, see ft__load_sentencepiece.

   Without tokenizer.json the rest is in tokenizer_config.json and special_tokens_map.json, or as BERT, RoBERTa, ALBERT
   and XLM-RoBERTa have it. Truncation and padding in tokenizer.json are settings of a run and ignored, as is the
   decoder. */

struct ft__loader {
  ft_context *context;
  ft_tokenizer *tokenizer;
  const char *path; /* of the file being read, for messages */
  int64_t decoded;  /* added tokens from added_tokens_decoder */
};

typedef struct ft__entry {
  const char *piece;
  size_t length;
  int64_t id;
  double score;
} ft__entry;

static bool ft__piece_table_create(ft_context *context, ft__piece_table *table, int64_t count, size_t skip) {
  uint64_t slots = 16, i;
  while (slots < 2 * (uint64_t)count) slots *= 2;
  table->mask = slots - 1;
  table->skip = (int64_t)skip;
  table->slots = (ft__piece_slot *)ft__allocate_zero(context, (size_t)slots * sizeof *table->slots);
  table->filter = (uint8_t *)ft__allocate_zero(context, (size_t)slots);
  if (!table->slots || !table->filter) return false;
  for (i = 0; i < slots; ++i) table->slots[i].id_and_length = FT__NO_PIECE;
  return true;
}

/* Puts a piece in a table. An equal one loses its place: *replaced is its id, else -1. False: too many collisions. */
static bool ft__piece_table_add(const ft__vocabulary *vocabulary, ft__piece_table *table, int32_t id,
                                int32_t *replaced) {
  const char *key = vocabulary->text + vocabulary->starts[id] + table->skip;
  size_t length = vocabulary->lengths[id] - (size_t)table->skip;
  uint64_t head = ft__load_bytes(key, length), hash = ft__hash(key, length);
  ft__piece_slot *slot = ft__piece_slot_find(vocabulary, table, key, length, head, hash);
  if (!slot) return false;
  *replaced = ft__slot_id(slot);
  *ft__filter_byte(table, hash) |= ft__filter_bit(hash);
  slot->head = head;
  slot->hash = (uint32_t)(hash >> 32);
  slot->id_and_length = (uint32_t)id | (length < 255 ? (uint32_t)length : 255u) << 24;
  if ((int64_t)length > table->longest) table->longest = (int64_t)length;
  return true;
}

/* Bounds of a vocabulary's entries, checked; allocates what they need. */
static ft_status ft__vocabulary_create(ft__loader *loader, ft__vocabulary *vocabulary, const ft__entry *entries,
                                       int64_t count) {
  ft_context *context = loader->context;
  int64_t i, largest = -1;
  uint64_t bytes = 0;
  if (count > FT__MOST_IDS)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: %lld pieces are more than %d", loader->path, (long long)count,
                     FT__MOST_IDS);
  for (i = 0; i < count; ++i) {
    const ft__entry *entry = &entries[i];
    if (entry->length > FT__LONGEST_PIECE)
      return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: piece %lld has %lld bytes, more than %d", loader->path,
                       (long long)entry->id, (long long)entry->length, FT__LONGEST_PIECE);
    if (entry->id < 0 || entry->id >= 2 * count + 65536 || entry->id >= FT__MOST_IDS - 1)
      return ft__error(context, FT_ERROR_FORMAT, "%s: id %lld of piece \"%.100s\" is out of range for %lld pieces",
                       loader->path, (long long)entry->id, entry->piece, (long long)count);
    if (entry->id > largest) largest = entry->id;
    bytes += entry->length + 1;
  }
  if (bytes >= FT__NO_PIECE)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: the pieces' text is too long", loader->path);
  vocabulary->size = (int32_t)largest + 1;
  vocabulary->text = (char *)ft__allocate(context, (size_t)bytes);
  vocabulary->starts = (uint32_t *)ft__allocate(context, (size_t)vocabulary->size * sizeof(uint32_t));
  vocabulary->lengths = (uint32_t *)ft__allocate(context, (size_t)vocabulary->size * sizeof(uint32_t));
  if (!vocabulary->text || !vocabulary->starts || !vocabulary->lengths ||
      !ft__piece_table_create(context, &vocabulary->words, count, 0))
    return context->status;
  memset(vocabulary->starts, 0xFF, (size_t)vocabulary->size * sizeof(uint32_t)); /* FT__NO_PIECE */
  return FT_OK;
}

/* The entries as a vocabulary. Of equal pieces the last counts. */
static ft_status ft__vocabulary_fill(ft__loader *loader, ft__vocabulary *vocabulary, const ft__entry *entries,
                                     int64_t count) {
  uint32_t used = 0;
  int64_t i;
  if (ft__vocabulary_create(loader, vocabulary, entries, count) != FT_OK) return loader->context->status;
  for (i = 0; i < count; ++i) {
    const ft__entry *entry = &entries[i];
    int32_t id = (int32_t)entry->id, replaced = -1;
    if (vocabulary->starts[id] != FT__NO_PIECE)
      return ft__error(loader->context, FT_ERROR_FORMAT, "%s: pieces \"%.100s\" and \"%.100s\" have the same id %d",
                       loader->path, vocabulary->text + vocabulary->starts[id], entry->piece, id);
    memcpy(vocabulary->text + used, entry->piece, entry->length);
    vocabulary->text[used + entry->length] = 0;
    vocabulary->starts[id] = used;
    vocabulary->lengths[id] = (uint32_t)entry->length;
    used += (uint32_t)entry->length + 1;
    if (!ft__piece_table_add(vocabulary, &vocabulary->words, id, &replaced))
      return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: pieces collide too often in the hash table",
                       loader->path);
    if (replaced >= 0)
      vocabulary->starts[replaced] = FT__NO_PIECE;
    else
      ++vocabulary->count;
  }
  return FT_OK;
}

static ft_status ft__set_prefix(ft__loader *loader, const char *prefix, size_t length) {
  if (length > FT__LONGEST_PIECE)
    return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: continuing_subword_prefix is too long", loader->path);
  loader->tokenizer->prefix = ft__string_copy(loader->context, prefix, length);
  loader->tokenizer->prefix_length = length;
  return loader->tokenizer->prefix ? FT_OK : FT_ERROR_MEMORY;
}

static ft_status ft__set_unknown(ft__loader *loader, const char *piece, size_t length) {
  loader->tokenizer->unknown_id = ft__vocabulary_find(&loader->tokenizer->vocabulary, piece, length);
  if (loader->tokenizer->unknown_id >= 0) return FT_OK;
  return ft__error(loader->context, FT_ERROR_FORMAT, "%s: the unknown token \"%.100s\" is not among the %lld pieces",
                   loader->path, piece, (long long)loader->tokenizer->vocabulary.count);
}

/* The id that an added token gets: that of the equal piece, else the next above all. */
static int64_t ft__added_id(const ft_tokenizer *tokenizer, const char *content, size_t length) {
  int64_t pieces = tokenizer->vocabulary.count, above = tokenizer->largest_added + 1;
  int32_t id = ft__vocabulary_find(&tokenizer->vocabulary, content, length);
  return id >= 0 ? id : pieces > above ? pieces : above;
}

/* Appends an added token; stated_id: what the file says, or -1. */
static ft_status ft__added_append(ft__loader *loader, const char *content, size_t length, int64_t stated_id,
                                  const ft__added_token *flags) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft__vocabulary *vocabulary = &tokenizer->vocabulary;
  ft__added_token *added;
  int64_t id = ft__added_id(tokenizer, content, length);
  if (length == 0 || length > FT__LONGEST_PIECE || strstr(content, "\xEF\xBF\xBD"))
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: added token \"%.100s\" is empty, too long, or holds U+FFFD",
                     loader->path, content);
  if (stated_id >= 0 && stated_id != id)
    return ft__error(context, FT_ERROR_FORMAT, "%s: added token \"%.100s\" has id %lld, where %lld was expected",
                     loader->path, content, (long long)stated_id, (long long)id);
  if (id >= FT__MOST_IDS - 1 ||
      (id < vocabulary->size && vocabulary->starts[id] != FT__NO_PIECE &&
       (vocabulary->lengths[id] != length || memcmp(vocabulary->text + vocabulary->starts[id], content, length) != 0)))
    return ft__error(context, FT_ERROR_FORMAT, "%s: added token \"%.100s\" would get id %lld, which is taken",
                     loader->path, content, (long long)id);
  if (!ft__grow(context, &tokenizer->added, &tokenizer->added_capacity, tokenizer->added_count + 1, sizeof *added))
    return FT_ERROR_MEMORY;
  added = &tokenizer->added[tokenizer->added_count];
  *added = *flags;
  added->id = (int32_t)id;
  added->length = length;
  added->pattern = NULL;
  added->content = ft__string_copy(context, content, length);
  if (!added->content) return FT_ERROR_MEMORY;
  ++tokenizer->added_count;
  if (added->id > tokenizer->largest_added) tokenizer->largest_added = added->id;
  return FT_OK;
}

static const ft__added_token *ft__added_find(const ft_tokenizer *tokenizer, const char *content, size_t length) {
  int64_t i;
  for (i = 0; i < tokenizer->added_count; ++i)
    if (tokenizer->added[i].length == length && memcmp(tokenizer->added[i].content, content, length) == 0)
      return &tokenizer->added[i];
  return NULL;
}

/* What is searched for: the content itself, or what normalising makes of it. */
static ft_status ft__added_pattern(ft__loader *loader, ft__added_token *added) {
  ft_context *context = loader->context;
  ft__characters first, second, *result;
  ft_status status = FT_OK;
  int64_t i;
  if (!added->normalized) {
    added->pattern = ft__string_copy(context, added->content, added->length);
    added->pattern_length = added->length;
    return added->pattern ? FT_OK : FT_ERROR_MEMORY;
  }
  ft__characters_start(&first, context);
  ft__characters_start(&second, context);
  result = ft__normalize(&loader->tokenizer->normalizer, added->content, 0, (int64_t)added->length, &first, &second);
  added->pattern_length = 0;
  if (!first.failed && !second.failed) added->pattern = (char *)ft__allocate(context, (size_t)result->count * 4 + 1);
  if (added->pattern)
    for (i = 0; i < result->count; ++i)
      added->pattern_length += (size_t)ft__utf8_encode(result->at[i].code, added->pattern + added->pattern_length);
  else
    status = FT_ERROR_MEMORY;
  ft__characters_free(&first);
  ft__characters_free(&second);
  return status;
}

/* ---- JSON with names in messages ---- */

/* object.key if it has the type; else an error that says where. */
static const ft_json *ft__need(ft__loader *loader, const ft_json *object, const char *where, const char *key,
                               ft_json_type type) {
  static const char *const names[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
  const ft_json *member = ft_json_get(object, key);
  if (member && member->type == type) return member;
  ft__error(loader->context, FT_ERROR_FORMAT, "%s: %s%s%s %s, expected %s", loader->path, where, *where ? "." : "", key,
            member ? "has the wrong type" : "is missing", names[type]);
  return NULL;
}

/* Every key of object must be among allowed (NULL at the end). */
static bool ft__only_keys(ft__loader *loader, const ft_json *object, const char *where, const char *const *allowed) {
  const ft_json *member;
  for (member = object->child; member; member = member->next) {
    int i = 0;
    while (allowed[i] && strcmp(member->key, allowed[i]) != 0) ++i;
    if (allowed[i]) continue;
    ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: %s%s%.100s is not supported", loader->path, where,
              *where ? "." : "", member->key);
    return false;
  }
  return true;
}

/* Reads object.key, true or false, into *value; optional ones keep it when absent. */
static bool ft__read_boolean(ft__loader *loader, const ft_json *object, const char *where, const char *key, bool needed,
                             bool *value) {
  const ft_json *member;
  if (!needed && !ft_json_get(object, key)) return true;
  member = ft__need(loader, object, where, key, FT_JSON_BOOLEAN);
  if (member) *value = member->boolean;
  return member != NULL;
}

/* ---- tokenizer.json: a row for each type of part ---- */

typedef struct ft__part {
  const char *type;
  const char *keys[7]; /* that may stand beside it, NULL at the end */
  bool (*load)(ft__loader *loader, const ft_json *object, const char *where, ft__step *step);
  void (*normalize)(const ft__normalizer *normalizer, const ft__step *step, const ft__characters *from,
                    ft__characters *to);
  void (*split)(ft__encoder *encoder, int64_t step, const ft__character *at, int64_t count);
  bool flags[2]; /* the step's, unless `load` sets them */
} ft__part;

enum { FT__MOST_STEPS = 64 };

/* A step at the end of the normalizer, or of the pre-tokenizer if it splits; NULL with an error. */
static ft__step *ft__step_add(ft__loader *loader, const ft__part *part) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  ft__step **steps = part->split ? &tokenizer->splits : &tokenizer->normalizer.steps, *step;
  int64_t *count = part->split ? &tokenizer->split_count : &tokenizer->normalizer.count;
  int64_t *capacity = part->split ? &tokenizer->split_capacity : &tokenizer->normalizer.capacity;
  if (*count == FT__MOST_STEPS) {
    ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: more than %d steps are not supported", loader->path,
              FT__MOST_STEPS);
    return NULL;
  }
  if (!ft__grow(loader->context, steps, capacity, *count + 1, sizeof **steps)) return NULL;
  step = &(*steps)[(*count)++];
  memset(step, 0, sizeof *step);
  step->normalize = part->normalize;
  step->split = part->split;
  memcpy(step->flags, part->flags, sizeof step->flags);
  return step;
}

/* Text as code points. */
static bool ft__step_codes(ft__loader *loader, const char *text, size_t length, uint32_t **codes, int64_t *count) {
  size_t at = 0;
  *codes = (uint32_t *)ft__allocate(loader->context, (length + 2) * sizeof **codes);
  for (*count = 0; *codes && at < length; ++*count)
    at += (size_t)ft__utf8_decode(text + at, length - at, &(*codes)[*count]);
  return *codes != NULL;
}

static bool ft__unsupported(ft__loader *loader, const char *where, const char *what, const char *value) {
  ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: %s.%s \"%.100s\" is not supported", loader->path, where, what,
            value);
  return false;
}

static bool ft__load_bert_normalizer(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  static const ft__part parts[] = {{NULL, {NULL}, NULL, ft__clean, NULL, {false, false}},
                                   {NULL, {NULL}, NULL, ft__space_chinese, NULL, {false, false}},
                                   {NULL, {NULL}, NULL, ft__decompose, NULL, {false, false}},
                                   {NULL, {NULL}, NULL, ft__strip_accents, NULL, {true, false}},
                                   {NULL, {NULL}, NULL, ft__make_lower_case, NULL, {false, false}}};
  ft__normalizer *normalizer = &loader->tokenizer->normalizer;
  const ft_json *strip = ft_json_get(object, "strip_accents");
  bool wanted[5], strips;
  int i;
  (void)step;
  if (!ft__read_boolean(loader, object, where, "clean_text", true, &normalizer->clean_text) ||
      !ft__read_boolean(loader, object, where, "handle_chinese_chars", true, &normalizer->chinese) ||
      !ft__read_boolean(loader, object, where, "lowercase", true, &normalizer->lowercase))
    return false;
  strips = normalizer->lowercase;
  if (strip && strip->type != FT_JSON_NULL && !ft__read_boolean(loader, object, where, "strip_accents", true, &strips))
    return false;
  normalizer->is_bert = normalizer->count == 0;
  wanted[0] = normalizer->clean_text, wanted[1] = normalizer->chinese, wanted[4] = normalizer->lowercase;
  wanted[2] = wanted[3] = strips;
  for (i = 0; i < 5; ++i)
    if (wanted[i] && !ft__step_add(loader, &parts[i])) return false;
  return true;
}

static bool ft__load_lowercase(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  (void)object, (void)where, (void)step;
  loader->tokenizer->normalizer.lowercase = true;
  return true;
}

static bool ft__load_composed(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  (void)object, (void)where, (void)step;
  return ft__unicode_pairs(&loader->tokenizer->normalizer.unicode);
}

static bool ft__load_strip(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  return ft__read_boolean(loader, object, where, "strip_left", true, &step->flags[0]) &&
         ft__read_boolean(loader, object, where, "strip_right", true, &step->flags[1]);
}

static bool ft__load_prepend(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  const ft_json *text = ft__need(loader, object, where, "prepend", FT_JSON_STRING);
  return text && ft__step_codes(loader, text->string, text->string_length, &step->content, &step->content_count);
}

/* Replace: of expressions those that need no machine: literal text, and one character with {n,} or + behind it. */
static bool ft__load_replace(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  const ft_json *pattern = ft__need(loader, object, where, "pattern", FT_JSON_OBJECT);
  const ft_json *content = ft__need(loader, object, where, "content", FT_JSON_STRING), *text;
  uint32_t *codes;
  int64_t i, literal = 0;
  long minimum = 0;
  if (!pattern || !content) return false;
  text = ft_json_get(pattern, "String");
  if (!text) text = ft__need(loader, pattern, where, "Regex", FT_JSON_STRING);
  if (!text || !ft__step_codes(loader, content->string, content->string_length, &step->content, &step->content_count))
    return false;
  if (text->type != FT_JSON_STRING) return ft__unsupported(loader, where, "pattern", text->key);
  if (!ft__step_codes(loader, text->string, text->string_length, &step->pattern, &step->pattern_count)) return false;
  if (strcmp(text->key, "String") == 0) return true;
  codes = step->pattern;
  while (literal < step->pattern_count && (codes[literal] >= 128 || !strchr("\\^$.|?*+()[]{}", (int)codes[literal])))
    ++literal;
  if (literal > 0 && literal == step->pattern_count) return true;
  if (literal == 1 && codes[1] == '+' && step->pattern_count == 2) minimum = 1;
  if (literal == 1 && codes[1] == '{') {
    for (i = 2; i < step->pattern_count && codes[i] >= '0' && codes[i] <= '9' && minimum < 1000; ++i)
      minimum = 10 * minimum + (long)(codes[i] - '0');
    if (i + 2 != step->pattern_count || codes[i] != ',' || codes[i + 1] != '}') minimum = 0;
  }
  if (minimum == 0) return ft__unsupported(loader, where, "pattern", text->string);
  step->flags[0] = true;
  codes[1] = (uint32_t)minimum;
  return true;
}

static bool ft__step_charsmap(ft__loader *loader, ft__step *step, size_t size) {
  step->charsmap_size = size;
  step->trie_size = size >= 4 ? (size_t)ft__load_bytes(step->charsmap, 4) : 0;
  if (size >= 8 && step->trie_size >= 4 && step->trie_size % 4 == 0 && step->trie_size <= size - 4 &&
      ft__utf8_is_valid(step->charsmap + 4 + step->trie_size, size - 4 - step->trie_size))
    return true;
  ft__error(loader->context, FT_ERROR_FORMAT, "%s: the precompiled charsmap of %llu bytes is broken", loader->path,
            (unsigned long long)size);
  return false;
}

/* Base64, in groups of four characters. */
static bool ft__load_precompiled(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  const ft_json *text = ft__need(loader, object, where, "precompiled_charsmap", FT_JSON_STRING);
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  uint32_t bits = 0;
  size_t i, size = 0, length;
  if (!text) return false;
  length = text->string_length;
  step->charsmap = (char *)ft__allocate(loader->context, length / 4 * 3 + 3);
  if (!step->charsmap) return false;
  while (length > 0 && text->string_length - length < 2 && text->string[length - 1] == '=') --length;
  for (i = 0; i < length; ++i) {
    const char *digit = text->string[i] ? strchr(digits, text->string[i]) : NULL;
    if (!digit) break;
    bits = bits << 6 | (uint32_t)(digit - digits);
    if (i % 4) step->charsmap[size++] = (char)(bits >> (6 - 2 * (i % 4)) & 255);
  }
  if (i == length && text->string_length % 4 == 0) return ft__step_charsmap(loader, step, size);
  ft__error(loader->context, FT_ERROR_FORMAT, "%s: %s.precompiled_charsmap is no base64", loader->path, where);
  return false;
}

/* clang-format off */
static const ft__part ft__normalizer_parts[] = {
    {"BertNormalizer", {"clean_text", "handle_chinese_chars", "strip_accents", "lowercase", NULL},
     ft__load_bert_normalizer, NULL, NULL, {false, false}},
    {"NFD", {NULL}, NULL, ft__decompose, NULL, {false, false}},
    {"NFKD", {NULL}, NULL, ft__decompose, NULL, {true, false}},
    {"NFC", {NULL}, ft__load_composed, ft__decompose, NULL, {false, true}},
    {"NFKC", {NULL}, ft__load_composed, ft__decompose, NULL, {true, true}},
    {"StripAccents", {NULL}, NULL, ft__strip_accents, NULL, {false, false}},
    {"Lowercase", {NULL}, ft__load_lowercase, ft__make_lower_case, NULL, {false, false}},
    {"Strip", {"strip_left", "strip_right", NULL}, ft__load_strip, ft__strip, NULL, {false, false}},
    {"Replace", {"pattern", "content", NULL}, ft__load_replace, ft__replace, NULL, {false, false}},
    {"Prepend", {"prepend", NULL}, ft__load_prepend, ft__prepend, NULL, {false, false}},
    {"Precompiled", {"precompiled_charsmap", NULL}, ft__load_precompiled, ft__precompiled, NULL, {false, false}},
    {"Sequence", {"normalizers", NULL}, NULL, NULL, NULL, {false, false}}};
/* clang-format on */

static bool ft__load_punctuation(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  const ft_json *behavior = ft_json_get(object, "behavior");
  (void)step;
  if (!behavior || (behavior->type == FT_JSON_STRING && strcmp(behavior->string, "Isolated") == 0)) return true;
  return ft__unsupported(loader, where, "behavior",
                         behavior->type == FT_JSON_STRING ? behavior->string : "of this type");
}

static bool ft__load_metaspace(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  static const char *const schemes[] = {"always", "first", "never"};
  const ft_json *replacement = ft__need(loader, object, where, "replacement", FT_JSON_STRING);
  const ft_json *scheme = ft_json_get(object, "prepend_scheme");
  bool prefix = true;
  int when = FT__PREPEND_ALWAYS;
  if (!replacement || !ft__read_boolean(loader, object, where, "split", false, &step->flags[0]) ||
      !ft__read_boolean(loader, object, where, "add_prefix_space", false, &prefix) ||
      !ft__step_codes(loader, replacement->string, replacement->string_length, &step->pattern, &step->pattern_count))
    return false;
  if (step->pattern_count != 1) return ft__unsupported(loader, where, "replacement", replacement->string);
  if (scheme && scheme->type != FT_JSON_STRING) return ft__unsupported(loader, where, "prepend_scheme", "of this type");
  while (scheme && when < 3 && strcmp(scheme->string, schemes[when]) != 0) ++when;
  if (when == 3 || (!prefix && when != FT__PREPEND_NEVER))
    return ft__unsupported(loader, where, "prepend_scheme", scheme ? scheme->string : "always");
  step->pattern[1] = (uint32_t)when;
  return true;
}

static bool ft__load_byte_level(ft__loader *loader, const ft_json *object, const char *where, ft__step *step) {
  return ft__read_boolean(loader, object, where, "add_prefix_space", true, &step->flags[0]) &&
         ft__read_boolean(loader, object, where, "use_regex", false, &step->flags[1]);
}

/* clang-format off */
static const ft__part ft__splitter_parts[] = {
    {"BertPreTokenizer", {NULL}, NULL, NULL, ft__split_bert, {false, false}},
    {"WhitespaceSplit", {NULL}, NULL, NULL, ft__split_white_space, {false, false}},
    {"Whitespace", {NULL}, NULL, NULL, ft__split_words, {false, false}},
    {"Punctuation", {"behavior", NULL}, ft__load_punctuation, NULL, ft__split_punctuation, {false, false}},
    {"Metaspace", {"replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep", NULL},
     ft__load_metaspace, NULL, ft__split_metaspace, {true, false}},
    {"ByteLevel", {"add_prefix_space", "trim_offsets", "use_regex", NULL},
     ft__load_byte_level, NULL, ft__split_bytes, {false, true}},
    {"Sequence", {"pretokenizers", NULL}, NULL, NULL, NULL, {false, false}}};
/* clang-format on */

/* object.type, with an error if there is none. */
static const char *ft__type(ft__loader *loader, const ft_json *object, const char *where) {
  const ft_json *type;
  if (object->type != FT_JSON_OBJECT) {
    ft__error(loader->context, FT_ERROR_FORMAT, "%s: %s has the wrong type, expected an object", loader->path, where);
    return NULL;
  }
  type = ft__need(loader, object, where, "type", FT_JSON_STRING);
  return type ? type->string : NULL;
}

static bool ft__unknown_type(ft__loader *loader, const char *where, const char *type) {
  ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: %s of type %.100s is not supported", loader->path, where, type);
  return false;
}

/* The keys of object must be "type" and those allowed (NULL at the end). */
static bool ft__typed_keys(ft__loader *loader, const ft_json *object, const char *where, const char *const *allowed) {
  const char *keys[12] = {"type"};
  int i = 0;
  while (allowed[i]) keys[i + 1] = allowed[i], ++i;
  keys[i + 1] = NULL;
  return ft__only_keys(loader, object, where, keys);
}

/* A normalizer or pre-tokenizer (NULL: none) by the rows of its table, the last of which is Sequence. */
static bool ft__load_parts(ft__loader *loader, const ft_json *object, const char *where, const ft__part *parts,
                           int64_t count) {
  const ft_json *inner;
  const char *type;
  ft__step *step = NULL;
  int64_t i = 0;
  if (!object || object->type == FT_JSON_NULL) return true;
  if (!(type = ft__type(loader, object, where))) return false;
  while (i < count && strcmp(parts[i].type, type) != 0) ++i;
  if (i == count) return ft__unknown_type(loader, where, type);
  if (!ft__typed_keys(loader, object, where, parts[i].keys)) return false;
  if (i < count - 1) {
    loader->tokenizer->normalizer.is_bert = loader->tokenizer->normalizer.is_bert && parts[i].split;
    if ((parts[i].normalize || parts[i].split) && !(step = ft__step_add(loader, &parts[i]))) return false;
    return !parts[i].load || parts[i].load(loader, object, where, step);
  }
  inner = ft__need(loader, object, where, parts[i].keys[0], FT_JSON_ARRAY);
  if (!inner) return false;
  for (inner = inner->child; inner; inner = inner->next)
    if (!ft__load_parts(loader, inner, where, parts, count)) return false;
  return true;
}

static bool ft__load_normalizer(ft__loader *loader, const ft_json *object) {
  loader->tokenizer->normalizer.is_bert = true; /* until a step says otherwise */
  return ft__load_parts(loader, object, "normalizer", ft__normalizer_parts,
                        sizeof ft__normalizer_parts / sizeof *ft__normalizer_parts);
}

static bool ft__load_splitter(ft__loader *loader, const ft_json *object) {
  return ft__load_parts(loader, object, "pre_tokenizer", ft__splitter_parts,
                        sizeof ft__splitter_parts / sizeof *ft__splitter_parts);
}

/* ---- models ---- */

/* {piece: id}. */
static ft_status ft__load_pieces(ft__loader *loader, const ft_json *object) {
  ft_context *context = loader->context;
  const ft_json *piece;
  ft__entry *entries = (ft__entry *)ft__allocate(context, ft__size_product((size_t)object->count, sizeof *entries));
  ft_status status;
  int64_t count = 0;
  if (!entries) return FT_ERROR_MEMORY;
  for (piece = object->child; piece; piece = piece->next, ++count) {
    entries[count].piece = piece->key;
    entries[count].length = piece->key_length;
    entries[count].id = piece->type == FT_JSON_NUMBER && piece->is_integer ? piece->integer : -1;
  }
  status = ft__vocabulary_fill(loader, &loader->tokenizer->vocabulary, entries, count);
  ft__release(context, entries);
  return status;
}

/* WordPiece: the table of pieces by what follows the prefix. */
static ft_status ft__wordpiece_continue(ft__loader *loader) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  ft__vocabulary *vocabulary = &tokenizer->vocabulary;
  size_t skip = tokenizer->prefix_length;
  int64_t pass, count = 0;
  int32_t id, unused;
  for (pass = 0; pass < 2; ++pass) {
    if (pass && !ft__piece_table_create(loader->context, &vocabulary->continuations, count, skip))
      return loader->context->status;
    for (id = 0; id < vocabulary->size; ++id) {
      if (vocabulary->starts[id] == FT__NO_PIECE || vocabulary->lengths[id] < skip ||
          memcmp(vocabulary->text + vocabulary->starts[id], tokenizer->prefix, skip) != 0)
        continue;
      ++count;
      if (pass && !ft__piece_table_add(vocabulary, &vocabulary->continuations, id, &unused))
        return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: pieces collide too often in the hash table",
                         loader->path);
    }
  }
  return FT_OK;
}

static ft_status ft__load_wordpiece(ft__loader *loader, const ft_json *model) {
  ft_context *context = loader->context;
  const ft_json *vocabulary, *prefix, *unknown, *longest;
  if (!(vocabulary = ft__need(loader, model, "model", "vocab", FT_JSON_OBJECT)) ||
      !(prefix = ft__need(loader, model, "model", "continuing_subword_prefix", FT_JSON_STRING)) ||
      !(unknown = ft__need(loader, model, "model", "unk_token", FT_JSON_STRING)) ||
      !(longest = ft__need(loader, model, "model", "max_input_chars_per_word", FT_JSON_NUMBER)))
    return context->status;
  if (!longest->is_integer || longest->integer < 0 || longest->integer > FT__LONGEST_WORD)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: model.max_input_chars_per_word is %.17g, not 0 to %d",
                     loader->path, longest->number, FT__LONGEST_WORD);
  loader->tokenizer->longest_word = longest->integer;
  if (ft__set_prefix(loader, prefix->string, prefix->string_length) != FT_OK ||
      ft__load_pieces(loader, vocabulary) != FT_OK || ft__wordpiece_continue(loader) != FT_OK)
    return context->status;
  return ft__set_unknown(loader, unknown->string, unknown->string_length);
}

/* The ids of the bytes: as characters, or written <0x0A>. */
static void ft__set_byte_ids(ft_tokenizer *tokenizer) {
  unsigned byte;
  for (byte = 0; byte < 256; ++byte) {
    char piece[8];
    size_t length = (size_t)ft__utf8_encode(ft__byte_character(byte), piece);
    if (tokenizer->byte_fallback) length = (size_t)snprintf(piece, sizeof piece, "<0x%02X>", byte);
    tokenizer->byte_ids[byte] = ft__vocabulary_find(&tokenizer->vocabulary, piece, length);
  }
}

static ft_status ft__merges_create(ft__loader *loader, int64_t count) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  uint64_t slots = 16, i;
  if (count > FT__MOST_IDS)
    return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: %lld merges are more than %d", loader->path,
                     (long long)count, FT__MOST_IDS);
  while (slots < 2 * (uint64_t)count) slots *= 2;
  tokenizer->merge_mask = slots - 1;
  tokenizer->merges = (ft__merge *)ft__allocate(loader->context, (size_t)slots * sizeof *tokenizer->merges);
  if (!tokenizer->merges) return FT_ERROR_MEMORY;
  for (i = 0; i < slots; ++i) tokenizer->merges[i].left = -1;
  return FT_OK;
}

/* Merge number `rank`. What it makes is left + right without the continuing prefix. */
static ft_status ft__merge_add(ft__loader *loader, const char *left, size_t left_length, const char *right,
                               size_t right_length, int64_t rank) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft__vocabulary *vocabulary = &tokenizer->vocabulary;
  char whole[2 * FT__LONGEST_PIECE];
  size_t skip = tokenizer->prefix_length;
  int32_t a = ft__vocabulary_find(vocabulary, left, left_length), b, made = -1;
  ft__merge *slot;
  b = ft__vocabulary_find(vocabulary, right, right_length);
  if (a >= 0 && b >= 0 && right_length >= skip) {
    memcpy(whole, left, left_length);
    memcpy(whole + left_length, right + skip, right_length - skip);
    made = ft__vocabulary_find(vocabulary, whole, left_length + right_length - skip);
  }
  if (made < 0)
    return ft__error(loader->context, FT_ERROR_FORMAT,
                     "%s: merge %lld: \"%.*s\", \"%.*s\" or both together are not among the pieces", loader->path,
                     (long long)rank + 1, (int)(left_length < 100 ? left_length : 100), left,
                     (int)(right_length < 100 ? right_length : 100), right);
  slot = ft__merge_slot(tokenizer, a, b);
  if (!slot)
    return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: merges collide too often in the hash table",
                     loader->path);
  slot->left = a, slot->right = b, slot->rank = (int32_t)rank, slot->id = made;
  return FT_OK;
}

/* "left right": exactly one space. */
static ft_status ft__merge_line(ft__loader *loader, const char *line, size_t length, int64_t rank) {
  const char *space = (const char *)memchr(line, ' ', length), *right = space ? space + 1 : NULL;
  if (!space || memchr(right, ' ', length - (size_t)(right - line)))
    return ft__error(loader->context, FT_ERROR_FORMAT, "%s: merge %lld is not two pieces with a space between",
                     loader->path, (long long)rank + 1);
  return ft__merge_add(loader, line, (size_t)(space - line), right, length - (size_t)(right - line), rank);
}

static ft_status ft__load_merges(ft__loader *loader, const ft_json *merges) {
  const ft_json *merge;
  ft_status status = ft__merges_create(loader, merges->count);
  int64_t rank = 0;
  for (merge = merges->child; merge && status == FT_OK; merge = merge->next, ++rank) {
    const ft_json *left = merge->child;
    if (merge->type == FT_JSON_STRING)
      status = ft__merge_line(loader, merge->string, merge->string_length, rank);
    else if (merge->type == FT_JSON_ARRAY && merge->count == 2 && left->type == FT_JSON_STRING &&
             left->next->type == FT_JSON_STRING)
      status =
          ft__merge_add(loader, left->string, left->string_length, left->next->string, left->next->string_length, rank);
    else
      status = ft__error(loader->context, FT_ERROR_FORMAT, "%s: model.merges[%lld] is no pair", loader->path,
                         (long long)rank);
  }
  return status;
}

/* object.key as a string, where null and a missing one count as "". */
static bool ft__read_text(ft__loader *loader, const ft_json *object, const char *key, const char **text,
                          size_t *length) {
  const ft_json *member = ft_json_get(object, key);
  *text = "";
  *length = 0;
  if (!member || member->type == FT_JSON_NULL) return true;
  if (!(member = ft__need(loader, object, "model", key, FT_JSON_STRING))) return false;
  *text = member->string;
  *length = member->string_length;
  return true;
}

static ft_status ft__load_bpe(ft__loader *loader, const ft_json *model) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft_json *vocabulary = ft__need(loader, model, "model", "vocab", FT_JSON_OBJECT), *merges = NULL;
  const ft_json *dropout = ft_json_get(model, "dropout");
  const char *prefix, *suffix, *unknown;
  size_t prefix_length, suffix_length, unknown_length;
  if (vocabulary) merges = ft__need(loader, model, "model", "merges", FT_JSON_ARRAY);
  if (!merges || !ft__read_text(loader, model, "continuing_subword_prefix", &prefix, &prefix_length) ||
      !ft__read_text(loader, model, "end_of_word_suffix", &suffix, &suffix_length) ||
      !ft__read_text(loader, model, "unk_token", &unknown, &unknown_length) ||
      !ft__read_boolean(loader, model, "model", "fuse_unk", false, &tokenizer->fuse_unknown) ||
      !ft__read_boolean(loader, model, "model", "byte_fallback", false, &tokenizer->byte_fallback) ||
      !ft__read_boolean(loader, model, "model", "ignore_merges", false, &tokenizer->ignore_merges))
    return context->status;
  if (dropout && (dropout->type == FT_JSON_NUMBER ? dropout->number > 0 : dropout->type != FT_JSON_NULL))
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: model.dropout is not supported", loader->path);
  if (tokenizer->byte_fallback && (prefix_length || suffix_length))
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: model.byte_fallback with a prefix or suffix is not supported",
                     loader->path);
  if (suffix_length >= FT__LONGEST_PIECE)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: model.end_of_word_suffix is too long", loader->path);
  if (suffix_length && !(tokenizer->suffix = ft__string_copy(context, suffix, suffix_length))) return FT_ERROR_MEMORY;
  if (ft__set_prefix(loader, prefix, prefix_length) != FT_OK || ft__load_pieces(loader, vocabulary) != FT_OK ||
      ft__load_merges(loader, merges) != FT_OK)
    return context->status;
  ft__set_byte_ids(tokenizer);
  return unknown_length ? ft__set_unknown(loader, unknown, unknown_length) : FT_OK;
}

/* The entries, whose ids are their places, as a Unigram vocabulary. */
static ft_status ft__unigram_create(ft__loader *loader, const ft__entry *entries, int64_t count, int64_t unknown) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  double lowest = 0;
  int64_t i;
  if (unknown < 0 || unknown >= count)
    return ft__error(context, FT_ERROR_FORMAT, "%s: unk_id %lld is not among %lld pieces", loader->path,
                     (long long)unknown, (long long)count);
  if (ft__set_prefix(loader, "", 0) != FT_OK ||
      ft__vocabulary_fill(loader, &tokenizer->vocabulary, entries, count) != FT_OK)
    return context->status;
  tokenizer->scores = (double *)ft__allocate(context, (size_t)count * sizeof *tokenizer->scores);
  if (!tokenizer->scores) return FT_ERROR_MEMORY;
  for (i = 0; i < count; ++i) {
    if (!ft__double_is_finite(entries[i].score))
      return ft__error(context, FT_ERROR_FORMAT, "%s: the score of piece %lld is not finite", loader->path,
                       (long long)i);
    tokenizer->scores[i] = entries[i].score;
    if (i == 0 || entries[i].score < lowest) lowest = entries[i].score;
  }
  tokenizer->vocabulary.count = count;
  tokenizer->unknown_score = lowest - 10;
  tokenizer->unknown_id = (int32_t)unknown;
  ft__set_byte_ids(tokenizer);
  return FT_OK;
}

static ft_status ft__load_unigram(ft__loader *loader, const ft_json *model) {
  ft_context *context = loader->context;
  const ft_json *list = ft__need(loader, model, "model", "vocab", FT_JSON_ARRAY), *unknown = NULL, *pair;
  ft__entry *entries;
  ft_status status = FT_OK;
  int64_t count = 0;
  if (list) unknown = ft__need(loader, model, "model", "unk_id", FT_JSON_NUMBER);
  if (!unknown || !ft__read_boolean(loader, model, "model", "byte_fallback", false, &loader->tokenizer->byte_fallback))
    return context->status;
  entries = (ft__entry *)ft__allocate(context, ft__size_product((size_t)list->count, sizeof *entries));
  if (!entries) return FT_ERROR_MEMORY;
  for (pair = list->child; pair && status == FT_OK; pair = pair->next, ++count) {
    const ft_json *piece = pair->child, *score = piece ? piece->next : NULL;
    if (pair->type != FT_JSON_ARRAY || pair->count != 2 || piece->type != FT_JSON_STRING ||
        score->type != FT_JSON_NUMBER) {
      status = ft__error(context, FT_ERROR_FORMAT, "%s: model.vocab[%lld] is not [piece, score]", loader->path,
                         (long long)count);
      break;
    }
    entries[count].piece = piece->string;
    entries[count].length = piece->string_length;
    entries[count].id = count;
    entries[count].score = score->number;
  }
  if (status == FT_OK) status = ft__unigram_create(loader, entries, count, unknown->is_integer ? unknown->integer : -1);
  ft__release(context, entries);
  return status;
}

/* ---- what the fast ways need ---- */

/* A call of the model for one word, outside of any text: how many pieces it makes, and the first. */
static int64_t ft__try_word(ft__encoder *encoder, ft__characters *list, const char *bytes, size_t length,
                            int32_t *first) {
  size_t at = 0;
  list->count = 0;
  while (at < length) {
    uint32_t code;
    at += (size_t)ft__utf8_decode(bytes + at, length - at, &code);
    ft__characters_add(list, code, 0, 0);
  }
  if (list->failed) encoder->failed = true;
  if (encoder->failed || list->count == 0) return 0;
  encoder->encoding->count = 0;
  encoder->tokenizer->model->word(encoder, list->at, list->count);
  if (encoder->encoding->count) *first = encoder->encoding->ids[0];
  return encoder->encoding->count;
}

/* The words that are one piece by themselves, as the text spells them: `spell` writes that for a piece, and returns its
   length or -1. */
static bool ft__whole_create(ft__loader *loader, int64_t (*spell)(const char *piece, size_t length, char *out)) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft__vocabulary *vocabulary = &tokenizer->vocabulary;
  ft_context *context = loader->context;
  ft__entry *entries = (ft__entry *)ft__allocate(context, (size_t)vocabulary->size * sizeof *entries);
  size_t used = 0, room = 0;
  char *text;
  ft_encoding encoding;
  ft__encoder encoder;
  ft__characters list;
  int64_t count = 0;
  int32_t id, made = -1;
  for (id = 0; id < vocabulary->size; ++id)
    if (vocabulary->starts[id] != FT__NO_PIECE) room += vocabulary->lengths[id] + 1;
  text = (char *)ft__allocate(context, room);
  memset(&encoding, 0, sizeof encoding);
  memset(&encoder, 0, sizeof encoder);
  encoder.context = context;
  encoder.tokenizer = tokenizer;
  encoder.encoding = &encoding;
  encoder.failed = !entries || !text;
  ft__characters_start(&list, context);
  for (id = 0; id < vocabulary->size && !encoder.failed; ++id) {
    const char *piece = vocabulary->text + vocabulary->starts[id];
    int64_t length;
    if (vocabulary->starts[id] == FT__NO_PIECE) continue;
    length = spell(piece, vocabulary->lengths[id], text + used);
    if (length <= 0 || ft__try_word(&encoder, &list, piece, vocabulary->lengths[id], &made) != 1 || made != id)
      continue;
    entries[count].piece = text + used;
    entries[count].length = (size_t)length;
    entries[count++].id = id;
    used += (size_t)length;
  }
  ft__characters_free(&list);
  ft_encoding_free(&encoding);
  if (!encoder.failed) encoder.failed = ft__vocabulary_fill(loader, &tokenizer->whole, entries, count) != FT_OK;
  ft__release(context, text);
  ft__release(context, entries);
  return !encoder.failed;
}

static bool ft__wordpiece_prepare(ft__loader *loader) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft__normalizer *normalizer = &tokenizer->normalizer;
  int byte;
  tokenizer->fast = normalizer->is_bert && tokenizer->split_count == 1 && tokenizer->splits[0].split == ft__split_bert;
  for (byte = 0; byte < 128; ++byte) {
    int property = normalizer->unicode.properties[byte];
    char piece = (char)byte;
    int32_t id = tokenizer->longest_word > 0 ? ft__vocabulary_find(&tokenizer->vocabulary, &piece, 1) : -1;
    tokenizer->punctuation_ids[byte] = id >= 0 ? id : tokenizer->unknown_id;
    if (property & FT__DELETED && normalizer->clean_text) continue;
    tokenizer->ascii[byte] = (uint8_t)(property & (FT__WHITESPACE | FT__PUNCTUATION));
    if (tokenizer->ascii[byte]) continue;
    tokenizer->fold[byte] = (uint8_t)byte;
    if (normalizer->lowercase)
      tokenizer->fold[byte] = (uint8_t)ft__unicode_lower_case(&normalizer->unicode, (uint32_t)byte);
  }
  return true;
}

/* A piece of byte-level BPE as bytes. */
static int64_t ft__spell_bytes(const char *piece, size_t length, char *out) {
  int64_t written = 0;
  size_t at = 0;
  while (at < length) {
    uint32_t code;
    int byte;
    at += (size_t)ft__utf8_decode(piece + at, length - at, &code);
    if ((byte = ft__character_byte(code)) < 0) return -1;
    out[written++] = (char)byte;
  }
  return written;
}

static bool ft__bpe_prepare(ft__loader *loader) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  int byte;
  for (byte = 0; byte < 256; ++byte)
    if (tokenizer->byte_ids[byte] < 0) return true;
  if (tokenizer->normalizer.count || tokenizer->split_count != 1 || tokenizer->splits[0].split != ft__split_bytes ||
      tokenizer->splits[0].flags[0] || !tokenizer->splits[0].flags[1] || tokenizer->prefix_length ||
      tokenizer->suffix || tokenizer->byte_fallback)
    return true;
  tokenizer->fast = true;
  return ft__whole_create(loader, ft__spell_bytes);
}

/* A piece of ASCII behind U+2581 without that. */
static int64_t ft__spell_metaspace(const char *piece, size_t length, char *out) {
  size_t i;
  if (length < 3 || memcmp(piece, "\xE2\x96\x81", 3) != 0) return -1;
  for (i = 3; i < length; ++i)
    if ((unsigned char)piece[i] >= 0x80) return -1;
  memcpy(out, piece + 3, length - 3);
  return (int64_t)length - 3;
}

/* What the normalizer makes of each ASCII character by itself, if it makes no more than one. Of steps that look at more
   than one, only those that replace a doubled character are let through. */
static bool ft__unigram_prepare(ft__loader *loader) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft__normalizer *normalizer = &tokenizer->normalizer;
  const ft__step *splits = tokenizer->splits;
  ft__characters first, second;
  int64_t i;
  int byte;
  if (tokenizer->split_count != 2 || splits[0].split != ft__split_white_space ||
      splits[1].split != ft__split_metaspace || splits[1].pattern[0] != 0x2581 ||
      splits[1].pattern[1] != FT__PREPEND_ALWAYS)
    return true;
  for (i = 0; i < normalizer->count; ++i) {
    const ft__step *step = &normalizer->steps[i];
    bool spaces = step->flags[0] && step->pattern && step->pattern[0] == ' ' && step->content_count == 1 &&
                  step->content[0] == ' ';
    if (step->normalize == ft__prepend) return true;
    if (step->normalize != ft__replace || spaces) continue;
    if (step->flags[0] || step->pattern_count != 2 || step->pattern[0] != step->pattern[1] || step->pattern[0] >= 128 ||
        step->pattern[0] <= ' ' || (i > 0 && normalizer->steps[i - 1].normalize != ft__replace))
      return true;
    tokenizer->doubles[step->pattern[0]] = 1;
  }
  ft__characters_start(&first, loader->context);
  ft__characters_start(&second, loader->context);
  for (byte = 0; byte < 128; ++byte) {
    char text = (char)byte;
    const ft__characters *result = ft__normalize(normalizer, &text, 0, 1, &first, &second);
    uint32_t code = result->count == 1 ? result->at[0].code : 0;
    if (result->count == 1 && normalizer->unicode.properties[code] & FT__WHITESPACE)
      tokenizer->ascii[byte] = FT__WHITESPACE;
    else if (code < 128)
      tokenizer->fold[byte] = (uint8_t)code;
  }
  ft__characters_free(&first);
  ft__characters_free(&second);
  tokenizer->fast = true;
  return ft__whole_create(loader, ft__spell_metaspace);
}

/* clang-format off */
static const ft__model_kind ft__model_kinds[] = {
    {"WordPiece", {"unk_token", "continuing_subword_prefix", "max_input_chars_per_word", "vocab", NULL},
     ft__load_wordpiece, ft__wordpiece_word, ft__wordpiece_prepare, ft__wordpiece_fast},
    {"BPE", {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
             "ignore_merges", "vocab", "merges", NULL},
     ft__load_bpe, ft__bpe_word, ft__bpe_prepare, ft__bpe_fast},
    {"Unigram", {"unk_id", "vocab", "byte_fallback", NULL},
     ft__load_unigram, ft__unigram_word, ft__unigram_prepare, ft__unigram_fast}};
/* clang-format on */
enum { FT__WORDPIECE, FT__BPE, FT__UNIGRAM, FT__MODEL_KINDS };

static ft_status ft__load_model(ft__loader *loader, const ft_json *model) {
  const ft_json *vocabulary = ft_json_get(model, "vocab");
  const char *type = "WordPiece";
  int i = 0;
  if (ft_json_get(model, "type")) /* older files do not say */
    type = ft__type(loader, model, "model");
  else if (vocabulary && (ft_json_get(model, "merges") || vocabulary->type == FT_JSON_ARRAY))
    type = vocabulary->type == FT_JSON_ARRAY ? "Unigram" : "BPE";
  if (!type) return loader->context->status;
  while (i < FT__MODEL_KINDS && strcmp(ft__model_kinds[i].type, type) != 0) ++i;
  if (i == FT__MODEL_KINDS) ft__unknown_type(loader, "model", type);
  if (i == FT__MODEL_KINDS || !ft__typed_keys(loader, model, "model", ft__model_kinds[i].keys))
    return loader->context->status;
  loader->tokenizer->model = &ft__model_kinds[i];
  return loader->tokenizer->model->load(loader, model);
}

static ft_status ft__read_added_flags(ft__loader *loader, const ft_json *object, ft__added_token *flags) {
  const char *where = "added token";
  const ft_json *normalized = ft_json_get(object, "normalized");
  if (!ft__read_boolean(loader, object, where, "special", false, &flags->special) ||
      !ft__read_boolean(loader, object, where, "single_word", false, &flags->single_word) ||
      !ft__read_boolean(loader, object, where, "lstrip", false, &flags->lstrip) ||
      !ft__read_boolean(loader, object, where, "rstrip", false, &flags->rstrip))
    return loader->context->status;
  flags->normalized = !flags->special;
  return !normalized || ft__read_boolean(loader, object, where, "normalized", true, &flags->normalized)
             ? FT_OK
             : loader->context->status;
}

/* {content, ...} with its flags; stated_id: -1 if the file gives none. */
static ft_status ft__load_added_token(ft__loader *loader, const ft_json *object, int64_t stated_id, bool special) {
  ft__added_token flags;
  const ft_json *content = ft__need(loader, object, "added token", "content", FT_JSON_STRING);
  memset(&flags, 0, sizeof flags);
  flags.special = special;
  if (!content || ft__read_added_flags(loader, object, &flags) != FT_OK) return loader->context->status;
  if (special) flags.special = true;
  return ft__added_append(loader, content->string, content->string_length, stated_id, &flags);
}

static ft_status ft__load_added_tokens(ft__loader *loader, const ft_json *list) {
  const ft_json *token;
  ft_status status = FT_OK;
  if (!list || list->type == FT_JSON_NULL) return FT_OK;
  for (token = list->child; token && status == FT_OK; token = token->next) {
    const ft_json *id = ft__need(loader, token, "added_tokens[..]", "id", FT_JSON_NUMBER);
    if (!id) return loader->context->status;
    status = ft__load_added_token(loader, token,
                                  id->is_integer && id->integer >= 0 ? id->integer : (int64_t)FT__MOST_IDS, false);
  }
  return status;
}

enum { FT__MOST_SPECIAL = 1000 }; /* tokens around a text */

static ft_status ft__template_add(ft__loader *loader, ft__template *frame, int64_t id, int64_t type) {
  int64_t room = frame->count, types_room = frame->count;
  if (id < 0 || id >= FT__MOST_IDS || type < 0 || type > INT32_MAX || frame->count >= FT__MOST_SPECIAL)
    return ft__error(loader->context, FT_ERROR_FORMAT, "%s: post_processor: id %lld or type_id %lld is out of range",
                     loader->path, (long long)id, (long long)type);
  if (frame->count % 16 == 0 &&
      (!ft__grow(loader->context, &frame->ids, &room, frame->count + 16, sizeof(int32_t)) ||
       !ft__grow(loader->context, &frame->types, &types_room, frame->count + 16, sizeof(int32_t))))
    return FT_ERROR_MEMORY;
  frame->ids[frame->count] = (int32_t)id;
  frame->types[frame->count] = (int32_t)type;
  ++frame->count;
  return FT_OK;
}

/* One element of a template: {"SpecialToken": {id, type_id}} or {"Sequence": {id: "A" or "B", type_id}}. */
static ft_status ft__template_element(ft__loader *loader, const ft_json *element, const ft_json *special_tokens,
                                      ft__template *frame, int *texts) {
  ft_context *context = loader->context;
  const ft_json *sequence = ft_json_get(element, "Sequence"), *special = ft_json_get(element, "SpecialToken");
  const ft_json *token = sequence ? sequence : special, *id, *type, *ids, *one;
  ft_status status = FT_OK;
  if (!token || element->count != 1)
    return ft__error(context, FT_ERROR_FORMAT, "%s: post_processor: an element is neither Sequence nor SpecialToken",
                     loader->path);
  id = ft__need(loader, token, "post_processor", "id", FT_JSON_STRING);
  type = ft__need(loader, token, "post_processor", "type_id", FT_JSON_NUMBER);
  if (!id || !type) return context->status;
  if (sequence) {
    if (*texts > 1 || strcmp(id->string, *texts == 0 ? "A" : "B") != 0 || type->integer < 0 ||
        type->integer > INT32_MAX)
      return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: post_processor: only A, and then B, each once, is supported",
                       loader->path);
    *(*texts == 0 ? &frame->first : &frame->second) = frame->count;
    *(*texts == 0 ? &frame->text_type : &frame->pair_type) = (int32_t)type->integer;
    ++*texts;
    return FT_OK;
  }
  token = ft__need(loader, special_tokens, "post_processor.special_tokens", id->string, FT_JSON_OBJECT);
  ids = token ? ft__need(loader, token, "post_processor.special_tokens[..]", "ids", FT_JSON_ARRAY) : NULL;
  if (!ids) return context->status;
  for (one = ids->child; one && status == FT_OK; one = one->next)
    status =
        ft__template_add(loader, frame, one->is_integer ? one->integer : -1, type->is_integer ? type->integer : -1);
  return status;
}

static ft_status ft__template_load(ft__loader *loader, const ft_json *processor, const char *key, int texts_wanted,
                                   ft__template *frame) {
  const ft_json *list = ft__need(loader, processor, "post_processor", key, FT_JSON_ARRAY), *element;
  const ft_json *special_tokens = ft__need(loader, processor, "post_processor", "special_tokens", FT_JSON_OBJECT);
  ft_status status = FT_OK;
  int texts = 0;
  if (!list || !special_tokens) return loader->context->status;
  for (element = list->child; element && status == FT_OK; element = element->next)
    status = ft__template_element(loader, element, special_tokens, frame, &texts);
  if (status != FT_OK) return status;
  if (texts != texts_wanted)
    return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: post_processor.%s holds %d texts, expected %d",
                     loader->path, key, texts, texts_wanted);
  if (texts == 1) frame->second = frame->count;
  return FT_OK;
}

/* cls A sep, and cls A sep B sep with types 0 0 0 1 1; as RoBERTa has it cls A sep sep B sep, all of type 0. */
static ft_status ft__template_usual(ft__loader *loader, int64_t cls, int64_t sep, bool roberta) {
  ft__template *single = &loader->tokenizer->single, *pair = &loader->tokenizer->pair;
  if (ft__template_add(loader, single, cls, 0) != FT_OK || ft__template_add(loader, single, sep, 0) != FT_OK ||
      ft__template_add(loader, pair, cls, 0) != FT_OK || ft__template_add(loader, pair, sep, 0) != FT_OK ||
      (roberta && ft__template_add(loader, pair, sep, 0) != FT_OK) ||
      ft__template_add(loader, pair, sep, !roberta) != FT_OK)
    return loader->context->status;
  single->first = pair->first = 1;
  single->second = 2;
  pair->second = roberta ? 3 : 2;
  pair->pair_type = !roberta;
  return FT_OK;
}

/* "cls" and "sep" of BertProcessing and RobertaProcessing: [content, id]. */
static int64_t ft__bert_token_id(ft__loader *loader, const ft_json *processor, const char *key) {
  const ft_json *token = ft__need(loader, processor, "post_processor", key, FT_JSON_ARRAY);
  if (!token) return -1;
  return token->count == 2 && token->child->next->is_integer ? token->child->next->integer : -1;
}

static ft_status ft__load_post_processor(ft__loader *loader, const ft_json *processor) {
  static const char *const types[] = {"BertProcessing", "RobertaProcessing", "TemplateProcessing", "ByteLevel",
                                      "Sequence"};
  static const char *const keys[][5] = {{"sep", "cls", NULL},
                                        {"sep", "cls", "trim_offsets", "add_prefix_space", NULL},
                                        {"single", "pair", "special_tokens", NULL},
                                        {"add_prefix_space", "trim_offsets", "use_regex", NULL},
                                        {"processors", NULL}};
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft_json *inner;
  const char *where = "post_processor", *type;
  int kind = 0;
  if (!processor || processor->type == FT_JSON_NULL) return FT_OK;
  if (!(type = ft__type(loader, processor, where))) return context->status;
  while (kind < 5 && strcmp(types[kind], type) != 0) ++kind;
  if (kind == 5) ft__unknown_type(loader, where, type);
  if (kind == 5 || !ft__typed_keys(loader, processor, where, keys[kind])) return context->status;
  if ((kind == 1 || kind == 3) &&
      (!ft__read_boolean(loader, processor, where, "trim_offsets", true, &tokenizer->trims) ||
       !ft__read_boolean(loader, processor, where, "add_prefix_space", true, &tokenizer->trims_space)))
    return context->status;
  if (kind <= 2 && tokenizer->single.count + tokenizer->pair.count > 0)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: post_processor: two templates are not supported",
                     loader->path);
  if (kind <= 1) {
    int64_t cls = ft__bert_token_id(loader, processor, "cls"), sep = ft__bert_token_id(loader, processor, "sep");
    return ft__template_usual(loader, cls, sep, kind == 1);
  }
  if (kind == 2) {
    if (ft__template_load(loader, processor, "single", 1, &tokenizer->single) != FT_OK) return context->status;
    return ft__template_load(loader, processor, "pair", 2, &tokenizer->pair);
  }
  if (kind == 3) return FT_OK;
  inner = ft__need(loader, processor, where, "processors", FT_JSON_ARRAY);
  if (!inner) return context->status;
  for (inner = inner->child; inner; inner = inner->next)
    if (ft__load_post_processor(loader, inner) != FT_OK) return context->status;
  return FT_OK;
}

static ft_status ft__load_tokenizer_json(ft__loader *loader, const ft_json *root) {
  static const char *const keys[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                     "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
  const ft_json *model = ft__need(loader, root, "", "model", FT_JSON_OBJECT);
  ft_status status;
  if (!model || ft__load_model(loader, model) != FT_OK || !ft__only_keys(loader, root, "", keys) ||
      !ft__load_normalizer(loader, ft_json_get(root, "normalizer")) ||
      !ft__load_splitter(loader, ft_json_get(root, "pre_tokenizer")))
    return loader->context->status;
  status = ft__load_added_tokens(loader, ft_json_get(root, "added_tokens"));
  return status == FT_OK ? ft__load_post_processor(loader, ft_json_get(root, "post_processor")) : status;
}

/* ---- vocab.txt, vocab.json and merges.txt, sentencepiece models ---- */

/* Length of a line without the white space at its end; -1 if it is not UTF-8. */
static int64_t ft__line_length(const ft_tokenizer *tokenizer, const char *line, int64_t length) {
  int64_t kept = 0, at = 0;
  while (at < length) {
    uint32_t code;
    int bytes = ft__utf8_valid(line + at, (size_t)(length - at));
    if (bytes == 0) return -1;
    ft__utf8_decode(line + at, (size_t)(length - at), &code);
    at += bytes;
    if (!(tokenizer->normalizer.unicode.properties[code] & FT__WHITESPACE)) kept = at;
  }
  return kept;
}

static ft_status ft__load_vocabulary_text(ft__loader *loader, const char *text, size_t size) {
  ft_context *context = loader->context;
  const char *end = text + size, *line;
  int64_t lines = 0, count = 0;
  ft__entry *entries;
  ft_status status = FT_OK;
  for (line = text; line < end; ++line) lines += *line == '\n';
  if (lines >= FT__MOST_IDS)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: %lld pieces are more than %d", loader->path, (long long)lines,
                     FT__MOST_IDS);
  entries = (ft__entry *)ft__allocate(context, (size_t)(lines + 1) * sizeof *entries);
  if (!entries) return FT_ERROR_MEMORY;
  for (line = text; line < end && status == FT_OK; ++count) {
    const char *stop = (const char *)memchr(line, '\n', (size_t)(end - line));
    int64_t length = ft__line_length(loader->tokenizer, line, (stop ? stop : end) - line);
    if (length < 0)
      status = ft__error(context, FT_ERROR_FORMAT, "%s: line %lld is not UTF-8", loader->path, (long long)count + 1);
    entries[count].piece = line;
    entries[count].length = (size_t)length;
    entries[count].id = count;
    line = stop ? stop + 1 : end;
  }
  if (status == FT_OK) status = ft__vocabulary_fill(loader, &loader->tokenizer->vocabulary, entries, count);
  ft__release(context, entries);
  return status;
}

static ft_status ft__load_merges_text(ft__loader *loader, const char *text, size_t size) {
  ft_context *context = loader->context;
  const char *end = text + size, *line, *stop;
  int64_t count = 0, rank = 0;
  ft_status status;
  for (line = text; line < end; ++line) count += *line == '\n';
  status = ft__merges_create(loader, count + 1);
  for (line = text; line < end && status == FT_OK; line = stop + 1) {
    size_t length;
    stop = (const char *)memchr(line, '\n', (size_t)(end - line));
    if (!stop) stop = end;
    length = (size_t)(stop - line);
    if (stop < end && length && line[length - 1] == '\r') --length;
    if (!ft__utf8_is_valid(line, length))
      status = ft__error(context, FT_ERROR_FORMAT, "%s: merge %lld is not UTF-8", loader->path, (long long)rank + 1);
    else if (length < 8 || memcmp(line, "#version", 8) != 0)
      status = ft__merge_line(loader, line, length, rank++);
  }
  return status;
}

/* A protocol buffer is a list of fields: a number key = 8 * field + kind, then by kind 0 a number, 1 eight bytes, 2 a
   number and so many bytes, 5 four bytes. Numbers are written seven bits a byte, the lowest first. */
typedef struct ft__field {
  const char *at, *end; /* what is left of the message */
  uint64_t field, kind, number;
  const char *bytes; /* [length]; kinds 1, 2, 5 */
  size_t length;
} ft__field;

static bool ft__varint(ft__field *message, uint64_t *value) {
  int shift;
  *value = 0;
  for (shift = 0; shift < 64 && message->at < message->end; shift += 7) {
    unsigned char byte = (unsigned char)*message->at++;
    *value |= (uint64_t)(byte & 127) << shift;
    if (byte < 128) return true;
  }
  return false;
}

/* The next field of a message; false at its end, or where it is broken (then at < end). */
static bool ft__field_next(ft__field *message) {
  const char *start = message->at;
  uint64_t key, length;
  if (message->at >= message->end) return false;
  if (ft__varint(message, &key)) {
    message->field = key >> 3;
    message->kind = key & 7;
    length = message->kind == 1 ? 8 : message->kind == 5 ? 4 : 0;
    if (message->kind == 0 && ft__varint(message, &message->number)) return true;
    if ((length || (message->kind == 2 && ft__varint(message, &length))) &&
        length <= (uint64_t)(message->end - message->at)) {
      message->bytes = message->at;
      message->length = (size_t)length;
      message->at += length;
      return true;
    }
  }
  message->at = start;
  return false;
}

static ft__field ft__message(const char *bytes, size_t length) {
  ft__field message;
  memset(&message, 0, sizeof message);
  message.at = bytes;
  message.end = bytes + length;
  return message;
}

/* ModelProto of sentencepiece, as far as it matters:

     1 (often) piece:  1 text, 2 score (float32), 3 type: 1 normal, 2 unknown, 3 control, 4 user-defined, ...
     2 trainer_spec:   3 model type: 1 Unigram
     3 normalizer_spec: 2 charsmap */
typedef struct ft__sentencepiece {
  ft__entry *entries; /* [count]; id is the type */
  int64_t count, capacity;
  uint64_t model_type;
  const char *charsmap; /* [charsmap_size] */
  size_t charsmap_size;
} ft__sentencepiece;

static bool ft__sentencepiece_piece(ft__loader *loader, ft__sentencepiece *model, ft__field message) {
  ft__entry *entry;
  if (!ft__grow(loader->context, &model->entries, &model->capacity, model->count + 1, sizeof *model->entries))
    return false;
  entry = &model->entries[model->count++];
  memset(entry, 0, sizeof *entry);
  entry->piece = "";
  entry->id = 1;
  while (ft__field_next(&message)) {
    if (message.field == 1 && message.kind == 2) entry->piece = message.bytes, entry->length = message.length;
    if (message.field == 3 && message.kind == 0) entry->id = (int64_t)(message.number & 0xFF);
    if (message.field == 2 && message.kind == 5) {
      uint32_t bits = (uint32_t)ft__load_bytes(message.bytes, 4);
      float score;
      memcpy(&score, &bits, 4);
      if ((bits >> 23 & 255) == 255) break; /* not finite */
      entry->score = score;
    }
  }
  if (message.at == message.end && ft__utf8_is_valid(entry->piece, entry->length)) return true;
  ft__error(loader->context, FT_ERROR_FORMAT, "%s: piece %lld is broken", loader->path, (long long)model->count - 1);
  return false;
}

static bool ft__load_sentencepiece(ft__loader *loader, const char *bytes, size_t size, ft__sentencepiece *model) {
  ft__field message = ft__message(bytes, size), inner;
  memset(model, 0, sizeof *model);
  model->model_type = 1;
  while (ft__field_next(&message)) {
    if (message.kind != 2 || message.field < 1 || message.field > 3) continue;
    inner = ft__message(message.bytes, message.length);
    if (message.field == 1 && !ft__sentencepiece_piece(loader, model, inner)) return false;
    while (message.field > 1 && ft__field_next(&inner)) {
      if (message.field == 2 && inner.field == 3 && inner.kind == 0) model->model_type = inner.number;
      if (message.field == 3 && inner.field == 2 && inner.kind == 2)
        model->charsmap = inner.bytes, model->charsmap_size = inner.length;
    }
    if (message.field > 1 && inner.at < inner.end) break;
  }
  if (message.at < message.end || model->count == 0)
    ft__error(loader->context, FT_ERROR_FORMAT, "%s: no sentencepiece model, or broken at byte %lld", loader->path,
              (long long)(message.at - bytes));
  else if (model->model_type != 1)
    ft__error(loader->context, FT_ERROR_UNSUPPORTED,
              "%s: a sentencepiece model of type %llu is not supported (only 1, "
              "Unigram)",
              loader->path, (unsigned long long)model->model_type);
  else
    return true;
  return false;
}

/* A special token by its role: a string, or {content, ...}; NULL if no file names it. The older map comes first. */
static const ft_json *ft__role_token(const ft_json *config, const ft_json *map, const char *role) {
  const ft_json *token = ft_json_get(map, role);
  return token ? token : ft_json_get(config, role);
}

enum { FT__MOST_CONFIG_TOKENS = 10000 };

static int ft__numbered_compare(const void *a, const void *b) {
  const ft__entry *x = (const ft__entry *)a, *y = (const ft__entry *)b;
  return x->id < y->id ? -1 : x->id > y->id;
}

/* added_tokens_decoder of tokenizer_config.json: {"id": {content, ...}}, in the order of the ids. */
static ft_status ft__load_added_decoder(ft__loader *loader, const ft_json *decoder) {
  ft_context *context = loader->context;
  ft__entry *order = (ft__entry *)ft__allocate(context, ((size_t)decoder->count + 1) * sizeof *order);
  const ft_json *token;
  ft_status status = FT_OK;
  int64_t count = 0, i;
  if (!order) return FT_ERROR_MEMORY;
  for (token = decoder->child; token; token = token->next, ++count) {
    char *stop;
    order[count].piece = (const char *)token;
    order[count].id = strtol(token->key, &stop, 10);
    if (token->key[0] < '0' || token->key[0] > '9' || *stop || order[count].id >= FT__MOST_IDS)
      order[count].id = FT__MOST_IDS;
  }
  qsort(order, (size_t)count, sizeof *order, ft__numbered_compare);
  for (i = 0; i < count && status == FT_OK; ++i)
    status = ft__load_added_token(loader, (const ft_json *)(const void *)order[i].piece, order[i].id, false);
  ft__release(context, order);
  return status;
}

/* A special token of tokenizer_config.json: a string, or {content, ...}. One that is there already is left alone. */
static ft_status ft__load_special(ft__loader *loader, const ft_json *token) {
  const ft_json *content = token->type == FT_JSON_OBJECT ? ft_json_get(token, "content") : token;
  ft__added_token flags;
  if (!content || content->type != FT_JSON_STRING)
    return ft__error(loader->context, FT_ERROR_FORMAT, "%s: %.100s is neither a string nor {\"content\": ..}",
                     loader->path, token->key ? token->key : "a special token");
  if (ft__added_find(loader->tokenizer, content->string, content->string_length)) return FT_OK;
  if (token->type == FT_JSON_OBJECT) return ft__load_added_token(loader, token, -1, true);
  memset(&flags, 0, sizeof flags);
  flags.special = true;
  return ft__added_append(loader, content->string, content->string_length, -1, &flags);
}

/* A special token's id by its role, adding it if the configuration names it; -1 if it has none. */
static ft_status ft__load_role(ft__loader *loader, const ft_json *config, const ft_json *map, const char *role,
                               const char *usual, int32_t *id) {
  const ft_json *token = ft__role_token(config, map, role), *content;
  ft__added_token flags;
  ft_status status;
  *id = -1;
  if (!token) {
    if (!usual) return FT_OK;
    memset(&flags, 0, sizeof flags);
    flags.special = true;
    status = ft__added_find(loader->tokenizer, usual, strlen(usual))
                 ? FT_OK
                 : ft__added_append(loader, usual, strlen(usual), -1, &flags);
    *id = status == FT_OK ? ft__added_find(loader->tokenizer, usual, strlen(usual))->id : -1;
    return status;
  }
  if (token->type == FT_JSON_NULL) return FT_OK;
  status = ft__load_special(loader, token);
  if (status != FT_OK) return status;
  content = token->type == FT_JSON_OBJECT ? ft_json_get(token, "content") : token;
  *id = ft__added_find(loader->tokenizer, content->string, content->string_length)->id;
  return FT_OK;
}

/* Lists of further special tokens, and nothing else that would add any. object may be NULL. */
static ft_status ft__load_extra(ft__loader *loader, const ft_json *object) {
  static const char *const lists[] = {"extra_special_tokens", "additional_special_tokens", NULL};
  const ft_json *member, *token;
  ft_status status = FT_OK;
  int i;
  for (member = object ? object->child : NULL; member; member = member->next) {
    size_t length = member->key_length;
    if (length < 6 || strcmp(member->key + length - 6, "_token") != 0 || member->type != FT_JSON_STRING) continue;
    for (i = 0; i < FT__ROLES && strcmp(ft__role_names[i], member->key) != 0; ++i) continue;
    if (i == FT__ROLES)
      return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: %.100s is not supported without tokenizer.json",
                       loader->path, member->key);
  }
  for (i = 0; lists[i]; ++i) {
    member = ft_json_get(object, lists[i]);
    if (!member || member->type == FT_JSON_NULL) continue;
    if (member->type != FT_JSON_ARRAY || member->count > FT__MOST_CONFIG_TOKENS)
      return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: %s is no array of at most %d tokens", loader->path,
                       lists[i], FT__MOST_CONFIG_TOKENS);
    for (token = member->child; token && status == FT_OK; token = token->next) status = ft__load_special(loader, token);
    if (status != FT_OK || member->count) return status; /* of the two lists, one counts */
  }
  return FT_OK;
}

/* What of a family's files stands in no file: the classes of transformers do the same. */
typedef struct ft__file_set {
  int files[2]; /* of ft__kept_names: the vocabulary, and the merges or -1 */
  const char *tokenizer_class;
  const char *usual[FT__ROLES]; /* special tokens that nothing else names */
  int open, close;              /* roles of the tokens before and behind a text */
  bool roberta;                 /* the template's kind */
  ft_status (*load)(ft__loader *loader, const struct ft__file_set *set, const ft_json *config, const ft_json *map);
} ft__file_set;

/* A normalizer and a pre-tokenizer, written as in tokenizer.json. */
static bool ft__load_described(ft__loader *loader, const char *normalizer, const char *splitter) {
  const char *texts[2];
  bool ok = true;
  int i;
  texts[0] = normalizer, texts[1] = splitter;
  for (i = 0; i < 2 && ok; ++i) {
    ft_json *root = ft_json_parse(loader->context, texts[i], strlen(texts[i]), loader->path);
    ok = root && (i ? ft__load_splitter(loader, root) : ft__load_normalizer(loader, root));
    ft_json_free(root);
  }
  return ok;
}

static ft_status ft__load_bert_files(ft__loader *loader, const ft__file_set *set, const ft_json *config,
                                     const ft_json *map) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft_json *strip = ft_json_get(config, "strip_accents");
  bool lower = true, chinese = true, strips;
  char normalizer[200];
  (void)set, (void)map;
  tokenizer->model = &ft__model_kinds[FT__WORDPIECE];
  tokenizer->longest_word = 100;
  if (ft__set_prefix(loader, "##", 2) != FT_OK ||
      ft__load_vocabulary_text(loader, tokenizer->kept[1].bytes, tokenizer->kept[1].size) != FT_OK ||
      ft__wordpiece_continue(loader) != FT_OK ||
      !ft__read_boolean(loader, config, "", "do_lower_case", false, &lower) ||
      !ft__read_boolean(loader, config, "", "tokenize_chinese_chars", false, &chinese))
    return loader->context->status;
  strips = lower;
  if (strip && strip->type != FT_JSON_NULL && !ft__read_boolean(loader, config, "", "strip_accents", true, &strips))
    return loader->context->status;
  snprintf(normalizer, sizeof normalizer,
           "{\"type\":\"BertNormalizer\",\"clean_text\":true,\"handle_chinese_chars\":%s,\"strip_accents\":%s,"
           "\"lowercase\":%s}",
           chinese ? "true" : "false", strips ? "true" : "false", lower ? "true" : "false");
  return ft__load_described(loader, normalizer, "{\"type\":\"BertPreTokenizer\"}") ? FT_OK : loader->context->status;
}

static ft_status ft__load_roberta_files(ft__loader *loader, const ft__file_set *set, const ft_json *config,
                                        const ft_json *map) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  const char *vocabulary = tokenizer->kept[set->files[0]].bytes, *merges = tokenizer->kept[set->files[1]].bytes;
  ft_json *pieces;
  ft_status status;
  (void)map;
  tokenizer->model = &ft__model_kinds[FT__BPE];
  tokenizer->trims = true;
  if (!ft__read_boolean(loader, config, "", "add_prefix_space", false, &tokenizer->trims_space) ||
      !ft__read_boolean(loader, config, "", "trim_offsets", false, &tokenizer->trims))
    return loader->context->status;
  pieces = ft_json_parse(loader->context, vocabulary, tokenizer->kept[set->files[0]].size, loader->path);
  if (!pieces) return loader->context->status;
  if (pieces->type != FT_JSON_OBJECT)
    status = ft__error(loader->context, FT_ERROR_FORMAT, "%s: the file holds no JSON object", loader->path);
  else
    status = ft__set_prefix(loader, "", 0) == FT_OK ? ft__load_pieces(loader, pieces) : loader->context->status;
  ft_json_free(pieces);
  if (status != FT_OK) return status;
  loader->path = ft__kept_names[set->files[1]];
  if (ft__load_merges_text(loader, merges, tokenizer->kept[set->files[1]].size) != FT_OK)
    return loader->context->status;
  ft__set_byte_ids(tokenizer);
  return ft__load_described(loader, "null",
                            tokenizer->trims_space ? "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}"
                                                   : "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}")
             ? FT_OK
             : loader->context->status;
}

/* The entries of a Unigram vocabulary: the model's pieces, or with XLM-RoBERTa's ids <s> <pad> </s> <unk>, the pieces
   from the third on, <mask>. */
static ft__entry *ft__sentencepiece_entries(ft__loader *loader, const ft__file_set *set, bool shifted,
                                            const ft_json *config, const ft_json *map, const ft__sentencepiece *model,
                                            int64_t *count) {
  static const int front[] = {FT__ROLE_BOS, FT__ROLE_PAD, FT__ROLE_EOS, FT__ROLE_UNK, FT__ROLE_MASK};
  int64_t skipped = shifted ? (model->count < 3 ? model->count : 3) : 0, first = shifted ? 4 : 0, i;
  ft__entry *entries =
      (ft__entry *)ft__allocate(loader->context, ft__size_product((size_t)model->count + 5, sizeof *entries));
  if (!entries) return NULL;
  *count = first + model->count - skipped + shifted;
  memcpy(entries + first, model->entries + skipped, (size_t)(model->count - skipped) * sizeof *entries);
  for (i = 0; i < 5 && shifted; ++i) {
    ft__entry *entry = &entries[i < 4 ? i : *count - 1];
    const ft_json *token = ft__role_token(config, map, ft__role_names[front[i]]);
    if (token && token->type == FT_JSON_OBJECT) token = ft_json_get(token, "content");
    entry->piece = token && token->type == FT_JSON_STRING ? token->string : set->usual[front[i]];
    entry->length = token && token->type == FT_JSON_STRING ? token->string_length : strlen(entry->piece);
    entry->score = 0;
  }
  for (i = 0; i < *count; ++i) entries[i].id = i;
  return entries;
}

/* Control and user-defined pieces are found in the text before anything else. As in the reference, they take the place
   of equal tokens that are known by their role alone: [MASK] then leaves the space before it. */
static ft_status ft__load_sentencepiece_added(ft__loader *loader, const ft__sentencepiece *model) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  ft_status status = FT_OK;
  int64_t i, k, count = 0;
  for (i = 0; i < model->count && status == FT_OK; ++i) {
    const ft__entry *entry = &model->entries[i];
    const ft__added_token *known = ft__added_find(tokenizer, entry->piece, entry->length);
    ft__added_token flags;
    char *content;
    if (entry->id != 3 && entry->id != 4) continue;
    if (++count > FT__MOST_CONFIG_TOKENS)
      return ft__error(loader->context, FT_ERROR_UNSUPPORTED, "%s: more than %d control and user-defined pieces",
                       loader->path, FT__MOST_CONFIG_TOKENS);
    k = known ? known - tokenizer->added : tokenizer->added_count;
    if (k < loader->decoded) continue;
    if (k < tokenizer->added_count) {
      ft__added_token *token = &tokenizer->added[k];
      token->single_word = token->lstrip = token->rstrip = token->normalized = false;
      continue;
    }
    memset(&flags, 0, sizeof flags);
    flags.special = entry->id == 3;
    content = ft__string_copy(loader->context, entry->piece, entry->length);
    status = content ? ft__added_append(loader, content, entry->length, -1, &flags) : FT_ERROR_MEMORY;
    ft__release(loader->context, content);
  }
  return status;
}

static ft_status ft__load_added(ft__loader *loader, const ft__file_set *set, const ft_json *config, const ft_json *map);

static ft_status ft__load_sentencepiece_files(ft__loader *loader, const ft__file_set *set, const ft_json *config,
                                              const ft_json *map) {
  static const ft__part charsmap = {NULL, {NULL}, NULL, ft__precompiled, NULL, {false, false}};
  ft_tokenizer *tokenizer = loader->tokenizer;
  const char *bytes = tokenizer->kept[set->files[0]].bytes;
  bool shifted = set->open == FT__ROLE_BOS, lower = !shifted, accents = shifted, prefix = true, ok;
  char normalizer[400], splitter[200];
  ft__sentencepiece model;
  ft__entry *entries;
  ft_status status;
  int64_t count = 0;
  tokenizer->model = &ft__model_kinds[FT__UNIGRAM];
  ok = ft__load_sentencepiece(loader, bytes, tokenizer->kept[set->files[0]].size, &model) &&
       (shifted || (ft__read_boolean(loader, config, "", "do_lower_case", false, &lower) &&
                    ft__read_boolean(loader, config, "", "keep_accents", false, &accents))) &&
       ft__read_boolean(loader, config, "", "add_prefix_space", false, &prefix);
  snprintf(normalizer, sizeof normalizer, "{\"type\":\"Sequence\",\"normalizers\":[%s%s%s]}",
           shifted ? ""
                   : "{\"type\":\"Replace\",\"pattern\":{\"String\":\"``\"},\"content\":\"\\\"\"},"
                     "{\"type\":\"Replace\",\"pattern\":{\"String\":\"''\"},\"content\":\"\\\"\"}",
           accents ? "" : ",{\"type\":\"NFKD\"},{\"type\":\"StripAccents\"}", lower ? ",{\"type\":\"Lowercase\"}" : "");
  snprintf(splitter, sizeof splitter,
           "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},{\"type\":\"Metaspace\","
           "\"replacement\":\"\xE2\x96\x81\",\"prepend_scheme\":\"%s\"}]}",
           prefix ? "always" : "never");
  ok = ok && ft__load_described(loader, normalizer, splitter);
  if (ok && model.charsmap_size) {
    ft__step *step = ft__step_add(loader, &charsmap);
    ok = step && (step->charsmap = ft__string_copy(loader->context, model.charsmap, model.charsmap_size)) != NULL &&
         ft__step_charsmap(loader, step, model.charsmap_size);
  }
  entries = ok ? ft__sentencepiece_entries(loader, set, shifted, config, map, &model, &count) : NULL;
  status = entries ? ft__unigram_create(loader, entries, count, shifted ? 3 : 1) : loader->context->status;
  ft__release(loader->context, entries);
  if (status == FT_OK) status = ft__load_added(loader, set, config, map);
  if (status == FT_OK && !ft_json_get(config, "extra_special_tokens") &&
      !ft_json_get(config, "additional_special_tokens"))
    status = ft__load_sentencepiece_added(loader, &model);
  ft__release(loader->context, model.entries);
  return status;
}

/* clang-format off */
static const ft__file_set ft__file_sets[] = {
    {{1, -1}, "BertTokenizer", {NULL, NULL, "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"},
     FT__ROLE_CLS, FT__ROLE_SEP, false, ft__load_bert_files},
    {{4, 5}, "RobertaTokenizer", {"<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"},
     FT__ROLE_CLS, FT__ROLE_SEP, true, ft__load_roberta_files},
    {{6, -1}, "AlbertTokenizer", {"[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"},
     FT__ROLE_CLS, FT__ROLE_SEP, false, ft__load_sentencepiece_files},
    {{7, -1}, "XLMRobertaTokenizer", {"<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"},
     FT__ROLE_BOS, FT__ROLE_EOS, true, ft__load_sentencepiece_files}};
/* clang-format on */
enum { FT__FILE_SETS = sizeof ft__file_sets / sizeof *ft__file_sets };

/* The first row whose files are there, or NULL. */
static const ft__file_set *ft__file_set_find(const ft_tokenizer *tokenizer) {
  int i;
  for (i = 0; i < FT__FILE_SETS; ++i) {
    const int *files = ft__file_sets[i].files;
    if (tokenizer->kept[files[0]].bytes && (files[1] < 0 || tokenizer->kept[files[1]].bytes)) return &ft__file_sets[i];
  }
  return NULL;
}

/* Added tokens that tokenizer_config.json and special_tokens_map.json name, either of which may be NULL. */
static ft_status ft__load_added(ft__loader *loader, const ft__file_set *set, const ft_json *config,
                                const ft_json *map) {
  const ft_json *decoder = ft_json_get(config, "added_tokens_decoder");
  ft_status status = FT_OK;
  int i;
  if (decoder) {
    if (decoder->type != FT_JSON_OBJECT || decoder->count > FT__MOST_CONFIG_TOKENS)
      return ft__error(loader->context, FT_ERROR_UNSUPPORTED,
                       "%s: added_tokens_decoder is no object of at most %d tokens", loader->path,
                       FT__MOST_CONFIG_TOKENS);
    status = ft__load_added_decoder(loader, decoder);
  }
  loader->decoded = loader->tokenizer->added_count;
  for (i = 0; i < FT__ROLES && status == FT_OK; ++i)
    status = ft__load_role(loader, config, map, ft__role_names[i], set->usual[i], &loader->tokenizer->roles[i]);
  if (status == FT_OK) status = ft__load_extra(loader, config);
  return status == FT_OK ? ft__load_extra(loader, map) : status;
}

/* A tokenizer without tokenizer.json. paths: of the kept files. */
static ft_status ft__load_file_set(ft__loader *loader, const ft_json *config, const ft_json *map,
                                   char *const paths[FT__KEPT_FILES]) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  const ft_json *name = ft_json_get(config, "tokenizer_class");
  const ft__file_set *set = ft__file_set_find(tokenizer);
  const char *asked = name && name->type == FT_JSON_STRING ? name->string : NULL;
  ft_status status;
  if (ft_json_get(config, "added_tokens_decoder")) map = NULL; /* as the reference: the older file is then not read */
  if (set > ft__file_sets && asked && strncmp(asked, set->tokenizer_class, strlen(set->tokenizer_class)) != 0)
    return ft__error(context, FT_ERROR_UNSUPPORTED,
                     "%s: a tokenizer_class %.100s without tokenizer.json is not supported", paths[2], asked);
  loader->path = paths[set->files[0]];
  status = set->load(loader, set, config, map);
  if (paths[2] && config) loader->path = paths[2];
  if (status == FT_OK && tokenizer->model != &ft__model_kinds[FT__UNIGRAM])
    status = ft__load_added(loader, set, config, map);
  if (status != FT_OK) return status;
  if (tokenizer->roles[FT__ROLE_UNK] < 0 || tokenizer->roles[set->close] < 0 || tokenizer->roles[set->open] < 0)
    return ft__error(context, FT_ERROR_FORMAT, "%s: unk_token, %s and %s may not be null", loader->path,
                     ft__role_names[set->close], ft__role_names[set->open]);
  if (set == ft__file_sets) { /* BERT: a word that is unknown becomes the token of that role */
    tokenizer->unknown_id = tokenizer->roles[FT__ROLE_UNK];
    if (tokenizer->unknown_id >= tokenizer->vocabulary.size)
      return ft__error(context, FT_ERROR_FORMAT, "%s: the unknown token \"%.100s\" is not among the %lld pieces",
                       paths[1], ft_tokenizer_token(tokenizer, tokenizer->unknown_id),
                       (long long)tokenizer->vocabulary.count);
  }
  return ft__template_usual(loader, tokenizer->roles[set->open], tokenizer->roles[set->close], set->roberta);
}

/* ---- all together ---- */

/* No added token may be listed twice. */
static ft_status ft__added_check(ft__loader *loader) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  size_t room = (size_t)tokenizer->added_count * sizeof(ft__name);
  ft__name *names = (ft__name *)ft__allocate(context, room), *spare = (ft__name *)ft__allocate(context, room);
  const ft__name *repeated = NULL;
  int64_t i;
  ft_status status = names && spare ? FT_OK : FT_ERROR_MEMORY;
  if (status == FT_OK) {
    for (i = 0; i < tokenizer->added_count; ++i)
      names[i] = ft__name_make(tokenizer->added[i].content, tokenizer->added[i].length, i);
    ft__names_sort(names, spare, tokenizer->added_count);
    repeated = ft__names_repeated(names, tokenizer->added_count);
  }
  if (repeated)
    status = ft__error(context, FT_ERROR_FORMAT, "%s: added token \"%.100s\" is listed twice", loader->path,
                       tokenizer->added[repeated->position].content);
  ft__release(context, spare);
  ft__release(context, names);
  return status;
}

static void ft__set_max_length(ft_tokenizer *tokenizer, const ft_json *config) {
  const ft_json *length = ft_json_get(config, "model_max_length");
  if (length && length->type == FT_JSON_NUMBER && length->number >= 1 && length->number < 1e9)
    tokenizer->max_length = (int)length->number;
}

/* Which ids are special, and which play a role that nothing has named. */
static ft_status ft__set_roles(ft__loader *loader, const ft_json *config, const ft_json *map) {
  static const char *const usual[FT__ROLES][3] = {
      {"<s>", NULL, NULL},      {"</s>", NULL, NULL},   {"[UNK]", "<unk>", NULL},  {"[SEP]", "</s>", NULL},
      {"[PAD]", "<pad>", NULL}, {"[CLS]", "<s>", NULL}, {"[MASK]", "<mask>", NULL}};
  ft_tokenizer *tokenizer = loader->tokenizer;
  int64_t i, k;
  tokenizer->special = (uint8_t *)ft__allocate_zero(loader->context, (size_t)tokenizer->size + 1);
  if (!tokenizer->special) return FT_ERROR_MEMORY;
  for (i = 0; i < tokenizer->added_count; ++i)
    if (tokenizer->added[i].special) tokenizer->special[tokenizer->added[i].id] = 1;
  for (i = 0; i < FT__ROLES; ++i) {
    const ft_json *token = ft__role_token(config, map, ft__role_names[i]);
    if (token && token->type == FT_JSON_OBJECT) token = ft_json_get(token, "content");
    if (tokenizer->roles[i] < 0 && token && token->type == FT_JSON_STRING)
      tokenizer->roles[i] = ft_tokenizer_id(tokenizer, token->string);
    for (k = 0; k < 2 && usual[i][k] && tokenizer->roles[i] < 0 && !token; ++k)
      tokenizer->roles[i] = ft_tokenizer_id(tokenizer, usual[i][k]);
    if (tokenizer->roles[i] >= 0) tokenizer->special[tokenizer->roles[i]] = 1;
  }
  return FT_OK;
}

/* What is derived from the parts: search patterns, what the fast way needs, the number of ids. */
static ft_status ft__tokenizer_finish(ft__loader *loader) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  bool all_normalized = tokenizer->normalizer.count == 0;
  int64_t i, k;
  tokenizer->size = tokenizer->vocabulary.size;
  if (tokenizer->largest_added >= tokenizer->size) tokenizer->size = (int)tokenizer->largest_added + 1;
  for (k = 0; k < 2; ++k) {
    const ft__template *frame = k ? &tokenizer->pair : &tokenizer->single;
    for (i = 0; i < frame->count; ++i)
      if (frame->ids[i] >= tokenizer->size)
        return ft__error(loader->context, FT_ERROR_FORMAT, "%s: post_processor: id %d, where the largest is %d",
                         loader->path, frame->ids[i], tokenizer->size - 1);
  }
  for (i = 0; i < tokenizer->added_count; ++i) all_normalized = all_normalized && tokenizer->added[i].normalized;
  for (i = 0; i < tokenizer->added_count; ++i) { /* without a normalizer, what is searched after it is so before it */
    if (all_normalized) tokenizer->added[i].normalized = false;
    if (ft__added_pattern(loader, &tokenizer->added[i]) != FT_OK) return loader->context->status;
  }
  if (!ft__matcher_build(tokenizer, &tokenizer->raw, false) ||
      !ft__matcher_build(tokenizer, &tokenizer->normalized, true) || !tokenizer->model->prepare(loader))
    return loader->context->status;
  return FT_OK;
}

/* Keeps the directory's files; messages about file i name paths[i]. */
static ft_status ft__keep_files(ft__loader *loader, const char *directory, char *paths[FT__KEPT_FILES]) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  int i;
  for (i = 0; i < FT__KEPT_FILES; ++i) {
    paths[i] = ft__path_join(context, directory, ft__kept_names[i]);
    if (!paths[i]) return FT_ERROR_MEMORY;
    if (!ft__file_exists(paths[i])) continue;
    tokenizer->kept[i].bytes = ft__file_read(context, paths[i], &tokenizer->kept[i].size);
    if (!tokenizer->kept[i].bytes) return context->status;
  }
  if (tokenizer->kept[0].bytes || ft__file_set_find(tokenizer)) return FT_OK;
  return ft__error(context, FT_ERROR_FILE,
                   "%s holds neither tokenizer.json nor vocab.txt, vocab.json and merges.txt, spiece.model or "
                   "sentencepiece.bpe.model",
                   directory);
}

/* Parses kept file `index` into *json (NULL if there is none). */
static bool ft__parse_kept(ft__loader *loader, int index, const char *path, ft_json **json) {
  ft_tokenizer *tokenizer = loader->tokenizer;
  *json = NULL;
  if (!tokenizer->kept[index].bytes) return true;
  *json = ft_json_parse(loader->context, tokenizer->kept[index].bytes, tokenizer->kept[index].size, path);
  if (*json && (*json)->type != FT_JSON_OBJECT) {
    ft__error(loader->context, FT_ERROR_FORMAT, "%s: the file holds no JSON object", path);
    return false;
  }
  return *json != NULL;
}

/* A file of older days that would add tokens beside a vocabulary. */
static ft_status ft__refuse_added_json(ft__loader *loader, const char *directory, const ft_json *config) {
  char *path = ft__path_join(loader->context, directory, "added_tokens.json");
  ft_status status = path ? FT_OK : FT_ERROR_MEMORY;
  if (path && ft__file_exists(path) && !ft_json_get(config, "added_tokens_decoder"))
    status = ft__error(loader->context, FT_ERROR_UNSUPPORTED,
                       "%s is not supported: save the tokenizer as tokenizer.json", path);
  ft__release(loader->context, path);
  return status;
}

static ft_status ft__load_files(ft__loader *loader, const char *directory, char *paths[FT__KEPT_FILES]) {
  ft_context *context = loader->context;
  ft_tokenizer *tokenizer = loader->tokenizer;
  ft_json *json = NULL, *config = NULL, *map = NULL;
  const ft_json *lower;
  ft_status status = FT_OK;
  if (!ft__parse_kept(loader, 0, paths[0], &json) || !ft__parse_kept(loader, 2, paths[2], &config) ||
      !ft__parse_kept(loader, 3, paths[3], &map))
    status = context->status;
  loader->path = paths[0];
  if (status == FT_OK && json) status = ft__load_tokenizer_json(loader, json);
  if (status == FT_OK && !json) status = ft__refuse_added_json(loader, directory, config);
  if (status == FT_OK && !json) status = ft__load_file_set(loader, config, map, paths);
  if (status == FT_OK) ft__set_max_length(tokenizer, config);
  if (status == FT_OK) status = ft__added_check(loader);
  if (status == FT_OK) status = ft__tokenizer_finish(loader);
  if (status == FT_OK) status = ft__set_roles(loader, config, map);
  lower = ft_json_get(config, "do_lower_case");
  if (status == FT_OK && lower && lower->type == FT_JSON_BOOLEAN && lower->boolean != tokenizer->normalizer.lowercase)
    ft__log(context, FT_LOG_WARNING, "%s: do_lower_case differs from the normalizer in %s, which counts", paths[2],
            paths[0]);
  ft_json_free(map);
  ft_json_free(config);
  ft_json_free(json);
  return status;
}

FT_API ft_tokenizer *ft_tokenizer_load(ft_context *context, const char *directory) {
  char *paths[FT__KEPT_FILES];
  char path[FT__PATH_BYTES];
  ft__loader loader;
  ft_tokenizer *tokenizer;
  ft_status status;
  int i;
  if (ft_model_path(context, directory, path, sizeof path) != FT_OK) return NULL;
  directory = path;
  tokenizer = (ft_tokenizer *)ft__allocate_zero(context, sizeof *tokenizer);
  if (!tokenizer) return NULL;
  memset(paths, 0, sizeof paths);
  tokenizer->owner = context;
  tokenizer->normalizer.unicode.context = context;
  tokenizer->largest_added = tokenizer->unknown_id = -1;
  tokenizer->pair.pair_type = 1;
  for (i = 0; i < FT__ROLES; ++i) tokenizer->roles[i] = -1;
#ifdef FT_NAIVE
  tokenizer->plain = true;
#endif
  loader.context = context;
  loader.tokenizer = tokenizer;
  loader.path = directory;
  loader.decoded = 0;
  status = ft__unicode_create(context, &tokenizer->normalizer.unicode) ? FT_OK : FT_ERROR_MEMORY;
  if (status == FT_OK) status = ft__keep_files(&loader, directory, paths);
  if (status == FT_OK) status = ft__load_files(&loader, directory, paths);
  for (i = 0; i < FT__KEPT_FILES; ++i) ft__release(context, paths[i]);
  if (status == FT_OK) return tokenizer;
  ft_tokenizer_free(tokenizer);
  return NULL;
}

static void ft__steps_free(ft_context *context, ft__step *steps, int64_t count) {
  int64_t i;
  for (i = 0; i < count; ++i) {
    ft__release(context, steps[i].pattern);
    ft__release(context, steps[i].content);
    ft__release(context, steps[i].charsmap);
  }
  ft__release(context, steps);
}

static void ft__vocabulary_free(ft_context *context, ft__vocabulary *vocabulary) {
  ft__release(context, vocabulary->text);
  ft__release(context, vocabulary->starts);
  ft__release(context, vocabulary->lengths);
  ft__release(context, vocabulary->words.slots);
  ft__release(context, vocabulary->words.filter);
  ft__release(context, vocabulary->continuations.slots);
  ft__release(context, vocabulary->continuations.filter);
}

FT_API void ft_tokenizer_free(ft_tokenizer *tokenizer) {
  ft_context *context;
  int64_t i;
  if (!tokenizer) return;
  context = tokenizer->owner;
  for (i = 0; i < tokenizer->added_count; ++i) {
    ft__release(context, tokenizer->added[i].content);
    ft__release(context, tokenizer->added[i].pattern);
  }
  for (i = 0; i < FT__KEPT_FILES; ++i) ft__release(context, tokenizer->kept[i].bytes);
  ft__steps_free(context, tokenizer->normalizer.steps, tokenizer->normalizer.count);
  ft__steps_free(context, tokenizer->splits, tokenizer->split_count);
  ft__vocabulary_free(context, &tokenizer->vocabulary);
  ft__vocabulary_free(context, &tokenizer->whole);
  ft__unicode_free(&tokenizer->normalizer.unicode);
  ft__release(context, tokenizer->added);
  ft__release(context, (void *)tokenizer->raw.sorted);
  ft__release(context, (void *)tokenizer->normalized.sorted);
  ft__release(context, tokenizer->single.ids);
  ft__release(context, tokenizer->single.types);
  ft__release(context, tokenizer->pair.ids);
  ft__release(context, tokenizer->pair.types);
  ft__release(context, tokenizer->merges);
  ft__release(context, tokenizer->scores);
  ft__release(context, tokenizer->special);
  ft__release(context, tokenizer->prefix);
  ft__release(context, tokenizer->suffix);
  ft__release(context, tokenizer);
}

FT_API int ft_tokenizer_size(const ft_tokenizer *tokenizer) { return tokenizer ? tokenizer->size : 0; }

FT_API const char *ft_tokenizer_token(const ft_tokenizer *tokenizer, int32_t id) {
  int64_t i;
  if (!tokenizer || id < 0) return NULL;
  if (id < tokenizer->vocabulary.size && tokenizer->vocabulary.starts[id] != FT__NO_PIECE)
    return tokenizer->vocabulary.text + tokenizer->vocabulary.starts[id];
  for (i = 0; i < tokenizer->added_count; ++i)
    if (tokenizer->added[i].id == id) return tokenizer->added[i].content;
  return NULL;
}

FT_API int32_t ft_tokenizer_id(const ft_tokenizer *tokenizer, const char *token) {
  const ft__added_token *added;
  if (!tokenizer || !token) return -1;
  added = ft__added_find(tokenizer, token, strlen(token));
  return added ? added->id : ft__vocabulary_find(&tokenizer->vocabulary, token, strlen(token));
}

FT_API int ft_tokenizer_max_length(const ft_tokenizer *tokenizer) { return tokenizer ? tokenizer->max_length : 0; }

FT_API int32_t ft_tokenizer_special(const ft_tokenizer *tokenizer, ft_special_token token) {
  static const int roles[] = {FT__ROLE_PAD, FT__ROLE_UNK, FT__ROLE_CLS, FT__ROLE_SEP, FT__ROLE_MASK};
  return tokenizer && token >= 0 && token <= FT_TOKEN_MASK ? tokenizer->roles[roles[token]] : -1;
}

FT_API bool ft_tokenizer_is_special(const ft_tokenizer *tokenizer, int32_t id) {
  return tokenizer && id >= 0 && id < tokenizer->size && tokenizer->special[id];
}

FT_API ft_status ft_tokenizer_save(ft_context *context, const ft_tokenizer *tokenizer, const char *directory) {
  ft_status status;
  int i;
  if (!tokenizer || !directory) {
    ft__null_argument(context, "ft_tokenizer_save needs a tokenizer and a directory");
    return context->status;
  }
  status = ft__directory_create(context, directory);
  for (i = 0; i < FT__KEPT_FILES && status == FT_OK; ++i) {
    const char *bytes = tokenizer->kept[i].bytes;
    size_t size = tokenizer->kept[i].size;
    char *path, usual[100];
    if (i == 2 && !bytes && !tokenizer->kept[0].bytes) { /* beside a vocabulary, what it is must be said */
      const ft__file_set *set = ft__file_set_find(tokenizer);
      size = (size_t)snprintf(usual, sizeof usual, "{\n%s  \"tokenizer_class\": \"%s\"\n}\n",
                              set == ft__file_sets ? "  \"do_lower_case\": true,\n" : "", set->tokenizer_class);
      bytes = usual;
    }
    if (!bytes) continue;
    path = ft__path_join(context, directory, ft__kept_names[i]);
    status = path ? ft__file_write(context, path, bytes, size) : FT_ERROR_MEMORY;
    ft__release(context, path);
  }
  return status;
}
/* =====================================================================================================================
   >>kernels

   The processor's back end. Every operation is first written as the plain loop that defines it (ft__name_plain): the
   formula, forward and backward side by side, with sums in double. Where time matters a fast version (ft__name_fast)
   stands beside it, and the tests compare the two. FT_NAIVE, FT_REAL double, and compilers without GNU vector
   extensions leave only the plain ones.

   Back-end memory is host memory here, so "opaque" addresses are ordinary pointers. */

/* FT_REAL double implies FT_NAIVE: paste the type's name to a prefix and ask what that macro is. */
#define FT__REAL_IS_float 0
#define FT__REAL_IS_double 1
#define FT__REAL_PASTE(prefix, type) prefix##type
#define FT__REAL_IS(type) FT__REAL_PASTE(FT__REAL_IS_, type)
#if defined(FT_NAIVE) || FT__REAL_IS(FT_REAL) || !defined(__GNUC__) || (!defined(__clang__) && __GNUC__ < 9) || \
    __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#define FT__FAST 0
#else
#define FT__FAST 1
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Memory. Blocks start at multiples of 64 bytes (a cache line, and the widest vector); the address that the allocator
   gave stands just before the block. */

/* Linux gives pages of 2 MiB in place of 4 KiB to who asks for them: a step reads gigabytes, and the processor keeps
   the places of few pages. 14 is its MADV_HUGEPAGE, a name that strict C hides. */
static void ft__ask_large_pages(void *memory, size_t bytes) {
#ifdef __linux__
  uintptr_t unit = 65536, start = ((uintptr_t)memory + unit - 1) / unit * unit,
            end = ((uintptr_t)memory + bytes) / unit * unit;
  if (bytes >= (size_t)1 << 20) (void)posix_madvise((void *)start, end - start, 14);
#else
  (void)memory, (void)bytes;
#endif
}

static void *ft__cpu_allocate(ft_context *context, size_t bytes) {
  char *original, *block;
  if (bytes > SIZE_MAX - 128) return NULL;
  original = (char *)ft__allocate(context, bytes + 64 + sizeof(void *));
  if (!original) return NULL;
  block = original + sizeof(void *);
  block += (64 - (uintptr_t)block % 64) % 64;
  memcpy(block - sizeof(void *), &original, sizeof(void *));
  ft__ask_large_pages(block, bytes);
  return block;
}

static void ft__cpu_release(ft_context *context, void *buffer) {
  void *original;
  if (!buffer) return;
  memcpy(&original, (char *)buffer - sizeof(void *), sizeof(void *));
  ft__release(context, original);
}

static void ft__cpu_write(ft_context *context, void *buffer, const void *host, size_t bytes) {
  (void)context;
  if (bytes) memcpy(buffer, host, bytes);
}

static void ft__cpu_read(ft_context *context, const void *buffer, void *host, size_t bytes) {
  (void)context;
  if (bytes) memcpy(host, buffer, bytes);
}

typedef struct ft__zero_job {
  char *buffer;
  size_t bytes;
} ft__zero_job;

static void ft__zero_piece(void *argument, int64_t piece, int thread) {
  const ft__zero_job *job = (const ft__zero_job *)argument;
  size_t start = (size_t)piece << 20, left = job->bytes - start;
  (void)thread;
  memset(job->buffer + start, 0, left < (size_t)1 << 20 ? left : (size_t)1 << 20);
}

static void ft__cpu_zero(ft_context *context, void *buffer, size_t bytes) {
  ft__zero_job job;
  job.buffer = (char *)buffer, job.bytes = bytes;
  ft__parallel_for(context, (int64_t)((bytes + ((size_t)1 << 20) - 1) >> 20), ft__zero_piece, &job);
}

#if FT__FAST
/* ---------------------------------------------------------------------------------------------------------------------
   Vectors and instruction sets. Fast kernels are written once, in GNU vector extensions, on vectors of 16 numbers; the
   compiler makes of each operation one AVX-512 instruction, two of AVX2, or four of SSE or NEON. What is compiled for
   what is said by FT__TASKS: it wraps an always-inlined body in one function per instruction set, and the processor
   picks one when the program runs. Since 64-byte vectors must not be passed between functions compiled for different
   sets, helpers take their addresses; inlining leaves nothing of that. */

#if defined(__clang__)
#define FT__ATTRIBUTES_GENERIC
#define FT__ATTRIBUTES_AVX2 __attribute__((target("avx2,fma"), min_vector_width(256)))
#define FT__ATTRIBUTES_AVX512_WITH(more) \
  __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma" more), min_vector_width(512)))
#else /* with -std=c99, gcc fuses a * b + c into one instruction only when told to */
#define FT__ATTRIBUTES_GENERIC __attribute__((optimize("fp-contract=fast")))
#define FT__ATTRIBUTES_AVX2 __attribute__((target("avx2,fma"), optimize("fp-contract=fast")))
#define FT__ATTRIBUTES_AVX512_WITH(more) \
  __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma" more), optimize("fp-contract=fast")))
#endif
#define FT__ATTRIBUTES_AVX512 FT__ATTRIBUTES_AVX512_WITH("")
#define FT__INLINE static inline __attribute__((always_inline))

typedef enum ft__instruction_set { FT__GENERIC = 0, FT__AVX2, FT__AVX512, FT__INSTRUCTION_SETS } ft__instruction_set;

/* static const ft__task name_tasks[]: the body `name`, compiled for each instruction set. */
#if defined(__x86_64__)
#define FT__TASKS(name)                                                                                    \
  FT__ATTRIBUTES_GENERIC                                                                                   \
  static void name##_generic(void *argument, int64_t piece, int thread) { name(argument, piece, thread); } \
  FT__ATTRIBUTES_AVX2                                                                                      \
  static void name##_avx2(void *argument, int64_t piece, int thread) { name(argument, piece, thread); }    \
  FT__ATTRIBUTES_AVX512                                                                                    \
  static void name##_avx512(void *argument, int64_t piece, int thread) { name(argument, piece, thread); }  \
  static const ft__task name##_tasks[] = {name##_generic, name##_avx2, name##_avx512};
#else
#define FT__TASKS(name)                                                                                    \
  FT__ATTRIBUTES_GENERIC                                                                                   \
  static void name##_generic(void *argument, int64_t piece, int thread) { name(argument, piece, thread); } \
  static const ft__task name##_tasks[] = {name##_generic};
#endif

static ft__instruction_set ft__instruction_set_best(void) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return FT__AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return FT__AVX2;
#endif
  return FT__GENERIC;
}

/* The tests define this before they include the header, to try every set that the processor has. */
#ifndef FT__INSTRUCTION_SET
#define FT__INSTRUCTION_SET() ft__instruction_set_best()
#endif

typedef float ft__vector __attribute__((vector_size(64)));
typedef int32_t ft__integers __attribute__((vector_size(64)));
typedef uint32_t ft__word_lanes __attribute__((vector_size(64)));
typedef float ft__vector_memory __attribute__((vector_size(64), aligned(4), may_alias)); /* anywhere in memory */
typedef float ft__quad __attribute__((vector_size(16)));
typedef float ft__quad_memory __attribute__((vector_size(16), aligned(4), may_alias));
enum { FT__LANES = 16 };

/* Conditions are masks: -1 (true) or 0 in each lane. They are made from sign bits, since gcc turns comparisons of
   vectors wider than the processor's into code for single lanes. */
#define FT__IS_NEGATIVE(v) ((ft__integers)(v) >> 31)
#define FT__SELECT(condition, a, b) \
  ((ft__vector)(((condition) & (ft__integers)(a)) | (~(condition) & (ft__integers)(b))))

FT__INLINE void ft__fill(ft__vector *v, float x) {
  ft__vector zero = {0};
  *v = x - zero;
}

/* The first `count` numbers of x, the rest 0; a whole vector if count >= 16. */
FT__INLINE void ft__load(ft__vector *v, const float *x, int64_t count) {
  if (count >= FT__LANES) {
    *v = *(const ft__vector_memory *)x;
  } else {
    float part[FT__LANES] = {0};
    memcpy(part, x, (size_t)count * sizeof(float));
    *v = *(const ft__vector_memory *)part;
  }
}

FT__INLINE void ft__store(float *x, const ft__vector *v, int64_t count) {
  if (count >= FT__LANES) {
    *(ft__vector_memory *)x = *v;
  } else {
    float part[FT__LANES];
    *(ft__vector_memory *)part = *v;
    memcpy(x, part, (size_t)count * sizeof(float));
  }
}

/* x (+)= v, `count` lanes */
FT__INLINE void ft__write(float *x, const ft__vector *v, int64_t count, bool accumulate) {
  ft__vector sum = *v, old;
  if (accumulate) {
    ft__load(&old, x, count);
    sum = sum + old;
  }
  ft__store(x, &sum, count);
}

FT__INLINE float ft__sum_lanes(const ft__vector *v) {
  float lane[FT__LANES];
  ft__quad sum;
  *(ft__vector_memory *)lane = *v;
  sum = (*(ft__quad_memory *)lane + *(ft__quad_memory *)(lane + 8)) +
        (*(ft__quad_memory *)(lane + 4) + *(ft__quad_memory *)(lane + 12));
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

FT__INLINE float ft__largest_lane(const ft__vector *v) {
  float lane[FT__LANES];
  int i;
  *(ft__vector_memory *)lane = *v;
  for (i = 1; i < FT__LANES; ++i)
    if (lane[i] > lane[0]) lane[0] = lane[i];
  return lane[0];
}

/* exp(x) = 2^n p to 2e-7 relative, with n = round(x / log 2), |x| < 128: p = exp(r) is a polynomial, since r = x - n
   log 2 is at most log(2) / 2 in size. log 2 is split in 355/512, whose product with n is exact, and a small rest;
   clearing the last bit between the two subtractions costs nothing that counts, and keeps -Ofast from joining them. */
FT__INLINE void ft__vector_exp_parts(const ft__vector *x, ft__vector *p, ft__integers *n) {
  ft__vector v = *x, r = (ft__vector)(((ft__integers)v & INT32_MIN) | 0x3F000000); /* 0.5 with the sign of v */
  *n = __builtin_convertvector(v * 1.44269504f + r, ft__integers);
  r = v - __builtin_convertvector(*n, ft__vector) * 0.693359375f;
  r = (ft__vector)((ft__integers)r & ~1);
  r = r + __builtin_convertvector(*n, ft__vector) * 2.12194440e-4f;
  v = r * 0.00138142204f + 0.00836889911f;
  v = v * r + 0.0416684076f;
  v = v * r + 0.166665196f;
  v = v * r + 0.49999994f;
  *p = v * (r * r) + r + 1.0f;
}

/* x = exp(x): 0 below -104, infinite above 88.7, anything for NaN. */
FT__INLINE void ft__vector_exp(ft__vector *x) {
  ft__vector v = *x, low, high, p;
  ft__integers n, half;
  ft__fill(&low, -104.0f);
  ft__fill(&high, 89.0f);
  v = FT__SELECT(FT__IS_NEGATIVE(v - low), low, v);
  v = FT__SELECT(FT__IS_NEGATIVE(high - v), high, v);
  ft__vector_exp_parts(&v, &p, &n);
  half = n >> 1; /* 2^n in two factors, for the ends of the range */
  *x = p * (ft__vector)((half + 127) << 23) * (ft__vector)((n - half + 127) << 23);
}

/* x = exp(x) for x <= 0, faster: never less than 1.2e-38, anything for NaN. */
FT__INLINE void ft__vector_exp_falling(ft__vector *x) {
  ft__vector v = *x, low, p;
  ft__integers n;
  ft__fill(&low, -87.3f);
  v = FT__SELECT(FT__IS_NEGATIVE(v - low), low, v);
  ft__vector_exp_parts(&v, &p, &n);
  *x = p * (ft__vector)((n + 127) << 23);
}

/* y = NaN where x is one: for results that NaN in x would not reach by itself. By bits, so that -Ofast keeps it. */
FT__INLINE void ft__keep_nan(ft__vector *y, const ft__vector *x) {
  *y = (ft__vector)((ft__integers)*y | (0x7F800000 - ((ft__integers)*x & 0x7FFFFFFF)) >> 31);
}

/* x = sqrt(x) for x >= 1e-37, less counts as that: Newton's iteration for 1 / sqrt(x) from a guess that halves the
   exponent, then one for the root itself. There is no vector square root that all compilers share. */
FT__INLINE void ft__vector_sqrt(ft__vector *x) {
  ft__vector v = *x, smallest, y, root;
  int i;
  ft__fill(&smallest, 1e-37f);
  v = FT__SELECT(FT__IS_NEGATIVE(v - smallest), smallest, v);
  y = (ft__vector)(0x5F375A86 - ((ft__integers)v >> 1));
  for (i = 0; i < 3; ++i) y = y * (1.5f - 0.5f * (v * y) * y);
  root = v * y;
  *x = root + 0.5f * y * (v - root * root);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Functions of one number, y = f(x), and their derivatives dx = dy f'(x). With the standard normal distribution's
   density phi and distribution function Phi, GELU(x) = x Phi(x), so GELU'(x) = Phi(x) + x phi(x). */

static double ft__sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* The inside of GELU's tanh approximation, sqrt(2 / pi) (x + 0.044715 x^3). */
static double ft__gelu_inner(double x) { return 0.7978845608028654 * (x + 0.044715 * x * x * x); }

static double ft__unary_value(ft_unary kind, double x) {
  switch (kind) {
    case FT_GELU:
      return 0.5 * x * (1 + erf(x * 0.7071067811865476));
    case FT_GELU_TANH:
      return 0.5 * x * (1 + tanh(ft__gelu_inner(x)));
    case FT_RELU:
      return x > 0 ? x : 0;
    case FT_SILU:
      return x * ft__sigmoid(x);
    case FT_TANH:
      return tanh(x);
    case FT_SIGMOID:
      return ft__sigmoid(x);
    case FT_EXP:
      return exp(x);
    case FT_LOG:
      return log(x);
    case FT_SQRT:
      return sqrt(x);
    default:
      return x;
  }
}

/* f'(x), where y = f(x) */
static double ft__unary_derivative(ft_unary kind, double x, double y) {
  double t;
  switch (kind) {
    case FT_GELU:
      return 0.5 * (1 + erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * exp(-0.5 * x * x);
    case FT_GELU_TANH:
      t = tanh(ft__gelu_inner(x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * 0.7978845608028654 * (1 + 3 * 0.044715 * x * x);
    case FT_RELU:
      return x > 0;
    case FT_SILU:
      t = ft__sigmoid(x);
      return t * (1 + x * (1 - t));
    case FT_TANH:
      return 1 - y * y;
    case FT_SIGMOID:
      return y * (1 - y);
    case FT_EXP:
      return y;
    case FT_LOG:
      return 1 / x;
    case FT_SQRT:
      return 0.5 / y;
    default:
      return 1;
  }
}

static void ft__unary_plain(ft_context *context, ft_unary kind, int64_t count, const ft_real *x, ft_real *y) {
  int64_t i;
  (void)context;
  for (i = 0; i < count; ++i) y[i] = (ft_real)ft__unary_value(kind, (double)x[i]);
}

static void ft__unary_backward_plain(ft_context *context, ft_unary kind, int64_t count, const ft_real *x,
                                     const ft_real *y, const ft_real *dy, ft_real *dx, bool accumulate) {
  int64_t i;
  (void)context;
  for (i = 0; i < count; ++i) {
    ft_real gradient = (ft_real)((double)dy[i] * ft__unary_derivative(kind, (double)x[i], (double)y[i]));
    dx[i] = accumulate ? dx[i] + gradient : gradient;
  }
}

#if FT__FAST
/* phi = the normal density at x, Phi = the distribution function, to 3e-7 of min(Phi, 1 - Phi) for |x| < 4 and 1e-9
   absolute beyond. Phi(-z) for z >= 0 is exp(-z^2 / 2) times a function that falls slowly from 1/2 to 0.4 / z; in
   t = 1 / (1 + 0.3 z) this is a polynomial to within 4e-8. */
FT__INLINE void ft__vector_normal(const ft__vector *x, ft__vector *phi, ft__vector *Phi) {
  ft__vector v = *x, e = v * v * -0.5f, t, p;
  ft__integers negative = FT__IS_NEGATIVE(v);
  ft__vector_exp_falling(&e);
  t = 1.0f / (1.0f + 0.3f * FT__SELECT(negative, -v, v));
  p = 0.0366420969f * t - 0.160798118f;
  p = p * t + 0.211599648f;
  p = p * t - 0.0573843531f;
  p = p * t + 0.129731134f;
  p = p * t + 0.0998815596f;
  p = p * t + 0.120687969f;
  p = p * t + 0.119640082f;
  p = p * t * e;
  *Phi = FT__SELECT(negative, p, 1.0f - p);
  *phi = e * 0.398942280f;
}

/* x = sigmoid(x) = 1 / (1 + exp(-x)), slope = sigmoid(x) (1 - sigmoid(x)): from exp(-|x|), so that neither cancels. */
FT__INLINE void ft__vector_sigmoid(ft__vector *x, ft__vector *slope) {
  ft__vector v = *x, e, s;
  ft__integers negative = FT__IS_NEGATIVE(v);
  e = FT__SELECT(negative, v, -v);
  ft__vector_exp(&e);
  s = 1.0f / (1.0f + e);
  e = e * s;
  *x = FT__SELECT(negative, e, s);
  *slope = e * s;
}

/* x = tanh(x): a polynomial near 0, where 1 - 2 / (exp(2x) + 1) would cancel. */
FT__INLINE void ft__vector_tanh(ft__vector *x) {
  ft__vector v = *x, square = v * v, e = v + v, p;
  ft__integers small = FT__IS_NEGATIVE(square - 0.36f);
  ft__vector_exp(&e);
  p = -0.00566687481f * square + 0.0206060911f;
  p = p * square - 0.0537299849f;
  p = p * square + 0.133313313f;
  p = p * square - 0.333332777f;
  p = p * square * v + v;
  *x = FT__SELECT(small, p, 1.0f - 2.0f / (e + 1.0f));
}

/* x = f(x); FT_LOG and FT_SQRT are left to the plain loop */
FT__INLINE void ft__vector_unary(ft_unary kind, ft__vector *x) {
  ft__vector v = *x, a, b;
  switch (kind) {
    case FT_GELU:
      ft__vector_normal(&v, &a, &b), *x = v * b;
      break;
    case FT_GELU_TANH:
      a = 1.59576912f * v * (1.0f + 0.044715f * v * v);
      ft__vector_sigmoid(&a, &b); /* (1 + tanh(z)) / 2 = sigmoid(2 z) */
      *x = v * a;
      break;
    case FT_RELU:
      *x = (ft__vector)((ft__integers)v & ~FT__IS_NEGATIVE(v));
      break;
    case FT_SILU:
      ft__vector_sigmoid(&v, &b), *x = *x * v;
      break;
    case FT_TANH:
      ft__vector_tanh(x);
      break;
    case FT_SIGMOID:
      ft__vector_sigmoid(x, &b), ft__keep_nan(x, &v);
      break;
    case FT_EXP:
      ft__vector_exp(x), ft__keep_nan(x, &v);
      break;
    default:
      break;
  }
}

/* x = f'(x), where y = f(x) */
FT__INLINE void ft__vector_derivative(ft_unary kind, ft__vector *x, const ft__vector *y) {
  ft__vector v = *x, a, b;
  switch (kind) {
    case FT_GELU:
      ft__vector_normal(&v, &a, &b), *x = b + v * a;
      break;
    case FT_GELU_TANH:
      a = 1.59576912f * v * (1.0f + 0.044715f * v * v);
      ft__vector_sigmoid(&a, &b);
      *x = a + v * b * (1.59576912f * (1.0f + 0.134145f * v * v));
      break;
    case FT_RELU:
      ft__fill(&a, 1.0f); /* of the bits, minus what is positive is negative */
      *x = (ft__vector)((ft__integers)a & ~FT__IS_NEGATIVE(v) & (-(ft__integers)v >> 31));
      break;
    case FT_SILU:
      a = v, ft__vector_sigmoid(&a, &b), *x = a + v * b;
      break;
    case FT_TANH:
      *x = 1.0f - *y * *y;
      break;
    case FT_SIGMOID:
      *x = *y * (1.0f - *y);
      break;
    case FT_EXP:
      *x = *y;
      break;
    default:
      ft__fill(x, 1.0f);
  }
}

enum { FT__PIECE = 16384 }; /* elements that a thread takes at a time; a multiple of 64 */

static int64_t ft__pieces(int64_t count, int64_t size) { return (count + size - 1) / size; }

static int64_t ft__smaller(int64_t a, int64_t b) { return a < b ? a : b; }

typedef struct ft__unary_job {
  ft_unary kind;
  int64_t count;
  const float *x, *y_given, *dy;
  float *y, *dx;
  bool accumulate;
} ft__unary_job;

FT__INLINE void ft__unary_piece(void *argument, int64_t piece, int thread) {
  const ft__unary_job *job = (const ft__unary_job *)argument;
  int64_t i, end = ft__smaller(job->count, (piece + 1) * FT__PIECE);
  (void)thread;
  for (i = piece * FT__PIECE; i < end; i += FT__LANES) {
    ft__vector v;
    ft__load(&v, job->x + i, end - i);
    ft__vector_unary(job->kind, &v);
    ft__store(job->y + i, &v, end - i);
  }
}
FT__TASKS(ft__unary_piece)

FT__INLINE void ft__unary_backward_piece(void *argument, int64_t piece, int thread) {
  const ft__unary_job *job = (const ft__unary_job *)argument;
  int64_t i, end = ft__smaller(job->count, (piece + 1) * FT__PIECE);
  (void)thread;
  for (i = piece * FT__PIECE; i < end; i += FT__LANES) {
    ft__vector v, y, dy;
    ft__load(&v, job->x + i, end - i);
    ft__load(&y, job->y_given + i, end - i);
    ft__load(&dy, job->dy + i, end - i);
    ft__vector_derivative(job->kind, &v, &y);
    v = v * dy;
    ft__write(job->dx + i, &v, end - i, job->accumulate);
  }
}
FT__TASKS(ft__unary_backward_piece)

static void ft__unary_fast(ft_context *context, ft_unary kind, int64_t count, const float *x, float *y) {
  ft__unary_job job;
  memset(&job, 0, sizeof job);
  job.kind = kind, job.count = count, job.x = x, job.y = y;
  if (kind >= FT_LOG)
    ft__unary_plain(context, kind, count, x, y);
  else
    ft__parallel_for(context, ft__pieces(count, FT__PIECE), ft__unary_piece_tasks[FT__INSTRUCTION_SET()], &job);
}

static void ft__unary_backward_fast(ft_context *context, ft_unary kind, int64_t count, const float *x, const float *y,
                                    const float *dy, float *dx, bool accumulate) {
  ft__unary_job job;
  memset(&job, 0, sizeof job);
  job.kind = kind, job.count = count, job.x = x, job.y_given = y, job.dy = dy, job.dx = dx, job.accumulate = accumulate;
  if (kind >= FT_LOG)
    ft__unary_backward_plain(context, kind, count, x, y, dy, dx, accumulate);
  else
    ft__parallel_for(context, ft__pieces(count, FT__PIECE), ft__unary_backward_piece_tasks[FT__INSTRUCTION_SET()],
                     &job);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Elementwise arithmetic over four dimensions with strides, for teaching and for the odd corners of a model. */

static ft_real ft__binary_value(ft_binary kind, ft_real a, ft_real b) {
  switch (kind) {
    case FT_ADD:
      return a + b;
    case FT_SUBTRACT:
      return a - b;
    case FT_MULTIPLY:
      return a * b;
    default:
      return a / b;
  }
}

static void ft__binary_plain(ft_context *context, ft_binary kind, const int64_t *shape, const ft_real *a,
                             const int64_t *a_stride, const ft_real *b, const int64_t *b_stride, ft_real *y) {
  int64_t i, j, k, l;
  (void)context;
  for (i = 0; i < shape[0]; ++i)
    for (j = 0; j < shape[1]; ++j)
      for (k = 0; k < shape[2]; ++k) {
        const ft_real *a_row = a + i * a_stride[0] + j * a_stride[1] + k * a_stride[2];
        const ft_real *b_row = b + i * b_stride[0] + j * b_stride[1] + k * b_stride[2];
        for (l = 0; l < shape[3]; ++l) *y++ = ft__binary_value(kind, a_row[l * a_stride[3]], b_row[l * b_stride[3]]);
      }
}

static void ft__accumulate_plain(ft_context *context, const int64_t *shape, ft_real scale, const ft_real *x,
                                 const int64_t *x_stride, ft_real *y, const int64_t *y_stride) {
  int64_t i, j, k, l;
  (void)context;
  for (i = 0; i < shape[0]; ++i)
    for (j = 0; j < shape[1]; ++j)
      for (k = 0; k < shape[2]; ++k) {
        const ft_real *x_row = x + i * x_stride[0] + j * x_stride[1] + k * x_stride[2];
        ft_real *y_row = y + i * y_stride[0] + j * y_stride[1] + k * y_stride[2];
        for (l = 0; l < shape[3]; ++l) y_row[l * y_stride[3]] += scale * x_row[l * x_stride[3]];
      }
}

#if FT__FAST
/* Where both operands lie without gaps, as gradients do, the four dimensions are one. */
static bool ft__strides_contiguous(const int64_t *shape, const int64_t *stride) {
  int64_t expected = 1;
  int i;
  for (i = 3; i >= 0; expected *= shape[i--])
    if (shape[i] != 1 && stride[i] != expected) return false;
  return true;
}

typedef struct ft__accumulate_job {
  int64_t count;
  float scale;
  const float *x;
  float *y;
} ft__accumulate_job;

FT__INLINE void ft__accumulate_piece(void *argument, int64_t piece, int thread) {
  const ft__accumulate_job *job = (const ft__accumulate_job *)argument;
  int64_t i, end = ft__smaller(job->count, (piece + 1) * FT__PIECE);
  (void)thread;
  for (i = piece * FT__PIECE; i < end; i += FT__LANES) {
    ft__vector v;
    ft__load(&v, job->x + i, end - i);
    v = v * job->scale;
    ft__write(job->y + i, &v, end - i, true);
  }
}
FT__TASKS(ft__accumulate_piece)

static void ft__accumulate_fast(ft_context *context, const int64_t *shape, float scale, const float *x,
                                const int64_t *x_stride, float *y, const int64_t *y_stride) {
  ft__accumulate_job job;
  if (!ft__strides_contiguous(shape, x_stride) || !ft__strides_contiguous(shape, y_stride)) {
    ft__accumulate_plain(context, shape, scale, x, x_stride, y, y_stride);
    return;
  }
  job.count = shape[0] * shape[1] * shape[2] * shape[3], job.scale = scale, job.x = x, job.y = y;
  ft__parallel_for(context, ft__pieces(job.count, FT__PIECE), ft__accumulate_piece_tasks[FT__INSTRUCTION_SET()], &job);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Softmax of each row: y_j = exp(x_j - max) / sum_l exp(x_l - max), and dx_j += y_j (dy_j - sum_l dy_l y_l). */

static void ft__softmax_plain(ft_context *context, int64_t rows, int64_t columns, const ft_real *x, ft_real *y) {
  int64_t i, j;
  (void)context;
  for (i = 0; i < rows; ++i, x += columns, y += columns) {
    ft_real largest = columns ? x[0] : 0;
    double sum = 0;
    for (j = 1; j < columns; ++j)
      if (x[j] > largest) largest = x[j];
    for (j = 0; j < columns; ++j) sum += exp((double)(x[j] - largest));
    for (j = 0; j < columns; ++j) y[j] = (ft_real)(exp((double)(x[j] - largest)) / sum);
  }
}

static void ft__softmax_backward_plain(ft_context *context, int64_t rows, int64_t columns, const ft_real *y,
                                       const ft_real *dy, ft_real *dx) {
  int64_t i, j;
  (void)context;
  for (i = 0; i < rows; ++i, y += columns, dy += columns, dx += columns) {
    double sum = 0;
    for (j = 0; j < columns; ++j) sum += (double)dy[j] * (double)y[j];
    for (j = 0; j < columns; ++j) dx[j] += (ft_real)((double)y[j] * ((double)dy[j] - sum));
  }
}

/* ---------------------------------------------------------------------------------------------------------------------
   Matrix multiplication, C [m, n] (+)= activation(A [m, k] B [k, n] + bias [n]). With strides, the same function gives
   y = x W^T + b, its input gradient dx = dy W and its weight gradient dW += dy^T x. */

/* bfloat16: the upper 16 bits of a float, rounded to the nearest, ties to even. */
static double ft__round_bfloat16(double x) {
  float value = (float)x;
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7FFFFFFF) <= 0x7F800000) bits += 0x7FFF + (bits >> 16 & 1);
  bits &= 0xFFFF0000u;
  memcpy(&value, &bits, sizeof bits);
  return (double)value;
}

static double ft__operand(const ft_context *context, double x) {
  return context->compute_dtype == FT_BF16 ? ft__round_bfloat16(x) : x;
}

static void ft__matmul_plain(ft_context *context, const ft_matmul_call *call) {
  int64_t i, j, p;
  for (i = 0; i < call->m; ++i)
    for (j = 0; j < call->n; ++j) {
      const ft_real *a = call->a + i * call->a_row, *b = call->b + j * call->b_column;
      ft_real *c = call->c + i * call->c_row + j;
      double sum = call->bias ? (double)call->bias[j] : 0;
      for (p = 0; p < call->k; ++p)
        sum += ft__operand(context, (double)a[p * call->a_column]) * ft__operand(context, (double)b[p * call->b_row]);
      if (call->before) call->before[i * call->c_row + j] = (ft_real)sum;
      if (call->accumulate)
        *c += (ft_real)sum;
      else
        *c = (ft_real)ft__unary_value(call->activation, sum);
    }
}

#if FT__FAST
/* The fast product follows Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", 2008) and BLIS.
   A tile of C, `rows` x `columns`, stays in registers while k runs: each step loads one row of B's panel and multiplies
   it by `rows` numbers of A's panel, so that loads do not limit the multiplications. For that, blocks of A and B are
   first copied ("packed") into panels:

       A's panel of `rows` rows:        packed[p * rows + i]    = A(i, p)
       B's panel of `columns` columns:  packed[p * columns + j] = B(p, j)

   Packing makes every stride and every transposition the same, and reads memory in order. However the work is cut, each
   element of C is summed in the order of k, so the result does not depend on the number of threads. */

/* What a kernel prepares beside its products, since memory is far. It asks for the next tile of C and for the next panel
   of A. In the matrix unit, whose work leaves the vectors idle, it may pack that panel instead. `each` is how much it
   does at a time, the number before it how much is left. */
typedef struct ft__next {
  const float *c; /* rows to ask for */
  int64_t c_columns, c_rows, c_rows_each;
  const float *packed_a; /* cache lines of a packed panel to ask for */
  int64_t lines, lines_each;
  const float *a; /* or a panel to pack, whose lines are a_row apart: 32 steps of a line become a vector of words */
  int64_t a_row, words, words_each;
  float *packed;
  int64_t blocks, block, block_size; /* of 32 steps: how many the panel has, the next one, how many floats one takes */
} ft__next;

FT__INLINE void ft__next_fetch(ft__next *next, int64_t c_row) {
  int64_t i, j;
  for (i = 0; i < next->c_rows_each && next->c_rows; ++i, --next->c_rows, next->c += c_row)
    for (j = 0; j < next->c_columns; j += FT__LANES) __builtin_prefetch(next->c + j, 1);
  for (i = 0; i < next->lines_each && next->lines; ++i, --next->lines, next->packed_a += FT__LANES)
    __builtin_prefetch(next->packed_a, 0, 2);
}

typedef struct ft__micro { /* the micro-kernel of one instruction set */
  int rows, columns;
  int pieces;  /* of bfloat16 that a number is packed as (see below); 0: it is packed as it is */
  int k_block; /* how much of k is packed at a time */
  int kept;    /* how many KiB of packed B stay in the second-level cache while rows of A stream past them */
  /* c (+)= a b; next may be NULL */
  void (*tile)(int64_t k, const float *a, const float *b, float *c, int64_t c_row, bool add, ft__next *next);
  void (*begin)(void), (*end)(void); /* around tiles, or NULL */
} ft__micro;

enum { FT__TILE_ROWS = 32, FT__TILE_COLUMNS = 32 }; /* the largest of all sets */

/* Two vectors V of each row of C are two variables each: an array might be left in memory. */
#define FT__REPEAT_4(X) X(0) X(1) X(2) X(3)
#define FT__REPEAT_6(X) FT__REPEAT_4(X) X(4) X(5)
#define FT__REPEAT_8(X) FT__REPEAT_6(X) X(6) X(7)
#define FT__REPEAT_12(X) FT__REPEAT_8(X) X(8) X(9) X(10) X(11)
#define FT__REPEAT_14(X) FT__REPEAT_12(X) X(12) X(13)
#define FT__TILE_START(i) V sum##i##_0 = zero, sum##i##_1 = zero;
#define FT__TILE_STEP(i)    \
  {                         \
    V a_i = a[i] - zero;    \
    sum##i##_0 += a_i * b0; \
    sum##i##_1 += a_i * b1; \
  }
#define FT__TILE_END(i)                                       \
  {                                                           \
    V_memory *c0 = (V_memory *)(c + i * c_row), *c1 = c0 + 1; \
    if (add) sum##i##_0 += *c0, sum##i##_1 += *c1;            \
    *c0 = sum##i##_0, *c1 = sum##i##_1;                       \
  }
#define FT__TILE(name, attributes, vector_bytes, rows)                                                      \
  attributes static void name(int64_t k, const float *a, const float *b, float *c, int64_t c_row, bool add, \
                              ft__next *next) {                                                             \
    typedef float V __attribute__((vector_size(vector_bytes)));                                             \
    typedef float V_memory __attribute__((vector_size(vector_bytes), aligned(4), may_alias));               \
    enum { lanes = vector_bytes / 4 };                                                                      \
    const V zero = {0};                                                                                     \
    int64_t p;                                                                                              \
    if (next) ft__next_fetch(next, c_row);                                                                  \
    FT__REPEAT_##rows(FT__TILE_START) for (p = 0; p < k; ++p, a += rows, b += 2 * lanes) {                  \
      V b0 = *(const V_memory *)b, b1 = *(const V_memory *)(b + lanes);                                     \
      FT__REPEAT_##rows(FT__TILE_STEP)                                                                      \
    }                                                                                                       \
    FT__REPEAT_##rows(FT__TILE_END)                                                                         \
  }

#if defined(__clang__)
#define FT__SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define FT__SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, mask_##i##j##k##l)
#endif

/* y[p * y_row + i] = x[i * x_row + p] for 4 x 4 elements */
FT__INLINE void ft__transpose_4x4(const float *x, int64_t x_row, float *y, int64_t y_row) {
#if !defined(__clang__)
  typedef int32_t order __attribute__((vector_size(16)));
  const order mask_0415 = {0, 4, 1, 5}, mask_2637 = {2, 6, 3, 7}, mask_0145 = {0, 1, 4, 5}, mask_2367 = {2, 3, 6, 7};
#endif
  ft__quad a = *(const ft__quad_memory *)x, b = *(const ft__quad_memory *)(x + x_row);
  ft__quad c = *(const ft__quad_memory *)(x + 2 * x_row), d = *(const ft__quad_memory *)(x + 3 * x_row);
  ft__quad ab01 = FT__SHUFFLE(a, b, 0, 4, 1, 5), ab23 = FT__SHUFFLE(a, b, 2, 6, 3, 7);
  ft__quad cd01 = FT__SHUFFLE(c, d, 0, 4, 1, 5), cd23 = FT__SHUFFLE(c, d, 2, 6, 3, 7);
  *(ft__quad_memory *)y = FT__SHUFFLE(ab01, cd01, 0, 1, 4, 5);
  *(ft__quad_memory *)(y + y_row) = FT__SHUFFLE(ab01, cd01, 2, 3, 6, 7);
  *(ft__quad_memory *)(y + 2 * y_row) = FT__SHUFFLE(ab23, cd23, 0, 1, 4, 5);
  *(ft__quad_memory *)(y + 3 * y_row) = FT__SHUFFLE(ab23, cd23, 2, 3, 6, 7);
}

/* y[p * y_row + i] = x[i * x_row + p] for i < lines, p < count. A cache line of x is used up at once, and that of the
   next panel asked for: x often comes from memory, and its lines lie too far apart for the processor to foresee. */
static void ft__transpose(const float *x, int64_t x_row, float *y, int64_t y_row, int64_t lines, int64_t count) {
  int64_t i, p, q, whole = lines >= 4 ? count / 4 * 4 : 0;
  for (p = 0; p < whole; p += 16)
    for (i = 0; i < lines; i += 4) {
      const float *from = x + ft__smaller(i, lines - 4) * x_row + p; /* the last four lines, some of them once more */
      float *to = y + p * y_row + ft__smaller(i, lines - 4);
      for (q = 0; q < 4; ++q) __builtin_prefetch(from + (y_row + q) * x_row);
      for (q = 0; q < ft__smaller(16, whole - p); q += 4) ft__transpose_4x4(from + q, x_row, to + q * y_row, y_row);
    }
  for (p = whole; p < count; ++p)
    for (i = 0; i < lines; ++i) y[p * y_row + i] = x[i * x_row + p];
}

/* One panel: packed[p * width + i] = x[i * line_stride + p * step] for i < lines <= width, 0 for the other i. */
static void ft__pack(float *packed, int width, const float *x, int64_t line_stride, int64_t lines, int64_t step,
                     int64_t count) {
  int64_t i, p;
  if (lines < width) memset(packed, 0, (size_t)(width * count) * sizeof(float));
  if (step == 1 && line_stride != 1) {
    ft__transpose(x, line_stride, packed, width, lines, count);
    return;
  }
  for (p = 0; p < count; ++p, packed += width, x += step) {
    i = 0;
    if (line_stride == 1)
      for (; i + 4 <= lines; i += 4) *(ft__quad_memory *)(packed + i) = *(const ft__quad_memory *)(x + i);
    for (; i < lines; ++i) packed[i] = x[i * line_stride];
  }
}

#if defined(__x86_64__)
FT__TILE(ft__tile_generic, FT__ATTRIBUTES_GENERIC, 16, 6)
FT__TILE(ft__tile_avx2, FT__ATTRIBUTES_AVX2, 32, 6)
FT__TILE(ft__tile_avx512, FT__ATTRIBUTES_AVX512, 64, 14)
static const ft__micro ft__micro_kernels[] = {{6, 8, 0, 256, 192, ft__tile_generic, NULL, NULL},
                                              {6, 16, 0, 256, 192, ft__tile_avx2, NULL, NULL},
                                              {14, 32, 0, 256, 192, ft__tile_avx512, NULL, NULL}};
#else
FT__TILE(ft__tile_generic, FT__ATTRIBUTES_GENERIC, 16, 8)
static const ft__micro ft__micro_kernels[] = {{8, 8, 0, 256, 192, ft__tile_generic, NULL, NULL}};
#endif

/* All panels of `lines` lines. Where lines lie side by side, a few steps of all panels at a time: memory in order. */
static void ft__pack_all(float *packed, int width, const float *x, int64_t line_stride, int64_t lines, int64_t step,
                         int64_t count) {
  int64_t i, p, slab = step == 1 ? count : 8;
  for (p = 0; p < count; p += slab)
    for (i = 0; i < lines; i += width)
      ft__pack(packed + i * count + p * width, width, x + i * line_stride + p * step, line_stride,
               ft__smaller(width, lines - i), step, ft__smaller(slab, count - p));
}

/* ---- bfloat16 and the matrix unit. Some processors multiply pairs of bfloat16 numbers and add them up in float32, 2
   to 16 times as fast as float32 numbers: AVX-512 BF16 a pair in each lane, AMX whole tiles of 16 x 16 sums. With one
   piece, x is rounded to bfloat16 while it is packed. Three pieces hold a float32 number as it is,

       x = x1 + x2 + x3,   x1 = bfloat16(x),   x2 = bfloat16(x - x1),   x3 = bfloat16(x - x1 - x2),

   8 of its 24 bits each, and the six products  x y = x1 y1 + (x1 y2 + x2 y1) + (x1 y3 + x2 y2 + x3 y1)  leave out less
   than 2^-25 of |x y|, less than float32 arithmetic does: six times the work, which AMX does in half the time.
   (Numbers below 1e-33, whose x3 is not a normal number, lose bits; above 3.39e38 there is no finite x1, and the product
   is NaN, as it is of an infinite number.)

   Panels are cut in blocks of 32 steps of k, the last one filled up with zeros. A 32-bit word holds steps p and p + 16
   of a line, p < 16. A's block is [pieces][rows][16 words]; B's is [pieces][16 words][columns]. */
enum { FT__STEPS = 32 };

/* How many floats a line of a panel takes. */
static int64_t ft__packed_line(const ft__micro *micro, int64_t k) {
  return micro->pieces ? ft__pieces(k, FT__STEPS) * (FT__STEPS / 2) * micro->pieces : k;
}

/* rounded = bfloat16(x), as a float, for x that is no NaN */
FT__INLINE void ft__vector_round_bfloat16(const ft__vector *x, ft__word_lanes *rounded) {
  ft__word_lanes bits = (ft__word_lanes)*x;
  *rounded = (bits + ((bits >> 16 & 1u) + 0x7FFFu)) & 0xFFFF0000u;
}

/* Word i of one piece holds bfloat16(low[i]) and bfloat16(high[i]), i < 16. */
FT__INLINE void ft__pack_one(float *packed, const float *low, const float *high) {
  ft__vector x = *(const ft__vector_memory *)low, y = *(const ft__vector_memory *)high, x_rounded, y_rounded;
  ft__word_lanes x_piece, y_piece;
  ft__vector_round_bfloat16(&x, &x_piece);
  ft__vector_round_bfloat16(&y, &y_piece);
  x_rounded = (ft__vector)x_piece, y_rounded = (ft__vector)y_piece;
  ft__keep_nan(&x_rounded, &x), ft__keep_nan(&y_rounded, &y);
  *(ft__vector_memory *)packed =
      (ft__vector)((ft__word_lanes)x_rounded >> 16 | ((ft__word_lanes)y_rounded & 0xFFFF0000u));
}

/* Word i of piece q, at packed[q * size + i], holds piece q of low[i] and of high[i], i < 16. A number midway between
   two may be rounded to either, since the next piece holds the difference; after two pieces, what is left has at most 8
   bits: it is the third as it is. A NaN becomes NaN in the last piece. */
FT__INLINE void ft__pack_three(float *packed, int64_t size, const float *low, const float *high) {
  ft__vector x = *(const ft__vector_memory *)low, y = *(const ft__vector_memory *)high;
  ft__word_lanes x_piece, y_piece;
  int q;
  for (q = 0; q < 2; ++q, packed += size) {
    x_piece = ((ft__word_lanes)x + 0x8000u) & 0xFFFF0000u, y_piece = ((ft__word_lanes)y + 0x8000u) & 0xFFFF0000u;
    *(ft__vector_memory *)packed = (ft__vector)(x_piece >> 16 | y_piece);
    x = x - (ft__vector)x_piece, y = y - (ft__vector)y_piece;
  }
  *(ft__vector_memory *)packed = (ft__vector)((ft__word_lanes)x >> 16 | ((ft__word_lanes)y & 0xFFFF0000u));
}

FT__INLINE void ft__pack_words(float *packed, int64_t size, int pieces, const float *low, const float *high) {
  if (pieces == 1)
    ft__pack_one(packed, low, high);
  else
    ft__pack_three(packed, size, low, high);
}

/* One block of `lines` lines and `steps` steps from x[i * line_stride + p * step]. Words run along the steps in A's
   block and along the lines in B's; where x does not lie so, or has too few of them, it is copied first. */
FT__INLINE void ft__pack_block(float *packed, int width, bool is_a, int pieces, const float *x, int64_t line_stride,
                               int64_t lines, int64_t step, int64_t steps) {
  static const float zeros[FT__STEPS] = {0};
  float block[FT__STEPS * FT__TILE_ROWS];
  int64_t i, p, half = FT__STEPS / 2, size = width * half;
  if (is_a ? steps < FT__STEPS || step != 1 : lines < width || line_stride != 1) {
    if (lines < width || steps < FT__STEPS) memset(block, 0, sizeof block);
    if (is_a)
      ft__pack(block, FT__STEPS, x, step, steps, line_stride, lines);
    else
      ft__pack(block, width, x, line_stride, lines, step, steps);
    x = block;
    line_stride = is_a ? (int64_t)FT__STEPS : 1, step = is_a ? 1 : width;
  }
  if (is_a) {
    for (i = 0; i < width; ++i) {
      const float *line = i < lines ? x + i * line_stride : zeros;
      ft__pack_words(packed + i * half, size, pieces, line, line + half);
    }
  } else {
    for (p = 0; p < half; ++p) {
      const float *low = p < steps ? x + p * step : zeros, *high = p + half < steps ? x + (p + half) * step : zeros;
      for (i = 0; i < width; i += FT__LANES) {
        __builtin_prefetch(low + i + FT__STEPS * step), __builtin_prefetch(high + i + FT__STEPS * step);
        ft__pack_words(packed + p * width + i, size, pieces, low + i, high + i);
      }
    }
  }
}

/* All panels of `lines` lines, p < count; memory in order, as in ft__pack_all. */
FT__INLINE void ft__pack_pieces(float *packed, int width, bool is_a, int pieces, const float *x, int64_t line_stride,
                                int64_t lines, int64_t step, int64_t count) {
  int64_t i, p, first, slab = step == 1 ? count : (int64_t)FT__STEPS, size = pieces * width * (FT__STEPS / 2);
  int64_t blocks = ft__pieces(count, FT__STEPS);
  for (first = 0; first < count; first += slab)
    for (i = 0; i < lines; i += width)
      for (p = first; p < ft__smaller(first + slab, count); p += FT__STEPS)
        ft__pack_block(packed + (i / width * blocks + p / FT__STEPS) * size, width, is_a, pieces,
                       x + i * line_stride + p * step, line_stride, ft__smaller(width, lines - i), step,
                       ft__smaller(FT__STEPS, count - p));
}

#if defined(__x86_64__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#include <cpuid.h>
#include <immintrin.h>
#define FT__PAIRS 1

static bool ft__pairs_available(void) {
  unsigned a, b, c, d;
  return ft__instruction_set_best() == FT__AVX512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1);
}

#define FT__PAIRS_STEP(i)                                                    \
  {                                                                          \
    __m512bh a_i = (__m512bh)_mm512_set1_ps(a[i * (FT__STEPS / 2) + word]);  \
    sum##i##_0 = (V)_mm512_dpbf16_ps((__m512)sum##i##_0, a_i, (__m512bh)b0); \
    sum##i##_1 = (V)_mm512_dpbf16_ps((__m512)sum##i##_1, a_i, (__m512bh)b1); \
  }
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16"))) static void ft__tile_pairs(
    int64_t k, const float *a, const float *b, float *c, int64_t c_row, bool add, ft__next *next) {
  typedef float V __attribute__((vector_size(64)));
  typedef float V_memory __attribute__((vector_size(64), aligned(4), may_alias));
  enum { lanes = 16 };
  const V zero = {0};
  int word;
  if (next) ft__next_fetch(next, c_row);
  FT__REPEAT_12(FT__TILE_START) for (; k > 0; k -= FT__STEPS, a += 12 * FT__STEPS / 2) {
    for (word = 0; word < FT__STEPS / 2; ++word, b += 2 * lanes) {
      V b0 = *(const V_memory *)b, b1 = *(const V_memory *)(b + lanes);
      FT__REPEAT_12(FT__PAIRS_STEP)
    }
  }
  FT__REPEAT_12(FT__TILE_END)
}

static const ft__micro ft__micro_pairs = {12, 32, 1, 512, 384, ft__tile_pairs, NULL, NULL};
#endif

#if defined(FT__PAIRS) && defined(__linux__)
#define FT__TILES 1
#define FT__ATTRIBUTES_TILES FT__ATTRIBUTES_AVX512_WITH(",amx-tile,amx-bf16")

/* Linux lends the tiles' 8 KiB of registers to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, 18). */
static bool ft__tiles_request(void) {
  unsigned a, b, c, d;
  long result;
  if (!ft__pairs_available() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (~d & (1u << 22 | 1u << 24))) return false;
  __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
  return result == 0;
}

/* All blocks of a line, then those of the next line: memory in order. */
FT__INLINE void ft__next_pack(ft__next *next, int pieces) {
  int64_t i;
  for (i = 0; i < next->words_each && next->words; ++i, --next->words) {
    __builtin_prefetch(next->a + next->a_row), __builtin_prefetch(next->a + next->a_row + FT__STEPS / 2);
    ft__pack_words(next->packed, next->block_size / pieces, pieces, next->a, next->a + FT__STEPS / 2);
    next->a += FT__STEPS, next->packed += next->block_size;
    if (++next->block < next->blocks) continue;
    next->a += next->a_row - next->blocks * FT__STEPS, next->packed += FT__STEPS / 2 - next->blocks * next->block_size;
    next->block = 0;
  }
}

/* Eight tiles of 16 rows of 64 bytes: 0 to 3 hold 32 x 32 sums, 4 and 5 a block of A, 6 and 7 one of B. */
static const uint8_t ft__tiles_configuration[64] = {
    1,  0,  0,  0,  0,  0,  0,  0, 0,  0, 0,  0, 0,  0, 0,  0, /* palette */
    64, 0,  64, 0,  64, 0,  64, 0, 64, 0, 64, 0, 64, 0, 64, 0, /* bytes of a row */
    0,  0,  0,  0,  0,  0,  0,  0, 0,  0, 0,  0, 0,  0, 0,  0, /* of tiles that do not exist */
    16, 16, 16, 16, 16, 16, 16, 16};                           /* rows */
FT__ATTRIBUTES_TILES static void ft__tiles_begin(void) { _tile_loadconfig(ft__tiles_configuration); }
FT__ATTRIBUTES_TILES static void ft__tiles_end(void) { _tile_release(); }

/* These are statements, since that is what the compilers make of _tile_loadd and its kin. */
#define FT__TILES_START()       \
  if (add) {                    \
    FT__TILES_EACH(_tile_loadd) \
  } else {                      \
    _tile_zero(0);              \
    _tile_zero(1);              \
    _tile_zero(2);              \
    _tile_zero(3);              \
  }
#define FT__TILES_EACH(action)          \
  action(0, c, c_row * 4);              \
  action(1, c + 16, c_row * 4);         \
  action(2, c + 16 * c_row, c_row * 4); \
  action(3, c + 16 * c_row + 16, c_row * 4);
#define FT__TILES_A(x)   \
  _tile_loadd(4, x, 64); \
  _tile_loadd(5, (x) + 256, 64);
#define FT__TILES_B(x)    \
  _tile_loadd(6, x, 128); \
  _tile_loadd(7, (x) + 16, 128);
#define FT__TILES_MULTIPLY() \
  _tile_dpbf16ps(0, 4, 6);   \
  _tile_dpbf16ps(1, 4, 7);   \
  _tile_dpbf16ps(2, 5, 6);   \
  _tile_dpbf16ps(3, 5, 7);

FT__ATTRIBUTES_TILES static void ft__tile_amx_1(int64_t k, const float *a, const float *b, float *c, int64_t c_row,
                                                bool add, ft__next *next) {
  FT__TILES_START()
  for (; k > 0; k -= FT__STEPS, a += 512, b += 512) {
    FT__TILES_A(a)
    FT__TILES_B(b)
    FT__TILES_MULTIPLY()
    if (next) ft__next_fetch(next, c_row), ft__next_pack(next, 1);
  }
  FT__TILES_EACH(_tile_stored)
}

/* For at most 16 rows, as one short text has. */
FT__ATTRIBUTES_TILES static void ft__tile_amx_half(int64_t k, const float *a, const float *b, float *c, int64_t c_row,
                                                   bool add, ft__next *next) {
  if (add) {
    _tile_loadd(0, c, c_row * 4);
    _tile_loadd(1, c + 16, c_row * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
  }
  (void)next;
  for (; k > 0; k -= FT__STEPS, a += 256, b += 512) {
    _tile_loadd(4, a, 64);
    FT__TILES_B(b)
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  }
  _tile_stored(0, c, c_row * 4);
  _tile_stored(1, c + 16, c_row * 4);
}

/* Six products, the small ones first; from one to the next one operand stays. */
FT__ATTRIBUTES_TILES static void ft__tile_amx_3(int64_t k, const float *a, const float *b, float *c, int64_t c_row,
                                                bool add, ft__next *next) {
  FT__TILES_START()
  for (; k > 0; k -= FT__STEPS, a += 3 * 512, b += 3 * 512) {
    FT__TILES_A(a)
    FT__TILES_B(b + 2 * 512)
    FT__TILES_MULTIPLY()
    if (next) ft__next_fetch(next, c_row);
    FT__TILES_B(b + 512)
    FT__TILES_MULTIPLY()
    if (next) ft__next_pack(next, 3);
    FT__TILES_A(a + 512)
    FT__TILES_MULTIPLY()
    FT__TILES_B(b)
    FT__TILES_MULTIPLY()
    if (next) ft__next_pack(next, 3);
    FT__TILES_A(a + 2 * 512)
    FT__TILES_MULTIPLY()
    FT__TILES_A(a)
    FT__TILES_MULTIPLY()
    if (next) ft__next_pack(next, 3);
  }
  FT__TILES_EACH(_tile_stored)
}

static const ft__micro ft__micro_amx_1 = {32, 32, 1, 1536, 896, ft__tile_amx_1, ft__tiles_begin, ft__tiles_end};
static const ft__micro ft__micro_amx_half = {16, 32, 1, 1536, 896, ft__tile_amx_half, ft__tiles_begin, ft__tiles_end};
static const ft__micro ft__micro_amx_3 = {32, 32, 3, 512, 640, ft__tile_amx_3, ft__tiles_begin, ft__tiles_end};
#endif

/* Which micro-kernel multiplies m rows in this context. All of one type pack B alike. */
static const ft__micro *ft__micro_choose(const ft_context *context, int64_t m) {
#ifdef FT__TILES
  if (context->has_tiles && context->compute_dtype == FT_BF16) return m > 16 ? &ft__micro_amx_1 : &ft__micro_amx_half;
  if (context->has_tiles) return &ft__micro_amx_3;
#endif
#ifdef FT__PAIRS
  if (context->compute_dtype == FT_BF16) return &ft__micro_pairs;
#endif
  (void)context, (void)m;
  return &ft__micro_kernels[FT__INSTRUCTION_SET()];
}

/* c [count] (+)= edge, count > 0, at most 4 */
static void ft__tile_edge(float *c, const float *edge, int64_t count, bool add) {
  int64_t i;
  if (count >= 4) {
    ft__quad sum = *(const ft__quad_memory *)edge;
    if (add) sum = *(const ft__quad_memory *)c + sum;
    *(ft__quad_memory *)c = sum;
  } else {
    for (i = 0; i < count; ++i) c[i] = add ? c[i] + edge[i] : edge[i];
  }
}

/* One tile: c [rows, columns] (+)= a b. One that hangs over the edge of c is computed beside it. */
static void ft__tile(const ft__micro *micro, int64_t rows, int64_t columns, int64_t k, const float *a, const float *b,
                     float *c, int64_t c_row, bool add, ft__next *next) {
  float edge[FT__TILE_ROWS * FT__TILE_COLUMNS];
  int64_t row, column;
  if (rows == micro->rows && columns == micro->columns) {
    micro->tile(k, a, b, c, c_row, add, next);
    return;
  }
  micro->tile(k, a, b, edge, micro->columns, false, next);
  for (row = 0; row < rows; ++row)
    for (column = 0; column < columns; column += 4)
      ft__tile_edge(c + row * c_row + column, edge + row * micro->columns + column, columns - column, add);
}

/* How often a kernel looks at what comes next: the matrix unit's for each 32 of k, the others once. */
static int64_t ft__next_looks(const ft__micro *micro, int64_t k) { return micro->begin ? ft__pieces(k, FT__STEPS) : 1; }

/* The tile of c [rows, columns] is the next one. */
static void ft__next_tile(ft__next *next, const float *c, int64_t rows, int64_t columns, int64_t looks) {
  next->c = c, next->c_rows = rows, next->c_columns = columns, next->c_rows_each = ft__pieces(rows, looks);
}

/* c [rows, n] (+)= a b: a panel of A, which another of next_rows follows, with all panels of B. */
static void ft__panel(const ft__micro *micro, int64_t rows, int64_t next_rows, int64_t n, int64_t k, const float *a,
                      const float *b, float *c, int64_t c_row, bool add, ft__next *next) {
  int64_t j, line = ft__packed_line(micro, k), looks = ft__next_looks(micro, k), width = micro->columns;
  for (j = 0; j < n; j += width) {
    int64_t columns = ft__smaller(width, n - j), next_columns = ft__smaller(width, n - j - columns);
    if (next && next_columns) ft__next_tile(next, c + j + columns, rows, next_columns, looks);
    if (next && !next_columns) ft__next_tile(next, c + rows * c_row, next_rows, ft__smaller(width, n), looks);
    ft__tile(micro, rows, columns, k, a, b + j * line, c + j, c_row, add, next);
  }
}

/* c [m, n] (+)= a b from packed panels. Where a panel of A meets many of B, as in a product of large matrices, the next
   tile of c and the matrix unit's next panel of A are far away. */
static void ft__tiles(const ft__micro *micro, int64_t m, int64_t n, int64_t k, const float *a, const float *b, float *c,
                      int64_t c_row, bool add) {
  int64_t i, line = ft__packed_line(micro, k), panels = ft__pieces(n, micro->columns);
  ft__next next;
  memset(&next, 0, sizeof next);
  if (micro->begin) micro->begin();
  for (i = 0; i < m; i += micro->rows) {
    int64_t rows = ft__smaller(micro->rows, m - i), next_rows = ft__smaller(micro->rows, m - i - rows);
    next.packed_a = a + (i + rows) * line, next.lines = micro->begin ? next_rows * line / FT__LANES : 0;
    next.lines_each = ft__pieces(next.lines, panels * ft__next_looks(micro, k));
    ft__panel(micro, rows, next_rows, n, k, a + i * line, b, c + i * c_row, c_row, add, panels > 3 ? &next : NULL);
  }
  if (micro->end) micro->end();
}

/* How a product is cut. All threads share one packed block of A, as many rows as fit, FT__PACK_ROWS packed at a time.
   Each packs its own groups of columns of B, which stay in its second-level cache while the rows of A stream past them;
   what FT__GROUP_ROWS of these give is finished at once. */
enum { FT__GROUP_ROWS = 112, FT__PACK_ROWS = 256 };

typedef struct ft__product { /* one block of a product */
  const ft_matmul_call *call;
  const ft__micro *micro;
  float *a;             /* packed */
  float *b;             /* a packed group of columns for each thread; where A streams, all scratch memory */
  float *kept;          /* instead: all columns packed, or NULL */
  bool is_packed;       /* kept holds them already */
  int64_t m0, m, k0, k; /* where the block starts, and its size */
  int64_t line;         /* ft__packed_line of k */
  int64_t pack_rows, group_rows, group_columns, column_groups;
} ft__product;

/* Panels of an operand as the micro-kernel wants them, of `lines` lines from x[i * line_stride + p * step], p < count. */
FT__INLINE void ft__pack_operand(const ft__micro *micro, bool is_a, float *packed, const float *x, int64_t line_stride,
                                 int64_t lines, int64_t step, int64_t count) {
  int width = is_a ? micro->rows : micro->columns;
  if (micro->pieces)
    ft__pack_pieces(packed, width, is_a, micro->pieces, x, line_stride, lines, step, count);
  else
    ft__pack_all(packed, width, x, line_stride, lines, step, count);
}

/* Packs lines [first, first + lines) of A or B, steps [k0, k0 + k). */
FT__INLINE void ft__product_pack(const ft__product *job, bool is_a, int64_t first, int64_t lines, float *packed) {
  const ft_matmul_call *call = job->call;
  int64_t line_stride = is_a ? call->a_row : call->b_column, step = is_a ? call->a_column : call->b_row;
  const float *x = (is_a ? call->a : call->b) + first * line_stride + job->k0 * step;
  ft__pack_operand(job->micro, is_a, packed, x, line_stride, lines, step, job->k);
}

FT__INLINE void ft__product_rows(void *argument, int64_t piece, int thread) {
  const ft__product *job = (const ft__product *)argument;
  int64_t first = piece * job->pack_rows;
  (void)thread;
  ft__product_pack(job, true, job->m0 + first, ft__smaller(job->pack_rows, job->m - first), job->a + first * job->line);
}
FT__TASKS(ft__product_rows)

/* Adds the bias, if any, to columns [begin, end) of rows [row, row_end) and applies the activation, while they are in
   cache. */
FT__INLINE void ft__product_finish(const ft_matmul_call *call, int64_t row, int64_t row_end, int64_t begin,
                                   int64_t end) {
  int64_t j;
  if (!call->bias && !call->before && !call->activation) return;
  for (; row < row_end; ++row)
    for (j = begin; j < end; j += FT__LANES) {
      ft__vector v, bias;
      ft__load(&v, call->c + row * call->c_row + j, end - j);
      if (call->bias) {
        ft__load(&bias, call->bias + j, end - j);
        v = v + bias;
      }
      if (call->before) ft__store(call->before + row * call->c_row + j, &v, end - j);
      ft__vector_unary(call->activation, &v);
      ft__store(call->c + row * call->c_row + j, &v, end - j);
    }
}

/* One group of columns, times a share of the block's rows. */
FT__INLINE void ft__product_columns(void *argument, int64_t piece, int thread) {
  const ft__product *job = (const ft__product *)argument;
  const ft_matmul_call *call = job->call;
  int64_t j = piece % job->column_groups * job->group_columns, columns = ft__smaller(job->group_columns, call->n - j);
  int64_t i = piece / job->column_groups * job->group_rows, end = ft__smaller(i + job->group_rows, job->m);
  int64_t chunk = FT__GROUP_ROWS / job->micro->rows * job->micro->rows;
  float *b = job->kept ? job->kept + j * job->line : job->b + thread * job->group_columns * job->line;
  if (!job->is_packed) ft__product_pack(job, false, j, columns, b);
  for (; i < end; i += chunk) {
    int64_t rows = ft__smaller(chunk, end - i), row = job->m0 + i;
    ft__tiles(job->micro, rows, columns, job->k, job->a + i * job->line, b, call->c + row * call->c_row + j,
              call->c_row, call->accumulate || job->k0 > 0);
    if (job->k0 + job->k == call->k) ft__product_finish(call, row, row + rows, j, j + columns);
  }
}
FT__TASKS(ft__product_columns)

/* For scoring in bfloat16 all of B is kept as packed: half of what is read again for every batch, and nothing to round.
   One block of k stands behind the other. */
static float *ft__product_kept(ft_context *context, const ft_matmul_call *call, const ft__micro *micro,
                               bool *is_packed) {
  *is_packed = call->packed && *call->packed;
  if (call->packed && !*call->packed && micro->pieces == 1)
    *call->packed = ft__cpu_allocate(
        context, (size_t)(ft__pieces(call->n, micro->columns) * micro->columns * ft__packed_line(micro, call->k)) *
                     sizeof(float));
  return call->packed ? (float *)*call->packed : NULL;
}

/* How large pieces of `count` are: whole panels, at most `most` (itself whole panels), as many pieces for each thread. */
static int64_t ft__product_share(int64_t count, int64_t most, int threads, int64_t panel) {
  int64_t pieces = ft__pieces(ft__pieces(count, most), threads) * threads;
  return ft__pieces(ft__pieces(count, pieces), panel) * panel;
}

static void ft__product_cut(ft__product *job, int threads) {
  int64_t rows = job->micro->rows, columns = job->micro->columns, row_groups;
  int64_t panel_bytes = (int64_t)sizeof(float) * columns * job->line;
  job->pack_rows = ft__product_share(job->m, FT__PACK_ROWS / rows * rows, threads, rows);
  job->group_columns =
      ft__product_share(job->call->n, job->micro->kept * 1024 / panel_bytes * columns, threads, columns);
  job->column_groups = ft__pieces(job->call->n, job->group_columns);
  row_groups = job->kept && !job->is_packed ? 1 : ft__pieces(threads, job->column_groups);
  job->group_rows = ft__pieces(ft__pieces(job->m, row_groups), rows) * rows;
}

#ifdef FT__TILES
/* The matrix unit multiplies so fast that packing takes a fifth of the time, and packed panels of A that come from the
   third-level cache hold it up. Where the steps of A lie side by side, A is packed beside the products instead: while
   one panel streams past a thread's group of columns, the next one is packed into the second-level cache (again for
   every group: vectors have the time), and threads need not wait for each other. */
enum { FT__STREAM_WORDS = 3 };

/* How many vectors of words a kernel packs at a time beside `panels` tiles: in 32 of k, it does so once for each piece. */
static int64_t ft__stream_words(const ft__micro *micro, int64_t panels) {
  return ft__pieces(micro->rows, panels * micro->pieces);
}

/* The next panel, rows [i, i + rows), is packed beside `panels` tiles; at once, what fills no block of words. */
FT__INLINE void ft__stream_next(const ft__product *job, int64_t i, int64_t rows, int64_t panels, float *packed,
                                ft__next *next) {
  const ft_matmul_call *call = job->call;
  int64_t blocks = rows == job->micro->rows ? job->k / FT__STEPS : 0, whole = blocks * FT__STEPS;
  memset(next, 0, sizeof *next);
  if (rows == 0) return;
  next->block_size = job->micro->pieces * job->micro->rows * (FT__STEPS / 2);
  next->a = call->a + i * call->a_row + job->k0, next->a_row = call->a_row;
  next->packed = packed;
  next->words = rows * blocks, next->words_each = ft__stream_words(job->micro, panels);
  next->blocks = blocks;
  if (whole < job->k)
    ft__pack_operand(job->micro, true, packed + blocks * next->block_size, next->a + whole, call->a_row, rows, 1,
                     job->k - whole);
}

/* One group of columns, times a share of the rows. */
FT__INLINE void ft__stream_piece(void *argument, int64_t piece, int thread) {
  const ft__product *whole = (const ft__product *)argument;
  const ft_matmul_call *call = whole->call;
  const ft__micro *micro = whole->micro;
  ft__product job = *whole; /* one block of k after the other */
  int64_t j = piece % job.column_groups * job.group_columns, columns = ft__smaller(job.group_columns, call->n - j);
  int64_t begin = piece / job.column_groups * job.group_rows, end = ft__smaller(begin + job.group_rows, call->m);
  int64_t all = ft__pieces(call->n, micro->columns) * micro->columns, panels = ft__pieces(columns, micro->columns), i;
  float *scratch = job.b + thread * (int64_t)(FT__SCRATCH_BYTES / sizeof(float));
  float *panel = scratch + job.group_columns * job.line, *other = panel + micro->rows * job.line;
  ft__next next;
  for (job.k0 = 0; job.k0 < call->k; job.k0 += whole->k) {
    float *b = scratch;
    job.k = ft__smaller(whole->k, call->k - job.k0);
    if (job.kept) b = job.kept + all * ft__packed_line(micro, job.k0) + j * ft__packed_line(micro, job.k);
    if (!job.is_packed) ft__product_pack(&job, false, j, columns, b);
    ft__product_pack(&job, true, begin, ft__smaller(micro->rows, end - begin), panel);
    micro->begin();
    for (i = begin; i < end; i += micro->rows) {
      int64_t rows = ft__smaller(micro->rows, end - i), next_rows = ft__smaller(micro->rows, end - i - rows);
      float *packed = panel;
      ft__stream_next(&job, i + rows, next_rows, panels, other, &next);
      ft__panel(micro, rows, next_rows, columns, job.k, panel, b, call->c + i * call->c_row + j, call->c_row,
                call->accumulate || job.k0 > 0, &next);
      if (job.k0 + job.k == call->k) ft__product_finish(call, i, i + rows, j, j + columns);
      panel = other, other = packed;
    }
    micro->end();
  }
}
FT__TASKS(ft__stream_piece)

/* Does the product, if the rows of A lie in order and packing at most FT__STREAM_WORDS at a time is hidden by tiles. */
static bool ft__stream_run(ft_context *context, ft__product *job) {
  if (!job->micro->begin || job->call->a_column != 1) return false;
  job->m = job->call->m;
  ft__product_cut(job, context->threads);
  if (ft__stream_words(job->micro, ft__pieces(job->group_columns, job->micro->columns)) > FT__STREAM_WORDS)
    return false;
  job->b = (float *)ft__scratch(context, 0);
  ft__parallel_for(context, job->column_groups * ft__pieces(job->m, job->group_rows),
                   ft__stream_piece_tasks[FT__INSTRUCTION_SET()], job);
  return true;
}
#endif

static void ft__product_run(ft_context *context, const ft_matmul_call *call) {
  int set = FT__INSTRUCTION_SET();
  int64_t k_block, m_block, line, all_columns;
  float *kept;
  ft__product job;
  memset(&job, 0, sizeof job);
  job.call = call;
  job.micro = ft__micro_choose(context, call->m);
  job.kept = kept = ft__product_kept(context, call, job.micro, &job.is_packed);
  all_columns = ft__pieces(call->n, job.micro->columns) * job.micro->columns;
  job.k = k_block = ft__pieces(ft__pieces(call->k, ft__pieces(call->k, job.micro->k_block)), 32) * 32;
  job.line = line = ft__packed_line(job.micro, k_block);
#ifdef FT__TILES
  if (ft__stream_run(context, &job)) return;
#endif
  job.a = (float *)ft__scratch(context, 0);
  m_block = context->threads * (FT__SCRATCH_BYTES - job.micro->kept * 1024) / (line * (int64_t)sizeof(float));
  m_block = m_block / job.micro->rows * job.micro->rows;
  job.b = job.a + m_block * line;
  for (job.m0 = 0; job.m0 < call->m; job.m0 += m_block) {
    job.m = ft__smaller(m_block, call->m - job.m0);
    for (job.k0 = 0; job.k0 < call->k; job.k0 += k_block) {
      job.k = ft__smaller(k_block, call->k - job.k0);
      job.line = ft__packed_line(job.micro, job.k);
      if (kept) job.kept = kept + all_columns * ft__packed_line(job.micro, job.k0);
      ft__product_cut(&job, context->threads);
      ft__parallel_for(context, ft__pieces(job.m, job.pack_rows), ft__product_rows_tasks[set], &job);
      ft__parallel_for(context, job.column_groups * ft__pieces(job.m, job.group_rows), ft__product_columns_tasks[set],
                       &job);
    }
    job.is_packed = kept != NULL;
  }
}

/* A few rows, or a few columns, times a matrix whose rows lie as the sums need them (a linear layer's weight): packing
   would cost more than the products. Each element is a dot product. Three rows of A, from the second-level cache, meet
   some rows of B, FT__DOT_STEPS wide, that stay in the first; meanwhile the next rows of B are asked for. B's
   vectors are read as volatile: gcc would read them once for each product. */
enum { FT__FEW = 32, FT__DOT_COLUMNS = 32, FT__DOT_STEPS = 768, FT__DOT_ROWS = 3, FT__DOT_MOST = 8 };

typedef struct ft__dots { /* the kernel of one instruction set */
  int columns;
  /* sum[i][l] = a_i b_l for l < columns and k a multiple of 16 */
  void (*sums)(int64_t k, const float *const *a, const float *const *b, const float *ahead, float sum[][FT__DOT_MOST]);
} ft__dots;

/* sum[l] = the sum of lane[l][0 .. lanes), l < 4, lanes 4, 8 or 16 */
FT__INLINE void ft__sum_lanes_4(const float *lane, int lanes, float sum[4]) {
  float quads[16], across[16];
#define FT__QUAD_AT(l, i) (*(const ft__quad_memory *)(lane + (l)*lanes + (i)))
#define FT__SUM_QUADS(l)                                             \
  {                                                                  \
    ft__quad part = FT__QUAD_AT(l, 0);                               \
    if (lanes >= 8) part += FT__QUAD_AT(l, lanes / 2);               \
    if (lanes == 16) part += FT__QUAD_AT(l, 4) + FT__QUAD_AT(l, 12); \
    *(ft__quad_memory *)(quads + 4 * (l)) = part;                    \
  }
  FT__REPEAT_4(FT__SUM_QUADS)
  ft__transpose_4x4(quads, 4, across, 4);
  *(ft__quad_memory *)sum = (*(ft__quad_memory *)across + *(ft__quad_memory *)(across + 8)) +
                            (*(ft__quad_memory *)(across + 4) + *(ft__quad_memory *)(across + 12));
}

#define FT__DOT_START(l) V sum0_##l = zero, sum1_##l = zero, sum2_##l = zero;
#define FT__DOT_STEP(l)                                         \
  {                                                             \
    V y = *(const volatile V_memory *)(b[l] + p);               \
    sum0_##l += x0 * y, sum1_##l += x1 * y, sum2_##l += x2 * y; \
  }
#define FT__DOT_END(l) lane[0][l] = sum0_##l, lane[1][l] = sum1_##l, lane[2][l] = sum2_##l;
#define FT__DOT(name, attributes, vector_bytes, columns)                                                   \
  attributes static void name(int64_t k, const float *const *a, const float *const *b, const float *ahead, \
                              float sum[][FT__DOT_MOST]) {                                                 \
    typedef float V __attribute__((vector_size(vector_bytes), may_alias));                                 \
    typedef float V_memory __attribute__((vector_size(vector_bytes), aligned(4), may_alias));              \
    enum { lanes = vector_bytes / 4 };                                                                     \
    const V zero = {0};                                                                                    \
    V lane[FT__DOT_ROWS][columns];                                                                         \
    int64_t p;                                                                                             \
    int i, l;                                                                                              \
    FT__REPEAT_##columns(FT__DOT_START) for (p = 0; p < k; p += lanes) {                                   \
      V x0 = *(const V_memory *)(a[0] + p), x1 = *(const V_memory *)(a[1] + p);                            \
      V x2 = *(const V_memory *)(a[2] + p);                                                                \
      __builtin_prefetch(ahead + p);                                                                       \
      FT__REPEAT_##columns(FT__DOT_STEP)                                                                   \
    }                                                                                                      \
    FT__REPEAT_##columns(FT__DOT_END) for (i = 0; i < FT__DOT_ROWS; ++i) for (l = 0; l < columns; l += 4)  \
        ft__sum_lanes_4((const float *)&lane[i][l], lanes, sum[i] + l);                                    \
  }
FT__DOT(ft__dot_generic, FT__ATTRIBUTES_GENERIC, 16, 4)
#if defined(__x86_64__)
FT__DOT(ft__dot_avx2, FT__ATTRIBUTES_AVX2, 32, 4)
FT__DOT(ft__dot_avx512, FT__ATTRIBUTES_AVX512, 64, 8)
static const ft__dots ft__dot_kernels[] = {{4, ft__dot_generic}, {4, ft__dot_avx2}, {8, ft__dot_avx512}};
#else
static const ft__dots ft__dot_kernels[] = {{4, ft__dot_generic}};
#endif

/* c [rows, columns] (+)= sum, and the products of the last steps, fewer than 16. */
FT__INLINE void ft__dot_write(int64_t rows, int64_t columns, int64_t rest, const float *const *a, const float *const *b,
                              float sum[][FT__DOT_MOST], float *c, int64_t c_row, bool add) {
  int64_t h, l, q;
  for (h = 0; h < rows; ++h, c += c_row) {
    for (l = 0; rest && l < columns; ++l)
      for (q = 0; q < rest; ++q) sum[h][l] += a[h][q] * b[l][q];
    for (l = 0; l + 4 <= columns; l += 4) {
      ft__quad before = {0};
      if (add) before = *(const ft__quad_memory *)(c + l);
      *(ft__quad_memory *)(c + l) = before + *(const ft__quad_memory *)(sum[h] + l);
    }
    for (; l < columns; ++l) c[l] = add ? c[l] + sum[h][l] : sum[h][l];
  }
}

FT__INLINE void ft__dot_piece(void *argument, int64_t piece, int thread) {
  const ft__product *job = (const ft__product *)argument;
  const ft_matmul_call *call = job->call;
  const ft__dots *dot = &ft__dot_kernels[FT__INSTRUCTION_SET()];
  int64_t i, j, l, p, i0 = piece / job->column_groups * job->group_rows;
  int64_t j0 = piece % job->column_groups * FT__DOT_COLUMNS;
  int64_t i_end = ft__smaller(call->m, i0 + job->group_rows), j_end = ft__smaller(call->n, j0 + FT__DOT_COLUMNS);
  (void)thread;
  for (p = 0; p < call->k; p += FT__DOT_STEPS)
    for (j = j0; j < j_end; j += dot->columns)
      for (i = i0; i < i_end; i += FT__DOT_ROWS) {
        int64_t steps = ft__smaller(FT__DOT_STEPS, call->k - p), whole = steps / FT__LANES * FT__LANES;
        int64_t next = j + dot->columns + (i - i0) / FT__DOT_ROWS % dot->columns;
        const float *a[FT__DOT_ROWS], *b[FT__DOT_MOST];
        float sum[FT__DOT_ROWS][FT__DOT_MOST];
        for (l = 0; l < FT__DOT_ROWS; ++l) a[l] = call->a + ft__smaller(i + l, i_end - 1) * call->a_row + p;
        for (l = 0; l < dot->columns; ++l) b[l] = call->b + ft__smaller(j + l, j_end - 1) * call->b_column + p;
        dot->sums(whole, a, b, call->b + ft__smaller(next, j_end - 1) * call->b_column + p, sum);
        for (l = 0; l < FT__DOT_ROWS; ++l) a[l] += whole;
        for (l = 0; l < dot->columns; ++l) b[l] += whole;
        ft__dot_write(ft__smaller(FT__DOT_ROWS, i_end - i), ft__smaller(dot->columns, j_end - j), steps - whole, a, b,
                      sum, call->c + i * call->c_row + j, call->c_row, call->accumulate || p > 0);
      }
  ft__product_finish(call, i0, i_end, j0, j_end);
}
FT__TASKS(ft__dot_piece)

static void ft__matmul_fast(ft_context *context, const ft_matmul_call *call) {
  ft__product job;
  if (call->m <= 0 || call->n <= 0) return;
  if (call->k <= 0 || call->activation >= FT_LOG) {
    ft__matmul_plain(context, call);
  } else if (call->a_column == 1 && call->b_row == 1 && (call->m <= FT__FEW || call->n <= FT__FEW) &&
             context->compute_dtype == FT_F32) {
    memset(&job, 0, sizeof job);
    job.call = call;
    job.group_rows = call->m <= FT__FEW ? (int64_t)FT__FEW : (int64_t)FT__LANES;
    job.column_groups = ft__pieces(call->n, FT__DOT_COLUMNS);
    ft__parallel_for(context, ft__pieces(call->m, job.group_rows) * job.column_groups,
                     ft__dot_piece_tasks[FT__INSTRUCTION_SET()], &job);
  } else {
    ft__product_run(context, call);
  }
}
#endif

/* The gradient of a bias: sum_j += x_0j + x_1j + ... */
static void ft__column_sum_plain(ft_context *context, int64_t rows, int64_t columns, const ft_real *x, ft_real *sum) {
  int64_t i, j;
  (void)context;
  for (j = 0; j < columns; ++j) {
    double total = 0;
    for (i = 0; i < rows; ++i) total += (double)x[i * columns + j];
    sum[j] += (ft_real)total;
  }
}

#if FT__FAST
enum { FT__COLUMNS = 128 }; /* a thread's share of columns: whole cache lines of each row */

typedef struct ft__column_job {
  int64_t rows, columns, row_stride;
  const float *x;
  float *sum;
} ft__column_job;

/* y [count] += x [count] */
FT__INLINE void ft__add_row(int64_t count, const float *x, float *y) {
  int64_t j;
  for (j = 0; j < count; j += FT__LANES) {
    ft__vector a, b;
    ft__load(&a, x + j, count - j);
    ft__load(&b, y + j, count - j);
    a = a + b;
    ft__store(y + j, &a, count - j);
  }
}

/* Rows are summed in blocks, and the blocks' sums then: the rounding error grows with the blocks, not with the rows. */
FT__INLINE void ft__column_piece(void *argument, int64_t piece, int thread) {
  const ft__column_job *job = (const ft__column_job *)argument;
  int64_t i, begin, first = piece * FT__COLUMNS, columns = ft__smaller(FT__COLUMNS, job->columns - first);
  float total[FT__COLUMNS], block[FT__COLUMNS];
  (void)thread;
  memset(total, 0, sizeof total);
  for (begin = 0; begin < job->rows; begin += 64) {
    int64_t end = ft__smaller(job->rows, begin + 64);
    memset(block, 0, sizeof block);
    for (i = begin; i < end; ++i) ft__add_row(columns, job->x + i * job->row_stride + first, block);
    ft__add_row(columns, block, total);
  }
  ft__add_row(columns, total, job->sum + first);
}
FT__TASKS(ft__column_piece)

static void ft__column_sum_strided(ft_context *context, int64_t rows, int64_t columns, int64_t row_stride,
                                   const float *x, float *sum) {
  ft__column_job job;
  job.rows = rows, job.columns = columns, job.row_stride = row_stride, job.x = x, job.sum = sum;
  ft__parallel_for(context, ft__pieces(columns, FT__COLUMNS), ft__column_piece_tasks[FT__INSTRUCTION_SET()], &job);
}

static void ft__column_sum_fast(ft_context *context, int64_t rows, int64_t columns, const float *x, float *sum) {
  ft__column_sum_strided(context, rows, columns, columns, x, sum);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Dropout: y_i (+)= keep_i x_i / (1 - p). No mask is stored: see >>random numbers. */

static ft_real ft__dropout_scale(const ft_dropout_mask *dropout) {
  return dropout->probability < 1 ? (ft_real)(1 / (1 - (double)dropout->probability)) : 0;
}

/* What element `index` is multiplied by: 0 or 1 / (1 - p); 1 without dropout. */
static ft_real ft__dropout_factor(const ft_dropout_mask *dropout, int64_t index) {
  if (!(dropout->probability > 0)) return 1;
  return ft__dropout_keeps(dropout, (uint64_t)index) ? ft__dropout_scale(dropout) : 0;
}

static void ft__dropout_plain(ft_context *context, int64_t count, const ft_dropout_mask *dropout, const ft_real *x,
                              ft_real *y, bool accumulate) {
  int64_t i;
  (void)context;
  for (i = 0; i < count; ++i) {
    ft_real value = x[i] * ft__dropout_factor(dropout, i);
    y[i] = accumulate ? y[i] + value : value;
  }
}

#if FT__FAST
/* ft__dropout_random for 16 blocks, whose numbers stand in c[0]: number w of block l becomes c[w][l]. Vectors of 64-bit
   lanes hold what is next to multiply in the lower halves, whatever stands in the upper ones, so even and odd blocks
   are computed apart. The product of lower halves is one instruction, which not all compilers find. */
#define FT__RANDOM(name, attributes, vector_bytes, MULTIPLY)                                        \
  attributes static void name(const ft_dropout_mask *dropout, uint32_t row, uint32_t *c) {          \
    typedef uint64_t V __attribute__((vector_size(vector_bytes)));                                  \
    typedef uint64_t V_memory __attribute__((vector_size(vector_bytes), aligned(4), may_alias));    \
    const V zero = {0}, factor0 = zero + 0xD2511F53u, factor1 = zero + 0xCD9E8D57u;                 \
    int i, round;                                                                                   \
    for (i = 0; i < FT__LANES; i += vector_bytes / 4) {                                             \
      V key0 = zero + (uint32_t)dropout->seed;                                                      \
      V key1 = zero + ((uint32_t)(dropout->seed >> 32) ^ (dropout->micro_batch * 0x85EBCA6Bu));     \
      V even0 = *(const V_memory *)(c + i), even1 = zero + row, even2 = zero + dropout->site;       \
      V even3 = zero + dropout->step, odd0 = even0 >> 32, odd1 = even1, odd2 = even2, odd3 = even3; \
      for (round = 0; round < 10; ++round) {                                                        \
        V product0 = MULTIPLY(even0, factor0), product1 = MULTIPLY(even2, factor1);                 \
        even0 = (product1 >> 32) ^ even1 ^ key0, even1 = product1;                                  \
        even2 = (product0 >> 32) ^ even3 ^ key1, even3 = product0;                                  \
        product0 = MULTIPLY(odd0, factor0), product1 = MULTIPLY(odd2, factor1);                     \
        odd0 = (product1 >> 32) ^ odd1 ^ key0, odd1 = product1;                                     \
        odd2 = (product0 >> 32) ^ odd3 ^ key1, odd3 = product0;                                     \
        key0 += 0x9E3779B9u, key1 += 0xBB67AE85u;                                                   \
      }                                                                                             \
      *(V_memory *)(c + i) = (even0 & 0xFFFFFFFFu) | odd0 << 32;                                    \
      *(V_memory *)(c + FT__LANES + i) = (even1 & 0xFFFFFFFFu) | odd1 << 32;                        \
      *(V_memory *)(c + 2 * FT__LANES + i) = (even2 & 0xFFFFFFFFu) | odd2 << 32;                    \
      *(V_memory *)(c + 3 * FT__LANES + i) = (even3 & 0xFFFFFFFFu) | odd3 << 32;                    \
    }                                                                                               \
  }
#ifdef FT__PAIRS
#define FT__LOWER_16(a, b) ((V)_mm_mul_epu32((__m128i)(a), (__m128i)(b)))
#define FT__LOWER_32(a, b) ((V)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
/* with a mask: of the plain one gcc says that it reads an uninitialized vector */
#define FT__LOWER_64(a, b) ((V)_mm512_maskz_mul_epu32((__mmask8)0xFF, (__m512i)(a), (__m512i)(b)))
#else
#define FT__LOWER_16(a, b) (((a)&0xFFFFFFFFu) * (b))
#define FT__LOWER_32 FT__LOWER_16
#define FT__LOWER_64 FT__LOWER_16
#endif
FT__RANDOM(ft__random_generic, FT__ATTRIBUTES_GENERIC, 16, FT__LOWER_16)
#if defined(__x86_64__)
FT__RANDOM(ft__random_avx2, FT__ATTRIBUTES_AVX2, 32, FT__LOWER_32)
FT__RANDOM(ft__random_avx512, FT__ATTRIBUTES_AVX512, 64, FT__LOWER_64)
#endif

FT__INLINE void ft__vector_random(const ft_dropout_mask *dropout, uint32_t row, ft__word_lanes c[4]) {
#if defined(__x86_64__)
  static void (*const random[])(const ft_dropout_mask *, uint32_t, uint32_t *) = {ft__random_generic, ft__random_avx2,
                                                                                  ft__random_avx512};
  random[FT__INSTRUCTION_SET()](dropout, row, (uint32_t *)c);
#else
  ft__random_generic(dropout, row, (uint32_t *)c);
#endif
}

/* random = -1 where it is at least the threshold, else 0: minus the borrow of random - threshold. */
FT__INLINE void ft__keep_mask(ft__word_lanes *random, uint32_t threshold) {
  ft__word_lanes r = *random;
  *random = (((~r & threshold) | ((~r | threshold) & (r - threshold))) >> 31) - 1u;
}

/* The numbers of 16 blocks as what elements are multiplied by: 0 or scale. c[0] holds the blocks. */
FT__INLINE void ft__vector_factors(const ft_dropout_mask *dropout, uint32_t row, ft__word_lanes c[4]) {
  uint32_t threshold = ft__dropout_threshold(dropout->probability);
  ft__vector scale;
  int w;
  ft__fill(&scale, ft__dropout_scale(dropout));
  ft__vector_random(dropout, row, c);
  for (w = 0; w < 4; ++w) {
    ft__keep_mask(&c[w], threshold);
    c[w] &= (ft__word_lanes)scale;
  }
}

/* factor[i] = what element `first` + i of a mask without rows is multiplied by, for i < 64; first is a multiple of 4.
   Number w of lane l belongs to element 4 l + w. */
FT__INLINE void ft__factors_64(const ft_dropout_mask *dropout, uint64_t first, float *factor) {
  const ft__word_lanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  float number[4 * FT__LANES];
  ft__word_lanes c[4];
  int w, l;
  c[0] = lane + (uint32_t)(first / 4);
  ft__vector_factors(dropout, (uint32_t)(first >> 34), c);
  for (w = 0; w < 4; ++w) *(ft__vector_memory *)(number + w * FT__LANES) = (ft__vector)c[w];
  for (l = 0; l < FT__LANES; l += 4) ft__transpose_4x4(number + l, FT__LANES, factor + 4 * l, 4);
}

typedef struct ft__dropout_job {
  int64_t count;
  const ft_dropout_mask *dropout;
  const float *x;
  float *y;
  bool accumulate;
} ft__dropout_job;

FT__INLINE void ft__dropout_piece(void *argument, int64_t piece, int thread) {
  const ft__dropout_job *job = (const ft__dropout_job *)argument;
  int64_t i, l, end = ft__smaller(job->count, (piece + 1) * FT__PIECE);
  float factor[64];
  (void)thread;
  for (l = 0; l < 64; ++l) factor[l] = 1;
  for (i = piece * FT__PIECE; i < end; i += 64) {
    if (job->dropout->probability > 0) ft__factors_64(job->dropout, (uint64_t)i, factor);
    for (l = 0; l < 64 && i + l < end; l += FT__LANES) {
      ft__vector v;
      ft__load(&v, job->x + i + l, end - i - l);
      v = v * *(const ft__vector_memory *)(factor + l);
      ft__write(job->y + i + l, &v, end - i - l, job->accumulate);
    }
  }
}
FT__TASKS(ft__dropout_piece)

static void ft__dropout_fast(ft_context *context, int64_t count, const ft_dropout_mask *dropout, const float *x,
                             float *y, bool accumulate) {
  ft__dropout_job job;
  job.count = count, job.dropout = dropout, job.x = x, job.y = y, job.accumulate = accumulate;
  ft__parallel_for(context, ft__pieces(count, FT__PIECE), ft__dropout_piece_tasks[FT__INSTRUCTION_SET()], &job);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Layer normalisation of s = residual + dropout(x), row by row: with z = (s - mean) rstd, rstd = 1 / sqrt(var + eps),

       y = z w + b,      d w += sum over rows of dy z,      d b += sum over rows of dy,
       d s = rstd (g - mean(g) - z mean(g z))   where g = dy w and means are over the columns. */

static void ft__layer_norm_plain(ft_context *context, const ft_layer_norm_call *call) {
  int64_t i, j, columns = call->columns;
  (void)context;
  for (i = 0; i < call->rows; ++i) {
    ft_real *y = call->y + i * columns, *s = call->sum ? call->sum + i * columns : y;
    double mean = 0, variance = 0, rstd;
    for (j = 0; j < columns; ++j) {
      s[j] = call->x[i * columns + j] * ft__dropout_factor(&call->dropout, i * columns + j);
      if (call->residual) s[j] += call->residual[i * columns + j];
      mean += (double)s[j];
    }
    mean /= (double)columns;
    for (j = 0; j < columns; ++j) variance += ((double)s[j] - mean) * ((double)s[j] - mean);
    rstd = 1 / sqrt(variance / (double)columns + (double)call->epsilon);
    for (j = 0; j < columns; ++j)
      y[j] = (ft_real)(((double)s[j] - mean) * rstd * (double)call->weight[j] + (double)call->bias[j]);
    if (call->mean) call->mean[i] = (ft_real)mean;
    if (call->rstd) call->rstd[i] = (ft_real)rstd;
  }
}

static void ft__layer_norm_backward_plain(ft_context *context, const ft_layer_norm_call *call) {
  int64_t i, j, columns = call->columns;
  (void)context;
  for (i = 0; i < call->rows; ++i) {
    const ft_real *s = call->sum + i * columns, *dy = call->y_gradient + i * columns;
    double mean = (double)call->mean[i], rstd = (double)call->rstd[i], mean_g = 0, mean_gz = 0;
    for (j = 0; j < columns; ++j) {
      double g = (double)dy[j] * (double)call->weight[j];
      mean_g += g / (double)columns;
      mean_gz += g * ((double)s[j] - mean) * rstd / (double)columns;
    }
    for (j = 0; j < columns; ++j) {
      double z = ((double)s[j] - mean) * rstd;
      ft_real ds = (ft_real)(rstd * ((double)dy[j] * (double)call->weight[j] - mean_g - z * mean_gz));
      int64_t element = i * columns + j;
      ft_real dx = ds * ft__dropout_factor(&call->dropout, element);
      if (call->weight_gradient) call->weight_gradient[j] += (ft_real)((double)dy[j] * z);
      if (call->bias_gradient) call->bias_gradient[j] += dy[j];
      if (call->x_gradient) call->x_gradient[element] = call->x_accumulate ? call->x_gradient[element] + dx : dx;
      if (!call->residual_gradient) continue;
      call->residual_gradient[element] = call->residual_accumulate ? call->residual_gradient[element] + ds : ds;
    }
  }
}

#if FT__FAST
/* Rows are independent, but for the gradients of weight and bias: each group of rows leaves its own sum in scratch
   memory, and the groups are added in order. A row passes through the cache three times, through memory once. */
enum { FT__NORM_CHUNK = 512, FT__NORM_GROUPS = 64 };

typedef struct ft__norm_job {
  const ft_layer_norm_call *call;
  int64_t group_rows;
  float *partial; /* [groups, 2, columns]: sums for the gradients of weight and bias, or NULL */
} ft__norm_job;

/* v = 0 from lane `count` on */
FT__INLINE void ft__keep_lanes(ft__vector *v, int64_t count) {
  const ft__integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  if (count < FT__LANES) *v = (ft__vector)((ft__integers)*v & FT__IS_NEGATIVE(lane - (int32_t)count));
}

/* Dropout's factors of elements index .. index + count: the address in `factors` where they start. */
FT__INLINE const float *ft__factor_run(const ft_dropout_mask *dropout, int64_t index, int64_t count, float *factors) {
  int64_t i, skip = index % 4;
  for (i = 0; i < skip + count; i += 64) ft__factors_64(dropout, (uint64_t)(index - skip + i), factors + i);
  return factors + skip;
}

/* s = residual + dropout(x) for one row; returns the sum of its elements. */
FT__INLINE float ft__norm_sum_row(const ft_layer_norm_call *call, int64_t row, float *s) {
  int64_t j, l, columns = call->columns, start = row * columns;
  float factors[FT__NORM_CHUNK + 128];
  ft__vector total = {0};
  for (j = 0; j < columns; j += FT__NORM_CHUNK) {
    int64_t count = ft__smaller(FT__NORM_CHUNK, columns - j);
    const float *factor = NULL;
    if (call->dropout.probability > 0) factor = ft__factor_run(&call->dropout, start + j, count, factors);
    for (l = 0; l < count; l += FT__LANES) {
      ft__vector v, residual;
      ft__load(&v, call->x + start + j + l, count - l);
      if (factor) v = v * *(const ft__vector_memory *)(factor + l);
      if (call->residual) {
        ft__load(&residual, call->residual + start + j + l, count - l);
        v = v + residual;
      }
      ft__store(s + j + l, &v, count - l);
      ft__keep_lanes(&v, count - l);
      total = total + v;
    }
  }
  return ft__sum_lanes(&total);
}

FT__INLINE void ft__norm_piece(void *argument, int64_t piece, int thread) {
  const ft__norm_job *job = (const ft__norm_job *)argument;
  const ft_layer_norm_call *call = job->call;
  int64_t j, columns = call->columns, row = piece * job->group_rows;
  int64_t row_end = ft__smaller(call->rows, row + job->group_rows);
  (void)thread;
  for (; row < row_end; ++row) {
    float *y = call->y + row * columns, *s = call->sum ? call->sum + row * columns : y;
    float mean = ft__norm_sum_row(call, row, s) / (float)columns, rstd;
    ft__vector v, weight, bias, squares = {0};
    for (j = 0; j < columns; j += FT__LANES) {
      ft__load(&v, s + j, columns - j);
      v = v - mean;
      ft__keep_lanes(&v, columns - j);
      squares = squares + v * v;
    }
    rstd = (float)(1 / sqrt((double)(ft__sum_lanes(&squares) / (float)columns) + (double)call->epsilon));
    for (j = 0; j < columns; j += FT__LANES) {
      ft__load(&v, s + j, columns - j);
      ft__load(&weight, call->weight + j, columns - j);
      ft__load(&bias, call->bias + j, columns - j);
      v = (v - mean) * rstd * weight + bias;
      ft__store(y + j, &v, columns - j);
    }
    if (call->mean) call->mean[row] = mean;
    if (call->rstd) call->rstd[row] = rstd;
  }
}
FT__TASKS(ft__norm_piece)

/* The means of g and g z over a row; dy z and dy are added to the sums for weight and bias. */
FT__INLINE void ft__norm_means(const ft_layer_norm_call *call, int64_t row, float *partial, float *mean_g,
                               float *mean_gz) {
  int64_t j, columns = call->columns;
  float mean = call->mean[row], rstd = call->rstd[row];
  ft__vector sum_g = {0}, sum_gz = {0};
  for (j = 0; j < columns; j += FT__LANES) {
    ft__vector z, dy, weight;
    ft__load(&z, call->sum + row * columns + j, columns - j);
    ft__load(&dy, call->y_gradient + row * columns + j, columns - j);
    ft__load(&weight, call->weight + j, columns - j);
    z = (z - mean) * rstd * dy;
    sum_g = sum_g + weight * dy;
    sum_gz = sum_gz + weight * z;
    if (partial) {
      ft__vector old;
      ft__load(&old, partial + j, columns - j);
      z = z + old;
      ft__store(partial + j, &z, columns - j);
      ft__load(&old, partial + columns + j, columns - j);
      dy = dy + old;
      ft__store(partial + columns + j, &dy, columns - j);
    }
  }
  *mean_g = ft__sum_lanes(&sum_g) / (float)columns;
  *mean_gz = ft__sum_lanes(&sum_gz) / (float)columns;
}

/* The gradients of one row's s, and through it of x and residual. */
FT__INLINE void ft__norm_backward_row(const ft_layer_norm_call *call, int64_t row, float mean_g, float mean_gz) {
  int64_t j, l, columns = call->columns, start = row * columns;
  float mean = call->mean[row], rstd = call->rstd[row], factors[FT__NORM_CHUNK + 128];
  for (j = 0; j < columns; j += FT__NORM_CHUNK) {
    int64_t count = ft__smaller(FT__NORM_CHUNK, columns - j);
    const float *factor = NULL;
    if (call->dropout.probability > 0 && call->x_gradient)
      factor = ft__factor_run(&call->dropout, start + j, count, factors);
    for (l = 0; l < count; l += FT__LANES) {
      int64_t element = start + j + l, left = count - l;
      ft__vector z, ds, weight;
      ft__load(&z, call->sum + element, left);
      ft__load(&ds, call->y_gradient + element, left);
      ft__load(&weight, call->weight + j + l, left);
      z = (z - mean) * rstd;
      ds = (ds * weight - mean_g - z * mean_gz) * rstd;
      if (call->residual_gradient) ft__write(call->residual_gradient + element, &ds, left, call->residual_accumulate);
      if (factor) ds = ds * *(const ft__vector_memory *)(factor + l);
      if (call->x_gradient) ft__write(call->x_gradient + element, &ds, left, call->x_accumulate);
    }
  }
}

FT__INLINE void ft__norm_backward_piece(void *argument, int64_t piece, int thread) {
  const ft__norm_job *job = (const ft__norm_job *)argument;
  const ft_layer_norm_call *call = job->call;
  int64_t row = piece * job->group_rows, row_end = ft__smaller(call->rows, row + job->group_rows);
  float *partial = job->partial ? job->partial + piece * 2 * call->columns : NULL;
  (void)thread;
  if (partial) memset(partial, 0, (size_t)(2 * call->columns) * sizeof(float));
  for (; row < row_end; ++row) {
    float mean_g, mean_gz;
    ft__norm_means(call, row, partial, &mean_g, &mean_gz);
    ft__norm_backward_row(call, row, mean_g, mean_gz);
  }
}
FT__TASKS(ft__norm_backward_piece)

static int64_t ft__norm_group_rows(const ft_layer_norm_call *call) {
  int64_t rows = ft__pieces(call->rows, FT__NORM_GROUPS);
  return rows < 8 ? 8 : rows;
}

static void ft__layer_norm_fast(ft_context *context, const ft_layer_norm_call *call) {
  ft__norm_job job;
  job.call = call, job.group_rows = ft__norm_group_rows(call), job.partial = NULL;
  ft__parallel_for(context, ft__pieces(call->rows, job.group_rows), ft__norm_piece_tasks[FT__INSTRUCTION_SET()], &job);
}

static void ft__layer_norm_backward_fast(ft_context *context, const ft_layer_norm_call *call) {
  int64_t groups, columns = call->columns;
  ft__norm_job job;
  if (columns > (int64_t)(FT__SCRATCH_BYTES / sizeof(float)) / (2 * FT__NORM_GROUPS)) {
    ft__layer_norm_backward_plain(context, call); /* no model is that wide */
    return;
  }
  job.call = call, job.group_rows = ft__norm_group_rows(call), job.partial = NULL;
  if (call->weight_gradient || call->bias_gradient) job.partial = (float *)ft__scratch(context, 0);
  groups = ft__pieces(call->rows, job.group_rows);
  ft__parallel_for(context, groups, ft__norm_backward_piece_tasks[FT__INSTRUCTION_SET()], &job);
  if (call->weight_gradient)
    ft__column_sum_strided(context, groups, columns, 2 * columns, job.partial, call->weight_gradient);
  if (call->bias_gradient)
    ft__column_sum_strided(context, groups, columns, 2 * columns, job.partial + columns, call->bias_gradient);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Attention within each text, for each head: with Q, K, V the text's valid rows [t, D] of that head,

       S = scale Q K^T,   P = softmax(S) by rows,   O = dropout(P) V,   log_sum_i = log sum_j exp(S_ij).

   The backward pass finds P again as exp(S - log_sum). With dropout's factors F (0 or 1 / (1 - p)):

       dV = (F P)^T dO,   dP = F (dO V^T),   dS = P (dP - rowsum(P dP)),   dQ = scale dS K,   dK = scale dS^T Q,

   products of F and P elementwise. With bfloat16, the factors of every matrix product are rounded to it: Q, K, V, dO,
   scale dS, and F P, in the forward pass before it is divided by the softmax's sum. */

static bool ft__attention_check(ft_context *context, const ft_attention_call *call) {
  if (call->longest <= 65536) return true;
  ft__error(context, FT_ERROR_UNSUPPORTED, "attention: a text of %ld tokens, but 65536 is the most",
            (long)call->longest);
  return false;
}

static ft_real ft__attention_factor(const ft_attention_call *call, int64_t text, int64_t head, int64_t query,
                                    int64_t key) {
  if (!(call->dropout.probability > 0)) return 1;
  return ft__attention_keeps(&call->dropout, text, call->heads, head, query, key) ? ft__dropout_scale(&call->dropout)
                                                                                  : 0;
}

static double ft__dot(const ft_context *context, int64_t count, const ft_real *a, const ft_real *b) {
  double sum = 0;
  int64_t i;
  for (i = 0; i < count; ++i) sum += ft__operand(context, (double)a[i]) * ft__operand(context, (double)b[i]);
  return sum;
}

/* Row i of one head's output; probabilities [t] is working memory. */
static void ft__attention_row_plain(const ft_context *context, const ft_attention_call *call, int64_t text,
                                    int64_t head, int64_t i, double *probabilities) {
  int64_t d, j, size = call->head_size, row = call->heads * size, first = call->offsets[text];
  int64_t length = call->lengths[text], start = first * row + head * size;
  double largest = -1e30, sum = 0;
  ft_real *output = call->output + start + i * row;
  for (j = 0; j < length; ++j) {
    probabilities[j] =
        (double)call->scale * ft__dot(context, size, call->query + start + i * row, call->key + start + j * row);
    if (probabilities[j] > largest) largest = probabilities[j];
  }
  for (j = 0; j < length; ++j) sum += probabilities[j] = exp(probabilities[j] - largest);
  if (call->log_sum) call->log_sum[head * call->tokens + first + i] = (ft_real)(largest + log(sum));
  for (j = 0; j < length; ++j) probabilities[j] *= (double)ft__attention_factor(call, text, head, i, j);
  for (d = 0; d < size; ++d) {
    double total = 0;
    for (j = 0; j < length; ++j)
      total += ft__operand(context, probabilities[j]) * ft__operand(context, (double)call->value[start + j * row + d]);
    output[d] = (ft_real)(total / sum);
  }
}

static void ft__attention_plain(ft_context *context, const ft_attention_call *call) {
  double *probabilities = (double *)ft__scratch(context, 0);
  int64_t text, head, i, row = call->heads * call->head_size;
  if (!ft__attention_check(context, call)) return;
  for (text = 0; text < call->texts; ++text) {
    int64_t first = call->offsets[text], length = call->lengths[text],
            padding = call->offsets[text + 1] - first - length;
    for (head = 0; head < call->heads; ++head) {
      for (i = 0; i < length; ++i) ft__attention_row_plain(context, call, text, head, i, probabilities);
      for (i = length; call->log_sum && i < length + padding; ++i) call->log_sum[head * call->tokens + first + i] = 0;
    }
    memset(call->output + (first + length) * row, 0, (size_t)(padding * row) * sizeof(ft_real));
  }
}

/* What query i gives to the gradients of one head; score_gradients [t] is working memory: first P dP, then scale dS. */
static void ft__attention_row_backward_plain(const ft_context *context, const ft_attention_call *call, int64_t text,
                                             int64_t head, int64_t i, double *score_gradients) {
  int64_t d, j, size = call->head_size, row = call->heads * size, first = call->offsets[text];
  int64_t length = call->lengths[text], start = first * row + head * size;
  const ft_real *query = call->query + start + i * row, *output_gradient = call->output_gradient + start + i * row;
  double row_sum = 0, log_sum = (double)call->log_sum[head * call->tokens + first + i];
  for (j = 0; j < length; ++j) {
    double score = (double)call->scale * ft__dot(context, size, query, call->key + start + j * row);
    double dropped = exp(score - log_sum) * (double)ft__attention_factor(call, text, head, i, j);
    score_gradients[j] = dropped * ft__dot(context, size, output_gradient, call->value + start + j * row);
    row_sum += score_gradients[j];
    for (d = 0; d < size; ++d)
      call->value_gradient[start + j * row + d] +=
          (ft_real)(ft__operand(context, dropped) * ft__operand(context, (double)output_gradient[d]));
  }
  for (j = 0; j < length; ++j) {
    const ft_real *key = call->key + start + j * row;
    double score = (double)call->scale * ft__dot(context, size, query, key);
    double gradient = (double)call->scale * (score_gradients[j] - exp(score - log_sum) * row_sum);
    gradient = ft__operand(context, gradient);
    for (d = 0; d < size; ++d) {
      call->query_gradient[start + i * row + d] += (ft_real)(gradient * ft__operand(context, (double)key[d]));
      call->key_gradient[start + j * row + d] += (ft_real)(gradient * ft__operand(context, (double)query[d]));
    }
  }
}

static void ft__attention_backward_plain(ft_context *context, const ft_attention_call *call) {
  double *score_gradients = (double *)ft__scratch(context, 0);
  int64_t text, head, i;
  size_t bytes = (size_t)(call->tokens * call->heads * call->head_size) * sizeof(ft_real);
  if (!ft__attention_check(context, call)) return;
  ft__cpu_zero(context, call->query_gradient, bytes);
  ft__cpu_zero(context, call->key_gradient, bytes);
  ft__cpu_zero(context, call->value_gradient, bytes);
  for (text = 0; text < call->texts; ++text)
    for (head = 0; head < call->heads; ++head)
      for (i = 0; i < call->lengths[text]; ++i)
        ft__attention_row_backward_plain(context, call, text, head, i, score_gradients);
}

#if FT__FAST
/* The fast version takes 32 queries of one (text, head) at a time and works on transposed matrices, S^T = K Q^T of
   shape [keys, 32]. Then queries are lanes of vectors: maximum and sum of the softmax, rowsum(P dP) and the dropout
   numbers need no sums across lanes, and P^T already lies as matrix multiplication wants its second operand packed.
   Memory is [keys, 32] per thread, never [keys, keys]. Every (text, head) is one piece of work, since it alone owns its
   part of the gradients. */
enum { FT__QUERIES = 32 };

typedef struct ft__attention_job {
  const ft_context *context;
  const ft_attention_call *call;
  char *memory; /* for each thread: */
  size_t bytes;
} ft__attention_job;

typedef struct ft__attention_head {              /* one (text, head), and a thread's memory for it */
  int64_t text, head, length, first, row, start; /* row: of Q, K, V; start: element of the first query's part */
  int64_t padded_length, padded_size;            /* rounded up to whole panels: there are no edges to cut */
  float *keys, *values;                          /* packed rows of K and V: first operands */
  float *keys_across, *values_across;            /* packed columns of K or V: first operands */
  float *query_columns, *gradient_columns;       /* Q^T and dO^T [D, 32]: second operands */
  float *query_rows, *gradient_rows;             /* Q and dO [32, D]: second operands */
  float *scores, *dropped, *score_gradient;      /* [keys, 32]: P^T, (F P)^T, dS^T */
  float *first_operand, *second_operand;         /* packed copies of these */
  float *across;                                 /* [D, 32]: a result, transposed */
} ft__attention_head;

/* Which micro-kernel multiplies for a text. Packing float32 in pieces does not pay for short ones. */
static const ft__micro *ft__attention_micro(const ft_context *context, int64_t length) {
  if (context->compute_dtype == FT_BF16 || length > 128) return ft__micro_choose(context, FT__TILE_ROWS);
  return &ft__micro_kernels[FT__INSTRUCTION_SET()];
}

static float *ft__carve(char **memory, int64_t count) {
  float *piece = (float *)*memory;
  *memory += (count + 15) / 16 * 16 * (int64_t)sizeof(float);
  return piece;
}

/* Lays out the arrays from `memory` on (NULL: only to measure) and returns how many bytes they take. */
static size_t ft__attention_layout(ft__attention_head *head, const ft_attention_call *call, const ft__micro *micro,
                                   bool backward, char *memory) {
  int64_t size = call->head_size, keys = ft__pieces(call->longest, micro->rows) * micro->rows;
  int64_t across = ft__pieces(size, micro->rows) * micro->rows,
          wide = ft__pieces(size, micro->columns) * micro->columns;
  int64_t line = ft__packed_line(micro, size), key_line = ft__packed_line(micro, call->longest),
          query_line = ft__packed_line(micro, FT__QUERIES);
  char *end = memory;
  memset(head, 0, sizeof *head);
  head->keys = ft__carve(&end, keys * line);
  head->query_columns = ft__carve(&end, FT__QUERIES * line);
  head->scores = ft__carve(&end, keys * FT__QUERIES);
  head->second_operand = ft__carve(&end, FT__QUERIES * key_line);
  head->across = ft__carve(&end, across * FT__QUERIES);
  if (!backward) {
    head->values_across = ft__carve(&end, across * key_line);
  } else {
    head->values = ft__carve(&end, keys * line);
    head->keys_across = ft__carve(&end, across * key_line);
    head->gradient_columns = ft__carve(&end, FT__QUERIES * line);
    head->query_rows = ft__carve(&end, wide * query_line);
    head->gradient_rows = ft__carve(&end, wide * query_line);
    head->dropped = ft__carve(&end, keys * FT__QUERIES);
    head->score_gradient = ft__carve(&end, keys * FT__QUERIES);
    head->first_operand = ft__carve(&end, keys * query_line);
  }
  return (size_t)(end - memory);
}

static void ft__attention_find(ft__attention_head *head, const ft_attention_call *call, const ft__micro *micro,
                               int64_t piece) {
  head->text = piece / call->heads, head->head = piece % call->heads;
  head->length = call->lengths[head->text], head->first = call->offsets[head->text];
  head->row = call->heads * call->head_size;
  head->padded_length = ft__pieces(head->length, micro->rows) * micro->rows;
  head->padded_size = ft__pieces(call->head_size, micro->rows) * micro->rows;
  head->start = head->first * head->row + head->head * call->head_size;
}

/* Zeroes this head's part of the padding rows. */
static void ft__attention_clear_padding(const ft__attention_head *head, const ft_attention_call *call, float *x) {
  int64_t i, rows = call->offsets[head->text + 1] - head->first;
  for (i = head->length; i < rows; ++i)
    memset(x + head->start + i * head->row, 0, (size_t)call->head_size * sizeof(float));
}

/* A head's rows lie far apart, a few cache lines each, which the processor does not foresee: ask for all of them at
   once before they are packed. */
static void ft__attention_prefetch(const ft__attention_head *head, const ft_attention_call *call, const float *x) {
  int64_t i, d, rows = ft__smaller(head->length, 128);
  for (i = 0; i < rows; ++i)
    for (d = 0; d < call->head_size; d += FT__LANES) __builtin_prefetch(x + head->start + i * head->row + d);
}

/* packed = x^T [D, 32] as a second operand, from `count` rows of x; the other columns are 0. */
FT__INLINE void ft__attention_pack_columns(const ft__attention_head *head, const ft_attention_call *call,
                                           const ft__micro *micro, const float *x, int64_t count, float *packed) {
  int64_t used = ft__pieces(count, micro->columns) * micro->columns, line = ft__packed_line(micro, call->head_size);
  ft__pack_operand(micro, false, packed, x, head->row, count, 1, call->head_size);
  memset(packed + used * line, 0, (size_t)((FT__QUERIES - used) * line) * sizeof(float));
}

/* A [keys, 32] matrix as a second operand: itself, if a panel is as wide and of floats. */
FT__INLINE const float *ft__attention_second(const ft__attention_head *head, const ft__micro *micro, const float *x) {
  if (!micro->pieces && micro->columns == FT__QUERIES) return x;
  ft__pack_operand(micro, false, head->second_operand, x, 1, FT__QUERIES, FT__QUERIES, head->length);
  return head->second_operand;
}

/* factor[w] = dropout's factors of key + w for 16 queries */
FT__INLINE void ft__attention_factors(const ft__attention_head *head, const ft_attention_call *call, int64_t query,
                                      int64_t key, ft__word_lanes factor[4]) {
  const ft__word_lanes lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  factor[0] = (lane + (uint32_t)query) * 16384u + (uint32_t)(key / 4);
  ft__vector_factors(&call->dropout, (uint32_t)(head->text * call->heads + head->head), factor);
}

/* Scores of 16 queries become exp(scale (s - max)), with dropout applied; inverse = 1 / their sum. */
FT__INLINE void ft__attention_softmax(const ft__attention_head *head, const ft_attention_call *call, int64_t query,
                                      float *scores, float *inverse) {
  int64_t i, j, w, length = head->length;
  ft__vector largest = *(const ft__vector_memory *)scores, sum = {0}, x, v;
  ft__word_lanes factor[4];
  float largest_lane[FT__LANES], sum_lane[FT__LANES];
  for (j = 1; j < length; ++j) {
    v = *(const ft__vector_memory *)(scores + j * FT__QUERIES);
    largest = FT__SELECT(FT__IS_NEGATIVE(largest - v), v, largest);
  }
  for (j = 0; j < length; ++j) {
    v = x = (*(const ft__vector_memory *)(scores + j * FT__QUERIES) - largest) * call->scale;
    ft__vector_exp_falling(&v), ft__keep_nan(&v, &x);
    *(ft__vector_memory *)(scores + j * FT__QUERIES) = v;
    sum = sum + v;
  }
  *(ft__vector_memory *)inverse = 1.0f / sum;
  *(ft__vector_memory *)largest_lane = largest;
  *(ft__vector_memory *)sum_lane = sum;
  for (i = 0; call->log_sum && i < FT__LANES && query + i < length; ++i)
    call->log_sum[head->head * call->tokens + head->first + query + i] =
        call->scale * largest_lane[i] + logf(sum_lane[i]);
  if (!(call->dropout.probability > 0)) return;
  for (j = 0; j < length; j += 4) {
    ft__attention_factors(head, call, query, j, factor);
    for (w = 0; w < 4 && j + w < length; ++w)
      *(ft__vector_memory *)(scores + (j + w) * FT__QUERIES) *= (ft__vector)factor[w];
  }
}

FT__INLINE void ft__attention_piece(void *argument, int64_t piece, int thread) {
  const ft__attention_job *job = (const ft__attention_job *)argument;
  const ft_attention_call *call = job->call;
  const ft__micro *micro = ft__attention_micro(job->context, call->lengths[piece / call->heads]);
  int64_t i, d, query, size = call->head_size;
  float inverse[FT__QUERIES];
  ft__attention_head head;
  ft__attention_layout(&head, call, micro, false, job->memory + (size_t)thread * job->bytes);
  ft__attention_find(&head, call, micro, piece);
  ft__attention_clear_padding(&head, call, call->output);
  for (i = head.length; call->log_sum && i < call->offsets[head.text + 1] - head.first; ++i)
    call->log_sum[head.head * call->tokens + head.first + i] = 0;
  ft__attention_prefetch(&head, call, call->key);
  ft__attention_prefetch(&head, call, call->value);
  ft__attention_prefetch(&head, call, call->query);
  ft__pack_operand(micro, true, head.keys, call->key + head.start, head.row, head.length, 1, size);
  ft__pack_operand(micro, true, head.values_across, call->value + head.start, 1, size, head.row, head.length);
  for (query = 0; query < head.length; query += FT__QUERIES) {
    int64_t count = ft__smaller(FT__QUERIES, head.length - query), place = head.start + query * head.row;
    ft__attention_pack_columns(&head, call, micro, call->query + place, count, head.query_columns);
    ft__tiles(micro, head.padded_length, FT__QUERIES, size, head.keys, head.query_columns, head.scores, FT__QUERIES,
              false);
    for (i = 0; i < FT__QUERIES; i += FT__LANES)
      ft__attention_softmax(&head, call, query + i, head.scores + i, inverse + i);
    ft__tiles(micro, head.padded_size, FT__QUERIES, head.length, head.values_across,
              ft__attention_second(&head, micro, head.scores), head.across, FT__QUERIES, false);
    for (d = 0; d < size; ++d)
      for (i = 0; i < FT__QUERIES; i += FT__LANES)
        *(ft__vector_memory *)(head.across + d * FT__QUERIES + i) *= *(const ft__vector_memory *)(inverse + i);
    ft__transpose(head.across, FT__QUERIES, call->output + place, head.row, size, count);
  }
}
FT__TASKS(ft__attention_piece)

/* For 16 queries: S^T -> P^T, (F P)^T beside it, and dP^T -> dS^T (times scale). */
FT__INLINE void ft__attention_score_gradient(const ft__attention_head *head, const ft_attention_call *call,
                                             int64_t query, int64_t lane) {
  int64_t j, w, length = head->length;
  float *scores = head->scores + lane, *dropped = head->dropped + lane, *gradient = head->score_gradient + lane;
  ft__vector log_sum, row_sum = {0}, p, dp;
  ft__word_lanes factor[4];
  ft__load(&log_sum, call->log_sum + head->head * call->tokens + head->first + query,
           query < length ? length - query : 0);
  ft__fill(&p, 1.0f);
  for (w = 0; w < 4; ++w) factor[w] = (ft__word_lanes)p;
  for (j = 0; j < length; j += 4) {
    if (call->dropout.probability > 0) ft__attention_factors(head, call, query, j, factor);
    for (w = 0; w < 4 && j + w < length; ++w) {
      int64_t at = (j + w) * FT__QUERIES;
      p = *(const ft__vector_memory *)(scores + at) * call->scale - log_sum;
      ft__vector_exp(&p);
      *(ft__vector_memory *)(scores + at) = p;
      p = p * (ft__vector)factor[w];
      *(ft__vector_memory *)(dropped + at) = p;
      dp = *(const ft__vector_memory *)(gradient + at) * p;
      *(ft__vector_memory *)(gradient + at) = dp;
      row_sum = row_sum + dp;
    }
  }
  for (j = 0; j < length; ++j) {
    p = *(const ft__vector_memory *)(scores + j * FT__QUERIES);
    dp = *(const ft__vector_memory *)(gradient + j * FT__QUERIES);
    *(ft__vector_memory *)(gradient + j * FT__QUERIES) = (dp - p * row_sum) * call->scale;
  }
}

/* gradient [keys, D] (+)= x^T [keys, 32] rows [32, D] */
FT__INLINE void ft__attention_add_product(const ft__attention_head *head, const ft_attention_call *call,
                                          const ft__micro *micro, const float *x, const float *rows, int64_t count,
                                          float *gradient, bool add) {
  ft__pack_operand(micro, true, head->first_operand, x, FT__QUERIES, head->length, 1, count);
  ft__tiles(micro, head->length, call->head_size, count, head->first_operand, rows, gradient + head->start, head->row,
            add);
}

FT__INLINE void ft__attention_backward_piece(void *argument, int64_t piece, int thread) {
  const ft__attention_job *job = (const ft__attention_job *)argument;
  const ft_attention_call *call = job->call;
  const ft__micro *micro = ft__attention_micro(job->context, call->lengths[piece / call->heads]);
  int64_t i, query, size = call->head_size;
  ft__attention_head head;
  ft__attention_layout(&head, call, micro, true, job->memory + (size_t)thread * job->bytes);
  ft__attention_find(&head, call, micro, piece);
  ft__attention_clear_padding(&head, call, call->query_gradient);
  ft__attention_clear_padding(&head, call, call->key_gradient);
  ft__attention_clear_padding(&head, call, call->value_gradient);
  ft__attention_prefetch(&head, call, call->key);
  ft__attention_prefetch(&head, call, call->value);
  ft__attention_prefetch(&head, call, call->query);
  ft__attention_prefetch(&head, call, call->output_gradient);
  ft__pack_operand(micro, true, head.keys, call->key + head.start, head.row, head.length, 1, size);
  ft__pack_operand(micro, true, head.values, call->value + head.start, head.row, head.length, 1, size);
  ft__pack_operand(micro, true, head.keys_across, call->key + head.start, 1, size, head.row, head.length);
  for (query = 0; query < head.length; query += FT__QUERIES) {
    int64_t count = ft__smaller(FT__QUERIES, head.length - query), place = head.start + query * head.row;
    const float *q = call->query + place, *output_gradient = call->output_gradient + place;
    ft__attention_pack_columns(&head, call, micro, q, count, head.query_columns);
    ft__attention_pack_columns(&head, call, micro, output_gradient, count, head.gradient_columns);
    ft__pack_operand(micro, false, head.query_rows, q, 1, size, head.row, count);
    ft__pack_operand(micro, false, head.gradient_rows, output_gradient, 1, size, head.row, count);
    ft__tiles(micro, head.padded_length, FT__QUERIES, size, head.keys, head.query_columns, head.scores, FT__QUERIES,
              false);
    ft__tiles(micro, head.padded_length, FT__QUERIES, size, head.values, head.gradient_columns, head.score_gradient,
              FT__QUERIES, false);
    for (i = 0; i < FT__QUERIES; i += FT__LANES) ft__attention_score_gradient(&head, call, query + i, i);
    ft__attention_add_product(&head, call, micro, head.dropped, head.gradient_rows, count, call->value_gradient,
                              query > 0);
    ft__attention_add_product(&head, call, micro, head.score_gradient, head.query_rows, count, call->key_gradient,
                              query > 0);
    ft__tiles(micro, head.padded_size, FT__QUERIES, head.length, head.keys_across,
              ft__attention_second(&head, micro, head.score_gradient), head.across, FT__QUERIES, false);
    ft__transpose(head.across, FT__QUERIES, call->query_gradient + place, head.row, size, count);
  }
}
FT__TASKS(ft__attention_backward_piece)

static void ft__attention_run(ft_context *context, const ft_attention_call *call, bool backward) {
  int set = FT__INSTRUCTION_SET();
  size_t bytes;
  ft__attention_head head;
  ft__attention_job job;
  if (!ft__attention_check(context, call)) return;
  job.context = context, job.call = call;
  job.memory = (char *)ft__scratch(context, 0);
  job.bytes = ft__attention_layout(&head, call, ft__attention_micro(context, 0), backward, job.memory);
  bytes = ft__attention_layout(&head, call, ft__attention_micro(context, call->longest), backward, job.memory);
  if (bytes > job.bytes) job.bytes = bytes; /* enough for short texts and for long ones */
  if (job.bytes <= FT__SCRATCH_BYTES) {
    job.bytes = FT__SCRATCH_BYTES;
  } else { /* texts of thousands of tokens */
    job.memory = (char *)ft__cpu_allocate(context, ft__size_product(job.bytes, (size_t)context->threads));
    if (!job.memory) return;
  }
  ft__parallel_for(context, call->texts * call->heads,
                   backward ? ft__attention_backward_piece_tasks[set] : ft__attention_piece_tasks[set], &job);
  if (job.memory != (char *)ft__scratch(context, 0)) ft__cpu_release(context, job.memory);
}

static void ft__attention_fast(ft_context *context, const ft_attention_call *call) {
  ft__attention_run(context, call, false);
}

static void ft__attention_backward_fast(ft_context *context, const ft_attention_call *call) {
  ft__attention_run(context, call, true);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Embedding: each token's row is the sum of three table rows; backward, each of the three gets the token's gradient. */

static void ft__embedding_plain(ft_context *context, const ft_embedding_call *call) {
  int64_t t, j, columns = call->columns;
  (void)context;
  for (t = 0; t < call->tokens; ++t) {
    const ft_real *word = call->words + call->ids[t] * columns;
    const ft_real *position = call->positions ? call->positions + call->position_ids[t] * columns : NULL;
    const ft_real *type = call->types ? call->types + (call->type_ids ? call->type_ids[t] : 0) * columns : NULL;
    ft_real *y = call->y + t * columns;
    for (j = 0; j < columns; ++j) y[j] = word[j] + (position ? position[j] : 0) + (type ? type[j] : 0);
  }
}

/* The columns [begin, end) of the gradients. */
static void ft__embedding_backward_columns(const ft_embedding_call *call, int64_t begin, int64_t end) {
  int64_t t, j, columns = call->columns;
  for (t = 0; t < call->tokens; ++t) {
    const ft_real *dy = call->y_gradient + t * columns;
    ft_real *word = call->words_gradient ? call->words_gradient + call->ids[t] * columns : NULL;
    ft_real *position = call->positions_gradient ? call->positions_gradient + call->position_ids[t] * columns : NULL;
    ft_real *type =
        call->types_gradient ? call->types_gradient + (call->type_ids ? call->type_ids[t] : 0) * columns : NULL;
    for (j = begin; word && j < end; ++j) word[j] += dy[j];
    for (j = begin; position && j < end; ++j) position[j] += dy[j];
    for (j = begin; type && j < end; ++j) type[j] += dy[j];
  }
}

static void ft__embedding_backward_plain(ft_context *context, const ft_embedding_call *call) {
  (void)context;
  ft__embedding_backward_columns(call, 0, call->columns);
}

static void ft__gather_rows_plain(ft_context *context, int64_t count, int64_t columns, const int32_t *rows,
                                  const ft_real *x, ft_real *y) {
  int64_t i;
  (void)context;
  for (i = 0; i < count; ++i) memcpy(y + i * columns, x + rows[i] * columns, (size_t)columns * sizeof(ft_real));
}

static void ft__scatter_rows_plain(ft_context *context, int64_t count, int64_t columns, const int32_t *rows,
                                   const ft_real *y, ft_real *x) {
  int64_t i, j;
  (void)context;
  for (i = 0; i < count; ++i)
    for (j = 0; j < columns; ++j) x[rows[i] * columns + j] += y[i * columns + j];
}

#if FT__FAST
enum { FT__TOKENS = 16 };

FT__INLINE void ft__embedding_piece(void *argument, int64_t piece, int thread) {
  const ft_embedding_call *call = (const ft_embedding_call *)argument;
  int64_t t = piece * FT__TOKENS, end = ft__smaller(call->tokens, t + FT__TOKENS), columns = call->columns;
  (void)thread;
  for (; t < end; ++t) {
    float *y = call->y + t * columns;
    memcpy(y, call->words + call->ids[t] * columns, (size_t)columns * sizeof(float));
    if (call->positions) ft__add_row(columns, call->positions + call->position_ids[t] * columns, y);
    if (call->types) ft__add_row(columns, call->types + (call->type_ids ? call->type_ids[t] : 0) * columns, y);
  }
}
FT__TASKS(ft__embedding_piece)

/* Different tokens add to the same rows, so threads share the columns, not the tokens. */
FT__INLINE void ft__embedding_backward_piece(void *argument, int64_t piece, int thread) {
  const ft_embedding_call *call = (const ft_embedding_call *)argument;
  int64_t t, columns = call->columns, first = piece * FT__COLUMNS, count = ft__smaller(FT__COLUMNS, columns - first);
  (void)thread;
  for (t = 0; t < call->tokens; ++t) {
    const float *dy = call->y_gradient + t * columns + first;
    if (call->words_gradient) ft__add_row(count, dy, call->words_gradient + call->ids[t] * columns + first);
    if (call->positions_gradient)
      ft__add_row(count, dy, call->positions_gradient + call->position_ids[t] * columns + first);
    if (call->types_gradient)
      ft__add_row(count, dy, call->types_gradient + (call->type_ids ? call->type_ids[t] : 0) * columns + first);
  }
}
FT__TASKS(ft__embedding_backward_piece)

static void ft__embedding_fast(ft_context *context, const ft_embedding_call *call) {
  ft__parallel_for(context, ft__pieces(call->tokens, FT__TOKENS), ft__embedding_piece_tasks[FT__INSTRUCTION_SET()],
                   (void *)call);
}

static void ft__embedding_backward_fast(ft_context *context, const ft_embedding_call *call) {
  ft__parallel_for(context, ft__pieces(call->columns, FT__COLUMNS),
                   ft__embedding_backward_piece_tasks[FT__INSTRUCTION_SET()], (void *)call);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   Losses. Cross-entropy of a row with class c: log sum_j exp(x_j) - x_c; its gradient is softmax(x) - one_hot(c).
   Binary cross-entropy of x with target t, written so that no exponential overflows: max(x, 0) - x t + log(1 +
   exp(-|x|)); its gradient is sigmoid(x) - t. */

/* log sum_j exp(x_j) */
static double ft__log_sum_exp(int64_t columns, const ft_real *x) {
  double largest = (double)x[0], sum = 0;
  int64_t j;
  for (j = 1; j < columns; ++j)
    if ((double)x[j] > largest) largest = (double)x[j];
  for (j = 0; j < columns; ++j) sum += exp((double)x[j] - largest);
  return largest + log(sum);
}

static void ft__cross_entropy_plain(ft_context *context, const ft_cross_entropy_call *call) {
  double sum = 0;
  int64_t i;
  (void)context;
  for (i = 0; i < call->rows; ++i) {
    const ft_real *logits = call->logits + i * call->columns;
    if (call->labels[i] < 0) continue;
    FT_ASSERT(call->labels[i] < call->columns);
    sum += ft__log_sum_exp(call->columns, logits) - (double)logits[call->labels[i]];
  }
  call->loss[0] = (ft_real)(sum / (double)call->divisor);
}

static void ft__cross_entropy_backward_plain(ft_context *context, const ft_cross_entropy_call *call) {
  double scale = (double)call->loss_gradient[0] / (double)call->divisor;
  int64_t i, j;
  (void)context;
  for (i = 0; i < call->rows; ++i) {
    const ft_real *logits = call->logits + i * call->columns;
    ft_real *gradient = call->logits_gradient + i * call->columns;
    double log_sum;
    if (call->labels[i] < 0) continue;
    log_sum = ft__log_sum_exp(call->columns, logits);
    for (j = 0; j < call->columns; ++j)
      gradient[j] += (ft_real)(scale * (exp((double)logits[j] - log_sum) - (j == call->labels[i])));
  }
}

static void ft__pointwise_loss_plain(ft_context *context, const ft_pointwise_loss_call *call) {
  double sum = 0;
  int64_t i;
  (void)context;
  for (i = 0; i < call->count; ++i) {
    double x = (double)call->x[i], target = (double)call->targets[i];
    sum +=
        call->binary_cross_entropy ? (x > 0 ? x : 0) - x * target + log1p(exp(-fabs(x))) : (x - target) * (x - target);
  }
  call->loss[0] = (ft_real)(sum / (double)call->divisor);
}

static void ft__pointwise_loss_backward_plain(ft_context *context, const ft_pointwise_loss_call *call) {
  double scale = (double)call->loss_gradient[0] / (double)call->divisor;
  int64_t i;
  (void)context;
  for (i = 0; i < call->count; ++i) {
    double x = (double)call->x[i], target = (double)call->targets[i];
    call->x_gradient[i] += (ft_real)(scale * (call->binary_cross_entropy ? ft__sigmoid(x) - target : 2 * (x - target)));
  }
}

#if FT__FAST
/* A masked-language-model loss has a whole vocabulary of columns: vectors of exponentials, and rows in parallel. */
typedef struct ft__entropy_job {
  const ft_cross_entropy_call *call;
  double *losses; /* [rows]: forward */
  int64_t group_rows;
} ft__entropy_job;

FT__INLINE double ft__log_sum_exp_vector(int64_t columns, const float *x) {
  float largest = x[0], correction;
  ft__vector top, v, shifted, sum = {0};
  int64_t j, whole = columns / FT__LANES * FT__LANES;
  double total;
  ft__fill(&top, largest);
  for (j = 0; j < whole; j += FT__LANES) {
    v = *(const ft__vector_memory *)(x + j);
    top = FT__SELECT(FT__IS_NEGATIVE(top - v), v, top);
  }
  largest = ft__largest_lane(&top);
  for (; j < columns; ++j)
    if (x[j] > largest) largest = x[j];
  for (j = 0; j < whole; j += FT__LANES) {
    v = shifted = *(const ft__vector_memory *)(x + j) - largest;
    ft__vector_exp_falling(&v), ft__keep_nan(&v, &shifted);
    sum = sum + v;
  }
  correction = ft__sum_lanes(&sum);
  total = (double)correction;
  for (; j < columns; ++j) total += exp((double)(x[j] - largest));
  return (double)largest + log(total);
}

FT__INLINE void ft__entropy_piece(void *argument, int64_t piece, int thread) {
  const ft__entropy_job *job = (const ft__entropy_job *)argument;
  const ft_cross_entropy_call *call = job->call;
  int64_t row = piece * job->group_rows, end = ft__smaller(call->rows, row + job->group_rows);
  (void)thread;
  for (; row < end; ++row) {
    const float *logits = call->logits + row * call->columns;
    int32_t label = call->labels[row];
    FT_ASSERT(label < call->columns);
    job->losses[row] = label < 0 ? 0 : ft__log_sum_exp_vector(call->columns, logits) - (double)logits[label];
  }
}
FT__TASKS(ft__entropy_piece)

FT__INLINE void ft__entropy_backward_piece(void *argument, int64_t piece, int thread) {
  const ft__entropy_job *job = (const ft__entropy_job *)argument;
  const ft_cross_entropy_call *call = job->call;
  int64_t j, columns = call->columns, row = piece * job->group_rows,
             end = ft__smaller(call->rows, row + job->group_rows);
  float scale = call->loss_gradient[0] / call->divisor;
  (void)thread;
  for (; row < end; ++row) {
    const float *logits = call->logits + row * columns;
    float *gradient = call->logits_gradient + row * columns, log_sum;
    if (call->labels[row] < 0) continue;
    log_sum = (float)ft__log_sum_exp_vector(columns, logits);
    for (j = 0; j < columns; j += FT__LANES) {
      ft__vector v, old;
      ft__load(&v, logits + j, columns - j);
      ft__load(&old, gradient + j, columns - j);
      v = v - log_sum;
      ft__vector_exp(&v);
      old = old + v * scale;
      ft__store(gradient + j, &old, columns - j);
    }
    gradient[call->labels[row]] -= scale;
  }
}
FT__TASKS(ft__entropy_backward_piece)

static int64_t ft__entropy_group_rows(const ft_cross_entropy_call *call) {
  return call->columns < 4096 ? 4096 / (call->columns + 1) + 1 : 1;
}

static void ft__cross_entropy_fast(ft_context *context, const ft_cross_entropy_call *call) {
  ft__entropy_job job;
  double sum = 0;
  int64_t i;
  if (call->rows > (int64_t)(FT__SCRATCH_BYTES / sizeof(double))) {
    ft__cross_entropy_plain(context, call);
    return;
  }
  job.call = call, job.losses = (double *)ft__scratch(context, 0), job.group_rows = ft__entropy_group_rows(call);
  ft__parallel_for(context, ft__pieces(call->rows, job.group_rows), ft__entropy_piece_tasks[FT__INSTRUCTION_SET()],
                   &job);
  for (i = 0; i < call->rows; ++i) sum += job.losses[i];
  call->loss[0] = (float)(sum / (double)call->divisor);
}

static void ft__cross_entropy_backward_fast(ft_context *context, const ft_cross_entropy_call *call) {
  ft__entropy_job job;
  job.call = call, job.losses = NULL, job.group_rows = ft__entropy_group_rows(call);
  ft__parallel_for(context, ft__pieces(call->rows, job.group_rows),
                   ft__entropy_backward_piece_tasks[FT__INSTRUCTION_SET()], &job);
}
#endif

/* ---------------------------------------------------------------------------------------------------------------------
   The optimizer's two passes over memory: the squared norm of a gradient, and AdamW (Loshchilov and Hutter 2019):

       w <- w (1 - lr wd),   m <- m + (1 - beta1)(g - m),   v <- beta2 v + (1 - beta2) g^2,
       w <- w - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps). */

static double ft__sum_of_squares_plain(ft_context *context, int64_t count, const ft_real *x) {
  double sum = 0;
  int64_t i;
  (void)context;
  for (i = 0; i < count; ++i) sum += (double)x[i] * (double)x[i];
  return sum;
}

typedef struct ft__adamw_factors { /* worked out in double, as torch does, and rounded once */
  ft_real gradient_scale, decay, first, second, second_new, step, root, epsilon;
} ft__adamw_factors;

static ft__adamw_factors ft__adamw_prepare(const ft_adamw_step *step) {
  ft__adamw_factors factors;
  double correction1 = 1 - pow(step->beta1, (double)step->step), correction2 = 1 - pow(step->beta2, (double)step->step);
  factors.gradient_scale = (ft_real)step->gradient_scale;
  factors.decay = (ft_real)(1 - step->learning_rate * step->weight_decay);
  factors.first = (ft_real)(1 - step->beta1);
  factors.second = (ft_real)step->beta2;
  factors.second_new = (ft_real)(1 - step->beta2);
  factors.step = (ft_real)(step->learning_rate / correction1);
  factors.root = (ft_real)sqrt(correction2);
  factors.epsilon = (ft_real)step->epsilon;
  return factors;
}

static void ft__adamw_plain(ft_context *context, const ft_adamw_step *step) {
  ft__adamw_factors f = ft__adamw_prepare(step);
  int64_t i;
  (void)context;
  for (i = 0; i < step->count; ++i) {
    ft_real g = step->gradient[i] * f.gradient_scale;
    ft_real m = step->first_moment[i] += (g - step->first_moment[i]) * f.first;
    ft_real v = step->second_moment[i] = step->second_moment[i] * f.second + f.second_new * g * g;
    ft_real root = (ft_real)sqrt((double)v) / f.root + f.epsilon;
    step->weight[i] = step->weight[i] * f.decay - f.step * m / root;
  }
}

#if FT__FAST
/* Both are bound by memory: one pass, in pieces. Squares are summed in float over 1,024 elements (64 in each lane) and
   in double from there on. */
typedef struct ft__squares_job {
  int64_t count;
  const float *x;
  double *sums; /* [pieces] */
} ft__squares_job;

FT__INLINE void ft__squares_piece(void *argument, int64_t piece, int thread) {
  const ft__squares_job *job = (const ft__squares_job *)argument;
  int64_t i = piece * FT__PIECE, j, end = ft__smaller(job->count, i + FT__PIECE);
  double sum = 0;
  (void)thread;
  for (; i < end; i += 1024) {
    int64_t block_end = ft__smaller(end, i + 1024);
    ft__vector v, squares = {0};
    for (j = i; j < block_end; j += FT__LANES) {
      ft__load(&v, job->x + j, block_end - j);
      squares = squares + v * v;
    }
    sum += (double)ft__sum_lanes(&squares);
  }
  job->sums[piece] = sum;
}
FT__TASKS(ft__squares_piece)

static double ft__sum_of_squares_fast(ft_context *context, int64_t count, const float *x) {
  int64_t i, pieces = ft__pieces(count, FT__PIECE);
  ft__squares_job job;
  double sum = 0;
  if (pieces > (int64_t)(FT__SCRATCH_BYTES / sizeof(double))) return ft__sum_of_squares_plain(context, count, x);
  job.count = count, job.x = x, job.sums = (double *)ft__scratch(context, 0);
  ft__parallel_for(context, pieces, ft__squares_piece_tasks[FT__INSTRUCTION_SET()], &job);
  for (i = 0; i < pieces; ++i) sum += job.sums[i];
  return sum;
}

typedef struct ft__adamw_job {
  const ft_adamw_step *step;
  ft__adamw_factors factors;
} ft__adamw_job;

enum { FT__ADAMW_BLOCK = 64 };

/* Where gradient and moments are zero, as in the rows of a vocabulary that no text has used yet, the step comes down to
   w (1 - lr wd): such blocks are not written, but for the weights, and not read where step->rows says so. */
FT__INLINE bool ft__adamw_is_decay(const ft_adamw_step *step, int64_t i) {
  ft__word_lanes any = {0};
  uint64_t word[8], all = 0;
  int64_t j;
  if (step->rows) {
    for (j = i / step->columns; j * step->columns < i + FT__ADAMW_BLOCK && !step->rows[j];) ++j;
    if (j * step->columns >= i + FT__ADAMW_BLOCK) return true;
  }
  for (j = i; j < i + FT__ADAMW_BLOCK; j += FT__LANES)
    any |= (ft__word_lanes) * (const ft__vector_memory *)(step->gradient + j) |
           (ft__word_lanes) * (const ft__vector_memory *)(step->first_moment + j) |
           (ft__word_lanes) * (const ft__vector_memory *)(step->second_moment + j);
  memcpy(word, &any, sizeof word);
  for (j = 0; j < 8; ++j) all |= word[j];
  return all == 0;
}

FT__INLINE void ft__adamw_block(const ft_adamw_step *step, const ft__adamw_factors *f, float inverse_root, int64_t i,
                                int64_t end) {
  for (; i < end; i += FT__LANES) {
    ft__vector g, w, m, v, root;
    ft__load(&g, step->gradient + i, end - i);
    ft__load(&w, step->weight + i, end - i);
    ft__load(&m, step->first_moment + i, end - i);
    ft__load(&v, step->second_moment + i, end - i);
    g = g * f->gradient_scale;
    m = m + (g - m) * f->first;
    v = v * f->second + g * g * f->second_new;
    root = v;
    ft__vector_sqrt(&root);
    w = w * f->decay - m * f->step / (root * inverse_root + f->epsilon);
    ft__store(step->weight + i, &w, end - i);
    ft__store(step->first_moment + i, &m, end - i);
    ft__store(step->second_moment + i, &v, end - i);
  }
}

FT__INLINE void ft__adamw_piece(void *argument, int64_t piece, int thread) {
  const ft__adamw_job *job = (const ft__adamw_job *)argument;
  const ft_adamw_step *step = job->step;
  const ft__adamw_factors f = job->factors;
  int64_t i = piece * FT__PIECE, j, end = ft__smaller(step->count, i + FT__PIECE);
  (void)thread;
  for (; i < end; i += FT__ADAMW_BLOCK) {
    if (f.epsilon > 0 && i + FT__ADAMW_BLOCK <= end && ft__adamw_is_decay(step, i)) {
      for (j = i; f.decay < 1 && j < i + FT__ADAMW_BLOCK; j += FT__LANES)
        *(ft__vector_memory *)(step->weight + j) *= f.decay;
    } else {
      ft__adamw_block(step, &f, 1 / f.root, i, ft__smaller(end, i + FT__ADAMW_BLOCK));
    }
  }
}
FT__TASKS(ft__adamw_piece)

static void ft__adamw_fast(ft_context *context, const ft_adamw_step *step) {
  ft__adamw_job job;
  job.step = step, job.factors = ft__adamw_prepare(step);
  ft__parallel_for(context, ft__pieces(step->count, FT__PIECE), ft__adamw_piece_tasks[FT__INSTRUCTION_SET()], &job);
}
#endif

static const ft_backend ft__backend_plain = {"cpu (plain)",
                                             ft__cpu_allocate,
                                             ft__cpu_release,
                                             ft__cpu_write,
                                             ft__cpu_read,
                                             ft__cpu_zero,
                                             ft__unary_plain,
                                             ft__unary_backward_plain,
                                             ft__binary_plain,
                                             ft__accumulate_plain,
                                             ft__softmax_plain,
                                             ft__softmax_backward_plain,
                                             ft__matmul_plain,
                                             ft__column_sum_plain,
                                             ft__dropout_plain,
                                             ft__layer_norm_plain,
                                             ft__layer_norm_backward_plain,
                                             ft__attention_plain,
                                             ft__attention_backward_plain,
                                             ft__embedding_plain,
                                             ft__embedding_backward_plain,
                                             ft__gather_rows_plain,
                                             ft__scatter_rows_plain,
                                             ft__cross_entropy_plain,
                                             ft__cross_entropy_backward_plain,
                                             ft__pointwise_loss_plain,
                                             ft__pointwise_loss_backward_plain,
                                             ft__sum_of_squares_plain,
                                             ft__adamw_plain};

#if FT__FAST
static const ft_backend ft__backend_fast = {"cpu",
                                            ft__cpu_allocate,
                                            ft__cpu_release,
                                            ft__cpu_write,
                                            ft__cpu_read,
                                            ft__cpu_zero,
                                            ft__unary_fast,
                                            ft__unary_backward_fast,
                                            ft__binary_plain,
                                            ft__accumulate_fast,
                                            ft__softmax_plain,
                                            ft__softmax_backward_plain,
                                            ft__matmul_fast,
                                            ft__column_sum_fast,
                                            ft__dropout_fast,
                                            ft__layer_norm_fast,
                                            ft__layer_norm_backward_fast,
                                            ft__attention_fast,
                                            ft__attention_backward_fast,
                                            ft__embedding_fast,
                                            ft__embedding_backward_fast,
                                            ft__gather_rows_plain,
                                            ft__scatter_rows_plain,
                                            ft__cross_entropy_fast,
                                            ft__cross_entropy_backward_fast,
                                            ft__pointwise_loss_plain,
                                            ft__pointwise_loss_backward_plain,
                                            ft__sum_of_squares_fast,
                                            ft__adamw_fast};
#endif

/* For logs: what the kernels run on. */
FT_API const char *ft_cpu_instruction_set(void) {
#if FT__FAST
  switch (FT__INSTRUCTION_SET()) {
    case FT__AVX512:
      return "AVX-512";
    case FT__AVX2:
      return "AVX2";
    default:
      break;
  }
#if defined(__aarch64__)
  return "NEON";
#endif
#endif
  return "plain C";
}

static void ft__kernels_choose(ft_context *context) {
  ft__ask_large_pages(context->scratch, FT__SCRATCH_BYTES * (size_t)context->threads);
#if FT__FAST && defined(FT__TILES)
  context->has_tiles = ft__tiles_request();
#endif
#if FT__FAST && defined(FT__PAIRS)
  context->has_pairs = ft__pairs_available();
#endif
  if (context->compute_dtype != FT_BF16 || context->has_pairs) return;
  context->compute_dtype = FT_F32;
  ft__log(context, FT_LOG_WARNING, "this processor has no instructions for bfloat16: computing in float32");
}

FT_API const ft_backend *ft_backend_cpu(void) {
#if FT__FAST
  return &ft__backend_fast;
#else
  return &ft__backend_plain;
#endif
}

/* ---------------------------------------------------------------------------------------------------------------------
   A profile: a copy of the back end's table in which each function is replaced by one that calls it and notes the time.
   Matrix products appear three times, as activations times weights and as their two gradients. */

#define FT__PROFILED_CALL(X, name, type, elements) \
  X(name, (ft_context * context, const type *call), (context, call), elements)
#define FT__PROFILED(X)                                                                                                \
  X(zero, (ft_context * context, void *buffer, size_t bytes), (context, buffer, bytes),                                \
    (double)(bytes / sizeof(ft_real)))                                                                                 \
  X(unary, (ft_context * context, ft_unary kind, int64_t count, const ft_real *x, ft_real *y),                         \
    (context, kind, count, x, y), 2 * (double)count)                                                                   \
  X(unary_backward,                                                                                                    \
    (ft_context * context, ft_unary kind, int64_t count, const ft_real *x, const ft_real *y, const ft_real *dy,        \
     ft_real *dx, bool accumulate),                                                                                    \
    (context, kind, count, x, y, dy, dx, accumulate), 3 * (double)count)                                               \
  X(binary,                                                                                                            \
    (ft_context * context, ft_binary kind, const int64_t *shape, const ft_real *a, const int64_t *a_stride,            \
     const ft_real *b, const int64_t *b_stride, ft_real *y),                                                           \
    (context, kind, shape, a, a_stride, b, b_stride, y), 3 * ft__profile_size(shape))                                  \
  X(accumulate,                                                                                                        \
    (ft_context * context, const int64_t *shape, ft_real scale, const ft_real *x, const int64_t *x_stride, ft_real *y, \
     const int64_t *y_stride),                                                                                         \
    (context, shape, scale, x, x_stride, y, y_stride), 3 * ft__profile_size(shape))                                    \
  X(softmax, (ft_context * context, int64_t rows, int64_t columns, const ft_real *x, ft_real *y),                      \
    (context, rows, columns, x, y), 2 * (double)(rows * columns))                                                      \
  X(softmax_backward,                                                                                                  \
    (ft_context * context, int64_t rows, int64_t columns, const ft_real *y, const ft_real *dy, ft_real *dx),           \
    (context, rows, columns, y, dy, dx), 4 * (double)(rows * columns))                                                 \
  X(column_sum, (ft_context * context, int64_t rows, int64_t columns, const ft_real *x, ft_real *sum),                 \
    (context, rows, columns, x, sum), (double)(rows * columns))                                                        \
  X(dropout,                                                                                                           \
    (ft_context * context, int64_t count, const ft_dropout_mask *mask, const ft_real *x, ft_real *y, bool accumulate), \
    (context, count, mask, x, y, accumulate), 2 * (double)count)                                                       \
  X(gather_rows,                                                                                                       \
    (ft_context * context, int64_t count, int64_t columns, const int32_t *rows, const ft_real *x, ft_real *y),         \
    (context, count, columns, rows, x, y), 2 * (double)(count * columns))                                              \
  X(scatter_rows,                                                                                                      \
    (ft_context * context, int64_t count, int64_t columns, const int32_t *rows, const ft_real *y, ft_real *x),         \
    (context, count, columns, rows, y, x), 3 * (double)(count * columns))                                              \
  FT__PROFILED_CALL(X, layer_norm, ft_layer_norm_call, 4 * (double)(call->rows * call->columns))                       \
  FT__PROFILED_CALL(X, layer_norm_backward, ft_layer_norm_call, 4 * (double)(call->rows * call->columns))              \
  FT__PROFILED_CALL(X, attention, ft_attention_call, 4 * (double)(call->tokens * call->heads * call->head_size))       \
  FT__PROFILED_CALL(X, attention_backward, ft_attention_call,                                                          \
                    8 * (double)(call->tokens * call->heads * call->head_size))                                        \
  FT__PROFILED_CALL(X, embedding, ft_embedding_call, 2 * (double)(call->tokens * call->columns))                       \
  FT__PROFILED_CALL(X, embedding_backward, ft_embedding_call, 3 * (double)(call->tokens * call->columns))              \
  FT__PROFILED_CALL(X, cross_entropy, ft_cross_entropy_call, (double)(call->rows * call->columns))                     \
  FT__PROFILED_CALL(X, cross_entropy_backward, ft_cross_entropy_call, 3 * (double)(call->rows * call->columns))        \
  FT__PROFILED_CALL(X, pointwise_loss, ft_pointwise_loss_call, 2 * (double)call->count)                                \
  FT__PROFILED_CALL(X, pointwise_loss_backward, ft_pointwise_loss_call, 4 * (double)call->count)                       \
  FT__PROFILED_CALL(X, adamw, ft_adamw_step, ft__adamw_elements(call))
#define FT__PROFILE_INDEX(name, parameters, arguments, elements) FT__PROFILE_##name,
enum {
  FT__PROFILED(FT__PROFILE_INDEX) FT__PROFILE_sum_of_squares,
  FT__PROFILE_matmul, /* and the two that follow */
  FT__PROFILE_ENTRIES = FT__PROFILE_matmul + 3
};

typedef struct ft__profile {
  const ft_backend *inner;
  ft_backend table;
  ft_profile_entry entries[FT__PROFILE_ENTRIES];
} ft__profile;

static void ft__profile_add(ft_context *context, int index, double start, double operations, double elements) {
  ft_profile_entry *entry = &context->profile->entries[index];
  ++entry->calls;
  entry->seconds += ft_seconds() - start;
  entry->operations += operations;
  entry->bytes += elements * (double)sizeof(ft_real);
}

/* Of rows that only decay, the weights alone are read and written. */
static double ft__adamw_elements(const ft_adamw_step *step) {
  int64_t i, elements = 7 * step->count;
  for (i = 0; step->rows && i < step->count / step->columns; ++i) elements -= step->rows[i] ? 0 : 5 * step->columns;
  return (double)elements;
}

static double ft__profile_size(const int64_t *shape) { return (double)(shape[0] * shape[1] * shape[2] * shape[3]); }

#define FT__PROFILE_FUNCTION(name, parameters, arguments, elements)   \
  static void ft__profile_##name parameters {                         \
    double start = ft_seconds();                                      \
    context->profile->inner->name arguments;                          \
    ft__profile_add(context, FT__PROFILE_##name, start, 0, elements); \
  }
FT__PROFILED(FT__PROFILE_FUNCTION)

static double ft__profile_sum_of_squares(ft_context *context, int64_t count, const ft_real *x) {
  double start = ft_seconds(), sum = context->profile->inner->sum_of_squares(context, count, x);
  ft__profile_add(context, FT__PROFILE_sum_of_squares, start, 0, (double)count);
  return sum;
}

static void ft__profile_matmul(ft_context *context, const ft_matmul_call *call) {
  double start = ft_seconds(), m = (double)call->m, n = (double)call->n, k = (double)call->k;
  int form = call->b_row == 1 ? 0 : call->a_row == 1 ? 2 : 1;
  context->profile->inner->matmul(context, call);
  ft__profile_add(context, FT__PROFILE_matmul + form, start, 2 * m * n * k, m * k + k * n + m * n);
}

FT_API ft_status ft_profile_begin(ft_context *context) {
#define FT__PROFILE_NAME(name, parameters, arguments, elements) #name,
  static const char *const names[] = {FT__PROFILED(FT__PROFILE_NAME) "sum_of_squares", "matmul x W^T", "matmul dz W",
                                      "matmul dz^T x"};
  ft__profile *profile;
  int i;
  if (context->profile) return FT_OK;
  profile = (ft__profile *)ft__allocate_zero(context, sizeof *profile);
  if (!profile) return context->status;
  profile->inner = context->backend, profile->table = *context->backend;
#define FT__PROFILE_SET(name, parameters, arguments, elements) profile->table.name = ft__profile_##name;
  FT__PROFILED(FT__PROFILE_SET)
  profile->table.sum_of_squares = ft__profile_sum_of_squares, profile->table.matmul = ft__profile_matmul;
  for (i = 0; i < FT__PROFILE_ENTRIES; ++i) profile->entries[i].name = names[i];
  context->profile = profile, context->backend = &profile->table;
  return FT_OK;
}

FT_API const ft_profile_entry *ft_profile_entries(const ft_context *context, int *count) {
  *count = context->profile ? (int)FT__PROFILE_ENTRIES : 0;
  return context->profile ? context->profile->entries : NULL;
}
/* =====================================================================================================================
   >>tape: tensors, and reverse-mode automatic differentiation

   An operation y = f(x1, .., xn) is a node: its inputs, its output, what it saved for later, and two functions. Forward
   computes y. Backward is given dL/dy and adds to each input its share of the chain rule,

       dL/dxi  +=  (dy/dxi)^T dL/dy.

   Recording an operation computes it and appends its node; ft_backward visits the nodes last to first. That order is
   right because a node is appended only after the nodes that made its inputs: when it is visited, every use of its
   output has already added to dL/dy. (Griewank and Walther, "Evaluating Derivatives", chapter 3.)

   Gradient memory of intermediate tensors is needed only between the first use that adds to it and the node that made
   the tensor. It is then handed to the next gradient of the same size: a step keeps a handful of gradient buffers
   instead of one for each activation. The first contribution overwrites and later ones add (gradient_is_set says
   which), so gradients are never cleared for nothing.

   Gradient checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory cost") trades time for memory: of
   a segment of the tape, such as a layer, only input x and output y are kept. Its nodes, and what they saved, are
   dropped as soon as y is there; one node stands for them. When the walk reaches that node, the segment runs forward
   again onto a tape of its own, which is walked at once and dropped again. n layers then hold n inputs and the inside
   of one layer, for one more forward pass. The second run is the first one over again, with the same inputs and the
   same random numbers, so nothing else changes, to the last bit. */

enum { FT__INPUTS = 6, FT__SAVED = 4 };

typedef struct ft__node ft__node;

/* A segment for ft__checkpoint: computes piece number `index` of x into y and returns y. */
typedef ft_tensor *(*ft__segment)(ft_context *context, const void *argument, int64_t index, ft_tensor *x, ft_tensor *y);

typedef struct ft__operation {
  const char *name;
  void (*forward)(ft_context *context, ft__node *node);
  void (*backward)(ft_context *context, ft__node *node); /* NULL: recording it on the way to a gradient is an error */
} ft__operation;

struct ft__node {
  const ft__operation *operation;
  ft__node *previous;
  ft_tensor *input[FT__INPUTS]; /* NULL where there is none */
  ft_tensor *output;
  ft_tensor *saved[FT__SAVED]; /* what forward leaves for backward */
  int kind;                    /* parameters of the operation, as it needs them: ft_unary, ft_binary, heads, ... */
  int64_t integer;
  double number;
  ft_dropout_mask dropout;
  ft__segment segment; /* of a checkpoint, with its argument: what to run again */
  const void *argument;
};

typedef struct ft__free_gradient {
  void *memory;
  size_t bytes;
} ft__free_gradient;

struct ft__tape {
  ft__node *last;
  ft__free_gradient *free_gradients; /* back-end memory of finished gradients, to be used again */
  int64_t free_count, free_capacity;
  int64_t free_first; /* those before it are an outer tape's: not to be taken now */
};

static size_t ft__element_size(ft_dtype dtype) { return dtype == FT_F32 ? sizeof(ft_real) : ft_dtype_size(dtype); }

FT_API int64_t ft_tensor_count(const ft_tensor *tensor) {
  int64_t count = 1;
  int i;
  for (i = 0; i < tensor->dimensions; ++i) count *= tensor->shape[i];
  return count;
}

static size_t ft__tensor_bytes(const ft_tensor *tensor) {
  return (size_t)ft_tensor_count(tensor) * ft__element_size(tensor->dtype);
}

static bool ft__is_contiguous(const ft_tensor *tensor) {
  int64_t expected = 1;
  int i;
  for (i = tensor->dimensions - 1; i >= 0; --i) {
    if (tensor->shape[i] != 1 && tensor->stride[i] != expected) return false;
    expected *= tensor->shape[i];
  }
  return true;
}

/* "[2, 3]", for messages; buffer has 100 bytes. */
static const char *ft__shape_text(const ft_tensor *tensor, char *buffer) {
  size_t used = 1;
  int i;
  buffer[0] = '[';
  for (i = 0; i < tensor->dimensions; ++i)
    used += (size_t)snprintf(buffer + used, 100 - used, "%s%lld", i ? ", " : "", (long long)tensor->shape[i]);
  snprintf(buffer + used, 100 - used, "]");
  return buffer;
}

static void ft__set_shape(ft_tensor *tensor, int dimensions, const int64_t *shape) {
  int64_t stride = 1;
  int i;
  tensor->dimensions = dimensions;
  for (i = dimensions - 1; i >= 0; --i) {
    tensor->shape[i] = shape[i];
    tensor->stride[i] = stride;
    stride *= shape[i];
  }
}

static bool ft__check_shape(ft_context *context, int dimensions, const int64_t *shape) {
  int64_t room = INT64_MAX / 64;
  int i;
  if (dimensions < 0 || dimensions > 4) {
    ft__error(context, FT_ERROR_SHAPE, "a tensor has 0 to 4 dimensions, not %d", dimensions);
    return false;
  }
  for (i = 0; i < dimensions; ++i) {
    if (shape[i] < 0 || (shape[i] > 0 && room / shape[i] < 1)) {
      ft__error(context, FT_ERROR_SHAPE, "a tensor cannot have %lld elements along dimension %d", (long long)shape[i],
                i);
      return false;
    }
    if (shape[i] > 0) room /= shape[i];
  }
  return true;
}

/* A persistent tensor that has its shape, but no memory yet. */
static ft_tensor *ft__tensor_outline(ft_context *context, ft_dtype dtype, int dimensions, const int64_t *shape) {
  ft_tensor *tensor;
  if (dtype != FT_F32 && dtype != FT_I32) {
    ft__error(context, FT_ERROR_UNSUPPORTED, "tensors hold F32 or I32, not %s", ft_dtype_name(dtype));
    return NULL;
  }
  if (!ft__check_shape(context, dimensions, shape)) return NULL;
  tensor = (ft_tensor *)ft__allocate_zero(context, sizeof *tensor);
  if (!tensor) return NULL;
  tensor->dtype = dtype;
  tensor->persistent = true;
  tensor->owner = context;
  ft__set_shape(tensor, dimensions, shape);
  return tensor;
}

/* Its memory, zero-filled. */
static ft_status ft__tensor_allocate(ft_context *context, ft_tensor *tensor) {
  tensor->data = context->backend->allocate(context, ft__tensor_bytes(tensor));
  if (!tensor->data)
    return ft__error(context, FT_ERROR_MEMORY, "out of memory: a tensor of %zu bytes", ft__tensor_bytes(tensor));
  context->backend->zero(context, tensor->data, ft__tensor_bytes(tensor));
  return FT_OK;
}

FT_API ft_tensor *ft_tensor_create(ft_context *context, ft_dtype dtype, int dimensions, const int64_t *shape) {
  ft_tensor *tensor = ft__tensor_outline(context, dtype, dimensions, shape);
  if (!tensor || ft__tensor_allocate(context, tensor) == FT_OK) return tensor;
  ft_tensor_free(tensor);
  return NULL;
}

/* To be called when a tensor's values have been written: what was made of the old ones is dropped. */
static void ft__tensor_changed(ft_tensor *tensor) {
  if (tensor->packed) tensor->owner->backend->release(tensor->owner, tensor->packed);
  tensor->packed = NULL;
}

FT_API void ft_tensor_free(ft_tensor *tensor) {
  ft_context *context;
  if (!tensor || !tensor->persistent) return;
  context = tensor->owner;
  if (tensor->data) context->backend->release(context, tensor->data);
  if (tensor->gradient) context->backend->release(context, tensor->gradient);
  ft__release(context, tensor->gradient_rows);
  ft__tensor_changed(tensor);
  ft__release(context, tensor);
}

static ft_tensor *ft__tensor_header(ft_context *context) {
  ft_tensor *tensor = (ft_tensor *)ft__arena_allocate(context, &context->host_arena, sizeof *tensor);
  if (tensor) memset(tensor, 0, sizeof *tensor);
  return tensor;
}

FT_API ft_tensor *ft_tensor_temporary(ft_context *context, ft_dtype dtype, int dimensions, const int64_t *shape) {
  ft_tensor *tensor;
  if (!ft__check_shape(context, dimensions, shape) || !(tensor = ft__tensor_header(context))) return NULL;
  tensor->dtype = dtype;
  ft__set_shape(tensor, dimensions, shape);
  tensor->data = ft__arena_allocate(context, &context->backend_arena, ft__tensor_bytes(tensor));
  return tensor->data ? tensor : NULL;
}

static ft_tensor *ft__temporary_1d(ft_context *context, ft_dtype dtype, int64_t count) {
  return ft_tensor_temporary(context, dtype, 1, &count);
}

static ft_tensor *ft__temporary_2d(ft_context *context, ft_dtype dtype, int64_t rows, int64_t columns) {
  int64_t shape[2];
  shape[0] = rows, shape[1] = columns;
  return ft_tensor_temporary(context, dtype, 2, shape);
}

static ft_status ft__check_contiguous(ft_context *context, const ft_tensor *tensor, const char *what) {
  if (ft__is_contiguous(tensor)) return FT_OK;
  return ft__error(context, FT_ERROR_SHAPE, "%s wants a contiguous tensor, not a view: see ft_contiguous", what);
}

/* What a function answers that was given a NULL: the error that made it, or an error of its own. */
static ft_status ft__null_status(ft_context *context, const char *message) {
  ft__null_argument(context, message);
  return context->status;
}

FT_API ft_status ft_tensor_write(ft_context *context, ft_tensor *tensor, const void *values) {
  if (!tensor) return ft__null_status(context, "ft_tensor_write needs a tensor");
  if (ft__check_contiguous(context, tensor, "ft_tensor_write") != FT_OK) return context->status;
  context->backend->write(context, tensor->data, values, ft__tensor_bytes(tensor));
  ft__tensor_changed(tensor);
  return FT_OK;
}

FT_API ft_status ft_tensor_read(ft_context *context, const ft_tensor *tensor, void *values) {
  if (!tensor) return ft__null_status(context, "ft_tensor_read needs a tensor");
  if (ft__check_contiguous(context, tensor, "ft_tensor_read") != FT_OK) return context->status;
  context->backend->read(context, tensor->data, values, ft__tensor_bytes(tensor));
  return FT_OK;
}

FT_API ft_status ft_gradient_read(ft_context *context, const ft_tensor *tensor, ft_real *values) {
  if (!tensor) return ft__null_status(context, "ft_gradient_read needs a tensor");
  if (tensor->gradient && tensor->gradient_is_set)
    context->backend->read(context, tensor->gradient, values, ft__tensor_bytes(tensor));
  else
    memset(values, 0, ft__tensor_bytes(tensor));
  return FT_OK;
}

FT_API void ft_gradient_zero(ft_context *context, ft_tensor *tensor) {
  (void)context;
  tensor->gradient_is_set = false; /* the next contribution overwrites */
}

/* ---- gradient memory ---- */

static void *ft__gradient_take(ft_context *context, size_t bytes) {
  ft__tape *tape = context->tape;
  int64_t i;
  for (i = tape ? tape->free_count - 1 : -1; i >= 0 && i >= tape->free_first; --i) {
    if (tape->free_gradients[i].bytes == bytes) {
      void *memory = tape->free_gradients[i].memory;
      tape->free_gradients[i] = tape->free_gradients[--tape->free_count];
      return memory;
    }
  }
  return ft__arena_allocate(context, &context->backend_arena, bytes);
}

static void ft__gradient_give(ft_context *context, void *memory, size_t bytes) {
  ft__tape *tape = context->tape;
  if (!memory || !ft__grow(context, &tape->free_gradients, &tape->free_capacity, tape->free_count + 1,
                           sizeof *tape->free_gradients))
    return; /* not used again in this step, nothing worse */
  tape->free_gradients[tape->free_count].memory = memory;
  tape->free_gradients[tape->free_count].bytes = bytes;
  ++tape->free_count;
}

/* The next marked rows from *first on are *first .. what is returned; both are `rows` when there are none. */
static int64_t ft__marked_rows(const uint8_t *marked, int64_t rows, int64_t *first) {
  int64_t end;
  while (*first < rows && !marked[*first]) ++*first;
  for (end = *first; end < rows && marked[end];) ++end;
  return end;
}

/* The memory of a tensor's gradient, for an operation about to add its share: *accumulate says whether something is
   there already or the memory is to be overwritten. NULL when the tensor needs no gradient, or memory is short. */
static ft_real *ft__gradient(ft_context *context, ft_tensor *tensor, bool *accumulate) {
  *accumulate = false;
  if (!tensor || !tensor->requires_gradient) return NULL;
  if (!tensor->gradient) {
    size_t bytes = ft__tensor_bytes(tensor);
    tensor->gradient =
        tensor->persistent ? context->backend->allocate(context, bytes) : ft__gradient_take(context, bytes);
    if (!tensor->gradient) {
      ft__error(context, FT_ERROR_MEMORY, "out of memory: the gradient of %s, %zu bytes",
                tensor->name ? tensor->name : "a tensor", bytes);
      return NULL;
    }
  }
  *accumulate = tensor->gradient_is_set;
  tensor->gradient_is_set = true;
  if (tensor->gradient_rows) memset(tensor->gradient_rows, 1, (size_t)tensor->shape[0]);
  return (ft_real *)tensor->gradient;
}

/* The same for operations that only add: unset memory is cleared first. */
static ft_real *ft__gradient_to_add(ft_context *context, ft_tensor *tensor) {
  bool accumulate;
  ft_real *gradient = ft__gradient(context, tensor, &accumulate);
  if (gradient && !accumulate) context->backend->zero(context, gradient, ft__tensor_bytes(tensor));
  return gradient;
}

/* The same for operations that add to the rows `ids` only. A batch uses few rows of a table; the rest of its gradient
   is a hundred megabytes of zeros, which no step should write, or read for the norm or the optimizer. gradient_rows
   marks the rows that may hold something else. What is not marked is zero in memory, so the gradient is an array like
   any other; operations that write all of it mark all rows. */
static ft_real *ft__gradient_of_rows(ft_context *context, ft_tensor *table, const ft_tensor *ids) {
  int64_t i, end, count = ids ? ft_tensor_count(ids) : 0;
  int32_t *id;
  if (!table || !table->requires_gradient) return NULL;
  if (!table->persistent) return ft__gradient_to_add(context, table);
  if (!(id = (int32_t *)ft__arena_allocate(context, &context->host_arena, (size_t)count * sizeof *id))) return NULL;
  if (!table->gradient_rows) {
    bool is_set = table->gradient_is_set;
    uint8_t *marked = (uint8_t *)ft__allocate(context, (size_t)table->shape[0]);
    if (!marked || !ft__gradient_to_add(context, table)) {
      ft__release(context, marked);
      return NULL;
    }
    memset(marked, is_set, (size_t)table->shape[0]);
    table->gradient_rows = marked;
  } else if (!table->gradient_is_set) {
    for (i = 0; (end = ft__marked_rows(table->gradient_rows, table->shape[0], &i)) > i; i = end)
      context->backend->zero(context, (ft_real *)table->gradient + i * table->shape[1],
                             (size_t)((end - i) * table->shape[1]) * sizeof(ft_real));
    memset(table->gradient_rows, 0, (size_t)table->shape[0]);
    table->gradient_is_set = true;
  }
  context->backend->read(context, ids->data, id, (size_t)count * sizeof *id);
  for (i = 0; i < count; ++i) table->gradient_rows[id[i]] = 1;
  return (ft_real *)table->gradient;
}

/* ---- recording ---- */

static ft__node *ft__node_create(ft_context *context, const ft__operation *operation) {
  ft__node *node = (ft__node *)ft__arena_allocate(context, &context->host_arena, sizeof *node);
  if (!node) return NULL;
  memset(node, 0, sizeof *node);
  node->operation = operation;
  return node;
}

/* Computes a node whose inputs, output and saved tensors are in place, and appends it to the tape if a gradient will
   flow through it. Returns its output, or NULL if the back end reported a failure. */
static ft_tensor *ft__record(ft_context *context, ft__node *node) {
  ft_status before = context->status; /* of some earlier call */
  bool differentiable = false;
  int i;
  if (!node->output) return NULL;
  for (i = 0; i < FT__INPUTS; ++i)
    if (node->input[i] && node->input[i]->requires_gradient && context->no_grad == 0) differentiable = true;
  if (differentiable && !node->operation->backward) {
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s has no backward pass, but its input requires a gradient",
              node->operation->name);
    return NULL;
  }
  if (differentiable && !context->tape &&
      !(context->tape = (ft__tape *)ft__allocate_zero(context, sizeof *context->tape)))
    return NULL;
  context->status = FT_OK;
  node->operation->forward(context, node);
  if (context->status != FT_OK) return NULL;
  context->status = before;
  if (differentiable) {
    node->output->requires_gradient = true;
    node->previous = context->tape->last;
    context->tape->last = node;
  }
  return node->output;
}

/* Visits the tape's nodes, last to first, until one fails. */
static ft_status ft__walk(ft_context *context) {
  ft__node *node;
  ft_status status = FT_OK;
  for (node = context->tape ? context->tape->last : NULL; node && status == FT_OK; node = node->previous) {
    ft_tensor *output = node->output;
    if (!output->gradient_is_set) continue; /* the loss does not depend on it */
    node->operation->backward(context, node);
    status = context->status;
    ft__gradient_give(context, output->gradient, ft__tensor_bytes(output));
    output->gradient = NULL;
    output->gradient_is_set = false;
  }
  return status;
}

/* ---- checkpoints ---- */

typedef struct ft__tape_mark { /* a place to return to: what was recorded and allocated since is given up */
  ft__node *last;
  int64_t free_first, free_count;
  ft__arena_mark host, backend;
} ft__tape_mark;

static ft__tape_mark ft__tape_here(const ft_context *context) {
  ft__tape_mark mark;
  mark.last = context->tape ? context->tape->last : NULL;
  mark.free_first = context->tape ? context->tape->free_first : 0;
  mark.free_count = context->tape ? context->tape->free_count : 0;
  mark.host = ft__arena_here(&context->host_arena);
  mark.backend = ft__arena_here(&context->backend_arena);
  return mark;
}

static void ft__tape_return(ft_context *context, ft__tape_mark mark) {
  if (context->tape) {
    context->tape->last = mark.last;
    context->tape->free_first = mark.free_first;
    context->tape->free_count = mark.free_count;
  }
  ft__arena_return(&context->host_arena, mark.host);
  ft__arena_return(&context->backend_arena, mark.backend);
}

/* Runs the segment again, onto an empty tape, and walks that. The gradient of x outlives it, so its memory is taken
   first. The walk hands back the gradient of y to a list that is then forgotten: it stays y's. */
static void ft__checkpoint_backward(ft_context *context, ft__node *node) {
  ft_tensor *x = node->input[0], *y = node->output;
  void *y_gradient = y->gradient;
  ft_dropout_mask now = ft__dropout_mask(context, 0, 0);
  int no_grad = context->no_grad;
  ft__tape_mark mark;
  if (x->requires_gradient && !x->gradient && !(x->gradient = ft__gradient_take(context, ft__tensor_bytes(x)))) return;
  mark = ft__tape_here(context);
  context->tape->last = NULL;
  context->tape->free_first = context->tape->free_count;
  context->no_grad = 0;
  ft_random_position(context, node->dropout.seed, node->dropout.step, node->dropout.micro_batch);
  if (node->segment(context, node->argument, node->integer, x, y)) ft__walk(context);
  ft_random_position(context, now.seed, now.step, now.micro_batch);
  context->no_grad = no_grad;
  ft__tape_return(context, mark);
  y->gradient = y_gradient;
}

/* y, computed by a segment from x, a temporary tensor, and the model's parameters; nothing of its inside is kept. The
   argument lives as long as the tape. */
static ft_tensor *ft__checkpoint(ft_context *context, ft__segment segment, const void *argument, int64_t index,
                                 ft_tensor *x, ft_tensor *y) {
  static const ft__operation operation = {"a checkpoint", NULL, ft__checkpoint_backward};
  ft__node *node = ft__node_create(context, &operation);
  ft__tape_mark mark = ft__tape_here(context);
  if (!x || !y || !node) return NULL;
  node->input[0] = x;
  node->output = y;
  node->segment = segment;
  node->argument = argument;
  node->integer = index;
  node->dropout = ft__dropout_mask(context, 0, 0); /* where the random numbers stand */
  y = segment(context, argument, index, x, y);
  ft__tape_return(context, mark);
  if (y && y->requires_gradient) { /* as the segment found */
    node->previous = mark.last;
    context->tape->last = node;
  }
  return y;
}

FT_API ft_status ft_backward(ft_context *context, ft_tensor *loss) {
  const ft_real one = 1;
  ft_real *gradient;
  bool accumulate;
  ft_status status, before = context->status; /* of some earlier call */
  if (!loss) return ft__null_status(context, "ft_backward needs a loss");
  if (ft_tensor_count(loss) != 1) {
    char shape[100];
    return ft__error(context, FT_ERROR_SHAPE, "ft_backward starts at a loss of one element, not at one of shape %s",
                     ft__shape_text(loss, shape));
  }
  if (!loss->requires_gradient)
    return ft__error(context, FT_ERROR_ARGUMENT,
                     "ft_backward: nothing that the loss was computed from requires a gradient");
  context->status = FT_OK;
  gradient = ft__gradient(context, loss, &accumulate);
  if (!gradient) return context->status;
  context->backend->write(context, gradient, &one, sizeof one);
  status = ft__walk(context);
  if (status == FT_OK) context->status = before;
  return status;
}

FT_API void ft_tape_clear(ft_context *context) {
  if (context->tape) {
    context->tape->last = NULL;
    context->tape->free_count = 0;
  }
  ft__arena_reset(context, &context->host_arena);
  ft__arena_reset(context, &context->backend_arena);
}

static void ft__tape_free(ft_context *context) {
  if (!context->tape) return;
  ft__release(context, context->tape->free_gradients);
  ft__release(context, context->tape);
  context->tape = NULL;
}

FT_API void ft_no_grad_begin(ft_context *context) { ++context->no_grad; }

FT_API void ft_no_grad_end(ft_context *context) {
  FT_ASSERT(context->no_grad > 0);
  --context->no_grad;
}

FT_API int64_t ft_tape_peak_bytes(const ft_context *context) { return (int64_t)context->backend_arena.peak; }

FT_API ft_status ft_tape_reserve(ft_context *context, int64_t bytes) {
  ft__arena *arena = &context->backend_arena;
  if (arena->total > 0 || bytes < 0)
    return ft__error(context, FT_ERROR_ARGUMENT, "ft_tape_reserve wants an empty tape and a size");
  if ((uint64_t)bytes > SIZE_MAX / 4)
    return ft__error(context, FT_ERROR_MEMORY, "out of memory: a step wants %lld bytes", (long long)bytes);
  if (arena->first && arena->first->size >= (size_t)bytes) return FT_OK;
  ft__arena_free(context, arena);
  return ft__block_add(context, arena, (size_t)bytes) ? FT_OK : context->status;
}

/* =====================================================================================================================
   >>operations: each with its forward and backward pass side by side

   Notation: dx stands for dL/dx. Broadcasting aligns shapes at their last dimension; along a stretched dimension the
   stride is 0, so one strided loop (back-end function `accumulate`) serves to copy views, to add gradients of views
   into their base, and - a stride of 0 in the destination - to sum over what was stretched. */

typedef struct ft__layout { /* a tensor seen with exactly 4 dimensions */
  int64_t shape[4], stride[4];
} ft__layout;

static ft__layout ft__layout_of(const ft_tensor *tensor) {
  ft__layout layout;
  int i, lead = 4 - tensor->dimensions;
  for (i = 0; i < 4; ++i) {
    layout.shape[i] = i < lead ? 1 : tensor->shape[i - lead];
    layout.stride[i] = i < lead || layout.shape[i] == 1 ? 0 : tensor->stride[i - lead];
  }
  return layout;
}

/* The same for contiguous memory of that shape, such as its gradient. */
static ft__layout ft__layout_contiguous(const ft_tensor *tensor) {
  ft_tensor plain = *tensor;
  ft__set_shape(&plain, tensor->dimensions, tensor->shape);
  return ft__layout_of(&plain);
}

/* dx += scale * dy, where x was broadcast to y's shape: sums over the stretched dimensions. */
static void ft__add_gradient(ft_context *context, ft_tensor *x, const ft_tensor *y, ft_real scale, const ft_real *dy) {
  ft_real *dx = ft__gradient_to_add(context, x);
  ft__layout from = ft__layout_contiguous(y), to;
  if (!dx) return;
  to = ft__layout_contiguous(x);
  context->backend->accumulate(context, from.shape, scale, dy, from.stride, dx, to.stride);
}

static const ft_real *ft__data(const ft_tensor *tensor) { return tensor ? (const ft_real *)tensor->data : NULL; }
static ft_real *ft__out(ft_tensor *tensor) { return tensor ? (ft_real *)tensor->data : NULL; }
static const int32_t *ft__ids(const ft_tensor *tensor) { return tensor ? (const int32_t *)tensor->data : NULL; }

static ft_tensor *ft__shape_error(ft_context *context, const char *operation, const ft_tensor *a, const ft_tensor *b) {
  char first[100], second[100];
  ft__error(context, FT_ERROR_SHAPE, "%s: shapes %s and %s do not fit together", operation, ft__shape_text(a, first),
            b ? ft__shape_text(b, second) : "(none)");
  return NULL;
}

/* ---- elementwise: y = a op b ---- */

static void ft__binary_forward(ft_context *context, ft__node *node) {
  ft__layout a = ft__layout_of(node->input[0]), b = ft__layout_of(node->input[1]), y = ft__layout_of(node->output);
  context->backend->binary(context, (ft_binary)node->kind, y.shape, ft__data(node->input[0]), a.stride,
                           ft__data(node->input[1]), b.stride, ft__out(node->output));
}

/* a + b: da = dy, db = dy.   a - b: db = -dy.   a b: da = dy b, db = dy a.   a / b: da = dy / b, db = -dy y / b. */
static void ft__binary_backward(ft_context *context, ft__node *node) {
  const ft_backend *backend = context->backend;
  ft_tensor *a = node->input[0], *b = node->input[1], *y = node->output;
  const ft_real *dy = (const ft_real *)y->gradient;
  ft__layout la = ft__layout_of(a), lb = ft__layout_of(b), ly = ft__layout_contiguous(y);
  ft_real *product;
  if (node->kind == FT_ADD || node->kind == FT_SUBTRACT) {
    ft__add_gradient(context, a, y, 1, dy);
    ft__add_gradient(context, b, y, node->kind == FT_ADD ? (ft_real)1 : (ft_real)-1, dy);
    return;
  }
  product = (ft_real *)ft__gradient_take(context, ft__tensor_bytes(y));
  if (!product) return;
  if (a->requires_gradient) {
    backend->binary(context, (ft_binary)node->kind, ly.shape, dy, ly.stride, ft__data(b), lb.stride, product);
    ft__add_gradient(context, a, y, 1, product);
  }
  if (b->requires_gradient && node->kind == FT_MULTIPLY) {
    backend->binary(context, FT_MULTIPLY, ly.shape, dy, ly.stride, ft__data(a), la.stride, product);
    ft__add_gradient(context, b, y, 1, product);
  } else if (b->requires_gradient) {
    backend->binary(context, FT_MULTIPLY, ly.shape, dy, ly.stride, ft__data(y), ly.stride, product);
    backend->binary(context, FT_DIVIDE, ly.shape, product, ly.stride, ft__data(b), lb.stride, product);
    ft__add_gradient(context, b, y, -1, product);
  }
  ft__gradient_give(context, product, ft__tensor_bytes(y));
}

static const ft__operation ft__binary_operations[] = {{"ft_add", ft__binary_forward, ft__binary_backward},
                                                      {"ft_subtract", ft__binary_forward, ft__binary_backward},
                                                      {"ft_multiply", ft__binary_forward, ft__binary_backward},
                                                      {"ft_divide", ft__binary_forward, ft__binary_backward}};

static ft_tensor *ft__binary(ft_context *context, ft_binary kind, ft_tensor *a, ft_tensor *b) {
  ft__layout la, lb;
  int64_t shape[4];
  ft__node *node;
  int i, dimensions;
  if (!a || !b) return NULL;
  la = ft__layout_of(a), lb = ft__layout_of(b);
  dimensions = a->dimensions > b->dimensions ? a->dimensions : b->dimensions;
  for (i = 0; i < 4; ++i) {
    if (la.shape[i] != lb.shape[i] && la.shape[i] != 1 && lb.shape[i] != 1)
      return ft__shape_error(context, ft__binary_operations[kind].name, a, b);
    shape[i] = la.shape[i] == 1 ? lb.shape[i] : la.shape[i];
  }
  if (!(node = ft__node_create(context, &ft__binary_operations[kind]))) return NULL;
  node->input[0] = a;
  node->input[1] = b;
  node->kind = kind;
  node->output = ft_tensor_temporary(context, FT_F32, dimensions, shape + 4 - dimensions);
  return ft__record(context, node);
}

FT_API ft_tensor *ft_add(ft_context *context, ft_tensor *a, ft_tensor *b) { return ft__binary(context, FT_ADD, a, b); }
FT_API ft_tensor *ft_subtract(ft_context *context, ft_tensor *a, ft_tensor *b) {
  return ft__binary(context, FT_SUBTRACT, a, b);
}
FT_API ft_tensor *ft_multiply(ft_context *context, ft_tensor *a, ft_tensor *b) {
  return ft__binary(context, FT_MULTIPLY, a, b);
}
FT_API ft_tensor *ft_divide(ft_context *context, ft_tensor *a, ft_tensor *b) {
  return ft__binary(context, FT_DIVIDE, a, b);
}

/* ---- scaled sums: y = factor * sum of x over what is 1 in y's shape: scaling, sums, means and copies in one ---- */

static void ft__scaled_sum_forward(ft_context *context, ft__node *node) {
  ft__layout x = ft__layout_of(node->input[0]), y = ft__layout_of(node->output);
  context->backend->zero(context, node->output->data, ft__tensor_bytes(node->output));
  context->backend->accumulate(context, x.shape, (ft_real)node->number, ft__data(node->input[0]), x.stride,
                               ft__out(node->output), y.stride);
}

/* dx = factor * dy, stretched to x's shape. */
static void ft__scaled_sum_backward(ft_context *context, ft__node *node) {
  ft_tensor *x = node->input[0];
  ft_real *dx = ft__gradient_to_add(context, x);
  ft__layout to, from = ft__layout_contiguous(node->output);
  if (!dx) return;
  to = ft__layout_contiguous(x);
  context->backend->accumulate(context, to.shape, (ft_real)node->number, (const ft_real *)node->output->gradient,
                               from.stride, dx, to.stride);
}

static const ft__operation ft__scaled_sum_operation = {"ft_scale, ft_sum or ft_mean", ft__scaled_sum_forward,
                                                       ft__scaled_sum_backward};

static ft_tensor *ft__scaled_sum(ft_context *context, ft_tensor *x, double factor, int dimensions,
                                 const int64_t *shape) {
  ft__node *node = ft__node_create(context, &ft__scaled_sum_operation);
  if (!node) return NULL;
  node->input[0] = x;
  node->number = factor;
  node->output = ft_tensor_temporary(context, FT_F32, dimensions, shape);
  return ft__record(context, node);
}

FT_API ft_tensor *ft_scale(ft_context *context, ft_tensor *x, double factor) {
  return x ? ft__scaled_sum(context, x, factor, x->dimensions, x->shape) : NULL;
}

FT_API ft_tensor *ft_contiguous(ft_context *context, ft_tensor *x) {
  return !x || ft__is_contiguous(x) ? x : ft_scale(context, x, 1);
}

static ft_tensor *ft__reduce(ft_context *context, const char *operation, ft_tensor *x, int dimension, bool mean) {
  int64_t shape[4] = {1, 1, 1, 1}, count = 1;
  int i;
  if (!x) return NULL;
  if (dimension < -1 || dimension >= x->dimensions) {
    ft__error(context, FT_ERROR_ARGUMENT, "%s: there is no dimension %d in %d dimensions", operation, dimension,
              x->dimensions);
    return NULL;
  }
  for (i = 0; i < x->dimensions; ++i) {
    bool summed = dimension == -1 || dimension == i;
    if (summed) count *= x->shape[i];
    shape[i] = summed ? 1 : x->shape[i];
  }
  return ft__scaled_sum(context, x, mean && count ? 1.0 / (double)count : 1.0, dimension == -1 ? 1 : x->dimensions,
                        shape);
}

FT_API ft_tensor *ft_sum(ft_context *context, ft_tensor *x, int dimension) {
  return ft__reduce(context, "ft_sum", x, dimension, false);
}
FT_API ft_tensor *ft_mean(ft_context *context, ft_tensor *x, int dimension) {
  return ft__reduce(context, "ft_mean", x, dimension, true);
}

/* ---- y = f(x), elementwise ---- */

static void ft__unary_forward(ft_context *context, ft__node *node) {
  context->backend->unary(context, (ft_unary)node->kind, ft_tensor_count(node->output), ft__data(node->input[0]),
                          ft__out(node->output));
}

/* dx = dy f'(x) */
static void ft__unary_backward(ft_context *context, ft__node *node) {
  bool accumulate;
  ft_real *dx = ft__gradient(context, node->input[0], &accumulate);
  if (dx)
    context->backend->unary_backward(context, (ft_unary)node->kind, ft_tensor_count(node->output),
                                     ft__data(node->input[0]), ft__data(node->output),
                                     (const ft_real *)node->output->gradient, dx, accumulate);
}

static const ft__operation ft__unary_operation = {"ft_activate", ft__unary_forward, ft__unary_backward};

FT_API ft_tensor *ft_activate(ft_context *context, ft_unary kind, ft_tensor *x) {
  ft__node *node;
  if (!(x = ft_contiguous(context, x)) || !(node = ft__node_create(context, &ft__unary_operation))) return NULL;
  node->input[0] = x;
  node->kind = kind;
  node->output = ft_tensor_temporary(context, FT_F32, x->dimensions, x->shape);
  return ft__record(context, node);
}

/* ---- y = softmax(x) over the last dimension: y_i = exp(x_i) / sum_j exp(x_j) ---- */

static int64_t ft__last_dimension(const ft_tensor *x) { return x->dimensions ? x->shape[x->dimensions - 1] : 1; }

static void ft__softmax_forward(ft_context *context, ft__node *node) {
  int64_t columns = ft__last_dimension(node->output);
  context->backend->softmax(context, columns ? ft_tensor_count(node->output) / columns : 0, columns,
                            ft__data(node->input[0]), ft__out(node->output));
}

/* dx_i = y_i (dy_i - sum_j dy_j y_j) */
static void ft__softmax_backward(ft_context *context, ft__node *node) {
  ft_real *dx = ft__gradient_to_add(context, node->input[0]);
  int64_t columns = ft__last_dimension(node->output);
  if (dx)
    context->backend->softmax_backward(context, columns ? ft_tensor_count(node->output) / columns : 0, columns,
                                       ft__data(node->output), (const ft_real *)node->output->gradient, dx);
}

static const ft__operation ft__softmax_operation = {"ft_softmax", ft__softmax_forward, ft__softmax_backward};

FT_API ft_tensor *ft_softmax(ft_context *context, ft_tensor *x) {
  ft__node *node;
  if (!(x = ft_contiguous(context, x)) || !(node = ft__node_create(context, &ft__softmax_operation))) return NULL;
  node->input[0] = x;
  node->output = ft_tensor_temporary(context, FT_F32, x->dimensions, x->shape);
  return ft__record(context, node);
}

/* ---- C = A B, batched over leading dimensions ---- */

/* One batch element: adds or writes P Q where both are given by strided views of the same memory. */
static void ft__matmul_strided(ft_context *context, const int64_t size[3], const ft_real *a, int64_t a_row,
                               int64_t a_column, const ft_real *b, int64_t b_row, int64_t b_column, ft_real *c,
                               bool accumulate) {
  ft_matmul_call call;
  memset(&call, 0, sizeof call);
  call.m = size[0], call.n = size[1], call.k = size[2];
  call.a = a, call.a_row = a_row, call.a_column = a_column;
  call.b = b, call.b_row = b_row, call.b_column = b_column;
  call.c = c, call.c_row = size[1];
  call.accumulate = accumulate;
  context->backend->matmul(context, &call);
}

static void ft__matmul_forward(ft_context *context, ft__node *node) {
  ft__layout a = ft__layout_of(node->input[0]), b = ft__layout_of(node->input[1]);
  ft__layout c = ft__layout_contiguous(node->output);
  int64_t size[3], i, j;
  size[0] = c.shape[2], size[1] = c.shape[3], size[2] = a.shape[3];
  for (i = 0; i < c.shape[0]; ++i)
    for (j = 0; j < c.shape[1]; ++j)
      ft__matmul_strided(context, size, ft__data(node->input[0]) + i * a.stride[0] + j * a.stride[1], a.stride[2],
                         a.stride[3], ft__data(node->input[1]) + i * b.stride[0] + j * b.stride[1], b.stride[2],
                         b.stride[3], ft__out(node->output) + i * c.stride[0] + j * c.stride[1], false);
}

/* dA = dC B^T,  dB = A^T dC; a batch dimension that was broadcast sums. */
static void ft__matmul_backward(ft_context *context, ft__node *node) {
  ft_tensor *ta = node->input[0], *tb = node->input[1];
  ft__layout a = ft__layout_of(ta), b = ft__layout_of(tb), c = ft__layout_contiguous(node->output);
  ft__layout ga = ft__layout_contiguous(ta), gb = ft__layout_contiguous(tb);
  ft_real *da = ft__gradient_to_add(context, ta), *db = ft__gradient_to_add(context, tb);
  int64_t m = c.shape[2], n = c.shape[3], k = a.shape[3], i, j, for_a[3], for_b[3];
  for_a[0] = m, for_a[1] = k, for_a[2] = n;
  for_b[0] = k, for_b[1] = n, for_b[2] = m;
  for (i = 0; i < c.shape[0]; ++i) {
    for (j = 0; j < c.shape[1]; ++j) {
      const ft_real *dc = (const ft_real *)node->output->gradient + i * c.stride[0] + j * c.stride[1];
      if (da)
        ft__matmul_strided(context, for_a, dc, n, 1, ft__data(tb) + i * b.stride[0] + j * b.stride[1], b.stride[3],
                           b.stride[2], da + i * ga.stride[0] + j * ga.stride[1], true);
      if (db)
        ft__matmul_strided(context, for_b, ft__data(ta) + i * a.stride[0] + j * a.stride[1], a.stride[3], a.stride[2],
                           dc, n, 1, db + i * gb.stride[0] + j * gb.stride[1], true);
    }
  }
}

static const ft__operation ft__matmul_operation = {"ft_matmul", ft__matmul_forward, ft__matmul_backward};

FT_API ft_tensor *ft_matmul(ft_context *context, ft_tensor *a, ft_tensor *b) {
  ft__layout la, lb;
  int64_t shape[4];
  int i, dimensions;
  ft__node *node;
  if (!a || !b) return NULL;
  la = ft__layout_of(a), lb = ft__layout_of(b);
  if (a->dimensions < 2 || b->dimensions < 2 || la.shape[3] != lb.shape[2])
    return ft__shape_error(context, "ft_matmul", a, b);
  for (i = 0; i < 2; ++i) {
    if (la.shape[i] != lb.shape[i] && la.shape[i] != 1 && lb.shape[i] != 1)
      return ft__shape_error(context, "ft_matmul", a, b);
    shape[i] = la.shape[i] == 1 ? lb.shape[i] : la.shape[i];
  }
  shape[2] = la.shape[2], shape[3] = lb.shape[3];
  dimensions = a->dimensions > b->dimensions ? a->dimensions : b->dimensions;
  if (!(node = ft__node_create(context, &ft__matmul_operation))) return NULL;
  node->input[0] = a;
  node->input[1] = b;
  node->output = ft_tensor_temporary(context, FT_F32, dimensions, shape + 4 - dimensions);
  return ft__record(context, node);
}

/* ---- views: another shape and strides over the same memory ---- */

static void ft__view_forward(ft_context *context, ft__node *node) { (void)context, (void)node; }

/* dx at the viewed elements += dy. The gradient of x is contiguous, so the view's strides are those it would have over
   a contiguous x: they were kept at recording. */
static void ft__view_backward(ft_context *context, ft__node *node) {
  ft_real *dx = ft__gradient_to_add(context, node->input[0]);
  ft__layout from = ft__layout_contiguous(node->output), to;
  if (!dx) return;
  to = ft__layout_of(node->saved[0]);
  context->backend->accumulate(context, from.shape, 1, (const ft_real *)node->output->gradient, from.stride,
                               dx + node->integer, to.stride);
}

static const ft__operation ft__view_operation = {"a view", ft__view_forward, ft__view_backward};

/* A view of x: `offset` elements in, with this shape and strides; gradient_* say the same over a contiguous x. */
static ft_tensor *ft__view(ft_context *context, ft_tensor *x, int dimensions, const int64_t *shape,
                           const int64_t *stride, int64_t offset, const int64_t *gradient_stride,
                           int64_t gradient_offset) {
  ft__node *node = ft__node_create(context, &ft__view_operation);
  ft_tensor *view = ft__tensor_header(context), *map = ft__tensor_header(context);
  int i;
  if (!node || !view || !map) return NULL;
  view->dtype = x->dtype;
  ft__set_shape(view, dimensions, shape);
  for (i = 0; i < dimensions; ++i) view->stride[i] = stride[i];
  *map = *view;
  for (i = 0; i < dimensions; ++i) map->stride[i] = gradient_stride[i];
  view->data = (char *)x->data + offset * (int64_t)ft__element_size(x->dtype);
  node->input[0] = x;
  node->saved[0] = map;
  node->integer = gradient_offset;
  node->output = view;
  return ft__record(context, node);
}

FT_API ft_tensor *ft_reshape(ft_context *context, ft_tensor *x, int dimensions, const int64_t *shape) {
  ft_tensor target;
  char from[100], to[100];
  if (!(x = ft_contiguous(context, x)) || !ft__check_shape(context, dimensions, shape)) return NULL;
  memset(&target, 0, sizeof target);
  ft__set_shape(&target, dimensions, shape);
  if (ft_tensor_count(&target) != ft_tensor_count(x)) {
    ft__error(context, FT_ERROR_SHAPE, "ft_reshape: %s has not as many elements as %s", ft__shape_text(&target, to),
              ft__shape_text(x, from));
    return NULL;
  }
  return ft__view(context, x, dimensions, shape, target.stride, 0, target.stride, 0);
}

FT_API ft_tensor *ft_transpose(ft_context *context, ft_tensor *x, int dimension_a, int dimension_b) {
  ft_tensor view, plain;
  int64_t kept;
  if (!x) return NULL;
  if (dimension_a < 0 || dimension_b < 0 || dimension_a >= x->dimensions || dimension_b >= x->dimensions) {
    ft__error(context, FT_ERROR_ARGUMENT, "ft_transpose: dimensions %d and %d of a tensor with %d", dimension_a,
              dimension_b, x->dimensions);
    return NULL;
  }
  view = plain = *x;
  ft__set_shape(&plain, x->dimensions, x->shape);
  kept = view.shape[dimension_a], view.shape[dimension_a] = view.shape[dimension_b], view.shape[dimension_b] = kept;
  kept = view.stride[dimension_a], view.stride[dimension_a] = view.stride[dimension_b], view.stride[dimension_b] = kept;
  kept = plain.stride[dimension_a];
  plain.stride[dimension_a] = plain.stride[dimension_b], plain.stride[dimension_b] = kept;
  return ft__view(context, x, x->dimensions, view.shape, view.stride, 0, plain.stride, 0);
}

FT_API ft_tensor *ft_slice(ft_context *context, ft_tensor *x, int dimension, int64_t start, int64_t count) {
  ft_tensor plain;
  int64_t shape[4];
  if (!x) return NULL;
  if (dimension < 0 || dimension >= x->dimensions || start < 0 || count < 0 || start > x->shape[dimension] - count) {
    char text[100];
    ft__error(context, FT_ERROR_ARGUMENT, "ft_slice: %lld elements from %lld along dimension %d of %s",
              (long long)count, (long long)start, dimension, ft__shape_text(x, text));
    return NULL;
  }
  plain = *x;
  ft__set_shape(&plain, x->dimensions, x->shape);
  memcpy(shape, x->shape, sizeof shape);
  shape[dimension] = count;
  return ft__view(context, x, x->dimensions, shape, x->stride, start * x->stride[dimension], plain.stride,
                  start * plain.stride[dimension]);
}

/* ---- linear: y = f(z), z = x W^T + b, or with a low-rank update x W^T + b + u V^T (see >>adapters) ----

   x [T, in], W [out, in], b [out], u [T, r], V [out, r]; y and z [T, out]. */

static void ft__linear_forward(ft_context *context, ft__node *node) {
  ft_tensor *x = node->input[0], *weight = node->input[1], *bias = node->input[2], *before = node->saved[0];
  ft_tensor *low = node->input[3], *up = node->input[4], *sum = up && before ? before : node->output;
  int64_t size[3];
  ft_matmul_call call;
  memset(&call, 0, sizeof call);
  call.m = x->shape[0], call.n = weight->shape[0], call.k = weight->shape[1];
  call.a = ft__data(x), call.a_row = call.k, call.a_column = 1;
  call.b = ft__data(weight), call.b_row = 1, call.b_column = call.k;
  call.c = ft__out(sum), call.c_row = call.n;
  call.bias = ft__data(bias);
  call.activation = up ? FT_IDENTITY : (ft_unary)node->kind;
  call.before = up ? NULL : ft__out(before);
  if (context->no_grad > 0 && weight->persistent && weight->owner == context) call.packed = &weight->packed;
  context->backend->matmul(context, &call);
  if (!up) return;
  size[0] = call.m, size[1] = call.n, size[2] = up->shape[1];
  ft__matmul_strided(context, size, ft__data(low), size[2], 1, ft__data(up), 1, size[2], call.c, true);
  if (node->kind != FT_IDENTITY)
    context->backend->unary(context, (ft_unary)node->kind, call.m * call.n, call.c, ft__out(node->output));
}

/* The gradient of `input` [rows, columns] += P Q over `inner`; nothing is computed where it wants none. */
static void ft__matmul_gradient(ft_context *context, ft_tensor *input, int64_t inner, const ft_real *p, int64_t p_row,
                                int64_t p_column, const ft_real *q, int64_t q_row) {
  bool accumulate;
  int64_t size[3];
  ft_real *gradient = ft__gradient(context, input, &accumulate);
  if (!gradient) return;
  size[0] = input->shape[0], size[1] = input->shape[1], size[2] = inner;
  ft__matmul_strided(context, size, p, p_row, p_column, q, q_row, 1, gradient, accumulate);
}

/* dz = dy f'(z);  dx = dz W;  dW = dz^T x;  db = sum of dz's rows;  du = dz V;  dV = dz^T u */
static void ft__linear_backward(ft_context *context, ft__node *node) {
  ft_tensor *x = node->input[0], *weight = node->input[1], *bias = node->input[2], *y = node->output;
  ft_tensor *low = node->input[3], *up = node->input[4];
  int64_t rows = x->shape[0], out = weight->shape[0], in = weight->shape[1];
  const ft_real *dz = (const ft_real *)y->gradient;
  ft_real *dz_memory = NULL, *db = ft__gradient_to_add(context, bias);
  if (node->kind != FT_IDENTITY) {
    dz_memory = (ft_real *)ft__gradient_take(context, ft__tensor_bytes(y));
    if (!dz_memory) return;
    context->backend->unary_backward(context, (ft_unary)node->kind, rows * out, ft__data(node->saved[0]), ft__data(y),
                                     dz, dz_memory, false);
    dz = dz_memory;
  }
  if (db) context->backend->column_sum(context, rows, out, dz, db);
  ft__matmul_gradient(context, weight, rows, dz, 1, out, ft__data(x), in);
  ft__matmul_gradient(context, x, out, dz, out, 1, ft__data(weight), in);
  if (up) {
    ft__matmul_gradient(context, up, rows, dz, 1, out, ft__data(low), up->shape[1]);
    ft__matmul_gradient(context, low, out, dz, out, 1, ft__data(up), up->shape[1]);
  }
  if (dz_memory) ft__gradient_give(context, dz_memory, ft__tensor_bytes(y));
}

static const ft__operation ft__linear_operation = {"ft_linear", ft__linear_forward, ft__linear_backward};

FT_API ft_tensor *ft_linear_low_rank(ft_context *context, ft_tensor *x, ft_tensor *weight, ft_tensor *bias,
                                     ft_tensor *low, ft_tensor *up, ft_unary activation) {
  ft__node *node;
  if (!(x = ft_contiguous(context, x)) || !(weight = ft_contiguous(context, weight))) return NULL;
  if (x->dimensions != 2 || weight->dimensions != 2 || x->shape[1] != weight->shape[1])
    return ft__shape_error(context, "ft_linear", x, weight);
  if (bias && (bias->dimensions != 1 || bias->shape[0] != weight->shape[0]))
    return ft__shape_error(context, "ft_linear, weight and bias", weight, bias);
  if (up && (!(low = ft_contiguous(context, low)) || !(up = ft_contiguous(context, up)))) return NULL;
  if (up && (low->dimensions != 2 || up->dimensions != 2 || low->shape[1] != up->shape[1] ||
             low->shape[0] != x->shape[0] || up->shape[0] != weight->shape[0]))
    return ft__shape_error(context, "ft_linear, low-rank update", low, up);
  if (!(node = ft__node_create(context, &ft__linear_operation))) return NULL;
  node->input[0] = x;
  node->input[1] = weight;
  node->input[2] = bias;
  node->input[3] = up ? low : NULL;
  node->input[4] = up;
  node->kind = activation;
  node->output = ft__temporary_2d(context, FT_F32, x->shape[0], weight->shape[0]);
  if (activation != FT_IDENTITY && context->no_grad == 0) {
    node->saved[0] = ft__temporary_2d(context, FT_F32, x->shape[0], weight->shape[0]);
    if (!node->saved[0]) return NULL;
  }
  return ft__record(context, node);
}

FT_API ft_tensor *ft_linear(ft_context *context, ft_tensor *x, ft_tensor *weight, ft_tensor *bias,
                            ft_unary activation) {
  return ft_linear_low_rank(context, x, weight, bias, NULL, NULL, activation);
}

/* ---- dropout: y = x m / (1 - p), m a mask of zeros (with probability p) and ones ---- */

static bool ft__check_probability(ft_context *context, const char *operation, double probability) {
  if (probability >= 0 && probability < 1) return true;
  ft__error(context, FT_ERROR_ARGUMENT, "%s: a dropout probability is at least 0 and below 1, not %g", operation,
            probability);
  return false;
}

static void ft__dropout_forward(ft_context *context, ft__node *node) {
  context->backend->dropout(context, ft_tensor_count(node->output), &node->dropout, ft__data(node->input[0]),
                            ft__out(node->output), false);
}

/* dx = dy m / (1 - p): the same mask, computed again */
static void ft__dropout_backward(ft_context *context, ft__node *node) {
  bool accumulate;
  ft_real *dx = ft__gradient(context, node->input[0], &accumulate);
  if (dx)
    context->backend->dropout(context, ft_tensor_count(node->output), &node->dropout,
                              (const ft_real *)node->output->gradient, dx, accumulate);
}

static const ft__operation ft__dropout_operation = {"ft_dropout", ft__dropout_forward, ft__dropout_backward};

FT_API ft_tensor *ft_dropout(ft_context *context, ft_tensor *x, double probability, uint32_t site) {
  ft__node *node;
  if (!x || !ft__check_probability(context, "ft_dropout", probability)) return NULL;
  if (probability == 0) return x;
  if (!(x = ft_contiguous(context, x)) || !(node = ft__node_create(context, &ft__dropout_operation))) return NULL;
  node->input[0] = x;
  node->dropout = ft__dropout_mask(context, probability, site);
  node->output = ft_tensor_temporary(context, FT_F32, x->dimensions, x->shape);
  return ft__record(context, node);
}

/* ---- residual + LayerNorm: s = residual + dropout(x), n = (s - mean) rstd, y = n w + b; over the last dimension, H
   ----

   mean = sum(s) / H,  rstd = 1 / sqrt(sum((s - mean)^2) / H + epsilon) */

static ft_layer_norm_call ft__layer_norm_call(ft__node *node) {
  ft_layer_norm_call call;
  memset(&call, 0, sizeof call);
  call.columns = ft__last_dimension(node->output);
  call.rows = call.columns ? ft_tensor_count(node->output) / call.columns : 0;
  call.x = ft__data(node->input[0]);
  call.residual = ft__data(node->input[1]);
  call.weight = ft__data(node->input[2]);
  call.bias = ft__data(node->input[3]);
  call.dropout = node->dropout;
  call.epsilon = (ft_real)node->number;
  call.y = ft__out(node->output);
  call.sum = ft__out(node->saved[0]);
  call.mean = ft__out(node->saved[1]);
  call.rstd = ft__out(node->saved[2]);
  return call;
}

static void ft__layer_norm_forward(ft_context *context, ft__node *node) {
  ft_layer_norm_call call = ft__layer_norm_call(node);
  context->backend->layer_norm(context, &call);
}

/* With g = dy w:  ds = rstd (g - mean(g) - n mean(g n)),  dw = sum over rows of dy n,  db = sum over rows of dy;
   then d residual = ds and dx = ds m / (1 - p). */
static void ft__layer_norm_backward(ft_context *context, ft__node *node) {
  ft_layer_norm_call call = ft__layer_norm_call(node);
  bool accumulate;
  call.y_gradient = (const ft_real *)node->output->gradient;
  call.x_gradient = ft__gradient(context, node->input[0], &accumulate);
  call.x_accumulate = accumulate;
  call.residual_gradient = ft__gradient(context, node->input[1], &accumulate);
  call.residual_accumulate = accumulate;
  call.weight_gradient = ft__gradient_to_add(context, node->input[2]);
  call.bias_gradient = ft__gradient_to_add(context, node->input[3]);
  context->backend->layer_norm_backward(context, &call);
}

static const ft__operation ft__layer_norm_operation = {"ft_residual_layer_norm", ft__layer_norm_forward,
                                                       ft__layer_norm_backward};

/* into: a tensor for the result, or NULL for a new one. */
static ft_tensor *ft__residual_layer_norm_into(ft_context *context, ft_tensor *x, ft_tensor *residual,
                                               ft_tensor *weight, ft_tensor *bias, double epsilon, double probability,
                                               uint32_t site, ft_tensor *into) {
  ft__node *node;
  int64_t columns, rows;
  if (!(x = ft_contiguous(context, x)) || !weight || !bias) return NULL;
  if (!ft__check_probability(context, "ft_residual_layer_norm", probability)) return NULL;
  columns = ft__last_dimension(x);
  rows = columns ? ft_tensor_count(x) / columns : 0;
  if (weight->dimensions != 1 || bias->dimensions != 1 || weight->shape[0] != columns || bias->shape[0] != columns)
    return ft__shape_error(context, "ft_residual_layer_norm", x, weight);
  if (residual && (ft_tensor_count(residual) != rows * columns || !ft__is_contiguous(residual)))
    return ft__shape_error(context, "ft_residual_layer_norm, x and residual", x, residual);
  if (!(node = ft__node_create(context, &ft__layer_norm_operation))) return NULL;
  node->input[0] = x;
  node->input[1] = residual;
  node->input[2] = weight;
  node->input[3] = bias;
  node->number = epsilon;
  node->dropout = ft__dropout_mask(context, probability, site);
  node->saved[0] = ft_tensor_temporary(context, FT_F32, x->dimensions, x->shape);
  node->saved[1] = ft__temporary_1d(context, FT_F32, rows);
  node->saved[2] = ft__temporary_1d(context, FT_F32, rows);
  node->output = into ? into : ft_tensor_temporary(context, FT_F32, x->dimensions, x->shape);
  if (!node->saved[0] || !node->saved[1] || !node->saved[2]) return NULL;
  return ft__record(context, node);
}

FT_API ft_tensor *ft_residual_layer_norm(ft_context *context, ft_tensor *x, ft_tensor *residual, ft_tensor *weight,
                                         ft_tensor *bias, double epsilon, double probability, uint32_t site) {
  return ft__residual_layer_norm_into(context, x, residual, weight, bias, epsilon, probability, site, NULL);
}

/* ---- rows of a matrix: y[i] = x[rows[i]] ---- */

static void ft__gather_forward(ft_context *context, ft__node *node) {
  ft_tensor *y = node->output;
  context->backend->gather_rows(context, y->shape[0], y->shape[1], ft__ids(node->input[1]), ft__data(node->input[0]),
                                ft__out(y));
}

/* dx[rows[i]] += dy[i] */
static void ft__gather_backward(ft_context *context, ft__node *node) {
  ft_real *dx = ft__gradient_to_add(context, node->input[0]);
  ft_tensor *y = node->output;
  if (dx)
    context->backend->scatter_rows(context, y->shape[0], y->shape[1], ft__ids(node->input[1]),
                                   (const ft_real *)y->gradient, dx);
}

static const ft__operation ft__gather_operation = {"ft_gather_rows", ft__gather_forward, ft__gather_backward};

FT_API ft_tensor *ft_gather_rows(ft_context *context, ft_tensor *x, ft_tensor *rows) {
  ft__node *node;
  if (!(x = ft_contiguous(context, x)) || !rows) return NULL;
  if (x->dimensions != 2 || rows->dimensions != 1 || rows->dtype != FT_I32)
    return ft__shape_error(context, "ft_gather_rows", x, rows);
  if (!(node = ft__node_create(context, &ft__gather_operation))) return NULL;
  node->input[0] = x;
  node->input[1] = rows;
  node->output = ft__temporary_2d(context, FT_F32, rows->shape[0], x->shape[1]);
  return ft__record(context, node);
}

/* ---- embeddings: y[t] = words[ids[t]] + positions[position_ids[t]] + types[type_ids[t]] ---- */

static ft_embedding_call ft__embedding_call(ft__node *node) {
  ft_embedding_call call;
  memset(&call, 0, sizeof call);
  call.tokens = node->output->shape[0];
  call.columns = node->output->shape[1];
  call.words = ft__data(node->input[0]);
  call.ids = ft__ids(node->input[1]);
  call.positions = ft__data(node->input[2]);
  call.position_ids = ft__ids(node->input[3]);
  call.types = ft__data(node->input[4]);
  call.type_ids = ft__ids(node->input[5]);
  call.words_rows = node->input[0]->shape[0];
  call.positions_rows = node->input[2]->shape[0];
  call.types_rows = node->input[4] ? node->input[4]->shape[0] : 0;
  call.y = ft__out(node->output);
  return call;
}

static void ft__embedding_forward(ft_context *context, ft__node *node) {
  ft_embedding_call call = ft__embedding_call(node);
  context->backend->embedding(context, &call);
}

/* Each table's row receives the sum of dy over the tokens that used it. */
static void ft__embedding_backward(ft_context *context, ft__node *node) {
  ft_embedding_call call = ft__embedding_call(node);
  call.y_gradient = (const ft_real *)node->output->gradient;
  call.words_gradient = ft__gradient_of_rows(context, node->input[0], node->input[1]);
  call.positions_gradient = ft__gradient_of_rows(context, node->input[2], node->input[3]);
  call.types_gradient = ft__gradient_of_rows(context, node->input[4], node->input[5]);
  context->backend->embedding_backward(context, &call);
}

static const ft__operation ft__embedding_operation = {"ft_embedding", ft__embedding_forward, ft__embedding_backward};

FT_API ft_tensor *ft_embedding(ft_context *context, ft_tensor *words, ft_tensor *ids, ft_tensor *positions,
                               ft_tensor *position_ids, ft_tensor *types, ft_tensor *type_ids) {
  ft__node *node;
  if (!words || !ids || !positions || !position_ids || !types != !type_ids) return NULL;
  if (words->dimensions != 2 || positions->dimensions != 2 || words->shape[1] != positions->shape[1])
    return ft__shape_error(context, "ft_embedding", words, positions);
  if (types && (types->dimensions != 2 || types->shape[1] != words->shape[1]))
    return ft__shape_error(context, "ft_embedding", words, types);
  if (ids->dtype != FT_I32 || ids->shape[0] != position_ids->shape[0] || (types && ids->shape[0] != type_ids->shape[0]))
    return ft__shape_error(context, "ft_embedding", ids, position_ids);
  if (!(node = ft__node_create(context, &ft__embedding_operation))) return NULL;
  node->input[0] = words;
  node->input[1] = ids;
  node->input[2] = positions;
  node->input[3] = position_ids;
  node->input[4] = types;
  node->input[5] = type_ids;
  node->output = ft__temporary_2d(context, FT_F32, ids->shape[0], words->shape[1]);
  return ft__record(context, node);
}

/* ---- attention: per text and head, P = softmax(Q K^T / sqrt(D)), O = dropout(P) V ---- */

static ft_attention_call ft__attention_call(ft__node *node) {
  ft_attention_call call;
  memset(&call, 0, sizeof call);
  call.texts = node->input[4]->shape[0];
  call.tokens = node->output->shape[0];
  call.heads = node->kind;
  call.head_size = node->output->shape[1] / node->kind;
  call.longest = (int32_t)node->integer;
  call.scale = (ft_real)(1 / sqrt((double)call.head_size));
  call.query = ft__data(node->input[0]);
  call.key = ft__data(node->input[1]);
  call.value = ft__data(node->input[2]);
  call.offsets = ft__ids(node->input[3]);
  call.lengths = ft__ids(node->input[4]);
  call.output = ft__out(node->output);
  call.log_sum = ft__out(node->saved[0]);
  call.dropout = node->dropout;
  return call;
}

static void ft__attention_forward(ft_context *context, ft__node *node) {
  ft_attention_call call = ft__attention_call(node);
  context->backend->attention(context, &call);
}

/* Probabilities are computed again from log_sum instead of being stored (Dao et al. 2022, "FlashAttention"). With M the
   dropout mask over (1 - p) and rowsum the sum over keys:
     dV = (P M)^T dO,   dS = P (M (dO V^T) - rowsum(dO O)),   dQ = dS K / sqrt(D),   dK = dS^T Q / sqrt(D) */
static void ft__attention_backward(ft_context *context, ft__node *node) {
  ft_attention_call call = ft__attention_call(node);
  size_t bytes = ft__tensor_bytes(node->output);
  ft_real *target[3];
  bool accumulate[3];
  int i;
  for (i = 0; i < 3; ++i) {
    target[i] = ft__gradient(context, node->input[i], &accumulate[i]);
    if (!target[i] || accumulate[i]) { /* the kernel overwrites: give it memory of its own */
      ft_real *memory = (ft_real *)ft__gradient_take(context, bytes);
      if (!memory) return;
      if (i == 0) call.query_gradient = memory;
      if (i == 1) call.key_gradient = memory;
      if (i == 2) call.value_gradient = memory;
    }
  }
  if (!call.query_gradient) call.query_gradient = target[0];
  if (!call.key_gradient) call.key_gradient = target[1];
  if (!call.value_gradient) call.value_gradient = target[2];
  call.output_gradient = (const ft_real *)node->output->gradient;
  context->backend->attention_backward(context, &call);
  for (i = 0; i < 3; ++i) {
    ft_real *computed = i == 0 ? call.query_gradient : i == 1 ? call.key_gradient : call.value_gradient;
    if (computed == target[i]) continue;
    if (target[i]) {
      ft__layout layout = ft__layout_contiguous(node->output);
      context->backend->accumulate(context, layout.shape, 1, computed, layout.stride, target[i], layout.stride);
    }
    ft__gradient_give(context, computed, bytes);
  }
}

static const ft__operation ft__attention_operation = {"ft_attention", ft__attention_forward, ft__attention_backward};

FT_API ft_tensor *ft_attention(ft_context *context, ft_tensor *query, ft_tensor *key, ft_tensor *value,
                               ft_tensor *offsets, ft_tensor *lengths, int64_t longest, int heads, double probability,
                               uint32_t site) {
  ft__node *node;
  if (!(query = ft_contiguous(context, query)) || !(key = ft_contiguous(context, key)) ||
      !(value = ft_contiguous(context, value)) || !offsets || !lengths)
    return NULL;
  if (query->dimensions != 2 || key->dimensions != 2 || query->shape[0] != key->shape[0] ||
      query->shape[1] != key->shape[1])
    return ft__shape_error(context, "ft_attention", query, key);
  if (value->dimensions != 2 || query->shape[0] != value->shape[0] || query->shape[1] != value->shape[1])
    return ft__shape_error(context, "ft_attention", query, value);
  if (offsets->dtype != FT_I32 || lengths->dtype != FT_I32 || offsets->shape[0] != lengths->shape[0] + 1)
    return ft__shape_error(context, "ft_attention", offsets, lengths);
  if (heads < 1 || query->shape[1] % heads != 0) {
    ft__error(context, FT_ERROR_SHAPE, "ft_attention: %lld columns cannot be cut into %d heads",
              (long long)query->shape[1], heads);
    return NULL;
  }
  if (!ft__check_probability(context, "ft_attention", probability)) return NULL;
  if (!(node = ft__node_create(context, &ft__attention_operation))) return NULL;
  node->input[0] = query;
  node->input[1] = key;
  node->input[2] = value;
  node->input[3] = offsets;
  node->input[4] = lengths;
  node->kind = heads;
  node->integer = longest;
  node->dropout = ft__dropout_mask(context, probability, site);
  node->output = ft__temporary_2d(context, FT_F32, query->shape[0], query->shape[1]);
  node->saved[0] = ft__temporary_2d(context, FT_F32, heads, query->shape[0]);
  return node->saved[0] ? ft__record(context, node) : NULL;
}

/* ---- losses: one number ---- */

static ft_cross_entropy_call ft__cross_entropy_call(ft__node *node) {
  ft_cross_entropy_call call;
  memset(&call, 0, sizeof call);
  call.rows = node->input[0]->shape[0];
  call.columns = node->input[0]->shape[1];
  call.logits = ft__data(node->input[0]);
  call.labels = ft__ids(node->input[1]);
  call.divisor = (ft_real)node->number;
  call.loss = ft__out(node->output);
  return call;
}

/* loss = sum over labelled rows of (log sum_j exp(x_j) - x_label) / divisor */
static void ft__cross_entropy_forward(ft_context *context, ft__node *node) {
  ft_cross_entropy_call call = ft__cross_entropy_call(node);
  context->backend->cross_entropy(context, &call);
}

/* dx_j = dloss (softmax(x)_j - [j is the label]) / divisor */
static void ft__cross_entropy_backward(ft_context *context, ft__node *node) {
  ft_cross_entropy_call call = ft__cross_entropy_call(node);
  call.loss_gradient = (const ft_real *)node->output->gradient;
  call.logits_gradient = ft__gradient_to_add(context, node->input[0]);
  if (call.logits_gradient) context->backend->cross_entropy_backward(context, &call);
}

static const ft__operation ft__cross_entropy_operation = {"ft_cross_entropy_loss", ft__cross_entropy_forward,
                                                          ft__cross_entropy_backward};

FT_API ft_tensor *ft_cross_entropy_loss(ft_context *context, ft_tensor *logits, ft_tensor *labels, double divisor) {
  ft__node *node;
  if (!(logits = ft_contiguous(context, logits)) || !labels) return NULL;
  if (logits->dimensions != 2 || labels->dtype != FT_I32 || ft_tensor_count(labels) != logits->shape[0])
    return ft__shape_error(context, "ft_cross_entropy_loss", logits, labels);
  if (!(node = ft__node_create(context, &ft__cross_entropy_operation))) return NULL;
  node->input[0] = logits;
  node->input[1] = labels;
  node->number = divisor;
  node->output = ft__temporary_1d(context, FT_F32, 1);
  return ft__record(context, node);
}

static ft_pointwise_loss_call ft__pointwise_loss_call(ft__node *node) {
  ft_pointwise_loss_call call;
  memset(&call, 0, sizeof call);
  call.count = ft_tensor_count(node->input[0]);
  call.binary_cross_entropy = node->kind != 0;
  call.x = ft__data(node->input[0]);
  call.targets = ft__data(node->input[1]);
  call.divisor = (ft_real)node->number;
  call.loss = ft__out(node->output);
  return call;
}

static void ft__pointwise_loss_forward(ft_context *context, ft__node *node) {
  ft_pointwise_loss_call call = ft__pointwise_loss_call(node);
  context->backend->pointwise_loss(context, &call);
}

/* binary cross-entropy: dx = dloss (sigmoid(x) - t) / divisor;  squared error: dx = dloss 2 (x - t) / divisor */
static void ft__pointwise_loss_backward(ft_context *context, ft__node *node) {
  ft_pointwise_loss_call call = ft__pointwise_loss_call(node);
  call.loss_gradient = (const ft_real *)node->output->gradient;
  call.x_gradient = ft__gradient_to_add(context, node->input[0]);
  if (call.x_gradient) context->backend->pointwise_loss_backward(context, &call);
}

static const ft__operation ft__pointwise_loss_operation = {"ft_binary_cross_entropy_loss or ft_squared_error_loss",
                                                           ft__pointwise_loss_forward, ft__pointwise_loss_backward};

static ft_tensor *ft__pointwise_loss(ft_context *context, ft_tensor *x, ft_tensor *targets, double divisor,
                                     bool binary_cross_entropy) {
  ft__node *node;
  if (!(x = ft_contiguous(context, x)) || !targets) return NULL;
  if (targets->dtype != FT_F32 || !ft__is_contiguous(targets) || ft_tensor_count(x) != ft_tensor_count(targets))
    return ft__shape_error(context, ft__pointwise_loss_operation.name, x, targets);
  if (!(node = ft__node_create(context, &ft__pointwise_loss_operation))) return NULL;
  node->input[0] = x;
  node->input[1] = targets;
  node->number = divisor;
  node->kind = binary_cross_entropy;
  node->output = ft__temporary_1d(context, FT_F32, 1);
  return ft__record(context, node);
}

FT_API ft_tensor *ft_binary_cross_entropy_loss(ft_context *context, ft_tensor *logits, ft_tensor *targets,
                                               double divisor) {
  return ft__pointwise_loss(context, logits, targets, divisor, true);
}

FT_API ft_tensor *ft_squared_error_loss(ft_context *context, ft_tensor *x, ft_tensor *targets, double divisor) {
  return ft__pointwise_loss(context, x, targets, divisor, false);
}
/* =====================================================================================================================
   >>batching: texts packed one after another

   A batch of B texts with lengths n_0 .. n_(B-1) is one array of T = n_0 + .. + n_(B-1) token ids and B + 1 offsets.
   All work but attention is the same for every token, wherever it stands; attention looks at the offsets. Padding to
   the longest text, as most frameworks do, would spend half of the work of a typical batch of reviews on nothing. */

static bool ft__batch_reserve(ft_context *context, ft_batch *batch, int64_t texts, int64_t tokens) {
  int64_t room = batch->capacity_tokens, types_room = batch->capacity_tokens;
  int64_t offsets_room = batch->capacity_texts, lengths_room = batch->capacity_texts;
  if (tokens > INT32_MAX) {
    ft__error(context, FT_ERROR_ARGUMENT, "a batch of %lld tokens is more than %d", (long long)tokens, INT32_MAX);
    return false;
  }
  batch->owner = context;
  if (!ft__grow(context, &batch->ids, &room, tokens, sizeof *batch->ids) ||
      !ft__grow(context, &batch->token_types, &types_room, tokens, sizeof *batch->token_types))
    return false;
  batch->capacity_tokens = room;
  if (!ft__grow(context, &batch->offsets, &offsets_room, texts + 1, sizeof *batch->offsets) ||
      !ft__grow(context, &batch->lengths, &lengths_room, texts + 1, sizeof *batch->lengths))
    return false;
  batch->capacity_texts = offsets_room;
  batch->texts = texts;
  batch->tokens = tokens;
  return true;
}

/* Copies text `index` of the batch in: `length` ids and types (NULL: all 0), at the current end. */
static void ft__batch_put(ft_batch *batch, int64_t index, const int32_t *ids, const int32_t *token_types,
                          int64_t length) {
  int32_t start = batch->offsets[index];
  memcpy(batch->ids + start, ids, (size_t)length * sizeof *ids);
  if (token_types)
    memcpy(batch->token_types + start, token_types, (size_t)length * sizeof *ids);
  else
    memset(batch->token_types + start, 0, (size_t)length * sizeof *ids);
  batch->lengths[index] = (int32_t)length;
  batch->offsets[index + 1] = start + (int32_t)length;
}

FT_API ft_status ft_batch_select(ft_context *context, ft_batch *batch, const ft_encoded *encoded, const int64_t *rows,
                                 int64_t count) {
  int64_t i, tokens = 0;
  if (!encoded) return ft__null_status(context, "ft_batch_select needs encoded texts");
  for (i = 0; i < count; ++i) {
    if (rows[i] < 0 || rows[i] >= encoded->rows)
      return ft__error(context, FT_ERROR_ARGUMENT, "ft_batch_select: row %lld of %lld", (long long)rows[i],
                       (long long)encoded->rows);
    tokens += encoded->offsets[rows[i] + 1] - encoded->offsets[rows[i]];
  }
  if (!ft__batch_reserve(context, batch, count, tokens)) return context->status;
  batch->offsets[0] = 0;
  for (i = 0; i < count; ++i) {
    int64_t start = encoded->offsets[rows[i]];
    ft__batch_put(batch, i, encoded->ids + start, encoded->token_types + start, encoded->offsets[rows[i] + 1] - start);
  }
  return FT_OK;
}

FT_API ft_status ft_batch_set(ft_context *context, ft_batch *batch, const int32_t *ids, const int32_t *token_types,
                              const int64_t *offsets, int64_t count) {
  int64_t i;
  if (!ft__batch_reserve(context, batch, count, offsets[count] - offsets[0])) return context->status;
  batch->offsets[0] = 0;
  for (i = 0; i < count; ++i)
    ft__batch_put(batch, i, ids + offsets[i], token_types ? token_types + offsets[i] : NULL,
                  offsets[i + 1] - offsets[i]);
  return FT_OK;
}

FT_API ft_status ft_batch_pad(ft_context *context, ft_batch *padded, const ft_batch *batch, int64_t length,
                              int32_t pad_id) {
  int64_t b, t, longest = 0;
  for (b = 0; b < batch->texts; ++b)
    if (batch->offsets[b + 1] - batch->offsets[b] > longest) longest = batch->offsets[b + 1] - batch->offsets[b];
  if (length == 0) length = longest;
  if (length < longest)
    return ft__error(context, FT_ERROR_ARGUMENT, "ft_batch_pad: a text has %lld tokens, more than %lld",
                     (long long)longest, (long long)length);
  if (!ft__batch_reserve(context, padded, batch->texts, batch->texts * length)) return context->status;
  padded->offsets[0] = 0;
  for (b = 0; b < batch->texts; ++b) {
    int32_t start = batch->offsets[b], count = batch->offsets[b + 1] - start;
    ft__batch_put(padded, b, batch->ids + start, batch->token_types + start, count);
    for (t = padded->offsets[b] + count; t < padded->offsets[b] + length; ++t) {
      padded->ids[t] = pad_id;
      padded->token_types[t] = 0;
    }
    padded->offsets[b + 1] = padded->offsets[b] + (int32_t)length;
  }
  return FT_OK;
}

FT_API void ft_batch_free(ft_batch *batch) {
  if (!batch || !batch->owner) return;
  ft__release(batch->owner, batch->ids);
  ft__release(batch->owner, batch->token_types);
  ft__release(batch->owner, batch->offsets);
  ft__release(batch->owner, batch->lengths);
  memset(batch, 0, sizeof *batch);
}

/* Rows of an array by index: to[i] = from[rows[i]], `size` bytes each; NULL stays NULL. False: out of memory. */
static bool ft__select_rows(ft_context *context, void *to_address, const void *from, size_t size, const int64_t *rows,
                            int64_t count) {
  char *to;
  int64_t i;
  if (!from) return true;
  to = (char *)ft__allocate(context, ft__size_product((size_t)count, size));
  for (i = 0; to && i < count; ++i) memcpy(to + (size_t)i * size, (const char *)from + (size_t)rows[i] * size, size);
  memcpy(to_address, &to, sizeof to);
  return to != NULL;
}

FT_API ft_dataset *ft_dataset_select(ft_context *context, const ft_dataset *dataset, const int64_t *rows,
                                     int64_t count) {
  ft__dataset *part;
  int64_t i;
  bool ok;
  if (!dataset) return NULL;
  for (i = 0; i < count; ++i) {
    if (rows[i] >= 0 && rows[i] < dataset->rows) continue;
    ft__error(context, FT_ERROR_ARGUMENT, "ft_dataset_select: row %lld of %lld", (long long)rows[i],
              (long long)dataset->rows);
    return NULL;
  }
  part = (ft__dataset *)ft__allocate_zero(context, sizeof *part);
  if (!part) return NULL;
  part->context = context;
  ok = ft__select_rows(context, &part->texts, dataset->texts, sizeof *part->texts, rows, count) &&
       ft__select_rows(context, &part->pairs, dataset->pairs, sizeof *part->pairs, rows, count) &&
       ft__select_rows(context, &part->labels, dataset->labels, sizeof *part->labels, rows, count) &&
       ft__select_rows(context, &part->targets, dataset->targets, (size_t)dataset->label_count * sizeof(float), rows,
                       count) &&
       ft__select_rows(context, &part->lines, dataset->lines, sizeof *part->lines, rows, count);
  part->dataset = *dataset; /* label names and file name stay the source's */
  part->dataset.rows = count;
  part->dataset.texts = part->texts;
  part->dataset.pairs = part->pairs;
  part->dataset.labels = part->labels;
  part->dataset.targets = part->targets;
  part->dataset.lines = part->lines;
  if (ok) return &part->dataset;
  ft_dataset_free(&part->dataset);
  return NULL;
}

/* A dataset's tokens with the arrays writable. */
typedef struct ft__encoded {
  ft_encoded shown; /* first, so that the public pointer is this object's */
  ft_context *owner;
  int32_t *ids, *token_types;
  int64_t *offsets;
  int64_t capacity_ids, capacity_types;
} ft__encoded;

static bool ft__encoded_append(ft_context *context, ft__encoded *encoded, int64_t row, const ft_encoding *encoding) {
  int64_t start = encoded->offsets[row], end = start + encoding->count;
  if (!ft__grow(context, &encoded->ids, &encoded->capacity_ids, end, sizeof(int32_t)) ||
      !ft__grow(context, &encoded->token_types, &encoded->capacity_types, end, sizeof(int32_t)))
    return false;
  memcpy(encoded->ids + start, encoding->ids, (size_t)encoding->count * sizeof(int32_t));
  memcpy(encoded->token_types + start, encoding->token_types, (size_t)encoding->count * sizeof(int32_t));
  encoded->offsets[row + 1] = end;
  if (encoding->truncated) ++encoded->shown.truncated_rows;
  return true;
}

FT_API ft_encoded *ft_dataset_encode(ft_context *context, const ft_dataset *dataset, const ft_tokenizer *tokenizer,
                                     int max_length) {
  ft__encoded *encoded;
  ft_encoding encoding;
  ft_encode_options options;
  int64_t row;
  bool ok = true;
  if (!dataset || !tokenizer) return NULL;
  memset(&encoding, 0, sizeof encoding);
  memset(&options, 0, sizeof options);
  options.max_length = max_length;
  encoded = (ft__encoded *)ft__allocate_zero(context, sizeof *encoded);
  if (!encoded) return NULL;
  encoded->owner = context;
  encoded->offsets = (int64_t *)ft__allocate_zero(context, ((size_t)dataset->rows + 1) * sizeof(int64_t));
  ok = encoded->offsets != NULL;
  for (row = 0; ok && row < dataset->rows; ++row) {
    const ft_cell *text = &dataset->texts[row], *pair = dataset->pairs ? &dataset->pairs[row] : NULL;
    ok = ft_tokenizer_encode(context, tokenizer, text->text, text->length, pair ? pair->text : NULL,
                             pair ? pair->length : 0, &options, &encoding) == FT_OK &&
         ft__encoded_append(context, encoded, row, &encoding);
  }
  ft_encoding_free(&encoding);
  encoded->shown.rows = dataset->rows;
  encoded->shown.ids = encoded->ids;
  encoded->shown.token_types = encoded->token_types;
  encoded->shown.offsets = encoded->offsets;
  if (ok) return &encoded->shown;
  ft_encoded_free(&encoded->shown);
  return NULL;
}

FT_API void ft_encoded_free(ft_encoded *shown) {
  ft__encoded *encoded = (ft__encoded *)shown;
  if (!encoded) return;
  ft__release(encoded->owner, encoded->ids);
  ft__release(encoded->owner, encoded->token_types);
  ft__release(encoded->owner, encoded->offsets);
  ft__release(encoded->owner, encoded);
}
/* =====================================================================================================================
   >>encoder: BERT (Devlin et al. 2019) and its relatives

   One forward pass serves every family; h is [T, H], all texts of the batch one after another:

       h  = dropout(LayerNorm(words[ids] + positions[0, 1, ..] + types[type_ids]))                      [T, E]
       h  = h We^T + be                              only where E is not H: ALBERT, small ELECTRAs      [T, H]
       for each layer:
         a = attention(h Wq^T + bq, h Wk^T + bk, h Wv^T + bv)          within each text, A heads of D = H / A columns
         h = LayerNorm(h + dropout(a Wo^T + bo))
         f = gelu(h W1^T + b1)                                         [T, F]
         h = LayerNorm(h + dropout(f W2^T + b2))

   and one head for each kind of task. c is h at each text's first token, [CLS]; d is dropout:

       texts:   logits = d(g(c Wp^T + bp)) Wc^T + bc                   [B, C]; RoBERTa and ELECTRA: g(d(c) Wp^T + bp)
       tokens:  logits = d(h) Wc^T + bc                                [T, C]
       masked:  logits = LayerNorm(g(h Wp^T + bp)) words^T + bm        [rows, V]: the decoder is the embedding table

   A family is a row of ft__families: what its config keys and tensors are called, and its few real differences. The
   dense layer (Wp, bp) is BERT's and ALBERT's pretrained pooler, part of the base model, with g = tanh; the others have
   a new one outside it. ALBERT's layers share the weights of their group. RoBERTa counts positions from pad_id + 1. */

typedef struct ft__family {
  const char *model_type; /* in config.json */
  const char *class_name; /* of transformers: followed by "ForSequenceClassification", .., or "Model" */
  const char *prefix;     /* of the base model's parameters */
  /* config keys; NULL: the family has none */
  const char *hidden_size_key, *layers_key, *heads_key, *intermediate_size_key, *activation_key, *token_types_key;
  const char *epsilon_key, *hidden_dropout_key, *attention_dropout_key;
  const char *classifier_dropout_key, *token_dropout_key; /* before the last layer of a head over texts, over tokens */
  const char *embedding_size_key;
  double dropout_default, classifier_dropout_default; /* where the keys are absent; negative: the hidden dropout */
  int pad_default;
  /* modules within the base model; the first %d is the layer or group, the second the layer within the group */
  const char *words, *positions, *types, *embedding_norm, *projection;
  const char *query, *key, *value, *attention_output, *attention_norm, *feed_forward_in, *feed_forward_out,
      *feed_forward_norm;
  const char *pooler; /* or NULL */
  /* modules outside it */
  const char *head_dense;                         /* over texts; NULL: the pooler */
  const char *classifier;                         /* over texts; over tokens it is "classifier" */
  const char *mask_dense, *mask_norm, *mask_bias; /* of the masked language model */
  ft_unary head_activation, mask_activation;      /* g; FT_IDENTITY: the config's */
  bool attention_output_dropout, feed_forward_dropout, dropout_before_dense, positions_after_pad, shares_layers;
} ft__family;

/* clang-format off */
#define FT__BERT_KEYS "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", \
     "type_vocab_size", "layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob"
#define FT__BERT_EMBEDDINGS "embeddings.word_embeddings", "embeddings.position_embeddings", \
     "embeddings.token_type_embeddings", "embeddings.LayerNorm"
#define FT__BERT_LAYERS "encoder.layer.%d.attention.self.query", "encoder.layer.%d.attention.self.key", \
     "encoder.layer.%d.attention.self.value", "encoder.layer.%d.attention.output.dense", \
     "encoder.layer.%d.attention.output.LayerNorm", "encoder.layer.%d.intermediate.dense", \
     "encoder.layer.%d.output.dense", "encoder.layer.%d.output.LayerNorm"
#define FT__ALBERT_LAYER "encoder.albert_layer_groups.%d.albert_layers.%d."
#define FT__ROBERTA(model_type, class_name) {model_type, class_name, "roberta.", \
     FT__BERT_KEYS, "classifier_dropout", "classifier_dropout", NULL, 0.1, -1, 1, \
     FT__BERT_EMBEDDINGS, NULL, FT__BERT_LAYERS, \
     "pooler.dense", "classifier.dense", "classifier.out_proj", \
     "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", FT_TANH, FT_GELU, true, true, true, true, false}

static const ft__family ft__families[] = {
    {"bert", "Bert", "bert.",
     FT__BERT_KEYS, "classifier_dropout", "classifier_dropout", NULL, 0.1, -1, 0,
     FT__BERT_EMBEDDINGS, NULL, FT__BERT_LAYERS,
     "pooler.dense", NULL, "classifier",
     "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias",
     FT_TANH, FT_IDENTITY, true, true, false, false, false},
    {"distilbert", "DistilBert", "distilbert.",
     "dim", "n_layers", "n_heads", "hidden_dim", "activation",
     NULL, NULL, "dropout", "attention_dropout", "seq_classif_dropout", "dropout", NULL, 0.1, 0.2, 0,
     "embeddings.word_embeddings", "embeddings.position_embeddings", NULL, "embeddings.LayerNorm", NULL,
     "transformer.layer.%d.attention.q_lin", "transformer.layer.%d.attention.k_lin",
     "transformer.layer.%d.attention.v_lin", "transformer.layer.%d.attention.out_lin",
     "transformer.layer.%d.sa_layer_norm", "transformer.layer.%d.ffn.lin1",
     "transformer.layer.%d.ffn.lin2", "transformer.layer.%d.output_layer_norm",
     NULL, "pre_classifier", "classifier",
     "vocab_transform", "vocab_layer_norm", "vocab_projector.bias",
     FT_RELU, FT_IDENTITY, false, true, false, false, false},
    FT__ROBERTA("roberta", "Roberta"), /* DistilRoBERTa too */
    FT__ROBERTA("xlm-roberta", "XLMRoberta"),
    FT__ROBERTA("camembert", "Camembert"),
    {"albert", "Albert", "albert.",
     FT__BERT_KEYS, "classifier_dropout_prob", "classifier_dropout_prob", "embedding_size", 0, 0.1, 0,
     FT__BERT_EMBEDDINGS, "encoder.embedding_hidden_mapping_in",
     FT__ALBERT_LAYER "attention.query", FT__ALBERT_LAYER "attention.key",
     FT__ALBERT_LAYER "attention.value", FT__ALBERT_LAYER "attention.dense",
     FT__ALBERT_LAYER "attention.LayerNorm", FT__ALBERT_LAYER "ffn",
     FT__ALBERT_LAYER "ffn_output", FT__ALBERT_LAYER "full_layer_layer_norm",
     "pooler", NULL, "classifier",
     "predictions.dense", "predictions.LayerNorm", "predictions.bias",
     FT_TANH, FT_IDENTITY, true, false, false, false, true},
    {"electra", "Electra", "electra.",
     FT__BERT_KEYS, "classifier_dropout", "classifier_dropout", "embedding_size", 0.1, -1, 0,
     FT__BERT_EMBEDDINGS, "embeddings_project", FT__BERT_LAYERS,
     NULL, "classifier.dense", "classifier.out_proj",
     "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias",
     FT_GELU, FT_GELU, true, true, true, false, false}};
/* clang-format on */

enum {
  FT__FAMILIES = (int)(sizeof ft__families / sizeof ft__families[0]),
  FT__MAX_LAYERS = 64,
  FT__MAX_LABELS = 100000,
  FT__MAX_RANK = 65536
};

typedef enum ft__module_kind { FT__LINEAR, FT__NORM, FT__TABLE } ft__module_kind;

typedef struct ft__module { /* a linear layer [out, in], a LayerNorm, or a table (without bias) */
  ft_tensor *weight, *bias;
  ft__module_kind kind;
  int number; /* its place in ft_model.modules */
} ft__module;

typedef struct ft__layer {
  ft__module query, key, value, attention_output, attention_norm, feed_forward_in, feed_forward_out, feed_forward_norm;
} ft__layer;

struct ft_model {
  ft_context *owner; /* whose allocator and back end made it */
  const ft__family *family;
  ft_config config;
  ft_json *config_file; /* config.json as read: what we do not know is kept when saving */
  char **label_names;   /* [config.labels] */
  bool shapes_only, has_head;
  int first_position; /* of every text: 0, or RoBERTa's pad_id + 1 */
  ft_parameter *parameters;
  int64_t parameter_count, parameter_capacity;
  char **unexpected;
  int64_t unexpected_count, unexpected_capacity;
  ft__module words, positions, types, embedding_norm, projection;
  ft__layer *layers;                  /* [config.groups * config.layers_of_group] */
  ft__module dense, norm, classifier; /* the head's; dense may be the pooler, norm is the masked language model's, whose
                                          classifier is {words' weight, bias} */
  ft__module **modules;               /* [module_count]: all of these */
  int64_t module_count, module_capacity;
};

typedef struct ft__adaptation {       /* what an adapter changes in one module (see >>adapters); NULL: nothing */
  ft_tensor *weight, *bias;           /* in place of the model's own */
  ft_tensor *a, *b, *magnitude;       /* the low-rank update, [r, in] and [out, r]; DoRA's magnitude [out] */
  double scale;                       /* of the update */
  ft_tensor *kept_weight, *kept_bias; /* while merged: what the model had there */
} ft__adaptation;

struct ft_adapter {
  ft_context *owner;
  ft__adaptation *modules; /* [module_count], by ft__module.number */
  int64_t module_count;
  ft_parameter *parameters;
  int64_t parameter_count, parameter_capacity;
  double dropout;         /* of what the updates read */
  const ft_model *merged; /* the model that it is merged into, or NULL */
  ft_json *config;        /* adapter_config.json as read, or as the options say it */
  bool inner;             /* paths lack the base model's prefix: it is for an encoder without a head */
};

/* ---- config.json ---- */

static const ft_json *ft__config_member(ft_context *context, const ft_json *json, const char *file, const char *key,
                                        bool required) {
  const ft_json *member = ft_json_get(json, key);
  if (member && member->type == FT_JSON_NULL) member = NULL;
  if (!member && required) ft__error(context, FT_ERROR_FORMAT, "%s: the key \"%s\" is missing", file, key);
  return member;
}

/* A required size between 1 and limit. */
static bool ft__config_size(ft_context *context, const ft_json *json, const char *file, const char *key, int limit,
                            int *value) {
  const ft_json *member = ft__config_member(context, json, file, key, true);
  if (!member) return false;
  if (!member->is_integer || member->integer < 1 || member->integer > limit) {
    ft__error(context, FT_ERROR_FORMAT, "%s: \"%s\" must be a whole number from 1 to %d", file, key, limit);
    return false;
  }
  *value = (int)member->integer;
  return true;
}

/* An optional number between low and high; `fallback` if absent. */
static bool ft__config_number(ft_context *context, const ft_json *json, const char *file, const char *key, double low,
                              double high, double fallback, double *value) {
  const ft_json *member = key ? ft__config_member(context, json, file, key, false) : NULL;
  *value = fallback;
  if (!member) return true;
  if (member->type != FT_JSON_NUMBER || member->number < low || member->number > high) {
    ft__error(context, FT_ERROR_FORMAT, "%s: \"%s\" must be a number from %g to %g", file, key, low, high);
    return false;
  }
  *value = member->number;
  return true;
}

static const struct {
  const char *name;
  ft_unary kind;
} ft__activations[] = {{"gelu", FT_GELU}, {"gelu_new", FT_GELU_TANH}, {"gelu_pytorch_tanh", FT_GELU_TANH},
                       {"relu", FT_RELU}, {"silu", FT_SILU},          {"swish", FT_SILU},
                       {"tanh", FT_TANH}};

FT_API bool ft_activation_parse(const char *name, ft_unary *activation) {
  size_t i;
  for (i = 0; i < sizeof ft__activations / sizeof ft__activations[0]; ++i) {
    if (strcmp(name, ft__activations[i].name) != 0) continue;
    *activation = ft__activations[i].kind;
    return true;
  }
  return false;
}

static const char *ft__activation_name(ft_unary activation) {
  size_t i;
  for (i = 0; ft__activations[i].kind != activation;) ++i;
  return ft__activations[i].name;
}

static bool ft__config_activation(ft_context *context, const ft_json *json, const char *file, const char *key,
                                  ft_unary *activation) {
  const ft_json *member = ft__config_member(context, json, file, key, true);
  if (!member) return false;
  if (member->type == FT_JSON_STRING && ft_activation_parse(member->string, activation)) return true;
  ft__error(context, FT_ERROR_UNSUPPORTED,
            "%s: \"%s\" is %.60s%s%s; known are gelu, gelu_new, gelu_pytorch_tanh, relu, silu, tanh", file, key,
            member->type == FT_JSON_STRING ? "\"" : "", member->type == FT_JSON_STRING ? member->string : "no string",
            member->type == FT_JSON_STRING ? "\"" : "");
  return false;
}

static const ft__family *ft__find_family(ft_context *context, const ft_json *json, const char *file) {
  const ft_json *type = ft__config_member(context, json, file, "model_type", true);
  char known[200];
  size_t used = 0;
  int i;
  if (!type) return NULL;
  for (i = 0; i < FT__FAMILIES; ++i) {
    if (type->type == FT_JSON_STRING && strcmp(type->string, ft__families[i].model_type) == 0) return &ft__families[i];
    used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", ft__families[i].model_type);
  }
  ft__error(context, FT_ERROR_UNSUPPORTED, "%s: model_type \"%.60s\" is not one of %s", file,
            type->type == FT_JSON_STRING ? type->string : "?", known);
  return NULL;
}

/* An optional size; `fallback` if the family has no such key or the file does not state it. */
static bool ft__config_optional_size(ft_context *context, const ft_json *json, const char *file, const char *key,
                                     int limit, int fallback, int *value) {
  *value = fallback;
  return !key || !ft__config_member(context, json, file, key, false) ||
         ft__config_size(context, json, file, key, limit, value);
}

/* The layers' sizes, and how many sets of weights they have: one each, or ALBERT's groups. */
static bool ft__config_layers(ft_context *context, const ft__family *family, const ft_json *json, const char *file,
                              ft_config *config) {
  bool shares = family->shares_layers;
  if (!ft__config_size(context, json, file, family->hidden_size_key, 1 << 16, &config->hidden_size) ||
      !ft__config_size(context, json, file, family->layers_key, FT__MAX_LAYERS, &config->layers) ||
      !ft__config_size(context, json, file, family->heads_key, 1 << 10, &config->heads) ||
      !ft__config_size(context, json, file, family->intermediate_size_key, 1 << 20, &config->intermediate_size) ||
      !ft__config_optional_size(context, json, file, family->embedding_size_key, 1 << 16, config->hidden_size,
                                &config->embedding_size) ||
      !ft__config_optional_size(context, json, file, shares ? "num_hidden_groups" : NULL, config->layers,
                                shares ? 1 : config->layers, &config->groups) ||
      !ft__config_optional_size(context, json, file, shares ? "inner_group_num" : NULL, FT__MAX_LAYERS, 1,
                                &config->layers_of_group))
    return false;
  if (config->hidden_size % config->heads == 0) return true;
  ft__error(context, FT_ERROR_FORMAT, "%s: \"%s\" %d is not a multiple of \"%s\" %d", file, family->hidden_size_key,
            config->hidden_size, family->heads_key, config->heads);
  return false;
}

static bool ft__config_sizes(ft_context *context, ft_model *model, const char *file) {
  const ft__family *family = model->family;
  const ft_json *json = model->config_file, *pad;
  ft_config *config = &model->config;
  config->model_type = family->model_type;
  if (!ft__config_layers(context, family, json, file, config) ||
      !ft__config_size(context, json, file, "vocab_size", 1 << 24, &config->vocabulary_size) ||
      !ft__config_size(context, json, file, "max_position_embeddings", 1 << 16, &config->max_positions) ||
      (family->token_types_key &&
       !ft__config_size(context, json, file, family->token_types_key, 1 << 10, &config->token_types)))
    return false;
  pad = ft__config_member(context, json, file, "pad_token_id", false);
  config->pad_id = pad && pad->is_integer && pad->integer >= 0 && pad->integer < config->vocabulary_size
                       ? (int)pad->integer
                       : family->pad_default % config->vocabulary_size;
  model->first_position = family->positions_after_pad ? config->pad_id + 1 : 0;
  if ((config->max_positions -= model->first_position) >= 1) return true;
  ft__error(context, FT_ERROR_FORMAT,
            "%s: \"max_position_embeddings\" %d leaves no position for a text behind \"pad_token_id\" %d", file,
            config->max_positions + model->first_position, config->pad_id);
  return false;
}

/* What else the layers need, and the head's dropout: every task has its own key for it. */
static bool ft__config_numbers(ft_context *context, ft_model *model, const char *file) {
  const ft__family *family = model->family;
  const ft_json *json = model->config_file;
  ft_config *config = &model->config;
  const char *key = config->task == FT_TASK_TOKENS ? family->token_dropout_key : family->classifier_dropout_key;
  bool ok = ft__config_activation(context, json, file, family->activation_key, &config->activation) &&
            ft__config_number(context, json, file, family->epsilon_key, 0, 1, 1e-12, &config->layer_norm_epsilon) &&
            ft__config_number(context, json, file, family->hidden_dropout_key, 0, 0.999, family->dropout_default,
                              &config->hidden_dropout) &&
            ft__config_number(context, json, file, family->attention_dropout_key, 0, 0.999, family->dropout_default,
                              &config->attention_dropout) &&
            ft__config_number(context, json, file, "initializer_range", 0, 10, 0.02, &config->initializer_range);
  bool as_hidden = family->classifier_dropout_default < 0 || strcmp(key, family->hidden_dropout_key) == 0;
  return ok && ft__config_number(context, json, file, key, 0, 0.999,
                                 as_hidden ? config->hidden_dropout : family->classifier_dropout_default,
                                 &config->classifier_dropout);
}

/* The dense layer before the classifier: the family's, unless the options or the file ask for another. */
static bool ft__config_head(ft_context *context, ft_model *model, const ft_model_options *options, const char *file) {
  const ft__family *family = model->family;
  const ft_json *json = model->config_file;
  ft_config *config = &model->config;
  bool masked = config->task == FT_TASK_MASKED;
  config->head_activation = masked ? family->mask_activation : family->head_activation;
  if (config->head_activation == FT_IDENTITY) config->head_activation = config->activation;
  config->head_size = masked ? config->embedding_size : config->hidden_size;
  if (masked && ft__config_member(context, json, file, "tie_word_embeddings", false) &&
      !ft_json_get(json, "tie_word_embeddings")->boolean) {
    ft__error(context, FT_ERROR_UNSUPPORTED,
              "%s: \"tie_word_embeddings\" is false, but the decoder is the word embeddings", file);
    return false;
  }
  if ((options->head_size > 0 || options->head_activation != FT_IDENTITY) &&
      (masked || config->task == FT_TASK_TOKENS)) {
    ft__error(context, FT_ERROR_ARGUMENT, "%s: head_size and head_activation are for a head over texts", file);
    return false;
  }
  if (masked) return true;
  if (ft_json_get(json, "head_activation") &&
      !ft__config_activation(context, json, file, "head_activation", &config->head_activation))
    return false;
  if (options->head_activation != FT_IDENTITY) config->head_activation = options->head_activation;
  if (options->head_size > 0) config->head_size = options->head_size;
  return options->head_size > 0 ||
         ft__config_optional_size(context, json, file, "head_size", 1 << 16, config->head_size, &config->head_size);
}

/* Only what this library computes: no decoders, no relative positions. */
static bool ft__config_supported(ft_context *context, const ft_json *json, const char *file) {
  const ft_json *decoder = ft_json_get(json, "is_decoder"), *cross = ft_json_get(json, "add_cross_attention");
  const ft_json *positions = ft_json_get(json, "position_embedding_type");
  if ((decoder && decoder->boolean) || (cross && cross->boolean)) {
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s: this is a decoder; finetune.h runs encoders", file);
    return false;
  }
  if (positions && positions->type == FT_JSON_STRING && strcmp(positions->string, "absolute") != 0) {
    ft__error(context, FT_ERROR_UNSUPPORTED,
              "%s: position_embedding_type \"%.60s\" is not supported, only \"absolute\"", file, positions->string);
    return false;
  }
  return true;
}

static const char *ft__config_architecture(const ft_json *json) {
  const ft_json *classes = ft_json_get(json, "architectures");
  return classes && classes->child && classes->child->type == FT_JSON_STRING ? classes->child->string : "";
}

/* What a file's head is for. Masked language models are published as encoders: that head is for who asks for it. */
static ft_task ft__config_task(const ft_json *json, int labels) {
  const ft_json *problem = ft_json_get(json, "problem_type");
  if (strstr(ft__config_architecture(json), "ForTokenClassification")) return FT_TASK_TOKENS;
  if (problem && problem->type == FT_JSON_STRING) {
    if (strcmp(problem->string, "regression") == 0) return FT_TASK_REGRESSION;
    if (strcmp(problem->string, "multi_label_classification") == 0) return FT_TASK_MULTI_LABEL;
    if (strcmp(problem->string, "single_label_classification") == 0) return FT_TASK_SINGLE_LABEL;
  }
  return labels == 1 ? FT_TASK_REGRESSION : FT_TASK_SINGLE_LABEL;
}

/* Label names from id2label, {"0": "negative", ..}: every number below its size must be there. */
static bool ft__config_label_names(ft_context *context, const ft_json *names, const char *file, int labels,
                                   char **label_names) {
  const ft_json *name;
  int i;
  for (name = names->child; name; name = name->next) {
    char number[32];
    long index = strtol(name->key, NULL, 10);
    snprintf(number, sizeof number, "%ld", index);
    if (index < 0 || index >= labels || strcmp(number, name->key) != 0 || name->type != FT_JSON_STRING) continue;
    ft__release(context, label_names[index]);
    label_names[index] = ft__string_copy(context, name->string, strlen(name->string));
    if (!label_names[index]) return false;
  }
  for (i = 0; i < labels; ++i) {
    if (label_names[i]) continue;
    ft__error(context, FT_ERROR_FORMAT, "%s: id2label has no entry \"%d\" among its %d", file, i, labels);
    return false;
  }
  return true;
}

/* Label names: the options', else the file's id2label, else LABEL_0, .. */
static bool ft__config_labels(ft_context *context, ft_model *model, const ft_model_options *options, const char *file) {
  const ft_json *names = ft_json_get(model->config_file, "id2label");
  ft_config *config = &model->config;
  int in_file = names && names->type == FT_JSON_OBJECT && names->count > 0 && names->count <= FT__MAX_LABELS
                    ? (int)names->count
                    : 0;
  int i;
  config->labels = options->labels > 0 ? options->labels : in_file ? in_file : 2;
  config->task = options->task != FT_TASK_AUTO ? options->task : ft__config_task(model->config_file, config->labels);
  if (config->task == FT_TASK_MASKED) {
    config->labels = config->vocabulary_size;
    return true;
  }
  model->label_names = (char **)ft__allocate_zero(context, (size_t)config->labels * sizeof(char *));
  if (!model->label_names) return false;
  config->label_names = (const char *const *)model->label_names;
  if (config->labels == in_file && !options->label_names)
    return ft__config_label_names(context, names, file, config->labels, model->label_names);
  for (i = 0; i < config->labels; ++i) {
    char number[32];
    const char *text = options->label_names ? options->label_names[i] : number;
    snprintf(number, sizeof number, "LABEL_%d", i);
    if (!(model->label_names[i] = ft__string_copy(context, text, strlen(text)))) return false;
  }
  return true;
}

/* ---- parameters ---- */

/* The group whose weights a layer (from 0) uses, rounded as transformers does. */
static int ft__group_of_layer(const ft_config *config, int layer) {
  return (int)(layer / ((double)config->layers / config->groups));
}

/* Adds a parameter to a list; its name is path followed by suffix. Its memory comes with its values, once the file has
   been seen to hold them. */
static ft_parameter *ft__list_parameter(ft_context *context, ft_parameter **list, int64_t *count, int64_t *capacity,
                                        const char *path, const char *suffix, int dimensions, const int64_t *shape) {
  ft_parameter *parameter;
  size_t length = strlen(path);
  char *full;
  if (!ft__grow(context, list, capacity, *count + 1, sizeof **list)) return NULL;
  parameter = &(*list)[*count];
  memset(parameter, 0, sizeof *parameter);
  if (!(full = (char *)ft__allocate(context, length + strlen(suffix) + 1))) return NULL;
  memcpy(full, path, length);
  memcpy(full + length, suffix, strlen(suffix) + 1);
  parameter->name = full;
  ++*count;
  parameter->tensor = ft__tensor_outline(context, FT_F32, dimensions, shape);
  if (!parameter->tensor) return NULL;
  parameter->tensor->name = full;
  parameter->tensor->requires_gradient = true;
  return parameter;
}

static void ft__free_parameters(ft_context *context, ft_parameter *list, int64_t count) {
  int64_t i;
  for (i = 0; i < count; ++i) {
    ft_tensor_free(list[i].tensor);
    ft__release(context, (char *)(uintptr_t)list[i].name);
  }
  ft__release(context, list);
}

static ft_tensor *ft__add_parameter(ft_context *context, ft_model *model, const char *name, const char *suffix,
                                    int layer, int dimensions, int64_t rows, int64_t columns, bool decays) {
  ft_parameter *parameter;
  int64_t shape[2];
  shape[0] = rows, shape[1] = columns;
  parameter = ft__list_parameter(context, &model->parameters, &model->parameter_count, &model->parameter_capacity, name,
                                 suffix, dimensions, shape);
  if (!parameter) return NULL;
  parameter->decays = decays;
  parameter->layer = layer;
  return parameter->tensor;
}

/* Where a module's parameters stand: their names' beginning, and the numbers for the %d in their pattern. */
typedef struct ft__place {
  const char *prefix;
  int layer; /* as ft_parameter.layer */
  int numbers[2];
} ft__place;

/* Adds a module's parameters: a linear layer [rows, columns] with bias [rows], a LayerNorm over rows, or a table. */
static bool ft__add_module(ft_context *context, ft_model *model, ft__module *module, ft__module_kind kind,
                           const ft__place *place, const char *pattern, int64_t rows, int64_t columns) {
  char path[200];
  size_t used = (size_t)snprintf(path, sizeof path, "%s", place->prefix);
  const char *number;
  int i;
  for (i = 0; (number = strstr(pattern, "%d")) != NULL;
       ++i, pattern = number + 2) /* no printf format: a table's text */
    used += (size_t)snprintf(path + used, sizeof path - used, "%.*s%d", (int)(number - pattern), pattern,
                             place->numbers[i]);
  snprintf(path + used, sizeof path - used, "%s", pattern);
  if (!ft__grow(context, &model->modules, &model->module_capacity, model->module_count + 1, sizeof *model->modules))
    return false;
  module->kind = kind;
  module->number = (int)model->module_count;
  model->modules[model->module_count++] = module;
  module->weight = ft__add_parameter(context, model, path, ".weight", place->layer, kind == FT__NORM ? 1 : 2, rows,
                                     columns, kind != FT__NORM);
  if (module->weight && kind != FT__TABLE)
    module->bias = ft__add_parameter(context, model, path, ".bias", place->layer, 1, rows, 0, false);
  return module->weight && (kind == FT__TABLE || module->bias);
}

static bool ft__add_embeddings(ft_context *context, ft_model *model) {
  const ft__family *f = model->family;
  const ft_config *config = &model->config;
  int64_t width = config->embedding_size;
  ft__place place = {NULL, 0, {0, 0}};
  place.prefix = f->prefix;
  return ft__add_module(context, model, &model->words, FT__TABLE, &place, f->words, config->vocabulary_size, width) &&
         ft__add_module(context, model, &model->positions, FT__TABLE, &place, f->positions,
                        config->max_positions + model->first_position, width) &&
         (!f->types ||
          ft__add_module(context, model, &model->types, FT__TABLE, &place, f->types, config->token_types, width)) &&
         ft__add_module(context, model, &model->embedding_norm, FT__NORM, &place, f->embedding_norm, width, 0) &&
         /* ALBERT always projects, ELECTRA only where the widths differ */
         (!f->projection || (!f->shares_layers && width == config->hidden_size) ||
          ft__add_module(context, model, &model->projection, FT__LINEAR, &place, f->projection, config->hidden_size,
                         width));
}

/* Set of weights number `index`: a layer's, or of those that ALBERT's layers share. */
static bool ft__add_layer(ft_context *context, ft_model *model, ft__layer *layer, int index) {
  const ft__family *f = model->family;
  const ft_config *config = &model->config;
  int64_t hidden = config->hidden_size, wide = config->intermediate_size;
  ft__place place;
  place.prefix = f->prefix;
  place.numbers[0] = index / config->layers_of_group;
  place.numbers[1] = index % config->layers_of_group;
  for (place.layer = 1; ft__group_of_layer(config, place.layer - 1) < place.numbers[0];) ++place.layer;
  return ft__add_module(context, model, &layer->query, FT__LINEAR, &place, f->query, hidden, hidden) &&
         ft__add_module(context, model, &layer->key, FT__LINEAR, &place, f->key, hidden, hidden) &&
         ft__add_module(context, model, &layer->value, FT__LINEAR, &place, f->value, hidden, hidden) &&
         ft__add_module(context, model, &layer->attention_output, FT__LINEAR, &place, f->attention_output, hidden,
                        hidden) &&
         ft__add_module(context, model, &layer->attention_norm, FT__NORM, &place, f->attention_norm, hidden, 0) &&
         ft__add_module(context, model, &layer->feed_forward_in, FT__LINEAR, &place, f->feed_forward_in, wide,
                        hidden) &&
         ft__add_module(context, model, &layer->feed_forward_out, FT__LINEAR, &place, f->feed_forward_out, hidden,
                        wide) &&
         ft__add_module(context, model, &layer->feed_forward_norm, FT__NORM, &place, f->feed_forward_norm, hidden, 0);
}

/* The pooler, which encoders without a head have too, and what the task's head has outside the base model. */
static bool ft__add_head(ft_context *context, ft_model *model) {
  const ft__family *f = model->family;
  const ft_config *config = &model->config;
  ft_task task = model->has_head ? config->task : FT_TASK_AUTO;
  bool over_texts = task != FT_TASK_TOKENS && task != FT_TASK_MASKED, new_dense = task && over_texts && f->head_dense;
  int64_t hidden = config->hidden_size, width = config->head_size;
  ft__place inside, outside;
  memset(&outside, 0, sizeof outside);
  outside.layer = config->layers + 1;
  inside = outside;
  inside.prefix = f->prefix;
  outside.prefix = "";
  if (over_texts && f->pooler && !new_dense &&
      !ft__add_module(context, model, &model->dense, FT__LINEAR, &inside, f->pooler, width, hidden))
    return false;
  if (new_dense && !ft__add_module(context, model, &model->dense, FT__LINEAR, &outside, f->head_dense, width, hidden))
    return false;
  if (task == FT_TASK_MASKED) {
    model->classifier.weight = model->words.weight;
    model->classifier.bias =
        ft__add_parameter(context, model, f->mask_bias, "", outside.layer, 1, config->vocabulary_size, 0, false);
    return model->classifier.bias &&
           ft__add_module(context, model, &model->dense, FT__LINEAR, &outside, f->mask_dense, width, hidden) &&
           ft__add_module(context, model, &model->norm, FT__NORM, &outside, f->mask_norm, width, 0);
  }
  return !task ||
         ft__add_module(context, model, &model->classifier, FT__LINEAR, &outside,
                        over_texts ? f->classifier : "classifier", config->labels, over_texts ? width : hidden);
}

static bool ft__add_parameters(ft_context *context, ft_model *model) {
  int i, sets = model->config.groups * model->config.layers_of_group;
  model->layers = (ft__layer *)ft__allocate_zero(context, (size_t)sets * sizeof *model->layers);
  if (!model->layers || !ft__add_embeddings(context, model)) return false;
  for (i = 0; i < sets; ++i)
    if (!ft__add_layer(context, model, &model->layers[i], i)) return false;
  return ft__add_head(context, model);
}

/* ---- loading ---- */

static bool ft__in_base_model(const ft_model *model, const char *name) {
  return strncmp(name, model->family->prefix, strlen(model->family->prefix)) == 0;
}

/* What a parameter may be called in a file: with or without the base prefix, LayerNorm's weight and bias as gamma and
   beta. Writes candidate number `which` into name (size bytes); false when there are no more. */
static bool ft__name_candidate(const ft_model *model, const char *full, int which, char *name, size_t size) {
  bool old_style = (which & 1) != 0, without_prefix = (which & 2) != 0;
  const char *start = full, *suffix = strrchr(full, '.');
  if (which > 3) return false;
  if (without_prefix && ft__in_base_model(model, full)) start += strlen(model->family->prefix);
  if (old_style)
    snprintf(name, size, "%.*s.%s", (int)(suffix - start), start, strcmp(suffix, ".weight") == 0 ? "gamma" : "beta");
  else
    snprintf(name, size, "%s", start);
  return true;
}

static const ft_safetensors_entry *ft__find_weights(const ft_model *model, const ft_safetensors *file,
                                                    const char *full) {
  char name[256];
  int which;
  for (which = 0; ft__name_candidate(model, full, which, name, sizeof name); ++which) {
    const ft_safetensors_entry *entry = ft_safetensors_find(file, name);
    if (entry) return entry;
  }
  return NULL;
}

/* Copies float values from the host into a tensor of ft_real. */
static ft_status ft__write_floats(ft_context *context, ft_tensor *tensor, const float *values) {
  int64_t i, count = ft_tensor_count(tensor);
  ft_real *converted;
  ft_status status;
  if (sizeof(ft_real) == sizeof(float)) return ft_tensor_write(context, tensor, values);
  converted = (ft_real *)ft__allocate(context, (size_t)count * sizeof *converted);
  if (!converted) return context->status;
  for (i = 0; i < count; ++i) converted[i] = (ft_real)values[i];
  status = ft_tensor_write(context, tensor, converted);
  ft__release(context, converted);
  return status;
}

/* The reverse: a contiguous tensor's values as floats on the host. */
static ft_status ft__read_floats(ft_context *context, const ft_tensor *tensor, float *values) {
  int64_t i, count = ft_tensor_count(tensor);
  ft_real *raw;
  ft_status status;
  if (sizeof(ft_real) == sizeof(float)) return ft_tensor_read(context, tensor, values);
  raw = (ft_real *)ft__allocate(context, (size_t)count * sizeof *raw);
  if (!raw) return context->status;
  status = ft_tensor_read(context, tensor, raw);
  for (i = 0; status == FT_OK && i < count; ++i) values[i] = (float)raw[i];
  ft__release(context, raw);
  return status;
}

static bool ft__same_shape(const ft_tensor *tensor, const ft_safetensors_entry *entry) {
  int i;
  if (entry->dimensions != tensor->dimensions) return false;
  for (i = 0; i < tensor->dimensions; ++i)
    if (entry->shape[i] != tensor->shape[i]) return false;
  return true;
}

/* Parts that may be missing from a file or have another shape there, and are then made anew: the head, and BERT's
   pooler, which masked language models lack. */
static bool ft__is_head(const ft_model *model, const ft_tensor *tensor) {
  return (tensor == model->classifier.weight && tensor != model->words.weight) || tensor == model->classifier.bias ||
         tensor == model->dense.weight || tensor == model->dense.bias || tensor == model->norm.weight ||
         tensor == model->norm.bias;
}

/* Reads one parameter, whose shape the file's tensor must have. */
static ft_status ft__load_parameter(ft_context *context, ft_safetensors *file, ft_parameter *parameter,
                                    const ft_safetensors_entry *entry, const char *directory) {
  float *values;
  ft_status status;
  if (!ft__same_shape(parameter->tensor, entry)) {
    char shape[100];
    return ft__error(context, FT_ERROR_SHAPE,
                     "%s: %s should have shape %s by the configuration, but the file's has %d dimensions"
                     " and %lld elements",
                     directory, entry->name, ft__shape_text(parameter->tensor, shape), entry->dimensions,
                     (long long)entry->count);
  }
  values = (float *)ft__allocate(context, (size_t)entry->count * sizeof *values);
  if (!values) return context->status;
  status = ft__tensor_allocate(context, parameter->tensor);
  if (status == FT_OK) status = ft_safetensors_read_float(context, file, entry, values);
  if (status == FT_OK) status = ft__write_floats(context, parameter->tensor, values);
  ft__release(context, values);
  parameter->loaded = status == FT_OK;
  return status;
}

/* Tensors that published files carry and no model here needs: position numbers, heads of pretraining on sentence
   pairs, and decoders, which are the word embeddings once more. */
static bool ft__is_ignored(const char *name) {
  static const char *const parts[] = {
      "position_ids",     "cls.seq_relationship.",  "sop_classifier.",         "predictions.decoder.",
      "lm_head.decoder.", "vocab_projector.weight", "generator_lm_head.weight"};
  size_t i;
  for (i = 0; i < sizeof parts / sizeof parts[0]; ++i)
    if (strstr(name, parts[i])) return true;
  return false;
}

/* taken [parameter_count]: the entry that each parameter was read from, or NULL. */
static ft_status ft__list_unexpected(ft_context *context, ft_model *model, const ft_safetensors *file,
                                     const ft_safetensors_entry *const *taken) {
  int64_t i, k, count = ft_safetensors_count(file);
  for (i = 0; i < count; ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_at(file, i);
    const char *name = entry->name;
    for (k = 0; k < model->parameter_count && taken[k] != entry; ++k) continue;
    if (k < model->parameter_count || ft__is_ignored(name)) continue;
    if (!ft__grow(context, &model->unexpected, &model->unexpected_capacity, model->unexpected_count + 1,
                  sizeof *model->unexpected))
      return context->status;
    if (!(model->unexpected[model->unexpected_count] = ft__string_copy(context, name, strlen(name))))
      return context->status;
    ++model->unexpected_count;
  }
  return FT_OK;
}

typedef struct ft__initialization {
  ft_real *values;
  int64_t count;
  double deviation;
  uint64_t seed;
  uint32_t site;
} ft__initialization;

static void ft__initialize_piece(void *argument, int64_t piece, int thread) {
  const ft__initialization *task = (const ft__initialization *)argument;
  int64_t i, end = (piece + 1) * 65536 < task->count ? (piece + 1) * 65536 : task->count;
  (void)thread;
  for (i = piece * 65536; i < end; ++i)
    task->values[i] = (ft_real)(task->deviation * ft__random_normal(task->seed, task->site, (uint64_t)i));
}

/* A new parameter as transformers makes it: matrices N(0, initializer_range), biases 0, LayerNorm weights 1, and the
   padding token's embedding 0. */
static ft_status ft__initialize_parameter(ft_context *context, ft_model *model, int64_t index, uint64_t seed) {
  ft_tensor *tensor = model->parameters[index].tensor;
  ft__initialization task;
  ft_status status;
  int64_t i;
  task.count = ft_tensor_count(tensor);
  task.values = (ft_real *)ft__allocate_zero(context, (size_t)task.count * sizeof(ft_real));
  if (!task.values) return context->status;
  task.deviation = model->config.initializer_range;
  task.seed = seed;
  task.site = (uint32_t)index;
  if (tensor->dimensions == 2) {
    ft__parallel_for(context, (task.count + 65535) / 65536, ft__initialize_piece, &task);
    if (tensor == model->words.weight)
      memset(task.values + model->config.pad_id * tensor->shape[1], 0, (size_t)tensor->shape[1] * sizeof(ft_real));
  } else if (strstr(tensor->name, "orm.weight")) {
    for (i = 0; i < task.count; ++i) task.values[i] = 1;
  }
  status = tensor->data ? FT_OK : ft__tensor_allocate(context, tensor);
  if (status == FT_OK) status = ft_tensor_write(context, tensor, task.values);
  ft__release(context, task.values);
  return status;
}

static ft_status ft__load_weights(ft_context *context, ft_model *model, ft_safetensors *file, const char *directory,
                                  uint64_t seed) {
  int64_t i;
  const ft_safetensors_entry **taken =
      (const ft_safetensors_entry **)ft__allocate_zero(context, (size_t)model->parameter_count * sizeof *taken);
  ft_status status = taken ? FT_OK : context->status;
  for (i = 0; status == FT_OK && i < model->parameter_count; ++i) {
    ft_parameter *parameter = &model->parameters[i];
    const ft_safetensors_entry *entry = ft__find_weights(model, file, parameter->name);
    bool head = ft__is_head(model, parameter->tensor);
    taken[i] = entry;
    if (entry && head && entry->dimensions == parameter->tensor->dimensions &&
        !ft__same_shape(parameter->tensor, entry))
      entry = NULL; /* made for another number of labels or width: initialised anew */
    if (entry) {
      status = ft__load_parameter(context, file, parameter, entry, directory);
    } else if (!head) {
      status = ft__error(context, FT_ERROR_FORMAT, "%s: the weights lack %s (looked for with and without \"%s\")",
                         directory, parameter->name, model->family->prefix);
    }
    if (status == FT_OK && !parameter->loaded) {
      status = ft__initialize_parameter(context, model, i, seed);
      ft__log(context, FT_LOG_INFO, "newly initialised: %s", parameter->name);
    }
  }
  if (status == FT_OK) status = ft__list_unexpected(context, model, file, taken);
  for (i = 0; status == FT_OK && i < model->unexpected_count; ++i)
    ft__log(context, FT_LOG_INFO, "not used by this model: %s", model->unexpected[i]);
  ft__release(context, taken);
  return status;
}

static ft_status ft__load_or_initialize(ft_context *context, ft_model *model, const ft_model_options *options,
                                        const char *directory) {
  uint64_t seed = options->seed ? options->seed : 42;
  ft_safetensors *file;
  ft_status status = FT_OK;
  int64_t i;
  if (options->shapes_only) return FT_OK;
  if (options->from_config) {
    for (i = 0; status == FT_OK && i < model->parameter_count; ++i)
      status = ft__initialize_parameter(context, model, i, seed);
    return status;
  }
  file = ft_safetensors_open(context, directory);
  if (!file) return context->status;
  status = ft__load_weights(context, model, file, directory, seed);
  ft_safetensors_close(file);
  return status;
}

/* Where config.json is: in the directory, unless what was given is a .json file itself. */
static char *ft__config_path(ft_context *context, const char *directory) {
  size_t length = strlen(directory);
  if (length >= 5 && strcmp(directory + length - 5, ".json") == 0) return ft__string_copy(context, directory, length);
  return ft__path_join(context, directory, "config.json");
}

FT_API ft_model *ft_model_load(ft_context *context, const char *directory, const ft_model_options *options) {
  ft_model_options none;
  ft_model *model;
  char path[FT__PATH_BYTES], *file;
  bool ok;
  if (ft_model_path(context, directory, path, sizeof path) != FT_OK) return NULL;
  directory = path;
  memset(&none, 0, sizeof none);
  if (!options) options = &none;
  model = (ft_model *)ft__allocate_zero(context, sizeof *model);
  file = ft__config_path(context, directory);
  if (!model || !file) {
    ft__release(context, model);
    ft__release(context, file);
    return NULL;
  }
  model->owner = context;
  model->shapes_only = options->shapes_only;
  model->has_head = !options->encoder_only;
  model->config_file = ft_json_read(context, file);
  ok = model->config_file && (model->family = ft__find_family(context, model->config_file, file)) != NULL &&
       ft__config_supported(context, model->config_file, file) && ft__config_sizes(context, model, file) &&
       ft__config_labels(context, model, options, file) && ft__config_numbers(context, model, file) &&
       ft__config_head(context, model, options, file) && ft__add_parameters(context, model) &&
       ft__load_or_initialize(context, model, options, directory) == FT_OK;
  ft__release(context, file);
  if (ok) return model;
  ft_model_free(model);
  return NULL;
}

FT_API void ft_model_free(ft_model *model) {
  ft_context *context;
  int64_t i;
  if (!model) return;
  context = model->owner;
  ft__free_parameters(context, model->parameters, model->parameter_count);
  for (i = 0; i < model->unexpected_count; ++i) ft__release(context, model->unexpected[i]);
  for (i = 0; model->label_names && i < model->config.labels; ++i) ft__release(context, model->label_names[i]);
  ft__release(context, model->label_names);
  ft__release(context, model->unexpected);
  ft__release(context, model->modules);
  ft__release(context, model->layers);
  ft_json_free(model->config_file);
  ft__release(context, model);
}

FT_API const ft_config *ft_model_config(const ft_model *model) { return &model->config; }
FT_API int64_t ft_model_parameter_count(const ft_model *model) { return model->parameter_count; }
FT_API const ft_parameter *ft_model_parameter(const ft_model *model, int64_t index) {
  return &model->parameters[index];
}
FT_API int64_t ft_model_unexpected_count(const ft_model *model) { return model->unexpected_count; }
FT_API const char *ft_model_unexpected(const ft_model *model, int64_t index) { return model->unexpected[index]; }

FT_API const ft_parameter *ft_model_find(const ft_model *model, const char *name) {
  int64_t i;
  for (i = 0; i < model->parameter_count; ++i)
    if (strcmp(model->parameters[i].name, name) == 0) return &model->parameters[i];
  return NULL;
}

FT_API int64_t ft_model_size(const ft_model *model, bool trained_only) {
  int64_t i, size = 0;
  for (i = 0; i < model->parameter_count; ++i)
    if (!trained_only || model->parameters[i].tensor->requires_gradient)
      size += ft_tensor_count(model->parameters[i].tensor);
  return size;
}

FT_API void ft_model_train_parameter(ft_model *model, int64_t index, bool trained) {
  model->parameters[index].tensor->requires_gradient = trained;
}

FT_API void ft_model_train_all(ft_model *model, bool trained) {
  int64_t i;
  for (i = 0; i < model->parameter_count; ++i) ft_model_train_parameter(model, i, trained);
}

/* Glob: on a mismatch behind a * the star takes one character more. */
static bool ft__matches(const char *pattern, const char *text) {
  const char *star = NULL, *retry = NULL;
  while (*text) {
    if (*pattern == '*') {
      star = pattern++;
      retry = text;
    } else if (*pattern == '?' || *pattern == *text) {
      ++pattern, ++text;
    } else if (star) {
      pattern = star + 1;
      text = ++retry;
    } else {
      return false;
    }
  }
  while (*pattern == '*') ++pattern;
  return *pattern == 0;
}

FT_API int64_t ft_model_train_matching(ft_model *model, const char *pattern, bool trained) {
  int64_t i, matched = 0;
  for (i = 0; i < model->parameter_count; ++i) {
    if (!ft__matches(pattern, model->parameters[i].name)) continue;
    ft_model_train_parameter(model, i, trained);
    ++matched;
  }
  return matched;
}

/* The lowest part that the adapter (or NULL) changes; `parts` if it is none below. */
static int ft__adapter_lowest(const ft_adapter *adapter, int parts) {
  int64_t i;
  for (i = 0; adapter && i < adapter->parameter_count; ++i)
    if (adapter->parameters[i].layer < parts) parts = adapter->parameters[i].layer;
  return parts;
}

FT_API int ft_model_frozen_parts(const ft_model *model, const ft_adapter *adapter) {
  int parts = ft__adapter_lowest(adapter, model->config.layers + 1);
  int64_t i;
  for (i = 0; i < model->parameter_count; ++i)
    if (model->parameters[i].tensor->requires_gradient && model->parameters[i].layer < parts)
      parts = model->parameters[i].layer;
  return parts;
}

FT_API ft_status ft_model_reinitialize(ft_context *context, ft_model *model, int layers, uint64_t seed) {
  ft_status status = FT_OK;
  int64_t i;
  if (!model) return ft__null_status(context, "ft_model_reinitialize needs a model");
  if (model->shapes_only) return ft__error(context, FT_ERROR_ARGUMENT, "the model was loaded without weights");
  if (layers < 1 || layers > model->config.layers || model->config.groups != model->config.layers)
    return ft__error(context, FT_ERROR_ARGUMENT, "cannot reinitialise the top %d of %d layers%s", layers,
                     model->config.layers, model->config.groups == 1 ? ": they share their weights" : "");
  for (i = 0; status == FT_OK && i < model->parameter_count; ++i) {
    ft_parameter *parameter = &model->parameters[i];
    if (parameter->layer <= model->config.layers - layers || parameter->layer > model->config.layers) continue;
    status = ft__initialize_parameter(context, model, i, seed ? seed : 42);
    parameter->loaded = false;
  }
  return status;
}

FT_API void ft_model_train_head(ft_model *model) {
  int64_t i;
  for (i = 0; i < model->parameter_count; ++i)
    ft_model_train_parameter(model, i, !ft__in_base_model(model, model->parameters[i].name));
}

/* ---- saving ---- */

/* The members of config.json that fine-tuning decides: head, labels, task. */
static void ft__append_task(ft__string *out, const ft_model *model) {
  static const struct {
    const char *class_name, *problem;
  } tasks[] = {{"Model", NULL},
               {"ForSequenceClassification", "single_label_classification"},
               {"ForSequenceClassification", "multi_label_classification"},
               {"ForSequenceClassification", "regression"},
               {"ForTokenClassification", NULL},
               {"ForMaskedLM", NULL}};
  const ft_config *config = &model->config;
  int label, task = model->has_head ? config->task : FT_TASK_AUTO;
  if (model->has_head && config->task != FT_TASK_MASKED) {
    ft__append(out, "  \"id2label\": {");
    for (label = 0; label < model->config.labels; ++label) {
      ft__append_format(out, "%s\n    \"%d\": ", label ? "," : "", label);
      ft__append_json_string(out, model->label_names[label], strlen(model->label_names[label]));
    }
    ft__append(out, "\n  },\n  \"label2id\": {");
    for (label = 0; label < model->config.labels; ++label) {
      ft__append_format(out, "%s\n    ", label ? "," : "");
      ft__append_json_string(out, model->label_names[label], strlen(model->label_names[label]));
      ft__append_format(out, ": %d", label);
    }
    ft__append(out, "\n  },\n");
    if (config->head_size != config->hidden_size) ft__append_format(out, "  \"head_size\": %d,\n", config->head_size);
    if (config->head_activation != model->family->head_activation)
      ft__append_format(out, "  \"head_activation\": \"%s\",\n", ft__activation_name(config->head_activation));
  }
  if (tasks[task].problem) ft__append_format(out, "  \"problem_type\": \"%s\",\n", tasks[task].problem);
  ft__append_format(out, "  \"dtype\": \"float32\",\n  \"architectures\": [\n    \"%s%s\"\n  ]\n",
                    model->family->class_name, tasks[task].class_name);
}

/* config.json: what was read, with those members replaced. */
static void ft__append_config(ft__string *out, const ft_model *model) {
  static const char *const replaced[] = {"architectures", "id2label",   "label2id",  "problem_type",   "dtype",
                                         "torch_dtype",   "num_labels", "head_size", "head_activation"};
  const ft_json *member;
  size_t i;
  ft__append(out, "{\n");
  for (member = model->config_file->child; member; member = member->next) {
    bool skip = false;
    for (i = 0; i < sizeof replaced / sizeof replaced[0]; ++i) skip = skip || strcmp(member->key, replaced[i]) == 0;
    if (skip) continue;
    ft__append(out, "  ");
    ft__append_json_string(out, member->key, member->key_length);
    ft__append(out, ": ");
    ft__append_json(out, member, -1);
    ft__append(out, ",\n");
  }
  ft__append_task(out, model);
  ft__append(out, "}\n");
}

/* Writes parameters as they are named, without the first `skipped` characters of each name. */
static ft_status ft__save_parameters(ft_context *context, const char *directory, const char *name,
                                     const ft_parameter *parameters, int64_t count, size_t skipped,
                                     const char *const *metadata, int64_t metadata_count) {
  int64_t i;
  ft_safetensors_item *items = (ft_safetensors_item *)ft__allocate_zero(context, (size_t)count * sizeof *items);
  char *path = ft__path_join(context, directory, name);
  ft_status status = items && path ? FT_OK : context->status;
  for (i = 0; status == FT_OK && i < count; ++i) {
    const ft_tensor *tensor = parameters[i].tensor;
    float *values = (float *)ft__allocate(context, (size_t)ft_tensor_count(tensor) * sizeof *values);
    items[i].name = parameters[i].name + skipped;
    items[i].dimensions = tensor->dimensions;
    memcpy(items[i].shape, tensor->shape, sizeof tensor->shape);
    items[i].data = values;
    status = values ? ft__read_floats(context, tensor, values) : context->status;
  }
  if (status == FT_OK) status = ft_safetensors_write(context, path, items, count, metadata, metadata_count);
  for (i = 0; items && i < count; ++i) ft__release(context, (void *)(uintptr_t)items[i].data);
  ft__release(context, items);
  ft__release(context, path);
  return status;
}

FT_API ft_status ft_model_save(ft_context *context, const ft_model *model, const ft_tokenizer *tokenizer,
                               const char *directory) {
  static const char *const metadata[] = {"format", "pt"};
  ft__string text;
  ft_status status;
  char *path;
  if (!model) return ft__null_status(context, "ft_model_save needs a model");
  if (model->shapes_only)
    return ft__error(context, FT_ERROR_ARGUMENT, "a model loaded without weights cannot be saved");
  if ((status = ft__directory_create(context, directory)) != FT_OK) return status;
  status = ft__save_parameters(context, directory, "model.safetensors", model->parameters, model->parameter_count,
                               model->has_head ? 0 : strlen(model->family->prefix), metadata, 2);
  if (status != FT_OK) return status;
  memset(&text, 0, sizeof text);
  text.context = context;
  ft__append_config(&text, model);
  path = ft__path_join(context, directory, "config.json");
  status = text.failed || !path ? FT_ERROR_MEMORY : ft__file_write(context, path, text.text, (size_t)text.length);
  ft__string_free(&text);
  ft__release(context, path);
  if (status == FT_OK && tokenizer) status = ft_tokenizer_save(context, tokenizer, directory);
  return status;
}

/* ---- the forward pass ---- */

/* Dropout sites: a layer (0 the embeddings, L + 1 the head) and a place in it. They never change, whatever else runs.
 */
enum {
  FT__SITE_EMBEDDING = 0,
  FT__SITE_ATTENTION,
  FT__SITE_ATTENTION_OUTPUT,
  FT__SITE_FEED_FORWARD,
  FT__SITE_HEAD,
  FT__SITE_HEAD_DENSE,
  FT__SITE_LINEAR /* and the next five: what an adapter's updates read, one for each linear layer in a layer */
};

static uint32_t ft__site(int layer, int place) { return (uint32_t)(layer * 16 + place); }

typedef struct ft__forward { /* one run */
  const ft_model *model;
  const ft_adapter *adapter;                                     /* or NULL */
  ft_tensor *ids, *positions, *types, *offsets, *lengths, *rows; /* the batch in back-end memory; rows: for the head */
  int64_t longest;
  bool training, narrow; /* narrow: see ft__run_layer */
} ft__forward;

static ft_tensor *ft__upload(ft_context *context, const int32_t *values, int64_t count) {
  ft_tensor *tensor = ft__temporary_1d(context, FT_I32, count);
  if (tensor) context->backend->write(context, tensor->data, values, (size_t)count * sizeof *values);
  return tensor;
}

/* Checks every id, type and length before any of them is used as an index. */
static ft_status ft__check_batch(ft_context *context, const ft_model *model, const ft_batch *batch, int64_t *longest) {
  const ft_config *config = &model->config;
  int64_t b, t;
  *longest = 0;
  if (batch->texts < 1) return ft__error(context, FT_ERROR_ARGUMENT, "the batch holds no texts");
  for (b = 0; b < batch->texts; ++b) {
    int64_t length = batch->offsets[b + 1] - batch->offsets[b];
    if (length < 1 || batch->lengths[b] < 1 || batch->lengths[b] > length)
      return ft__error(context, FT_ERROR_ARGUMENT, "text %lld of the batch has no tokens", (long long)b);
    if (length > config->max_positions)
      return ft__error(context, FT_ERROR_ARGUMENT,
                       "text %lld of the batch has %lld tokens, but the model has %d positions", (long long)b,
                       (long long)length, config->max_positions);
    if (length > *longest) *longest = length;
    for (t = batch->offsets[b]; t < batch->offsets[b + 1]; ++t) {
      if (batch->ids[t] < 0 || batch->ids[t] >= config->vocabulary_size)
        return ft__error(context, FT_ERROR_ARGUMENT,
                         "text %lld of the batch: token id %d is outside the vocabulary of %d", (long long)b,
                         batch->ids[t], config->vocabulary_size);
      if (model->types.weight && (batch->token_types[t] < 0 || batch->token_types[t] >= config->token_types))
        return ft__error(context, FT_ERROR_ARGUMENT, "text %lld of the batch: token type %d, but the model has %d",
                         (long long)b, batch->token_types[t], config->token_types);
    }
  }
  return FT_OK;
}

/* Position numbers [T]: 0, 1, .. in each text; RoBERTa counts its tokens from pad_id + 1 and gives [PAD] pad_id. */
static int32_t *ft__number_positions(ft_context *context, const ft_model *model, const ft_batch *batch) {
  int32_t *positions =
      (int32_t *)ft__arena_allocate(context, &context->host_arena, (size_t)batch->tokens * sizeof *positions);
  int64_t b, t;
  for (b = 0; positions && b < batch->texts; ++b) {
    int32_t next = model->first_position;
    for (t = batch->offsets[b]; t < batch->offsets[b + 1]; ++t)
      positions[t] = next > 0 && batch->ids[t] == model->config.pad_id ? model->config.pad_id : next++;
  }
  return positions;
}

static bool ft__is_over_texts(const ft_model *model) {
  return model->config.task != FT_TASK_TOKENS && model->config.task != FT_TASK_MASKED;
}

/* The rows that the head reads: each text's first token, or those asked for; NULL: all of them. */
static ft_status ft__upload_rows(ft_context *context, const ft_batch *batch, const ft_forward_options *options,
                                 ft__forward *run) {
  int64_t i;
  if (ft__is_over_texts(run->model)) {
    run->rows = ft__upload(context, batch->offsets, batch->texts);
    return run->rows ? FT_OK : context->status;
  }
  if (!options->rows) return FT_OK;
  for (i = 0; i < options->row_count; ++i)
    if (options->rows[i] < 0 || options->rows[i] >= batch->tokens)
      return ft__error(context, FT_ERROR_ARGUMENT, "row %d is outside the %lld tokens of the batch", options->rows[i],
                       (long long)batch->tokens);
  run->rows = ft__upload(context, options->rows, options->row_count);
  return run->rows ? FT_OK : context->status;
}

static ft_status ft__upload_batch(ft_context *context, const ft_batch *batch, const ft_forward_options *options,
                                  ft__forward *run) {
  int32_t *positions;
  ft_status status = ft__check_batch(context, run->model, batch, &run->longest);
  if (status == FT_OK) status = ft__upload_rows(context, batch, options, run);
  if (status != FT_OK) return status;
  if (!(positions = ft__number_positions(context, run->model, batch))) return context->status;
  run->ids = ft__upload(context, batch->ids, batch->tokens);
  run->positions = ft__upload(context, positions, batch->tokens);
  run->types = run->model->types.weight ? ft__upload(context, batch->token_types, batch->tokens) : NULL;
  run->offsets = ft__upload(context, batch->offsets, batch->texts + 1);
  run->lengths = ft__upload(context, batch->lengths, batch->texts);
  return run->ids && run->positions && run->offsets && run->lengths && (run->types || !run->model->types.weight)
             ? FT_OK
             : context->status;
}

static const ft__adaptation *ft__adaptation_of(const ft__forward *run, const ft__module *module) {
  static const ft__adaptation none = {NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL};
  return run->adapter && module->weight ? &run->adapter->modules[module->number] : &none;
}

/* The weights that a run uses for a module: the model's, or the adapter's in their place. */
static ft__module ft__effective(const ft__forward *run, const ft__module *module) {
  const ft__adaptation *change = ft__adaptation_of(run, module);
  ft__module effective = *module;
  if (change->weight) effective.weight = change->weight;
  if (change->bias) effective.bias = change->bias;
  return effective;
}

static ft_tensor *ft__adapted_linear(ft_context *context, ft_tensor *x, const ft__module *module,
                                     const ft__adaptation *change, ft_unary activation, double dropout, uint32_t site);

/* place: of the layer's linear layers, from 0. */
static ft_tensor *ft__apply_linear(ft_context *context, const ft__forward *run, ft_tensor *x, const ft__module *module,
                                   ft_unary activation, int layer, int place) {
  const ft__adaptation *change = ft__adaptation_of(run, module);
  ft__module effective = ft__effective(run, module);
  if (!change->a) return ft_linear(context, x, effective.weight, effective.bias, activation);
  return ft__adapted_linear(context, x, &effective, change, activation, run->training ? run->adapter->dropout : 0,
                            ft__site(layer, FT__SITE_LINEAR + place));
}

static ft_tensor *ft__apply_norm(ft_context *context, const ft__forward *run, ft_tensor *x, ft_tensor *residual,
                                 const ft__module *module, double dropout, uint32_t site, ft_tensor *into) {
  ft__module effective = ft__effective(run, module);
  return ft__residual_layer_norm_into(context, x, residual, effective.weight, effective.bias,
                                      run->model->config.layer_norm_epsilon, dropout, site, into);
}

static ft_tensor *ft__embed_tokens(ft_context *context, const ft__forward *run) {
  const ft_model *model = run->model;
  ft_tensor *h = ft_embedding(context, ft__effective(run, &model->words).weight, run->ids,
                              ft__effective(run, &model->positions).weight, run->positions,
                              ft__effective(run, &model->types).weight, run->types);
  h = ft__apply_norm(context, run, h, NULL, &model->embedding_norm, 0, 0, NULL);
  h = ft_dropout(context, h, run->training ? model->config.hidden_dropout : 0, ft__site(0, FT__SITE_EMBEDDING));
  return model->projection.weight ? ft__apply_linear(context, run, h, &model->projection, FT_IDENTITY, 0, 0) : h;
}

static bool ft__is_narrow(const ft__forward *run, int index) {
  return run->narrow && index == run->model->config.layers * run->model->config.layers_of_group - 1;
}

/* Layer number `number` of config.layers * config.layers_of_group; the result goes into `into` unless that is NULL. Of
   the last layer's output the head reads few rows: in a narrow run what comes behind attention is done for these alone,
   three quarters of the layer's work less. The argument is the run, as ft__checkpoint hands it on. */
static ft_tensor *ft__run_layer(ft_context *context, const void *argument, int64_t number, ft_tensor *h,
                                ft_tensor *into) {
  const ft__forward *run = (const ft__forward *)argument;
  const ft_model *model = run->model;
  const ft__family *family = model->family;
  const ft_config *config = &model->config;
  int index = (int)number, inner = config->layers_of_group, group = ft__group_of_layer(config, index / inner);
  const ft__layer *layer = &model->layers[group * inner + index % inner];
  double hidden_dropout = run->training ? config->hidden_dropout : 0;
  double attention_dropout = run->training ? config->attention_dropout : 0;
  ft_tensor *query = ft__apply_linear(context, run, h, &layer->query, FT_IDENTITY, index + 1, 0);
  ft_tensor *key = ft__apply_linear(context, run, h, &layer->key, FT_IDENTITY, index + 1, 1);
  ft_tensor *value = ft__apply_linear(context, run, h, &layer->value, FT_IDENTITY, index + 1, 2);
  ft_tensor *a = ft_attention(context, query, key, value, run->offsets, run->lengths, run->longest, config->heads,
                              attention_dropout, ft__site(index + 1, FT__SITE_ATTENTION));
  if (ft__is_narrow(run, index)) {
    a = ft_gather_rows(context, a, run->rows);
    h = ft_gather_rows(context, h, run->rows);
    if (into && into->shape[0] != run->rows->shape[0]) into = ft_slice(context, into, 0, 0, run->rows->shape[0]);
  }
  a = ft__apply_linear(context, run, a, &layer->attention_output, FT_IDENTITY, index + 1, 3);
  h = ft__apply_norm(context, run, a, h, &layer->attention_norm, family->attention_output_dropout ? hidden_dropout : 0,
                     ft__site(index + 1, FT__SITE_ATTENTION_OUTPUT), NULL);
  a = ft__apply_linear(context, run, h, &layer->feed_forward_in, config->activation, index + 1, 4);
  a = ft__apply_linear(context, run, a, &layer->feed_forward_out, FT_IDENTITY, index + 1, 5);
  return ft__apply_norm(context, run, a, h, &layer->feed_forward_norm,
                        family->feed_forward_dropout ? hidden_dropout : 0, ft__site(index + 1, FT__SITE_FEED_FORWARD),
                        into);
}

/* Layers first <= i < end of which nothing is needed again, as they are scored or frozen: two buffers take turns, and
   each layer's memory is given back. */
static ft_tensor *ft__run_layers_in_turn(ft_context *context, const ft__forward *run, int first, int end,
                                         ft_tensor *h) {
  ft_tensor *buffer[2];
  int i;
  if (!h || first >= end) return h;
  buffer[0] = ft_tensor_temporary(context, FT_F32, h->dimensions, h->shape);
  buffer[1] = ft_tensor_temporary(context, FT_F32, h->dimensions, h->shape);
  if (!buffer[0] || !buffer[1]) return NULL;
  ft_no_grad_begin(context);
  for (i = first; i < end && h; ++i) {
    ft__arena_mark mark = ft__arena_here(&context->backend_arena);
    h = ft__run_layer(context, run, i, h, buffer[i % 2]);
    ft__arena_return(&context->backend_arena, mark);
  }
  ft_no_grad_end(context);
  return h;
}

/* All layers, or those below options->parts; where they start from features, those above. With gradient checkpointing
   each layer that is recorded is a segment of the tape. */
static ft_tensor *ft__run_layers(ft_context *context, const ft__forward *run, const ft_forward_options *options,
                                 int first, ft_tensor *h, ft_output *output) {
  int inner = run->model->config.layers_of_group, end = options->parts ? options->parts - 1 : run->model->config.layers;
  int i, recorded = context->no_grad ? end : ft_model_frozen_parts(run->model, run->adapter) - 1;
  if (recorded > end) recorded = end;
  if (recorded < first || options->hidden_states) recorded = first;
  if (options->hidden_states) output->hidden_states[first] = h;
  h = ft__run_layers_in_turn(context, run, first * inner, recorded * inner, h);
  for (i = recorded * inner; i < end * inner && h; ++i) {
    if (options->gradient_checkpointing)
      h = ft__checkpoint(
          context, ft__run_layer, run, i, h,
          ft__temporary_2d(context, FT_F32, (ft__is_narrow(run, i) ? run->rows : h)->shape[0], h->shape[1]));
    else
      h = ft__run_layer(context, run, i, h, NULL);
    if (options->hidden_states) output->hidden_states[i / inner + 1] = h;
  }
  return h;
}

/* logits of h's rows [n, H], by the three forms at the head of the chapter */
static ft_tensor *ft__run_head(ft_context *context, const ft__forward *run, ft_tensor *h) {
  const ft_model *model = run->model;
  const ft_config *config = &model->config;
  double dropout = run->training ? config->classifier_dropout : 0;
  int last = config->layers * config->layers_of_group + 1;
  if (run->rows && !run->narrow) h = ft_gather_rows(context, h, run->rows);
  if (config->task == FT_TASK_MASKED) {
    h = ft__apply_linear(context, run, h, &model->dense, config->head_activation, last, 0);
    h = ft__apply_norm(context, run, h, NULL, &model->norm, 0, 0, NULL);
    return ft_linear(context, h, model->classifier.weight, model->classifier.bias, FT_IDENTITY);
  }
  if (ft__is_over_texts(model)) {
    if (model->family->dropout_before_dense) h = ft_dropout(context, h, dropout, ft__site(last, FT__SITE_HEAD_DENSE));
    h = ft__apply_linear(context, run, h, &model->dense, config->head_activation, last, 0);
  }
  h = ft_dropout(context, h, dropout, ft__site(last, FT__SITE_HEAD));
  return ft__apply_linear(context, run, h, &model->classifier, FT_IDENTITY, last, 1);
}

static ft_status ft__check_adapter(ft_context *context, const ft_model *model, const ft_adapter *adapter) {
  if (adapter->merged)
    return ft__error(context, FT_ERROR_ARGUMENT, "the adapter is merged into its model: run the model alone");
  if (adapter->module_count == model->module_count) return FT_OK;
  return ft__error(context, FT_ERROR_ARGUMENT, "the adapter was made for another model: for %lld modules, not %lld",
                   (long long)adapter->module_count, (long long)model->module_count);
}

struct ft_features { /* made in >>frozen features */
  ft_context *owner;
  int parts;
  bool first_tokens; /* alone */
  int64_t rows, columns;
  int64_t *starts; /* [rows + 1]: row r has the states starts[r] .. starts[r + 1] */
  ft_real *values; /* [starts[rows], H], or NULL: they are in */
  FILE *file;
};

/* Keeps a row's `states` in memory or the file; keep false: copies them back from there. */
static ft_status ft__features_move(ft_context *context, const ft_features *features, int64_t row, ft_real *states,
                                   bool keep) {
  int64_t start = features->starts[row] * features->columns;
  size_t count = (size_t)(features->starts[row + 1] * features->columns - start), moved = 0;
  if (features->values) {
    memcpy(keep ? features->values + start : states, keep ? states : features->values + start, count * sizeof *states);
    return FT_OK;
  }
  if (ft__seek(features->file, start * (int64_t)sizeof *states, SEEK_SET) == 0)
    moved = keep ? fwrite(states, sizeof *states, count, features->file)
                 : fread(states, sizeof *states, count, features->file);
  if (moved == count) return FT_OK;
  return ft__error(context, FT_ERROR_FILE, "the temporary file of features cannot be %s: %s", keep ? "written" : "read",
                   strerror(errno));
}

/* The features of the batch's texts: [T, H], or [B, H] if they are the first tokens' alone. */
static ft_tensor *ft__upload_features(ft_context *context, const ft_batch *batch, const ft_forward_options *options,
                                      ft__forward *run) {
  const ft_features *features = options->features;
  int64_t b, count = features->first_tokens ? batch->texts : batch->tokens, used = 0;
  ft_tensor *h = ft__temporary_2d(context, FT_F32, count, features->columns);
  ft_real *values = (ft_real *)ft__arena_allocate(context, &context->host_arena,
                                                  (size_t)(count * features->columns) * sizeof *values);
  if (!h || !values) return NULL;
  for (b = 0; b < batch->texts; ++b) {
    int64_t row = options->feature_rows[b],
            length = features->first_tokens ? 1 : batch->offsets[b + 1] - batch->offsets[b];
    if (row < 0 || row >= features->rows || features->starts[row + 1] - features->starts[row] != length) {
      ft__error(context, FT_ERROR_ARGUMENT, "text %lld of the batch is not row %lld of the features' %lld",
                (long long)b, (long long)row, (long long)features->rows);
      return NULL;
    }
    if (ft__features_move(context, features, row, values + used, false) != FT_OK) return NULL;
    used += length * features->columns;
  }
  if (features->first_tokens) run->rows = NULL; /* nothing is left to gather */
  context->backend->write(context, h->data, values, (size_t)used * sizeof *values);
  return h;
}

/* options->parts and options->features must fit the model. */
static ft_status ft__check_parts(ft_context *context, const ft_model *model, const ft_forward_options *options) {
  const ft_features *features = options->features;
  int frozen = ft_model_frozen_parts(model, options->adapter), parts = model->config.layers + 1;
  if (options->parts < 0 || options->parts > parts || (features && options->parts && options->parts < features->parts))
    return ft__error(context, FT_ERROR_ARGUMENT, "cannot run the lowest %d of %d parts%s", options->parts, parts,
                     features ? " from features" : "");
  if (!features) return FT_OK;
  if (features->columns != model->config.hidden_size || features->parts > parts || !options->feature_rows ||
      (features->first_tokens && !ft__is_over_texts(model)))
    return ft__error(context, FT_ERROR_ARGUMENT, "the features were made by another model, or feature_rows is missing");
  if (ft__adapter_lowest(options->adapter, parts) < features->parts)
    return ft__error(context, FT_ERROR_ARGUMENT, "the features are the output of parts that the adapter changes");
  if (context->no_grad == 0 && frozen < features->parts)
    return ft__error(context, FT_ERROR_ARGUMENT,
                     "the features are the output of the model's lowest %d parts, but only %d of them are frozen",
                     features->parts, frozen);
  return FT_OK;
}

FT_API ft_status ft_model_forward(ft_context *context, const ft_model *model, const ft_batch *batch,
                                  const ft_forward_options *options, ft_output *output) {
  ft__forward *run;
  ft_forward_options none;
  ft_tensor *h;
  int first;
  bool has_head;
  memset(output, 0, sizeof *output);
  memset(&none, 0, sizeof none);
  if (!model || !batch) return ft__null_status(context, "ft_model_forward needs a model and a batch");
  if (!options) options = &none;
  if (model->shapes_only) return ft__error(context, FT_ERROR_ARGUMENT, "the model was loaded without weights");
  if (options->adapter && ft__check_adapter(context, model, options->adapter) != FT_OK) return context->status;
  if (ft__check_parts(context, model, options) != FT_OK) return context->status;
  run = (ft__forward *)ft__arena_allocate(context, &context->host_arena, sizeof *run); /* for checkpoints: till then */
  if (!run) return context->status;
  memset(run, 0, sizeof *run);
  run->model = model;
  run->adapter = options->adapter;
  run->training = options->training;
  if (ft__upload_batch(context, batch, options, run) != FT_OK) return context->status;
  first = options->features ? options->features->parts - 1 : 0;
  has_head = !options->no_head && !options->parts && model->has_head;
  run->narrow = has_head && run->rows && !options->hidden_states && first < model->config.layers &&
                run->rows->shape[0] <= batch->tokens;
  h = options->features ? ft__upload_features(context, batch, options, run) : ft__embed_tokens(context, run);
  h = ft__run_layers(context, run, options, first, h, output);
  if (!(output->hidden = h)) return context->status;
  if (!has_head) return FT_OK;
  output->logits = ft__run_head(context, run, h);
  return output->logits ? FT_OK : context->status;
}

/* How many rows have a label that counts; -1 after an error. */
static int64_t ft__count_labels(ft_context *context, const ft_model *model, const int32_t *labels, int64_t rows) {
  int64_t i, count = 0;
  for (i = 0; i < rows; ++i) {
    count += labels[i] >= 0;
    if (labels[i] < model->config.labels) continue;
    ft__error(context, FT_ERROR_ARGUMENT, "ft_model_loss: label %d, but the model has %d", labels[i],
              model->config.labels);
    return -1;
  }
  return count;
}

FT_API ft_tensor *ft_model_loss(ft_context *context, const ft_model *model, ft_tensor *logits, const int32_t *labels,
                                const float *targets, double divisor) {
  ft_tensor *wanted;
  int64_t rows, count;
  if (!model || !logits) return NULL;
  rows = logits->shape[0];
  if (model->config.task != FT_TASK_MULTI_LABEL && model->config.task != FT_TASK_REGRESSION) {
    if (!labels) ft__error(context, FT_ERROR_ARGUMENT, "ft_model_loss: a model that predicts classes wants labels");
    if (!labels || (count = ft__count_labels(context, model, labels, rows)) < 0) return NULL;
    if (divisor == 0) divisor = count > 0 ? (double)count : 1;
    wanted = ft__upload(context, labels, rows);
    return wanted ? ft_cross_entropy_loss(context, logits, wanted, divisor) : NULL;
  }
  if (divisor == 0) divisor = (double)rows;
  if (!targets) {
    ft__error(context, FT_ERROR_ARGUMENT, "ft_model_loss: a multi-label or regression model wants targets");
    return NULL;
  }
  wanted = ft_tensor_temporary(context, FT_F32, 2, logits->shape);
  if (!wanted || ft__write_floats(context, wanted, targets) != FT_OK) return NULL;
  divisor *= (double)model->config.labels; /* the mean over a text's classes */
  return model->config.task == FT_TASK_MULTI_LABEL ? ft_binary_cross_entropy_loss(context, logits, wanted, divisor)
                                                   : ft_squared_error_loss(context, logits, wanted, divisor);
}
/* =====================================================================================================================
   >>adapters: LoRA, and the directories in which PEFT keeps it

   LoRA (Hu et al. 2021) freezes a linear layer W [out, in] and learns a correction of low rank r beside it:

       y = x W^T + b + s drop(x) A^T B^T        A [r, in], B [out, r];  s = alpha / r, or alpha / sqrt(r) for rsLoRA

   A starts uniform in (-1, 1) / sqrt(in), B at zero. Of the r (in + out) numbers learned, none has to be kept apart
   when the model is used: W + s B A is a matrix like W (merging). DoRA (Liu et al. 2024) learns the length of each of
   its rows too, m [out], which starts at W's; the norm is a constant in the backward pass, as the paper has it:

       y = g (x' W^T + s x' A^T B^T) + (x - x') W^T + b        x' = drop(x),  g = m / norm of the rows of W + s B A

   Modules that are too new for a correction, such as the head, are copied and trained whole.

   A PEFT directory holds adapter_config.json and adapter_model.safetensors with, for a module of that path,

       base_model.model.PATH.lora_A.weight, .lora_B.weight, .lora_magnitude_vector       an update
       base_model.model.PATH.weight, .bias                                               a copy
       base_model.model.PATH.base_layer.bias, base_model.model.PATH.bias                 where biases trained too

   The configuration says which modules these are, by their paths ("bert.pooler.dense"): target_modules lists names that
   a path must be or end with after a dot, or is a regular expression for the whole path. modules_to_save lists ends of
   paths, of a module or of one that contains it, without asking for a dot: "classifier" means pre_classifier too. */

/* ---- regular expressions: what target_modules and the patterns of ranks are written in ----

   The places of a text at which a match may stand after reading a part of the pattern are a set of bits. Each part maps
   the set before it to the set behind it, so nothing is tried twice and there is no backtracking. */

typedef struct ft__places {
  uint64_t bits[4];
} ft__places;

typedef struct ft__regex {
  const char *at; /* in the pattern */
  const char *text;
  int length, depth, work;
  const char *problem; /* NULL: none */
} ft__regex;

static bool ft__place_is(const ft__places *places, int i) { return (places->bits[i / 64] >> (i % 64) & 1) != 0; }
static void ft__place_set(ft__places *places, int i) { places->bits[i / 64] |= (uint64_t)1 << (i % 64); }

static ft__places ft__regex_alternatives(ft__regex *regex, ft__places before);

static bool ft__regex_fail(ft__regex *regex, const char *problem) {
  if (!regex->problem) regex->problem = problem;
  regex->at += strlen(regex->at);
  return false;
}

/* Whether a character belongs to \d, \w, \s, in capitals to their complements, or is an escaped sign. */
static bool ft__regex_escaped(ft__regex *regex, char escape, char c) {
  bool digit = c >= '0' && c <= '9', member = digit;
  char kind = (char)(escape | 32);
  if (kind == 'w')
    member = digit || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  else if (kind == 's')
    member = c == ' ' || (c >= 9 && c <= 13);
  else if (kind != 'd') {
    if (escape == 0 || ft__regex_escaped(regex, 'w', escape))
      return ft__regex_fail(regex, "an escape other than \\d, \\w, \\s, \\D, \\W, \\S or a sign");
    return c == escape;
  }
  return member != (escape != kind);
}

/* One sign or class of signs at `at`, against c; *end is where it ends. */
static bool ft__regex_class(ft__regex *regex, const char *at, const char **end, char c) {
  bool found = false, negated;
  if (*at == '\\') {
    *end = at + (at[1] ? 2 : 1);
    return ft__regex_escaped(regex, at[1], c);
  }
  *end = at + 1;
  if (*at != '[') return *at == '.' ? c != '\n' : c == *at;
  negated = *++at == '^';
  if (negated) ++at;
  do { /* a ] in the first place is a sign */
    if (*at == 0) return ft__regex_fail(regex, "a [ without ]");
    if (*at == '\\') {
      found = ft__regex_escaped(regex, at[1], c) || found;
      at += at[1] ? 2 : 1;
    } else if (at[1] == '-' && at[2] && at[2] != ']') {
      found = found || (c >= at[0] && c <= at[2]);
      at += 3;
    } else {
      found = found || c == *at;
      ++at;
    }
  } while (*at != ']');
  *end = at + 1;
  return found != negated;
}

static ft__places ft__regex_atom(ft__regex *regex, ft__places before) {
  ft__places after;
  const char *start = regex->at;
  int i;
  memset(&after, 0, sizeof after);
  if (++regex->work > 100000) {
    ft__regex_fail(regex, "too much repetition within repetition");
  } else if (*start == '(') {
    if (start[1] == '?' && start[2] != ':') {
      ft__regex_fail(regex, "a group that begins with (?");
      return after;
    }
    regex->at += start[1] == '?' ? 3 : 1;
    if (++regex->depth > 30) ft__regex_fail(regex, "more than 30 groups within each other");
    after = ft__regex_alternatives(regex, before);
    --regex->depth;
    if (*regex->at == ')')
      ++regex->at;
    else
      ft__regex_fail(regex, "a ( without )");
  } else if (strchr("*+?{", *start)) {
    ft__regex_fail(regex, "a repetition of nothing, or {");
  } else if (*start == '^' || *start == '$') {
    i = *start == '^' ? 0 : regex->length;
    if (ft__place_is(&before, i)) ft__place_set(&after, i);
    ++regex->at;
  } else {
    const char *end = start + 1;
    ft__regex_class(regex, start, &end, 'a'); /* also where no place is left: to find its end */
    for (i = 0; i < regex->length; ++i) {
      if (!ft__place_is(&before, i)) continue;
      if (ft__regex_class(regex, start, &end, regex->text[i])) ft__place_set(&after, i + 1);
      regex->work += (int)(end - start);
    }
    if (!regex->problem) regex->at = end;
  }
  return after;
}

/* An atom with the repetition behind it. */
static ft__places ft__regex_piece(ft__regex *regex, ft__places before) {
  const char *start = regex->at;
  ft__places after = ft__regex_atom(regex, before), reached, fresh = after;
  char sign = *regex->at;
  bool grows = true;
  int i;
  if (sign == 0 || !strchr("*+?{", sign)) return after;
  if (sign == '{') ft__regex_fail(regex, "{");
  for (reached = after; sign != '?' && grows && !regex->problem;) {
    grows = false;
    regex->at = start;
    after = ft__regex_atom(regex, fresh);
    for (i = 0; i < 4; ++i) {
      fresh.bits[i] = after.bits[i] & ~reached.bits[i];
      reached.bits[i] |= after.bits[i];
      grows = grows || fresh.bits[i];
    }
  }
  for (i = 0; i < 4 && sign != '+'; ++i) reached.bits[i] |= before.bits[i];
  if (*regex->at) ++regex->at;
  if (*regex->at == '?') ++regex->at; /* lazy: the same matches of a whole text */
  if (*regex->at == '+') ft__regex_fail(regex, "a repetition that ends with +");
  return reached;
}

static ft__places ft__regex_alternatives(ft__regex *regex, ft__places before) {
  ft__places all, branch;
  int i;
  memset(&all, 0, sizeof all);
  for (;; ++regex->at) {
    branch = before;
    while (*regex->at && *regex->at != '|' && *regex->at != ')') branch = ft__regex_piece(regex, branch);
    for (i = 0; i < 4; ++i) all.bits[i] |= branch.bits[i];
    if (*regex->at != '|') return all;
  }
}

/* Does the pattern match the whole text, or with `anywhere` also an end of it that begins behind a dot? *matches says.
   A pattern that this chapter does not read is an error. */
static ft_status ft__regex_match(ft_context *context, const char *pattern, const char *text, bool anywhere,
                                 bool *matches) {
  ft__regex regex;
  ft__places places;
  int i;
  memset(&regex, 0, sizeof regex);
  memset(&places, 0, sizeof places);
  regex.at = pattern;
  regex.text = text;
  regex.length = (int)strlen(text);
  ft__place_set(&places, 0);
  for (i = 0; i < regex.length && anywhere; ++i)
    if (text[i] == '.') ft__place_set(&places, i + 1);
  places = ft__regex_alternatives(&regex, places);
  if (*regex.at) ft__regex_fail(&regex, "a ) without (");
  *matches = !regex.problem && ft__place_is(&places, regex.length);
  if (!regex.problem) return FT_OK;
  return ft__error(context, FT_ERROR_UNSUPPORTED, "the regular expression \"%.200s\" has %s, which is not supported",
                   pattern, regex.problem);
}

/* ---- which modules ---- */

/* What selects modules. The lists are adapter_config.json's: strings, arrays of strings, or objects of numbers by
   pattern; NULL where there is none. */
typedef struct ft__selection {
  const char *file; /* for messages */
  const ft_json *targets, *excluded, *saved, *layers, *layers_pattern, *ranks, *alphas;
  bool saves_head; /* and "classifier" and "score" */
} ft__selection;

/* Is the path, or that of a module around it, one that ends so? */
static bool ft__is_within(const char *path, const char *end) {
  size_t length = strlen(end);
  for (path = strstr(path, end); path && length; path = strstr(path + 1, end))
    if (path[length] == 0 || path[length] == '.') return true;
  return false;
}

static bool ft__is_saved(const ft__selection *selection, const char *path) {
  const ft_json *end;
  if (selection->saves_head && (ft__is_within(path, "classifier") || ft__is_within(path, "score"))) return true;
  for (end = selection->saved ? selection->saved->child : NULL; end; end = end->next)
    if (ft__is_within(path, end->string)) return true;
  return false;
}

/* PEFT's layer number of a path: the first number between dots that has two names before it, or one that matches
   layers_pattern. -1: none. */
static ft_status ft__layer_number(ft_context *context, const ft__selection *selection, const char *path, long *number) {
  const ft_json *patterns = selection->layers_pattern;
  const ft_json *pattern = patterns && patterns->type == FT_JSON_ARRAY ? patterns->child : patterns;
  bool any = !patterns || (patterns->type == FT_JSON_ARRAY && !patterns->child) ||
             (patterns->type == FT_JSON_STRING && !patterns->string_length);
  *number = -1;
  do {
    const char *dot;
    for (dot = strchr(path, '.'); dot; dot = strchr(dot + 1, '.')) {
      size_t digits = strspn(dot + 1, "0123456789");
      char before[256];
      bool matches = true;
      if (!digits || dot[1 + digits] != '.') continue;
      snprintf(before, sizeof before, "%.*s", (int)(dot - path), path);
      if (any)
        matches = strchr(before, '.') != NULL;
      else if (ft__regex_match(context, pattern->string, before, true, &matches) != FT_OK)
        return context->status;
      if (!matches) continue;
      *number = strtol(dot + 1, NULL, 10);
      return FT_OK;
    }
    pattern = any ? NULL : pattern->next;
  } while (pattern && patterns->type == FT_JSON_ARRAY);
  return FT_OK;
}

/* layers_to_transform: a number, or a list of them; none: all layers. */
static ft_status ft__in_layers(ft_context *context, const ft__selection *selection, const char *path, bool *in) {
  const ft_json *layers = selection->layers, *layer;
  long number;
  *in = !layers || (layers->type == FT_JSON_ARRAY && !layers->child);
  if (*in) return FT_OK;
  if (ft__layer_number(context, selection, path, &number) != FT_OK) return context->status;
  for (layer = layers->type == FT_JSON_ARRAY ? layers->child : layers; layer; layer = layer->next) {
    if (layer->is_integer && layer->integer == number) *in = true;
    if (layer == layers) break;
  }
  return FT_OK;
}

/* Does a list (names: the path itself, or its end behind a dot) or a string (a regular expression) select the path? */
static ft_status ft__listed(ft_context *context, const ft_json *list, const char *path, bool *exactly, bool *listed) {
  const ft_json *name;
  *exactly = *listed = false;
  if (!list) return FT_OK;
  if (list->type == FT_JSON_STRING) {
    *exactly = true;
    return ft__regex_match(context, list->string, path, false, listed);
  }
  for (name = list->child; name; name = name->next) {
    size_t length = strlen(path);
    if (strcmp(path, name->string) == 0) *exactly = *listed = true;
    if (length > name->string_length && path[length - name->string_length - 1] == '.' &&
        ft__ends_with(path, name->string))
      *listed = true;
  }
  return FT_OK;
}

static bool ft__same_text(const char *a, const char *b) { /* but for the case of letters */
  while (*a && (*a | 32) == (*b | 32)) ++a, ++b;
  return *a == *b;
}

/* Does the module at path get an update? */
static ft_status ft__is_target(ft_context *context, const ft__selection *selection, const char *path, bool is_linear,
                               bool *is_target) {
  bool exactly, found;
  *is_target = false;
  if (ft__listed(context, selection->excluded, path, &exactly, &found) != FT_OK) return context->status;
  if (found || ft__is_saved(selection, path)) return FT_OK;
  if (selection->targets->type == FT_JSON_STRING && ft__same_text(selection->targets->string, "all-linear")) {
    *is_target = is_linear;
    return FT_OK;
  }
  if (ft__listed(context, selection->targets, path, &exactly, &found) != FT_OK) return context->status;
  if (found && !exactly && ft__in_layers(context, selection, path, &found) != FT_OK) return context->status;
  if (found && !is_linear)
    return ft__error(context, FT_ERROR_UNSUPPORTED, "%s: the target %s is not a linear layer: it gets no update",
                     selection->file, path);
  *is_target = found;
  return FT_OK;
}

/* The number that rank_pattern or alpha_pattern gives a path: that of the first pattern that matches its end. */
static ft_status ft__pattern_number(ft_context *context, const ft_json *patterns, const char *path, double *number) {
  const ft_json *pattern;
  bool matches = false;
  for (pattern = patterns ? patterns->child : NULL; pattern && !matches; pattern = pattern->next) {
    if (ft__regex_match(context, pattern->key, path, true, &matches) != FT_OK) return context->status;
    if (matches) *number = pattern->number;
  }
  return FT_OK;
}

/* ---- parameters ---- */

FT_API int64_t ft_adapter_parameter_count(const ft_adapter *adapter) { return adapter ? adapter->parameter_count : 0; }
FT_API const ft_parameter *ft_adapter_parameter(const ft_adapter *adapter, int64_t index) {
  return &adapter->parameters[index];
}

FT_API int64_t ft_adapter_size(const ft_adapter *adapter) {
  int64_t i, size = 0;
  for (i = 0; i < ft_adapter_parameter_count(adapter); ++i) size += ft_tensor_count(adapter->parameters[i].tensor);
  return size;
}

/* The parameters of a model and then those of an adapter (or NULL), by their number; NULL: there are no more. Whatever
   works on "all that trains" walks this list. */
static const ft_parameter *ft__any_parameter(const ft_model *model, const ft_adapter *adapter, int64_t index) {
  if (index < ft_model_parameter_count(model)) return ft_model_parameter(model, index);
  index -= ft_model_parameter_count(model);
  return index < ft_adapter_parameter_count(adapter) ? ft_adapter_parameter(adapter, index) : NULL;
}

static const ft_parameter *ft__parameter_of(const ft_model *model, const ft_tensor *tensor) {
  int64_t i = 0;
  while (model->parameters[i].tensor != tensor) ++i;
  return &model->parameters[i];
}

typedef struct ft__adapter_builder { /* what making an adapter takes */
  ft_context *context;
  const ft_model *model;
  ft_adapter *adapter;
  ft__selection selection;
  int rank; /* where no pattern says otherwise */
  double alpha;
  bool rslora, dora, all_biases, target_biases; /* the last: those of the targets */
  ft_safetensors *file;                         /* NULL: it is made anew */
  const char *directory;
  uint64_t seed;
} ft__adapter_builder;

/* A module's path in an adapter's configuration and files; path has 256 bytes. */
static void ft__adapter_path(const ft_model *model, const ft_adapter *adapter, const ft__module *module, char *path) {
  const char *name = module->weight->name;
  if (adapter->inner && ft__in_base_model(model, name)) name += strlen(model->family->prefix);
  snprintf(path, 256, "%.*s", (int)(strlen(name) - strlen(".weight")), name);
}

/* The file's tensor base_model.model.PATH + suffix, or NULL. */
static const ft_safetensors_entry *ft__adapter_entry(const ft__adapter_builder *b, const char *path,
                                                     const char *suffix) {
  char name[400];
  snprintf(name, sizeof name, "base_model.model.%s%s", path, suffix);
  return ft_safetensors_find(b->file, name);
}

static bool ft__tensor_copy(ft_context *context, const ft_tensor *from, ft_tensor *to) {
  void *values = ft__allocate(context, ft__tensor_bytes(from));
  bool ok = values && ft_tensor_read(context, from, values) == FT_OK && ft_tensor_write(context, to, values) == FT_OK;
  ft__release(context, values);
  return ok;
}

/* Fills a new tensor with uniform numbers in [-limit, limit). */
static bool ft__write_uniform(ft__adapter_builder *b, ft_tensor *tensor, double limit) {
  uint32_t site = (uint32_t)b->adapter->parameter_count;
  int64_t i, count = ft_tensor_count(tensor);
  ft_real *values = (ft_real *)ft__allocate(b->context, ft__tensor_bytes(tensor));
  bool ok = values != NULL;
  for (i = 0; ok && i < count; ++i)
    values[i] = (ft_real)(limit * (2 * ft__random_uniform(b->seed, site, (uint64_t)i) - 1));
  ok = ok && ft_tensor_write(b->context, tensor, values) == FT_OK;
  ft__release(b->context, values);
  return ok;
}

/* Adds a parameter of the module at path. Its values are the file's; without a file those of `from`, or zero, or if
   `limit` is not 0 uniform in (-limit, limit). NULL after an error. */
static ft_tensor *ft__adapter_add(ft__adapter_builder *b, const ft__module *module, const char *path,
                                  const char *suffix, int dimensions, int64_t rows, int64_t columns,
                                  const ft_tensor *from, double limit) {
  ft_context *context = b->context;
  ft_adapter *adapter = b->adapter;
  const ft_safetensors_entry *entry;
  ft_parameter *parameter;
  char full[300];
  int64_t shape[2];
  shape[0] = rows, shape[1] = columns;
  snprintf(full, sizeof full, "base_model.model.%s", path);
  parameter = ft__list_parameter(context, &adapter->parameters, &adapter->parameter_count, &adapter->parameter_capacity,
                                 full, suffix, dimensions, shape);
  if (!parameter) return NULL;
  parameter->decays = !ft__ends_with(suffix, "bias") && module->kind != FT__NORM;
  parameter->layer = ft__parameter_of(b->model, module->weight)->layer;
  if (b->file) {
    if (!(entry = ft__adapter_entry(b, path, suffix))) {
      ft__error(context, FT_ERROR_FORMAT, "%s: adapter_model.safetensors lacks %s", b->directory, parameter->name);
      return NULL;
    }
    return ft__load_parameter(context, b->file, parameter, entry, b->directory) == FT_OK ? parameter->tensor : NULL;
  }
  if (b->model->shapes_only) return parameter->tensor;
  if (ft__tensor_allocate(context, parameter->tensor) != FT_OK ||
      (from && !ft__tensor_copy(context, from, parameter->tensor)))
    return NULL;
  if (limit != 0 && !ft__write_uniform(b, parameter->tensor, limit)) return NULL;
  return parameter->tensor;
}

/* DoRA's m at the start: the lengths of the rows of W [out, in]. */
static ft_status ft__write_row_norms(ft_context *context, const ft_tensor *weight, ft_tensor *norms) {
  int64_t i, j, rows = weight->shape[0], columns = weight->shape[1];
  ft_real *values = (ft_real *)ft__allocate(context, ft__tensor_bytes(weight));
  ft_status status = values ? ft_tensor_read(context, weight, values) : context->status;
  for (i = 0; status == FT_OK && i < rows; ++i) {
    double sum = 0;
    for (j = 0; j < columns; ++j) sum += (double)values[i * columns + j] * (double)values[i * columns + j];
    values[i] = (ft_real)sqrt(sum); /* in place: row i - 1 and those before it are done with */
  }
  if (status == FT_OK) status = ft_tensor_write(context, norms, values);
  ft__release(context, values);
  return status;
}

/* Gives a module its low-rank update. */
static bool ft__adapt_linear(ft__adapter_builder *b, const ft__module *module, const char *path) {
  ft__adaptation *change = &b->adapter->modules[module->number];
  int64_t out = module->weight->shape[0], in = module->weight->shape[1];
  double rank = b->rank, alpha = b->alpha;
  if (ft__pattern_number(b->context, b->selection.ranks, path, &rank) != FT_OK ||
      ft__pattern_number(b->context, b->selection.alphas, path, &alpha) != FT_OK)
    return false;
  if (!(rank >= 1 && rank <= FT__MAX_RANK && rank == floor(rank))) {
    ft__error(b->context, FT_ERROR_ARGUMENT, "%s: the rank of %s is %g: it must be a whole number from 1 to %d",
              b->selection.file, path, rank, FT__MAX_RANK);
    return false;
  }
  change->scale = alpha / (b->rslora ? sqrt(rank) : rank);
  change->a = ft__adapter_add(b, module, path, ".lora_A.weight", 2, (int64_t)rank, in, NULL, 1 / sqrt((double)in));
  if (change->a) change->b = ft__adapter_add(b, module, path, ".lora_B.weight", 2, out, (int64_t)rank, NULL, 0);
  if (!change->b || !b->dora) return change->b != NULL;
  change->magnitude = ft__adapter_add(b, module, path, ".lora_magnitude_vector", 1, out, 0, NULL, 0);
  return change->magnitude && (b->file || b->model->shapes_only ||
                               ft__write_row_norms(b->context, module->weight, change->magnitude) == FT_OK);
}

/* Did the model's files lack the module, so that it is new and random? Without a copy of it nobody could use the
   adapter. Of a model that is new as a whole this does not help. */
static bool ft__is_new(const ft_model *model, const ft__module *module) {
  return ft__parameter_of(model, model->words.weight)->loaded && !ft__parameter_of(model, module->weight)->loaded;
}

/* A copy of a module's bias, or of what stands in its place. */
static bool ft__adapt_bias(ft__adapter_builder *b, const ft__module *module, const char *path, const char *suffix) {
  ft__adaptation *change = &b->adapter->modules[module->number];
  if (module->bias)
    change->bias = ft__adapter_add(b, module, path, suffix, 1, module->bias->shape[0], 0, module->bias, 0);
  return !module->bias || change->bias;
}

/* Decides what the adapter does to a module, and makes or reads its parameters. */
static bool ft__adapt_module(ft__adapter_builder *b, const ft__module *module) {
  ft__adaptation *change = &b->adapter->modules[module->number];
  const ft_tensor *weight = module->weight;
  bool is_target, is_saved, is_tied = b->model->config.task == FT_TASK_MASKED && b->model->has_head;
  char path[256];
  ft__adapter_path(b->model, b->adapter, module, path);
  is_saved = ft__is_saved(&b->selection, path);
  if (is_saved && is_tied && (module == &b->model->words || !ft__in_base_model(b->model, weight->name))) {
    ft__error(b->context, FT_ERROR_UNSUPPORTED,
              "%s: %s is tied to the word embeddings: it cannot be in modules_to_save", b->selection.file, path);
    return false;
  }
  if (is_saved || (!b->file && ft__is_new(b->model, module))) {
    change->weight = ft__adapter_add(b, module, path, ".weight", weight->dimensions, weight->shape[0],
                                     weight->dimensions > 1 ? weight->shape[1] : 0, weight, 0);
    return change->weight && ft__adapt_bias(b, module, path, ".bias");
  }
  if (ft__is_target(b->context, &b->selection, path, module->kind == FT__LINEAR, &is_target) != FT_OK) return false;
  /* An encoder's pooler stands outside what an adapter made with a head knows. */
  if (is_target && b->file && !b->model->has_head && module == &b->model->dense &&
      !ft__adapter_entry(b, path, ".lora_A.weight"))
    is_target = false;
  if (is_target && !ft__adapt_linear(b, module, path)) return false;
  if (!b->all_biases && !(b->target_biases && is_target)) return true;
  return ft__adapt_bias(b, module, path, is_target ? ".base_layer.bias" : ".bias");
}

/* ---- adapter_config.json ---- */

enum { FT__MAX_NAMES = 4096, FT__MAX_PATTERNS = 256 };

/* Is an option of PEFT switched on? Numbers are settings of something that a switch turns on. */
static bool ft__is_active(const ft_json *member) {
  return member->type == FT_JSON_STRING || member->count > 0 || (member->type == FT_JSON_BOOLEAN && member->boolean);
}

/* Refuses options that would change the result and are not known here. */
static bool ft__check_peft_options(ft_context *context, const ft_json *json, const char *file) {
  static const char *const known[] = {
      "peft_type",         "task_type",      "auto_mapping",        "base_model_name_or_path",
      "revision",          "inference_mode", "peft_version",        "r",
      "lora_alpha",        "lora_dropout",   "target_modules",      "exclude_modules",
      "modules_to_save",   "bias",           "use_rslora",          "use_dora",
      "rank_pattern",      "alpha_pattern",  "layers_to_transform", "layers_pattern",
      "fan_in_fan_out", /* nn.Linear has none of it, and PEFT turns it off */
      "init_lora_weights", "megatron_core",  "ensure_weight_tying", "runtime_config",
      "loftq_config",      "eva_config",     "corda_config",        "lora_ga_config" /* of init_lora_weights */};
  static const char *const starts[] = {"gaussian", "eva", "orthogonal"}; /* others change the base model's weights */
  const ft_json *member, *start = ft_json_get(json, "init_lora_weights");
  size_t i;
  for (member = json->child; member; member = member->next) {
    for (i = 0; i < sizeof known / sizeof known[0] && strcmp(member->key, known[i]) != 0;) ++i;
    if (i < sizeof known / sizeof known[0] || !ft__is_active(member)) continue;
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s: the option \"%.100s\" is not supported", file, member->key);
    return false;
  }
  if (!start || start->type != FT_JSON_STRING) return true;
  for (i = 0; i < sizeof starts / sizeof starts[0]; ++i)
    if (strcmp(start->string, starts[i]) == 0) return true;
  ft__error(context, FT_ERROR_UNSUPPORTED, "%s: init_lora_weights \"%.100s\" is not supported", file, start->string);
  return false;
}

/* A member that is a list of `type`, or with `single` one such value; *list NULL if it is absent or null. */
static bool ft__config_list(ft_context *context, const ft_json *json, const char *file, const char *key,
                            ft_json_type container, ft_json_type type, bool single, int64_t limit,
                            const ft_json **list) {
  const ft_json *member = ft__config_member(context, json, file, key, false), *child;
  bool ok = !member || (single && member->type == type) || (member->type == container && member->count <= limit);
  *list = member;
  for (child = ok && member && member->type == container ? member->child : NULL; child; child = child->next)
    ok = ok && child->type == type;
  if (ok) return true;
  ft__error(context, FT_ERROR_FORMAT, "%s: \"%s\" must be a list of at most %lld %s", file, key, (long long)limit,
            type == FT_JSON_STRING ? "strings" : "numbers");
  return false;
}

static bool ft__config_flag(const ft_json *json, const char *key) {
  const ft_json *member = ft_json_get(json, key);
  return member && member->type == FT_JSON_BOOLEAN && member->boolean;
}

static bool ft__text_is(const ft_json *json, const char *key, const char *text) {
  const ft_json *member = ft_json_get(json, key);
  return member && member->type == FT_JSON_STRING && strcmp(member->string, text) == 0;
}

/* PEFT adds "classifier" and "score" to modules_to_save for these tasks. */
static bool ft__saves_head(const ft_json *config) {
  return ft__text_is(config, "task_type", "SEQ_CLS") || ft__text_is(config, "task_type", "TOKEN_CLS");
}

static bool ft__adapter_lists(ft_context *context, const ft_json *json, ft__selection *s) {
  const ft_json_type array = FT_JSON_ARRAY, text = FT_JSON_STRING, number = FT_JSON_NUMBER;
  const char *file = s->file;
  return ft__config_list(context, json, file, "target_modules", array, text, true, FT__MAX_NAMES, &s->targets) &&
         ft__config_list(context, json, file, "exclude_modules", array, text, true, FT__MAX_NAMES, &s->excluded) &&
         ft__config_list(context, json, file, "modules_to_save", array, text, false, FT__MAX_NAMES, &s->saved) &&
         ft__config_list(context, json, file, "layers_to_transform", array, number, true, FT__MAX_NAMES, &s->layers) &&
         ft__config_list(context, json, file, "layers_pattern", array, text, true, FT__MAX_PATTERNS,
                         &s->layers_pattern) &&
         ft__config_list(context, json, file, "rank_pattern", FT_JSON_OBJECT, number, false, FT__MAX_PATTERNS,
                         &s->ranks) &&
         ft__config_list(context, json, file, "alpha_pattern", FT_JSON_OBJECT, number, false, FT__MAX_PATTERNS,
                         &s->alphas);
}

static bool ft__adapter_config(ft__adapter_builder *b) {
  ft_context *context = b->context;
  ft__selection *selection = &b->selection;
  const ft_json *json = b->adapter->config;
  const char *file = selection->file;
  if (!ft__text_is(json, "peft_type", "LORA")) {
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s: \"peft_type\" is not \"LORA\"", file);
    return false;
  }
  b->all_biases = ft__text_is(json, "bias", "all");
  b->target_biases = ft__text_is(json, "bias", "lora_only");
  if ((b->all_biases && b->model->config.task == FT_TASK_MASKED) ||
      (!b->all_biases && !b->target_biases && !ft__text_is(json, "bias", "none") && ft_json_get(json, "bias"))) {
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s: \"bias\" is none, lora_only or, but for masked language models, all",
              file);
    return false;
  }
  if (!ft__check_peft_options(context, json, file) || !ft__adapter_lists(context, json, selection) ||
      !ft__config_optional_size(context, json, file, "r", FT__MAX_RANK, 8, &b->rank) ||
      !ft__config_number(context, json, file, "lora_alpha", -1e6, 1e6, 8, &b->alpha) ||
      !ft__config_number(context, json, file, "lora_dropout", 0, 0.999, 0, &b->adapter->dropout))
    return false;
  b->rslora = ft__config_flag(json, "use_rslora");
  b->dora = ft__config_flag(json, "use_dora");
  selection->saves_head = ft__saves_head(json);
  if (selection->targets) return true;
  ft__error(context, FT_ERROR_FORMAT, "%s: \"target_modules\" is missing", file);
  return false;
}

/* Do the file's names lack the base model's prefix? */
static bool ft__is_inner(const ft_model *model, const ft_safetensors *file) {
  static const char start[] = "base_model.model.";
  int64_t i;
  for (i = 0; i < ft_safetensors_count(file); ++i) {
    const char *name = ft_safetensors_at(file, i)->name;
    if (strncmp(name, start, sizeof start - 1) == 0 && ft__in_base_model(model, name + sizeof start - 1)) return false;
  }
  return true;
}

/* The file's tensors that no parameter took, such as what PEFT writes twice, are for the log. */
static void ft__log_unused(const ft__adapter_builder *b) {
  int64_t unused = ft_safetensors_count(b->file) - b->adapter->parameter_count;
  if (unused > 0)
    ft__log(b->context, FT_LOG_INFO, "%s: %lld tensors of adapter_model.safetensors are not used by this model",
            b->directory, (long long)unused);
}

/* A name in modules_to_save without effect is more likely misspelt than meant; PEFT's names of heads are not. */
static bool ft__check_saved(const ft__adapter_builder *b) {
  const ft_json *name = b->selection.saved ? b->selection.saved->child : NULL;
  int64_t i;
  char path[256];
  for (; name; name = name->next) {
    bool found = strcmp(name->string, "classifier") == 0 || strcmp(name->string, "score") == 0;
    for (i = 0; i < b->model->module_count && !found; ++i) {
      ft__adapter_path(b->model, b->adapter, b->model->modules[i], path);
      found = ft__is_within(path, name->string);
    }
    if (found) continue;
    ft__error(b->context, FT_ERROR_ARGUMENT, "no module of the model has the name \"%.100s\" in modules_to_save",
              name->string);
    return false;
  }
  return true;
}

/* Makes an adapter by a configuration, which becomes its; its values are the file's, or with file NULL new. */
static ft_adapter *ft__adapter_build(ft_context *context, const ft_model *model, ft_json *config, const char *name,
                                     ft_safetensors *file, const char *directory, uint64_t seed) {
  ft__adapter_builder b;
  ft_adapter *adapter = (ft_adapter *)ft__allocate_zero(context, sizeof *adapter);
  int64_t i;
  bool ok, any = false;
  if (!adapter) {
    ft_json_free(config);
    return NULL;
  }
  memset(&b, 0, sizeof b);
  b.context = context, b.model = model, b.adapter = adapter, b.file = file, b.directory = directory, b.seed = seed;
  b.selection.file = name;
  adapter->owner = context;
  adapter->config = config;
  adapter->inner = file ? ft__is_inner(model, file) : !model->has_head;
  adapter->module_count = model->module_count;
  adapter->modules = (ft__adaptation *)ft__allocate_zero(context, (size_t)model->module_count * sizeof(ft__adaptation));
  ok = adapter->modules && ft__adapter_config(&b) && (file || ft__check_saved(&b));
  for (i = 0; ok && i < model->module_count; ++i) {
    ok = ft__adapt_module(&b, model->modules[i]);
    any = any || adapter->modules[i].a;
  }
  if (ok && !any)
    ok = ft__error(context, FT_ERROR_ARGUMENT, "%s: no linear layer of the model is a target", name) == FT_OK;
  if (ok && file) ft__log_unused(&b);
  if (ok) return adapter;
  ft_adapter_free(adapter);
  return NULL;
}

FT_API void ft_adapter_free(ft_adapter *adapter) {
  int64_t i;
  if (!adapter) return;
  for (i = 0; adapter->modules && i < adapter->module_count; ++i) {
    ft_tensor_free(adapter->modules[i].kept_weight);
    ft_tensor_free(adapter->modules[i].kept_bias);
  }
  ft__free_parameters(adapter->owner, adapter->parameters, adapter->parameter_count);
  ft_json_free(adapter->config);
  ft__release(adapter->owner, adapter->modules);
  ft__release(adapter->owner, adapter);
}

/* ---- making one by options: they are written as a configuration ---- */

/* "a,b" as ["a", "b"] */
static void ft__append_names(ft__string *out, const char *names) {
  ft__append(out, "[");
  for (;; ++names) {
    size_t length = strcspn(names, ",");
    ft__append_json_string(out, names, length);
    names += length;
    if (!*names) break;
    ft__append(out, ", ");
  }
  ft__append(out, "]");
}

/* "*.query,*.value" as the regular expression ".*\.query|.*\.value" */
static void ft__append_globs(ft__string *out, const char *globs) {
  ft__string regex;
  memset(&regex, 0, sizeof regex);
  regex.context = out->context;
  for (; *globs; ++globs) {
    if (*globs == '*' || *globs == '?')
      ft__append(&regex, *globs == '*' ? ".*" : ".");
    else if (*globs == '.' || *globs == ',')
      ft__append(&regex, *globs == '.' ? "\\." : "|");
    else
      ft__append_bytes(&regex, globs, 1);
  }
  out->failed = out->failed || regex.failed;
  if (!regex.failed) ft__append_json_string(out, regex.text, (size_t)regex.length);
  ft__string_free(&regex);
}

/* The last part of a path: "query" */
static const char *ft__last_name(const char *path) {
  const char *dot = strrchr(path, '.');
  return dot ? dot + 1 : path;
}

static const char *ft__task_type(const ft_model *model) {
  if (!model->has_head) return "\"FEATURE_EXTRACTION\"";
  return model->config.task == FT_TASK_MASKED   ? "null"
         : model->config.task == FT_TASK_TOKENS ? "\"TOKEN_CLS\""
                                                : "\"SEQ_CLS\"";
}

static void ft__append_options(ft__string *out, const ft_model *model, const ft_adapter_options *options) {
  const char *targets = options->targets;
  double alpha = options->alpha != 0 ? options->alpha : 16;
  char usual[512];
  snprintf(usual, sizeof usual, "%.200s,%.200s", ft__last_name(model->family->query),
           ft__last_name(model->family->value));
  if (!targets) targets = usual;
  ft__append_format(out, "{\"peft_type\": \"LORA\", \"task_type\": %s, \"r\": %d, \"use_rslora\": %s, \"use_dora\": %s",
                    ft__task_type(model), options->rank ? options->rank : 8, options->rslora ? "true" : "false",
                    options->dora ? "true" : "false");
  ft__append(out, ", \"bias\": \"none\", \"lora_alpha\": ");
  if (alpha == floor(alpha) && fabs(alpha) < 1e9) /* as PEFT writes it */
    ft__append_format(out, "%.0f", alpha);
  else
    ft__append_number(out, alpha);
  ft__append(out, ", \"lora_dropout\": ");
  ft__append_number(out, options->dropout > 0 ? options->dropout : options->dropout < 0 ? 0 : 0.1);
  ft__append(out, ", \"target_modules\": ");
  if (*targets == '*')
    ft__append_globs(out, targets);
  else if (strpbrk(targets, "*+?()[]{}|\\^$") || ft__same_text(targets, "all-linear"))
    ft__append_json_string(out, targets, strlen(targets));
  else
    ft__append_names(out, targets);
  if (options->modules_to_save) {
    ft__append(out, ", \"modules_to_save\": ");
    ft__append_names(out, options->modules_to_save);
  }
  ft__append(out, "}");
}

FT_API ft_adapter *ft_adapter_create(ft_context *context, const ft_model *model, const ft_adapter_options *options) {
  static const char name[] = "ft_adapter_options";
  ft_adapter_options none;
  ft_adapter *adapter = NULL;
  ft_json *config = NULL;
  ft__string text;
  if (!model) return (ft_adapter *)ft__null_argument(context, "ft_adapter_create needs a model");
  memset(&none, 0, sizeof none);
  memset(&text, 0, sizeof text);
  if (!options) options = &none;
  text.context = context;
  ft__append_options(&text, model, options);
  if (!text.failed) config = ft_json_parse(context, text.text, (size_t)text.length, name);
  if (config) adapter = ft__adapter_build(context, model, config, name, NULL, NULL, options->seed ? options->seed : 42);
  ft__string_free(&text);
  return adapter;
}

/* ---- reading and writing PEFT directories ---- */

static ft_json *ft__adapter_json(ft_context *context, const char *directory) {
  char *path = ft__path_join(context, directory, "adapter_config.json");
  ft_json *json = path ? ft_json_read(context, path) : NULL;
  ft__release(context, path);
  return json;
}

static ft_safetensors *ft__adapter_file(ft_context *context, const char *directory) {
  char *path = ft__path_join(context, directory, "adapter_model.safetensors");
  char *pickle = ft__path_join(context, directory, "adapter_model.bin");
  ft_safetensors *file = NULL;
  if (path && pickle && !ft__file_exists(path) && ft__file_exists(pickle))
    ft__error(context, FT_ERROR_UNSUPPORTED, "%s is a pickle: load and save the adapter with a newer PEFT", pickle);
  else if (path && pickle)
    file = ft_safetensors_open(context, path);
  ft__release(context, path);
  ft__release(context, pickle);
  return file;
}

FT_API ft_adapter *ft_adapter_load(ft_context *context, const ft_model *model, const char *directory) {
  ft_adapter *adapter = NULL;
  ft_json *config = NULL;
  ft_safetensors *file;
  char *name;
  if (!model || !directory)
    return (ft_adapter *)ft__null_argument(context, "ft_adapter_load needs a model and a directory");
  name = ft__path_join(context, directory, "adapter_config.json");
  file = name ? ft__adapter_file(context, directory) : NULL;
  if (file) config = ft_json_read(context, name);
  if (config) adapter = ft__adapter_build(context, model, config, name, file, directory, 0);
  ft_safetensors_close(file);
  ft__release(context, name);
  return adapter;
}

/* The paths of the modules that have an update; or of copies that no other name in modules_to_save stands for. */
static int64_t ft__append_paths(ft__string *out, const ft_model *model, const ft_adapter *adapter, bool updates,
                                const ft__selection *but) {
  char path[256];
  int64_t i, count = 0;
  for (i = 0; i < model->module_count; ++i) {
    ft__adapter_path(model, adapter, model->modules[i], path);
    if (updates ? !adapter->modules[i].a : !adapter->modules[i].weight || ft__is_saved(but, path)) continue;
    if (count++) ft__append(out, ", ");
    ft__append_json_string(out, path, strlen(path));
  }
  return count;
}

/* modules_to_save: what the configuration names, what was new in the model, and the names that PEFT has for heads. */
static void ft__append_saved(ft__string *out, const ft_model *model, const ft_adapter *adapter) {
  const ft_json *saved = ft_json_get(adapter->config, "modules_to_save"), *name;
  bool names_head = false;
  ft__selection selection;
  int64_t count;
  memset(&selection, 0, sizeof selection);
  selection.saved = saved && saved->type == FT_JSON_ARRAY ? saved : NULL;
  selection.saves_head = ft__saves_head(adapter->config);
  ft__append(out, "[");
  count = ft__append_paths(out, model, adapter, false, &selection);
  for (name = selection.saved ? saved->child : NULL; name; name = name->next) {
    ft__append(out, count++ ? ", " : "");
    ft__append_json_string(out, name->string, name->string_length);
    names_head = names_head || strcmp(name->string, "classifier") == 0;
  }
  if (selection.saves_head && !names_head) ft__append_format(out, "%s\"classifier\", \"score\"", count ? ", " : "");
  ft__append(out, "]");
}

/* adapter_config.json: what was read or made, with what saving decides replaced. PEFT warns about keys that it does not
   know, so none is added. */
static void ft__append_adapter_config(ft__string *out, const ft_model *model, const ft_adapter *adapter,
                                      const char *base) {
  const ft_json *member, *targets = ft_json_get(adapter->config, "target_modules");
  bool all = targets->type == FT_JSON_STRING && ft__same_text(targets->string, "all-linear");
  ft__append(out, "{\n");
  for (member = adapter->config->child; member; member = member->next) {
    static const char *const replaced[] = {"base_model_name_or_path", "inference_mode", "modules_to_save",
                                           "target_modules"};
    int i = 0;
    while (i < 4 && strcmp(member->key, replaced[i]) != 0) ++i;
    if (i < 4) continue;
    ft__append(out, "  ");
    ft__append_json_string(out, member->key, member->key_length);
    ft__append(out, ": ");
    ft__append_json(out, member, -1);
    ft__append(out, ",\n");
  }
  ft__append(out, "  \"target_modules\": ");
  if (all) { /* which means other layers to who does not know the head */
    ft__append(out, "[");
    ft__append_paths(out, model, adapter, true, NULL);
    ft__append(out, "]");
  } else {
    ft__append_json(out, targets, -1);
  }
  ft__append(out, ",\n  \"modules_to_save\": ");
  ft__append_saved(out, model, adapter);
  ft__append(out, ",\n  \"base_model_name_or_path\": ");
  if (base)
    ft__append_json_string(out, base, strlen(base));
  else
    ft__append(out, "null");
  ft__append(out, ",\n  \"inference_mode\": true\n}\n");
}

/* PEFT has no place for labels, and a config.json would make transformers take the directory for a whole model. So what
   config.json says of the head stands in the weights' metadata, which others do not read. */
FT_API ft_status ft_adapter_save(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                 const ft_tokenizer *tokenizer, const char *base, const char *directory) {
  const char *metadata[4] = {"format", "pt", "config", NULL};
  ft__string task, config;
  ft_status status;
  char *path;
  if (!model || !adapter || !directory)
    return ft__null_status(context, "ft_adapter_save needs a model, an adapter and a directory");
  if (model->shapes_only || adapter->module_count != model->module_count)
    return ft__error(context, FT_ERROR_ARGUMENT, "the model was loaded without weights, or is not the adapter's");
  memset(&task, 0, sizeof task);
  memset(&config, 0, sizeof config);
  task.context = config.context = context;
  ft__append(&task, "{\n");
  ft__append_task(&task, model);
  ft__append(&task, "}\n");
  ft__append_adapter_config(&config, model, adapter, base);
  metadata[3] = task.text;
  path = ft__path_join(context, directory, "adapter_config.json");
  status = task.failed || config.failed || !path ? FT_ERROR_MEMORY : ft__directory_create(context, directory);
  if (status == FT_OK)
    status = ft__save_parameters(context, directory, "adapter_model.safetensors", adapter->parameters,
                                 adapter->parameter_count, 0, metadata, 4);
  if (status == FT_OK) status = ft__file_write(context, path, config.text, (size_t)config.length);
  if (status == FT_OK && tokenizer) status = ft_tokenizer_save(context, tokenizer, directory);
  ft__release(context, path);
  ft__string_free(&config);
  ft__string_free(&task);
  return status;
}

/* ---- the model that an adapter belongs to ---- */

typedef struct ft__adapter_base {
  ft_adapter_base visible;
  ft_context *owner;
  ft_json *config, *task;
  char **label_names; /* [visible.options.labels] */
} ft__adapter_base;

FT_API void ft_adapter_base_free(ft_adapter_base *base) {
  ft__adapter_base *whole = (ft__adapter_base *)base;
  int i;
  if (!whole) return;
  for (i = 0; whole->label_names && i < base->options.labels; ++i) ft__release(whole->owner, whole->label_names[i]);
  ft__release(whole->owner, whole->label_names);
  ft_json_free(whole->config);
  ft_json_free(whole->task);
  ft__release(whole->owner, whole);
}

/* By the metadata that ft_adapter_save writes. */
static bool ft__base_from_task(ft__adapter_base *base, const char *directory) {
  ft_model_options *options = &base->visible.options;
  const ft_json *names = ft_json_get(base->task, "id2label"), *size = ft_json_get(base->task, "head_size");
  const ft_json *activation = ft_json_get(base->task, "head_activation");
  if (ft__text_is(base->config, "task_type", "FEATURE_EXTRACTION")) options->encoder_only = true;
  if (names && names->type == FT_JSON_OBJECT && names->count > 0 && names->count <= FT__MAX_LABELS) {
    base->label_names = (char **)ft__allocate_zero(base->owner, (size_t)names->count * sizeof(char *));
    if (!base->label_names) return false;
    options->labels = (int)names->count;
    options->label_names = (const char *const *)base->label_names;
    if (!ft__config_label_names(base->owner, names, directory, options->labels, base->label_names)) return false;
  }
  options->task = ft__config_task(base->task, options->labels);
  if (ft__ends_with(ft__config_architecture(base->task), "ForMaskedLM")) options->task = FT_TASK_MASKED;
  if (size && size->is_integer && size->integer > 0 && size->integer <= 1 << 16)
    options->head_size = (int)size->integer;
  if (activation && activation->type == FT_JSON_STRING)
    ft_activation_parse(activation->string, &options->head_activation);
  return true;
}

/* By the head's last layer, as others write it: how many rows has it? */
static void ft__base_from_tensors(ft__adapter_base *base, const ft_safetensors *file) {
  static const char *const names[] = {"base_model.model.classifier.weight",
                                      "base_model.model.classifier.out_proj.weight"};
  ft_model_options *options = &base->visible.options;
  int i;
  if (ft__text_is(base->config, "task_type", "TOKEN_CLS")) options->task = FT_TASK_TOKENS;
  if (ft__text_is(base->config, "task_type", "FEATURE_EXTRACTION")) options->encoder_only = true;
  for (i = 0; i < 2; ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_find(file, names[i]);
    if (entry && entry->dimensions == 2 && entry->shape[0] > 0 && entry->shape[0] <= FT__MAX_LABELS)
      options->labels = (int)entry->shape[0];
  }
}

FT_API ft_adapter_base *ft_adapter_base_read(ft_context *context, const char *directory) {
  ft__adapter_base *base;
  ft_safetensors *file = NULL;
  const ft_json *name;
  const char *task;
  bool ok;
  if (!directory) return (ft_adapter_base *)ft__null_argument(context, "ft_adapter_base_read needs a directory");
  if (!(base = (ft__adapter_base *)ft__allocate_zero(context, sizeof *base))) return NULL;
  base->owner = context;
  ok = (base->config = ft__adapter_json(context, directory)) && (file = ft__adapter_file(context, directory));
  name = ft_json_get(base->config, "base_model_name_or_path");
  if (name && name->type == FT_JSON_STRING && name->string_length) base->visible.model = name->string;
  task = ok ? ft_safetensors_metadata(file, "config") : NULL;
  if (task)
    ok = (base->task = ft_json_parse(context, task, strlen(task), directory)) && ft__base_from_task(base, directory);
  else if (ok)
    ft__base_from_tensors(base, file);
  ft_safetensors_close(file);
  if (ok) return &base->visible;
  ft_adapter_base_free(&base->visible);
  return NULL;
}

/* ---- running and merging ---- */

/* g of DoRA [out], m over the norm of the rows of W + s B A; the norm is a constant. */
static ft_tensor *ft__dora_factor(ft_context *context, ft_tensor *weight, const ft__adaptation *change) {
  ft_tensor *norms = ft__temporary_1d(context, FT_F32, weight->shape[0]), *merged, *squares;
  ft__arena_mark mark = ft__arena_here(&context->backend_arena);
  if (!norms) return NULL;
  ft_no_grad_begin(context);
  merged = ft_add(context, weight, ft_scale(context, ft_matmul(context, change->b, change->a), change->scale));
  squares = ft_sum(context, ft_multiply(context, merged, merged), 1);
  if (squares) context->backend->unary(context, FT_SQRT, norms->shape[0], ft__data(squares), ft__out(norms));
  ft_no_grad_end(context);
  ft__arena_return(&context->backend_arena, mark);
  return squares ? ft_divide(context, change->magnitude, norms) : NULL;
}

static ft_tensor *ft__adapted_linear(ft_context *context, ft_tensor *x, const ft__module *module,
                                     const ft__adaptation *change, ft_unary activation, double dropout, uint32_t site) {
  ft_tensor *dropped = ft_dropout(context, x, dropout, site), *low, *y, *rest;
  low = ft_scale(context, ft_linear(context, dropped, change->a, NULL, FT_IDENTITY), change->scale);
  if (!low) return NULL;
  if (!change->magnitude)
    return ft_linear_low_rank(context, x, module->weight, module->bias, low, change->b, activation);
  y = ft_linear_low_rank(context, dropped, module->weight, NULL, low, change->b, FT_IDENTITY);
  y = ft_multiply(context, y, ft__dora_factor(context, module->weight, change));
  rest = dropped == x ? module->bias
                      : ft_linear(context, ft_subtract(context, x, dropped), module->weight, module->bias, FT_IDENTITY);
  y = ft_add(context, y, rest);
  return activation == FT_IDENTITY ? y : ft_activate(context, activation, y);
}

/* w [out, in] = g (w + s B A) */
static void ft__merge_values(const ft__adaptation *change, int64_t out, int64_t in, const ft_real *a, const ft_real *b,
                             const ft_real *magnitude, double *row, ft_real *w) {
  int64_t i, j, k, rank = change->a->shape[0];
  for (i = 0; i < out; ++i, w += in) {
    double squares = 0, factor = 1;
    for (j = 0; j < in; ++j) row[j] = (double)w[j];
    for (k = 0; k < rank; ++k) {
      double scaled = change->scale * (double)b[i * rank + k];
      for (j = 0; j < in; ++j) row[j] += scaled * (double)a[k * in + j];
    }
    for (j = 0; j < in; ++j) squares += row[j] * row[j];
    if (magnitude) factor = (double)magnitude[i] / sqrt(squares);
    for (j = 0; j < in; ++j) w[j] = (ft_real)(factor * row[j]);
  }
}

/* All values of a tensor (NULL: of none); the caller releases them. */
static ft_real *ft__values_of(ft_context *context, const ft_tensor *tensor) {
  ft_real *values = tensor ? (ft_real *)ft__allocate(context, ft__tensor_bytes(tensor)) : NULL;
  if (!values || ft_tensor_read(context, tensor, values) == FT_OK) return values;
  ft__release(context, values);
  return NULL;
}

/* Keeps a copy of `own` and puts `other` in its place. */
static bool ft__merge_copy(ft_context *context, ft_tensor *own, const ft_tensor *other, ft_tensor **kept) {
  if (!own || (!other && own->dimensions == 1)) return true;
  *kept = ft_tensor_create(context, FT_F32, own->dimensions, own->shape);
  return *kept && ft__tensor_copy(context, own, *kept) && (!other || ft__tensor_copy(context, other, own));
}

static bool ft__merge_module(ft_context *context, const ft__module *module, ft__adaptation *change) {
  ft_tensor *weight = module->weight;
  ft_real *a, *b, *magnitude, *values;
  double *row;
  bool ok = (!change->bias || ft__merge_copy(context, module->bias, change->bias, &change->kept_bias)) &&
            (!(change->weight || change->a) || ft__merge_copy(context, weight, change->weight, &change->kept_weight));
  if (!ok || !change->a) return ok;
  a = ft__values_of(context, change->a);
  b = ft__values_of(context, change->b);
  magnitude = ft__values_of(context, change->magnitude);
  values = ft__values_of(context, weight);
  row = (double *)ft__allocate(context, (size_t)weight->shape[1] * sizeof *row);
  ok = a && b && values && row && (magnitude || !change->magnitude);
  if (ok) {
    ft__merge_values(change, weight->shape[0], weight->shape[1], a, b, magnitude, row, values);
    ok = ft_tensor_write(context, weight, values) == FT_OK;
  }
  ft__release(context, a), ft__release(context, b), ft__release(context, magnitude);
  ft__release(context, values), ft__release(context, row);
  return ok;
}

static bool ft__unmerge_tensor(ft_context *context, ft_tensor *own, ft_tensor **kept) {
  bool ok = !*kept || ft__tensor_copy(context, *kept, own);
  ft_tensor_free(*kept);
  *kept = NULL;
  return ok;
}

static bool ft__unmerge(ft_context *context, ft_model *model, ft_adapter *adapter) {
  int64_t i;
  bool ok = true;
  for (i = 0; i < model->module_count; ++i) {
    ft__adaptation *change = &adapter->modules[i];
    ok = ft__unmerge_tensor(context, model->modules[i]->weight, &change->kept_weight) && ok;
    ok = ft__unmerge_tensor(context, model->modules[i]->bias, &change->kept_bias) && ok;
  }
  adapter->merged = NULL;
  return ok;
}

FT_API ft_status ft_adapter_merge(ft_context *context, ft_model *model, ft_adapter *adapter) {
  int64_t i;
  bool ok = true;
  if (!model || !adapter) return ft__null_status(context, "ft_adapter_merge needs a model and an adapter");
  if (ft__check_adapter(context, model, adapter) != FT_OK) return context->status;
  if (model->shapes_only) return ft__error(context, FT_ERROR_ARGUMENT, "the model was loaded without weights");
  for (i = 0; ok && i < model->module_count; ++i)
    ok = ft__merge_module(context, model->modules[i], &adapter->modules[i]);
  adapter->merged = model;
  if (ok) return FT_OK;
  ft__unmerge(context, model, adapter);
  return context->status;
}

FT_API ft_status ft_adapter_unmerge(ft_context *context, ft_model *model, ft_adapter *adapter) {
  if (!model || !adapter) return ft__null_status(context, "ft_adapter_unmerge needs a model and an adapter");
  if (adapter->merged != model)
    return ft__error(context, FT_ERROR_ARGUMENT, "the adapter is not merged into this model");
  return ft__unmerge(context, model, adapter) ? FT_OK : context->status;
}
/* =====================================================================================================================
   >>adamw: the optimizer and its schedules

   AdamW (Loshchilov and Hutter 2019), in torch.optim.AdamW's order, for step t = 1, 2, ..:

       w  =  w (1 - lr decay)
       m  =  m + (1 - beta1) (g - m)
       v  =  beta2 v + (1 - beta2) g^2
       w  =  w - lr / (1 - beta1^t)  m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)

   Biases and LayerNorm parameters do not decay, as in transformers' Trainer; embeddings do. With layer decay d, lr is
   multiplied by d^(L + 1 - layer) for the parameters of that layer: what stands lower, and is more general, moves less
   (Howard and Ruder 2018). Each parameter counts its own steps t. */

typedef struct ft__trained {
  ft_parameter parameter; /* its tensor belongs to the model */
  ft_tensor *first_moment, *second_moment;
  double rate;   /* what the learning rate is multiplied by: layer decay */
  int64_t steps; /* taken; t in the formulas */
  uint8_t *rows; /* of a table: which have had a gradient in any step; NULL: not known */
} ft__trained;

struct ft_optimizer {
  ft_context *owner;
  ft_adamw_options options;
  ft__trained *trained; /* [count] */
  int64_t count;
  int layers;
};

FT_API void ft_optimizer_free(ft_optimizer *optimizer) {
  int64_t i;
  if (!optimizer) return;
  for (i = 0; i < optimizer->count; ++i) {
    ft_tensor_free(optimizer->trained[i].first_moment);
    ft_tensor_free(optimizer->trained[i].second_moment);
    ft__release(optimizer->owner, optimizer->trained[i].rows);
  }
  ft__release(optimizer->owner, optimizer->trained);
  ft__release(optimizer->owner, optimizer);
}

static bool ft__optimizer_add(ft_context *context, ft_optimizer *optimizer, const ft_parameter *parameter) {
  const ft_tensor *tensor = parameter->tensor;
  ft__trained *trained = &optimizer->trained[optimizer->count++];
  trained->parameter = *parameter;
  trained->rate = optimizer->options.layer_decay > 0
                      ? pow(optimizer->options.layer_decay, optimizer->layers + 1 - parameter->layer)
                      : 1;
  trained->first_moment = ft_tensor_create(context, FT_F32, tensor->dimensions, tensor->shape);
  trained->second_moment = ft_tensor_create(context, FT_F32, tensor->dimensions, tensor->shape);
  return trained->first_moment && trained->second_moment;
}

FT_API ft_optimizer *ft_optimizer_create(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                         const ft_adamw_options *options) {
  ft_optimizer *optimizer;
  const ft_parameter *parameter;
  int64_t i, count;
  bool ok;
  if (!model || !(optimizer = (ft_optimizer *)ft__allocate_zero(context, sizeof *optimizer))) return NULL;
  count = ft_model_parameter_count(model) + ft_adapter_parameter_count(adapter);
  optimizer->owner = context;
  optimizer->layers = ft_model_config(model)->layers;
  if (options) optimizer->options = *options;
  if (optimizer->options.beta1 == 0) optimizer->options.beta1 = 0.9;
  if (optimizer->options.beta2 == 0) optimizer->options.beta2 = 0.999;
  if (optimizer->options.epsilon == 0) optimizer->options.epsilon = 1e-8;
  optimizer->trained = (ft__trained *)ft__allocate_zero(context, (size_t)count * sizeof *optimizer->trained);
  ok = optimizer->trained != NULL;
  for (i = 0; ok && (parameter = ft__any_parameter(model, adapter, i)) != NULL; ++i)
    if (parameter->tensor->requires_gradient) ok = ft__optimizer_add(context, optimizer, parameter);
  if (ok) return optimizer;
  ft_optimizer_free(optimizer);
  return NULL;
}

/* A trained parameter that no gradient reached is a bug in the model that calls for a word, not for silence. */
static ft_status ft__check_gradients(ft_context *context, const ft_optimizer *optimizer) {
  int64_t i;
  for (i = 0; i < optimizer->count; ++i) {
    const ft_parameter *parameter = &optimizer->trained[i].parameter;
    if (parameter->tensor->requires_gradient && !parameter->tensor->gradient_is_set)
      return ft__error(context, FT_ERROR_ARGUMENT, "%s is to be trained, but the loss does not depend on it",
                       parameter->name);
  }
  return FT_OK;
}

static double ft__gradient_squares(ft_context *context, const ft_tensor *tensor) {
  const ft_real *gradient = (const ft_real *)tensor->gradient;
  int64_t row, end;
  double sum = 0;
  if (!tensor->gradient_rows) return context->backend->sum_of_squares(context, ft_tensor_count(tensor), gradient);
  for (row = 0; (end = ft__marked_rows(tensor->gradient_rows, tensor->shape[0], &row)) > row; row = end)
    sum += context->backend->sum_of_squares(context, (end - row) * tensor->shape[1], gradient + row * tensor->shape[1]);
  return sum;
}

FT_API ft_status ft_optimizer_gradient_norm(ft_context *context, ft_optimizer *optimizer, double *norm) {
  double sum = 0;
  int64_t i;
  *norm = 0;
  if (!optimizer) return ft__null_status(context, "ft_optimizer_gradient_norm needs an optimizer");
  if (ft__check_gradients(context, optimizer) != FT_OK) return context->status;
  for (i = 0; i < optimizer->count; ++i) {
    const ft_tensor *tensor = optimizer->trained[i].parameter.tensor;
    if (tensor->requires_gradient) sum += ft__gradient_squares(context, tensor);
  }
  *norm = sqrt(sum);
  return FT_OK;
}

/* Adds a table's marked rows to those of earlier steps: the moments of all others are zero. */
static bool ft__mark_rows(ft_context *context, ft__trained *trained) {
  const ft_tensor *tensor = trained->parameter.tensor;
  int64_t i;
  if (!tensor->gradient_rows) return true;
  if (!trained->rows && trained->steps == 0 &&
      !(trained->rows = (uint8_t *)ft__allocate_zero(context, (size_t)tensor->shape[0])))
    return false;
  for (i = 0; trained->rows && i < tensor->shape[0]; ++i) trained->rows[i] |= tensor->gradient_rows[i];
  return true;
}

FT_API ft_status ft_optimizer_step(ft_context *context, ft_optimizer *optimizer, double learning_rate,
                                   double gradient_scale) {
  ft_adamw_step step;
  int64_t i;
  if (!optimizer) return ft__null_status(context, "ft_optimizer_step needs an optimizer");
  if (ft__check_gradients(context, optimizer) != FT_OK) return context->status;
  step.gradient_scale = gradient_scale;
  step.beta1 = optimizer->options.beta1;
  step.beta2 = optimizer->options.beta2;
  step.epsilon = optimizer->options.epsilon;
  for (i = 0; i < optimizer->count; ++i) {
    ft__trained *trained = &optimizer->trained[i];
    ft_tensor *tensor = trained->parameter.tensor;
    if (!tensor->requires_gradient) continue;
    if (!ft__mark_rows(context, trained)) return context->status;
    step.rows = trained->rows, step.columns = tensor->dimensions == 2 ? tensor->shape[1] : 1;
    step.step = ++trained->steps;
    step.learning_rate = learning_rate * trained->rate;
    step.count = ft_tensor_count(tensor);
    step.weight = (ft_real *)tensor->data;
    step.gradient = (const ft_real *)tensor->gradient;
    step.first_moment = (ft_real *)trained->first_moment->data;
    step.second_moment = (ft_real *)trained->second_moment->data;
    step.weight_decay = trained->parameter.decays ? optimizer->options.weight_decay : 0;
    context->backend->adamw(context, &step);
    ft__tensor_changed(tensor);
    ft_gradient_zero(context, tensor);
  }
  return FT_OK;
}

FT_API double ft_clip_factor(double norm, double max_norm) {
  double factor = max_norm / (norm + 1e-6);
  return factor < 1 ? factor : 1;
}

FT_API double ft_schedule_factor(ft_schedule schedule, int64_t step, int64_t warmup_steps, int64_t total_steps) {
  double decay_steps = (double)(total_steps - warmup_steps > 1 ? total_steps - warmup_steps : 1), factor = 1;
  if (step < warmup_steps) return (double)step / (double)warmup_steps;
  if (schedule == FT_SCHEDULE_LINEAR) factor = (double)(total_steps - step) / decay_steps;
  if (schedule == FT_SCHEDULE_COSINE)
    factor = 0.5 * (1 + cos(3.141592653589793 * (double)(step - warmup_steps) / decay_steps));
  return factor > 0 ? factor : 0;
}

FT_API bool ft_schedule_parse(const char *name, ft_schedule *schedule) {
  static const char *const names[] = {"linear", "cosine", "constant"};
  int i;
  for (i = 0; i < 3; ++i) {
    if (strcmp(name, names[i]) != 0) continue;
    *schedule = (ft_schedule)i;
    return true;
  }
  return false;
}
/* =====================================================================================================================
   >>plan: what a step takes, before it runs

   The very code of a training step runs on a back end that computes nothing: it hands out addresses that lead nowhere
   and counts the operations of products. Layers, tape and arenas then do what they will do in the step, so the plan is
   what they were seen to take, and cannot drift from them. */

typedef struct ft__planner {
  ft_backend table;  /* first: a planner's context has its address as that of the back end */
  uint64_t given;    /* bytes of all buffers */
  double operations; /* so far */
  double keys;       /* sum over the texts of their length squared */
} ft__planner;

static ft__planner *ft__planner_of(const ft_context *context) { return (ft__planner *)(uintptr_t)context->backend; }

/* No two buffers at the same place. */
static void *ft__plan_allocate(ft_context *context, size_t bytes) {
  ft__planner *planner = ft__planner_of(context);
  void *nowhere = (void *)(uintptr_t)(4096 + planner->given);
  planner->given += bytes;
  return nowhere;
}

static void ft__plan_read(ft_context *context, const void *buffer, void *host, size_t bytes) {
  (void)context, (void)buffer;
  memset(host, 0, bytes);
}

static void ft__plan_matmul(ft_context *context, const ft_matmul_call *call) {
  ft__planner_of(context)->operations += 2 * (double)call->m * (double)call->n * (double)call->k;
}

/* Q K^T and P V */
static void ft__plan_attention(ft_context *context, const ft_attention_call *call) {
  ft__planner *planner = ft__planner_of(context);
  planner->operations += 4 * planner->keys * (double)(call->heads * call->head_size);
}

/* Q K^T again, dO V^T, P^T dO, dS K and dS^T Q */
static void ft__plan_attention_backward(ft_context *context, const ft_attention_call *call) {
  ft__planner *planner = ft__planner_of(context);
  planner->operations += 10 * planner->keys * (double)(call->heads * call->head_size);
}

static double ft__plan_sum_of_squares(ft_context *context, int64_t count, const ft_real *x) {
  (void)context, (void)count, (void)x;
  return 0;
}

static void ft__plan_ignore(const void *first, ...) { (void)first; }
static void ft__plan_release(ft_context *context, void *buffer) { ft__plan_ignore(context, buffer); }
static void ft__plan_write(ft_context *context, void *buffer, const void *host, size_t bytes) {
  ft__plan_ignore(context, buffer, host, bytes);
}
#define FT__PLAN_FUNCTION(name, parameters, arguments, elements) \
  static void ft__plan_nothing_##name parameters { ft__plan_ignore arguments; }
FT__PROFILED(FT__PLAN_FUNCTION)

static void ft__plan_table(ft_backend *table) {
  memset(table, 0, sizeof *table);
  table->name = "plan";
  table->allocate = ft__plan_allocate, table->release = ft__plan_release;
  table->write = ft__plan_write, table->read = ft__plan_read;
#define FT__PLAN_SET(name, parameters, arguments, elements) table->name = ft__plan_nothing_##name;
  FT__PROFILED(FT__PLAN_SET)
  table->matmul = ft__plan_matmul, table->sum_of_squares = ft__plan_sum_of_squares;
  table->attention = ft__plan_attention, table->attention_backward = ft__plan_attention_backward;
}

/* The loss of any labels: `numbers` zeros serve as labels and as targets. */
static ft_tensor *ft__plan_loss(ft_context *context, const ft_model *model, ft_tensor *logits) {
  int64_t rows = logits->shape[0], numbers = ft__is_over_texts(model) ? rows * model->config.labels : rows;
  void *zeros = ft__allocate_zero(context, (size_t)numbers * 4);
  ft_tensor *loss =
      zeros ? ft_model_loss(context, model, logits, (const int32_t *)zeros, (const float *)zeros, 0) : NULL;
  ft__release(context, zeros);
  return loss;
}

/* The step, in a planner's context. */
static ft_status ft__plan_run(ft_context *context, const ft_model *model, const ft_batch *batch,
                              const ft_forward_options *options, ft_plan *plan) {
  ft__planner *planner = ft__planner_of(context);
  ft_output output;
  ft_tensor *loss;
  ft_optimizer *optimizer;
  uint64_t before;
  ft_status status = ft_model_forward(context, model, batch, options, &output);
  if (status != FT_OK) return status;
  plan->forward_operations = planner->operations;
  if (output.logits && context->no_grad == 0) {
    if (!(loss = ft__plan_loss(context, model, output.logits))) return context->status;
    if ((status = ft_backward(context, loss)) != FT_OK) return status;
    plan->backward_operations = planner->operations - plan->forward_operations;
    before = planner->given;
    if (!(optimizer = ft_optimizer_create(context, model, options ? options->adapter : NULL, NULL)))
      return context->status;
    plan->moments = (int64_t)(planner->given - before);
    ft_optimizer_free(optimizer);
  }
  plan->activations = ft_tape_peak_bytes(context);
  return FT_OK;
}

static void ft__plan_log(ft_context *context, const ft_batch *batch, const ft_plan *plan) {
  const double mib = 1.0 / 1048576;
  ft__log(context, FT_LOG_INFO,
          "a step of %lld texts, %lld tokens takes %.1f MiB: weights %.1f, gradients %.1f, moments %.1f, activations "
          "%.1f; %.1f GFLOP forward, %.1f backward",
          (long long)batch->texts, (long long)batch->tokens, mib * (double)plan->total, mib * (double)plan->weights,
          mib * (double)plan->gradients, mib * (double)plan->moments, mib * (double)plan->activations,
          1e-9 * plan->forward_operations, 1e-9 * plan->backward_operations);
}

/* A context whose back end is the planner; as for errors, memory and precision, like the given one. */
static ft_context *ft__plan_context(const ft_context *context, ft__planner *planner, const ft_batch *batch) {
  ft_context_options options;
  ft_context *planning;
  int64_t b;
  memset(planner, 0, sizeof *planner);
  ft__plan_table(&planner->table);
  for (b = 0; b < batch->texts; ++b) planner->keys += (double)batch->lengths[b] * (double)batch->lengths[b];
  memset(&options, 0, sizeof options);
  options.allocator = context->allocator;
  options.threads = 1;
  options.backend = &planner->table;
  options.compute_dtype = context->compute_dtype;
  if ((planning = ft_context_create(&options)) != NULL) planning->no_grad = context->no_grad;
  return planning;
}

static void ft__swap_tensors(ft_tensor *a, ft_tensor *b) {
  ft_tensor kept = *a;
  *a = *b;
  *b = kept;
}

/* For the time of planning a parameter is another of its shape, without memory; kept[i] holds what it was. */
static ft_status ft__plan_exchange(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                   ft_tensor **kept, int64_t count, ft_plan *plan) {
  int64_t i;
  for (i = 0; i < count; ++i) {
    ft_tensor *tensor = ft__any_parameter(model, adapter, i)->tensor;
    if (!(kept[i] = ft__tensor_outline(context, tensor->dtype, tensor->dimensions, tensor->shape)))
      return context->status;
    ft__swap_tensors(tensor, kept[i]);
    tensor->name = kept[i]->name;
    tensor->requires_gradient = kept[i]->requires_gradient;
    tensor->data = ft__plan_allocate(context, ft__tensor_bytes(tensor));
    plan->weights += (int64_t)ft__tensor_bytes(tensor);
  }
  return FT_OK;
}

FT_API ft_status ft_plan_step(ft_context *context, ft_model *model, const ft_batch *batch,
                              const ft_forward_options *options, ft_plan *plan) {
  const ft_adapter *adapter = options ? options->adapter : NULL;
  int64_t i, count;
  ft__planner planner;
  ft_context *planning;
  ft_tensor **kept; /* [count] */
  ft_status status;
  bool shapes_only;
  memset(plan, 0, sizeof *plan);
  if (!model || !batch) return ft__null_status(context, "ft_plan_step needs a model and a batch");
  count = ft_model_parameter_count(model) + ft_adapter_parameter_count(adapter);
  if (!(kept = (ft_tensor **)ft__allocate_zero(context, (size_t)count * sizeof *kept))) return context->status;
  if (!(planning = ft__plan_context(context, &planner, batch))) {
    ft__release(context, kept);
    return ft__error(context, FT_ERROR_MEMORY, "out of memory: a context to plan in");
  }
  shapes_only = model->shapes_only;
  model->shapes_only = false;
  status = ft__plan_exchange(planning, model, adapter, kept, count, plan);
  if (status == FT_OK) status = ft__plan_run(planning, model, batch, options, plan);
  model->shapes_only = shapes_only;
  for (i = 0; i < count && kept[i]; ++i) {
    ft_tensor *tensor = ft__any_parameter(model, adapter, i)->tensor;
    if (tensor->gradient) plan->gradients += (int64_t)ft__tensor_bytes(tensor);
    ft__swap_tensors(tensor, kept[i]);
    ft_tensor_free(kept[i]);
  }
  ft__release(context, kept);
  plan->total = plan->weights + plan->gradients + plan->moments + plan->activations;
  if (status != FT_OK) ft__error(context, status, "%s", planning->message);
  ft_context_free(planning);
  if (status == FT_OK) ft__plan_log(context, batch, plan);
  return status;
}

/* =====================================================================================================================
   >>scores

   For class c: tp are the rows of class c that were predicted as c, fp those predicted as c wrongly, fn those missed.

       precision = tp / (tp + fp)     recall = tp / (tp + fn)     F1 = 2 tp / (2 tp + fp + fn)

   "macro" is the mean over classes, "weighted" the mean weighted by how many rows each class has, "micro" counts tp, fp
   and fn over all classes first. Matthews' coefficient for C classes (Gorodkin 2004), with s rows of which c are right,
   t_k truly of class k and p_k predicted as k:

       (c s - sum t_k p_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)) */

typedef struct ft__counts {
  int64_t true_positives, predicted, actual;
} ft__counts;

static double ft__ratio(double numerator, double denominator) { return denominator > 0 ? numerator / denominator : 0; }

FT_API void ft_metrics_free(ft_metrics *metrics) {
  if (!metrics || !metrics->owner) return;
  ft__release(metrics->owner, metrics->confusion);
  ft__release(metrics->owner, metrics->by_class);
  memset(metrics, 0, sizeof *metrics);
}

static int ft__argmax(const float *values, int count) {
  int i, best = 0;
  for (i = 1; i < count; ++i)
    if (values[i] > values[best]) best = i;
  return best;
}

/* Precision, recall and F1 from counts [classes]. */
static void ft__metrics_from_counts(ft_metrics *metrics, const ft__counts *counts) {
  ft__counts all = {0, 0, 0};
  double classes = metrics->classes;
  int c;
  for (c = 0; c < metrics->classes; ++c) {
    ft_class_metrics *m = &metrics->by_class[c];
    const ft__counts *n = &counts[c];
    m->support = n->actual;
    m->precision = ft__ratio((double)n->true_positives, (double)n->predicted);
    m->recall = ft__ratio((double)n->true_positives, (double)n->actual);
    m->f1 = ft__ratio(2.0 * (double)n->true_positives, (double)(n->predicted + n->actual));
    metrics->precision_macro += m->precision / classes;
    metrics->recall_macro += m->recall / classes;
    metrics->f1_macro += m->f1 / classes;
    metrics->precision_weighted += m->precision * (double)n->actual;
    metrics->recall_weighted += m->recall * (double)n->actual;
    metrics->f1_weighted += m->f1 * (double)n->actual;
    all.true_positives += n->true_positives;
    all.predicted += n->predicted;
    all.actual += n->actual;
  }
  metrics->precision_weighted = ft__ratio(metrics->precision_weighted, (double)all.actual);
  metrics->recall_weighted = ft__ratio(metrics->recall_weighted, (double)all.actual);
  metrics->f1_weighted = ft__ratio(metrics->f1_weighted, (double)all.actual);
  metrics->precision_micro = ft__ratio((double)all.true_positives, (double)all.predicted);
  metrics->recall_micro = ft__ratio((double)all.true_positives, (double)all.actual);
  metrics->f1_micro = ft__ratio(2.0 * (double)all.true_positives, (double)(all.predicted + all.actual));
}

static void ft__metrics_single_label(const ft_dataset *dataset, const float *logits, ft_metrics *metrics,
                                     ft__counts *counts) {
  double rows = (double)dataset->rows, right = 0, expected = 0, predicted_squares = 0, actual_squares = 0;
  int classes = metrics->classes, c;
  int64_t row;
  for (row = 0; row < dataset->rows; ++row) {
    int prediction = ft__argmax(logits + row * classes, classes), truth = dataset->labels[row];
    ++metrics->confusion[truth * classes + prediction];
    ++counts[prediction].predicted;
    ++counts[truth].actual;
    if (prediction == truth) ++counts[truth].true_positives, ++right;
  }
  for (c = 0; c < classes; ++c) {
    double p = (double)counts[c].predicted, t = (double)counts[c].actual;
    expected += p * t, predicted_squares += p * p, actual_squares += t * t;
  }
  metrics->accuracy = ft__ratio(right, rows);
  metrics->matthews =
      ft__ratio(right * rows - expected, sqrt((rows * rows - predicted_squares) * (rows * rows - actual_squares)));
}

static void ft__metrics_multi_label(const ft_dataset *dataset, const float *logits, ft_metrics *metrics,
                                    ft__counts *counts) {
  int64_t row, right = 0;
  int c, classes = metrics->classes;
  for (row = 0; row < dataset->rows; ++row) {
    bool all_right = true;
    for (c = 0; c < classes; ++c) {
      bool predicted = logits[row * classes + c] > 0, actual = dataset->targets[row * classes + c] > 0.5f;
      counts[c].predicted += predicted;
      counts[c].actual += actual;
      counts[c].true_positives += predicted && actual;
      all_right = all_right && predicted == actual;
    }
    right += all_right;
  }
  metrics->accuracy = ft__ratio((double)right, (double)dataset->rows);
}

/* R2 = 1 - sum (t - x)^2 / sum (t - mean t)^2 */
static void ft__metrics_regression(const ft_dataset *dataset, const float *values, ft_metrics *metrics) {
  double squares = 0, absolute = 0, mean = 0, spread = 0, rows = (double)dataset->rows;
  int64_t row;
  for (row = 0; row < dataset->rows; ++row) mean += (double)dataset->targets[row] / rows;
  for (row = 0; row < dataset->rows; ++row) {
    double target = dataset->targets[row], error = (double)values[row] - target;
    squares += error * error;
    absolute += fabs(error);
    spread += (target - mean) * (target - mean);
  }
  metrics->mean_squared_error = ft__ratio(squares, rows);
  metrics->mean_absolute_error = ft__ratio(absolute, rows);
  metrics->r2 = spread > 0 ? 1 - squares / spread : 0;
}

FT_API ft_status ft_metrics_compute(ft_context *context, const ft_dataset *dataset, const float *logits,
                                    ft_metrics *metrics) {
  ft__counts *counts;
  double loss = metrics->loss;
  size_t classes;
  if (!dataset || !logits) return ft__null_status(context, "ft_metrics_compute needs a dataset and logits");
  if (!dataset->labels && !dataset->targets)
    return ft__error(context, FT_ERROR_ARGUMENT, "%s has no labels to compare with", dataset->name);
  ft_metrics_free(metrics);
  metrics->owner = context;
  metrics->loss = loss;
  metrics->rows = dataset->rows;
  metrics->classes = dataset->label_count;
  if (dataset->task == FT_TASK_REGRESSION) {
    ft__metrics_regression(dataset, logits, metrics);
    return FT_OK;
  }
  classes = (size_t)metrics->classes;
  counts = (ft__counts *)ft__allocate_zero(context, classes * sizeof *counts);
  if (dataset->task == FT_TASK_SINGLE_LABEL)
    metrics->confusion = (int64_t *)ft__allocate_zero(context, classes * classes * sizeof(int64_t));
  metrics->by_class = (ft_class_metrics *)ft__allocate_zero(context, classes * sizeof *metrics->by_class);
  if (counts && metrics->by_class && (metrics->confusion || dataset->task != FT_TASK_SINGLE_LABEL)) {
    if (dataset->task == FT_TASK_SINGLE_LABEL)
      ft__metrics_single_label(dataset, logits, metrics, counts);
    else
      ft__metrics_multi_label(dataset, logits, metrics, counts);
    ft__metrics_from_counts(metrics, counts);
    ft__release(context, counts);
    return FT_OK;
  }
  ft__release(context, counts);
  ft_metrics_free(metrics);
  return context->status;
}

FT_API double ft_metrics_score(const ft_metrics *metrics, ft_task task) {
  return task == FT_TASK_REGRESSION ? metrics->r2 : metrics->accuracy;
}
/* =====================================================================================================================
   >>scoring: running a model over a whole dataset

   Texts are taken longest first, so that a batch holds texts of like length and the first batch needs the most memory.
   The order does not change a result: packed texts do not see each other. */

FT_API void *ft_allocate(ft_context *context, size_t bytes) { return ft__allocate_zero(context, bytes); }
FT_API void ft_release(ft_context *context, void *memory) { ft__release(context, memory); }

FT_API bool ft_is_finite(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (bits >> 52 & 0x7FF) != 0x7FF; /* by bits: -Ofast lets compilers assume that NaN does not exist */
}

FT_API int ft_max_length(ft_context *context, const ft_model *model, const ft_tokenizer *tokenizer, int asked) {
  int positions, limit;
  if (!model || !tokenizer) return 0;
  positions = model->config.max_positions;
  limit = ft_tokenizer_max_length(tokenizer);
  if (asked > positions) {
    ft__error(context, FT_ERROR_ARGUMENT, "max_length %d is more than the model's %d positions", asked, positions);
    return 0;
  }
  if (ft_tokenizer_size(tokenizer) > model->config.vocabulary_size) {
    ft__error(context, FT_ERROR_ARGUMENT,
              "the tokenizer has ids up to %d, but the model's vocabulary is %d: they are not"
              " of one model",
              ft_tokenizer_size(tokenizer) - 1, model->config.vocabulary_size);
    return 0;
  }
  if (asked > 0) return asked;
  return limit > 0 && limit < positions ? limit : positions;
}

static int64_t ft__row_length(const ft_encoded *encoded, int64_t row) {
  return encoded->offsets[row + 1] - encoded->offsets[row];
}

/* Sorts rows by the length of their texts, longest first; equal ones keep their order (counting sort). */
static bool ft__sort_by_length(ft_context *context, const ft_encoded *encoded, int64_t *rows, int64_t count) {
  int64_t i, length, longest = 0, start = 0, *places, *sorted;
  for (i = 0; i < count; ++i)
    if (ft__row_length(encoded, rows[i]) > longest) longest = ft__row_length(encoded, rows[i]);
  places = (int64_t *)ft__allocate_zero(context, (size_t)(longest + 1 + count) * sizeof *places);
  if (!places) return false;
  sorted = places + longest + 1;
  for (i = 0; i < count; ++i) ++places[ft__row_length(encoded, rows[i])];
  for (length = longest; length >= 0; --length) {
    int64_t texts = places[length];
    places[length] = start;
    start += texts;
  }
  for (i = 0; i < count; ++i) sorted[places[ft__row_length(encoded, rows[i])]++] = rows[i];
  memcpy(rows, sorted, (size_t)count * sizeof *rows);
  ft__release(context, places);
  return true;
}

FT_API ft_status ft_group_by_length(ft_context *context, const ft_encoded *encoded, int64_t *order,
                                    int64_t batch_size) {
  int64_t batches, size, start, longest = 0;
  if (!encoded || !order) return ft__null_status(context, "ft_group_by_length needs encoded texts and an order");
  if (batch_size < 1) return ft__error(context, FT_ERROR_ARGUMENT, "ft_group_by_length: a batch has one text or more");
  batches = encoded->rows / 4 / batch_size;
  size = (batches < 1 ? 1 : batches < 50 ? batches : 50) * batch_size;
  for (start = 0; start < encoded->rows; start += size) {
    int64_t rest = encoded->rows - start;
    if (!ft__sort_by_length(context, encoded, order + start, rest < size ? rest : size)) return context->status;
    if (ft__row_length(encoded, order[start]) > ft__row_length(encoded, order[longest])) longest = start;
  }
  if (encoded->rows > 0) { /* the longest text of all comes first: if memory is short, it shows at once */
    int64_t first = order[0];
    order[0] = order[longest];
    order[longest] = first;
  }
  return FT_OK;
}

/* What is done with each batch: its rows are rows[0 .. batch->texts). */
typedef ft_status (*ft__batch_visitor)(ft_context *context, void *argument, const ft_batch *batch, const int64_t *rows,
                                       const ft_output *output);

static ft_status ft__run_over(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                              const ft_scoring_options *scoring, ft_forward_options options, ft__batch_visitor visit,
                              void *argument) {
  int batch_size = scoring && scoring->batch_size > 0 ? scoring->batch_size : 32;
  ft_output output;
  ft_batch batch;
  ft_status status = FT_OK;
  int64_t start, *order;
  if (!model || !encoded) return ft__null_status(context, "scoring needs a model and encoded texts");
  memset(&batch, 0, sizeof batch);
  options.features = scoring ? scoring->features : NULL;
  options.adapter = scoring ? scoring->adapter : NULL;
  order = (int64_t *)ft__allocate(context, ((size_t)encoded->rows + 1) * sizeof *order);
  for (start = 0; order && start < encoded->rows; ++start) order[start] = start;
  if (!order || !ft__sort_by_length(context, encoded, order, encoded->rows)) status = context->status;
  for (start = 0; status == FT_OK && start < encoded->rows; start += batch_size) {
    int64_t count = encoded->rows - start < batch_size ? encoded->rows - start : batch_size;
    options.feature_rows = order + start;
    ft_no_grad_begin(context);
    status = ft_batch_select(context, &batch, encoded, order + start, count);
    if (status == FT_OK) status = ft_model_forward(context, model, &batch, &options, &output);
    if (status == FT_OK) status = visit(context, argument, &batch, order + start, &output);
    ft_no_grad_end(context);
    ft_tape_clear(context);
  }
  ft_batch_free(&batch);
  ft__release(context, order);
  return status;
}

typedef struct ft__logits {
  float *all;             /* [rows, C], or [tokens, C] */
  const int64_t *offsets; /* of the tokens, or NULL */
} ft__logits;

static ft_status ft__visit_logits(ft_context *context, void *argument, const ft_batch *batch, const int64_t *rows,
                                  const ft_output *output) {
  const ft__logits *logits = (const ft__logits *)argument;
  int64_t columns, i;
  float *values;
  ft_status status;
  if (!output->logits) return ft__error(context, FT_ERROR_ARGUMENT, "the model was loaded without its head");
  columns = output->logits->shape[1];
  values = (float *)ft__arena_allocate(context, &context->host_arena,
                                       (size_t)ft_tensor_count(output->logits) * sizeof *values);
  status = values ? ft__read_floats(context, output->logits, values) : context->status;
  for (i = 0; status == FT_OK && i < batch->texts; ++i) {
    int64_t from = logits->offsets ? batch->offsets[i] : i, to = logits->offsets ? logits->offsets[rows[i]] : rows[i];
    int64_t count = logits->offsets ? batch->offsets[i + 1] - batch->offsets[i] : 1;
    memcpy(logits->all + to * columns, values + from * columns, (size_t)(count * columns) * sizeof *values);
  }
  return status;
}

static ft_status ft__predict(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                             const ft_scoring_options *options, bool over_texts, float *all) {
  ft__logits logits;
  ft_forward_options forward;
  memset(&forward, 0, sizeof forward);
  logits.all = all;
  logits.offsets = over_texts || !encoded ? NULL : encoded->offsets;
  if (model && ft__is_over_texts(model) != over_texts)
    return ft__error(context, FT_ERROR_ARGUMENT, "the model's head scores %s: use %s",
                     over_texts ? "tokens, not texts" : "texts, not tokens",
                     over_texts ? "ft_predict_tokens" : "ft_predict");
  return ft__run_over(context, model, encoded, options, forward, ft__visit_logits, &logits);
}

FT_API ft_status ft_predict(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                            const ft_scoring_options *options, float *logits) {
  return ft__predict(context, model, encoded, options, true, logits);
}

FT_API ft_status ft_predict_tokens(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                                   const ft_scoring_options *options, float *logits) {
  return ft__predict(context, model, encoded, options, false, logits);
}

/* The mean loss of logits [rows, C] that are in host memory already. */
static ft_status ft__mean_loss(ft_context *context, const ft_model *model, const ft_dataset *dataset,
                               const float *logits, double *mean) {
  ft_tensor *tensor, *loss;
  float value = 0;
  ft_status status = FT_OK;
  ft_no_grad_begin(context);
  tensor = ft__temporary_2d(context, FT_F32, dataset->rows, model->config.labels);
  if (!tensor || ft__write_floats(context, tensor, logits) != FT_OK) tensor = NULL;
  loss = ft_model_loss(context, model, tensor, dataset->labels, dataset->targets, 0);
  status = loss ? ft__read_floats(context, loss, &value) : context->status;
  *mean = value;
  ft_no_grad_end(context);
  ft_tape_clear(context);
  return status;
}

FT_API ft_status ft_model_check_dataset(ft_context *context, const ft_model *model, const ft_dataset *dataset) {
  if (!model || !dataset) return ft__null_status(context, "there is no model or no dataset");
  if (!model->has_head) return ft__error(context, FT_ERROR_ARGUMENT, "the model was loaded without its head");
  if (dataset->rows < 1) return ft__error(context, FT_ERROR_ARGUMENT, "%s holds no rows", dataset->name);
  if (!dataset->labels && !dataset->targets)
    return ft__error(context, FT_ERROR_ARGUMENT, "%s has no labels", dataset->name);
  if (dataset->task != model->config.task)
    return ft__error(context, FT_ERROR_ARGUMENT, "%s was read for another task than the model's", dataset->name);
  if (dataset->label_count != model->config.labels)
    return ft__error(context, FT_ERROR_ARGUMENT, "%s has %d labels, but the model has %d", dataset->name,
                     dataset->label_count, model->config.labels);
  return FT_OK;
}

FT_API ft_status ft_evaluate(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                             const ft_dataset *dataset, const ft_scoring_options *options, ft_metrics *metrics) {
  float *logits;
  double loss = 0;
  ft_status status;
  if (!encoded) return ft__null_status(context, "ft_evaluate needs encoded texts");
  if ((status = ft_model_check_dataset(context, model, dataset)) != FT_OK) return status;
  if (encoded->rows != dataset->rows)
    return ft__error(context, FT_ERROR_ARGUMENT, "ft_evaluate: %lld encoded texts, but %s has %lld rows",
                     (long long)encoded->rows, dataset->name, (long long)dataset->rows);
  logits = (float *)ft__allocate(context, (size_t)(dataset->rows * model->config.labels) * sizeof *logits);
  if (!logits) return context->status;
  status = ft_predict(context, model, encoded, options, logits);
  if (status == FT_OK) status = ft__mean_loss(context, model, dataset, logits, &loss);
  if (status == FT_OK) {
    metrics->loss = loss;
    status = ft_metrics_compute(context, dataset, logits, metrics);
  }
  ft__release(context, logits);
  return status;
}

typedef struct ft__pooling {
  float *embeddings; /* [rows, H] */
  bool mean, normalize;
} ft__pooling;

static void ft__pool_text(const ft__pooling *pooling, const float *hidden, int64_t tokens, int64_t columns,
                          float *out) {
  double squares = 0, length;
  int64_t t, c;
  for (c = 0; c < columns; ++c) {
    double sum = hidden[c];
    if (pooling->mean) {
      for (t = 1; t < tokens; ++t) sum += hidden[t * columns + c];
      sum /= (double)tokens;
    }
    out[c] = (float)sum;
    squares += sum * sum;
  }
  length = sqrt(squares) > 1e-12 ? sqrt(squares) : 1e-12;
  for (c = 0; pooling->normalize && c < columns; ++c) out[c] = (float)(out[c] / length);
}

static ft_status ft__visit_hidden(ft_context *context, void *argument, const ft_batch *batch, const int64_t *rows,
                                  const ft_output *output) {
  const ft__pooling *pooling = (const ft__pooling *)argument;
  int64_t columns = output->hidden->shape[1], i;
  float *hidden =
      (float *)ft__arena_allocate(context, &context->host_arena, (size_t)(batch->tokens * columns) * sizeof *hidden);
  ft_status status = hidden ? ft__read_floats(context, output->hidden, hidden) : context->status;
  for (i = 0; status == FT_OK && i < batch->texts; ++i)
    ft__pool_text(pooling, hidden + batch->offsets[i] * columns, batch->lengths[i], columns,
                  pooling->embeddings + rows[i] * columns);
  return status;
}

FT_API ft_status ft_embed(ft_context *context, const ft_model *model, const ft_encoded *encoded,
                          const ft_scoring_options *options, bool mean, bool normalize, float *embeddings) {
  ft__pooling pooling;
  ft_forward_options forward;
  if (options && options->features) return ft__error(context, FT_ERROR_ARGUMENT, "ft_embed takes no features");
  memset(&forward, 0, sizeof forward);
  forward.no_head = true;
  pooling.embeddings = embeddings;
  pooling.mean = mean;
  pooling.normalize = normalize;
  return ft__run_over(context, model, encoded, options, forward, ft__visit_hidden, &pooling);
}

/* ---- snapshots: the trained parameters at one moment ---- */

struct ft_snapshot {
  ft_context *owner;
  int64_t count;
  ft_real **values; /* [count], NULL where the parameter did not train */
};

FT_API void ft_snapshot_free(ft_snapshot *snapshot) {
  int64_t i;
  if (!snapshot) return;
  for (i = 0; snapshot->values && i < snapshot->count; ++i) ft__release(snapshot->owner, snapshot->values[i]);
  ft__release(snapshot->owner, snapshot->values);
  ft__release(snapshot->owner, snapshot);
}

FT_API ft_status ft_snapshot_take(ft_context *context, ft_snapshot *snapshot, const ft_model *model,
                                  const ft_adapter *adapter) {
  int64_t i;
  ft_status status = FT_OK;
  if (!snapshot || !model) return ft__null_status(context, "ft_snapshot_take needs a snapshot and a model");
  for (i = 0; status == FT_OK && i < snapshot->count; ++i)
    if (snapshot->values[i])
      status = ft_tensor_read(context, ft__any_parameter(model, adapter, i)->tensor, snapshot->values[i]);
  return status;
}

FT_API ft_snapshot *ft_snapshot_create(ft_context *context, const ft_model *model, const ft_adapter *adapter) {
  ft_snapshot *snapshot;
  int64_t i;
  bool ok;
  if (!model || !(snapshot = (ft_snapshot *)ft__allocate_zero(context, sizeof *snapshot))) return NULL;
  snapshot->owner = context;
  snapshot->count = ft_model_parameter_count(model) + ft_adapter_parameter_count(adapter);
  snapshot->values = (ft_real **)ft__allocate_zero(context, (size_t)snapshot->count * sizeof(ft_real *));
  ok = snapshot->values != NULL;
  for (i = 0; ok && i < snapshot->count; ++i) {
    const ft_tensor *tensor = ft__any_parameter(model, adapter, i)->tensor;
    if (!tensor->requires_gradient) continue;
    snapshot->values[i] = (ft_real *)ft__allocate(context, ft__tensor_bytes(tensor));
    ok = snapshot->values[i] != NULL;
  }
  if (ok && ft_snapshot_take(context, snapshot, model, adapter) == FT_OK) return snapshot;
  ft_snapshot_free(snapshot);
  return NULL;
}

FT_API ft_status ft_snapshot_restore(ft_context *context, const ft_snapshot *snapshot, ft_model *model,
                                     ft_adapter *adapter) {
  int64_t i;
  ft_status status = FT_OK;
  if (!snapshot || !model) return ft__null_status(context, "ft_snapshot_restore needs a snapshot and a model");
  for (i = 0; status == FT_OK && i < snapshot->count; ++i)
    if (snapshot->values[i])
      status = ft_tensor_write(context, ft__any_parameter(model, adapter, i)->tensor, snapshot->values[i]);
  return status;
}
/* =====================================================================================================================
   >>frozen features

   With the lowest parts of the model frozen, its output is g(f(text)), and only g changes. f(text) is computed once for
   each text, without dropout, and kept: [tokens, H], or [rows, H] where g reads each text's first token alone. An epoch
   then costs no more than g. */

static bool ft__only_first_tokens(const ft_model *model, const ft_adapter *adapter) {
  return ft_model_frozen_parts(model, adapter) == model->config.layers + 1 && model->has_head &&
         ft__is_over_texts(model);
}

FT_API int64_t ft_features_bytes(const ft_model *model, const ft_adapter *adapter, const ft_encoded *encoded) {
  int64_t states;
  if (!model || !encoded) return 0;
  states = ft__only_first_tokens(model, adapter) ? encoded->rows : encoded->offsets[encoded->rows];
  return states * model->config.hidden_size * (int64_t)sizeof(ft_real);
}

FT_API void ft_features_free(ft_features *features) {
  if (!features) return;
  if (features->file) fclose(features->file);
  ft__release(features->owner, features->values);
  ft__release(features->owner, features->starts);
  ft__release(features->owner, features);
}

typedef struct ft__features_job {
  ft_features *features;
  int64_t tokens, done;
  double reported; /* when the log was told last */
} ft__features_job;

static ft_status ft__visit_features(ft_context *context, void *argument, const ft_batch *batch, const int64_t *rows,
                                    const ft_output *output) {
  ft__features_job *job = (ft__features_job *)argument;
  const ft_features *features = job->features;
  ft_real *values = (ft_real *)ft__arena_allocate(context, &context->host_arena, ft__tensor_bytes(output->hidden));
  ft_status status = values ? ft_tensor_read(context, output->hidden, values) : context->status;
  int64_t i;
  for (i = 0; status == FT_OK && i < batch->texts; ++i)
    status = ft__features_move(context, features, rows[i], values + batch->offsets[i] * features->columns, true);
  job->done += batch->tokens;
  if (ft_seconds() - job->reported < 10) return status;
  ft__log(context, FT_LOG_INFO, "%.0f %% of the texts' tokens are done",
          100.0 * (double)job->done / (double)job->tokens);
  job->reported = ft_seconds();
  return status;
}

/* Room for all states: in memory, or in a file where they are more than the limit. Says which. */
static bool ft__features_reserve(ft_context *context, ft_features *features, const ft_encoded *encoded, int64_t bytes,
                                 const ft_features_options *options) {
  int64_t limit = options->memory_limit ? options->memory_limit : (int64_t)1 << 30, row;
  bool in_memory = bytes <= limit && (uint64_t)bytes <= SIZE_MAX;
  features->starts = (int64_t *)ft__allocate(context, ((size_t)encoded->rows + 1) * sizeof(int64_t));
  if (!features->starts) return false;
  for (row = 0; row <= encoded->rows; ++row)
    features->starts[row] = features->first_tokens ? row : encoded->offsets[row];
  ft__log(context, FT_LOG_INFO,
          "keeping what the embeddings and %d layers make of %lld texts: %.1f MiB in %s; they run without dropout",
          features->parts - 1, (long long)encoded->rows, (double)bytes / 1048576, in_memory ? "memory" : "a file");
  if (in_memory) features->values = (ft_real *)ft__allocate(context, (size_t)bytes);
  if (!in_memory) features->file = ft__file_temporary(context, options->directory);
  return features->values || features->file;
}

FT_API ft_features *ft_features_create(ft_context *context, const ft_model *model, const ft_adapter *adapter,
                                       const ft_encoded *encoded, const ft_features_options *options) {
  ft_features_options none;
  ft_forward_options forward;
  ft_scoring_options scoring;
  ft__features_job job;
  ft_features *features;
  if (!model || !encoded) return (ft_features *)ft__null_argument(context, "features need a model and encoded texts");
  memset(&none, 0, sizeof none);
  memset(&forward, 0, sizeof forward);
  memset(&scoring, 0, sizeof scoring);
  if (!options) options = &none;
  scoring.batch_size = options->batch_size;
  if ((forward.parts = ft_model_frozen_parts(model, adapter)) == 0) {
    ft__error(context, FT_ERROR_ARGUMENT, "there are no features to keep: the embeddings train, so nothing is frozen");
    return NULL;
  }
  if (!(features = (ft_features *)ft__allocate_zero(context, sizeof *features))) return NULL;
  features->owner = context;
  features->parts = forward.parts;
  features->first_tokens = ft__only_first_tokens(model, adapter);
  features->rows = encoded->rows;
  features->columns = model->config.hidden_size;
  job.features = features;
  job.tokens = encoded->offsets[encoded->rows];
  job.done = 0;
  job.reported = ft_seconds();
  if (ft__features_reserve(context, features, encoded, ft_features_bytes(model, adapter, encoded), options) &&
      ft__run_over(context, model, encoded, &scoring, forward, ft__visit_features, &job) == FT_OK)
    return features;
  ft_features_free(features);
  return NULL;
}

/* =====================================================================================================================
   >>training loop

   Everything below uses public functions alone: it is meant to be read, copied into a program and changed there. In
   outline, and with gradient accumulation (G batches to a step) left out:

       ft_features_create                                        if the frozen part is to be cached
       ft_plan_step, ft_tape_reserve                             the memory of the largest batch's step
       for each epoch:
         ft_shuffle, ft_group_by_length                        the rows
         for each batch of rows:
           ft_model_forward, ft_model_loss, ft_backward            gradients
           ft_optimizer_gradient_norm, ft_clip_factor              clipping
           ft_optimizer_step(learning_rate * ft_schedule_factor)   new weights
           ft_tape_clear
         ft_evaluate; if better than ever: ft_snapshot_take
       ft_snapshot_restore                                         the best weights

   The loss of a step is the mean over all texts of its G batches, whatever their sizes: each batch's loss is divided by
   the number of texts of the whole step, not averaged per batch and then again. */

typedef struct ft__trainer {
  ft_context *context;
  ft_model *model;
  const ft_dataset *train, *evaluation;
  ft_encoded *encoded, *encoded_evaluation;
  ft_optimizer *optimizer;
  ft_snapshot *best;
  ft_features *features, *evaluation_features; /* with cache_frozen */
  bool *trained;            /* [parameters]: which train in the end, if they are unfrozen one after another */
  ft_train_options options; /* with defaults filled in */
  ft_train_result *result;
  ft_batch batch;
  int64_t *order;  /* [rows]: this epoch's shuffle */
  int64_t *starts; /* [batches + 1]: batch i is order[starts[i] .. starts[i + 1]) */
  int64_t batches, steps_per_epoch, total_steps, warmup_steps, step;
  double start_time, cache_seconds, loss_sum;
  int64_t tokens;  /* since start_time */
  int32_t *labels; /* [rows] of one batch, or NULL */
  float *targets;  /* [rows, C] of one batch, or NULL */
} ft__trainer;

static void ft__train_defaults(ft_train_options *options) {
  if (options->epochs <= 0) options->epochs = 3;
  if (options->batch_size <= 0) options->batch_size = 16;
  if (options->gradient_accumulation <= 0) options->gradient_accumulation = 1;
  if (options->learning_rate == 0) options->learning_rate = options->adapter ? 5e-4 : 2e-5;
  if (options->weight_decay == 0) options->weight_decay = 0.01;
  if (options->weight_decay < 0) options->weight_decay = 0;
  if (options->max_gradient_norm == 0) options->max_gradient_norm = 1.0;
  if (options->seed == 0) options->seed = 42;
}

/* Cuts this epoch's order into batches: by number of texts, or as many as fit into batch_tokens. */
static void ft__cut_batches(ft__trainer *t) {
  int64_t row, texts = 0, tokens = 0;
  t->batches = 0;
  for (row = 0; row < t->encoded->rows; ++row) {
    int64_t length = t->encoded->offsets[t->order[row] + 1] - t->encoded->offsets[t->order[row]];
    bool full =
        t->options.batch_tokens > 0 ? tokens + length > t->options.batch_tokens : texts == t->options.batch_size;
    if (row == 0 || full) {
      t->starts[t->batches++] = row;
      texts = tokens = 0;
    }
    ++texts;
    tokens += length;
  }
  t->starts[t->batches] = t->encoded->rows;
}

static ft_status ft__order_epoch(ft__trainer *t, int64_t epoch) {
  ft_status status = FT_OK;
  int64_t i;
  if (t->options.no_shuffle)
    for (i = 0; i < t->encoded->rows; ++i) t->order[i] = i;
  else
    ft_shuffle(t->order, t->encoded->rows, t->options.seed + (uint64_t)epoch);
  if (t->options.group_by_length)
    status = ft_group_by_length(t->context, t->encoded, t->order,
                                (int64_t)t->options.batch_size * t->options.gradient_accumulation);
  ft__cut_batches(t);
  return status;
}

static ft_status ft__train_prepare(ft__trainer *t, const ft_tokenizer *tokenizer) {
  ft_context *context = t->context;
  ft_adamw_options adamw = {0, 0, 0, 0, 0};
  int64_t rows = t->train->rows, classes = t->train->label_count;
  int64_t largest = t->options.batch_tokens > 0 || rows < t->options.batch_size ? rows : t->options.batch_size;
  int max_length = ft_max_length(context, t->model, tokenizer, t->options.max_length);
  double steps;
  if (max_length == 0) return ft_error_status(context);
  t->encoded = ft_dataset_encode(context, t->train, tokenizer, max_length);
  if (t->evaluation) t->encoded_evaluation = ft_dataset_encode(context, t->evaluation, tokenizer, max_length);
  if (!t->encoded || (t->evaluation && !t->encoded_evaluation)) return ft_error_status(context);
  adamw.weight_decay = t->options.weight_decay;
  adamw.layer_decay = t->options.layer_decay;
  t->optimizer = ft_optimizer_create(context, t->model, t->options.adapter, &adamw);
  if (t->evaluation && !t->options.keep_last) t->best = ft_snapshot_create(context, t->model, t->options.adapter);
  t->order = (int64_t *)ft_allocate(context, (size_t)rows * sizeof(int64_t));
  t->starts = (int64_t *)ft_allocate(context, (size_t)(rows + 1) * sizeof(int64_t));
  t->labels = (int32_t *)ft_allocate(context, (size_t)largest * sizeof(int32_t));
  t->targets = (float *)ft_allocate(context, (size_t)(largest * classes) * sizeof(float));
  if (!t->optimizer || (t->evaluation && !t->options.keep_last && !t->best) || !t->order || !t->starts || !t->labels ||
      !t->targets)
    return ft_error_status(context);
  if (ft__order_epoch(t, 0) != FT_OK) return ft_error_status(context);
  t->steps_per_epoch = (t->batches + t->options.gradient_accumulation - 1) / t->options.gradient_accumulation;
  steps = t->options.epochs * (double)t->steps_per_epoch;
  t->total_steps = t->options.max_steps > 0 ? t->options.max_steps : (int64_t)ceil(steps - 1e-9);
  t->warmup_steps =
      (int64_t)(t->options.warmup < 1 ? ceil((double)t->total_steps * t->options.warmup) : t->options.warmup);
  t->result->truncated_rows = t->encoded->truncated_rows;
  return FT_OK;
}

/* The output of the parts that stay frozen to the end, for all epochs. */
static ft_status ft__train_cache(ft__trainer *t) {
  ft_features_options options;
  memset(&options, 0, sizeof options);
  options.memory_limit = t->options.cache_memory_limit;
  options.directory = t->options.cache_directory;
  t->features = ft_features_create(t->context, t->model, t->options.adapter, t->encoded, &options);
  if (t->features && t->evaluation)
    t->evaluation_features =
        ft_features_create(t->context, t->model, t->options.adapter, t->encoded_evaluation, &options);
  return t->features && (t->evaluation_features || !t->evaluation) ? FT_OK : ft_error_status(t->context);
}

/* Gradual unfreezing: in epoch e (from 0) the topmost part trains and e * unfreeze_layers_per_epoch more. A negative
   epoch leaves everything as it was before training. */
static ft_status ft__train_unfreeze(ft__trainer *t, int64_t epoch) {
  int64_t i, count = ft_model_parameter_count(t->model);
  int top = 0;
  if (t->options.unfreeze_layers_per_epoch <= 0) return FT_OK;
  if (!t->trained) {
    if (!(t->trained = (bool *)ft_allocate(t->context, (size_t)count * sizeof(bool))))
      return ft_error_status(t->context);
    for (i = 0; i < count; ++i) t->trained[i] = ft_model_parameter(t->model, i)->tensor->requires_gradient;
  }
  for (i = 0; i < count; ++i)
    if (t->trained[i] && ft_model_parameter(t->model, i)->layer > top) top = ft_model_parameter(t->model, i)->layer;
  for (i = 0; i < count; ++i)
    ft_model_train_parameter(t->model, i,
                             t->trained[i] && (epoch < 0 || ft_model_parameter(t->model, i)->layer >=
                                                                top - epoch * t->options.unfreeze_layers_per_epoch));
  return FT_OK;
}

/* An error that names the step and where its texts stand in the file. */
static ft_status ft__not_finite(ft__trainer *t, const char *what, int64_t first, int64_t end) {
  char message[512];
  size_t used =
      (size_t)snprintf(message, sizeof message, "step %lld: the %s is not a finite number; its texts are at lines",
                       (long long)t->step + 1, what);
  int64_t i;
  for (i = first; i < end && i < first + 16; ++i)
    used += (size_t)snprintf(message + used, sizeof message - used, " %lld", (long long)t->train->lines[t->order[i]]);
  snprintf(message + used, sizeof message - used, "%s of %.150s", i < end ? " .." : "", t->train->name);
  return ft_error_set(t->context, FT_ERROR_NUMERIC, message);
}

/* How the model runs on the batch of the texts from `first` of this epoch's order. */
static ft_forward_options ft__train_forward(const ft__trainer *t, int64_t first) {
  ft_forward_options forward;
  memset(&forward, 0, sizeof forward);
  forward.training = !t->options.no_dropout;
  forward.gradient_checkpointing = t->options.gradient_checkpointing;
  forward.features = t->features;
  forward.feature_rows = t->order + first;
  forward.adapter = t->options.adapter;
  return forward;
}

/* Logs what the step of the first epoch's largest batch will take, and takes its memory. */
static ft_status ft__train_plan(ft__trainer *t) {
  ft_forward_options forward;
  ft_plan plan;
  ft_status status;
  int64_t i, row, tokens, most = -1, largest = 0;
  for (i = 0; i < t->batches; ++i) {
    for (row = t->starts[i], tokens = 0; row < t->starts[i + 1]; ++row)
      tokens += t->encoded->offsets[t->order[row] + 1] - t->encoded->offsets[t->order[row]];
    if (tokens > most) most = tokens, largest = i;
  }
  forward = ft__train_forward(t, t->starts[largest]);
  status = ft_batch_select(t->context, &t->batch, t->encoded, t->order + t->starts[largest],
                           t->starts[largest + 1] - t->starts[largest]);
  if (status == FT_OK) status = ft_plan_step(t->context, t->model, &t->batch, &forward, &plan);
  return status == FT_OK ? ft_tape_reserve(t->context, plan.activations) : status;
}

/* Forward and backward of one batch; adds its share of the step's mean loss. */
static ft_status ft__train_batch(ft__trainer *t, int64_t index, int64_t micro_batch, double texts_of_step,
                                 double *loss) {
  ft_context *context = t->context;
  int64_t first = t->starts[index], count = t->starts[index + 1] - first, classes = t->train->label_count, i;
  ft_forward_options forward = ft__train_forward(t, first);
  ft_output output;
  ft_tensor *batch_loss;
  ft_real value = 0;
  ft_status status;
  for (i = 0; i < count; ++i) {
    int64_t row = t->order[first + i];
    if (t->train->labels) t->labels[i] = t->train->labels[row];
    if (t->train->targets)
      memcpy(t->targets + i * classes, t->train->targets + row * classes, (size_t)classes * sizeof(float));
  }
  ft_random_position(context, t->options.seed, t->step, micro_batch);
  status = ft_batch_select(context, &t->batch, t->encoded, t->order + first, count);
  if (status == FT_OK) status = ft_model_forward(context, t->model, &t->batch, &forward, &output);
  if (status != FT_OK) return status;
  batch_loss = ft_model_loss(context, t->model, output.logits, t->train->labels ? t->labels : NULL,
                             t->train->targets ? t->targets : NULL, texts_of_step);
  if (!batch_loss || ft_tensor_read(context, batch_loss, &value) != FT_OK) return ft_error_status(context);
  if (!ft_is_finite((double)value)) return ft__not_finite(t, "loss", first, first + count);
  *loss += (double)value;
  t->tokens += t->batch.tokens;
  status = ft_backward(context, batch_loss);
  ft_tape_clear(context);
  return status;
}

static ft_status ft__report(ft__trainer *t, ft_train_progress *progress) {
  char message[80];
  double steps; /* seconds of steps and evaluations */
  progress->step = t->step;
  progress->total_steps = t->total_steps;
  progress->epoch = (double)t->step / (double)t->steps_per_epoch;
  progress->seconds = ft_seconds() - t->start_time;
  steps = progress->seconds - t->cache_seconds;
  progress->seconds_left = steps / (double)t->step * (double)(t->total_steps - t->step);
  progress->tokens_per_second = steps > 0 ? (double)t->tokens / steps : 0;
  if (!t->options.progress || t->options.progress(t->options.user_data, progress)) return FT_OK;
  snprintf(message, sizeof message, "stopped at step %lld by the progress callback", (long long)t->step);
  return ft_error_set(t->context, FT_ERROR_STOPPED, message);
}

/* One optimizer step over up to gradient_accumulation batches, the first being `index`. */
static ft_status ft__train_step(ft__trainer *t, int64_t index) {
  ft_train_progress progress;
  int64_t end = index + t->options.gradient_accumulation, i;
  double texts, loss = 0, scale = 1;
  ft_status status = FT_OK;
  if (end > t->batches) end = t->batches;
  texts = (double)(t->starts[end] - t->starts[index]);
  for (i = index; status == FT_OK && i < end; ++i) status = ft__train_batch(t, i, i - index, texts, &loss);
  memset(&progress, 0, sizeof progress);
  if (status == FT_OK) status = ft_optimizer_gradient_norm(t->context, t->optimizer, &progress.gradient_norm);
  if (status != FT_OK) return status;
  if (!ft_is_finite(progress.gradient_norm)) return ft__not_finite(t, "gradient", t->starts[index], t->starts[end]);
  if (t->options.max_gradient_norm > 0) scale = ft_clip_factor(progress.gradient_norm, t->options.max_gradient_norm);
  progress.learning_rate =
      t->options.learning_rate * ft_schedule_factor(t->options.schedule, t->step, t->warmup_steps, t->total_steps);
  progress.loss = loss;
  status = ft_optimizer_step(t->context, t->optimizer, progress.learning_rate, scale);
  ++t->step;
  t->loss_sum += loss;
  return status == FT_OK ? ft__report(t, &progress) : status;
}

static ft_status ft__train_evaluate(ft__trainer *t, int epoch) {
  ft_train_progress progress;
  ft_scoring_options scoring;
  ft_metrics metrics;
  ft_status status;
  double score;
  memset(&metrics, 0, sizeof metrics);
  memset(&progress, 0, sizeof progress);
  memset(&scoring, 0, sizeof scoring);
  scoring.batch_size = t->options.evaluation_batch_size;
  scoring.features = t->evaluation_features;
  scoring.adapter = t->options.adapter;
  status = ft_evaluate(t->context, t->model, t->encoded_evaluation, t->evaluation, &scoring, &metrics);
  if (status != FT_OK) return status;
  score = ft_metrics_score(&metrics, t->evaluation->task);
  if (t->result->best_epoch == 0 || score > t->result->best_score) {
    progress.best = true;
    t->result->best_score = score;
    t->result->best_epoch = epoch;
    if (t->best) status = ft_snapshot_take(t->context, t->best, t->model, t->options.adapter);
  }
  progress.evaluation = &metrics;
  if (status == FT_OK) status = ft__report(t, &progress);
  ft_metrics_free(&metrics);
  return status;
}

static ft_status ft__train_epochs(ft__trainer *t) {
  ft_status status = FT_OK;
  int64_t epoch, batch;
  t->start_time = ft_seconds();
  if (t->options.cache_frozen) status = ft__train_cache(t);
  t->cache_seconds = ft_seconds() - t->start_time;
  if (status == FT_OK) status = ft__train_plan(t);
  for (epoch = 0; status == FT_OK && t->step < t->total_steps; ++epoch) {
    status = ft__order_epoch(t, epoch);
    if (status == FT_OK) status = ft__train_unfreeze(t, epoch);
    for (batch = 0; status == FT_OK && batch < t->batches && t->step < t->total_steps;
         batch += t->options.gradient_accumulation)
      status = ft__train_step(t, batch);
    if (status == FT_OK && t->evaluation) status = ft__train_evaluate(t, (int)epoch + 1);
  }
  if (t->trained) ft__train_unfreeze(t, -1);
  t->result->steps = t->step;
  t->result->train_loss = t->step ? t->loss_sum / (double)t->step : 0;
  t->result->seconds = ft_seconds() - t->start_time;
  if (t->best && t->result->best_epoch && (status == FT_OK || status == FT_ERROR_STOPPED)) {
    ft_status restored = ft_snapshot_restore(t->context, t->best, t->model, t->options.adapter);
    if (restored != FT_OK) status = restored;
  }
  return status;
}

/* Training and evaluation data must number their labels alike. */
static ft_status ft__check_same_labels(ft_context *context, const ft_dataset *train, const ft_dataset *evaluation) {
  char message[512];
  int c;
  for (c = 0; train->label_names && evaluation->label_names && c < train->label_count; ++c) {
    if (strcmp(train->label_names[c], evaluation->label_names[c]) == 0) continue;
    snprintf(message, sizeof message,
             "label %d is \"%.60s\" in %.120s but \"%.60s\" in %.120s: give both the same label_names", c,
             train->label_names[c], train->name, evaluation->label_names[c], evaluation->name);
    return ft_error_set(context, FT_ERROR_ARGUMENT, message);
  }
  return FT_OK;
}

FT_API ft_status ft_train(ft_context *context, ft_model *model, const ft_tokenizer *tokenizer, const ft_dataset *train,
                          const ft_dataset *evaluation, const ft_train_options *options, ft_train_result *result) {
  ft__trainer t;
  ft_train_result unused;
  ft_status status;
  memset(&t, 0, sizeof t);
  if (!result) result = &unused;
  memset(result, 0, sizeof *result);
  if (!context) return FT_ERROR_MEMORY;
  if (!model || !tokenizer || !train) /* a NULL that an earlier failure made leaves its message in place */
    return ft_error_status(context) != FT_OK
               ? ft_error_status(context)
               : ft_error_set(context, FT_ERROR_ARGUMENT, "ft_train needs a model, a tokenizer and a dataset");
  if ((status = ft_model_check_dataset(context, model, train)) != FT_OK) return status;
  if (evaluation && ((status = ft_model_check_dataset(context, model, evaluation)) != FT_OK ||
                     (status = ft__check_same_labels(context, train, evaluation)) != FT_OK))
    return status;
  t.context = context;
  t.model = model;
  t.train = train;
  t.evaluation = evaluation;
  t.result = result;
  if (options) t.options = *options;
  ft__train_defaults(&t.options);
  if (t.options.adapter) ft_model_train_all(model, false);
  if (t.options.adapter && t.options.unfreeze_layers_per_epoch > 0)
    return ft_error_set(context, FT_ERROR_ARGUMENT,
                        "unfreezing layers is for the model's own parameters, not an adapter's");
  status = ft__train_prepare(&t, tokenizer);
  if (status == FT_OK) status = ft__train_epochs(&t);
  ft_tape_clear(context);
  ft_batch_free(&t.batch);
  ft_encoded_free(t.encoded);
  ft_encoded_free(t.encoded_evaluation);
  ft_optimizer_free(t.optimizer);
  ft_snapshot_free(t.best);
  ft_features_free(t.features);
  ft_features_free(t.evaluation_features);
  ft_release(context, t.trained);
  ft_release(context, t.order);
  ft_release(context, t.starts);
  ft_release(context, t.labels);
  ft_release(context, t.targets);
  return status;
}

#endif /* FT_IMPLEMENTATION */

/* ---------------------------------------------------------------------------------------------------------------------
   Licence: CC0 1.0 Universal. To the extent possible under law, the authors have waived all copyright and related or
   neighbouring rights to this work. It comes without any warranty.
   https://creativecommons.org/publicdomain/zero/1.0/
   */
