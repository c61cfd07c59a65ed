/* Copies lent blocks and proves them: what kv_transfer/block_copy.py says in words, without a step of Python per block.
 * The two reads of a block's generation have a fence between them and the copy, so that neither the compiler nor the
 * processor moves the copy out from between them. */

#include <stddef.h>
#include <stdlib.h>

#include "xxh3.h"

enum {
  PIECE = 4 * ROUND, /* copied, then read again for the digest from the nearest cache; 8 and 16 KiB were slower */
  STEP = 512,
  FAR = 4, /* blocks; one line of each page asked for this early hides the walk for its address */
  STREAMED_POOL = 8 << 20 /* bytes; a smaller pool may be read again from a cache soon, and is written through it */
};

enum outcome { FINE, REUSED_BEFORE, REUSED_DURING, WRONG_DIGEST, NO_SUCH_BLOCKS };

/* A block is `block_bytes` long; block i of a pool lies i times as far from its first one. */
struct pools {
  const u64 *their_generations;
  const u8 *theirs;
  u64 *own_generations;
  u8 *own;
  size_t block_bytes;
  int64_t num_theirs;
  int64_t num_own;
};

/* Of equal length. `digests` has 16 bytes for each; NULL, which only measurements give, compares no bytes. */
struct columns {
  const int64_t *sources;
  const u64 *lent;
  const int64_t *targets;
  const u64 *generations;
  const u8 *digests;
};

/* Where a copy stopped, and the generation that was found there. */
struct finding {
  int64_t column;
  u64 generation;
};

/* Called when a block's bytes are all in ours and none has been compared. */
typedef void (*hook)(int64_t column);

struct range {
  u8 *to;
  const u8 *from;
  size_t num_bytes;
};

static struct range block_at(const struct pools *pools, const struct columns *columns, int64_t i) {
  size_t size = pools->block_bytes;
  return (struct range){pools->own + columns->targets[i] * size, pools->theirs + columns->sources[i] * size, size};
}

static inline size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* `next` is what is copied after this: it may lie anywhere, so no processor can guess it. */
static void copy(struct range range, struct range next) {
  size_t at = 0;
  for (; at + STEP <= range.num_bytes; at += STEP) {
    for (size_t ahead = at; ahead < least(at + STEP, next.num_bytes); ahead += 64) {
      __builtin_prefetch(next.from + ahead, 0, 3);
      __builtin_prefetch(next.to + ahead, 1, 3);
    }
    memcpy(range.to + at, range.from + at, STEP);
  }
  memcpy(range.to + at, range.from + at, range.num_bytes - at);
}

/* Whether `to` is written past the caches: no line of it is then read first only to be overwritten, which is a third of
 * all traffic. Not with a hook: what it does to the copied bytes has to come before their digest. */
static int streams(const struct pools *pools, struct range block, hook copied) {
  size_t pool_bytes = (size_t)pools->num_own * pools->block_bytes;
  return CAN_STREAM && !copied && pool_bytes >= STREAMED_POOL && (uintptr_t)block.to % STRIPE == 0;
}

/* What is read a piece after byte `at` of a block: further on in it, or in the one that is copied next. */
static const u8 *piece_after(struct range block, struct range next, size_t at) {
  if (at + PIECE < block.num_bytes) return block.from + at + PIECE;
  return at % PIECE < next.num_bytes ? next.from + at % PIECE : block.from + at;
}

static inline void store_round(u8 *to, const u8 *from) {
#if CAN_STREAM
  for (int at = 0; at < ROUND; at += 32)
    _mm256_stream_si256((__m256i *)(to + at), _mm256_loadu_si256((const __m256i *)(from + at)));
#endif
}

/* Round by round, each byte read once, and digested as it is stored. The rest, up to a round, goes the usual way. */
static void stream_block(struct range block, struct range next, u8 *digest) {
  sums acc = first_sums;
  size_t done = (block.num_bytes - 1) / ROUND * ROUND;
  for (size_t at = 0; at < done; at += ROUND) {
    const u8 *after = piece_after(block, next, at);
    for (int ahead = 0; ahead < ROUND; ahead += 64) __builtin_prefetch(after + ahead, 0, 3);
    if (digest)
      take(&acc, block.from + at, ROUND / STRIPE, 1, block.to + at);
    else
      store_round(block.to + at, block.from + at);
  }
  memcpy(block.to + done, block.from + done, block.num_bytes - done);
  if (digest) finish(&acc, block.to + done, block.num_bytes - done, block.num_bytes, digest);
}

/* Piece by piece, each digested from where it now lies; with a hook, the whole block is one piece. */
static void copy_block(struct range block, struct range next, hook copied, int64_t column, u8 *digest) {
  sums acc = first_sums;
  size_t done = 0, step = copied ? block.num_bytes : PIECE;
  for (size_t start = 0; start < block.num_bytes; start += step) {
    size_t left = block.num_bytes - start, length = least(step, left);
    struct range piece = {block.to + start, block.from + start, length};
    struct range after = {piece.to + length, piece.from + length, least(left - length, step)};
    copy(piece, after.num_bytes ? after : next);
    if (copied) copied(column);
    if (!digest) continue;
    size_t rounds = (length < left ? length : length - 1) / ROUND;
    take_rounds(&acc, piece.to, rounds);
    done = start + rounds * ROUND;
  }
  if (digest) finish(&acc, block.to + done, block.num_bytes - done, block.num_bytes, digest);
}

/* Not before what was read earlier, and nothing read later comes before it. No full fence: that would wait until all
 * stores of the copy have left the core, for every block. */
static u64 generation_of(const u64 *place) {
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  u64 found = __atomic_load_n(place, __ATOMIC_ACQUIRE);
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return found;
}

static enum outcome copy_column(const struct pools *pools, const struct columns *columns, int64_t i, struct range next,
                                hook copied, struct finding *finding) {
  const u64 *theirs = pools->their_generations + columns->sources[i];
  u8 digest[16];
  *finding = (struct finding){i, generation_of(theirs)};
  if (finding->generation != columns->lent[i]) return REUSED_BEFORE;
  struct range block = block_at(pools, columns, i);
  if (streams(pools, block, copied))
    stream_block(block, next, columns->digests ? digest : NULL);
  else
    copy_block(block, next, copied, i, columns->digests ? digest : NULL);
  finding->generation = generation_of(theirs);
  if (finding->generation != columns->lent[i]) return REUSED_DURING;
  return columns->digests && memcmp(digest, columns->digests + 16 * i, 16) ? WRONG_DIGEST : FINE;
}

/* Whether each id is in a pool of `num_blocks` and none is named twice; 0 as well where there is no memory to tell. */
static int are_ids(const int64_t *ids, int64_t num_ids, int64_t num_blocks) {
  u8 *seen = calloc((size_t)num_blocks / 8 + 1, 1);
  int fine = seen != NULL;
  for (int64_t i = 0; fine && i < num_ids; i++) {
    int64_t id = ids[i];
    fine = id >= 0 && id < num_blocks && !(seen[id / 8] >> (id % 8) & 1);
    if (fine) seen[id / 8] |= (u8)(1 << (id % 8));
  }
  free(seen);
  return fine;
}

/* Columns `start` to `end` of `count`, which lie behind one another in `packed`. Says in our own headers first that
 * these blocks are about to change. Stops at the first column that is not fine; an expired lease goes before a wrong
 * digest, which it explains. The ids are checked with the first batch, all of them. */
int penstock_copy_blocks(const struct pools *pools, const u64 *packed, const u8 *digests, int64_t count, int64_t start,
                         int64_t end, hook copied, struct finding *finding) {
  const struct columns all = {(const int64_t *)packed, packed + count, (const int64_t *)packed + 2 * count,
                              packed + 3 * count, digests};
  const struct columns *columns = &all;
  if (start == 0 && !(are_ids(all.sources, count, pools->num_theirs) && are_ids(all.targets, count, pools->num_own)))
    return NO_SUCH_BLOCKS;
  for (int64_t i = start; i < end; i++)
    __atomic_store_n(pools->own_generations + columns->targets[i], columns->generations[i], __ATOMIC_RELEASE);
  __atomic_thread_fence(__ATOMIC_SEQ_CST); /* once a batch: before the first byte of any of them */
  enum outcome outcome = FINE;
  for (int64_t i = start; i < end && outcome == FINE; i++) {
    struct range next = {0};
    if (i + 1 < end) {
      next = block_at(pools, columns, i + 1);
      next.num_bytes = least(next.num_bytes, PIECE);
    }
    if (i + FAR < end) {
      struct range far = block_at(pools, columns, i + FAR);
      __builtin_prefetch(far.from, 0, 3);
      __builtin_prefetch(far.to, 1, 3);
    }
    outcome = copy_column(pools, columns, i, next, copied, finding);
  }
#if CAN_STREAM
  _mm_sfence(); /* streamed stores have an order of their own; other threads see them after this */
#endif
  return outcome;
}

/* As the xxhash package's xxh3_128_digest; for more than 240 bytes. */
void penstock_digest(const u8 *block, size_t num_bytes, u8 *digest) {
  sums acc = first_sums;
  size_t rounds = (num_bytes - 1) / ROUND;
  take_rounds(&acc, block, rounds);
  finish(&acc, block + rounds * ROUND, num_bytes - rounds * ROUND, num_bytes, digest);
}
