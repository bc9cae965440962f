import type fc from 'fast-check';
import type { OperatorName } from '../../ops';
import * as attention from './attention';
import type { OperatorCase } from './case';
import * as dense from './dense';

export * from './case';

/** The calls that each operator is tried on. */
export const operatorCases: Readonly<
  Record<OperatorName, fc.Arbitrary<OperatorCase>>
> = {
  matmul: dense.matmulCases,
  headMatmul: dense.headMatmulCases,
  headMatmulBackwardInput: dense.headMatmulBackwardInputCases,
  headMatmulBackwardWeight: dense.headMatmulBackwardWeightCases,
  gatherRows: dense.gatherRowsCases,
  gatherRowsBackward: dense.gatherRowsBackwardCases,
  scatterRows: dense.scatterRowsCases,
  add: dense.addCases,
  cast: dense.castCases,
  rmsNorm: dense.rmsNormCases,
  rmsNormBackward: dense.rmsNormBackwardCases,
  rope: dense.ropeCases,
  swiglu: dense.swigluCases,
  swigluBackward: dense.swigluBackwardCases,
  crossEntropy: dense.crossEntropyCases,
  crossEntropyBackward: dense.crossEntropyBackwardCases,
  attention: attention.attentionCases,
  attentionBackward: attention.attentionBackwardCases,
  compress: attention.compressCases,
  compressBackward: attention.compressBackwardCases,
  unfoldBlocks: attention.unfoldBlocksCases,
  unfoldBlocksBackward: attention.unfoldBlocksBackwardCases,
  compressedAttention: attention.compressedAttentionCases,
  compressedAttentionBackward: attention.compressedAttentionBackwardCases,
  blockImportance: attention.blockImportanceCases,
  selectBlocks: attention.selectBlocksCases,
  selectedAttention: attention.selectedAttentionCases,
  selectedAttentionBackward: attention.selectedAttentionBackwardCases,
  gatedSum: dense.gatedSumCases,
  gatedSumBackward: dense.gatedSumBackwardCases,
  linearAttention: attention.linearAttentionCases,
  linearAttentionBackward: attention.linearAttentionBackwardCases,
  squaredNorm: dense.squaredNormCases,
  adamw: dense.adamwCases,
  sample: dense.sampleCases,
};

/**
 * Calls that have a gradient, where that asks for something: every query a
 * key, and linear attention from state 0.
 */
export const differentiableCases: Partial<typeof operatorCases> = {
  attention: attention.attentionSelfCases,
  compressedAttention: attention.compressedAttentionSelfCases,
  selectedAttention: attention.selectedAttentionSelfCases,
};
