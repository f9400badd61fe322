/* A network link between two network devices (TUN): each packet takes its time on the wire (rate), waits its turn, and
 * arrives later (delay). For kernels without tc's netem; a queue that is full drops packets, as netem's does.
 *
 *   link FIRST SECOND DELAY RATE QUEUE      descriptors; microseconds one way; bits a second; packets
 *
 * At SIGUSR1 it writes "PACKETS BYTES DROPPED PACKETS BYTES DROPPED" (first to second, second to first), one line. */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 1500, ETHERNET = 38 }; /* header, checksum, preamble, gap: what a packet takes on a real wire besides */

struct packet {
    uint64_t arrives;
    uint32_t length;
    unsigned char data[MTU];
};

struct direction {
    int from, to;
    struct packet *queue; /* a ring */
    size_t first, count;
    uint64_t wire_is_free; /* when the last packet has left */
    uint64_t packets, bytes, dropped;
};

static uint64_t delay, rate;
static size_t size;
static volatile sig_atomic_t is_asked;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void take(struct direction *way) {
    for (;;) {
        struct packet spare, *packet = &spare;
        if (way->count < size)
            packet = &way->queue[(way->first + way->count) % size];
        ssize_t length = read(way->from, packet->data, MTU);
        if (length <= 0)
            return;
        if (packet == &spare) {
            way->dropped++;
            continue;
        }
        uint64_t time = now();
        if (way->wire_is_free < time)
            way->wire_is_free = time;
        way->wire_is_free += ((uint64_t)length + ETHERNET) * 8u * 1000000000u / rate;
        packet->length = (uint32_t)length;
        packet->arrives = way->wire_is_free + delay;
        way->count++;
        way->packets++;
        way->bytes += (uint64_t)length;
    }
}

static void deliver(struct direction *way, uint64_t time) {
    while (way->count && way->queue[way->first].arrives <= time) {
        struct packet *packet = &way->queue[way->first];
        /* A device that is down refuses it: lost. */
        if (write(way->to, packet->data, packet->length) < 0)
            way->dropped++;
        way->first = (way->first + 1) % size;
        way->count--;
    }
}

static void ask(int number) {
    (void)number;
    is_asked = 1;
}

int main(int count, char **words) {
    if (count != 6)
        return 2;
    struct direction ways[2] = {{.from = atoi(words[1]), .to = atoi(words[2])},
                                {.from = atoi(words[2]), .to = atoi(words[1])}};
    delay = strtoull(words[3], NULL, 10) * 1000u;
    rate = strtoull(words[4], NULL, 10);
    size = strtoull(words[5], NULL, 10);
    for (int each = 0; each < 2; each++)
        if (!(ways[each].queue = calloc(size, sizeof *ways[each].queue)))
            return 1;
    struct sigaction action = {.sa_handler = ask};
    sigaction(SIGUSR1, &action, NULL);
    /* It comes only while we wait, so that none is missed. */
    sigset_t blocked, open;
    sigemptyset(&open);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR1);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    puts("ready");
    fflush(stdout);
    for (;;) {
        uint64_t time = now(), next = UINT64_MAX;
        for (int each = 0; each < 2; each++) {
            deliver(&ways[each], time);
            take(&ways[each]);
            if (ways[each].count && ways[each].queue[ways[each].first].arrives < next)
                next = ways[each].queue[ways[each].first].arrives;
        }
        if (is_asked) {
            is_asked = 0;
            for (int each = 0; each < 2; each++)
                printf("%llu %llu %llu%c", (unsigned long long)ways[each].packets, (unsigned long long)ways[each].bytes,
                       (unsigned long long)ways[each].dropped, each ? '\n' : ' ');
            fflush(stdout);
        }
        struct pollfd files[2] = {{.fd = ways[0].from, .events = POLLIN}, {.fd = ways[1].from, .events = POLLIN}};
        struct timespec wait = {0}, *limit = NULL;
        if (next != UINT64_MAX) {
            time = now();
            uint64_t left = next > time ? next - time : 0;
            wait.tv_sec = (time_t)(left / 1000000000u);
            wait.tv_nsec = (long)(left % 1000000000u);
            limit = &wait;
        }
        if (ppoll(files, 2, limit, &open) < 0 && errno != EINTR)
            return 1;
    }
}
