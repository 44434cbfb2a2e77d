/* Tests of the tokenizer chapter: every reference in tests/tokenizers, made by tools/tokenizer_references.py with the
   Hugging Face tokenizers package; the plain way against the fast one; files that are broken; saving. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

enum { MOST_TEXTS = 100, MOST_CALLS = 400 };

static struct {
  char *bytes;
  size_t length;
} texts[MOST_TEXTS];
static int text_count;

static int hexadecimal(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

/* Undoes the escapes of texts.txt in place: \\, \n, \xHH. */
static size_t unescape(char *text, size_t length) {
  size_t from, to = 0;
  for (from = 0; from < length; ++from) {
    char c = text[from];
    if (c == '\\') {
      c = text[++from];
      if (c == 'n') c = '\n';
      if (c == 'x') {
        c = (char)(hexadecimal(text[from + 1]) * 16 + hexadecimal(text[from + 2]));
        from += 2;
      }
    }
    text[to++] = c;
  }
  return to;
}

static char *read_texts(ft_context *context) {
  size_t size;
  char *file = ft__file_read(context, "tests/tokenizers/texts.txt", &size), *line, *end;
  if (!file) return NULL;
  for (line = file; line < file + size && text_count < MOST_TEXTS; line = end + 1) {
    end = strchr(line, '\n');
    texts[text_count].bytes = line;
    texts[text_count++].length = unescape(line, (size_t)(end - line));
  }
  return file;
}

/* "id id,gap,length id,gap,length:type ..." as the references have it. */
static void describe(const ft_encoding *encoding, ft__string *out) {
  int64_t i;
  int last = 0;
  out->length = 0;
  ft__append(out, "");
  for (i = 0; i < encoding->count; ++i) {
    int begin = encoding->begin[i], end = encoding->end[i];
    ft__append_format(out, "%s%d", i ? " " : "", encoding->ids[i]);
    if (begin || end) {
      ft__append_format(out, ",%d,%d", begin - last, end - begin);
      last = end;
    }
    if (encoding->token_types[i]) ft__append_format(out, ":%d", encoding->token_types[i]);
  }
}

static void check_calls(ft_context *context, const ft_tokenizer *tokenizer, const char *name) {
  char path[256], *file, *line, *end;
  size_t size;
  int calls = 0, wrong = 0;
  ft_encoding encoding;
  ft__string out;
  memset(&encoding, 0, sizeof encoding);
  memset(&out, 0, sizeof out);
  out.context = context;
  snprintf(path, sizeof path, "tests/tokenizers/%s/expected.txt", strcmp(name, "albert-json") ? name : "albert");
  file = ft__file_read(context, path, &size);
  CHECK(file != NULL);
  for (line = file; file && line < file + size; line = end + 1, ++calls) {
    int text = 0, pair = 0, max_length = 0, truncation = 0, with_special = 0, start = 0;
    ft_encode_options options;
    ft_status status;
    memset(&options, 0, sizeof options);
    end = strchr(line, '\n');
    *end = 0;
    sscanf(line, "%d %d %d %d %d: %n", &text, &pair, &max_length, &truncation, &with_special, &start);
    if (start == 0) start = (int)strlen(line);
    options.max_length = max_length;
    options.truncation = (ft_truncation)truncation;
    options.no_special_tokens = !with_special;
    options.offsets = true;
    status = ft_tokenizer_encode(context, tokenizer, texts[text].bytes, texts[text].length,
                                 pair < 0 ? NULL : texts[pair].bytes, pair < 0 ? 0 : texts[pair].length, &options,
                                 &encoding);
    describe(&encoding, &out);
    if (strcmp(status == FT_OK ? out.text : "error", line + start) == 0) continue;
    if (++wrong <= 3) printf("%s: %s\n  got %s\n", name, line, status == FT_OK ? out.text : ft_error_message(context));
  }
  CHECK(calls > 50 && wrong == 0);
  ft__string_free(&out);
  ft_encoding_free(&encoding);
  ft__release(context, file);
}

/* ---- every code point ---- */

static uint32_t checksum(uint32_t crc, const char *bytes, size_t count) { /* CRC-32, as zlib computes it */
  static uint32_t table[256];
  size_t i;
  if (table[1] == 0)
    for (i = 0; i < 256; ++i) {
      uint32_t value = (uint32_t)i;
      int bit;
      for (bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320u : 0);
      table[i] = value;
    }
  crc = ~crc;
  for (i = 0; i < count; ++i) crc = crc >> 8 ^ table[(crc ^ (unsigned char)bytes[i]) & 255];
  return ~crc;
}

/* Of every code point normalised by a normalizer that is written as in tokenizer.json. */
static uint32_t normalizer_checksum(ft_context *context, ft_tokenizer *tokenizer, const char *text) {
  ft__normalizer *normalizer = &tokenizer->normalizer;
  ft__loader loader;
  ft_json *json = ft_json_parse(context, text, strlen(text), "normalizer");
  uint32_t code, crc = 0;
  loader.context = context;
  loader.tokenizer = tokenizer;
  loader.path = "normalizer";
  CHECK(json && ft__load_normalizer(&loader, json));
  ft_json_free(json);
  for (code = 0; code < FT__CODE_POINTS; ++code) {
    ft__characters first, second, *result;
    char bytes[4], out[128];
    size_t length = 0;
    int64_t i;
    if (code >= 0xD800 && code < 0xE000) continue;
    ft__characters_start(&first, context);
    ft__characters_start(&second, context);
    result = ft__normalize(normalizer, bytes, 0, ft__utf8_encode(code, bytes), &first, &second);
    for (i = 0; i < result->count; ++i) length += (size_t)ft__utf8_encode(result->at[i].code, out + length);
    out[length++] = '\n';
    crc = checksum(crc, out, length);
    ft__characters_free(&first);
    ft__characters_free(&second);
  }
  ft__steps_free(context, normalizer->steps, normalizer->count);
  normalizer->steps = NULL;
  normalizer->count = normalizer->capacity = 0;
  return crc;
}

static void check_code_points(ft_context *context) {
  static const char *const others[] = {"NFD", "NFKD", "NFC", "NFKC", "StripAccents", "Lowercase"};
  ft_tokenizer *tokenizer = (ft_tokenizer *)ft__allocate_zero(context, sizeof *tokenizer);
  ft__unicode *unicode = &tokenizer->normalizer.unicode;
  size_t size;
  char *file = ft__file_read(context, "tests/tokenizers/code_points.txt", &size), *line = file, text[200];
  uint32_t code, crc = 0;
  int flags;
  CHECK(file && size == 23 * 9 && ft__unicode_create(context, unicode));
  for (flags = 0; flags < 22; ++flags) {
    static const char *const words[] = {"false", "true"};
    if (flags < 16)
      snprintf(text, sizeof text,
               "{\"type\":\"BertNormalizer\",\"clean_text\":%s,\"handle_chinese_chars\":%s,\"strip_accents\":%s,"
               "\"lowercase\":%s}",
               words[flags & 1], words[flags >> 1 & 1], words[flags >> 2 & 1], words[flags >> 3 & 1]);
    else
      snprintf(text, sizeof text, "{\"type\":\"%s\"}", others[flags - 16]);
    CHECK(normalizer_checksum(context, tokenizer, text) == (uint32_t)strtoul(line, &line, 16));
  }
  for (code = 0; code < FT__CODE_POINTS; ++code) {
    int property = unicode->properties[code];
    char kind =
        (char)((property & FT__WHITESPACE ? 1 : 0) + (property & FT__PUNCTUATION ? 2 : 0) +
               (property & FT__WORD ? 4 : 0) + (property & FT__LETTER ? 8 : 0) + (property & FT__NUMBER ? 16 : 0));
    if (code < 0xD800 || code >= 0xE000) crc = checksum(crc, &kind, 1);
  }
  CHECK(crc == (uint32_t)strtoul(line, &line, 16));
  ft__release(context, file);
  ft__unicode_free(unicode);
  ft__release(context, tokenizer);
}

/* ---- the plain way and the fast one ---- */

static uint32_t state = 12345;
static uint32_t next_random(uint32_t below) {
  state = state * 1664525u + 1013904223u;
  return (uint32_t)(((uint64_t)(state >> 8) * below) >> 24);
}

static size_t random_text(char *out, size_t room) {
  static const char *const pieces[] = {"[SEP]", "the", "[MASK", " ",    "<m>", "  <m> ",
                                       "film",  "ete", "abc",   "ing ", "\n"};
  size_t length = 0, wanted = next_random(200);
  while (length < wanted && length + 16 < room) {
    uint32_t kind = next_random(20);
    if (kind < 5) {
      out[length++] = (char)next_random(256);
    } else if (kind < 11) {
      out[length++] = (char)(32 + next_random(95));
    } else if (kind < 13) {
      const char *piece = pieces[next_random(sizeof pieces / sizeof *pieces)];
      memcpy(out + length, piece, strlen(piece));
      length += strlen(piece);
    } else {
      uint32_t limit = kind < 16 ? 0x370 : kind < 18 ? 0x3100 : FT__CODE_POINTS;
      length += (size_t)ft__utf8_encode(next_random(limit), out + length);
    }
  }
  return length;
}

static bool same_encodings(const ft_encoding *a, const ft_encoding *b) {
  size_t bytes = (size_t)a->count * sizeof(int32_t);
  return a->count == b->count && memcmp(a->ids, b->ids, bytes) == 0 && memcmp(a->begin, b->begin, bytes) == 0 &&
         memcmp(a->end, b->end, bytes) == 0 && memcmp(a->token_types, b->token_types, bytes) == 0;
}

static void check_twins(ft_context *context, ft_tokenizer *tokenizer, const char *name) {
  ft_encoding fast, plain;
  ft_encode_options options;
  int round, different = 0;
  memset(&fast, 0, sizeof fast);
  memset(&plain, 0, sizeof plain);
  memset(&options, 0, sizeof options);
  options.offsets = true;
  for (round = 0; round < 2000; ++round) {
    char text[512];
    size_t length = random_text(text, sizeof text);
    tokenizer->plain = false;
    CHECK(ft_tokenizer_encode(context, tokenizer, text, length, NULL, 0, &options, &fast) == FT_OK);
    tokenizer->plain = true;
    CHECK(ft_tokenizer_encode(context, tokenizer, text, length, NULL, 0, &options, &plain) == FT_OK);
    if (!same_encodings(&fast, &plain)) ++different;
  }
  if (different) printf("%s: %d texts differ between the plain way and the fast one\n", name, different);
  CHECK(different == 0);
  tokenizer->plain = false;
  ft_encoding_free(&fast);
  ft_encoding_free(&plain);
}

/* ---- files written by the tests ---- */

static char directory[256];

static void write_file(ft_context *context, const char *name, const char *text) {
  char path[512];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  CHECK(ft__file_write(context, path, text, strlen(text)) == FT_OK);
}

static void remove_files(void) {
  char path[512];
  int i;
  for (i = 0; i <= FT__KEPT_FILES; ++i) {
    snprintf(path, sizeof path, "%s/%s", directory, i < FT__KEPT_FILES ? ft__kept_names[i] : "added_tokens.json");
    remove(path);
  }
}

/* Loading the directory must fail with a message that holds `part`. */
static void check_refused(ft_context *context, const char *part) {
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, directory);
  CHECK(tokenizer == NULL);
  if (!strstr(ft_error_message(context), part)) printf("\"%s\" lacks \"%s\"\n", ft_error_message(context), part);
  CHECK(strstr(ft_error_message(context), part) != NULL);
  ft_tokenizer_free(tokenizer);
  remove_files();
}

#define SPLIT "\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}"
#define MODEL(vocabulary)                                                                           \
  "\"model\":{\"type\":\"WordPiece\",\"unk_token\":\"[UNK]\",\"continuing_subword_prefix\":\"##\"," \
  "\"max_input_chars_per_word\":100,\"vocab\":{" vocabulary "}}"

static void check_refused_json(ft_context *context, const char *text, const char *part) {
  write_file(context, "tokenizer.json", text);
  check_refused(context, part);
}

static void check_broken_json(ft_context *context) {
  check_refused_json(context, "", "line 1");
  check_refused_json(context, "[]", "no JSON object");
  check_refused_json(context, "{}", "model is missing");
  check_refused_json(context, "{\"model\":{\"type\":\"WordLevel\"}}", "model of type WordLevel is not supported");
  check_refused_json(context, "{\"model\":{\"type\":\"WordPiece\",\"vocab\":{},\"x\":1}}", "model.x is not supported");
  check_refused_json(context, "{\"model\":{\"type\":\"WordPiece\",\"vocab\":[]}}", "model.vocab has the wrong type");
  check_refused_json(context, "{" MODEL("\"a\":0") "}", "unknown token \"[UNK]\"");
  check_refused_json(context, "{" MODEL("\"[UNK]\":0,\"a\":0") "}", "have the same id 0");
  check_refused_json(context, "{" MODEL("\"[UNK]\":0,\"a\":-1") "}", "out of range");
  check_refused_json(context, "{" MODEL("\"[UNK]\":0,\"a\":16777216") "}", "out of range");
  check_refused_json(context, "{" MODEL("\"[UNK]\":0,\"a\":1.5") "}", "out of range");
  check_refused_json(context, "{" MODEL("\"[UNK]\":0,\"a\":\"b\"") "}", "out of range");
  check_refused_json(context, "{\"pre_tokenizer\":{\"type\":\"Digits\"}," MODEL("\"[UNK]\":0") "}",
                     "pre_tokenizer of type Digits is not supported");
  check_refused_json(context, "{\"normalizer\":{\"type\":\"Nmt\"}," SPLIT "," MODEL("\"[UNK]\":0") "}",
                     "normalizer of type Nmt is not supported");
  check_refused_json(
      context, "{\"normalizer\":{\"type\":\"BertNormalizer\",\"clean_text\":1}," SPLIT "," MODEL("\"[UNK]\":0") "}",
      "normalizer.clean_text has the wrong type");
  check_refused_json(context, "{\"post_processor\":{\"type\":\"Other\"}," SPLIT "," MODEL("\"[UNK]\":0") "}",
                     "post_processor of type Other is not supported");
  check_refused_json(context,
                     "{\"post_processor\":{\"type\":\"BertProcessing\",\"cls\":[\"a\",9],\"sep\":[\"a\",0]}," SPLIT
                     "," MODEL("\"[UNK]\":0") "}",
                     "id 9, where the largest is 0");
  check_refused_json(context,
                     "{\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[],\"pair\":[],"
                     "\"special_tokens\":{}}," SPLIT "," MODEL("\"[UNK]\":0") "}",
                     "post_processor.single holds 0 texts, expected 1");
  check_refused_json(
      context, "{\"added_tokens\":[{\"id\":7,\"content\":\"x\",\"special\":true}]," SPLIT "," MODEL("\"[UNK]\":0") "}",
      "has id 7, where 1 was expected");
  check_refused_json(context,
                     "{\"added_tokens\":[{\"id\":0,\"content\":\"[UNK]\"},{\"id\":0,\"content\":\"[UNK]\"}]," SPLIT
                     "," MODEL("\"[UNK]\":0") "}",
                     "listed twice");
  check_refused_json(context, "{\"added_tokens\":[{\"id\":1,\"content\":\"\"}]," SPLIT "," MODEL("\"[UNK]\":0") "}",
                     "is empty");
}

/* Special ids by role: from the configuration, and by the usual names. */
static void check_roles(ft_context *context) {
  static const char *const names[] = {"vocab-cased", "merges", "albert", "albert-json", "xlm-roberta", "unigram"};
  static const char *const pieces[][5] = {
      {"[PAD]", "<unk>", "<cls>", "[SEP]", "[MASK]"}, {"<pad>", "<unk>", "<s>", "</s>", "<mask>"},
      {"<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"}, {"<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"},
      {"<pad>", "<unk>", "<s>", "</s>", "<mask>"},    {"<pad>", "<unk>", "<s>", "</s>", NULL}};
  size_t i, k;
  for (i = 0; i < sizeof names / sizeof *names; ++i) {
    char path[256];
    ft_tokenizer *tokenizer;
    snprintf(path, sizeof path, "tests/tokenizers/%s", names[i]);
    tokenizer = ft_tokenizer_load(context, path);
    for (k = 0; k < 5; ++k) {
      int32_t id = ft_tokenizer_special(tokenizer, (ft_special_token)k);
      CHECK(id == (pieces[i][k] ? ft_tokenizer_id(tokenizer, pieces[i][k]) : -1));
      CHECK(!pieces[i][k] || (id >= 0 && ft_tokenizer_is_special(tokenizer, id)));
    }
    CHECK(!ft_tokenizer_is_special(tokenizer, ft_tokenizer_id(tokenizer, "e")));
    CHECK(!ft_tokenizer_is_special(tokenizer, -1));
    CHECK(!ft_tokenizer_is_special(tokenizer, ft_tokenizer_size(tokenizer)));
    ft_tokenizer_free(tokenizer);
  }
}

#define UNIGRAM(vocabulary) "{\"model\":{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[" vocabulary "]}}"
#define BPE(merges) "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[" merges "]}"

static void check_broken_others(ft_context *context) {
  check_refused_json(context, UNIGRAM(""), "unk_id 0 is not among 0 pieces");
  check_refused_json(context, UNIGRAM("[\"a\",-1],[\"b\"]"), "model.vocab[1] is not [piece, score]");
  check_refused_json(context, "{" BPE("\"a c\"") "}", "merge 1: \"a\", \"c\" or both together are not among");
  check_refused_json(context, "{" BPE("\"a b\",\"ab\"") "}", "merge 2 is not two pieces");
  check_refused_json(context, "{" BPE("[\"a\"]") "}", "model.merges[0] is no pair");
  check_refused_json(context, "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"__\"}," BPE("") "}",
                     "pre_tokenizer.replacement \"__\" is not supported");
  check_refused_json(
      context, "{\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[ab]\"},\"content\":\"\"}," BPE("") "}",
      "normalizer.pattern \"[ab]\" is not supported");
  check_refused_json(context,
                     "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA?=\"}," BPE("") "}",
                     "is no base64");
  check_refused_json(context,
                     "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}," BPE("") "}",
                     "charsmap of 3 bytes is broken");
  write_file(context, "vocab.json", "{\"a\": 0}");
  check_refused(context, "holds neither tokenizer.json nor");
  write_file(context, "vocab.json", "[]");
  write_file(context, "merges.txt", "");
  check_refused(context, "no JSON object");
  write_file(context, "vocab.json", "{\"a\": 0, \"b\": 1}");
  write_file(context, "merges.txt", "#version: 0.2\na b\n");
  check_refused(context, "merges.txt: merge 1: \"a\", \"b\" or both together");
  write_file(context, "spiece.model", "no model");
  check_refused(context, "no sentencepiece model, or broken at byte 0");
  write_file(context, "spiece.model", "\x0A\x03\x0A\x01\xFF");
  check_refused(context, "piece 0 is broken");
  write_file(context, "spiece.model",
             "\x0A\x03\x0A\x01"
             "a\x12\x02\x18\x02");
  check_refused(context, "a sentencepiece model of type 2");
  write_file(context, "spiece.model",
             "\x0A\x03\x0A\x01"
             "a");
  write_file(context, "tokenizer_config.json", "{\"tokenizer_class\": \"T5Tokenizer\"}");
  check_refused(context, "a tokenizer_class T5Tokenizer without tokenizer.json is not supported");
}

static void check_broken_vocabulary(ft_context *context) {
  check_refused(context, "neither tokenizer.json nor vocab.txt");
  write_file(context, "vocab.txt", "");
  check_refused(context, "unknown token \"[UNK]\" is not among the 0 pieces");
  write_file(context, "vocab.txt", "[UNK]\n[CLS]\nab\xFF\n");
  check_refused(context, "line 3 is not UTF-8");
  write_file(context, "vocab.txt", "[UNK]\na\na\n");
  check_refused(context, "\"[SEP]\" would get id 2, which is taken");
  write_file(context, "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n");
  write_file(context, "tokenizer_config.json", "{\"do_lower_case\": 1}");
  check_refused(context, "do_lower_case has the wrong type");
  write_file(context, "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n");
  write_file(context, "tokenizer_config.json", "{\"cls_token\": null}");
  check_refused(context, "may not be null");
  write_file(context, "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n");
  write_file(context, "added_tokens.json", "{\"x\": 6}");
  check_refused(context, "added_tokens.json is not supported");
}

static void check_same_file(ft_context *context, const char *a_directory, const char *name) {
  char a_path[512], b_path[512], *a = NULL, *b = NULL;
  size_t a_size = 0, b_size = 0;
  snprintf(a_path, sizeof a_path, "%s/%s", a_directory, name);
  snprintf(b_path, sizeof b_path, "%s/%s", directory, name);
  if (ft__file_exists(a_path)) a = ft__file_read(context, a_path, &a_size);
  if (ft__file_exists(b_path)) b = ft__file_read(context, b_path, &b_size);
  CHECK(!a || (b && a_size == b_size && memcmp(a, b, a_size) == 0));
  ft__release(context, a);
  ft__release(context, b);
}

/* A saved tokenizer is the same files, and loads. */
static void check_saved(ft_context *context, const ft_tokenizer *tokenizer, const char *from) {
  ft_tokenizer *again;
  int i;
  CHECK(ft_tokenizer_save(context, tokenizer, directory) == FT_OK);
  for (i = 0; i < FT__KEPT_FILES; ++i) check_same_file(context, from, ft__kept_names[i]);
  again = ft_tokenizer_load(context, directory);
  CHECK(again && ft_tokenizer_size(again) == ft_tokenizer_size(tokenizer) &&
        again->normalizer.lowercase == tokenizer->normalizer.lowercase);
  ft_tokenizer_free(again);
  remove_files();
}

static void check_interface(ft_context *context) {
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, "tests/tokenizers/vocab-cased");
  ft_encode_options options;
  ft_encoding encoding;
  memset(&options, 0, sizeof options);
  memset(&encoding, 0, sizeof encoding);
  CHECK(ft_tokenizer_max_length(tokenizer) == 77);
  CHECK_TEXT(ft_tokenizer_token(tokenizer, 0), "[PAD]");
  CHECK(ft_tokenizer_token(tokenizer, -1) == NULL);
  CHECK(ft_tokenizer_token(tokenizer, ft_tokenizer_size(tokenizer)) == NULL);
  CHECK(ft_tokenizer_token(tokenizer, ft_tokenizer_size(tokenizer) - 1) != NULL);
  CHECK(ft_tokenizer_id(tokenizer, "[SEP]") == 3);
  CHECK(ft_tokenizer_id(tokenizer, "<w>") == ft_tokenizer_size(tokenizer) - 1);
  CHECK(ft_tokenizer_id(tokenizer, "spaces") >= 0);
  CHECK(ft_tokenizer_id(tokenizer, "no such piece") == -1);
  options.max_length = 1;
  CHECK(ft_tokenizer_encode(context, tokenizer, "a", 1, NULL, 0, &options, &encoding) == FT_ERROR_ARGUMENT);
  CHECK_TEXT(ft_error_message(context), "max_length 1 leaves no room: the special tokens alone are 2");
  options.max_length = 4;
  options.truncation = FT_TRUNCATE_ONLY_SECOND;
  CHECK(ft_tokenizer_encode(context, tokenizer, "a b c", 5, NULL, 0, &options, &encoding) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "second text not provided") != NULL);
  CHECK(ft_tokenizer_encode(context, tokenizer, "a b c", 5, "d", 1, &options, &encoding) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "the second text has 1 tokens, too few to cut 3") != NULL);
  options.truncation = FT_TRUNCATE_LONGEST_FIRST;
  CHECK(ft_tokenizer_encode(context, tokenizer, "a b c", 5, NULL, 0, &options, &encoding) == FT_OK);
  CHECK(encoding.count == 4 && encoding.truncated == 1 && encoding.begin == NULL);
  CHECK(ft_tokenizer_encode(context, NULL, "a", 1, NULL, 0, NULL, &encoding) != FT_OK);
  ft_encoding_free(&encoding);
  ft_encoding_free(&encoding);
  ft_tokenizer_free(tokenizer);
  ft_tokenizer_free(NULL);
}

int main(void) {
  static const char *const names[] = {"uncased",        "cased",       "accents",       "stripped",    "nochinese",
                                      "unclean",        "bare",        "added",         "odd",         "normalized",
                                      "vocab",          "vocab-cased", "vocab-decoder", "bytes",       "bytes-prefix",
                                      "bytes-sequence", "characters",  "fallback",      "unfused",     "unigram",
                                      "unigram-bytes",  "merges",      "albert",        "albert-json", "albert-cased",
                                      "xlm-roberta"};
  const char *temporary = getenv("TMPDIR");
  ft_context *context = ft_context_create(NULL);
  char *file;
  size_t i;
  CHECK(context != NULL);
  file = read_texts(context);
  CHECK(file != NULL && text_count > 30);
  snprintf(directory, sizeof directory, "%.200s/ft-tokenizer-%lu", temporary ? temporary : "/tmp", ft__process());
  CHECK(ft__directory_create(context, directory) == FT_OK);
  for (i = 0; i < sizeof names / sizeof *names; ++i) {
    char path[256];
    ft_tokenizer *tokenizer;
    snprintf(path, sizeof path, "tests/tokenizers/%s", names[i]);
    tokenizer = ft_tokenizer_load(context, path);
    if (!tokenizer) printf("%s\n", ft_error_message(context));
    CHECK(tokenizer != NULL);
    if (!tokenizer) continue;
    check_calls(context, tokenizer, names[i]);
    tokenizer->plain = true;
    check_calls(context, tokenizer, names[i]);
    check_twins(context, tokenizer, names[i]);
    check_saved(context, tokenizer, path);
    ft_tokenizer_free(tokenizer);
  }
  check_code_points(context);
  check_interface(context);
  check_broken_json(context);
  check_broken_vocabulary(context);
  check_broken_others(context);
  check_roles(context);
  remove(directory);
  ft__release(context, file);
  ft_context_free(context);
  FINISH();
}
