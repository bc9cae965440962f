import type { KernelTable } from '@asa/core';
import { addKernels } from './add';
import { widened } from './widened';

/** Every operator, for every element type. */
export const kernels: KernelTable = {
  ...widened({
    ...addKernels,
  }),
};
