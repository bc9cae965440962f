// Runs a grid: block by block, the threads of a block by turns.
#include "emulator.h"
#include "fiber.h"
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <unordered_map>
#include <vector>

AsaThread *asaThread;
AsaLaunch asaLaunch;

namespace {

constexpr unsigned MOST_THREADS = 1024;
constexpr size_t STACK = 128 << 10;
constexpr size_t PAGE = 4096;
constexpr int BARRIERS = 16;

struct Copy {
  void *shared;
  const void *global;
  bool valid;
  int bytes;
};

struct Thread : AsaThread {
  Fiber fiber;
  char *stack;
  /** What it waits at; null while it runs. */
  const char *waitsAt;
  // A meeting of lanes.
  unsigned lanes;
  bool isWhole;
  void *mine;
  AsaMeeting *meeting;
  // Asynchronous copies, and where the committed groups of them end.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
  /** Whether products may not see what has been copied. */
  bool isUnfenced;
  // Products of its warpgroup, likewise; whether its registers are fenced.
  std::vector<AsaWgmma> products;
  std::vector<size_t> productGroups;
  bool isFenced;
  /** Whether the kernel before this one has ended for it. */
  bool hasWaited;
};

/** Lanes as bits: those that can run, wait for others, let others go first. */
struct Warp {
  unsigned present, ready, meeting, yielded, returned;
};

struct Barrier {
  const char *what;
  unsigned wanted, there;
  AsaVotes votes, result;
  std::vector<Thread *> threads;
};

/** In shared memory: phases that have ended, and who waits for the next one. */
struct Mbarrier {
  unsigned wanted, missing, ended;
  /** Bytes of boxes that the phase waits for. */
  long expected;
  std::vector<Thread *> threads;
  /** Boxes that nobody may read yet: where to, and what. */
  std::vector<std::pair<char *, std::vector<char>>> boxes;
};

/** Those of all blocks of a cluster, one block's behind another's. */
Thread pool[MOST_THREADS];
unsigned count;
Fiber scheduler;
unsigned pace = 1;

/** A block that runs; those of a cluster change places at its barriers. */
struct Block {
  Thread *threads;
  Warp warps[MOST_THREADS / 32];
  Barrier barriers[BARRIERS];
  std::unordered_map<void *, Mbarrier> mbarriers;
  /** Threads that have copied what products may not see. */
  unsigned unfenced;
  /**
   * Every other block goes from the last thread to the first, so that no order of
   * threads hides that a barrier is missing.
   */
  bool isReversed;
  /**
   * Warps, as bits, that go on only where no other one can: about half of them in
   * three blocks of four, so that no pace of theirs hides a wait that is missing.
   */
  unsigned slow;
  /** Threads that wait for the cluster; whether all have returned. */
  unsigned atCluster;
  bool hasEnded;
  /** Its shared memory while another block runs: dynamic, static. */
  std::vector<char> shared, fixed;
};
std::vector<Block> cluster(1);
Block *block = &cluster[0];
const Launch *launch;
char *sharedArea;

/** How the launch ended; `ended` leaves the fibers where they are. */
int status;
char words[1024];
sigjmp_buf ended;

Thread &self() { return static_cast<Thread &>(*asaThread); }
Warp &warpOf(const Thread &thread) { return block->warps[thread.number / 32]; }
unsigned bitOf(const Thread &thread) { return 1u << thread.number % 32; }

/** Ends the launch; says where in the grid it happened. */
[[noreturn]] void fail(int code, const char *format, ...) {
  status = code;
  const uint3 &block = asaLaunch.block;
  int at = snprintf(words, sizeof words, "kernel %s, block (%u, %u, %u), ",
                    launch->name.c_str(), block.x, block.y, block.z);
  if (asaThread) {
    const uint3 &index = asaThread->index;
    at += snprintf(words + at, sizeof words - at, "thread (%u, %u, %u): ",
                   index.x, index.y, index.z);
  }
  va_list rest;
  va_start(rest, format);
  vsnprintf(words + at, sizeof words - at, format, rest);
  va_end(rest);
  siglongjmp(ended, 1);
}

/** Of some lanes the one whose turn is first. */
unsigned firstOf(unsigned lanes) {
  return block->isReversed ? 31 - __builtin_clz(lanes) : __builtin_ctz(lanes);
}

/** The warp's next lane runs, or the scheduler; returns at this one's turn. */
void leave() {
  Thread &thread = self();
  Warp &warp = warpOf(thread);
  warp.ready &= ~bitOf(thread);
  if (warp.ready == 0) {
    Fiber::change(thread.fiber, scheduler);
  } else {
    Thread &next = block->threads[thread.number / 32 * 32 + firstOf(warp.ready)];
    asaThread = &next;
    Fiber::change(thread.fiber, next.fiber);
  }
  asaThread = &thread;
}

void wait(const char *what) {
  self().waitsAt = what;
  leave();
}

void wake(Thread &thread) {
  thread.waitsAt = nullptr;
  warpOf(thread).ready |= bitOf(thread);
}

/** Holds the meeting of this thread's lanes if all are there. */
bool tryMeeting(Thread &first) {
  Warp &warp = warpOf(first);
  unsigned wanted = first.lanes;
  if (!first.isWhole) wanted &= warp.present & ~warp.returned;
  if (wanted & ~warp.meeting) return false;
  Thread *base = &block->threads[first.number / 32 * 32];
  void *all[32] = {};
  for (unsigned left = wanted; left; left &= left - 1) {
    Thread &lane = base[__builtin_ctz(left)];
    if (lane.meeting != first.meeting || lane.lanes != first.lanes) return false;
    all[lane.number % 32] = lane.mine;
  }
  first.meeting(all);
  warp.meeting &= ~wanted;
  for (unsigned left = wanted; left; left &= left - 1) {
    wake(base[__builtin_ctz(left)]);
  }
  return true;
}

void body() {
  launch->kernel->run(launch->arguments.data());
  Thread &thread = self();
  if (launch->isEarly && !thread.hasWaited) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "it starts early and has not waited");
  }
  Warp &warp = warpOf(thread);
  warp.returned |= bitOf(thread);
  // Those who waited for this lane need not any more.
  for (unsigned lane = 0; lane < 32; lane++) {
    bool isWaiting = warp.meeting >> lane & 1;
    if (isWaiting) tryMeeting(block->threads[thread.number / 32 * 32 + lane]);
  }
  wait("its end");
}

[[noreturn]] void stuck() {
  asaThread = nullptr;
  std::string text = "no thread can go on:";
  std::vector<std::pair<std::string, unsigned>> places;
  for (unsigned n = 0; n < count; n++) {
    const char *at = block->threads[n].waitsAt;
    size_t known = 0;
    while (known < places.size() && places[known].first != at) known++;
    if (known == places.size()) places.push_back({at, 0});
    places[known].second++;
  }
  for (auto &[at, number] : places) {
    text += " " + std::to_string(number) + " at " + at + ",";
  }
  text.back() = ' ';
  fail(CUDA_ERROR_LAUNCH_FAILED, "%s", text.c_str());
}

void openBlock() {
  for (Barrier &barrier : block->barriers) barrier = {};
  for (unsigned w = 0; w < (count + 31) / 32; w++) {
    unsigned lanes = count - 32 * w >= 32 ? ~0u : (1u << count % 32) - 1;
    block->warps[w] = {lanes, lanes, 0, 0, 0};
  }
  for (unsigned n = 0; n < count; n++) {
    Thread &thread = block->threads[n];
    // Each from another line of a page, or caches hold few stacks at a time.
    thread.fiber.start(thread.stack, STACK - n * 5 % 64 * 64, body);
    thread.number = n;
    const dim3 &size = asaLaunch.threads;
    thread.index = {n % size.x, n / size.x % size.y, n / size.x / size.y};
    thread.waitsAt = nullptr;
    thread.copies.clear();
    thread.groups.clear();
    thread.isUnfenced = false;
    thread.products.clear();
    thread.productGroups.clear();
    thread.isFenced = false;
    thread.hasWaited = false;
  }
  block->mbarriers.clear();
  block->unfenced = 0;
  // What a block finds in shared memory is of no use to it.
  memset(asaLaunch.shared, 0xff, launch->sharedBytes);
  const AsaModule &module = *launch->module;
  memset(module.sharedStart, 0xff, module.sharedEnd - module.sharedStart);
}

/** Runs what can run of a warp; whether that was anything. */
bool runWarp(unsigned number) {
  Warp &warp = block->warps[number];
  warp.ready |= warp.yielded;
  warp.yielded = 0;
  if (warp.ready == 0) return false;
  Thread &first = block->threads[number * 32 + firstOf(warp.ready)];
  asaThread = &first;
  Fiber::change(scheduler, first.fiber);
  return true;
}

/** Starts the block's threads. */
void startBlock() {
  openBlock();
  pace = pace * 1664525 + 1013904223;
  block->slow = pace >> 30 == 0 ? 0 : pace >> 8;
  block->atCluster = 0;
  block->hasEnded = false;
}

/** Runs the block to its end, or until all its threads wait for the cluster. */
void runBlock() {
  unsigned total = (count + 31) / 32;
  for (bool goesOn = true; goesOn;) {
    goesOn = false;
    // One that has only let others go first does not keep the slow ones waiting.
    bool areReady = false;
    for (unsigned n = 0; n < total; n++) {
      unsigned number = block->isReversed ? total - 1 - n : n;
      if (block->slow >> number & 1) continue;
      areReady |= block->warps[number].ready != 0;
      goesOn |= runWarp(number);
    }
    for (unsigned n = 0; n < total && !areReady; n++) {
      areReady = block->slow >> n & 1 && runWarp(n);
      goesOn |= areReady;
    }
  }
  if (block->atCluster == count) return;
  for (unsigned w = 0; w < total; w++) {
    if (block->warps[w].returned != block->warps[w].present) stuck();
  }
  block->hasEnded = true;
}

/** The block's shared memory, kept while others of its cluster use the place. */
void keepShared() {
  const AsaModule &module = *launch->module;
  block->shared.assign(asaLaunch.shared, asaLaunch.shared + launch->sharedBytes);
  block->fixed.assign(module.sharedStart, module.sharedEnd);
}
void restoreShared() {
  memcpy(asaLaunch.shared, block->shared.data(), block->shared.size());
  memcpy(launch->module->sharedStart, block->fixed.data(), block->fixed.size());
}

/** Runs the blocks of a cluster from that one on, by turns. */
void runCluster(uint3 first, bool isReversed) {
  bool isAlone = cluster.size() == 1;
  auto enter = [&](unsigned rank) {
    block = &cluster[rank];
    asaLaunch.block = {first.x + rank, first.y, first.z};
  };
  for (unsigned rank = 0; rank < cluster.size(); rank++) {
    enter(rank);
    block->threads = pool + rank * count;
    block->isReversed = isReversed ^ (rank & 1);
    startBlock();
    if (!isAlone) keepShared();
  }
  for (bool areWaiting = true; areWaiting;) {
    size_t ended = 0;
    for (unsigned n = 0; n < cluster.size(); n++) {
      enter(isReversed ? cluster.size() - 1 - n : n);
      if (!isAlone) restoreShared();
      runBlock();
      if (!isAlone) keepShared();
      ended += block->hasEnded;
    }
    areWaiting = ended == 0;
    if (ended > 0 && ended < cluster.size()) {
      asaThread = nullptr;
      fail(CUDA_ERROR_LAUNCH_FAILED, "others of its cluster wait, it has ended");
    }
    for (Block &own : cluster) {
      block = &own;
      own.atCluster = 0;
      for (unsigned n = 0; n < count && areWaiting; n++) wake(own.threads[n]);
    }
  }
}

/** Stacks and shared memory, each before a page that nothing may touch. */
void makeMemory() {
  if (sharedArea) return;
  size_t each = STACK + PAGE;
  char *stacks = (char *)mmap(nullptr, MOST_THREADS * each, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (unsigned n = 0; n < MOST_THREADS; n++) {
    mprotect(stacks + n * each, PAGE, PROT_NONE);
    pool[n].stack = stacks + n * each + PAGE;
  }
  size_t shared = (SHARED_BYTES + PAGE - 1) / PAGE * PAGE;
  sharedArea = (char *)mmap(nullptr, shared + PAGE, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + shared;
  mprotect(sharedArea, PAGE, PROT_NONE);
}

void onFault(int, siginfo_t *info, void *) {
  long behind = (char *)info->si_addr - sharedArea;
  if (behind >= 0 && behind < (long)PAGE) {
    fail(CUDA_ERROR_ILLEGAL_ADDRESS,
         "an address %ld bytes behind the end of dynamic shared memory", behind);
  }
  char where[256];
  sayWhere(info->si_addr, where, sizeof where);
  fail(CUDA_ERROR_ILLEGAL_ADDRESS, "%s", where);
}

/** Faults are the kernel's while it runs, else the process's own. */
class FaultHandler {
public:
  FaultHandler() {
    static char stack[64 << 10];
    stack_t own = {};
    own.ss_sp = stack;
    own.ss_size = sizeof stack;
    sigaltstack(&own, &oldStack);
    struct sigaction action = {};
    action.sa_sigaction = onFault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &oldSegment);
    sigaction(SIGBUS, &action, &oldBus);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &oldSegment, nullptr);
    sigaction(SIGBUS, &oldBus, nullptr);
    sigaltstack(&oldStack, nullptr);
  }

private:
  stack_t oldStack;
  struct sigaction oldSegment, oldBus;
};

bool isShared(const void *address) {
  const char *at = (const char *)address;
  const AsaModule &module = *launch->module;
  return (at >= asaLaunch.shared && at < asaLaunch.shared + launch->sharedBytes) ||
         (at >= module.sharedStart && at < module.sharedEnd);
}

void checkShared(const char *what, const void *address, int bytes = 16) {
  if (!isShared(address)) {
    fail(CUDA_ERROR_INVALID_ADDRESS_SPACE, "%s: %p is not in shared memory",
             what, address);
  }
  if ((uintptr_t)address % bytes != 0) {
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "%s: %p is no multiple of %d", what,
             address, bytes);
  }
}

} // namespace

void asaYield() {
  warpOf(self()).yielded |= bitOf(self());
  leave();
}

void asaGiveUp(const char *why) { fail(CUDA_ERROR_LAUNCH_FAILED, "%s", why); }

void asaMeet(const char *what, unsigned lanes, bool isWhole, void *mine,
             AsaMeeting *meeting) {
  Thread &thread = self();
  if (!(lanes & bitOf(thread))) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "%s: the lanes %08x are without its own",
         what, lanes);
  }
  thread.lanes = lanes;
  thread.isWhole = isWhole;
  thread.mine = mine;
  thread.meeting = meeting;
  warpOf(thread).meeting |= bitOf(thread);
  if (!tryMeeting(thread)) wait(what);
}

AsaVotes asaBarrier(const char *what, int id, unsigned wanted, int vote,
                    bool waits) {
  Barrier &barrier = block->barriers[id];
  if (wanted == 0) wanted = count;
  if (barrier.there == 0) {
    barrier.what = what;
    barrier.wanted = wanted;
    barrier.votes = {0, 1, 0};
  } else if (strcmp(barrier.what, what) != 0 || barrier.wanted != wanted) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "%s of %u threads: others wait at %s of %u", what, wanted,
         barrier.what, barrier.wanted);
  }
  barrier.votes.any |= vote != 0;
  barrier.votes.all &= vote != 0;
  barrier.votes.count += vote != 0;
  if (++barrier.there < wanted) {
    if (!waits) return barrier.result;
    barrier.threads.push_back(&self());
    wait(what);
    return barrier.result;
  }
  barrier.result = barrier.votes;
  barrier.there = 0;
  for (Thread *thread : barrier.threads) wake(*thread);
  barrier.threads.clear();
  return barrier.result;
}

void asaMeetCluster() {
  block->atCluster++;
  wait("barrier.cluster");
}

const void *asaOfBlock(const void *own, unsigned rank, unsigned bytes) {
  checkShared("ld.shared::cluster", own, bytes);
  if (rank >= cluster.size()) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "mapa: no block %u in the cluster", rank);
  }
  const Block &other = cluster[rank];
  if (&other == block) return own;
  if (other.hasEnded) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "ld.shared::cluster: block %u has ended", rank);
  }
  const char *at = (const char *)own;
  bool isFixed = at >= launch->module->sharedStart && at < launch->module->sharedEnd;
  return isFixed ? other.fixed.data() + (at - launch->module->sharedStart)
                 : other.shared.data() + (at - asaLaunch.shared);
}

void asaCopyAsync(void *shared, const void *global, bool valid, int bytes) {
  checkShared("cp.async", shared, bytes);
  if (valid && (uintptr_t)global % bytes != 0) {
    fail(CUDA_ERROR_MISALIGNED_ADDRESS, "cp.async: %p is no multiple of %d",
         global, bytes);
  }
  self().copies.push_back({shared, global, valid, bytes});
}

void asaCommitCopies() { self().groups.push_back(self().copies.size()); }

void asaWaitForCopies(int pending) {
  Thread &thread = self();
  size_t open = thread.groups.size();
  if (open <= (size_t)pending) return;
  size_t done = open - pending;
  size_t end = thread.groups[done - 1];
  if (end > 0 && !thread.isUnfenced) {
    thread.isUnfenced = true;
    block->unfenced++;
  }
  for (size_t n = 0; n < end; n++) {
    const Copy &copy = thread.copies[n];
    if (copy.valid) memcpy(copy.shared, copy.global, copy.bytes);
    else memset(copy.shared, 0, copy.bytes);
  }
  thread.copies.erase(thread.copies.begin(), thread.copies.begin() + end);
  thread.groups.erase(thread.groups.begin(), thread.groups.begin() + done);
  for (size_t &group : thread.groups) group -= end;
}

namespace {

Mbarrier &mbarrierAt(const char *what, void *at) {
  checkShared(what, at, 8);
  auto found = block->mbarriers.find(at);
  if (found == block->mbarriers.end()) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "%s: no barrier was made at %p", what, at);
  }
  return found->second;
}

} // namespace

void asaInitBarrier(void *at, unsigned wanted) {
  checkShared("mbarrier.init", at, 8);
  block->mbarriers[at] = {wanted, wanted, 0, 0, {}, {}};
}

namespace {

void endPhase(Mbarrier &barrier) {
  if (barrier.missing > 0 || barrier.expected != 0) return;
  barrier.missing = barrier.wanted;
  barrier.ended++;
  for (Thread *thread : barrier.threads) wake(*thread);
  barrier.threads.clear();
}

} // namespace

void asaArrive(void *at, unsigned expected) {
  Mbarrier &barrier = mbarrierAt("mbarrier.arrive", at);
  if (self().isUnfenced) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "mbarrier.arrive: no fence.proxy.async since the thread's copies");
  }
  if (barrier.missing == 0) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "mbarrier.arrive: more than are awaited");
  }
  barrier.missing--;
  barrier.expected += expected;
  endPhase(barrier);
}

void asaCopyBox(void *shared, const AsaBoxes &boxes, const int (&from)[3],
                void *at) {
  auto [columns, heads, rows] = boxes.extents;
  auto [boxHeads, boxRows] = boxes.box;
  if (boxes.tag != AsaBoxes::TAG) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "cp.async.bulk.tensor: no boxes");
  }
  char *to = (char *)shared;
  checkShared("cp.async.bulk.tensor", to);
  checkShared("cp.async.bulk.tensor", to + boxHeads * boxRows * 128 - 16);
  if ((to - asaLaunch.shared + ASA_SHARED_START) % 1024 != 0) {
    fail(CUDA_ERROR_MISALIGNED_ADDRESS,
         "cp.async.bulk.tensor: a tile that no multiple of 1024 begins");
  }
  std::vector<char> box(boxHeads * boxRows * 128);
  for (unsigned n = 0; n < boxHeads * boxRows; n++) {
    long row = from[2] + n / boxHeads, head = from[1] + n % boxHeads;
    for (unsigned piece = 0; piece < 8; piece++) {
      long column = from[0] + 8 * piece;
      bool isThere = row >= 0 && row < (long)rows && head < (long)heads &&
                     column < (long)columns;
      char *at = box.data() + n * 128 + (piece ^ n % 8) * 16;
      if (isThere) {
        memcpy(at, boxes.start + 2 * ((row * heads + head) * columns + column), 16);
      } else {
        memset(at, 0, 16);
      }
    }
  }
  // Until its phase is seen to have ended the box is of no use.
  memset(to, 0xff, box.size());
  Mbarrier &barrier = mbarrierAt("cp.async.bulk.tensor", at);
  barrier.expected -= box.size();
  barrier.boxes.push_back({to, std::move(box)});
  endPhase(barrier);
}

bool asaHasEnded(void *at, unsigned parity) {
  Mbarrier &barrier = mbarrierAt("mbarrier.try_wait", at);
  if ((barrier.ended & 1) == parity) return false;
  for (auto &[to, box] : barrier.boxes) memcpy(to, box.data(), box.size());
  barrier.boxes.clear();
  return true;
}

void asaAwait(void *at, unsigned parity) {
  if (parity > 1) fail(CUDA_ERROR_LAUNCH_FAILED, "mbarrier: parity %u", parity);
  while (!asaHasEnded(at, parity)) {
    mbarrierAt("mbarrier.try_wait", at).threads.push_back(&self());
    wait("mbarrier.try_wait");
  }
}

void asaFenceProducts() {
  if (self().isUnfenced) block->unfenced--;
  self().isUnfenced = false;
}

void asaAwaitEarlier() {
  if (launch->isEarly) allowMemory();
  self().hasWaited = true;
}

void asaWgmmaFence() { self().isFenced = true; }

void asaWgmma(const AsaWgmma &product) {
  if (!self().isFenced) {
    fail(CUDA_ERROR_LAUNCH_FAILED, "wgmma: no wgmma.fence since the last wait");
  }
  if (block->unfenced > 0) {
    fail(CUDA_ERROR_LAUNCH_FAILED,
         "wgmma: %u threads have copied without fence.proxy.async", block->unfenced);
  }
  self().products.push_back(product);
}

void asaCommitProducts() {
  self().productGroups.push_back(self().products.size());
}

/** The products of a warp's lanes, which must be the same ones. */
static void holdProducts(void *const *all) {
  size_t total = (size_t)-1;
  for (unsigned lane = 0; lane < 32; lane++) {
    size_t own = *(const size_t *)all[lane];
    if (lane > 0 && own != total) {
      fail(CUDA_ERROR_LAUNCH_FAILED, "wgmma: lanes of a warp differ");
    }
    total = own;
  }
  unsigned warp = self().number / 32;
  for (size_t n = 0; n < total; n++) {
    const AsaWgmma *lanes[32];
    for (unsigned lane = 0; lane < 32; lane++) {
      lanes[lane] = &block->threads[32 * warp + lane].products[n];
      bool isSame = lanes[lane]->placeA == lanes[0]->placeA &&
                    lanes[lane]->placeB == lanes[0]->placeB &&
                    lanes[lane]->more == lanes[0]->more &&
                    lanes[lane]->isTransposedA == lanes[0]->isTransposedA &&
                    lanes[lane]->columns == lanes[0]->columns;
      if (!isSame) fail(CUDA_ERROR_LAUNCH_FAILED, "wgmma: lanes of a warp differ");
    }
    multiplyWarpgroup(lanes, warp % 4);
  }
}

void asaWaitForProducts(int pending) {
  Thread &thread = self();
  size_t open = thread.productGroups.size();
  size_t done = open > (size_t)pending ? open - pending : 0;
  size_t end = done > 0 ? thread.productGroups[done - 1] : 0;
  asaMeet("wgmma.wait_group", 0xffffffff, true, &end, holdProducts);
  thread.products.erase(thread.products.begin(), thread.products.begin() + end);
  thread.productGroups.erase(thread.productGroups.begin(),
                             thread.productGroups.begin() + done);
  for (size_t &group : thread.productGroups) group -= end;
  thread.isFenced = false;
}

const char *readableShared(unsigned address, unsigned bytes) {
  const char *at = asaLaunch.shared + (int)address - ASA_SHARED_START;
  if (address < ASA_SHARED_START || !isShared(at) || !isShared(at + bytes - 1)) {
    fail(CUDA_ERROR_INVALID_ADDRESS_SPACE,
         "wgmma: %u is not the address of a matrix in shared memory", address);
  }
  return at;
}

void checkMatrixRow(const char *what, const void *row) { checkShared(what, row); }

int runGrid(const Launch &wanted) {
  makeMemory();
  launch = &wanted;
  status = 0;
  asaThread = nullptr;
  size_t alignment = wanted.module->sharedAlignment;
  size_t room = (wanted.sharedBytes + alignment - 1) / alignment * alignment;
  asaLaunch.shared = sharedArea - room;
  asaLaunch.threads = wanted.threads;
  asaLaunch.blocks = wanted.blocks;
  count = wanted.threads.x * wanted.threads.y * wanted.threads.z;
  FaultHandler handler;
  unsigned size = wanted.kernel->cluster;
  cluster.resize(size);
  if (sigsetjmp(ended, 1) == 0) {
    bool isReversed = false;
    for (unsigned z = 0; z < wanted.blocks.z; z++) {
      for (unsigned y = 0; y < wanted.blocks.y; y++) {
        for (unsigned x = 0; x < wanted.blocks.x; x += size) {
          runCluster({x, y, z}, isReversed);
          isReversed = !isReversed;
        }
      }
    }
  }
  launch = nullptr;
  return status;
}

const char *launchFailure() { return words; }

// What -fsanitize=alignment,bounds calls, with the place in the source.
struct SourcePlace {
  const char *file;
  unsigned line, column;
};

extern "C" void __ubsan_handle_type_mismatch_v1(SourcePlace *place, void *address) {
  fail(CUDA_ERROR_MISALIGNED_ADDRESS, "%s:%u: %p is misaligned for its type",
           place->file, place->line, address);
}

extern "C" void __ubsan_handle_out_of_bounds(SourcePlace *place, unsigned long index) {
  fail(CUDA_ERROR_ILLEGAL_ADDRESS, "%s:%u: index %ld is outside the array",
           place->file, place->line, (long)index);
}
