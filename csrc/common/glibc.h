// Binds functions to versions that glibc 2.28 has, so that libraries built on a newer system also load on every system
// that torch's own wheels serve (manylinux_2_28). glibc keeps the old versions for good, with the same values.
#pragma once

#if defined(__x86_64__) && __has_include(<gnu/libc-version.h>) && !defined(__CUDA_ARCH__)
#define MSA_OLDER_GLIBC 1
#else
#define MSA_OLDER_GLIBC 0
#endif

// Defines `name` for this library alone, as a jump to glibc's function of that name in `version`. Archives that are
// linked in, such as the static CUDA runtime, call it as well.
#define MSA_GLIBC_FUNCTION(name, version)                                                              \
  asm(".pushsection .text\n .symver older_" #name "," #name "@GLIBC_" version                          \
      "\n"                                                                                             \
      ".globl " #name "\n .hidden " #name "\n .type " #name ", @function\n" #name ": jmp older_" #name \
      "@PLT\n .popsection\n")

// libstdc++'s headers read this variable of glibc 2.32 to count references without atomic instructions while there is
// one thread. 0 says that there may be more.
#define MSA_GLIBC_SINGLE_THREADED                                        \
  extern "C" {                                                           \
  __attribute__((visibility("hidden"))) char __libc_single_threaded = 0; \
  }
