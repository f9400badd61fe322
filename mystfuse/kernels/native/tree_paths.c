/* The paths from the data blocks of one request up to the root hash, or to hash blocks that have been verified. */
#include "kernel.h"

#include <stdlib.h>
#include <string.h>

/* Data blocks asked for together. Their digests are joined. */
typedef struct {
    uint64_t first, count;
    uint8_t *digests;
    size_t first_piece, piece_count;
} run;

/* The part of a run whose digests are in one hash block of level 0. */
typedef struct {
    uint64_t first, count;
    uint8_t *digests;
    int is_known;
} piece;

/* A missing hash block. */
typedef struct {
    uint64_t index;
    int has_expected; /* whether its digest is known */
    uint8_t expected[MAX_DIGEST_SIZE];
} node;

/* Missing hash blocks, level by level from 0 on, by index within a level. */
typedef struct {
    node *nodes;
    size_t count, room;
    size_t starts[MAX_TREE_LEVELS + 2]; /* those of a level end where the next one's start */
    size_t level_count;                 /* levels that have some */
} node_list;

struct tree_paths {
    hash_tree *tree;
    const hash_tree_shape *shape;
    run *runs;
    size_t run_count;
    piece *pieces;
    size_t piece_count;
    uint8_t *digests;
    node_list missing;
    hash_block_key *keys;
    uint8_t *block; /* the copy that is checked */
};

/* -- Runs and pieces. */

static int are_runs(const hash_tree_shape *shape, const uint64_t *extents, size_t count)
{
    const uint64_t unit = shape->data_block_size, end = shape->data_blocks * unit;
    uint64_t least = 0;

    for (size_t index = 0; index < count; index++) {
        const uint64_t offset = extents[2 * index], length = extents[2 * index + 1];
        if (offset % unit || length % unit || !length || offset < least || offset > end || length > end - offset)
            return 0;
        least = offset + length;
    }
    return 1;
}

/* Cut runs into pieces; with NULL, only count them. Returns how many there are. */
static size_t cut(tree_paths *self, piece *pieces)
{
    const uint64_t per_block = self->shape->digests_per_block;
    size_t made = 0;

    for (size_t index = 0; index < self->run_count; index++) {
        run *of = &self->runs[index];
        of->first_piece = made;
        for (uint64_t done = 0; done < of->count; made++) {
            const uint64_t first = of->first + done, to_end = per_block - first % per_block, left = of->count - done;
            const uint64_t count = left < to_end ? left : to_end;
            if (pieces != NULL)
                pieces[made] = (piece){first, count, of->digests + done * self->shape->digest_size, 0};
            done += count;
        }
        of->piece_count = made - of->first_piece;
    }
    return made;
}

static int make_runs(tree_paths *self, const uint64_t *extents, size_t count)
{
    const size_t unit = self->shape->data_block_size;
    uint64_t blocks = 0;

    for (size_t index = 0; index < count; index++)
        blocks += extents[2 * index + 1] / unit;
    if (blocks > SIZE_MAX / MAX_DIGEST_SIZE)
        return 0;
    self->runs = malloc((count ? count : 1) * sizeof *self->runs);
    self->digests = malloc((blocks ? blocks : 1) * self->shape->digest_size);
    if (self->runs == NULL || self->digests == NULL)
        return 0;
    uint8_t *digests = self->digests;
    for (; self->run_count < count; self->run_count++) {
        const uint64_t *extent = &extents[2 * self->run_count];
        self->runs[self->run_count] = (run){extent[0] / unit, extent[1] / unit, digests, 0, 0};
        digests += extent[1] / unit * self->shape->digest_size;
    }
    const size_t pieces = cut(self, NULL);
    self->pieces = malloc((pieces ? pieces : 1) * sizeof *self->pieces);
    if (self->pieces == NULL)
        return 0;
    self->piece_count = cut(self, self->pieces);
    return 1;
}

/* Without levels nothing can be missing. */
static void know_the_root_hash(tree_paths *self)
{
    for (size_t place = 0; place < self->piece_count; place++)
        self->pieces[place].is_known = hash_tree_digests(self->tree, 0, self->pieces[place].first, 1, self->pieces[place].digests);
}

tree_paths *tree_paths_new(hash_tree *tree, const uint64_t *extents, size_t count)
{
    if (!are_runs(hash_tree_shape_of(tree), extents, count))
        return NULL;
    tree_paths *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->tree = tree;
    self->shape = hash_tree_shape_of(tree);
    if (!make_runs(self, extents, count)) {
        tree_paths_free(self);
        return NULL;
    }
    if (!self->shape->level_count)
        know_the_root_hash(self);
    return self;
}

void tree_paths_free(tree_paths *self)
{
    if (self == NULL)
        return;
    free(self->runs);
    free(self->digests);
    free(self->pieces);
    free(self->missing.nodes);
    free(self->keys);
    free(self->block);
    free(self);
}

/* -- Missing hash blocks. */

/* Add a node to the level that the list ends with, unless it is the last one there; 0: no memory. */
static int add_node(node_list *list, size_t level, uint64_t index)
{
    if (list->count > list->starts[level] && list->nodes[list->count - 1].index == index)
        return 1;
    if (list->count == list->room) {
        const size_t wanted = list->room ? 2 * list->room : 8;
        node *nodes = realloc(list->nodes, wanted * sizeof *nodes);
        if (nodes == NULL)
            return 0;
        list->nodes = nodes;
        list->room = wanted;
    }
    list->nodes[list->count].index = index;
    list->nodes[list->count].has_expected = 0;
    list->count++;
    return 1;
}

/* The place of the first node of a level whose index is not less. */
static size_t place_of(const node_list *list, size_t level, uint64_t index)
{
    size_t low = list->starts[level], high = list->starts[level + 1];
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (list->nodes[middle].index < index)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static node *find_node(const node_list *list, size_t level, uint64_t index)
{
    if (level >= list->level_count)
        return NULL;
    const size_t place = place_of(list, level, index);
    return place < list->starts[level + 1] && list->nodes[place].index == index ? &list->nodes[place] : NULL;
}

/* Find the node's digest where it was found before, or in the hash block above it. */
static void find_expected(const tree_paths *self, const node_list *before, size_t level, node *it)
{
    const node *known = find_node(before, level, it->index);

    if (known != NULL && known->has_expected) {
        *it = *known;
        return;
    }
    it->has_expected = hash_tree_digests(self->tree, level + 1, it->index, 1, it->expected);
}

static int add_leaves(tree_paths *self)
{
    for (size_t index = 0; index < self->piece_count; index++) {
        piece *it = &self->pieces[index];
        if (!it->is_known)
            it->is_known = hash_tree_digests(self->tree, 0, it->first, (size_t)it->count, it->digests);
        if (!it->is_known && !add_node(&self->missing, 0, it->first / self->shape->digests_per_block))
            return 0;
    }
    return 1;
}

/* Find the digests of a level's nodes; where one is not known, the hash block above is missing too. */
static int add_parents(tree_paths *self, const node_list *before, size_t level)
{
    node_list *list = &self->missing;

    for (size_t place = list->starts[level], end = list->starts[level + 1]; place < end; place++) {
        find_expected(self, before, level, &list->nodes[place]);
        if (!list->nodes[place].has_expected
            && !add_node(list, level + 1, list->nodes[place].index / self->shape->digests_per_block))
            return 0;
    }
    return 1;
}

static int find_missing(tree_paths *self, const node_list *before)
{
    node_list *list = &self->missing;

    if (!add_leaves(self))
        return 0;
    list->starts[1] = list->count;
    /* It ends at the highest level: the root hash is always known. */
    for (size_t level = 0; list->starts[level + 1] > list->starts[level]; level++) {
        list->level_count = level + 1;
        if (!add_parents(self, before, level))
            return 0;
        list->starts[level + 2] = list->count;
    }
    return 1;
}

static int list_keys(tree_paths *self)
{
    const node_list *list = &self->missing;
    size_t made = 0;

    if (list->count == 0)
        return 1;
    self->keys = malloc(list->count * sizeof *self->keys);
    if (self->keys == NULL)
        return 0;
    for (size_t level = list->level_count; level-- > 0;)
        for (size_t place = list->starts[level]; place < list->starts[level + 1]; place++)
            self->keys[made++] = (hash_block_key){level, list->nodes[place].index};
    return 1;
}

int64_t tree_paths_look(tree_paths *self)
{
    node_list before = self->missing;

    self->missing = (node_list){0};
    free(self->keys);
    self->keys = NULL;
    const int good = find_missing(self, &before) && list_keys(self);
    free(before.nodes);
    if (!good) {
        free(self->missing.nodes);
        self->missing = (node_list){0};
        return TREE_NO_MEMORY;
    }
    return (int64_t)self->missing.count;
}

const hash_block_key *tree_paths_missing(const tree_paths *self)
{
    return self->keys;
}

/* -- Hash blocks that come. */

/* The place of the first piece that begins at or behind a data block. */
static size_t piece_at(const tree_paths *self, uint64_t block)
{
    size_t low = 0, high = self->piece_count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (self->pieces[middle].first < block)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void take_digests_of_data(tree_paths *self, uint64_t parent)
{
    const uint64_t per_block = self->shape->digests_per_block;

    for (size_t place = piece_at(self, parent * per_block); place < self->piece_count; place++) {
        piece *it = &self->pieces[place];
        if (it->first / per_block != parent)
            break;
        hash_tree_digests_in(self->tree, self->block, it->first, (size_t)it->count, it->digests);
        it->is_known = 1;
    }
}

static void take_digests_of_nodes(tree_paths *self, size_t level, uint64_t parent)
{
    const uint64_t per_block = self->shape->digests_per_block;
    node_list *list = &self->missing;

    for (size_t place = place_of(list, level, parent * per_block); place < list->starts[level + 1]; place++) {
        node *it = &list->nodes[place];
        if (it->index / per_block != parent)
            break;
        hash_tree_digests_in(self->tree, self->block, it->index, 1, it->expected);
        it->has_expected = 1;
    }
}

int tree_paths_give(tree_paths *self, size_t level, uint64_t index, const uint8_t *unverified_block)
{
    const node *it = find_node(&self->missing, level, index);

    if (it == NULL || !it->has_expected)
        return TREE_NOT_ASKED;
    if (self->block == NULL)
        self->block = malloc(self->shape->hash_block_size);
    if (self->block == NULL)
        return TREE_NO_MEMORY;
    memcpy(self->block, unverified_block, self->shape->hash_block_size);
    const int verdict = hash_tree_keep(self->tree, level, index, self->block, it->expected);
    if (verdict != TREE_KEPT)
        return verdict;
    if (level)
        take_digests_of_nodes(self, level - 1, index);
    else
        take_digests_of_data(self, index);
    return TREE_KEPT;
}

/* -- Data. */

static int is_known(const tree_paths *self, const run *of)
{
    for (size_t place = of->first_piece; place < of->first_piece + of->piece_count; place++)
        if (!self->pieces[place].is_known)
            return 0;
    return 1;
}

int64_t tree_paths_mismatch(const tree_paths *self, size_t run_index, const uint8_t *data, size_t size, uint64_t from)
{
    if (run_index >= self->run_count)
        return TREE_NOT_ASKED;
    const run *of = &self->runs[run_index];
    const uint64_t skipped = from > of->first ? from - of->first : 0;
    size_t index;

    if (size / self->shape->data_block_size != of->count || size % self->shape->data_block_size || skipped > of->count
        || !is_known(self, of))
        return TREE_NOT_ASKED;
    const size_t count = (size_t)(of->count - skipped);
    if (!hash_tree_first_mismatch(self->tree, of->first + skipped, data + skipped * self->shape->data_block_size, count,
                                  of->digests + skipped * self->shape->digest_size, &index))
        return TREE_NO_MEMORY;
    return index == count ? TREE_NO_MISMATCH : (int64_t)(of->first + skipped + index);
}

const uint8_t *tree_paths_digests(const tree_paths *self, size_t run_index)
{
    return run_index < self->run_count && is_known(self, &self->runs[run_index]) ? self->runs[run_index].digests : NULL;
}
