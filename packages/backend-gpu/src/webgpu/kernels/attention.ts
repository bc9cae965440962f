import type { AttentionAttributes } from '@asa/core';
import { i32 } from '../launch';
import {
  type AttentionShape,
  attend,
  attendBackward,
  covers,
  shapeOf,
  type View,
} from './attention-tile';
import { extent, type KernelContext, type Kernels } from './context';

export const attentionKernels = (
  context: KernelContext,
): Kernels<'attention' | 'attentionBackward'> => ({
  attention: (inputs, outputs, attributes) =>
    attend(context, inputs, outputs, viewOf(inputs, attributes)),
  attentionBackward: (inputs, outputs, attributes) =>
    attendBackward(context, inputs, outputs, viewOf(inputs, attributes)),
});

const KEYS = 32;

/** The query at position t sees keys max(0, t - window + 1) .. t. */
function viewOf(
  operands: Parameters<typeof shapeOf>[0],
  { sequences, scale, window = 2 ** 30 }: AttentionAttributes,
): View {
  const { heads, keyHeads }: AttentionShape = shapeOf(operands);
  const unitHeads = heads / keyHeads;
  const rows = sequences.maxQueries * unitHeads;
  const counts = sequences.list.map(({ keyCount }) => keyCount);
  return {
    name: 'attention',
    sequences,
    scale,
    constants: {},
    uniforms: { window: i32(Math.min(window, 2 ** 30)) },
    bindings: {},
    unitHeads,
    declarations: '',
    keyStart: 's.keyStart',
    coversKeys: covers(counts, extent(operands.k, 0)),
    sees: { first: 'max(0, i32(t) - u.window + 1)', last: 'i32(t)' },
    forward: {
      rows,
      tiles: (tile) => Math.ceil(rows / tile),
      row: `let rho = group.x * M + tid;
  let query = rho / HT;
  let member = rho % HT;
  let isRow = query < s.queryCount;`,
      range: `let past = s.keyCount - s.queryCount;
let firstQuery = group.x * M / HT;
if (firstQuery >= s.queryCount) { return; }
let lastQuery = min((group.x * M + M - 1u) / HT, s.queryCount - 1u);
let first = u32(max(0, i32(past + firstQuery) - u.window + 1));
let end = past + lastQuery + 1u;`,
      keyAt: 'i32(slot)',
    },
    backward: {
      keys: KEYS,
      tiles: Math.ceil(sequences.maxKeys / KEYS),
      range: `let firstKey = group.x * N;
let endKey = min(firstKey + N, s.keyCount);`,
      loop: (walk) => `let head0 = keyHead * HT;
let firstQuery = firstKey;
let endQuery = u32(min(i32(s.queryCount), i32(endKey) + u.window - 1));
let total = (endQuery - firstQuery) * HT;
${walk}`,
      row: `let query = firstQuery + rho / HT;
  let member = rho % HT;
  let isRow = rho < total;`,
    },
  };
}
