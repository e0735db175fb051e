/*
 * diskmodel DEVICE STATE SEED OPERATIONS: random writes, reads, flushes and discards on a disk, by
 * four processes at the same time, each in its own quarter.
 *
 * STATE keeps the generation of every block between runs: 0 reads as zeroes, as a discarded block
 * does. tests/integrity/model.py makes the same choices from the same seed, so that the host knows
 * what every block holds without asking.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 4096, SECTORS = 8, WORDS = 64, MAX_BLOCKS = 64, WORKERS = 4 };

static uint64_t next(uint64_t *state)
{
	uint64_t z = (*state += 0x9E3779B97F4A7C15u);
	z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
	z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
	return z ^ (z >> 31);
}

/* Every sector of every generation of every block has a word of its own. */
static void fill(uint64_t *data, uint64_t block, uint64_t generation)
{
	for (int sector = 0; sector < SECTORS; sector++) {
		uint64_t seed = (block << 40) + (generation << 8) + sector;
		uint64_t word = generation ? next(&seed) : 0;
		for (int i = 0; i < WORDS; i++)
			*data++ = word;
	}
}

static int wrong(const char *what, uint64_t block)
{
	printf("WRONG %s at block %llu: %s\n", what, (unsigned long long)block, strerror(errno));
	return 1;
}

static int compare(const uint64_t *data, uint64_t block, uint64_t generation)
{
	static uint64_t wanted[BLOCK / 8];

	fill(wanted, block, generation);
	if (!memcmp(data, wanted, BLOCK))
		return 0;
	for (int i = 0; i < BLOCK / 8; i++)
		if (data[i] != wanted[i]) {
			printf("WRONG data: block %llu generation %llu byte %d: %llx instead of %llx\n",
			       (unsigned long long)block, (unsigned long long)generation, i * 8,
			       (unsigned long long)data[i], (unsigned long long)wanted[i]);
			break;
		}
	return 1;
}

struct job {
	int fd;
	uint64_t *generations, first, blocks, random;
	char *buffer;
};

/* One operation; the order in which random numbers are drawn is that of model.py. */
static int operation(struct job *job, uint64_t generation)
{
	uint64_t kind = next(&job->random) % 100;
	uint64_t count = 1 + next(&job->random) % MAX_BLOCKS;
	uint64_t block = job->first + next(&job->random) % (job->blocks - count + 1);
	size_t size = count * BLOCK;
	off_t at = block * BLOCK;

	if (kind < 50) {
		for (uint64_t i = 0; i < count; i++)
			fill((uint64_t *)(job->buffer + i * BLOCK), block + i, generation);
		if (pwrite(job->fd, job->buffer, size, at) != (ssize_t)size)
			return wrong("write", block);
		for (uint64_t i = 0; i < count; i++)
			job->generations[block + i] = generation;
	} else if (kind < 85) {
		if (pread(job->fd, job->buffer, size, at) != (ssize_t)size)
			return wrong("read", block);
		for (uint64_t i = 0; i < count; i++)
			if (compare((uint64_t *)(job->buffer + i * BLOCK), block + i,
				    job->generations[block + i]))
				return 1;
	} else if (kind < 93) {
		if (fdatasync(job->fd))
			return wrong("flush", block);
	} else {
		uint64_t range[2] = { at, size };
		if (ioctl(job->fd, BLKDISCARD, range))
			return wrong("discard", block);
		for (uint64_t i = 0; i < count; i++)
			job->generations[block + i] = 0;
	}
	return 0;
}

static int work(struct job *job, uint64_t operations, uint64_t base)
{
	for (uint64_t n = 0; n < operations; n++)
		if (operation(job, base + n + 1))
			return 1;
	return fsync(job->fd) ? wrong("last flush", 0) : 0;
}

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	uint64_t seed = strtoull(argv[3], 0, 0), operations = strtoull(argv[4], 0, 0), bytes;
	int fd = open(argv[1], O_RDWR | O_DIRECT), state = open(argv[2], O_RDWR | O_CREAT, 0600);

	if (fd < 0 || state < 0 || ioctl(fd, BLKGETSIZE64, &bytes))
		return wrong(argv[1], 0);
	uint64_t blocks = bytes / BLOCK, part = blocks / WORKERS;
	if (ftruncate(state, blocks * 8))
		return wrong(argv[2], 0);
	uint64_t *generations =
		mmap(0, blocks * 8, PROT_READ | PROT_WRITE, MAP_SHARED, state, 0);

	for (uint64_t i = 0; i < WORKERS; i++)
		if (!fork()) {
			struct job job = { open(argv[1], O_RDWR | O_DIRECT), generations, i * part, part,
					   seed * WORKERS + i, 0 };
			if (posix_memalign((void **)&job.buffer, BLOCK, MAX_BLOCKS * BLOCK))
				_exit(1);
			int failed = work(&job, operations, seed * operations);
			fflush(stdout);
			_exit(failed);
		}
	int failed = 0, status;
	while (wait(&status) > 0)
		failed |= status;
	printf("diskmodel %s: %llu blocks\n", failed ? "FAILED" : "agrees",
	       (unsigned long long)blocks);
	return failed != 0;
}
