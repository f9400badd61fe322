/* Which parts of an image were touched first, and in which order; bounded. Any thread may use one. */
#ifndef MYSTFUSE_TOUCHED_H
#define MYSTFUSE_TOUCHED_H

#include <stddef.h>
#include <stdint.h>

typedef struct touched touched;

/* For an image of `size` bytes. NULL: no memory; all functions take that for one that notes nothing. */
touched *touched_new(uint64_t size);
void touched_free(touched *self);

/* Note the units in which `size` bytes at `offset` lie; those behind the image's end are none. */
void touched_note(touched *self, uint64_t offset, uint64_t size);

/* Bytes of a unit. */
uint64_t touched_unit(const touched *self);
/* The number of units noted so far. */
size_t touched_count(const touched *self);
/* The numbers of at most `room` of them, by the first touch; returns how many. */
size_t touched_units(const touched *self, uint32_t *units, size_t room);

#endif
