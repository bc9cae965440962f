// What compiled kernels and the emulator share: threads, their meetings and
// their failures. A thread of a block is a fiber, so that all its memory can be
// read by the others; blocks run one behind the other, those of a cluster from
// one of its barriers to the next.
#pragma once

/** The shared address of dynamic shared memory. */
#define ASA_SHARED_START 1040

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct AsaThread {
  uint3 index;
  /** Its number in the block. */
  unsigned number;
};

struct AsaLaunch {
  uint3 block;
  dim3 threads, blocks;
  /** Dynamic shared memory. */
  char *shared;
};

/** Answers of a vote at a barrier. */
struct AsaVotes {
  int any, all, count;
};

/** A kernel, and what a launch of it must fit. */
struct AsaKernel {
  void (*run)(const char *arguments);
  unsigned argumentBytes;
  /** `__launch_bounds__`; 0 without. */
  unsigned mostThreads;
  /** `__cluster_dims__`: blocks of a cluster, on the grid's first axis. */
  unsigned cluster;
};

/** Static shared memory of a module, and what dynamic memory is aligned to. */
struct AsaModule {
  char *sharedStart, *sharedEnd;
  unsigned sharedAlignment;
};

/** The meeting's work, done once all are there; `all` by lane, null for none. */
typedef void AsaMeeting(void *const *all);

extern "C" {
extern AsaThread *asaThread;
extern AsaLaunch asaLaunch;

/**
 * Waits for the lanes of `lanes` that have not returned; the last one does the
 * work. All lanes of the warp must be there where `isWhole`.
 */
void asaMeet(const char *what, unsigned lanes, bool isWhole, void *mine,
             AsaMeeting *meeting);
/**
 * Waits for so many threads of the block, 0 for all; one that does not wait
 * counts only.
 */
AsaVotes asaBarrier(const char *what, int id, unsigned threads, int vote,
                    bool waits = true);
/** Waits for all threads of the cluster. */
void asaMeetCluster();
/** What another block of the cluster has there, since the barrier it waits at. */
const void *asaOfBlock(const void *own, unsigned block, unsigned bytes);
/** Lets other threads run. */
void asaYield();
/** Of a launch that starts early: the thread waits for the kernel before. */
void asaAwaitEarlier();
/** Ends the launch. */
[[noreturn]] void asaGiveUp(const char *why);

AsaMeeting asaMmaHalf, asaMmaBfloat, asaLoadMatrices, asaLoadMatricesTransposed,
    asaStoreMatrices;
float asaFloatOfHalf(unsigned short x);
unsigned short asaHalfOfFloat(float x);
unsigned short asaBfloatOfFloat(float x);

/** Copies happen at the wait, so that a missing one is seen. */
void asaCopyAsync(void *shared, const void *global, bool valid, int bytes);
void asaCommitCopies();
void asaWaitForCopies(int pending);

/** Barriers in shared memory, by their address. */
void asaInitBarrier(void *at, unsigned count);
/** Arrives; the phase waits for so many bytes of boxes, too. */
void asaArrive(void *at, unsigned expected);
bool asaHasEnded(void *at, unsigned parity);
void asaAwait(void *at, unsigned parity);
/** A box from that column, head and row on. */
void asaCopyBox(void *shared, const struct AsaBoxes &boxes, const int (&from)[3],
                void *barrier);

/** Products of warpgroups happen at the wait, as copies do. */
void asaFenceProducts();
void asaWgmmaFence();
void asaWgmma(const struct AsaWgmma &product);
void asaCommitProducts();
void asaWaitForProducts(int pending);
}

/** What stands for a `CUtensorMap`: a tensor, and heads and rows of a box. */
struct AsaBoxes {
  static constexpr unsigned long long TAG = 0xa5a0b0c5;
  unsigned long long tag;
  const char *start;
  unsigned long long extents[3];
  unsigned box[2];
  /** 128 bytes in all. */
  unsigned long long rest[10];
};

/** A lane's part of a product of matrices, or of loading them. */
struct AsaMma {
  float *d;
  const unsigned *a;
  unsigned b0, b1;
};
struct AsaLoad {
  unsigned *r;
  const void *row;
};

/** A lane's part of a product of a warpgroup; `a` null: in shared memory. */
struct AsaWgmma {
  float *d;
  const unsigned *a;
  unsigned long long placeA, placeB;
  int columns;
  bool isTransposed, isHalf, more, isTransposedA;
};
