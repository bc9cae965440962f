/** A card that computes nothing, for what launches are made of shapes. */
import { type Backend, type DType, type Storage, Tensor } from '@asa/core';
import type { DeviceFacts } from '../../../../packages/backend-gpu/src/cuda/driver';
import type { KernelContext } from '../../../../packages/backend-gpu/src/cuda/kernels/context';
import type { Launch } from '../../../../packages/backend-gpu/src/cuda/launch';

export const h100: DeviceFacts = {
  name: 'H100',
  capability: 90,
  multiprocessors: 132,
  l2Bytes: 50 * 2 ** 20,
  sharedBytes: 232_448,
  totalBytes: 80 * 2 ** 30,
};

const backend = {
  allocate: () => ({}) as Storage,
  write: () => {},
  free: () => {},
} as unknown as Backend;

export const nullTensor = (shape: readonly number[], dtype: DType) =>
  new Tensor({ backend, storage: {} as Storage, freed: false }, shape, dtype);

/** What kernels launch, and the bytes of their scratch memory. */
export function nullContext(facts: Partial<DeviceFacts> = {}) {
  const launches: Launch[] = [];
  const sizes: number[] = [];
  const context: KernelContext = {
    facts: { ...h100, ...facts },
    run: (launch) => launches.push(launch),
    product: () => {},
    clear: () => {},
    copy: () => {},
    scratch: (elements, dtype) => {
      sizes.push(elements * (dtype === 'bf16' ? 2 : 4));
      return nullTensor([elements], dtype);
    },
  };
  const scratchBytes = () => sizes.reduce((sum, bytes) => sum + bytes, 0);
  return { context, launches, scratchBytes };
}
