import type { AttentionAttributes, AttentionOperands } from '@asa/core';
import { i32 } from '../launch';
import { attend, attendBackward, shapeOf } from './attention-tile';
import {
  covers,
  type KeyView,
  keysOfQueries,
  keysOfTile,
  type View,
} from './attention-view';
import { extent, type KernelContext, type Kernels } from './context';

export const attentionKernels = (
  context: KernelContext,
): Kernels<'attention' | 'attentionBackward'> => ({
  attention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  attentionBackward: (inputs, outputs, attributes) =>
    attendBackward(
      context,
      inputs,
      outputs,
      viewOf(inputs, attributes),
      keyViewOf(context, inputs, attributes),
    ),
});

/** What windows are cut to: as good as none. */
const WIDEST = 2 ** 30;

/** The query at position t sees keys max(0, t - window + 1) .. t. */
function viewOf(
  operands: AttentionOperands,
  { sequences, scale, window = WIDEST }: AttentionAttributes,
): View {
  const { heads, keyHeads } = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  const rows = sequences.maxQueries * unitHeads;
  return {
    name: 'attention',
    sequences,
    scale,
    constants: {},
    uniforms: { window: i32(Math.min(window, WIDEST)) },
    bindings: {},
    unitHeads,
    declarations: '',
    keyStart: 's.keyStart',
    sees: { first: 'max(0, i32(t) - u.window + 1)', last: 'i32(t)' },
    forward: {
      rows,
      tiles: (tile) => Math.ceil(rows / tile),
      row: `let rho = tile * M + tid;
  let query = rho / HT;
  let member = rho % HT;
  let isRow = query < s.queryCount;`,
      // The last queries see most: their tiles start first.
      range: `let tile = groups.x - 1u - group.x;
let past = s.keyCount - s.queryCount;
let firstQuery = tile * M / HT;
if (firstQuery >= s.queryCount) { return; }
let lastQuery = min((tile * M + M - 1u) / HT, s.queryCount - 1u);
let first = u32(max(0, i32(past + firstQuery) - u.window + 1));
let end = past + lastQuery + 1u;`,
      keyAt: 'i32(slot)',
    },
  };
}

function keyViewOf(
  context: KernelContext,
  operands: AttentionOperands,
  { sequences, window = WIDEST }: AttentionAttributes,
): KeyView {
  const shape = shapeOf(operands);
  const { heads, keyHeads } = shape;
  const most = sequences.maxKeys;
  const keys = keysOfTile(context, operands, shape, most);
  const counts = sequences.list.map(({ keyCount }) => keyCount);
  return {
    ...keysOfQueries({
      keys,
      most,
      units: keyHeads,
      sequences: sequences.count,
      rows: (Math.min(most, window + keys) * heads) / keyHeads,
      text: `let firstKey = tile * N;
let endKey = min(firstKey + N, s.keyCount);
let firstQuery = firstKey;
let endQuery = u32(min(i32(s.queryCount), i32(endKey) + u.window - 1));`,
    }),
    bindings: {},
    uniforms: {},
    declarations: '',
    coversKeys: covers(counts, extent(operands.k, 0)),
    most,
    extent: 's.keyCount',
  };
}
