/**
 * Compares each form of a warpgroup's product with plain integers on a Hopper
 * card, with tiles as the kernels lay them, and says where the first wrong
 * number is. Through the built packages, from a checkout:
 *
 *   node packages/backend-gpu/bench/hopper-check.mjs [--tokens 1500]
 *
 * Every number is exact in 16 bits, and every sum in 32: nothing may differ.
 * Then it compares dense attention in the widths of models with itself in f32,
 * which takes other kernels, in the root mean square.
 */
import { readFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { openCuda } from '@asa/backend-gpu/cuda';
import { operators, Random, Scope, Sequences } from '@asa/core';
import { ALLOWED, inBoth } from './in-both.mjs';

const folder = new URL('../src/cuda/kernels/', import.meta.url);
const headers = Object.fromEntries(
  ['ptx', 'common', 'tile', 'attention-tile', 'flash', 'hopper-ptx', 'hopper']
    .map((name) => `${name}.cuh`)
    .map((name) => [name, readFileSync(new URL(name, folder), 'utf8')]),
);

/**
 * scores = q k^T, sums = scores v: 128 rows, N keys, copied by a warpgroup;
 * turned = k^T v, 64 columns of k a warpgroup.
 */
const source = `
#include "hopper.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    check(const T *q, const T *k, const T *v, float *scores, float *sums,
          float *turned) {
  extern __shared__ int4 memory[];
  __shared__ Mbarrier full;
  T *tileQ = tilesIn(memory);
  T *tileK = tileQ + tileSize(ROWS, KEY);
  T *tileV = tileK + tileSize(N, KEY);
  if (threadIdx.x == 0) initBarrier(&full, 4);
  __syncthreads();
  int group = warpgroup();
  if (group == GROUPS) {
    giveRegisters<40>();
    copyTile<ROWS, 0, KEY>(tileQ, q, KEY, 0, ROWS);
    copyTile<N, 0, KEY>(tileK, k, KEY, 0, N);
    copyTile<N, 0, VALUE>(tileV, v, VALUE, 0, N);
    Copies copies = {0};
    copies.commit(&full);
    copies.announce<0>();
    return;
  }
  takeRegisters<232>();
  await(&full, 0);
  float x[N / 8][4];
  float y[VALUE / 8][4];
  unsigned p[N / 16][4];
  wgmmaFence();
  multiplyTiles<KEY, ROWS, N>(x, placeOf<ROWS>(tileQ) + 64 * group * 128 / 16,
                              placeOf<N>(tileK));
  wgmmaCommit();
  wgmmaWait<0>();
  hold(x);
  operandsOf(p, x);
  hold(p);
  wgmmaFence();
  multiplyWeights(y, p, placeOf<N>(tileV), 0);
  wgmmaCommit();
  wgmmaWait<0>();
  hold(y);
  float z[VALUE / 8][4];
  wgmmaFence();
  if (KEY > 64 * group) {
    multiplyTransposed<N>(z, placeOf<N>(tileK) + group * (N * 128 / 16),
                          placeOf<N>(tileV));
  }
  wgmmaCommit();
  wgmmaWait<0>();
  hold(z);
  int row = 64 * group + threadIdx.x % GROUP / 32 * 16 + laneRow();
  for (int n = 0; n < N / 8; n++) {
    for (int e = 0; e < 4; e++) {
      scores[(row + e / 2 * 8) * N + 8 * n + laneColumn() + e % 2] = x[n][e];
    }
  }
  for (int n = 0; n < VALUE / 8; n++) {
    for (int e = 0; e < 4; e++) {
      int at = (row + e / 2 * 8) * VALUE + 8 * n + laneColumn() + e % 2;
      sums[at] = y[n][e];
      if (row + e / 2 * 8 < KEY) turned[at] = z[n][e];
    }
  }
}`;

const forms = [
  [128, 128, 128],
  [64, 64, 64],
  [96, 64, 128],
  [192, 128, 128],
  [80, 112, 176],
  [144, 80, 64],
  [192, 192, 32],
];
const rows = 128;
const backend = await openCuda();
const { functions, driver, stream } = backend;
const random = Random.fromSeed(3);
let failures = 0;

for (const dtype of ['bf16', 'f16']) {
  for (const [key, value, keys] of forms) await check(dtype, key, value, keys);
}
const { values: flags } = parseArgs({
  options: { tokens: { type: 'string', default: '1500' } },
});
const tokens = Number(flags.tokens);
/** Heads, groups, width, rotary columns, width of values; 0: latent. */
const models = [
  [32, 2, 128, 0, 128],
  [24, 8, 64, 0, 64],
  [16, 16, 64, 32, 64],
  [32, 2, 128, 64, 0],
  [8, 8, 128, 64, 128],
];
for (const dtype of ['bf16', 'f16']) {
  for (const model of models) await checkModel(dtype, model);
}
await backend.destroy();
console.log(failures === 0 ? 'all agree' : `${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;

async function check(dtype, key, value, keys) {
  const scope = new Scope(backend);
  const matrix = (height, width) =>
    Float32Array.from(
      { length: height * width },
      () => Math.floor(random.uniform() * 3) - 1,
    );
  const [q, k, v] = [matrix(rows, key), matrix(keys, key), matrix(keys, value)];
  const inputs = [q, k, v].map((data) => {
    const x = scope.tensor(data, [data.length], 'f32');
    return scope.run(operators.cast, { x }, { dtype }).y;
  });
  const outputs = [
    scope.empty([rows * keys], 'f32'),
    scope.empty([rows * value], 'f32'),
    scope.empty([key * value], 'f32'),
  ];
  const chunks = (columns) => Math.ceil(columns / 64) * 64;
  const shared =
    2 * ((rows + keys) * chunks(key) + keys * chunks(value)) + 1024;
  launch([...inputs, ...outputs], shared, {
    ...{ T: dtype, VIEW: 'ATTENTION', WARPS: 12, ROWS: rows, N: keys },
    ...{ STAGES: 1, WIDTH: key, ROPE: 0, VALUE: value, LATENT: 0 },
    ...{ BLOCK: 1, UNIT: 1 },
  });
  const scores = product(q, k, rows, keys, key, (n, c) => n * key + c);
  const sums = product(scores, v, rows, value, keys, (n, c) => c * value + n);
  const columns = Math.min(key, rows);
  const turned = new Float32Array(columns * keys);
  for (let c = 0; c < columns; c++) {
    for (let n = 0; n < keys; n++) turned[c * keys + n] = k[n * key + c];
  }
  const back = product(
    turned,
    v,
    columns,
    value,
    keys,
    (n, c) => c * value + n,
  );
  const name = `${dtype}, keys of ${key}, values of ${value}, ${keys} at a time`;
  await compare(`${name}: q k^T`, scope, outputs[0], scores, keys);
  await compare(`${name}: p v`, scope, outputs[1], sums, value);
  await compare(`${name}: k^T v`, scope, outputs[2], back, value);
  scope.free();
}

function launch(tensors, shared, defines) {
  const code = functions.compiler.compile({
    name: 'check.cu',
    source,
    headers,
    options: [
      '--gpu-architecture=sm_90a',
      '--std=c++17',
      ...Object.entries(defines).map(([name, is]) => `-D${name}=${is}`),
    ],
  });
  const kernel = driver.functionOf(driver.loadModule(code), 'check');
  driver.allowShared(kernel, shared);
  const { buffer, byteOffset } = driver.argumentBytes;
  const bytes = new DataView(buffer, byteOffset);
  tensors.forEach((tensor, n) => {
    bytes.setBigUint64(8 * n, BigInt(backend.addressOf(tensor)), true);
  });
  driver.launch(kernel, [1], [384], shared, 8 * tensors.length, stream);
}

/** Sums over `depth` of a[m, c] b[at(n, c)]. */
function product(a, b, height, width, depth, at) {
  const x = new Float32Array(height * width);
  for (let m = 0; m < height; m++) {
    for (let n = 0; n < width; n++) {
      let sum = 0;
      for (let c = 0; c < depth; c++) sum += a[m * depth + c] * b[at(n, c)];
      x[m * width + n] = sum;
    }
  }
  return x;
}

async function compare(name, scope, tensor, want, width) {
  const got = await scope.read(tensor);
  const wrong = [...want.keys()].filter((n) => got[n] !== want[n]);
  if (wrong.length === 0) {
    console.log(`ok      ${name}`);
    return;
  }
  failures += 1;
  const rowsOf = new Set(wrong.map((n) => Math.floor(n / width)));
  const columns = new Set(wrong.map((n) => n % width));
  const [n] = wrong;
  console.log(
    `WRONG   ${name}: ${wrong.length} of ${want.length}, in ${rowsOf.size} rows and ${columns.size} columns; first row ${Math.floor(n / width)}, column ${n % width}: ${got[n]}, not ${want[n]}`,
  );
}

async function checkModel(dtype, [heads, groups, width, rope, value]) {
  const scope = new Scope(backend);
  const blocking = { length: 8, stride: 4, sharing: 1 };
  const sequences = Sequences.packed(
    [Math.ceil(tokens / 3), tokens].map((queries) => ({ queries })),
    blocking,
  );
  const cast = (x, to) => scope.run(operators.cast, { x }, { dtype: to }).y;
  const filled = (...shape) => {
    const size = shape.reduce((n, d) => n * d, 1);
    const data = Float32Array.from({ length: size }, () => random.normal());
    return cast(scope.tensor(data, shape, 'f32'), dtype);
  };
  const rows = sequences.queryRows;
  const scale = 1 / Math.sqrt(width + rope);
  const calls = [
    ['attention', rows, { sequences, scale }],
    ['attention', rows, { sequences, scale, window: 300 }],
    [
      'compressedAttention',
      sequences.blockRows(blocking),
      { sequences, scale, length: 8, stride: 4 },
    ],
  ];
  for (const [operator, keys, attributes] of calls) {
    const k = filled(keys, groups, width);
    const inputs = {
      ...{ q: filled(rows, heads, width), k },
      v: value ? filled(keys, groups, value) : k,
      ...(rope && {
        qRope: filled(rows, heads, rope),
        kRope: filled(keys, 1, rope),
      }),
    };
    const name = `${dtype}, ${heads} heads of ${width} and ${rope}, ${groups} groups, values of ${value}: ${operator}${attributes.window ? ' of a window' : ''}`;
    const results = await compareRun(scope, name, operator, inputs, attributes);
    const gradient = {
      ...inputs,
      ...results,
      dO: filled(...results.o.shape),
    };
    const backward = `${operator}Backward`;
    await compareRun(
      scope,
      `${name}, backward`,
      backward,
      gradient,
      attributes,
    );
  }
  sequences.free();
  scope.free();
}

/** Runs an operator, and once more in f32. */
async function compareRun(scope, name, operator, inputs, attributes) {
  const { results, errors } = await inBoth(scope, operator, inputs, attributes);
  for (const [key, error] of errors) {
    const isGood = error <= ALLOWED;
    if (!isGood) failures += 1;
    console.log(
      `${isGood ? 'ok     ' : 'WRONG  '} ${name}: ${key} ${error.toExponential(1)}`,
    );
  }
  return results;
}
