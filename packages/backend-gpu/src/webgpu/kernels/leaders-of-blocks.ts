/**
 * The inverse of block lists: which leaders chose a block. The pass over keys
 * gathers by it, so that no two workgroups add to the same gradient.
 */
import type { Sequences, Tensor } from '@asa/core';
import { type Binding, input, output, type UniformValue, u32 } from '../launch';
import { extent, type KernelContext, sequenceOf } from './context';

/** Blocks whose bits lie in workgroup memory at a time. */
const SEGMENT = 2048;
const SCAN = 256;
const FILL = 64;

interface BlockLists {
  /** i32 `[L, G, n]`, -1 for none; a block at most once in a list. */
  readonly indices: Tensor;
  readonly sequences: Sequences;
  readonly blockSize: number;
  readonly sharing: number;
  /** Rows that a leader stands for. */
  readonly rowsPerLeader: number;
}

/**
 * Work on blocks in items of about equal size: an item is a block and some of
 * the leaders that chose it, and blocks that all leaders choose have many.
 */
export interface LeadersOfBlocks {
  /** Most items of a list. */
  readonly items: number;
  readonly bindings: Readonly<Record<string, Binding>>;
  readonly constants: Readonly<Record<string, number>>;
  readonly uniforms: Readonly<Record<string, UniformValue>>;
  /**
   * `itemCount(list)`, `itemBlock(list, item)`, `firstItem(list, block)`,
   * `firstLeader(list, block)` and `leaderAt(list, i)`; leaders of a block
   * ascend, and the items of a block stand side by side.
   */
  readonly declarations: string;
  free(): void;
}

/** Rows that an item should have at least. */
const ENOUGH_ROWS = 512;

export function leadersOfBlocks(
  context: KernelContext,
  lists: BlockLists,
): LeadersOfBlocks {
  const { indices, sequences, blockSize, sharing } = lists;
  const [groups, count] = [extent(indices, 1), extent(indices, 2)];
  const leaders = Math.ceil(sequences.maxQueries / sharing);
  const blocks = Math.ceil(sequences.maxKeys / blockSize);
  const capacity = Math.max(1, leaders * count);
  const words = Math.ceil(leaders / 32);
  // Twice what a block has on average, so that few blocks are cut.
  const perItem = Math.max(
    Math.ceil((2 * capacity) / Math.max(1, blocks)),
    Math.ceil(ENOUGH_ROWS / lists.rowsPerLeader),
  );
  const items = blocks + Math.floor(capacity / perItem);
  const pitch = 2 * (blocks + 1) + items;
  const rows = sequences.count * groups;
  const bits = context.scratch(Math.max(1, rows * words * blocks), 'i32');
  const counts = context.scratch(Math.max(1, rows * blocks), 'i32');
  const table = context.scratch(Math.max(1, rows * pitch), 'i32');
  const inverse = context.scratch(Math.max(1, rows * capacity), 'i32');
  const constants = { GL: groups, COUNT: count, SHARING: sharing };
  const uniforms = {
    blocks: u32(blocks),
    words: u32(words),
    items: u32(items),
    perItem: u32(perItem),
    tablePitch: u32(pitch),
    capacity: u32(capacity),
  };
  const sequenceTable = input(sequences.on(indices.backend));

  context.run({
    kernel: 'leaderBits',
    constants,
    bindings: {
      indices: input(indices),
      sequences: sequenceTable,
      bits: output(bits, 'u32'),
    },
    uniforms,
    grid: [words, groups, sequences.count],
    source: bitsSource,
  });
  context.run({
    kernel: 'leaderCounts',
    constants,
    bindings: {
      bits: input(bits, 'u32'),
      sequences: sequenceTable,
      counts: output(counts, 'u32'),
    },
    uniforms,
    grid: [Math.ceil(blocks / FILL), groups, sequences.count],
    source: countsSource,
  });
  context.run({
    kernel: 'leaderItems',
    constants,
    bindings: { counts: input(counts, 'u32'), table: output(table, 'u32') },
    uniforms,
    grid: [1, groups, sequences.count],
    source: itemsSource,
  });
  context.run({
    kernel: 'leaderLists',
    constants,
    bindings: {
      bits: input(bits, 'u32'),
      sequences: sequenceTable,
      table: input(table, 'u32'),
      leaders: output(inverse, 'u32'),
    },
    uniforms,
    grid: [blocks, groups, sequences.count],
    source: listsSource,
  });
  bits.free();
  counts.free();
  return {
    items,
    bindings: {
      table: input(table, 'u32'),
      leaders: input(inverse, 'u32'),
    },
    constants: { GL: groups },
    uniforms,
    declarations: access,
    free: () => {
      table.free();
      inverse.free();
    },
  };
}

/** `list` counts the lists of all sequences: `z GL + g`. */
const tableAccess = `
fn firstLeader(list: u32, block: u32) -> u32 { return table[list * u.tablePitch + block]; }
fn firstItem(list: u32, block: u32) -> u32 {
  return table[list * u.tablePitch + u.blocks + 1u + block];
}`;

const access = `${tableAccess}
fn itemCount(list: u32) -> u32 { return firstItem(list, u.blocks); }
fn itemBlock(list: u32, item: u32) -> u32 {
  return table[list * u.tablePitch + 2u * (u.blocks + 1u) + item];
}
fn leaderAt(list: u32, i: u32) -> u32 { return leaders[list * u.capacity + i]; }`;

const place = `let s = sequenceOf(group.z);
let list = group.z * GL + group.y;
let leaderCount = (s.queryCount + SHARING - 1u) / SHARING;
let wordCount = (leaderCount + 31u) / 32u;`;

/** Bit m of word w of a block: leader 32 w + m chose it. */
const bitsSource = () => ({
  threads: SCAN,
  declarations: `${sequenceOf}
var<workgroup> chosen: array<atomic<u32>, ${SEGMENT}>;`,
  body: `${place}
if (group.x >= wordCount) { return; }
for (var base = 0u; base < u.blocks; base += ${SEGMENT}u) {
  for (var j = tid; j < ${SEGMENT}u; j += ${SCAN}u) { atomicStore(&chosen[j], 0u); }
  workgroupBarrier();
  for (var x = tid; x < 32u * COUNT; x += ${SCAN}u) {
    let leader = group.x * 32u + x / COUNT;
    if (leader < leaderCount) {
      let at = ((s.leaderStart + leader) * GL + group.y) * COUNT + x % COUNT;
      let j = indices[at] - i32(base);
      if (j >= 0 && j < ${SEGMENT}) { atomicOr(&chosen[j], 1u << (x / COUNT)); }
    }
  }
  workgroupBarrier();
  let end = min(base + ${SEGMENT}u, u.blocks);
  for (var j = base + tid; j < end; j += ${SCAN}u) {
    bits[(list * u.words + group.x) * u.blocks + j] = atomicLoad(&chosen[j - base]);
  }
  workgroupBarrier();
}`,
});

const countsSource = () => ({
  threads: FILL,
  declarations: sequenceOf,
  body: `${place}
let block = group.x * ${FILL}u + tid;
if (block >= u.blocks) { return; }
var count = 0u;
for (var w = 0u; w < wordCount; w++) {
  count += countOneBits(bits[(list * u.words + w) * u.blocks + block]);
}
counts[list * u.blocks + block] = count;`,
});

/** Where the leaders and the items of each block start, and whose an item is. */
const itemsSource = () => ({
  threads: SCAN,
  declarations: `
var<workgroup> leadersBefore: array<u32, ${SCAN}>;
var<workgroup> itemsBefore: array<u32, ${SCAN}>;
fn itemsOf(count: u32) -> u32 { return (count + u.perItem - 1u) / u.perItem; }`,
  body: `let list = group.z * GL + group.y;
let run = (u.blocks + ${SCAN - 1}u) / ${SCAN}u;
let start = min(tid * run, u.blocks);
let end = min(start + run, u.blocks);
var leaders = 0u;
var items = 0u;
for (var j = start; j < end; j++) {
  let count = counts[list * u.blocks + j];
  leaders += count;
  items += itemsOf(count);
}
leadersBefore[tid] = leaders;
itemsBefore[tid] = items;
workgroupBarrier();
leaders = 0u;
items = 0u;
for (var n = 0u; n < tid; n++) {
  leaders += leadersBefore[n];
  items += itemsBefore[n];
}
let at = list * u.tablePitch;
for (var j = start; j < end; j++) {
  let count = counts[list * u.blocks + j];
  table[at + j] = leaders;
  table[at + u.blocks + 1u + j] = items;
  for (var n = 0u; n < itemsOf(count); n++) {
    table[at + 2u * (u.blocks + 1u) + items + n] = j;
  }
  leaders += count;
  items += itemsOf(count);
}
if (tid == ${SCAN - 1}u) {
  table[at + u.blocks] = leaders;
  table[at + 2u * u.blocks + 1u] = items;
}`,
});

const listsSource = () => ({
  threads: FILL,
  declarations: `${sequenceOf}
${tableAccess}
var<workgroup> before: array<u32, ${FILL}>;`,
  body: `${place}
let block = group.x;
let run = (wordCount + ${FILL - 1}u) / ${FILL}u;
let start = min(tid * run, wordCount);
let end = min(start + run, wordCount);
var count = 0u;
for (var w = start; w < end; w++) {
  count += countOneBits(bits[(list * u.words + w) * u.blocks + block]);
}
before[tid] = count;
workgroupBarrier();
var to = list * u.capacity + firstLeader(list, block);
for (var n = 0u; n < tid; n++) { to += before[n]; }
for (var w = start; w < end; w++) {
  var word = bits[(list * u.words + w) * u.blocks + block];
  while (word != 0u) {
    leaders[to] = 32u * w + firstTrailingBit(word);
    to++;
    word &= word - 1u;
  }
}`,
});
