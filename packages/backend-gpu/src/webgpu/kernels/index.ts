import type { KernelTable, OperatorName, TensorSpec } from '@asa/core';
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

export type { KernelContext } from './context';

/** Every operator. */
export function createKernels(context: KernelContext): KernelTable {
  return {
    ...matmulKernels(context),
    ...headMatmulKernels(context),
    ...gatherRowsKernels(context),
    ...scatterRowsKernels(context),
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
    ...sampleKernels(context),
  };
}

/** What the device allows a kernel. */
export interface KernelLimits {
  readonly bindings: number;
  readonly workgroupBytes: number;
  readonly halves: boolean;
}

/** Widths whose results still fit the registers of a tile. */
const MOST_WIDTH = 640;
/** Workgroup memory of the largest tile. */
const MOST_BYTES = 32_768;

/**
 * Storage buffers of an operator's widest launch. Browsers may give no more
 * than 10, which is enough to generate.
 */
export function bindingsOf(operator: OperatorName): number {
  return /(attention|gatedSum)Backward$/i.test(operator) ? 12 : 10;
}

/** `true`, or why not, for operands of types that the device has. */
export function reasonAgainst(
  operator: OperatorName,
  inputs: Readonly<Record<string, TensorSpec | undefined>>,
  attributes: unknown,
  limits: KernelLimits,
): true | string {
  const bindings = bindingsOf(operator);
  if (limits.bindings < bindings) {
    return `it needs ${bindings} storage buffers a kernel, and the device has ${limits.bindings}`;
  }
  if (limits.workgroupBytes < MOST_BYTES) {
    return `it needs ${MOST_BYTES} bytes of workgroup memory, and the device has ${limits.workgroupBytes}`;
  }
  if (operator === 'cast') {
    const { dtype } = attributes as { readonly dtype: string };
    if (dtype === 'f64' || dtype === 'bf16') return `WebGPU has no ${dtype}`;
    if (dtype === 'f16' && !limits.halves) return 'the device lacks shader-f16';
  }
  if (/attention/i.test(operator)) {
    for (const name of ['q', 'k', 'v', 'qRope']) {
      const width = inputs[name]?.shape.at(-1) ?? 0;
      if (width > MOST_WIDTH) {
        return `the width of ${name} must be at most ${MOST_WIDTH}, got ${width}`;
      }
    }
  }
  return true;
}
