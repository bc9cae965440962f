/**
 * Which shapes dense attention takes the kernels of Hopper for (compute
 * capability 9.0: their instructions are of no other), and how those are cut.
 */
import type { DeviceFacts } from '../driver';
import { i32, type Launch } from '../launch';
import type { AttentionShape, View } from './attention-tile';
import { isFlashShape } from './flash';

export interface HopperCut {
  readonly rows: number;
  /** Keys at a time, and tiles of them in shared memory. */
  readonly keys: number;
  readonly stages: number;
  readonly sharedBytes: number;
}

/** Two warpgroups of 64 rows each; a third one copies. */
const ROWS = 128;
const WARPS = 12;
/** Barriers, and what tiles lose to start on multiples of 1024 bytes. */
const SPARE_BYTES = 1024 + 256;

const wholeChunks = (columns: number) => Math.ceil(columns / 64) * 64;

function isHopperShape(
  shape: AttentionShape,
  { kind, rows }: View,
  { capability }: DeviceFacts,
): boolean {
  const { width, ropeWidth, valueWidth } = shape;
  const keyWidth = width + ropeWidth;
  return (
    capability === 90 &&
    kind !== 'SELECTED' &&
    // One warpgroup would have nothing to do.
    rows > ROWS / 2 &&
    isFlashShape(shape) &&
    keyWidth >= 64 &&
    keyWidth <= 192 &&
    valueWidth >= 64 &&
    valueWidth <= 128
  );
}

/** The cut of the forward pass; none where it is for other kernels. */
export function hopperForwardCut(
  shape: AttentionShape,
  isLatent: boolean,
  view: View,
  facts: DeviceFacts,
): HopperCut | undefined {
  if (!isHopperShape(shape, view, facts)) return undefined;
  const keyWidth = wholeChunks(shape.width + shape.ropeWidth);
  const valueWidth = isLatent ? 0 : wholeChunks(shape.valueWidth);
  // A latent tile is in use as keys and, a tile later, as values.
  const stages = isLatent ? 3 : 2;
  const keys = 128;
  const needed =
    2 * (ROWS * keyWidth + stages * keys * (keyWidth + valueWidth)) +
    SPARE_BYTES;
  if (needed > facts.sharedBytes) return undefined;
  return { rows: ROWS, keys, stages, sharedBytes: needed };
}

export function hopperLaunch(
  { width, ropeWidth, valueWidth, dtype }: AttentionShape,
  { kind, unitHeads }: View,
  latent: boolean,
  { rows, keys, stages, sharedBytes }: HopperCut,
): Pick<Launch, 'defines' | 'threads' | 'sharedBytes'> {
  return {
    defines: {
      T: dtype,
      VIEW: kind,
      WARPS,
      ROWS: rows,
      N: keys,
      STAGES: stages,
      WIDTH: width,
      ROPE: ropeWidth,
      VALUE: valueWidth,
      LATENT: latent ? 1 : 0,
      BLOCK: 1,
      UNIT: unitHeads,
    },
    threads: [32 * WARPS],
    sharedBytes,
  };
}

/** Tiles of rows, which blocks of threads take by turns: one a multiprocessor. */
export function hopperGrid(
  { heads }: AttentionShape,
  view: View,
  rows: number,
): { count: number; arguments: Launch['arguments'] } {
  const tiles = view.rowTiles(rows);
  const sequences = view.sequences.count;
  const count = tiles * (heads / view.unitHeads) * sequences;
  return { count, arguments: [count, tiles, sequences].map(i32) };
}
