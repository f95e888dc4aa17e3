// Loops compiled twice, for processors with AVX2 and for all others; the loader picks when the library is loaded. A
// build with MSA_OPS_PORTABLE has the second version alone, so that tests can run what a poorer processor would.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(MSA_OPS_PORTABLE)
#define MSA_HAS_CLONES 1
#define MSA_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define MSA_HAS_CLONES 0
#define MSA_CLONES
#endif
