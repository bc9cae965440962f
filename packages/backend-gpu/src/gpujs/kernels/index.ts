import type { KernelTable } from '@asa/core';
import { adamwKernels } from './adamw';
import { addKernels } from './add';
import { attentionKernels } from './attention';
import { castKernels } from './cast';
import { compressKernels } from './compress';
import { compressedAttentionKernels } from './compressed-attention';
import type { KernelContext } from './context';
import { crossEntropyKernels } from './cross-entropy';
import { gatedSumKernels } from './gated-sum';
import { gatherRowsKernels } from './gather-rows';
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

/** All kernels of this driver, for one backend. */
export function createKernels(context: KernelContext): KernelTable {
  return {
    ...matmulKernels(context),
    ...headMatmulKernels(context),
    ...gatherRowsKernels(context),
    ...scatterRowsKernels(context),
    ...sampleKernels(context),
    ...addKernels(context),
    ...castKernels(context),
    ...rmsNormKernels(context),
    ...ropeKernels(context),
    ...swigluKernels(context),
    ...crossEntropyKernels(context),
    ...attentionKernels(context),
    ...compressKernels(context),
    ...compressedAttentionKernels(context),
    ...selectBlocksKernels(context),
    ...selectedAttentionKernels(context),
    ...gatedSumKernels(context),
    ...linearAttentionKernels(context),
    ...squaredNormKernels(context),
    ...adamwKernels(context),
  };
}
