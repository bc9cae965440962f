/**
 * Softmax attention over tiles. Which rows a tile has, and which keys they
 * see, is all that differs between attention, compressed attention and
 * selected attention: a `View`, which the kernels are compiled for.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  DType,
  Sequences,
  Tensor,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { type Argument, f32, i32, i64, type Launch } from '../launch';
import {
  elementwise,
  extent,
  fillBits,
  type KernelContext,
  lanesOf,
  typed,
} from './context';
import {
  type FlashTile,
  flashKeysTile,
  flashLaunch,
  flashQueriesTile,
  isLatent,
} from './flash';
import {
  type HopperCut,
  hopperGrid,
  hopperKeysCut,
  hopperLaunch,
  hopperQueriesCut,
} from './hopper';

/** Which keys which rows see. */
export interface View {
  /** As in `attention-tile.cuh`. */
  readonly kind: 'ATTENTION' | 'COMPRESSED' | 'SELECTED' | 'MASKED';
  readonly sequences: Sequences;
  readonly scale: number;
  /** Heads that share keys and lists: a unit. */
  readonly unitHeads: number;
  /** Rows of a unit that share a walk over keys. */
  readonly rows: number;
  /** Keys that share a walk over rows. */
  readonly keys: number;
  /** Keys that a tile of rows walks over at most, for any length that has room. */
  readonly walk: number;
  /** Tiles of so many rows in the longest sequence. */
  rowTiles(rows: number): number;
  /** Tiles of so many keys in the longest sequence. */
  keyTiles(keys: number): number;
  /** Rows of the key axis that the sequences have in use. */
  readonly keyRows: number;
  readonly window?: number;
  readonly length?: number;
  readonly stride?: number;
  /** Lists of blocks, i32 `[L, lists, count]`, or words of their masks. */
  readonly indices?: Tensor;
  readonly blockSize?: number;
  readonly sharing?: number;
}

/**
 * A view whose rows walk over keys that follow one another: tiles of any rows of
 * a unit.
 * @param keysOf how many keys so many tokens are.
 */
export function denseTiles(
  sequences: Sequences,
  unitHeads: number,
  keysOf = (tokens: number) => tokens,
): Pick<View, 'rows' | 'keys' | 'walk' | 'rowTiles' | 'keyTiles' | 'keyRows'> {
  const rows = sequences.maxQueries * unitHeads;
  const keys = keysOf(sequences.maxKeys);
  return {
    rows,
    keys,
    walk: keysOf(sequences.keyRoom),
    rowTiles: (tile) => Math.ceil(rows / tile),
    keyTiles: (tile) => Math.ceil(keys / tile),
    keyRows: total(sequences.list.map(({ keyCount }) => keysOf(keyCount))),
  };
}

/** What kernels are told of a view. */
export type CallView = Pick<
  View,
  'kind' | 'sequences' | 'scale' | 'unitHeads'
> &
  Partial<View>;

export interface AttentionShape {
  readonly heads: number;
  readonly keyHeads: number;
  readonly width: number;
  readonly ropeWidth: number;
  readonly valueWidth: number;
  readonly dtype: DType;
}

export function shapeOf({ q, k, v, qRope }: AttentionOperands): AttentionShape {
  return {
    heads: extent(q, 1),
    keyHeads: extent(k, 1),
    width: extent(q, 2),
    ropeWidth: qRope ? extent(qRope, 2) : 0,
    valueWidth: extent(v, 2),
    dtype: q.dtype,
  };
}

export function greatestCommonDivisor(a: number, b: number): number {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** The sum of some lengths. */
export function total(lengths: readonly number[]): number {
  return lengths.reduce((sum, length) => sum + length, 0);
}

/** How a pass is cut: 16 rows a warp, N of the other side at a time. */
export interface Tile {
  readonly warps: number;
  readonly others: number;
  /** Columns of the results that a block sums, and blocks for all of them. */
  readonly columns: number;
  readonly parts: number;
  readonly sharedBytes: number;
}

type Pass = 'forward' | 'queries' | 'keys';

/** Shared memory of the row and key tables, which is not asked for. */
export const TABLE_BYTES = 8 * 1024;

/** Warps and others to try, the largest first. */
const cuts: Readonly<Record<Pass, readonly (readonly [number, number])[]>> = {
  forward: [
    [4, 64],
    [4, 32],
    [2, 32],
    [1, 32],
    [1, 16],
  ],
  queries: [
    [4, 32],
    [2, 32],
    [1, 32],
    [1, 16],
  ],
  keys: [
    [4, 32],
    [2, 32],
    [1, 32],
    [1, 16],
  ],
};

/**
 * The largest tile that shared memory holds; none where the smallest is too
 * large. `rows` is how many there are to share a tile.
 */
export function tileOf(
  pass: Pass,
  shape: AttentionShape,
  rows: number,
  sharedBytes: number,
): Tile | undefined {
  const size = shape.dtype === 'f32' ? 4 : 2;
  const keyWidth = shape.width + shape.ropeWidth;
  const { valueWidth } = shape;
  const results = {
    forward: valueWidth,
    queries: keyWidth,
    keys: Math.max(keyWidth, valueWidth),
  }[pass];
  // As many as registers hold.
  const most = pass === 'keys' || size === 4 ? 128 : 256;
  const columns = [64, 128].find((c) => results <= c) ?? most;
  const parts = Math.max(1, Math.ceil(results / columns));
  for (const [warps, others] of cuts[pass]) {
    if (warps > 1 && 16 * warps >= 2 * rows) continue;
    const elements = tileElements(
      pass,
      { keyWidth, valueWidth, pad: 16 / size },
      16 * warps,
      others,
      columns,
    );
    const bytes = elements * size;
    if (bytes + TABLE_BYTES > sharedBytes) continue;
    return { warps, others, columns, parts, sharedBytes: bytes };
  }
  return undefined;
}

/** Elements of a pass's tiles, in the order in which the kernel lays them. */
function tileElements(
  pass: Pass,
  {
    keyWidth,
    valueWidth,
    pad,
  }: { keyWidth: number; valueWidth: number; pad: number },
  rows: number,
  others: number,
  columns: number,
): number {
  const keys = Math.ceil(keyWidth / 16) * 16 + pad;
  const values = Math.ceil(valueWidth / 16) * 16 + pad;
  const weights = rows * (others + pad);
  if (pass === 'forward') {
    return (rows + others) * keys + others * (columns + pad) + weights;
  }
  const both = (rows + others) * (keys + values);
  return both + (pass === 'keys' ? 2 : 1) * weights + columns;
}

export function attendBackward(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
): void {
  const statistics = rowStatistics(context, inputs);
  queryGradients(context, inputs, outputs, view, statistics);
  keyGradients(context, inputs, outputs, view, statistics);
  statistics.free();
}

/** The kernels' structure of where gradients of queries go. */
export const queryArguments = (
  { plus }: Pick<AttentionResults, 'plus'>,
  { dQ, dQRope }: Pick<AttentionGradients, 'dQ' | 'dQRope'>,
): readonly Argument[] => [dQ, dQRope, plus];

/** Whether they add something to that of q. */
export const plusDefine = ({ plus }: Pick<AttentionResults, 'plus'>) =>
  plus && { PLUS: 1 };

const adding = <Given extends Pick<Launch, 'defines'>>(
  inputs: Pick<AttentionResults, 'plus'>,
  launch: Given,
): Given => ({
  ...launch,
  defines: { ...launch.defines, ...plusDefine(inputs) },
});

/** What rows have that are no sequence's, which no kernel writes. */
export function startQueries(
  context: KernelContext,
  { plus }: Pick<AttentionResults, 'plus'>,
  { dQ, dQRope }: Pick<AttentionGradients, 'dQ' | 'dQRope'>,
): void {
  if (plus) context.copy(plus.storage, 0, dQ.storage, 0, dQ.size);
  else context.clear(dQ);
  if (dQRope) context.clear(dQRope);
}

function queryGradients(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
  statistics: Tensor,
): void {
  const shape = shapeOf(inputs);
  if (!coversQueries(view.sequences, outputs.dQ)) {
    startQueries(context, inputs, outputs);
  }
  const given = [...call(inputs, view), inputs.dO, statistics];
  const results = queryArguments(inputs, outputs);
  const latent = isLatent(inputs);
  const hopper = hopperQueriesCut(shape, latent, view, context.facts);
  if (hopper) {
    const grid = hopperGrid(shape, view, hopper.rows);
    context.run({
      file: 'hopper-backward-queries',
      entry: 'hopperBackwardQueries',
      ...adding(inputs, hopperLaunch(shape, view, latent, hopper)),
      grid: [Math.min(grid.count, context.facts.multiprocessors)],
      arguments: [...given, ...results, ...grid.arguments],
    });
    return;
  }
  const flash = flashQueriesTile(
    shape,
    latent,
    view.rows,
    listLength(view),
    context.facts.sharedBytes,
  );
  if (flash) {
    context.run({
      file: 'flash-backward-queries',
      entry: 'flashBackwardQueries',
      ...adding(inputs, flashLaunch(shape, view, latent, flash)),
      grid: rowGrid(shape, view, flash.rows),
      arguments: [...given, ...results],
    });
    return;
  }
  const tile = requiredTile('queries', shape, view, context);
  context.run({
    file: 'attention-backward-queries',
    entry: 'attentionBackwardQueries',
    ...adding(inputs, compiled(shape, view, tile)),
    grid: rowGrid(shape, view, 16 * tile.warps, tile.parts),
    arguments: [...given, ...results, i32(tile.parts)],
  });
}

function keyGradients(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  gradients: AttentionGradients,
  view: View,
  statistics: Tensor,
): void {
  const shape = shapeOf(inputs);
  const latent = isLatent(inputs);
  const hopper = hopperKeysCut(shape, view, context.facts);
  if (hopper) {
    hopperKeyGradients(context, inputs, gradients, view, statistics, hopper);
    return;
  }
  const { sharedBytes } = context.facts;
  const flash = flashKeysTile(shape, latent, view.keys, sharedBytes);
  if (flash) {
    flashKeyGradients(context, inputs, gradients, view, statistics, flash);
  } else {
    anyKeyGradients(context, inputs, gradients, view, statistics);
  }
}

function hopperKeyGradients(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  gradients: AttentionGradients,
  view: View,
  statistics: Tensor,
  hopper: HopperCut,
): void {
  const shape = shapeOf(inputs);
  const { facts } = context;
  const blocks = view.keyTiles(hopper.rows) * shape.keyHeads;
  const splits = splitsOf(view, blocks, facts);
  const { sequences } = view;
  const count = blocks * sequences.count * splits;
  sumKeyGradients(context, inputs, gradients, view, splits, (outputs) =>
    context.run({
      file: 'hopper-backward-keys',
      entry: 'hopperBackwardKeys',
      ...hopperLaunch(shape, view, isLatent(inputs), hopper),
      grid: [Math.min(count, facts.multiprocessors)],
      arguments: [
        ...call(inputs, view),
        ...[inputs.dO, statistics, ...outputs],
        ...[count, splits, sequences.count].map(i32),
      ],
    }),
  );
}

function flashKeyGradients(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  gradients: AttentionGradients,
  view: View,
  statistics: Tensor,
  flash: FlashTile,
): void {
  const shape = shapeOf(inputs);
  const { keyHeads } = shape;
  const tiles = view.keyTiles(flash.rows);
  const splits = splitsOf(view, tiles * keyHeads, context.facts);
  const inverse = invertLists(context, view);
  const { defines, threads, sharedBytes } = flashLaunch(
    shape,
    view,
    isLatent(inputs),
    flash,
  );
  sumKeyGradients(context, inputs, gradients, view, splits, (outputs) =>
    context.run({
      file: 'flash-backward-keys',
      entry: 'flashBackwardKeys',
      defines: { ...defines, UNIT: view.unitHeads, SHARING: view.sharing ?? 1 },
      grid: [tiles * splits, keyHeads, view.sequences.count],
      threads,
      sharedBytes,
      arguments: [
        ...call(inputs, view),
        inputs.dO,
        statistics,
        inverse?.chosenBy,
        i32(inverse?.words ?? 0),
        i32(inverse?.blocks ?? 0),
        ...outputs,
        i32(splits),
      ],
    }),
  );
  inverse?.chosenBy.free();
}

/**
 * The gradients of keys from a kernel whose blocks share out each walk `splits`
 * times: of their parts in f32, the sums.
 */
function sumKeyGradients(
  context: KernelContext,
  inputs: AttentionOperands,
  { dK, dV, dKRope }: AttentionGradients,
  view: View,
  splits: number,
  launch: (outputs: readonly (Tensor | undefined)[]) => void,
): void {
  const { keyHeads } = shapeOf(inputs);
  const part = (of: Tensor | undefined, parts: number) =>
    of && context.scratch(of.size * parts, 'f32');
  const partsK = part(splits > 1 ? dK : undefined, splits);
  const partsV = part(splits > 1 ? dV : undefined, splits);
  // The rotary key is shared: each key head gives its part of the gradient.
  const shares = part(dKRope, splits * keyHeads);
  if (view.keyRows !== extent(dK, 0)) {
    for (const gradient of [partsK ?? dK, partsV ?? dV, shares]) {
      if (gradient) context.clear(gradient);
    }
  }
  launch([dK, dV, shares, partsK, partsV]);
  const sum = (parts: Tensor | undefined, count: number, of?: Tensor) => {
    if (!parts || !of) return;
    sumHeads(context, parts, count, of);
    parts.free();
  };
  sum(partsK, splits, dK);
  sum(partsV, splits, dV);
  sum(shares, splits * keyHeads, dKRope);
}

/**
 * Blocks that share out a walk over rows: where there are too few keys to fill
 * the device, and where lists are inverted, as all leaders choose the first
 * blocks.
 */
function splitsOf(
  { kind, sequences, sharing = 1 }: View,
  blocks: number,
  { multiprocessors }: DeviceFacts,
): number {
  const few = Math.round((4 * multiprocessors) / (blocks * sequences.count));
  const leaders = Math.ceil(sequences.maxQueries / sharing);
  const uneven = kind === 'SELECTED' ? Math.min(4, leaders / 2048) : 1;
  return Math.min(16, Math.max(1, few, Math.floor(uneven)));
}

function anyKeyGradients(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  { dK, dV, dKRope }: AttentionGradients,
  view: View,
  statistics: Tensor,
): void {
  const shape = shapeOf(inputs);
  const tile = requiredTile('keys', shape, view, context);
  // The rotary key is shared: each key head gives its part of the gradient.
  const shares = dKRope && context.scratch(dKRope.size * shape.keyHeads, 'f32');
  if (view.keyRows !== extent(dK, 0)) {
    for (const gradient of [dK, dV, shares]) {
      if (gradient) context.clear(gradient);
    }
  }
  const inverse = invertLists(context, view);
  context.run({
    file: 'attention-backward-keys',
    entry: 'attentionBackwardKeys',
    ...compiled(shape, view, tile),
    grid: [
      view.keyTiles(16 * tile.warps) * tile.parts,
      shape.keyHeads,
      view.sequences.count,
    ],
    arguments: [
      ...call(inputs, view),
      inputs.dO,
      statistics,
      inverse?.chosenBy,
      i32(inverse?.words ?? 0),
      i32(inverse?.blocks ?? 0),
      dK,
      shares,
      dV,
      i32(tile.parts),
    ],
  });
  inverse?.chosenBy.free();
  if (shares && dKRope) {
    sumHeads(context, shares, shape.keyHeads, dKRope);
    shares.free();
  }
}

/** `supports` has said that there is one. */
export function requiredTile(
  pass: Pass,
  shape: AttentionShape,
  view: View,
  { facts }: KernelContext,
): Tile {
  const rows = pass === 'keys' ? view.keys : view.rows;
  const tile = tileOf(pass, shape, rows, facts.sharedBytes);
  if (tile) return tile;
  throw new RangeError(`internal: cuda: no tile for ${JSON.stringify(shape)}`);
}

export function compiled(
  { dtype }: AttentionShape,
  { kind }: View,
  { warps, others, columns, sharedBytes }: Tile,
): Pick<Launch, 'defines' | 'threads' | 'sharedBytes'> {
  return {
    defines: { T: dtype, VIEW: kind, WARPS: warps, N: others, C: columns },
    threads: [32 * warps],
    sharedBytes,
  };
}

export function rowGrid(
  { heads }: AttentionShape,
  view: View,
  rows: number,
  parts = 1,
): Launch['grid'] {
  const tiles = view.rowTiles(rows);
  return [tiles * parts, heads / view.unitHeads, view.sequences.count];
}

/** The kernels' structure of that name. */
export function call(
  operands: AttentionOperands,
  view: CallView,
): readonly Argument[] {
  const { q, k, v, qRope, kRope } = operands;
  const { heads, keyHeads, width, ropeWidth, valueWidth, dtype } =
    shapeOf(operands);
  const step = dtype === 'f32' ? 4 : 8;
  const isAligned = [width, ropeWidth, valueWidth].every((n) => n % step === 0);
  const { indices, window = 2 ** 31 - 1, length = 1, stride = 1 } = view;
  const { blockSize = 1, sharing = 1 } = view;
  return [
    q,
    k,
    v,
    qRope,
    kRope,
    view.sequences.on(q.backend),
    indices,
    ...[heads, keyHeads, view.unitHeads].map(i32),
    ...[width, ropeWidth, valueWidth, isAligned ? 1 : 0].map(i32),
    f32(view.scale),
    ...[window, length, stride, blockSize, sharing].map(i32),
    i32(indices ? extent(indices, 1) : 1),
    i32(indices ? extent(indices, 2) : 1),
  ];
}

/** Blocks of a list of selected attention. */
export function listLength({ indices }: View): number {
  return indices ? extent(indices, 2) : 0;
}

/**
 * Rows of no sequence, which no kernel writes: output 0, LSE -inf. Joined of parts
 * that are so, too.
 * @param results what kernels write: `outputs`, or their parts.
 */
export function startRows(
  context: KernelContext,
  sequences: Sequences,
  outputs: Pick<AttentionResults, 'o' | 'lse'>,
  results = outputs,
): void {
  if (coversQueries(sequences, outputs.o)) return;
  if (results === outputs) context.clear(outputs.o);
  fillBits(context, results.lse, 0xff800000 | 0);
}

export function coversQueries(sequences: Sequences, o: Tensor): boolean {
  const counts = sequences.list.map(({ queryCount }) => queryCount);
  return total(counts) === extent(o, 0);
}

/** Of each row its LSE (0 where it is -inf) and dO . o, f32 `[Nq H, 2]`. */
export function rowStatistics(
  context: KernelContext,
  { o, lse, dO, delta }: AttentionResults,
): Tensor {
  const statistics = context.scratch(2 * lse.size, 'f32');
  if (delta) {
    context.run({
      ...{ file: 'attention-parts', entry: 'packStatistics' },
      defines: typed(o),
      ...elementwise(lse.size),
      arguments: [lse, delta, statistics, i64(lse.size)],
    });
    return statistics;
  }
  const lanes = lanesOf(extent(o, 2));
  context.run({
    file: 'attention-parts',
    entry: 'rowStatistics',
    defines: { ...typed(o), LANES: lanes },
    ...elementwise(lanes * lse.size),
    arguments: [o, lse, dO, statistics, i64(lse.size), i32(extent(o, 2))],
  });
  return statistics;
}

/** `y[n, c] = sum over g of x[n, g, c]` */
export function sumHeads(
  context: KernelContext,
  x: Tensor,
  heads: number,
  y: Tensor,
): void {
  context.run({
    file: 'attention-parts',
    entry: 'sumHeads',
    defines: typed(y),
    ...elementwise(y.size),
    arguments: [x, y, i64(y.size), i32(heads), i32(extent(y, -1))],
  });
}

/** For each block the leaders that chose it, a bit a leader. */
function invertLists(
  context: KernelContext,
  { indices, sequences, blockSize = 1, sharing = 1 }: View,
): { chosenBy: Tensor; words: number; blocks: number } | undefined {
  if (!indices) return undefined;
  const lists = extent(indices, 1);
  const leaders = Math.ceil(sequences.maxQueries / sharing);
  const words = Math.ceil(leaders / 32);
  const blocks = Math.ceil(sequences.maxKeys / blockSize);
  const bits = sequences.count * lists * blocks * words;
  const chosenBy = context.scratch(bits, 'i32');
  context.clear(chosenBy);
  const { grid, threads } = elementwise(leaders * lists);
  context.run({
    file: 'attention-parts',
    entry: 'invertLists',
    defines: { T: 'f32' },
    grid: [grid[0], 1, sequences.count],
    threads,
    arguments: [
      indices,
      sequences.on(indices.backend),
      chosenBy,
      i32(lists),
      i32(extent(indices, 2)),
      i32(sharing),
      i32(words),
      i32(blocks),
    ],
  });
  return { chosenBy, words, blocks };
}
