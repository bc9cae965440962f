// libcuda on host memory, two devices. Work is done as soon as it is enqueued on
// the first one and as late as can be on the second, or is kept where its stream
// is captured: of two devices, one that does not wait for the other is seen.
#include "emulator.h"
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <set>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace {

using Work = std::function<int()>;

constexpr int DEVICES = 2;
constexpr int MAX_DYNAMIC_SHARED_BYTES = 8;
constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256;
constexpr size_t TOTAL_BYTES = 8ull << 30;
/** What new memory holds: NaN, -1. */
constexpr int POISON = 0xff;
constexpr unsigned char RED = 0xa5;

struct Allocation {
  int device;
  size_t bytes;
  char *base;
  size_t mapped;

  void allow(bool isAllowed) const {
    int rights = isAllowed ? PROT_READ | PROT_WRITE : PROT_NONE;
    mprotect(base + PAGE, mapped - 2 * PAGE, rights);
  }
};

/** By address. */
std::map<uintptr_t, Allocation> allocations;
size_t allocated[DEVICES];
/** The device whose memory can be touched. */
int touched;

/** Backends that hold a device's context. */
int users[DEVICES];
/** The device whose context is current; -1 for none. */
int current = -1;
/** Whether the first one was let reach the second one's memory. */
bool reaches[DEVICES][DEVICES];

struct Stream {
  int device;
  bool isCaptured = false;
  std::vector<Work> captured = {};
  std::deque<Work> waiting = {};
  /** Pieces of work, from the first one on. */
  uint64_t enqueued = 0, done = 0;
};
/** A place in a stream's work. */
struct Event {
  int device;
  uint64_t stream = 0, position = 0;
};
using Graph = std::vector<Work>;

struct Module {
  int device;
  void *library;
  const AsaModule *facts;
};
struct Function {
  int device;
  std::string name;
  const AsaKernel *kernel;
  const AsaModule *module;
  /** Dynamic shared memory that it may have. */
  size_t sharedBytes;
};

/** Every object that is alive, so that a dead handle is an error. */
std::set<const void *> objects;

template <typename T> int give(uint64_t *out, T *object) {
  objects.insert(object);
  *out = (uint64_t)object;
  return CUDA_SUCCESS;
}
template <typename T> T *find(uint64_t handle) {
  return objects.count((void *)handle) ? (T *)handle : nullptr;
}
template <typename T> int drop(uint64_t handle) {
  if (!objects.erase((void *)handle)) return CUDA_ERROR_INVALID_HANDLE;
  delete (T *)handle;
  return CUDA_SUCCESS;
}

/** The last failure in words. */
int failed;
std::string failure;

int fail(int status, const std::string &text) {
  failed = status;
  failure = text;
  return status;
}

/** Whether calls go to that device's context. */
int checkCurrent(int device) {
  if (current >= 0 && current == device) return CUDA_SUCCESS;
  return fail(CUDA_ERROR_INVALID_CONTEXT,
              "the call is for device " + std::to_string(device) +
                  ", the current context is that of " + std::to_string(current));
}

/** Only this device's memory can be touched from now on. */
void touch(int device) {
  if (device == touched) return;
  for (auto &[start, allocation] : allocations) {
    if (allocation.device == device) allocation.allow(true);
    if (allocation.device == touched) allocation.allow(false);
  }
  touched = device;
}

/** The device of the kernel that runs. */
int launched = -1;

/** Does a stream's work up to a place. */
int run(Stream &stream, uint64_t until) {
  while (stream.done < until && !stream.waiting.empty()) {
    Work work = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    stream.done++;
    touch(stream.device);
    if (int status = work()) return status;
  }
  return CUDA_SUCCESS;
}

/** Every stream that is alive. */
std::set<Stream *> streams;

/** Does what lies before an event. */
int reach(const Event &event) {
  Stream *stream = find<Stream>(event.stream);
  return stream ? run(*stream, event.position) : CUDA_SUCCESS;
}

int finish(int device) {
  for (Stream *stream : streams) {
    if (stream->device != device) continue;
    if (int status = run(*stream, stream->enqueued)) return status;
  }
  return CUDA_SUCCESS;
}

/**
 * Pages that nothing may touch lie before and behind it. Up to the next
 * multiple of 256 there are bytes that are looked at when it is freed.
 */
int allocate(uint64_t *out, size_t bytes) {
  if (int status = checkCurrent(current)) return status;
  if (bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  if (allocated[current] + bytes > TOTAL_BYTES) return CUDA_ERROR_OUT_OF_MEMORY;
  size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  size_t used = (rounded + PAGE - 1) / PAGE * PAGE;
  size_t mapped = used + 2 * PAGE;
  char *base = (char *)mmap(nullptr, mapped, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  mprotect(base, PAGE, PROT_NONE);
  mprotect(base + PAGE + used, PAGE, PROT_NONE);
  char *start = base + PAGE + used - rounded;
  memset(start, POISON, bytes);
  memset(start + bytes, RED, rounded - bytes);
  Allocation made = {current, bytes, base, mapped};
  made.allow(current == touched);
  allocations[(uintptr_t)start] = made;
  allocated[current] += bytes;
  *out = (uintptr_t)start;
  return CUDA_SUCCESS;
}

/** Whether what lies behind it was written to. */
bool isOverrun(uintptr_t start, const Allocation &allocation) {
  const char *end = allocation.base + allocation.mapped - PAGE;
  for (const char *at = (char *)start + allocation.bytes; at < end; at++) {
    if ((unsigned char)*at != RED) return true;
  }
  return false;
}

int release(uint64_t address) {
  auto found = allocations.find(address);
  if (found == allocations.end()) return CUDA_ERROR_INVALID_VALUE;
  Allocation allocation = found->second;
  if (int status = checkCurrent(allocation.device)) return status;
  if (int status = finish(allocation.device)) return status;
  allocation.allow(true);
  bool isBad = isOverrun(address, allocation);
  munmap(allocation.base, allocation.mapped);
  allocations.erase(found);
  allocated[allocation.device] -= allocation.bytes;
  if (!isBad) return CUDA_SUCCESS;
  return fail(CUDA_ERROR_ILLEGAL_ADDRESS,
              "memory behind an allocation of " +
                  std::to_string(allocation.bytes) + " bytes was written to");
}

/** The one allocation of the device in which the bytes lie, or null. */
const Allocation *allocationOf(uint64_t address, size_t bytes, int device) {
  auto next = allocations.upper_bound(address);
  if (next == allocations.begin()) return nullptr;
  auto &[start, allocation] = *std::prev(next);
  bool isIn = address + bytes <= start + allocation.bytes && allocation.device == device;
  return isIn ? &allocation : nullptr;
}
bool holds(uint64_t address, size_t bytes, int device) {
  return allocationOf(address, bytes, device) != nullptr;
}

int copy(uint64_t to, uint64_t from, size_t bytes, uint64_t stream,
         bool toDevice, bool fromDevice) {
  return asaEnqueue((void *)stream, [=]() -> int {
    bool fits = (!toDevice || holds(to, bytes, touched)) &&
                (!fromDevice || holds(from, bytes, touched));
    if (!fits) return fail(CUDA_ERROR_INVALID_VALUE, "a copy past its memory");
    memmove((void *)to, (void *)from, bytes);
    return CUDA_SUCCESS;
  });
}

/** What stands against a launch; empty for nothing. */
std::string reasonAgainst(const Launch &launch, size_t sharedBytes) {
  auto [gx, gy, gz] = launch.blocks;
  auto [x, y, z] = launch.threads;
  auto text = [](size_t number) { return std::to_string(number); };
  if (gx - 1 >= (1u << 31) - 1 || gy - 1 >= 65535 || gz - 1 >= 65535) {
    return "a grid of " + text(gx) + ", " + text(gy) + ", " + text(gz);
  }
  unsigned most = launch.kernel->mostThreads;
  if (most == 0) most = 1024;
  if (x * y * z - 1 >= most || z > 64) {
    return "blocks of " + text(x) + ", " + text(y) + ", " + text(z) +
           " threads, at most " + text(most) + " are allowed";
  }
  unsigned cluster = launch.kernel->cluster;
  // More than 8 a card may refuse; the emulator has 1024 threads.
  if (cluster < 1 || cluster > 8 || gx % cluster > 0 || cluster * x * y * z > 1024) {
    return "clusters of " + text(cluster) + " in a grid of " + text(gx);
  }
  if (launch.sharedBytes > sharedBytes) {
    return text(launch.sharedBytes) + " bytes of shared memory, it may have " +
           text(sharedBytes);
  }
  size_t bytes = launch.arguments.size(), wanted = launch.kernel->argumentBytes;
  // A structure may end in padding that is not sent.
  if (bytes > wanted || bytes + 8 <= wanted) {
    return text(bytes) + " bytes of arguments, it takes " + text(wanted);
  }
  return "";
}

} // namespace

void allowMemory() { touch(launched); }

void sayWhere(const void *address, char *text, size_t size) {
  uintptr_t at = (uintptr_t)address;
  for (auto &[start, allocation] : allocations) {
    uintptr_t base = (uintptr_t)allocation.base;
    if (at < base || at >= base + allocation.mapped) continue;
    if (touched < 0) {
      snprintf(text, size, "memory that the kernel before may be writing");
      return;
    }
    if (allocation.device != touched) {
      snprintf(text, size, "an address of device %d, the kernel is on device %d",
               allocation.device, touched);
      return;
    }
    long past = at - start - allocation.bytes;
    long before = start - at;
    snprintf(text, size, "an address %ld bytes %s an allocation of %zu bytes",
             at < start ? before : past, at < start ? "before" : "behind",
             allocation.bytes);
    return;
  }
  snprintf(text, size, "an illegal address %p", address);
}

extern "C" {

int asaEnqueue(void *handle, const Work &work) {
  Stream *stream = find<Stream>((uint64_t)handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (int status = checkCurrent(stream->device)) return status;
  if (stream->isCaptured) {
    stream->captured.push_back(work);
    return CUDA_SUCCESS;
  }
  stream->waiting.push_back(work);
  stream->enqueued++;
  return stream->device == 0 ? run(*stream, stream->enqueued) : CUDA_SUCCESS;
}

int asaCurrentDevice() { return current; }
int asaIsOfCurrent(const void *address) {
  return current >= 0 && holds((uint64_t)address, 1, current);
}

int cuInit(unsigned) { return CUDA_SUCCESS; }

int cuDriverGetVersion(int *out) {
  *out = 13000;
  return CUDA_SUCCESS;
}

int cuGetErrorName(int status, const char **text) {
  static const std::map<int, const char *> names = {
      {CUDA_SUCCESS, "CUDA_SUCCESS"},
      {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
      {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
      {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
      {CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED"},
      {CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
      {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
      {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {CUDA_ERROR_MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS"},
      {CUDA_ERROR_INVALID_ADDRESS_SPACE, "CUDA_ERROR_INVALID_ADDRESS_SPACE"},
      {CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
      {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
  };
  auto found = names.find(status);
  if (found == names.end()) return CUDA_ERROR_INVALID_VALUE;
  *text = found->second;
  return CUDA_SUCCESS;
}

int cuGetErrorString(int status, const char **text) {
  if (status != failed) return CUDA_ERROR_INVALID_VALUE;
  *text = failure.c_str();
  return CUDA_SUCCESS;
}

int cuDeviceGetCount(int *count) { return *count = DEVICES, CUDA_SUCCESS; }
int cuDeviceGet(int *device, int index) {
  if (index < 0 || index >= DEVICES) return CUDA_ERROR_INVALID_VALUE;
  return *device = index, CUDA_SUCCESS;
}
int cuDeviceGetName(char *name, int size, int) {
  snprintf(name, size, "CUDA emulator");
  return CUDA_SUCCESS;
}
/** Those of an H100. */
int cuDeviceGetAttribute(int *value, int attribute, int) {
  static const std::map<int, int> attributes = {
      {1, 1024},         // threads of a block
      {8, 49152},        // shared memory of a block
      {10, 32},          // threads of a warp
      {12, 65536},       // registers of a block
      {16, 132},         // multiprocessors
      {38, 50 << 20},    // bytes of L2
      {39, 2048},        // threads of a multiprocessor
      {75, 9},           // compute capability
      {76, 0},
      {81, 233472},      // shared memory of a multiprocessor
      {97, SHARED_BYTES} // shared memory of a block that asks for it
  };
  auto found = attributes.find(attribute);
  if (found == attributes.end()) return CUDA_ERROR_INVALID_VALUE;
  *value = found->second;
  return CUDA_SUCCESS;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = TOTAL_BYTES, CUDA_SUCCESS; }
/** A context is the number of its device, from 1. */
int cuDevicePrimaryCtxRetain(uint64_t *context, int device) {
  users[device]++;
  return *context = device + 1, CUDA_SUCCESS;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
  if (users[device] == 0) return CUDA_ERROR_INVALID_CONTEXT;
  if (--users[device] > 0) return CUDA_SUCCESS;
  for (auto &enabled : reaches) enabled[device] = false;
  for (bool &enabled : reaches[device]) enabled = false;
  if (current == device) current = -1;
  return CUDA_SUCCESS;
}
int cuCtxSetCurrent(uint64_t context) {
  if (context == 0) return current = -1, CUDA_SUCCESS;
  if (context > DEVICES || users[context - 1] == 0) return CUDA_ERROR_INVALID_CONTEXT;
  return current = context - 1, CUDA_SUCCESS;
}

int cuDeviceCanAccessPeer(int *can, int device, int other) {
  return *can = device != other, CUDA_SUCCESS;
}
int cuCtxEnablePeerAccess(uint64_t context, unsigned flags) {
  int other = (int)context - 1;
  if (flags != 0 || other < 0 || other >= DEVICES || users[other] == 0) {
    return CUDA_ERROR_INVALID_VALUE;
  }
  if (int status = checkCurrent(current)) return status;
  if (other == current) return CUDA_ERROR_INVALID_CONTEXT;
  bool &isEnabled = reaches[current][other];
  if (isEnabled) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
  return isEnabled = true, CUDA_SUCCESS;
}

int cuMemAlloc_v2(uint64_t *out, size_t bytes) { return allocate(out, bytes); }
int cuMemFree_v2(uint64_t address) { return release(address); }
int cuMemHostAlloc(void **out, size_t bytes, unsigned) {
  *out = malloc(bytes);
  return *out ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
int cuMemFreeHost(void *memory) {
  for (int device = 0; device < DEVICES; device++) {
    if (int status = finish(device)) return status;
  }
  return free(memory), CUDA_SUCCESS;
}

int cuMemcpyHtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, uint64_t stream) {
  return copy(to, from, bytes, stream, true, false);
}
int cuMemcpyDtoHAsync_v2(uint64_t to, uint64_t from, size_t bytes, uint64_t stream) {
  return copy(to, from, bytes, stream, false, true);
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, uint64_t stream) {
  return copy(to, from, bytes, stream, true, true);
}
/** Only where both were let reach the other: else it would go by the host. */
int cuMemcpyPeerAsync(uint64_t to, uint64_t toContext, uint64_t from,
                      uint64_t fromContext, size_t bytes, uint64_t stream) {
  int target = (int)toContext - 1, source = (int)fromContext - 1;
  bool isKnown = target >= 0 && target < DEVICES && source >= 0 && source < DEVICES;
  if (!isKnown || target == source) return CUDA_ERROR_INVALID_VALUE;
  if (!reaches[target][source] || !reaches[source][target]) {
    return fail(CUDA_ERROR_INVALID_VALUE, "the devices do not reach each other");
  }
  return asaEnqueue((void *)stream, [=]() -> int {
    const Allocation *there = allocationOf(from, bytes, source);
    const Allocation *here = allocationOf(to, bytes, target);
    if (!there || !here) {
      return fail(CUDA_ERROR_INVALID_VALUE, "a copy past the memory of its devices");
    }
    for (auto side : {there, here}) side->allow(true);
    memcpy((void *)to, (void *)from, bytes);
    for (auto side : {there, here}) side->allow(side->device == touched);
    return CUDA_SUCCESS;
  });
}
int cuMemsetD8Async(uint64_t to, unsigned value, size_t bytes, uint64_t stream) {
  return asaEnqueue((void *)stream, [=]() -> int {
    if (!holds(to, bytes, touched)) return fail(CUDA_ERROR_INVALID_VALUE, "past memory");
    memset((void *)to, value, bytes);
    return CUDA_SUCCESS;
  });
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, uint64_t stream) {
  return asaEnqueue((void *)stream, [=]() -> int {
    if (!holds(to, 4 * count, touched)) return fail(CUDA_ERROR_INVALID_VALUE, "past memory");
    for (size_t n = 0; n < count; n++) ((unsigned *)to)[n] = value;
    return CUDA_SUCCESS;
  });
}

int cuStreamCreate(uint64_t *out, unsigned) {
  if (int status = checkCurrent(current)) return status;
  Stream *stream = new Stream{current};
  streams.insert(stream);
  return give(out, stream);
}
int cuStreamDestroy_v2(uint64_t handle) {
  Stream *stream = find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  int status = run(*stream, stream->enqueued);
  streams.erase(stream);
  drop<Stream>(handle);
  return status;
}
int cuStreamSynchronize(uint64_t handle) {
  Stream *stream = find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->isCaptured) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return run(*stream, stream->enqueued);
}
/** The event may be another device's. */
int cuStreamWaitEvent(uint64_t handle, uint64_t event, unsigned) {
  Stream *stream = find<Stream>(handle);
  Event *known = find<Event>(event);
  if (!stream || !known) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->isCaptured) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  return asaEnqueue((void *)handle, [place = *known] { return reach(place); });
}
int cuStreamBeginCapture_v2(uint64_t handle, int) {
  Stream *stream = find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (stream->isCaptured) return CUDA_ERROR_INVALID_VALUE;
  stream->isCaptured = true;
  return CUDA_SUCCESS;
}
int cuStreamEndCapture(uint64_t handle, uint64_t *graph) {
  Stream *stream = find<Stream>(handle);
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!stream->isCaptured) return CUDA_ERROR_INVALID_VALUE;
  stream->isCaptured = false;
  return give(graph, new Graph(std::exchange(stream->captured, {})));
}

int cuGraphInstantiateWithFlags(uint64_t *out, uint64_t graph, uint64_t) {
  Graph *known = find<Graph>(graph);
  return known ? give(out, new Graph(*known)) : CUDA_ERROR_INVALID_HANDLE;
}
int cuGraphLaunch(uint64_t graph, uint64_t stream) {
  Graph *known = find<Graph>(graph);
  if (!known) return CUDA_ERROR_INVALID_HANDLE;
  for (const Work &work : *known) {
    if (int status = asaEnqueue((void *)stream, work)) return status;
  }
  return CUDA_SUCCESS;
}
int cuGraphDestroy(uint64_t graph) { return drop<Graph>(graph); }
int cuGraphExecDestroy(uint64_t graph) { return drop<Graph>(graph); }

int cuEventCreate(uint64_t *out, unsigned) {
  if (int status = checkCurrent(current)) return status;
  return give(out, new Event{current});
}
int cuEventDestroy_v2(uint64_t event) { return drop<Event>(event); }
int cuEventRecord(uint64_t event, uint64_t handle) {
  Event *known = find<Event>(event);
  Stream *stream = find<Stream>(handle);
  if (!known || !stream || known->device != stream->device) {
    return CUDA_ERROR_INVALID_HANDLE;
  }
  if (stream->isCaptured) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  if (int status = checkCurrent(known->device)) return status;
  *known = {known->device, handle, stream->enqueued};
  return CUDA_SUCCESS;
}
int cuEventQuery(uint64_t event) {
  Event *known = find<Event>(event);
  return known ? reach(*known) : CUDA_ERROR_INVALID_HANDLE;
}
int cuEventSynchronize(uint64_t event) { return cuEventQuery(event); }

/** Machine code is a shared library, as long as its ELF header says. */
int cuModuleLoadData(uint64_t *out, const unsigned char *image) {
  if (int status = checkCurrent(current)) return status;
  uint64_t sections;
  uint16_t size, count;
  memcpy(&sections, image + 0x28, 8);
  memcpy(&size, image + 0x3a, 2);
  memcpy(&count, image + 0x3c, 2);
  size_t bytes = sections + (size_t)size * count;
  // The loader takes files of one name for one library.
  char path[] = "/tmp/asa-cuda-emulator-XXXXXX";
  int file = mkstemp(path);
  if (file < 0) return fail(CUDA_ERROR_INVALID_IMAGE, strerror(errno));
  bool isWritten = write(file, image, bytes) == (ssize_t)bytes;
  void *library = isWritten ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : nullptr;
  close(file);
  unlink(path);
  if (!library) {
    return fail(CUDA_ERROR_INVALID_IMAGE, isWritten ? dlerror() : strerror(errno));
  }
  auto *facts = (const AsaModule *)dlsym(library, "asaModule");
  return give(out, new Module{current, library, facts});
}
int cuModuleUnload(uint64_t handle) {
  Module *module = find<Module>(handle);
  if (!module) return CUDA_ERROR_INVALID_HANDLE;
  if (int status = finish(module->device)) return status;
  dlclose(module->library);
  return drop<Module>(handle);
}
int cuModuleGetFunction(uint64_t *out, uint64_t handle, const char *name) {
  Module *module = find<Module>(handle);
  if (!module) return CUDA_ERROR_INVALID_HANDLE;
  std::string symbol = std::string("asaKernel_") + name;
  auto *kernel = (const AsaKernel *)dlsym(module->library, symbol.c_str());
  if (!kernel) return fail(CUDA_ERROR_NOT_FOUND, "there is no such kernel");
  // Static memory is of the same 48 KiB.
  size_t taken = module->facts->sharedEnd - module->facts->sharedStart;
  size_t free = 48 << 10;
  free -= std::min(free, taken);
  return give(out, new Function{module->device, name, kernel, module->facts, free});
}
int cuFuncSetAttribute(uint64_t handle, int attribute, int value) {
  Function *function = find<Function>(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (attribute != MAX_DYNAMIC_SHARED_BYTES) return CUDA_SUCCESS;
  // Static memory is of the same 227 KiB.
  const AsaModule &module = *function->module;
  size_t taken = module.sharedEnd - module.sharedStart;
  if (value + taken > SHARED_BYTES) {
    return fail(CUDA_ERROR_INVALID_VALUE, function->name + ": " +
                std::to_string(value) + " bytes of shared memory beside " +
                std::to_string(taken));
  }
  function->sharedBytes = value;
  return CUDA_SUCCESS;
}

/** Tensors `[rows, heads, columns]` of 16 bits, in 128-byte swizzle. */
int cuTensorMapEncodeTiled(AsaBoxes *out, int type, unsigned rank,
                           uint64_t address, const uint64_t *extents,
                           const uint64_t *strides, const unsigned *box,
                           const unsigned *steps, int interleave, int swizzle,
                           int, int outside) {
  auto [columns, heads, rows] = *(const uint64_t(*)[3])extents;
  bool isKind = type == 1 && rank == 3 && interleave == 0 && swizzle == 3 &&
                outside == 0 && steps[0] == 1 && steps[1] == 1 && steps[2] == 1;
  bool isDense = strides[0] == 2 * columns && strides[1] == 2 * columns * heads;
  bool isAligned = (uint64_t)out % 64 == 0 && address % 16 == 0 &&
                   strides[0] % 16 == 0 && strides[1] % 16 == 0;
  bool isSome = columns > 0 && heads > 0 && rows > 0;
  bool isBox = isSome && box[0] == 64 && box[1] >= 1 && box[1] <= 256 && box[2] >= 1 &&
               box[2] <= 256;
  if (!isKind || !isDense || !isAligned || !isBox ||
      current < 0 || !holds(address, strides[1] * rows, current)) {
    return fail(CUDA_ERROR_INVALID_VALUE, "boxes that the emulator does not know");
  }
  *out = {AsaBoxes::TAG, (const char *)address, {columns, heads, rows},
          {box[1], box[2]}, {}};
  return CUDA_SUCCESS;
}

} // extern "C"

/**
 * Arguments come packed: BUFFER_POINTER, where, BUFFER_SIZE, where, END; or as
 * one parameter.
 */
static int launchKernel(uint64_t handle, dim3 blocks, dim3 threads,
                        unsigned sharedBytes, uint64_t stream, void **single,
                        void **packed, bool isEarly) {
  Function *function = find<Function>(handle);
  if (!function) return CUDA_ERROR_INVALID_HANDLE;
  if (int status = checkCurrent(function->device)) return status;
  bool isPacked = packed && packed[0] == (void *)1 && packed[2] == (void *)2;
  if (isPacked == (single != nullptr)) {
    return fail(CUDA_ERROR_INVALID_VALUE, "arguments must be packed, or one");
  }
  const char *arguments = (const char *)(single ? single[0] : packed[1]);
  size_t bytes = single ? function->kernel->argumentBytes : *(size_t *)packed[3];
  Launch launch = {function->name, function->kernel, function->module,
                   blocks, threads, sharedBytes,
                   {arguments, arguments + bytes}, isEarly};
  std::string reason = reasonAgainst(launch, function->sharedBytes);
  if (!reason.empty()) {
    return fail(CUDA_ERROR_INVALID_VALUE, function->name + ": " + reason);
  }
  int device = function->device;
  return asaEnqueue((void *)stream, [launch, device] {
    launched = device;
    if (launch.isEarly) touch(-1);
    int status = runGrid(launch);
    return status == CUDA_SUCCESS ? status : fail(status, launchFailure());
  });
}

extern "C" {

int cuLaunchKernel(uint64_t handle, unsigned gx, unsigned gy, unsigned gz,
                   unsigned x, unsigned y, unsigned z, unsigned sharedBytes,
                   uint64_t stream, void **single, void **packed) {
  return launchKernel(handle, {gx, gy, gz}, {x, y, z}, sharedBytes, stream,
                      single, packed, false);
}

struct LaunchAttribute {
  int id, unused, value[16];
};
struct LaunchConfig {
  dim3 blocks, threads;
  unsigned sharedBytes;
  uint64_t stream;
  const LaunchAttribute *attributes;
  unsigned count;
};

/** The one attribute that it knows is PROGRAMMATIC_STREAM_SERIALIZATION. */
int cuLaunchKernelEx(const LaunchConfig *config, uint64_t handle, void **single,
                     void **packed) {
  const LaunchAttribute *attribute = config->attributes;
  if (config->count != 1 || attribute->id != 6) {
    return fail(CUDA_ERROR_INVALID_VALUE, "attributes that the emulator does not know");
  }
  return launchKernel(handle, config->blocks, config->threads, config->sharedBytes,
                      config->stream, single, packed, attribute->value[0] != 0);
}

} // extern "C"
