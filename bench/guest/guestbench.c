/*
 * Measures a guest from the inside; run as `guestbench`, inside of the guest. `guestbench fork_exec`
 * does only that section, `guestbench disk DEVICE` those of a disk, and `guestbench await DEVICE`
 * says when there is a disk.
 *
 * Prints for every section, each at the start of a line:
 *     @begin NAME
 *     @result NAME VALUE UNIT ELAPSED_NS
 * so that the host can hold its own clock against ELAPSED_NS. A section repeats its operation often
 * enough to last SECTION_NS; the fixed ones (a shell loop, md5sum) take what they take.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CALIBRATION_NS 20000000ull
#define SECTION_NS 300000000ull
#define PAGE_BYTES 4096ul
#define FAULT_PAGES 1024ul
#define COPY_BYTES (4ul << 20)
#define FORKS 50
#define DISK_BYTES (64ul << 20)
#define STREAM_BYTES (1ul << 20)
#define RANDOM_BYTES 4096ul
#define RANDOM_READS 4096
#define QUEUE_DEPTH 16

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void begin(const char *name)
{
    printf("\n@begin %s\n", name);
    fflush(stdout);
}

static void result(const char *name, double value, const char *unit, uint64_t elapsed_ns)
{
    printf("@result %s %.4f %s %llu\n", name, value, unit, (unsigned long long)elapsed_ns);
    fflush(stdout);
}

static uint64_t elapsed(void (*operation)(void), uint64_t count)
{
    uint64_t start = now_ns();

    for (uint64_t i = 0; i < count; i++)
        operation();
    return now_ns() - start;
}

/* One section: `divisor` operations of interest are in one call, `unit_ns` ns in one unit. */
static void repeat(const char *name, void (*operation)(void), double divisor, double unit_ns,
                   const char *unit)
{
    uint64_t count = 1, ns = elapsed(operation, 1);

    while (ns < CALIBRATION_NS) {
        count *= 2;
        ns = elapsed(operation, count);
    }
    count = count * SECTION_NS / ns + 1;
    begin(name);
    ns = elapsed(operation, count);
    result(name, (double)ns / (double)count / divisor / unit_ns, unit, ns);
}

static void once(const char *name, void (*operation)(void))
{
    uint64_t ns;

    begin(name);
    ns = elapsed(operation, 1);
    result(name, (double)ns / 1e9, "s", ns);
}

static void null_system_call(void)
{
    for (int i = 0; i < 100; i++)
        syscall(SYS_getppid);
}

static void touch_new_pages(void)
{
    char *pages = mmap(NULL, FAULT_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (pages == MAP_FAILED)
        fail("mmap");
    /* Huge pages would make one fault of 512. */
    madvise(pages, FAULT_PAGES * PAGE_BYTES, MADV_NOHUGEPAGE);
    for (unsigned long i = 0; i < FAULT_PAGES; i++)
        ((volatile char *)pages)[i * PAGE_BYTES] = 1;
    munmap(pages, FAULT_PAGES * PAGE_BYTES);
}

static void spawn(char *const argv[])
{
    int status;
    pid_t child = fork();

    if (child < 0)
        fail("fork");
    if (child == 0) {
        execv(argv[0], argv);
        _exit(127);
    }
    if (waitpid(child, &status, 0) != child || status != 0) {
        fprintf(stderr, "%s failed: status %d\n", argv[0], status);
        exit(1);
    }
}

static void fork_and_exec(void)
{
    char *argv[] = {"/bin/true", NULL};

    for (int i = 0; i < FORKS; i++)
        spawn(argv);
}

static void shell(const char *script)
{
    char *argv[] = {"/bin/sh", "-c", (char *)script, NULL};

    spawn(argv);
}

static void shell_loop(void)
{
    shell("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done");
}

static void md5sum(void)
{
    shell("dd if=/dev/zero bs=65536 count=800 2>/dev/null | md5sum >/dev/null");
}

static void small_copies(void)
{
    shell("dd if=/dev/zero of=/dev/null bs=1 count=20000 2>/dev/null");
}

static char *copy_from, *copy_to;

static void copy_memory(void)
{
    memcpy(copy_to, copy_from, COPY_BYTES);
    /* The copy must not be optimised away. */
    __asm__ volatile("" : : "r"(copy_to) : "memory");
}

static int ping[2], pong[2];

static void ping_pong(void)
{
    char byte = 0;

    for (int i = 0; i < 10; i++)
        if (write(ping[1], &byte, 1) != 1 || read(pong[0], &byte, 1) != 1)
            fail("pipe");
}

static void answer_pings(void)
{
    char byte;

    while (read(ping[0], &byte, 1) == 1)
        if (write(pong[1], &byte, 1) != 1)
            break;
    _exit(0);
}

static void measure_pipe(void)
{
    pid_t child;

    if (pipe(ping) || pipe(pong))
        fail("pipe");
    child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close(ping[1]);
        close(pong[0]);
        answer_pings();
    }
    close(ping[0]);
    close(pong[1]);
    repeat("pipe", ping_pong, 10, 1e3, "us");
    close(ping[1]);
    waitpid(child, NULL, 0);
}

static int disk;
static char *disk_buffer;

static void read_disk(void)
{
    for (off_t at = 0; at < (off_t)DISK_BYTES; at += STREAM_BYTES)
        if (pread(disk, disk_buffer, STREAM_BYTES, at) != (ssize_t)STREAM_BYTES)
            fail("read");
}

static void write_disk(void)
{
    for (off_t at = 0; at < (off_t)DISK_BYTES; at += STREAM_BYTES)
        if (pwrite(disk, disk_buffer, STREAM_BYTES, at) != (ssize_t)STREAM_BYTES)
            fail("write");
}

static void begin_read(aio_context_t context, struct iocb *block)
{
    static uint64_t state = 1;

    state = state * 6364136223846793005ull + 1442695040888963407ull;
    block->aio_offset = (state >> 33) % (DISK_BYTES / RANDOM_BYTES) * RANDOM_BYTES;
    if (syscall(SYS_io_submit, context, 1, &block) != 1)
        fail("io_submit");
}

static void read_at_random(void)
{
    struct iocb blocks[QUEUE_DEPTH];
    struct io_event events[QUEUE_DEPTH];
    aio_context_t context = 0;
    int begun = 0, done = 0;

    if (syscall(SYS_io_setup, QUEUE_DEPTH, &context))
        fail("io_setup");
    memset(blocks, 0, sizeof blocks);
    for (; begun < QUEUE_DEPTH; begun++) {
        struct iocb *block = &blocks[begun];

        block->aio_fildes = disk;
        block->aio_lio_opcode = IOCB_CMD_PREAD;
        block->aio_buf = (uint64_t)(uintptr_t)(disk_buffer + begun * RANDOM_BYTES);
        block->aio_nbytes = RANDOM_BYTES;
        begin_read(context, block);
    }
    while (done < RANDOM_READS) {
        long n = syscall(SYS_io_getevents, context, 1, QUEUE_DEPTH, events, NULL);

        if (n < 1)
            fail("io_getevents");
        for (long i = 0; i < n; i++, done++) {
            if (events[i].res != (long)RANDOM_BYTES) {
                fprintf(stderr, "a read gave %lld\n", (long long)events[i].res);
                exit(1);
            }
            if (begun < RANDOM_READS) {
                begin_read(context, (struct iocb *)(uintptr_t)events[i].obj);
                begun++;
            }
        }
    }
    syscall(SYS_io_destroy, context);
}

static void measure_disk(const char *device)
{
    disk = open(device, O_RDWR | O_DIRECT);
    if (disk < 0)
        fail(device);
    if (posix_memalign((void **)&disk_buffer, PAGE_BYTES, STREAM_BYTES))
        fail("memory");
    memset(disk_buffer, 0x5a, STREAM_BYTES);
    write_disk();
    read_disk();
    repeat("disk_read", read_disk, DISK_BYTES >> 20, 1e3, "us/MiB");
    repeat("disk_write", write_disk, DISK_BYTES >> 20, 1e3, "us/MiB");
    read_at_random();
    repeat("disk_random", read_at_random, RANDOM_READS, 1e3, "us");
}

static void await(const char *device)
{
    int fd;

    printf("@waiting\n");
    fflush(stdout);
    while ((fd = open(device, O_RDONLY)) < 0)
        usleep(1000);
    close(fd);
    printf("@there\n");
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "fork_exec")) {
        fork_and_exec();
        once("fork_exec", fork_and_exec);
        printf("@end\n");
        return 0;
    }
    if (argc > 2 && !strcmp(argv[1], "disk")) {
        measure_disk(argv[2]);
        printf("@end\n");
        return 0;
    }
    if (argc > 2 && !strcmp(argv[1], "await")) {
        await(argv[2]);
        return 0;
    }
    copy_from = malloc(COPY_BYTES);
    copy_to = malloc(COPY_BYTES);
    if (!copy_from || !copy_to)
        fail("malloc");
    memset(copy_from, 1, COPY_BYTES);
    memset(copy_to, 2, COPY_BYTES);

    /* Once unmeasured: programs come into the page cache, and code is translated. */
    fork_and_exec();
    shell("dd if=/dev/zero bs=65536 count=16 2>/dev/null | md5sum >/dev/null");

    repeat("null_syscall", null_system_call, 100, 1e3, "us");
    repeat("page_fault", touch_new_pages, FAULT_PAGES, 1e3, "us");
    once("fork_exec", fork_and_exec);
    once("sh_loop", shell_loop);
    measure_pipe();
    repeat("memory_copy", copy_memory, COPY_BYTES / 1048576.0, 1e3, "us/MiB");
    once("md5sum", md5sum);
    once("dd_bs1", small_copies);
    printf("@end\n");
    return 0;
}
