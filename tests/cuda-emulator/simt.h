// What compiled kernels and the emulator share: threads, their meetings and
// their failures. A thread of a block is a fiber, so that all its memory can be
// read by the others; blocks run one behind the other.
#pragma once

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
/** Waits for so many threads of the block, 0 for all. */
AsaVotes asaBarrier(const char *what, int id, unsigned threads, int vote);
/** Lets other threads run. */
void asaYield();

AsaMeeting asaMmaHalf, asaMmaBfloat, asaLoadMatrices, asaLoadMatricesTransposed;
float asaFloatOfHalf(unsigned short x);
unsigned short asaHalfOfFloat(float x);
unsigned short asaBfloatOfFloat(float x);

/** Copies happen at the wait, so that a missing one is seen. */
void asaCopyAsync(void *shared, const void *global, bool valid, int bytes);
void asaCommitCopies();
void asaWaitForCopies(int pending);
}

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
