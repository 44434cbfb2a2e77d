/* table.c - CSV, TSV and JSONL tables; datasets. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

static ft_context *context;
static char last_log[1024];

static void keep_log(void *user_data, ft_log_level level, const char *message) {
  (void)user_data;
  snprintf(last_log, sizeof last_log, "%d %s", (int)level, message);
}

static ft_table *parse(const char *text, ft_table_format format) {
  return ft_table_parse(context, text, strlen(text), "test", format);
}

/* The table, written with its line numbers as "1 a|b / 2 c|d", must be `expected`; the header counts as line 0. */
static void table_is(const char *text, ft_table_format format, const char *expected) {
  ft_table *table = parse(text, format);
  ft__string out;
  int64_t row, column;
  memset(&out, 0, sizeof out);
  out.context = context;
  CHECK(table != NULL);
  if (!table) printf("  %s\n", ft_error_message(context));
  for (row = -1; table && row < table->rows; ++row) {
    ft__append_format(&out, row < 0 ? "%lld " : " / %lld ", (long long)(row < 0 ? 0 : table->lines[row]));
    for (column = 0; column < table->columns; ++column) {
      const ft_cell *cell = row < 0 ? &table->header[column] : &table->cells[row * table->columns + column];
      if (column) ft__append(&out, "|");
      ft__append_bytes(&out, cell->text, cell->length);
      CHECK(cell->text[cell->length] == 0);
    }
  }
  CHECK_TEXT(out.text, expected);
  ft__string_free(&out);
  ft_table_free(table);
}

static void table_refused(const char *text, ft_table_format format, const char *message) {
  ft_table *table = parse(text, format);
  CHECK(table == NULL);
  CHECK(strstr(ft_error_message(context), message) != NULL);
  if (!strstr(ft_error_message(context), message))
    printf("  %s\n  should speak of: %s\n", ft_error_message(context), message);
  ft_table_free(table);
}

static void test_csv(void) {
  table_is("a,b\n1,2\n", FT_TABLE_CSV, "0 a|b / 2 1|2");
  table_is("a,b\r\n1,2\r\n3,4", FT_TABLE_CSV, "0 a|b / 2 1|2 / 3 3|4");
  table_is("a,b\r1,2\r3,4\r", FT_TABLE_CSV, "0 a|b / 2 1|2 / 3 3|4");
  table_is(
      "\xEF\xBB\xBF"
      "a,b\n,\n",
      FT_TABLE_CSV, "0 a|b / 2 |");
  table_is("a,b\n1,", FT_TABLE_CSV, "0 a|b / 2 1|");
  table_is("a,b\n,1", FT_TABLE_CSV, "0 a|b / 2 |1");
  table_is("a\n\n\n1\n\r\n\"\"\n2\n\n", FT_TABLE_CSV, "0 a / 4 1 / 6  / 7 2");
  table_is("\n\r\na,b\n1,2", FT_TABLE_CSV, "0 a|b / 4 1|2");
  table_is("a,b\n\"1,\n2\",\"say \"\"hi\"\" \"\"\"\n3,4\n", FT_TABLE_CSV, "0 a|b / 2 1,\n2|say \"hi\" \" / 4 3|4");
  table_is("a,b\n\"x\r\ny\rz\",\"\"\"\"\n3,4\n", FT_TABLE_CSV, "0 a|b / 2 x\r\ny\rz|\" / 5 3|4");
  table_is("\"a\",\"b,c\"\n\"\",\"\"", FT_TABLE_CSV, "0 a|b,c / 2 |");
  table_is("a,b\nx \"quoted\" y, \"z\"\n", FT_TABLE_CSV, "0 a|b / 2 x \"quoted\" y| \"z\"");
  table_is("a\tb\n1,2\t\"x\ty\"\n", FT_TABLE_TSV, "0 a|b / 2 1,2|x\ty");
  table_is("a,b", FT_TABLE_CSV, "0 a|b");
  table_is("a,b\n", FT_TABLE_CSV, "0 a|b");
  table_is("the first column,b\nlong enough for eight at once,\xC3\xA9\xE2\x82\xAC\n", FT_TABLE_CSV,
           "0 the first column|b / 2 long enough for eight at once|\xC3\xA9\xE2\x82\xAC");
  table_refused("", FT_TABLE_CSV, "test is empty");
  table_refused("\n\r\n", FT_TABLE_CSV, "test is empty");
  table_refused("a,b\n1,2\n1,2,3\n", FT_TABLE_CSV, "test: line 3: 3 fields, but the header has 2");
  table_refused("a,b\n\"1\n1\",2\n\n1\n", FT_TABLE_CSV, "test: line 5: 1 fields, but the header has 2");
  table_refused("a,b\n1,2\n\"x\ny,\n", FT_TABLE_CSV, "test: line 3: the quote that opens here is never closed");
  table_refused("a,b\n1,\"x\n\"y\n", FT_TABLE_CSV, "test: line 3: text after a closing quote");
  table_refused("a,b\n1,\"x\" \n", FT_TABLE_CSV, "test: line 2: text after a closing quote");
  table_refused("a,b,a\n", FT_TABLE_CSV, "two columns are called \"a\"");
  table_refused(
      "\xFF\xFE"
      "a\n",
      FT_TABLE_CSV, "UTF-16");
  {
    static const char bytes[] = "a,b\nx\0y,\"\0\"\n";
    ft_table *table = ft_table_parse(context, bytes, sizeof bytes - 1, "zero", FT_TABLE_CSV);
    CHECK(table && table->cells[0].length == 3 && memcmp(table->cells[0].text, "x\0y", 4) == 0);
    CHECK(table && table->cells[1].length == 1 && table->cells[1].text[0] == 0);
    CHECK(table && ft_table_column(table, "b") == 1 && ft_table_column(table, "c") == -1);
    ft_table_free(table);
  }
  ft_table_free(NULL);
  CHECK(ft_table_column(NULL, "a") == -1);
}

static void test_jsonl(void) {
  table_is(
      "{\"a\": \"x\\ny\", \"b\": 1}\n\n  \r\n{\"b\": 2.50, \"a\": null}\r\n{\"a\": true, \"b\": [1, {\"c\": 1e5}]}",
      FT_TABLE_JSONL, "0 a|b / 1 x\ny|1 / 4 |2.50 / 5 true|[1, {\"c\": 100000.0}]");
  table_is("\xEF\xBB\xBF{\"a\":\"\\u00e9\"}", FT_TABLE_JSONL, "0 a / 1 \xC3\xA9");
  table_refused("\n \n", FT_TABLE_JSONL, "test is empty");
  table_refused("{}", FT_TABLE_JSONL, "line 1: the first object has no keys");
  table_refused("[1]", FT_TABLE_JSONL, "line 1: an object was expected");
  table_refused("{\"a\":1}\n5", FT_TABLE_JSONL, "line 2: an object was expected");
  table_refused("{\"a\":1,\"b\":2}\n\n{\"b\":1}", FT_TABLE_JSONL, "line 3: key \"a\" of the first object is missing");
  table_refused("{\"a\":1}\n{\"a\":1,\"b\":2}", FT_TABLE_JSONL, "line 2: key \"b\" is not in the first object");
  table_refused("{\"a\":1}\n{\"a\":1,}", FT_TABLE_JSONL, "test: line 2, column 8:");
  table_refused("{\"a\":1}\n{\"a\":NaN}", FT_TABLE_JSONL, "NaN is not JSON");
}

static void test_files(void) {
  static const char *const names[] = {"t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.txt"};
  static const char *const texts[] = {"a,b\n1,2\n", "a\tb\n1\t2\n", "{\"a\":1,\"b\":2}\n", "{\"a\":1,\"b\":2}\n",
                                      "a,b\n1,2\n"};
  const char *base = getenv("TMPDIR");
  int i;
  for (i = 0; i < 5; ++i) {
    char path[700];
    ft_table *table;
    snprintf(path, sizeof path, "%.500s/finetune-table-%lu-%s", base ? base : "/tmp", ft__process(), names[i]);
    CHECK(ft__file_write(context, path, texts[i], strlen(texts[i])) == FT_OK);
    table = ft_table_read(context, path, FT_TABLE_AUTO);
    CHECK(table && table->rows == 1 && table->columns == 2 && strcmp(table->cells[1].text, "2") == 0);
    CHECK_TEXT(table ? table->name : NULL, path);
    ft_table_free(table);
    remove(path);
  }
  CHECK(ft_table_read(context, "tests", FT_TABLE_AUTO) == NULL);
  CHECK(strstr(ft_error_message(context), "directory") != NULL);
}

static ft_dataset *dataset(const char *text, const ft_dataset_options *options) {
  ft_table *table = parse(text, options ? options->format : FT_TABLE_CSV);
  ft_dataset *made = ft_dataset_from_table(context, table, options);
  ft_table_free(table); /* the dataset must not need it */
  return made;
}

static void dataset_refused(const char *text, const ft_dataset_options *options, const char *message) {
  ft_dataset *made = dataset(text, options);
  CHECK(made == NULL);
  CHECK(strstr(ft_error_message(context), message) != NULL);
  if (!strstr(ft_error_message(context), message))
    printf("  %s\n  should speak of: %s\n", ft_error_message(context), message);
  ft_dataset_free(made);
}

/* The names of the classes, separated by blanks, and the labels of the rows must be these. */
static void labels_are(const char *text, const ft_dataset_options *options, const char *names, const char *labels) {
  ft_dataset *made = dataset(text, options);
  char found[400] = "", rows[400] = "";
  int64_t i;
  CHECK(made != NULL);
  if (!made) printf("  %s\n", ft_error_message(context));
  for (i = 0; made && i < made->label_count; ++i)
    snprintf(found + strlen(found), sizeof found - strlen(found), i ? " %s" : "%s", made->label_names[i]);
  for (i = 0; made && i < made->rows; ++i)
    snprintf(rows + strlen(rows), sizeof rows - strlen(rows), i ? " %d" : "%d", made->labels ? made->labels[i] : -1);
  CHECK_TEXT(found, names);
  CHECK_TEXT(rows, labels);
  ft_dataset_free(made);
}

static void test_single_label(void) {
  static const char *const words[] = {"neg", "pos"}, *const twice[] = {"pos", "pos"}, *const numbers[] = {"1", "0"};
  static const char *const generic[] = {"LABEL_0", "LABEL_1"};
  ft_dataset_options options;
  memset(&options, 0, sizeof options);
  labels_are("text,label\na,pos\nb,neg\nc,pos\n", NULL, "neg pos", "1 0 1");
  labels_are("review,sentiment\na,10\nb,9\nc,-3\n", NULL, "-3 9 10", "2 1 0");
  labels_are("sentence,labels\na,10\nb,9\nc,x\n", NULL, "10 9 x", "0 1 2");
  labels_are("content,label\na,1\nb,01\nc,0\n", NULL, "0 1 01", "1 2 0");
  labels_are("text,label,sentiment\na,1,x\nb,0,y\n", NULL, "0 1", "1 0");
  labels_are("text,other\na,1\nb,0\n", NULL, "", "-1 -1");
  CHECK(strstr(last_log, "texts only") != NULL);
  labels_are("text,label\na,1\nb,1\n", NULL, "1", "0 0");
  CHECK(strstr(last_log, "1 test has 1 different labels") != NULL);
  options.label_names = words;
  options.label_count = 2;
  labels_are("text,label\na,pos\nb,neg\n", &options, "neg pos", "1 0");
  labels_are("text,label\na,1\nb,0\n", &options, "neg pos", "1 0");
  CHECK(strstr(last_log, "taken for the numbers of the classes, 0 being neg") != NULL);
  labels_are("text,label\na,1\nb,1\n", &options, "neg pos", "1 1");
  dataset_refused("text,label\na,pos\nb,1\n", &options, "test: line 3: label \"1\" is none of the 2 allowed: neg, pos");
  dataset_refused("text,label\na,1\nb,2\n", &options, "line 2: label \"1\" is none");
  dataset_refused("text,label\na,01\n", &options, "line 2: label \"01\" is none");
  dataset_refused("text,label\na,-0\n", &options, "line 2: label \"-0\" is none");
  options.label_names = generic;
  labels_are("text,label\na,1\nb,0\n", &options, "LABEL_0 LABEL_1", "1 0");
  options.label_names = numbers;
  labels_are("text,label\na,1\nb,0\n", &options, "1 0", "0 1");
  dataset_refused("text,label\na,2\n", &options, "label \"2\" is none of the 2 allowed: 1, 0");
  options.label_names = twice;
  dataset_refused("text,label\na,pos\n", &options, "\"pos\" is given twice");
  options.label_names = words;
  options.label_count = 0;
  dataset_refused("text,label\na,pos\n", &options, "label_count is 0");
  dataset_refused("text,label\na,x\nb,\n", NULL, "test: line 3: the label is empty");
  dataset_refused("title,label\na,x\n", NULL,
                  "test has no column text, review, sentence or content: it has title, label");
  memset(&options, 0, sizeof options);
  options.text_column = "body";
  dataset_refused("text,label\na,x\n", &options, "test has no column body: it has text, label");
  options.text_column = NULL;
  options.label_column = "stars";
  dataset_refused("text,label\na,x\n", &options, "test has no column stars");
  options.label_column = NULL;
  options.pair_column = "second";
  dataset_refused("text,label\na,x\n", &options, "test has no column second");
  options.pair_column = NULL;
  options.limit = -1;
  dataset_refused("text,label\na,x\n", &options, "limit -1");
  CHECK(ft_dataset_read(context, "tests/no such file.csv", NULL) == NULL);
  CHECK(strstr(ft_error_message(context), "tests/no such file.csv") != NULL);
}

static void test_columns(void) {
  ft_dataset_options options;
  ft_dataset *made;
  memset(&options, 0, sizeof options);
  options.text_column = "one";
  options.pair_column = "two";
  options.limit = 2;
  made = dataset("two,class,one\nb1,x,a1\n,y,\"a\n2\"\nb3,z,a3\n", &options);
  CHECK(made && made->rows == 2 && made->pairs && !made->labels && !made->targets && made->label_count == 0);
  CHECK_TEXT(made ? made->texts[1].text : NULL, "a\n2");
  CHECK_TEXT(made ? made->pairs[0].text : NULL, "b1");
  CHECK(made && made->pairs[1].length == 0 && made->lines[1] == 3 && made->task == FT_TASK_SINGLE_LABEL);
  CHECK_TEXT(made ? made->name : NULL, "test");
  ft_dataset_free(made);
  options.label_column = "class";
  made = dataset("two,class,one\nb1,x,a1\n,y,\"a\n2\"\nb3,z,a3\n", &options);
  CHECK(made && made->label_count == 2 && made->labels && made->labels[1] == 1);
  ft_dataset_free(made);
  options.unlabelled = true;
  made = dataset("two,class,one\nb1,x,a1\n", &options);
  CHECK(made && !made->labels && made->label_count == 0);
  ft_dataset_free(made);
  made = dataset("text,label\n", NULL);
  CHECK(made && made->rows == 0 && made->label_count == 0);
  ft_dataset_free(made);
  ft_dataset_free(NULL);
}

static void test_multi_label(void) {
  static const float expected[] = {1, 0, 1, 0, 0, 0, 0, 1, 0};
  ft_dataset_options options;
  ft_dataset *made;
  memset(&options, 0, sizeof options);
  options.task = FT_TASK_MULTI_LABEL;
  made = dataset("text,label\na,red; blue ;red\nb,\nc, green;;\n", &options);
  CHECK(made && made->label_count == 3 && made->targets && !made->labels);
  CHECK(made && strcmp(made->label_names[0], "blue") == 0 && strcmp(made->label_names[1], "green") == 0);
  CHECK(made && memcmp(made->targets, expected, sizeof expected) == 0);
  ft_dataset_free(made);
  {
    static const char *const names[] = {"red", "blue"};
    options.label_names = names;
    options.label_count = 2;
    dataset_refused("text,label\na,red\nb,blue;green\n", &options, "line 3: label \"green\" is none of the 2 allowed");
    made = dataset("text,label\na,1\nb,0;1\n", &options);
    CHECK(made && made->targets[0] == 0 && made->targets[1] == 1 && made->targets[2] == 1 && made->targets[3] == 1);
    ft_dataset_free(made);
  }
}

static void test_regression(void) {
  ft_dataset_options options;
  ft_dataset *made;
  memset(&options, 0, sizeof options);
  options.task = FT_TASK_REGRESSION;
  made = dataset("text,label\na,0.1\nb, -2.5e1 \nc,+7\nd,.5\ne,3.\n", &options);
  CHECK(made && made->label_count == 1 && !made->label_names && !made->labels);
  CHECK(made && made->targets[0] == 0.1f && made->targets[1] == -25 && made->targets[2] == 7);
  CHECK(made && made->targets[3] == 0.5f && made->targets[4] == 3);
  ft_dataset_free(made);
  dataset_refused("text,label\na,1\nb,nan\n", &options, "test: line 3: label \"nan\" is not a number");
  dataset_refused("text,label\na,inf\n", &options, "is not a number");
  dataset_refused("text,label\na,\n", &options, "is not a number");
  dataset_refused("text,label\na,1e39\n", &options, "line 2: label 1e39 is too large");
  dataset_refused("text,label\na,1e999\n", &options, "is too large");
  dataset_refused("text,label\na,\"1,5\"\n", &options, "is not a number");
  dataset_refused("text,label\na,0x10\n", &options, "is not a number");
  dataset_refused("text,label\na,1e\n", &options, "is not a number");
}

/* Many rows, many labels: the labels come out in numeric order, each with its own class. */
static void test_many(void) {
  enum { ROWS = 30000 };
  ft__string out;
  ft_dataset *made;
  int64_t i, wrong = 0;
  memset(&out, 0, sizeof out);
  out.context = context;
  ft__append(&out, "text,label\n");
  for (i = 0; i < ROWS; ++i)
    ft__append_format(&out, "t%lld,%lld\n", (long long)i, (long long)(i * 7919 % 10007 - 5000));
  made = dataset(out.text, NULL);
  CHECK(made && made->rows == ROWS && made->label_count == 10007);
  for (i = 0; made && i < ROWS; ++i)
    if (made->labels[i] != i * 7919 % 10007) ++wrong;
  CHECK(wrong == 0);
  ft_dataset_free(made);
  ft__string_free(&out);
}

int main(void) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.threads = 1;
  options.log = keep_log;
  context = ft_context_create(&options);
  if (!context) return 1;
  test_csv();
  test_jsonl();
  test_files();
  test_single_label();
  test_columns();
  test_multi_label();
  test_regression();
  test_many();
  ft_context_free(context);
  FINISH();
}
