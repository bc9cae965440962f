import { type Allocation, type Backend, type DType, Tensor } from '@asa/core';
import { create, globals } from 'webgpu';
import type { KernelContext } from '../../../packages/backend-gpu/src/webgpu/kernels';
import {
  type Launch,
  wgslOf,
} from '../../../packages/backend-gpu/src/webgpu/launch';
import type { MatrixUnit } from '../../../packages/backend-gpu/src/webgpu/matrix-unit';

/** As an H100 has it. */
const unit: MatrixUnit = {
  m: 16,
  n: 16,
  k: 16,
  subgroupSize: 32,
  workgroupBytes: 49_152,
};

const holder = globalThis as { asaNullGpu?: GPU };

/** A device that compiles what software adapters lack, and runs nothing. */
export async function openNullDevice(): Promise<GPUDevice> {
  Object.assign(globalThis, globals);
  holder.asaNullGpu = create([
    'backend=null',
    'enable-dawn-features=allow_unsafe_apis',
  ]) as GPU;
  const adapter = await holder.asaNullGpu.requestAdapter();
  if (!adapter) throw new Error('Dawn has no null adapter');
  return adapter.requestDevice({
    requiredFeatures: [
      'shader-f16',
      'subgroups',
      'chromium-experimental-subgroup-matrix' as GPUFeatureName,
    ],
  });
}

/** What the compiler says against a launch. */
export async function flawsOf(
  device: GPUDevice,
  launch: Launch,
): Promise<string[]> {
  device.pushErrorScope('validation');
  const module = device.createShaderModule({ code: wgslOf(launch) });
  const { messages } = await module.getCompilationInfo();
  const error = await device.popErrorScope();
  return [
    ...messages.map(({ message }) => message),
    ...(error ? [error.message] : []),
  ];
}

/** What kernels enqueue on a device with matrix units. */
export function launchesOf(
  enqueue: (context: KernelContext) => void,
): readonly Launch[] {
  const launches: Launch[] = [];
  enqueue({
    matrixUnit: unit,
    attentionUnit: unit,
    smallTiles: false,
    run: (launch) => launches.push(launch),
    clear: () => {},
    scratch: (elements, dtype) => nullTensor([elements], dtype),
  });
  return launches;
}

export function nullTensor(shape: readonly number[], dtype: DType = 'f16') {
  const allocation: Allocation = {
    backend: nullBackend,
    storage: {} as Allocation['storage'],
    freed: false,
  };
  return new Tensor(allocation, shape, dtype);
}

const nullBackend = {
  free: () => {},
  allocate: () => ({}),
  write: () => {},
} as unknown as Backend;
