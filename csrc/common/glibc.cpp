// What the CPU library would need of a glibc newer than 2.28.
#include "common/glibc.h"

#if MSA_OLDER_GLIBC
MSA_GLIBC_SINGLE_THREADED
MSA_GLIBC_FUNCTION(exp, "2.2.5");
MSA_GLIBC_FUNCTION(log, "2.2.5");
#endif
