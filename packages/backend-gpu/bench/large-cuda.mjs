/**
 * That operators on a CUDA device are right where tensors have more than 2^31
 * elements and sequences are long. Through the built packages, on one card:
 *
 *   node packages/backend-gpu/bench/large-cuda.mjs
 *     --elements 2148532224   of a tensor
 *     --tokens 131072         of a sequence
 *
 * Operators of rows run on the large tensors, and again on the first rows, those
 * about element 2^31 and the last ones alone: the same bits, but of products,
 * for which cuBLASLt may take another algorithm. Attention runs in bf16 and in
 * f32, which takes other kernels. The first difference ends it with status 1.
 */
import { parseArgs } from 'node:util';
import { openCuda } from '@asa/backend-gpu/cuda';
import { operators, Random, Scope, Sequences } from '@asa/core';
import { ALLOWED, inBoth, ratio, widener } from './in-both.mjs';

const { values: flags } = parseArgs({
  options: {
    elements: { type: 'string', default: String(2 ** 31 + 2 ** 20) },
    tokens: { type: 'string', default: '131072' },
  },
});
const elements = Number(flags.elements);
const tokens = Number(flags.tokens);
const dtype = 'bf16';
/** Rows that are compared at a time. */
const SLICE = 40;
const backend = await openCuda();
const SEEDS = 1_000_003;
const seed = seedOf((x) => x);
/** For what is never negative. */
const positive = seedOf(Math.abs);
/** Where the next tensor begins in a seed. */
let offset = 0;
const started = performance.now();

/** Random numbers of standard deviation 1, made once. */
function seedOf(change) {
  const random = Random.fromSeed(1);
  const values = Float32Array.from({ length: SEEDS }, () =>
    change((random.uniform() - 0.5) * Math.sqrt(12)),
  );
  return new Scope(backend).tensor(values, [SEEDS], 'f32');
}

/** The seed again and again; its length is prime, so that no two rows agree. */
function filled(scope, shape, type = dtype, source = seed) {
  const x = scope.empty(shape, type);
  const known =
    type === 'f32'
      ? source
      : scope.run(operators.cast, { x: source }, { dtype: type }).y;
  offset += 7919;
  let from = offset % known.size;
  for (let at = 0; at < x.size; from = 0) {
    const length = Math.min(known.size - from, x.size - at);
    backend.copy(known.storage, from, x.storage, at, length);
    at += length;
  }
  return x;
}

/** Some rows of the first axis, alone. */
function rowsOf(scope, x, first, count) {
  const width = x.size / x.shape[0];
  const part = scope.empty([count, ...x.shape.slice(1)], x.dtype);
  backend.copy(x.storage, first * width, part.storage, 0, count * width);
  return part;
}

const floats = (scope, x) => scope.read(widener(scope)(x));

function fail(label, error) {
  console.error(`${label}: differs by ${error}`);
  process.exit(1);
}

const passed = (label) =>
  console.log(`${label}: ${Math.round(performance.now() - started)} ms`);

/**
 * An operator of rows on large tensors and on some rows alone. `whole` are
 * inputs that every row needs; `results` those outputs that are of rows.
 */
async function byRows(
  operator,
  inputs,
  { whole = {}, attributes = {}, results, exact = true } = {},
) {
  const scope = new Scope(backend);
  const run = (given) =>
    scope.run(operators[operator], { ...given, ...whole }, attributes);
  const large = run(inputs);
  const names = results ?? Object.keys(large);
  const count = large[names[0]].shape[0];
  const width = Math.max(
    ...[...Object.values(inputs), ...names.map((name) => large[name])].map(
      (x) => x.size / x.shape[0],
    ),
  );
  const middle = Math.floor(2 ** 31 / width) - SLICE / 2;
  const starts = [0, middle, count - SLICE].filter(
    (at) => at >= 0 && at + SLICE <= count,
  );
  for (const first of starts) {
    const part = new Scope(backend);
    const some = Object.fromEntries(
      Object.entries(inputs).map(([name, x]) => [
        name,
        rowsOf(part, x, first, SLICE),
      ]),
    );
    const alone = run(some);
    for (const name of names) {
      const got = await floats(part, rowsOf(part, large[name], first, SLICE));
      const error = ratio(got, await floats(part, alone[name]));
      // NaN is no pass.
      if (!(error <= (exact ? 0 : ALLOWED))) {
        fail(`${operator} ${name}, rows from ${first}`, error);
      }
    }
    part.free();
  }
  scope.free();
  passed(operator);
}

async function operatorsOfRows() {
  const width = 1024;
  const rows = Math.floor(elements / width);
  const scope = new Scope(backend);
  const large = (shape = [rows, width]) => filled(scope, shape);
  const indices = (count, below) =>
    scope.indices(
      Int32Array.from({ length: count }, (_, i) => (i * 7919) % below),
    );
  const [a, b, c] = [large(), large(), large()];
  await byRows('add', { a, b });
  await byRows('cast', { x: a }, { attributes: { dtype: 'f32' } });
  await byRows('swiglu', { gate: a, up: b });
  await byRows('swigluBackward', { gate: a, up: b, dy: c });
  const weight = filled(scope, [width]);
  const norm = { whole: { weight }, attributes: { eps: 1e-5 } };
  await byRows('rmsNorm', { x: a }, norm);
  await byRows(
    'rmsNormBackward',
    { x: a, dy: b },
    { ...norm, results: ['dx'] },
  );

  const heads = [rows, 16, 64];
  const [x, y] = [a.reshape(heads), b.reshape(heads)];
  await byRows(
    'rope',
    { x, positions: indices(rows, 2 ** 20) },
    {
      whole: { frequencies: filled(scope, [32], 'f32') },
      attributes: { style: 'half' },
    },
  );
  const gates = { gates: large([rows, 16, 2]), compressed: x, selected: y };
  await byRows('gatedSum', gates);
  await byRows('gatedSumBackward', { ...gates, dY: c.reshape(heads) });
  await byRows(
    'gatherRows',
    { rows: indices(rows, rows) },
    { whole: { x: a } },
  );

  // Logits of a vocabulary, and products of which either side is large.
  const vocabulary = 32_000;
  const lines = Math.floor(a.size / vocabulary);
  const logits = large([lines, vocabulary]);
  const targets = indices(lines, vocabulary);
  await byRows('crossEntropy', { logits, targets });
  const { lse } = scope.run(operators.crossEntropy, { logits, targets }, {});
  await byRows('crossEntropyBackward', {
    ...{ logits, targets, lse },
    dLoss: filled(scope, [lines], 'f32'),
  });
  const square = filled(scope, [width, 64]);
  const narrow = filled(scope, [rows, 64]);
  await byRows('matmul', { a }, { whole: { b: square }, exact: false });
  await byRows(
    'matmul',
    { a: narrow },
    {
      whole: { b: square },
      attributes: { transposeB: true },
      exact: false,
    },
  );
  scope.free();
}

/** AdamW writes in place: two copies of the last elements must stay alike. */
async function optimizer() {
  const scope = new Scope(backend);
  const count = elements;
  const names = ['parameter', 'gradient', 'm', 'v'];
  const large = names.map((name) =>
    filled(scope, [count], 'f32', name === 'v' ? positive : seed),
  );
  const last = large.map((x) => rowsOf(scope, x, count - 1000, 1000));
  const squaredNorm = scope.tensor(Float32Array.of(4), [1], 'f32');
  const attributes = {
    ...{ learningRate: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8 },
    ...{ weightDecay: 0.1, step: 3, clip: 1 },
  };
  for (const tensors of [large, last]) {
    const [parameter, gradient, m, v] = tensors;
    const inputs = { parameter, gradient, m, v, squaredNorm };
    scope.run(operators.adamw, inputs, attributes);
  }
  for (const [i, name] of names.entries()) {
    const got = await backend.read(
      rowsOf(scope, large[i], count - 1000, 1000).storage,
    );
    const want = await backend.read(last[i].storage);
    const isSame = got.every((x, n) => Object.is(x, want[n]));
    if (!isSame) fail(`adamw ${name}`, ratio(got, want));
  }
  scope.free();
  passed('adamw');
}

/** Fails where an operator differs from itself in f32. */
async function compare(label, operator, inputs, attributes) {
  const scope = new Scope(backend);
  const { errors } = await inBoth(scope, operator, inputs, attributes);
  for (const [name, error] of errors) {
    if (!(error <= ALLOWED)) fail(`${label}: ${operator} ${name}`, error);
  }
  scope.free();
  passed(`${label}, ${operator}`);
}

/** Two heads of one group; latent where there are rotary columns. */
async function longSequence(label, { width, rope = 0, sharing }) {
  const scope = new Scope(backend);
  const [heads, block, count] = [2, 16, 64];
  const pool = { length: block, stride: block };
  const sequences = Sequences.uniform(1, tokens, tokens, { ...pool, sharing });
  const q = filled(scope, [tokens, heads, width]);
  const k = filled(scope, [tokens, 1, width]);
  const v = rope ? k : filled(scope, [tokens, 1, width]);
  const rotary = (rows) =>
    rope && {
      qRope: filled(scope, [tokens, heads, rope]),
      kRope: filled(scope, [rows, 1, rope]),
    };
  const both = async (name, operator, inputs, attributes) => {
    const full = `${label}, ${name}`;
    await compare(full, operator, inputs, attributes);
    const { o, lse } = scope.run(operators[operator], inputs, attributes);
    const dO = filled(scope, o.shape);
    const all = { ...inputs, o, lse, dO };
    await compare(full, `${operator}Backward`, all, attributes);
    return lse;
  };
  const scale = 1 / Math.sqrt(width + rope);
  const plain = { sequences, scale };
  const past = { q, k, v, ...rotary(tokens) };
  await both('window', 'attention', past, { ...plain, window: 512 });
  if (!rope) await both('full', 'attention', past, plain);
  const cut = (x) =>
    scope.run(operators.compress, { x }, { sequences, ...pool }).y;
  const c = cut(k);
  const blocks = c.shape[0];
  const pooled = { q, k: c, v: rope ? c : cut(v), ...rotary(blocks) };
  const seen = { ...plain, ...pool };
  const lse = await both('compressed', 'compressedAttention', pooled, seen);
  const { v: _, ...ranked } = { ...pooled, lse };
  const choice = { ...seen, groups: 1, blockSize: block, sharing };
  const choices = { ...choice, count, initial: 1, local: 2 };
  const { indices } = scope.run(operators.selectBlocks, ranked, choices);
  const wide = widener(scope);
  const widened = Object.fromEntries(
    Object.entries(ranked).map(([name, x]) => [name, wide(x)]),
  );
  const inFloats = scope.run(operators.selectBlocks, widened, choices).indices;
  const want = await backend.read(inFloats.storage);
  const got = await backend.read(indices.storage);
  const others = got.filter((x, n) => x !== want[n]).length / got.length;
  if (others > ALLOWED) fail(`${label}, selectBlocks`, others);
  passed(`${label}, selectBlocks`);
  const lists = { ...plain, blockSize: block, sharing };
  await both('selected', 'selectedAttention', { ...past, indices }, lists);
  sequences.free();
  scope.free();
}

/** The last tokens of a window are those of a sequence that begins before it. */
async function manyHeads() {
  const scope = new Scope(backend);
  const [heads, width, window] = [64, 128, 512];
  const rows = Math.floor(elements / (heads * width));
  const kept = Math.min(1024, rows >> 1);
  const q = filled(scope, [rows, heads, width]);
  const k = filled(scope, [rows, 1, width]);
  const v = filled(scope, [rows, 1, width]);
  const dO = filled(scope, [rows, heads, width]);
  const results = [];
  for (const count of [rows, kept + window]) {
    const some = count > rows ? rows : count;
    const sequences = Sequences.uniform(1, some, some, {});
    const [first, last] = [rows - some, some];
    const inputs = Object.fromEntries(
      Object.entries({ q, k, v }).map(([name, x]) => [
        name,
        some === rows ? x : rowsOf(scope, x, first, last),
      ]),
    );
    const attributes = { sequences, scale: 1 / Math.sqrt(width), window };
    const { o, lse } = scope.run(operators.attention, inputs, attributes);
    const { dQ, dK, dV } = scope.run(
      operators.attentionBackward,
      {
        ...{ ...inputs, o, lse },
        dO: some === rows ? dO : rowsOf(scope, dO, first, last),
      },
      attributes,
    );
    const ends = {};
    for (const [name, x] of Object.entries({ o, lse, dQ, dK, dV })) {
      const end = rowsOf(scope, x, some - kept, kept);
      ends[name] = await floats(scope, end);
    }
    results.push(ends);
    sequences.free();
  }
  const [got, want] = results;
  for (const name in want) {
    const error = ratio(got[name], want[name]);
    if (!(error <= ALLOWED)) fail(`window of 64 heads, ${name}`, error);
  }
  scope.free();
  passed('window of 64 heads');
}

console.log(`${backend.description}, ${elements} elements, ${tokens} tokens`);
await operatorsOfRows();
await optimizer();
await longSequence('plain', { width: 64, sharing: 1 });
await longSequence('latent', { width: 56, rope: 32, sharing: 4 });
await manyHeads();
await backend.destroy();
