// Speed of the CPU backend, for docs/benchmarks.md. Build first.
//   node scripts/bench-cpu.mjs
import { openCpu } from '../packages/backend-cpu/dist/index.js';
import {
  operators,
  Random,
  Scope,
  Sequences,
} from '../packages/core/dist/index.js';

const backend = await openCpu();
const scope = new Scope(backend);
const random = Random.fromSeed(1);
const tensor = (...shape) =>
  scope.tensor(
    Float32Array.from(
      { length: shape.reduce((n, extent) => n * extent, 1) },
      () => random.normal(),
    ),
    shape,
    'f32',
  );

/** The median of `runs` timings after two that do not count, in ms. */
function median(call, runs = 7) {
  const times = [];
  for (let i = -2; i < runs; i++) {
    const began = performance.now();
    for (const output of Object.values(call())) output.free();
    if (i >= 0) times.push(performance.now() - began);
  }
  return times.sort((a, b) => a - b)[runs >> 1];
}

function row(name, flops, call) {
  const ms = median(call);
  const rate = (flops / ms / 1e6).toFixed(2);
  console.log(`| ${name} | ${ms.toFixed(2)} | ${rate} |`);
}

console.log('| f32 | ms | GFLOP/s |\n|---|---|---|');
for (const [m, k, n] of [
  [512, 512, 512],
  [1024, 1024, 1024],
  [64, 1024, 1024],
  [1, 1024, 1024],
]) {
  const [a, b] = [tensor(m, k), tensor(n, k)];
  row(`matmul ${m} x ${k} x ${n}, weights [out, in]`, 2 * m * k * n, () =>
    scope.run(operators.matmul, { a, b }, { transposeB: true }),
  );
}

const [tokens, heads, groups, width] = [1024, 8, 2, 64];
const q = tensor(tokens, heads, width);
const k = tensor(tokens, groups, width);
const blocking = { length: 16, stride: 16, sharing: 4 };
const sequences = Sequences.uniform(1, tokens, tokens, blocking);
const scale = 1 / Math.sqrt(width);
const each = 4 * heads * width;
const pairs = (tokens * (tokens + 1)) / 2;
row(`attention, causal, ${tokens} tokens, ${heads} heads`, pairs * each, () =>
  scope.run(operators.attention, { q, k, v: k }, { sequences, scale }),
);
const window = 128;
row(`attention, window ${window}`, (tokens - window / 2) * window * each, () =>
  scope.run(operators.attention, { q, k, v: k }, { sequences, scale, window }),
);
const { y: blocks } = scope.run(
  operators.compress,
  { x: k },
  { sequences, ...blocking },
);
const cut = { sequences, scale, ...blocking };
const compressed = { q, k: blocks, v: blocks };
row('compressedAttention, blocks of 16', (pairs / 16) * each, () =>
  scope.run(operators.compressedAttention, compressed, cut),
);
const { lse } = scope.run(operators.compressedAttention, compressed, cut);
const choice = {
  ...cut,
  groups,
  blockSize: 16,
  count: 16,
  initial: 1,
  local: 2,
};
row('selectBlocks, every 4th query', (pairs / 16 / 4) * (each / 2), () =>
  scope.run(operators.selectBlocks, { q, k: blocks, lse }, choice),
);
const { indices } = scope.run(
  operators.selectBlocks,
  { q, k: blocks, lse },
  choice,
);
row('selectedAttention, 16 blocks of 16', tokens * 256 * each, () =>
  scope.run(
    operators.selectedAttention,
    { q, k, v: k, indices },
    { sequences, scale, blockSize: 16, sharing: 4 },
  ),
);
scope.free();
await backend.destroy();
