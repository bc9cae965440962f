/** That the emulator sees what it is there to see. */
import {
  afterEach,
  beforeAll,
  beforeEach,
  describe,
  expect,
  test,
} from 'vitest';
import type {
  CudaPointer,
  CudaStream,
} from '../../packages/backend-gpu/src/cuda/bindings';
import { NativeMemory } from '../../packages/backend-gpu/src/cuda/bindings';
import { headers } from '../../packages/backend-gpu/src/cuda/kernels/sources';
import { whyNoEmulator } from './build.mjs';
import { loadEmulator } from './open';

type Emulator = Awaited<ReturnType<typeof loadEmulator>>;

interface Run {
  readonly blocks?: number;
  readonly grid?: readonly [x: number, y: number, z: number];
  readonly threads?: number;
  readonly shared?: number;
  /** It starts before the kernel before it has ended. */
  readonly isEarly?: boolean;
  /** Blocks of a cluster. */
  readonly cluster?: number;
  /** Words that the kernel's one pointer points to. */
  readonly words?: number;
  /** Of the compiler. */
  readonly options?: readonly string[];
}

const reason = whyNoEmulator();

async function loadWithContext(): Promise<Emulator> {
  const emulator = await loadEmulator();
  emulator.driver.retainContext(0);
  return emulator;
}

describe.skipIf(reason)(`CUDA emulator ${reason ?? ''}`, () => {
  let emulator: Emulator;
  let stream: CudaStream;

  beforeAll(async () => {
    emulator = await loadWithContext();
    stream = emulator.driver.createStream();
  }, 120_000);

  afterEach(async () => {
    // A failure ends a driver.
    emulator = await loadWithContext();
  });

  /** Compiles `kernel(unsigned *x)` with that body, runs it; x behind it. */
  function run(body: string, options: Run = {}): Uint32Array {
    const { blocks = 1, threads = 64, shared = 0, words = threads } = options;
    const { grid = [blocks], isEarly = false, cluster } = options;
    const { driver } = emulator;
    const kernel = load(body, options.options, cluster);
    const bytes = 4 * words;
    const x = driver.allocate(bytes) as CudaPointer;
    const host = new NativeMemory(bytes);
    new DataView(
      driver.argumentBytes.buffer,
      driver.argumentBytes.byteOffset,
    ).setBigUint64(0, BigInt(x), true);
    driver.launch(kernel, grid, [threads], shared, 8, stream, { isEarly });
    driver.copyToHost(host.address, x, bytes, stream);
    const result = new Uint32Array(host.bytes.slice().buffer);
    host.free();
    driver.free(x);
    return result;
  }

  function load(
    body: string,
    options: readonly string[] = [],
    cluster?: number,
  ) {
    const { driver, compiler } = emulator;
    const dims = cluster ? `__cluster_dims__(${cluster})` : '';
    const source = `#include "common.cuh"
#include "hopper-ptx.cuh"
extern "C" __global__ void ${dims} kernel(unsigned *x) {
  unsigned i = threadIdx.x;
  ${body}
}`;
    const request = { name: 'kernel.cu', source, headers, options };
    return driver.functionOf(
      driver.loadModule(compiler.compile(request)),
      'kernel',
    );
  }

  test('runs threads, warps and blocks', () => {
    const sums = run(
      'x[blockIdx.x * 64 + i] = blockSum(i) + warpSum(1u) + blockIdx.x;',
      { blocks: 2, words: 128 },
    );
    expect(sums).toEqual(
      Uint32Array.from({ length: 128 }, (_, n) => 2016 + 32 + (n < 64 ? 0 : 1)),
    );
  });

  test('lets warps of some blocks go on only where no other can', () => {
    const order = run(
      `__shared__ int count;
       if (i == 0) count = 0;
       __syncthreads();
       if (i % 32 == 0) x[4 * blockIdx.x + atomicAdd(&count, 1)] = i / 32;`,
      { blocks: 32, threads: 128, words: 128 },
    );
    const orders = Array.from({ length: 32 }, (_, n) =>
      order.slice(4 * n, 4 * n + 4).join(' '),
    );
    // From the first to the last, the other way round, and others.
    expect(new Set(orders).size).toBeGreaterThan(4);
    for (const one of ['0 1 2 3', '3 2 1 0']) expect(orders).toContain(one);
  });

  test('says what does not compile, and where', () => {
    expect(() => run('y[i] = 1;')).toThrow(/kernel\.cu:5:3: error: ‘y’/);
  });

  test.each([
    [
      'threads that returned before a barrier',
      'if (i < 16) return; __syncthreads();',
      /block \(0, 0, 0\), no thread can go on: 16 at its end, 48 at __syncthreads/,
    ],
    [
      'lanes at a barrier that others shuffle without',
      'if (i < 8) __syncthreads(); else x[i] = warpSum(i);',
      /8 at __syncthreads, 24 at __shfl_xor_sync, 32 at its end/,
    ],
    [
      'two kinds of barrier',
      'if (i < 32) __syncthreads(); else x[i] = __syncthreads_or(i);',
      /__syncthreads_or of 64 threads: others wait at __syncthreads/,
    ],
    [
      'a product of matrices by half a warp',
      'float d[4] = {}; unsigned a[4] = {}; if (i % 32 < 16) mmaHalf(d, a, 0, 0);',
      /at mma/,
    ],
    [
      'an index outside an array',
      '__shared__ int known[8]; if (i < 32) x[i] = known[i];',
      /thread \(8, 0, 0\): kernel\.cu:5: index 8 is outside the array/,
    ],
    [
      'an address that is not aligned',
      'if (i > 0) x[4 * i % 64] = ((const int4 *)(x + 1))->x;',
      /CUDA_ERROR_MISALIGNED_ADDRESS, .* is misaligned for its type/,
    ],
    [
      'memory far from any',
      '*(volatile unsigned *)(16ul * i) = 1;',
      /CUDA_ERROR_ILLEGAL_ADDRESS, kernel kernel, .* an illegal address/,
    ],
    [
      'what lies behind dynamic shared memory',
      'extern __shared__ int4 memory[]; x[i] = memory[i].x;',
      /thread \(8, 0, 0\): an address 0 bytes behind the end of dynamic/,
    ],
  ])('reports %s', (_, body, message) => {
    expect(() => run(body, { shared: 128 })).toThrow(message);
    expect(() => emulator.driver.checkAlive()).toThrow(/device was lost/);
  });

  test('refuses launches that a card refuses', () => {
    expect(() => run('', { threads: 1056 })).toThrow(/at most 1024/);
    expect(() => run('', { shared: 50_000 })).toThrow(/50000 bytes of shared/);
    for (const grid of [
      [2 ** 31, 1, 1],
      [1, 65_536, 1],
      [1, 1, 65_536],
      [0, 1, 1],
    ] as const) {
      expect(() => run('', { grid })).toThrow(`a grid of ${grid.join(', ')}`);
    }
  });

  test('refuses lambdas that are not said to be for the device', () => {
    const body =
      'auto twice = [&](unsigned y) { return 2 * y; }; x[i] = twice(i);';
    expect(() => run(body)).toThrow(/host functions are not allowed/);
    expect(run(body, { options: ['-default-device'] })[3]).toBe(6);
  });

  test('counts static shared memory to what needs no asking', () => {
    const body =
      '__shared__ unsigned own[64]; own[i] = i; __syncthreads(); x[i] = own[63 - i];';
    expect(() => run(body, { shared: 49_152 })).toThrow(/it may have 48896/);
    expect(run(body, { shared: 48_896 })[0]).toBe(63);
  });

  test('finds a write behind memory at once', () => {
    expect(() => run('x[i + 1] = i;')).toThrow(
      /thread \(63, 0, 0\): an address 0 bytes behind an allocation of 256 bytes/,
    );
  });

  test('finds one that its alignment hides when it is freed', () => {
    expect(() => run('x[i + 2] = i;', { words: 65 })).toThrow(
      /cuMemFree: .* behind an allocation of 260 bytes was written to/,
    );
  });

  test('shows that a barrier is missing', () => {
    const body = (barrier: string) => `
      __shared__ unsigned all[64];
      all[i] = i;
      ${barrier}
      x[blockIdx.x * 64 + i] = all[63 - i] + all[i];`;
    const options = { blocks: 2, words: 128 };
    const whole = new Uint32Array(128).fill(63);
    expect(run(body('__syncthreads();'), options)).toEqual(whole);
    const [first, second] = [0, 64].map((start) =>
      run(body(''), options).slice(start, start + 64),
    );
    expect(first).not.toEqual(whole.slice(64));
    expect(second).not.toEqual(whole.slice(64));
  });

  test('copies behind the thread only when it waits for them', () => {
    const body = (wait: string) => `
      extern __shared__ int4 memory[];
      unsigned *words = (unsigned *)memory;
      for (int n = 0; n < 4; n++) x[4 * i + n] = 4 * i + n;
      cpAsync16(memory + i, x + 4 * i, true);
      cpAsyncCommit();
      cpAsync16(memory + 64 + i, x, false);
      cpAsyncCommit();
      ${wait}
      x[4 * i] = words[4 * i + 1];
      x[4 * i + 1] = words[256 + 4 * i];`;
    const options = { shared: 2048, words: 256 };
    const none = 0xffffffff;
    expect([...run(body(''), options).slice(4, 6)]).toEqual([none, none]);
    const one = run(body('cpAsyncWait<1>();'), options);
    expect([...one.slice(4, 6)]).toEqual([5, none]);
    const both = run(body('cpAsyncWait<0>();'), options);
    expect([...both.slice(4, 6)]).toEqual([5, 0]);
  });

  /** Of 64 rows of 16 ones, times 16 columns n of n + 1: sums of 16 n + 16. */
  const product = `
      extern __shared__ __align__(1024) int4 memory[];
      unsigned start = __cvta_generic_to_shared(memory);
      start += -start & 1023;
      unsigned short *tile = (unsigned short *)((char *)memory +
        (start - __cvta_generic_to_shared(memory)));
      for (int at = i; at < 16 * 64; at += 128) {
        // Row k of 64 columns n, pieces of eight by XOR with k.
        int k = at / 64, n = at % 64;
        tile[k * 64 + ((n / 8 ^ k % 8) * 8 + n % 8)] = halfOfFloat(n + 1);
      }
      __shared__ Mbarrier barrier;
      if (i == 0) initBarrier(&barrier, 128);
      __syncthreads();
      unsigned one = halvesOfFloats(1, 1);
      unsigned a[4] = {one, one, one, one};
      float d[2][4] = {{7, 7, 7, 7}, {7, 7, 7, 7}};
      MatrixPlace b = start >> 4 | 64ull << 32 | 1ull << 62;`;
  const onWarpgroup = { threads: 128, shared: 4096 };

  test('multiplies for warpgroups when they wait, and not before', () => {
    const body = (wait: string) => `${product}
      wgmmaFence();
      Wgmma<16>::half<true>(d, a, b, 0);
      Wgmma<16>::half<true>(d, a, b, 1);
      wgmmaCommit();
      ${wait}
      x[i] = (unsigned)d[1][2];`;
    const columns = (row: number) =>
      Array.from({ length: 4 }, (_, t) => 32 * (8 + 2 * t + 1) + row);
    const done = run(body('wgmmaWait<0>();'), onWarpgroup);
    expect([...done.slice(100, 104)]).toEqual(columns(0));
    expect(run(body('wgmmaWait<1>();'), onWarpgroup)[100]).toBe(7);
  });

  test('multiplies by a first operand whose rows are those of k', () => {
    const body = `${product}
      wgmmaFence();
      Wgmma<16>::half<true, true>(d, b, b, 0);
      wgmmaCommit();
      wgmmaWait<0>();
      x[i] = (unsigned)d[1][2];`;
    // Lane 4 of warp 3: row 48 + 1 + 8.
    const columns = [9, 11, 13, 15].map((n) => 16 * 58 * n);
    expect([...run(body, onWarpgroup).slice(100, 104)]).toEqual(columns);
  });

  test.each([
    ['no fence of registers', '', /no wgmma\.fence/],
    [
      'no fence of what was copied',
      'cpAsync16(tile, x, false); cpAsyncCommit(); cpAsyncWait<0>(); wgmmaFence();',
      /without fence\.proxy\.async/,
    ],
    [
      'a matrix that starts on no multiple of 1024',
      'wgmmaFence(); b += 16;',
      /not the address of a matrix/,
    ],
    [
      'a barrier at which too few arrive',
      'if (i > 0) arrive(&barrier); await(&barrier, 0);',
      /128 at mbarrier/,
    ],
    [
      'a count that no block before has reached',
      'wgmmaFence(); if (i == 0) awaitCount((const int *)x, 1 << 30);',
      /awaitCount: no block before/,
    ],
    [
      'arriving before copies are fenced',
      'cpAsync16(tile, x, false); cpAsyncCommit(); cpAsyncWait<0>(); arrive(&barrier);',
      /mbarrier\.arrive: no fence/,
    ],
    [
      'a named barrier that half of its threads miss',
      'if (i < 64) meetAt(1, 128); wgmmaFence();',
      /64 at bar/,
    ],
  ])('reports %s', (_, body, message) => {
    const all = `${product} ${body}
      Wgmma<16>::half<true>(d, a, b, 0);
      wgmmaCommit();
      wgmmaWait<0>();`;
    expect(() => run(all, onWarpgroup)).toThrow(message);
  });

  describe('two devices', () => {
    let other: Emulator;
    let late: CudaStream;

    beforeEach(async () => {
      other = await loadEmulator();
      other.driver.retainContext(1);
      late = other.driver.createStream();
    });
    // Its context forgets what it reaches.
    afterEach(() => other.driver.releaseContext(1));

    /** A word on the device. */
    function wordOn({ driver }: Emulator, on: CudaStream, value: number) {
      const x = driver.allocate(4) as CudaPointer;
      driver.fillWords(x, value, 1, on);
      return x;
    }
    function read({ driver }: Emulator, on: CudaStream, x: CudaPointer) {
      const host = new NativeMemory(4);
      driver.copyToHost(host.address, x, 4, on);
      driver.synchronize(on);
      const [word] = new Uint32Array(host.bytes.slice().buffer);
      host.free();
      return word;
    }

    test('have memory of their own', () => {
      const x = wordOn(other, late, 7);
      expect(() => emulator.driver.fillWords(x, 1, 1, stream)).toThrow(
        /past memory/,
      );
      expect(read(other, late, x)).toBe(7);
    });

    test('run kernels that see no other memory', () => {
      const x = BigInt(wordOn(other, late, 7));
      expect(() => run(`x[i] = *(const unsigned *)${x}ull;`)).toThrow(
        /an address of device 1, the kernel is on device 0/,
      );
    });

    test('take work in their own context alone', () => {
      expect(() => emulator.driver.synchronize(late)).not.toThrow();
      const x = wordOn(emulator, stream, 1);
      expect(() => other.driver.fillWords(x, 1, 1, stream)).toThrow(
        /the call is for device 0, the current context is that of 1/,
      );
    });

    test('do not wait for each other by themselves', () => {
      const { driver } = emulator;
      driver.reach(other.driver, 0, 1);
      other.driver.reach(driver, 1, 0);
      const copied = (waits: boolean) => {
        const [x, y] = [wordOn(other, late, 7), wordOn(emulator, stream, 1)];
        const event = other.driver.createEvent();
        other.driver.record(event, late);
        if (waits) driver.makeWait(stream, event);
        driver.copyFromPeer(y, x, other.driver, 4, stream);
        return read(emulator, stream, y);
      };
      expect(copied(true)).toBe(7);
      expect(copied(false)).not.toBe(7);
    });

    test('copy only where both were let reach the other', () => {
      const { driver } = emulator;
      const [x, y] = [wordOn(other, late, 7), wordOn(emulator, stream, 1)];
      const copy = () => driver.copyFromPeer(y, x, other.driver, 4, stream);
      driver.reach(other.driver, 0, 1);
      expect(copy).toThrow(/do not reach each other/);
      other.driver.reach(driver, 1, 0);
      expect(copy).not.toThrow();
    });
  });

  test('sees threads that start early and do not wait', () => {
    const waits = 'if (i == 9) return; awaitEarlier(); x[i] = i;';
    expect(() => run(waits, { isEarly: true })).toThrow(
      'it starts early and has not waited',
    );
    const all = run('awaitEarlier(); x[i] = i;', { isEarly: true });
    expect(all[63]).toBe(63);
  });

  test.each([
    'x[i] = i; awaitEarlier();',
    'i = x[0]; awaitEarlier(); x[1] = i;',
  ])('sees memory that is touched too early: %s', (body) => {
    expect(() => run(body, { isEarly: true })).toThrow(
      'memory that the kernel before may be writing',
    );
  });

  test('lets who starts early prefetch', () => {
    const body = 'prefetch(x, 256); awaitEarlier(); x[i] = 2 * i;';
    expect(run(body, { isEarly: true })[63]).toBe(126);
  });

  /** Each thread tells the next block's, which reads it. */
  const told = (meets: string) => `
    __shared__ float2 own[64];
    own[i] = make_float2(blockIdx.x, i);
    ${meets}
    float2 other = loadOfBlock(&own[i], (blockIdx.x + 1) % 4);
    x[blockIdx.x * 64 + i] = 100 * (unsigned)other.x + (unsigned)other.y;
    meetCluster();`;
  const clusters = { blocks: 8, words: 512, cluster: 4 };

  test('lets blocks of a cluster read what the others have', () => {
    const words = run(told('meetCluster();'), clusters);
    expect(words[63]).toBe(163);
    expect(words[3 * 64]).toBe(0);
    expect(words[7 * 64 + 5]).toBe(405);
  });

  test('sees blocks of a cluster that read too early', () => {
    expect(run(told(''), clusters)[63]).not.toBe(163);
  });

  test.each([
    [
      'a block that ends while others wait for it',
      'if (blockIdx.x == 2) return; meetCluster();',
      /others of its cluster wait/,
    ],
    [
      'threads that do not come',
      'if (i < 9) return; meetCluster();',
      /no thread can go on: 9 at its end, 55 at barrier.cluster/,
    ],
    [
      'a block that is none of them',
      '__shared__ float2 a; meetCluster(); x[0] = loadOfBlock(&a, 4).x;',
      /no block 4 in the cluster/,
    ],
  ])('sees, of clusters, %s', (_, body, words) => {
    expect(() => run(body, clusters)).toThrow(words);
  });

  test('refuses a grid that is not whole clusters', () => {
    expect(() => run('meetCluster();', { ...clusters, blocks: 6 })).toThrow(
      /clusters of 4 in a grid of 6/,
    );
  });
});
