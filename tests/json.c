/* json.c - UTF-8, decimal numbers, and the JSON reader and writer. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

static ft_context *context;

static ft_json *parse(const char *text) { return ft_json_parse(context, text, strlen(text), "test"); }

/* The text must be refused, with all of `message` in the error. */
static void refused(const char *text, size_t length, const char *message) {
  ft_json *root = ft_json_parse(context, text, length, "test");
  CHECK(root == NULL);
  CHECK(strncmp(ft_error_message(context), "test: line ", 11) == 0);
  CHECK(strstr(ft_error_message(context), message) != NULL);
  if (!strstr(ft_error_message(context), message))
    printf("  %s\n  should speak of: %s\n", ft_error_message(context), message);
  ft_json_free(root);
}

/* The text must come back from the writer as `expected`. */
static void written(const char *text, int indent, const char *expected) {
  ft__string out;
  ft_json *root = parse(text);
  memset(&out, 0, sizeof out);
  out.context = context;
  CHECK(root != NULL);
  if (root) ft__append_json(&out, root, indent);
  CHECK_TEXT(out.text, expected);
  ft__string_free(&out);
  ft_json_free(root);
}

static void test_utf8(void) {
  static const struct {
    const char *text;
    int length, bytes;
    uint32_t code;
  } cases[] = {{"A", 1, 1, 0x41},
               {"\xC3\xA9", 2, 2, 0xE9},
               {"\xE2\x82\xAC", 3, 3, 0x20AC},
               {"\xF0\x9F\x98\x80", 4, 4, 0x1F600},
               {"\xF4\x8F\xBF\xBF", 4, 4, 0x10FFFF},
               {"\xEF\xBF\xBD", 3, 3, 0xFFFD},
               {"\x80", 1, 1, 0xFFFD},             /* a continuation byte alone */
               {"\xC0\x80", 2, 1, 0xFFFD},         /* overlong */
               {"\xE0\x80\x80", 3, 1, 0xFFFD},     /* overlong */
               {"\xED\xA0\x80", 3, 1, 0xFFFD},     /* a surrogate */
               {"\xF0\x8F\xBF\xBF", 4, 1, 0xFFFD}, /* overlong */
               {"\xF4\x90\x80\x80", 4, 1, 0xFFFD}, /* above U+10FFFF */
               {"\xF5\x80\x80\x80", 4, 1, 0xFFFD}, /* no such lead */
               {"\xE2\x82", 2, 2, 0xFFFD},         /* cut off */
               {"\xF0\x9F\x98", 3, 3, 0xFFFD},     /* cut off */
               {"\xF0\x9F\x41", 3, 2, 0xFFFD},     /* interrupted */
               {"\xC3", 1, 1, 0xFFFD}};
  size_t i;
  uint32_t code;
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    int bytes = ft__utf8_decode(cases[i].text, (size_t)cases[i].length, &code);
    CHECK(bytes == cases[i].bytes && code == cases[i].code);
  }
  for (code = 0; code < 0x110000; ++code) { /* every code point survives, and nothing else is made */
    char out[4];
    uint32_t back, expected = code >= 0xD800 && code < 0xE000 ? 0xFFFD : code;
    int bytes = ft__utf8_encode(code, out);
    if (ft__utf8_decode(out, (size_t)bytes, &back) != bytes || back != expected ||
        ft__utf8_valid(out, (size_t)bytes) != bytes)
      break;
  }
  CHECK(code == 0x110000);
}

static void test_values(void) {
  ft_json *root = parse(
      "\xEF\xBB\xBF {\"a\": [1, -2.5e3, true, false, null], \"\\u00e9\\uD83D\\uDE00\\n\\/\": \"x\\u0000y\", \"o\": {}, "
      "\"long\": \"0123456789 abcdefghij \xC3\xA9\xE2\x82\xAC klmnopqrstuvwxyz\", \"e\": []}\r\n");
  const ft_json *item = ft_json_get(root, "a");
  CHECK(root && root->type == FT_JSON_OBJECT && root->count == 5);
  CHECK(item && item->type == FT_JSON_ARRAY && item->count == 5 && strcmp(item->key, "a") == 0);
  item = item ? item->child : NULL;
  CHECK(item && item->is_integer && item->integer == 1 && item->number == 1.0 && item->key == NULL);
  item = item ? item->next : NULL;
  CHECK(item && !item->is_integer && item->number == -2500.0);
  item = item ? item->next : NULL;
  CHECK(item && item->type == FT_JSON_BOOLEAN && item->boolean);
  item = item ? item->next : NULL;
  CHECK(item && item->type == FT_JSON_BOOLEAN && !item->boolean);
  item = item ? item->next : NULL;
  CHECK(item && item->type == FT_JSON_NULL && !item->next);
  item = ft_json_get(root, "\xC3\xA9\xF0\x9F\x98\x80\n/");
  CHECK(item && item->type == FT_JSON_STRING && item->string_length == 3 && memcmp(item->string, "x\0y", 4) == 0);
  item = ft_json_get(root, "long");
  CHECK(item != NULL);
  CHECK_TEXT(item ? item->string : NULL, "0123456789 abcdefghij \xC3\xA9\xE2\x82\xAC klmnopqrstuvwxyz");
  item = ft_json_get(root, "o");
  CHECK(item && item->type == FT_JSON_OBJECT && item->count == 0 && !item->child);
  CHECK(!ft_json_get(root, "b") && !ft_json_get(item, "a") && !ft_json_get(NULL, "a"));
  CHECK(!ft_json_get(ft_json_get(root, "a"), "a"));
  ft_json_free(root);
  ft_json_free(NULL);
}

static void test_numbers(void) {
  static const struct {
    const char *text;
    double value;
  } cases[] = {{"0", 0.0},
               {"-0.0", -0.0},
               {"0.1", 0.1},
               {"1e-12", 1e-12},
               {"123456789012345678", 123456789012345678.0},
               {"9007199254740993.0", 9007199254740992.0},
               {"9007199254740993.00000000000000000000000000000000000000000000000000001", 9007199254740994.0},
               {"1.7976931348623157e308", 1.7976931348623157e308},
               {"2.2250738585072014e-308", 2.2250738585072014e-308},
               {"1e23", 1e23},
               {"8.5e-23", 8.5e-23},
               {"6.02214076E+23", 6.02214076e23},
               {"1e-400", 0.0},
               {"0.000000000000000000000000000000000000000000001e45", 1.0},
               {"1000000000000000000000000000000000000000000000e-45", 1.0},
               {"0e999999999999999999999", 0.0}};
  size_t i;
  ft_json *root;
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    root = parse(cases[i].text);
    CHECK(root && root->type == FT_JSON_NUMBER && root->number == cases[i].value);
    if (!root || root->number != cases[i].value) printf("  %s\n", cases[i].text);
    ft_json_free(root);
  }
  root = parse("9223372036854775807");
  CHECK(root && root->is_integer && root->integer == INT64_MAX);
  ft_json_free(root);
  root = parse("-9223372036854775808");
  CHECK(root && root->is_integer && root->integer == INT64_MIN);
  ft_json_free(root);
  root = parse("9223372036854775808");
  CHECK(root && !root->is_integer && root->number == 9223372036854775808.0);
  ft_json_free(root);
  root = parse("1.0");
  CHECK(root && !root->is_integer);
  ft_json_free(root);
}

/* Doubles of every size come back from their shortest text, bit for bit. */
static void test_round_trip(void) {
  uint64_t state = 1, i, wrong = 0;
  ft__string out;
  memset(&out, 0, sizeof out);
  out.context = context;
  for (i = 0; i < 20000; ++i) {
    double value, back = 0;
    state = state * 6364136223846793005u + 1442695040888963407u;
    memcpy(&value, &state, sizeof value);
    if (!ft__double_is_finite(value)) continue;
    out.length = 0;
    ft__append_number(&out, value);
    if (!ft__decimal_parse(out.text, (size_t)out.length, &back) || memcmp(&back, &value, sizeof value) != 0) ++wrong;
    if (out.length > 24) ++wrong;
  }
  CHECK(wrong == 0);
  ft__string_free(&out);
}

static void test_writer(void) {
  written("[0.1,1e-12,1E5,100.0,1e16,123456789012345680.0,-2.5,1e-4,0.00001,5e-324,5.684341886080802e-14,1e22]", -1,
          "[0.1, 1e-12, 100000.0, 100.0, 1e+16, 1.2345678901234568e+17, -2.5, 0.0001, 1e-05, 5e-324, "
          "5.684341886080802e-14, 1e+22]");
  written("[0, -7, 9223372036854775807, 1000000000000000019884624838656, -0.0]", -1,
          "[0, -7, 9223372036854775807, 1000000000000000019884624838656, -0.0]");
  written("{\"a\":[],\"b\":{},\"c\":[1,{\"d\":null}],\"e\":true}", 2,
          "{\n  \"a\": [],\n  \"b\": {},\n  \"c\": [\n    1,\n    {\n      \"d\": null\n    }\n  ],\n  \"e\": true\n}");
  written("\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u000b\\u001f\\u007f\\u00e9\\/\"", 2,
          "\"\\\"\\\\\\b\\f\\n\\r\\t\\u0001\\u000b\\u001f\x7F\xC3\xA9/\"");
  written("5", 2, "5");
  {
    ft__string out;
    memset(&out, 0, sizeof out);
    out.context = context;
    ft__append_json_string(&out, "a\xFFz\xE2\x82", 5); /* invalid UTF-8 never gets into a file */
    CHECK_TEXT(out.text, "\"a\xEF\xBF\xBDz\xEF\xBF\xBD\"");
    ft__string_free(&out);
  }
}

static void test_errors(void) {
  static const struct {
    const char *text, *message;
  } cases[] = {{"", "line 1, column 1: expected a value, found the end"},
               {"  \n ", "line 2, column 2: expected a value"},
               {"{\"a\":1,\n \"\xC3\xA9\": x}", "line 2, column 7: expected a value, found x"},
               {"[1,]", "expected a value, found ]"},
               {"[1 2]", "expected a comma or ], found 2"},
               {"[1", "found the end"},
               {"{\"a\" 1}", "a colon after the key"},
               {"{\"a\":1,}", "a key in double quotes"},
               {"{a:1}", "a key in double quotes, found a"},
               {"{\"a\":1]", "a comma or }, found ]"},
               {"1 2", "nothing more"},
               {"[1]]", "nothing more"},
               {"01", "must not begin with 0"},
               {"-01", "must not begin with 0"},
               {"-", "digit must follow the minus"},
               {"+1", "expected a value, found +"},
               {".5", "expected a value, found ."},
               {"1.", "digit is missing"},
               {"1.e5", "digit is missing"},
               {"1e", "digit is missing"},
               {"1e+", "digit is missing"},
               {"1e400", "too large"},
               {"-1e400", "too large"},
               {"NaN", "NaN is not JSON: Python"},
               {"[Infinity]", "Infinity is not JSON: Python"},
               {"[-Infinity]", "-Infinity is not JSON: Python"},
               {"nul", "expected a value, found n"},
               {"truefalse", "nothing more"},
               {"'a'", "expected a value, found '"},
               {"\"a", "no closing quote"},
               {"\"a\\\"", "no closing quote"},
               {"\"a\nb\"", "control character 0x0A"},
               {"\"\t\"", "write it as \\u0009"},
               {"\"\\x\"", "unknown escape"},
               {"\"\\u12G4\"", "four hexadecimal digits"},
               {"\"\\u12", "four hexadecimal digits"},
               {"\"\\uD800\"", "half of a surrogate pair"},
               {"\"\\uD800\\u0041\"", "half of a surrogate pair"},
               {"\"\\uDC00\\uD800\"", "half of a surrogate pair"},
               {"\"\xC3\"", "not valid UTF-8"},
               {"\"\xED\xA0\x80\"", "not valid UTF-8"},
               {"\"abcdefghijkl\xFFmnopqrst\"", "line 1, column 14: byte 0xFF is not valid UTF-8"},
               {"{\"a\":1,\"b\":2,\"a\":3}", "the key \"a\" twice"},
               {"{\"\":1,\"\":2}", "the key \"\" twice"},
               {"{\"\\u0061bcdefghijk\":1,\"b\":2,\"abcdefghijk\":3}", "the key \"abcdefghijk\" twice"},
               {"\x01", "found byte 0x01"}};
  size_t i;
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) refused(cases[i].text, strlen(cases[i].text), cases[i].message);
  refused("[1,\0 2]", 7, "found byte 0x00");
  refused("\"\\\0\"", 4, "unknown escape");
  CHECK(ft_json_parse(context, "1", (size_t)2 << 30, "test") == NULL); /* the limit comes before any look at the text */
  CHECK(ft_error_status(context) == FT_ERROR_UNSUPPORTED);
  CHECK(ft_json_read(context, "tests/no such file.json") == NULL);
  CHECK(strstr(ft_error_message(context), "tests/no such file.json") != NULL);
  CHECK(ft_json_read(context, ".") == NULL);
  CHECK(strstr(ft_error_message(context), "directory") != NULL);
  CHECK(ft_json_parse(NULL, "1", 1, NULL) == NULL);
}

static void test_limits(void) {
  char text[1000];
  int depth;
  ft_json *root;
  for (depth = 200; depth <= 201; ++depth) {
    memset(text, '[', (size_t)depth);
    memset(text + depth, ']', (size_t)depth);
    root = ft_json_parse(context, text, 2 * (size_t)depth, "test");
    CHECK((root != NULL) == (depth == 200));
    ft_json_free(root);
  }
  CHECK(strstr(ft_error_message(context), "200 arrays") != NULL);
}

/* A vocabulary with many words, in an order that is not sorted; then the same with one word twice. */
static void test_vocabulary(void) {
  enum { WORDS = 250000 };
  ft__string out;
  ft_json *root;
  const ft_json *item;
  int64_t i, wrong = 0;
  memset(&out, 0, sizeof out);
  out.context = context;
  ft__append(&out, "{");
  for (i = 0; i < WORDS; ++i)
    ft__append_format(&out, "\"a common prefix %lld\":%lld,", (long long)(i * 7919 % WORDS), (long long)i);
  ft__append(&out, "\"last\":0}");
  root = ft_json_parse(context, out.text, (size_t)out.length, "test");
  CHECK(root && root->count == WORDS + 1);
  for (item = root ? root->child : NULL, i = 0; item && i < WORDS; item = item->next, ++i)
    if (item->integer != i) ++wrong;
  CHECK(wrong == 0);
  ft_json_free(root);
  out.length -= 9;
  ft__append(&out, "\"a common prefix 77\":0}");
  CHECK(ft_json_parse(context, out.text, (size_t)out.length, "test") == NULL);
  CHECK(strstr(ft_error_message(context), "\"a common prefix 77\" twice") != NULL);
  ft__string_free(&out);
}

int main(void) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.threads = 1;
  context = ft_context_create(&options);
  if (!context) return 1;
  test_utf8();
  test_values();
  test_numbers();
  test_round_trip();
  test_writer();
  test_errors();
  test_limits();
  test_vocabulary();
  ft_context_free(context);
  FINISH();
}
