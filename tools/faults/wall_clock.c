/* Preloaded into the robot's processes: a wall clock that can be stepped, and no other clock.
 *
 * RATCHET_WALL_CLOCK names a file of eight bytes, the step in nanoseconds; whoever writes it steps the clock
 * of all processes at once, as clock_settime would. libfaketime 0.9.10 cannot stand in: under it
 * clock_nanosleep to an absolute monotonic time fails. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *step_ns;
static int (*true_gettime)(clockid_t, struct timespec *);
static int (*true_sem_timedwait)(sem_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("RATCHET_WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    true_sem_timedwait = (int (*)(sem_t *, const struct timespec *))dlsym(RTLD_NEXT, "sem_timedwait");
    true_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    if (file >= 0) {
        void *page = mmap(NULL, sizeof(long long), PROT_READ, MAP_SHARED, file, 0);
        step_ns = page == MAP_FAILED ? NULL : page;
        close(file);
    }
}

static void add(struct timespec *at, long long ns) {
    ns += at->tv_nsec;
    at->tv_sec += ns / 1000000000;
    at->tv_nsec = ns % 1000000000;
    if (at->tv_nsec < 0) {
        at->tv_nsec += 1000000000;
        at->tv_sec -= 1;
    }
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = true_gettime ? true_gettime(id, at) : (int)syscall(SYS_clock_gettime, id, at);
    if (!failed && step_ns && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) add(at, *step_ns);
    return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    struct timespec kernel = *until; /* the kernel knows of no step */
    if (step_ns) add(&kernel, -*step_ns);
    return true_sem_timedwait(semaphore, &kernel);
}
