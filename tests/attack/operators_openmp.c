/* Tells ThreadSanitizer what OpenMP's parallel regions order: everything before a region comes before its threads, and
 * these come before everything after it. libgomp itself is not instrumented, so that the sanitizer does not see this.
 * Loaded by LD_PRELOAD, in front of the libgomp that torch brings along. */
#define _GNU_SOURCE
#include <dlfcn.h>

void __tsan_acquire(void* address);
void __tsan_release(void* address);

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

struct Region {
  void (*run)(void*);
  void* data;
};

static void in_order(void* argument) {
  struct Region* region = argument;
  __tsan_acquire(region);
  region->run(region->data);
  __tsan_release(region);
}

void GOMP_parallel(void (*run)(void*), void* data, unsigned threads, unsigned flags) {
  struct Region region = {run, data};
  const Parallel parallel = (Parallel)dlsym(RTLD_NEXT, "GOMP_parallel");
  __tsan_release(&region);
  parallel(in_order, &region, threads, flags);
  __tsan_acquire(&region);
}
