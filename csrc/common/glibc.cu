// What the CUDA library would need of a glibc newer than 2.28: the static CUDA runtime calls these functions, which
// moved into libc.so.6, under a new version, in glibc 2.34.
#include "common/glibc.h"

#if MSA_OLDER_GLIBC
MSA_GLIBC_SINGLE_THREADED
MSA_GLIBC_FUNCTION(dlclose, "2.2.5");
MSA_GLIBC_FUNCTION(dlerror, "2.2.5");
MSA_GLIBC_FUNCTION(dlmopen, "2.3.4");
MSA_GLIBC_FUNCTION(dlopen, "2.2.5");
MSA_GLIBC_FUNCTION(dlsym, "2.2.5");
MSA_GLIBC_FUNCTION(dlvsym, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_condattr_setpshared, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_create, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_detach, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_getspecific, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_join, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_key_create, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_key_delete, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_kill, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_mutex_trylock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_mutexattr_destroy, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_mutexattr_init, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_mutexattr_setpshared, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_mutexattr_settype, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_once, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_destroy, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_init, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_rdlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_timedrdlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_timedwrlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_tryrdlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_trywrlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_unlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlock_wrlock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlockattr_destroy, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlockattr_init, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_rwlockattr_setpshared, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_setspecific, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_spin_destroy, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_spin_init, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_spin_lock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_spin_trylock, "2.2.5");
MSA_GLIBC_FUNCTION(pthread_spin_unlock, "2.2.5");
MSA_GLIBC_FUNCTION(sem_destroy, "2.2.5");
MSA_GLIBC_FUNCTION(sem_init, "2.2.5");
MSA_GLIBC_FUNCTION(sem_post, "2.2.5");
MSA_GLIBC_FUNCTION(sem_timedwait, "2.2.5");
MSA_GLIBC_FUNCTION(sem_trywait, "2.2.5");
MSA_GLIBC_FUNCTION(sem_wait, "2.2.5");
MSA_GLIBC_FUNCTION(shm_open, "2.2.5");
MSA_GLIBC_FUNCTION(shm_unlink, "2.2.5");
#endif
