/**
 * Times the operators of sparse attention on a CUDA device through the built
 * packages, and prints a table: milliseconds, and TFLOP/s of matrix products
 * (two a multiplication and addition; only keys that are seen count).
 *
 *   node packages/backend-gpu/bench/attention-cuda.mjs [nsa] [asa] [preset] [decode]
 *     --context 8192,16384,32768   tokens
 *     --depth 65536     keys of a decode step
 *     --batch 1,64      sequences of a decode step
 *     --dtype bf16
 *     --full 16384      longest context of full attention
 *     --seconds 0.1     measuring time an operator
 *
 * nsa: 64 heads, 4 groups, width 128, blocks 32/16/64, 16 selected, window 512;
 * its operators one by one, then all that lies between the projections in one go
 * ("whole"), with pooling, gates and the sums of gradients.
 * asa: the global layer in latent form, 64 heads, 4 groups, latent 128, rotary
 * 64, blocks of 16, 64 selected, lists of every query and of every 4th; then a
 * local layer of the same widths, every head with its keys, window 512.
 * preset: the global layer of 340m-asa, four sequences, 16 heads, latent 56,
 * rotary 32, lists of every 4th query.
 *
 * decode: one query a sequence in both shapes, the whole past in place of a
 * window too, and GB/s of the keys and values that have to be read, beside
 * those of a copy. Steps are recorded, as the engine's are. What is small stays
 * in the L2 cache between them.
 *
 * Before it times anything it compares every operator, on CHECKED tokens, with
 * the same one in f32, which takes other kernels; NSA's selected attention on
 * LONG tokens too, where it goes by blocks.
 *
 * A time is that of calls enqueued back to back until the device is idle,
 * divided by their number: the median of the rounds, after two calls that do
 * not count.
 */
import { parseArgs } from 'node:util';
import { openCuda } from '@asa/backend-gpu/cuda';
import { operators, Random, Scope, Sequences, Tape } from '@asa/core';
import { ALLOWED, inBoth } from './in-both.mjs';

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    context: { type: 'string', default: '8192,16384,32768' },
    depth: { type: 'string', default: '65536' },
    batch: { type: 'string', default: '1,64' },
    dtype: { type: 'string', default: 'bf16' },
    full: { type: 'string', default: '16384' },
    seconds: { type: 'string', default: '0.1' },
  },
});
const { dtype } = flags;
const heads = 64;
const groups = 4;
const window = 512;
/** ASA's global layers: sequences, heads, columns, and queries a list. */
const globals = {
  asa: { batch: 1, heads, width: 128, rope: 64, sharings: [1, 4] },
  preset: { batch: 4, heads: 16, width: 56, rope: 32, sharings: [4] },
};
const backend = await openCuda();
const seed = seedOf(1_000_003);

/** Random numbers of standard deviation 1, made once. */
function seedOf(count) {
  const random = Random.fromSeed(1);
  const values = Float32Array.from(
    { length: count },
    () => (random.uniform() - 0.5) * Math.sqrt(12),
  );
  const scope = new Scope(backend);
  const x = scope.tensor(values, [count], 'f32');
  return dtype === 'f32' ? x : scope.run(operators.cast, { x }, { dtype }).y;
}

/** The seed again and again; its length is prime, so that no two rows agree. */
function filled(scope, ...shape) {
  const x = scope.empty(shape, dtype);
  for (let at = 0; at < x.size; at += seed.size) {
    const length = Math.min(seed.size, x.size - at);
    backend.copy(seed.storage, 0, x.storage, at, length);
  }
  return x;
}

/** Runs an operator and drops what it gives. */
function perform(operator, inputs, attributes) {
  const scope = new Scope(backend);
  scope.run(operators[operator], inputs, attributes);
  scope.free();
}

/** Median milliseconds of an operator. */
const time = (...operation) => median(() => perform(...operation));

/** The same where it is recorded. */
async function timeRecorded(...operation) {
  const calls = 20;
  const recording = backend.record(() => {
    for (let i = 0; i < calls; i++) perform(...operation);
  });
  const ms = await median(() => recording.replay());
  recording.free();
  return ms / calls;
}

async function median(call) {
  const round = async (calls) => {
    const start = performance.now();
    for (let i = 0; i < calls; i++) call();
    await backend.synchronize();
    return (performance.now() - start) / calls;
  };
  await round(1);
  const once = await round(1);
  // Waiting costs little against so many calls.
  const calls = Math.max(1, Math.round(20 / once));
  const rounds = [];
  const end = performance.now() + 1000 * Number(flags.seconds);
  do rounds.push(await round(calls));
  while (performance.now() < end || rounds.length < 3);
  return rounds.sort((a, b) => a - b)[rounds.length >> 1];
}

/** An odd number of tokens, with an end in every tile. */
const CHECKED = 1111;
const LONG = 16_447;
const isChecked = (tokens) => tokens === CHECKED || tokens === LONG;
/** Fails where an operator differs from itself in f32. */
async function compare(label, operator, inputs, attributes) {
  const scope = new Scope(backend);
  const { errors } = await inBoth(scope, operator, inputs, attributes);
  for (const [name, error] of errors) {
    if (error <= ALLOWED) continue;
    throw new Error(`${label}: ${operator} ${name} is off by ${error}`);
  }
  scope.free();
}

const rows = [];
function report(layer, tokens, name, ms, operations) {
  const tflops = operations ? (operations / ms / 1e9).toFixed(0) : '';
  rows.push([layer, tokens, name, ms.toFixed(3), tflops]);
  console.log(`| ${rows.at(-1).join(' | ')} |`);
}

/** Sum over queries of the keys that each sees. */
function pairs(tokens, seenBy) {
  let sum = 0;
  for (let t = 0; t < tokens; t++) sum += seenBy(t);
  return sum;
}

/** Times one layer's operators; `total` gets what the layer needs. */
function layer(name, tokens, { heads, batch } = globals.asa) {
  const total = { forward: 0, backward: 0 };
  const run = async (label, operator, inputs, attributes, seen, counts) => {
    const scope = new Scope(backend);
    const widths =
      inputs.q.shape[2] + (inputs.qRope?.shape[2] ?? 0) + inputs.v.shape[2];
    const operations = 2 * batch * pairs(tokens, seen) * heads * widths;
    const results = scope.run(operators[operator], inputs, attributes);
    const all = {
      ...inputs,
      ...results,
      dO: filled(scope, ...results.o.shape),
    };
    const { lse } = results;
    const done = { lse, free: () => scope.free() };
    if (isChecked(tokens)) {
      if (tokens === LONG && label !== 'selected') return done;
      await compare(`${name}, ${label}`, operator, inputs, attributes);
      await compare(
        `${name}, ${label}`,
        `${operator}Backward`,
        all,
        attributes,
      );
      return done;
    }
    const forward = await time(operator, inputs, attributes);
    report(name, tokens, label, forward, operations);
    const backward = await time(`${operator}Backward`, all, attributes);
    report(name, tokens, `${label}, backward`, backward, 2.5 * operations);
    if (counts) {
      total.forward += forward;
      total.backward += backward;
    }
    return done;
  };
  const ranking = async (inputs, attributes, width, seen) => {
    if (tokens === LONG) return;
    if (tokens === CHECKED) {
      const { count: _, initial: __, local: ___, ...rest } = attributes;
      await compare(`${name}, ranking`, 'blockImportance', inputs, rest);
      return;
    }
    const ms = await time('selectBlocks', inputs, attributes);
    const leaders = 1 / attributes.sharing;
    const scores = batch * leaders * pairs(tokens, seen) * heads;
    const operations = 2 * scores * width;
    report(name, tokens, 'selectBlocks', ms, operations);
    total.forward += ms;
  };
  const finish = (label = 'together') => {
    if (isChecked(tokens)) return;
    report(name, tokens, `${label}, forward`, total.forward);
    report(name, tokens, `${label}, backward`, total.backward);
  };
  return { run, ranking, finish };
}

const visible = (length, stride) => (t) =>
  Math.max(0, Math.floor((t + 1 - length) / stride) + 1);
const chosen = (blockSize, count) => (t) =>
  Math.min(t + 1, (count - 1) * blockSize + (t % blockSize) + 1);

async function nsa(tokens) {
  const scope = new Scope(backend);
  const [length, stride, blockSize, count, sharing] = [32, 16, 64, 16, 1];
  const blocking = { length, stride, sharing };
  const sequences = Sequences.uniform(1, tokens, tokens, blocking);
  const q = filled(scope, tokens, heads, 128);
  const k = filled(scope, tokens, groups, 128);
  const v = filled(scope, tokens, groups, 128);
  const pool = { sequences, length, stride };
  const cut = (x) => scope.run(operators.compress, { x }, pool).y;
  const pooled = { q, k: cut(k), v: cut(v) };
  const scale = 1 / Math.sqrt(128);
  const { run, ranking, finish } = layer('nsa', tokens);
  const plain = { sequences, scale };
  if (tokens <= Number(flags.full) && tokens !== LONG) {
    const full = { q, k, v };
    (await run('full', 'attention', full, plain, (t) => t + 1, false)).free();
  }
  const near = { ...plain, window };
  const seen = (t) => Math.min(t + 1, window);
  (await run('window', 'attention', { q, k, v }, near, seen, true)).free();
  const compressed = await run(
    'compressed',
    'compressedAttention',
    pooled,
    { ...pool, scale },
    visible(length, stride),
    true,
  );
  const { v: _, ...ranked } = { ...pooled, lse: compressed.lse };
  const choice = { groups, blockSize, sharing, count, initial: 1, local: 2 };
  const attributes = { ...pool, scale, ...choice };
  await ranking(ranked, attributes, 128, visible(length, stride));
  const { indices } = scope.run(operators.selectBlocks, ranked, attributes);
  const lists = { ...plain, blockSize, sharing };
  const selected = await run(
    'selected',
    'selectedAttention',
    { q, k, v, indices },
    lists,
    chosen(blockSize, count),
    true,
  );
  finish();
  if (!isChecked(tokens)) {
    const gates = filled(scope, tokens, heads, 3);
    const forward = (scope) => {
      const cut = (x) => scope.run(operators.compress, { x }, pool).y;
      const pooled = { q, k: cut(k), v: cut(v) };
      const seen = { ...pool, scale };
      const c = scope.run(operators.compressedAttention, pooled, seen);
      const ranked = { q, k: pooled.k, lse: c.lse };
      const { indices } = scope.run(operators.selectBlocks, ranked, attributes);
      const chosen = { q, k, v, indices };
      const branches = {
        compressed: c.o,
        selected: scope.run(operators.selectedAttention, chosen, lists).o,
        window: scope.run(operators.attention, { q, k, v }, near).o,
      };
      return scope.run(operators.gatedSum, { gates, ...branches }, {}).y;
    };
    await whole(tokens, forward, [q, k, v, gates]);
  }
  for (const x of [compressed, selected, sequences, scope]) x.free();
}

/**
 * All that lies between the projections in one go, blocks and gates too, and
 * all gradients of `sources`, as a tape has them.
 */
async function whole(tokens, forward, sources) {
  const once = () => {
    const scope = new Scope(backend);
    forward(scope);
    scope.free();
  };
  report('nsa', tokens, 'whole, forward', await median(once));
  const tape = new Tape();
  tape.watch(...sources);
  const scope = new Scope(backend, tape);
  const y = forward(scope);
  const seed = filled(scope, ...y.shape);
  const back = () => {
    for (const x of tape.backward(y, seed, sources).values()) x.free();
  };
  report('nsa', tokens, 'whole, backward', await median(back));
  scope.free();
}

async function asa(tokens, own = 'asa') {
  const { batch, heads, width, rope, sharings } = globals[own];
  for (const sharing of sharings) {
    const scope = new Scope(backend);
    const [block, count] = [16, 64];
    const blocking = { length: block, stride: block, sharing };
    const sequences = Sequences.uniform(batch, tokens, tokens, blocking);
    const all = batch * tokens;
    const q = filled(scope, all, heads, width);
    const qRope = filled(scope, all, heads, rope);
    const k = filled(scope, all, groups, width);
    const kRope = filled(scope, all, 1, rope);
    const pool = { sequences, length: block, stride: block };
    const cut = (x) => scope.run(operators.compress, { x }, pool).y;
    const c = cut(k);
    const pooled = { q, k: c, v: c, qRope, kRope: cut(kRope) };
    const scale = 1 / Math.sqrt(width + rope);
    const name = `${own}, r = ${sharing}`;
    const { run, ranking, finish } = layer(name, tokens, {
      heads,
      batch,
    });
    const compressed = await run(
      'compressed',
      'compressedAttention',
      pooled,
      { ...pool, scale },
      visible(block, block),
      true,
    );
    const { v: _, ...ranked } = { ...pooled, lse: compressed.lse };
    const attributes = {
      ...{ ...pool, scale, groups, blockSize: block, sharing },
      ...{ count, initial: 1, local: 2 },
    };
    await ranking(ranked, attributes, width + rope, visible(block, block));
    const { indices } = scope.run(operators.selectBlocks, ranked, attributes);
    const selected = await run(
      'selected',
      'selectedAttention',
      { q, k, v: k, qRope, kRope, indices },
      { sequences, scale, blockSize: block, sharing },
      chosen(block, count),
      true,
    );
    finish();
    for (const x of [compressed, selected]) x.free();
    if (own === 'asa') await beside();
    for (const x of [sequences, scope]) x.free();

    // The local layer between two of them: keys and values of every head.
    async function beside() {
      const each = () => filled(scope, tokens, heads, 128);
      const local = await run(
        'local, window',
        'attention',
        { q, k: each(), v: each(), qRope, kRope },
        { sequences, scale, window },
        (t) => Math.min(t + 1, window),
        true,
      );
      finish('with a local layer');
      local.free();
    }
  }
}

/** The two shapes of a decode step: [length, stride, block, count]. */
const steps = {
  nsa: { latent: false, rope: 0, blocks: [32, 16, 64, 16] },
  asa: { latent: true, rope: 64, blocks: [16, 16, 16, 64] },
};

/** One query of each of `batch` sequences of so many tokens. */
async function decode(name, tokens, batch) {
  const { latent, rope, blocks } = steps[name];
  const [length, stride, blockSize, count] = blocks;
  const sharing = 1;
  const scope = new Scope(backend);
  const pool = { length, stride };
  const sequences = Sequences.uniform(batch, 1, tokens, { ...pool, sharing });
  // Of no recording that is freed.
  sequences.on(backend);
  const scale = 1 / Math.sqrt(128 + rope);
  const plain = { sequences, scale };
  const blockRows = sequences.blockRows(pool);
  const query = {
    q: filled(scope, batch, heads, 128),
    ...(rope && { qRope: filled(scope, batch, heads, rope) }),
  };
  const keys = (rows) => {
    const k = filled(scope, rows, groups, 128);
    const v = latent ? k : filled(scope, rows, groups, 128);
    return { k, v, ...(rope && { kRope: filled(scope, rows, 1, rope) }) };
  };
  const past = { ...query, ...keys(batch * tokens) };
  const pooled = { ...query, ...keys(blockRows) };
  const columns = groups * (latent ? 128 : 256) + rope;
  const run = async (label, operator, inputs, attributes, elements) => {
    if (tokens === CHECKED) {
      const { count: _, initial: __, local: ___, ...rest } = attributes;
      const compared =
        operator === 'selectBlocks' ? 'blockImportance' : operator;
      await compare(`decode, ${name}`, compared, inputs, rest);
      return;
    }
    const ms = await timeRecorded(operator, inputs, attributes);
    reportBytes(name, tokens, batch, label, ms, elements);
  };
  await run('full', 'attention', past, plain, batch * tokens * columns);
  const near = { ...plain, window };
  await run('window', 'attention', past, near, batch * window * columns);
  const seen = { ...plain, ...pool };
  const all = blockRows * columns;
  await run('compressed', 'compressedAttention', pooled, seen, all);
  const { lse } = scope.run(operators.compressedAttention, pooled, seen);
  const { v: _, ...ranked } = { ...pooled, lse };
  const choice = {
    ...{ ...seen, groups, blockSize, sharing },
    ...{ count, initial: 1, local: 2 },
  };
  const keyColumns = groups * 128 + rope;
  const scored = blockRows * keyColumns;
  await run('ranking', 'selectBlocks', ranked, choice, scored);
  const { indices } = scope.run(operators.selectBlocks, ranked, choice);
  const lists = { ...plain, blockSize, sharing };
  // Groups choose apart: each reads its own rotary columns.
  const listed = batch * count * blockSize * (columns + (groups - 1) * rope);
  const chosen = { ...past, indices };
  await run('selected', 'selectedAttention', chosen, lists, listed);
  sequences.free();
  scope.free();
}

function reportBytes(name, tokens, batch, label, ms, elements) {
  const rate = (elements * (dtype === 'f32' ? 4 : 2)) / ms / 1e6;
  const cells = [name, tokens, batch, label, ms.toFixed(4), rate.toFixed(0)];
  console.log(`| ${cells.join(' | ')} |`);
}

/** Bytes that are read and written, as other figures count what is read. */
async function copyBandwidth() {
  const scope = new Scope(backend);
  const [x, y] = [filled(scope, 2 ** 28), scope.empty([2 ** 28], dtype)];
  const ms = await median(() =>
    backend.copy(x.storage, 0, y.storage, 0, x.size),
  );
  reportBytes('', '', '', 'copy', ms, 2 * x.size);
  scope.free();
}

async function decodeSteps() {
  const batches = flags.batch.split(',').map(Number);
  console.log('\n| layer | keys | batch | operator | ms | GB/s |');
  console.log('|---|---|---|---|---|---|');
  for (const tokens of [CHECKED, ...flags.depth.split(',').map(Number)]) {
    for (const name of Object.keys(steps)) {
      for (const batch of batches) await decode(name, tokens, batch);
    }
  }
  await copyBandwidth();
}

const cases = { nsa, asa, preset: (tokens) => asa(tokens, 'preset') };
const names = positionals.length > 0 ? positionals : ['nsa', 'asa', 'decode'];
const layers = names.filter((name) => name in cases);
console.log(`${backend.description}, ${dtype}`);
if (layers.length > 0) {
  console.log('\n| layer | tokens | operator | ms | TFLOP/s |');
  console.log('|---|---|---|---|---|');
  if (names.includes('nsa')) await nsa(LONG);
  for (const tokens of [CHECKED, ...flags.context.split(',').map(Number)]) {
    for (const name of layers) await cases[name](tokens);
  }
}
if (names.includes('decode')) await decodeSteps();
await backend.destroy();
