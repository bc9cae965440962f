/**
 * The gradients of selected attention. A pass over queries and one over keys
 * compute the scores twice; where that is more work than to keep, for a while,
 * what one side adds to the other, one walk gives both: over lists, or over
 * those that chose a block. Where lists see much of the past, it is that of full
 * attention.
 */
import type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
} from '@asa/core';
import { attendBackward } from './attention-tile';
import { backwardByBlocks, blocksTile } from './backward-by-blocks';
import { backwardByLists, listsTile } from './backward-by-lists';
import type { KernelContext } from './context';
import type { SelectedView } from './gradient-parts';
import { backwardMasked, maskedBackward } from './masked-attention';

export function selectedBackward(
  context: KernelContext,
  inputs: AttentionOperands & AttentionResults,
  outputs: AttentionGradients,
  view: SelectedView,
): void {
  const { facts } = context;
  const byBlocks = blocksTile(inputs, view, facts);
  const byLists = byBlocks ? undefined : listsTile(inputs, view, facts);
  const masked =
    byBlocks || byLists ? undefined : maskedBackward(inputs, view, facts);
  if (byBlocks) backwardByBlocks(context, inputs, outputs, view, byBlocks);
  else if (byLists) backwardByLists(context, inputs, outputs, view, byLists);
  else if (masked) backwardMasked(context, inputs, outputs, masked);
  else attendBackward(context, inputs, outputs, view);
}
