/**
 * Times operators on the GPU through the built package, and prints JSON.
 *
 *   node packages/backend-gpu/bench/operators.mjs [matmul] [attention] ...
 *     --context 8192,32768   tokens of the attention cases
 *     --dtype f32,f16        element types
 *     --products 16384x768x256:NT   [M, K] [K, N], T where stored transposed
 *     --seconds 0.5          measuring time a case
 *     --dawn disable_robustness   Dawn's features besides our own
 *     --matrices plain, --attention plain   what multiplies f16, forced
 *     --profile HEADSxGROUPSxLATENTxROPE   widths of the global layer
 *
 * A time is that of many dispatches up to `onSubmittedWorkDone`, divided by
 * their number: median of the rounds.
 */
import { parseArgs } from 'node:util';
import { openWebGpu } from '@asa/backend-gpu';
import { operators, Random, Scope, Sequences } from '@asa/core';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    context: { type: 'string', default: '2048,8192' },
    dtype: { type: 'string', default: 'f32' },
    seconds: { type: 'string', default: '0.5' },
    profile: { type: 'string', default: '64x4x128x64' },
    sizes: { type: 'string', default: '1024,2048,4096' },
    products: { type: 'string' },
    sharing: { type: 'string', default: '1,4' },
    count: { type: 'string', default: '64' },
    window: { type: 'string', default: '512' },
    batch: { type: 'string', default: '1' },
    parts: {
      type: 'string',
      default: 'full,window,expanded,global,gates,backward',
    },
    longest: { type: 'string', default: '32768' },
    dawn: { type: 'string' },
    matrices: { type: 'string' },
    attention: { type: 'string' },
  },
});
const wanted = positionals.length > 0 ? positionals : ['matmul', 'attention'];
const list = (text, comma = ',') => text.split(comma).map(Number);
const { matrices, attention: attentionBy } = flags;
const backend = await openWebGpu({
  gpu: await specialGpu(),
  ...(matrices && { matrices }),
  ...(attentionBy && { attention: attentionBy }),
});
const results = [];
const random = Random.fromSeed(1);

/** Dawn with further features; nothing without them. */
async function specialGpu() {
  if (!flags.dawn) return undefined;
  const { create, globals } = await import('webgpu');
  Object.assign(globalThis, globals);
  const features = `allow_unsafe_apis,vulkan_enable_f16_on_nvidia,${flags.dawn}`;
  globalThis.benchGpu = create([`enable-dawn-features=${features}`]);
  return globalThis.benchGpu;
}

function filled(scope, shape, dtype) {
  const size = shape.reduce((n, d) => n * d, 1);
  const x = scope.empty(shape, 'f32');
  const values = new Float32Array(size);
  // A short period: making random numbers must not take longer than the GPU.
  const period = Math.min(size, 65_521);
  for (let i = 0; i < period; i++) values[i] = random.uniform() - 0.5;
  for (let i = period; i < size; i += period) {
    values.copyWithin(i, 0, Math.min(period, size - i));
  }
  backend.write(x.storage, values);
  if (dtype === 'f32') return x;
  const { y } = scope.run(operators.cast, { x }, { dtype });
  x.free();
  return y;
}

/** Median milliseconds of a call of `body`, warm. */
async function time(body) {
  const rounds = [];
  let calls = 1;
  await body();
  await backend.synchronize();
  const until = performance.now() + 1000 * Number(flags.seconds);
  do {
    const start = performance.now();
    for (let i = 0; i < calls; i++) body();
    await backend.synchronize();
    const elapsed = performance.now() - start;
    rounds.push(elapsed / calls);
    if (elapsed < 50) calls *= 2;
  } while (performance.now() < until || rounds.length < 3);
  return rounds.slice(1).sort((a, b) => a - b)[(rounds.length - 1) >> 1];
}

function report(entry) {
  results.push(entry);
  process.stderr.write(`${JSON.stringify(entry)}\n`);
}

/** Runs an operator again and again; outputs go back to the pool. */
function repeat(operator, inputs, attributes) {
  return () => {
    const scope = new Scope(backend);
    scope.run(operator, inputs, attributes);
    scope.free();
  };
}

async function matmul(dtype) {
  const squares = list(flags.sizes).flatMap((n) =>
    ['NN', 'NT', 'TN'].map((form) => `${n}x${n}x${n}:${form}`),
  );
  for (const product of flags.products?.split(',') ?? squares) {
    const [extents, form] = product.split(':');
    const [m, n, k] = extents.split('x').map(Number);
    const [transposeA, transposeB] = [form[0] === 'T', form[1] === 'T'];
    const scope = new Scope(backend);
    const a = filled(scope, transposeA ? [k, m] : [m, k], dtype);
    const b = filled(scope, transposeB ? [n, k] : [k, n], dtype);
    const attributes = { transposeA, transposeB };
    const ms = await time(repeat(operators.matmul, { a, b }, attributes));
    const tflops = (2 * m * n * k) / ms / 1e9;
    report({ operator: 'matmul', dtype, shape: [m, n, k], form, ms, tflops });
    scope.free();
  }
}

/** One row of a against weights: what decoding waits for. */
async function decode(dtype) {
  for (const n of list(flags.sizes)) {
    const scope = new Scope(backend);
    const a = filled(scope, [1, n], dtype);
    const b = filled(scope, [n, n], dtype);
    const ms = await time(
      repeat(operators.matmul, { a, b }, { transposeB: true }),
    );
    const bytes = n * n * (dtype === 'f16' ? 2 : 4);
    report({
      operator: 'matmul of one row',
      dtype,
      shape: [1, n, n],
      ms,
      gigabytesPerSecond: bytes / ms / 1e6,
    });
    scope.free();
  }
}

async function attention(dtype) {
  const [heads, groups, width, rotary] = list(flags.profile, 'x');
  const block = 16;
  const count = Number(flags.count);
  const window = Number(flags.window);
  const batch = Number(flags.batch);
  const parts = flags.parts.split(',');
  const has = (part) => parts.includes(part);
  for (const tokens of list(flags.context)) {
    const scope = new Scope(backend);
    const rows = tokens * batch;
    const q = filled(scope, [rows, heads, width], dtype);
    const k = filled(scope, [rows, groups, width], dtype);
    const qRope = filled(scope, [rows, heads, rotary], dtype);
    const kRope = filled(scope, [rows, 1, rotary], dtype);
    const scale = 1 / Math.sqrt(width + rotary);
    const measure = async (name, extra, operator, inputs, attributes) => {
      const ms = await time(repeat(operator, inputs, attributes));
      report({
        operator: name,
        dtype,
        tokens,
        batch,
        profile: flags.profile,
        ...extra,
        ms,
      });
    };
    const both = async (name, extra, operands, attributes) => {
      await measure(name, extra, operators[name], operands, attributes);
      const { o, lse } = scope.run(operators[name], operands, attributes);
      if (has('backward')) {
        const backward = `${name}Backward`;
        const all = { ...operands, o, lse, dO: o };
        await measure(backward, extra, operators[backward], all, attributes);
      }
      o.free();
      return lse;
    };
    const dense = { q, k, v: k, qRope, kRope };
    const plain = Sequences.uniform(batch, tokens);
    if (has('full') && tokens <= Number(flags.longest)) {
      await both('attention', {}, dense, { sequences: plain, scale });
    }
    if (has('window')) {
      const attributes = { sequences: plain, scale, window };
      await both('attention', { window }, dense, attributes);
    }
    if (has('expanded')) {
      // Keys and values of their own for each head, as layers train.
      const key = filled(scope, [rows, heads, width], dtype);
      const value = filled(scope, [rows, heads, width], dtype);
      const operands = { q, k: key, v: value, qRope, kRope };
      const attributes = { sequences: plain, scale, window };
      const extra = { window, expanded: true };
      await both('attention', extra, operands, attributes);
      key.free();
      value.free();
    }
    for (const sharing of has('global') ? list(flags.sharing) : []) {
      const blocking = { length: block, stride: block, sharing };
      const sequences = Sequences.uniform(batch, tokens, tokens, blocking);
      const pool = { sequences, length: block, stride: block };
      const cut = (x) => scope.run(operators.compress, { x }, pool).y;
      const c = cut(k);
      const pooled = { q, k: c, v: c, qRope, kRope: cut(kRope) };
      const lse = await both('compressedAttention', {}, pooled, {
        ...pool,
        scale,
      });
      const { v: _, ...ranked } = pooled;
      const ranking = {
        ...pool,
        scale,
        groups,
        blockSize: block,
        sharing,
        count,
        initial: 1,
        local: 2,
      };
      const choose = { ...ranked, lse };
      await measure(
        'selectBlocks',
        { sharing },
        operators.selectBlocks,
        choose,
        ranking,
      );
      const { indices } = scope.run(operators.selectBlocks, choose, ranking);
      const selected = await both(
        'selectedAttention',
        { sharing, count },
        { ...dense, indices },
        { sequences, scale, blockSize: block, sharing },
      );
      for (const x of [c, pooled.kRope, lse, indices, selected]) x.free();
      sequences.free();
    }
    if (has('gates')) {
      const gates = filled(scope, [rows, heads, 2], dtype);
      const branches = { gates, compressed: q, selected: q };
      await measure('gatedSum', {}, operators.gatedSum, branches, {});
    }
    plain.free();
    scope.free();
  }
}

const cases = { matmul, decode, attention };
for (const dtype of flags.dtype.split(',')) {
  for (const name of wanted) await cases[name](dtype);
}
console.log(
  JSON.stringify(
    {
      device: backend.description,
      matrixPath: backend.matrixPath,
      attentionPath: backend.attentionPath,
      results,
    },
    undefined,
    2,
  ),
);
await backend.destroy();
