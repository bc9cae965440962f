// The parts of the emulated libcuda.
#pragma once
#include "simt.h"
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_INVALID_IMAGE = 200,
  CUDA_ERROR_INVALID_CONTEXT = 201,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_NOT_FOUND = 500,
  CUDA_ERROR_ILLEGAL_ADDRESS = 700,
  CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED = 704,
  CUDA_ERROR_MISALIGNED_ADDRESS = 716,
  CUDA_ERROR_INVALID_ADDRESS_SPACE = 717,
  CUDA_ERROR_LAUNCH_FAILED = 719,
  CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
};

/** Shared memory that a block of Hopper may ask for: 227 KiB. */
constexpr size_t SHARED_BYTES = 232448;

struct Launch {
  std::string name;
  const AsaKernel *kernel;
  const AsaModule *module;
  dim3 blocks, threads;
  size_t sharedBytes;
  std::vector<char> arguments;
  /** It starts before the kernel before it has ended. */
  bool isEarly;
};

/** Runs it; a status, and behind a failure its words. */
int runGrid(const Launch &launch);
const char *launchFailure();

/** Lets a launch that starts early touch memory. */
void allowMemory();

/** What lies at an address that must not be touched. */
void sayWhere(const void *address, char *text, size_t size);

/** Ends the launch unless `ldmatrix` may read there, `stmatrix` write. */
void checkMatrixRow(const char *what, const void *row);

/** A warp's rows of a product, `warp` of four; by lane. */
void multiplyWarpgroup(const AsaWgmma *const *lanes, unsigned warp);

/** Memory at a shared address that products may read, or the launch ends. */
const char *readableShared(unsigned address, unsigned bytes);

extern "C" {
/** Runs work now or later, or keeps it where the stream is captured. */
int asaEnqueue(void *stream, const std::function<int()> &work);
/** The device whose context is current; -1 for none. */
int asaCurrentDevice();
/** Whether it is an address in that device's memory. */
int asaIsOfCurrent(const void *address);
}
