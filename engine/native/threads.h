/* One pool of threads a process. The caller works too, and takes pieces until none is left, so a helper that wakes late
 * costs nothing. Helpers look for the next job for some microseconds, then sleep in the kernel. */

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_HELPERS 63
#define SPINS 2000 /* about 20 us: the next operator of the same step mostly comes within it */
#define OPEN 0x10000u

typedef void (*Work)(const void *job, ptrdiff_t piece);

static struct {
    pthread_mutex_t lock;
    pthread_t helpers[MAX_HELPERS];
    int num_helpers, limit;
    _Atomic uint32_t ticket, gate, sleeping, stopping;
    _Atomic ptrdiff_t next;
    ptrdiff_t num_pieces;
    Work work;
    const void *job;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

INLINE void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0); }

static void take_pieces(void) {
    ptrdiff_t piece;
    while ((piece = atomic_fetch_add(&pool.next, 1)) < pool.num_pieces)
        pool.work(pool.job, piece);
}

static void help(int number) {
    uint32_t gate = atomic_load(&pool.gate);
    while (gate & OPEN)
        if (atomic_compare_exchange_weak(&pool.gate, &gate, gate + 1)) {
            if (number < pool.limit)
                take_pieces();
            if (atomic_fetch_sub(&pool.gate, 1) == 1)
                futex_wake(&pool.gate);
            return;
        }
}

static void *helper(void *number) {
    uint32_t seen = atomic_load(&pool.ticket);
    while (!atomic_load(&pool.stopping)) {
        help((int)(intptr_t)number);
        for (int i = 0; i < SPINS && atomic_load(&pool.ticket) == seen; i++)
            pause_briefly();
        if (atomic_load(&pool.ticket) == seen) {
            atomic_fetch_add(&pool.sleeping, 1);
            futex_wait(&pool.ticket, seen);
            atomic_fetch_sub(&pool.sleeping, 1);
        }
        seen = atomic_load(&pool.ticket);
    }
    return NULL;
}

static void announce(void) {
    atomic_fetch_add(&pool.ticket, 1);
    if (atomic_load(&pool.sleeping))
        futex_wake(&pool.ticket);
}

static void forget_helpers(void) { /* in a forked child: they exist in the parent only */
    pthread_mutex_init(&pool.lock, NULL);
    pool.num_helpers = 0;
    atomic_store(&pool.gate, 0);
    atomic_store(&pool.sleeping, 0);
}

static void start_helpers(int num) {
    static int watching_forks;
    if (!watching_forks)
        watching_forks = pthread_atfork(NULL, NULL, forget_helpers) == 0;
    sigset_t all, before; /* signals are for the interpreter's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_store(&pool.stopping, 0);
    while (pool.num_helpers < MIN(num, MAX_HELPERS)) {
        void *number = (void *)(intptr_t)pool.num_helpers;
        if (pthread_create(&pool.helpers[pool.num_helpers], NULL, helper, number))
            break;
        pool.num_helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void penstock_stop_threads(void) {
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.stopping, 1);
    announce();
    for (int i = 0; i < pool.num_helpers; i++)
        pthread_join(pool.helpers[i], NULL);
    pool.num_helpers = 0;
    pthread_mutex_unlock(&pool.lock);
}

/* Do all pieces, on up to num_threads threads. While another caller has the helpers, alone. */
static void run(Work work, const void *job, ptrdiff_t num_pieces, ptrdiff_t num_threads) {
    if (num_threads < 2 || num_pieces < 2 || pthread_mutex_trylock(&pool.lock)) {
        for (ptrdiff_t piece = 0; piece < num_pieces; piece++)
            work(job, piece);
        return;
    }
    if (pool.num_helpers < num_threads - 1)
        start_helpers((int)num_threads - 1);
    pool.work = work, pool.job = job, pool.num_pieces = num_pieces, pool.limit = (int)num_threads - 1;
    atomic_store(&pool.next, 0);
    atomic_store(&pool.gate, OPEN);
    announce();
    take_pieces();
    uint32_t inside = atomic_fetch_and(&pool.gate, ~OPEN) & ~OPEN;
    for (int i = 0; inside && i < SPINS; i++) {
        pause_briefly();
        inside = atomic_load(&pool.gate);
    }
    while (inside) {
        futex_wait(&pool.gate, inside);
        inside = atomic_load(&pool.gate);
    }
    pthread_mutex_unlock(&pool.lock);
}
