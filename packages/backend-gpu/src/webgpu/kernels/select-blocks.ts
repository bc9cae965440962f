import {
  blockCount,
  type RankingAttributes,
  type RankingOperands,
  type Tensor,
} from '@asa/core';
import { f32, input, type Launch, output, u32 } from '../launch';
import {
  type AttentionShape,
  COLUMNS,
  product,
  rowOf,
  sources,
  type Tile,
  tables,
  threadPlace,
  threadsOf,
  times,
  vectors,
  weightAt,
  weightsOf,
  workspace,
} from './attention-products';
import { shapeOf } from './attention-tile';
import { greatestCommonDivisor } from './attention-view';
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
/** Ranks that workgroup memory holds; those of longer lists are made anew. */
const MOST_IN_WORKGROUP = 4096;
/** Bytes of probabilities at a time. */
const SCRATCH_BYTES = 2 ** 28;
/** Blocks that one workgroup of the probabilities has at most. */
const SPAN = 16 * COLUMNS;

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
 * The probabilities of compressed attention, summed over each group's heads,
 * from the scores and the known LSE; then what the consumer makes of them, one
 * workgroup a leader and group. They are made for some leaders at a time.
 */
function rank(
  context: KernelContext,
  inputs: RankingOperands,
  attributes: RankingAttributes,
  consumer: Consumer,
): void {
  const { sequences, groups, sharing } = attributes;
  const table = input(sequences.on(inputs.q.backend));
  const leaders = Math.max(0, ...sequences.leaderCounts(sharing));
  const most = Math.max(1, blockCount(sequences.keyRoom, attributes));
  // Powers of two: a growing context compiles few kernels.
  const room = Math.max(COLUMNS, 2 ** Math.ceil(Math.log2(most)));
  const perLeader = room * groups * sequences.count;
  const step = Math.max(1, Math.floor(SCRATCH_BYTES / (4 * perLeader)));
  for (let first = 0; first < leaders; first += step) {
    const count = Math.min(step, leaders - first);
    const scratch = context.scratch(count * perLeader, 'f32');
    probabilities(context, inputs, attributes, scratch, {
      first,
      count,
      room,
      most,
    });
    context.run({
      kernel: consumer.name,
      constants: {
        G: groups,
        LENGTH: attributes.length,
        STRIDE: attributes.stride,
        BLOCK: attributes.blockSize,
        SHARING: sharing,
        ROOM: room,
        ...consumer.constants,
      },
      bindings: {
        scratch: input(scratch),
        sequences: table,
        ...consumer.bindings,
      },
      uniforms: { firstLeader: u32(first) },
      grid: [count, groups, sequences.count],
      source: () => ({
        threads: THREADS,
        declarations: `${sequenceOf}
${blocksOf}
${importance}
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
${consumer.body}`,
      }),
    });
    scratch.free();
  }
}

/** P[j] = sum over m < l'/d, k < l/d of p[(l'/d) j + m - k] */
const importance = `fn importanceOf(j: u32, blocks: u32, at: u32) -> f32 {
  let m = i32(BLOCK / STRIDE);
  let k = i32(LENGTH / STRIDE);
  var sum = 0.0;
  for (var offset = 1 - k; offset < m; offset++) {
    let b = i32(j) * m + offset;
    if (b < 0 || b >= i32(blocks)) { continue; }
    // Pairs (m, k) with this difference.
    let pairs = min(m - 1, offset + k - 1) - max(0, offset) + 1;
    sum += f32(pairs) * scratch[at + u32(b)];
  }
  return sum;
}`;

/** Leaders `first .. first + count`, `room` places for their `most` blocks. */
interface Batch {
  readonly first: number;
  readonly count: number;
  readonly room: number;
  readonly most: number;
}

/**
 * `scratch[s, g, leader, b]`: the probability of block b, summed over the
 * heads of group g. A tile has several leaders, by heads that share keys.
 */
function probabilities(
  context: KernelContext,
  inputs: RankingOperands,
  { sequences, groups, sharing, scale, length, stride }: RankingAttributes,
  scratch: Tensor,
  { first, count, room, most }: Batch,
): void {
  const { q, k, qRope, kRope, lse } = inputs;
  const shape = shapeOf({ ...inputs, v: k });
  const { heads, keyHeads, width, ropeWidth } = shape;
  const unitHeads = greatestCommonDivisor(heads / groups, heads / keyHeads);
  const isSmall = context.smallTiles || count * unitHeads <= 16;
  const tile: Tile = isSmall
    ? { rows: 16, perThread: 2 }
    : { rows: 64, perThread: 8 };
  const together = Math.min(unitHeads, tile.rows);
  const leadersOfTile = Math.floor(tile.rows / together);
  const spans = Math.ceil(most / SPAN);
  const as = vectors(shape);
  context.run({
    kernel: 'blockProbabilities',
    constants: {
      H: heads,
      GK: keyHeads,
      G: groups,
      HT: unitHeads,
      HEADS: together,
      D: width,
      DR: ropeWidth,
      DV: width,
      LENGTH: length,
      STRIDE: stride,
      SHARING: sharing,
      ROOM: room,
      M: tile.rows,
      N: COLUMNS,
      LEADERS: leadersOfTile,
    },
    bindings: {
      q: as.input(q),
      k: as.input(k),
      qRope: qRope && as.input(qRope),
      kRope: kRope && as.input(kRope),
      lse: input(lse, 'u32'),
      sequences: input(sequences.on(q.backend)),
      scratch: output(scratch),
    },
    uniforms: {
      scale: f32(scale),
      firstLeader: u32(first),
      count: u32(count),
      spans: u32(spans),
    },
    grid: [Math.ceil(count / leadersOfTile) * spans, groups, sequences.count],
    source: () => probabilitySource(shape, tile),
  });
}

function probabilitySource(shape: AttentionShape, tile: Tile) {
  const { perThread } = tile;
  const { q, k } = sources(shape);
  return {
    threads: threadsOf(tile),
    declarations: `${sequenceOf}
${blocksOf}
${tables}
${workspace(tile, COLUMNS)}
var<workgroup> rowNorm: array<f32, M>;`,
    body: `let s = sequenceOf(group.z);
let past = s.keyCount - s.queryCount;
let firstLeader = u.firstLeader + group.x / u.spans * LEADERS;
let endLeader = min(firstLeader + LEADERS, u.firstLeader + u.count);
let lastAt = min((past / SHARING + endLeader - 1u) * SHARING, max(s.keyCount, 1u) - 1u);
let firstBlock = group.x % u.spans * ${SPAN}u;
let endBlock = min(blocksOf(lastAt + 1u), firstBlock + ${SPAN}u);
if (s.queryCount == 0u || firstBlock >= endBlock) { return; }
${threadPlace}
for (var base = firstBlock; base < endBlock; base += N) {
  for (var h0 = 0u; h0 < H / G; h0 += min(HEADS, HT - h0 % HT)) {
    // Heads of one key head at a time.
    let head0 = group.y * (H / G) + h0;
    let keyHead = head0 / (H / GK);
    let heads = min(HEADS, HT - h0 % HT);
    workgroupBarrier();
    if (tid < M) {
      let leader = firstLeader + tid / HEADS;
      let at = (past / SHARING + leader) * SHARING;
      let isRow = tid / HEADS < LEADERS && leader < endLeader
        && tid % HEADS < heads && at >= past && at < s.keyCount;
      let query = min(max(at, past), s.keyCount - 1u) - past;
      rowIndex[tid] = (s.queryStart + query) * H + head0 + min(tid % HEADS, heads - 1u);
      rowLast[tid] = select(-1, i32(blocksOf(at + 1u)) - 1, isRow);
      rowNorm[tid] = bitcast<f32>(lse[rowIndex[tid]]);
    }
    if (tid < N) {
      keyPosition[tid] = select(-1, i32(base + tid), base + tid < endBlock);
      keyRow[tid] = s.blockStart + min(base + tid, endBlock - 1u);
    }
    workgroupBarrier();
    ${times([perThread, 4], (i, j) => `var s${i}_${j} = 0.0;`)}
    ${product(shape, 's', tile, q, k)}
    ${unroll(
      perThread,
      (i) => `{
      let last = rowLast[${rowOf(tile, i)}];
      let norm = rowNorm[${rowOf(tile, i)}];
      let at = vec4i(i32(base + 4u * tx)) + vec4i(0, 1, 2, 3);
      let p = exp(min(vec4f(s${i}_0, s${i}_1, s${i}_2, s${i}_3) * u.scale - norm, vec4f(80.0)));
      ${weightsOf(rowOf(tile, i))} = select(vec4f(), p, at <= vec4i(last));
    }`,
    )}
    workgroupBarrier();
    for (var x = tid; x < LEADERS * N; x += ${threadsOf(tile)}u) {
      let m = x / N;
      let n = x % N;
      let leader = firstLeader + m;
      if (leader >= endLeader || base + n >= endBlock) { continue; }
      var sum = 0.0;
      for (var head = 0u; head < heads; head++) {
        sum += ${weightAt('m * HEADS + head', 'n')};
      }
      let to = ((group.z * G + group.y) * u.count + leader - u.firstLeader) * ROOM + base + n;
      if (h0 > 0u) { sum += scratch[to]; }
      scratch[to] = sum;
    }
  }
}`,
  };
}

const selection = `
var<workgroup> counters: array<u32, ${THREADS}>;
var<workgroup> tally: atomic<u32>;
var<workgroup> ranks: array<u32, min(ROOM, ${MOST_IN_WORKGROUP}u)>;
fn isForced(j: u32, own: u32) -> bool { return j < INITIAL || j + LOCAL >= own; }
// Bits of what is not negative have the order of the numbers.
fn makeRank(j: u32, blocks: u32, at: u32) -> u32 {
  return bitcast<u32>(importanceOf(j, blocks, at)) & 0x7fffffffu;
}
fn rankOf(j: u32, blocks: u32, at: u32) -> u32 {
  if (j < ${MOST_IN_WORKGROUP}u) { return ranks[j]; }
  return makeRank(j, blocks, at);
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
for (var j = tid; j < min(own, ${MOST_IN_WORKGROUP}u); j += ${THREADS}u) {
  ranks[j] = makeRank(j, blocks, probabilityAt);
}
workgroupBarrier();
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
