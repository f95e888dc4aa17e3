// What `python -m msa_ops.info` asks the CPU library. These are C functions, so that every Python can call them.
#include "common/clones.h"

#define MSA_EXPORT extern "C" __attribute__((visibility("default")))

// What this build was made with: lines of a name, a tab and a value.
MSA_EXPORT const char* msa_ops_build_facts() {
  return "compiler\t" MSA_COMPILER "\ntorch_headers\t" MSA_TORCH_HEADERS "\noldest_torch\t" MSA_OLDEST_TORCH
         "\ncuda_compiler\t" MSA_CUDA_COMPILER "\ncuda_arch_list\t" MSA_CUDA_ARCH_LIST;
}

// The widest vector instructions of this processor, or "portable" for a build without versions for them.
MSA_EXPORT const char* msa_ops_instruction_set() {
#if MSA_HAS_CLONES
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#else
  return "portable";
#endif
}
