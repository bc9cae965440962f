/// <reference path="../cuda-source.d.ts" />
/** The text of every kernel: it travels inside the package. */
import adamw from './adamw.cu';
import add from './add.cu';
import attentionBackwardKeys from './attention-backward-keys.cu';
import attentionBackwardQueries from './attention-backward-queries.cu';
import attentionForward from './attention-forward.cu';
import attentionParts from './attention-parts.cu';
import attentionTile from './attention-tile.cuh';
import blockItems from './block-items.cuh';
import cast from './cast.cu';
import choice from './choice.cuh';
import chooseBlocks from './choose-blocks.cu';
import chooseFew from './choose-few.cu';
import chunks from './chunks.cuh';
import columnSum from './column-sum.cu';
import common from './common.cuh';
import compress from './compress.cu';
import crossEntropy from './cross-entropy.cu';
import fewRows from './few-rows.cu';
import fill from './fill.cu';
import flash from './flash.cuh';
import flashBackwardBlocks from './flash-backward-blocks.cu';
import flashBackwardKeys from './flash-backward-keys.cu';
import flashBackwardLists from './flash-backward-lists.cu';
import flashBackwardQueries from './flash-backward-queries.cu';
import flashForward from './flash-forward.cu';
import flashForwardBlocks from './flash-forward-blocks.cu';
import flashForwardUnion from './flash-forward-union.cu';
import flashGradients from './flash-gradients.cuh';
import flashImportance from './flash-importance.cu';
import flashSoftmax from './flash-softmax.cuh';
import forwardItems from './forward-items.cu';
import gatedSum from './gated-sum.cu';
import gatherRowsBackward from './gather-rows-backward.cu';
import hopper from './hopper.cuh';
import hopperBackward from './hopper-backward.cu';
import hopperBackwardBlocks from './hopper-backward-blocks.cu';
import hopperBackwardKeys from './hopper-backward-keys.cu';
import hopperBackwardQueries from './hopper-backward-queries.cu';
import hopperDecode from './hopper-decode.cu';
import hopperForward from './hopper-forward.cu';
import hopperForwardBlocks from './hopper-forward-blocks.cu';
import hopperImportance from './hopper-importance.cu';
import hopperPtx from './hopper-ptx.cuh';
import joinLists from './join-lists.cu';
import linearAttention from './linear-attention.cu';
import parts from './parts.cuh';
import pieces from './pieces.cuh';
import prefix from './prefix.cuh';
import ptx from './ptx.cuh';
import ranks from './ranks.cuh';
import rmsNorm from './rms-norm.cu';
import rope from './rope.cu';
import rows from './rows.cu';
import sample from './sample.cu';
import selectBlocks from './select-blocks.cu';
import squaredNorm from './squared-norm.cu';
import swiglu from './swiglu.cu';
import tile from './tile.cuh';
import transposeHeads from './transpose-heads.cu';

/** Files that kernels include. */
export const headers: Readonly<Record<string, string>> = {
  'ptx.cuh': ptx,
  'common.cuh': common,
  'pieces.cuh': pieces,
  'tile.cuh': tile,
  'attention-tile.cuh': attentionTile,
  'chunks.cuh': chunks,
  'parts.cuh': parts,
  'prefix.cuh': prefix,
  'flash.cuh': flash,
  'flash-softmax.cuh': flashSoftmax,
  'flash-gradients.cuh': flashGradients,
  'block-items.cuh': blockItems,
  'hopper.cuh': hopper,
  'hopper-ptx.cuh': hopperPtx,
  'ranks.cuh': ranks,
  'choice.cuh': choice,
};

export const sources = {
  adamw,
  add,
  'attention-backward-keys': attentionBackwardKeys,
  'attention-backward-queries': attentionBackwardQueries,
  'attention-forward': attentionForward,
  'attention-parts': attentionParts,
  cast,
  'choose-blocks': chooseBlocks,
  'choose-few': chooseFew,
  'column-sum': columnSum,
  compress,
  'cross-entropy': crossEntropy,
  'few-rows': fewRows,
  fill,
  'flash-backward-blocks': flashBackwardBlocks,
  'flash-backward-keys': flashBackwardKeys,
  'flash-backward-lists': flashBackwardLists,
  'flash-backward-queries': flashBackwardQueries,
  'flash-forward': flashForward,
  'flash-forward-blocks': flashForwardBlocks,
  'flash-forward-union': flashForwardUnion,
  'flash-importance': flashImportance,
  'forward-items': forwardItems,
  'gated-sum': gatedSum,
  'gather-rows-backward': gatherRowsBackward,
  'hopper-backward': hopperBackward,
  'hopper-backward-blocks': hopperBackwardBlocks,
  'hopper-backward-keys': hopperBackwardKeys,
  'hopper-backward-queries': hopperBackwardQueries,
  'hopper-decode': hopperDecode,
  'hopper-forward': hopperForward,
  'hopper-forward-blocks': hopperForwardBlocks,
  'hopper-importance': hopperImportance,
  'join-lists': joinLists,
  'linear-attention': linearAttention,
  'rms-norm': rmsNorm,
  rope,
  rows,
  sample,
  'select-blocks': selectBlocks,
  'squared-norm': squaredNorm,
  swiglu,
  'transpose-heads': transposeHeads,
} as const satisfies Readonly<Record<string, string>>;

export type KernelFile = keyof typeof sources;
