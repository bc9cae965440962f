import {
  blockCount,
  leaderCount,
  type RankingAttributes,
  type RankingOperands,
  type Tensor,
} from '@asa/core';
import { f32, input, type Launch, output, u32 } from '../launch';
import { greatestCommonDivisor, shapeOf } from './attention-tile';
import { blocksOf } from './compressed-attention';
import {
  extent,
  type KernelContext,
  type Kernels,
  sequenceOf,
  unroll,
} from './context';

export const selectBlocksKernels = (
  context: KernelContext,
): Kernels<'blockImportance' | 'selectBlocks'> => ({
  blockImportance(inputs, { importance }, attributes) {
    context.clear(importance);
    rank(context, inputs, attributes, {
      name: 'blockImportance',
      constants: { NS: extent(importance, 2) },
      bindings: { importance: output(importance) },
      declarations: '',
      body: `if (!isHere) { return; }
for (var j = tid; j < own; j += ${THREADS}u) {
  importance[(row * G + groupIndex) * NS + j] = importanceOf(j, blocks, probabilityAt);
}`,
    });
  },

  /** F, then the best others by (P descending, j ascending); ascending */
  selectBlocks({ previous, ...inputs }, { indices }, attributes) {
    const { count, initial, local } = attributes;
    fillNone(context, indices);
    rank(context, inputs, attributes, {
      name: 'selectBlocks',
      constants: { COUNT: count, INITIAL: initial, LOCAL: local },
      bindings: {
        indices: output(indices),
        previous: previous && input(previous),
      },
      declarations: selection,
      body: `let to = (row * G + groupIndex) * COUNT;
if (!isHere) {
  ${
    previous
      ? `for (var n = tid; n < COUNT; n += ${THREADS}u) {
    indices[to + n] = previous[(group.z * G + groupIndex) * COUNT + n];
  }`
      : ''
  }
  return;
}
${choose}`,
    });
  },
});

const THREADS = 256;
/** Compressed keys of a tile. */
const KEYS = 64;
/** Heads of a tile. */
const HEADS = 16;
const DEPTH = 16;
/** Probabilities that workgroup memory holds; more lie in scratch memory. */
const MOST_IN_WORKGROUP = 4096;
/** Bytes of that scratch memory at a time. */
const SCRATCH_BYTES = 2 ** 26;

interface Consumer {
  readonly name: string;
  readonly constants: Readonly<Record<string, number>>;
  readonly bindings: Launch['bindings'];
  readonly declarations: string;
  /**
   * What becomes of a leader's importance, \`importanceOf(j, blocks,
   * probabilityAt)\` for j below \`own\`; \`isHere\` unless the leader stands
   * before its sequence's first query.
   */
  readonly body: string;
}

/**
 * One workgroup a leader and group: the probabilities of compressed attention,
 * summed over the group's heads, from the scores and the known LSE; then what
 * the consumer makes of them. They never leave the workgroup, up to 4096
 * blocks.
 */
function rank(
  context: KernelContext,
  inputs: RankingOperands,
  attributes: RankingAttributes,
  consumer: Consumer,
): void {
  const { sequences, groups, sharing, scale } = attributes;
  const { q, k, qRope, kRope, lse } = inputs;
  const { heads, keyHeads, width, ropeWidth } = shapeOf({ ...inputs, v: k });
  const leaders = Math.max(
    0,
    ...sequences.list.map(({ keyCount, queryCount }) =>
      leaderCount(keyCount - queryCount, queryCount, sharing),
    ),
  );
  const most = Math.max(1, blockCount(sequences.keyRoom, attributes));
  // Powers of two: a growing context compiles few kernels.
  const room = Math.max(KEYS, 2 ** Math.ceil(Math.log2(most)));
  const isLocal = room <= MOST_IN_WORKGROUP;
  const perLeader = 4 * room * groups * sequences.count;
  const step = isLocal
    ? leaders
    : Math.max(1, Math.floor(SCRATCH_BYTES / perLeader));
  for (let first = 0; first < leaders; first += step) {
    const count = Math.min(step, leaders - first);
    const scratch = isLocal
      ? undefined
      : context.scratch((count * perLeader) / 4, 'f32');
    context.run({
      kernel: consumer.name,
      constants: {
        H: heads,
        GK: keyHeads,
        G: groups,
        HT: greatestCommonDivisor(heads / groups, heads / keyHeads),
        D: width,
        DR: ropeWidth,
        LENGTH: attributes.length,
        STRIDE: attributes.stride,
        BLOCK: attributes.blockSize,
        SHARING: sharing,
        ROOM: room,
        ...consumer.constants,
      },
      bindings: {
        q: input(q),
        k: input(k),
        qRope: qRope && input(qRope),
        kRope: kRope && input(kRope),
        lse: input(lse, 'u32'),
        sequences: input(sequences.on(q.backend)),
        scratch: scratch && output(scratch),
        ...consumer.bindings,
      },
      uniforms: { scale: f32(scale), firstLeader: u32(first) },
      grid: [count, groups, sequences.count],
      source: () => source(consumer, ropeWidth > 0, isLocal),
    });
    scratch?.free();
  }
}

function source(consumer: Consumer, isRotary: boolean, isLocal: boolean) {
  const pitch = DEPTH + 1;
  const perThread = KEYS / 16;
  return {
    threads: THREADS,
    declarations: `${sequenceOf}
${blocksOf}
var<workgroup> tileA: array<f32, ${HEADS * pitch}>;
var<workgroup> tileB: array<f32, ${KEYS * pitch}>;
var<workgroup> weights: array<f32, ${HEADS * (KEYS + 1)}>;
${isLocal ? 'var<workgroup> probability: array<f32, ROOM>;' : ''}
fn probabilityOf(at: u32, b: u32) -> f32 {
  return ${isLocal ? 'probability[b]' : 'scratch[at + b]'};
}
// P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k]
fn importanceOf(j: u32, blocks: u32, at: u32) -> f32 {
  let m = i32(BLOCK / STRIDE);
  let k = i32(LENGTH / STRIDE);
  var sum = 0.0;
  for (var offset = 1 - k; offset < m; offset++) {
    let b = i32(j) * m + offset;
    if (b < 0 || b >= i32(blocks)) { continue; }
    // Pairs (m, k) with this difference.
    let pairs = min(m - 1, offset + k - 1) - max(0, offset) + 1;
    sum += f32(pairs) * probabilityOf(at, u32(b));
  }
  return sum;
}
${consumer.declarations}`,
    body: `let s = sequenceOf(group.z);
let groupIndex = group.y;
let leader = u.firstLeader + group.x;
let past = s.keyCount - s.queryCount;
let t = (past / SHARING + leader) * SHARING;
if (t >= s.keyCount || s.queryCount == 0u) { return; }
let row = s.leaderStart + leader;
let isHere = t >= past;
let own = t / BLOCK + 1u;
let blocks = blocksOf(t + 1u);
let probabilityAt = ((group.z * G + group.y) * groups.x + group.x) * ROOM;
let query = s.queryStart + max(t, past) - past;
let ty = tid / 16u;
let tx = tid % 16u;
for (var b0 = 0u; isHere && b0 < blocks; b0 += ${KEYS}u) {
  // Heads of one key head at a time, ${HEADS} at most.
  for (var h0 = 0u; h0 < H / G; h0 += min(HT, ${HEADS}u)) {
    let head0 = groupIndex * (H / G) + h0;
    let keyHead = head0 / (H / GK);
    let heads = min(min(HT, ${HEADS}u), HT - h0 % HT);
    ${unroll(perThread, (j) => `var s${j} = 0.0;`)}
    for (var c0 = 0u; c0 < D + DR; c0 += ${DEPTH}u) {
      workgroupBarrier();
      {
        let m = tid / ${DEPTH}u;
        let c = c0 + tid % ${DEPTH}u;
        let at = query * H + head0 + m;
        var value = 0.0;
        if (m < heads) {
          if (c < D) { value = f32(q[at * D + c]); }
          ${isRotary ? 'else if (c < D + DR) { value = f32(qRope[at * DR + c - D]); }' : ''}
        }
        tileA[m * ${pitch}u + tid % ${DEPTH}u] = value;
      }
      for (var x = tid; x < ${KEYS * DEPTH}u; x += ${THREADS}u) {
        let b = b0 + x / ${DEPTH}u;
        let c = c0 + x % ${DEPTH}u;
        var value = 0.0;
        if (b < blocks) {
          if (c < D) { value = f32(k[((s.blockStart + b) * GK + keyHead) * D + c]); }
          ${isRotary ? 'else if (c < D + DR) { value = f32(kRope[(s.blockStart + b) * DR + c - D]); }' : ''}
        }
        tileB[x / ${DEPTH}u * ${pitch}u + x % ${DEPTH}u] = value;
      }
      workgroupBarrier();
      for (var c = 0u; c < ${DEPTH}u; c++) {
        let a = tileA[ty * ${pitch}u + c];
        ${unroll(perThread, (j) => `s${j} = fma(a, tileB[(tx + ${16 * j}u) * ${pitch}u + c], s${j});`)}
      }
    }
    workgroupBarrier();
    if (ty < heads) {
      let norm = bitcast<f32>(lse[query * H + head0 + ty]);
      ${unroll(perThread, (j) => `weights[ty * ${KEYS + 1}u + tx + ${16 * j}u] = exp(min(s${j} * u.scale - norm, 80.0));`)}
    }
    workgroupBarrier();
    if (tid < ${KEYS}u && b0 + tid < blocks) {
      var sum = 0.0;
      if (h0 > 0u) { sum = probabilityOf(probabilityAt, b0 + tid); }
      for (var m = 0u; m < heads; m++) { sum += weights[m * ${KEYS + 1}u + tid]; }
      ${isLocal ? 'probability[b0 + tid]' : 'scratch[probabilityAt + b0 + tid]'} = sum;
    }
  }
}
${isLocal ? 'workgroupBarrier();' : 'storageBarrier();'}
${consumer.body}`,
  };
}

const selection = `
var<workgroup> counters: array<u32, ${THREADS}>;
var<workgroup> tally: atomic<u32>;
fn isForced(j: u32, own: u32) -> bool { return j < INITIAL || j + LOCAL >= own; }
// Bits of what is not negative have the order of the numbers.
fn rankOf(j: u32, blocks: u32, at: u32) -> u32 {
  return bitcast<u32>(importanceOf(j, blocks, at)) & 0x7fffffffu;
}`;

/**
 * The importance that the last chosen block has, found bit by bit: the largest
 * number that enough blocks reach. Then everything above it, and of those that
 * equal it the first ones.
 */
const choose = `
let forced = min(own, min(INITIAL, own) + min(LOCAL, own));
let wanted = COUNT - forced;
let others = own - forced;
var least = 0u;
if (others > wanted) {
  for (var bit = 31u; bit > 0u; bit--) {
    let candidate = least | (1u << (bit - 1u));
    if (tid == 0u) { atomicStore(&tally, 0u); }
    workgroupBarrier();
    var reached = 0u;
    for (var j = tid; j < own; j += ${THREADS}u) {
      if (!isForced(j, own) && rankOf(j, blocks, probabilityAt) >= candidate) { reached++; }
    }
    atomicAdd(&tally, reached);
    workgroupBarrier();
    // The same for all threads: the tally is complete.
    least = select(least, candidate, atomicLoad(&tally) >= wanted);
    workgroupBarrier();
  }
}
// Each thread has a run of blocks, so that places follow from counts.
let run = (own + ${THREADS - 1}u) / ${THREADS}u;
let start = min(tid * run, own);
let stop = min(start + run, own);
var above = 0u;
var equal = 0u;
for (var j = start; j < stop; j++) {
  if (isForced(j, own)) { continue; }
  let rank = rankOf(j, blocks, probabilityAt);
  if (rank > least) { above++; }
  if (rank == least) { equal++; }
}
counters[tid] = above | (equal << 16u);
workgroupBarrier();
var allAbove = 0u;
var equalBefore = 0u;
for (var n = 0u; n < ${THREADS}u; n++) {
  allAbove += counters[n] & 0xffffu;
  if (n < tid) { equalBefore += counters[n] >> 16u; }
}
let fromEqual = wanted - min(allAbove, wanted);
workgroupBarrier();
// How many this thread takes, then where they go.
var taken = 0u;
var seen = equalBefore;
for (var j = start; j < stop; j++) {
  var take = isForced(j, own);
  if (!take) {
    let rank = rankOf(j, blocks, probabilityAt);
    take = rank > least;
    if (rank == least) { take = seen < fromEqual; seen++; }
  }
  if (take) { taken++; }
}
counters[tid] = taken;
workgroupBarrier();
var place = 0u;
for (var n = 0u; n < tid; n++) { place += counters[n]; }
seen = equalBefore;
for (var j = start; j < stop; j++) {
  var take = isForced(j, own);
  if (!take) {
    let rank = rankOf(j, blocks, probabilityAt);
    take = rank > least;
    if (rank == least) { take = seen < fromEqual; seen++; }
  }
  if (take) {
    indices[to + place] = i32(j);
    place++;
  }
}`;

/** -1 everywhere: no block. */
function fillNone(context: KernelContext, indices: Tensor): void {
  const rows = Math.ceil(indices.size / THREADS);
  context.run({
    kernel: 'fillNone',
    constants: {},
    bindings: { indices: output(indices) },
    uniforms: { count: u32(indices.size) },
    grid: [Math.min(rows, 65_535), Math.ceil(rows / 65_535)],
    source: () => ({
      threads: THREADS,
      body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i < u.count) { indices[i] = -1; }`,
    }),
  });
}
