import type { KernelTable } from '@asa/core';
import { adamwKernels } from './adamw';
import { addKernels } from './add';
import { attentionKernels } from './attention';
import { castKernels } from './cast';
import { compressKernels } from './compress';
import { compressedAttentionKernels } from './compressed-attention';
import { crossEntropyKernels } from './cross-entropy';
import { gatedSumKernels } from './gated-sum';
import { gatherRowsBackwardKernels, gatherRowsKernels } from './gather-rows';
import { headMatmulKernels } from './head-matmul';
import { linearAttentionKernels } from './linear-attention';
import { matmulKernels } from './matmul';
import { rmsNormKernels } from './rms-norm';
import { ropeKernels } from './rope';
import { sampleKernels } from './sample';
import { scatterRowsKernels } from './scatter-rows';
import { selectBlocksKernels } from './select-blocks';
import { selectedAttentionKernels } from './selected-attention';
import { squaredNormKernels } from './squared-norm';
import { swigluKernels } from './swiglu';
import { widened } from './widened';

/** Every operator, for every element type. */
export const kernels: KernelTable = {
  // These read and write 16-bit elements themselves.
  ...matmulKernels,
  ...gatherRowsKernels,
  ...scatterRowsKernels,
  ...castKernels,
  ...widened({
    ...headMatmulKernels,
    ...gatherRowsBackwardKernels,
    ...addKernels,
    ...rmsNormKernels,
    ...ropeKernels,
    ...swigluKernels,
    ...crossEntropyKernels,
    ...compressKernels,
    ...attentionKernels,
    ...compressedAttentionKernels,
    ...selectBlocksKernels,
    ...selectedAttentionKernels,
    ...gatedSumKernels,
    ...linearAttentionKernels,
    ...squaredNormKernels,
    ...adamwKernels,
    ...sampleKernels,
  }),
};
