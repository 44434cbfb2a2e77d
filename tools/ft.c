/* ft.c - the command line of finetune.h: fine-tune, score, inspect and verify text encoders.

   Build:  cc -O2 tools/ft.c -o ft -lm
   Run:    ./ft                      lists the commands;  ./ft COMMAND --help lists a command's options
           ./ft train --model DIR --train reviews.csv --output-dir OUT

   stdout holds only the result. Errors go to stderr with exit status 1, wrong usage with 2. */
#define FT_IMPLEMENTATION
#include "../finetune.h"

#include "ft/arguments.h"
#include "ft/common.h"
#include "ft/adapter.h"
#include "ft/selection.h"
#include "ft/inspect.h"
#include "ft/plan.h"
#include "ft/tokenize.h"
#include "ft/predict.h"
#include "ft/train.h"
#include "ft/merge.h"
#include "ft/bench.h"
#include "ft/verify.h"

static int command_verify(int argc, char **argv) {
  const char *model = NULL;
  long long threads = 0;
  const arguments_option table[] = {
      {"--model", ARGUMENT_TEXT, &model, "directory of the weights, if not the golden file's own"},
      {"--threads", ARGUMENT_INTEGER, &threads, "(one per processor)"}};
  arguments_positional positional;
  ft_context *context;
  bool ok;
  if (!arguments_parse(argc, argv, "ft verify DIR [--model DIR2]", table, ARGUMENTS_COUNT(table), &positional))
    return EXIT_USAGE;
  if (positional.count != 1) return common_usage("usage: ft verify DIR [--model DIR2]");
  if (!(context = common_context((int)threads, true, "fp32"))) return EXIT_FAILED;
  ok = verify_directory(context, positional.value[0], model, stdout);
  ft_context_free(context);
  return ok ? EXIT_OK : EXIT_FAILED;
}

static const struct {
  const char *name;
  int (*run)(int argc, char **argv);
  const char *help;
} commands[] = {{"inspect", command_inspect, "show a model's parts and sizes, or a text on its way through it"},
                {"plan", command_plan, "the memory and the work of a training step, before it runs"},
                {"tokenize", command_tokenize, "token ids of every line of a file"},
                {"train", command_train, "fine-tune a model on labelled texts"},
                {"predict", command_predict, "labels and scores of texts"},
                {"embed", command_embed, "sentence embeddings of texts, as safetensors"},
                {"merge", command_merge, "write an adapter into its base model"},
                {"verify", command_verify, "compare with PyTorch's numbers in golden.safetensors"},
                {"bench", command_bench, "measure the speed of training steps or scoring"}};

int main(int argc, char **argv) {
  size_t i, count = sizeof commands / sizeof commands[0];
  bool help = argc > 1 && strcmp(argv[1], "--help") == 0;
  FILE *out = help ? stdout : stderr;
  for (i = 0; argc > 1 && i < count; ++i)
    if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc, argv);
  if (argc > 1 && !help) fprintf(stderr, "ft: there is no command %s\n", argv[1]);
  fprintf(out, "usage: ft COMMAND ...; ft COMMAND --help for its options\n");
  for (i = 0; i < count; ++i) fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
  return help ? EXIT_OK : EXIT_USAGE;
}
