/**
 * Softmax attention over tiles: rows (a row is a query's head) against 64 keys
 * at a time, scores and probabilities in workgroup memory, results in
 * registers. Nothing of the size rows times keys is ever stored. Matrix units
 * multiply where the device has them and the widths fit; plain code elsewhere.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
  Sequences,
  Tensor,
} from '@asa/core';
import { f32, flat, input, type Launch, output, u32 } from '../launch';
import { addInto } from './add';
import {
  backwardKVSource,
  backwardQSource,
  type Channels,
} from './attention-backward';
import { forwardSource } from './attention-forward';
import {
  type AttentionShape,
  COLUMNS,
  registers,
  type Tile,
  vectors,
} from './attention-products';
import { extentOf, STEP, type UnitTile, unitTileOf } from './attention-unit';
import {
  unitBackwardKVSource,
  unitBackwardQSource,
} from './attention-unit-backward';
import { unitForwardSource } from './attention-unit-forward';
import { covers, type KeyView, type View } from './attention-view';
import { elementwise, extent, type KernelContext, sequenceOf } from './context';
import { rowProducts } from './row-products';

const THREADS = 256;

export function shapeOf({ q, k, v, qRope }: AttentionOperands): AttentionShape {
  return {
    heads: extent(q, 1),
    keyHeads: extent(k, 1),
    width: extent(q, 2),
    ropeWidth: qRope ? extent(qRope, 2) : 0,
    valueWidth: extent(v, 2),
  };
}

/** o = softmax(scores) v, by matrix units where they fit. */
export function attend(
  context: KernelContext,
  operands: AttentionOperands,
  { o, lse }: Pick<AttentionResults, 'o' | 'lse'>,
  view: View,
): void {
  const shape = shapeOf(operands);
  const { sequences, forward } = view;
  if (!coversQueries(sequences, o)) fillEmpty(context, o, lse);
  const unitTile = unitTileOf(
    context,
    operands,
    shape,
    'forward',
    forward.rows,
  );
  const launch = unitTile
    ? forwardByUnits(shape, view, unitTile)
    : forwardPlain(context, shape, view);
  const { constants, ...rest } = launch;
  context.run({
    ...rest,
    constants: { ...constantsOf(shape, view), ...constants },
    bindings: {
      ...operandBindings(shape, operands, sequences),
      ...view.bindings,
      o: vectors(shape).output(o),
      lse: output(lse, 'u32'),
    },
    uniforms: { scale: f32(view.scale), ...view.uniforms },
  });
}

type Pass = Pick<
  Launch,
  'kernel' | 'constants' | 'variant' | 'grid' | 'source'
>;

function forwardPlain(
  context: KernelContext,
  shape: AttentionShape,
  view: View,
): Pass {
  const tile = rowTile(context, view.forward.rows, shape.valueWidth);
  return {
    kernel: `${view.name}Forward`,
    constants: { M: tile.rows, N: COLUMNS },
    grid: rowGrid(shape, view, tile.rows),
    source: () => forwardSource(shape, view, tile),
  };
}

function forwardByUnits(
  shape: AttentionShape,
  view: View,
  tile: UnitTile,
): Pass {
  const rows = extentOf(tile);
  return {
    kernel: `${view.name}ForwardUnit`,
    constants: { M: rows, N: STEP },
    variant: variantOf(tile),
    grid: rowGrid(shape, view, rows),
    source: () => unitForwardSource(shape, view, tile),
  };
}

export function attendBackward(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
  keyView: KeyView,
): void {
  const { q, k, v, qRope, kRope, dO, plus } = inputs;
  const { dQ, dQRope } = outputs;
  const shape = shapeOf(inputs);
  const statistics = rowStatistics(context, inputs);
  const bindings = {
    ...operandBindings(shape, { q, k, v, qRope, kRope }, view.sequences),
    dO: vectors(shape).input(dO),
    statistics: input(statistics),
  };
  const tiles = {
    Q: unitTileOf(context, inputs, shape, 'backwardQ', view.forward.rows),
    KV: unitTileOf(context, inputs, shape, 'backwardKV', keyView.keys),
  };
  const own = plus ? context.scratch(dQ.size, dQ.dtype) : dQ;
  const queries = { dQ: own.reshape(dQ.shape), dQRope };
  backwardQ(context, shape, queries, view, bindings, tiles.Q);
  if (plus) {
    addInto(context, own, plus, dQ);
    own.free();
  }
  backwardKV(context, shape, outputs, view, keyView, bindings, tiles.KV);
  statistics.free();
}

function backwardQ(
  context: KernelContext,
  shape: AttentionShape,
  { dQ, dQRope }: Pick<AttentionGradients, 'dQ' | 'dQRope'>,
  view: View,
  bindings: Launch['bindings'],
  unitTile: UnitTile | undefined,
): void {
  const { sequences, forward } = view;
  if (!coversQueries(sequences, dQ)) {
    for (const gradient of [dQ, dQRope]) if (gradient) context.clear(gradient);
  }
  const plain = rowTile(context, forward.rows, shape.width + shape.ropeWidth);
  const rows = unitTile ? extentOf(unitTile) : plain.rows;
  const as = vectors(shape);
  context.run({
    kernel: `${view.name}BackwardQ${unitTile ? 'Unit' : ''}`,
    constants: {
      ...constantsOf(shape, view),
      M: rows,
      N: unitTile ? STEP : COLUMNS,
    },
    variant: variantOf(unitTile),
    bindings: {
      ...bindings,
      ...view.bindings,
      dQ: as.output(dQ),
      dQRope: dQRope && as.output(dQRope),
    },
    uniforms: { scale: f32(view.scale), ...view.uniforms },
    grid: rowGrid(shape, view, rows),
    source: () =>
      unitTile
        ? unitBackwardQSource(shape, view, unitTile)
        : backwardQSource(shape, view, plain),
  });
}

/** What constants do not tell of a tile. */
const variantOf = (tile: UnitTile | undefined) =>
  tile && `${tile.element},${tile.isShared},`;

function backwardKV(
  context: KernelContext,
  shape: AttentionShape,
  { dK, dV, dKRope }: AttentionGradients,
  view: View,
  keyView: KeyView,
  bindings: Launch['bindings'],
  unitTile: UnitTile | undefined,
): void {
  const { heads, keyHeads, width, ropeWidth, valueWidth } = shape;
  const { keys, parts } = keyView;
  const units = heads / view.unitHeads;
  const as = vectors(shape);
  if (!keyView.coversKeys) {
    for (const gradient of [dK, dV, dKRope]) {
      if (gradient) context.clear(gradient);
    }
  }
  const partial =
    parts &&
    context.scratch(
      units * parts.slots * keys * (width + ropeWidth + valueWidth),
      'f32',
    );
  // The rotary key is shared: each key head gives its part of the gradient.
  const ropes =
    !partial && dKRope && keyHeads > 1
      ? context.scratch(dKRope.size * keyHeads, 'f32')
      : undefined;
  if (ropes && !keyView.coversKeys) context.clear(ropes);
  const rope = ropes ?? dKRope;
  const most = unitTile ? Number.POSITIVE_INFINITY : MOST_CHANNELS;
  for (const channels of channelParts(width + ropeWidth, valueWidth, most)) {
    const { K0, K1, V0, V1 } = channels;
    const tile = keyTile(context, keys, channels);
    context.run({
      kernel: `${view.name}BackwardKV${unitTile ? 'Unit' : ''}`,
      constants: {
        ...constantsOf(shape, view),
        ...keyView.constants,
        ...channels,
        M: unitTile ? STEP : COLUMNS,
        N: keys,
      },
      variant: `${variantOf(unitTile) ?? ''}${partial ? 'parts' : ''}`,
      bindings: {
        ...bindings,
        ...keyView.bindings,
        ...(partial
          ? { partial: as.output(partial) }
          : {
              dK: K0 < Math.min(K1, width) ? as.output(dK) : undefined,
              dKRope: rope && K1 > width ? as.output(rope) : undefined,
              dV: V1 > V0 ? as.output(dV) : undefined,
            }),
      },
      uniforms: {
        scale: f32(view.scale),
        ...view.uniforms,
        ...keyView.uniforms,
        ...(parts && { slots: u32(parts.slots) }),
      },
      grid: [keyView.tiles, units, view.sequences.count],
      source: () =>
        unitTile
          ? unitBackwardKVSource(shape, view, keyView, unitTile)
          : backwardKVSource(shape, view, keyView, tile, channels),
    });
  }
  if (partial) {
    const sum = (y: Tensor, start: number) =>
      sumParts(context, shape, view, keyView, partial, y, start);
    sum(dK, 0);
    if (dKRope) sum(dKRope, width);
    sum(dV, width + ropeWidth);
    partial.free();
  }
  if (ropes && dKRope) {
    sumHeads(context, ropes, keyHeads, dKRope);
    ropes.free();
  }
}

/** As many rows as registers hold results for, and as there are. */
function rowTile(context: KernelContext, rows: number, width: number): Tile {
  const vectors = registers(width);
  if (context.smallTiles) return { rows: 16, perThread: 2 };
  if (rows <= 16) return { rows: 16, perThread: vectors <= 4 ? 4 : 2 };
  if (rows <= 32 || vectors > 4) {
    return { rows: 32, perThread: vectors <= 4 ? 4 : 2 };
  }
  return { rows: 64, perThread: vectors <= 2 ? 8 : 4 };
}

/** Rows of a tile of the pass over keys are keys. */
function keyTile(
  context: KernelContext,
  keys: number,
  { K0, K1, V0, V1 }: Channels,
): Tile {
  const vectors = registers(K1 - K0) + registers(V1 - V0);
  if (context.smallTiles) return { rows: keys, perThread: 2 };
  return { rows: keys, perThread: keys === 64 && vectors <= 3 ? 8 : 4 };
}

const rowGrid = (shape: AttentionShape, view: View, rows: number) =>
  [
    view.forward.tiles(rows),
    shape.heads / view.unitHeads,
    view.sequences.count,
  ] as const;

const MOST_CHANNELS = 384;

/** Channels of dK (rotary ones behind) and dV that one pass sums. */
function channelParts(
  keyWidth: number,
  valueWidth: number,
  most: number,
): Channels[] {
  if (keyWidth + valueWidth <= most) {
    return [{ K0: 0, K1: keyWidth, V0: 0, V1: valueWidth }];
  }
  const cut = (width: number) =>
    Array.from({ length: Math.ceil(width / MOST_CHANNELS) }, (_, part) => {
      const start = part * MOST_CHANNELS;
      return [start, Math.min(start + MOST_CHANNELS, width)] as const;
    });
  return [
    ...cut(keyWidth).map(([K0, K1]) => ({ K0, K1, V0: 0, V1: 0 })),
    ...cut(valueWidth).map(([V0, V1]) => ({ K0: 0, K1: 0, V0, V1 })),
  ];
}

function constantsOf(shape: AttentionShape, view: View) {
  const { heads, keyHeads, width, ropeWidth, valueWidth } = shape;
  return {
    H: heads,
    GK: keyHeads,
    HT: view.unitHeads,
    D: width,
    DR: ropeWidth,
    DV: valueWidth,
    ...view.constants,
  };
}

function operandBindings(
  shape: AttentionShape,
  { q, k, v, qRope, kRope }: AttentionOperands,
  sequences: Sequences,
): Launch['bindings'] {
  const as = vectors(shape);
  return {
    q: as.input(q),
    k: as.input(k),
    v: as.input(v),
    qRope: qRope && as.input(qRope),
    kRope: kRope && as.input(kRope),
    sequences: input(sequences.on(q.backend)),
  };
}

function coversQueries(sequences: Sequences, o: Tensor): boolean {
  const counts = sequences.list.map(({ queryCount }) => queryCount);
  return covers(counts, extent(o, 0));
}

/** Rows of no sequence: output 0, LSE -inf. */
function fillEmpty(context: KernelContext, o: Tensor, lse: Tensor): void {
  context.clear(o);
  context.run({
    kernel: 'fillEmpty',
    constants: {},
    bindings: { lse: output(lse, 'u32') },
    uniforms: { count: u32(lse.size) },
    grid: flat(Math.ceil(lse.size / THREADS)),
    source: () => ({
      threads: THREADS,
      body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i < u.count) { lse[i] = 0xff800000u; }`,
    }),
  });
}

/** Of each row its LSE (0 where it is -inf) and dO . o, f32 `[Nq H, 2]`. */
function rowStatistics(
  context: KernelContext,
  { o, lse, dO, delta: known }: AttentionResults,
): Tensor {
  const delta = known ?? context.scratch(lse.size, 'f32');
  if (!known) rowProducts(context, dO, o, delta);
  const statistics = context.scratch(2 * lse.size, 'f32');
  context.run({
    kernel: 'rowStatistics',
    constants: {},
    bindings: {
      lse: input(lse, 'u32'),
      delta: input(delta),
      statistics: output(statistics),
    },
    uniforms: { count: u32(lse.size) },
    ...elementwise(
      lse.size,
      () => `let bits = lse[i];
statistics[2u * i] = bitcast<f32>(select(bits, 0u, bits == 0xff800000u));
statistics[2u * i + 1u] = delta[i];`,
    ),
  });
  if (!known) delta.free();
  return statistics;
}

/** Gradient of keys: the sum of all parts of all units, channels of `y`. */
function sumParts(
  context: KernelContext,
  shape: AttentionShape,
  view: View,
  keyView: KeyView,
  partial: Tensor,
  y: Tensor,
  start: number,
): void {
  const { heads, width, ropeWidth, valueWidth } = shape;
  const { parts } = keyView;
  if (!parts) return;
  const outHeads = extent(y, 1);
  const row = outHeads * extent(y, 2);
  const [x, y1] = flat(Math.ceil((keyView.most * row) / THREADS));
  context.run({
    kernel: `${view.name}SumParts`,
    constants: {
      ...view.constants,
      ...keyView.constants,
      HEADS: outHeads,
      UNITS: heads / view.unitHeads / outHeads,
      WIDTH: extent(y, 2),
      START: start,
      PITCH: width + ropeWidth + valueWidth,
      N: keyView.keys,
      H: heads,
      HT: view.unitHeads,
    },
    bindings: {
      partial: input(partial),
      y: output(y),
      sequences: input(view.sequences.on(y.backend)),
      ...keyView.bindings,
    },
    uniforms: {
      ...keyView.uniforms,
      slots: u32(parts.slots),
      tiles: u32(keyView.tiles),
    },
    variant: parts.find,
    grid: [x, y1 ?? 1, view.sequences.count],
    source: () => ({
      threads: THREADS,
      declarations: `${sequenceOf}
${keyView.declarations}`,
      body: `let s = sequenceOf(group.z);
let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
let position = i / (HEADS * WIDTH);
if (position >= ${keyView.extent}) { return; }
let head = i / WIDTH % HEADS;
let c = i % WIDTH;
var sum = 0.0;
for (var unit = head * UNITS; unit < (head + 1u) * UNITS; unit++) {
  ${parts.find}
  for (var slot = firstSlot; slot < endSlot; slot++) {
    sum += partial[((unit * u.slots + slot) * N + n) * PITCH + START + c];
  }
}
y[(${view.keyStart} + position) * (HEADS * WIDTH) + i % (HEADS * WIDTH)] = t_y(sum);`,
    }),
  });
}

/** `y[n, c] = sum over g of x[n, g, c]` */
function sumHeads(
  context: KernelContext,
  x: Tensor,
  heads: number,
  y: Tensor,
): void {
  context.run({
    kernel: 'sumHeads',
    constants: {},
    bindings: { x: input(x), y: output(y) },
    uniforms: {
      count: u32(y.size),
      heads: u32(heads),
      width: u32(extent(y, -1)),
    },
    grid: flat(Math.ceil(y.size / THREADS)),
    source: () => ({
      threads: THREADS,
      body: `let i = (group.x + group.y * groups.x) * ${THREADS}u + tid;
if (i >= u.count) { return; }
let n = i / u.width;
var sum = 0.0;
for (var g = 0u; g < u.heads; g++) {
  sum += x[(n * u.heads + g) * u.width + i % u.width];
}
y[i] = t_y(sum);`,
    }),
  });
}
