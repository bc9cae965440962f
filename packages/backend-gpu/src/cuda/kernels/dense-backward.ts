/**
 * The gradients of full, window and compressed attention: in one walk where the
 * card has warpgroups' products and shapes fit, else in a pass over queries and
 * one over keys.
 */
import {
  type AttentionGradients,
  type AttentionOperands,
  type AttentionResults,
  blockCount,
  type Tensor,
} from '@asa/core';
import { i32 } from '../launch';
import { addInto } from './add';
import {
  attendBackward,
  call,
  coversQueries,
  queryArguments,
  rowStatistics,
  shapeOf,
  startQueries,
  sumHeads,
  type View,
} from './attention-tile';
import { extent, type KernelContext } from './context';
import { isLatent } from './flash';
import {
  hopperBackwardCut,
  hopperLaunch,
  hopperPlan,
  type WalkCut,
} from './hopper';

export function denseBackward(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
): void {
  const shape = shapeOf(inputs);
  const cut = hopperBackwardCut(shape, isLatent(inputs), view, context.facts);
  if (cut) backwardInOneWalk(context, inputs, outputs, view, cut);
  else attendBackward(context, inputs, outputs, view);
}

export function backwardInOneWalk(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: View,
  cut: WalkCut,
): void {
  const { facts } = context;
  const { sequences } = view;
  const { dQ, dK, dV, dKRope } = outputs;
  const shape = shapeOf(inputs);
  const { keyHeads } = shape;
  const plan = hopperPlan(shape, view, cut, facts);
  const units = keyHeads * sequences.count;
  // The rotary key is shared: each key head gives its part of the gradient.
  const shares = dKRope && context.scratch(dKRope.size * keyHeads, 'f32');
  if (!coversAll(view, dQ)) startQueries(context, {}, outputs);
  if (view.keyRows !== extent(dK, 0)) {
    for (const tensor of [dK, dV, shares]) if (tensor) context.clear(tensor);
  }
  const statistics = rowStatistics(context, inputs);
  const rowSums = context.scratch(plan.rowSums, 'f32');
  const keySums =
    plan.ranges > 1 ? context.scratch(plan.keySums, 'f32') : undefined;
  // The next item, then how far sums have come.
  const counts = 1 + keyHeads * plan.rowTiles + units * plan.keyTiles;
  const counters = context.scratch(counts, 'i32');
  context.clear(counters);
  const launch = hopperLaunch(shape, view, isLatent(inputs), cut);
  const BULK = cut.isBulk ? 1 : 0;
  context.run({
    file: 'hopper-backward',
    entry: 'hopperBackward',
    ...launch,
    defines: { ...launch.defines, BULK },
    grid: [Math.min(plan.items, facts.multiprocessors)],
    arguments: [
      ...call(inputs, view),
      ...[inputs.dO, statistics],
      ...queryArguments({}, outputs),
      ...[dK, dV, shares],
      ...[rowSums, keySums, counters],
      ...[plan.items, sequences.count, plan.keyTiles].map(i32),
      ...[plan.rowTiles, plan.range, plan.cycle].map(i32),
    ],
  });
  for (const made of [statistics, rowSums, keySums, counters]) made?.free();
  if (shares && dKRope) {
    sumHeads(context, shares, keyHeads, dKRope);
    shares.free();
  }
  // Not in the walk: a warpgroup that waits for it there holds up others.
  const { plus } = inputs;
  if (plus) addInto(context, dQ, plus, dQ);
}

/** Every query is of a sequence that has keys. */
function coversAll(
  { kind, sequences, length = 1, stride = 1 }: View,
  dQ: Tensor,
) {
  const hasKeys = sequences.list.every(
    ({ keyCount }) => blockCount(keyCount, { length, stride }) > 0,
  );
  return (kind !== 'COMPRESSED' || hasKeys) && coversQueries(sequences, dQ);
}
