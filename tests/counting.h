/* counting.h - an allocator that counts, and fails when told to. Include it after finetune.h and check.h. */
#ifndef COUNTING_H
#define COUNTING_H

typedef struct counting_allocator {
  int64_t live, calls, bytes; /* live: given and not taken back */
  int64_t fail_at;            /* this call fails (from 1); 0: none */
  int64_t fail_every;         /* every call that is a multiple of this fails; 0: none */
} counting_allocator;

static void *counting_allocate(void *user_data, size_t bytes) {
  counting_allocator *allocator = (counting_allocator *)user_data;
  void *memory;
  ++allocator->calls;
  if (allocator->calls == allocator->fail_at) return NULL;
  if (allocator->fail_every && allocator->calls % allocator->fail_every == 0) return NULL;
  memory = malloc(bytes ? bytes : 1);
  if (memory) memset(memory, 0xA5, bytes), ++allocator->live, allocator->bytes += (int64_t)bytes;
  return memory;
}

static void counting_release(void *user_data, void *pointer) {
  CHECK(pointer != NULL);
  --((counting_allocator *)user_data)->live;
  free(pointer);
}

static ft_context *counting_context(counting_allocator *allocator, int threads) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.allocator.allocate = counting_allocate;
  options.allocator.release = counting_release;
  options.allocator.user_data = allocator;
  options.threads = threads;
  return ft_context_create(&options);
}

static counting_allocator no_calls(void) {
  counting_allocator allocator;
  memset(&allocator, 0, sizeof allocator);
  return allocator;
}

#endif
