/**
 * The table of all operators. A new one is: its contract in a file here, an
 * entry below, and a loop in the oracle; every other backend then answers
 * `supports` with a reason until it has a kernel of its own.
 */
import { adamw } from './adamw';
import { add } from './add';
import { attention, attentionBackward } from './attention';
import { cast } from './cast';
import {
  compress,
  compressBackward,
  unfoldBlocks,
  unfoldBlocksBackward,
} from './compress';
import {
  compressedAttention,
  compressedAttentionBackward,
} from './compressed-attention';
import { crossEntropy, crossEntropyBackward } from './cross-entropy';
import { gatedSum, gatedSumBackward } from './gated-sum';
import { gatherRows, gatherRowsBackward } from './gather-rows';
import {
  headMatmul,
  headMatmulBackwardInput,
  headMatmulBackwardWeight,
} from './head-matmul';
import { linearAttention, linearAttentionBackward } from './linear-attention';
import { matmul } from './matmul';
import type { KernelOf, ManyKernelOf } from './operator';
import { rmsNorm, rmsNormBackward } from './rms-norm';
import { rope } from './rope';
import { sample } from './sample';
import { scatterRows } from './scatter-rows';
import { blockImportance, selectBlocks } from './select-blocks';
import {
  selectedAttention,
  selectedAttentionBackward,
} from './selected-attention';
import { squaredNorm } from './squared-norm';
import { swiglu, swigluBackward } from './swiglu';

export const operators = {
  matmul,
  headMatmul,
  headMatmulBackwardInput,
  headMatmulBackwardWeight,
  gatherRows,
  gatherRowsBackward,
  scatterRows,
  add,
  cast,
  rmsNorm,
  rmsNormBackward,
  rope,
  swiglu,
  swigluBackward,
  crossEntropy,
  crossEntropyBackward,
  attention,
  attentionBackward,
  compress,
  compressBackward,
  unfoldBlocks,
  unfoldBlocksBackward,
  compressedAttention,
  compressedAttentionBackward,
  blockImportance,
  selectBlocks,
  selectedAttention,
  selectedAttentionBackward,
  gatedSum,
  gatedSumBackward,
  linearAttention,
  linearAttentionBackward,
  squaredNorm,
  adamw,
  sample,
} as const;

export type OperatorName = keyof typeof operators;

/** A backend's kernels, by operator. */
export type KernelTable = {
  readonly [Name in OperatorName]?: KernelOf<(typeof operators)[Name]>;
};

/** Kernels of many calls, by operator. */
export type ManyKernelTable = {
  readonly [Name in OperatorName]?: ManyKernelOf<(typeof operators)[Name]>;
};

export type { AttentionAttributes } from './attention';
export type {
  AttentionGradients,
  AttentionOperands,
  AttentionResults,
} from './attention-operands';
export type { BlockAttributes } from './compress';
export type { CompressedAttentionAttributes } from './compressed-attention';
export type {
  GradientCall,
  InputGradients,
  Kernel,
  KernelOf,
  ManyKernel,
  ManyKernelOf,
  Operator,
} from './operator';
export type { RopeStyle } from './rope';
export type { SampleAttributes } from './sample';
export type {
  RankingAttributes,
  RankingOperands,
  SelectBlocksAttributes,
} from './select-blocks';
export type {
  SelectedAttentionAttributes,
  SelectedAttentionOperands,
} from './selected-attention';
