// The Python module msa_ops._facts: what this build was made with, for `python -m msa_ops.info`. It is apart from the
// operators because a pybind11 module serves one version of Python, and they serve all.
#include <pybind11/pybind11.h>

#include "common/clones.h"

namespace {

const char* instruction_set() {
#if MSA_HAS_CLONES
  if (__builtin_cpu_supports("avx512f")) return "AVX-512";
  if (__builtin_cpu_supports("avx2")) return "AVX2";
  return "SSE2";
#else
  return "portable";
#endif
}

}  // namespace

PYBIND11_MODULE(_facts, module) {
  module.doc() = "What this build of msa_ops was made with.";
  module.def("build_facts", [] {
    pybind11::dict facts;
    facts["compiler"] = MSA_COMPILER;
    facts["torch_headers"] = MSA_TORCH_HEADERS;
    facts["oldest_torch"] = MSA_OLDEST_TORCH;
    facts["cuda_compiler"] = MSA_CUDA_COMPILER;
    facts["cuda_arch_list"] = MSA_CUDA_ARCH_LIST;
    return facts;
  });
  module.def("instruction_set", &instruction_set,
             "The widest vector instructions of this processor, or 'portable' for a build without versions for them.");
}
