import type {
  DType,
  KernelTable,
  ManyKernelTable,
  OperatorName,
  Sequences,
  TensorSpec,
} from '@asa/core';
import type { DeviceFacts } from '../driver';
import { adamwKernels, adamwMany } from './adamw';
import { addKernels } from './add';
import { attentionKernels } from './attention';
import { type AttentionShape, tileOf } from './attention-tile';
import { reasonAgainstRanking } from './block-ranks';
import { castKernels } from './cast';
import { compressKernels } from './compress';
import { compressedAttentionKernels } from './compressed-attention';
import type { KernelContext } from './context';
import { crossEntropyKernels } from './cross-entropy';
import { gatedSumKernels } from './gated-sum';
import { gatherRowsKernels, rowsMany } from './gather-rows';
import { headMatmulKernels } from './head-matmul';
import { linearAttentionKernels, reasonAgainstWidth } from './linear-attention';
import { matmulKernels, matmulMany } from './matmul';
import { rmsNormKernels } from './rms-norm';
import { ropeKernels, ropeMany } from './rope';
import { sampleKernels } from './sample';
import { selectBlocksKernels } from './select-blocks';
import { selectedAttentionKernels } from './selected-attention';
import { squaredNormKernels, squaredNormMany } from './squared-norm';
import { swigluKernels } from './swiglu';

export type { KernelContext } from './context';

/** Every operator. */
export function createKernels(context: KernelContext): KernelTable {
  return {
    ...matmulKernels(context),
    ...headMatmulKernels(context),
    ...gatherRowsKernels(context),
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
    ...sampleKernels(context),
    ...squaredNormKernels(context),
    ...adamwKernels(context),
  };
}

/** Operators of which a step has many calls, each of little work. */
export function createManyKernels(context: KernelContext): ManyKernelTable {
  return {
    ...matmulMany(context),
    ...rowsMany(context),
    ...ropeMany(context),
    ...squaredNormMany(context),
    ...adamwMany(context),
  };
}

type Specs = Readonly<Record<string, TensorSpec | undefined>>;

/** Blocks of threads on the axis that counts sequences. */
const MOST_SEQUENCES = 65_535;

/** `true`, or why not, for operands of types that the driver has. */
export function reasonAgainst(
  operator: OperatorName,
  inputs: Specs,
  attributes: unknown,
  { sharedBytes }: DeviceFacts,
): true | string {
  const { sequences, dtype } = attributes as {
    readonly sequences?: Sequences;
    readonly dtype?: DType;
  };
  if (operator === 'cast' && dtype === 'f64') return 'it computes in f32';
  if (sequences && sequences.count > MOST_SEQUENCES) {
    return `it takes ${MOST_SEQUENCES} sequences at a time, got ${sequences.count}`;
  }
  return reasonAgainstWidths(operator, inputs, sharedBytes) ?? true;
}

function reasonAgainstWidths(
  operator: OperatorName,
  inputs: Specs,
  sharedBytes: number,
): string | undefined {
  const width = (name: string) => inputs[name]?.shape.at(-1) ?? 0;
  const shape: AttentionShape = {
    heads: 1,
    keyHeads: 1,
    width: width('q'),
    ropeWidth: width('qRope'),
    valueWidth: width('v'),
    dtype: inputs.q?.dtype ?? 'f32',
  };
  switch (operator) {
    case 'linearAttention':
    case 'linearAttentionBackward':
      return (
        reasonAgainstWidth('q', width('q')) ??
        reasonAgainstWidth('v', width('v'))
      );
    case 'selectBlocks':
    case 'blockImportance':
      return reasonAgainstRanking(shape, sharedBytes);
    case 'attention':
    case 'compressedAttention':
    case 'selectedAttention':
      return reasonAgainstTile(['forward'], shape, sharedBytes);
    case 'attentionBackward':
    case 'compressedAttentionBackward':
    case 'selectedAttentionBackward':
      return reasonAgainstTile(['queries', 'keys'], shape, sharedBytes);
    default:
      return undefined;
  }
}

function reasonAgainstTile(
  passes: readonly Parameters<typeof tileOf>[0][],
  shape: AttentionShape,
  sharedBytes: number,
): string | undefined {
  if (passes.every((pass) => tileOf(pass, shape, 1, sharedBytes))) return;
  const { width, ropeWidth, valueWidth, dtype } = shape;
  return `tiles of ${dtype} keys of width ${width + ropeWidth} and values of width ${valueWidth} do not fit its ${sharedBytes} bytes of shared memory`;
}
