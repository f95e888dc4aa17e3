// Loops compiled twice, for processors with AVX2 and for all others; the loader picks when the library is loaded.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define MSA_CLONES __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define MSA_CLONES
#endif
