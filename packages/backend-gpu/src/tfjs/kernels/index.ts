import type { operators } from '@asa/core';
import { adamwBodies } from './adamw';
import { addBodies } from './add';
import { attentionBodies } from './attention';
import type { Bodies } from './body';
import { castBodies } from './cast';
import { compressBodies } from './compress';
import { compressedAttentionBodies } from './compressed-attention';
import { crossEntropyBodies } from './cross-entropy';
import { gatedSumBodies } from './gated-sum';
import { gatherRowsBodies } from './gather-rows';
import { headMatmulBodies } from './head-matmul';
import { linearAttentionBodies } from './linear-attention';
import { matmulBodies } from './matmul';
import { rmsNormBodies } from './rms-norm';
import { ropeBodies } from './rope';
import { sampleBodies } from './sample';
import { scatterRowsBodies } from './scatter-rows';
import { selectBlocksBodies } from './select-blocks';
import { selectedAttentionBodies } from './selected-attention';
import { squaredNormBodies } from './squared-norm';
import { swigluBodies } from './swiglu';

/** What every operator computes. */
export const bodies: Bodies<keyof typeof operators> = {
  ...matmulBodies,
  ...headMatmulBodies,
  ...gatherRowsBodies,
  ...scatterRowsBodies,
  ...sampleBodies,
  ...addBodies,
  ...castBodies,
  ...rmsNormBodies,
  ...ropeBodies,
  ...swigluBodies,
  ...crossEntropyBodies,
  ...attentionBodies,
  ...compressBodies,
  ...compressedAttentionBodies,
  ...selectBlocksBodies,
  ...selectedAttentionBodies,
  ...gatedSumBodies,
  ...linearAttentionBodies,
  ...squaredNormBodies,
  ...adamwBodies,
};
